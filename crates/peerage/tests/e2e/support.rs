//! Starts the program, and asks it, as a user would.

use serde_json::Value;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    time::{Instant, interval, timeout},
};

/// How long anything may take before the test fails; a busy machine needs a part of it.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How often it is looked whether something has happened.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The device's MAC address.
pub(crate) const MAC: &str = "02:00:5e:00:53:01";

/// The place of the device and of the node that serves it.
const OFFICE: &str = "office";

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Returns what it wrote as JSON; it must have succeeded.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert!(self.status.success(), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// Makes sure that it failed with exit code 1, and said these words and nothing of a panic.
    #[track_caller]
    pub(crate) fn failed_saying(&self, words: &[&str]) {
        assert_eq!(self.status.code(), Some(1), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "\"{word}\" is not said: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }
}

/// One data directory and the program that works with it.
#[derive(Debug)]
pub(crate) struct Party {
    directory: TempDir,
}

impl Party {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Prepares a command that ends with this test, however that ends.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peerage"));
        command.args(["demo", "child", "--"]).args(arguments).arg("--json").arg("--data").arg(self.data());
        std::env::vars_os()
            .map(|(name, _)| name)
            .filter(|name| name.as_encoded_bytes().starts_with(b"PEERAGE_"))
            .for_each(|name| _ = command.env_remove(name));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Starts a command whose end is waited for by the caller.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        ended(self.spawn(arguments)).await
    }

    /// Runs a command that must succeed, and returns what it wrote.
    pub(crate) async fn call(&self, arguments: &[&str]) -> Value {
        self.run(arguments).await.json()
    }

    /// Starts a command that serves, and waits for its first line.
    pub(crate) async fn start(&self, arguments: &[&str]) -> Running {
        let log = std::fs::File::create(self.directory.path().join(format!("{}.log", arguments[0]))).unwrap();
        let mut child = self.command(arguments).stderr(log).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(LIMIT, lines.next_line()).await.unwrap().unwrap();
        let line = line.unwrap_or_else(|| panic!("{arguments:?} has ended: {}", self.log(arguments[0])));
        Running { child, _lines: lines, first: serde_json::from_str(&line).unwrap() }
    }

    /// Returns what a command that was started has logged.
    pub(crate) fn log(&self, command: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(format!("{command}.log"))).unwrap_or_default()
    }
}

/// Waits for a command to end.
pub(crate) async fn ended(child: Child) -> Ended {
    let output = timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap();
    Ended {
        status: output.status,
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A command that serves.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    /// Kept open: a program that writes to nobody ends.
    _lines: Lines<BufReader<ChildStdout>>,
    pub(crate) first: Value,
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub(crate) fn text(&self, field: &str) -> &str {
        self.first[field].as_str().unwrap()
    }

    pub(crate) fn address(&self, field: &str) -> SocketAddr {
        self.text(field).parse().unwrap()
    }

    /// Ends it as a power cut would.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Ends it as a service manager would.
    pub(crate) async fn stop(mut self) -> ExitStatus {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
        timeout(LIMIT, self.child.wait()).await.unwrap().unwrap()
    }
}

/// Tries until there is something.
pub(crate) async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let mut ticks = interval(POLL_INTERVAL);
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        ticks.tick().await;
        if let Some(it) = attempt().await {
            return it;
        }
    }
    panic!("not within {LIMIT:?}: {what}");
}

/// Whether the device is registered with the hash of its certificate.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pinned {
    Yes,
    No,
}

/// An operator with the domain `acme`.
#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) party: Party,
    pub(crate) running: Option<Running>,
}

impl Operator {
    pub(crate) async fn start() -> Self {
        let operator = Self::init("127.0.0.1:0").await;
        operator.party.call(&["domain", "add", "acme"]).await;
        operator
    }

    /// Makes an operator without a domain.
    pub(crate) async fn init(listen: &str) -> Self {
        let party = Party::new();
        party.call(&["operator", "init", "--listen", listen]).await;
        let running = Some(party.start(&["operator", "run"]).await);
        Self { party, running }
    }

    pub(crate) async fn restart(&mut self) {
        assert!(self.running.is_none());
        self.running = Some(self.party.start(&["operator", "run"]).await);
    }

    /// Starts it anew with other options.
    pub(crate) async fn restart_as(&mut self, arguments: &[&str]) {
        self.running.take().unwrap().stop().await;
        self.running = Some(self.party.start(arguments).await);
    }

    pub(crate) async fn kill(&mut self) {
        self.running.take().unwrap().kill().await;
    }

    pub(crate) fn listen(&self) -> String {
        self.running.as_ref().unwrap().first["listen"][0].as_str().unwrap().to_owned()
    }

    /// Makes a token of `acme` with further arguments.
    pub(crate) async fn token(&self, more: &[&str]) -> String {
        let made = self.party.call(&[&["token", "add", "--domain", "acme"], more].concat()).await;
        made["token"].as_str().unwrap().to_owned()
    }

    /// Lets a new node join.
    pub(crate) async fn admit(&self, name: &str) -> Party {
        let node = Party::new();
        let token = self.token(&[]).await;
        node.call(&["join", &token, "--name", name]).await;
        node
    }

    /// Returns the nodes of `acme`.
    pub(crate) async fn nodes(&self) -> Vec<Value> {
        self.party.call(&["node", "list", "--domain", "acme"]).await.as_array().unwrap().clone()
    }

    /// Returns the node with this name.
    pub(crate) async fn node(&self, name: &str) -> Value {
        let nodes = self.nodes().await;
        nodes
            .iter()
            .find(|node| node["name"] == name)
            .unwrap_or_else(|| panic!("no {name} in {nodes:?}"))
            .clone()
    }

    /// Registers the device `printer` as seen by a node.
    pub(crate) async fn register(&self, device: &Running, via: &str, pinned: Pinned) {
        let via = self.node(via).await["id"].as_str().unwrap().to_owned();
        let service = |name: &str, more: &str| format!("{name}={}{more}", device.address(name).port());
        let (web, raw, tls) = (service("web", ""), service("raw", ""), service("tls", "/tls"));
        let mut arguments = vec!["device", "add", "--domain", "acme", "--name", "printer", "--mac", MAC];
        arguments.extend(["--via", &via]);
        if matches!(pinned, Pinned::Yes) {
            arguments.extend(["--tls-pin", device.text("pin")]);
        }
        arguments.extend(["--service", &web, "--service", &raw, "--service", &tls]);
        self.party.call(&arguments).await;
    }
}

/// Starts a node in the office, where the device is.
pub(crate) async fn up_in_office(node: &Party) -> Running {
    let neighbour = format!("{MAC}=127.0.0.1");
    let place = ["--one-machine", OFFICE, "--neighbour", &neighbour];
    node.start(&[&["up", "--listen", "127.0.0.1:0"], &place[..]].concat()).await
}

/// Starts a node somewhere else.
pub(crate) async fn up_elsewhere(node: &Party) -> Running {
    node.start(&["up", "--listen", "127.0.0.1:0", "--one-machine", "elsewhere"]).await
}

/// Starts the sample device on these ports, 0 for any.
pub(crate) async fn device(party: &Party, ports: [u16; 3]) -> Running {
    let [web, tls, raw] = ports.map(|port| format!("127.0.0.1:{port}"));
    party.start(&["demo", "device", &web, &tls, &raw, "--one-machine"]).await
}

/// An operator, a node in the office with the device, and a user's node elsewhere, all running.
#[derive(Debug)]
pub(crate) struct Town {
    pub(crate) operator: Operator,
    pub(crate) office: Party,
    pub(crate) office_up: Option<Running>,
    pub(crate) user: Party,
    pub(crate) user_up: Option<Running>,
    pub(crate) printer: Party,
    pub(crate) device: Option<Running>,
}

impl Town {
    pub(crate) async fn build() -> Self {
        Self::with_a_device(Pinned::Yes).await
    }

    pub(crate) async fn with_a_device(pinned: Pinned) -> Self {
        let operator = Operator::start().await;
        let (office, user) = (operator.admit("office").await, operator.admit("user").await);
        let (office_up, user_up) = (up_in_office(&office).await, up_elsewhere(&user).await);
        let printer = Party::new();
        let device = device(&printer, [0; 3]).await;
        operator.register(&device, "office", pinned).await;
        serves(&office).await;
        Self {
            operator,
            office,
            office_up: Some(office_up),
            user,
            user_up: Some(user_up),
            printer,
            device: Some(device),
        }
    }

    /// Returns the device's ports, in the order in which it is given them.
    pub(crate) fn ports(&self) -> [u16; 3] {
        let device = self.device.as_ref().unwrap();
        ["web", "tls", "raw"].map(|name| device.address(name).port())
    }
}

/// Waits until a node serves the printer.
pub(crate) async fn serves(node: &Party) {
    eventually("the node serves the printer", async || {
        let status = node.call(&["status"]).await;
        (status["serves"] == serde_json::json!(["printer"])).then_some(())
    })
    .await;
}

/// Opens a tunnel as soon as the node knows a way.
pub(crate) async fn connect(node: &Party, service: &str) -> Running {
    let target = format!("printer:{service}");
    eventually("the node knows a way to the printer", async || {
        let attempt = node.spawn(&["connect", &target, "--listen", "127.0.0.1:0"]);
        let mut child = attempt;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(LIMIT, lines.next_line()).await.unwrap().unwrap()?;
        let first: Value = serde_json::from_str(&line).unwrap();
        (first["event"] == "listening").then_some(Running { child, _lines: lines, first })
    })
    .await
}

/// Sends bytes to a raw port and returns what comes back until its end.
pub(crate) async fn echo(address: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await?;
        Ok(back)
    };
    timeout(LIMIT, talk).await.unwrap()
}

/// Copies the files of a directory that has no others in it.
pub(crate) fn copy_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
