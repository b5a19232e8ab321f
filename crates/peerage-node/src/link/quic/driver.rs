//! The task of one link on QUIC: frames from its sessions to their streams, and its end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use peerage_proto::link::bundle::LinkId;
use peerage_proto::link::{Closed, Side};
use peerage_wire::frame::{self, Code, Encoded, StreamId};
use quinn::{Connection, RecvStream, SendStream, WriteError};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time;

use super::super::channel::ChannelError;
use super::super::driver::{FAREWELL_TIMEOUT, closed, code_of};
use super::super::lock;
use super::super::peer::Peer;
use super::reader::{Parting, Reader};
use super::reason;

/// About how much is taken from the sessions at a time, in bytes. More makes a frame that becomes urgent wait longer, less costs locks.
const BATCH_BYTES: usize = 128 * 1_024;

/// Frames of the link go before those of sessions (Rule 7.7).
const CONTROL_PRIORITY: i32 = 1;

/// The streams on which the sessions of a link send.
#[derive(Clone, Default)]
pub(super) struct Outgoing {
    streams: Arc<Mutex<BTreeMap<StreamId, SendStream>>>,
}

impl Outgoing {
    pub(super) fn insert(&self, id: StreamId, stream: SendStream) {
        lock(&self.streams).insert(id, stream);
    }

    fn take(&self, id: StreamId) -> Option<SendStream> {
        lock(&self.streams).remove(&id)
    }
}

/// Drives a link until it ends, and returns why.
pub(in super::super) async fn run(
    peer: Arc<Peer>,
    id: LinkId,
    kick: Arc<Notify>,
    connection: Connection,
    side: Side,
) -> Code {
    let code = match drive((&peer, id), &kick, &connection, side).await {
        Ok(closed) => code_of(closed),
        Err(error) => {
            tracing::debug!(peer = ?peer.id, %error, "a link broke");
            match error {
                ChannelError::Misplaced => Code::ProtocolViolation,
                ChannelError::Io(_)
                | ChannelError::Tls(_)
                | ChannelError::Quic(_)
                | ChannelError::Ended
                | ChannelError::NotPrepared
                | ChannelError::NotJoined
                | ChannelError::Full(_) => closed(&peer, id).map_or(Code::Expired, code_of),
            }
        }
    };
    connection.close(reason(code), b"");
    // From here on its sessions go on elsewhere.
    peer.act(|state, now| {
        state.bundle.link_lost(id, now);
        state.links.remove(&id);
    });
    code
}

async fn drive(
    (peer, id): (&Arc<Peer>, LinkId),
    kick: &Notify,
    connection: &Connection,
    side: Side,
) -> Result<Closed, ChannelError> {
    let reader = Reader {
        peer: Arc::clone(peer),
        link: id,
        greeted: watch::Sender::new(false),
        outgoing: Outgoing::default(),
        parting: Parting::default(),
    };
    let control = match side {
        Side::Client => connection.open_bi().await,
        // The client's HELLO brings it.
        Side::Server => until_dead((peer, id), kick, async { Ok(connection.accept_bi().await) }).await?,
    };
    let (control, incoming) = control?;
    // Only a stream that is gone cannot be given one, and then nothing can be sent on it either.
    let _ = control.set_priority(CONTROL_PRIORITY);
    let mut readers = JoinSet::new();
    readers.spawn(reader.clone().read_control(incoming));
    readers.spawn(reader.clone().read_datagrams(connection.clone()));
    let mut writer =
        Writer { connection, side, control, reader, readers, unacknowledged: FuturesUnordered::new() };
    let mut frames = Vec::new();
    loop {
        let more = peer.act(|state, now| state.bundle.poll_output(id, BATCH_BYTES, now, &mut frames));
        let ended = closed(peer, id);
        until_dead((peer, id), kick, writer.send(std::mem::take(&mut frames))).await?;
        if more.unwrap_or(false) {
            tokio::task::yield_now().await;
        } else if let Some(closed) = ended {
            if matches!(closed, Closed::Here(_) | Closed::Violated(_)) {
                writer.part().await;
            }
            return Ok(closed);
        } else {
            writer.wait(kick).await?;
        }
    }
}

/// Waits for something that the path may never let happen, as long as the link lives, and a little longer.
async fn until_dead<T>(
    (peer, id): (&Arc<Peer>, LinkId),
    kick: &Notify,
    work: impl Future<Output = Result<T, ChannelError>>,
) -> Result<T, ChannelError> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            result = &mut work => return result,
            () = kick.notified() => {
                if closed(peer, id).is_some() {
                    return time::timeout(FAREWELL_TIMEOUT, work).await.unwrap_or(Err(ChannelError::Ended));
                }
            }
        }
    }
}

/// The way out of a link.
struct Writer<'a> {
    connection: &'a Connection,
    side: Side,
    control: SendStream,
    reader: Reader,
    readers: JoinSet<Result<(), ChannelError>>,
    /// Streams that have sent their last frame; each resolves when the peer has it.
    unacknowledged: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl Writer<'_> {
    /// Waits until there may be something to send.
    async fn wait(&mut self, kick: &Notify) -> Result<(), ChannelError> {
        // Streams are heard of only after HELLO.
        let accepts = self.side == Side::Server && *self.reader.greeted.borrow();
        let mut greeted = self.reader.greeted.subscribe();
        tokio::select! {
            () = kick.notified() => Ok(()),
            Ok(()) = greeted.changed(), if !accepts => Ok(()),
            opened = self.connection.accept_bi(), if accepts => {
                self.readers.spawn(self.reader.clone().read_opened(opened?));
                Ok(())
            }
            Some(ended) = self.readers.join_next() => ended.unwrap_or(Err(ChannelError::Ended)),
            Some(()) = self.unacknowledged.next() => Ok(()),
        }
    }

    /// Sends frames, those of one session in their order.
    async fn send(&mut self, frames: Vec<Encoded>) -> Result<(), ChannelError> {
        let mut frames = frames.into_iter().peekable();
        while let Some(frame) = frames.next() {
            let Some(outline) = outlined(&frame) else { continue };
            if outline.is_datagram && self.send_datagram(&frame)? {
                continue;
            }
            if outline.closes {
                self.await_acknowledged().await;
            }
            let (mut begins, mut is_last) = (outline.begins, outline.is_last);
            let mut pieces = vec![Bytes::copy_from_slice(&frame.header), frame.payload];
            // What goes to the same stream goes at once.
            while !is_last
                && let Some(next) = frames.next_if(|next| {
                    outlined(next).is_some_and(|next| {
                        next.stream == outline.stream && !next.is_datagram && !next.closes
                    })
                })
            {
                let next_outline = outlined(&next);
                begins |= next_outline.is_some_and(|next| next.begins);
                is_last |= next_outline.is_some_and(|next| next.is_last);
                pieces.extend([Bytes::copy_from_slice(&next.header), next.payload]);
            }
            match outline.stream {
                None => self.control.write_all_chunks(&mut pieces).await.map_err(failed)?,
                Some(stream) => self.send_on(stream, &mut pieces, (begins, is_last)).await?,
            }
        }
        Ok(())
    }

    async fn send_on(
        &mut self,
        id: StreamId,
        pieces: &mut [Bytes],
        (begins, is_last): (bool, bool),
    ) -> Result<(), ChannelError> {
        let mut stream = match self.reader.outgoing.take(id) {
            Some(stream) => stream,
            None if begins && self.side == Side::Client => self.open(id).await?,
            // Both sides are done with it.
            None => return Ok(()),
        };
        stream.write_all_chunks(pieces).await.map_err(failed)?;
        if is_last {
            // It was neither finished nor reset before.
            let _ = stream.finish();
            let acknowledged = stream.stopped();
            self.unacknowledged.push(Box::pin(async move {
                // Acknowledged, or the connection is lost.
                let _ = acknowledged.await;
            }));
        } else {
            self.reader.outgoing.insert(id, stream);
        }
        Ok(())
    }

    async fn open(&mut self, id: StreamId) -> Result<SendStream, ChannelError> {
        let (send, receive): (SendStream, RecvStream) = self.connection.open_bi().await?;
        self.readers.spawn(self.reader.clone().read_answers(receive, id));
        Ok(send)
    }

    /// Sends a datagram by itself; returns whether the path takes one so long.
    fn send_datagram(&self, frame: &Encoded) -> Result<bool, ChannelError> {
        if self.connection.max_datagram_size().is_none_or(|most| frame.size_bytes() > most) {
            return Ok(false);
        }
        let mut bytes = Vec::with_capacity(frame.size_bytes());
        bytes.extend_from_slice(&frame.header);
        bytes.extend_from_slice(&frame.payload);
        match self.connection.send_datagram(bytes.into()) {
            Ok(()) => Ok(true),
            Err(quinn::SendDatagramError::ConnectionLost(error)) => Err(error.into()),
            Err(
                quinn::SendDatagramError::TooLarge
                | quinn::SendDatagramError::UnsupportedByPeer
                | quinn::SendDatagramError::Disabled,
            ) => Ok(false),
        }
    }

    /// Waits until the peer has all last frames, which CLOSE must not overtake.
    async fn await_acknowledged(&mut self) {
        let all = async { while self.unacknowledged.next().await.is_some() {} };
        // A path that does not carry them does not carry CLOSE either.
        let _ = time::timeout(FAREWELL_TIMEOUT, all).await;
    }

    /// Ends the stream of the link, and waits until the peer has CLOSE.
    async fn part(&mut self) {
        if self.control.finish().is_ok() {
            let _ = time::timeout(FAREWELL_TIMEOUT, self.control.stopped()).await;
        }
    }
}

fn outlined(frame: &Encoded) -> Option<frame::Outline> {
    frame::outline(&frame.header).ok().flatten()
}

fn failed(error: WriteError) -> ChannelError {
    match error {
        WriteError::ConnectionLost(error) => error.into(),
        WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => {
            ChannelError::Misplaced
        }
    }
}
