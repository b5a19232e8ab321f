//! Streams of bytes: a device that takes and gives them, a hop that copies them, and what measures both.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream as AsyncTcpStream, tcp::OwnedReadHalf},
};

/// Bytes that the device and the generator move at once: smaller costs them calls that are not what is measured.
const CHUNK_BYTES: usize = 128 << 10;

/// The buffers of the plain hop, as `io::copy` or `socat` would have them; larger would be faster and fit the cache less.
const HOP_BYTES: usize = 64 << 10;

/// How long a connection may be silent before the bench gives up; a run takes seconds.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// The first byte of a connection to the device: what is asked of it.
const TAKE: u8 = b'T';
const GIVE: u8 = b'G';
const ECHO: u8 = b'E';

/// Which way bytes go, as the user sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Up,
    Down,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Up, Self::Down];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// Serves the device until the process ends; calls `ready` with where it listens.
pub(super) async fn device(ready: impl FnOnce(SocketAddr) -> Result<()>) -> Result<()> {
    let listener = listen(ready)?;
    loop {
        let (stream, _) = listener.accept().await?;
        // A connection that breaks off concerns nobody else; whoever made it reports that.
        tokio::spawn(async move { drop(serve(stream).await) });
    }
}

fn listen(ready: impl FnOnce(SocketAddr) -> Result<()>) -> Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    // As many as may be opened while the machine is busy.
    let listener = socket.listen(4_096)?;
    ready(listener.local_addr()?)?;
    Ok(listener)
}

async fn serve(stream: AsyncTcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut from, mut to) = stream.into_split();
    let asked = from.read_u8().await?;
    match asked {
        TAKE => {
            let length = from.read_u64().await?;
            take(&mut from, length).await?;
            to.write_u64(length).await?;
        }
        GIVE => {
            let mut left = from.read_u64().await?;
            let chunk = vec![0x5a; CHUNK_BYTES];
            while left > 0 {
                let size = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
                to.write_all(chunk.get(..size).unwrap_or_default()).await?;
                left -= size as u64;
            }
        }
        _ => {
            let mut buffer = [0; 512];
            loop {
                let count = from.read(&mut buffer).await?;
                if count == 0 {
                    break;
                }
                to.write_all(buffer.get(..count).unwrap_or_default()).await?;
            }
        }
    }
    Ok(())
}

async fn take(from: &mut OwnedReadHalf, mut left: u64) -> Result<()> {
    let mut buffer = vec![0; 2 * CHUNK_BYTES];
    while left > 0 {
        let count = from.read(&mut buffer).await?;
        ensure!(count > 0, "the stream has ended too early");
        left = left.saturating_sub(count as u64);
    }
    Ok(())
}

/// Passes connections on to another address until the process ends, as plainly as can be.
pub(super) async fn hop(target: SocketAddr, ready: impl FnOnce(SocketAddr) -> Result<()>) -> Result<()> {
    let listener = listen(ready)?;
    loop {
        let (mut from, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut to = AsyncTcpStream::connect(target).await?;
            from.set_nodelay(true)?;
            to.set_nodelay(true)?;
            copy_bidirectional_with_sizes(&mut from, &mut to, HOP_BYTES, HOP_BYTES).await
        });
    }
}

/// Moves bytes through so many connections at once, and returns how long that took. The last byte has arrived by then.
///
/// # Errors
/// When a connection fails, or is silent for a minute.
pub(super) fn transfer(at: SocketAddr, way: Direction, bytes: u64, streams: u64) -> Result<Duration> {
    let each = bytes / streams.max(1);
    let began_at = Instant::now();
    thread::scope(|scope| {
        let all: Vec<_> = (0..streams).map(|_| scope.spawn(move || one(at, way, each))).collect();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a stream has panicked"))?)
    })?;
    Ok(began_at.elapsed())
}

fn one(at: SocketAddr, way: Direction, bytes: u64) -> Result<()> {
    let mut stream = open(at)?;
    let mut head = vec![if way == Direction::Up { TAKE } else { GIVE }];
    head.extend_from_slice(&bytes.to_be_bytes());
    stream.write_all(&head)?;
    let mut left = bytes;
    if way == Direction::Up {
        let chunk = vec![0x5a; CHUNK_BYTES];
        while left > 0 {
            let size = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            stream.write_all(chunk.get(..size).unwrap_or_default())?;
            left -= size as u64;
        }
        let mut confirmed = [0; 8];
        stream.read_exact(&mut confirmed).context("the device does not confirm what it got")?;
        ensure!(u64::from_be_bytes(confirmed) == bytes, "the device got something else");
        return Ok(());
    }
    let mut buffer = vec![0; 2 * CHUNK_BYTES];
    while left > 0 {
        let count = stream.read(&mut buffer)?;
        ensure!(count > 0, "the stream has ended {left} bytes of {bytes} too early");
        left = left.saturating_sub(count as u64);
    }
    Ok(())
}

fn open(at: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&at, SILENCE_TIMEOUT).context("cannot connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_TIMEOUT))?;
    stream.set_write_timeout(Some(SILENCE_TIMEOUT))?;
    Ok(stream)
}

/// Opens a connection and waits for the first byte that comes back; returns the connection and how long it took.
///
/// # Errors
/// When it is refused, or nothing comes back.
pub(super) fn first_byte(at: SocketAddr) -> Result<(TcpStream, Duration)> {
    let began_at = Instant::now();
    let mut stream = open(at)?;
    stream.write_all(&[ECHO, 1])?;
    let mut back = [0];
    stream.read_exact(&mut back).context("nothing came back")?;
    Ok((stream, began_at.elapsed()))
}

/// Sends a byte on an open connection and waits for it to come back.
///
/// # Errors
/// When it does not.
pub(super) fn again(stream: &mut TcpStream) -> Result<Duration> {
    let began_at = Instant::now();
    stream.write_all(&[2])?;
    let mut back = [0];
    stream.read_exact(&mut back).context("nothing came back")?;
    Ok(began_at.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve_in_background<F: Future<Output = Result<()>> + Send + 'static>(
        server: impl FnOnce(std::sync::mpsc::Sender<SocketAddr>) -> F,
    ) -> (tokio::runtime::Runtime, SocketAddr) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        runtime.spawn(server(tell));
        let address = told.recv().unwrap();
        (runtime, address)
    }

    #[test]
    fn bytes_go_both_ways_through_a_hop_and_an_echo_comes_back() {
        let (_device, behind) =
            serve_in_background(|tell| async move { device(|at| Ok(tell.send(at)?)).await });
        let (_hop, at) =
            serve_in_background(|tell| async move { hop(behind, |at| Ok(tell.send(at)?)).await });
        for way in Direction::BOTH {
            for streams in [1, 3] {
                assert!(transfer(at, way, 3 << 20, streams).unwrap() > Duration::ZERO);
            }
        }
        let (mut stream, _) = first_byte(at).unwrap();
        assert!(again(&mut stream).unwrap() > Duration::ZERO);
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(transfer(nobody, Direction::Up, 10, 1).is_err());
        assert!(first_byte(nobody).is_err());
    }
}
