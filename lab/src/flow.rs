//! Two numbered streams of bytes, one in each direction of a connection, that tell what was lost and when nothing moved.
//!
//! The device and its client both send bytes whose values follow from their places, at a steady rate, and both check
//! what comes. A byte that is missing, doubled or changed shows at its place. Both note when nothing came for a while,
//! on one clock, since they run on one real machine.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{self, Backlog};
use serde_json::{Value, json};

/// Bytes that are sent at once, at the most.
const CHUNK_BYTES: usize = 16 << 10;

/// A pause is noted from this length on; shorter ones are how networks are.
const PAUSE: Duration = Duration::from_millis(50);

/// Pauses that are kept, for each direction; a slow flow has one with every chunk.
const MAX_PAUSES: usize = 4_096;

/// Connections of one device at the same time; one more is closed at once. Each costs two threads.
const MAX_CONNECTIONS: usize = 1_024;

/// What the client says first: the number of the flow, and the bytes that each side shall send in a second.
const HEAD_BYTES: usize = 16;

/// What came in one direction of a flow, and what the same end sent in the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct End {
    /// The number of the flow.
    pub id: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// The place of the first byte that was not the one that belongs there.
    pub wrong_at: Option<u64>,
    /// When nothing came: from and to, in milliseconds since 1970.
    pub pauses: Vec<(u64, u64)>,
    /// Why the connection broke, if it did.
    pub error: Option<String>,
}

impl End {
    /// Returns it as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id, "sent": self.sent, "received": self.received, "wrong_at": self.wrong_at,
            "pauses": self.pauses, "error": self.error,
        })
    }

    /// Reads what [`End::to_json`] wrote; none if it is something else.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let number = |name: &str| value.get(name)?.as_u64();
        let pause = |pause: &Value| Some((pause.get(0)?.as_u64()?, pause.get(1)?.as_u64()?));
        Some(Self {
            id: number("id")?,
            sent: number("sent")?,
            received: number("received")?,
            wrong_at: number("wrong_at"),
            pauses: value.get("pauses")?.as_array()?.iter().map(pause).collect::<Option<_>>()?,
            error: value.get("error")?.as_str().map(str::to_owned),
        })
    }

    /// Returns how many of the bytes that `sender` sent to this end are missing, doubled or changed; after the first, all
    /// count.
    #[must_use]
    pub fn lost_from(&self, sender: &Self) -> u64 {
        let end = self.received.max(sender.sent);
        self.wrong_at.map_or(end - self.received.min(sender.sent), |at| end.saturating_sub(at))
    }

    /// Returns the longest time from `since` on in which nothing came, in milliseconds.
    #[must_use]
    pub fn stall_since(&self, since: u64) -> u64 {
        self.pauses.iter().map(|(from, to)| to.saturating_sub((*from).max(since))).max().unwrap_or(0)
    }
}

/// Returns the time on the clock of [`End::pauses`].
#[must_use]
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Serves flows at this address until the process ends, and calls `ended` with the device's end of each.
///
/// # Errors
/// When the address cannot be bound.
pub fn serve(address: SocketAddr, ended: fn(&End), ready: impl FnOnce() -> Result<()>) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    // Only 128 of those who come at once would fit otherwise; the kernel answers the others late, up to a minute.
    let room = i32::try_from(MAX_CONNECTIONS).ok().and_then(|room| Backlog::new(room).ok());
    socket::listen(&listener, room.unwrap_or(Backlog::MAXCONN)).context("cannot make room for who comes")?;
    ready()?;
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming().flatten() {
        if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let open = Arc::clone(&open);
        thread::spawn(move || {
            // Whoever breaks off before the head was no flow.
            if let Ok(end) = answer(&stream) {
                ended(&end);
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(())
}

fn answer(mut stream: &TcpStream) -> io::Result<End> {
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head)?;
    let (id, rate) = head.split_at(HEAD_BYTES / 2);
    let [id, rate] = [id, rate].map(|half| u64::from_le_bytes(half.try_into().unwrap_or_default()));
    let stop = AtomicBool::new(false);
    let mut end = exchange(stream, rate, [Seed::Device, Seed::Client], &stop, &|| {});
    end.id = id;
    Ok(end)
}

/// A client's end of a flow, until it is told to end.
#[derive(Debug)]
pub struct Flow {
    stop: Arc<AtomicBool>,
    exchange: thread::JoinHandle<End>,
}

impl Flow {
    /// Connects to a device and begins; calls `flows` when the first bytes have come.
    ///
    /// # Errors
    /// When nobody accepts the connection.
    pub fn start(
        to: SocketAddr,
        id: u64,
        rate: u64,
        flows: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self> {
        let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
        stream.set_nodelay(true)?;
        stream.write_all(&[id.to_le_bytes(), rate.to_le_bytes()].concat())?;
        let stop = Arc::new(AtomicBool::new(false));
        let exchange = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let end = exchange(&stream, rate, [Seed::Client, Seed::Device], &stop, &flows);
                End { id, ..end }
            })
        };
        Ok(Self { stop, exchange })
    }

    /// Stops sending.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Stops sending, and returns once all that is on its way has come.
    ///
    /// # Errors
    /// When the flow could not be kept up by this program itself.
    pub fn finish(self) -> Result<End> {
        self.stop();
        self.exchange.join().map_err(|_| anyhow!("a flow panicked"))
    }
}

/// Whose bytes these are; both directions differ, so that a byte that came back shows.
#[derive(Debug, Clone, Copy)]
enum Seed {
    Client,
    Device,
}

/// Sends until `stop` is set or the other side has ended, and receives until that has ended.
fn exchange(
    stream: &TcpStream,
    rate: u64,
    [own, other]: [Seed; 2],
    stop: &AtomicBool,
    flows: &dyn Fn(),
) -> End {
    let (sent, mut end) = thread::scope(|scope| {
        let sending = scope.spawn(|| send(stream, rate, own, stop));
        let end = receive(stream, other, flows);
        // A device sends as long as its client does.
        stop.store(true, Ordering::Relaxed);
        (sending.join().unwrap_or((0, Some("sending panicked".to_owned()))), end)
    });
    let (sent, error) = sent;
    end.sent = sent;
    end.error = end.error.or(error);
    end
}

fn send(mut stream: &TcpStream, rate: u64, seed: Seed, stop: &AtomicBool) -> (u64, Option<String>) {
    // Twice a second at the least.
    let chunk_bytes = (rate / 2).clamp(1, CHUNK_BYTES as u64);
    let pause = Duration::from_secs_f64(chunk_bytes as f64 / rate.max(1) as f64);
    let mut chunk = vec![0; usize::try_from(chunk_bytes).unwrap_or(CHUNK_BYTES)];
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let began_at = Instant::now();
        fill(&mut chunk, seed, sent);
        if let Err(error) = stream.write_all(&chunk) {
            return (sent, Some(format!("sending: {error}")));
        }
        sent += chunk_bytes;
        thread::sleep(pause.saturating_sub(began_at.elapsed()));
    }
    let error = stream.shutdown(Shutdown::Write).err().map(|error| format!("ending: {error}"));
    (sent, error)
}

fn receive(mut stream: &TcpStream, seed: Seed, flows: &dyn Fn()) -> End {
    let mut end = End::default();
    let (mut buffer, mut wanted) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let (mut last_at, mut last_ms) = (Instant::now(), unix_ms());
    loop {
        let result = stream.read(&mut buffer);
        if last_at.elapsed() >= PAUSE && end.pauses.len() < MAX_PAUSES {
            end.pauses.push((last_ms, unix_ms()));
        }
        (last_at, last_ms) = (Instant::now(), unix_ms());
        match result {
            Ok(0) => return end,
            Ok(length) => {
                if end.received == 0 {
                    flows();
                }
                let (got, wanted) = (buffer.get(..length), wanted.get_mut(..length));
                let (Some(got), Some(wanted)) = (got, wanted) else { return end };
                fill(wanted, seed, end.received);
                if end.wrong_at.is_none() && got != wanted {
                    let right = got.iter().zip(wanted.iter()).take_while(|(got, wanted)| got == wanted);
                    end.wrong_at = Some(end.received + right.count() as u64);
                }
                end.received += length as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                end.error = Some(format!("receiving: {error}"));
                return end;
            }
        }
    }
}

/// Writes the bytes that belong at `place` and after it.
fn fill(bytes: &mut [u8], seed: Seed, place: u64) {
    let salt = match seed {
        Seed::Client => 0x9e37_79b9_7f4a_7c15,
        Seed::Device => 0xd1b5_4a32_d192_ed03_u64,
    };
    let mut word = place / 8;
    let mut from = usize::try_from(place % 8).unwrap_or(0);
    let mut rest = bytes;
    while !rest.is_empty() {
        let values = mixed(word ^ salt).to_le_bytes();
        let length = (8 - from).min(rest.len());
        let (now, later) = rest.split_at_mut(length);
        now.copy_from_slice(values.get(from..from + length).unwrap_or_default());
        (rest, word, from) = (later, word + 1, 0);
    }
}

/// Spreads a number over all bits (the finalizer of SplitMix64).
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn at(place: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        fill(&mut bytes, Seed::Device, place);
        bytes
    }

    #[test]
    fn every_byte_depends_on_its_place_alone() {
        let whole = at(0, 1_000);
        for place in [0, 1, 7, 8, 9, 500_u16] {
            let from = usize::from(place);
            assert_eq!(at(place.into(), 300), whole[from..from + 300]);
        }
    }

    /// Lets a device send these bytes and end; returns what its client found.
    fn received(bytes: Vec<u8>) -> End {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let device = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
        });
        let (said, flows) = mpsc::channel();
        let flow = Flow::start(address, 1, 1 << 20, move || said.send(()).unwrap()).unwrap();
        flows.recv().unwrap();
        let end = flow.finish().unwrap();
        device.join().unwrap();
        end
    }

    #[test]
    fn a_byte_that_is_missing_doubled_or_changed_is_found_at_its_place() {
        let sender = End { sent: 10_000, ..End::default() };
        let whole = at(0, 10_000);
        let without = [&whole[..5_000], &whole[5_001..]].concat();
        let doubled = [&whole[..5_000], &whole[4_999..]].concat();
        let mut changed = whole.clone();
        changed[5_000] ^= 1;
        for bytes in [without, doubled, changed] {
            let end = received(bytes);
            assert_eq!(end.wrong_at, Some(5_000));
            assert!(end.lost_from(&sender) >= 5_000, "{end:?}");
        }
        assert_eq!(received(whole.clone()).lost_from(&sender), 0);
        assert_eq!(received(whole[..9_990].to_vec()).lost_from(&sender), 10);
    }

    #[test]
    fn only_what_was_silent_after_the_moment_counts_as_a_stall() {
        let end = End { pauses: vec![(1_000, 4_000), (5_000, 5_200)], ..End::default() };
        assert_eq!(end.stall_since(0), 3_000);
        assert_eq!(end.stall_since(3_500), 500);
        assert_eq!(end.stall_since(4_500), 200);
        assert_eq!(end.stall_since(6_000), 0);
        assert_eq!(End::from_json(&end.to_json()), Some(end));
    }
}
