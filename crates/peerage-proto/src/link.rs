//! A link: one authenticated connection between two nodes, shared by many sessions.
//!
//! A [`Link`] turns the bytes of one carrier (what is inside TLS) into frames and back. It checks HELLO,
//! keeps the table of streams, shares the way out fairly, measures the round trip, notices when the other
//! side falls silent, and closes politely when nothing needs it any more.
//!
//! **Where sessions live.** Not here: a [`Session`](crate::session::Session) outlives its links and may stand
//! on two of them during a move. The owner (a node's shell, or a simulation) keeps sessions in a map of its
//! own and remembers for each stream of each link to which session and which carrier number it belongs. It
//! moves frames between them:
//!
//! ```text
//!   socket ─▶ read_buffer, handle_read ─▶ poll_event ─▶ Event::Frame{stream, frame} ─▶ session.handle_frame
//!   socket ◀─ frames ◀─ poll_output(pull) ◀─ session.poll_frame(carrier, lane) ◀─ link.mark_ready(stream)
//! ```
//!
//! Opening a tunnel, client: `Session::open`, `session.attach`, `link.open_stream`, `link.mark_ready`; the
//! session makes OPEN and understands OPENED or RESET. Server: [`Event::OpenAsked`] carries the request; the
//! owner makes `Session::accept` at once, so that the opener's first bytes have a place, and later calls
//! `session.confirm` or `session.reset`. When nothing should be made, [`Link::refuse`] answers.
//!
//! The client of a link is the user-node on every carrier (Rule 7.1), and it alone opens streams, so the
//! numbers of the two sides cannot collide.
//!
//! **Invariants.** At most [`MAX_STREAMS`] streams. Frames are decoded only when asked for, so nothing queues
//! up inside beyond the bytes that were fed. Bytes that are no frames, or frames that no honest peer sends,
//! close the link with the reason; sessions live on and may resume elsewhere.

pub mod bundle;
mod input;
mod liveness;
mod output;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use peerage_wire::frame::{
    self, Code, Frame, Hello, LinkFrame, MAX_HEAD, Malformed, Resume, StreamFrame, StreamId,
};
use peerage_wire::id::NodeId;
use peerage_wire::time::Instant;

use self::liveness::Liveness;
pub use self::output::BATCH_BYTES;

/// The most streams of one link at a time (Rule 7.12). Each may make the server keep a first window of 64 KiB
/// before its node has decided; more would cost memory, fewer would make a busy user-node open a second link.
pub const MAX_STREAMS: usize = 256;

/// How long a link without streams is kept, so that the next tunnel opens in one round trip. Longer keeps
/// connections and NAT mappings that nobody uses, shorter dials again for the next page of a browser.
pub const IDLE_LIFETIME: Duration = Duration::from_secs(600);

/// How much longer the server waits than the client, so that it does not close under a client's OPEN.
const SERVER_PATIENCE: Duration = Duration::from_secs(30);

/// How long the peer may take for HELLO: some round trips of a bad path.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a silent TCP link waits for the next probe; common NATs and firewalls forget TCP after minutes
/// (RFC 5382 asks for more, and is not always heard).
pub const CONSENT_TCP: Duration = Duration::from_secs(50);

/// The same for a link on UDP: consent to send must be fresh (RFC 7675).
pub const CONSENT_UDP: Duration = Duration::from_secs(5);

/// How much room for received bytes [`Link::read_buffer`] makes, in bytes: some TLS records. More is held by
/// pieces that a slow application leaves there, less costs calls.
const READ_BYTES: usize = 64 * 1_024;

/// Which side of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The user-node: opens streams.
    Client,
    /// The tunnel-node.
    Server,
}

/// What a link is between.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// This node's side.
    pub side: Side,
    /// This node.
    pub local: NodeId,
    /// The node whose key the handshake proved.
    pub remote: NodeId,
    /// How long to stay silent before asking whether the peer is there: [`CONSENT_TCP`] or [`CONSENT_UDP`].
    pub consent_interval: Duration,
}

/// What a link has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer's HELLO arrived and names both nodes as expected.
    Up,
    /// Server: the client asks for a new session.
    OpenAsked {
        /// Where to answer.
        stream: StreamId,
        /// For [`Session::accept`](crate::session::Session::accept).
        limit: u64,
        /// What it asks for; not judged here.
        request: Bytes,
    },
    /// Server: the client moves a session here.
    ResumeAsked {
        /// Where to answer.
        stream: StreamId,
        /// For [`Session::resume`](crate::session::Session::resume).
        resume: Resume,
    },
    /// A frame for the session on this stream.
    Frame {
        /// Which session.
        stream: StreamId,
        /// For [`Session::handle_frame`](crate::session::Session::handle_frame).
        frame: StreamFrame,
    },
    /// A signed Head record of the peer, not yet verified.
    Head(Bytes),
    /// The peer does not answer: sessions should prefer another link.
    Suspect,
    /// It answers again.
    Trusted,
    /// Nothing more comes; what [`Link::poll_output`] still gives should be sent.
    Closed(Closed),
}

/// Why a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// This side closed it.
    Here(Code),
    /// The peer closed it.
    ByPeer(Code),
    /// The peer broke a rule.
    Violated(Violation),
    /// No HELLO within [`HELLO_TIMEOUT`].
    NoHello,
    /// Suspect for too long.
    Silent,
}

/// What a peer did that the rules forbid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The bytes are not a frame.
    #[error("malformed frame: {0}")]
    Malformed(#[from] Malformed),
    /// The first frame is not HELLO.
    #[error("the first frame is not HELLO")]
    NotHello,
    /// A second HELLO.
    #[error("a second HELLO")]
    HelloTwice,
    /// HELLO names other nodes than those whose keys the handshake proved.
    #[error("HELLO names other nodes")]
    WrongPeer,
    /// HELLO states a version that this node does not speak.
    #[error("version {0} is not supported")]
    Version(u16),
    /// The server opens a stream.
    #[error("the server opened a stream")]
    OpenByServer,
    /// OPEN or RESUME on a stream that is in use.
    #[error("a stream was opened twice")]
    StreamInUse,
    /// More than [`MAX_STREAMS`].
    #[error("too many streams")]
    TooManyStreams,
    /// A frame after LEAVE or RESET on its stream.
    #[error("a frame after the last one of its stream")]
    AfterLast,
}

impl Violation {
    /// Returns what CLOSE tells the peer.
    pub const fn code(self) -> Code {
        match self {
            Self::WrongPeer => Code::WrongPeer,
            Self::Version(_) => Code::UnsupportedVersion,
            Self::TooManyStreams => Code::Limit,
            Self::Malformed(_)
            | Self::NotHello
            | Self::HelloTwice
            | Self::OpenByServer
            | Self::StreamInUse
            | Self::AfterLast => Code::ProtocolViolation,
        }
    }
}

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Only the client opens streams.
    #[error("only the client of a link opens streams")]
    NotClient,
    /// [`MAX_STREAMS`] are open, or all numbers are used up.
    #[error("the link has its limit of streams already")]
    TooManyStreams,
    /// The link has ended.
    #[error("the link is closed")]
    Closed,
    /// A Head of no or too many bytes.
    #[error("a Head has 1 to {MAX_HEAD} bytes, not {0}")]
    HeadLength(usize),
}

/// The frames of one connection between two nodes.
#[derive(Debug)]
pub struct Link {
    config: Config,
    phase: Phase,
    created_at: Instant,
    input: BytesMut,
    events: VecDeque<Event>,
    /// Frames that go before those of sessions.
    control: VecDeque<Frame>,
    streams: BTreeMap<StreamId, Stream>,
    next_stream: Option<StreamId>,
    /// Streams that may have control frames, and those that may have others, in the order of their turns.
    urgent: VecDeque<StreamId>,
    bulk: VecDeque<StreamId>,
    liveness: Liveness,
    /// Since when there has been no stream.
    idle_at: Option<Instant>,
    discarded_frames: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    AwaitHello,
    Up,
    Closed(Closed),
}

/// The last frame on a stream without a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Farewell {
    /// There is no session, so the peer's ends.
    Refuse(Code),
    /// The session goes on elsewhere.
    Leave,
}

#[derive(Debug, Default)]
struct Stream {
    is_urgent: bool,
    is_bulk: bool,
    /// What it has used of its turn, in bytes.
    used_bytes: usize,
    /// No session stands behind it any more: frames are dropped, and this is the answer.
    farewell: Option<Farewell>,
    /// The peer may know it.
    is_announced: bool,
    has_sent_last: bool,
    has_received_last: bool,
}

impl Link {
    /// Makes a link on a carrier whose handshake is complete. Its first output is HELLO.
    pub fn new(config: Config, now: Instant) -> Self {
        let hello = Hello { version: frame::VERSION, sender: config.local, receiver: config.remote };
        Self {
            config,
            phase: Phase::AwaitHello,
            created_at: now,
            input: BytesMut::new(),
            events: VecDeque::new(),
            control: VecDeque::from([Frame::Link(LinkFrame::Hello(hello))]),
            streams: BTreeMap::new(),
            next_stream: Some(StreamId::FIRST),
            urgent: VecDeque::new(),
            bulk: VecDeque::new(),
            liveness: Liveness::new(config.consent_interval, now),
            idle_at: Some(now),
            discarded_frames: 0,
        }
    }

    /// Returns where to append received bytes, with room for some; call [`handle_read`](Self::handle_read)
    /// after.
    pub fn read_buffer(&mut self) -> &mut BytesMut {
        self.input.reserve(READ_BYTES);
        &mut self.input
    }

    /// Takes note that bytes were appended. Then take events until there are none, before reading more.
    pub fn handle_read(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Closed(_)) {
            self.input = BytesMut::new();
        } else if self.liveness.on_received(!frame::are_probes(&self.input), now) {
            self.events.push_back(Event::Trusted);
        }
    }

    /// Takes out what was received and is not decoded yet, so that more can be appended while the link is used otherwise; give
    /// it back with [`handle_taken`](Self::handle_taken).
    pub fn take_input(&mut self) -> BytesMut {
        std::mem::take(&mut self.input)
    }

    /// Takes back what [`take_input`](Self::take_input) gave, with received bytes behind it; otherwise as
    /// [`handle_read`](Self::handle_read).
    pub fn handle_taken(&mut self, input: BytesMut, now: Instant) {
        self.input = input;
        self.handle_read(now);
    }

    /// Takes received bytes by copying them; otherwise as [`read_buffer`](Self::read_buffer) with
    /// [`handle_read`](Self::handle_read).
    pub fn handle_input(&mut self, bytes: &[u8], now: Instant) {
        self.input.extend_from_slice(bytes);
        self.handle_read(now);
    }

    /// Decodes received bytes up to the next event.
    pub fn poll_event(&mut self, now: Instant) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if matches!(self.phase, Phase::Closed(_)) {
                return None;
            }
            let result = match frame::decode(&mut self.input) {
                Ok(None) => {
                    if self.input.is_empty() {
                        // An idle link holds no buffer; the next read makes one.
                        self.input = BytesMut::new();
                    }
                    return None;
                }
                Ok(Some(frame)) => self.on_frame(frame, now),
                Err(malformed) => Err(malformed.into()),
            };
            match result {
                Ok(Some(event)) => return Some(event),
                Ok(None) => {}
                Err(violation) => self.end(Closed::Violated(violation), Some(violation.code())),
            }
        }
    }

    /// Client: takes a number for a new stream. Attach a session and [`mark_ready`](Self::mark_ready) it.
    ///
    /// # Errors
    /// If this is the server, the link has its limit of streams, or has ended.
    pub fn open_stream(&mut self) -> Result<StreamId, LinkError> {
        if matches!(self.phase, Phase::Closed(_)) {
            return Err(LinkError::Closed);
        }
        if self.config.side != Side::Client {
            return Err(LinkError::NotClient);
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(LinkError::TooManyStreams);
        }
        let stream = self.next_stream.ok_or(LinkError::TooManyStreams)?;
        self.next_stream = stream.next();
        self.streams.insert(stream, Stream::default());
        self.idle_at = None;
        Ok(stream)
    }

    /// Answers an opening, or ends a stream, without a session: RESET goes out and all that still comes is
    /// dropped.
    pub fn refuse(&mut self, stream: StreamId, code: Code, now: Instant) {
        self.bid_farewell(stream, Farewell::Refuse(code), now);
    }

    /// Leaves a stream whose session goes on without it: LEAVE goes out and all that still comes is dropped.
    pub fn leave(&mut self, stream: StreamId, now: Instant) {
        self.bid_farewell(stream, Farewell::Leave, now);
    }

    fn bid_farewell(&mut self, stream: StreamId, farewell: Farewell, now: Instant) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        if entry.farewell.is_some() || entry.has_sent_last {
            return;
        }
        if entry.is_announced {
            entry.farewell = Some(farewell);
            self.mark_ready(stream);
        } else {
            self.forget(stream, now);
        }
    }

    /// Notes that the session on this stream may have frames to send.
    pub fn mark_ready(&mut self, stream: StreamId) {
        if matches!(self.phase, Phase::Closed(_)) {
            return;
        }
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        if !entry.is_urgent {
            entry.is_urgent = true;
            self.urgent.push_back(stream);
        }
        if !entry.is_bulk {
            entry.is_bulk = true;
            self.bulk.push_back(stream);
        }
    }

    /// Sends a signed Head record to the peer; an older one that still waits gives way.
    ///
    /// # Errors
    /// If it is empty or longer than 900 bytes, or the link has ended.
    pub fn send_head(&mut self, record: Bytes) -> Result<(), LinkError> {
        if record.is_empty() || record.len() > MAX_HEAD {
            return Err(LinkError::HeadLength(record.len()));
        }
        if matches!(self.phase, Phase::Closed(_)) {
            return Err(LinkError::Closed);
        }
        self.control.retain(|frame| !matches!(frame, Frame::Link(LinkFrame::Head(_))));
        self.control.push_back(Frame::Link(LinkFrame::Head(record)));
        Ok(())
    }

    /// Closes the link; CLOSE is its last output. Sessions on it should be detached.
    pub fn close(&mut self, code: Code) {
        self.end(Closed::Here(code), Some(code));
    }

    /// Makes the link suspect at once, for instance after the machine has slept: it is probed, and trusted
    /// again with the first bytes that come.
    pub fn doubt(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Closed(_)) {
            return;
        }
        if self.liveness.doubt(now) {
            self.events.push_back(Event::Suspect);
        }
        self.probe(now);
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Closed(_)) {
            return;
        }
        if self.hello_ends_at().is_some_and(|at| at <= now) {
            return self.end(Closed::NoHello, None);
        }
        if self.idle_ends_at().is_some_and(|at| at <= now) {
            return self.close(Code::Idle);
        }
        let due = self.liveness.handle_timeout(now);
        if due.is_dead {
            return self.end(Closed::Silent, None);
        }
        if due.is_suspect {
            self.events.push_back(Event::Suspect);
        }
        if due.is_probe {
            self.probe(now);
        }
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout) at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if matches!(self.phase, Phase::Closed(_)) {
            return None;
        }
        let others = [self.hello_ends_at(), self.idle_ends_at()];
        others.into_iter().flatten().chain([self.liveness.next_at()]).min()
    }

    /// Returns why the link ended, none while it lives.
    pub const fn closed(&self) -> Option<Closed> {
        match self.phase {
            Phase::Closed(closed) => Some(closed),
            Phase::AwaitHello | Phase::Up => None,
        }
    }

    /// Returns whether the peer has not answered for some seconds.
    pub const fn is_suspect(&self) -> bool {
        self.liveness.is_suspect()
    }

    /// Returns whether both directions work, as far as is known: not from when the link became suspect until a probe has come back.
    pub const fn is_proven(&self) -> bool {
        self.liveness.is_proven()
    }

    /// Returns whether something has been received within the last second.
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.liveness.is_fresh(now)
    }

    /// Returns the smoothed round trip, none before the first probe came back.
    pub const fn round_trip(&self) -> Option<Duration> {
        self.liveness.round_trip()
    }

    /// Returns whether a stream is in use: not once both sides have sent their last frame on it.
    pub fn has_stream(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Returns how many streams are open.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Returns how many frames were dropped because nothing stands behind their stream.
    pub const fn discarded_frames(&self) -> u64 {
        self.discarded_frames
    }

    /// Forgets a stream on which both sides sent their last frame.
    fn retire(&mut self, stream: StreamId, now: Instant) {
        let is_over =
            self.streams.get(&stream).is_some_and(|entry| entry.has_sent_last && entry.has_received_last);
        if is_over {
            self.forget(stream, now);
        }
    }

    fn forget(&mut self, stream: StreamId, now: Instant) {
        self.streams.remove(&stream);
        if self.streams.is_empty() {
            self.idle_at = Some(now);
            self.liveness.on_unused();
        }
    }

    fn probe(&mut self, now: Instant) {
        let echo = self.liveness.make_probe(now);
        // One that could not be sent yet is of no use any more: it would measure the time it waited.
        self.control.retain(|frame| !matches!(frame, Frame::Link(LinkFrame::Probe(_))));
        self.control.push_back(Frame::Link(LinkFrame::Probe(echo)));
    }

    fn end(&mut self, closed: Closed, tell: Option<Code>) {
        if matches!(self.phase, Phase::Closed(_)) {
            return;
        }
        self.phase = Phase::Closed(closed);
        self.input = BytesMut::new();
        self.urgent.clear();
        self.bulk.clear();
        self.control.retain(|frame| matches!(frame, Frame::Link(LinkFrame::Hello(_))));
        match tell {
            Some(code) => self.control.push_back(Frame::Link(LinkFrame::Close(code))),
            None => self.control.clear(),
        }
        self.events.push_back(Event::Closed(closed));
    }

    fn hello_ends_at(&self) -> Option<Instant> {
        (self.phase == Phase::AwaitHello).then(|| self.created_at.after(HELLO_TIMEOUT))
    }

    fn idle_ends_at(&self) -> Option<Instant> {
        let patience = match self.config.side {
            Side::Client => IDLE_LIFETIME,
            Side::Server => IDLE_LIFETIME + SERVER_PATIENCE,
        };
        self.idle_at.map(|at| at.after(patience))
    }
}

/// Whether a frame is the last one that its sender sends on its stream.
const fn is_last(frame: &StreamFrame) -> bool {
    matches!(frame, StreamFrame::Reset(_) | StreamFrame::Leave)
}
