//! The sockets of a node: one UDP port for messages and QUIC, and the TCP port of the same number for links.

mod batch;
mod shared;
mod strangers;
mod wide;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quinn::udp::UdpSocketState;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;

use self::batch::Sending;
pub use self::batch::{Batches, Refused};
pub(crate) use self::shared::SharedSocket;
pub use self::strangers::{Strangers, strangers};
use crate::clock::Clock;

/// How often a free port is looked for whose number is free for UDP and TCP both.
const MAX_PORT_ATTEMPTS: usize = 32;

/// The most datagrams that are taken at a time before other work has its turn.
pub(crate) const MAX_BATCH: usize = 64;

/// The most datagrams that wait to be sent; beyond, they are dropped as a full network would drop them.
const MAX_SENDING: usize = 1_024;

/// The room for a received datagram. What is longer than 1,200 bytes is not ours; the reader sees that it is too long.
const RECEIVE_BYTES: usize = 1_536;

/// The room that the system keeps for datagrams that wait, so that a burst survives a busy moment.
const SOCKET_BUFFER_BYTES: usize = 1 << 20;

/// The connections that the system keeps until they are accepted.
const BACKLOG: i32 = 1_024;

/// Why the node cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has the port.
    #[error("{address} is in use by another program; stop it, or choose another port with --listen")]
    InUse {
        /// Where.
        address: SocketAddr,
    },
    /// The address is not this computer's, the port needs privileges, or the system refuses otherwise.
    #[error("cannot listen on {address}: {source}")]
    Io {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// Both sockets.
#[derive(Debug)]
pub struct Ports {
    /// For messages and QUIC.
    pub udp: UdpSocket,
    /// For the first words of strangers, who write to the same port; none where they were not asked for, or cannot be kept apart.
    pub strangers: Option<UdpSocket>,
    /// For links.
    pub tcp: TcpListener,
    /// Where both listen.
    pub local: SocketAddr,
}

impl Ports {
    /// Binds both; without an address any free port, on all addresses of both families.
    ///
    /// # Errors
    /// If the address is in use or cannot be had.
    pub fn bind(listen: Option<SocketAddr>) -> Result<Self, BindError> {
        Self::bind_for(listen, Guests::Mixed)
    }

    /// The same with a socket for strangers, where the system can sort what comes.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_apart(listen: Option<SocketAddr>) -> Result<Self, BindError> {
        Self::bind_for(listen, Guests::Apart)
    }

    fn bind_for(listen: Option<SocketAddr>, guests: Guests) -> Result<Self, BindError> {
        match listen {
            Some(address) => bind_both(address, guests),
            None => bind_both((Ipv6Addr::UNSPECIFIED, 0).into(), guests)
                // Systems without IPv6.
                .or_else(|_| bind_both((Ipv4Addr::UNSPECIFIED, 0).into(), guests)),
        }
    }
}

/// Whether strangers have a queue of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guests {
    Mixed,
    Apart,
}

fn bind_both(address: SocketAddr, guests: Guests) -> Result<Ports, BindError> {
    let failed = |source: io::Error| {
        if source.kind() == io::ErrorKind::AddrInUse {
            return BindError::InUse { address };
        }
        BindError::Io { address, source }
    };
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _attempt in 0..MAX_PORT_ATTEMPTS {
        match try_bind(address, guests) {
            // Chosen by the system for TCP, and taken for UDP by somebody else: choose again.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && address.port() == 0 => last = error,
            result => return result.map_err(failed),
        }
    }
    Err(failed(last))
}

fn try_bind(address: SocketAddr, guests: Guests) -> io::Result<Ports> {
    let tcp = socket(address, Type::STREAM, Protocol::TCP)?;
    // Without it, a restart would have to wait for the connections of the last run.
    tcp.set_reuse_address(true)?;
    tcp.bind(&address.into())?;
    tcp.listen(BACKLOG)?;
    let tcp = TcpListener::from_std(tcp.into())?;
    let local = tcp.local_addr()?;
    let at = SocketAddr::new(address.ip(), local.port());
    let udp = datagrams(at, SOCKET_BUFFER_BYTES, guests)?;
    let strangers = (guests == Guests::Apart).then(|| second(at)).transpose();
    // Without a queue of their own they are served all the same.
    let strangers =
        strangers.inspect_err(|error| tracing::info!(%error, "strangers and others share a queue"));
    let strangers = strangers.ok().flatten();
    Ok(Ports { udp: UdpSocket::from_std(udp.into())?, strangers, tcp, local })
}

/// Binds the socket for strangers.
fn second(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = datagrams(at, strangers::BUFFER_BYTES, Guests::Apart)?;
    strangers::sort(&socket)?;
    UdpSocket::from_std(socket.into())
}

fn datagrams(at: SocketAddr, buffer_bytes: usize, guests: Guests) -> io::Result<Socket> {
    let socket = socket(at, Type::DGRAM, Protocol::UDP)?;
    // Less is no error: the system gives what it allows.
    let _ = socket.set_recv_buffer_size(buffer_bytes);
    if guests == Guests::Apart {
        strangers::share_port(&socket)?;
    }
    socket.bind(&at.into())?;
    Ok(socket)
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        // The unspecified address of IPv6 then stands for both families.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Datagrams with the address at the other end.
type Queue = mpsc::Receiver<(SocketAddr, Bytes)>;

/// Datagrams in and out, with plain addresses of either family whatever the socket is.
#[derive(Debug)]
pub(crate) struct Datagrams {
    source: Source,
    sending: mpsc::Sender<(SocketAddr, Bytes)>,
    /// The socket that is shared with QUIC.
    shared: Option<Arc<SharedSocket>>,
    /// What strangers write, where that waits apart.
    strangers: Option<Strangers>,
    errors: Arc<AtomicU64>,
}

/// What has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// A datagram, and from where.
    Datagram(SocketAddr, Bytes),
    /// Something of strangers, which [`Datagrams::receive_strangers`] takes.
    Strangers,
}

/// Where datagrams come from.
#[derive(Debug)]
enum Source {
    /// A socket that nobody else reads.
    Socket { socket: Arc<UdpSocket>, buffer: Box<[u8]> },
    /// What QUIC's endpoint leaves for messages.
    Queue(Queue),
}

impl Datagrams {
    /// Begins to send what is handed over; the task ends with the value.
    pub(crate) fn new(socket: UdpSocket) -> Self {
        let socket = Arc::new(socket);
        let buffer = vec![0; RECEIVE_BYTES].into();
        let source = Source::Socket { socket: Arc::clone(&socket), buffer };
        Self::with(source, Arc::default(), move |sending, errors| async move {
            send_all((&socket, None), sending, &errors).await;
        })
    }

    /// The same on a socket that is shared with QUIC, whose endpoint has to read it, and perhaps one for strangers. `is_wide` says whether
    /// further ones may be opened (Rule 6.99).
    ///
    /// # Errors
    /// If the system refuses the options that QUIC needs.
    pub(crate) fn beside_quic(
        (socket, strangers): (UdpSocket, Option<UdpSocket>),
        is_wide: bool,
    ) -> io::Result<(Self, Arc<SharedSocket>)> {
        let errors = Arc::default();
        let (shared, messages) = SharedSocket::new(socket, is_wide, Arc::clone(&errors))?;
        let socket = Arc::clone(&shared);
        let mut datagrams = Self::with(Source::Queue(messages), errors, move |sending, errors| async move {
            send_all((socket.io(), Some(socket.state())), sending, &errors).await;
        });
        datagrams.shared = Some(Arc::clone(&shared));
        datagrams.strangers = strangers.map(Strangers::new).transpose()?;
        Ok((datagrams, shared))
    }

    fn with<F: Future<Output = ()> + Send + 'static>(
        source: Source,
        errors: Arc<AtomicU64>,
        send: impl FnOnce(Queue, Arc<AtomicU64>) -> F,
    ) -> Self {
        let (sending, waiting) = mpsc::channel(MAX_SENDING);
        tokio::spawn(send(waiting, Arc::clone(&errors)));
        Self { source, sending, shared: None, strangers: None, errors }
    }

    /// Sends a datagram, or drops it if too many wait.
    pub(crate) fn send(&self, remote: SocketAddr, payload: Bytes) {
        if let Some(own) = self.wide().and_then(|wide| wide.of(remote)) {
            let has_failed = own.try_send_to(&payload, remote).is_err();
            self.errors.fetch_add(has_failed.into(), Ordering::Relaxed);
            return;
        }
        if self.sending.try_send((remote, payload)).is_err() {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends a datagram from each of so many ports that are there for this place alone, where that is permitted (Rule 6.99).
    pub(crate) fn send_widely(&self, remote: SocketAddr, payload: &Bytes, ports: usize) {
        let failed = self.wide().map_or(ports, |wide| wide.send(remote, payload, ports));
        self.errors.fetch_add(failed as u64, Ordering::Relaxed);
    }

    fn wide(&self) -> Option<&Arc<wide::Wide>> {
        self.shared.as_ref()?.wide()
    }

    /// Returns how many datagrams could not be sent, or errors came in place of one.
    pub(crate) fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Waits for what comes next, strangers last. May be dropped while it waits without losing anything.
    pub(crate) async fn arrived(&mut self) -> Arrived {
        let Self { source, strangers, errors, .. } = self;
        tokio::select! {
            biased;
            (remote, payload) = Self::next(source, errors) => Arrived::Datagram(remote, payload),
            Ok(()) = strangers::strangers(strangers.as_ref()) => Arrived::Strangers,
        }
    }

    /// Waits for the next datagram where strangers have no queue of their own.
    pub(crate) async fn receive(&mut self) -> (SocketAddr, Bytes) {
        Self::next(&mut self.source, &self.errors).await
    }

    /// Takes a few datagrams of strangers, if it is their turn: always if no others wait.
    pub(crate) fn receive_strangers(
        &mut self,
        do_others_wait: bool,
        clock: &Clock,
        mut take: impl FnMut(SocketAddr, Bytes),
    ) {
        let Some(strangers) = &mut self.strangers else { return };
        let failed = strangers.receive(do_others_wait, clock, |remote, datagram| {
            // What is longer than any message is refused for its length, for which its beginning is enough.
            let datagram = datagram.get(..RECEIVE_BYTES).unwrap_or(datagram);
            take(plain(remote), Bytes::copy_from_slice(datagram));
        });
        self.errors.fetch_add(failed, Ordering::Relaxed);
    }

    async fn next(source: &mut Source, errors: &AtomicU64) -> (SocketAddr, Bytes) {
        match source {
            Source::Socket { socket, buffer } => loop {
                match socket.recv_from(buffer).await {
                    Ok((count, remote)) => return take(buffer, count, remote),
                    // An ICMP message that answers an earlier datagram, as a rule.
                    Err(error) => note(errors, &error),
                }
            },
            Source::Queue(messages) => match messages.recv().await {
                Some(message) => message,
                // The endpoint has ended: nothing comes any more.
                None => std::future::pending().await,
            },
        }
    }

    /// Takes a datagram that is there already.
    pub(crate) fn try_receive(&mut self) -> Option<(SocketAddr, Bytes)> {
        match &mut self.source {
            Source::Socket { socket, buffer } => match socket.try_recv_from(buffer) {
                Ok((count, remote)) => Some(take(buffer, count, remote)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                Err(error) => {
                    note(&self.errors, &error);
                    None
                }
            },
            Source::Queue(messages) => messages.try_recv().ok(),
        }
    }
}

async fn send_all(
    (socket, state): (&UdpSocket, Option<&UdpSocketState>),
    mut queue: Queue,
    errors: &AtomicU64,
) {
    let is_v6 = socket.local_addr().is_ok_and(|address| address.is_ipv6());
    let (mut sending, mut taken, mut waiting) = (Sending::default(), Vec::new(), VecDeque::new());
    while queue.recv_many(&mut taken, MAX_BATCH).await > 0 {
        let as_wanted = |remote| if is_v6 { mapped(remote) } else { remote };
        waiting.extend(taken.drain(..).map(|(remote, payload)| (as_wanted(remote), payload)));
        while !waiting.is_empty() {
            let failed = match sending.send(socket, state, &mut waiting) {
                Ok(failed) => failed,
                Err(Refused { failed }) => {
                    // An error of the socket itself shows at the next sending.
                    drop(socket.writable().await);
                    failed
                }
            };
            errors.fetch_add(failed, Ordering::Relaxed);
        }
    }
}

fn note(errors: &AtomicU64, error: &io::Error) {
    errors.fetch_add(1, Ordering::Relaxed);
    tracing::trace!(%error, "an error came in place of a datagram");
}

/// Returns an IPv4 address as such, whatever family the socket has.
const fn plain(remote: SocketAddr) -> SocketAddr {
    SocketAddr::new(remote.ip().to_canonical(), remote.port())
}

fn take(buffer: &[u8], count: usize, remote: SocketAddr) -> (SocketAddr, Bytes) {
    (plain(remote), Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default()))
}

/// Returns an IPv4 address as sockets of IPv6 want it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddrV6::new(ip.to_ipv6_mapped(), address.port(), 0, 0).into(),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_protocols_have_the_same_port() {
        let ports = Ports::bind(Some("127.0.0.1:0".parse().unwrap())).unwrap();
        assert_eq!(ports.udp.local_addr().unwrap(), ports.tcp.local_addr().unwrap());
        assert_eq!(ports.local, ports.tcp.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_whichever_protocol_has_it() {
        let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = Ports::bind(Some(address)).unwrap_err();
        assert!(matches!(error, BindError::InUse { address: named } if named == address), "{error}");
        assert!(error.to_string().contains("--listen"), "{error}");
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        assert!(matches!(Ports::bind(Some(address)), Err(BindError::InUse { .. })));
    }

    #[tokio::test]
    async fn datagrams_cross_with_plain_addresses_and_a_closed_port_harms_nothing() {
        let ports = Ports::bind(None).unwrap();
        let (mut here, port) = (Datagrams::new(ports.udp), ports.local.port());
        let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let other_address = other.local_addr().unwrap();
        let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let closed_address = closed.local_addr().unwrap();
        drop(closed);
        here.send(closed_address, Bytes::from_static(b"nobody"));
        here.send(other_address, Bytes::from_static(b"hello"));
        let mut buffer = [0; 16];
        let (count, _) = other.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..count], b"hello");
        other.send_to(b"", ("127.0.0.1", port)).await.unwrap();
        other.send_to(b"answer", ("127.0.0.1", port)).await.unwrap();
        assert_eq!(here.receive().await, (other_address, Bytes::new()));
        assert_eq!(here.receive().await, (other_address, Bytes::from_static(b"answer")));
        assert_eq!(here.try_receive(), None);
    }

    /// Rule 3.1: the first byte tells the long forms from all else.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_flood_of_first_words_takes_no_room_of_others() {
        let ports = Ports::bind_apart(Some("127.0.0.1:0".parse().unwrap())).unwrap();
        let strangers = Strangers::new(ports.strangers.unwrap()).unwrap();
        let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        // Several times what all queues together have room for.
        for count in 0..6_000_u32 {
            let first = 6 + u8::try_from(count % 2).unwrap();
            stranger.send_to(&[&[first][..], &[7; 1_000]].concat(), ports.local).unwrap();
        }
        let others: [&[u8]; 5] = [b"\x04a", b"\x05b", b"\x09c", b"\x0bd", b"\xc0e"];
        for other in others {
            stranger.send_to(other, ports.local).unwrap();
        }
        let mut here = Datagrams::new(ports.udp);
        here.strangers = Some(strangers);
        for other in others {
            let from = stranger.local_addr().unwrap();
            assert_eq!(here.arrived().await, Arrived::Datagram(from, Bytes::copy_from_slice(other)));
        }
        assert_eq!(here.arrived().await, Arrived::Strangers);
        let mut taken = 0;
        here.receive_strangers(false, &Clock::new(), |_, datagram| {
            assert!(matches!(datagram[0], 6 | 7) && datagram.len() == 1_001);
            taken += 1;
        });
        assert!(taken > 0);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn strangers_are_served_between_others_and_when_nobody_else_is_there() {
        let ports = Ports::bind_apart(None).unwrap();
        let (mut here, clock) = (Datagrams::new(ports.udp), Clock::new());
        here.strangers = Some(Strangers::new(ports.strangers.unwrap()).unwrap());
        let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for do_others_wait in [true, false, false] {
            stranger.send_to(b"\x06", ("127.0.0.1", ports.local.port())).unwrap();
            assert_eq!(here.arrived().await, Arrived::Strangers);
            let mut from = None;
            here.receive_strangers(do_others_wait, &clock, |remote, _| from = Some(remote));
            assert_eq!(from, stranger.local_addr().ok());
        }
    }
}
