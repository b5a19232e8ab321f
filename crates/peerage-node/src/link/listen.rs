//! Accepting links.

use std::sync::{Arc, Weak};
use std::time::Duration;

use peerage_proto::link::Side;
use peerage_proto::link::bundle::{PathKind, Purpose};
use peerage_wire::id::NodeId;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time;

use super::channel::{Channel, ChannelError};
use super::dial::prepare;
use super::{Connected, Inner, Via, standing};
use crate::door::Door;
use crate::places::Places;
use crate::tls::peer_identity;

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

/// How long to wait after the system could not accept, most likely for want of descriptors. Shorter burns time while it lasts.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a connection begins.
enum Came {
    /// As a link of a peer.
    Link(NodeId, Box<Channel>),
    /// As a leg to be relayed.
    Leg(TcpStream),
}

/// Accepts whom the door lets in, or all links if there is none, until the links are gone.
pub(super) async fn run(inner: Weak<Inner>, listener: TcpListener, door: Option<Door>) {
    let handshakes = Places::new(MAX_HANDSHAKES_PER_PLACE, MAX_HANDSHAKES);
    let links = Places::new(MAX_LINKS_PER_PLACE, super::MAX_LINKS);
    let mut tasks = JoinSet::new();
    loop {
        let (socket, remote) = match listener.accept().await {
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
                    if let Some(door) = door {
                        door.take_leg(socket, remote);
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
        if door.is_leg(&socket).await? {
            return Ok(Came::Leg(socket));
        }
        if !door.takes_links() {
            return Err(ChannelError::Ended);
        }
    }
    prepare(&socket)?;
    let mut channel = Channel::new(socket, inner.config.tls.accept()?.into());
    channel.handshake().await?;
    let identity = peer_identity(channel.tls()).ok_or(rustls::Error::NoApplicationProtocol)?;
    // Only nodes of the same domain have tunnels between them; HELLO has to name the same.
    Ok(Came::Link(NodeId::new(inner.config.local.domain, &identity), Box::new(channel)))
}
