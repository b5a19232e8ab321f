//! Answers to reads: a function of the request, who asks and the records held.
//!
//! It has no state and changes nothing, so that any thread with a view of the records can run it (Rule 4.3). Who is not
//! entitled to an answer gets none: silence tells a stranger nothing.

use std::net::SocketAddr;

use bytes::Bytes;
use peerage_wire::id::{Domain, NodeId, RecordKey};
use peerage_wire::message::{Page, Reply, Request};
use peerage_wire::record::{HeadBody, Record, Table};
use peerage_wire::time::UnixTime;

use crate::discard::Discard;
use crate::table::Records;
use crate::trust::Member;

/// What an answer depends on besides the request.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Who asks.
    pub from: &'a Member,
    /// Whence.
    pub remote: SocketAddr,
    /// Most bytes of the sealed answer.
    pub room: usize,
    /// The corrected time: what has expired is not handed out, even if it was not swept yet.
    pub time: UnixTime,
}

/// Answers a read from the records held.
///
/// # Errors
/// Why the request is dropped: it is no read, or its sender may not ask for it (Rule 4.5).
pub fn answer(request: &Request, asked: Asked<'_>, records: &Records) -> Result<Reply, Discard> {
    let own = asked.from.id.domain;
    let one = |table, domain, key| bytes_of(records.get(table, domain, key), asked.time);
    match request {
        Request::Ping => Ok(Reply::Reping { observed: asked.remote }),
        Request::GetOperatorNodes { after } => {
            Ok(Reply::OperatorNodes(page(records, Table::OperatorNode, Domain::OPERATORS, *after, asked)))
        }
        // A reader whose range does not cover the key says nothing; the operator covers all of it.
        Request::GetSuperNodes { key: _, after } => {
            Ok(Reply::SuperNodes(page(records, Table::SuperNode, own, *after, asked)))
        }
        Request::GetNode(node) => {
            let (table, domain) = readable(node, asked.from, Table::Node)?;
            Ok(Reply::Node(one(table, domain, node.record_key())))
        }
        Request::GetNodeInfo(node) => {
            let (_, domain) = readable(node, asked.from, Table::NodeInfo)?;
            Ok(Reply::NodeInfo(one(Table::NodeInfo, domain, node.record_key())))
        }
        Request::GetTunnelNodes { tags, after } => {
            let found = records.tagged(own, tags, *after);
            let valid = found.into_iter().filter(|record| record.is_valid_at(asked.time));
            Ok(Reply::TunnelNodes(Page::fill(valid.map(|r| r.bytes().clone()), asked.room)))
        }
        Request::GetDevices { after } => {
            Ok(Reply::Devices(page(records, Table::EndDevice, own, *after, asked)))
        }
        Request::GetRevocations { after } => {
            Ok(Reply::Revocations(page(records, Table::Revocation, own, *after, asked)))
        }
        Request::GetHead => Ok(Reply::Head(one(Table::Head, own, HeadBody::record_key(own)))),
        Request::GetDomainKey => Ok(Reply::DomainKey(one(Table::DomainKey, own, asked.from.id.record_key()))),
        Request::TunnelRequest(_)
        | Request::Store(_)
        | Request::DeviceSeen { .. }
        | Request::Leave(_)
        | Request::Attach
        | Request::Notify { .. } => Err(Discard::UnknownCommand),
    }
}

/// Decides whether a member may read about a node: of its own domain, or of the operators' (Rule 4.5).
fn readable(node: &NodeId, from: &Member, table: Table) -> Result<(Table, Domain), Discard> {
    if node.domain == Domain::OPERATORS {
        return Ok((if table == Table::Node { Table::OperatorNode } else { table }, node.domain));
    }
    let entitled = node.domain == from.id.domain || from.is_operator;
    if entitled { Ok((table, node.domain)) } else { Err(Discard::Forbidden) }
}

fn bytes_of(record: Option<&Record>, time: UnixTime) -> Option<Bytes> {
    record.filter(|record| record.is_valid_at(time)).map(|record| record.bytes().clone())
}

fn page(records: &Records, table: Table, domain: Domain, after: Option<RecordKey>, asked: Asked<'_>) -> Page {
    let list = records.list(table, domain, after).filter(|record| record.is_valid_at(asked.time));
    Page::fill(list.map(|record| record.bytes().clone()), asked.room)
}
