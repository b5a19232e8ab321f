//! What every HTTP server for programs on this computer needs: failures as problem details, JSON bodies, and
//! protection from web pages.
//!
//! A browser on the same computer can reach loopback ports, and a page can make it send requests there. Such a
//! request carries `Origin`, or, when the page has pointed its own name at 127.0.0.1, a foreign `Host`.

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Request},
    http::{
        HeaderMap, HeaderValue, StatusCode, Uri,
        header::{CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use peerage_client::{PROBLEM_MEDIA_TYPE, Problem, ProblemKind};
use serde::de::DeserializeOwned;

/// A problem as the answer of a handler.
#[derive(Debug)]
pub struct Failure(pub Problem);

impl Failure {
    /// Makes a failure; `detail` says what happened and what to do.
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self(Problem::new(kind, detail))
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
        response
    }
}

/// The body of a request, read as JSON; whatever is wrong with it becomes a [`Failure`].
#[derive(Clone, Copy, Debug)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(Failure::new(
                match rejection.status() {
                    StatusCode::PAYLOAD_TOO_LARGE => ProblemKind::BodyTooLarge,
                    StatusCode::UNSUPPORTED_MEDIA_TYPE => ProblemKind::UnsupportedMediaType,
                    _ => ProblemKind::InvalidRequest,
                },
                rejection.body_text(),
            )),
        }
    }
}

/// Adds to a router what every local server needs: it refuses a request that names a host other than `host` or that
/// comes from a web page, reads no body larger than `max_body_bytes`, and answers unknown routes with a problem.
pub fn protect(router: Router, host: impl Into<String>, max_body_bytes: usize) -> Router {
    let host = host.into();
    router
        .fallback(async |uri: Uri| {
            Failure::new(ProblemKind::UnknownRoute, format!("{} is not part of this API.", uri.path()))
        })
        .method_not_allowed_fallback(async |uri: Uri| {
            Failure::new(ProblemKind::MethodNotAllowed, format!("{} has other methods.", uri.path()))
        })
        .layer(DefaultBodyLimit::max(max_body_bytes))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            let refusal = refusal(&host, request.uri(), request.headers());
            async move {
                let mut response = match refusal {
                    Some(detail) => Failure::new(ProblemKind::ForeignOrigin, detail).into_response(),
                    None => next.run(request).await,
                };
                response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
                response
            }
        }))
}

/// Says why a request is refused, if it is.
fn refusal(host: &str, uri: &Uri, headers: &HeaderMap) -> Option<String> {
    if headers.contains_key(ORIGIN) {
        return Some("Requests with an Origin header are refused: this API is not for web pages.".to_owned());
    }
    let mut named = headers.get_all(HOST).iter();
    let right = named.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(host.as_bytes()));
    let one = named.next().is_none();
    let target = uri.authority().is_none_or(|authority| authority.as_str().eq_ignore_ascii_case(host));
    if right && one && target {
        return None;
    }
    Some(format!("Send exactly one Host header, \"{host}\"."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

    #[test]
    fn only_a_request_that_names_this_host_once_and_no_origin_passes() {
        let plain = "/v1/status";
        for (target, headers, passes) in [
            (plain, "host: localhost", true),
            (plain, "host: LocalHost", true),
            (plain, "", false),
            (plain, "host: localhost:80", false),
            (plain, "host: evil.example", false),
            (plain, "host: localhost, host: evil.example", false),
            (plain, "host: localhost, origin: http://localhost", false),
            (plain, "host: localhost, origin: null", false),
            ("http://evil.example/v1/status", "host: localhost", false),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers.split(", ").filter_map(|header| header.split_once(": ")) {
                map.append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
            }
            let refusal = refusal("localhost", &Uri::from_static(target), &map);
            assert_eq!(refusal.is_none(), passes, "{target} {headers}");
        }
    }
}
