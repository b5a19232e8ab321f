//! Sessions, as the tasks of applications and devices use them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use peerage_proto::link::bundle::SessionKey;
use peerage_proto::session::{self, Read, Session, State, WriteError};
use peerage_wire::frame::Code;
use peerage_wire::id::NodeId;
use peerage_wire::time::Instant;

use super::Path;
use super::peer::{Peer, User};

/// One session, as the application's side uses it; it goes on whatever becomes of the links that carry it. Dropping it resets what is
/// not complete.
pub struct Stream {
    peer: Arc<Peer>,
    key: SessionKey,
    user: Arc<User>,
    /// The application's side has said its end, and has seen the peer's.
    is_written: AtomicBool,
    is_read: AtomicBool,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("peer", &self.peer.id).field("key", &self.key).finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) const fn new(peer: Arc<Peer>, key: SessionKey, user: Arc<User>) -> Self {
        let (is_written, is_read) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { peer, key, user, is_written, is_read }
    }

    /// Returns the node at the other end.
    pub fn peer(&self) -> NodeId {
        self.peer.id
    }

    /// Waits until something may have changed since the last call.
    pub async fn changed(&self) {
        self.user.changed.notified().await;
    }

    /// Waits until the bytes take another path than at the last call.
    pub async fn moved(&self) {
        self.user.moved.notified().await;
    }

    /// Returns the path that the bytes take; none while no link carries the session.
    pub fn path(&self) -> Option<Path> {
        self.peer.act(|state, _| state.bundle.link_of(self.key).and_then(|link| state.path(link))).flatten()
    }

    /// Waits until the peer has granted the session.
    ///
    /// # Errors
    /// If it has refused, or cannot be reached.
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
        self.peer.act(|state, _| state.bundle.session(self.key).map(Session::state)).flatten().unwrap_or(GONE)
    }

    /// Returns whether a link carries the session, as far as it is known.
    pub fn is_carried(&self) -> bool {
        let is_needy = self.peer.act(|state, _| state.bundle.session(self.key).map(Session::needs_carrier));
        is_needy.flatten() == Some(false)
    }

    /// Returns whether the session was ever moved or resumed: if it fails, bytes may have reached the device although nothing came
    /// back.
    pub fn was_resumed(&self) -> bool {
        let was_resumed = self.peer.act(|state, _| state.bundle.session(self.key).map(Session::was_resumed));
        was_resumed.flatten().unwrap_or(true)
    }

    /// Returns what went through so far.
    pub fn stats(&self) -> session::Stats {
        let stats = self.peer.act(|state, _| state.bundle.session(self.key).map(Session::stats));
        stats.flatten().unwrap_or_default()
    }

    /// Grants the peer's opening.
    pub fn confirm(&self) {
        self.with((), |session, _| session.confirm());
    }

    /// Ends both directions at once.
    pub fn reset(&self, code: Code) {
        self.with((), |session, _| session.reset(code));
        self.user.changed.notify_one();
    }

    /// Says that nothing more is written.
    pub fn finish(&self) {
        self.is_written.store(true, Ordering::Relaxed);
        self.with((), |session, _| session.finish());
    }

    /// Returns how many bytes [`write`](Self::write) takes now.
    pub fn writable(&self) -> usize {
        self.with(0, |session, _| session.writable())
    }

    /// Takes as much as there is room for off the front of `bytes`.
    ///
    /// # Errors
    /// If the session was finished or has ended.
    pub fn write(&self, bytes: &mut Bytes) -> Result<usize, WriteError> {
        self.with(Err(WriteError::Ended), |session, _| session.write(bytes))
    }

    /// Takes pieces that have arrived, about `max_bytes` at most, and says what follows them.
    pub fn read(&self, pieces: &mut Vec<Bytes>, max_bytes: usize) -> Read {
        let end = self.with(Read::Reset(Code::Expired), |session, now| {
            let mut bytes = 0;
            while bytes < max_bytes {
                match session.read(now) {
                    Read::Bytes(piece) => {
                        bytes += piece.len();
                        pieces.push(piece);
                    }
                    end @ (Read::Finished | Read::Pending | Read::Reset(_)) => return end,
                }
            }
            Read::Pending
        });
        if end == Read::Finished {
            self.is_read.store(true, Ordering::Relaxed);
        }
        end
    }

    /// Sends a datagram, if and when a link takes it.
    ///
    /// # Errors
    /// If it is longer than 1,500 bytes, or the session has ended.
    pub fn write_datagram(&self, datagram: Bytes) -> Result<(), WriteError> {
        self.with(Err(WriteError::Ended), |session, _| session.write_datagram(datagram))
    }

    /// Takes the next datagram that arrived.
    pub fn read_datagram(&self) -> Option<Bytes> {
        self.with(None, |session, _| session.read_datagram())
    }

    fn with<T>(&self, gone: T, act: impl FnOnce(&mut Session, Instant) -> T) -> T {
        self.peer.act(|state, now| state.bundle.with(self.key, now, act)).flatten().unwrap_or(gone)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let is_complete = *self.is_written.get_mut() && *self.is_read.get_mut();
        self.peer.act(|state, now| {
            state.users.remove(&self.key);
            state.bundle.with(self.key, now, |session, _| {
                if !is_complete {
                    session.reset(Code::ApplicationReset);
                }
            });
            state.bundle.release(self.key, now);
        });
    }
}
