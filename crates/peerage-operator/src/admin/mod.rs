//! The admin API: what the vendor's people and programs ask of the operator, over HTTP on a loopback address.
//!
//! Who may: whoever can read the token in the data directory. What a web page could send is refused
//! ([`peerage_node::local_api::web::protect`]). The types and the routes are those of [`peerage_client::admin`]; every
//! change is one transaction of the ledger, audit entry included.

mod problems;
mod routes;
mod super_nodes;
mod views;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use peerage_client::admin::{AdminFile, MAX_REQUEST_BYTES};
use peerage_client::{Problem, ProblemKind};
use peerage_node::local_api::web::{Failure, protect};
use peerage_wire::id::sha256;
use peerage_wire::time::UnixTime;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::config::Ready;
use crate::driver::Ask;
use crate::ledger::LedgerHandle;
use peerage_node::http::{self, Limits};

const LIMITS: Limits = Limits {
    // Other programs of this computer may connect but not ask; fewer, and one that holds its connections keeps the
    // vendor's software out.
    connections: 128,
    head_timeout: Duration::from_secs(30),
    // The revocation of a node of the largest domain signs 20,000 records.
    lifetime: Some(Duration::from_secs(300)),
};

/// What the admin API needs.
pub(crate) struct Admin {
    pub(crate) ledger: LedgerHandle,
    pub(crate) machine: mpsc::Sender<Ask>,
    pub(crate) ready: Ready,
    pub(crate) started_at: UnixTime,
    /// The bearer token, new at each start.
    pub(crate) token: String,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("address", &self.ready.admin).finish_non_exhaustive()
    }
}

impl Admin {
    /// Returns what tells local programs where the admin API is.
    pub(crate) fn file_content(&self) -> Vec<u8> {
        let file = AdminFile { address: self.ready.admin, token: self.token.clone() };
        // An address and a text of hexadecimal digits always become JSON.
        serde_json::to_vec(&file).unwrap_or_default()
    }
}

/// Serves the admin API until `ending` says so.
pub(crate) async fn serve(listener: TcpListener, admin: Admin, ending: watch::Receiver<bool>) {
    let router = router(Arc::new(admin));
    http::accept(listener, LIMITS, ending.clone(), |(stream, _remote), _stay| {
        Some(http::serve_stream(stream, router.clone(), LIMITS, ending.clone()))
    })
    .await;
}

fn router(admin: Arc<Admin>) -> Router {
    let host = admin.ready.admin.to_string();
    let checked = middleware::from_fn_with_state(Arc::clone(&admin), authorize);
    // Outermost, so that without the token one does not even learn which routes there are.
    protect(routes::router(admin), host, MAX_REQUEST_BYTES).layer(checked)
}

/// Lets a request pass that carries the token.
async fn authorize(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let given =
        request.headers().get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    // Hashes are compared, so that the time tells nothing about the token.
    if given.is_some_and(|given| sha256(&[given]) == sha256(&[admin.token.as_bytes()])) {
        return next.run(request).await;
    }
    let detail = "Send `Authorization: Bearer TOKEN` with the token in admin.json; it is new at each start.";
    Failure(Problem::new(ProblemKind::Unauthorized, detail)).into_response()
}
