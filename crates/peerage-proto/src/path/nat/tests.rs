use super::*;

fn place(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn at(seconds: u64) -> Instant {
    Instant::from_micros(seconds * 1_000_000)
}

/// Lets servers see this node as it is given, each after something was sent to it.
fn seen(seen: &[(&str, &str)]) -> Nat {
    let mut nat = Nat::new(7_400);
    for (by, _) in seen {
        nat.note_sent(place(by), at(1));
    }
    for (by, observed) in seen {
        nat.observe(place(by), place(observed), at(1));
    }
    nat
}

fn own(address: IpAddr) -> bool {
    address == place("45.9.9.9:1").ip()
}

fn behaviour(pairs: &[(&str, &str)]) -> (Option<Mapping>, Option<PortChoice>) {
    let behaviour = seen(pairs).behaviour(&own, at(2));
    (behaviour.mapping, behaviour.ports)
}

/// Rule 6.90.
#[test]
fn two_places_show_how_a_router_maps() {
    let (a, b, a2) = ("46.0.0.1:7400", "46.0.0.2:7400", "46.0.0.1:7401");
    assert_eq!(behaviour(&[]), (None, None));
    assert_eq!(behaviour(&[(a, "45.0.0.1:5")]), (None, None));
    assert_eq!(behaviour(&[(a, "45.0.0.1:5"), (a2, "45.0.0.1:5")]).0, None);
    assert_eq!(behaviour(&[(a, "45.0.0.1:5"), (b, "45.0.0.1:5")]).0, Some(Mapping::EndpointIndependent));
    assert_eq!(behaviour(&[(a, "45.0.0.1:5"), (b, "45.0.0.1:6")]).0, Some(Mapping::AddressDependent));
    assert_eq!(behaviour(&[(a, "45.0.0.1:5"), (a2, "45.0.0.1:6")]).0, Some(Mapping::AddressAndPortDependent));
    assert_eq!(behaviour(&[(a, "45.9.9.9:7400"), (b, "45.9.9.9:7400")]), (Some(Mapping::None), None));
}

/// Rule 6.90.
#[test]
fn ports_are_preserved_numbered_or_neither() {
    let (a, b) = ("46.0.0.1:7400", "46.0.0.2:7400");
    let ports = |first: &str, second: &str| behaviour(&[(a, first), (b, second)]).1;
    assert_eq!(ports("45.0.0.1:7400", "45.0.0.1:7400"), Some(PortChoice::Preserved));
    assert_eq!(ports("45.0.0.1:1024", "45.0.0.1:1025"), Some(PortChoice::Sequential));
    assert_eq!(ports("45.0.0.1:1024", "45.0.0.1:1033"), Some(PortChoice::Sequential));
    assert_eq!(ports("45.0.0.1:1024", "45.0.0.1:1034"), Some(PortChoice::Other));
    assert_eq!(ports("45.0.0.1:1025", "45.0.0.1:1024"), Some(PortChoice::Other));
    assert_eq!(ports("45.0.0.1:1024", "45.0.0.2:1025"), Some(PortChoice::Other));
    assert_eq!(ports("45.0.0.1:1024", "45.0.0.1:1024"), Some(PortChoice::Other));
}

/// Rule 6.91: the base counts every place that was written to since.
#[test]
fn the_base_counts_the_places_that_were_written_to_since() {
    let mut nat = seen(&[("46.0.0.1:7400", "45.0.0.1:1024"), ("46.0.0.2:7400", "45.0.0.1:1025")]);
    assert_eq!(nat.base(&own, at(2)), Some(place("45.0.0.1:1025")));
    nat.note_sent(place("46.0.0.1:7400"), at(2));
    assert_eq!(nat.base(&own, at(2)), Some(place("45.0.0.1:1025")));
    nat.note_sent(place("46.0.0.3:7400"), at(2));
    nat.note_sent(place("46.0.0.3:7401"), at(2));
    assert_eq!(nat.base(&own, at(2)), Some(place("45.0.0.1:1027")));
    // The router has forgotten the first mapping and made another.
    nat.observe(place("46.0.0.1:7400"), place("45.0.0.1:1031"), at(3));
    assert_eq!(nat.base(&own, at(3)), Some(place("45.0.0.1:1031")));
}

/// Rule 6.90: what the router does not pass on, or does not translate, takes no port.
#[test]
fn neither_the_own_outer_address_nor_ipv6_counts_among_the_places() {
    let mut nat = seen(&[("46.0.0.1:7400", "45.0.0.1:1024"), ("46.0.0.2:7400", "45.0.0.1:1025")]);
    nat.note_sent(place("45.0.0.1:1025"), at(2));
    nat.note_sent(place("[2a01::1]:7400"), at(2));
    assert_eq!(nat.base(&own, at(2)), Some(place("45.0.0.1:1025")));
    nat.note_sent(place("46.0.0.3:7400"), at(2));
    assert_eq!(nat.base(&own, at(2)), Some(place("45.0.0.1:1026")));
}

/// Rule 6.91: a router that maps all places alike has no base, and one whose ports mean nothing neither.
#[test]
fn there_is_a_base_only_where_it_helps() {
    for second in ["45.0.0.1:1024", "45.0.0.1:9999"] {
        let nat = seen(&[("46.0.0.1:7400", "45.0.0.1:1024"), ("46.0.0.2:7400", second)]);
        assert_eq!(nat.base(&own, at(2)), None);
    }
    let last = seen(&[("46.0.0.1:7400", "45.0.0.1:65534"), ("46.0.0.2:7400", "45.0.0.1:65535")]);
    assert_eq!(last.base(&own, at(2)), Some(place("45.0.0.1:65535")));
}

/// Rule 6.90: two minutes later, or elsewhere, nothing of it holds.
#[test]
fn observations_age_and_end_with_the_network() {
    let mut nat = seen(&[("46.0.0.1:7400", "45.0.0.1:5"), ("46.0.0.2:7400", "45.0.0.1:5")]);
    assert_eq!(nat.reflexive(&own, at(121)), [place("45.0.0.1:5")]);
    assert_eq!(nat.reflexive(&own, at(122)), []);
    assert_eq!(nat.behaviour(&own, at(122)), NatBehaviour::default());
    nat.forget();
    assert_eq!(nat.behaviour(&own, at(2)), NatBehaviour::default());
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut nat = Nat::new(7_400);
    for n in 0..u16::try_from(MAX_CONTACTS).unwrap() + 50 {
        let by = SocketAddr::from(([46, 0, 0, 1], 1_000 + n));
        nat.note_sent(by, at(u64::from(n)));
        nat.observe(by, place("45.0.0.1:5"), at(u64::from(n)));
    }
    assert_eq!((nat.contacts.len(), nat.observations.len()), (MAX_CONTACTS, MAX_OBSERVERS));
}

/// Rule 6.98.
#[test]
fn an_answer_from_another_port_shows_whether_a_router_filters_by_port() {
    let (a, a2) = (place("46.0.0.1:7400"), place("46.0.0.1:7401"));
    let mut nat = seen(&[("46.0.0.1:7400", "45.0.0.1:5")]);
    let filtering = |nat: &Nat| nat.behaviour(&own, at(2)).filtering;
    assert_eq!(filtering(&nat), None);
    nat.note_elsewhere(None);
    assert_eq!(filtering(&nat), Some(Filtering::AddressAndPortDependent));
    nat.note_elsewhere(Some(a));
    assert_eq!(filtering(&nat), Some(Filtering::AddressAndPortDependent), "that port was written to");
    nat.note_elsewhere(Some(a2));
    assert_eq!(filtering(&nat), Some(Filtering::AddressDependent));
    nat.note_hairpin(true);
    assert_eq!(nat.behaviour(&own, at(2)).hairpinning, Some(true));
    nat.forget();
    let behaviour = nat.behaviour(&own, at(2));
    assert_eq!((behaviour.filtering, behaviour.hairpinning), (None, None));
}

/// Rule 6.98.
#[test]
fn who_comes_unasked_shows_that_a_router_lets_in_everybody() {
    let mut nat = seen(&[("46.0.0.1:7400", "45.0.0.1:5")]);
    let filtering = |nat: &Nat| nat.behaviour(&own, at(2)).filtering;
    // What was sent before this process began may have opened the router.
    nat.note_let_in(place("46.0.0.9:1"), at(121));
    assert_eq!(filtering(&nat), None);
    nat.note_let_in(place("46.0.0.1:9"), at(122));
    assert_eq!(filtering(&nat), None, "its address was written to");
    nat.note_let_in(place("46.0.0.9:1"), at(122));
    assert_eq!(filtering(&nat), Some(Filtering::EndpointIndependent));
    nat.note_elsewhere(None);
    assert_eq!(filtering(&nat), Some(Filtering::EndpointIndependent), "one lost datagram shows less");
}
