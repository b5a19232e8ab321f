//! Connections that others make for their messages: what they see of this computer, and who it is that they want.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{Error, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::server::{StartHandshake, TlsStream};

use super::{ALPN_MESSAGES, Streams};
use crate::http::ALPN_HTTP;
use crate::relay;

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
    config.alpn_protocols = vec![ALPN_MESSAGES.to_vec(), ALPN_HTTP.to_vec()];
    Ok(Arc::new(config))
}

/// What takes connections for messages at the TCP port of a super-node. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Messages {
    streams: Streams,
    tls: Arc<ServerConfig>,
}

impl Messages {
    /// Makes it, with a certificate for the occasion that is signed by itself and says nothing: nobody judges it.
    ///
    /// # Errors
    /// If none can be made.
    pub(crate) fn new(streams: Streams) -> Result<Self, Error> {
        let make = || {
            let mut params = CertificateParams::new(Vec::new())?;
            params.distinguished_name.push(DnType::CommonName, "Peerage");
            let key = KeyPair::generate()?;
            let certificate = params.self_signed(&key)?;
            let key = PrivatePkcs8KeyDer::from(key.serialize_der());
            Ok::<_, rcgen::Error>((vec![certificate.der().clone()], key.into()))
        };
        let certificate = make().map_err(|error| Error::General(error.to_string()))?;
        Ok(Self { streams, tls: server_config(certificate)? })
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
        if takes_messages(&io) {
            self.streams.serve(io, remote).await;
        }
    }
}

/// Returns whether both ends of a TLS connection have agreed to send messages on it.
pub fn takes_messages(io: &TlsStream<TcpStream>) -> bool {
    io.get_ref().1.alpn_protocol() == Some(ALPN_MESSAGES)
}
