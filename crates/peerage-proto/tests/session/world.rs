//! Two sessions, carriers between them that can be slow, cut at any byte or fall silent, and the bytes that
//! must come out.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use peerage_proto::session::{Budget, Config, End, Lane, Read, Session, State, WINDOW_MIN};
use peerage_wire::frame::{self, CarrierNumber, Code, Frame, Resume, StreamFrame, StreamId};
use peerage_wire::id::SessionId;
use peerage_wire::time::Instant;

pub(crate) const ID: SessionId = SessionId([7; 16]);

/// What each side writes, in order. Both sides differ, and the period is prime, so that no frame looks like
/// its neighbour.
static PATTERN: LazyLock<[Bytes; 2]> = LazyLock::new(|| {
    let make = |seed: u64| {
        let mut state = seed;
        let mut period: Vec<u8> = Vec::new();
        while period.len() < 65_521 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            period.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
        }
        period.truncate(65_521);
        period.repeat(65).into()
    };
    [make(1), make(2)]
});

pub(crate) fn pattern(side: Side, from: usize, len: usize) -> Bytes {
    PATTERN[side as usize].slice(from..from + len)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Opener = 0,
    Acceptor = 1,
}

pub(crate) use Side::{Acceptor, Opener};

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Opener, Acceptor];

    pub(crate) fn other(self) -> Self {
        match self {
            Opener => Acceptor,
            Acceptor => Opener,
        }
    }
}

/// One carrier: bytes under way towards each side.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// Towards the opener, towards the acceptor.
    pub(crate) under_way: [BytesMut; 2],
    arrived: [BytesMut; 2],
    /// Whether each side still has it.
    pub(crate) has_noticed_end: [bool; 2],
    pub(crate) is_cut: bool,
    /// The acceptor's session took it.
    is_accepted: bool,
    is_refused: bool,
}

/// What a side's application has done and seen.
#[derive(Debug, Default)]
pub(crate) struct App {
    pub(crate) written: usize,
    pub(crate) read: usize,
    pub(crate) is_finished: bool,
    /// How reading ended.
    pub(crate) end: Option<Read>,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) config: Config,
    pub(crate) opener: Session,
    pub(crate) acceptor: Option<Session>,
    pub(crate) wires: BTreeMap<u32, Wire>,
    pub(crate) apps: [App; 2],
    pub(crate) confirms_at_once: bool,
    /// RESUME came before OPEN: the opener gave its first carrier up too early.
    pub(crate) was_resumed_unopened: bool,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_config(Config { max_window: 1 << 20, budget: Budget::new(8 << 20) })
    }

    pub(crate) fn with_config(config: Config) -> Self {
        let now = Instant::from_micros(1_000_000);
        let opener = Session::open(ID, Bytes::from_static(b"request"), &config, now).unwrap();
        Self {
            now,
            config,
            opener,
            acceptor: None,
            wires: BTreeMap::new(),
            apps: [App::default(), App::default()],
            confirms_at_once: true,
            was_resumed_unopened: false,
        }
    }

    /// A world whose session is open on carrier 0.
    pub(crate) fn opened() -> Self {
        let mut world = Self::new();
        world.attach();
        world.settle();
        assert_eq!(world.opener.state(), State::Open);
        world
    }

    pub(crate) fn session(&mut self, side: Side) -> &mut Session {
        match side {
            Opener => &mut self.opener,
            Acceptor => self.acceptor.as_mut().expect("OPEN has arrived"),
        }
    }

    pub(crate) fn try_session(&mut self, side: Side) -> Option<&mut Session> {
        match side {
            Opener => Some(&mut self.opener),
            Acceptor => self.acceptor.as_mut(),
        }
    }

    pub(crate) fn attach(&mut self) -> u32 {
        self.try_attach().expect("a carrier can be attached")
    }

    pub(crate) fn try_attach(&mut self) -> Option<u32> {
        let number = self.opener.attach(Duration::from_millis(20)).ok()?.0;
        self.wires.insert(number, Wire::default());
        Some(number)
    }

    /// Writes up to `len` bytes of the pattern; returns how many were taken.
    pub(crate) fn write(&mut self, side: Side, len: usize) -> usize {
        let from = self.apps[side as usize].written;
        let mut bytes = pattern(side, from, len.min((4 << 20) - from));
        let Some(session) = self.try_session(side) else { return 0 };
        let room = session.writable();
        let wanted = bytes.len();
        let taken = session.write(&mut bytes).unwrap_or(0);
        assert_eq!(taken, room.min(wanted), "writable() must tell what write() takes");
        assert_eq!(taken + bytes.len(), wanted);
        self.apps[side as usize].written += taken;
        taken
    }

    pub(crate) fn finish(&mut self, side: Side) {
        if let Some(session) = self.try_session(side) {
            session.finish();
            self.apps[side as usize].is_finished = true;
        }
    }

    /// Reads up to `pieces` pieces and compares them with what the other side wrote.
    pub(crate) fn read(&mut self, side: Side, pieces: usize) {
        let now = self.now;
        for _ in 0..pieces {
            let Some(session) = self.try_session(side) else { return };
            let read = session.read(now);
            let app = &mut self.apps[side as usize];
            match read {
                Read::Bytes(bytes) => {
                    assert!(!bytes.is_empty());
                    assert_eq!(app.end, None, "no bytes follow the end");
                    let expected = pattern(side.other(), app.read, bytes.len());
                    assert!(bytes == expected, "wrong bytes at {}", app.read);
                    app.read += bytes.len();
                    assert!(app.read <= self.apps[side.other() as usize].written, "bytes nobody wrote");
                }
                Read::Pending => return,
                end @ (Read::Finished | Read::Reset(_)) => {
                    assert!(
                        app.end.is_none() || matches!(end, Read::Reset(_)) || app.end == Some(Read::Finished)
                    );
                    app.end.get_or_insert(end);
                    return;
                }
            }
        }
    }

    /// Lets a side put up to `frames` frames on a wire; returns how many.
    pub(crate) fn pump(&mut self, number: u32, side: Side, frames: usize) -> usize {
        let now = self.now;
        let mut count = 0;
        while count < frames {
            if self.wires.get(&number).is_none_or(|wire| wire.has_noticed_end[side as usize]) {
                break;
            }
            let Some(session) = self.try_session(side) else { break };
            let carrier = CarrierNumber(number);
            let is_ready = session.ready().any(|ready| ready == carrier);
            let frame = session
                .poll_frame(carrier, Lane::Control, now)
                .or_else(|| session.poll_frame(carrier, Lane::Bulk, now));
            assert_eq!(is_ready, frame.is_some(), "ready() must tell what poll_frame() gives");
            let Some(frame) = frame else { break };
            self.transmit(number, side, frame);
            count += 1;
        }
        count
    }

    /// Puts a frame on a wire as if the side's session had made it.
    pub(crate) fn transmit(&mut self, number: u32, side: Side, frame: StreamFrame) {
        let encoded = Frame::Stream(StreamId::FIRST, frame).encode();
        let wire = self.wires.get_mut(&number).unwrap();
        if !wire.is_cut {
            let queue = &mut wire.under_way[side.other() as usize];
            queue.extend_from_slice(&encoded.header);
            queue.extend_from_slice(&encoded.payload);
        }
    }

    /// Brings up to `bytes` bytes to `side`; returns how many there were.
    pub(crate) fn deliver(&mut self, number: u32, side: Side, bytes: usize) -> usize {
        let Some(wire) = self.wires.get_mut(&number) else { return 0 };
        if wire.has_noticed_end[side as usize] {
            return 0;
        }
        let queue = &mut wire.under_way[side as usize];
        let bytes = bytes.min(queue.len());
        let moved = queue.split_to(bytes);
        wire.arrived[side as usize].extend_from_slice(&moved);
        while let Some(wire) = self.wires.get_mut(&number) {
            let arrived = &mut wire.arrived[side as usize];
            let Some(frame) = frame::decode(arrived).expect("sessions make valid frames") else { break };
            let Frame::Stream(_, frame) = frame else { panic!("a session made a frame of the link") };
            self.hand_in(number, side, frame);
        }
        bytes
    }

    /// What a link and a node do with a frame.
    fn hand_in(&mut self, number: u32, side: Side, frame: StreamFrame) {
        let now = self.now;
        let carrier = CarrierNumber(number);
        if side == Opener {
            return self.opener.handle_frame(carrier, frame, now);
        }
        if let StreamFrame::Open { limit, request } = frame {
            assert_eq!(request, &b"request"[..]);
            let mut session = Session::accept(ID, limit, &self.config, now);
            if self.confirms_at_once {
                session.confirm();
            }
            self.acceptor = Some(session);
            self.wires.get_mut(&number).unwrap().is_accepted = true;
            return;
        }
        if let StreamFrame::Resume(resume) = frame {
            assert_eq!(resume.carrier, carrier);
            self.was_resumed_unopened |= self.acceptor.is_none();
            return match self.resume(&resume) {
                Ok(()) => self.wires.get_mut(&number).unwrap().is_accepted = true,
                Err(code) => {
                    self.wires.get_mut(&number).unwrap().is_refused = true;
                    self.transmit(number, Acceptor, StreamFrame::Reset(code));
                }
            };
        }
        let wire = &self.wires[&number];
        if wire.is_accepted {
            self.session(Acceptor).handle_frame(carrier, frame, now);
        } else {
            assert!(wire.is_refused, "a frame before OPEN or RESUME");
        }
    }

    fn resume(&mut self, resume: &Resume) -> Result<(), Code> {
        let known = self.acceptor.as_mut().filter(|session| !session.is_over());
        let session = known.ok_or(Code::UnknownSession)?;
        session.resume(resume, Duration::from_millis(20), self.now).map_err(|error| error.code())
    }

    /// Loses what is under way; each side notices later.
    pub(crate) fn cut(&mut self, number: u32) {
        if let Some(wire) = self.wires.get_mut(&number) {
            wire.is_cut = true;
            wire.under_way = [BytesMut::new(), BytesMut::new()];
        }
    }

    /// A side notices that a cut wire is dead.
    pub(crate) fn notice(&mut self, number: u32, side: Side) {
        let now = self.now;
        let Some(wire) = self.wires.get_mut(&number) else { return };
        if !wire.is_cut || wire.has_noticed_end[side as usize] {
            return;
        }
        wire.has_noticed_end[side as usize] = true;
        if let Some(session) = self.try_session(side) {
            session.detach(CarrierNumber(number), now);
        }
    }

    pub(crate) fn lose(&mut self, number: u32) {
        self.cut(number);
        self.notice(number, Opener);
        self.notice(number, Acceptor);
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.now = self.now.after(by);
        for side in Side::BOTH {
            let now = self.now;
            if let Some(session) = self.try_session(side) {
                session.handle_timeout(now);
                assert!(
                    session.poll_timeout().is_none_or(|at| at > now),
                    "a timeout that was served does not come back"
                );
            }
        }
    }

    /// Moves everything until nothing moves, without the clock; returns whether anything did.
    pub(crate) fn flow(&mut self) -> bool {
        let mut has_moved = false;
        loop {
            let mut moved = 0;
            for number in self.wires.keys().copied().collect::<Vec<_>>() {
                for side in Side::BOTH {
                    moved += self.pump(number, side, usize::MAX);
                    moved += self.deliver(number, side.other(), usize::MAX);
                }
            }
            if moved == 0 {
                return has_moved;
            }
            has_moved = true;
        }
    }

    /// Moves everything until nothing moves, delayed acknowledgements included; applications read nothing.
    pub(crate) fn settle(&mut self) {
        loop {
            let has_moved = self.flow();
            self.advance(Duration::from_millis(20));
            if !has_moved && !self.flow() {
                return;
            }
        }
    }

    /// Moves everything, with applications that read, until nothing moves.
    pub(crate) fn settle_reading(&mut self) {
        loop {
            let before = (self.apps[0].read, self.apps[1].read);
            self.settle();
            for side in Side::BOTH {
                self.read(side, usize::MAX);
            }
            self.settle();
            if before == (self.apps[0].read, self.apps[1].read) {
                return;
            }
        }
    }

    /// Writes `len` bytes and has them read at the other side.
    pub(crate) fn transfer(&mut self, side: Side, len: usize) {
        let mut left = len;
        while left > 0 {
            left -= self.write(side, left);
            self.settle_reading();
        }
    }

    pub(crate) fn end_of(&mut self, side: Side) -> Option<End> {
        match self.try_session(side)?.state() {
            State::Ended(end) => Some(end),
            State::Opening | State::Asked | State::Open => None,
        }
    }

    /// Checks what must hold at every moment.
    pub(crate) fn check(&mut self) {
        let config = self.config.clone();
        for side in Side::BOTH {
            let Some(session) = self.try_session(side) else { continue };
            let stats = session.stats();
            let kept = stats.written_bytes - stats.acked_bytes;
            assert!(kept <= config.max_window + WINDOW_MIN, "the send buffer holds {kept} bytes");
        }
        let first = 2 * 3 * WINDOW_MIN;
        assert!(config.budget.used_bytes() <= (8 << 20) + first, "the budget is overdrawn");
    }
}
