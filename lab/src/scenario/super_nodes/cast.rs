//! Who takes part in a network of super-nodes, and the computers on which they run.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::super::binary::Programs;
use super::super::program::{Daemon, Peerage};
use crate::netns::Process;
use crate::topology::{Host, Lab, Site, SiteConfig};

/// The port of every operator and super-node, for UDP and TCP.
const PORT: u16 = 4242;

/// Host number of the device of each site.
const DEVICE_ADDRESS: u8 = 210;

/// How often it is looked whether something that takes time has happened.
///
/// Shorter burns processor time of the programs under test; longer adds half of it to what is measured.
const INTERVAL: Duration = Duration::from_millis(250);

/// What a network is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// The organisation of each computer that is lent as a super-node and has a public address.
    pub(super) lenders: &'static [&'static str],
    /// The organisation of each site; a site has a device, and a computer that serves it and uses the others'.
    pub(super) sites: &'static [&'static str],
}

impl Plan {
    /// Returns the organisations, each once.
    fn organisations(&self) -> Vec<&'static str> {
        let mut names = [self.sites, self.lenders].concat();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// The computers.
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) operator: Host,
    pub(super) lenders: Vec<Host>,
    pub(super) places: Vec<Place>,
}

/// A site with its computers.
pub(super) struct Place {
    pub(super) site: Site,
    pub(super) node: Host,
    device: Host,
}

impl Stage {
    pub(super) fn build(plan: &Plan) -> Result<Self> {
        let lab = Lab::new()?;
        let operator = lab.public_host("operator")?;
        let lenders = (1..=plan.lenders.len())
            .map(|number| lab.public_host(&format!("server-{number}")))
            .collect::<Result<_>>()?;
        let places =
            (1..=plan.sites.len()).map(|number| Place::build(&lab, number)).collect::<Result<_>>()?;
        Ok(Self { lab, operator, lenders, places })
    }

    /// Switches the devices on.
    fn switch_on(&self, programs: &Programs) -> Result<Vec<Process>> {
        let start = |place: &Place| {
            let mut device =
                place.device.command(&programs.agent).args(["device", "0.0.0.0:80", "0.0.0.0:0"]).spawn()?;
            device.wait_for_line("it served", PATIENCE, |line| line.starts_with("ready").then_some(()))?;
            Ok(device)
        };
        self.places.iter().map(start).collect()
    }
}

impl Place {
    fn build(lab: &Lab, number: usize) -> Result<Self> {
        let site = lab.site(SiteConfig::new(format!("site-{number}")))?;
        let node = site.host("node")?;
        let device = site.plug("device", Some(&mac(0x53, number)))?;
        device.set_address(site.address(DEVICE_ADDRESS))?;
        Ok(Self { site, node, device })
    }

    /// Has the device talk to the site's node, which then knows where it is without asking the whole LAN.
    ///
    /// All machines of a lab share the kernel's table of neighbours, of 1,024 entries, which five LANs that are searched at the
    /// same time would fill.
    fn greet(&self, programs: &Programs) -> Result<()> {
        let nobody_listens = format!("{}:1", self.node.address());
        self.device.command(&programs.agent).args(["fetch", &nobody_listens, "1000"]).run(PATIENCE)?;
        Ok(())
    }
}

/// Returns a hardware address of a block that nobody else uses: that which RFC 7042 keeps for examples, made a local one.
pub(super) fn mac(block: u8, number: usize) -> String {
    format!("02:00:5e:00:{block:02x}:{:02x}", number % 256)
}

/// How long something that takes a few seconds may take before the story has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(150);

/// Tries until `find` returns something.
///
/// # Errors
/// When it has not after [`PATIENCE`], or when it fails.
pub(super) fn wait_for<T>(what: &str, mut find: impl FnMut() -> Result<Result<T, String>>) -> Result<T> {
    let began_at = Instant::now();
    loop {
        match find()? {
            Ok(found) => return Ok(found),
            Err(instead) if began_at.elapsed() > PATIENCE => {
                bail!("after {PATIENCE:?} it is not so that {what}; instead: {instead}")
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}

/// A computer with the program: the operator, a super-node, or the node of a site.
pub(super) struct Member<'a> {
    pub(super) name: String,
    pub(super) domain: String,
    pub(super) id: String,
    pub(super) host: &'a Host,
    pub(super) peerage: Peerage<'a>,
    /// Whether its owner has lent it.
    pub(super) is_lent: bool,
    run: Vec<String>,
    daemon: Option<Daemon>,
    log: String,
}

impl<'a> Member<'a> {
    fn new(
        stage: &'a Stage,
        programs: &Programs,
        host: &'a Host,
        (name, domain): (&str, &str),
    ) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            domain: domain.to_owned(),
            id: String::new(),
            host,
            peerage: Peerage::new(&stage.lab, &programs.peerage, host)?,
            is_lent: false,
            run: Vec::new(),
            daemon: None,
            log: String::new(),
        })
    }

    /// Starts what runs on this computer, for the first time or again.
    pub(super) fn start(&mut self) -> Result<()> {
        let run: Vec<&str> = self.run.iter().map(String::as_str).collect();
        self.daemon = Some(self.peerage.start(&run, "ready")?);
        Ok(())
    }

    /// Ends it as a power failure would.
    pub(super) fn kill(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().with_context(|| format!("{} does not run", self.name))?;
        ensure!(daemon.process().is_running(), "{} had ended by itself", self.name);
        daemon.process().kill()?;
        self.keep_log(&mut daemon);
        Ok(())
    }

    /// Ends it in order, if it runs.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.daemon.take().map_or(Ok(()), Daemon::stop)
    }

    pub(super) fn is_up(&self) -> bool {
        self.daemon.is_some()
    }

    /// Returns what it wrote, in all its lives.
    fn log(&mut self) -> String {
        if let Some(mut daemon) = self.daemon.take() {
            self.keep_log(&mut daemon);
        }
        format!("--- {}\n{}", self.name, self.log)
    }

    fn keep_log(&mut self, daemon: &mut Daemon) {
        let process = daemon.process();
        // Writing to a String cannot fail.
        let _ = writeln!(self.log, "{}{}", process.stdout(), process.stderr());
    }
}

/// A network that runs.
pub(super) struct Network<'a> {
    pub(super) operator: Member<'a>,
    pub(super) lenders: Vec<Member<'a>>,
    pub(super) sites: Vec<Member<'a>>,
    _devices: Vec<Process>,
}

impl<'a> Network<'a> {
    /// Starts the operator, has everybody join, and registers the devices; nobody is a super-node yet.
    pub(super) fn start(stage: &'a Stage, programs: &Programs, plan: &Plan) -> Result<Self> {
        let mut operator = Member::new(stage, programs, &stage.operator, ("operator", ""))?;
        let listen = format!("{}:{PORT}", stage.operator.address());
        operator.peerage.call(&["operator", "init", "--listen", &listen])?;
        operator.run = ["operator", "run"].map(str::to_owned).to_vec();
        operator.start()?;
        for domain in plan.organisations() {
            operator.peerage.call(&["domain", "add", domain])?;
        }
        let mut network =
            Self { operator, lenders: Vec::new(), sites: Vec::new(), _devices: stage.switch_on(programs)? };
        for (host, domain) in stage.lenders.iter().zip(plan.lenders) {
            let member = network.join(stage, programs, host, (host.name(), domain), "user,super")?;
            network.lenders.push(member);
        }
        for ((place, domain), number) in stage.places.iter().zip(plan.sites).zip(1..) {
            let name = format!("site-{number}");
            let member = network.join(stage, programs, &place.node, (&name, domain), "user,tunnel")?;
            place.greet(programs)?;
            let (device, mac) = (device(number), mac(0x53, number));
            network.add_device(domain, &device, &mac, &member.id)?;
            network.sites.push(member);
        }
        Ok(network)
    }

    fn join(
        &self,
        stage: &'a Stage,
        programs: &Programs,
        host: &'a Host,
        (name, domain): (&str, &str),
        roles: &str,
    ) -> Result<Member<'a>> {
        let mut member = Member::new(stage, programs, host, (name, domain))?;
        let token = self.operator.peerage.call(&["token", "add", "--domain", domain, "--role", roles])?;
        let joined = member.peerage.call(&["join", text(&token, "token")?, "--name", name])?;
        text(&joined, "id")?.clone_into(&mut member.id);
        let listen = if roles.contains("super") { format!("0.0.0.0:{PORT}") } else { "0.0.0.0:0".to_owned() };
        member.run = ["up", "--listen", &listen].map(str::to_owned).to_vec();
        member.start()?;
        Ok(member)
    }

    /// Registers a device whose web page is to be reached.
    pub(super) fn add_device(&self, domain: &str, name: &str, mac: &str, via: &str) -> Result<()> {
        let device = ["device", "add", "--domain", domain, "--name", name, "--mac", mac];
        self.operator.peerage.call(&[&device[..], &["--via", via, "--service", "web=80"]].concat())?;
        Ok(())
    }

    /// Returns what the administrator sees of the super-nodes.
    pub(super) fn super_list(&self) -> Result<Vec<Value>> {
        list(&self.operator.peerage.call(&["super", "list"])?)
    }

    /// Returns the parts of the table, each with the ids of its holders and whether the operator stands in.
    pub(super) fn segments(&self) -> Result<Vec<Segment>> {
        let map = self.operator.peerage.call(&["segment", "map"])?;
        let segments = list(map.get("segments").with_context(|| format!("no segments in {map}"))?)?;
        segments.iter().map(Segment::read).collect()
    }

    /// Returns everybody's logs, and ends everybody.
    pub(super) fn logs(&mut self) -> Vec<String> {
        let members = std::iter::once(&mut self.operator).chain(&mut self.lenders).chain(&mut self.sites);
        members.map(Member::log).collect()
    }

    /// Ends everybody in order.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.sites.iter_mut().chain(&mut self.lenders).try_for_each(Member::stop)?;
        self.operator.stop()
    }
}

/// A part of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) from: String,
    pub(super) to: String,
    /// The ids of those who hold it.
    pub(super) holders: Vec<String>,
    pub(super) stands_in: bool,
}

impl Segment {
    fn read(value: &Value) -> Result<Self> {
        let holders = list(value.get("holders").with_context(|| format!("no holders in {value}"))?)?;
        Ok(Self {
            from: text(value, "from")?.to_owned(),
            to: text(value, "to")?.to_owned(),
            holders: holders
                .iter()
                .map(|holder| Ok(text(holder, "id")?.to_owned()))
                .collect::<Result<_>>()?,
            stands_in: value.get("stands_in").and_then(Value::as_bool).context("not told who stands in")?,
        })
    }
}

/// Returns the name of the device of a site.
pub(super) fn device(site: usize) -> String {
    format!("device-{site}")
}

/// Returns a text field of an object.
pub(super) fn text<'v>(value: &'v Value, field: &str) -> Result<&'v str> {
    value.get(field).and_then(Value::as_str).with_context(|| format!("no {field} in {value}"))
}

/// Returns the elements of a list.
pub(super) fn list(value: &Value) -> Result<Vec<Value>> {
    value.as_array().cloned().with_context(|| format!("not a list: {value}"))
}
