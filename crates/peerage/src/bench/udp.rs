//! Datagrams: a plain echo, and the generator that counts what comes back.
//!
//! The generator keeps a fixed number of requests under way, from as many sockets as there are peers. It takes turns among them, so that
//! each has at most one under way when there are many.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
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
    let state = UdpSocketState::new(socket.into())?;
    let remote = socket.peer_addr()?;
    let most = state.max_gso_segments().max(1);
    let mut buffers = vec![vec![0; PIECE_BYTES]; BATCH_SIZE];
    let mut metas = vec![RecvMeta::default(); BATCH_SIZE];
    let (mut count, mut under_way) = (Count::default(), 0_usize);
    let (mut piece, mut one) = (Vec::new(), Vec::new());
    let began_at = Instant::now();
    while goes_on(&count, began_at, length) {
        // Half of the window at a time, so that pieces stay large.
        while under_way <= WINDOW_OF_ONE / 2 {
            piece.clear();
            let segments = most.min(WINDOW_OF_ONE - under_way);
            for _ in 0..segments {
                talk.ask(0, &mut one)?;
                piece.extend_from_slice(&one);
            }
            let segment_size = (segments > 1).then_some(one.len());
            let transmit =
                Transmit { destination: remote, ecn: None, contents: &piece, segment_size, src_ip: None };
            match state.try_send(socket.into(), &transmit) {
                Ok(()) => under_way += segments,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        let mut slices: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        match state.recv(socket.into(), &mut slices, &mut metas) {
            Ok(received) => {
                for (buffer, meta) in buffers.iter().zip(&metas).take(received) {
                    let all = buffer.get(..meta.len).unwrap_or_default();
                    for datagram in all.chunks(meta.stride.max(1)) {
                        under_way = under_way.saturating_sub(1);
                        note(&mut count, talk.is_answer(0, datagram));
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                if poll(&mut wanted, PollTimeout::from(PATIENCE_MS))? == 0 {
                    count.lost += std::mem::take(&mut under_way) as u64;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    count.took = began_at.elapsed();
    Ok(count)
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
        std::thread::spawn(move || echo(|at| Ok(tell.send(at)?)));
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
    }
}
