//! The groups in which the nodes of a LAN tell each other who is elected (Rule 6.25): one socket for each interface.
//!
//! A socket is opened when the first beacon is to be sent, since a node that takes part in no election has nothing to hear. Each
//! receives what arrives on its own interface alone and sends nothing beyond the link: TTL and hop limit are 1. Several nodes
//! on one machine share the port and hear each other, as multicast is looped back.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;

use bytes::Bytes;
use peerage_proto::lan::{Interface, InterfaceKind};
use peerage_wire::beacon::{GROUP_V4, GROUP_V6, MAX_BEACON};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Most datagrams that wait until the node has time for them; beyond, they are lost as on a crowded network.
const MAX_WAITING: usize = 64;

/// Room for one byte more than a beacon has, so that what is too long is seen to be.
const RECEIVE_BYTES: usize = MAX_BEACON + 1;

/// A datagram of a group: the interface on which it came, who sent it, and what.
pub type Received = (u32, SocketAddr, Bytes);

/// The groups of all interfaces.
#[derive(Debug)]
pub struct Beacons {
    port: u16,
    /// The address of each interface that is up; of IPv4 if it has one, as locations have (Rule 1.6).
    interfaces: BTreeMap<u32, IpAddr>,
    groups: BTreeMap<u32, Group>,
    sender: mpsc::Sender<Received>,
    receiver: mpsc::Receiver<Received>,
}

#[derive(Debug)]
struct Group {
    own: IpAddr,
    to: SocketAddr,
    socket: Arc<UdpSocket>,
    reader: JoinHandle<()>,
}

impl Drop for Group {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Beacons {
    /// Makes the groups of a port; nothing is opened before something is sent.
    pub fn new(port: u16) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        Self { port, interfaces: BTreeMap::new(), groups: BTreeMap::new(), sender, receiver }
    }

    /// The computer's networks are these now. Groups of those that are gone, or have another address, are left.
    pub fn networks(&mut self, interfaces: &[Interface]) {
        let usable = interfaces.iter().filter(|i| i.up && i.kind != InterfaceKind::Loopback);
        let addresses = usable.filter_map(|interface| Some((interface.index, own_address(interface)?)));
        self.interfaces = addresses.collect();
        self.groups.retain(|index, group| self.interfaces.get(index) == Some(&group.own));
    }

    /// Sends to the group of an interface, and from then on receives from it.
    ///
    /// # Errors
    /// If the interface carries no multicast, or the system forbids it. That a queue is full is no error.
    pub fn send(&mut self, interface: u32, payload: &[u8]) -> io::Result<()> {
        let group = match self.groups.entry(interface) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(vacant) => {
                let own = self.interfaces.get(&interface).ok_or(io::ErrorKind::AddrNotAvailable)?;
                vacant.insert(Group::join(interface, *own, self.port, self.sender.clone())?)
            }
        };
        // Not through the runtime, which has not seen yet that a new socket can send.
        match SockRef::from(&*group.socket).send_to(payload, &group.to.into()) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits for the next datagram of any group. May be dropped while it waits without losing one.
    pub async fn receive(&mut self) -> Received {
        match self.receiver.recv().await {
            Some(received) => received,
            // Cannot be: the other end is held here as well.
            None => std::future::pending().await,
        }
    }
}

impl Group {
    fn join(index: u32, own: IpAddr, port: u16, sender: mpsc::Sender<Received>) -> io::Result<Self> {
        let (socket, to) = match own {
            IpAddr::V4(own) => (group_v4(index, own, port)?, SocketAddr::from((GROUP_V4, port))),
            IpAddr::V6(_) => {
                let to = SocketAddrV6::new(GROUP_V6, port, 0, index);
                (group_v6(index, to)?, to.into())
            }
        };
        socket.set_nonblocking(true)?;
        let socket = Arc::new(UdpSocket::from_std(socket.into())?);
        let reader = tokio::spawn(read(index, Arc::clone(&socket), sender));
        Ok(Self { own, to, socket, reader })
    }
}

async fn read(index: u32, socket: Arc<UdpSocket>, sender: mpsc::Sender<Received>) {
    let mut buffer = [0; RECEIVE_BYTES];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((count, from)) => {
                let payload = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
                // If too many wait, this one is lost.
                let _ = sender.try_send((index, from, payload));
            }
            Err(error) => {
                tracing::debug!(%error, index, "the group of an interface cannot be read");
                return;
            }
        }
    }
}

fn group_v4(index: u32, own: Ipv4Addr, port: u16) -> io::Result<Socket> {
    let socket = shared(Domain::IPV4)?;
    // Without it, Linux would give each socket what any other has joined, from every interface.
    #[cfg(target_os = "linux")]
    socket.set_multicast_all_v4(false)?;
    socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(index))?;
    socket.set_multicast_if_v4(&own)?;
    socket.set_multicast_ttl_v4(1)?;
    socket.set_multicast_loop_v4(true)?;
    // Bound to the group, a socket gets nothing that was sent to this computer alone, from wherever.
    let at = if cfg!(unix) { GROUP_V4 } else { Ipv4Addr::UNSPECIFIED };
    socket.bind(&SocketAddrV4::new(at, port).into())?;
    Ok(socket)
}

fn group_v6(index: u32, to: SocketAddrV6) -> io::Result<Socket> {
    let socket = shared(Domain::IPV6)?;
    socket.set_only_v6(true)?;
    #[cfg(target_os = "linux")]
    socket.set_multicast_all_v6(false)?;
    socket.join_multicast_v6(&GROUP_V6, index)?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_hops_v6(1)?;
    socket.set_multicast_loop_v6(true)?;
    let at =
        if cfg!(unix) { to } else { SocketAddrV6::new(std::net::Ipv6Addr::UNSPECIFIED, to.port(), 0, 0) };
    socket.bind(&at.into())?;
    Ok(socket)
}

/// Opens a socket whose port several nodes of one machine can have.
fn shared(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// Returns the address by which an interface takes part, of IPv4 if it has one.
fn own_address(interface: &Interface) -> Option<IpAddr> {
    let own = interface.addresses.iter().map(|own| own.address);
    own.clone().find(IpAddr::is_ipv4).or_else(|| own.clone().next())
}
