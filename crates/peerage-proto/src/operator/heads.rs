//! Heads: made when asked for, and not more often than needed (Rule 6.20).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::id::{Domain, Segment};
use peerage_wire::message::{Page, Reply};
use peerage_wire::record::{Draft, HeadBody, Header, SuperNodeBody, Table};
use peerage_wire::time::{Instant, Now, UnixTime};

use super::Operator;
use super::io::DomainFacts;
use crate::discard::Discard;
use crate::endpoint::Endpoint;
use crate::responder::{self, Asked, View};
use crate::table::Records;
use crate::trust::Member;

/// How old a Head may be before a new one is made. Whoever passes it on may do so for that much less than the 60 s that it is good for,
/// and has to fetch it the more often; a shorter time costs a signature more, 30 µs, for some of those who fetch it.
const REMAKE_AFTER: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
struct Made {
    head: Bytes,
    at: Instant,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Heads {
    made: BTreeMap<Domain, Made>,
    /// The last version of any Head, so that versions rise even if the clock does not.
    version: u64,
}

impl Heads {
    /// Makes sure that the next Head has a higher version than this.
    pub(super) const fn rise_above(&mut self, version: u64) {
        if version > self.version {
            self.version = version;
        }
    }

    pub(super) fn forget(&mut self, domain: Domain) {
        self.made.remove(&domain);
    }

    pub(super) fn forget_all(&mut self) {
        self.made.clear();
    }

    /// Returns the Head of a domain, not older than [`REMAKE_AFTER`].
    pub(super) fn fresh(
        &mut self,
        facts: &DomainFacts,
        records: &Records,
        endpoint: &Endpoint,
        now: Now,
    ) -> Option<Bytes> {
        let made = self.made.get(&facts.domain).filter(|made| now.mono - made.at < REMAKE_AFTER);
        if let Some(made) = made {
            return Some(made.head.clone());
        }
        let head = self.make(facts, records, endpoint, now)?;
        self.made.insert(facts.domain, Made { head: head.clone(), at: now.mono });
        Some(head)
    }

    fn make(
        &mut self,
        facts: &DomainFacts,
        records: &Records,
        endpoint: &Endpoint,
        now: Now,
    ) -> Option<Bytes> {
        let time = endpoint.time(now);
        let domain = facts.domain;
        self.version = time.as_millis().max(self.version.saturating_add(1));
        let header = Header {
            table: Table::Head,
            domain,
            key: HeadBody::record_key(domain),
            version: self.version,
            expires: time.after(Table::Head.max_life()),
            signer: endpoint.id(),
            removed: false,
        };
        let body = HeadBody {
            operators: records.summary(Table::OperatorNode, Domain::OPERATORS, header.made_at()),
            revocations: records.summary(Table::Revocation, domain, header.made_at()),
            devices: records.summary(Table::EndDevice, domain, header.made_at()),
            epoch: facts.epoch,
            map_version: map_version(domain, records, header.made_at()),
            super_nodes: Some(records.super_node_summary(domain, header.made_at())),
            offline_hours: facts.offline_hours,
        };
        let draft = Draft { header, public: body.write(), private: None };
        let network = endpoint.network();
        let record = draft.sign(endpoint.identity(), &network, endpoint.crypto()).ok()?;
        Some(record.bytes().clone())
    }
}

/// Returns the version of the segment map as far as it concerns a domain: the highest that its super-nodes' records name.
fn map_version(domain: Domain, records: &Records, time: UnixTime) -> u64 {
    let held = records.super_nodes(Segment::of_domain(domain), time);
    let versions = held.filter_map(|(record, _)| Some(SuperNodeBody::read(record).ok()?.map_version));
    versions.max().unwrap_or(0)
}

impl Operator {
    /// Returns a domain's Head, made anew if it is too old (Rule 6.20).
    pub(super) fn head(&mut self, domain: Domain, now: Now) -> Option<Bytes> {
        let facts = self.facts.get(&domain)?;
        self.heads.fresh(facts, &self.records, &self.endpoint, now)
    }

    /// Answers with the Heads of those domains that the asker may have, as many as there is room for (Rule 4.11).
    pub(super) fn heads_for(
        &mut self,
        domains: &[Domain],
        (from, remote, room): (&Member, SocketAddr, usize),
        now: Now,
    ) -> Result<Reply, Discard> {
        let asked = Asked { from, remote, room, time: self.endpoint.time(now) };
        let view = View::everywhere(&self.records);
        let may = |domain: &Domain| responder::may_have_head(*domain, asked, view).is_ok();
        let permitted: Vec<_> = domains.iter().copied().filter(may).collect();
        if permitted.is_empty() {
            return Err(Discard::Forbidden);
        }
        let heads: Vec<_> = permitted.into_iter().filter_map(|domain| self.head(domain, now)).collect();
        Ok(Reply::heads(Page::fill(heads, room).records))
    }
}
