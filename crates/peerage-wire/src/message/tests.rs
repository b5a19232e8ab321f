use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::codec::{CandidateKind, Transport};
use crate::id::Domain;
use crate::intro::{Introduction, KeyStatement};
use crate::limits::{MAX_CANDIDATES, MAX_DATAGRAM, MAX_NODE_INFO};
use crate::packet::{LONG_HEADER, SHORT_OVERHEAD};

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

fn any_request() -> impl Strategy<Value = Request> {
    let tunnel = (any::<([u8; 16], [u8; 32])>(), "[a-z]{0,16}", any_candidates());
    let tunnel = tunnel.prop_map(|((id, device), service, candidates)| {
        let (id, device) = (SessionId(id), DeviceId(device));
        Request::TunnelRequest(TunnelRequest { id, device, service, candidates })
    });
    let seen = (any_id(), any::<([u8; 32], [u8; 32])>()).prop_map(|(id, (key, location))| {
        Request::DeviceSeen { id, key: RecordKey(key), location: LocationId(location) }
    });
    let tags = vec(any::<[u8; 16]>().prop_map(LookupTag), 0..MAX_TAGS);
    prop_oneof![
        any_key().prop_map(|after| Request::GetOperatorNodes { after }),
        (prop::option::of(vec(any::<u8>(), 32)), any_key())
            .prop_map(|(key, after)| Request::GetSuperNodes { key, after }),
        any_node().prop_map(Request::GetNode),
        any_node().prop_map(Request::GetNodeInfo),
        (tags, any_key()).prop_map(|(tags, after)| Request::GetTunnelNodes { tags, after }),
        tunnel,
        Just(Request::Ping),
        any_key().prop_map(|after| Request::GetDevices { after }),
        Just(Request::GetHead),
        any_bytes().prop_map(Request::Store),
        seen,
        any_id().prop_map(Request::Leave),
        Just(Request::Attach),
        (any_id(), any_bytes()).prop_map(|(id, head)| Request::Notify { id, head }),
        any_key().prop_map(|after| Request::GetRevocations { after }),
        Just(Request::GetDomainKey),
    ]
}

fn any_reply() -> impl Strategy<Value = Reply> {
    let record = || prop::option::of(any_bytes());
    let stored = (prop::sample::select(Table::ALL.to_vec()), any::<([u8; 32], u64)>());
    let stored =
        stored.prop_map(|((table, _), (key, version))| Reply::Stored { table, key: RecordKey(key), version });
    prop_oneof![
        any_page().prop_map(Reply::OperatorNodes),
        any_page().prop_map(Reply::SuperNodes),
        record().prop_map(Reply::Node),
        record().prop_map(Reply::NodeInfo),
        any_page().prop_map(Reply::TunnelNodes),
        any_candidates().prop_map(|candidates| Reply::TunnelOpened { candidates }),
        any_address().prop_map(|observed| Reply::Reping { observed }),
        any_page().prop_map(Reply::Devices),
        record().prop_map(Reply::Head),
        stored,
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
    };
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
        (Request::TunnelRequest(tunnel), Reply::TunnelOpened { candidates: candidates(MAX_CANDIDATES) }),
        (Request::Ping, Reply::Reping { observed }),
        (Request::GetDevices { after }, Reply::Devices(full())),
        (Request::GetHead, Reply::Head(record(LARGEST_HEAD))),
        (Request::Store(Bytes::from(vec![1; MAX_RECORD])), stored),
        (seen, Reply::DeviceNoted(id)),
        (Request::Leave(id), Reply::Left(id)),
        (Request::Attach, Reply::Attached { observed, head: record(LARGEST_HEAD) }),
        (Request::Notify { id, head: vec![1; LARGEST_HEAD].into() }, Reply::Notified(id)),
        (Request::GetRevocations { after }, Reply::Revocations(full())),
        (Request::GetDomainKey, Reply::DomainKey(record(MAX_RECORD))),
    ]
}

/// A Head whose every number has all its bytes; the tests of records find the same.
const LARGEST_HEAD: usize = 318;

/// Rules 4.2 and 4.6: the request that asks for an answer is as long as the longest such answer.
#[test]
fn every_request_is_padded_to_the_size_of_its_largest_reply() {
    for (request, reply) in largest() {
        let longest = REPLY_OVERHEAD + reply.encode().len();
        assert!(longest <= request.reply_size(), "{request:?}: {longest}");
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
        assert!(short <= MAX_DATAGRAM && long <= MAX_DATAGRAM, "{request:?}");
    }
}

/// Rule 3.7: a TunnelRequest with everything in it goes together with the introduction of a member, whose record has at
/// most 241 bytes; a Store of a full record does not, and needs a receiver that knows the sender.
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
    let sizes: Vec<_> = largest().iter().map(|(request, _)| size(request)).collect();
    let tunnel = sizes[5];
    let store = sizes[9];
    assert_eq!((introduction, tunnel, store), (391, 1_171, 1_453));
    assert!(tunnel + crate::packet::COOKIE_SIZE <= MAX_DATAGRAM);
    assert!(sizes.iter().enumerate().all(|(at, size)| *size <= MAX_DATAGRAM || at == 9));
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
    let reserved = [
        number::SUBMIT_SUPER_NODE,
        number::TRANSFER_PARTITION,
        number::FORWARDED_TUNNEL_REQUEST,
        number::RECONCILE,
        number::REFUSALS,
        number::RELAY_JOIN,
    ];
    numbers.extend(reserved);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (1..=43).step_by(2).collect::<Vec<u8>>());
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
                | Request::DeviceSeen { .. }
                | Request::Leave(_)
                | Request::Attach
                | Request::Notify { .. }
                | Request::TunnelRequest(_)
        );
        assert_eq!(request.class() == Class::Other, has_effect, "{request:?}");
    }
}

/// Rule 3.12: what has an effect can be told from its repetition.
#[test]
fn commands_with_effects_carry_something_to_recognise_them_by() {
    for (request, _) in largest().into_iter().filter(|(request, _)| request.class() == Class::Other) {
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
        Request::decode(&frame(number::PING, &body.finish()))
    };
    assert_eq!(with(1), Err(Malformed::Unknown(1).into()));
    assert_eq!(with(128), Ok(Request::Ping));
}

/// Rule 2.5: candidates of kinds and transports that this version does not know are left out, the rest is used.
#[test]
fn unknown_kinds_of_candidates_are_left_out() {
    let known = candidate("192.0.2.1:7400".parse().unwrap());
    let mut body = MapWriter::new();
    body.list_of_maps(1, &[(1_u64, 1_u64), (2, 6), (3, 1), (1, 7)], |(transport, kind)| {
        let mut map = MapWriter::new();
        map.bytes(1, &address_bytes(known.address)).uint(2, *transport).uint(3, *kind);
        map
    });
    let reply = Reply::decode(&frame(number::TUNNEL_REQUEST + 1, &body.finish()));
    let ethernet = Candidate { kind: CandidateKind::Ethernet, transport: Transport::Udp, ..known };
    assert_eq!(reply, Ok(Reply::TunnelOpened { candidates: vec![ethernet, known] }));
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
    assert_eq!(
        Request::decode(&frame(number::GET_TUNNEL_NODES, &body.finish())),
        Err(Malformed::Type(1).into())
    );
    let page = Page { records: vec![Bytes::new(); MAX_LIST + 1], more: false };
    assert_eq!(Reply::decode(&Reply::Devices(page).encode()), Err(Malformed::Type(1).into()));
    let many = Reply::TunnelOpened { candidates: candidates(MAX_CANDIDATES + 1) };
    assert_eq!(Reply::decode(&many.encode()), Err(Malformed::Type(1).into()));
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
        let framed = frame(command, &bytes);
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
