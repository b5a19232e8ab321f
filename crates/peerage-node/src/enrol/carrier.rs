//! HTTP/1.1 over TLS that proves nothing, or over nothing at all.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use peerage_wire::enrol::MAX_ENROL_BODY;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::connect::{ConnectError, Connector};
use crate::http::ALPN_HTTP;
use crate::tls::AnyCertificate;

/// Why the operator could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CarrierError {
    /// No TCP connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No TLS.
    #[error("what answers does not speak TLS: {0}")]
    Tls(io::Error),
    /// HTTP failed.
    #[error("what answers does not speak HTTP properly: {0}")]
    Http(#[from] hyper::Error),
    /// A request could not be made.
    #[error("the request could not be made: {0}")]
    Request(#[from] hyper::http::Error),
    /// A page for browsers, or the way to one.
    #[error(
        "a captive portal or a proxy answers in the operator's place (HTTP status {0}); log in with a browser first"
    )]
    Portal(u16),
    /// Another status than 200.
    #[error("what answers is not an operator: HTTP status {0}")]
    Status(u16),
    /// The body broke off or is too long.
    #[error("the answer broke off or has more than {MAX_ENROL_BODY} bytes")]
    Body,
}

/// In what requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Inside {
    /// TLS.
    Tls,
    /// Nothing, where a firewall lets only HTTP through that it can read (Rule 6.112).
    Nothing,
}

/// A connection on which one request follows the other.
pub(super) struct Carrier {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    /// Ends the connection with the value.
    _connection: tokio::task::JoinSet<()>,
}

impl Carrier {
    pub(super) async fn connect(
        connector: &Connector,
        (inside, address): (Inside, SocketAddr),
    ) -> Result<Self, CarrierError> {
        let stream = connector.connect(address).await?;
        match inside {
            Inside::Tls => {
                // What the operator says proves itself.
                let stream = AnyCertificate::connect(stream, address, ALPN_HTTP).await;
                Self::on(stream.map_err(CarrierError::Tls)?, address).await
            }
            Inside::Nothing => Self::on(stream, address).await,
        }
    }

    async fn on<S>(stream: S, address: SocketAddr) -> Result<Self, CarrierError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to an operator broke");
            }
        });
        Ok(Self { sender, host: address.to_string(), _connection: task })
    }

    pub(super) async fn get(&mut self, path: &str) -> Result<Bytes, CarrierError> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    pub(super) async fn post(&mut self, path: &str, body: Vec<u8>) -> Result<Bytes, CarrierError> {
        self.request(Method::POST, path, body.into()).await
    }

    async fn request(&mut self, method: Method, path: &str, body: Bytes) -> Result<Bytes, CarrierError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(Full::new(body))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status().as_u16();
        let kind = response.headers().get(header::CONTENT_TYPE);
        let is_page = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
        match status {
            200 if !is_page => {}
            200 | 300..=399 | 511 => return Err(CarrierError::Portal(status)),
            _ => return Err(CarrierError::Status(status)),
        }
        let body = Limited::new(response.into_body(), MAX_ENROL_BODY).collect().await;
        Ok(body.map_err(|_| CarrierError::Body)?.to_bytes())
    }
}
