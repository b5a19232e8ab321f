//! The sending half: bytes of the application until the peer has them.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};
use peerage_wire::frame::MAX_DATA;

use super::budget::{Budget, Lease};
use super::{FIRST_CREDIT, Violation, WINDOW_MIN};

/// The longest frame of a direction's first bytes: with its headers one packet of a link over TCP (Rule 7.28). A receiver can read nothing
/// of a TLS record before all of it has come, and a long one does not fit into what TCP sends before it is acknowledged for the first time.
const FIRST_PIECE: usize = 1_120;

/// How many bytes go in such frames. More costs headers, fewer makes applications that say much at once wait a round trip longer.
const FIRST_BYTES: u64 = 16 * 1_024;

/// How many bytes of the application are taken beyond what the peer has room for, so that credit that arrives
/// finds bytes waiting. Less makes small windows stutter; more delays the moment at which a slow device slows
/// the application down.
const SLACK: u64 = WINDOW_MIN;

/// What each session may keep without asking the budget: a request. Unlike a window it is promised to nobody, so it counts for nothing
/// while it is empty. More would be taken by every session when memory is short, less would slow them down to a crawl then.
const BUFFER_MIN: u64 = 16 * 1_024;

/// What the first growth asks for: the first credit, and what waits for more.
const BUFFER_USUAL: u64 = FIRST_CREDIT + SLACK;

/// The most pieces kept for one session: 8 MiB in pieces of 1 KiB. A piece costs about 32 bytes beside its
/// content; fewer would hinder applications that write very small pieces over long paths.
const MAX_PIECES: usize = 8_192;

/// Bytes of one direction, from the first that the peer has not acknowledged to the last written.
#[derive(Debug)]
pub(super) struct SendHalf {
    /// Sent and not acknowledged: from `acked` to `cursor`.
    in_flight: VecDeque<Bytes>,
    /// From `cursor` to `written`.
    unsent: VecDeque<Bytes>,
    acked: u64,
    cursor: u64,
    /// The end of what was ever sent; above `cursor` while bytes are sent again.
    sent: u64,
    written: u64,
    limit: u64,
    fin: Fin,
    fin_was_sent: bool,
    /// The most bytes kept: the largest window and what waits for credit.
    max_buffer: u64,
    /// What the buffer may hold beyond [`BUFFER_MIN`].
    lease: Lease,
    /// Bytes sent more than once.
    pub(super) resent: u64,
}

/// How far the end of the direction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    None,
    Wanted,
    Sent,
    Acked,
}

impl SendHalf {
    pub(super) fn new(limit: u64, max_window: u64, budget: &Budget) -> Self {
        Self {
            in_flight: VecDeque::new(),
            unsent: VecDeque::new(),
            acked: 0,
            cursor: 0,
            sent: 0,
            written: 0,
            limit,
            fin: Fin::None,
            fin_was_sent: false,
            max_buffer: max_window.saturating_add(SLACK),
            lease: budget.lease(0),
            resent: 0,
        }
    }

    /// Returns how many bytes can be written now.
    pub(super) fn writable(&self) -> u64 {
        if self.fin != Fin::None || self.in_flight.len() + self.unsent.len() >= MAX_PIECES {
            return 0;
        }
        self.wanted_end().min(self.acked + self.allowance()).saturating_sub(self.written)
    }

    /// Takes as much of `bytes` as there is room for, and returns how much that is.
    pub(super) fn write(&mut self, bytes: &mut Bytes) -> usize {
        let room = usize::try_from(self.writable()).unwrap_or(usize::MAX);
        let piece = bytes.split_to(room.min(bytes.len()));
        let len = piece.len();
        if len > 0 {
            self.written += len as u64;
            self.unsent.push_back(piece);
            if self.written - self.acked > BUFFER_MIN + self.lease.held() {
                // What was said to be writable is taken, even if others have used the room up in between.
                self.lease.grow(BUFFER_USUAL - BUFFER_MIN);
            }
            self.grow();
        }
        len
    }

    /// Returns up to which offset bytes would be taken if memory were free.
    fn wanted_end(&self) -> u64 {
        self.limit.min(self.acked.saturating_add(self.max_buffer - SLACK)).saturating_add(SLACK)
    }

    /// Returns how many bytes may be kept.
    fn allowance(&self) -> u64 {
        let leased = BUFFER_MIN + self.lease.held();
        let usual = BUFFER_USUAL - BUFFER_MIN;
        if leased < BUFFER_USUAL && self.lease.can_grow(usual) { BUFFER_USUAL } else { leased }
    }

    /// Asks the budget for more when what it gave is half used and the peer has room for more.
    fn grow(&mut self) {
        let allowance = self.allowance();
        if self.wanted_end() > self.acked + allowance && self.written - self.acked >= allowance / 2 {
            let larger = allowance.saturating_mul(2).max(BUFFER_USUAL).min(self.max_buffer);
            self.lease.try_grow(larger.saturating_sub(BUFFER_MIN));
        }
    }

    pub(super) fn finish(&mut self) {
        if self.fin == Fin::None {
            self.fin = Fin::Wanted;
        }
    }

    pub(super) const fn is_finished(&self) -> bool {
        !matches!(self.fin, Fin::None)
    }

    /// Whether the peer has acknowledged everything, the end included.
    pub(super) const fn is_done(&self) -> bool {
        matches!(self.fin, Fin::Acked)
    }

    pub(super) const fn written(&self) -> u64 {
        self.written
    }

    pub(super) const fn acked(&self) -> u64 {
        self.acked
    }

    /// Raises the peer's limit; a lower one, from a slower carrier, changes nothing.
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    /// Learns that the peer has everything below `received`.
    pub(super) fn on_received(&mut self, received: u64) -> Result<(), Violation> {
        let final_is_acked = self.fin_was_sent && received == self.written + 1;
        if received > self.sent && !final_is_acked {
            return Err(Violation::AckBeyondSent);
        }
        if final_is_acked {
            self.fin = Fin::Acked;
        }
        let mut left = received.min(self.written).saturating_sub(self.acked);
        self.acked += left;
        left = drop_front(&mut self.in_flight, left);
        drop_front(&mut self.unsent, left);
        self.cursor = self.cursor.max(self.acked);
        if self.acked == self.written {
            self.in_flight = VecDeque::new();
            self.unsent = VecDeque::new();
            self.lease.shrink(0);
        }
        self.grow();
        Ok(())
    }

    /// Whether there are bytes that may be sent now.
    pub(super) fn has_data(&self) -> bool {
        self.cursor < self.written.min(self.limit)
    }

    /// Takes the next bytes to send, with their offset.
    pub(super) fn poll_data(&mut self) -> Option<(u64, Bytes)> {
        let room = self.written.min(self.limit).saturating_sub(self.cursor);
        if room == 0 {
            return None;
        }
        let front = self.unsent.front_mut()?;
        let most = if self.cursor < FIRST_BYTES { FIRST_PIECE } else { MAX_DATA };
        let len = front.len().min(most).min(usize::try_from(room).unwrap_or(usize::MAX));
        let piece = if len == front.len() { self.unsent.pop_front()? } else { front.split_to(len) };
        let offset = self.cursor;
        self.cursor += len as u64;
        self.resent += self.sent.min(self.cursor).saturating_sub(offset);
        self.sent = self.sent.max(self.cursor);
        self.in_flight.push_back(piece.clone());
        Some((offset, piece))
    }

    pub(super) fn wants_fin(&self) -> bool {
        self.fin == Fin::Wanted && self.cursor == self.written
    }

    /// Takes the final offset to send, if it is due.
    pub(super) fn poll_fin(&mut self) -> Option<u64> {
        if !self.wants_fin() {
            return None;
        }
        self.fin = Fin::Sent;
        self.fin_was_sent = true;
        Some(self.written)
    }

    /// Makes everything from `offset` on be sent again, the end included.
    pub(super) fn rewind(&mut self, offset: u64) {
        let offset = offset.max(self.acked);
        while self.cursor > offset {
            let Some(mut piece) = self.in_flight.pop_back() else { break };
            let start = self.cursor - piece.len() as u64;
            if start < offset {
                let keep = usize::try_from(offset - start).unwrap_or(piece.len());
                let again = piece.split_off(keep);
                self.in_flight.push_back(piece);
                self.unsent.push_front(again);
                self.cursor = offset;
            } else {
                self.unsent.push_front(piece);
                self.cursor = start;
            }
        }
        if self.fin == Fin::Sent {
            self.fin = Fin::Wanted;
        }
    }

    /// Forgets all bytes: the session was reset.
    pub(super) fn clear(&mut self) {
        self.in_flight = VecDeque::new();
        self.unsent = VecDeque::new();
        self.cursor = self.written;
        self.lease.shrink(0);
    }
}

/// Drops `count` bytes from the front and returns how many there were too few.
fn drop_front(pieces: &mut VecDeque<Bytes>, count: u64) -> u64 {
    let mut left = count;
    while left > 0 {
        let Some(front) = pieces.front_mut() else { break };
        let len = front.len() as u64;
        if len > left {
            front.advance(usize::try_from(left).unwrap_or(front.len()));
            return 0;
        }
        left -= len;
        pieces.pop_front();
    }
    left
}
