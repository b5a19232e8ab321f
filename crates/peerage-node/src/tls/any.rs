//! TLS with whoever answers: the certificate is taken as it is, and only its key must be proven.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use peerage_wire::id::sha256;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Takes any certificate whose key is proven, and keeps its hash. For connections where TLS is only a carrier, and
/// for asking a device which certificate it has.
#[derive(Debug)]
pub struct AnyCertificate {
    provider: Arc<CryptoProvider>,
    proven: Mutex<Option<[u8; 32]>>,
}

impl AnyCertificate {
    /// Makes the client's side of a TLS connection, version 1.2 or 1.3, and what will have seen the certificate.
    ///
    /// # Errors
    /// If rustls refuses its configuration.
    pub fn client() -> Result<(ClientConfig, Arc<Self>), Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let seen = Arc::new(Self { provider: Arc::clone(&provider), proven: Mutex::new(None) });
        let verifier: Arc<dyn ServerCertVerifier> = Arc::<Self>::clone(&seen);
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok((config, seen))
    }

    /// Makes TLS on a connection with whoever answers at this address, whom nothing is believed for it.
    ///
    /// # Errors
    /// What the connection or the handshake says.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        stream: S,
        address: SocketAddr,
        alpn: &[u8],
    ) -> io::Result<TlsStream<S>> {
        let (mut config, _seen) = Self::client().map_err(io::Error::other)?;
        config.alpn_protocols = vec![alpn.to_vec()];
        let name = ServerName::IpAddress(address.ip().into());
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Returns SHA-256 of the certificate, once its key was proven.
    pub fn proven(&self) -> Option<[u8; 32]> {
        *self.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, certificate: &CertificateDer<'_>) {
        *self.proven.lock().unwrap_or_else(PoisonError::into_inner) = Some(sha256(&[certificate]));
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _time: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let valid = verify_tls12_signature(message, certificate, signed, algorithms)?;
        self.note(certificate);
        Ok(valid)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let valid = verify_tls13_signature(message, certificate, signed, algorithms)?;
        self.note(certificate);
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
