//! Connecting to the candidate that answers first.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use peerage_wire::codec::{Candidate, Transport};
use peerage_wire::limits::MAX_CANDIDATES;
use tokio::net::TcpStream;
use tokio::time;

use super::attempt::Early;
use super::channel::{Channel, ChannelError};
use super::quic::Quic;
use super::{Connected, LinkConfig};
use crate::connect::Connector;
use crate::race;
use crate::socket::Socket;
use crate::tls::{Tls, peer_identity};

/// How long the next candidate waits for the one before it (RFC 8305, section 5, recommends 250 ms). Shorter burdens
/// networks with connections that nobody needs, longer makes users wait for dead candidates.
const STAGGER: Duration = Duration::from_millis(250);

/// How long a candidate may take to connect and to prove itself: three lost packets in a row on a bad path.
pub(super) const CANDIDATE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a peer could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// There was no candidate and no link.
    #[error("no address of the tunnel-node is known")]
    NoCandidate,
    /// The last candidate that was given up; the others failed before it.
    #[error("{address}: {source}")]
    Failed {
        /// Which candidate.
        address: SocketAddr,
        /// Why.
        source: ChannelError,
    },
    /// It took longer than may be waited for.
    #[error("no address of the tunnel-node answered in time")]
    TimedOut,
    /// No address led to the peer, and the relay at which both could meet has refused.
    #[error(
        "no direct way leads there, and those who could relay give no more at the moment; try again later"
    )]
    RelayFull,
    /// This node has its limit of links, or of links to this peer.
    #[error("this computer has as many connections to other computers as it may have")]
    TooManyLinks,
}

/// Connects to the peer with this key at the first candidate that leads to it, or on the connection that is being made already; by UDP
/// only with QUIC.
pub(super) async fn dial(
    (config, quic): (&LinkConfig, Option<&Quic>),
    identity: [u8; 32],
    candidates: &[Candidate],
    early: Option<Early>,
) -> Result<(Connected, Candidate), DialError> {
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    let first = early.map(|early| {
        let address = candidates.first().map_or(unknown, |candidate| candidate.address);
        let connected = async move {
            let gone = |_failed| io::Error::from(io::ErrorKind::NotConnected);
            let (socket, candidate) = early.await.map_err(gone)?;
            let channel = prove(&config.tls, identity, socket).await?;
            Ok((Connected::Tcp(Box::new(channel)), candidate))
        };
        async move { (address, within(CANDIDATE_TIMEOUT, connected).await) }.boxed()
    });
    let others = in_turn(candidates).into_iter().map(|candidate| {
        let connected = attempt((config, quic), identity, candidate);
        async move { (candidate.address, within(CANDIDATE_TIMEOUT, connected).await) }.boxed()
    });
    first_of(first.into_iter().chain(others)).await
}

/// Connects by TCP to the first of these places that takes a connection, and says nothing.
pub(super) async fn connect_any(
    connector: &Connector,
    places: &[Candidate],
) -> Result<(TcpStream, Candidate), DialError> {
    let attempts = places.iter().take(MAX_CANDIDATES).map(|place| {
        let place = *place;
        let connected =
            async move { Ok((connector.connect(place.address).await.map_err(io::Error::from)?, place)) };
        async move { (place.address, within(CANDIDATE_TIMEOUT, connected).await) }.boxed()
    });
    first_of(attempts).await
}

/// One attempt, with the address that it is about.
type Trial<'a, T> = BoxFuture<'a, (SocketAddr, Result<T, ChannelError>)>;

/// Makes attempts, each a little after the one before or as soon as that has failed, until one succeeds.
async fn first_of<'a, T>(attempts: impl Iterator<Item = Trial<'a, T>>) -> Result<T, DialError> {
    race::first_of(STAGGER, attempts.map(told).collect())
        .await
        .map_err(|error| error.unwrap_or(DialError::NoCandidate))
}

/// Says why an attempt has failed.
async fn told<T>(attempt: Trial<'_, T>) -> Result<T, DialError> {
    let (address, result) = attempt.await;
    result.map_err(|source| {
        tracing::debug!(%address, error = %source, "a candidate failed");
        DialError::Failed { address, source }
    })
}

/// Orders candidates so that each transport has every second turn, TCP the first: one that a firewall swallows does not hold up the other.
fn in_turn(candidates: &[Candidate]) -> VecDeque<Candidate> {
    let of = |transport| candidates.iter().copied().filter(move |candidate| candidate.transport == transport);
    let (mut tcp, mut udp) = (of(Transport::Tcp), of(Transport::Udp));
    let pairs = std::iter::from_fn(|| {
        let pair = [tcp.next(), udp.next()];
        pair.iter().any(Option::is_some).then_some(pair)
    });
    pairs.flatten().flatten().take(MAX_CANDIDATES + 1).collect()
}

async fn attempt(
    (config, quic): (&LinkConfig, Option<&Quic>),
    identity: [u8; 32],
    candidate: Candidate,
) -> Result<(Connected, Candidate), ChannelError> {
    let address = candidate.address;
    let connected = match (candidate.transport, quic) {
        (Transport::Tcp, _) => Connected::Tcp(Box::new(connect_channel(config, identity, address).await?)),
        (Transport::Udp, Some(quic)) => Connected::Quic(quic.connect(&config.tls, identity, address).await?),
        (Transport::Udp, None) => return Err(io::Error::from(io::ErrorKind::Unsupported).into()),
    };
    Ok((connected, candidate))
}

async fn within<T>(
    limit: Duration,
    attempt: impl Future<Output = Result<T, ChannelError>>,
) -> Result<T, ChannelError> {
    let late = || Err(io::Error::from(io::ErrorKind::TimedOut).into());
    time::timeout(limit, attempt).await.unwrap_or_else(|_elapsed| late())
}

/// Connects by TCP to the peer with this key.
pub(super) async fn connect_channel(
    config: &LinkConfig,
    identity: [u8; 32],
    address: SocketAddr,
) -> Result<Channel, ChannelError> {
    let socket = config.connector.connect(address).await.map_err(io::Error::from)?;
    prove(&config.tls, identity, socket).await
}

/// Makes the handshake with the peer that has this key.
async fn prove(tls: &Tls, identity: [u8; 32], socket: TcpStream) -> Result<Channel, ChannelError> {
    let socket = Arc::new(Socket::from(socket));
    prepare(&socket)?;
    let mut channel = Channel::new(socket, tls.connect(identity)?.into());
    channel.handshake().await?;
    // The verifier has seen the key; what is left is a server without our ALPN.
    if peer_identity(channel.tls()) != Some(identity) {
        return Err(rustls::Error::NoApplicationProtocol.into());
    }
    Ok(channel)
}

/// Unsent bytes beyond this stay with the session, which can still put a small frame before them. Raised, a keystroke
/// waits behind a print job in the socket; lowered, fast paths run dry.
#[cfg(target_os = "linux")]
const NOTSENT_LOWAT_BYTES: u32 = 128 * 1_024;

/// Sets what every link's socket has.
pub(super) fn prepare(socket: &Socket) -> io::Result<()> {
    // What goes inside something else has been prepared when that was.
    let Socket::Tcp(socket) = socket else { return Ok(()) };
    socket.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(socket).set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
    Ok(())
}

/// Returns from which of its addresses this computer would reach another now; nothing is sent.
pub(super) fn route_to(remote: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(remote).ok()?;
    socket.local_addr().ok().map(|local| local.ip())
}
