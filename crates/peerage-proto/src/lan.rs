//! Facts about this computer's networks, as plain data.
//!
//! The shell reads them from the operating system and hands them to the state machines; nothing here does I/O.
//! They are hints, never authority: a hostile LAN can show any gateway, prefix and MAC it likes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

pub use peerage_wire::id::Mac;

/// Why numbers or a text are not a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// More bits than the address family has.
    #[error("a prefix length of {length} bits is more than the {max} bits of the address")]
    Length {
        /// The length asked for.
        length: u8,
        /// 32 for IPv4, 128 for IPv6.
        max: u8,
    },
    /// Not of the form `address/length`.
    #[error("not of the form ADDRESS/LENGTH, such as 192.168.1.0/24")]
    Form,
}

/// A range of addresses that share their first bits, such as `192.168.1.0/24`.
///
/// The bits below the prefix length are zero, so two prefixes are equal exactly if they hold the same addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    network: IpAddr,
    length: u8,
}

impl Prefix {
    /// Returns the prefix of `length` bits that holds `address`, which may be any address in it.
    ///
    /// # Errors
    /// If `length` is more than 32 for IPv4 or 128 for IPv6.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, PrefixError> {
        let max = bits(address);
        if length > max {
            return Err(PrefixError::Length { length, max });
        }
        Ok(Self { network: clear_host_bits(address, length), length })
    }

    /// Returns the prefix that holds this address alone.
    pub fn host(address: IpAddr) -> Self {
        Self { network: address, length: bits(address) }
    }

    /// Returns the first address: all bits below the length are zero.
    pub const fn network(&self) -> IpAddr {
        self.network
    }

    /// Returns the number of leading bits that its addresses share: 0–32 for IPv4, 0–128 for IPv6.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// Returns whether the address is of the same family and in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.network.is_ipv4() && clear_host_bits(address, self.length) == self.network
    }

    /// Returns how many addresses it holds, network and broadcast addresses included; 2^128 is given as 2^128 − 1.
    pub fn size(&self) -> u128 {
        let host_bits = u32::from(bits(self.network) - self.length);
        1_u128.checked_shl(host_bits).unwrap_or(u128::MAX)
    }

    /// Returns the directed broadcast address; none for IPv6 and for IPv4 lengths of 31 (RFC 3021) and 32.
    pub fn broadcast(&self) -> Option<Ipv4Addr> {
        match self.network {
            IpAddr::V4(network) if self.length < 31 => {
                let host_mask = u32::MAX.checked_shr(u32::from(self.length)).unwrap_or(0);
                Some(Ipv4Addr::from_bits(network.to_bits() | host_mask))
            }
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        }
    }

    /// Returns whether the address names the network itself rather than a host.
    ///
    /// In IPv4 that is the old form of broadcast (RFC 1122, section 3.3.6), in IPv6 the anycast address of the routers
    /// (RFC 4291, section 2.6.1). Links with one or two addresses have none (RFC 3021, RFC 6164).
    pub fn is_network_address(&self, address: IpAddr) -> bool {
        address == self.network && self.length + 2 <= bits(self.network)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prefix({self})")
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, length) = text.split_once('/').ok_or(PrefixError::Form)?;
        // `parse` alone would accept "+24".
        if !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err(PrefixError::Form);
        }
        let address = address.parse().map_err(|_| PrefixError::Form)?;
        Self::new(address, length.parse().map_err(|_| PrefixError::Form)?)
    }
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Keeps the first `length` bits of the address; a length beyond its width keeps all.
fn clear_host_bits(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let hosts = u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & !hosts))
        }
        IpAddr::V6(v6) => {
            let hosts = u128::MAX.checked_shr(u32::from(length)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !hosts))
        }
    }
}

/// What kind of network an interface leads to, as far as the system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InterfaceKind {
    /// A network card with a cable; also a virtual machine's card, which cannot be told apart.
    Ethernet,
    /// A wireless network card.
    Wifi,
    /// A tunnel to elsewhere: tun, tap, WireGuard, PPP, IPsec.
    Vpn,
    /// Made by software for containers or virtual machines: veth, bridges that are not a LAN, dummies.
    Virtual,
    /// The computer itself.
    Loopback,
    /// None of these.
    Other,
}

/// An address of this computer and the on-link range that came with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceAddress {
    /// The computer's own address.
    pub address: IpAddr,
    /// What is reachable on the link without a router. On a point-to-point link it is the far end's and need not hold
    /// `address`.
    pub prefix: Prefix,
}

/// A router that an interface has a default route to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gateway {
    /// The route's metric; the system prefers the lowest.
    pub metric: u32,
    /// Its address on the link; in IPv6 mostly a link-local one.
    pub address: IpAddr,
    /// Its hardware address, if it has one and answered.
    pub mac: Option<Mac>,
}

/// One network interface of this computer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The system's number for it; others may get it again after it is gone.
    pub index: u32,
    /// The system's name for it, such as `eth0`.
    pub name: String,
    /// What it leads to.
    pub kind: InterfaceKind,
    /// Whether it is switched on and has a carrier.
    pub up: bool,
    /// Its own hardware address; none for tunnels.
    pub mac: Option<Mac>,
    /// Its addresses, sorted.
    pub addresses: Vec<InterfaceAddress>,
    /// Its default gateways, best first.
    pub gateways: Vec<Gateway>,
}

impl Interface {
    /// Returns whether the address is in one of the interface's on-link ranges.
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.prefix.contains(address))
    }

    /// Returns the gateway whose hardware address names the location: the best IPv4 one, or else the best of all.
    pub fn location_gateway(&self) -> Option<&Gateway> {
        let ipv4 = self.gateways.iter().find(|gateway| gateway.address.is_ipv4());
        ipv4.or_else(|| self.gateways.first())
    }

    /// Returns what names the interface's location (Rule 1.6): its gateway's hardware address, and its IPv4 prefix,
    /// or without IPv4 its first unique-local prefix, or else `::/0`.
    ///
    /// None for an interface that is down, or has no gateway whose hardware address is known.
    pub fn location(&self) -> Option<(Mac, Prefix)> {
        let gateway = self.location_gateway().filter(|_| self.up)?;
        let prefixes = || self.addresses.iter().map(|own| own.prefix);
        // Addresses that an interface gives itself when nobody else does are the same everywhere (RFC 3927).
        let is_usable = |prefix: &Prefix| matches!(prefix.network, IpAddr::V4(v4) if !v4.is_link_local());
        let with_gateway = prefixes().find(|prefix| is_usable(prefix) && prefix.contains(gateway.address));
        let ipv4 = with_gateway.or_else(|| prefixes().find(is_usable));
        let is_unique_local =
            |prefix: &Prefix| matches!(prefix.network, IpAddr::V6(v6) if v6.is_unique_local());
        let everything = Prefix { network: IpAddr::V6(Ipv6Addr::UNSPECIFIED), length: 0 };
        Some((gateway.mac?, ipv4.or_else(|| prefixes().find(is_unique_local)).unwrap_or(everything)))
    }

    /// Returns whether the address is one of the interface's own.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.address == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_forgets_the_host_bits() {
        assert_eq!(prefix("192.168.1.77/24").to_string(), "192.168.1.0/24");
        assert_eq!(prefix("10.255.255.255/7").to_string(), "10.0.0.0/7");
        assert_eq!(prefix("1.2.3.4/0").to_string(), "0.0.0.0/0");
        assert_eq!(prefix("1.2.3.4/32").to_string(), "1.2.3.4/32");
        assert_eq!(prefix("fd00:1:2:3:4::5/64").to_string(), "fd00:1:2:3::/64");
        assert_eq!(prefix("ffff::1/0").to_string(), "::/0");
        assert_eq!(prefix("::1/128"), Prefix::host("::1".parse().unwrap()));
    }

    #[test]
    fn a_prefix_is_written_only_as_address_and_length() {
        for bad in [
            "",
            "1.2.3.4",
            "1.2.3.4/",
            "1.2.3/8",
            "1.2.3.4/+8",
            "1.2.3.4/-1",
            "1.2.3.4/8/8",
            "1.2.3.4/999",
            "/8",
        ] {
            assert_eq!(bad.parse::<Prefix>(), Err(PrefixError::Form), "{bad}");
        }
        assert_eq!("1.2.3.4/33".parse::<Prefix>(), Err(PrefixError::Length { length: 33, max: 32 }));
        assert_eq!("::/129".parse::<Prefix>(), Err(PrefixError::Length { length: 129, max: 128 }));
    }

    #[test]
    fn a_prefix_holds_addresses_of_its_family_only() {
        let lan = prefix("192.168.1.0/24");
        assert!(lan.contains("192.168.1.0".parse().unwrap()));
        assert!(lan.contains("192.168.1.255".parse().unwrap()));
        assert!(!lan.contains("192.168.2.0".parse().unwrap()));
        assert!(!lan.contains("::ffff:192.168.1.1".parse().unwrap()));
        assert!(!prefix("::/0").contains("1.2.3.4".parse().unwrap()));
        assert!(prefix("::/0").contains("1::".parse().unwrap()));
    }

    #[test]
    fn sizes_and_broadcast_addresses_follow_the_length() {
        for (text, size, broadcast) in [
            ("10.0.0.0/24", 256, Some("10.0.0.255")),
            ("10.0.0.0/22", 1024, Some("10.0.3.255")),
            ("10.0.0.0/30", 4, Some("10.0.0.3")),
            ("10.0.0.0/31", 2, None),
            ("10.0.0.1/32", 1, None),
            ("0.0.0.0/0", 1 << 32, Some("255.255.255.255")),
            ("fd00::/64", 1 << 64, None),
            ("::/0", u128::MAX, None),
        ] {
            assert_eq!(prefix(text).size(), size, "{text}");
            assert_eq!(prefix(text).broadcast().map(|b| b.to_string()).as_deref(), broadcast, "{text}");
        }
    }

    #[test]
    fn the_network_address_is_not_a_host_except_on_links_of_two() {
        let is_network = |text: &str| prefix(text).is_network_address(prefix(text).network());
        assert!(is_network("10.0.0.0/24"));
        assert!(is_network("10.0.0.0/30"));
        assert!(is_network("fd00::/64"));
        assert!(!is_network("10.0.0.0/31"));
        assert!(!is_network("10.0.0.1/32"));
        assert!(!is_network("fd00::/127"));
        assert!(!is_network("fd00::1/128"));
    }

    /// Rule 1.6: gateway and IPv4 prefix; without IPv4 the unique-local prefix; without that nothing but the gateway.
    #[test]
    fn a_location_is_named_by_gateway_and_prefix() {
        let (router, other) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let gateway = |address: &str, mac| Gateway { metric: 0, address: address.parse().unwrap(), mac };
        let (v4, v6) = (gateway("192.168.1.1", Some(router)), gateway("fe80::1", Some(other)));
        let silent = gateway("192.168.1.1", None);
        let all =
            ["10.0.0.5/8", "169.254.7.7/16", "192.168.1.9/24", "2a00::9/64", "fd00:1::9/64", "fe80::9/64"];
        let location = |own: &[&str], gateways: &[Gateway]| {
            let addresses = own.iter().map(|text| {
                let address = text.split('/').next().unwrap().parse().unwrap();
                InterfaceAddress { address, prefix: prefix(text) }
            });
            let interface =
                Interface { addresses: addresses.collect(), gateways: gateways.to_vec(), ..interface() };
            interface.location().map(|(mac, prefix)| (mac, prefix.to_string()))
        };
        assert_eq!(location(&all, &[v6, v4]), Some((router, "192.168.1.0/24".into())));
        assert_eq!(location(&all[..2], &[v4]), Some((router, "10.0.0.0/8".into())));
        assert_eq!(location(&all, &[v6]), Some((other, "10.0.0.0/8".into())));
        assert_eq!(location(&all[1..2], &[v4]), Some((router, "::/0".into())));
        assert_eq!(location(&all[3..], &[v6]), Some((other, "fd00:1::/64".into())));
        assert_eq!(location(&all[5..], &[v6]), Some((other, "::/0".into())));
        assert_eq!(location(&all, &[silent, v6]), None);
        assert_eq!(location(&all, &[]), None);
        let down = Interface { up: false, gateways: vec![v4], ..interface() };
        assert_eq!(down.location(), None);
    }

    #[test]
    fn a_point_to_point_link_reaches_the_far_end_and_not_the_own_range() {
        let own = InterfaceAddress { address: "10.9.0.1".parse().unwrap(), prefix: prefix("10.9.0.2/32") };
        let interface = Interface { addresses: vec![own], ..interface() };
        assert!(interface.is_on_link("10.9.0.2".parse().unwrap()));
        assert!(!interface.is_on_link("10.9.0.1".parse().unwrap()));
        assert!(interface.has_address("10.9.0.1".parse().unwrap()));
    }

    fn interface() -> Interface {
        Interface {
            index: 7,
            name: "eth0".into(),
            kind: InterfaceKind::Ethernet,
            up: true,
            mac: None,
            addresses: vec![],
            gateways: vec![],
        }
    }
}
