//! By which carrier messages reach a server (Rules 6.100 to 6.109).
//!
//! UDP is asked first and always. Where it stays silent, [`Carriers`] has connections made to the same server, one kind after the other
//! and each with a head start before the next, and takes the first on which the server *answers*: that a connection stands, or that
//! somebody speaks TLS, shows nothing. What has worked in a network is tried at once the next time, and UDP is asked again
//! now and then, ever more rarely, because each such datagram is one that a firewall drops.
//!
//! The value makes no connection and sends nothing. It is told what was asked, heard and lost, and gives [`Order`]s.

mod types;
mod ways;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::id::NodeId;
use peerage_wire::time::Instant;

pub use self::types::{Carrier, LegWay, LegWays, Order, StreamId, StreamNews, StreamOrder, Why};
use self::ways::ways;

/// How long UDP may take to answer in a network where it has not answered yet, before a connection is made beside it. Shorter makes
/// connections where the way is long; longer keeps people waiting where UDP is blocked.
const HEAD_START: Duration = Duration::from_millis(300);

/// The same where UDP has answered before: two sendings and a round trip, so that a lost datagram does not make a connection.
const SILENCE: Duration = Duration::from_secs(2);

/// How long one way is tried before the next is tried beside it. RFC 8305 has 250 ms for connections alone; ours are followed by TLS and
/// one answer. Longer, and the last of four likely ways is not found within two seconds; shorter makes more connections that nobody needs.
const STAGGER: Duration = Duration::from_millis(350);

/// How long after the last way was tried all of them are given up.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(8);

/// Most ways that are tried for one server in one go: four addresses in three ways each. More tries more addresses of a server that is
/// not there.
const MAX_ATTEMPTS: usize = 12;

/// Most ways that are tried for one leg; the relay is known to be there.
const MAX_LEG_WAYS: usize = 8;

/// Most servers whose carriers are known; the one that was asked longest ago, and has no connection, is forgotten.
const MAX_SERVERS: usize = 256;

/// How long a server rests after every way to it has failed; doubled each time.
const REST: Duration = Duration::from_secs(5);

/// See [`REST`]. Longer leaves a node cut off for longer after an outage.
const MAX_REST: Duration = Duration::from_secs(300);

/// When UDP is asked for the first time whether it works again; doubled each time.
const RETRY: Duration = Duration::from_secs(30);

/// See [`RETRY`]. Longer stays on a slower carrier for longer; shorter sends more that firewalls drop.
const MAX_RETRY: Duration = Duration::from_secs(3_600);

/// For how long UDP must have worked until the next silence counts as the first one again.
const HELD: Duration = Duration::from_secs(600);

/// A connection on which nothing was asked for so long is closed. Attached nodes ask every fifty seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(150);

/// A request without an answer counts three, one with an answer takes one away; at so many UDP is of no use. With three sendings each,
/// that is a loss at which messages are slower than a connection.
const MAX_LOST: u32 = 9;

/// Requests in a row that a connection leaves without an answer until it counts as broken.
const MAX_UNANSWERED: u32 = 2;

/// A connection that has lived for so long is made anew at once when it breaks; whatever closes earlier than that rests.
const LIVED: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
struct Attempt {
    stream: StreamId,
    carrier: Carrier,
    address: SocketAddr,
}

/// A connection that is in use.
#[derive(Clone, Copy, Debug)]
struct Used {
    stream: StreamId,
    carrier: Carrier,
    address: SocketAddr,
    since: Instant,
    why: Why,
    unanswered: u32,
}

#[derive(Clone, Debug)]
struct Server {
    addresses: Vec<SocketAddr>,
    asked_at: Instant,
    /// Since when UDP has not answered what was asked.
    unheard_since: Option<Instant>,
    lost: u32,
    why: Why,
    /// When the next way is tried.
    next_at: Option<Instant>,
    /// How many ways were tried in this go.
    begun: usize,
    attempts: Vec<Attempt>,
    used: Option<Used>,
    rest: Duration,
    rest_until: Instant,
}

impl Server {
    const fn new(addresses: Vec<SocketAddr>, now: Instant) -> Self {
        Self {
            addresses,
            asked_at: now,
            unheard_since: None,
            lost: 0,
            why: Why::Silent,
            next_at: None,
            begun: 0,
            attempts: Vec::new(),
            used: None,
            rest: REST,
            rest_until: now,
        }
    }

    const fn is_trying(&self) -> bool {
        self.next_at.is_some() || !self.attempts.is_empty()
    }

    /// Returns whether it has left something without an answer.
    const fn is_missed(&self) -> bool {
        self.unheard_since.is_some() || self.is_trying()
    }

    fn address(&self) -> Option<SocketAddr> {
        self.addresses.first().copied()
    }
}

/// By which carrier each server is reached. See the module.
#[derive(Clone, Debug)]
pub struct Carriers {
    /// Those that may be used, the best first.
    allowed: Vec<Carrier>,
    /// What has worked in this network beside UDP.
    known: Option<Carrier>,
    udp_heard_at: Option<Instant>,
    /// Since when UDP has worked again after a silence.
    returned_at: Option<Instant>,
    retry: Duration,
    retry_at: Option<Instant>,
    /// How often something better was tried.
    retries: usize,
    servers: BTreeMap<NodeId, Server>,
    next_stream: u64,
    orders: VecDeque<Order>,
}

impl Carriers {
    /// Makes one that may use these carriers.
    pub fn new(mut allowed: Vec<Carrier>) -> Self {
        allowed.sort_unstable();
        allowed.dedup();
        Self {
            allowed,
            known: None,
            udp_heard_at: None,
            returned_at: None,
            retry: RETRY,
            retry_at: None,
            retries: 0,
            servers: BTreeMap::new(),
            next_stream: 0,
            orders: VecDeque::new(),
        }
    }

    /// Returns whether anything but UDP may be used.
    pub fn has_choice(&self) -> bool {
        self.allowed.iter().any(|carrier| *carrier != Carrier::Udp)
    }

    /// The computer is in another network, in which this carrier has worked before, if any. All connections are given up, and UDP is
    /// asked as if for the first time; so are those who have not answered yet.
    pub fn network_changed(&mut self, known: Option<Carrier>, now: Instant) {
        let before = std::mem::take(&mut self.servers);
        for (node, server) in &before {
            self.orders.extend(server.attempts.iter().map(|attempt| Order::Close(attempt.stream)));
            if let Some(used) = server.used {
                self.orders.push_back(Order::Close(used.stream));
                self.orders.push_back(Order::Use { server: *node, stream: None });
            }
        }
        self.known = known;
        self.udp_heard_at = None;
        self.returned_at = None;
        self.retry = RETRY;
        self.retry_at = None;
        for (node, server) in before.iter().filter(|(_, server)| server.is_missed()) {
            self.asked(*node, &server.addresses, now);
        }
    }

    /// It has become known in which network the computer is, and what has worked there.
    pub fn recall(&mut self, known: Option<Carrier>) {
        if self.udp_heard_at.is_none() {
            self.known = self.known.or(known);
        }
    }

    /// Something was asked of a server that is at these addresses, the one in use first.
    pub fn asked(&mut self, node: NodeId, addresses: &[SocketAddr], now: Instant) {
        if !self.has_choice() {
            return;
        }
        self.make_room(&node);
        let server = self.servers.entry(node).or_insert_with(|| Server::new(addresses.to_vec(), now));
        server.asked_at = now;
        if server.addresses != addresses {
            server.addresses = addresses.to_vec();
        }
        if server.used.is_some() || server.is_trying() {
            return;
        }
        let since = *server.unheard_since.get_or_insert(now);
        let head_start = match (self.udp_heard_at, self.known) {
            _ if !self.allowed.contains(&Carrier::Udp) => Duration::ZERO,
            (Some(_), _) => SILENCE,
            (None, None) => HEAD_START,
            // Beside UDP, which may work again.
            (None, Some(_)) => Duration::ZERO,
        };
        server.why = Why::Silent;
        server.next_at = Some(since.after(head_start).max(server.rest_until));
    }

    fn make_room(&mut self, node: &NodeId) {
        if self.servers.len() < MAX_SERVERS || self.servers.contains_key(node) {
            return;
        }
        let idle = self.servers.iter().filter(|(_, server)| server.used.is_none() && !server.is_trying());
        let oldest = idle.min_by_key(|(_, server)| server.asked_at).map(|(node, _)| *node);
        if let Some(oldest) = oldest {
            self.servers.remove(&oldest);
        }
    }

    /// A server has answered: over UDP, or on this connection.
    pub fn heard(&mut self, node: NodeId, stream: Option<StreamId>, now: Instant) {
        match stream {
            None => self.heard_over_udp(node, now),
            Some(stream) => self.heard_on(node, stream, now),
        }
    }

    fn heard_over_udp(&mut self, node: NodeId, now: Instant) {
        self.udp_heard_at = Some(now);
        if self.servers.values().all(|server| server.used.is_none()) {
            self.learn(None);
        }
        let Some(server) = self.servers.get_mut(&node) else { return };
        server.lost = server.lost.saturating_sub(1);
        // An answer that was under way; whether UDP works again is for a probe to say.
        if server.used.is_some() {
            return;
        }
        server.unheard_since = None;
        if server.lost < MAX_LOST {
            self.orders.extend(server.attempts.drain(..).map(|attempt| Order::Close(attempt.stream)));
            (server.next_at, server.begun, server.rest) = (None, 0, REST);
        }
    }

    fn heard_on(&mut self, node: NodeId, stream: StreamId, now: Instant) {
        let Some(server) = self.servers.get_mut(&node) else { return };
        if let Some(used) = server.used.as_mut().filter(|used| used.stream == stream) {
            used.unanswered = 0;
            return;
        }
        let Some(chosen) = server.attempts.iter().find(|attempt| attempt.stream == stream).copied() else {
            return;
        };
        let others = server.attempts.drain(..).map(|attempt| attempt.stream);
        let others = others.chain(server.used.map(|used| used.stream)).filter(|other| *other != stream);
        let closed: Vec<_> = others.map(Order::Close).collect();
        let Attempt { carrier, address, .. } = chosen;
        let why = server.why;
        server.used = Some(Used { stream, carrier, address, since: now, why, unanswered: 0 });
        (server.next_at, server.begun, server.unheard_since) = (None, 0, None);
        (server.rest, server.lost) = (REST, 0);
        self.orders.push_back(Order::Use { server: node, stream: Some(stream) });
        self.orders.extend(closed);
        self.learn(Some(carrier));
        if self.retry_at.is_none() {
            if self.returned_at.is_none_or(|at| now - at >= HELD) {
                self.retry = RETRY;
            }
            self.retry_at = Some(now.after(self.retry));
        }
    }

    fn learn(&mut self, known: Option<Carrier>) {
        if self.known != known {
            self.known = known;
            self.orders.push_back(Order::Remember(known));
        }
    }

    /// A probe over UDP was answered: the server is asked over UDP again, and the others are probed.
    pub fn returned(&mut self, node: NodeId, now: Instant) {
        (self.udp_heard_at, self.returned_at, self.retry_at) = (Some(now), Some(now), None);
        self.leave(node);
        self.learn(None);
        let others = self.servers.iter().filter(|(_, server)| server.used.is_some());
        let probes = others.filter_map(|(node, server)| Some((*node, server.address()?)));
        let probes = probes.map(|(server, address)| Order::Probe { server, address, stream: None });
        self.orders.extend(probes.collect::<Vec<_>>());
    }

    /// Goes back to UDP with a server.
    fn leave(&mut self, node: NodeId) {
        let Some(server) = self.servers.get_mut(&node) else { return };
        let attempts = server.attempts.drain(..).map(|attempt| attempt.stream);
        let streams: Vec<_> = attempts.chain(server.used.take().map(|used| used.stream)).collect();
        (server.next_at, server.begun, server.unheard_since) = (None, 0, None);
        self.orders.push_back(Order::Use { server: node, stream: None });
        self.orders.extend(streams.into_iter().map(Order::Close));
    }

    /// A server has not answered a request, all its repetitions included.
    pub fn lost(&mut self, node: NodeId, now: Instant) {
        let Some(server) = self.servers.get_mut(&node) else { return };
        if let Some(used) = &mut server.used {
            used.unanswered += 1;
            let (stream, unanswered) = (used.stream, used.unanswered);
            if unanswered >= MAX_UNANSWERED {
                self.orders.push_back(Order::Close(stream));
                self.closed(stream, now);
            }
            return;
        }
        server.lost = (server.lost + 3).min(2 * MAX_LOST);
        if server.lost >= MAX_LOST && !server.is_trying() {
            server.why = Why::Lossy;
            server.next_at = Some(now.max(server.rest_until));
        }
    }

    /// A connection stands; whether the server is at its other end is asked.
    pub fn opened(&mut self, stream: StreamId) {
        let mut all = self.servers.iter();
        let found = all.find_map(|(node, server)| {
            let attempt = server.attempts.iter().find(|attempt| attempt.stream == stream)?;
            Some((*node, attempt.address))
        });
        if let Some((server, address)) = found {
            self.orders.push_back(Order::Probe { server, address, stream: Some(stream) });
        }
    }

    /// A connection is gone, or could not be made.
    pub fn closed(&mut self, stream: StreamId, now: Instant) {
        for (node, server) in &mut self.servers {
            if let Some(used) = server.used.filter(|used| used.stream == stream) {
                server.used = None;
                server.begun = 0;
                let has_lived = now - used.since >= LIVED;
                server.next_at = Some(if has_lived { now } else { now.after(server.rest) });
                server.rest = if has_lived { REST } else { (server.rest * 2).min(MAX_REST) };
                self.orders.push_back(Order::Use { server: *node, stream: None });
                return;
            }
            let before = server.attempts.len();
            server.attempts.retain(|attempt| attempt.stream != stream);
            if server.attempts.len() < before {
                if server.attempts.is_empty() && server.used.is_none() {
                    server.next_at = Some(now);
                }
                return;
            }
        }
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) is due.
    pub fn next_at(&self) -> Option<Instant> {
        let servers = self.servers.values().filter_map(|server| {
            let idle = server.used.map(|_| server.asked_at.after(IDLE_TIMEOUT));
            server.next_at.into_iter().chain(idle).min()
        });
        servers.chain(self.retry_at).min()
    }

    /// Tries what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let is_due = |server: &Server| server.next_at.is_some_and(|at| at <= now);
        let due = self.servers.iter().filter(|(_, server)| is_due(server)).map(|(node, _)| *node);
        for node in due.collect::<Vec<_>>() {
            self.try_next(node, now);
        }
        let is_idle = |server: &Server| server.used.is_some() && server.asked_at.after(IDLE_TIMEOUT) <= now;
        let idle = self.servers.iter().filter(|(_, server)| is_idle(server)).map(|(node, _)| *node);
        for node in idle.collect::<Vec<_>>() {
            self.leave(node);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.try_better(now);
        }
    }

    /// Returns the ways to a server beside UDP, in the order in which they are tried.
    fn ways(&self, server: &Server) -> Vec<(Carrier, SocketAddr)> {
        let mut ways = ways(&self.allowed, &server.addresses);
        // What has worked here before goes first.
        ways.sort_by_key(|(carrier, _)| Some(*carrier) != self.known);
        ways.truncate(MAX_ATTEMPTS);
        ways
    }

    fn try_next(&mut self, node: NodeId, now: Instant) {
        let Some(server) = self.servers.get(&node) else { return };
        let ways = self.ways(server);
        let way = ways.get(server.begun).copied();
        let is_last = server.begun + 1 >= ways.len();
        let stream = self.new_stream();
        let Some(server) = self.servers.get_mut(&node) else { return };
        if let Some((carrier, address)) = way {
            server.begun += 1;
            server.attempts.push(Attempt { stream, carrier, address });
            server.next_at = Some(now.after(if is_last { ATTEMPT_TIMEOUT } else { STAGGER }));
            return self.orders.push_back(Order::Open { stream, carrier, address });
        }
        self.orders.extend(server.attempts.drain(..).map(|attempt| Order::Close(attempt.stream)));
        (server.begun, server.next_at, server.unheard_since) = (0, None, None);
        server.lost = 0;
        server.rest_until = now.after(server.rest);
        server.rest = (server.rest * 2).min(MAX_REST);
    }

    const fn new_stream(&mut self) -> StreamId {
        self.next_stream = self.next_stream.saturating_add(1);
        StreamId::Made(self.next_stream)
    }

    /// Asks one server over UDP whether that works again, and in one way that is better than that in use. Where nothing is on a connection
    /// any more, there is nothing to be asked.
    fn try_better(&mut self, now: Instant) {
        self.retry_at = None;
        let asked_last = self.servers.iter().filter(|(_, server)| server.used.is_some());
        let asked_last = asked_last.max_by_key(|(_, server)| server.asked_at);
        let Some((server, address)) = asked_last.and_then(|(node, s)| Some((*node, s.address()?))) else {
            return;
        };
        if self.allowed.contains(&Carrier::Udp) {
            self.orders.push_back(Order::Probe { server, address, stream: None });
        }
        self.try_better_connection(server);
        self.retry = (self.retry * 2).min(MAX_RETRY);
        self.retry_at = Some(now.after(self.retry));
    }

    /// Makes one connection of a better kind beside that in use, which stays until the server has answered on the other. Each time it is
    /// another of those that are possible.
    fn try_better_connection(&mut self, node: NodeId) {
        let Some(server) = self.servers.get(&node) else { return };
        let used = server.used.map(|used| used.carrier);
        let ways = ways(&self.allowed, &server.addresses).into_iter();
        let better: Vec<_> = ways.filter(|(carrier, _)| Some(*carrier) < used).take(MAX_ATTEMPTS).collect();
        let turn = self.retries.checked_rem(better.len());
        let Some((carrier, address)) = turn.and_then(|turn| better.get(turn)).copied() else { return };
        self.retries = self.retries.wrapping_add(1);
        let stream = self.new_stream();
        let Some(server) = self.servers.get_mut(&node) else { return };
        // That of the last time, if it stands and nobody has answered on it.
        self.orders.extend(server.attempts.drain(..).map(|attempt| Order::Close(attempt.stream)));
        server.attempts.push(Attempt { stream, carrier, address });
        self.orders.push_back(Order::Open { stream, carrier, address });
    }

    /// Returns the next thing to do.
    pub fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// Returns how a leg to a relay may be made (Rule 6.110): bare, which costs the relay least, and inside whatever carries messages.
    pub fn leg_ways(&self, relay: &NodeId, addresses: &[SocketAddr]) -> LegWays {
        let used = self.servers.get(relay).and_then(|server| server.used);
        let mut addresses = addresses.to_vec();
        // Where its messages go, its legs may too.
        addresses.sort_by_key(|address| used.is_none_or(|used| used.address != *address));
        // The network may let only one family of addresses through.
        let is_first = addresses.first().map(SocketAddr::is_ipv4);
        let other = addresses.iter().position(|address| Some(address.is_ipv4()) != is_first);
        if let Some(turned) = other.and_then(|other| addresses.get_mut(1..=other)) {
            turned.rotate_right(1);
        }
        let inside: Vec<_> = match used.map(|used| used.carrier).or(self.known) {
            Some(carrier) => addresses.iter().map(|address| (carrier, *address)).collect(),
            None => ways(&self.allowed, &addresses),
        };
        let bare = addresses.iter().map(|address| LegWay { inside: None, address: *address });
        let inside = inside.into_iter().map(|(carrier, address)| LegWay { inside: Some(carrier), address });
        let mut all: Vec<_> = bare.chain(inside).collect();
        all.sort_by_key(|way| used.is_none_or(|used| used.address != way.address));
        all.truncate(MAX_LEG_WAYS);
        LegWays { all, must_answer: used.is_some() || self.known.is_some() }
    }

    /// Returns where the connection leads that a server is reached on, if it is on one.
    pub fn address(&self, node: &NodeId) -> Option<SocketAddr> {
        self.servers.get(node)?.used.map(|used| used.address)
    }

    /// Returns by which carrier a server is reached, and why not over UDP; UDP for one that nothing is known of.
    pub fn of(&self, node: &NodeId) -> (Carrier, Option<Why>) {
        let used = self.servers.get(node).and_then(|server| server.used);
        used.map_or((Carrier::Udp, None), |used| (used.carrier, Some(used.why)))
    }
}

#[cfg(test)]
mod tests;
