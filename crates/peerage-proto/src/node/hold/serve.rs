//! What others ask of a super-node (Rules 4.5 and 6.55).

use std::net::SocketAddr;

use bytes::Bytes;
use peerage_wire::id::Domain;
use peerage_wire::message::{RefusedReason, Reply, Request};
use peerage_wire::record::{Record, Table, UnverifiedRecord, subject};
use peerage_wire::time::Now;

use crate::discard::Discard;
use crate::endpoint::{Incoming, ReplyTo};
use crate::node::Node;
use crate::responder::{self, Asked, View};
use crate::table::Inserted;
use crate::trust::{Member, Trust};

impl Node {
    /// Takes what is asked of a super-node, and gives back what is not.
    pub(in crate::node) fn hold_request(&mut self, incoming: Incoming, now: Now) -> Option<Incoming> {
        if self.hold.part.is_none() {
            return self.offered_assignment(incoming, now);
        }
        let is_mine = match &incoming.request {
            Request::PingElsewhere
            | Request::TunnelRequest(_)
            | Request::Forward(_)
            | Request::SubmitSuperNode(_)
            | Request::DeviceSeen { .. }
            | Request::Refusals { .. }
            | Request::Leave(_) => false,
            // Of operators alone: a fellow is asked for what nobody else has.
            Request::GetHeads(_) => false,
            Request::Notify { head, .. } => {
                let is_news = incoming.from.is_operator && self.take_held_head(&[], head, now).is_ok();
                // About its own domain a node is told as a member too.
                is_news && !self.is_own_head(head)
            }
            Request::Ping
            | Request::ForwardedTunnelRequest { .. }
            | Request::RelayJoin { .. }
            | Request::GetOperatorNodes { .. }
            | Request::GetSuperNodes { .. }
            | Request::GetNode(_)
            | Request::GetNodeInfo(_)
            | Request::GetTunnelNodes { .. }
            | Request::GetDevices { .. }
            | Request::GetHead { .. }
            | Request::TransferPartition { .. }
            | Request::Store(_)
            | Request::Reconcile { .. }
            | Request::Attach
            | Request::GetRevocations { .. }
            | Request::GetDomainKey => true,
        };
        if !is_mine {
            return Some(incoming);
        }
        let is_passed =
            matches!(incoming.request, Request::ForwardedTunnelRequest { .. } | Request::RelayJoin { .. });
        let result = if is_passed { self.pass(incoming, now) } else { self.answer_as_holder(incoming, now) };
        if let Err(reason) = result {
            self.endpoint.discard(reason);
        }
        None
    }

    fn is_own_head(&self, head: &Bytes) -> bool {
        UnverifiedRecord::parse(head).is_ok_and(|record| record.header().domain == self.me.id.domain)
    }

    /// A node that holds nothing yet takes the record that makes it a super-node, from an operator.
    fn offered_assignment(&mut self, incoming: Incoming, now: Now) -> Option<Incoming> {
        let Request::Store(bytes) = &incoming.request else { return Some(incoming) };
        let is_welcome = incoming.from.is_operator && self.hold.role.is_lent() && self.me.roles.super_node;
        let time = self.endpoint.judging_time(now);
        let record = self.trust.verify(bytes, time, self.endpoint.crypto()).ok();
        let Some(record) = record.filter(|record| is_welcome && self.is_assignment(record)) else {
            return Some(incoming);
        };
        self.assigned(&record, now);
        let header = record.header();
        let reply = Reply::Stored { table: header.table, key: header.key, version: header.version };
        self.endpoint.reply(&incoming.reply_to, &reply);
        None
    }

    fn answer_as_holder(&mut self, incoming: Incoming, now: Now) -> Result<(), Discard> {
        let from = self.admit(incoming.from, now)?;
        let Incoming { remote, request, reply_to, .. } = incoming;
        let reply = match &request {
            Request::GetHead { domain } => {
                let domain = domain.unwrap_or(from.id.domain);
                self.may_have_head((&from, remote, reply_to.room()), domain, now)?;
                if domain == from.id.domain {
                    self.answer_head(domain, None, reply_to, now);
                } else {
                    self.answer_fellow(domain, reply_to);
                }
                return Ok(());
            }
            Request::Attach => return self.attach(&from, remote, reply_to, now),
            Request::Notify { id, .. } => Reply::Notified(*id),
            Request::Store(bytes) => self.store(&from, bytes, now)?,
            read @ (Request::Ping
            | Request::GetOperatorNodes { .. }
            | Request::GetSuperNodes { .. }
            | Request::GetNode(_)
            | Request::GetNodeInfo(_)
            | Request::GetTunnelNodes { .. }
            | Request::GetDevices { .. }
            | Request::TransferPartition { .. }
            | Request::Reconcile { .. }
            | Request::GetRevocations { .. }
            | Request::GetDomainKey) => self.read(read, (&from, remote, reply_to.room()), now)?,
            Request::PingElsewhere
            | Request::GetHeads(_)
            | Request::TunnelRequest(_)
            | Request::ForwardedTunnelRequest { .. }
            | Request::Forward(_)
            | Request::RelayJoin { .. }
            | Request::SubmitSuperNode(_)
            | Request::DeviceSeen { .. }
            | Request::Refusals { .. }
            | Request::Leave(_) => return Err(Discard::UnknownCommand),
        };
        self.hold.served = self.hold.served.saturating_add(1);
        self.endpoint.reply(&reply_to, &reply);
        Ok(())
    }

    fn read(
        &self,
        request: &Request,
        (from, remote, room): (&Member, SocketAddr, usize),
        now: Now,
    ) -> Result<Reply, Discard> {
        if self.is_about_lacking(request, from.id.domain) {
            return Err(Discard::OutOfRange);
        }
        let asked = Asked { from, remote, room, time: self.hold_time(now) };
        let part = self.hold.part.as_ref().ok_or(Discard::UnknownCommand)?;
        let (signed, announced) = part.answers_for();
        let view = View { records: &part.records, signed: &signed, announced: &announced };
        responder::answer(request, asked, view)
    }

    /// Decides whether somebody is heard at all: a member as the records here know it, at no more than a member's rate.
    pub(super) fn admit(&mut self, from: Member, now: Now) -> Result<Member, Discard> {
        let time = self.hold_time(now);
        let part = self.hold.part.as_mut().ok_or(Discard::UnknownCommand)?;
        if from.is_operator {
            return Ok(from);
        }
        let is_holder = part.records.segment(&from.id, time).is_some();
        let limiter = if is_holder { &mut part.holders } else { &mut part.members };
        if !limiter.take(&from.id, now.mono) {
            self.hold.refuse(from.id.domain, RefusedReason::Rate);
            return Err(Discard::RateLimited);
        }
        // Its introduction may be older than what the operator has said since (Rule 2.21).
        let known = part.records.get(Table::Node, from.id.domain, from.id.record_key());
        match known.map(Trust::member) {
            Some(Some(current)) => Ok(current),
            Some(None) => {
                self.hold.refuse(from.id.domain, RefusedReason::NotMember);
                Err(Discard::Expired)
            }
            None => Ok(from),
        }
    }

    fn may_have_head(
        &self,
        (from, remote, room): (&Member, SocketAddr, usize),
        domain: Domain,
        now: Now,
    ) -> Result<(), Discard> {
        let part = self.hold.part.as_ref().ok_or(Discard::UnknownCommand)?;
        let places: Vec<_> = part.places().collect();
        let asked = Asked { from, remote, room, time: self.hold_time(now) };
        responder::may_have_head(domain, asked, View::holder(&part.records, &places))
    }

    /// Takes in a tunnel-node that wants to be reached here.
    fn attach(
        &mut self,
        from: &Member,
        remote: SocketAddr,
        reply_to: ReplyTo,
        now: Now,
    ) -> Result<(), Discard> {
        let touches = self.hold.part.as_ref().is_some_and(|part| part.touches(from.id.domain));
        if !touches {
            return Err(Discard::OutOfRange);
        }
        if !from.roles.tunnel {
            return Err(Discard::Forbidden);
        }
        if !self.take_contact(from.id, remote, now) {
            self.hold.refuse(from.id.domain, RefusedReason::Quota);
            return Err(Discard::Full);
        }
        self.answer_head(from.id.domain, Some(remote), reply_to, now);
        Ok(())
    }

    /// Keeps what somebody stores: a member its own announcement, operators and holders what operators signed.
    fn store(&mut self, from: &Member, bytes: &Bytes, now: Now) -> Result<Reply, Discard> {
        let verified = self.verify_stored(from, bytes, now);
        let record = verified.inspect_err(|reason| {
            if *reason == Discard::BadRecord {
                self.hold.refuse(from.id.domain, RefusedReason::BadRecords);
            }
        })?;
        let header = *record.header();
        let version = match self.keep_held(record, now) {
            Inserted::New | Inserted::Same => header.version,
            Inserted::Older(held) => held,
            Inserted::Full => {
                self.hold.refuse(header.domain, RefusedReason::Quota);
                return Err(Discard::Full);
            }
        };
        Ok(Reply::Stored { table: header.table, key: header.key, version })
    }

    fn verify_stored(&self, from: &Member, bytes: &Bytes, now: Now) -> Result<Record, Discard> {
        let header = *UnverifiedRecord::parse(bytes).map_err(|_| Discard::BadRecord)?.header();
        if header.table == Table::NodeInfo {
            if subject(&header) != from.id {
                return Err(Discard::Forbidden);
            }
            return self.verify_own_info(bytes, from, now);
        }
        let part = self.hold.part.as_ref().ok_or(Discard::UnknownCommand)?;
        let segment = part.records.segment(&from.id, self.hold_time(now));
        let is_fellow = segment.is_some_and(|segment| part.places().any(|own| own.overlaps(&segment)));
        // A newcomer shows its own assignment, which may not have come from the operator yet.
        let is_assignment = header.table == Table::SuperNode && subject(&header) == from.id;
        if !from.is_operator && !is_fellow && !is_assignment {
            return Err(Discard::Forbidden);
        }
        self.verify_signed(bytes, now)
    }
}
