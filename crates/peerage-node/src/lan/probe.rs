//! Empty datagrams that make the system ask for a hardware address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{MsgFlags, recv};
use peerage_proto::lan::Interface;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// The discard service (RFC 863): whoever runs it does nothing with what we send, and whoever does not says at once that
/// nobody listens there.
const DISCARD_PORT: u16 = 9;

/// Opens a socket whose datagrams go out on this interface and are dropped by the first router.
pub(super) fn open(interface: &Interface, is_ipv4: bool) -> io::Result<Socket> {
    let domain = if is_ipv4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
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
}

impl Probe {
    /// Sends the datagram.
    pub(super) fn start(interface: &Interface, address: IpAddr) -> io::Result<Self> {
        let socket = open(interface, address.is_ipv4())?;
        let any = if address.is_ipv4() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        socket.bind(&SocketAddr::from((any, 0)).into())?;
        socket.connect(&target(interface.index, address).into())?;
        socket.send(&[])?;
        Ok(Self { socket: UdpSocket::from_std(socket.into())? })
    }

    /// Waits for the reply. Cancelling loses nothing.
    pub(super) async fn reply(&self) -> Reply {
        let receive = || Ok(recv(self.socket.as_raw_fd(), &mut [0; 1], MsgFlags::empty())?);
        // An ICMP message makes the socket erroneous, not readable.
        match self.socket.async_io(Interest::READABLE | Interest::ERROR, receive).await {
            Ok(_) => Reply::Answered,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Reply::Answered,
            Err(_) => Reply::Unreachable,
        }
    }
}
