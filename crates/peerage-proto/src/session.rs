//! The session of a tunnel: the bytes of one application connection, which outlive what carries them.
//!
//! A [`Session`] stands at each end of a tunnel. On one side is the application: [`write`](Session::write),
//! [`finish`](Session::finish), [`read`](Session::read), [`reset`](Session::reset). On the other side are
//! *carriers*, each of them a stream on a [link](crate::link): frames go in with
//! [`handle_frame`](Session::handle_frame) and come out with [`poll_frame`](Session::poll_frame).
//!
//! ```text
//!   application ──write──▶ send half ──DATA, FIN──▶ carrier n, n+1 … ──▶ receive half ──read──▶ application
//!                              ▲                                             │
//!                              └───────────────── ACK{received, limit} ◀─────┘
//! ```
//!
//! **Moves.** Every byte has an offset, so it does not matter which carrier brings it. The opener may attach
//! another carrier at any time ([`attach`](Session::attach)); new bytes go there, the old carrier drains, and
//! each side says LEAVE on it when it will send no more there. When a carrier dies
//! ([`detach`](Session::detach)), what it carried and the peer has not acknowledged is sent again. A
//! *suspect* carrier ([`set_suspect`](Session::set_suspect)) is treated as lost for sending and as alive for
//! receiving, so a false alarm costs bytes only. Whether a carrier is suspect is measured by its link, once
//! for all sessions.
//!
//! **Invariants.** Each byte reaches the application once and in order. The application sees the end of the
//! stream only after all bytes, and a reset only after the bytes that had arrived. What is kept is bounded by
//! the windows, and windows by a [`Budget`]. A peer that breaks the rules ends its session and nothing else.
//! Deliberately absent: this value opens nothing, sleeps never, knows no node ids, and does not decide which
//! path is better.

mod budget;
mod carriers;
mod chunks;
mod frames;
mod receive;
mod send;
#[cfg(test)]
mod tests;
mod types;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::frame::{CarrierNumber, Code, MAX_DATAGRAM, MAX_REQUEST, Resume};
use peerage_wire::id::SessionId;
use peerage_wire::time::Instant;

pub use self::budget::{Budget, Held};
use self::carriers::{Carrier, Greeting};
use self::receive::ReceiveHalf;
use self::send::SendHalf;
pub use self::types::{AttachError, End, Lane, Read, State, Stats, Violation, WriteError};

/// The smallest window, in bytes: what a session starts with. It is what one round trip of 100 ms turns into
/// 5 Mbit/s; more would be promised to every idle tunnel, less would slow the first kilobytes of all of them.
pub const WINDOW_MIN: u64 = 64 * 1_024;

/// What the opener may send before the acceptor has answered, in bytes; so a request rides along with OPEN.
pub const FIRST_CREDIT: u64 = WINDOW_MIN;

/// The largest window by default, in bytes: 1 Gbit/s over 67 ms. More costs memory on every fast tunnel, less
/// limits fast tunnels over long paths.
pub const WINDOW_MAX: u64 = 8 * 1_024 * 1_024;

/// How long an acknowledgement may wait for a better reason to be sent. Longer keeps bytes in the sender's
/// memory and slows the growth of windows, shorter sends more frames that carry nothing else.
pub const ACK_DELAY: Duration = Duration::from_millis(20);

/// How long a session lives without any carrier (Rule 7.23): a walk from one building to another, a short
/// sleep. Longer keeps device connections open for peers that will not come back.
pub const CARRIERLESS_LIFETIME: Duration = Duration::from_secs(20 * 60);

/// The most carriers of one session at a time: one in use, one being tried, and two that drain.
pub const MAX_CARRIERS: usize = 4;

/// The most carriers that are kept beyond these only to be left: a link that is silent is dropped within 33 s, and one that replaces it
/// takes 3 s to fall silent.
const MAX_GIVEN_UP: usize = 16;

/// The most datagrams that wait in each direction of one session (Rule 7.18); the oldest gives way. They are
/// of use only while they are fresh.
pub const MAX_DATAGRAMS: usize = 64;

/// How a session behaves; the same for all sessions of a node, as a rule.
#[derive(Clone, Debug)]
pub struct Config {
    /// The largest receive window, and about the largest send buffer, in bytes; at least [`WINDOW_MIN`] is
    /// used.
    pub max_window: u64,
    /// What all sessions of the node share.
    pub budget: Budget,
}

/// One end of the byte stream of a tunnel.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    role: Role,
    phase: Phase,
    send: SendHalf,
    receive: ReceiveHalf,
    /// Ascending by number, at most [`MAX_CARRIERS`].
    carriers: Vec<Carrier>,
    /// The number that the next carrier must reach at least.
    next_carrier: u32,
    /// Opener: the highest carrier was lost before RESUME was answered on it.
    has_lost_move: bool,
    ack: AckPlan,
    carrierless_at: Option<Instant>,
    /// A first frame has been handed out, so the peer may know the session.
    is_announced: bool,
    /// The session has ended here and the peer may not know it yet.
    is_end_owed: bool,
    datagrams_in: VecDeque<Bytes>,
    datagrams_out: VecDeque<Bytes>,
    datagrams_dropped: u64,
}

#[derive(Debug)]
enum Role {
    /// The user-node, which chose the session id and attaches carriers.
    Opener { request: Bytes },
    /// The tunnel-node.
    Acceptor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Opener: no OPENED yet.
    Opening,
    /// Acceptor: the local node has not decided yet.
    Asked,
    Open,
    Ended(End),
}

/// When the peer hears about what arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AckPlan {
    None,
    At(Instant),
    /// As soon as the carrier in use takes it.
    Due,
}

impl AckPlan {
    fn at_latest(&mut self, at: Instant) {
        if *self == Self::None {
            *self = Self::At(at);
        }
    }
}

impl Session {
    /// Makes the opener's end. The first [`attach`](Self::attach) sends OPEN with this request, 1 to 512
    /// bytes.
    ///
    /// # Errors
    /// If the request has another length.
    pub fn open(id: SessionId, request: Bytes, config: &Config, now: Instant) -> Result<Self, AttachError> {
        if request.is_empty() || request.len() > MAX_REQUEST {
            return Err(AttachError::RequestLength(request.len()));
        }
        Ok(Self::new(id, Role::Opener { request }, Phase::Opening, FIRST_CREDIT, config, now))
    }

    /// Makes the acceptor's end for an OPEN with this limit; the stream that brought it is carrier 0.
    ///
    /// It takes the opener's first bytes at once, and sends nothing before [`confirm`](Self::confirm).
    pub fn accept(id: SessionId, limit: u64, config: &Config, now: Instant) -> Self {
        let mut session = Self::new(id, Role::Acceptor, Phase::Asked, limit, config, now);
        session.carriers.push(Carrier::new(CarrierNumber(0), Greeting::Opened));
        session.next_carrier = 1;
        session.carrierless_at = None;
        session
    }

    fn new(id: SessionId, role: Role, phase: Phase, limit: u64, config: &Config, now: Instant) -> Self {
        Self {
            id,
            role,
            phase,
            send: SendHalf::new(limit, config.max_window, &config.budget),
            receive: ReceiveHalf::new(config.max_window, &config.budget, now),
            carriers: Vec::new(),
            next_carrier: 0,
            has_lost_move: false,
            ack: AckPlan::None,
            carrierless_at: Some(now),
            is_announced: phase == Phase::Asked,
            is_end_owed: false,
            datagrams_in: VecDeque::new(),
            datagrams_out: VecDeque::new(),
            datagrams_dropped: 0,
        }
    }

    /// Returns the session's id.
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// Returns where the session stands.
    pub const fn state(&self) -> State {
        match self.phase {
            Phase::Opening => State::Opening,
            Phase::Asked => State::Asked,
            Phase::Open => State::Open,
            Phase::Ended(end) => State::Ended(end),
        }
    }

    /// Returns whether nothing is left to do for carriers: once the application has read what it wants, the
    /// value can be dropped.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Ended(_)) && self.carriers.is_empty() && !self.is_end_owed
    }

    /// Returns what the session did so far.
    pub const fn stats(&self) -> Stats {
        Stats {
            written_bytes: self.send.written(),
            acked_bytes: self.send.acked(),
            read_bytes: self.receive.read_bytes(),
            resent_bytes: self.send.resent,
            datagrams_dropped: self.datagrams_dropped,
        }
    }

    /// Acceptor: grants the opening. Without effect in any other state.
    pub fn confirm(&mut self) {
        if self.phase == Phase::Asked {
            self.phase = Phase::Open;
        }
    }

    /// Returns how many bytes [`write`](Self::write) takes now.
    pub fn writable(&self) -> usize {
        match self.phase {
            Phase::Ended(_) => 0,
            Phase::Opening | Phase::Asked | Phase::Open => {
                usize::try_from(self.send.writable()).unwrap_or(usize::MAX)
            }
        }
    }

    /// Takes bytes off the front of `bytes`, as many as there is room for, and returns how many. They are
    /// shared, not copied, until the peer has acknowledged them.
    ///
    /// # Errors
    /// After [`finish`](Self::finish), or when the session has ended.
    pub fn write(&mut self, bytes: &mut Bytes) -> Result<usize, WriteError> {
        self.check_writable()?;
        Ok(self.send.write(bytes))
    }

    /// Says that the application writes no more; the other direction goes on.
    pub fn finish(&mut self) {
        if !matches!(self.phase, Phase::Ended(_)) {
            self.send.finish();
        }
    }

    /// Ends both directions at once and forgets all bytes; as an answer to OPEN it refuses. Without effect on
    /// a session that has ended.
    pub fn reset(&mut self, code: Code) {
        if !matches!(self.phase, Phase::Ended(_)) {
            self.receive.clear();
            self.end(End::ResetHere(code));
            self.is_end_owed = self.is_announced;
        }
    }

    /// Ends both directions at once, and does not try to tell the peer: there is no way to it.
    pub fn give_up(&mut self, code: Code) {
        self.reset(code);
        self.is_end_owed = false;
    }

    /// Takes the next bytes that arrived.
    ///
    /// After reading, there may be frames to send: room for the peer.
    pub fn read(&mut self, now: Instant) -> Read {
        let round_trip = self.active().map_or(Duration::ZERO, |carrier| carrier.round_trip);
        if let Some(bytes) = self.receive.read(round_trip, now) {
            self.schedule_ack(now);
            return Read::Bytes(bytes);
        }
        match self.phase {
            Phase::Ended(end) => end.code().map_or(Read::Finished, Read::Reset),
            Phase::Opening | Phase::Asked | Phase::Open if self.receive.is_finished() => Read::Finished,
            Phase::Opening | Phase::Asked | Phase::Open => Read::Pending,
        }
    }

    /// Sends a datagram of at most 1,500 bytes, if and when a carrier takes it; the oldest gives way when
    /// [`MAX_DATAGRAMS`] wait.
    ///
    /// # Errors
    /// If it is too long, or the session was finished or has ended.
    pub fn write_datagram(&mut self, datagram: Bytes) -> Result<(), WriteError> {
        self.check_writable()?;
        if datagram.len() > MAX_DATAGRAM {
            return Err(WriteError::TooLong(datagram.len()));
        }
        self.datagrams_dropped += push_fresh(&mut self.datagrams_out, datagram);
        Ok(())
    }

    /// Takes the next datagram that arrived.
    pub fn read_datagram(&mut self) -> Option<Bytes> {
        self.datagrams_in.pop_front()
    }

    /// Sets the largest receive window from now on. What the peer was promised already stays promised.
    pub fn set_max_window(&mut self, bytes: u64) {
        self.receive.set_max_window(bytes);
    }

    /// Opener: gives the session another carrier and returns its number; its first frame is OPEN or RESUME.
    ///
    /// `round_trip` is the link's, zero if unknown.
    ///
    /// # Errors
    /// If this is the acceptor, the session is over, is being opened, or has too many carriers.
    pub fn attach(&mut self, round_trip: Duration) -> Result<CarrierNumber, AttachError> {
        if !matches!(self.role, Role::Opener { .. }) {
            return Err(AttachError::WrongRole);
        }
        if matches!(self.phase, Phase::Ended(_)) && !self.is_end_owed {
            return Err(AttachError::Ended);
        }
        let number = CarrierNumber(self.next_carrier);
        if self.phase == Phase::Opening && self.has_healthy_carrier() {
            return Err(AttachError::NotOpened);
        }
        let resend = !self.has_healthy_carrier() || self.is_move_in_doubt();
        if resend {
            self.make_room();
        }
        let greeting = if number.0 == 0 { Greeting::Open } else { Greeting::Resume { resend } };
        self.add_carrier(number, greeting, round_trip)?;
        self.has_lost_move = false;
        Ok(number)
    }

    /// Acceptor: gives the session the carrier that a RESUME of the same peer asks for.
    ///
    /// # Errors
    /// To be answered with [`AttachError::code`].
    pub fn resume(&mut self, resume: &Resume, round_trip: Duration, now: Instant) -> Result<(), AttachError> {
        if !matches!(self.role, Role::Acceptor) {
            return Err(AttachError::WrongRole);
        }
        if self.is_over() {
            return Err(AttachError::Ended);
        }
        if resume.carrier.0 < self.next_carrier || !resume.session.ct_eq(&self.id) {
            return Err(AttachError::Stale);
        }
        let resend = !self.has_healthy_carrier();
        if resend || resume.resend {
            self.make_room();
        }
        self.add_carrier(resume.carrier, Greeting::Resumed { resend }, round_trip)?;
        self.on_resumed(resume.carrier, resume.received, resume.limit, resend || resume.resend, now);
        Ok(())
    }

    /// Gives up the oldest carrier when there is room for no other. Only for a carrier on which everything is sent again that was
    /// not acknowledged: nothing is waited for then on those before it.
    fn make_room(&mut self) {
        if self.counted() < MAX_CARRIERS {
            return;
        }
        if let Some(oldest) = self.carriers.iter_mut().find(|carrier| !carrier.is_given_up) {
            oldest.is_given_up = true;
            oldest.is_replaced = true;
        }
        if self.carriers.len() >= MAX_GIVEN_UP {
            self.carriers.remove(0);
        }
    }

    fn counted(&self) -> usize {
        self.carriers.iter().filter(|carrier| !carrier.is_given_up).count()
    }

    fn add_carrier(
        &mut self,
        number: CarrierNumber,
        greeting: Greeting,
        round_trip: Duration,
    ) -> Result<(), AttachError> {
        if self.counted() >= MAX_CARRIERS {
            return Err(AttachError::TooMany);
        }
        self.next_carrier = number.0.checked_add(1).ok_or(AttachError::TooMany)?;
        let mut carrier = Carrier::new(number, greeting);
        carrier.round_trip = round_trip;
        carrier.is_early = self.phase == Phase::Opening;
        self.carriers.push(carrier);
        self.carrierless_at = None;
        Ok(())
    }

    /// Tells that a carrier is lost: nothing comes from there any more. What it may have lost is sent again.
    pub fn detach(&mut self, number: CarrierNumber, now: Instant) {
        let Some(index) = self.carriers.iter().position(|carrier| carrier.number == number) else {
            return;
        };
        let carrier = self.carriers.remove(index);
        self.has_lost_move |= self.is_highest(&carrier) && carrier.awaits_resumed();
        self.send_again(&carrier);
        if let Some(left) = self.carriers.last_mut().filter(|left| left.number < carrier.number) {
            // What was to take its place is gone, and the peer may never have heard of it.
            left.is_replaced = left.has_received_last;
        }
        if carrier.greeting == Greeting::Open {
            // OPEN was never sent, so the next carrier is the first.
            self.next_carrier = 0;
        }
        self.acknowledge_again(&carrier);
        self.note_carriers(now);
    }

    /// Tells whether a carrier's link is suspect: no answer for some seconds, but not known to be dead.
    pub fn set_suspect(&mut self, number: CarrierNumber, is_suspect: bool) {
        let Some(carrier) = self.carriers.iter_mut().find(|carrier| carrier.number == number) else {
            return;
        };
        let became_suspect = is_suspect && !carrier.is_suspect;
        carrier.is_suspect = is_suspect;
        let carrier = carrier.clone();
        if became_suspect && self.has_healthy_carrier() {
            self.send_again(&carrier);
            self.acknowledge_again(&carrier);
        }
    }

    /// Tells the round trip that a carrier's link measured; windows grow by it.
    pub fn set_round_trip(&mut self, number: CarrierNumber, round_trip: Duration) {
        if let Some(carrier) = self.carriers.iter_mut().find(|carrier| carrier.number == number) {
            carrier.round_trip = round_trip;
        }
    }

    /// Returns whether a carrier belongs to the session: it was attached, and neither lost nor left by both sides.
    pub fn has_carrier(&self, number: CarrierNumber) -> bool {
        self.carriers.iter().any(|carrier| carrier.number == number)
    }

    /// Returns whether the session was ever resumed: if so, bytes that were written before the peer's first answer may have reached its
    /// application although the session has failed.
    pub const fn was_resumed(&self) -> bool {
        self.next_carrier > 1
    }

    /// Returns the carrier to which new frames go (Rule 7.20).
    pub fn carrier_in_use(&self) -> Option<CarrierNumber> {
        self.active().map(|carrier| carrier.number)
    }

    /// Returns whether the opener should attach a carrier for the session to go on.
    pub fn needs_carrier(&self) -> bool {
        let needs = match self.phase {
            // On the highest carrier, the peer's last frame may still come.
            Phase::Ended(_) => {
                let highest = self.carriers.last().filter(|highest| self.is_highest(highest));
                let is_hopeful = highest.is_some_and(|c| !c.is_suspect && !c.has_received_last);
                self.is_end_owed && !is_hopeful
            }
            Phase::Opening | Phase::Asked | Phase::Open => {
                !self.has_healthy_carrier() || self.is_move_in_doubt()
            }
        };
        matches!(self.role, Role::Opener { .. }) && needs
    }

    /// Returns the carriers that have frames to send. Ask after every call that may have changed something.
    pub fn ready(&self) -> impl Iterator<Item = CarrierNumber> + '_ {
        self.carriers.iter().map(|carrier| carrier.number).filter(|number| self.is_ready(*number))
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.carrierless_at.is_some_and(|at| now - at >= CARRIERLESS_LIFETIME) {
            self.carrierless_at = None;
            if !matches!(self.phase, Phase::Ended(_)) {
                self.end(End::Expired);
            }
            self.is_end_owed = false;
        }
        if let AckPlan::At(at) = self.ack
            && at <= now
        {
            self.ack = AckPlan::Due;
        }
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout) at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let ack_at = match self.ack {
            AckPlan::At(at) => Some(at),
            // One that is due waits for its carrier, not for the clock.
            AckPlan::None | AckPlan::Due => None,
        };
        let life_ends_at = self.carrierless_at.map(|at| at.after(CARRIERLESS_LIFETIME));
        ack_at.into_iter().chain(life_ends_at).min()
    }

    const fn check_writable(&self) -> Result<(), WriteError> {
        match self.phase {
            Phase::Ended(_) => Err(WriteError::Ended),
            Phase::Opening | Phase::Asked | Phase::Open if self.send.is_finished() => {
                Err(WriteError::Finished)
            }
            Phase::Opening | Phase::Asked | Phase::Open => Ok(()),
        }
    }
}

/// Puts a datagram at the end and returns how many gave way.
fn push_fresh(queue: &mut VecDeque<Bytes>, datagram: Bytes) -> u64 {
    let is_full = queue.len() >= MAX_DATAGRAMS;
    if is_full {
        queue.pop_front();
    }
    queue.push_back(datagram);
    is_full.into()
}
