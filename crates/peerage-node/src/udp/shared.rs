//! One socket for messages and QUIC, so that both have the same mapping in every NAT on the way.
//!
//! QUIC's endpoint reads the socket, many datagrams with one call; each is told apart by its first byte (Rule 3.1), and messages go
//! to the node in a queue of their own. The system may hand over several datagrams of one sender in one buffer, so each of them is
//! looked at.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::wide::Wide;
use super::{Queue, RECEIVE_BYTES};

/// The bit of the first byte that QUIC always sets (RFC 9000, section 17) and no message does (Rule 3.1). That an endpoint may leave it
/// clear (RFC 9287) is switched off.
const QUIC_BIT: u8 = 0x40;

/// The most messages that wait for the node. A burst beyond is lost as in a full network.
const MAX_MESSAGES: usize = 1_024;

/// How often the socket is read at a time when nothing but messages comes. More lets a flood of them hold up QUIC's timers, fewer costs wakeups.
const MAX_READS: usize = 8;

/// Whether a datagram is QUIC's.
pub(super) fn is_quic(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & QUIC_BIT != 0)
}

/// The socket, as QUIC uses it.
#[derive(Debug)]
pub(crate) struct SharedSocket {
    io: UdpSocket,
    state: UdpSocketState,
    messages: mpsc::Sender<(SocketAddr, Bytes)>,
    /// Beside it, where the owner permits it.
    wide: Option<Arc<Wide>>,
    errors: Arc<AtomicU64>,
}

impl SharedSocket {
    /// Takes over a socket; the receiver gets the messages. `is_wide` says whether there may be further ones (Rule 6.99).
    pub(super) fn new(
        io: UdpSocket,
        is_wide: bool,
        errors: Arc<AtomicU64>,
    ) -> io::Result<(Arc<Self>, Queue)> {
        let state = UdpSocketState::new((&io).into())?;
        let (messages, receiver) = mpsc::channel(MAX_MESSAGES);
        let wide = is_wide.then(|| Wide::new(messages.clone()));
        Ok((Arc::new(Self { io, state, messages, wide, errors }), receiver))
    }

    pub(super) const fn io(&self) -> &UdpSocket {
        &self.io
    }

    pub(super) const fn state(&self) -> &UdpSocketState {
        &self.state
    }

    pub(super) const fn wide(&self) -> Option<&Arc<Wide>> {
        self.wide.as_ref()
    }

    fn note(&self, error: &io::Error) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        tracing::trace!(%error, "an error came in place of a datagram");
    }

    /// Hands messages to the node and moves what is QUIC's to the front; returns how many buffers that are.
    fn sort(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta], count: usize) -> usize {
        let mut kept = 0;
        for index in 0..count {
            let (Some(buffer), Some(meta)) = (buffers.get_mut(index), metas.get_mut(index)) else { break };
            meta.len = self.sort_segments(buffer, meta);
            if meta.len > 0 {
                buffers.swap(kept, index);
                metas.swap(kept, index);
                kept += 1;
            }
        }
        kept
    }

    /// The same within one buffer; returns how many bytes at its front are QUIC's.
    fn sort_segments(&self, buffer: &mut [u8], meta: &RecvMeta) -> usize {
        let mut kept = 0;
        let mut begin = 0;
        // Datagrams that share a buffer are equally long but for the last.
        let stride = meta.stride.max(1);
        while begin < meta.len {
            let end = meta.len.min(begin + stride);
            let Some(segment) = buffer.get(begin..end) else { break };
            if is_quic(segment) {
                buffer.copy_within(begin..end, kept);
                kept += end - begin;
            } else {
                self.hand_over(meta.addr, segment);
            }
            begin = end;
        }
        kept
    }

    fn hand_over(&self, remote: SocketAddr, message: &[u8]) {
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        // What is longer than any message is refused for its length, for which its beginning is enough.
        let message = message.get(..RECEIVE_BYTES).unwrap_or(message);
        if self.messages.try_send((remote, Bytes::copy_from_slice(message))).is_err() {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl AsyncUdpSocket for SharedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.wide.as_ref().is_some_and(|wide| wide.send_quic(transmit)) {
            return Ok(());
        }
        self.io.try_io(Interest::WRITABLE, || self.state.send((&self.io).into(), transmit))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if let Some(wide) = &self.wide {
            let is_v6 = self.io.local_addr().is_ok_and(|address| address.is_ipv6());
            let taken = wide.poll_quic(cx, (buffers, metas), is_v6);
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
        }
        for _read in 0..MAX_READS {
            ready!(self.io.poll_recv_ready(cx))?;
            let received =
                self.io.try_io(Interest::READABLE, || self.state.recv((&self.io).into(), buffers, metas));
            match received {
                Ok(count) => {
                    let kept = self.sort(buffers, metas, count);
                    if kept > 0 {
                        return Poll::Ready(Ok(kept));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // An ICMP message that answers an earlier datagram, as a rule; the endpoint would give up over it.
                Err(error) => self.note(&error),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// One task that waits until the socket takes datagrams again.
struct Writable {
    socket: Arc<SharedSocket>,
    waiting: Option<Waiting>,
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable").finish_non_exhaustive()
    }
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let waiting = this.waiting.get_or_insert_with(|| {
            let socket = Arc::clone(&this.socket);
            Box::pin(async move { socket.io.writable().await })
        });
        let result = ready!(waiting.as_mut().poll(cx));
        this.waiting = None;
        Poll::Ready(result)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    async fn shared() -> (Arc<SharedSocket>, Queue) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        SharedSocket::new(socket, false, Arc::default()).unwrap()
    }

    fn meta(len: usize, stride: usize) -> RecvMeta {
        let mut meta = RecvMeta::default();
        (meta.len, meta.stride) = (len, stride);
        meta.addr = "[::ffff:192.0.2.1]:9".parse().unwrap();
        meta
    }

    #[tokio::test]
    async fn messages_and_quic_in_one_buffer_are_told_apart_segment_by_segment() {
        let (socket, mut messages) = shared().await;
        let mut bytes = *b"\x40aa\x05bb\xc0cc\x09dd\x41e";
        let kept = socket.sort_segments(&mut bytes, &meta(14, 3));
        assert_eq!(&bytes[..kept], b"\x40aa\xc0cc\x41e");
        let from = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
        assert_eq!(messages.try_recv().unwrap(), (from, Bytes::from_static(b"\x05bb")));
        assert_eq!(messages.try_recv().unwrap(), (from, Bytes::from_static(b"\x09dd")));
        assert!(messages.try_recv().is_err());
    }

    #[tokio::test]
    async fn buffers_without_quic_are_left_out() {
        let (socket, mut messages) = shared().await;
        let (mut first, mut second, mut third) = (*b"\x05a", *b"\x40b", *b"\x80c");
        let mut buffers =
            [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second), IoSliceMut::new(&mut third)];
        let mut metas = [meta(2, 2), meta(2, 2), meta(2, 2)];
        assert_eq!(socket.sort(&mut buffers, &mut metas, 3), 1);
        assert_eq!((&*buffers[0], metas[0].len), (&b"\x40b"[..], 2));
        // A first byte that belongs to nobody is the node's to count.
        assert_eq!(messages.try_recv().unwrap().1, Bytes::from_static(b"\x05a"));
        assert_eq!(messages.try_recv().unwrap().1, Bytes::from_static(b"\x80c"));
    }

    #[tokio::test]
    async fn a_flood_of_messages_is_cut_and_counted() {
        let (socket, messages) = shared().await;
        for _ in 0..MAX_MESSAGES + 5 {
            socket.hand_over("192.0.2.1:9".parse().unwrap(), &[5; 3_000]);
        }
        assert_eq!(socket.errors.load(Ordering::Relaxed), 5);
        assert_eq!(messages.len(), MAX_MESSAGES);
    }
}
