//! Answers: what a message says to a request (Rule 4.3).

use std::net::SocketAddr;

use bytes::Bytes;

use super::holder::{Reconciled, SuperNodeState};
use super::passing::{RelayRefusal, read_inner, read_optional_inner};
use super::{BadMessage, Page, frame, number, read_flight, read_table, unframe};
use crate::cbor::{FIRST_OPTIONAL_KEY, Malformed, Map, MapWriter};
use crate::codec::{Candidate, address_bytes, address_from, read_candidates};
use crate::id::{CommandId, RecordKey};
use crate::limits::{MAX_FLIGHT, MAX_HEADS};
use crate::record::Table;
use crate::time::UnixTime;

/// What a message answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A page of OperatorNode records.
    OperatorNodes(Page),
    /// A page of SuperNode records.
    SuperNodes(Page),
    /// What the operator makes of a wish to be a super-node.
    SuperNodeSubmitted {
        /// Of the request.
        id: CommandId,
        /// How it stands.
        state: SuperNodeState,
    },
    /// A page of records of a part of the table.
    Partition(Page),
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
        /// The first flight of the TLS server, if the tunnel-node has prepared the handshake that was asked for (Rule 7.29); at
        /// most [`MAX_FLIGHT`] bytes.
        flight: Option<Bytes>,
    },
    /// How the receiver saw the asker.
    Reping {
        /// The source of the request.
        observed: SocketAddr,
    },
    /// What a node answered that is attached to the receiver: a datagram sealed for the asker. `None` if it is not attached
    /// there.
    ForwardedTunnelOpened(Option<Bytes>),
    /// The answer to what was handed on.
    Forwarded {
        /// Of the request.
        token: Bytes,
        /// The datagram, sealed for whoever asked.
        inner: Bytes,
    },
    /// The leg is joined, and everything that follows on it is the other node's; or why not.
    RelayJoined(Result<(), RelayRefusal>),
    /// A page of EndDevice records.
    Devices(Page),
    /// A Head.
    Head(Option<Bytes>),
    /// Several Heads, two to [`MAX_HEADS`], in no order: each says whose it is.
    Heads(Vec<Bytes>),
    /// What became of a record.
    Stored {
        /// Which table.
        table: Table,
        /// Which record.
        key: RecordKey,
        /// The version that the receiver holds now; the same as sent if it was taken or held already.
        version: u64,
    },
    /// Where two holders differ.
    Reconciled(Reconciled),
    /// The operator has noted where a device was seen.
    DeviceNoted(CommandId),
    /// The operator has counted what was refused.
    RefusalsNoted(CommandId),
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

impl Reply {
    /// Makes the answer with these Heads.
    pub fn heads(mut heads: Vec<Bytes>) -> Self {
        if heads.len() > 1 { Self::Heads(heads) } else { Self::Head(heads.pop()) }
    }

    /// Returns the number on the wire.
    pub const fn number(&self) -> u8 {
        match self {
            Self::OperatorNodes(_) => number::GET_OPERATOR_NODES + 1,
            Self::SuperNodes(_) => number::GET_SUPER_NODES + 1,
            Self::SuperNodeSubmitted { .. } => number::SUBMIT_SUPER_NODE + 1,
            Self::Partition(_) => number::TRANSFER_PARTITION + 1,
            Self::Node(_) => number::GET_NODE + 1,
            Self::NodeInfo(_) => number::GET_NODE_INFO + 1,
            Self::TunnelNodes(_) => number::GET_TUNNEL_NODES + 1,
            Self::TunnelOpened { .. } => number::TUNNEL_REQUEST + 1,
            Self::Reping { .. } => number::PING + 1,
            Self::ForwardedTunnelOpened(_) => number::FORWARDED_TUNNEL_REQUEST + 1,
            Self::Forwarded { .. } => number::FORWARD + 1,
            Self::RelayJoined(_) => number::RELAY_JOIN + 1,
            Self::Devices(_) => number::GET_DEVICES + 1,
            Self::Head(_) | Self::Heads(_) => number::GET_HEAD + 1,
            Self::Stored { .. } => number::STORE + 1,
            Self::Reconciled(_) => number::RECONCILE + 1,
            Self::DeviceNoted(_) => number::DEVICE_SEEN + 1,
            Self::RefusalsNoted(_) => number::REFUSALS + 1,
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
            | Self::Partition(page)
            | Self::TunnelNodes(page)
            | Self::Devices(page)
            | Self::Revocations(page) => page.write(&mut map),
            Self::Node(record) | Self::NodeInfo(record) | Self::Head(record) | Self::DomainKey(record) => {
                map.optional_bytes(1, record.as_deref());
            }
            Self::Heads(heads) => {
                map.optional_bytes(1, heads.first().map(|head| &head[..]));
                map.list_of_bytes(FURTHER, heads.get(1..).unwrap_or_default());
            }
            Self::SuperNodeSubmitted { id, state } => {
                map.bytes(1, &id.0).uint(2, state.number());
            }
            Self::TunnelOpened { candidates, flight } => {
                map.list_of_maps(1, candidates, Candidate::write).optional_bytes(2, flight.as_deref());
            }
            Self::Reping { observed } => {
                map.bytes(1, &address_bytes(*observed));
            }
            Self::ForwardedTunnelOpened(inner) => {
                map.optional_bytes(1, inner.as_deref());
            }
            Self::Forwarded { token, inner } => {
                map.bytes(1, token).bytes(2, inner);
            }
            Self::RelayJoined(joined) => {
                map.uint(1, RelayRefusal::number(*joined));
            }
            Self::Stored { table, key, version } => {
                map.uint(1, table.number()).bytes(2, &key.0).uint(3, *version);
            }
            Self::Reconciled(reconciled) => reconciled.write(&mut map),
            Self::DeviceNoted(id) | Self::RefusalsNoted(id) | Self::Left(id) | Self::Notified(id) => {
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
        frame(self.number(), &self.body())
    }

    /// Reads a reply from an opened plaintext.
    ///
    /// # Errors
    /// If it is malformed, or a command that this version does not know.
    pub fn decode(plaintext: &[u8]) -> Result<Self, BadMessage> {
        let (command, body) = unframe(plaintext)?;
        let mut map = Map::parse(body)?;
        let reply = Self::read(command, &mut map)?.ok_or(BadMessage::Command(command))?;
        map.finish()?;
        Ok(reply)
    }

    /// Reads the body of a command; `None` if there is no answer with that number.
    fn read(command: u8, map: &mut Map<'_>) -> Result<Option<Self>, Malformed> {
        if command == number::STALE_TIME {
            return Ok(Some(Self::StaleTime(UnixTime::from_millis(map.uint(1)?))));
        }
        Ok(Some(match command.wrapping_sub(1) {
            number::GET_OPERATOR_NODES => Self::OperatorNodes(Page::read(map)?),
            number::GET_SUPER_NODES => Self::SuperNodes(Page::read(map)?),
            number::SUBMIT_SUPER_NODE => Self::SuperNodeSubmitted {
                id: map.id(1)?,
                state: SuperNodeState::from_number(map.uint(2)?).ok_or(Malformed::Type(2))?,
            },
            number::TRANSFER_PARTITION => Self::Partition(Page::read(map)?),
            number::GET_NODE => Self::Node(read_record(map, 1)?),
            number::GET_NODE_INFO => Self::NodeInfo(read_record(map, 1)?),
            number::GET_TUNNEL_NODES => Self::TunnelNodes(Page::read(map)?),
            number::TUNNEL_REQUEST => Self::TunnelOpened {
                candidates: read_candidates(map, 1)?,
                flight: read_flight(map, 2, MAX_FLIGHT)?,
            },
            number::PING => Self::Reping { observed: read_address(map, 1)? },
            number::FORWARDED_TUNNEL_REQUEST => Self::ForwardedTunnelOpened(read_optional_inner(map, 1)?),
            number::FORWARD => {
                Self::Forwarded { token: Bytes::copy_from_slice(map.bytes(1)?), inner: read_inner(map, 2)? }
            }
            number::RELAY_JOIN => {
                Self::RelayJoined(RelayRefusal::from_number(map.uint(1)?).ok_or(Malformed::Type(1))?)
            }
            number::GET_DEVICES => Self::Devices(Page::read(map)?),
            number::GET_HEAD => read_heads(map)?,
            number::STORE => {
                Self::Stored { table: read_table(map, 1)?, key: map.id(2)?, version: map.uint(3)? }
            }
            number::RECONCILE => Self::Reconciled(Reconciled::read(map)?),
            number::DEVICE_SEEN => Self::DeviceNoted(map.id(1)?),
            number::REFUSALS => Self::RefusalsNoted(map.id(1)?),
            number::LEAVE => Self::Left(map.id(1)?),
            number::ATTACH => Self::Attached { observed: read_address(map, 1)?, head: read_record(map, 2)? },
            number::NOTIFY => Self::Notified(map.id(1)?),
            number::GET_REVOCATIONS => Self::Revocations(Page::read(map)?),
            number::GET_DOMAIN_KEY => Self::DomainKey(read_record(map, 1)?),
            _ => return Ok(None),
        }))
    }

    /// Returns whether this can be the answer to a request with that number.
    pub const fn answers(&self, request: u8) -> bool {
        matches!(self, Self::StaleTime(_)) || self.number() == request.wrapping_add(1)
    }
}

/// The field of a Head's answer with those after the first (Rule 2.3).
const FURTHER: u64 = FIRST_OPTIONAL_KEY;

fn read_heads(map: &mut Map<'_>) -> Result<Reply, Malformed> {
    let first = read_record(map, 1)?;
    let others = map.list(FURTHER, MAX_HEADS - 1, |e| e.bytes().map(Bytes::copy_from_slice))?;
    if first.is_none() && !others.is_empty() {
        return Err(Malformed::Missing(1));
    }
    Ok(Reply::heads(first.into_iter().chain(others).collect()))
}

fn read_record(map: &mut Map<'_>, key: u64) -> Result<Option<Bytes>, Malformed> {
    Ok(map.optional_bytes(key)?.map(Bytes::copy_from_slice))
}

fn read_address(map: &mut Map<'_>, key: u64) -> Result<SocketAddr, Malformed> {
    address_from(map.bytes(key)?).ok_or(Malformed::Type(key))
}
