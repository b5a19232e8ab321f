//! A node from its start to its end.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use peerage_client::local::EventDetail;
use peerage_proto::carrier::Carrier;
use peerage_proto::endpoint;
use peerage_proto::node::{Answer, Command, Config, Elections, Input, Node, SuperConfig};
use peerage_proto::relay;
use peerage_proto::session::{self, Budget};
use peerage_wire::crypto::Real;
use peerage_wire::id::{Mac, NodeId};
use peerage_wire::record::{DomainKeyBody, OperatorBody, OperatorState, Record, Table};
use peerage_wire::time::Now;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::backend::Shell;
use crate::carrier::{self, Intake, Streams, TlsIntake};
use crate::clock::Clock;
use crate::connect::Connector;
use crate::data::{DataDir, DataError, NodeKeys};
use crate::driver::{Driver, Inbox, Lent, NodeHandle};
use crate::enrol::{self, EnrolFailure};
use crate::fitness::{self, Circumstances};
use crate::lan::{Beacons, Lan};
use crate::lending::{self, Lending, TooLittle};
use crate::link::{LinkConfig, Links};
use crate::local_api;
use crate::mapping::Mappings;
use crate::membership::{Membership, Pending};
use crate::relay::{Legs, OwnLegs};
use crate::store::{Contents, NotWritten, Store, StoreError};
use crate::tls::Tls;
use crate::tunnel::Tunnels;
use crate::tunnel::forward::Dialer;
use crate::udp::{BindError, Datagrams, Ports};

/// What all tunnels of a node may keep in memory together, in bytes. Raised, a small computer swaps; lowered, many fast
/// tunnels share smaller windows.
const SESSION_BUDGET_BYTES: u64 = 256 << 20;

/// How often the operator is asked whether an administrator has approved.
const APPROVAL_INTERVAL: Duration = Duration::from_secs(30);

/// How long leaving may take before it is done without the operator.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(20);

/// The most events of the machine that wait to be told.
const MAX_EVENTS: usize = 256;

/// How a node is run.
#[derive(Clone, Debug)]
pub struct UpConfig {
    /// The data directory, made by joining.
    pub data: PathBuf,
    /// The address for messages (UDP) and links (TCP); absent: any free port on all addresses.
    pub listen: Option<SocketAddr>,
    /// Where else to take TCP connections, such as the web's ports, which firewalls leave open; for super-nodes.
    pub also_listen: Vec<SocketAddr>,
    /// Addresses under which others reach this node, beside those that it finds itself.
    pub advertise: Vec<SocketAddr>,
    /// Whether it may serve devices to others, if the operator permits it too.
    pub tunnel_role: bool,
    /// What its owner lends to the network, as far as `peerage super` has not said something else since.
    pub lending: Lending,
    /// What its owner says about battery and network, on which it is no super-node.
    pub circumstances: Circumstances,
    /// How it agrees with others on the LAN which of them serve.
    pub lan: LanConfig,
    /// Whether routers may be asked to forward the port, where others are to reach this computer.
    pub port_mapping: bool,
    /// Whether many ports may be opened or tried where those of one end cannot be known, which firewalls take for a scan.
    pub wide_checks: bool,
    /// By what messages may travel, UDP alone or beside connections.
    pub carriers: Vec<Carrier>,
    /// How the administrator calls the place where it stands, if no gateway tells.
    pub place: Option<String>,
    /// Whether the network lives on this machine alone, as a demonstration or a test: only then may loopback be dialled.
    pub one_machine: bool,
    /// On one machine: where devices are, as there is no network on which they could be found.
    pub neighbours: BTreeMap<Mac, IpAddr>,
    /// How TCP connections to other computers of the network are opened.
    pub connector: Connector,
}

/// How a node agrees with others on its LAN which of them serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LanConfig {
    /// Whether it may send beacons by multicast; without them an outage of a tunnel-node lasts minutes instead of seconds.
    pub multicast: bool,
    /// The UDP port of the beacons, the same at all nodes of a domain.
    pub port: u16,
    /// How many nodes serve at a location, the same at all nodes of a domain; at least one.
    pub tunnel_nodes: usize,
}

impl Default for LanConfig {
    fn default() -> Self {
        let tunnel_nodes = peerage_proto::election::DEFAULT_SEATS;
        Self { multicast: true, port: peerage_wire::beacon::PORT, tunnel_nodes }
    }
}

/// What a node says when it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
}

/// Why a node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk refused.
    #[error(transparent)]
    NotWritten(#[from] NotWritten),
    /// It has not joined.
    #[error("this computer has not joined a network; run `peerage join TOKEN` first")]
    NotJoined,
    /// The records that make it a member are not all there.
    #[error("the membership in {} is incomplete; run `peerage leave` and join again", .path.display())]
    Incomplete {
        /// The data directory.
        path: PathBuf,
    },
    /// The awaited approval was refused.
    #[error(transparent)]
    Enrol(#[from] EnrolFailure),
    /// The ports cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The local API cannot be served.
    #[error(transparent)]
    Api(#[from] local_api::BindError),
    /// What is lent is of no use.
    #[error("what this computer lends is of no use: {0}")]
    Lending(#[from] TooLittle),
    /// Another port for TCP cannot be had.
    #[error("cannot take connections at {address}, which `also_listen` names: {source}")]
    AlsoListen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// TLS refuses the key.
    #[error("TLS cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// All that a node is before it serves.
struct Member {
    data: DataDir,
    store: Store,
    contents: Contents,
    keys: NodeKeys,
    membership: Membership,
}

/// Runs a node until `shutdown` is ready, or the local API says so. Calls `ready` once, when it serves.
///
/// # Errors
/// If it cannot begin; each error says what to do.
pub async fn run(
    config: UpConfig,
    ready: impl FnOnce(Ready) + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), RunError> {
    let mut shutdown = std::pin::pin!(shutdown);
    let member = tokio::select! {
        () = &mut shutdown => return Ok(()),
        member = member(&config.data, &config.connector) => member?,
    };
    let clock = Clock::new();
    let id = member.membership.node_id(&member.keys);
    let ports = Ports::bind_apart(config.listen)?;
    let local = ports.local;
    let (links, link_events) = Links::new(link_config(&member, &config, &clock)?);
    let (legs, leg_events) = OwnLegs::new(config.connector.clone());
    let socket = local_api::Socket::bind(member.data.path())?;
    let (streams, stream_news) = Streams::new(config.connector.clone());
    let (told, lent, leg_news) = lend(&member, &config, (&clock, &streams))?;
    let datagrams = open_ports(&links, &lent, (ports, &config)).await?;
    let node = Node::new(node_config(&member, &config, (local, lent.config()))?, seed(), clock.now());

    let (handle, requests) = NodeHandle::new();
    let tunnels = Tunnels::default();
    let dialer = Dialer::new(handle.clone(), (links.clone(), legs.clone()), tunnels.clone());
    let (ending, mut end) = watch::channel(false);
    let membership = Arc::new(member.membership);
    let circumstances = circumstances(&config);
    let unfit = circumstances.unfit();
    let watching = fitness::watch(handle.clone(), circumstances, unfit.clone());
    let known = ((vec![local], config.advertise.clone()), (told, config.lending));
    let (asked, ended) = ((handle.clone(), dialer), (ending.clone(), config.connector.clone()));
    let shell = Arc::new(Shell::new(asked, Arc::clone(&membership), known, ended));
    let (on_event, events) = event_queue();
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&shell).relay(events));
    tasks.spawn(watching);
    let api = serve_api(socket, &shell, ending.subscribe());
    let mut driver = Driver {
        node,
        clock: clock.clone(),
        datagrams,
        streams,
        store: member.store,
        links,
        legs,
        lent,
        tunnels,
        lan: Lan::new(),
        beacons: Beacons::new(config.lan.port),
        mappings: mappings(&config, handle, local.port()),
        one_machine: config.one_machine.then_some(config.neighbours),
        membership: Arc::clone(&membership),
        keys: Arc::new(member.keys),
        operators: operators(&member.contents),
        connector: config.connector.clone(),
        on_event,
        jobs: JoinSet::new(),
        asked: BTreeMap::new(),
        answers: BTreeMap::new(),
        next_task: 0,
    };
    driver.begin(unfit).await;
    ready(Ready { id, name: membership.name.clone(), listen: vec![local] });
    let until = first(shutdown, async { drop(end.wait_for(|is_ending| *is_ending).await) });
    let farewell = || shell.publish(EventDetail::ShuttingDown);
    let inbox = Inbox { requests, link_events, leg_events, leg_news, stream_news };
    Box::pin(driver.run(inbox, until, farewell)).await;
    ending.send_replace(true);
    // It ends within seconds; should it have panicked, the log says so already.
    let _ = api.await;
    // Last, so that nobody else uses the directory before everything is closed.
    drop(member.data);
    Ok(())
}

fn link_config(member: &Member, config: &UpConfig, clock: &Clock) -> Result<LinkConfig, rustls::Error> {
    let budget = Budget::new(SESSION_BUDGET_BYTES);
    Ok(LinkConfig {
        local: member.membership.node_id(&member.keys),
        tls: Tls::new(&member.keys.identity)?,
        session: session::Config { max_window: session::WINDOW_MAX, budget },
        clock: clock.clone(),
        connector: config.connector.clone(),
    })
}

/// Lets links in, as far as the door is open, and returns the way of messages.
async fn open_ports(
    links: &Links,
    lent: &Lent,
    (Ports { udp, strangers, tcp, local }, config): (Ports, &UpConfig),
) -> Result<Datagrams, RunError> {
    let failed = |source| BindError::Io { address: local, source };
    let mut listeners = vec![tcp];
    for address in config.also_listen.iter().copied() {
        let bound = TcpListener::bind(address).await;
        listeners.push(bound.map_err(|source| RunError::AlsoListen { address, source })?);
    }
    links.serve_behind(lent.door(), listeners);
    let (datagrams, socket) = Datagrams::beside_quic((udp, strangers), config.wide_checks).map_err(failed)?;
    links.use_quic(socket, Some(lent.door())).map_err(failed)?;
    Ok(datagrams)
}

/// Puts together what the owner lends: what commands have said, and what comes of it.
fn lend(
    member: &Member,
    config: &UpConfig,
    (clock, streams): (&Clock, &Streams),
) -> Result<(Lending, Lent, mpsc::Receiver<relay::Input>), RunError> {
    config.lending.check()?;
    let told = Lending::load(&member.contents);
    let lent = lending::possible(told.or(config.lending).config());
    let (legs, leg_news) = Legs::new(lending::caps(&lent), clock.clone());
    if let Some(day) = lending::relay_day(&member.contents) {
        legs.resume_day(day);
    }
    let serves_devices = config.tunnel_role && may_serve(member);
    let intake = TlsIntake::new(Intake::new(streams.clone(), legs.clone()))?;
    Ok((told, Lent::new(legs, intake, serves_devices, lent), leg_news))
}

/// Waits until one of both is ready.
async fn first(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    tokio::select! {
        () = one => {}
        () = other => {}
    }
}

/// On one machine there is no router.
fn mappings(config: &UpConfig, node: NodeHandle, port: u16) -> Option<Mappings> {
    (config.port_mapping && !config.one_machine).then(|| Mappings::new(node, port))
}

/// On one machine the rest of it is no part of the network.
const fn circumstances(config: &UpConfig) -> Circumstances {
    if config.one_machine { Circumstances::FIT } else { config.circumstances }
}

fn serve_api(
    socket: local_api::Socket,
    shell: &Arc<Shell>,
    mut ending: watch::Receiver<bool>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(local_api::serve(socket, Arc::clone(shell), async move {
        // A sender that is gone means the same.
        drop(ending.wait_for(|is_ending| *is_ending).await);
    }))
}

/// Opens the data directory; asks for what is missing.
async fn member(path: &std::path::Path, connector: &Connector) -> Result<Member, RunError> {
    let data = DataDir::open(path)?;
    let keys = data.keys()?.ok_or(RunError::NotJoined)?;
    let (store, mut contents) = Store::open(&data.store_path())?;
    let membership = match (Membership::load(&contents), Pending::load(&contents)) {
        (Some(membership), _) => membership,
        (None, Some(pending)) => {
            await_approval(&pending, (&keys, connector), (&store, &mut contents)).await?
        }
        (None, None) => return Err(RunError::NotJoined),
    };
    let now = Clock::new().now().unix;
    let own = membership.own_record(&contents, &keys);
    let has_expired = own.is_none_or(|(record, _)| !record.is_valid_at(now));
    if has_expired {
        let operators = operators(&contents);
        match enrol::renew(&membership, &keys, &operators, connector).await {
            Ok(Some(admitted)) => take(admitted, (&store, &mut contents)).await?,
            Ok(None) => {}
            // The node goes on and says so; its clock may be what is wrong.
            Err(error) => tracing::warn!(%error, "the membership has expired and was not renewed"),
        }
    }
    Ok(Member { data, store, contents, keys, membership })
}

async fn await_approval(
    pending: &Pending,
    (keys, connector): (&NodeKeys, &Connector),
    (store, contents): (&Store, &mut Contents),
) -> Result<Membership, RunError> {
    let token = pending.token.parse().map_err(|_damaged| RunError::NotJoined)?;
    loop {
        match enrol::enrol_with_token(pending, &token, keys, connector).await {
            Ok(Some(admitted)) => {
                let membership = admitted.membership.clone();
                take(admitted, (store, contents)).await?;
                return Ok(membership);
            }
            Ok(None) => tracing::info!("an administrator has to approve this computer first"),
            Err(EnrolFailure::Unreachable(attempts)) => {
                tracing::warn!(%attempts, "no operator could be reached; it is tried again");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(APPROVAL_INTERVAL).await;
    }
}

/// Writes what an operator has sent, and works on with it.
async fn take(
    admitted: crate::membership::Admitted,
    (store, contents): (&Store, &mut Contents),
) -> Result<(), NotWritten> {
    let records = admitted.records.clone();
    store.write(admitted.membership.into_batch(admitted.records)).await?;
    let ids: Vec<_> = records.iter().map(|record| record.header().id()).collect();
    contents.records.retain(|record| !ids.contains(&record.header().id()));
    contents.records.extend(records);
    Ok(())
}

fn may_serve(member: &Member) -> bool {
    let own = member.membership.own_record(&member.contents, &member.keys);
    own.is_some_and(|(_, body)| body.roles.tunnel)
}

fn node_config(
    member: &Member,
    config: &UpConfig,
    (local, lent): (SocketAddr, SuperConfig),
) -> Result<Config, RunError> {
    let Member { data, contents, keys, membership, .. } = member;
    let incomplete = || RunError::Incomplete { path: data.path().to_owned() };
    let id = membership.node_id(keys);
    let (record, _) = membership.own_record(contents, keys).ok_or_else(incomplete)?;
    let mut key_records = contents.of(Table::DomainKey).map(|record| (record.header(), record));
    let key_record =
        key_records.find(|(header, _)| header.domain == id.domain && header.key == id.record_key());
    let key_record = key_record.map(|(_, record)| record);
    let sealed = DomainKeyBody::read(key_record.ok_or_else(incomplete)?).map_err(|_| incomplete())?;
    let domain_keys = sealed.open(&membership.network(), id, &keys.receiving).map_err(|_| incomplete())?;
    Ok(Config {
        endpoint: endpoint::Config {
            network: membership.network(),
            crypto: Arc::new(Real),
            identity: keys.identity.clone(),
            id,
            record: record.bytes().clone(),
            asks_introduction: false,
        },
        root: membership.root,
        receiving: keys.receiving.clone(),
        keys: domain_keys,
        statements: membership.statement.into_iter().collect(),
        records: contents.records.clone(),
        port: local.port(),
        advertise: config.advertise.clone(),
        serves: config.tunnel_role,
        elections: elections(config),
        eager: true,
        place: config.place.clone(),
        one_machine: config.one_machine,
        carriers: config.carriers.clone(),
        wide_checks: config.wide_checks,
        known_carriers: carrier::kept(contents),
        super_role: lent,
        bound: config.listen.map(|listen| listen.ip()).filter(|ip| !ip.is_unspecified()),
    })
}

/// On one machine there is no LAN on which anybody could be told, and nobody to wait for.
fn elections(config: &UpConfig) -> Elections {
    let usual =
        Elections { seats: config.lan.tunnel_nodes, multicast: config.lan.multicast, ..Elections::default() };
    if config.one_machine { Elections { multicast: false, spread: Duration::ZERO, ..usual } } else { usual }
}

/// Returns where the operators are that are known.
pub(crate) fn operators(contents: &Contents) -> Vec<SocketAddr> {
    let bodies = contents.of(Table::OperatorNode).filter_map(|record| OperatorBody::read(record).ok());
    bodies.filter(|body| body.state == OperatorState::Active).flat_map(|body| body.addresses).collect()
}

fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    rand_core::Rng::fill_bytes(&mut enrol::rng(), &mut seed);
    seed
}

type OnEvent = Box<dyn Fn(peerage_proto::node::Event) + Send>;

/// Makes the way of events out of the loop, which never waits for those who read them.
fn event_queue() -> (OnEvent, mpsc::Receiver<peerage_proto::node::Event>) {
    let (sender, events) = mpsc::channel(MAX_EVENTS);
    let on_event = move |event| {
        if sender.try_send(event).is_err() {
            tracing::warn!("an event of the node was not told to anybody");
        }
    };
    (Box::new(on_event), events)
}

impl Driver {
    /// Tells the node its circumstances and the networks, which its first decisions need.
    async fn begin(&mut self, unfit: Option<String>) {
        self.node.handle(fitness::input(unfit), self.clock.now());
        let interfaces = self.lan.snapshot().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the computer's networks are not known");
            Vec::new()
        });
        let interfaces = crate::driver::usable(interfaces, self.one_machine.is_some());
        self.networks(&interfaces);
        self.node.handle(Input::Networks(interfaces), self.clock.now());
    }
}

/// Tells the operator, if it answers, that this computer leaves; then erases its keys and records. Returns whether the
/// operator has confirmed.
///
/// # Errors
/// If the data directory is in use or cannot be erased.
pub async fn leave(path: &std::path::Path) -> Result<bool, RunError> {
    let data = DataDir::open(path)?;
    let confirmed = match (data.keys(), Store::open(&data.store_path())) {
        (Ok(Some(keys)), Ok((store, contents))) => match Membership::load(&contents) {
            Some(membership) => {
                let mut member = Member { data, store, contents, keys, membership };
                forget_part(&mut member);
                let confirmed = say_goodbye(&member).await.unwrap_or(false);
                member.data.erase()?;
                return Ok(confirmed);
            }
            None => false,
        },
        // What is damaged can still be erased.
        (_, _) => false,
    };
    data.erase()?;
    Ok(confirmed)
}

/// Leaves out what makes the node a super-node: it has not served lately, so it has nothing to hand over.
fn forget_part(member: &mut Member) {
    let key = member.membership.node_id(&member.keys).record_key();
    let is_assignment =
        |record: &Record| record.header().table == Table::SuperNode && record.header().key == key;
    member.contents.records.retain(|record| !is_assignment(record));
}

async fn say_goodbye(member: &Member) -> Result<bool, RunError> {
    let clock = Clock::new();
    let config = UpConfig {
        data: PathBuf::new(),
        listen: None,
        also_listen: Vec::new(),
        advertise: Vec::new(),
        tunnel_role: false,
        lending: Lending::default(),
        circumstances: Circumstances::FIT,
        lan: LanConfig::default(),
        port_mapping: false,
        wide_checks: false,
        carriers: Carrier::ALL.to_vec(),
        place: None,
        one_machine: false,
        neighbours: BTreeMap::new(),
        connector: Connector::default(),
    };
    let ports = Ports::bind(None)?;
    let mut datagrams = Datagrams::new(ports.udp);
    let mut node =
        Node::new(node_config(member, &config, (ports.local, config.lending.config()))?, seed(), clock.now());
    node.handle(Input::Networks(Lan::new().snapshot().await.unwrap_or_default()), clock.now());
    let task = peerage_proto::node::TaskId(0);
    node.handle(Input::Command { task, command: Command::Leave }, clock.now());
    let (streams, mut news) = Streams::new(config.connector.clone());
    let asked = async {
        loop {
            if let Some(confirmed) = goodbye_outputs(&mut node, (&datagrams, &streams), clock.now()) {
                return confirmed;
            }
            let left = node.poll_timeout().map_or(LEAVE_TIMEOUT, |(at, _)| at - clock.mono());
            tokio::select! {
                (remote, payload) = datagrams.receive() => {
                    node.handle(Input::Datagram { remote, payload }, clock.now());
                }
                Some(news) = news.recv() => node.handle(Input::Stream(news), clock.now()),
                () = tokio::time::sleep(left) => node.handle(Input::Timeout, clock.now()),
            }
        }
    };
    Ok(tokio::time::timeout(LEAVE_TIMEOUT, asked).await.unwrap_or(false))
}

/// Does what a node that leaves asks for: only to send. Returns the answer when there is one.
fn goodbye_outputs(node: &mut Node, (datagrams, streams): (&Datagrams, &Streams), now: Now) -> Option<bool> {
    use peerage_proto::node::Output;
    while let Some(output) = node.poll_output() {
        match output {
            Output::Transmit { remote, payload } => datagrams.send(remote, payload),
            Output::Stream(order) => streams.apply(order),
            Output::Answer { answer: Answer::Left { confirmed }, .. } => return Some(confirmed),
            Output::Answer { .. } => return Some(false),
            // What it learns on the way out is not kept.
            Output::Store { task, .. } => node.handle(Input::Stored { task, ok: true }, now),
            Output::AnswerHandshake { task, .. } => {
                node.handle(Input::HandshakeAnswered { task, flight: None }, now);
            }
            Output::Multicast { .. }
            | Output::TransmitWidely { .. }
            | Output::BeginHandshake { .. }
            | Output::FindDevice { .. }
            | Output::ProvePin { .. }
            | Output::ServeTunnel { .. }
            | Output::CloseTunnel { .. }
            | Output::Renew
            | Output::MapPorts(_)
            | Output::KeepCarriers(_)
            | Output::Leg(_)
            | Output::OwnLeg { .. }
            | Output::HeadChanged(_)
            | Output::Event(_) => {}
        }
    }
    None
}
