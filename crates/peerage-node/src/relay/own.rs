//! This computer's own legs: from the dial to the relay until it says that the peer is there.
//!
//! What a user-node sends right behind its request to be joined reaches the peer (Rule 6.31). So its leg can be had as soon as the request
//! is sent, by whoever has something to say that needs no answer first; the relay's answer still comes before anything of the peer's.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peerage_proto::carrier::{LegWay, LegWays};
use peerage_proto::link::Side;
use peerage_proto::node::{LegNews, LegOrder, OwnLeg};
use peerage_proto::relay::LegId;
use peerage_wire::id::LinkId;
use peerage_wire::leg;
use tokio::sync::{mpsc, oneshot};
use tokio::time;

use super::{FAREWELL_TIMEOUT, MAX_FRAMES, prepare};
use crate::carrier::{self, Carrier, Content};
use crate::connect::Connector;
use crate::framed::within;
use crate::race;
use crate::socket::Socket;
use crate::stray::Stray;
use crate::sync::lock;

/// How long a relay may take to accept a connection: three lost packets in a row on a bad path.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one way is tried before the next is tried beside it (RFC 8305, section 5). Shorter makes two connections where the first is far
/// away; longer makes users wait where the first does not get through.
const STAGGER: Duration = Duration::from_millis(250);

/// How long a relay may take to answer what it cannot open. Longer holds on to what only looks like a way; the others are tried beside it
/// anyhow.
const PROOF_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a relay may take to say that the peer is there, or that it did not come.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// How long the node may take to decide something; it never waits for anything.
const DECISION_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a leg that is joined waits for somebody to take it.
const TAKING_TIMEOUT: Duration = Duration::from_secs(30);

/// News that wait for the node; it limits the legs to fewer.
const MAX_NEWS: usize = 1_024;

/// Orders that wait for a leg.
const MAX_ORDERS: usize = 4;

/// A leg whose other end is the peer's from now on.
#[derive(Debug)]
pub struct Joined {
    /// For what it was dialled.
    pub what: OwnLeg,
    /// The connection to the relay.
    pub stream: Arc<Socket>,
}

/// A leg that the relay was asked to join.
#[derive(Debug)]
pub struct Leg {
    /// For what it was dialled.
    pub what: OwnLeg,
    stream: Arc<Socket>,
    joined: oneshot::Receiver<Result<(), RelayFull>>,
    /// Whether something follows the request already, so that the request cannot be repeated.
    has_followers: Arc<AtomicBool>,
}

/// A leg on which something is sent before it is joined.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// For what it was dialled.
    pub what: OwnLeg,
    /// The connection to the relay; nothing may be read before `joined`.
    pub stream: Arc<Socket>,
    /// Resolves when what follows is the peer's; fails if the relay refuses.
    pub joined: oneshot::Receiver<Result<(), RelayFull>>,
}

/// A relay has refused for a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the relay gives no more at the moment")]
pub struct RelayFull;

impl Leg {
    /// Waits until the peer is at the other end; `None` if it does not come.
    ///
    /// # Errors
    /// If the relay refuses for a quota.
    pub async fn joined(self) -> Result<Option<Joined>, RelayFull> {
        let Self { what, stream, joined, .. } = self;
        match joined.await {
            Ok(Ok(())) => Ok(Some(Joined { what, stream })),
            Ok(Err(full)) => Err(full),
            Err(_gone) => Ok(None),
        }
    }

    /// Takes the leg as it is, to send something right behind the request; `None` if the relay has refused for a quota already.
    pub(crate) fn go_ahead(self) -> Option<Ahead> {
        // Should the request be repeated at this very moment, the relay closes the leg, as if the peer had not come.
        self.has_followers.store(true, Ordering::Relaxed);
        let Self { what, stream, mut joined, .. } = self;
        let joined = match joined.try_recv() {
            Ok(Err(RelayFull)) => return None,
            // What was taken out is put into another.
            Ok(Ok(())) => {
                let (ready, joined) = oneshot::channel();
                let _ = ready.send(Ok(()));
                joined
            }
            Err(oneshot::error::TryRecvError::Empty | oneshot::error::TryRecvError::Closed) => joined,
        };
        Some(Ahead { what, stream, joined })
    }
}

/// What the driver has to hear of own legs.
#[derive(Debug)]
pub enum OwnLegEvent {
    /// For the node.
    News(LegId, LegNews),
    /// A peer that has asked for it comes over this connection.
    Visited(Joined),
}

/// The own legs. Clones share them.
#[derive(Clone, Debug)]
pub struct OwnLegs {
    connector: Connector,
    events: mpsc::Sender<OwnLegEvent>,
    tasks: Arc<Mutex<BTreeMap<LegId, mpsc::Sender<LegOrder>>>>,
    dialled: Arc<Mutex<BTreeMap<LinkId, oneshot::Receiver<Leg>>>>,
    /// Inside what a relay has answered last, where messages do not go over UDP.
    worked: Arc<Mutex<Option<Option<Carrier>>>>,
}

impl OwnLegs {
    /// Makes the value; nothing is connected yet.
    pub fn new(connector: Connector) -> (Self, mpsc::Receiver<OwnLegEvent>) {
        let (events, receiver) = mpsc::channel(MAX_NEWS);
        (
            Self {
                connector,
                events,
                tasks: Arc::default(),
                dialled: Arc::default(),
                worked: Arc::default(),
            },
            receiver,
        )
    }

    /// Does what the node orders.
    pub fn order(&self, leg: LegId, order: LegOrder) {
        match order {
            LegOrder::Dial(what, ways) => self.dial((leg, what), ways),
            order @ (LegOrder::Send(_) | LegOrder::Joined | LegOrder::Full | LegOrder::Close) => {
                let Some(task) = lock(&self.tasks).get(&leg).cloned() else { return };
                // A task that is gone or choked has said or will say so.
                let _ = task.try_send(order);
            }
        }
    }

    /// Returns the leg that is under way for an attempt to reach a peer; once. It resolves when the relay was asked to join it.
    pub fn take(&self, link: LinkId) -> Option<oneshot::Receiver<Leg>> {
        lock(&self.dialled).remove(&link)
    }

    fn dial(&self, (leg, what): (LegId, OwnLeg), ways: LegWays) {
        let (sender, orders) = mpsc::channel(MAX_ORDERS);
        lock(&self.tasks).insert(leg, sender);
        let taker = (what.side == Side::Client).then(|| {
            let (sender, receiver) = oneshot::channel();
            lock(&self.dialled).insert(what.link, receiver);
            sender
        });
        let own = self.clone();
        tokio::spawn(async move {
            let result = own.lead((leg, what), ways, taker, orders).await;
            lock(&own.tasks).remove(&leg);
            match result {
                // A node that is gone needs no visitors.
                Ok(Some(joined)) => drop(own.events.send(OwnLegEvent::Visited(joined)).await),
                // Whoever has not been told of the attempt yet still comes.
                Ok(None) => time::sleep(TAKING_TIMEOUT).await,
                Err(error) => {
                    tracing::debug!(relay = %what.address, %error, "a leg was not joined");
                    own.tell(leg, LegNews::Closed).await;
                    if error.kind() == io::ErrorKind::QuotaExceeded {
                        // The same.
                        time::sleep(TAKING_TIMEOUT).await;
                    }
                }
            }
            lock(&own.dialled).remove(&what.link);
        });
    }

    /// Connects to a relay, and carries what it and the node say to each other until the leg is joined. Returns it, unless `taker` has been
    /// given it before.
    async fn lead(
        &self,
        (leg, what): (LegId, OwnLeg),
        ways: LegWays,
        mut taker: Option<oneshot::Sender<Leg>>,
        mut orders: mpsc::Receiver<LegOrder>,
    ) -> io::Result<Option<Joined>> {
        let (stream, LegWay { address, .. }) = within(CONNECT_TIMEOUT, self.connect(ways)).await?;
        let (stream, what) = (Arc::new(stream), OwnLeg { address, ..what });
        self.tell(leg, LegNews::Opened).await;
        let (mut ready, joined) = oneshot::channel();
        let mut joined = Some(joined);
        let has_followers = Arc::new(AtomicBool::new(false));
        for _frame in 0..=MAX_FRAMES {
            let order = time::timeout(DECISION_TIMEOUT, orders.recv()).await;
            match order.map_err(|_elapsed| io::ErrorKind::TimedOut)? {
                Some(LegOrder::Send(_)) if has_followers.load(Ordering::Relaxed) => {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                Some(LegOrder::Send(payload)) => ask(&stream, &payload).await?,
                Some(LegOrder::Joined) if joined.is_some() => return Ok(Some(Joined { what, stream })),
                Some(LegOrder::Joined) => {
                    // Whoever has reached the peer in another way has dropped its end, and with it the leg.
                    let _ = ready.send(Ok(()));
                    return Ok(None);
                }
                Some(LegOrder::Full) => {
                    let _ = ready.send(Err(RelayFull));
                    return Err(io::ErrorKind::QuotaExceeded.into());
                }
                Some(LegOrder::Dial(..) | LegOrder::Close) | None => {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
            }
            if let Some((taker, joined)) = taker.take().and_then(|taker| Some((taker, joined.take()?))) {
                let (stream, has_followers) = (Arc::clone(&stream), Arc::clone(&has_followers));
                let _ = taker.send(Leg { what, stream, joined, has_followers });
            }
            let payload = tokio::select! {
                payload = within(ANSWER_TIMEOUT, stream.hear()) => payload?,
                () = ready.closed(), if joined.is_none() => return Err(io::ErrorKind::NotConnected.into()),
            };
            self.tell(leg, LegNews::Datagram(payload)).await;
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Connects in the first of these ways in which the relay can be reached, and says which that was.
    async fn connect(&self, ways: LegWays) -> io::Result<(Socket, LegWay)> {
        let LegWays { mut all, must_answer } = ways;
        if let Some(inside) = lock(&self.worked).filter(|_| must_answer) {
            // What was found out last time needs no head start of something else.
            all.sort_by_key(|way| way.inside != inside);
        }
        let attempts = all.into_iter().map(|way| {
            // On the heap: what a proxy needs would be there several times otherwise.
            Box::pin(async move {
                let reached = self.reach(way, must_answer).await;
                let reached =
                    reached.inspect_err(|error| tracing::debug!(?way, %error, "a way to a relay failed"));
                Ok((reached?, way))
            })
        });
        race::first_of(STAGGER, attempts.collect())
            .await
            .map_err(|error| error.unwrap_or(io::ErrorKind::NotFound.into()))
    }

    async fn reach(&self, LegWay { inside, address }: LegWay, must_answer: bool) -> io::Result<Socket> {
        let stream: Socket = match inside {
            Some(carrier) => carrier::open(&self.connector, (carrier, address), Content::Leg).await?.into(),
            None => {
                let stream = self.connector.connect(address).await?;
                prepare(&stream)?;
                stream.into()
            }
        };
        // Whatever answers to TLS may be somebody in between.
        if must_answer || inside.is_some() {
            within(PROOF_TIMEOUT, prove(&stream)).await?;
            *lock(&self.worked) = Some(inside);
        }
        Ok(stream)
    }

    async fn tell(&self, leg: LegId, news: LegNews) {
        // A node that is gone needs no news.
        let _ = self.events.send(OwnLegEvent::News(leg, news)).await;
    }
}

/// Sends a datagram on a connection that others may hold too.
async fn ask(stream: &Socket, payload: &[u8]) -> io::Result<()> {
    let framed = leg::frame(payload).ok_or(io::ErrorKind::InvalidData)?;
    within(FAREWELL_TIMEOUT, stream.writable()).await?;
    // A few hundred bytes always fit into the buffer of a new connection.
    let count = stream.try_write(&framed)?;
    if count == framed.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Makes sure that somebody who speaks the protocol is at the other end: what lets connections through may still let nothing through on them.
async fn prove(stream: &Socket) -> io::Result<()> {
    let stray = Stray::new()?;
    stream.say(stray.bytes()).await?;
    let answer = stream.hear().await?;
    if stray.is_answered_by(&answer) { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
