//! Links on QUIC, over the socket of the messages: what reaches a node by UDP alone needs no relay.
//!
//! The handshake is that of every link (Rule 7.1); what differs is how frames travel (Rule 7.35): each session has a stream of its own, so
//! that a lost packet holds up nobody else, and its datagrams are never sent again.
//!
//! Whoever sends the first packet of a connection may have written any address on it. So at most [`MAX_UNPROVEN`] handshakes are begun with
//! strangers at a time; further ones have to prove their address first, for which nothing is remembered (Rule 7.36).

pub(super) mod driver;
mod reader;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use peerage_proto::link::bundle::{PathKind, Purpose};
use peerage_proto::link::{MAX_STREAMS, Side};
use peerage_wire::frame::{Code, MAX_DATAGRAM};
use peerage_wire::id::NodeId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, Incoming, ServerConfig, TokioRuntime,
    TransportConfig, ValidationTokenConfig, VarInt,
};
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time;

use super::channel::ChannelError;
use super::dial::route_to;
use super::listen::{HANDSHAKE_TIMEOUT, MAX_HANDSHAKES, MAX_HANDSHAKES_PER_PLACE, MAX_LINKS_PER_PLACE};
use super::paths::Expected;
use super::{Connected, Inner, Via, standing};
use crate::door::Door;
use crate::places::{Counted, Places};
use crate::tls::{Tls, UNNAMED, proven};
use crate::udp::SharedSocket;

/// The most handshakes at a time with strangers who have not proven their address; the next ones cost them a round trip more. More lets
/// packets with false addresses cost this node more work, fewer slows down an office that comes back after an outage.
const MAX_UNPROVEN: usize = 32;

/// The most first packets that wait to be looked at.
const MAX_INCOMING: usize = 64;

/// What they may hold together, in bytes; some packets of each.
const INCOMING_BYTES: u64 = 512 * 1_024;

/// What a stream may have received and not passed on, in bytes. Sessions read at once, so this is what fits between two acknowledgements of
/// credit. From about 2.4 MB on, losses can leave more gaps in the order of a stream than quinn keeps, and it gives the connection up.
const STREAM_WINDOW: u32 = 2 << 20;

/// The same for all streams of a connection, in bytes.
const CONNECTION_WINDOW: u32 = 4 << 20;

/// What may be sent and not acknowledged, in bytes, over all streams together: less than a stream may receive even if its receiver is late to
/// say that it has room, so that no stream is ever held up alone and a stream that waits means that the path is full. Raised, one stream could
/// hold up the others; lowered, long fast paths are not filled: 1.5 MiB are 120 Mbit/s at 100 ms.
const SEND_WINDOW: u64 = 3 << 19;

/// The most streams that a client may have open: those in use, those that end, and the one for frames of the link. More gives a liar more
/// places for parts of frames, fewer makes openings wait that follow upon ends.
const MAX_OPEN_STREAMS: u32 = 1_024;
const _: () = assert!(MAX_OPEN_STREAMS as usize > 2 * MAX_STREAMS, "ends must not stop openings");

/// What waits of datagrams in each direction, in bytes: the [64](peerage_proto::session) of a session.
const DATAGRAM_BUFFER: usize = 64 * MAX_DATAGRAM;

/// When a connection that nobody hears is given up, which the link does before (Rule 7.11).
const IDLE_TIMEOUT: Duration = Duration::from_secs(40);

/// QUIC on one socket.
#[derive(Debug)]
pub(super) struct Quic {
    endpoint: Endpoint,
    pub(super) expected: Expected,
    /// For connections that this node begins.
    transport: Arc<TransportConfig>,
}

impl Quic {
    /// Begins to read the socket.
    pub(super) fn new(tls: &Tls, socket: Arc<SharedSocket>) -> io::Result<Self> {
        let mut config = EndpointConfig::default();
        // The bit tells QUIC from messages.
        config.grease_quic_bit(false);
        let endpoint =
            Endpoint::new_with_abstract_socket(config, Some(server(tls)?), socket, Arc::new(TokioRuntime))?;
        Ok(Self { endpoint, expected: Expected::default(), transport: Arc::new(transport(0)?) })
    }

    /// Connects to the node that holds this key, and to no other.
    pub(super) async fn connect(
        &self,
        tls: &Tls,
        identity: [u8; 32],
        remote: SocketAddr,
    ) -> Result<Connection, ChannelError> {
        let crypto = QuicClientConfig::try_from(tls.client(identity)?).map_err(io::Error::other)?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::clone(&self.transport));
        let connecting = self.endpoint.connect_with(config, remote, UNNAMED).map_err(io::Error::other)?;
        let connection = connecting.await?;
        // The verifier has seen the key already.
        if peer_of(&connection) != Some(identity) {
            return Err(ChannelError::Misplaced);
        }
        Ok(connection)
    }

    /// Tells whoever is left that this node is gone.
    pub(super) fn close(&self) {
        self.endpoint.close(reason(Code::Shutdown), b"");
    }
}

fn server(tls: &Tls) -> io::Result<ServerConfig> {
    let crypto = QuicServerConfig::try_from(tls.server()).map_err(io::Error::other)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    let mut tokens = ValidationTokenConfig::default();
    // They would only tell who comes back.
    tokens.sent(0);
    config
        .transport_config(Arc::new(transport(MAX_OPEN_STREAMS)?))
        .validation_token_config(tokens)
        // A link is one path; sessions move from one to another by themselves.
        .migration(false)
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BYTES / 16)
        .incoming_buffer_size_total(INCOMING_BYTES);
    Ok(config)
}

/// Packets have at most 1,200 bytes at first and grow only as far as probes of that size arrive; where longer ones begin to vanish they
/// shrink again. So a path for 1,280 bytes is never lost.
fn transport(max_streams: u32) -> io::Result<TransportConfig> {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE_TIMEOUT).map_err(io::Error::other)?;
    config
        .max_concurrent_bidi_streams(max_streams.into())
        .max_concurrent_uni_streams(0_u32.into())
        .max_idle_timeout(Some(idle))
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER);
    Ok(config)
}

/// Returns the code as a connection's end says it.
fn reason(code: Code) -> VarInt {
    VarInt::from_u32(code.to_u16().into())
}

/// Returns the identity key that the peer has proven.
fn peer_of(connection: &Connection) -> Option<[u8; 32]> {
    let certificates = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    proven(&certificates)
}

/// What a node that lets links in over QUIC counts.
struct Listening {
    inner: Weak<Inner>,
    expected: Expected,
    handshakes: Places,
    links: Places,
    unproven: Arc<Semaphore>,
}

/// Accepts whom the door lets in, or all if there is none, until the links are gone.
async fn serve(inner: Weak<Inner>, (endpoint, expected): (Endpoint, Expected), door: Option<Door>) {
    let listening = Arc::new(Listening {
        inner,
        expected,
        handshakes: Places::new(MAX_HANDSHAKES_PER_PLACE, MAX_HANDSHAKES),
        links: Places::new(MAX_LINKS_PER_PLACE, super::MAX_LINKS),
        unproven: Arc::new(Semaphore::new(MAX_UNPROVEN)),
    });
    let mut tasks = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while tasks.try_join_next().is_some() {}
        if door.as_ref().is_some_and(|door| !door.takes_links()) {
            incoming.ignore();
            continue;
        }
        let remote = canonical(incoming.remote_address());
        let Some((incoming, counted)) = listening.admit(incoming, remote) else { continue };
        let listening = Arc::clone(&listening);
        tasks.spawn(async move {
            match time::timeout(HANDSHAKE_TIMEOUT, greet(incoming)).await {
                Ok(Ok((connection, identity))) => {
                    drop(counted);
                    listening.welcome(connection, identity, remote);
                }
                Ok(Err(error)) => tracing::debug!(%remote, %error, "a handshake failed"),
                Err(_elapsed) => tracing::debug!(%remote, "a handshake took too long"),
            }
        });
    }
}

/// What a handshake takes up while it lasts: of its place if the address is proven, else of what strangers have together.
type Handshake = (Option<Counted>, Option<OwnedSemaphorePermit>);

impl Listening {
    /// Begins a handshake with somebody, or asks for a proof of the address first, or neither.
    fn admit(&self, incoming: Incoming, remote: SocketAddr) -> Option<(Incoming, Handshake)> {
        // Who is expected has proven the address by a sealed message.
        if incoming.remote_address_validated() || self.expected.contains(remote, time::Instant::now()) {
            let Some(counted) = self.handshakes.take(remote.ip()) else {
                tracing::debug!(%remote, "a handshake beyond the limits was refused");
                incoming.refuse();
                return None;
            };
            return Some((incoming, (Some(counted), None)));
        }
        match Arc::clone(&self.unproven).try_acquire_owned() {
            Ok(permit) => Some((incoming, (None, Some(permit)))),
            Err(_) => {
                // An answer is shorter than its cause, and nothing is kept.
                if let Err(error) = incoming.retry() {
                    error.into_incoming().ignore();
                }
                None
            }
        }
    }

    /// Makes a link of a connection whose handshake is complete.
    fn welcome(&self, connection: Connection, identity: [u8; 32], remote: SocketAddr) {
        let Some(inner) = self.inner.upgrade() else { return };
        let permits = self.links.take(remote.ip()).zip(Arc::clone(&inner.permits).try_acquire_owned().ok());
        let Some((count, permit)) = permits else {
            tracing::debug!(%remote, "a link beyond the limits was closed");
            connection.close(reason(Code::Limit), b"");
            return;
        };
        // Only nodes of the same domain have tunnels between them; HELLO has to name the same.
        let peer = inner.peer(NodeId::new(inner.config.local.domain, &identity));
        let standing = standing(Side::Server, Purpose::Shared, PathKind::Quic);
        let local = local(&connection, remote);
        let ends = (local, remote, Via::Direct);
        inner.start(&peer, standing, Connected::Quic(connection), ends, (permit, Some(count)));
    }
}

async fn greet(incoming: Incoming) -> Result<(Connection, [u8; 32]), ChannelError> {
    let connection = incoming.accept()?.await?;
    let identity = peer_of(&connection).ok_or(ChannelError::Misplaced)?;
    Ok((connection, identity))
}

/// Returns from which address of this computer packets of a connection go out.
pub(super) fn local(connection: &Connection, remote: SocketAddr) -> SocketAddr {
    let ip = connection.local_ip().map(|ip| ip.to_canonical()).or_else(|| route_to(remote));
    SocketAddr::new(ip.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()), 0)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl super::Links {
    /// Dials and, as tunnel-node, accepts links on QUIC over this socket, from whom the door lets in, or from all if there is none. Only the
    /// first socket counts.
    ///
    /// # Errors
    /// If QUIC refuses its configuration.
    pub(crate) fn use_quic(&self, socket: Arc<SharedSocket>, door: Option<Door>) -> io::Result<()> {
        let quic = Quic::new(&self.inner.config.tls, socket)?;
        let listening = (quic.endpoint.clone(), quic.expected.clone());
        if self.inner.quic.set(quic).is_ok() {
            super::lock(&self.inner.helpers).spawn(serve(Arc::downgrade(&self.inner), listening, door));
        }
        Ok(())
    }
}
