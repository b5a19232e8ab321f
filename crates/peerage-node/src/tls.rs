//! TLS between nodes: version 1.3, raw Ed25519 keys in place of certificates (RFC 7250), and nothing remembered.
//!
//! Who a node is, is its key; there is nothing that a certificate could add. The connecting side knows whom it wants
//! and refuses every other key within the handshake. The accepting side takes any Ed25519 key whose holder proves it,
//! and [`peer_identity`] says which: what that node may do is decided later, from its records.
//!
//! Deliberately absent: tickets and resumption (a resumed handshake skips the check of the key), early data, server
//! names (there is none to tell a listener on the way).

mod any;
mod prepared;

use std::sync::Arc;

use ring::signature::Ed25519KeyPair;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime, alg_id,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, public_key_to_spki};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, CommonState, DigitallySignedStruct, DistinguishedName,
    Error, PeerIncompatible, ServerConfig, ServerConnection, SignatureScheme, version,
};
use zeroize::Zeroizing;

use peerage_wire::keys::IdentityKey;

pub use any::AnyCertificate;
pub(crate) use prepared::go_on;

/// What both ends of a link say that they want to speak.
pub const ALPN_TUNNEL: &[u8] = b"peerage-tunnel/1";

/// The first bytes of a PKCS #8 document (RFC 8410) around the 32 bytes of an Ed25519 seed.
const PKCS8_BEFORE_SEED: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Makes the two ends of links for one node. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Tls {
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
    server: Arc<ServerConfig>,
}

impl Tls {
    /// Prepares both ends with the node's identity.
    ///
    /// # Errors
    /// If the key cannot be used, which a key that has passed its self-test can.
    pub fn new(identity: &IdentityKey) -> Result<Self, Error> {
        let provider = provider();
        let key = Arc::new(certified(identity, &provider)?);
        let server = Arc::new(server_config(&provider, &key, None)?);
        Ok(Self { provider, key, server })
    }

    /// Begins a handshake with the node that holds `expected`, and with no other.
    ///
    /// # Errors
    /// If rustls refuses its configuration.
    pub fn connect(&self, expected: [u8; 32]) -> Result<ClientConnection, Error> {
        ClientConnection::new(Arc::new(self.client(expected)?), unnamed())
    }

    /// Returns how to begin handshakes with the node that holds `expected`, for QUIC.
    ///
    /// # Errors
    /// If rustls refuses its configuration.
    pub(crate) fn client(&self, expected: [u8; 32]) -> Result<ClientConfig, Error> {
        let verifier = RawKeyVerifier { expected: Some(expected), provider: Arc::clone(&self.provider) };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::clone(
                &self.key,
            ))));
        config.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// Returns how to begin the other side's handshakes, for QUIC.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// Begins the other side's handshake.
    ///
    /// # Errors
    /// If rustls refuses its configuration.
    pub fn accept(&self) -> Result<ServerConnection, Error> {
        ServerConnection::new(Arc::clone(&self.server))
    }
}

/// Returns how a server is set up that takes the key `expected`, or any.
fn server_config(
    provider: &Arc<CryptoProvider>,
    key: &Arc<CertifiedKey>,
    expected: Option<[u8; 32]>,
) -> Result<ServerConfig, Error> {
    let verifier = RawKeyVerifier { expected, provider: Arc::clone(provider) };
    let mut server = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::clone(key))));
    server.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(server)
}

/// Returns the identity key that the peer of a finished handshake has proven; `None` before, or without the right ALPN.
///
/// An old or foreign peer may offer no ALPN at all, which rustls lets pass; here it is refused.
pub fn peer_identity(connection: &CommonState) -> Option<[u8; 32]> {
    if connection.is_handshaking() || connection.alpn_protocol() != Some(ALPN_TUNNEL) {
        return None;
    }
    proven(connection.peer_certificates()?)
}

/// Returns the identity key among what the peer of a finished handshake has shown.
pub(crate) fn proven(certificates: &[CertificateDer<'_>]) -> Option<[u8; 32]> {
    let [key] = certificates else { return None };
    identity_of(key)
}

/// The cryptography of links: ring, whose AES-GCM is the fastest here for bulk, X25519 and TLS 1.3 suites only.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.kx_groups.retain(|group| group.name() == rustls::NamedGroup::X25519);
    Arc::new(provider)
}

/// rustls wants a name for the server even where none is sent; this one cannot exist.
fn unnamed() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

/// The same for QUIC.
pub(crate) const UNNAMED: &str = "0.0.0.0";

fn certified(identity: &IdentityKey, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    let mut document = Zeroizing::new(PKCS8_BEFORE_SEED.to_vec());
    document.extend_from_slice(identity.seed());
    // rustls would sign with whatever the document holds; this proves that it is the identity.
    let pair = Ed25519KeyPair::from_seed_and_public_key(identity.seed(), &identity.public());
    pair.map_err(|_| Error::General("the identity key does not match its public half".to_owned()))?;
    let key = provider.key_provider.load_private_key(PrivatePkcs8KeyDer::from(document.to_vec()).into())?;
    let public = key.public_key().ok_or(Error::General("the identity key has no public half".to_owned()))?;
    Ok(CertifiedKey::new(vec![CertificateDer::from(public.to_vec())], key))
}

/// Returns the key in a SubjectPublicKeyInfo, if it is Ed25519 in exactly the usual form.
fn identity_of(info: &[u8]) -> Option<[u8; 32]> {
    let key = info.last_chunk::<32>()?;
    (public_key_to_spki(&alg_id::ED25519, key).as_ref() == info).then_some(*key)
}

/// Accepts a raw Ed25519 key: a certain one, or any.
#[derive(Debug)]
struct RawKeyVerifier {
    expected: Option<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl RawKeyVerifier {
    fn check(&self, key: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        let key = identity_of(key).filter(|_| others.is_empty());
        let key = key.ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        match self.expected {
            Some(expected) if expected != key => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signed, algorithms)
    }
}

impl ServerCertVerifier for RawKeyVerifier {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _time: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(key, others).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for RawKeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _time: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(key, others).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
