//! Who is let in at the TCP port: links of members, legs of those who want to be relayed, messages of those whom UDP does not reach,
//! or nobody.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::TcpStream;

use crate::carrier::TlsIntake;

/// The door, shared by whoever opens it and whoever accepts connections.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    takes_links: AtomicBool,
    takes_legs: AtomicBool,
    intake: TlsIntake,
}

impl Door {
    /// Makes a closed door before what takes messages and legs.
    pub(crate) fn new(intake: TlsIntake) -> Self {
        let closed = || AtomicBool::new(false);
        Self { inner: Arc::new(Inner { takes_links: closed(), takes_legs: closed(), intake }) }
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

    /// Returns what takes messages and legs, if any are taken: a super-node serves both (Rule 6.100).
    pub(crate) fn intake(&self) -> Option<&TlsIntake> {
        self.inner.takes_legs.load(Ordering::Relaxed).then_some(&self.inner.intake)
    }

    /// Returns by which byte a connection begins, once it begins.
    pub(crate) async fn first_byte(&self, socket: &TcpStream) -> io::Result<u8> {
        let mut first = [0];
        match socket.peek(&mut first).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _one => Ok(first[0]),
        }
    }
}
