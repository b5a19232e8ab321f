//! Pairs of pipes within the process.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::sync::lock;

/// Bytes under way in one direction, ordinarily. More keeps what slow readers leave in memory; less makes more portions of it.
pub(crate) const ROOM_BYTES: usize = 64 * 1_024;

/// One end of a connection within this process. What is written here is read at the other end, and the reverse.
#[derive(Debug)]
pub struct Pipe {
    incoming: Arc<Direction>,
    outgoing: Arc<Direction>,
    local: SocketAddr,
}

#[derive(Debug)]
struct Direction {
    room_bytes: usize,
    state: Mutex<State>,
    /// Told when the reader goes.
    deafened: Notify,
}

#[derive(Debug, Default)]
struct State {
    bytes: BytesMut,
    end: Option<End>,
    /// Whoever would read it is gone.
    is_deaf: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Orderly,
    Broken,
}

/// Makes both ends of a connection, whose address is that of what it goes inside of, with room for so many bytes in each direction.
pub(crate) fn pipe(local: SocketAddr, room_bytes: usize) -> (Pipe, Pipe) {
    let [there, back] = [(); 2].map(|()| Arc::new(Direction::new(room_bytes)));
    let one = Pipe { incoming: Arc::clone(&back), outgoing: Arc::clone(&there), local };
    (one, Pipe { incoming: there, outgoing: back, local })
}

impl Direction {
    fn new(room_bytes: usize) -> Self {
        Self { room_bytes, state: Mutex::default(), deafened: Notify::new() }
    }

    fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = lock(&self.state);
        if !state.bytes.is_empty() || state.end.is_some() {
            return Poll::Ready(());
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = lock(&self.state);
        if state.bytes.len() < self.room_bytes || state.is_deaf {
            return Poll::Ready(());
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn try_read(&self, buffer: &mut [u8], takes: bool) -> io::Result<usize> {
        let mut state = lock(&self.state);
        if state.bytes.is_empty() {
            return match state.end {
                Some(End::Orderly) => Ok(0),
                Some(End::Broken) => Err(io::ErrorKind::ConnectionReset.into()),
                None => Err(io::ErrorKind::WouldBlock.into()),
            };
        }
        let count = buffer.len().min(state.bytes.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), state.bytes.get(..count)) {
            to.copy_from_slice(from);
        }
        if takes {
            state.bytes.advance(count);
            if state.bytes.is_empty() {
                // Nothing is held while nothing is under way.
                state.bytes = BytesMut::new();
            }
            wake(state.writer.take());
        }
        Ok(count)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = lock(&self.state);
        if state.is_deaf || state.end.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let room = self.room_bytes.saturating_sub(state.bytes.len());
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let bytes = bytes.get(..room).unwrap_or(bytes);
        state.bytes.extend_from_slice(bytes);
        wake(state.reader.take());
        Ok(bytes.len())
    }

    fn end(&self, end: End) {
        let mut state = lock(&self.state);
        if state.end.is_none() || end == End::Broken {
            state.end = Some(end);
        }
        wake(state.reader.take());
    }

    fn deafen(&self) {
        let mut state = lock(&self.state);
        state.is_deaf = true;
        state.bytes = BytesMut::new();
        wake(state.writer.take());
        drop(state);
        self.deafened.notify_waiters();
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Pipe {
    pub(super) async fn readable(&self) {
        std::future::poll_fn(|cx| self.incoming.poll_readable(cx)).await;
    }

    pub(super) async fn writable(&self) {
        std::future::poll_fn(|cx| self.outgoing.poll_writable(cx)).await;
    }

    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.incoming.try_read(buffer, true)
    }

    pub(super) async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.readable().await;
        self.incoming.try_read(buffer, false)
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing.try_write(bytes)
    }

    pub(super) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut written = 0;
        for slice in slices {
            match self.outgoing.try_write(slice) {
                Ok(count) => written += count,
                Err(_full) if written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    pub(super) fn end(&self) {
        self.outgoing.end(End::Orderly);
    }

    /// Breaks both directions.
    pub(crate) fn reset(&self) {
        self.outgoing.end(End::Broken);
        self.incoming.deafen();
    }

    pub(super) const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Returns what is ready once whoever has the other end has let it go.
    pub(crate) fn abandoned(&self) -> impl Future<Output = ()> + Send + 'static {
        let direction = Arc::clone(&self.outgoing);
        async move {
            loop {
                let told = direction.deafened.notified();
                if lock(&direction.state).is_deaf {
                    return;
                }
                told.await;
            }
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.outgoing.end(End::Orderly);
        self.incoming.deafen();
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(self.incoming.poll_readable(cx));
        let count = self.incoming.try_read(buffer.initialize_unfilled(), true)?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.outgoing.poll_writable(cx));
        Poll::Ready(self.outgoing.try_write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn both() -> (Pipe, Pipe) {
        pipe(([127, 0, 0, 1], 1).into(), ROOM_BYTES)
    }

    #[tokio::test]
    async fn every_byte_passes_and_each_direction_ends_by_itself() {
        let (mut one, mut other) = both();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let expected = sent.clone();
        let sending = tokio::spawn(async move {
            one.write_all(&sent).await.unwrap();
            one.shutdown().await.unwrap();
            let mut answer = String::new();
            one.read_to_string(&mut answer).await.unwrap();
            answer
        });
        let mut received = Vec::new();
        other.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, expected);
        other.write_all(b"thanks").await.unwrap();
        drop(other);
        assert_eq!(sending.await.unwrap(), "thanks");
    }

    #[test]
    fn a_reader_that_does_not_read_costs_a_bounded_buffer() {
        let (one, other) = both();
        assert_eq!(one.try_write(&[7; 2 * ROOM_BYTES]).unwrap(), ROOM_BYTES);
        assert_eq!(one.try_write(b"more").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut buffer = [0; 10];
        assert_eq!(other.try_read(&mut buffer).unwrap(), 10);
        assert_eq!(one.try_write_vectored(&[IoSlice::new(b"12345"), IoSlice::new(b"678901")]).unwrap(), 10);
    }

    #[tokio::test]
    async fn a_break_is_told_from_an_end() {
        let (one, other) = both();
        one.reset();
        assert_eq!(other.try_read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(other.try_write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        drop(one);
        assert_eq!(other.try_read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let (one, other) = both();
        let (abandoned, ()) = tokio::join!(other.abandoned(), async { drop(one) });
        assert_eq!(abandoned, ());
        assert_eq!(other.try_read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test]
    async fn what_is_looked_at_stays() {
        let (one, other) = both();
        one.try_write(b"ab").unwrap();
        let mut first = [0];
        assert_eq!(other.peek(&mut first).await.unwrap(), 1);
        let mut all = [0; 4];
        assert_eq!((first, other.try_read(&mut all).unwrap()), (*b"a", 2));
    }
}
