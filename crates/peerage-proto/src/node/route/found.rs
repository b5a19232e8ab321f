//! Who was found for a device lately, so that a tunnel waits for no look-up (Rule 6.4): for another tunnel, while the devices were
//! listed, or while the Head was awaited.

use std::time::Duration;

use bytes::Bytes;
use peerage_wire::id::{DeviceId, LookupTag, NodeId};
use peerage_wire::record::{EndDevice, UnverifiedRecord, subject};
use peerage_wire::time::{Instant, Now};

use super::{MAX_REMEMBERED, MAX_TUNNEL_NODES, Search, Stage, chosen_service};
use crate::node::places::tags;
use crate::node::queries::Query;
use crate::node::{Node, TaskId};

/// How long those who were found for a device are asked again without a look-up, unless they fail. Longer misses who comes in
/// the meantime; shorter makes a tunnel on a cold link wait for a look-up. They announce themselves as often (Rule 6.7).
const FOUND_FOR: Duration = Duration::from_secs(300);

/// Tunnel-nodes that were found for a device, as they have announced themselves.
#[derive(Clone, Debug)]
pub(super) struct FoundNodes {
    infos: Vec<Bytes>,
    found_at: Instant,
}

impl Node {
    /// Looks up who serves a device although somebody was known.
    pub(super) fn find_anew(&mut self, task: TaskId, device: &EndDevice, now: Now) {
        self.routing.found.remove(&device.device);
        if let Some(search) = self.routing.searches.get_mut(&task) {
            search.from_known = false;
        }
        self.find_nodes(task, device, now);
    }

    /// Looks for tunnel-nodes while it is still being found out whether a tunnel may be opened; that saves a round trip.
    pub(super) fn look_ahead(&mut self, task: TaskId, search: &Search, now: Now) {
        let Some(device) = self.named_device(&search.device).cloned() else { return };
        let Some(service) = chosen_service(&device, search.service.as_deref()) else { return };
        let is_local = self.may_be_local(&device, service);
        if !is_local {
            // A path is asked for as soon as the Head is there, and what routers do has to be known by then.
            self.look_from_outside(now);
        }
        let is_known = self.routing.found.contains_key(&device.device);
        if search.peer.is_some() || search.ahead.is_some() || is_local || is_known || device.site.is_empty() {
            return;
        }
        let time = self.endpoint.time(now);
        let tags = tags(&device.site, &self.keys, self.epoch_began, time);
        if let Some(search) = self.routing.searches.get_mut(&task) {
            search.ahead = Some(tags.clone());
        }
        // If there are too many look-ups already, this one is made when it is due.
        self.look_up(Query::TunnelNodes(tags), None);
    }

    /// Takes what was found before anybody could ask for a path.
    pub(in crate::node) fn found_ahead(&mut self, tags: &[LookupTag], found: &[Bytes], now: Now) {
        let is_waiting = |search: &&Search| {
            matches!(search.stage, Stage::Resolving) && search.ahead.as_deref() == Some(tags)
        };
        let names: Vec<_> =
            self.routing.searches.values().filter(is_waiting).map(|search| search.device.clone()).collect();
        if !names.is_empty() {
            self.acquaint_with_found(found, now);
        }
        for name in names {
            if let Some(device) = self.named_device(&name).map(|device| device.device) {
                self.note_found(device, found, now);
            }
        }
    }

    /// Returns who was found for the device lately, as long as nobody of them has failed. Where the other end of an open tunnel is
    /// now is asked anew: it may have moved.
    pub(super) fn known_nodes(&mut self, task: TaskId, device: &EndDevice, now: Now) -> Option<Vec<Bytes>> {
        let is_lost = self.routing.searches.get(&task).is_some_and(|search| search.peer.is_some());
        let known = self.routing.found.get(&device.device)?;
        if now.mono - known.found_at >= FOUND_FOR {
            self.routing.found.remove(&device.device);
            return None;
        }
        (!is_lost).then(|| known.infos.clone())
    }

    /// Looks up those who were found and whose own records did not come with them: they would be waited for when a tunnel is wanted.
    pub(in crate::node) fn acquaint_with_found(&mut self, found: &[Bytes], now: Now) {
        let infos = found.iter().take(MAX_TUNNEL_NODES).filter_map(|info| UnverifiedRecord::parse(info).ok());
        let nodes = infos.map(|info| subject(info.header())).filter(|node| node.domain == self.me.id.domain);
        for node in nodes.collect::<Vec<_>>() {
            self.membership(node, now.mono, now);
        }
    }

    /// Remembers who was found for a device, so that the next tunnel needs no look-up.
    pub(in crate::node) fn note_found(&mut self, device: DeviceId, found: &[Bytes], now: Now) {
        let infos: Vec<_> = found.iter().take(MAX_TUNNEL_NODES).cloned().collect();
        let all = &mut self.routing.found;
        if all.len() >= MAX_REMEMBERED {
            all.retain(|_, known| now.mono - known.found_at < FOUND_FOR);
        }
        if !infos.is_empty() && (all.len() < MAX_REMEMBERED || all.contains_key(&device)) {
            all.insert(device, FoundNodes { infos, found_at: now.mono });
        }
    }

    // ---- which nodes were looked for lately ---------------------------------------------------

    pub(in crate::node) fn note_looked_up(&mut self, node: NodeId, now: Instant) {
        if self.routing.looked_up_at.len() >= MAX_REMEMBERED {
            self.routing.looked_up_at.clear();
        }
        self.routing.looked_up_at.insert(node, now);
    }

    pub(in crate::node) fn looked_up_lately(&self, node: &NodeId, since: Instant) -> bool {
        self.routing.looked_up_at.get(node).is_some_and(|at| *at >= since)
    }
}
