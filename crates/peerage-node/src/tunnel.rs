//! Tunnels: the connections of applications and devices on one side, sessions on links on the other.
//!
//! [`forward`] is the user's side: a local port, and for each connection that an application makes to it a way to the
//! device. [`serve`] is the tunnel-node's side: what was asked for and granted is connected to the device. Both move bytes
//! with [`pump`] or, for services of datagrams, with [`datagrams`]; [`pin`] asks a device for its certificate.
//!
//! Invariants: an end of stream, a reset and every byte before them arrive on the other side as they were; a tunnel ends
//! when the node says so, whatever its peers do; what waits in memory is bounded by the session's windows.

pub mod datagrams;
mod early;
pub mod forward;
pub mod pin;
pub mod pump;
pub mod serve;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use peerage_proto::node::TunnelId;
use peerage_wire::frame::Code;

use crate::link::Stream;

/// What has gone through a local port, all its connections together.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes from applications to the device.
    pub sent: AtomicU64,
    /// Bytes from the device to applications.
    pub received: AtomicU64,
    /// Connections of applications that are open.
    pub connections: AtomicU32,
}

impl Counters {
    pub(crate) fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a connection until the value is dropped.
    pub(crate) fn connection(self: &Arc<Self>) -> Connection {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Connection(Arc::clone(self))
    }
}

/// One connection of an application.
#[derive(Debug)]
pub(crate) struct Connection(Arc<Counters>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The open tunnels of both ends, by the names under which the node watches them. Clones share the table.
#[derive(Clone, Debug, Default)]
pub struct Tunnels {
    shared: Arc<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: AtomicU64,
    open: Mutex<BTreeMap<TunnelId, Weak<Stream>>>,
}

impl Tunnels {
    /// Gives a tunnel its name; it stays in the table until the stream is dropped or [`forget`](Self::forget).
    pub fn add(&self, stream: &Arc<Stream>) -> TunnelId {
        let id = TunnelId(self.shared.next.fetch_add(1, Ordering::Relaxed));
        self.lock().insert(id, Arc::downgrade(stream));
        id
    }

    /// Takes a tunnel out of the table.
    pub fn forget(&self, id: TunnelId) {
        self.lock().remove(&id);
    }

    /// Ends a tunnel at once, both directions.
    pub fn close(&self, id: TunnelId, code: Code) {
        let stream = self.lock().remove(&id).and_then(|stream| stream.upgrade());
        if let Some(stream) = stream {
            stream.reset(code);
        }
    }

    /// Returns how many tunnels are open at either end.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<TunnelId, Weak<Stream>>> {
        self.shared.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
