use std::net::Ipv4Addr;

use peerage_proto::carrier::{LegWay, LegWays};
use peerage_proto::link::Side;
use peerage_proto::node::{LegNews, LegOrder, OwnLeg};
use peerage_proto::relay::{self, LegId};
use peerage_wire::id::{Domain, LinkId, NodeId};
use peerage_wire::leg::begins_leg;
use peerage_wire::limits::MAX_DATAGRAM;
use peerage_wire::packet::{Hint, HintReason, tag_of};
use tokio::io::{AsyncReadExt as _, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;

use super::*;
use crate::clock::Clock;
use crate::framed;
use crate::http::ALPN_HTTP;
use crate::relay::{Caps, Legs, OwnLegEvent, OwnLegs};
use crate::tls::AnyCertificate;

const FIRST: StreamId = StreamId::Made(1);

fn remote() -> SocketAddr {
    ([192, 0, 2, 1], 40_000).into()
}

fn open(stream: StreamId, carrier: Carrier, address: SocketAddr) -> StreamOrder {
    StreamOrder::Open { stream, carrier, address }
}

fn send(stream: StreamId, payload: &'static [u8]) -> StreamOrder {
    StreamOrder::Send { stream, payload: Bytes::from_static(payload) }
}

/// Takes one connection for messages as a super-node's port does.
async fn server(streams: Streams) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    server_of(streams, 1).await
}

/// The same with so many connections, until all have ended.
async fn server_of(streams: Streams, connections: usize) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (legs, _news) = Legs::new(Caps::default(), Clock::new());
    let messages = TlsIntake::new(Intake::new(streams, legs)).unwrap();
    let serving = tokio::spawn(async move {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..connections {
            let (socket, remote) = listener.accept().await.unwrap();
            let messages = messages.clone();
            tasks.spawn(async move { take(&messages, socket, remote).await });
        }
        tasks.join_all().await;
    });
    (address, serving)
}

/// Takes what is no leg and no link.
async fn take(intake: &TlsIntake, socket: TcpStream, remote: SocketAddr) {
    let mut first = [0];
    socket.peek(&mut first).await.unwrap();
    if begins_http(first[0]) {
        return intake.serve_open(socket, remote).await.unwrap();
    }
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket).await.unwrap();
    intake.serve(intake.handshake(start).await.unwrap(), remote).await;
}

/// Rules 6.100, 6.101, 6.111 and 6.113.
#[tokio::test]
async fn messages_pass_in_both_directions_in_every_carrier_and_the_end_is_told() {
    for carrier in [Carrier::Tls, Carrier::Wss, Carrier::Ws] {
        pass_messages(carrier, 1).await;
    }
    for carrier in [Carrier::Https, Carrier::Http] {
        pass_messages(carrier, 2).await;
    }
}

async fn pass_messages(carrier: Carrier, connections: usize) {
    let ((here, mut news_here), (there, mut news_there)) =
        (Streams::new(Connector::default()), Streams::new(Connector::default()));
    let (address, serving) = server_of(there.clone(), connections).await;
    here.apply(open(FIRST, carrier, address));
    assert_eq!(news_here.recv().await, Some(StreamNews::Opened(FIRST)));
    here.apply(send(FIRST, b"one"));
    here.apply(send(FIRST, b"two"));
    let Some(StreamNews::Datagram { stream, payload, .. }) = news_there.recv().await else { panic!() };
    assert_eq!((stream, &payload[..]), (StreamId::Accepted(0), &b"one"[..]));
    let Some(StreamNews::Datagram { payload, .. }) = news_there.recv().await else { panic!() };
    assert_eq!(&payload[..], b"two");
    there.apply(send(stream, b"answer"));
    let answer =
        StreamNews::Datagram { stream: FIRST, remote: address, payload: Bytes::from_static(b"answer") };
    assert_eq!(news_here.recv().await, Some(answer));
    there.apply(StreamOrder::Close(stream));
    assert_eq!(news_here.recv().await, Some(StreamNews::Closed(FIRST)));
    serving.await.unwrap();
    assert!(news_there.try_recv().is_err(), "what is closed by order is not spoken of again");
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_told_as_a_connection_that_is_gone() {
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let (streams, mut news) = Streams::new(Connector::default());
    streams.apply(open(FIRST, Carrier::Tls, closed));
    assert_eq!(news.recv().await, Some(StreamNews::Closed(FIRST)));
}

/// Rules 6.100 and 6.111: whoever asks for something else, inside TLS or without, is not somebody to send messages to.
#[tokio::test]
async fn http_that_asks_for_no_websocket_is_no_stream() {
    let (there, mut news) = Streams::new(Connector::default());
    let (address, serving) = server(there).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET {} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", Content::Messages.path());
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 426 ") && answer.contains("upgrade: websocket"), "{answer}");
    serving.await.unwrap();
    assert!(news.try_recv().is_err());
}

/// Rule 6.100.
#[tokio::test]
async fn tls_without_the_name_of_messages_is_no_stream() {
    let (there, mut news) = Streams::new(Connector::default());
    let (address, serving) = server(there).await;
    let socket = TcpStream::connect(address).await.unwrap();
    let mut io = AnyCertificate::connect(socket, address, ALPN_HTTP).await.unwrap();
    io.write_all(b"\0\x01x").await.unwrap();
    serving.await.unwrap();
    let mut answer = Vec::new();
    let _ = io.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
    assert!(news.try_recv().is_err());
}

/// A super-node's port on which whatever begins as a leg is taken and never answered, as by a filter; and what its relay is told.
async fn relay_behind_a_filter() -> (SocketAddr, mpsc::Receiver<relay::Input>, Legs) {
    let (legs, news) = Legs::new(Caps { bytes_per_second: None, bytes_per_day: None }, Clock::new());
    let (streams, _news) = Streams::new(Connector::default());
    let intake = TlsIntake::new(Intake::new(streams, legs.clone())).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut swallowed = Vec::new();
        while let Ok((socket, remote)) = listener.accept().await {
            let mut first = [0];
            if socket.peek(&mut first).await.is_ok() && begins_leg(first[0]) {
                swallowed.push(socket);
                continue;
            }
            let intake = intake.clone();
            tokio::spawn(async move { take(&intake, socket, remote).await });
        }
    });
    (address, news, legs)
}

/// Answers what nobody can open with the hint about it, as the machine behind a relay does.
fn hint_about(payload: &[u8]) -> Bytes {
    Hint { echo: tag_of(payload).unwrap(), reason: HintReason::NeedLong }.to_bytes().into()
}

/// Rules 6.110, 6.111 and 6.113: a connection counts once the relay has answered on it, whatever stands; and what is inside something is joined
/// with what is bare.
#[tokio::test]
async fn a_leg_that_is_swallowed_bare_goes_inside_what_passes_and_is_joined_with_a_bare_one() {
    for carrier in Carrier::ALL.into_iter().filter(|carrier| *carrier != Carrier::Udp) {
        join_with_a_bare_leg(carrier).await;
    }
}

async fn join_with_a_bare_leg(carrier: Carrier) {
    let (address, mut news, legs) = relay_behind_a_filter().await;
    let (own, mut told) = OwnLegs::new(Connector::default());
    let identity = [1; 32];
    let peer = NodeId::new(Domain(1), &identity);
    let what = OwnLeg { relay: peer, address, link: LinkId([1; 16]), peer, identity, side: Side::Client };
    let inside = [None, Some(carrier)];
    let all = inside.map(|inside| LegWay { inside, address }).to_vec();
    own.order(LegId(7), LegOrder::Dial(what, LegWays { all, must_answer: true }));
    let Some(relay::Input::Datagram { leg, payload, .. }) = news.recv().await else { panic!() };
    legs.apply(relay::Output::Send { leg, payload: hint_about(&payload) });
    assert!(matches!(told.recv().await, Some(OwnLegEvent::News(LegId(7), LegNews::Opened))));
    own.order(LegId(7), LegOrder::Send(Bytes::from_static(b"join")));
    let Some(relay::Input::Datagram { leg: inside, payload, .. }) = news.recv().await else { panic!() };
    assert_eq!((inside, &payload[..]), (leg, &b"join"[..]));

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (bare, accepted) = tokio::join!(connecting, listener.accept());
    let (mut bare, (socket, remote)) = (bare.unwrap(), accepted.unwrap());
    legs.accept(socket, remote);
    bare.write_all(&leg::frame(b"join").unwrap()).await.unwrap();
    let Some(relay::Input::Datagram { leg: other, .. }) = news.recv().await else { panic!() };
    let joined = Bytes::from_static(b"joined");
    legs.apply(relay::Output::Join([(inside, joined.clone()), (other, joined)]));
    assert_eq!(framed::read(&mut bare).await.unwrap(), "joined");
    let Some(OwnLegEvent::News(_, LegNews::Datagram(_))) = told.recv().await else { panic!() };
    let leg = own.take(what.link).unwrap().await.unwrap();
    own.order(LegId(7), LegOrder::Joined);
    let near = leg.joined().await.unwrap().unwrap().stream;

    let sent = vec![7; 1_000_000];
    let (written, mut read) = (near.write(&sent), vec![0; sent.len()]);
    let (written, heard) = tokio::join!(written, bare.read_exact(&mut read));
    assert_eq!((written.is_ok(), heard.unwrap()), (true, sent.len()));
    assert!(read == sent);
    bare.write_all(b"thanks").await.unwrap();
    bare.shutdown().await.unwrap();
    let mut thanks = [0; 6];
    near.fill(&mut thanks).await.unwrap();
    assert_eq!((&thanks, near.peek().await.unwrap()), (b"thanks", None));
}

/// Rule 6.101.
#[tokio::test]
async fn a_length_that_is_none_ends_the_stream() {
    let too_long = u16::try_from(MAX_DATAGRAM).unwrap() + 1;
    for length in [0, too_long] {
        let (streams, mut news) = Streams::new(Connector::default());
        let (mut peer, io) = duplex(4_096);
        let serving = tokio::spawn(async move { streams.serve(io, remote()).await });
        peer.write_all(&length.to_be_bytes()).await.unwrap();
        serving.await.unwrap();
        assert_eq!(news.recv().await, Some(StreamNews::Closed(StreamId::Accepted(0))));
    }
}

/// Rule 6.104: a reader that does not read costs a bounded queue, and is cut off in the end.
#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_read_loses_messages_and_then_its_stream() {
    let (streams, mut news) = Streams::new(Connector::default());
    let (peer, io) = duplex(64);
    let served = streams.clone();
    let serving = tokio::spawn(async move { served.serve(io, remote()).await });
    tokio::task::yield_now().await;
    let stream = StreamId::Accepted(0);
    for _ in 0..4 * MAX_WAITING {
        streams.apply(send(stream, &[7; 1_000]));
    }
    let waiting = lock(&streams.inner.open).get(&stream).map(|sender| MAX_WAITING - sender.capacity());
    assert_eq!(waiting, Some(MAX_WAITING));
    serving.await.unwrap();
    assert_eq!(news.recv().await, Some(StreamNews::Closed(stream)));
    drop(peer);
}

/// Rule 6.104.
#[tokio::test(start_paused = true)]
async fn a_member_that_says_nothing_for_three_minutes_is_cut_off() {
    let (streams, mut news) = Streams::new(Connector::default());
    let (_peer, io) = duplex(64);
    tokio::spawn(async move { streams.serve(io, remote()).await });
    assert_eq!(news.recv().await, Some(StreamNews::Closed(StreamId::Accepted(0))));
}

/// Rule 6.104.
#[tokio::test]
async fn one_place_has_its_share_of_streams_and_no_more() {
    let (streams, _news) = Streams::new(Connector::default());
    let taken: Vec<_> =
        (0..MAX_STREAMS_PER_PLACE).map(|_| streams.inner.accepted.take(remote().ip())).collect();
    assert!(taken.iter().all(Option::is_some));
    let (mut peer, io) = duplex(64);
    streams.serve(io, remote()).await;
    assert_eq!(peer.read(&mut [0; 1]).await.unwrap(), 0, "closed unheard");
    drop(taken);
    let (mut peer, io) = duplex(64);
    let serving = tokio::spawn(async move { streams.serve(io, remote()).await });
    peer.write_all(&[0, 1, 7]).await.unwrap();
    drop(peer);
    serving.await.unwrap();
}
