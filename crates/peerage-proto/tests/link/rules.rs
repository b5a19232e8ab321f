//! What a link does by itself, in the order of its life.

use std::time::Duration;

use bytes::Bytes;
use peerage_proto::link::{
    Closed, Config, Event, HELLO_TIMEOUT, IDLE_LIFETIME, Link, LinkError, MAX_STREAMS, Side, Violation,
};
use peerage_proto::session::Lane;
use peerage_wire::frame::{
    self, CarrierNumber, Code, Frame, Hello, LinkFrame, Malformed, Resume, StreamFrame,
};
use peerage_wire::id::SessionId;
use peerage_wire::time::Instant;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::node::{START, config, hello_to, id, input, link_up, on, output, stream, wire};

const SECOND: Duration = Duration::from_secs(1);

fn open() -> StreamFrame {
    StreamFrame::Open { limit: 0, request: Bytes::from_static(b"r") }
}

fn closed_with(link: &mut Link, frames: &[Frame], violation: Violation) {
    let events = input(link, frames, START);
    assert_eq!(events.last(), Some(&Event::Closed(Closed::Violated(violation))), "{events:?}");
    assert_eq!(output(link, START).last(), Some(&Frame::Link(LinkFrame::Close(violation.code()))));
    assert_eq!(input(link, &[on(1, open())], START), [], "nothing is heard after the end");
    assert_eq!(output(link, START), []);
    assert_eq!(link.poll_timeout(), None);
}

// HELLO (Rule 7.5).

#[test]
fn a_link_begins_with_hello_both_ways_and_checks_both_nodes() {
    for side in [Side::Client, Side::Server] {
        let mut link = Link::new(config(side), START);
        let Config { local, remote, .. } = config(side);
        let hello = Hello { version: frame::VERSION, sender: local, receiver: remote };
        assert_eq!(output(&mut link, START), [Frame::Link(LinkFrame::Hello(hello))]);
        assert_eq!(input(&mut link, &[hello_to(side)], START), [Event::Up]);
    }
}

/// Rule 7.5: a client need not wait for the server's HELLO.
#[test]
fn a_client_opens_streams_right_behind_its_hello() {
    let mut link = Link::new(config(Side::Client), START);
    let opened = link.open_stream().unwrap();
    link.mark_ready(opened);
    let mut frames = vec![open()];
    let mut encoded = Vec::new();
    link.poll_output(1 << 20, START, |_, _| frames.pop(), &mut encoded);
    assert_eq!(encoded.len(), 2);
}

#[test]
fn a_hello_that_names_other_nodes_closes_the_link() {
    let Config { local, remote, .. } = config(Side::Server);
    for (sender, receiver) in [(id(7), local), (remote, id(7)), (local, remote)] {
        let mut link = Link::new(config(Side::Server), START);
        let hello = Frame::Link(LinkFrame::Hello(Hello { version: frame::VERSION, sender, receiver }));
        closed_with(&mut link, &[hello], Violation::WrongPeer);
    }
}

#[test]
fn a_hello_of_another_domain_closes_the_link() {
    let Config { local, mut remote, .. } = config(Side::Server);
    remote.domain.0 += 1;
    let mut link = Link::new(config(Side::Server), START);
    let hello = Hello { version: frame::VERSION, sender: remote, receiver: local };
    closed_with(&mut link, &[Frame::Link(LinkFrame::Hello(hello))], Violation::WrongPeer);
}

#[test]
fn another_version_closes_the_link_with_that_reason() {
    let Config { local, remote, .. } = config(Side::Server);
    let mut link = Link::new(config(Side::Server), START);
    let hello = Hello { version: 2, sender: remote, receiver: local };
    closed_with(&mut link, &[Frame::Link(LinkFrame::Hello(hello))], Violation::Version(2));
    assert_eq!(Violation::Version(2).code(), Code::UnsupportedVersion);
}

#[test]
fn hello_comes_first_and_once() {
    let mut link = Link::new(config(Side::Server), START);
    closed_with(&mut link, &[on(1, open())], Violation::NotHello);
    let mut link = link_up(Side::Server);
    closed_with(&mut link, &[hello_to(Side::Server)], Violation::HelloTwice);
}

#[test]
fn a_peer_without_hello_is_given_up_after_ten_seconds() {
    let mut link = Link::new(config(Side::Server), START);
    output(&mut link, START);
    assert_eq!(link.poll_timeout(), Some(START.after(HELLO_TIMEOUT)));
    link.handle_timeout(START.after(HELLO_TIMEOUT));
    assert_eq!(link.poll_event(START), Some(Event::Closed(Closed::NoHello)));
    assert_eq!(output(&mut link, START), []);
}

// Streams (Rule 7.12).

#[test]
fn the_client_numbers_streams_from_one_and_has_at_most_256() {
    let mut link = link_up(Side::Client);
    for number in 1..=MAX_STREAMS as u32 {
        assert_eq!(link.open_stream(), Ok(stream(number)));
    }
    assert_eq!(link.open_stream(), Err(LinkError::TooManyStreams));
    link.refuse(stream(3), Code::Shutdown, START);
    assert_eq!(link.open_stream(), Ok(stream(257)), "a stream nobody heard of leaves at once");
    assert_eq!(link_up(Side::Server).open_stream(), Err(LinkError::NotClient));
}

#[test]
fn a_server_closes_a_link_with_more_than_256_streams() {
    let mut link = link_up(Side::Server);
    let frames: Vec<Frame> = (1..=MAX_STREAMS as u32 + 1).map(|number| on(number, open())).collect();
    closed_with(&mut link, &frames, Violation::TooManyStreams);
}

/// Rule 7.7: a session that always has bytes does not keep the others from theirs.
#[test]
fn sessions_take_turns_of_64_kib() {
    let mut link = link_up(Side::Client);
    for _ in 0..2 {
        let opened = link.open_stream().unwrap();
        link.mark_ready(opened);
    }
    let payload = Bytes::from(vec![0; frame::MAX_DATA]);
    let mut turns = Vec::new();
    let pull = |stream, lane| {
        (lane == Lane::Bulk).then(|| {
            turns.push(stream);
            StreamFrame::Data { offset: 0, payload: payload.clone() }
        })
    };
    link.poll_output(16 * 16_384, START, pull, &mut Vec::new());
    let turn = |number| [stream(number); 4];
    assert_eq!(turns, [turn(1), turn(2), turn(1), turn(2)].concat());
}

#[test]
fn a_stream_in_use_is_not_opened_again() {
    let mut link = link_up(Side::Server);
    closed_with(&mut link, &[on(1, open()), on(1, open())], Violation::StreamInUse);
}

/// Rule 7.1: the client alone opens streams.
#[test]
fn a_server_that_opens_streams_is_cut_off() {
    let resume = Resume {
        session: SessionId([0; 16]),
        carrier: CarrierNumber(1),
        received: 0,
        limit: 0,
        resend: false,
    };
    for frame in [open(), StreamFrame::Resume(resume)] {
        let mut link = link_up(Side::Client);
        closed_with(&mut link, &[on(1, frame)], Violation::OpenByServer);
    }
}

/// Rule 7.12: RESET answers, and the opener's frames that are under way are dropped until its own last one.
#[test]
fn a_refused_stream_stays_until_the_opener_has_left_it() {
    let mut link = link_up(Side::Server);
    assert_eq!(input(&mut link, &[on(4, open())], START).len(), 1);
    link.refuse(stream(4), Code::Limit, START);
    assert_eq!(output(&mut link, START), [on(4, StreamFrame::Reset(Code::Limit))]);
    let data = StreamFrame::Data { offset: 0, payload: Bytes::from_static(b"early") };
    assert_eq!(input(&mut link, &[on(4, data)], START), []);
    assert_eq!(link.streams(), 1);
    assert_eq!(input(&mut link, &[on(4, StreamFrame::Reset(Code::Limit))], START), []);
    assert_eq!((link.streams(), link.discarded_frames()), (0, 2));
}

/// Rule 7.10: on QUIC, the datagram may have been overtaken by the end.
#[test]
fn a_datagram_after_the_last_frame_of_its_stream_is_dropped() {
    let mut link = link_up(Side::Server);
    let late = on(1, StreamFrame::Datagram(Bytes::from_static(b"late")));
    let frames = [on(1, open()), on(1, StreamFrame::Leave), late];
    assert_eq!(input(&mut link, &frames, START).len(), 2);
    assert_eq!((link.closed(), link.discarded_frames()), (None, 1));
}

#[test]
fn a_frame_after_the_last_one_of_its_stream_closes_the_link() {
    let mut link = link_up(Side::Server);
    let frames = [on(1, open()), on(1, StreamFrame::Leave), on(1, StreamFrame::Leave)];
    closed_with(&mut link, &frames, Violation::AfterLast);
}

#[test]
fn frames_of_unknown_streams_are_dropped_and_counted() {
    let mut link = link_up(Side::Server);
    assert_eq!(input(&mut link, &[on(9, StreamFrame::Fin { offset: 0 })], START), []);
    assert_eq!(link.discarded_frames(), 1);
    assert_eq!(link.closed(), None);
}

#[test]
fn bytes_that_are_no_frame_close_the_link() {
    let mut link = link_up(Side::Server);
    link.handle_input(&[0xff; 16], START);
    let closed = Closed::Violated(Violation::Malformed(Malformed::Kind));
    assert_eq!(link.poll_event(START), Some(Event::Closed(closed)));
    assert_eq!(output(&mut link, START), [Frame::Link(LinkFrame::Close(Code::ProtocolViolation))]);
}

// Silence (Rules 7.8 and 7.11).

fn probes(frames: &[Frame]) -> usize {
    frames.iter().filter(|frame| matches!(frame, Frame::Link(LinkFrame::Probe(_)))).count()
}

/// Runs a silent link's own timers up to a time; returns what it sent and said, with the time of each.
fn run(link: &mut Link, until: Duration) -> Vec<(Duration, Result<Frame, Event>)> {
    let mut log = Vec::new();
    while let Some(at) = link.poll_timeout().filter(|at| *at <= START.after(until)) {
        link.handle_timeout(at);
        assert!(link.poll_timeout().is_none_or(|next| next > at), "a served timeout came back");
        log.extend(output(link, at).into_iter().map(|frame| (at - START, Ok(frame))));
        log.extend(std::iter::from_fn(|| link.poll_event(at)).map(|event| (at - START, Err(event))));
    }
    log
}

/// Serves what is due, and returns the events that come of it.
fn run_to(link: &mut Link, now: Instant) -> Vec<Event> {
    while link.poll_timeout().is_some_and(|at| at <= now) {
        link.handle_timeout(now);
    }
    std::iter::from_fn(|| link.poll_event(now)).collect()
}

#[test]
fn an_active_link_that_falls_silent_is_probed_then_suspect_then_dead() {
    let mut link = link_up(Side::Client);
    let opened = link.open_stream().unwrap();
    link.mark_ready(opened);
    let mut frames = vec![open()];
    link.poll_output(1 << 20, START, |_, _| frames.pop(), &mut Vec::new());

    let log = run(&mut link, 60 * SECOND);
    let said: Vec<_> =
        log.iter().filter_map(|(at, what)| what.as_ref().err().map(|event| (*at, event))).collect();
    let dead = Event::Closed(Closed::Silent);
    assert_eq!(said, [(3 * SECOND, &Event::Suspect), (33 * SECOND, &dead)]);
    let probed: Vec<Duration> = log
        .iter()
        .filter(|(_, what)| matches!(what, Ok(Frame::Link(LinkFrame::Probe(_)))))
        .map(|(at, _)| *at)
        .collect();
    assert_eq!(probed, (1..33).map(|n| n * SECOND).collect::<Vec<_>>());
}

/// Brings bytes of a session to a tunnel-node's link, as a camera's to its viewer.
fn with_data() -> Link {
    let mut link = link_up(Side::Server);
    let data = StreamFrame::Data { offset: 0, payload: Bytes::from_static(b"picture") };
    assert_eq!(input(&mut link, &[on(1, open()), on(1, data)], START).len(), 2);
    assert_eq!(output(&mut link, START), [], "nothing was sent that would be answered");
    link
}

/// Rule 7.11: the other side notices by itself, but it may be the one that cannot dial.
#[test]
fn a_link_that_only_receives_is_suspect_after_three_seconds_of_silence() {
    let log = run(&mut with_data(), 4 * SECOND);
    let probed = log.iter().filter(|(_, what)| what.is_ok()).map(|(at, _)| *at);
    assert_eq!(probed.collect::<Vec<_>>(), (1..=4).map(|n| n * SECOND).collect::<Vec<_>>());
    let said: Vec<_> = log.into_iter().filter_map(|(at, what)| Some((at, what.err()?))).collect();
    assert_eq!(said, [(3 * SECOND, Event::Suspect)]);
}

/// Rule 7.11: a path may end in the pauses of whoever sends, but not all who paused go on.
#[test]
fn a_link_that_has_received_is_asked_each_second_for_ten_seconds_and_then_rarely() {
    let mut link = with_data();
    let (mut asked, mut now) = (Vec::new(), START);
    while now - START < 70 * SECOND {
        now = link.poll_timeout().unwrap();
        link.handle_timeout(now);
        for frame in output(&mut link, now) {
            let Frame::Link(LinkFrame::Probe(echo)) = frame else { panic!("{frame:?}") };
            asked.push(now - START);
            assert_eq!(input(&mut link, &[Frame::Link(LinkFrame::Probed(echo))], now), []);
        }
    }
    let expected: Vec<_> = (1..=10).chain([60]).map(|n| n * SECOND).collect();
    assert_eq!(asked[..expected.len()], expected);
}

#[test]
fn a_link_whose_tunnel_has_ended_is_not_asked_whether_more_comes() {
    let mut link = with_data();
    link.refuse(stream(1), Code::DeviceUnreachable, START);
    assert_eq!(output(&mut link, START).len(), 1);
    input(&mut link, &[on(1, StreamFrame::Leave)], START);
    assert_eq!(link.streams(), 0);
    // RESET alone still wants its answer.
    let asked = run(&mut link, 2 * SECOND);
    let [(at, Ok(Frame::Link(LinkFrame::Probe(echo))))] = asked[..1] else { panic!("{asked:?}") };
    assert_eq!(at, SECOND);
    let now = START.after(2 * SECOND);
    let newest = 2_u64.max(u64::from_be_bytes(echo)) + 1;
    input(&mut link, &[Frame::Link(LinkFrame::Probed(newest.to_be_bytes()))], now);
    assert_eq!(link.poll_timeout(), Some(now.after(50 * SECOND)));
}

/// Rule 7.11: an answer to an older probe says nothing about what was sent after it.
#[test]
fn bytes_sent_after_a_probe_need_another_one() {
    let mut link = link_up(Side::Client);
    let opened = link.open_stream().unwrap();
    link.doubt(START);
    let sent = output(&mut link, START);
    let [Frame::Link(LinkFrame::Probe(echo))] = sent[..] else { panic!("{sent:?}") };
    link.mark_ready(opened);
    let mut frames = vec![open()];
    link.poll_output(1 << 20, START, |_, _| frames.pop(), &mut Vec::new());
    input(&mut link, &[Frame::Link(LinkFrame::Probed(echo))], START);
    assert_eq!(link.poll_timeout(), Some(START.after(SECOND)));
    link.handle_timeout(START.after(SECOND));
    let sent = output(&mut link, START.after(SECOND));
    let [Frame::Link(LinkFrame::Probe(echo))] = sent[..] else { panic!("{sent:?}") };
    input(&mut link, &[Frame::Link(LinkFrame::Probed(echo))], START.after(SECOND));
    assert_eq!(link.poll_timeout(), Some(START.after(51 * SECOND)), "all is confirmed");
}

#[test]
fn any_byte_ends_a_suspicion_but_those_of_a_probe() {
    let mut link = link_up(Side::Client);
    link.doubt(START);
    assert_eq!(link.poll_event(START), Some(Event::Suspect));
    assert!(link.is_suspect());
    assert_eq!(probes(&output(&mut link, START)), 1);
    let probe = Frame::Link(LinkFrame::Probe([0; 8]));
    assert_eq!(input(&mut link, &[probe.clone(), probe.clone()], START), []);
    assert!(link.is_suspect(), "it may ask because it hears nothing");
    let probed = Frame::Link(LinkFrame::Probed([0; 8]));
    assert_eq!(input(&mut link, &[probe, probed], START), [Event::Trusted]);
    assert!(!link.is_suspect());
}

/// Rule 7.11: the path from here to the peer is dead, and only that. The peer hears nothing, and asks each second.
#[test]
fn a_path_that_is_dead_in_one_direction_is_suspect_although_the_peer_asks_on() {
    let mut link = link_up(Side::Client);
    let opened = link.open_stream().unwrap();
    link.mark_ready(opened);
    let mut frames = vec![open()];
    link.poll_output(1 << 20, START, |_, _| frames.pop(), &mut Vec::new());
    let mut said = Vec::new();
    for second in 1..=4 {
        let now = START.after(second * SECOND);
        said.extend(input(&mut link, &[Frame::Link(LinkFrame::Probe([0; 8]))], now));
        said.extend(run_to(&mut link, now));
    }
    assert_eq!(said, [Event::Suspect]);
}

#[test]
fn an_idle_link_is_asked_every_fifty_seconds_and_stays_trusted_while_it_answers() {
    let mut link = link_up(Side::Client);
    let mut now = START;
    for _ in 0..5 {
        let at = link.poll_timeout().unwrap();
        assert_eq!(at - now, 50 * SECOND);
        now = at;
        link.handle_timeout(now);
        let sent = output(&mut link, now);
        let [Frame::Link(LinkFrame::Probe(echo))] = sent[..] else { panic!("{sent:?}") };
        assert_eq!(input(&mut link, &[Frame::Link(LinkFrame::Probed(echo))], now), []);
    }
}

/// Rule 7.8: the answer to the newest probe measures the round trip, an older or foreign one nothing.
#[test]
fn the_round_trip_is_measured_by_probes_and_smoothed() {
    let mut link = Link::new(config(Side::Client), START);
    input(&mut link, &[hello_to(Side::Client)], START);
    assert_eq!(link.round_trip(), None);
    let sent = output(&mut link, START);
    let Some(Frame::Link(LinkFrame::Probe(echo))) = sent.last().cloned() else { panic!("{sent:?}") };
    let later = START.after(Duration::from_millis(80));
    input(&mut link, &[Frame::Link(LinkFrame::Probed([9; 8]))], later);
    assert_eq!(link.round_trip(), None);
    input(&mut link, &[Frame::Link(LinkFrame::Probed(echo))], later);
    assert_eq!(link.round_trip(), Some(Duration::from_millis(80)));
    input(&mut link, &[Frame::Link(LinkFrame::Probed(echo))], later.after(SECOND));
    assert_eq!(link.round_trip(), Some(Duration::from_millis(80)));
}

#[test]
fn a_flood_of_probes_is_answered_up_to_a_limit() {
    let mut link = link_up(Side::Server);
    let flood: Vec<Frame> = (0..100_u64).map(|n| Frame::Link(LinkFrame::Probe(n.to_be_bytes()))).collect();
    input(&mut link, &flood, START);
    assert_eq!(output(&mut link, START).len(), 32);
    assert_eq!(link.discarded_frames(), 68);
}

// Heads (Rule 7.9).

#[test]
fn a_head_reaches_the_peer_and_only_the_newest_waits() {
    let mut link = link_up(Side::Server);
    link.send_head(Bytes::from_static(b"old")).unwrap();
    link.send_head(Bytes::from_static(b"new")).unwrap();
    let sent = output(&mut link, START);
    assert_eq!(sent, [Frame::Link(LinkFrame::Head(Bytes::from_static(b"new")))]);
    let mut peer = link_up(Side::Client);
    assert_eq!(input(&mut peer, &sent, START), [Event::Head(Bytes::from_static(b"new"))]);
    assert_eq!(link.send_head(Bytes::new()), Err(LinkError::HeadLength(0)));
    assert_eq!(link.send_head(Bytes::from(vec![0; 901])), Err(LinkError::HeadLength(901)));
}

// The end (Rule 7.10).

#[test]
fn an_unused_link_is_closed_after_ten_minutes_by_the_client_first() {
    for (side, lifetime) in [(Side::Client, IDLE_LIFETIME), (Side::Server, IDLE_LIFETIME + 30 * SECOND)] {
        let mut link = link_up(side);
        let mut now = START;
        while link.closed().is_none() {
            now = link.poll_timeout().unwrap();
            link.handle_timeout(now);
            for frame in output(&mut link, now) {
                if let Frame::Link(LinkFrame::Probe(echo)) = frame {
                    input(&mut link, &[Frame::Link(LinkFrame::Probed(echo))], now);
                }
            }
        }
        assert_eq!((now - START, link.closed()), (lifetime, Some(Closed::Here(Code::Idle))));
    }
}

#[test]
fn a_link_with_a_stream_is_not_idle() {
    let mut link = link_up(Side::Server);
    input(&mut link, &[on(1, open())], START);
    let log = run(&mut link, 49 * SECOND);
    assert_eq!(log, []);
    link.handle_timeout(START.after(2 * IDLE_LIFETIME));
    assert_eq!(link.closed(), None);
}

#[test]
fn close_is_the_last_frame_and_the_peer_learns_why() {
    let mut link = link_up(Side::Client);
    let opened = link.open_stream().unwrap();
    link.mark_ready(opened);
    link.close(Code::Shutdown);
    link.mark_ready(opened);
    let mut encoded = Vec::new();
    link.poll_output(1 << 20, START, |_, _| Some(open()), &mut encoded);
    let sent = [Frame::Link(LinkFrame::Close(Code::Shutdown))];
    assert_eq!(encoded, [sent[0].encode()]);
    assert!(!link.wants_output());
    assert_eq!(link.open_stream(), Err(LinkError::Closed));
    assert_eq!(link.send_head(Bytes::from_static(b"x")), Err(LinkError::Closed));

    let mut peer = link_up(Side::Server);
    let events = input(&mut peer, &sent, START);
    assert_eq!(events, [Event::Closed(Closed::ByPeer(Code::Shutdown))]);
    assert_eq!(output(&mut peer, START), []);
}

#[test]
fn a_closed_link_keeps_no_bytes() {
    let mut link = link_up(Side::Server);
    link.close(Code::Shutdown);
    link.handle_input(&wire(&[on(1, open())]), START);
    assert!(link.read_buffer().is_empty());
}

// Peers that send whatever they like.

fn any_stream_frame() -> impl Strategy<Value = StreamFrame> {
    prop_oneof![
        3 => Just(open()),
        1 => Just(StreamFrame::Opened { limit: 0 }),
        2 => Just(StreamFrame::Data { offset: 0, payload: Bytes::from_static(b"x") }),
        1 => Just(StreamFrame::Fin { offset: 0 }),
        2 => Just(StreamFrame::Reset(Code::Limit)),
        2 => Just(StreamFrame::Leave),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rule 7.12: frames in any order leave at most 256 streams, and the link can always be closed.
    #[test]
    fn streams_stay_bounded_whatever_the_client_sends(
        frames in vec((1..400_u32, any_stream_frame()), 1..700),
        refuses in vec(any::<bool>(), 20),
    ) {
        let mut link = link_up(Side::Server);
        let mut refuses = refuses.into_iter().cycle();
        for (number, frame) in frames {
            for event in input(&mut link, &[on(number, frame)], START) {
                if let Event::OpenAsked { stream, .. } = event && refuses.next() == Some(true) {
                    link.refuse(stream, Code::Limit, START);
                }
            }
            output(&mut link, START);
            prop_assert!(link.streams() <= MAX_STREAMS);
        }
        link.close(Code::Shutdown);
        output(&mut link, START);
        prop_assert!(!link.wants_output());
    }

    /// Rule 7.3: random bytes end a link, or wait for more, and do nothing else.
    #[test]
    fn random_bytes_end_a_link_or_wait(bytes in vec(any::<u8>(), 0..200), cut in 1..50_usize) {
        let mut link = link_up(Side::Server);
        for chunk in bytes.chunks(cut) {
            link.handle_input(chunk, START);
            while link.poll_event(START).is_some() {}
        }
        let is_ended = matches!(link.closed(), Some(Closed::Violated(_) | Closed::ByPeer(_)));
        prop_assert!(is_ended || link.closed().is_none());
    }
}
