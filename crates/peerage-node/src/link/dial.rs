//! Connecting to the candidate that answers first.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use peerage_wire::limits::MAX_CANDIDATES;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time;

use super::channel::{Channel, ChannelError};
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
    /// This node has its limit of links, or of links to this peer.
    #[error("this computer has as many connections to other computers as it may have")]
    TooManyLinks,
}

/// The payload of a TCP segment that makes a packet of 1,280 bytes, the least that IPv6 asks of every link (RFC 8200, section 5): less 40
/// for its header and 20 for that of TCP. Longer packets vanish on some paths, and so does the message that should say so. Longer ones would
/// carry one part in a hundred more.
const SEGMENT_BYTES: u32 = 1_220;

/// Connects to the peer with this key at the first candidate that leads to it.
pub(super) async fn dial(
    tls: &Tls,
    identity: [u8; 32],
    candidates: &[SocketAddr],
) -> Result<(Channel, SocketAddr), DialError> {
    let attempts = candidates.iter().take(MAX_CANDIDATES + 1).copied();
    let mut waiting = attempts.collect::<std::collections::VecDeque<_>>();
    let mut running = FuturesUnordered::new();
    let mut last_error = DialError::NoCandidate;
    loop {
        if running.is_empty() || !waiting.is_empty() {
            match waiting.pop_front() {
                Some(address) => running.push(attempt(tls, identity, address)),
                None if running.is_empty() => return Err(last_error),
                None => {}
            }
        }
        tokio::select! {
            Some((address, result)) = running.next() => match result {
                Ok(channel) => return Ok((channel, address)),
                Err(source) => {
                    tracing::debug!(%address, error = %source, "a candidate failed");
                    last_error = DialError::Failed { address, source };
                }
            },
            () = time::sleep(STAGGER), if !waiting.is_empty() => {}
        }
    }
}

async fn attempt(
    tls: &Tls,
    identity: [u8; 32],
    address: SocketAddr,
) -> (SocketAddr, Result<Channel, ChannelError>) {
    let connected = async {
        let socket = connect(address).await?;
        prepare(&socket)?;
        let mut channel = Channel::new(socket, tls.connect(identity)?.into());
        channel.handshake().await?;
        // The verifier has seen the key; what is left is a server without our ALPN.
        if peer_identity(channel.tls()) != Some(identity) {
            return Err(rustls::Error::NoApplicationProtocol.into());
        }
        Ok(channel)
    };
    let timeout = || Err(io::Error::from(io::ErrorKind::TimedOut).into());
    (address, time::timeout(CANDIDATE_TIMEOUT, connected).await.unwrap_or_else(|_| timeout()))
}

/// Opens a connection on which both sides send packets that every path carries (Rule 7.28).
pub(crate) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // The first packet tells the peer to keep to it as well.
    #[cfg(unix)]
    socket2::SockRef::from(&socket).set_tcp_mss(SEGMENT_BYTES)?;
    socket.connect(address).await
}

/// Unsent bytes beyond this stay with the session, which can still put a small frame before them. Raised, a keystroke
/// waits behind a print job in the socket; lowered, fast paths run dry.
#[cfg(target_os = "linux")]
const NOTSENT_LOWAT_BYTES: u32 = 128 * 1_024;

/// Sets what every link's socket has.
pub(super) fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(socket).set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
    Ok(())
}
