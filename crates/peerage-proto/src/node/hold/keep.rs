//! What a holder takes into its part of the table, and what it drops: verified, within its places, within its memory
//! (Rules 4.5, 6.54 and 6.55).

use bytes::Bytes;
use peerage_wire::id::{Domain, NodeId, RecordKey};
use peerage_wire::limits::MAX_VERSION_AHEAD;
use peerage_wire::record::{
    NodeInfoPublic, Record, RevocationBody, RevocationKind, SuperNodeBody, Table, UnverifiedRecord, subject,
};
use peerage_wire::time::Now;

use super::part::Part;
use crate::discard::Discard;
use crate::node::{Change, Node};
use crate::table::Inserted;
use crate::trust::{Member, Trust};

impl Part {
    /// Returns whether a record is one to be held here (Rule 1.8). Heads are kept apart.
    pub(super) fn belongs(&self, record: &Record) -> bool {
        let header = record.header();
        match header.table {
            Table::SuperNode | Table::OperatorNode => true,
            Table::Revocation => self.touches(header.domain),
            Table::Node | Table::EndDevice | Table::DomainKey => self.holds(header.placement()),
            Table::NodeInfo => {
                let tagged = NodeInfoPublic::read(record).map(|body| body.placements(header.domain));
                self.holds(header.placement())
                    || tagged.is_ok_and(|places| places.iter().any(|place| self.holds(*place)))
            }
            Table::Head => false,
        }
    }
}

/// Returns whether records of a table are kept on disk: what operators sign for days, not what is made anew every minute.
const fn is_durable(table: Table) -> bool {
    !matches!(table, Table::NodeInfo | Table::Head)
}

impl Node {
    /// Returns whether a record on disk is one that the node keeps for itself, as a member of its domain.
    pub(in crate::node) fn is_own(&self, record: &Record) -> bool {
        let header = record.header();
        let is_near = header.domain == self.me.id.domain || header.domain == Domain::OPERATORS;
        match header.table {
            Table::SuperNode => {
                SuperNodeBody::read(record).is_ok_and(|body| body.segment.touches(self.me.id.domain))
            }
            Table::DomainKey => is_near && header.key == self.me.id.record_key(),
            Table::Node
            | Table::NodeInfo
            | Table::OperatorNode
            | Table::EndDevice
            | Table::Revocation
            | Table::Head => is_near,
        }
    }

    /// Returns what this node knows as a member that a holder needs at once: who else holds what, who signs, who is revoked.
    pub(super) fn own_knowledge(&self) -> impl Iterator<Item = &Record> {
        let own = self.me.id.domain;
        let operators = self.trust.operator_records();
        let revocations = self.records.list(Table::Revocation, own, None);
        operators.chain(revocations).chain(self.servers.records())
    }

    /// Returns whether a change of the disk is one: what a super-node holds and what the node keeps for itself lie in one store,
    /// where one record stands for each key, the newest.
    pub(in crate::node) fn changes_disk(&self, change: &Change) -> bool {
        let held = |table: Table, domain: Domain, key: RecordKey| {
            let own = match table {
                Table::SuperNode => self.servers.record(&NodeId { domain, hash: key.0 }),
                Table::Node
                | Table::NodeInfo
                | Table::OperatorNode
                | Table::EndDevice
                | Table::DomainKey
                | Table::Revocation
                | Table::Head => self.records.get(table, domain, key),
            };
            let part = self.hold.part.as_ref();
            own.into_iter().chain(part.and_then(|part| part.records.get(table, domain, key)))
        };
        match change {
            Change::Put(record) => {
                let (table, domain, key) = record.header().id();
                !held(table, domain, key).any(|held| held.supersedes(record))
            }
            Change::Delete { table, domain, key } => held(*table, *domain, *key).next().is_none(),
        }
    }

    /// Forgets on disk what is no longer held.
    pub(super) fn forget_on_disk(&mut self, gone: &[Record]) {
        let gone = gone.iter().filter(|record| is_durable(record.header().table));
        self.hold.changes.extend(gone.map(|record| {
            let (table, domain, key) = record.header().id();
            Change::Delete { table, domain, key }
        }));
    }

    /// Takes a verified record into the part of the table that is held.
    pub(super) fn keep_held(&mut self, record: Record, now: Now) -> Inserted {
        self.forget_from_future(&record, now);
        let time = self.hold_time(now);
        let Some(part) = &mut self.hold.part else { return Inserted::Full };
        let offered = part.records.offer(record.clone(), time);
        self.forget_on_disk(&offered.evicted);
        self.note_lacking(&offered.evicted, now);
        if offered.outcome == Inserted::Full {
            self.note_lacking(std::slice::from_ref(&record), now);
        }
        if offered.outcome == Inserted::New {
            self.trust.learn(&record);
            if is_durable(record.header().table) {
                self.hold.changes.push(Change::Put(record.clone()));
            }
            self.held_changed(&record, now);
        }
        offered.outcome
    }

    /// Forgets an announcement that was taken while the clocks were ahead, once its node makes another one: it would not give way to
    /// that, and nobody would take it from here (Rule 2.7).
    fn forget_from_future(&mut self, record: &Record, now: Now) {
        let (table, domain, key) = record.header().id();
        let (time, part) = (self.endpoint.judging_time(now), self.hold.part.as_mut());
        let (Some(time), Some(part), Table::NodeInfo) = (time, part, table) else { return };
        let latest = time.after(MAX_VERSION_AHEAD).as_millis();
        if part.records.get(table, domain, key).is_some_and(|held| held.header().version > latest) {
            part.records.remove(table, domain, key);
        }
    }

    /// Draws the consequences of a record that is new.
    fn held_changed(&mut self, record: &Record, now: Now) {
        let header = record.header();
        match header.table {
            Table::Node if header.removed => self.part_with(&subject(header), now),
            Table::Revocation => match RevocationBody::read(record).map(|body| body.kind) {
                Ok(RevocationKind::Node(node)) if node.domain == header.domain => self.part_with(&node, now),
                Ok(RevocationKind::Domain(domain)) if domain == header.domain => {
                    self.part_with_all(domain, now)
                }
                Ok(RevocationKind::Node(_) | RevocationKind::Domain(_)) | Err(_) => {}
            },
            Table::SuperNode if self.is_assignment(record) => self.assigned(record, now),
            Table::Node
            | Table::NodeInfo
            | Table::SuperNode
            | Table::OperatorNode
            | Table::EndDevice
            | Table::DomainKey
            | Table::Head => {}
        }
    }

    /// Forgets everything about a node that is no member any more: its contexts, where it is, what it announced (Rule 6.57).
    fn part_with(&mut self, node: &NodeId, now: Now) {
        self.endpoint.forget_peer(node);
        let Some(part) = &mut self.hold.part else { return };
        part.contacts.remove(node);
        part.records.remove(Table::NodeInfo, node.domain, node.record_key());
        self.review_legs(now);
    }

    /// Forgets where the members of a revoked domain are. Those attached stay until they were told of it (Rule 6.60).
    fn part_with_all(&mut self, domain: Domain, now: Now) {
        let Some(part) = &mut self.hold.part else { return };
        let announced =
            part.records.list(Table::NodeInfo, domain, None).map(|record| subject(record.header()));
        for node in announced.collect::<Vec<_>>() {
            part.records.remove(Table::NodeInfo, domain, node.record_key());
        }
        self.review_legs(now);
    }

    /// Takes a record that another holder or an operator has handed over; `None` if it cannot be taken.
    pub(super) fn take_handed(&mut self, bytes: &Bytes, now: Now) -> Option<Inserted> {
        match self.verify_handed(bytes, now) {
            Ok(record) => Some(self.keep_held(record, now)),
            Err(reason) => {
                self.endpoint.discard(reason);
                None
            }
        }
    }

    fn verify_handed(&self, bytes: &Bytes, now: Now) -> Result<Record, Discard> {
        let header = *UnverifiedRecord::parse(bytes).map_err(|_| Discard::BadRecord)?.header();
        if header.table == Table::NodeInfo {
            let owner = self.held_member(&subject(&header)).ok_or(Discard::UnknownSender)?;
            self.verify_own_info(bytes, &owner, now)
        } else {
            self.verify_signed(bytes, now)
        }
    }

    /// Verifies what an operator or the root has signed, and that it belongs here.
    pub(super) fn verify_signed(&self, bytes: &Bytes, now: Now) -> Result<Record, Discard> {
        let time = self.endpoint.judging_time(now);
        let record =
            self.trust.verify(bytes, time, self.endpoint.crypto()).map_err(|_| Discard::BadRecord)?;
        let part = self.hold.part.as_ref().ok_or(Discard::OutOfRange)?;
        if part.belongs(&record) { Ok(record) } else { Err(Discard::OutOfRange) }
    }

    /// Verifies what a node has announced about itself, and that it belongs here.
    pub(super) fn verify_own_info(&self, bytes: &Bytes, owner: &Member, now: Now) -> Result<Record, Discard> {
        let (time, crypto) = (self.endpoint.judging_time(now), self.endpoint.crypto());
        if self.trust.is_revoked(&owner.id) {
            return Err(Discard::Revoked);
        }
        let verified = self.trust.verify_node_info(bytes, owner, time, crypto);
        let record = verified.map_err(|_| Discard::BadRecord)?;
        if !record.header().removed && NodeInfoPublic::read(&record).is_err() {
            return Err(Discard::BadRecord);
        }
        let part = self.hold.part.as_ref().ok_or(Discard::OutOfRange)?;
        if part.belongs(&record) { Ok(record) } else { Err(Discard::OutOfRange) }
    }

    /// Returns who a node is, as the records here say, or as it has introduced itself.
    fn held_member(&self, node: &NodeId) -> Option<Member> {
        let part = self.hold.part.as_ref()?;
        if node.domain == Domain::OPERATORS {
            return self.trust.operator(node);
        }
        let record = part.records.get(Table::Node, node.domain, node.record_key());
        record.map_or_else(|| self.endpoint.peer(node).copied(), Trust::member)
    }

    /// Takes the own announcement: whoever holds a place does so for itself too. Returns whether it is held now.
    pub(in crate::node) fn hold_own_info(&mut self, record: &Record, now: Now) -> bool {
        let is_mine = self.hold.part.as_ref().is_some_and(|part| part.belongs(record));
        is_mine && matches!(self.keep_held(record.clone(), now), Inserted::New | Inserted::Same)
    }
}
