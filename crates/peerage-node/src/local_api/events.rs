//! The stream of events.

use super::{Backend, MAX_SUBSCRIBERS, routes::Shared, web::Failure};
use crate::http::until_true;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::{Stream, stream};
use peerage_client::{
    ProblemKind,
    local::{Event, EventDetail},
};
use std::{
    convert::Infallible,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, broadcast, watch},
};

/// Begins a stream of events; if it holds a tunnel, that is closed when the stream ends for whatever reason.
pub(super) async fn follow<B: Backend>(
    shared: &Shared<B>,
    hold: Option<String>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>> + use<B>>, Failure> {
    let permit = Arc::clone(&shared.subscribers).try_acquire_owned().map_err(|_full| {
        Failure::new(
            ProblemKind::TooMany,
            format!("{MAX_SUBSCRIBERS} programs already follow the events; end one of them."),
        )
    })?;
    // Before the look at the tunnels, so that its end cannot fall between the two.
    let receiver = shared.backend.events();
    let hold = match hold {
        Some(id) => Some(Hold::new(shared, id).await?),
        None => None,
    };
    let reader = Reader { receiver, ending: shared.ending.clone(), _hold: hold, _permit: permit };
    let events = stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(encode(&event)), reader))
    });
    // A comment now and then shows both ends that the other is there.
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

struct Reader<B: Backend> {
    receiver: broadcast::Receiver<Event>,
    ending: watch::Receiver<bool>,
    _hold: Option<Hold<B>>,
    _permit: OwnedSemaphorePermit,
}

impl<B: Backend> Reader<B> {
    async fn next(&mut self) -> Option<Event> {
        let received = tokio::select! {
            // What has happened before the end is still told.
            biased;
            received = self.receiver.recv() => received,
            () = until_true(&mut self.ending) => return None,
        };
        match received {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(events)) => {
                Some(Event { at_ms: now_ms(), detail: EventDetail::Missed { events } })
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Closes a tunnel when it is dropped.
struct Hold<B: Backend> {
    backend: Arc<B>,
    id: String,
    runtime: Handle,
}

impl<B: Backend> Hold<B> {
    async fn new(shared: &Shared<B>, id: String) -> Result<Self, Failure> {
        if shared.backend.tunnels().await?.iter().any(|tunnel| tunnel.id == id) {
            return Ok(Self { backend: Arc::clone(&shared.backend), id, runtime: Handle::current() });
        }
        Err(Failure::new(
            ProblemKind::UnknownTunnel,
            format!("There is no tunnel {id}; it may have been closed."),
        ))
    }
}

impl<B: Backend> Drop for Hold<B> {
    fn drop(&mut self) {
        let (backend, id) = (Arc::clone(&self.backend), std::mem::take(&mut self.id));
        self.runtime.spawn(async move {
            // It may have been closed by its id already.
            if let Err(problem) = backend.close_tunnel(&id).await {
                tracing::debug!(%problem, "a held tunnel was not closed");
            }
        });
    }
}

fn encode(event: &Event) -> sse::Event {
    // Events are plain structs with string keys: they always encode, and an empty comment harms nobody.
    sse::Event::default().json_data(event).unwrap_or_else(|_error| sse::Event::default().comment(""))
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
