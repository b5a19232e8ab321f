//! Where the command line meets the node and the operator: what it hands over, and what it is told.

use peerage_client::Role;
use peerage_node::carrier::Carrier;
use peerage_node::{
    connect::Connector,
    data::{DataDir, DataError},
    enrol::{self, JoinConfig},
    fitness::Circumstances,
    lending::Lending,
    private::PrivateError,
    run::{self as node, LanConfig, UpConfig},
};
use peerage_operator::{CertificateFiles, InitConfig, RelayConfig, RunConfig, SpyConfig};
use peerage_wire::{id::Mac, record::Roles};
use serde::Serialize;
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// How often it is tried whether a data directory is free. Its lock cannot be waited for without a thread.
const FREE_INTERVAL: Duration = Duration::from_millis(20);

/// What `join` needs.
pub(crate) struct JoinOptions {
    /// The node's data directory; made if it does not exist.
    pub(crate) data: PathBuf,
    /// The join token.
    pub(crate) token: String,
    /// The node's name.
    pub(crate) name: String,
    /// How the operator is connected to.
    pub(crate) connector: Connector,
}

/// What `join` has brought.
#[derive(Debug, Serialize)]
pub(crate) struct Joined {
    /// The node's id.
    pub(crate) id: String,
    /// The number of the domain.
    pub(crate) domain: u32,
    /// The name of the domain, if it was told.
    pub(crate) domain_name: Option<String>,
    /// The node's name.
    pub(crate) name: String,
    /// What the operator permits.
    pub(crate) roles: Vec<Role>,
    /// The fingerprint of the node's identity key, for comparison at the operator.
    pub(crate) fingerprint: String,
    /// Whether the operator must first approve it; the node asks again when it runs.
    pub(crate) pending: bool,
    /// Whether this data directory belonged to a member already; nothing was asked or changed then.
    pub(crate) already: bool,
    /// When the node's record ends unless it is renewed; absent while it is pending.
    pub(crate) expires_at_ms: Option<u64>,
}

/// Joins this computer to the domain of a token.
pub(crate) async fn join(options: JoinOptions) -> anyhow::Result<Joined> {
    let JoinOptions { data, token, name, connector } = options;
    let joined = enrol::join(JoinConfig { data, token, name, connector }).await?;
    Ok(Joined {
        id: joined.id.to_string(),
        domain: joined.id.domain.0,
        domain_name: Some(joined.domain_name).filter(|name| !name.is_empty()),
        name: joined.name,
        roles: roles(joined.roles),
        fingerprint: joined.fingerprint,
        pending: joined.pending,
        already: joined.already,
        expires_at_ms: joined.expires.map(|at| at.as_millis()),
    })
}

fn roles(permitted: Roles) -> Vec<Role> {
    let optional = [(permitted.tunnel, Role::Tunnel), (permitted.super_node, Role::Super)];
    let held = optional.into_iter().filter(|(is_held, _)| *is_held).map(|(_, role)| role);
    [Role::User].into_iter().chain(held).collect()
}

/// Tells the operator, if it answers, that this node leaves, and erases its keys and records.
pub(crate) async fn leave(data: PathBuf) -> anyhow::Result<()> {
    let is_confirmed = node::leave(&data).await?;
    if !is_confirmed {
        tracing::warn!(
            "no operator has confirmed; this computer stays listed there until its record expires"
        );
    }
    Ok(())
}

/// Waits until no process uses the data directory.
pub(crate) async fn until_free(data: &Path) {
    let mut attempts = tokio::time::interval(FREE_INTERVAL);
    while let Err(DataError::Private(PrivateError::Locked { .. })) = DataDir::open(data) {
        attempts.tick().await;
    }
}

/// What `up` needs.
pub(crate) struct NodeOptions {
    /// The node's data directory.
    pub(crate) data: PathBuf,
    /// The address for UDP and TCP; absent: any.
    pub(crate) listen: Option<SocketAddr>,
    /// Where else it takes TCP connections.
    pub(crate) also_listen: Vec<SocketAddr>,
    /// The addresses under which others reach it, beside those that it finds itself.
    pub(crate) advertise: Vec<SocketAddr>,
    /// The roles that its owner wants; absent: user and tunnel.
    pub(crate) roles: Option<Vec<Role>>,
    /// What the configuration file says of lending the computer to the network.
    pub(crate) lending: Lending,
    /// What it says about battery and network.
    pub(crate) circumstances: Circumstances,
    /// How it agrees with others on the LAN which of them serve.
    pub(crate) lan: LanConfig,
    /// Whether routers may be asked to forward its port.
    pub(crate) port_mapping: bool,
    /// Whether many ports may be opened or tried where those of one end cannot be known.
    pub(crate) wide_checks: bool,
    /// By what messages may travel.
    pub(crate) carriers: Vec<Carrier>,
    /// Set if the whole network lives on this computer, as in the demonstration.
    pub(crate) one_machine: Option<OneMachine>,
    /// How TCP connections to other computers are opened.
    pub(crate) connector: Connector,
}

/// What takes the place of real networks where all nodes are on one computer.
pub(crate) struct OneMachine {
    /// The name of the place where the node is.
    pub(crate) place: String,
    /// The MAC and IP addresses of the devices at this place.
    pub(crate) neighbours: Vec<(Mac, IpAddr)>,
}

/// What `up` says when the node serves.
#[derive(Debug, Serialize)]
pub(crate) struct NodeReady {
    /// The node's id.
    pub(crate) id: String,
    /// The node's name.
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) listen: Vec<SocketAddr>,
}

/// Runs the node until `shutdown` is ready or the local API is told to shut down. Calls `ready` once, when messages,
/// tunnels and the local API are served.
pub(crate) async fn run_node(
    options: NodeOptions,
    ready: impl FnOnce(NodeReady) + Send,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let NodeOptions {
        data,
        listen,
        also_listen,
        advertise,
        roles,
        lending,
        circumstances,
        lan,
        port_mapping,
        wide_checks,
        carriers,
        one_machine,
        connector,
    } = options;
    let tunnel_role = roles.as_ref().is_none_or(|roles| roles.contains(&Role::Tunnel));
    // Whoever asks for the role consents to it.
    let consents = roles.is_some_and(|roles| roles.contains(&Role::Super)).then_some(true);
    let lending = Lending { on: lending.on.or(consents), ..lending };
    // A node that nobody outside can reach belongs to a network that lives on this machine.
    let on_loopback = listen.is_some_and(|listen| listen.ip().is_loopback());
    let (place, neighbours) =
        one_machine.map_or((None, Vec::new()), |told| (Some(told.place), told.neighbours));
    let config = UpConfig {
        data,
        listen,
        also_listen,
        advertise,
        tunnel_role,
        lending,
        circumstances,
        lan,
        port_mapping,
        wide_checks,
        carriers,
        one_machine: on_loopback || place.is_some(),
        place,
        neighbours: neighbours.into_iter().collect(),
        connector,
    };
    let ready = |told: node::Ready| {
        ready(NodeReady { id: told.id.to_string(), name: told.name, listen: told.listen });
    };
    Ok(Box::pin(node::run(config, ready, shutdown)).await?)
}

/// What `operator init` needs.
pub(crate) struct InitOptions {
    /// The operator's data directory; must not hold an operator yet.
    pub(crate) data: PathBuf,
    /// The address for UDP and TCP, kept for `run`; port 0 is chosen now and kept.
    pub(crate) listen: SocketAddr,
    /// The addresses under which nodes reach it; empty: the one it listens on.
    pub(crate) advertise: Vec<SocketAddr>,
    /// Certificate chain and private key in PEM; absent: made.
    pub(crate) certificate: Option<(PathBuf, PathBuf)>,
}

/// What `operator init` has made.
#[derive(Debug, Serialize)]
pub(crate) struct Initialised {
    /// The operator's node id.
    pub(crate) id: String,
    /// The network id.
    pub(crate) network: String,
    /// Where it will listen.
    pub(crate) listen: SocketAddr,
    /// Where nodes will look for it.
    pub(crate) advertised: Vec<SocketAddr>,
}

/// Makes the keys, the ledger and the certificate of a new operator.
pub(crate) async fn init_operator(options: InitOptions) -> anyhow::Result<Initialised> {
    let InitOptions { data, listen, advertise, certificate } = options;
    let config = InitConfig { data, listen, advertise, certificate: certificate.map(files) };
    let made = tokio::task::spawn_blocking(move || peerage_operator::init(&config)).await??;
    Ok(Initialised {
        id: made.id.to_string(),
        network: made.network.to_string(),
        listen: made.listen,
        advertised: made.advertised,
    })
}

fn files((chain, key): (PathBuf, PathBuf)) -> CertificateFiles {
    CertificateFiles { chain, key }
}

/// What `operator run` needs; what is absent or empty is as `init` was given it.
pub(crate) struct OperatorOptions {
    /// The operator's data directory.
    pub(crate) data: PathBuf,
    /// The address for UDP and TCP.
    pub(crate) listen: Option<SocketAddr>,
    /// Further addresses for TCP alone.
    pub(crate) also_listen: Vec<SocketAddr>,
    /// The addresses under which nodes reach it.
    pub(crate) advertise: Vec<SocketAddr>,
    /// The loopback address of the admin API; absent: any free port of 127.0.0.1.
    pub(crate) admin_listen: Option<SocketAddr>,
    /// Certificate chain and private key in PEM, if they are not those of `init`.
    pub(crate) certificate: Option<(PathBuf, PathBuf)>,
    /// How much it relays.
    pub(crate) relay: RelayConfig,
    /// How its spies look at super-nodes.
    pub(crate) spies: SpyConfig,
}

/// What `operator run` says when it serves.
#[derive(Debug, Serialize)]
pub(crate) struct OperatorReady {
    /// The operator's node id.
    pub(crate) id: String,
    /// The network id.
    pub(crate) network: String,
    /// Where it listens.
    pub(crate) listen: Vec<SocketAddr>,
    /// Where nodes look for it.
    pub(crate) advertised: Vec<SocketAddr>,
    /// Where the admin API is.
    pub(crate) admin: SocketAddr,
}

/// Runs the operator until `shutdown` is ready. Calls `ready` once, when messages, joining nodes and the admin API
/// are served.
pub(crate) async fn run_operator(
    options: OperatorOptions,
    ready: impl FnOnce(OperatorReady) + Send,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let OperatorOptions { data, listen, also_listen, advertise, admin_listen, certificate, relay, spies } =
        options;
    let certificate = certificate.map(files);
    let config = RunConfig {
        listen,
        also_listen,
        advertise,
        admin_listen,
        certificate,
        relay,
        spies,
        ..RunConfig::new(data)
    };
    let ready = |told: peerage_operator::Ready| {
        ready(OperatorReady {
            id: told.id.to_string(),
            network: told.network.to_string(),
            listen: vec![told.listen],
            advertised: told.advertised,
            admin: told.admin,
        });
    };
    Ok(Box::pin(peerage_operator::run(config, ready, shutdown)).await?)
}
