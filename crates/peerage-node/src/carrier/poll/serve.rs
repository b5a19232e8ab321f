//! The server's side: sessions, their names and their limits.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Limited};
use tokio::sync::Semaphore;
use tokio::time;

use super::session::{Fault, HOLD, Session};
use super::{MAX_PORTION_BYTES, NAME_SIZE, Name, Place, Portion, portion_bytes};
use crate::carrier::{Content, Intake};
use crate::http::Stay;
use crate::places::{Counted, Places};
use crate::socket::pipe;
use crate::sync::lock;

/// Sessions for messages from one [place](Places): a company behind one address, each of whose computers has one.
pub(super) const MAX_MESSAGES_PER_PLACE: usize = 256;

/// Sessions for messages from everywhere, of up to 64 KiB each. More keeps memory for strangers.
const MAX_MESSAGES: usize = 1_024;

/// Sessions for legs from one place.
const MAX_LEGS_PER_PLACE: usize = 64;

/// Sessions for legs from everywhere, of up to 640 KiB each. More keeps memory for strangers; fewer turns members away whom nothing but
/// requests of HTTP leads out.
const MAX_LEGS: usize = 256;

/// Connections that a session keeps beyond what HTTP may take: one for each direction, and those that a proxy has not closed yet.
const MAX_CONNECTIONS: usize = 4;

/// How long nothing may be asked of a session: three times what a request waits. Longer keeps sessions of those who are gone; shorter
/// cuts off who changes networks for a moment.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(3 * HOLD.as_secs());

/// For how long a session that is over can be asked again, should its last answer be lost.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a body may take: the longest one on a line of 40 kbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// All sessions of one computer. Clones share them.
#[derive(Clone, Debug)]
pub(in crate::carrier) struct Polled {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    open: std::sync::Mutex<BTreeMap<Name, Arc<Served>>>,
    messages: Places,
    legs: Places,
}

#[derive(Debug)]
struct Served {
    session: Session,
    connections: Arc<Semaphore>,
}

impl Default for Polled {
    fn default() -> Self {
        let inner = Inner {
            open: std::sync::Mutex::default(),
            messages: Places::new(MAX_MESSAGES_PER_PLACE, MAX_MESSAGES),
            legs: Places::new(MAX_LEGS_PER_PLACE, MAX_LEGS),
        };
        Self { inner: Arc::new(inner) }
    }
}

impl Intake {
    /// Makes a session, and has what it carries served until it ends.
    pub(in crate::carrier) fn open(self, content: Content, remote: SocketAddr) -> Response {
        let places = match content {
            Content::Messages => &self.polled.inner.messages,
            Content::Leg => &self.polled.inner.legs,
        };
        // A socket of both families shows IPv4 addresses as IPv6.
        let Some(counted) = places.take(remote.ip().to_canonical()) else {
            tracing::debug!(%remote, "a session beyond the limits was refused");
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        };
        let mut name = Name([0; NAME_SIZE]);
        if let Err(error) = getrandom::fill(&mut name.0) {
            tracing::warn!(%error, "a session has no name");
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let portion_bytes = portion_bytes(content);
        let (near, far) = pipe(remote, portion_bytes);
        let session = Session::new(far.into(), portion_bytes);
        let served = Arc::new(Served { session, connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)) });
        lock(&self.polled.inner.open).insert(name, Arc::clone(&served));
        tokio::spawn(self.polled.clone().keep(name, served, counted));
        match content {
            Content::Messages => drop(tokio::spawn(async move { self.serve(content, near, remote).await })),
            Content::Leg => self.take_leg(near, remote),
        }
        answer(Bytes::copy_from_slice(&name.0))
    }
}

impl Polled {
    /// Keeps a session until it is over, or nothing was asked of it for a while.
    async fn keep(self, name: Name, served: Arc<Served>, _counted: Counted) {
        let session = &served.session;
        loop {
            let limit = if session.is_over() { FAREWELL } else { IDLE_TIMEOUT };
            if time::timeout(limit, session.heard.notified()).await.is_err() {
                break;
            }
        }
        lock(&self.inner.open).remove(&name);
        if !session.is_over() {
            session.reset();
        }
    }

    /// Answers a request that brings bytes.
    pub(in crate::carrier) async fn take(&self, body: Body, stay: &Stay) -> Response {
        let Some((place, rest)) = read(body).await else { return StatusCode::BAD_REQUEST.into_response() };
        let Some(portion) = Portion::read(rest) else { return StatusCode::BAD_REQUEST.into_response() };
        let Some(served) = self.find(place.name, stay) else { return StatusCode::NOT_FOUND.into_response() };
        let taken = served.session.take(place.offset, portion).await;
        served.session.heard.notify_one();
        taken.map_or_else(refusal, |taken| answer(Bytes::copy_from_slice(&taken.to_be_bytes())))
    }

    /// Answers a request that fetches bytes.
    pub(in crate::carrier) async fn give(&self, body: Body, stay: &Stay) -> Response {
        let Some((place, _)) = read(body).await else { return StatusCode::BAD_REQUEST.into_response() };
        let Some(served) = self.find(place.name, stay) else { return StatusCode::NOT_FOUND.into_response() };
        let given = served.session.give(place.offset).await;
        served.session.heard.notify_one();
        let write = |portion: Portion| {
            let mut body = BytesMut::with_capacity(Portion::HEAD_SIZE + portion.bytes.len());
            portion.write(&mut body);
            answer(body.freeze())
        };
        given.map_or_else(refusal, write)
    }

    /// Returns a session of which something is asked, and has the connection stay for it.
    fn find(&self, name: Name, stay: &Stay) -> Option<Arc<Served>> {
        let served = lock(&self.inner.open).get(&name).cloned()?;
        served.session.heard.notify_one();
        if !stay.is_extended()
            && let Ok(permit) = Arc::clone(&served.connections).try_acquire_owned()
        {
            stay.extend(permit);
        }
        Some(served)
    }
}

/// Reads a body to its end.
async fn read(body: Body) -> Option<(Place, Bytes)> {
    let limited = Limited::new(body, Place::SIZE + Portion::HEAD_SIZE + MAX_PORTION_BYTES);
    let read = time::timeout(BODY_TIMEOUT, limited.collect()).await.ok()?.ok()?;
    Place::split(read.to_bytes())
}

fn answer(body: Bytes) -> Response {
    let headers = [(CONTENT_TYPE, "application/octet-stream"), (CACHE_CONTROL, "no-store")];
    (headers, body).into_response()
}

fn refusal(fault: Fault) -> Response {
    match fault {
        Fault::Gap => StatusCode::CONFLICT,
        Fault::Gone => StatusCode::GONE,
    }
    .into_response()
}
