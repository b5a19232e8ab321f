//! Reads the values that people give on the command line and in the configuration file.

use peerage_client::{Protocol, Service};
use peerage_wire::id::Mac;
use std::{
    net::IpAddr,
    num::{IntErrorKind, ParseIntError},
    time::Duration,
};

/// The longest name of a domain or device, in bytes: that of a DNS label, because names become part of host names.
const MAX_NAME_BYTES: usize = 63;

/// The longest name of a service, in bytes; twice that of the registered ones (RFC 6335: 15).
const MAX_SERVICE_NAME_BYTES: usize = 32;

/// The longest duration that is taken for meant, in seconds: ten years.
const MAX_DURATION_S: u64 = 10 * 365 * 24 * 60 * 60;

/// Why a value cannot be read. Each message ends the sentence that clap begins with the value's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseError {
    #[error("a MAC address has six pairs of hexadecimal digits, as in aa:bb:cc:dd:ee:ff")]
    Mac,
    #[error("this is a group address; a device has one of its own")]
    GroupMac,
    #[error("write NAME=PORT, NAME=PORT/udp or NAME=PORT/tls, as in ipp=631 or https=443/tls")]
    ServiceForm,
    #[error("a service's name has 1 to {MAX_SERVICE_NAME_BYTES} characters of a-z, 0-9 and -")]
    ServiceName,
    #[error("a port is a number from 1 to 65535")]
    Port,
    #[error("after the port, only tcp, udp and tls are known")]
    ServiceFlag,
    #[error("udp excludes tcp and tls")]
    UdpWith,
    #[error(
        "a name has 1 to {MAX_NAME_BYTES} characters of a-z, 0-9 and -, and neither begins nor ends with -"
    )]
    Name,
    #[error("write a number and s, m, h, d or w, as in 90s, 12h or 7d")]
    Duration,
    #[error("a duration is at least 1s and at most ten years")]
    DurationRange,
    #[error("write a number of bytes with its unit, as in 500kB, 64MiB or 20GB")]
    Size,
    #[error("write bytes a second with their unit, as in 10MB/s")]
    Rate,
    #[error("write DEVICE or DEVICE:SERVICE, as in hp-3rd-floor:ipp")]
    Target,
    #[error("write MAC=IP, as in 02:00:5e:00:53:01=127.0.0.1")]
    Neighbour,
    #[error("a SHA-256 fingerprint has 64 hexadecimal digits")]
    Pin,
}

/// Reads a MAC address with colons or hyphens and returns it in lower case with colons.
pub(crate) fn mac(text: &str) -> Result<String, ParseError> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut bytes = [0_u8; 6];
    let mut parts = text.split(separator);
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2).ok_or(ParseError::Mac)?;
        if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(ParseError::Mac);
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_not_hex| ParseError::Mac)?;
    }
    if parts.next().is_some() {
        return Err(ParseError::Mac);
    }
    let [first, ..] = bytes;
    if first & 1 == 1 || bytes == [0; 6] {
        return Err(ParseError::GroupMac);
    }
    Ok(bytes.map(|byte| format!("{byte:02x}")).join(":"))
}

/// Reads `MAC=IP`, where a device is.
pub(crate) fn neighbour(text: &str) -> Result<(Mac, IpAddr), ParseError> {
    let (device, address) = text.split_once('=').ok_or(ParseError::Neighbour)?;
    let device = mac(device)?.parse().map_err(|_not_mac| ParseError::Mac)?;
    Ok((device, address.parse().map_err(|_not_ip| ParseError::Neighbour)?))
}

/// Reads `NAME=PORT`, followed by any of `/tcp`, `/udp` and `/tls`.
pub(crate) fn service(text: &str) -> Result<Service, ParseError> {
    let (name, rest) = text.split_once('=').ok_or(ParseError::ServiceForm)?;
    if !is_plain(name, MAX_SERVICE_NAME_BYTES) {
        return Err(ParseError::ServiceName);
    }
    let mut parts = rest.split('/');
    let port = parts.next().unwrap_or_default();
    let port = port.parse().ok().filter(|port| *port != 0).ok_or(ParseError::Port)?;
    let (mut tcp, mut udp, mut tls) = (false, false, false);
    for flag in parts {
        match flag {
            "tcp" => tcp = true,
            "udp" => udp = true,
            "tls" => tls = true,
            _ => return Err(ParseError::ServiceFlag),
        }
    }
    if udp && (tcp || tls) {
        return Err(ParseError::UdpWith);
    }
    Ok(Service {
        name: name.to_owned(),
        port,
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
        tls,
    })
}

/// Reads the name of a domain or of a device.
pub(crate) fn name(text: &str) -> Result<String, ParseError> {
    if !is_plain(text, MAX_NAME_BYTES) || text.starts_with('-') || text.ends_with('-') {
        return Err(ParseError::Name);
    }
    Ok(text.to_owned())
}

/// Reads a duration such as `90s`, `12h`, `7d` or `1d12h`.
pub(crate) fn duration(text: &str) -> Result<Duration, ParseError> {
    let mut rest = text;
    let mut seconds = 0_u64;
    if rest.is_empty() {
        return Err(ParseError::Duration);
    }
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit()).ok_or(ParseError::Duration)?;
        let (number, tail) = rest.split_at(unit_at);
        let mut tail = tail.chars();
        let unit = match tail.next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 60 * 60,
            Some('d') => 24 * 60 * 60,
            Some('w') => 7 * 24 * 60 * 60,
            _ => return Err(ParseError::Duration),
        };
        let number: u64 = number.parse().map_err(|error: ParseIntError| {
            let too_large = *error.kind() == IntErrorKind::PosOverflow;
            if too_large { ParseError::DurationRange } else { ParseError::Duration }
        })?;
        let part = number.checked_mul(unit).ok_or(ParseError::DurationRange)?;
        seconds = seconds.checked_add(part).ok_or(ParseError::DurationRange)?;
        rest = tail.as_str();
    }
    if !(1..=MAX_DURATION_S).contains(&seconds) {
        return Err(ParseError::DurationRange);
    }
    Ok(Duration::from_secs(seconds))
}

/// Reads a number of bytes such as `500kB`, `64MiB` or `20GB`; units of 1000 or 1024.
pub(crate) fn size(text: &str) -> Result<u64, ParseError> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or(ParseError::Size)?;
    let (number, unit) = text.split_at(unit_at);
    let unit: u64 = match unit {
        "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(ParseError::Size),
    };
    let number: u64 = number.parse().map_err(|_not_one| ParseError::Size)?;
    number.checked_mul(unit).ok_or(ParseError::Size)
}

/// Reads bytes a second such as `10MB/s`.
pub(crate) fn rate(text: &str) -> Result<u64, ParseError> {
    let bytes = text.strip_suffix("/s").ok_or(ParseError::Rate)?;
    size(bytes).map_err(|_not_one| ParseError::Rate)
}

/// What `connect` leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The name or id of a device.
    pub(crate) device: String,
    /// The name of one of its services.
    pub(crate) service: Option<String>,
}

/// Reads `DEVICE` or `DEVICE:SERVICE`.
pub(crate) fn target(text: &str) -> Result<Target, ParseError> {
    let (device, service) = match text.split_once(':') {
        Some((device, service)) => (device, Some(service)),
        None => (text, None),
    };
    if !is_plain(device, usize::MAX) || !service.is_none_or(|name| is_plain(name, MAX_SERVICE_NAME_BYTES)) {
        return Err(ParseError::Target);
    }
    Ok(Target { device: device.to_owned(), service: service.map(str::to_owned) })
}

/// Reads a SHA-256 fingerprint, with or without the colons that `openssl x509 -fingerprint` prints.
pub(crate) fn pin(text: &str) -> Result<String, ParseError> {
    let digits: String = text.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(ParseError::Pin);
    }
    Ok(digits)
}

fn is_plain(text: &str, max_bytes: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=max_bytes).contains(&text.len()) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_is_read_in_either_form_and_written_in_one() {
        assert_eq!(mac("AA:bb:CC:dd:0e:0F").unwrap(), "aa:bb:cc:dd:0e:0f");
        assert_eq!(mac("aa-BB-cc-DD-0e-0f").unwrap(), "aa:bb:cc:dd:0e:0f");
    }

    #[test]
    fn what_is_not_the_mac_address_of_one_device_is_refused() {
        for text in [
            "",
            "aa:bb:cc:dd:ee",
            "aa:bb:cc:dd:ee:ff:00",
            "aa:bb:cc:dd:ee:f",
            "aabbccddeeff",
            "aa:bb-cc:dd:ee:ff",
        ] {
            assert_eq!(mac(text), Err(ParseError::Mac), "{text}");
        }
        assert_eq!(mac("aa:bb:cc:dd:ee:+f"), Err(ParseError::Mac));
        for text in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:fb", "00:00:00:00:00:00"] {
            assert_eq!(mac(text), Err(ParseError::GroupMac), "{text}");
        }
    }

    #[test]
    fn a_service_has_a_name_a_port_and_how_it_is_spoken_to() {
        let service_of =
            |name: &str, port, protocol, tls| Service { name: name.to_owned(), port, protocol, tls };
        assert_eq!(service("ipp=631").unwrap(), service_of("ipp", 631, Protocol::Tcp, false));
        assert_eq!(service("snmp=161/udp").unwrap(), service_of("snmp", 161, Protocol::Udp, false));
        assert_eq!(service("https=443/tls").unwrap(), service_of("https", 443, Protocol::Tcp, true));
        assert_eq!(service("https=443/tcp/tls").unwrap(), service_of("https", 443, Protocol::Tcp, true));
    }

    #[test]
    fn a_service_that_cannot_be_read_says_which_part_is_wrong() {
        for (text, error) in [
            ("ipp", ParseError::ServiceForm),
            ("=631", ParseError::ServiceName),
            ("IPP=631", ParseError::ServiceName),
            ("ipp=", ParseError::Port),
            ("ipp=0", ParseError::Port),
            ("ipp=65536", ParseError::Port),
            ("ipp=631/", ParseError::ServiceFlag),
            ("ipp=631/sctp", ParseError::ServiceFlag),
            ("ipp=631/udp/tls", ParseError::UdpWith),
        ] {
            assert_eq!(service(text), Err(error), "{text}");
        }
    }

    #[test]
    fn durations_have_units_and_can_be_added_up() {
        for (text, seconds) in [
            ("90s", 90),
            ("15m", 900),
            ("12h", 43_200),
            ("7d", 604_800),
            ("2w", 1_209_600),
            ("1d12h", 129_600),
        ] {
            assert_eq!(duration(text).unwrap().as_secs(), seconds, "{text}");
        }
        for text in ["", "7", "d", "7 d", "-1d", "1.5h", "7y"] {
            assert_eq!(duration(text), Err(ParseError::Duration), "{text}");
        }
        for text in ["0s", "11000d", "99999999999999999999w", "9999999999999999999w"] {
            assert_eq!(duration(text), Err(ParseError::DurationRange), "{text}");
        }
    }

    #[test]
    fn sizes_and_rates_have_units() {
        for (text, bytes) in [("0B", 0), ("500kB", 500_000), ("64MiB", 64 << 20), ("20GB", 20_000_000_000)] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
            assert_eq!(rate(&format!("{text}/s")).unwrap(), bytes, "{text}");
        }
        for text in ["", "64", "MiB", "64 MiB", "-1MB", "1.5GB", "64Mib", "20000000TB", "10MB/s"] {
            assert_eq!(size(text), Err(ParseError::Size), "{text}");
        }
        for text in ["", "10MB", "/s", "10/s", "10MB/h", "10Mbit/s"] {
            assert_eq!(rate(text), Err(ParseError::Rate), "{text}");
        }
    }

    #[test]
    fn a_target_is_a_device_and_perhaps_a_service() {
        let with = target("hp-3:ipp").unwrap();
        assert_eq!((with.device.as_str(), with.service.as_deref()), ("hp-3", Some("ipp")));
        assert_eq!(target("hp-3").unwrap().service, None);
        for text in ["", ":ipp", "hp:", "hp:ipp:x", "HP", "hp ipp", "192.168.1.2:631"] {
            assert_eq!(target(text), Err(ParseError::Target), "{text}");
        }
    }

    #[test]
    fn names_are_those_of_host_names() {
        assert_eq!(name("hp-3rd-floor").unwrap(), "hp-3rd-floor");
        assert!(name(&"x".repeat(63)).is_ok());
        for text in ["", "-hp", "hp-", "Hp", "h p", "hp.acme", "ü", &"x".repeat(64)] {
            assert_eq!(name(text), Err(ParseError::Name), "{text}");
        }
    }

    #[test]
    fn a_fingerprint_is_read_as_openssl_prints_it() {
        let plain = "0123456789abcdef".repeat(4);
        let with_colons = plain
            .to_uppercase()
            .as_bytes()
            .chunks(2)
            .map(|pair| String::from_utf8_lossy(pair).into_owned())
            .collect::<Vec<_>>()
            .join(":");
        assert_eq!(pin(&with_colons).unwrap(), plain);
        assert_eq!(pin(&plain[1..]), Err(ParseError::Pin));
        assert_eq!(pin(&plain.replace('0', "g")), Err(ParseError::Pin));
    }
}
