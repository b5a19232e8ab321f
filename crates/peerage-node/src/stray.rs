//! Datagrams that nobody can open, to see whether somebody is there.

use std::io;

use peerage_wire::id::{ContextId, Nonce};
use peerage_wire::packet::{Class, Packet, ShortHeader, tag_of};

/// Bytes of the datagram: more than a hint has, which is never longer than its cause.
const SIZE: usize = 200;

/// A datagram that belongs to no context, to which whoever speaks the protocol answers with a hint (Rule 3.9). Nothing but time is proven
/// by that: the hint shows that the way is open, not who is at its end.
pub(crate) struct Stray(Vec<u8>);

impl Stray {
    /// Makes one that is like no other.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub(crate) fn new() -> io::Result<Self> {
        let (mut context, mut nonce) = (ContextId([0; ContextId::SIZE]), Nonce([0; Nonce::SIZE]));
        fill(&mut context.0)?;
        fill(&mut nonce.0)?;
        let mut datagram = ShortHeader { class: Class::Read, context, nonce }.to_bytes();
        let mut rest = vec![0; SIZE.saturating_sub(datagram.len())];
        fill(&mut rest)?;
        datagram.extend_from_slice(&rest);
        Ok(Self(datagram))
    }

    /// Returns the datagram.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns whether this is the hint about it.
    pub(crate) fn is_answered_by(&self, answer: &[u8]) -> bool {
        matches!(Packet::parse(answer), Ok(Packet::Hint(hint)) if Some(hint.echo) == tag_of(&self.0))
    }
}

fn fill(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(io::Error::other)
}
