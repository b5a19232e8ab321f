//! Two nodes that own links and sessions, as a node's shell does.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use peerage_proto::link::{CONSENT_TCP, Config as LinkConfig, Event, Link, Side};
use peerage_proto::session::{Budget, Config, Read, Session, WINDOW_MAX};
use peerage_wire::frame::{
    self, CarrierNumber, Code, Encoded, Frame, Hello, LinkFrame, StreamFrame, StreamId,
};
use peerage_wire::id::{Domain, NodeId, SessionId};
use peerage_wire::time::Instant;

pub(crate) const START: Instant = Instant::from_micros(5_000_000);

pub(crate) fn id(byte: u8) -> NodeId {
    NodeId { domain: Domain(9), hash: [byte; 32] }
}

pub(crate) fn config(side: Side) -> LinkConfig {
    let (local, remote) = match side {
        Side::Client => (id(1), id(2)),
        Side::Server => (id(2), id(1)),
    };
    LinkConfig { side, local, remote, consent_interval: CONSENT_TCP }
}

pub(crate) fn wire(frames: &[Frame]) -> BytesMut {
    let mut out = BytesMut::new();
    for frame in frames {
        append(&mut out, &frame.encode());
    }
    out
}

pub(crate) fn append(out: &mut BytesMut, encoded: &Encoded) {
    out.put_slice(&encoded.header);
    out.put_slice(&encoded.payload);
}

pub(crate) fn frames_of(bytes: &mut BytesMut) -> Vec<Frame> {
    std::iter::from_fn(|| frame::decode(bytes).unwrap()).collect()
}

pub(crate) fn hello_to(side: Side) -> Frame {
    let config = config(side);
    Frame::Link(LinkFrame::Hello(Hello {
        version: frame::VERSION,
        sender: config.remote,
        receiver: config.local,
    }))
}

pub(crate) fn stream(number: u32) -> StreamId {
    StreamId::new(number).unwrap()
}

pub(crate) fn session_id(number: usize) -> SessionId {
    SessionId((number as u128).to_be_bytes())
}

/// A link on which HELLO has been exchanged, and no frame waits.
pub(crate) fn link_up(side: Side) -> Link {
    let mut link = Link::new(config(side), START);
    link.handle_input(&wire(&[hello_to(side)]), START);
    assert_eq!(link.poll_event(START), Some(Event::Up));
    let sent = output(&mut link, START);
    let Some(Frame::Link(LinkFrame::Probe(echo))) = sent.last() else { panic!("{sent:?}") };
    link.handle_input(&wire(&[Frame::Link(LinkFrame::Probed(*echo))]), START);
    assert_eq!(link.poll_event(START), None);
    link
}

/// Takes what a link without sessions has to say.
pub(crate) fn output(link: &mut Link, now: Instant) -> Vec<Frame> {
    let mut encoded = Vec::new();
    link.poll_output(1 << 20, now, |_, _| None, &mut encoded);
    let mut bytes = BytesMut::new();
    for frame in &encoded {
        append(&mut bytes, frame);
    }
    frames_of(&mut bytes)
}

/// Feeds frames to a link and returns the events.
pub(crate) fn input(link: &mut Link, frames: &[Frame], now: Instant) -> Vec<Event> {
    link.handle_input(&wire(frames), now);
    std::iter::from_fn(|| link.poll_event(now)).collect()
}

/// One link of a node, with the session and carrier behind each stream.
pub(crate) struct Attached {
    pub(crate) link: Link,
    pub(crate) streams: BTreeMap<StreamId, (usize, CarrierNumber)>,
}

pub(crate) struct Node {
    pub(crate) sessions: Vec<Session>,
    pub(crate) links: Vec<Attached>,
    pub(crate) events: Vec<Event>,
    pub(crate) config: Config,
    /// What to refuse openings with.
    pub(crate) refuses: Option<Code>,
}

impl Node {
    pub(crate) fn new(side: Side, links: usize) -> Self {
        let link = || Attached { link: Link::new(config(side), START), streams: BTreeMap::new() };
        Self {
            sessions: Vec::new(),
            links: std::iter::repeat_with(link).take(links).collect(),
            events: Vec::new(),
            config: Config { max_window: WINDOW_MAX, budget: Budget::new(64 << 20) },
            refuses: None,
        }
    }

    /// Opens a tunnel on a link and returns the number of its session.
    pub(crate) fn open(&mut self, link: usize, now: Instant) -> usize {
        let number = self.sessions.len();
        let request = Bytes::copy_from_slice(&session_id(number).0);
        self.sessions.push(Session::open(session_id(number), request, &self.config, now).unwrap());
        self.attach(number, link);
        number
    }

    pub(crate) fn attach(&mut self, session: usize, link: usize) {
        let attached = &mut self.links[link];
        let carrier = self.sessions[session].attach(Duration::ZERO).unwrap();
        let stream = attached.link.open_stream().unwrap();
        attached.streams.insert(stream, (session, carrier));
    }

    /// Takes one batch of bytes to write.
    pub(crate) fn output(&mut self, link: usize, max_bytes: usize, now: Instant) -> BytesMut {
        let Attached { link, streams } = &mut self.links[link];
        for (stream, (session, carrier)) in &*streams {
            if self.sessions[*session].ready().any(|ready| ready == *carrier) {
                link.mark_ready(*stream);
            }
        }
        let mut encoded = Vec::new();
        let bytes = link.poll_output(
            max_bytes,
            now,
            |stream, lane| {
                let (session, carrier) = streams.get(&stream)?;
                self.sessions[*session].poll_frame(*carrier, lane, now)
            },
            &mut encoded,
        );
        let mut out = BytesMut::new();
        for frame in &encoded {
            append(&mut out, frame);
        }
        assert_eq!(out.len(), bytes);
        out
    }

    pub(crate) fn input(&mut self, index: usize, bytes: &[u8], now: Instant) {
        self.links[index].link.read_buffer().put_slice(bytes);
        self.links[index].link.handle_read(now);
        while let Some(event) = self.links[index].link.poll_event(now) {
            self.on_event(index, event, now);
        }
    }

    fn on_event(&mut self, index: usize, event: Event, now: Instant) {
        let Attached { link, streams } = &mut self.links[index];
        match event {
            Event::OpenAsked { stream, limit, request } => {
                if let Some(code) = self.refuses {
                    return link.refuse(stream, code, now);
                }
                let id = SessionId::try_from(&request[..]).unwrap();
                let mut session = Session::accept(id, limit, &self.config, now);
                session.confirm();
                streams.insert(stream, (self.sessions.len(), CarrierNumber(0)));
                self.sessions.push(session);
            }
            Event::ResumeAsked { stream, resume } => {
                let found = self.sessions.iter().position(|session| session.id() == resume.session);
                let Some(number) = found else {
                    return link.refuse(stream, Code::UnknownSession, now);
                };
                match self.sessions[number].resume(&resume, Duration::ZERO, now) {
                    Ok(()) => _ = streams.insert(stream, (number, resume.carrier)),
                    Err(error) => link.refuse(stream, error.code(), now),
                }
            }
            Event::Frame { stream, frame } => {
                if let Some((session, carrier)) = streams.get(&stream) {
                    self.sessions[*session].handle_frame(*carrier, frame, now);
                }
            }
            other @ (Event::Up | Event::Head(_) | Event::Suspect | Event::Trusted | Event::Closed(_)) => {
                self.events.push(other);
            }
        }
    }

    /// Loses a link and all that is under way on it.
    pub(crate) fn lose(&mut self, index: usize, now: Instant) {
        for (session, carrier) in std::mem::take(&mut self.links[index].streams).into_values() {
            self.sessions[session].detach(carrier, now);
        }
        self.links[index].link.close(Code::Shutdown);
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        for session in &mut self.sessions {
            session.handle_timeout(now);
        }
        for attached in &mut self.links {
            attached.link.handle_timeout(now);
        }
    }

    pub(crate) fn read_all(&mut self, session: usize, now: Instant) -> Vec<u8> {
        let mut out = Vec::new();
        while let Read::Bytes(bytes) = self.sessions[session].read(now) {
            out.extend_from_slice(&bytes);
        }
        out
    }
}

/// A client and a server with the same number of links between them.
pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) client: Node,
    pub(crate) server: Node,
    /// How many bytes one read brings.
    pub(crate) read_bytes: usize,
    pub(crate) batch_bytes: usize,
    /// A link on which nothing moves.
    pub(crate) stalled: Option<usize>,
}

impl Pair {
    pub(crate) fn new(links: usize) -> Self {
        Self {
            now: START,
            client: Node::new(Side::Client, links),
            server: Node::new(Side::Server, links),
            read_bytes: 100_000,
            batch_bytes: 512 * 1_024,
            stalled: None,
        }
    }

    /// Moves everything until nothing moves, delayed acknowledgements included.
    pub(crate) fn settle(&mut self) {
        let mut still = 0;
        while still < 2 {
            let mut moved = 0;
            for index in (0..self.client.links.len()).filter(|index| Some(*index) != self.stalled) {
                let (batch, read, now) = (self.batch_bytes, self.read_bytes, self.now);
                moved += exchange(&mut self.client, &mut self.server, index, batch, read, now);
                moved += exchange(&mut self.server, &mut self.client, index, batch, read, now);
            }
            if moved == 0 {
                still += 1;
                self.advance(Duration::from_millis(20));
            } else {
                still = 0;
            }
        }
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.now = self.now.after(by);
        self.client.handle_timeout(self.now);
        self.server.handle_timeout(self.now);
    }
}

fn exchange(from: &mut Node, to: &mut Node, index: usize, batch: usize, read: usize, now: Instant) -> usize {
    let bytes = from.output(index, batch, now);
    for chunk in bytes.chunks(read) {
        to.input(index, chunk, now);
    }
    bytes.len()
}

/// A frame of a stream, for hand-made input.
pub(crate) fn on(number: u32, frame: StreamFrame) -> Frame {
    Frame::Stream(stream(number), frame)
}
