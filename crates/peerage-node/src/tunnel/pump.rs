//! Bytes between a TCP connection and a session, both ways, with the end of each direction as it was.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use peerage_proto::session::{End, Read, State, WriteError};
use peerage_wire::frame::Code;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::Counters;
use crate::link::Stream;

/// The room for bytes of a quiet connection: a request.
const READ_MIN: usize = 8 * 1_024;

/// The room for bytes of a busy connection. Measured: larger does not fit the cache, smaller costs calls.
const READ_MAX: usize = 256 * 1_024;

/// How much is taken from a session at a time, to be written in one call.
const WRITE_MAX: usize = 512 * 1_024;

/// The most pieces of one call; the system takes 1,024, and rarely more than these are there.
const MAX_SLICES: usize = 64;

/// Moves bytes until both directions have ended; then, or when either side broke off, the connection is closed as the
/// other side closed it.
///
/// # Errors
/// If a side broke off: why.
pub async fn pump(socket: TcpStream, stream: &Stream, counters: &Counters) -> Result<(), Code> {
    pump_rest(socket, stream, counters, false).await
}

/// As [`pump`], for a socket that was read already, perhaps to its end.
pub(crate) async fn pump_rest(
    socket: TcpStream,
    stream: &Stream,
    counters: &Counters,
    has_ended: bool,
) -> Result<(), Code> {
    let up = Upstream { has_ended, ..Upstream::default() };
    let mut pump = Pump { socket: &socket, stream, counters, up, down: Downstream::default() };
    let result = pump.run().await;
    if let Err(code) = result {
        stream.reset(code);
        reset(&socket);
    }
    result
}

/// Makes the system send a reset instead of an end when the socket is dropped.
pub(crate) fn reset(socket: &TcpStream) {
    if let Err(error) = SockRef::from(socket).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "a connection ends without the reset that it should end with");
    }
}

struct Pump<'a> {
    socket: &'a TcpStream,
    stream: &'a Stream,
    counters: &'a Counters,
    up: Upstream,
    down: Downstream,
}

/// What takes the bytes of a socket: a session. A test puts one in its place that takes less than it has said.
trait Taker {
    /// Returns for how many bytes there is room now; links of other threads may make it less at any moment.
    fn writable(&self) -> usize;
    /// Takes as much as there is room for off the front.
    fn write(&self, bytes: &mut Bytes) -> Result<usize, WriteError>;
    /// Hears that nothing more comes.
    fn finish(&self);
}

impl Taker for Stream {
    fn writable(&self) -> usize {
        self.writable()
    }

    fn write(&self, bytes: &mut Bytes) -> Result<usize, WriteError> {
        self.write(bytes)
    }

    fn finish(&self) {
        self.finish();
    }
}

/// From the socket to the session.
#[derive(Default)]
struct Upstream {
    /// What was read and the session did not take: between its telling how much room there is and its being given that much, a link may
    /// have cut what waits into more pieces than it keeps.
    rest: Bytes,
    buffer: BytesMut,
    size: usize,
    has_ended: bool,
}

/// From the session to the socket.
#[derive(Default)]
struct Downstream {
    pieces: VecDeque<Bytes>,
    end: Option<Result<(), Code>>,
    has_ended: bool,
}

impl Upstream {
    /// Moves what the socket has to the session.
    fn pull(&mut self, socket: &TcpStream, taker: &impl Taker, counters: &Counters) -> Result<bool, Code> {
        if self.has_ended {
            return Ok(false);
        }
        let room = taker.writable();
        if room == 0 {
            return Ok(false);
        }
        if !self.rest.is_empty() {
            // The end of the session says why nothing is taken any more.
            return Ok(taker.write(&mut self.rest).map_or(true, |taken| taken > 0));
        }
        self.size = self.size.clamp(READ_MIN, READ_MAX);
        let wanted = self.size.min(room);
        self.buffer.reserve(wanted);
        // What the session has no room for must stay with the system.
        let mut limited = bytes::BufMut::limit(&mut self.buffer, wanted);
        match socket.try_read_buf(&mut limited) {
            Ok(0) => {
                self.has_ended = true;
                self.buffer = BytesMut::new();
                taker.finish();
                Ok(true)
            }
            Ok(count) => {
                self.size = if count == self.size { self.size * 2 } else { count.next_power_of_two() };
                self.rest = self.buffer.split().freeze();
                counters.add_sent(count);
                // The end of the session says why nothing is taken.
                let _ = taker.write(&mut self.rest);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // A quiet connection holds no memory.
                self.buffer = BytesMut::new();
                Ok(false)
            }
            Err(_broken) => Err(Code::ApplicationReset),
        }
    }
}

impl Pump<'_> {
    async fn run(&mut self) -> Result<(), Code> {
        loop {
            let mut progress = self.up.pull(self.socket, self.stream, self.counters)?;
            progress |= self.push()?;
            if self.up.has_ended && self.down.has_ended {
                return Ok(());
            }
            if progress {
                // Others have a turn too.
                tokio::task::consume_budget().await;
                continue;
            }
            self.wait().await?;
        }
    }

    /// Moves what has arrived to the socket.
    fn push(&mut self) -> Result<bool, Code> {
        let down = &mut self.down;
        let mut progress = false;
        if down.pieces.is_empty() && down.end.is_none() {
            let mut pieces = Vec::new();
            match self.stream.read(&mut pieces, WRITE_MAX) {
                Read::Finished => down.end = Some(Ok(())),
                Read::Reset(code) => down.end = Some(Err(code)),
                Read::Pending | Read::Bytes(_) => {}
            }
            down.pieces = pieces.into();
            progress = !down.pieces.is_empty() || down.end.is_some();
        }
        if !down.pieces.is_empty() {
            progress |= self.write()?;
        }
        let down = &mut self.down;
        if down.pieces.is_empty()
            && !down.has_ended
            && let Some(end) = down.end
        {
            end?;
            down.has_ended = true;
            // An application that has closed already needs no end.
            let _ = SockRef::from(self.socket).shutdown(Shutdown::Write);
            progress = true;
        }
        Ok(progress)
    }

    fn write(&mut self) -> Result<bool, Code> {
        let pieces = &mut self.down.pieces;
        let slices: Vec<IoSlice<'_>> =
            pieces.iter().take(MAX_SLICES).map(|piece| IoSlice::new(piece)).collect();
        match self.socket.try_write_vectored(&slices) {
            Ok(written) => {
                drop(slices);
                self.counters.add_received(written);
                drop_front(pieces, written);
                Ok(written > 0)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(_broken) => Err(Code::ApplicationReset),
        }
    }

    async fn wait(&mut self) -> Result<(), Code> {
        // Closed by the node: nothing that still waits here may go on to the application.
        if let State::Ended(End::ResetHere(code)) = self.stream.state() {
            return Err(code);
        }
        let is_reading = !self.up.has_ended && self.stream.writable() > 0;
        let is_writing = !self.down.pieces.is_empty();
        let socket = self.socket;
        let ready = tokio::select! {
            () = self.stream.changed() => return Ok(()),
            ready = socket.readable(), if is_reading => ready,
            ready = socket.writable(), if is_writing => ready,
            ready = broken(socket), if !is_reading => ready,
        };
        ready.map_err(|_broken| Code::ApplicationReset)
    }
}

/// Waits until the connection has broken; while nobody reads, nothing else tells.
async fn broken(socket: &TcpStream) -> io::Result<()> {
    loop {
        socket.ready(Interest::ERROR).await?;
        let check = || match socket.take_error()? {
            Some(error) => Err(error),
            None => Err(io::ErrorKind::WouldBlock.into()),
        };
        match socket.try_io(Interest::ERROR, check) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

fn drop_front(pieces: &mut VecDeque<Bytes>, mut count: usize) {
    while let Some(front) = pieces.front_mut() {
        if front.len() > count {
            front.advance(count);
            return;
        }
        count -= front.len();
        pieces.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    /// Takes nothing of what it has said that it takes, every other time.
    #[derive(Default)]
    struct Fickle {
        taken: RefCell<Vec<u8>>,
        calls: Cell<usize>,
        has_ended: Cell<bool>,
    }

    impl Taker for Fickle {
        fn writable(&self) -> usize {
            1_000
        }

        fn write(&self, bytes: &mut Bytes) -> Result<usize, WriteError> {
            assert!(!self.has_ended.get(), "bytes came after the end");
            self.calls.set(self.calls.get() + 1);
            if self.calls.get() % 2 == 1 {
                return Ok(0);
            }
            self.taken.borrow_mut().extend_from_slice(bytes);
            Ok(std::mem::take(bytes).len())
        }

        fn finish(&self) {
            self.has_ended.set(true);
        }
    }

    #[tokio::test]
    async fn what_a_session_has_no_room_for_any_more_is_neither_lost_nor_overtaken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut application = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let said: Vec<u8> = (0..5_000_u16).flat_map(u16::to_be_bytes).collect();
        application.write_all(&said).await.unwrap();
        application.shutdown().await.unwrap();
        let (mut up, session) = (Upstream::default(), Fickle::default());
        while !up.has_ended {
            if !up.pull(&socket, &session, &Counters::default()).unwrap() && up.rest.is_empty() {
                socket.readable().await.unwrap();
            }
        }
        assert!(session.has_ended.get());
        assert_eq!(session.taken.into_inner(), said);
        // Each piece of the socket was refused once at least.
        assert!(session.calls.get() >= 20, "{}", session.calls.get());
    }
}
