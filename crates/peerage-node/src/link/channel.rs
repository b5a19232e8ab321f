//! TLS driven by hand over a TCP socket.
//!
//! A stream adapter would read and write one TLS record of 16 KiB at a time. Here a read takes what the socket has, a
//! write hands over many records at once, and each record holds whole frames, so that no frame waits for the next record.

use std::io::{self, BufRead as _, IoSlice, Write};
use std::sync::Arc;

use bytes::BytesMut;
use peerage_proto::session::{Budget, Held};
use peerage_wire::frame::Encoded;
use peerage_wire::id::HandshakeId;
use peerage_wire::prepared;
use rustls::Connection;
use tokio::sync::oneshot;

use crate::relay::RelayFull;
use crate::socket::Socket;

/// The room for received bytes of an idle link; an ordinary request and its answer fit.
const READ_MIN: usize = 16 * 1_024;

/// The room for received bytes of a busy link. Measured: 512 KiB take a tenth of the system calls of single records;
/// more stays cold in the cache, less costs calls.
const READ_MAX: usize = 512 * 1_024;

/// The plaintext of one TLS record at most (RFC 8446, section 5.1).
const MAX_RECORD: usize = 16 * 1_024;

/// How many bytes of frames share a record: with what TLS adds, those of one packet (Rule 7.28). What comes in the first packet of more can
/// be read only when the last has come, which on a connection that begins takes a round trip; less costs computing.
const SHARED_RECORD: usize = 1_160;

/// About how much plaintext is opened at a time. A piece that a slow application leaves with its session holds on to all of it; more
/// would hold more, less costs calls.
const BLOCK: usize = 64 * 1_024;

/// Why a channel cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The peer breaks the rules of TLS, or is another one than expected.
    #[error("TLS failed: {0}")]
    Tls(#[from] rustls::Error),
    /// QUIC failed, or the peer is another one than expected.
    #[error("QUIC failed: {0}")]
    Quic(#[from] quinn::ConnectionError),
    /// On QUIC, the peer puts frames on streams where they do not belong.
    #[error("the other side mixes up the streams of the connection")]
    Misplaced,
    /// The peer closed its side.
    #[error("the other side closed the connection")]
    Ended,
    /// It goes on with a handshake that was not prepared here, or is over.
    #[error("the connection goes on with a handshake that nobody has prepared")]
    NotPrepared,
    /// The relay has not joined the leg.
    #[error("the relay has not joined the connection with that of the other side")]
    NotJoined,
    /// The relay has no room.
    #[error(transparent)]
    Full(#[from] RelayFull),
}

/// What a socket gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// Bytes to be opened.
    Some,
    /// Nothing at the moment.
    Nothing,
}

/// Whether everything that was read is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// Yes.
    All,
    /// There is more; what was opened should be worked off first.
    Part,
}

/// What has to happen before what can be read is the peer's.
enum Joining {
    Awaited(oneshot::Receiver<Result<(), RelayFull>>),
    Refused(RelayFull),
    Failed,
}

/// One TLS connection and its socket.
pub(super) struct Channel {
    socket: Arc<Socket>,
    tls: Connection,
    joining: Option<Joining>,
    /// What goes before TLS, and what of TLS has been put behind it so that both go out together; empty from then on.
    beginning: Vec<u8>,
    /// Received and not yet opened: `received[opened..filled]`.
    received: Vec<u8>,
    opened: usize,
    filled: usize,
    /// For a buffer that is larger than that of an idle link.
    budget: Option<Budget>,
    held: Option<Held>,
    /// For what is sealed and not sent yet.
    sealed: Option<Held>,
    /// Plaintext that arrived together with the end of the handshake.
    early: BytesMut,
}

impl Channel {
    pub(super) fn new(socket: Arc<Socket>, mut tls: Connection) -> Self {
        // What may wait is bounded by what `poll_output` of the link hands out at a time.
        tls.set_buffer_limit(None);
        Self {
            socket,
            tls,
            joining: None,
            beginning: Vec::new(),
            received: Vec::new(),
            opened: 0,
            filled: 0,
            budget: None,
            held: None,
            sealed: None,
            early: BytesMut::new(),
        }
    }

    /// Goes on with a handshake in which only this side has something left to say; it says so first. If the connection has yet to be joined
    /// with another, nothing is read before `joined` resolves.
    pub(super) fn go_on(
        socket: Arc<Socket>,
        (tls, name): (Connection, HandshakeId),
        joined: Option<oneshot::Receiver<Result<(), RelayFull>>>,
    ) -> Self {
        let (joining, beginning) = (joined.map(Joining::Awaited), prepared::beginning(name).to_vec());
        Self { joining, beginning, ..Self::new(socket, tls) }
    }

    /// Lets the buffer for received bytes grow within a budget.
    pub(super) fn set_budget(&mut self, budget: Budget) {
        self.budget = Some(budget);
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) const fn tls(&self) -> &Connection {
        &self.tls
    }

    /// Completes the handshake. The caller limits the time.
    pub(super) async fn handshake(&mut self) -> Result<(), ChannelError> {
        loop {
            while !self.flush()? {
                self.socket.writable().await?;
            }
            if !self.tls.is_handshaking() {
                return Ok(());
            }
            self.socket.readable().await?;
            if self.fill()? == Filled::Some {
                let mut early = std::mem::take(&mut self.early);
                let opened = self.open(&mut early);
                self.early = early;
                if let Err(error) = opened {
                    // The alert tells the peer why; whether it still arrives does not matter.
                    let _ = self.flush();
                    return Err(error);
                }
            }
        }
    }

    /// Waits until there may be something to read or, if that is wanted, room to write.
    pub(super) async fn ready(&mut self, wants_room: bool) -> io::Result<()> {
        let Self { socket, joining, .. } = self;
        let readable = async {
            if let Some(Joining::Awaited(joined)) = joining {
                *joining = match joined.await {
                    Ok(Ok(())) => None,
                    Ok(Err(full)) => Some(Joining::Refused(full)),
                    Err(_gone) => Some(Joining::Failed),
                };
            }
            // What has failed is told by the next reading.
            if joining.is_some() { Ok(()) } else { socket.readable().await }
        };
        tokio::select! {
            ready = readable => ready,
            ready = socket.writable(), if wants_room => ready,
        }
    }

    /// Reads what the socket has, without waiting.
    pub(super) fn fill(&mut self) -> Result<Filled, ChannelError> {
        match self.joining {
            Some(Joining::Awaited(_)) => return Ok(Filled::Nothing),
            Some(Joining::Refused(full)) => return Err(full.into()),
            Some(Joining::Failed) => return Err(ChannelError::NotJoined),
            None => self.resize(),
        }
        let room = self.received.get_mut(self.filled..).unwrap_or_default();
        match self.socket.try_read(room) {
            Ok(0) => Err(ChannelError::Ended),
            Ok(count) => {
                self.filled += count;
                Ok(Filled::Some)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Filled::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Grows the buffer while reads fill it, and gives it back when they no longer come near.
    fn resize(&mut self) {
        let size = self.received.len();
        if size == 0 {
            self.received.resize(READ_MIN, 0);
        } else if self.filled == size {
            self.grow();
        }
    }

    /// Makes the buffer larger, if the node has memory for it.
    fn grow(&mut self) {
        let larger = (self.received.len() * 4).min(READ_MAX);
        if larger <= self.received.len() {
            return;
        }
        let wanted = u64::try_from(larger).unwrap_or(u64::MAX);
        if let Some(held) = self.budget.as_ref().and_then(|budget| budget.try_hold(wanted)) {
            self.held = Some(held);
            self.received.resize(larger, 0);
        }
    }

    /// Gives back the buffer of a link that has fallen silent.
    pub(super) fn shrink(&mut self) {
        if self.filled == 0 && self.received.len() > READ_MIN {
            self.received = Vec::new();
            self.held = None;
        }
    }

    /// Opens about [`BLOCK`] of what was read and appends the plaintext.
    pub(super) fn open(&mut self, plaintext: &mut BytesMut) -> Result<Opened, ChannelError> {
        if !self.early.is_empty() && !self.tls.is_handshaking() {
            plaintext.extend_from_slice(&std::mem::take(&mut self.early));
        }
        let mut rest = self.received.get(self.opened..self.filled).unwrap_or_default();
        plaintext.reserve(rest.len().min(BLOCK + MAX_RECORD));
        let most = plaintext.len() + BLOCK;
        while !rest.is_empty() && plaintext.len() < most {
            self.tls.read_tls(&mut rest)?;
            let state = self.tls.process_new_packets()?;
            drain(&mut self.tls, plaintext)?;
            if state.peer_has_closed() {
                return Err(ChannelError::Ended);
            }
        }
        self.opened = self.filled - rest.len();
        if !rest.is_empty() {
            return Ok(Opened::Part);
        }
        let was_full = self.filled == self.received.len();
        (self.opened, self.filled) = (0, 0);
        if was_full {
            self.grow();
        }
        Ok(Opened::All)
    }

    /// Seals frames, to be sent by [`flush`](Self::flush). Each record holds whole frames.
    pub(super) fn seal(&mut self, frames: &[Encoded]) -> io::Result<()> {
        let mut record: Vec<IoSlice<'_>> = Vec::new();
        let mut bytes = 0;
        for frame in frames {
            if bytes > 0 && bytes + frame.size_bytes() > SHARED_RECORD {
                write_record(&mut self.tls, &record)?;
                record.clear();
                bytes = 0;
            }
            record.push(IoSlice::new(&frame.header));
            if !frame.payload.is_empty() {
                record.push(IoSlice::new(&frame.payload));
            }
            bytes += frame.size_bytes();
        }
        write_record(&mut self.tls, &record)
    }

    /// Keeps a part of the budget until everything sealed is sent.
    pub(super) fn hold(&mut self, sealed: Option<Held>) {
        self.sealed = sealed;
    }

    /// Says that nothing follows.
    pub(super) fn finish(&mut self) {
        self.tls.send_close_notify();
    }

    /// Ends this side and reads on, for nothing, until the peer has ended its side too.
    pub(super) async fn end_and_discard(&mut self) -> Result<(), ChannelError> {
        self.socket.end()?;
        loop {
            self.ready(false).await?;
            (self.opened, self.filled) = (0, 0);
            match self.fill() {
                Ok(_discarded) => {}
                Err(ChannelError::Ended) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns whether everything sealed has gone to the socket.
    pub(super) fn is_flushed(&self) -> bool {
        !self.tls.wants_write() && self.beginning.is_empty()
    }

    /// Sends what the socket takes, without waiting; returns whether nothing is left.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        if !self.flush_beginning()? {
            return Ok(false);
        }
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Unwaiting(&self.socket)) {
                Ok(_count) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.sealed = None;
        Ok(true)
    }
}

impl Channel {
    /// Sends what goes before TLS, in one piece with what TLS has to say by then; returns whether nothing is left.
    fn flush_beginning(&mut self) -> io::Result<bool> {
        while !self.beginning.is_empty() {
            while self.tls.wants_write() {
                self.tls.write_tls(&mut self.beginning)?;
            }
            match self.socket.try_write(&self.beginning) {
                Ok(count) => drop(self.beginning.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Moves opened plaintext over.
fn drain(tls: &mut Connection, plaintext: &mut BytesMut) -> io::Result<()> {
    loop {
        let mut reader = tls.reader();
        let count = match reader.fill_buf() {
            Ok(chunk) => {
                plaintext.extend_from_slice(chunk);
                chunk.len()
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        if count == 0 {
            return Ok(());
        }
        reader.consume(count);
    }
}

fn write_record(tls: &mut Connection, slices: &[IoSlice<'_>]) -> io::Result<()> {
    if slices.is_empty() {
        return Ok(());
    }
    let size: usize = slices.iter().map(|slice| slice.len()).sum();
    let written = tls.writer().write_vectored(slices)?;
    debug_assert_eq!(written, size, "without a limit, TLS takes everything");
    Ok(())
}

/// A socket that never waits.
struct Unwaiting<'a>(&'a Socket);

impl Write for Unwaiting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
