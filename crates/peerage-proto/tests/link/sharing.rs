//! Sessions that share links and move between them.

use std::time::Duration;

use bytes::Bytes;
use peerage_proto::link::Event;
use peerage_proto::session::{End, Read, State};
use peerage_wire::frame::{Code, Frame, StreamFrame};
use peerage_wire::id::to_hex;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::node::{Pair, frames_of};

fn content(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at + seed * 37) % 251) as u8).collect()
}

/// Writes everything to a session, however long it takes, and returns what the other side read.
fn transfer(pair: &mut Pair, session: usize, up: bool, bytes: Vec<u8>) -> Vec<u8> {
    let mut left = Bytes::from(bytes);
    let mut read = Vec::new();
    loop {
        let (from, to) =
            if up { (&mut pair.client, &mut pair.server) } else { (&mut pair.server, &mut pair.client) };
        from.sessions[session].write(&mut left).unwrap();
        let before = read.len();
        read.extend(to.read_all(session, pair.now));
        let is_quiet = left.is_empty() && before == read.len();
        pair.settle();
        if is_quiet {
            return read;
        }
    }
}

/// Rule 7.6: on a link that is up, a tunnel costs one round trip to the first byte of the answer.
#[test]
fn a_tunnel_on_a_warm_link_answers_in_one_round_trip() {
    let mut pair = Pair::new(1);
    pair.settle();
    assert_eq!(pair.client.events, [Event::Up]);
    let session = pair.client.open(0, pair.now);
    pair.client.sessions[session].write(&mut Bytes::from_static(b"GET")).unwrap();
    let there = pair.client.output(0, 1 << 20, pair.now);
    pair.server.input(0, &there, pair.now);
    assert_eq!(pair.server.read_all(0, pair.now), b"GET");
    pair.server.sessions[0].write(&mut Bytes::from_static(b"200")).unwrap();
    let back = pair.server.output(0, 1 << 20, pair.now);
    pair.client.input(0, &back, pair.now);
    assert_eq!(pair.client.read_all(session, pair.now), b"200");
}

/// The example at the end of the specification's chapter, but for the request.
#[test]
fn a_short_tunnel_looks_like_the_example_of_the_specification() {
    let mut pair = Pair::new(1);
    pair.settle();
    let session = pair.client.open(0, pair.now);
    pair.client.sessions[session].write(&mut Bytes::from_static(b"GET")).unwrap();
    pair.client.sessions[session].finish();
    let mut log = String::new();
    for round in 0..3 {
        let bytes = pair.client.output(0, 1 << 20, pair.now);
        log += &to_hex(&bytes);
        pair.server.input(0, &bytes, pair.now);
        if round == 0 {
            assert_eq!(pair.server.read_all(0, pair.now), b"GET");
            pair.server.sessions[0].write(&mut Bytes::from_static(b"200")).unwrap();
            pair.server.sessions[0].finish();
        }
        let bytes = pair.server.output(0, 1 << 20, pair.now);
        log += &to_hex(&bytes);
        pair.client.input(0, &bytes, pair.now);
        assert_eq!(pair.client.read_all(session, pair.now).len(), if round == 0 { 3 } else { 0 });
    }
    let expected = [
        "10000010 00000001 0000000000010000 00000000000000000000000000000000",
        "12000003 00000001 0000000000000000 474554",
        "14000000 00000001 0000000000000003",
        "11000000 00000001 0000000000010000",
        "13000008 00000001 0000000000000004 0000000000010003",
        "12000003 00000001 0000000000000000 323030",
        "14000000 00000001 0000000000000003",
        "13000008 00000001 0000000000000004 0000000000010003",
        "19000000 00000001 0000000000000000",
        "19000000 00000001 0000000000000000",
    ];
    assert_eq!(log, expected.concat().replace(' ', ""));
}

#[test]
fn a_complete_tunnel_leaves_no_stream_on_either_side() {
    let mut pair = Pair::new(1);
    let session = pair.client.open(0, pair.now);
    pair.settle();
    assert!(transfer(&mut pair, session, true, content(1, 200_000)) == content(1, 200_000));
    assert!(transfer(&mut pair, session, false, content(2, 200_000)) == content(2, 200_000));
    pair.client.sessions[session].finish();
    pair.server.sessions[0].finish();
    pair.settle();
    for node in [&pair.client, &pair.server] {
        assert_eq!(node.sessions[0].state(), State::Ended(End::Complete));
        assert!(node.sessions[0].is_over());
        assert_eq!(node.links[0].link.streams(), 0);
    }
}

#[test]
fn a_refused_tunnel_leaves_no_stream_on_either_side() {
    let mut pair = Pair::new(1);
    pair.server.refuses = Some(Code::NotAllowed);
    let session = pair.client.open(0, pair.now);
    pair.client.sessions[session].write(&mut Bytes::from_static(b"early")).unwrap();
    pair.settle();
    assert_eq!(pair.client.sessions[session].read(pair.now), Read::Reset(Code::NotAllowed));
    assert!(pair.client.sessions[session].is_over());
    assert_eq!((pair.client.links[0].link.streams(), pair.server.links[0].link.streams()), (0, 0));
}

/// Rule 7.7: in a batch, each session has its turn of 64 KiB, and no frame is longer than fits.
#[test]
fn a_batch_is_shared_fairly_and_kept_within_its_size() {
    let mut pair = Pair::new(1);
    for _ in 0..3 {
        let session = pair.client.open(0, pair.now);
        let mut bytes = Bytes::from(content(session, 64 * 1_024));
        pair.client.sessions[session].write(&mut bytes).unwrap();
    }
    pair.settle();
    for session in 0..3 {
        assert_eq!(pair.server.read_all(session, pair.now).len(), 64 * 1_024);
    }
    pair.settle();
    for session in 0..3 {
        let mut bytes = Bytes::from(content(session, 128 * 1_024));
        pair.client.sessions[session].write(&mut bytes).unwrap();
    }
    let max = 150_000;
    let mut batch = pair.client.output(0, max, pair.now);
    assert!(batch.len() <= max && batch.len() > max - 16_384);
    let mut order: Vec<u32> = Vec::new();
    for frame in frames_of(&mut batch) {
        let Frame::Stream(stream, StreamFrame::Data { .. }) = frame else { continue };
        if order.last() != Some(&stream.0.get()) {
            order.push(stream.0.get());
        }
    }
    assert_eq!(order, [1, 2, 3], "each has one turn in turn");
}

/// Rule 7.7: acknowledgements and openings do not wait behind the bytes of others.
#[test]
fn control_frames_go_before_the_bytes_of_all_sessions() {
    let mut pair = Pair::new(1);
    let bulk = pair.client.open(0, pair.now);
    let quiet = pair.client.open(0, pair.now);
    pair.settle();
    pair.client.sessions[bulk].write(&mut Bytes::from(content(0, 64 * 1_024))).unwrap();
    pair.server.sessions[quiet].write(&mut Bytes::from(content(0, 64 * 1_024))).unwrap();
    let bytes = pair.server.output(0, 1 << 20, pair.now);
    pair.client.input(0, &bytes, pair.now);
    let late = pair.client.open(0, pair.now);
    pair.client.sessions[late].write(&mut Bytes::from_static(b"x")).unwrap();
    let mut batch = pair.client.output(0, 1 << 20, pair.now);
    let frames = frames_of(&mut batch);
    let first_data =
        frames.iter().position(|frame| matches!(frame, Frame::Stream(_, StreamFrame::Data { .. })));
    let is_control =
        |frame: &Frame| matches!(frame, Frame::Stream(_, StreamFrame::Ack { .. } | StreamFrame::Open { .. }));
    let last_control = frames.iter().rposition(is_control);
    assert_eq!(frames.iter().filter(|frame| is_control(frame)).count(), 2);
    assert!(last_control < first_data, "{last_control:?} {first_data:?}");
}

#[test]
fn a_session_moves_to_another_link_while_bytes_flow() {
    let mut pair = Pair::new(2);
    let session = pair.client.open(0, pair.now);
    pair.settle();
    pair.client.sessions[session].write(&mut Bytes::from(content(3, 60_000))).unwrap();
    let under_way = pair.client.output(0, 1 << 20, pair.now);
    pair.client.attach(session, 1);
    pair.stalled = Some(0);
    pair.settle();
    pair.client.sessions[session].write(&mut Bytes::from_static(b"first on the new link")).unwrap();
    pair.settle();
    assert!(pair.server.read_all(0, pair.now).is_empty(), "later bytes wait for earlier ones");
    pair.stalled = None;
    pair.server.input(0, &under_way, pair.now);
    pair.settle();
    let expected = [content(3, 60_000), b"first on the new link".to_vec()].concat();
    assert!(pair.server.read_all(0, pair.now) == expected);
    assert_eq!(pair.client.sessions[session].stats().resent_bytes, 0);
    assert_eq!(pair.client.links[0].link.streams(), 0, "the old link is left");
    assert!(transfer(&mut pair, session, false, content(4, 300_000)) == content(4, 300_000));
}

#[test]
fn a_session_outlives_its_link() {
    let mut pair = Pair::new(2);
    let session = pair.client.open(0, pair.now);
    pair.settle();
    pair.client.sessions[session].write(&mut Bytes::from(content(5, 60_000))).unwrap();
    let lost = pair.client.output(0, 1 << 20, pair.now);
    assert!(lost.len() > 60_000);
    pair.client.lose(0, pair.now);
    pair.server.lose(0, pair.now);
    pair.advance(Duration::from_secs(60));
    assert!(pair.client.sessions[session].needs_carrier());
    pair.client.attach(session, 1);
    pair.settle();
    assert!(pair.server.read_all(0, pair.now) == content(5, 60_000));
}

#[test]
fn an_idle_session_promises_one_window_and_keeps_no_bytes() {
    let mut pair = Pair::new(1);
    let budget = pair.client.config.budget.clone();
    let session = pair.client.open(0, pair.now);
    pair.settle();
    let idle = budget.used_bytes();
    assert_eq!(transfer(&mut pair, session, true, content(6, 900_000)).len(), 900_000);
    pair.advance(Duration::from_secs(1));
    assert_eq!(budget.used_bytes(), idle, "the sender gave everything back");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rules 7.2 and 7.7: many tunnels share a link, whatever sizes reads and batches have.
    #[test]
    fn tunnels_do_not_disturb_each_other(
        lengths in vec((0_usize..150_000, 0_usize..150_000), 1..6),
        read_bytes in prop_oneof![1 => 1_usize..300, 3 => 1_000_usize..70_000],
        batch_bytes in 16_384_usize..200_000,
    ) {
        let mut pair = Pair::new(1);
        pair.read_bytes = read_bytes;
        pair.batch_bytes = batch_bytes;
        let count = lengths.len();
        for _ in 0..count {
            pair.client.open(0, pair.now);
        }
        pair.settle();
        let mut left: Vec<[Bytes; 2]> = lengths
            .iter()
            .enumerate()
            .map(|(n, (up, down))| [content(n, *up).into(), content(n + 100, *down).into()])
            .collect();
        let mut read = vec![[Vec::new(), Vec::new()]; count];
        let mut is_moving = true;
        while is_moving {
            is_moving = false;
            for number in 0..count {
                let [up, down] = &mut left[number];
                let now = pair.now;
                is_moving |= pair.client.sessions[number].write(up).unwrap() > 0;
                is_moving |= pair.server.sessions[number].write(down).unwrap() > 0;
                let before = read[number][0].len() + read[number][1].len();
                read[number][0].extend(pair.server.read_all(number, now));
                read[number][1].extend(pair.client.read_all(number, now));
                is_moving |= before < read[number][0].len() + read[number][1].len();
            }
            pair.settle();
        }
        for (number, [up, down]) in read.iter_mut().enumerate() {
            pair.client.sessions[number].finish();
            pair.server.sessions[number].finish();
            up.extend(pair.server.read_all(number, pair.now));
            down.extend(pair.client.read_all(number, pair.now));
        }
        pair.settle();
        for (number, (up, down)) in lengths.iter().enumerate() {
            prop_assert!(read[number][0] == content(number, *up), "tunnel {} up", number);
            prop_assert!(read[number][1] == content(number + 100, *down), "tunnel {} down", number);
            prop_assert!(pair.client.sessions[number].is_over());
        }
        prop_assert_eq!(pair.client.links[0].link.streams(), 0);
        prop_assert_eq!(pair.server.links[0].link.streams(), 0);
    }
}
