//! Tunnels over real sockets on loopback: two nodes' links, a device, an application.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use peerage_proto::session::{self, Budget};
use peerage_wire::codec::{Candidate, Protocol, Transport};
use peerage_wire::frame::Code;
use peerage_wire::id::{DeviceId, Domain, SessionId, sha256};
use peerage_wire::keys::IdentityKey;
use peerage_wire::open::Open;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Counters, datagrams, pump, serve};
use crate::clock::Clock;
use crate::connect::Connector;
use crate::link::{LinkConfig, LinkEvent, Links, PeerLink, Stream, place};
use crate::tls::Tls;

const DOMAIN: Domain = Domain(7);
const USER: u8 = 1;
const TUNNEL_NODE: u8 = 2;

mod bytes_arrive {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sixty_four_mebibytes_cross_both_ways_at_once_and_are_the_same() {
        const BYTES: usize = 64 << 20;
        let device = listener().await;
        let site = Site::with_device(device.local_addr().unwrap(), Protocol::Tcp).await;
        let at_device = tokio::spawn(async move {
            let (socket, _) = device.accept().await.unwrap();
            exchange(socket, b'd', BYTES).await
        });
        let at_application = exchange(site.application().await, b'a', BYTES).await;
        assert_eq!(at_application, pattern_hash(b'd', BYTES));
        assert_eq!(at_device.await.unwrap(), pattern_hash(b'a', BYTES));
    }

    #[tokio::test]
    async fn two_hundred_tunnels_share_a_link() {
        let device = echo().await;
        let site = Site::with_device(device, Protocol::Tcp).await;
        let mut tunnels = JoinSet::new();
        for number in 0..200_u8 {
            let socket = site.application().await;
            tunnels.spawn(
                async move { exchange(socket, number, 100_000).await == pattern_hash(number, 100_000) },
            );
        }
        assert!(tunnels.join_all().await.into_iter().all(|same| same));
        assert_eq!(site.user.count(), 1);
    }

    #[tokio::test]
    async fn an_application_that_reads_nothing_holds_up_nobody_else() {
        let device = listener().await;
        let site = Site::with_device(device.local_addr().unwrap(), Protocol::Tcp).await;
        let slow = site.application().await;
        let (mut flood, _) = device.accept().await.unwrap();
        // More than all windows and socket buffers hold: it will not be taken.
        let flooding = tokio::spawn(async move { flood.write_all(&vec![0; 256 << 20]).await });
        let quick = site.application().await;
        let (socket, _) = device.accept().await.unwrap();
        let at_device = tokio::spawn(exchange(socket, b'd', 4 << 20));
        assert_eq!(exchange(quick, b'a', 4 << 20).await, pattern_hash(b'd', 4 << 20));
        assert_eq!(at_device.await.unwrap(), pattern_hash(b'a', 4 << 20));
        assert!(!flooding.is_finished());
        drop(slow);
        // The one that went away is a reset for the device.
        assert!(flooding.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_request_is_counted_in_both_directions() {
        let device = echo().await;
        let site = Site::with_device(device, Protocol::Tcp).await;
        exchange(site.application().await, 1, 10_000).await;
        assert_eq!(site.counters.sent.load(Ordering::Relaxed), 10_000);
        assert_eq!(site.counters.received.load(Ordering::Relaxed), 10_000);
    }
}

mod ends_are_exact {
    use super::*;

    #[tokio::test]
    async fn the_applications_end_reaches_the_device_which_may_still_answer() {
        let device = listener().await;
        let site = Site::with_device(device.local_addr().unwrap(), Protocol::Tcp).await;
        let mut application = site.application().await;
        let (mut at_device, _) = device.accept().await.unwrap();
        application.write_all(b"last words").await.unwrap();
        application.shutdown().await.unwrap();
        let mut heard = Vec::new();
        at_device.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"last words");
        at_device.write_all(&[7; 300_000]).await.unwrap();
        drop(at_device);
        let mut answer = Vec::new();
        application.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, [7; 300_000]);
    }

    #[tokio::test]
    async fn the_devices_end_reaches_the_application_which_may_still_speak() {
        let device = listener().await;
        let site = Site::with_device(device.local_addr().unwrap(), Protocol::Tcp).await;
        let mut application = site.application().await;
        let (mut at_device, _) = device.accept().await.unwrap();
        at_device.shutdown().await.unwrap();
        assert_eq!(application.read(&mut [0; 8]).await.unwrap(), 0);
        application.write_all(b"still here").await.unwrap();
        drop(application);
        let mut heard = Vec::new();
        at_device.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"still here");
    }

    #[tokio::test]
    async fn a_reset_by_the_application_is_a_reset_at_the_device() {
        let device = listener().await;
        let site = Site::with_device(device.local_addr().unwrap(), Protocol::Tcp).await;
        let application = site.application().await;
        let (mut at_device, _) = device.accept().await.unwrap();
        pump::reset(&application);
        drop(application);
        let error = at_device.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_reset_by_the_device_is_a_reset_at_the_application() {
        let device = listener().await;
        let site = Site::with_device(device.local_addr().unwrap(), Protocol::Tcp).await;
        let mut application = site.application().await;
        let (at_device, _) = device.accept().await.unwrap();
        pump::reset(&at_device);
        drop(at_device);
        let error = application.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_reset_after_a_half_close_still_crosses() {
        let device = listener().await;
        let site = Site::with_device(device.local_addr().unwrap(), Protocol::Tcp).await;
        let mut application = site.application().await;
        let (mut at_device, _) = device.accept().await.unwrap();
        application.shutdown().await.unwrap();
        assert_eq!(at_device.read(&mut [0; 8]).await.unwrap(), 0);
        pump::reset(&at_device);
        drop(at_device);
        let error = application.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_device_that_refuses_is_named_as_the_reason() {
        let device = listener().await;
        let address = device.local_addr().unwrap();
        drop(device);
        let site = Site::with_device(address, Protocol::Tcp).await;
        let stream = site.link().await.open(&open()).unwrap();
        assert_eq!(stream.opened().await, Err(Code::DeviceRefused));
    }

    #[tokio::test]
    async fn a_tunnel_that_the_node_closes_is_cut_at_once_on_both_sides() {
        let device = listener().await;
        let site = Site::with_device(device.local_addr().unwrap(), Protocol::Tcp).await;
        let tunnels = super::super::Tunnels::default();
        let (mut application, inner) = tcp_pair().await;
        let stream = Arc::new(site.link().await.open(&open()).unwrap());
        let id = tunnels.add(&stream);
        let pumping = tokio::spawn(async move { pump::pump(inner, &stream, &Counters::default()).await });
        let (mut at_device, _) = device.accept().await.unwrap();
        tunnels.close(id, Code::Revoked);
        assert_eq!(
            application.read(&mut [0; 8]).await.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionReset
        );
        assert_eq!(
            at_device.read(&mut [0; 8]).await.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionReset
        );
        assert_eq!(pumping.await.unwrap(), Err(Code::Revoked));
        assert_eq!(tunnels.count(), 0);
    }

    #[tokio::test]
    async fn when_the_tunnel_node_stops_its_tunnels_are_reset_and_not_ended() {
        let device = listener().await;
        let site = Site::with_device(device.local_addr().unwrap(), Protocol::Tcp).await;
        let mut application = site.application().await;
        let (_at_device, _) = device.accept().await.unwrap();
        site.tunnel_node.close().await;
        assert_eq!(
            application.read(&mut [0; 8]).await.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionReset
        );
    }
}

mod the_first_bytes_travel_with_the_request {
    use super::*;
    use crate::tunnel::early::{Early, Failed};
    use peerage_proto::session::{Read, State};

    #[tokio::test]
    async fn and_are_there_before_the_tunnel_is_granted() {
        let (user, mut asked, address) = pair().await;
        let (mut application, inner) = tcp_pair().await;
        application.write_all(b"a request").await.unwrap();
        let stream = dial(&user, address).await.open(&open()).unwrap();
        let opening = tokio::spawn(async move {
            let mut early = Early::default();
            let opened = early.open(&inner, &stream).await;
            (opened, early.len(), early.has_ended(), inner, stream)
        });
        let device = next(&mut asked).await;
        let mut pieces = Vec::new();
        while pieces.is_empty() {
            device.changed().await;
            device.read(&mut pieces, 100);
        }
        assert_eq!((device.state(), pieces.concat().as_slice()), (State::Asked, &b"a request"[..]));
        assert!(!opening.is_finished());
        device.confirm();
        let (opened, length, has_ended, _inner, _stream) = opening.await.unwrap();
        assert_eq!((opened, length, has_ended), (Ok(()), 9, false));
    }

    #[tokio::test]
    async fn and_are_said_again_when_another_way_is_tried() {
        let (user, mut asked, address) = pair().await;
        let (mut application, inner) = tcp_pair().await;
        application.write_all(b"all of it").await.unwrap();
        application.shutdown().await.unwrap();
        let link = dial(&user, address).await;
        let opening = tokio::spawn(async move {
            let mut early = Early::default();
            let first = link.open(&open()).unwrap();
            assert_eq!(early.open(&inner, &first).await, Err(Failed::Refused(Code::DeviceUnreachable)));
            let second = link.open(&open()).unwrap();
            (early.open(&inner, &second).await, early.has_ended(), second)
        });
        let refused = next(&mut asked).await;
        while refused.stats().read_bytes == 0 {
            refused.read(&mut Vec::new(), 100);
            refused.changed().await;
        }
        refused.reset(Code::DeviceUnreachable);
        let granted = next(&mut asked).await;
        granted.confirm();
        let mut pieces = Vec::new();
        while granted.read(&mut pieces, 100) != Read::Finished {
            granted.changed().await;
        }
        assert_eq!(pieces.concat(), b"all of it");
        let (opened, has_ended, _second) = opening.await.unwrap();
        assert_eq!((opened, has_ended), (Ok(()), true));
    }

    async fn pair() -> (Links, mpsc::Receiver<LinkEvent>, SocketAddr) {
        let (tunnel_node, asked) = links(TUNNEL_NODE);
        let socket = listener().await;
        let address = socket.local_addr().unwrap();
        tunnel_node.serve(socket);
        // It is not closed before the test ends.
        std::mem::forget(tunnel_node);
        let (user, events) = links(USER);
        std::mem::forget(events);
        (user, asked, address)
    }

    async fn dial(user: &Links, address: SocketAddr) -> PeerLink {
        let identity = key(TUNNEL_NODE);
        user.connect(identity.node_id(DOMAIN), identity.public(), &[tcp(address)]).await.unwrap()
    }

    async fn next(asked: &mut mpsc::Receiver<LinkEvent>) -> Stream {
        loop {
            if let LinkEvent::OpenAsked { stream, .. } = asked.recv().await.unwrap() {
                return stream;
            }
        }
    }
}

mod datagrams_cross {
    use super::*;

    #[tokio::test]
    async fn both_ways_and_each_as_it_was() {
        let device = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let site = Site::with_device(device.local_addr().unwrap(), Protocol::Udp).await;
        let local = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let application = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (sender, incoming) = mpsc::channel(datagrams::MAX_WAITING);
        let stream = site.link().await.open(&open()).unwrap();
        let to = application.local_addr().unwrap();
        tokio::spawn(async move {
            let mut flow = datagrams::Flow { incoming, outgoing: (&local, to), was_open: false };
            datagrams::pump_flow(&mut flow, &stream, &Counters::default()).await
        });
        for size in [0_usize, 1, 1_500] {
            sender.send(vec![9; size].into()).await.unwrap();
            let mut buffer = [0; 2_000];
            let (count, tunnel_node) = device.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[..count], vec![9; size]);
            device.send_to(&vec![8; size], tunnel_node).await.unwrap();
            let count = application.recv(&mut buffer).await.unwrap();
            assert_eq!(buffer[..count], vec![8; size]);
        }
    }
}

/// A user-node and a tunnel-node, which serves one device.
struct Site {
    user: Links,
    tunnel_node: Links,
    address: SocketAddr,
    counters: Arc<Counters>,
    _events: mpsc::Receiver<LinkEvent>,
}

impl Site {
    async fn with_device(device: SocketAddr, protocol: Protocol) -> Self {
        let (tunnel_node, mut asked) = links(TUNNEL_NODE);
        let socket = listener().await;
        let address = socket.local_addr().unwrap();
        tunnel_node.serve(socket);
        tokio::spawn(async move {
            while let Some(event) = asked.recv().await {
                if let LinkEvent::OpenAsked { stream, open: asked } = event {
                    assert_eq!((asked.device, asked.service.as_str()), (DeviceId([3; 32]), "raw"));
                    tokio::spawn(serve::serve(Arc::new(stream), device, protocol));
                }
            }
        });
        let (user, _events) = links(USER);
        Self { user, tunnel_node, address, counters: Arc::default(), _events }
    }

    async fn link(&self) -> PeerLink {
        let identity = key(TUNNEL_NODE);
        self.user.connect(identity.node_id(DOMAIN), identity.public(), &[tcp(self.address)]).await.unwrap()
    }

    /// Opens a tunnel and returns the application's end.
    async fn application(&self) -> TcpStream {
        let (application, inner) = tcp_pair().await;
        let stream: Stream = self.link().await.open(&open()).unwrap();
        let counters = Arc::clone(&self.counters);
        tokio::spawn(async move { pump::pump(inner, &stream, &counters).await });
        application
    }
}

fn tcp(address: SocketAddr) -> Candidate {
    place(Transport::Tcp, address)
}

fn key(seed: u8) -> IdentityKey {
    IdentityKey::from_seed(&[seed; 32])
}

fn links(seed: u8) -> (Links, mpsc::Receiver<LinkEvent>) {
    let identity = key(seed);
    Links::new(LinkConfig {
        local: identity.node_id(DOMAIN),
        tls: Tls::new(&identity).unwrap(),
        session: session::Config { max_window: session::WINDOW_MAX, budget: Budget::new(256 << 20) },
        clock: Clock::new(),
        connector: Connector::default(),
    })
}

fn open() -> Open {
    let mut id = [0; 16];
    getrandom::fill(&mut id).unwrap();
    Open { session: SessionId(id), device: DeviceId([3; 32]), service: "raw".to_owned() }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = listener().await;
    let one = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (other, _) = listener.accept().await.unwrap();
    one.set_nodelay(true).unwrap();
    (one, other)
}

/// A device that sends back what it receives.
async fn echo() -> SocketAddr {
    let device = listener().await;
    let address = device.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = device.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// Sends a pattern and its end while receiving; returns the hash of what was received.
async fn exchange(socket: TcpStream, seed: u8, bytes: usize) -> [u8; 32] {
    let (mut read, mut write) = socket.into_split();
    let sending = tokio::spawn(async move {
        write.write_all(&pattern(seed, bytes)).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    sending.await.unwrap();
    sha256(&[&received])
}

/// Bytes that differ at every offset, so that none can be lost, doubled or moved unnoticed.
fn pattern(seed: u8, bytes: usize) -> Vec<u8> {
    let words = (0_u64..).map(|n| (n ^ (u64::from(seed) << 56)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.take(bytes.div_ceil(8)).flat_map(u64::to_le_bytes).take(bytes).collect()
}

fn pattern_hash(seed: u8, bytes: usize) -> [u8; 32] {
    sha256(&[&pattern(seed, bytes)])
}
