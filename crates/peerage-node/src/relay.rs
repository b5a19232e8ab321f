//! The relay's shell: TCP connections that members have made to this computer, and the bytes between two that belong
//! together.
//!
//! [`Legs`] takes connections whose first byte is that of a leg, passes on the datagrams with which each begins, and does
//! what the machine behind it decides: answer, join two, close. [`pump`] moves the bytes of a joined pair, in the kernel
//! where it can. What passes is end-to-end encrypted between the two members; nothing here could read it.
//!
//! Invariants: this computer dials nobody; a connection that is not joined ends within seconds; not a byte beyond a leg's
//! datagrams is read before it is joined, so that what its sender sent ahead arrives at the other end; what a pair keeps
//! in memory is bounded by one portion for each direction.

mod meter;
mod own;
#[cfg(target_os = "linux")]
mod pipe;
mod pump;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::relay::{Input, LegId, Limits, Output};
use peerage_wire::time::UnixTime;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::framed::within;
use crate::places::{Counted, Places};
use crate::socket::Socket;
use crate::sync::lock;

pub use meter::{Caps, Meter};
pub(crate) use own::Ahead;
pub use own::{Joined, Leg, OwnLegEvent, OwnLegs, RelayFull};
pub use pump::pump;

/// How long a leg may take until it has said what it wants and is waiting for its partner; the machine limits the
/// waiting. Longer keeps descriptors for strangers, shorter fails members on slow paths.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a leg may wait for the decision about it: the machine gives it up earlier.
const DECISION_TIMEOUT: Duration = Duration::from_secs(15);

/// How long the last words to a leg may take to leave.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Datagrams that a leg may send before it is joined: its request, and once more for each hint (Rule 6.3).
const MAX_FRAMES: usize = 6;

/// Connections from one [place](Places) that are not joined yet: an office behind one router, all at once. Raised, one stranger
/// can hold more of them; lowered, large offices are turned away after the relay was restarted.
const MAX_WAITING_PER_PLACE: usize = 128;

/// Connections from everywhere that are not joined yet.
const MAX_WAITING: usize = 1_024;

/// Events that wait for the machine; a leg that finds no room is closed.
const MAX_EVENTS: usize = 1_024;

/// What a leg's task is told.
enum Order {
    /// Send this; another datagram may follow.
    Send(Bytes),
    /// Send this, then hand the connection over.
    Give(Bytes, oneshot::Sender<Given>),
    /// Send this, then take the partner's connection over and pass bytes.
    Take(Bytes, oneshot::Receiver<Given>),
    /// Send this, if anything, and close.
    Close(Option<Bytes>),
}

/// A joined leg on its way to the task of its partner.
struct Given {
    leg: LegId,
    stream: Socket,
    orders: mpsc::Receiver<Order>,
}

/// Who looks after a leg when its task ends.
enum Served {
    /// Nobody: it is over.
    Over,
    /// The partner's task.
    ByPartner,
}

/// The connections of one relay. Clones share them; they end with [`close_all`](Self::close_all).
#[derive(Clone, Debug)]
pub struct Legs {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    meter: Meter,
    events: mpsc::Sender<Input>,
    next: AtomicU64,
    open: Mutex<BTreeMap<LegId, mpsc::Sender<Order>>>,
    /// Connections that are not joined yet.
    waiting: Places,
}

impl Legs {
    /// Makes a relay without legs. The receiver gets what the machine has to know.
    pub fn new(caps: Caps, clock: Clock) -> (Self, mpsc::Receiver<Input>) {
        let (events, receiver) = mpsc::channel(MAX_EVENTS);
        let inner = Inner {
            meter: Meter::new(caps, clock),
            events,
            next: AtomicU64::new(0),
            open: Mutex::default(),
            waiting: Places::new(MAX_WAITING_PER_PLACE, MAX_WAITING),
        };
        (Self { inner: Arc::new(inner) }, receiver)
    }

    /// Takes a connection whose first byte is that of a leg; returns at once. Beyond the limits it is closed unheard.
    pub fn accept(&self, stream: impl Into<Socket>, remote: SocketAddr) {
        let (inner, stream) = (&self.inner, stream.into());
        let Some(waiting) = (if inner.meter.is_exhausted() { None } else { inner.waiting.take(remote.ip()) })
        else {
            tracing::debug!(%remote, "a leg beyond the limits was closed");
            return;
        };
        let leg = LegId(inner.next.fetch_add(1, Ordering::Relaxed));
        let (sender, orders) = mpsc::channel(MAX_FRAMES + 2);
        lock(&inner.open).insert(leg, sender);
        let inner = Arc::clone(inner);
        tokio::spawn(async move {
            match serve(&inner, (leg, stream, remote), orders, waiting).await {
                Ok(Served::Over) => {}
                Ok(Served::ByPartner) => return,
                Err(error) => tracing::debug!(%remote, %error, "a leg has ended"),
            }
            inner.forget(leg).await;
        });
    }

    /// Does what the machine says.
    pub fn apply(&self, output: Output) {
        match output {
            Output::Send { leg, payload } => self.inner.order(leg, Order::Send(payload)),
            Output::Join([(first, to_first), (second, to_second)]) => {
                let (give, take) = oneshot::channel();
                // Whichever of them is gone meanwhile takes the other with it.
                self.inner.order(first, Order::Give(to_first, give));
                self.inner.order(second, Order::Take(to_second, take));
            }
            Output::Close { leg, last } => self.inner.order(leg, Order::Close(last)),
        }
    }

    /// Sets other limits, from the next bytes on.
    pub fn set_caps(&self, caps: Caps) {
        self.inner.meter.set_caps(caps);
    }

    /// Goes on with the day of an earlier run: when it ends, and how many bytes have passed in it.
    pub fn resume_day(&self, day: (UnixTime, u64)) {
        self.inner.meter.resume_day(day);
    }

    /// Returns when the day whose bytes are limited ends, and how many have passed in it.
    pub fn day(&self) -> (UnixTime, u64) {
        self.inner.meter.day()
    }

    /// Closes everything.
    pub fn close_all(&self) {
        // Each task ends when nobody can order anything of it any more.
        lock(&self.inner.open).clear();
    }

    /// Returns how many bytes have passed.
    pub fn bytes(&self) -> u64 {
        self.inner.meter.total()
    }

    /// Returns how many legs are open.
    pub fn count(&self) -> usize {
        lock(&self.inner.open).len()
    }
}

impl Inner {
    fn order(&self, leg: LegId, order: Order) {
        let Some(sender) = lock(&self.open).get(&leg).cloned() else { return };
        if sender.try_send(order).is_err() {
            // Its task has ended, or has been ordered more than any honest exchange needs.
            lock(&self.open).remove(&leg);
        }
    }

    async fn forget(&self, leg: LegId) {
        lock(&self.open).remove(&leg);
        // The machine counts by this, so it must arrive.
        let _ = self.events.send(Input::Closed(leg)).await;
    }
}

/// Serves one leg until it ends or its partner's task has it.
async fn serve(
    inner: &Arc<Inner>,
    (leg, stream, remote): (LegId, Socket, SocketAddr),
    mut orders: mpsc::Receiver<Order>,
    waiting: Counted,
) -> io::Result<Served> {
    if let Socket::Tcp(stream) = &stream {
        prepare(stream)?;
    }
    for _frame in 0..MAX_FRAMES {
        let payload = within(GREETING_TIMEOUT, stream.hear()).await?;
        let event = Input::Datagram { leg, remote, payload };
        if inner.events.try_send(event).is_err() {
            return Err(io::Error::other("the machine does not keep up"));
        }
        match within(DECISION_TIMEOUT, decision(&stream, &mut orders)).await? {
            Order::Send(payload) => say(&stream, &payload).await?,
            Order::Give(answer, partner) => {
                drop(waiting);
                say(&stream, &answer).await?;
                let given = partner.send(Given { leg, stream, orders });
                return Ok(if given.is_ok() { Served::ByPartner } else { Served::Over });
            }
            Order::Take(answer, partner) => {
                drop(waiting);
                say(&stream, &answer).await?;
                let given = partner.await.map_err(|_gone| io::ErrorKind::ConnectionAborted)?;
                let others = given.leg;
                let result = join((stream, orders), given, &inner.meter).await;
                inner.forget(others).await;
                return result.map(|()| Served::Over);
            }
            Order::Close(last) => return say_goodbye(stream, last).await.map(|()| Served::Over),
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Waits for what the machine decides; ends early when the leg is gone.
async fn decision(stream: &Socket, orders: &mut mpsc::Receiver<Order>) -> io::Result<Order> {
    let gone = async {
        // What is not the end was sent ahead for the partner and stays where it is.
        match stream.peek().await {
            Ok(None) => {}
            Ok(Some(_ahead)) => std::future::pending().await,
            Err(_broken) => {}
        }
    };
    tokio::select! {
        order = orders.recv() => order.ok_or_else(|| io::ErrorKind::ConnectionAborted.into()),
        () = gone => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Passes bytes between two legs until both directions or one leg have ended, or the machine says so.
async fn join(
    (stream, mut orders): (Socket, mpsc::Receiver<Order>),
    partner: Given,
    meter: &Meter,
) -> io::Result<()> {
    let Given { stream: other, orders: mut others, .. } = partner;
    let result = tokio::select! {
        result = pump(&stream, &other, meter) => result,
        // The only order to a joined leg is to close it.
        _order = orders.recv() => Err(io::ErrorKind::ConnectionAborted.into()),
        _order = others.recv() => Err(io::ErrorKind::ConnectionAborted.into()),
    };
    if result.is_err() {
        // An end that did not come in order must not look like one.
        stream.reset();
        other.reset();
    }
    result
}

async fn say(stream: &Socket, payload: &[u8]) -> io::Result<()> {
    // A few hundred bytes always fit into the buffer of a new connection.
    within(FAREWELL_TIMEOUT, stream.say(payload)).await
}

async fn say_goodbye(stream: Socket, last: Option<Bytes>) -> io::Result<()> {
    let Some(last) = last else { return Ok(()) };
    say(&stream, &last).await?;
    stream.end()?;
    // Closing while something is unread would be a reset, which can overtake the last words.
    let discard = async {
        let mut buffer = [0; 1_024];
        loop {
            stream.readable().await?;
            match stream.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_discarded) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    within(FAREWELL_TIMEOUT, discard).await
}

/// After this long without anything the system asks whether the other end is still there, and then again each interval;
/// so half-open connections end within two minutes.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Sets what every leg's socket has.
pub(crate) fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL);
    socket2::SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// Descriptors that the rest of a node needs.
#[cfg(target_os = "linux")]
const OTHER_DESCRIPTORS: u64 = 256;

/// Returns the limits that this computer's descriptors allow: each tunnel takes two, and half of a pipe's, and as many legs may wait.
pub fn limits() -> Limits {
    let limits = Limits::default();
    #[cfg(target_os = "linux")]
    if let Ok((soft, _hard)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        let tunnels = soft.saturating_sub(OTHER_DESCRIPTORS) / 4;
        let tunnels = usize::try_from(tunnels).unwrap_or(usize::MAX).clamp(1, limits.tunnels);
        return Limits { tunnels, ..limits };
    }
    limits
}

#[cfg(test)]
mod tests;
