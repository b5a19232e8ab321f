//! The way out of a link: control frames first, then a fair share for each session (Rule 7.7).

use peerage_wire::frame::{Encoded, Frame, HEADER_LEN, MAX_DATA, StreamFrame, StreamId};
use peerage_wire::time::Instant;

use super::{Farewell, Link, is_last};
use crate::session::Lane;

/// A good size of a batch, in bytes: 32 TLS records. More makes a frame that becomes urgent wait longer
/// behind it, less costs system calls.
pub const BATCH_BYTES: usize = 512 * 1_024;

/// What a session may send before the next one has its turn, in bytes: four TLS records. More makes others
/// wait, less makes the receiver change between sessions more often than it gains from.
const QUANTUM: usize = 64 * 1_024;

/// The size of the longest frame, in bytes.
const MAX_FRAME: usize = HEADER_LEN + MAX_DATA;

impl Link {
    /// Takes frames to write, in order, into `out` until fewer than 16 KiB are left of `max_bytes`, and
    /// returns how many bytes were added.
    ///
    /// `pull` asks the session on a stream for its next frame of a lane; it returns none if there is none,
    /// and is asked again only after [`mark_ready`](Self::mark_ready) or, for frames that did not fit, in the
    /// next batch.
    pub fn poll_output(
        &mut self,
        max_bytes: usize,
        now: Instant,
        mut pull: impl FnMut(StreamId, Lane) -> Option<StreamFrame>,
        out: &mut Vec<Encoded>,
    ) -> usize {
        let mut batch = Batch { out, bytes: 0, max_bytes };
        while batch.has_room() {
            let Some(frame) = self.control.pop_front() else { break };
            batch.push(&frame);
        }
        while batch.has_room() {
            let Some(stream) = self.urgent.front().copied() else { break };
            if !self.send_from(stream, Lane::Control, now, &mut pull, &mut batch) {
                self.urgent.pop_front();
                if let Some(entry) = self.streams.get_mut(&stream) {
                    entry.is_urgent = false;
                }
            }
        }
        while batch.has_room() {
            let Some(stream) = self.bulk.front().copied() else { break };
            self.take_turn(stream, now, &mut pull, &mut batch);
        }
        batch.bytes
    }

    /// Returns whether [`poll_output`](Self::poll_output) may have something to write.
    pub fn wants_output(&self) -> bool {
        !(self.control.is_empty() && self.urgent.is_empty() && self.bulk.is_empty())
    }

    /// Sends one bulk frame of the stream whose turn it is, and passes the turn on when its share is used up.
    fn take_turn(
        &mut self,
        stream: StreamId,
        now: Instant,
        pull: &mut impl FnMut(StreamId, Lane) -> Option<StreamFrame>,
        batch: &mut Batch<'_>,
    ) {
        let before = batch.bytes;
        let has_sent = self.send_from(stream, Lane::Bulk, now, pull, batch);
        let sent = batch.bytes - before;
        let Some(entry) = self.streams.get_mut(&stream) else {
            self.bulk.pop_front();
            return;
        };
        if !has_sent {
            entry.is_bulk = false;
            entry.used_bytes = 0;
            self.bulk.pop_front();
            return;
        }
        entry.used_bytes += sent;
        if entry.used_bytes >= QUANTUM {
            entry.used_bytes = 0;
            self.bulk.rotate_left(1);
        }
    }

    /// Sends one frame of a stream; returns whether there was one.
    fn send_from(
        &mut self,
        stream: StreamId,
        lane: Lane,
        now: Instant,
        pull: &mut impl FnMut(StreamId, Lane) -> Option<StreamFrame>,
        batch: &mut Batch<'_>,
    ) -> bool {
        let Some(entry) = self.streams.get_mut(&stream).filter(|entry| !entry.has_sent_last) else {
            return false;
        };
        let frame = match (entry.farewell, lane) {
            (Some(Farewell::Refuse(code)), Lane::Control) => Some(StreamFrame::Reset(code)),
            (Some(Farewell::Leave), Lane::Control) => Some(StreamFrame::Leave),
            (Some(_), Lane::Bulk) => None,
            (None, lane) => pull(stream, lane),
        };
        let Some(frame) = frame else { return false };
        let is_last = is_last(&frame);
        entry.is_announced = true;
        entry.has_sent_last = is_last;
        if wants_answer(&frame) {
            self.liveness.on_sent(now);
        }
        batch.push(&Frame::Stream(stream, frame));
        if is_last {
            self.retire(stream, now);
        }
        true
    }
}

/// Whether a link that falls silent after this frame should be asked: an honest peer answers it, if only with
/// an acknowledgement, or an application waits for it.
const fn wants_answer(frame: &StreamFrame) -> bool {
    match frame {
        StreamFrame::Open { .. }
        | StreamFrame::Data { .. }
        | StreamFrame::Fin { .. }
        | StreamFrame::Reset(_)
        | StreamFrame::Resume(_)
        | StreamFrame::Datagram(_) => true,
        StreamFrame::Opened { .. }
        | StreamFrame::Ack { .. }
        | StreamFrame::Resumed(_)
        | StreamFrame::Leave => false,
    }
}

/// Frames of one call.
struct Batch<'a> {
    out: &'a mut Vec<Encoded>,
    bytes: usize,
    max_bytes: usize,
}

impl Batch<'_> {
    /// Whether any frame fits; one always does, lest a small batch never makes progress.
    const fn has_room(&self) -> bool {
        self.bytes == 0 || self.bytes + MAX_FRAME <= self.max_bytes
    }

    fn push(&mut self, frame: &Frame) {
        let encoded = frame.encode();
        self.bytes += encoded.size_bytes();
        self.out.push(encoded);
    }
}
