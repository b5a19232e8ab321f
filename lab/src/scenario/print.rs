//! Printing to a printer on another network (scenario A of Ynddal 2016, section 3.1.1).
//!
//! An operator is on the Internet. An office, behind NAT, has a printer and a node whose port the router forwards, or gives when it is
//! asked, or neither: then it goes through holes in both routers where these can be made, else through the operator, which stands in for
//! super-nodes as forwarder and relay. A user is behind another NAT, in a LAN with the same prefix, where another computer even has the
//! printer's address. The user prints; then the printer gets another address by DHCP, and the user prints again.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Report;
use super::binary::Programs;
use super::program::{Daemon, Peerage};
use crate::capture;
use crate::device::{self, DhcpServer, MappingDaemon, MappingProtocol, Printer};
use crate::netns::{Egress, Nat, Process};
use crate::topology::{Host, Lab, Site, SiteConfig};

/// The port that the office's router forwards, for UDP and TCP.
const FORWARDED_PORT: u16 = 4242;

/// The operator's port, for messages by UDP and for HTTPS.
const OPERATOR_PORT: u16 = 4240;

/// The printer's hardware address; of the block that RFC 7042 keeps for examples, made a local one.
const PRINTER_MAC: &str = "02:00:5e:00:53:01";

/// Host numbers of the printer's first and second address.
const PRINTER_ADDRESSES: [u8; 2] = [210, 220];

/// Size of each document in bytes: more than any buffer on the way holds, and no multiple of their sizes.
const DOCUMENT_BYTES: usize = 3_000_017;

/// Texts of a printing conversation, and the beginning of each document.
const READABLE: [&str; 4] = ["/ipp/print", "attributes-charset", "requesting-user-name", "%PDF-1.4\n"];

/// A few bytes of a document are looked for once in so many bytes.
const NEEDLE_SPACING_BYTES: usize = 500_000;

/// How long the network may take to find the printer after it was registered.
const FIND_TIMEOUT: Duration = Duration::from_secs(120);

/// How often the user's node is asked whether it can reach the printer.
const FIND_INTERVAL: Duration = Duration::from_millis(250);

/// How long printing one document may take, including that the office looks for a printer that moved.
const PRINT_TIMEOUT: Duration = Duration::from_secs(120);

/// How the office's node is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The office's router forwards a port to it.
    Forwarded,
    /// Nobody has configured anything, and the office's router gives ports to those who ask.
    Mapped(MappingProtocol),
    /// Nobody has configured anything, and both routers let UDP through where both ends send.
    Punched,
    /// Nobody has configured anything, and both routers give every connection another port: both nodes meet at the operator's
    /// relay.
    Relayed,
    /// As before, and no router lets UDP through: what both nodes say to the operator travels over TCP, too.
    NoUdp,
}

/// Plays the story with these programs and tells `progress` about each step.
pub fn print(programs: &Programs, reach: Reach, progress: &mut dyn FnMut(&str)) -> Report {
    let mut report = Report::default();
    report.note("jobs", 0);
    report.note("identical", 0);
    let (began_at, daemons) = (Instant::now(), Vec::new());
    let mut story = Story { began_at, reach, progress, report: &mut report, daemons };
    let result = story.play(programs);
    if result.is_err() {
        story.show_logs();
    }
    drop(story);
    report.error = result.err();
    report
}

struct Story<'a> {
    began_at: Instant,
    reach: Reach,
    progress: &'a mut dyn FnMut(&str),
    report: &'a mut Report,
    daemons: Vec<Daemon>,
}

/// Who takes part.
struct Stage {
    lab: Lab,
    office: Site,
    operator: Host,
    node: Host,
    printer: Host,
    user: Host,
    _gateway: Option<MappingDaemon>,
    /// Has the printer's first address in the user's LAN.
    _decoy: Host,
}

impl Stage {
    fn build(reach: Reach) -> Result<Self> {
        let lab = Lab::new()?;
        let operator = lab.public_host("operator")?;
        let nat = if reach == Reach::Relayed { Nat::SYMMETRIC } else { Nat::Masquerade };
        let egress = if reach == Reach::NoUdp { Egress::NoUdp } else { Egress::Open };
        let site = |name| lab.site(SiteConfig::new(name).nat(nat).egress(egress));
        let [office, home] = ["office", "home"].map(site);
        let (office, home) = (office?, home?);
        let node = office.host("node")?;
        if reach == Reach::Forwarded {
            office.forward(FORWARDED_PORT, &node)?;
        }
        let gateway = match reach {
            Reach::Mapped(protocol) => Some(MappingDaemon::start(&lab, &office, protocol)?),
            Reach::Forwarded | Reach::Punched | Reach::Relayed | Reach::NoUdp => None,
        };
        let printer = office.plug("printer", Some(PRINTER_MAC))?;
        let user = home.host("user")?;
        let decoy = home.plug("decoy", None)?;
        decoy.set_address(home.address(PRINTER_ADDRESSES[0]))?;
        ensure!(node.address() == user.address(), "the two networks should have the same addresses");
        count_crossing((&lab, &office, &home), &operator, reach)?;
        Ok(Self { lab, office, operator, node, printer, user, _gateway: gateway, _decoy: decoy })
    }

    /// Returns how many bytes crossed the Internet towards the office, to the forwarded port or from the relay.
    fn crossed_bytes(&self) -> Result<u64> {
        let listing =
            self.lab.core().command("nft").args(["--json", "list", "counters"]).output(FIND_TIMEOUT)?;
        let listing: Value = serde_json::from_str(&listing)?;
        let objects =
            listing.get("nftables").and_then(Value::as_array).context("unexpected output of nft")?;
        objects
            .iter()
            .find_map(|object| object.get("counter")?.get("bytes")?.as_u64())
            .context("there is no counter")
    }
}

fn count_crossing((lab, office, home): (&Lab, &Site, &Site), operator: &Host, reach: Reach) -> Result<()> {
    let what = match reach {
        // Nobody else wants the port, so the router gives the one that is asked for.
        Reach::Forwarded | Reach::Mapped(_) => format!("tcp dport {FORWARDED_PORT}"),
        // From the home's router, whatever its ports.
        Reach::Punched => format!("ip saddr {} meta l4proto udp", home.public_address()),
        Reach::Relayed | Reach::NoUdp => format!("ip saddr {} tcp sport {OPERATOR_PORT}", operator.address()),
    };
    lab.core().load_nft(&format!(
        "table inet watch {{\n counter crossed {{ }}\n chain forward {{\n  \
         type filter hook forward priority filter;\n  \
         ip daddr {} {what} counter name crossed\n }}\n}}\n",
        office.public_address()
    ))
}

impl Story<'_> {
    fn say(&mut self, text: &str) {
        (self.progress)(&format!("{:7.2} s  {text}", self.began_at.elapsed().as_secs_f64()));
    }

    fn play(&mut self, programs: &Programs) -> Result<()> {
        self.say("building an office and a home with the same prefix, each behind NAT");
        let stage = Stage::build(self.reach)?;
        let first_lease =
            DhcpServer::start(&stage.lab, &stage.office, stage.office.address(PRINTER_ADDRESSES[0]))?;
        first_lease.lease(&stage.printer)?;
        self.say("switching on the printer");
        let printer = Printer::start(&stage.lab, &stage.printer)?;
        let listener = self.listen(&stage, programs)?;

        let [operator, node, user] = [&stage.operator, &stage.node, &stage.user]
            .map(|host| Peerage::new(&stage.lab, &programs.peerage, host));
        let (operator, node, user) = (operator?, node?, user?);
        self.start_operator(&stage, &operator)?;
        self.start_nodes(&stage, &operator, &node, &user)?;
        self.find_printer(&user)?;
        if let Reach::Mapped(protocol) = self.reach {
            self.find_mapping(&node, protocol)?;
        }

        if self.reach == Reach::NoUdp {
            self.find_carriers([&node, &user])?;
        }
        self.say("opening the tunnel");
        let tunnel = user.start(&["connect", "hp:ipp", "--listen", "127.0.0.1:0"], "listening")?;
        let local =
            tunnel.first().get("local").and_then(Value::as_str).context("no local address")?.to_owned();
        self.daemons.push(tunnel);
        let uri = format!("ipp://{local}/ipp/print");
        self.print_document(&stage, &printer, &uri, 1)?;
        let tunnels = user.tunnels()?;
        let path = tunnels.get(0).and_then(|tunnel| tunnel.get("path")).cloned();
        self.report.note("path", path.context("the node knows no path of its tunnel")?);

        self.say("the printer gets another address");
        drop(first_lease);
        let second_lease =
            DhcpServer::start(&stage.lab, &stage.office, stage.office.address(PRINTER_ADDRESSES[1]))?;
        second_lease.lease(&stage.printer)?;
        self.print_document(&stage, &printer, &uri, 2)?;

        let crossed = stage.crossed_bytes()?;
        self.report.note("crossed_bytes", crossed);
        // A tunnel begins at the relay, and may have printed before there is a hole.
        let documents = if self.reach == Reach::Punched { 1 } else { 2 };
        ensure!(
            crossed >= documents * DOCUMENT_BYTES as u64,
            "only {crossed} bytes crossed the Internet on the way that they should have taken"
        );
        self.heard_nothing_readable(listener)?;
        printer.stop()?;
        self.say("ending all programs in order");
        while let Some(daemon) = self.daemons.pop() {
            daemon.stop()?;
        }
        if let Reach::Mapped(_) = self.reach {
            let left = MappingDaemon::given(&stage.office)?;
            ensure!(left == 0, "the router still forwards {left} ports after the node has ended");
        }
        self.report.note("total_ms", milliseconds(self.began_at.elapsed()));
        Ok(())
    }

    /// Begins to listen at the core for what only the user, the office's node and the printer may read.
    fn listen(&mut self, stage: &Stage, programs: &Programs) -> Result<Process> {
        let (inside, outside) = stage.lab.directory("capture")?;
        let documents = [1, 2].map(document);
        let middles = documents.iter().flat_map(|document| document.chunks_exact(NEEDLE_SPACING_BYTES));
        let samples = middles.filter_map(|chunk| chunk.first_chunk::<16>().map(<[u8; 16]>::as_slice));
        let needles: Vec<&[u8]> = READABLE.iter().map(|text| text.as_bytes()).chain(samples).collect();
        capture::write_needles(&outside.join("needles"), &needles)?;
        let mut listener = stage
            .lab
            .core()
            .command(&programs.agent)
            .arg("capture")
            .arg(inside.join("needles"))
            .arg("-")
            .spawn()?;
        listener.wait_for_line("it listened", PRINT_TIMEOUT, |line| (line == "ready").then_some(()))?;
        Ok(listener)
    }

    /// Makes sure that nothing readable crossed the Internet.
    fn heard_nothing_readable(&mut self, mut listener: Process) -> Result<()> {
        listener.feed(&[]);
        let output = listener.finish(PRINT_TIMEOUT)?.success("listening to the Internet")?.stdout;
        let heard: Value = serde_json::from_str(output.lines().last().unwrap_or_default())?;
        self.report.note("heard_bytes", heard.get("bytes").cloned().unwrap_or_default());
        let readable =
            heard.get("needles").and_then(Value::as_array).context("unexpected report of the listener")?;
        self.report.note("readable", readable.len());
        ensure!(
            readable.is_empty(),
            "a part of the documents or of the conversation was readable on the Internet"
        );
        Ok(())
    }

    fn start_operator(&mut self, stage: &Stage, operator: &Peerage<'_>) -> Result<()> {
        self.say("starting the operator");
        let listen = format!("{}:{OPERATOR_PORT}", stage.operator.address());
        operator.call(&["operator", "init", "--listen", &listen])?;
        self.daemons.push(operator.start(&["operator", "run"], "ready")?);
        operator.call(&["domain", "add", "acme"])?;
        Ok(())
    }

    fn start_nodes(
        &mut self,
        stage: &Stage,
        operator: &Peerage<'_>,
        node: &Peerage<'_>,
        user: &Peerage<'_>,
    ) -> Result<()> {
        self.say("the nodes of the office and of the user join");
        for (peerage, name) in [(node, "office"), (user, "user")] {
            let token = operator.call(&["token", "add", "--domain", "acme"])?;
            let token = token.get("token").and_then(Value::as_str).context("no token")?;
            peerage.call(&["join", token, "--name", name])?;
        }
        let listen = format!("0.0.0.0:{FORWARDED_PORT}");
        let advertise = format!("{}:{FORWARDED_PORT}", stage.office.public_address());
        let up = ["up", "--listen", &listen, "--advertise", &advertise];
        let up = if self.reach == Reach::Forwarded { &up[..] } else { &up[..3] };
        self.daemons.push(node.start(up, "ready")?);
        self.daemons.push(user.start(&["up", "--listen", "0.0.0.0:0"], "ready")?);

        self.say("registering the printer");
        let nodes = operator.call(&["node", "list", "--domain", "acme"])?;
        let id = find(&nodes, "name", "office").and_then(|node| node.get("id")?.as_str());
        let id = id.with_context(|| format!("no node called office in {nodes}"))?;
        let device = ["device", "add", "--domain", "acme", "--name", "hp", "--mac", PRINTER_MAC];
        operator.call(&[&device[..], &["--via", id, "--service", "ipp=631"]].concat())?;
        Ok(())
    }

    /// Waits until the user's node knows a way to the printer.
    fn find_printer(&mut self, user: &Peerage<'_>) -> Result<()> {
        self.say("waiting until the user's node knows a way to the printer");
        let began_at = Instant::now();
        loop {
            let devices = user.call(&["devices", "--refresh"])?;
            let state = find(&devices, "name", "hp").and_then(|device| device.get("state")?.as_str());
            if state == Some("reachable") {
                self.report.note("found_ms", milliseconds(began_at.elapsed()));
                return Ok(());
            }
            ensure!(
                began_at.elapsed() < FIND_TIMEOUT,
                "after {FIND_TIMEOUT:?} the user's node knows: {devices}"
            );
            thread::sleep(FIND_INTERVAL);
        }
    }

    /// Waits until the office's router has given a port, and the user's node has heard of it.
    fn find_mapping(&mut self, node: &Peerage<'_>, protocol: MappingProtocol) -> Result<()> {
        self.say("waiting until the office's router has given a port");
        let began_at = Instant::now();
        let held = json!({ "state": "held", "protocol": protocol.name() });
        loop {
            let status = node.call(&["status"])?;
            let mapping = status.pointer("/port_mappings/0").cloned().unwrap_or_default();
            let is_held = ["state", "protocol"].iter().all(|key| mapping.get(key) == held.get(key));
            if is_held {
                self.report.note("mapping", mapping);
                self.report.note("mapped_ms", milliseconds(began_at.elapsed()));
                return Ok(());
            }
            ensure!(
                began_at.elapsed() < FIND_TIMEOUT,
                "after {FIND_TIMEOUT:?} the router has given: {mapping}"
            );
            thread::sleep(FIND_INTERVAL);
        }
    }

    /// Makes sure that both nodes know by what their messages travel, and why.
    fn find_carriers(&mut self, nodes: [&Peerage<'_>; 2]) -> Result<()> {
        for node in nodes {
            let status = node.call(&["status"])?;
            let carrier = status.pointer("/carriers/0").cloned().unwrap_or_default();
            let told = ["carrier", "why"].map(|key| carrier.get(key).and_then(Value::as_str));
            ensure!(told == [Some("tls"), Some("udp_silent")], "messages travel by {carrier}");
            self.report.note("carrier", carrier);
        }
        Ok(())
    }

    fn print_document(&mut self, stage: &Stage, printer: &Printer, uri: &str, number: usize) -> Result<()> {
        self.say(&format!("printing document {number}, {DOCUMENT_BYTES} bytes, to {uri}"));
        let (inside, outside) = stage.lab.directory("documents")?;
        let (name, content) = (format!("{number}.pdf"), document(number));
        fs::write(outside.join(&name), &content)?;
        let began_at = Instant::now();
        device::print(&stage.user, uri, &inside.join(&name), PRINT_TIMEOUT)?;
        self.report.note(&format!("job_{number}_ms"), milliseconds(began_at.elapsed()));
        printer.wait_until_idle(&stage.printer)?;
        let jobs = printer.jobs()?;
        self.report.note("jobs", jobs.len());
        ensure!(jobs.len() == number, "the printer has {} jobs after document {number}", jobs.len());
        ensure!(jobs.last() == Some(&content), "document {number} was not printed as it was sent");
        self.report.note("identical", number);
        Ok(())
    }

    fn show_logs(&mut self) {
        for mut daemon in std::mem::take(&mut self.daemons) {
            let process = daemon.process();
            let text = format!("--- {}\n{}{}", process.name(), process.stdout(), process.stderr());
            (self.progress)(&text);
        }
    }
}

fn document(number: usize) -> Vec<u8> {
    device::document(number as u64, DOCUMENT_BYTES)
}

/// Returns the first object of a list whose field `key` is `value`.
fn find<'v>(list: &'v Value, key: &str, value: &str) -> Option<&'v Value> {
    list.as_array()?.iter().find(|object| object.get(key) == Some(&json!(value)))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
