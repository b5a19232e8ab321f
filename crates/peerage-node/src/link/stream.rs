//! Sessions on a link, as the tasks on both sides share them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::link::{Event, Link, Side};
use peerage_proto::session::{self, AttachError, Lane, Read, Session, State, WriteError};
use peerage_wire::frame::{CarrierNumber, Code, Encoded, StreamId};
use peerage_wire::id::NodeId;
use peerage_wire::open::Open;
use peerage_wire::time::Instant;
use tokio::sync::Notify;

use super::OpenFailed;
use crate::clock::Clock;

/// One link with its sessions: its driver moves frames, and a task for each session moves the application's bytes.
pub(super) struct Shared {
    pub(super) peer: NodeId,
    pub(super) side: Side,
    pub(super) clock: Clock,
    pub(super) config: session::Config,
    /// Never held while waiting for anything.
    table: Mutex<Table>,
    /// There may be something to send, or a new deadline.
    pub(super) kick: Notify,
}

pub(super) struct Table {
    pub(super) link: Link,
    entries: BTreeMap<StreamId, Entry>,
    /// Whose tasks are to be woken once the table is free again.
    touched: BTreeSet<StreamId>,
    round_trip: Option<Duration>,
    /// When the driver will look again by itself.
    wakes_at: Option<Instant>,
}

struct Entry {
    session: Session,
    carrier: CarrierNumber,
    /// Something has changed for the application.
    wake: Arc<Notify>,
    /// The application's side has said its end, and has seen the peer's.
    is_written: bool,
    is_read: bool,
    /// The application's side is done with it.
    is_released: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(
        (peer, side): (NodeId, Side),
        link: Link,
        config: session::Config,
        clock: Clock,
    ) -> Self {
        let table = Table {
            link,
            entries: BTreeMap::new(),
            touched: BTreeSet::new(),
            round_trip: None,
            wakes_at: None,
        };
        Self { peer, side, clock, config, table: Mutex::new(table), kick: Notify::new() }
    }

    pub(super) fn is_client(&self) -> bool {
        self.side == Side::Client
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic of another task leaves a session that its own rules judge; the link goes on.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session on a link of which this node is the client.
    pub(super) fn open(self: &Arc<Self>, open: &Open) -> Result<Stream, OpenFailed> {
        let now = self.clock.mono();
        let mut session = Session::open(open.session, Bytes::from(open.encode()), &self.config, now)?;
        let mut table = self.lock();
        let carrier = session.attach(table.link.round_trip().unwrap_or_default())?;
        let id = table.link.open_stream()?;
        let stream = table.insert(self, id, session, carrier);
        table.link.mark_ready(id);
        drop(table);
        self.kick.notify_one();
        Ok(stream)
    }

    /// Makes the session for an OPEN of the peer.
    pub(super) fn accept(
        self: &Arc<Self>,
        table: &mut Table,
        id: StreamId,
        limit: u64,
        open: &Open,
    ) -> Stream {
        let mut session = Session::accept(open.session, limit, &self.config, self.clock.mono());
        let carrier = CarrierNumber(0);
        session.set_round_trip(carrier, table.link.round_trip().unwrap_or_default());
        table.insert(self, id, session, carrier)
    }
}

impl Table {
    fn insert(
        &mut self,
        shared: &Arc<Shared>,
        id: StreamId,
        session: Session,
        carrier: CarrierNumber,
    ) -> Stream {
        let wake = Arc::new(Notify::new());
        let entry = Entry {
            session,
            carrier,
            wake: Arc::clone(&wake),
            is_written: false,
            is_read: false,
            is_released: false,
        };
        self.entries.insert(id, entry);
        Stream { shared: Arc::clone(shared), id, wake }
    }

    /// Hands a link's event to the sessions that it concerns; gives back what concerns the node.
    pub(super) fn handle_event(&mut self, event: Event, now: Instant) -> Option<Event> {
        match event {
            Event::Frame { stream, frame } => {
                if let Some(entry) = self.entries.get_mut(&stream) {
                    entry.session.handle_frame(entry.carrier, frame, now);
                    self.touched.insert(stream);
                } else {
                    self.link.refuse(stream, Code::UnknownSession, now);
                }
                None
            }
            Event::Suspect | Event::Trusted => {
                for entry in self.entries.values_mut() {
                    entry.session.set_suspect(entry.carrier, event == Event::Suspect);
                }
                None
            }
            // Sessions on several carriers are not offered yet, so there is none to go on with.
            Event::ResumeAsked { stream, .. } => {
                self.link.refuse(stream, Code::UnknownSession, now);
                None
            }
            other @ (Event::Up | Event::OpenAsked { .. } | Event::Head(_) | Event::Closed(_)) => Some(other),
        }
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.link.handle_timeout(now);
        let round_trip = self.link.round_trip();
        let has_changed = round_trip != self.round_trip;
        self.round_trip = round_trip;
        for (id, entry) in &mut self.entries {
            if has_changed && let Some(round_trip) = round_trip {
                entry.session.set_round_trip(entry.carrier, round_trip);
            }
            if entry.session.poll_timeout().is_some_and(|at| at <= now) {
                entry.session.handle_timeout(now);
                self.touched.insert(*id);
            }
        }
    }

    /// Returns when the driver has to look again.
    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        let sessions = self.entries.values().filter_map(|entry| entry.session.poll_timeout());
        self.wakes_at = sessions.chain(self.link.poll_timeout()).min();
        self.wakes_at
    }

    /// Marks sessions that have something to send, forgets those that are over, and wakes the tasks of those that changed.
    pub(super) fn settle(&mut self) {
        for id in std::mem::take(&mut self.touched) {
            let Some(entry) = self.entries.get(&id) else { continue };
            if entry.session.ready().next().is_some() {
                self.link.mark_ready(id);
            }
            entry.wake.notify_one();
            if entry.is_released && entry.session.is_over() {
                self.entries.remove(&id);
            }
        }
    }

    /// Takes frames to be sent.
    pub(super) fn poll_output(&mut self, max_bytes: usize, now: Instant, out: &mut Vec<Encoded>) {
        let (entries, touched) = (&mut self.entries, &mut self.touched);
        let pull = |id: StreamId, lane: Lane| {
            let entry = entries.get_mut(&id)?;
            let frame = entry.session.poll_frame(entry.carrier, lane, now);
            if entry.session.is_over() {
                touched.insert(id);
            }
            frame
        };
        self.link.poll_output(max_bytes, now, pull, out);
    }

    /// Ends all sessions: the link is gone, and with it their only carrier.
    pub(super) fn end_all(&mut self, code: Code, now: Instant) {
        self.entries.retain(|_, entry| {
            if !matches!(entry.session.state(), State::Ended(_)) {
                entry.session.reset(code);
            }
            entry.session.detach(entry.carrier, now);
            entry.wake.notify_one();
            !entry.is_released
        });
    }
}

/// One session on a link, as the application's side uses it. Dropping it resets what is not complete.
pub struct Stream {
    shared: Arc<Shared>,
    id: StreamId,
    wake: Arc<Notify>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("peer", &self.shared.peer)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// Returns the node at the other end.
    pub fn peer(&self) -> NodeId {
        self.shared.peer
    }

    /// Waits until something may have changed since the last call.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }

    /// Waits until the peer has granted the session.
    ///
    /// # Errors
    /// If it has refused, or the link broke.
    pub async fn opened(&self) -> Result<(), Code> {
        loop {
            match self.state() {
                State::Open => return Ok(()),
                State::Ended(end) => return end.code().map_or(Ok(()), Err),
                State::Opening | State::Asked => self.changed().await,
            }
        }
    }

    /// Returns where the session stands.
    pub fn state(&self) -> State {
        const GONE: State = State::Ended(session::End::Expired);
        self.shared.lock().entries.get(&self.id).map_or(GONE, |entry| entry.session.state())
    }

    /// Returns what went through so far.
    pub fn stats(&self) -> session::Stats {
        let table = self.shared.lock();
        table.entries.get(&self.id).map(|entry| entry.session.stats()).unwrap_or_default()
    }

    /// Grants the peer's opening.
    pub fn confirm(&self) {
        self.with((), |entry, _| entry.session.confirm());
    }

    /// Ends both directions at once.
    pub fn reset(&self, code: Code) {
        self.with((), |entry, _| entry.session.reset(code));
        self.wake.notify_one();
    }

    /// Says that nothing more is written.
    pub fn finish(&self) {
        self.with((), |entry, _| {
            entry.is_written = true;
            entry.session.finish();
        });
    }

    /// Returns how many bytes [`write`](Self::write) takes now.
    pub fn writable(&self) -> usize {
        self.with(0, |entry, _| entry.session.writable())
    }

    /// Takes as much as there is room for off the front of `bytes`.
    ///
    /// # Errors
    /// If the session was finished or has ended.
    pub fn write(&self, bytes: &mut Bytes) -> Result<usize, WriteError> {
        self.with(Err(WriteError::Ended), |entry, _| entry.session.write(bytes))
    }

    /// Takes pieces that have arrived, about `max_bytes` at most, and says what follows them.
    pub fn read(&self, pieces: &mut Vec<Bytes>, max_bytes: usize) -> Read {
        self.with(Read::Reset(Code::Expired), |entry, now| {
            let mut bytes = 0;
            while bytes < max_bytes {
                match entry.session.read(now) {
                    Read::Bytes(piece) => {
                        bytes += piece.len();
                        pieces.push(piece);
                    }
                    Read::Finished => {
                        entry.is_read = true;
                        return Read::Finished;
                    }
                    end @ (Read::Pending | Read::Reset(_)) => return end,
                }
            }
            Read::Pending
        })
    }

    /// Sends a datagram, if and when the link takes it.
    ///
    /// # Errors
    /// If it is longer than 1,500 bytes, or the session has ended.
    pub fn write_datagram(&self, datagram: Bytes) -> Result<(), WriteError> {
        self.with(Err(WriteError::Ended), |entry, _| entry.session.write_datagram(datagram))
    }

    /// Takes the next datagram that arrived.
    pub fn read_datagram(&self) -> Option<Bytes> {
        self.with(None, |entry, _| entry.session.read_datagram())
    }

    fn with<T>(&self, gone: T, act: impl FnOnce(&mut Entry, Instant) -> T) -> T {
        let mut table = self.shared.lock();
        let table = &mut *table;
        let Some(entry) = table.entries.get_mut(&self.id) else { return gone };
        let result = act(entry, self.shared.clock.mono());
        if entry.session.ready().next().is_some() {
            table.link.mark_ready(self.id);
            self.shared.kick.notify_one();
        } else if let Some(due_at) = entry.session.poll_timeout()
            && table.wakes_at.is_none_or(|at| due_at < at)
        {
            table.wakes_at = Some(due_at);
            self.shared.kick.notify_one();
        }
        result
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut table = self.shared.lock();
        let table = &mut *table;
        let Some(entry) = table.entries.get_mut(&self.id) else { return };
        entry.is_released = true;
        let is_complete = entry.is_written && entry.is_read;
        if !matches!(entry.session.state(), State::Ended(_)) && !is_complete {
            entry.session.reset(Code::ApplicationReset);
        }
        if entry.session.is_over() || table.link.closed().is_some() {
            table.entries.remove(&self.id);
        } else {
            table.link.mark_ready(self.id);
        }
        self.shared.kick.notify_one();
    }
}

impl From<AttachError> for OpenFailed {
    fn from(error: AttachError) -> Self {
        Self::Session(error)
    }
}
