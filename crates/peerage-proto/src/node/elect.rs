//! Taking part in the elections of tunnel-nodes at the own locations (Rules 6.24 to 6.27): beacons in and out, look-ups of who has
//! announced itself, and whether those who have do answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::beacon::{Ballot, Beacon, BeaconError, Kind, NONCE_SIZE};
use peerage_wire::codec::Transport;
use peerage_wire::id::{LocationId, NodeId, SessionId};
use peerage_wire::message::{Request, TunnelRequest};
use peerage_wire::record::{EndDevice, NodeInfoPrivate, NodeInfoPublic, Table, UnverifiedRecord, subject};
use peerage_wire::time::{Instant, Now, UnixTime};

use super::lookup::{Server, Verdict};
use super::places::{EPOCH_MARGIN_SECS, may_dial, tags};
use super::queries::Query;
use super::status::{ElectedStatus, ElectionStatus};
use super::{Discard, Node, Output, Purpose, RequestId, TaskId};
use crate::election::{Election, Happening, Order, SPREAD};
use crate::sizes::TableSize;
use crate::trust::{Member, Trust};

/// Most elections in which a node takes part; at what is elected beyond them it serves without having been elected.
const MAX_CONTESTS: usize = 16;

/// How far a beacon's time may be from the own.
const TIME_WINDOW: Duration = Duration::from_secs(60);

/// How old an announcement may be that counts: the next is due after 300 s ± 20 %, and takes a moment.
const ANNOUNCED_FOR: Duration = Duration::from_secs(390);

/// Most announced nodes at a location that are looked at, and asked whether they answer.
const MAX_CANDIDATES: usize = 16;

/// How a node takes part in elections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elections {
    /// How many tunnel-nodes a location is to have; the same at all nodes of a domain, and at least one.
    pub seats: usize,
    /// Whether beacons may be sent; without them nodes go by what others have announced, which takes minutes.
    pub multicast: bool,
    /// Over how long candidates are spread.
    pub spread: Duration,
}

impl Default for Elections {
    fn default() -> Self {
        Self { seats: crate::election::DEFAULT_SEATS, multicast: true, spread: SPREAD }
    }
}

/// One election in which this node may stand.
#[derive(Clone, Debug)]
struct Contest {
    election: Election,
    location: LocationId,
    interface: u32,
    /// Who may stand; empty: every member.
    servers: Vec<NodeId>,
}

/// A look-up of who has announced itself.
#[derive(Clone, Debug)]
struct Survey {
    ballot: Ballot,
    answering: bool,
    since: Instant,
    stage: Stage,
}

#[derive(Clone, Debug)]
enum Stage {
    Finding,
    /// Has NodeInfo records, waits for the Node records of who made them.
    Verifying(Vec<Bytes>),
    /// Waits for answers; has those of so many.
    Asking(BTreeMap<RequestId, Asked>, BTreeSet<NodeId>),
}

/// One that was asked whether it answers.
#[derive(Clone, Copy, Debug)]
struct Asked {
    node: NodeId,
    /// Where it is asked next if it does not.
    otherwise: Option<SocketAddr>,
}

/// What a node remembers of its elections.
#[derive(Clone, Debug)]
pub(super) struct Electing {
    config: Elections,
    contests: BTreeMap<Ballot, Contest>,
    surveys: BTreeMap<TaskId, Survey>,
    /// Interfaces on which a beacon could not be sent since the networks last changed.
    mute: BTreeSet<u32>,
    is_attached: bool,
    is_stopped: bool,
    /// The time of the last beacon.
    sent: UnixTime,
}

impl Electing {
    pub(super) const fn new(config: Elections) -> Self {
        Self {
            config,
            contests: BTreeMap::new(),
            surveys: BTreeMap::new(),
            mute: BTreeSet::new(),
            is_attached: false,
            is_stopped: false,
            sent: UnixTime::from_millis(0),
        }
    }

    pub(super) fn sizes(&self) -> [TableSize; 2] {
        [
            TableSize::new("elections", self.contests.len(), MAX_CONTESTS),
            // Whether to stand, and who was found, for each.
            TableSize::new("surveys of locations", self.surveys.len(), 2 * MAX_CONTESTS),
        ]
    }

    pub(super) fn is_survey(&self, task: TaskId) -> bool {
        self.surveys.contains_key(&task)
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        self.contests.values().filter_map(|contest| contest.election.poll_timeout()).min()
    }
}

impl Node {
    /// Returns who serves at the own locations.
    pub(super) fn election_status(&self, now: Instant) -> Vec<ElectionStatus> {
        let status = |contest: &Contest| {
            let others = contest.election.serving(now);
            ElectionStatus {
                location: contest.location,
                servers: contest.servers.clone(),
                elected_for: contest.election.elected_for(now),
                is_additional: contest.election.is_additional(),
                others: others.map(|(node, elected_for)| ElectedStatus { node, elected_for }).collect(),
                hears: !contest.election.is_deaf(),
            }
        };
        self.electing.contests.values().map(status).collect()
    }

    // ---- what is elected --------------------------------------------------------------------

    /// Returns whether this node could serve a device: it stands at one of its locations, and is not excluded.
    pub(super) fn could_serve(&self, device: &EndDevice) -> bool {
        let named = device.servers.is_empty() || device.servers.contains(&self.me.id);
        self.may_serve() && named && !self.places.interfaces_at(&device.site).is_empty()
    }

    /// Returns whether this node is to serve a device that it could serve.
    pub(super) fn is_elected_for(&self, device: &EndDevice) -> bool {
        let here = device.site.iter().filter(|location| self.places.interface_at(location).is_some());
        let elected = |ballot: Ballot| {
            self.electing.contests.get(&ballot).is_none_or(|contest| contest.election.is_elected())
        };
        here.map(|location| Ballot::new(location, &device.servers)).any(elected)
    }

    /// Begins and ends elections as locations and devices require it.
    pub(super) fn review_contests(&mut self, now: Now) {
        let mut wanted = BTreeMap::new();
        let config = self.electing.config;
        let standing = !self.electing.is_stopped && !self.is_revoked();
        let devices = self.devices.values().map(|(_, device)| device);
        for device in devices.filter(|device| standing && self.could_serve(device)) {
            // Those whom an administrator has named serve, if they are few enough.
            let is_contested = device.servers.is_empty() || device.servers.len() > config.seats;
            for location in device.site.iter().filter(|_| is_contested) {
                if let Some(interface) = self.places.interface_at(location) {
                    let ballot = Ballot::new(location, &device.servers);
                    wanted.insert(ballot, (*location, interface, device.servers.clone()));
                }
            }
        }
        let gone = |ballot: &Ballot, contest: &Contest| {
            wanted.get(ballot).is_none_or(|(_, interface, _)| *interface != contest.interface)
        };
        let ended = self.electing.contests.iter().filter(|(ballot, contest)| gone(ballot, contest));
        for ballot in ended.map(|(ballot, _)| *ballot).collect::<Vec<_>>() {
            if let Some(contest) = self.electing.contests.get_mut(&ballot) {
                contest.election.handle(Happening::Stop, now.mono);
            }
            self.carry_out(ballot, now);
            self.electing.contests.remove(&ballot);
            self.electing.surveys.retain(|_, survey| survey.ballot != ballot);
        }
        for (ballot, (location, interface, servers)) in wanted.into_iter().take(MAX_CONTESTS) {
            if self.electing.contests.contains_key(&ballot) {
                continue;
            }
            let multicast = config.multicast && !self.electing.mute.contains(&interface);
            let (node, seats, spread) = (self.me.id, config.seats.max(1), config.spread);
            let config = crate::election::Config { node, ballot, seats, multicast, spread };
            let election = Election::new(config, self.endpoint.below(u64::MAX), now.mono);
            self.electing.contests.insert(ballot, Contest { election, location, interface, servers });
            self.carry_out(ballot, now);
        }
    }

    /// The node stops, or the computer is about to sleep: others need not wait until it is missed.
    pub(super) fn stop_standing(&mut self, now: Now) {
        self.electing.is_stopped = true;
        self.review_serving(now);
    }

    /// The networks are these now: what could not be sent before may be sent again, and the elections there begin anew.
    pub(super) fn stand_again(&mut self) {
        self.electing.is_stopped = false;
        let mute = std::mem::take(&mut self.electing.mute);
        self.electing.contests.retain(|_, contest| !mute.contains(&contest.interface));
        let contests = &self.electing.contests;
        self.electing.surveys.retain(|_, survey| contests.contains_key(&survey.ballot));
    }

    // ---- what happens -----------------------------------------------------------------------

    pub(super) fn elections_timeout(&mut self, now: Now) {
        let due = self
            .electing
            .contests
            .iter()
            .filter(|(_, contest)| contest.election.poll_timeout().is_some_and(|at| at <= now.mono));
        for ballot in due.map(|(ballot, _)| *ballot).collect::<Vec<_>>() {
            self.inform(ballot, Happening::Timeout, now);
        }
    }

    /// Goes on with what waits for something to become known, and tells elections whether this node is attached.
    pub(super) fn advance_elections(&mut self, now: Now) {
        let attached = self.serving.attachments.values().any(|attachment| attachment.observed.is_some());
        if std::mem::replace(&mut self.electing.is_attached, attached) != attached {
            for ballot in self.electing.contests.keys().copied().collect::<Vec<_>>() {
                self.inform(ballot, Happening::Attached(attached), now);
            }
            // What that made due now must not wait for another timeout.
            self.elections_timeout(now);
        }
        for (task, survey) in self.electing.surveys.clone() {
            if let Stage::Verifying(infos) = &survey.stage {
                self.verify_announced(task, &survey, infos, now);
            }
        }
    }

    /// A datagram came to the group of an interface.
    pub(super) fn multicast_received(&mut self, interface: u32, from: SocketAddr, payload: &[u8], now: Now) {
        if let Err(reason) = self.take_beacon(interface, from, payload, now) {
            self.endpoint.discard(reason);
        }
    }

    fn take_beacon(
        &mut self,
        interface: u32,
        from: SocketAddr,
        payload: &[u8],
        now: Now,
    ) -> Result<(), Discard> {
        let is_here = |from| self.interfaces.iter().any(|i| i.index == interface && i.is_on_link(from));
        let is_link_local = matches!(from.ip(), std::net::IpAddr::V6(ip) if ip.is_unicast_link_local());
        if !is_link_local && !is_here(from.ip()) {
            return Err(Discard::Forbidden);
        }
        let whose = (self.trust.network(), self.me.id.domain);
        let beacon = Beacon::open(payload, whose, &self.keys, self.endpoint.crypto());
        let beacon = beacon.map_err(|error| match error {
            BeaconError::Form | BeaconError::Unknown => Discard::Malformed,
            // Another domain lives here too, as a rule.
            BeaconError::Sealed => Discard::UnknownKey,
        })?;
        if beacon.node == self.me.id {
            return Ok(());
        }
        if self.trust.is_revoked(&beacon.node) {
            return Err(Discard::Revoked);
        }
        let time = self.endpoint.judging_time(now);
        if time.is_some_and(|time| beacon.time.distance(time) > TIME_WINDOW) {
            return Err(Discard::StaleTime);
        }
        // Of devices elsewhere, or that this node may not serve.
        let Some(contest) = self.electing.contests.get(&beacon.ballot) else { return Ok(()) };
        let may_stand = contest.servers.is_empty() || contest.servers.contains(&beacon.node);
        if contest.interface != interface || !may_stand {
            return Err(Discard::Forbidden);
        }
        if let (Kind::Elected | Kind::Additional, Some(digest)) = (beacon.kind, beacon.head) {
            self.neighbour_has_head(digest, now);
        }
        self.inform(beacon.ballot, Happening::Heard(&beacon), now);
        Ok(())
    }

    /// A beacon could not be sent, or the interface carries none.
    pub(super) fn multicast_failed(&mut self, interface: u32, now: Now) {
        self.electing.mute.insert(interface);
        let here = self.electing.contests.iter().filter(|(_, contest)| contest.interface == interface);
        for ballot in here.map(|(ballot, _)| *ballot).collect::<Vec<_>>() {
            self.inform(ballot, Happening::MulticastFailed, now);
        }
    }

    fn inform(&mut self, ballot: Ballot, happening: Happening<'_>, now: Now) {
        if let Some(contest) = self.electing.contests.get_mut(&ballot) {
            contest.election.handle(happening, now.mono);
            if self.carry_out(ballot, now) {
                self.review_serving(now);
            }
        }
    }

    /// Does what an election asks for. Returns whether this node was elected, or is no longer.
    fn carry_out(&mut self, ballot: Ballot, now: Now) -> bool {
        let mut has_changed = false;
        while let Some(contest) = self.electing.contests.get_mut(&ballot) {
            let (interface, location) = (contest.interface, contest.location);
            match contest.election.poll_order() {
                Some(Order::Send { kind, seated }) => {
                    self.send_beacon(ballot, interface, (kind, seated), now)
                }
                Some(Order::LookUp { answering }) => self.survey(ballot, location, answering, now),
                Some(Order::Elected(is_elected)) => {
                    has_changed = true;
                    if is_elected {
                        // Attached for another election perhaps, it hears of no change.
                        let attached = Happening::Attached(self.electing.is_attached);
                        contest.election.handle(attached, now.mono);
                    }
                }
                None => break,
            }
        }
        has_changed
    }

    fn send_beacon(&mut self, ballot: Ballot, interface: u32, (kind, seated): (Kind, Duration), now: Now) {
        let time = self.endpoint.time(now);
        let next = self.electing.sent.after(Duration::from_millis(1));
        self.electing.sent = time.max(next);
        let seated_secs = u32::try_from(seated.as_secs()).unwrap_or(u32::MAX);
        let head = self.fresh_digest(now);
        let beacon = Beacon { kind, node: self.me.id, ballot, time: self.electing.sent, seated_secs, head };
        // For as long as others may not have the new key yet, the one before is used, which those who have it keep.
        let is_new = time.since(self.epoch_began).as_secs() < EPOCH_MARGIN_SECS;
        let key = self.keys.previous.as_ref().filter(|_| is_new).unwrap_or(&self.keys.epoch_key).clone();
        let network = *self.trust.network();
        let mut nonce = [0; NONCE_SIZE];
        rand_core::Rng::fill_bytes(self.endpoint.rng(), &mut nonce);
        let payload = beacon.seal(&network, &key, self.endpoint.crypto(), &nonce);
        self.outputs.push_back(Output::Multicast { interface, payload: payload.into() });
    }

    // ---- who has announced itself -----------------------------------------------------------

    fn survey(&mut self, ballot: Ballot, location: LocationId, answering: bool, now: Now) {
        let task = self.new_task();
        let survey = Survey { ballot, answering, since: now.mono, stage: Stage::Finding };
        self.electing.surveys.insert(task, survey);
        let time = self.endpoint.time(now);
        let tags = tags(&[location], &self.keys, self.epoch_began, time);
        if !self.look_up(Query::TunnelNodes(tags), Some(task)) {
            self.surveyed(task, None, now);
        }
    }

    fn surveyed(&mut self, task: TaskId, found: Option<&[NodeId]>, now: Now) {
        if let Some(survey) = self.electing.surveys.remove(&task) {
            self.inform(survey.ballot, Happening::LookedUp(found), now);
        }
    }

    /// The look-up of a location has ended.
    pub(super) fn location_looked_up(&mut self, task: TaskId, found: &[Bytes], verdict: Verdict, now: Now) {
        if verdict == Verdict::Silence {
            return self.surveyed(task, None, now);
        }
        if let Some(survey) = self.electing.surveys.get_mut(&task) {
            survey.stage = Stage::Verifying(found.iter().take(MAX_CANDIDATES).cloned().collect());
        }
    }

    /// Keeps of what was found what is genuine, fresh, and of this location.
    fn verify_announced(&mut self, task: TaskId, survey: &Survey, infos: &[Bytes], now: Now) {
        let Some(contest) = self.electing.contests.get(&survey.ballot) else { return };
        let (location, servers) = (contest.location, contest.servers.clone());
        let mut announced = Vec::new();
        for bytes in infos {
            let Ok(info) = UnverifiedRecord::parse(bytes) else { continue };
            let node = subject(info.header());
            let age = self.endpoint.time(now).since(info.header().made_at());
            let may_stand = servers.is_empty() || servers.contains(&node);
            let is_other = node.domain == self.me.id.domain && node != self.me.id;
            if !is_other || !may_stand || age > ANNOUNCED_FOR {
                continue;
            }
            match self.membership(node, survey.since, now) {
                None => return,
                Some(false) => {}
                Some(true) => announced.extend(self.announcement(bytes, node, now)),
            }
        }
        announced.retain(|(_, private)| private.locations.contains(&location));
        let nodes: Vec<_> = announced.iter().map(|(member, _)| member.id).collect();
        if survey.answering {
            self.ask_whether_they_answer(task, &announced, now);
        } else {
            self.surveyed(task, Some(&nodes), now);
        }
    }

    /// Reads a NodeInfo of a tunnel-node whose Node record is held, and learns its sealing key.
    fn announcement(&mut self, bytes: &Bytes, node: NodeId, now: Now) -> Option<(Member, NodeInfoPrivate)> {
        let record = self.records.get(Table::Node, node.domain, node.record_key())?;
        let member = Trust::member(record).filter(|member| member.roles.tunnel)?;
        let (time, crypto) = (self.endpoint.judging_time(now), self.endpoint.crypto());
        let genuine = self.trust.verify_node_info(bytes, &member, time, crypto).ok();
        let Some(info) = genuine.filter(|_| !self.trust.is_revoked(&node)) else {
            self.endpoint.discard(Discard::BadRecord);
            return None;
        };
        let public = NodeInfoPublic::read(&info).ok()?;
        let private = info.read_private(&self.keys, crypto, NodeInfoPrivate::read).ok()?;
        if !public.statement.verify(&member.identity, self.trust.network(), crypto) {
            return None;
        }
        self.endpoint.learn_peer(member, public.statement, now);
        Some((member, private))
    }

    fn ask_whether_they_answer(&mut self, task: TaskId, announced: &[(Member, NodeInfoPrivate)], now: Now) {
        let mut asked = BTreeMap::new();
        let Some(request) = self.as_a_user_would(task) else { return self.surveyed(task, None, now) };
        for (member, private) in announced {
            let udp = private.candidates.iter().filter(|candidate| candidate.transport == Transport::Udp);
            let udp = udp.map(|candidate| candidate.address);
            let usable: Vec<_> =
                udp.filter(|address| may_dial(address.ip(), &self.interfaces, self.one_machine)).collect();
            // It stands on the same LAN, so that its address there says most about it; but some LANs keep computers apart.
            let is_near = |address: &&SocketAddr| self.interfaces.iter().any(|i| i.is_on_link(address.ip()));
            let far = usable.iter().find(|address| !is_near(address));
            let mut addresses = usable.iter().find(is_near).into_iter().chain(far).copied();
            let Some(address) = addresses.next() else { continue };
            let server = Server { node: member.id, address };
            let id = self.ask(server, &request, Purpose::Survey(task), now);
            asked.insert(id, Asked { node: member.id, otherwise: addresses.next() });
        }
        if asked.is_empty() {
            return self.surveyed(task, Some(&[]), now);
        }
        if let Some(survey) = self.electing.surveys.get_mut(&task) {
            survey.stage = Stage::Asking(asked, BTreeSet::new());
        }
    }

    /// Asks for a tunnel to a device that the elected have to serve, so that whoever refuses users refuses this node as well.
    fn as_a_user_would(&mut self, task: TaskId) -> Option<Request> {
        let ballot = self.electing.surveys.get(&task)?.ballot;
        let location = self.electing.contests.get(&ballot)?.location;
        let is_served = |device: &&EndDevice| {
            device.site.contains(&location) && Ballot::new(&location, &device.servers) == ballot
        };
        let device = self.devices.values().map(|(_, device)| device).find(is_served)?;
        let (device, service) = (device.device, device.services.first()?.name.clone());
        let id = SessionId(self.command_id().0);
        let (candidates, relay, hello) = (Vec::new(), None, None);
        Some(Request::TunnelRequest(TunnelRequest { id, device, service, candidates, relay, hello }))
    }

    /// One that was asked whether it answers did, or did not: then it is asked elsewhere, if it may be there.
    pub(super) fn survey_answered(&mut self, task: TaskId, request: RequestId, answered: bool, now: Now) {
        let request_again = self.as_a_user_would(task);
        let Some(Survey { stage: Stage::Asking(asked, good), .. }) = self.electing.surveys.get_mut(&task)
        else {
            return;
        };
        let Some(who) = asked.remove(&request) else { return };
        if answered {
            good.insert(who.node);
        } else if let (Some(address), Some(request)) = (who.otherwise, request_again) {
            let server = Server { node: who.node, address };
            let id = self.ask(server, &request, Purpose::Survey(task), now);
            return self.note_asked_elsewhere(task, id, who.node);
        }
        if asked.is_empty() || good.len() >= self.electing.config.seats.max(1) {
            let good: Vec<_> = std::mem::take(good).into_iter().collect();
            for request in std::mem::take(asked).into_keys() {
                self.endpoint.forget_request(request);
                self.purposes.remove(&request);
            }
            self.surveyed(task, Some(&good), now);
        }
    }

    fn note_asked_elsewhere(&mut self, task: TaskId, request: RequestId, node: NodeId) {
        if let Some(Survey { stage: Stage::Asking(asked, _), .. }) = self.electing.surveys.get_mut(&task) {
            asked.insert(request, Asked { node, otherwise: None });
        }
    }
}
