//! Spies: that nothing but the ledger knows them, and that they stay.

use peerage_wire::record::NodeBody;

use super::super::Reason;
use super::*;

const SPREAD: Duration = HOUR;

impl Bench {
    /// Lets the upkeep of spies do all that is due.
    fn keep_spies(&mut self) {
        while self.act(|tx| tx.upkeep_spies(SPREAD)).unwrap() {}
    }

    fn spies(&mut self) -> Vec<NodeId> {
        self.read(|tx| tx.spies()).iter().map(|spy| spy.node).collect()
    }
}

/// Rule 6.79: a domain gets two, within some time after its first member.
#[test]
fn a_domain_with_a_member_gets_two_spies_in_time() {
    let mut bench = Bench::new();
    bench.keep_spies();
    bench.wait(2 * SPREAD);
    bench.keep_spies();
    assert_eq!(bench.spies(), [], "nobody is there yet");
    bench.member(1);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..60 {
        bench.wait(SPREAD / 60);
        bench.keep_spies();
        seen.insert(bench.spies().len());
    }
    assert_eq!(seen.last(), Some(&2));
    assert!(seen.contains(&0) || seen.contains(&1), "not all at once: {seen:?}");
    bench.wait(DAY);
    bench.keep_spies();
    assert_eq!(bench.spies().len(), 2);
    let told: usize = bench.changes.iter().map(|change| change.spies.len()).sum();
    assert_eq!(told, 2, "each once");
    let shown = bench.act(|tx| tx.domains()).unwrap()[0].nodes;
    let (domain, nodes) = (bench.domain, 1);
    assert_eq!(shown, nodes, "a spy is nobody's computer");
    let listed = bench.read(|tx| tx.nodes(domain));
    assert_eq!(listed.iter().filter(|node| node.is_spy).count(), 2);
}

/// Rule 6.79: its records are those of a member, in every field.
#[test]
fn the_records_of_a_spy_look_like_those_of_a_member() {
    let mut bench = Bench::new();
    let member = bench.member(1);
    bench.wait(SPREAD);
    bench.keep_spies();
    let (domain, spies) = (bench.domain, bench.spies());
    let id = member.id(domain);
    for table in [Table::Node, Table::DomainKey] {
        let all = bench.records_of(table);
        let of = |node: &NodeId| all.iter().find(|record| record.header().key == node.record_key()).unwrap();
        let theirs = of(&id);
        for spy in &spies {
            let its = of(spy);
            assert_eq!(its.bytes().len(), theirs.bytes().len(), "{table:?}");
            let life = |record: &Record| record.header().expires.since(record.header().made_at());
            assert_eq!(life(its), life(theirs));
            assert_eq!((its.header().domain, its.header().removed), (domain, false));
        }
    }
    let nodes = bench.records_of(Table::Node);
    let roles = |id: &NodeId| {
        let record = nodes.iter().find(|record| record.header().key == id.record_key()).unwrap();
        NodeBody::read(record).unwrap().roles
    };
    assert!(spies.iter().all(|spy| roles(spy) == roles(&id)));
}

/// Rule 6.79: renewed as members renew, and as long as the domain lives.
#[test]
fn spies_are_renewed_at_half_of_their_life_and_end_with_their_domain() {
    let mut bench = Bench::new();
    bench.member(1);
    bench.wait(SPREAD);
    bench.keep_spies();
    let spies = bench.spies();
    let made: Vec<_> = bench.records_of(Table::Node).iter().map(|r| r.header().made_at()).collect();
    bench.wait(13 * DAY);
    bench.keep_spies();
    let same: Vec<_> = bench.records_of(Table::Node).iter().map(|r| r.header().made_at()).collect();
    assert_eq!(made, same, "before 13.5 days nobody renews");
    bench.wait(4 * DAY);
    bench.keep_spies();
    let now = bench.now;
    let is_fresh = |record: &Record| record.header().made_at() >= now;
    assert_eq!(bench.records_of(Table::Node).iter().filter(|record| is_fresh(record)).count(), 2);
    assert_eq!(bench.spies(), spies, "the same, with the same keys");
    bench.act(|tx| tx.revoke_domain("acme", Reason::Retired, Actor::Admin)).unwrap();
    bench.wait(16 * DAY);
    bench.keep_spies();
    let now = bench.now;
    assert!(bench.records_of(Table::Node).iter().all(|record| record.header().made_at() < now));
}

/// Rule 6.79: they are in the ledger, key and all, and one that was revoked has a successor.
#[test]
fn spies_are_there_again_after_a_restart() {
    let mut bench = Bench::new();
    bench.member(1);
    bench.wait(SPREAD);
    bench.keep_spies();
    let spies = bench.spies();
    bench.ledger = open(&bench.dir.path().join("ledger.db"));
    assert_eq!(bench.spies(), spies);
    let domain = bench.domain;
    bench
        .act(|tx| tx.revoke_node(domain, &spies[0].to_string(), Reason::KeyCompromise, Actor::Admin))
        .unwrap();
    bench.wait(2 * SPREAD);
    bench.keep_spies();
    assert_eq!(bench.spies().len(), 3, "the revoked one stays revoked");
}
