//! Connections that carry messages where UDP does not (Rules 6.100 to 6.109).
//!
//! [`Streams`] holds those that this node has made to servers and those that members have made to this computer. Each has one task, which
//! hands what arrives to the machine and sends what the machine orders. What is inside is sealed; nothing here is trusted for anything,
//! the outer TLS least of all.
//!
//! Invariants: what waits to be sent on a connection is bounded, and beyond it messages are dropped as a full network would drop them; a
//! reader that does not read costs this much and ends after a while; a connection that is closed by the machine is not spoken of again.

mod convey;
mod http;
mod kept;
mod open;
mod poll;
mod serve;
mod websocket;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use peerage_proto::carrier::{StreamId, StreamNews, StreamOrder};
use peerage_wire::leg;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;

use crate::connect::Connector;
use crate::framed::{self, within};
use crate::places::Places;
use crate::sync::lock;

pub use http::begins_http;
pub(crate) use kept::{keep, kept};
pub(crate) use open::open;
pub use peerage_proto::carrier::Carrier;
pub(crate) use serve::TlsIntake;
pub use serve::{Certificate, Intake, server_config};

/// What a connection inside another protocol is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Messages, each behind its length.
    Messages,
    /// A leg (Rule 6.30).
    Leg,
}

impl Content {
    const ALL: [Self; 2] = [Self::Messages, Self::Leg];

    /// Returns what both ends say in TLS that they want to speak.
    pub(crate) const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Messages => b"peerage-messages/1",
            Self::Leg => b"peerage-leg/1",
        }
    }

    /// Returns under which path HTTP turns into it.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Messages => "/v1/messages",
            Self::Leg => "/v1/leg",
        }
    }

    /// Returns what both ends of a TLS connection have agreed that it is for, if anything of this.
    pub fn of<S>(io: &TlsStream<S>) -> Option<Self> {
        let agreed = io.get_ref().1.alpn_protocol();
        Self::ALL.into_iter().find(|content| agreed == Some(content.alpn()))
    }
}

/// Messages that wait to be sent on one connection, at most 1,200 bytes each. More keeps memory for readers that do not read; fewer
/// drops more of a burst, such as the pages of a list.
const MAX_WAITING: usize = 64;

/// How many bytes are written at once.
const MAX_WRITE: usize = 16 * 1_024;

/// How long a write may take. Shorter cuts off who is on a slow line; longer keeps connections that nobody reads.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a member may say nothing on its connection; attached ones say something every fifty seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(180);

/// Connections for messages from one [place](Places): a company behind one address, each of whose computers has one.
const MAX_STREAMS_PER_PLACE: usize = 512;

/// Connections for messages from everywhere.
const MAX_STREAMS: usize = 8_192;

/// News that wait for the machine. Whoever has more to say waits until it has taken them, and its sender with it.
const MAX_NEWS: usize = 1_024;

/// The connections of one computer. Clones share them; they end with [`close_all`](Self::close_all).
#[derive(Clone, Debug)]
pub struct Streams {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connector: Connector,
    news: mpsc::Sender<StreamNews>,
    next: AtomicU64,
    open: Mutex<BTreeMap<StreamId, mpsc::Sender<Bytes>>>,
    accepted: Places,
}

impl Streams {
    /// Makes an empty set, whose own connections are made by `connector`. The receiver gets what the machine has to know.
    pub fn new(connector: Connector) -> (Self, mpsc::Receiver<StreamNews>) {
        let (news, receiver) = mpsc::channel(MAX_NEWS);
        let inner = Inner {
            connector,
            news,
            next: AtomicU64::new(0),
            open: Mutex::default(),
            accepted: Places::new(MAX_STREAMS_PER_PLACE, MAX_STREAMS),
        };
        (Self { inner: Arc::new(inner) }, receiver)
    }

    /// Serves a connection that somebody has made to send messages, until it ends. Beyond the limits it is closed unheard.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, io: S, remote: SocketAddr) {
        // A socket of both families shows IPv4 addresses as IPv6; members know them as IPv4.
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let Some(_counted) = self.inner.accepted.take(remote.ip()) else {
            tracing::debug!(%remote, "a connection for messages beyond the limits was closed");
            return;
        };
        let stream = StreamId::Accepted(self.inner.next.fetch_add(1, Ordering::Relaxed));
        let waiting = self.inner.add(stream);
        let carried = self.inner.carry(io, (stream, remote), waiting, Some(IDLE_TIMEOUT)).await;
        if let Err(error) = carried {
            tracing::debug!(%remote, %error, "a connection for messages has ended");
        }
        self.inner.remove(stream).await;
    }

    /// Does what the machine says; returns at once.
    pub fn apply(&self, order: StreamOrder) {
        match order {
            StreamOrder::Open { stream, carrier, address } => {
                let (inner, waiting) = (Arc::clone(&self.inner), self.inner.add(stream));
                tokio::spawn(async move {
                    if let Err(error) = inner.make(stream, (carrier, address), waiting).await {
                        let carrier = carrier.name();
                        tracing::debug!(%address, carrier, %error, "a connection for messages has ended");
                    }
                    inner.remove(stream).await;
                });
            }
            StreamOrder::Send { stream, payload } => {
                let sender = lock(&self.inner.open).get(&stream).cloned();
                // What was lost is asked for again.
                let sent = sender.is_some_and(|sender| sender.try_send(payload).is_ok());
                if !sent {
                    tracing::trace!(?stream, "a message was dropped");
                }
            }
            StreamOrder::Close(stream) => drop(lock(&self.inner.open).remove(&stream)),
        }
    }

    /// Closes everything.
    pub fn close_all(&self) {
        // Each task ends when nobody can order anything of it any more.
        lock(&self.inner.open).clear();
    }
}

impl Inner {
    /// Makes a connection and serves it until it ends.
    async fn make(
        &self,
        stream: StreamId,
        way: (Carrier, SocketAddr),
        waiting: mpsc::Receiver<Bytes>,
    ) -> io::Result<()> {
        let io = open(&self.connector, way, Content::Messages).await?;
        if self.news.send(StreamNews::Opened(stream)).await.is_err() {
            return Ok(());
        }
        self.carry(io, (stream, way.1), waiting, None).await
    }

    fn add(&self, stream: StreamId) -> mpsc::Receiver<Bytes> {
        let (sender, waiting) = mpsc::channel(MAX_WAITING);
        lock(&self.open).insert(stream, sender);
        waiting
    }

    /// Forgets a connection that has ended, and tells so unless the machine has ended it.
    async fn remove(&self, stream: StreamId) {
        if lock(&self.open).remove(&stream).is_some() {
            // The machine counts on it, so it must arrive.
            let _ = self.news.send(StreamNews::Closed(stream)).await;
        }
    }

    /// Moves messages in both directions until the connection ends or is closed by the machine.
    async fn carry<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        io: S,
        from: (StreamId, SocketAddr),
        waiting: mpsc::Receiver<Bytes>,
        idle: Option<Duration>,
    ) -> io::Result<()> {
        let (reader, writer) = tokio::io::split(io);
        tokio::select! {
            read = self.read_all(reader, from, idle) => read,
            written = write_all(writer, waiting) => written,
        }
    }

    async fn read_all(
        &self,
        mut reader: impl AsyncRead + Unpin,
        (stream, remote): (StreamId, SocketAddr),
        idle: Option<Duration>,
    ) -> io::Result<()> {
        loop {
            let payload = match idle {
                Some(idle) => within(idle, framed::read(&mut reader)).await?,
                None => framed::read(&mut reader).await?,
            };
            let news = StreamNews::Datagram { stream, remote, payload };
            if self.news.send(news).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Sends what the machine orders; what waits together goes in one write.
async fn write_all(
    mut writer: impl AsyncWrite + Unpin,
    mut waiting: mpsc::Receiver<Bytes>,
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(MAX_WRITE);
    while let Some(first) = waiting.recv().await {
        buffer.clear();
        push(&mut buffer, &first);
        while buffer.len() < MAX_WRITE
            && let Ok(next) = waiting.try_recv()
        {
            push(&mut buffer, &next);
        }
        let write = async {
            writer.write_all(&buffer).await?;
            writer.flush().await
        };
        within(WRITE_TIMEOUT, write).await?;
    }
    within(WRITE_TIMEOUT, writer.shutdown()).await
}

fn push(buffer: &mut BytesMut, message: &[u8]) {
    // The machine sends none that is too long.
    if let Some(framed) = leg::frame(message) {
        buffer.extend_from_slice(&framed);
    }
}

#[cfg(test)]
mod tests;
