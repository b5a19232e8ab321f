use std::time::Duration;

use peerage_wire::cbor::MapWriter;
use peerage_wire::limits::MAX_TAGS;
use proptest::prelude::*;

use super::testing::{LATER, Made, NOW, looked_at, node_info, record, super_node, super_node_id};
use super::*;

fn keys<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<RecordKey> {
    records.into_iter().map(|record| record.header().key).collect()
}

fn place(domain: u32, low: u32) -> PlacementKey {
    PlacementKey((u64::from(domain) << 32) | u64::from(low))
}

/// Room for so many records of the usual test size.
fn room_for(records: usize) -> Limits {
    let size = cost(&record(Table::Node, 1, 0), 0);
    Limits::new(records * size + size / 2, MAX_PER_DOMAIN)
}

/// Rule 2.21: the highest version counts, ties by bytes, and nothing older comes back.
#[test]
fn the_newest_version_stays() {
    let mut records = Records::default();
    let made = Made::new(Table::Node, 1, 1);
    let (first, second) = (made.clone().version(1).build(), made.clone().version(2).build());
    assert_eq!(records.insert(first.clone()), Inserted::New);
    assert_eq!(records.insert(second.clone()), Inserted::New);
    assert_eq!(records.insert(second.clone()), Inserted::Same);
    assert_eq!(records.insert(first), Inserted::Older(2));
    let tie = made.version(2).expires(LATER.after(Duration::from_secs(1))).build();
    let greater = if tie.bytes() > second.bytes() { &tie } else { &second };
    records.insert(tie.clone());
    assert_eq!(records.get(Table::Node, Domain(1), second.header().key), Some(greater));
    assert_eq!(records.len(), 1);
}

/// Rule 2.19: the summary is that of the records valid at the time, and is kept right whatever changes.
#[test]
fn a_summary_is_that_of_the_valid_records_of_the_domain() {
    let mut records = Records::default();
    let soon = NOW.after(Duration::from_secs(60));
    let mut valid = Vec::new();
    for name in 0..2_000 {
        let expires = if name % 3 == 0 { soon } else { LATER };
        let record = Made::new(Table::EndDevice, 5, name).expires(expires).build();
        records.insert(record.clone());
        records.insert(self::record(Table::EndDevice, 4 + 2 * (name % 2), name));
        records.insert(self::record(Table::Node, 5, name));
        if name % 3 != 0 {
            valid.push(record);
        }
    }
    assert_eq!(records.summary(Table::EndDevice, Domain(5), NOW).count, 2_000);
    assert_eq!(records.summary(Table::EndDevice, Domain(5), soon), SetSummary::of(&valid));
    assert_eq!(records.expire(soon).len(), 667);
    assert_eq!(records.summary(Table::EndDevice, Domain(5), soon), SetSummary::of(&valid));
    let gone = valid.swap_remove(7);
    assert_eq!(records.remove(Table::EndDevice, Domain(5), gone.header().key), Some(gone));
    assert_eq!(records.summary(Table::EndDevice, Domain(5), soon), SetSummary::of(&valid));
}

/// Rules 1.8 and 4.7: ascending by place and key, over all domains, and each table by its own rule.
#[test]
fn a_range_has_what_belongs_to_it_in_the_order_of_places() {
    let mut records = Records::default();
    for table in [Table::Node, Table::EndDevice, Table::Revocation, Table::Head, Table::OperatorNode] {
        for domain in 1..=4 {
            for name in 0..50 {
                records.insert(record(table, domain, name));
            }
        }
    }
    // From the middle of domain 2 to the middle of domain 3.
    let segment = Segment { from: place(2, 0x8000_0000), to: place(3, 0x7fff_ffff) };
    let expected = |table, inside: &dyn Fn(&Record) -> bool| {
        let mut all: Vec<_> = (1..=4)
            .flat_map(|domain| records.list(table, Domain(domain), None))
            .filter(|record| inside(record))
            .collect();
        all.sort_by_key(|record| position(record));
        keys(all)
    };
    let by_place = |record: &Record| segment.contains(record.header().placement());
    let by_domain = |record: &Record| [2, 3].contains(&record.header().domain.0);
    for table in [Table::Node, Table::EndDevice] {
        assert_eq!(keys(records.in_range(table, segment, None)), expected(table, &by_place));
    }
    for table in [Table::Revocation, Table::Head] {
        assert_eq!(keys(records.in_range(table, segment, None)), expected(table, &by_domain));
    }
    assert_eq!(records.in_range(Table::OperatorNode, segment, None).count(), 200);
    // Page by page it is the same.
    let mut paged = Vec::new();
    let mut after = None;
    while let Some(next) = records.in_range(Table::Node, segment, after).next() {
        paged.push(next.header().key);
        after = Some(position(next));
    }
    assert_eq!(paged, expected(Table::Node, &by_place));
    assert_eq!(records.in_range(Table::Node, segment, Some(PlaceKey::MAX)).count(), 0);
}

/// Rule 1.8: a NodeInfo is kept at the places of its tags as well.
#[test]
fn a_node_info_belongs_to_the_places_of_its_tags() {
    let mut records = Records::default();
    for name in 0..200_u32 {
        let tag = LookupTag(*name.to_be_bytes().repeat(4).as_array().unwrap());
        records.insert(node_info(7, name, &[tag]).build());
    }
    let half = Segment { from: place(7, 0), to: place(7, 0x7fff_ffff) };
    let found = keys(records.in_range(Table::NodeInfo, half, None));
    let expected = records.list(Table::NodeInfo, Domain(7), None).filter(|record| {
        let places = NodeInfoPublic::read(record).unwrap().placements(Domain(7));
        places.iter().any(|place| half.contains(*place))
    });
    let expected: BTreeSet<_> = keys(expected).into_iter().collect();
    assert!(expected.len() > 120 && expected.len() < 180, "{}", expected.len());
    assert_eq!(found.iter().copied().collect::<BTreeSet<_>>(), expected);
    assert_eq!(found.len(), expected.len());
    let gone = records.leave_outside(&half);
    assert_eq!(gone.len() + expected.len(), 200);
    assert_eq!(keys(records.in_range(Table::NodeInfo, Segment::ALL, None)), found);
}

/// Rule 6.3: a tag finds the newest NodeInfo that carries it, and only that.
#[test]
fn tags_find_what_carries_them_and_forget_what_does_not_any_more() {
    let mut records = Records::default();
    let [old, new] = [LookupTag([1; 16]), LookupTag([2; 16])];
    let made = node_info(7, 1, &[old, old]);
    records.insert(made.clone().build());
    records.insert(node_info(8, 1, &[old]).build());
    assert_eq!(records.tagged(Domain(7), &[old, new], None).count(), 1);
    assert_eq!(records.tagged(Domain(7), &[old], Some(made.key)).count(), 0);
    records.insert(node_info(7, 1, &[new]).version(2).build());
    assert_eq!(records.tagged(Domain(7), &[old], None).count(), 0);
    assert_eq!(records.tagged(Domain(7), &[new], None).count(), 1);
    records.expire(LATER);
    assert!(records.is_empty() && records.tags.is_empty());
    assert!(records.tag_places.is_empty() && records.places.is_empty());
    assert_eq!(records.bytes_held(), 0);
}

/// Who holds a place is found among those who may, however many hold others, and although some hold everything or next to nothing.
#[test]
fn finding_the_holders_of_a_place_costs_what_lies_near_it() {
    let mut records = Records::default();
    let parts = (0..400_u32).map(|n| Segment { from: place(n * 1_000, 7), to: place(n * 1_000 + 999, 6) });
    let inner = (0..4_u32).map(|n| n << 30).map(|from| (place(50_500, from), from));
    let inner = inner.map(|(from, low)| Segment { from, to: place(50_500, low + ((1 << 30) - 1)) });
    let spot = Segment { from: place(9_999, 1), to: place(9_999, 1) };
    let all: Vec<_> = parts.chain(inner).chain([Segment::ALL, spot]).collect();
    for (domain, segment) in (0..).zip(&all) {
        records.insert(super_node(domain, 1, *segment).build());
    }
    let ends = all.iter().flat_map(|segment| [segment.from, segment.to]);
    let spots = ends.flat_map(|at| [at.0.saturating_sub(1), at.0, at.0.saturating_add(1)]).map(PlacementKey);
    for range in spots.map(|at| Segment { from: at, to: at }) {
        let (found, looked) =
            looked_at(|| records.super_nodes(range, NOW).map(|(_, at)| at).collect::<Vec<_>>());
        let found: BTreeSet<_> = found.into_iter().collect();
        assert_eq!(found, all.iter().filter(|segment| segment.overlaps(&range)).copied().collect());
        assert!(looked <= 12, "{looked} for {range}");
    }
    assert_eq!(records.super_nodes(Segment::ALL, NOW).count(), all.len());
}

/// Rules 2.14 and 2.18: who holds a place is what the newest valid SuperNode records say.
#[test]
fn super_nodes_are_found_by_place_and_by_domain() {
    let mut records = Records::default();
    let whole = Segment::of_domain(Domain(7));
    let half = Segment { from: place(7, 0x8000_0000), to: place(9, 0) };
    records.insert(super_node(1, 1, whole).build());
    records.insert(super_node(2, 2, half).build());
    records.insert(super_node(3, 3, Segment::of_domain(Domain(8))).expires(NOW).build());
    let at = |records: &Records, range, time| {
        let found: Vec<_> = records.super_nodes(range, time).map(|(r, _)| r.header().domain.0).collect();
        found.into_iter().collect::<BTreeSet<_>>()
    };
    let spot = |at| Segment { from: at, to: at };
    assert_eq!(at(&records, spot(place(7, 1)), NOW), [1].into());
    assert_eq!(at(&records, spot(place(7, 0x8000_0000)), NOW), [1, 2].into());
    assert_eq!(at(&records, spot(place(9, 0)), NOW), [2].into());
    assert_eq!(at(&records, spot(place(9, 1)), NOW), BTreeSet::new());
    let before = NOW.before(Duration::from_secs(1));
    assert_eq!(at(&records, Segment::of_domain(Domain(8)), before), [2, 3].into());
    assert_eq!(at(&records, Segment::of_domain(Domain(8)), NOW), [2].into());
    let both: Vec<_> = records.super_nodes(whole, NOW).map(|(record, _)| record.clone()).collect();
    assert!(both.is_sorted_by_key(|record| record.header().key));
    assert_eq!(records.super_node_summary(Domain(7), NOW), SetSummary::of(&both));
    assert_eq!(records.segment(&super_node_id(2, 2), NOW), Some(half));
    assert_eq!(records.segment(&super_node_id(3, 3), NOW), None);
    // One that moved is found where it is now, one that was removed nowhere, and a tombstone does not count.
    records.insert(super_node(1, 1, Segment::of_domain(Domain(9))).version(2).build());
    let body = MapWriter::new();
    records.insert(Made { removed: true, body, ..super_node(2, 2, half).version(2) }.build());
    assert_eq!(at(&records, whole, NOW), BTreeSet::new());
    assert_eq!(at(&records, spot(place(9, 0)), NOW), [1].into());
}

/// What expired goes before anything that is valid.
#[test]
fn the_expired_go_first() {
    let mut records = Records::new(room_for(3));
    let expired = Made::new(Table::Node, 1, 0).expires(NOW).build();
    records.insert(expired.clone());
    records.insert(record(Table::Node, 2, 1));
    records.insert(record(Table::Node, 2, 2));
    let offered = records.offer(record(Table::Node, 2, 3), NOW);
    assert_eq!(offered, Offered { outcome: Inserted::New, evicted: vec![expired] });
}

/// Rule 4.10: a domain that floods finds its own way barred, and only its own.
#[test]
fn a_flood_displaces_nothing_of_another_domain() {
    let mut records = Records::new(room_for(100));
    for name in 0..10 {
        records.insert(record(Table::EndDevice, 1, name));
        records.insert(node_info(1, name, &[LookupTag([1; 16])]).build());
    }
    let mut full = 0;
    for name in 0..1_000 {
        let even = name % 2 == 0;
        let flood = if even { node_info(2, name, &[]).build() } else { record(Table::EndDevice, 2, name) };
        let offered = records.offer(flood, NOW);
        full += usize::from(offered.outcome == Inserted::Full);
        assert!(offered.evicted.iter().all(|gone| gone.header().domain == Domain(2)));
        assert!(records.bytes_held() <= records.limits().max_bytes());
    }
    assert!(full > 800, "{full}");
    assert_eq!(records.count(Table::EndDevice, Domain(1)), 10);
    assert_eq!(records.count(Table::NodeInfo, Domain(1)), 10);
    // What was flooded with gives way to whoever comes with little.
    for name in 0..20 {
        assert_eq!(records.offer(record(Table::EndDevice, 3, name), NOW).outcome, Inserted::New);
    }
}

/// Within a domain, what operators signed outranks what nodes announce, and revocations outrank both.
#[test]
fn within_a_domain_what_an_operator_signed_stays() {
    let mut records = Records::new(room_for(20));
    for name in 0..30 {
        records.offer(node_info(1, name, &[]).build(), NOW);
    }
    for name in 0..u32::try_from(records.len()).unwrap() {
        let offered = records.offer(record(Table::EndDevice, 1, name), NOW);
        assert_eq!(offered.outcome, Inserted::New);
        assert!(offered.evicted.iter().all(|gone| gone.header().table == Table::NodeInfo));
    }
    let more = (100..)
        .take_while(|name| records.offer(record(Table::EndDevice, 1, *name), NOW).outcome == Inserted::New);
    assert!(more.count() > 0);
    assert_eq!(records.count(Table::NodeInfo, Domain(1)), 0);
    assert_eq!(records.offer(node_info(1, 1, &[]).build(), NOW).outcome, Inserted::Full);
    let offered = records.offer(record(Table::Revocation, 1, 1), NOW);
    assert_eq!(offered.outcome, Inserted::New);
    assert_eq!(offered.evicted.len(), 1);
    // A newer version is taken although it is longer: another one of its rank gives way.
    let held = records.list(Table::EndDevice, Domain(1), None).next().unwrap().header().key;
    let mut body = MapWriter::new();
    body.bytes(200, &[0; 200]);
    let newer = Made { key: held, body, ..Made::new(Table::EndDevice, 1, 0).version(2) }.build();
    assert_eq!(records.offer(newer.clone(), NOW).outcome, Inserted::New);
    assert_eq!(records.get(Table::EndDevice, Domain(1), held), Some(&newer));
}

/// An update for which there is no room leaves the version that was held.
#[test]
fn an_update_without_room_leaves_what_was_held() {
    let made = node_info(1, 1, &[]);
    let tags: Vec<_> = (0..u8::try_from(MAX_TAGS).unwrap()).map(|n| LookupTag([n; 16])).collect();
    let both = cost(&record(Table::Node, 2, 1), 0) + cost(&made.build(), 0);
    let mut records = Records::new(Limits::new(both, MAX_PER_DOMAIN));
    assert_eq!(records.insert(record(Table::Node, 2, 1)), Inserted::New);
    assert_eq!(records.offer(made.build(), NOW).outcome, Inserted::New);
    let large = node_info(1, 1, &tags).version(2).build();
    assert_eq!(records.offer(large, NOW).outcome, Inserted::Full);
    assert_eq!(records.get(Table::NodeInfo, Domain(1), made.key).map(|r| r.header().version), Some(1));
    assert!(records.tags.is_empty());
}

/// A cap that is lowered holds at once, at the cost of the largest.
#[test]
fn a_lower_cap_takes_from_the_largest_domain() {
    let mut records = Records::default();
    for name in 0..90 {
        records.insert(record(Table::Node, 1, name));
        records.insert(record(Table::Node, 2 + name % 3, 100 + name));
    }
    let gone = records.set_limits(room_for(120));
    assert!(records.bytes_held() <= room_for(120).max_bytes());
    assert_eq!(gone.len() + records.len(), 180);
    assert!(gone.iter().all(|record| record.header().domain == Domain(1)));
    assert_eq!(records.count(Table::Node, Domain(2)), 30);
}

/// The thesis' floor cannot be taken away by a setting.
#[test]
fn a_domain_may_have_ten_thousand_records_of_a_table() {
    assert_eq!(Limits::new(1 << 20, 5).max_per_domain(), DOMAIN_FLOOR);
    let mut records = Records::new(Limits::new(usize::MAX, 5));
    for name in 0..10_000 {
        assert_eq!(records.insert(record(Table::EndDevice, 1, name)), Inserted::New);
    }
    assert_eq!(records.offer(record(Table::EndDevice, 1, 10_000), NOW).outcome, Inserted::Full);
    assert_eq!(records.offer(record(Table::EndDevice, 2, 10_000), NOW).outcome, Inserted::New);
    assert_eq!(records.offer(record(Table::Node, 1, 10_000), NOW).outcome, Inserted::New);
}

/// The operators' records are signed by the root, and nothing displaces them.
#[test]
fn records_of_operators_never_give_way() {
    let mut records = Records::new(room_for(10));
    for name in 0..10 {
        records.offer(record(Table::Node, 1, name), NOW);
    }
    for name in 0..5 {
        assert_eq!(records.offer(record(Table::OperatorNode, 0, name), NOW).outcome, Inserted::New);
    }
    for name in 10..100 {
        records.offer(record(Table::Revocation, 1, name), NOW);
        records.offer(record(Table::Revocation, name, name), NOW);
    }
    assert_eq!(records.count(Table::OperatorNode, Domain::OPERATORS), 5);
}

#[derive(Clone, Debug)]
enum Change {
    Offer { table: Table, domain: u32, name: u32, version: u64, tags: u8, life: u64 },
    Remove { table: Table, domain: u32, name: u32 },
    Pass(u64),
    Leave(Segment),
}

fn any_table() -> impl Strategy<Value = Table> {
    prop::sample::select(Table::ALL.map(|(table, _)| table).to_vec())
}

fn any_change() -> impl Strategy<Value = Change> {
    let offer = (any_table(), 1..6_u32, 0..60_u32, 1..4_u64, 0..4_u8, 1..40_u64).prop_map(
        |(table, domain, name, version, tags, life)| Change::Offer {
            table,
            domain,
            name,
            version,
            tags,
            life,
        },
    );
    let remove = (any_table(), 1..6_u32, 0..60_u32);
    let segment = (1..6_u32, any::<u32>(), any::<u32>()).prop_map(|(domain, a, b)| Segment {
        from: place(domain, a.min(b)),
        to: place(domain + 1, a.max(b)),
    });
    prop_oneof![
        40 => offer,
        3 => remove.prop_map(|(table, domain, name)| Change::Remove { table, domain, name }),
        1 => (1..20_u64).prop_map(Change::Pass),
        1 => segment.prop_map(Change::Leave),
    ]
}

fn made(table: Table, domain: u32, name: u32, tags: u8) -> Made {
    match table {
        Table::NodeInfo => {
            let tags: Vec<_> = (0..tags).map(|n| LookupTag([n; 16])).collect();
            node_info(domain, name, &tags)
        }
        Table::SuperNode => super_node(domain, u8::try_from(name).unwrap(), Segment::of_domain(Domain(name))),
        Table::Node
        | Table::OperatorNode
        | Table::EndDevice
        | Table::DomainKey
        | Table::Revocation
        | Table::Head => Made::new(table, domain, name),
    }
}

fn everything(records: &Records) -> impl Iterator<Item = &Record> {
    records.all.iter().map(|(_, record)| &**record)
}

/// Checks that every index says the same as the records.
fn check(records: &Records) {
    let sizes = everything(records).map(|record| cost(record, tags_of(record).len()));
    assert_eq!(records.bytes_held(), sizes.sum::<usize>());
    assert!(records.bytes_held() <= records.limits().max_bytes());
    assert_eq!(records.expiries.len(), records.len());
    let mut counted = 0;
    for (table, _) in Table::ALL {
        let ordered: Vec<_> = records.within(table, PlaceKey::MIN, PlaceKey::MAX).collect();
        let all: Vec<_> = everything(records).filter(|record| record.header().table == table).collect();
        let expected: BTreeMap<_, _> = all.iter().map(|record| (position(record), *record)).collect();
        assert_eq!(ordered, expected.into_iter().collect::<Vec<_>>());
        let summary = records.stretch_summary(table, PlaceKey::MIN, PlaceKey::MAX);
        assert_eq!(summary, SetSummary::of(all.iter().copied()));
        counted += (0..8).map(|domain| records.count(table, Domain(domain))).sum::<usize>();
    }
    assert_eq!(counted, records.len());
    let domains: usize = (0..8).map(|domain| records.bytes_of(Domain(domain))).sum();
    assert_eq!(domains, records.bytes_held());
    let tags: usize = everything(records).map(|record| tags_of(record).len()).sum();
    assert_eq!(records.tags.len(), tags);
    assert_eq!(records.tag_places.values().map(|places| places.len()).sum::<usize>(), tags);
    assert_eq!(records.places.len(), tags);
    let segments = everything(records).filter(|record| segment_of(record).is_some()).count();
    assert_eq!(records.super_nodes(Segment::ALL, UnixTime::default()).count(), segments);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is offered, removed or expires, the cap holds, every index agrees with the records, no domain is displaced
    /// that uses less than the one that comes, and what is reported as evicted is what is gone.
    #[test]
    fn limits_and_indices_hold_whatever_happens(
        room in 10..60_usize,
        changes in prop::collection::vec(any_change(), 0..300),
    ) {
        let mut records = Records::new(room_for(room));
        let mut time = NOW;
        for change in changes {
            let before: BTreeMap<_, _> =
                everything(&records).map(|record| (record.header().id(), record.clone())).collect();
            let (gone, added) = match change {
                Change::Offer { table, domain, name, version, tags, life } => {
                    let expires = time.after(Duration::from_secs(life));
                    let record = made(table, domain, name, tags).version(version).expires(expires).build();
                    let others = before.values().filter(|held| {
                        held.header().domain == Domain(domain)
                            && held.header().id() != record.header().id()
                            && held.is_valid_at(time)
                    });
                    let sizes = others.chain([&record]).map(|record| cost(record, tags_of(record).len()));
                    let uses: usize = sizes.sum();
                    let biggest: BTreeMap<_, _> = (0..8).map(|d| (d, records.bytes_of(Domain(d)))).collect();
                    let offered = records.offer(record.clone(), time);
                    let displaced: Vec<_> =
                        offered.evicted.iter().filter(|gone| gone.is_valid_at(time)).collect();
                    let own = displaced.iter().filter(|gone| gone.header().domain == Domain(domain));
                    let own: usize = own.map(|gone| cost(gone, tags_of(gone).len())).sum();
                    for evicted in displaced {
                        let owner = evicted.header().domain.0;
                        prop_assert!(owner == domain || biggest[&owner] > uses - own);
                    }
                    (offered.evicted, (offered.outcome == Inserted::New).then_some(record))
                }
                Change::Remove { table, domain, name } => {
                    let key = made(table, domain, name, 0).key;
                    (records.remove(table, Domain(domain), key).into_iter().collect(), None)
                }
                Change::Pass(seconds) => {
                    time = time.after(Duration::from_secs(seconds));
                    (records.expire(time), None)
                }
                Change::Leave(segment) => (records.leave_outside(&segment), None),
            };
            let mut expected = before;
            for record in gone {
                prop_assert_eq!(expected.remove(&record.header().id()), Some(record));
            }
            expected.extend(added.map(|record| (record.header().id(), record)));
            prop_assert!(everything(&records).eq(expected.values()));
            check(&records);
        }
    }
}

/// A range in three neighbouring domains, often within one, and often narrow.
fn any_range() -> impl Strategy<Value = Segment> {
    let wide = (1..4_u32, any::<u32>(), 1..4_u32, any::<u32>());
    let wide = wide.prop_map(|(a, from, b, to)| (place(a, from), place(b, to)));
    let narrow = (1..4_u32, any::<u32>(), 0..0x1000_0000_u32);
    let narrow = narrow.prop_map(|(a, from, size)| (place(a, from), place(a, from.saturating_add(size))));
    let whole = (1..4_u32).prop_map(|domain| (place(domain, 0), place(domain, u32::MAX)));
    prop_oneof![2 => wide, 2 => narrow, 1 => whole]
        .prop_map(|(a, b)| Segment { from: a.min(b), to: a.max(b) })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Rules 1.8, 4.4 and 4.7: however a read finds its records, they are those that fit, in order, after the last one.
    #[test]
    fn what_is_read_by_range_or_tag_is_what_going_through_everything_finds(
        made in prop::collection::vec((1..4_u32, prop::collection::vec(0..40_u8, 0..4)), 0..300),
        ranges in prop::collection::vec(any_range(), 8),
        wanted in prop::collection::vec(0..40_u8, 1..16),
        skipped in 0..1_000_usize,
    ) {
        let mut records = Records::default();
        for (name, (domain, tags)) in (0..).zip(&made) {
            let tags: Vec<_> = tags.iter().map(|tag| LookupTag([*tag; 16])).collect();
            records.insert(node_info(*domain, name, &tags).build());
            records.insert(record(Table::EndDevice, *domain, name));
        }
        let infos = || everything(&records).filter(|record| record.header().table == Table::NodeInfo);
        let rest_of = |mut all: Vec<PlaceKey>| {
            let after = (!all.is_empty()).then(|| all[skipped % all.len()]);
            all.retain(|at| after.is_none_or(|after| *at > after));
            (after, all)
        };
        for range in ranges {
            let inside = |record: &&Record| {
                let body = NodeInfoPublic::read(record).unwrap();
                body.placements(record.header().domain).iter().any(|place| range.contains(*place))
            };
            let expected: BTreeSet<_> = infos().filter(inside).map(position).collect();
            let found = records.in_range(Table::NodeInfo, range, None).map(position);
            prop_assert!(found.eq(expected.iter().copied()));
            let (after, expected) = rest_of(expected.into_iter().collect());
            let found = records.in_range(Table::NodeInfo, range, after).map(position);
            prop_assert_eq!(found.collect::<Vec<_>>(), expected);
            for domain in (1..4).map(Domain) {
                let devices = records.list(Table::EndDevice, domain, None);
                let devices = keys(devices.filter(|device| range.contains(device.header().placement())));
                let after = (!devices.is_empty()).then(|| devices[skipped % devices.len()]);
                let found = keys(records.list_within(Table::EndDevice, domain, range, None));
                prop_assert_eq!(&found, &devices);
                let found = keys(records.list_within(Table::EndDevice, domain, range, after));
                let rest: Vec<_> = devices.into_iter().filter(|key| Some(*key) > after).collect();
                prop_assert_eq!(found, rest);
            }
        }
        let wanted: Vec<_> = wanted.into_iter().map(|tag| LookupTag([tag; 16])).collect();
        let carries = |record: &&Record| tags_of(record).iter().any(|tag| wanted.contains(tag));
        let tagged = keys(records.list(Table::NodeInfo, Domain(2), None).filter(carries));
        prop_assert_eq!(keys(records.tagged(Domain(2), &wanted, None)), tagged.clone());
        let after = (!tagged.is_empty()).then(|| tagged[skipped % tagged.len()]);
        let rest: Vec<_> = tagged.into_iter().filter(|key| Some(*key) > after).collect();
        prop_assert_eq!(keys(records.tagged(Domain(2), &wanted, after)), rest);
    }
}
