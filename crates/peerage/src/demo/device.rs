//! The sample device: a "printer" with a web page, the same once more over TLS, and a raw port.
//!
//! It knows nothing of Peerage.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, State, connect_info::Connected},
    http::StatusCode,
    response::Html,
    routing::{get, post},
    serve::IncomingStream,
};
use rustls::{ServerConfig, crypto::ring::default_provider, pki_types::PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// What the browser shows; it asks for [`Shown`] once a second.
const PAGE: &str = include_str!("page.html");

/// Jobs that the page lists; an older one is forgotten. More would fill the page, and each answer of it.
const MAX_JOBS: usize = 8;

/// Bytes of text that are kept of a job; a longer job, or one that is no text, is shown by its size alone.
const MAX_TEXT_BYTES: usize = 400;

/// Connections to the raw port, and over TLS, at a time; one more waits. Each holds a buffer of up to [`BUFFER_BYTES`].
const MAX_CONNECTIONS: usize = 32;

/// Bytes moved at once: smaller costs more system calls, larger no longer helps.
const BUFFER_BYTES: usize = 256 << 10;

/// How long a raw connection may be silent before it is given up; it frees places whose client vanished.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Where the device listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ports {
    /// The web page.
    pub(super) web: SocketAddr,
    /// The web page over TLS.
    pub(super) tls: SocketAddr,
    /// The raw port.
    pub(super) raw: SocketAddr,
}

/// What the device says when it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ready {
    #[serde(flatten)]
    pub(super) ports: Ports,
    /// SHA-256 of its certificate, in hexadecimal.
    pub(super) pin: String,
}

/// What the device tells about itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Shown {
    /// Where the page is served, as the device sees it.
    pub(super) address: SocketAddr,
    /// Who asked, as the device sees it.
    pub(super) caller: IpAddr,
    /// Whether all runs on one machine, without networks of their own.
    pub(super) one_machine: bool,
    /// Since when it runs.
    pub(super) uptime_s: u64,
    /// Answers of the page, this one included.
    pub(super) requests: u64,
    /// Bytes that came in at the raw port.
    pub(super) raw_bytes: u64,
    /// The latest jobs, newest first.
    pub(super) jobs: VecDeque<Job>,
}

/// One connection to the raw port, or one text from the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    /// Counted from 1.
    pub(super) number: u64,
    /// Its size.
    pub(super) bytes: u64,
    /// SHA-256 of all of it, in hexadecimal.
    pub(super) sha256: String,
    /// Its content, if that is a short text.
    pub(super) text: Option<String>,
}

#[derive(Debug)]
struct Device {
    one_machine: bool,
    began_at: Instant,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    requests: u64,
    raw_bytes: u64,
    taken: u64,
    jobs: VecDeque<Job>,
}

impl Device {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn took(&self, job: Taken) {
        let mut counts = self.counts();
        counts.taken += 1;
        let text =
            job.text.and_then(|text| String::from_utf8(text).ok()).filter(|text| !text.trim().is_empty());
        let job = Job { number: counts.taken, bytes: job.bytes, sha256: hex(&job.sum.finalize()), text };
        counts.jobs.push_front(job);
        counts.jobs.truncate(MAX_JOBS);
    }
}

/// A job while it comes in.
#[derive(Debug)]
struct Taken {
    bytes: u64,
    sum: Sha256,
    /// None as soon as it is too long to be shown.
    text: Option<Vec<u8>>,
}

impl Taken {
    fn new() -> Self {
        Self { bytes: 0, sum: Sha256::new(), text: Some(Vec::new()) }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.sum.update(bytes);
        self.text =
            self.text.take().filter(|text| text.len() + bytes.len() <= MAX_TEXT_BYTES).map(|mut text| {
                text.extend_from_slice(bytes);
                text
            });
    }
}

/// Serves the device until the process ends. Calls `ready` once.
///
/// # Errors
/// When an address cannot be listened on.
pub(super) async fn serve(
    wanted: Ports,
    one_machine: bool,
    ready: impl FnOnce(Ready) -> Result<()>,
) -> Result<()> {
    let (web, tls, raw) = (listen(wanted.web).await?, listen(wanted.tls).await?, listen(wanted.raw).await?);
    let ports = Ports { web: web.local_addr()?, tls: tls.local_addr()?, raw: raw.local_addr()? };
    let counts = Mutex::new(Counts::default());
    let device = Arc::new(Device { one_machine, began_at: Instant::now(), counts });
    let page = |address: SocketAddr| {
        let router = Router::new()
            .route("/", get(Html(PAGE)))
            .route("/status.json", get(show))
            .route("/print", post(print))
            .layer(DefaultBodyLimit::max(MAX_TEXT_BYTES));
        let router = router.with_state((Arc::clone(&device), address));
        router.into_make_service_with_connect_info::<Caller>()
    };
    let (acceptor, pin) = certificate()?;
    ready(Ready { ports, pin })?;
    let (accepted, unwrapped) = mpsc::channel(1);
    let unwrap = move |stream| unwrap_tls(stream, acceptor.clone(), accepted.clone());
    tokio::spawn(take_connections(tls, unwrap));
    let unwrapped = Unwrapped { accepted: unwrapped, local: ports.tls };
    tokio::spawn(axum::serve(unwrapped, page(ports.tls)).into_future());
    let web = axum::serve(web, page(ports.web));
    tokio::spawn(take_connections(raw, move |stream| take_job(stream, Arc::clone(&device))));
    Ok(web.await?)
}

/// The address from which somebody asks for the page.
#[derive(Clone, Copy, Debug)]
struct Caller(IpAddr);

impl Connected<IncomingStream<'_, TcpListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(stream.remote_addr().ip())
    }
}

impl Connected<IncomingStream<'_, Unwrapped>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Unwrapped>) -> Self {
        Self(stream.remote_addr().ip())
    }
}

/// Connections whose TLS handshake is done.
#[derive(Debug)]
struct Unwrapped {
    accepted: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    local: SocketAddr,
}

impl axum::serve::Listener for Unwrapped {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.local)
    }
}

/// Makes a certificate that the device signs itself, as devices do, and returns its SHA-256 as well.
fn certificate() -> Result<(TlsAcceptor, String)> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(rcgen::DnType::CommonName, "Sample printer");
    let certificate = params.self_signed(&key)?;
    let pin = hex(&Sha256::digest(certificate.der()));
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    Ok((TlsAcceptor::from(Arc::new(config)), pin))
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("the sample device cannot listen on {address}"))
}

async fn show(
    State((device, address)): State<(Arc<Device>, SocketAddr)>,
    ConnectInfo(Caller(caller)): ConnectInfo<Caller>,
) -> Json<Shown> {
    let mut counts = device.counts();
    counts.requests += 1;
    Json(Shown {
        address,
        caller,
        one_machine: device.one_machine,
        uptime_s: device.began_at.elapsed().as_secs(),
        requests: counts.requests,
        raw_bytes: counts.raw_bytes,
        jobs: counts.jobs.clone(),
    })
}

async fn print(State((device, _)): State<(Arc<Device>, SocketAddr)>, text: Bytes) -> StatusCode {
    let mut job = Taken::new();
    job.add(&text);
    device.took(job);
    StatusCode::NO_CONTENT
}

/// Serves each connection, a limited number at a time.
async fn take_connections<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Only closing the semaphore would end this, and nobody does.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let served = serve(stream);
        tokio::spawn(async move {
            // A client that breaks off concerns nobody else.
            _ = served.await;
            drop(place);
        });
    }
}

/// Does the TLS handshake and hands the connection on to the page.
async fn unwrap_tls(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    accepted: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) -> std::io::Result<()> {
    let caller = stream.peer_addr()?;
    let stream = timeout(IDLE_TIMEOUT, acceptor.accept(stream)).await??;
    // Nobody takes it only when the device ends.
    _ = accepted.send((stream, caller)).await;
    Ok(())
}

/// Sends back what comes, so that a test sees both directions, and ends its direction when the other has ended.
async fn take_job(mut stream: TcpStream, device: Arc<Device>) -> std::io::Result<()> {
    let mut job = Taken::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = timeout(IDLE_TIMEOUT, stream.read(&mut buffer)).await??;
        let bytes = buffer.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        device.counts().raw_bytes += bytes.len() as u64;
        job.add(bytes);
        timeout(IDLE_TIMEOUT, stream.write_all(bytes)).await??;
    }
    // Before the end is told: whoever has seen it may ask for the job.
    if job.bytes > 0 {
        device.took(job);
    }
    stream.shutdown().await
}

/// Writes bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        _ = write!(text, "{byte:02x}");
        text
    })
}
