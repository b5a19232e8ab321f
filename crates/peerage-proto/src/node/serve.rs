//! The tunnel-node: finding out that it stands where a device is, staying reachable and announcing itself (Rules 6.7, 6.10
//! and 6.12).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::id::{DeviceId, KeyHint, LocationId, NodeId};
use peerage_wire::message::{Reply, Request};
use peerage_wire::record::{Draft, EndDevice, Header, NodeInfoPrivate, NodeInfoPublic, Table};
use peerage_wire::time::{Instant, Now};
use rand_core::Rng as _;

use super::places::{candidates, tags};
use super::queries::Query;
use super::{Change, Discard, Event, Found, Node, Output, Purpose, TaskId};

/// How often a standing contact is renewed. RFC 4787 wants mappings of UDP to live for two minutes; many routers keep
/// them for thirty seconds.
const ATTACH_INTERVAL: Duration = Duration::from_secs(25);

/// How many servers one node is attached to: one may die.
const MAX_ATTACHMENTS: usize = 2;

/// Unanswered renewals after which an attachment counts as lost.
const MAX_MISSES: u32 = 3;

/// How long after an attachment was lost the next is tried, jittered: the others that lost it do so too.
const LOST_PAUSE: Duration = Duration::from_secs(10);

/// How often a node announces itself; its NodeInfo lives for twice as long.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(300);

/// Shortest time between two announcements, so that a flapping interface does not flood the table.
const ANNOUNCE_PAUSE: Duration = Duration::from_secs(10);

/// How soon a change is announced: several come together.
const ANNOUNCE_DELAY: Duration = Duration::from_millis(100);

/// How often a device that this node was named to find is looked for again.
const SEARCH_INTERVAL: Duration = Duration::from_secs(300);

/// How often one device is reported at one location.
const REPORT_INTERVAL: Duration = Duration::from_secs(86_400);

/// Most candidates and locations in a NodeInfo; with more its 800 bytes would not do.
const MAX_ANNOUNCED: usize = 8;
/// Fewest candidates for which a location is rather left out: the configured address, over UDP and TCP.
const MIN_ANNOUNCED: usize = 2;
const MAX_ANNOUNCED_LOCATIONS: usize = 3;

#[derive(Clone, Copy, Debug)]
pub(super) struct Attachment {
    pub(super) since: Instant,
    next_at: Instant,
    misses: u32,
    pub(super) observed: Option<SocketAddr>,
    /// The server's sealing key. With another one it has started anew, and what it kept in memory is gone.
    key: Option<KeyHint>,
}

/// What a tunnel-node remembers.
#[derive(Clone, Debug)]
pub(super) struct Serving {
    pub(super) served: BTreeSet<DeviceId>,
    pub(super) attachments: BTreeMap<NodeId, Attachment>,
    announce_at: Option<Instant>,
    announced_at: Option<Instant>,
    /// The announcement that is being written to disk.
    pending: Option<(TaskId, Bytes)>,
    /// The highest version of the own NodeInfo that a holder has named.
    version_held: u64,
    /// Whether an announcement was acknowledged.
    pub(super) announced: bool,
    /// Searches for devices that this node was named to find.
    searches: BTreeMap<TaskId, DeviceId>,
    searched_at: BTreeMap<DeviceId, Instant>,
    reported_at: BTreeMap<(DeviceId, LocationId), Instant>,
    /// Where devices were last.
    pub(super) last_seen: BTreeMap<DeviceId, IpAddr>,
}

impl Serving {
    pub(super) const fn new(_now: Instant) -> Self {
        Self {
            served: BTreeSet::new(),
            attachments: BTreeMap::new(),
            announce_at: None,
            announced_at: None,
            pending: None,
            version_held: 0,
            announced: false,
            searches: BTreeMap::new(),
            searched_at: BTreeMap::new(),
            reported_at: BTreeMap::new(),
            last_seen: BTreeMap::new(),
        }
    }
}

impl Node {
    /// Returns whether the operator permits and the owner wants that this node serves.
    pub(super) const fn may_serve(&self) -> bool {
        self.serves && self.me.roles.tunnel
    }

    pub(super) fn is_attached(&self) -> bool {
        !self.serving.attachments.is_empty()
    }

    pub(super) fn serving_at(&self) -> Option<Instant> {
        let attach = self.serving.attachments.values().map(|attachment| attachment.next_at).min();
        let search = self.named_devices().next().is_some().then(|| self.next_search_at()).flatten();
        [attach, self.serving.announce_at, search].into_iter().flatten().min()
    }

    pub(super) fn serving_timeout(&mut self, now: Now) {
        self.renew_attachments(now);
        if self.serving.announce_at.is_some_and(|at| at <= now.mono) {
            self.announce(now);
        }
        self.search_named(now);
    }

    // ---- where this node serves -------------------------------------------------------------

    /// Finds out anew which devices this node serves, and draws the consequences.
    pub(super) fn review_serving(&mut self, now: Now) {
        let served = if self.may_serve() { self.devices_here() } else { BTreeSet::new() };
        if served != self.serving.served {
            self.event(Event::Serving(served.iter().copied().collect()));
            self.serving.served = served;
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
        let here = |device: &EndDevice| {
            let named = device.servers.is_empty() || device.servers.contains(&self.me.id);
            named && !self.places.interfaces_at(&device.site).is_empty()
        };
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
        let Some(server) = self.servers().into_iter().next() else { return };
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

    // ---- attachments ------------------------------------------------------------------------

    fn review_attachments(&mut self, now: Now) {
        let wanted = !self.serving.served.is_empty() || self.named_devices().next().is_some();
        if !wanted {
            self.serving.attachments.clear();
            return;
        }
        self.attach_to_servers(now.mono);
        // At once: what is due now must not wait for a timeout that may have been served already.
        self.renew_attachments(now);
    }

    /// Fills up the attachments; new ones are asked for at `at`.
    fn attach_to_servers(&mut self, at: Instant) {
        for server in self.servers() {
            if self.serving.attachments.len() >= MAX_ATTACHMENTS {
                return;
            }
            let new = Attachment { since: at, next_at: at, misses: 0, observed: None, key: None };
            self.serving.attachments.entry(server.node).or_insert(new);
        }
    }

    fn renew_attachments(&mut self, now: Now) {
        let due = self.serving.attachments.iter().filter(|(_, a)| a.next_at <= now.mono);
        for node in due.map(|(node, _)| *node).collect::<Vec<_>>() {
            let next_at = now.mono.after(self.jittered(ATTACH_INTERVAL));
            if let Some(attachment) = self.serving.attachments.get_mut(&node) {
                attachment.next_at = next_at;
            }
            if let Some(server) = self.servers().into_iter().find(|server| server.node == node) {
                self.ask(server, &Request::Attach, Purpose::Attach(node), now);
            }
        }
    }

    pub(super) fn attached(&mut self, by: NodeId, reply: Reply, now: Now) {
        let Reply::Attached { observed, head } = reply else { return };
        let key = self.endpoint.peer_key(&by);
        if let Some(attachment) = self.serving.attachments.get_mut(&by) {
            let first = attachment.observed.is_none() || attachment.key != key;
            attachment.key = key;
            attachment.misses = 0;
            attachment.observed = Some(observed);
            if first {
                self.announce_soon(now);
            }
        }
        if let Some(head) = head {
            self.take_head(&head, now);
        }
    }

    pub(super) fn attachment_failed(&mut self, server: NodeId, now: Now) {
        let Some(attachment) = self.serving.attachments.get_mut(&server) else { return };
        attachment.misses = attachment.misses.saturating_add(1);
        if attachment.misses >= MAX_MISSES {
            self.serving.attachments.remove(&server);
            // With a single operator the same one is tried again, a little later.
            let again = now.mono.after(self.jittered(LOST_PAUSE));
            self.attach_to_servers(again);
        }
    }

    // ---- announcing -------------------------------------------------------------------------

    /// Plans an announcement because something in it has changed.
    pub(super) fn announce_soon(&mut self, now: Now) {
        if self.serving.served.is_empty() || self.serving.attachments.is_empty() {
            self.serving.announce_at = None;
            return;
        }
        let soon = now.mono.after(ANNOUNCE_DELAY);
        let pause = self.serving.announced_at.map_or(soon, |at| at.after(ANNOUNCE_PAUSE));
        let at = soon.max(pause);
        self.serving.announce_at = Some(self.serving.announce_at.map_or(at, |planned| planned.min(at)));
    }

    /// Returns the own NodeInfo of the last announcement.
    pub(super) fn own_info(&self) -> Option<&peerage_wire::record::Record> {
        self.records.get(Table::NodeInfo, self.me.id.domain, self.me.id.record_key())
    }

    /// Makes a new NodeInfo and writes it to disk; it is sent once that is safe, so that no version is used twice.
    fn announce(&mut self, now: Now) {
        self.serving.announce_at = Some(now.mono.after(self.jittered(ANNOUNCE_INTERVAL)));
        let nothing = self.serving.served.is_empty() || self.serving.attachments.is_empty();
        if nothing || !self.endpoint.clock().is_learned() {
            self.serving.announce_at = None;
            return;
        }
        self.serving.announced_at = Some(now.mono);
        // Around midnight and a change of epoch each location has four tags, so fewer candidates or locations fit.
        let sizes = (1..=MAX_ANNOUNCED_LOCATIONS).rev().flat_map(|locations| {
            (MIN_ANNOUNCED..=MAX_ANNOUNCED).rev().map(move |candidates| (locations, candidates))
        });
        let signed = sizes.into_iter().find_map(|size| self.node_info(size, now));
        let Some(record) = signed else {
            return self.endpoint.discard(Discard::BadRecord);
        };
        self.records.insert(record.clone());
        let task = self.new_task();
        self.serving.pending = Some((task, record.bytes().clone()));
        self.outputs.push_back(Output::Store { task, changes: vec![Change::Put(record)] });
    }

    /// Makes a NodeInfo with at most so many locations and candidates; none if that does not fit.
    fn node_info(
        &mut self,
        (most_locations, most_candidates): (usize, usize),
        now: Now,
    ) -> Option<peerage_wire::record::Record> {
        let (id, time) = (self.me.id, self.endpoint.time(now));
        let last = self.own_info().map_or(0, |record| record.header().version).max(self.serving.version_held);
        let header = Header {
            table: Table::NodeInfo,
            domain: id.domain,
            key: id.record_key(),
            version: time.as_millis().max(last.saturating_add(1)),
            expires: time.after(ANNOUNCE_INTERVAL * 2),
            signer: id,
            removed: false,
        };
        let mut locations = self.served_locations();
        locations.truncate(most_locations);
        let tags = tags(&locations, &self.keys, self.epoch_began, time);
        let statement = *self.endpoint.statement();
        let public = NodeInfoPublic { statement, tags, addresses: Vec::new() };
        let mut candidates = self.own_candidates();
        candidates.truncate(most_candidates);
        let attachments = self.serving.attachments.keys().copied().collect();
        let private = NodeInfoPrivate { candidates, locations, attachments };
        let mut salt = [0; 16];
        self.endpoint.rng().fill_bytes(&mut salt);
        let draft = Draft { header, public: public.write(), private: None };
        let draft = draft.with_private(&self.keys, salt, private.write());
        draft.sign(self.endpoint.identity(), self.trust.network(), self.endpoint.crypto()).ok()
    }

    /// Returns the own locations at which a served device is.
    fn served_locations(&self) -> Vec<LocationId> {
        let at = |location: &LocationId| {
            let served = self.serving.served.iter().filter_map(|device| self.devices.get(device));
            served.into_iter().any(|(_, device)| device.site.contains(location))
        };
        self.places.all().filter(at).collect()
    }

    pub(super) fn own_candidates(&self) -> Vec<peerage_wire::codec::Candidate> {
        candidates(&self.interfaces, &self.advertise, self.port, self.one_machine, self.bound)
    }

    pub(super) fn stored(&mut self, task: TaskId, ok: bool, now: Now) {
        let Some((_, bytes)) = self.serving.pending.take_if(|(pending, _)| *pending == task) else { return };
        if !ok {
            return self.announcement_failed(now);
        }
        for server in self.servers() {
            self.ask(server, &Request::Store(bytes.clone()), Purpose::Announce, now);
        }
    }

    pub(super) fn announced(&mut self, reply: Reply, now: Now) {
        let Reply::Stored { table: Table::NodeInfo, version, .. } = reply else { return };
        let own = self.own_info().map_or(0, |record| record.header().version);
        if version > own {
            // Somebody holds a newer one: this machine's clock went back, or it was cloned. The next one has to be
            // above that (Rule 6.6).
            self.serving.version_held = version;
            self.announce_soon(now);
        } else if !std::mem::replace(&mut self.serving.announced, true) {
            let served = self.serving.served.iter().copied().collect();
            self.event(Event::Announced(served));
        }
    }

    pub(super) fn announcement_failed(&mut self, now: Now) {
        let at = now.mono.after(self.jittered(ANNOUNCE_PAUSE * 3));
        self.serving.announce_at = Some(at);
    }
}
