use std::collections::{BTreeMap, BTreeSet};

use peerage_wire::beacon::Ballot;
use peerage_wire::id::{Domain, LocationId};
use peerage_wire::time::UnixTime;
use proptest::prelude::*;

use super::chance::splitmix;
use super::*;

/// A computer on the LAN.
struct Computer {
    election: Election,
    /// Which part of a LAN that is split it is in.
    part: usize,
    is_awake: bool,
    asleep_since: Instant,
    /// Whether servers answer it.
    is_online: bool,
    /// It says that it is elected, announces itself, and does not answer.
    is_false: bool,
    attached_at: Option<Instant>,
    counter: u64,
    sent: usize,
    look_ups: usize,
    elected: usize,
    /// When it is to have its turn.
    due_at: Option<Instant>,
}

/// A LAN in virtual time: beacons arrive after a moment, or not at all.
struct Lan {
    now: Instant,
    seats: usize,
    computers: BTreeMap<NodeId, Computer>,
    turns: BTreeSet<(Instant, NodeId)>,
    under_way: BTreeMap<(Instant, u64), (NodeId, Beacon)>,
    answers: BTreeMap<(Instant, u64), (NodeId, bool)>,
    carries: bool,
    lost_percent: u64,
    /// How long a look-up takes at the least.
    look_up_time: Duration,
    chance: u64,
    number: u64,
    /// When nobody served, since when, as long as somebody could; and the longest such time.
    dark_since: Option<Instant>,
    darkest: Duration,
}

/// How long what somebody has announced counts after the last time: one announcement may be lost.
const ANNOUNCED: Duration = Duration::from_secs(390);

const DOMAIN: Domain = Domain(1);

fn ballot() -> Ballot {
    Ballot::new(&LocationId([7; 32]), &[])
}

fn id(n: usize) -> NodeId {
    NodeId { domain: DOMAIN, hash: peerage_wire::id::sha256(&[&n.to_be_bytes()]) }
}

/// Computers in the order of their ranks.
fn ranked(count: usize) -> Vec<NodeId> {
    let mut all: Vec<_> = (0..count).map(id).collect();
    all.sort_by_key(|node| ballot().rank(node));
    all
}

impl Lan {
    fn new(seats: usize, seed: u64) -> Self {
        Self {
            now: Instant::from_micros(1),
            seats,
            computers: BTreeMap::new(),
            turns: BTreeSet::new(),
            under_way: BTreeMap::new(),
            answers: BTreeMap::new(),
            carries: true,
            lost_percent: 0,
            look_up_time: Duration::from_millis(50),
            chance: seed,
            number: 0,
            dark_since: None,
            darkest: Duration::ZERO,
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.chance = splitmix(self.chance);
        (self.chance >> 11) % below
    }

    fn join(&mut self, node: NodeId) {
        self.join_with(node, true);
    }

    fn join_with(&mut self, node: NodeId, multicast: bool) {
        let config = Config { node, ballot: ballot(), seats: self.seats, multicast, spread: SPREAD };
        let seed = self.draw(u64::MAX);
        let election = Election::new(config, seed, self.now);
        let counter = self.computers.get(&node).map_or(0, |before| before.counter);
        let computer = Computer {
            election,
            part: 0,
            is_awake: true,
            asleep_since: self.now,
            is_online: true,
            is_false: false,
            attached_at: None,
            counter,
            sent: 0,
            look_ups: 0,
            elected: 0,
            due_at: None,
        };
        self.unplan(node);
        self.computers.insert(node, computer);
        self.settle(node);
    }

    fn input(&mut self, node: NodeId, happening: Happening<'_>) {
        let now = self.now;
        if let Some(computer) = self.computers.get_mut(&node).filter(|computer| computer.is_awake) {
            computer.election.handle(happening, now);
            if happening == Happening::Timeout {
                let next = computer.election.poll_timeout();
                assert!(next.is_none_or(|at| at > now), "{:?} wants {next:?} at {now:?}", computer.election);
            }
            self.settle(node);
        }
    }

    fn settle(&mut self, node: NodeId) {
        while let Some(computer) = self.computers.get_mut(&node) {
            let Some(order) = computer.election.poll_order() else { break };
            match order {
                Order::Send { kind, seated } => {
                    computer.counter += 1;
                    computer.sent += 1;
                    let time = UnixTime::from_millis(computer.counter);
                    let seated_secs = u32::try_from(seated.as_secs()).unwrap();
                    let beacon = Beacon { kind, node, ballot: ballot(), time, seated_secs, head: None };
                    if self.carries {
                        self.number += 1;
                        let delay = Duration::from_millis(1 + self.draw(80));
                        self.under_way.insert((self.now.after(delay), self.number), (node, beacon));
                    }
                }
                Order::LookUp { answering } => {
                    computer.look_ups += 1;
                    self.number += 1;
                    let delay = self.look_up_time + Duration::from_millis(self.draw(200));
                    self.answers.insert((self.now.after(delay), self.number), (node, answering));
                }
                Order::Elected(elected) => {
                    computer.elected += usize::from(elected);
                    computer.attached_at = elected.then(|| self.now.after(Duration::from_millis(300)));
                }
            }
        }
        self.plan(node);
    }

    fn unplan(&mut self, node: NodeId) {
        if let Some(at) = self.computers.get_mut(&node).and_then(|computer| computer.due_at.take()) {
            self.turns.remove(&(at, node));
        }
    }

    fn plan(&mut self, node: NodeId) {
        self.unplan(node);
        let now = self.now;
        let Some(computer) = self.computers.get_mut(&node).filter(|computer| computer.is_awake) else {
            return;
        };
        let attach = computer.attached_at.filter(|at| *at > now && computer.is_online);
        computer.due_at = computer.election.poll_timeout().into_iter().chain(attach).min();
        self.turns.extend(computer.due_at.map(|at| (at, node)));
    }

    /// Those who announced themselves, as a look-up finds them: also the sleeping, for some minutes.
    fn announced(&self, answering: bool) -> Vec<NodeId> {
        let is_there = |computer: &&Computer| {
            let attached = computer.attached_at.is_some_and(|at| at <= self.now) && computer.is_online;
            let answers = computer.is_awake && !computer.is_false;
            let is_fresh = computer.is_awake || self.now - computer.asleep_since < ANNOUNCED;
            attached && is_fresh && (answers || !answering)
        };
        self.computers.iter().filter(|(_, c)| is_there(c)).map(|(node, _)| *node).collect()
    }

    fn run(&mut self, span: Duration) {
        let end = self.now.after(span);
        loop {
            let timer = self.turns.first().copied();
            let beacon = self.under_way.keys().next().map(|key| key.0);
            let answer = self.answers.keys().next().map(|key| key.0);
            let next = [timer.map(|(at, _)| at), beacon, answer].into_iter().flatten().min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            self.note_light();
            if beacon == Some(next) {
                self.deliver();
            } else if answer == Some(next) {
                let (_, (node, answering)) = self.answers.pop_first().unwrap();
                let found = self.announced(answering);
                let online = self.computers[&node].is_online;
                self.input(node, Happening::LookedUp(online.then_some(&found)));
            } else if let Some((_, node)) = timer {
                let computer = &self.computers[&node];
                if computer.is_online && computer.attached_at.is_some_and(|at| at <= self.now) {
                    self.input(node, Happening::Attached(true));
                }
                self.input(node, Happening::Timeout);
            }
            self.note_light();
        }
        self.now = end;
        self.note_light();
    }

    fn deliver(&mut self) {
        let (_, (from, beacon)) = self.under_way.pop_first().unwrap();
        let part = self.computers[&from].part;
        let others: Vec<_> = self.computers.iter().filter(|(_, c)| c.part == part).map(|(n, _)| *n).collect();
        for node in others {
            if self.draw(100) >= self.lost_percent {
                self.input(node, Happening::Heard(&beacon));
            }
        }
    }

    /// Those who really serve.
    fn serving(&self) -> Vec<NodeId> {
        let serves = |c: &&Computer| c.is_awake && c.election.is_elected() && !c.is_false;
        self.computers.iter().filter(|(_, c)| serves(c)).map(|(node, _)| *node).collect()
    }

    fn note_light(&mut self) {
        let could = self.computers.values().any(|computer| computer.is_awake && !computer.is_false);
        if could && self.serving().is_empty() {
            let since = *self.dark_since.get_or_insert(self.now);
            self.darkest = self.darkest.max(self.now - since);
        } else {
            self.dark_since = None;
        }
    }

    fn sleep(&mut self, node: NodeId) {
        let computer = self.computers.get_mut(&node).unwrap();
        (computer.is_awake, computer.asleep_since) = (false, self.now);
        self.plan(node);
    }

    fn wake(&mut self, node: NodeId) {
        self.computers.get_mut(&node).unwrap().is_awake = true;
        self.input(node, Happening::Timeout);
    }

    fn set_part(&mut self, node: NodeId, part: usize) {
        self.computers.get_mut(&node).unwrap().part = part;
    }
}

const MINUTE: Duration = Duration::from_secs(60);

fn lan_of(count: usize, seed: u64) -> (Lan, Vec<NodeId>) {
    let mut lan = Lan::new(2, seed);
    let nodes = ranked(count);
    for node in &nodes {
        lan.join(*node);
    }
    lan.run(MINUTE * 2);
    lan.darkest = Duration::ZERO;
    (lan, nodes)
}

/// Rule 6.25: whoever is alone serves seconds after it came, and is never without the seat afterwards.
#[test]
fn a_node_that_is_alone_is_elected_within_five_seconds_and_stays() {
    let mut lan = Lan::new(2, 1);
    lan.join(id(0));
    lan.run(Duration::from_secs(6 * 3_600));
    assert_eq!(lan.serving(), [id(0)]);
    assert!(lan.darkest <= Duration::from_millis(5_300), "{:?}", lan.darkest);
    assert_eq!(lan.computers[&id(0)].elected, 1);
}

/// Rule 6.25: of many that start together the two that come first are elected, and few others for a moment.
#[test]
fn of_many_that_start_at_once_two_are_elected_and_servers_hear_of_few_more() {
    for count in [2, 3, 10, 300] {
        let (lan, _) = lan_of(count, count as u64);
        assert_eq!(lan.serving().len(), 2, "{count}");
        let ever: usize = lan.computers.values().map(|computer| computer.elected).sum();
        assert!(ever <= 3, "{ever} of {count}");
    }
}

/// Rule 6.26: a seat is held until its holder goes, whoever else comes.
#[test]
fn nodes_that_come_later_change_nothing() {
    let nodes = ranked(20);
    let mut lan = Lan::new(2, 3);
    // The last in rank come first.
    for node in nodes.iter().rev() {
        lan.join(*node);
        lan.run(MINUTE);
    }
    let mut first = vec![nodes[18], nodes[19]];
    first.sort();
    assert_eq!(lan.serving(), first);
    lan.run(MINUTE * 60);
    assert_eq!(lan.serving(), first);
}

/// Rule 6.26: without a goodbye, another one is elected within 29 seconds of the last beacon.
#[test]
fn when_the_elected_fall_asleep_others_are_elected_within_half_a_minute() {
    for (count, asleep) in [(3, 1), (3, 2), (4, 2), (300, 2)] {
        for seed in 0..if count == 300 { 1 } else { 10 } {
            let (mut lan, _) = lan_of(count, seed);
            lan.run(Duration::from_millis(seed * 1_700));
            let before = lan.serving();
            for node in before.iter().take(asleep) {
                lan.sleep(*node);
            }
            lan.run(Duration::from_millis(29_100));
            let now = lan.serving();
            assert_eq!(now.len(), 2.min(count - asleep), "{count} {asleep} {seed}");
            assert!(lan.darkest <= Duration::from_millis(29_100));
            for node in before {
                lan.wake(node);
            }
            lan.run(MINUTE * 5);
            let after = lan.serving();
            assert_eq!(after.len(), 2);
            assert!(now.iter().all(|node| after.contains(node)), "those who wake take nobody's seat");
        }
    }
}

/// Rule 6.26: with a goodbye it takes five seconds.
#[test]
fn after_a_goodbye_others_are_elected_within_seconds() {
    let (mut lan, _) = lan_of(10, 5);
    let before = lan.serving();
    for node in &before {
        lan.input(*node, Happening::Stop);
        lan.sleep(*node);
    }
    lan.run(Duration::from_secs(5));
    assert_eq!(lan.serving().len(), 2);
    assert!(lan.serving().iter().all(|node| !before.contains(node)));
}

/// Rule 6.26: after a split has healed, the first two in rank of all who are elected remain.
#[test]
fn after_a_split_has_healed_the_surplus_yields_after_a_minute() {
    let (mut lan, nodes) = lan_of(12, 6);
    for (n, node) in nodes.iter().enumerate() {
        lan.set_part(*node, n % 3);
    }
    lan.run(MINUTE);
    let split = lan.serving();
    assert_eq!(split.len(), 6);
    nodes.iter().for_each(|node| lan.set_part(*node, 0));
    lan.run(Duration::from_secs(45));
    assert_eq!(lan.serving(), split, "not before a minute has passed");
    lan.run(Duration::from_secs(45));
    let mut best = nodes.clone();
    best.retain(|node| split.contains(node));
    best.truncate(2);
    best.sort();
    assert_eq!(lan.serving(), best);
    assert_eq!(lan.darkest, Duration::ZERO);
}

/// Rule 6.27: where multicast is not carried, announcements take its place.
#[test]
fn where_nobody_can_be_heard_few_remain_elected_and_others_follow_within_the_bound() {
    for carried in [true, false] {
        let mut lan = Lan::new(2, 8);
        lan.carries = false;
        for node in ranked(30) {
            lan.join_with(node, carried);
        }
        lan.run(MINUTE * 40);
        assert_eq!(lan.serving().len(), 2, "sends {carried}");
        let before = lan.serving();
        for node in &before {
            lan.sleep(*node);
        }
        lan.run(ANNOUNCED + LOOK_UP_INTERVAL * 3 / 2);
        assert!(lan.serving().len() >= 2, "sends {carried}");
        lan.run(MINUTE * 40);
        assert_eq!(lan.serving().len(), 2, "sends {carried}");
    }
}

/// Rule 6.27: one beacon that is heard, and the election goes by beacons again.
#[test]
fn nodes_that_begin_to_hear_each_other_elect_by_beacons_again() {
    let mut lan = Lan::new(2, 9);
    lan.carries = false;
    for node in ranked(8) {
        lan.join(node);
    }
    lan.run(MINUTE * 30);
    lan.carries = true;
    lan.run(MINUTE * 3);
    assert!(lan.computers.values().all(|computer| !computer.election.is_deaf()));
    assert_eq!(lan.serving().len(), 2);
    let look_ups: usize = lan.computers.values().map(|computer| computer.look_ups).sum();
    lan.run(MINUTE * 5);
    assert_eq!(lan.computers.values().map(|computer| computer.look_ups).sum::<usize>(), look_ups);
}

/// Rule 6.27: a failure to send is enough to know.
#[test]
fn a_node_whose_beacons_cannot_be_sent_goes_by_announcements() {
    let (mut lan, nodes) = lan_of(3, 10);
    for node in &nodes {
        lan.input(*node, Happening::MulticastFailed);
    }
    lan.carries = false;
    lan.run(MINUTE * 30);
    assert_eq!(lan.serving().len(), 2);
}

/// Rule 6.27: two that say they are elected, announce themselves and serve nobody do not keep a site from being served.
#[test]
fn false_winners_are_found_out_and_others_serve_beside_them() {
    for count in [3, 20, 100] {
        let (mut lan, _) = lan_of(count, 11);
        let winners = lan.serving();
        for node in &winners {
            lan.computers.get_mut(node).unwrap().is_false = true;
        }
        lan.run(CHECK_INTERVAL * 12 / 10 + CHECK_AGAIN * 12 / 10 + Duration::from_secs(1));
        assert!(!lan.serving().is_empty(), "{count}");
        lan.run(CHECK_INTERVAL * 3);
        assert_eq!(lan.serving().len(), 2.min(count - 2), "{count}");
        assert!(lan.serving().iter().all(|node| !winners.contains(node)));
        // They serve after all, and the additional ones are no longer needed.
        for node in &winners {
            lan.computers.get_mut(node).unwrap().is_false = false;
        }
        lan.run(CHECK_INTERVAL * 3);
        assert_eq!(lan.serving(), winners, "{count}");
    }
}

/// Rule 6.27: an accomplice that vouches for false winners only delays that they are found out.
#[test]
fn an_accomplice_cannot_vouch_for_false_winners_for_ever() {
    let (mut lan, nodes) = lan_of(6, 12);
    let winners = lan.serving();
    for node in &winners {
        lan.computers.get_mut(node).unwrap().is_false = true;
    }
    let accomplice = *nodes.iter().find(|node| !winners.contains(node)).unwrap();
    lan.sleep(accomplice);
    let mut waited = 0;
    while lan.serving().is_empty() {
        waited += 1;
        assert!(waited <= 60 * 4, "four hours");
        let computer = lan.computers.get_mut(&accomplice).unwrap();
        computer.counter += 1;
        let time = UnixTime::from_millis(computer.counter);
        let beacon = Beacon {
            kind: Kind::Checked,
            node: accomplice,
            ballot: ballot(),
            time,
            seated_secs: 0,
            head: None,
        };
        lan.number += 1;
        lan.under_way.insert((lan.now, lan.number), (accomplice, beacon));
        lan.run(MINUTE);
    }
}

/// Rule 6.26: whoever cannot reach the servers gives way to those who can.
#[test]
fn an_elected_node_that_is_cut_off_gives_its_seat_to_others() {
    let (mut lan, _) = lan_of(5, 13);
    let before = lan.serving();
    for node in &before {
        lan.computers.get_mut(node).unwrap().is_online = false;
        lan.input(*node, Happening::Attached(false));
    }
    lan.run(Duration::from_secs(66));
    assert_eq!(lan.serving().len(), 2);
    assert!(lan.serving().iter().all(|node| !before.contains(node)));
}

/// Rule 6.25: an old beacon, sent again, keeps nobody in a seat.
#[test]
fn a_replayed_beacon_does_not_keep_a_dead_node_elected() {
    let (mut lan, nodes) = lan_of(3, 14);
    let dead = lan.serving()[0];
    let time = UnixTime::from_millis(lan.computers[&dead].counter);
    let old = Beacon { kind: Kind::Elected, node: dead, ballot: ballot(), time, seated_secs: 9, head: None };
    lan.sleep(dead);
    for _ in 0..60 {
        for node in &nodes {
            lan.input(*node, Happening::Heard(&old));
        }
        lan.run(Duration::from_millis(500));
    }
    assert_eq!(lan.serving().len(), 2);
}

/// Rule 6.25: however many names a member invents, memory is bounded and checks find out.
#[test]
fn a_flood_of_invented_nodes_fills_no_memory_and_darkens_no_site_for_ever() {
    let (mut lan, _) = lan_of(4, 15);
    let winners = lan.serving();
    for node in &winners {
        lan.sleep(*node);
    }
    let mut invented = 1_000;
    for _ in 0..80 {
        for n in 0..100 {
            invented += 1;
            let time = UnixTime::from_millis(invented);
            let node = id(1_000 + n);
            let beacon =
                Beacon { kind: Kind::Elected, node, ballot: ballot(), time, seated_secs: 9, head: None };
            for computer in lan.computers.keys().copied().collect::<Vec<_>>() {
                lan.input(computer, Happening::Heard(&beacon));
            }
        }
        lan.run(Duration::from_secs(10));
        assert!(lan.computers.values().all(|c| c.election.others() <= heard::MAX_HEARD));
    }
    assert!(!lan.serving().is_empty());
}

/// Rule 6.27: what 300 nodes send on their LAN in an hour, beyond which other members are disturbed.
#[test]
fn three_hundred_idle_nodes_stay_within_the_quietness_budget() {
    let (mut lan, _) = lan_of(300, 16);
    let sum = |lan: &Lan, of: fn(&Computer) -> usize| lan.computers.values().map(of).sum::<usize>();
    let before = (sum(&lan, |c| c.sent), sum(&lan, |c| c.look_ups));
    lan.run(MINUTE * 60);
    let beacons = sum(&lan, |c| c.sent) - before.0;
    let look_ups = sum(&lan, |c| c.look_ups) - before.1;
    // Two beacons in ten seconds, and a check in ten minutes, which every eighteenth makes for itself.
    assert!((700..=760).contains(&beacons), "{beacons} beacons");
    assert!(look_ups <= 150, "{look_ups} look-ups");
}

/// Rule 6.27: where a check takes long, hundreds begin one before they hear of the first; what all of them say used up what is
/// believed of others, so that everybody went on to check.
#[test]
fn checks_that_take_long_are_not_made_by_everybody() {
    let (mut lan, _) = lan_of(300, 18);
    lan.look_up_time = Duration::from_secs(5);
    let sum = |lan: &Lan, of: fn(&Computer) -> usize| lan.computers.values().map(of).sum::<usize>();
    let before = (sum(&lan, |c| c.sent), sum(&lan, |c| c.look_ups));
    lan.run(MINUTE * 60);
    let beacons = sum(&lan, |c| c.sent) - before.0;
    let look_ups = sum(&lan, |c| c.look_ups) - before.1;
    assert!((700..=760).contains(&beacons), "{beacons} beacons");
    // Everybody makes one of eighteen checks for itself, and as many as begin within five seconds make the same one.
    assert!(look_ups <= 200, "{look_ups} look-ups");
}

/// Rule 6.27: where a tenth of all multicast is lost, many believe now and then that a seat is free; most are told
/// that it is not before servers hear of it.
#[test]
fn lost_beacons_make_a_network_less_quiet_and_not_restless() {
    let (mut lan, _) = lan_of(300, 17);
    let sum = |lan: &Lan, of: fn(&Computer) -> usize| lan.computers.values().map(of).sum::<usize>();
    lan.lost_percent = 10;
    let before = (sum(&lan, |c| c.sent), sum(&lan, |c| c.elected));
    lan.run(MINUTE * 10);
    let (beacons, elected) = (sum(&lan, |c| c.sent) - before.0, sum(&lan, |c| c.elected) - before.1);
    assert!(beacons <= 1_200, "{beacons} beacons");
    assert!(elected <= 10, "{elected} elections");
}

/// What may happen to a LAN.
#[derive(Clone, Debug)]
enum Operation {
    Join(usize),
    Sleep(usize),
    Wake(usize),
    Stop(usize),
    Split(Vec<bool>),
    Heal,
    Wait(u16),
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        3 => (0..12_usize).prop_map(Operation::Join),
        2 => (0..12_usize).prop_map(Operation::Sleep),
        3 => (0..12_usize).prop_map(Operation::Wake),
        1 => (0..12_usize).prop_map(Operation::Stop),
        1 => proptest::collection::vec(any::<bool>(), 12).prop_map(Operation::Split),
        1 => Just(Operation::Heal),
        4 => (0..90_u16).prop_map(Operation::Wait),
    ];
    proptest::collection::vec(operation, 1..40)
}

impl Lan {
    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Join(n) => self.join(id(*n)),
            Operation::Sleep(n) if self.computers.contains_key(&id(*n)) => self.sleep(id(*n)),
            Operation::Wake(n) if self.computers.contains_key(&id(*n)) => self.wake(id(*n)),
            Operation::Stop(n) if self.computers.contains_key(&id(*n)) => {
                self.input(id(*n), Happening::Stop);
                self.unplan(id(*n));
                self.computers.remove(&id(*n));
            }
            Operation::Sleep(_) | Operation::Wake(_) | Operation::Stop(_) => {}
            Operation::Split(parts) => {
                for (n, part) in parts.iter().enumerate() {
                    if let Some(computer) = self.computers.get_mut(&id(n)) {
                        computer.part = usize::from(*part);
                    }
                }
            }
            Operation::Heal => self.computers.values_mut().for_each(|computer| computer.part = 0),
            Operation::Wait(seconds) => self.run(Duration::from_secs((*seconds).into())),
        }
        self.under_way.retain(|_, (from, _)| self.computers.contains_key(from));
        self.answers.retain(|_, (node, _)| self.computers.contains_key(node));
        self.note_light();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Rules 6.25 and 6.26: whatever happened, two are elected in the end, or all if there are fewer, and nobody else moves.
    #[test]
    fn after_any_history_exactly_two_or_all_are_elected_and_stay(history in operations(), seed: u64) {
        let mut lan = Lan::new(2, seed);
        for operation in &history {
            lan.apply(operation);
        }
        lan.apply(&Operation::Heal);
        // The longest is for one that comes when two have gone without a word, whose announcements live on.
        lan.run(ANNOUNCED + LOOK_UP_INTERVAL * 3 / 2 + MINUTE * 2);
        let awake = lan.computers.values().filter(|computer| computer.is_awake).count();
        let serving = lan.serving();
        prop_assert_eq!(serving.len(), awake.min(2));
        lan.run(MINUTE * 30);
        prop_assert_eq!(lan.serving(), serving);
    }

    /// Rule 6.26: whoever falls asleep, a LAN on which somebody is awake all the time is dark for 29 seconds at most.
    #[test]
    fn a_lan_with_somebody_awake_is_never_dark_for_longer_than_the_bound(history in operations(), seed: u64) {
        let mut lan = Lan::new(2, seed);
        let awake: BTreeSet<_> = [id(0), id(1)].into();
        for node in &awake {
            lan.join(*node);
        }
        lan.run(MINUTE);
        lan.darkest = Duration::ZERO;
        for operation in &history {
            let stays = match operation {
                Operation::Join(n) | Operation::Sleep(n) | Operation::Stop(n) => *n >= 2,
                Operation::Split(_) => false,
                Operation::Wake(_) | Operation::Heal | Operation::Wait(_) => true,
            };
            if stays {
                lan.apply(operation);
            }
        }
        lan.run(MINUTE);
        prop_assert!(lan.darkest <= Duration::from_millis(29_100), "{:?}", lan.darkest);
    }
}

/// Lets a node that does not answer hold the only seat, and beacon, for so long; returns the one that stands beside it, how often
/// it had its turn in a row without time passing, and for how long it was elected.
fn beside_a_false_one(span: Duration) -> (Election, usize, Duration) {
    let config = Config { node: id(1), ballot: ballot(), seats: 1, multicast: true, spread: SPREAD };
    let mut now = Instant::from_micros(1);
    let (end, mut next, mut beacons) = (now.after(span), now, 0);
    let mut election = Election::new(config, 7, now);
    let (mut in_a_row, mut most, mut elected) = (0, 0, Duration::ZERO);
    while now < end && most < 100 {
        while let Some(order) = election.poll_order() {
            if let Order::LookUp { .. } = order {
                election.handle(Happening::LookedUp(Some(&[])), now);
            }
        }
        let at = now.max(election.poll_timeout().unwrap_or(next).min(next));
        in_a_row = if at == now { in_a_row + 1 } else { 0 };
        most = most.max(in_a_row);
        elected += if election.is_elected() { at - now } else { Duration::ZERO };
        now = at;
        if next <= now {
            beacons += 1;
            let time = UnixTime::from_millis(beacons);
            let (kind, node, ballot) = (Kind::Elected, id(2), ballot());
            election.handle(
                Happening::Heard(&Beacon { kind, node, ballot, time, seated_secs: 1, head: None }),
                now,
            );
            next = now.after(BEACON_INTERVAL);
        } else {
            election.handle(Happening::Timeout, now);
        }
    }
    (election, most, elected)
}

/// Rule 6.27: one that serves beside others keeps its seat without attachment, for the others do not serve at all.
#[test]
fn an_additional_node_without_attachment_keeps_its_seat_and_is_not_woken_for_nothing() {
    let (election, in_a_row, elected) = beside_a_false_one(MINUTE * 60);
    assert!(in_a_row < 10, "it was woken {in_a_row} times without time passing");
    assert!(election.is_elected());
    assert!(elected > MINUTE * 40, "{elected:?}");
}
