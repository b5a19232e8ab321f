//! Becoming a super-node, staying one, and stopping in order.

use std::time::Duration;

use peerage_proto::node::{Answer, Command, Event, Input, SuperConfig, SuperState};
use peerage_wire::id::{PlacementKey, Segment};
use peerage_wire::message::{Request, SuperNodeState};
use peerage_wire::record::Table;

use crate::world::{BLUE, LENDERS, RED, World, holder_at};

const SECOND: Duration = Duration::from_secs(1);

fn serving(segment: Segment) -> SuperState {
    SuperState::Serving { from: segment.from, to: segment.to }
}

/// Rules 4.9 and 6.50: offers every ten seconds with the addresses that the owner names; the record makes it a holder.
#[test]
fn a_willing_node_offers_itself_and_becomes_what_the_operator_signs() {
    let mut world = World::new(1);
    let holder = world.lend(holder_at(1), LENDERS[0]);
    let id = world.holders[&holder].id;
    world.operator.states.insert(id, SuperNodeState::Checking);
    world.run(60 * SECOND);
    assert_eq!(world.status(holder).state, SuperState::Checking);
    let times: Vec<_> = world.operator.submissions.iter().map(|(_, _, now)| now.mono).collect();
    assert!((5..=8).contains(&times.len()), "{}", times.len());
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(
        gaps.clone().all(|gap| (8 * SECOND..=12 * SECOND).contains(&gap)),
        "{:?}",
        gaps.collect::<Vec<_>>()
    );
    let (_, first, _) = &world.operator.submissions[0];
    assert_eq!((first.addresses.as_slice(), first.version, first.leaving), ([holder].as_slice(), 0, false));

    let record = world.assign(holder, Segment::ALL);
    world.push(holder, std::slice::from_ref(&record));
    world.run(15 * SECOND);
    assert_eq!(world.status(holder).state, serving(Segment::ALL));
    let (_, last, _) = world.operator.submissions.last().unwrap();
    assert_eq!(last.version, record.header().version);
    assert!(last.load.records > 0 && last.load.held_bytes > 0);
    let events = &world.holders[&holder].events;
    assert!(events.contains(&Event::SuperRole(serving(Segment::ALL))), "{events:?}");
}

/// Rule 6.50: a node that is not needed does not ask as often; one whose administrator says no hardly ever.
#[test]
fn who_is_not_needed_or_not_wanted_asks_seldom() {
    let mut world = World::new(2);
    let spare = world.lend(holder_at(1), LENDERS[0]);
    let refused = world.lend(holder_at(2), LENDERS[1]);
    let id = world.holders[&refused].id;
    world.operator.states.insert(id, SuperNodeState::Refused);
    world.run(600 * SECOND);
    assert_eq!(world.status(spare).state, SuperState::Asking);
    assert_eq!(world.status(refused).state, SuperState::NotPermitted);
    let of = |node| world.operator.submissions.iter().filter(|(from, _, _)| *from == node).count();
    assert!((8..=14).contains(&of(world.holders[&spare].id)), "{}", of(world.holders[&spare].id));
    assert!((1..=3).contains(&of(id)), "{}", of(id));
}

/// Rule 6.51: who hands over serves until the operator says that others hold it, then drops everything.
#[test]
fn switching_off_hands_over_first_and_leaves_nothing_behind() {
    let mut world = World::new(3);
    world.register(RED, 0..30);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    assert_eq!(world.devices_told(member, holder), Some(30));
    assert_eq!(world.on_disk(holder, Table::EndDevice, RED), 30);

    let task = world.command(holder, Command::SuperOff);
    world.run(10 * SECOND);
    assert_eq!(world.status(holder).state, SuperState::HandingOver);
    assert!(world.operator.submissions.last().unwrap().1.leaving);
    assert_eq!(world.devices_told(member, holder), Some(30), "it serves until others do");

    let id = world.holders[&holder].id;
    world.operator.states.insert(id, SuperNodeState::HandedOver);
    world.run(10 * SECOND);
    assert_eq!(world.holders[&holder].answers.get(&task), Some(&Answer::SuperOff { handed_over: true }));
    assert_eq!(world.status(holder).state, SuperState::Off);
    assert_eq!(world.devices_told(member, holder), None);
    assert_eq!(world.on_disk(holder, Table::EndDevice, RED), 0);
    let own: Vec<_> = world.holders[&holder].disk.keys().map(|(_, domain, _)| domain.0).collect();
    assert!(own.iter().all(|domain| *domain == LENDERS[0].0 || *domain == 0), "{own:x?}");
    let count = world.operator.submissions.len();
    world.run(300 * SECOND);
    assert_eq!(world.operator.submissions.len(), count, "it asks no more");
    let config = SuperConfig { on: true, ..SuperConfig::default() };
    world.input(holder, Input::SuperRole(config));
    world.run(20 * SECOND);
    assert!(world.operator.submissions.len() > count, "until the owner lends it again");
}

/// Rule 6.51: the operator says that others have it by taking it away, too.
#[test]
fn who_is_dismissed_while_it_hands_over_has_handed_over() {
    let mut world = World::new(13);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let task = world.command(holder, Command::SuperOff);
    world.run(5 * SECOND);
    let record = world.dismiss(holder);
    world.push(holder, &[record]);
    assert_eq!(world.holders[&holder].answers.get(&task), Some(&Answer::SuperOff { handed_over: true }));
    assert_eq!(world.status(holder).records, 0);
}

/// Rule 6.51: without an operator it stops after a minute all the same, and says so.
#[test]
fn handing_over_ends_after_a_minute_even_if_nobody_answers() {
    let mut world = World::new(4);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    world.operator.is_up = false;
    let task = world.command(holder, Command::SuperOff);
    world.run(59 * SECOND);
    assert!(!world.holders[&holder].answers.contains_key(&task));
    world.run(2 * SECOND);
    assert_eq!(world.holders[&holder].answers.get(&task), Some(&Answer::SuperOff { handed_over: false }));
    let idle = world.command(holder, Command::SuperOff);
    assert_eq!(world.holders[&holder].answers.get(&idle), Some(&Answer::SuperOff { handed_over: true }));
}

/// Rule 6.51: an owner who lends his computer again while it hands over keeps it a super-node; whoever waits for the end of the
/// handover hears at once that there is none.
#[test]
fn lending_again_while_it_hands_over_answers_whoever_waits() {
    let mut world = World::new(14);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let task = world.command(holder, Command::SuperOff);
    world.run(5 * SECOND);
    assert_eq!(world.status(holder).state, SuperState::HandingOver);
    world.input(holder, Input::SuperRole(SuperConfig { on: true, ..SuperConfig::default() }));
    assert_eq!(world.holders[&holder].answers.get(&task), Some(&Answer::SuperOff { handed_over: false }));
    assert_eq!(world.status(holder).state, serving(Segment::ALL));
    world.run(120 * SECOND);
    assert_eq!(world.status(holder).state, serving(Segment::ALL));
    assert!(!world.operator.submissions.last().unwrap().1.leaving);
}

/// Rule 6.51: who leaves its domain is not kept by what is lent meanwhile.
#[test]
fn lending_more_does_not_keep_a_node_that_leaves() {
    let mut world = World::new(15);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let task = world.command(holder, Command::Leave);
    world.run(5 * SECOND);
    world.input(holder, Input::SuperRole(SuperConfig { on: true, ..SuperConfig::default() }));
    let id = world.holders[&holder].id;
    world.operator.states.insert(id, SuperNodeState::HandedOver);
    world.run(10 * SECOND);
    assert_eq!(world.holders[&holder].answers.get(&task), Some(&Answer::Left { confirmed: true }));
}

/// Rule 6.51: the same before the node leaves its domain.
#[test]
fn leaving_hands_over_first() {
    let mut world = World::new(5);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let task = world.command(holder, Command::Leave);
    world.run(5 * SECOND);
    assert_eq!(world.status(holder).state, SuperState::HandingOver);
    assert!(!world.holders[&holder].answers.contains_key(&task));
    let id = world.holders[&holder].id;
    world.operator.states.insert(id, SuperNodeState::HandedOver);
    world.run(5 * SECOND);
    assert_eq!(world.holders[&holder].answers.get(&task), Some(&Answer::Left { confirmed: true }));
}

/// Rule 6.50: on a metered network or battery the role is handed over, and taken up again afterwards.
#[test]
fn a_node_that_becomes_unfit_hands_over_and_asks_again_when_it_is_fit() {
    let mut world = World::new(6);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let id = world.holders[&holder].id;
    world.operator.states.insert(id, SuperNodeState::HandedOver);
    world.input(holder, Input::Fitness { ok: false, why: "on battery".to_owned() });
    world.run(10 * SECOND);
    let status = world.status(holder);
    assert_eq!((status.state, status.unfit.as_str()), (SuperState::Unfit, "on battery"));
    assert_eq!(status.records, 0);
    let count = world.operator.submissions.len();
    world.run(120 * SECOND);
    assert_eq!(world.operator.submissions.len(), count);
    world.operator.states.insert(id, SuperNodeState::Checking);
    world.input(holder, Input::Fitness { ok: true, why: String::new() });
    world.run(10 * SECOND);
    assert_eq!(world.status(holder).state, SuperState::Checking);
}

/// Rule 6.53: whoever is not reached any more is none, without being told by anybody else.
#[test]
fn losing_reachability_ends_the_role() {
    let mut world = World::new(7);
    world.register(RED, 0..5);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let id = world.holders[&holder].id;
    world.operator.states.insert(id, SuperNodeState::Unreachable);
    world.run(15 * SECOND);
    assert_eq!(world.status(holder).state, SuperState::Unreachable);
    assert_eq!(world.on_disk(holder, Table::EndDevice, RED), 0);
}

/// Rule 6.53: a tombstone of the own record ends it as well.
#[test]
fn a_dismissed_holder_drops_everything() {
    let mut world = World::new(8);
    world.register(RED, 0..5);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    assert_eq!(world.on_disk(holder, Table::EndDevice, RED), 5);
    let record = world.dismiss(holder);
    world.push(holder, &[record]);
    world.run(15 * SECOND);
    assert_eq!(world.status(holder).state, SuperState::Asking);
    assert_eq!(world.on_disk(holder, Table::EndDevice, RED), 0);
    assert_eq!(world.on_disk(holder, Table::SuperNode, LENDERS[0]), 0);
}

/// Rule 6.53: what is no longer its own is answered for a while, then dropped from memory and disk.
#[test]
fn a_holder_whose_range_shrinks_drops_the_rest_after_a_while() {
    let mut world = World::new(9);
    world.register(RED, 0..20);
    world.register(BLUE, 0..20);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let (red, blue) = (world.member("192.0.2.7:7400", RED), world.member("192.0.2.8:7400", BLUE));
    let half = Segment { from: PlacementKey::MIN, to: Segment::of_domain(RED).to };
    let record = world.assign(holder, half);
    world.push(holder, &[record]);
    assert_eq!(world.status(holder).state, serving(half));
    world.run(30 * SECOND);
    assert_eq!(world.devices_told(red, holder), Some(20));
    assert_eq!(world.devices_told(blue, holder), Some(20), "others do not know yet");
    world.run(90 * SECOND);
    assert_eq!(world.devices_told(red, holder), Some(20));
    assert_eq!(world.devices_told(blue, holder), None);
    assert_eq!(world.on_disk(holder, Table::EndDevice, BLUE), 0);
    assert_eq!(world.on_disk(holder, Table::Node, BLUE), 0);
}

/// Rule 6.53: with more, it fetches the rest, and is silent about that until it has it.
#[test]
fn a_holder_whose_range_grows_catches_up_with_the_rest() {
    let mut world = World::new(10);
    world.register(RED, 0..20);
    world.register(BLUE, 0..20);
    let half = Segment { from: PlacementKey::MIN, to: Segment::of_domain(RED).to };
    let holder = world.holder(1, LENDERS[0], half);
    let (red, blue) = (world.member("192.0.2.7:7400", RED), world.member("192.0.2.8:7400", BLUE));
    assert_eq!(world.devices_told(blue, holder), None);
    let record = world.assign(holder, Segment::ALL);
    let id = world.holders[&holder].id;
    world.push(holder, &[record]);
    assert_eq!(world.devices_told(red, holder), Some(20), "{id:?}");
    world.run(5 * SECOND);
    assert_eq!(world.devices_told(blue, holder), Some(20));
}

/// Rule 6.50: who cannot be seen from outside in any other way finds out how an operator sees it.
#[test]
fn without_an_address_of_its_own_a_node_offers_the_one_that_the_operator_sees() {
    let mut world = World::new(11);
    let holder = world.lend_with(holder_at(1), LENDERS[0], |config| config.advertise.clear());
    world.run(20 * SECOND);
    let (_, submission, _) = world.operator.submissions.first().unwrap();
    assert_eq!(submission.addresses, [holder]);
}

/// Rule 6.50: nothing is lent, nothing is asked; and nobody makes it a holder.
#[test]
fn a_node_that_is_not_lent_never_asks_and_takes_no_assignment() {
    let mut world = World::new(12);
    let holder = world.lend_with(holder_at(1), LENDERS[0], |config| config.super_role.on = false);
    let record = world.assign(holder, Segment::ALL);
    world.run(60 * SECOND);
    world.push(holder, &[record]);
    assert_eq!(world.status(holder).state, SuperState::Off);
    assert!(world.operator.submissions.is_empty());
    let member = world.member("192.0.2.7:7400", RED);
    assert_eq!(world.ask(member, holder, &Request::Ping), None);
}
