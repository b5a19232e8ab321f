//! Random lives of a session: whatever carriers do, every byte arrives once and in order, and both ends agree
//! at the end.

use std::time::Duration;

use peerage_proto::session::{CARRIERLESS_LIFETIME, End, Read, State};
use peerage_wire::frame::{CarrierNumber, Code};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::world::{Acceptor, Opener, Side, World, pattern};

/// Random lives a property: seconds without optimisation. Twenty thousand of each were run once.
const CASES: u32 = 1_000;

#[derive(Clone, Debug)]
enum Step {
    Write(Side, usize),
    Read(Side, usize),
    Finish(Side),
    Reset(Side),
    Confirm,
    Attach,
    Pump(u32, Side, usize),
    Deliver(u32, Side, usize),
    Cut(u32),
    Notice(u32, Side),
    Suspect(u32, Side, bool),
    Datagram(Side, usize),
    Advance(u64),
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Opener), Just(Acceptor)]
}

/// Counted from the newest, so that most steps meet a carrier that exists.
fn carrier() -> impl Strategy<Value = u32> {
    prop_oneof![6 => Just(0_u32), 3 => Just(1), 1 => Just(2)]
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 1..40_usize, 4 => 1_000..40_000_usize, 1 => 40_000..300_000_usize]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (side(), size()).prop_map(|(side, len)| Step::Write(side, len)),
        8 => (side(), 1..20_usize).prop_map(|(side, pieces)| Step::Read(side, pieces)),
        1 => side().prop_map(Step::Finish),
        1 => Just(Step::Confirm),
        3 => Just(Step::Attach),
        14 => (carrier(), side(), 1..12_usize).prop_map(|(n, side, count)| Step::Pump(n, side, count)),
        14 => (carrier(), side(), size()).prop_map(|(n, side, len)| Step::Deliver(n, side, len)),
        1 => carrier().prop_map(Step::Cut),
        2 => (carrier(), side()).prop_map(|(n, side)| Step::Notice(n, side)),
        2 => (carrier(), side(), any::<bool>()).prop_map(|(n, side, is)| Step::Suspect(n, side, is)),
        1 => (side(), 0..1_500_usize).prop_map(|(side, len)| Step::Datagram(side, len)),
        3 => (1..100_u64).prop_map(Step::Advance),
    ]
}

fn apply(world: &mut World, step: &Step) {
    let newest = world.wires.keys().next_back().copied();
    let number = |back: u32| newest.and_then(|newest| newest.checked_sub(back)).unwrap_or(u32::MAX);
    match *step {
        Step::Write(side, len) => {
            world.write(side, len);
        }
        Step::Read(side, pieces) => world.read(side, pieces),
        Step::Finish(side) => world.finish(side),
        Step::Reset(side) => {
            if let Some(session) = world.try_session(side) {
                session.reset(Code::ApplicationReset);
            }
        }
        Step::Confirm => {
            if let Some(session) = world.try_session(Acceptor) {
                session.confirm();
            }
        }
        Step::Attach => {
            world.try_attach();
        }
        Step::Pump(back, side, count) => {
            world.pump(number(back), side, count);
        }
        Step::Deliver(back, side, len) => {
            world.deliver(number(back), side, len);
        }
        Step::Cut(back) => world.cut(number(back)),
        Step::Notice(back, side) => world.notice(number(back), side),
        Step::Suspect(back, side, is_suspect) => {
            if let Some(session) = world.try_session(side) {
                session.set_suspect(CarrierNumber(number(back)), is_suspect);
            }
        }
        Step::Datagram(side, len) => {
            let datagram = pattern(side, 0, len);
            if let Some(session) = world.try_session(side) {
                let _ = session.write_datagram(datagram);
            }
        }
        Step::Advance(millis) => world.advance(Duration::from_millis(millis)),
    }
    world.check();
}

/// Ends all faults: cut carriers are noticed, healthy ones trusted, and the opener finds a carrier when it
/// needs one.
fn heal(world: &mut World) {
    for number in world.wires.keys().copied().collect::<Vec<_>>() {
        for side in Side::BOTH {
            world.notice(number, side);
            if let Some(session) = world.try_session(side) {
                session.set_suspect(CarrierNumber(number), false);
            }
        }
    }
    for _ in 0..8 {
        world.settle_reading();
        if let Some(session) = world.try_session(Acceptor) {
            session.confirm();
        }
        if world.opener.needs_carrier() {
            world.try_attach();
        }
    }
    world.settle_reading();
}

proptest! {
    // A failure becomes a named test in `lives.rs`, so no seeds are kept.
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rules 7.14, 7.19 and 7.21: bytes survive moves, stalls, deaths and suspicion of carriers.
    #[test]
    fn every_byte_arrives_once_in_order_and_both_ends_complete(steps in vec(step(), 1..120)) {
        let mut world = World::new();
        world.confirms_at_once = false;
        world.attach();
        for step in &steps {
            apply(&mut world, step);
        }
        heal(&mut world);
        if world.was_resumed_unopened && world.end_of(Opener) == Some(End::ResetByPeer(Code::UnknownSession)) {
            return Ok(());
        }
        prop_assert_eq!(world.opener.state(), world.acceptor.as_ref().unwrap().state());
        for side in Side::BOTH {
            world.finish(side);
        }
        heal(&mut world);
        for side in Side::BOTH {
            prop_assert_eq!(world.apps[side as usize].read, world.apps[side.other() as usize].written);
            prop_assert_eq!(world.apps[side as usize].end.clone(), Some(Read::Finished));
            prop_assert_eq!(world.session(side).state(), State::Ended(End::Complete));
            prop_assert!(world.session(side).is_over());
        }
    }

    /// Rule 7.22: a reset reaches the other side whatever carriers do, and takes no byte out of order with
    /// it.
    #[test]
    fn a_reset_ends_both_sides(before in vec(step(), 1..60), side in side(), after in vec(step(), 1..40)) {
        let mut world = World::opened();
        for step in before.iter().chain([&Step::Reset(side)]).chain(&after) {
            apply(&mut world, step);
        }
        heal(&mut world);
        let mut ends = [world.end_of(Opener).unwrap(), world.end_of(Acceptor).unwrap()];
        if side == Acceptor {
            ends.reverse();
        }
        let [here, there] = ends;
        match here {
            // Both directions had ended before.
            End::Complete => prop_assert_eq!(there, End::Complete),
            End::ResetHere(code) => {
                prop_assert_eq!(code, Code::ApplicationReset);
                prop_assert!(matches!(there, End::ResetByPeer(Code::ApplicationReset) | End::Complete), "{:?}", there);
            }
            End::ResetByPeer(_) | End::Violated(_) | End::Expired => prop_assert!(false, "{:?}", here),
        }
        // The last answer may have been lost with its carrier; then time ends it.
        world.advance(CARRIERLESS_LIFETIME);
        for side in Side::BOTH {
            prop_assert!(world.session(side).is_over());
        }
    }
}
