//! What the tasks of one peer share: its links, its sessions, and who is to be woken.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use peerage_proto::link::bundle::{Bundle, Config, Dial, Event, LinkId, PathKind, Purpose, SessionKey};
use peerage_proto::session::Budget;
use peerage_wire::codec::Candidate;
use peerage_wire::frame::Code;
use peerage_wire::id::{DeviceId, NodeId};
use peerage_wire::open::Open;
use peerage_wire::time::Instant;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time;

use super::stream::Stream;
use super::{Inner, LinkEvent, OpenFailed, Path, Via};

/// Sleeps are cut to this, because timers of the runtime stand still while the computer sleeps.
pub(super) const MAX_SLEEP: Duration = Duration::from_secs(5);

/// When the clock has gone on so much further than a task slept, the computer has slept (Rule 7.11).
const SLEPT: Duration = Duration::from_secs(5);

/// One peer with its links and sessions. Streams of applications keep it; otherwise it is forgotten when nothing is left of it.
pub(super) struct Peer {
    pub(super) id: NodeId,
    inner: Weak<Inner>,
    /// Never held while waiting for anything.
    state: Mutex<State>,
    keeper: Arc<Notify>,
    /// Held while dialling for new tunnels, so that many openings at once share one dial.
    pub(super) gate: tokio::sync::Mutex<()>,
    /// New sessions can open again, after they could not.
    usable: Notify,
}

pub(super) struct State {
    pub(super) bundle: Bundle,
    pub(super) links: BTreeMap<LinkId, Ends>,
    pub(super) users: BTreeMap<SessionKey, Arc<User>>,
    pub(super) reach: Reach,
    /// The dial of a shared link that is under way.
    dialling: Option<AbortHandle>,
    /// When the keeper will look again by itself.
    wakes_at: Option<Instant>,
    /// Whether new sessions could open when it was looked last.
    has_room: bool,
}

/// Where a link's connection is, and how to wake its task.
pub(super) struct Ends {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) via: Via,
    /// The relay that it goes over.
    pub(super) relay: Option<NodeId>,
    pub(super) kick: Arc<Notify>,
}

/// The application's side of a session.
#[derive(Debug, Default)]
pub(super) struct User {
    /// Something has changed for the application.
    pub(super) changed: Notify,
    /// Its bytes take another path.
    pub(super) moved: Notify,
    /// For what it was opened, at the opener.
    target: Option<(DeviceId, String)>,
}

/// How to reach the peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Reach {
    pub(super) identity: Option<[u8; 32]>,
    pub(super) candidates: Vec<Candidate>,
    /// Where it was reached last.
    pub(super) last: Option<Candidate>,
}

impl Reach {
    /// Returns where to dial, best first of each transport.
    pub(super) fn places(&self) -> Vec<Candidate> {
        let is_last = |candidate: &Candidate| {
            self.last.is_some_and(|last| {
                (last.transport, last.address) == (candidate.transport, candidate.address)
            })
        };
        let others = self.candidates.iter().copied().filter(|candidate| !is_last(candidate));
        self.last.into_iter().chain(others).collect()
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The keeper finds that nothing is left to keep.
        self.keeper.notify_one();
    }
}

impl Peer {
    /// Makes a peer without links; the caller lets [`keep`] run with the notifier that comes with it.
    pub(super) fn new(id: NodeId, inner: &Arc<Inner>) -> (Arc<Self>, Arc<Notify>) {
        let keeper = Arc::new(Notify::new());
        let config = Config { local: inner.config.local, remote: id, session: inner.config.session.clone() };
        let state = State {
            bundle: Bundle::new(config),
            links: BTreeMap::new(),
            users: BTreeMap::new(),
            reach: Reach::default(),
            dialling: None,
            wakes_at: None,
            has_room: false,
        };
        let peer = Self {
            id,
            inner: Arc::downgrade(inner),
            state: Mutex::new(state),
            keeper: Arc::clone(&keeper),
            gate: tokio::sync::Mutex::default(),
            usable: Notify::new(),
        };
        (Arc::new(peer), keeper)
    }

    /// Returns what all sessions and links of the node share; none once the node is gone.
    pub(super) fn budget(&self) -> Option<Budget> {
        self.inner.upgrade().map(|inner| inner.config.session.budget.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of another task leaves sessions that their own rules judge; the others go on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with links and sessions, and wakes whoever has something to do after it.
    pub(super) fn act<T>(self: &Arc<Self>, act: impl FnOnce(&mut State, Instant) -> T) -> Option<T> {
        let inner = self.inner.upgrade()?;
        let mut state = self.lock();
        let now = inner.config.clock.mono();
        let result = act(&mut state, now);
        self.follow(&mut state, &inner, now);
        Some(result)
    }

    fn follow(self: &Arc<Self>, state: &mut State, inner: &Inner, now: Instant) {
        while let Some(event) = state.bundle.poll_event() {
            match event {
                Event::Usable => inner.notifier.notify(LinkEvent::Up(self.id)),
                Event::Unusable => inner.notifier.notify(LinkEvent::Down(self.id)),
                Event::Head(record) => inner.notifier.notify(LinkEvent::Head(record)),
                Event::OpenAsked { session, open } => self.on_open(state, inner, (session, open), now),
                Event::Silent(link) => {
                    let relay = state.links.get(&link).and_then(|ends| ends.relay);
                    relay.inspect(|relay| inner.notifier.notify(LinkEvent::RelayLost(*relay)));
                }
                Event::Moved { session, .. } => {
                    if let Some(user) = state.users.get(&session) {
                        user.moved.notify_one();
                    }
                }
            }
        }
        while let Some(session) = state.bundle.poll_woken() {
            if let Some(user) = state.users.get(&session) {
                user.changed.notify_one();
            }
        }
        while let Some(link) = state.bundle.poll_writable() {
            if let Some(ends) = state.links.get(&link) {
                ends.kick.notify_one();
            }
        }
        let had_room = std::mem::replace(&mut state.has_room, state.bundle.best_link().is_some());
        if state.has_room && !had_room {
            self.usable.notify_waiters();
        }
        let due_at = state.bundle.poll_timeout();
        if due_at.is_some_and(|due_at| state.wakes_at.is_none_or(|at| due_at < at)) {
            state.wakes_at = due_at;
            self.keeper.notify_one();
        }
    }

    fn on_open(
        self: &Arc<Self>,
        state: &mut State,
        inner: &Inner,
        (key, open): (SessionKey, Open),
        now: Instant,
    ) {
        match inner.notifier.reserve() {
            Some(permit) => {
                let stream = self.stream(state, key, None);
                permit.send(LinkEvent::OpenAsked { stream, open });
            }
            None => {
                state.bundle.with(key, now, |session, _| session.reset(Code::Limit));
                state.bundle.release(key, now);
            }
        }
    }

    fn stream(
        self: &Arc<Self>,
        state: &mut State,
        key: SessionKey,
        target: Option<(DeviceId, String)>,
    ) -> Stream {
        let user = Arc::new(User { target, ..User::default() });
        state.users.insert(key, Arc::clone(&user));
        Stream::new(Arc::clone(self), key, user)
    }

    /// Opens a session over the best link.
    pub(super) fn open(self: &Arc<Self>, open: &Open) -> Result<Stream, OpenFailed> {
        let opened = self.act(|state, now| {
            let key = state.bundle.open(open, now)?;
            Ok(self.stream(state, key, Some((open.device, open.service.clone()))))
        });
        opened.unwrap_or(Err(OpenFailed::Closed))
    }

    /// Waits until a new session can open on a link.
    pub(super) async fn usable_link(self: &Arc<Self>) -> LinkId {
        loop {
            let usable = self.usable.notified();
            if let Some(link) = self.act(|state, _| state.bundle.best_link()).flatten() {
                return link;
            }
            usable.await;
        }
    }

    /// Returns whether nothing is left but the entry in the table.
    pub(super) fn is_idle(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && self.lock().bundle.is_empty()
    }

    /// Tells how the peer can be reached now; what has failed is tried again at once if that is news.
    pub(super) fn set_reach(self: &Arc<Self>, identity: [u8; 32], candidates: &[Candidate]) {
        self.act(|state, now| {
            let is_news = candidates.iter().any(|candidate| !state.reach.candidates.contains(candidate));
            state.reach.identity = Some(identity);
            // Fewer than before are none to make a difference for: what is being dialled goes on.
            if is_news {
                state.reach.candidates = candidates.to_vec();
                state.bundle.retry(now);
            }
        });
    }

    /// Draws the consequences of other networks for the links.
    pub(super) fn networks_changed(
        self: &Arc<Self>,
        is_own: &dyn Fn(std::net::IpAddr) -> bool,
        route_to: &dyn Fn(SocketAddr) -> Option<std::net::IpAddr>,
    ) {
        self.act(|state, now| {
            for (id, ends) in &state.links {
                let local = ends.local.ip();
                if !is_own(local) {
                    // The system may not tell for minutes that nothing arrives there any more.
                    state.bundle.doubt(*id, now);
                } else if route_to(ends.remote).is_some_and(|other| other != local) {
                    state.bundle.replace(*id, now);
                }
            }
            state.bundle.retry(now);
        });
    }

    /// Begins what the bundle wants dialled.
    fn dial(self: &Arc<Self>, inner: &Arc<Inner>, dial: Dial) {
        if let (Purpose::Own(session), Some(PathKind::Relayed)) = (dial.purpose, dial.serving) {
            return self.ask_for_own_legs(inner, (session, dial));
        }
        let (peer, weak) = (Arc::clone(self), Arc::downgrade(inner));
        let task = super::lock(&inner.helpers).spawn(async move {
            let Some(inner) = weak.upgrade() else { return };
            let result = inner.dial_for(&peer, dial).await;
            if let Err(error) = result {
                tracing::debug!(peer = ?peer.id, %error, failures = dial.failures, "a link could not be dialled again");
                peer.dial_failed(dial);
            }
        });
        if dial.purpose == Purpose::Shared {
            let before = self.lock().dialling.replace(task);
            if let Some(before) = before {
                // It was begun for a network that is gone, or has ended long since.
                before.abort();
            }
            // Checks of both ends may find now what they did not find before.
            if dial.serving == Some(PathKind::Relayed) {
                self.ask_for_path(inner);
            }
        }
    }

    /// A link has broken: if it went over a relay, that may have died.
    pub(super) fn relay_lost(&self, relay: Option<NodeId>) {
        if let (Some(relay), Some(inner)) = (relay, self.inner.upgrade()) {
            inner.notifier.notify(LinkEvent::RelayLost(relay));
        }
    }

    /// The peer is not where it was: the node may know where it is now. Returns whether it was asked: it can be as long as there are tunnels.
    pub(super) fn ask_for_path(&self, inner: &Inner) -> bool {
        let target = self.lock().users.values().find_map(|user| user.target.clone());
        let is_known = target.is_some();
        if let Some((device, service)) = target {
            inner.notifier.notify(LinkEvent::PathWanted { peer: self.id, device, service, own: None });
        }
        is_known
    }

    /// A session that only a relay can serve is to have a link of its own: both ends have to meet there once more.
    fn ask_for_own_legs(self: &Arc<Self>, inner: &Inner, (session, dial): (SessionKey, Dial)) {
        let target = self.lock().users.get(&session).and_then(|user| user.target.clone());
        match target {
            Some((device, service)) => {
                let own = Some(dial);
                inner.notifier.notify(LinkEvent::PathWanted { peer: self.id, device, service, own });
            }
            None => self.dial_failed(dial),
        }
    }

    /// What the bundle wanted dialled did not come about.
    pub(super) fn dial_failed(self: &Arc<Self>, dial: Dial) {
        self.act(|state, now| state.bundle.dial_failed(dial, now));
    }
}

impl State {
    /// Returns the path of a link.
    pub(super) fn path(&self, link: LinkId) -> Option<Path> {
        self.links.get(&link).map(|ends| Path { remote: ends.remote, via: ends.via })
    }
}

/// Does what is due with the links and sessions of a peer, until it is forgotten.
pub(super) async fn keep(peer: Weak<Peer>, kick: Arc<Notify>) {
    let mut planned: Option<Instant> = None;
    loop {
        let Some(strong) = peer.upgrade() else { return };
        let Some(inner) = strong.inner.upgrade() else { return };
        let (mut dials, mut is_sought) = (Vec::new(), false);
        let left = strong.act(|state, now| {
            if planned.is_some_and(|at| now - at > SLEPT) {
                for link in state.links.keys() {
                    state.bundle.doubt(*link, now);
                }
                state.bundle.retry(now);
            }
            state.bundle.handle_timeout(now);
            while let Some(dial) = state.bundle.poll_dial(now) {
                dials.push(dial);
            }
            is_sought = state.bundle.poll_seek(now);
            let wakes_at = state.bundle.poll_timeout();
            state.wakes_at = wakes_at;
            let left = wakes_at.map_or(MAX_SLEEP, |at| at - now).min(MAX_SLEEP);
            planned = Some(now.after(left));
            left
        });
        for dial in dials {
            strong.dial(&inner, dial);
        }
        if is_sought {
            strong.ask_for_path(&inner);
        }
        let id = strong.id;
        drop(strong);
        inner.forget_idle(id);
        drop(inner);
        tokio::select! {
            () = kick.notified() => {}
            () = time::sleep(left.unwrap_or(MAX_SLEEP)) => {}
        }
    }
}
