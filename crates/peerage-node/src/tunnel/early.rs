//! What an application says before the tunnel-node has answered: it travels with the request, so that a tunnel on a warm link costs one
//! round trip to the first byte of the answer (Rule 7.6).
//!
//! The tunnel-node passes nothing to the device before it has granted the tunnel. So if it refuses, the same bytes can go another way.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use peerage_proto::session::{FIRST_CREDIT, State};
use peerage_wire::frame::Code;
use tokio::net::TcpStream;
use tokio::time;

use crate::link::Stream;

/// How long a tunnel-node may take to grant a session: it looks for the device on its LAN first.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// How long an opening may be without any link: a link that broke is dialled again thrice in this time. Longer makes an application wait for a tunnel-node that is gone although another could
/// serve, shorter gives those up that come back.
const LOST_TIMEOUT: Duration = Duration::from_secs(2);

/// How often it is looked whether an opening has a link.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The room for one piece.
const READ_BYTES: usize = 16 * 1_024;

/// Why an opening came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// The peer has refused.
    Refused(Code),
    /// It does not answer, or cannot be reached.
    Silent,
    /// The application has gone away.
    Abandoned,
}

/// The first bytes of an application.
#[derive(Debug, Default)]
pub(super) struct Early {
    pieces: Vec<Bytes>,
    bytes: usize,
    has_ended: bool,
}

impl Early {
    /// Returns how much there is.
    pub(super) const fn len(&self) -> usize {
        self.bytes
    }

    /// Returns whether the application has said its end.
    pub(super) const fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Sends what the application says until the peer has granted the session, and everything that was read is on its way.
    pub(super) async fn open(&mut self, application: &TcpStream, stream: &Stream) -> Result<(), Failed> {
        tokio::select! {
            result = time::timeout(OPEN_TIMEOUT, self.send(application, stream)) => {
                result.unwrap_or(Err(Failed::Silent))
            }
            () = lost(stream) => Err(Failed::Silent),
        }
    }

    async fn send(&mut self, application: &TcpStream, stream: &Stream) -> Result<(), Failed> {
        let mut waiting: Vec<Bytes> = self.pieces.iter().rev().cloned().collect();
        loop {
            while let Some(mut piece) = waiting.pop() {
                // The end of the session says why nothing is taken.
                let _ = stream.write(&mut piece);
                if !piece.is_empty() {
                    waiting.push(piece);
                    break;
                }
            }
            let is_sent = waiting.is_empty();
            if is_sent && self.has_ended {
                stream.finish();
            }
            match stream.state() {
                State::Open if is_sent => return Ok(()),
                State::Ended(end) => {
                    return Err(Failed::Refused(end.code().unwrap_or(Code::ApplicationReset)));
                }
                State::Opening | State::Asked | State::Open => {}
            }
            let room = usize::try_from(FIRST_CREDIT).unwrap_or(0).saturating_sub(self.bytes);
            let is_reading = is_sent && !self.has_ended && room > 0;
            tokio::select! {
                () = stream.changed() => {}
                ready = application.readable(), if is_reading => {
                    ready.map_err(|_broken| Failed::Abandoned)?;
                    waiting.extend(self.read(application, room.min(READ_BYTES))?);
                }
            }
        }
    }

    fn read(&mut self, application: &TcpStream, room: usize) -> Result<Option<Bytes>, Failed> {
        let mut buffer = BytesMut::with_capacity(room);
        let mut limited = bytes::BufMut::limit(&mut buffer, room);
        match application.try_read_buf(&mut limited) {
            Ok(0) => {
                self.has_ended = true;
                Ok(None)
            }
            Ok(count) => {
                let piece = buffer.freeze();
                self.bytes += count;
                self.pieces.push(piece.clone());
                Ok(Some(piece))
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(_broken) => Err(Failed::Abandoned),
        }
    }
}

/// Waits until no link carries a session, as far as is known.
pub(super) async fn uncarried(stream: &Stream) {
    loop {
        time::sleep(LOOK_INTERVAL).await;
        if !stream.is_carried() {
            return;
        }
    }
}

/// Waits until a session has been without any link for too long.
pub(super) async fn lost(stream: &Stream) {
    let mut since = time::Instant::now();
    loop {
        time::sleep(LOOK_INTERVAL).await;
        if stream.is_carried() {
            since = time::Instant::now();
        } else if since.elapsed() >= LOST_TIMEOUT {
            return;
        }
    }
}
