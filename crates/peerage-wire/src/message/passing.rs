//! What passes through somebody in between: forwarded messages and relayed links.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::cbor::{Malformed, Map, MapWriter};
use crate::codec::{address_bytes, address_from};
use crate::limits::MAX_FORWARDED;

/// A sealed message as a forwarder passes it on to a node that is attached to it (Rule 6.28).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The source of the message, as the forwarder saw it.
    pub observed: SocketAddr,
    /// The datagram, sealed for the receiver by whoever asks; at most [`MAX_FORWARDED`] bytes.
    pub inner: Bytes,
    /// What the forwarder wants to have back with the answer; opaque to everybody else.
    pub token: Bytes,
}

impl Forward {
    /// Longest token that a reader takes, in bytes; ours has some sixty.
    const MAX_TOKEN: usize = 128;

    pub(super) fn write(&self, map: &mut MapWriter) {
        map.bytes(1, &address_bytes(self.observed)).bytes(2, &self.inner).bytes(3, &self.token);
    }

    pub(super) fn read(map: &mut Map<'_>) -> Result<Self, Malformed> {
        let observed = address_from(map.bytes(1)?).ok_or(Malformed::Type(1))?;
        let (inner, token) = (read_inner(map, 2)?, map.bytes(3)?);
        if token.len() > Self::MAX_TOKEN {
            return Err(Malformed::Type(3));
        }
        Ok(Self { observed, inner, token: Bytes::copy_from_slice(token) })
    }
}

/// Reads a datagram inside of a message.
pub(super) fn read_inner(map: &mut Map<'_>, key: u64) -> Result<Bytes, Malformed> {
    checked(map.bytes(key)?, key)
}

/// Reads a datagram inside of a message, if there is one.
pub(super) fn read_optional_inner(map: &mut Map<'_>, key: u64) -> Result<Option<Bytes>, Malformed> {
    map.optional_bytes(key)?.map(|inner| checked(inner, key)).transpose()
}

fn checked(inner: &[u8], key: u64) -> Result<Bytes, Malformed> {
    if inner.len() > MAX_FORWARDED {
        return Err(Malformed::Type(key));
    }
    Ok(Bytes::copy_from_slice(inner))
}

/// Why a leg was not joined (Rule 6.31).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum RelayRefusal {
    /// The other leg did not come in time.
    #[error("the other side did not come to the relay")]
    NoPeer,
    /// This node has as many legs here as one node may have.
    #[error("this computer has as many connections through the relay as it may have")]
    NodeQuota,
    /// The domain has as many tunnels here as one domain may have.
    #[error("the organisation has as many connections through the relay as it may have")]
    DomainQuota,
    /// The relay gives no more to anybody.
    #[error("the relay is full")]
    Full,
    /// The leg names itself or somebody of another domain.
    #[error("these two may not be joined")]
    Names,
    /// There is such a leg already.
    #[error("the relay has this connection already")]
    Duplicate,
    /// Whoever made the leg is not a member any more.
    #[error("this computer is not a member any more")]
    Membership,
}

impl RelayRefusal {
    const ALL: [(Self, u8); 7] = [
        (Self::NoPeer, 1),
        (Self::NodeQuota, 2),
        (Self::DomainQuota, 3),
        (Self::Full, 4),
        (Self::Names, 5),
        (Self::Duplicate, 6),
        (Self::Membership, 7),
    ];

    /// Returns the number on the wire; 0 stands for a leg that is joined.
    pub(super) fn number(joined: Result<(), Self>) -> u8 {
        let of = |why| Self::ALL.iter().find(|(each, _)| *each == why).map_or(0, |(_, number)| *number);
        joined.err().map_or(0, of)
    }

    /// Reads the number; `None` for one that this version does not know.
    pub(super) fn from_number(number: u8) -> Option<Result<(), Self>> {
        if number == 0 {
            return Some(Ok(()));
        }
        Self::ALL.iter().find(|(_, each)| *each == number).map(|(why, _)| Err(*why))
    }
}
