//! Attempts to link with a peer whose handshake is under way by message while the connection is being made (Rule 7.29).

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::link::Side;
use peerage_proto::link::bundle::{LinkId, PathKind, Purpose};
use peerage_proto::node;
use peerage_wire::codec::Candidate;
use peerage_wire::id::HandshakeId;
use peerage_wire::prepared::name_of;
use rustls::Connection;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time;

use super::channel::{Channel, ChannelError};
use super::dial::{self, DialError};
use super::peer::Peer;
use super::relayed::{Leg, beside_full_relay};
use super::{AttemptId, Connected, Inner, Links, Via, lock, standing};
use crate::connect::Connector;
use crate::relay::Ahead;
use crate::socket::Socket;
use crate::tls;

/// The most attempts that wait to be gone on with. More lets applications that give up hold more sockets; beyond it handshakes are ordinary.
const MAX_ATTEMPTS: usize = 256;

/// How long an attempt waits to be gone on with: longer than the node looks for a way.
const TAKING_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a prepared handshake waits for a connection once the peer has answered; then the ordinary ones begin. All of it takes a round
/// trip, so a connection should stand by then. Longer makes users wait where connections fail, shorter wastes what was prepared on slow paths.
const CONNECTION_WAIT: Duration = Duration::from_millis(250);

/// How long a link whose handshake was prepared may take to say anything. It was begun on the first connection that stood, wherever that
/// leads; if it leads nowhere, tunnels go elsewhere then. Longer makes them wait, shorter doubts paths with long round trips for nothing.
const PROOF_TIMEOUT: Duration = Duration::from_secs(1);

/// The connection to the first of a peer's addresses that takes one; nothing was said on it.
pub(super) type Early = oneshot::Receiver<(TcpStream, Candidate)>;

/// An attempt that was begun.
pub(super) struct Attempt {
    tls: Connection,
    name: HandshakeId,
    identity: [u8; 32],
    early: Early,
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An attempt to be gone on with.
pub(crate) struct Begun {
    early: Early,
    /// With both keys proven to this side; none if the peer has prepared nothing.
    handshake: Option<(Connection, HandshakeId)>,
}

/// What became ready first.
enum Ready {
    Direct(TcpStream, Candidate),
    /// With the direct connection that may still come.
    Relayed(Ahead, Option<Early>),
    /// The relay has refused already.
    Full(Option<Early>),
    /// Neither, with those that may still come.
    Nothing(Option<Early>, Option<Leg>),
}

impl Links {
    /// Begins a handshake with whoever holds `identity`, and connects to one of the places meanwhile. Returns the first flight of
    /// the TLS client, if a message can have one.
    pub(crate) fn begin(
        &self,
        attempt: AttemptId,
        identity: [u8; 32],
        places: Vec<Candidate>,
    ) -> Option<Bytes> {
        let (tls, hello) = self.inner.config.tls.begin(identity).ok()?;
        let (connected, early) = oneshot::channel();
        {
            let mut attempts = lock(&self.inner.attempts);
            if attempts.len() >= MAX_ATTEMPTS {
                return None;
            }
            attempts.insert(attempt, Attempt { tls, name: name_of(&hello), identity, early });
        }
        let connector = self.inner.config.connector.clone();
        let task = connect((Arc::downgrade(&self.inner), connector), (attempt, places), connected);
        lock(&self.inner.helpers).spawn(task);
        Some(hello.into())
    }

    /// Answers what a peer has begun, if there is room.
    pub(crate) fn answer(&self, peer: (peerage_wire::id::NodeId, [u8; 32]), hello: &[u8]) -> Option<Bytes> {
        let Inner { config, prepared, .. } = &*self.inner;
        lock(prepared).answer(&config.tls, peer, hello, config.clock.mono())
    }

    /// Takes an attempt, once, with what the peer has answered.
    pub(crate) fn take_begun(&self, begun: &node::Begun) -> Option<Begun> {
        let Attempt { mut tls, name, identity, early } = lock(&self.inner.attempts).remove(&begun.attempt)?;
        let went_on = begun.flight.as_ref().map(|flight| tls::go_on(&mut tls, identity, flight));
        if let Some(Err(error)) = &went_on {
            tracing::debug!(%error, "a prepared handshake cannot go on");
        }
        let handshake = matches!(went_on, Some(Ok(()))).then_some((tls, name));
        Some(Begun { early, handshake })
    }
}

/// Connects for an attempt, which is forgotten if nobody goes on with it.
async fn connect(
    (inner, connector): (Weak<Inner>, Connector),
    (attempt, places): (AttemptId, Vec<Candidate>),
    mut connected: oneshot::Sender<(TcpStream, Candidate)>,
) {
    let forgotten_at = time::Instant::now() + TAKING_TIMEOUT;
    let connection = tokio::select! {
        connection = dial::connect_any(&connector, &places) => connection,
        // Somebody has gone on with it in another way.
        () = connected.closed() => return,
    };
    match connection {
        // The same.
        Ok(connection) => drop(connected.send(connection)),
        Err(error) => {
            tracing::debug!(%error, "no connection was made while a path was asked for");
            drop(connected);
        }
    }
    time::sleep_until(forgotten_at).await;
    if let Some(inner) = inner.upgrade() {
        lock(&inner.attempts).remove(&attempt);
    }
}

impl Inner {
    /// Links with a peer by what was begun for it, or else in the ordinary way.
    pub(super) async fn go_on(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        begun: Begun,
        leg: Option<Leg>,
    ) -> Result<LinkId, DialError> {
        let Begun { early, handshake } = begun;
        let has_relay = leg.is_some();
        let Some(handshake) = handshake else {
            return self.race(peer, (Some(early), leg)).await;
        };
        match first_ready(early, leg).await {
            Ready::Direct(socket, place) => {
                let socket = Arc::new(Socket::from(socket));
                dial::prepare(&socket).map_err(|source| failed(place.address, source))?;
                let channel = Channel::go_on(socket, handshake, None);
                let ends = (place.address, place.kind.into(), PathKind::Direct);
                let link = self.lead_unproven(peer, channel, ends)?;
                peer.act(|state, _| state.reach.last = Some(place));
                Ok(link)
            }
            Ready::Relayed(Ahead { what, stream, joined }, early) => {
                dial::prepare(&stream).map_err(|source| failed(what.address, source))?;
                let channel = Channel::go_on(stream, handshake, Some(joined));
                let link =
                    self.lead_unproven(peer, channel, (what.address, Via::Relay, PathKind::Relayed))?;
                // What it comes to takes the tunnels over.
                self.dial_beside(peer, early);
                Ok(link)
            }
            Ready::Full(early) => beside_full_relay(self.dial_or_await(peer, early)).await,
            Ready::Nothing(early, None) if has_relay => self.dial_without_relay(peer, early).await,
            Ready::Nothing(early, leg) => self.race(peer, (early, leg)).await,
        }
    }

    /// Begins to drive a link on which this side has proven the peer's key, though not yet that the connection leads there.
    fn lead_unproven(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        channel: Channel,
        (remote, via, path): (SocketAddr, Via, PathKind),
    ) -> Result<LinkId, DialError> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| DialError::TooManyLinks)?;
        let local = channel.socket().local_addr().map_err(|source| failed(remote, source))?;
        let standing = standing(Side::Client, Purpose::Shared, path);
        let link = self.start(
            peer,
            standing,
            Connected::Tcp(Box::new(channel)),
            (local, remote, via),
            (permit, None),
        );
        let peer = Arc::downgrade(peer);
        lock(&self.helpers).spawn(async move {
            time::sleep(PROOF_TIMEOUT).await;
            if let Some(peer) = peer.upgrade() {
                peer.act(|state, now| {
                    if !state.bundle.is_up(link) {
                        state.bundle.doubt(link, now);
                    }
                });
            }
        });
        Ok(link)
    }
}

/// Waits for a connection, direct or at a relay, on which something can be said; the direct one is preferred.
async fn first_ready(early: Early, leg: Option<Leg>) -> Ready {
    let until = time::Instant::now() + CONNECTION_WAIT;
    let (mut early, mut leg) = (Some(early), leg);
    while early.is_some() || leg.is_some() {
        tokio::select! {
            biased;
            connected = awaited(&mut early) => match connected {
                Ok((socket, place)) => return Ready::Direct(socket, place),
                Err(_failed) => early = None,
            },
            asked = awaited(&mut leg) => match asked {
                Ok(asked) => return match asked.go_ahead() {
                    Some(ahead) => Ready::Relayed(ahead, early),
                    None => Ready::Full(early),
                },
                Err(_failed) => leg = None,
            },
            () = time::sleep_until(until) => break,
        }
    }
    Ready::Nothing(early, leg)
}

/// Waits for ever if there is nothing to wait for.
async fn awaited<T>(receiver: &mut Option<oneshot::Receiver<T>>) -> Result<T, oneshot::error::RecvError> {
    match receiver {
        Some(receiver) => receiver.await,
        None => std::future::pending().await,
    }
}

fn failed(address: SocketAddr, source: impl Into<ChannelError>) -> DialError {
    DialError::Failed { address, source: source.into() }
}
