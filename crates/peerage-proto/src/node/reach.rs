//! What an application sees when it asks for the devices now: the newest list, and which of them somebody serves.

use std::collections::BTreeMap;

use bytes::Bytes;
use peerage_wire::id::{DeviceId, LookupTag};
use peerage_wire::time::Now;

use super::lookup::Verdict;
use super::places::tags;
use super::queries::Query;
use super::{Answer, Failure, Node, TaskId};

/// Most sites that are looked up for one refresh; a domain has few sites, whatever the number of its devices.
const MAX_SITES: usize = 64;

/// A refresh under way: the devices of each site that is still being looked up.
#[derive(Clone, Debug, Default)]
struct Refresh {
    sites: BTreeMap<Vec<LookupTag>, Vec<DeviceId>>,
}

/// How many tunnel-nodes have announced themselves for each device, as far as it was asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Reach {
    refreshes: BTreeMap<TaskId, Refresh>,
    announced: BTreeMap<DeviceId, usize>,
}

impl Reach {
    /// Returns how many tunnel-nodes have announced themselves at the device's site; `None` if that was not asked.
    pub(super) fn announced(&self, device: &DeviceId) -> Option<usize> {
        self.announced.get(device).copied()
    }
}

impl Node {
    /// Asks the network for the devices, then for those who serve them.
    pub(super) fn refresh_devices(&mut self, task: TaskId) {
        if !self.look_up(Query::Devices, Some(task)) {
            self.answer(task, Answer::Failed(Failure::Busy));
        }
    }

    /// The devices are known; now their sites are looked up.
    pub(super) fn devices_refreshed(&mut self, task: TaskId, verdict: Verdict, now: Now) {
        if verdict == Verdict::Silence {
            return self.answer(task, Answer::Failed(Failure::Offline));
        }
        let time = self.endpoint.time(now);
        let mut refresh = Refresh::default();
        for (_, device) in self.devices.values() {
            if device.site.is_empty() {
                self.reach.announced.insert(device.device, 0);
            } else {
                let tags = tags(&device.site, &self.keys, self.epoch_began, time);
                refresh.sites.entry(tags).or_default().push(device.device);
            }
        }
        let sites: Vec<_> = refresh.sites.keys().take(MAX_SITES).cloned().collect();
        refresh.sites.retain(|tags, _| sites.contains(tags));
        self.reach.announced.retain(|device, _| self.devices.contains_key(device));
        self.reach.refreshes.insert(task, refresh);
        for tags in sites {
            if !self.look_up(Query::TunnelNodes(tags.clone()), Some(task)) {
                self.site_looked_up(task, &tags, None, now);
            }
        }
        self.end_refresh(task);
    }

    /// One site was looked up: so many nodes announce it, or nobody answered.
    pub(super) fn site_looked_up(
        &mut self,
        task: TaskId,
        tags: &[LookupTag],
        found: Option<&[Bytes]>,
        now: Now,
    ) {
        let Some(refresh) = self.reach.refreshes.get_mut(&task) else { return };
        let devices = refresh.sites.remove(tags).unwrap_or_default();
        self.acquaint_with_found(found.unwrap_or_default(), now);
        for (device, found) in devices.into_iter().filter_map(|device| Some((device, found?))) {
            self.reach.announced.insert(device, found.len());
            // Most likely one of them is used next.
            self.note_found(device, found, now);
        }
        self.end_refresh(task);
    }

    fn end_refresh(&mut self, task: TaskId) {
        if self.reach.refreshes.get(&task).is_some_and(|refresh| refresh.sites.is_empty()) {
            self.reach.refreshes.remove(&task);
            self.answer(task, Answer::Refreshed);
        }
    }
}
