//! What happens in the demonstration, one step after the other.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use peerage_client::local::{PathKind, Privacy, Tunnel};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Ended,
    computer::{Computer, Daemon},
    screen::Screen,
    town::{PLOTTER_MAC, PRINTER_MAC, Pair, Town},
    transfer::Transfer,
};

/// The domain of the demonstration.
const DOMAIN: &str = "acme";

/// The printer's services, and what makes each one over TLS.
const SERVICES: [(&str, &str); 3] = [("web", ""), ("tls", "/tls"), ("raw", "")];

/// How long a command that only asks may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a transfer may take: 64 MiB each way at 2 MB/s, the least that a slow computer without optimisation does.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(80);

/// How long the office's node may take to find and announce the printer, and the others to hear of it.
const FIND_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a node is asked whether it can reach the printer; each asks the network.
const FIND_INTERVAL: Duration = Duration::from_millis(200);

/// How often the traffic is shown.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// How long a tunnel that has begun at a relay may take to get the path that is best for it. Without one at first, a node looks
/// after 2, 6, 14 and 30 s.
const MOVE_TIMEOUT: Duration = Duration::from_secs(40);

/// Bytes that are moved each way to see which path a tunnel takes.
const FEW_BYTES: u64 = 64 << 10;

/// Bytes that `--once` moves in each direction of each path.
const EACH_WAY_BYTES: u64 = 64 << 20;

/// What `--once` found of one path.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PathReport {
    /// What kind of path it was, as the user's node says.
    pub(super) kind: PathKind,
    /// Where its other end was.
    pub(super) remote: SocketAddr,
    /// The transfer over it.
    #[serde(flatten)]
    pub(super) transfer: Transfer,
    /// Every byte arrived, once, in order and unchanged, in both directions.
    pub(super) ok: bool,
}

/// The demonstration while it runs.
#[derive(Debug)]
pub(super) struct Story<'a> {
    pub(super) screen: &'a mut Screen,
    /// Ends the wait of every step.
    pub(super) ended: &'a Ended,
    /// What runs; the latest ends first.
    daemons: Vec<Daemon>,
    town: &'a Town,
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        while self.daemons.pop().is_some() {}
    }
}

/// An open tunnel and where its near end is.
#[derive(Debug)]
struct Opened {
    local: SocketAddr,
    id: String,
}

impl<'a> Story<'a> {
    pub(super) fn new(screen: &'a mut Screen, ended: &'a Ended, town: &'a Town) -> Self {
        Self { screen, ended, daemons: Vec::new(), town }
    }

    /// Plays all up to where the printer can be reached by everybody.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.introduce();
        self.start_operator()?;
        self.start_nodes()?;
        self.register_printer()?;
        self.wait_for_printer()
    }

    fn introduce(&self) {
        if self.town.is_simulated() {
            self.screen.tell(
                "Networks inside this computer, each with programs of its own. The office and the home have the \
                 same addresses on purpose: as it happens in life, and no VPN could route between them.",
            );
            self.screen.lines("");
            let map: Vec<String> = self.town.addresses.map.lines().map(|line| format!("   {line}")).collect();
            self.screen.lines(&map.join("\n"));
        }
    }

    fn start_operator(&mut self) -> Result<()> {
        let Town { operator, addresses, .. } = self.town;
        self.step("The operator starts")?;
        let listen = addresses.operator.to_string();
        let made = operator.call(&["operator", "init", "--listen", &listen], COMMAND_TIMEOUT)?;
        let daemon = operator.start(&["operator", "run"])?;
        operator.call(&["domain", "add", DOMAIN], COMMAND_TIMEOUT)?;
        self.screen.tell(&format!(
            "At {}. It has made the keys of a new network, {}…, and the domain \"{DOMAIN}\". It says who is a \
             member and which devices there are. What goes through a tunnel passes it only where two nodes cannot reach \
             each other, and then sealed.",
            made.get("listen").and_then(Value::as_str).unwrap_or(&listen),
            text(&made, "network")?.get(..12).unwrap_or_default(),
        ));
        self.daemons.push(daemon);
        Ok(())
    }

    fn start_nodes(&mut self) -> Result<()> {
        let Town { office, colleague, user, branches, addresses, .. } = self.town;
        self.step("Computers join, each with a token of one use")?;
        let others = branches.iter().map(|branch| &branch.node);
        for node in [office, colleague, user].into_iter().chain(others.clone()) {
            self.check()?;
            self.join(node)?;
        }
        let listen = addresses.office_listen.to_string();
        let advertise = addresses.office_advertise.map(|address| address.to_string());
        let mut arguments = vec!["--listen", listen.as_str()];
        if let Some(advertise) = &advertise {
            arguments.extend(["--advertise", advertise]);
        }
        self.up(office, "demo office", &arguments)?;
        let listen = addresses.listen.to_string();
        self.up(colleague, "demo office", &["--listen", &listen])?;
        for node in std::iter::once(user).chain(others) {
            self.up(node, "demo home", &["--listen", &listen])?;
        }
        self.screen.tell(
            "front-desk and back-desk in the office, laptop at home. Each made its own keys, which never leave it; \
             the operator has signed that they are members.",
        );
        Ok(())
    }

    fn join(&self, node: &Computer) -> Result<()> {
        let operator = &self.town.operator;
        let token = operator.call(&["token", "add", "--domain", DOMAIN], COMMAND_TIMEOUT)?;
        node.call(&["join", text(&token, "token")?, "--name", node.name()], COMMAND_TIMEOUT)?;
        Ok(())
    }

    /// Starts a node. Without networks of their own, places and the printer's address must be told to it.
    fn up(&mut self, node: &Computer, place: &str, arguments: &[&str]) -> Result<()> {
        let mut all = vec!["up"];
        all.extend(arguments);
        let neighbour = format!("{PRINTER_MAC}=127.0.0.1");
        if !self.town.is_simulated() {
            all.extend(["--one-machine", place]);
            if place == "demo office" {
                all.extend(["--neighbour", &neighbour]);
            }
        }
        self.daemons.push(node.start(&all)?);
        Ok(())
    }

    fn register_printer(&mut self) -> Result<()> {
        let Town { office, printer, user, plotter, branches, .. } = self.town;
        self.step("The printer is switched on and registered")?;
        let (services, pin) = self.register(printer, PRINTER_MAC, office)?;
        self.screen.tell(&format!(
            "By its MAC address, {PRINTER_MAC}, not its IP address; with the SHA-256 of its certificate, {}…; as \
             seen by front-desk; with three services: {}. Nothing else of the office can be reached.",
            pin.get(..12).unwrap_or_default(),
            services.join(", "),
        ));
        if let Some(plotter) = plotter {
            self.register(plotter, PLOTTER_MAC, user)?;
            self.screen.tell(
                "And so is a plotter at home, as seen by laptop. It even has the printer's IP address.",
            );
        }
        for branch in branches {
            self.register(&branch.device, branch.mac, &branch.node)?;
            let [device, node] = [&branch.device, &branch.node].map(Computer::name);
            self.screen.tell(&format!("And a {device}, as seen by {node}, whose router {}.", branch.router));
        }
        Ok(())
    }

    /// Switches a device on and registers it under its computer's name; returns its services and its certificate's hash.
    fn register(&mut self, device: &Computer, mac: &str, via: &Computer) -> Result<(Vec<String>, String)> {
        let Town { operator, addresses, .. } = self.town;
        let [web, tls, raw] = addresses.printer.map(|address| address.to_string());
        let mut arguments = vec!["demo", "device", web.as_str(), tls.as_str(), raw.as_str()];
        if !self.town.is_simulated() {
            arguments.push("--one-machine");
        }
        let daemon = device.start(&arguments)?;
        let mut services = Vec::new();
        for (name, suffix) in SERVICES {
            let address: SocketAddr = daemon.text(name)?.parse()?;
            services.push(format!("{name}={}{suffix}", address.port()));
        }
        let pin = daemon.text("pin")?.to_owned();
        self.daemons.push(daemon);
        let mut arguments = vec!["device", "add", "--domain", DOMAIN, "--name", device.name()];
        arguments.extend(["--kind", device.name(), "--mac", mac, "--via", via.name(), "--tls-pin", &pin]);
        services.iter().for_each(|service| arguments.extend(["--service", service]));
        operator.call(&arguments, COMMAND_TIMEOUT)?;
        Ok((services, pin))
    }

    fn wait_for_printer(&mut self) -> Result<()> {
        let Town { office, user, plotter, branches, .. } = self.town;
        self.step("front-desk finds it and announces that it serves it")?;
        self.wait_until_served("printer", office)?;
        if plotter.is_some() {
            self.wait_until_served("plotter", user)?;
        }
        for branch in branches {
            self.wait_until_served(branch.device.name(), &branch.node)?;
        }
        self.screen.tell(
            "It looks for the MAC address on its own network, and tells the operator's table that it serves the \
             printer, and where it can be reached itself. Only members of the domain can read that.",
        );
        Ok(())
    }

    fn wait_until_served(&self, device: &str, by: &Computer) -> Result<()> {
        let began_at = Instant::now();
        loop {
            self.check()?;
            let status = by.call(&["status"], COMMAND_TIMEOUT)?;
            if status.get("serves") == Some(&json!([device])) {
                return Ok(());
            }
            ensure!(began_at.elapsed() < FIND_TIMEOUT, "{} does not serve the {device}: {status}", by.name());
            thread::sleep(FIND_INTERVAL);
        }
    }

    /// Opens tunnels for a browser, and stays until it is told to end.
    pub(super) fn stay(&mut self, ready: impl FnOnce(SocketAddr, SocketAddr) -> Result<()>) -> Result<()> {
        self.step("laptop opens a tunnel to each service")?;
        let user = &self.town.user;
        let [web, tls, raw] = [
            self.open(user, "printer:web")?,
            self.open(user, "printer:tls")?,
            self.open(user, "printer:raw")?,
        ];
        let tunnel = self.prove(user, &web)?;
        self.tell_path(&tunnel);
        let tunnel = self.prove(user, &tls)?;
        self.screen.tell(&format!("And of the service with TLS: {}.", reader(&tunnel, "front-desk")));
        let [web, tls, raw] =
            [self.door("web", &web, 0)?, self.door("tls", &tls, 1)?, self.door("raw", &raw, 2)?];
        self.show_pairs()?;
        self.screen.lines(&format!(
            "\nOpen in a browser on this computer:\n\n   http://{web}/\n   https://{tls}/   \
             (the printer signs for itself: the browser warns)\n\n\
             Print from bash:\n\n   echo Hello > /dev/tcp/{}/{}\n\n\
             Ctrl-C ends all of it; nothing stays behind.\n",
            raw.ip(),
            raw.port(),
        ));
        ready(web, raw)?;
        self.follow()
    }

    fn door(&mut self, name: &str, opened: &Opened, usual: usize) -> Result<SocketAddr> {
        let (address, daemon) = self.town.door(name, &opened.local.to_string(), usual)?;
        self.daemons.extend(daemon);
        Ok(address)
    }

    /// Tells of traffic until the end.
    fn follow(&mut self) -> Result<()> {
        while !self.ended.wait(FOLLOW_INTERVAL) {
            self.daemons.iter_mut().try_for_each(Daemon::check)?;
            self.screen.now(&traffic(&self.ended.ask(&self.town.user)?));
        }
        self.screen.lines("\nEnded.");
        Ok(())
    }

    /// Opens a tunnel for each other kind of path that there is, and says which it takes.
    fn show_pairs(&mut self) -> Result<()> {
        let pairs = self.town.pairs();
        let others = pairs.into_iter().filter(|pair| pair.path.is_some_and(|path| path != PathKind::Direct));
        for (index, pair) in others.enumerate() {
            if index == 0 {
                self.step("Other pairs of computers, and how they reach each other")?;
            }
            let [web, raw] = self.open_both(pair)?;
            let (_, tunnel) = self.try_out(pair, [&web, &raw])?;
            if let Some(path) = &tunnel.path {
                let way = way(path.kind, self.town.serving(pair.device));
                let (user, device) = (pair.user.name(), pair.device);
                self.screen.tell(&format!("{user} to the {device}: {}, {way} ({}).", path.kind, path.remote));
            }
        }
        Ok(())
    }

    /// Moves data both ways over each kind of path that there is, and compares every byte.
    pub(super) fn transfer(&mut self) -> Result<Vec<PathReport>> {
        let mut reports = Vec::new();
        for pair in self.town.pairs() {
            self.step(&format!("{} moves 64 MiB to the {} and back", pair.user.name(), pair.device))?;
            let [web, raw] = self.open_both(pair)?;
            let (first, _) = self.try_out(pair, [&web, &raw])?;
            let moved = self.move_bytes(pair, [&web, &raw], EACH_WAY_BYTES)?;
            let transfer = Transfer { first_byte_ms: first.first_byte_ms, ..moved };
            let tunnel = self.prove(pair.user, &raw)?;
            self.tell_path(&tunnel);
            let path = tunnel.path.context("the node does not say which path its tunnel took")?;
            self.screen.tell(&format!(
                "{} bytes, all of them right; the device confirms the SHA-256. {:.0} MB/s in both directions \
                 together, first byte after {:.1} ms.",
                transfer.bytes, transfer.mb_per_s, transfer.first_byte_ms,
            ));
            reports.push(PathReport { kind: path.kind, remote: path.remote, transfer, ok: true });
        }
        Ok(reports)
    }

    fn open_both(&mut self, pair: Pair<'_>) -> Result<[Opened; 2]> {
        let Pair { user, device, .. } = pair;
        Ok([self.open(user, &format!("{device}:web"))?, self.open(user, &format!("{device}:raw"))?])
    }

    /// Moves a little until the tunnel takes the path that is best for it: it may begin at a relay. Returns the first transfer, and what
    /// the node says of the tunnel in the end.
    fn try_out(&self, pair: Pair<'_>, [web, raw]: [&Opened; 2]) -> Result<(Transfer, Tunnel)> {
        let began_at = Instant::now();
        let first = self.move_bytes(pair, [web, raw], FEW_BYTES)?;
        loop {
            let tunnel = self.prove(pair.user, raw)?;
            let kind = tunnel.path.as_ref().map(|path| path.kind);
            if pair.path.is_none_or(|wanted| kind == Some(wanted)) || began_at.elapsed() > MOVE_TIMEOUT {
                return Ok((first, tunnel));
            }
            thread::sleep(FIND_INTERVAL);
            self.move_bytes(pair, [web, raw], FEW_BYTES)?;
        }
    }

    fn move_bytes(&self, pair: Pair<'_>, [web, raw]: [&Opened; 2], bytes: u64) -> Result<Transfer> {
        let [to_web, to_raw, bytes] = [web.local.to_string(), raw.local.to_string(), bytes.to_string()];
        let arguments = ["demo", "transfer", &to_raw, &to_web, &bytes];
        Ok(serde_json::from_value(pair.user.call(&arguments, TRANSFER_TIMEOUT)?)?)
    }

    /// Opens a tunnel. A node may need a moment until it has heard of the device and of who serves it.
    fn open(&mut self, node: &Computer, target: &str) -> Result<Opened> {
        let began_at = Instant::now();
        let daemon = loop {
            self.check()?;
            let started = node.start(&["connect", target, "--listen", "127.0.0.1:0"]);
            // What failed says so in its first line, as what works says where it listens.
            match started.and_then(|daemon| daemon.text("local").map(drop).map(|()| daemon)) {
                Ok(daemon) => break daemon,
                Err(error) if began_at.elapsed() > FIND_TIMEOUT => return Err(error),
                Err(_too_early) => thread::sleep(FIND_INTERVAL),
            }
        };
        let opened = Opened { local: daemon.text("local")?.parse()?, id: daemon.text("id")?.to_owned() };
        self.daemons.push(daemon);
        Ok(opened)
    }

    /// Waits until a tunnel has a path, and returns what its node says of it.
    fn prove(&self, node: &Computer, opened: &Opened) -> Result<Tunnel> {
        let deadline = Instant::now() + FIND_TIMEOUT;
        loop {
            self.check()?;
            let tunnels = self.ended.ask(node)?;
            let tunnel = tunnels.into_iter().find(|tunnel| tunnel.id == opened.id);
            let tunnel = tunnel.context("the node has closed the tunnel")?;
            if tunnel.path.is_some() {
                return Ok(tunnel);
            }
            ensure!(Instant::now() < deadline, "the tunnel has no path yet");
            thread::sleep(FIND_INTERVAL);
        }
    }

    fn tell_path(&self, tunnel: &Tunnel) {
        let Some(path) = &tunnel.path else { return };
        let serving = self.town.serving(&tunnel.device);
        let way = way(path.kind, serving);
        self.screen.tell(&format!("Path: {}, {way} ({}).", path.kind, path.remote));
        self.screen.tell(&format!("Who can read it: {}.", reader(tunnel, serving)));
    }

    fn step(&mut self, title: &str) -> Result<()> {
        self.check()?;
        self.daemons.iter_mut().try_for_each(Daemon::check)?;
        self.screen.step(title);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if self.ended.is_asked() {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// Says how the bytes get to the node that serves the device.
fn way(kind: PathKind, serving: &str) -> String {
    match kind {
        PathKind::Local => "straight to it, because it is on the same network".to_owned(),
        PathKind::Direct => format!("straight to {serving}, at an address that can be reached"),
        PathKind::Mapped => format!("to {serving} through a port that its router gave it"),
        PathKind::Punched => format!("to {serving} through both routers' NAT"),
        PathKind::Relayed => format!("to {serving}, which nobody can reach from outside, through a relay"),
        PathKind::Unknown | _ => "of a kind that this program does not know".to_owned(),
    }
}

fn reader(tunnel: &Tunnel, serving: &str) -> String {
    match tunnel.privacy {
        Privacy::TunnelNodeCanRead => format!(
            "both ends, {serving} and the network there, because this service has no TLS; nobody else on the way, not \
             even the operator"
        ),
        Privacy::LocalNetwork => "the office's network, as without Peerage".to_owned(),
        Privacy::DeviceVerified => {
            "laptop and the printer alone, whose certificate laptop has checked through the tunnel".to_owned()
        }
        Privacy::DeviceTls => {
            "laptop and the printer alone, if the browser checks the certificate".to_owned()
        }
        Privacy::Unknown | _ => "not known".to_owned(),
    }
}

fn traffic(tunnels: &[Tunnel]) -> String {
    let one = |tunnel: &Tunnel| {
        let [sent, received] = [tunnel.bytes_sent, tunnel.bytes_received].map(crate::output::bytes);
        format!("{} ↑ {sent} ↓ {received}", tunnel.service)
    };
    tunnels.iter().map(one).collect::<Vec<_>>().join("   ")
}

fn text<'v>(object: &'v Value, field: &str) -> Result<&'v str> {
    object.get(field).and_then(Value::as_str).with_context(|| format!("there is no {field} in {object}"))
}
