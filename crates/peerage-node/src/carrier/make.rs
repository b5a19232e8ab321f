//! Making connections for messages.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::carrier::{Carrier, StreamId, StreamNews};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;

use super::{ALPN_MESSAGES, Inner};
use crate::connect::Connector;
use crate::framed::within;
use crate::relay;
use crate::tls::AnyCertificate;

/// How long it may take until a connection stands. The machine gives attempts up earlier.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

impl Inner {
    /// Makes a connection and serves it until it ends.
    pub(super) async fn make(
        &self,
        stream: StreamId,
        (carrier, address): (Carrier, SocketAddr),
        waiting: mpsc::Receiver<Bytes>,
    ) -> io::Result<()> {
        match carrier {
            // Datagrams need no connection.
            Carrier::Udp => Err(io::ErrorKind::Unsupported.into()),
            Carrier::Tls => {
                let io = within(OPEN_TIMEOUT, tls(&self.connector, address)).await?;
                if io.get_ref().1.alpn_protocol() != Some(ALPN_MESSAGES) {
                    return Err(io::Error::other("what answers does not take messages"));
                }
                if self.news.send(StreamNews::Opened(stream)).await.is_err() {
                    return Ok(());
                }
                self.carry(io, (stream, address), waiting, None).await
            }
        }
    }
}

/// Speaks TLS with whoever answers; what the server says proves itself.
async fn tls(connector: &Connector, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let stream = connector.connect(address).await?;
    relay::prepare(&stream)?;
    AnyCertificate::connect(stream, address, ALPN_MESSAGES).await
}
