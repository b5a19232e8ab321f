//! The networks: what each lets out, and what should come of it.

use std::net::Ipv4Addr;

use super::FORWARDED_PORT;
use crate::device::{PROXY_PORT, ProxyManner};

/// What every network is called.
pub const NAMES: &[&str] = &[
    "udp-dropped",
    "udp-dies",
    "udp-limited",
    "web-rejected",
    "web-dropped",
    "tls-only",
    "http-only",
    "http-bodies",
    "proxy",
    "proxy-password",
    "proxy-no-password",
    "proxy-other-port",
    "proxy-intercepting",
    "proxy-bodies",
    "proxy-dies",
    "portal",
];

/// What should come of a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// All works.
    Everything,
    /// All works until the proxy dies, which is then named.
    Outage,
    /// All works, also when UDP is dropped from then on while bytes are on their way.
    LossOfUdp,
    /// All works, also when UDP is limited to next to nothing from then on while bytes are on their way.
    LimitOfUdp,
    /// Joining says in these words what is in the way, and all works once it is away.
    Login(&'static str),
    /// Nothing leads out, and joining says why in these words.
    NoJoining(&'static str),
}

/// What may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    /// All but TCP to the office's node, so that direct paths are of UDP.
    NoTcpToOffice,
    /// All but UDP.
    NoUdp,
    /// TCP to the web's ports; the rest is rejected.
    WebOrRejected,
    /// The same; the rest vanishes.
    WebOrDropped,
    /// TCP to port 443 that begins as TLS does.
    Tls,
    /// TCP to port 80 that begins as HTTP does.
    Http,
    /// TCP to port 80, which ends at the proxy.
    HttpToProxy,
    /// TCP to the proxy.
    Proxy,
}

/// A network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Network {
    pub(super) name: &'static str,
    /// A name for hosts, of at most 8 letters.
    pub(super) short: &'static str,
    leaves: Leaves,
    pub(super) proxy: Option<ProxyManner>,
    /// The user name and password that the user has for it.
    credentials: Option<&'static str>,
    /// What the doctor should call it.
    pub(super) cause: &'static str,
    pub(super) expected: Expected,
    /// What should carry messages, once they are exchanged.
    pub(super) carrier: &'static str,
}

/// Returns all networks; `operator` is where the operator is.
pub(super) fn all(operator: Ipv4Addr) -> Vec<Network> {
    let udp_ends = |name, short, expected| Network {
        expected,
        ..open(name, short, Leaves::NoTcpToOffice, ("none", "udp"))
    };
    let filters = [
        open("udp-dropped", "noudp", Leaves::NoUdp, ("udp-blocked", "tls")),
        udp_ends("udp-dies", "dying", Expected::LossOfUdp),
        udp_ends("udp-limited", "limited", Expected::LimitOfUdp),
        open("web-rejected", "webrej", Leaves::WebOrRejected, ("only-web-ports", "tls")),
        open("web-dropped", "webdrop", Leaves::WebOrDropped, ("only-web-ports", "tls")),
        open("tls-only", "tls", Leaves::Tls, ("only-web-ports", "tls")),
        open("http-only", "http", Leaves::Http, ("only-http", "ws")),
        Network {
            proxy: Some(ProxyManner::InPlaceOf(operator)),
            ..open("http-bodies", "bodies", Leaves::HttpToProxy, ("only-http", "http"))
        },
    ];
    let portal = Network {
        proxy: Some(ProxyManner::Portal),
        expected: Expected::Login(
            "a captive portal or a proxy answers in the operator's place (HTTP status 302)",
        ),
        ..open("portal", "portal", Leaves::HttpToProxy, ("captive-portal", "udp"))
    };
    filters.into_iter().chain(proxies()).chain([portal]).collect()
}

/// Returns those of which only a proxy leads out that is asked.
fn proxies() -> [Network; 7] {
    let password = ProxyManner::Password("ann", "secret");
    let intercepting = |name, short, manner, carrier| Network {
        carrier,
        ..proxied(name, short, manner, ("tls-intercepted", Expected::Everything))
    };
    [
        proxied("proxy", "proxy", ProxyManner::Open, ("only-proxy", Expected::Everything)),
        Network {
            credentials: Some("ann:secret"),
            ..proxied("proxy-password", "pass", password, ("only-proxy", Expected::Everything))
        },
        proxied(
            "proxy-no-password",
            "nopass",
            password,
            ("proxy-credentials", Expected::NoJoining("wants a user name and password (407)")),
        ),
        proxied(
            "proxy-other-port",
            "port",
            ProxyManner::OtherPort,
            (
                "proxy-refuses",
                Expected::NoJoining("does not allow connections to this address or port (403)"),
            ),
        ),
        intercepting("proxy-intercepting", "mitm", ProxyManner::Intercepting, "wss"),
        intercepting("proxy-bodies", "mitmbody", ProxyManner::InterceptingBodies, "https"),
        proxied("proxy-dies", "dies", ProxyManner::Open, ("only-proxy", Expected::Outage)),
    ]
}

/// Returns one without a proxy, where all works.
const fn open(
    name: &'static str,
    short: &'static str,
    leaves: Leaves,
    (cause, carrier): (&'static str, &'static str),
) -> Network {
    let (proxy, credentials, expected) = (None, None, Expected::Everything);
    Network { name, short, leaves, proxy, credentials, cause, expected, carrier }
}

/// Returns one of which only this proxy leads out.
const fn proxied(
    name: &'static str,
    short: &'static str,
    manner: ProxyManner,
    (cause, expected): (&'static str, Expected),
) -> Network {
    Network { proxy: Some(manner), expected, ..open(name, short, Leaves::Proxy, (cause, "tls")) }
}

impl Network {
    /// Returns how the user names the proxy.
    pub(super) fn url(&self, place: &str) -> String {
        match self.credentials {
            Some(credentials) => format!("http://{credentials}@{place}"),
            None => format!("http://{place}"),
        }
    }

    /// Returns the rules of the firewall, which counts what it keeps back; `proxy` is where the proxy is.
    pub(super) fn firewall(&self, proxy: Option<Ipv4Addr>) -> String {
        let web = "tcp dport { 80, 443 } accept";
        let rules = match (self.leaves, proxy) {
            (Leaves::NoTcpToOffice, _) => format!("tcp dport {FORWARDED_PORT} drop"),
            (Leaves::NoUdp, _) => "meta l4proto udp counter name dropped drop".to_owned(),
            (Leaves::WebOrRejected, _) => format!("{web}\n  counter name dropped reject"),
            (Leaves::WebOrDropped, _) => format!("{web}\n  counter name dropped drop"),
            (Leaves::Tls, _) => TLS.to_owned(),
            (Leaves::Http, _) => HTTP.to_owned(),
            (Leaves::Proxy | Leaves::HttpToProxy, Some(proxy)) => {
                format!("ip daddr {proxy} tcp dport {PROXY_PORT} accept\n  counter name dropped drop")
            }
            (Leaves::Proxy | Leaves::HttpToProxy, None) => "counter name dropped drop".to_owned(),
        };
        let led = match (self.leaves, proxy) {
            (Leaves::HttpToProxy, Some(proxy)) => {
                format!("iifname \"lan\" tcp dport 80 dnat to {proxy}:{PROXY_PORT}")
            }
            (_, _) => String::new(),
        };
        // Before the router's own rules, which let all of a connection pass once its first packet has.
        format!(
            "table ip leading {{\n chain pre {{\n  type nat hook prerouting priority dstnat - 5;\n  {led}\n }}\n}}\n\
             table inet blocking {{\n counter dropped {{ }}\n chain forward {{\n  \
             type filter hook forward priority filter - 5;\n  iifname != \"lan\" accept\n  {rules}\n }}\n}}\n"
        )
    }
}

/// What a firewall is told that drops UDP from now on, in both directions.
pub(super) const NO_UDP: &str =
    "insert rule inet blocking forward meta l4proto udp counter name dropped drop\n";

/// What a firewall is told that lets three datagrams a second pass from now on, those of both directions together.
pub(super) const LITTLE_UDP: &str = "insert rule inet blocking forward meta l4proto udp limit rate over 3/second burst 3 packets counter name dropped drop\n";

/// What a router is told once somebody has logged in.
pub(super) const OPEN: &str = "flush chain ip leading pre\nflush chain inet blocking forward\n";

/// The first bytes of each connection to port 443 must be those of a TLS record with a handshake; whatever has none yet may pass.
const TLS: &str = "tcp dport 443 ct mark 1 accept
  tcp dport 443 @ih,0,16 0x1603 ct mark set 1 accept
  tcp dport 443 @ih,0,8 0-255 counter name dropped drop
  tcp dport 443 accept
  counter name dropped drop";

/// The first bytes of each connection to port 80 must be `GET ` or `POST`; whatever has none yet may pass.
const HTTP: &str = "tcp dport 80 ct mark 1 accept
  tcp dport 80 @ih,0,32 0x47455420 ct mark set 1 accept
  tcp dport 80 @ih,0,32 0x504f5354 ct mark set 1 accept
  tcp dport 80 @ih,0,8 0-255 counter name dropped drop
  tcp dport 80 accept
  counter name dropped drop";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_networks_and_short_ones_fit_interfaces() {
        let all = all(Ipv4Addr::LOCALHOST);
        assert_eq!(all.iter().map(|network| network.name).collect::<Vec<_>>(), NAMES);
        assert!(all.iter().all(|network| network.short.len() <= 8));
    }
}
