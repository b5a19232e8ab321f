//! A second socket of the same port for the first words of strangers.
//!
//! Who is known writes in the short form, whoever is not in the long one, and the first byte tells which (Rule 3.1). Where the system can
//! sort by it, each kind waits in a queue of its own: a flood of first words fills that of strangers and is dropped there before this
//! program spends anything on it, and nothing of the known is lost or waits behind it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::time::Instant;
use tokio::net::UdpSocket;

use super::Batches;
use crate::clock::Clock;

/// The room that the system keeps for first words that wait: some hundred, as many as a company that starts in the morning sends at once.
/// More keeps a stranger of a flood waiting for longer than he waits for his answer.
pub(super) const BUFFER_BYTES: usize = 1 << 18;

/// The most first words that are taken before it is looked again what those who are known want. Each may cost a key agreement.
const MAX_STRANGERS: usize = 8;

/// While others wait, strangers wait for so many times as long as the last of them took: they get a quarter of the time. More would
/// answer strangers faster, and the known slower.
const OTHERS_SHARE: u32 = 3;

/// First words, and whose turn it is.
#[derive(Debug)]
pub struct Strangers {
    socket: UdpSocket,
    batches: Batches,
    turn: Turn,
}

impl Strangers {
    /// Takes the socket over.
    ///
    /// # Errors
    /// If the system refuses the options that reading many datagrams at once needs.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        let batches = Batches::new(&socket)?;
        Ok(Self { socket, batches, turn: Turn::default() })
    }

    /// Takes a few of those that are there, with addresses as the socket shows them, if it is their turn: always if no others wait, and
    /// else after a while. Returns how often an error came in place of a datagram.
    pub fn receive(
        &mut self,
        do_others_wait: bool,
        clock: &Clock,
        mut take: impl FnMut(SocketAddr, &[u8]),
    ) -> u64 {
        let began_at = clock.mono();
        if do_others_wait && !self.turn.is_due(began_at) {
            return 0;
        }
        let errors = match self.batches.receive(&self.socket, MAX_STRANGERS, &mut take) {
            Ok(_count) => 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return 0,
            Err(_) => 1,
        };
        self.turn.took(began_at, clock.mono());
        errors
    }
}

/// Waits for strangers; for ever where they have no queue of their own.
///
/// # Errors
/// If the runtime ends.
pub async fn strangers(strangers: Option<&Strangers>) -> io::Result<()> {
    match strangers {
        Some(strangers) => strangers.socket.readable().await,
        None => std::future::pending().await,
    }
}

/// When strangers have their next turn.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    due_at: Instant,
}

impl Turn {
    fn is_due(self, now: Instant) -> bool {
        self.due_at <= now
    }

    fn took(&mut self, began_at: Instant, ended_at: Instant) {
        let took: Duration = ended_at - began_at;
        self.due_at = ended_at.after(took * OTHERS_SHARE);
    }
}

/// Lets a second socket have the port that this one will have.
#[cfg(target_os = "linux")]
pub(super) fn share_port(socket: &socket2::Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}

/// Has the system sort what comes to the sockets of a port: long forms to the second that was bound, all else to the first.
#[cfg(target_os = "linux")]
pub(super) fn sort(socket: &socket2::Socket) -> io::Result<()> {
    use nix::libc::{
        BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, sock_filter, sock_fprog,
    };
    use nix::sys::socket::{setsockopt, sockopt::AttachReusePortCbpf};
    use peerage_wire::packet::{LONG_FORMS, LONG_FORMS_MASK};

    let step = |code: u32, jt, jf, k: u32| {
        let code = u16::try_from(code).unwrap_or_default();
        sock_filter { code, jt, jf, k }
    };
    // The number of the socket is what it returns; of an empty datagram, which has no first byte, that is 0.
    let mut program = [
        step(BPF_LD | BPF_B | BPF_ABS, 0, 0, 0),
        step(BPF_ALU | BPF_AND | BPF_K, 0, 0, LONG_FORMS_MASK.into()),
        step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, LONG_FORMS.into()),
        step(BPF_RET | BPF_K, 0, 0, 1),
        step(BPF_RET | BPF_K, 0, 0, 0),
    ];
    let len = u16::try_from(program.len()).unwrap_or_default();
    setsockopt(socket, AttachReusePortCbpf, &sock_fprog { len, filter: program.as_mut_ptr() })?;
    Ok(())
}

/// Elsewhere strangers and others share a queue.
#[cfg(not(target_os = "linux"))]
pub(super) fn share_port(_socket: &socket2::Socket) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn sort(_socket: &socket2::Socket) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_get_a_quarter_of_the_time_while_others_wait() {
        let mut turn = Turn::default();
        let at = Instant::from_micros;
        assert!(turn.is_due(at(0)));
        turn.took(at(1_000), at(1_100));
        assert!(!turn.is_due(at(1_100)));
        assert!(!turn.is_due(at(1_399)));
        assert!(turn.is_due(at(1_400)));
    }
}
