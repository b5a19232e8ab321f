use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::codec::{Candidate, CandidateKind, Transport, address_bytes, address_from};
use crate::id::{
    CommandId, DeviceId, Domain, LinkId, LocationId, LookupTag, NodeId, PlaceKey, PlacementKey, RecordKey,
    Segment, SessionId,
};
use crate::intro::{Introduction, KeyStatement};
use crate::limits::{
    MAX_ADDRESSES, MAX_CANDIDATES, MAX_DATAGRAM, MAX_ENTRIES, MAX_FLIGHT, MAX_FORWARDED, MAX_HEADS,
    MAX_HELLO, MAX_NAME, MAX_NODE_INFO, MAX_PARTS, MAX_RECORD, MAX_STRANGERS_REQUEST, MAX_TAGS,
};
use crate::packet::{Class, LONG_HEADER, SHORT_OVERHEAD};
use crate::record::SetSummary;
use crate::time::UnixTime;

const NODE: NodeId = NodeId { domain: Domain(0xdfe4_7365), hash: [3; 32] };

fn candidate(address: SocketAddr) -> Candidate {
    Candidate { kind: CandidateKind::Reflexive, transport: Transport::Tcp, address }
}

fn candidates(count: usize) -> Vec<Candidate> {
    vec![candidate("[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap()); count]
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    (any::<bool>(), any::<[u8; 4]>(), any::<u64>(), any::<u16>()).prop_map(|(v4, a, b, port)| {
        let global = (0x2001_0db8_u128 << 96) | u128::from(b);
        if v4 { (a, port).into() } else { (std::net::Ipv6Addr::from_bits(global), port).into() }
    })
}

fn any_node() -> impl Strategy<Value = NodeId> {
    any::<(u32, [u8; 32])>().prop_map(|(domain, hash)| NodeId { domain: Domain(domain), hash })
}

fn any_key() -> impl Strategy<Value = Option<RecordKey>> {
    any::<Option<[u8; 32]>>().prop_map(|key| key.map(RecordKey))
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..MAX_RECORD).prop_map(Bytes::from)
}

fn any_id() -> impl Strategy<Value = CommandId> {
    any::<[u8; 16]>().prop_map(CommandId)
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    vec(any_address().prop_map(candidate), 0..MAX_CANDIDATES)
}

fn any_page() -> impl Strategy<Value = Page> {
    let records = vec(vec(any::<u8>(), 0..300).prop_map(Bytes::from), 0..MAX_LIST);
    (records, any::<bool>()).prop_map(|(records, more)| Page { records, more })
}

fn any_table() -> impl Strategy<Value = Table> {
    prop::sample::select(Table::ALL.to_vec()).prop_map(|(table, _)| table)
}

fn any_segment() -> impl Strategy<Value = Segment> {
    let ends = any::<(u64, u64)>().prop_map(|(a, b)| (PlacementKey(a.min(b)), PlacementKey(a.max(b))));
    prop_oneof![Just(Segment::ALL), ends.prop_map(|(from, to)| Segment { from, to })]
}

fn any_place_key() -> impl Strategy<Value = PlaceKey> {
    any::<(u64, [u8; 32])>()
        .prop_map(|(place, key)| PlaceKey { place: PlacementKey(place), key: RecordKey(key) })
}

fn any_summary() -> impl Strategy<Value = SetSummary> {
    any::<(u32, [u8; 32])>().prop_map(|(count, sum)| SetSummary { count, sum })
}

fn any_submission() -> impl Strategy<Value = Submission> {
    let load = any::<([u64; 3], [u32; 3])>().prop_map(
        |([relayed_bytes, held_bytes, max_bytes], [relayed_tunnels, records, lacking])| Load {
            relayed_bytes,
            relayed_tunnels,
            records,
            held_bytes,
            max_bytes,
            lacking,
        },
    );
    let addresses = vec(any_address(), 0..=MAX_ADDRESSES);
    (any_id(), addresses, any::<(u64, bool)>(), load).prop_map(|(id, addresses, (version, leaving), load)| {
        Submission { id, addresses, version, leaving, load }
    })
}

fn any_refused() -> impl Strategy<Value = Refused> {
    let reason = prop::sample::select(RefusedReason::ALL.to_vec());
    (any::<(u32, u32)>(), reason).prop_map(|((domain, count), (reason, _))| Refused {
        domain: Domain(domain),
        reason,
        count,
    })
}

fn any_reconciled() -> impl Strategy<Value = Reconciled> {
    let parts = prop::collection::btree_map(any_place_key(), any_summary(), 1..=MAX_PARTS);
    let entries = prop::collection::btree_set(any::<(u64, u64, [u8; 4])>(), 0..=MAX_ENTRIES);
    prop_oneof![
        Just(Reconciled::Same),
        parts.prop_map(|parts| {
            Reconciled::Parts(parts.into_iter().map(|(to, summary)| Part { to, summary }).collect())
        }),
        entries.prop_map(|entries| {
            let entry = |(place, version, hash)| Entry { place: PlacementKey(place), version, hash };
            Reconciled::Entries(entries.into_iter().map(entry).collect())
        }),
    ]
}

fn any_flight(most: usize) -> impl Strategy<Value = Option<Bytes>> {
    prop::option::of(vec(any::<u8>(), 0..=most).prop_map(Bytes::from))
}

fn any_request() -> impl Strategy<Value = Request> {
    let tunnel = (any::<([u8; 16], [u8; 32])>(), "[a-z]{0,16}", any_candidates());
    let tunnel = (tunnel, prop::option::of(any_node()), any_flight(MAX_HELLO));
    let tunnel = tunnel.prop_map(|(((id, device), service, candidates), relay, hello)| {
        let (id, device) = (SessionId(id), DeviceId(device));
        Request::TunnelRequest(TunnelRequest { id, device, service, candidates, relay, hello })
    });
    let seen = (any_id(), any::<([u8; 32], [u8; 32])>()).prop_map(|(id, (key, location))| {
        Request::DeviceSeen { id, key: RecordKey(key), location: LocationId(location) }
    });
    let tags = vec(any::<[u8; 16]>().prop_map(LookupTag), 0..MAX_TAGS);
    let transfer = (any_table(), any_segment(), prop::option::of(any_place_key()))
        .prop_map(|(table, range, after)| Request::TransferPartition { table, range, after });
    let reconcile =
        (any_table(), any_place_key(), any_place_key(), any_summary()).prop_map(|(table, a, b, summary)| {
            Request::Reconcile { table, from: a.min(b), to: a.max(b), summary }
        });
    prop_oneof![
        any_key().prop_map(|after| Request::GetOperatorNodes { after }),
        (prop::option::of(vec(any::<u8>(), 32)), any_key())
            .prop_map(|(key, after)| Request::GetSuperNodes { key, after }),
        any_node().prop_map(Request::GetNode),
        any_node().prop_map(Request::GetNodeInfo),
        (tags, any_key()).prop_map(|(tags, after)| Request::GetTunnelNodes { tags, after }),
        tunnel,
        any_passing(),
        Just(Request::Ping),
        Just(Request::PingElsewhere),
        (any_key(), any_segment()).prop_map(|(after, range)| Request::GetDevices { after, range }),
        any::<Option<u32>>().prop_map(|domain| Request::GetHead { domain: domain.map(Domain) }),
        vec(any::<u32>().prop_map(Domain), 2..=MAX_HEADS).prop_map(Request::GetHeads),
        any_submission().prop_map(Request::SubmitSuperNode),
        transfer,
        reconcile,
        (any_id(), vec(any_refused(), 0..=MAX_LIST))
            .prop_map(|(id, refused)| Request::Refusals { id, refused }),
        any_bytes().prop_map(Request::Store),
        seen,
        any_id().prop_map(Request::Leave),
        Just(Request::Attach),
        (any_id(), any_bytes()).prop_map(|(id, head)| Request::Notify { id, head }),
        any_key().prop_map(|after| Request::GetRevocations { after }),
        Just(Request::GetDomainKey),
    ]
}

fn any_inner() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..=MAX_FORWARDED).prop_map(Bytes::from)
}

fn any_passing() -> impl Strategy<Value = Request> {
    let token = vec(any::<u8>(), 0..=128).prop_map(Bytes::from);
    prop_oneof![
        (any_node(), any_inner()).prop_map(|(to, inner)| Request::ForwardedTunnelRequest { to, inner }),
        (any_address(), any_inner(), token).prop_map(|(observed, inner, token)| Request::Forward(Forward {
            observed,
            inner,
            token
        })),
        (any::<[u8; 16]>(), any_node())
            .prop_map(|(link, peer)| Request::RelayJoin { link: LinkId(link), peer }),
    ]
}

fn any_passed() -> impl Strategy<Value = Reply> {
    use RelayRefusal::{DomainQuota, Duplicate, Full, Membership, Names, NoPeer, NodeQuota};
    let refusals = [NoPeer, NodeQuota, DomainQuota, Full, Names, Duplicate, Membership].map(Err);
    prop_oneof![
        prop::option::of(any_inner()).prop_map(Reply::ForwardedTunnelOpened),
        (any_bytes(), any_inner()).prop_map(|(token, inner)| Reply::Forwarded { token, inner }),
        Just(Reply::RelayJoined(Ok(()))),
        prop::sample::select(refusals.to_vec()).prop_map(Reply::RelayJoined),
    ]
}

fn any_reply() -> impl Strategy<Value = Reply> {
    let record = || prop::option::of(any_bytes());
    let stored = (any_table(), any::<([u8; 32], u64)>());
    let stored =
        stored.prop_map(|(table, (key, version))| Reply::Stored { table, key: RecordKey(key), version });
    let states = [
        SuperNodeState::Refused,
        SuperNodeState::Checking,
        SuperNodeState::Assigned,
        SuperNodeState::Unreachable,
        SuperNodeState::HandedOver,
        SuperNodeState::NotNeeded,
    ];
    let submitted = (any_id(), prop::sample::select(states.to_vec()))
        .prop_map(|(id, state)| Reply::SuperNodeSubmitted { id, state });
    prop_oneof![
        any_page().prop_map(Reply::OperatorNodes),
        any_page().prop_map(Reply::SuperNodes),
        record().prop_map(Reply::Node),
        record().prop_map(Reply::NodeInfo),
        any_page().prop_map(Reply::TunnelNodes),
        (any_candidates(), any_flight(MAX_FLIGHT))
            .prop_map(|(candidates, flight)| Reply::TunnelOpened { candidates, flight }),
        any_address().prop_map(|observed| Reply::Reping { observed }),
        any_passed(),
        any_page().prop_map(Reply::Devices),
        record().prop_map(Reply::Head),
        vec(any_bytes(), 2..=MAX_HEADS).prop_map(Reply::Heads),
        stored,
        submitted,
        any_page().prop_map(Reply::Partition),
        any_reconciled().prop_map(Reply::Reconciled),
        any_id().prop_map(Reply::RefusalsNoted),
        any_id().prop_map(Reply::DeviceNoted),
        any_id().prop_map(Reply::Left),
        (any_address(), record()).prop_map(|(observed, head)| Reply::Attached { observed, head }),
        any_id().prop_map(Reply::Notified),
        any_page().prop_map(Reply::Revocations),
        record().prop_map(Reply::DomainKey),
        any::<u64>().prop_map(|millis| Reply::StaleTime(UnixTime::from_millis(millis))),
    ]
}

/// The largest request of each command, and the largest reply to it.
fn largest() -> Vec<(Request, Reply)> {
    let id = CommandId([1; 16]);
    let after = Some(RecordKey([2; 32]));
    let observed = candidates(1)[0].address;
    let record = |size| Some(Bytes::from(vec![1; size]));
    let full = || Page::fill(std::iter::repeat_n(Bytes::from(vec![1; 68]), 100), MAX_DATAGRAM);
    let tunnel = TunnelRequest {
        id: SessionId([1; 16]),
        device: DeviceId([2; 32]),
        service: "s".repeat(MAX_NAME),
        candidates: candidates(MAX_CANDIDATES),
        relay: Some(NODE),
        hello: Some(vec![1; MAX_HELLO].into()),
    };
    let flight = Some(vec![1; MAX_FLIGHT].into());
    let opened = Reply::TunnelOpened { candidates: candidates(MAX_CANDIDATES), flight };
    let stored = Reply::Stored { table: Table::Head, key: RecordKey([1; 32]), version: u64::MAX };
    let key = Some(vec![1; 32]);
    let seen = Request::DeviceSeen { id, key: RecordKey([1; 32]), location: LocationId([1; 32]) };
    vec![
        (Request::GetOperatorNodes { after }, Reply::OperatorNodes(full())),
        (Request::GetSuperNodes { key, after }, Reply::SuperNodes(full())),
        (Request::GetNode(NODE), Reply::Node(record(MAX_RECORD))),
        (Request::GetNodeInfo(NODE), Reply::NodeInfo(record(MAX_NODE_INFO))),
        (
            Request::GetTunnelNodes { tags: vec![LookupTag([1; 16]); MAX_TAGS], after },
            Reply::TunnelNodes(full()),
        ),
        (Request::TunnelRequest(tunnel), opened),
        (Request::Ping, Reply::Reping { observed }),
        (Request::GetDevices { after, range: LONG }, Reply::Devices(full())),
        (Request::GetHead { domain: Some(Domain(u32::MAX)) }, Reply::Head(record(LARGEST_HEAD))),
        (
            Request::GetHeads(vec![Domain(u32::MAX); MAX_HEADS]),
            Reply::Heads(vec![vec![1; LARGEST_HEAD].into(); MAX_HEADS]),
        ),
        (Request::Store(Bytes::from(vec![1; MAX_RECORD])), stored),
        (seen, Reply::DeviceNoted(id)),
        (Request::Leave(id), Reply::Left(id)),
        (Request::Attach, Reply::Attached { observed, head: record(LARGEST_HEAD) }),
        (Request::Notify { id, head: vec![1; LARGEST_HEAD].into() }, Reply::Notified(id)),
        (Request::GetRevocations { after }, Reply::Revocations(full())),
        (Request::GetDomainKey, Reply::DomainKey(record(MAX_RECORD))),
    ]
    .into_iter()
    .chain(largest_of_holders())
    .chain(largest_of_passing())
    .collect()
}

/// What passes through somebody in between, at its largest: an inner answer is at most as long as the inner request.
fn largest_of_passing() -> [(Request, Reply); 3] {
    let inner = Bytes::from(vec![1; MAX_FORWARDED]);
    let token = Bytes::from(vec![1; 72]);
    // The longest answer goes with the shortest address.
    let observed = "192.0.2.1:1".parse().unwrap();
    let forward = Forward { observed, inner: inner.clone(), token: token.clone() };
    [
        (
            Request::ForwardedTunnelRequest { to: NODE, inner: inner.clone() },
            Reply::ForwardedTunnelOpened(Some(inner.clone())),
        ),
        (Request::Forward(forward), Reply::Forwarded { token, inner }),
        (
            Request::RelayJoin { link: LinkId([1; 16]), peer: NODE },
            Reply::RelayJoined(Err(RelayRefusal::Full)),
        ),
    ]
}

/// What passes between super-nodes and operators, at its largest.
fn largest_of_holders() -> [(Request, Reply); 4] {
    let id = CommandId([1; 16]);
    let (table, summary) = (Table::Node, SetSummary { count: u32::MAX, sum: [1; 32] });
    let submission = Submission {
        id,
        addresses: candidates(MAX_ADDRESSES).iter().map(|candidate| candidate.address).collect(),
        version: u64::MAX,
        leaving: true,
        load: Load {
            relayed_bytes: u64::MAX,
            relayed_tunnels: u32::MAX,
            records: u32::MAX,
            held_bytes: u64::MAX,
            max_bytes: u64::MAX,
            lacking: u32::MAX,
        },
    };
    let refused = Refused { domain: Domain(u32::MAX), reason: RefusedReason::Rate, count: u32::MAX };
    let page = Page::fill(std::iter::repeat_n(Bytes::from(vec![1; 68]), 100), MAX_DATAGRAM);
    [
        (
            Request::SubmitSuperNode(submission),
            Reply::SuperNodeSubmitted { id, state: SuperNodeState::NotNeeded },
        ),
        (
            Request::TransferPartition { table, range: Segment::ALL, after: Some(PlaceKey::MAX) },
            Reply::Partition(page),
        ),
        (
            Request::Reconcile { table, from: PlaceKey::MIN, to: PlaceKey::MAX, summary },
            Reply::Reconciled(Reconciled::Parts(parts(MAX_PARTS as u64))),
        ),
        (Request::Refusals { id, refused: vec![refused; MAX_LIST] }, Reply::RefusalsNoted(id)),
    ]
}

/// The last positions of so many places, each with the largest numbers.
fn parts(count: u64) -> Vec<Part> {
    let summary = SetSummary { count: u32::MAX, sum: [1; 32] };
    (0..count).map(|n| Part { to: PlaceKey::last_at(PlacementKey(u64::MAX - count + n)), summary }).collect()
}

fn entries(count: u64) -> Vec<Entry> {
    (0..count).map(|n| Entry { place: PlacementKey(n), version: u64::MAX - n, hash: [7; 4] }).collect()
}

/// A range whose ends need all their bytes.
const LONG: Segment = Segment { from: PlacementKey(1), to: PlacementKey(u64::MAX) };

/// A Head whose every number has all its bytes; the tests of records find the same.
const LARGEST_HEAD: usize = 361;

/// Rule 4.11: who does not know that a question may be about several domains reads one about the first, and answers that.
#[test]
fn a_question_for_several_heads_is_one_for_the_first_to_those_who_know_no_other() {
    let bytes = Request::GetHeads(vec![Domain(1), Domain(2)]).encode();
    let mut map = Map::parse(&bytes[PLAINTEXT_HEADER..]).unwrap();
    assert_eq!((bytes[0], map.optional_uint(1)), (number::GET_HEAD, Ok(Some(1_u32))));
    assert_eq!(map.finish(), Ok(()));
    assert_eq!(Reply::heads(vec![]), Reply::Head(None));
    let head = Bytes::from_static(b"head");
    assert_eq!(Reply::heads(vec![head.clone()]), Reply::Head(Some(head)));
}

/// Rule 4.11: at most three, and the first where it always was.
#[test]
fn a_list_of_heads_is_as_long_as_a_datagram_allows_and_has_a_first() {
    let request = |first: bool, others: &[&[u8]]| {
        request_of(number::GET_HEAD, |map| {
            map.optional_uint(1, first.then_some(1_u32)).list_of_bytes(128, others);
        })
    };
    assert_eq!(request(true, &[&[0, 0, 0, 2]]), Ok(Request::GetHeads(vec![Domain(1), Domain(2)])));
    assert_eq!(request(false, &[&[0, 0, 0, 2]]), Err(BadMessage::Malformed(Malformed::Missing(1))));
    for others in [&[&[0, 0, 0, 2][..]; 3][..], &[&[0, 0, 2][..]], &[&[][..]]] {
        assert_eq!(request(true, others), Err(BadMessage::Malformed(Malformed::Type(128))));
    }
    let reply = |first: bool, others: &[&[u8]]| {
        reply_of(number::GET_HEAD + 1, |map| {
            map.optional_bytes(1, first.then_some(b"head")).list_of_bytes(128, others);
        })
    };
    assert!(matches!(reply(true, &[b"a", b"b"]), Ok(Reply::Heads(heads)) if heads.len() == 3));
    assert_eq!(reply(true, &[b"a", b"b", b"c"]), Err(BadMessage::Malformed(Malformed::Type(128))));
    assert_eq!(reply(false, &[b"a"]), Err(BadMessage::Malformed(Malformed::Missing(1))));
}

/// Rules 4.2 and 4.6: the request that asks for an answer is as long as the longest such answer.
#[test]
fn every_request_is_padded_to_the_size_of_its_largest_reply() {
    for (request, reply) in largest() {
        let longest = REPLY_OVERHEAD + reply.encode().len();
        // A forwarded message is as long as what is inside, and the answer inside is no longer than the request.
        let padded = request.reply_size().max(SHORT_OVERHEAD + request.encode().len());
        assert!(longest <= padded, "{request:?}: {longest}");
        assert!(request.reply_size() <= MAX_DATAGRAM);
    }
    let stale = REPLY_OVERHEAD + Reply::StaleTime(UnixTime::from_millis(u64::MAX)).encode().len();
    assert!(largest().iter().all(|(request, _)| stale <= request.reply_size()));
}

/// Rule 4.3: what each command needs at most, in bytes of its short form.
#[test]
fn every_request_fits_into_a_datagram() {
    for (request, _) in largest() {
        let short = SHORT_OVERHEAD + request.encode().len();
        let long = LONG_HEADER + 16 + request.encode().len();
        // Whoever forwards to a node that is attached to it has a context with it.
        let needs_context = matches!(request, Request::Forward(_));
        assert!(short <= MAX_DATAGRAM && (long <= MAX_DATAGRAM || needs_context), "{request:?}");
    }
}

/// Rules 3.7 and 7.29: a TunnelRequest goes together with the introduction of a member, whose record has at most 241 bytes, and with a
/// cookie: with all candidates; with a relay, if it has two less; with a hello as well, if it has eight; through a forwarder
/// with eight, or with a hello, if its plaintext is short enough. A Store of a full record does not, and needs a receiver that
/// knows the sender.
#[test]
fn a_full_tunnel_request_fits_beside_an_introduction() {
    let statement = KeyStatement {
        node: NODE,
        key: [4; 32],
        not_before: UnixTime::from_secs(1),
        not_after: UnixTime::from_secs(2),
        signature: [5; 64],
    };
    let introduction = Introduction { record: vec![0; 241], statement }.to_bytes().len();
    let size = |request: &Request| LONG_HEADER + introduction + 16 + request.encode().len();
    let request = |count, relay, hello: Option<usize>| {
        Request::TunnelRequest(TunnelRequest {
            id: SessionId([1; 16]),
            device: DeviceId([2; 32]),
            service: "s".repeat(MAX_NAME),
            candidates: candidates(count),
            relay,
            hello: hello.map(|size| vec![3; size].into()),
        })
    };
    let tunnel = |count, relay| size(&request(count, relay, None));
    let relayed = (tunnel(MAX_CANDIDATES - 2, Some(NODE)), tunnel(8, Some(NODE)));
    assert_eq!((introduction, tunnel(MAX_CANDIDATES, None), relayed), (391, 1_171, (1_160, 910)));
    let prepared = size(&request(8, Some(NODE), Some(MAX_HELLO)));
    assert!(prepared + crate::packet::COOKIE_SIZE <= MAX_DATAGRAM, "{prepared}");
    let room = MAX_FORWARDED - LONG_HEADER - introduction - crate::packet::COOKIE_SIZE - 16;
    assert_eq!(room, MAX_STRANGERS_REQUEST);
    assert!(request(0, Some(NODE), Some(218)).encode().len() <= MAX_STRANGERS_REQUEST);
    assert!(tunnel(MAX_CANDIDATES, None) + crate::packet::COOKIE_SIZE <= MAX_DATAGRAM);
    assert!(relayed.0 + crate::packet::COOKIE_SIZE <= MAX_DATAGRAM);
    assert!(relayed.1 + crate::packet::COOKIE_SIZE <= MAX_FORWARDED);
    for (request, _) in largest() {
        let alone = matches!(
            request,
            Request::Store(_)
                | Request::TunnelRequest(_)
                | Request::ForwardedTunnelRequest { .. }
                | Request::Forward(_)
        );
        assert_eq!(size(&request) > MAX_DATAGRAM, alone, "{request:?}");
    }
}

/// Rule 4.1: odd requests, each answered by the next number; StaleTime answers all.
#[test]
fn requests_are_odd_and_their_answers_follow() {
    let mut numbers = Vec::new();
    for (request, reply) in largest() {
        assert_eq!(request.number() % 2, 1);
        assert_eq!(reply.number(), request.number() + 1);
        assert!(reply.answers(request.number()));
        assert!(Reply::StaleTime(UnixTime::default()).answers(request.number()));
        for (other, _) in largest() {
            assert_eq!(reply.answers(other.number()), other.number() == request.number());
        }
        numbers.push(request.number());
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (1..=45).step_by(2).collect::<Vec<u8>>());
}

/// Rule 4.1: reserved and unknown numbers are refused by name, also where a reply's number is sent as a request.
#[test]
fn every_other_command_number_is_refused() {
    let known: Vec<_> = largest().iter().map(|(request, _)| request.number()).collect();
    for command in 0..=u8::MAX {
        let bytes = [command, 0, 1, 0xa0];
        let refused = Err(BadMessage::Command(command));
        assert_eq!(Request::decode(&bytes) == refused, !known.contains(&command), "{command}");
        let answers = command == number::STALE_TIME || known.contains(&command.wrapping_sub(1));
        assert_eq!(Reply::decode(&bytes).map(drop) == refused.map(drop), !answers, "{command}");
    }
}

/// Rule 4.3: only what reads is of the class that reader threads answer.
#[test]
fn reads_change_nothing_and_everything_else_is_of_the_other_class() {
    for (request, _) in largest() {
        let has_effect = matches!(
            request,
            Request::Store(_)
                | Request::SubmitSuperNode(_)
                | Request::DeviceSeen { .. }
                | Request::Refusals { .. }
                | Request::Leave(_)
                | Request::Attach
                | Request::Notify { .. }
                | Request::TunnelRequest(_)
                | Request::ForwardedTunnelRequest { .. }
                | Request::Forward(_)
                | Request::RelayJoin { .. }
        );
        assert_eq!(request.class() == Class::Other, has_effect, "{request:?}");
    }
}

/// Rule 3.12: what has an effect can be told from its repetition.
#[test]
fn commands_with_effects_carry_something_to_recognise_them_by() {
    // Of what is forwarded, it is inside.
    let forwarded =
        |request: &Request| matches!(request, Request::ForwardedTunnelRequest { .. } | Request::Forward(_));
    let all = largest().into_iter().filter(|(request, _)| !forwarded(request));
    for (request, _) in all.filter(|(request, _)| request.class() == Class::Other) {
        let bytes = request.encode();
        let mut map = Map::parse(&bytes[PLAINTEXT_HEADER..]).unwrap();
        let field = map.optional_bytes(1).unwrap().map(<[u8]>::len);
        let expected = if request == Request::Attach {
            None
        } else if matches!(request, Request::Store(_)) {
            Some(MAX_RECORD)
        } else {
            Some(CommandId::SIZE)
        };
        assert_eq!(field, expected, "{request:?}");
    }
}

/// Rule 4.2: the padding of a request is zeros and nothing else.
#[test]
fn padding_must_be_zeros() {
    let mut bytes = Request::GetNode(NODE).encode();
    bytes.resize(500, 0);
    assert_eq!(Request::decode(&bytes), Ok(Request::GetNode(NODE)));
    for at in Request::GetNode(NODE).encode().len()..500 {
        bytes[at] = 1;
        assert_eq!(Request::decode(&bytes), Err(Malformed::Trailing.into()), "{at}");
        bytes[at] = 0;
    }
}

/// Rule 2.3: a request with a field that may not be overlooked is dropped; a hint is passed over.
#[test]
fn unknown_fields_of_a_command_matter_below_128_only() {
    let with = |key: u64| {
        let mut body = MapWriter::new();
        body.uint(key, 1_u64);
        Request::decode(&frame(number::PING, &body))
    };
    assert_eq!(with(2), Err(Malformed::Unknown(2).into()));
    assert_eq!(with(128), Ok(Request::Ping));
}

/// Rule 2.5: candidates of kinds and transports that this version does not know are left out, the rest is used.
#[test]
fn unknown_kinds_of_candidates_are_left_out() {
    let known = candidate("192.0.2.1:7400".parse().unwrap());
    let mut body = MapWriter::new();
    body.list_of_maps(1, &[(1_u64, 1_u64), (2, 6), (3, 1), (1, 200)], |(transport, kind)| {
        let mut map = MapWriter::new();
        map.bytes(1, &address_bytes(known.address)).uint(2, *transport).uint(3, *kind);
        map
    });
    let reply = Reply::decode(&frame(number::TUNNEL_REQUEST + 1, &body));
    let ethernet = Candidate { kind: CandidateKind::Ethernet, transport: Transport::Udp, ..known };
    assert_eq!(reply, Ok(Reply::TunnelOpened { candidates: vec![ethernet, known], flight: None }));
}

/// Rule 2.5: an IPv4 address has one form, though sockets know two.
#[test]
fn mapped_addresses_are_written_as_ipv4_and_not_read() {
    let mapped: SocketAddr = "[::ffff:192.0.2.1]:631".parse().unwrap();
    assert_eq!(address_from(&address_bytes(mapped)), Some("192.0.2.1:631".parse().unwrap()));
    let raw = [&[0; 10][..], &[0xff, 0xff, 192, 0, 2, 1], &631_u16.to_be_bytes()].concat();
    assert_eq!(address_from(&raw), None);
}

/// Rule 4.4: a page takes records in order while they fit, and says whether more follow.
#[test]
fn a_page_is_filled_and_says_whether_more_follow() {
    let records = |sizes: &[usize]| sizes.iter().map(|n| Bytes::from(vec![7; *n])).collect::<Vec<_>>();
    let fill = |sizes: &[usize], size| {
        let page = Page::fill(records(sizes), size);
        let reply = Reply::Devices(page.clone());
        assert!(REPLY_OVERHEAD + reply.encode().len() <= size.max(REPLY_OVERHEAD + 8), "{sizes:?}");
        (page.records.len(), page.more)
    };
    assert_eq!(fill(&[], 1_200), (0, false));
    assert_eq!(fill(&[400, 400], 1_200), (2, false));
    assert_eq!(fill(&[400, 400, 400], 1_200), (2, true));
    assert_eq!(fill(&[900, 100, 900], 1_200), (2, true));
    assert_eq!(fill(&[10; 16], 1_200), (16, false));
    assert_eq!(fill(&[10; 17], 1_200), (16, true));
    assert_eq!(fill(&[900], 500), (0, true));
    assert_eq!(fill(&[900], 0), (0, true));
    assert_eq!(fill(&[1_145], 1_200), (1, false));
    assert_eq!(fill(&[1_146], 1_200), (0, true));
}

#[test]
fn lists_beyond_their_limits_are_refused() {
    let tags = vec![[1_u8; 16]; MAX_TAGS + 1];
    let mut body = MapWriter::new();
    body.list_of_bytes(1, &tags);
    assert_eq!(Request::decode(&frame(number::GET_TUNNEL_NODES, &body)), Err(Malformed::Type(1).into()));
    let page = Page { records: vec![Bytes::new(); MAX_LIST + 1], more: false };
    assert_eq!(Reply::decode(&Reply::Devices(page).encode()), Err(Malformed::Type(1).into()));
    let many = Reply::TunnelOpened { candidates: candidates(MAX_CANDIDATES + 1), flight: None };
    assert_eq!(Reply::decode(&many.encode()), Err(Malformed::Type(1).into()));
    let long = Reply::TunnelOpened { candidates: vec![], flight: Some(vec![1; MAX_FLIGHT + 1].into()) };
    assert_eq!(Reply::decode(&long.encode()), Err(Malformed::Type(2).into()));
}

/// Writes the body of a command and reads it.
fn request_of(command: u8, write: impl FnOnce(&mut MapWriter)) -> Result<Request, BadMessage> {
    let mut body = MapWriter::new();
    write(&mut body);
    Request::decode(&frame(command, &body))
}

fn reply_of(command: u8, write: impl FnOnce(&mut MapWriter)) -> Result<Reply, BadMessage> {
    let mut body = MapWriter::new();
    write(&mut body);
    Reply::decode(&frame(command, &body))
}

/// Rule 4.3: both ends of the range of GetDevices may be left out, and then mean the first and the last place of all.
#[test]
fn devices_are_asked_for_in_a_range_whose_ends_may_be_left_out() {
    let place = PlacementKey(7 << 32);
    let read = |from: Option<PlacementKey>, to: Option<PlacementKey>| {
        let [from, to] = [from, to].map(|end| end.map(PlacementKey::to_bytes));
        request_of(number::GET_DEVICES, |map| {
            map.optional_bytes(3, from.as_ref().map(<[u8; 8]>::as_slice));
            map.optional_bytes(4, to.as_ref().map(<[u8; 8]>::as_slice));
        })
    };
    let range = |from, to| Ok(Request::GetDevices { after: None, range: Segment { from, to } });
    assert_eq!(read(None, None), range(PlacementKey::MIN, PlacementKey::MAX));
    assert_eq!(read(Some(place), None), range(place, PlacementKey::MAX));
    assert_eq!(read(None, Some(place)), range(PlacementKey::MIN, place));
    assert_eq!(read(Some(place), Some(place)), range(place, place));
    assert_eq!(read(Some(PlacementKey(2)), Some(PlacementKey(1))), Err(Malformed::Type(4).into()));
}

/// Rules 4.7 and 4.8: a range that ends before it begins is no range.
#[test]
fn ranges_that_end_before_they_begin_are_refused() {
    let (first, last) = (PlacementKey(1), PlacementKey(2));
    let transfer = |from, to| {
        let range = Segment { from, to };
        Request::decode(&Request::TransferPartition { table: Table::Node, range, after: None }.encode())
    };
    assert!(transfer(first, last).is_ok() && transfer(first, first).is_ok());
    assert_eq!(transfer(last, first), Err(Malformed::Type(3).into()));
    let reconcile = |from, to| {
        let (table, summary) = (Table::Node, SetSummary::default());
        Request::decode(&Request::Reconcile { table, from, to, summary }.encode())
    };
    let [first, last] = [first, last].map(PlaceKey::first_at);
    assert!(reconcile(first, last).is_ok() && reconcile(first, first).is_ok());
    assert_eq!(reconcile(last, first), Err(Malformed::Type(3).into()));
}

/// Rule 2.6: a table that this version does not know is not compared and not handed over.
#[test]
fn unknown_tables_are_refused() {
    let place = PlaceKey::MIN.to_bytes();
    let transfer = request_of(number::TRANSFER_PARTITION, |map| {
        map.uint(1, 9_u8).bytes(2, &[0; 8]).bytes(3, &[0; 8]);
    });
    let reconcile = request_of(number::RECONCILE, |map| {
        map.uint(1, 0_u8).bytes(2, &place).bytes(3, &place).uint(4, 0_u8).bytes(5, &[0; 32]);
    });
    assert_eq!(transfer, Err(Malformed::Type(1).into()));
    assert_eq!(reconcile, Err(Malformed::Type(1).into()));
}

/// Rule 4.8: the fullest answers fit into a datagram, and one part more would not.
#[test]
fn as_many_parts_are_stated_as_fit_into_a_datagram() {
    let size = |reconciled| REPLY_OVERHEAD + Reply::Reconciled(reconciled).encode().len();
    assert!(size(Reconciled::Parts(parts(MAX_PARTS as u64))) <= MAX_DATAGRAM);
    assert!(size(Reconciled::Parts(parts(MAX_PARTS as u64 + 1))) > MAX_DATAGRAM);
    assert!(size(Reconciled::Entries(entries(MAX_ENTRIES as u64))) <= MAX_DATAGRAM);
}

/// Rule 4.8: parts and entries come in ascending order, within their limits, and one of the three forms at a time.
#[test]
fn an_answer_to_reconcile_has_one_form_and_one_order() {
    let read = |reconciled| Reply::decode(&Reply::Reconciled(reconciled).encode());
    let refused = |key| Err(Malformed::Type(key).into());
    assert!(read(Reconciled::Entries(Vec::new())).is_ok());
    assert!(read(Reconciled::Entries(entries(MAX_ENTRIES as u64))).is_ok());
    assert_eq!(read(Reconciled::Entries(entries(MAX_ENTRIES as u64 + 1))), refused(3));
    assert_eq!(read(Reconciled::Parts(parts(MAX_PARTS as u64 + 1))), refused(2));
    for (a, b) in [(0, 1), (1, 1)] {
        let (mut parts, mut entries) = (parts(3), entries(3));
        parts[a] = parts[b + 1];
        entries[a] = entries[b + 1];
        assert_eq!(read(Reconciled::Parts(parts)), refused(2));
        assert_eq!(read(Reconciled::Entries(entries)), refused(3));
    }
    let form = |same, bytes: Option<&[u8]>| {
        reply_of(number::RECONCILE + 1, |map| {
            map.flag(1, same).optional_bytes(3, bytes);
        })
    };
    assert_eq!(form(true, None), Ok(Reply::Reconciled(Reconciled::Same)));
    assert_eq!(form(false, None), refused(2));
    assert_eq!(form(true, Some(&[])), refused(2));
    assert_eq!(form(false, Some(&[0; Entry::SIZE - 1])), refused(3));
    assert_eq!(form(false, Some(&[0; Entry::SIZE + 1])), refused(3));
}

/// Rule 4.9: a state that this version does not know says nothing that it could act upon.
#[test]
fn unknown_states_of_a_super_node_are_refused() {
    let read = |state: u8| {
        reply_of(number::SUBMIT_SUPER_NODE + 1, |map| {
            map.bytes(1, &[1; 16]).uint(2, state);
        })
    };
    let id = CommandId([1; 16]);
    assert_eq!(read(4), Ok(Reply::SuperNodeSubmitted { id, state: SuperNodeState::HandedOver }));
    assert_eq!(read(6), Err(Malformed::Type(2).into()));
}

/// Rule 4.9: a node without addresses, load or record says so with what is left out or zero.
#[test]
fn a_submission_with_nothing_in_it_is_read() {
    let (id, load) = (CommandId([1; 16]), Load::default());
    let submission = Submission { id, addresses: vec![], version: 0, leaving: false, load };
    let request = Request::SubmitSuperNode(submission);
    assert_eq!(Request::decode(&request.encode()), Ok(request));
}

/// Rule 4.10: reasons of a later version are left out, the others are counted.
#[test]
fn refusals_for_unknown_reasons_are_left_out() {
    let read = request_of(number::REFUSALS, |map| {
        map.bytes(1, &[1; 16]).list_of_maps(2, &[(5_u32, 2_u8), (6, 6), (7, 0)], |(domain, reason)| {
            let mut map = MapWriter::new();
            map.uint(1, *domain).uint(2, *reason).uint(3, 9_u32);
            map
        });
    });
    let refused = Refused { domain: Domain(5), reason: RefusedReason::Rate, count: 9 };
    assert_eq!(read, Ok(Request::Refusals { id: CommandId([1; 16]), refused: vec![refused] }));
    let many = Request::Refusals { id: CommandId([1; 16]), refused: vec![refused; MAX_LIST + 1] };
    assert_eq!(Request::decode(&many.encode()), Err(Malformed::Type(2).into()));
}

proptest! {
    /// Rule 4.2: every request survives the wire, with any padding, and none of its parts is one.
    #[test]
    fn requests_are_read_back_as_written(request in any_request(), padding in 0..64_usize) {
        let mut bytes = request.encode();
        let whole = bytes.len();
        for length in [0, 1, 2, 3, whole / 2, whole - 1] {
            prop_assert!(Request::decode(&bytes[..length]).is_err());
        }
        bytes.resize(whole + padding, 0);
        prop_assert_eq!(Request::decode(&bytes), Ok(request));
    }

    #[test]
    fn replies_are_read_back_as_written(reply in any_reply()) {
        let bytes = reply.encode();
        prop_assert!(Reply::decode(&bytes[..bytes.len() - 1]).is_err());
        prop_assert_eq!(Reply::decode(&bytes), Ok(reply));
    }

    /// Rule 2.1: nothing has two encodings.
    #[test]
    fn a_changed_byte_gives_an_error_or_another_message(
        request in any_request(),
        at in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
    ) {
        let mut bytes = request.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert_ne!(Request::decode(&bytes).ok(), Some(request));
    }

    #[test]
    fn random_bytes_never_panic(command in 0..66_u8, bytes in vec(any::<u8>(), 0..100)) {
        let length = u16::try_from(bytes.len()).unwrap();
        let framed = [&[command], &length.to_be_bytes()[..], &bytes].concat();
        if let Ok(request) = Request::decode(&framed) {
            prop_assert_eq!(request.number(), command);
        }
        if let Ok(reply) = Reply::decode(&framed) {
            prop_assert_eq!(reply.number(), command);
        }
        let _ = Request::decode(&bytes);
        let _ = Reply::decode(&bytes);
    }
}
