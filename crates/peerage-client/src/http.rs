//! One HTTP exchange over a stream that is already connected.
//!
//! Each exchange has its own connection: both servers are on this computer, where connecting costs less than keeping
//! a pool right.

use crate::{
    error::Error,
    problem::{PROBLEM_MEDIA_TYPE, Problem},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// How long a client waits for an answer. Opening a tunnel may take several attempts of some seconds each, and a super-node
/// hands over for up to a minute; a longer wait only delays the news that the server hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(75);

/// The largest answer that a client reads, in bytes: 10,000 devices at 800 bytes and some room. Raising it lets a
/// broken server take more memory; lowering it breaks the largest domains.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// A request before it has a connection.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    method: &'static str,
    path: String,
    host: &'a str,
    bearer: Option<&'a str>,
    body: Option<Bytes>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: &'static str, path: impl Into<String>, host: &'a str) -> Self {
        Self { method, path: path.into(), host, bearer: None, body: None }
    }

    pub(crate) fn bearer(mut self, token: &'a str) -> Self {
        self.bearer = Some(token);
        self
    }

    pub(crate) fn json<T: Serialize>(mut self, body: &T) -> Result<Self, Error> {
        self.body = Some(serde_json::to_vec(body)?.into());
        Ok(self)
    }

    fn into_request(self) -> Result<Request<Full<Bytes>>, Error> {
        let mut request = Request::builder().method(self.method).uri(self.path).header(HOST, self.host);
        request = request.header(ACCEPT, "application/json, text/event-stream, application/problem+json");
        if let Some(token) = self.bearer {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if self.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        // Paths are made from literals and encoded segments, so only a damaged token can make this fail.
        request
            .body(Full::new(self.body.unwrap_or_default()))
            .map_err(|e| Error::Io(std::io::Error::other(e)))
    }
}

/// Sends a call and reads the answer as JSON.
pub(crate) async fn call<S, T>(stream: S, call: Call<'_>) -> Result<T, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: DeserializeOwned,
{
    Ok(serde_json::from_slice(&within_timeout(answer_bytes(stream, call)).await?)?)
}

/// Sends a call whose answer has no content.
pub(crate) async fn call_without_answer<S>(stream: S, call: Call<'_>) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    within_timeout(answer_bytes(stream, call)).await.map(drop)
}

/// Sends a call whose answer is a stream; returns as soon as it has begun.
pub(crate) async fn open_stream<S>(stream: S, call: Call<'_>) -> Result<Incoming, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    within_timeout(async { Ok(exchange(stream, call).await?.into_body()) }).await
}

/// Encodes a value as one segment of a path.
pub(crate) fn segment(value: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => encoded.push(char::from(byte)),
            // The dot as well: `.` and `..` would be taken as steps in the path.
            _ => _ = write!(encoded, "%{byte:02X}"),
        }
    }
    encoded
}

async fn within_timeout<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(ANSWER_TIMEOUT, work).await {
        Ok(result) => result,
        Err(_elapsed) => Err(Error::TimedOut { seconds: ANSWER_TIMEOUT.as_secs() }),
    }
}

async fn answer_bytes<S>(stream: S, call: Call<'_>) -> Result<Bytes, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    read_whole(exchange(stream, call).await?.into_body()).await
}

/// Sends the request and returns an answer that has succeeded; a refusal becomes an error.
async fn exchange<S>(stream: S, call: Call<'_>) -> Result<Response<Incoming>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = call.into_request()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends when the sender and the answer's body are dropped. A failure shows at the sender as well.
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status().as_u16();
    let is_problem = response.headers().get(CONTENT_TYPE).is_some_and(|v| v == PROBLEM_MEDIA_TYPE);
    if !is_problem {
        return Err(Error::Unexplained { status });
    }
    let body = read_whole(response.into_body()).await?;
    Err(Error::Problem(serde_json::from_slice::<Problem>(&body)?))
}

async fn read_whole(body: Incoming) -> Result<Bytes, Error> {
    match Limited::new(body, MAX_ANSWER_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Error::TooLarge { limit_bytes: MAX_ANSWER_BYTES })
        }
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(Error::Http(*error)),
            Err(error) => Err(Error::Io(std::io::Error::other(error))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_segment_keeps_plain_names_and_encodes_everything_else() {
        assert_eq!(segment("hp-3rd_floor~A"), "hp-3rd_floor~A");
        assert_eq!(segment("../x?y#z/ü"), "%2E%2E%2Fx%3Fy%23z%2F%C3%BC");
    }
}
