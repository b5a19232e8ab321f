//! A wire that delays, loses and reorders, between the two interfaces of a computer that does nothing else.
//!
//! Not every kernel has `netem`, so frames are carried by a program, on packet sockets. A frame that comes from a
//! sender on the same real machine has no checksum yet, which the wire therefore writes; the interfaces next to it must
//! be told to hand over frames of ordinary size, see [`CUT_FRAMES`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, socket,
};

/// The option of `ip link set` for interfaces whose frames go to a wire.
pub const CUT_FRAMES: &str = "gso_max_segs 1";

/// Bytes of the longest frame that is carried: a packet of 1,500 bytes, an Ethernet head and a VLAN tag.
const MAX_FRAME_BYTES: usize = 1_518;

/// Frames that are on the wire; one more is lost, as in a full queue. 40 MB/s with a delay of 100 ms need 2,700.
const MAX_WAITING: usize = 8_192;

/// Bytes of an Ethernet head.
const ETHERNET: usize = 14;

/// Bytes of an IPv6 head without extensions.
const IPV6_HEAD: usize = 40;

/// A packet that leaves this computer, as the kernel marks copies that listeners get.
const OUTGOING: u8 = 4;

/// How a wire treats the frames of both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Manner {
    /// How long each is on its way.
    pub delay: Duration,
    /// How many of a thousand are lost.
    pub lost_per_mille: u64,
    /// How many of a thousand come 10 ms later than those behind them.
    pub late_per_mille: u64,
    /// Packets of more bytes are lost, and nobody is told; 0 for no such limit.
    pub mtu: usize,
}

/// How late a late frame is: some hundred frames of a fast flow.
const LATE: Duration = Duration::from_millis(10);

impl Manner {
    /// Reads four numbers: milliseconds of delay, lost and late of a thousand, and the longest packet.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(text: &str) -> Result<Self> {
        let numbers: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [delay, lost_per_mille, late_per_mille, mtu] = numbers[..] else {
            bail!("a manner is DELAY LOST LATE MTU, not {text}")
        };
        let (delay, mtu) = (Duration::from_millis(delay), usize::try_from(mtu)?);
        Ok(Self { delay, lost_per_mille, late_per_mille, mtu })
    }

    /// Returns what [`Manner::parse`] reads.
    #[must_use]
    pub fn to_line(self) -> String {
        format!("{} {} {} {}\n", self.delay.as_millis(), self.lost_per_mille, self.late_per_mille, self.mtu)
    }
}

/// A wire that carries until the process ends.
#[derive(Debug)]
pub struct Wire {
    manner: Arc<Mutex<Manner>>,
}

impl Wire {
    /// Begins to carry frames between two interfaces, and tells nobody that they could not be carried.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn start(interfaces: [&str; 2]) -> Result<Self> {
        let manner = Arc::new(Mutex::new(Manner::default()));
        let ends = [end(interfaces[0])?, end(interfaces[1])?];
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::EthAll,
        )
        .context("cannot read frames")?;
        let carrier =
            Carrier { socket, ends, waiting: BinaryHeap::new(), count: 0, state: 0x2545_f491_4f6c_dd1d };
        let shared = Arc::clone(&manner);
        thread::spawn(move || carrier.run(&shared));
        Ok(Self { manner })
    }

    /// Treats frames otherwise from now on; those that are on the wire stay as they are.
    pub fn set(&self, manner: Manner) {
        *self.manner.lock().unwrap_or_else(PoisonError::into_inner) = manner;
    }
}

fn end(interface: &str) -> Result<LinkAddr> {
    let all = getifaddrs().context("cannot list interfaces")?;
    let mut links = all.filter(|one| one.interface_name == interface).filter_map(|one| one.address);
    links
        .find_map(|address| address.as_link_addr().copied())
        .with_context(|| format!("there is no interface {interface}"))
}

/// A frame on its way, by the time at which it arrives.
type Waiting = Reverse<(Instant, u64, usize, Vec<u8>)>;

#[derive(Debug)]
struct Carrier {
    socket: OwnedFd,
    ends: [LinkAddr; 2],
    waiting: BinaryHeap<Waiting>,
    count: u64,
    state: u64,
}

impl Carrier {
    fn run(mut self, manner: &Mutex<Manner>) {
        let mut buffer = vec![0; 128 << 10];
        loop {
            let now = Instant::now();
            let until = self.waiting.peek().map(|Reverse((at, ..))| at.saturating_duration_since(now));
            let milliseconds = until.map_or(100, |until| until.as_micros().div_ceil(1_000).min(100));
            let timeout = PollTimeout::from(u8::try_from(milliseconds).unwrap_or(100));
            let mut wanted = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            // A signal makes another turn, no more.
            let _ = poll(&mut wanted, timeout);
            let how = *manner.lock().unwrap_or_else(PoisonError::into_inner);
            while let Some((length, from)) = self.next_frame(&mut buffer) {
                if let Some(frame) = buffer.get_mut(..length) {
                    self.take(frame, from, how);
                }
            }
            self.deliver();
        }
    }

    /// Returns the next frame that came from outside, and the number of the interface.
    fn next_frame(&self, buffer: &mut [u8]) -> Option<(usize, usize)> {
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), buffer) {
                Ok((length, Some(address))) if address.pkttype() != OUTGOING => {
                    let from = self.ends.iter().position(|end| end.ifindex() == address.ifindex());
                    if let Some(from) = from {
                        return Some((length, from));
                    }
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_nothing_more) => return None,
            }
        }
    }

    fn take(&mut self, frame: &mut [u8], from: usize, how: Manner) {
        let is_long = frame.len() > MAX_FRAME_BYTES || how.mtu > 0 && frame.len() > how.mtu + ETHERNET;
        if is_long || self.chance() < how.lost_per_mille || self.waiting.len() >= MAX_WAITING {
            return;
        }
        complete(frame);
        let late = if self.chance() < how.late_per_mille { LATE } else { Duration::ZERO };
        self.count += 1;
        self.waiting.push(Reverse((Instant::now() + how.delay + late, self.count, 1 - from, frame.to_vec())));
        if how.delay.is_zero() && late.is_zero() {
            self.deliver();
        }
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while self.waiting.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            let Some(Reverse((_, _, to, frame))) = self.waiting.pop() else { return };
            if let Some(end) = self.ends.get(to) {
                // A queue that is full loses the frame.
                let _ = sendto(self.socket.as_raw_fd(), &frame, end, MsgFlags::empty());
            }
        }
    }

    /// Returns a number below 1,000: xorshift64.
    fn chance(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % 1_000
    }
}

/// Where a packet has what its checksum is made of.
struct Layout {
    head_bytes: usize,
    total_bytes: usize,
    addresses: Range<usize>,
    protocol: u8,
}

impl Layout {
    /// Reads that of a whole packet; none of a fragment, nor of anything but IP.
    fn read(ethernet: &[u8], packet: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
        match ethernet {
            [.., 8, 0] => {
                let is_whole = word(6)? & 0x3fff == 0;
                let head_bytes = usize::from(packet.first()? & 15) * 4;
                let (total_bytes, protocol) = (word(2)?.into(), *packet.get(9)?);
                is_whole.then_some(Self { head_bytes, total_bytes, addresses: 12..20, protocol })
            }
            [.., 0x86, 0xdd] => Some(Self {
                head_bytes: IPV6_HEAD,
                total_bytes: IPV6_HEAD + usize::from(word(4)?),
                addresses: 8..IPV6_HEAD,
                protocol: *packet.get(6)?,
            }),
            _ => None,
        }
    }
}

/// Writes the checksum of TCP or UDP into a frame with a whole IP packet; others stay as they are.
fn complete(frame: &mut [u8]) -> Option<()> {
    let (head, packet) = frame.split_at_mut_checked(ETHERNET)?;
    let Layout { head_bytes, total_bytes, addresses, protocol } = Layout::read(head, packet)?;
    let at = match protocol {
        6 => 16,
        17 => 6,
        _ => return None,
    };
    let length = total_bytes.checked_sub(head_bytes)?;
    let (head, segment) = packet.get_mut(..total_bytes)?.split_at_mut_checked(head_bytes)?;
    segment.get_mut(at..at + 2)?.fill(0);
    let pseudo = u64::from(protocol) + length as u64;
    let sum = sum(segment) + sum(head.get(addresses)?) + pseudo;
    let folded = (0..4).fold(sum, |sum, _| (sum & 0xffff) + (sum >> 16));
    let checksum = !u16::try_from(folded).ok()?;
    // Of UDP, zero means that there is none.
    let checksum = if checksum == 0 && protocol == 17 { 0xffff } else { checksum };
    segment.get_mut(at..at + 2)?.copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

fn sum(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| {
        let high = u64::from(pair.first().copied().unwrap_or(0)) << 8;
        high + u64::from(pair.get(1).copied().unwrap_or(0))
    };
    bytes.chunks(2).map(word).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manner_survives_its_line() {
        let manner =
            Manner { delay: Duration::from_millis(40), lost_per_mille: 50, late_per_mille: 20, mtu: 1_280 };
        assert_eq!(Manner::parse(&manner.to_line()).unwrap(), manner);
        assert!(Manner::parse("1 2 3").is_err());
    }

    #[test]
    fn the_checksum_is_that_of_a_known_packet_and_nothing_else_changes() {
        // A UDP datagram of "hi" from 10.0.0.1:1 to 10.0.0.2:2, whose sum was made by hand: 0x0a00 + 1 + 0x0a00 + 2 (the
        // addresses) + 17 + 10 (protocol and length) + 1 + 2 + 10 (ports and length) + 0x6869 ("hi") = 0x7c94.
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        frame.extend([0x45, 0, 0, 30, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 1, 0, 2, 0, 10, 0xaa, 0xbb, b'h', b'i']);
        let mut wanted = frame.clone();
        wanted[40..42].copy_from_slice(&(!0x7c94_u16).to_be_bytes());
        complete(&mut frame).unwrap();
        assert_eq!(frame, wanted);
        assert!(complete(&mut [0; 20]).is_none());
    }

    #[test]
    fn the_checksum_of_ipv6_counts_the_whole_addresses() {
        // From ::1 to ::2, whose sum was made by hand: 1 + 2 (the addresses) + 17 + 10 (protocol and length) + 1 + 2 + 10 (ports and
        // length) + 0x6869 ("hi") = 0x6894.
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 10, 17, 64]);
        for last in [1, 2] {
            frame.extend([0; 15]);
            frame.push(last);
        }
        frame.extend([0, 1, 0, 2, 0, 10, 0xaa, 0xbb, b'h', b'i']);
        let mut wanted = frame.clone();
        wanted[60..62].copy_from_slice(&(!0x6894_u16).to_be_bytes());
        complete(&mut frame).unwrap();
        assert_eq!(frame, wanted);
    }
}
