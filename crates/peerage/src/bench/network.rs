//! A network for benches: an operator, nodes and a device, each a process of its own on loopback addresses.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use peerage_wire::id::Domain;
use serde_json::{Value, json};

use crate::demo::computer::{Computer, Daemon};

/// How long a command may take; most take some milliseconds.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a node may take to find the device and the others to hear of it.
pub(super) const FIND_TIMEOUT: Duration = Duration::from_secs(60);

/// How often it is looked whether it has.
pub(super) const FIND_INTERVAL: Duration = Duration::from_millis(50);

/// The name of the first domain, and for most benches the only one.
pub(super) const DOMAIN: &str = "bench";

/// Where nodes are that have a device, and where others are: a node at the place of a device would not need a tunnel.
const SITE: &str = "site";
const ELSEWHERE: &str = "elsewhere";

/// What starts the operator. What may pass in a day is no limit here.
const RUN: [&str; 7] =
    ["operator", "run", "--no-spies", "--relay-rate", "100GB/s", "--relay-daily", "1000TB"];

/// The computers; all ends when this is dropped.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) operator: Running,
    program: PathBuf,
    /// Where the operator listens.
    pub(super) address: SocketAddr,
    /// The network's id, in hexadecimal.
    pub(super) network_id: String,
    /// Where the nodes are.
    pub(super) domain: Domain,
    /// The last, because all that runs has its data there.
    directory: tempfile::TempDir,
}

/// A program that serves.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) computer: Computer,
    daemon: Daemon,
}

impl Running {
    pub(super) fn process(&self) -> u32 {
        self.daemon.process().unwrap_or_default()
    }

    /// Ends it; its data stays where it is.
    pub(super) fn end(self) -> Computer {
        self.computer
    }

    /// Returns a text of what it said when it was ready.
    pub(super) fn text(&self, field: &str) -> Result<&str> {
        self.daemon.text(field)
    }

    /// Returns the port that a node listens on.
    pub(super) fn port(&self) -> Result<u16> {
        let all: Vec<SocketAddr> = serde_json::from_value(self.daemon.field("listen")?)?;
        Ok(all.first().context("the node listens nowhere")?.port())
    }

    /// Returns where a part listens.
    pub(super) fn listen(&self) -> Result<SocketAddr> {
        Ok(self.text("listen")?.parse()?)
    }
}

impl Network {
    /// Makes an operator and starts it.
    pub(super) fn start() -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        Self::start_with(program, Ipv4Addr::LOCALHOST)
    }

    /// The same with another build of the program, or at another address of this computer.
    pub(super) fn start_with(program: PathBuf, at: Ipv4Addr) -> Result<Self> {
        Self::begin(program, at, &[])
    }

    /// The same where the operator is told more when it starts.
    pub(super) fn start_told(arguments: &[&str]) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        Self::begin(program, Ipv4Addr::LOCALHOST, arguments)
    }

    fn begin(program: PathBuf, at: Ipv4Addr, arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("peerage-bench-").tempdir();
        let directory = directory.context("cannot make a temporary directory")?;
        let operator = computer(&program, &directory, "operator")?;
        let made = operator.call(&["operator", "init", "--listen", &format!("{at}:0")], COMMAND_TIMEOUT)?;
        let network_id = text(&made, "network")?.to_owned();
        let address = text(&made, "listen")?.parse()?;
        let daemon = operator.start(&[&RUN[..], arguments].concat())?;
        let operator = Running { computer: operator, daemon };
        let domain = add_domain(&operator, DOMAIN)?;
        Ok(Self { operator, program, address, network_id, domain, directory })
    }

    /// Adds a domain beside the first.
    pub(super) fn add_domain(&self, name: &str) -> Result<()> {
        add_domain(&self.operator, name).map(drop)
    }

    /// Starts the operator anew, after something was done to its data directory while it did not run.
    pub(super) fn reopen(self, change: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let computer = self.operator.end();
        change(&computer.data())?;
        let daemon = computer.start(&RUN)?;
        Ok(Self { operator: Running { computer, daemon }, ..self })
    }

    /// Makes a join token.
    pub(super) fn token(&self, uses: u32) -> Result<String> {
        self.token_of(DOMAIN, uses)
    }

    fn token_of(&self, domain: &str, uses: u32) -> Result<String> {
        let add = ["token", "add", "--domain", domain, "--uses", &uses.to_string()];
        Ok(text(&self.operator.computer.call(&add, COMMAND_TIMEOUT)?, "token")?.to_owned())
    }

    /// Starts a part of the bench as a process of its own.
    pub(super) fn part(&self, name: &str, arguments: &[&str]) -> Result<Running> {
        let computer = computer(&self.program, &self.directory, name)?;
        let daemon = computer.start(&[&["bench", "part"], arguments].concat())?;
        Ok(Running { computer, daemon })
    }

    /// Lets a node join and starts it; with a device it is at the site.
    pub(super) fn node(&self, name: &str, device: Option<&str>) -> Result<Running> {
        self.node_of(DOMAIN, name, device)
    }

    /// The same in a domain.
    pub(super) fn node_of(&self, domain: &str, name: &str, device: Option<&str>) -> Result<Running> {
        let computer = computer(&self.program, &self.directory, name)?;
        computer.call(&["join", &self.token_of(domain, 1)?, "--name", name], COMMAND_TIMEOUT)?;
        Self::up(computer, device)
    }

    /// Starts a node that has joined before.
    pub(super) fn up(computer: Computer, device: Option<&str>) -> Result<Running> {
        let place = device.map_or(ELSEWHERE.to_owned(), |mac| format!("{SITE} of {mac}"));
        let neighbour = device.map(|mac| format!("{mac}=127.0.0.1"));
        let mut arguments = vec!["up", "--listen", "127.0.0.1:0", "--one-machine", &place];
        arguments.extend(neighbour.iter().flat_map(|told| ["--neighbour", told.as_str()]));
        let daemon = computer.start(&arguments)?;
        Ok(Running { computer, daemon })
    }

    /// Registers a device behind a node, and waits until the node serves it.
    pub(super) fn register(&self, name: &str, mac: &str, via: &Running, service: SocketAddr) -> Result<()> {
        self.register_in(DOMAIN, (name, mac), via, service)
    }

    /// The same in a domain.
    pub(super) fn register_in(
        &self,
        domain: &str,
        (name, mac): (&str, &str),
        via: &Running,
        service: SocketAddr,
    ) -> Result<()> {
        let service = format!("raw={}", service.port());
        let via_name = via.computer.name();
        let add = ["device", "add", "--domain", domain, "--name", name, "--mac", mac, "--via", via_name];
        let add = [&add[..], &["--service", &service]].concat();
        self.operator.computer.call(&add, COMMAND_TIMEOUT)?;
        let began_at = Instant::now();
        loop {
            let status = via.computer.call(&["status"], COMMAND_TIMEOUT)?;
            if status.get("serves") == Some(&json!([name])) {
                return Ok(());
            }
            ensure!(began_at.elapsed() < FIND_TIMEOUT, "{via_name} does not serve the {name}: {status}");
            thread::sleep(FIND_INTERVAL);
        }
    }

    /// Opens a local port to a device; the first connection through it has succeeded when this returns.
    pub(super) fn connect(&self, user: &Running, device: &str) -> Result<Tunnel> {
        let began_at = Instant::now();
        let daemon = loop {
            let started = user.computer.start(&["connect", device, "--listen", "127.0.0.1:0"]);
            // What fails says so in its first line.
            match started.and_then(|daemon| daemon.text("local").map(drop).map(|()| daemon)) {
                Ok(daemon) => break daemon,
                Err(error) if began_at.elapsed() > FIND_TIMEOUT => return Err(error),
                Err(_too_early) => thread::sleep(FIND_INTERVAL),
            }
        };
        let tunnel =
            Tunnel { at: daemon.text("local")?.parse()?, id: daemon.text("id")?.to_owned(), _held: daemon };
        while let Err(error) = super::tcp::first_byte(tunnel.at) {
            ensure!(began_at.elapsed() < FIND_TIMEOUT, "{device} cannot be reached: {error:#}");
            thread::sleep(FIND_INTERVAL);
        }
        Ok(tunnel)
    }

    /// Waits until a tunnel takes the path that it is to take, and keeps to it.
    pub(super) fn settle(
        &self,
        user: &Running,
        tunnel: &Tunnel,
        is_settled: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let began_at = Instant::now();
        let client = peerage_client::Client::new(user.computer.data());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        loop {
            // The path is that of the newest connection.
            let (_open, _) = super::tcp::first_byte(tunnel.at)?;
            let tunnels = runtime.block_on(client.tunnels()).context("the node does not answer")?;
            let path = tunnels.into_iter().find(|one| one.id == tunnel.id).and_then(|one| one.path);
            let told = path.map(|path| path.kind.to_string()).unwrap_or_default();
            if is_settled(&told) {
                return Ok(told);
            }
            ensure!(began_at.elapsed() < FIND_TIMEOUT, "the tunnel has another path: {told}");
            thread::sleep(FIND_INTERVAL);
        }
    }
}

/// A local port that leads to a device.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) at: SocketAddr,
    id: String,
    _held: Daemon,
}

fn add_domain(operator: &Running, name: &str) -> Result<Domain> {
    let added = operator.computer.call(&["domain", "add", name], COMMAND_TIMEOUT)?;
    let number = added.get("id").and_then(Value::as_u64).context("the domain has no number")?;
    Ok(Domain(u32::try_from(number)?))
}

fn computer(program: &Path, directory: &tempfile::TempDir, name: &str) -> Result<Computer> {
    let own = directory.path().join(name);
    fs::DirBuilder::new().mode(0o700).recursive(true).create(&own)?;
    Ok(Computer::this(name, program, own))
}

fn text<'v>(object: &'v Value, field: &str) -> Result<&'v str> {
    object.get(field).and_then(Value::as_str).with_context(|| format!("there is no {field} in {object}"))
}
