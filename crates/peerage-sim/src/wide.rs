//! The ports of a computer that are there for one place alone (Rule 6.99).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::network::PORT;

/// The first of them; those of programs on the way out are above it too.
const FIRST_PORT: u16 = 20_000;

/// Most of them before the first is used again.
const MAX_PORTS: u16 = 20_000;

/// The ports of one computer.
#[derive(Clone, Debug, Default)]
pub struct WidePorts {
    opened: u16,
    /// From which of them something goes to a place, once something has come from there.
    found: BTreeMap<SocketAddr, SocketAddr>,
}

impl WidePorts {
    /// Returns whether a port is one of these.
    pub fn is_one(port: u16) -> bool {
        port >= FIRST_PORT
    }

    /// Returns from where the next so many datagrams to a place leave.
    pub fn open(&mut self, inner: SocketAddr, remote: SocketAddr, count: usize) -> Vec<SocketAddr> {
        if let Some(found) = self.found.get(&remote) {
            return vec![*found];
        }
        let mut next = || {
            let port = FIRST_PORT + self.opened;
            self.opened = (self.opened + 1) % MAX_PORTS;
            SocketAddr::new(inner.ip(), port)
        };
        (0..count).map(|_| next()).collect()
    }

    /// Notes that something has come to an address of the computer.
    pub fn heard(&mut self, remote: SocketAddr, to: SocketAddr) {
        if to.port() != PORT && Self::is_one(to.port()) {
            self.found.entry(remote).or_insert(to);
        }
    }

    /// Returns from where datagrams to a place leave.
    pub fn source(&self, inner: SocketAddr, remote: SocketAddr) -> SocketAddr {
        self.found.get(&remote).copied().unwrap_or(inner)
    }
}
