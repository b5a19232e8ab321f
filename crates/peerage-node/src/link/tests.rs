//! Links over real sockets: who gets one, and what strangers achieve.

use peerage_proto::relay;
use peerage_proto::session::Budget;
use peerage_wire::id::Domain;
use peerage_wire::keys::IdentityKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::carrier::{Intake, Streams, TlsIntake};
use crate::connect::Connector;
use crate::relay::{Caps, Legs};

pub(super) const DOMAIN: Domain = Domain(7);

#[tokio::test]
async fn many_at_once_share_one_dial_and_the_link_is_told() {
    let server = Node::serving(2).await;
    let mut client = Node::new(1, DOMAIN);
    let dials = (0..20).map(|_| client.dial(&server));
    for link in futures_util::future::join_all(dials).await {
        assert_eq!(link.unwrap().remote(), server.address);
    }
    assert_eq!(client.links.count(), 1);
    assert!(matches!(client.events.recv().await, Some(LinkEvent::Up(peer)) if peer == server.id()));
    server.links.close().await;
    assert!(matches!(client.events.recv().await, Some(LinkEvent::Down(peer)) if peer == server.id()));
}

#[tokio::test]
async fn a_peer_with_another_key_is_not_the_one_that_was_dialled() {
    let server = Node::serving(2).await;
    let client = Node::new(1, DOMAIN);
    let wanted = key(3);
    let result = client.links.connect(wanted.node_id(DOMAIN), wanted.public(), &[tcp(server.address)]).await;
    assert!(matches!(result, Err(DialError::Failed { source: ChannelError::Tls(_), .. })), "{result:?}");
    assert_eq!(client.links.count(), 0);
    assert!(lock(&client.links.inner.peers).is_empty());
}

#[tokio::test]
async fn the_next_candidate_is_tried_when_one_is_dead_or_another_node() {
    let (server, other) = (Node::serving(2).await, Node::serving(3).await);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = closed.local_addr().unwrap();
    drop(closed);
    let client = Node::new(1, DOMAIN);
    let candidates = [dead, other.address, server.address].map(tcp);
    let link = client.links.connect(server.id(), server.key.public(), &candidates).await.unwrap();
    assert_eq!(link.remote(), server.address);
}

#[tokio::test]
async fn without_candidates_a_link_that_ended_is_dialled_where_it_led_only_while_it_is_remembered() {
    let server = Node::serving(2).await;
    let client = Node::new(1, DOMAIN);
    let result = client.links.connect(server.id(), server.key.public(), &[]).await;
    assert!(matches!(result, Err(DialError::NoCandidate)));
    client.dial(&server).await.unwrap();
    let link = client.links.connect(server.id(), server.key.public(), &[]).await.unwrap();
    assert_eq!(link.remote(), server.address);
}

#[tokio::test]
async fn a_node_of_another_domain_gets_no_tunnel() {
    let mut server = Node::serving(2).await;
    let foreign = Node::new(1, Domain(8));
    let link = foreign.links.connect(server.id(), server.key.public(), &[tcp(server.address)]).await.unwrap();
    let stream = link.open(&open()).unwrap();
    assert_eq!(stream.opened().await, Err(Code::WrongPeer));
    assert!(server.events.try_recv().is_err());
}

#[tokio::test]
async fn garbage_instead_of_tls_ends_its_connection_and_nothing_else() {
    let server = Node::serving(2).await;
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 5_000], &[0x16, 0x03, 0x01, 0xff, 0xff, 0xff], b"\x80"]
    {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        // The other side may have closed before all of it was sent.
        let _ = socket.write_all(garbage).await;
        let _ = socket.shutdown().await;
        let _ = socket.read_to_end(&mut Vec::new()).await;
    }
    Node::new(1, DOMAIN).dial(&server).await.unwrap();
}

/// Connections that say nothing do not shut out others, as long as they come from one place.
#[tokio::test]
async fn silent_connections_from_one_place_leave_room_for_others() {
    let (near, far) = (Node::new(1, Domain(7)), Node::serving(2).await);
    let mut silent = Vec::new();
    for _ in 0..listen::MAX_HANDSHAKES {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(far.address).await.unwrap());
    }
    assert!(near.dial(&far).await.is_ok());
}

#[tokio::test]
async fn garbage_frames_close_the_link_with_the_reason_and_nothing_else() {
    let mut server = Node::serving(2).await;
    let identity = key(1);
    let config = mobility::config(&identity);
    for garbage in [vec![0xff; 64], vec![0; 70_000], b"\x01\x00\x00\x4a\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()] {
        let mut channel = dial::connect_channel(&config, server.key.public(), server.address).await.unwrap();
        let frame = peerage_wire::frame::Encoded { header: [0xee; 16], payload: garbage.into() };
        channel.seal(&[frame]).unwrap();
        channel.finish();
        let mut answer = bytes::BytesMut::new();
        let ended = loop {
            if !channel.flush().unwrap() {
                channel.socket().writable().await.unwrap();
            }
            channel.socket().readable().await.unwrap();
            let filled = channel.fill();
            if let Err(error) = filled.and_then(|_| channel.open(&mut answer)) {
                break error;
            }
        };
        assert!(matches!(ended, ChannelError::Ended | ChannelError::Io(_)), "{ended}");
    }
    assert!(server.events.try_recv().is_err());
    Node::new(4, DOMAIN).dial(&server).await.unwrap();
}

#[tokio::test]
async fn an_opening_that_nobody_answers_for_is_refused_when_it_is_dropped() {
    let mut server = Node::serving(2).await;
    let client = Node::new(1, DOMAIN);
    let stream = client.dial(&server).await.unwrap().open(&open()).unwrap();
    let Some(LinkEvent::OpenAsked { stream: asked, open: wanted }) = server.events.recv().await else {
        panic!()
    };
    assert_eq!((asked.peer(), wanted.service.as_str()), (client.id(), "ipp"));
    drop(asked);
    assert_eq!(stream.opened().await, Err(Code::ApplicationReset));
}

#[tokio::test]
async fn legs_and_links_come_through_one_port_as_far_as_the_door_is_open() {
    let (mut server, client) = (Node::new(2, DOMAIN), Node::new(1, DOMAIN));
    let listener = TcpListener::bind(server.address).await.unwrap();
    server.address = listener.local_addr().unwrap();
    let (legs, mut news) = Legs::new(Caps::default(), Clock::new());
    let door =
        Door::new(TlsIntake::new(Intake::new(Streams::new(Connector::default()).0, legs.clone())).unwrap());
    server.links.serve_behind(door.clone(), vec![listener]);
    let begin_leg = async || {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        // Closed unheard, it may be gone before all of it was sent.
        let _ = socket.write_all(&peerage_wire::leg::frame(b"a datagram").unwrap()).await;
        socket
    };
    let is_closed = async |mut socket: TcpStream| !matches!(socket.read(&mut [0]).await, Ok(1));

    assert!(is_closed(begin_leg().await).await, "nobody is let in through a closed door");
    assert!(client.dial(&server).await.is_err());

    door.set(true, false);
    assert!(is_closed(begin_leg().await).await, "where nothing is relayed there are no legs");
    client.dial(&server).await.unwrap();

    door.set(false, true);
    let mut socket = begin_leg().await;
    let Some(relay::Input::Datagram { leg, payload, .. }) = news.recv().await else { panic!() };
    assert_eq!(&payload[..], b"a datagram");
    legs.apply(relay::Output::Send { leg, payload: Bytes::from_static(b"an answer") });
    let mut answer = vec![0; peerage_wire::leg::LENGTH_SIZE + 9];
    socket.read_exact(&mut answer).await.unwrap();
    assert!(answer.ends_with(b"an answer"));
    let other = Node::new(3, DOMAIN);
    assert!(
        other.dial(&server).await.is_err(),
        "where nothing is served and nothing lent there are no links"
    );
}

pub(super) struct Node {
    pub(super) key: IdentityKey,
    domain: Domain,
    pub(super) links: Links,
    pub(super) events: mpsc::Receiver<LinkEvent>,
    pub(super) address: SocketAddr,
}

impl Node {
    pub(super) fn new(seed: u8, domain: Domain) -> Self {
        let key = key(seed);
        let (links, events) = Links::new(LinkConfig {
            local: key.node_id(domain),
            tls: Tls::new(&key).unwrap(),
            session: session::Config { max_window: session::WINDOW_MAX, budget: Budget::new(1 << 20) },
            clock: Clock::new(),
            connector: Connector::default(),
        });
        Self { key, domain, links, events, address: ([127, 0, 0, 1], 0).into() }
    }

    pub(super) async fn serving(seed: u8) -> Self {
        let mut node = Self::new(seed, DOMAIN);
        let listener = TcpListener::bind(node.address).await.unwrap();
        node.address = listener.local_addr().unwrap();
        node.links.serve(listener);
        node
    }

    pub(super) fn id(&self) -> NodeId {
        self.key.node_id(self.domain)
    }

    pub(super) async fn dial(&self, to: &Self) -> Result<PeerLink, DialError> {
        self.links.connect(to.id(), to.key.public(), &[tcp(to.address)]).await
    }
}

pub(super) fn tcp(address: SocketAddr) -> Candidate {
    place(Transport::Tcp, address)
}

fn key(seed: u8) -> IdentityKey {
    IdentityKey::from_seed(&[seed; 32])
}

pub(super) fn open() -> Open {
    use peerage_wire::id::{DeviceId, SessionId};
    Open { session: SessionId([9; 16]), device: DeviceId([3; 32]), service: "ipp".to_owned() }
}

/// Rule 7.28
#[tokio::test]
async fn both_sides_of_a_link_send_packets_that_every_path_carries() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(crate::connect::dial(address), listener.accept());
    for end in [near.unwrap(), far.unwrap().0] {
        assert!(socket2::SockRef::from(&end).tcp_mss().unwrap() <= 1_220);
    }
}
