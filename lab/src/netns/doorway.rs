//! A way into a machine for a program outside, such as a browser.
//!
//! The networks of a sandbox are closed. A Unix socket in the directory that all share is not part of any of them: a
//! program inside, [`serve`], leads it to a TCP port there, and [`Doorway`] leads a TCP port outside to the socket.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};

/// Connections through one doorway at the same time; one more is closed at once.
///
/// Each costs two threads; a browser opens six.
const MAX_CONNECTIONS: usize = 64;

/// Leads every connection to the Unix socket `door` to a TCP port of this machine; to be run inside, until it ends.
///
/// Calls `ready` once the socket is there.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(door: &Path, target: SocketAddr, ready: impl FnOnce() -> Result<()>) -> Result<()> {
    let listener = UnixListener::bind(door).with_context(|| format!("cannot make {}", door.display()))?;
    ready()?;
    let open = Arc::new(AtomicUsize::new(0));
    for inner in listener.incoming().flatten() {
        join_in_background(&open, move || Ok((TcpStream::connect(target)?, inner)));
    }
    Ok(())
}

/// A TCP port of the real machine's loopback that leads into a sandbox; it is open until the process ends.
#[derive(Debug)]
pub struct Doorway {
    address: SocketAddr,
}

impl Doorway {
    /// Opens a port, 0 for any, that leads to the Unix socket `door` as it is called outside; see
    /// [`super::Sandbox::outside`].
    ///
    /// # Errors
    /// When the port is taken.
    pub fn open(port: u16, door: impl Into<PathBuf>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("cannot listen on port {port} of this machine"))?;
        let address = listener.local_addr()?;
        let door = door.into();
        let open = Arc::new(AtomicUsize::new(0));
        thread::spawn(move || {
            for outer in listener.incoming().flatten() {
                let door = door.clone();
                join_in_background(&open, move || Ok((outer, UnixStream::connect(door)?)));
            }
        });
        Ok(Self { address })
    }

    /// Returns the address to connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Makes a pair of streams and carries bytes between them, each direction until its end, unless there are too many.
fn join_in_background(
    open: &Arc<AtomicUsize>,
    connect: impl FnOnce() -> io::Result<(TcpStream, UnixStream)> + Send + 'static,
) {
    let open = Arc::clone(open);
    if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        open.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    thread::spawn(move || {
        // A connection that breaks concerns its two ends alone, and they see it.
        let _ = connect().and_then(|(tcp, unix)| join(&tcp, &unix));
        open.fetch_sub(1, Ordering::Relaxed);
    });
}

fn join(tcp: &TcpStream, unix: &UnixStream) -> io::Result<()> {
    thread::scope(|scope| {
        let back = scope.spawn(|| {
            let result = io::copy(&mut &*unix, &mut &*tcp);
            let _ = tcp.shutdown(Shutdown::Write);
            result
        });
        let there = io::copy(&mut &*tcp, &mut &*unix);
        let _ = unix.shutdown(Shutdown::Write);
        let _ = back.join();
        there.map(|_| ())
    })
}
