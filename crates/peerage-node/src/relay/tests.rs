use peerage_wire::leg;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;

use super::*;
use crate::framed;

const HELLO: &[u8] = b"let me in";
const JOINED: &[u8] = b"joined";
const FREE: Caps = Caps { bytes_per_second: None, bytes_per_day: None };

/// A relay on loopback, and the machine behind it, which is the test.
struct World {
    legs: Legs,
    news: mpsc::Receiver<Input>,
    listener: TcpListener,
}

impl World {
    async fn new(caps: Caps) -> Self {
        let (legs, news) = Legs::new(caps, Clock::new());
        Self { legs, news, listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    /// Makes a connection that the relay has taken and that has said nothing yet.
    async fn connect(&self) -> TcpStream {
        let address = self.listener.local_addr().unwrap();
        let (stream, accepted) = tokio::join!(TcpStream::connect(address), self.listener.accept());
        let (server, remote) = accepted.unwrap();
        self.legs.accept(server, remote);
        stream.unwrap()
    }

    /// Makes a leg that has asked, and sent something ahead.
    async fn leg(&mut self, ahead: &[u8]) -> (LegId, TcpStream) {
        let mut stream = self.connect().await;
        let request = [&leg::frame(HELLO).unwrap(), ahead].concat();
        stream.write_all(&request).await.unwrap();
        match self.news.recv().await.unwrap() {
            Input::Datagram { leg, remote, payload } => {
                assert_eq!((remote, &payload[..]), (stream.local_addr().unwrap(), HELLO));
                (leg, stream)
            }
            Input::Closed(leg) => panic!("{leg:?} was closed"),
        }
    }

    async fn pair(&mut self) -> [(LegId, TcpStream); 2] {
        let [mut one, mut other] = [self.leg(b"").await, self.leg(b"").await];
        self.legs.apply(join(one.0, other.0));
        for stream in [&mut one.1, &mut other.1] {
            assert_eq!(framed::read(stream).await.unwrap(), JOINED);
        }
        [one, other]
    }

    async fn closed(&mut self) -> LegId {
        match self.news.recv().await.unwrap() {
            Input::Closed(leg) => leg,
            Input::Datagram { payload, .. } => panic!("{payload:?}"),
        }
    }
}

fn join(one: LegId, other: LegId) -> Output {
    Output::Join([one, other].map(|leg| (leg, Bytes::from_static(JOINED))))
}

/// Returns bytes of which each place is told from the others nearby.
fn pattern(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).unwrap()).collect()
}

async fn send(mut to: OwnedWriteHalf, total: usize) -> OwnedWriteHalf {
    for from in (0..total).step_by(50_000) {
        to.write_all(&pattern(from, 50_000.min(total - from))).await.unwrap();
    }
    to.shutdown().await.unwrap();
    to
}

async fn expect(mut from: OwnedReadHalf, total: usize) -> OwnedReadHalf {
    let (mut at, mut buffer) = (0, vec![0; 70_000]);
    loop {
        let length = from.read(&mut buffer).await.unwrap();
        if length == 0 {
            assert_eq!(at, total);
            return from;
        }
        assert_eq!(buffer[..length], pattern(at, length));
        at += length;
    }
}

/// Sends and expects so much in both directions at once, ends included.
async fn exchange(one: TcpStream, other: TcpStream, total: usize) {
    let ((read_one, write_one), (read_other, write_other)) = (one.into_split(), other.into_split());
    tokio::join!(
        send(write_one, total),
        expect(read_other, total),
        send(write_other, total),
        expect(read_one, total)
    );
}

#[tokio::test]
async fn every_byte_passes_both_ways_and_each_end_of_a_stream_by_itself() {
    let mut world = World::new(FREE).await;
    let [(first, one), (second, other)] = world.pair().await;
    exchange(one, other, 5_000_000).await;
    let mut closed = [world.closed().await, world.closed().await];
    closed.sort();
    assert_eq!(closed, [first, second]);
    assert_eq!((world.legs.bytes(), world.legs.count()), (10_000_000, 0));
}

#[tokio::test]
async fn after_one_side_has_ended_the_other_goes_on() {
    let mut world = World::new(FREE).await;
    let [(_, mut one), (_, mut other)] = world.pair().await;
    one.write_all(b"question").await.unwrap();
    one.shutdown().await.unwrap();
    let mut question = String::new();
    other.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    for _ in 0..3 {
        other.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        one.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
    }
    drop(other);
    assert_eq!(one.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn what_was_sent_ahead_arrives_first() {
    let mut world = World::new(FREE).await;
    let (one, mut ahead) = world.leg(b"ahead and ").await;
    let (other, mut late) = world.leg(b"").await;
    ahead.write_all(b"more").await.unwrap();
    world.legs.apply(join(one, other));
    assert_eq!(framed::read(&mut late).await.unwrap(), JOINED);
    let mut received = [0; 14];
    late.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"ahead and more");
}

#[tokio::test]
async fn a_hint_leads_to_another_request_on_the_same_leg() {
    let mut world = World::new(FREE).await;
    let (leg, mut stream) = world.leg(b"").await;
    world.legs.apply(Output::Send { leg, payload: Bytes::from_static(b"a hint") });
    assert_eq!(framed::read(&mut stream).await.unwrap(), "a hint");
    stream.write_all(&leg::frame(b"once more").unwrap()).await.unwrap();
    let again = world.news.recv().await.unwrap();
    assert!(
        matches!(&again, Input::Datagram { leg: of, payload, .. } if *of == leg && *payload == "once more")
    );
}

#[tokio::test]
async fn a_slow_reader_slows_its_sender_and_the_relay_keeps_little() {
    /// What two sockets of each computer and a pipe hold at most.
    const UNDER_WAY: u64 = 24 << 20;
    let mut world = World::new(FREE).await;
    let [(_, one), (_, mut other)] = world.pair().await;
    let total = 64 << 20;
    let sending = tokio::spawn(send(one.into_split().1, total));
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < total {
        other.read_exact(&mut buffer).await.unwrap();
        assert_eq!(buffer, pattern(at, buffer.len()));
        at += buffer.len();
        assert!(world.legs.bytes() - at as u64 <= UNDER_WAY);
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn five_hundred_tunnels_pass_bytes_at_once_and_give_their_pipes_back() {
    let mut world = World::new(FREE).await;
    let mut pairs = Vec::new();
    for _ in 0..500 {
        pairs.push(world.pair().await);
    }
    let mut exchanges = JoinSet::new();
    for [(_, one), (_, other)] in pairs {
        exchanges.spawn(exchange(one, other, 50_000));
    }
    while let Some(done) = exchanges.join_next().await {
        done.unwrap();
    }
    for _ in 0..1_000 {
        world.closed().await;
    }
    assert_eq!((world.legs.bytes(), world.legs.count()), (500 * 2 * 50_000, 0));
    #[cfg(target_os = "linux")]
    assert_eq!(world.legs.inner.meter.pipes.lent(), 0);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn without_a_free_pipe_the_bytes_pass_all_the_same() {
    let mut world = World::new(FREE).await;
    let [(_, one), (_, other)] = world.pair().await;
    let inner = Arc::clone(&world.legs.inner);
    let taken: Vec<_> = std::iter::from_fn(|| inner.meter.pipes.lend()).collect();
    assert!(!taken.is_empty());
    exchange(one, other, 3_000_000).await;
}

#[tokio::test]
async fn beyond_the_bytes_of_a_day_nothing_passes_and_nobody_is_let_in() {
    let mut world = World::new(Caps { bytes_per_day: Some(100_000), ..FREE }).await;
    let [(_, mut one), (_, mut other)] = world.pair().await;
    one.write_all(&pattern(0, 150_000)).await.unwrap();
    let mut received = vec![0; 100_000];
    other.read_exact(&mut received).await.unwrap();
    assert_eq!(received, pattern(0, 100_000));
    assert_eq!(world.legs.bytes(), 100_000);
    let mut refused = world.connect().await;
    assert_eq!(refused.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(world.legs.count(), 2);
}

#[tokio::test]
async fn a_reset_arrives_as_a_reset() {
    let mut world = World::new(FREE).await;
    let [(_, one), (_, mut other)] = world.pair().await;
    let one = Socket::from(one);
    one.reset();
    drop(one);
    let error = other.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn closing_one_leg_of_a_pair_closes_both_at_once() {
    for which in 0..2 {
        let mut world = World::new(FREE).await;
        let mut legs = world.pair().await;
        world.legs.apply(Output::Close { leg: legs[which].0, last: None });
        for (_, stream) in &mut legs {
            let error = stream.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        world.closed().await;
        world.closed().await;
    }
}

#[tokio::test]
async fn a_leg_that_goes_before_its_partner_came_is_told() {
    let mut world = World::new(FREE).await;
    let (leg, stream) = world.leg(b"").await;
    drop(stream);
    assert_eq!(world.closed().await, leg);
}

#[tokio::test]
async fn when_the_first_leg_is_gone_at_the_join_the_second_ends() {
    let mut world = World::new(FREE).await;
    let (one, gone) = world.leg(b"").await;
    let (other, mut stream) = world.leg(b"").await;
    drop(gone);
    assert_eq!(world.closed().await, one);
    world.legs.apply(join(one, other));
    assert_eq!(framed::read(&mut stream).await.unwrap(), JOINED);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(world.closed().await, other);
}

#[tokio::test]
async fn a_refused_leg_hears_why_although_it_has_sent_ahead() {
    let mut world = World::new(FREE).await;
    let (leg, mut stream) = world.leg(&[7; 10_000]).await;
    world.legs.apply(Output::Close { leg, last: Some(Bytes::from_static(b"no")) });
    assert_eq!(framed::read(&mut stream).await.unwrap(), "no");
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_or_half_of_it_is_cut_off() {
    let mut world = World::new(FREE).await;
    let whole = leg::frame(HELLO).unwrap();
    for said in [0, 1, 2, whole.len() - 1] {
        let mut stream = world.connect().await;
        stream.write_all(&whole[..said]).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
        world.closed().await;
    }
}

#[tokio::test]
async fn what_is_no_datagram_ends_a_leg_at_once() {
    let mut world = World::new(FREE).await;
    for wrong in [[0, 0], [4, 0xb1], [0xff, 0xff], [22, 3]] {
        let mut stream = world.connect().await;
        stream.write_all(&wrong).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
        world.closed().await;
    }
}

#[tokio::test]
async fn a_leg_that_never_says_the_right_thing_has_few_attempts() {
    let mut world = World::new(FREE).await;
    let (leg, mut stream) = world.leg(b"").await;
    for _ in 1..MAX_FRAMES {
        world.legs.apply(Output::Send { leg, payload: Bytes::from_static(b"hint") });
        framed::read(&mut stream).await.unwrap();
        stream.write_all(&leg::frame(HELLO).unwrap()).await.unwrap();
        assert!(matches!(world.news.recv().await, Some(Input::Datagram { .. })));
    }
    world.legs.apply(Output::Send { leg, payload: Bytes::from_static(b"hint") });
    assert_eq!(world.closed().await, leg);
}

#[tokio::test]
async fn one_address_cannot_hold_all_connections() {
    let world = World::new(FREE).await;
    let mut silent = Vec::new();
    for _ in 0..MAX_WAITING_PER_PLACE {
        silent.push(world.connect().await);
    }
    let mut surplus = world.connect().await;
    assert_eq!(surplus.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(world.legs.count(), MAX_WAITING_PER_PLACE);
}

#[tokio::test]
async fn closing_the_relay_closes_every_leg() {
    let mut world = World::new(FREE).await;
    let mut legs = world.pair().await;
    let (_, mut waiting) = world.leg(b"").await;
    world.legs.close_all();
    for (_, stream) in &mut legs {
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    }
    assert_eq!(waiting.read(&mut [0]).await.unwrap_or(0), 0);
}

#[test]
fn the_limits_leave_descriptors_for_the_rest() {
    let limits = limits();
    assert!((1..=Limits::default().tunnels).contains(&limits.tunnels));
    assert_eq!(limits.per_domain, Limits::default().per_domain);
}
