//! What a user would expect: the reference beside the real machines, in one page.
//!
//! *Tunnels.* Each direction is a queue of bytes with an end. What one application wrote, the other reads, once and in order; it
//! sees the end after all bytes. A tunnel ends complete, or broken off by somebody who had a reason.
//!
//! *Records.* A device is what the ledger said last, for everybody, some time later. That part of the model is the ledger itself.

use std::collections::BTreeMap;

use peerage_proto::session;
use peerage_wire::id::{DeviceId, SessionId};

use crate::app::{Deed, End, Script};
use crate::host::ErrandId;

/// One direction of a tunnel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direction {
    /// Bytes written so far.
    pub written: u64,
    /// Bytes read so far.
    pub read: u64,
    /// The writer will write no more.
    pub is_finished: bool,
    /// The reader has seen the end.
    pub is_ended: bool,
}

/// A tunnel as both applications see it.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// For whose wish.
    pub errand: ErrandId,
    /// The user's computer.
    pub user: usize,
    /// The tunnel-node's computer, once it was asked.
    pub server: Option<usize>,
    /// To which device.
    pub device: DeviceId,
    /// What should happen.
    pub script: Script,
    /// What the user writes, and what the device writes.
    pub directions: [Direction; 2],
    /// The user's end knows that it was granted.
    pub was_opened: bool,
    /// How each end ended.
    pub ends: [Option<session::End>; 2],
    /// Something happened for which it may break: a crash, a revocation, a device that went away.
    pub is_excused: bool,
}

const fn index(end: End) -> usize {
    match end {
        End::User => 0,
        End::Device => 1,
    }
}

impl Tunnel {
    /// Returns the direction in which an end writes.
    pub fn written_by(&self, end: End) -> Direction {
        self.directions.get(index(end)).copied().unwrap_or_default()
    }

    /// Returns how an end ended.
    pub fn end(&self, end: End) -> Option<session::End> {
        self.ends.get(index(end)).copied().flatten()
    }

    /// Returns whether everything arrived in both directions.
    pub fn is_complete(&self) -> bool {
        let done = |d: &Direction| d.is_finished && d.is_ended && d.read == d.written;
        self.directions.iter().all(done)
    }
}

/// Everything that is expected.
#[derive(Debug, Default)]
pub struct Model {
    tunnels: BTreeMap<SessionId, Tunnel>,
}

impl Model {
    /// A tunnel is asked for.
    pub fn begin(&mut self, session: SessionId, tunnel: Tunnel) {
        self.tunnels.insert(session, tunnel);
    }

    /// An application acted.
    pub fn act(&mut self, session: SessionId, end: End, deed: &Deed) {
        let Some(tunnel) = self.tunnels.get_mut(&session) else { return };
        let writer = match deed {
            Deed::Wrote(_) | Deed::Finished => end,
            Deed::Read(_) | Deed::SawEnd | Deed::SawReset(_) | Deed::Broke => end.other(),
        };
        if matches!(deed, Deed::Broke) {
            tunnel.is_excused = true;
        }
        let Some(direction) = tunnel.directions.get_mut(index(writer)) else { return };
        match deed {
            Deed::Wrote(bytes) => direction.written = direction.written.saturating_add(*bytes),
            Deed::Finished => direction.is_finished = true,
            Deed::Read(bytes) => direction.read = direction.read.saturating_add(bytes.len() as u64),
            Deed::SawEnd => direction.is_ended = true,
            Deed::SawReset(_) | Deed::Broke => {}
        }
    }

    /// An end of a tunnel has ended.
    pub fn end(&mut self, session: SessionId, end: End, how: session::End) {
        let slot = self.tunnels.get_mut(&session).and_then(|tunnel| tunnel.ends.get_mut(index(end)));
        if let Some(slot) = slot {
            *slot = Some(how);
        }
    }

    /// Something happened for which these tunnels may break.
    pub fn excuse(&mut self, which: impl Fn(&Tunnel) -> bool) {
        for tunnel in self.tunnels.values_mut().filter(|tunnel| which(tunnel)) {
            tunnel.is_excused = true;
        }
    }

    /// The user's end knows that a tunnel was granted.
    pub fn opened(&mut self, session: SessionId) {
        if let Some(tunnel) = self.tunnels.get_mut(&session) {
            tunnel.was_opened = true;
        }
    }

    /// A tunnel-node was asked for a tunnel.
    pub fn asked(&mut self, session: SessionId, server: usize) {
        if let Some(tunnel) = self.tunnels.get_mut(&session) {
            tunnel.server = Some(server);
        }
    }

    /// Returns a tunnel.
    pub fn tunnel(&self, session: &SessionId) -> Option<&Tunnel> {
        self.tunnels.get(session)
    }

    /// Returns all tunnels.
    pub fn tunnels(&self) -> impl Iterator<Item = (&SessionId, &Tunnel)> {
        self.tunnels.iter()
    }
}
