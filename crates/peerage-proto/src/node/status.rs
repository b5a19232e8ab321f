//! What a node knows of itself, for status pages; computed when asked for.

use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::id::{DeviceId, Domain, LocationId, NodeId, RecordKey};
use peerage_wire::record::{EndDevice, Record, Roles, Table};
use peerage_wire::time::{Now, UnixTime};

use super::{Node, Watched};
use crate::discard::Discards;
use crate::lan::Interface;

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
    /// To whom it is attached.
    pub attachments: Vec<AttachmentStatus>,
    /// When its last announcement ends.
    pub info_expires: Option<UnixTime>,
    /// Whether its announcement was acknowledged.
    pub announced: bool,
    /// The open tunnels of both ends.
    pub tunnels: Vec<Watched>,
    /// Why datagrams were dropped.
    pub discards: Discards,
}

/// Somebody who is asked.
#[derive(Clone, Copy, Debug)]
pub struct ServerStatus {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub address: Option<SocketAddr>,
    /// How long ago it answered last.
    pub answered: Option<Duration>,
    /// How long that took.
    pub rtt: Option<Duration>,
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
            online: self.online,
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
            attachments: self.attachment_status(now),
            info_expires: self.own_info().map(|record| record.header().expires),
            announced: self.serving.announced,
            tunnels: self.watched.values().cloned().collect(),
            discards: *self.endpoint.discards(),
        }
    }

    /// Returns the record of a table, domain and key that is held.
    pub fn record(&self, table: Table, domain: Domain, key: RecordKey) -> Option<&Record> {
        self.records.get(table, domain, key)
    }

    /// Returns the id of the device with a name.
    pub fn device_named(&self, name: &str) -> Option<DeviceId> {
        self.devices.values().find(|(_, device)| device.name == name).map(|(_, device)| device.device)
    }

    fn server_status(&self, now: Now) -> Vec<ServerStatus> {
        let status = |(node, body): (NodeId, &peerage_wire::record::OperatorBody)| {
            let health = self.health.get(&node);
            ServerStatus {
                node,
                address: body.addresses.first().copied(),
                answered: health.and_then(|h| h.answered_at).map(|at| now.mono - at),
                rtt: health.and_then(|h| h.rtt),
            }
        };
        self.trust.operators().map(status).collect()
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
