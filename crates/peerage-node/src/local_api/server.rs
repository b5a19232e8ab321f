//! The loop that accepts connections and serves them.

use super::{Backend, MAX_CONNECTIONS, Socket, routes};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::UnixStream,
    sync::{Semaphore, watch},
    task::JoinSet,
    time,
};

/// How long a client may take to send the head of a request, and may stay silent between two. Longer only keeps idle
/// connections.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long requests that are under way may take when the server ends; then they are cut off. Longer delays the end
/// of the node.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait after the system could not accept a connection, most likely for want of descriptors. Shorter
/// burns time while the want lasts.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the local API until `shutdown` is ready, then ends the streams of events, lets requests that are under way
/// finish for two seconds, and removes the socket.
pub async fn serve<B: Backend>(socket: Socket, backend: Arc<B>, shutdown: impl Future<Output = ()> + Send) {
    let (end, ending) = watch::channel(false);
    let router = routes::router(backend, ending.clone());
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, socket.accept().await)
        };
        tokio::select! {
            () = &mut shutdown => break,
            Some(_ended) = connections.join_next() => {}
            (permit, accepted) = accepted => match accepted {
                Ok(stream) => {
                    let connection = serve_connection(stream, router.clone(), ending.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the local API");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(socket);
    end.send_replace(true);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if time::timeout(END_TIMEOUT, all_ended).await.is_err() {
        tracing::debug!("connections to the local API are cut off");
    }
}

async fn serve_connection(stream: UnixStream, router: Router, mut ending: watch::Receiver<bool>) {
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = until_true(&mut ending) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection to the local API broke");
    }
}

/// Waits until the server ends.
pub(super) async fn until_true(ending: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same. The guard inside the result must not live on in a caller's future.
    drop(ending.wait_for(|ending| *ending).await);
}
