use peerage_wire::id::Domain;

use super::*;

const START: Instant = Instant::from_micros(1_000_000_000);

fn at(millis: u64) -> Instant {
    START.after(Duration::from_millis(millis))
}

const fn node(number: u8) -> NodeId {
    NodeId { domain: Domain(7), hash: [number; 32] }
}

fn address(port: u16) -> SocketAddr {
    ([192, 0, 2, 1], port).into()
}

/// Lets time pass until `until` and returns what was ordered, with when in milliseconds.
fn run(carriers: &mut Carriers, until: Instant) -> Vec<(u64, Order)> {
    let mut orders = Vec::new();
    let mut now = START;
    loop {
        while let Some(order) = carriers.poll_order() {
            orders.push(((now - START).as_millis().try_into().unwrap(), order));
        }
        match carriers.next_at() {
            Some(due) if due <= until => {
                now = now.max(due);
                carriers.handle_timeout(now);
            }
            _ => return orders,
        }
    }
}

fn all() -> Carriers {
    Carriers::new(Carrier::ALL.to_vec())
}

/// Brings a server onto TLS and returns its connection.
fn on_tls(carriers: &mut Carriers, server: NodeId, now: u64) -> StreamId {
    carriers.asked(server, &[address(443)], at(now));
    let orders = run(carriers, at(now + 400));
    let stream = orders.iter().find_map(|(_, order)| match order {
        Order::Open { stream, .. } => Some(*stream),
        Order::Close(_) | Order::Probe { .. } | Order::Use { .. } | Order::Remember(_) => None,
    });
    let stream = stream.expect("UDP is silent");
    carriers.opened(stream);
    carriers.heard(server, Some(stream), at(now + 400));
    run(carriers, at(now + 400));
    assert_eq!(carriers.of(&server).0, Carrier::Tls);
    stream
}

/// Rule 6.106: where UDP answers, nothing else is ever tried.
#[test]
fn where_udp_answers_no_connection_is_made() {
    let mut carriers = all();
    carriers.asked(node(1), &[address(443)], at(0));
    carriers.heard(node(1), None, at(200));
    carriers.asked(node(1), &[address(443)], at(1_000));
    carriers.heard(node(1), None, at(2_500));
    assert_eq!(run(&mut carriers, at(60_000)), []);
    assert_eq!(carriers.of(&node(1)), (Carrier::Udp, None));
}

/// Rule 6.106: a connection is made after the head start of UDP, and counts only once the server has answered on it.
#[test]
fn where_udp_is_silent_tls_is_in_use_as_soon_as_the_server_answers_there() {
    let mut carriers = all();
    carriers.asked(node(1), &[address(443)], at(0));
    let orders = run(&mut carriers, at(400));
    let [(300, Order::Open { stream, carrier: Carrier::Tls, .. })] = orders[..] else { panic!("{orders:?}") };
    carriers.opened(stream);
    let probe = Order::Probe { server: node(1), address: address(443), stream: Some(stream) };
    assert_eq!(carriers.poll_order(), Some(probe));
    assert_eq!(carriers.of(&node(1)).0, Carrier::Udp, "whoever is there has said nothing yet");
    carriers.heard(node(1), Some(stream), at(450));
    assert_eq!(carriers.poll_order(), Some(Order::Use { server: node(1), stream: Some(stream) }));
    assert_eq!(carriers.of(&node(1)), (Carrier::Tls, Some(Why::Silent)));
}

#[test]
fn an_answer_over_udp_ends_the_attempts_beside_it() {
    let mut carriers = all();
    carriers.asked(node(1), &[address(443)], at(0));
    let orders = run(&mut carriers, at(300));
    let [(_, Order::Open { stream, .. })] = orders[..] else { panic!("{orders:?}") };
    carriers.heard(node(1), None, at(310));
    assert_eq!(run(&mut carriers, at(60_000)), [(0, Order::Close(stream))]);
}

#[test]
fn the_addresses_of_a_server_are_tried_one_beside_the_other_and_then_it_rests() {
    let mut carriers = Carriers::new(vec![Carrier::Udp, Carrier::Tls]);
    carriers.asked(node(1), &[address(7400), address(443)], at(0));
    let orders = run(&mut carriers, at(60_000));
    let opened = orders.iter().filter_map(|(at, order)| match order {
        Order::Open { address, .. } => Some((*at, address.port())),
        Order::Close(_) | Order::Probe { .. } | Order::Use { .. } | Order::Remember(_) => None,
    });
    assert_eq!(opened.collect::<Vec<_>>(), [(300, 7400), (650, 443)]);
    assert_eq!(
        orders.iter().filter(|(at, order)| *at == 8_650 && matches!(order, Order::Close(_))).count(),
        2
    );
    // Asked again and again it is tried anew after five, then ten seconds.
    carriers.asked(node(1), &[address(443)], at(9_000));
    let orders = run(&mut carriers, at(13_600));
    assert_eq!(orders, []);
    assert_eq!(run(&mut carriers, at(13_650)).len(), 1);
}

/// Rule 6.106: whatever a network lets through, it is found out before anything unlikely is tried.
#[test]
fn where_only_http_passes_that_is_tried_within_two_seconds() {
    let mut carriers = all();
    carriers.asked(node(1), &[address(4240), address(443), address(80)], at(0));
    let orders = run(&mut carriers, at(2_000));
    let tried = orders.iter().find_map(|(at, order)| match order {
        Order::Open { stream, carrier: Carrier::Ws, address } => Some((*at, *stream, address.port())),
        Order::Open { .. }
        | Order::Close(_)
        | Order::Probe { .. }
        | Order::Use { .. }
        | Order::Remember(_) => None,
    });
    let Some((1_350, stream, 80)) = tried else { panic!("{orders:?}") };
    carriers.heard(node(1), Some(stream), at(2_000));
    assert_eq!(carriers.of(&node(1)).0, Carrier::Ws);
    assert_eq!(carriers.address(&node(1)), Some(address(80)));
    assert_eq!(carriers.address(&node(2)), None);
    // The second server of this network is asked in the same way, and at once.
    carriers.asked(node(2), &[address(443), address(80)], at(3_000));
    run(&mut carriers, at(2_000));
    let orders = run(&mut carriers, at(3_000));
    let [(_, Order::Open { carrier: Carrier::Ws, address: first, .. })] = orders[..] else {
        panic!("{orders:?}")
    };
    assert_eq!(first.port(), 80);
}

#[test]
fn a_way_that_fails_at_once_leaves_its_turn_to_the_next() {
    let mut carriers = all();
    carriers.asked(node(1), &[address(7400), address(443)], at(0));
    let orders = run(&mut carriers, at(300));
    let [(_, Order::Open { stream, .. })] = orders[..] else { panic!("{orders:?}") };
    carriers.closed(stream, at(320));
    assert_eq!(carriers.next_at(), Some(at(320)));
}

/// Rule 6.107: what a node asks before it knows its networks, or while they change, would be lost otherwise.
#[test]
fn a_server_that_has_not_answered_when_the_network_changes_is_asked_in_the_other_ways() {
    let mut carriers = all();
    carriers.asked(node(1), &[address(443)], at(0));
    carriers.network_changed(None, at(100));
    assert_eq!(carriers.next_at(), Some(at(400)));
    let orders = run(&mut carriers, at(400));
    assert!(matches!(orders[..], [(_, Order::Open { carrier: Carrier::Tls, .. })]), "{orders:?}");
}

/// Rule 6.107: the first silence in a network shows what to do about the second server.
#[test]
fn the_second_server_of_a_network_without_udp_has_no_head_start_to_wait_for() {
    let mut carriers = all();
    on_tls(&mut carriers, node(1), 0);
    carriers.asked(node(2), &[address(443)], at(1_000));
    assert_eq!(carriers.next_at(), Some(at(1_000)));
}

/// Rule 6.108: UDP that dies later is noticed by its silence, and UDP that is lossy by what is lost.
#[test]
fn udp_that_stops_answering_is_left_after_two_seconds() {
    let mut carriers = all();
    carriers.asked(node(1), &[address(443)], at(0));
    carriers.heard(node(1), None, at(20));
    carriers.asked(node(1), &[address(443)], at(10_000));
    assert_eq!(carriers.next_at(), Some(at(12_000)));
}

#[test]
fn udp_that_loses_most_of_what_is_sent_is_left_although_it_answers_now_and_then() {
    let mut carriers = all();
    for round in 0..7_u64 {
        carriers.asked(node(1), &[address(443)], at(round * 4_000));
        if round % 4 == 0 {
            carriers.heard(node(1), None, at(round * 4_000 + 20));
        } else {
            carriers.heard(node(1), None, at(round * 4_000 + 1_900));
            carriers.lost(node(1), at(round * 4_000 + 3_500));
        }
    }
    let orders = run(&mut carriers, at(28_000));
    let opened = orders.iter().find_map(|(_, order)| match order {
        Order::Open { stream, .. } => Some(*stream),
        Order::Close(_) | Order::Probe { .. } | Order::Use { .. } | Order::Remember(_) => None,
    });
    let stream = opened.expect("a connection is made");
    carriers.heard(node(1), Some(stream), at(28_000));
    assert_eq!(carriers.of(&node(1)), (Carrier::Tls, Some(Why::Lossy)));
}

/// Rule 6.109: UDP is asked ever more rarely whether it works again, and one answer brings all servers back.
#[test]
fn udp_is_probed_with_back_off_and_taken_again_when_it_answers() {
    let mut carriers = all();
    let first = on_tls(&mut carriers, node(1), 0);
    let second = on_tls(&mut carriers, node(2), 500);
    let mut probed = Vec::new();
    for second in 1..1_000 {
        carriers.asked(node(1), &[address(443)], at(second * 1_000));
        carriers.asked(node(2), &[address(443)], at(second * 1_000));
        for (_, order) in run(&mut carriers, at(second * 1_000)) {
            if let Order::Probe { stream: None, .. } = order {
                probed.push(second);
            }
        }
    }
    assert_eq!(probed, [31, 91, 211, 451, 931]);
    carriers.returned(node(1), at(1_000_000));
    let orders: Vec<_> = std::iter::from_fn(|| carriers.poll_order()).collect();
    let probe = Order::Probe { server: node(2), address: address(443), stream: None };
    let back = Order::Use { server: node(1), stream: None };
    assert_eq!(orders, [back, Order::Close(first), Order::Remember(None), probe]);
    carriers.returned(node(2), at(1_000_100));
    assert!(std::iter::from_fn(|| carriers.poll_order()).any(|order| order == Order::Close(second)));
    assert_eq!(carriers.next_at(), None);
}

#[test]
fn a_connection_that_breaks_is_made_anew_at_once_and_one_that_breaks_early_later() {
    let mut carriers = all();
    let stream = on_tls(&mut carriers, node(1), 0);
    carriers.closed(stream, at(60_000));
    assert_eq!(carriers.servers[&node(1)].next_at, Some(at(60_000)));
    assert_eq!(carriers.poll_order(), Some(Order::Use { server: node(1), stream: None }));
    let mut carriers = all();
    let stream = on_tls(&mut carriers, node(1), 0);
    carriers.closed(stream, at(1_000));
    assert_eq!(carriers.servers[&node(1)].next_at, Some(at(6_000)));
}

#[test]
fn a_connection_that_leaves_two_requests_unanswered_counts_as_broken() {
    let mut carriers = all();
    let stream = on_tls(&mut carriers, node(1), 0);
    carriers.lost(node(1), at(60_000));
    carriers.heard(node(1), Some(stream), at(60_500));
    carriers.lost(node(1), at(70_000));
    assert_eq!(carriers.poll_order(), None);
    carriers.lost(node(1), at(74_000));
    assert_eq!(carriers.poll_order(), Some(Order::Close(stream)));
    assert_eq!(carriers.of(&node(1)).0, Carrier::Udp);
}

#[test]
fn a_connection_that_nobody_needs_is_closed_and_one_of_another_network_at_once() {
    let mut carriers = all();
    let stream = on_tls(&mut carriers, node(1), 0);
    let orders = run(&mut carriers, at(200_000));
    assert!(orders.contains(&(150_000, Order::Close(stream))), "{orders:?}");
    let stream = on_tls(&mut carriers, node(1), 200_000);
    carriers.network_changed(None, at(200_400));
    let orders: Vec<_> = std::iter::from_fn(|| carriers.poll_order()).collect();
    assert_eq!(orders, [Order::Close(stream), Order::Use { server: node(1), stream: None }]);
    assert_eq!(carriers.next_at(), None);
}

#[test]
fn servers_are_remembered_up_to_a_limit_and_those_with_connections_stay() {
    let mut carriers = all();
    let stream = on_tls(&mut carriers, node(1), 0);
    for number in 0..2 * MAX_SERVERS {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_be_bytes());
        let server = NodeId { domain: Domain(8), hash };
        carriers.asked(server, &[address(443)], at(1_000));
        carriers.heard(server, None, at(1_000));
    }
    assert!(carriers.servers.len() <= MAX_SERVERS);
    carriers.closed(stream, at(60_000));
    assert_eq!(carriers.poll_order(), Some(Order::Use { server: node(1), stream: None }));
}

#[test]
fn with_udp_alone_nothing_is_ever_ordered() {
    let mut carriers = Carriers::new(vec![Carrier::Udp]);
    carriers.asked(node(1), &[address(443)], at(0));
    assert_eq!(run(&mut carriers, at(100_000)), []);
}

/// Rule 6.110.
#[test]
fn a_leg_is_tried_bare_before_it_goes_inside_tls_and_first_where_messages_go() {
    let mut carriers = Carriers::new(vec![Carrier::Udp, Carrier::Tls]);
    let v6 = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 7400));
    let all = [address(7400), address(443), v6];
    let ways = |carriers: &Carriers| {
        let LegWays { all, must_answer } = carriers.leg_ways(&node(1), &all);
        (all.into_iter().map(|way| (way.inside, way.address)).collect::<Vec<_>>(), must_answer)
    };
    let tls = Some(Carrier::Tls);
    let (bare, inside) =
        ([(None, all[0]), (None, v6), (None, all[1])], [(tls, all[0]), (tls, all[1]), (tls, v6)]);
    assert_eq!(ways(&carriers), ([bare, inside].concat(), false), "the other family comes second");

    carriers.asked(node(1), &[address(443)], at(0));
    let orders = run(&mut carriers, at(400));
    let [(_, Order::Open { stream, .. })] = orders[..] else { panic!("{orders:?}") };
    carriers.heard(node(1), Some(stream), at(450));
    let (used, must_answer) = ways(&carriers);
    assert_eq!(used[..2], [(None, all[1]), (tls, all[1])]);
    assert!(must_answer && used.len() == 6);
}

/// Rule 6.107: what has worked in a network is tried there at once the next time, beside UDP, and is forgotten when that works.
#[test]
fn what_is_known_of_a_network_is_tried_first() {
    let mut carriers = all();
    carriers.network_changed(Some(Carrier::Wss), at(0));
    carriers.asked(node(1), &[address(443)], at(0));
    let orders = run(&mut carriers, at(100));
    let [(0, Order::Open { stream, carrier: Carrier::Wss, .. })] = orders[..] else { panic!("{orders:?}") };
    carriers.heard(node(1), None, at(120));
    let orders: Vec<_> = std::iter::from_fn(|| carriers.poll_order()).collect();
    assert_eq!(orders, [Order::Remember(None), Order::Close(stream)]);
}

/// Rule 6.109: a better kind takes the place of a worse one once the server has answered on it, and each gets its turn.
#[test]
fn a_better_kind_is_tried_again_beside_the_one_in_use() {
    let mut carriers = all();
    carriers.network_changed(Some(Carrier::Ws), at(0));
    carriers.asked(node(1), &[address(443)], at(0));
    let orders = run(&mut carriers, at(100));
    let [(0, Order::Open { stream: worse, .. })] = orders[..] else { panic!("{orders:?}") };
    carriers.heard(node(1), Some(worse), at(100));
    run(&mut carriers, at(100));
    let mut tried = Vec::new();
    for second in (10..=100).step_by(10) {
        carriers.asked(node(1), &[address(443)], at(second * 1_000));
        let orders = run(&mut carriers, at(second * 1_000));
        tried.extend(orders.iter().filter_map(|(_, order)| match order {
            Order::Open { stream, carrier, .. } => Some((second, *carrier, *stream)),
            Order::Close(_) | Order::Probe { .. } | Order::Use { .. } | Order::Remember(_) => None,
        }));
        assert_eq!(carriers.of(&node(1)).0, Carrier::Ws, "until the server answers");
    }
    let [(40, Carrier::Tls, _), (100, Carrier::Wss, better)] = tried[..] else { panic!("{tried:?}") };
    carriers.opened(better);
    carriers.heard(node(1), Some(better), at(100_000));
    let orders: Vec<_> = std::iter::from_fn(|| carriers.poll_order()).collect();
    let used = Order::Use { server: node(1), stream: Some(better) };
    let probe = Order::Probe { server: node(1), address: address(443), stream: Some(better) };
    assert_eq!(orders, [probe, used, Order::Close(worse), Order::Remember(Some(Carrier::Wss))]);
}
