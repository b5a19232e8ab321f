//! What a liar does to the frames that its own, honest machines made: so its lies come at the moments when they hurt.

use bytes::{Bytes, BytesMut};
use peerage_wire::frame::{CarrierNumber, Code, Frame, Resume, Resumed, StreamFrame, StreamId, decode};
use peerage_wire::id::SessionId;

use crate::chance::Chance;

/// How many of a thousand frames are lies.
const LIES: u32 = 60;

/// Alters frames on their way out of a liar.
#[derive(Debug)]
pub struct Tamper {
    chance: Chance,
    /// Sessions of others, as far as the liar has heard of them; it is told more than it could know.
    pub others: Vec<SessionId>,
    /// How many lies were told.
    pub lies: u64,
}

impl Tamper {
    /// Makes a liar's hand.
    pub fn new(seed: u64) -> Self {
        Self { chance: Chance::new(seed, "tamper"), others: Vec::new(), lies: 0 }
    }

    /// Returns what goes out in place of these bytes, which are whole frames.
    pub fn alter(&mut self, bytes: &Bytes) -> Bytes {
        let mut rest = BytesMut::from(&bytes[..]);
        let mut out = BytesMut::new();
        while let Ok(Some(frame)) = decode(&mut rest) {
            if !self.chance.happens(LIES) {
                put(&mut out, &frame);
                continue;
            }
            self.lies += 1;
            self.lie(&mut out, frame);
        }
        out.freeze()
    }

    fn lie(&mut self, out: &mut BytesMut, frame: Frame) {
        let stream = self.stream(&frame);
        match self.chance.below(10) {
            // It withholds the frame, says it twice, or on another stream.
            0 => {}
            1 => {
                put(out, &frame);
                put(out, &frame);
            }
            2 => {
                if let Frame::Stream(_, inner) = frame {
                    put(out, &Frame::Stream(self.any_stream(), inner));
                }
            }
            3 => {
                let noise = self.chance.bytes::<40>();
                out.extend_from_slice(&noise);
            }
            4 => {
                put(out, &Frame::Stream(self.any_stream(), self.theft()));
                put(out, &frame);
            }
            5 | 6 => {
                let made_up = self.made_up();
                put(out, &Frame::Stream(stream, made_up));
                put(out, &frame);
            }
            _ => match frame {
                Frame::Stream(stream, inner) => {
                    let altered = self.altered(inner);
                    put(out, &Frame::Stream(stream, altered));
                }
                Frame::Link(_) => put(out, &frame),
            },
        }
    }

    fn stream(&mut self, frame: &Frame) -> StreamId {
        match frame {
            Frame::Stream(stream, _) => *stream,
            Frame::Link(_) => self.any_stream(),
        }
    }

    fn any_stream(&mut self) -> StreamId {
        let number = u32::try_from(self.chance.between(1, 6)).unwrap_or(1);
        StreamId::new(number).unwrap_or(StreamId::FIRST)
    }

    /// An offset that is a little or entirely wrong.
    fn wrong(&mut self, right: u64) -> u64 {
        match self.chance.below(5) {
            0 => right.saturating_sub(self.chance.between(1, 2_000)),
            1 => right.saturating_add(self.chance.between(1, 2_000)),
            2 => right.saturating_add(self.chance.between(1 << 16, 1 << 24)),
            3 => 0,
            _ => u64::MAX,
        }
    }

    /// A frame that asks for somebody else's session.
    fn theft(&mut self) -> StreamFrame {
        let session = self.chance.pick(&self.others).copied().unwrap_or(SessionId([9; 16]));
        let carrier = CarrierNumber(u32::try_from(self.chance.between(1, 9)).unwrap_or(1));
        let received = self.chance.below(50_000);
        StreamFrame::Resume(Resume { session, carrier, received, limit: 1 << 20, resend: true })
    }

    fn made_up(&mut self) -> StreamFrame {
        let offset = self.chance.below(200_000);
        let length = self.chance.index(16_000).max(1);
        match self.chance.below(7) {
            // More than the credit, or again what has long arrived.
            0 | 1 => StreamFrame::Data { offset, payload: Bytes::from(vec![7; length]) },
            2 => StreamFrame::Ack { received: offset, limit: offset },
            3 => StreamFrame::Fin { offset },
            4 => StreamFrame::Resumed(Resumed { received: offset, limit: 1 << 20, resend: true }),
            5 => StreamFrame::Leave,
            _ => StreamFrame::Reset(Code::ApplicationReset),
        }
    }

    fn altered(&mut self, frame: StreamFrame) -> StreamFrame {
        match frame {
            StreamFrame::Data { offset, payload } => {
                StreamFrame::Data { offset: self.wrong(offset), payload }
            }
            StreamFrame::Ack { received, limit } => {
                if self.chance.happens(500) {
                    StreamFrame::Ack { received: self.wrong(received), limit }
                } else {
                    StreamFrame::Ack { received, limit: self.wrong(limit) }
                }
            }
            StreamFrame::Fin { offset } => StreamFrame::Fin { offset: self.wrong(offset) },
            StreamFrame::Open { limit, request } => StreamFrame::Open { limit: self.wrong(limit), request },
            StreamFrame::Opened { limit } => StreamFrame::Opened { limit: self.wrong(limit) },
            StreamFrame::Resume(resume) => {
                let carrier = CarrierNumber(u32::try_from(self.chance.below(12)).unwrap_or(0));
                StreamFrame::Resume(Resume { carrier, received: self.wrong(resume.received), ..resume })
            }
            StreamFrame::Resumed(resumed) => {
                StreamFrame::Resumed(Resumed { received: self.wrong(resumed.received), ..resumed })
            }
            StreamFrame::Datagram(_) | StreamFrame::Leave | StreamFrame::Reset(_) => self.made_up(),
        }
    }
}

fn put(out: &mut BytesMut, frame: &Frame) {
    let encoded = frame.encode();
    out.extend_from_slice(&encoded.header);
    out.extend_from_slice(&encoded.payload);
}
