//! What a server takes by way of HTTP: connections that become WebSockets (Rule 6.111), and requests that carry (Rule 6.113).

use std::net::SocketAddr;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{SEC_WEBSOCKET_VERSION, UPGRADE};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::poll::{DOWN_PATH, UP_PATH};
use super::websocket::{self, WebSocket};
use super::{Content, Intake};
use crate::http::Stay;

/// Returns whether a connection that begins with this byte speaks HTTP: methods are capital letters.
pub const fn begins_http(first: u8) -> bool {
    first.is_ascii_uppercase()
}

impl Intake {
    /// Returns what is served to somebody who speaks HTTP. What he brings outlives the connection's service, or has it stay, and has limits
    /// of its own.
    pub fn routes(&self, remote: SocketAddr, stay: &Stay) -> Router {
        let mut router = Router::new();
        for content in Content::ALL {
            let intake = self.clone();
            let serve = move |request: Request| async move { intake.turn(content, request, remote) };
            let polled = self.clone();
            let open = move || async move { polled.open(content, remote) };
            router = router.route(content.path(), get(serve).post(open));
        }
        let [up, down] = [(); 2].map(|()| (self.polled.clone(), stay.clone()));
        let take = move |request: Request| async move { up.0.take(request.into_body(), &up.1).await };
        let give = move |request: Request| async move { down.0.give(request.into_body(), &down.1).await };
        router.route(UP_PATH, post(take)).route(DOWN_PATH, post(give))
    }

    /// Turns a connection into a WebSocket if that is asked for.
    fn turn(self, content: Content, mut request: Request, remote: SocketAddr) -> Response {
        let Some(agreed) = websocket::agree(request.headers()) else {
            let wanted = [(UPGRADE, "websocket"), (SEC_WEBSOCKET_VERSION, "13")];
            return (StatusCode::UPGRADE_REQUIRED, wanted).into_response();
        };
        let turning = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            match turning.await {
                Ok(io) => {
                    let io = WebSocket::new(TokioIo::new(io), Role::Server).await;
                    self.serve(content, io, remote).await;
                }
                Err(error) => tracing::debug!(%remote, %error, "a connection became no WebSocket"),
            }
        });
        (StatusCode::SWITCHING_PROTOCOLS, agreed).into_response()
    }
}
