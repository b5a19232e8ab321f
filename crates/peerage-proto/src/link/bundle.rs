//! All links between this node and one peer, and the sessions that move among them.
//!
//! A [`Bundle`] is what the owner of links and sessions needs so that a tunnel outlives what carries it. It finds a carrier for each
//! session of its own, asks for another link when none is left or a better path is wanted, answers RESUME, gives a session that moves
//! much a link of its own, and hands frames between links and sessions. It dials nothing: the owner does, when
//! [`poll_dial`](Bundle::poll_dial) says so, and brings the [link](Bundle::add_link).
//!
//! ```text
//!   socket ─▶ take_input, handle_input ─▶ sessions ─▶ poll_woken ─▶ the application's task: with(session)
//!   socket ◀─ poll_output ◀─ poll_writable ◀─ sessions ◀─ the application's task: with(session)
//!   dialler ◀─ poll_dial, poll_seek;  dialler ─▶ add_link, dial_failed
//! ```
//!
//! **Which link.** A session goes to the best link that can be used: its own one if it has one, else the newest of those that are
//! not about to be [replaced](Bundle::replace), on the best [path](PathKind). A link in doubt is as good as none for sending, but is kept;
//! a better one that comes up takes the sessions over one by one, and the old one drains.
//!
//! **Invariants.** A session belongs to the peer whose key the handshake of its first link proved, and no other peer's bundle knows it.
//! At most [`MAX_SESSIONS`] sessions, [`MAX_SHARED`] dialled links that are shared and [`MAX_OWN`] that are not; one dial for shared
//! links at a time. Deliberately absent: addresses, the table, and who may open what.

mod carry;
mod links;
mod redial;
mod traffic;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::frame::{CarrierNumber, Code, StreamId};
use peerage_wire::id::NodeId;
use peerage_wire::open::Open;
use peerage_wire::time::Instant;

use self::redial::Redial;
use super::{Link, Side};
use crate::session::{self, AttachError, Session, State};

/// The most sessions with one peer, those included that wait for the end of their state to be confirmed. More lets one member
/// take more memory; fewer would refuse a busy user-node before the node does.
pub const MAX_SESSIONS: usize = 1_280;

/// The most dialled links with one peer that all sessions share: together they carry some thousand.
pub const MAX_SHARED: usize = 5;

/// The most sessions with one peer that have a link of their own at a time; further ones share. More costs both sides connections,
/// fewer makes large transfers wait for one another.
pub const MAX_OWN: usize = 8;

/// What a session moves before it is given a link of its own (Rule 7.25), in bytes. Less dials for each picture of a page, more leaves a
/// large transfer before everybody's keystrokes for longer.
pub const OWN_AFTER: u64 = 256 * 1_024;

/// How long a link that was replaced is kept without streams, so that sessions fall back on it should the new one fail.
const LINGER: Duration = Duration::from_secs(30);

/// How long after tunnels have come to a relay, or to QUIC, it is looked whether there is a better path. Longer loads the relay for nothing
/// after a short fault; shorter makes tunnels follow each flap of a path.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// The pause doubles up to this. Longer misses a path that came without a change of this computer's networks; shorter costs more: each look
/// is a few SYNs.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(64);

/// A link's next Head is dropped unheard before this time has passed (Rule 7.27): each costs a signature to be verified, and operators make a new
/// one every 20 s. Longer delays revocations that follow one another, shorter lets a peer keep the node busy.
const HEAD_INTERVAL: Duration = Duration::from_secs(1);

/// Names one link of a bundle; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// Names one session of a bundle at this end; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(pub u64);

/// What kind of path a link stands on; the better ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathKind {
    /// Over a super-node.
    Relayed,
    /// Between the two nodes, as QUIC over UDP.
    Quic,
    /// Between the two nodes, as TLS over TCP, which takes less than half as much computing for each byte.
    Direct,
}

/// Whom a dialled link is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// New tunnels open on it.
    Shared,
    /// A session that moves much.
    Own(SessionKey),
}

/// A link that stands.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// This node's side.
    pub side: Side,
    /// Whom it is for; those that the peer has dialled are shared.
    pub purpose: Purpose,
    /// On what it stands.
    pub path: PathKind,
    /// [`CONSENT_TCP`](super::CONSENT_TCP) or [`CONSENT_UDP`](super::CONSENT_UDP).
    pub consent_interval: Duration,
}

/// A link that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dial {
    /// For [`Bundle::dial_failed`].
    pub id: u64,
    /// Whom for.
    pub purpose: Purpose,
    /// How long it may take.
    pub timeout: Duration,
    /// How many have failed before in this outage: the peer may have to be found anew.
    pub failures: u32,
    /// Whether tunnels wait for it, or no more than a better path is looked for.
    pub is_awaited: bool,
    /// The path that serves meanwhile. For all sessions, only a better one is of use; for a single one, one that is as good.
    pub serving: Option<PathKind>,
}

/// What a bundle has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A dialled link can be used, after none could; tunnels open on it at once.
    Usable,
    /// None of the dialled links can be used any more.
    Unusable,
    /// The peer asks for a tunnel: the session waits for `confirm` or `reset`.
    OpenAsked {
        /// The session.
        session: SessionKey,
        /// For what.
        open: Open,
    },
    /// A signed Head record of the peer, not yet verified.
    Head(Bytes),
    /// This link does not answer, whoever has dialled it.
    Silent(LinkId),
    /// An own session's bytes go over another link than before.
    Moved {
        /// The session.
        session: SessionKey,
        /// The link that it uses now.
        link: LinkId,
    },
}

/// Why a session could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No link can be used, or none has room: one has to be dialled.
    #[error("no connection to the other computer can be used at the moment")]
    NoLink,
    /// [`MAX_SESSIONS`], or the node's memory for tunnels is promised to others.
    #[error("as many tunnels are open as there may be")]
    TooMany,
    /// The session cannot be made.
    #[error(transparent)]
    Session(#[from] AttachError),
}

/// What a bundle is between.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub local: NodeId,
    /// The peer, whose key every link's handshake has proved.
    pub remote: NodeId,
    /// For all sessions.
    pub session: session::Config,
}

/// The links and sessions between two nodes.
#[derive(Debug)]
pub struct Bundle {
    config: Config,
    links: BTreeMap<LinkId, Carrier>,
    sessions: BTreeMap<SessionKey, Tunnel>,
    next_link: u64,
    next_session: u64,
    redial: Redial,
    /// A link is wanted although the one in use works.
    wants_better: bool,
    /// When it is looked next whether there is a better path than those in use, and the pause after that.
    look: Option<(Instant, Duration)>,
    /// Whether a session is carried by a link that this end dialled.
    is_served: bool,
    is_usable: bool,
    is_ending: Option<Code>,
    head: Option<Bytes>,
    /// Own sessions without a carrier that can be used.
    needy: BTreeSet<SessionKey>,
    /// Sessions that want a link of their own, and those for which one is being dialled.
    own_wanted: BTreeSet<SessionKey>,
    own_dialled: BTreeMap<u64, SessionKey>,
    /// Sessions at which something has changed since they were looked at.
    touched: BTreeSet<SessionKey>,
    deadlines: BTreeSet<(Instant, SessionKey)>,
    events: VecDeque<Event>,
    woken: BTreeSet<SessionKey>,
    writable: BTreeSet<LinkId>,
}

/// A link with what it carries.
#[derive(Debug)]
struct Carrier {
    link: Link,
    standing: Standing,
    streams: BTreeMap<StreamId, (SessionKey, CarrierNumber)>,
    round_trip: Option<Duration>,
    up_at: Option<Instant>,
    /// Sessions leave it for a better one; closed when it has had no streams at this time.
    leaves_at: Option<Instant>,
    /// It works, but a better path may be there.
    is_doubtful: bool,
    /// It is suspect only because another link fell silent, and has not answered yet.
    is_asked: bool,
    /// When the peer sent a Head last.
    head_at: Option<Instant>,
}

/// A session with where it stands.
#[derive(Debug)]
struct Tunnel {
    session: Session,
    is_opener: bool,
    /// Its carriers and where they are; few.
    places: Vec<Place>,
    /// What was told last about where its bytes go.
    told: Option<LinkId>,
    /// Nobody uses it any more.
    is_released: bool,
    /// It wants a link of its own once it has moved so many bytes.
    own_after: u64,
    deadline: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    number: CarrierNumber,
    link: LinkId,
    stream: StreamId,
}

impl Bundle {
    /// Makes a bundle without links.
    pub fn new(config: Config) -> Self {
        let redial = Redial::new(config.local);
        Self {
            config,
            links: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_link: 0,
            next_session: 0,
            redial,
            wants_better: false,
            look: None,
            is_served: false,
            is_usable: false,
            is_ending: None,
            head: None,
            needy: BTreeSet::new(),
            own_wanted: BTreeSet::new(),
            own_dialled: BTreeMap::new(),
            touched: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            events: VecDeque::new(),
            woken: BTreeSet::new(),
            writable: BTreeSet::new(),
        }
    }

    /// Returns whether there is neither a link nor a session.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty() && self.sessions.is_empty()
    }

    /// Sends a signed Head record over every link, and over those that come (Rule 7.9). One that is too long is not sent.
    pub fn send_head(&mut self, record: &Bytes, now: Instant) {
        if record.is_empty() || record.len() > peerage_wire::frame::MAX_HEAD {
            return;
        }
        self.head = Some(record.clone());
        for (id, carrier) in &mut self.links {
            // One that has ended needs none.
            let _ = carrier.link.send_head(record.clone());
            self.writable.insert(*id);
        }
        self.settle(now);
    }

    // ---- sessions ---------------------------------------------------------------------------

    /// Opens a session over the best link; its first bytes may be written at once.
    ///
    /// # Errors
    /// If no link can be used or has room, or there are too many sessions already.
    pub fn open(&mut self, open: &Open, now: Instant) -> Result<SessionKey, OpenError> {
        if self.sessions.len() >= MAX_SESSIONS || !self.config.session.budget.admits() {
            return Err(OpenError::TooMany);
        }
        let link = self.best_shared().ok_or(OpenError::NoLink)?;
        let session = Session::open(open.session, Bytes::from(open.encode()), &self.config.session, now)?;
        let key = self.insert(session, true);
        self.attach(key, link, now);
        self.settle(now);
        Ok(key)
    }

    /// Lets the application's side use a session, and draws the consequences; `None` if it is over and forgotten.
    pub fn with<T>(
        &mut self,
        key: SessionKey,
        now: Instant,
        act: impl FnOnce(&mut Session, Instant) -> T,
    ) -> Option<T> {
        let tunnel = self.sessions.get_mut(&key)?;
        let result = act(&mut tunnel.session, now);
        self.look_at(key, now);
        self.settle(now);
        Some(result)
    }

    /// Returns a session; `None` if it is over and forgotten.
    pub fn session(&self, key: SessionKey) -> Option<&Session> {
        self.sessions.get(&key).map(|tunnel| &tunnel.session)
    }

    /// Returns the link that a session's bytes go over, if it has one.
    pub fn link_of(&self, key: SessionKey) -> Option<LinkId> {
        let tunnel = self.sessions.get(&key)?;
        let number = tunnel.session.carrier_in_use()?;
        tunnel.places.iter().find(|place| place.number == number).map(|place| place.link)
    }

    /// Tells that nobody uses a session any more: it is forgotten once the peer knows how it ended.
    pub fn release(&mut self, key: SessionKey, now: Instant) {
        if let Some(tunnel) = self.sessions.get_mut(&key) {
            tunnel.is_released = true;
            self.touched.insert(key);
            self.settle(now);
        }
    }

    /// Returns the sessions and whether this node opened them.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionKey, &Session, bool)> {
        self.sessions.iter().map(|(key, tunnel)| (*key, &tunnel.session, tunnel.is_opener))
    }

    /// Ends all sessions with this code, and then all links.
    pub fn end_all(&mut self, code: Code, now: Instant) {
        self.is_ending = Some(code);
        for (key, tunnel) in &mut self.sessions {
            if !matches!(tunnel.session.state(), State::Ended(_)) {
                tunnel.session.reset(code);
            }
            self.touched.insert(*key);
        }
        self.writable.extend(self.links.keys());
        self.settle(now);
    }

    // ---- what follows -----------------------------------------------------------------------

    /// Returns what the owner should know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns a session at which something has changed for the application.
    pub fn poll_woken(&mut self) -> Option<SessionKey> {
        self.woken.pop_first()
    }

    /// Returns a link that may have something to send, or has ended.
    pub fn poll_writable(&mut self) -> Option<LinkId> {
        self.writable.pop_first()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, key)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, key));
            if let Some(tunnel) = self.sessions.get_mut(&key) {
                tunnel.deadline = None;
                tunnel.session.handle_timeout(now);
                self.touched.insert(key);
            }
        }
        for id in self.links.keys().copied().collect::<Vec<_>>() {
            self.link_timeout(id, now);
        }
        if let Some((_, pause)) = self.look.filter(|_| self.look_due_at().is_some_and(|at| at <= now)) {
            let pause = (pause * 2).min(LOOK_PAUSE_MAX);
            self.look = Some((now.after(pause), pause));
            self.wants_better = true;
        }
        self.settle(now);
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout), and then [`poll_dial`](Self::poll_dial) and
    /// [`poll_seek`](Self::poll_seek), at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sessions = self.deadlines.first().map(|(at, _)| *at);
        let links = self.links.values().filter_map(|carrier| carrier.link.poll_timeout());
        let leaving = self.links.values().filter_map(|carrier| carrier.leaves_at);
        let own = self.may_dial_own().then(Instant::default);
        let look = self.look_due_at();
        let dials = self.redial_at().into_iter().chain(self.seek_at()).chain(own);
        links.chain(sessions).chain(leaving).chain(look).chain(dials).min()
    }
}

#[cfg(test)]
mod tests;
