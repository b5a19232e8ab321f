//! Links on QUIC over real sockets: with packets lost, swallowed and out of order, and with strangers who knock.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use peerage_wire::codec::Transport;
use peerage_wire::keys::IdentityKey;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;

use super::super::mobility::{DOMAIN, exchange, expected, key, links, open};
use super::super::{LinkEvent, Links, Path, PeerLink, Stream, Via, dial, place};
use super::*;
use crate::carrier::{Intake, Streams, TlsIntake};
use crate::clock::Clock;
use crate::connect::Connector;
use crate::relay::{Caps, Legs};
use crate::udp::{Datagrams, Ports};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_carries_bytes_both_ways() {
    let mut site = Site::new(|_| true).await;
    let mut ends = site.open().await;
    let path = Path { remote: site.wire.address, via: Via::Direct };
    assert_eq!(ends.0.path(), Some(path));
    let (up, down) = exchange(&mut ends, 3_000_000).await;
    assert_eq!((up, down), (expected(b'u', 3_000_000), expected(b'd', 3_000_000)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_where_packets_are_lost() {
    // One packet in twenty either way, those of the handshake included.
    let mut site = Site::new(|count| count % 20 != 3).await;
    let mut first = site.open().await;
    let mut second = site.open().await;
    let (first, second) = tokio::join!(exchange(&mut first, 700_000), exchange(&mut second, 700_000));
    assert_eq!(first, (expected(b'u', 700_000), expected(b'd', 700_000)));
    assert_eq!(second, first);
    assert_eq!(site.user.links.count(), 1, "one connection for both");
}

/// Rule 7.35: what ends with the link is told before the link's own end. Nothing is lost here, because farewells take two seconds at most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_shuts_down_says_so_to_each_tunnel() {
    let mut site = Site::new(|_| true).await;
    let mut ends = Vec::new();
    for _ in 0..20 {
        ends.push(site.open().await);
    }
    site.node.links.close().await;
    for (user, _) in ends {
        let end = loop {
            if let peerage_proto::session::State::Ended(end) = user.state() {
                break end;
            }
            user.changed().await;
        };
        assert_eq!(end.code(), Some(Code::Shutdown));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_leaves_a_path_that_falls_silent_and_loses_nothing() {
    let mut site = Site::new(|_| true).await;
    let mut ends = site.open().await;
    // From here on nothing arrives by UDP; TCP works, which nobody has tried so far.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = place(Transport::Tcp, listener.local_addr().unwrap());
    site.node.links.serve(listener);
    site.wire.swallow(true);
    site.user.links.set_path(site.node.id(), site.node.key.public(), &[tcp]);
    let (up, down) = exchange(&mut ends, 500_000).await;
    // By UDP none of it could come.
    assert_eq!((up, down), (expected(b'u', 500_000), expected(b'd', 500_000)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_moves_to_tcp_once_that_is_there() {
    let mut site = Site::new(|_| true).await;
    let mut ends = site.open().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = place(Transport::Tcp, listener.local_addr().unwrap());
    site.node.links.serve(listener);
    // It is looked for again after a while, and TCP alone.
    site.user.links.set_path(site.node.id(), site.node.key.public(), &[site.wire.place(), tcp]);
    while ends.0.path().is_none_or(|path| path.remote != tcp.address) {
        ends.0.moved().await;
    }
    let (up, down) = exchange(&mut ends, 100_000).await;
    assert_eq!((up, down), (expected(b'u', 100_000), expected(b'd', 100_000)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tcp_place_that_swallows_everything_does_not_hold_up_quic() {
    let mut site = Site::new(|_| true).await;
    // Its queue is full at once and nobody accepts, so connections are never made.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let silent = full.local_addr().unwrap().as_socket().unwrap();
    let _first = tokio::net::TcpStream::connect(silent).await.unwrap();
    let places = [place(Transport::Tcp, silent), site.wire.place()];
    let link = site.user.links.connect(site.node.id(), site.node.key.public(), &places).await.unwrap();
    assert_eq!(link.remote(), site.wire.address);
    site.open_on(&link).await;
}

#[tokio::test]
async fn datagrams_of_a_tunnel_travel_by_themselves() {
    let mut site = Site::new(|_| true).await;
    let (user, device) = site.open().await;
    for length in [0, 1, 1_000, 1_500] {
        let sent = Bytes::from(vec![7; length]);
        user.write_datagram(sent.clone()).unwrap();
        assert_eq!(next_datagram(&device).await, sent, "the longest goes on the stream");
        device.write_datagram(sent.clone()).unwrap();
        assert_eq!(next_datagram(&user).await, sent);
    }
}

#[tokio::test]
async fn messages_arrive_beside_quic_and_tell_the_plain_address() {
    let mut site = Site::new(|_| true).await;
    let _ends = site.open().await;
    let (near, far) = (site.user.address, site.node.address);
    site.user.datagrams.send(far, Bytes::from_static(b"\x05hello"));
    assert_eq!(site.node.datagrams.receive().await, (near, Bytes::from_static(b"\x05hello")));
    // Not one of ours, and not QUIC: the node counts it.
    site.user.datagrams.send(far, Bytes::from_static(b"\xa0 nobody's"));
    assert_eq!(site.node.datagrams.receive().await, (near, Bytes::from_static(b"\xa0 nobody's")));
}

/// Rules 6.97 and 7.25: the tunnel leaves the relay for a path as soon as checks have found it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_is_found_takes_the_tunnel_over_from_a_relay_and_its_end_is_told() {
    let mut site = Site::new(|_| true).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = listener.local_addr().unwrap();
    site.node.links.serve(listener);
    let link = site.relayed(relay).await;
    let mut ends = site.open_on(&link).await;
    assert_eq!(ends.0.path(), Some(Path { remote: relay, via: Via::Relay }));
    let (peer, remote) = (site.node.id(), site.wire.address);
    let identity = site.node.key.public();
    let found = peerage_proto::path::Path {
        peer,
        identity,
        remote,
        role: peerage_proto::path::PathRole::Dial,
        kind: peerage_proto::path::PathKind::Punched,
    };
    site.user.links.path_found(&found);
    ends.0.moved().await;
    assert_eq!(ends.0.path(), Some(Path { remote, via: Via::Punched }));
    let (up, down) = exchange(&mut ends, 100_000).await;
    assert_eq!((up, down), (expected(b'u', 100_000), expected(b'd', 100_000)));
    // Found once more, it is not dialled once more.
    let dialled = site.user.links.count();
    site.user.links.path_found(&found);
    assert_eq!(site.user.links.count(), dialled);
    site.node.links.close().await;
    let mut used = Vec::new();
    while used.len() < 2 {
        match site.user.events.recv().await.unwrap() {
            LinkEvent::PathUsed { peer, remote } => used.push((true, peer, remote)),
            LinkEvent::PathUnused { peer, remote } => used.push((false, peer, remote)),
            LinkEvent::Up(_)
            | LinkEvent::Down(_)
            | LinkEvent::Head(_)
            | LinkEvent::RelayLost(_)
            | LinkEvent::OpenAsked { .. }
            | LinkEvent::PathWanted { .. } => {}
        }
    }
    assert_eq!(used, [(true, peer, remote), (false, peer, remote)]);
}

/// A path is often found before anybody has asked for a link; it is where the first dial goes then.
#[tokio::test]
async fn a_path_that_was_found_before_is_dialled_until_it_is_lost() {
    let site = Site::new(|_| true).await;
    let (peer, identity) = (site.node.id(), site.node.key.public());
    let role = peerage_proto::path::PathRole::Dial;
    let kind = peerage_proto::path::PathKind::Mapped;
    let found = peerage_proto::path::Path { peer, identity, remote: site.wire.address, role, kind };
    site.user.links.path_found(&found);
    let link = site.user.links.connect(peer, identity, &[]).await.unwrap();
    assert_eq!(link.path(), Path { remote: site.wire.address, via: Via::Mapped });
    let other = End::new(4, None);
    other.links.path_found(&found);
    other.links.path_lost(&found);
    assert!(other.links.connect(peer, identity, &[]).await.is_err());
}

#[tokio::test]
async fn a_peer_with_another_key_is_not_the_one_that_was_dialled() {
    let site = Site::new(|_| true).await;
    let wanted = key(9);
    let result = site.user.links.connect(wanted.node_id(DOMAIN), wanted.public(), &[site.wire.place()]).await;
    assert!(matches!(result, Err(super::super::DialError::Failed { .. })), "{result:?}");
    assert_eq!(site.user.links.count(), 0);
}

/// Rule 7.36
#[tokio::test]
async fn where_nothing_is_served_there_is_no_link_and_no_answer() {
    let (legs, _news) = Legs::new(Caps::default(), Clock::new());
    let door = Door::new(TlsIntake::new(Intake::new(Streams::new(Connector::default()).0, legs)).unwrap());
    let node = End::new(2, Some(door.clone()));
    let user = End::new(1, None);
    let wire = Wire::new(node.address, |_| true).await;
    let places = [wire.place()];
    let dial = user.links.connect(node.id(), node.key.public(), &places);
    // Nothing comes back: the dial goes on until the door opens.
    let opens = async {
        wire.passed(2).await;
        assert_eq!(wire.answered(), 0);
        door.set(true, false);
    };
    let (link, ()) = tokio::join!(dial, opens);
    assert_eq!(link.unwrap().remote(), wire.address);
}

/// Rule 7.36: first packets cost nothing and may bear any address, but do not shut out others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_begin_handshakes_and_fall_silent_leave_room_for_others() {
    let mut site = Site::new(|_| true).await;
    let deaf = Wire::new(site.node.address, |_| true).await;
    deaf.deafen();
    let stranger = End::new(3, None);
    let mut knocking = JoinSet::new();
    for _ in 0..MAX_UNPROVEN + 4 {
        let (links, at) = (stranger.links.clone(), deaf.place());
        let (id, identity) = (site.node.id(), site.node.key.public());
        knocking.spawn(async move {
            let quic = links.inner.quic.get().unwrap();
            let _ = quic.connect(&links.inner.config.tls, identity, at.address).await;
            id
        });
    }
    // As many as are let in, and some more that are told to prove their address.
    deaf.swallowed(MAX_UNPROVEN as u64 + 4).await;
    let mut ends = site.open().await;
    let (up, down) = exchange(&mut ends, 10_000).await;
    assert_eq!((up, down), (expected(b'u', 10_000), expected(b'd', 10_000)));
    knocking.abort_all();
}

#[tokio::test]
async fn garbage_on_the_streams_of_a_member_ends_its_link_and_nothing_else() {
    let mut site = Site::new(|_| true).await;
    let hello = {
        use peerage_wire::frame::{Frame, Hello, LinkFrame, VERSION};
        let (sender, receiver) = (key(1).node_id(DOMAIN), site.node.id());
        bytes_of(&Frame::Link(LinkFrame::Hello(Hello { version: VERSION, sender, receiver })))
    };
    let leave = {
        use peerage_wire::frame::{Frame, StreamFrame, StreamId};
        bytes_of(&Frame::Stream(StreamId::FIRST, StreamFrame::Leave))
    };
    let streams: [&[&[u8]]; 6] = [
        &[&[0xff; 64]],
        // A session's frame among those of the link.
        &[&hello, &leave],
        // A stream that does not begin, one that is none, and one that ends too soon.
        &[&hello, b"", &leave],
        &[&hello, b"", &[0xee; 40]],
        &[&hello, b"", b"\x10\x00"],
        &[&hello, b"", &hello],
    ];
    for pieces in streams {
        let quic = site.user.links.inner.quic.get().unwrap();
        let tls = &site.user.links.inner.config.tls;
        let connection = quic.connect(tls, site.node.key.public(), site.wire.address).await.unwrap();
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        for piece in pieces {
            if piece.is_empty() {
                send = connection.open_bi().await.unwrap().0;
            } else {
                send.write_all(piece).await.unwrap();
            }
        }
        let _ = send.finish();
        let ended = connection.closed().await;
        assert!(matches!(ended, quinn::ConnectionError::ApplicationClosed(_)), "{ended}");
    }
    while let Ok(event) = site.node.events.try_recv() {
        assert!(!matches!(event, LinkEvent::OpenAsked { .. }));
    }
    site.open().await;
}

fn bytes_of(frame: &peerage_wire::frame::Frame) -> Vec<u8> {
    let encoded = frame.encode();
    [&encoded.header[..], &encoded.payload].concat()
}

async fn next_datagram(stream: &Stream) -> Bytes {
    loop {
        if let Some(datagram) = stream.read_datagram() {
            return datagram;
        }
        stream.changed().await;
    }
}

/// A node with nothing but its links.
struct End {
    key: IdentityKey,
    links: Links,
    events: mpsc::Receiver<LinkEvent>,
    datagrams: Datagrams,
    address: SocketAddr,
}

impl End {
    fn new(seed: u8, door: Option<Door>) -> Self {
        let key = key(seed);
        let (links, events) = links(&key);
        let ports = Ports::bind(Some("127.0.0.1:0".parse().unwrap())).unwrap();
        let (datagrams, socket) = Datagrams::beside_quic((ports.udp, None), false).unwrap();
        links.use_quic(socket, door).unwrap();
        Self { key, links, events, datagrams, address: ports.local }
    }

    fn id(&self) -> NodeId {
        self.key.node_id(DOMAIN)
    }
}

/// A tunnel-node that is reached by UDP alone, a user-node, and the wire between them.
struct Site {
    user: End,
    node: End,
    wire: Wire,
}

impl Site {
    async fn new(passes: fn(u64) -> bool) -> Self {
        let (user, node) = (End::new(1, None), End::new(2, None));
        let wire = Wire::new(node.address, passes).await;
        Self { user, node, wire }
    }

    async fn open(&mut self) -> (Arc<Stream>, Arc<Stream>) {
        let places = [self.wire.place()];
        let link = self.user.links.connect(self.node.id(), self.node.key.public(), &places).await.unwrap();
        self.open_on(&link).await
    }

    /// Makes a link that counts as relayed.
    async fn relayed(&self, relay: SocketAddr) -> PeerLink {
        let inner = &self.user.links.inner;
        let identity = self.node.key.public();
        let channel = dial::connect_channel(&inner.config, identity, relay).await.unwrap();
        let permit = Arc::clone(&inner.permits).try_acquire_owned().unwrap();
        let standing = standing(Side::Client, Purpose::Shared, PathKind::Relayed);
        let ends = (channel.socket().local_addr().unwrap(), relay, Via::Relay);
        let connected = Connected::Tcp(Box::new(channel));
        inner.start(&inner.peer(self.node.id()), standing, connected, ends, (permit, None));
        self.user.links.connect(self.node.id(), identity, &[]).await.unwrap()
    }

    async fn open_on(&mut self, link: &PeerLink) -> (Arc<Stream>, Arc<Stream>) {
        let user = Arc::new(link.open(&open()).unwrap());
        let device = loop {
            if let LinkEvent::OpenAsked { stream, .. } = self.node.events.recv().await.unwrap() {
                break Arc::new(stream);
            }
        };
        device.confirm();
        assert_eq!(user.opened().await, Ok(()));
        (user, device)
    }
}

/// A path for datagrams that loses what a test wants.
#[derive(Clone)]
struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    passes: fn(u64) -> bool,
    /// Nothing arrives any more, or nothing that comes back.
    swallows: AtomicBool,
    is_deaf: AtomicBool,
    forth: AtomicU64,
    back: AtomicU64,
    changed: tokio::sync::Notify,
}

impl Wire {
    async fn new(target: SocketAddr, passes: fn(u64) -> bool) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = socket.local_addr().unwrap();
        let shared = Arc::new(Shared {
            passes,
            swallows: AtomicBool::new(false),
            is_deaf: AtomicBool::new(false),
            forth: AtomicU64::new(0),
            back: AtomicU64::new(0),
            changed: tokio::sync::Notify::new(),
        });
        tokio::spawn(carry(Arc::clone(&shared), socket, target));
        Self { address, shared }
    }

    fn place(&self) -> peerage_wire::codec::Candidate {
        place(Transport::Udp, self.address)
    }

    fn swallow(&self, swallows: bool) {
        self.shared.swallows.store(swallows, Ordering::SeqCst);
    }

    fn deafen(&self) {
        self.shared.is_deaf.store(true, Ordering::SeqCst);
    }

    fn answered(&self) -> u64 {
        self.shared.back.load(Ordering::SeqCst)
    }

    /// Waits until so many have come from the user.
    async fn passed(&self, count: u64) {
        self.counted(&self.shared.forth, count).await;
    }

    /// Waits until so many have come back, to be swallowed.
    async fn swallowed(&self, count: u64) {
        self.counted(&self.shared.back, count).await;
    }

    async fn counted(&self, counter: &AtomicU64, count: u64) {
        loop {
            let changed = self.shared.changed.notified();
            if counter.load(Ordering::SeqCst) >= count {
                return;
            }
            changed.await;
        }
    }
}

impl Shared {
    /// Counts a datagram; returns whether it arrives.
    fn count(&self, counter: &AtomicU64) -> bool {
        let number = counter.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
        !self.swallows.load(Ordering::SeqCst) && (self.passes)(number)
    }
}

async fn carry(shared: Arc<Shared>, socket: Arc<UdpSocket>, target: SocketAddr) {
    let upstreams: Mutex<BTreeMap<SocketAddr, Arc<UdpSocket>>> = Mutex::default();
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((count, from)) = socket.recv_from(&mut buffer).await else { continue };
        let known = upstreams.lock().unwrap().get(&from).cloned();
        let upstream = match known {
            Some(upstream) => upstream,
            None => {
                let upstream = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                upstream.connect(target).await.unwrap();
                upstreams.lock().unwrap().insert(from, Arc::clone(&upstream));
                tokio::spawn(carry_back(
                    Arc::clone(&shared),
                    Arc::clone(&upstream),
                    Arc::clone(&socket),
                    from,
                ));
                upstream
            }
        };
        if shared.count(&shared.forth) {
            let _ = upstream.send(&buffer[..count]).await;
        }
    }
}

async fn carry_back(shared: Arc<Shared>, upstream: Arc<UdpSocket>, socket: Arc<UdpSocket>, to: SocketAddr) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(count) = upstream.recv(&mut buffer).await else { continue };
        if shared.count(&shared.back) && !shared.is_deaf.load(Ordering::SeqCst) {
            let _ = socket.send_to(&buffer[..count], to).await;
        }
    }
}
