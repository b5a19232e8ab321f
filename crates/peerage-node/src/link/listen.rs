//! Accepting links.

use std::sync::{Arc, Weak};
use std::time::Duration;

use peerage_proto::link::Side;
use peerage_proto::link::bundle::{PathKind, Purpose};
use peerage_wire::id::{HandshakeId, NodeId};
use peerage_wire::leg::begins_leg;
use peerage_wire::prepared::{BEGINNING_SIZE, begins_prepared, read_beginning};
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::{StartHandshake, TlsStream};

use super::channel::{Channel, ChannelError};
use super::dial::prepare;
use super::{Connected, Inner, Via, lock, standing};
use crate::carrier::begins_http;
use crate::door::Door;
use crate::http::{Listener as _, Listeners};
use crate::places::Places;
use crate::socket::Socket;
use crate::tls::{ALPN_TUNNEL, peer_identity};

/// How long a peer may take to prove its key. Longer keeps descriptors for strangers, shorter fails peers on slow paths.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The most handshakes at a time; each costs a millisecond of computing. Beyond, connections are closed unheard.
pub(super) const MAX_HANDSHAKES: usize = 256;

/// The most handshakes with one [place](Places): an office behind one router, all at once. Raised, fewer strangers suffice to
/// take all [`MAX_HANDSHAKES`]; lowered, large offices come in more slowly after an outage.
pub(super) const MAX_HANDSHAKES_PER_PLACE: usize = 48;

/// How long a connection may say nothing at all. Whoever connects has something to say, and says it at once.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(3);

/// The most links with one place. Raised, one stranger can take more of the [links](super::MAX_LINKS); lowered, large offices are
/// turned away.
pub(super) const MAX_LINKS_PER_PLACE: usize = 256;

/// The first byte of a TLS connection: the type of a record of the handshake.
const TLS_HANDSHAKE: u8 = 22;

/// How long to wait after the system could not accept, most likely for want of descriptors. Shorter burns time while it lasts.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a connection begins.
enum Came {
    /// As a link of a peer.
    Link(NodeId, Box<Channel>),
    /// As a leg to be relayed.
    Leg(TcpStream),
    /// As TLS that is no link.
    Other(Box<TlsStream<TcpStream>>),
    /// As HTTP.
    Http(TcpStream),
}

/// Accepts whom the door lets in, or all links if there is none, until the links are gone. The limits are those of all ports together.
pub(super) async fn run(inner: Weak<Inner>, listeners: Listeners, door: Option<Door>) {
    let handshakes = Places::new(MAX_HANDSHAKES_PER_PLACE, MAX_HANDSHAKES);
    let links = Places::new(MAX_LINKS_PER_PLACE, super::MAX_LINKS);
    let mut tasks = JoinSet::new();
    loop {
        let (socket, remote) = match listeners.next().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        let Some(strong) = inner.upgrade() else { return };
        if door.as_ref().is_some_and(|door| !door.is_open()) {
            continue;
        }
        let counted = handshakes.take(remote.ip()).zip(links.take(remote.ip()));
        let (Some((handshake, count)), Ok(link)) = (counted, Arc::clone(&strong.permits).try_acquire_owned())
        else {
            tracing::debug!(%remote, "a connection beyond the limits was closed");
            continue;
        };
        let door = door.clone();
        tasks.spawn(async move {
            match time::timeout(HANDSHAKE_TIMEOUT, greet(&strong, door.as_ref(), socket)).await {
                Ok(Ok(Came::Leg(socket))) => {
                    // The relay has limits of its own.
                    drop((handshake, link, count));
                    if let Some(intake) = door.as_ref().and_then(Door::intake) {
                        intake.take_leg(socket, remote);
                    }
                }
                Ok(Ok(Came::Other(io))) => {
                    // So have connections for messages.
                    drop((handshake, link, count, strong));
                    if let Some(intake) = door.as_ref().and_then(Door::intake) {
                        intake.serve(*io, remote).await;
                    }
                }
                Ok(Ok(Came::Http(socket))) => {
                    drop((handshake, link, count, strong));
                    if let Some(intake) = door.as_ref().and_then(Door::intake)
                        && let Err(error) = intake.serve_open(socket, remote).await
                    {
                        tracing::debug!(%remote, %error, "a connection broke");
                    }
                }
                Ok(Ok(Came::Link(peer, channel))) => {
                    drop(handshake);
                    let Ok(local) = channel.socket().local_addr() else { return };
                    let standing = standing(Side::Server, Purpose::Shared, PathKind::Direct);
                    let ends = (local, remote, Via::Direct);
                    let connected = Connected::Tcp(channel);
                    strong.start(&strong.peer(peer), standing, connected, ends, (link, Some(count)));
                }
                Ok(Err(error)) => tracing::debug!(%remote, %error, "a handshake failed"),
                Err(_elapsed) => tracing::debug!(%remote, "a handshake took too long"),
            }
        });
    }
}

async fn greet(inner: &Inner, door: Option<&Door>, socket: TcpStream) -> Result<Came, ChannelError> {
    time::timeout(FIRST_BYTE_TIMEOUT, socket.readable()).await.map_err(|_elapsed| ChannelError::Ended)??;
    if let Some(door) = door {
        let first = door.first_byte(&socket).await?;
        if begins_leg(first) {
            return Ok(Came::Leg(socket));
        }
        if first == TLS_HANDSHAKE
            && let Some(intake) = door.intake()
        {
            let start = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
            if !wants_link(&start) {
                return Ok(Came::Other(Box::new(intake.handshake(start).await?)));
            }
            if !door.takes_links() {
                return Err(ChannelError::Ended);
            }
            let socket = Arc::new(Socket::from(start.io));
            prepare(&socket)?;
            let tls = start.accepted.into_connection(inner.config.tls.server());
            let tls = tls.map_err(|(error, _alert)| error)?;
            return shake_hands(inner, Channel::new(socket, tls.into())).await;
        }
        if begins_http(first) && door.intake().is_some() {
            return Ok(Came::Http(socket));
        }
        if !door.takes_links() {
            return Err(ChannelError::Ended);
        }
    }
    let socket = Arc::new(Socket::from(socket));
    prepare(&socket)?;
    let channel = inner.accept_on(socket).await?;
    link_of(inner, channel)
}

/// Returns whether TLS begins as that of a link.
fn wants_link(start: &StartHandshake<TcpStream>) -> bool {
    let hello = start.client_hello();
    let mut offered = hello.alpn().into_iter().flatten();
    offered.any(|protocol| protocol == ALPN_TUNNEL)
}

async fn shake_hands(inner: &Inner, mut channel: Channel) -> Result<Came, ChannelError> {
    channel.handshake().await?;
    link_of(inner, channel)
}

fn link_of(inner: &Inner, channel: Channel) -> Result<Came, ChannelError> {
    let identity = peer_identity(channel.tls()).ok_or(rustls::Error::NoApplicationProtocol)?;
    // Only nodes of the same domain have tunnels between them; HELLO has to name the same.
    Ok(Came::Link(NodeId::new(inner.config.local.domain, &identity), Box::new(channel)))
}

impl Inner {
    /// Makes the server's side of a handshake: goes on with the one that was prepared if the connection says so, otherwise begins it
    /// (Rule 7.30). The caller limits the time.
    pub(super) async fn accept_on(&self, socket: Arc<Socket>) -> Result<Channel, ChannelError> {
        let first = socket.peek().await?.ok_or(ChannelError::Ended)?;
        let tls = if begins_prepared(first) {
            let name = read_name(&socket).await?;
            lock(&self.prepared).take(name, self.config.clock.mono()).ok_or(ChannelError::NotPrepared)?
        } else {
            self.config.tls.accept()?.into()
        };
        let mut channel = Channel::new(socket, tls);
        channel.handshake().await?;
        Ok(channel)
    }
}

/// Reads which handshake a connection goes on with.
async fn read_name(socket: &Socket) -> Result<HandshakeId, ChannelError> {
    let mut beginning = [0; BEGINNING_SIZE];
    socket.fill(&mut beginning).await?;
    read_beginning(&beginning).ok_or(ChannelError::NotPrepared)
}
