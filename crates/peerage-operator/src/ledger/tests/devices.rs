use super::*;
use crate::ledger::DeviceError;
use peerage_wire::id::LocationId;
use peerage_wire::limits::MAX_SITE_LOCATIONS;
use peerage_wire::record::EndDevice;

fn add(bench: &mut Bench, new: NewDevice) -> Result<DeviceRow, DeviceError> {
    let domain = bench.domain;
    bench.act(|tx| tx.add_device(domain, new, Actor::Admin))
}

/// Reports the only device that is there at a place of the test's own numbering.
fn see(bench: &mut Bench, computer: &Computer, place: u8) -> bool {
    let node = computer.id(bench.domain);
    let key = bench.records_of(Table::EndDevice)[0].header().key;
    bench.act(|tx| tx.device_seen(node, key, LocationId([place; 32]))).unwrap()
}

fn site(bench: &mut Bench) -> Vec<u8> {
    let domain = bench.domain;
    bench.read(|tx| tx.devices(domain))[0].body.site.iter().map(|location| location.0[0]).collect()
}

#[test]
fn a_member_can_read_what_was_registered() {
    let mut bench = Bench::new();
    let computer = bench.member(1);
    let row = bench.add_device("hp", 1);
    let keys = bench.keys_of(&computer).unwrap();
    let record = &bench.records_of(Table::EndDevice)[0];
    assert_eq!(record.read_private(&keys, &CRYPTO, EndDevice::read).unwrap(), row.body);
    assert_eq!(record.header().key, keys.device_record_key(&row.body.device));
    assert_eq!((row.version, row.expires_at), (record.header().version, record.header().expires));
}

#[test]
fn names_and_addresses_are_taken_once_in_a_domain() {
    let mut bench = Bench::new();
    bench.add_device("hp", 1);
    assert!(matches!(add(&mut bench, device("hp", 2)), Err(DeviceError::NameTaken)));
    assert!(matches!(add(&mut bench, device("lp", 1)), Err(DeviceError::MacTaken)));
    bench.domain = bench.add_domain("other");
    bench.add_device("hp", 1);
}

/// Rule 2.20: a tombstone lives until the removed record would have ended.
#[test]
fn a_removed_device_leaves_a_tombstone_and_can_come_back() {
    let mut bench = Bench::new();
    let first = bench.add_device("hp", 1);
    let domain = bench.domain;
    let removed = bench.act(|tx| tx.remove_device(domain, "hp", Actor::Admin)).unwrap();
    assert!(removed.removed);
    let tomb = bench.records_of(Table::EndDevice)[0].header().to_owned();
    assert!(tomb.removed && tomb.version > first.version);
    assert_eq!(tomb.expires, first.expires_at);
    assert!(bench.read(|tx| tx.devices(domain)).is_empty());
    let id = first.body.device.to_string();
    assert!(matches!(
        bench.act(|tx| tx.remove_device(domain, &id, Actor::Admin)),
        Err(DeviceError::Unknown(_))
    ));
    let again = bench.add_device("hp-again", 1);
    assert!(again.version > tomb.version && !again.removed);
    assert_eq!(again.body.device, first.body.device);
}

#[test]
fn what_does_not_make_a_device_is_refused() {
    let mut bench = Bench::new();
    let service = device("a", 1).services.remove(0);
    let with_services = |services| NewDevice { services, ..device("a", 1) };
    let refuse = |bench: &mut Bench, new| add(bench, new).unwrap_err();
    assert!(matches!(refuse(&mut bench, with_services(vec![])), DeviceError::Services));
    let twice = vec![service.clone(), service.clone()];
    assert!(matches!(refuse(&mut bench, with_services(twice)), DeviceError::Services));
    let mut no_port = service.clone();
    no_port.port = 0;
    assert!(matches!(refuse(&mut bench, with_services(vec![no_port])), DeviceError::Services));
    let long = (1..=16).map(|n| peerage_wire::codec::Service {
        name: format!("{n:060}"),
        port: n,
        ..service.clone()
    });
    assert!(matches!(refuse(&mut bench, with_services(long.collect())), DeviceError::TooLong));
    let new = NewDevice { users: Some(vec![]), ..device("a", 1) };
    assert!(matches!(refuse(&mut bench, new), DeviceError::Users));
    let new = NewDevice { users: Some(vec!["nobody".to_owned()]), ..device("a", 1) };
    assert!(matches!(refuse(&mut bench, new), DeviceError::Node(_)));
    let new = NewDevice { pins: vec![[1; 32]; 2], ..device("a", 1) };
    assert!(matches!(refuse(&mut bench, new), DeviceError::Pins));
    let new = NewDevice { kind: "x".repeat(33), ..device("a", 1) };
    assert!(matches!(refuse(&mut bench, new), DeviceError::Kind));
    let domain = bench.domain;
    assert!(bench.read(|tx| tx.devices(domain)).is_empty());
}

#[test]
fn the_first_member_that_sees_a_device_tells_where_it_is() {
    let mut bench = Bench::new();
    let computer = bench.member(1);
    bench.add_device("hp", 1);
    bench.take_changes();
    assert!(see(&mut bench, &computer, 1));
    assert_eq!(site(&mut bench), [1]);
    assert_eq!(bench.take_changes()[0].records.len(), 1);
    assert!(see(&mut bench, &computer, 1), "again");
    assert!(bench.take_changes()[0].is_empty());
}

#[test]
fn only_the_named_node_tells_where_its_device_is() {
    let mut bench = Bench::new();
    let (named, other) = (bench.member(1), bench.member(2));
    let via = Some(named.id(bench.domain).to_string());
    add(&mut bench, NewDevice { via, ..device("hp", 1) }).unwrap();
    assert!(!see(&mut bench, &other, 9));
    assert!(see(&mut bench, &named, 1));
    assert!(!see(&mut bench, &other, 9));
    assert!(see(&mut bench, &named, 2));
    assert_eq!(site(&mut bench), [1, 2]);
}

#[test]
fn a_replaced_router_is_reported_by_who_made_the_site_and_by_nobody_else() {
    let mut bench = Bench::new();
    let (at_the_site, elsewhere) = (bench.member(1), bench.member(2));
    bench.add_device("hp", 1);
    assert!(see(&mut bench, &at_the_site, 1));
    assert!(!see(&mut bench, &elsewhere, 9));
    assert!(!see(&mut bench, &elsewhere, 9));
    assert!(see(&mut bench, &at_the_site, 2));
    assert_eq!(site(&mut bench), [1, 2]);
    let noted = bench.audit().iter().filter(|(_, action, _)| action == "device seen elsewhere").count();
    assert_eq!(noted, 1, "a repeated report is noted once a day");
}

#[test]
fn a_site_whose_reporters_are_gone_is_not_orphaned() {
    let mut bench = Bench::new();
    let (first, second) = (bench.member(1), bench.member(2));
    bench.add_device("hp", 1);
    assert!(see(&mut bench, &first, 1));
    let id = first.id(bench.domain);
    bench.act(|tx| tx.leave(id)).unwrap();
    assert!(see(&mut bench, &second, 2));
    assert_eq!(site(&mut bench), [1, 2]);
}

#[test]
fn a_full_site_is_not_changed_by_reports() {
    let mut bench = Bench::new();
    let computer = bench.member(1);
    bench.add_device("hp", 1);
    let most = u8::try_from(MAX_SITE_LOCATIONS).unwrap();
    assert!((0..most).all(|place| see(&mut bench, &computer, place)));
    assert!(!see(&mut bench, &computer, most));
    assert_eq!(site(&mut bench).len(), MAX_SITE_LOCATIONS);
}

#[test]
fn strangers_and_members_without_the_role_tell_nothing() {
    let mut bench = Bench::new();
    let (domain, member) = (bench.domain, bench.member(1));
    bench.add_device("hp", 1);
    assert!(!see(&mut bench, &Computer::new(9), 1));
    let roles = Roles::default();
    let new = NewToken { domain, uses: 1, life: DAY, roles, approval: false };
    let (row, secret) = bench.act(|tx| tx.add_token(&new, Actor::Admin)).unwrap();
    let user = Computer::new(2);
    admitted(bench.join(Token { id: row.id, secret }, &user));
    assert!(!see(&mut bench, &user, 1));
    bench.wait(31 * DAY);
    bench.act(|tx| tx.reseal(domain)).unwrap();
    assert!(!see(&mut bench, &member, 1), "its record has ended");
    assert!(site(&mut bench).is_empty());
}
