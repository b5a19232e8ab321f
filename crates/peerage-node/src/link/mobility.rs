//! Tunnels that outlive their links, over real sockets: a wire between two nodes that can be cut at any byte, stalled, reset and
//! swallowed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use peerage_proto::session::{Budget, Read, State};
use peerage_wire::frame::Code;
use peerage_wire::id::{DeviceId, Domain, NodeId, SessionId, sha256};
use peerage_wire::keys::IdentityKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;

pub(super) const DOMAIN: Domain = Domain(7);

mod a_tunnel_goes_on {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn when_its_connection_is_cut_at_any_byte() {
        // The first cut is within the handshake of TLS, the last within the bulk.
        for cut in [1, 700, 1_500, 3_000, 70_000, 300_001, 1_000_003] {
            let site = Site::new().await;
            site.wire.set(Rule::CutAfter(cut));
            let (up, down) = site.exchange(2_000_000).await;
            assert_eq!((up, down), (expected(b'u', 2_000_000), expected(b'd', 2_000_000)), "cut at {cut}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn through_twenty_changes_of_its_link() {
        const BYTES: usize = 8 << 20;
        let site = Site::new().await;
        let mut ends = site.open().await;
        let wire = site.wire.clone();
        let cutting = tokio::spawn(async move {
            for _change in 0..20 {
                let before = wire.bytes();
                wire.passed(before + 100_000).await;
                wire.cut_all();
            }
        });
        let (up, down) = exchange(&mut ends, BYTES).await;
        assert_eq!((up, down), (expected(b'u', BYTES), expected(b'd', BYTES)));
        cutting.await.unwrap();
        assert!(site.wire.connections() >= 21);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn when_its_connection_falls_silent_without_an_end() {
        let site = Site::new().await;
        let mut ends = site.open().await;
        site.wire.swallow_all();
        // Later connections are served: what was open is a black hole.
        let (up, down) = exchange(&mut ends, 500_000).await;
        assert_eq!((up, down), (expected(b'u', 500_000), expected(b'd', 500_000)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn when_the_computer_moves_to_another_network() {
        let site = Site::new().await;
        let mut ends = site.open().await;
        site.wire.swallow_all();
        // The address on which the link stands is gone: nobody waits for a timeout.
        site.user.networks_changed(&|_own| false);
        let (up, down) = exchange(&mut ends, 500_000).await;
        assert_eq!((up, down), (expected(b'u', 500_000), expected(b'd', 500_000)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn when_the_tunnel_node_is_found_at_another_address() {
        let mut site = Site::new().await;
        let mut ends = site.open().await;
        site.wire.set(Rule::Refuse);
        site.wire.cut_all();
        let wanted = loop {
            match site.events.recv().await.unwrap() {
                LinkEvent::PathWanted { peer, device, service, .. } => break (peer, device, service),
                LinkEvent::Up(_)
                | LinkEvent::Down(_)
                | LinkEvent::Head(_)
                | LinkEvent::RelayLost(_)
                | LinkEvent::PathUsed { .. }
                | LinkEvent::PathUnused { .. } => {}
                LinkEvent::OpenAsked { .. } => panic!("nobody asks a user-node"),
            }
        };
        assert_eq!(wanted, (site.id(), DeviceId([3; 32]), "raw".to_owned()));
        let elsewhere = Wire::new(site.address).await;
        site.user.set_path(site.id(), site.key.public(), &[tcp(elsewhere.address)]);
        ends.0.moved().await;
        assert_eq!(ends.0.path(), Some(Path { remote: elsewhere.address, via: Via::Direct }));
        let (up, down) = exchange(&mut ends, 500_000).await;
        assert_eq!((up, down), (expected(b'u', 500_000), expected(b'd', 500_000)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn and_keeps_half_an_end() {
        let site = Site::new().await;
        let (user, device) = site.open().await;
        let sent = send(&user, b'u', 10_000);
        let received = receive(&device);
        let (_, received) = tokio::join!(sent, received);
        assert_eq!(received, expected(b'u', 10_000));
        // The user has said its end; the rest of the answer comes over another link.
        site.wire.cut_all();
        let (_, received) = tokio::join!(send(&device, b'd', 200_000), receive(&user));
        assert_eq!(received, expected(b'd', 200_000));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn and_a_reset_reaches_the_peer_over_the_next_link() {
        let site = Site::new().await;
        let (user, device) = site.open().await;
        site.wire.cut_all();
        user.reset(Code::ApplicationReset);
        while !matches!(device.state(), State::Ended(_)) {
            device.changed().await;
        }
        assert_eq!(device.read(&mut Vec::new(), 1), Read::Reset(Code::ApplicationReset));
    }
}

mod what_stalls_is_not_lost {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stall_that_passes_costs_nothing_but_time() {
        let site = Site::new().await;
        let mut ends = site.open().await;
        site.wire.stall(true);
        let wire = site.wire.clone();
        // A second connection means that the first was given up for sending; then the first goes on.
        let releasing = tokio::spawn(async move {
            wire.connected(2).await;
            wire.stall(false);
        });
        let (up, down) = exchange(&mut ends, 1_000_000).await;
        assert_eq!((up, down), (expected(b'u', 1_000_000), expected(b'd', 1_000_000)));
        releasing.await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_opening_that_was_lost_with_its_link_fails_in_a_way_that_lets_it_be_sent_again() {
        let site = Site::new().await;
        let link = site.connect().await;
        site.wire.swallow_all();
        // The link looks well still; the request rides into the void with it.
        let stream = link.open(&open()).unwrap();
        assert_eq!(stream.opened().await, Err(Code::UnknownSession));
        let (up, down) = site.exchange(1_000).await;
        assert_eq!((up, down), (expected(b'u', 1_000), expected(b'd', 1_000)));
    }
}

mod a_bulk_tunnel {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn gets_a_link_of_its_own_and_gives_it_back() {
        let site = Site::new().await;
        let (up, down) = site.exchange(2_000_000).await;
        assert_eq!((up, down), (expected(b'u', 2_000_000), expected(b'd', 2_000_000)));
        site.wire.connected(2).await;
        assert_eq!(site.wire.connections(), 2);
        // Its own link ends with it; the shared one stays warm.
        site.wire.left(1).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn leaves_the_warm_link_to_small_ones() {
        let site = Site::new().await;
        for _tunnel in 0..5 {
            let (up, down) = site.exchange(50_000).await;
            assert_eq!((up, down), (expected(b'u', 50_000), expected(b'd', 50_000)));
        }
        assert_eq!(site.wire.connections(), 1);
    }
}

mod a_link_without_room {
    use super::*;

    /// More tunnels than fit one link go over a second, also where only a relay leads to the peer.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn does_not_serve_and_whoever_waits_for_another_takes_the_room_that_somebody_leaves() {
        let site = Site::new().await;
        let mut tunnels = Vec::new();
        for _ in 0..link::MAX_STREAMS {
            assert!(tunnels.is_empty() || site.user.is_served(site.id()));
            tunnels.push(site.open().await);
        }
        assert!(!site.user.is_served(site.id()));
        // No other link comes about.
        site.wire.set(Rule::Refuse);
        let places = [tcp(site.wire.address)];
        let waiting = site.user.connect(site.id(), site.key.public(), &places);
        let leaving = async { drop(tunnels.pop()) };
        let (link, ()) = tokio::join!(waiting, leaving);
        assert_eq!(link.unwrap().remote(), site.wire.address);
        assert_eq!(site.user.count(), 1);
    }
}

mod nobody_else {
    use super::*;
    use peerage_wire::frame::{CarrierNumber, Frame, Hello, LinkFrame, Resume, StreamFrame, StreamId};

    #[tokio::test]
    async fn resumes_a_tunnel() {
        let site = Site::new().await;
        let (user, device) = site.open().await;
        let thief = key(9);
        let (config, identity) = (config(&thief), site.key.public());
        let mut channel = dial::connect_channel(&config, identity, site.address).await.unwrap();
        let hello = Hello {
            version: peerage_wire::frame::VERSION,
            sender: thief.node_id(DOMAIN),
            receiver: site.id(),
        };
        let resume = Resume {
            session: site.last_session(),
            carrier: CarrierNumber(5),
            received: 0,
            limit: 65_536,
            resend: true,
        };
        let frames = [
            Frame::Link(LinkFrame::Hello(hello)),
            Frame::Stream(StreamId::FIRST, StreamFrame::Resume(resume)),
        ];
        channel.seal(&frames.map(|frame| frame.encode())).unwrap();
        let mut plain = bytes::BytesMut::new();
        let refused = loop {
            channel.flush().unwrap();
            channel.socket().readable().await.unwrap();
            channel.fill().unwrap();
            while channel.open(&mut plain).unwrap() == channel::Opened::Part {}
            let frames = std::iter::from_fn(|| peerage_wire::frame::decode(&mut plain).unwrap());
            let reset = frames.filter_map(|frame| match frame {
                Frame::Stream(_, frame) => Some(frame),
                Frame::Link(_) => None,
            });
            if let Some(frame) = reset.last() {
                break frame;
            }
        };
        assert_eq!(refused, StreamFrame::Reset(Code::UnknownSession));
        let mut ends = (user, device);
        assert_eq!(exchange(&mut ends, 1_000).await, (expected(b'u', 1_000), expected(b'd', 1_000)));
    }
}

/// What a node keeps for its tunnels is bounded for all of them together, however slowly their applications read (Rule 7.17).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_slow_readers_share_the_memory_of_their_node() {
    const TUNNELS: usize = 40;
    const BYTES: usize = 300_000;
    const BUDGET: u64 = 2 << 20;
    // The first window and send buffer of each are promised whatever the budget says.
    const PROMISED: u64 = TUNNELS as u64 * 80 * 1_024;
    let budget = Budget::new(BUDGET);
    let site = Site::with_memory(&budget).await;
    let mut tunnels = Vec::new();
    for _ in 0..TUNNELS {
        tunnels.push(site.open().await);
    }
    let mut sending = JoinSet::new();
    for (_, device) in &tunnels {
        let device = Arc::clone(device);
        sending.spawn(async move { send(&device, b'd', BYTES).await });
    }
    let mut left = vec![BYTES; TUNNELS];
    while let Some(slowest) = left.iter().position(|left| *left > 0) {
        let before: usize = left.iter().sum();
        for ((user, _), left) in tunnels.iter().zip(&mut left) {
            let mut pieces = Vec::new();
            // A piece at a time, in turns.
            let _ = user.read(&mut pieces, 1);
            *left -= pieces.iter().map(Bytes::len).sum::<usize>();
            assert!(budget.used_bytes() <= BUDGET + PROMISED, "{}", budget.used_bytes());
        }
        if left.iter().sum::<usize>() == before {
            tunnels[slowest].0.changed().await;
        }
    }
    while let Some(sent) = sending.join_next().await {
        sent.unwrap();
    }
    drop(tunnels);
}

#[tokio::test]
async fn heads_cross_on_links_that_stand_and_on_those_that_come() {
    let site = Site::new().await;
    let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
    site.tunnel_node.send_head(&first);
    let mut events = site.events;
    let link =
        site.user.connect(site.key.node_id(DOMAIN), site.key.public(), &[tcp(site.wire.address)]).await;
    let head = async |events: &mut mpsc::Receiver<LinkEvent>| loop {
        if let LinkEvent::Head(record) = events.recv().await.unwrap() {
            return record;
        }
    };
    assert_eq!(head(&mut events).await, first);
    drop(link);
    site.user.send_head(&second);
    let mut served = site.served.lock().await;
    assert_eq!(head(&mut served).await, second);
}

/// A user-node and a tunnel-node with a wire between them.
struct Site {
    user: Links,
    tunnel_node: Links,
    key: IdentityKey,
    /// Without the wire.
    address: SocketAddr,
    wire: Wire,
    events: mpsc::Receiver<LinkEvent>,
    served: tokio::sync::Mutex<mpsc::Receiver<LinkEvent>>,
    last: Mutex<SessionId>,
}

impl Site {
    async fn new() -> Self {
        Self::with_memory(&Budget::new(64 << 20)).await
    }

    /// A site whose user-node has so much memory for its tunnels.
    async fn with_memory(budget: &Budget) -> Self {
        let key = key(2);
        let (tunnel_node, served) = links(&key);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tunnel_node.serve(listener);
        let wire = Wire::new(address).await;
        let (user, events) = Links::new(within(&self::key(1), budget));
        let (served, last) = (served.into(), SessionId([0; 16]).into());
        Self { user, tunnel_node, key, address, wire, events, served, last }
    }

    fn id(&self) -> NodeId {
        self.key.node_id(DOMAIN)
    }

    fn last_session(&self) -> SessionId {
        *self.last.lock().unwrap()
    }

    async fn connect(&self) -> PeerLink {
        loop {
            // A wire that is cut within the handshake fails the first.
            if let Ok(link) = self.user.connect(self.id(), self.key.public(), &[tcp(self.wire.address)]).await
            {
                return link;
            }
        }
    }

    /// Opens a tunnel and returns both ends.
    async fn open(&self) -> (Arc<Stream>, Arc<Stream>) {
        loop {
            let open = open();
            *self.last.lock().unwrap() = open.session;
            let user = Arc::new(self.connect().await.open(&open).unwrap());
            let device = tokio::select! {
                device = self.asked() => device,
                // The request was lost with its link.
                refused = user.opened() => {
                    assert_eq!(refused, Err(Code::UnknownSession));
                    continue;
                }
            };
            device.confirm();
            assert_eq!(user.opened().await, Ok(()));
            return (user, device);
        }
    }

    async fn asked(&self) -> Arc<Stream> {
        let mut served = self.served.lock().await;
        loop {
            if let LinkEvent::OpenAsked { stream, .. } = served.recv().await.unwrap() {
                return Arc::new(stream);
            }
        }
    }

    async fn exchange(&self, bytes: usize) -> ([u8; 32], [u8; 32]) {
        exchange(&mut self.open().await, bytes).await
    }
}

pub(super) fn tcp(address: SocketAddr) -> Candidate {
    place(Transport::Tcp, address)
}

pub(super) fn key(seed: u8) -> IdentityKey {
    IdentityKey::from_seed(&[seed; 32])
}

pub(super) fn links(key: &IdentityKey) -> (Links, mpsc::Receiver<LinkEvent>) {
    Links::new(config(key))
}

pub(super) fn config(key: &IdentityKey) -> LinkConfig {
    within(key, &Budget::new(64 << 20))
}

fn within(key: &IdentityKey, budget: &Budget) -> LinkConfig {
    LinkConfig {
        local: key.node_id(DOMAIN),
        tls: Tls::new(key).unwrap(),
        session: session::Config { max_window: session::WINDOW_MAX, budget: budget.clone() },
        clock: Clock::new(),
        connector: Connector::default(),
    }
}

pub(super) fn open() -> Open {
    let mut id = [0; 16];
    getrandom::fill(&mut id).unwrap();
    Open { session: SessionId(id), device: DeviceId([3; 32]), service: "raw".to_owned() }
}

/// Sends both ways at once; returns the hashes of what arrived at the device and at the user.
pub(super) async fn exchange(
    (user, device): &mut (Arc<Stream>, Arc<Stream>),
    bytes: usize,
) -> ([u8; 32], [u8; 32]) {
    let tasks = (Arc::clone(user), Arc::clone(device));
    let sending = tokio::spawn(async move { send(&tasks.0, b'u', bytes).await });
    let answering = tokio::spawn(async move { send(&tasks.1, b'd', bytes).await });
    let received = tokio::join!(receive(device), receive(user));
    sending.await.unwrap();
    answering.await.unwrap();
    received
}

pub(super) async fn send(stream: &Stream, seed: u8, bytes: usize) {
    let mut left = Bytes::from(pattern(seed, bytes));
    while !left.is_empty() {
        if stream.write(&mut left).unwrap() == 0 {
            stream.changed().await;
        }
        tokio::task::consume_budget().await;
    }
    stream.finish();
}

pub(super) async fn receive(stream: &Stream) -> [u8; 32] {
    let mut all = Vec::new();
    loop {
        let mut pieces = Vec::new();
        let end = stream.read(&mut pieces, 1 << 20);
        let is_empty = pieces.is_empty();
        all.extend(pieces.into_iter().flatten());
        match end {
            Read::Finished => return sha256(&[&all]),
            Read::Pending if is_empty => stream.changed().await,
            Read::Pending | Read::Bytes(_) => {}
            Read::Reset(code) => panic!("the tunnel broke: {code}"),
        }
    }
}

/// Bytes that differ at every offset, so that none can be lost, doubled or moved unnoticed.
pub(super) fn pattern(seed: u8, bytes: usize) -> Vec<u8> {
    let words = (0_u64..).map(|n| (n ^ (u64::from(seed) << 56)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.take(bytes.div_ceil(8)).flat_map(u64::to_le_bytes).take(bytes).collect()
}

pub(super) fn expected(seed: u8, bytes: usize) -> [u8; 32] {
    sha256(&[&pattern(seed, bytes)])
}

/// What a wire does with the connections that come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Carry,
    /// The next connection breaks after this many bytes from the user; those after it are carried.
    CutAfter(u64),
    /// Connections are closed at once.
    Refuse,
}

/// A wire between two nodes that does to its connections what a test wants.
#[derive(Clone)]
struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    rule: Mutex<Rule>,
    /// Connections with a lower number are cut, and swallowed.
    cut: watch::Sender<u64>,
    swallowed: watch::Sender<u64>,
    stalled: watch::Sender<bool>,
    accepted: watch::Sender<u64>,
    open: watch::Sender<u64>,
    bytes: watch::Sender<u64>,
    carried: AtomicU64,
}

impl Wire {
    async fn new(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            rule: Mutex::new(Rule::Carry),
            cut: watch::Sender::new(0),
            swallowed: watch::Sender::new(0),
            stalled: watch::Sender::new(false),
            accepted: watch::Sender::new(0),
            open: watch::Sender::new(0),
            bytes: watch::Sender::new(0),
            carried: AtomicU64::new(0),
        });
        let wire = Self { address, shared: Arc::clone(&shared) };
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let number = *shared.accepted.borrow() + 1;
                let rule = *shared.rule.lock().unwrap();
                let most = match rule {
                    Rule::Refuse => continue,
                    Rule::Carry => u64::MAX,
                    Rule::CutAfter(bytes) => {
                        *shared.rule.lock().unwrap() = Rule::Carry;
                        bytes
                    }
                };
                shared.open.send_modify(|open| *open += 1);
                shared.accepted.send_replace(number);
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    if let Ok(to) = TcpStream::connect(target).await {
                        shared.carry((from, to), number, most).await;
                    }
                    shared.open.send_modify(|open| *open -= 1);
                });
            }
        });
        wire
    }

    fn set(&self, rule: Rule) {
        *self.shared.rule.lock().unwrap() = rule;
    }

    /// Resets all connections that stand.
    fn cut_all(&self) {
        self.shared.cut.send_replace(self.connections() + 1);
    }

    /// From all connections that stand nothing arrives any more, and nothing tells.
    fn swallow_all(&self) {
        self.shared.swallowed.send_replace(self.connections() + 1);
    }

    /// Holds up all connections that stand and come, or lets them go on.
    fn stall(&self, is_stalled: bool) {
        self.shared.stalled.send_replace(is_stalled);
    }

    fn connections(&self) -> u64 {
        *self.shared.accepted.borrow()
    }

    fn bytes(&self) -> u64 {
        *self.shared.bytes.borrow()
    }

    /// Waits until so many bytes have passed, or no connection is left that could carry more.
    async fn passed(&self, bytes: u64) {
        let _ = self.shared.bytes.subscribe().wait_for(|passed| *passed >= bytes).await;
    }

    async fn connected(&self, count: u64) {
        self.shared.accepted.subscribe().wait_for(|accepted| *accepted >= count).await.unwrap();
    }

    async fn left(&self, count: u64) {
        self.shared.open.subscribe().wait_for(|open| *open <= count).await.unwrap();
    }
}

impl Shared {
    async fn carry(&self, (mut from, mut to): (TcpStream, TcpStream), number: u64, most: u64) {
        let mut cut = self.cut.subscribe();
        let mut passed = 0;
        let (mut up, mut down) = (vec![0; 16_384], vec![0; 16_384]);
        loop {
            let is_swallowed = *self.swallowed.borrow() > number;
            if *self.stalled.borrow() && !is_swallowed {
                let mut stalled = self.stalled.subscribe();
                tokio::select! {
                    _ = cut.wait_for(|cut| *cut > number) => break,
                    _ = stalled.wait_for(|stalled| !stalled) => continue,
                }
            }
            let (result, is_up) = tokio::select! {
                _ = cut.wait_for(|cut| *cut > number) => break,
                result = from.read(&mut up) => (result, true),
                result = to.read(&mut down) => (result, false),
            };
            let (buffer, target) = if is_up { (&up, &mut to) } else { (&down, &mut from) };
            let Ok(count) = result else { break };
            if count == 0 {
                break;
            }
            if *self.swallowed.borrow() > number {
                continue;
            }
            let room = usize::try_from(most - passed).unwrap_or(usize::MAX);
            let piece = &buffer[..count.min(if is_up { room } else { usize::MAX })];
            if target.write_all(piece).await.is_err() {
                break;
            }
            self.carried.fetch_add(piece.len() as u64, Ordering::Relaxed);
            self.bytes.send_replace(self.carried.load(Ordering::Relaxed));
            if is_up {
                passed += piece.len() as u64;
                if passed >= most {
                    break;
                }
            }
        }
        for socket in [&from, &to] {
            let _ = socket2::SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
        }
    }
}
