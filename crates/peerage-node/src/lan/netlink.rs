//! The kernel's routing socket, asynchronous.
//!
//! Only the kernel can write to these sockets: it refuses messages between programs without CAP_NET_ADMIN.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::LanError;
use super::codec::{Dump, Framed, Message, parse};

/// The multicast groups of links, addresses and routes of both families.
pub(super) const TOPOLOGY: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// The multicast group of the neighbour tables.
pub(super) const NEIGHBOURS: u32 = 0x4;

/// The most bytes that the kernel puts into one datagram of a dump (`netlink_dump` in the kernel); events are smaller.
/// Were it less, what does not fit would be lost.
const MAX_DATAGRAM: usize = 32 * 1024;

/// How much the kernel may queue, in bytes: some thousand events. More costs kernel memory,
/// less makes a burst, such as a sweep causes, overflow and be read again from the beginning.
const RECEIVE_BUFFER: usize = 1024 * 1024;

/// How long a list may take. It takes milliseconds, or a second with a million routes.
const DUMP_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a list is read again that changed meanwhile. After that the last reading counts:
/// a change is also an event, which leads to another reading.
const MAX_DUMP_ATTEMPTS: u32 = 3;

/// What arrived on a socket that listens to groups.
#[derive(Debug)]
pub(super) enum Event {
    Message(Message),
    /// More happened than fitted into the buffer: only a new dump tells the state.
    Overrun,
}

/// A socket for dumps, events or both, though a user of both would mix them up: open two.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
    sequence: u32,
    pending: std::vec::IntoIter<Framed>,
}

impl Netlink {
    /// Opens a socket that hears of the groups' events from now on.
    pub(super) fn open(groups: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self {
            socket: register(socket)?,
            buffer: vec![0; MAX_DATAGRAM],
            sequence: 0,
            pending: Vec::new().into_iter(),
        })
    }

    /// Returns all messages of a list that `keep` makes something of.
    pub(super) async fn dump<T>(
        &mut self,
        what: Dump,
        keep: impl Fn(Message) -> Option<T>,
    ) -> Result<Vec<T>, LanError> {
        let attempts = async {
            for _ in 1..MAX_DUMP_ATTEMPTS {
                if let (list, false) = self.dump_once(what, &keep).await? {
                    return Ok(list);
                }
            }
            self.dump_once(what, &keep).await.map(|(list, _)| list)
        };
        tokio::time::timeout(DUMP_TIMEOUT, attempts)
            .await
            .map_err(|_| LanError::Timeout)?
            .map_err(LanError::Netlink)
    }

    /// Returns the list, and whether it changed while it was read.
    async fn dump_once<T>(
        &mut self,
        what: Dump,
        keep: impl Fn(Message) -> Option<T>,
    ) -> io::Result<(Vec<T>, bool)> {
        self.sequence = self.sequence.wrapping_add(1);
        let (mut list, mut interrupted) = (Vec::new(), false);
        send(self.socket.get_ref().as_raw_fd(), &what.request(self.sequence), MsgFlags::empty())?;
        loop {
            let framed = self.next_framed().await?;
            // What is left of a dump that somebody gave up waiting for.
            if framed.sequence != self.sequence {
                continue;
            }
            interrupted |= framed.interrupted;
            if let Message::Error(code) = framed.message {
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            if framed.message == Message::Done {
                return Ok((list, interrupted));
            }
            list.extend(keep(framed.message));
        }
    }

    /// Waits for the next event. Cancelling loses none.
    pub(super) async fn event(&mut self) -> io::Result<Event> {
        match self.next_framed().await {
            Ok(framed) => Ok(Event::Message(framed.message)),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(Event::Overrun),
            Err(error) => Err(error),
        }
    }

    /// Returns an event that has already arrived.
    pub(super) fn try_event(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some(framed) = self.pending.next() {
                return Ok(Some(Event::Message(framed.message)));
            }
            match recv(self.socket.get_ref().as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => self.fill(length),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::ENOBUFS) => return Ok(Some(Event::Overrun)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn next_framed(&mut self) -> io::Result<Framed> {
        loop {
            if let Some(framed) = self.pending.next() {
                return Ok(framed);
            }
            let buffer = &mut self.buffer;
            let receive = |fd: &OwnedFd| Ok(recv(fd.as_raw_fd(), buffer, MsgFlags::empty())?);
            let length = self.socket.async_io(Interest::READABLE, receive).await?;
            self.fill(length);
        }
    }

    fn fill(&mut self, length: usize) {
        self.pending = parse(self.buffer.get(..length).unwrap_or(&[])).into_iter();
    }
}

/// Makes tokio watch the socket.
#[expect(
    deprecated,
    reason = "its successor is an unsafe function for types whose descriptor may change; an OwnedFd keeps its own open"
)]
fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}
