//! Named scenarios, in the order of a session's life.

use std::time::Duration;

use bytes::Bytes;
use peerage_proto::session::{
    ACK_DELAY, AttachError, Budget, CARRIERLESS_LIFETIME, Config, End, FIRST_CREDIT, Lane, MAX_CARRIERS,
    MAX_DATAGRAMS, Read, Session, State, Violation, WINDOW_MIN, WriteError,
};
use peerage_wire::frame::{CarrierNumber, Code, MAX_DATA, Resume, Resumed, StreamFrame};
use peerage_wire::id::SessionId;

use crate::world::{Acceptor, ID, Opener, Side, World, pattern};

const C0: CarrierNumber = CarrierNumber(0);

/// Takes all frames that a side has for a carrier.
fn frames(world: &mut World, side: Side, number: u32) -> Vec<StreamFrame> {
    let (now, carrier) = (world.now, CarrierNumber(number));
    let session = world.session(side);
    std::iter::from_fn(|| {
        session
            .poll_frame(carrier, Lane::Control, now)
            .or_else(|| session.poll_frame(carrier, Lane::Bulk, now))
    })
    .collect()
}

fn hand_in(world: &mut World, side: Side, number: u32, frame: StreamFrame) {
    let now = world.now;
    world.session(side).handle_frame(CarrierNumber(number), frame, now);
}

fn data(offset: u64, len: usize) -> StreamFrame {
    StreamFrame::Data { offset, payload: Bytes::from(vec![0; len]) }
}

fn ends_with(world: &mut World, side: Side, violation: Violation) {
    assert_eq!(world.end_of(side), Some(End::Violated(violation)));
    let answer = frames(world, side, 0);
    assert_eq!(answer, [StreamFrame::Reset(Code::ProtocolViolation)]);
    let now = world.now;
    assert_eq!(world.session(side).read(now), Read::Reset(Code::ProtocolViolation));
}

// Opening.

/// Rule 7.6: one round trip, because the first bytes travel with OPEN.
#[test]
fn the_first_bytes_travel_with_open_up_to_the_first_credit() {
    let mut world = World::new();
    world.confirms_at_once = false;
    world.attach();
    assert_eq!(world.write(Opener, 100_000), 100_000);
    let sent = frames(&mut world, Opener, 0);
    assert!(
        matches!(&sent[0], StreamFrame::Open { limit: WINDOW_MIN, request } if request == &b"request"[..])
    );
    let mut offset = 0;
    for frame in &sent[1..] {
        let StreamFrame::Data { offset: at, payload } = frame else { panic!("{frame:?}") };
        assert_eq!(*at, offset);
        assert!(payload.len() <= MAX_DATA);
        offset += payload.len() as u64;
    }
    assert_eq!(offset, FIRST_CREDIT);
}

/// Rule 7.13: the acceptor takes early bytes and says nothing before its node has decided.
#[test]
fn an_acceptor_is_silent_until_it_is_confirmed() {
    let mut world = World::new();
    world.confirms_at_once = false;
    world.attach();
    world.write(Opener, 50_000);
    world.settle();
    assert_eq!(world.opener.state(), State::Opening);
    assert_eq!(world.session(Acceptor).state(), State::Asked);
    assert_eq!(frames(&mut world, Acceptor, 0), []);
    world.session(Acceptor).confirm();
    world.settle_reading();
    assert_eq!(world.opener.state(), State::Open);
    assert_eq!(world.apps[Acceptor as usize].read, 50_000);
}

/// Rule 7.13: RESET in place of OPENED refuses, with the reason.
#[test]
fn a_refusal_reaches_the_opener_with_its_reason_and_leaves_nothing_behind() {
    let mut world = World::new();
    world.confirms_at_once = false;
    world.attach();
    world.write(Opener, 10);
    world.settle();
    world.session(Acceptor).reset(Code::UnknownService);
    assert_eq!(world.pump(0, Acceptor, 1), 1);
    world.settle_reading();
    assert_eq!(world.end_of(Opener), Some(End::ResetByPeer(Code::UnknownService)));
    assert_eq!(world.apps[Opener as usize].end, Some(Read::Reset(Code::UnknownService)));
    assert!(world.opener.is_over() && world.session(Acceptor).is_over());
}

#[test]
fn a_request_has_1_to_512_bytes() {
    let world = World::new();
    for len in [0, 513] {
        let request = Bytes::from(vec![0; len]);
        let error = Session::open(ID, request, &world.config, world.now).unwrap_err();
        assert_eq!(error, AttachError::RequestLength(len));
    }
}

#[test]
fn the_first_carrier_can_be_replaced_before_open_was_sent() {
    let mut world = World::new();
    let first = world.attach();
    world.lose(first);
    assert!(world.opener.needs_carrier());
    assert_eq!(world.attach(), first);
    world.transfer(Opener, 1_000);
}

/// Rule 7.19: a session that the acceptor never saw cannot be resumed.
#[test]
fn an_opening_that_is_lost_with_its_carrier_is_refused_when_resumed() {
    let mut world = World::new();
    world.attach();
    world.pump(0, Opener, 1);
    world.lose(0);
    world.attach();
    world.settle();
    assert_eq!(world.end_of(Opener), Some(End::ResetByPeer(Code::UnknownSession)));
    assert!(world.opener.is_over());
}

#[test]
fn a_second_carrier_waits_for_the_first_to_open_the_session() {
    let mut world = World::new();
    world.attach();
    assert_eq!(world.opener.attach(Duration::ZERO), Err(AttachError::NotOpened));
}

// Bytes, credit, acknowledgements.

/// Rule 7.16: back-pressure is the limit alone.
#[test]
fn a_slow_reader_stops_the_writer_at_window_and_slack() {
    let mut world = World::opened();
    let mut written = 0;
    loop {
        let taken = world.write(Opener, 10_000);
        written += taken as u64;
        world.settle();
        if taken == 0 {
            break;
        }
    }
    assert_eq!(written, 2 * WINDOW_MIN, "one window on its way, one in the sender's hands");
    let stats = world.opener.stats();
    assert_eq!(stats.acked_bytes, WINDOW_MIN);
    world.read(Acceptor, usize::MAX);
    world.settle_reading();
    assert_eq!(world.apps[Acceptor as usize].read as u64, written);
}

/// Rule 7.15: small amounts are acknowledged after 20 ms, and not before.
#[test]
fn a_few_bytes_are_acknowledged_after_the_delay() {
    let mut world = World::opened();
    world.write(Opener, 10);
    world.flow();
    assert_eq!(world.opener.stats().acked_bytes, 0);
    let now = world.now;
    assert_eq!(world.session(Acceptor).poll_timeout(), Some(now.after(ACK_DELAY)));
    world.advance(ACK_DELAY);
    world.flow();
    assert_eq!(world.opener.stats().acked_bytes, 10);
    assert_eq!(world.session(Acceptor).poll_timeout(), None);
}

/// Rule 7.15: a peer that sends again has missed an acknowledgement.
#[test]
fn repeated_bytes_are_acknowledged_again() {
    let mut world = World::opened();
    for _ in 0..2 {
        hand_in(&mut world, Acceptor, 0, data(0, 10));
        world.advance(ACK_DELAY);
        let ack = StreamFrame::Ack { received: 10, limit: WINDOW_MIN };
        assert_eq!(frames(&mut world, Acceptor, 0), [ack]);
    }
}

/// Rule 7.15: a quarter of the window is acknowledged at once.
#[test]
fn a_quarter_of_the_window_is_acknowledged_at_once() {
    let mut world = World::opened();
    world.write(Opener, 3 * MAX_DATA);
    world.flow();
    assert!(world.opener.stats().acked_bytes >= WINDOW_MIN / 4);
}

/// Rule 7.17: the window doubles while it is what limits the transfer, up to the maximum.
#[test]
fn a_window_grows_while_it_is_read_within_two_round_trips_and_stops_at_the_maximum() {
    let mut world = World::opened();
    let grown = |world: &mut World| {
        // Without reading, what can be sent is what the window allows.
        let before = world.session(Acceptor).stats().read_bytes;
        while world.write(Opener, 1 << 20) > 0 {
            world.settle();
        }
        let window = world.opener.stats().acked_bytes - before;
        world.settle_reading();
        window
    };
    assert_eq!(grown(&mut world), WINDOW_MIN);
    for _ in 0..8 {
        // The clock stands still for the reader, so each window is used up at once.
        while world.write(Opener, 1 << 20) > 0 {
            world.flow();
            world.read(Acceptor, usize::MAX);
            world.flow();
            if world.apps[Opener as usize].written > 2 << 20 {
                break;
            }
        }
        world.settle_reading();
    }
    assert_eq!(grown(&mut world), world.config.max_window);
}

/// Rule 7.17: a slow reader keeps its small window.
#[test]
fn a_window_does_not_grow_for_a_reader_that_takes_its_time() {
    let mut world = World::opened();
    for _ in 0..20 {
        world.write(Opener, 1 << 20);
        world.settle();
        world.read(Acceptor, 2);
        world.advance(Duration::from_millis(200));
    }
    world.settle();
    let kept = world.opener.stats().acked_bytes - world.session(Acceptor).stats().read_bytes;
    assert!(kept <= WINDOW_MIN, "{kept}");
}

/// Rule 7.17: the node's budget bounds all windows together, and gets everything back.
#[test]
fn windows_grow_only_within_the_budget_and_give_it_back() {
    let budget = Budget::new(0);
    let mut world = World::with_config(Config { max_window: 1 << 20, budget: budget.clone() });
    world.attach();
    world.settle();
    let first = budget.used_bytes();
    world.transfer(Opener, 1 << 20);
    world.transfer(Acceptor, 1 << 20);
    assert_eq!(budget.used_bytes(), first, "no room: only first windows");
    drop(world);
    assert_eq!(budget.used_bytes(), 0);
}

/// Rule 7.17: what was promised stays promised, and nothing is added.
#[test]
fn a_window_that_is_made_smaller_keeps_its_promise_and_then_stays_small() {
    let mut world = World::opened();
    world.transfer(Opener, 1 << 20);
    world.session(Acceptor).set_max_window(0);
    // Uses up what the peer was promised while the window was large.
    world.transfer(Opener, 1 << 20);
    while world.write(Opener, 1 << 20) > 0 {
        world.settle();
    }
    let kept = world.opener.stats().acked_bytes - world.session(Acceptor).stats().read_bytes;
    assert_eq!(kept, WINDOW_MIN);
}

/// Rule 7.17: an application that pauses earns its window again.
#[test]
fn a_window_starts_small_again_after_half_a_minute_without_reading() {
    let mut world = World::opened();
    let rounds = |world: &mut World, count| {
        for _ in 0..count {
            while world.write(Opener, 1 << 20) > 0 {
                world.flow();
            }
            while world.session(Acceptor).stats().read_bytes < world.opener.stats().written_bytes {
                world.read(Acceptor, usize::MAX);
                world.flow();
            }
        }
    };
    rounds(&mut world, 4);
    let grown = world.config.budget.used_bytes();
    assert!(grown > 3 * WINDOW_MIN, "{grown}");
    world.settle_reading();
    // Less than a window at a time, so that nothing is earned, until the old promise is used up.
    for _ in 0..30 {
        world.advance(Duration::from_secs(31));
        world.write(Opener, 50_000);
        world.settle_reading();
    }
    assert!(world.config.budget.used_bytes() <= 3 * WINDOW_MIN, "{}", world.config.budget.used_bytes());
}

#[test]
fn a_written_piece_is_shared_with_its_frame() {
    let mut world = World::opened();
    let mut bytes = pattern(Opener, 0, 1_000);
    let at = bytes.as_ptr();
    assert_eq!(world.opener.write(&mut bytes), Ok(1_000));
    let [StreamFrame::Data { payload, .. }] = &frames(&mut world, Opener, 0)[..] else { panic!("one frame") };
    assert_eq!(payload.as_ptr(), at);
}

/// Rule 7.18: datagrams are not stored beyond a small queue, the freshest survive.
#[test]
fn datagrams_overtake_nothing_and_the_oldest_gives_way() {
    let mut world = World::opened();
    for number in 0..MAX_DATAGRAMS + 3 {
        world.opener.write_datagram(Bytes::from(vec![number as u8])).unwrap();
    }
    world.flow();
    let received: Vec<u8> =
        std::iter::from_fn(|| world.session(Acceptor).read_datagram()).map(|d| d[0]).collect();
    assert_eq!(received, (3..MAX_DATAGRAMS as u8 + 3).collect::<Vec<_>>());
    assert_eq!(world.opener.stats().datagrams_dropped, 3);
    assert_eq!(world.opener.write_datagram(Bytes::from(vec![0; 1_501])), Err(WriteError::TooLong(1_501)));
}

// Moves.

/// Rule 7.20: new bytes use the new carrier, the old one drains, both sides leave it.
#[test]
fn a_planned_move_sends_nothing_twice_and_leaves_the_old_carrier() {
    let mut world = World::opened();
    world.write(Opener, 30_000);
    world.write(Acceptor, 30_000);
    world.pump(0, Opener, 8);
    world.pump(0, Acceptor, 8);
    world.attach();
    world.write(Opener, 20_000);
    world.write(Acceptor, 20_000);
    // The new carrier is faster than the old one.
    while world.pump(1, Opener, 8) + world.pump(1, Acceptor, 8) > 0 {
        world.deliver(1, Acceptor, usize::MAX);
        world.deliver(1, Opener, usize::MAX);
    }
    assert_eq!(world.apps[Acceptor as usize].read, 0);
    world.settle_reading();
    for side in Side::BOTH {
        assert_eq!(world.apps[side as usize].read, 50_000);
        assert_eq!(world.session(side).stats().resent_bytes, 0);
    }
    let before = world.wires[&0].under_way[0].len() + world.wires[&0].under_way[1].len();
    world.transfer(Opener, 10_000);
    assert_eq!(before, 0);
    world.cut(0);
    world.transfer(Acceptor, 10_000);
}

/// Rule 7.20: of two carriers the higher limit counts, whichever arrives last.
#[test]
fn an_older_limit_on_a_slower_carrier_takes_nothing_back() {
    let mut world = World::opened();
    world.attach();
    assert_eq!(frames(&mut world, Opener, 1).len(), 1);
    let resumed = Resumed { received: 0, limit: 3 * WINDOW_MIN, resend: false };
    hand_in(&mut world, Opener, 1, StreamFrame::Resumed(resumed));
    hand_in(&mut world, Opener, 0, StreamFrame::Ack { received: 0, limit: WINDOW_MIN });
    while world.write(Opener, 1 << 20) > 0 {
        world.check();
    }
    let sent = frames(&mut world, Opener, 1);
    let Some(StreamFrame::Data { offset, payload }) = sent.last() else { panic!("{sent:?}") };
    assert_eq!(offset + payload.len() as u64, 3 * WINDOW_MIN);
}

#[test]
fn a_session_moves_back_and_forth_at_any_byte() {
    let mut world = World::opened();
    let mut total = 0;
    for turn in 0..40_usize {
        total += world.write(Opener, 1_000 + turn * 333);
        let newest = *world.wires.keys().next_back().unwrap();
        world.pump(newest, Opener, 1);
        world.deliver(newest, Acceptor, 500);
        world.try_attach();
        if turn % 3 == 0 {
            world.settle_reading();
        }
    }
    world.settle_reading();
    assert_eq!(world.apps[Acceptor as usize].read, total);
    assert_eq!(world.opener.stats().resent_bytes, 0);
}

/// Rule 7.2: what arrives of the first bytes can be read before all of them have come.
#[test]
fn the_first_bytes_of_a_direction_go_in_short_frames_and_later_ones_in_long_ones() {
    let mut world = World::opened();
    world.write(Opener, 60_000);
    let sizes: Vec<_> = frames(&mut world, Opener, 0)
        .iter()
        .filter_map(
            |frame| if let StreamFrame::Data { payload, .. } = frame { Some(payload.len()) } else { None },
        )
        .collect();
    let short = sizes.iter().take_while(|size| **size <= 1_120).count();
    assert_eq!(sizes[..short].iter().sum::<usize>().div_ceil(1_120), 16_384_usize.div_ceil(1_120));
    assert!(sizes[short..].contains(&MAX_DATA), "{sizes:?}");
}

/// Rule 7.19: after the death of a carrier, exactly what the peer lacks is sent again.
#[test]
fn a_dead_carrier_costs_only_the_bytes_that_were_lost() {
    let mut world = World::opened();
    // The first bytes go in short frames.
    world.transfer(Opener, 20_000);
    world.write(Opener, 40_000);
    world.pump(0, Opener, 8);
    world.deliver(0, Acceptor, 2 * (MAX_DATA + 16));
    world.lose(0);
    assert!(world.opener.needs_carrier());
    world.attach();
    assert!(!world.opener.needs_carrier());
    world.settle_reading();
    assert_eq!(world.apps[Acceptor as usize].read, 60_000);
    assert_eq!(world.opener.stats().resent_bytes, 40_000 - 2 * MAX_DATA as u64);
}

#[test]
fn only_the_opener_noticing_a_death_is_enough_for_both_directions() {
    let mut world = World::opened();
    world.write(Acceptor, 40_000);
    world.pump(0, Acceptor, 8);
    world.cut(0);
    world.notice(0, Opener);
    world.attach();
    world.settle_reading();
    assert_eq!(world.apps[Opener as usize].read, 40_000);
}

#[test]
fn only_the_acceptor_noticing_a_death_is_enough_once_the_opener_moves() {
    let mut world = World::opened();
    world.write(Opener, 40_000);
    world.write(Acceptor, 40_000);
    world.pump(0, Opener, 8);
    world.pump(0, Acceptor, 8);
    world.cut(0);
    world.notice(0, Acceptor);
    // The opener believes in the old carrier and plans a move.
    world.attach();
    world.settle_reading();
    assert_eq!(world.apps[Opener as usize].read, 40_000);
    assert_eq!(world.apps[Acceptor as usize].read, 40_000);
}

#[test]
fn a_new_carrier_that_dies_before_its_answer_gives_its_bytes_back_to_the_old_one() {
    let mut world = World::opened();
    world.attach();
    world.write(Opener, 30_000);
    world.pump(1, Opener, 8);
    world.lose(1);
    world.settle_reading();
    assert_eq!(world.apps[Acceptor as usize].read, 30_000);
}

/// Rule 7.19: had the acceptor heard RESUME, it would send nothing on the old carrier any more.
#[test]
fn a_move_that_was_not_answered_is_made_anew_although_the_old_carrier_serves() {
    for is_lost in [false, true] {
        let mut world = World::opened();
        world.attach();
        world.pump(1, Opener, 8);
        assert!(!world.opener.needs_carrier());
        world.deliver(1, Acceptor, usize::MAX);
        world.write(Acceptor, 30_000);
        world.pump(1, Acceptor, 8);
        if is_lost {
            // The acceptor does not notice.
            world.cut(1);
            world.notice(1, Opener);
        } else {
            world.opener.set_suspect(CarrierNumber(1), true);
        }
        assert!(world.opener.needs_carrier());
        world.attach();
        assert!(!world.opener.needs_carrier());
        let sent = frames(&mut world, Opener, 2);
        assert!(matches!(sent[..], [StreamFrame::Resume(Resume { resend: true, .. })]), "{sent:?}");
        world.transmit(2, Opener, sent[0].clone());
        world.settle_reading();
        assert_eq!(world.apps[Opener as usize].read, 30_000);
        world.transfer(Opener, 10_000);
    }
}

/// Rule 7.19: with ACK goes the leave to send more.
#[test]
fn an_acknowledgement_that_went_to_a_carrier_in_doubt_is_said_again_on_the_one_that_serves() {
    let mut world = World::opened();
    world.attach();
    world.pump(1, Opener, 8);
    world.write(Acceptor, 60_000);
    world.pump(0, Acceptor, 8);
    world.deliver(0, Opener, usize::MAX);
    world.read(Opener, usize::MAX);
    world.advance(ACK_DELAY);
    let told = frames(&mut world, Opener, 1);
    assert!(matches!(told[..], [StreamFrame::Ack { .. }]), "{told:?}");
    world.opener.set_suspect(CarrierNumber(1), true);
    assert_eq!(frames(&mut world, Opener, 0), told);
}

/// Rule 7.11: a false alarm costs bytes only.
#[test]
fn a_suspect_carrier_that_recovers_does_no_harm() {
    let mut world = World::opened();
    world.write(Opener, 40_000);
    world.pump(0, Opener, 32);
    world.opener.set_suspect(C0, true);
    assert!(world.opener.needs_carrier());
    world.attach();
    world.write(Opener, 10_000);
    while world.pump(1, Opener, 8) + world.pump(1, Acceptor, 8) > 0 {
        world.deliver(1, Acceptor, usize::MAX);
        world.deliver(1, Opener, usize::MAX);
    }
    world.read(Acceptor, usize::MAX);
    assert_eq!(world.apps[Acceptor as usize].read, 50_000, "the new carrier alone brings everything");
    assert_eq!(world.opener.stats().resent_bytes, 40_000);
    world.opener.set_suspect(C0, false);
    world.settle_reading();
    world.transfer(Opener, 10_000);
}

/// Rule 7.19: the lower number loses, whatever arrives first; its refusal does not touch the session.
#[test]
fn a_resume_that_is_overtaken_by_a_higher_one_is_refused_alone() {
    let mut world = World::opened();
    world.attach();
    world.attach();
    world.write(Opener, 20_000);
    world.pump(1, Opener, 8);
    world.pump(2, Opener, 8);
    world.deliver(2, Acceptor, usize::MAX);
    world.deliver(1, Acceptor, usize::MAX);
    world.settle_reading();
    world.transfer(Opener, 5_000);
    assert_eq!(world.opener.state(), State::Open);
    assert_eq!(world.apps[Acceptor as usize].read, 25_000);
}

#[test]
fn a_resume_needs_the_same_session_and_a_higher_number() {
    let mut world = World::opened();
    let now = world.now;
    let good =
        Resume { session: ID, carrier: CarrierNumber(3), received: 0, limit: WINDOW_MIN, resend: true };
    let acceptor = world.session(Acceptor);
    let other = Resume { session: SessionId([8; 16]), ..good };
    let stale = Resume { carrier: C0, ..good };
    assert_eq!(acceptor.resume(&other, Duration::ZERO, now), Err(AttachError::Stale));
    assert_eq!(acceptor.resume(&stale, Duration::ZERO, now), Err(AttachError::Stale));
    assert_eq!(acceptor.resume(&good, Duration::ZERO, now), Ok(()));
    assert_eq!(acceptor.resume(&good, Duration::ZERO, now), Err(AttachError::Stale));
    assert_eq!(world.opener.resume(&good, Duration::ZERO, now), Err(AttachError::WrongRole));
}

#[test]
fn a_session_has_at_most_four_carriers() {
    let mut world = World::opened();
    for _ in 1..MAX_CARRIERS {
        world.attach();
    }
    assert_eq!(world.opener.attach(Duration::ZERO), Err(AttachError::TooMany));
}

/// Rule 7.23: twenty minutes without a carrier end a session, a second less does not.
#[test]
fn a_session_waits_twenty_minutes_for_a_carrier() {
    let mut world = World::opened();
    world.transfer(Acceptor, 1_000);
    world.lose(0);
    let second = Duration::from_secs(1);
    world.advance(CARRIERLESS_LIFETIME - second);
    assert_eq!(world.opener.state(), State::Open);
    world.advance(second);
    for side in Side::BOTH {
        assert_eq!(world.end_of(side), Some(End::Expired));
        assert!(world.session(side).is_over());
        world.read(side, 1);
        assert_eq!(world.apps[side as usize].end, Some(Read::Reset(Code::Expired)));
    }
    assert_eq!(world.opener.attach(Duration::ZERO), Err(AttachError::Ended));
}

// The end.

/// Rule 7.14: one direction ends while the other goes on.
#[test]
fn a_half_close_lets_the_other_direction_go_on() {
    let mut world = World::opened();
    world.write(Opener, 1_000);
    world.finish(Opener);
    world.settle_reading();
    assert_eq!(world.apps[Acceptor as usize].end, Some(Read::Finished));
    assert_eq!(world.opener.write(&mut pattern(Opener, 0, 1)), Err(WriteError::Finished));
    world.transfer(Acceptor, 300_000);
    world.finish(Acceptor);
    world.settle_reading();
    assert_eq!(world.apps[Opener as usize].read, 300_000);
    assert_eq!(world.apps[Opener as usize].end, Some(Read::Finished));
}

/// Rule 7.21: a session is over when both ends are acknowledged, both ways.
#[test]
fn a_complete_session_ends_with_leave_from_both_sides() {
    let mut world = World::opened();
    for side in Side::BOTH {
        world.write(side, 5_000);
        world.finish(side);
    }
    world.settle_reading();
    for side in Side::BOTH {
        assert_eq!(world.end_of(side), Some(End::Complete));
        assert!(world.session(side).is_over());
        assert_eq!(world.session(side).poll_timeout(), None);
    }
}

#[test]
fn an_end_without_any_byte_arrives() {
    let mut world = World::opened();
    world.finish(Opener);
    world.finish(Acceptor);
    world.settle_reading();
    assert_eq!(world.end_of(Opener), Some(End::Complete));
    assert_eq!(world.end_of(Acceptor), Some(End::Complete));
}

/// Rule 7.21: FIN is sent again like a byte.
#[test]
fn a_fin_that_died_with_its_carrier_is_sent_again() {
    let mut world = World::opened();
    world.write(Opener, 100);
    world.finish(Opener);
    world.pump(0, Opener, 8);
    world.lose(0);
    world.attach();
    world.settle_reading();
    assert_eq!(world.apps[Acceptor as usize].end, Some(Read::Finished));
}

/// Rule 7.21: the acceptor remembers a complete session for an opener that missed the last acknowledgement.
#[test]
fn an_opener_that_missed_the_last_acknowledgement_learns_that_all_went_well() {
    let mut world = World::opened();
    world.finish(Acceptor);
    world.settle_reading();
    world.finish(Opener);
    world.pump(0, Opener, 8);
    world.deliver(0, Acceptor, usize::MAX);
    world.pump(0, Acceptor, 8);
    assert_eq!(world.end_of(Acceptor), Some(End::Complete));
    world.lose(0);
    assert_eq!(world.end_of(Opener), None);
    assert!(!world.session(Acceptor).is_over());
    world.attach();
    world.settle_reading();
    assert_eq!(world.end_of(Opener), Some(End::Complete));
    assert!(world.opener.is_over() && world.session(Acceptor).is_over());
}

/// Rule 7.22: bytes that had arrived come before the reset.
#[test]
fn a_reset_comes_after_the_bytes_that_had_arrived() {
    let mut world = World::opened();
    world.write(Acceptor, 1_000);
    world.settle();
    world.session(Acceptor).reset(Code::ApplicationReset);
    world.settle();
    world.read(Opener, usize::MAX);
    assert_eq!(world.apps[Opener as usize].read, 1_000);
    assert_eq!(world.apps[Opener as usize].end, Some(Read::Reset(Code::ApplicationReset)));
    assert!(world.opener.is_over() && world.session(Acceptor).is_over());
    assert_eq!(world.session(Acceptor).write(&mut pattern(Acceptor, 0, 1)), Err(WriteError::Ended));
}

/// Rule 7.22: the peer hears of a reset on the next carrier if the first one died with it.
#[test]
fn a_reset_that_died_with_its_carrier_is_told_on_the_next_one() {
    let mut world = World::opened();
    world.opener.reset(Code::ApplicationReset);
    world.pump(0, Opener, 8);
    world.lose(0);
    assert!(world.opener.needs_carrier());
    world.attach();
    world.settle_reading();
    assert_eq!(world.end_of(Acceptor), Some(End::ResetByPeer(Code::ApplicationReset)));
    assert!(world.opener.is_over() && world.session(Acceptor).is_over());
}

/// A refusal of a stale carrier once counted as the answer to a reset.
#[test]
fn a_refused_carrier_does_not_count_as_the_answer_to_a_reset() {
    let mut world = World::opened();
    world.attach();
    world.attach();
    world.pump(2, Opener, 1);
    world.deliver(2, Acceptor, usize::MAX);
    world.opener.reset(Code::ApplicationReset);
    world.cut(2);
    world.pump(2, Opener, 1);
    world.cut(0);
    for number in [0, 2] {
        world.notice(number, Opener);
        world.notice(number, Acceptor);
    }
    world.settle();
    assert!(world.opener.needs_carrier());
    world.attach();
    world.settle();
    assert_eq!(world.end_of(Acceptor), Some(End::ResetByPeer(Code::ApplicationReset)));
}

#[test]
fn resets_of_both_sides_cross_without_harm() {
    let mut world = World::opened();
    world.opener.reset(Code::ApplicationReset);
    world.session(Acceptor).reset(Code::DeviceUnreachable);
    world.settle();
    assert_eq!(world.end_of(Opener), Some(End::ResetHere(Code::ApplicationReset)));
    assert_eq!(world.end_of(Acceptor), Some(End::ResetHere(Code::DeviceUnreachable)));
    assert!(world.opener.is_over() && world.session(Acceptor).is_over());
}

#[test]
fn an_ended_session_holds_no_memory_of_the_budget() {
    let mut world = World::opened();
    world.write(Opener, 100_000);
    world.settle();
    world.opener.reset(Code::Shutdown);
    world.settle_reading();
    let left = world.config.budget.used_bytes();
    assert_eq!(left, WINDOW_MIN, "what had arrived stays for the reader");
}

// Peers that misbehave (Rule 7.24).

#[test]
fn more_than_the_limit_ends_the_session() {
    let mut world = World::opened();
    hand_in(&mut world, Acceptor, 0, data(WINDOW_MIN, 1));
    ends_with(&mut world, Acceptor, Violation::CreditOverrun);
}

#[test]
fn an_offset_at_the_end_of_numbers_ends_the_session() {
    let mut world = World::opened();
    hand_in(&mut world, Acceptor, 0, data(u64::MAX, 2));
    ends_with(&mut world, Acceptor, Violation::CreditOverrun);
}

#[test]
fn a_final_offset_at_the_end_of_numbers_ends_the_session() {
    let mut world = World::opened();
    hand_in(&mut world, Acceptor, 0, StreamFrame::Fin { offset: u64::MAX });
    ends_with(&mut world, Acceptor, Violation::CreditOverrun);
}

#[test]
fn bytes_beyond_the_end_end_the_session() {
    let mut world = World::opened();
    hand_in(&mut world, Acceptor, 0, StreamFrame::Fin { offset: 10 });
    hand_in(&mut world, Acceptor, 0, data(0, 11));
    ends_with(&mut world, Acceptor, Violation::DataAfterFin);
}

#[test]
fn an_end_before_bytes_that_arrived_ends_the_session() {
    let mut world = World::opened();
    hand_in(&mut world, Acceptor, 0, data(100, 10));
    hand_in(&mut world, Acceptor, 0, StreamFrame::Fin { offset: 105 });
    ends_with(&mut world, Acceptor, Violation::DataAfterFin);
}

#[test]
fn an_end_that_moves_ends_the_session() {
    let mut world = World::opened();
    hand_in(&mut world, Acceptor, 0, StreamFrame::Fin { offset: 10 });
    hand_in(&mut world, Acceptor, 0, StreamFrame::Fin { offset: 10 });
    assert_eq!(world.end_of(Acceptor), None);
    hand_in(&mut world, Acceptor, 0, StreamFrame::Fin { offset: 11 });
    ends_with(&mut world, Acceptor, Violation::FinalOffsetMoved);
}

#[test]
fn an_acknowledgement_of_what_was_not_sent_ends_the_session() {
    let mut world = World::opened();
    world.write(Acceptor, 5);
    hand_in(&mut world, Acceptor, 0, StreamFrame::Ack { received: 1, limit: WINDOW_MIN });
    ends_with(&mut world, Acceptor, Violation::AckBeyondSent);
}

#[test]
fn an_acknowledgement_of_an_end_that_was_not_sent_ends_the_session() {
    let mut world = World::opened();
    hand_in(&mut world, Acceptor, 0, StreamFrame::Ack { received: 1, limit: WINDOW_MIN });
    ends_with(&mut world, Acceptor, Violation::AckBeyondSent);
}

#[test]
fn a_limit_that_goes_back_on_one_carrier_ends_the_session() {
    let mut world = World::opened();
    hand_in(&mut world, Acceptor, 0, StreamFrame::Ack { received: 0, limit: 2 * WINDOW_MIN });
    hand_in(&mut world, Acceptor, 0, StreamFrame::Ack { received: 0, limit: WINDOW_MIN });
    ends_with(&mut world, Acceptor, Violation::WentBack);
}

#[test]
fn an_acknowledgement_that_goes_back_on_one_carrier_ends_the_session() {
    let mut world = World::opened();
    world.write(Acceptor, 5);
    assert_eq!(frames(&mut world, Acceptor, 0).len(), 1);
    hand_in(&mut world, Acceptor, 0, StreamFrame::Ack { received: 5, limit: WINDOW_MIN });
    hand_in(&mut world, Acceptor, 0, StreamFrame::Ack { received: 4, limit: WINDOW_MIN });
    ends_with(&mut world, Acceptor, Violation::WentBack);
}

#[test]
fn a_limitless_limit_makes_the_sender_keep_no_more_than_its_own() {
    let mut world = World::opened();
    hand_in(&mut world, Acceptor, 0, StreamFrame::Ack { received: 0, limit: u64::MAX });
    while world.write(Acceptor, 1 << 20) > 0 {
        frames(&mut world, Acceptor, 0);
        world.check();
    }
    let stats = world.session(Acceptor).stats();
    assert!(stats.written_bytes <= world.config.max_window + WINDOW_MIN);
}

#[test]
fn too_many_gaps_end_the_session() {
    let mut world = World::opened();
    for gap in 0..64 {
        hand_in(&mut world, Acceptor, 0, data(1 + 2 * gap, 1));
    }
    assert_eq!(world.end_of(Acceptor), None);
    hand_in(&mut world, Acceptor, 0, data(1 + 2 * 64, 1));
    ends_with(&mut world, Acceptor, Violation::TooManyGaps);
}

#[test]
fn frames_that_are_not_for_this_side_end_the_session() {
    let resume = Resume { session: ID, carrier: C0, received: 0, limit: 0, resend: false };
    let open = StreamFrame::Open { limit: 0, request: Bytes::from_static(b"x") };
    for frame in [open, StreamFrame::Resume(resume), StreamFrame::Opened { limit: WINDOW_MIN }] {
        let mut world = World::opened();
        hand_in(&mut world, Acceptor, 0, frame);
        ends_with(&mut world, Acceptor, Violation::Unexpected);
    }
}

#[test]
fn bytes_before_the_answer_to_open_end_the_session() {
    let mut world = World::new();
    world.attach();
    world.pump(0, Opener, 1);
    hand_in(&mut world, Opener, 0, data(0, 1));
    ends_with(&mut world, Opener, Violation::Unexpected);
}

/// Rule 7.18: on QUIC, it may overtake OPENED.
#[test]
fn a_datagram_before_the_answer_to_open_is_taken() {
    let mut world = World::new();
    world.attach();
    world.pump(0, Opener, 1);
    let early = Bytes::from_static(b"early");
    hand_in(&mut world, Opener, 0, StreamFrame::Datagram(early.clone()));
    assert_eq!(world.opener.read_datagram(), Some(early));
    hand_in(&mut world, Opener, 0, StreamFrame::Opened { limit: FIRST_CREDIT });
    assert_eq!(world.opener.state(), State::Open);
}

#[test]
fn a_first_limit_below_the_first_credit_ends_the_session() {
    let mut world = World::new();
    world.attach();
    world.pump(0, Opener, 1);
    hand_in(&mut world, Opener, 0, StreamFrame::Opened { limit: FIRST_CREDIT - 1 });
    ends_with(&mut world, Opener, Violation::WentBack);
}

#[test]
fn frames_of_a_carrier_that_is_gone_do_nothing() {
    let mut world = World::opened();
    let before = world.opener.stats();
    hand_in(&mut world, Opener, 9, data(u64::MAX, 2));
    hand_in(&mut world, Opener, 9, StreamFrame::Reset(Code::Shutdown));
    assert_eq!(world.opener.state(), State::Open);
    assert_eq!(world.opener.stats(), before);
}
