//! The networks of the stories in which something happens to an open tunnel: an operator on the Internet, an office with
//! a device and two nodes whose ports the router forwards, two LANs for the user, each behind NAT and a wire. If wanted there
//! are super-nodes on the Internet, which then relay in the operator's place, and more users.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::binary::Programs;
use super::player::{self, Player, RELAY_PORT, wait_until};
use super::program::Daemon;
use crate::device::{MappingDaemon, MappingProtocol};
use crate::netns::{Behaviour, Nat, Process, Translation};
use crate::topology::{Host, Lab, Site, SiteConfig, WIRE};
use crate::wire::Manner;

/// The ports that the office's router forwards to its two nodes.
const FORWARDED_PORTS: [u16; 2] = [4242, 4243];

/// The web's port at which super-nodes take connections as well, if they do.
pub(super) const WEB_PORT: u16 = 443;

/// The port of the device.
const DEVICE_PORT: u16 = 7000;

/// The device's hardware address; of the block that RFC 7042 keeps for examples, made a local one.
const DEVICE_MAC: &str = "02:00:5e:00:53:07";

/// Host number of the device in the office.
const DEVICE_HOST: u8 = 50;

/// How long a step before the story itself may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How the office's nodes are reached from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Entrance {
    /// The office's router forwards a port to each.
    #[default]
    Forwarded,
    /// It gives ports to those who ask it by PCP.
    Mapped,
    /// Not at all, so that a direct path has to be punched through both routers.
    Punched,
    /// As before, and both routers forget a mapping soon.
    PunchedForAMoment,
}

/// What there is beside those computers that are always there.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct More {
    /// Public computers that their owners lend as super-nodes; with three of them the operator steps back.
    pub(super) lenders: usize,
    /// Users beside the first, in the same LAN at first.
    pub(super) users: usize,
    pub(super) entrance: Entrance,
    /// Whether lenders take connections at [`WEB_PORT`] as well.
    pub(super) is_at_web_ports: bool,
    /// What the operator gives as a relay, as options of `operator run`.
    pub(super) relays: &'static [&'static str],
    /// What lenders give, as options of `super on`.
    pub(super) lends: &'static [&'static str],
}

impl More {
    /// Nobody more, and all give what they usually do.
    pub(super) const NONE: Self = Self {
        lenders: 0,
        users: 0,
        entrance: Entrance::Forwarded,
        is_at_web_ports: false,
        relays: &[],
        lends: &[],
    };
}

/// How long a mapping lives in routers that forget soon: less than RFC 4787 allows, and what some do.
const SHORT_LIFETIME: Duration = Duration::from_secs(20);

/// Who is where.
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) operator: Host,
    pub(super) lenders: Vec<Host>,
    pub(super) office: Site,
    pub(super) home: Site,
    pub(super) cafe: Site,
    pub(super) nodes: [Host; 2],
    pub(super) device: Host,
    pub(super) user: Host,
    pub(super) more_users: Vec<Host>,
    more: More,
    /// Maps ports as long as it lives.
    _mapping: Option<MappingDaemon>,
}

impl Stage {
    pub(super) fn build(more: More) -> Result<Self> {
        let lab = Lab::new()?;
        let operator = lab.public_host("operator")?;
        let lenders = (1..=more.lenders).map(|number| lab.public_host(&format!("lender{number}")));
        let lenders = lenders.collect::<Result<_>>()?;
        let nat = if more.entrance == Entrance::PunchedForAMoment {
            let filtering = Behaviour::AddressAndPortDependent;
            let nat = Translation::new(Behaviour::EndpointIndependent, filtering);
            Nat::Translation(nat.lifetime(SHORT_LIFETIME))
        } else {
            Nat::Masquerade
        };
        let office = lab.site(SiteConfig::new("office").nat(nat).wired())?;
        let home = lab.site(SiteConfig::new("home").nat(nat).wired())?;
        let cafe = lab.site(SiteConfig::new("cafe").lan([10, 20, 30, 0].into()))?;
        let nodes = [office.host("node1")?, office.host("node2")?];
        if more.entrance == Entrance::Forwarded {
            for (port, node) in FORWARDED_PORTS.into_iter().zip(&nodes) {
                office.forward(port, node)?;
            }
        }
        let is_mapped = more.entrance == Entrance::Mapped;
        let mapping =
            is_mapped.then(|| MappingDaemon::start(&lab, &office, MappingProtocol::Pcp)).transpose()?;
        let device = office.plug("device", Some(DEVICE_MAC))?;
        device.set_address(office.address(DEVICE_HOST))?;
        let user = home.host("user")?;
        let more_users = (2..=more.users + 1).map(|number| home.host(&format!("user{number}")));
        let more_users = more_users.collect::<Result<_>>()?;
        Ok(Self {
            lab,
            operator,
            lenders,
            office,
            home,
            cafe,
            nodes,
            device,
            user,
            more_users,
            more,
            _mapping: mapping,
        })
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

    /// Lets no UDP pass between the ends, so that every link is on TCP; such links can be ended from outside.
    pub(super) fn let_only_tcp_pass(&self) -> Result<()> {
        let office = self.office.public_address();
        let [home, cafe] = [&self.home, &self.cafe].map(Site::public_address);
        self.wall(&format!(
            "  meta l4proto udp ip saddr {office} ip daddr {{ {home}, {cafe} }} drop\n  \
             meta l4proto udp ip daddr {office} ip saddr {{ {home}, {cafe} }} drop\n"
        ))
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
    pub(super) lenders: Vec<Player<'a>>,
    pub(super) nodes: [Player<'a>; 2],
    pub(super) user: Player<'a>,
    pub(super) more_users: Vec<Player<'a>>,
    /// The near end of the tunnel and the process that holds it.
    pub(super) tunnel: Option<(String, Daemon)>,
    pub(super) device: Process,
    wires: [Process; 2],
}

impl<'a> Cast<'a> {
    /// Starts everything, up to where the user's node knows a way to the device.
    pub(super) fn start(stage: &'a Stage, programs: &Programs) -> Result<Self> {
        let wires = [start_wire(&stage.office, programs)?, start_wire(&stage.home, programs)?];
        let listen = format!("0.0.0.0:{DEVICE_PORT}");
        let mut device = stage.device.command(&programs.agent).args(["flow-device", &listen, "-"]).spawn()?;
        device.wait_for_line("it served", PATIENCE, |line| (line == "ready").then_some(()))?;

        let player = |host, run: &[&str]| Player::new(&stage.lab, programs, host, run);
        let mut operator = player(&stage.operator, &[&["operator", "run"], stage.more.relays].concat())?;
        let listen = format!("{}:{RELAY_PORT}", stage.operator.address());
        operator.peerage.call(&["operator", "init", "--listen", &listen])?;
        operator.start()?;
        operator.peerage.call(&["domain", "add", "acme"])?;
        let node = |index: usize, port: u16| -> Result<Player<'a>> {
            let (listen, public) = (format!("0.0.0.0:{port}"), stage.office.public_address());
            let host = stage.nodes.get(index).context("no such node")?;
            if stage.more.entrance != Entrance::Forwarded {
                return player(host, &["up", "--listen", &listen]);
            }
            player(host, &["up", "--listen", &listen, "--advertise", &format!("{public}:{port}")])
        };
        let [first, second] = FORWARDED_PORTS;
        let nodes = [node(0, first)?, node(1, second)?];
        let users = |host| player(host, &["up", "--listen", "0.0.0.0:0"]);
        let user = users(&stage.user)?;
        let more_users = stage.more_users.iter().map(users).collect::<Result<_>>()?;
        let lenders =
            stage.lenders.iter().map(|host| lender(stage, programs, host)).collect::<Result<_>>()?;
        let agent = programs.agent.clone();
        let mut cast =
            Self { stage, agent, operator, lenders, nodes, user, more_users, tunnel: None, device, wires };
        player::lend(&cast.operator, &mut cast.lenders, stage.more.lends)?;
        cast.join()?;
        cast.add_device("device", DEVICE_MAC, &format!("raw={DEVICE_PORT}"))?;
        Ok(cast)
    }

    fn join(&mut self) -> Result<()> {
        let [first, second] = &mut self.nodes;
        for player in [first, second, &mut self.user].into_iter().chain(&mut self.more_users) {
            player.join(&self.operator.peerage, "acme", "user,tunnel")?;
        }
        Ok(())
    }

    /// Registers a device of the office, and waits until both nodes there serve it and every user knows a way to it.
    pub(super) fn add_device(&self, name: &str, mac: &str, service: &str) -> Result<()> {
        let device = ["device", "add", "--domain", "acme", "--name", name, "--mac", mac];
        self.operator
            .peerage
            .call(&[&device[..], &["--via", "office-node1", "--service", service]].concat())?;
        wait_until("both of the office's nodes serve the device", || {
            for node in &self.nodes {
                let status = node.peerage.call(&["status"])?;
                let served = status.get("serves").and_then(Value::as_array);
                if !served.is_some_and(|served| served.contains(&json!(name))) {
                    return Ok(Err(status));
                }
            }
            Ok(Ok(()))
        })?;
        std::iter::once(&self.user).chain(&self.more_users).try_for_each(|user| user.wait_for_device(name))
    }

    /// Ends the tunnel and the user's node, starts that anew, and waits until it knows a way to the device.
    pub(super) fn restart_user(&mut self) -> Result<()> {
        self.tunnel.take().map_or(Ok(()), |(_, daemon)| daemon.stop())?;
        self.user.restart()?;
        self.user.wait_for_device("device")
    }

    /// Opens the tunnel.
    pub(super) fn connect(&mut self) -> Result<()> {
        self.connect_to("device:raw")
    }

    /// Opens the tunnel to a service.
    pub(super) fn connect_to(&mut self, service: &str) -> Result<()> {
        self.tunnel = Some(self.user.connect(service)?);
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
        self.user.path()
    }

    /// Returns whom the tunnel is relayed by: which lender, or none for the operator.
    pub(super) fn relay(&self) -> Result<Option<usize>> {
        let (kind, remote) = self.path()?;
        ensure!(kind == "relayed", "the path is {kind}");
        let is = |host: &Host| remote == format!("{}:{RELAY_PORT}", host.address());
        if is(&self.stage.operator) {
            return Ok(None);
        }
        let lender = self.stage.lenders.iter().position(is);
        Ok(Some(lender.with_context(|| format!("nobody is at {remote}"))?))
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
        self.agent_of(&self.user, arguments)
    }

    /// Runs a role of the agent on a player's computer.
    pub(super) fn agent_of(&self, player: &Player<'_>, arguments: &[&str]) -> Result<Process> {
        player.peerage.host().command(&self.agent).args(arguments).spawn()
    }

    /// Returns what everybody wrote.
    pub(super) fn logs(&mut self) -> String {
        let [first, second] = &mut self.nodes;
        let players = [&mut self.operator, first, second, &mut self.user].into_iter();
        let players = players.chain(&mut self.lenders).chain(&mut self.more_users);
        players.map(|player| format!("--- {}\n{}", player.peerage.host().name(), player.log())).collect()
    }

    /// Ends all in order.
    pub(super) fn stop(mut self) -> Result<()> {
        let tunnel = self.tunnel.take().map(|(_, daemon)| daemon);
        let [first, second] = self.nodes;
        let users = std::iter::once(self.user).chain(self.more_users);
        let players = users.chain([first, second]).chain(self.lenders).chain([self.operator]);
        tunnel.into_iter().chain(players.filter_map(|player| player.daemon)).try_for_each(Daemon::stop)
    }
}

/// Makes a super-node of a computer, not started yet.
fn lender<'a>(stage: &'a Stage, programs: &Programs, host: &'a Host) -> Result<Player<'a>> {
    let up = ["up", "--listen", &format!("0.0.0.0:{RELAY_PORT}")];
    if !stage.more.is_at_web_ports {
        return Player::new(&stage.lab, programs, host, &up);
    }
    let places = [RELAY_PORT, WEB_PORT].map(|port| format!("{}:{port}", host.address()));
    let advertise = ["--advertise", &places.join(",")];
    let player = Player::new(&stage.lab, programs, host, &[&up[..], &advertise].concat())?;
    player.peerage.configure(&format!("[node]\nalso_listen = [\"0.0.0.0:{WEB_PORT}\"]\n"))?;
    Ok(player)
}

fn start_wire(site: &Site, programs: &Programs) -> Result<Process> {
    let machine = site.wire().context("the site has no wire")?;
    let mut wire = machine.command(&programs.agent).arg("wire").args(WIRE).spawn()?;
    wire.wait_for_line("it carried", PATIENCE, |line| (line == "ready").then_some(()))?;
    Ok(wire)
}
