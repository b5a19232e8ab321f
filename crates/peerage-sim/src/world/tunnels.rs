//! Connections that carry links, and the devices at their ends.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::link::Side;
use peerage_proto::link::bundle::{Dial, PathKind};
use peerage_proto::node::TunnelId;
use peerage_wire::frame::Code;
use peerage_wire::id::NodeId;
use peerage_wire::time::Instant;

use super::{Bug, Due, World};
use crate::app::{App, Deed, End};
use crate::host::ErrandId;
use crate::invariants::Fact;
use crate::network::{Party, Place};
use crate::shell::{CarrierId, Want};

/// How long a connection attempt waits for an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How soon after an attempt that is not answered the next candidate is tried beside it, as programs do.
const STAGGER: Duration = Duration::from_millis(250);

/// How long bytes wait before they are tried again on a path that carries nothing.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// After how long without progress the sender's system gives a connection up.
const GIVE_UP: Duration = Duration::from_secs(120);

/// One direction of a connection.
#[derive(Debug, Default)]
struct Pipe {
    chunks: VecDeque<Bytes>,
    last_at: Instant,
    stuck_since: Option<Instant>,
}

/// A connection between two computers: the bytes of each direction in order, cut anywhere.
#[derive(Debug)]
pub(super) struct Carrier {
    /// The computer that dialled, and the one that answered, each in one run.
    ends: [(usize, u32); 2],
    /// Towards the first, towards the second.
    pipes: [Pipe; 2],
    stalled_until: Instant,
    /// What is sent goes nowhere, and nobody says so.
    is_forgotten: bool,
}

impl Carrier {
    pub(super) const fn end_stall(&mut self) {
        self.stalled_until = Instant::from_micros(0);
    }
}

impl World {
    pub(super) fn want(&mut self, index: usize, want: Want) {
        match want {
            Want::Tell(input) => self.host_input(index, *input),
            Want::Send(carrier, bytes) => self.write(carrier, index, &bytes),
            Want::Close(carrier) => self.close_carrier(carrier, index),
            Want::Dial(peer, candidates, dial) => {
                let boot = self.hosts.get(index).map_or(0, |host| host.boot);
                self.dial((index, boot), (peer, dial), candidates, 0);
            }
            Want::Deed(session, end, deed) => self.deed(index, session, end, deed),
            Want::Asked(tunnel, peer, open) => {
                self.model.asked(open.session, index);
                self.observe(&Fact::Asked { host: index, peer, open: &open });
                if self.setup.planted == Some(Bug::ServesAnybody) {
                    let address = self.devices.first().map(|d| SocketAddr::new(d.address, 631));
                    self.confirm(index, tunnel, address);
                }
            }
            Want::Opened(session) => {
                self.model.opened(session);
                let errand = self.model.tunnel(&session).map(|tunnel| tunnel.errand);
                if let Some(errand) = errand.and_then(|errand| self.errands.get_mut(&errand)) {
                    errand.reached_at.get_or_insert(self.now);
                }
            }
            Want::Ended(session, end, how) => {
                if self.setup.is_told {
                    self.tell(Party::Host(index), &format!("{session:?} {end:?} {how:?}"));
                }
                self.model.end(session, end, how);
                let never_opened = end == End::User && how.code().is_some();
                let errand = self.model.tunnel(&session).map(|tunnel| tunnel.errand);
                if let Some(errand) = errand.filter(|_| never_opened) {
                    self.try_again(errand);
                }
            }
        }
    }

    fn deed(&mut self, index: usize, session: peerage_wire::id::SessionId, end: End, deed: Deed) {
        let doubles = self.setup.planted == Some(Bug::DoublesBytes) && self.chance.happens(50);
        let times = if doubles && matches!(deed, Deed::Read(_)) { 2 } else { 1 };
        for _ in 0..times {
            self.model.act(session, end, &deed);
            self.observe(&Fact::Deed { host: index, session, end, deed: &deed });
        }
    }

    // ---- devices ----------------------------------------------------------------------------

    pub(super) fn device_connected(
        &mut self,
        index: usize,
        boot: u32,
        tunnel: TunnelId,
        address: SocketAddr,
    ) {
        let Some(host) = self.hosts.get(index).filter(|host| host.boot == boot && host.node.is_some()) else {
            return;
        };
        if let Some(until) = host.asleep_until {
            return self.schedule(until, Due::Connected { host: index, boot, tunnel, address });
        }
        let address = self.device_at(index, address).map(|_| address);
        self.confirm(index, tunnel, address);
    }

    /// The device has taken the connection, or not.
    fn confirm(&mut self, index: usize, tunnel: TunnelId, address: Option<SocketAddr>) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(index) else { return };
        let at = host.now(now).mono;
        let Some(entry) = host.shell.tunnel(tunnel) else { return };
        let (session, peer, device, service) =
            (entry.session, entry.peer, entry.device, entry.service.clone());
        let Some(address) = address else {
            host.shell.close_tunnel(tunnel, Code::DeviceUnreachable, at);
            return self.drain_host(index);
        };
        let script = self.model.tunnel(&session).map(|tunnel| tunnel.script);
        let Some(script) = script else { return };
        host.shell.confirm(tunnel, App::new(session, End::Device, script, at), at);
        self.observe(&Fact::Served { host: index, peer, device, service: &service, address });
        self.drain_host(index);
    }

    pub(super) fn node_closes(&mut self, index: usize, tunnel: TunnelId, code: Code) {
        if matches!(self.setup.planted, Some(Bug::KeepsTunnels | Bug::ServesAnybody)) {
            return;
        }
        let now = self.now;
        let Some(host) = self.hosts.get_mut(index) else { return };
        let at = host.now(now).mono;
        let session = host.shell.tunnel(tunnel).map(|tunnel| tunnel.session);
        if let Some(session) = session {
            let errand = self.model.tunnel(&session).map(|tunnel| tunnel.errand);
            self.model.excuse(|tunnel| Some(tunnel.errand) == errand);
        }
        host.shell.close_tunnel(tunnel, code, at);
    }

    // ---- connecting -------------------------------------------------------------------------

    /// Tries the candidates one after the other.
    pub(super) fn dial(
        &mut self,
        (index, boot): (usize, u32),
        (peer, dial): (NodeId, Option<Dial>),
        candidates: Vec<SocketAddr>,
        next: usize,
    ) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(index).filter(|host| host.boot == boot && host.node.is_some())
        else {
            return;
        };
        let (site, at) = (host.site, host.now(now).mono);
        if let Some(until) = host.asleep_until {
            return self.schedule(until, Due::Dial { host: index, boot, peer, dial, candidates, next });
        }
        let Some(candidate) = candidates.get(next).copied() else {
            host.shell.dial_failed(peer, dial, at);
            return self.drain_host(index);
        };
        let next = next.saturating_add(1);
        let Some(other) = self.answering(site, candidate) else {
            let wait = if next < candidates.len() { STAGGER } else { CONNECT_TIMEOUT };
            return self.schedule_in(wait, Due::Dial { host: index, boot, peer, dial, candidates, next });
        };
        let far = self.hosts.get(other).map_or(site, |host| host.site);
        // TCP's and TLS's handshakes: two round trips.
        let span: Duration = (0..4).map(|_| self.network.latency(site, far)).sum();
        if self.hosts.get(other).map(|host| host.id) != Some(peer) {
            // Somebody else answers: TLS proves another key.
            return self.schedule_in(span, Due::Dial { host: index, boot, peer, dial, candidates, next });
        }
        self.connect((index, boot, dial), other, span);
    }

    /// Returns the computer that takes connections at an address, seen from a site.
    fn answering(&self, site: usize, address: SocketAddr) -> Option<usize> {
        let place = self.network.listener(site, address)?;
        let Place::Lan(far, inner) = place else { return None };
        let other = self.host_at(far, inner)?;
        let is_there = self.hosts.get(other).is_some_and(|host| host.is_awake() && host.serves);
        (is_there && self.network.reaches(site, place)).then_some(other)
    }

    /// Both ends have a connection after `span`; the first bytes take that long.
    fn connect(&mut self, (index, boot, dial): (usize, u32, Option<Dial>), other: usize, span: Duration) {
        let id = CarrierId(self.new_id());
        let now = self.now;
        let other_boot = self.hosts.get(other).map_or(0, |host| host.boot);
        let pipe = || Pipe { last_at: now.after(span), ..Pipe::default() };
        let carrier = Carrier {
            ends: [(index, boot), (other, other_boot)],
            pipes: [pipe(), pipe()],
            stalled_until: Instant::default(),
            is_forgotten: false,
        };
        self.carriers.insert(id, carrier);
        let ids = [index, other].map(|host| self.hosts.get(host).map(|host| host.id));
        let [Some(client), Some(server)] = ids else { return };
        for (host, peer, side, dial) in
            [(index, server, Side::Client, dial), (other, client, Side::Server, None)]
        {
            if let Some(host) = self.hosts.get_mut(host) {
                let at = host.now(now).mono;
                host.shell.connected(id, peer, (side, dial, PathKind::Direct), at);
            }
        }
        self.drain_host(other);
        self.drain_host(index);
    }

    /// Makes a connection for a program that keeps no rules, if there is none.
    pub(super) fn intrude(&mut self, index: usize, target: usize, device: usize) {
        let (Some(host), Some(other)) = (self.hosts.get(index), self.hosts.get(target)) else { return };
        let both = host.is_awake() && other.is_awake() && index != target;
        let place = Place::Lan(other.site, other.inner);
        if !both || !self.network.reaches(host.site, place) {
            return;
        }
        let (boot, peer) = (host.boot, other.id);
        let Some(registered) = self.devices.get(device).map(|device| &device.registered) else { return };
        let Some(service) = registered.services.first() else { return };
        let wanted = (registered.device, service.name.clone());
        let id = ErrandId(self.new_id());
        let errand = super::Errand {
            host: index,
            device,
            script: crate::app::Script::PROBE,
            tries_left: 0,
            session: None,
            is_local: false,
            failure: None,
            begun_at: self.now,
            reached_at: None,
        };
        self.errands.insert(id, errand);
        self.open_tunnel(id, (peer, Vec::new()), wanted);
        self.model.excuse(|tunnel| tunnel.errand == id);
        self.connect((index, boot, None), target, Duration::from_millis(50));
    }

    // ---- bytes ------------------------------------------------------------------------------

    fn write(&mut self, id: CarrierId, index: usize, bytes: &Bytes) {
        let Some(carrier) = self.carriers.get(&id) else { return };
        let from = usize::from(carrier.ends[0].0 != index);
        let [near, far] = [from, 1 - from].map(|end| carrier.ends.get(end).map_or(0, |end| end.0));
        let sites = [near, far].map(|host| self.hosts.get(host).map_or(0, |host| host.site));
        let mut rest = bytes.clone();
        while !rest.is_empty() {
            let longest = if self.chance.happens(100) { 40 } else { 20_000 };
            let length = usize::try_from(self.chance.between(1, longest)).unwrap_or(1).min(rest.len());
            let chunk = rest.split_to(length);
            let latency = self.network.latency(sites[0], sites[1]);
            let now = self.now;
            let towards = 1 - from;
            let Some(pipe) = self.carriers.get_mut(&id).and_then(|c| c.pipes.get_mut(towards)) else {
                return;
            };
            pipe.chunks.push_back(chunk);
            pipe.last_at = pipe.last_at.max(now.after(latency));
            let at = pipe.last_at;
            self.schedule(at, Due::Chunk { carrier: id, towards });
        }
    }

    pub(super) fn chunk(&mut self, id: CarrierId, towards: usize) {
        let now = self.now;
        let Some(carrier) = self.carriers.get(&id) else { return };
        let [Some(far), Some(near)] = [towards, 1 - towards].map(|end| carrier.ends.get(end).copied()) else {
            return;
        };
        if self.is_stuck(carrier, near.0, far.0) {
            return self.retry_chunk(id, towards);
        }
        let is_gone = |(host, boot): (usize, u32)| {
            self.hosts.get(host).is_none_or(|host| host.boot != boot || host.node.is_none())
        };
        if is_gone(far) {
            // The other computer answers with a reset if it is on, and with nothing if it is off.
            if self.hosts.get(far.0).is_some_and(|host| host.node.is_some()) {
                return self.carrier_lost(id, 1 - towards);
            }
            return self.retry_chunk(id, towards);
        }
        let Some(pipe) = self.carriers.get_mut(&id).and_then(|carrier| carrier.pipes.get_mut(towards)) else {
            return;
        };
        pipe.stuck_since = None;
        let Some(bytes) = pipe.chunks.pop_front() else { return };
        self.trace.note(now, 6, far.0 as u64, &bytes);
        if let Some(host) = self.hosts.get_mut(near.0) {
            host.shell.delivered(id, bytes.len());
        }
        if let Some(host) = self.hosts.get_mut(far.0) {
            let at = host.now(now).mono;
            host.shell.received(id, &bytes, at);
        }
        self.drain_host(far.0);
        let at = self.hosts.get(near.0).filter(|host| host.is_awake()).map(|host| host.now(now).mono);
        if let (Some(at), Some(host)) = (at, self.hosts.get_mut(near.0)) {
            host.shell.pump(at);
            self.drain_host(near.0);
        }
    }

    fn is_stuck(&self, carrier: &Carrier, near: usize, far: usize) -> bool {
        let (Some(near), Some(far)) = (self.hosts.get(near), self.hosts.get(far)) else { return true };
        carrier.is_forgotten
            || carrier.stalled_until > self.now
            || far.asleep_until.is_some()
            || near.asleep_until.is_some()
            || !self.network.reaches(near.site, Place::Lan(far.site, far.inner))
    }

    fn retry_chunk(&mut self, id: CarrierId, towards: usize) {
        let now = self.now;
        let Some(pipe) = self.carriers.get_mut(&id).and_then(|carrier| carrier.pipes.get_mut(towards)) else {
            return;
        };
        let since = *pipe.stuck_since.get_or_insert(now);
        if now - since > GIVE_UP {
            return self.carrier_lost(id, 1 - towards);
        }
        self.schedule_in(TRY_AGAIN, Due::Chunk { carrier: id, towards });
    }

    /// An end closes: the other notices after what was sent.
    fn close_carrier(&mut self, id: CarrierId, index: usize) {
        let Some(carrier) = self.carriers.get(&id) else { return };
        let far = usize::from(carrier.ends[0].0 == index);
        let at = carrier.pipes.get(far).map_or(self.now, |pipe| pipe.last_at);
        self.schedule(at.after(Duration::from_millis(1)), Due::Lost { carrier: id, end: far });
    }

    /// An end notices that its connection is gone.
    pub(super) fn carrier_lost(&mut self, id: CarrierId, end: usize) {
        let now = self.now;
        let Some(carrier) = self.carriers.get(&id) else { return };
        let Some((host, boot)) = carrier.ends.get(end).copied() else { return };
        let runs = self.hosts.get_mut(host).filter(|host| host.boot == boot && host.node.is_some());
        if let Some(host) = runs {
            if let Some(until) = host.asleep_until {
                return self.schedule(until, Due::Lost { carrier: id, end });
            }
            let at = host.now(now).mono;
            host.shell.lost(id, at);
        }
        let is_left = self.carriers.get(&id).is_some_and(|carrier| {
            carrier.ends.iter().any(|(host, boot)| {
                let host = self.hosts.get(*host).filter(|host| host.boot == *boot && host.node.is_some());
                host.is_some_and(|host| host.shell.carriers().any(|other| other == id))
            })
        });
        if !is_left {
            self.carriers.remove(&id);
        }
        self.drain_host(host);
    }

    fn carriers_of(&self, index: usize) -> Vec<CarrierId> {
        let with = |(_, carrier): &(&CarrierId, &Carrier)| carrier.ends.iter().any(|end| end.0 == index);
        self.carriers.iter().filter(with).map(|(id, _)| *id).collect()
    }

    /// All connections of a computer are reset, which each end notices in its own time.
    pub(super) fn lose_all_carriers(&mut self, index: usize) {
        for id in self.carriers_of(index) {
            for end in 0..2 {
                let delay = self.chance.duration(Duration::from_secs(2));
                self.schedule_in(delay, Due::Lost { carrier: id, end });
            }
            // What is under way is lost.
            if let Some(carrier) = self.carriers.get_mut(&id) {
                carrier.is_forgotten = true;
            }
        }
    }

    pub(super) fn stall_carriers(&mut self, index: usize, span: Duration) {
        let until = self.now.after(span);
        for id in self.carriers_of(index) {
            if let Some(carrier) = self.carriers.get_mut(&id) {
                carrier.stalled_until = carrier.stalled_until.max(until);
            }
        }
    }

    /// Connections that leave a site carry nothing any more, and nobody says so.
    pub(super) fn forget_carriers(&mut self, site: usize) {
        let at = |host: usize| self.hosts.get(host).map(|host| host.site);
        let crossing = self.carriers.iter().filter(|(_, carrier)| {
            let sites = carrier.ends.map(|(host, _)| at(host));
            sites.contains(&Some(site)) && sites[0] != sites[1]
        });
        for id in crossing.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some(carrier) = self.carriers.get_mut(&id) {
                carrier.is_forgotten = true;
            }
        }
    }

    /// Returns how many connections there are.
    pub fn connections(&self) -> usize {
        self.carriers.len()
    }
}
