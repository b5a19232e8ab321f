//! Sends data to the sample device, gets it back, and compares every byte.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::device::{Shown, hex};

/// How long a connection may be silent; a tunnel that stalls is given up, one that is slow is not.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes written at once, a power of two; see the device's buffer.
const CHUNK_BYTES: usize = 256 << 10;

/// Bytes that are read of an answer of the device's page, which has a few KiB.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// How a transfer went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Transfer {
    /// Bytes moved and found equal, both directions together.
    pub(super) bytes: u64,
    /// SHA-256 of what each direction carried.
    pub(super) sha256: String,
    /// From opening a connection until the device's first byte was here.
    pub(super) first_byte_ms: f64,
    /// Millions of bytes a second, both directions together.
    pub(super) mb_per_s: f64,
}

/// Sends `each_way_bytes` to the raw port and compares what it sends back, then asks the device's page what it got.
///
/// # Errors
/// When a byte is missing, wrong or too many, in either direction, or a connection fails.
pub(super) fn run(raw: SocketAddr, web: SocketAddr, each_way_bytes: u64) -> Result<Transfer> {
    let first_byte_ms = first_byte(raw).context("the first byte did not come back")?.as_secs_f64() * 1e3;
    let began_at = Instant::now();
    let stream = open(raw)?;
    let sha256 = thread::scope(|scope| {
        let sending = scope.spawn(|| send(&stream, each_way_bytes));
        let checked = check(&stream, each_way_bytes);
        let sent = sending.join().map_err(|_| anyhow::anyhow!("the sender has panicked"))?;
        // What arrived wrong tells more than what could no longer be sent.
        checked?;
        sent.context("cannot send to the device")
    })?;
    let seconds = began_at.elapsed().as_secs_f64();
    let shown = ask(web).context("cannot ask the device what it got")?;
    let got = shown.jobs.iter().find(|job| job.bytes == each_way_bytes);
    let got = got.with_context(|| format!("the device knows no job of {each_way_bytes} bytes"))?;
    ensure!(got.sha256 == sha256, "the device got {} instead of {sha256}", got.sha256);
    let bytes = 2 * each_way_bytes;
    Ok(Transfer { bytes, sha256, first_byte_ms, mb_per_s: bytes as f64 / 1e6 / seconds.max(1e-9) })
}

/// Asks the device's page for what it shows.
pub(super) fn ask(web: SocketAddr) -> Result<Shown> {
    let mut stream = open(web)?;
    write!(stream, "GET /status.json HTTP/1.1\r\nHost: {web}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER_BYTES).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "the answer is {}", head.lines().next().unwrap_or_default());
    serde_json::from_str(body).context("the answer is not what the device shows")
}

fn open(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, SILENCE_TIMEOUT)
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(SILENCE_TIMEOUT))?;
    stream.set_write_timeout(Some(SILENCE_TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn first_byte(raw: SocketAddr) -> Result<Duration> {
    let began_at = Instant::now();
    let mut stream = open(raw)?;
    stream.write_all(b"\n")?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    let taken = began_at.elapsed();
    stream.shutdown(Shutdown::Write)?;
    let rest = stream.read(&mut byte)?;
    ensure!(rest == 0, "the device sent more than it got");
    Ok(taken)
}

fn send(mut stream: &TcpStream, total: u64) -> Result<String> {
    let mut sum = Sha256::new();
    let mut source = Source::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut left = total;
    while left > 0 {
        source.fill(&mut chunk);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let bytes = chunk.get(..length).unwrap_or_default();
        sum.update(bytes);
        stream.write_all(bytes)?;
        left -= length as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(hex(&sum.finalize()))
}

/// Compares all that comes until its end with what was sent.
fn check(mut stream: &TcpStream, total: u64) -> Result<()> {
    let mut source = Source::new();
    let (mut wanted, mut got) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut left = total;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let chunk = got.get_mut(..length).unwrap_or_default();
        stream
            .read_exact(chunk)
            .with_context(|| format!("the data did not come back whole: {left} bytes are missing"))?;
        source.fill(&mut wanted);
        if !wanted.starts_with(chunk) {
            bail!("what came back differs within {length} bytes after byte {}", total - left);
        }
        left -= length as u64;
    }
    let more = stream.read(&mut got).context("the end of the data did not come back")?;
    ensure!(more == 0, "more came back than was sent");
    Ok(())
}

/// A stream of bytes in which no two places look alike, so that bytes in the wrong place are noticed: xorshift64*.
#[derive(Debug)]
struct Source(u64);

impl Source {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn fill(&mut self, chunk: &mut [u8]) {
        for bytes in chunk.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            bytes.iter_mut().zip(word).for_each(|(byte, new)| *byte = new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::device::{Ports, Ready, serve};
    use std::sync::mpsc;

    /// Runs a sample device on loopback until the test's process ends.
    fn device() -> Ports {
        let (told, ports) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let any = "127.0.0.1:0".parse().unwrap();
            let ready = |it: Ready| Ok(told.send(it.ports)?);
            runtime.block_on(serve(Ports { web: any, tls: any, raw: any }, true, ready)).unwrap();
        });
        ports.recv().unwrap()
    }

    #[test]
    fn the_device_sends_back_every_byte_and_shows_what_it_got() {
        let Ports { web, raw, .. } = device();
        let each_way = 3 * CHUNK_BYTES as u64 + 17;
        let transfer = run(raw, web, each_way).unwrap();
        assert_eq!(transfer.bytes, 2 * each_way);
        let shown = ask(web).unwrap();
        assert_eq!(shown.raw_bytes, each_way + 1);
        let job = shown.jobs.front().unwrap();
        assert_eq!((job.number, job.bytes, &job.text), (2, each_way, &None));
        assert_eq!(job.sha256, transfer.sha256);
    }

    #[test]
    fn a_short_text_is_shown_as_it_was_printed() {
        let Ports { web, raw, .. } = device();
        let mut stream = open(raw).unwrap();
        stream.write_all("Grüße\n".as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut echo = String::new();
        stream.read_to_string(&mut echo).unwrap();
        assert_eq!(echo, "Grüße\n");
        assert_eq!(ask(web).unwrap().jobs[0].text.as_deref(), Some("Grüße\n"));
    }

    /// What a bad device does to the bytes.
    type Fault = fn(&mut Vec<u8>);

    #[test]
    fn a_device_that_changes_loses_or_adds_a_byte_is_found_out() {
        let faults: [(&str, Fault); 3] = [
            ("differs", |bytes| bytes[100_000] ^= 1),
            ("missing", |bytes| bytes.truncate(199_999)),
            ("more", |bytes| bytes.push(0)),
        ];
        for (word, fault) in faults {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let device = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                fault(&mut bytes);
                stream.write_all(&bytes).unwrap();
            });
            let stream = open(address).unwrap();
            send(&stream, 200_000).unwrap();
            let error = check(&stream, 200_000).unwrap_err();
            assert!(format!("{error:#}").contains(word), "{error:#}");
            device.join().unwrap();
        }
    }
}
