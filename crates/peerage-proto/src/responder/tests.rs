use std::collections::BTreeSet;

use peerage_wire::id::PlaceKey;
use peerage_wire::limits::MAX_DATAGRAM;
use peerage_wire::message::Reconciled;
use peerage_wire::record::{Header, Roles, SetSummary, UnverifiedRecord, subject};

use super::*;
use crate::table::position;
use crate::table::testing::{LATER, Made, NOW, looked_at, node_info, record, super_node, super_node_id};

/// The domain that is asked about.
const OURS: u32 = 7;

/// Another one, next to it.
const THEIRS: u32 = 8;

fn place(domain: u32, low: u32) -> PlacementKey {
    PlacementKey((u64::from(domain) << 32) | u64::from(low))
}

/// The lower half of our domain and all of the one below.
fn lower() -> Segment {
    Segment { from: place(OURS - 1, 0), to: place(OURS, 0x7fff_ffff) }
}

/// The upper half, and the lower half of theirs.
fn upper() -> Segment {
    Segment { from: place(OURS, 0x8000_0000), to: place(THEIRS, 0x7fff_ffff) }
}

fn member(domain: u32) -> Member {
    let id = NodeId { domain: Domain(domain), hash: record(Table::Node, domain, 0).header().key.0 };
    Member { id, identity: [0; 32], roles: Roles::default(), is_operator: false, expires: LATER }
}

fn operator() -> Member {
    Member { is_operator: true, ..member(0) }
}

/// A super-node of a third domain.
fn holder(name: u8) -> Member {
    let id = super_node_id(20, name);
    Member { id, ..member(20) }
}

const LOW: u8 = 1;
const HIGH: u8 = 2;
const RETIRED: u8 = 3;

/// A ledger of three domains and their super-nodes.
fn records() -> Records {
    let mut records = Records::default();
    for domain in [OURS - 1, OURS, THEIRS] {
        for name in 0..40 {
            for table in [Table::Node, Table::EndDevice, Table::DomainKey, Table::Revocation] {
                records.insert(record(table, domain, name));
            }
            let tag = LookupTag([name.to_be_bytes()[3]; 16]);
            records.insert(node_info(domain, name, &[tag]).build());
        }
        let key = HeadBody::record_key(Domain(domain));
        records.insert(Made { key, ..Made::new(Table::Head, domain, 0) }.build());
    }
    for name in 0..3 {
        records.insert(record(Table::OperatorNode, 0, name));
        records.insert(node_info(0, name, &[]).build());
    }
    records.insert(super_node(20, LOW, lower()).build());
    records.insert(super_node(20, HIGH, upper()).build());
    records.insert(super_node(20, RETIRED, lower()).expires(NOW).build());
    records
}

fn ask(request: &Request, from: &Member, view: View<'_>) -> Result<Reply, Discard> {
    let remote = ([192, 0, 2, 9], 40_000).into();
    let room = request.reply_size();
    let answered = answer(request, Asked { from, remote, room, time: NOW }, view);
    if let Ok(reply) = &answered {
        assert!(reply.answers(request.number()));
        assert!(reply.encode().len() < MAX_DATAGRAM);
    }
    answered
}

/// Asks page by page.
#[expect(clippy::wildcard_enum_match_arm, reason = "what is no page fails the test")]
fn all(
    from: &Member,
    view: View<'_>,
    request: impl Fn(Option<&Record>) -> Request,
) -> Result<Vec<Record>, Discard> {
    let mut records: Vec<Record> = Vec::new();
    loop {
        let page = match ask(&request(records.last()), from, view)? {
            Reply::OperatorNodes(page)
            | Reply::SuperNodes(page)
            | Reply::Partition(page)
            | Reply::TunnelNodes(page)
            | Reply::Devices(page)
            | Reply::Revocations(page) => page,
            other => panic!("{other:?}"),
        };
        records.extend(page.records.iter().map(read));
        if !page.more {
            return Ok(records);
        }
    }
}

fn read(bytes: &Bytes) -> Record {
    UnverifiedRecord::parse(bytes).unwrap().trust_own_store()
}

fn key_of(record: Option<&Record>) -> Option<RecordKey> {
    record.map(|record| record.header().key)
}

fn devices_in(range: Segment) -> impl Fn(Option<&Record>) -> Request {
    move |after| Request::GetDevices { after: key_of(after), range }
}

fn transfer(table: Table, range: Segment) -> impl Fn(Option<&Record>) -> Request {
    move |after| Request::TransferPartition { table, range, after: after.map(position) }
}

fn reconcile(table: Table, range: Segment) -> Request {
    let (from, to) = (PlaceKey::first_at(range.from), PlaceKey::last_at(range.to));
    Request::Reconcile { table, from, to, summary: SetSummary::default() }
}

/// Rule 4.5: about a domain, members of it, operators and who holds the place are answered; others are not.
#[test]
fn a_node_is_shown_to_its_domain_to_operators_and_to_who_holds_its_place() {
    let records = records();
    let view = View::everywhere(&records);
    for record in records.list(Table::Node, Domain(OURS), None) {
        let node = NodeId { domain: Domain(OURS), hash: record.header().key.0 };
        let found = |from: &Member| ask(&Request::GetNode(node), from, view);
        assert_eq!(found(&member(OURS)), Ok(Reply::Node(Some(record.bytes().clone()))));
        assert_eq!(found(&operator()), Ok(Reply::Node(Some(record.bytes().clone()))));
        assert_eq!(found(&member(THEIRS)), Err(Discard::Forbidden));
        let place = record.header().placement();
        for (name, segment) in [(LOW, lower()), (HIGH, upper())] {
            assert_eq!(found(&holder(name)).is_ok(), segment.contains(place));
        }
        // Whose SuperNode record has expired is none any more.
        assert_eq!(found(&holder(RETIRED)), Err(Discard::Forbidden));
        let info = ask(&Request::GetNodeInfo(node), &member(THEIRS), view);
        assert_eq!(info, Err(Discard::Forbidden));
    }
}

/// Rule 4.5: about operators and super-nodes everybody is answered.
#[test]
fn operators_and_super_nodes_are_shown_to_everybody() {
    let records = records();
    let segments = [lower()];
    for view in [View::everywhere(&records), View::holder(&records, &segments)] {
        for from in [member(OURS), member(THEIRS), member(99), holder(HIGH), operator()] {
            let operators = all(&from, view, |last| Request::GetOperatorNodes { after: key_of(last) });
            assert_eq!(operators.unwrap().len(), 3);
            let first = records.list(Table::OperatorNode, Domain::OPERATORS, None).next().unwrap();
            let node = NodeId { domain: Domain::OPERATORS, hash: first.header().key.0 };
            let shown = ask(&Request::GetNode(node), &from, view);
            assert_eq!(shown, Ok(Reply::Node(Some(first.bytes().clone()))));
        }
    }
}

/// Rule 4.5: those that touch the asker's domain, or hold one place of it, over all domains and in the order of their keys.
#[test]
fn super_nodes_are_found_for_a_domain_and_for_a_place() {
    let mut records = records();
    for name in 10..60 {
        records.insert(super_node(u32::from(name), name, lower()).build());
    }
    let segments = [lower()];
    let view = View::holder(&records, &segments);
    let found = |domain, key: Option<Vec<u8>>| {
        let asked = |last: Option<&Record>| Request::GetSuperNodes { key: key.clone(), after: key_of(last) };
        let found = all(&member(domain), view, asked).unwrap();
        assert!(found.is_sorted_by_key(|record| record.header().key));
        found.into_iter().map(|record| record.header().domain.0).collect::<Vec<_>>()
    };
    assert_eq!(found(OURS, None).len(), 52);
    assert_eq!(found(OURS - 1, None).len(), 51);
    assert_eq!(found(THEIRS, None), [20]);
    let request = Request::GetSuperNodes { key: None, after: None };
    assert_eq!(ask(&request, &member(99), view), Err(Discard::OutOfRange), "it knows nobody, and others may");
    assert_eq!(ask(&request, &member(99), View::everywhere(&Records::default())).map(drop), Ok(()));
    for record in records.list(Table::Node, Domain(OURS), None) {
        let key = record.header().key.0.to_vec();
        let expected = if lower().contains(record.header().placement()) { 51 } else { 1 };
        assert_eq!(found(OURS, Some(key)).len(), expected);
    }
}

/// Rule 4.5: a super-node is silent about what its range does not hold; the others of the domain have that.
#[test]
fn a_holder_is_silent_about_what_it_does_not_hold() {
    let records = records();
    let (low, high) = ([lower()], [upper()]);
    let mut held = [0, 0];
    for (n, segments) in [low, high].iter().enumerate() {
        let view = View::holder(&records, segments);
        for record in records.list(Table::Node, Domain(OURS), None) {
            let node = NodeId { domain: Domain(OURS), hash: record.header().key.0 };
            let is_held = segments[0].contains(record.header().placement());
            let silence = if is_held { None } else { Some(Discard::OutOfRange) };
            held[n] += usize::from(is_held);
            let from = Member { id: node, ..member(OURS) };
            for request in [Request::GetNode(node), Request::GetNodeInfo(node), Request::GetDomainKey] {
                assert_eq!(ask(&request, &from, view).err(), silence, "{request:?}");
            }
        }
        assert!(ask(&Request::GetRevocations { after: None }, &member(OURS), view).is_ok());
        assert!(ask(&Request::GetHead { domain: None }, &member(OURS), view).is_ok());
        let elsewhere = member(99);
        for request in [Request::GetRevocations { after: None }, Request::GetHead { domain: None }] {
            assert_eq!(ask(&request, &elsewhere, view), Err(Discard::OutOfRange));
        }
    }
    assert_eq!(held[0] + held[1], 40);
    assert!(held.iter().all(|held| *held > 5));
}

/// Rule 4.5: half of the devices would look like all of them.
#[test]
fn devices_are_listed_where_all_of_the_range_is_held() {
    let records = records();
    let (low, high, both) = ([lower()], [upper()], [upper(), lower()]);
    let from = member(OURS);
    let list = |segments: &[Segment], range| all(&from, View::holder(&records, segments), devices_in(range));
    for segments in [&low, &high] {
        assert_eq!(list(segments, Segment::ALL), Err(Discard::OutOfRange));
        let part = list(segments, segments[0]).unwrap();
        assert!(part.iter().all(|record| segments[0].contains(record.header().placement())));
        assert!(part.iter().all(|record| record.header().domain == Domain(OURS)));
    }
    assert_eq!(list(&low, upper()), Err(Discard::OutOfRange));
    let parts = list(&low, lower()).unwrap().len() + list(&high, upper()).unwrap().len();
    assert_eq!(parts, 40);
    // Whoever holds both halves answers for the whole, and so does an operator.
    assert_eq!(list(&both, Segment::ALL).unwrap().len(), 40);
    assert_eq!(all(&from, View::everywhere(&records), devices_in(Segment::ALL)).unwrap().len(), 40);
    // There is nothing of the asker's in a range without a place of its domain.
    let foreign = Segment::of_domain(Domain(THEIRS));
    assert_eq!(list(&both, foreign), Err(Discard::OutOfRange));
}

/// Rule 4.5: the tags whose places are held are answered, and silence is kept where none is.
#[test]
fn tunnel_nodes_are_found_under_the_tags_that_are_held() {
    let records = records();
    let segments = [lower()];
    let tags: Vec<_> = (0..40).map(|n| LookupTag([n; 16])).collect();
    let is_low = |tag: &LookupTag| lower().contains(PlacementKey::new(Domain(OURS), &tag.0));
    let (low, high): (Vec<_>, Vec<_>) = tags.chunks(16).next().unwrap().iter().partition(|tag| is_low(tag));
    assert!(!low.is_empty() && !high.is_empty());
    let from = member(OURS);
    let find = |tags: &[LookupTag], view| {
        let asked =
            |last: Option<&Record>| Request::GetTunnelNodes { tags: tags.to_vec(), after: key_of(last) };
        let found = all(&from, view, asked)?;
        // Each page ends with Node records, as many as there is room for, of those whose places are held.
        let (infos, nodes): (Vec<&Header>, Vec<&Header>) =
            found.iter().map(Record::header).partition(|header| header.table == Table::NodeInfo);
        let keys: BTreeSet<_> = infos.iter().map(|info| info.key).collect();
        assert!(nodes.iter().all(|node| node.table == Table::Node && keys.contains(&node.key)));
        Ok(infos.len())
    };
    let view = View::holder(&records, &segments);
    assert_eq!(find(&low, view), Ok(low.len()));
    assert_eq!(find(&tags[..16], view), Ok(low.len()));
    assert_eq!(find(&high, view), Err(Discard::OutOfRange));
    assert_eq!(find(&tags[..16], View::everywhere(&records)), Ok(16));
    // An operator that does not stand in holds what is signed, and no NodeInfo.
    let behind = View { announced: &[], ..View::everywhere(&records) };
    assert_eq!(find(&low, behind), Err(Discard::OutOfRange));
    assert_eq!(all(&from, behind, devices_in(Segment::ALL)).unwrap().len(), 40);
    let node = NodeId { domain: Domain(OURS), hash: member(OURS).id.hash };
    assert_eq!(ask(&Request::GetNodeInfo(node), &from, behind), Err(Discard::OutOfRange));
}

/// Rule 4.4: what the asker would look up next comes with what it has asked for, if there is room for it.
#[test]
fn announcements_come_with_the_records_of_those_who_made_them() {
    let records = records();
    let tables = |request: &Request, view| {
        let Ok(Reply::TunnelNodes(page)) = ask(request, &member(OURS), view) else { panic!("no page") };
        assert!(!page.more);
        page.records.iter().map(|bytes| read(bytes).header().table).collect::<Vec<_>>()
    };
    let request = Request::GetTunnelNodes { tags: vec![LookupTag([8; 16])], after: None };
    assert_eq!(tables(&request, View::everywhere(&records)), [Table::NodeInfo, Table::Node]);
    let apart = View { signed: &[], ..View::everywhere(&records) };
    assert_eq!(tables(&request, apart), [Table::NodeInfo]);
}

/// Rule 4.5: a foreign domain's Head is for operators and those who hold a place of it.
#[test]
fn the_head_of_another_domain_is_for_its_holders() {
    let records = records();
    let view = View::everywhere(&records);
    let head = |from: &Member, domain| ask(&Request::GetHead { domain: Some(Domain(domain)) }, from, view);
    let key = HeadBody::record_key(Domain(THEIRS));
    let bytes = records.get(Table::Head, Domain(THEIRS), key).unwrap().bytes().clone();
    assert_eq!(head(&member(THEIRS), THEIRS), Ok(Reply::Head(Some(bytes.clone()))));
    assert_eq!(head(&holder(HIGH), THEIRS), Ok(Reply::Head(Some(bytes.clone()))));
    assert_eq!(head(&operator(), THEIRS), Ok(Reply::Head(Some(bytes))));
    assert_eq!(head(&holder(LOW), THEIRS), Err(Discard::Forbidden));
    assert_eq!(head(&member(OURS), THEIRS), Err(Discard::Forbidden));
    assert_eq!(head(&holder(RETIRED), OURS), Err(Discard::Forbidden));
    let segments = [lower()];
    let request = Request::GetHead { domain: Some(Domain(THEIRS)) };
    let asked = ask(&request, &operator(), View::holder(&records, &segments));
    assert_eq!(asked, Err(Discard::OutOfRange));
}

/// Rules 4.5 and 4.7: a part of the table is handed over to operators and to those who hold that part, and to nobody else.
#[test]
fn parts_of_the_table_are_for_fellow_holders() {
    let records = records();
    let segments = [lower()];
    let view = View::holder(&records, &segments);
    for (table, _) in Table::ALL {
        let everyone = table == Table::OperatorNode;
        let by_domain = matches!(table, Table::SuperNode | Table::Revocation | Table::Head);
        let told = |from: &Member, range| all(from, view, transfer(table, range)).map(drop);
        for from in [member(OURS), member(OURS - 1), holder(RETIRED)] {
            assert_eq!(told(&from, lower()), Err(Discard::Forbidden), "{table:?}");
        }
        for from in [holder(LOW), operator()] {
            assert_eq!(told(&from, lower()), Ok(()), "{table:?}");
        }
        let beyond = Err(Discard::Forbidden);
        assert_eq!(told(&holder(HIGH), lower()), if everyone { Ok(()) } else { beyond }, "{table:?}");
        let silence = Err(Discard::OutOfRange);
        assert_eq!(told(&holder(HIGH), upper()), if everyone { Ok(()) } else { silence }, "{table:?}");
        // Whole domains of what is held by domain.
        let ours = Segment::of_domain(Domain(OURS));
        let expected = if everyone || by_domain { Ok(()) } else { Err(Discard::OutOfRange) };
        assert_eq!(told(&operator(), ours), expected, "{table:?}");
        // What may be fetched may be compared, if it is compared at all.
        for (from, range) in [(holder(LOW), lower()), (member(OURS), lower()), (operator(), upper())] {
            let fetched = ask(&transfer(table, range)(None), &from, view).map(drop);
            let expected = if RECONCILED.contains(&table) { fetched } else { Err(Discard::Forbidden) };
            assert_eq!(ask(&reconcile(table, range), &from, view).map(drop), expected, "{table:?}");
        }
    }
}

/// Rule 4.7: what is handed over is what belongs to the range.
#[test]
fn what_is_handed_over_is_what_belongs_to_the_range() {
    let records = records();
    let view = View::everywhere(&records);
    let fetched = |table| all(&holder(LOW), view, transfer(table, lower())).unwrap();
    for table in [Table::Node, Table::EndDevice, Table::DomainKey] {
        let expected = [OURS - 1, OURS].into_iter().flat_map(|d| records.list(table, Domain(d), None));
        let expected = expected.filter(|record| lower().contains(record.header().placement()));
        let expected: BTreeSet<_> = expected.map(|record| record.bytes().clone()).collect();
        let fetched = fetched(table);
        assert!(fetched.is_sorted_by_key(position));
        assert_eq!(fetched.iter().map(|record| record.bytes().clone()).collect::<BTreeSet<_>>(), expected);
    }
    assert_eq!(fetched(Table::Revocation).len(), 80);
    assert_eq!(fetched(Table::Head).len(), 2);
    assert_eq!(fetched(Table::OperatorNode).len(), 3);
    // The expired one is not handed out.
    assert_eq!(fetched(Table::SuperNode).len(), 2);
    let infos = fetched(Table::NodeInfo);
    assert!(infos.len() > 40 + 20 && infos.len() < 80, "{}", infos.len());
}

/// Rules 4.7 and 4.8: of the map, what concerns the domains of the range; it is compared as a whole.
#[test]
fn the_map_is_handed_over_as_far_as_it_concerns_the_domains_of_the_range() {
    let places = |domain: u32, low: [u64; 2]| {
        let place = |low| PlacementKey((u64::from(domain) << 32) | low);
        Segment { from: place(low[0]), to: place(low[1]) }
    };
    let (below, own) = (places(7, [0, u64::from(u32::MAX)]), places(8, [0, 99]));
    let (rest, above) = (places(8, [100, u64::from(u32::MAX)]), places(9, [0, 5]));
    let mut records = Records::default();
    for (name, segment) in [below, own, rest, above].into_iter().enumerate() {
        records.insert(super_node(100, u8::try_from(name).unwrap(), segment).build());
    }
    let (held, asker) = ([own], Member { id: super_node_id(100, 1), ..member(100) });
    let view = View::holder(&records, &held);
    let told = all(&asker, view, transfer(Table::SuperNode, own)).unwrap();
    let told: BTreeSet<_> = told.iter().map(|record| subject(record.header())).collect();
    assert_eq!(told, BTreeSet::from([super_node_id(100, 1), super_node_id(100, 2)]));
    let compared = |summary| {
        let (from, to) = stretch(Table::SuperNode, own);
        ask(&Request::Reconcile { table: Table::SuperNode, from, to, summary }, &asker, view).unwrap()
    };
    let both =
        records.list(Table::SuperNode, Domain(100), None).filter(|r| told.contains(&subject(r.header())));
    assert_eq!(compared(SetSummary::of(both)), Reply::Reconciled(Reconciled::Same));
    assert_eq!(compared(SetSummary::default()), Reply::Reconciled(Reconciled::Entries(Vec::new())));
}

/// What has expired is not handed out, even if it was not swept yet.
#[test]
fn the_expired_are_not_handed_out() {
    let mut records = Records::default();
    let made = Made::new(Table::EndDevice, OURS, 1).expires(NOW);
    records.insert(made.build());
    let node = Made::new(Table::Node, OURS, 0).expires(NOW).build();
    records.insert(node);
    let view = View::everywhere(&records);
    assert_eq!(all(&member(OURS), view, devices_in(Segment::ALL)), Ok(vec![]));
    let id = member(OURS).id;
    assert_eq!(ask(&Request::GetNode(id), &member(OURS), view), Ok(Reply::Node(None)));
}

/// Rule 4.3: what has an effect is not answered here.
#[test]
fn commands_with_effects_are_not_reads() {
    let records = records();
    for request in [Request::Attach, Request::Store(Bytes::new())] {
        let answered = ask(&request, &operator(), View::everywhere(&records));
        assert_eq!(answered, Err(Discard::UnknownCommand));
    }
    assert!(matches!(ask(&Request::Ping, &member(99), View::everywhere(&records)), Ok(Reply::Reping { .. })));
}

/// Ranges may come in any order, touch, overlap or leave a gap.
#[test]
fn segments_cover_a_range_together_or_not() {
    let segment = |from, to| Segment { from: PlacementKey(from), to: PlacementKey(to) };
    let range = segment(10, 30);
    assert!(covers(&[segment(20, 40), segment(5, 19)], range));
    assert!(covers(&[segment(25, 30), segment(0, 15), segment(12, 26)], range));
    assert!(!covers(&[segment(21, 40), segment(5, 19)], range));
    assert!(!covers(&[segment(5, 29)], range));
    assert!(!covers(&[], range));
    assert!(covers(&[Segment::ALL], Segment::ALL));
}

/// Makes the request for the page after a record.
type Question<'a> = &'a dyn Fn(Option<&Record>) -> Request;

/// Rules 4.4 and 4.7: what a read costs follows from what it finds, not from what is held.
#[test]
fn no_read_goes_through_a_whole_domain_for_what_is_not_there() {
    const HELD: u32 = 4_000;
    let (mut records, tag) = (Records::default(), LookupTag([9; 16]));
    for name in 0..HELD {
        records.insert(record(Table::EndDevice, OURS, name));
        records.insert(node_info(OURS, name, &[tag]).build());
    }
    let view = View::everywhere(&records);
    let taken: BTreeSet<_> = (0..HELD)
        .map(|name| record(Table::Node, OURS, name).header().placement())
        .chain([PlacementKey::new(Domain(OURS), &tag.0)])
        .collect();
    let empty = (0..).map(|low| place(OURS, low)).find(|place| !taken.contains(place)).unwrap();
    let empty = Segment { from: empty, to: empty };
    let nothing = [
        (operator(), transfer(Table::NodeInfo, empty)(None)),
        (operator(), transfer(Table::EndDevice, empty)(None)),
        (member(OURS), devices_in(empty)(None)),
        (member(OURS), Request::GetTunnelNodes { tags: vec![LookupTag([8; 16])], after: None }),
    ];
    for (from, request) in nothing {
        let (found, looked) = looked_at(|| ask(&request, &from, view));
        assert!(found.is_ok());
        // The end of a range is seen by what follows it.
        assert!(looked <= 1, "{looked} looked at for {request:?}");
    }
    // A page costs a small part as well, the first one and the last one.
    let half = Segment { from: place(OURS, 0), to: place(OURS, 0x7fff_ffff) };
    let tagged = |after: Option<&Record>| {
        let after = key_of(after);
        Request::GetTunnelNodes { tags: vec![tag], after }
    };
    let pages: [(_, Question<'_>); 4] = [
        (operator(), &transfer(Table::NodeInfo, half)),
        (operator(), &transfer(Table::EndDevice, half)),
        (member(OURS), &devices_in(half)),
        (member(OURS), &tagged),
    ];
    for (from, request) in pages {
        let found = all(&from, view, request).unwrap();
        assert!(found.len() > 1_900, "{}", found.len());
        for last in [None, found.get(1_000), found.last()] {
            let (page, looked) = looked_at(|| ask(&request(last), &from, view));
            assert!(page.is_ok() && looked < 500, "{looked} looked at for {:?}", request(last));
        }
    }
}
