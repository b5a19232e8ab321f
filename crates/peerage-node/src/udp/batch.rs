//! Many datagrams with one call, where the system can.
//!
//! What is read may hold several datagrams of one sender in one buffer (generic receive offload); what is sent to one receiver in
//! pieces of one length goes to the system as one piece, which it cuts up (generic segmentation offload). Measured on loopback, a
//! datagram alone costs about a microsecond in each direction, and a fifth of that in company.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;

use bytes::Bytes;
use quinn::udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Room for what the system may hand over in one buffer; it stays unused memory until that happens.
const BUFFER_BYTES: usize = 1 << 16;

/// Most bytes that are sent as one piece: what fits into an IP packet with its headers.
const MAX_PIECE_BYTES: usize = 60_000;

/// A socket's room for many datagrams at once.
#[derive(Debug)]
pub struct Batches {
    state: UdpSocketState,
    buffers: Vec<Vec<u8>>,
    metas: Vec<RecvMeta>,
    sending: Sending,
}

impl Batches {
    /// Makes the room, and sets the options of the socket that this needs.
    ///
    /// # Errors
    /// If the system refuses the options.
    pub fn new(socket: &UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new(socket.into())?;
        let buffers = vec![vec![0; BUFFER_BYTES]; BATCH_SIZE];
        let metas = vec![RecvMeta::default(); BATCH_SIZE];
        Ok(Self { state, buffers, metas, sending: Sending::default() })
    }

    /// Takes what one call gives, at most so many buffers of it, with addresses as the socket shows them; returns how many datagrams that
    /// was.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing; another one may come in place of a datagram.
    pub fn receive(
        &mut self,
        socket: &UdpSocket,
        most: usize,
        mut take: impl FnMut(SocketAddr, &[u8]),
    ) -> io::Result<usize> {
        let Self { state, buffers, metas, .. } = self;
        let mut slices: Vec<IoSliceMut<'_>> =
            buffers.iter_mut().take(most).map(|all| IoSliceMut::new(all)).collect();
        let count = socket
            .try_io(Interest::READABLE, || state.recv(socket.into(), &mut slices, metas.as_mut_slice()))?;
        let mut datagrams = 0;
        for (buffer, meta) in slices.iter().zip(metas.iter()).take(count) {
            let received = buffer.get(..meta.len).unwrap_or_default();
            if received.is_empty() {
                take(meta.addr, received);
                datagrams += 1;
            }
            // Datagrams that share a buffer are equally long but for the last.
            for datagram in received.chunks(meta.stride.max(1)) {
                take(meta.addr, datagram);
                datagrams += 1;
            }
        }
        Ok(datagrams)
    }

    /// Sends what waits, first things first, to addresses as the socket wants them; returns how many datagrams the system refused.
    ///
    /// # Errors
    /// `WouldBlock` if the socket takes no more now; the rest still waits.
    pub fn send(
        &mut self,
        socket: &UdpSocket,
        waiting: &mut VecDeque<(SocketAddr, Bytes)>,
    ) -> Result<u64, Refused> {
        self.sending.send(socket, Some(&self.state), waiting)
    }
}

/// The socket takes no more now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// How many datagrams the system refused for good before.
    pub failed: u64,
}

/// What is needed to send many datagrams.
#[derive(Debug, Default)]
pub(super) struct Sending {
    piece: Vec<u8>,
}

impl Sending {
    /// As [`Batches::send`]; without a state, each datagram by itself.
    pub(super) fn send(
        &mut self,
        socket: &UdpSocket,
        state: Option<&UdpSocketState>,
        waiting: &mut VecDeque<(SocketAddr, Bytes)>,
    ) -> Result<u64, Refused> {
        let mut failed = 0;
        let mut alone = 0;
        while let Some((remote, payload)) = waiting.front() {
            let most = if alone > 0 { 1 } else { state.map_or(1, UdpSocketState::max_gso_segments) };
            let run = run(waiting, most);
            let result = match state {
                Some(state) if run > 1 => self.send_piece((socket, state), waiting, run),
                _ => socket.try_send_to(payload, *remote).map(drop),
            };
            match result {
                Ok(()) => drop(waiting.drain(..run)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Refused { failed }),
                // Not every interface cuts up pieces; these go one by one.
                Err(_refused) if run > 1 => alone = run + 1,
                Err(error) => {
                    // No route, a closed port: what was lost is asked for again.
                    tracing::trace!(%error, "a datagram could not be sent");
                    failed += 1;
                    waiting.pop_front();
                }
            }
            alone = alone.saturating_sub(1);
        }
        Ok(failed)
    }

    fn send_piece(
        &mut self,
        (socket, state): (&UdpSocket, &UdpSocketState),
        waiting: &VecDeque<(SocketAddr, Bytes)>,
        run: usize,
    ) -> io::Result<()> {
        self.piece.clear();
        waiting.iter().take(run).for_each(|(_, payload)| self.piece.extend_from_slice(payload));
        let Some((destination, first)) = waiting.front() else { return Ok(()) };
        let transmit = Transmit {
            destination: *destination,
            ecn: None,
            contents: &self.piece,
            segment_size: Some(first.len()),
            src_ip: None,
        };
        socket.try_io(Interest::WRITABLE, || state.try_send(socket.into(), &transmit))
    }
}

/// Returns how many datagrams at the front can go as one piece: all to one receiver, and equally long but for a shorter last one.
fn run(waiting: &VecDeque<(SocketAddr, Bytes)>, most: usize) -> usize {
    let Some((remote, first)) = waiting.front() else { return 0 };
    if first.is_empty() {
        return 1;
    }
    let most = most.min(MAX_PIECE_BYTES / first.len()).max(1);
    let fits = |(to, payload): &&(SocketAddr, Bytes)| to == remote && payload.len() == first.len();
    let equal = waiting.iter().take(most).take_while(fits).count();
    let shorter =
        |(to, payload): &(SocketAddr, Bytes)| to == remote && (1..first.len()).contains(&payload.len());
    if equal < most && waiting.get(equal).is_some_and(shorter) { equal + 1 } else { equal }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_what_goes_to_one_receiver_in_one_length_goes_as_one_piece() {
        let (one, other) = (address("192.0.2.1:1"), address("192.0.2.1:2"));
        let waiting = |all: &[(SocketAddr, usize)]| -> VecDeque<_> {
            all.iter().map(|(to, length)| (*to, Bytes::from(vec![0; *length]))).collect()
        };
        assert_eq!(run(&waiting(&[]), 64), 0);
        assert_eq!(run(&waiting(&[(one, 5), (one, 5), (other, 5)]), 64), 2);
        assert_eq!(
            run(&waiting(&[(one, 5), (one, 5), (one, 3), (one, 5)]), 64),
            3,
            "the last may be shorter"
        );
        assert_eq!(run(&waiting(&[(one, 5), (one, 6)]), 64), 1);
        assert_eq!(run(&waiting(&[(one, 5), (one, 0)]), 64), 1, "an empty one has no place in a piece");
        assert_eq!(run(&waiting(&[(one, 0), (one, 0)]), 64), 1);
        assert_eq!(run(&waiting(&[(one, 5); 9]), 4), 4);
        assert_eq!(run(&waiting(&[(one, 5); 9]), 1), 1);
        assert_eq!(run(&waiting(&[(one, 30_000); 9]), 64), 2, "an IP packet has an end");
    }

    #[tokio::test]
    async fn many_datagrams_cross_in_order_whole_and_with_their_senders() {
        let [mut here, there] =
            [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).map(|one| {
                one.set_nonblocking(true).unwrap();
                let socket = UdpSocket::from_std(one).unwrap();
                (Batches::new(&socket).unwrap(), socket)
            });
        let (mut batches, socket) = there;
        let to = socket.local_addr().unwrap();
        let nobody = address("127.0.0.1:1");
        let mut sent: VecDeque<_> =
            (0..100_u8).map(|n| (to, Bytes::from(vec![n; 200 + usize::from(n / 50)]))).collect();
        sent.push_back((nobody, Bytes::from_static(b"nobody is there")));
        sent.push_back((to, Bytes::from_static(b"last")));
        let mut expected: Vec<_> =
            sent.iter().filter(|(remote, _)| *remote == to).map(|(_, payload)| payload.clone()).collect();
        while !sent.is_empty() {
            here.1.writable().await.unwrap();
            // What an ICMP message has said of the one before may be told at any later call.
            let _ = here.0.send(&here.1, &mut sent);
        }
        let mut arrived = Vec::new();
        while arrived.last() != Some(&Bytes::from_static(b"last")) {
            socket.readable().await.unwrap();
            let from = here.1.local_addr().unwrap();
            let taken = batches.receive(&socket, usize::MAX, |remote, datagram| {
                assert_eq!(remote, from);
                arrived.push(Bytes::copy_from_slice(datagram));
            });
            assert!(taken.is_ok() || taken.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
        }
        expected.retain(|payload| arrived.contains(payload));
        assert_eq!(arrived, expected);
        assert!(arrived.len() > 90, "{}", arrived.len());
    }
}
