use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::id::{Domain, from_hex, to_hex};

fn bytes_of(frame: &Frame) -> BytesMut {
    let encoded = frame.encode();
    let mut out = BytesMut::from(encoded.header.as_slice());
    out.put_slice(&encoded.payload);
    out
}

fn stream(number: u32) -> StreamId {
    StreamId::new(number).unwrap()
}

fn payload(lengths: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Bytes> {
    // The content is of no importance to the codec; a repeated byte keeps large payloads quick to make.
    (lengths, any::<u8>()).prop_map(|(len, byte)| Bytes::from(vec![byte; len]))
}

fn code() -> impl Strategy<Value = Code> {
    any::<u16>().prop_map(Code::from_u16)
}

fn node() -> impl Strategy<Value = NodeId> {
    (any::<u32>(), any::<[u8; 32]>()).prop_map(|(domain, hash)| NodeId { domain: Domain(domain), hash })
}

fn link_frame() -> impl Strategy<Value = LinkFrame> {
    prop_oneof![
        (any::<u16>(), node(), node()).prop_map(|(version, sender, receiver)| LinkFrame::Hello(Hello {
            version,
            sender,
            receiver
        })),
        any::<[u8; 8]>().prop_map(LinkFrame::Probe),
        any::<[u8; 8]>().prop_map(LinkFrame::Probed),
        payload(1..=MAX_HEAD).prop_map(LinkFrame::Head),
        code().prop_map(LinkFrame::Close),
    ]
}

fn stream_frame() -> impl Strategy<Value = StreamFrame> {
    prop_oneof![
        (any::<u64>(), payload(1..=MAX_REQUEST))
            .prop_map(|(limit, request)| StreamFrame::Open { limit, request }),
        any::<u64>().prop_map(|limit| StreamFrame::Opened { limit }),
        (any::<u64>(), payload(1..=MAX_DATA))
            .prop_map(|(offset, payload)| StreamFrame::Data { offset, payload }),
        (any::<u64>(), any::<u64>()).prop_map(|(received, limit)| StreamFrame::Ack { received, limit }),
        any::<u64>().prop_map(|offset| StreamFrame::Fin { offset }),
        code().prop_map(StreamFrame::Reset),
        (any::<[u8; 16]>(), any::<u32>(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
            |(session, carrier, received, limit, resend)| StreamFrame::Resume(Resume {
                session: SessionId(session),
                carrier: CarrierNumber(carrier),
                received,
                limit,
                resend,
            })
        ),
        (any::<u64>(), any::<u64>(), any::<bool>())
            .prop_map(|(received, limit, resend)| StreamFrame::Resumed(Resumed { received, limit, resend })),
        payload(0..=MAX_DATAGRAM).prop_map(StreamFrame::Datagram),
        Just(StreamFrame::Leave),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        link_frame().prop_map(Frame::Link),
        (1..=u32::MAX, stream_frame()).prop_map(|(number, frame)| Frame::Stream(stream(number), frame)),
    ]
}

proptest! {
    /// Rule 7.2: header and payload, cut anywhere, give the frames that were sent.
    #[test]
    fn frames_survive_the_wire_however_it_cuts_them(
        frames in vec(frame(), 1..6),
        cuts in vec(1_usize..20_000, 1..12),
    ) {
        let wire: Vec<u8> = frames.iter().flat_map(bytes_of).collect();
        let (mut rest, mut input, mut decoded) = (wire.as_slice(), BytesMut::new(), Vec::new());
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            input.extend_from_slice(now);
            rest = later;
            while let Some(frame) = decode(&mut input).unwrap() {
                decoded.push(frame);
            }
        }
        prop_assert_eq!(decoded, frames);
        prop_assert!(input.is_empty());
    }

    /// Rule 7.3: whatever decodes has no second form.
    #[test]
    fn random_headers_are_refused_or_encode_to_themselves(
        kind in 0_u8..0x20,
        flags in prop_oneof![9 => Just(0_u8), 1 => any::<u8>()],
        length in prop_oneof![Just(0_u16), Just(2), Just(8), Just(9), Just(29), Just(74), any::<u16>()],
        number in prop_oneof![Just(0_u32), any::<u32>()],
        offset in prop_oneof![Just(0_u64), any::<u64>()],
        body in vec(any::<u8>(), 80),
    ) {
        let mut wire = BytesMut::new();
        wire.put_u8(kind);
        wire.put_u8(flags);
        wire.put_u16(length);
        wire.put_u32(number);
        wire.put_u64(offset);
        wire.extend(body.iter().cycle().take(usize::from(length)));
        let original = wire.clone();
        match decode(&mut wire) {
            Ok(Some(frame)) => prop_assert_eq!(bytes_of(&frame), original),
            Ok(None) => prop_assert!(false, "the frame was complete"),
            Err(_) => {}
        }
    }
}

fn expect_malformed(header: &str, reason: Malformed) {
    let header: [u8; 16] = from_hex(&header.replace(' ', "")).unwrap();
    assert_eq!(decode(&mut BytesMut::from(header.as_slice())), Err(reason), "{header:02x?}");
}

/// Rule 7.3: a header is judged before its payload has arrived.
#[test]
fn a_header_that_breaks_the_table_is_refused_at_once_with_its_reason() {
    expect_malformed("00 00 0000 00000000 0000000000000000", Malformed::Kind);
    expect_malformed("06 00 0000 00000000 0000000000000000", Malformed::Kind);
    expect_malformed("1a 00 0000 00000001 0000000000000000", Malformed::Kind);
    expect_malformed("12 01 0001 00000001 0000000000000000", Malformed::Flags);
    expect_malformed("12 00 0000 00000001 0000000000000000", Malformed::Length);
    expect_malformed("12 00 3ff1 00000001 0000000000000000", Malformed::Length);
    expect_malformed("10 00 0201 00000001 0000000000000000", Malformed::Length);
    expect_malformed("05 00 0385 00000000 0000000000000000", Malformed::Length);
    expect_malformed("13 00 0007 00000001 0000000000000000", Malformed::Length);
    expect_malformed("12 00 0001 00000000 0000000000000000", Malformed::Stream);
    expect_malformed("03 00 0008 00000001 0000000000000000", Malformed::Stream);
    expect_malformed("15 00 0002 00000001 0000000000000001", Malformed::Offset);
}

#[test]
fn the_longest_data_frame_fills_one_tls_record() {
    let frame = Frame::Stream(
        StreamId::FIRST,
        StreamFrame::Data { offset: 0, payload: Bytes::from(vec![0; MAX_DATA]) },
    );
    assert_eq!(frame.encode().size_bytes(), 16_384);
}

/// Rule 7.3: the resend byte of RESUME and RESUMED is 0 or 1.
#[test]
fn a_resend_byte_other_than_zero_and_one_is_refused() {
    let mut wire = bytes_of(&Frame::Stream(
        StreamId::FIRST,
        StreamFrame::Resumed(Resumed { received: 1, limit: 2, resend: true }),
    ));
    *wire.last_mut().unwrap() = 2;
    assert_eq!(decode(&mut wire), Err(Malformed::Payload));
}

#[test]
fn a_payload_shares_the_memory_of_what_was_received() {
    let sent = StreamFrame::Data { offset: 7, payload: Bytes::from(vec![9; 4_096]) };
    let mut wire = bytes_of(&Frame::Stream(stream(3), sent));
    let at = wire[HEADER_LEN..].as_ptr();
    let Some(Frame::Stream(_, StreamFrame::Data { payload, .. })) = decode(&mut wire).unwrap() else {
        panic!("not a DATA frame");
    };
    assert_eq!(payload.as_ptr(), at);
}

#[test]
fn streams_are_numbered_from_one_to_the_last() {
    assert_eq!(StreamId::new(0), None);
    assert_eq!(StreamId::FIRST.next(), StreamId::new(2));
    assert_eq!(stream(u32::MAX).next(), None);
}

/// Rule 7.3: vectors of version 1; they are never edited.
#[test]
fn golden_vectors_of_version_1() {
    let one = NodeId { domain: Domain(0x0102_0304), hash: [0xaa; 32] };
    let two = NodeId { domain: Domain(0x0102_0304), hash: [0xbb; 32] };
    let on = |frame| Frame::Stream(stream(5), frame);
    let resume = Resume {
        session: SessionId([0x11; 16]),
        carrier: CarrierNumber(2),
        received: 0x1000,
        limit: 0x2_0000,
        resend: true,
    };
    let hello =
        format!("0100004a000000000000000000000000000101020304{}01020304{}", "aa".repeat(32), "bb".repeat(32));
    let resume_hex = format!("1600001d000000050000000000001000{}00000002000000000002000001", "11".repeat(16));
    let vectors: [(Frame, &str); 15] = [
        (Frame::Link(LinkFrame::Hello(Hello { version: 1, sender: one, receiver: two })), &hello),
        (Frame::Link(LinkFrame::Close(Code::Idle)), "020000020000000000000000000000000022"),
        (
            Frame::Link(LinkFrame::Probe([1, 2, 3, 4, 5, 6, 7, 8])),
            "030000080000000000000000000000000102030405060708",
        ),
        (Frame::Link(LinkFrame::Probed([8; 8])), "040000080000000000000000000000000808080808080808"),
        (
            Frame::Link(LinkFrame::Head(Bytes::from_static(b"head"))),
            "0500000400000000000000000000000068656164",
        ),
        (
            on(StreamFrame::Open { limit: 65_536, request: Bytes::from_static(b"ask") }),
            "10000003000000050000000000010000 61736b",
        ),
        (on(StreamFrame::Opened { limit: 65_536 }), "11000000000000050000000000010000"),
        (
            on(StreamFrame::Data { offset: 256, payload: Bytes::from_static(b"data") }),
            "12000004000000050000000000000100 64617461",
        ),
        (
            on(StreamFrame::Ack { received: 3, limit: 65_539 }),
            "13000008000000050000000000000003 0000000000010003",
        ),
        (on(StreamFrame::Fin { offset: 260 }), "14000000000000050000000000000104"),
        (on(StreamFrame::Reset(Code::ApplicationReset)), "15000002000000050000000000000000 0030"),
        (on(StreamFrame::Resume(resume)), &resume_hex),
        (
            on(StreamFrame::Resumed(Resumed { received: 9, limit: 10, resend: false })),
            "17000009000000050000000000000009 000000000000000a00",
        ),
        (on(StreamFrame::Datagram(Bytes::from_static(b"dg"))), "18000002000000050000000000000000 6467"),
        (on(StreamFrame::Leave), "19000000000000050000000000000000"),
    ];
    for (frame, hex) in vectors {
        assert_eq!(to_hex(&bytes_of(&frame)), hex.replace(' ', ""), "{frame:?}");
    }
}

proptest! {
    #[test]
    fn an_outline_says_of_every_frame_what_decoding_it_says(frame in frame()) {
        let bytes = bytes_of(&frame);
        let outlined = outline(&bytes).unwrap().unwrap();
        let (stream, begins, is_last, is_datagram) = match &frame {
            Frame::Link(_) => (None, false, false, false),
            Frame::Stream(stream, inner) => {
                let begins = matches!(inner, StreamFrame::Open { .. } | StreamFrame::Resume(_));
                let is_last = matches!(inner, StreamFrame::Leave | StreamFrame::Reset(_));
                (Some(*stream), begins, is_last, matches!(inner, StreamFrame::Datagram(_)))
            }
        };
        let closes = matches!(frame, Frame::Link(LinkFrame::Close(_)));
        let size_bytes = bytes.len();
        prop_assert_eq!(outlined, Outline { stream, size_bytes, begins, is_last, closes, is_datagram });
        prop_assert_eq!(outline(&bytes[..HEADER_LEN]), Ok(Some(outlined)), "the header is enough");
        prop_assert_eq!(outline(&bytes[..HEADER_LEN - 1]), Ok(None));
    }
}
