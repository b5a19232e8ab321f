//! What overtakes what, when an opener gives up its first carrier too early.

use peerage_proto::session::State;
use peerage_wire::frame::CarrierNumber;

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
