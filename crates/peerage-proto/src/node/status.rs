//! What a node knows of itself, for status pages; computed when asked for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::id::{DeviceId, Domain, LocationId, NodeId, PlacementKey, RecordKey};
use peerage_wire::record::{EndDevice, Record, Roles, Table};
use peerage_wire::time::{Now, UnixTime};

use super::queries::MAX_QUERIES;
use super::{MAX_SERVED, MAX_SERVED_PER_PEER, Node, SuperState, Watched};
use crate::carrier::{Carrier, Why};
use crate::discard::Discards;
use crate::lan::Interface;
use crate::mapping::RouterMapping;
use crate::path::NatBehaviour;
use crate::sizes::TableSize;

/// The state of a node.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its id.
    pub id: NodeId,
    /// What the operator permits.
    pub roles: Roles,
    /// Whether somebody answers.
    pub online: bool,
    /// Whether it was revoked.
    pub revoked: bool,
    /// When its membership ends.
    pub expires: UnixTime,
    /// Whether that is within a week.
    pub expires_soon: bool,
    /// What is added to the computer's clock, in milliseconds, once it was learned.
    pub clock_offset_millis: Option<i64>,
    /// The operators and super-nodes it asks.
    pub servers: Vec<ServerStatus>,
    /// The newest Head.
    pub head: Option<HeadStatus>,
    /// The locations with the interface of each.
    pub locations: Vec<(LocationId, Option<Interface>)>,
    /// The domain's devices.
    pub devices: Vec<DeviceStatus>,
    /// The routers that were asked to forward ports, and what came of it.
    pub mappings: Vec<RouterMapping>,
    /// Who serves at its locations.
    pub elections: Vec<ElectionStatus>,
    /// To whom it is attached.
    pub attachments: Vec<AttachmentStatus>,
    /// When its last announcement ends.
    pub info_expires: Option<UnixTime>,
    /// Whether its announcement was acknowledged.
    pub announced: bool,
    /// The open tunnels of both ends.
    pub tunnels: Vec<Watched>,
    /// What the routers on the way do to its addresses, as far as it is known.
    pub nat: NatBehaviour,
    /// Whether it may open or try many ports where those of one end cannot be known.
    pub wide_checks: bool,
    /// What it does as a super-node.
    pub super_role: SuperStatus,
    /// Why datagrams were dropped.
    pub discards: Discards,
}

/// What a node does, and has done since its start, as a super-node.
#[derive(Clone, Debug)]
pub struct SuperStatus {
    /// Whether it is one.
    pub state: SuperState,
    /// Why it is unfit, for people; empty if it is not.
    pub unfit: String,
    /// The first place that it holds, if it holds any.
    pub from: Option<PlacementKey>,
    /// The last place that it holds, if it holds any.
    pub to: Option<PlacementKey>,
    /// How many records it holds.
    pub records: usize,
    /// Bytes of memory that these use, with what they cost in indices.
    pub bytes: usize,
    /// How many domains it cannot hold all of for want of memory; it is silent about their sets.
    pub lacking: usize,
    /// How many nodes are attached to it.
    pub attached: usize,
    /// Requests answered for others.
    pub served: u64,
    /// Bytes relayed between others.
    pub relayed_bytes: u64,
    /// Pairs of nodes whose links are relayed now.
    pub relayed_tunnels: u32,
    /// What was refused for want of room, rate or permission since the last report to an operator.
    pub refusals: u64,
}

/// Somebody who is asked.
#[derive(Clone, Copy, Debug)]
pub struct ServerStatus {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub address: Option<SocketAddr>,
    /// Whether it is an operator rather than a super-node.
    pub is_operator: bool,
    /// How long ago it answered last.
    pub answered: Option<Duration>,
    /// How long that took.
    pub rtt: Option<Duration>,
    /// By which carrier messages reach it.
    pub carrier: Carrier,
    /// Why not over UDP.
    pub why: Option<Why>,
    /// Whether it lately handed out what did not hold, while somebody else had what did.
    pub is_mistrusted: bool,
}

/// The newest Head.
#[derive(Clone, Copy, Debug)]
pub struct HeadStatus {
    /// How old it is.
    pub age: Duration,
    /// Its version.
    pub version: u64,
    /// The newest epoch of the domain's keys.
    pub epoch: u32,
    /// How many revocations it states.
    pub revocations: u32,
    /// Whether it is older than the domain allows.
    pub stale: bool,
    /// For how long nobody has been able to give a fresher one, if somebody was asked: then `age` is how fresh the knowledge of
    /// revocations is.
    pub silent: Option<Duration>,
}

/// Who serves the devices at a location, as this node hears it.
#[derive(Clone, Debug)]
pub struct ElectionStatus {
    /// Where.
    pub location: LocationId,
    /// Who may stand, if an administrator has named them; empty: every member.
    pub servers: Vec<NodeId>,
    /// For how long this node has been elected; `None` if it is not.
    pub elected_for: Option<Duration>,
    /// Whether it serves only because those who are elected do not.
    pub is_additional: bool,
    /// Others who say that they are elected.
    pub others: Vec<ElectedStatus>,
    /// Whether others can be heard here; if not, it goes by who has announced itself.
    pub hears: bool,
}

/// Somebody elected.
#[derive(Clone, Copy, Debug)]
pub struct ElectedStatus {
    /// Who.
    pub node: NodeId,
    /// For how long, as it says.
    pub elected_for: Duration,
}

/// A standing contact.
#[derive(Clone, Copy, Debug)]
pub struct AttachmentStatus {
    /// With whom.
    pub node: NodeId,
    /// How this node is seen from there; `None` until the first answer.
    pub observed: Option<SocketAddr>,
    /// For how long.
    pub lasted: Duration,
}

/// A device of the domain.
#[derive(Clone, Debug)]
pub struct DeviceStatus {
    /// What is registered.
    pub device: EndDevice,
    /// Whether this node serves it.
    pub served: bool,
    /// Whether this computer is at one of its locations.
    pub here: bool,
    /// How many tunnel-nodes have announced themselves at its site; `None` if that was not asked for.
    pub announced: Option<usize>,
}

impl Node {
    /// Returns the state of the node.
    pub fn status(&self, now: Now) -> Status {
        Status {
            id: self.me.id,
            roles: self.me.roles,
            online: self.servers.online,
            revoked: self.is_revoked(),
            expires: self.me.expires,
            expires_soon: self.expires_soon(now),
            clock_offset_millis: self
                .endpoint
                .clock()
                .is_learned()
                .then(|| self.endpoint.clock().offset_millis()),
            servers: self.server_status(now),
            head: self.head_status(now),
            locations: self.location_status(),
            devices: self.device_status(),
            mappings: self.mapping.routers().to_vec(),
            elections: self.election_status(now.mono),
            attachments: self.attachment_status(now),
            info_expires: self.own_info().map(|record| record.header().expires),
            announced: self.serving.announcing.is_acknowledged,
            tunnels: self.watched.values().cloned().collect(),
            nat: self.nat_behaviour(now),
            wide_checks: self.is_wide(),
            super_role: self.super_status(),
            discards: *self.endpoint.discards(),
        }
    }

    /// Returns the record of a table, domain and key that is held.
    pub fn record(&self, table: Table, domain: Domain, key: RecordKey) -> Option<&Record> {
        if table == Table::SuperNode {
            return self.servers.record(&NodeId { domain, hash: key.0 });
        }
        self.records.get(table, domain, key)
    }

    /// Returns how full its tables are.
    pub fn table_sizes(&self) -> Vec<TableSize> {
        let mut per_peer: BTreeMap<NodeId, usize> = BTreeMap::new();
        for watched in self.watched.values().filter(|watched| watched.serving) {
            *per_peer.entry(watched.peer).or_default() += 1;
        }
        let (serving, most) = (per_peer.values().sum(), per_peer.values().max().copied().unwrap_or(0));
        let own = [
            TableSize::new("queries", self.queries.len(), MAX_QUERIES),
            TableSize::new("openings", self.openings.len(), MAX_SERVED),
            TableSize::new("served tunnels", serving, MAX_SERVED),
            TableSize::new("served tunnels of one peer", most, MAX_SERVED_PER_PEER),
        ];
        let seats = self
            .electing
            .sizes()
            .into_iter()
            .chain(self.legs.sizes())
            .chain([self.servers.size(), self.handshakes.size()]);
        let others = self.routing.sizes().into_iter().chain(seats).chain(self.hold_sizes());
        let others = others.chain(self.finding.sizes());
        own.into_iter().chain(others).chain(self.endpoint.table_sizes()).collect()
    }

    /// Returns the id of the device with a name.
    pub fn device_named(&self, name: &str) -> Option<DeviceId> {
        self.devices.values().find(|(_, device)| device.name == name).map(|(_, device)| device.device)
    }

    fn server_status(&self, now: Now) -> Vec<ServerStatus> {
        let operators = self.trust.operators();
        let operators = operators.map(|(node, body)| (node, body.addresses.as_slice(), true));
        let super_nodes = self.servers.super_nodes().map(|(node, addresses)| (node, addresses, false));
        let status = |(node, addresses, is_operator)| {
            let health = self.servers.health(&node);
            let (carrier, why) = self.carriers.of(&node);
            let asked_over_udp = || self.server_at(node, addresses).map(|server| server.address);
            ServerStatus {
                node,
                address: self.carriers.address(&node).or_else(asked_over_udp),
                is_operator,
                answered: health.and_then(|h| h.answered_at).map(|at| now.mono - at),
                rtt: health.and_then(|h| h.rtt),
                carrier,
                why,
                is_mistrusted: self.servers.penalty(&node, now.mono).0 > 0,
            }
        };
        operators.chain(super_nodes).map(status).collect()
    }

    fn attachment_status(&self, now: Now) -> Vec<AttachmentStatus> {
        let attachments = self.serving.attachments.iter();
        let status = attachments.map(|(node, attachment)| AttachmentStatus {
            node: *node,
            observed: attachment.observed,
            lasted: now.mono - attachment.since,
        });
        status.collect()
    }

    fn head_status(&self, now: Now) -> Option<HeadStatus> {
        let (record, body) = (self.freshness.record()?, self.freshness.body()?);
        Some(HeadStatus {
            age: self.head_age(now)?,
            version: record.header().version,
            epoch: body.epoch,
            revocations: body.revocations.count,
            stale: self.is_stale(now),
            silent: self.freshness.silent_for(now.mono),
        })
    }

    fn location_status(&self) -> Vec<(LocationId, Option<Interface>)> {
        let interface = |location| {
            let index = self.places.interface_at(&location)?;
            self.interfaces.iter().find(|interface| interface.index == index).cloned()
        };
        self.places.all().map(|location| (location, interface(location))).collect()
    }

    fn device_status(&self) -> Vec<DeviceStatus> {
        let status = |device: &EndDevice| DeviceStatus {
            device: device.clone(),
            served: self.serving.served.contains(&device.device),
            here: !self.places.interfaces_at(&device.site).is_empty(),
            announced: self.reach.announced(&device.device),
        };
        self.devices.values().map(|(_, device)| status(device)).collect()
    }
}
