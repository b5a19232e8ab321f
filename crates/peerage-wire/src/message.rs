//! Commands: what one message asks or answers (chapter 4 of the protocol).
//!
//! Requests have odd numbers and the answer to a request the even number after it. A plaintext is the
//! number, the length of the body in two bytes, the body, and zeros: the asker pads a request to the size
//! of the answer that it is ready to take, because no answer is longer than its request (Rule 4.2).

use std::net::SocketAddr;

use bytes::Bytes;

use crate::cbor::{Element, Malformed, Map, MapWriter};
use crate::codec::{Candidate, address_bytes, address_from, read_candidates};
use crate::id::{CommandId, DeviceId, LocationId, LookupTag, NodeId, RecordKey, SessionId};
use crate::limits::{MAX_LIST, MAX_NAME, MAX_RECORD, MAX_TAGS};
use crate::packet::{Class, REPLY_OVERHEAD};
use crate::record::Table;
use crate::time::UnixTime;

/// The numbers of all commands, those of later versions included (Rule 4.1).
pub mod number {
    /// Asks for the list of operators.
    pub const GET_OPERATOR_NODES: u8 = 1;
    /// Asks for the super-nodes of a part of the key-space.
    pub const GET_SUPER_NODES: u8 = 3;
    /// Asks to become a super-node. Reserved.
    pub const SUBMIT_SUPER_NODE: u8 = 5;
    /// Hands over a part of the table. Reserved.
    pub const TRANSFER_PARTITION: u8 = 7;
    /// Asks for a Node record.
    pub const GET_NODE: u8 = 9;
    /// Asks for a NodeInfo record.
    pub const GET_NODE_INFO: u8 = 11;
    /// Asks for the tunnel-nodes at a location.
    pub const GET_TUNNEL_NODES: u8 = 13;
    /// Asks a tunnel-node to arrange a path.
    pub const TUNNEL_REQUEST: u8 = 15;
    /// Asks whether a node is there, and how it sees the asker.
    pub const PING: u8 = 17;
    /// Asks a super-node to pass a TunnelRequest on. Reserved.
    pub const FORWARDED_TUNNEL_REQUEST: u8 = 19;
    /// Asks for the devices of the asker's domain.
    pub const GET_DEVICES: u8 = 21;
    /// Asks for the Head of the asker's domain.
    pub const GET_HEAD: u8 = 23;
    /// Hands over a record to keep.
    pub const STORE: u8 = 25;
    /// Compares a range of the table. Reserved.
    pub const RECONCILE: u8 = 27;
    /// Tells an operator where a device was seen.
    pub const DEVICE_SEEN: u8 = 29;
    /// Tells an operator what a super-node refused. Reserved.
    pub const REFUSALS: u8 = 31;
    /// Tells an operator that a node leaves the network.
    pub const LEAVE: u8 = 33;
    /// Keeps a tunnel-node in contact.
    pub const ATTACH: u8 = 35;
    /// Tells a node that something in its domain is newer.
    pub const NOTIFY: u8 = 37;
    /// Joins two legs of a relay. Reserved.
    pub const RELAY_JOIN: u8 = 39;
    /// Asks for revocations.
    pub const GET_REVOCATIONS: u8 = 41;
    /// Asks for the domain's keys, sealed to the asker.
    pub const GET_DOMAIN_KEY: u8 = 43;
    /// Answers whatever came with a wrong time.
    pub const STALE_TIME: u8 = 64;
}

/// Bytes before the body: command number and length.
pub const PLAINTEXT_HEADER: usize = 3;

/// What a message asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The list of operators, from the one after `after` on.
    GetOperatorNodes {
        /// Where the page before ended.
        after: Option<RecordKey>,
    },
    /// The super-nodes that hold the place of `key` in the asker's domain; of all places without a key.
    GetSuperNodes {
        /// A record key or a look-up tag.
        key: Option<Vec<u8>>,
        /// Where the page before ended.
        after: Option<RecordKey>,
    },
    /// The Node record of a node.
    GetNode(NodeId),
    /// The NodeInfo record of a node.
    GetNodeInfo(NodeId),
    /// The NodeInfo records of the asker's domain that carry one of these tags.
    GetTunnelNodes {
        /// The tags.
        tags: Vec<LookupTag>,
        /// Where the page before ended.
        after: Option<RecordKey>,
    },
    /// That the tunnel-node prepares a path for a link; authority is the OPEN frame alone.
    TunnelRequest(TunnelRequest),
    /// A sign of life, and how the receiver sees the asker.
    Ping,
    /// The EndDevice records of the asker's domain.
    GetDevices {
        /// Where the page before ended.
        after: Option<RecordKey>,
    },
    /// The Head of the asker's domain.
    GetHead,
    /// That the receiver keeps a record.
    Store(Bytes),
    /// That the operator notes where a device was seen.
    DeviceSeen {
        /// So that it is done once.
        id: CommandId,
        /// The key of the device's record.
        key: RecordKey,
        /// Where the asker sees it.
        location: LocationId,
    },
    /// That the operator forgets the asker.
    Leave(CommandId),
    /// That the receiver stays in contact and can reach the asker.
    Attach,
    /// That the receiver looks at a newer Head.
    Notify {
        /// So that it is done once.
        id: CommandId,
        /// The Head.
        head: Bytes,
    },
    /// The Revocation records of the asker's domain.
    GetRevocations {
        /// Where the page before ended.
        after: Option<RecordKey>,
    },
    /// The DomainKey record of the asker.
    GetDomainKey,
}

/// What a user-node tells a tunnel-node before it dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelRequest {
    /// So that it is done once; both ends' names for the attempt.
    pub id: SessionId,
    /// Which device it wants to reach.
    pub device: DeviceId,
    /// Which of its services.
    pub service: String,
    /// Where the asker may be reached.
    pub candidates: Vec<Candidate>,
}

/// What a message answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A page of OperatorNode records.
    OperatorNodes(Page),
    /// A page of SuperNode records.
    SuperNodes(Page),
    /// A Node record, if there is one.
    Node(Option<Bytes>),
    /// A NodeInfo record, if there is one.
    NodeInfo(Option<Bytes>),
    /// A page of NodeInfo records.
    TunnelNodes(Page),
    /// Where the tunnel-node waits for the link.
    TunnelOpened {
        /// Best first.
        candidates: Vec<Candidate>,
    },
    /// How the receiver saw the asker.
    Reping {
        /// The source of the request.
        observed: SocketAddr,
    },
    /// A page of EndDevice records.
    Devices(Page),
    /// A Head.
    Head(Option<Bytes>),
    /// What became of a record.
    Stored {
        /// Which table.
        table: Table,
        /// Which record.
        key: RecordKey,
        /// The version that the receiver holds now; the same as sent if it was taken or held already.
        version: u64,
    },
    /// The operator has noted where a device was seen.
    DeviceNoted(CommandId),
    /// The operator has forgotten the asker.
    Left(CommandId),
    /// The receiver can reach the asker, and how it saw it.
    Attached {
        /// The source of the request.
        observed: SocketAddr,
        /// The newest Head.
        head: Option<Bytes>,
    },
    /// A node has looked at a Head.
    Notified(CommandId),
    /// A page of Revocation records.
    Revocations(Page),
    /// The DomainKey record of the asker, if there is one.
    DomainKey(Option<Bytes>),
    /// The request's time was outside the window; the receiver's is this. Answers any request.
    StaleTime(UnixTime),
}

/// A part of a list of records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The records, in ascending order of their keys.
    pub records: Vec<Bytes>,
    /// Whether more follow after the last.
    pub more: bool,
}

impl Request {
    /// Returns the number on the wire.
    pub const fn number(&self) -> u8 {
        match self {
            Self::GetOperatorNodes { .. } => number::GET_OPERATOR_NODES,
            Self::GetSuperNodes { .. } => number::GET_SUPER_NODES,
            Self::GetNode(_) => number::GET_NODE,
            Self::GetNodeInfo(_) => number::GET_NODE_INFO,
            Self::GetTunnelNodes { .. } => number::GET_TUNNEL_NODES,
            Self::TunnelRequest(_) => number::TUNNEL_REQUEST,
            Self::Ping => number::PING,
            Self::GetDevices { .. } => number::GET_DEVICES,
            Self::GetHead => number::GET_HEAD,
            Self::Store(_) => number::STORE,
            Self::DeviceSeen { .. } => number::DEVICE_SEEN,
            Self::Leave(_) => number::LEAVE,
            Self::Attach => number::ATTACH,
            Self::Notify { .. } => number::NOTIFY,
            Self::GetRevocations { .. } => number::GET_REVOCATIONS,
            Self::GetDomainKey => number::GET_DOMAIN_KEY,
        }
    }

    /// Returns whether it only reads the table (Rule 4.3).
    pub const fn class(&self) -> Class {
        match self {
            Self::GetOperatorNodes { .. }
            | Self::GetSuperNodes { .. }
            | Self::GetNode(_)
            | Self::GetNodeInfo(_)
            | Self::GetTunnelNodes { .. }
            | Self::Ping
            | Self::GetDevices { .. }
            | Self::GetHead
            | Self::GetRevocations { .. }
            | Self::GetDomainKey => Class::Read,
            Self::TunnelRequest(_)
            | Self::Store(_)
            | Self::DeviceSeen { .. }
            | Self::Leave(_)
            | Self::Attach
            | Self::Notify { .. } => Class::Other,
        }
    }

    /// Returns the longest answer that makes sense, in bytes of the sealed datagram; the request is padded
    /// to this size.
    pub const fn reply_size(&self) -> usize {
        match self {
            Self::GetOperatorNodes { .. }
            | Self::GetSuperNodes { .. }
            | Self::GetTunnelNodes { .. }
            | Self::GetDevices { .. }
            | Self::GetRevocations { .. } => crate::limits::MAX_DATAGRAM,
            Self::GetNode(_) | Self::GetNodeInfo(_) | Self::GetDomainKey | Self::TunnelRequest(_) => {
                MAX_RECORD + REPLY_OVERHEAD + PLAINTEXT_HEADER + 8
            }
            // A Head has at most 340 bytes, and Attached an address besides.
            Self::GetHead | Self::Attach => 560,
            Self::Ping | Self::Store(_) | Self::DeviceSeen { .. } | Self::Leave(_) | Self::Notify { .. } => {
                REPLY_OVERHEAD + PLAINTEXT_HEADER + 64
            }
        }
    }

    fn body(&self) -> MapWriter {
        let mut map = MapWriter::new();
        match self {
            Self::GetOperatorNodes { after }
            | Self::GetDevices { after }
            | Self::GetRevocations { after } => write_after(&mut map, after.as_ref()),
            Self::GetSuperNodes { key, after } => {
                map.optional_bytes(1, key.as_deref());
                write_after(&mut map, after.as_ref());
            }
            Self::GetNode(node) | Self::GetNodeInfo(node) => {
                map.bytes(1, &node.to_bytes());
            }
            Self::GetTunnelNodes { tags, after } => {
                let tags: Vec<_> = tags.iter().map(|tag| tag.0).collect();
                map.list_of_bytes(1, &tags);
                write_after(&mut map, after.as_ref());
            }
            Self::TunnelRequest(request) => request.write(&mut map),
            Self::Ping | Self::GetHead | Self::Attach | Self::GetDomainKey => {}
            Self::Store(record) => {
                map.bytes(1, record);
            }
            Self::DeviceSeen { id, key, location } => {
                map.bytes(1, &id.0).bytes(2, &key.0).bytes(3, &location.0);
            }
            Self::Leave(id) => {
                map.bytes(1, &id.0);
            }
            Self::Notify { id, head } => {
                map.bytes(1, &id.0).bytes(2, head);
            }
        }
        map
    }

    /// Encodes the plaintext without padding.
    pub fn encode(&self) -> Vec<u8> {
        frame(self.number(), &self.body().finish())
    }

    /// Reads a request from an opened plaintext.
    ///
    /// # Errors
    /// If it is malformed, or a command that this version does not handle.
    pub fn decode(plaintext: &[u8]) -> Result<Self, BadMessage> {
        let (command, body) = unframe(plaintext)?;
        let mut map = Map::parse(body)?;
        let request = match command {
            number::GET_OPERATOR_NODES => Self::GetOperatorNodes { after: read_after(&mut map)? },
            number::GET_SUPER_NODES => Self::GetSuperNodes {
                key: map.optional_bytes(1)?.map(<[u8]>::to_vec),
                after: read_after(&mut map)?,
            },
            number::GET_NODE => Self::GetNode(map.id(1)?),
            number::GET_NODE_INFO => Self::GetNodeInfo(map.id(1)?),
            number::GET_TUNNEL_NODES => Self::GetTunnelNodes {
                tags: map.list(1, MAX_TAGS, Element::id)?,
                after: read_after(&mut map)?,
            },
            number::TUNNEL_REQUEST => Self::TunnelRequest(TunnelRequest::read(&mut map)?),
            number::PING => Self::Ping,
            number::GET_DEVICES => Self::GetDevices { after: read_after(&mut map)? },
            number::GET_HEAD => Self::GetHead,
            number::STORE => Self::Store(Bytes::copy_from_slice(map.bytes(1)?)),
            number::DEVICE_SEEN => Self::DeviceSeen { id: map.id(1)?, key: map.id(2)?, location: map.id(3)? },
            number::LEAVE => Self::Leave(map.id(1)?),
            number::ATTACH => Self::Attach,
            number::NOTIFY => Self::Notify { id: map.id(1)?, head: Bytes::copy_from_slice(map.bytes(2)?) },
            number::GET_REVOCATIONS => Self::GetRevocations { after: read_after(&mut map)? },
            number::GET_DOMAIN_KEY => Self::GetDomainKey,
            other => return Err(BadMessage::Command(other)),
        };
        map.finish()?;
        Ok(request)
    }
}

impl TunnelRequest {
    fn write(&self, map: &mut MapWriter) {
        map.bytes(1, &self.id.0).bytes(2, &self.device.0).text(3, &self.service).list_of_maps(
            4,
            &self.candidates,
            Candidate::write,
        );
    }

    fn read(map: &mut Map<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            id: map.id(1)?,
            device: map.id(2)?,
            service: map.text(3, MAX_NAME)?,
            candidates: read_candidates(map, 4)?,
        })
    }
}

impl Reply {
    /// Returns the number on the wire.
    pub const fn number(&self) -> u8 {
        match self {
            Self::OperatorNodes(_) => number::GET_OPERATOR_NODES + 1,
            Self::SuperNodes(_) => number::GET_SUPER_NODES + 1,
            Self::Node(_) => number::GET_NODE + 1,
            Self::NodeInfo(_) => number::GET_NODE_INFO + 1,
            Self::TunnelNodes(_) => number::GET_TUNNEL_NODES + 1,
            Self::TunnelOpened { .. } => number::TUNNEL_REQUEST + 1,
            Self::Reping { .. } => number::PING + 1,
            Self::Devices(_) => number::GET_DEVICES + 1,
            Self::Head(_) => number::GET_HEAD + 1,
            Self::Stored { .. } => number::STORE + 1,
            Self::DeviceNoted(_) => number::DEVICE_SEEN + 1,
            Self::Left(_) => number::LEAVE + 1,
            Self::Attached { .. } => number::ATTACH + 1,
            Self::Notified(_) => number::NOTIFY + 1,
            Self::Revocations(_) => number::GET_REVOCATIONS + 1,
            Self::DomainKey(_) => number::GET_DOMAIN_KEY + 1,
            Self::StaleTime(_) => number::STALE_TIME,
        }
    }

    fn body(&self) -> MapWriter {
        let mut map = MapWriter::new();
        match self {
            Self::OperatorNodes(page)
            | Self::SuperNodes(page)
            | Self::TunnelNodes(page)
            | Self::Devices(page)
            | Self::Revocations(page) => page.write(&mut map),
            Self::Node(record) | Self::NodeInfo(record) | Self::Head(record) | Self::DomainKey(record) => {
                map.optional_bytes(1, record.as_deref());
            }
            Self::TunnelOpened { candidates } => {
                map.list_of_maps(1, candidates, Candidate::write);
            }
            Self::Reping { observed } => {
                map.bytes(1, &address_bytes(*observed));
            }
            Self::Stored { table, key, version } => {
                map.uint(1, table.number()).bytes(2, &key.0).uint(3, *version);
            }
            Self::DeviceNoted(id) | Self::Left(id) | Self::Notified(id) => {
                map.bytes(1, &id.0);
            }
            Self::Attached { observed, head } => {
                map.bytes(1, &address_bytes(*observed)).optional_bytes(2, head.as_deref());
            }
            Self::StaleTime(time) => {
                map.uint(1, time.as_millis());
            }
        }
        map
    }

    /// Encodes the plaintext.
    pub fn encode(&self) -> Vec<u8> {
        frame(self.number(), &self.body().finish())
    }

    /// Reads a reply from an opened plaintext.
    ///
    /// # Errors
    /// If it is malformed, or a command that this version does not know.
    pub fn decode(plaintext: &[u8]) -> Result<Self, BadMessage> {
        let (command, body) = unframe(plaintext)?;
        let mut map = Map::parse(body)?;
        let reply = match command.wrapping_sub(1) {
            number::GET_OPERATOR_NODES => Self::OperatorNodes(Page::read(&mut map)?),
            number::GET_SUPER_NODES => Self::SuperNodes(Page::read(&mut map)?),
            number::GET_NODE => Self::Node(read_record(&mut map, 1)?),
            number::GET_NODE_INFO => Self::NodeInfo(read_record(&mut map, 1)?),
            number::GET_TUNNEL_NODES => Self::TunnelNodes(Page::read(&mut map)?),
            number::TUNNEL_REQUEST => Self::TunnelOpened { candidates: read_candidates(&mut map, 1)? },
            number::PING => Self::Reping { observed: read_address(&mut map, 1)? },
            number::GET_DEVICES => Self::Devices(Page::read(&mut map)?),
            number::GET_HEAD => Self::Head(read_record(&mut map, 1)?),
            number::STORE => Self::Stored {
                table: Table::from_number(map.uint(1)?).ok_or(Malformed::Type(1))?,
                key: map.id(2)?,
                version: map.uint(3)?,
            },
            number::DEVICE_SEEN => Self::DeviceNoted(map.id(1)?),
            number::LEAVE => Self::Left(map.id(1)?),
            number::ATTACH => {
                Self::Attached { observed: read_address(&mut map, 1)?, head: read_record(&mut map, 2)? }
            }
            number::NOTIFY => Self::Notified(map.id(1)?),
            number::GET_REVOCATIONS => Self::Revocations(Page::read(&mut map)?),
            number::GET_DOMAIN_KEY => Self::DomainKey(read_record(&mut map, 1)?),
            _ if command == number::STALE_TIME => Self::StaleTime(UnixTime::from_millis(map.uint(1)?)),
            _ => return Err(BadMessage::Command(command)),
        };
        map.finish()?;
        Ok(reply)
    }

    /// Returns whether this can be the answer to a request with that number.
    pub const fn answers(&self, request: u8) -> bool {
        matches!(self, Self::StaleTime(_)) || self.number() == request.wrapping_add(1)
    }
}

impl Page {
    /// Bytes that a page needs besides its records, three for each: map and list heads, the flag.
    const OVERHEAD: usize = 8;
    const PER_RECORD: usize = 3;

    fn write(&self, map: &mut MapWriter) {
        map.list_of_bytes(1, &self.records).flag(2, self.more);
    }

    fn read(map: &mut Map<'_>) -> Result<Self, Malformed> {
        let records = map.list(1, MAX_LIST, |e| e.bytes().map(Bytes::copy_from_slice))?;
        Ok(Self { records, more: map.flag(2)? })
    }

    /// Takes as many records as fit into a sealed reply of `size` bytes (Rule 4.4).
    pub fn fill(records: impl IntoIterator<Item = Bytes>, size: usize) -> Self {
        let mut room = size.saturating_sub(REPLY_OVERHEAD + PLAINTEXT_HEADER + Self::OVERHEAD);
        let mut page = Self::default();
        for record in records {
            let needed = record.len().saturating_add(Self::PER_RECORD);
            if needed > room || page.records.len() >= MAX_LIST {
                page.more = true;
                break;
            }
            room = room.saturating_sub(needed);
            page.records.push(record);
        }
        page
    }
}

/// Why an opened message cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// A command that this version does not handle.
    #[error("command {0} is not known to this version")]
    Command(u8),
    /// Not what the command needs.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
}

fn write_after(map: &mut MapWriter, after: Option<&RecordKey>) {
    map.optional_bytes(2, after.map(|key| &key.0[..]));
}

fn read_after(map: &mut Map<'_>) -> Result<Option<RecordKey>, Malformed> {
    map.optional_id(2)
}

fn read_record(map: &mut Map<'_>, key: u64) -> Result<Option<Bytes>, Malformed> {
    Ok(map.optional_bytes(key)?.map(Bytes::copy_from_slice))
}

fn read_address(map: &mut Map<'_>, key: u64) -> Result<SocketAddr, Malformed> {
    address_from(map.bytes(key)?).ok_or(Malformed::Type(key))
}

fn frame(command: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(PLAINTEXT_HEADER + body.len());
    out.push(command);
    // A body always fits into a datagram; a longer one fails to be sealed into one.
    out.extend_from_slice(&u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(body);
    out
}

fn unframe(plaintext: &[u8]) -> Result<(u8, &[u8]), Malformed> {
    let ([command, high, low], rest) = plaintext.split_first_chunk().ok_or(Malformed::Truncated)?;
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let (body, padding) = rest.split_at_checked(length).ok_or(Malformed::Truncated)?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(Malformed::Trailing);
    }
    Ok((*command, body))
}

#[cfg(test)]
mod tests;
