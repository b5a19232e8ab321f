//! Links that go on with a handshake which was begun by message: what that saves, and what happens when it comes to nothing.

use peerage_proto::node;
use peerage_proto::relay::LegId;
use peerage_wire::prepared::{beginning, begins_prepared, name_of};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::tests::{DOMAIN, Node, open, tcp};
use super::*;
use crate::relay::{OwnLegEvent, OwnLegs};

/// What the user-node has begun, and what the tunnel-node says to it.
struct Asked {
    attempt: AttemptId,
    hello: Bytes,
    flight: Option<Bytes>,
}

impl Asked {
    fn begun(&self, user: &Node) -> Begun {
        let begun = node::Begun { attempt: self.attempt, flight: self.flight.clone() };
        user.links.take_begun(&begun).unwrap()
    }
}

/// Does what the machines of both do with a TunnelRequest.
fn ask(user: &Node, site: &Node, addresses: &[SocketAddr]) -> Asked {
    let mut attempt = AttemptId([0; 16]);
    getrandom::fill(&mut attempt.0).unwrap();
    let hello =
        user.links.begin(attempt, site.key.public(), addresses.iter().copied().map(tcp).collect()).unwrap();
    let flight = site.links.answer((user.id(), user.key.public()), &hello);
    Asked { attempt, hello, flight }
}

async fn connect(user: &Node, site: &Node, begun: Begun) -> PeerLink {
    let (peer, identity) = (site.id(), site.key.public());
    user.links.connect_or_meet((peer, identity), &[tcp(site.address)], (Some(begun), None)).await.unwrap()
}

/// Opens tunnels until one stands, as an application's connection does.
async fn opened(user: &Node, site: &mut Node, mut link: PeerLink) -> usize {
    for lost in 0.. {
        let stream = link.open(&fresh()).unwrap();
        let result = tokio::select! {
            device = asked(site) => {
                device.confirm();
                let result = stream.opened().await;
                // Neither end is dropped before that.
                drop(device);
                result
            }
            result = stream.opened() => result,
        };
        match result {
            Ok(()) => return lost,
            Err(code) => assert_eq!(code, Code::UnknownSession),
        }
        link = user.dial(site).await.unwrap();
    }
    unreachable!()
}

fn fresh() -> Open {
    let mut open = open();
    getrandom::fill(&mut open.session.0).unwrap();
    open
}

async fn asked(site: &mut Node) -> Stream {
    loop {
        if let Some(LinkEvent::OpenAsked { stream, .. }) = site.events.recv().await {
            return stream;
        }
    }
}

/// Passes bytes on to a tunnel-node, and nothing back before it is told to.
async fn one_way(target: SocketAddr) -> (SocketAddr, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (release, released) = oneshot::channel();
    tokio::spawn(async move {
        let (user, _) = listener.accept().await.unwrap();
        splice(user, target, (released, b"")).await;
    });
    (address, release)
}

/// Passes bytes on, and nothing back before it is told to; then `first`, and what has come.
async fn splice(user: TcpStream, target: SocketAddr, (released, first): (oneshot::Receiver<()>, &[u8])) {
    let site = TcpStream::connect(target).await.unwrap();
    let ((mut from_user, mut to_user), (mut from_site, mut to_site)) = (user.into_split(), site.into_split());
    let down = async {
        released.await.unwrap();
        to_user.write_all(first).await?;
        tokio::io::copy(&mut from_site, &mut to_user).await
    };
    let _ = tokio::join!(tokio::io::copy(&mut from_user, &mut to_site), down);
}

/// Rules 7.29 and 7.30: the first thing on the connection is the client's second flight, with the request for the tunnel behind it.
#[tokio::test]
async fn a_tunnel_is_asked_for_before_anything_has_come_back_on_the_connection() {
    let (user, mut site) = (Node::new(1, DOMAIN), Node::serving(2).await);
    let (place, release) = one_way(site.address).await;
    let begun = ask(&user, &site, &[place]).begun(&user);
    let stream = connect(&user, &site, begun).await.open(&fresh()).unwrap();
    let device = asked(&mut site).await;
    assert_eq!(device.peer(), user.id());
    release.send(()).unwrap();
    device.confirm();
    assert_eq!(stream.opened().await, Ok(()));
    assert_eq!((user.links.count(), site.links.count()), (1, 1));
}

#[tokio::test]
async fn many_tunnels_at_once_share_the_link_whoever_began_what() {
    let (user, mut site) = (Node::new(1, DOMAIN), Node::serving(2).await);
    let all: Vec<_> = (0..12).map(|_| ask(&user, &site, &[site.address])).collect();
    // The tunnel-node prepares for no more than its share at a time; the others are told so.
    assert_eq!(all.iter().filter(|asked| asked.flight.is_some()).count(), 8);
    let links = all.iter().rev().map(|asked| connect(&user, &site, asked.begun(&user)));
    let links = futures_util::future::join_all(links).await;
    assert_eq!(user.links.count(), 1);
    for link in links {
        assert_eq!(opened(&user, &mut site, link).await, 0);
    }
}

mod when_it_comes_to_nothing {
    use super::*;

    #[tokio::test]
    async fn because_the_tunnel_node_has_prepared_none_the_connection_is_used_all_the_same() {
        let (user, mut site) = (Node::new(1, DOMAIN), Node::serving(2).await);
        let (place, release) = one_way(site.address).await;
        release.send(()).unwrap();
        let mut asked = ask(&user, &site, &[place]);
        asked.flight = None;
        let link = connect(&user, &site, asked.begun(&user)).await;
        assert_eq!(link.remote(), place);
        assert_eq!(opened(&user, &mut site, link).await, 0);
    }

    #[tokio::test]
    async fn because_the_flight_is_another_nodes_the_handshake_is_made_anew() {
        let (user, mut site) = (Node::new(1, DOMAIN), Node::serving(2).await);
        let mut asked = ask(&user, &site, &[site.address]);
        asked.flight = Node::new(3, DOMAIN).links.answer((user.id(), user.key.public()), &asked.hello);
        assert!(asked.flight.is_some());
        let link = connect(&user, &site, asked.begun(&user)).await;
        assert_eq!(opened(&user, &mut site, link).await, 0);
    }

    #[tokio::test]
    async fn because_the_tunnel_node_has_started_anew_the_tunnel_is_asked_for_again() {
        let (user, mut site) = (Node::new(1, DOMAIN), Node::serving(2).await);
        let mut asked = ask(&user, &site, &[site.address]);
        // What it was before the start has answered.
        asked.flight = Node::new(2, DOMAIN).links.answer((user.id(), user.key.public()), &asked.hello);
        let link = connect(&user, &site, asked.begun(&user)).await;
        assert_eq!(opened(&user, &mut site, link).await, 1);
    }

    #[tokio::test]
    async fn because_the_connection_leads_to_a_place_that_is_silent_the_tunnel_is_asked_for_again() {
        let (user, mut site) = (Node::new(1, DOMAIN), Node::serving(2).await);
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let begun = ask(&user, &site, &[silent.local_addr().unwrap()]).begun(&user);
        let link = connect(&user, &site, begun).await;
        assert_eq!(opened(&user, &mut site, link).await, 1);
    }

    #[tokio::test]
    async fn because_no_address_takes_a_connection_the_others_are_dialled() {
        let (user, mut site) = (Node::new(1, DOMAIN), Node::serving(2).await);
        let begun = ask(&user, &site, &[]).begun(&user);
        let link = connect(&user, &site, begun).await;
        assert_eq!(opened(&user, &mut site, link).await, 0);
    }

    /// Somebody who sees the name on the wire, or the relay, can spend a handshake and nothing more.
    #[tokio::test]
    async fn because_somebody_else_has_taken_it_he_has_nothing_and_the_tunnel_is_asked_for_again() {
        let (user, mut site) = (Node::new(1, DOMAIN), Node::serving(2).await);
        let asked = ask(&user, &site, &[site.address]);
        let mut thief = TcpStream::connect(site.address).await.unwrap();
        let theft = [&beginning(name_of(&asked.hello))[..], &[23, 3, 3, 0, 64], &[7; 64]].concat();
        thief.write_all(&theft).await.unwrap();
        // An alert at most, and the end.
        let mut answer = Vec::new();
        let _ = thief.read_to_end(&mut answer).await;
        assert!(answer.len() < 64, "{answer:?}");
        assert!(lock(&site.links.inner.peers).is_empty());
        let link = connect(&user, &site, asked.begun(&user)).await;
        assert_eq!(opened(&user, &mut site, link).await, 1);
    }
}

#[tokio::test]
async fn a_handshake_that_nobody_goes_on_with_is_taken_once_and_limited() {
    let (user, site) = (Node::new(1, DOMAIN), Node::serving(2).await);
    let asked = ask(&user, &site, &[]);
    let begun = node::Begun { attempt: asked.attempt, flight: asked.flight.clone() };
    assert!(user.links.take_begun(&begun).is_some());
    assert!(user.links.take_begun(&begun).is_none());
    let begin = |n: u8| user.links.begin(AttemptId([n; 16]), site.key.public(), vec![]);
    assert!((0..=u8::MAX).all(|n| begin(n).is_some()));
    let late = user.links.begin(AttemptId([9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 0]), [1; 32], vec![]);
    assert_eq!(late, None);
}

mod over_a_relay {
    use super::*;
    use peerage_proto::carrier::{LegWay, LegWays};
    use peerage_proto::link::Side;
    use peerage_proto::node::{LegNews, LegOrder, OwnLeg};

    /// A relay that was asked to join a leg, and what the node hears of it.
    struct Relay {
        legs: OwnLegs,
        news: mpsc::Receiver<OwnLegEvent>,
        leg: Leg,
        user: TcpStream,
    }

    const LEG: LegId = LegId(1);

    /// The user-node's leg stands, and has said to whom it wants to be joined.
    async fn relay(site: &Node) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (legs, mut news) = OwnLegs::new(Connector::default());
        let link = AttemptId([5; 16]);
        let what = OwnLeg {
            relay: site.id(),
            address: listener.local_addr().unwrap(),
            link,
            peer: site.id(),
            identity: site.key.public(),
            side: Side::Client,
        };
        let bare = LegWay { inside: None, address: what.address };
        legs.order(LEG, LegOrder::Dial(what, LegWays { all: vec![bare], must_answer: false }));
        let leg = legs.take(link).unwrap();
        let (mut user, _) = listener.accept().await.unwrap();
        assert!(matches!(news.recv().await, Some(OwnLegEvent::News(LEG, LegNews::Opened))));
        legs.order(LEG, LegOrder::Send(Bytes::from_static(b"join us")));
        let mut request = [0; 9];
        user.read_exact(&mut request).await.unwrap();
        assert_eq!(&request, b"\x00\x07join us");
        Relay { legs, news, leg, user }
    }

    async fn meet(user: &Node, site: &Node, begun: Begun, leg: Leg) -> PeerLink {
        let to = (site.id(), site.key.public());
        user.links.connect_or_meet(to, &[], (Some(begun), Some(leg))).await.unwrap()
    }

    /// Rules 6.31 and 7.30: what the user-node has to say is on its way before the relay has answered.
    #[tokio::test]
    async fn a_tunnel_is_asked_for_before_the_relay_has_answered() {
        let (user, mut site) = (Node::new(1, DOMAIN), Node::serving(2).await);
        let begun = ask(&user, &site, &[]).begun(&user);
        let Relay { legs, mut news, leg, user: at_relay } = relay(&site).await;
        let link = meet(&user, &site, begun, leg).await;
        assert_eq!(link.path().via, Via::Relay);
        let stream = link.open(&fresh()).unwrap();
        let mut first = [0];
        at_relay.peek(&mut first).await.unwrap();
        assert!(begins_prepared(first[0]));

        // The tunnel-node's leg comes, and the relay passes on what it has; its answer to the user-node is late.
        let (answer, answered) = oneshot::channel();
        let joining = tokio::spawn(splice(at_relay, site.address, (answered, b"\x00\x06joined")));
        let device = asked(&mut site).await;
        device.confirm();
        answer.send(()).unwrap();
        let heard = news.recv().await;
        let Some(OwnLegEvent::News(LEG, LegNews::Datagram(payload))) = heard else { panic!("{heard:?}") };
        assert_eq!(payload, "joined");
        legs.order(LEG, LegOrder::Joined);
        assert_eq!(stream.opened().await, Ok(()));
        joining.abort();
    }

    /// Answers for the relay and the tunnel-node: the legs are joined.
    async fn join(relay: (OwnLegs, mpsc::Receiver<OwnLegEvent>, TcpStream), site: SocketAddr) {
        let (legs, mut news, at_relay) = relay;
        let (answer, answered) = oneshot::channel();
        tokio::spawn(splice(at_relay, site, (answered, b"\x00\x06joined")));
        answer.send(()).unwrap();
        assert!(matches!(news.recv().await, Some(OwnLegEvent::News(LEG, LegNews::Datagram(_)))));
        legs.order(LEG, LegOrder::Joined);
    }

    /// Rule 7.25
    #[tokio::test]
    async fn a_tunnel_that_moves_much_meets_the_peer_there_once_more_and_leaves_the_shared_link() {
        const BYTES: usize = 300_000;
        let (mut user, mut site) = (Node::new(1, DOMAIN), Node::serving(2).await);
        let begun = ask(&user, &site, &[]).begun(&user);
        let Relay { legs, news, leg, user: at_relay } = relay(&site).await;
        let stream = meet(&user, &site, begun, leg).await.open(&fresh()).unwrap();
        join((legs, news, at_relay), site.address).await;
        let device = asked(&mut site).await;
        device.confirm();
        let (mut left, mut read) = (Bytes::from(vec![7; BYTES]), 0);
        while read < BYTES {
            stream.write(&mut left).unwrap();
            let mut pieces = Vec::new();
            let _ = device.read(&mut pieces, BYTES);
            read += pieces.iter().map(Bytes::len).sum::<usize>();
            if pieces.is_empty() {
                tokio::select! {
                    () = device.changed() => {}
                    () = stream.changed() => {}
                }
            }
        }
        let dial = loop {
            if let Some(LinkEvent::PathWanted { own: Some(dial), .. }) = user.events.recv().await {
                break dial;
            }
        };
        let Relay { legs, news, leg, user: at_relay } = relay(&site).await;
        user.links.take_own_leg(site.id(), dial, Some(leg));
        join((legs, news, at_relay), site.address).await;
        stream.moved().await;
        assert_eq!((user.links.count(), site.links.count()), (2, 2));
        assert_eq!(stream.path().map(|path| path.via), Some(Via::Relay));
    }

    /// Rule 6.30: the network may let only one family of addresses through.
    #[tokio::test]
    async fn it_is_met_at_its_other_address_where_the_first_takes_no_connection() {
        let (closed, open) = (listener().await.local_addr().unwrap(), listener().await);
        let (legs, mut news) = OwnLegs::new(Connector::default());
        let site = Node::new(2, DOMAIN);
        let what = OwnLeg {
            relay: site.id(),
            address: closed,
            link: AttemptId([5; 16]),
            peer: site.id(),
            identity: site.key.public(),
            side: Side::Client,
        };
        let other = open.local_addr().unwrap();
        let all = [closed, other].map(|address| LegWay { inside: None, address }).to_vec();
        legs.order(LEG, LegOrder::Dial(what, LegWays { all, must_answer: false }));
        let leg = legs.take(what.link).unwrap();
        let (_at_relay, _) = open.accept().await.unwrap();
        assert!(matches!(news.recv().await, Some(OwnLegEvent::News(LEG, LegNews::Opened))));
        legs.order(LEG, LegOrder::Send(Bytes::from_static(b"join us")));
        assert_eq!(leg.await.unwrap().what.address, other);
    }

    async fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.unwrap()
    }

    /// Rule 6.31
    #[tokio::test]
    async fn a_relay_without_room_is_said_to_be_the_reason_where_nothing_else_leads_to_the_peer() {
        let (user, site) = (Node::new(1, DOMAIN), Node::serving(2).await);
        let Relay { legs, mut news, leg, user: mut at_relay } = relay(&site).await;
        let connecting = user.links.connect_or_meet((site.id(), site.key.public()), &[], (None, Some(leg)));
        let refusing = async {
            at_relay.write_all(b"\x00\x02no").await.unwrap();
            assert!(matches!(news.recv().await, Some(OwnLegEvent::News(LEG, LegNews::Datagram(_)))));
            legs.order(LEG, LegOrder::Full);
        };
        let (connected, ()) = tokio::join!(connecting, refusing);
        assert!(matches!(connected, Err(DialError::RelayFull)), "{connected:?}");

        // The same before the peer has answered: a handshake that was begun does not go to such a relay.
        let begun = ask(&user, &site, &[]).begun(&user);
        let Relay { legs, mut news, leg, user: mut at_relay } = relay(&site).await;
        at_relay.write_all(b"\x00\x02no").await.unwrap();
        assert!(matches!(news.recv().await, Some(OwnLegEvent::News(LEG, LegNews::Datagram(_)))));
        legs.order(LEG, LegOrder::Full);
        assert!(matches!(news.recv().await, Some(OwnLegEvent::News(LEG, LegNews::Closed))));
        let to = (site.id(), site.key.public());
        let connected = user.links.connect_or_meet(to, &[], (Some(begun), Some(leg))).await;
        assert!(matches!(connected, Err(DialError::RelayFull)), "{connected:?}");
    }

    #[tokio::test]
    async fn a_relay_that_refuses_or_wants_to_be_asked_again_costs_no_tunnel() {
        let again = LegOrder::Send(Bytes::from_static(b"join us, please"));
        for order in [LegOrder::Close, LegOrder::Full, again] {
            let (user, mut site) = (Node::new(1, DOMAIN), Node::serving(2).await);
            let begun = ask(&user, &site, &[]).begun(&user);
            let Relay { legs, mut news, leg, user: mut at_relay } = relay(&site).await;
            let stream = meet(&user, &site, begun, leg).await.open(&fresh()).unwrap();
            at_relay.write_all(b"\x00\x02no").await.unwrap();
            assert!(matches!(news.recv().await, Some(OwnLegEvent::News(LEG, LegNews::Datagram(_)))));
            legs.order(LEG, order);
            assert!(matches!(news.recv().await, Some(OwnLegEvent::News(LEG, LegNews::Closed))));
            // The node finds out where else the peer is.
            user.links.set_path(site.id(), site.key.public(), &[tcp(site.address)]);
            assert_eq!(stream.opened().await, Err(Code::UnknownSession));
            let link = user.dial(&site).await.unwrap();
            assert_eq!(opened(&user, &mut site, link).await, 0);
        }
    }
}
