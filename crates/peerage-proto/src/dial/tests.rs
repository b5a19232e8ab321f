use super::*;
use crate::lan::{Gateway, InterfaceAddress, Prefix};

#[test]
fn every_special_range_is_refused_at_both_ends() {
    use Forbidden::{
        Broadcast, Disguised, Documentation, LinkLocal, Loopback, Metadata, Multicast, Reserved, Unspecified,
    };
    let table: &[(&str, &str, Forbidden)] = &[
        ("0.0.0.0", "0.255.255.255", Unspecified),
        ("127.0.0.0", "127.255.255.255", Loopback),
        ("169.254.0.0", "169.254.255.255", LinkLocal),
        ("192.0.0.0", "192.0.0.191", Reserved),
        ("192.0.2.0", "192.0.2.255", Documentation),
        ("192.88.99.0", "192.88.99.255", Reserved),
        ("198.18.0.0", "198.19.255.255", Documentation),
        ("198.51.100.0", "198.51.100.255", Documentation),
        ("203.0.113.0", "203.0.113.255", Documentation),
        ("224.0.0.0", "239.255.255.255", Multicast),
        ("240.0.0.0", "255.255.255.254", Reserved),
        ("255.255.255.255", "255.255.255.255", Broadcast),
        ("100.100.100.200", "100.100.100.200", Metadata),
        ("168.63.129.16", "168.63.129.16", Metadata),
        ("192.0.0.192", "192.0.0.192", Metadata),
        ("::", "::", Unspecified),
        ("::1", "::1", Loopback),
        ("::2", "::ffff:ffff", Disguised),
        ("::ffff:0:0", "::ffff:ffff:ffff", Disguised),
        ("::ffff:0:0:0", "::ffff:0:ffff:ffff", Disguised),
        ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", Disguised),
        ("100::", "100::ffff:ffff:ffff:ffff", Reserved),
        ("2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", Disguised),
        ("2001:1::1", "2001:1::1", Reserved),
        ("2001:2::", "2001:2:0:ffff:ffff:ffff:ffff:ffff", Documentation),
        ("2001:10::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", Reserved),
        ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", Documentation),
        ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Disguised),
        ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", Documentation),
        ("4000::", "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Reserved),
        ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Reserved),
        ("fe00::", "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Reserved),
        ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", LinkLocal),
        ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", LinkLocal),
        ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Multicast),
        ("fd00:ec2::254", "fd00:ec2::254", Metadata),
        ("fd20:ce::254", "fd20:ce::254", Metadata),
        ("2a00:1:2:3:0:5efe:7f00:1", "2a00:1:2:3:200:5efe:7f00:1", Disguised),
    ];
    for (first, last, reason) in table {
        assert_eq!(forbidden(ip(first), &[]), Some(*reason), "{first}");
        assert_eq!(forbidden(ip(last), &[]), Some(*reason), "{last}");
    }
}

#[test]
fn addresses_beside_the_special_ranges_are_open() {
    for open in [
        "1.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.199",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.17",
        "169.253.255.255",
        "169.255.0.0",
        "172.16.0.1",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.3.0",
        "192.88.98.255",
        "192.168.1.10",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "203.0.114.0",
        "223.255.255.255",
        "2000::1",
        "2001:200::1",
        "2001:db7::1",
        "2001:db9::1",
        "2003::1",
        "2606:4700::1111",
        "3ffe::1",
        "3fff:1000::1",
        "fc00::1",
        "fd00:ec2::253",
        "fdff:ffff::1",
    ] {
        assert_eq!(forbidden(ip(open), &[]), None, "{open}");
    }
}

/// Walks all first bytes, so that no range is open only because nobody thought of a row for it.
#[test]
fn exactly_the_ordinary_first_bytes_are_open() {
    for first in 0..=255 {
        let open = forbidden(IpAddr::V4(Ipv4Addr::new(first, 77, 66, 55)), &[]).is_none();
        assert_eq!(open, matches!(first, 1..=126 | 128..=223), "{first}.77.66.55");
        let v6 = Ipv6Addr::new(u16::from(first) << 8 | 0x80, 7, 7, 7, 7, 7, 7, 7);
        let open = forbidden(IpAddr::V6(v6), &[]).is_none();
        assert_eq!(open, matches!(first, 0x20..=0x3f | 0xfc | 0xfd), "{v6}");
    }
}

#[test]
fn no_disguise_hides_a_forbidden_ipv4_address() {
    let hidden = [
        "127.0.0.1",
        "169.254.169.254",
        "10.0.0.1",
        "192.168.1.1",
        "172.31.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "0.0.0.0",
    ];
    for hidden in hidden {
        for prefix in
            ["::", "::ffff:", "::ffff:0:", "64:ff9b::", "64:ff9b:1::", "2a00::5efe:", "fd00::200:5efe:"]
        {
            let text = format!("{prefix}{hidden}");
            assert!(forbidden(ip(&text), &[]).is_some(), "{text}");
        }
        let IpAddr::V4(v4) = ip(hidden) else { panic!("{hidden} is IPv4") };
        let [a, b, c, d] = v4.octets().map(u16::from);
        let (high, low) = (a << 8 | b, c << 8 | d);
        let six_to_four = Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1);
        let teredo = Ipv6Addr::new(0x2001, 0, 0x4136, 0xe378, 0x8000, 0x63bf, !high, !low);
        let local_nat64_48 = Ipv6Addr::new(0x64, 0xff9b, 1, high, low >> 8, (low & 0xff) << 8, 0, 0);
        for disguise in [six_to_four, teredo, local_nat64_48] {
            assert_eq!(forbidden(IpAddr::V6(disguise), &[]), Some(Forbidden::Disguised), "{disguise}");
        }
    }
}

#[test]
fn behind_the_well_known_nat64_prefix_only_public_addresses_are_open() {
    let interfaces = [lan()];
    assert_eq!(forbidden(ip("64:ff9b::8.8.8.8"), &interfaces), None);
    for hidden in ["8.8.4.4", "224.0.0.1", "10.1.1.1", "255.255.255.255", "192.0.2.1"] {
        let text = format!("64:ff9b::{hidden}");
        assert_eq!(forbidden(ip(&text), &interfaces), Some(Forbidden::Disguised), "{text}");
    }
    assert_eq!(forbidden(ip("64:ff9b::1:808:808"), &[]), Some(Forbidden::Reserved));
}

#[test]
fn own_addresses_routers_and_broadcasts_are_refused_on_every_interface() {
    let mut down = lan();
    down.up = false;
    for interfaces in [vec![loopback(), lan()], vec![lan(), loopback()], vec![down]] {
        for (address, reason) in [
            ("192.168.1.10", Some(Forbidden::Own)),
            ("8.8.4.4", Some(Forbidden::Own)),
            ("fd00:1::10", Some(Forbidden::Own)),
            ("192.168.1.1", Some(Forbidden::Gateway)),
            ("192.168.1.0", Some(Forbidden::Broadcast)),
            ("192.168.1.255", Some(Forbidden::Broadcast)),
            ("fd00:1::", Some(Forbidden::RouterAnycast)),
            ("192.168.1.2", None),
            ("192.168.1.254", None),
            ("192.168.2.255", None),
            ("fd00:1::1", None),
            ("8.8.4.5", None),
        ] {
            assert_eq!(forbidden(ip(address), &interfaces), reason, "{address}");
        }
    }
}

#[test]
fn loopback_is_named_as_such_although_it_is_an_own_address() {
    assert_eq!(forbidden(ip("127.0.0.1"), &[loopback()]), Some(Forbidden::Loopback));
    assert_eq!(forbidden(ip("::1"), &[loopback()]), Some(Forbidden::Loopback));
}

#[test]
fn a_device_must_be_on_the_link_of_its_location() {
    let mut other = lan();
    other.addresses = vec![at("192.168.50.10", "192.168.50.0/24")];
    other.gateways.clear();
    let all = [loopback(), lan(), other.clone()];
    let via = lan();
    assert_eq!(forbidden_device(ip("192.168.1.77"), &via, &all), None);
    assert_eq!(forbidden_device(ip("fd00:1::77"), &via, &all), None);
    assert_eq!(forbidden_device(ip("192.168.50.77"), &via, &all), Some(Forbidden::OffLink));
    assert_eq!(forbidden_device(ip("192.168.50.77"), &other, &all), None);
    assert_eq!(forbidden_device(ip("9.9.9.9"), &via, &all), Some(Forbidden::OffLink));
    assert_eq!(forbidden_device(ip("192.168.1.1"), &via, &all), Some(Forbidden::Gateway));
    assert_eq!(forbidden_device(ip("192.168.50.10"), &via, &all), Some(Forbidden::Own));
    assert_eq!(forbidden_device(ip("::ffff:192.168.1.77"), &via, &all), Some(Forbidden::Disguised));

    let mut service_range = loopback();
    service_range.addresses.push(at("10.96.0.1", "10.96.0.0/16"));
    assert_eq!(forbidden_device(ip("10.96.0.2"), &service_range, &[]), Some(Forbidden::OffLink));
}

#[test]
fn the_hardware_addresses_of_routers_groups_and_this_computer_are_no_devices() {
    let interfaces = [loopback(), lan()];
    for (mac, reason) in [
        ("02:00:00:00:00:01", Some(Forbidden::Gateway)),
        ("02:00:00:00:00:10", Some(Forbidden::Own)),
        ("01:00:5e:00:00:fb", Some(Forbidden::Multicast)),
        ("ff:ff:ff:ff:ff:ff", Some(Forbidden::Broadcast)),
        ("00:00:00:00:00:00", Some(Forbidden::Unspecified)),
        ("02:00:00:00:00:77", None),
    ] {
        assert_eq!(forbidden_mac(mac.parse().unwrap(), &interfaces), reason, "{mac}");
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is an address"))
}

fn at(address: &str, prefix: &str) -> InterfaceAddress {
    let prefix: Prefix = prefix.parse().unwrap();
    InterfaceAddress { address: ip(address), prefix }
}

fn lan() -> Interface {
    Interface {
        index: 2,
        name: "eth0".into(),
        kind: InterfaceKind::Ethernet,
        up: true,
        mac: Some("02:00:00:00:00:10".parse().unwrap()),
        addresses: vec![
            at("192.168.1.10", "192.168.1.0/24"),
            at("8.8.4.4", "8.8.4.4/32"),
            at("fd00:1::10", "fd00:1::/64"),
        ],
        gateways: vec![
            Gateway {
                metric: 100,
                address: ip("192.168.1.1"),
                mac: Some("02:00:00:00:00:01".parse().unwrap()),
            },
            Gateway { metric: 1024, address: ip("fe80::1"), mac: None },
        ],
    }
}

fn loopback() -> Interface {
    Interface {
        index: 1,
        name: "lo".into(),
        kind: InterfaceKind::Loopback,
        up: true,
        mac: None,
        addresses: vec![at("127.0.0.1", "127.0.0.0/8"), at("::1", "::1/128")],
        gateways: vec![],
    }
}
