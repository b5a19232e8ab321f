//! Connections that others make for their messages: what they see of this computer, and who it is that they want.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{Error, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::{StartHandshake, TlsStream};

use super::convey::convey;
use super::poll::Polled;
use super::{Content, Streams};
use crate::http::{self, ALPN_HTTP, Limits, Stay};
use crate::places::Places;
use crate::relay::{self, Legs};
use crate::socket::{ROOM_BYTES, Socket, pipe};

/// What one connection on which HTTP is spoken may take at a super-node, until it carries something: in a WebSocket or in requests.
const HTTP_LIMITS: Limits = Limits {
    connections: MAX_HTTP,
    head_timeout: Duration::from_secs(10),
    lifetime: Some(Duration::from_secs(20)),
};

/// Connections on which HTTP is spoken, from everywhere; each is one for a round trip. More keeps memory for strangers.
const MAX_HTTP: usize = 512;

/// The same from one [place](Places): a company behind one address, all at once after an outage.
const MAX_HTTP_PER_PLACE: usize = 64;

/// A certificate chain with its key.
pub type Certificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Returns how TLS is set up at a port that takes messages and HTTP.
///
/// # Errors
/// If the certificate and its key do not belong together, or are of a kind that is not supported.
pub fn server_config((chain, key): Certificate) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let ours = Content::ALL.map(Content::alpn);
    config.alpn_protocols = ours.into_iter().chain([ALPN_HTTP]).map(<[u8]>::to_vec).collect();
    Ok(Arc::new(config))
}

/// Takes what members bring inside other protocols: messages for the machine, legs for the relay. Clones share it.
#[derive(Clone, Debug)]
pub struct Intake {
    streams: Streams,
    legs: Legs,
    pub(super) polled: Polled,
}

impl Intake {
    /// Makes it of those who are handed what comes.
    pub fn new(streams: Streams, legs: Legs) -> Self {
        Self { streams, legs, polled: Polled::default() }
    }

    /// Takes a connection that begins as a leg; returns at once.
    pub fn take_leg(&self, stream: impl Into<Socket>, remote: SocketAddr) {
        // A socket of both families shows IPv4 addresses as IPv6; members know them as IPv4.
        self.legs.accept(stream, SocketAddr::new(remote.ip().to_canonical(), remote.port()));
    }

    /// Serves a connection inside another protocol until it ends.
    pub async fn serve<S>(&self, content: Content, io: S, remote: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match content {
            Content::Messages => self.streams.serve(io, remote).await,
            Content::Leg => {
                // Nobody asks a leg at its relay for the address of this end.
                let (near, far) = pipe(remote, ROOM_BYTES);
                self.take_leg(near, remote);
                convey(io, far).await;
            }
        }
    }
}

/// The same at the TCP port of a super-node, with the TLS of what is no link, and HTTP. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct TlsIntake {
    intake: Intake,
    tls: Arc<ServerConfig>,
    http: Places,
}

impl TlsIntake {
    /// Makes it, with a certificate for the occasion that is signed by itself and says nothing: nobody judges it.
    ///
    /// # Errors
    /// If none can be made.
    pub(crate) fn new(intake: Intake) -> Result<Self, Error> {
        let make = || {
            let mut params = CertificateParams::new(Vec::new())?;
            params.distinguished_name.push(DnType::CommonName, "Peerage");
            let key = KeyPair::generate()?;
            let certificate = params.self_signed(&key)?;
            let key = PrivatePkcs8KeyDer::from(key.serialize_der());
            Ok::<_, rcgen::Error>((vec![certificate.der().clone()], key.into()))
        };
        let certificate = make().map_err(|error| Error::General(error.to_string()))?;
        let http = Places::new(MAX_HTTP_PER_PLACE, MAX_HTTP);
        Ok(Self { intake, tls: server_config(certificate)?, http })
    }

    /// Takes a connection that begins as a leg; returns at once.
    pub(crate) fn take_leg(&self, stream: TcpStream, remote: SocketAddr) {
        self.intake.take_leg(stream, remote);
    }

    /// Goes on with a TLS handshake that begins no link. The caller limits the time.
    pub(crate) async fn handshake(
        &self,
        start: StartHandshake<TcpStream>,
    ) -> io::Result<TlsStream<TcpStream>> {
        relay::prepare(&start.io)?;
        start.into_stream(Arc::clone(&self.tls)).await
    }

    /// Serves what has shaken hands, until it ends.
    pub(crate) async fn serve(&self, io: TlsStream<TcpStream>, remote: SocketAddr) {
        match Content::of(&io) {
            Some(content) => self.intake.serve(content, io, remote).await,
            None => self.serve_http(io, remote).await,
        }
    }

    /// Serves a connection that begins with HTTP, until it ends or becomes something else.
    pub(crate) async fn serve_open(&self, stream: TcpStream, remote: SocketAddr) -> io::Result<()> {
        relay::prepare(&stream)?;
        self.serve_http(stream, remote).await;
        Ok(())
    }

    async fn serve_http<S>(&self, io: S, remote: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(counted) = self.http.take(remote.ip()) else {
            tracing::debug!(%remote, "a connection for HTTP beyond the limits was closed");
            return;
        };
        // It ends with the task that serves it.
        let (_end, ending) = watch::channel(false);
        let stay = Stay::new(counted);
        let router = self.intake.routes(remote, &stay);
        stay.within(HTTP_LIMITS.lifetime, http::serve_stream(io, router, HTTP_LIMITS, ending)).await;
    }
}
