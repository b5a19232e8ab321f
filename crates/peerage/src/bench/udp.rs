//! Datagrams: a plain echo, and the generator that counts what comes back.
//!
//! The generator keeps a fixed number of requests under way, from as many sockets as there are peers. It takes turns among them, so that
//! each has at most one under way when there are many.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use quinn::udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Socket, Type};

/// Requests under way. More fill the buffers of sockets until they lose datagrams; fewer leave both ends idle in turns.
const WINDOW: usize = 64;

/// The same where one socket carries all of them in pieces: fewer, and both ends wake each other for each piece.
const WINDOW_OF_ONE: usize = 512;

/// Datagrams of a piece, where nothing is waited for.
const MAX_PIECE: usize = 64;

/// How long the first answer is waited for, however short it is asked: where other programs run, nobody else may in a short while. A bench
/// without any answer has nothing to say.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// When nothing has come back for so long, what is under way is taken for lost.
const PATIENCE_MS: u16 = 100;

/// Room for one datagram.
const DATAGRAM_BYTES: usize = 1_536;

/// Room for datagrams that the system hands over in one piece.
const PIECE_BYTES: usize = 1 << 16;

/// The room that the system keeps for datagrams that wait.
const SOCKET_BUFFER_BYTES: usize = 1 << 20;

/// Makes requests, and looks at what comes back.
pub(super) trait Talk {
    /// Writes the next request of a peer in place of what is in the buffer.
    fn ask(&mut self, peer: usize, datagram: &mut Vec<u8>) -> Result<()>;
    /// Returns whether this is an answer as it should be.
    fn is_answer(&mut self, peer: usize, datagram: &[u8]) -> bool;
}

/// The same bytes there and back.
#[derive(Debug)]
pub(super) struct Plain {
    pub(super) size: usize,
}

impl Talk for Plain {
    fn ask(&mut self, _peer: usize, datagram: &mut Vec<u8>) -> Result<()> {
        datagram.clear();
        datagram.resize(self.size, 0x5a);
        Ok(())
    }

    fn is_answer(&mut self, _peer: usize, datagram: &[u8]) -> bool {
        datagram.len() == self.size
    }
}

/// What came back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    pub(super) answers: u64,
    /// What came back wrong.
    pub(super) wrong: u64,
    /// What did not come back in time.
    pub(super) lost: u64,
    pub(super) took: Duration,
}

impl Count {
    pub(super) fn per_second(&self) -> f64 {
        self.answers as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

/// Answers each datagram with itself, one call each, until the process ends.
///
/// # Errors
/// When there is no socket.
pub(super) fn echo(ready: impl FnOnce(SocketAddr) -> Result<()>) -> Result<()> {
    let socket = bind(Ipv4Addr::LOCALHOST)?;
    ready(socket.local_addr()?)?;
    let mut buffer = [0; DATAGRAM_BYTES];
    loop {
        let (count, from) = socket.recv_from(&mut buffer)?;
        // Whoever has gone needs no answer.
        _ = socket.send_to(buffer.get(..count).unwrap_or_default(), from);
    }
}

/// Makes a socket on an address of this computer, with room for bursts.
pub(super) fn bind(at: Ipv4Addr) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // Less is no error: the system gives what it allows.
    _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&SocketAddr::new(IpAddr::V4(at), 0).into()).with_context(|| format!("cannot use {at}"))?;
    Ok(socket.into())
}

/// Keeps requests under way for so long and counts the answers. The sockets must be connected.
///
/// # Errors
/// When a socket fails.
pub(super) fn flood(sockets: &[UdpSocket], length: Duration, talk: &mut dyn Talk) -> Result<Count> {
    sockets.iter().try_for_each(|socket| socket.set_nonblocking(true))?;
    match sockets {
        [one] => flood_from_one(one, length, talk),
        many => flood_from_many(many, length, talk),
    }
}

/// Sends and receives many datagrams with one call where the system can.
fn flood_from_one(socket: &UdpSocket, length: Duration, talk: &mut dyn Talk) -> Result<Count> {
    let (mut pieces, mut taken) = (Pieces::new(socket)?, Taken::new(socket)?);
    let (mut count, mut under_way) = (Count::default(), 0_usize);
    let began_at = Instant::now();
    while goes_on(&count, began_at, length) {
        // Half of the window at a time, so that pieces stay large.
        while under_way <= WINDOW_OF_ONE / 2 {
            let sent = pieces.send(WINDOW_OF_ONE - under_way, |out| talk.ask(0, out))?;
            if sent == 0 {
                break;
            }
            under_way += sent;
        }
        let received = taken.receive(|datagram| note(&mut count, talk.is_answer(0, datagram)))?;
        under_way = under_way.saturating_sub(received);
        if received == 0 && !wait_for(socket, PollFlags::POLLIN)? {
            count.lost += std::mem::take(&mut under_way) as u64;
        }
    }
    count.took = began_at.elapsed();
    Ok(count)
}

/// The way out of a socket that does not wait: many datagrams of one length with one call.
struct Pieces<'s> {
    socket: &'s UdpSocket,
    state: UdpSocketState,
    remote: SocketAddr,
    piece: Vec<u8>,
    one: Vec<u8>,
    /// How many datagrams of the piece the system has not taken yet: all or none.
    waiting: usize,
}

impl<'s> Pieces<'s> {
    fn new(socket: &'s UdpSocket) -> Result<Self> {
        let (state, remote) = (UdpSocketState::new(socket.into())?, socket.peer_addr()?);
        Ok(Self { socket, state, remote, piece: Vec::new(), one: Vec::new(), waiting: 0 })
    }

    /// Sends what `ask` writes, so many at the most, and returns how many went out; what the system does not take goes first next time.
    fn send(&mut self, most: usize, mut ask: impl FnMut(&mut Vec<u8>) -> Result<()>) -> Result<usize> {
        if self.waiting == 0 {
            self.piece.clear();
            for _ in 0..self.state.max_gso_segments().clamp(1, most.max(1)) {
                ask(&mut self.one)?;
                self.piece.extend_from_slice(&self.one);
                self.waiting += 1;
            }
        }
        let segment_size = (self.waiting > 1).then_some(self.one.len());
        let transmit = Transmit {
            destination: self.remote,
            ecn: None,
            contents: &self.piece,
            segment_size,
            src_ip: None,
        };
        match self.state.try_send(self.socket.into(), &transmit) {
            Ok(()) => Ok(std::mem::take(&mut self.waiting)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

/// The way in.
struct Taken<'s> {
    socket: &'s UdpSocket,
    state: UdpSocketState,
    buffers: Vec<Vec<u8>>,
    metas: Vec<RecvMeta>,
}

impl<'s> Taken<'s> {
    fn new(socket: &'s UdpSocket) -> Result<Self> {
        let (buffers, metas) =
            (vec![vec![0; PIECE_BYTES]; BATCH_SIZE], vec![RecvMeta::default(); BATCH_SIZE]);
        Ok(Self { socket, state: UdpSocketState::new(socket.into())?, buffers, metas })
    }

    /// Shows what has come, and returns how many datagrams that were.
    fn receive(&mut self, mut show: impl FnMut(&[u8])) -> Result<usize> {
        let mut slices: Vec<IoSliceMut<'_>> = self.buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        let received = match self.state.recv(self.socket.into(), &mut slices, &mut self.metas) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error.into()),
        };
        let mut count = 0;
        for (buffer, meta) in self.buffers.iter().zip(&self.metas).take(received) {
            for datagram in buffer.get(..meta.len).unwrap_or_default().chunks(meta.stride.max(1)) {
                show(datagram);
                count += 1;
            }
        }
        Ok(count)
    }
}

/// Waits until a socket can be read or written, and returns whether it can.
fn wait_for(socket: &UdpSocket, what: PollFlags) -> Result<bool> {
    Ok(poll(&mut [PollFd::new(socket.as_fd(), what)], PollTimeout::from(PATIENCE_MS))? > 0)
}

fn flood_from_many(sockets: &[UdpSocket], length: Duration, talk: &mut dyn Talk) -> Result<Count> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (index, socket) in sockets.iter().enumerate() {
        epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
    }
    let mut events = vec![EpollEvent::empty(); WINDOW];
    let (mut count, mut under_way, mut turn) = (Count::default(), 0_usize, 0_usize);
    let (mut out, mut buffer) = (Vec::new(), [0; DATAGRAM_BYTES]);
    let began_at = Instant::now();
    while goes_on(&count, began_at, length) {
        while under_way < WINDOW {
            let Some(socket) = sockets.get(turn) else { break };
            talk.ask(turn, &mut out)?;
            match socket.send(&out) {
                Ok(_) => under_way += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
            turn = (turn + 1) % sockets.len();
        }
        let ready = epoll.wait(&mut events, EpollTimeout::from(PATIENCE_MS))?;
        if ready == 0 {
            count.lost += std::mem::take(&mut under_way) as u64;
        }
        for event in events.iter().take(ready) {
            let peer = usize::try_from(event.data()).unwrap_or(usize::MAX);
            let Some(socket) = sockets.get(peer) else { continue };
            if let Ok(length) = socket.recv(&mut buffer) {
                under_way = under_way.saturating_sub(1);
                note(&mut count, talk.is_answer(peer, buffer.get(..length).unwrap_or_default()));
            }
        }
    }
    count.took = began_at.elapsed();
    Ok(count)
}

/// Asks as fast as one thread can, for so long, while another counts what comes back: an open loop, in which nobody waits for an answer and
/// what the other end has no time for is lost. The socket must be connected.
///
/// # Errors
/// When the socket fails.
pub(super) fn flood_openly(
    socket: &UdpSocket,
    length: Duration,
    mut ask: impl FnMut(&mut Vec<u8>) -> Result<()>,
    is_answer: impl Fn(&[u8]) -> bool + Sync,
) -> Result<Count> {
    socket.set_nonblocking(true)?;
    let (mut pieces, mut taken) = (Pieces::new(socket)?, Taken::new(socket)?);
    let (answers, wrong, has_ended) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let listen = || -> Result<()> {
        while !has_ended.load(Ordering::Relaxed) {
            let show = |datagram: &[u8]| {
                let counted = if is_answer(datagram) { &answers } else { &wrong };
                counted.fetch_add(1, Ordering::Relaxed);
            };
            if taken.receive(show)? == 0 {
                wait_for(socket, PollFlags::POLLIN)?;
            }
        }
        Ok(())
    };
    let count = || Count {
        answers: answers.load(Ordering::Relaxed),
        wrong: wrong.load(Ordering::Relaxed),
        ..Count::default()
    };
    let (sent, took) = thread::scope(|scope| {
        let listening = scope.spawn(listen);
        let (mut sent, began_at) = (0, Instant::now());
        let asked = loop {
            if !goes_on(&count(), began_at, length) {
                break Ok(());
            }
            let asked = match pieces.send(MAX_PIECE, &mut ask) {
                Ok(0) => wait_for(socket, PollFlags::POLLOUT).map(drop),
                Ok(more) => {
                    sent += more as u64;
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if asked.is_err() {
                break asked;
            }
        };
        let took = began_at.elapsed();
        has_ended.store(true, Ordering::Relaxed);
        listening.join().map_err(|_| anyhow!("the thread that counts has failed"))??;
        asked.map(|()| (sent, took))
    })?;
    let count = count();
    Ok(Count { lost: sent.saturating_sub(count.answers + count.wrong), took, ..count })
}

/// The plainest client: one socket, one call for each datagram.
///
/// # Errors
/// When the socket fails.
pub(super) fn flood_plainly(socket: &UdpSocket, length: Duration, size: usize) -> Result<Count> {
    socket.set_read_timeout(Some(Duration::from_millis(PATIENCE_MS.into())))?;
    let (out, mut buffer) = (vec![0x5a; size], [0; DATAGRAM_BYTES]);
    let (mut count, mut under_way) = (Count::default(), 0_usize);
    let began_at = Instant::now();
    while goes_on(&count, began_at, length) {
        while under_way < WINDOW {
            socket.send(&out)?;
            under_way += 1;
        }
        match socket.recv(&mut buffer) {
            Ok(length) => {
                under_way -= 1;
                note(&mut count, length == size);
            }
            Err(_silence) => count.lost += std::mem::take(&mut under_way) as u64,
        }
    }
    count.took = began_at.elapsed();
    Ok(count)
}

/// Returns whether it is asked on: for that long, and until one answer has come.
fn goes_on(count: &Count, began_at: Instant, length: Duration) -> bool {
    let spent = began_at.elapsed();
    spent < length || (count.answers == 0 && spent < FIRST_ANSWER)
}

fn note(count: &mut Count, is_answer: bool) {
    if is_answer {
        count.answers += 1;
    } else {
        count.wrong += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_counted_from_one_socket_and_from_many() {
        let (tell, told) = std::sync::mpsc::channel();
        thread::spawn(move || echo(|at| Ok(tell.send(at)?)));
        let to = told.recv().unwrap();
        let socket = || {
            let socket = bind(Ipv4Addr::LOCALHOST).unwrap();
            socket.connect(to).unwrap();
            socket
        };
        let length = Duration::from_millis(20);
        assert!(flood_plainly(&socket(), length, 200).unwrap().answers > 0);
        for many in [1, 100] {
            let sockets: Vec<_> = (0..many).map(|_| socket()).collect();
            let count = flood(&sockets, length, &mut Plain { size: 200 }).unwrap();
            assert!(count.answers > 0 && count.per_second() > 0.0, "{count:?}");
            assert_eq!(count.wrong, 0);
        }
        let ask = |out: &mut Vec<u8>| {
            *out = vec![0x5a; 200];
            Ok(())
        };
        let count = flood_openly(&socket(), length, ask, |datagram| datagram.len() == 200).unwrap();
        assert!(count.answers > 0 && count.wrong == 0, "{count:?}");
    }
}
