//! Bytes between two connections, in the kernel where it can, with the ends of streams and their pace as they are.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[cfg(target_os = "linux")]
use tokio::io::Interest;
use tokio::time;

use super::meter::Meter;
use crate::socket::Socket;

/// Room for what is under way in one direction, while there is something: what a pipe holds on Linux. Larger keeps more of
/// slow tunnels in memory, smaller costs more system calls.
pub(super) const PORTION_BYTES: usize = 64 * 1_024;

/// How long a pair may pass nothing: the links inside ask for a sign of life every 50 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(180);

/// Passes bytes both ways until both directions have ended.
///
/// # Errors
/// If a connection breaks, or nothing has passed for three minutes.
pub async fn pump(a: &Socket, b: &Socket, meter: &Meter) -> io::Result<()> {
    let passed = AtomicU64::new(0);
    let both = async { tokio::try_join!(one_way(a, b, meter, &passed), one_way(b, a, meter, &passed)) };
    tokio::select! {
        result = both => result.map(|((), ())| ()),
        () = idle(&passed) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Returns once nothing has passed for the whole of a period.
async fn idle(passed: &AtomicU64) {
    let mut before = passed.load(Ordering::Relaxed);
    loop {
        time::sleep(IDLE_TIMEOUT).await;
        let now = passed.load(Ordering::Relaxed);
        if std::mem::replace(&mut before, now) == now {
            return;
        }
    }
}

async fn one_way(from: &Socket, to: &Socket, meter: &Meter, passed: &AtomicU64) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        // The runtime lets others have their turn here, however much there is.
        from.readable().await?;
        let granted = meter.take(PORTION_BYTES as u64).await;
        match portion((from, to), granted, &mut buffer, (meter, passed)).await? {
            Some(0) => break,
            Some(_passed) => {}
            // Nothing is held while nothing is there.
            None => buffer = Vec::new(),
        }
    }
    // Whoever has closed already needs no end.
    let _ = to.end();
    Ok(())
}

/// Passes what there is, as much as is granted. Returns how much that was: 0 at the end of the stream, `None` if there was
/// nothing after all.
async fn portion(
    (from, to): (&Socket, &Socket),
    granted: u64,
    buffer: &mut Vec<u8>,
    (meter, passed): (&Meter, &AtomicU64),
) -> io::Result<Option<usize>> {
    let room = usize::try_from(granted).unwrap_or(PORTION_BYTES);
    #[cfg(target_os = "linux")]
    if let (Socket::Tcp(from), Socket::Tcp(to)) = (from, to)
        && let Some(mut pipe) = meter.pipes.lend()
    {
        let filled = from.try_io(Interest::READABLE, || pipe.fill(from, room));
        let length = settle(filled, granted, meter)?;
        while pipe.inside() > 0 {
            let before = pipe.inside();
            match to.try_io(Interest::WRITABLE, || pipe.drain(to)) {
                Ok(()) => count(passed, before - pipe.inside()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
                Err(error) => return Err(error),
            }
        }
        return Ok(length);
    }
    copy((from, to), (room, granted), buffer, (meter, passed)).await
}

/// Passes a portion through this process.
async fn copy(
    (from, to): (&Socket, &Socket),
    (room, granted): (usize, u64),
    buffer: &mut Vec<u8>,
    (meter, passed): (&Meter, &AtomicU64),
) -> io::Result<Option<usize>> {
    buffer.resize(PORTION_BYTES, 0);
    let read = from.try_read(buffer.get_mut(..room).unwrap_or_default());
    let length = settle(read, granted, meter)?;
    let mut rest = buffer.get(..length.unwrap_or(0)).unwrap_or_default();
    while !rest.is_empty() {
        match to.try_write(rest) {
            Ok(written) => {
                count(passed, written);
                rest = rest.get(written..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Gives back what was granted and not read. `None` if there was nothing to read.
fn settle(read: io::Result<usize>, granted: u64, meter: &Meter) -> io::Result<Option<usize>> {
    let length = read.as_ref().map_or(0, |length| *length);
    meter.give_back(granted.saturating_sub(length as u64));
    match read {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn count(passed: &AtomicU64, bytes: usize) {
    passed.fetch_add(bytes as u64, Ordering::Relaxed);
}
