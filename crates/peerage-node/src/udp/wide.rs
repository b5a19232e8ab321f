//! Sockets that are there for one place alone, so that the router on the way makes a mapping for each of them (Rule 6.99).
//!
//! Many are opened for a place. The first to which something comes from there is kept, and all that goes there leaves from it from then on,
//! messages and QUIC alike; the others are closed. To the node and to QUIC's endpoint it looks as if there were one socket as ever.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::path::WIDE_LIFETIME;
use quinn::udp::{RecvMeta, Transmit};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time;

use super::shared::is_quic;
use super::{Queue, RECEIVE_BYTES, SOCKET_BUFFER_BYTES, mapped};
use crate::sync::lock;

/// The most sockets that wait for something at a time: as many as the node asks for.
const MAX_WAITING: usize = 256;

/// The most that are kept. A further place is reached through a relay.
const MAX_KEPT: usize = 16;

/// How long one is kept when nothing comes: longer than the probes of a link are apart, and than a link in doubt is kept (Rule 7.11).
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The most datagrams that wait for QUIC's endpoint; beyond, they are lost as in a full network.
const MAX_QUEUED: usize = 1_024;

/// The sockets, beside the one that all share.
#[derive(Debug)]
pub(super) struct Wide {
    places: Mutex<BTreeMap<SocketAddr, Place>>,
    /// How many are kept, to be seen without a lock by all that is sent.
    kept: AtomicUsize,
    messages: mpsc::Sender<(SocketAddr, Bytes)>,
    quic: mpsc::Sender<(SocketAddr, Bytes)>,
    for_quic: Mutex<Queue>,
}

/// What is open for a place.
#[derive(Debug)]
enum Place {
    Waiting(JoinSet<()>),
    Kept {
        socket: Arc<UdpSocket>,
        /// Ends with it.
        _reader: JoinSet<()>,
    },
}

impl Wide {
    /// Makes the value; what is no QUIC goes to `messages`.
    pub(super) fn new(messages: mpsc::Sender<(SocketAddr, Bytes)>) -> Arc<Self> {
        let (quic, for_quic) = mpsc::channel(MAX_QUEUED);
        let (places, kept, for_quic) = (Mutex::default(), AtomicUsize::new(0), Mutex::new(for_quic));
        Arc::new(Self { places, kept, messages, quic, for_quic })
    }

    /// Returns the socket from which all goes to a place, if there is one of its own.
    pub(super) fn of(&self, remote: SocketAddr) -> Option<Arc<UdpSocket>> {
        if self.kept.load(Ordering::Relaxed) == 0 {
            return None;
        }
        match lock(&self.places).get(&canonical(remote))? {
            Place::Kept { socket, .. } => Some(Arc::clone(socket)),
            Place::Waiting(_) => None,
        }
    }

    /// Sends a datagram from each of some more sockets, or from the one that is kept. Returns how many could not be sent.
    pub(super) fn send(self: &Arc<Self>, remote: SocketAddr, payload: &Bytes, count: usize) -> usize {
        if let Some(socket) = self.of(remote) {
            return usize::from(socket.try_send_to(payload, remote).is_err());
        }
        let mut places = lock(&self.places);
        let waiting = |place: &mut Place| match place {
            Place::Waiting(tasks) => {
                while tasks.try_join_next().is_some() {}
                tasks.len()
            }
            Place::Kept { .. } => 0,
        };
        let all: usize = places.values_mut().map(waiting).sum();
        places.retain(|_, place| !matches!(place, Place::Waiting(tasks) if tasks.is_empty()));
        let room = MAX_WAITING.saturating_sub(all).min(count);
        let place = places.entry(remote).or_insert_with(|| Place::Waiting(JoinSet::new()));
        let Place::Waiting(tasks) = place else { return count };
        let mut sent = 0;
        for _socket in 0..room {
            let Ok(socket) = open_and_send(remote, payload) else { break };
            sent += 1;
            tasks.spawn(wait(Arc::downgrade(self), socket, remote));
        }
        count - sent
    }

    /// Something has come to a socket from its place: it is kept, unless another is already. Those that wait end.
    fn keep(self: &Arc<Self>, socket: UdpSocket, remote: SocketAddr) {
        let mut places = lock(&self.places);
        let is_full = self.kept.load(Ordering::Relaxed) >= MAX_KEPT;
        if is_full || !matches!(places.get(&remote), Some(Place::Waiting(_))) {
            return;
        }
        let socket = Arc::new(socket);
        let mut reader = JoinSet::new();
        reader.spawn(read(Arc::downgrade(self), Arc::clone(&socket), remote));
        if let Some(Place::Waiting(mut tasks)) =
            places.insert(remote, Place::Kept { socket, _reader: reader })
        {
            // This very task among them, which has nothing left to do.
            tasks.abort_all();
        }
        self.kept.fetch_add(1, Ordering::Relaxed);
    }

    fn forget(&self, remote: SocketAddr) {
        let gone = lock(&self.places).remove(&remote);
        self.kept.fetch_sub(usize::from(gone.is_some()), Ordering::Relaxed);
    }

    fn hand_over(&self, remote: SocketAddr, datagram: &[u8]) {
        let queue = if is_quic(datagram) { &self.quic } else { &self.messages };
        // As in a full network.
        let _ = queue.try_send((remote, Bytes::copy_from_slice(datagram)));
    }

    /// Sends what QUIC's endpoint has for a place that has a socket of its own. What the system does not take is lost, and sent again: the
    /// endpoint waits for the other socket to have room.
    pub(super) fn send_quic(&self, transmit: &Transmit<'_>) -> bool {
        let Some(socket) = self.of(transmit.destination) else { return false };
        let length = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(length) {
            let _ = socket.try_send_to(datagram, canonical(transmit.destination));
        }
        true
    }

    /// Gives QUIC's endpoint what has come for it, with addresses as a socket of this family shows them.
    pub(super) fn poll_quic(
        &self,
        cx: &mut Context<'_>,
        (buffers, metas): (&mut [IoSliceMut<'_>], &mut [RecvMeta]),
        is_v6: bool,
    ) -> usize {
        let mut queue = lock(&self.for_quic);
        let mut taken = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let Poll::Ready(Some((remote, datagram))) = queue.poll_recv(cx) else { break };
            let Some(room) = buffer.get_mut(..datagram.len()) else { continue };
            room.copy_from_slice(&datagram);
            *meta = RecvMeta::default();
            (meta.len, meta.stride) = (datagram.len(), datagram.len());
            meta.addr = if is_v6 { mapped(remote) } else { remote };
            taken += 1;
        }
        taken
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Opens a socket at any port, and sends from it; what is translated so is IPv4.
fn open_and_send(remote: SocketAddr, payload: &[u8]) -> io::Result<UdpSocket> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let socket = super::socket(any, socket2::Type::DGRAM, socket2::Protocol::UDP)?;
    socket.bind(&any.into())?;
    let socket = std::net::UdpSocket::from(socket);
    // At once: the runtime does not know yet that the socket has room.
    socket.send_to(payload, remote)?;
    UdpSocket::from_std(socket)
}

/// Waits until something comes from the place for which a socket is there.
async fn wait(wide: Weak<Wide>, socket: UdpSocket, remote: SocketAddr) {
    let mut buffer = [0; RECEIVE_BYTES];
    let heard = async {
        loop {
            // An error is an ICMP message, as a rule.
            if let Ok((count, from)) = socket.recv_from(&mut buffer).await
                && from == remote
            {
                return count;
            }
        }
    };
    let Ok(count) = time::timeout(WIDE_LIFETIME, heard).await else { return };
    let Some(wide) = wide.upgrade() else { return };
    wide.hand_over(remote, buffer.get(..count).unwrap_or_default());
    wide.keep(socket, remote);
}

/// Reads a socket that is kept, until nothing has come for long.
async fn read(wide: Weak<Wide>, socket: Arc<UdpSocket>, remote: SocketAddr) {
    // Less is no error: the system gives what it allows.
    let _ = socket2::SockRef::from(&*socket).set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket2::SockRef::from(&*socket).set_send_buffer_size(SOCKET_BUFFER_BYTES);
    let mut buffer = [0; RECEIVE_BYTES];
    while let Ok(received) = time::timeout(IDLE_TIMEOUT, socket.recv_from(&mut buffer)).await {
        let Some(wide) = wide.upgrade() else { return };
        if let Ok((count, from)) = received
            && from == remote
        {
            wide.hand_over(remote, buffer.get(..count).unwrap_or_default());
        }
    }
    if let Some(wide) = wide.upgrade() {
        wide.forget(remote);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place that writes to `count` of the ports that have written to it.
    async fn heard(place: &UdpSocket, count: usize) -> Vec<SocketAddr> {
        let mut from = Vec::new();
        let mut buffer = [0; 16];
        while from.len() < count {
            from.push(place.recv_from(&mut buffer).await.unwrap().1);
        }
        from
    }

    #[tokio::test]
    async fn the_port_that_is_answered_is_kept_for_all_that_goes_to_that_place() {
        let (messages, mut received) = mpsc::channel(8);
        let wide = Wide::new(messages);
        let place = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let remote = place.local_addr().unwrap();
        assert_eq!(wide.send(remote, &Bytes::from_static(b"\x05ask"), 8), 0);
        let mut from = heard(&place, 8).await;
        from.sort_unstable();
        from.dedup();
        assert_eq!((from.len(), wide.of(remote).is_none()), (8, true));

        place.send_to(b"\x05answer", from[3]).await.unwrap();
        assert_eq!(received.recv().await, Some((remote, Bytes::from_static(b"\x05answer"))));
        while wide.of(remote).is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(wide.of(remote).unwrap().local_addr().unwrap().port(), from[3].port());
        // Messages and QUIC go there from it, and QUIC that comes is not taken for a message.
        assert_eq!(wide.send(remote, &Bytes::from_static(b"\x05more"), 8), 0);
        let contents = b"\x40one\x40two";
        let destination = mapped(remote);
        assert!(wide.send_quic(&Transmit {
            destination,
            ecn: None,
            contents,
            segment_size: Some(4),
            src_ip: None
        }));
        assert_eq!(heard(&place, 3).await, [from[3]; 3]);
        place.send_to(b"\x40quic", from[3]).await.unwrap();
        let (mut bytes, mut metas) = ([0; 16], [RecvMeta::default()]);
        let taken = std::future::poll_fn(|cx| {
            let mut buffers = [IoSliceMut::new(&mut bytes)];
            match wide.poll_quic(cx, (&mut buffers, &mut metas), true) {
                0 => Poll::Pending,
                taken => Poll::Ready(taken),
            }
        });
        assert_eq!(taken.await, 1);
        assert_eq!((&bytes[..metas[0].len], metas[0].addr), (&b"\x40quic"[..], mapped(remote)));
        assert!(received.try_recv().is_err());
        let other = SocketAddr::from(([127, 0, 0, 1], 9));
        assert!(wide.of(other).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn ports_are_limited_and_closed_again_when_nothing_comes() {
        let (messages, _received) = mpsc::channel(8);
        let wide = Wide::new(messages);
        let place = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let remote = place.local_addr().unwrap();
        let ask = Bytes::from_static(b"\x05ask");
        assert_eq!(wide.send(remote, &ask, MAX_WAITING + 3), 3);
        assert_eq!(wide.send(remote, &ask, 1), 1);
        // Each of them begins to wait when it has its first turn.
        while wide.send(remote, &ask, 1) > 0 {
            time::advance(WIDE_LIFETIME).await;
        }
    }
}
