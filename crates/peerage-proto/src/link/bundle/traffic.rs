//! Frames between links and sessions.

use bytes::{Bytes, BytesMut};
use peerage_wire::frame::{CarrierNumber, Code, Encoded, Resume, StreamFrame, StreamId};
use peerage_wire::open::Open;
use peerage_wire::time::Instant;

use super::{Bundle, Event, HEAD_INTERVAL, LinkId, MAX_SESSIONS, Place};
use crate::link::{self, Closed};
use crate::session::{Lane, Session};

impl Bundle {
    /// Takes out what a link has received and not decoded yet, so that more can be appended while the bundle is used otherwise;
    /// give it back with [`handle_input`](Self::handle_input).
    pub fn take_input(&mut self, id: LinkId) -> BytesMut {
        self.links.get_mut(&id).map(|carrier| carrier.link.take_input()).unwrap_or_default()
    }

    /// Takes back what [`take_input`](Self::take_input) gave, with received bytes behind it, and hands its frames to the sessions.
    pub fn handle_input(&mut self, id: LinkId, input: BytesMut, now: Instant) {
        let Some(carrier) = self.links.get_mut(&id) else { return };
        carrier.link.handle_taken(input, now);
        self.drain_events(id, now);
        self.note_round_trip(id);
        self.settle(now);
    }

    /// Takes frames to write on a link, in order, up to about `max_bytes`. Returns whether there may be more.
    pub fn poll_output(
        &mut self,
        id: LinkId,
        max_bytes: usize,
        now: Instant,
        out: &mut Vec<Encoded>,
    ) -> bool {
        let Some(carrier) = self.links.get_mut(&id) else { return false };
        let (sessions, touched) = (&mut self.sessions, &mut self.touched);
        let streams = &carrier.streams;
        let pull = |stream: StreamId, lane: Lane| {
            let (key, number) = streams.get(&stream)?;
            let tunnel = sessions.get_mut(key)?;
            let frame = tunnel.session.poll_frame(*number, lane, now)?;
            // What follows from other frames is looked at when something arrives.
            if matches!(frame, StreamFrame::Reset(_) | StreamFrame::Leave) || tunnel.session.is_over() {
                touched.insert(*key);
            }
            Some(frame)
        };
        carrier.link.poll_output(max_bytes, now, pull, out);
        if let Some(code) = self.is_ending
            && !carrier.link.wants_output()
            && carrier.link.closed().is_none()
        {
            carrier.link.close(code);
            carrier.link.poll_output(max_bytes, now, |_, _| None, out);
            self.drain_events(id, now);
        }
        self.settle(now);
        self.links.get(&id).is_some_and(|carrier| carrier.link.wants_output())
    }

    /// Hands what a link has to say to those whom it concerns.
    pub(super) fn drain_events(&mut self, id: LinkId, now: Instant) {
        while let Some(carrier) = self.links.get_mut(&id) {
            let Some(event) = carrier.link.poll_event(now) else { break };
            self.on_event(id, event, now);
        }
        if self.links.get(&id).is_some_and(|carrier| carrier.link.wants_output()) {
            self.writable.insert(id);
        }
    }

    fn on_event(&mut self, id: LinkId, event: link::Event, now: Instant) {
        let Some(carrier) = self.links.get_mut(&id) else { return };
        match event {
            link::Event::Up => carrier.up_at = Some(now),
            link::Event::OpenAsked { stream, limit, request } => {
                self.on_open(id, (stream, limit, &request), now);
            }
            link::Event::ResumeAsked { stream, resume } => self.on_resume(id, stream, &resume, now),
            link::Event::Frame { stream, frame } => match carrier.streams.get(&stream) {
                Some((key, number)) => {
                    if let Some(tunnel) = self.sessions.get_mut(key) {
                        tunnel.session.handle_frame(*number, frame, now);
                        self.touched.insert(*key);
                    }
                }
                None => carrier.link.refuse(stream, Code::UnknownSession, now),
            },
            link::Event::Suspect | link::Event::Trusted => {
                let is_suspect = event == link::Event::Suspect;
                let is_asked = std::mem::take(&mut carrier.is_asked);
                if is_suspect && !is_asked {
                    self.note_outage(id, now);
                    self.events.push_back(Event::Silent(id));
                    self.ask_others(id, now);
                }
                let Some(carrier) = self.links.get_mut(&id) else { return };
                for (key, number) in carrier.streams.values() {
                    if let Some(tunnel) = self.sessions.get_mut(key) {
                        tunnel.session.set_suspect(*number, is_suspect);
                        self.touched.insert(*key);
                    }
                }
            }
            link::Event::Head(record) => {
                let is_early = carrier.head_at.is_some_and(|at| now - at < HEAD_INTERVAL);
                let is_known = self.head.as_ref() == Some(&record);
                if !is_early && !is_known {
                    carrier.head_at = Some(now);
                    self.events.push_back(Event::Head(record));
                }
            }
            link::Event::Closed(closed) => self.on_closed(id, closed, now),
        }
    }

    /// A link has ended: its sessions go on elsewhere, unless the reason is one that every other link would meet as well.
    fn on_closed(&mut self, id: LinkId, closed: Closed, now: Instant) {
        let Some(carrier) = self.links.get_mut(&id) else { return };
        let streams = std::mem::take(&mut carrier.streams);
        if !carrier.link.is_suspect() && !matches!(closed, Closed::Here(_)) {
            self.note_outage(id, now);
        }
        let code = match closed {
            Closed::ByPeer(code) | Closed::Here(code) => code,
            Closed::Violated(violation) => violation.code(),
            Closed::NoHello | Closed::Silent => Code::Expired,
        };
        if matches!(code, Code::WrongPeer | Code::UnsupportedVersion) {
            for (key, _) in streams.values() {
                if let Some(tunnel) = self.sessions.get_mut(key) {
                    tunnel.session.give_up(code);
                }
            }
        }
        self.writable.insert(id);
        self.detach_all(streams, now);
    }

    fn on_open(&mut self, id: LinkId, (stream, limit, request): (StreamId, u64, &Bytes), now: Instant) {
        let is_full = self.sessions.len() >= MAX_SESSIONS || !self.config.session.budget.admits();
        let Some(carrier) = self.links.get_mut(&id) else { return };
        let Ok(open) = Open::decode(request) else {
            return carrier.link.refuse(stream, Code::BadRequest, now);
        };
        if is_full || self.is_ending.is_some() {
            let code = if is_full { Code::Limit } else { Code::Shutdown };
            return carrier.link.refuse(stream, code, now);
        }
        if self.sessions.values().any(|t| !t.is_opener && t.session.id().ct_eq(&open.session)) {
            return carrier.link.refuse(stream, Code::BadRequest, now);
        }
        let mut session = Session::accept(open.session, limit, &self.config.session, now);
        session.set_round_trip(CarrierNumber(0), carrier.link.round_trip().unwrap_or_default());
        let key = self.insert(session, false);
        self.place(key, Place { number: CarrierNumber(0), link: id, stream });
        self.events.push_back(Event::OpenAsked { session: key, open });
    }

    fn on_resume(&mut self, id: LinkId, stream: StreamId, resume: &Resume, now: Instant) {
        let Some(carrier) = self.links.get_mut(&id) else { return };
        let mut known = self.sessions.iter_mut();
        let known = known.find(|(_, t)| !t.is_opener && t.session.id().ct_eq(&resume.session));
        let Some((key, tunnel)) = known else {
            return carrier.link.refuse(stream, Code::UnknownSession, now);
        };
        let key = *key;
        let round_trip = carrier.link.round_trip().unwrap_or_default();
        match tunnel.session.resume(resume, round_trip, now) {
            Ok(()) => self.place(key, Place { number: resume.carrier, link: id, stream }),
            Err(error) => carrier.link.refuse(stream, error.code(), now),
        }
    }

    fn place(&mut self, key: super::SessionKey, place: Place) {
        if let Some(carrier) = self.links.get_mut(&place.link) {
            carrier.streams.insert(place.stream, (key, place.number));
        }
        if let Some(tunnel) = self.sessions.get_mut(&key) {
            tunnel.places.push(place);
        }
        self.touched.insert(key);
    }
}
