//! Making connections to servers inside other protocols.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::carrier::Carrier;

use super::Content;
use super::convey::convey;
use crate::connect::Connector;
use crate::framed::within;
use crate::relay;
use crate::socket::{Pipe, pipe};
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
        Carrier::Tls => within(OPEN_TIMEOUT, tls(connector, address, content)).await,
    }
}

/// Speaks TLS with whoever answers; what the server says proves itself.
async fn tls(connector: &Connector, address: SocketAddr, content: Content) -> io::Result<Pipe> {
    let stream = connector.connect(address).await?;
    relay::prepare(&stream)?;
    let local = stream.local_addr()?;
    let io = AnyCertificate::connect(stream, address, content.alpn()).await?;
    if io.get_ref().1.alpn_protocol() != Some(content.alpn()) {
        return Err(io::Error::other("what answers takes nothing of the kind"));
    }
    let (near, far) = pipe(local);
    tokio::spawn(convey(io, far));
    Ok(near)
}
