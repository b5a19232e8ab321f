//! What spies ask, and how an answer compares with what the ledger knows (Rules 6.79 and 6.61).

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::crypto::Crypto;
use peerage_wire::id::{Domain, NodeId, RecordKey, Segment};
use peerage_wire::message::{Page, Reply, Request};
use peerage_wire::record::{Record, Table, UnverifiedRecord, subject};
use peerage_wire::time::UnixTime;

use super::dossier::Fault;
use crate::table::Records;
use crate::trust::Trust;

/// How old a Head may be that is handed out. Members decide nothing on one older than 60 s; an honest super-node fetches one every 15
/// s, from an operator whose own is at most 20 s old, so that twice the limit leaves room for three attempts that fail.
const MAX_HEAD_AGE: Duration = Duration::from_secs(120);

/// How long ago something must have been signed that a Head states: whoever sees a Head that differs compares at once, and again at
/// most every 10 minutes.
const STATED_SETTLES_AFTER: Duration = Duration::from_secs(900);

/// The same for what no Head states. Holders compare with each other every 10 minutes, and every third time with an operator, so that
/// a record whose Store was lost arrives within 36 minutes, if nothing else is lost.
const OTHERS_SETTLE_AFTER: Duration = Duration::from_secs(3_600);

/// Something that a spy asks, as members do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Ping,
    Head,
    Node(NodeId),
    DomainKey,
    Devices(Segment),
    Revocations,
    SuperNodes,
}

impl Question {
    /// Returns the name of its command.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Ping => "Ping",
            Self::Head => "GetHead",
            Self::Node(_) => "GetNode",
            Self::DomainKey => "GetDomainKey",
            Self::Devices(_) => "GetDevices",
            Self::Revocations => "GetRevocations",
            Self::SuperNodes => "GetSuperNodes",
        }
    }

    pub(super) fn request(&self, after: Option<RecordKey>) -> Request {
        match *self {
            Self::Ping => Request::Ping,
            Self::Head => Request::GetHead { domain: None },
            Self::Node(node) => Request::GetNode(node),
            Self::DomainKey => Request::GetDomainKey,
            Self::Devices(range) => Request::GetDevices { after, range },
            Self::Revocations => Request::GetRevocations { after },
            Self::SuperNodes => Request::GetSuperNodes { key: None, after },
        }
    }

    const fn table(&self) -> Option<Table> {
        match self {
            Self::Ping => None,
            Self::Head => Some(Table::Head),
            Self::Node(_) => Some(Table::Node),
            Self::DomainKey => Some(Table::DomainKey),
            Self::Devices(_) => Some(Table::EndDevice),
            Self::Revocations => Some(Table::Revocation),
            Self::SuperNodes => Some(Table::SuperNode),
        }
    }
}

/// Returns the records in an answer, and whether more follow.
pub(super) fn content(reply: Reply) -> Page {
    match reply {
        Reply::SuperNodes(page) | Reply::Devices(page) | Reply::Revocations(page) => page,
        Reply::Node(record) | Reply::Head(record) | Reply::DomainKey(record) => {
            Page { records: record.into_iter().collect(), more: false }
        }
        // Nothing else answers what is asked here.
        Reply::OperatorNodes(_)
        | Reply::Heads(_)
        | Reply::SuperNodeSubmitted { .. }
        | Reply::Partition(_)
        | Reply::NodeInfo(_)
        | Reply::TunnelNodes(_)
        | Reply::TunnelOpened { .. }
        | Reply::Reping { .. }
        | Reply::ForwardedTunnelOpened { .. }
        | Reply::Forwarded { .. }
        | Reply::RelayJoined { .. }
        | Reply::Stored { .. }
        | Reply::Reconciled(_)
        | Reply::DeviceNoted(_)
        | Reply::RefusalsNoted(_)
        | Reply::Left(_)
        | Reply::Attached { .. }
        | Reply::Notified(_)
        | Reply::StaleTime(_) => Page::default(),
    }
}

/// Returns after which key the next page begins.
pub(super) fn last_key(page: &Page) -> Option<RecordKey> {
    let last = page.records.last()?;
    Some(UnverifiedRecord::parse(last).ok()?.header().key)
}

/// What answers are compared with.
pub(super) struct Truth<'a> {
    pub(super) records: &'a Records,
    pub(super) trust: &'a Trust,
    pub(super) crypto: &'a dyn Crypto,
    /// Who asks.
    pub(super) spy: NodeId,
    /// When the question was asked first.
    pub(super) asked_at: UnixTime,
    /// For how long the super-node had been there with the same range, without a pause.
    pub(super) steady: Duration,
}

impl Truth<'_> {
    /// Returns what is wrong with an answer. `is_whole`: whether all pages of it are there.
    pub(super) fn fault(
        &self,
        question: &Question,
        answer: &[Bytes],
        is_whole: bool,
    ) -> Option<(Fault, String)> {
        let table = question.table()?;
        let mut given = BTreeMap::new();
        for bytes in answer {
            match self.verified(table, bytes) {
                Ok(Some(record)) => {
                    given.insert((record.header().domain, record.header().key), record);
                }
                Ok(None) => {}
                Err(about) => return Some((Fault::Forged, format!("{}: {about}", question.name()))),
            }
        }
        if *question == Question::Head {
            return self.head_fault(given.values().next());
        }
        let stale = given.values().find_map(|record| self.newer(record));
        let stale = stale.map(|about| (Fault::Stale, format!("{}: {about}", question.name())));
        stale.or_else(|| {
            let up_to = given.keys().map(|(_, key)| *key).max();
            let reaches = |record: &Record| is_whole || up_to.is_some_and(|key| record.header().key <= key);
            let missing = self.expected(question).into_iter().find(|record| {
                let header = record.header();
                reaches(record) && !given.contains_key(&(header.domain, header.key))
            })?;
            let about = format!("{}: nothing about {}", question.name(), self.describe(missing));
            Some((Fault::Withheld, about))
        })
    }

    /// Reads one record of an answer. `None`: it cannot be judged here.
    fn verified(&self, table: Table, bytes: &Bytes) -> Result<Option<Record>, String> {
        // Whether it has expired is not asked: two clocks that are both right differ a little.
        match self.trust.verify(bytes, None, self.crypto) {
            Ok(record) => {
                let header = record.header();
                let is_apt =
                    header.table == table && (header.domain == self.spy.domain || table == Table::SuperNode);
                if is_apt { Ok(Some(record)) } else { Err("a record that was not asked for".to_owned()) }
            }
            Err(error) => {
                let signer = UnverifiedRecord::parse(bytes).map(|record| record.header().signer);
                // Records of an operator that has gone may still be held by who has not heard of that.
                let has_gone = |signer: &NodeId| {
                    let all = self.trust.operator_records();
                    let is_known = all.map(|record| subject(record.header())).any(|id| id == *signer);
                    is_known && !self.trust.is_operator(signer)
                };
                if signer.is_ok_and(|signer| has_gone(&signer)) {
                    Ok(None)
                } else {
                    Err(format!("a record that is false: {error}"))
                }
            }
        }
    }

    fn head_fault(&self, head: Option<&Record>) -> Option<(Fault, String)> {
        let Some(head) = head else { return Some((Fault::OldHead, "GetHead: none".to_owned())) };
        let age = self.asked_at.since(head.header().made_at());
        (age > MAX_HEAD_AGE).then(|| (Fault::OldHead, format!("GetHead: one of {} s ago", age.as_secs())))
    }

    /// Says what is newer than a record, if that has been known for long.
    fn newer(&self, record: &Record) -> Option<String> {
        let header = record.header();
        let held = self.records.get(header.table, header.domain, header.key)?;
        let is_newer = held.header().version > header.version && self.is_settled(held);
        is_newer.then(|| format!("version {} instead of {}", header.version, self.describe(held)))
    }

    fn describe(&self, record: &Record) -> String {
        let header = record.header();
        let age = self.asked_at.since(header.made_at()).as_secs() / 60;
        format!("{:?} {} of version {}, {age} minutes old", header.table, header.key, header.version)
    }

    fn is_settled(&self, record: &Record) -> bool {
        let settles_after = match record.header().table {
            Table::EndDevice | Table::Revocation => STATED_SETTLES_AFTER,
            Table::Node
            | Table::NodeInfo
            | Table::SuperNode
            | Table::OperatorNode
            | Table::DomainKey
            | Table::Head => OTHERS_SETTLE_AFTER,
        };
        self.steady >= settles_after && record.header().made_at().after(settles_after) <= self.asked_at
    }

    /// Returns what an honest answer has in it.
    fn expected(&self, question: &Question) -> Vec<&Record> {
        let (domain, own) = (self.spy.domain, self.spy.record_key());
        let one = |table, domain: Domain, key| self.records.get(table, domain, key).into_iter().collect();
        let all: Vec<&Record> = match question {
            Question::Ping | Question::Head => Vec::new(),
            Question::Node(node) => one(Table::Node, node.domain, node.record_key()),
            Question::DomainKey => one(Table::DomainKey, domain, own),
            Question::Devices(range) => {
                self.records.list_within(Table::EndDevice, domain, *range, None).collect()
            }
            Question::Revocations => self.records.list(Table::Revocation, domain, None).collect(),
            Question::SuperNodes => {
                let all = self.records.super_nodes(Segment::of_domain(domain), self.asked_at);
                all.map(|(record, _)| record).collect()
            }
        };
        // What is about to end may have ended where the answer comes from.
        let lasts = |record: &Record| record.is_valid_at(self.asked_at.after(MAX_HEAD_AGE));
        let is_due = |record: &&Record| !record.header().removed && lasts(record) && self.is_settled(record);
        all.into_iter().filter(is_due).collect()
    }
}
