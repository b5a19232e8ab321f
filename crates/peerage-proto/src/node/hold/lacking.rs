//! Domains of which a holder has not everything that operators signed, because its memory does not suffice (Rule 6.55). It is
//! silent about their sets, for half a set looks like the truth, and does not fetch again and again what it throws away.

use std::collections::BTreeMap;
use std::time::Duration;

use peerage_wire::id::Domain;
use peerage_wire::message::Request;
use peerage_wire::record::{Record, Table};
use peerage_wire::time::{Instant, Now};

use crate::node::Node;
use crate::sizes::TableSize;

/// How soon a domain without room is looked into again; twice as late each time, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// The same at the most, as often as holders compare in any case.
const MAX_PAUSE: Duration = Duration::from_secs(600);

/// Most domains that are remembered. Beyond that every domain counts as lacking, which is safe.
const MAX_LACKING: usize = 4_096;

#[derive(Clone, Copy, Debug)]
struct Lack {
    /// How many sessions had begun when something was lacking last.
    noted: u32,
    pause: Duration,
    again_at: Instant,
}

/// What is lacking.
#[derive(Clone, Debug, Default)]
pub(super) struct Lacking {
    all: BTreeMap<Domain, Lack>,
}

impl Lacking {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn size(&self) -> TableSize {
        TableSize::new("domains without room", self.all.len(), MAX_LACKING)
    }

    fn note(&mut self, domain: Domain, begun: u32, now: Instant) {
        if self.all.len() >= MAX_LACKING && !self.all.contains_key(&domain) {
            return;
        }
        let new = Lack { noted: begun, pause: FIRST_PAUSE, again_at: now };
        self.all.entry(domain).or_insert(new).noted = begun;
    }

    fn contains(&self, domain: Domain) -> bool {
        self.all.len() >= MAX_LACKING || self.all.contains_key(&domain)
    }

    /// Returns whether it is too soon to look into a domain again.
    pub(super) fn rests(&self, domain: Domain, now: Instant) -> bool {
        self.all.get(&domain).is_some_and(|lack| now < lack.again_at)
    }

    /// Lets a domain rest for longer than the last time.
    pub(super) fn put_off(&mut self, domain: Domain, now: Instant) {
        if let Some(lack) = self.all.get_mut(&domain) {
            lack.pause = (lack.pause * 2).min(MAX_PAUSE);
            lack.again_at = now.after(lack.pause);
        }
    }

    /// Forgets what a session has settled: what was lacking before it began, and was not lacking again since.
    pub(super) fn settled(&mut self, only: Option<Domain>, session: u32) {
        self.all.retain(|domain, lack| only.is_some_and(|only| only != *domain) || lack.noted > session);
    }
}

impl Node {
    /// Takes note of records that operators signed and for which there is no room, unless they have expired anyway.
    pub(super) fn note_lacking(&mut self, records: &[Record], now: Now) {
        let (time, begun) = (self.hold_time(now), self.hold.next_session);
        let Some(part) = &mut self.hold.part else { return };
        for record in records {
            let is_signed = !matches!(record.header().table, Table::NodeInfo | Table::Head);
            if is_signed && record.is_valid_at(time) {
                part.lacking.note(record.header().domain, begun, now.mono);
            }
        }
    }

    /// Returns whether a request is about what operators signed for a domain of which something is lacking here.
    pub(super) fn is_about_lacking(&self, request: &Request, domain: Domain) -> bool {
        let is_about_set = matches!(
            request,
            Request::GetDevices { .. }
                | Request::GetRevocations { .. }
                | Request::GetNode(_)
                | Request::GetDomainKey
        );
        is_about_set && self.hold.part.as_ref().is_some_and(|part| part.lacking.contains(domain))
    }
}
