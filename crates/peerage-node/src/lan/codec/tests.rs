use super::*;

#[test]
fn a_request_asks_for_all_of_a_kind() {
    let request = Dump::Neighbours.request(7);
    assert_eq!(request.len(), 28);
    assert_eq!(read_u32(&request, 0), Some(28));
    assert_eq!(read_u16(&request, 4), Some(30));
    assert_eq!(read_u16(&request, 6), Some(0x301));
    assert_eq!(read_u32(&request, 8), Some(7));
    assert!(request[12..].iter().all(|byte| *byte == 0));
}

#[test]
fn several_messages_of_one_datagram_are_read_in_order() {
    let mut bytes = message(RTM_NEWNEIGH, 0, &neighbour(AF_INET, 3, 0x02, &[10, 0, 0, 9]));
    bytes.extend(message(99, 0, &[1, 2, 3]));
    bytes.extend(message(NLMSG_DONE, NLM_F_DUMP_INTR, &0_i32.to_ne_bytes()));
    let messages = parse(&bytes);
    let expected = Neighbour {
        interface: 3,
        address: IpAddr::from([10, 0, 0, 9]),
        mac: Some(MAC),
        state: NeighbourState::Reachable,
        confirmed_ms: Some(1500),
    };
    assert_eq!(messages[0].message, Message::Neighbour(expected));
    assert_eq!(messages[0].sequence, 5);
    assert!(!messages[0].interrupted);
    assert_eq!(messages[1].message, Message::Other);
    assert_eq!(messages[2].message, Message::Done);
    assert!(messages[2].interrupted);
    assert_eq!(messages.len(), 3);
}

#[test]
fn a_neighbour_that_is_asked_for_or_silent_has_no_mac() {
    for (bits, state) in [(0x01, NeighbourState::Incomplete), (0x20, NeighbourState::Failed)] {
        let parsed = parse_neighbour(&neighbour(AF_INET, 3, bits, &[10, 0, 0, 9])).unwrap();
        assert_eq!((parsed.state, parsed.mac), (state, None));
    }
    for bits in [0x04, 0x08, 0x10] {
        let parsed = parse_neighbour(&neighbour(AF_INET, 3, bits, &[10, 0, 0, 9])).unwrap();
        assert_eq!((parsed.state, parsed.mac), (NeighbourState::Unproven, Some(MAC)));
    }
}

#[test]
fn forwarding_entries_of_bridges_are_not_neighbours() {
    const AF_BRIDGE: u8 = 7;
    assert_eq!(parse_neighbour(&neighbour(AF_BRIDGE, 3, 0x02, &[10, 0, 0, 9])), None);
}

#[test]
fn a_link_tells_what_made_it() {
    let mut body = vec![0; 16];
    body[2..4].copy_from_slice(&1_u16.to_ne_bytes());
    body[4..8].copy_from_slice(&12_u32.to_ne_bytes());
    body[8..12].copy_from_slice(&(Link::UP | Link::LOWER_UP).to_ne_bytes());
    body.extend(attribute(3, b"veth7\0"));
    body.extend(attribute(1, &MAC.0));
    body.extend(attribute(10, &3_u32.to_ne_bytes()));
    // The nested flag is set on some kernels.
    body.extend(attribute(18 | 0x8000, &attribute(1, b"veth\0")));
    let expected = Link {
        index: 12,
        name: "veth7".into(),
        hardware: 1,
        flags: Link::UP | Link::LOWER_UP,
        mac: Some(MAC),
        made_by: "veth".into(),
        master: Some(3),
    };
    assert_eq!(parse_body(RTM_NEWLINK, &body), Some(Message::Link(expected)));
}

#[test]
fn a_point_to_point_address_stands_in_the_range_of_the_far_end() {
    let (near, far) = ([10, 9, 0, 1], [10, 9, 0, 2]);
    let parsed = parse_address(&address(0, &[attribute(1, &far), attribute(2, &near)])).unwrap();
    assert_eq!(parsed.address, IpAddr::from(near));
    assert_eq!(parsed.prefix, Prefix::new(IpAddr::from(far), 24).unwrap());
}

#[test]
fn an_address_that_may_be_somebody_elses_is_not_ours_yet() {
    let own = attribute(1, &[10, 9, 0, 1]);
    let flags = |flags: u32| attribute(8, &flags.to_ne_bytes());
    assert!(parse_address(&address(0x80, std::slice::from_ref(&own))).is_some());
    assert!(parse_address(&address(0x40, std::slice::from_ref(&own))).is_none());
    assert!(parse_address(&address(0, &[own.clone(), flags(0x40)])).is_none());
    assert!(parse_address(&address(0, &[own.clone(), flags(0x08)])).is_none());
    assert!(parse_address(&address(0, &[own, flags(0x44)])).is_some());
}

#[test]
fn only_default_routes_of_the_main_table_through_a_gateway_count() {
    let gateway = attribute(5, &[10, 0, 0, 1]);
    let out = attribute(4, &2_u32.to_ne_bytes());
    let metric = attribute(6, &600_u32.to_ne_bytes());
    let hop = NextHop { interface: 2, gateway: IpAddr::from([10, 0, 0, 1]), metric: 600 };
    let attributes = [gateway, out.clone(), metric].concat();
    assert_eq!(parse_default_route(&route(0, 254, 1, &attributes)), Some(vec![hop]));
    assert_eq!(parse_default_route(&route(0, 254, 1, &out)), Some(vec![]));
    assert_eq!(parse_default_route(&route(24, 254, 1, &attributes)), None);
    assert_eq!(parse_default_route(&route(0, 255, 1, &attributes)), None);
    // Unreachable.
    assert_eq!(parse_default_route(&route(0, 254, 7, &attributes)), None);
}

#[test]
fn all_next_hops_of_a_route_count_those_of_the_other_family_too() {
    let hop = |interface: u32, attributes: &[u8]| {
        let length = u16::try_from(8 + attributes.len()).unwrap();
        [&length.to_ne_bytes()[..], &[0, 0], &interface.to_ne_bytes(), attributes].concat()
    };
    let via = [&10_u16.to_ne_bytes()[..], &[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]].concat();
    let hops = [hop(2, &attribute(5, &[10, 0, 0, 1])), hop(3, &attribute(18, &via)), hop(4, &[])].concat();
    let parsed = parse_default_route(&route(0, 254, 1, &attribute(9, &hops))).unwrap();
    let pairs: Vec<_> = parsed.iter().map(|hop| (hop.interface, hop.gateway.to_string())).collect();
    assert_eq!(pairs, [(2, "10.0.0.1".to_owned()), (3, "fe80::1".to_owned())]);
}

#[test]
fn errors_are_told_wherever_they_stand() {
    let error = (-1_i32).to_ne_bytes();
    assert_eq!(parse(&message(NLMSG_ERROR, 0, &error))[0].message, Message::Error(-1));
    assert_eq!(parse(&message(NLMSG_DONE, 0, &error))[0].message, Message::Error(-1));
}

/// Whatever is cut or bent, the reader ends and stays inside.
#[test]
fn cut_and_bent_messages_are_skipped() {
    let mut whole = message(RTM_NEWNEIGH, 0, &neighbour(AF_INET6, 3, 0x02, &[7; 16]));
    whole.extend(message(RTM_NEWROUTE, 0, &route(0, 254, 1, &attribute(9, &[8, 0, 0, 0, 1, 0, 0, 0]))));
    for end in 0..whole.len() {
        let complete = parse(&whole[..end]).len();
        assert!(complete <= 1, "{end}");
    }
    for at in 0..whole.len() {
        for value in [0, 1, 3, 0x7f, 0xff] {
            let mut bent = whole.clone();
            bent[at] = value;
            assert!(parse(&bent).len() <= bent.len() / HEADER_SIZE);
        }
    }
}

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn message(message_type: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_SIZE + body.len()).unwrap();
    let mut out = [
        &length.to_ne_bytes()[..],
        &message_type.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &5_u32.to_ne_bytes(),
        &[0; 4],
        body,
    ]
    .concat();
    out.resize(align(out.len()), 0);
    out
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut out = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    out.resize(align(out.len()), 0);
    out
}

fn neighbour(family: u8, interface: u32, state: u16, address: &[u8]) -> Vec<u8> {
    let mut body = vec![family, 0, 0, 0];
    body.extend(interface.to_ne_bytes());
    body.extend(state.to_ne_bytes());
    body.extend([0, 1]);
    body.extend(attribute(1, address));
    body.extend(attribute(2, &MAC.0));
    let ages = [150_u32, 9, 9, 1].map(u32::to_ne_bytes).concat();
    body.extend(attribute(3, &ages));
    body
}

fn address(flags: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![AF_INET, 24, flags, 0];
    body.extend(2_u32.to_ne_bytes());
    body.extend(attributes.concat());
    body
}

fn route(prefix_length: u8, table: u8, kind: u8, attributes: &[u8]) -> Vec<u8> {
    let mut body = vec![AF_INET, prefix_length, 0, 0, table, 3, 0, kind, 0, 0, 0, 0];
    body.extend_from_slice(attributes);
    body
}
