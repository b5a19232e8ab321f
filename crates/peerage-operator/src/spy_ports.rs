//! The ports of spies: each visit has its own, so that nothing but the address could connect one with another, or with the operator.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use peerage_proto::operator::{Input, VisitId};
use peerage_wire::limits::MAX_DATAGRAM;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::config::MAX_SPY_ADDRESSES;
use crate::ledger::random;

/// Most datagrams that wait for the machine; what finds no room is lost, as on the way.
const MAX_WAITING: usize = 256;

/// A visit's socket of one family of addresses.
#[derive(Debug)]
struct Port {
    socket: Arc<UdpSocket>,
    reader: AbortHandle,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The sockets of all visits under way.
#[derive(Debug)]
pub(crate) struct SpyPorts {
    /// From which addresses of this computer spies come, one drawn for each visit; none: from any.
    addresses: Vec<IpAddr>,
    open: BTreeMap<(VisitId, bool), Port>,
    arrived: mpsc::Sender<Input>,
}

impl SpyPorts {
    /// Makes the sockets' owner; the receiver gets what arrives.
    pub(crate) fn new(addresses: Vec<IpAddr>) -> (Self, mpsc::Receiver<Input>) {
        let (arrived, receiver) = mpsc::channel(MAX_WAITING);
        let addresses = addresses.into_iter().take(MAX_SPY_ADDRESSES).collect();
        (Self { addresses, open: BTreeMap::new(), arrived }, receiver)
    }

    /// Sends a datagram from a visit's port, which is opened if it is the first.
    pub(crate) async fn send(
        &mut self,
        visit: VisitId,
        remote: SocketAddr,
        payload: &[u8],
    ) -> io::Result<()> {
        let key = (visit, remote.is_ipv6());
        let socket = match self.open.get(&key) {
            Some(port) => Arc::clone(&port.socket),
            None => {
                let port = self.open(visit, remote).await?;
                let socket = Arc::clone(&port.socket);
                self.open.insert(key, port);
                socket
            }
        };
        socket.send_to(payload, remote).await.map(drop)
    }

    /// Closes the ports of a visit.
    pub(crate) fn close(&mut self, visit: VisitId) {
        self.open.retain(|(of, _), _| *of != visit);
    }

    async fn open(&self, visit: VisitId, remote: SocketAddr) -> io::Result<Port> {
        let socket = Arc::new(UdpSocket::bind((self.address_towards(remote), 0)).await?);
        let (reading, arrived) = (Arc::clone(&socket), self.arrived.clone());
        let reader = tokio::spawn(async move {
            // One byte more than is allowed, so that a longer one is seen to be longer.
            let mut buffer = [0; MAX_DATAGRAM + 1];
            loop {
                // An error is the news that an earlier datagram did not reach anybody.
                let Ok((length, remote)) = reading.recv_from(&mut buffer).await else { continue };
                let payload = Bytes::copy_from_slice(buffer.get(..length).unwrap_or(&[]));
                let _ = arrived.try_send(Input::SpyDatagram { visit, remote, payload });
            }
        });
        Ok(Port { socket, reader: reader.abort_handle() })
    }

    /// Draws an address of this computer from which a visit comes.
    fn address_towards(&self, remote: SocketAddr) -> IpAddr {
        let apt: Vec<_> =
            self.addresses.iter().filter(|address| address.is_ipv6() == remote.is_ipv6()).collect();
        let n = usize::from(u16::from_be_bytes(random())).checked_rem(apt.len());
        let any = if remote.is_ipv6() {
            IpAddr::from(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::from(Ipv4Addr::UNSPECIFIED)
        };
        n.and_then(|n| apt.get(n)).map_or(any, |address| **address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 6.79: each visit has a port of its own, on the addresses that are given; what arrives names the visit.
    #[tokio::test]
    async fn each_visit_comes_from_a_port_of_its_own() {
        let there = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = there.local_addr().unwrap();
        let (mut ports, mut arrived) =
            SpyPorts::new(vec!["127.0.0.3".parse().unwrap(), "::1".parse().unwrap()]);
        let mut seen = Vec::new();
        for visit in [VisitId(1), VisitId(2), VisitId(1)] {
            ports.send(visit, address, b"hello").await.unwrap();
            let (length, from) = there.recv_from(&mut [0; 100]).await.unwrap();
            assert_eq!((length, from.ip()), (5, "127.0.0.3".parse::<IpAddr>().unwrap()));
            seen.push(from);
        }
        assert!(seen[0] == seen[2] && seen[0] != seen[1], "{seen:?}");
        there.send_to(b"answer", seen[1]).await.unwrap();
        let Some(Input::SpyDatagram { visit, remote, payload }) = arrived.recv().await else { panic!() };
        assert_eq!((visit, remote, &payload[..]), (VisitId(2), address, &b"answer"[..]));
        ports.close(VisitId(1));
        assert_eq!(ports.open.len(), 1);
    }
}
