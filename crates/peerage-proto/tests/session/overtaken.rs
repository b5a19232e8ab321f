//! What overtakes what, when an opener gives up its first carrier too early.

use peerage_proto::session::{End, State};
use peerage_wire::frame::{CarrierNumber, Code};

use crate::world::{Acceptor, Opener, World};

/// Rule 7.19: RESUME overtakes OPEN and is refused, because nobody knows the session yet; OPEN arrives all the same and is granted. The
/// refusal, which comes last, concerns its carrier alone.
#[test]
fn a_resume_that_overtook_its_open_does_not_end_the_session() {
    let mut world = World::new();
    world.attach();
    world.pump(0, Opener, usize::MAX);
    world.opener.set_suspect(CarrierNumber(0), true);
    let second = world.attach();
    world.pump(second, Opener, usize::MAX);
    world.deliver(second, Acceptor, usize::MAX);
    assert!(world.was_resumed_unopened);
    world.deliver(0, Acceptor, usize::MAX);
    world.pump(0, Acceptor, usize::MAX);
    world.deliver(0, Opener, usize::MAX);
    assert_eq!(world.opener.state(), State::Open);
    world.opener.set_suspect(CarrierNumber(0), false);
    world.deliver(second, Opener, usize::MAX);
    assert_eq!(world.opener.state(), State::Open);
    world.transfer(Opener, 100_000);
    world.transfer(Acceptor, 100_000);
}

/// Rule 7.19, found by the simulator: the refusal comes so late that the session has moved on, and left its first carrier.
#[test]
fn a_resume_that_overtook_its_open_does_not_end_the_session_that_has_moved_since() {
    let mut world = World::new();
    world.attach();
    world.pump(0, Opener, usize::MAX);
    world.opener.set_suspect(CarrierNumber(0), true);
    let second = world.attach();
    world.pump(second, Opener, usize::MAX);
    world.deliver(second, Acceptor, usize::MAX);
    world.deliver(0, Acceptor, usize::MAX);
    world.pump(0, Acceptor, usize::MAX);
    world.deliver(0, Opener, usize::MAX);
    let third = world.attach();
    for _round_trip in 0..3 {
        for carrier in [0, third] {
            for side in [Opener, Acceptor] {
                world.pump(carrier, side, usize::MAX);
                world.deliver(carrier, side.other(), usize::MAX);
            }
        }
    }
    assert!(!world.opener.has_carrier(CarrierNumber(0)), "it has been left");
    world.deliver(second, Opener, usize::MAX);
    assert_eq!(world.opener.state(), State::Open);
    world.transfer(Opener, 100_000);
    world.transfer(Acceptor, 100_000);
}

/// Rule 7.19: once OPENED has arrived, no RESUME can overtake OPEN; who says that it does not know the session has forgotten it.
#[test]
fn a_resume_after_opened_that_is_refused_as_unknown_ends_the_session() {
    let mut world = World::opened();
    world.opener.set_suspect(CarrierNumber(0), true);
    world.acceptor = None;
    let second = world.attach();
    world.pump(second, Opener, usize::MAX);
    world.deliver(second, Acceptor, usize::MAX);
    world.deliver(second, Opener, usize::MAX);
    assert_eq!(world.end_of(Opener), Some(End::ResetByPeer(Code::UnknownSession)));
}
