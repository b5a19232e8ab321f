//! What the HTTP servers of node and operator share: accepting connections within limits, and ending.

use std::fmt::Debug;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time;

use crate::sync::lock;

/// What HTTP is called in TLS (RFC 7301).
pub(crate) const ALPN_HTTP: &[u8] = b"http/1.1";

/// How long to wait after the system could not accept a connection, most likely for want of descriptors. Shorter
/// burns time while the want lasts.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long requests that are under way may take when the server ends. Longer delays the end.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest head of a request, in bytes; ours have a few hundred. hyper takes no less than 8 KiB.
const MAX_HEAD: usize = 16 * 1024;

/// What one client may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; further ones wait in the system's queue.
    pub connections: usize,
    /// For the head of a request, and for silence between two.
    pub head_timeout: Duration,
    /// For one connection, unless what it does lets it [stay](Stay::extend); `None` where streams of events may stay open.
    pub lifetime: Option<Duration>,
}

/// Where connections come from. Dropping it ends the listening.
pub trait Listener: Send {
    /// What a connection is.
    type Connection: Send;

    /// Waits for the next connection.
    ///
    /// # Errors
    /// What the system says, most likely that descriptors are wanting; the next call may succeed.
    fn next(&self) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

impl Listener for TcpListener {
    type Connection = (TcpStream, SocketAddr);

    async fn next(&self) -> io::Result<Self::Connection> {
        self.accept().await
    }
}

/// Several ports at which the same is served. They take turns, so that nobody is kept waiting at one by a crowd at another.
#[derive(Debug)]
pub struct Listeners {
    all: Vec<TcpListener>,
    /// How many connections were accepted.
    turn: AtomicUsize,
}

impl From<Vec<TcpListener>> for Listeners {
    fn from(all: Vec<TcpListener>) -> Self {
        Self { all, turn: AtomicUsize::new(0) }
    }
}

impl Listener for Listeners {
    type Connection = (TcpStream, SocketAddr);

    async fn next(&self) -> io::Result<Self::Connection> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(self.all.len()).unwrap_or(0);
        poll_fn(|cx| {
            let in_turn = self.all.iter().cycle().skip(first).take(self.all.len());
            let mut accepted = in_turn.map(|listener| listener.poll_accept(cx));
            accepted.find(Poll::is_ready).unwrap_or(Poll::Pending)
        })
        .await
    }
}

/// Accepts connections until `ending` says so, and serves each by `serve`, within the limits.
pub async fn accept<L: Listener, F: Future<Output = ()> + Send + 'static>(
    listener: L,
    limits: Limits,
    mut ending: watch::Receiver<bool>,
    serve: impl Fn(L::Connection, Stay) -> Option<F>,
) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.next().await)
        };
        tokio::select! {
            () = until_true(&mut ending) => break,
            Some(_ended) = connections.join_next() => {}
            (permit, accepted) = accepted => match accepted {
                Ok(accepted) => {
                    let stay = Stay::new(permit);
                    let Some(connection) = serve(accepted, stay.clone()) else { continue };
                    connections.spawn(async move { stay.within(limits.lifetime, connection).await });
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if time::timeout(END_TIMEOUT, all_ended).await.is_err() {
        tracing::debug!("connections are cut off");
    }
}

/// By what right a connection is there, and for how long. Clones share it.
#[derive(Clone, Debug)]
pub struct Stay {
    inner: Arc<Right>,
}

#[derive(Debug)]
struct Right {
    /// Its place among all connections; given back with the value.
    held: Mutex<Box<dyn Debug + Send>>,
    is_extended: AtomicBool,
}

impl Stay {
    /// Lets a connection be there because of what it holds, and within its ordinary lifetime.
    pub(crate) fn new(held: impl Debug + Send + 'static) -> Self {
        Self {
            inner: Arc::new(Right { held: Mutex::new(Box::new(held)), is_extended: AtomicBool::new(false) }),
        }
    }

    /// Lets it stay because of something else, for as long as it likes: its place is free for others from now on.
    pub(crate) fn extend(&self, held: impl Debug + Send + 'static) {
        *lock(&self.inner.held) = Box::new(held);
        self.inner.is_extended.store(true, Ordering::Relaxed);
    }

    /// Returns whether it may stay as long as it likes.
    pub(crate) fn is_extended(&self) -> bool {
        self.inner.is_extended.load(Ordering::Relaxed)
    }

    /// Cuts the connection off if it takes too long.
    pub(crate) async fn within(&self, lifetime: Option<Duration>, connection: impl Future<Output = ()>) {
        let Some(lifetime) = lifetime else { return connection.await };
        let mut connection = pin!(connection);
        if time::timeout(lifetime, connection.as_mut()).await.is_ok() {
            return;
        }
        if self.is_extended() {
            return connection.await;
        }
        tracing::debug!("a connection took too long");
    }
}

/// Serves HTTP/1.1 on a stream until the client or the server ends it.
pub async fn serve_stream<S>(stream: S, router: Router, limits: Limits, mut ending: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_timeout)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
            .with_upgrades()
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = until_true(&mut ending) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Waits until the server ends.
pub async fn until_true(ending: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same. The guard inside the result must not live on in a caller's future.
    drop(ending.wait_for(|ending| *ending).await);
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;

    const LIMITS: Limits = Limits {
        connections: 1,
        head_timeout: Duration::from_secs(10),
        lifetime: Some(Duration::from_secs(30)),
    };

    /// Sends something, one byte every `pause`, and returns the answer once the connection is closed.
    async fn slowly(request: &[u8], pause: Duration) -> String {
        let (mut client, server) = tokio::io::duplex(4_096);
        let (_end, ending) = watch::channel(false);
        let router = Router::new().route("/", get(async || "here"));
        let server = tokio::spawn(serve_stream(server, router, LIMITS, ending));
        for byte in request {
            time::advance(pause).await;
            if client.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        server.await.unwrap();
        answer
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_cut_off() {
        assert_eq!(slowly(b"", Duration::ZERO).await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_drips_its_request_is_cut_off_and_one_on_a_slow_line_is_not() {
        assert!(slowly(REQUEST, Duration::from_millis(100)).await.ends_with("here"));
        assert!(!slowly(REQUEST, Duration::from_secs(1)).await.contains("here"));
    }

    #[tokio::test]
    async fn several_ports_are_served_at_once() {
        let listeners = [TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0")];
        let listeners = futures_util::future::join_all(listeners).await;
        let listeners = Listeners::from(listeners.into_iter().map(Result::unwrap).collect::<Vec<_>>());
        let addresses: Vec<_> = listeners.all.iter().map(|it| it.local_addr().unwrap()).collect();
        for address in addresses.iter().rev() {
            let (accepted, connected) = tokio::join!(listeners.next(), TcpStream::connect(address));
            assert_eq!(accepted.unwrap().1, connected.unwrap().local_addr().unwrap());
        }
    }

    #[tokio::test]
    async fn a_crowd_at_one_port_keeps_nobody_waiting_at_another() {
        let listeners = [TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0")];
        let listeners = futures_util::future::join_all(listeners).await;
        let listeners = Listeners::from(listeners.into_iter().map(Result::unwrap).collect::<Vec<_>>());
        let [crowded, other] = [0, 1].map(|at: usize| listeners.all[at].local_addr().unwrap());
        let crowd = futures_util::future::join_all((0..8).map(|_| TcpStream::connect(crowded))).await;
        let alone = TcpStream::connect(other).await.unwrap().local_addr().unwrap();
        assert!(crowd.iter().all(Result::is_ok));
        let mut accepted = Vec::new();
        for _ in 0..2 {
            accepted.push(listeners.next().await.unwrap().1);
        }
        assert!(accepted.contains(&alone));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_may_stay_outlives_others_and_leaves_its_place_to_them() {
        let places = Arc::new(Semaphore::new(1));
        let stay = Stay::new(Arc::clone(&places).try_acquire_owned());
        let (connection, (end, ended)) = (stay.clone(), oneshot::channel::<()>());
        let serving = async move { connection.within(LIMITS.lifetime, async { drop(ended.await) }).await };
        let serving = tokio::spawn(serving);
        tokio::task::yield_now().await;
        assert_eq!(places.available_permits(), 0);
        stay.extend(());
        assert_eq!(places.available_permits(), 1);
        time::advance(Duration::from_secs(300)).await;
        tokio::task::yield_now().await;
        assert!(!serving.is_finished());
        end.send(()).unwrap();
        serving.await.unwrap();
        let stay = Stay::new(());
        stay.within(LIMITS.lifetime, std::future::pending()).await;
    }

    #[tokio::test]
    async fn the_end_of_the_server_ends_idle_connections_and_frees_the_port() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ending) = watch::channel(false);
        let serving = tokio::spawn(accept(listener, LIMITS, ending.clone(), move |(stream, _), _stay| {
            Some(serve_stream(stream, Router::new(), LIMITS, ending.clone()))
        }));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'H');
        end.send_replace(true);
        serving.await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        TcpListener::bind(address).await.unwrap();
    }
}
