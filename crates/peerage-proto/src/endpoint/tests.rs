use peerage_wire::crypto::Real;
use peerage_wire::id::Domain;
use peerage_wire::keys::{AgreementKey, network_id};
use peerage_wire::limits::{SEALING_KEY_LIFETIME, SEALING_KEY_OVERLAP};
use peerage_wire::packet::Class;
use peerage_wire::record::{Draft, Header, NodeBody, OperatorBody, OperatorState, Record, Roles, Table};
use peerage_wire::seal::{Ends, SendContext};

use super::*;
use crate::wall::OPERATOR_STANDS;

/// A network of message layers, without anything above them.
pub(crate) struct Bed {
    pub(crate) rng: ChaCha20Rng,
    pub(crate) root: IdentityKey,
    pub(crate) operator: IdentityKey,
    pub(crate) operator_record: Record,
    pub(crate) network: NetworkId,
    pub(crate) trust: Trust,
    pub(crate) now: Now,
}

pub(crate) const DOMAIN: Domain = Domain(7);
const HERE: &str = "192.0.2.1:7400";
const THERE: &str = "192.0.2.2:7400";

impl Bed {
    pub(crate) fn new() -> Self {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let (root, operator) = (IdentityKey::generate(&mut rng), IdentityKey::generate(&mut rng));
        let network = network_id(&root.public());
        let now = Now { mono: Instant::from_micros(5_000_000), unix: UnixTime::from_secs(1_800_000_000) };
        let body = OperatorBody {
            identity: operator.public(),
            enrolment: [1; 32],
            addresses: vec![THERE.parse().unwrap()],
            state: OperatorState::Active,
        };
        let id = operator.node_id(Domain::OPERATORS);
        let header = header(Table::OperatorNode, id, root.node_id(Domain::OPERATORS), now);
        let draft = Draft { header, public: body.write(), private: None };
        let operator_record = draft.sign(&root, &network, &Real).unwrap();
        let mut trust = Trust::new(network, root.public());
        trust.learn(&operator_record);
        Self { rng, root, operator, operator_record, network, trust, now }
    }

    /// Lets the root say what an operator is from now on.
    fn state(&mut self, operator: &IdentityKey, state: OperatorState) {
        let addresses = vec![THERE.parse().unwrap()];
        let body = OperatorBody { identity: operator.public(), enrolment: [1; 32], addresses, state };
        let root = self.root.node_id(Domain::OPERATORS);
        let header = header(Table::OperatorNode, operator.node_id(Domain::OPERATORS), root, self.now);
        let draft = Draft { header, public: body.write(), private: None };
        self.trust.learn(&draft.sign(&self.root, &self.network, &Real).unwrap());
    }

    pub(crate) fn node_record(&self, identity: &IdentityKey, domain: Domain, roles: Roles) -> Record {
        let signer = self.operator.node_id(Domain::OPERATORS);
        let header = header(Table::Node, identity.node_id(domain), signer, self.now);
        let body = NodeBody { identity: identity.public(), receiving: [1; 32], roles };
        let draft = Draft { header, public: body.write(), private: None };
        draft.sign(&self.operator, &self.network, &Real).unwrap()
    }

    pub(crate) fn config(&self, identity: &IdentityKey, record: &Record) -> Config {
        Config {
            network: self.network,
            crypto: Arc::new(Real),
            identity: identity.clone(),
            id: identity.node_id(record.header().domain),
            record: record.bytes().clone(),
            asks_introduction: false,
        }
    }

    fn endpoint(&mut self, identity: &IdentityKey, domain: Domain, roles: Roles, now: Now) -> Endpoint {
        let record = self.node_record(identity, domain, roles);
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        Endpoint::new(self.config(identity, &record), seed, now)
    }

    /// Makes a member that knows the time.
    fn member(&mut self, domain: Domain, roles: Roles) -> Endpoint {
        let identity = IdentityKey::generate(&mut self.rng);
        let mut endpoint = self.endpoint(&identity, domain, roles, self.now);
        endpoint.trust_own_clock();
        endpoint
    }

    /// Makes `asker` know `other`, as a verified record and statement would.
    fn acquaint(&self, asker: &mut Endpoint, other: &Endpoint, roles: Roles) {
        let identity = other.identity().public();
        let expires = UnixTime::from_millis(u64::MAX);
        let member = Member { id: other.id(), identity, roles, is_operator: false, expires };
        asker.learn_peer(member, *other.statement(), self.now);
    }

    /// Asks for a sign of life and carries everything to and fro until nothing moves. Returns whether it was answered.
    fn ping(&self, asker: &mut Endpoint, now: Now, other: &mut Endpoint) -> bool {
        asker.request(other.id(), THERE.parse().unwrap(), &Request::Ping, now);
        self.carry(asker, now, other);
        std::iter::from_fn(|| asker.poll_outcome()).any(|outcome| matches!(outcome, Outcome::Answered { .. }))
    }

    fn carry(&self, asker: &mut Endpoint, now: Now, other: &mut Endpoint) {
        for _ in 0..20 {
            while let Some((_, datagram)) = asker.poll_transmit() {
                other.handle_datagram(HERE.parse().unwrap(), &datagram, &self.trust, self.now);
            }
            while let Some(outcome) = other.poll_outcome() {
                if let Outcome::Request(incoming) = outcome {
                    other.reply(&incoming.reply_to, &Reply::Reping { observed: incoming.remote });
                }
            }
            while let Some((_, datagram)) = other.poll_transmit() {
                asker.handle_datagram(THERE.parse().unwrap(), &datagram, &self.trust, now);
            }
        }
    }
}

fn header(table: Table, of: NodeId, signer: NodeId, now: Now) -> Header {
    Header {
        table,
        domain: of.domain,
        key: of.record_key(),
        version: now.unix.as_millis(),
        expires: now.unix.after(table.max_life()),
        signer,
        removed: false,
    }
}

const SUPER: Roles = Roles { tunnel: false, super_node: true };

fn hour_ahead(now: Now) -> Now {
    Now { unix: now.unix.after(Duration::from_secs(3_600)), ..now }
}

/// Rule 3.11: three super-nodes of different domains are believed, and other nodes never.
#[test]
fn the_time_of_three_super_nodes_is_believed_and_that_of_other_nodes_is_not() {
    for (roles, believed) in [(SUPER, true), (Roles::default(), false)] {
        let mut bed = Bed::new();
        let wrong = hour_ahead(bed.now);
        let identity = IdentityKey::generate(&mut bed.rng);
        let mut asker = bed.endpoint(&identity, DOMAIN, Roles::default(), wrong);
        for domain in 1..=3 {
            let mut other = bed.member(Domain(domain), roles);
            bed.acquaint(&mut asker, &other, roles);
            bed.ping(&mut asker, wrong, &mut other);
            assert_eq!(asker.clock().is_learned(), believed && domain == 3, "{roles:?} {domain}");
        }
    }
}

/// Rule 6.1: the word of one super-node does not count, but it is a reason to ask an operator while none stands by the own time.
#[test]
fn another_time_of_one_super_node_is_doubted_unless_an_operator_stands_by_the_own() {
    let mut bed = Bed::new();
    let start = bed.now;
    let first = bed.operator.clone();
    let mut operator = bed.endpoint(&first, Domain::OPERATORS, Roles::default(), start);
    operator.trust_own_clock();
    let identity = IdentityKey::generate(&mut bed.rng);
    let mut asker = bed.endpoint(&identity, DOMAIN, Roles::default(), start);
    bed.acquaint(&mut asker, &operator, Roles::default());
    assert!(bed.ping(&mut asker, start, &mut operator));
    // The super-node's clock is behind by more than the window.
    let behind = |now: Now| Now { unix: now.unix.before(TIME_WINDOW * 2), ..now };
    bed.now = behind(start);
    let mut other = bed.member(Domain(1), SUPER);
    bed.acquaint(&mut asker, &other, SUPER);
    for (after, is_doubted) in [(OPERATOR_STANDS - Duration::from_secs(1), false), (OPERATOR_STANDS, true)] {
        let now = start.after(after);
        let told = asker.discards().of(Discard::StaleTime);
        bed.now = behind(now);
        asker.request(other.id(), THERE.parse().unwrap(), &Request::Ping, now);
        bed.carry(&mut asker, now, &mut other);
        assert_eq!(asker.discards().of(Discard::StaleTime), told + 1);
        let outcomes: Vec<_> = std::iter::from_fn(|| asker.poll_outcome()).collect();
        let doubts = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::ClockDoubted)).count();
        assert_eq!(doubts, usize::from(is_doubted), "{after:?}");
        assert_eq!(asker.clock().offset_millis(), 0);
    }
}

/// Two operators, the second ahead by more than the window, and a member that asks them in turn.
struct TwoDates {
    bed: Bed,
    start: Now,
    asker: Endpoint,
    operators: [Endpoint; 2],
}

/// How far the second operator's date is ahead.
const AHEAD: Duration = Duration::from_secs(103);

impl TwoDates {
    fn new() -> Self {
        let mut bed = Bed::new();
        let start = bed.now;
        let first = bed.operator.clone();
        let second = IdentityKey::generate(&mut bed.rng);
        bed.state(&second, OperatorState::Active);
        let identity = IdentityKey::generate(&mut bed.rng);
        let mut asker = bed.endpoint(&identity, DOMAIN, Roles::default(), start);
        let dates = [(first, start), (second, Now { unix: start.unix.after(AHEAD), ..start })];
        let operators = dates.map(|(identity, date)| {
            let mut operator = bed.endpoint(&identity, Domain::OPERATORS, Roles::default(), date);
            operator.trust_own_clock();
            bed.acquaint(&mut asker, &operator, Roles::default());
            operator
        });
        Self { bed, start, asker, operators }
    }

    /// Asks an operator some seconds after the start. Returns whether it answered, and by how much the asker corrects its clock then.
    fn ask(&mut self, operator: usize, secs: u64) -> (bool, i64) {
        let now = self.start.after(Duration::from_secs(secs));
        let ahead = if operator == 1 { AHEAD } else { Duration::ZERO };
        self.bed.now = Now { unix: now.unix.after(ahead), ..now };
        let answered = self.bed.ping(&mut self.asker, now, &mut self.operators[operator]);
        (answered, self.asker.clock().offset_millis())
    }

    fn disagreements(&self) -> u64 {
        self.asker.discards().of(Discard::OperatorsDisagree)
    }
}

/// Rule 6.1: whoever asks two operators whose dates differ goes by the time of one, and not to and fro.
#[test]
fn of_two_operators_that_disagree_a_node_follows_one_for_as_long_as_that_is_heard() {
    let mut world = TwoDates::new();
    for turn in 0..60 {
        assert_eq!(world.ask(0, turn * 20), (true, 0), "{turn}");
        assert_eq!(world.ask(1, turn * 20 + 10), (false, 0), "{turn}");
        assert_eq!(world.disagreements(), turn + 1);
    }
    // The first is heard no more.
    let silent = 59 * 20;
    let stands = OPERATOR_STANDS.as_secs();
    assert_eq!(world.ask(1, silent + stands - 1), (false, 0));
    assert_eq!(world.ask(1, silent + stands), (true, 103_000));
    // Now it is the second that the node goes by.
    assert_eq!(world.ask(0, silent + stands + 1), (false, 103_000));
    assert_eq!(world.ask(1, silent + stands + 2), (true, 103_000));
}

/// Rule 6.1: the time of an operator that is none any more stands in nobody's way, and one that is alone is followed wherever it goes.
#[test]
fn the_other_operator_is_followed_at_once_when_the_first_is_retired() {
    let mut world = TwoDates::new();
    assert_eq!(world.ask(0, 0), (true, 0));
    assert_eq!(world.ask(1, 10), (false, 0));
    world.bed.now = world.start.after(Duration::from_secs(11));
    let first = world.bed.operator.clone();
    world.bed.state(&first, OperatorState::Retired);
    assert_eq!(world.ask(1, 12), (true, 103_000));
    assert_eq!(world.disagreements(), 1);
    // Somebody mends its date.
    world.bed.now = world.start.after(Duration::from_secs(20));
    let identity = world.operators[1].identity().clone();
    let mut again = world.bed.endpoint(&identity, Domain::OPERATORS, Roles::default(), world.bed.now);
    again.trust_own_clock();
    world.bed.acquaint(&mut world.asker, &again, Roles::default());
    let now = world.bed.now;
    assert!(world.bed.ping(&mut world.asker, now, &mut again));
    assert_eq!(world.asker.clock().offset_millis(), 0);
}

/// Rule 3.5: a key that was made after the clock was set back has an earlier date than the one before, and counts.
#[test]
fn a_new_key_counts_although_its_date_is_earlier() {
    let mut bed = Bed::new();
    let mut other = bed.member(DOMAIN, Roles::default());
    let identity = IdentityKey::generate(&mut bed.rng);
    let ahead = Now { unix: bed.now.unix.after(Duration::from_secs(40)), ..bed.now };
    let mut first = bed.endpoint(&identity, DOMAIN, Roles::default(), ahead);
    bed.acquaint(&mut first, &other, Roles::default());
    assert!(bed.ping(&mut first, ahead, &mut other));
    bed.now = bed.now.after(Duration::from_secs(2));
    let mut second = bed.endpoint(&identity, DOMAIN, Roles::default(), bed.now);
    assert!(second.statement().not_before < first.statement().not_before);
    bed.acquaint(&mut second, &other, Roles::default());
    let now = bed.now;
    assert!(bed.ping(&mut second, now, &mut other));
    // The other way round: who asks learns the earlier key from a hint.
    bed.acquaint(&mut other, &first, Roles::default());
    let answered = bed.ping(&mut other, now, &mut second);
    assert!(answered);
}

/// Seals a plaintext from `identity` to `receiver` with a class of the test's choice.
fn sealed(bed: &mut Bed, receiver: &Endpoint, class: Class, plaintext: &[u8]) -> Vec<u8> {
    let identity = IdentityKey::generate(&mut bed.rng);
    let record = bed.node_record(&identity, DOMAIN, Roles::default());
    let config = bed.config(&identity, &record);
    let key = AgreementKey::generate(&mut bed.rng);
    let time = bed.now.unix;
    let validity = time..time.after(Duration::from_secs(60));
    let statement = KeyStatement::sign(&identity, &bed.network, config.id, *key.public(), validity, &Real);
    let ends = Ends { network: bed.network, sender: config.id, receiver: receiver.id() };
    let theirs = receiver.statement().key;
    let mut context = SendContext::open(ends, &key, &theirs, time, &Real, &mut bed.rng).unwrap();
    let introduction = peerage_wire::intro::Introduction { record: record.bytes().to_vec(), statement };
    let with = (&Real as &dyn Crypto, &mut bed.rng as &mut dyn rand_core::CryptoRng);
    context.seal_long(class, plaintext, Some(introduction), None, time, with).unwrap().datagram
}

/// Rules 3.1, 4.1 and 4.2: what is inside must be what the first byte says, a known command, and well-formed.
#[test]
fn a_member_that_seals_nonsense_is_not_heard() {
    let mut bed = Bed::new();
    let mut receiver = bed.member(DOMAIN, Roles::default());
    let ping = Request::Ping.encode();
    let mut dirty = ping.clone();
    dirty.push(1);
    let nonsense: [(Class, &[u8], Discard); 8] = [
        (Class::Other, &ping, Discard::WrongClass),
        (Class::Read, &Request::Attach.encode(), Discard::WrongClass),
        (Class::Read, &[0, 0, 1, 0xa0], Discard::UnknownCommand),
        (Class::Read, &[18, 0, 1, 0xa0], Discard::UnknownCommand),
        (Class::Other, &[255, 0, 1, 0xa0], Discard::UnknownCommand),
        (Class::Read, &[17, 0xff, 0xff], Discard::Malformed),
        (Class::Read, &[17, 0, 1, 0xbf], Discard::Malformed),
        (Class::Read, &dirty, Discard::Malformed),
    ];
    for (class, plaintext, reason) in nonsense {
        let before = receiver.discards().of(reason);
        let datagram = sealed(&mut bed, &receiver, class, plaintext);
        receiver.handle_datagram(HERE.parse().unwrap(), &datagram, &bed.trust, bed.now);
        assert_eq!(receiver.discards().of(reason), before + 1, "{plaintext:?} {:?}", receiver.discards());
        assert!(receiver.poll_outcome().is_none() && receiver.poll_transmit().is_none());
    }
}

/// Rule 3.7: a sealing key lives for a day, and is accepted for one hour more.
#[test]
fn a_key_of_yesterday_is_accepted_for_an_hour() {
    let mut bed = Bed::new();
    let mut other = bed.member(DOMAIN, Roles::default());
    let old = other.statement().hint();
    bed.now = bed.now.after(SEALING_KEY_LIFETIME);
    other.handle_timeout(&bed.trust, bed.now);
    assert_ne!(other.statement().hint(), old);
    let time = bed.now.unix;
    assert!(other.keys.named(old, time.after(Duration::from_secs(3_599))).is_some());
    assert!(other.keys.named(old, time.after(SEALING_KEY_OVERLAP)).is_none());
}

/// Rule 3.5: a context ends with the key that it was agreed with, so that an introduction never states another one.
#[test]
fn no_context_outlives_the_key_of_its_sender() {
    let mut bed = Bed::new();
    let mut other = bed.member(DOMAIN, Roles::default());
    let mut asker = bed.member(DOMAIN, Roles::default());
    bed.acquaint(&mut asker, &other, Roles::default());
    bed.now = bed.now.after(SEALING_KEY_LIFETIME - Duration::from_secs(600));
    let now = bed.now;
    assert!(bed.ping(&mut asker, now, &mut other));
    bed.now = bed.now.after(Duration::from_secs(601));
    let now = bed.now;
    asker.handle_timeout(&bed.trust, now);
    // The receiver has lost the context, and asks for the long form.
    other.contexts = Contexts::default();
    assert!(bed.ping(&mut asker, now, &mut other));
}

/// Rule 6.2: more requests than may be outstanding fail at once; the others go on.
#[test]
fn outstanding_requests_are_bounded() {
    let mut bed = Bed::new();
    let other = bed.member(DOMAIN, Roles::default());
    let mut asker = bed.member(DOMAIN, Roles::default());
    bed.acquaint(&mut asker, &other, Roles::default());
    for _ in 0..outgoing::MAX_OUTSTANDING + 3 {
        asker.request(other.id(), THERE.parse().unwrap(), &Request::Ping, bed.now);
    }
    let (trust, now) = (bed.trust.clone(), bed.now);
    asker.handle_timeout(&trust, now);
    let failed = |asker: &mut Endpoint| {
        std::iter::from_fn(|| asker.poll_outcome()).filter(|o| matches!(o, Outcome::Failed { .. })).count()
    };
    assert_eq!(failed(&mut asker), 3);
    for half_seconds in 1..=8 {
        asker.handle_timeout(&trust, now.after(Duration::from_millis(500 * half_seconds)));
    }
    assert_eq!(failed(&mut asker), outgoing::MAX_OUTSTANDING);
    let sent = std::iter::from_fn(|| asker.poll_transmit()).count();
    assert_eq!(sent, 3 * outgoing::MAX_OUTSTANDING);
}

/// Rule 3.8: four contexts of each sender are remembered, the newest.
#[test]
fn a_sender_has_four_contexts_at_a_receiver() {
    let mut bed = Bed::new();
    let mut other = bed.member(DOMAIN, Roles::default());
    let identity = IdentityKey::generate(&mut bed.rng);
    let now = bed.now;
    let mut askers: Vec<_> = (0..6).map(|_| bed.endpoint(&identity, DOMAIN, Roles::default(), now)).collect();
    for asker in &mut askers {
        bed.acquaint(asker, &other, Roles::default());
        assert!(bed.ping(asker, now, &mut other));
    }
    let known = askers.iter_mut().map(|asker| {
        let before = other.discards().of(Discard::UnknownContext);
        asker.request(other.id(), THERE.parse().unwrap(), &Request::Ping, now);
        let (_, datagram) = asker.poll_transmit().unwrap();
        other.handle_datagram(HERE.parse().unwrap(), &datagram, &bed.trust, now);
        other.discards().of(Discard::UnknownContext) == before
    });
    assert_eq!(known.collect::<Vec<_>>(), [false, false, true, true, true, true]);
}

/// Rules 3.9 and 6.3: whose identity key is known can be asked, for it tells its sealing key to whoever got it wrong.
#[test]
fn a_peer_of_which_only_the_identity_is_known_tells_its_sealing_key() {
    let mut bed = Bed::new();
    let roles = Roles { super_node: true, ..Roles::default() };
    let mut asker = bed.member(DOMAIN, Roles::default());
    let mut other = bed.member(Domain(8), roles);
    let identity = other.identity().public();
    let member =
        |identity| Member { id: other.id(), identity, roles, is_operator: false, expires: bed.now.unix };
    let (right, wrong) = (member(identity), member([7; 32]));
    asker.learn_identity(right, bed.now);
    assert!(bed.ping(&mut asker, bed.now, &mut other));
    assert_eq!(asker.peer_key(&other.id()), Some(other.statement().hint()));
    asker.learn_identity(wrong, bed.now);
    assert!(bed.ping(&mut asker, bed.now, &mut other), "what is known stays as it is");
    let mut deceived = bed.member(DOMAIN, Roles::default());
    deceived.learn_identity(wrong, bed.now);
    assert!(!bed.ping(&mut deceived, bed.now, &mut other), "a statement by another key is not believed");
    assert_eq!(deceived.discards().of(Discard::BadStatement), 1);
}

/// Carries what two endpoints say on a stream that the first has made, and nothing else. Returns what each has let out over UDP.
fn carry_on_stream(bed: &Bed, maker: &mut Endpoint, server: &mut Endpoint) -> [Vec<Bytes>; 2] {
    for _ in 0..20 {
        while let Some((_, datagram)) = maker.poll_stream_transmit() {
            let from = (StreamId::Accepted(5), HERE.parse().unwrap());
            server.handle_stream_datagram(from, &datagram, &bed.trust, bed.now);
        }
        while let Some(outcome) = server.poll_outcome() {
            if let Outcome::Request(incoming) = outcome {
                server.reply(&incoming.reply_to, &Reply::Reping { observed: incoming.remote });
            }
        }
        while let Some((_, datagram)) = server.poll_stream_transmit() {
            // Not where it was asked for: the stream may lead to another of the server's ports.
            let from = (StreamId::Made(1), "192.0.2.2:443".parse().unwrap());
            maker.handle_stream_datagram(from, &datagram, &bed.trust, bed.now);
        }
    }
    [maker, server].map(|one| std::iter::from_fn(|| one.poll_transmit()).map(|(_, bytes)| bytes).collect())
}

/// Rules 6.102 and 6.105: introduction, hints and answers pass a stream as they pass UDP, and what is observed is marked.
#[test]
fn a_stranger_introduces_itself_on_a_stream_and_is_answered_there() {
    let mut bed = Bed::new();
    let (mut maker, mut server) = (bed.member(DOMAIN, Roles::default()), bed.member(Domain(1), SUPER));
    server.ask_introductions(true);
    bed.acquaint(&mut maker, &server, SUPER);
    maker.carry(server.id(), Some(StreamId::Made(1)), bed.now);
    maker.request(server.id(), THERE.parse().unwrap(), &Request::Ping, bed.now);
    let strayed = carry_on_stream(&bed, &mut maker, &mut server);
    assert_eq!(strayed.map(|all| all.len()), [0, 0]);
    let answered = std::iter::from_fn(|| maker.poll_outcome()).find_map(|outcome| match outcome {
        Outcome::Answered { straight, stream, .. } => Some((straight, stream)),
        Outcome::Request(_)
        | Outcome::Forwarded { .. }
        | Outcome::Failed { .. }
        | Outcome::ClockLearned(_)
        | Outcome::ClockDoubted => None,
    });
    assert_eq!(answered, Some((None, Some(StreamId::Made(1)))));
}

/// Rule 6.103: a server asks a member where it was heard last, on a stream or over UDP, and not on one that has ended.
#[test]
fn a_server_asks_a_member_by_the_way_that_it_has_used_last() {
    let mut bed = Bed::new();
    let (mut maker, mut server) = (bed.member(DOMAIN, Roles::default()), bed.member(DOMAIN, SUPER));
    bed.acquaint(&mut maker, &server, SUPER);
    bed.acquaint(&mut server, &maker, Roles::default());
    let asks_on_stream = |server: &mut Endpoint, to: NodeId, now| {
        server.request(to, HERE.parse().unwrap(), &Request::Ping, now);
        let (stream, udp) = (server.poll_stream_transmit(), server.poll_transmit());
        assert!(stream.is_some() != udp.is_some());
        stream.map(|(stream, _)| stream)
    };
    maker.carry(server.id(), Some(StreamId::Made(1)), bed.now);
    maker.request(server.id(), THERE.parse().unwrap(), &Request::Ping, bed.now);
    carry_on_stream(&bed, &mut maker, &mut server);
    assert_eq!(asks_on_stream(&mut server, maker.id(), bed.now), Some(StreamId::Accepted(5)));
    maker.carry(server.id(), None, bed.now);
    let now = bed.now;
    assert!(bed.ping(&mut maker, now, &mut server));
    assert_eq!(asks_on_stream(&mut server, maker.id(), bed.now), None);
    maker.carry(server.id(), Some(StreamId::Made(1)), bed.now);
    maker.request(server.id(), THERE.parse().unwrap(), &Request::Ping, bed.now);
    carry_on_stream(&bed, &mut maker, &mut server);
    assert_eq!(server.stream_closed(StreamId::Accepted(5)), [maker.id()]);
    assert_eq!(asks_on_stream(&mut server, maker.id(), bed.now), None);
}

/// Rule 6.102: what was executed once is not executed again because it comes by another way.
#[test]
fn a_request_that_was_heard_over_udp_is_a_replay_on_a_stream() {
    let mut bed = Bed::new();
    let (mut maker, mut server) = (bed.member(DOMAIN, Roles::default()), bed.member(DOMAIN, SUPER));
    bed.acquaint(&mut maker, &server, SUPER);
    maker.request(server.id(), THERE.parse().unwrap(), &Request::Ping, bed.now);
    let (_, datagram) = maker.poll_transmit().unwrap();
    server.handle_datagram(HERE.parse().unwrap(), &datagram, &bed.trust, bed.now);
    let from = (StreamId::Accepted(5), HERE.parse().unwrap());
    server.handle_stream_datagram(from, &datagram, &bed.trust, bed.now);
    assert_eq!(server.discards().of(Discard::Replayed), 1);
    assert_eq!(server.carried_on(&maker.id()), None, "nobody moves a member by repeating what it said");
}

/// Rule 6.108: whoever forwards has answered, although what comes back is the answer of another, or none. Otherwise a node whose requests are all
/// forwarded would miss its forwarder, and leave UDP for nothing.
#[test]
fn a_forwarder_that_passes_something_back_is_heard_itself() {
    let mut bed = Bed::new();
    let (mut asker, mut forwarder) = (bed.member(DOMAIN, Roles::default()), bed.member(DOMAIN, SUPER));
    let peer = bed.member(DOMAIN, Roles::default());
    bed.acquaint(&mut asker, &forwarder, SUPER);
    bed.acquaint(&mut asker, &peer, Roles::default());
    let way = (forwarder.id(), THERE.parse().unwrap());
    asker.request_through(way, peer.id(), &Request::Ping, bed.now);
    let mut heard = Vec::new();
    for _ in 0..5 {
        while let Some((_, datagram)) = asker.poll_transmit() {
            forwarder.handle_datagram(HERE.parse().unwrap(), &datagram, &bed.trust, bed.now);
        }
        while let Some(outcome) = forwarder.poll_outcome() {
            if let Outcome::Request(incoming) = outcome {
                forwarder.reply(&incoming.reply_to, &Reply::ForwardedTunnelOpened(None));
            }
        }
        while let Some((_, datagram)) = forwarder.poll_transmit() {
            asker.handle_datagram(THERE.parse().unwrap(), &datagram, &bed.trust, bed.now);
        }
        heard.extend(std::iter::from_fn(|| asker.poll_outcome()));
    }
    let is_forwarder =
        |outcome: &&Outcome| matches!(outcome, Outcome::Forwarded { by, stream: None } if *by == way.0);
    assert_eq!(heard.iter().filter(is_forwarder).count(), 1, "{heard:?}");
}
