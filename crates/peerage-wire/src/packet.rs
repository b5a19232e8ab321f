//! The forms of a datagram: long, short, reply and hint (Rules 3.1 to 3.9).
//!
//! Parsing here looks at sizes only; nothing is believed and nothing is computed.

use crate::crypto::{ENC_SIZE, TAG_SIZE};
use crate::id::{ContextId, KeyHint, NodeId, Nonce};
use crate::intro::{Introduction, KeyStatement};
use crate::limits::MAX_DATAGRAM;
use crate::time::UnixTime;

/// The first byte of a datagram (Rule 3.1). Bit 0 is clear for read requests alone, so that a socket filter
/// can steer them to the threads that answer from the table. Bits 6 and 7 are clear: QUIC sets one of them.
mod kind {
    pub(super) const SHORT_READ: u8 = 0x04;
    pub(super) const SHORT_OTHER: u8 = 0x05;
    pub(super) const LONG_READ: u8 = 0x06;
    pub(super) const LONG_OTHER: u8 = 0x07;
    pub(super) const REPLY: u8 = 0x09;
    pub(super) const HINT: u8 = 0x0b;
}

const FLAG_COOKIE: u8 = 1;
const FLAG_INTRODUCTION: u8 = 2;

/// What the first bytes of both long forms have in common, and which of their bits that is: what opens a context, and whatever strangers
/// send, can be told from all else without looking further.
pub const LONG_FORMS: u8 = kind::LONG_READ;
/// The bits of [`LONG_FORMS`].
pub const LONG_FORMS_MASK: u8 = !1;

/// Bytes of the long form's header without cookie and introduction.
pub const LONG_HEADER: usize = 138;
/// Bytes that the short form adds to its plaintext: type, context, nonce, tag.
pub const SHORT_OVERHEAD: usize = 1 + ContextId::SIZE + Nonce::SIZE + TAG_SIZE;
/// Bytes that a reply adds to its plaintext: type, the request's nonce, its own nonce, tag.
pub const REPLY_OVERHEAD: usize = 1 + Nonce::SIZE + Nonce::SIZE + TAG_SIZE;
/// Bytes of a hint before its body.
pub const HINT_HEADER: usize = 2 + TAG_SIZE;
/// Bytes of a cookie.
pub const COOKIE_SIZE: usize = 16;
/// Shortest long form, in bytes: the longest hint, so that one can always be sent without being longer than its cause.
pub const MIN_LONG: usize = HINT_HEADER + KeyStatement::SIZE;

/// Whether a request only reads the table (Rule 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Answered from the table by any thread; changes nothing.
    Read,
    /// Handled by the node's own thread.
    Other,
}

/// Why bytes are not a datagram of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPacket {
    /// No bytes, or fewer than the form needs.
    TooShort,
    /// More than [`MAX_DATAGRAM`].
    TooLong,
    /// A first byte, hint reason or flag that this version does not know.
    UnknownForm,
    /// The introduction inside does not have its form.
    Introduction,
}

/// The header of a long-form request, which opens a context (Rule 3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LongHeader {
    /// Whether it reads.
    pub class: Class,
    /// Which of the receiver's sealing keys was used.
    pub receiver_key: KeyHint,
    /// Which of the sender's sealing keys was used.
    pub sender_key: KeyHint,
    /// To whom it is addressed.
    pub receiver: NodeId,
    /// Who claims to have sent it.
    pub sender: NodeId,
    /// When the context was opened, in seconds since the epoch.
    pub born: u32,
    /// Time, counter and chance; unique in the context.
    pub nonce: Nonce,
    /// The encapsulated key.
    pub enc: [u8; ENC_SIZE],
    /// The receiver's cookie, if it asked for one.
    pub cookie: Option<[u8; COOKIE_SIZE]>,
    /// The sender's introduction, if the receiver may not know it.
    pub introduction: Option<Introduction>,
}

impl LongHeader {
    /// Returns the bytes on the wire, which are also the additional data of the seal.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAX_DATAGRAM);
        out.push(match self.class {
            Class::Read => kind::LONG_READ,
            Class::Other => kind::LONG_OTHER,
        });
        let cookie = if self.cookie.is_some() { FLAG_COOKIE } else { 0 };
        let introduction = if self.introduction.is_some() { FLAG_INTRODUCTION } else { 0 };
        out.push(cookie | introduction);
        out.extend_from_slice(&self.receiver_key.0);
        out.extend_from_slice(&self.sender_key.0);
        out.extend_from_slice(&self.receiver.to_bytes());
        out.extend_from_slice(&self.sender.to_bytes());
        out.extend_from_slice(&self.born.to_be_bytes());
        out.extend_from_slice(&self.nonce.0);
        out.extend_from_slice(&self.enc);
        out.extend_from_slice(self.cookie.as_ref().map_or(&[], |cookie| &cookie[..]));
        if let Some(introduction) = &self.introduction {
            out.extend_from_slice(&introduction.to_bytes());
        }
        out
    }

    fn split_from(class: Class, bytes: &[u8]) -> Result<(Self, &[u8]), BadPacket> {
        let short = BadPacket::TooShort;
        let (flags, rest) = bytes.get(1..).and_then(<[u8]>::split_first).ok_or(short)?;
        if flags & !(FLAG_COOKIE | FLAG_INTRODUCTION) != 0 {
            return Err(BadPacket::UnknownForm);
        }
        let (receiver_key, rest) = rest.split_first_chunk().ok_or(short)?;
        let (sender_key, rest) = rest.split_first_chunk().ok_or(short)?;
        let (receiver, rest) = rest.split_first_chunk().ok_or(short)?;
        let (sender, rest) = rest.split_first_chunk().ok_or(short)?;
        let (born, rest) = rest.split_first_chunk().ok_or(short)?;
        let (nonce, rest) = rest.split_first_chunk().ok_or(short)?;
        let (enc, rest) = rest.split_first_chunk().ok_or(short)?;
        let (cookie, rest) = match flags & FLAG_COOKIE {
            0 => (None, rest),
            _ => rest.split_first_chunk().map(|(cookie, rest)| (Some(*cookie), rest)).ok_or(short)?,
        };
        let (introduction, rest) = match flags & FLAG_INTRODUCTION {
            0 => (None, rest),
            _ => Introduction::split_from(rest)
                .map(|(introduction, rest)| (Some(introduction), rest))
                .ok_or(BadPacket::Introduction)?,
        };
        let header = Self {
            class,
            receiver_key: KeyHint(*receiver_key),
            sender_key: KeyHint(*sender_key),
            receiver: NodeId::from_bytes(receiver),
            sender: NodeId::from_bytes(sender),
            born: u32::from_be_bytes(*born),
            nonce: Nonce(*nonce),
            enc: *enc,
            cookie,
            introduction,
        };
        Ok((header, rest))
    }
}

/// The header of a short-form request, which continues a context (Rule 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortHeader {
    /// Whether it reads.
    pub class: Class,
    /// The context that it continues.
    pub context: ContextId,
    /// Time, counter and chance; unique in the context.
    pub nonce: Nonce,
}

impl ShortHeader {
    /// Returns the bytes on the wire, which are also the additional data of the seal.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SHORT_OVERHEAD - TAG_SIZE);
        out.push(match self.class {
            Class::Read => kind::SHORT_READ,
            Class::Other => kind::SHORT_OTHER,
        });
        out.extend_from_slice(&self.context.0);
        out.extend_from_slice(&self.nonce.0);
        out
    }
}

/// The header of a reply (Rule 3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHeader {
    /// The nonce of the request that it answers.
    pub request: Nonce,
    /// Its own nonce: all chance, because a replayed request must never make the same one twice.
    pub nonce: Nonce,
}

impl ReplyHeader {
    /// Returns the bytes on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(REPLY_OVERHEAD - TAG_SIZE);
        out.push(kind::REPLY);
        out.extend_from_slice(&self.request.0);
        out.extend_from_slice(&self.nonce.0);
        out
    }
}

/// Why a receiver asks for a request once more (Rule 3.9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HintReason {
    /// It does not know the sender and wants the introduction.
    NeedIntroduction,
    /// It has forgotten the context and wants the long form.
    NeedLong,
    /// It has another sealing key now; the body is its key statement.
    StaleKey(Vec<u8>),
    /// It is under load and wants to see this cookie.
    Cookie([u8; COOKIE_SIZE]),
}

/// The only unsealed packet: it can make its reader send one request once more, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The last 16 bytes of the datagram that it answers.
    pub echo: [u8; TAG_SIZE],
    /// What was missing.
    pub reason: HintReason,
}

impl Hint {
    /// Returns the bytes on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (reason, body): (u8, &[u8]) = match &self.reason {
            HintReason::NeedIntroduction => (1, &[]),
            HintReason::NeedLong => (2, &[]),
            HintReason::StaleKey(statement) => (3, statement),
            HintReason::Cookie(cookie) => (4, cookie),
        };
        let mut out = vec![kind::HINT, reason];
        out.extend_from_slice(&self.echo);
        out.extend_from_slice(body);
        out
    }

    fn parse(bytes: &[u8]) -> Result<Self, BadPacket> {
        let (head, body) = bytes.split_first_chunk::<HINT_HEADER>().ok_or(BadPacket::TooShort)?;
        let [_, reason, echo @ ..] = *head;
        let reason = match (reason, body) {
            (1, []) => HintReason::NeedIntroduction,
            (2, []) => HintReason::NeedLong,
            (3, statement) => HintReason::StaleKey(statement.to_vec()),
            (4, cookie) => HintReason::Cookie(cookie.try_into().map_err(|_| BadPacket::TooShort)?),
            _ => return Err(BadPacket::UnknownForm),
        };
        Ok(Self { echo, reason })
    }
}

/// A datagram by its form; `sealed` is ciphertext and tag, `header` what the tag covers besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Opens a context.
    Long {
        /// The fields.
        header: Box<LongHeader>,
        /// The bytes of the header.
        aad: &'a [u8],
        /// Ciphertext and tag.
        sealed: &'a [u8],
    },
    /// Continues a context.
    Short {
        /// The fields.
        header: ShortHeader,
        /// The bytes of the header.
        aad: &'a [u8],
        /// Ciphertext and tag.
        sealed: &'a [u8],
    },
    /// Answers a request.
    Reply {
        /// The fields.
        header: ReplyHeader,
        /// The bytes of the header.
        aad: &'a [u8],
        /// Ciphertext and tag.
        sealed: &'a [u8],
    },
    /// Asks for a request once more.
    Hint(Hint),
}

impl<'a> Packet<'a> {
    /// Finds the form of a datagram.
    ///
    /// # Errors
    /// If it has none of this protocol.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadPacket> {
        if bytes.len() > MAX_DATAGRAM {
            return Err(BadPacket::TooLong);
        }
        let first = *bytes.first().ok_or(BadPacket::TooShort)?;
        match first {
            kind::LONG_READ => Self::long(Class::Read, bytes),
            kind::LONG_OTHER => Self::long(Class::Other, bytes),
            kind::SHORT_READ => Self::short(Class::Read, bytes),
            kind::SHORT_OTHER => Self::short(Class::Other, bytes),
            kind::REPLY => Self::reply(bytes),
            kind::HINT => Hint::parse(bytes).map(Self::Hint),
            _ => Err(BadPacket::UnknownForm),
        }
    }

    fn long(class: Class, bytes: &'a [u8]) -> Result<Self, BadPacket> {
        let (header, sealed) = LongHeader::split_from(class, bytes)?;
        let (aad, sealed) = split_sealed(bytes, bytes.len().saturating_sub(sealed.len()))?;
        Ok(Self::Long { header: Box::new(header), aad, sealed })
    }

    fn short(class: Class, bytes: &'a [u8]) -> Result<Self, BadPacket> {
        let (aad, sealed) = split_sealed(bytes, SHORT_OVERHEAD - TAG_SIZE)?;
        let [_, rest @ ..] = aad else { return Err(BadPacket::TooShort) };
        let (context, nonce) = rest.split_first_chunk().ok_or(BadPacket::TooShort)?;
        let nonce = nonce.try_into().map_err(|_| BadPacket::TooShort)?;
        let header = ShortHeader { class, context: ContextId(*context), nonce };
        Ok(Self::Short { header, aad, sealed })
    }

    fn reply(bytes: &'a [u8]) -> Result<Self, BadPacket> {
        let (aad, sealed) = split_sealed(bytes, REPLY_OVERHEAD - TAG_SIZE)?;
        let [_, rest @ ..] = aad else { return Err(BadPacket::TooShort) };
        let (request, nonce) = rest.split_first_chunk().ok_or(BadPacket::TooShort)?;
        let nonce = nonce.try_into().map_err(|_| BadPacket::TooShort)?;
        Ok(Self::Reply { header: ReplyHeader { request: Nonce(*request), nonce }, aad, sealed })
    }
}

fn split_sealed(bytes: &[u8], header: usize) -> Result<(&[u8], &[u8]), BadPacket> {
    let (aad, sealed) = bytes.split_at_checked(header).ok_or(BadPacket::TooShort)?;
    if sealed.len() < TAG_SIZE { Err(BadPacket::TooShort) } else { Ok((aad, sealed)) }
}

impl Nonce {
    /// Composes the nonce of a request: 48 bits of time, 24 bits of counter, 24 bits of chance (Rule 3.5).
    pub fn for_request(time: UnixTime, counter: u32, chance: u32) -> Self {
        let mut out = [0; Self::SIZE];
        let parts = time.as_millis().to_be_bytes().into_iter().skip(2);
        let parts = parts.chain(counter.to_be_bytes().into_iter().skip(1));
        let parts = parts.chain(chance.to_be_bytes().into_iter().skip(1));
        for (to, from) in out.iter_mut().zip(parts) {
            *to = from;
        }
        Self(out)
    }

    /// Returns the counter in the nonce of a request.
    pub fn counter(&self) -> u32 {
        self.0.iter().skip(6).take(3).fold(0, |n, byte| (n << 8) | u32::from(*byte))
    }

    /// Returns the time in the nonce of a request.
    pub fn time(&self) -> UnixTime {
        UnixTime::from_millis(self.0.iter().take(6).fold(0, |n, byte| (n << 8) | u64::from(*byte)))
    }
}

/// Returns the last 16 bytes of a datagram, by which a hint names it.
pub fn tag_of(datagram: &[u8]) -> Option<[u8; TAG_SIZE]> {
    datagram.last_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Domain;

    fn long(cookie: bool, introduction: bool) -> LongHeader {
        let node = NodeId { domain: Domain(7), hash: [3; 32] };
        let statement = KeyStatement {
            node,
            key: [4; 32],
            not_before: UnixTime::from_secs(1),
            not_after: UnixTime::from_secs(2),
            signature: [5; 64],
        };
        LongHeader {
            class: Class::Other,
            receiver_key: KeyHint([1; 8]),
            sender_key: KeyHint([2; 8]),
            receiver: node,
            sender: node,
            born: 77,
            nonce: Nonce([6; 12]),
            enc: [7; 32],
            cookie: cookie.then_some([8; 16]),
            introduction: introduction.then(|| Introduction { record: vec![9; 100], statement }),
        }
    }

    /// Rule 3.2: the long form with every combination of its optional parts.
    #[test]
    fn long_headers_are_read_back_as_written() {
        for (cookie, introduction) in [(false, false), (true, false), (false, true), (true, true)] {
            let header = long(cookie, introduction);
            let mut bytes = header.to_bytes();
            let aad = bytes.clone();
            bytes.extend_from_slice(&[0xee; 20]);
            let packet = Packet::parse(&bytes).unwrap();
            assert_eq!(packet, Packet::Long { header: Box::new(header), aad: &aad, sealed: &[0xee; 20] });
        }
        assert_eq!(long(false, false).to_bytes().len(), LONG_HEADER);
    }

    /// Rule 3.3: a message that continues a context costs 37 bytes and shows no node id.
    #[test]
    fn the_short_form_costs_37_bytes() {
        let header = ShortHeader { class: Class::Read, context: ContextId([1; 8]), nonce: Nonce([2; 12]) };
        let mut bytes = header.to_bytes();
        bytes.extend_from_slice(&[0; TAG_SIZE]);
        assert_eq!(bytes.len(), 37);
        assert!(matches!(Packet::parse(&bytes), Ok(Packet::Short { header: h, .. }) if h == header));
    }

    /// Rule 3.1: bit 0 is clear for reads alone, and the two bits that QUIC uses are clear in every form.
    #[test]
    fn the_first_byte_steers() {
        for byte in 0..=u8::MAX {
            let known = !matches!(Packet::parse(&[byte]), Err(BadPacket::UnknownForm));
            let reads = matches!(byte, kind::SHORT_READ | kind::LONG_READ);
            assert!(!known || (byte & 1 == 0) == reads, "{byte:#x}");
            assert!(!known || byte & 0xc0 == 0, "{byte:#x}");
            let is_long = matches!(byte, kind::LONG_READ | kind::LONG_OTHER);
            assert_eq!(byte & LONG_FORMS_MASK == LONG_FORMS, is_long, "{byte:#x}");
        }
    }

    #[test]
    fn truncated_packets_of_every_form_are_refused() {
        let mut long = long(true, true).to_bytes();
        long.extend_from_slice(&[0; TAG_SIZE]);
        let reply = ReplyHeader { request: Nonce([1; 12]), nonce: Nonce([2; 12]) };
        let mut reply = reply.to_bytes();
        reply.extend_from_slice(&[0; TAG_SIZE]);
        let hint = Hint { echo: [1; 16], reason: HintReason::Cookie([2; 16]) }.to_bytes();
        for whole in [long, reply, hint] {
            for length in 0..whole.len() {
                assert!(Packet::parse(&whole[..length]).is_err(), "{} of {}", length, whole.len());
            }
            assert!(Packet::parse(&whole).is_ok());
        }
        assert_eq!(Packet::parse(&[kind::REPLY; MAX_DATAGRAM + 1]), Err(BadPacket::TooLong));
    }

    /// Rule 3.9: hints of each reason.
    #[test]
    fn hints_are_read_back_as_written() {
        let reasons = [
            HintReason::NeedIntroduction,
            HintReason::NeedLong,
            HintReason::StaleKey(vec![1; KeyStatement::SIZE]),
            HintReason::Cookie([3; 16]),
        ];
        for reason in reasons {
            let hint = Hint { echo: [9; 16], reason };
            assert_eq!(Packet::parse(&hint.to_bytes()), Ok(Packet::Hint(hint)));
        }
    }

    /// Rule 3.5: the time of a request is read back from its nonce.
    #[test]
    fn a_request_nonce_carries_the_time() {
        let time = UnixTime::from_millis(1_795_000_123_456);
        let nonce = Nonce::for_request(time, 0x00ab_cdef, 0x0012_3456);
        assert_eq!(nonce.time(), time);
        assert_eq!(nonce.counter(), 0x00ab_cdef);
        assert_eq!(nonce.0[6..], [0xab, 0xcd, 0xef, 0x12, 0x34, 0x56]);
    }
}
