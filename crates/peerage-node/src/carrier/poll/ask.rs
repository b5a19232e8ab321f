//! The client's side: two connections, one for each direction, on which one request follows the other.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use super::session::HOLD;
use super::{
    DOWN_PATH, Follows, MAX_PORTION_BYTES, Name, Place, Portion, UP_PATH, portion_bytes, read_offset,
};
use crate::carrier::convey::until;
use crate::carrier::{Content, open};
use crate::connect::Connector;
use crate::framed::within;
use crate::http::ALPN_HTTP;
use crate::socket::{Pipe, Socket, pipe};

/// How often a request is made until it is answered: a connection that was kept may be closed while it is sent, and a proxy may be busy.
const MAX_TRIES: u32 = 4;

/// How long to wait before a request is made for the third time, and the fourth; the second goes out at once.
const RETRY: Duration = Duration::from_secs(1);

/// How long a request may take: what the server holds it for, and a slow line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(HOLD.as_secs() + 20);

/// How long after a request that has changed nothing the next one is made at the earliest, so that whoever answers at once with nothing is not
/// asked without a pause.
const PAUSE: Duration = Duration::from_secs(1);

/// How long it may take to say that a connection is broken.
const BREAK_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes a session at a server, inside TLS or not, and has a task move its bytes.
///
/// # Errors
/// What the connection says, and that what answers makes no sessions.
pub(in crate::carrier) async fn ask(
    connector: &Connector,
    (is_inside_tls, address): (bool, SocketAddr),
    content: Content,
) -> io::Result<Pipe> {
    let make = || Asker { connector: connector.clone(), is_inside_tls, address, connection: None };
    let (mut up, down) = (make(), make());
    let mut connection = up.connect().await?;
    let local = connection.local;
    let answer = connection.ask(content.path(), Bytes::new()).await?.ok_or(io::ErrorKind::InvalidData)?;
    let name = Name::read(&answer).ok_or(io::ErrorKind::InvalidData)?;
    up.connection = Some(connection);
    let portion_bytes = portion_bytes(content);
    let (near, far) = pipe(local, portion_bytes);
    tokio::spawn(carry(Carried { name, portion_bytes, up, down }, far));
    Ok(near)
}

struct Carried {
    name: Name,
    portion_bytes: usize,
    up: Asker,
    down: Asker,
}

/// Moves bytes until both directions have ended, or nobody holds the other end any more.
async fn carry(Carried { name, portion_bytes, mut up, mut down }: Carried, pipe: Pipe) {
    let (abandoned, socket) = (pipe.abandoned(), Socket::from(pipe));
    let moving = async {
        let sending = send(&mut up, (name, portion_bytes), &socket);
        tokio::try_join!(sending, receive(&mut down, name, &socket)).map(|((), ())| ())
    };
    // On the heap: each has a handshake in it.
    if let Err(error) = until(Box::pin(moving), abandoned).await {
        tracing::debug!(%error, "a connection inside requests broke");
        socket.reset();
        let broken = Portion { follows: Follows::Break, bytes: Bytes::new() };
        // At the very first byte it is never a gap.
        let body = body(Place { name, offset: 0 }, Some(&broken));
        let _ = within(BREAK_TIMEOUT, up.ask(UP_PATH, body)).await;
    }
}

/// Brings up what is written at the pipe's other end.
async fn send(asker: &mut Asker, (name, portion_bytes): (Name, usize), socket: &Socket) -> io::Result<()> {
    let mut offset = 0;
    let mut buffer = vec![0; portion_bytes];
    loop {
        socket.readable().await?;
        let count = match socket.try_read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            count => count?,
        };
        let follows = if count == 0 { Follows::Nothing } else { Follows::More };
        let mut bytes = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
        loop {
            let asked_at = Instant::now();
            let place = Place { name, offset };
            let portion = Portion { follows, bytes: bytes.clone() };
            // Whoever takes nothing any more may still have something to say.
            let Some(answer) = asker.ask(UP_PATH, body(place, Some(&portion))).await? else { return Ok(()) };
            let taken = read_offset(&answer).and_then(|taken| taken.checked_sub(offset));
            let taken =
                taken.and_then(|taken| usize::try_from(taken).ok()).filter(|taken| *taken <= bytes.len());
            let taken = taken.ok_or(io::ErrorKind::InvalidData)?;
            bytes.advance(taken);
            offset += taken as u64;
            if bytes.is_empty() {
                break;
            }
            if taken == 0 {
                time::sleep_until(asked_at + PAUSE).await;
            }
        }
        if follows == Follows::Nothing {
            return Ok(());
        }
    }
}

/// Fetches what is to be read at the pipe's other end.
async fn receive(asker: &mut Asker, name: Name, socket: &Socket) -> io::Result<()> {
    let mut offset = 0;
    loop {
        let asked_at = Instant::now();
        let answer = asker.ask(DOWN_PATH, body(Place { name, offset }, None)).await?;
        let portion = answer.and_then(Portion::read).ok_or(io::ErrorKind::InvalidData)?;
        socket.write(&portion.bytes).await?;
        offset += portion.bytes.len() as u64;
        match portion.follows {
            Follows::More if portion.bytes.is_empty() => time::sleep_until(asked_at + PAUSE).await,
            Follows::More => {}
            Follows::Nothing => return socket.end(),
            Follows::Break => return Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

fn body(place: Place, portion: Option<&Portion>) -> Bytes {
    let mut body = BytesMut::new();
    place.write(&mut body);
    if let Some(portion) = portion {
        portion.write(&mut body);
    }
    body.freeze()
}

/// Makes requests, on one connection as long as that lives.
struct Asker {
    connector: Connector,
    is_inside_tls: bool,
    address: SocketAddr,
    connection: Option<Connection>,
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    local: SocketAddr,
    /// Ends the connection with the value.
    _task: JoinSet<()>,
}

/// Why there is no answer.
enum Fault {
    /// Another try may help.
    Unanswered(io::Error),
    /// This is the answer.
    Refused(io::Error),
}

impl Asker {
    /// Asks until there is an answer; `None` if the other end takes nothing any more.
    async fn ask(&mut self, path: &str, body: Bytes) -> io::Result<Option<Bytes>> {
        let mut last = io::Error::from(io::ErrorKind::TimedOut);
        for before in 0..MAX_TRIES {
            time::sleep(RETRY * before.saturating_sub(1)).await;
            match time::timeout(REQUEST_TIMEOUT, self.ask_once(path, body.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Fault::Refused(error))) => return Err(error),
                Ok(Err(Fault::Unanswered(error))) => last = error,
                Err(_elapsed) => {}
            }
            self.connection = None;
        }
        Err(last)
    }

    async fn ask_once(&mut self, path: &str, body: Bytes) -> Result<Option<Bytes>, Fault> {
        let mut connection = match self.connection.take().filter(|kept| !kept.sender.is_closed()) {
            Some(kept) => kept,
            None => self.connect().await.map_err(Fault::Unanswered)?,
        };
        let answer = connection.try_ask(path, body).await?;
        self.connection = Some(connection);
        Ok(answer)
    }

    async fn connect(&self) -> io::Result<Connection> {
        if self.is_inside_tls {
            let (io, local) = open::tls(&self.connector, self.address, ALPN_HTTP).await?;
            Connection::on(io, (self.address, local)).await
        } else {
            let (io, local) = open::tcp(&self.connector, self.address).await?;
            Connection::on(io, (self.address, local)).await
        }
    }
}

impl Connection {
    async fn on<S>(io: S, (remote, local): (SocketAddr, SocketAddr)) -> io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
        let mut task = JoinSet::new();
        // What breaks it is told to whoever asks.
        task.spawn(async move { drop(connection.await) });
        Ok(Self { sender, host: remote.to_string(), local, _task: task })
    }

    /// Asks once.
    async fn ask(&mut self, path: &str, body: Bytes) -> io::Result<Option<Bytes>> {
        self.try_ask(path, body).await.map_err(|fault| match fault {
            Fault::Unanswered(error) | Fault::Refused(error) => error,
        })
    }

    async fn try_ask(&mut self, path: &str, body: Bytes) -> Result<Option<Bytes>, Fault> {
        let request = Request::post(path)
            .header(HOST, &self.host)
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(Full::new(body))
            .map_err(|error| Fault::Refused(io::Error::other(error)))?;
        let broken = |error| Fault::Unanswered(io::Error::other(error));
        self.sender.ready().await.map_err(broken)?;
        let response = self.sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let limited = Limited::new(response.into_body(), Portion::HEAD_SIZE + MAX_PORTION_BYTES);
        let body = limited.collect().await.map_err(|error| Fault::Unanswered(io::Error::other(error)))?;
        match status {
            StatusCode::OK => Ok(Some(body.to_bytes())),
            StatusCode::GONE => Ok(None),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Err(Fault::Unanswered(other(status)))
            }
            status if status.is_server_error() => Err(Fault::Unanswered(other(status))),
            status => Err(Fault::Refused(other(status))),
        }
    }
}

fn other(status: StatusCode) -> io::Error {
    io::Error::other(format!("what answers knows no such requests: status {}", status.as_u16()))
}
