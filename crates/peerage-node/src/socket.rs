//! Connections as links and legs use them: a TCP socket, or something that goes inside another protocol.
//!
//! What drives TLS by hand, or has the kernel move bytes, asks a connection whether it is ready and tries. A [`Pipe`] answers in the same
//! way for a connection that is inside TLS, a WebSocket or requests of HTTP: a task moves bytes between its other end and those.

mod pipe;

use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::leg;
use tokio::net::TcpStream;

pub use pipe::Pipe;
pub(crate) use pipe::{ROOM_BYTES, pipe};

/// A connection. Of those who wait until it is readable only the last is woken, and so for writable.
#[derive(Debug)]
pub enum Socket {
    /// As it is.
    Tcp(TcpStream),
    /// Inside another protocol.
    Pipe(Pipe),
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<Pipe> for Socket {
    fn from(pipe: Pipe) -> Self {
        Self::Pipe(pipe)
    }
}

impl Socket {
    /// Waits until there may be something to read.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Pipe(pipe) => {
                pipe.readable().await;
                Ok(())
            }
        }
    }

    /// Waits until there may be room to write.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Pipe(pipe) => {
                pipe.writable().await;
                Ok(())
            }
        }
    }

    /// Reads what there is; 0 at the end.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(buffer),
            Self::Pipe(pipe) => pipe.try_read(buffer),
        }
    }

    /// Writes what there is room for.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Pipe(pipe) => pipe.try_write(bytes),
        }
    }

    /// Writes what there is room for.
    pub(crate) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(slices),
            Self::Pipe(pipe) => pipe.try_write_vectored(slices),
        }
    }

    /// Waits for the next byte and leaves it; `None` at the end.
    pub(crate) async fn peek(&self) -> io::Result<Option<u8>> {
        let mut first = [0];
        let count = match self {
            Self::Tcp(stream) => stream.peek(&mut first).await?,
            Self::Pipe(pipe) => pipe.peek(&mut first).await?,
        };
        Ok((count > 0).then_some(first[0]))
    }

    /// Says that nothing follows.
    pub(crate) fn end(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => socket2::SockRef::from(stream).shutdown(Shutdown::Write),
            Self::Pipe(pipe) => {
                pipe.end();
                Ok(())
            }
        }
    }

    /// Makes the end of the connection look like what it is: a break.
    pub(crate) fn reset(&self) {
        match self {
            // If it cannot be set, the other side sees an end, as it does when a computer vanishes.
            Self::Tcp(stream) => drop(socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))),
            Self::Pipe(pipe) => pipe.reset(),
        }
    }

    /// Returns the address of this end.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr(),
            Self::Pipe(pipe) => Ok(pipe.local_addr()),
        }
    }

    /// Fills a buffer and reads not a byte more.
    pub(crate) async fn fill(&self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            self.readable().await?;
            match self.try_read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => buffer = buffer.get_mut(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes all of it.
    pub(crate) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.writable().await?;
            match self.try_write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads one datagram behind its length, and not a byte more.
    pub(crate) async fn hear(&self) -> io::Result<Bytes> {
        let mut header = [0; leg::LENGTH_SIZE];
        self.fill(&mut header).await?;
        let length = leg::length(header).ok_or(io::ErrorKind::InvalidData)?;
        let mut payload = vec![0; length];
        self.fill(&mut payload).await?;
        Ok(payload.into())
    }

    /// Writes one datagram behind its length.
    pub(crate) async fn say(&self, payload: &[u8]) -> io::Result<()> {
        let framed = leg::frame(payload).ok_or(io::ErrorKind::InvalidData)?;
        self.write(&framed).await
    }
}
