//! The tunnel-node's decisions: each tunnel that is asked of it is checked, its device found and proven, and then served or
//! refused with a reason (Rules 6.12 to 6.14).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::codec::{Candidate, Service};
use peerage_wire::frame::Code;
use peerage_wire::id::NodeId;
use peerage_wire::limits::MAX_FLIGHT;
use peerage_wire::message::{Reply, TunnelRequest};
use peerage_wire::open::Open;
use peerage_wire::record::{EndDevice, Table};
use peerage_wire::time::{Instant, Now};

use super::paths::Came;
use super::queries::Query;
use super::sync::Gate;
use super::{Discard, Event, Found, Node, Output, PinProof, TaskId, TunnelId, Watched};
use crate::endpoint::ReplyTo;
use crate::sizes::TableSize;
use crate::trust::{Member, Trust};

/// How long the decision about one tunnel may take, a sweep for a device that has moved included.
const OPENING_TIMEOUT: Duration = Duration::from_secs(15);

/// Most tunnels that are served at once, and most of one peer: one member must not take all.
pub const MAX_SERVED: usize = 10_000;
/// See [`MAX_SERVED`].
pub const MAX_SERVED_PER_PEER: usize = 1_024;

/// Most TunnelRequests that wait for the shell to prepare a handshake. It answers at once, so that more than one would already be
/// odd; what comes beyond is answered without.
const MAX_ANSWERING: usize = 64;

/// TunnelRequests that wait for the shell to prepare a handshake.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    answering: BTreeMap<TaskId, (ReplyTo, Vec<Candidate>)>,
}

impl Handshakes {
    pub(super) fn size(&self) -> TableSize {
        TableSize::new("handshakes to be answered", self.answering.len(), MAX_ANSWERING)
    }
}

/// A tunnel that was asked for and is not decided yet.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    peer: NodeId,
    open: Open,
    since: Instant,
    pub(super) deadline: Instant,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for what has to be known about the peer and the domain.
    Checking,
    Finding(TaskId),
    Proving(TaskId, SocketAddr),
}

/// What the checks of an opening came to.
enum Check {
    Wait,
    Refuse(Code),
    Find,
}

impl Node {
    /// Tells a member of the own domain where this node waits for links, prepares the handshake that it has begun, and meets it at a
    /// relay; permits nothing (Rules 6.17, 6.32 and 7.29).
    pub(super) fn tunnel_requested(
        &mut self,
        (from, came): (&Member, Came),
        mut request: TunnelRequest,
        reply_to: ReplyTo,
        now: Now,
    ) {
        let served = self.devices.get(&request.device).is_some_and(|(_, device)| self.could_serve(device));
        if from.id.domain != self.me.id.domain || !served {
            return self.endpoint.discard(Discard::Forbidden);
        }
        self.meet_at_relay(from, &request, now);
        // The link is on its way, and whoever opens a tunnel on it has to be a member (Rule 6.14): what that takes is asked meanwhile.
        self.membership(from.id, now.mono, now);
        let candidates = self.opened_candidates((from.id, came), &request, now);
        match request.hello.take() {
            Some(hello) if self.handshakes.answering.len() < MAX_ANSWERING => {
                let task = self.new_task();
                self.handshakes.answering.insert(task, (reply_to, candidates));
                let (peer, identity) = (from.id, from.identity);
                self.outputs.push_back(Output::AnswerHandshake { task, peer, identity, hello });
            }
            Some(_) | None => self.path_opened(&reply_to, candidates, None),
        }
        self.path_asked(from, came, &request, now);
    }

    /// The shell has prepared a handshake, or has not.
    pub(super) fn handshake_answered(&mut self, task: TaskId, flight: Option<Bytes>) {
        if let Some((reply_to, candidates)) = self.handshakes.answering.remove(&task) {
            self.path_opened(&reply_to, candidates, flight);
        }
    }

    fn path_opened(&mut self, reply_to: &ReplyTo, candidates: Vec<Candidate>, flight: Option<Bytes>) {
        let flight = flight.filter(|flight| flight.len() <= MAX_FLIGHT);
        let reply = Reply::TunnelOpened { candidates, flight };
        self.endpoint.reply(reply_to, &reply);
    }

    pub(super) fn open_asked(&mut self, tunnel: TunnelId, peer: NodeId, open: Open, now: Now) {
        let of_peer = self.watched.values().filter(|w| w.serving && w.peer == peer).count()
            + self.openings.values().filter(|opening| opening.peer == peer).count();
        let all = self.watched.len() + self.openings.len();
        if all >= MAX_SERVED || of_peer >= MAX_SERVED_PER_PEER {
            return self.refuse(tunnel, peer, Code::Limit);
        }
        let (since, deadline) = (now.mono, now.mono.after(OPENING_TIMEOUT));
        let opening = Opening { peer, open, since, deadline, stage: Stage::Checking };
        self.openings.insert(tunnel, opening);
    }

    pub(super) fn refuse(&mut self, tunnel: TunnelId, peer: NodeId, code: Code) {
        self.openings.remove(&tunnel);
        self.outputs.push_back(Output::CloseTunnel { tunnel, code });
        self.event(Event::TunnelRefused { peer, code });
    }

    pub(super) fn openings_timeout(&mut self, now: Now) {
        let late = self.openings.iter().filter(|(_, opening)| opening.deadline <= now.mono);
        let late: Vec<_> = late.map(|(tunnel, o)| (*tunnel, o.peer, o.stage)).collect();
        for (tunnel, peer, stage) in late {
            let code = match stage {
                Stage::Checking => Code::StaleHead,
                Stage::Finding(_) | Stage::Proving(..) => Code::DeviceUnreachable,
            };
            self.refuse(tunnel, peer, code);
        }
    }

    /// Looks again at every opening that waits for something to become known.
    pub(super) fn advance_openings(&mut self, now: Now) {
        let checking = self.openings.iter().filter(|(_, opening)| opening.stage == Stage::Checking);
        for tunnel in checking.map(|(tunnel, _)| *tunnel).collect::<Vec<_>>() {
            let Some(opening) = self.openings.get(&tunnel).cloned() else { continue };
            match self.check(&opening, now) {
                Check::Wait => {}
                Check::Refuse(code) => self.refuse(tunnel, opening.peer, code),
                Check::Find => self.find_for(tunnel, &opening),
            }
        }
    }

    /// The checks of Rule 6.14, in an order that tells a stranger least.
    fn check(&mut self, opening: &Opening, now: Now) -> Check {
        let peer = opening.peer;
        if peer.domain != self.me.id.domain {
            return Check::Refuse(Code::ForeignDomain);
        }
        match self.gate(opening.since, now) {
            Gate::Wait => return Check::Wait,
            Gate::Stale => return Check::Refuse(Code::StaleHead),
            Gate::Open => {}
        }
        if self.trust.is_revoked(&peer) || self.is_revoked() {
            return Check::Refuse(Code::Revoked);
        }
        match self.membership(peer, opening.since, now) {
            None => return Check::Wait,
            Some(false) => return Check::Refuse(Code::NotMember),
            Some(true) => {}
        }
        let Some((_, device)) = self.devices.get(&opening.open.device) else {
            return Check::Refuse(Code::UnknownDevice);
        };
        if device.service(&opening.open.service).is_none() {
            return Check::Refuse(Code::UnknownService);
        }
        if !device.users.is_empty() && !device.users.contains(&peer) {
            return Check::Refuse(Code::NotAllowed);
        }
        if !self.could_serve(device) {
            return Check::Refuse(Code::DeviceUnreachable);
        }
        Check::Find
    }

    /// Returns whether a node is a valid member; `None` while that is being looked up.
    pub(super) fn membership(&mut self, node: NodeId, since: Instant, now: Now) -> Option<bool> {
        let held = self.records.get(Table::Node, node.domain, node.record_key());
        let time = self.endpoint.time(now);
        if held.and_then(Trust::member).is_some_and(|member| member.expires > time) {
            return Some(true);
        }
        let query = Query::Node(node);
        if self.is_looking_up(&query) {
            return None;
        }
        // A look-up that was begun for this opening has ended without a record.
        if self.looked_up_lately(&node, since) {
            return Some(false);
        }
        self.note_looked_up(node, now.mono);
        self.look_up(query, None);
        None
    }

    fn find_for(&mut self, tunnel: TunnelId, opening: &Opening) {
        let Some((_, device)) = self.devices.get(&opening.open.device) else { return };
        let (mac, interfaces) = (device.mac, self.places.interfaces_at(&device.site));
        let last = self.serving.last_seen.get(&device.device).copied();
        let task = self.new_task();
        if let Some(opening) = self.openings.get_mut(&tunnel) {
            opening.stage = Stage::Finding(task);
        }
        self.outputs.push_back(Output::FindDevice { task, mac, last, interfaces });
    }

    /// Takes the result of a search of the LAN for an opening.
    pub(super) fn opening_device_found(&mut self, task: TaskId, found: Option<Found>) {
        let opening = self.openings.iter().find(|(_, opening)| opening.stage == Stage::Finding(task));
        if let Some(tunnel) = opening.map(|(tunnel, _)| *tunnel) {
            self.opening_found(tunnel, found);
        }
    }

    fn opening_found(&mut self, tunnel: TunnelId, found: Option<Found>) {
        let Some(opening) = self.openings.get(&tunnel).cloned() else { return };
        let Some(found) = found else {
            return self.refuse(tunnel, opening.peer, Code::DeviceUnreachable);
        };
        let Some((_, device)) = self.devices.get(&opening.open.device).cloned() else {
            return self.refuse(tunnel, opening.peer, Code::UnknownDevice);
        };
        let Some(service) = device.service(&opening.open.service).cloned() else {
            return self.refuse(tunnel, opening.peer, Code::UnknownService);
        };
        if !self.may_dial_device(found) {
            return self.refuse(tunnel, opening.peer, Code::DeviceUnreachable);
        }
        self.serving.last_seen.insert(device.device, found.address);
        let address = SocketAddr::new(found.address, service.port);
        match proving_port(&device, &service) {
            Some(port) => {
                let task = self.new_task();
                if let Some(opening) = self.openings.get_mut(&tunnel) {
                    opening.stage = Stage::Proving(task, address);
                }
                let at = SocketAddr::new(found.address, port);
                self.outputs.push_back(Output::ProvePin { task, address: at, pins: device.pins });
            }
            None => self.serve(tunnel, address, &service),
        }
    }

    /// Returns whether a device may be dialled where it was found (Rule 6.13).
    pub(super) fn may_dial_device(&self, found: Found) -> bool {
        if self.one_machine && found.address.is_loopback() {
            return true;
        }
        let via = self.interfaces.iter().find(|interface| interface.index == found.interface);
        via.is_some_and(|via| crate::dial::forbidden_device(found.address, via, &self.interfaces).is_none())
    }

    pub(super) fn pin_proven(&mut self, task: TaskId, proof: PinProof, now: Now) {
        if self.local_pin_proven(task, proof, now) {
            return;
        }
        let proving = self.openings.iter().find_map(|(tunnel, opening)| match opening.stage {
            Stage::Proving(waiting, address) if waiting == task => Some((*tunnel, address)),
            Stage::Checking | Stage::Finding(_) | Stage::Proving(..) => None,
        });
        let Some((tunnel, address)) = proving else { return };
        let Some(opening) = self.openings.get(&tunnel).cloned() else { return };
        let service = self.devices.get(&opening.open.device);
        let service = service.and_then(|(_, device)| device.service(&opening.open.service)).cloned();
        match (proof, service) {
            (PinProof::Matches, Some(service)) => self.serve(tunnel, address, &service),
            (PinProof::Matches, None) => self.refuse(tunnel, opening.peer, Code::UnknownService),
            (PinProof::Differs(_), _) => self.refuse(tunnel, opening.peer, Code::PinMismatch),
            (PinProof::NoAnswer, _) => self.refuse(tunnel, opening.peer, Code::DeviceUnreachable),
        }
    }

    fn serve(&mut self, tunnel: TunnelId, address: SocketAddr, service: &Service) {
        let Some(opening) = self.openings.remove(&tunnel) else { return };
        let watched = Watched {
            peer: opening.peer,
            device: opening.open.device,
            service: opening.open.service,
            serving: true,
        };
        self.watched.insert(tunnel, watched);
        self.outputs.push_back(Output::ServeTunnel { tunnel, address, protocol: service.protocol });
    }
}

/// Returns the port at which a device can prove its certificate: the asked service's own if it speaks TLS, else that of
/// any service that does. None if the device has no pins.
pub(super) fn proving_port(device: &EndDevice, service: &Service) -> Option<u16> {
    if device.pins.is_empty() {
        return None;
    }
    if service.tls {
        return Some(service.port);
    }
    device.services.iter().find(|service| service.tls).map(|service| service.port)
}
