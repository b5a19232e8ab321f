//! The networks of the stories in which something happens to an open tunnel: an operator on the Internet, an office with
//! a device and two nodes whose ports the router forwards, two LANs for the user, each behind NAT and a wire.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::binary::Programs;
use super::program::{Daemon, Peerage};
use crate::netns::Process;
use crate::topology::{Host, Lab, Site, SiteConfig, WIRE};
use crate::wire::Manner;

/// The operator's port, for messages by UDP and for HTTPS and relays by TCP.
const OPERATOR_PORT: u16 = 4240;

/// The ports that the office's router forwards to its two nodes.
const FORWARDED_PORTS: [u16; 2] = [4242, 4243];

/// The port of the device.
const DEVICE_PORT: u16 = 7000;

/// The device's hardware address; of the block that RFC 7042 keeps for examples, made a local one.
const DEVICE_MAC: &str = "02:00:5e:00:53:07";

/// Host number of the device in the office.
const DEVICE_HOST: u8 = 50;

/// How long a step before the story itself may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often it is looked whether something has come about.
const INTERVAL: Duration = Duration::from_millis(50);

/// Who is where.
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) operator: Host,
    pub(super) office: Site,
    pub(super) home: Site,
    pub(super) cafe: Site,
    pub(super) nodes: [Host; 2],
    pub(super) device: Host,
    pub(super) user: Host,
}

impl Stage {
    pub(super) fn build() -> Result<Self> {
        let lab = Lab::new()?;
        let operator = lab.public_host("operator")?;
        let office = lab.site(SiteConfig::new("office").wired())?;
        let home = lab.site(SiteConfig::new("home").wired())?;
        let cafe = lab.site(SiteConfig::new("cafe").lan([10, 20, 30, 0].into()))?;
        let nodes = [office.host("node1")?, office.host("node2")?];
        for (port, node) in FORWARDED_PORTS.into_iter().zip(&nodes) {
            office.forward(port, node)?;
        }
        let device = office.plug("device", Some(DEVICE_MAC))?;
        device.set_address(office.address(DEVICE_HOST))?;
        let user = home.host("user")?;
        Ok(Self { lab, operator, office, home, cafe, nodes, device, user })
    }

    /// Lets packets pass between the office and the user's LANs, or lets them vanish; the operator is reached in any case.
    pub(super) fn let_pass(&self, passes: bool) -> Result<()> {
        let office = self.office.public_address();
        let [home, cafe] = [&self.home, &self.cafe].map(Site::public_address);
        let rules = if passes {
            String::new()
        } else {
            format!(
                "  ip saddr {office} ip daddr {{ {home}, {cafe} }} drop\n  \
                 ip daddr {office} ip saddr {{ {home}, {cafe} }} drop\n"
            )
        };
        self.wall(&rules)
    }

    /// Lets everything on the Internet vanish, or no more.
    pub(super) fn silence(&self, is_silent: bool) -> Result<()> {
        self.wall(if is_silent { "  drop\n" } else { "" })
    }

    fn wall(&self, rules: &str) -> Result<()> {
        self.lab.core().load_nft(&format!(
            "table inet wall {{}}\ndelete table inet wall\ntable inet wall {{\n chain forward {{\n  \
             type filter hook forward priority filter;\n{rules} }}\n}}\n"
        ))
    }
}

/// The programs that run.
pub(super) struct Cast<'a> {
    pub(super) stage: &'a Stage,
    agent: PathBuf,
    pub(super) operator: Player<'a>,
    pub(super) nodes: [Player<'a>; 2],
    pub(super) user: Player<'a>,
    /// The near end of the tunnel and the process that holds it.
    pub(super) tunnel: Option<(String, Daemon)>,
    pub(super) device: Process,
    wires: [Process; 2],
}

/// A computer with the program.
pub(super) struct Player<'a> {
    peerage: Peerage<'a>,
    run: Vec<String>,
    pub(super) daemon: Option<Daemon>,
    /// What earlier processes wrote.
    log: String,
}

impl<'a> Player<'a> {
    fn new(stage: &'a Stage, programs: &Programs, host: &'a Host, run: &[&str]) -> Result<Self> {
        let peerage = Peerage::new(&stage.lab, &programs.peerage, host)?;
        let run = run.iter().copied().map(str::to_owned).collect();
        Ok(Self { peerage, run, daemon: None, log: String::new() })
    }

    /// Starts what runs here, for the first time or again.
    pub(super) fn start(&mut self) -> Result<()> {
        let run: Vec<&str> = self.run.iter().map(String::as_str).collect();
        self.daemon = Some(self.peerage.start(&run, "ready")?);
        Ok(())
    }

    pub(super) fn process(&mut self) -> Result<&mut Process> {
        Ok(self.daemon.as_mut().context("it does not run")?.process())
    }

    /// Ends it as a power failure would.
    pub(super) fn kill(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("it does not run")?;
        ensure!(daemon.process().is_running(), "{} had ended by itself", daemon.process().name());
        daemon.process().kill()?;
        self.log.push_str(&daemon.process().stderr());
        Ok(())
    }

    /// Returns all that it wrote.
    fn log(&mut self) -> String {
        let last = self.daemon.as_mut().map(|daemon| daemon.process().stderr());
        format!("{}{}", self.log, last.unwrap_or_default())
    }
}

impl<'a> Cast<'a> {
    /// Starts everything, up to where the user's node knows a way to the device.
    pub(super) fn start(stage: &'a Stage, programs: &Programs) -> Result<Self> {
        let wires = [start_wire(&stage.office, programs)?, start_wire(&stage.home, programs)?];
        let listen = format!("0.0.0.0:{DEVICE_PORT}");
        let mut device = stage.device.command(&programs.agent).args(["flow-device", &listen, "-"]).spawn()?;
        device.wait_for_line("it served", PATIENCE, |line| (line == "ready").then_some(()))?;

        let player = |host, run: &[&str]| Player::new(stage, programs, host, run);
        let mut operator = player(&stage.operator, &["operator", "run"])?;
        let listen = format!("{}:{OPERATOR_PORT}", stage.operator.address());
        operator.peerage.call(&["operator", "init", "--listen", &listen])?;
        operator.start()?;
        operator.peerage.call(&["domain", "add", "acme"])?;
        let node = |index: usize, port: u16| -> Result<Player<'a>> {
            let (listen, public) = (format!("0.0.0.0:{port}"), stage.office.public_address());
            let host = stage.nodes.get(index).context("no such node")?;
            player(host, &["up", "--listen", &listen, "--advertise", &format!("{public}:{port}")])
        };
        let [first, second] = FORWARDED_PORTS;
        let nodes = [node(0, first)?, node(1, second)?];
        let user = player(&stage.user, &["up", "--listen", "0.0.0.0:0"])?;
        let agent = programs.agent.clone();
        let mut cast = Self { stage, agent, operator, nodes, user, tunnel: None, device, wires };
        cast.join()?;
        cast.find_device()?;
        Ok(cast)
    }

    fn join(&mut self) -> Result<()> {
        let [first, second] = &mut self.nodes;
        for (player, name) in [(first, "node1"), (second, "node2"), (&mut self.user, "user")] {
            let token = self.operator.peerage.call(&["token", "add", "--domain", "acme"])?;
            let token = token.get("token").and_then(Value::as_str).context("no token")?;
            player.peerage.call(&["join", token, "--name", name])?;
            player.start()?;
        }
        let device = ["device", "add", "--domain", "acme", "--name", "device", "--mac", DEVICE_MAC];
        let service = format!("raw={DEVICE_PORT}");
        self.operator.peerage.call(&[&device[..], &["--via", "node1", "--service", &service]].concat())?;
        Ok(())
    }

    fn find_device(&self) -> Result<()> {
        wait_until("both of the office's nodes serve the device", || {
            for node in &self.nodes {
                let status = node.peerage.call(&["status"])?;
                if status.get("serves") != Some(&json!(["device"])) {
                    return Ok(Err(status));
                }
            }
            Ok(Ok(()))
        })?;
        wait_until("the user's node knows a way to the device", || {
            let devices = self.user.peerage.call(&["devices", "--refresh"])?;
            let is_known = devices.get(0).and_then(|device| device.get("state")) == Some(&json!("reachable"));
            Ok(if is_known { Ok(()) } else { Err(devices) })
        })
    }

    /// Opens the tunnel.
    pub(super) fn connect(&mut self) -> Result<()> {
        let daemon =
            self.user.peerage.start(&["connect", "device:raw", "--listen", "127.0.0.1:0"], "listening")?;
        let local =
            daemon.first().get("local").and_then(Value::as_str).context("no local address")?.to_owned();
        self.tunnel = Some((local, daemon));
        Ok(())
    }

    /// Returns the near end of the tunnel.
    pub(super) fn local(&self) -> Result<String> {
        Ok(self.tunnel.as_ref().context("there is no tunnel")?.0.clone())
    }

    /// Returns the process that holds the tunnel.
    pub(super) fn holder(&mut self) -> Result<&mut Process> {
        Ok(self.tunnel.as_mut().context("there is no tunnel")?.1.process())
    }

    /// Returns the kind of the tunnel's path, and its far end, as the user's node tells.
    pub(super) fn path(&self) -> Result<(String, String)> {
        let tunnels = self.user.peerage.tunnels()?;
        let path = tunnels.get(0).and_then(|tunnel| tunnel.get("path"));
        let text = |name| path.and_then(|path| path.get(name)).and_then(Value::as_str).unwrap_or("none");
        Ok((text("kind").to_owned(), text("remote").to_owned()))
    }

    /// Waits until the tunnel takes a path of this kind.
    pub(super) fn wait_for_path(&self, kind: &str) -> Result<()> {
        wait_until(&format!("the path is {kind}"), || {
            let path = self.path()?;
            Ok(if path.0 == kind { Ok(()) } else { Err(json!([path.0, path.1])) })
        })
    }

    /// Returns which of the office's nodes the tunnel leads to.
    pub(super) fn serving(&self) -> Result<usize> {
        let (_, remote) = self.path()?;
        let own = |port: &u16| remote.ends_with(&format!(":{port}"));
        FORWARDED_PORTS.iter().position(own).with_context(|| format!("the tunnel leads to {remote}"))
    }

    /// Sets the manner of the office's and the home's wire.
    pub(super) fn set_wires(&mut self, manner: Manner) -> Result<()> {
        self.wires.iter_mut().try_for_each(|wire| wire.tell(manner.to_line().as_bytes()))
    }

    /// Runs a role of the agent on the user's computer.
    pub(super) fn agent(&self, arguments: &[&str]) -> Result<Process> {
        self.stage.user.command(&self.agent).args(arguments).spawn()
    }

    /// Returns what everybody wrote.
    pub(super) fn logs(&mut self) -> String {
        let [first, second] = &mut self.nodes;
        let players =
            [("operator", &mut self.operator), ("node1", first), ("node2", second), ("user", &mut self.user)];
        players.map(|(name, player)| format!("--- {name}\n{}", player.log())).concat()
    }

    /// Ends all in order.
    pub(super) fn stop(mut self) -> Result<()> {
        let tunnel = self.tunnel.take().map(|(_, daemon)| daemon);
        let [first, second] = self.nodes;
        let players = [self.user.daemon, first.daemon, second.daemon, self.operator.daemon];
        tunnel.into_iter().chain(players.into_iter().flatten()).try_for_each(Daemon::stop)
    }
}

fn start_wire(site: &Site, programs: &Programs) -> Result<Process> {
    let machine = site.wire().context("the site has no wire")?;
    let mut wire = machine.command(&programs.agent).arg("wire").args(WIRE).spawn()?;
    wire.wait_for_line("it carried", PATIENCE, |line| (line == "ready").then_some(()))?;
    Ok(wire)
}

/// Tries until `look` finds it so; it returns instead what it has found.
pub(super) fn wait_until(what: &str, mut look: impl FnMut() -> Result<Result<(), Value>>) -> Result<()> {
    let began_at = Instant::now();
    while let Err(instead) = look()? {
        ensure!(began_at.elapsed() < PATIENCE, "after {PATIENCE:?} it is not so that {what}, but {instead}");
        thread::sleep(INTERVAL);
    }
    Ok(())
}
