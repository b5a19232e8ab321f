//! Answers to reads: a function of the request, who asks and what is held.
//!
//! It has no state and changes nothing, so that any thread with a view of the records can run it (Rule 4.3). Who is not
//! entitled to an answer gets none, and what is not held completely here is not answered either: silence tells a stranger
//! nothing, and half a set looks like the truth.

use std::net::SocketAddr;

use bytes::Bytes;
use peerage_wire::id::{Domain, LookupTag, NodeId, PlacementKey, RecordKey, Segment};
use peerage_wire::message::{Page, Reply, Request};
use peerage_wire::record::{HeadBody, Record, Table, UnverifiedRecord};
use peerage_wire::time::UnixTime;

use crate::discard::Discard;
use crate::reconcile::{self, RECONCILED};
use crate::table::{Records, stretch};
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

/// What whoever answers holds.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The records. All OperatorNode records are among them, whatever the places.
    pub records: &'a Records,
    /// The places of which everything is held that operators sign.
    pub signed: &'a [Segment],
    /// The places of which NodeInfo is held: of an operator, where it stands in for super-nodes.
    pub announced: &'a [Segment],
}

impl<'a> View<'a> {
    /// Returns the view of an operator that stands in for all super-nodes.
    pub const fn everywhere(records: &'a Records) -> Self {
        Self { records, signed: &[Segment::ALL], announced: &[Segment::ALL] }
    }

    /// Returns the view of a super-node with these segments.
    pub const fn holder(records: &'a Records, segments: &'a [Segment]) -> Self {
        Self { records, signed: segments, announced: segments }
    }
}

/// Answers a read from what is held.
///
/// # Errors
/// Why the request is dropped: it is no read, its sender may not ask for it, or it is not held here (Rule 4.5).
pub fn answer(request: &Request, asked: Asked<'_>, view: View<'_>) -> Result<Reply, Discard> {
    let own = asked.from.id.domain;
    match request {
        Request::Ping => Ok(Reply::Reping { observed: asked.remote }),
        Request::GetOperatorNodes { after } => {
            Ok(Reply::OperatorNodes(page(view, Table::OperatorNode, Domain::OPERATORS, *after, asked)))
        }
        Request::GetSuperNodes { key, after } => {
            super_nodes(key.as_deref(), *after, asked, view).map(Reply::SuperNodes)
        }
        Request::GetNode(node) => node_record(node, asked, view).map(Reply::Node),
        Request::GetNodeInfo(node) => node_info(node, asked, view).map(Reply::NodeInfo),
        Request::GetTunnelNodes { tags, after } => {
            tunnel_nodes(tags, *after, asked, view).map(Reply::TunnelNodes)
        }
        Request::GetDevices { after, range } => devices(*range, *after, asked, view).map(Reply::Devices),
        Request::GetRevocations { after } => {
            touches(view, own)?;
            Ok(Reply::Revocations(page(view, Table::Revocation, own, *after, asked)))
        }
        Request::GetHead { domain } => {
            let domain = domain.unwrap_or(own);
            may_have_head(domain, asked, view)?;
            let head = view.records.get(Table::Head, domain, HeadBody::record_key(domain));
            Ok(Reply::Head(bytes_of(head, asked.time)))
        }
        Request::GetDomainKey => {
            let key = asked.from.id.record_key();
            held(view.signed, own, &key.0)?;
            Ok(Reply::DomainKey(bytes_of(view.records.get(Table::DomainKey, own, key), asked.time)))
        }
        Request::TransferPartition { table, range, after } => {
            may_transfer(*table, *range, asked, view)?;
            let records = view.records.in_range(*table, *range, *after);
            Ok(Reply::Partition(filled(records, asked)))
        }
        Request::Reconcile { table, from, to, summary } => {
            if !RECONCILED.contains(table) {
                return Err(Discard::Forbidden);
            }
            may_transfer(*table, Segment { from: from.place, to: to.place }, asked, view)?;
            Ok(Reply::Reconciled(reconcile::answer(view.records, *table, *from, *to, *summary)))
        }
        Request::PingElsewhere
        | Request::GetHeads(_)
        | Request::TunnelRequest(_)
        | Request::ForwardedTunnelRequest { .. }
        | Request::Forward(_)
        | Request::RelayJoin { .. }
        | Request::SubmitSuperNode(_)
        | Request::Store(_)
        | Request::DeviceSeen { .. }
        | Request::Refusals { .. }
        | Request::Leave(_)
        | Request::Attach
        | Request::Notify { .. } => Err(Discard::UnknownCommand),
    }
}

/// Decides whether somebody may have the Head of a domain: members, operators, and super-nodes whose segment touches it.
///
/// # Errors
/// If not, or if nothing of the domain is held here.
pub fn may_have_head(domain: Domain, asked: Asked<'_>, view: View<'_>) -> Result<(), Discard> {
    touches(view, domain)?;
    let is_member = domain == asked.from.id.domain;
    let may = is_member || asker_segment(asked, view).is_some_and(|segment| segment.touches(domain));
    if may { Ok(()) } else { Err(Discard::Forbidden) }
}

/// Returns the places of which somebody may have everything, whosever it is: all for operators, its own for a super-node.
fn asker_segment(asked: Asked<'_>, view: View<'_>) -> Option<Segment> {
    if asked.from.is_operator {
        return Some(Segment::ALL);
    }
    view.records.segment(&asked.from.id, asked.time)
}

/// Decides whether a fellow holder or an operator may have a range of a table.
fn may_transfer(table: Table, range: Segment, asked: Asked<'_>, view: View<'_>) -> Result<(), Discard> {
    let asker = asker_segment(asked, view).ok_or(Discard::Forbidden)?;
    let places = |segment: Segment| {
        let (from, to) = stretch(table, segment);
        Segment { from: from.place, to: to.place }
    };
    let (held, asker_holds): (Vec<_>, _) = match table {
        Table::OperatorNode => return Ok(()),
        // Of a NodeInfo not the domain counts, but where it is kept.
        Table::NodeInfo => (view.announced.to_vec(), asker),
        Table::Node
        | Table::SuperNode
        | Table::EndDevice
        | Table::DomainKey
        | Table::Revocation
        | Table::Head => (view.signed.iter().copied().map(places).collect(), places(asker)),
    };
    if !asker_holds.covers(&range) {
        return Err(Discard::Forbidden);
    }
    if covers(&held, range) { Ok(()) } else { Err(Discard::OutOfRange) }
}

/// Returns whether segments that may lie in any order cover a range together.
fn covers(segments: &[Segment], range: Segment) -> bool {
    let mut next = range.from;
    loop {
        let here = segments.iter().filter(|segment| segment.contains(next));
        let Some(to) = here.map(|segment| segment.to).max() else { return false };
        if to >= range.to {
            return true;
        }
        next = PlacementKey(to.0.saturating_add(1));
    }
}

/// Decides whether the place of a key is held. Where the whole domain is, the place need not be computed, which takes a hash.
fn held(segments: &[Segment], domain: Domain, key: &[u8]) -> Result<(), Discard> {
    let whole = Segment::of_domain(domain);
    let is_held = segments.iter().any(|segment| segment.covers(&whole)) || {
        let place = PlacementKey::new(domain, key);
        segments.iter().any(|segment| segment.contains(place))
    };
    if is_held { Ok(()) } else { Err(Discard::OutOfRange) }
}

fn touches(view: View<'_>, domain: Domain) -> Result<(), Discard> {
    let any = view.signed.iter().any(|segment| segment.touches(domain));
    if any { Ok(()) } else { Err(Discard::OutOfRange) }
}

/// Decides whether somebody may read about a node: a member of its domain, an operator, or who holds the same place; about operators
/// everybody may (Rule 4.5).
fn readable(node: &NodeId, asked: Asked<'_>, view: View<'_>) -> Result<(), Discard> {
    let may = node.domain == asked.from.id.domain
        || node.domain == Domain::OPERATORS
        || asker_segment(asked, view)
            .is_some_and(|segment| segment.contains(PlacementKey::new(node.domain, &node.hash)));
    if may { Ok(()) } else { Err(Discard::Forbidden) }
}

fn node_record(node: &NodeId, asked: Asked<'_>, view: View<'_>) -> Result<Option<Bytes>, Discard> {
    readable(node, asked, view)?;
    let table = if node.domain == Domain::OPERATORS {
        Table::OperatorNode
    } else {
        held(view.signed, node.domain, &node.hash)?;
        Table::Node
    };
    Ok(bytes_of(view.records.get(table, node.domain, node.record_key()), asked.time))
}

fn node_info(node: &NodeId, asked: Asked<'_>, view: View<'_>) -> Result<Option<Bytes>, Discard> {
    readable(node, asked, view)?;
    held(view.announced, node.domain, &node.hash)?;
    Ok(bytes_of(view.records.get(Table::NodeInfo, node.domain, node.record_key()), asked.time))
}

/// Finds the super-nodes that concern the asker's domain, or hold one place of it. Every holder of its places knows all of them; whoever
/// held some before knows to whom they have gone, and who knows nobody is silent.
fn super_nodes(
    key: Option<&[u8]>,
    after: Option<RecordKey>,
    asked: Asked<'_>,
    view: View<'_>,
) -> Result<Page, Discard> {
    let own = asked.from.id.domain;
    let range = key.map_or_else(
        || Segment::of_domain(own),
        |key| {
            let place = PlacementKey::new(own, key);
            Segment { from: place, to: place }
        },
    );
    let mut found = view.records.super_nodes(range, asked.time).map(|(record, _)| record).peekable();
    if found.peek().is_none() {
        touches(view, own)?;
    }
    Ok(filled(found.filter(|record| after.is_none_or(|after| record.header().key > after)), asked))
}

/// Finds the nodes of the asker's domain under those of the tags whose places are held here; others hold the others. Behind them come the
/// nodes' own records, which the asker would look up next, as far as there is room for them.
fn tunnel_nodes(
    tags: &[LookupTag],
    after: Option<RecordKey>,
    asked: Asked<'_>,
    view: View<'_>,
) -> Result<Page, Discard> {
    let own = asked.from.id.domain;
    let is_held = |tag: &&LookupTag| held(view.announced, own, &tag.0).is_ok();
    let here: Vec<_> = tags.iter().filter(is_held).copied().collect();
    if here.is_empty() {
        return Err(Discard::OutOfRange);
    }
    let mut page = filled(view.records.tagged(own, &here, after), asked);
    if !page.more {
        let found = page.records.iter().filter_map(|info| UnverifiedRecord::parse(info).ok());
        let keys: Vec<_> = found.map(|info| info.header().key).collect();
        let is_here = |key: &&RecordKey| held(view.signed, own, &key.0).is_ok();
        let nodes = keys.iter().filter(is_here).map(|key| view.records.get(Table::Node, own, *key));
        page.accompany(nodes.filter_map(|node| bytes_of(node, asked.time)), asked.room);
    }
    Ok(page)
}

/// Lists the devices of the asker's domain whose places lie in a range, all of which must be held here.
fn devices(
    range: Segment,
    after: Option<RecordKey>,
    asked: Asked<'_>,
    view: View<'_>,
) -> Result<Page, Discard> {
    let own = Segment::of_domain(asked.from.id.domain);
    let wanted = Segment { from: range.from.max(own.from), to: range.to.min(own.to) };
    if wanted.from > wanted.to || !covers(view.signed, wanted) {
        return Err(Discard::OutOfRange);
    }
    if wanted == own {
        return Ok(page(view, Table::EndDevice, asked.from.id.domain, after, asked));
    }
    Ok(filled(view.records.list_within(Table::EndDevice, asked.from.id.domain, wanted, after), asked))
}

/// Copies a record, if it is valid: its bytes are read anyway to answer with them, whereas the count of those who share them lies
/// elsewhere, and of a large table that is one more wait for memory.
fn bytes_of(record: Option<&Record>, time: UnixTime) -> Option<Bytes> {
    record.filter(|record| record.is_valid_at(time)).map(|record| Bytes::copy_from_slice(record.bytes()))
}

fn page(view: View<'_>, table: Table, domain: Domain, after: Option<RecordKey>, asked: Asked<'_>) -> Page {
    filled(view.records.list(table, domain, after), asked)
}

fn filled<'a>(records: impl IntoIterator<Item = &'a Record>, asked: Asked<'_>) -> Page {
    let valid = records.into_iter().filter(|record| record.is_valid_at(asked.time));
    Page::fill(valid.map(|record| record.bytes().clone()), asked.room)
}

#[cfg(test)]
mod tests;
