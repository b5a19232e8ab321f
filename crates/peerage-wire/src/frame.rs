//! Frames: what crosses a link, inside its TLS, after the handshake.
//!
//! A link is one authenticated connection between two nodes. Many sessions share it, each on its own
//! numbered stream; frames about the link itself belong to no stream. Every frame is a header of 16 bytes
//! and a payload (Rule 7.2), all integers big end first:
//!
//! ```text
//!  0      1       2        4          8                16
//!  +------+-------+--------+----------+-----------------+---------
//!  | kind | flags | length |  stream  |     offset      | payload …
//!  +------+-------+--------+----------+-----------------+---------
//! ```
//!
//! [`decode()`] takes whole frames off the front of what was received and shares the memory of their payloads; [`outline()`] says
//! only whose the first frame is and how long, for carriers that keep the sessions apart;
//! [`Frame::encode`] gives header and payload apart, so that a gathering write needs no copy. Decoding is
//! strict: each frame has exactly one form, and every other sequence of bytes is one of [`Malformed`].
//! Whether a frame is allowed at this moment is the business of the link and the session, not of this module.

mod code;
mod decode;
#[cfg(test)]
mod tests;

use std::fmt;
use std::num::NonZeroU32;

use bytes::{BufMut as _, Bytes, BytesMut};

pub use self::code::Code;
pub use self::decode::{Malformed, Outline, decode, outline};
use crate::id::{NodeId, SessionId};
use crate::limits::MAX_RECORD;

/// The version of frames, sessions and links that HELLO states; it rises when an old node would misread a
/// frame.
pub const VERSION: u16 = 1;

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 16;

/// The most payload of a DATA frame, in bytes: with its header it fills one TLS record of 16,384 bytes
/// exactly. More would split a frame over two records, so that the receiver waits for the second; less costs
/// headers.
pub const MAX_DATA: usize = 16_384 - HEADER_LEN;

/// The most payload of a DATAGRAM frame, in bytes: an Ethernet frame's worth. Larger datagrams would have
/// been cut into fragments on the device's network, which the services in question (DNS, SNMP, SIP) avoid.
pub const MAX_DATAGRAM: usize = 1_500;

/// The most payload of an OPEN frame, in bytes: session id, device, a service's name and room for what comes.
pub const MAX_REQUEST: usize = 512;

/// The most payload of a HEAD frame, in bytes: the limit of every record.
pub const MAX_HEAD: usize = MAX_RECORD;

/// The number of a stream: one session's place on one link. The link's client chooses it, ascending from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub NonZeroU32);

impl StreamId {
    /// The first stream of every link.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// Returns the stream with this number, none for 0, which stands for the link itself.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// Returns the stream that follows, none after the last of 2^32 - 1.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({self})")
    }
}

/// Which of a session's carriers: 0 for the one that OPEN made, then one more with each RESUME.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CarrierNumber(pub u32);

impl fmt::Display for CarrierNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// About the link itself: the header's stream is 0.
    Link(LinkFrame),
    /// About the session on this stream.
    Stream(StreamId, StreamFrame),
}

/// A frame about the link itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkFrame {
    /// The first frame each way: who speaks to whom (Rule 7.5).
    Hello(Hello),
    /// Asks for PROBED with the same bytes (Rule 7.8).
    Probe([u8; 8]),
    /// Answers PROBE.
    Probed([u8; 8]),
    /// Carries a signed Head record, at most [`MAX_HEAD`] bytes (Rule 7.9).
    Head(Bytes),
    /// The last frame on a link, and why it ends (Rule 7.10).
    Close(Code),
}

/// The content of HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The sender's [`VERSION`].
    pub version: u16,
    /// The node that sends this.
    pub sender: NodeId,
    /// The node that it believes to speak to.
    pub receiver: NodeId,
}

/// A frame about one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamFrame {
    /// Asks for a new session (Rule 7.6).
    Open {
        /// Up to which offset the opener receives, in bytes.
        limit: u64,
        /// What is asked for, 1 to [`MAX_REQUEST`] bytes that mean nothing to link and session.
        request: Bytes,
    },
    /// Grants a new session.
    Opened {
        /// Up to which offset the acceptor receives, in bytes.
        limit: u64,
    },
    /// Bytes of the application.
    Data {
        /// The place of the first byte in its direction's stream of bytes.
        offset: u64,
        /// 1 to [`MAX_DATA`] bytes.
        payload: Bytes,
    },
    /// What the sender has in memory, and up to where it has room.
    Ack {
        /// Everything below this offset has been received; one more than the final offset includes FIN.
        received: u64,
        /// Up to which offset the sender receives, in bytes.
        limit: u64,
    },
    /// The end of one direction; occupies one offset.
    Fin {
        /// The number of bytes that the direction carried.
        offset: u64,
    },
    /// The end of the session in both directions, at once; the last frame on its stream (Rule 7.22).
    Reset(Code),
    /// Attaches a known session to this stream (Rule 7.19).
    Resume(Resume),
    /// Grants that.
    Resumed(Resumed),
    /// A datagram of the application: may be lost, never sent again.
    Datagram(Bytes),
    /// The last frame on a stream whose session lives on elsewhere or is complete (Rule 7.20).
    Leave,
}

/// The content of RESUME.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The session that goes on.
    pub session: SessionId,
    /// The number of the new carrier, higher than each before.
    pub carrier: CarrierNumber,
    /// What the opener has received, and with it the place to send again from.
    pub received: u64,
    /// Up to which offset the opener receives, in bytes.
    pub limit: u64,
    /// Whether the opener expects nothing more on lower carriers, so that all from `received` is to be sent
    /// again.
    pub resend: bool,
}

/// The content of RESUMED: as [`Resume`], from the acceptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// What the acceptor has received.
    pub received: u64,
    /// Up to which offset the acceptor receives, in bytes.
    pub limit: u64,
    /// Whether the acceptor expects nothing more on lower carriers.
    pub resend: bool,
}

/// A frame as it crosses the link: write the header, then the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The first [`HEADER_LEN`] bytes.
    pub header: [u8; HEADER_LEN],
    /// What follows; shares its memory with the frame that it was made from.
    pub payload: Bytes,
}

impl Encoded {
    /// Returns how many bytes the frame occupies on the link.
    pub fn size_bytes(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }
}

/// The number of each kind of frame; what makes a header of that kind valid is its [`Shape`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Hello = 0x01,
    Close = 0x02,
    Probe = 0x03,
    Probed = 0x04,
    Head = 0x05,
    Open = 0x10,
    Opened = 0x11,
    Data = 0x12,
    Ack = 0x13,
    Fin = 0x14,
    Reset = 0x15,
    Resume = 0x16,
    Resumed = 0x17,
    Datagram = 0x18,
    Leave = 0x19,
}

/// What a valid header of one kind looks like (the table of Rule 7.3).
struct Shape {
    min_len: usize,
    max_len: usize,
    on_stream: bool,
    has_offset: bool,
}

impl Kind {
    const ALL: [Self; 15] = [
        Self::Hello,
        Self::Close,
        Self::Probe,
        Self::Probed,
        Self::Head,
        Self::Open,
        Self::Opened,
        Self::Data,
        Self::Ack,
        Self::Fin,
        Self::Reset,
        Self::Resume,
        Self::Resumed,
        Self::Datagram,
        Self::Leave,
    ];

    fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    const fn shape(self) -> Shape {
        let (min_len, max_len, on_stream, has_offset) = match self {
            Self::Hello => (74, 74, false, false),
            Self::Close => (2, 2, false, false),
            Self::Probe | Self::Probed => (8, 8, false, false),
            Self::Head => (1, MAX_HEAD, false, false),
            Self::Open => (1, MAX_REQUEST, true, true),
            Self::Opened | Self::Fin => (0, 0, true, true),
            Self::Data => (1, MAX_DATA, true, true),
            Self::Ack => (8, 8, true, true),
            Self::Reset => (2, 2, true, false),
            Self::Resume => (29, 29, true, true),
            Self::Resumed => (9, 9, true, true),
            Self::Datagram => (0, MAX_DATAGRAM, true, false),
            Self::Leave => (0, 0, true, false),
        };
        Shape { min_len, max_len, on_stream, has_offset }
    }
}

impl Frame {
    /// Returns the bytes of the frame, sharing the payload's memory.
    ///
    /// # Panics
    /// If a payload is outside the limits of its kind; whoever makes frames keeps them.
    pub fn encode(&self) -> Encoded {
        match self {
            Self::Link(frame) => frame.encode(),
            Self::Stream(stream, frame) => frame.encode(*stream),
        }
    }
}

impl LinkFrame {
    fn encode(&self) -> Encoded {
        match self {
            Self::Hello(hello) => {
                let mut payload = BytesMut::with_capacity(2 + 2 * NodeId::SIZE);
                payload.put_u16(hello.version);
                payload.put_slice(&hello.sender.to_bytes());
                payload.put_slice(&hello.receiver.to_bytes());
                encode(Kind::Hello, 0, 0, payload.freeze())
            }
            Self::Probe(echo) => encode(Kind::Probe, 0, 0, Bytes::copy_from_slice(echo)),
            Self::Probed(echo) => encode(Kind::Probed, 0, 0, Bytes::copy_from_slice(echo)),
            Self::Head(record) => encode(Kind::Head, 0, 0, record.clone()),
            Self::Close(code) => {
                encode(Kind::Close, 0, 0, Bytes::copy_from_slice(&code.to_u16().to_be_bytes()))
            }
        }
    }
}

impl StreamFrame {
    fn encode(&self, stream: StreamId) -> Encoded {
        let stream = stream.0.get();
        match self {
            Self::Open { limit, request } => encode(Kind::Open, stream, *limit, request.clone()),
            Self::Opened { limit } => encode(Kind::Opened, stream, *limit, Bytes::new()),
            Self::Data { offset, payload } => encode(Kind::Data, stream, *offset, payload.clone()),
            Self::Ack { received, limit } => {
                encode(Kind::Ack, stream, *received, Bytes::copy_from_slice(&limit.to_be_bytes()))
            }
            Self::Fin { offset } => encode(Kind::Fin, stream, *offset, Bytes::new()),
            Self::Reset(code) => {
                encode(Kind::Reset, stream, 0, Bytes::copy_from_slice(&code.to_u16().to_be_bytes()))
            }
            Self::Resume(resume) => {
                let mut payload = BytesMut::with_capacity(29);
                payload.put_slice(resume.session.as_bytes());
                payload.put_u32(resume.carrier.0);
                payload.put_u64(resume.limit);
                payload.put_u8(resume.resend.into());
                encode(Kind::Resume, stream, resume.received, payload.freeze())
            }
            Self::Resumed(resumed) => {
                let mut payload = BytesMut::with_capacity(9);
                payload.put_u64(resumed.limit);
                payload.put_u8(resumed.resend.into());
                encode(Kind::Resumed, stream, resumed.received, payload.freeze())
            }
            Self::Datagram(payload) => encode(Kind::Datagram, stream, 0, payload.clone()),
            Self::Leave => encode(Kind::Leave, stream, 0, Bytes::new()),
        }
    }
}

/// Returns whether bytes are whole PROBE frames and nothing else; so are none at all.
pub fn are_probes(bytes: &[u8]) -> bool {
    const PAYLOAD: u8 = 8;
    const SIZE: usize = HEADER_LEN + PAYLOAD as usize;
    let begins = [Kind::Probe as u8, 0, 0, PAYLOAD];
    bytes.chunks(SIZE).all(|frame| frame.len() == SIZE && frame.starts_with(&begins))
}

fn encode(kind: Kind, stream: u32, offset: u64, payload: Bytes) -> Encoded {
    let shape = kind.shape();
    assert!(
        (shape.min_len..=shape.max_len).contains(&payload.len()),
        "a {kind:?} frame was made with {} bytes of payload",
        payload.len()
    );
    // Every shape's longest payload is below 2^16.
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let mut header = [0; HEADER_LEN];
    let mut out = header.as_mut_slice();
    out.put_u8(kind as u8);
    out.put_u8(0);
    out.put_u16(length);
    out.put_u32(stream);
    out.put_u64(offset);
    Encoded { header, payload }
}
