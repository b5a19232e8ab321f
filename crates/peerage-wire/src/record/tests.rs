use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::codec::{Candidate, CandidateKind, Protocol, Service, Transport};
use crate::crypto::Real;
use crate::id::{DeviceId, LocationId, LookupTag, Mac, Segment};
use crate::intro::KeyStatement;
use crate::keys::{AgreementKey, DomainKeys, SecretKey};
use crate::limits::{MAX_ADDRESSES, MAX_PRIVATE_BODY, PRIVATE_BODY_PAD};
use crate::testing::TestRng;

const NETWORK: NetworkId = NetworkId([0x11; 32]);
const DOMAIN: Domain = Domain(0xdfe4_7365);
const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn operator() -> IdentityKey {
    IdentityKey::from_seed(&[1; 32])
}

fn node() -> IdentityKey {
    IdentityKey::from_seed(&[2; 32])
}

fn keys() -> DomainKeys {
    DomainKeys {
        epoch: 5,
        epoch_key: SecretKey([5; 32]),
        previous: Some(SecretKey([4; 32])),
        location_key: SecretKey([9; 32]),
    }
}

/// A header of a table about the node, or of one that is not about a node about `key`.
fn header(table: Table, key: RecordKey) -> Header {
    let is_own = table == Table::NodeInfo;
    let signer = if is_own { node().node_id(DOMAIN) } else { operator().node_id(Domain::OPERATORS) };
    let expires = NOW.after(table.max_life());
    Header { table, domain: DOMAIN, key, version: NOW.as_millis(), expires, signer, removed: false }
}

fn own_key() -> RecordKey {
    node().node_id(DOMAIN).record_key()
}

fn signer_of(header: &Header) -> IdentityKey {
    if header.signer.is_of(&node().public()) { node() } else { operator() }
}

fn draft(header: Header, public: MapWriter) -> Draft {
    Draft { header, public, private: None }
}

fn signed(draft: &Draft) -> Record {
    draft.sign(&signer_of(&draft.header), &NETWORK, &Real).unwrap()
}

/// Takes the bytes of a record through everything that a received one goes through.
fn received(bytes: &Bytes) -> Result<Record, RecordError> {
    let record = UnverifiedRecord::parse(bytes)?;
    record.check_time(NOW)?;
    let identity = signer_of(record.header()).public();
    record.verify(&NETWORK, &identity, &Real)
}

/// Signs content that no [`Draft`] would make.
fn signed_content(table: Table, content: &[u8]) -> Bytes {
    let signature = operator().sign(&signed_bytes(table, &NETWORK, content));
    Bytes::from([content, &signature].concat())
}

fn node_body() -> NodeBody {
    NodeBody {
        identity: node().public(),
        receiving: [3; 32],
        roles: Roles { tunnel: true, super_node: false },
    }
}

fn super_node_body(from: PlacementKey, to: PlacementKey, map_version: u64) -> SuperNodeBody {
    SuperNodeBody {
        segment: Segment { from, to },
        map_version,
        identity: node().public(),
        addresses: vec!["192.0.2.1:7400".parse().unwrap()],
    }
}

fn statement() -> KeyStatement {
    let id = node().node_id(DOMAIN);
    KeyStatement::sign(&node(), &NETWORK, id, [6; 32], NOW..NOW.after(DAY), &Real)
}

fn minimal_device() -> EndDevice {
    EndDevice {
        device: DeviceId([1; 32]),
        name: "hp".to_owned(),
        kind: String::new(),
        mac: Mac([2; 6]),
        pins: Vec::new(),
        services: Vec::new(),
        site: Vec::new(),
        via: None,
        users: Vec::new(),
        servers: Vec::new(),
        local: LocalPolicy::WithProof,
    }
}

fn device_record(device: &EndDevice) -> Result<Record, DraftError> {
    let key = keys().device_record_key(&device.device);
    let draft = draft(header(Table::EndDevice, key), EndDevice::public());
    draft.with_private(&keys(), [8; 16], device.write()).sign(&operator(), &NETWORK, &Real)
}

/// A record of each table with something in it.
fn one_of_each() -> Vec<Record> {
    let revocation = revocation();
    let operator_body = OperatorBody {
        identity: operator().public(),
        enrolment: [7; 32],
        addresses: vec!["192.0.2.1:7400".parse().unwrap()],
        state: OperatorState::Active,
    };
    let mut operator_header = header(Table::OperatorNode, operator().node_id(Domain::OPERATORS).record_key());
    operator_header.domain = Domain::OPERATORS;
    let domain_key = DomainKeyBody { sealed: vec![1; 150] };
    let super_node = super_node_body(PlacementKey(1), PlacementKey(2), 3);
    let info = NodeInfoPublic { statement: statement(), tags: vec![LookupTag([1; 16])], addresses: vec![] };
    vec![
        signed(&draft(header(Table::Node, own_key()), node_body().write())),
        signed(&draft(header(Table::NodeInfo, own_key()), info.write())),
        signed(&draft(header(Table::SuperNode, own_key()), super_node.write())),
        signed(&draft(operator_header, operator_body.write())),
        device_record(&minimal_device()).unwrap(),
        signed(&draft(header(Table::DomainKey, own_key()), domain_key.write())),
        signed(&draft(header(Table::Revocation, revocation.record_key()), revocation.write())),
        signed(&draft(header(Table::Head, HeadBody::record_key(DOMAIN)), HeadBody::default().write())),
    ]
}

fn revocation() -> RevocationBody {
    RevocationBody { kind: RevocationKind::Node(node().node_id(DOMAIN)), at: NOW, reason: 4 }
}

/// Rules 2.6 and 2.8: a record of each table is read back with the header that it was made with.
#[test]
fn records_of_every_table_arrive_as_they_were_made() {
    let records = one_of_each();
    for (record, (table, number)) in records.iter().zip(Table::ALL) {
        let back = received(record.bytes()).unwrap();
        assert_eq!(&back, record);
        assert_eq!(back.header().table, table);
        assert_eq!(Table::from_number(u64::from(number)), Some(table));
        assert!(back.bytes().len() <= table.max_size());
    }
    assert_eq!(records.len(), Table::ALL.len());
    assert_eq!(Table::from_number(0), None);
    assert_eq!(Table::from_number(9), None);
}

/// Rule 2.9: no bit of a record can be changed, wherever it is.
#[test]
fn a_flipped_bit_anywhere_in_a_record_is_refused() {
    for record in one_of_each() {
        let mut bytes = record.bytes().to_vec();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(
                received(&Bytes::copy_from_slice(&bytes)).is_err(),
                "{:?} bit {bit}",
                record.header().table
            );
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn a_truncated_record_is_refused_at_every_length() {
    for record in one_of_each() {
        for length in 0..record.bytes().len() {
            assert!(received(&record.bytes().slice(..length)).is_err(), "{length}");
        }
    }
}

/// Rule 2.9: the signature covers the network and the table, besides the content.
#[test]
fn a_signature_for_another_network_or_table_is_refused() {
    let record = signed(&draft(header(Table::Node, own_key()), node_body().write()));
    let parsed = UnverifiedRecord::parse(record.bytes()).unwrap();
    let other = NetworkId([0x12; 32]);
    assert_eq!(parsed.verify(&other, &operator().public(), &Real), Err(RecordError::Signature));
    let content = record.content();
    assert!(received(&signed_content(Table::Node, content)).is_ok());
    assert_eq!(received(&signed_content(Table::DomainKey, content)), Err(RecordError::Signature));
}

/// Rule 2.9: the right signature under somebody else's name is refused, and so is the right name without the key.
#[test]
fn the_key_must_be_that_of_the_signer_in_the_header() {
    let mut header = header(Table::Node, own_key());
    header.signer = node().node_id(DOMAIN);
    let content = header.write().map(8, &node_body().write()).finish();
    let parsed = UnverifiedRecord::parse(&signed_content(Table::Node, &content)).unwrap();
    assert_eq!(parsed.clone().verify(&NETWORK, &operator().public(), &Real), Err(RecordError::Signature));
    assert_eq!(parsed.verify(&NETWORK, &node().public(), &Real), Err(RecordError::Signature));
}

/// Rule 2.1: a signer cannot give one content two forms; what is not strict is refused though it is signed.
#[test]
fn a_signed_record_that_is_not_strict_is_refused() {
    let record = signed(&draft(header(Table::Node, own_key()), node_body().write()));
    let content = record.content();
    let long_head = [&[0xb8, content[0] & 0x1f], &content[1..]].concat();
    let long_number = [&content[..2], &[0x18, content[2]], &content[3..]].concat();
    let trailing = [content, &[0]].concat();
    for (bad, reason) in [
        (long_head, Malformed::NotShortest),
        (long_number, Malformed::NotShortest),
        (trailing, Malformed::Trailing),
    ] {
        let bytes = signed_content(Table::Node, &bad);
        assert_eq!(received(&bytes), Err(RecordError::Malformed(reason)));
    }
}

/// Rule 2.3: what this version does not know below 128 makes a record unusable, and it is still verified and
/// passed on; from 128 on it is ignored. On the record's level and inside the body alike.
#[test]
fn a_record_of_a_newer_version_is_verified_and_passed_on_but_not_used() {
    let with = |outer: u64, inner: u64| {
        let mut body = node_body().write();
        body.uint(inner, 1_u64);
        let mut map = header(Table::Node, own_key()).write();
        let content = map.map(8, &body).uint(outer, 1_u64).finish();
        received(&signed_content(Table::Node, &content)).unwrap()
    };
    assert_eq!(NodeBody::read(&with(12, 128)), Err(Malformed::Unknown(12)));
    assert_eq!(NodeBody::read(&with(128, 4)), Err(Malformed::Unknown(4)));
    assert_eq!(NodeBody::read(&with(127, 127)), Err(Malformed::Unknown(127)));
    assert_eq!(NodeBody::read(&with(128, 200)), Ok(node_body()));
}

/// Rule 2.3: an unknown restriction of a device is not overlooked, sealed or not.
#[test]
fn a_device_with_an_unknown_restriction_is_unusable() {
    let read = |body: MapWriter| {
        let draft = draft(header(Table::EndDevice, RecordKey([1; 32])), EndDevice::public());
        let record = signed(&draft.with_private(&keys(), [8; 16], body));
        record.read_private(&keys(), &Real, EndDevice::read)
    };
    let (mut newer, mut hint) = (minimal_device().write(), minimal_device().write());
    newer.uint(12, 1_u64);
    hint.uint(128, 1_u64);
    assert_eq!(read(newer), Err(PrivateError::Malformed(Malformed::Unknown(12))));
    assert_eq!(read(hint), Ok(minimal_device()));

    let record = device_record(&minimal_device()).unwrap();
    let content = record.content();
    let more = [&[content[0] + 1], &content[1..], &[12, 1]].concat();
    let record = received(&signed_content(Table::EndDevice, &more)).unwrap();
    let read = record.read_private(&keys(), &Real, EndDevice::read);
    assert_eq!(read, Err(PrivateError::Malformed(Malformed::Unknown(12))));
    assert_eq!(EndDevice::check_public(&record), Err(Malformed::Unknown(12)));
}

/// Rule 2.7: from the future, expired, too long a life.
#[test]
fn version_and_expiry_are_judged_against_the_time() {
    let life = Table::Node.max_life();
    let check = |version: UnixTime, expires: UnixTime| {
        let header = Header { version: version.as_millis(), expires, ..header(Table::Node, own_key()) };
        let record = signed(&draft(header, node_body().write()));
        UnverifiedRecord::parse(record.bytes()).unwrap().check_time(NOW)
    };
    let second = Duration::from_secs(1);
    let ahead = NOW.after(MAX_VERSION_AHEAD);
    assert_eq!(check(ahead, ahead.after(life)), Ok(()));
    assert_eq!(check(ahead.after(second), ahead.after(life)), Err(RecordError::Future));
    assert_eq!(check(NOW, NOW.after(life)), Ok(()));
    assert_eq!(check(NOW, NOW.after(life).after(Duration::from_millis(1))), Err(RecordError::Lifetime));
    assert_eq!(check(NOW.before(life), NOW), Err(RecordError::Expired));
    assert_eq!(check(NOW.before(life).after(second), NOW.after(second)), Ok(()));
}

/// Rule 2.21: the higher version wins, ties by bytes, and nothing wins over itself.
#[test]
fn the_higher_version_supersedes_and_ties_are_settled_by_bytes() {
    let make = |version: u64, receiving: u8| {
        let body = NodeBody { receiving: [receiving; 32], ..node_body() };
        signed(&draft(Header { version, ..header(Table::Node, own_key()) }, body.write()))
    };
    let (old, new) = (make(1, 9), make(2, 1));
    assert!(new.supersedes(&old) && !old.supersedes(&new));
    let (a, b) = (make(1, 1), make(1, 2));
    assert_ne!(a.supersedes(&b), b.supersedes(&a));
    assert_eq!(a.supersedes(&b), a.bytes() > b.bytes());
    assert!(!a.supersedes(&a));
}

/// Rule 2.20: a tombstone verifies, and nothing can be read out of it, even if its maker left a body inside.
#[test]
fn a_tombstone_says_nothing_but_that_it_is_one() {
    let buried = Header { removed: true, ..header(Table::Node, own_key()) };
    for body in [MapWriter::new(), node_body().write()] {
        let record = received(signed(&draft(buried, body)).bytes()).unwrap();
        assert!(record.header().removed);
        assert_eq!(NodeBody::read(&record), Err(Malformed::Type(7)));
    }
    let record = signed(&draft(buried, MapWriter::new()));
    assert_eq!(record.read_private(&keys(), &Real, EndDevice::read), Err(PrivateError::None));
    assert_eq!(record.epoch(), None);
}

/// Rule 2.11: a private body opens only in the record that it was made for.
#[test]
fn a_private_body_cannot_be_moved_to_another_record() {
    let original = device_record(&minimal_device()).unwrap();
    let opens = |change: &dyn Fn(&mut Header), public: MapWriter| {
        let mut header = *original.header();
        change(&mut header);
        let mut map = header.write();
        map.map(8, &public);
        let mut fields = original.fields().unwrap();
        map.uint(9, fields.uint::<u64>(9).unwrap())
            .bytes(10, fields.bytes(10).unwrap())
            .bytes(11, fields.bytes(11).unwrap());
        let bytes = signed_content(Table::EndDevice, &map.finish());
        let record = UnverifiedRecord::parse(&bytes).unwrap().trust_own_store();
        record.read_private(&keys(), &Real, EndDevice::read)
    };
    let mut hint = EndDevice::public();
    hint.uint(128, 1_u64);
    let moved = Err(PrivateError::Crypto(CryptoError));
    assert_eq!(opens(&|_| {}, EndDevice::public()), Ok(minimal_device()));
    assert_eq!(opens(&|_| {}, hint), moved);
    assert_eq!(opens(&|h| h.key = RecordKey([7; 32]), EndDevice::public()), moved);
    assert_eq!(opens(&|h| h.domain = Domain(8), EndDevice::public()), moved);
    assert_eq!(opens(&|h| h.version += 1, EndDevice::public()), moved);
    assert_eq!(opens(&|h| h.expires = h.expires.after(DAY), EndDevice::public()), moved);
    assert_eq!(opens(&|h| h.signer = node().node_id(DOMAIN), EndDevice::public()), moved);
}

/// Rule 2.11: only the keys of its own epoch open a body; the newest and the one before are at hand.
#[test]
fn a_private_body_opens_with_the_key_of_its_epoch_alone() {
    let record = device_record(&minimal_device()).unwrap();
    let read = |keys: &DomainKeys| record.read_private(keys, &Real, EndDevice::read);
    let next =
        DomainKeys { epoch: 6, epoch_key: SecretKey([6; 32]), previous: Some(keys().epoch_key), ..keys() };
    let after =
        DomainKeys { epoch: 7, epoch_key: SecretKey([7; 32]), previous: Some(SecretKey([6; 32])), ..keys() };
    let wrong = DomainKeys { epoch_key: SecretKey([6; 32]), ..keys() };
    assert_eq!(record.epoch(), Some(5));
    assert_eq!(read(&keys()), Ok(minimal_device()));
    assert_eq!(read(&next), Ok(minimal_device()));
    assert_eq!(read(&after), Err(PrivateError::Epoch(5)));
    assert_eq!(read(&wrong), Err(PrivateError::Crypto(CryptoError)));
}

/// Rule 2.11: the length of a record says little about what is sealed in it.
#[test]
fn private_bodies_are_padded_and_limited() {
    let size = |length: usize| {
        let mut body = MapWriter::new();
        body.bytes(1, &vec![7; length]);
        let body_size = body.finish().len();
        let draft = draft(header(Table::EndDevice, RecordKey([1; 32])), EndDevice::public());
        let record = draft.with_private(&keys(), [8; 16], body).sign(&operator(), &NETWORK, &Real);
        (body_size, record.map(|record| record.bytes().len()))
    };
    let (small, larger, most) = (size(4), size(40), size(MAX_PRIVATE_BODY - 5));
    assert_eq!((small.0, larger.0, most.0), (7, 44, MAX_PRIVATE_BODY));
    assert_eq!(small.1, larger.1);
    assert_eq!(small.1, Ok(849 - MAX_PRIVATE_BODY - 2 + PRIVATE_BODY_PAD - 1));
    assert_eq!(most.1, Ok(849));
    let (more, refused) = size(MAX_PRIVATE_BODY - 4);
    assert_eq!(refused, Err(DraftError::PrivateTooLong { size: more, most: MAX_PRIVATE_BODY }));
}

/// Rule 2.10: the keys of a domain reach the member that they are sealed to, and nobody else.
#[test]
fn domain_keys_open_for_their_member_alone() {
    let receiving = AgreementKey::from_secret([3; 32]);
    let id = node().node_id(DOMAIN);
    let seal = |keys: &DomainKeys| {
        DomainKeyBody::seal(keys, (&NETWORK, id, receiving.public()), &mut TestRng(1)).unwrap()
    };
    for keys in [keys(), DomainKeys { previous: None, ..keys() }] {
        let record = signed(&draft(header(Table::DomainKey, own_key()), seal(&keys).write()));
        let body = DomainKeyBody::read(&received(record.bytes()).unwrap()).unwrap();
        assert_eq!(body.open(&NETWORK, id, &receiving), Ok(keys));
        let refused = Err(PrivateError::Crypto(CryptoError));
        assert_eq!(body.open(&NETWORK, id, &AgreementKey::from_secret([4; 32])), refused);
        assert_eq!(body.open(&NetworkId([1; 32]), id, &receiving), refused);
        assert_eq!(body.open(&NETWORK, node().node_id(Domain(8)), &receiving), refused);
    }
}

/// Rules 2.12, 2.13, 2.15, 2.17 and 2.18: a body that is about something else than its record says is refused,
/// though the signature is right.
#[test]
fn bodies_must_be_about_what_their_record_is_about() {
    let other = RecordKey([0x77; 32]);
    let wrong = |table, public| received(signed(&draft(header(table, other), public)).bytes()).unwrap();
    let info = NodeInfoPublic { statement: statement(), tags: vec![], addresses: vec![] };
    let operator_body = OperatorBody {
        identity: operator().public(),
        enrolment: [7; 32],
        addresses: vec![],
        state: OperatorState::Active,
    };
    assert_eq!(NodeBody::read(&wrong(Table::Node, node_body().write())), Err(Malformed::Type(3)));
    assert_eq!(NodeInfoPublic::read(&wrong(Table::NodeInfo, info.write())), Err(Malformed::Type(1)));
    assert_eq!(
        OperatorBody::read(&wrong(Table::OperatorNode, operator_body.write())),
        Err(Malformed::Type(3))
    );
    assert_eq!(
        RevocationBody::read(&wrong(Table::Revocation, revocation().write())),
        Err(Malformed::Type(3))
    );
    assert_eq!(HeadBody::read(&wrong(Table::Head, HeadBody::default().write())), Err(Malformed::Type(3)));
    let elsewhere = RevocationBody { kind: RevocationKind::Domain(Domain(8)), ..revocation() };
    let record = signed(&draft(header(Table::Revocation, elsewhere.record_key()), elsewhere.write()));
    assert_eq!(RevocationBody::read(&record), Err(Malformed::Type(3)));
}

#[test]
fn a_body_is_not_read_out_of_a_record_of_another_table() {
    for record in one_of_each() {
        let table = record.header().table;
        assert_eq!(NodeBody::read(&record).is_ok(), table == Table::Node);
        assert_eq!(NodeInfoPublic::read(&record).is_ok(), table == Table::NodeInfo);
        assert_eq!(SuperNodeBody::read(&record).is_ok(), table == Table::SuperNode);
        assert_eq!(OperatorBody::read(&record).is_ok(), table == Table::OperatorNode);
        assert_eq!(EndDevice::check_public(&record).is_ok(), table == Table::EndDevice);
        assert_eq!(DomainKeyBody::read(&record).is_ok(), table == Table::DomainKey);
        assert_eq!(RevocationBody::read(&record).is_ok(), table == Table::Revocation);
        assert_eq!(HeadBody::read(&record).is_ok(), table == Table::Head);
    }
}

/// Rule 2.16: names, ports written in digits, and nothing else.
#[test]
fn a_service_is_found_by_name_or_port() {
    let service =
        |name: &str, port| Service { name: name.to_owned(), port, protocol: Protocol::Tcp, tls: false };
    let device = EndDevice { services: vec![service("ipp", 631), service("631", 9100)], ..minimal_device() };
    assert_eq!(device.service("ipp").map(|s| s.port), Some(631));
    assert_eq!(device.service("631").map(|s| s.port), Some(9100));
    assert_eq!(device.service("9100").map(|s| s.port), Some(9100));
    assert_eq!(device.service("0631"), None);
    assert_eq!(device.service(""), None);
}

/// Rule 2.19: the sum is one of numbers, carries included, and the order does not matter.
#[test]
fn a_summary_is_the_sum_of_hashes_in_any_order() {
    let mut summary = SetSummary::default();
    summary.add(&[0xff; 32]);
    let mut two = [0; 32];
    two[31] = 2;
    summary.add(&two);
    let mut one = [0; 32];
    one[31] = 1;
    assert_eq!(summary, SetSummary { count: 2, sum: one });
    let records = one_of_each();
    assert_eq!(SetSummary::of(&records), SetSummary::of(records.iter().rev()));
    assert_ne!(SetSummary::of(&records), SetSummary::of(&records[1..]));
    assert_eq!(SetSummary::of([]).sum, [0; 32]);
}

/// Rule 2.13: how many IPv6 candidates fit into a NodeInfo beside the rest; its maker leaves out more.
#[test]
fn a_node_info_has_room_for_some_candidates_only() {
    let make = |candidates: usize, tags: usize, locations: usize, attachments: usize| {
        let candidate = Candidate {
            kind: CandidateKind::Ethernet,
            transport: Transport::Udp,
            address: "[2001:db8::1]:65535".parse().unwrap(),
        };
        let public = NodeInfoPublic {
            statement: statement(),
            tags: vec![LookupTag([1; 16]); tags],
            addresses: vec![],
        };
        let private = NodeInfoPrivate {
            candidates: vec![candidate; candidates],
            locations: vec![LocationId([2; 32]); locations],
            attachments: vec![node().node_id(DOMAIN); attachments],
        };
        let draft = draft(header(Table::NodeInfo, own_key()), public.write());
        draft.with_private(&keys(), [8; 16], private.write()).sign(&node(), &NETWORK, &Real)
    };
    let fit = |tags, locations, attachments| {
        (0..=20).rev().find(|candidates| make(*candidates, tags, locations, attachments).is_ok())
    };
    // Three locations: usually, around a change of day or epoch, around both at once.
    assert_eq!([fit(3, 3, 2), fit(6, 3, 2), fit(12, 3, 2)], [Some(7), Some(5), Some(0)]);
    // One location; two, around a change of day; four, around it; all eight: too many.
    let fitting = [fit(1, 1, 1), fit(4, 2, 2), fit(8, 4, 2), fit(16, 8, 2)];
    assert_eq!(fitting, [Some(12), Some(6), Some(1), None]);
    assert!(matches!(make(20, 16, 8, 16), Err(DraftError::PrivateTooLong { .. })));
    assert!(matches!(make(10, 16, 4, 2), Err(DraftError::TooLong { .. })));
}

/// Rule 2.14: a SuperNode record holds the key that it is named by, and a range with a place in it.
#[test]
fn a_super_node_record_is_about_the_node_whose_key_it_holds() {
    let read = |body: &SuperNodeBody| {
        SuperNodeBody::read(&signed(&draft(header(Table::SuperNode, own_key()), body.write())))
    };
    let body = super_node_body(PlacementKey(5), PlacementKey(5), 1);
    assert_eq!(read(&body), Ok(body.clone()));
    let other = SuperNodeBody { identity: operator().public(), ..body };
    assert_eq!(read(&other), Err(Malformed::Type(3)));
    assert_eq!(read(&super_node_body(PlacementKey(6), PlacementKey(5), 1)), Err(Malformed::Type(2)));
    let mut without = MapWriter::new();
    without.bytes(1, &[0; 8]).bytes(2, &[1; 8]).uint(3, 1_u8);
    let record = signed(&draft(header(Table::SuperNode, own_key()), without));
    assert_eq!(SuperNodeBody::read(&record), Err(Malformed::Missing(4)));
}

/// Rules 2.14 and 2.18: records of fixed content stay far below the limit at their largest.
#[test]
fn the_largest_records_of_fixed_content_are_small() {
    let largest = |table| Header {
        domain: Domain(u32::MAX),
        version: u64::MAX,
        expires: UnixTime::from_millis(u64::MAX),
        ..header(table, own_key())
    };
    let summary = SetSummary { count: u32::MAX, sum: [0xff; 32] };
    let head = HeadBody {
        operators: summary,
        revocations: summary,
        devices: summary,
        epoch: u32::MAX,
        map_version: u64::MAX,
        offline_hours: Some(u16::MAX),
        super_nodes: Some(summary),
    };
    let super_node = SuperNodeBody {
        addresses: vec!["[2001:db8::1]:7400".parse().unwrap(); MAX_ADDRESSES],
        ..super_node_body(PlacementKey(0), PlacementKey(u64::MAX), u64::MAX)
    };
    let roles = Roles { tunnel: true, super_node: true };
    let node_body = NodeBody { roles, ..node_body() };
    let domain_key =
        DomainKeyBody::seal(&keys(), (&NETWORK, node().node_id(DOMAIN), &[9; 32]), &mut TestRng(1)).unwrap();
    let size = |table, public| signed(&draft(largest(table), public)).bytes().len();
    let sizes = [
        size(Table::Head, head.write()),
        size(Table::SuperNode, super_node.write()),
        size(Table::Node, node_body.write()),
        size(Table::DomainKey, domain_key.write()),
        size(Table::Revocation, revocation().write()),
    ];
    assert_eq!(sizes, [361, 388, 241, 328, 222]);
}

/// Rule 2.16: how much one device can say.
#[test]
fn a_device_with_many_services_fits_into_its_record() {
    let make = |services: usize, name: usize, users: usize| {
        let service = Service { name: "n".repeat(name), port: 65_535, protocol: Protocol::Tcp, tls: true };
        let device = EndDevice {
            name: "d".repeat(32),
            kind: "printer".to_owned(),
            pins: vec![[1; 32]],
            services: vec![service; services],
            site: vec![LocationId([1; 32]); 2],
            via: Some(node().node_id(DOMAIN)),
            users: vec![node().node_id(DOMAIN); users],
            ..minimal_device()
        };
        device_record(&device)
    };
    let longest_name = |services| (0..=64).rev().find(|name| make(services, *name, 0).is_ok());
    let most_users = (0..=16).rev().find(|users| make(2, 4, *users).is_ok());
    assert_eq!(
        [longest_name(16), longest_name(8), longest_name(4), most_users],
        [Some(14), Some(38), Some(64), Some(9)]
    );
    assert!(matches!(make(16, 64, 0), Err(DraftError::PrivateTooLong { .. })));
}

/// Rule 2.6: a record that is too long is neither made nor taken.
#[test]
fn records_beyond_the_limit_of_their_table_are_refused() {
    let make = |table, length: usize| {
        let mut public = MapWriter::new();
        public.bytes(128, &vec![1; length]);
        let draft = draft(header(table, own_key()), public);
        draft.sign(&signer_of(&draft.header), &NETWORK, &Real)
    };
    for (table, most) in [(Table::Node, 900), (Table::NodeInfo, 800)] {
        let room = most - make(table, 300).unwrap().bytes().len() + 300;
        let largest = make(table, room).unwrap();
        assert_eq!(largest.bytes().len(), most);
        assert!(received(largest.bytes()).is_ok());
        assert_eq!(make(table, room + 1), Err(DraftError::TooLong { size: most + 1, most }));
        let mut longer = largest.content().to_vec();
        longer.extend_from_slice(&[0; 200]);
        assert_eq!(received(&signed_content(table, &longer)), Err(RecordError::TooLong));
    }
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    any::<SocketAddr>().prop_filter_map("mapped addresses have no form of their own", |address| {
        (address.ip() == address.ip().to_canonical()).then(|| SocketAddr::new(address.ip(), address.port()))
    })
}

fn any_node() -> impl Strategy<Value = NodeId> {
    any::<(u32, [u8; 32])>().prop_map(|(domain, hash)| NodeId { domain: Domain(domain), hash })
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let kinds = [CandidateKind::Ethernet, CandidateKind::Wifi, CandidateKind::Vpn, CandidateKind::Configured];
    let kind = prop::sample::select(kinds.to_vec());
    let transport = prop::sample::select(vec![Transport::Udp, Transport::Tcp]);
    (kind, transport, any_address()).prop_map(|(kind, transport, address)| Candidate {
        kind,
        transport,
        address,
    })
}

fn any_service() -> impl Strategy<Value = Service> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    ("[a-z]{0,8}", any::<u16>(), protocol, any::<bool>()).prop_map(|(name, port, protocol, tls)| Service {
        name,
        port,
        protocol,
        tls,
    })
}

fn any_device() -> impl Strategy<Value = EndDevice> {
    let local = prop::sample::select(vec![LocalPolicy::WithProof, LocalPolicy::Always, LocalPolicy::Never]);
    let names = ("[a-zé]{0,16}", "[a-z]{0,8}", any::<([u8; 32], [u8; 6])>());
    let lists = (vec(any::<[u8; 32]>(), 0..2), vec(any_service(), 0..4), vec(any::<[u8; 32]>(), 0..3));
    let nodes = (prop::option::of(any_node()), vec(any_node(), 0..3), vec(any_node(), 0..3));
    (names, lists, nodes, local).prop_map(
        |((name, kind, (device, mac)), (pins, services, site), (via, users, servers), local)| EndDevice {
            device: DeviceId(device),
            name,
            kind,
            mac: Mac(mac),
            pins,
            services,
            site: site.into_iter().map(LocationId).collect(),
            via,
            users,
            servers,
            local,
        },
    )
}

fn any_summary() -> impl Strategy<Value = SetSummary> {
    any::<(u32, [u8; 32])>().prop_map(|(count, sum)| SetSummary { count, sum })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Rules 2.5 and 2.16.
    #[test]
    fn devices_are_read_back_as_written(device in any_device()) {
        let record = device_record(&device).unwrap();
        let record = received(record.bytes()).unwrap();
        prop_assert_eq!(EndDevice::check_public(&record), Ok(()));
        prop_assert_eq!(record.read_private(&keys(), &Real, EndDevice::read), Ok(device));
    }

    /// Rules 2.5 and 2.13.
    #[test]
    fn node_infos_are_read_back_as_written(
        tags in vec(any::<[u8; 16]>(), 0..4),
        addresses in vec(any_address(), 0..4),
        candidates in vec(any_candidate(), 0..6),
        locations in vec(any::<[u8; 32]>(), 0..3),
        attachments in vec(any_node(), 0..3),
    ) {
        let tags: Vec<_> = tags.into_iter().map(LookupTag).collect();
        let public = NodeInfoPublic { statement: statement(), tags, addresses };
        let locations = locations.into_iter().map(LocationId).collect();
        let private = NodeInfoPrivate { candidates, locations, attachments };
        let draft = draft(header(Table::NodeInfo, own_key()), public.write());
        let record = signed(&draft.with_private(&keys(), [8; 16], private.write()));
        let record = received(record.bytes()).unwrap();
        prop_assert_eq!(NodeInfoPublic::read(&record), Ok(public.clone()));
        prop_assert_eq!(record.read_private(&keys(), &Real, NodeInfoPrivate::read), Ok(private));
        prop_assert_eq!(public.placements(DOMAIN).len(), public.tags.len() + 1);
    }

    /// Rules 2.12, 2.14, 2.17 and 2.18.
    #[test]
    fn public_bodies_are_read_back_as_written(
        (receiving, tunnel, super_node) in any::<([u8; 32], bool, bool)>(),
        (from, to, map_version) in any::<(u64, u64, u64)>(),
        addresses in vec(any_address(), 0..MAX_ADDRESSES),
        (at, reason, of_domain) in any::<(u64, u16, bool)>(),
        [operators, revocations, devices] in [any_summary(), any_summary(), any_summary()],
        super_nodes in prop::option::of(any_summary()),
        (epoch, offline_hours) in any::<(u32, Option<u16>)>(),
    ) {
        let body = NodeBody { receiving, roles: Roles { tunnel, super_node }, ..node_body() };
        let record = signed(&draft(header(Table::Node, own_key()), body.write()));
        prop_assert_eq!(NodeBody::read(&received(record.bytes()).unwrap()), Ok(body));

        let (from, to) = (PlacementKey(from.min(to)), PlacementKey(from.max(to)));
        let body = SuperNodeBody { addresses, ..super_node_body(from, to, map_version) };
        let record = signed(&draft(header(Table::SuperNode, own_key()), body.write()));
        prop_assert_eq!(SuperNodeBody::read(&received(record.bytes()).unwrap()), Ok(body));

        let kind =
            if of_domain { RevocationKind::Domain(DOMAIN) } else { RevocationKind::Node(node().node_id(DOMAIN)) };
        let body = RevocationBody { kind, at: UnixTime::from_millis(at), reason };
        let record = signed(&draft(header(Table::Revocation, body.record_key()), body.write()));
        prop_assert_eq!(RevocationBody::read(&received(record.bytes()).unwrap()), Ok(body));

        let body = HeadBody { operators, revocations, devices, epoch, map_version, offline_hours, super_nodes };
        let record = signed(&draft(header(Table::Head, HeadBody::record_key(DOMAIN)), body.write()));
        prop_assert_eq!(HeadBody::read(&received(record.bytes()).unwrap()), Ok(body));
    }

    /// Rule 2.15.
    #[test]
    fn operators_are_read_back_as_written(
        enrolment in any::<[u8; 32]>(),
        addresses in vec(any_address(), 0..8),
        state in prop::sample::select(vec![OperatorState::Active, OperatorState::Retired, OperatorState::Compromised]),
    ) {
        let body = OperatorBody { identity: operator().public(), enrolment, addresses, state };
        let key = operator().node_id(Domain::OPERATORS).record_key();
        let header = Header { domain: Domain::OPERATORS, ..header(Table::OperatorNode, key) };
        let record = signed(&draft(header, body.write()));
        prop_assert_eq!(OperatorBody::read(&received(record.bytes()).unwrap()), Ok(body));
    }

    #[test]
    fn random_bytes_are_never_a_verified_record(bytes in vec(any::<u8>(), 0..1_000)) {
        prop_assert!(received(&bytes.into()).is_err());
    }

    /// Bytes that pass the first checks reach every reader, and none of them panics.
    #[test]
    fn altered_content_under_a_right_signature_never_panics(
        which in 0..Table::ALL.len(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let original = one_of_each().swap_remove(which);
        let mut content = original.content().to_vec();
        for (at, byte) in changes {
            let at = at.index(content.len());
            content[at] = byte;
        }
        if let Ok(record) = UnverifiedRecord::parse(&signed_content(original.header().table, &content)) {
            let record = record.trust_own_store();
            let read = [
                NodeBody::read(&record).is_ok(),
                NodeInfoPublic::read(&record).is_ok(),
                SuperNodeBody::read(&record).is_ok(),
                OperatorBody::read(&record).is_ok(),
                EndDevice::check_public(&record).is_ok(),
                DomainKeyBody::read(&record).is_ok(),
                RevocationBody::read(&record).is_ok(),
                HeadBody::read(&record).is_ok(),
            ];
            prop_assert!(read.iter().filter(|read| **read).count() <= 1);
            let private = record.read_private(&keys(), &Real, EndDevice::read);
            prop_assert!(private.is_err() || record == original || private == Ok(minimal_device()));
        }
    }
}
