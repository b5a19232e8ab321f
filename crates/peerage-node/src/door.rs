//! Who is let in at the TCP port: links of members, legs of those who want to be relayed, or nobody.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use peerage_wire::leg::begins_leg;
use tokio::net::TcpStream;

use crate::relay::Legs;

/// The door, shared by whoever opens it and whoever accepts connections.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    takes_links: AtomicBool,
    takes_legs: AtomicBool,
    legs: Legs,
}

impl Door {
    /// Makes a closed door before a relay.
    pub(crate) fn new(legs: Legs) -> Self {
        let closed = || AtomicBool::new(false);
        Self { inner: Arc::new(Inner { takes_links: closed(), takes_legs: closed(), legs }) }
    }

    /// Says who is let in from now on.
    pub(crate) fn set(&self, takes_links: bool, takes_legs: bool) {
        // Nothing else is read by whoever sees these.
        self.inner.takes_links.store(takes_links, Ordering::Relaxed);
        self.inner.takes_legs.store(takes_legs, Ordering::Relaxed);
    }

    /// Returns whether links are let in.
    pub(crate) fn takes_links(&self) -> bool {
        self.inner.takes_links.load(Ordering::Relaxed)
    }

    /// Returns whether anybody is let in.
    pub(crate) fn is_open(&self) -> bool {
        self.takes_links() || self.inner.takes_legs.load(Ordering::Relaxed)
    }

    /// Returns whether a connection begins as a leg, once it begins.
    pub(crate) async fn is_leg(&self, socket: &TcpStream) -> io::Result<bool> {
        let mut first = [0];
        match socket.peek(&mut first).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _one => Ok(begins_leg(first[0])),
        }
    }

    /// Hands a leg to the relay, or closes it unheard while there is none.
    pub(crate) fn take_leg(&self, socket: TcpStream, remote: SocketAddr) {
        if self.inner.takes_legs.load(Ordering::Relaxed) {
            // A socket of both families shows IPv4 addresses as IPv6; members know them as IPv4.
            self.inner.legs.accept(socket, SocketAddr::new(remote.ip().to_canonical(), remote.port()));
        }
    }
}
