//! A small device with a web page and a raw port, for where a real one would be too much.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// Connections served at the same time, for both ports together; one more is closed at once.
///
/// More would let a mistake in a test exhaust the threads of the machine; less would limit parallel tests.
pub const MAX_CONNECTIONS: usize = 64;

/// Bytes of a request's head that are read; a longer one is cut off, as by many a real device.
const MAX_HEAD_BYTES: u64 = 16 << 10;

/// How long a connection may be idle; it ends threads whose client vanished.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Shared {
    connections: AtomicUsize,
    raw_bytes: AtomicU64,
}

/// A device whose web port answers with a page, and whose raw port sends back what it gets.
///
/// It serves until the process ends.
#[derive(Debug)]
pub struct SampleDevice {
    web: SocketAddr,
    raw: SocketAddr,
}

impl SampleDevice {
    /// Starts a device; port 0 stands for any.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn start(web: SocketAddr, raw: SocketAddr) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        Ok(Self { web: serve(web, &shared, page)?, raw: serve(raw, &shared, echo)? })
    }

    /// Returns where the web page is served.
    #[must_use]
    pub fn web(&self) -> SocketAddr {
        self.web
    }

    /// Returns where raw bytes are sent back.
    #[must_use]
    pub fn raw(&self) -> SocketAddr {
        self.raw
    }
}

fn serve(
    address: SocketAddr,
    shared: &Arc<Shared>,
    handle: fn(&Shared, &TcpStream) -> std::io::Result<()>,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let bound = listener.local_addr()?;
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if shared.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
                shared.connections.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let _ = stream.set_read_timeout(Some(IDLE_TIMEOUT));
                let _ = stream.set_write_timeout(Some(IDLE_TIMEOUT));
                // A client that breaks off concerns nobody else.
                let _ = handle(&shared, &stream);
                shared.connections.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    Ok(bound)
}

/// Reads a request's head and answers any with the page.
fn page(shared: &Shared, mut stream: &TcpStream) -> std::io::Result<()> {
    let head = BufReader::new(stream.take(MAX_HEAD_BYTES));
    for line in head.lines() {
        if line?.is_empty() {
            break;
        }
    }
    let bytes = shared.raw_bytes.load(Ordering::Relaxed);
    let body = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Sample printer</title>\
         <h1>Sample printer</h1><p>Ready. {bytes} bytes came in at the raw port.</p></html>\n"
    );
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.shutdown(Shutdown::Write)
}

/// Sends back what comes, and ends its direction when the other has ended.
fn echo(shared: &Shared, mut stream: &TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        shared.raw_bytes.fetch_add(length as u64, Ordering::Relaxed);
        stream.write_all(buffer.get(..length).unwrap_or_default())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> SampleDevice {
        let any = "127.0.0.1:0".parse().unwrap();
        SampleDevice::start(any, any).unwrap()
    }

    #[test]
    fn the_raw_port_sends_back_every_byte_and_then_the_end() {
        let mut stream = TcpStream::connect(device().raw()).unwrap();
        let sent: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut writer = stream.try_clone().unwrap();
        let copy = sent.clone();
        let writing = thread::spawn(move || {
            writer.write_all(&copy).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        writing.join().unwrap();
        assert!(received == sent);
    }

    #[test]
    fn the_web_port_answers_with_a_whole_page() {
        let mut stream = TcpStream::connect(device().web()).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: printer\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK"));
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
    }
}
