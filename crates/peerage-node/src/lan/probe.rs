//! Empty datagrams that make the system ask for a hardware address.
//!
//! Many devices say only now and then that nobody listens on a port (Linux: once a second, six times at once), so the silence of one that
//! used to say so means nothing yet. Such a device is also asked with the first packet of a TCP connection, whose answer is not counted out.

use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use peerage_proto::lan::Interface;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep_until};

/// The discard service (RFC 863): whoever runs it does nothing with what we send, and whoever does not says at once that
/// nobody listens there.
const DISCARD_PORT: u16 = 9;

/// How long a device that used to answer may be silent before it is asked in the other way. Raised, a page that opens many
/// connections waits longer for each that comes after the sixth; lowered, devices that are slow or asleep are asked twice for nothing.
const KNOCK_AFTER: Duration = Duration::from_millis(5);

/// Opens a socket whose datagrams go out on this interface and are dropped by the first router.
pub(super) fn open(interface: &Interface, is_ipv4: bool) -> io::Result<Socket> {
    near(interface, is_ipv4, Type::DGRAM, Protocol::UDP)
}

/// Opens a socket whose packets stay on the link of this interface.
fn near(interface: &Interface, is_ipv4: bool, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let domain = if is_ipv4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol))?;
    if is_ipv4 {
        socket.set_ttl_v4(1)?;
    } else {
        socket.set_unicast_hops_v6(1)?;
    }
    // Before Linux 5.7 this needs a privilege; the route to an on-link address mostly leads there anyway.
    if let Err(error) = socket.bind_device(Some(interface.name.as_bytes())) {
        tracing::debug!(interface = interface.name, %error, "a probe cannot be bound to its interface");
    }
    Ok(socket)
}

/// Sends one empty datagram; the socket may send to others too.
pub(super) fn send(socket: &Socket, interface: u32, address: IpAddr) -> io::Result<()> {
    socket.send_to(&[], &target(interface, address).into()).map(drop)
}

fn target(interface: u32, address: IpAddr) -> SocketAddr {
    match address {
        IpAddr::V4(v4) => SocketAddr::from((v4, DISCARD_PORT)),
        IpAddr::V6(v6) => {
            let scope = if v6.is_unicast_link_local() { interface } else { 0 };
            SocketAddrV6::new(v6, DISCARD_PORT, 0, scope).into()
        }
    }
}

/// How the probe of one address went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Something with this address answers: a datagram, or word that nobody listens on the port.
    Answered,
    /// The system could not reach it.
    Unreachable,
}

/// A probe of a single address, which hears of the reply.
#[derive(Debug)]
pub(super) struct Probe {
    socket: UdpSocket,
    knock: Option<Knock>,
}

/// The other way to ask.
#[derive(Debug)]
struct Knock {
    interface: Interface,
    address: IpAddr,
    due_at: Instant,
    /// Begun when it is due; none if the system refuses.
    stream: OnceLock<Option<TcpStream>>,
}

impl Probe {
    /// Sends the datagram. Whether the device `answers` as a rule decides whether it is asked in another way as well.
    pub(super) fn start(interface: &Interface, address: IpAddr, answers: bool) -> io::Result<Self> {
        let socket = open(interface, address.is_ipv4())?;
        let any = if address.is_ipv4() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        socket.bind(&SocketAddr::from((any, 0)).into())?;
        socket.connect(&target(interface.index, address).into())?;
        socket.send(&[])?;
        let knock = answers.then(|| Knock {
            interface: interface.clone(),
            address,
            due_at: Instant::now() + KNOCK_AFTER,
            stream: OnceLock::new(),
        });
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, knock })
    }

    /// Waits for the reply. Cancelling loses nothing.
    pub(super) async fn reply(&self) -> Reply {
        let knocked = async {
            match &self.knock {
                Some(knock) => knock.answered().await,
                None => pending().await,
            }
        };
        tokio::select! {
            reply = self.word() => reply,
            () = knocked => Reply::Answered,
        }
    }

    async fn word(&self) -> Reply {
        let receive = || Ok(recv(self.socket.as_raw_fd(), &mut [0; 1], MsgFlags::empty())?);
        // An ICMP message makes the socket erroneous, not readable.
        match self.socket.async_io(Interest::READABLE | Interest::ERROR, receive).await {
            Ok(_) => Reply::Answered,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Reply::Answered,
            Err(_) => Reply::Unreachable,
        }
    }
}

impl Knock {
    /// Waits until the device has taken or refused the connection, which is closed at once.
    async fn answered(&self) {
        sleep_until(self.due_at).await;
        // Without one, the datagram decides alone.
        let Some(stream) = self.stream.get_or_init(|| self.begin().ok()) else { return pending().await };
        let is_there = match stream.writable().await.and_then(|()| stream.take_error()) {
            Ok(Some(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
            Ok(None) => stream.peer_addr().is_ok(),
            Err(_) => false,
        };
        if !is_there {
            pending().await
        }
    }

    fn begin(&self) -> io::Result<TcpStream> {
        let socket = near(&self.interface, self.address.is_ipv4(), Type::STREAM, Protocol::TCP)?;
        match socket.connect(&target(self.interface.index, self.address).into()) {
            Err(error) if error.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => Err(error),
            Ok(()) | Err(_) => TcpStream::from_std(socket.into()),
        }
    }
}
