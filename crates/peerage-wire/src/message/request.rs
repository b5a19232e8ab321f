//! Requests: what a message asks for (Rule 4.3).

use bytes::Bytes;

use super::holder::{Refused, Submission};
use super::passing::{Forward, read_inner};
use super::{BadMessage, PLAINTEXT_HEADER, frame, number, read_flight, read_table, unframe};
use crate::cbor::{Element, FIRST_OPTIONAL_KEY, Malformed, Map, MapWriter};
use crate::codec::{Candidate, read_candidates, read_segment, write_segment};
use crate::id::{
    CommandId, DeviceId, Domain, LinkId, LocationId, LookupTag, NodeId, PlaceKey, RecordKey, Segment,
    SessionId,
};
use crate::limits::{MAX_DATAGRAM, MAX_HEADS, MAX_HELLO, MAX_LIST, MAX_NAME, MAX_RECORD, MAX_TAGS};
use crate::packet::{Class, REPLY_OVERHEAD};
use crate::record::{SetSummary, Table};

/// What a message asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The list of operators, from the one after `after` on.
    GetOperatorNodes {
        /// Where the page before ended.
        after: Option<RecordKey>,
    },
    /// The super-nodes that hold the place of `key` in the asker's domain; without a key, those that hold any place
    /// of that domain.
    GetSuperNodes {
        /// A record key or a look-up tag.
        key: Option<Vec<u8>>,
        /// Where the page before ended.
        after: Option<RecordKey>,
    },
    /// That the operator gives the asker a part of the table to hold; sent again and again, it keeps it.
    SubmitSuperNode(Submission),
    /// The records of a table that a part of the table has, in the order of their positions (Rule 4.7).
    TransferPartition {
        /// Which table.
        table: Table,
        /// Which part.
        range: Segment,
        /// Where the page before ended.
        after: Option<PlaceKey>,
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
    /// The same, to be answered from another port than the one that was asked: what comes back shows whom the routers on the way let in
    /// (Rule 6.98).
    PingElsewhere,
    /// That a sealed message is passed on to a node that is attached to the receiver (Rule 6.28).
    ForwardedTunnelRequest {
        /// To whom.
        to: NodeId,
        /// The datagram, sealed for that node, at most [`MAX_FORWARDED`](crate::limits::MAX_FORWARDED) bytes.
        inner: Bytes,
    },
    /// That the receiver looks at what somebody else asks.
    Forward(Forward),
    /// That the leg on which it comes is joined with that of another node (Rule 6.31).
    RelayJoin {
        /// The attempt that both know of.
        link: LinkId,
        /// Whose leg the other one is.
        peer: NodeId,
    },
    /// The EndDevice records of the asker's domain.
    GetDevices {
        /// Where the page before ended.
        after: Option<RecordKey>,
        /// Only those whose place lies here, for one domain may be cut over several holders.
        range: Segment,
    },
    /// The Head of a domain.
    GetHead {
        /// Which; the asker's own if `None`. Another is answered to super-nodes that hold a place of it.
        domain: Option<Domain>,
    },
    /// The Heads of several domains, two to [`MAX_HEADS`], of an operator (Rule 4.11). It is the question for the first alone, with
    /// the others as a hint: an operator that does not know it answers with the first.
    GetHeads(Vec<Domain>),
    /// That the receiver keeps a record.
    Store(Bytes),
    /// Where two holders differ in a stretch of a table (Rule 4.8).
    Reconcile {
        /// Which table.
        table: Table,
        /// The first position of the stretch.
        from: PlaceKey,
        /// The last position of the stretch.
        to: PlaceKey,
        /// What the asker holds there.
        summary: SetSummary,
    },
    /// That the operator notes where a device was seen.
    DeviceSeen {
        /// So that it is done once.
        id: CommandId,
        /// The key of the device's record.
        key: RecordKey,
        /// Where the asker sees it.
        location: LocationId,
    },
    /// That the operator notes what a super-node refused to whom.
    Refusals {
        /// So that they are counted once.
        id: CommandId,
        /// At most [`MAX_LIST`].
        refused: Vec<Refused>,
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
    /// Whose relay the asker dials at the same time; the tunnel-node is to dial it too.
    pub relay: Option<NodeId>,
    /// The first flight of a TLS handshake that the tunnel-node is to prepare (Rule 7.29); at most
    /// [`MAX_HELLO`](crate::limits::MAX_HELLO) bytes.
    pub hello: Option<Bytes>,
}

impl TunnelRequest {
    /// Returns by what the legs of this attempt are told from others at the relay.
    pub const fn link(&self) -> LinkId {
        LinkId(self.id.0)
    }
}

/// Sizes of sealed answers, in bytes: a page; one record; a Head, which has at most 361 bytes, with an address
/// besides; an acknowledgement.
const PAGE: usize = MAX_DATAGRAM;
const RECORD: usize = MAX_RECORD + REPLY_OVERHEAD + PLAINTEXT_HEADER + 8;
const HEAD: usize = 560;
const SHORT: usize = REPLY_OVERHEAD + PLAINTEXT_HEADER + 64;

impl Request {
    /// Returns the row of Rule 4.3's table: number, class, size of the answer.
    const fn row(&self) -> (u8, Class, usize) {
        use Class::{Other, Read};
        match self {
            Self::GetOperatorNodes { .. } => (number::GET_OPERATOR_NODES, Read, PAGE),
            Self::GetSuperNodes { .. } => (number::GET_SUPER_NODES, Read, PAGE),
            Self::SubmitSuperNode(_) => (number::SUBMIT_SUPER_NODE, Other, SHORT),
            Self::TransferPartition { .. } => (number::TRANSFER_PARTITION, Read, PAGE),
            Self::GetNode(_) => (number::GET_NODE, Read, RECORD),
            Self::GetNodeInfo(_) => (number::GET_NODE_INFO, Read, RECORD),
            Self::GetTunnelNodes { .. } => (number::GET_TUNNEL_NODES, Read, PAGE),
            Self::TunnelRequest(_) => (number::TUNNEL_REQUEST, Other, RECORD),
            Self::Ping | Self::PingElsewhere => (number::PING, Read, SHORT),
            // What is inside makes both long enough for an answer of the same kind.
            Self::ForwardedTunnelRequest { .. } => (number::FORWARDED_TUNNEL_REQUEST, Other, SHORT),
            Self::Forward(_) => (number::FORWARD, Other, SHORT),
            Self::RelayJoin { .. } => (number::RELAY_JOIN, Other, SHORT),
            Self::GetDevices { .. } => (number::GET_DEVICES, Read, PAGE),
            Self::GetHead { .. } => (number::GET_HEAD, Read, HEAD),
            Self::GetHeads(_) => (number::GET_HEAD, Read, PAGE),
            Self::Store(_) => (number::STORE, Other, SHORT),
            Self::Reconcile { .. } => (number::RECONCILE, Read, PAGE),
            Self::DeviceSeen { .. } => (number::DEVICE_SEEN, Other, SHORT),
            Self::Refusals { .. } => (number::REFUSALS, Other, SHORT),
            Self::Leave(_) => (number::LEAVE, Other, SHORT),
            Self::Attach => (number::ATTACH, Other, HEAD),
            Self::Notify { .. } => (number::NOTIFY, Other, SHORT),
            Self::GetRevocations { .. } => (number::GET_REVOCATIONS, Read, PAGE),
            Self::GetDomainKey => (number::GET_DOMAIN_KEY, Read, RECORD),
        }
    }

    /// Returns the number on the wire.
    pub const fn number(&self) -> u8 {
        self.row().0
    }

    /// Returns whether it only reads the table (Rule 4.3).
    pub const fn class(&self) -> Class {
        self.row().1
    }

    /// Returns the longest answer that makes sense, in bytes of the sealed datagram; the request is padded
    /// to this size.
    pub const fn reply_size(&self) -> usize {
        self.row().2
    }

    fn body(&self) -> MapWriter {
        let mut map = MapWriter::new();
        match self {
            Self::GetOperatorNodes { after } | Self::GetRevocations { after } => {
                write_after(&mut map, after.as_ref());
            }
            Self::GetSuperNodes { key, after } => {
                map.optional_bytes(1, key.as_deref());
                write_after(&mut map, after.as_ref());
            }
            Self::SubmitSuperNode(submission) => submission.write(&mut map),
            Self::TransferPartition { table, range, after } => {
                map.uint(1, table.number());
                write_segment(&mut map, 2, range);
                map.optional_bytes(4, after.map(PlaceKey::to_bytes).as_ref().map(<[u8; 40]>::as_slice));
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
            Self::Ping | Self::Attach | Self::GetDomainKey => {}
            Self::PingElsewhere => {
                map.flag(1, true);
            }
            Self::ForwardedTunnelRequest { to, inner } => {
                map.bytes(1, &to.to_bytes()).bytes(2, inner);
            }
            Self::Forward(forward) => forward.write(&mut map),
            Self::RelayJoin { link, peer } => {
                map.bytes(1, &link.0).bytes(2, &peer.to_bytes());
            }
            Self::GetDevices { after, range } => {
                write_after(&mut map, after.as_ref());
                if *range != Segment::ALL {
                    write_segment(&mut map, 3, range);
                }
            }
            Self::GetHead { domain } => {
                map.optional_uint(1, domain.map(|domain| domain.0));
            }
            Self::GetHeads(domains) => {
                map.optional_uint(1, domains.first().map(|domain| domain.0));
                let others: Vec<_> = domains.iter().skip(1).map(|domain| domain.to_bytes()).collect();
                map.list_of_bytes(FURTHER, &others);
            }
            Self::Store(record) => {
                map.bytes(1, record);
            }
            Self::Reconcile { table, from, to, summary } => {
                map.uint(1, table.number()).bytes(2, &from.to_bytes()).bytes(3, &to.to_bytes());
                map.uint(4, summary.count).bytes(5, &summary.sum);
            }
            Self::DeviceSeen { id, key, location } => {
                map.bytes(1, &id.0).bytes(2, &key.0).bytes(3, &location.0);
            }
            Self::Refusals { id, refused } => {
                map.bytes(1, &id.0).list_of_maps(2, refused, Refused::write);
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
        frame(self.number(), &self.body())
    }

    /// Reads a request from an opened plaintext.
    ///
    /// # Errors
    /// If it is malformed, or a command that this version does not handle.
    pub fn decode(plaintext: &[u8]) -> Result<Self, BadMessage> {
        let (command, body) = unframe(plaintext)?;
        let mut map = Map::parse(body)?;
        let request = Self::read(command, &mut map)?.ok_or(BadMessage::Command(command))?;
        map.finish()?;
        Ok(request)
    }

    /// Reads the body of a command; `None` if there is no request with that number.
    fn read(command: u8, map: &mut Map<'_>) -> Result<Option<Self>, Malformed> {
        Ok(Some(match command {
            number::GET_OPERATOR_NODES => Self::GetOperatorNodes { after: read_after(map)? },
            number::GET_SUPER_NODES => Self::GetSuperNodes {
                key: map.optional_bytes(1)?.map(<[u8]>::to_vec),
                after: read_after(map)?,
            },
            number::SUBMIT_SUPER_NODE => Self::SubmitSuperNode(Submission::read(map)?),
            number::TRANSFER_PARTITION => Self::TransferPartition {
                table: read_table(map, 1)?,
                range: read_segment(map, 2)?,
                after: map.optional_id(4)?,
            },
            number::GET_NODE => Self::GetNode(map.id(1)?),
            number::GET_NODE_INFO => Self::GetNodeInfo(map.id(1)?),
            number::GET_TUNNEL_NODES => {
                Self::GetTunnelNodes { tags: map.list(1, MAX_TAGS, Element::id)?, after: read_after(map)? }
            }
            number::TUNNEL_REQUEST => Self::TunnelRequest(TunnelRequest::read(map)?),
            number::PING if map.flag(1)? => Self::PingElsewhere,
            number::PING => Self::Ping,
            number::FORWARDED_TUNNEL_REQUEST => {
                Self::ForwardedTunnelRequest { to: map.id(1)?, inner: read_inner(map, 2)? }
            }
            number::FORWARD => Self::Forward(Forward::read(map)?),
            number::RELAY_JOIN => Self::RelayJoin { link: map.id(1)?, peer: map.id(2)? },
            number::GET_DEVICES => Self::GetDevices { after: read_after(map)?, range: read_range(map, 3)? },
            number::GET_HEAD => read_get_head(map)?,
            number::STORE => Self::Store(Bytes::copy_from_slice(map.bytes(1)?)),
            number::RECONCILE => {
                let (table, from, to) = (read_table(map, 1)?, map.id(2)?, map.id(3)?);
                if from > to {
                    return Err(Malformed::Type(3));
                }
                let summary = SetSummary { count: map.uint(4)?, sum: map.id(5)? };
                Self::Reconcile { table, from, to, summary }
            }
            number::DEVICE_SEEN => Self::DeviceSeen { id: map.id(1)?, key: map.id(2)?, location: map.id(3)? },
            number::REFUSALS => {
                let (id, all) = (map.id(1)?, map.list(2, MAX_LIST, Refused::read)?);
                Self::Refusals { id, refused: all.into_iter().flatten().collect() }
            }
            number::LEAVE => Self::Leave(map.id(1)?),
            number::ATTACH => Self::Attach,
            number::NOTIFY => Self::Notify { id: map.id(1)?, head: Bytes::copy_from_slice(map.bytes(2)?) },
            number::GET_REVOCATIONS => Self::GetRevocations { after: read_after(map)? },
            number::GET_DOMAIN_KEY => Self::GetDomainKey,
            _ => return Ok(None),
        }))
    }
}

impl TunnelRequest {
    fn write(&self, map: &mut MapWriter) {
        map.bytes(1, &self.id.0).bytes(2, &self.device.0).text(3, &self.service).list_of_maps(
            4,
            &self.candidates,
            Candidate::write,
        );
        map.optional_bytes(5, self.relay.map(NodeId::to_bytes).as_ref().map(<[u8; 36]>::as_slice));
        map.optional_bytes(6, self.hello.as_deref());
    }

    fn read(map: &mut Map<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            id: map.id(1)?,
            device: map.id(2)?,
            service: map.text(3, MAX_NAME)?,
            candidates: read_candidates(map, 4)?,
            relay: map.optional_id(5)?,
            hello: read_flight(map, 6, MAX_HELLO)?,
        })
    }
}

/// The field of GetHead with the domains after the first; those who do not know it pass over it (Rule 2.3).
const FURTHER: u64 = FIRST_OPTIONAL_KEY;

fn read_get_head(map: &mut Map<'_>) -> Result<Request, Malformed> {
    let domain = map.optional_uint(1)?.map(Domain);
    let others =
        map.list(FURTHER, MAX_HEADS - 1, |e| e.id().map(|bytes| Domain(u32::from_be_bytes(bytes))))?;
    if others.is_empty() {
        return Ok(Request::GetHead { domain });
    }
    let first = domain.ok_or(Malformed::Missing(1))?;
    Ok(Request::GetHeads(std::iter::once(first).chain(others).collect()))
}

fn write_after(map: &mut MapWriter, after: Option<&RecordKey>) {
    map.optional_bytes(2, after.map(|key| &key.0[..]));
}

fn read_after(map: &mut Map<'_>) -> Result<Option<RecordKey>, Malformed> {
    map.optional_id(2)
}

/// Reads the ends of a range, either of which may be absent.
fn read_range(map: &mut Map<'_>, key: u64) -> Result<Segment, Malformed> {
    let from = map.optional_id(key)?.unwrap_or(Segment::ALL.from);
    let to = map.optional_id(key + 1)?.unwrap_or(Segment::ALL.to);
    if from > to { Err(Malformed::Type(key + 1)) } else { Ok(Segment { from, to }) }
}
