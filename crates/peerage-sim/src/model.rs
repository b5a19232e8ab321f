//! What a user would expect: the reference beside the real machines, in one page.
//!
//! *Tunnels.* Each direction is a queue of bytes with an end. What one application wrote, the other reads, once and in order; it
//! sees the end after all bytes. A tunnel ends complete, or broken off by somebody who had a reason.
//!
//! *Records.* A device is what the vendor decided last, for everybody, some time later; so is who is a member. The model knows nothing of
//! tables, versions, epochs and signatures.

use std::collections::BTreeMap;

use peerage_proto::session;
use peerage_wire::id::{DeviceId, Domain, NodeId, SessionId};
use peerage_wire::record::EndDevice;
use peerage_wire::time::Instant;

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
    /// Since when its computers cannot reach each other.
    pub apart_since: Option<Instant>,
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

/// How a computer stands to its organisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It belongs to it.
    Member,
    /// It was shut out.
    Revoked,
    /// It has gone by itself.
    Left,
}

/// What the vendor decided.
#[derive(Debug, Default)]
pub struct Vendor {
    devices: BTreeMap<(Domain, DeviceId), EndDevice>,
    members: BTreeMap<NodeId, Standing>,
}

impl Vendor {
    /// A device is to be used like this, or not at all. Where it is seen is nobody's decision.
    pub fn decide_device(&mut self, domain: Domain, device: DeviceId, wanted: Option<EndDevice>) {
        match wanted {
            Some(wanted) => {
                self.devices.insert((domain, device), EndDevice { site: Vec::new(), ..wanted });
            }
            None => {
                self.devices.remove(&(domain, device));
            }
        }
    }

    /// A computer is a member, or is one no more; who was shut out or has left stays so.
    pub fn decide_member(&mut self, node: NodeId, standing: Standing) {
        let held = self.members.entry(node).or_insert(Standing::Member);
        if *held == Standing::Member {
            *held = standing;
        }
    }

    /// Returns the devices of an organisation, ascending by their ids.
    pub fn devices(&self, domain: Domain) -> impl Iterator<Item = &EndDevice> {
        self.devices.iter().filter(move |((of, _), _)| *of == domain).map(|(_, device)| device)
    }

    /// Returns everybody who was ever a member.
    pub fn members(&self) -> impl Iterator<Item = (&NodeId, &Standing)> {
        self.members.iter()
    }
}

/// Everything that is expected.
#[derive(Debug, Default)]
pub struct Model {
    /// What was decided.
    pub vendor: Vendor,
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

    /// Notes which tunnels' computers, the user's and the tunnel-node's, cannot reach each other now. A tunnel may end when that lasts
    /// as long as a session lives without a carrier.
    pub fn note_apart(&mut self, now: Instant, are_apart: impl Fn(usize, usize) -> bool) {
        let open = self.tunnels.values_mut().filter(|tunnel| !tunnel.is_excused && tunnel.ends == [None; 2]);
        for tunnel in open {
            let is_apart = tunnel.server.is_some_and(|server| are_apart(tunnel.user, server));
            tunnel.apart_since = is_apart.then(|| tunnel.apart_since.unwrap_or(now));
            let since = tunnel.apart_since.unwrap_or(now);
            tunnel.is_excused = now - since >= session::CARRIERLESS_LIFETIME;
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
