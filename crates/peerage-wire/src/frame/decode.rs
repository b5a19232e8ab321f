//! Received bytes to frames.

use bytes::{Buf as _, Bytes, BytesMut};

use super::{
    CarrierNumber, Code, Frame, HEADER_LEN, Hello, Kind, LinkFrame, Resume, Resumed, StreamFrame, StreamId,
};
use crate::id::{NodeId, SessionId};

/// Why received bytes are not a frame. There is no way to find the next frame after one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Malformed {
    /// The kind is not one of this version.
    #[error("unknown kind of frame")]
    Kind,
    /// A flag is set; this version has none.
    #[error("a flag is set")]
    Flags,
    /// The length is not one that the kind can have.
    #[error("wrong length for its kind")]
    Length,
    /// A frame about the link names a stream, or one about a session does not.
    #[error("wrong stream for its kind")]
    Stream,
    /// The offset is not 0 in a frame that has none.
    #[error("an offset in a frame that has none")]
    Offset,
    /// The payload contains a value outside its range.
    #[error("a value in the payload is out of range")]
    Payload,
}

/// Takes one whole frame off the front of `input`; none while more bytes are needed.
///
/// The payload shares the memory of `input`. A header is judged as soon as it is complete, so a length that
/// lies makes nobody wait, and `input` needs to hold at most 16,384 bytes to make progress.
///
/// # Errors
/// If the bytes are not a frame (Rule 7.3); `input` is then of no further use.
pub fn decode(input: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
    let Some(header) = input.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let header = Header::parse(header)?;
    if input.len() < HEADER_LEN + header.length {
        return Ok(None);
    }
    input.advance(HEADER_LEN);
    let payload = input.split_to(header.length).freeze();
    header.with_payload(payload).map(Some)
}

/// What a valid header says to a carrier that keeps the frames of each session apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    /// The session's stream; none for a frame of the link.
    pub stream: Option<StreamId>,
    /// The length of the whole frame, in bytes.
    pub size_bytes: usize,
    /// Whether it is OPEN or RESUME, which take a stream into use.
    pub begins: bool,
    /// Whether it is LEAVE or RESET, after which its sender sends nothing more on the stream.
    pub is_last: bool,
    /// Whether it is CLOSE, the last frame on the link.
    pub closes: bool,
    /// Whether it is DATAGRAM, which keeps no order with the others.
    pub is_datagram: bool,
}

/// Reads the header of the first frame; none while more bytes are needed. The payload is not looked at and may be missing.
///
/// # Errors
/// If the bytes are not the beginning of a frame (Rule 7.3).
pub fn outline(bytes: &[u8]) -> Result<Option<Outline>, Malformed> {
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let Header { kind, length, stream, .. } = Header::parse(header)?;
    Ok(Some(Outline {
        stream,
        size_bytes: HEADER_LEN + length,
        begins: matches!(kind, Kind::Open | Kind::Resume),
        is_last: matches!(kind, Kind::Leave | Kind::Reset),
        closes: kind == Kind::Close,
        is_datagram: kind == Kind::Datagram,
    }))
}

/// A header that is valid for its kind.
struct Header {
    kind: Kind,
    length: usize,
    stream: Option<StreamId>,
    offset: u64,
}

impl Header {
    fn parse(header: &[u8; HEADER_LEN]) -> Result<Self, Malformed> {
        let mut rest = header.as_slice();
        let kind = Kind::from_u8(rest.get_u8()).ok_or(Malformed::Kind)?;
        let flags = rest.get_u8();
        let length = usize::from(rest.get_u16());
        let stream = StreamId::new(rest.get_u32());
        let offset = rest.get_u64();

        let shape = kind.shape();
        if flags != 0 {
            return Err(Malformed::Flags);
        }
        if !(shape.min_len..=shape.max_len).contains(&length) {
            return Err(Malformed::Length);
        }
        if stream.is_some() != shape.on_stream {
            return Err(Malformed::Stream);
        }
        if offset != 0 && !shape.has_offset {
            return Err(Malformed::Offset);
        }
        Ok(Self { kind, length, stream, offset })
    }

    fn with_payload(self, payload: Bytes) -> Result<Frame, Malformed> {
        match self.stream {
            None => link_frame(self.kind, payload).map(Frame::Link),
            Some(stream) => {
                stream_frame(self.kind, self.offset, payload).map(|frame| Frame::Stream(stream, frame))
            }
        }
    }
}

fn link_frame(kind: Kind, payload: Bytes) -> Result<LinkFrame, Malformed> {
    let mut fields = Fields(&payload);
    match kind {
        Kind::Hello => Ok(LinkFrame::Hello(Hello {
            version: u16::from_be_bytes(fields.take()?),
            sender: NodeId::from_bytes(&fields.take()?),
            receiver: NodeId::from_bytes(&fields.take()?),
        })),
        Kind::Close => Ok(LinkFrame::Close(Code::from_u16(u16::from_be_bytes(fields.take()?)))),
        Kind::Probe => Ok(LinkFrame::Probe(fields.take()?)),
        Kind::Probed => Ok(LinkFrame::Probed(fields.take()?)),
        Kind::Head => Ok(LinkFrame::Head(payload)),
        Kind::Open
        | Kind::Opened
        | Kind::Data
        | Kind::Ack
        | Kind::Fin
        | Kind::Reset
        | Kind::Resume
        | Kind::Resumed
        | Kind::Datagram
        | Kind::Leave => Err(Malformed::Stream),
    }
}

fn stream_frame(kind: Kind, offset: u64, payload: Bytes) -> Result<StreamFrame, Malformed> {
    let mut fields = Fields(&payload);
    match kind {
        Kind::Open => Ok(StreamFrame::Open { limit: offset, request: payload }),
        Kind::Opened => Ok(StreamFrame::Opened { limit: offset }),
        Kind::Data => Ok(StreamFrame::Data { offset, payload }),
        Kind::Ack => Ok(StreamFrame::Ack { received: offset, limit: u64::from_be_bytes(fields.take()?) }),
        Kind::Fin => Ok(StreamFrame::Fin { offset }),
        Kind::Reset => Ok(StreamFrame::Reset(Code::from_u16(u16::from_be_bytes(fields.take()?)))),
        Kind::Resume => Ok(StreamFrame::Resume(Resume {
            session: SessionId(fields.take()?),
            carrier: CarrierNumber(u32::from_be_bytes(fields.take()?)),
            received: offset,
            limit: u64::from_be_bytes(fields.take()?),
            resend: fields.take_bool()?,
        })),
        Kind::Resumed => Ok(StreamFrame::Resumed(Resumed {
            received: offset,
            limit: u64::from_be_bytes(fields.take()?),
            resend: fields.take_bool()?,
        })),
        Kind::Datagram => Ok(StreamFrame::Datagram(payload)),
        Kind::Leave => Ok(StreamFrame::Leave),
        Kind::Hello | Kind::Close | Kind::Probe | Kind::Probed | Kind::Head => Err(Malformed::Stream),
    }
}

/// Reads fields of a fixed size, one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Length)?;
        self.0 = rest;
        Ok(*field)
    }

    fn take_bool(&mut self) -> Result<bool, Malformed> {
        match self.take()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(Malformed::Payload),
        }
    }
}
