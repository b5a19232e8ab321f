//! Making connections to servers inside other protocols.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::carrier::Carrier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::convey::convey;
use super::{Content, poll, websocket};
use crate::connect::Connector;
use crate::framed::within;
use crate::http::ALPN_HTTP;
use crate::relay;
use crate::socket::{Pipe, ROOM_BYTES, pipe};
use crate::tls::AnyCertificate;

/// How long it may take until a connection stands. The machine gives attempts up earlier.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a connection to a server. That it stands does not say that the server is at its other end.
///
/// # Errors
/// What keeps it from standing, and that what answers takes nothing of the kind.
pub(crate) async fn open(
    connector: &Connector,
    (carrier, address): (Carrier, SocketAddr),
    content: Content,
) -> io::Result<Pipe> {
    match carrier {
        // Datagrams need no connection.
        Carrier::Udp => Err(io::ErrorKind::Unsupported.into()),
        Carrier::Tls => within(OPEN_TIMEOUT, in_tls(connector, address, content)).await,
        Carrier::Wss => within(OPEN_TIMEOUT, in_tls_and_websocket(connector, address, content)).await,
        Carrier::Ws => within(OPEN_TIMEOUT, in_websocket(connector, address, content)).await,
        Carrier::Https | Carrier::Http => {
            let way = (carrier == Carrier::Https, address);
            within(OPEN_TIMEOUT, poll::ask(connector, way, content)).await
        }
    }
}

async fn in_tls(connector: &Connector, address: SocketAddr, content: Content) -> io::Result<Pipe> {
    let (io, local) = tls(connector, address, content.alpn()).await?;
    if io.get_ref().1.alpn_protocol() != Some(content.alpn()) {
        return Err(io::Error::other("what answers takes nothing of the kind"));
    }
    Ok(piped(io, local))
}

async fn in_tls_and_websocket(
    connector: &Connector,
    address: SocketAddr,
    content: Content,
) -> io::Result<Pipe> {
    let (io, local) = tls(connector, address, ALPN_HTTP).await?;
    Ok(piped(websocket::ask(io, address, content).await?, local))
}

async fn in_websocket(connector: &Connector, address: SocketAddr, content: Content) -> io::Result<Pipe> {
    let (stream, local) = tcp(connector, address).await?;
    Ok(piped(websocket::ask(stream, address, content).await?, local))
}

pub(super) async fn tcp(connector: &Connector, address: SocketAddr) -> io::Result<(TcpStream, SocketAddr)> {
    let stream = connector.connect(address).await?;
    relay::prepare(&stream)?;
    let local = stream.local_addr()?;
    Ok((stream, local))
}

/// Speaks TLS with whoever answers; what the server says proves itself.
pub(super) async fn tls(
    connector: &Connector,
    address: SocketAddr,
    alpn: &[u8],
) -> io::Result<(TlsStream<TcpStream>, SocketAddr)> {
    let (stream, local) = tcp(connector, address).await?;
    Ok((AnyCertificate::connect(stream, address, alpn).await?, local))
}

/// Has a task move the bytes.
fn piped(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, local: SocketAddr) -> Pipe {
    let (near, far) = pipe(local, ROOM_BYTES);
    tokio::spawn(convey(io, far));
    near
}
