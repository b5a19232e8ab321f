//! A member whose program lies: the message layer is the real one, so that its lies are well-formed, sealed and come from a member;
//! what it says is made up.
//!
//! It takes the place of a computer's node, with its identity, records and address. Towards those who ask it, it withholds, forges or shows
//! what was true once; towards operators and other nodes it claims what is not so. Whoever holds a part of the table because an operator
//! said so answers the same way, which is what a dishonest super-node is.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::endpoint::{self, Endpoint, Incoming, Outcome};
use peerage_proto::responder::{self, Asked, View};
use peerage_proto::table::Records;
use peerage_proto::trust::Trust;
use peerage_wire::id::{
    CommandId, Domain, LocationId, LookupTag, NodeId, PlacementKey, RecordKey, SessionId,
};
use peerage_wire::intro::KeyStatement;
use peerage_wire::message::{Load, Page, Reply, Request, Submission, TunnelRequest};
use peerage_wire::record::{Draft, EndDevice, Header, NodeInfoPublic, Record, Table};
use peerage_wire::time::{Instant, Now};

use crate::chance::Chance;

/// How it lies to those who ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It shows records that it made itself.
    Forge,
    /// It says that there is nothing.
    Withhold,
    /// It shows what was true once.
    RollBack,
    /// It answers truly, and asks for more than anybody should.
    Flood,
}

impl Manner {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Forge, Self::Withhold, Self::RollBack, Self::Flood];
}

/// How many requests a flood has at a time.
const FLOOD: usize = 200;

/// How long a flood lasts; then it says as little as other liars. In a world of 45 days a longer one is most of what is simulated.
const FLOODS_FOR: Duration = Duration::from_secs(3_600);

/// Whom it knows of, and can say something to.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub address: SocketAddr,
}

/// How often it offers itself as a super-node, if its owner lends it.
const OFFER_INTERVAL: Duration = Duration::from_secs(10);

/// What it offers itself with.
#[derive(Clone, Debug)]
pub struct Offer {
    /// To whom.
    pub operators: Vec<Target>,
    /// Where it says that it is reached.
    pub addresses: Vec<SocketAddr>,
}

/// What it may lie about.
#[derive(Clone, Debug, Default)]
pub struct Subjects {
    /// Everybody that can be told something.
    pub targets: Vec<Target>,
    /// Members of all domains.
    pub members: Vec<NodeId>,
    /// Keys of devices' records.
    pub devices: Vec<RecordKey>,
    /// Records that were true once.
    pub old: Vec<Record>,
    /// Records that are true.
    pub new: Vec<Record>,
}

/// Something that it was told.
#[derive(Clone, Debug)]
pub struct Betrayal {
    /// By whom.
    pub by: NodeId,
    /// The place of the record in the table: who holds that may ask for it.
    pub place: PlacementKey,
    /// What, for people.
    pub what: String,
}

/// A program that lies.
#[derive(Debug)]
pub struct Liar {
    endpoint: Endpoint,
    trust: Trust,
    manner: Manner,
    chance: Chance,
    subjects: Subjects,
    old: Records,
    new: Records,
    acts_at: Instant,
    floods_until: Instant,
    /// It wants to be, or is, a super-node.
    offer: Option<Offer>,
    offers_at: Instant,
    /// The version of its assignment.
    assigned: u64,
    /// What it was told that it should not have been.
    pub betrayed: Option<Betrayal>,
}

impl Liar {
    /// Makes a liar of a member; `statements` are those of whom it can ask.
    pub fn new(
        (config, root): (endpoint::Config, [u8; 32]),
        manner: Manner,
        (subjects, statements): (Subjects, &[KeyStatement]),
        (mut chance, now): (Chance, Now),
    ) -> Self {
        let mut trust = Trust::new(config.network, root);
        let (mut old, mut new) = (Records::default(), Records::default());
        let mut endpoint = Endpoint::new(config, chance.bytes(), now);
        for record in &subjects.new {
            trust.learn(record);
            new.insert(record.clone());
        }
        for record in &subjects.old {
            old.insert(record.clone());
        }
        for statement in statements {
            let all = subjects.new.iter().filter_map(Trust::member);
            if let Some(member) = all.filter(|member| member.id == statement.node).last() {
                endpoint.learn_peer(member, *statement, now);
            }
        }
        Self {
            endpoint,
            trust,
            manner,
            chance,
            subjects,
            old,
            new,
            acts_at: now.mono,
            floods_until: now.mono.after(FLOODS_FOR),
            offer: None,
            offers_at: now.mono,
            assigned: 0,
            betrayed: None,
        }
    }

    /// Offers itself as a super-node from now on.
    pub fn offer(&mut self, offer: Offer) {
        self.offer = Some(offer);
    }

    /// Takes a datagram.
    pub fn handle_datagram(&mut self, remote: SocketAddr, payload: &[u8], now: Now) {
        self.endpoint.handle_datagram(remote, payload, &self.trust, now);
        self.work_off(now);
    }

    /// Does what is due, and lies.
    pub fn handle_timeout(&mut self, now: Now) {
        self.endpoint.handle_timeout(&self.trust, now);
        if self.acts_at <= now.mono {
            let floods = self.manner == Manner::Flood && now.mono <= self.floods_until;
            let count = if floods { FLOOD } else { 3 };
            for _ in 0..count {
                self.claim(now);
            }
            self.acts_at = now.mono.after(Duration::from_millis(self.chance.between(1_000, 15_000)));
        }
        if self.offer.is_some() && self.offers_at <= now.mono {
            self.offers_at = now.mono.after(OFFER_INTERVAL);
            self.submit(now);
        }
        self.work_off(now);
    }

    /// Returns when the time-out is due.
    pub fn poll_timeout(&self) -> Instant {
        let offers_at = self.offer.as_ref().map(|_| self.offers_at);
        let timers = [self.endpoint.poll_timeout(), offers_at].into_iter().flatten();
        timers.min().map_or(self.acts_at, |at| at.min(self.acts_at))
    }

    /// Returns the next datagram.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Bytes)> {
        self.endpoint.poll_transmit()
    }

    fn work_off(&mut self, now: Now) {
        while let Some(outcome) = self.endpoint.poll_outcome() {
            match outcome {
                Outcome::Request(incoming) => self.answer(*incoming, now),
                Outcome::Answered { from, reply, .. } => self.look_at(from, &reply),
                Outcome::Forwarded { .. }
                | Outcome::Failed { .. }
                | Outcome::ClockLearned(_)
                | Outcome::ClockDoubted => {}
            }
        }
    }

    // ---- to those who ask -------------------------------------------------------------------

    fn answer(&mut self, incoming: Incoming, now: Now) {
        let Incoming { from, remote, request, reply_to } = incoming;
        let time = self.endpoint.time(now);
        let asked = Asked { from: &from, remote, room: reply_to.room(), time };
        if let Some(lie) = self.pretend(&request, remote) {
            return self.endpoint.reply(&reply_to, &lie);
        }
        let records = if self.manner == Manner::RollBack { &self.old } else { &self.new };
        let truth = responder::answer(&request, asked, View::everywhere(records));
        let Ok(reply) = truth.map(|reply| self.distort(reply, now)) else { return };
        self.endpoint.reply(&reply_to, &reply);
    }

    /// Says that it keeps what it drops, and that it can reach whom it will not reach.
    fn pretend(&mut self, request: &Request, remote: SocketAddr) -> Option<Reply> {
        self.offer.as_ref()?;
        if matches!(request, Request::Attach) {
            return Some(Reply::Attached { observed: remote, head: None });
        }
        let Request::Store(bytes) = request else { return None };
        let record = peerage_wire::record::UnverifiedRecord::parse(bytes).ok()?;
        let Header { table, key, version, .. } = *record.header();
        if table == Table::SuperNode && key == self.endpoint.id().record_key() {
            self.assigned = version;
        }
        Some(Reply::Stored { table, key, version })
    }

    /// Says that it holds whatever it is to hold.
    fn submit(&mut self, now: Now) {
        let Some(offer) = self.offer.clone() else { return };
        for Target { node, address } in offer.operators {
            let submission = Submission {
                id: CommandId(self.chance.bytes()),
                addresses: offer.addresses.clone(),
                version: self.assigned,
                leaving: false,
                load: Load { records: u32::MAX, max_bytes: u64::MAX, ..Load::default() },
            };
            self.endpoint.request(node, address, &Request::SubmitSuperNode(submission), now);
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "of what has no records it cannot make others")]
    fn distort(&mut self, reply: Reply, now: Now) -> Reply {
        let mut page = |page: Page| match self.manner {
            Manner::Withhold => Page::default(),
            Manner::Forge => {
                let forged = page.records.iter().map(|bytes| self.forged_like(bytes, now));
                Page { records: forged.collect(), more: page.more }
            }
            Manner::RollBack | Manner::Flood => page,
        };
        match reply {
            Reply::OperatorNodes(found) => Reply::OperatorNodes(page(found)),
            Reply::SuperNodes(found) => Reply::SuperNodes(page(found)),
            Reply::Partition(found) => Reply::Partition(page(found)),
            Reply::TunnelNodes(found) => Reply::TunnelNodes(page(found)),
            Reply::Devices(found) => Reply::Devices(page(found)),
            Reply::Revocations(found) => Reply::Revocations(page(found)),
            Reply::Node(Some(bytes)) => Reply::Node(self.distort_one(bytes, now)),
            Reply::NodeInfo(Some(bytes)) => Reply::NodeInfo(self.distort_one(bytes, now)),
            other => other,
        }
    }

    fn distort_one(&mut self, bytes: Bytes, now: Now) -> Option<Bytes> {
        match self.manner {
            Manner::Withhold => None,
            Manner::Forge => Some(self.forged_like(&bytes, now)),
            Manner::RollBack | Manner::Flood => Some(bytes),
        }
    }

    /// A record in the place of another: newer, with other contents, and signed by the liar or by nobody.
    fn forged_like(&mut self, bytes: &Bytes, now: Now) -> Bytes {
        if self.chance.happens(400) {
            let mut altered = bytes.to_vec();
            let at = self.chance.index(altered.len());
            if let Some(byte) = altered.get_mut(at) {
                *byte ^= 1;
            }
            return altered.into();
        }
        let Ok(record) = peerage_wire::record::UnverifiedRecord::parse(bytes) else { return bytes.clone() };
        let header = *record.header();
        let time = self.endpoint.time(now);
        let signer = if self.chance.happens(500) { header.signer } else { self.endpoint.id() };
        let version = time.as_millis().saturating_add(self.chance.below(5_000));
        let forged = Header { version, expires: time.after(header.table.max_life()), signer, ..header };
        self.sign(forged, EndDevice::public())
    }

    // ---- to everybody -----------------------------------------------------------------------

    /// Says to somebody something that is not so, or asks for what is none of its business.
    fn claim(&mut self, now: Now) {
        let Some(target) = self.chance.pick(&self.subjects.targets).copied() else { return };
        let Some(member) = self.chance.pick(&self.subjects.members).copied() else { return };
        let id = CommandId(self.chance.bytes());
        let device = self.chance.pick(&self.subjects.devices).copied();
        let request = match self.chance.below(8) {
            0 => Request::GetNode(member),
            1 => Request::GetNodeInfo(member),
            2 | 3 => Request::Store(self.false_info(member, now)),
            4 => match (device, self.chance.pick(&self.subjects.old)) {
                (Some(key), _) if self.chance.happens(500) => {
                    Request::DeviceSeen { id, key, location: LocationId(self.chance.bytes()) }
                }
                (_, Some(record)) => Request::Store(record.bytes().clone()),
                _ => Request::Ping,
            },
            5 => Request::Notify { id, head: self.false_head(now) },
            6 => Request::TunnelRequest(TunnelRequest {
                id: SessionId(self.chance.bytes()),
                device: peerage_wire::id::DeviceId(self.chance.bytes()),
                service: "ipp".to_owned(),
                candidates: Vec::new(),
                relay: None,
                hello: None,
            }),
            _ => Request::Attach,
        };
        if self.endpoint.peer(&target.node).is_some() {
            self.endpoint.request(target.node, target.address, &request, now);
        }
    }

    /// Says of another member, or of itself, that it is somewhere else.
    fn false_info(&mut self, member: NodeId, now: Now) -> Bytes {
        let id = if self.chance.happens(300) { self.endpoint.id() } else { member };
        let time = self.endpoint.time(now);
        let ahead = if self.chance.happens(300) { 9_000_000_000 } else { 0 };
        let header = Header {
            table: Table::NodeInfo,
            domain: id.domain,
            key: id.record_key(),
            version: time.as_millis().saturating_add(ahead),
            expires: time.after(Table::NodeInfo.max_life()),
            signer: if self.chance.happens(500) { id } else { self.endpoint.id() },
            removed: self.chance.happens(100),
        };
        let statement = *self.endpoint.statement();
        let tags = vec![LookupTag(self.chance.bytes())];
        let nowhere = SocketAddr::from(([47, 0, 0, 9], 9));
        let public = NodeInfoPublic { statement, tags, addresses: vec![nowhere] };
        self.sign(header, public.write())
    }

    /// A Head that says that nothing is registered and nobody revoked.
    fn false_head(&mut self, now: Now) -> Bytes {
        let domain = self.endpoint.id().domain;
        let time = self.endpoint.time(now);
        let header = Header {
            table: Table::Head,
            domain,
            key: peerage_wire::record::HeadBody::record_key(domain),
            version: time.as_millis().saturating_add(1_000),
            expires: time.after(Table::Head.max_life()),
            signer: self.endpoint.id(),
            removed: false,
        };
        self.sign(header, EndDevice::public())
    }

    /// Signs with the own key, whoever is said to have signed.
    fn sign(&mut self, header: Header, public: peerage_wire::cbor::MapWriter) -> Bytes {
        let network = self.endpoint.network();
        let own = self.endpoint.id();
        let draft = Draft { header: Header { signer: own, ..header }, public, private: None };
        let signed = draft.sign(self.endpoint.identity(), &network, self.endpoint.crypto());
        let Ok(record) = signed else { return Bytes::new() };
        let (own, claimed) = (own.to_bytes(), header.signer.to_bytes());
        let mut bytes = record.bytes().to_vec();
        let at = bytes.windows(own.len()).position(|window| window == own);
        if let Some(place) = at.and_then(|at| bytes.get_mut(at..at.saturating_add(own.len()))) {
            place.copy_from_slice(&claimed);
        }
        bytes.into()
    }

    // ---- what it is told --------------------------------------------------------------------

    /// Nobody tells a member what belongs to another domain.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the others show no records of members")]
    pub(crate) fn look_at(&mut self, from: NodeId, reply: &Reply) {
        let own = [self.endpoint.id().domain, Domain::OPERATORS];
        let told: Vec<&Bytes> = match reply {
            Reply::Node(Some(bytes)) | Reply::NodeInfo(Some(bytes)) => vec![bytes],
            Reply::TunnelNodes(page) | Reply::Devices(page) | Reply::Revocations(page) => {
                page.records.iter().collect()
            }
            _ => Vec::new(),
        };
        for bytes in told {
            let Ok(record) = peerage_wire::record::UnverifiedRecord::parse(bytes) else { continue };
            let header = record.header();
            if !own.contains(&header.domain) {
                let what = format!("{from:?} shows {:?} of {:?} to a stranger", header.table, header.domain);
                let place = header.placement();
                self.betrayed.get_or_insert(Betrayal { by: from, place, what });
            }
        }
    }
}

/// Returns whether a signature of a liar passes for that of another, which would make all its lies idle.
#[cfg(test)]
mod tests {
    use peerage_wire::crypto::Crypto as _;
    use peerage_wire::keys::IdentityKey;

    use crate::crypto::Cheap;

    #[test]
    fn a_liar_cannot_sign_for_others_with_its_own_key() {
        let [own, other] = [1, 2].map(|seed| IdentityKey::from_seed(&[seed; 32]));
        let signature = Cheap::default().sign(&own, b"lie");
        assert!(!Cheap::default().verify(&other.public(), b"lie", &signature));
    }
}
