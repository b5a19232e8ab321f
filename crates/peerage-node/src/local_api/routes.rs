//! The routes of the local API.

use super::{
    Backend, MAX_REQUEST_BYTES, MAX_SUBSCRIBERS, events,
    web::{self, Failure, JsonBody},
};
use axum::{
    Json, Router,
    extract::{Path, Query, State, rejection::QueryRejection},
    handler::Handler,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{self, MethodFilter, MethodRouter},
};
use peerage_client::{
    Method, ProblemKind, Route,
    local::{Device, HOST, OpenTunnel, Status, SuperNode, SuperOff, SuperOn, Tunnel},
};
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};

/// What every handler has at hand.
pub(super) struct Shared<B> {
    pub(super) backend: Arc<B>,
    /// One permit for each reader of events.
    pub(super) subscribers: Arc<Semaphore>,
    /// Becomes true when the server ends; streams of events end then.
    pub(super) ending: watch::Receiver<bool>,
}

impl<B> Clone for Shared<B> {
    fn clone(&self) -> Self {
        Self {
            backend: Arc::clone(&self.backend),
            subscribers: Arc::clone(&self.subscribers),
            ending: self.ending.clone(),
        }
    }
}

/// Makes the router of the whole API.
pub(super) fn router<B: Backend>(backend: Arc<B>, ending: watch::Receiver<bool>) -> Router {
    let shared = Shared { backend, subscribers: Arc::new(Semaphore::new(MAX_SUBSCRIBERS)), ending };
    let router = table::<B>()
        .into_iter()
        .fold(Router::new(), |router, (route, handler)| router.route(route.path, handler))
        .with_state(shared);
    web::protect(router, HOST, MAX_REQUEST_BYTES)
}

/// Every route with its handler.
fn table<B: Backend>() -> Vec<(Route, MethodRouter<Shared<B>>)> {
    vec![
        on(Route::get("/v1/status"), status::<B>),
        on(Route::get("/v1/devices"), devices::<B>),
        on(Route::post("/v1/devices/refresh"), refresh_devices::<B>),
        on(Route::get("/v1/tunnels"), tunnels::<B>),
        on(Route::post("/v1/tunnels"), open_tunnel::<B>),
        on(Route::delete("/v1/tunnels/{id}"), close_tunnel::<B>),
        on(Route::get("/v1/super"), super_node::<B>),
        on(Route::post("/v1/super/on"), super_on::<B>),
        on(Route::post("/v1/super/off"), super_off::<B>),
        on(Route::get("/v1/events"), follow::<B>),
        on(Route::post("/v1/shutdown"), shutdown::<B>),
    ]
}

fn on<T: 'static, S: Clone + Send + Sync + 'static>(
    route: Route,
    handler: impl Handler<T, S>,
) -> (Route, MethodRouter<S>) {
    let method = match route.method {
        Method::Get => MethodFilter::GET,
        Method::Post => MethodFilter::POST,
        Method::Delete => MethodFilter::DELETE,
    };
    (route, routing::on(method, handler))
}

async fn status<B: Backend>(State(shared): State<Shared<B>>) -> Result<Json<Status>, Failure> {
    Ok(Json(shared.backend.status().await?))
}

async fn devices<B: Backend>(State(shared): State<Shared<B>>) -> Result<Json<Vec<Device>>, Failure> {
    Ok(Json(shared.backend.devices().await?))
}

async fn refresh_devices<B: Backend>(State(shared): State<Shared<B>>) -> Result<Json<Vec<Device>>, Failure> {
    Ok(Json(shared.backend.refresh_devices().await?))
}

async fn tunnels<B: Backend>(State(shared): State<Shared<B>>) -> Result<Json<Vec<Tunnel>>, Failure> {
    Ok(Json(shared.backend.tunnels().await?))
}

async fn open_tunnel<B: Backend>(
    State(shared): State<Shared<B>>,
    JsonBody(request): JsonBody<OpenTunnel>,
) -> Result<(StatusCode, Json<Tunnel>), Failure> {
    if let Some(listen) = request.listen
        && !listen.ip().is_loopback()
        && !request.expose
    {
        return Err(Failure::new(
            ProblemKind::NotLoopback,
            format!(
                "{listen} can be reached by other computers, which could then use the device in your name. \
                 Choose a loopback address such as 127.0.0.1, or ask to expose it."
            ),
        ));
    }
    Ok((StatusCode::CREATED, Json(shared.backend.open_tunnel(request).await?)))
}

async fn close_tunnel<B: Backend>(
    State(shared): State<Shared<B>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    shared.backend.close_tunnel(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn super_node<B: Backend>(State(shared): State<Shared<B>>) -> Result<Json<SuperNode>, Failure> {
    Ok(Json(shared.backend.super_node().await?))
}

async fn super_on<B: Backend>(
    State(shared): State<Shared<B>>,
    JsonBody(lend): JsonBody<SuperOn>,
) -> Result<Json<SuperNode>, Failure> {
    Ok(Json(shared.backend.super_on(lend).await?))
}

async fn super_off<B: Backend>(State(shared): State<Shared<B>>) -> Result<Json<SuperOff>, Failure> {
    Ok(Json(shared.backend.super_off().await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Follow {
    /// The tunnel that is closed when the stream ends.
    hold: Option<String>,
}

async fn follow<B: Backend>(
    State(shared): State<Shared<B>>,
    query: Result<Query<Follow>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(query) = query.map_err(|e| Failure::new(ProblemKind::InvalidRequest, e.body_text()))?;
    Ok(events::follow(&shared, query.hold).await?.into_response())
}

async fn shutdown<B: Backend>(State(shared): State<Shared<B>>) -> Result<StatusCode, Failure> {
    shared.backend.shutdown().await?;
    Ok(StatusCode::ACCEPTED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_client::{
        Problem,
        local::{Event, ROUTES},
    };
    use std::{collections::BTreeSet, future::ready};
    use tokio::sync::broadcast;

    #[test]
    fn the_server_has_exactly_the_published_routes() {
        let served: BTreeSet<Route> = table::<Absent>().into_iter().map(|(route, _)| route).collect();
        assert_eq!(served, ROUTES.iter().copied().collect());
    }

    /// A backend that is never asked.
    struct Absent;

    fn absent<T: Send>() -> impl Future<Output = Result<T, Problem>> + Send {
        ready(Err(Problem::new(ProblemKind::Unavailable, "")))
    }

    impl Backend for Absent {
        fn status(&self) -> impl Future<Output = Result<Status, Problem>> + Send {
            absent()
        }
        fn devices(&self) -> impl Future<Output = Result<Vec<Device>, Problem>> + Send {
            absent()
        }
        fn refresh_devices(&self) -> impl Future<Output = Result<Vec<Device>, Problem>> + Send {
            absent()
        }
        fn tunnels(&self) -> impl Future<Output = Result<Vec<Tunnel>, Problem>> + Send {
            absent()
        }
        fn open_tunnel(&self, _: OpenTunnel) -> impl Future<Output = Result<Tunnel, Problem>> + Send {
            absent()
        }
        fn close_tunnel(&self, _: &str) -> impl Future<Output = Result<(), Problem>> + Send {
            absent()
        }
        fn super_node(&self) -> impl Future<Output = Result<SuperNode, Problem>> + Send {
            absent()
        }
        fn super_on(&self, _: SuperOn) -> impl Future<Output = Result<SuperNode, Problem>> + Send {
            absent()
        }
        fn super_off(&self) -> impl Future<Output = Result<SuperOff, Problem>> + Send {
            absent()
        }
        fn events(&self) -> broadcast::Receiver<Event> {
            broadcast::channel(1).1
        }
        fn shutdown(&self) -> impl Future<Output = Result<(), Problem>> + Send {
            absent()
        }
    }
}
