use peerage_wire::id::{LocationId, RecordKey};
use peerage_wire::keys::IdentityKey;
use peerage_wire::record::Roles;

use super::*;
use crate::endpoint::tests::{Bed, DOMAIN};

const TUNNEL: Roles = Roles { tunnel: true, super_node: false };

/// An operator and one member's message layer.
struct Pair {
    bed: Bed,
    operator: Operator,
    member: Endpoint,
    trust: Trust,
}

fn operator_address() -> SocketAddr {
    "192.0.2.2:7400".parse().unwrap()
}

fn member_address() -> SocketAddr {
    "192.0.2.1:7400".parse().unwrap()
}

impl Pair {
    fn new() -> Self {
        let mut bed = Bed::new();
        let mut endpoint = bed.config(&bed.operator, &bed.operator_record);
        endpoint.asks_introduction = true;
        let (root, addresses) = (bed.root.public(), vec![operator_address()]);
        let config = Config { endpoint, root, addresses, relay: relay::Limits::default() };
        let mut operator = Operator::new(config, [2; 32], bed.now);
        let facts = DomainFacts { domain: DOMAIN, epoch: 1, offline_hours: None, vendor: false };
        operator.handle(Input::Domain(facts), bed.now);
        operator.handle(Input::Committed(vec![bed.operator_record.clone()]), bed.now);
        let identity = IdentityKey::generate(&mut bed.rng);
        let record = bed.node_record(&identity, DOMAIN, TUNNEL);
        let mut member = Endpoint::new(bed.config(&identity, &record), [3; 32], bed.now);
        let trust = bed.trust.clone();
        let known = Trust::member(&bed.operator_record).unwrap();
        member.learn_peer(known, *operator.statement(), bed.now);
        Self { bed, operator, member, trust }
    }

    /// Asks the operator. Returns its answer, if it answers at once, and what it hands to its caller.
    fn ask(&mut self, request: &Request) -> (Option<Reply>, Vec<Output>) {
        let (now, to) = (self.bed.now, self.operator.endpoint.id());
        self.member.request(to, operator_address(), request, now);
        let mut outputs = Vec::new();
        for _ in 0..4 {
            while let Some((_, payload)) = self.member.poll_transmit() {
                self.operator.handle(Input::Datagram { remote: member_address(), payload }, now);
            }
            outputs.extend(self.outputs());
        }
        (self.answer(), outputs)
    }

    fn outputs(&mut self) -> Vec<Output> {
        let mut others = Vec::new();
        while let Some(output) = self.operator.poll_output() {
            if let Output::Transmit { payload, .. } = output {
                self.member.handle_datagram(operator_address(), &payload, &self.trust, self.bed.now);
            } else {
                others.push(output);
            }
        }
        others
    }

    fn answer(&mut self) -> Option<Reply> {
        let mut outcomes = std::iter::from_fn(|| self.member.poll_outcome());
        outcomes.find_map(|outcome| match outcome {
            Outcome::Answered { reply, .. } => Some(reply),
            Outcome::Request(_) | Outcome::Failed { .. } | Outcome::ClockLearned(_) => None,
        })
    }
}

fn seen(id: u8) -> Request {
    Request::DeviceSeen { id: CommandId([id; 16]), key: RecordKey([1; 32]), location: LocationId([1; 32]) }
}

/// Rule 3.12: nothing is said to be done before the ledger has it; and if it refused, a repetition is tried again.
#[test]
fn a_command_is_answered_when_the_ledger_has_committed_it() {
    let mut pair = Pair::new();
    let id = CommandId([1; 16]);
    let notes = |outputs: &[Output]| {
        outputs.iter().filter(|output| matches!(output, Output::DeviceSeen { .. })).count()
    };
    let (answer, outputs) = pair.ask(&seen(1));
    assert_eq!((answer, notes(&outputs)), (None, 1));
    let (answer, outputs) = pair.ask(&seen(1));
    assert_eq!((answer, notes(&outputs)), (None, 0), "the ledger is at work on it");
    pair.operator.handle(Input::Noted { id, ok: false }, pair.bed.now);
    assert!(pair.outputs().is_empty());
    let (answer, outputs) = pair.ask(&seen(1));
    assert_eq!((answer, notes(&outputs)), (None, 1), "tried again");
    pair.operator.handle(Input::Noted { id, ok: true }, pair.bed.now);
    pair.outputs();
    assert_eq!(pair.answer(), Some(Reply::DeviceNoted(id)));
    let (answer, outputs) = pair.ask(&seen(1));
    assert_eq!((answer, notes(&outputs)), (Some(Reply::DeviceNoted(id)), 0));
}

/// An end of a transaction that nobody waits for, or that comes twice, is nothing.
#[test]
fn an_answer_of_the_ledger_that_nobody_waits_for_is_nothing() {
    let mut pair = Pair::new();
    let id = CommandId([1; 16]);
    for ok in [true, false, true] {
        pair.operator.handle(Input::Noted { id, ok }, pair.bed.now);
        assert!(pair.outputs().is_empty());
    }
    pair.ask(&seen(1));
    pair.operator.handle(Input::Noted { id, ok: true }, pair.bed.now);
    pair.outputs();
    assert_eq!(pair.answer(), Some(Reply::DeviceNoted(id)));
    pair.operator.handle(Input::Noted { id, ok: true }, pair.bed.now);
    assert!(pair.outputs().is_empty());
    assert_eq!(pair.answer(), None);
}

/// The ledger hears of one member's contact once a minute, however much it asks.
#[test]
fn a_contact_is_noted_once_a_minute() {
    let mut pair = Pair::new();
    let mut noted = 0;
    for _ in 0..130 {
        let (answer, outputs) = pair.ask(&Request::Ping);
        assert!(answer.is_some());
        noted += outputs.iter().filter(|output| matches!(output, Output::Contact { .. })).count();
        pair.bed.now = pair.bed.now.after(Duration::from_secs(1));
    }
    assert_eq!(noted, 3);
    assert_eq!(pair.operator.contacts(pair.bed.now).count(), 1);
    let later = pair.bed.now.after(CONTACT_LIFETIME);
    assert_eq!(pair.operator.contacts(later).count(), 0);
}

/// Rule 2.7: the versions of Heads rise even while the clock stands or goes back.
#[test]
fn the_versions_of_heads_rise_whatever_the_clock_does() {
    let mut pair = Pair::new();
    let version = |pair: &mut Pair| {
        let now = pair.bed.now;
        pair.operator.touch(DOMAIN, now);
        let bytes = pair.operator.head(DOMAIN, now).unwrap();
        UnverifiedRecord::parse(&bytes).unwrap().header().version
    };
    let first = version(&mut pair);
    let second = version(&mut pair);
    pair.bed.now.unix = pair.bed.now.unix.before(Duration::from_secs(10));
    let third = version(&mut pair);
    assert!(first < second && second < third, "{first} {second} {third}");
}

/// Rule 6.20: a change of the operators concerns every domain, one of a domain that domain alone.
#[test]
fn a_change_is_pushed_to_whom_it_concerns() {
    let mut pair = Pair::new();
    pair.ask(&Request::Attach);
    let notified = |pair: &mut Pair| {
        pair.bed.now = pair.bed.now.after(NOTIFY_DELAY);
        pair.operator.handle(Input::Timeout, pair.bed.now);
        pair.outputs();
        let mut outcomes = std::iter::from_fn(|| pair.member.poll_outcome());
        outcomes.any(|outcome| matches!(outcome, Outcome::Request(incoming) if matches!(incoming.request, Request::Notify { .. })))
    };
    notified(&mut pair);
    for (domain, concerned) in [(None, true), (Some(DOMAIN), true), (Some(Domain(99)), false)] {
        pair.operator.handle(Input::Push(domain), pair.bed.now);
        assert_eq!(notified(&mut pair), concerned, "{domain:?}");
    }
}
