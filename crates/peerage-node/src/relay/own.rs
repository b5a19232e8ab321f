//! This computer's own legs: from the dial to the relay until it says that the peer is there.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peerage_proto::link::Side;
use peerage_proto::node::{LegNews, LegOrder, OwnLeg};
use peerage_proto::relay::LegId;
use peerage_wire::id::LinkId;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time;

use super::{MAX_FRAMES, lock, prepare, read_frame, within, write_frame};
use crate::link::connect;

/// How long a relay may take to accept a connection: three lost packets in a row on a bad path.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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
    pub stream: TcpStream,
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
    events: mpsc::Sender<OwnLegEvent>,
    tasks: Arc<Mutex<BTreeMap<LegId, mpsc::Sender<LegOrder>>>>,
    dialled: Arc<Mutex<BTreeMap<LinkId, oneshot::Receiver<Joined>>>>,
}

impl OwnLegs {
    /// Makes the value; nothing is connected yet.
    pub fn new() -> (Self, mpsc::Receiver<OwnLegEvent>) {
        let (events, receiver) = mpsc::channel(MAX_NEWS);
        (Self { events, tasks: Arc::default(), dialled: Arc::default() }, receiver)
    }

    /// Does what the node orders.
    pub fn order(&self, leg: LegId, order: LegOrder) {
        match order {
            LegOrder::Dial(what) => self.dial(leg, what),
            order @ (LegOrder::Send(_) | LegOrder::Joined | LegOrder::Close) => {
                let Some(task) = lock(&self.tasks).get(&leg).cloned() else { return };
                // A task that is gone or choked has said or will say so.
                let _ = task.try_send(order);
            }
        }
    }

    /// Returns the leg that is under way for an attempt to reach a peer; once. It resolves when the peer is there.
    pub fn take(&self, link: LinkId) -> Option<oneshot::Receiver<Joined>> {
        lock(&self.dialled).remove(&link)
    }

    fn dial(&self, leg: LegId, what: OwnLeg) {
        let (sender, orders) = mpsc::channel(MAX_ORDERS);
        lock(&self.tasks).insert(leg, sender);
        let taker = (what.side == Side::Client).then(|| {
            let (sender, receiver) = oneshot::channel();
            lock(&self.dialled).insert(what.link, receiver);
            sender
        });
        let own = self.clone();
        tokio::spawn(async move {
            let joined = own.lead(leg, what.address, orders).await;
            lock(&own.tasks).remove(&leg);
            match joined {
                Ok(stream) => own.deliver(Joined { what, stream }, taker).await,
                Err(error) => {
                    tracing::debug!(relay = %what.address, %error, "a leg was not joined");
                    drop(taker);
                    own.tell(leg, LegNews::Closed).await;
                }
            }
            lock(&own.dialled).remove(&what.link);
        });
    }

    /// Connects to a relay, and carries what it and the node say to each other until the leg is joined.
    async fn lead(
        &self,
        leg: LegId,
        address: SocketAddr,
        mut orders: mpsc::Receiver<LegOrder>,
    ) -> io::Result<TcpStream> {
        let mut stream = within(CONNECT_TIMEOUT, connect(address)).await?;
        prepare(&stream)?;
        self.tell(leg, LegNews::Opened).await;
        for _frame in 0..=MAX_FRAMES {
            let order = time::timeout(DECISION_TIMEOUT, orders.recv()).await;
            match order.map_err(|_elapsed| io::ErrorKind::TimedOut)? {
                Some(LegOrder::Send(payload)) => write_frame(&mut stream, &payload).await?,
                Some(LegOrder::Joined) => return Ok(stream),
                Some(LegOrder::Dial(_) | LegOrder::Close) | None => {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
            }
            let payload = within(ANSWER_TIMEOUT, read_frame(&mut stream)).await?;
            self.tell(leg, LegNews::Datagram(payload)).await;
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    async fn deliver(&self, joined: Joined, taker: Option<oneshot::Sender<Joined>>) {
        let Some(taker) = taker else {
            // A node that is gone needs no visitors.
            let _ = self.events.send(OwnLegEvent::Visited(joined)).await;
            return;
        };
        // Whoever has reached the peer in another way has dropped its end, and with it the leg; whoever has not been told
        // of the attempt yet still comes.
        if taker.send(joined).is_ok() {
            time::sleep(TAKING_TIMEOUT).await;
        }
    }

    async fn tell(&self, leg: LegId, news: LegNews) {
        // A node that is gone needs no news.
        let _ = self.events.send(OwnLegEvent::News(leg, news)).await;
    }
}
