//! The way in of a link: frames to events.

use peerage_wire::frame::{self, Frame, Hello, LinkFrame, StreamFrame, StreamId};
use peerage_wire::time::Instant;

use super::{Closed, Event, Link, MAX_STREAMS, Phase, Side, Stream, Violation, is_last};

/// The most frames about the link itself that wait to be sent; probes beyond are not answered. An honest peer
/// sends one a second, so more would only be memory for the other kind.
const MAX_CONTROL: usize = 32;

impl Link {
    pub(super) fn on_frame(&mut self, frame: Frame, now: Instant) -> Result<Option<Event>, Violation> {
        if self.phase == Phase::AwaitHello {
            let Frame::Link(LinkFrame::Hello(hello)) = frame else {
                return Err(Violation::NotHello);
            };
            return self.on_hello(&hello, now).map(Some);
        }
        match frame {
            Frame::Link(frame) => self.on_link_frame(frame, now),
            Frame::Stream(stream, frame) => self.on_stream_frame(stream, frame, now),
        }
    }

    /// Checks who speaks (Rule 7.5).
    fn on_hello(&mut self, hello: &Hello, now: Instant) -> Result<Event, Violation> {
        if hello.version != frame::VERSION {
            return Err(Violation::Version(hello.version));
        }
        if hello.sender != self.config.remote || hello.receiver != self.config.local {
            return Err(Violation::WrongPeer);
        }
        self.phase = Phase::Up;
        // Its answer gives the first round trip, which windows need in order to grow.
        self.probe(now);
        Ok(Event::Up)
    }

    fn on_link_frame(&mut self, frame: LinkFrame, now: Instant) -> Result<Option<Event>, Violation> {
        match frame {
            LinkFrame::Hello(_) => Err(Violation::HelloTwice),
            LinkFrame::Probe(echo) => {
                if self.control.len() < MAX_CONTROL {
                    self.control.push_back(Frame::Link(LinkFrame::Probed(echo)));
                } else {
                    self.discarded_frames += 1;
                }
                Ok(None)
            }
            LinkFrame::Probed(echo) => {
                self.liveness.on_probed(echo, now);
                Ok(None)
            }
            LinkFrame::Head(record) => Ok(Some(Event::Head(record))),
            LinkFrame::Close(code) => {
                self.end(Closed::ByPeer(code), None);
                Ok(None)
            }
        }
    }

    fn on_stream_frame(
        &mut self,
        stream: StreamId,
        frame: StreamFrame,
        now: Instant,
    ) -> Result<Option<Event>, Violation> {
        match frame {
            StreamFrame::Open { limit, request } => {
                self.on_stream_opened(stream)?;
                return Ok(Some(Event::OpenAsked { stream, limit, request }));
            }
            StreamFrame::Resume(resume) => {
                self.on_stream_opened(stream)?;
                return Ok(Some(Event::ResumeAsked { stream, resume }));
            }
            StreamFrame::Opened { .. }
            | StreamFrame::Data { .. }
            | StreamFrame::Ack { .. }
            | StreamFrame::Fin { .. }
            | StreamFrame::Reset(_)
            | StreamFrame::Resumed(_)
            | StreamFrame::Datagram(_)
            | StreamFrame::Leave => {}
        }
        let Some(entry) = self.streams.get_mut(&stream) else {
            self.discarded_frames += 1;
            return Ok(None);
        };
        if entry.has_received_last {
            if matches!(frame, StreamFrame::Datagram(_)) {
                // As a datagram of its own, it may have been overtaken.
                self.discarded_frames += 1;
                return Ok(None);
            }
            return Err(Violation::AfterLast);
        }
        let is_refused = entry.farewell.is_some();
        if is_last(&frame) {
            entry.has_received_last = true;
            self.retire(stream, now);
        }
        if is_refused {
            self.discarded_frames += 1;
            return Ok(None);
        }
        if matches!(frame, StreamFrame::Data { .. } | StreamFrame::Datagram(_)) {
            self.liveness.on_data(now);
        }
        Ok(Some(Event::Frame { stream, frame }))
    }

    fn on_stream_opened(&mut self, stream: StreamId) -> Result<(), Violation> {
        if self.config.side == Side::Client {
            return Err(Violation::OpenByServer);
        }
        if self.streams.contains_key(&stream) {
            return Err(Violation::StreamInUse);
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(Violation::TooManyStreams);
        }
        self.streams.insert(stream, Stream { is_announced: true, ..Stream::default() });
        self.idle_at = None;
        Ok(())
    }
}
