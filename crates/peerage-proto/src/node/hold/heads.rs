//! Heads passed on, to those who ask and to attached nodes (Rules 6.10, 6.56 and 6.57).
//!
//! A holder keeps the newest Head of each domain that anybody has asked about lately. While nodes of the domain are attached here it
//! fetches the next before that is too old to be of use; for others it does so when somebody asks. When no operator answers it hands out the last one, however old: whoever asks judges that itself (Rule 6.59).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::id::{Domain, NodeId, Segment};
use peerage_wire::limits::MAX_HEADS;
use peerage_wire::message::{Reply, Request};
use peerage_wire::record::{HeadBody, Record, RecordError, Table};
use peerage_wire::time::{Instant, Now};

use super::{Errand, Server};
use crate::discard::Discard;
use crate::endpoint::ReplyTo;
use crate::node::Node;
use crate::sizes::TableSize;

/// How old a Head becomes before it is fetched anew while somebody is attached. With the 5 s that an operator's own may be old, and
/// the 25 s (each ± 20 %) between two renewals of an attachment, it stays below the minute that a tunnel needs. Shorter is most of what operators
/// have to do in a large network: it was 15 s, for everybody who had asked lately.
const REFRESH_AFTER: Duration = Duration::from_secs(20);

/// How much sooner than it has to be a Head is fetched together with another. Those that are kept fresh are soon fetched together
/// always, and no sooner than alone. Longer makes the first of these come much too soon; shorter takes longer to bring them together.
const FETCH_AHEAD: Duration = Duration::from_secs(8);

/// How soon it is asked for again after nobody had one. Shorter helps only who asks while operators come back.
const RETRY_AFTER: Duration = Duration::from_secs(15);

/// How long it is fetched for somebody who has attached: a little longer than an attachment lives.
const ACTIVE_TIME: Duration = Duration::from_secs(90);

/// How long ago a Head may have come to be answered at once, rather than after fetching one. With the 5 s that it may have been old
/// then, and the 20 s after which a member asks again, it stays below the minute that a tunnel needs.
const FRESH_TIME: Duration = Duration::from_secs(30);

/// How long somebody is kept waiting for a Head that is being fetched; a round trip to the operator and some patience. The asker
/// turns to others soon after.
const WAIT_TIME: Duration = Duration::from_millis(800);

/// Most domains whose Heads are kept, some 600 bytes each. Beyond that the one that was asked for the longest ago goes.
const MAX_HELD: usize = 4_096;

/// Most requests of one domain that wait for a Head; others are asked again by whoever sent them.
const MAX_WAITING: usize = 64;

/// Somebody who waits for a Head.
#[derive(Clone, Debug)]
struct Waiter {
    reply_to: ReplyTo,
    /// Whence, if it has attached.
    attached: Option<SocketAddr>,
}

#[derive(Clone, Debug, Default)]
struct Held {
    head: Option<(Record, HeadBody)>,
    arrived_at: Option<Instant>,
    /// When somebody asked last.
    wanted_at: Instant,
    /// When somebody attached last.
    attached_at: Option<Instant>,
    /// Somebody has asked for a fresher one than there is.
    is_wanted: bool,
    /// When an operator or another holder was asked last.
    tried_at: Option<Instant>,
    /// When it is fetched next, unless it is being fetched.
    due_at: Instant,
    is_fetching: bool,
    waiting: Vec<Waiter>,
    /// Until when they wait.
    wait_until: Option<Instant>,
}

impl Held {
    fn fetched(&mut self, due_at: Instant) {
        self.is_fetching = false;
        self.due_at = due_at;
    }

    fn next_at(&self) -> Option<Instant> {
        let fetch = self.is_due_by(self.due_at).then_some(self.due_at);
        [fetch, self.wait_until].into_iter().flatten().min()
    }

    /// Returns whether it is fetched before anybody asks.
    fn is_kept_at(&self, at: Instant) -> bool {
        self.attached_at.is_some_and(|attached_at| at - attached_at < ACTIVE_TIME)
    }

    /// Returns whether it is to be fetched by then: not if it is already, or nobody needs it.
    fn is_due_by(&self, at: Instant) -> bool {
        !self.is_fetching && self.due_at <= at && (self.is_wanted || self.is_kept_at(self.due_at))
    }

    /// Notes that somebody attaches, who needs a fresh one from now on.
    fn keep(&mut self, now: Instant) {
        if !self.is_kept_at(now) {
            self.due_at = now;
        }
        self.attached_at = Some(now);
    }

    /// Notes that it is too old for somebody who asks. Returns whether it is worth his while to wait.
    fn want(&mut self, now: Instant) -> bool {
        self.is_wanted = true;
        let soonest = self.tried_at.map_or(now, |at| at.after(RETRY_AFTER));
        self.due_at = self.due_at.min(soonest);
        self.is_fetching || self.due_at <= now
    }
}

/// The Heads of the domains that somebody asks about.
#[derive(Clone, Debug, Default)]
pub(super) struct Heads {
    all: BTreeMap<Domain, Held>,
    /// By when something is due, so that finding that costs nothing.
    timers: BTreeSet<(Instant, Domain)>,
}

impl Heads {
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Returns the domains whose Heads are to be fetched now, and those that go along as there is room, which are due soon.
    fn due(&self, now: Instant) -> Vec<Domain> {
        let soon = now.after(FETCH_AHEAD);
        let is_due = |domain: &Domain, at| self.all.get(domain).is_some_and(|held| held.is_due_by(at));
        let timers = self.timers.iter().take_while(|(at, _)| *at <= soon).map(|(_, domain)| *domain);
        let mut domains: Vec<_> = timers.clone().filter(|domain| is_due(domain, now)).collect();
        let room = domains.len().next_multiple_of(MAX_HEADS) - domains.len();
        let others = timers.filter(|domain| !is_due(domain, now) && is_due(domain, soon));
        domains.extend(others.take(room));
        domains
    }

    /// Changes what is remembered of a domain, and its timer with it.
    fn with<T>(&mut self, domain: Domain, change: impl FnOnce(&mut Held) -> T) -> T {
        self.make_room(domain);
        let held = self.all.entry(domain).or_default();
        if let Some(at) = held.next_at() {
            self.timers.remove(&(at, domain));
        }
        let result = change(held);
        if let Some(at) = held.next_at() {
            self.timers.insert((at, domain));
        }
        result
    }

    fn make_room(&mut self, domain: Domain) {
        if self.all.len() < MAX_HELD || self.all.contains_key(&domain) {
            return;
        }
        let oldest = self.all.iter().min_by_key(|(_, held)| held.wanted_at).map(|(domain, _)| *domain);
        if let Some(domain) = oldest {
            self.forget(domain);
        }
    }

    fn forget(&mut self, domain: Domain) {
        let Some(held) = self.all.remove(&domain) else { return };
        if let Some(at) = held.next_at() {
            self.timers.remove(&(at, domain));
        }
    }

    pub(super) fn retain_domains(&mut self, keeps: impl Fn(Domain) -> bool) {
        let gone: Vec<_> = self.all.keys().copied().filter(|domain| !keeps(*domain)).collect();
        gone.into_iter().for_each(|domain| self.forget(domain));
    }

    /// Forgets domains of which no Head ever came and about which nobody asks any more.
    pub(super) fn forget_idle(&mut self, now: Instant) {
        let idle = |held: &Held| held.head.is_none() && now - held.wanted_at >= ACTIVE_TIME;
        let gone: Vec<_> =
            self.all.iter().filter(|(_, held)| idle(held)).map(|(domain, _)| *domain).collect();
        gone.into_iter().for_each(|domain| self.forget(domain));
    }

    pub(super) fn size(&self) -> TableSize {
        TableSize::new("held Heads", self.all.len(), MAX_HELD)
    }

    fn bytes(&self, domain: Domain) -> Option<Bytes> {
        let (record, _) = self.all.get(&domain)?.head.as_ref()?;
        Some(record.bytes().clone())
    }
}

impl Node {
    // ---- asked for --------------------------------------------------------------------------

    /// Answers another holder with what there is. It does not make the domain an active one: two holders would keep each
    /// other busy with it for ever.
    pub(super) fn answer_fellow(&mut self, domain: Domain, reply_to: ReplyTo) {
        let head = self.hold.part.as_ref().and_then(|part| part.heads.bytes(domain));
        self.hand_out(&[Waiter { reply_to, attached: None }], head.as_ref());
    }

    /// Answers a member with the Head of its domain, at once if it is fresh, otherwise as soon as there is one.
    pub(super) fn answer_head(
        &mut self,
        domain: Domain,
        attached: Option<SocketAddr>,
        reply_to: ReplyTo,
        now: Now,
    ) {
        let is_hopeless = self.hold.operators_silent;
        let Some(part) = &mut self.hold.part else { return };
        let waiter = Waiter { reply_to, attached };
        let answer_now = part.heads.with(domain, |held| {
            held.wanted_at = now.mono;
            if attached.is_some() {
                held.keep(now.mono);
            }
            let is_fresh = held.arrived_at.is_some_and(|at| now.mono - at < FRESH_TIME);
            let may_wait = !is_fresh && held.want(now.mono);
            if !may_wait || is_hopeless || held.waiting.len() >= MAX_WAITING {
                return Some(waiter);
            }
            held.waiting.push(waiter);
            held.wait_until.get_or_insert(now.mono.after(WAIT_TIME));
            None
        });
        if let Some(waiter) = answer_now {
            let head = part.heads.bytes(domain);
            self.hand_out(&[waiter], head.as_ref());
        }
        self.fetch_due_heads(now);
    }

    fn hand_out(&mut self, waiting: &[Waiter], head: Option<&Bytes>) {
        for waiter in waiting {
            let head = head.cloned();
            let reply = match waiter.attached {
                Some(observed) => Reply::Attached { observed, head },
                None => Reply::Head(head),
            };
            self.hold.served = self.hold.served.saturating_add(1);
            self.endpoint.reply(&waiter.reply_to, &reply);
        }
    }

    /// Hands out what there is to all who wait.
    fn end_waiting(&mut self, domain: Domain) {
        let Some(part) = &mut self.hold.part else { return };
        let waiting = part.heads.with(domain, |held| {
            held.wait_until = None;
            std::mem::take(&mut held.waiting)
        });
        let head = part.heads.bytes(domain);
        self.hand_out(&waiting, head.as_ref());
    }

    /// Takes an attached node in. Returns false if there is no room.
    pub(super) fn take_contact(&mut self, node: NodeId, remote: SocketAddr, now: Now) -> bool {
        let Some(part) = &mut self.hold.part else { return false };
        if !part.contacts.insert(node, remote, now.mono) {
            return false;
        }
        // So that a notice needs no introduction first.
        self.endpoint.warm_up(node, remote, now);
        true
    }

    /// An attached node is not reached any more: its connection has ended.
    pub(in crate::node) fn forget_contact(&mut self, node: &NodeId) {
        if let Some(part) = &mut self.hold.part {
            part.contacts.remove(node);
        }
    }

    // ---- fetched ----------------------------------------------------------------------------

    pub(super) fn heads_timeout(&mut self, now: Now) {
        let Some(part) = &self.hold.part else { return };
        let late = part.heads.timers.iter().take_while(|(at, _)| *at <= now.mono).map(|(_, domain)| *domain);
        for domain in late.collect::<Vec<_>>() {
            let waited = |held: &Held| held.wait_until.is_some_and(|at| at <= now.mono);
            let part = self.hold.part.as_ref();
            if part.is_some_and(|part| part.heads.all.get(&domain).is_some_and(waited)) {
                self.end_waiting(domain);
            }
        }
        self.fetch_due_heads(now);
    }

    fn fetch_due_heads(&mut self, now: Now) {
        let Some(part) = &self.hold.part else { return };
        for domains in part.heads.due(now.mono).chunks(MAX_HEADS) {
            let server = self.next_operator(&BTreeSet::new(), now);
            self.fetch_heads(domains, server, now);
        }
    }

    /// Asks for the Heads of so many domains as one answer brings: of operators several, of a fellow one.
    fn fetch_heads(&mut self, domains: &[Domain], server: Option<Server>, now: Now) {
        let again = now.mono.after(self.jittered(REFRESH_AFTER));
        let Some(part) = &mut self.hold.part else { return };
        let is_known = |domain: &Domain| part.heads.all.contains_key(domain);
        let mut domains: Vec<_> = domains.iter().copied().filter(is_known).collect();
        domains.retain(|domain| {
            part.heads.with(*domain, |held| {
                let is_needed = held.is_wanted || held.is_kept_at(now.mono);
                held.is_fetching = is_needed && server.is_some();
                held.is_wanted &= held.is_fetching;
                held.tried_at = Some(now.mono);
                held.due_at = again;
                held.is_fetching
            })
        });
        let request = match *domains {
            [] => return,
            [domain] => Request::GetHead { domain: Some(domain) },
            _ => Request::GetHeads(domains.clone()),
        };
        if let Some(server) = server {
            self.send_on(server, &request, Errand::Heads(domains), now);
        }
    }

    pub(super) fn heads_fetched(&mut self, domains: &[Domain], from: NodeId, reply: Reply, now: Now) {
        let heads = if let Reply::Heads(heads) = reply {
            heads
        } else if let Reply::Head(head) = reply {
            head.into_iter().collect()
        } else {
            Vec::new()
        };
        let mut missing = domains.to_vec();
        for head in heads {
            if let Ok(domain) = self.take_held_head(domains, &head, now) {
                missing.retain(|other| *other != domain);
            }
        }
        // What came together is fetched together again.
        let again = now.mono.after(self.jittered(REFRESH_AFTER));
        let Some(part) = &mut self.hold.part else { return };
        for domain in domains {
            part.heads.with(*domain, |held| held.fetched(again));
        }
        for domain in missing {
            self.head_missing(domain, (from, domains.len()), now);
        }
    }

    /// Whoever was asked for so many Heads has answered, but not with that of this domain.
    fn head_missing(&mut self, domain: Domain, (from, asked): (NodeId, usize), now: Now) {
        let again = now.mono.after(self.jittered(REFRESH_AFTER));
        let is_operator = self.trust.is_operator(&from);
        match self.server(from).filter(|_| is_operator && asked > 1) {
            // One of a version that does not know such questions has answered the first.
            Some(server) => self.fetch_heads(&[domain], Some(server), now),
            None if is_operator => self.head_failed(domain, from, now),
            None => self.give_up_fetching(domain, again),
        }
    }

    /// Nobody has a Head of this domain at the moment.
    fn give_up_fetching(&mut self, domain: Domain, again: Instant) {
        let Some(part) = &mut self.hold.part else { return };
        part.heads.with(domain, |held| {
            held.is_wanted = false;
            held.fetched(again);
        });
        self.end_waiting(domain);
    }

    /// Whoever was asked is silent: another operator may not be.
    pub(super) fn heads_unanswered(&mut self, domains: &[Domain], to: NodeId, now: Now) {
        let operator = self.answering_operator(now).filter(|_| self.trust.is_operator(&to));
        match operator {
            Some(server) => self.fetch_heads(domains, Some(server), now),
            None => domains.iter().for_each(|domain| self.head_failed(*domain, to, now)),
        }
    }

    /// An operator has none, or is silent: another holder may have heard of one since.
    fn head_failed(&mut self, domain: Domain, to: NodeId, now: Now) {
        let again = now.mono.after(self.jittered(REFRESH_AFTER));
        let fellow = self.fellows(Segment::of_domain(domain), now).first().map(|(server, _)| *server);
        match fellow.filter(|_| self.trust.is_operator(&to)) {
            Some(server) => self.fetch_heads(&[domain], Some(server), now),
            None => self.give_up_fetching(domain, again),
        }
    }

    // ---- news -------------------------------------------------------------------------------

    /// Takes a Head of a domain that is held here, from whoever it comes; of one of those that are expected, if any are.
    pub(super) fn take_held_head(
        &mut self,
        expected: &[Domain],
        bytes: &Bytes,
        now: Now,
    ) -> Result<Domain, Discard> {
        let (record, body) = self.verify_held_head(bytes, now).ok_or(Discard::BadRecord)?;
        let domain = record.header().domain;
        let again = now.mono.after(self.jittered(REFRESH_AFTER));
        let part = self.hold.part.as_mut().ok_or(Discard::OutOfRange)?;
        if !part.touches(domain) || !(expected.is_empty() || expected.contains(&domain)) {
            return Err(Discard::OutOfRange);
        }
        let is_valid = self.endpoint.judging_time(now).is_none_or(|time| record.is_valid_at(time));
        let is_news = part.heads.with(domain, |held| {
            let known = held.head.as_ref();
            let is_newer = known.is_none_or(|(known, _)| known.header().version < record.header().version);
            let is_same = known.is_some_and(|(known, _)| known.bytes() == record.bytes());
            if is_valid && (is_newer || is_same) {
                held.arrived_at = Some(now.mono);
                held.is_wanted = false;
                held.due_at = again;
            }
            // Whoever has attached since the start was answered with the first one.
            let is_news = is_newer && known.is_some_and(|(_, known)| *known != body);
            if is_newer {
                held.head = Some((record, body));
            }
            is_news
        });
        if is_news {
            part.contacts.tell_all(domain);
        }
        if self.differs_from_held(domain, &body, now) {
            self.look_into(domain, now);
        }
        self.end_waiting(domain);
        Ok(domain)
    }

    /// Verifies a Head. One that has expired is better than none, where no operator answers.
    fn verify_held_head(&self, bytes: &Bytes, now: Now) -> Option<(Record, HeadBody)> {
        let (time, crypto) = (self.endpoint.judging_time(now), self.endpoint.crypto());
        let verified = match self.trust.verify(bytes, time, crypto) {
            Err(RecordError::Expired) => self.trust.verify(bytes, None, crypto),
            verified => verified,
        };
        let record = verified.ok().filter(|record| record.header().table == Table::Head)?;
        let body = HeadBody::read(&record).ok()?;
        Some((record, body))
    }

    /// Returns whether a Head states something else than what is held of its domain, as far as a holder has all of that.
    fn differs_from_held(&self, domain: Domain, body: &HeadBody, now: Now) -> bool {
        let Some(part) = &self.hold.part else { return false };
        let (records, time) = (&part.records, self.hold_time(now));
        let Some(signed) = part.signed else { return false };
        let whole = signed.covers(&Segment::of_domain(domain));
        records.summary(Table::OperatorNode, Domain::OPERATORS, time) != body.operators
            || records.summary(Table::Revocation, domain, time) != body.revocations
            || body.super_nodes.is_some_and(|stated| stated != records.super_node_summary(domain, time))
            || (whole && records.summary(Table::EndDevice, domain, time) != body.devices)
    }

    /// Tells attached nodes as fast as there is room.
    pub(super) fn pump_notices(&mut self, now: Now) {
        while let Some(part) = &mut self.hold.part {
            let Some(node) = part.contacts.next_to_tell() else { return };
            let (address, head) = (part.contacts.address(&node, now.mono), part.heads.bytes(node.domain));
            let Some((address, head)) = address.zip(head) else {
                part.contacts.telling -= 1;
                continue;
            };
            let request = Request::Notify { id: self.command_id(), head };
            self.send_on(Server { node, address }, &request, Errand::Notice, now);
        }
    }

    pub(super) fn notice_ended(&mut self) {
        if let Some(part) = &mut self.hold.part {
            part.contacts.telling = part.contacts.telling.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 6.56: the memory for Heads has a limit; the domain about which nobody has asked for the longest goes.
    #[test]
    fn heads_of_so_many_domains_are_kept() {
        let mut heads = Heads::default();
        for n in 0..=u32::try_from(MAX_HELD).unwrap() {
            let at = Instant::from_micros(u64::from(n));
            heads.with(Domain(n), |held| held.wanted_at = at);
            heads.with(Domain(n), |held| held.keep(at));
        }
        assert_eq!(heads.all.len(), MAX_HELD);
        assert!(!heads.all.contains_key(&Domain(0)));
        assert!(heads.timers.len() <= MAX_HELD);
        heads.retain_domains(|domain| domain.0 < 10);
        assert_eq!((heads.all.len(), heads.timers.len()), (9, 9));
    }
}
