//! Where this computer stands: the locations of its interfaces (Rule 6.11), and the addresses it may offer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use peerage_wire::codec::{Candidate, CandidateKind, Transport};
use peerage_wire::id::{LocationId, LookupTag};
use peerage_wire::keys::DomainKeys;
use peerage_wire::limits::{MAX_CANDIDATES, MAX_SITE_LOCATIONS, MAX_TAGS};
use peerage_wire::time::UnixTime;

use crate::lan::{Interface, InterfaceKind};

/// How long before and after midnight UTC both days' tags are announced and asked.
const DAY_MARGIN_SECS: u64 = 30 * 60;

/// How long after a change of epoch both epochs' tags are announced and asked, and both keys read.
pub(super) const EPOCH_MARGIN_SECS: u64 = 60 * 60;

/// The locations of a computer: the interface of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    locations: BTreeMap<LocationId, u32>,
}

impl Places {
    /// Finds the locations of the interfaces that lead somewhere.
    pub(super) fn find(interfaces: &[Interface], keys: &DomainKeys, named: Option<&str>) -> Self {
        let mut locations = BTreeMap::new();
        let usable = interfaces.iter().filter(|i| i.up && i.kind != InterfaceKind::Loopback);
        for interface in usable {
            locations.extend(location_of(interface, keys).map(|location| (location, interface.index)));
        }
        if let Some(name) = named {
            let any = interfaces.iter().find(|i| i.up).map_or(0, |i| i.index);
            locations.insert(keys.named_location(name), any);
        }
        locations = locations.into_iter().take(MAX_SITE_LOCATIONS).collect();
        Self { locations }
    }

    /// Returns the interface at a location.
    pub(super) fn interface_at(&self, location: &LocationId) -> Option<u32> {
        self.locations.get(location).copied()
    }

    /// Returns the location of an interface.
    pub(super) fn location_of(&self, interface: u32) -> Option<LocationId> {
        self.locations.iter().find(|(_, index)| **index == interface).map(|(location, _)| *location)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = LocationId> + '_ {
        self.locations.keys().copied()
    }

    /// Returns the interfaces at which one of the locations is.
    pub(super) fn interfaces_at(&self, site: &[LocationId]) -> Vec<u32> {
        let mut found: Vec<_> = site.iter().filter_map(|location| self.interface_at(location)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    pub(super) fn interfaces(&self) -> Vec<u32> {
        let mut all: Vec<_> = self.locations.values().copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Returns the location of one interface: its gateway's hardware address and its prefix, keyed (Rule 1.6).
fn location_of(interface: &Interface, keys: &DomainKeys) -> Option<LocationId> {
    let (gateway, prefix) = interface.location()?;
    let location = match prefix.network() {
        IpAddr::V4(network) => keys.location(gateway, &network.octets(), prefix.length()),
        IpAddr::V6(network) => keys.location(gateway, &network.octets(), prefix.length()),
    };
    Some(location)
}

/// Returns the look-up tags of locations at a time: those of both days around midnight, and of both epochs
/// for a while after a change (Rule 6.7).
pub(super) fn tags(
    locations: &[LocationId],
    keys: &DomainKeys,
    epoch_began: UnixTime,
    time: UnixTime,
) -> Vec<LookupTag> {
    let into_day = time.as_secs() % 86_400;
    let mut days = vec![time.day()];
    if into_day < DAY_MARGIN_SECS {
        days.push(time.day().saturating_sub(1));
    } else if into_day >= 86_400 - DAY_MARGIN_SECS {
        days.push(time.day().saturating_add(1));
    }
    let new_epoch = time.since(epoch_began).as_secs() < EPOCH_MARGIN_SECS;
    let mut tags = Vec::new();
    for (location, day) in locations.iter().flat_map(|l| days.iter().map(move |day| (l, *day))) {
        tags.push(keys.tag(location, day));
        if new_epoch {
            tags.extend(keys.previous_tag(location, day));
        }
    }
    tags.truncate(MAX_TAGS);
    tags
}

/// Returns where this node may be reached: what the owner configured, then the addresses of its interfaces.
pub(super) fn candidates(
    interfaces: &[Interface],
    advertise: &[SocketAddr],
    port: u16,
    with_loopback: bool,
    bound: Option<IpAddr>,
) -> Vec<Candidate> {
    let configured = advertise.iter().map(|address| (CandidateKind::Configured, *address));
    let up = interfaces.iter().filter(|i| i.up && (with_loopback || i.kind != InterfaceKind::Loopback));
    let hosts = up.flat_map(|interface| {
        let kind = match interface.kind {
            InterfaceKind::Wifi => CandidateKind::Wifi,
            InterfaceKind::Vpn => CandidateKind::Vpn,
            InterfaceKind::Ethernet
            | InterfaceKind::Virtual
            | InterfaceKind::Loopback
            | InterfaceKind::Other => CandidateKind::Ethernet,
        };
        let own = interface.addresses.iter().map(|own| own.address);
        own.filter(|ip| !is_link_local(*ip)).map(move |ip| (kind, SocketAddr::new(ip, port)))
    });
    let hosts = hosts.filter(|(_, address)| bound.is_none_or(|bound| bound == address.ip()));
    let both = configured.chain(hosts).flat_map(|(kind, address)| {
        [Transport::Tcp, Transport::Udp].map(|transport| Candidate { kind, transport, address })
    });
    both.take(MAX_CANDIDATES).collect()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Returns whether an address that somebody offered may be dialled from here: a private one only if it is on-link
/// (Rule 6.16).
pub(super) fn may_dial(address: IpAddr, interfaces: &[Interface], one_machine: bool) -> bool {
    if one_machine && address.is_loopback() {
        return true;
    }
    if crate::dial::forbidden(address, interfaces).is_some() {
        return false;
    }
    let on_link = || interfaces.iter().any(|interface| interface.is_on_link(address));
    !is_private(address) || on_link()
}

/// Returns whether an address means something inside a site only.
pub(crate) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use peerage_wire::id::Mac;
    use peerage_wire::keys::SecretKey;

    use super::*;
    use crate::lan::{Gateway, InterfaceAddress};

    fn keys() -> DomainKeys {
        DomainKeys {
            epoch: 2,
            epoch_key: SecretKey([2; 32]),
            previous: Some(SecretKey([1; 32])),
            location_key: SecretKey([9; 32]),
        }
    }

    fn interface(index: u32, address: &str, prefix: &str, gateway: Option<u8>) -> Interface {
        let gateway = gateway.map(|n| Gateway {
            metric: 0,
            address: "192.168.1.1".parse().unwrap(),
            mac: Some(Mac([n; 6])),
        });
        Interface {
            index,
            name: format!("eth{index}"),
            kind: InterfaceKind::Ethernet,
            up: true,
            mac: None,
            addresses: vec![InterfaceAddress {
                address: address.parse().unwrap(),
                prefix: prefix.parse().unwrap(),
            }],
            gateways: gateway.into_iter().collect(),
        }
    }

    /// Rule 6.11: two networks with the same prefix are two places, and one without a gateway is none.
    #[test]
    fn equal_prefixes_behind_other_gateways_are_other_places() {
        let one = [interface(1, "192.168.1.5", "192.168.1.0/24", Some(1))];
        let other = [interface(1, "192.168.1.5", "192.168.1.0/24", Some(2))];
        let none = [interface(1, "192.168.1.5", "192.168.1.0/24", None)];
        let find = |interfaces: &[Interface]| Places::find(interfaces, &keys(), None);
        assert_ne!(find(&one), find(&other));
        assert_eq!(find(&none).all().count(), 0);
        assert_eq!(Places::find(&none, &keys(), Some("attic")).all().count(), 1);
    }

    #[test]
    fn each_interface_has_a_location_of_its_own() {
        let both = [
            interface(1, "192.168.1.5", "192.168.1.0/24", Some(1)),
            interface(2, "10.0.0.5", "10.0.0.0/8", Some(2)),
        ];
        let places = Places::find(&both, &keys(), None);
        let second = places.location_of(2).unwrap();
        assert_eq!(places.interface_at(&second), Some(2));
        assert_eq!(places.interfaces_at(&[second]), [2]);
        assert_eq!(places.interfaces(), [1, 2]);
    }

    /// Rule 6.7: around midnight and after a change of epoch both are announced and asked.
    #[test]
    fn tags_of_neighbouring_days_and_epochs_overlap_around_the_change() {
        let keys = keys();
        let location = [LocationId([5; 32])];
        let noon = UnixTime::from_secs(86_400 * 100 + 43_200);
        let before_midnight = UnixTime::from_secs(86_400 * 101 - 60);
        let after_midnight = UnixTime::from_secs(86_400 * 101 + 60);
        let long_ago = UnixTime::default();
        assert_eq!(tags(&location, &keys, long_ago, noon).len(), 1);
        assert_eq!(tags(&location, &keys, noon, noon).len(), 2);
        let before = tags(&location, &keys, long_ago, before_midnight);
        let after = tags(&location, &keys, long_ago, after_midnight);
        assert_eq!(before.len(), 2);
        assert!(before.iter().all(|tag| after.contains(tag)));
    }

    /// Rule 6.16: a candidate must not aim a node at its own LAN's neighbours elsewhere, or at itself.
    #[test]
    fn private_addresses_are_dialled_on_link_only_and_loopback_never() {
        let here = [interface(1, "192.168.1.5", "192.168.1.0/24", Some(1))];
        let may = |text: &str| may_dial(text.parse().unwrap(), &here, false);
        assert!(may("192.168.1.77"));
        assert!(may("203.0.114.7"));
        for refused in ["192.168.2.77", "10.0.0.1", "100.64.0.1", "127.0.0.1", "fd00::1", "192.168.1.5"] {
            assert!(!may(refused), "{refused}");
        }
        assert!(may_dial("127.0.0.1".parse().unwrap(), &here, true));
    }
}
