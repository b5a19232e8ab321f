//! Networks that let little through: in each a user joins, finds the printer of an office elsewhere, prints, and exchanges 64 MiB with a
//! device there; and `peerage doctor` names what is in the way.
//!
//! The operator, which is relay and forwarder as well, can be reached on the web's ports; the office is behind an ordinary router. Each
//! network is a site of its own with a firewall that counts what it drops.

mod network;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

pub use self::network::NAMES as NETWORKS;
use self::network::{Expected, LITTLE_UDP, NO_UDP, Network, OPEN};
use super::Report;
use super::binary::Programs;
use super::player::{Player, wait_until};
use super::program::Daemon;
use crate::device::{self, PROXY_PORT, Printer, Proxy, ProxyManner};
use crate::netns::Process;
use crate::topology::{Host, Lab, Site, SiteConfig};

/// The operator's own port, and the web's, at which it takes TCP as well.
const OPERATOR_PORTS: [u16; 3] = [4240, 443, 80];

/// The port that the office's router forwards to its node.
const FORWARDED_PORT: u16 = 4242;

/// Hardware addresses of the printer and of the device that sends everything back.
const MACS: [&str; 2] = ["02:00:5e:00:53:01", "02:00:5e:00:53:02"];

/// Their host numbers.
const ADDRESSES: [u8; 2] = [210, 211];

/// The port of the device that sends everything back.
const ECHO_PORT: u16 = 7;

/// Bytes of the document.
const DOCUMENT_BYTES: usize = 1_000_003;

/// Bytes that go both ways.
const EXCHANGE_BYTES: u64 = 64 << 20;

/// How long finding the printer may take. A node that is let through by nothing that it knows is not waited for any longer.
const FIND_TIMEOUT: Duration = Duration::from_secs(40);

/// How often it is asked for.
const FIND_INTERVAL: Duration = Duration::from_millis(100);

/// How long one step of a user may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);

/// Plays the stories of all networks, or of the one with this name, and tells `progress` about each step.
pub fn firewalls(programs: &Programs, only: Option<&str>, progress: &mut dyn FnMut(&str)) -> Report {
    let mut report = Report::default();
    let began_at = Instant::now();
    let mut say = |text: &str| progress(&format!("{:7.2} s  {text}", began_at.elapsed().as_secs_f64()));
    report.error = play(programs, only, &mut report, &mut say).err();
    report
}

fn play(
    programs: &Programs,
    only: Option<&str>,
    report: &mut Report,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    say("building an operator on the web's ports, and an office with a printer");
    let stage = Stage::build()?;
    let mut cast = Cast::start(&stage, programs)?;
    let (mut networks, mut failed) = (Map::new(), Vec::new());
    let all = network::all(stage.operator.address()).into_iter();
    for network in all.filter(|it| only.is_none_or(|only| only == it.name)) {
        say(&format!("network {}", network.name));
        let mut facts = Map::new();
        let result = cast.visit(&network, programs, &mut facts, say);
        facts.insert("ok".to_owned(), result.is_ok().into());
        if let Err(error) = result {
            say(&format!("  it failed: {error:#}"));
            facts.insert("error".to_owned(), format!("{error:#}").into());
            failed.push(network.name);
        }
        networks.insert(network.name.to_owned(), facts.into());
        report.note("networks", networks.clone());
    }
    say("ending all programs in order");
    cast.stop()?;
    ensure!(failed.is_empty(), "these networks were too much: {}", failed.join(", "));
    ensure!(!networks.is_empty(), "there is no such network");
    Ok(())
}

/// What stays the same for all networks.
struct Stage {
    lab: Lab,
    operator: Host,
    node: Host,
    printer: Host,
    echo: Host,
    _office: Site,
}

impl Stage {
    fn build() -> Result<Self> {
        let lab = Lab::new()?;
        let operator = lab.public_host("operator")?;
        operator.load_nft(&format!(
            "table ip web {{\n chain pre {{\n  type nat hook prerouting priority dstnat;\n  \
             udp dport {{ 80, 443 }} redirect to :{own}\n }}\n}}\n",
            own = OPERATOR_PORTS[0],
        ))?;
        let office = lab.site(SiteConfig::new("office"))?;
        let node = office.host("node")?;
        office.forward(FORWARDED_PORT, &node)?;
        let [printer, echo] = ["printer", "echo"];
        let (printer, echo) = (office.plug(printer, Some(MACS[0]))?, office.plug(echo, Some(MACS[1]))?);
        printer.set_address(office.address(ADDRESSES[0]))?;
        echo.set_address(office.address(ADDRESSES[1]))?;
        Ok(Self { lab, operator, node, printer, echo, _office: office })
    }
}

/// What runs all the time.
struct Cast<'a> {
    stage: &'a Stage,
    operator: Player<'a>,
    node: Player<'a>,
    printer: Printer,
    _echo: Process,
    jobs: usize,
}

impl<'a> Cast<'a> {
    fn start(stage: &'a Stage, programs: &Programs) -> Result<Self> {
        let printer = Printer::start(&stage.lab, &stage.printer)?;
        let listen = format!("0.0.0.0:{ECHO_PORT}");
        let mut echo = stage.echo.command(&programs.agent).args(["echo", &listen, "-"]).spawn()?;
        echo.wait_for_line("it served", STEP_TIMEOUT, |line| (line == "ready").then_some(()))?;
        let mut operator = Player::new(&stage.lab, programs, &stage.operator, &["operator", "run"])?;
        let address = stage.operator.address();
        let places = OPERATOR_PORTS.map(|port| format!("{address}:{port}"));
        let init = ["operator", "init", "--listen", &places[0], "--advertise", &places.join(",")];
        operator.peerage.call(&init)?;
        let [_, https, http] = &places;
        let also = format!("[operator]\nalso_listen = [\"{https}\", \"{http}\"]\n");
        operator.peerage.configure(&also)?;
        operator.start()?;
        operator.peerage.call(&["domain", "add", "acme"])?;
        let (listen, outer) = (
            format!("0.0.0.0:{FORWARDED_PORT}"),
            format!("{}:{FORWARDED_PORT}", stage._office.public_address()),
        );
        let up = ["up", "--listen", &listen, "--advertise", &outer];
        let mut node = Player::new(&stage.lab, programs, &stage.node, &up)?;
        node.join(&operator.peerage, "acme", "user,tunnel")?;
        for (name, mac, service) in
            [("hp", MACS[0], "ipp=631".to_owned()), ("echo", MACS[1], format!("raw={ECHO_PORT}"))]
        {
            let device = ["device", "add", "--domain", "acme", "--name", name, "--mac", mac];
            let via = stage.node.name();
            operator.peerage.call(&[&device[..], &["--via", via, "--service", &service]].concat())?;
        }
        wait_until("the office's node serves both devices", || {
            let status = node.peerage.call(&["status"])?;
            let serves = status.get("serves").and_then(Value::as_array).map_or(0, Vec::len);
            Ok(if serves == 2 { Ok(()) } else { Err(status) })
        })?;
        Ok(Self { stage, operator, node, printer, _echo: echo, jobs: 0 })
    }

    /// Plays one network's story, and notes what worked.
    fn visit(
        &mut self,
        network: &Network,
        programs: &Programs,
        facts: &mut Map<String, Value>,
        say: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let site = self.stage.lab.site(SiteConfig::new(network.short))?;
        let user = site.host("user")?;
        let outside = network.proxy.map(|_| self.stage.lab.public_host(&format!("p-{}", network.short)));
        let outside = outside.transpose()?;
        site.router().load_nft(&network.firewall(outside.as_ref().map(|host| host.address())))?;
        let start = |host: &Host| {
            let manner = network.proxy.context("no proxy")?;
            Proxy::start(&self.stage.lab, host, manner)
        };
        let mut proxy = outside.as_ref().map(start).transpose()?;
        let mut player = Player::new(&self.stage.lab, programs, &user, &["up", "--listen", "0.0.0.0:0"])?;
        if let Some(host) = outside.as_ref().filter(|_| network.proxy.is_some_and(ProxyManner::is_asked)) {
            let url = network.url(&format!("{}:{PROXY_PORT}", host.address()));
            player.peerage.configure(&format!("[network]\nproxy = \"{url}\"\n"))?;
        }
        let mut visit = Visit { cast: self, network, player: &mut player, facts, say };
        let result = visit.play((&site, &mut proxy), programs);
        facts.insert("dropped_packets".to_owned(), dropped(&site)?.into());
        if result.is_err() {
            say(&player.log());
        }
        result?;
        if let Some(daemon) = player.daemon.take() {
            daemon.stop()?;
        }
        Ok(())
    }

    fn stop(self) -> Result<()> {
        self.printer.stop()?;
        [self.node, self.operator].into_iter().filter_map(|it| it.daemon).try_for_each(Daemon::stop)
    }
}

/// A user's visit to a network.
struct Visit<'v, 'c, 'p> {
    cast: &'v mut Cast<'c>,
    network: &'v Network,
    player: &'v mut Player<'p>,
    facts: &'v mut Map<String, Value>,
    say: &'v mut dyn FnMut(&str),
}

impl Visit<'_, '_, '_> {
    fn play(&mut self, (site, proxy): (&Site, &mut Option<Proxy>), programs: &Programs) -> Result<()> {
        self.ask_the_doctor(self.network.cause)?;
        match self.network.expected {
            Expected::NoJoining(why) => return self.be_refused(why),
            Expected::Login(why) => {
                self.be_refused(why)?;
                (self.say)("  it was refused; logging in");
                site.router().load_nft(OPEN)?;
            }
            Expected::Everything | Expected::Outage | Expected::LossOfUdp | Expected::LimitOfUdp => {}
        }
        self.join()?;
        self.note("joined", true);
        (self.say)("  it joined; starting the node");
        let began_at = Instant::now();
        self.player.start()?;
        self.find(began_at)?;
        self.exchange(began_at, programs)?;
        self.print()?;
        if self.network.expected == Expected::LossOfUdp {
            (self.say)("  UDP dies");
            let lost_at = self.lose_udp(site, NO_UDP, programs)?;
            self.wait_for_tls(lost_at)?;
            self.ask_the_doctor("udp-blocked")?;
        }
        if self.network.expected == Expected::LimitOfUdp {
            (self.say)("  UDP is limited");
            self.lose_udp(site, LITTLE_UDP, programs)?;
        }
        if self.network.expected == Expected::Outage {
            (self.say)("  the proxy dies");
            proxy.take().context("there is no proxy")?.kill()?;
            self.ask_the_doctor("proxy-refuses")?;
        }
        Ok(())
    }

    fn note(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// Has the doctor say what is in the way, from outside the network that is not joined yet.
    fn ask_the_doctor(&mut self, expected: &str) -> Result<()> {
        let address = self.cast.stage.operator.address();
        let [own, web, _] = OPERATOR_PORTS.map(|port| format!("{address}:{port}"));
        let report = self.player.peerage.call(&["doctor", "--operator", &own, "--operator", &web])?;
        let cause = report.get("cause").and_then(Value::as_str).context("the doctor names no cause")?;
        self.note("cause", cause);
        ensure!(cause == expected, "the doctor says {cause} and not {expected}: {report}");
        Ok(())
    }

    fn join(&mut self) -> Result<()> {
        let operator = &self.cast.operator.peerage;
        let token = operator.call(&["token", "add", "--domain", "acme", "--role", "user"])?;
        let token = token.get("token").and_then(Value::as_str).context("no token")?;
        let began_at = Instant::now();
        self.player.peerage.call(&["join", token, "--name", self.network.short])?;
        self.note("join_ms", milliseconds(began_at));
        Ok(())
    }

    /// Tries to join where nothing leads out, and expects to be told why.
    fn be_refused(&mut self, why: &str) -> Result<()> {
        let Err(error) = self.join() else { bail!("it joined, although nothing should lead out") };
        let error = format!("{error:#}");
        ensure!(error.contains(why), "the reason is not named, but: {error}");
        self.note("joined", false);
        self.note("refusal_named", why);
        Ok(())
    }

    /// Waits until the node knows a way to both devices.
    fn find(&mut self, began_at: Instant) -> Result<()> {
        loop {
            let devices = self.player.peerage.call(&["devices", "--refresh"]).unwrap_or_default();
            let listed = devices.as_array().into_iter().flatten();
            let reachable = listed.filter(|device| device.get("state") == Some(&json!("reachable"))).count();
            if reachable == MACS.len() {
                break;
            }
            if began_at.elapsed() > FIND_TIMEOUT {
                let status = self.player.peerage.call(&["status"])?;
                let state = status.get("state").cloned().unwrap_or_default();
                bail!("after {FIND_TIMEOUT:?} the node is {state} and knows {devices}");
            }
            thread::sleep(FIND_INTERVAL);
        }
        self.note("found_ms", milliseconds(began_at));
        let status = self.player.peerage.call(&["status"])?;
        let carrier = status.pointer("/carriers/0/carrier").and_then(Value::as_str).unwrap_or("udp");
        self.note("carrier", carrier);
        ensure!(carrier == self.network.carrier, "messages go by {carrier}: {status}");
        Ok(())
    }

    /// Sends bytes both ways and compares.
    fn exchange(&mut self, began_at: Instant, programs: &Programs) -> Result<()> {
        let (local, holder) = self.player.connect("echo:raw")?;
        let run = |bytes: u64| {
            let host = self.player.peerage.host();
            let agent = host.command(&programs.agent).args(["exchange", &local, &bytes.to_string()]);
            agent.run(STEP_TIMEOUT)?.success("the exchange of bytes")
        };
        run(1)?;
        let first_byte_ms = milliseconds(began_at);
        let since = Instant::now();
        run(EXCHANGE_BYTES)?;
        let exchange_ms = milliseconds(since);
        let (kind, remote) = self.player.path()?;
        self.note("first_byte_ms", first_byte_ms);
        self.note("exchanged_bytes", EXCHANGE_BYTES);
        self.note("exchange_ms", exchange_ms);
        self.note("path", json!({ "kind": kind, "remote": remote }));
        holder.stop()
    }

    /// Has UDP dropped by this rule while bytes are on their way. Returns since when.
    fn lose_udp(&mut self, site: &Site, rule: &str, programs: &Programs) -> Result<Instant> {
        let (local, holder) = self.player.connect("echo:raw")?;
        let host = self.player.peerage.host();
        let bytes = EXCHANGE_BYTES.to_string();
        let exchange = host.command(&programs.agent).args(["exchange", &local, &bytes]).spawn()?;
        site.router().load_nft(rule)?;
        let lost_at = Instant::now();
        exchange.finish(STEP_TIMEOUT)?.success("the exchange of bytes while UDP dies")?;
        self.note("exchange_while_udp_dies_ms", milliseconds(lost_at));
        let (kind, remote) = self.player.path()?;
        self.note("path_without_udp", json!({ "kind": kind, "remote": remote }));
        holder.stop()?;
        Ok(lost_at)
    }

    /// Waits until messages travel in another way than by UDP.
    fn wait_for_tls(&mut self, lost_at: Instant) -> Result<()> {
        let player = &self.player;
        wait_until("messages go in another way", || {
            let status = player.peerage.call(&["status"])?;
            let carrier = status.pointer("/carriers/0/carrier").and_then(Value::as_str).unwrap_or_default();
            Ok(if carrier == "tls" { Ok(()) } else { Err(status) })
        })?;
        self.note("messages_in_tls_after_ms", milliseconds(lost_at));
        Ok(())
    }

    fn print(&mut self) -> Result<()> {
        let (local, holder) = self.player.connect("hp:ipp")?;
        let (inside, outside) = self.cast.stage.lab.directory("documents")?;
        let name = format!("{}.pdf", self.network.short);
        let content = device::document(self.cast.jobs as u64, DOCUMENT_BYTES);
        fs::write(outside.join(&name), &content)?;
        let uri = format!("ipp://{local}/ipp/print");
        device::print(self.player.peerage.host(), &uri, &inside.join(&name), STEP_TIMEOUT)?;
        self.cast.jobs += 1;
        self.cast.printer.wait_until_idle(&self.cast.stage.printer)?;
        let jobs = self.cast.printer.jobs()?;
        ensure!(jobs.len() == self.cast.jobs, "the printer has {} jobs", jobs.len());
        ensure!(jobs.last() == Some(&content), "the document was not printed as it was sent");
        self.note("printed", true);
        holder.stop()
    }
}

/// Returns how many packets the network's firewall has dropped.
fn dropped(site: &Site) -> Result<u64> {
    let listing = site.router().command("nft").args(["--json", "list", "counters"]).output(STEP_TIMEOUT)?;
    let listing: Value = serde_json::from_str(&listing)?;
    let objects = listing.get("nftables").and_then(Value::as_array).context("unexpected output of nft")?;
    let counter = objects.iter().find_map(|object| object.get("counter")?.get("packets")?.as_u64());
    counter.context("there is no counter")
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
