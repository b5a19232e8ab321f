//! A queue of bytes in pieces that share the memory they arrived in.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};

/// Pieces shorter than this are copied together when they are kept for the reader. A kept piece holds on to
/// the whole buffer that it arrived in, so a peer could make every byte cost a buffer; raising this copies
/// more, lowering it wastes more memory (up to a buffer for each piece of this size).
const COPY_BELOW: usize = 4_096;

/// How much small pieces are copied together to.
const COPY_INTO: usize = 16_384;

/// Bytes of one range of a stream, in order.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    pieces: VecDeque<Bytes>,
    /// Follows `pieces`: small pieces copied together.
    tail: BytesMut,
    len: u64,
}

impl Chunks {
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push(&mut self, piece: Bytes) {
        self.len += piece.len() as u64;
        if piece.len() >= COPY_BELOW {
            self.end_tail();
            self.pieces.push_back(piece);
            return;
        }
        if self.tail.len() + piece.len() > COPY_INTO {
            self.end_tail();
        }
        self.tail.extend_from_slice(&piece);
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let piece = match self.pieces.pop_front() {
            Some(piece) => piece,
            None if self.tail.is_empty() => return None,
            None => std::mem::take(&mut self.tail).freeze(),
        };
        self.len -= piece.len() as u64;
        if self.is_empty() {
            // An idle session holds no memory (Rule 7.17).
            *self = Self::default();
        }
        Some(piece)
    }

    /// Drops the first `count` bytes, all if there are fewer.
    pub(super) fn skip(&mut self, count: u64) {
        let mut left = count;
        while left > 0 {
            let Some(mut piece) = self.pop() else { return };
            let len = piece.len() as u64;
            if len > left {
                // `left` is shorter than a piece that is in memory.
                piece.advance(usize::try_from(left).unwrap_or(piece.len()));
                self.len += piece.len() as u64;
                self.pieces.push_front(piece);
                return;
            }
            left -= len;
        }
    }

    /// Moves everything from `other` to the end.
    pub(super) fn append(&mut self, mut other: Self) {
        self.end_tail();
        self.len += other.len;
        self.pieces.append(&mut other.pieces);
        self.tail = other.tail;
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.tail).freeze());
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
        chunks.push(large.clone());
        for _ in 0..100 {
            chunks.push(Bytes::from_static(&[2; 10]));
        }
        assert_eq!(chunks.pop().unwrap().as_ptr(), large.as_ptr());
        assert_eq!(chunks.pop().unwrap().len(), 1_000);
        assert!(chunks.pop().is_none());
    }

    #[test]
    fn bytes_keep_their_order_through_skip_and_append() {
        let mut first = Chunks::default();
        let mut second = Chunks::default();
        first.push(Bytes::from_static(b"small "));
        first.push(Bytes::from(vec![b'x'; COPY_BELOW]));
        second.push(Bytes::from_static(b"end"));
        first.skip(2);
        first.append(second);
        first.push(Bytes::from_static(b"!"));
        assert_eq!(first.len(), 4 + COPY_BELOW as u64 + 4);
        first.skip(4 + COPY_BELOW as u64 - 1);
        assert_eq!(drain(&mut first), b"xend!");
        first.push(Bytes::from_static(b"ab"));
        first.skip(9);
        assert!(first.is_empty());
    }
}
