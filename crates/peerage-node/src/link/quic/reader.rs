//! The way in of a link on QUIC: whole frames, from each stream in its order.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use peerage_proto::link::bundle::LinkId;
use peerage_wire::frame::{self, Outline, StreamId};
use quinn::{Connection, ReadError, RecvStream, SendStream};
use tokio::sync::watch;
use tokio::time;

use super::super::channel::ChannelError;
use super::super::driver::FAREWELL_TIMEOUT;
use super::super::peer::Peer;
use super::driver::Outgoing;

/// How many pieces of a stream are taken at a time; each is what one packet carried. More makes other streams wait, fewer costs locks.
const PIECES: usize = 32;

/// One link, as those see it who read its streams.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) peer: Arc<Peer>,
    pub(super) link: LinkId,
    /// The peer has said HELLO, which must come first and has a stream of its own.
    pub(super) greeted: watch::Sender<bool>,
    pub(super) outgoing: Outgoing,
    pub(super) parting: Parting,
}

/// What makes the end of a link the last that is heard of it. The peer has sent it after all that ends with the link (Rule 7.35), but it
/// comes on a stream of its own, and may be read first.
#[derive(Clone, Default)]
pub(super) struct Parting {
    /// The peer has said CLOSE: who reads a session takes what is there, and ends.
    begun: watch::Sender<bool>,
    /// How many read a session.
    reading: watch::Sender<usize>,
}

impl Parting {
    /// Counts somebody who reads a session, until the value is dropped.
    fn reading(&self) -> Reading {
        self.reading.send_modify(|count| *count += 1);
        Reading(self.reading.clone())
    }

    /// Waits until all that is there has been read.
    async fn heard_out(&self) {
        self.begun.send_replace(true);
        let mut reading = self.reading.subscribe();
        // None of them waits for the network, so this takes as long as their work does.
        let _ = time::timeout(FAREWELL_TIMEOUT, reading.wait_for(|count| *count == 0)).await;
    }
}

struct Reading(watch::Sender<usize>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Whose frames a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Link,
    /// The first frame, OPEN or RESUME, will tell.
    Unknown,
    Session(StreamId),
}

impl Reader {
    /// Reads the frames of the link.
    pub(super) async fn read_control(self, stream: RecvStream) -> Result<(), ChannelError> {
        self.read(stream, Owner::Link, None).await
    }

    /// Reads what answers on a stream that this side has opened.
    pub(super) fn read_answers(
        self,
        stream: RecvStream,
        id: StreamId,
    ) -> impl Future<Output = Result<(), ChannelError>> {
        self.read_session(stream, Owner::Session(id), None)
    }

    /// Reads a stream that the peer has opened.
    pub(super) fn read_opened(
        self,
        (send, receive): (SendStream, RecvStream),
    ) -> impl Future<Output = Result<(), ChannelError>> {
        self.read_session(receive, Owner::Unknown, Some(send))
    }

    /// Reads a session's stream. It counts from now on, not only when it is first polled.
    fn read_session(
        self,
        stream: RecvStream,
        owner: Owner,
        answers: Option<SendStream>,
    ) -> impl Future<Output = Result<(), ChannelError>> {
        let reading = self.parting.reading();
        async move {
            let result = self.read(stream, owner, answers).await;
            drop(reading);
            result
        }
    }

    async fn read(
        self,
        mut stream: RecvStream,
        mut owner: Owner,
        mut answers: Option<SendStream>,
    ) -> Result<(), ChannelError> {
        let mut buffer = BytesMut::new();
        let mut has_ended = false;
        let mut parting = self.parting.begun.subscribe();
        loop {
            let mut pieces: [Bytes; PIECES] = Default::default();
            let taken = tokio::select! {
                // What is there goes first.
                biased;
                taken = stream.read_chunks(&mut pieces) => taken,
                Ok(_) = parting.wait_for(|begun| *begun), if owner != Owner::Link => return Ok(()),
            };
            let Some(count) = taken.map_err(failed)? else {
                // A stream ends with its last frame, and so does the link's.
                return if has_ended && buffer.is_empty() { Ok(()) } else { Err(ChannelError::Misplaced) };
            };
            buffer.reserve(pieces.iter().map(Bytes::len).sum());
            for piece in pieces.iter().take(count) {
                buffer.extend_from_slice(piece);
            }
            let mut whole = 0;
            while let Some(rest) = buffer.get(whole..)
                && let Some(outline) = outlined(rest)
            {
                owner = self.claim(owner, &outline, &mut answers)?;
                if rest.len() < outline.size_bytes {
                    break;
                }
                whole += outline.size_bytes;
                has_ended |= outline.is_last || outline.closes;
                if outline.closes {
                    self.parting.heard_out().await;
                }
            }
            if is_malformed(buffer.get(whole..)) {
                // The link itself judges, and says why it ends.
                whole = buffer.len();
            }
            if whole > 0 {
                self.deliver(buffer.split_to(whole), owner == Owner::Link).await;
            }
            if buffer.is_empty() {
                // A stream that is idle holds no memory.
                buffer = BytesMut::new();
            }
            tokio::task::consume_budget().await;
        }
    }

    /// Checks that a frame belongs on its stream; the first one says whose it is.
    fn claim(
        &self,
        owner: Owner,
        outline: &Outline,
        answers: &mut Option<SendStream>,
    ) -> Result<Owner, ChannelError> {
        match (owner, outline.stream) {
            (Owner::Link, None) => Ok(owner),
            (Owner::Session(id), Some(stream)) if id == stream => Ok(owner),
            (Owner::Unknown, Some(stream)) if outline.begins => {
                if let Some(answers) = answers.take() {
                    // Before the frame is heard of, so that its answer finds the stream.
                    self.outgoing.insert(stream, answers);
                }
                Ok(Owner::Session(stream))
            }
            (Owner::Link | Owner::Unknown | Owner::Session(_), _) => Err(ChannelError::Misplaced),
        }
    }

    /// Reads datagrams, each of which is one DATAGRAM frame.
    pub(super) async fn read_datagrams(self, connection: Connection) -> Result<(), ChannelError> {
        loop {
            let datagram = connection.read_datagram().await?;
            let is_one = outlined(&datagram)
                .is_some_and(|outline| outline.is_datagram && outline.size_bytes == datagram.len());
            if !is_one {
                return Err(ChannelError::Misplaced);
            }
            // Before HELLO there is nobody for whom it could be.
            if *self.greeted.borrow() {
                self.deliver(BytesMut::from(datagram), false).await;
            }
            tokio::task::consume_budget().await;
        }
    }

    /// Hands whole frames to the sessions.
    async fn deliver(&self, frames: BytesMut, is_link: bool) {
        if !is_link {
            // It goes on when the peer has said HELLO, or not at all.
            let _ = self.greeted.subscribe().wait_for(|greeted| *greeted).await;
        }
        self.peer.act(|state, now| {
            let mut input = state.bundle.take_input(self.link);
            input.unsplit(frames);
            state.bundle.handle_input(self.link, input, now);
        });
        if is_link {
            self.greeted.send_replace(true);
        }
    }
}

/// Returns what the first frame says of itself; none if it is not there yet, or is none.
fn outlined(bytes: &[u8]) -> Option<Outline> {
    frame::outline(bytes).ok().flatten()
}

fn is_malformed(bytes: Option<&[u8]>) -> bool {
    bytes.is_some_and(|bytes| frame::outline(bytes).is_err())
}

fn failed(error: ReadError) -> ChannelError {
    match error {
        ReadError::ConnectionLost(error) => error.into(),
        ReadError::Reset(_)
        | ReadError::ClosedStream
        | ReadError::IllegalOrderedRead
        | ReadError::ZeroRttRejected => ChannelError::Misplaced,
    }
}
