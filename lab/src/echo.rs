//! A device that sends back what it gets, and a client that compares: as many bytes both ways as are asked for.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Bytes that are written or read in one go; a multiple of 8.
const CHUNK_BYTES: usize = 64 * 1_024;

/// How long nothing may come before the exchange has failed.
const SILENCE: Duration = Duration::from_secs(60);

/// What an exchange took.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Until the first byte came back.
    pub first: Duration,
    /// Until the last one had.
    pub whole: Duration,
}

/// Sends everything back, to everybody; does not return.
///
/// # Errors
/// When the address cannot be bound.
pub fn serve(address: SocketAddr, ready: impl FnOnce() -> Result<()>) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    ready()?;
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            let (mut reader, mut writer) = (&stream, &stream);
            // Whoever breaks off has what is left.
            let _ = std::io::copy(&mut reader, &mut writer);
            let _ = stream.shutdown(Shutdown::Write);
        });
    }
    Ok(())
}

/// Sends so many bytes, rounded up to whole chunks, and compares what comes back.
///
/// # Errors
/// When the connection breaks, falls silent, or changes a byte.
pub fn exchange(to: SocketAddr, bytes: u64) -> Result<Exchange> {
    let began_at = Instant::now();
    let stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let chunks = bytes.div_ceil(CHUNK_BYTES as u64);
    let mut sending = stream.try_clone()?;
    let sender = thread::spawn(move || -> std::io::Result<()> {
        for number in 0..chunks {
            sending.write_all(&chunk(number))?;
        }
        sending.shutdown(Shutdown::Write)
    });
    let (mut first, mut received) = (None, vec![0; CHUNK_BYTES]);
    let mut reader = &stream;
    for number in 0..chunks {
        let (beginning, rest) = received.split_at_mut(1);
        reader.read_exact(beginning).context("nothing more came back")?;
        first.get_or_insert_with(|| began_at.elapsed());
        reader.read_exact(rest).context("nothing more came back")?;
        ensure!(received == chunk(number), "part {number} came back changed");
    }
    ensure!(reader.read(&mut [0])? == 0, "more came back than was sent");
    let sent = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?;
    sent.context("not all could be sent")?;
    Ok(Exchange { first: first.unwrap_or_default(), whole: began_at.elapsed() })
}

/// Returns the bytes of a part: every eight of them another number, so that a change, a gap or a repetition shows.
fn chunk(number: u64) -> Vec<u8> {
    const NUMBERS: u64 = CHUNK_BYTES as u64 / 8;
    (number * NUMBERS..(number + 1) * NUMBERS).flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_comes_back_and_a_device_that_keeps_it_is_noticed() {
        let probe = TcpListener::bind("127.0.0.1:0").unwrap();
        let keeps = probe.local_addr().unwrap();
        thread::spawn(move || probe.accept().map(|(stream, _)| stream.shutdown(Shutdown::Both)));
        assert!(exchange(keeps, 1).is_err());
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            serve(free, || Ok(sender.send(free)?))
        });
        let done = exchange(receiver.recv().unwrap(), 200_000).unwrap();
        assert!(done.first <= done.whole);
    }
}
