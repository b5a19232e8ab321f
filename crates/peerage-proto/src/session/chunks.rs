//! A queue of bytes in pieces that share the memory they arrived in.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};

/// Pieces shorter than this are copied together when they are kept for the reader. Raising it copies more, lowering it charges more
/// pieces as [`SHARED_COST`].
pub(super) const COPY_BELOW: usize = 4_096;

/// What a piece that is not copied keeps alive at the most, in bytes: all that a link opened of what it read at a time, which is 64 KiB
/// and up to one TLS record. It is what such a piece counts in the node's budget.
pub(super) const SHARED_COST: u64 = 80 * 1_024;

/// How much small pieces are copied together to.
const COPY_INTO: usize = 16_384;

/// Bytes of one range of a stream, in order.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    pieces: VecDeque<Piece>,
    /// Follows `pieces`: small pieces copied together.
    tail: BytesMut,
    len: u64,
    /// How many of `pieces` are shared.
    shared: u64,
}

#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    /// It keeps the whole buffer alive that it arrived in.
    is_shared: bool,
}

impl Chunks {
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns what shared pieces may keep alive, in bytes.
    pub(super) const fn shared_bytes(&self) -> u64 {
        self.shared * SHARED_COST
    }

    /// Appends a piece: as it is, if it may be shared, else copied.
    pub(super) fn push(&mut self, bytes: Bytes, may_share: bool) {
        self.len += bytes.len() as u64;
        if may_share && bytes.len() >= COPY_BELOW {
            self.end_tail();
            self.shared += 1;
            self.pieces.push_back(Piece { bytes, is_shared: true });
            return;
        }
        if self.tail.len() + bytes.len() > COPY_INTO {
            self.end_tail();
        }
        self.tail.extend_from_slice(&bytes);
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let bytes = match self.pieces.pop_front() {
            Some(piece) => {
                self.shared -= u64::from(piece.is_shared);
                piece.bytes
            }
            None if self.tail.is_empty() => return None,
            None => std::mem::take(&mut self.tail).freeze(),
        };
        self.len -= bytes.len() as u64;
        if self.is_empty() {
            // An idle session holds no memory (Rule 7.17).
            *self = Self::default();
        }
        Some(bytes)
    }

    /// Drops the first `count` bytes, all if there are fewer.
    pub(super) fn skip(&mut self, count: u64) {
        let mut left = count;
        while left > 0 {
            let is_shared = self.pieces.front().is_some_and(|piece| piece.is_shared);
            let Some(mut bytes) = self.pop() else { return };
            let len = bytes.len() as u64;
            if len > left {
                // `left` is shorter than a piece that is in memory.
                bytes.advance(usize::try_from(left).unwrap_or(bytes.len()));
                self.len += bytes.len() as u64;
                self.shared += u64::from(is_shared);
                self.pieces.push_front(Piece { bytes, is_shared });
                return;
            }
            left -= len;
        }
    }

    /// Moves everything from `other` to the end.
    pub(super) fn append(&mut self, mut other: Self) {
        self.end_tail();
        self.len += other.len;
        self.shared += other.shared;
        self.pieces.append(&mut other.pieces);
        self.tail = other.tail;
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            let bytes = std::mem::take(&mut self.tail).freeze();
            self.pieces.push_back(Piece { bytes, is_shared: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(chunks: &mut Chunks) -> Vec<u8> {
        std::iter::from_fn(|| chunks.pop()).flatten().collect()
    }

    #[test]
    fn large_pieces_are_shared_and_small_ones_copied_together() {
        let mut chunks = Chunks::default();
        let large = Bytes::from(vec![1; COPY_BELOW]);
        chunks.push(large.clone(), true);
        assert_eq!(chunks.shared_bytes(), SHARED_COST);
        for _ in 0..100 {
            chunks.push(Bytes::from_static(&[2; 10]), true);
        }
        assert_eq!(chunks.pop().unwrap().as_ptr(), large.as_ptr());
        assert_eq!(chunks.shared_bytes(), 0);
        assert_eq!(chunks.pop().unwrap().len(), 1_000);
        assert!(chunks.pop().is_none());
        // Without leave to share, none keeps its buffer.
        chunks.push(large.clone(), false);
        assert_eq!(chunks.shared_bytes(), 0);
        assert_ne!(chunks.pop().unwrap().as_ptr(), large.as_ptr());
    }

    #[test]
    fn bytes_keep_their_order_through_skip_and_append() {
        let mut first = Chunks::default();
        let mut second = Chunks::default();
        first.push(Bytes::from_static(b"small "), true);
        first.push(Bytes::from(vec![b'x'; COPY_BELOW]), true);
        second.push(Bytes::from_static(b"end"), true);
        first.skip(2);
        first.append(second);
        first.push(Bytes::from_static(b"!"), true);
        assert_eq!(first.len(), 4 + COPY_BELOW as u64 + 4);
        first.skip(4 + COPY_BELOW as u64 - 1);
        assert_eq!(drain(&mut first), b"xend!");
        first.push(Bytes::from_static(b"ab"), true);
        first.skip(9);
        assert!(first.is_empty());
    }
}
