//! Staying reachable: standing contacts with those who hold the places under which this node is looked for (Rule 6.10).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::id::{KeyHint, NodeId, PlacementKey, Segment};
use peerage_wire::limits::MAX_HEAD_AGE;
use peerage_wire::message::{Reply, Request};
use peerage_wire::time::{Instant, Now};

use super::lookup::Server;
use super::places::tags;
use super::sync::HeadNews;
use super::{Node, Purpose, RequestId};
use crate::trust::Member;

/// How often a standing contact is renewed. RFC 4787 wants mappings of UDP to live for two minutes; many routers keep
/// them for thirty seconds.
const ATTACH_INTERVAL: Duration = Duration::from_secs(25);

/// The same on a connection: what is on the way keeps those for minutes, and its end is noticed. Longer makes a server that has lost
/// what it knew unaware for longer; it must be shorter than contacts live (Rule 6.10).
const STREAM_ATTACH_INTERVAL: Duration = Duration::from_secs(50);

/// How soon a renewal that was not answered is tried again. Longer leaves a node unreachable for longer after both of its
/// servers died; shorter gives up on one that restarts.
const MISSED_INTERVAL: Duration = Duration::from_secs(5);

/// How many servers one node is attached to: one may die.
const MAX_ATTACHMENTS: usize = 2;

/// Unanswered renewals after which an attachment counts as lost.
const MAX_MISSES: u32 = 3;

/// When an attachment is renewed once more that tunnels depended on a moment ago: at once, then after this time, and twice as long each
/// time. Longer adds to the pause that people notice; shorter sends more to a server that is busy restarting.
const DOUBT_PAUSE: Duration = Duration::from_millis(100);

/// See [`DOUBT_PAUSE`]: at the most, in the first seconds of an outage.
const MAX_DOUBT_PAUSE: Duration = Duration::from_secs(1);

/// See [`DOUBT_PAUSE`]: later the pause is this part of the outage, as for those at the other end of the tunnels (Rule 7.26).
const DOUBT_PART: u32 = 16;

/// See [`DOUBT_PART`]: at the most.
const MAX_LATE_PAUSE: Duration = Duration::from_secs(15);

/// So many such renewals are waited for before another server is chosen, if there is any: one and a half seconds. More keeps tunnels
/// waiting for a server that is dead, fewer leaves one that is far away.
const MAX_DOUBTS: u32 = 4;

/// Renewals in a row that bring no fresh Head, while others have one, after which somebody else is chosen.
const MAX_STALE: u32 = 2;

/// How long after an attachment was lost the next is tried, jittered: the others that lost it do so too. Doubled each time
/// until all answer to whom this node is attached.
const LOST_PAUSE: Duration = Duration::from_secs(10);

/// See [`LOST_PAUSE`]. Longer keeps a node unreachable for longer after an outage; shorter costs traffic all through it.
const MAX_LOST_PAUSE: Duration = Duration::from_secs(80);

/// Most servers whose distance is measured for one choice.
const MAX_PROBES: usize = 8;

/// How long a choice waits for the measured ones. Whoever takes longer is further away than anybody wants to be attached to.
const PROBE_TIMEOUT: Duration = Duration::from_millis(300);

/// By how much more than that of the nearest the round trip of those may be that count as equally near. Longer takes tunnels on a
/// detour; shorter tells servers apart that differ by chance, so that the tunnel-nodes of one domain choose many: each of these has to
/// know the domain's newest Head, and asks an operator for it.
const NEAR_ENOUGH: Duration = Duration::from_millis(20);

/// For how long a measurement is not repeated.
const PROBE_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
pub(super) struct Attachment {
    pub(super) since: Instant,
    next_at: Instant,
    misses: u32,
    stale: u32,
    pub(super) observed: Option<SocketAddr>,
    /// The server's sealing key. With another one it has started anew, and what it kept in memory is gone.
    key: Option<KeyHint>,
    /// The renewal that was not answered yet.
    request: Option<RequestId>,
    /// Tunnels that this server relayed have broken, and it has not answered since.
    doubt: Option<Doubt>,
}

/// What is remembered of an attachment in doubt.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    since: Instant,
    renewals: u32,
}

impl Doubt {
    /// Returns how long the next renewal is waited for.
    fn pause(&self, now: Instant) -> Duration {
        let quick = DOUBT_PAUSE * 2_u32.saturating_pow(self.renewals.min(10));
        let late = ((now - self.since) / DOUBT_PART).min(MAX_LATE_PAUSE);
        quick.min(MAX_DOUBT_PAUSE).max(late)
    }
}

impl Attachment {
    const fn new(since: Instant) -> Self {
        Self {
            since,
            next_at: since,
            misses: 0,
            stale: 0,
            observed: None,
            key: None,
            request: None,
            doubt: None,
        }
    }
}

/// How the next servers are chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    /// Until when the measurement is waited for, and how many are out.
    measuring: Option<(Instant, usize)>,
    measured_at: Option<Instant>,
    /// When those that are chosen are asked first.
    not_before: Instant,
    pause: Duration,
}

impl Default for Choice {
    fn default() -> Self {
        Self { measuring: None, measured_at: None, not_before: Instant::default(), pause: LOST_PAUSE }
    }
}

impl Node {
    pub(super) fn is_attached(&self) -> bool {
        !self.serving.attachments.is_empty()
    }

    /// Returns whether this node lets itself be told by somebody: an operator, or a super-node that it chose.
    pub(super) fn is_served_by(&self, member: &Member) -> bool {
        let chosen = || self.serving.attachments.contains_key(&member.id);
        member.is_operator || (chosen() && self.servers.is_super_node(&member.id))
    }

    /// The networks are others now: those that were silent before may not be.
    pub(super) fn attach_anew(&mut self) {
        self.serving.choice = Choice::default();
    }

    pub(super) fn attaching_at(&self) -> Option<Instant> {
        let renewal = self.serving.attachments.values().map(|attachment| attachment.next_at).min();
        let choice = self.serving.choice.measuring.map(|(until, _)| until);
        [renewal, choice].into_iter().flatten().min()
    }

    pub(super) fn attaching_timeout(&mut self, now: Now) {
        if self.serving.choice.measuring.is_some_and(|(until, _)| until <= now.mono) {
            self.serving.choice.measuring = None;
            self.choose_servers(now);
        }
        // Last: what was chosen is due now, and must not wait for another timeout.
        self.renew_attachments(now);
    }

    /// Attaches to as many as are wanted: none, where there is nothing to be reached for.
    pub(super) fn review_attachments(&mut self, now: Now) {
        if !self.wants_attachments() {
            self.serving.attachments.clear();
            // Whom nobody answers does not begin to hammer because it was elected again.
            self.serving.choice.measuring = None;
            return;
        }
        self.choose_servers(now);
        // At once: what is due now must not wait for a timeout that may have been served already.
        self.renew_attachments(now);
    }

    /// Returns the stretches of places under which this node is looked for.
    fn sought_places(&mut self, now: Now) -> Vec<Segment> {
        let served = self.served_locations();
        let locations = if served.is_empty() { self.places.all().collect() } else { served };
        let time = self.endpoint.time(now);
        let domain = self.me.id.domain;
        let tags = tags(&locations, &self.keys, self.epoch_began, time);
        let places = tags.iter().map(|tag| self.segment_of(PlacementKey::new(domain, &tag.0)));
        let places: BTreeSet<_> = places.collect();
        if places.is_empty() { vec![Segment::of_domain(domain)] } else { places.into_iter().collect() }
    }

    /// Returns those to whom this node may attach besides those it is attached to, the best first: who answers, its own
    /// organisation's, the nearest, and of those that are about equally near whom others of the domain choose too.
    fn attachable(&mut self, now: Now) -> Vec<Server> {
        let mut all = Vec::<Server>::new();
        for range in self.sought_places(now) {
            for server in self.holders(&range, now) {
                let is_new = all.iter().all(|known| known.node != server.node);
                if is_new && !self.serving.attachments.contains_key(&server.node) {
                    all.push(server);
                }
            }
        }
        let rtt = |server: &Server| self.servers.health(&server.node).and_then(|health| health.rtt);
        let nearest = all.iter().filter_map(rtt).min().unwrap_or_default();
        all.sort_by_cached_key(|server| {
            let rtt = rtt(server).unwrap_or(Duration::MAX);
            let distance = if rtt <= nearest + NEAR_ENOUGH { nearest } else { rtt };
            let foreign = server.node.domain != self.me.id.domain;
            let rank = self.keys.server_rank(&server.node);
            (self.servers.penalty(&server.node, now.mono), foreign, distance, rank)
        });
        all
    }

    /// Fills up the attachments. Where there is a choice, the round trips are measured first.
    fn choose_servers(&mut self, now: Now) {
        let missing = MAX_ATTACHMENTS.saturating_sub(self.serving.attachments.len());
        if missing == 0 || self.serving.choice.measuring.is_some() {
            return;
        }
        let candidates = self.attachable(now);
        if candidates.len() > missing && self.measure(&candidates, now) {
            return;
        }
        let next_at = self.serving.choice.not_before.max(now.mono);
        for server in candidates.into_iter().take(missing) {
            self.serving.attachments.insert(server.node, Attachment::new(next_at));
        }
    }

    /// Pings those whose distance is not known. Returns whether that is to be waited for.
    fn measure(&mut self, candidates: &[Server], now: Now) -> bool {
        let lately = |at: Instant| now.mono - at < PROBE_INTERVAL;
        if self.serving.choice.measured_at.is_some_and(lately) {
            return false;
        }
        let unknown = candidates.iter().filter(|server| {
            let health = self.servers.health(&server.node);
            health.is_none_or(|health| health.rtt.is_none() && health.answered_at.is_none())
        });
        let unknown: Vec<_> = unknown.take(MAX_PROBES).copied().collect();
        if unknown.is_empty() {
            return false;
        }
        self.serving.choice.measured_at = Some(now.mono);
        self.serving.choice.measuring = Some((now.mono.after(PROBE_TIMEOUT), unknown.len()));
        for server in unknown {
            self.ask(server, &Request::Ping, Purpose::Probe, now);
        }
        true
    }

    /// A measured server has answered, or failed.
    pub(super) fn probed(&mut self, now: Now) {
        let Some((until, open)) = self.serving.choice.measuring else { return };
        let open = open.saturating_sub(1);
        self.serving.choice.measuring = (open > 0).then_some((until, open));
        if open == 0 {
            self.review_attachments(now);
        }
    }

    /// Returns whether somebody is still one to be attached to. Super-nodes are kept as long as they hold any of the domain's
    /// places, although the place of the tag moves every day; operators as long as they stand in.
    fn is_fit(&mut self, node: &NodeId, now: Now) -> bool {
        if self.trust.is_revoked(node) {
            return false;
        }
        if !self.trust.is_operator(node) {
            return self.servers.is_super_node(node);
        }
        let places = self.sought_places(now);
        places.iter().any(|range| self.operators_stand_in(range))
    }

    fn renew_attachments(&mut self, now: Now) {
        let due = self.serving.attachments.iter().filter(|(_, a)| a.next_at <= now.mono);
        let mut is_lacking = false;
        for node in due.map(|(node, _)| *node).collect::<Vec<_>>() {
            let server = if self.is_fit(&node, now) { self.server(node) } else { None };
            let Some(server) = server else {
                // The set has changed. Everybody notices at his own renewal, so that not all move at once.
                self.detach(&node);
                is_lacking = true;
                continue;
            };
            is_lacking |= self.leaves_in_doubt(node, now);
            self.renew_attachment(server, now);
        }
        if is_lacking {
            self.review_attachments(now);
        }
    }

    fn attach_interval(&mut self, server: &NodeId) -> Duration {
        let is_carried = self.endpoint.carried_on(server).is_some();
        self.jittered(if is_carried { STREAM_ATTACH_INTERVAL } else { ATTACH_INTERVAL })
    }

    /// Renews an attachment now, because the server is reached in another way.
    pub(super) fn renew_attachment_at(&mut self, server: &NodeId, now: Now) {
        if let Some(attachment) = self.serving.attachments.get_mut(server) {
            attachment.next_at = now.mono;
            self.renew_attachments(now);
        }
    }

    fn renew_attachment(&mut self, server: Server, now: Now) {
        let usual = self.attach_interval(&server.node);
        let Some(attachment) = self.serving.attachments.get_mut(&server.node) else { return };
        let pause = attachment.doubt.as_mut().map(|doubt| {
            let pause = doubt.pause(now.mono);
            doubt.renewals = doubt.renewals.saturating_add(1);
            pause
        });
        attachment.next_at = now.mono.after(pause.unwrap_or(usual));
        match attachment.request {
            // All its sendings count, so that the answer to an early one is not lost on a long way.
            Some(request) => self.endpoint.hasten(request, now),
            None => {
                let request = self.ask(server, &Request::Attach, Purpose::Attach(server.node), now);
                if let Some(attachment) = self.serving.attachments.get_mut(&server.node) {
                    attachment.request = Some(request);
                }
            }
        }
    }

    /// Tunnels through this relay have broken. Whether it has died is to be known at once by who is attached to it (Rule 6.33).
    pub(super) fn relay_lost(&mut self, relay: NodeId, now: Now) {
        let Some(server) = self.server(relay).filter(|_| self.is_server(&relay)) else { return };
        match self.serving.attachments.get_mut(&relay) {
            Some(attachment) => {
                if attachment.doubt.is_none() {
                    attachment.doubt = Some(Doubt { since: now.mono, renewals: 0 });
                    attachment.next_at = now.mono;
                    self.renew_attachments(now);
                }
            }
            // Its answer is all that is wanted: until then others are asked first.
            None => {
                self.servers.doubt(relay, now.mono);
                self.ask(server, &Request::Ping, Purpose::Probe, now);
            }
        }
    }

    /// Leaves a server that tunnels depended on and that does not answer, if there is another. Returns whether it did.
    fn leaves_in_doubt(&mut self, node: NodeId, now: Now) -> bool {
        let doubt = self.serving.attachments.get(&node).and_then(|attachment| attachment.doubt);
        if doubt.is_none_or(|doubt| doubt.renewals < MAX_DOUBTS) {
            return false;
        }
        let others = self.attachable(now);
        let is_well = |server: &Server| self.servers.penalty(&server.node, now.mono) == (0, 0);
        if !others.iter().any(is_well) {
            return false;
        }
        self.servers.doubt(node, now.mono);
        self.detach(&node);
        self.serving.choice.not_before = now.mono;
        true
    }

    fn detach(&mut self, node: &NodeId) {
        let gone = self.serving.attachments.remove(node);
        if let Some(request) = gone.and_then(|attachment| attachment.request) {
            self.endpoint.forget_request(request);
            self.purposes.remove(&request);
        }
    }

    pub(super) fn attached(&mut self, by: NodeId, reply: Reply, now: Now) {
        let Reply::Attached { observed, head } = reply else { return };
        let news = head.map_or(HeadNews::Bad, |head| self.take_head(&head, now));
        let is_known = self.head_age(now).is_some_and(|age| age <= MAX_HEAD_AGE);
        let key = self.endpoint.peer_key(&by);
        let was_doubted = self.serving.attachments.get(&by).is_some_and(|a| a.doubt.is_some());
        let again = was_doubted.then(|| now.mono.after(self.attach_interval(&by)));
        let Some(attachment) = self.serving.attachments.get_mut(&by) else { return };
        let first = attachment.observed.is_none() || attachment.key != key;
        attachment.key = key;
        attachment.misses = 0;
        attachment.request = None;
        attachment.doubt = None;
        attachment.next_at = again.unwrap_or(attachment.next_at);
        attachment.observed = Some(observed);
        let is_stale = matches!(news, HeadNews::Old | HeadNews::Bad);
        attachment.stale = if is_stale && is_known { attachment.stale.saturating_add(1) } else { 0 };
        let is_withholding = attachment.stale >= MAX_STALE && !self.trust.is_operator(&by);
        // That one answers says nothing about another who never did.
        if self.serving.attachments.values().all(|attachment| attachment.observed.is_some()) {
            self.serving.choice.pause = LOST_PAUSE;
            self.serving.choice.not_before = now.mono;
        }
        if is_withholding {
            self.servers.mark(by, now.mono);
            self.detach(&by);
            self.review_attachments(now);
        } else if first {
            self.announce_soon(now);
        }
    }

    pub(super) fn attachment_failed(&mut self, server: NodeId, now: Now) {
        let again = now.mono.after(self.jittered(MISSED_INTERVAL));
        let serves_tunnels = self.watched.values().any(|tunnel| tunnel.serving);
        let Some(attachment) = self.serving.attachments.get_mut(&server) else { return };
        attachment.request = None;
        attachment.misses = attachment.misses.saturating_add(1);
        attachment.doubt = attachment.doubt.filter(|_| serves_tunnels);
        if attachment.doubt.is_some() {
            if attachment.misses >= MAX_MISSES {
                attachment.observed = None;
            }
            return;
        }
        if attachment.misses < MAX_MISSES {
            attachment.next_at = again;
            return;
        }
        self.serving.attachments.remove(&server);
        // With a single operator the same one is tried again, a little later.
        let pause = self.serving.choice.pause;
        self.serving.choice.not_before = now.mono.after(self.jittered(pause));
        self.serving.choice.pause = (pause * 2).min(MAX_LOST_PAUSE);
        self.choose_servers(now);
    }

    /// Somebody answers again after a silence: what waits for its next attempt need not wait for long.
    pub(super) fn hasten_attachments(&mut self, now: Now) {
        self.serving.choice.pause = LOST_PAUSE;
        let soon = now.mono.after(self.jittered(MISSED_INTERVAL));
        for attachment in self.serving.attachments.values_mut().filter(|a| a.observed.is_none()) {
            attachment.next_at = attachment.next_at.min(soon);
        }
    }
}
