//! Looks for a device by its MAC.
//!
//! The neighbour table alone is not enough: for half a minute after a device has moved it still vouches for the old
//! address, and an entry can be days old. So every address where the device may be gets a datagram, and what happens
//! then decides (see [`standing`]):
//!
//! - the device says that nobody listens on the port, or, if it used to and does not now, answers the beginning of a TCP
//!   connection, and the table has its MAC there: it is there, after one round trip;
//! - the kernel confirms the entry anew: it is there;
//! - silence at an entry that the kernel holds for reachable: it is there, unless it used to answer, in which case
//!   the sweep looks elsewhere first;
//! - silence at an older entry: the kernel takes up to eight seconds to make up its mind.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::select_all;
use peerage_proto::dial::forbidden_device;
use peerage_proto::lan::{Interface, Mac};
use socket2::Socket;
use tokio::time::{Instant, sleep_until};

use super::codec::{Message, Neighbour, NeighbourState};
use super::facts::{self, Facts};
use super::handle::Shared;
use super::netlink::{Event, Netlink};
use super::probe::{self, Probe, Reply};
use super::sweep::{self, Target};
use super::{FindDevice, Found, LanError, MAX_FIND, Presence};

/// How long silence must last to count. A LAN answers within milliseconds, a sleeping Wi-Fi device within some
/// beacons (100 ms each). Raised, silent devices are found later; lowered, sleepy ones seem to have moved.
const PROBE_WAIT: Duration = Duration::from_millis(300);

/// How long the kernel asks for an address that it does not know: three times, a second apart, and some reserve.
const RESOLVE_WAIT: Duration = Duration::from_millis(3500);

/// How long the kernel takes to doubt an old entry: 5 s of waiting for a sign of life, three questions, and some reserve.
const STALE_WAIT: Duration = Duration::from_millis(9000);

/// How often a sweep sends, and how many at a time: together 100 a second, of which a Wi-Fi hardly notices the broadcasts.
/// Raised, sleepy networks drop the questions; lowered, a user waits.
const SWEEP_INTERVAL: Duration = Duration::from_millis(50);
const SWEEP_BATCH: usize = 5;

/// The most addresses that are probed for one device because the table or the request names them, and the most that are
/// probed because they turn up during the search. More than a few are somebody's play with a MAC.
const MAX_NAMED_CANDIDATES: usize = 8;
const MAX_CANDIDATES: usize = 16;

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    mac: Option<Mac>,
    state: NeighbourState,
    /// When the kernel last had proof, to some hundredths of a second; only good for comparing entries.
    confirmed_at: Option<Instant>,
    /// Whether the kernel got new proof during this search.
    is_confirmed: bool,
}

/// An address where the device may be.
#[derive(Debug)]
struct Candidate {
    interface: u32,
    address: IpAddr,
    added_at: Instant,
    probe: Option<Probe>,
    reply: Option<Reply>,
}

/// What is known about a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The device is there now.
    Proven,
    /// It was there when the kernel last had proof, which may be half a minute ago.
    Believed(Option<Instant>),
    /// The table says so, from some time ago.
    Stale,
    /// Being asked for.
    Resolving,
    /// Nobody or somebody else is there.
    Gone,
}

/// A search under way.
#[derive(Debug)]
pub(super) struct Search<'a> {
    shared: &'a Shared,
    request: &'a FindDevice,
    interfaces: &'a [Interface],
    started_at: Instant,
    /// Whether the device answered a probe in an earlier search.
    answers: bool,
    candidates: Vec<Candidate>,
    /// Those of the candidates.
    entries: BTreeMap<(u32, IpAddr), Entry>,
    /// Whether the first reading of the table is entered.
    is_begun: bool,
    sweep: Option<Sweep>,
}

/// A sweep under way.
#[derive(Debug)]
struct Sweep {
    targets: VecDeque<Target>,
    sockets: BTreeMap<u32, Socket>,
    next_at: Instant,
    swept: u32,
    /// When the last datagram was sent.
    ended_at: Option<Instant>,
}

impl<'a> Search<'a> {
    /// Begins: probes every address that the table or the request names.
    pub(super) fn new(shared: &'a Shared, request: &'a FindDevice, facts: &'a Facts) -> Self {
        let mut search = Self {
            shared,
            request,
            interfaces: &facts.interfaces,
            started_at: Instant::now(),
            answers: shared.memory().answers(request.mac),
            candidates: Vec::new(),
            entries: BTreeMap::new(),
            is_begun: false,
            sweep: None,
        };
        if let Some(address) = request.last_address {
            for interface in search.interfaces {
                search.add_candidate(interface.index, address);
            }
        }
        // Should there be too many, those that the kernel had proof of last are tried.
        let mut neighbours = facts.neighbours.clone();
        neighbours.sort_by_key(|one| {
            (one.state != NeighbourState::Reachable, one.confirmed_ms.unwrap_or(u64::MAX))
        });
        search.note_all(&neighbours);
        search.is_begun = true;
        search
    }

    /// Goes on until the device is found or given up.
    pub(super) async fn run(
        mut self,
        mut events: Netlink,
        mut requests: Netlink,
    ) -> Result<Presence, LanError> {
        let give_up_at = self.started_at + MAX_FIND;
        loop {
            let now = Instant::now();
            let wake_at = match self.advance(now) {
                Progress::Ended(presence) => return Ok(presence),
                Progress::WaitUntil(at) => at,
            };
            if now >= give_up_at {
                return Ok(self.give_up());
            }
            tokio::select! {
                event = events.event() => match event? {
                    Event::Message(Message::Neighbour(neighbour)) => self.note(&neighbour),
                    Event::Message(_) => {}
                    Event::Overrun => self.note_all(&facts::neighbours(&mut requests).await?),
                },
                (index, reply) = next_reply(&self.candidates) => {
                    if let Some(candidate) = self.candidates.get_mut(index) {
                        candidate.reply = Some(reply);
                    }
                }
                () = sleep_until(wake_at.min(give_up_at)) => {}
            }
        }
    }

    /// Returns the candidate where the device certainly is.
    fn proven(&self) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| self.standing(candidate) == Standing::Proven)
    }

    /// Returns until when to wait for the device's reply although it is found: whether it replies at all
    /// decides what its silence means the next time.
    fn learns_until(&self, candidate: &Candidate) -> Instant {
        let is_known = self.answers || candidate.reply.is_some();
        if is_known { self.started_at } else { candidate.added_at + PROBE_WAIT }
    }

    /// Decides what time alone decides.
    fn advance(&mut self, now: Instant) -> Progress {
        if let Some(candidate) = self.proven() {
            let learns_until = self.learns_until(candidate);
            if now < learns_until {
                return Progress::WaitUntil(learns_until);
            }
            if candidate.reply == Some(Reply::Answered) {
                self.shared.memory().note_answer(self.request.mac);
            }
            return Progress::Ended(Presence::Found(candidate.found()));
        }
        match &self.sweep {
            None => {
                let settles_at = self.settles_at(Self::patience_before_sweep);
                if now < settles_at {
                    return Progress::WaitUntil(settles_at);
                }
                if let Some(found) = self.believed().filter(|_| !self.answers) {
                    return Progress::Ended(Presence::Found(found));
                }
                self.sweep = Some(Sweep {
                    targets: self.sweep_targets(),
                    sockets: BTreeMap::new(),
                    next_at: now,
                    swept: 0,
                    ended_at: None,
                });
                Progress::WaitUntil(now)
            }
            Some(Sweep { ended_at: None, next_at, .. }) => {
                let next_at = *next_at;
                if now < next_at {
                    return Progress::WaitUntil(next_at);
                }
                self.sweep_on(now);
                Progress::WaitUntil(now)
            }
            Some(Sweep { ended_at: Some(ended_at), swept, .. }) => {
                let answered_at = if *swept == 0 { *ended_at } else { *ended_at + RESOLVE_WAIT };
                let settles_at = self.settles_at(Self::patience_at_last).max(answered_at);
                if now < settles_at {
                    Progress::WaitUntil(settles_at)
                } else {
                    Progress::Ended(self.give_up())
                }
            }
        }
    }

    /// Returns when all candidates have had their time.
    fn settles_at(&self, patience: impl Fn(&Self, Standing) -> Duration) -> Instant {
        let times = self.candidates.iter().map(|one| one.added_at + patience(self, self.standing(one)));
        times.max().unwrap_or(self.started_at)
    }

    fn patience_before_sweep(&self, standing: Standing) -> Duration {
        match standing {
            Standing::Proven | Standing::Gone => Duration::ZERO,
            Standing::Believed(_) => PROBE_WAIT,
            // One that used to answer and is silent has moved.
            Standing::Stale if self.answers => PROBE_WAIT,
            // An entry that the kernel believes needs no second one.
            Standing::Stale | Standing::Resolving if self.believed().is_some() => PROBE_WAIT,
            Standing::Stale => STALE_WAIT,
            Standing::Resolving => RESOLVE_WAIT,
        }
    }

    fn patience_at_last(&self, standing: Standing) -> Duration {
        match standing {
            Standing::Proven | Standing::Gone => Duration::ZERO,
            Standing::Believed(_) => PROBE_WAIT,
            Standing::Stale => STALE_WAIT,
            Standing::Resolving => RESOLVE_WAIT,
        }
    }

    /// Returns where the kernel believes the device to be; of several, the address that it had proof of last.
    fn believed(&self) -> Option<Found> {
        let believed = self.candidates.iter().filter_map(|candidate| match self.standing(candidate) {
            Standing::Believed(at) => Some((at, candidate)),
            Standing::Proven | Standing::Stale | Standing::Resolving | Standing::Gone => None,
        });
        believed.max_by_key(|(at, _)| *at).map(|(_, candidate)| candidate.found())
    }

    fn give_up(&self) -> Presence {
        match self.believed() {
            Some(found) => Presence::Found(found),
            None => Presence::Absent { swept: self.sweep.as_ref().map_or(0, |sweep| sweep.swept) },
        }
    }

    fn standing(&self, candidate: &Candidate) -> Standing {
        let entry = self.entries.get(&(candidate.interface, candidate.address));
        let is_suspect = self.request.suspect == Some(candidate.address);
        standing(entry, self.request.mac, candidate.reply, is_suspect)
    }

    /// Returns what to sweep: nothing that a candidate's probe already covers.
    fn sweep_targets(&self) -> VecDeque<Target> {
        let mut targets = sweep::targets(self.request, self.interfaces);
        targets.retain(|target| {
            let mut candidates = self.candidates.iter();
            !candidates
                .any(|one| one.interface == target.interface && one.address == IpAddr::V4(target.address))
        });
        targets
    }

    /// Sends the next few datagrams of the sweep.
    fn sweep_on(&mut self, now: Instant) {
        let Some(sweep) = &mut self.sweep else { return };
        for _ in 0..SWEEP_BATCH {
            let Some(target) = sweep.targets.front().copied() else { break };
            // Nothing in between waits: the datagram goes to the system's queue or not.
            let mut memory = self.shared.memory();
            if !memory.budget.take(now.into_std()) {
                sweep.targets.clear();
                break;
            }
            match sweep.try_send(target, self.interfaces) {
                Sent::Yes => sweep.swept += 1,
                Sent::Never => memory.budget.give_back(),
                Sent::NotNow => {
                    memory.budget.give_back();
                    break;
                }
            }
            sweep.targets.pop_front();
        }
        sweep.next_at = now + SWEEP_INTERVAL;
        if sweep.targets.is_empty() {
            sweep.ended_at = Some(now);
        }
    }

    fn note_all(&mut self, neighbours: &[Neighbour]) {
        for neighbour in neighbours {
            self.note(neighbour);
        }
    }

    /// Enters the news of a neighbour, if it is about the device or an address where it may be.
    fn note(&mut self, neighbour: &Neighbour) {
        let key = (neighbour.interface, neighbour.address);
        let is_device = neighbour.mac == Some(self.request.mac) && neighbour.state != NeighbourState::NoArp;
        if is_device {
            self.add_candidate(neighbour.interface, neighbour.address);
        }
        let is_candidate = self.candidates.iter().any(|one| (one.interface, one.address) == key);
        if !is_candidate {
            return;
        }
        let confirmed_at =
            neighbour.confirmed_ms.and_then(|ms| Instant::now().checked_sub(Duration::from_millis(ms)));
        let before = self.entries.get(&key).filter(|entry| entry.mac == neighbour.mac);
        // The reading that a search begins with only shows what was so before. After it, news of a reachable neighbour
        // that was not so is proof.
        let is_reachable = neighbour.state == NeighbourState::Reachable;
        let is_confirmed = match before {
            Some(entry) => entry.is_confirmed || (is_reachable && entry.state != NeighbourState::Reachable),
            None => is_reachable && self.is_begun,
        };
        self.entries
            .insert(key, Entry { mac: neighbour.mac, state: neighbour.state, confirmed_at, is_confirmed });
    }

    /// Probes an address, unless that has happened or must not.
    fn add_candidate(&mut self, index: u32, address: IpAddr) {
        let is_known = self.candidates.iter().any(|one| one.interface == index && one.address == address);
        let limit = if self.is_begun { MAX_CANDIDATES } else { MAX_NAMED_CANDIDATES };
        if is_known || self.candidates.len() >= limit {
            return;
        }
        if self.request.interface.is_some_and(|wanted| wanted != index) {
            return;
        }
        let Some(interface) = self.interfaces.iter().find(|one| one.index == index && one.up) else { return };
        if forbidden_device(address, interface, self.interfaces).is_some() {
            return;
        }
        let (probe, reply) = match Probe::start(interface, address, self.answers) {
            Ok(probe) => (Some(probe), None),
            Err(error) => {
                tracing::debug!(interface = interface.name, %error, "a probe cannot be sent");
                (None, Some(Reply::Unreachable))
            }
        };
        self.candidates.push(Candidate { interface: index, address, added_at: Instant::now(), probe, reply });
    }
}

/// How a search goes on.
#[derive(Debug)]
enum Progress {
    Ended(Presence),
    WaitUntil(Instant),
}

impl Candidate {
    const fn found(&self) -> Found {
        Found { address: self.address, interface: self.interface }
    }
}

/// Judges one candidate.
fn standing(entry: Option<&Entry>, wanted: Mac, reply: Option<Reply>, is_suspect: bool) -> Standing {
    let Some(entry) = entry else {
        return if reply == Some(Reply::Unreachable) { Standing::Gone } else { Standing::Resolving };
    };
    if entry.state == NeighbourState::Incomplete && reply != Some(Reply::Unreachable) {
        return Standing::Resolving;
    }
    if entry.mac != Some(wanted) {
        return Standing::Gone;
    }
    match entry.state {
        _ if reply == Some(Reply::Answered) => Standing::Proven,
        NeighbourState::Reachable if entry.is_confirmed => Standing::Proven,
        // The dial that made it suspect is later than the kernel's proof.
        NeighbourState::Reachable | NeighbourState::Permanent if is_suspect => Standing::Gone,
        NeighbourState::Reachable => Standing::Believed(entry.confirmed_at),
        NeighbourState::Permanent => Standing::Believed(None),
        NeighbourState::Unproven => Standing::Stale,
        NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::NoArp => Standing::Gone,
    }
}

/// Waits for the next reply to a probe, as the index of its candidate; for ever if none is awaited.
async fn next_reply(candidates: &[Candidate]) -> (usize, Reply) {
    let waiting = candidates.iter().enumerate().filter(|(_, one)| one.reply.is_none());
    let replies: Vec<_> = waiting
        .filter_map(|(index, one)| {
            one.probe.as_ref().map(|probe| Box::pin(async move { (index, probe.reply().await) }))
        })
        .collect();
    if replies.is_empty() {
        return pending().await;
    }
    select_all(replies).await.0
}

/// How the attempt to try an address went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Yes,
    /// The system has no room for the question: later.
    NotNow,
    /// The system refuses this address.
    Never,
}

impl Sweep {
    fn try_send(&mut self, target: Target, interfaces: &[Interface]) -> Sent {
        let Some(interface) = interfaces.iter().find(|one| one.index == target.interface) else {
            return Sent::Never;
        };
        let socket = match self.sockets.entry(target.interface) {
            std::collections::btree_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::btree_map::Entry::Vacant(vacant) => match probe::open(interface, true) {
                Ok(socket) => vacant.insert(socket),
                Err(_) => return Sent::Never,
            },
        };
        match probe::send(socket, target.interface, IpAddr::V4(target.address)) {
            Ok(()) => Sent::Yes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::NotNow,
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => Sent::NotNow,
            Err(_) => Sent::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_or_a_new_confirmation_proves_that_the_device_is_there() {
        use NeighbourState::{Failed, Incomplete, NoArp, Permanent, Reachable, Unproven};
        let before = Some(Instant::now());
        let answered = Some(Reply::Answered);
        let unreachable = Some(Reply::Unreachable);
        for (mac, state, is_confirmed, reply, suspect, expected) in [
            (Some(DEVICE), Reachable, false, None, false, Standing::Believed(before)),
            (Some(DEVICE), Reachable, false, None, true, Standing::Gone),
            (Some(DEVICE), Reachable, false, answered, true, Standing::Proven),
            (Some(DEVICE), Reachable, true, None, true, Standing::Proven),
            (Some(DEVICE), Unproven, false, None, false, Standing::Stale),
            (Some(DEVICE), Unproven, true, None, false, Standing::Stale),
            (Some(DEVICE), Unproven, false, answered, false, Standing::Proven),
            (Some(DEVICE), Permanent, false, None, false, Standing::Believed(None)),
            (Some(DEVICE), Permanent, false, None, true, Standing::Gone),
            (Some(OTHER), Reachable, true, answered, false, Standing::Gone),
            (Some(OTHER), Unproven, false, None, false, Standing::Gone),
            (Some(DEVICE), NoArp, false, None, false, Standing::Gone),
            (None, Incomplete, false, None, false, Standing::Resolving),
            (None, Incomplete, false, answered, false, Standing::Resolving),
            (None, Incomplete, false, unreachable, false, Standing::Gone),
            (None, Failed, false, None, false, Standing::Gone),
        ] {
            let entry = Entry { mac, state, confirmed_at: before, is_confirmed };
            assert_eq!(standing(Some(&entry), DEVICE, reply, suspect), expected, "{entry:?} {reply:?}");
        }
        assert_eq!(standing(None, DEVICE, None, false), Standing::Resolving);
        assert_eq!(standing(None, DEVICE, unreachable, false), Standing::Gone);
    }

    const DEVICE: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);
}
