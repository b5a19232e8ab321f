use std::net::IpAddr;

use peerage_wire::cbor::MapWriter;
use peerage_wire::codec::{Protocol, Service};
use peerage_wire::crypto::Real;
use peerage_wire::id::{Domain, Mac};
use peerage_wire::intro::KeyStatement;
use peerage_wire::keys::{IdentityKey, SecretKey};
use peerage_wire::record::{Draft, Header, LocalPolicy};

use super::*;
use crate::carrier::Carrier;
use crate::endpoint::tests::{Bed, DOMAIN};
use crate::lan::{Gateway, InterfaceAddress, InterfaceKind};

const PRINTER: Mac = Mac([2, 0, 0, 0, 0, 9]);

fn keys() -> DomainKeys {
    DomainKeys { epoch: 1, epoch_key: SecretKey([1; 32]), previous: None, location_key: SecretKey([2; 32]) }
}

fn printer() -> EndDevice {
    EndDevice {
        device: DeviceId::new(PRINTER, None),
        name: "hp".to_owned(),
        kind: String::new(),
        mac: PRINTER,
        pins: Vec::new(),
        services: vec![Service { name: "ipp".to_owned(), port: 631, protocol: Protocol::Tcp, tls: false }],
        site: Vec::new(),
        via: None,
        users: Vec::new(),
        servers: Vec::new(),
        local: LocalPolicy::WithProof,
    }
}

/// Signs a device's record with a private body of the test's choice.
fn device_record(bed: &Bed, body: MapWriter) -> Record {
    let header = Header {
        table: Table::EndDevice,
        domain: DOMAIN,
        key: keys().device_record_key(&printer().device),
        version: bed.now.unix.as_millis(),
        expires: bed.now.unix.after(Duration::from_secs(86_400)),
        signer: bed.operator.node_id(Domain::OPERATORS),
        removed: false,
    };
    let draft = Draft { header, public: EndDevice::public(), private: None };
    let draft = draft.with_private(&keys(), [4; 16], body);
    draft.sign(&bed.operator, &bed.network, &Real).unwrap()
}

/// Makes a node that has these records in its store, and an operator to ask, who never answers.
pub(super) fn node(bed: &mut Bed, mut records: Vec<Record>) -> Node {
    let identity = IdentityKey::generate(&mut bed.rng);
    let record = bed.node_record(&identity, DOMAIN, Roles { tunnel: true, super_node: false });
    records.extend([bed.operator_record.clone(), record.clone()]);
    let key = *AgreementKey::from_secret([6; 32]).public();
    let validity = bed.now.unix..bed.now.unix.after(Duration::from_secs(86_400));
    let operator = bed.operator.node_id(Domain::OPERATORS);
    let statement = KeyStatement::sign(&bed.operator, &bed.network, operator, key, validity, &Real);
    let config = Config {
        endpoint: bed.config(&identity, &record),
        root: bed.root.public(),
        receiving: AgreementKey::from_secret([8; 32]),
        keys: keys(),
        statements: vec![statement],
        records,
        port: 7_400,
        advertise: Vec::new(),
        serves: true,
        elections: Elections { multicast: false, spread: Duration::ZERO, ..Elections::default() },
        eager: false,
        place: None,
        one_machine: false,
        bound: None,
        carriers: vec![Carrier::Udp],
        wide_checks: false,
        known_carriers: Default::default(),
        super_role: SuperConfig::default(),
    };
    Node::new(config, [9; 32], bed.now)
}

/// Rule 2.3: a field that this version must not overlook makes the device unusable; a hint from 128 on does not.
#[test]
fn a_device_with_a_field_that_must_be_understood_is_not_used() {
    for (key, usable) in [(12, false), (127, false), (128, true), (60_000, true)] {
        let mut bed = Bed::new();
        let mut body = printer().write();
        body.uint(key, 1_u64);
        let record = device_record(&bed, body);
        let node = node(&mut bed, vec![record]);
        assert_eq!(node.status(bed.now).devices.len(), usize::from(usable), "{key}");
    }
}

/// Rule 2.11: what is sealed in an epoch whose key is not here waits; it is no device yet.
#[test]
fn a_device_of_an_unknown_epoch_waits_for_the_key() {
    let mut bed = Bed::new();
    let record = device_record(&bed, printer().write());
    let mut node = node(&mut bed, vec![record]);
    assert_eq!(node.devices.len(), 1);
    node.keys.epoch = 5;
    node.keys.previous = None;
    node.reread_devices();
    assert!(node.devices.is_empty());
}

/// More routes than may be looked for at once are refused, and all of them end although nobody answers.
#[test]
fn routes_are_bounded_and_end() {
    let mut bed = Bed::new();
    let mut node = node(&mut bed, Vec::new());
    let route = || Command::Route { device: "hp".to_owned(), service: None };
    for n in 0..1_030 {
        node.handle(Input::Command { task: TaskId(1 << 40 | n), command: route() }, bed.now);
    }
    let answers = |node: &mut Node| {
        let outputs = std::iter::from_fn(|| node.poll_output());
        let answer_of = |output| if let Output::Answer { answer, .. } = output { Some(answer) } else { None };
        outputs.filter_map(answer_of).collect::<Vec<_>>()
    };
    let mut all = answers(&mut node);
    let mut now = bed.now;
    while let Some((at, _)) =
        node.poll_timeout().filter(|(at, _)| *at <= bed.now.mono.after(Duration::from_secs(20)))
    {
        now = Now { mono: at.max(now.mono), unix: now.unix.after(at - now.mono) };
        node.handle(Input::Timeout, now);
        all.extend(answers(&mut node));
    }
    let busy = all.iter().filter(|answer| **answer == Answer::Failed(Failure::Busy)).count();
    assert_eq!((all.len(), busy), (1_030, 6));
}

/// Rule 6.1: a record that has expired by a clock that nobody has confirmed is not thrown away.
#[test]
fn nothing_is_judged_expired_before_the_time_is_known() {
    let mut bed = Bed::new();
    let record = device_record(&bed, printer().write());
    let mut node = node(&mut bed, vec![record]);
    let later = bed.now.after(Duration::from_secs(10 * 86_400));
    node.handle(Input::Timeout, later);
    assert_eq!(node.devices.len(), 1);
    node.endpoint.trust_own_clock();
    node.handle(Input::Timeout, later.after(Duration::from_secs(120)));
    assert!(node.devices.is_empty());
}

/// One interface of an office, told from others by its router.
fn office(router: u8) -> Vec<Interface> {
    let (address, gateway) = (IpAddr::from([192, 168, 1, 9]), IpAddr::from([192, 168, 1, 1]));
    vec![Interface {
        index: 2,
        name: "eth0".to_owned(),
        kind: InterfaceKind::Ethernet,
        up: true,
        mac: None,
        addresses: vec![InterfaceAddress { address, prefix: "192.168.1.0/24".parse().unwrap() }],
        gateways: vec![Gateway { metric: 0, address: gateway, mac: Some(Mac([router; 6])) }],
    }]
}

/// Rule 6.107.
#[test]
fn what_carries_messages_in_a_network_is_kept_for_the_next_time_up_to_a_limit() {
    let mut bed = Bed::new();
    let mut node = node(&mut bed, Vec::new());
    let mut kept = KnownCarriers::new();
    for router in 0..70 {
        node.handle(Input::Networks(office(router)), bed.now);
        node.remember_carrier(Some(Carrier::Wss));
        let outputs = std::iter::from_fn(|| node.poll_output());
        let keeps = outputs.filter_map(|o| if let Output::KeepCarriers(all) = o { Some(all) } else { None });
        kept = keeps.last().unwrap();
    }
    assert_eq!(kept.len(), MAX_REMEMBERED);
    let here = node.places.all().next().unwrap();
    assert_eq!(kept.get(&here), Some(&Carrier::Wss));
    node.remember_carrier(None);
    assert!(!node.known_carriers.contains_key(&here), "UDP works here after all");
}
