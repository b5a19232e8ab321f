//! Connections inside WebSockets (RFC 6455), for networks that let nothing but the web through (Rule 6.111).
//!
//! A request of HTTP turns the connection into a WebSocket; then bytes go in binary messages, whose bounds mean nothing. An empty message
//! says that nothing follows in its direction: the closing frame of the protocol would end both.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::{Sink as _, Stream as _};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use peerage_proto::base64::base64;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::Content;

/// Bytes that are sent in one message, and that are gathered before they are written. More keeps others waiting on a slow line, less
/// costs calls and headers.
const PORTION_BYTES: usize = 16 * 1_024;

/// The longest message that is taken. More keeps memory for strangers; less breaks with whoever gathers more.
const MAX_MESSAGE_BYTES: usize = 64 * 1_024;

/// What is appended to a key, so that the answer shows that somebody speaks the protocol (RFC 6455, section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The version of the protocol (RFC 6455, section 4.1).
const VERSION: &str = "13";

/// Bytes of which a key is made (RFC 6455, section 4.1).
const KEY_SIZE: usize = 16;

/// Letters of a key.
const KEY_LETTERS: usize = 24;

/// A stream of bytes in a WebSocket.
#[derive(Debug)]
pub(super) struct WebSocket<S> {
    frames: WebSocketStream<S>,
    /// What has come and was not read yet.
    incoming: Bytes,
    has_heard_end: bool,
    has_said_end: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Makes one of a connection on which both ends have agreed to it.
    pub(super) async fn new(io: S, role: Role) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(PORTION_BYTES)
            .write_buffer_size(PORTION_BYTES)
            .max_write_buffer_size(4 * PORTION_BYTES)
            .max_frame_size(Some(MAX_MESSAGE_BYTES))
            .max_message_size(Some(MAX_MESSAGE_BYTES));
        let frames = WebSocketStream::from_raw_socket(io, role, Some(config)).await;
        Self { frames, incoming: Bytes::new(), has_heard_end: false, has_said_end: false }
    }

    fn poll_send(&mut self, message: Bytes, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.frames).poll_ready(cx)).map_err(broken)?;
        Poll::Ready(Pin::new(&mut self.frames).start_send(Message::Binary(message)).map_err(broken))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.incoming.is_empty() && !this.has_heard_end && buffer.remaining() > 0 {
            match ready!(Pin::new(&mut this.frames).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) if bytes.is_empty() => this.has_heard_end = true,
                Some(Ok(Message::Binary(bytes))) => this.incoming = bytes,
                // What answers them is sent along with the next frame.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => this.has_heard_end = true,
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let count = this.incoming.len().min(buffer.remaining());
        buffer.put_slice(this.incoming.get(..count).unwrap_or_default());
        this.incoming.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let portion = bytes.get(..PORTION_BYTES).unwrap_or(bytes);
        if portion.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(Pin::new(&mut self.frames).poll_ready(cx)).map_err(broken)?;
        let message = Message::Binary(Bytes::copy_from_slice(portion));
        Pin::new(&mut self.frames).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(portion.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.frames).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_said_end {
            ready!(self.poll_send(Bytes::new(), cx))?;
            self.has_said_end = true;
        }
        self.poll_flush(cx)
    }
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error @ (Error::Tls(_)
        | Error::Capacity(_)
        | Error::Protocol(_)
        | Error::WriteBufferFull(_)
        | Error::Utf8(_)
        | Error::AttackAttempt
        | Error::Url(_)) => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

/// Has a server turn a connection into a WebSocket with this in it.
///
/// # Errors
/// What the connection says, and that what answers speaks nothing of the kind.
pub(super) async fn ask<S>(
    io: S,
    address: SocketAddr,
    content: Content,
) -> io::Result<WebSocket<TokioIo<Upgraded>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut random = [0; KEY_SIZE];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let key = base64(&random);
    let request = Request::get(content.path())
        .header(HOST, address.to_string())
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, VERSION)
        .header(SEC_WEBSOCKET_KEY, &key)
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
    let connection = async { connection.with_upgrades().await.map_err(io::Error::other) };
    // The sender ends with this, and the connection with it if it stays one of HTTP.
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT);
        let is_turned = response.status() == StatusCode::SWITCHING_PROTOCOLS
            && accepted.is_some_and(|accepted| accepted.as_bytes() == acceptance(key.as_bytes()).as_bytes());
        if !is_turned {
            let status = response.status().as_u16();
            return Err(io::Error::other(format!("what answers knows no such WebSocket: status {status}")));
        }
        hyper::upgrade::on(response).await.map_err(io::Error::other)
    };
    let (upgraded, ()) = tokio::try_join!(exchange, connection)?;
    Ok(WebSocket::new(TokioIo::new(upgraded), Role::Client).await)
}

/// Returns what a server says to agree to a WebSocket; `None` if that was not asked for.
pub(super) fn agree(asked: &HeaderMap) -> Option<[(HeaderName, HeaderValue); 3]> {
    let field = |name| asked.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let names = |name, what: &str| {
        let mut listed = field(name).unwrap_or_default().split(',');
        listed.any(|listed| listed.trim().eq_ignore_ascii_case(what))
    };
    let key = field(SEC_WEBSOCKET_KEY).filter(|key| key.len() == KEY_LETTERS)?;
    if field(SEC_WEBSOCKET_VERSION) != Some(VERSION)
        || !names(CONNECTION, "upgrade")
        || !names(UPGRADE, "websocket")
    {
        return None;
    }
    let accepted = HeaderValue::try_from(acceptance(key.as_bytes())).ok()?;
    Some([
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, accepted),
    ])
}

/// Returns the answer to a key.
fn acceptance(key: &[u8]) -> String {
    // Not for security, as the RFC says too.
    base64(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat()).as_ref())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    async fn both() -> (WebSocket<DuplexStream>, WebSocket<DuplexStream>) {
        let (one, other) = duplex(1_024);
        (WebSocket::new(one, Role::Client).await, WebSocket::new(other, Role::Server).await)
    }

    /// The example of RFC 6455, section 1.3.
    #[test]
    fn a_key_is_answered_as_the_standard_says() {
        assert_eq!(acceptance(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn only_a_whole_request_for_a_websocket_is_agreed_to() {
        let fields = [
            (CONNECTION, "keep-alive, Upgrade"),
            (UPGRADE, "WebSocket"),
            (SEC_WEBSOCKET_VERSION, "13"),
            (SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let headers = |left_out: Option<usize>| {
            let kept = fields.iter().enumerate().filter(|(place, _)| Some(*place) != left_out);
            kept.map(|(_, (name, value))| (name.clone(), HeaderValue::from_static(value))).collect()
        };
        assert!(agree(&headers(None)).is_some());
        assert!((0..fields.len()).all(|left_out| agree(&headers(Some(left_out))).is_none()));
    }

    #[tokio::test]
    async fn every_byte_passes_and_each_direction_ends_by_itself() {
        let (mut client, mut server) = both().await;
        let sent: Vec<u8> = (0..300_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let expected = sent.clone();
        let sending = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        });
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert!(received == expected);
        server.write_all(b"thanks").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(sending.await.unwrap(), "thanks");
    }

    /// Rule 6.111: a break is none of both ends.
    #[tokio::test]
    async fn a_connection_that_breaks_is_told_from_one_that_ends() {
        let (client, mut server) = both().await;
        drop(client);
        assert!(server.read(&mut [0; 8]).await.is_err());
    }

    /// Rule 6.111.
    #[tokio::test]
    async fn a_message_that_is_too_long_and_one_of_text_end_the_connection() {
        // The heads of masked messages (RFC 6455, section 5.2): binary with a length of eight bytes, and text.
        let mut too_long = vec![0x82, 0xff];
        too_long.extend_from_slice(&u64::try_from(MAX_MESSAGE_BYTES + 1).unwrap().to_be_bytes());
        too_long.extend_from_slice(&[0; 4]);
        for beginning in [too_long, b"\x81\x82\0\0\0\0hi".to_vec()] {
            let (mut client, server) = duplex(1_024);
            let mut server = WebSocket::new(server, Role::Server).await;
            client.write_all(&beginning).await.unwrap();
            let error = server.read(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
