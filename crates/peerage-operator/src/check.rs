//! Whether a computer that wants to serve others can be reached over TCP, and is the one that it says it is.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peerage_node::tls::{Tls, peer_identity};
use rustls::ClientConnection;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time;

/// How long one may take to connect and to prove itself. Longer keeps descriptors for addresses that lead nowhere,
/// shorter fails those who are far away.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Most checks at a time, each a descriptor; the others wait. With fewer, a thousand candidates of which none answers
/// take longer than the interval at which they are checked.
const MAX_CHECKS: usize = 64;

/// Connects to those who say where they can be reached. Clones share the limit.
#[derive(Clone, Debug)]
pub(crate) struct Checker {
    tls: Tls,
    free: Arc<Semaphore>,
}

impl Checker {
    pub(crate) fn new(tls: Tls) -> Self {
        Self { tls, free: Arc::new(Semaphore::new(MAX_CHECKS)) }
    }

    /// Returns whether whoever has this identity key answers at this address.
    pub(crate) async fn reaches(self, identity: [u8; 32], address: SocketAddr) -> bool {
        // The semaphore is never closed.
        let Ok(_permit) = self.free.acquire().await else { return false };
        match time::timeout(CHECK_TIMEOUT, connect(&self.tls, identity, address)).await {
            Ok(Ok(proven)) => proven,
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "a super-node cannot be reached over TCP");
                false
            }
            Err(_elapsed) => false,
        }
    }
}

async fn connect(tls: &Tls, identity: [u8; 32], address: SocketAddr) -> io::Result<bool> {
    let stream = TcpStream::connect(address).await?;
    let mut connection = tls.connect(identity).map_err(io::Error::other)?;
    handshake(&stream, &mut connection).await?;
    Ok(peer_identity(&connection) == Some(identity))
}

/// Completes the handshake, the own last flight included.
async fn handshake(stream: &TcpStream, tls: &mut ClientConnection) -> io::Result<()> {
    while tls.is_handshaking() || tls.wants_write() {
        if tls.wants_write() {
            stream.writable().await?;
            ready(tls.write_tls(&mut Now(stream)))?;
            continue;
        }
        stream.readable().await?;
        if ready(tls.read_tls(&mut Now(stream)))? == Some(0) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        tls.process_new_packets().map_err(io::Error::other)?;
    }
    Ok(())
}

/// Takes "not now" for no failure: the socket is asked again when it is ready.
fn ready(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// A socket as TLS wants it: what cannot be done at once is not done.
struct Now<'s>(&'s TcpStream);

impl Read for Now<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Now<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use peerage_wire::keys::IdentityKey;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    fn tls(seed: u8) -> (Tls, [u8; 32]) {
        let identity = IdentityKey::from_seed(&[seed; 32]);
        (Tls::new(&identity).unwrap(), identity.public())
    }

    /// A node of this identity that takes one connection.
    async fn node(seed: u8) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut tls = tls(seed).0.accept().unwrap();
            while tls.is_handshaking() {
                stream.ready(tokio::io::Interest::READABLE).await.unwrap();
                if ready(tls.read_tls(&mut Now(&stream))).unwrap() == Some(0) {
                    return;
                }
                let processed = tls.process_new_packets();
                while tls.wants_write() {
                    stream.writable().await.unwrap();
                    if ready(tls.write_tls(&mut Now(&stream))).is_err() {
                        return;
                    }
                }
                if processed.is_err() {
                    return;
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn whoever_proves_the_identity_reaches_and_nobody_else() {
        let checker = Checker::new(tls(1).0);
        let (_, wanted) = tls(2);
        assert!(checker.clone().reaches(wanted, node(2).await).await);
        assert!(!checker.reaches(wanted, node(3).await).await, "somebody else answers there");
    }

    #[tokio::test]
    async fn an_address_without_a_node_is_not_reached() {
        let checker = Checker::new(tls(1).0);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let noise = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        });
        assert!(!checker.clone().reaches([2; 32], address).await, "no TLS");
        noise.await.unwrap();
        assert!(!checker.reaches([2; 32], address).await, "nobody listens");
    }
}
