//! Asking a device for its certificate, on the LAN or through a tunnel.
//!
//! A pin is SHA-256 of the certificate itself, so neither issuer nor name nor date count: devices sign their own. What
//! counts besides the hash is that the device holds the certificate's key, which the handshake proves.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::node::PinProof;
use peerage_proto::session::Read;
use rustls::ClientConnection;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time;

use crate::link::Stream;
use crate::tls::AnyCertificate;

/// How long a device may take for its handshake. Printers sign slowly; longer makes a user wait for one that hangs.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest certificate chain of a device, in bytes, that is read; a handshake of more is given up.
const MAX_HANDSHAKE_BYTES: usize = 128 * 1_024;

/// Asks the device at an address.
pub async fn prove(address: SocketAddr, pins: &[[u8; 32]]) -> PinProof {
    let asked = async {
        let mut socket = TcpStream::connect(address).await?;
        let mut probe = Probe::new(address)?;
        let mut buffer = [0; 4_096];
        while !probe.is_done() {
            socket.write_all(&probe.take_output()?).await?;
            if probe.is_done() {
                break;
            }
            let count = socket.read(&mut buffer).await?;
            probe.received(buffer.get(..count).unwrap_or_default())?;
        }
        probe.certificate().ok_or(io::ErrorKind::UnexpectedEof.into())
    };
    judge(time::timeout(HANDSHAKE_TIMEOUT, asked).await.unwrap_or(Err(io::ErrorKind::TimedOut.into())), pins)
}

/// Asks the device at the other end of a tunnel that was opened for this purpose alone.
pub async fn prove_through(stream: &Stream, pins: &[[u8; 32]]) -> PinProof {
    let asked = async {
        // No name is sent, so the address in it does not matter.
        let mut probe = Probe::new(SocketAddr::from(([0, 0, 0, 0], 443)))?;
        while !probe.is_done() {
            let mut bytes = Bytes::from(probe.take_output()?);
            while !bytes.is_empty() {
                if stream.write(&mut bytes).map_err(io::Error::other)? == 0 {
                    stream.changed().await;
                }
            }
            if probe.is_done() {
                break;
            }
            let mut pieces = Vec::new();
            let end = stream.read(&mut pieces, MAX_HANDSHAKE_BYTES);
            for piece in &pieces {
                probe.received(piece)?;
            }
            match end {
                Read::Pending | Read::Bytes(_) if pieces.is_empty() => stream.changed().await,
                Read::Pending | Read::Bytes(_) => {}
                Read::Finished | Read::Reset(_) => probe.received(&[])?,
            }
        }
        probe.certificate().ok_or(io::ErrorKind::UnexpectedEof.into())
    };
    judge(time::timeout(HANDSHAKE_TIMEOUT, asked).await.unwrap_or(Err(io::ErrorKind::TimedOut.into())), pins)
}

fn judge(shown: io::Result<[u8; 32]>, pins: &[[u8; 32]]) -> PinProof {
    match shown {
        Ok(hash) if pins.contains(&hash) => PinProof::Matches,
        Ok(hash) => PinProof::Differs(hash),
        Err(error) => {
            tracing::debug!(%error, "a device did not show its certificate");
            PinProof::NoAnswer
        }
    }
}

/// A handshake as far as the proof of the certificate's key.
struct Probe {
    tls: ClientConnection,
    seen: Arc<AnyCertificate>,
    read_bytes: usize,
}

impl Probe {
    fn new(address: SocketAddr) -> io::Result<Self> {
        let (mut config, seen) = AnyCertificate::client().map_err(io::Error::other)?;
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        let name = ServerName::IpAddress(address.ip().into());
        let tls = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        Ok(Self { tls, seen, read_bytes: 0 })
    }

    /// Whether the certificate is known and its key proven; the rest of the handshake does not matter.
    fn is_done(&self) -> bool {
        self.certificate().is_some()
    }

    fn certificate(&self) -> Option<[u8; 32]> {
        self.seen.proven()
    }

    fn take_output(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut bytes)?;
        }
        Ok(bytes)
    }

    fn received(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.read_bytes += bytes.len();
        if bytes.is_empty() || self.read_bytes > MAX_HANDSHAKE_BYTES {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !bytes.is_empty() && !self.is_done() {
            self.tls.read_tls(&mut bytes)?;
            // An error after the proof changes nothing.
            if let Err(error) = self.tls.process_new_packets()
                && !self.is_done()
            {
                return Err(io::Error::other(error));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use peerage_wire::id::sha256;
    use rustls::ServerConfig;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[tokio::test]
    async fn a_device_is_known_by_its_certificate_in_both_versions_of_tls() {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let (address, hash) = device(version).await;
            assert_eq!(prove(address, &[[0; 32], hash]).await, PinProof::Matches);
            assert_eq!(prove(address, &[[0; 32]]).await, PinProof::Differs(hash));
        }
    }

    #[tokio::test]
    async fn silence_and_other_protocols_prove_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = socket.write_all(b"220 printer ready\r\n").await;
            }
        });
        assert_eq!(prove(address, &[[0; 32]]).await, PinProof::NoAnswer);
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(prove(closed, &[[0; 32]]).await, PinProof::NoAnswer);
    }

    async fn device(version: &'static rustls::SupportedProtocolVersion) -> (SocketAddr, [u8; 32]) {
        let made = rcgen::generate_simple_self_signed(vec!["printer".to_owned()]).unwrap();
        let hash = sha256(&[made.cert.der()]);
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // The probe leaves as soon as it knows.
                let _ = acceptor.accept(socket).await;
            }
        });
        (address, hash)
    }
}
