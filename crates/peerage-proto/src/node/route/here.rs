//! On the device's own LAN: with proof that it is the device, no tunnel is needed (Rule 6.19).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::codec::{Service, Transport};
use peerage_wire::message::Request;
use peerage_wire::record::{EndDevice, LocalPolicy};
use peerage_wire::time::Now;

use super::{FAILED_FOR, MAX_REMEMBERED, Stage, Target, chosen_service};
use crate::node::lookup::Server;
use crate::node::openings::proving_port;
use crate::node::{Failure, Found, Node, Output, PinProof, Purpose, RequestId, TaskId, Way};

/// Most tunnel-nodes that are looked for on the own LAN for one route: as many as a location elects.
const MAX_NEIGHBOURS: usize = 2;

/// How long a device is looked for on the own LAN before tunnel-nodes are asked as well. Where the system knows its address it is found
/// sooner; otherwise all addresses are swept, which takes seconds. Longer makes applications wait for that, shorter takes tunnels that nobody
/// needs.
const FIND_PATIENCE: Duration = Duration::from_millis(400);

/// Who was asked whether it is here.
#[derive(Clone, Debug)]
pub(super) struct Meeting {
    asked: BTreeMap<RequestId, SocketAddr>,
    /// Those who are asked for a path if nobody is.
    targets: Vec<Target>,
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

    /// Asks tunnel-nodes of the device's site, at their addresses on this LAN, whether they are here. A device without TLS proves
    /// nothing, but a place that only looks like its own has none of them (Rule 6.19). Returns whether anybody was asked.
    pub(super) fn meet_neighbours(
        &mut self,
        task: TaskId,
        device: &EndDevice,
        targets: &[Target],
        now: Now,
    ) -> bool {
        let unmet_at = self.routing.unmet_at.get(&device.device);
        let is_late = unmet_at.is_some_and(|at| now.mono - *at < FAILED_FOR);
        let here = self.places.interfaces_at(&device.site);
        let Some(search) = self.routing.searches.get_mut(&task) else { return false };
        let service = chosen_service(device, search.service.as_deref());
        let is_mute = service.is_some_and(|service| proving_port(device, service).is_none());
        let wanted = device.local == LocalPolicy::WithProof && is_mute && search.peer.is_none() && !is_late;
        if !wanted || here.is_empty() || std::mem::replace(&mut search.has_met, true) {
            return false;
        }
        let here: Vec<_> = self.interfaces.iter().filter(|own| here.contains(&own.index)).cloned().collect();
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
            self.set_stage(task, Stage::Meeting(Box::new(Meeting { asked, targets: targets.to_vec() })));
        }
        is_asking
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
        let Stage::Meeting(meeting) = &mut search.stage else { return };
        let asked = meeting.asked.remove(&request);
        let is_here = asked.is_some() && asked == from;
        if !is_here && !meeting.asked.is_empty() {
            return;
        }
        let (targets, name) = (std::mem::take(&mut meeting.targets), search.device.clone());
        let Some(device) = self.named_device(&name).cloned() else {
            return self.route_failed_with(task, Failure::UnknownDevice);
        };
        if is_here {
            return self.find_here(task, &device, now);
        }
        if self.routing.unmet_at.len() >= MAX_REMEMBERED {
            self.routing.unmet_at.clear();
        }
        self.routing.unmet_at.insert(device.device, now.mono);
        self.choose(task, &device, targets, now);
    }

    pub(super) fn find_here(&mut self, task: TaskId, device: &EndDevice, now: Now) {
        let find = self.new_task();
        self.set_stage(task, Stage::FindingHere(find, Some(now.mono.after(FIND_PATIENCE))));
        let interfaces = self.places.interfaces_at(&device.site);
        let mac = device.mac;
        self.outputs.push_back(Output::FindDevice { task: find, mac, last: None, interfaces });
    }

    /// The device was not found here at once: tunnel-nodes are asked while the search goes on, so that the next tunnel finds it.
    pub(super) fn ask_beside(&mut self, task: TaskId, find: TaskId, now: Now) {
        let Some(search) = self.routing.searches.get_mut(&task) else { return };
        search.beside = Some(find);
        // Whoever is met here would only have it looked for once more.
        search.has_met = true;
        let name = search.device.clone();
        match self.named_device(&name).cloned() {
            Some(device) => self.find_nodes(task, &device, now),
            None => self.route_failed_with(task, Failure::UnknownDevice),
        }
    }

    /// Waits for the search of the own LAN where tunnel-nodes have come to nothing; returns whether there is one.
    pub(super) fn goes_on_here(&mut self, task: TaskId) -> bool {
        let Some(search) = self.routing.searches.get_mut(&task) else { return false };
        let beside = search.beside.take();
        if let Some(find) = beside {
            search.stage = Stage::FindingHere(find, None);
        }
        beside.is_some()
    }

    /// Takes the result of a search of the own LAN. Returns false if it was not for a route.
    pub(in crate::node) fn local_device_found(
        &mut self,
        find: TaskId,
        found: Option<Found>,
        now: Now,
    ) -> bool {
        let waiting = self.routing.searches.iter().find_map(|(task, search)| {
            matches!(search.stage, Stage::FindingHere(waiting, _) if waiting == find)
                .then(|| (*task, search.clone()))
        });
        let Some((task, search)) = waiting else {
            let mut beside = self.routing.searches.values_mut().filter(|search| search.beside == Some(find));
            return beside.next().map(|search| search.beside = None).is_some();
        };
        let Some(device) = self.named_device(&search.device).cloned() else {
            self.route_failed_with(task, Failure::UnknownDevice);
            return true;
        };
        let service = chosen_service(&device, search.service.as_deref()).cloned();
        let here = found.filter(|found| self.may_dial_device(*found)).zip(service);
        let Some((found, service)) = here else {
            self.find_nodes(task, &device, now);
            return true;
        };
        let address = SocketAddr::new(found.address, service.port);
        match proving_port(&device, &service) {
            Some(port) => {
                let prove = self.new_task();
                self.set_stage(task, Stage::ProvingHere(prove, address));
                let at = SocketAddr::new(found.address, port);
                self.outputs.push_back(Output::ProvePin { task: prove, address: at, pins: device.pins });
            }
            None => self.found_way(task, &device, service, Way::Local(address)),
        }
        true
    }

    /// Takes what a device on the own LAN has shown. Returns false if it was not for a route.
    pub(in crate::node) fn local_pin_proven(&mut self, prove: TaskId, proof: PinProof, now: Now) -> bool {
        let waiting = self.routing.searches.iter().find_map(|(task, search)| match search.stage {
            Stage::ProvingHere(waiting, address) if waiting == prove => {
                Some((*task, address, search.clone()))
            }
            Stage::Resolving
            | Stage::FindingHere(..)
            | Stage::ProvingHere(..)
            | Stage::Observing(_)
            | Stage::FindingNodes
            | Stage::CheckingNodes(_)
            | Stage::Meeting(_)
            | Stage::Asking { .. } => None,
        });
        let Some((task, address, search)) = waiting else { return false };
        let Some(device) = self.named_device(&search.device).cloned() else {
            self.route_failed_with(task, Failure::UnknownDevice);
            return true;
        };
        match (proof, chosen_service(&device, search.service.as_deref()).cloned()) {
            (PinProof::Matches, Some(service)) => {
                self.found_way(task, &device, service, Way::Local(address));
            }
            // Something else answers here: a twin of the place. The real device may be reached through a tunnel.
            (PinProof::Matches | PinProof::Differs(_) | PinProof::NoAnswer, _) => {
                self.find_nodes(task, &device, now);
            }
        }
        true
    }
}
