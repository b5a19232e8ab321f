//! The loop that accepts connections and serves them.

use super::{Backend, MAX_CONNECTIONS, Socket, routes};
use crate::http::{self, Limits, Listener};
use std::{io, pin::pin, sync::Arc, time::Duration};
use tokio::{net::UnixStream, sync::watch};

/// What the clients of the local API may take. A longer timeout only keeps idle connections; there is no lifetime, because
/// readers of events stay.
const LIMITS: Limits =
    Limits { connections: MAX_CONNECTIONS, head_timeout: Duration::from_secs(30), lifetime: None };

impl Listener for Socket {
    type Connection = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await
    }
}

/// Serves the local API until `shutdown` is ready, then ends the streams of events, lets requests that are under way
/// finish for two seconds, and removes the socket.
pub async fn serve<B: Backend>(socket: Socket, backend: Arc<B>, shutdown: impl Future<Output = ()> + Send) {
    let (end, ending) = watch::channel(false);
    let router = routes::router(backend, ending.clone());
    let connection = |stream, _stay| Some(http::serve_stream(stream, router.clone(), LIMITS, ending.clone()));
    let mut serving = pin!(http::accept(socket, LIMITS, ending.clone(), connection));
    tokio::select! {
        () = serving.as_mut() => return,
        () = shutdown => {}
    }
    end.send_replace(true);
    serving.await;
}
