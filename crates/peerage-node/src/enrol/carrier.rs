//! HTTP/1.1 over TLS that proves nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use peerage_wire::enrol::MAX_ENROL_BODY;
use rustls::Error;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tls::AnyCertificate;

/// Why the operator could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CarrierError {
    /// No TCP connection.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// No TLS.
    #[error("what answers does not speak TLS: {0}")]
    Tls(io::Error),
    /// The TLS library refuses its configuration.
    #[error("TLS cannot be used: {0}")]
    Config(#[from] Error),
    /// HTTP failed.
    #[error("what answers does not speak HTTP properly: {0}")]
    Http(#[from] hyper::Error),
    /// A request could not be made.
    #[error("the request could not be made: {0}")]
    Request(#[from] hyper::http::Error),
    /// Another status than 200.
    #[error("what answers is not an operator: HTTP status {0}")]
    Status(u16),
    /// The body broke off or is too long.
    #[error("the answer broke off or has more than {MAX_ENROL_BODY} bytes")]
    Body,
}

/// A connection on which one request follows the other.
pub(super) struct Carrier {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    /// Ends the connection with the value.
    _connection: tokio::task::JoinSet<()>,
}

impl Carrier {
    pub(super) async fn connect(address: SocketAddr) -> Result<Self, CarrierError> {
        let stream = TcpStream::connect(address).await.map_err(CarrierError::Connect)?;
        // What the operator says proves itself.
        let (config, _seen) = AnyCertificate::client()?;
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::IpAddress(address.ip().into());
        let stream = connector.connect(name, stream).await.map_err(CarrierError::Tls)?;
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
        if response.status() != hyper::StatusCode::OK {
            return Err(CarrierError::Status(response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), MAX_ENROL_BODY).collect().await;
        Ok(body.map_err(|_| CarrierError::Body)?.to_bytes())
    }
}
