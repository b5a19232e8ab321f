//! Which session stands on which link.

use std::collections::BTreeMap;
use std::time::Duration;

use peerage_wire::frame::{CarrierNumber, Code, StreamId};
use peerage_wire::time::Instant;

use super::{
    Bundle, Carrier, Event, LINGER, LOOK_PAUSE, LinkId, MAX_OWN, MAX_SHARED, OWN_AFTER, Place, Purpose,
    SessionKey, Standing, Tunnel,
};
use crate::link::{MAX_STREAMS, Side};
use crate::session::{Session, State};

/// A link that fails sooner is like a dial that failed: otherwise a peer that closes each link would be dialled without a pause.
const PROVED_AFTER: Duration = Duration::from_secs(5);

/// How good a link is for a session; greater is better.
type Rank = (bool, bool, super::PathKind, LinkId);

impl Carrier {
    /// Whether frames can be sent here now, and answers are expected.
    pub(super) const fn is_healthy(&self) -> bool {
        self.link.closed().is_none() && !self.link.is_suspect()
    }

    /// Whether a session may be given a stream here.
    fn has_room(&self) -> bool {
        self.is_dialled() && self.is_healthy() && self.link.streams() < MAX_STREAMS
    }

    pub(super) const fn is_dialled(&self) -> bool {
        matches!(self.standing.side, Side::Client)
    }

    pub(super) fn is_shared(&self) -> bool {
        self.standing.purpose == Purpose::Shared
    }

    /// Whether sessions can stand here, whichever they are, and nothing is wrong with it as far as is known.
    fn is_able(&self) -> bool {
        let is_for_all = self.is_shared() && self.is_dialled();
        is_for_all && self.is_healthy() && self.link.is_proven() && !self.is_doubtful
    }

    const fn rank(&self, id: LinkId) -> Rank {
        (self.link.is_proven(), self.leaves_at.is_none(), self.standing.path, id)
    }
}

impl Tunnel {
    fn place(&self, number: CarrierNumber) -> Option<Place> {
        self.places.iter().find(|place| place.number == number).copied()
    }

    /// Returns how many bytes have gone either way.
    fn moved(&self) -> u64 {
        let stats = self.session.stats();
        stats.written_bytes.saturating_add(stats.read_bytes)
    }
}

impl Bundle {
    /// Returns the best link for a session that has none of its own.
    pub(super) fn best_shared(&self) -> Option<LinkId> {
        let usable = self.links.iter().filter(|(_, carrier)| carrier.is_shared() && carrier.has_room());
        usable.max_by_key(|(id, carrier)| carrier.rank(**id)).map(|(id, _)| *id)
    }

    /// Returns the best path of a shared link that nothing is wrong with, as far as is known.
    pub fn serving(&self) -> Option<super::PathKind> {
        let healthy = self.links.values().filter(|c| c.is_shared() && c.is_dialled() && c.is_healthy());
        let best = healthy.filter(|carrier| !carrier.is_doubtful);
        best.max_by_key(|carrier| (carrier.link.is_proven(), carrier.standing.path)).map(|c| c.standing.path)
    }

    /// Returns the link that a session should stand on: its own, unless a shared one has a better path.
    fn best_for(&self, key: SessionKey) -> Option<LinkId> {
        let shared = self.best_shared();
        let own = self.links.iter().find(|(_, carrier)| {
            carrier.standing.purpose == Purpose::Own(key) && carrier.has_room() && carrier.leaves_at.is_none()
        });
        let rank = |id: LinkId| self.links.get(&id).map(|c| (c.link.is_proven(), c.standing.path));
        own.map(|(id, _)| *id).filter(|own| rank(*own) >= shared.and_then(rank)).or(shared)
    }

    pub(super) fn insert(&mut self, session: Session, is_opener: bool) -> SessionKey {
        self.next_session = self.next_session.saturating_add(1);
        let key = SessionKey(self.next_session);
        let tunnel = Tunnel {
            session,
            is_opener,
            places: Vec::new(),
            told: None,
            is_released: false,
            own_after: OWN_AFTER,
            deadline: None,
        };
        self.sessions.insert(key, tunnel);
        self.touched.insert(key);
        key
    }

    /// Gives an own session a carrier on a link; returns whether it took it.
    pub(super) fn attach(&mut self, key: SessionKey, id: LinkId, now: Instant) -> bool {
        let (Some(tunnel), Some(carrier)) = (self.sessions.get_mut(&key), self.links.get_mut(&id)) else {
            return false;
        };
        let round_trip = carrier.link.round_trip().unwrap_or_default();
        let Ok(number) = tunnel.session.attach(round_trip) else { return false };
        let Ok(stream) = carrier.link.open_stream() else {
            tunnel.session.detach(number, now);
            return false;
        };
        tunnel.places.push(Place { number, link: id, stream });
        carrier.streams.insert(stream, (key, number));
        self.touched.insert(key);
        true
    }

    /// Draws the consequences of a link that this node has dialled.
    pub(super) fn take_up(&mut self, id: LinkId, standing: Standing, now: Instant) {
        match standing.purpose {
            Purpose::Own(key) => {
                self.own_dialled.retain(|_, dialled| *dialled != key);
                let is_open = self.sessions.get(&key).is_some_and(|tunnel| {
                    tunnel.session.state() == State::Open && tunnel.session.carrier_in_use().is_some()
                });
                // While it was being dialled, all may have got a better path.
                let is_wanted = is_open && self.best_for(key) == Some(id);
                if !(is_wanted && self.attach(key, id, now)) {
                    self.close(id, now);
                }
            }
            Purpose::Shared => {
                self.redial.succeeded();
                self.wants_better = false;
                self.retire_others(id, standing, now);
            }
        }
    }

    /// Lets sessions leave the links that a new one replaces.
    fn retire_others(&mut self, id: LinkId, standing: Standing, now: Instant) {
        for (other, carrier) in &mut self.links {
            let is_worse = carrier.is_doubtful || carrier.standing.path < standing.path;
            let is_dialled = carrier.standing.side == Side::Client && *other != id;
            if is_dialled && (is_worse || !carrier.is_healthy()) && carrier.leaves_at.is_none() {
                carrier.leaves_at = Some(now.after(LINGER));
            }
        }
        for (key, tunnel) in &self.sessions {
            if tunnel.is_opener {
                self.touched.insert(*key);
            }
        }
        // One more that is silent is not worth its sockets.
        if self.count(Carrier::is_shared) > MAX_SHARED {
            let silent = self.links.iter().find(|(_, c)| {
                c.standing.side == Side::Client
                    && c.is_shared()
                    && !c.is_healthy()
                    && c.link.closed().is_none()
            });
            if let Some((silent, _)) = silent {
                self.close(*silent, now);
            }
        }
    }

    pub(super) fn close(&mut self, id: LinkId, now: Instant) {
        if let Some(carrier) = self.links.get_mut(&id) {
            carrier.link.close(Code::Idle);
            self.writable.insert(id);
            self.drain_events(id, now);
        }
    }

    /// Takes their carrier from all sessions on a link that is gone.
    pub(super) fn detach_all(
        &mut self,
        streams: BTreeMap<StreamId, (SessionKey, CarrierNumber)>,
        now: Instant,
    ) {
        for (key, number) in streams.into_values() {
            if let Some(tunnel) = self.sessions.get_mut(&key) {
                tunnel.session.detach(number, now);
                tunnel.places.retain(|place| place.number != number);
                self.touched.insert(key);
            }
        }
    }

    /// A session that should have had its own link goes on sharing, and wants one again when it has moved much more.
    pub(super) fn want_own_later(&mut self, key: SessionKey) {
        if let Some(tunnel) = self.sessions.get_mut(&key) {
            let moved = tunnel.moved();
            tunnel.own_after = moved.saturating_add(moved.max(OWN_AFTER * 16));
        }
    }

    /// Looks at everything that was touched, until nothing changes.
    pub(super) fn settle(&mut self, now: Instant) {
        loop {
            self.arrange(now);
            while let Some(key) = self.touched.pop_first() {
                self.woken.insert(key);
                self.look_at(key, now);
            }
            if !self.carry(now) {
                break;
            }
        }
        // Also before the peer has said HELLO: its key is proven, and what leads nowhere is suspect a second later (Rule 7.30).
        let is_usable = self.links.values().any(|carrier| {
            carrier.is_shared() && carrier.standing.side == Side::Client && carrier.is_healthy()
        });
        if std::mem::replace(&mut self.is_usable, is_usable) != is_usable {
            self.events.push_back(if is_usable { Event::Usable } else { Event::Unusable });
        }
        self.plan_look(now);
        if !self.needy.is_empty() || self.wants_better {
            self.redial.want(now);
        } else if self.links.is_empty() {
            self.redial.begin_anew();
        }
    }

    /// Sees to it that of the links for all sessions the one on the best path stays, and that they leave those on worse ones: one that was
    /// silent when another came was to be left, and may work again.
    fn arrange(&mut self, now: Instant) {
        let able = self.links.iter().filter(|(_, carrier)| carrier.is_able());
        let Some((path, _, id)) = able.map(|(id, c)| (c.standing.path, c.leaves_at.is_none(), *id)).max()
        else {
            return;
        };
        let mut has_changed = false;
        for (other, carrier) in &mut self.links {
            if *other == id {
                has_changed |= carrier.leaves_at.take().is_some();
            } else if carrier.is_shared() && carrier.is_dialled() && carrier.standing.path < path {
                has_changed |= carrier.leaves_at.is_none();
                carrier.leaves_at = carrier.leaves_at.or(Some(now.after(LINGER)));
            }
        }
        if has_changed {
            let own = self.sessions.iter().filter(|(_, tunnel)| tunnel.is_opener);
            self.touched.extend(own.map(|(key, _)| *key));
        }
    }

    /// Plans to look for a better path where links do without the best, and not otherwise. Tunnels that are over sooner than that do not
    /// put it off.
    fn plan_look(&mut self, now: Instant) {
        let serving = self.links.values().filter(|carrier| carrier.is_dialled() && carrier.is_healthy());
        // By whatever has a link of its own, too.
        self.is_served = serving.clone().any(|carrier| !carrier.streams.is_empty());
        // What they cannot use, or are leaving, is no better than none.
        let mut shared =
            serving.clone().filter(|c| c.is_shared() && c.link.is_proven() && c.leaves_at.is_none());
        let has_best = shared.any(|carrier| carrier.standing.path == super::PathKind::Direct);
        if has_best || serving.count() == 0 {
            self.look = None;
        } else if self.look.is_none() && self.is_served {
            self.look = Some((now.after(LOOK_PAUSE), LOOK_PAUSE));
        }
    }

    /// Returns when a better path is to be looked for: while tunnels are open.
    pub(super) fn look_due_at(&self) -> Option<Instant> {
        self.look.filter(|_| self.is_served).map(|(at, _)| at)
    }

    /// A link has failed, or may have. If it was of use, what came before counts for nothing.
    pub(super) fn note_outage(&mut self, id: LinkId, now: Instant) {
        let Some(carrier) = self.links.get(&id) else { return };
        if carrier.standing.side != Side::Client || !carrier.is_shared() {
            return;
        }
        if carrier.up_at.is_some_and(|at| now - at >= PROVED_AFTER) {
            self.redial.begin_anew();
        } else {
            self.redial.note_failure();
        }
    }

    /// Gives own sessions without a carrier another; returns whether one took it.
    fn carry(&mut self, now: Instant) -> bool {
        let mut attached = false;
        for key in self.needy.iter().copied().collect::<Vec<_>>() {
            let Some(link) = self.best_for(key) else { continue };
            attached |= self.attach(key, link, now);
        }
        attached
    }

    /// Draws the consequences of a change at a session.
    pub(super) fn look_at(&mut self, key: SessionKey, now: Instant) {
        let Some(tunnel) = self.sessions.get_mut(&key) else { return };
        let mut gone = Vec::new();
        tunnel.places.retain(|place| {
            let stays = tunnel.session.has_carrier(place.number);
            if !stays {
                gone.push(*place);
            }
            stays
        });
        for place in gone {
            let Some(carrier) = self.links.get_mut(&place.link) else { continue };
            // Without effect where both sides have sent their last frame.
            carrier.link.leave(place.stream, now);
            carrier.streams.remove(&place.stream);
            self.writable.insert(place.link);
            self.close_if_done(place.link, now);
        }
        let Some(tunnel) = self.sessions.get_mut(&key) else { return };
        for number in tunnel.session.ready() {
            let Some(place) = tunnel.place(number) else { continue };
            if let Some(carrier) = self.links.get_mut(&place.link) {
                carrier.link.mark_ready(place.stream);
                self.writable.insert(place.link);
            }
        }
        let deadline = tunnel.session.poll_timeout();
        if deadline != tunnel.deadline {
            let old = std::mem::replace(&mut tunnel.deadline, deadline);
            old.map(|at| self.deadlines.remove(&(at, key)));
            deadline.map(|at| self.deadlines.insert((at, key)));
        }
        let is_needy = tunnel.session.needs_carrier();
        if is_needy {
            self.needy.insert(key);
        } else {
            self.needy.remove(&key);
        }
        if tunnel.is_released && tunnel.session.is_over() {
            return self.forget(key);
        }
        if tunnel.is_opener && !is_needy {
            self.improve(key, now);
        }
    }

    fn forget(&mut self, key: SessionKey) {
        let Some(tunnel) = self.sessions.remove(&key) else { return };
        tunnel.deadline.map(|at| self.deadlines.remove(&(at, key)));
        self.needy.remove(&key);
        self.own_wanted.remove(&key);
    }

    /// A link that one session had for itself is of no use once that has left.
    fn close_if_done(&mut self, id: LinkId, now: Instant) {
        let is_done = self.links.get(&id).is_some_and(|carrier| {
            !carrier.is_shared() && carrier.streams.is_empty() && carrier.link.closed().is_none()
        });
        if is_done {
            self.close(id, now);
        }
    }

    /// Moves an own session to a better link if there is one, and notes where it is and whether it wants one of its own.
    fn improve(&mut self, key: SessionKey, now: Instant) {
        let Some(tunnel) = self.sessions.get(&key) else { return };
        if tunnel.session.state() != State::Open {
            return;
        }
        let moved = tunnel.moved();
        let in_use = self.link_of(key);
        if self.links.len() > 1
            && let Some(current) = in_use
            && let Some(best) = self.best_for(key)
            && self.is_better(best, current)
            && !self.stands_on(key, best)
        {
            self.attach(key, best, now);
        }
        let Some(tunnel) = self.sessions.get_mut(&key) else { return };
        if let Some(link) = in_use
            && tunnel.told.replace(link).is_some_and(|told| told != link)
        {
            self.events.push_back(Event::Moved { session: key, link });
        }
        // On QUIC, a session has a stream of its own already.
        let is_served = in_use.and_then(|link| self.path(link)) == Some(super::PathKind::Quic);
        let is_many = self.own_wanted.len() + self.own_dialled.len() >= MAX_OWN;
        let Some(tunnel) = self.sessions.get(&key) else { return };
        if moved >= tunnel.own_after && !is_served && !is_many && self.count(|c| !c.is_shared()) < MAX_OWN {
            // Asked once; what comes of it sets it anew.
            if let Some(tunnel) = self.sessions.get_mut(&key) {
                tunnel.own_after = u64::MAX;
            }
            self.own_wanted.insert(key);
        }
    }

    /// Returns whether a session should move from one link to another. Among equals it stays where it is, and it returns to one that was
    /// silent only when that works in both directions.
    fn is_better(&self, link: LinkId, than: LinkId) -> bool {
        let (Some(link), Some(than)) = (self.links.get(&link), self.links.get(&than)) else { return false };
        if !link.link.is_proven() {
            return false;
        }
        if !link.is_shared() && link.standing.path >= than.standing.path {
            return than.is_shared() || than.leaves_at.is_some();
        }
        let rank = |carrier: &Carrier| (carrier.leaves_at.is_none(), carrier.standing.path);
        rank(link) > rank(than)
    }

    fn stands_on(&self, key: SessionKey, link: LinkId) -> bool {
        self.sessions.get(&key).is_some_and(|tunnel| tunnel.places.iter().any(|place| place.link == link))
    }

    /// Tells all sessions of a link its round trip, when that has changed.
    pub(super) fn note_round_trip(&mut self, id: LinkId) {
        let Some(carrier) = self.links.get_mut(&id) else { return };
        let round_trip: Option<Duration> = carrier.link.round_trip();
        if round_trip == carrier.round_trip {
            return;
        }
        carrier.round_trip = round_trip;
        for (key, number) in carrier.streams.values() {
            if let (Some(tunnel), Some(round_trip)) = (self.sessions.get_mut(key), round_trip) {
                tunnel.session.set_round_trip(*number, round_trip);
            }
        }
    }
}
