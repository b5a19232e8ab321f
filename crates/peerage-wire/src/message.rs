//! Commands: what one message asks or answers (chapter 4 of the protocol).
//!
//! Requests have odd numbers and the answer to a request the even number after it. A plaintext is the
//! number, the length of the body in two bytes, the body, and zeros: the asker pads a request to the size
//! of the answer that it is ready to take, because no answer is longer than its request (Rule 4.2).

mod holder;
mod passing;
mod reply;
mod request;

use bytes::Bytes;

pub use holder::{Entry, Load, Part, Reconciled, Refused, RefusedReason, Submission, SuperNodeState};
pub use passing::{Forward, RelayRefusal};
pub use reply::Reply;
pub use request::{Request, TunnelRequest};

use crate::cbor::{Malformed, Map, MapWriter};
use crate::limits::MAX_LIST;
use crate::packet::REPLY_OVERHEAD;
use crate::record::Table;

/// The numbers of all commands, the reserved ones included (Rule 4.1).
pub mod number {
    /// Asks for the list of operators.
    pub const GET_OPERATOR_NODES: u8 = 1;
    /// Asks for the super-nodes of a part of the key-space.
    pub const GET_SUPER_NODES: u8 = 3;
    /// Asks to become a super-node.
    pub const SUBMIT_SUPER_NODE: u8 = 5;
    /// Hands over a part of the table.
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
    /// Asks a super-node to pass a TunnelRequest on.
    pub const FORWARDED_TUNNEL_REQUEST: u8 = 19;
    /// Asks for the devices of the asker's domain.
    pub const GET_DEVICES: u8 = 21;
    /// Asks for the Head of a domain.
    pub const GET_HEAD: u8 = 23;
    /// Hands over a record to keep.
    pub const STORE: u8 = 25;
    /// Compares a range of the table.
    pub const RECONCILE: u8 = 27;
    /// Tells an operator where a device was seen.
    pub const DEVICE_SEEN: u8 = 29;
    /// Tells an operator what a super-node refused.
    pub const REFUSALS: u8 = 31;
    /// Tells an operator that a node leaves the network.
    pub const LEAVE: u8 = 33;
    /// Keeps a tunnel-node in contact.
    pub const ATTACH: u8 = 35;
    /// Tells a node that something in its domain is newer.
    pub const NOTIFY: u8 = 37;
    /// Joins two legs of a relay.
    pub const RELAY_JOIN: u8 = 39;
    /// Asks for revocations.
    pub const GET_REVOCATIONS: u8 = 41;
    /// Asks for the domain's keys, sealed to the asker.
    pub const GET_DOMAIN_KEY: u8 = 43;
    /// Hands on what somebody else asks.
    pub const FORWARD: u8 = 45;
    /// Answers whatever came with a wrong time.
    pub const STALE_TIME: u8 = 64;
}

/// Bytes before the body: command number and length.
pub const PLAINTEXT_HEADER: usize = 3;

/// A part of a list of records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The records, in ascending order of their keys.
    pub records: Vec<Bytes>,
    /// Whether more follow after the last.
    pub more: bool,
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

    /// Adds records that nobody asked for after those that were, as many as still fit; of the others the page says nothing
    /// (Rule 4.4).
    pub fn accompany(&mut self, records: impl IntoIterator<Item = Bytes>, size: usize) {
        let used = self.records.iter().map(|record| record.len().saturating_add(Self::PER_RECORD));
        let used = used.fold(Self::OVERHEAD, usize::saturating_add);
        let mut room = size.saturating_sub((REPLY_OVERHEAD + PLAINTEXT_HEADER).saturating_add(used));
        for record in records {
            let needed = record.len().saturating_add(Self::PER_RECORD);
            if needed <= room && self.records.len() < MAX_LIST {
                room = room.saturating_sub(needed);
                self.records.push(record);
            }
        }
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

fn read_table(map: &mut Map<'_>, key: u64) -> Result<Table, Malformed> {
    Table::from_number(map.uint(key)?).ok_or(Malformed::Type(key))
}

/// Reads bytes of a TLS handshake, if there are any and they are not too many.
fn read_flight(map: &mut Map<'_>, key: u64, most: usize) -> Result<Option<Bytes>, Malformed> {
    match map.optional_bytes(key)? {
        Some(flight) if flight.len() > most => Err(Malformed::Type(key)),
        flight => Ok(flight.map(Bytes::copy_from_slice)),
    }
}

fn frame(command: u8, body: &MapWriter) -> Vec<u8> {
    let length = body.encoded_len();
    let mut out = Vec::with_capacity(PLAINTEXT_HEADER + length);
    out.push(command);
    // A body always fits into a datagram; a longer one fails to be sealed into one.
    out.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    body.append_to(&mut out);
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
