//! Accepting links.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use peerage_proto::link::Side;
use peerage_proto::link::bundle::{PathKind, Purpose};
use peerage_wire::id::NodeId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time;

use super::channel::{Channel, ChannelError};
use super::dial::prepare;
use super::{Inner, standing};
use crate::door::Door;
use crate::tls::peer_identity;

/// How long a peer may take to prove its key. Longer keeps descriptors for strangers, shorter fails peers on slow paths.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The most handshakes at a time; each costs a millisecond of computing. Beyond, connections are closed unheard.
const MAX_HANDSHAKES: usize = 256;

/// The most connections from one address, those in the handshake included: an office behind one router. Raised, one stranger
/// can take more of the [links](super::MAX_LINKS); lowered, large offices are turned away.
const MAX_LINKS_PER_ADDRESS: usize = 256;

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
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let counts = Counts::default();
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
        let permits = Arc::clone(&handshakes).try_acquire_owned().ok();
        let permits = permits.zip(Arc::clone(&strong.permits).try_acquire_owned().ok());
        let (Some((handshake, link)), Some(count)) = (permits, counts.take(remote.ip())) else {
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
                    strong.start(
                        &strong.peer(peer),
                        standing,
                        *channel,
                        (local, remote),
                        (link, Some(count)),
                    );
                }
                Ok(Err(error)) => tracing::debug!(%remote, %error, "a handshake failed"),
                Err(_elapsed) => tracing::debug!(%remote, "a handshake took too long"),
            }
        });
    }
}

async fn greet(inner: &Inner, door: Option<&Door>, socket: TcpStream) -> Result<Came, ChannelError> {
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

/// How many connections there are from each address.
#[derive(Clone, Debug, Default)]
struct Counts {
    by_address: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

/// One connection; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    counts: Counts,
    address: IpAddr,
}

impl Counts {
    fn take(&self, address: IpAddr) -> Option<Counted> {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(address).or_default();
        if *count >= MAX_LINKS_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Counted { counts: self.clone(), address })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut by_address = self.counts.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_links() {
        let counts = Counts::default();
        let one = IpAddr::from([192, 0, 2, 1]);
        let mut taken: Vec<_> = std::iter::from_fn(|| counts.take(one)).collect();
        assert_eq!(taken.len(), MAX_LINKS_PER_ADDRESS);
        assert!(counts.take(IpAddr::from([192, 0, 2, 2])).is_some());
        taken.pop();
        assert!(counts.take(one).is_some());
        taken.clear();
        assert!(counts.by_address.lock().unwrap().is_empty());
    }
}
