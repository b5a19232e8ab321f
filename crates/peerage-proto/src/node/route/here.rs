//! On the device's own LAN: with proof that it is the device, no tunnel is needed (Rule 6.19).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::codec::{Service, Transport};
use peerage_wire::id::DeviceId;
use peerage_wire::message::Request;
use peerage_wire::record::{EndDevice, LocalPolicy};
use peerage_wire::time::{Instant, Now};

use super::{FAILED_FOR, MAX_REMEMBERED, ROUTE_TIMEOUT, Search, Stage, Target, chosen_service};
use crate::lan::Interface;
use crate::node::lookup::Server;
use crate::node::openings::proving_port;
use crate::node::{Found, Node, Output, PinProof, Purpose, RequestId, TaskId, Way};

/// Most tunnel-nodes that are looked for on the own LAN for one route: as many as a location elects.
const MAX_NEIGHBOURS: usize = 2;

/// How long the own LAN alone is asked before tunnel-nodes are asked as well. A LAN answers within milliseconds if the system knows where the
/// device is; otherwise all addresses are swept, which takes seconds. Longer makes applications wait for that, shorter takes tunnels that
/// nobody needs.
const HEAD_START: Duration = Duration::from_millis(20);

/// How long a device that was found in that time may take to show its certificate before tunnel-nodes are asked as well. Printers sign
/// slowly; longer makes applications wait for one that hangs, shorter has tunnel-nodes carry what needs none.
const PROOF_PATIENCE: Duration = Duration::from_millis(400);

/// How far it has been found out whether the device is on the own LAN.
#[derive(Clone, Debug)]
pub(super) enum Here {
    /// Those who should be neighbours are asked at these addresses whether they are.
    Meeting(BTreeMap<RequestId, SocketAddr>),
    /// The device is looked for.
    Finding(TaskId),
    /// The device is asked for its certificate.
    Proving(TaskId, SocketAddr),
}

impl Node {
    /// Returns whether the device may be used without a tunnel from one of the own locations, should the proof succeed
    /// (Rule 6.19).
    pub(super) fn may_be_local(&self, device: &EndDevice, service: &Service) -> bool {
        let here = !self.places.interfaces_at(&device.site).is_empty();
        here && match device.local {
            LocalPolicy::Never => false,
            LocalPolicy::Always => true,
            LocalPolicy::WithProof => proving_port(device, service).is_some(),
        }
    }

    /// Returns the own interfaces that are at one of the device's locations.
    pub(super) fn interfaces_here(&self, device: &EndDevice) -> Vec<&Interface> {
        let here = self.places.interfaces_at(&device.site);
        self.interfaces.iter().filter(|own| here.contains(&own.index)).collect()
    }

    /// Returns whether neighbours may still prove the place: the device proves nothing itself, and that was not tried for this route, nor in
    /// vain a moment ago.
    pub(super) fn may_meet(&self, task: TaskId, device: &EndDevice, now: Now) -> bool {
        let Some(search) = self.routing.searches.get(&task) else { return false };
        let service = chosen_service(device, search.service.as_deref());
        let is_mute = service.is_some_and(|service| proving_port(device, service).is_none());
        let unmet_at = self.routing.unmet_at.get(&device.device);
        let is_late = unmet_at.is_some_and(|at| now.mono - *at < FAILED_FOR);
        let is_tried = search.sought_here || search.peer.is_some() || is_late;
        let here = self.places.interfaces_at(&device.site);
        device.local == LocalPolicy::WithProof && is_mute && !is_tried && !here.is_empty()
    }

    /// Asks tunnel-nodes of the device's site, at their addresses on this LAN, whether they are here. A device without TLS proves
    /// nothing, but a place that only looks like its own has none of them (Rule 6.19). Returns whether anybody was asked.
    pub(super) fn meet_neighbours(
        &mut self,
        task: TaskId,
        device: &EndDevice,
        targets: &[Target],
        now: Now,
    ) -> bool {
        if !self.may_meet(task, device, now) {
            return false;
        }
        let here: Vec<_> = self.interfaces_here(device).into_iter().cloned().collect();
        let mut asked = BTreeMap::new();
        for target in targets {
            let udp = target.announced.iter().filter(|candidate| candidate.transport == Transport::Udp);
            let mut addresses = udp.map(|candidate| candidate.address);
            let near = addresses.find(|address| here.iter().any(|own| own.is_on_link(address.ip())));
            let Some(address) = near.filter(|_| asked.len() < MAX_NEIGHBOURS) else { continue };
            let server = Server { node: target.member.id, address };
            asked.insert(self.ask(server, &Request::Ping, Purpose::Meet(task), now), address);
        }
        let is_asking = !asked.is_empty();
        if is_asking {
            self.seek_here(task, Here::Meeting(asked), now);
        }
        is_asking
    }

    /// Begins with what is to be found out about the own LAN, and leaves it a head start.
    fn seek_here(&mut self, task: TaskId, here: Here, now: Now) {
        let Some(search) = self.routing.searches.get_mut(&task) else { return };
        search.sought_here = true;
        search.here = Some(here);
        search.stage = Stage::AwaitingHere(Some(now.mono.after(HEAD_START)));
    }

    /// A tunnel-node has answered from an address on this LAN, or has not.
    pub(in crate::node) fn neighbour_met(
        &mut self,
        task: TaskId,
        request: RequestId,
        from: Option<SocketAddr>,
        now: Now,
    ) {
        let Some(search) = self.routing.searches.get_mut(&task) else { return };
        let Some(Here::Meeting(asked)) = &mut search.here else { return };
        let place = asked.remove(&request);
        let is_here = place.is_some() && place == from;
        if !is_here && !asked.is_empty() {
            return;
        }
        let name = search.device.clone();
        let Some(device) = self.named_device(&name).cloned() else { return self.not_here(task, now) };
        if is_here {
            let find = self.find_on_lan(&device, now);
            self.set_here(task, Here::Finding(find));
        } else {
            self.note_unmet(device.device, now.mono);
            self.not_here(task, now);
        }
    }

    /// Remembers that no neighbour was met who serves the device: none is asked for a while.
    pub(super) fn note_unmet(&mut self, device: DeviceId, at: Instant) {
        if self.routing.unmet_at.len() >= MAX_REMEMBERED {
            self.routing.unmet_at.clear();
        }
        self.routing.unmet_at.insert(device, at);
    }

    /// Looks for a device on the own LAN that proves itself.
    pub(super) fn find_here(&mut self, task: TaskId, device: &EndDevice, now: Now) {
        let find = self.find_on_lan(device, now);
        self.seek_here(task, Here::Finding(find), now);
    }

    /// Returns the search of the own LAN for a device; one is enough for all who want it, since a sweep asks every address.
    fn find_on_lan(&mut self, device: &EndDevice, now: Now) -> TaskId {
        let finding = &mut self.routing.finding;
        finding.retain(|_, (_, since)| now.mono - *since < ROUTE_TIMEOUT);
        if let Some((find, _)) = finding.iter().find(|(_, (sought, _))| *sought == device.device) {
            return *find;
        }
        let find = self.new_task();
        let interfaces = self.places.interfaces_at(&device.site);
        let mac = device.mac;
        self.outputs.push_back(Output::FindDevice { task: find, mac, last: None, interfaces });
        if self.routing.finding.len() < MAX_REMEMBERED {
            self.routing.finding.insert(find, (device.device, now.mono));
        }
        find
    }

    /// The networks have changed: where a device was does not say where it is.
    pub(in crate::node) fn forget_searches_here(&mut self) {
        self.routing.finding.clear();
    }

    fn set_here(&mut self, task: TaskId, here: Here) {
        if let Some(search) = self.routing.searches.get_mut(&task) {
            search.here = Some(here);
        }
    }

    /// The device is not here, or does not prove it: only tunnel-nodes are left.
    fn not_here(&mut self, task: TaskId, now: Now) {
        let Some(search) = self.routing.searches.get_mut(&task) else { return };
        search.here = None;
        if matches!(search.stage, Stage::AwaitingHere(_)) {
            self.ask_tunnel_nodes(task, now);
        }
    }

    /// Waits for the own LAN where tunnel-nodes have come to nothing; returns whether anything is still to be found out there.
    pub(super) fn goes_on_here(&mut self, task: TaskId) -> bool {
        let Some(search) = self.routing.searches.get_mut(&task) else { return false };
        let is_awaited = search.here.is_some();
        if is_awaited {
            search.stage = Stage::AwaitingHere(None);
        }
        is_awaited
    }

    /// Takes the result of a search of the own LAN. Returns false if it was not for a route.
    pub(in crate::node) fn local_device_found(
        &mut self,
        find: TaskId,
        found: Option<Found>,
        now: Now,
    ) -> bool {
        let is_waiting = |search: &Search| matches!(search.here, Some(Here::Finding(one)) if one == find);
        let was_shared = self.routing.finding.remove(&find).is_some();
        let waiting = self.searches_that(is_waiting);
        let found = found.filter(|found| self.may_dial_device(*found));
        for task in &waiting {
            self.device_found_for(*task, found, now);
        }
        was_shared || !waiting.is_empty()
    }

    fn device_found_for(&mut self, task: TaskId, found: Option<Found>, now: Now) {
        let Some(((device, service), found)) = self.chosen(task).zip(found) else {
            return self.not_here(task, now);
        };
        let address = SocketAddr::new(found.address, service.port);
        match proving_port(&device, &service) {
            Some(port) => {
                let prove = self.new_task();
                self.set_here(task, Here::Proving(prove, address));
                if let Some(search) = self.routing.searches.get_mut(&task)
                    && matches!(search.stage, Stage::AwaitingHere(Some(_)))
                {
                    search.stage = Stage::AwaitingHere(Some(now.mono.after(PROOF_PATIENCE)));
                }
                let at = SocketAddr::new(found.address, port);
                self.outputs.push_back(Output::ProvePin { task: prove, address: at, pins: device.pins });
            }
            None => self.found_here(task, &device, service, address),
        }
    }

    /// Takes what a device on the own LAN has shown. Returns false if it was not for a route.
    pub(in crate::node) fn local_pin_proven(&mut self, prove: TaskId, proof: PinProof, now: Now) -> bool {
        let is_waiting = |search: &Search| matches!(search.here, Some(Here::Proving(one, _)) if one == prove);
        let Some(task) = self.searches_that(is_waiting).pop() else { return false };
        let here = self.routing.searches.get(&task).and_then(|search| search.here.clone());
        match (proof, here, self.chosen(task)) {
            (PinProof::Matches, Some(Here::Proving(_, address)), Some((device, service))) => {
                self.found_here(task, &device, service, address);
            }
            // Something else answers here: a twin of the place. The real device may be reached through a tunnel.
            (PinProof::Matches | PinProof::Differs(_) | PinProof::NoAnswer, _, _) => self.not_here(task, now),
        }
        true
    }

    /// The device is here, and whoever was asked for a path meanwhile is not needed.
    fn found_here(&mut self, task: TaskId, device: &EndDevice, service: Service, address: SocketAddr) {
        self.stop_asking(task);
        self.found_way(task, device, service, Way::Local(address));
    }

    fn searches_that(&self, are: impl Fn(&Search) -> bool) -> Vec<TaskId> {
        self.routing.searches.iter().filter(|(_, search)| are(search)).map(|(task, _)| *task).collect()
    }
}
