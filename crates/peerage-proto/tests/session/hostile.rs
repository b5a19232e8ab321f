//! A peer that sends whatever it likes: the session may end, and nothing else happens.

use std::time::Duration;

use bytes::Bytes;
use peerage_proto::session::{Config, Lane, Read, State, WINDOW_MIN};
use peerage_wire::frame::{CarrierNumber, Code, Resume, Resumed, StreamFrame};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::world::{Acceptor, ID, Opener, Side, World, pattern};

/// Small numbers, so that frames fit together by chance, and the largest.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..20_u64, 4 => 0..2 * WINDOW_MIN, 1 => Just(u64::MAX), 1 => any::<u64>()]
}

fn frame() -> impl Strategy<Value = StreamFrame> {
    let limit = || prop_oneof![3 => Just(WINDOW_MIN), 1 => offset()];
    prop_oneof![
        1 => offset().prop_map(|limit| StreamFrame::Open { limit, request: Bytes::from_static(b"x") }),
        2 => limit().prop_map(|limit| StreamFrame::Opened { limit }),
        9 => (offset(), 1..16_368_usize)
            .prop_map(|(offset, len)| StreamFrame::Data { offset, payload: pattern(Opener, 0, len) }),
        5 => (offset(), limit()).prop_map(|(received, limit)| StreamFrame::Ack { received, limit }),
        1 => offset().prop_map(|offset| StreamFrame::Fin { offset }),
        1 => any::<u16>().prop_map(|code| StreamFrame::Reset(Code::from_u16(code))),
        2 => (offset(), limit(), any::<bool>())
            .prop_map(|(received, limit, resend)| StreamFrame::Resumed(Resumed { received, limit, resend })),
        1 => (offset(), limit(), any::<bool>(), 0..4_u32).prop_map(|(received, limit, resend, carrier)| {
            let carrier = CarrierNumber(carrier);
            StreamFrame::Resume(Resume { session: ID, carrier, received, limit, resend })
        }),
        2 => (0..1_500_usize).prop_map(|len| StreamFrame::Datagram(pattern(Opener, 0, len))),
        1 => Just(StreamFrame::Leave),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Frame(u32, StreamFrame),
    Write(usize),
    Read,
    Send(u32),
    Attach,
    Detach(u32),
    Finish,
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..4_u32, frame()).prop_map(|(number, frame)| Step::Frame(number, frame)),
        2 => (1..100_000_usize).prop_map(Step::Write),
        2 => Just(Step::Read),
        4 => (0..4_u32).prop_map(Step::Send),
        1 => Just(Step::Attach),
        1 => (0..4_u32).prop_map(Step::Detach),
        1 => Just(Step::Finish),
        1 => Just(Step::Wait),
    ]
}

fn apply(world: &mut World, side: Side, step: Step) {
    let now = world.now;
    let session = world.session(side);
    match step {
        Step::Frame(number, StreamFrame::Resume(resume)) if side == Acceptor && number > 0 => {
            let _ = session.resume(&resume, Duration::ZERO, now);
        }
        Step::Frame(number, frame) => session.handle_frame(CarrierNumber(number), frame, now),
        Step::Write(len) => {
            let _ = session.write(&mut pattern(Opener, 0, len));
        }
        Step::Read => while let Read::Bytes(_) = session.read(now) {},
        Step::Send(number) => {
            let carrier = CarrierNumber(number);
            while session.poll_frame(carrier, Lane::Control, now).is_some() {}
            while session.poll_frame(carrier, Lane::Bulk, now).is_some() {}
            let is_quiet = session.ready().all(|ready| ready != carrier);
            assert!(is_quiet, "all was taken");
        }
        Step::Attach => {
            let _ = session.attach(Duration::ZERO);
        }
        Step::Detach(number) => session.detach(CarrierNumber(number), now),
        Step::Finish => session.finish(),
        Step::Wait => world.advance(Duration::from_millis(25)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rule 7.24: no sequence of frames makes a session panic or keep more than its windows.
    #[test]
    fn whatever_a_peer_sends_memory_is_bounded_and_the_session_can_be_ended(
        side in prop_oneof![Just(Opener), Just(Acceptor)],
        steps in vec(step(), 1..80),
    ) {
        let mut world = World::opened();
        let first = world.config.budget.used_bytes();
        for step in steps {
            apply(&mut world, side, step);
            world.check();
        }
        world.session(side).reset(Code::Shutdown);
        prop_assert!(matches!(world.session(side).state(), State::Ended(_)));
        let Config { max_window, budget } = world.config.clone();
        prop_assert!(budget.used_bytes() <= first + 2 * max_window);
        drop(world);
        prop_assert_eq!(budget.used_bytes(), 0);
    }
}
