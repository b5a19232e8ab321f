//! Interfaces, put together from the kernel's lists.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use peerage_proto::lan::{Gateway, Interface, InterfaceAddress, InterfaceKind};

use super::LanError;
use super::codec::{Address, Dump, Link, Message, Neighbour, NeighbourState, NextHop};
use super::netlink::Netlink;

/// The most interfaces that are looked at; the oldest count. A machine with more runs containers by the hundred,
/// and its LAN is among the first. More would only make every reading slower.
const MAX_INTERFACES: usize = 1024;
/// The most addresses of one interface that are looked at, far above what DHCP and privacy addresses make.
const MAX_ADDRESSES: usize = 64;
/// The most default gateways of one interface that are looked at.
const MAX_GATEWAYS: usize = 16;

/// What a reading of the kernel's lists gave.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) interfaces: Vec<Interface>,
    pub(super) neighbours: Vec<Neighbour>,
}

/// Reads everything; sends nothing on any network.
pub(super) async fn read(netlink: &mut Netlink) -> Result<Facts, LanError> {
    let links =
        netlink.dump(Dump::Links, |m| if let Message::Link(link) = m { Some(link) } else { None }).await?;
    let addresses = netlink
        .dump(Dump::Addresses, |m| if let Message::Address(address) = m { Some(address) } else { None })
        .await?;
    let routes = netlink
        .dump(Dump::Routes, |m| if let Message::DefaultRoute(hops) = m { Some(hops) } else { None })
        .await?;
    let hops: Vec<NextHop> = routes.into_iter().flatten().collect();
    let neighbours = neighbours(netlink).await?;
    let interfaces = assemble(&links, &addresses, &hops, &neighbours, is_wireless);
    Ok(Facts { interfaces, neighbours })
}

/// Reads the neighbour tables alone.
pub(super) async fn neighbours(netlink: &mut Netlink) -> Result<Vec<Neighbour>, LanError> {
    netlink.dump(Dump::Neighbours, |m| if let Message::Neighbour(one) = m { Some(one) } else { None }).await
}

/// Returns whether the interface has a radio: the kernel shows these directories for nothing else.
fn is_wireless(name: &str) -> bool {
    let directory = Path::new("/sys/class/net").join(name);
    directory.join("wireless").exists() || directory.join("phy80211").exists()
}

fn assemble(
    links: &[Link],
    addresses: &[Address],
    hops: &[NextHop],
    neighbours: &[Neighbour],
    is_wireless: impl Fn(&str) -> bool,
) -> Vec<Interface> {
    let macs: BTreeMap<(u32, IpAddr), _> = neighbours
        .iter()
        .filter(|one| one.state != NeighbourState::NoArp)
        .filter_map(|one| Some(((one.interface, one.address), one.mac?)))
        .collect();
    let mut links: Vec<&Link> = links.iter().collect();
    links.sort_by_key(|link| link.index);
    links.truncate(MAX_INTERFACES);
    let all = links.iter().map(|link| {
        let mut own: Vec<InterfaceAddress> = addresses
            .iter()
            .filter(|one| one.interface == link.index)
            .map(|one| InterfaceAddress { address: one.address, prefix: one.prefix })
            .collect();
        own.sort();
        own.dedup();
        own.truncate(MAX_ADDRESSES);
        let mut gateways: Vec<Gateway> = hops
            .iter()
            .filter(|hop| hop.interface == link.index)
            .map(|hop| {
                let mac = macs.get(&(hop.interface, hop.gateway)).copied();
                Gateway { metric: hop.metric, address: hop.gateway, mac }
            })
            .collect();
        gateways.sort();
        gateways.dedup();
        gateways.truncate(MAX_GATEWAYS);
        let ready = Link::UP | Link::LOWER_UP;
        Interface {
            index: link.index,
            name: link.name.clone(),
            kind: kind(link, &links, &is_wireless),
            up: link.flags & ready == ready,
            mac: link.mac.filter(|mac| mac.0 != [0; 6]),
            addresses: own,
            gateways,
        }
    });
    all.collect()
}

/// Tells what an interface leads to from what made it and its hardware type.
fn kind(link: &Link, all: &[&Link], is_wireless: &impl Fn(&str) -> bool) -> InterfaceKind {
    // From <linux/if_arp.h>.
    const ARPHRD_ETHER: u16 = 1;
    const ARPHRD_PPP: u16 = 512;
    const ARPHRD_TUNNEL: u16 = 768;
    const ARPHRD_TUNNEL6: u16 = 769;
    const ARPHRD_LOOPBACK: u16 = 772;
    const ARPHRD_SIT: u16 = 776;
    const ARPHRD_IPGRE: u16 = 778;
    const ARPHRD_IP6GRE: u16 = 823;
    const ARPHRD_NONE: u16 = 0xfffe;

    if link.flags & Link::LOOPBACK != 0 {
        return InterfaceKind::Loopback;
    }
    match (link.made_by.as_str(), link.hardware) {
        (_, ARPHRD_LOOPBACK) => InterfaceKind::Loopback,
        // A wired and a wireless card under one bridge or bond count as Ethernet.
        ("bridge" | "bond" | "team", _) => {
            let is_card = |port: &&Link| port.master == Some(link.index) && port.made_by.is_empty();
            let is_lan = link.made_by != "bridge" || all.iter().any(is_card);
            if is_lan { InterfaceKind::Ethernet } else { InterfaceKind::Virtual }
        }
        // On the network of the card that they are made from.
        ("vlan" | "macvlan" | "ipvlan", _) => InterfaceKind::Ethernet,
        (
            "tun" | "wireguard" | "ppp" | "ipip" | "sit" | "gre" | "gretap" | "ip6gre" | "ip6gretap"
            | "ip6tnl" | "vti" | "vti6" | "xfrm" | "amt" | "ovpn" | "ovpn-dco" | "l2tpeth",
            _,
        ) => InterfaceKind::Vpn,
        (
            "",
            ARPHRD_PPP | ARPHRD_TUNNEL | ARPHRD_TUNNEL6 | ARPHRD_SIT | ARPHRD_IPGRE | ARPHRD_IP6GRE
            | ARPHRD_NONE,
        ) => InterfaceKind::Vpn,
        (made_by, ARPHRD_ETHER) if is_wireless(&link.name) => {
            // A simulated radio is a radio; other software that claims to be one is not.
            if made_by.is_empty() || made_by == "wlan" { InterfaceKind::Wifi } else { InterfaceKind::Virtual }
        }
        ("", ARPHRD_ETHER) => InterfaceKind::Ethernet,
        ("", _) => InterfaceKind::Other,
        _ => InterfaceKind::Virtual,
    }
}

#[cfg(test)]
mod tests {
    use peerage_proto::lan::{Mac, Prefix};

    use super::*;

    #[test]
    fn the_kind_follows_from_what_made_the_interface() {
        for (name, made_by, hardware, expected) in [
            ("eth0", "", 1, InterfaceKind::Ethernet),
            ("wlan0", "", 1, InterfaceKind::Wifi),
            ("eth0.7", "vlan", 1, InterfaceKind::Ethernet),
            ("bond0", "bond", 1, InterfaceKind::Ethernet),
            ("veth1", "veth", 1, InterfaceKind::Virtual),
            ("dummy0", "dummy", 1, InterfaceKind::Virtual),
            ("docker0", "bridge", 1, InterfaceKind::Virtual),
            ("tun0", "tun", 0xfffe, InterfaceKind::Vpn),
            ("tap0", "tun", 1, InterfaceKind::Vpn),
            ("wg0", "wireguard", 0xfffe, InterfaceKind::Vpn),
            ("ppp0", "", 512, InterfaceKind::Vpn),
            ("ib0", "", 32, InterfaceKind::Other),
            ("lo", "", 772, InterfaceKind::Loopback),
        ] {
            let one = link(9, name, made_by, hardware);
            assert_eq!(kind(&one, &[&one], &|name: &str| name == "wlan0"), expected, "{name}");
        }
    }

    #[test]
    fn a_bridge_with_a_network_card_in_it_is_a_lan() {
        let bridge = link(3, "br0", "bridge", 1);
        let mut card = link(2, "eth0", "", 1);
        assert_eq!(kind(&bridge, &[&card, &bridge], &|_: &str| false), InterfaceKind::Virtual);
        card.master = Some(3);
        assert_eq!(kind(&bridge, &[&card, &bridge], &|_: &str| false), InterfaceKind::Ethernet);
        card.made_by = "veth".into();
        assert_eq!(kind(&bridge, &[&card, &bridge], &|_: &str| false), InterfaceKind::Virtual);
    }

    #[test]
    fn gateways_stand_at_their_interface_best_first_and_with_their_mac() {
        let (router, backup) = (ip("192.168.1.1"), ip("192.168.1.2"));
        let mut card = link(2, "eth0", "", 1);
        card.flags = Link::UP | Link::LOWER_UP;
        card.mac = Some(Mac([2, 0, 0, 0, 0, 9]));
        let other = link(5, "eth1", "", 1);
        let prefix: Prefix = "192.168.1.0/24".parse().unwrap();
        let own = Address { interface: 2, address: ip("192.168.1.9"), prefix };
        let hop = |gateway, metric| NextHop { interface: 2, gateway, metric };
        let neighbour = |interface, last| Neighbour {
            interface,
            address: router,
            mac: Some(Mac([2, 0, 0, 0, 0, last])),
            state: NeighbourState::Unproven,
            confirmed_ms: None,
        };
        let interfaces = assemble(
            &[other, card],
            &[own],
            &[hop(backup, 600), hop(router, 100)],
            &[neighbour(5, 5), neighbour(2, 1)],
            |_| false,
        );
        assert_eq!(interfaces.iter().map(|i| (i.index, i.up)).collect::<Vec<_>>(), [(2, true), (5, false)]);
        let card = &interfaces[0];
        assert_eq!(card.mac, Some(Mac([2, 0, 0, 0, 0, 9])));
        assert_eq!(card.addresses, [InterfaceAddress { address: ip("192.168.1.9"), prefix }]);
        assert_eq!(
            card.gateways,
            [
                Gateway { metric: 100, address: router, mac: Some(Mac([2, 0, 0, 0, 0, 1])) },
                Gateway { metric: 600, address: backup, mac: None },
            ]
        );
        assert_eq!(interfaces[1].gateways, []);
    }

    #[test]
    fn there_is_a_limit_to_interfaces_addresses_and_gateways() {
        let links: Vec<Link> = (1..=2000).map(|index| link(index, "x", "veth", 1)).collect();
        let addresses: Vec<Address> = (0..=255)
            .map(|last| {
                let address = IpAddr::from([10, 0, 0, last]);
                Address { interface: 1, address, prefix: Prefix::host(address) }
            })
            .collect();
        let hops: Vec<NextHop> = (0..=255)
            .map(|last| NextHop { interface: 1, gateway: IpAddr::from([10, 0, 1, last]), metric: 0 })
            .collect();
        let interfaces = assemble(&links, &addresses, &hops, &[], |_| false);
        assert_eq!(interfaces.len(), MAX_INTERFACES);
        assert_eq!(interfaces[0].addresses.len(), MAX_ADDRESSES);
        assert_eq!(interfaces[0].gateways.len(), MAX_GATEWAYS);
    }

    fn link(index: u32, name: &str, made_by: &str, hardware: u16) -> Link {
        Link { index, name: name.into(), made_by: made_by.into(), hardware, ..Link::default() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}
