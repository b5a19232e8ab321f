//! The one way by which TCP connections are opened to other computers of the network: directly, or through an HTTP proxy.
//!
//! A proxy that is configured comes first. If it fails, or takes its time, the address is dialled as well: a laptop that has left the
//! company's network keeps the company's settings. Devices are not reached by this, and what is [near](Exceptions) not through a proxy.
//!
//! ```text
//!   connect(address) ── near, excepted, or no proxy ──▶ dial
//!                    └─ else ──▶ proxy: CONNECT ──▶ stream
//!                          └ fails, or HEAD_START is over ──▶ dial beside it
//! ```

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use peerage_proto::proxy::Answer;
pub use peerage_proto::proxy::{Exceptions, Proxy, ProxyError, Refusal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time;

/// How long each way may take: three lost packets in a row on a bad path, or a slow proxy. Longer keeps people waiting for an address that
/// a firewall swallows; what waits for connections has limits of 10 s and more.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);

/// How long a proxy is given before the address is dialled as well. Shorter knocks at firewalls that want everybody to use the proxy,
/// longer makes a computer wait whose proxy is elsewhere.
const HEAD_START: Duration = Duration::from_secs(1);

/// How many bytes of a proxy's answer are looked at in one go.
const PEEK_BYTES: usize = 1_024;

/// The payload of a TCP segment that makes a packet of 1,280 bytes, the least that IPv6 asks of every link (RFC 8200, section 5): less 40
/// for its header and 20 for that of TCP. Longer packets vanish on some paths, and so does the message that should say so. Longer ones would
/// carry one part in a hundred more.
const SEGMENT_BYTES: u32 = 1_220;

/// Which proxy is used, and for what it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySettings {
    /// The proxy.
    pub proxy: Proxy,
    /// Who names it, for people: the configuration file, or a variable of the environment.
    pub source: &'static str,
    /// What is reached without it.
    pub exceptions: Exceptions,
}

/// Why a proxy did not connect.
#[derive(Debug, thiserror::Error)]
pub enum ProxyFault {
    /// The proxy itself cannot be reached.
    #[error("cannot be reached: {0}")]
    Io(#[from] io::Error),
    /// It has answered: no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Why an address cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// By the only way that there is.
    #[error("cannot connect: {0}")]
    Direct(io::Error),
    /// By neither way.
    #[error("the proxy {proxy}: {fault}; and directly: {direct}")]
    Neither {
        /// Which proxy.
        proxy: Proxy,
        /// What is wrong with it.
        fault: ProxyFault,
        /// Why it was not reached without it.
        direct: io::Error,
    },
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Direct(error) => error,
            ConnectError::Neither { ref direct, .. } => Self::new(direct.kind(), error),
        }
    }
}

/// What came of the proxy when it was asked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ProxyState {
    /// It was not asked yet.
    #[default]
    Unused,
    /// It has connected.
    Works,
    /// It has not; why, for people.
    Fails(String),
}

/// Opens connections. Clones share what they know of the proxy.
#[derive(Clone, Debug, Default)]
pub struct Connector {
    proxy: Option<Arc<Proxied>>,
}

#[derive(Debug)]
struct Proxied {
    settings: ProxySettings,
    state: Mutex<ProxyState>,
}

impl Connector {
    /// Makes the value; without a proxy it dials.
    #[must_use]
    pub fn new(settings: Option<ProxySettings>) -> Self {
        Self { proxy: settings.map(|settings| Arc::new(Proxied { settings, state: Mutex::default() })) }
    }

    /// Returns which proxy is used and what came of it last, if there is one.
    #[must_use]
    pub fn proxy(&self) -> Option<(ProxySettings, ProxyState)> {
        let Proxied { settings, state } = &**self.proxy.as_ref()?;
        Some((settings.clone(), state.lock().unwrap_or_else(PoisonError::into_inner).clone()))
    }

    /// Opens a connection on which both sides send packets that every path carries (Rule 7.28); of a proxy's answer nothing is left on it.
    ///
    /// # Errors
    /// If no way leads there.
    pub async fn connect(&self, address: SocketAddr) -> Result<TcpStream, ConnectError> {
        match self.proxy.as_ref().filter(|proxied| !proxied.settings.exceptions.contain(address)) {
            Some(proxied) => proxied.connect(address).await,
            None => dial(address).await.map_err(ConnectError::Direct),
        }
    }
}

impl Proxied {
    async fn connect(&self, address: SocketAddr) -> Result<TcpStream, ConnectError> {
        let mut proxied = pin!(self.through(address));
        let direct = match time::timeout(HEAD_START, &mut proxied).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(fault)) => return dial(address).await.map_err(|direct| self.neither(fault, direct)),
            Err(_elapsed) => dial(address),
        };
        let mut direct = pin!(direct);
        tokio::select! {
            result = &mut proxied => match result {
                Ok(stream) => Ok(stream),
                Err(fault) => direct.await.map_err(|direct| self.neither(fault, direct)),
            },
            result = &mut direct => match result {
                Ok(stream) => Ok(stream),
                Err(direct) => proxied.await.map_err(|fault| self.neither(fault, direct)),
            },
        }
    }

    /// Connects through the proxy, and keeps what came of it.
    async fn through(&self, address: SocketAddr) -> Result<TcpStream, ProxyFault> {
        let result = time::timeout(CONNECT_TIMEOUT, through(&self.settings.proxy, address)).await;
        let result = result.unwrap_or_else(|_elapsed| Err(timed_out().into()));
        let state = match &result {
            Ok(_) => ProxyState::Works,
            Err(fault) => ProxyState::Fails(fault.to_string()),
        };
        if let ProxyState::Fails(why) = &state {
            tracing::debug!(proxy = %self.settings.proxy, %address, why, "the proxy does not connect");
        }
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        result
    }

    fn neither(&self, fault: ProxyFault, direct: io::Error) -> ConnectError {
        ConnectError::Neither { proxy: self.settings.proxy.clone(), fault, direct }
    }
}

/// Connects to an address without a proxy.
pub(crate) async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // The first packet tells the peer to keep to it as well.
    #[cfg(unix)]
    socket2::SockRef::from(&socket).set_tcp_mss(SEGMENT_BYTES)?;
    time::timeout(CONNECT_TIMEOUT, socket.connect(address)).await.unwrap_or_else(|_elapsed| Err(timed_out()))
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))
}

/// Asks a proxy to connect, and returns the connection once it has.
pub(crate) async fn through(proxy: &Proxy, address: SocketAddr) -> Result<TcpStream, ProxyFault> {
    let mut stream = reach(proxy).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&proxy.request(address)).await?;
    let mut answer = Answer::new(proxy.has_credentials());
    let mut bytes = [0; PEEK_BYTES];
    loop {
        // What follows the answer must stay for whoever is given the stream.
        let count = stream.peek(&mut bytes).await?;
        let (taken, decided) = answer.read(bytes.get(..count).unwrap_or_default());
        stream.read_exact(bytes.get_mut(..taken).unwrap_or_default()).await?;
        match decided {
            Some(Ok(())) => return Ok(stream),
            Some(Err(refusal)) => return Err(refusal.into()),
            None if count == 0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            None => {}
        }
    }
}

/// Connects to the first address of a proxy that takes it.
async fn reach(proxy: &Proxy) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for address in tokio::net::lookup_host(proxy.address()).await? {
        match dial(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    /// An address that nobody has (RFC 5737); only a proxy of ours connects to it.
    const FAR: &str = "203.0.113.9:443";

    /// A proxy that says this to everybody, and tells what it was asked; what comes afterwards it sends back.
    async fn proxy(says: &'static [u8]) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, asked) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let _ = sender.send(String::from_utf8(head).unwrap());
                for piece in says.chunks(7) {
                    stream.write_all(piece).await.unwrap();
                }
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            }
        });
        (address, asked)
    }

    fn connector(proxy: &str) -> Connector {
        let exceptions = Exceptions::default();
        let proxy = proxy.parse().unwrap();
        Connector::new(Some(ProxySettings { proxy, source: "the configuration file", exceptions }))
    }

    async fn fault(says: &'static [u8]) -> ProxyFault {
        let (address, _asked) = proxy(says).await;
        through(&format!("http://{address}").parse().unwrap(), FAR.parse().unwrap()).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_stream_through_a_proxy_begins_with_what_the_other_side_says() {
        let (address, mut asked) = proxy(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nhello").await;
        let connector = connector(&format!("http://ann:secret@{address}"));
        assert_eq!(connector.proxy().unwrap().1, ProxyState::Unused);
        let mut stream = connector.connect(FAR.parse().unwrap()).await.unwrap();
        stream.write_all(b", you").await.unwrap();
        let mut heard = [0; 10];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello, you");
        let asked = asked.recv().await.unwrap();
        assert!(asked.starts_with("CONNECT 203.0.113.9:443 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("\r\nProxy-Authorization: Basic YW5uOnNlY3JldA==\r\n"), "{asked}");
        assert_eq!(connector.proxy().unwrap().1, ProxyState::Works);
        assert!(!format!("{connector:?}").contains("secret"));
    }

    #[tokio::test]
    async fn a_refusal_of_the_proxy_is_named() {
        let wanted = fault(b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n").await;
        assert!(matches!(wanted, ProxyFault::Refused(Refusal::CredentialsMissing)), "{wanted}");
        let portal = fault(b"HTTP/1.1 302 x\r\nLocation: http://login.example/\r\n\r\n").await;
        assert!(portal.to_string().contains("captive portal answers in its place (http://login.example)"));
        let other = fault(b"220 mail.example ESMTP\r\n").await;
        assert!(matches!(other, ProxyFault::Refused(Refusal::NotHttp)), "{other}");
    }

    #[tokio::test]
    async fn what_is_near_is_dialled_and_the_proxy_not_asked() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, mut asked) = proxy(b"HTTP/1.1 200 OK\r\n\r\n").await;
        let connector = connector(&format!("http://{address}"));
        connector.connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(asked.try_recv().is_err());
    }

    #[tokio::test]
    async fn when_neither_way_leads_there_both_reasons_are_told() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let closed = listener.local_addr().unwrap();
        drop(listener);
        let (address, _asked) = proxy(b"HTTP/1.1 403 Forbidden\r\n\r\n").await;
        let connector = connector(&format!("http://ann:secret@{address}"));
        // As if it were not near.
        let error = connector.proxy.as_ref().unwrap().connect(closed).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("the proxy {address}: it does not allow")), "{text}");
        assert!(text.contains("directly: ") && !text.contains("secret"), "{text}");
        assert!(matches!(connector.proxy().unwrap().1, ProxyState::Fails(_)));
    }
}
