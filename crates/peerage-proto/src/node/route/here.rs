//! On the device's own LAN: with proof that it is the device, no tunnel is needed (Rule 6.19).

use std::net::SocketAddr;

use peerage_wire::codec::Service;
use peerage_wire::record::{EndDevice, LocalPolicy};
use peerage_wire::time::Now;

use super::{Stage, chosen_service};
use crate::node::openings::proving_port;
use crate::node::{Failure, Found, Node, Output, PinProof, TaskId, Way};

impl Node {
    /// Returns whether the device may be used without a tunnel from one of the own locations, should the proof succeed
    /// (Rule 6.19).
    pub(super) fn may_be_local(&self, device: &EndDevice, service: &Service) -> bool {
        let here = !self.places.interfaces_at(&device.site).is_empty();
        here && match device.local {
            LocalPolicy::Never => false,
            LocalPolicy::Always => true,
            LocalPolicy::WithTls => proving_port(device, service).is_some(),
        }
    }

    pub(super) fn find_here(&mut self, task: TaskId, device: &EndDevice) {
        let find = self.new_task();
        self.set_stage(task, Stage::FindingHere(find));
        let interfaces = self.places.interfaces_at(&device.site);
        let mac = device.mac;
        self.outputs.push_back(Output::FindDevice { task: find, mac, last: None, interfaces });
    }

    /// Takes the result of a search of the own LAN. Returns false if it was not for a route.
    pub(in crate::node) fn local_device_found(
        &mut self,
        find: TaskId,
        found: Option<Found>,
        now: Now,
    ) -> bool {
        let waiting = self.routing.searches.iter().find_map(|(task, search)| {
            matches!(search.stage, Stage::FindingHere(waiting) if waiting == find)
                .then(|| (*task, search.clone()))
        });
        let Some((task, search)) = waiting else { return false };
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
            | Stage::FindingHere(_)
            | Stage::ProvingHere(..)
            | Stage::FindingNodes
            | Stage::CheckingNodes(_)
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
