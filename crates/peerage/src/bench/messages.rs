//! Sealed messages a second: members of the network ask the operator, as they would ask a super-node.
//!
//! The members exist for the bench alone: their records are signed here with the key of the bench's own operator, because joining one by
//! one is limited on purpose. Each has a port and a sealing key of its own, and opens its context as any stranger would: with an
//! introduction, and with a cookie when the operator wants one.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use chacha20::ChaCha20Rng;
use peerage_node::clock::Clock;
use peerage_wire::{
    crypto::{Real, TAG_SIZE},
    id::{Domain, NetworkId, NodeId, from_hex},
    intro::{Introduction, KeyStatement},
    keys::{AgreementKey, IdentityKey},
    limits::MAX_DATAGRAM,
    message::{Reply, Request},
    packet::{COOKIE_SIZE, HintReason, Packet, SHORT_OVERHEAD},
    record::{Draft, Header, NodeBody, Roles, Table},
    seal::{Ends, SendContext},
    time::UnixTime,
};
use rand_core::SeedableRng as _;

use super::{
    How, ledger,
    machine::{cpu, resident},
    network::Network,
    report::{Case, Report, Run, median},
    strangers::Strangers,
    udp::{self, Count, Plain, Talk},
};

/// How long the answer to a first contact is waited for before it is sent again, and how often it is sent.
const CONTACT_TIMEOUT: Duration = Duration::from_millis(500);
const MAX_ATTEMPTS: u32 = 20;

/// How long a member's record and key are good: the bench takes minutes.
const LIFE: Duration = Duration::from_secs(6 * 3_600);

/// Members on one address of this computer: the operator limits what it spends on strangers of one address.
const PEERS_PER_ADDRESS: usize = 50;

/// The domain of the members, which are nobody else's.
const DOMAIN: Domain = Domain(7);

/// Measures Pings, with the same number of peers, the same beside a flood of strangers, and with one.
pub(super) fn messages(how: &How, peers: usize) -> Result<Report> {
    let network = Network::start()?;
    let echo = network.part("echo", &["echo"])?;
    let responder = network.operator.process();
    let plain = (echo.listen()?, echo.process());
    let operator = Operator::find(&network)?;
    let mut cases = Vec::new();
    let mut counts = vec![peers];
    if peers != 1 {
        counts.push(1);
    }
    for count in counts {
        let mut crowd = operator.crowd(count, responder)?;
        cases.push(ping(how, &mut crowd, responder, plain)?);
        if count == peers {
            cases.push(beside_strangers(how, &mut crowd, &operator)?);
        }
    }
    let reference =
        "a plain echo of as many bytes without cryptography: sendto and recvfrom, one socket each";
    Report::new("messages", "answers a second", reference, cases)
}

fn ping(
    how: &How,
    crowd: &mut Crowd,
    responder: u32,
    (echo, echo_process): (SocketAddr, u32),
) -> Result<Case> {
    let (mut runs, mut cost, mut plain_cost, mut same) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut lost = Count::default();
    let size = crowd.size();
    for _ in 0..how.runs() {
        let one = udp::bind(Ipv4Addr::LOCALHOST)?;
        one.connect(echo)?;
        let (plain, spent) = costing(echo_process, || udp::flood_plainly(&one, how.length(), size))?;
        plain_cost.push(spent);
        let (own, spent) = costing(responder, || crowd.flood(how.length(), &mut || Request::Ping))?;
        cost.push(spent);
        ensure!(own.answers > 0, "the operator does not answer");
        lost.lost += own.lost;
        lost.wrong += own.wrong;
        runs.push(Run::new(own.per_second(), plain.per_second()));
        let sockets = connected(crowd.peers.len(), echo)?;
        same.push(udp::flood(&sockets, how.length(), &mut Plain { size })?.per_second());
    }
    let peers = crowd.peers.len();
    let case = Case::new(format!("Ping, {peers} {}", if peers == 1 { "peer" } else { "peers" }), runs);
    let ratio = case.value / median(same.clone()).max(1e-9);
    Ok(case
        .with("datagram_bytes", size)
        .with("responder_cpu_us", median(cost))
        .with("reference_cpu_us", median(plain_cost))
        .with("plain_echo_with_as_many_sockets", median(same))
        .with("ratio_to_that", ratio)
        .with("lost", lost.lost)
        .with("wrong", lost.wrong)
        .with("first_contacts_a_second", crowd.contacts_per_second)
        .with("first_contact_cpu_us", crowd.contact_cpu_us))
}

/// Measures what those who are known still get while strangers flood, against a flood that goes to nobody.
fn beside_strangers(how: &How, crowd: &mut Crowd, operator: &Operator) -> Result<Case> {
    let mut strangers = Strangers::new(operator.first_word()?)?;
    let nobody = udp::bind(Ipv4Addr::LOCALHOST)?;
    let elsewhere = nobody.local_addr()?;
    let (mut runs, mut rates, mut lost) = (Vec::new(), Vec::new(), 0);
    for _ in 0..how.runs() {
        let (spared, _) = strangers.beside(elsewhere, || crowd.flood(how.length(), &mut || Request::Ping))?;
        let (flooded, sent) =
            strangers.beside(operator.address, || crowd.flood(how.length(), &mut || Request::Ping))?;
        runs.push(Run::new(flooded.per_second(), spared.per_second()));
        rates.push(sent);
        lost += flooded.lost;
    }
    let peers = crowd.peers.len();
    Ok(Case::new(
        format!("Ping, {peers} peers beside a flood of strangers, against one that goes to nobody"),
        runs,
    )
    .with("strangers_a_second", median(rates))
    .with("lost", lost))
}

/// Measures look-ups of Node records beside Pings of the same run.
pub(super) fn lookups(how: &How, peers: usize, records: u32) -> Result<Report> {
    // Whether it works shows with a few as well.
    let records = u64::from(if how.is_instant() { records.min(1_000) } else { records });
    let network = Network::start()?.reopen(|data| ledger::fill(data, DOMAIN, records))?;
    let responder = network.operator.process();
    let memory = resident(responder);
    let operator = Operator::find(&network)?;
    let mut crowd = operator.crowd(peers, responder)?;
    let mut number = 0_u64;
    let mut another = || {
        // A step that has no factor in common with the number of records comes to all of them, from everywhere in the table.
        number = number.wrapping_add(7_919);
        Request::GetNode(ledger::member(DOMAIN, number % records))
    };
    let mut own_info = || Request::GetNodeInfo(operator.id);
    let reads: [(String, &mut dyn FnMut() -> Request); 2] = [
        (format!("GetNode, another each time, of {records}"), &mut another),
        ("GetNodeInfo, always the same".to_owned(), &mut own_info),
    ];
    let mut cases = Vec::new();
    for (name, request) in reads {
        let (mut runs, mut costs, mut ping_costs) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..how.runs() {
            let (ping, cost) = costing(responder, || crowd.flood(how.length(), &mut || Request::Ping))?;
            ping_costs.push(cost);
            let (read, cost) = costing(responder, || crowd.flood(how.length(), &mut *request))?;
            ensure!(read.answers > 0, "the operator does not answer: {name}");
            runs.push(Run::new(read.per_second(), ping.per_second()));
            costs.push(cost);
        }
        let case = Case::new(name, runs).with("responder_cpu_us", median(costs));
        cases.push(case.with("ping_cpu_us", median(ping_costs)).with("responder_bytes", memory));
    }
    Report::new("lookups", "answers a second", "Pings of the same peers", cases)
}

/// Does something, and returns what each answer cost a process in microseconds.
fn costing(process: u32, act: impl FnOnce() -> Result<Count>) -> Result<(Count, f64)> {
    let before = cpu(process);
    let count = act()?;
    let spent = cpu(process).saturating_sub(before);
    Ok((count, spent.as_secs_f64() * 1e6 / (count.answers.max(1) as f64)))
}

fn connected(count: usize, to: SocketAddr) -> Result<Vec<UdpSocket>> {
    (0..count)
        .map(|_| {
            let socket = udp::bind(Ipv4Addr::LOCALHOST)?;
            socket.connect(to)?;
            Ok(socket)
        })
        .collect()
}

/// Makes a generator of random numbers from the system's randomness, which would cost a call each time.
pub(super) fn rng() -> Result<ChaCha20Rng> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|_| anyhow!("the system has no randomness"))?;
    Ok(ChaCha20Rng::from_seed(seed))
}

/// An operator of its own with members that ask it.
pub(super) struct Responder {
    crowd: Crowd,
    id: NodeId,
    _network: Network,
}

impl Responder {
    /// Starts it, and lets so many members say their first word.
    pub(super) fn start(peers: usize) -> Result<Self> {
        let network = Network::start()?;
        let operator = Operator::find(&network)?;
        let crowd = operator.crowd(peers, network.operator.process())?;
        Ok(Self { crowd, id: operator.id, _network: network })
    }

    /// Returns the operator's id.
    pub(super) const fn id(&self) -> NodeId {
        self.id
    }

    /// Returns how many answers come in a second.
    pub(super) fn flood(&mut self, length: Duration, request: &Request) -> Result<f64> {
        let count = self.crowd.flood(length, &mut || request.clone())?;
        ensure!(count.answers > 0, "the operator does not answer");
        Ok(count.per_second())
    }
}

/// The bench's operator, as its members see it, and the key that makes members.
struct Operator {
    network: NetworkId,
    id: NodeId,
    identity: IdentityKey,
    address: SocketAddr,
}

impl Operator {
    fn find(network: &Network) -> Result<Self> {
        let text = fs::read_to_string(network.operator.computer.data().join("operator.key"))?;
        let seed = text.lines().find_map(|line| line.strip_prefix("identity "));
        let seed = seed.context("the operator's key file has another form")?;
        let identity = IdentityKey::from_seed(&from_hex(seed).map_err(|_| anyhow!("the key is no key"))?);
        let id = from_hex(&network.network_id).map_err(|_| anyhow!("the network id is none"))?;
        Ok(Self {
            network: NetworkId(id),
            id: identity.node_id(Domain::OPERATORS),
            identity,
            address: network.address,
        })
    }

    /// Returns what a member says first, with its introduction and without a cookie.
    fn first_word(&self) -> Result<Vec<u8>> {
        let mut rng = rng()?;
        let now = Clock::new().now().unix;
        let member = Member::new(self, now, &mut rng)?;
        let introduction = member.introduction.clone();
        let mut receiver = *AgreementKey::generate(&mut rng).public();
        let Peer { mut context, .. } = member.contact(self, 0, &mut receiver, &mut rng)?;
        let request = Request::Ping;
        let sealed = context.seal_long(
            request.class(),
            &request.encode(),
            Some(introduction),
            None,
            Clock::new().now().unix,
            (&Real, &mut rng),
        );
        Ok(sealed.map_err(|_| anyhow!("a Ping cannot be sealed"))?.datagram)
    }

    /// Makes members and lets each say its first word.
    fn crowd(&self, count: usize, responder: u32) -> Result<Crowd> {
        let mut rng = rng()?;
        let now = Clock::new().now().unix;
        let members: Vec<_> = (0..count).map(|_| Member::new(self, now, &mut rng)).collect::<Result<_>>()?;
        let mut receiver = *AgreementKey::generate(&mut rng).public();
        let (before, began_at) = (cpu(responder), Instant::now());
        let mut peers = Vec::new();
        for (index, member) in members.into_iter().enumerate() {
            peers.push(member.contact(self, index, &mut receiver, &mut rng)?);
        }
        let spent = cpu(responder).saturating_sub(before).as_secs_f64();
        Ok(Crowd {
            contacts_per_second: count as f64 / began_at.elapsed().as_secs_f64(),
            contact_cpu_us: spent * 1e6 / (count.max(1) as f64),
            peers,
            rng,
        })
    }
}

struct Member {
    id: NodeId,
    agreement: AgreementKey,
    introduction: Introduction,
}

impl Member {
    fn new(operator: &Operator, now: UnixTime, rng: &mut ChaCha20Rng) -> Result<Self> {
        let identity = IdentityKey::generate(rng);
        let id = identity.node_id(DOMAIN);
        let (agreement, receiving) = (AgreementKey::generate(rng), AgreementKey::generate(rng));
        let body =
            NodeBody { identity: identity.public(), receiving: *receiving.public(), roles: Roles::default() };
        let header = Header {
            table: Table::Node,
            domain: id.domain,
            key: id.record_key(),
            version: now.as_millis(),
            expires: now.after(LIFE),
            signer: operator.id,
            removed: false,
        };
        let draft = Draft { header, public: body.write(), private: None };
        let record = draft.sign(&operator.identity, &operator.network, &Real)?;
        let life = now.before(Duration::from_secs(60))..now.after(LIFE);
        let key = *agreement.public();
        let statement = KeyStatement::sign(&identity, &operator.network, id, key, life, &Real);
        Ok(Self { id, agreement, introduction: Introduction { record: record.bytes().to_vec(), statement } })
    }

    /// Opens a context with the operator: a Ping in the long form, and again with what hints ask for.
    fn contact(
        self,
        operator: &Operator,
        index: usize,
        receiver: &mut [u8; 32],
        rng: &mut ChaCha20Rng,
    ) -> Result<Peer> {
        let host =
            u8::try_from(index / PEERS_PER_ADDRESS).context("that many peers have no addresses here")?;
        let socket = udp::bind(Ipv4Addr::new(127, 0, host, 1))?;
        socket.connect(operator.address)?;
        socket.set_read_timeout(Some(CONTACT_TIMEOUT))?;
        let ends = Ends { network: operator.network, sender: self.id, receiver: operator.id };
        let clock = Clock::new();
        let open = |key: &[u8; 32], rng: &mut ChaCha20Rng| {
            SendContext::open(ends, &self.agreement, key, clock.now().unix, &Real, rng)
                .map_err(|_| anyhow!("a context cannot be opened"))
        };
        let mut context = open(receiver, rng)?;
        let mut cookie: Option<[u8; COOKIE_SIZE]> = None;
        let (request, mut buffer) = (Request::Ping, [0; MAX_DATAGRAM + 1]);
        for _ in 0..MAX_ATTEMPTS {
            let (time, introduction) = (clock.now().unix, Some(self.introduction.clone()));
            let class = request.class();
            let sealed =
                context.seal_long(class, &request.encode(), introduction, cookie, time, (&Real, rng));
            socket.send(&sealed.map_err(|_| anyhow!("a Ping cannot be sealed"))?.datagram)?;
            // Silence means that it is sent once more.
            let Ok(length) = socket.recv(&mut buffer) else { continue };
            match Packet::parse(buffer.get(..length).unwrap_or_default()) {
                // What does not open answers what was sent before a hint.
                Ok(Packet::Reply { header, aad, sealed }) => {
                    if context.open_reply(&header, aad, sealed, &Real).is_ok() {
                        return Ok(Peer { socket, context });
                    }
                }
                Ok(Packet::Hint(hint)) => match hint.reason {
                    HintReason::Cookie(shown) => cookie = Some(shown),
                    HintReason::StaleKey(statement) => {
                        let statement = KeyStatement::from_bytes(&statement);
                        *receiver = statement.context("the operator states no key")?.key;
                        context = open(receiver, rng)?;
                        cookie = None;
                    }
                    HintReason::NeedIntroduction | HintReason::NeedLong => {}
                },
                Ok(Packet::Long { .. } | Packet::Short { .. }) | Err(_) => {}
            }
        }
        bail!("the operator does not answer a first contact")
    }
}

/// A member that the operator knows.
struct Peer {
    socket: UdpSocket,
    context: SendContext,
}

/// Members that the operator knows.
struct Crowd {
    peers: Vec<Peer>,
    rng: ChaCha20Rng,
    contacts_per_second: f64,
    contact_cpu_us: f64,
}

impl Crowd {
    /// Returns how many bytes a Ping and its answer have.
    fn size(&self) -> usize {
        padded(&Request::Ping).len() + SHORT_OVERHEAD
    }

    /// Asks for so long what `next` says.
    fn flood(&mut self, length: Duration, next: &mut dyn FnMut() -> Request) -> Result<Count> {
        let (sockets, contexts): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.peers).into_iter().map(|peer| (peer.socket, peer.context)).unzip();
        let mut talk =
            Sealed { contexts, next, asked: Request::Ping.number(), clock: Clock::new(), rng: &mut self.rng };
        let count = udp::flood(&sockets, length, &mut talk);
        self.peers = sockets
            .into_iter()
            .zip(talk.contexts)
            .map(|(socket, context)| Peer { socket, context })
            .collect();
        count
    }
}

/// Returns the plaintext of a request, so long that its answer fits into as many bytes (Rule 4.2).
fn padded(request: &Request) -> Vec<u8> {
    let mut plaintext = request.encode();
    let wanted = request.reply_size().min(MAX_DATAGRAM).saturating_sub(SHORT_OVERHEAD);
    plaintext.resize(plaintext.len().max(wanted), 0);
    plaintext
}

/// Sealed requests of the short form; answers are opened and read.
struct Sealed<'a> {
    contexts: Vec<SendContext>,
    next: &'a mut dyn FnMut() -> Request,
    /// The command that was asked last, as they all are.
    asked: u8,
    clock: Clock,
    rng: &'a mut ChaCha20Rng,
}

impl Talk for Sealed<'_> {
    fn ask(&mut self, peer: usize, datagram: &mut Vec<u8>) -> Result<()> {
        let context = self.contexts.get_mut(peer).context("there is no such peer")?;
        let request = (self.next)();
        self.asked = request.number();
        let (class, time) = (request.class(), self.clock.now().unix);
        let sealed = context.seal_short(class, &padded(&request), time, (&Real, self.rng));
        *datagram = sealed.map_err(|_| anyhow!("a request cannot be sealed"))?.datagram;
        debug_assert!(datagram.len() > TAG_SIZE, "a sealed datagram has a tag");
        Ok(())
    }

    fn is_answer(&mut self, peer: usize, datagram: &[u8]) -> bool {
        let Ok(Packet::Reply { header, aad, sealed }) = Packet::parse(datagram) else { return false };
        let Some(context) = self.contexts.get(peer) else { return false };
        let Ok(plaintext) = context.open_reply(&header, aad, sealed, &Real) else { return false };
        let Ok(reply) = Reply::decode(&plaintext) else { return false };
        // What is asked for is there.
        reply.answers(self.asked) && !matches!(reply, Reply::Node(None) | Reply::NodeInfo(None))
    }
}
