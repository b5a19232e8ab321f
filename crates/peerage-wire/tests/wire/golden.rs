//! What this implementation sends, from fixed keys, times and chance.

use std::time::Duration;

use bytes::Bytes;

use peerage_wire::cbor::MapWriter;
use peerage_wire::codec::{Candidate, CandidateKind, Protocol, Service, Transport};
use peerage_wire::crypto::Real;
use peerage_wire::enrol::{
    Admission, Credential, EnrolAnswer, EnrolRequest, Hello, Refusal, TrustedOperator,
};
use peerage_wire::id::{
    CommandId, ContextId, DeviceId, Domain, KeyHint, LinkId, LocationId, LookupTag, Mac, NetworkId, NodeId,
    PlaceKey, PlacementKey, RecordKey, Segment, SessionId, TokenId,
};
use peerage_wire::intro::{Introduction, KeyStatement};
use peerage_wire::keys::{
    AgreementKey, DomainKeys, IdentityKey, SecretKey, cookie, network_id, private_body_key,
};
use peerage_wire::message::{
    Entry, Forward, Load, Page, Part, Reconciled, Refused, RefusedReason, RelayRefusal, Reply, Request,
    Submission, SuperNodeState, TunnelRequest,
};
use peerage_wire::packet::{Class, Hint, HintReason, Packet};
use peerage_wire::record::{
    DomainKeyBody, Draft, EndDevice, HeadBody, Header, LocalPolicy, NodeBody, NodeInfoPrivate,
    NodeInfoPublic, OperatorBody, OperatorState, Record, RevocationBody, RevocationKind, Roles, SetSummary,
    SuperNodeBody, Table, UnverifiedRecord,
};
use peerage_wire::seal::{Ends, ReceiveContext, SendContext};
use peerage_wire::time::UnixTime;
use peerage_wire::token::JoinToken;

use crate::testing::TestRng;
use crate::vectors::Vectors;

const NOW: UnixTime = UnixTime::from_millis(1_800_000_000_123);
const DOMAIN: Domain = Domain(0xdfe4_7365);

fn root() -> IdentityKey {
    IdentityKey::from_seed(&[0x01; 32])
}

fn operator() -> IdentityKey {
    IdentityKey::from_seed(&[0x02; 32])
}

fn node() -> IdentityKey {
    IdentityKey::from_seed(&[0x03; 32])
}

fn enrolment() -> AgreementKey {
    AgreementKey::from_secret([0x04; 32])
}

fn receiving() -> AgreementKey {
    AgreementKey::from_secret([0x05; 32])
}

/// The sealing keys of the node and of the operator.
fn sealing() -> [AgreementKey; 2] {
    [0x06, 0x07].map(|byte| AgreementKey::from_secret([byte; 32]))
}

fn domain_keys() -> DomainKeys {
    DomainKeys {
        epoch: 3,
        epoch_key: SecretKey([0x08; 32]),
        previous: Some(SecretKey([0x09; 32])),
        location_key: SecretKey([0x0a; 32]),
    }
}

fn network() -> NetworkId {
    network_id(&root().public())
}

fn operator_id() -> NodeId {
    operator().node_id(Domain::OPERATORS)
}

fn node_id() -> NodeId {
    node().node_id(DOMAIN)
}

fn device_id() -> DeviceId {
    DeviceId::new(Mac([0x02, 0x42, 0xac, 0x11, 0x00, 0x02]), Some(&[0x0b; 32]))
}

fn location() -> LocationId {
    domain_keys().location(Mac([0x02, 0x42, 0xac, 0x11, 0x00, 0x01]), &[192, 168, 1, 0], 24)
}

/// The inputs from which a file's vectors are made.
fn check_inputs(vectors: &mut Vectors) {
    vectors.check("input.root_seed", root().seed());
    vectors.check("input.operator_seed", operator().seed());
    vectors.check("input.node_seed", node().seed());
    vectors.check("input.domain", &DOMAIN.to_bytes());
    vectors.check("input.enrolment_secret", enrolment().secret());
    vectors.check("input.receiving_secret", receiving().secret());
    let [node, operator] = sealing();
    vectors.check("input.node_sealing_secret", node.secret());
    vectors.check("input.operator_sealing_secret", operator.secret());
    vectors.check("input.epoch_key", &domain_keys().epoch_key.0);
    vectors.check("input.location_key", &domain_keys().location_key.0);
    vectors.check("input.network_id", &network().0);
}

/// Rules 1.1 to 1.8, 2.11 and 3.10.
#[test]
fn names_are_derived_as_they_were() {
    let mut vectors = Vectors::read("names.txt");
    check_inputs(&mut vectors);
    let keys = domain_keys();
    let mac = Mac([0x02, 0x42, 0xac, 0x11, 0x00, 0x02]);
    vectors.check("operator_id", &operator_id().to_bytes());
    vectors.check("node_id", &node_id().to_bytes());
    vectors.check("node_id_text", node_id().to_string().as_bytes());
    vectors.check("mac", &mac.0);
    vectors.check("mac_text", mac.to_string().as_bytes());
    vectors.check("device_id_without_tls", &DeviceId::new(mac, None).0);
    vectors.check("device_id", &device_id().0);
    vectors.check("device_record_key", &keys.device_record_key(&device_id()).0);
    vectors.check("location_id", &location().0);
    vectors.check("server_rank_of_node", &keys.server_rank(&node_id()));
    vectors.check("look_up_tag_of_day_20833", &keys.tag(&location(), 20_833).0);
    let placement = PlacementKey::new(DOMAIN, &keys.tag(&location(), 20_833).0);
    vectors.check("placement_of_look_up_tag", &placement.0.to_be_bytes());
    let placement = PlacementKey::new(DOMAIN, &node_id().record_key().0);
    vectors.check("placement_of_node", &placement.0.to_be_bytes());
    let [sealing, _] = sealing();
    vectors.check("key_hint", &KeyHint::of(sealing.public()).0);
    vectors.check("context_id", &ContextId::of(&[0x0c; 32]).0);
    let body_key = private_body_key(&keys.epoch_key, &[0x0d; 16], &[b"info"]);
    vectors.check("private_body_key_for_info", &body_key.0);
    let mut address = [0; 16];
    address[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
    let cookie = cookie(&SecretKey([0x0e; 32]), 30_000_000, &address, 7_400, &node_id(), &[0x0c; 32]);
    vectors.check("cookie", &cookie);
    let handshake = peerage_wire::prepared::name_of(b"hello");
    vectors.check("handshake_of_hello", &handshake.0);
    vectors.check("beginning_of_prepared", &peerage_wire::prepared::beginning(handshake));
    vectors.finish();
}

fn signed(signer: &IdentityKey, table: Table, about: (Domain, RecordKey), public: MapWriter) -> Draft {
    let signer_domain = if table == Table::NodeInfo { DOMAIN } else { Domain::OPERATORS };
    let header = Header {
        table,
        domain: about.0,
        key: about.1,
        version: NOW.as_millis(),
        expires: NOW.after(table.max_life()),
        signer: signer.node_id(signer_domain),
        removed: false,
    };
    Draft { header, public, private: None }
}

fn made(draft: &Draft, signer: &IdentityKey) -> Record {
    draft.sign(signer, &network(), &Real).unwrap()
}

fn statement(of: &IdentityKey, id: NodeId, key: &AgreementKey) -> KeyStatement {
    let validity = NOW..NOW.after(Duration::from_secs(25 * 3_600));
    KeyStatement::sign(of, &network(), id, *key.public(), validity, &Real)
}

fn node_record() -> Record {
    let roles = Roles { tunnel: true, super_node: false };
    let body = NodeBody { identity: node().public(), receiving: *receiving().public(), roles };
    let about = (DOMAIN, node_id().record_key());
    made(&signed(&operator(), Table::Node, about, body.write()), &operator())
}

fn operator_record() -> Record {
    let body = OperatorBody {
        identity: operator().public(),
        enrolment: *enrolment().public(),
        addresses: vec!["192.0.2.1:7400".parse().unwrap(), "[2001:db8::1]:7400".parse().unwrap()],
        state: OperatorState::Active,
    };
    let about = (Domain::OPERATORS, operator_id().record_key());
    made(&signed(&root(), Table::OperatorNode, about, body.write()), &root())
}

fn node_info() -> (Record, NodeInfoPrivate) {
    let [sealing, _] = sealing();
    let public = NodeInfoPublic {
        statement: statement(&node(), node_id(), &sealing),
        tags: vec![domain_keys().tag(&location(), 20_833)],
        addresses: Vec::new(),
    };
    let private = NodeInfoPrivate {
        candidates: candidates(),
        locations: vec![location()],
        attachments: vec![operator_id()],
    };
    let about = (DOMAIN, node_id().record_key());
    let draft = signed(&node(), Table::NodeInfo, about, public.write());
    (made(&draft.with_private(&domain_keys(), [0x0f; 16], private.write()), &node()), private)
}

fn candidates() -> Vec<Candidate> {
    let candidate =
        |kind, transport, address: &str| Candidate { kind, transport, address: address.parse().unwrap() };
    vec![
        candidate(CandidateKind::Ethernet, Transport::Tcp, "192.168.1.7:7401"),
        candidate(CandidateKind::Wifi, Transport::Udp, "[2001:db8::7]:7401"),
    ]
}

fn device() -> EndDevice {
    let service =
        |name: &str, port, tls| Service { name: name.to_owned(), port, protocol: Protocol::Tcp, tls };
    EndDevice {
        device: device_id(),
        name: "hp".to_owned(),
        kind: "printer".to_owned(),
        mac: Mac([0x02, 0x42, 0xac, 0x11, 0x00, 0x02]),
        pins: vec![[0x0b; 32]],
        services: vec![service("ipp", 631, false), service("ipps", 443, true)],
        site: vec![location()],
        via: Some(node_id()),
        users: vec![node_id()],
        servers: Vec::new(),
        local: LocalPolicy::Never,
    }
}

fn device_record() -> Record {
    let about = (DOMAIN, domain_keys().device_record_key(&device_id()));
    let draft = signed(&operator(), Table::EndDevice, about, EndDevice::public());
    made(&draft.with_private(&domain_keys(), [0x10; 16], device().write()), &operator())
}

fn domain_key_record() -> Record {
    let receiving = receiving();
    let to = (&network(), node_id(), receiving.public());
    let body = DomainKeyBody::seal(&domain_keys(), to, &mut TestRng(1)).unwrap();
    let about = (DOMAIN, node_id().record_key());
    made(&signed(&operator(), Table::DomainKey, about, body.write()), &operator())
}

fn super_node() -> SuperNodeBody {
    SuperNodeBody {
        segment: Segment { from: PlacementKey(1 << 32), to: PlacementKey(u64::MAX) },
        map_version: 1,
        identity: node().public(),
        addresses: vec!["192.0.2.7:7400".parse().unwrap(), "[2001:db8::7]:7400".parse().unwrap()],
    }
}

fn head() -> (Record, HeadBody) {
    let body = HeadBody {
        operators: SetSummary::of([&operator_record()]),
        revocations: SetSummary::default(),
        devices: SetSummary::of([&device_record()]),
        epoch: 3,
        map_version: 1,
        offline_hours: Some(72),
        super_nodes: None,
    };
    let about = (DOMAIN, HeadBody::record_key(DOMAIN));
    (made(&signed(&operator(), Table::Head, about, body.write()), &operator()), body)
}

fn check_record(vectors: &mut Vectors, name: &str, record: &Record, signer: &IdentityKey) {
    vectors.check(name, record.bytes());
    let parsed = UnverifiedRecord::parse(record.bytes()).unwrap();
    parsed.check_time(NOW).unwrap();
    assert_eq!(parsed.verify(&network(), &signer.public(), &Real).as_ref(), Ok(record), "{name}");
}

/// Rules 2.1, 2.2 and 2.5 to 2.20.
#[test]
fn records_have_the_bytes_that_they_had() {
    let mut vectors = Vectors::read("records.txt");
    check_inputs(&mut vectors);
    check_record(&mut vectors, "node", &node_record(), &operator());
    check_record(&mut vectors, "operator_node", &operator_record(), &root());
    let (record, private) = node_info();
    check_record(&mut vectors, "node_info", &record, &node());
    vectors.check("node_info.private", &private.write().finish());
    assert_eq!(record.read_private(&domain_keys(), &Real, NodeInfoPrivate::read), Ok(private));
    let body = super_node();
    let draft = signed(&operator(), Table::SuperNode, (DOMAIN, node_id().record_key()), body.write());
    let record = made(&draft, &operator());
    check_record(&mut vectors, "super_node", &record, &operator());
    assert_eq!(SuperNodeBody::read(&record), Ok(super_node()));
    check_record(&mut vectors, "end_device", &device_record(), &operator());
    vectors.check("end_device.private", &device().write().finish());
    assert_eq!(device_record().read_private(&domain_keys(), &Real, EndDevice::read), Ok(device()));
    check_record(&mut vectors, "domain_key", &domain_key_record(), &operator());
    let keys = DomainKeyBody::read(&domain_key_record()).unwrap().open(&network(), node_id(), &receiving());
    assert_eq!(keys, Ok(domain_keys()));
    for (name, kind) in [
        ("revocation_of_node", RevocationKind::Node(node_id())),
        ("revocation_of_domain", RevocationKind::Domain(DOMAIN)),
    ] {
        let body = RevocationBody { kind, at: NOW, reason: 4 };
        let draft = signed(&operator(), Table::Revocation, (DOMAIN, body.record_key()), body.write());
        check_record(&mut vectors, name, &made(&draft, &operator()), &operator());
    }
    let (record, body) = head();
    check_record(&mut vectors, "head", &record, &operator());
    assert_eq!(HeadBody::read(&record), Ok(body));
    let body = HeadBody { super_nodes: Some(SetSummary { count: 3, sum: [0x19; 32] }), ..body };
    let draft = signed(&operator(), Table::Head, (DOMAIN, HeadBody::record_key(DOMAIN)), body.write());
    let record = made(&draft, &operator());
    check_record(&mut vectors, "head_with_super_nodes", &record, &operator());
    assert_eq!(HeadBody::read(&record), Ok(body));
    let about = (DOMAIN, node_id().record_key());
    let mut draft = signed(&operator(), Table::Node, about, MapWriter::new());
    draft.header.version += 1;
    draft.header.removed = true;
    check_record(&mut vectors, "tombstone_of_node", &made(&draft, &operator()), &operator());
    vectors.finish();
}

fn ends() -> Ends {
    Ends { network: network(), sender: node_id(), receiver: operator_id() }
}

/// Rules 3.1 to 3.7, 3.9 and 3.10.
#[test]
fn datagrams_have_the_bytes_that_they_had() {
    let mut vectors = Vectors::read("datagrams.txt");
    check_inputs(&mut vectors);
    let [own, peer] = sealing();
    let introduction = Introduction {
        record: node_record().bytes().to_vec(),
        statement: statement(&node(), node_id(), &own),
    };
    vectors.check("key_statement", &introduction.statement.to_bytes());
    vectors.check("introduction", &introduction.to_bytes());

    let mut rng = TestRng(2);
    let mut context = SendContext::open(ends(), &own, peer.public(), NOW, &Real, &mut rng).unwrap();
    vectors.check("enc", context.enc());
    let ping = Request::Ping.encode();
    let plain = context.seal_long(Class::Read, &ping, None, None, NOW, (&Real, &mut rng)).unwrap();
    vectors.check("long", &plain.datagram);
    let request = Request::Store(node_info().0.bytes().slice(..100)).encode();
    let full = context
        .seal_long(
            Class::Other,
            &request,
            Some(introduction.clone()),
            Some([0x11; 16]),
            NOW,
            (&Real, &mut rng),
        )
        .unwrap();
    vectors.check("long_with_introduction_and_cookie", &full.datagram);
    let short = context.seal_short(Class::Read, &ping, NOW, (&Real, &mut rng)).unwrap();
    vectors.check("short_read", &short.datagram);
    let other = context.seal_short(Class::Other, &request, NOW, (&Real, &mut rng)).unwrap();
    vectors.check("short_other", &other.datagram);

    let accepted = accept(&plain.datagram, &ping);
    accept(&full.datagram, &request);
    let Ok(Packet::Short { header, aad, sealed }) = Packet::parse(&short.datagram) else {
        panic!("is short")
    };
    assert_eq!(accepted.open_request(&header.nonce, aad, sealed, &Real).as_ref(), Ok(&ping));

    let answer = Reply::Reping { observed: "198.51.100.7:40000".parse().unwrap() }.encode();
    let reply = accepted.seal_reply(short.nonce, &answer, (&Real, &mut rng)).unwrap();
    vectors.check("reply_to_short_read", &reply);
    let Ok(Packet::Reply { header, aad, sealed }) = Packet::parse(&reply) else { panic!("is a reply") };
    assert_eq!(context.open_reply(&header, aad, sealed, &Real), Ok(answer));

    for (name, reason) in [
        ("hint_need_introduction", HintReason::NeedIntroduction),
        ("hint_need_long", HintReason::NeedLong),
        ("hint_stale_key", HintReason::StaleKey(introduction.statement.to_bytes())),
        ("hint_cookie", HintReason::Cookie([0x11; 16])),
    ] {
        let hint = Hint { echo: *plain.datagram.last_chunk().unwrap(), reason };
        vectors.check(name, &hint.to_bytes());
        assert!(hint.to_bytes().len() <= plain.datagram.len());
        assert_eq!(Packet::parse(&hint.to_bytes()), Ok(Packet::Hint(hint)));
    }
    vectors.finish();
}

/// Opens a long form with the operator's key alone, and compares what is in it.
fn accept(datagram: &[u8], plaintext: &[u8]) -> ReceiveContext {
    let [sender, own] = sealing();
    let Ok(Packet::Long { header, aad, sealed }) = Packet::parse(datagram) else {
        panic!("is of the long form")
    };
    assert_eq!(header.receiver_key, KeyHint::of(own.public()));
    assert_eq!(header.sender_key, KeyHint::of(sender.public()));
    assert_eq!(header.nonce.time(), NOW);
    let accepted = ReceiveContext::accept(network(), &header, &own, sender.public(), &Real).unwrap();
    let opened = accepted.open_request(&header.nonce, aad, sealed, &Real).unwrap();
    assert_eq!(Request::decode(&opened), Request::decode(plaintext));
    accepted
}

/// Two positions in the node's domain.
fn range_ends() -> [PlaceKey; 2] {
    let place = Segment::of_domain(DOMAIN);
    [
        PlaceKey { place: place.from, key: RecordKey([0x13; 32]) },
        PlaceKey { place: place.to, key: RecordKey([0x15; 32]) },
    ]
}

fn summary() -> SetSummary {
    SetSummary { count: 1_000, sum: [0x19; 32] }
}

fn submission() -> Submission {
    Submission {
        id: CommandId([0x12; 16]),
        addresses: super_node().addresses,
        version: NOW.as_millis(),
        leaving: false,
        load: Load {
            relayed_bytes: 1 << 40,
            relayed_tunnels: 12,
            records: 3_400,
            held_bytes: 1_700_000,
            max_bytes: 64 << 20,
            lacking: 2,
        },
    }
}

/// One refusal for each reason.
fn refused() -> Vec<Refused> {
    RefusedReason::ALL
        .iter()
        .map(|(reason, n)| Refused { domain: DOMAIN, reason: *reason, count: u32::from(*n) })
        .collect()
}

fn requests() -> Vec<(&'static str, Request)> {
    let (id, after) = (CommandId([0x12; 16]), Some(RecordKey([0x13; 32])));
    let tunnel = TunnelRequest {
        id: SessionId([0x14; 16]),
        device: device_id(),
        service: "ipp".to_owned(),
        candidates: candidates(),
        relay: None,
        hello: None,
    };
    let key = RecordKey([0x15; 32]);
    let [from, to] = range_ends();
    vec![
        ("get_operator_nodes", Request::GetOperatorNodes { after: None }),
        ("get_operator_nodes_after", Request::GetOperatorNodes { after }),
        ("get_super_nodes", Request::GetSuperNodes { key: None, after: None }),
        ("get_super_nodes_of_key", Request::GetSuperNodes { key: Some(vec![0x15; 32]), after }),
        ("get_node", Request::GetNode(node_id())),
        ("get_node_info", Request::GetNodeInfo(node_id())),
        ("get_tunnel_nodes", Request::GetTunnelNodes { tags: vec![LookupTag([0x16; 16]); 2], after: None }),
        ("tunnel_request", Request::TunnelRequest(tunnel)),
        ("ping", Request::Ping),
        ("ping_elsewhere", Request::PingElsewhere),
        ("get_devices", Request::GetDevices { after, range: Segment::ALL }),
        ("get_head", Request::GetHead { domain: None }),
        ("store", Request::Store(node_record().bytes().clone())),
        ("device_seen", Request::DeviceSeen { id, key, location: location() }),
        ("leave", Request::Leave(id)),
        ("attach", Request::Attach),
        ("notify", Request::Notify { id, head: head().0.bytes().clone() }),
        ("get_revocations", Request::GetRevocations { after: None }),
        ("get_domain_key", Request::GetDomainKey),
        ("get_devices_of_range", Request::GetDevices { after, range: super_node().segment }),
        ("get_head_of_domain", Request::GetHead { domain: Some(DOMAIN) }),
        ("get_heads", Request::GetHeads(vec![DOMAIN, Domain(0x1617_1819), Domain(0x2021_2223)])),
        ("submit_super_node", Request::SubmitSuperNode(submission())),
        (
            "submit_super_node_leaving",
            Request::SubmitSuperNode(Submission { leaving: true, addresses: vec![], ..submission() }),
        ),
        (
            "transfer_partition",
            Request::TransferPartition { table: Table::Node, range: super_node().segment, after: None },
        ),
        (
            "transfer_partition_after",
            Request::TransferPartition { table: Table::EndDevice, range: Segment::ALL, after: Some(from) },
        ),
        ("reconcile", Request::Reconcile { table: Table::NodeInfo, from, to, summary: summary() }),
        ("refusals", Request::Refusals { id, refused: refused() }),
    ]
}

fn replies() -> Vec<(&'static str, Reply)> {
    let id = CommandId([0x12; 16]);
    let observed = "198.51.100.7:40000".parse().unwrap();
    let page = |records: &[Record], more| Page {
        records: records.iter().map(|record| record.bytes().clone()).collect(),
        more,
    };
    let none = || page(&[], false);
    let (node, version) = (node_record(), NOW.as_millis());
    let parts = range_ends().map(|to| Part { to, summary: summary() }).to_vec();
    let entries = range_ends().map(|at| Entry { place: at.place, ..Entry::of(&node) }).to_vec();
    vec![
        ("operator_nodes", Reply::OperatorNodes(page(&[operator_record()], true))),
        ("super_nodes", Reply::SuperNodes(none())),
        ("node", Reply::Node(Some(node.bytes().clone()))),
        ("no_node", Reply::Node(None)),
        ("node_info", Reply::NodeInfo(Some(node_info().0.bytes().clone()))),
        ("tunnel_nodes", Reply::TunnelNodes(page(&[node_info().0], false))),
        ("tunnel_opened", Reply::TunnelOpened { candidates: candidates(), flight: None }),
        ("reping", Reply::Reping { observed }),
        ("devices", Reply::Devices(page(&[device_record()], false))),
        ("head", Reply::Head(Some(head().0.bytes().clone()))),
        ("heads", Reply::Heads(vec![head().0.bytes().clone(), Bytes::from_static(&[0x1c; 7])])),
        ("stored", Reply::Stored { table: Table::Node, key: node.header().key, version }),
        ("device_noted", Reply::DeviceNoted(id)),
        ("left", Reply::Left(id)),
        ("attached", Reply::Attached { observed, head: Some(head().0.bytes().clone()) }),
        (
            "attached_without_head",
            Reply::Attached { observed: "[2001:db8::9]:9".parse().unwrap(), head: None },
        ),
        ("notified", Reply::Notified(id)),
        ("revocations", Reply::Revocations(none())),
        ("domain_key", Reply::DomainKey(Some(domain_key_record().bytes().clone()))),
        ("stale_time", Reply::StaleTime(NOW)),
        ("super_node_submitted", Reply::SuperNodeSubmitted { id, state: SuperNodeState::Assigned }),
        ("partition", Reply::Partition(page(&[node], true))),
        ("reconciled_same", Reply::Reconciled(Reconciled::Same)),
        ("reconciled_parts", Reply::Reconciled(Reconciled::Parts(parts))),
        ("reconciled_entries", Reply::Reconciled(Reconciled::Entries(entries))),
        ("reconciled_none", Reply::Reconciled(Reconciled::Entries(vec![]))),
        ("refusals_noted", Reply::RefusalsNoted(id)),
    ]
}

/// Messages by the names of their vectors.
type Named<T> = Vec<(&'static str, T)>;

/// What passes through forwarders and relays.
fn passing() -> (Named<Request>, Named<Reply>) {
    let relayed = TunnelRequest {
        id: SessionId([0x14; 16]),
        device: device_id(),
        service: "ipp".to_owned(),
        candidates: candidates(),
        relay: Some(node_id()),
        hello: None,
    };
    let prepared = TunnelRequest { hello: Some(Bytes::from_static(&[0x1a; 9])), ..relayed.clone() };
    let flight = Some(Bytes::from_static(&[0x1b; 11]));
    let (inner, token) = (Bytes::from_static(&[0x17; 40]), Bytes::from_static(&[0x18; 24]));
    let observed = "198.51.100.7:40000".parse().unwrap();
    let forward = Forward { observed, inner: inner.clone(), token: token.clone() };
    let requests = vec![
        ("tunnel_request_with_relay", Request::TunnelRequest(relayed)),
        ("tunnel_request_with_hello", Request::TunnelRequest(prepared)),
        ("forwarded_tunnel_request", Request::ForwardedTunnelRequest { to: node_id(), inner: inner.clone() }),
        ("forward", Request::Forward(forward)),
        ("relay_join", Request::RelayJoin { link: LinkId([0x19; 16]), peer: node_id() }),
    ];
    let replies = vec![
        ("tunnel_opened_with_flight", Reply::TunnelOpened { candidates: candidates(), flight }),
        ("forwarded_tunnel_opened", Reply::ForwardedTunnelOpened(Some(inner.clone()))),
        ("forwarded_to_nobody", Reply::ForwardedTunnelOpened(None)),
        ("forwarded", Reply::Forwarded { token, inner }),
        ("relay_joined", Reply::RelayJoined(Ok(()))),
        ("relay_refused", Reply::RelayJoined(Err(RelayRefusal::DomainQuota))),
    ];
    (requests, replies)
}

/// Rules 4.1 to 4.4.
#[test]
fn commands_have_the_bytes_that_they_had() {
    let mut vectors = Vectors::read("commands.txt");
    check_inputs(&mut vectors);
    let (passing, passed) = passing();
    for (name, request) in requests().into_iter().chain(passing) {
        let bytes = request.encode();
        vectors.check(&format!("request.{name}"), &bytes);
        assert_eq!(Request::decode(&bytes), Ok(request), "{name}");
    }
    for (name, reply) in replies().into_iter().chain(passed) {
        let bytes = reply.encode();
        vectors.check(&format!("reply.{name}"), &bytes);
        assert_eq!(Reply::decode(&bytes), Ok(reply), "{name}");
    }
    vectors.finish();
}

fn trusted(hello: &Hello) -> TrustedOperator {
    hello.verify(&network(), Some(NOW), &Real).unwrap()
}

fn admission() -> Admission {
    let [_, sealing] = sealing();
    Admission {
        node: node_record().bytes().clone(),
        domain_key: domain_key_record().bytes().clone(),
        operators: vec![operator_record().bytes().clone()],
        statement: statement(&operator(), operator_id(), &sealing),
        domain_name: "acme".to_owned(),
        time: NOW,
    }
}

/// Rules 5.1 to 5.6.
#[test]
fn joining_has_the_bytes_that_it_had() {
    let mut vectors = Vectors::read("joining.txt");
    check_inputs(&mut vectors);
    let addresses = vec!["192.0.2.1:7400".parse().unwrap(), "[2001:db8::1]:7400".parse().unwrap()];
    let token = JoinToken { network: network(), id: TokenId([0x17; 8]), secret: [0x18; 16], addresses };
    vectors.check("token_text", token.to_string().as_bytes());
    assert_eq!(token.to_string().parse(), Ok(token.clone()));

    let hello = Hello { root: root().public(), operator: operator_record().bytes().clone() };
    vectors.check("hello", &hello.encode());
    let operator = trusted(&Hello::decode(&hello.encode()).unwrap());
    let mut request = EnrolRequest {
        credential: Credential::Token { id: token.id, secret: token.secret },
        identity: node().public(),
        receiving: *receiving().public(),
        time: NOW,
        name: "front desk".to_owned(),
    };
    let mut seal = |name, request: &EnrolRequest| {
        let sealed = request.seal(&network(), &operator, &node(), &mut TestRng(3)).unwrap();
        vectors.check(name, &sealed);
        let opened = EnrolRequest::open(&sealed, &network(), operator_id(), &enrolment());
        assert_eq!(opened.as_ref(), Ok(request));
        sealed
    };
    let by_token = seal("request_by_token", &request);
    request.credential = Credential::Possession(node_id());
    seal("request_by_possession", &request);

    for (name, answer) in [
        ("answer_admitted", EnrolAnswer::Admitted(Box::new(admission()))),
        ("answer_pending", EnrolAnswer::Pending),
        ("answer_refused", EnrolAnswer::Refused(Refusal::UsedUpToken)),
    ] {
        let sealed = answer.seal(&network(), receiving().public(), &by_token, &mut TestRng(4)).unwrap();
        vectors.check(name, &sealed);
        assert_eq!(EnrolAnswer::open(&sealed, &network(), &receiving(), &by_token), Ok(answer), "{name}");
    }
    vectors.finish();
}
