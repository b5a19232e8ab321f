//! Running an operator: what has to be there first, the tasks, and the end.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use peerage_client::admin::ADMIN_FILE;
use peerage_node::carrier::{Intake, Streams};
use peerage_node::clock::Clock;
use peerage_node::connect::Connector;
use peerage_node::relay::{self, Legs};
use peerage_node::tls::Tls;
use peerage_node::udp::{Batches, BindError, Ports, Strangers};
use peerage_proto::endpoint;
use peerage_proto::operator::{Config, Input, Operator};
use peerage_proto::relay::Limits;
use peerage_wire::crypto::Real;
use peerage_wire::id::{NetworkId, NodeId, from_hex};
use peerage_wire::keys::{IdentityKey, network_id};
use peerage_wire::record::{OperatorBody, Record};
use peerage_wire::time::{Now, UnixTime};
use rustls::ServerConfig;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time;
use tokio_rustls::TlsAcceptor;

use crate::admin::{self, Admin};
use crate::check::Checker;
use crate::config::{CertificateFiles, Ready, RelayConfig, RunConfig, SpyConfig};
use crate::data::{DataDir, DataError, LEDGER, OPERATOR_KEY, OperatorKeys, ROOT_KEY};
use crate::driver::{Driver, MAX_ASKED};
use crate::enrol::{self, Enroller, Published};
use crate::init::{AddressError, advertised, free_port, keep_advertised, setting};
use crate::ledger::{
    Change, Ledger, LedgerError, LedgerHandle, LedgerThread, MAX_CHANGES, OperatorDraft, OperatorRecordError,
    Signer, Tx, Upkeep, random,
};
use crate::spy_ports::SpyPorts;
use crate::tls::{self, CertificateError};
use peerage_node::http::until_true;

/// How often to look for records at half of their life. They live for a month, so once an hour is often enough.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(3_600);

/// Within how many intervals between visits a domain gets its spies after its first member has joined: two hours.
const SPY_SPREAD: u32 = 8;

/// How long tasks may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an operator cannot run, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data directory is not usable.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The certificate is not usable.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The addresses to advertise are not usable.
    #[error(transparent)]
    Addresses(#[from] AddressError),
    /// The ledger is not usable.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// `init` did not come to its end.
    #[error(
        "the ledger is unfinished: `operator init` was interrupted; make a new operator in another directory"
    )]
    Unfinished,
    /// The port for messages lacks what it needs.
    #[error("the system does not let datagrams be read many at a time: {0}")]
    Datagrams(std::io::Error),
    /// The ledger's thread cannot start.
    #[error("cannot start the ledger's thread: {0}")]
    Thread(std::io::Error),
    /// The identity key cannot be used for TLS.
    #[error("the operator's key cannot be used for TLS: {0}")]
    Tls(rustls::Error),
    /// The port for messages and joining cannot be had.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// Another port for TCP cannot be had.
    #[error("cannot take connections at {address}, which `also_listen` names: {source}")]
    AlsoListen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The admin API cannot listen.
    #[error("the admin API cannot listen on {address}: {source}")]
    AdminListen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The address of the admin API is not on this computer.
    #[error("the admin API listens on loopback addresses only, and {0} is none")]
    AdminNotLoopback(SocketAddr),
    /// The operator's record must be signed anew, and the root key is not there.
    #[error(
        "{why}, so its record must be signed by the root; put {ROOT_KEY} back into the data directory for this start"
    )]
    RootNeeded {
        /// Why it must be.
        why: &'static str,
    },
    /// A task ended by itself.
    #[error("the {0} has ended unexpectedly; the log says why")]
    Stopped(&'static str),
}

/// What the ledger says about the operator itself.
struct Settings {
    network: NetworkId,
    root: [u8; 32],
    operator: NodeId,
    listen: SocketAddr,
    advertised: Vec<SocketAddr>,
    certificate: Option<CertificateFiles>,
}

/// Everything that is needed before the first task starts.
struct Prepared {
    data: DataDir,
    keys: OperatorKeys,
    signer: Signer,
    ledger: Ledger,
    settings: Settings,
    record: Record,
    tls: (Arc<ServerConfig>, [u8; 32]),
    start: Change,
    relay: RelayConfig,
    spies: SpyConfig,
}

/// Runs an operator until `shutdown` is ready. Calls `ready` once, when messages, joining nodes and the admin API are
/// served. Must be called within a tokio runtime with I/O and time enabled.
///
/// # Errors
/// If something that it needs is missing, damaged, in use or readable by others, or if a part of it ends by itself.
pub async fn run(
    config: RunConfig,
    ready: impl FnOnce(Ready) + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), RunError> {
    let (admin_listen, also_listen) = (config.admin_listen, config.also_listen.clone());
    let prepare = tokio::task::spawn_blocking(move || prepare(&config));
    let prepared = prepare.await.map_err(|_| RunError::Stopped("start"))??;
    let ports = Ports::bind_apart(Some(prepared.settings.listen))?;
    // Only its UDP half is used.
    let probe = Ports::bind(Some(SocketAddr::new(ports.local.ip(), 0)))?.udp;
    let mut others = Vec::new();
    for address in also_listen {
        let bound = TcpListener::bind(address).await;
        others.push(bound.map_err(|source| RunError::AlsoListen { address, source })?);
    }
    let admin = bind_admin(admin_listen).await?;
    serve(prepared, Sockets { ports, others, probe, admin }, ready, shutdown).await
}

struct Sockets {
    ports: Ports,
    /// Further ones for TCP alone.
    others: Vec<TcpListener>,
    /// From which super-nodes are called back.
    probe: UdpSocket,
    admin: TcpListener,
}

async fn bind_admin(listen: Option<SocketAddr>) -> Result<TcpListener, RunError> {
    let address = listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    if !address.ip().is_loopback() {
        return Err(RunError::AdminNotLoopback(address));
    }
    TcpListener::bind(address).await.map_err(|source| RunError::AdminListen { address, source })
}

fn prepare(config: &RunConfig) -> Result<Prepared, RunError> {
    let data = DataDir::open(&config.data)?;
    let keys = data.read_operator_keys()?;
    let root = data.read_root_key()?;
    let path = data.file(LEDGER);
    let mut settings = read_settings(&path, &keys)?;
    if root.as_ref().is_some_and(|root| root.public() != settings.root) {
        return Err(DataError::ForeignKey { path: data.file(ROOT_KEY) }.into());
    }
    let signer = Signer::new(settings.network, keys.identity.clone(), root);
    if signer.id != settings.operator {
        return Err(DataError::ForeignKey { path: data.file(OPERATOR_KEY) }.into());
    }
    settings.move_to(config)?;
    let mut ledger = Ledger::open(&path, signer.clone())?;
    let record = own_record(&mut ledger, &settings, &data, &keys)?;
    let certificate = config.certificate.as_ref().or(settings.certificate.as_ref());
    let tls = tls::server_config(&data, certificate)?;
    let read = |tx: &mut Tx<'_>| {
        let quarantine = tx.quarantined()?.into_iter().map(|node| (node, true)).collect();
        let (facts, records) = (tx.facts()?, tx.records()?);
        Ok::<_, LedgerError>(Change { facts, records, quarantine, spies: tx.spies()? })
    };
    let (start, _) = ledger.act(unix_now(), read)?;
    let (relay, spies) = (config.relay, config.spies.clone());
    Ok(Prepared { data, keys, signer, ledger, settings, record, tls, start, relay, spies })
}

fn read_settings(path: &std::path::Path, keys: &OperatorKeys) -> Result<Settings, RunError> {
    let nobody = Signer::new(NetworkId([0; 32]), keys.identity.clone(), None);
    let mut ledger = Ledger::open(path, nobody)?;
    let read = |tx: &mut Tx<'_>| {
        let get = |name| tx.meta(name);
        Ok::<_, LedgerError>((
            get(setting::ROOT)?.and_then(|text| from_hex(&text).ok()),
            get(setting::OPERATOR)?.and_then(|text| text.parse().ok()),
            get(setting::LISTEN)?.and_then(|text| text.parse().ok()),
            get(setting::ADVERTISED)?.and_then(|text| text.split(' ').map(|one| one.parse().ok()).collect()),
            get(setting::CERTIFICATE_CHAIN)?.zip(get(setting::CERTIFICATE_KEY)?),
        ))
    };
    let ((root, operator, listen, advertised, certificate), _) = ledger.act(unix_now(), read)?;
    let root: [u8; 32] = root.ok_or(RunError::Unfinished)?;
    let certificate =
        certificate.map(|(chain, key)| CertificateFiles { chain: chain.into(), key: key.into() });
    Ok(Settings {
        network: network_id(&root),
        root,
        operator: operator.ok_or(RunError::Unfinished)?,
        listen: listen.ok_or(RunError::Unfinished)?,
        advertised: advertised.ok_or(RunError::Unfinished)?,
        certificate,
    })
}

impl Settings {
    /// Takes over what this start is told about addresses.
    fn move_to(&mut self, config: &RunConfig) -> Result<(), RunError> {
        let asked = config.listen.unwrap_or(self.listen);
        let listen = free_port(asked).map_err(|source| BindError::Io { address: asked, source })?;
        let follows = self.advertised == [self.listen];
        if !config.advertise.is_empty() || (follows && listen != self.listen) {
            self.advertised = advertised(&config.advertise, listen)?;
        }
        self.listen = listen;
        Ok(())
    }
}

/// Returns the operator's own record, signed anew if it has ended or what it says has changed.
fn own_record(
    ledger: &mut Ledger,
    settings: &Settings,
    data: &DataDir,
    keys: &OperatorKeys,
) -> Result<Record, RunError> {
    let (kept, _) = ledger.act(unix_now(), |tx| tx.own_operator_record())?;
    let body = kept.as_ref().map(OperatorBody::read).transpose().map_err(LedgerError::from)?;
    let foreign = |body: &OperatorBody| body.enrolment != *keys.enrolment.public();
    if body.as_ref().is_some_and(foreign) {
        return Err(DataError::ForeignKey { path: data.file(OPERATOR_KEY) }.into());
    }
    let why = match (kept, body) {
        (Some(record), Some(body)) if body.addresses == settings.advertised => return Ok(record),
        (Some(_), _) => "the advertised addresses have changed",
        (None, _) => "the operator's record has ended",
    };
    let draft = OperatorDraft { enrolment: *keys.enrolment.public(), addresses: settings.advertised.clone() };
    let remake = |tx: &mut Tx<'_>| {
        keep_advertised(tx, &draft.addresses)?;
        tx.make_operator_record(&draft)
    };
    match ledger.act(unix_now(), remake) {
        Ok((record, _)) => Ok(record),
        Err(OperatorRecordError::NoRoot) => Err(RunError::RootNeeded { why }),
        Err(OperatorRecordError::Ledger(error)) => Err(error.into()),
    }
}

/// What the tasks share.
struct Parts {
    driver: Driver,
    enroller: Enroller,
    admin: Admin,
    ledger: LedgerHandle,
    thread: LedgerThread,
    ready: Ready,
}

fn assemble(
    prepared: Prepared,
    (udp, strangers, probe): (UdpSocket, Option<UdpSocket>, UdpSocket),
    ready: Ready,
) -> Result<(Parts, DataDir, TlsAcceptor), RunError> {
    let Prepared { data, keys, signer, ledger, settings, record, tls, start, relay: relays, spies } =
        prepared;
    let (tls, certificate) = tls;
    let clock = Clock::new();
    let now = clock.now();
    let checker = Checker::new(Tls::new(&keys.identity).map_err(RunError::Tls)?);
    let endpoint = endpoint_config((settings.network, signer.id), keys.identity, &record);
    let limits = relay::limits();
    let limits = Limits { tunnels: limits.tunnels.min(relays.tunnels), ..limits };
    let spy_interval = Some(spies.interval).filter(|interval| !interval.is_zero());
    let addresses = ready.advertised.clone();
    let config = Config { endpoint, root: settings.root, addresses, relay: limits, spy_interval };
    let (legs, leg_news) = Legs::new(relays.caps, clock.clone());
    let (streams, stream_news) = Streams::new(Connector::default());
    let (spies, spied) = SpyPorts::new(spies.addresses);
    let machine = machine(config, start, now);
    let (committed, changes) = mpsc::channel(MAX_CHANGES);
    let (ask, asked) = mpsc::channel(MAX_ASKED);
    let (ledger, thread) = LedgerHandle::start(ledger, unix_now, committed).map_err(RunError::Thread)?;
    let (published, told) =
        watch::channel(Published { statement: *machine.statement(), operator: record.bytes().clone() });
    let driver = Driver {
        machine,
        id: signer.id,
        batches: Batches::new(&udp).map_err(RunError::Datagrams)?,
        strangers: strangers.map(Strangers::new).transpose().map_err(RunError::Datagrams)?,
        sending: std::collections::VecDeque::new(),
        socket: udp,
        probe,
        spies,
        spied,
        checker,
        is_ipv6: ready.listen.is_ipv6(),
        clock: clock.clone(),
        ledger: ledger.clone(),
        changes,
        asked,
        legs,
        leg_news,
        streams,
        stream_news,
        published,
        tasks: JoinSet::new(),
        contacts: std::collections::BTreeMap::new(),
        contacts_due_at: None,
        failed_sends: 0,
        failed_receives: 0,
    };
    let enroller = Enroller {
        network: settings.network,
        root: settings.root,
        id: signer.id,
        enrolment: keys.enrolment,
        ledger: ledger.clone(),
        published: told,
        clock,
        certificate,
    };
    let admin = Admin {
        ledger: ledger.clone(),
        machine: ask,
        ready: ready.clone(),
        started_at: unix_now(),
        token: peerage_wire::id::to_hex(&random::<32>()),
    };
    Ok((Parts { driver, enroller, admin, ledger, thread, ready }, data, TlsAcceptor::from(tls)))
}

fn endpoint_config(
    (network, id): (NetworkId, NodeId),
    identity: IdentityKey,
    record: &Record,
) -> endpoint::Config {
    let record = record.bytes().clone();
    endpoint::Config { network, crypto: Arc::new(Real), identity, id, record, asks_introduction: true }
}

/// Makes a state machine that knows what the ledger has.
fn machine(config: Config, start: Change, now: Now) -> Operator {
    let mut machine = Operator::new(config, random(), now);
    for facts in start.facts {
        machine.handle(Input::Domain(facts), now);
    }
    machine.handle(Input::Committed(start.records), now);
    for (node, on) in start.quarantine {
        machine.handle(Input::Quarantine { node, on }, now);
    }
    machine.handle(Input::Spies(start.spies), now);
    machine
}

fn describe(prepared: &Prepared, sockets: &Sockets) -> Result<Ready, RunError> {
    let unknown = |source| RunError::AdminListen { address: (Ipv4Addr::LOCALHOST, 0).into(), source };
    Ok(Ready {
        id: prepared.signer.id,
        network: prepared.settings.network,
        listen: sockets.ports.local,
        advertised: OperatorBody::read(&prepared.record).map_err(LedgerError::from)?.addresses,
        admin: sockets.admin.local_addr().map_err(unknown)?,
    })
}

async fn serve(
    prepared: Prepared,
    sockets: Sockets,
    ready: impl FnOnce(Ready) + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), RunError> {
    let described = describe(&prepared, &sockets)?;
    let spy_interval = prepared.spies.interval;
    let udp = (sockets.ports.udp, sockets.ports.strangers, sockets.probe);
    let (parts, data, tls) = assemble(prepared, udp, described)?;
    let Parts { driver, enroller, admin, ledger, mut thread, ready: told } = parts;
    data.replace(ADMIN_FILE, &admin.file_content())?;
    let (end, ending) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let named = |name, task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| async move {
        task.await;
        name
    };
    let intake = Intake::new(driver.streams.clone(), driver.legs.clone());
    tasks.spawn(named("message port", Box::pin(driver.run(ending.clone()))));
    let listeners: Vec<_> = std::iter::once(sockets.ports.tcp).chain(sockets.others).collect();
    tasks.spawn(named(
        "enrolment server",
        Box::pin(enrol::serve(listeners.into(), tls, enroller, intake, ending.clone())),
    ));
    tasks.spawn(named("admin API", Box::pin(admin::serve(sockets.admin, admin, ending.clone()))));
    if !spy_interval.is_zero() {
        let upkeep = spy_upkeep(ledger.clone(), spy_interval, ending.clone());
        tasks.spawn(named("upkeep of spies", Box::pin(upkeep)));
    }
    tasks.spawn(named("upkeep", Box::pin(upkeep(ledger, ending))));
    tracing::info!("the operator serves");
    ready(told);
    let ended = tokio::select! {
        () = shutdown => Ok(()),
        Some(ended) = tasks.join_next() => Err(RunError::Stopped(ended.unwrap_or("operator"))),
        () = thread.ended() => Err(RunError::Stopped("ledger")),
    };
    end.send_replace(true);
    let all_ended = async { while tasks.join_next().await.is_some() {} };
    if time::timeout(END_TIMEOUT, all_ended).await.is_err() {
        tasks.shutdown().await;
    }
    data.remove(ADMIN_FILE);
    // The lock goes last, when nothing uses the ledger any more.
    let closed = tokio::task::spawn_blocking(move || {
        thread.join();
        drop(data);
    });
    closed.await.map_err(|_| RunError::Stopped("ledger"))?;
    ended
}

async fn upkeep(ledger: LedgerHandle, mut ending: watch::Receiver<bool>) {
    loop {
        let pause = match ledger.act(|tx| tx.upkeep()).await {
            Ok(Upkeep::More) => Duration::ZERO,
            Ok(Upkeep::Done) => UPKEEP_INTERVAL,
            Err(error) => {
                tracing::error!(%error, "records cannot be renewed");
                UPKEEP_INTERVAL
            }
        };
        tokio::select! {
            () = until_true(&mut ending) => return,
            () = time::sleep(pause) => {}
        }
    }
}

/// Makes and renews spies, one at a time and at moments that are drawn: records of different domains with the same date would belong
/// together.
async fn spy_upkeep(ledger: LedgerHandle, interval: Duration, mut ending: watch::Receiver<bool>) {
    // Within a few hours, so that a domain's spies are not always the first that come after its first member.
    let spread = interval.saturating_mul(SPY_SPREAD);
    loop {
        let longest = match ledger.act(move |tx| tx.upkeep_spies(spread)).await {
            Ok(true) => interval.div_f64(100.0),
            Ok(false) => interval,
            Err(error) => {
                tracing::error!(%error, "spies cannot be made or renewed");
                UPKEEP_INTERVAL
            }
        };
        let drawn = f64::from(u32::from_be_bytes(random())) / f64::from(u32::MAX);
        tokio::select! {
            () = until_true(&mut ending) => return,
            () = time::sleep(longest.mul_f64(drawn)) => {}
        }
    }
}

/// Reads the date.
pub(crate) fn unix_now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
