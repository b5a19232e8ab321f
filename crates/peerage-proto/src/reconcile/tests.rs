use std::collections::BTreeSet;
use std::time::Duration;

use peerage_wire::id::{Domain, NodeId, PlacementKey, RecordKey, sha256};
use peerage_wire::limits::MAX_DATAGRAM;
use peerage_wire::message::Page;
use peerage_wire::packet::REPLY_OVERHEAD;
use peerage_wire::record::{Record, Roles, UnverifiedRecord};
use proptest::prelude::*;

use super::*;
use crate::responder::{self, Asked as Question, View};
use crate::table::testing::{LATER, Made, NOW, record, super_node, super_node_id};
use crate::table::{Limits, MAX_PER_DOMAIN, position};
use crate::trust::Member;

/// What passed between two holders, requests and replies together.
#[derive(Debug, Default)]
struct Traffic {
    messages: usize,
    bytes: usize,
}

/// Two holders of the whole table; the first asks.
struct Pair {
    asker: Records,
    answerer: Records,
    traffic: Traffic,
}

fn asker() -> Member {
    let id = super_node_id(1, 1);
    Member { id, identity: [1; 32], roles: Roles::default(), is_operator: false, expires: LATER }
}

impl Pair {
    fn new(mut asker: Records, mut answerer: Records) -> Self {
        for records in [&mut asker, &mut answerer] {
            records.insert(super_node(1, 1, Segment::ALL).build());
        }
        Self { asker, answerer, traffic: Traffic::default() }
    }

    /// What an honest holder says, as the bytes on the wire permit it.
    fn reply(&mut self, request: &Request) -> Option<Reply> {
        if let Request::Store(bytes) = request {
            let record = UnverifiedRecord::parse(bytes).unwrap().trust_own_store();
            let header = *record.header();
            let outcome = self.answerer.offer(record, NOW).outcome;
            let stored = Reply::Stored { table: header.table, key: header.key, version: header.version };
            return (outcome != Inserted::Full).then_some(stored);
        }
        let (member, room) = (asker(), request.reply_size());
        let question = Question { from: &member, remote: ([192, 0, 2, 1], 1).into(), room, time: NOW };
        let segments = [Segment::ALL];
        let view = View::holder(&self.answerer, &segments);
        let reply = responder::answer(&Request::decode(&request.encode()).unwrap(), question, view).unwrap();
        let encoded = reply.encode();
        assert!(REPLY_OVERHEAD + encoded.len() <= room && room <= MAX_DATAGRAM, "{reply:?}");
        Some(Reply::decode(&encoded).unwrap())
    }

    fn run(&mut self, tables: &[Table]) -> (Ended, Tally) {
        let mut run = Reconciliation::new(tables, Segment::ALL, MAX_GIFTS);
        self.traffic = Traffic::default();
        let ended = drive(&mut run, self, |pair, request| pair.reply(request));
        (ended, run.tally())
    }

    /// Checks that both hold the newest of all that either held.
    fn converged(&self, tables: &[Table], before: (&Records, &Records)) {
        for table in tables {
            let all = |records: &Records| {
                records.in_range(*table, Segment::ALL, None).cloned().collect::<Vec<Record>>()
            };
            let mut newest = Records::default();
            for record in all(before.0).into_iter().chain(all(before.1)) {
                newest.insert(record);
            }
            assert!(all(&self.asker) == all(&newest), "the asker lacks something of {table:?}");
            assert!(all(&self.answerer) == all(&newest), "the answerer lacks something of {table:?}");
        }
    }
}

/// Runs a reconciliation against whoever answers, sixteen requests under way at a time.
fn drive(
    run: &mut Reconciliation,
    pair: &mut Pair,
    mut reply: impl FnMut(&mut Pair, &Request) -> Option<Reply>,
) -> Ended {
    loop {
        let mut under_way = Vec::new();
        while let Some(step) = run.poll(&pair.asker, NOW) {
            under_way.push(step);
        }
        assert!(under_way.len() <= MAX_IN_FLIGHT);
        if under_way.is_empty() {
            return run.ended().expect("nothing is under way");
        }
        for (id, request) in under_way {
            assert!(run.ended().is_none_or(|ended| ended == Ended::Liar));
            pair.traffic.messages += 1;
            pair.traffic.bytes += request.reply_size();
            let Some(reply) = reply(pair, &request) else {
                run.failed(id);
                continue;
            };
            pair.traffic.messages += 1;
            pair.traffic.bytes += REPLY_OVERHEAD + reply.encode().len();
            let records = &mut pair.asker;
            run.answered(id, reply, |bytes| {
                let record = UnverifiedRecord::parse(&bytes).ok()?.trust_own_store();
                let genuine = record.header().signer.hash == [9; 32];
                genuine.then(|| records.offer(record, NOW).outcome)
            });
        }
    }
}

const DEVICES: &[Table] = &[Table::EndDevice];

/// Two names whose record keys have the same place.
const FIRST: u32 = 28_975;
const SECOND: u32 = 100_722;

/// So many devices of ten domains.
fn many(count: u32) -> Records {
    let mut records = Records::default();
    for name in 0..count {
        records.insert(record(Table::EndDevice, 1 + name % 10, name));
    }
    records
}

/// Rule 4.8: what is equal costs one question and one answer for each table, whatever its size; ten differences cost tens.
#[test]
fn a_hundred_thousand_records_settle_in_a_few_messages() {
    let equal = many(100_000);
    let mut pair = Pair::new(equal.clone(), equal);
    assert_eq!(pair.run(DEVICES).0, Ended::Settled);
    assert_eq!(pair.traffic.messages, 2);
    assert_eq!(pair.run(&RECONCILED).0, Ended::Settled);
    assert_eq!(pair.traffic.messages, 2 * RECONCILED.len());

    let different: Vec<_> = (0..10).map(|n| n * 9_973).collect();
    for (n, name) in different.iter().enumerate() {
        let made = Made::new(Table::EndDevice, 1 + name % 10, *name);
        match n % 4 {
            0 => assert_eq!(pair.answerer.insert(made.version(2).build()), Inserted::New),
            1 => assert_eq!(pair.asker.insert(made.version(2).build()), Inserted::New),
            2 => assert!(pair.asker.remove(made.table, made.domain, made.key).is_some()),
            _ => assert!(pair.answerer.remove(made.table, made.domain, made.key).is_some()),
        }
    }
    let (ended, tally) = pair.run(DEVICES);
    assert_eq!(ended, Ended::Settled);
    assert_eq!((tally.taken, tally.given), (5, 5));
    for records in [&pair.asker, &pair.answerer] {
        assert_eq!(records.stretch_summary(Table::EndDevice, PlaceKey::MIN, PlaceKey::MAX).count, 100_000);
        for (n, name) in different.iter().enumerate() {
            let Made { table, domain, key, .. } = Made::new(Table::EndDevice, 1 + name % 10, *name);
            let version = records.get(table, domain, key).map(|record| record.header().version);
            assert_eq!(version, Some(if n % 4 < 2 { 2 } else { 1 }));
        }
    }
    assert!(pair.traffic.messages <= 80, "{}", pair.traffic.messages);
    assert!(pair.traffic.bytes <= 80 * MAX_DATAGRAM);
}

/// Rule 4.8: a newcomer gets everything in pages, and asks about hardly anything besides.
#[test]
fn an_empty_newcomer_fetches_everything() {
    let full = many(3_000);
    let mut pair = Pair::new(Records::default(), full.clone());
    let (ended, tally) = pair.run(&RECONCILED);
    assert_eq!(ended, Ended::Settled);
    assert_eq!((tally.taken, tally.given), (3_000, 0));
    assert!(tally.questions <= 8, "{tally:?}");
    // Seven records of this size fit into a page.
    assert!(tally.pages <= 3_000 / 4, "{tally:?}");
    pair.converged(DEVICES, (&full, &full));
}

/// Rule 4.8: what the other lacks is stored with it, so much at a time.
#[test]
fn an_empty_counterpart_is_given_everything() {
    let full = many(600);
    let mut pair = Pair::new(full.clone(), Records::default());
    for given in [MAX_GIFTS, MAX_GIFTS, 600 - 2 * MAX_GIFTS] {
        let (ended, tally) = pair.run(DEVICES);
        assert_eq!(ended == Ended::Settled, given < MAX_GIFTS);
        assert_eq!((tally.taken, tally.given, tally.pages), (0, given, 0));
    }
    pair.converged(DEVICES, (&full, &full));
    // An operator has its own ledger, and is given nothing.
    let mut pair = Pair::new(full, Records::default());
    let mut run = Reconciliation::new(DEVICES, Segment::ALL, 0);
    assert_eq!(drive(&mut run, &mut pair, |pair, request| pair.reply(request)), Ended::Settled);
    assert_eq!(pair.answerer.count(Table::EndDevice, Domain(1)), 0);
}

/// Rule 4.8: what has expired is neither fetched nor handed out, and does not keep two holders from settling.
#[test]
fn the_expired_do_not_come_back() {
    let mut full = many(100);
    for name in 100..150 {
        let made = Made::new(Table::EndDevice, 1, name);
        full.insert(made.expires(NOW.before(Duration::from_secs(1))).build());
    }
    let mut pair = Pair::new(many(100), full.clone());
    assert_eq!(pair.run(DEVICES).1.taken, 0);
    let mut pair = Pair::new(full, many(100));
    assert_eq!(pair.run(DEVICES).1.given, 0);
}

/// A table that is full takes what it can, and says that something is left.
#[test]
fn a_full_table_ends_unfinished() {
    let limits = Limits::new(100 * 1_024, MAX_PER_DOMAIN);
    let mut pair = Pair::new(Records::new(limits), many(1_000));
    let (ended, tally) = pair.run(DEVICES);
    assert_eq!(ended, Ended::Full);
    assert!(tally.taken > 50, "{tally:?}");
    // Ten domains, each of which is left once it is plain that there is no room for it.
    assert!(tally.pages < 100, "{tally:?}");
    assert!(pair.asker.bytes_held() <= limits.max_bytes());
    // The other way round, the counterpart is silent about what it has no room for.
    let mut pair = Pair::new(many(1_000), Records::new(limits));
    let (ended, _) = pair.run(DEVICES);
    assert_eq!(ended, Ended::Unfinished);
    assert!(pair.traffic.messages < 1_000, "{:?}", pair.traffic);
}

/// Rule 4.8: whoever claims to lack what it was given is given no more than a round is worth, and gains no patience by thanking.
#[test]
fn a_counterpart_that_always_lacks_everything_draws_so_many_gifts_and_no_more() {
    let mut pair = Pair::new(many(5_000), Records::default());
    let mut run = Reconciliation::new(DEVICES, Segment::ALL, MAX_GIFTS);
    let mut gifts = 0;
    let ended = drive(&mut run, &mut pair, |_, request| {
        let Request::Store(bytes) = request else {
            return Some(Reply::Reconciled(Reconciled::Entries(Vec::new())));
        };
        gifts += 1;
        let header = *UnverifiedRecord::parse(bytes).unwrap().header();
        Some(Reply::Stored { table: header.table, key: header.key, version: header.version })
    });
    assert_eq!((ended, gifts), (Ended::Unfinished, MAX_GIFTS));
    assert_eq!(run.patience, INITIAL_PATIENCE - 1);
}

#[test]
fn a_counterpart_that_falls_silent_is_left_after_a_few_requests() {
    let mut pair = Pair::new(Records::default(), many(2_000));
    let mut run = Reconciliation::new(DEVICES, Segment::ALL, MAX_GIFTS);
    let mut left = 20;
    let ended = drive(&mut run, &mut pair, |pair, request| {
        left -= 1;
        if left > 0 { pair.reply(request) } else { None }
    });
    assert_eq!(ended, Ended::Unfinished);
    assert!(left > -20);
    assert!(pair.asker.len() > 10);
}

fn summary(count: u32) -> SetSummary {
    SetSummary { count, sum: [7; 32] }
}

fn halfway(from: &PlaceKey, to: &PlaceKey) -> PlaceKey {
    PlaceKey::last_at(PlacementKey(from.place.0 / 2 + to.place.0 / 2))
}

/// What a liar says to a question.
type Lie = fn(PlaceKey, PlaceKey) -> Reconciled;

/// Rule 4.8: an answer that no honest holder gives ends it at once.
#[test]
fn impossible_answers_end_it() {
    let lies: [(&str, Lie); 9] = [
        ("no parts", |_, _| Reconciled::Parts(vec![])),
        ("one part", |_, to| Reconciled::Parts(vec![Part { to, summary: summary(9) }])),
        ("not to the end", |from, to| {
            let half = halfway(&from, &to);
            Reconciled::Parts(vec![
                Part { to: from, summary: summary(9) },
                Part { to: half, summary: summary(9) },
            ])
        }),
        ("beyond the end", |_, to| {
            let part = |to| Part { to, summary: summary(9) };
            Reconciled::Parts(vec![part(to), part(PlaceKey::MAX)])
        }),
        ("before the start", |_, to| {
            let part = |to| Part { to, summary: summary(9) };
            Reconciled::Parts(vec![part(PlaceKey::MIN), part(to)])
        }),
        ("backwards", |from, to| {
            let part = |to| Part { to, summary: summary(9) };
            Reconciled::Parts(vec![part(to), part(from), part(to)])
        }),
        ("too many parts", |from, to| {
            let start = from.place.0;
            let ends = (1..20).map(|n| PlaceKey::first_at(PlacementKey(start + n))).chain([to]);
            Reconciled::Parts(ends.map(|to| Part { to, summary: summary(9) }).collect())
        }),
        ("an entry elsewhere", |_, _| {
            Reconciled::Entries(vec![Entry { place: PlacementKey::MAX, version: 1, hash: [1; 4] }])
        }),
        ("entries backwards", |from, to| {
            let entry = |at: PlaceKey| Entry { place: at.place, version: 1, hash: [1; 4] };
            Reconciled::Entries(vec![entry(to), entry(from)])
        }),
    ];
    let segment = Segment { from: PlacementKey(1 << 32), to: PlacementKey(u64::MAX >> 1) };
    for (name, lie) in lies {
        let mut pair = Pair::new(many(100), Records::default());
        let mut run = Reconciliation::new(DEVICES, segment, MAX_GIFTS);
        let ended = drive(&mut run, &mut pair, |_, request| {
            let Request::Reconcile { from, to, .. } = request else { panic!("{name}: {request:?}") };
            Some(Reply::Reconciled(lie(*from, *to)))
        });
        assert_eq!(ended, Ended::Liar, "{name}");
        assert_eq!(pair.traffic.messages, 2, "{name}");
    }
    let mut pair = Pair::new(many(100), Records::default());
    let mut run = Reconciliation::new(DEVICES, segment, MAX_GIFTS);
    let wrong = |_: &mut Pair, _: &Request| Some(Reply::Partition(Page::default()));
    assert_eq!(drive(&mut run, &mut pair, wrong), Ended::Liar);
}

/// Rule 4.8: whoever halves the table for ever is asked no deeper than any honest table goes, and no oftener than patience lasts.
#[test]
fn endless_differences_end() {
    let mut pair = Pair::new(many(1_000), Records::default());
    let mut run = Reconciliation::new(DEVICES, Segment::ALL, MAX_GIFTS);
    let ended = drive(&mut run, &mut pair, |_, request| {
        let Request::Reconcile { from, to, .. } = request else { return None };
        let ends = [halfway(from, to), *to];
        let parts = ends.map(|to| Part { to, summary: summary(u32::MAX) });
        Some(Reply::Reconciled(Reconciled::Parts(parts.to_vec())))
    });
    assert_ne!(ended, Ended::Settled);
    assert!(pair.traffic.messages <= 2 * 520, "{:?}", pair.traffic);
    assert_eq!(pair.asker.count(Table::EndDevice, Domain(1)), 100);
}

/// Rule 4.7: pages without anything new, whatever they promise, come to an end.
#[expect(clippy::wildcard_enum_match_arm, reason = "what is not expected fails the test")]
#[test]
fn endless_pages_end() {
    let forged = |place: u64| {
        let made = Made::new(Table::EndDevice, 1, 0);
        // Keys in the order of their places are hard to find; the liar has had the time.
        let key = (0_u32..).map(|n| RecordKey(sha256(&[&place.to_be_bytes(), &n.to_be_bytes()])));
        let mut made = key.take(200).map(|key| Made { key, ..made.clone() }).collect::<Vec<_>>();
        made.sort_by_key(|made| position(&made.build()));
        made
    };
    let pages: Vec<Page> = forged(1)
        .into_iter()
        .map(|made| {
            let mut bytes = made.build().bytes().to_vec();
            // Signed by somebody else.
            let at = bytes.windows(32).position(|window| window == [9; 32]).unwrap();
            bytes[at] = 8;
            Page { records: vec![bytes.into()], more: true }
        })
        .collect();
    let genuine = record(Table::EndDevice, 1, 1);
    let again = vec![Page { records: vec![genuine.bytes().clone()], more: true }; 200];
    let empty = vec![Page { records: vec![], more: true }; 200];
    for pages in [pages, again, empty] {
        let mut pair = Pair::new(Records::default(), Records::default());
        let mut run = Reconciliation::new(DEVICES, Segment::ALL, MAX_GIFTS);
        let mut pages = pages.into_iter();
        let ended = drive(&mut run, &mut pair, |_, request| match request {
            Request::Reconcile { from, to, .. } => {
                let end = PlaceKey::first_at(PlacementKey(from.place.0 + 1));
                let parts = [(end, 0), (*to, 1_000_000)];
                let parts = parts.map(|(to, count)| Part { to, summary: summary(count) });
                Some(Reply::Reconciled(Reconciled::Parts(parts.to_vec())))
            }
            Request::TransferPartition { .. } => Some(Reply::Partition(pages.next().unwrap())),
            other => panic!("{other:?}"),
        });
        assert_eq!(ended, Ended::Unfinished);
        assert!(pair.traffic.messages <= 40, "{:?}", pair.traffic);
    }
}

/// Rule 4.7: a snapshot of what is not reconciled.
#[test]
fn a_transfer_fetches_a_segment_in_pages() {
    let mut full = Records::default();
    for name in 0..500 {
        full.insert(crate::table::testing::node_info(1, name, &[]).build());
    }
    let mut pair = Pair::new(Records::default(), full.clone());
    let half = Segment { from: PlacementKey(1 << 32), to: PlacementKey((1 << 32) | 0x7fff_ffff) };
    let mut transfer = Transfer::of_segment(Table::NodeInfo, half);
    let mut pages = 0;
    while !transfer.is_done() {
        pages += 1;
        let Some(Reply::Partition(page)) = pair.reply(&transfer.request()) else { panic!("a page") };
        let asker = &mut pair.asker;
        transfer.answered(page, |bytes| {
            Some(asker.insert(UnverifiedRecord::parse(&bytes).unwrap().trust_own_store()))
        });
    }
    assert!(!transfer.is_broken_off());
    let held = |records: &Records| {
        let keys = records.in_range(Table::NodeInfo, half, None).map(|record| record.header().key);
        keys.collect::<BTreeSet<_>>()
    };
    assert_eq!(held(&pair.asker), held(&full));
    assert_eq!(pair.asker.count(Table::NodeInfo, Domain(1)), held(&full).len());
    assert!(pages < 130, "{pages}");
}

/// One replica's records: domain, name, version, and seconds by which the expiry of the same version differs.
/// Fewer than one comparison may give away, so that one is enough.
fn any_records() -> impl Strategy<Value = Vec<(u32, u32, u64, u64)>> {
    prop::collection::vec((1..4_u32, 0..3_000_u32, 1..3_u64, 0..2_u64), 0..MAX_GIFTS as usize)
}

fn build(table: Table, of: &[(u32, u32, u64, u64)]) -> impl Iterator<Item = Record> + '_ {
    of.iter().map(move |(domain, name, version, seconds)| {
        let made = Made::new(table, *domain, *name).version(*version);
        made.expires(LATER.after(Duration::from_secs(*seconds))).build()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Rule 4.8: whatever two holders have in common and whatever not, both end with the newest of everything, and a second run
    /// finds nothing to do.
    #[test]
    fn two_holders_converge_to_the_newest_of_both(
        common in any_records(),
        first in any_records(),
        second in any_records(),
        table in prop::sample::select(RECONCILED.to_vec()),
    ) {
        let replica = |own| {
            let mut records = Records::default();
            for record in build(table, &common).chain(build(table, own)) {
                records.insert(record);
            }
            records
        };
        let mut pair = Pair::new(replica(&first), replica(&second));
        let before = (pair.asker.clone(), pair.answerer.clone());
        prop_assert_eq!(pair.run(&[table]).0, Ended::Settled);
        pair.converged(&[table], (&before.0, &before.1));
        let (_, tally) = pair.run(&[table]);
        prop_assert_eq!(tally, Tally { questions: 1, ..Tally::default() });
    }

    /// Whatever a counterpart says, it ends within what patience and the own records allow, and nothing that is held gets lost.
    #[test]
    fn whatever_is_answered_it_ends(seed: u64, own in any_records()) {
        let mut records = Records::default();
        for record in build(Table::EndDevice, &own) {
            records.insert(record);
        }
        let mut pair = Pair::new(records.clone(), many(500));
        let mut state = seed;
        let mut draw = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut run = Reconciliation::new(DEVICES, Segment::ALL, MAX_GIFTS);
        drive(&mut run, &mut pair, |pair, request| match (request, draw(4)) {
            (_, 0) => pair.reply(request),
            (Request::Reconcile { from, to, .. }, 1) => {
                let ends = [halfway(from, to), *to];
                let count = u32::try_from(draw(3)).unwrap() * 1_000;
                let parts = ends.map(|to| Part { to, summary: summary(count) }).to_vec();
                Some(Reply::Reconciled(Reconciled::Parts(parts)))
            }
            (Request::Reconcile { from, .. }, 2) => {
                let entries = vec![Entry { place: from.place, version: draw(4), hash: [3; 4] }];
                Some(Reply::Reconciled(Reconciled::Entries(entries)))
            }
            (Request::TransferPartition { .. }, 1) => Some(Reply::Partition(Page { records: vec![], more: true })),
            (Request::Store(_), 1 | 2) => {
                Some(Reply::Stored { table: Table::EndDevice, key: RecordKey([0; 32]), version: 1 })
            }
            _ => pair.reply(request),
        });
        let limit = 2 * (520 + 10 * (500 + records.len()));
        prop_assert!(pair.traffic.messages <= limit, "{:?}", pair.traffic);
        for record in records.in_range(Table::EndDevice, Segment::ALL, None) {
            let header = record.header();
            let held = pair.asker.get(header.table, header.domain, header.key).map(|r| r.header().version);
            prop_assert!(held >= Some(header.version));
        }
    }
}

/// Rule 4.8: two records whose keys have the same place are told apart when they are fetched.
#[test]
fn records_that_meet_at_one_place_are_settled_too() {
    let [first, second] = [FIRST, SECOND].map(|name| record(Table::Node, 1, name));
    assert_eq!(first.header().placement(), second.header().placement());
    for (own, theirs) in [(vec![&first], vec![&second]), (vec![&first, &second], vec![&second])] {
        for (own, theirs) in [(&own, &theirs), (&theirs, &own)] {
            let mut replicas = [many(10), many(10)];
            for (replica, records) in replicas.iter_mut().zip([own, theirs]) {
                for record in records {
                    replica.insert((*record).clone());
                }
            }
            let [own, theirs] = replicas;
            let mut pair = Pair::new(own.clone(), theirs.clone());
            // Where they cannot be told apart by their versions, it takes a second run.
            assert_eq!(pair.run(&[Table::Node]).0, Ended::Settled);
            assert_eq!(pair.run(&[Table::Node]).0, Ended::Settled);
            pair.converged(&[Table::Node], (&own, &theirs));
        }
    }
}

#[test]
fn a_node_that_is_no_holder_is_told_nothing() {
    let records = many(10);
    let stranger = Member { id: NodeId { domain: Domain(1), hash: [5; 32] }, ..asker() };
    let question = Question { from: &stranger, remote: ([192, 0, 2, 1], 1).into(), room: 1_200, time: NOW };
    let (from, to) = (PlaceKey::MIN, PlaceKey::MAX);
    let request = Request::Reconcile { table: Table::EndDevice, from, to, summary: SetSummary::default() };
    let segments = [Segment::ALL];
    let told = responder::answer(&request, question, View::holder(&records, &segments));
    assert_eq!(told, Err(crate::discard::Discard::Forbidden));
}

/// Rule 4.8: what of the map the other does not list is told, unless it is newer than the question; and nothing is told before all is
/// listed.
#[test]
fn who_is_not_listed_in_the_map_any_more_is_told() {
    let map = |names: std::ops::Range<u8>| {
        let mut records = Records::default();
        for name in names {
            records.insert(super_node(7, name, Segment::ALL).version(5).build());
        }
        records
    };
    let mut pair = Pair::new(map(10..40), map(20..60));
    let mut run = Reconciliation::new(&[Table::SuperNode], Segment::ALL, 0);
    let mut unlisted = Vec::new();
    while let Some((step, request)) = run.poll(&pair.asker, NOW) {
        let reply = pair.reply(&request).unwrap();
        let asker = &mut pair.asker;
        run.answered(step, reply, |bytes| {
            Some(asker.insert(UnverifiedRecord::parse(&bytes).unwrap().trust_own_store()))
        });
        unlisted.push(run.unlisted().count());
    }
    let (last, before) = unlisted.split_last().unwrap();
    assert!(before.iter().all(|count| *count == 0) && before.len() > 3, "{unlisted:?}");
    assert_eq!((*last, run.ended()), (10, Some(Ended::Settled)));
    let gone: BTreeSet<_> = run.unlisted().map(|(at, version)| (at.key, version)).collect();
    assert_eq!(gone, (10..20).map(|name| (super_node_id(7, name).record_key(), 5)).collect());
    assert_eq!((run.tally().taken, run.tally().given), (20, 0));
}
