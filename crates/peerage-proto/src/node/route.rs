//! The user-node: from a name that a person typed to a way to the device (Rules 6.15 to 6.19).

mod asking;
mod found;
mod here;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::codec::{Candidate, CandidateKind, Service};
use peerage_wire::id::{DeviceId, LinkId, LookupTag, NodeId};
use peerage_wire::record::{EndDevice, NodeInfoPrivate, NodeInfoPublic, Table, UnverifiedRecord, subject};
use peerage_wire::time::{Instant, Now};

use self::asking::Asking;
use self::found::FoundNodes;
use self::here::Here;
use super::lookup::Verdict;
use super::places::{is_private, may_dial, tags};
use super::queries::Query;
use super::sync::Gate;
use super::{Answer, Begun, Discard, Failure, Node, Route, TaskId, Way};
use crate::sizes::TableSize;
use crate::trust::{Member, Trust};

/// How long finding a way may take in all: a look-up with every server silent, then a path.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(12);

/// How long a tunnel-node that failed is passed over.
const FAILED_FOR: Duration = Duration::from_secs(60);

/// Most routes that are looked for at once.
const MAX_ROUTES: usize = 1_024;

/// Most tunnel-nodes of a site that are looked at.
const MAX_TUNNEL_NODES: usize = 8;

/// Most failures and preferences that are remembered.
const MAX_REMEMBERED: usize = 1_024;

#[derive(Clone, Debug)]
struct Search {
    device: String,
    service: Option<String>,
    /// The only tunnel-node that will do: the one that has the other end of an open tunnel.
    peer: Option<NodeId>,
    since: Instant,
    deadline: Instant,
    refreshed: bool,
    /// Under which tags tunnel-nodes were looked up while the Head was awaited.
    ahead: Option<Vec<LookupTag>>,
    /// Whether those who are asked were known before, so that they may be elsewhere by now.
    from_known: bool,
    /// Whether the device was looked for on the own LAN, or somebody who proves the place.
    sought_here: bool,
    /// What is being found out about the own LAN, also while tunnel-nodes are asked.
    here: Option<Here>,
    stage: Stage,
}

impl Search {
    /// Returns when something is due.
    fn due_at(&self) -> Instant {
        match &self.stage {
            Stage::Asking(asking) => self.deadline.min(asking.due_at()),
            Stage::AwaitingHere(Some(at)) | Stage::Observing(at) => self.deadline.min(*at),
            Stage::Resolving | Stage::AwaitingHere(None) | Stage::FindingNodes | Stage::CheckingNodes(_) => {
                self.deadline
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Stage {
    /// Waits for the Head, or the device's record.
    Resolving,
    /// Leaves it to the own LAN; until tunnel-nodes are to be asked as well, unless there is nobody left to ask.
    AwaitingHere(Option<Instant>),
    /// Waits, until then at most, to learn how its routers number ports: what a tunnel-node is told depends on it.
    Observing(Instant),
    /// Looks for tunnel-nodes.
    FindingNodes,
    /// Has the NodeInfo of tunnel-nodes, waits for their Node records.
    CheckingNodes(Vec<Bytes>),
    /// Asks tunnel-nodes for a path.
    Asking(Box<Asking>),
}

/// A tunnel-node that will do.
#[derive(Clone, Debug)]
struct Target {
    member: Member,
    /// Where its links are received, from its signed NodeInfo.
    announced: Vec<Candidate>,
    /// Those through whom it can be asked, and who relay.
    attached_to: Vec<NodeId>,
}

/// What a user-node remembers.
#[derive(Clone, Debug, Default)]
pub(super) struct Routing {
    searches: BTreeMap<TaskId, Search>,
    failed_at: BTreeMap<(DeviceId, NodeId), Instant>,
    /// Which tunnel-node served a device before.
    sticky: BTreeMap<DeviceId, NodeId>,
    /// How those were reached, as they announced it last.
    known: BTreeMap<NodeId, (DeviceId, Target)>,
    /// When a node's record was last looked for.
    looked_up_at: BTreeMap<NodeId, Instant>,
    /// When no neighbour was met who serves a device.
    unmet_at: BTreeMap<DeviceId, Instant>,
    /// The searches of the own LAN that are under way, also those for which nobody waits any more.
    finding: BTreeMap<TaskId, (DeviceId, Instant)>,
    /// Who was found lately, so that the next tunnel needs no look-up (Rule 6.4).
    found: BTreeMap<DeviceId, FoundNodes>,
}

impl Routing {
    pub(super) fn sizes(&self) -> [TableSize; 8] {
        [
            TableSize::new("routes", self.searches.len(), MAX_ROUTES),
            TableSize::new("failed routes", self.failed_at.len(), MAX_REMEMBERED),
            TableSize::new("tunnel-nodes used before", self.sticky.len(), MAX_REMEMBERED),
            TableSize::new("tunnel-nodes known", self.known.len(), MAX_REMEMBERED),
            TableSize::new("nodes looked up", self.looked_up_at.len(), MAX_REMEMBERED),
            TableSize::new("neighbours not met", self.unmet_at.len(), MAX_REMEMBERED),
            TableSize::new("tunnel-nodes found", self.found.len(), MAX_REMEMBERED),
            TableSize::new("devices looked for here", self.finding.len(), MAX_REMEMBERED),
        ]
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.searches.is_empty()
    }

    pub(super) fn is_route(&self, task: TaskId) -> bool {
        self.searches.contains_key(&task)
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        self.searches.values().map(Search::due_at).min()
    }
}

impl Node {
    pub(super) fn route(&mut self, task: TaskId, device: String, service: Option<String>, now: Now) {
        if self.is_revoked() {
            return self.answer(task, Answer::Failed(Failure::Revoked));
        }
        if self.is_expired(now) {
            return self.answer(task, Answer::Failed(Failure::Expired));
        }
        if self.routing.searches.len() >= MAX_ROUTES {
            return self.answer(task, Answer::Failed(Failure::Busy));
        }
        let (since, deadline) = (now.mono, now.mono.after(ROUTE_TIMEOUT));
        let search = Search {
            device,
            service,
            peer: None,
            since,
            deadline,
            refreshed: false,
            ahead: None,
            from_known: false,
            sought_here: false,
            here: None,
            stage: Stage::Resolving,
        };
        self.routing.searches.insert(task, search);
    }

    /// Finds out where the tunnel-node of an open tunnel is now.
    pub(super) fn path(
        &mut self,
        task: TaskId,
        (peer, device): (NodeId, DeviceId),
        service: String,
        now: Now,
    ) {
        if self.routing.searches.values().any(|search| search.peer == Some(peer)) {
            return self.answer(task, Answer::Failed(Failure::Busy));
        }
        self.route(task, device.to_string(), Some(service), now);
        let Some(search) = self.routing.searches.get_mut(&task) else { return };
        search.peer = Some(peer);
        self.ask_known(task, (peer, device), now);
    }

    /// Asks the tunnel-node of an open tunnel at once as it was reached last. Meanwhile the network tells where it is now, for the next
    /// time.
    fn ask_known(&mut self, task: TaskId, (peer, device): (NodeId, DeviceId), now: Now) {
        let Some((_, target)) = self.routing.known.get(&peer).cloned() else { return };
        let Some((_, device)) = self.devices.get(&device).cloned() else { return };
        if self.trust.is_revoked(&peer) {
            return;
        }
        let time = self.endpoint.time(now);
        let tags = tags(&device.site, &self.keys, self.epoch_began, time);
        // If there are too many look-ups already, this one is made the next time.
        self.look_up(Query::TunnelNodes(tags), None);
        self.ask_for_path(task, &device, vec![target], now);
    }

    /// Takes what a look-up has found for those tunnel-nodes that this node uses.
    pub(super) fn note_tunnel_nodes(&mut self, found: &[Bytes], now: Now) {
        for bytes in found {
            let Ok(info) = UnverifiedRecord::parse(bytes) else { continue };
            let node = subject(info.header());
            let Some((device, _)) = self.routing.known.get(&node) else { continue };
            let Some((_, device)) = self.devices.get(device).cloned() else { continue };
            if let Some(target) = self.target(bytes, node, &device, now) {
                self.routing.known.insert(node, (device.device, target));
            }
        }
    }

    fn route_failed_with(&mut self, task: TaskId, failure: Failure) {
        if self.goes_on_here(task) {
            return;
        }
        if self.routing.searches.remove(&task).is_some() {
            self.answer(task, Answer::Failed(failure));
        }
    }

    fn set_stage(&mut self, task: TaskId, stage: Stage) {
        if let Some(search) = self.routing.searches.get_mut(&task) {
            search.stage = stage;
        }
    }

    /// Looks again at every search that waits for something to become known.
    pub(super) fn advance_routes(&mut self, now: Now) {
        for task in self.routing.searches.keys().copied().collect::<Vec<_>>() {
            let Some(search) = self.routing.searches.get(&task).cloned() else { continue };
            match search.stage {
                Stage::Resolving => self.resolve(task, &search, now),
                Stage::CheckingNodes(infos) => self.check_nodes(task, &search.device, &infos, now),
                Stage::Observing(_) if self.awaits_observers(now).is_none() => {
                    self.ask_tunnel_nodes(task, now);
                }
                Stage::Observing(_) | Stage::AwaitingHere(_) | Stage::FindingNodes | Stage::Asking(_) => {}
            }
        }
    }

    /// Returns the device that a person means: by name, or by id in hexadecimal digits.
    fn named_device(&self, name: &str) -> Option<&EndDevice> {
        let by_id = || name.parse::<DeviceId>().ok().and_then(|id| self.devices.get(&id));
        let by_name = self.devices.values().find(|(_, device)| device.name == name);
        by_name.or_else(by_id).map(|(_, device)| device)
    }

    fn resolve(&mut self, task: TaskId, search: &Search, now: Now) {
        match self.gate(search.since, now) {
            Gate::Wait => return self.look_ahead(task, search, now),
            Gate::Stale if self.freshness.record().is_none() => {
                return self.route_failed_with(task, Failure::Offline);
            }
            Gate::Stale => return self.route_failed_with(task, Failure::Stale),
            Gate::Open => {}
        }
        if self.is_revoked() {
            return self.route_failed_with(task, Failure::Revoked);
        }
        let Some(device) = self.named_device(&search.device).cloned() else {
            return self.resolve_anew(task, Failure::UnknownDevice);
        };
        let Some(service) = chosen_service(&device, search.service.as_deref()).cloned() else {
            return self.route_failed_with(task, Failure::UnknownService);
        };
        if !device.users.is_empty() && !device.users.contains(&self.me.id) {
            return self.route_failed_with(task, Failure::NotAllowed);
        }
        if search.peer.is_none() && self.may_be_local(&device, &service) {
            return self.find_here(task, &device, now);
        }
        self.find_nodes(task, &device, now);
    }

    /// Looks up the devices, once for each route: one that is not known may have been registered a moment ago, and one that nobody had
    /// seen may have been seen since.
    fn resolve_anew(&mut self, task: TaskId, failure: Failure) {
        let Some(search) = self.routing.searches.get_mut(&task) else { return };
        search.stage = Stage::Resolving;
        let was_refreshed = search.refreshed;
        if self.is_looking_up(&Query::Devices) {
            return;
        }
        if was_refreshed {
            return self.route_failed_with(task, failure);
        }
        if let Some(search) = self.routing.searches.get_mut(&task) {
            search.refreshed = true;
        }
        if !self.look_up(Query::Devices, None) {
            self.route_failed_with(task, Failure::Busy);
        }
    }

    // ---- through a tunnel-node --------------------------------------------------------------

    /// Looks for tunnel-nodes, or goes on with those who were found before the own LAN or the routers were looked at.
    fn ask_tunnel_nodes(&mut self, task: TaskId, now: Now) {
        let Some(search) = self.routing.searches.get(&task) else { return };
        match self.named_device(&search.device).cloned() {
            Some(device) => self.find_nodes(task, &device, now),
            None => self.route_failed_with(task, Failure::UnknownDevice),
        }
    }

    fn find_nodes(&mut self, task: TaskId, device: &EndDevice, now: Now) {
        let known = self.known_nodes(task, device, now);
        // A device that is here needs no link, and neighbours who are known say so at once.
        let may_be_here = known.is_some() && self.may_meet(task, device, now);
        if !may_be_here && self.use_standing_link(task, device) {
            return;
        }
        if device.site.is_empty() {
            return self.resolve_anew(task, Failure::NoTunnelNode);
        }
        self.look_from_outside(now);
        if let Some(infos) = known {
            if let Some(search) = self.routing.searches.get_mut(&task) {
                search.from_known = true;
            }
            self.set_stage(task, Stage::CheckingNodes(infos.clone()));
            return self.check_nodes(task, &device.device.to_string(), &infos, now);
        }
        self.set_stage(task, Stage::FindingNodes);
        let time = self.endpoint.time(now);
        let tags = tags(&device.site, &self.keys, self.epoch_began, time);
        if !self.look_up(Query::TunnelNodes(tags), Some(task)) {
            self.route_failed_with(task, Failure::Busy);
        }
    }

    /// Uses the tunnel-node that served before if a link to it stands: nothing has to be asked then.
    fn use_standing_link(&mut self, task: TaskId, device: &EndDevice) -> bool {
        if self.routing.searches.get(&task).is_some_and(|search| search.peer.is_some()) {
            return false;
        }
        let Some(peer) = self.routing.sticky.get(&device.device).copied() else { return false };
        let failed = self.routing.failed_at.contains_key(&(device.device, peer));
        let permitted = device.servers.is_empty() || device.servers.contains(&peer);
        if failed || !permitted || !self.links.contains(&peer) || self.trust.is_revoked(&peer) {
            return false;
        }
        let Some(identity) = self.endpoint.peer(&peer).map(|member| member.identity) else { return false };
        let service = self.routing.searches.get(&task).and_then(|search| search.service.clone());
        let Some(service) = chosen_service(device, service.as_deref()).cloned() else { return false };
        let way = Way::Tunnel { peer, identity, candidates: Vec::new(), relayed: None, begun: None };
        self.found_way(task, device, service, way);
        true
    }

    pub(super) fn tunnel_nodes_found(&mut self, task: TaskId, found: &[Bytes], verdict: Verdict) {
        if !self.routing.is_route(task) {
            return;
        }
        if verdict == Verdict::Silence {
            return self.route_failed_with(task, Failure::Offline);
        }
        let infos: Vec<_> = found.iter().take(MAX_TUNNEL_NODES).cloned().collect();
        self.set_stage(task, Stage::CheckingNodes(infos));
    }

    /// Verifies the tunnel-nodes that were found, and asks the best one for a path.
    fn check_nodes(&mut self, task: TaskId, name: &str, infos: &[Bytes], now: Now) {
        let search = self.routing.searches.get(&task);
        let (since, only) = search.map_or((now.mono, None), |search| (search.since, search.peer));
        let Some(device) = self.named_device(name).cloned() else {
            return self.route_failed_with(task, Failure::UnknownDevice);
        };
        let mut waiting = false;
        let mut targets = Vec::new();
        for bytes in infos {
            let Ok(info) = UnverifiedRecord::parse(bytes) else { continue };
            let node = subject(info.header());
            let is_other = only.is_some_and(|only| only != node);
            if node.domain != self.me.id.domain || node == self.me.id || is_other {
                continue;
            }
            match self.membership(node, since, now) {
                None => waiting = true,
                Some(false) => {}
                Some(true) => targets.extend(self.target(bytes, node, &device, now)),
            }
        }
        if waiting {
            return;
        }
        if targets.is_empty() && self.routing.found.remove(&device.device).is_some() {
            // Those who were known have gone, or may not serve any more.
            return self.find_anew(task, &device, now);
        }
        let search = self.routing.searches.get(&task);
        // What was known before is not younger for being used.
        if !targets.is_empty() && search.is_some_and(|search| !search.from_known) {
            self.note_found(device.device, infos, now);
        }
        if !self.meet_neighbours(task, &device, &targets, now) {
            self.choose(task, &device, targets, now);
        }
    }

    /// Returns a tunnel-node that may serve the device, verified (Rule 6.15).
    fn target(&mut self, bytes: &Bytes, node: NodeId, device: &EndDevice, now: Now) -> Option<Target> {
        let record = self.records.get(Table::Node, node.domain, node.record_key())?;
        let member = Trust::member(record)?;
        let permitted = device.servers.is_empty() || device.servers.contains(&node);
        if !member.roles.tunnel || !permitted || self.trust.is_revoked(&node) {
            return None;
        }
        let time = self.endpoint.judging_time(now);
        let crypto = self.endpoint.crypto();
        let Ok(info) = self.trust.verify_node_info(bytes, &member, time, crypto) else {
            self.endpoint.discard(Discard::BadRecord);
            return None;
        };
        let public = NodeInfoPublic::read(&info).ok()?;
        let private = info.read_private(&self.keys, crypto, NodeInfoPrivate::read).ok()?;
        let genuine = public.statement.verify(&member.identity, self.trust.network(), crypto);
        if !genuine || !private.locations.iter().any(|location| device.site.contains(location)) {
            return None;
        }
        self.endpoint.learn_peer(member, public.statement, now);
        let announced = self.dialable(private.candidates, device);
        Some(Target { member, announced, attached_to: private.attachments })
    }

    /// Asks the tunnel-node that served before, else the first that did not fail lately, those first that others can reach; and soon those
    /// after it.
    fn choose(&mut self, task: TaskId, device: &EndDevice, mut targets: Vec<Target>, now: Now) {
        let sticky = self.routing.sticky.get(&device.device).copied();
        targets.sort_by_key(|target| {
            let id = target.member.id;
            let mut relays = target.attached_to.iter();
            let has_relay = relays.len() == 0 || relays.any(|relay| !self.legs.is_full(relay, now.mono));
            let failed = self.failed_lately(device.device, id, now);
            let order = (failed, !has_relay, Some(id) != sticky, !self.links.contains(&id));
            (order, how_hidden(&target.announced))
        });
        let Some(target) = targets.first() else {
            return self.route_failed_with(task, Failure::NoTunnelNode);
        };
        let is_lost = self.routing.searches.get(&task).is_some_and(|search| search.peer.is_some());
        if self.links.contains(&target.member.id) && !is_lost {
            let target = target.clone();
            return self.path_found(task, target, (Vec::new(), None, None));
        }
        if let Some(until) = self.awaits_observers(now).filter(|_| !is_lost) {
            return self.set_stage(task, Stage::Observing(until));
        }
        self.ask_for_path(task, device, targets, now);
    }

    /// Returns those of the places that a tunnel-node names which may be dialled from here. Where its device is here as well, those on this
    /// LAN come first: from inside, hardly any router leads back to its outer address.
    fn dialable(&self, mut candidates: Vec<Candidate>, device: &EndDevice) -> Vec<Candidate> {
        candidates.retain(|c| may_dial(c.address.ip(), &self.interfaces, self.one_machine));
        let here = self.interfaces_here(device);
        candidates.sort_by_key(|c| !here.iter().any(|own| own.is_on_link(c.address.ip())));
        candidates
    }

    /// Says which tunnel-node it is, where to dial it, and the attempt for which a leg is under way.
    fn path_found(
        &mut self,
        task: TaskId,
        target: Target,
        (candidates, relayed, begun): (Vec<Candidate>, Option<LinkId>, Option<Begun>),
    ) {
        let Some((device, service)) = self.chosen(task) else {
            return self.route_failed_with(task, Failure::UnknownDevice);
        };
        let (peer, identity) = (target.member.id, target.member.identity);
        if self.routing.searches.get(&task).is_some_and(|search| search.peer.is_none()) {
            if self.routing.sticky.len() >= MAX_REMEMBERED {
                self.routing.sticky.clear();
            }
            self.routing.sticky.insert(device.device, peer);
        }
        if self.routing.known.len() >= MAX_REMEMBERED {
            self.routing.known.clear();
        }
        self.routing.known.insert(peer, (device.device, target));
        self.found_way(task, &device, service, Way::Tunnel { peer, identity, candidates, relayed, begun });
    }

    fn found_way(&mut self, task: TaskId, device: &EndDevice, service: Service, way: Way) {
        if let Some(Search { here: Some(Here::Meeting(_)), since, .. }) = self.routing.searches.remove(&task)
        {
            // A neighbour would have answered before whoever has led elsewhere.
            self.note_unmet(device.device, since);
        }
        let route = Route {
            device: device.device,
            name: device.name.clone(),
            service,
            pins: device.pins.clone(),
            way,
        };
        self.answer(task, Answer::Route(Box::new(route)));
    }

    /// Returns the device that a search is for, and the service.
    fn chosen(&self, task: TaskId) -> Option<(EndDevice, Service)> {
        let search = self.routing.searches.get(&task)?;
        let device = self.named_device(&search.device)?;
        let service = chosen_service(device, search.service.as_deref())?;
        Some((device.clone(), service.clone()))
    }

    fn failed_lately(&self, device: DeviceId, peer: NodeId, now: Now) -> bool {
        self.routing.failed_at.get(&(device, peer)).is_some_and(|at| now.mono - *at < FAILED_FOR)
    }

    pub(super) fn route_failed(&mut self, device: DeviceId, peer: NodeId, now: Now) {
        if self.routing.failed_at.len() >= MAX_REMEMBERED {
            self.routing.failed_at.retain(|_, at| now.mono - *at < FAILED_FOR);
        }
        self.routing.failed_at.insert((device, peer), now.mono);
        self.routing.found.remove(&device);
        if self.routing.sticky.get(&device) == Some(&peer) {
            self.routing.sticky.remove(&device);
        }
    }

    pub(super) fn routing_timeout(&mut self, now: Now) {
        self.routing.failed_at.retain(|_, at| now.mono - *at < FAILED_FOR);
        let late = self.routing.searches.iter().filter(|(_, search)| search.due_at() <= now.mono);
        let late: Vec<_> = late.map(|(task, search)| (*task, search.stage.clone())).collect();
        for (task, stage) in late {
            let is_over = self.is_over(task, now);
            if let Some(search) = self.routing.searches.get_mut(&task).filter(|_| is_over) {
                // Nor is the own LAN waited for.
                search.here = None;
            }
            match stage {
                Stage::Asking(_) => self.asking_timeout(task, now),
                Stage::Observing(_) | Stage::AwaitingHere(Some(_)) if !is_over => {
                    self.ask_tunnel_nodes(task, now);
                }
                Stage::Resolving | Stage::FindingNodes => self.route_failed_with(task, Failure::Offline),
                Stage::AwaitingHere(_) => self.route_failed_with(task, Failure::UnusableDevice),
                Stage::Observing(_) | Stage::CheckingNodes(_) => {
                    self.route_failed_with(task, Failure::NoTunnelNode);
                }
            }
        }
    }

    /// Returns whether a search has taken as long as it may: nothing may be begun for it any more.
    fn is_over(&self, task: TaskId, now: Now) -> bool {
        self.routing.searches.get(&task).is_none_or(|search| search.deadline <= now.mono)
    }
}

/// Returns how unlikely it is that a node with these candidates is reached without a relay.
fn how_hidden(announced: &[Candidate]) -> u8 {
    let of_one = |candidate: &Candidate| match candidate.kind {
        CandidateKind::Configured | CandidateKind::Mapped => 0,
        CandidateKind::Ethernet | CandidateKind::Wifi if !is_private(candidate.address.ip()) => 0,
        // Others see it at one place, whoever they are.
        CandidateKind::Reflexive => 1,
        CandidateKind::Ethernet
        | CandidateKind::Wifi
        | CandidateKind::Vpn
        | CandidateKind::Sequential
        | CandidateKind::Scattered => 2,
    };
    announced.iter().map(of_one).min().unwrap_or(2)
}

/// Returns the service that was asked for, or the first.
fn chosen_service<'a>(device: &'a EndDevice, name: Option<&str>) -> Option<&'a Service> {
    match name {
        Some(name) => device.service(name),
        None => device.services.first(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::tests::Bed;
    use crate::node::{Answer, Input, Output};

    /// Searches that wait for something which would begin another stage a moment after their time, or just then.
    #[test]
    fn a_search_whose_time_is_over_begins_nothing_more() {
        for beyond in [Duration::ZERO, Duration::from_millis(1)] {
            for here in [None, Some(Here::Finding(TaskId(8)))] {
                let over = |at: Instant| at.after(ROUTE_TIMEOUT);
                let stages: [fn(Instant) -> Stage; 3] =
                    [|at| Stage::AwaitingHere(Some(at)), Stage::Observing, |_| Stage::FindingNodes];
                for stage in stages {
                    let mut bed = Bed::new();
                    let mut node = crate::node::tests::node(&mut bed, Vec::new());
                    node.route(TaskId(7), "hp".to_owned(), None, bed.now);
                    node.set_stage(TaskId(7), stage(over(bed.now.mono).after(beyond)));
                    node.routing.searches.values_mut().for_each(|search| search.here.clone_from(&here));
                    bed.now = bed.now.after(ROUTE_TIMEOUT);
                    node.handle(Input::Timeout, bed.now);
                    let answered = std::iter::from_fn(|| node.poll_output()).any(|output| {
                        matches!(output, Output::Answer { task: TaskId(7), answer: Answer::Failed(_) })
                    });
                    assert!(answered, "{here:?}");
                    assert_eq!(node.routing.next_at(), None);
                }
            }
        }
    }
}
