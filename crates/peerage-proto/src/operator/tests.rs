use peerage_wire::crypto::Real;
use peerage_wire::id::{LocationId, RecordKey, Segment};
use peerage_wire::keys::IdentityKey;
use peerage_wire::message::{Load, RefusedReason, Submission, SuperNodeState};
use peerage_wire::record::{HeadBody, OperatorBody, OperatorState, Roles};

use super::segments::Standing;
use super::*;
use crate::endpoint::tests::{Bed, DOMAIN};

const TUNNEL: Roles = Roles { tunnel: true, super_node: false };

/// An operator and one member's message layer.
struct Pair {
    bed: Bed,
    operator: Operator,
    member: Endpoint,
    /// The member's key and its record, which the ledger has not.
    identity: IdentityKey,
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
        Self::with(TUNNEL)
    }

    fn with(roles: Roles) -> Self {
        let mut bed = Bed::new();
        let mut endpoint = bed.config(&bed.operator, &bed.operator_record);
        endpoint.asks_introduction = true;
        let (root, addresses) = (bed.root.public(), vec![operator_address()]);
        let config =
            Config { endpoint, root, addresses, relay: relay::Limits::default(), spy_interval: None };
        let mut operator = Operator::new(config, [2; 32], bed.now);
        let facts = DomainFacts { domain: DOMAIN, epoch: 1, offline_hours: None, vendor: false };
        operator.handle(Input::Domain(facts), bed.now);
        operator.handle(Input::Committed(vec![bed.operator_record.clone()]), bed.now);
        let identity = IdentityKey::generate(&mut bed.rng);
        let record = bed.node_record(&identity, DOMAIN, roles);
        let mut member = Endpoint::new(bed.config(&identity, &record), [3; 32], bed.now);
        let trust = bed.trust.clone();
        let known = Trust::member(&bed.operator_record).unwrap();
        member.learn_peer(known, *operator.statement(), bed.now);
        Self { bed, operator, member, identity, trust }
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
            Outcome::Request(_)
            | Outcome::Forwarded { .. }
            | Outcome::Failed { .. }
            | Outcome::ClockLearned(_)
            | Outcome::ClockDoubted => None,
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

const LENDER: Roles = Roles { tunnel: true, super_node: true };

fn submission(addresses: &[SocketAddr]) -> Request {
    Request::SubmitSuperNode(Submission {
        id: CommandId([7; 16]),
        addresses: addresses.to_vec(),
        version: 0,
        leaving: false,
        load: Load { max_bytes: 1 << 20, ..Load::default() },
    })
}

/// Makes a SuperNode record; a tombstone without a range.
fn assignment(bed: &Bed, identity: &IdentityKey, range: Option<Segment>, version: u64) -> Record {
    let header = Header {
        table: Table::SuperNode,
        domain: DOMAIN,
        key: identity.node_id(DOMAIN).record_key(),
        version,
        expires: bed.now.unix.after(Duration::from_secs(36_000)),
        signer: bed.operator.node_id(Domain::OPERATORS),
        removed: range.is_none(),
    };
    let addresses = vec![member_address()];
    let body = |segment| SuperNodeBody { segment, map_version: 41, identity: identity.public(), addresses };
    let public = range.map(|range| body(range).write()).unwrap_or_default();
    Draft { header, public, private: None }.sign(&bed.operator, &bed.network, &Real).unwrap()
}

/// An operator with super-nodes that are there and say nothing more.
pub(super) struct Network {
    pub(super) bed: Bed,
    pub(super) operator: Operator,
    identities: BTreeMap<NodeId, IdentityKey>,
    version: u64,
}

impl Network {
    pub(super) fn new() -> Self {
        let Pair { bed, operator, .. } = Pair::new();
        let version = bed.now.unix.as_millis();
        Self { bed, operator, identities: BTreeMap::new(), version }
    }

    /// Adds a member with a range that offers itself.
    pub(super) fn super_node(&mut self, range: Segment) -> NodeId {
        let identity = IdentityKey::generate(&mut self.bed.rng);
        let (id, now) = (identity.node_id(DOMAIN), self.bed.now);
        let record = self.bed.node_record(&identity, DOMAIN, LENDER);
        let member = Trust::member(&record).unwrap();
        self.operator.committed(vec![record], now);
        self.identities.insert(id, identity);
        // With a record about it, it counts as reached.
        self.assign(id, Some(range));
        let Request::SubmitSuperNode(offer) = submission(&[member_address()]) else { unreachable!() };
        self.operator.submitted(&member, member_address(), offer, now).unwrap();
        id
    }

    /// Gives a super-node another range, or none any more, as the ledger would.
    pub(super) fn assign(&mut self, node: NodeId, range: Option<Segment>) {
        self.version += 1;
        let record = assignment(&self.bed, &self.identities[&node], range, self.version);
        self.operator.committed(vec![record], self.bed.now);
    }
}

impl Pair {
    /// A member that may be a super-node, as the ledger knows.
    fn lender() -> Self {
        let mut pair = Self::with(LENDER);
        let record = pair.bed.node_record(&pair.identity, DOMAIN, LENDER);
        pair.operator.handle(Input::Committed(vec![record]), pair.bed.now);
        pair
    }

    fn state(&mut self, request: &Request) -> Option<SuperNodeState> {
        let reply = self.ask(request).0?;
        if let Reply::SuperNodeSubmitted { state, .. } = reply { Some(state) } else { None }
    }

    /// Gives the member the whole table, as the ledger would.
    fn assign(&mut self) {
        let version = self.bed.now.unix.as_millis();
        let record = assignment(&self.bed, &self.identity, Some(Segment::ALL), version);
        self.operator.handle(Input::Committed(vec![record]), self.bed.now);
    }

    /// Delivers what goes to the member alone, and lets it answer Ping. Returns the other addresses, and what else the operator
    /// wants.
    fn settle(&mut self) -> (BTreeSet<(SocketAddr, bool)>, Vec<Output>) {
        let (now, mut elsewhere, mut others) = (self.bed.now, BTreeSet::new(), Vec::new());
        for _ in 0..8 {
            while let Some(output) = self.operator.poll_output() {
                let Output::Transmit { remote, payload, port } = output else {
                    others.push(output);
                    continue;
                };
                if remote == member_address() {
                    self.member.handle_datagram(operator_address(), &payload, &self.trust, now);
                } else {
                    elsewhere.insert((remote, port == Port::Probe));
                }
            }
            while let Some(outcome) = self.member.poll_outcome() {
                if let Outcome::Request(incoming) = outcome
                    && incoming.request == Request::Ping
                {
                    self.member.reply(&incoming.reply_to, &Reply::Reping { observed: operator_address() });
                }
            }
            while let Some((_, payload)) = self.member.poll_transmit() {
                self.operator.handle(Input::Datagram { remote: member_address(), payload }, now);
            }
        }
        (elsewhere, others)
    }
}

fn dials(outputs: &[Output]) -> Vec<(CheckId, [u8; 32], SocketAddr)> {
    let mut dials = Vec::new();
    for output in outputs {
        if let Output::CheckTcp { task, identity, address } = output {
            dials.push((*task, *identity, *address));
        }
    }
    dials
}

/// Rules 4.11 and 6.75: of several Heads a super-node gets those that it may have, and a member its own.
#[test]
fn a_list_of_heads_is_answered_with_those_that_the_asker_may_have() {
    let mut pair = Pair::lender();
    let (other, unknown) = (Domain(77), Domain(78));
    let facts = DomainFacts { domain: other, epoch: 1, offline_hours: None, vendor: false };
    pair.operator.handle(Input::Domain(facts), pair.bed.now);
    let ask = |pair: &mut Pair, domains: &[Domain]| -> Option<Vec<Domain>> {
        let reply = pair.ask(&Request::GetHeads(domains.to_vec())).0?;
        let heads = if let Reply::Heads(heads) = reply {
            heads
        } else if let Reply::Head(head) = reply {
            head.into_iter().collect()
        } else {
            panic!("{reply:?}")
        };
        Some(heads.iter().map(|head| UnverifiedRecord::parse(head).unwrap().header().domain).collect())
    };
    assert_eq!(ask(&mut pair, &[other, DOMAIN]), Some(vec![DOMAIN]), "a member");
    assert_eq!(ask(&mut pair, &[other, unknown]), None);
    pair.assign();
    assert_eq!(ask(&mut pair, &[other, unknown, DOMAIN]), Some(vec![other, DOMAIN]), "a super-node");
}

/// Rule 6.70: the ledger decides, whatever an older record in the introduction says.
#[test]
fn whom_the_ledger_does_not_permit_the_role_is_refused() {
    let mut pair = Pair::with(LENDER);
    let record = pair.bed.node_record(&pair.identity, DOMAIN, TUNNEL);
    pair.operator.handle(Input::Committed(vec![record]), pair.bed.now);
    assert_eq!(pair.state(&submission(&[member_address()])), Some(SuperNodeState::Refused));
    assert!(pair.operator.super_nodes(pair.bed.now).is_empty());
}

/// Rule 6.71: nobody has the operator knock at somebody else's door.
#[test]
fn a_connection_is_tried_only_where_the_node_itself_has_answered() {
    let mut pair = Pair::lender();
    let victim: SocketAddr = "192.0.2.77:22".parse().unwrap();
    let to = pair.operator.endpoint.id();
    pair.member.request(to, operator_address(), &submission(&[member_address(), victim]), pair.bed.now);
    let (elsewhere, others) = pair.settle();
    assert_eq!(elsewhere, BTreeSet::from([(victim, true)]), "one datagram, from the second port");
    let dialled = dials(&others);
    let [(task, identity, address)] = dialled[..] else { panic!("{dialled:?}") };
    assert_eq!((identity, address), (pair.identity.public(), member_address()));
    pair.operator.handle(Input::TcpChecked { task, ok: true }, pair.bed.now);
    // What does not answer at all is given up.
    for _ in 0..20 {
        pair.bed.now = pair.bed.now.after(Duration::from_secs(1));
        pair.operator.handle(Input::Timeout, pair.bed.now);
        pair.settle();
    }
    let all = pair.operator.super_nodes(pair.bed.now);
    assert_eq!(all[0].addresses, [member_address()]);
}

/// Rule 6.71: firewalls leave the web's ports open for connections, and messages are not sent there first.
#[test]
fn at_further_ports_of_a_computer_that_has_answered_a_connection_will_do() {
    let mut pair = Pair::lender();
    let web = SocketAddr::new(member_address().ip(), 443);
    let victim: SocketAddr = "192.0.2.77:443".parse().unwrap();
    let to = pair.operator.endpoint.id();
    let offer = submission(&[web, victim, member_address()]);
    pair.member.request(to, operator_address(), &offer, pair.bed.now);
    let mut dialled = Vec::new();
    for _ in 0..20 {
        for (task, _, address) in dials(&pair.settle().1) {
            dialled.push(address);
            pair.operator.handle(Input::TcpChecked { task, ok: true }, pair.bed.now);
        }
        pair.bed.now = pair.bed.now.after(Duration::from_secs(1));
        pair.operator.handle(Input::Timeout, pair.bed.now);
    }
    assert_eq!(dialled, [member_address(), web]);
    let all = pair.operator.super_nodes(pair.bed.now);
    assert_eq!(all[0].addresses, [member_address(), web]);
}

/// Rule 6.71: with the operator in the Internet, private addresses mean nothing.
#[test]
fn addresses_of_a_site_and_of_nobody_are_left_out() {
    let mut pair = Pair::lender();
    let private = ["10.0.0.5:7400", "127.0.0.1:7400", "[fd00::1]:7400", "0.0.0.0:7400", "224.0.0.251:5353"];
    let mut addresses: Vec<_> = private.iter().map(|text| text.parse().unwrap()).collect();
    addresses.push("192.0.2.9:0".parse().unwrap());
    let to = pair.operator.endpoint.id();
    pair.member.request(to, operator_address(), &submission(&addresses), pair.bed.now);
    let (elsewhere, others) = pair.settle();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    assert!(others.iter().all(|output| matches!(output, Output::Contact { .. })), "{others:?}");
}

impl Pair {
    /// Lets the ledger say that there is another operator, which comes before this one; or how it stands now.
    fn commit_operator(&mut self, other: &IdentityKey, state: OperatorState, life: Duration) {
        let id = other.node_id(Domain::OPERATORS);
        let time = self.bed.now.unix;
        let header = Header {
            key: id.record_key(),
            version: time.as_millis(),
            expires: time.after(life),
            ..*self.bed.operator_record.header()
        };
        let body = OperatorBody {
            identity: other.public(),
            enrolment: [1; 32],
            addresses: vec!["192.0.2.50:7400".parse().unwrap()],
            state,
        };
        let draft = Draft { header, public: body.write(), private: None };
        let record = draft.sign(&self.bed.root, &self.bed.network, &Real).unwrap();
        self.operator.handle(Input::Committed(vec![record]), self.bed.now);
    }

    /// Returns the key of an operator that comes before this one.
    fn earlier(&mut self) -> IdentityKey {
        let own = self.operator.endpoint.id();
        std::iter::repeat_with(|| IdentityKey::generate(&mut self.bed.rng))
            .find(|identity| identity.node_id(Domain::OPERATORS) < own)
            .unwrap()
    }
}

/// Rules 6.70 and 4.9: only the first of the active operators answers; when it was retired, the next one does.
#[test]
fn an_operator_keeps_the_map_when_all_before_it_are_retired() {
    let mut pair = Pair::lender();
    let (first, day) = (pair.earlier(), Duration::from_secs(86_400));
    pair.commit_operator(&first, OperatorState::Active, day);
    assert_eq!(pair.state(&submission(&[member_address()])), None);
    for state in [OperatorState::Retired, OperatorState::Compromised] {
        let mut pair = Pair::lender();
        pair.commit_operator(&first, OperatorState::Active, day);
        pair.bed.now = pair.bed.now.after(Duration::from_secs(1));
        pair.commit_operator(&first, state, day);
        assert_eq!(pair.state(&submission(&[member_address()])), Some(SuperNodeState::Checking), "{state:?}");
    }
}

/// Rule 6.70: one that is gone for good, and that nobody has retired, holds the map up until its record ends.
#[test]
fn an_operator_keeps_the_map_when_the_records_of_all_before_it_have_ended() {
    let mut pair = Pair::lender();
    let first = pair.earlier();
    pair.commit_operator(&first, OperatorState::Active, Duration::from_secs(30));
    assert_eq!(pair.state(&submission(&[member_address()])), None);
    pair.bed.now = pair.bed.now.after(Duration::from_secs(31));
    assert_eq!(pair.state(&submission(&[member_address()])), Some(SuperNodeState::Checking));
}

/// Rules 6.70 and 6.72: nobody is taken for lost because the keeper has changed.
#[test]
fn an_operator_that_takes_over_waits_for_the_super_nodes() {
    let mut pair = Pair::lender();
    let (first, day) = (pair.earlier(), Duration::from_secs(86_400));
    let lender = pair.identity.node_id(DOMAIN);
    pair.assign();
    pair.commit_operator(&first, OperatorState::Active, day);
    let wait = |pair: &mut Pair, by: Duration| {
        pair.bed.now = pair.bed.now.after(by);
        pair.operator.handle(Input::Timeout, pair.bed.now);
        pair.outputs();
    };
    wait(&mut pair, Duration::from_secs(1));
    wait(&mut pair, Duration::from_secs(1_000));
    pair.commit_operator(&first, OperatorState::Retired, day);
    wait(&mut pair, Duration::from_secs(1));
    let now = pair.bed.now.mono;
    let standing = pair.operator.supers.standing(&lender, now);
    assert!(matches!(standing, Some(Standing::Lost { since }) if since > now), "{standing:?}");
}

/// Rule 6.77: once, from super-nodes alone, and about domains that there are.
#[test]
fn refusals_are_added_up_once() {
    let mut pair = Pair::lender();
    let refused = |domain, count| Refused { domain, reason: RefusedReason::Rate, count };
    let report = |id: u8| Request::Refusals {
        id: CommandId([id; 16]),
        refused: vec![refused(DOMAIN, 7), refused(Domain(99), 1)],
    };
    assert_eq!(pair.ask(&report(1)).0, None, "not a super-node yet");
    pair.assign();
    for id in [2, 2, 3] {
        assert_eq!(pair.ask(&report(id)).0, Some(Reply::RefusalsNoted(CommandId([id; 16]))));
    }
    assert_eq!(pair.operator.refusals(DOMAIN), [(RefusedReason::Rate, 14)]);
    assert!(pair.operator.refusals(Domain(99)).is_empty());
}

/// Rules 2.18 and 6.78: a Head states the super-nodes, and those in quarantine are in none, nor in any list.
#[test]
fn heads_and_lists_leave_out_who_is_in_quarantine() {
    let mut pair = Pair::lender();
    pair.assign();
    let stated = |pair: &mut Pair| {
        let bytes = pair.operator.head(DOMAIN, pair.bed.now).unwrap();
        let verified = pair.trust.verify(&bytes, None, &Real).unwrap();
        let body = HeadBody::read(&verified).unwrap();
        (body.super_nodes.unwrap().count, body.map_version)
    };
    let listed = |pair: &mut Pair| {
        let Some(Reply::SuperNodes(page)) = pair.ask(&Request::GetSuperNodes { key: None, after: None }).0
        else {
            panic!("no list")
        };
        page.records.len()
    };
    assert_eq!((stated(&mut pair), listed(&mut pair)), ((1, 41), 1));
    let node = pair.identity.node_id(DOMAIN);
    for (on, expected) in [(true, ((0, 0), 0)), (false, ((1, 41), 1))] {
        pair.operator.handle(Input::Quarantine { node, on }, pair.bed.now);
        assert_eq!((stated(&mut pair), listed(&mut pair)), expected, "{on}");
    }
}

/// Rule 6.74: a ledger that takes its time is not asked the same twice, and one that has refused is asked again.
#[test]
fn the_map_is_planned_anew_when_nothing_was_signed_for_ten_seconds() {
    let mut pair = Pair::lender();
    let (to, mut asked) = (pair.operator.endpoint.id(), Vec::new());
    let start = pair.bed.now.mono;
    for second in 0..14 {
        if second % 5 == 0 {
            pair.member.request(to, operator_address(), &submission(&[member_address()]), pair.bed.now);
        }
        pair.operator.handle(Input::Timeout, pair.bed.now);
        let (_, others) = pair.settle();
        for (task, ..) in dials(&others) {
            pair.operator.handle(Input::TcpChecked { task, ok: true }, pair.bed.now);
        }
        let plans = others.iter().filter(|output| matches!(output, Output::AssignSegments { .. }));
        asked.extend(plans.map(|_| pair.bed.now.mono - start));
        pair.bed.now = pair.bed.now.after(Duration::from_secs(1));
    }
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[1] - asked[0] >= Duration::from_secs(10), "{asked:?}");
}
