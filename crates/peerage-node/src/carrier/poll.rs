//! Connections inside requests of HTTP and their answers, for networks that pass whole bodies on and nothing else (Rule 6.113).
//!
//! A request makes a *session*, which has a name. After that requests with bytes go up, one after the other, and requests without go down:
//! each waits at the server until there are bytes, or for a while.
//!
//! ```text
//!   client ── POST content ──────────────▶ server      client ── POST down: name, offset ─────────▶ server
//!          ◀── name ──────────────────────                    ◀── follows, bytes ──── held until there are some
//!          ── POST up: name, offset, follows, bytes ──▶
//!          ◀── offset: so much has come ──
//! ```
//!
//! Invariants: every request says at which byte it is, so that whoever asks twice gets or gives the same bytes once; the server keeps
//! what it has given until the next request says that it has come, and never more than one portion; no session outlives those who ask.

mod ask;
mod serve;
mod session;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::Content;

pub(super) use ask::ask;
pub(super) use serve::Polled;

/// Where bytes go up.
pub(super) const UP_PATH: &str = "/v1/up";

/// Where bytes are fetched.
pub(super) const DOWN_PATH: &str = "/v1/down";

/// Bytes of a session's name: it cannot be guessed, and is worth no more than the connection that it stands for.
const NAME_SIZE: usize = 16;

/// Bytes of an offset.
const OFFSET_SIZE: usize = 8;

/// The longest portion of any content.
const MAX_PORTION_BYTES: usize = 128 * 1_024;

/// Returns how many bytes go in one request or answer at most, which are also held in each direction. As much passes in one round trip: more
/// keeps memory for strangers, less makes tunnels slow. Messages are few and short.
const fn portion_bytes(content: Content) -> usize {
    match content {
        Content::Messages => 16 * 1_024,
        Content::Leg => MAX_PORTION_BYTES,
    }
}

/// Names a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name([u8; NAME_SIZE]);

impl Name {
    /// Reads one that is all there is.
    fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// Of which session a request speaks, and of which byte of it in its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    name: Name,
    offset: u64,
}

impl Place {
    const SIZE: usize = NAME_SIZE + OFFSET_SIZE;

    fn write(&self, to: &mut BytesMut) {
        to.put_slice(&self.name.0);
        to.put_u64(self.offset);
    }

    /// Reads it in front of a body, and returns what is behind it.
    fn split(mut body: Bytes) -> Option<(Self, Bytes)> {
        let rest = (body.len() >= Self::SIZE).then(|| body.split_off(Self::SIZE))?;
        let (name, offset) = body.split_first_chunk::<NAME_SIZE>()?;
        Some((Self { name: Name(*name), offset: read_offset(offset)? }, rest))
    }
}

fn read_offset(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// What follows behind the bytes of a portion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follows {
    /// Others, or nobody knows.
    More,
    /// None in this direction.
    Nothing,
    /// None in either: the connection is broken.
    Break,
}

impl Follows {
    const ALL: [(u8, Self); 3] = [(0, Self::More), (1, Self::Nothing), (2, Self::Break)];

    fn code(self) -> u8 {
        Self::ALL.into_iter().find(|(_, follows)| *follows == self).map_or(0, |(code, _)| code)
    }
}

/// Bytes of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Portion {
    follows: Follows,
    bytes: Bytes,
}

impl Portion {
    const HEAD_SIZE: usize = 1;

    fn write(&self, to: &mut BytesMut) {
        to.put_u8(self.follows.code());
        to.put_slice(&self.bytes);
    }

    fn read(mut body: Bytes) -> Option<Self> {
        let code = (!body.is_empty()).then(|| body.split_to(Self::HEAD_SIZE))?;
        let (_, follows) = Follows::ALL.into_iter().find(|(known, _)| code.first() == Some(known))?;
        Some(Self { follows, bytes: body })
    }
}

#[cfg(test)]
mod tests;
