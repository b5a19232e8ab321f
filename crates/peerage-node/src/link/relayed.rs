//! Links over a relay: the same TLS between the same two nodes, on a connection that a super-node has joined for them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use peerage_proto::link::Side;
use peerage_proto::link::bundle::{Dial, LinkId, PathKind, Purpose};
use peerage_wire::id::NodeId;
use tokio::sync::oneshot;
use tokio::time;

use super::attempt::Early;
use super::channel::{Channel, ChannelError};
use super::dial::{self, DialError};
use super::peer::Peer;
use super::{Connected, Inner, Links, Via, lock, standing};
use crate::relay::{self, Joined, RelayFull};
use crate::tls::peer_identity;

/// How long a meeting may take once no address leads to the peer. Longer makes an application wait for a tunnel-node that is dead, although
/// another could serve; shorter gives up relays that are slow: two round trips and a handshake.
const MEETING_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a direct path may take that was begun together with the leg, once the relay has refused. Longer makes applications wait that
/// cannot be served, shorter gives up paths that are being punched.
const DIRECT_GRACE: Duration = Duration::from_secs(1);

/// A leg under way; it resolves when the relay was asked to join it.
pub(crate) type Leg = oneshot::Receiver<relay::Leg>;

impl Links {
    /// Takes a leg that this node has made, at whichever end; a link over it stands as soon as both have proven their keys.
    pub fn take_leg(&self, leg: Joined) {
        let inner = Arc::clone(&self.inner);
        let task = async move {
            if let Err(error) = inner.lead(leg, Purpose::Shared).await {
                tracing::debug!(%error, "no link over a relay came about");
            }
        };
        lock(&self.inner.helpers).spawn(task);
    }

    /// Gives the session of a dial a link of its own, over a leg that is under way for it.
    pub(crate) fn take_own_leg(&self, peer: NodeId, dial: Dial, leg: Option<Leg>) {
        let Some(known) = lock(&self.inner.peers).get(&peer).cloned() else { return };
        let inner = Arc::clone(&self.inner);
        let task = async move {
            let led = async {
                let leg = leg.ok_or(DialError::NoCandidate)?;
                let joined = joined(leg).await?;
                inner.lead(joined, dial.purpose).await
            };
            let result = time::timeout(dial.timeout, led).await;
            if let Err(error) = result.unwrap_or(Err(DialError::TimedOut)) {
                tracing::debug!(?peer, %error, "a tunnel goes on sharing the link over a relay");
                known.dial_failed(dial);
            }
        };
        lock(&self.inner.helpers).spawn(task);
    }

    /// As [`take_leg`](Self::take_leg), once the leg is joined.
    pub(crate) fn await_leg(&self, leg: Leg) {
        let links = self.clone();
        let task = async move {
            if let Ok(joined) = joined(leg).await {
                links.take_leg(joined);
            }
        };
        lock(&self.inner.helpers).spawn(task);
    }
}

/// Waits until the peer is at the other end of a leg.
async fn joined(leg: Leg) -> Result<Joined, DialError> {
    let asked = leg.await.map_err(|_failed| DialError::NoCandidate)?;
    asked.joined().await.map_err(|RelayFull| DialError::RelayFull)?.ok_or(DialError::NoCandidate)
}

/// Waits a moment longer for a direct path, after the relay has refused. One that is found by checks ends the wait elsewhere.
pub(super) async fn beside_full_relay(
    direct: impl Future<Output = Result<LinkId, DialError>>,
) -> Result<LinkId, DialError> {
    tokio::select! {
        Ok(link) = direct => Ok(link),
        () = time::sleep(DIRECT_GRACE) => Err(DialError::RelayFull),
    }
}

impl Inner {
    /// Dials a peer directly, on the connection that is being made already if there is one, and meets it at a relay at the same time;
    /// whichever stands first is used. If that is the relay, the direct dial goes on, and what it comes to takes the tunnels over.
    pub(super) async fn race(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        (early, leg): (Option<Early>, Option<Leg>),
    ) -> Result<LinkId, DialError> {
        let Some(leg) = leg else { return self.dial_or_await(peer, early).await };
        let (sender, direct) = oneshot::channel();
        let (inner, other) = (Arc::clone(self), Arc::clone(peer));
        lock(&self.helpers).spawn(async move {
            // Nobody waits for it any more if the relay was faster.
            let _ = sender.send(inner.dial(&other, (Purpose::Shared, None), early).await);
        });
        let relayed = async { self.lead(joined(leg).await?, Purpose::Shared).await };
        let direct = async { direct.await.unwrap_or(Err(DialError::NoCandidate)) };
        let deadline = time::Instant::now() + MEETING_TIMEOUT;
        let (mut direct, mut relayed) = (std::pin::pin!(direct), std::pin::pin!(relayed));
        tokio::select! {
            result = &mut direct => match result {
                Ok(link) => Ok(link),
                Err(error) => match time::timeout_at(deadline, relayed).await {
                    Ok(Ok(link)) => Ok(link),
                    Ok(Err(DialError::RelayFull)) => beside_full_relay(std::future::pending()).await,
                    Ok(Err(_)) | Err(_) => Err(error),
                },
            },
            result = &mut relayed => match result {
                Ok(link) => Ok(link),
                Err(DialError::RelayFull) => beside_full_relay(direct).await,
                // Where the addresses are silent too, another relay or tunnel-node is tried.
                Err(_relay) => {
                    let direct = time::timeout_at(deadline, direct).await;
                    direct.unwrap_or(Err(DialError::TimedOut))
                }
            },
        }
    }

    /// Dials a peer to whom the relay has not led: not for as long as if nothing else could be tried.
    pub(super) async fn dial_without_relay(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        early: Option<Early>,
    ) -> Result<LinkId, DialError> {
        let dialled = time::timeout(MEETING_TIMEOUT, self.dial_or_await(peer, early)).await;
        dialled.unwrap_or(Err(DialError::TimedOut))
    }

    /// Dials a peer directly while a relay serves.
    pub(super) fn dial_beside(self: &Arc<Self>, peer: &Arc<Peer>, early: Option<Early>) {
        self.pursue_found(peer);
        let (inner, peer) = (Arc::clone(self), Arc::clone(peer));
        lock(&self.helpers).spawn(async move {
            if let Err(error) = inner.dial(&peer, (Purpose::Shared, Some(PathKind::Relayed)), early).await {
                tracing::debug!(%error, "there is no direct path beside the relay");
            }
        });
    }

    /// Completes the handshake over a leg and begins to drive the link.
    async fn lead(self: &Arc<Self>, leg: Joined, purpose: Purpose) -> Result<LinkId, DialError> {
        let Joined { what, stream } = leg;
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| DialError::TooManyLinks)?;
        let handshake = async {
            dial::prepare(&stream)?;
            let local = stream.local_addr()?;
            let channel = match what.side {
                Side::Client => {
                    let tls = self.config.tls.connect(what.identity)?;
                    let mut channel = Channel::new(stream, tls.into());
                    channel.handshake().await?;
                    channel
                }
                Side::Server => self.accept_on(stream).await?,
            };
            // Whoever is at the other end, the relay included, must be the peer that the attempt is about.
            if peer_identity(channel.tls()) != Some(what.identity) {
                return Err(rustls::Error::General("another node is at the other end".to_owned()).into());
            }
            Ok((channel, local))
        };
        let timeout = || Err(ChannelError::from(io::Error::from(io::ErrorKind::TimedOut)));
        let result = time::timeout(dial::CANDIDATE_TIMEOUT, handshake).await.unwrap_or_else(|_| timeout());
        let (channel, local) =
            result.map_err(|source| DialError::Failed { address: what.address, source })?;
        let standing = standing(what.side, purpose, PathKind::Relayed);
        let ends = (local, what.address, Via::Relay);
        let connected = Connected::Tcp(Box::new(channel));
        Ok(self.start_over(
            Some(what.relay),
            &self.peer(what.peer),
            standing,
            connected,
            ends,
            (permit, None),
        ))
    }
}
