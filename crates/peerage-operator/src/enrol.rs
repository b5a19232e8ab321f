//! The server through which nodes join and renew: HTTPS on the TCP port of the same number as the message port.
//!
//! TLS carries, it does not protect (chapter 5 of the protocol): a request is opened with the operator's enrolment key,
//! decided in the ledger, and the answer, refusals included, is sealed to whoever signed the request. What does not
//! open gets status 400 and nothing else.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use peerage_node::clock::Clock;
use peerage_proto::limiter::{Limiter, Rate};
use peerage_wire::enrol::{
    Admission, CERTIFICATE_FIELD, ENROL_PATH, EnrolAnswer, EnrolRequest, HELLO_PATH, MAX_ENROL_BODY, Refusal,
};
use peerage_wire::id::{NetworkId, NodeId, to_hex};
use peerage_wire::intro::KeyStatement;
use peerage_wire::keys::AgreementKey;
use peerage_wire::leg::begins_leg;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time;
use tokio_rustls::TlsAcceptor;

use crate::ledger::{Enrolment, LedgerError, LedgerHandle, rng};
use peerage_node::carrier::{Content, Intake, begins_http};
use peerage_node::http::{self, Limits, Listeners, Stay};

const LIMITS: Limits = Limits {
    // Each holds some 40 KiB of TLS buffers while it lasts; fewer, and a few slow clients keep others waiting.
    connections: 512,
    head_timeout: Duration::from_secs(10),
    // Two small requests over a bad mobile network take ten seconds; longer serves only those who want to hold places.
    lifetime: Some(Duration::from_secs(30)),
};

/// Longest TLS handshake; three round trips of a bad mobile network.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often one address, or one IPv6 site, may ask. A whole department that starts on Monday morning behind one
/// address passes, as each computer asks twice; guessing 128-bit secrets at this rate is hopeless.
const REQUEST_RATE: Rate = Rate { per_second: 10, burst: 240 };

/// How often one address may connect: a handshake costs about a millisecond of one core. Legs cost none and are not counted: behind one
/// router there may be nodes that relay hundreds of links, and make all of them anew when the operator was away.
const CONNECTION_RATE: Rate = Rate { per_second: 20, burst: 480 };

/// After how many seconds somebody who asked too often may ask again.
const RETRY_AFTER_SECONDS: &str = "2";

/// What changes while the operator runs and is told to strangers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    /// The sealing key of the day.
    pub(crate) statement: KeyStatement,
    /// The operator's own record.
    pub(crate) operator: Bytes,
}

/// What the server needs.
#[derive(Debug)]
pub(crate) struct Enroller {
    pub(crate) network: NetworkId,
    pub(crate) root: [u8; 32],
    pub(crate) id: NodeId,
    pub(crate) enrolment: AgreementKey,
    pub(crate) ledger: LedgerHandle,
    pub(crate) published: watch::Receiver<Published>,
    pub(crate) clock: Clock,
    /// SHA-256 of the certificate that it shows.
    pub(crate) certificate: [u8; 32],
}

#[derive(Debug)]
struct Shared {
    enroller: Enroller,
    requests: Mutex<Limiter>,
}

impl Shared {
    fn may_ask(&self, remote: SocketAddr) -> bool {
        let now = self.enroller.clock.mono();
        // A panic elsewhere leaves a limiter that still limits.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).take(remote, now)
    }
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
struct Remote(SocketAddr);

/// Serves joining nodes until `ending` says so.
pub(crate) async fn serve(
    listeners: Listeners,
    tls: TlsAcceptor,
    enroller: Enroller,
    intake: Intake,
    ending: watch::Receiver<bool>,
) {
    let clock = enroller.clock.clone();
    let shared = Shared { enroller, requests: Mutex::new(Limiter::new(REQUEST_RATE)) };
    let router = router(Arc::new(shared));
    let connections = Connections { limiter: Arc::new(Mutex::new(Limiter::new(CONNECTION_RATE))), clock };
    http::accept(listeners, LIMITS, ending.clone(), |(stream, remote), stay| {
        connections.lock().take(remote, connections.clock.mono()).then(|| {
            let first = (stream, remote, stay);
            let parts = (router.clone(), intake.clone(), connections.clone());
            serve_connection(first, tls.clone(), parts, ending.clone())
        })
    })
    .await;
}

/// Counts how often each address connects.
#[derive(Clone, Debug)]
struct Connections {
    limiter: Arc<Mutex<Limiter>>,
    clock: Clock,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve_connection(
    (stream, remote, stay): (TcpStream, SocketAddr, Stay),
    tls: TlsAcceptor,
    (router, intake, connections): (Router, Intake, Connections),
    ending: watch::Receiver<bool>,
) {
    // Made where HTTP is spoken alone.
    let routes = || router.layer(Extension(Remote(remote))).merge(intake.routes(remote, &stay));
    let mut first = [0];
    // Whoever is asked answers in one go.
    drop(stream.set_nodelay(true));
    match time::timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)).await {
        // Members relay through the same port (Rule 6.30); their legs have limits of their own.
        Ok(Ok(1)) if begins_leg(first[0]) => {
            connections.lock().put_back(remote, connections.clock.mono());
            return intake.take_leg(stream, remote);
        }
        // What is asked and answered is sealed, so it needs no TLS (Rule 6.112).
        Ok(Ok(1)) if begins_http(first[0]) => {
            return http::serve_stream(stream, routes(), LIMITS, ending).await;
        }
        Ok(Ok(1)) => {}
        Ok(Ok(_) | Err(_)) | Err(_) => return,
    }
    match time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        // Those whom UDP does not reach send their messages so (Rule 6.100); they have limits of their own, too.
        Ok(Ok(stream)) => match Content::of(&stream) {
            Some(content) => drop(tokio::spawn(async move { intake.serve(content, stream, remote).await })),
            None => http::serve_stream(stream, routes(), LIMITS, ending).await,
        },
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_elapsed) => tracing::debug!("a TLS handshake took too long"),
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route(HELLO_PATH, get(hello))
        .route(ENROL_PATH, post(enrol))
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(DefaultBodyLimit::max(MAX_ENROL_BODY))
        .with_state(shared)
}

async fn hello(State(shared): State<Arc<Shared>>, Extension(Remote(remote)): Extension<Remote>) -> Response {
    if !shared.may_ask(remote) {
        return too_often();
    }
    let operator = shared.enroller.published.borrow().operator.clone();
    // Rule 5.7: so that a node can say when somebody in between shows another.
    let certificate = [(HeaderName::from_static(CERTIFICATE_FIELD), to_hex(&shared.enroller.certificate))];
    (certificate, binary(crate::init::hello(shared.enroller.root, operator))).into_response()
}

async fn enrol(
    State(shared): State<Arc<Shared>>,
    Extension(Remote(remote)): Extension<Remote>,
    body: Bytes,
) -> Response {
    if !shared.may_ask(remote) {
        return too_often();
    }
    let enroller = &shared.enroller;
    let Ok(request) = EnrolRequest::open(&body, &enroller.network, enroller.id, &enroller.enrolment) else {
        tracing::debug!("an enrolment does not open");
        return StatusCode::BAD_REQUEST.into_response();
    };
    let receiving = request.receiving;
    let Some(answer) = enroller.decide(request, remote).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    match answer.seal(&enroller.network, &receiving, &body, &mut rng()) {
        Ok(sealed) => binary(sealed),
        // Its receiving key is none: nothing can be told to it.
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

impl Enroller {
    /// Decides about a request; `None` if its keys are not usable.
    async fn decide(&self, request: EnrolRequest, remote: SocketAddr) -> Option<EnrolAnswer> {
        match self
            .ledger
            .act(move |tx| tx.enrol(&request, remote.ip()).map(|outcome| (outcome, tx.now())))
            .await
        {
            Ok((Enrolment::Admitted(admitted), time)) => {
                let statement = self.published.borrow().statement;
                Some(EnrolAnswer::Admitted(Box::new(Admission {
                    node: admitted.node.bytes().clone(),
                    domain_key: admitted.domain_key.bytes().clone(),
                    operators: admitted.operators,
                    statement,
                    domain_name: admitted.domain_name,
                    time,
                })))
            }
            Ok((Enrolment::Pending, _)) => Some(EnrolAnswer::Pending),
            Ok((Enrolment::Refused(refusal), _)) => Some(EnrolAnswer::Refused(refusal)),
            Err(LedgerError::Crypto(_)) => None,
            Err(error) => {
                tracing::error!(%error, "nobody can be admitted");
                Some(EnrolAnswer::Refused(Refusal::Unavailable))
            }
        }
    }
}

fn binary(body: Vec<u8>) -> Response {
    let headers: [(HeaderName, &str); 2] =
        [(CONTENT_TYPE, "application/octet-stream"), (CACHE_CONTROL, "no-store")];
    (headers, body).into_response()
}

fn too_often() -> Response {
    (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, RETRY_AFTER_SECONDS)]).into_response()
}
