//! HTTP proxies: how they are named, what does not go through them, and what is said to them (RFC 9110, section 9.3.6).
//!
//! A proxy is asked to connect to an address, and from its answer on passes bytes. It is believed in nothing: what runs inside proves
//! itself. [`Answer`] reads what it says, which may come from anybody, a captive portal included.

mod answer;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

pub use self::answer::{Answer, MAX_HEAD, Refusal};
use crate::base64::base64;
use crate::node::is_private;

/// Longest name of a host (RFC 1035, section 2.3.4).
const MAX_HOST: usize = 253;

/// Longest user name and password together, in bytes. Proxies take heads of 8 KiB and more; a longer one is a mistake.
const MAX_CREDENTIALS: usize = 1_024;

/// The port of a proxy whose URL has none, as curl takes it.
const DEFAULT_PORT: u16 = 1080;

/// Most exceptions that are read from a list.
const MAX_EXCEPTIONS: usize = 256;

/// Why a text names no proxy that can be used. None of them repeats the text, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// Another protocol, such as SOCKS or HTTPS.
    #[error("only proxies of the form http://HOST:PORT can be used, which are asked by CONNECT")]
    Scheme,
    /// The host is missing or cannot be one.
    #[error("the proxy has no usable host; write http://HOST:PORT")]
    Host,
    /// The port is not a number from 1 to 65535.
    #[error("the port of the proxy must be a number from 1 to 65535")]
    Port,
    /// The user name and password are not usable.
    #[error(
        "the proxy's user name and password must be written %XX-encoded, and be shorter than {MAX_CREDENTIALS} bytes"
    )]
    Credentials,
}

/// A proxy that is asked by CONNECT. What is shown of it never has its credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    /// As they follow `Basic ` in the request (RFC 7617).
    credentials: Option<String>,
}

impl Proxy {
    /// Returns its name or IP address, which is to be looked up, and its port.
    #[must_use]
    pub fn address(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Returns whether it is told a user name and password.
    #[must_use]
    pub const fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// Returns what asks it to connect to an address.
    #[must_use]
    pub fn request(&self, to: SocketAddr) -> Vec<u8> {
        let credentials = self.credentials.as_ref();
        let credentials =
            credentials.map_or_else(String::new, |it| format!("Proxy-Authorization: Basic {it}\r\n"));
        format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{credentials}\r\n").into_bytes()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl FromStr for Proxy {
    type Err = ProxyError;

    /// Reads `[http://][USER[:PASSWORD]@]HOST[:PORT][/]`.
    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let text = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err(ProxyError::Scheme),
            None => text,
        };
        let text = text.strip_suffix('/').unwrap_or(text);
        // A password may have an @ that nobody has encoded; a host has none.
        let (credentials, place) =
            text.rsplit_once('@').map_or((None, text), |(user, place)| (Some(user), place));
        let (host, port) = host_and_port(place)?;
        Ok(Self { host: host.to_owned(), port, credentials: credentials.map(encode).transpose()? })
    }
}

fn host_and_port(place: &str) -> Result<(&str, u16), ProxyError> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(ProxyError::Host)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| ProxyError::Host)?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(ProxyError::Port)?) })
        }
        None => {
            let (host, port) = place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port)));
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            let is_host = !host.is_empty() && host.len() <= MAX_HOST && host.bytes().all(is_name);
            (if is_host { host } else { return Err(ProxyError::Host) }, port)
        }
    };
    let port = port.map_or(Ok(DEFAULT_PORT), |port| port.parse::<u16>().map_err(|_| ProxyError::Port))?;
    if port == 0 { Err(ProxyError::Port) } else { Ok((host, port)) }
}

/// Makes of `USER[:PASSWORD]`, %XX-encoded, what a request has.
fn encode(user_info: &str) -> Result<String, ProxyError> {
    let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
    let user = decode_percent(user).ok_or(ProxyError::Credentials)?;
    let password = decode_percent(password).ok_or(ProxyError::Credentials)?;
    // The first colon ends the user name.
    let is_usable = !user.contains(&b':') && user.len() + password.len() < MAX_CREDENTIALS;
    if is_usable { Ok(base64(&[&user[..], b":", &password].concat())) } else { Err(ProxyError::Credentials) }
}

fn decode_percent(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let mut decoded = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        // The parser of numbers would take a sign as well.
        digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(())?;
        decoded.push(u8::from_str_radix(digits, 16).ok()?);
        decoded.extend_from_slice(rest.as_bytes());
    }
    Some(decoded)
}

/// What is connected to directly although there is a proxy.
///
/// Besides what a list says, that is whatever a proxy elsewhere could not mean: loopback, link-local and private addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exceptions {
    all: bool,
    ranges: Vec<Range>,
}

/// Addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    address: IpAddr,
    bits: u32,
    port: Option<u16>,
}

impl Exceptions {
    /// Reads a list as `NO_PROXY` has it: `*`, addresses and prefixes such as `198.51.100.0/24`, each with a port or without, separated by
    /// commas or spaces. Names are skipped: nodes connect to addresses.
    #[must_use]
    pub fn parse(list: &str) -> Self {
        let entries = list.split([',', ' ', '\t']).filter(|entry| !entry.is_empty()).take(MAX_EXCEPTIONS);
        let mut exceptions = Self::default();
        for entry in entries {
            exceptions.all |= entry == "*";
            exceptions.ranges.extend(range(entry));
        }
        exceptions
    }

    /// Returns whether an address is connected to directly.
    #[must_use]
    pub fn contain(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let is_listed = |range: &Range| {
            range.port.is_none_or(|port| port == address.port()) && has_prefix(ip, range.address, range.bits)
        };
        self.all || is_near(ip) || self.ranges.iter().any(is_listed)
    }
}

fn range(entry: &str) -> Option<Range> {
    let whole = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
    if let Some((address, bits)) = entry.split_once('/') {
        let address: IpAddr = address.parse().ok()?;
        let bits = bits.parse().ok().filter(|bits| *bits <= whole(address))?;
        return Some(Range { address, bits, port: None });
    }
    if let Ok(with_port) = entry.parse::<SocketAddr>() {
        let address = with_port.ip();
        return Some(Range { address, bits: whole(address), port: Some(with_port.port()) });
    }
    let address: IpAddr = entry.trim_matches(['[', ']']).parse().ok()?;
    Some(Range { address, bits: whole(address), port: None })
}

fn has_prefix(ip: IpAddr, prefix: IpAddr, bits: u32) -> bool {
    let differ = match (ip, prefix) {
        (IpAddr::V4(ip), IpAddr::V4(prefix)) => (ip.to_bits() ^ prefix.to_bits()).leading_zeros(),
        (IpAddr::V6(ip), IpAddr::V6(prefix)) => (ip.to_bits() ^ prefix.to_bits()).leading_zeros(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    differ >= bits
}

/// Returns whether an address means something only here, on this computer, link or site.
fn is_near(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    ip.is_loopback() || is_link_local || is_private(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    #[test]
    fn a_proxy_is_read_with_and_without_its_parts() {
        for (text, shown, has_credentials) in [
            ("http://web.example:3128", "web.example:3128", false),
            ("HTTP://10.0.0.1:8080/", "10.0.0.1:8080", false),
            ("web:3128", "web:3128", false),
            ("http://web", "web:1080", false),
            ("http://[2a03::1]:3128", "[2a03::1]:3128", false),
            ("http://ann:p%40ss@web:3128", "web:3128", true),
            ("http://ann@web:3128", "web:3128", true),
        ] {
            let proxy: Proxy = text.parse().unwrap();
            assert_eq!((proxy.to_string().as_str(), proxy.has_credentials()), (shown, has_credentials));
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_repeating_its_password() {
        for (text, error) in [
            ("socks5://web:1080", ProxyError::Scheme),
            ("https://ann:secret@web:3128", ProxyError::Scheme),
            ("http://", ProxyError::Host),
            ("http://a b:1", ProxyError::Host),
            ("http://web/path", ProxyError::Host),
            ("http://[::1:3128", ProxyError::Host),
            ("http://web:0", ProxyError::Port),
            ("http://web:secret", ProxyError::Port),
            ("http://[::1]3128", ProxyError::Port),
            ("http://ann:%+1@web:1", ProxyError::Credentials),
            ("http://ann%3a:x@web:1", ProxyError::Credentials),
        ] {
            assert_eq!(text.parse::<Proxy>(), Err(error), "{text}");
            assert!(!error.to_string().contains("secret"));
        }
        let long = format!("http://{}@web:1", "x".repeat(MAX_CREDENTIALS));
        assert_eq!(long.parse::<Proxy>(), Err(ProxyError::Credentials));
    }

    #[test]
    fn a_request_has_the_credentials_and_what_is_shown_has_not() {
        let proxy: Proxy = "http://Aladdin:open%20sesame@web:3128".parse().unwrap();
        let request = String::from_utf8(proxy.request(at("45.0.0.1:443"))).unwrap();
        // The example of RFC 7617, section 2.
        assert_eq!(
            request,
            "CONNECT 45.0.0.1:443 HTTP/1.1\r\nHost: 45.0.0.1:443\r\n\
             Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n"
        );
        assert_eq!(format!("{proxy} {proxy:?}"), "web:3128 Proxy(web:3128)");
        let plain: Proxy = "http://web:3128".parse().unwrap();
        let request = String::from_utf8(plain.request(at("[2a03::7]:443"))).unwrap();
        assert_eq!(request, "CONNECT [2a03::7]:443 HTTP/1.1\r\nHost: [2a03::7]:443\r\n\r\n");
    }

    #[test]
    fn exceptions_are_addresses_prefixes_ports_and_everything() {
        let some = Exceptions::parse(
            "example.com, .local 45.0.0.7,45.1.0.0/16,[2a03::1]:443 2a04::/32,45.2.0.1:80,1.2.3.4/33",
        );
        for (address, is_excepted) in [
            ("45.0.0.7:1", true),
            ("45.0.0.8:1", false),
            ("45.1.255.1:1", true),
            ("45.2.0.1:80", true),
            ("45.2.0.1:81", false),
            ("[2a03::1]:443", true),
            ("[2a03::1]:444", false),
            ("[2a04:0:1::]:1", true),
            ("[::ffff:45.0.0.7]:1", true),
            ("1.2.3.4:1", false),
        ] {
            assert_eq!(some.contain(at(address)), is_excepted, "{address}");
        }
        assert!(Exceptions::parse("*").contain(at("45.0.0.8:1")));
    }

    #[test]
    fn what_is_near_never_goes_through_a_proxy() {
        let none = Exceptions::default();
        for near in [
            "127.0.0.1:1",
            "[::1]:1",
            "192.168.1.7:1",
            "10.1.1.1:1",
            "169.254.1.1:1",
            "[fe80::1]:1",
            "[fd00::1]:1",
        ] {
            assert!(none.contain(at(near)), "{near}");
        }
        assert!(!none.contain(at("45.0.0.1:1")));
        assert!(!none.contain(at("[2a03::1]:1")));
    }
}
