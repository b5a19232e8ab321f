//! Super-nodes: the records of their segments, and who is kept away.

use peerage_proto::operator::Assignment;
use peerage_wire::id::{PlacementKey, Segment};
use peerage_wire::record::{RevocationBody, RevocationKind, SuperNodeBody};

use super::super::{NodeError, Reason, Upkeep};
use super::*;

/// Assigns the whole table.
pub(super) fn all(computer: &Computer, domain: Domain) -> Assignment {
    Assignment {
        node: computer.id(domain),
        identity: computer.identity.public(),
        addresses: vec!["192.0.2.9:7400".parse().unwrap()],
        range: Some(Segment::ALL),
    }
}

fn assign(bench: &mut Bench, computer: &Computer) {
    let changes = [all(computer, bench.domain)];
    bench.act(|tx| tx.assign_segments(1, &changes)).unwrap();
}

fn map(bench: &mut Bench) -> Vec<SuperNodeBody> {
    let records = bench.records_of(Table::SuperNode);
    let held = records.iter().filter(|record| !record.header().removed);
    held.map(|record| SuperNodeBody::read(record).unwrap()).collect()
}

fn upkeep(bench: &mut Bench) {
    while bench.act(|tx| tx.upkeep()).unwrap() == Upkeep::More {}
}

#[test]
fn a_plan_is_signed_at_once_and_every_node_takes_the_records() {
    let mut bench = Bench::new();
    let (first, second, domain) = (bench.super_node(1), bench.super_node(2), bench.domain);
    let middle = PlacementKey(1 << 63);
    let low = Segment { from: PlacementKey::MIN, to: PlacementKey(middle.0 - 1) };
    let high = Segment { from: middle, to: PlacementKey::MAX };
    bench.take_changes();
    let changes = [
        Assignment { range: Some(low), ..all(&first, domain) },
        Assignment { range: Some(high), ..all(&second, domain) },
    ];
    bench.act(|tx| tx.assign_segments(1, &changes)).unwrap();
    let (committed, now) = (bench.take_changes(), bench.now);
    assert_eq!(committed[0].records.len(), 2);
    committed[0].records.iter().for_each(|record| check(record, now));
    let mut map = map(&mut bench);
    map.sort_by_key(|body| body.segment);
    assert_eq!((map[0].segment, map[1].segment), (low, high));
    assert_eq!((map[0].map_version, map[1].map_version), (1, 1));
    assert_eq!(map[0].identity, first.identity.public());
    assert_eq!(map[0].addresses, changes[0].addresses);
    let audited = bench.audit();
    assert_eq!(audited.last().unwrap().1, "segment assign");
}

#[test]
fn whoever_loses_its_segment_gets_a_tombstone() {
    let mut bench = Bench::new();
    let (computer, domain) = (bench.super_node(1), bench.domain);
    assign(&mut bench, &computer);
    let version = bench.records_of(Table::SuperNode)[0].header().version;
    let none = [Assignment { range: None, ..all(&computer, domain) }];
    bench.act(|tx| tx.assign_segments(2, &none)).unwrap();
    let tomb = bench.records_of(Table::SuperNode).remove(0);
    assert!(tomb.header().removed && tomb.header().version > version);
    check(&tomb, bench.now);
}

#[test]
fn the_version_of_the_map_rises_whatever_a_machine_that_forgot_it_says() {
    let mut bench = Bench::new();
    let (computer, domain) = (bench.super_node(1), bench.domain);
    for (said, kept) in [(7, 7), (1, 8), (8, 9), (20, 20)] {
        bench.act(|tx| tx.assign_segments(said, &[all(&computer, domain)])).unwrap();
        assert_eq!(map(&mut bench)[0].map_version, kept);
    }
    bench.ledger = open(&bench.dir.path().join("ledger.db"));
    assert_eq!(bench.read(|tx| tx.map_version()), 20);
}

#[test]
fn who_may_not_hold_anything_gets_nothing_signed_and_the_others_do() {
    let mut bench = Bench::new();
    let (permitted, user, domain) = (bench.super_node(1), bench.member(2), bench.domain);
    let (liar, gone) = (bench.super_node(3), bench.super_node(4));
    bench.act(|tx| tx.begin_quarantine(liar.id(domain), "it lies", Actor::Operator)).unwrap();
    bench.act(|tx| tx.leave(gone.id(domain))).unwrap();
    let stranger = Computer::new(5);
    let changes = [&permitted, &user, &liar, &gone, &stranger].map(|computer| all(computer, domain));
    bench.act(|tx| tx.assign_segments(1, &changes)).unwrap();
    let map = map(&mut bench);
    assert_eq!(map.len(), 1);
    assert_eq!(map[0].identity, permitted.identity.public());
}

#[test]
fn a_plan_that_fits_nobody_leaves_no_trace() {
    let mut bench = Bench::new();
    let (user, domain) = (bench.member(1), bench.domain);
    let noted = bench.audit().len();
    bench.take_changes();
    assign(&mut bench, &user);
    let none = [Assignment { range: None, ..all(&user, domain) }];
    bench.act(|tx| tx.assign_segments(1, &none)).unwrap();
    assert!(bench.take_changes().iter().all(Change::is_empty));
    assert_eq!((bench.read(|tx| tx.map_version()), bench.audit().len()), (0, noted));
}

/// Rule 2.14: the identity in the record is what the node has proven when it joined.
#[test]
fn the_identity_is_the_ledgers_and_not_the_plans() {
    let mut bench = Bench::new();
    let (computer, domain) = (bench.super_node(1), bench.domain);
    let changes = [Assignment { identity: [9; 32], ..all(&computer, domain) }];
    bench.act(|tx| tx.assign_segments(1, &changes)).unwrap();
    assert_eq!(map(&mut bench)[0].identity, computer.identity.public());
}

#[test]
fn a_super_node_that_is_revoked_leaves_or_ends_holds_nothing() {
    let mut bench = Bench::new();
    let domain = bench.domain;
    let thief = bench.super_node(1);
    assign(&mut bench, &thief);
    let id = thief.id(domain).to_string();
    bench.act(|tx| tx.revoke_node(domain, &id, Reason::Misbehaviour, Actor::Admin)).unwrap();
    assert!(map(&mut bench).is_empty());

    let leaver = bench.super_node(2);
    assign(&mut bench, &leaver);
    bench.act(|tx| tx.leave(leaver.id(domain))).unwrap();
    assert!(map(&mut bench).is_empty());

    let sleeper = bench.super_node(3);
    bench.wait(29 * DAY);
    assign(&mut bench, &sleeper);
    bench.wait(2 * DAY);
    upkeep(&mut bench);
    assert!(map(&mut bench).is_empty(), "its Node record has ended before its SuperNode record");
}

#[test]
fn the_record_of_a_segment_is_signed_anew_at_half_of_its_life() {
    let mut bench = Bench::new();
    let computer = bench.super_node(1);
    assign(&mut bench, &computer);
    let before = map(&mut bench);
    let made_at = |bench: &mut Bench| bench.records_of(Table::SuperNode)[0].header().made_at();
    let first = made_at(&mut bench);
    bench.wait(14 * DAY);
    upkeep(&mut bench);
    assert_eq!(made_at(&mut bench), first);
    admitted(bench.renew(&computer));
    bench.wait(2 * DAY);
    upkeep(&mut bench);
    assert!(made_at(&mut bench) > first);
    assert_eq!(map(&mut bench), before, "the map is the same");
}

#[test]
fn a_quarantine_is_kept_with_its_evidence_until_it_is_lifted() {
    let mut bench = Bench::new();
    let (computer, domain) = (bench.super_node(1), bench.domain);
    let id = computer.id(domain);
    bench.take_changes();
    let row = bench.act(|tx| tx.quarantine("front desk", "it lies", Actor::Admin)).unwrap();
    assert_eq!(row.quarantine.unwrap().evidence, "it lies");
    assert_eq!(bench.take_changes()[0].quarantine, [(id, true)]);
    bench.wait(HOUR);
    bench.act(|tx| tx.begin_quarantine(id, "it withholds", Actor::Operator)).unwrap();
    bench.act(|tx| tx.begin_quarantine(id, "it withholds", Actor::Operator)).unwrap();
    bench.ledger = open(&bench.dir.path().join("ledger.db"));
    assert_eq!(bench.read(|tx| tx.quarantined()), [id]);
    let kept = bench.read(|tx| tx.super_nodes(&[])).remove(0).quarantine.unwrap();
    assert_eq!((kept.began_at, kept.evidence.as_str()), (START, "it lies\nit withholds"));
    bench.take_changes();
    let row = bench.act(|tx| tx.release("front desk", Actor::Admin)).unwrap();
    assert_eq!(
        (row.quarantine, bench.take_changes()[0].quarantine.as_slice()),
        (None, [(id, false)].as_slice())
    );
    assert!(bench.read(|tx| tx.quarantined()).is_empty());
    assert!(matches!(bench.act(|tx| tx.release("front desk", Actor::Admin)), Err(NodeError::NotQuarantined)));
    let actions: Vec<_> = bench.audit().into_iter().map(|(_, action, _)| action).collect();
    assert_eq!(actions.iter().filter(|action| *action == "super quarantine").count(), 2);
    assert_eq!(actions.last().unwrap(), "super release");
}

#[test]
fn whoever_leaves_and_joins_again_is_still_kept_away() {
    let mut bench = Bench::new();
    let (computer, domain) = (bench.super_node(1), bench.domain);
    let id = computer.id(domain);
    bench.act(|tx| tx.begin_quarantine(id, "it lies", Actor::Operator)).unwrap();
    bench.act(|tx| tx.leave(id)).unwrap();
    let again = bench.super_node(1);
    assign(&mut bench, &again);
    assert!(map(&mut bench).is_empty());
    assert_eq!(bench.read(|tx| tx.quarantined()), [id]);
}

#[test]
fn evidence_does_not_grow_without_end() {
    let mut bench = Bench::new();
    let (computer, domain) = (bench.super_node(1), bench.domain);
    for n in 0..100 {
        let evidence = format!("{n}: {}", "x".repeat(100));
        bench.act(|tx| tx.begin_quarantine(computer.id(domain), &evidence, Actor::Operator)).unwrap();
    }
    let row = bench.read(|tx| tx.super_nodes(&[])).remove(0);
    let evidence = row.quarantine.unwrap().evidence;
    assert!(evidence.starts_with("0: ") && evidence.len() <= 4_096, "{}", evidence.len());
    let noted = bench.audit().iter().filter(|(_, action, _)| action == "super quarantine").count();
    assert!(noted < 50, "{noted}");
}

#[test]
fn a_super_node_is_found_by_name_or_id_among_those_that_may_be_one() {
    let mut bench = Bench::new();
    let (first, user, domain) = (bench.super_node(1), bench.member(2), bench.domain);
    let quarantine = |bench: &mut Bench, text: &str| bench.act(|tx| tx.quarantine(text, "", Actor::Admin));
    let id = first.id(domain).to_string();
    assert_eq!(quarantine(&mut bench, &id[..20]).unwrap().node.id, first.id(domain));
    let id = user.id(domain).to_string();
    for text in ["", "none", id.as_str()] {
        assert!(matches!(quarantine(&mut bench, text), Err(NodeError::UnknownSuperNode(_))), "{text}");
    }
    bench.super_node(3);
    assert!(matches!(quarantine(&mut bench, "front desk"), Err(NodeError::Ambiguous(_))));
}

/// A whole organisation is excluded: nobody of it is let in, answered or relied on.
#[test]
fn a_revoked_domain_is_out_for_good() {
    let mut bench = Bench::new();
    let (computer, domain) = (bench.super_node(1), bench.domain);
    let open_token = bench.token(3);
    assign(&mut bench, &computer);
    bench.add_device("hp", 1);
    bench.act(|tx| tx.revoke_domain("acme", Reason::Misbehaviour, Actor::Admin)).unwrap();
    let row = bench.act(|tx| tx.revoke_domain("acme", Reason::Retired, Actor::Admin)).unwrap();
    assert_eq!(row.revoked_at, Some(START));
    let revocation = bench.records_of(Table::Revocation);
    assert_eq!(revocation.len(), 1, "once");
    check(&revocation[0], bench.now);
    let body = RevocationBody::read(&revocation[0]).unwrap();
    assert_eq!((body.kind, body.reason), (RevocationKind::Domain(domain), Reason::Misbehaviour.number()));
    let of_domain = |record: &&Record| record.header().domain == domain;
    let records = bench.records();
    let last = records.iter().filter(of_domain).map(|record| record.header().expires).max().unwrap();
    assert_eq!(revocation[0].header().expires, last, "it lives as long as what it revokes");
    assert!(map(&mut bench).is_empty());
    assert_eq!(refused(bench.join(open_token, &Computer::new(2))), Refusal::RevokedDomain);
    assert_eq!(refused(bench.renew(&computer)), Refusal::RevokedDomain);
    assign(&mut bench, &computer);
    assert!(map(&mut bench).is_empty());
    assert!(bench.act(|tx| tx.find_open_domain("acme")).is_err());
    assert_eq!(bench.audit().iter().filter(|(_, action, _)| action == "domain revoke").count(), 1);
}

#[test]
fn nothing_of_a_revoked_domain_is_signed_anew() {
    let mut bench = Bench::new();
    bench.member(1);
    bench.add_device("hp", 1);
    bench.act(|tx| tx.revoke_domain("acme", Reason::Retired, Actor::Admin)).unwrap();
    bench.wait(16 * DAY);
    upkeep(&mut bench);
    for table in [Table::EndDevice, Table::DomainKey] {
        assert!(bench.records_of(table).iter().all(|record| record.header().removed), "{table:?}");
    }
    bench.wait(16 * DAY);
    upkeep(&mut bench);
    assert_eq!(bench.read(|tx| tx.facts())[0].epoch, 1);
}

#[test]
fn the_machine_is_told_which_domains_are_the_vendors() {
    let mut bench = Bench::new();
    let new = NewDomain { name: "vendor".to_owned(), offline_hours: None, vendor: true };
    let vendor = bench.act(|tx| tx.add_domain(&new, Actor::Admin)).unwrap();
    assert!(vendor.vendor);
    assert!(bench.take_changes().last().unwrap().facts[0].vendor);
    bench.act(|tx| tx.reseal(vendor.id)).unwrap();
    assert!(bench.take_changes()[0].facts[0].vendor);
    let facts = bench.read(|tx| tx.facts());
    assert_eq!(facts.iter().filter(|facts| facts.vendor).count(), 1);
}
