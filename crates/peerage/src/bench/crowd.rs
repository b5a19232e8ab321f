//! Members of a network that ask its operator, as they would ask a super-node.
//!
//! They exist for the bench alone: their records are signed here with the key of the bench's own operator, because joining one by
//! one is limited on purpose. Each has a port and a sealing key of its own, and opens its context as any stranger would: with an
//! introduction, and with a cookie when the operator wants one.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use chacha20::ChaCha20Rng;
use peerage_node::clock::Clock;
use peerage_wire::{
    crypto::{Real, TAG_SIZE},
    id::{Domain, NetworkId, NodeId, from_hex},
    intro::{Introduction, KeyStatement},
    keys::{AgreementKey, IdentityKey},
    limits::MAX_DATAGRAM,
    message::{Reply, Request},
    packet::{COOKIE_SIZE, Class, HintReason, Packet, SHORT_OVERHEAD},
    record::{Draft, Header, NodeBody, Roles, Table},
    seal::{Ends, SendContext},
    time::UnixTime,
};
use rand_core::SeedableRng as _;

use super::{
    machine::cpu,
    network::Network,
    udp::{self, Count, Talk},
};

/// How long the answer to a first contact is waited for before it is sent again, and how often it is sent.
const CONTACT_TIMEOUT: Duration = Duration::from_millis(500);
const MAX_ATTEMPTS: u32 = 20;

/// How long a member's record and key are good: the bench takes minutes.
const LIFE: Duration = Duration::from_secs(6 * 3_600);

/// Members on one address of this computer: the operator limits what it spends on strangers of one address.
const PEERS_PER_ADDRESS: usize = 50;

/// The domain of the members, which the operator does not know: it would tell members of one that it knows what is new there.
pub(super) const DOMAIN: Domain = Domain(7);

/// Makes a generator of random numbers from the system's randomness, which would cost a call each time.
pub(super) fn rng() -> Result<ChaCha20Rng> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|_| anyhow!("the system has no randomness"))?;
    Ok(ChaCha20Rng::from_seed(seed))
}

/// The bench's operator, as its members see it, and the key that makes members.
pub(super) struct Operator {
    network: NetworkId,
    pub(super) domain: Domain,
    pub(super) id: NodeId,
    identity: IdentityKey,
    pub(super) address: SocketAddr,
}

impl Operator {
    pub(super) fn find(network: &Network) -> Result<Self> {
        let text = fs::read_to_string(network.operator.computer.data().join("operator.key"))?;
        let seed = text.lines().find_map(|line| line.strip_prefix("identity "));
        let seed = seed.context("the operator's key file has another form")?;
        let identity = IdentityKey::from_seed(&from_hex(seed).map_err(|_| anyhow!("the key is no key"))?);
        let id = from_hex(&network.network_id).map_err(|_| anyhow!("the network id is none"))?;
        Ok(Self {
            network: NetworkId(id),
            domain: DOMAIN,
            id: identity.node_id(Domain::OPERATORS),
            identity,
            address: network.address,
        })
    }

    /// Returns where the member of this number asks from: many on loopback addresses, a few on any other network.
    fn place_of(&self, index: usize) -> Result<Ipv4Addr> {
        if !self.address.ip().is_loopback() {
            return Ok(Ipv4Addr::UNSPECIFIED);
        }
        let host = u8::try_from(index / PEERS_PER_ADDRESS);
        Ok(Ipv4Addr::new(127, 0, host.context("that many peers have no addresses here")?, 1))
    }

    /// Returns what a member says first, with its introduction and without a cookie.
    pub(super) fn first_word(&self) -> Result<Vec<u8>> {
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
    pub(super) fn crowd(&self, count: usize, responder: u32) -> Result<Crowd> {
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
        let id = identity.node_id(operator.domain);
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
        let socket = udp::bind(operator.place_of(index)?)?;
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
pub(super) struct Crowd {
    peers: Vec<Peer>,
    rng: ChaCha20Rng,
    pub(super) contacts_per_second: f64,
    pub(super) contact_cpu_us: f64,
}

impl Crowd {
    /// Returns how many bytes a Ping and its answer have.
    pub(super) fn ping_size() -> usize {
        padded(&Request::Ping).len() + SHORT_OVERHEAD
    }

    /// Returns how many they are.
    pub(super) const fn len(&self) -> usize {
        self.peers.len()
    }

    /// Has the first of them ask for so long without waiting for answers: one thread asks, another counts what comes back.
    pub(super) fn flood_openly(&mut self, length: Duration, request: &Request) -> Result<Count> {
        let Self { peers, rng, .. } = self;
        let Peer { socket, context } = peers.first_mut().context("nobody asks")?;
        let (answers, asked) = (context.clone(), request.number());
        let (class, plaintext, clock) = (request.class(), padded(request), Clock::new());
        let ask = |datagram: &mut Vec<u8>| {
            *datagram = seal(context, class, &plaintext, &clock, rng)?;
            Ok(())
        };
        udp::flood_openly(socket, length, ask, |datagram| is_answer(&answers, asked, datagram))
    }

    /// Asks for so long what `next` says, with a number of requests under way.
    pub(super) fn flood(&mut self, length: Duration, next: &mut dyn FnMut() -> Request) -> Result<Count> {
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
        *datagram = seal(context, request.class(), &padded(&request), &self.clock, self.rng)?;
        Ok(())
    }

    fn is_answer(&mut self, peer: usize, datagram: &[u8]) -> bool {
        self.contexts.get(peer).is_some_and(|context| is_answer(context, self.asked, datagram))
    }
}

/// Seals a request in the short form.
fn seal(
    context: &mut SendContext,
    class: Class,
    plaintext: &[u8],
    clock: &Clock,
    rng: &mut ChaCha20Rng,
) -> Result<Vec<u8>> {
    let sealed = context.seal_short(class, plaintext, clock.now().unix, (&Real, rng));
    let datagram = sealed.map_err(|_| anyhow!("a request cannot be sealed"))?.datagram;
    debug_assert!(datagram.len() > TAG_SIZE, "a sealed datagram has a tag");
    Ok(datagram)
}

/// Returns whether this answers what was asked, and holds what was asked for.
fn is_answer(context: &SendContext, asked: u8, datagram: &[u8]) -> bool {
    let Ok(Packet::Reply { header, aad, sealed }) = Packet::parse(datagram) else { return false };
    let Ok(plaintext) = context.open_reply(&header, aad, sealed, &Real) else { return false };
    let Ok(reply) = Reply::decode(&plaintext) else { return false };
    reply.answers(asked) && !matches!(reply, Reply::Node(None) | Reply::NodeInfo(None) | Reply::Head(None))
}
