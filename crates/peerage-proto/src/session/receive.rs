//! The receiving half: bytes of the peer, in order, until the application takes them.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use peerage_wire::time::Instant;

use super::budget::{Budget, Lease};
use super::chunks::{COPY_BELOW, Chunks, SHARED_COST};
use super::{Violation, WINDOW_MIN};

/// Bytes after which an acknowledgement is sent at once, unless a quarter of the window is less. Raised, the
/// sender keeps more in its buffer; lowered, more frames carry no bytes.
const ACK_BYTES: u64 = 64 * 1_024;

/// The most separate ranges that may wait for the bytes before them. Two carriers of a planned move make one;
/// each further move or resend may add one. More lets a hostile peer make look-ups long.
const MAX_RUNS: usize = 64;

/// A shorter round trip counts as this one when the window grows, because the tasks on both sides take their
/// time too. Raised, windows on a LAN grow larger than they need; lowered, they stay too small for its speed.
const ROUND_TRIP_MIN: Duration = Duration::from_millis(5);

/// After this long without reading, a window starts small again. Raised, memory stays promised for longer;
/// lowered, an application that pauses must earn its window again.
const WINDOW_LIFETIME: Duration = Duration::from_secs(30);

/// Bytes of one direction, from the first that the application has not taken.
#[derive(Debug)]
pub(super) struct ReceiveHalf {
    ready: Chunks,
    /// Up to where the application has read.
    read: u64,
    /// What waits for bytes before it: ascending, apart from each other, all above `received`.
    runs: Vec<Run>,
    /// The peer's final offset.
    fin: Option<u64>,
    /// What the peer was told: its bytes below this arrived, and it may send up to `limit`.
    told: u64,
    limit: u64,
    window: u64,
    max_window: u64,
    lease: Lease,
    /// For the buffers that pieces keep alive.
    shared: Lease,
    /// When the current window's worth of reading began, and how much has been read of it.
    epoch_at: Instant,
    epoch_read: u64,
    last_read_at: Instant,
}

#[derive(Debug)]
struct Run {
    start: u64,
    chunks: Chunks,
}

impl Run {
    const fn end(&self) -> u64 {
        self.start + self.chunks.len()
    }
}

impl ReceiveHalf {
    pub(super) fn new(max_window: u64, budget: &Budget, now: Instant) -> Self {
        Self {
            ready: Chunks::default(),
            read: 0,
            runs: Vec::new(),
            fin: None,
            told: 0,
            limit: WINDOW_MIN,
            window: WINDOW_MIN,
            max_window: max_window.max(WINDOW_MIN),
            lease: budget.lease(WINDOW_MIN),
            shared: budget.lease(0),
            epoch_at: now,
            epoch_read: 0,
            last_read_at: now,
        }
    }

    /// Returns the end of what arrived without a gap, plus one when that includes the peer's FIN (Rule 7.14).
    pub(super) fn received(&self) -> u64 {
        let data = self.data_end();
        if self.fin == Some(data) { data + 1 } else { data }
    }

    /// Returns the highest limit that the peer was told: the only back-pressure there is (Rule 7.16).
    pub(super) const fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns how many bytes the application has taken.
    pub(super) const fn read_bytes(&self) -> u64 {
        self.read
    }

    /// Whether everything has arrived, the end included.
    pub(super) fn is_complete(&self) -> bool {
        self.fin == Some(self.data_end())
    }

    /// Whether the application has taken everything up to the end.
    pub(super) fn is_finished(&self) -> bool {
        self.fin == Some(self.read)
    }

    pub(super) fn set_max_window(&mut self, bytes: u64) {
        self.max_window = bytes.max(WINDOW_MIN);
        self.window = self.window.min(self.max_window);
    }

    /// Keeps bytes that arrived; returns whether any of them were new.
    pub(super) fn on_data(&mut self, offset: u64, mut payload: Bytes) -> Result<bool, Violation> {
        let end = offset.checked_add(payload.len() as u64).ok_or(Violation::CreditOverrun)?;
        if end > self.limit {
            return Err(Violation::CreditOverrun);
        }
        if self.fin.is_some_and(|fin| end > fin) {
            return Err(Violation::DataAfterFin);
        }
        let received = self.data_end();
        if end <= received {
            return Ok(false);
        }
        if offset > received {
            return self.keep(offset, payload);
        }
        payload.advance(distance(offset, received));
        let may_share = self.may_share(&payload);
        self.ready.push(payload, may_share);
        self.join_runs();
        Ok(true)
    }

    /// Whether a piece may be kept as it is: while the budget has room for all that it keeps alive.
    fn may_share(&mut self, piece: &Bytes) -> bool {
        piece.len() >= COPY_BELOW && self.shared.try_grow(self.shared.held().saturating_add(SHARED_COST))
    }

    fn note_shared(&mut self) {
        let runs: u64 = self.runs.iter().map(|run| run.chunks.shared_bytes()).sum();
        self.shared.shrink(self.ready.shared_bytes().saturating_add(runs));
    }

    /// Learns the final offset.
    pub(super) fn on_fin(&mut self, offset: u64) -> Result<(), Violation> {
        if self.fin.is_some_and(|fin| fin != offset) {
            return Err(Violation::FinalOffsetMoved);
        }
        if offset > self.limit {
            return Err(Violation::CreditOverrun);
        }
        let end = self.runs.last().map_or(self.data_end(), Run::end);
        if offset < end {
            return Err(Violation::DataAfterFin);
        }
        self.fin = Some(offset);
        Ok(())
    }

    /// Takes the next bytes for the application.
    pub(super) fn read(&mut self, round_trip: Duration, now: Instant) -> Option<Bytes> {
        let bytes = self.ready.pop()?;
        self.note_shared();
        let len = bytes.len() as u64;
        self.read += len;
        if now - self.last_read_at > WINDOW_LIFETIME {
            self.window = WINDOW_MIN;
            self.epoch_at = now;
            self.epoch_read = 0;
        }
        self.last_read_at = now;
        self.epoch_read += len;
        if self.epoch_read >= self.window {
            // Read a whole window within two round trips: the window, not the path or the reader, was the
            // limit.
            if now - self.epoch_at <= round_trip.max(ROUND_TRIP_MIN) * 2 {
                self.grow();
            }
            self.epoch_at = now;
            self.epoch_read = 0;
        }
        // What is promised: the window, or what is left of a larger one that the peer was told.
        self.lease.shrink(self.window.max(self.limit - self.read));
        Some(bytes)
    }

    /// Whether the peer should hear at once what arrived or that there is room again (Rule 7.15).
    pub(super) fn wants_ack_now(&self) -> bool {
        let step = self.window / 4;
        let credit = self.next_limit() - self.limit >= step && self.fin.is_none();
        self.received() - self.told >= ACK_BYTES.min(step)
            || credit
            || (self.is_complete() && self.has_untold())
    }

    /// Whether something arrived that the peer has not been told.
    pub(super) fn has_untold(&self) -> bool {
        self.received() > self.told
    }

    /// Returns what to tell the peer, received and limit, and takes it as told.
    pub(super) fn tell(&mut self) -> (u64, u64) {
        self.limit = self.next_limit();
        self.told = self.received();
        (self.told, self.limit)
    }

    /// Forgets all bytes: the session was reset.
    pub(super) fn clear(&mut self) {
        self.read = self.data_end();
        self.ready = Chunks::default();
        self.forget_gaps();
    }

    /// Forgets what cannot be completed any more; what arrived in order stays for the application.
    pub(super) fn forget_gaps(&mut self) {
        self.runs = Vec::new();
        self.note_shared();
        self.lease.shrink(self.ready.len());
    }

    const fn data_end(&self) -> u64 {
        self.read + self.ready.len()
    }

    fn next_limit(&self) -> u64 {
        self.limit.max(self.read.saturating_add(self.window))
    }

    fn grow(&mut self) {
        let larger = self.window.saturating_mul(2).min(self.max_window);
        if larger > self.window && self.lease.try_grow(larger) {
            self.window = larger;
        }
    }

    /// Moves runs that have no gap before them any more to the bytes that are ready.
    fn join_runs(&mut self) {
        while let Some(first) = self.runs.first() {
            let end = self.data_end();
            if first.start > end {
                return;
            }
            let mut run = self.runs.remove(0);
            run.chunks.skip(end - run.start);
            self.ready.append(run.chunks);
        }
    }

    /// Keeps bytes that have a gap before them, leaving out what is there already.
    fn keep(&mut self, mut offset: u64, mut payload: Bytes) -> Result<bool, Violation> {
        let mut is_new = false;
        let index = self.runs.partition_point(|run| run.end() < offset);
        while !payload.is_empty() {
            let next_start = self.runs.get(index).map_or(u64::MAX, |run| run.start);
            if offset < next_start {
                let len = payload.len().min(distance(offset, next_start));
                let piece = payload.split_to(len);
                offset += len as u64;
                is_new = true;
                self.insert(index, offset - len as u64, piece)?;
                continue;
            }
            // Within or at the end of the run at `index`.
            let Some(run) = self.runs.get_mut(index) else { break };
            let covered = payload.len().min(distance(offset, run.end()));
            payload.advance(covered);
            offset += covered as u64;
            if payload.is_empty() {
                break;
            }
            let until = self.runs.get(index + 1).map_or(u64::MAX, |run| run.start);
            let len = payload.len().min(distance(offset, until));
            let piece = payload.split_to(len);
            let may_share = self.may_share(&piece);
            if let Some(run) = self.runs.get_mut(index) {
                run.chunks.push(piece, may_share);
                is_new |= len > 0;
            }
            offset += len as u64;
            self.join_following(index);
        }
        Ok(is_new)
    }

    fn insert(&mut self, index: usize, start: u64, piece: Bytes) -> Result<(), Violation> {
        if self.runs.len() >= MAX_RUNS {
            return Err(Violation::TooManyGaps);
        }
        let mut chunks = Chunks::default();
        let may_share = self.may_share(&piece);
        chunks.push(piece, may_share);
        self.runs.insert(index, Run { start, chunks });
        self.join_following(index);
        Ok(())
    }

    /// Joins the run at `index` with the next one if nothing is between them.
    fn join_following(&mut self, index: usize) {
        let touches = match (self.runs.get(index), self.runs.get(index + 1)) {
            (Some(run), Some(next)) => run.end() == next.start,
            _ => false,
        };
        if touches {
            let next = self.runs.remove(index + 1);
            if let Some(run) = self.runs.get_mut(index) {
                run.chunks.append(next.chunks);
            }
        }
    }
}

/// Returns how far `to` lies after `from`, as a count of bytes in memory.
fn distance(from: u64, to: u64) -> usize {
    usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX)
}
