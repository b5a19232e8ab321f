//! The probes: what is sent, and how long an answer may take.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use peerage_proto::proxy::Proxy;
use peerage_wire::enrol::{CERTIFICATE_FIELD, HELLO_PATH, Hello};
use peerage_wire::id::{from_hex, sha256};
use peerage_wire::limits::MAX_DATAGRAM;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{self, Instant};

use super::issuer;
use super::reply::Reply;
use crate::carrier::{self, Carrier, Content};
use crate::connect::{self, Connector, ProxyFault};
use crate::http::ALPN_HTTP;
use crate::socket::Socket;
use crate::stray::Stray;
use crate::tls::AnyCertificate;

/// How long each datagram waits for an answer: one second is the longest round trip of networks on Earth, and the first may be lost.
pub(super) const UDP_TRIES: [Duration; 3] =
    [Duration::from_millis(400), Duration::from_millis(800), Duration::from_millis(1_200)];

/// How long a connection or an answer may take: two lost packets in a row.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Most bytes of an answer that are read: an operator's first words have a few hundred.
const MAX_ANSWER: u64 = 64 * 1_024;

/// What came of a connection.
pub(super) enum Tcp {
    Open(TcpStream, Duration),
    Refused(Duration),
    Silent,
    Failed(io::Error),
}

/// Why HTTP or TLS did not work.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpsFault {
    #[error("connected, but nothing came back")]
    Silent,
    #[error("connected, then cut off: {0}")]
    Io(#[from] io::Error),
    #[error("what answers does not speak HTTP")]
    NotHttp,
}

/// What was heard over HTTPS.
pub(super) struct Heard {
    /// SHA-256 of the certificate that was shown.
    pub(super) certificate: [u8; 32],
    /// Who issued it, as it says.
    pub(super) issuer: Option<String>,
    /// Which one the server says that it shows.
    pub(super) claimed: Option<[u8; 32]>,
    pub(super) status: u16,
    pub(super) is_operator: bool,
    pub(super) is_portal: bool,
    /// What must be added to this computer's clock.
    pub(super) clock_offset_ms: Option<i64>,
}

/// Sends a datagram that belongs to no context, to which whoever speaks the protocol answers with a hint (Rule 3.9).
pub(super) async fn udp(server: SocketAddr) -> io::Result<Duration> {
    let own: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(own).await?;
    socket.connect(server).await?;
    for patience in UDP_TRIES {
        let stray = Stray::new()?;
        let sent_at = Instant::now();
        socket.send(stray.bytes()).await?;
        if time::timeout(patience, hinted(&socket, &stray))
            .await
            .map_or(Ok(false), |done| done.map(|()| true))?
        {
            return Ok(sent_at.elapsed());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

async fn hinted(socket: &UdpSocket, stray: &Stray) -> io::Result<()> {
    let mut answer = [0; MAX_DATAGRAM];
    loop {
        let count = socket.recv(&mut answer).await?;
        let answer = answer.get(..count).unwrap_or_default();
        if stray.is_answered_by(answer) {
            return Ok(());
        }
    }
}

/// Connects.
pub(super) async fn tcp(address: SocketAddr) -> Tcp {
    let began_at = Instant::now();
    match time::timeout(TIMEOUT, connect::dial(address)).await {
        Ok(Ok(stream)) => Tcp::Open(stream, began_at.elapsed()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Tcp::Refused(began_at.elapsed())
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => Tcp::Silent,
        Ok(Err(error)) => Tcp::Failed(error),
        Err(_elapsed) => Tcp::Silent,
    }
}

/// Asks a proxy to connect to a server.
pub(super) async fn proxy(proxy: &Proxy, server: SocketAddr) -> Result<(TcpStream, Duration), ProxyFault> {
    let began_at = Instant::now();
    let timed_out = |_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut).into());
    let stream = time::timeout(TIMEOUT, connect::through(proxy, server)).await.unwrap_or_else(timed_out)?;
    Ok((stream, began_at.elapsed()))
}

/// Makes TLS with whoever answers, and asks for an operator's first words.
pub(super) async fn https(stream: TcpStream, server: SocketAddr) -> Result<(Heard, Duration), HttpsFault> {
    let began_at = Instant::now();
    let exchange = async {
        let mut stream = AnyCertificate::connect(stream, server, ALPN_HTTP).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let shown = shown.map(|leaf| leaf.to_vec()).unwrap_or_default();
        let reply = ask(&mut stream, &get(HELLO_PATH, server)).await?;
        let claimed = reply.field(CERTIFICATE_FIELD).and_then(|text| from_hex(text).ok());
        Ok(Heard {
            certificate: sha256(&[&shown]),
            issuer: issuer::of(&shown),
            claimed,
            status: reply.status,
            is_operator: reply.status == 200 && Hello::decode(&reply.body).is_ok(),
            is_portal: reply.is_portal(),
            clock_offset_ms: reply.clock_offset_ms(),
        })
    };
    let heard = within(exchange).await?;
    Ok((heard, began_at.elapsed()))
}

/// Asks in the clear.
pub(super) async fn http(
    mut stream: TcpStream,
    address: SocketAddr,
) -> Result<(Reply, Duration), HttpsFault> {
    let began_at = Instant::now();
    let reply = within(ask(&mut stream, &get("/", address))).await?;
    Ok((reply, began_at.elapsed()))
}

/// Sends a message inside something else that the server cannot open (Rules 6.100 and 6.111), and waits for the hint that says so.
pub(super) async fn carried(
    connector: &Connector,
    way: (Carrier, SocketAddr),
) -> Result<Duration, HttpsFault> {
    let began_at = Instant::now();
    let exchange = async {
        let stray = Stray::new()?;
        let io = Socket::from(carrier::open(connector, way, Content::Messages).await?);
        io.say(stray.bytes()).await?;
        while !stray.is_answered_by(&io.hear().await?) {}
        Ok(began_at.elapsed())
    };
    // On the heap: it is several times as large as the others.
    within(Box::pin(exchange)).await
}

fn get(path: &str, server: SocketAddr) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {server}\r\nUser-Agent: peerage-doctor\r\nConnection: close\r\n\r\n"
    )
}

/// Sends a request and reads the answer to its end.
async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, request: &str) -> Result<Reply, HttpsFault> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut limited = stream.take(MAX_ANSWER);
    let mut bytes = Vec::new();
    loop {
        let count = limited.read_buf(&mut bytes).await;
        let reply = Reply::parse(&bytes);
        // Not everybody ends a connection in order.
        let is_over = !matches!(count, Ok(1..));
        match (reply, count) {
            (Some(reply), _) if is_over || reply.is_complete() => return Ok(reply),
            (None, Err(error)) => return Err(error.into()),
            (None, Ok(0)) if bytes.is_empty() => return Err(HttpsFault::Silent),
            (None, Ok(0)) => return Err(HttpsFault::NotHttp),
            (_, _) => {}
        }
    }
}

async fn within<T>(work: impl Future<Output = Result<T, HttpsFault>>) -> Result<T, HttpsFault> {
    time::timeout(TIMEOUT, work).await.unwrap_or(Err(HttpsFault::Silent))
}
