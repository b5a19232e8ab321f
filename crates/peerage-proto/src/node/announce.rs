//! Being found: the own NodeInfo, made, written to disk and stored with every holder of its places (Rules 6.6 and 6.7).

use std::collections::BTreeSet;
use std::time::Duration;

use peerage_wire::codec::{Candidate, CandidateKind};
use peerage_wire::id::{LocationId, NodeId, Segment};
use peerage_wire::limits::{MAX_CANDIDATES, MAX_VERSION_AHEAD};
use peerage_wire::message::{Reply, Request};
use peerage_wire::record::{Draft, Header, NodeInfoPrivate, NodeInfoPublic, Record, Table};
use peerage_wire::time::{Instant, Now, UnixTime};
use rand_core::Rng as _;

use super::lookup::Server;
use super::places::{candidates, tags};
use super::{Change, Discard, Event, Node, Output, Purpose, TaskId};

/// How often a node announces itself; its NodeInfo lives for twice as long.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(300);

/// Shortest time between two announcements, so that a flapping interface does not flood the table.
const ANNOUNCE_PAUSE: Duration = Duration::from_secs(10);

/// How long after an announcement that too few have acknowledged the next is made. While nobody else does, doubled each time up to
/// [`ANNOUNCE_INTERVAL`]: all through an outage every tunnel-node says it to every holder, and where one never reaches them, always.
const RETRY_PAUSE: Duration = Duration::from_secs(30);

/// How soon a change is announced: several come together.
const ANNOUNCE_DELAY: Duration = Duration::from_millis(100);

/// How many holders of each place have to acknowledge, or all if there are fewer. With two of three, what was acknowledged
/// outlives any one of them.
const ACKNOWLEDGEMENTS: usize = 2;

/// Most candidates and locations in a NodeInfo; with more its 800 bytes would not do.
const MAX_ANNOUNCED: usize = 8;
/// Fewest candidates for which a location is rather left out: the configured address, over UDP and TCP.
const MIN_ANNOUNCED: usize = 2;
const MAX_ANNOUNCED_LOCATIONS: usize = 3;

/// What is remembered of announcements.
#[derive(Clone, Debug, Default)]
pub(super) struct Announcing {
    next_at: Option<Instant>,
    last_at: Option<Instant>,
    /// The announcement that is being written to disk.
    pending: Option<(TaskId, Record)>,
    /// The one that is being stored.
    storing: Option<Storing>,
    /// How many were to be made again since somebody acknowledged one who had not acknowledged the one before.
    silences: u32,
    /// The highest version of the own NodeInfo that a holder has named.
    version_held: u64,
    /// Whether one was acknowledged since what is served has changed.
    pub(super) is_acknowledged: bool,
}

/// One version of the own NodeInfo on its way to its holders.
#[derive(Clone, Debug)]
struct Storing {
    version: u64,
    /// For each place who holds it, and who of them has acknowledged.
    places: Vec<(BTreeSet<NodeId>, BTreeSet<NodeId>)>,
    /// Who has not answered yet.
    open: BTreeSet<NodeId>,
    /// Who had acknowledged the version before.
    had_before: BTreeSet<NodeId>,
}

impl Storing {
    /// Returns whether enough holders of each place have it (Rule 6.6).
    fn is_acknowledged(&self) -> bool {
        let enough = |holders: &BTreeSet<_>| holders.len().clamp(1, ACKNOWLEDGEMENTS);
        self.places.iter().all(|(holders, acknowledged)| acknowledged.len() >= enough(holders))
    }

    fn acknowledged(&self) -> BTreeSet<NodeId> {
        self.places.iter().flat_map(|(_, acknowledged)| acknowledged).copied().collect()
    }

    /// Returns whether anybody else has it who did not have the one before.
    fn has_news(&self, me: NodeId) -> bool {
        self.acknowledged().iter().any(|by| *by != me && !self.had_before.contains(by))
    }
}

/// Returns the highest version that a holder takes at a time (Rule 2.7).
fn latest_version(time: UnixTime) -> u64 {
    time.after(MAX_VERSION_AHEAD).as_millis()
}

impl Node {
    pub(super) const fn announcing_at(&self) -> Option<Instant> {
        self.serving.announcing.next_at
    }

    pub(super) fn announcing_timeout(&mut self, now: Now) {
        if self.serving.announcing.next_at.is_some_and(|at| at <= now.mono) {
            self.announce(now);
        }
    }

    /// Plans an announcement because something in it has changed.
    pub(super) fn announce_soon(&mut self, now: Now) {
        self.announce_at(now.mono.after(ANNOUNCE_DELAY));
    }

    /// Plans an announcement, unless one is planned before that.
    fn announce_at(&mut self, at: Instant) {
        let nothing = !self.has_to_announce();
        let announcing = &mut self.serving.announcing;
        if nothing {
            announcing.next_at = None;
            return;
        }
        let at = announcing.last_at.map_or(at, |last| at.max(last.after(ANNOUNCE_PAUSE)));
        announcing.next_at = Some(announcing.next_at.map_or(at, |planned| planned.min(at)));
    }

    /// Returns whether others have to find this node: a tunnel-node that is attached, or a super-node (Rule 6.7).
    fn has_to_announce(&self) -> bool {
        let serves = !self.serving.served.is_empty() && !self.serving.attachments.is_empty();
        serves || self.is_holder()
    }

    /// Returns the own NodeInfo of the last announcement.
    pub(super) fn own_info(&self) -> Option<&Record> {
        self.records.get(Table::NodeInfo, self.me.id.domain, self.me.id.record_key())
    }

    /// Makes a new NodeInfo and writes it to disk; it is sent once that is safe, so that no version is used twice.
    fn announce(&mut self, now: Now) {
        self.serving.announcing.next_at = Some(now.mono.after(self.jittered(ANNOUNCE_INTERVAL)));
        if !self.has_to_announce() || !self.endpoint.clock().is_learned() {
            self.serving.announcing.next_at = None;
            return;
        }
        self.serving.announcing.last_at = Some(now.mono);
        // Around midnight and a change of epoch each location has four tags, so fewer candidates or locations fit.
        let sizes = (1..=MAX_ANNOUNCED_LOCATIONS).rev().flat_map(|locations| {
            (MIN_ANNOUNCED..=MAX_ANNOUNCED).rev().map(move |candidates| (locations, candidates))
        });
        let signed = sizes.into_iter().find_map(|size| self.node_info(size, now));
        let Some(record) = signed else {
            return self.endpoint.discard(Discard::BadRecord);
        };
        // What was made while the clock was ahead, or above a lie, would not give way to it.
        let (table, domain, key) = record.header().id();
        self.records.remove(table, domain, key);
        self.records.insert(record.clone());
        let task = self.new_task();
        self.serving.announcing.pending = Some((task, record.clone()));
        self.outputs.push_back(Output::Store { task, changes: vec![Change::Put(record)] });
    }

    /// Makes a NodeInfo with at most so many locations and candidates; none if that does not fit.
    fn node_info(&mut self, (most_locations, most_candidates): (usize, usize), now: Now) -> Option<Record> {
        let (id, time) = (self.me.id, self.endpoint.time(now));
        let own = self.own_info().map_or(0, |record| record.header().version);
        // Nobody has taken one from the future, so that the next one need not be above it.
        let versions = [own, self.serving.announcing.version_held].into_iter();
        let last = versions.filter(|version| *version <= latest_version(time)).max().unwrap_or(0);
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
        let public = NodeInfoPublic { statement, tags, addresses: self.held_addresses() };
        let candidates = self.announced_candidates(most_candidates, now);
        let attachments = self.serving.attachments.keys().copied().collect();
        let private = NodeInfoPrivate { candidates, locations, attachments };
        let mut salt = [0; 16];
        self.endpoint.rng().fill_bytes(&mut salt);
        let draft = Draft { header, public: public.write(), private: None };
        let draft = draft.with_private(&self.keys, salt, private.write());
        draft.sign(self.endpoint.identity(), self.trust.network(), self.endpoint.crypto()).ok()
    }

    /// Returns the version of the own NodeInfo that was announced last, and who has acknowledged it so far.
    pub fn acknowledged(&self) -> Option<(u64, BTreeSet<NodeId>)> {
        let storing = self.serving.announcing.storing.as_ref()?;
        Some((storing.version, storing.acknowledged()))
    }

    /// Returns the own locations at which a served device is.
    pub(super) fn served_locations(&self) -> Vec<LocationId> {
        let at = |location: &LocationId| {
            let served = self.serving.served.iter().filter_map(|device| self.devices.get(device));
            served.into_iter().any(|(_, device)| device.site.contains(location))
        };
        self.places.all().filter(at).collect()
    }

    pub(super) fn own_candidates(&self) -> Vec<Candidate> {
        let own = candidates(&self.interfaces, &self.advertise, self.port, self.one_machine, self.bound);
        // Before those of the LAN, which are of no use elsewhere, and which may not all find room.
        let (configured, hosts): (Vec<_>, Vec<_>) =
            own.into_iter().partition(|candidate| candidate.kind == CandidateKind::Configured);
        let all = configured.into_iter().chain(self.mapping.candidates()).chain(hosts);
        all.take(MAX_CANDIDATES).collect()
    }

    /// The announcement is on disk: now it goes to every holder of each of its places.
    pub(super) fn stored(&mut self, task: TaskId, ok: bool, now: Now) {
        let pending = &mut self.serving.announcing.pending;
        let Some((_, record)) = pending.take_if(|(pending, _)| *pending == task) else { return };
        if !ok {
            return self.announce_again(now);
        }
        // A holder of its own places has it as safely as any other.
        let is_held = self.hold_own_info(&record, now);
        let before = self.serving.announcing.storing.as_ref();
        let had_before = before.map(Storing::acknowledged).unwrap_or_default();
        let version = record.header().version;
        let mut storing = Storing { version, places: Vec::new(), open: BTreeSet::new(), had_before };
        for (stretch, servers) in self.places_of(&record, now) {
            let me = (is_held && self.holds_place(stretch.from)).then_some(self.me.id);
            let holders = servers.iter().map(|server| server.node).chain(me).collect();
            storing.places.push((holders, me.into_iter().collect()));
            for server in servers {
                // One Store serves all the places that it holds.
                if storing.open.insert(server.node) {
                    let purpose = Purpose::Announce(storing.version);
                    self.ask(server, &Request::Store(record.bytes().clone()), purpose, now);
                }
            }
        }
        self.serving.announcing.storing = Some(storing);
        self.review_storing(now);
    }

    /// Returns the holders of each stretch in which a place of a NodeInfo lies: of its node's id, and of each tag.
    fn places_of(&mut self, record: &Record, now: Now) -> Vec<(Segment, Vec<Server>)> {
        let domain = self.me.id.domain;
        let places = NodeInfoPublic::read(record).map(|body| body.placements(domain)).unwrap_or_default();
        let stretches: BTreeSet<_> = places.into_iter().map(|place| self.segment_of(place)).collect();
        stretches.into_iter().map(|stretch| (stretch, self.holders(&stretch, now))).collect()
    }

    pub(super) fn announced(&mut self, version: u64, by: NodeId, reply: &Reply, now: Now) {
        let Reply::Stored { table: Table::NodeInfo, version: held, .. } = *reply else {
            return self.announcement_failed(version, by, now);
        };
        let own = self.own_info().map_or(0, |record| record.header().version);
        let latest = latest_version(self.endpoint.time(now));
        if held > own && held > latest {
            // No honest holder can have taken that. To believe it would make every other one drop the next.
            self.servers.mark(by, now.mono);
            return self.announcement_failed(version, by, now);
        }
        if held > own {
            // Somebody holds a newer one: this machine's clock went back, or it was cloned. The next one has to be
            // above that (Rule 6.6).
            self.serving.announcing.version_held = held;
            return self.announce_soon(now);
        }
        let storing = self.serving.announcing.storing.as_mut();
        let Some(storing) = storing.filter(|storing| storing.version == version && held == version) else {
            return self.announcement_failed(version, by, now);
        };
        storing.open.remove(&by);
        let held = storing.places.iter_mut().filter(|(holders, _)| holders.contains(&by));
        held.for_each(|(_, acknowledged)| {
            acknowledged.insert(by);
        });
        self.review_storing(now);
    }

    /// A holder has not taken the announcement; it is offered the next one.
    pub(super) fn announcement_failed(&mut self, version: u64, by: NodeId, now: Now) {
        let storing = self.serving.announcing.storing.as_mut();
        if let Some(storing) = storing.filter(|storing| storing.version == version) {
            storing.open.remove(&by);
            self.review_storing(now);
        }
    }

    fn review_storing(&mut self, now: Now) {
        let Some(storing) = &self.serving.announcing.storing else { return };
        let (is_acknowledged, is_over) = (storing.is_acknowledged(), storing.open.is_empty());
        if storing.has_news(self.me.id) {
            self.serving.announcing.silences = 0;
        }
        if is_acknowledged && !std::mem::replace(&mut self.serving.announcing.is_acknowledged, true) {
            let served = self.serving.served.iter().copied().collect();
            self.event(Event::Announced(served));
        } else if is_over && !is_acknowledged {
            self.announce_again(now);
        }
    }

    fn announce_again(&mut self, now: Now) {
        let longer = 2_u32.saturating_pow(self.serving.announcing.silences);
        self.serving.announcing.silences = self.serving.announcing.silences.saturating_add(1);
        let pause = self.jittered(RETRY_PAUSE.saturating_mul(longer).min(ANNOUNCE_INTERVAL));
        self.serving.announcing.next_at = Some(now.mono.after(pause));
    }

    /// Other super-nodes hold the own places now: those who did not get the last announcement get the next, which everybody makes
    /// at his own time.
    pub(super) fn super_nodes_changed(&mut self, now: Now) {
        self.review_attachments(now);
        let Some(record) = self.own_info().cloned() else { return };
        let holders = self.places_of(&record, now);
        let told = self.serving.announcing.storing.iter().flat_map(|storing| &storing.places);
        let told: BTreeSet<NodeId> = told.flat_map(|(holders, _)| holders.iter().copied()).collect();
        if holders.iter().flat_map(|(_, servers)| servers).any(|server| !told.contains(&server.node)) {
            let at = now.mono.after(self.jittered(ANNOUNCE_PAUSE));
            self.announce_at(at);
        }
    }
}
