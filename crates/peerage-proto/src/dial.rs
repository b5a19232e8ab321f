//! Which addresses a node may dial at all.
//!
//! Candidates come from other nodes and device addresses from the LAN, so both may be lies that aim a node at its own
//! services, its router, or a cloud's metadata server. The check is asked before every dial and every path check, with
//! the address in the very form that is handed to the socket. It allows what is known to be good, rather than forbid
//! what is known to be bad: new special ranges are closed until somebody opens them here.
//!
//! Nothing stands between the check and a hostile router: it can lead any address anywhere. What protects then is
//! that both ends prove their keys.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::lan::{Interface, InterfaceKind, Mac};

/// Why an address must not be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Forbidden {
    /// `0.0.0.0/8` or `::`, which many systems take for themselves.
    #[error("the unspecified address, or one of \"this network\"")]
    Unspecified,
    /// `127.0.0.0/8` or `::1`.
    #[error("a loopback address")]
    Loopback,
    /// Valid on one link only, where clouds keep metadata servers: `169.254.0.0/16`, `fe80::/10`, `fec0::/10`.
    #[error("a link-local address")]
    LinkLocal,
    /// `224.0.0.0/4` or `ff00::/8`.
    #[error("a multicast address")]
    Multicast,
    /// `255.255.255.255`, or the last or first address of an own IPv4 network.
    #[error("a broadcast address")]
    Broadcast,
    /// The first address of an own IPv6 network: its routers answer to it.
    #[error("the anycast address of the routers")]
    RouterAnycast,
    /// One of this computer's own addresses.
    #[error("an address of this computer")]
    Own,
    /// A default gateway.
    #[error("the router")]
    Gateway,
    /// A cloud's metadata server outside the link-local ranges.
    #[error("a cloud metadata address")]
    Metadata,
    /// For documentation or benchmarks; nothing real is there.
    #[error("an address for documentation or benchmarks")]
    Documentation,
    /// Set aside by IANA and not for ordinary hosts.
    #[error("a reserved address")]
    Reserved,
    /// An IPv6 address that carries an IPv4 address which it could hide from a check.
    #[error("an IPv6 address that disguises an IPv4 address")]
    Disguised,
    /// For a device: not on the link of the interface where it should be.
    #[error("not on the link of the device's location")]
    OffLink,
}

/// Returns why no node may dial `address`, or nothing if it may.
///
/// `interfaces` are all of this computer's, those that are down included.
/// Loopback is reported as [`Forbidden::Loopback`] even though it is also an own address.
pub fn forbidden(address: IpAddr, interfaces: &[Interface]) -> Option<Forbidden> {
    let by_range = match address {
        IpAddr::V4(v4) => forbidden_v4(v4),
        IpAddr::V6(v6) => forbidden_v6(v6, interfaces),
    };
    by_range.or_else(|| forbidden_here(address, interfaces))
}

/// Returns why a device at `address` must not be dialled through the interface `via` of its location.
///
/// Besides what [`forbidden`] says, the device must be on that interface's link; on the loopback interface nothing is.
pub fn forbidden_device(address: IpAddr, via: &Interface, interfaces: &[Interface]) -> Option<Forbidden> {
    if let Some(reason) = forbidden(address, interfaces) {
        return Some(reason);
    }
    let on_link = via.kind != InterfaceKind::Loopback && via.is_on_link(address);
    (!on_link).then_some(Forbidden::OffLink)
}

/// Returns why a device with this hardware address must not be looked for or dialled, or nothing if it may.
///
/// A router can have any number of addresses on a link besides that of the default route, but mostly one MAC;
/// this keeps a device registered with the router's MAC from opening its administration pages.
pub fn forbidden_mac(mac: Mac, interfaces: &[Interface]) -> Option<Forbidden> {
    let [first, ..] = mac.0;
    if mac.0 == [0; 6] {
        return Some(Forbidden::Unspecified);
    }
    if mac.0 == [0xff; 6] {
        return Some(Forbidden::Broadcast);
    }
    // The lowest bit of the first byte marks group addresses (IEEE 802).
    if first & 1 == 1 {
        return Some(Forbidden::Multicast);
    }
    if interfaces.iter().any(|interface| interface.mac == Some(mac)) {
        return Some(Forbidden::Own);
    }
    let mut gateways = interfaces.iter().flat_map(|interface| &interface.gateways);
    gateways.any(|gateway| gateway.mac == Some(mac)).then_some(Forbidden::Gateway)
}

/// Judges by what is on this computer's own links.
fn forbidden_here(address: IpAddr, interfaces: &[Interface]) -> Option<Forbidden> {
    // Each question is asked of all interfaces before the next, so that the answer does not depend on their order.
    if interfaces.iter().any(|interface| interface.has_address(address)) {
        return Some(Forbidden::Own);
    }
    if interfaces.iter().flat_map(|i| &i.gateways).any(|gateway| gateway.address == address) {
        return Some(Forbidden::Gateway);
    }
    let mut prefixes = interfaces.iter().flat_map(|i| &i.addresses).map(|own| own.prefix);
    prefixes.find_map(|prefix| {
        if prefix.is_network_address(address) {
            return Some(if address.is_ipv4() { Forbidden::Broadcast } else { Forbidden::RouterAnycast });
        }
        let broadcast = prefix.broadcast().map(IpAddr::V4);
        (broadcast == Some(address)).then_some(Forbidden::Broadcast)
    })
}

/// Judges an IPv4 address by the ranges of the IANA special-purpose registry (RFC 6890 and its updates).
///
/// Private ranges and `100.64.0.0/10` are left open: devices and neighbours live there.
fn forbidden_v4(address: Ipv4Addr) -> Option<Forbidden> {
    match address.octets() {
        // Alibaba Cloud, Azure, Oracle Cloud: metadata servers that are not link-local.
        [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192] => Some(Forbidden::Metadata),
        [0, ..] => Some(Forbidden::Unspecified),
        [127, ..] => Some(Forbidden::Loopback),
        [169, 254, ..] => Some(Forbidden::LinkLocal),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] | [198, 18..=19, ..] => {
            Some(Forbidden::Documentation)
        }
        // Protocol assignments; the withdrawn anycast address of 6to4 relays (RFC 7526).
        [192, 0, 0, _] | [192, 88, 99, _] => Some(Forbidden::Reserved),
        [224..=239, ..] => Some(Forbidden::Multicast),
        [255, 255, 255, 255] => Some(Forbidden::Broadcast),
        [240..=255, ..] => Some(Forbidden::Reserved),
        _ => None,
    }
}

/// Judges an IPv6 address by the IANA special-purpose registry (RFC 6890 and its updates).
fn forbidden_v6(address: Ipv6Addr, interfaces: &[Interface]) -> Option<Forbidden> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(Forbidden::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Forbidden::Loopback),
        // IPv4-compatible, IPv4-mapped, IPv4-translated (RFC 4291, RFC 2765).
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] => Some(Forbidden::Disguised),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => forbidden_nat64(join(high, low), interfaces),
        // NAT64 with a prefix of the network's own (RFC 8215): where the IPv4 address stands is not known. Teredo, 6to4.
        [0x64, 0xff9b, 1, ..] | [0x2001, 0, ..] | [0x2002, ..] => Some(Forbidden::Disguised),
        // ISATAP, under any prefix (RFC 5214).
        [_, _, _, _, 0 | 0x200, 0x5efe, _, _] => Some(Forbidden::Disguised),
        [0xfe80..=0xfebf, ..] | [0xfec0..=0xfeff, ..] => Some(Forbidden::LinkLocal),
        [0xff00..=0xffff, ..] => Some(Forbidden::Multicast),
        // AWS, Google Cloud.
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254] => {
            Some(Forbidden::Metadata)
        }
        // RFC 3849, RFC 9637, RFC 5180.
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0x0fff, ..] | [0x2001, 2, 0, ..] => Some(Forbidden::Documentation),
        // Protocol assignments (RFC 2928).
        [0x2001, 0..=0x01ff, ..] => Some(Forbidden::Reserved),
        // What is left of the global unicast range, and unique local addresses.
        [0x2000..=0x3fff, ..] | [0xfc00..=0xfdff, ..] => None,
        _ => Some(Forbidden::Reserved),
    }
}

/// Judges the IPv4 address behind the well-known NAT64 prefix.
///
/// On networks without IPv4 it is the only way to the operator (DNS64 makes such addresses), so what lies behind it counts.
/// Private addresses have no business there (RFC 6052, section 3.1), and would lead into the LAN of whoever runs the translator.
fn forbidden_nat64(inner: Ipv4Addr, interfaces: &[Interface]) -> Option<Forbidden> {
    let [first, second, ..] = inner.octets();
    let shared = first == 100 && (64..128).contains(&second);
    let refused = inner.is_private() || shared || forbidden(IpAddr::V4(inner), interfaces).is_some();
    refused.then_some(Forbidden::Disguised)
}

/// Returns the IPv4 address of two 16-bit groups.
const fn join(high: u16, low: u16) -> Ipv4Addr {
    let [a, b] = high.to_be_bytes();
    let [c, d] = low.to_be_bytes();
    Ipv4Addr::new(a, b, c, d)
}

#[cfg(test)]
mod tests;
