//! The tunnel-node: finding out that it stands where a device is, and telling where a device was found (Rule 6.12).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use peerage_wire::id::{DeviceId, LocationId, NodeId};
use peerage_wire::message::Request;
use peerage_wire::record::EndDevice;
use peerage_wire::time::{Instant, Now};

use super::announce::Announcing;
use super::attach::{Attachment, Choice};
use super::queries::Query;
use super::{Event, Found, Node, Output, Purpose, TaskId};

/// How often a device that this node was named to find is looked for again.
const SEARCH_INTERVAL: Duration = Duration::from_secs(300);

/// How often one device is reported at one location.
const REPORT_INTERVAL: Duration = Duration::from_secs(86_400);

/// What a tunnel-node remembers.
#[derive(Clone, Debug, Default)]
pub(super) struct Serving {
    pub(super) served: BTreeSet<DeviceId>,
    pub(super) attachments: BTreeMap<NodeId, Attachment>,
    pub(super) choice: Choice,
    pub(super) announcing: Announcing,
    /// Searches for devices that this node was named to find.
    searches: BTreeMap<TaskId, DeviceId>,
    searched_at: BTreeMap<DeviceId, Instant>,
    reported_at: BTreeMap<(DeviceId, LocationId), Instant>,
    /// Where devices were last.
    pub(super) last_seen: BTreeMap<DeviceId, IpAddr>,
}

impl Node {
    /// Returns whether the operator permits and the owner wants that this node serves.
    pub(super) const fn may_serve(&self) -> bool {
        self.serves && self.me.roles.tunnel
    }

    pub(super) fn serving_at(&self) -> Option<Instant> {
        let search = self.named_devices().next().is_some().then(|| self.next_search_at()).flatten();
        [self.attaching_at(), self.announcing_at(), search].into_iter().flatten().min()
    }

    pub(super) fn serving_timeout(&mut self, now: Now) {
        self.attaching_timeout(now);
        self.announcing_timeout(now);
        self.search_named(now);
    }

    /// Returns whether this node has to be reachable: it serves a device, or was named to find one.
    pub(super) fn wants_attachments(&self) -> bool {
        !self.serving.served.is_empty() || self.named_devices().next().is_some()
    }

    // ---- where this node serves -------------------------------------------------------------

    /// Finds out anew which devices this node serves, and draws the consequences.
    pub(super) fn review_serving(&mut self, now: Now) {
        self.review_contests(now);
        let served = self.devices_here();
        if served != self.serving.served {
            self.event(Event::Serving(served.iter().copied().collect()));
            self.serving.served = served;
            self.serving.announcing.is_acknowledged = false;
            self.announce_soon(now);
        }
        // A report that has taken effect is done with: should the location be taken out again, it is news again.
        let devices = &self.devices;
        self.serving.reported_at.retain(|(device, location), _| {
            devices.get(device).is_some_and(|(_, device)| !device.site.contains(location))
        });
        self.review_attachments(now);
        self.search_named(now);
    }

    fn devices_here(&self) -> BTreeSet<DeviceId> {
        let here = |device: &EndDevice| self.could_serve(device) && self.is_elected_for(device);
        let devices = self.devices.values().map(|(_, device)| device);
        devices.filter(|device| here(device)).map(|device| device.device).collect()
    }

    /// Returns the devices that this node was named to find and does not see at a location of their site.
    fn named_devices(&self) -> impl Iterator<Item = &EndDevice> {
        let named = |device: &&EndDevice| {
            device.via == Some(self.me.id) && self.places.interfaces_at(&device.site).is_empty()
        };
        let any = self.may_serve() && !self.places.interfaces().is_empty();
        self.devices.values().map(|(_, device)| device).filter(move |_| any).filter(named)
    }

    fn next_search_at(&self) -> Option<Instant> {
        let due = |device: &EndDevice| {
            let last = self.serving.searched_at.get(&device.device);
            last.map_or(Instant::default(), |at| at.after(SEARCH_INTERVAL))
        };
        self.named_devices().map(due).min()
    }

    fn search_named(&mut self, now: Now) {
        let due: Vec<_> = self
            .named_devices()
            .filter(|device| {
                let last = self.serving.searched_at.get(&device.device);
                last.is_none_or(|at| at.after(SEARCH_INTERVAL) <= now.mono)
            })
            .map(|device| (device.device, device.mac))
            .collect();
        for (device, mac) in due {
            let task = self.new_task();
            self.serving.searches.insert(task, device);
            self.serving.searched_at.insert(device, now.mono);
            let last = self.serving.last_seen.get(&device).copied();
            let interfaces = self.places.interfaces();
            self.outputs.push_back(Output::FindDevice { task, mac, last, interfaces });
        }
    }

    pub(super) fn device_found(&mut self, task: TaskId, found: Option<Found>, now: Now) {
        if let Some(device) = self.serving.searches.remove(&task) {
            if let Some(found) = found {
                self.report(device, found, now);
            }
            return;
        }
        if self.local_device_found(task, found, now) {
            return;
        }
        self.opening_device_found(task, found);
    }

    /// Tells an operator where a device is (Rule 6.12).
    fn report(&mut self, device: DeviceId, found: Found, now: Now) {
        self.serving.last_seen.insert(device, found.address);
        let Some(location) = self.places.location_of(found.interface) else { return };
        let Some((key, _)) = self.devices.get(&device) else { return };
        let key = *key;
        let last = self.serving.reported_at.get(&(device, location));
        if last.is_some_and(|at| at.after(REPORT_INTERVAL) > now.mono) {
            return;
        }
        let Some(server) = self.shuffled_operators(now).into_iter().next() else { return };
        self.serving.reported_at.retain(|_, at| at.after(REPORT_INTERVAL) > now.mono);
        self.serving.reported_at.insert((device, location), now.mono);
        let request = Request::DeviceSeen { id: self.command_id(), key, location };
        self.ask(server, &request, Purpose::Report(device), now);
    }

    pub(super) fn reported(&mut self, device: DeviceId, _now: Now) {
        self.event(Event::DeviceReported(device));
        // The operator has changed the device's record.
        self.look_up(Query::Devices, None);
    }

    pub(super) fn report_failed(&mut self, device: DeviceId, _now: Now) {
        self.serving.reported_at.retain(|(reported, _), _| *reported != device);
    }
}
