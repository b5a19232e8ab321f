//! Links that come, go and are replaced, and those that are dialled.

use std::collections::BTreeMap;
use std::time::Duration;

use peerage_wire::frame::Code;
use peerage_wire::time::Instant;

use super::{Bundle, Carrier, Dial, LINGER, LOOK_PAUSE, LinkId, MAX_SHARED, PathKind, Purpose, Standing};
use crate::link::{self, Closed, Link, Side};

impl Bundle {
    /// Takes a link whose handshake is complete.
    pub fn add_link(&mut self, standing: Standing, now: Instant) -> LinkId {
        self.next_link = self.next_link.saturating_add(1);
        let id = LinkId(self.next_link);
        let super::Config { local, remote, .. } = self.config;
        let Standing { side, consent_interval, .. } = standing;
        let mut link = Link::new(link::Config { side, local, remote, consent_interval }, now);
        if let Some(head) = self.head.clone() {
            // Its length was checked when it was set.
            let _ = link.send_head(head);
        }
        if let Some(code) = self.is_ending {
            link.close(code);
        }
        let carrier = Carrier {
            link,
            standing,
            streams: BTreeMap::new(),
            round_trip: None,
            up_at: None,
            leaves_at: None,
            is_doubtful: false,
            is_asked: false,
            head_at: None,
        };
        self.links.insert(id, carrier);
        self.writable.insert(id);
        if side == Side::Client {
            self.take_up(id, standing, now);
        }
        self.settle(now);
        id
    }

    /// Forgets a link whose connection is gone; its sessions go on elsewhere.
    pub fn link_lost(&mut self, id: LinkId, now: Instant) {
        let Some(carrier) = self.links.get_mut(&id) else { return };
        let streams = std::mem::take(&mut carrier.streams);
        let is_news = carrier.link.closed().is_none() && !carrier.link.is_suspect();
        if is_news {
            self.note_outage(id, now);
        }
        let purpose = self.links.remove(&id).map(|carrier| carrier.standing.purpose);
        self.writable.remove(&id);
        self.detach_all(streams, now);
        if let Some(Purpose::Own(key)) = purpose {
            self.want_own_later(key);
        }
        self.settle(now);
    }

    /// Returns why a link has ended; what [`poll_output`](Self::poll_output) still gives should be sent, and then
    /// [`link_lost`](Self::link_lost).
    pub fn closed(&self, id: LinkId) -> Option<Closed> {
        self.links.get(&id).map_or(Some(Closed::Silent), |carrier| carrier.link.closed())
    }

    /// Returns whether a dialled link can be used, as the last [`Event::Usable`](super::Event::Usable) or
    /// [`Event::Unusable`](super::Event::Unusable) has told.
    pub const fn is_usable(&self) -> bool {
        self.is_usable
    }

    /// Returns how many links there are.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// Returns the link that [`open`](Self::open) would use.
    pub fn best_link(&self) -> Option<LinkId> {
        self.best_shared()
    }

    /// Returns whether another shared link may be dialled.
    pub fn may_dial(&self) -> bool {
        self.count(|carrier| carrier.is_shared() && carrier.is_healthy()) < MAX_SHARED
    }

    /// Returns whether another shared link may be dialled for what no link stands on now: tunnels that wait, or a better path, which
    /// takes the place of those that there are.
    fn may_redial(&self) -> bool {
        let most = if self.needy.is_empty() { MAX_SHARED + 1 } else { MAX_SHARED };
        self.count(|carrier| carrier.is_shared() && carrier.is_healthy()) < most
    }

    /// Returns the ids of the links that this node has dialled.
    pub fn dialled(&self) -> impl Iterator<Item = LinkId> + '_ {
        let dialled = self.links.iter().filter(|(_, carrier)| carrier.standing.side == Side::Client);
        dialled.map(|(id, _)| *id)
    }

    /// Returns on what a link stands.
    pub fn path(&self, id: LinkId) -> Option<PathKind> {
        self.links.get(&id).map(|carrier| carrier.standing.path)
    }

    /// Returns whether the peer has said HELLO on a link.
    pub fn is_up(&self, id: LinkId) -> bool {
        self.links.get(&id).is_some_and(|carrier| carrier.up_at.is_some())
    }

    /// Returns the smoothed round trip of a link.
    pub fn round_trip(&self, id: LinkId) -> Option<Duration> {
        self.links.get(&id).and_then(|carrier| carrier.link.round_trip())
    }

    /// Returns how many streams are in use on a link.
    pub fn streams(&self, id: LinkId) -> usize {
        self.links.get(&id).map_or(0, |carrier| carrier.link.streams())
    }

    /// Makes a link suspect at once: the computer has slept, or the address on which it stands is gone.
    pub fn doubt(&mut self, id: LinkId, now: Instant) {
        if let Some(carrier) = self.links.get_mut(&id) {
            carrier.link.doubt(now);
            self.drain_events(id, now);
            self.settle(now);
        }
    }

    /// Makes the links suspect of which nothing was heard for a second, because another one has fallen silent: what ended that path may
    /// have ended theirs. Those that answer are of use a round trip later.
    pub(super) fn ask_others(&mut self, silent: LinkId, now: Instant) {
        let is_meant = |(id, carrier): &(&LinkId, &Carrier)| {
            **id != silent && carrier.is_healthy() && !carrier.link.is_fresh(now)
        };
        let others: Vec<_> = self.links.iter().filter(is_meant).map(|(id, _)| *id).collect();
        for id in others {
            if let Some(carrier) = self.links.get_mut(&id) {
                carrier.is_asked = true;
                carrier.link.doubt(now);
                self.drain_events(id, now);
            }
        }
    }

    /// Asks for a new link in place of one that still works: the computer would reach the peer another way now.
    pub fn replace(&mut self, id: LinkId, now: Instant) {
        if let Some(carrier) = self.links.get_mut(&id).filter(|c| c.standing.side == Side::Client) {
            carrier.is_doubtful = true;
            self.wants_better = true;
            self.redial.retry_now();
            self.settle(now);
        }
    }

    /// Tells that the networks have changed, or that the peer may be reached at other places: what is being dialled is out of date,
    /// and what has failed is tried again at once.
    pub fn retry(&mut self, now: Instant) {
        self.redial.retry_now();
        // A better path, too, may have come with it. What a peer says decides here, so not more often than it would be looked for at first.
        self.look = self.look.map(|(at, pause)| {
            let since = pause.saturating_sub(at - now);
            (at.min(now.after(LOOK_PAUSE.saturating_sub(since))), LOOK_PAUSE / 2)
        });
        self.settle(now);
    }

    /// Returns the next link that should be dialled now, if any.
    pub fn poll_dial(&mut self, now: Instant) -> Option<Dial> {
        if self.is_ending.is_some() {
            return None;
        }
        if self.redial_at().is_some_and(|at| at <= now) {
            let round_trips = self.links.values().filter_map(|carrier| carrier.link.round_trip());
            let round_trip = round_trips.max().unwrap_or_default();
            let dial = self.redial.begin(Purpose::Shared, round_trip, now);
            let is_awaited = !self.needy.is_empty();
            let serving = if is_awaited { None } else { self.serving() };
            return Some(Dial { is_awaited, serving, ..dial });
        }
        if !self.may_dial_own() {
            return None;
        }
        let key = self.own_wanted.pop_first()?;
        let dial = self.redial.begin(Purpose::Own(key), Duration::ZERO, now);
        self.own_dialled.insert(dial.id, key);
        let serving = self.link_of(key).and_then(|link| self.path(link));
        Some(Dial { serving, ..dial })
    }

    /// Whether a session gets a link of its own now: one after the other, since a path through a relay is looked for once at a time.
    pub(super) fn may_dial_own(&self) -> bool {
        self.is_ending.is_none() && self.own_dialled.is_empty() && !self.own_wanted.is_empty()
    }

    /// Returns whether the peer should be looked for now: tunnels wait, and it may be elsewhere, or where only a relay leads to it.
    pub fn poll_seek(&mut self, now: Instant) -> bool {
        let is_due = self.seek_at().is_some_and(|at| at <= now);
        if is_due {
            self.redial.sought(now);
        }
        is_due
    }

    /// Tells that a dial has come to nothing.
    pub fn dial_failed(&mut self, dial: Dial, now: Instant) {
        match self.own_dialled.remove(&dial.id) {
            Some(key) => self.want_own_later(key),
            None => {
                if self.redial.failed(dial.id) && self.needy.is_empty() {
                    // A better path was looked for and not found. Where a relay serves, it is looked for again later.
                    let is_doubtful = self.links.values().any(|carrier| carrier.is_doubtful);
                    self.wants_better = is_doubtful && self.redial.may_go_on_looking();
                    if !self.wants_better {
                        self.redial.begin_anew();
                    }
                }
            }
        }
        self.settle(now);
    }

    pub(super) fn link_timeout(&mut self, id: LinkId, now: Instant) {
        let Some(carrier) = self.links.get_mut(&id) else { return };
        if carrier.link.poll_timeout().is_some_and(|at| at <= now) {
            carrier.link.handle_timeout(now);
            self.writable.insert(id);
        }
        if carrier.leaves_at.is_some_and(|at| at <= now) {
            let is_free = carrier.link.streams() == 0;
            carrier.leaves_at = Some(now.after(LINGER));
            if is_free {
                carrier.link.close(Code::Idle);
                self.writable.insert(id);
            }
        }
        self.drain_events(id, now);
    }

    /// Returns when the next shared link is to be dialled.
    pub(super) fn redial_at(&self) -> Option<Instant> {
        let is_wanted = self.is_ending.is_none() && (self.wants_better || !self.needy.is_empty());
        if is_wanted && self.may_redial() { self.redial.due_at() } else { None }
    }

    /// Returns when the peer is to be looked for next.
    pub(super) fn seek_at(&self) -> Option<Instant> {
        let is_wanted = self.is_ending.is_none() && !self.needy.is_empty();
        (is_wanted && self.may_dial()).then(|| self.redial.seek_at())
    }

    /// Counts dialled links.
    pub(super) fn count(&self, is_meant: impl Fn(&Carrier) -> bool) -> usize {
        let dialled = self.links.values().filter(|carrier| carrier.standing.side == Side::Client);
        dialled.filter(|carrier| is_meant(carrier)).count()
    }
}
