//! The networks of all pairs, in one Internet, and the programs in them.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::super::binary::Programs;
use super::super::player::{self, Player};
use super::theory::{Pair, Side, Together};
use crate::device::MappingDaemon;
use crate::netns::{Machine, Nat, Process};
use crate::topology::{Host, Lab, Site, SiteConfig, WIRE};
use crate::wire::Manner;

/// The port of the operator and of super-nodes: one that is let out where hardly any is.
const SERVER_PORT: u16 = 443;

/// The port of users and tunnel-nodes.
const NODE_PORT: u16 = 4242;

/// The port of devices.
const DEVICE_PORT: u16 = 7000;

/// Host number of each device.
const DEVICE_HOST: u8 = 210;

/// Super-nodes on the Internet: as many as hold a part of the table together; those in between also tell nodes how they are seen.
const SUPER_NODES: usize = 3;

/// Nodes that join at the same time.
const AT_ONCE: usize = 4;

/// How long a step before the story itself may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked whether a tunnel-node serves its device.
const SERVING_INTERVAL: Duration = Duration::from_millis(250);

/// The prefix of sites that shall have the same.
const EQUAL_PREFIX: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 0);

/// Whether a user sits at a place, or a tunnel-node with its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    User,
    Node,
}

/// A computer in its network.
#[derive(Debug)]
pub(super) struct Place {
    role: Role,
    side: Side,
    together: Together,
    host: Host,
    device: Option<Device>,
    /// Maps ports as long as it lives.
    _mapping: Option<MappingDaemon>,
    /// The sites that are its own, and that end with it.
    sites: Vec<Site>,
}

/// What is reached at a tunnel-node's place.
#[derive(Debug)]
struct Device {
    name: String,
    mac: String,
    host: Host,
}

/// Which places a pair has, as numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) user: usize,
    pub(super) node: usize,
}

/// The Internet with everybody's computer.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) lab: Lab,
    operator: Host,
    super_nodes: Vec<Host>,
    pub(super) places: Vec<Place>,
    /// What a packet takes on each site's line to the Internet, in each direction.
    delay: Duration,
}

impl Stage {
    /// Builds what these pairs need; a side that several pairs have is built once for each role. Each site's line has this delay.
    pub(super) fn build(pairs: &[Pair], delay: Duration) -> Result<(Self, Vec<Ends>)> {
        let lab = Lab::new()?;
        let public = |name: &str| {
            let host = lab.public_host(name)?;
            lab.add_ipv6(&host)?;
            Ok::<_, anyhow::Error>(host)
        };
        let operator = public("operator")?;
        let super_nodes =
            (1..=SUPER_NODES).map(|number| public(&format!("super{number}"))).collect::<Result<_>>()?;
        let mut stage = Self { lab, operator, super_nodes, places: Vec::new(), delay };
        let ends = pairs.iter().map(|pair| stage.settle(pair)).collect::<Result<_>>()?;
        Ok((stage, ends))
    }

    fn settle(&mut self, pair: &Pair) -> Result<Ends> {
        match pair.together {
            Together::Apart | Together::EqualPrefixes => Ok(Ends {
                user: self.settle_apart(Role::User, pair.user, pair.together)?,
                node: self.settle_apart(Role::Node, pair.node, pair.together)?,
            }),
            Together::SameLan => {
                let site = self.online(Self::config(self.number()?, pair.user, pair.together))?;
                let user = site.host("user")?;
                let node = self.device_and_node(&site)?;
                Ok(self.add_both(pair, [user, node.0], node.1, vec![site]))
            }
            Together::SameCarrier(carrier) => {
                let carrier = self.carrier(carrier)?;
                let near = carrier.site(Self::config(self.number()?, pair.user, pair.together))?;
                let user = near.host("user")?;
                // A number is taken with each place, and here with the first of two sites.
                let far = carrier.site(SiteConfig::new(format!("f{}", self.number()?)).nat(pair.node.nat))?;
                let node = self.device_and_node(&far)?;
                Ok(self.add_both(pair, [user, node.0], node.1, vec![near, far, carrier]))
            }
        }
    }

    fn add_both(&mut self, pair: &Pair, [user, node]: [Host; 2], device: Device, sites: Vec<Site>) -> Ends {
        let Pair { user: near, node: far, together } = *pair;
        let place = |role, side, host, device, sites| Place {
            role,
            side,
            together,
            host,
            device,
            _mapping: None,
            sites,
        };
        let ends = Ends { user: self.places.len(), node: self.places.len() + 1 };
        self.places.push(place(Role::User, near, user, None, sites));
        self.places.push(place(Role::Node, far, node, Some(device), Vec::new()));
        ends
    }

    fn settle_apart(&mut self, role: Role, side: Side, together: Together) -> Result<usize> {
        let is = |place: &Place| place.role == role && place.side == side && place.together == together;
        if let Some(number) = self.places.iter().position(is) {
            return Ok(number);
        }
        let config = Self::config(self.number()?, side, together);
        let mut sites = Vec::new();
        let site = match side.carrier {
            None => self.online(config)?,
            Some(carrier) => {
                let carrier = self.carrier(carrier)?;
                let site = carrier.site(config)?;
                sites.push(carrier);
                site
            }
        };
        let mapping =
            side.mapping.map(|protocol| MappingDaemon::start(&self.lab, &site, protocol)).transpose()?;
        let (host, device) = match role {
            Role::User => (site.host("user")?, None),
            Role::Node => {
                let (host, device) = self.device_and_node(&site)?;
                (host, Some(device))
            }
        };
        sites.push(site);
        self.places.push(Place { role, side, together, host, device, _mapping: mapping, sites });
        Ok(self.places.len() - 1)
    }

    fn device_and_node(&self, site: &Site) -> Result<(Host, Device)> {
        let number = self.places.len();
        let node = site.host("node")?;
        // Of the block that RFC 7042 keeps for examples, made a local one.
        let mac = format!("02:00:5e:00:{:02x}:{:02x}", 0x60 + number / 256, number % 256);
        let host = site.plug("device", Some(&mac))?;
        host.set_address(site.address(DEVICE_HOST))?;
        Ok((node, Device { name: format!("device-{number}"), mac, host }))
    }

    fn carrier(&self, nat: Nat) -> Result<Site> {
        let number = self.number()?;
        // A part of what RFC 6598 keeps for carriers.
        let lan = Ipv4Addr::new(100, 64, number, 0);
        self.online(SiteConfig::new(format!("c{number}")).lan(lan).nat(nat))
    }

    /// Adds a site right at the Internet.
    fn online(&self, config: SiteConfig) -> Result<Site> {
        self.lab.site(if self.delay.is_zero() { config } else { config.wired() })
    }

    /// Returns the number of the next place.
    fn number(&self) -> Result<u8> {
        u8::try_from(self.places.len()).context("too many places")
    }

    /// Has the lines carry, if they are more than cables.
    fn start_wires(&self, programs: &Programs) -> Result<Vec<Process>> {
        let wires = self.places.iter().flat_map(|place| &place.sites).filter_map(Site::wire);
        let start = |machine: &Machine| {
            let mut wire = machine.command(&programs.agent).arg("wire").args(WIRE).spawn()?;
            wire.wait_for_line("it carried", PATIENCE, |line| (line == "ready").then_some(()))?;
            wire.tell(Manner { delay: self.delay, ..Manner::default() }.to_line().as_bytes())?;
            Ok(wire)
        };
        wires.map(start).collect()
    }

    fn config(number: u8, side: Side, together: Together) -> SiteConfig {
        let lan = match (side.nat, together) {
            (_, Together::EqualPrefixes) => EQUAL_PREFIX,
            (Nat::None, _) => Ipv4Addr::new(45, 77, number, 0),
            _ => Ipv4Addr::new(10, 20, number, 0),
        };
        let config = SiteConfig::new(format!("s{number}")).nat(side.nat).egress(side.egress).lan(lan);
        if side.has_ipv6 { config.with_ipv6() } else { config }
    }
}

/// Everybody's program.
pub(super) struct Cast<'a> {
    pub(super) operator: Player<'a>,
    super_nodes: Vec<Player<'a>>,
    /// In the order of the places; why it does not run, where it does not.
    pub(super) nodes: Vec<(Player<'a>, Option<String>)>,
    /// The devices, in the order of the places.
    pub(super) devices: Vec<Option<Process>>,
    /// They carry as long as they live.
    _wires: Vec<Process>,
}

impl<'a> Cast<'a> {
    /// Starts everything; a node that cannot join or start is noted and left out.
    /// With `is_wide` all owners permit many ports to be tried.
    pub(super) fn start(stage: &'a Stage, programs: &Programs, is_wide: bool) -> Result<Self> {
        let lab = &stage.lab;
        let wires = stage.start_wires(programs)?;
        let mut operator = Player::new(lab, programs, &stage.operator, &["operator", "run"])?;
        let [listen, v4, v6] = server_addresses(&stage.operator)?;
        operator.peerage.call(&[
            "operator",
            "init",
            "--listen",
            &listen,
            "--advertise",
            &v4,
            "--advertise",
            &v6,
        ])?;
        operator.start()?;
        operator.peerage.call(&["domain", "add", "acme"])?;
        let server = |host: &'a Host| {
            let [listen, v4, v6] = server_addresses(host)?;
            Player::new(
                lab,
                programs,
                host,
                &["up", "--listen", &listen, "--advertise", &v4, "--advertise", &v6],
            )
        };
        let mut super_nodes = stage.super_nodes.iter().map(server).collect::<Result<Vec<_>>>()?;
        player::lend(&operator, &mut super_nodes, &[])?;
        let listen = format!("[::]:{NODE_PORT}");
        let node = |place: &'a Place| Player::new(lab, programs, &place.host, &["up", "--listen", &listen]);
        let mut players = stage.places.iter().map(node).collect::<Result<Vec<_>>>()?;
        if is_wide {
            let configured = |player: &Player<'_>| player.peerage.configure("[node]\nwide_checks = true\n");
            players.iter().try_for_each(configured)?;
        }
        let errors = join_all(&operator, &mut players);
        let nodes = players.into_iter().zip(errors).collect();
        let devices = stage.places.iter().map(|place| place.switch_on(programs)).collect::<Result<_>>()?;
        let cast = Self { operator, super_nodes, nodes, devices, _wires: wires };
        cast.register(stage)?;
        Ok(cast)
    }

    /// Registers the devices of all nodes that run, and waits until these serve them, for a minute at the most.
    fn register(&self, stage: &Stage) -> Result<()> {
        let ready = || {
            let all = stage.places.iter().zip(&self.nodes);
            all.filter_map(|(place, (player, error))| {
                Some((place.device.as_ref()?, player)).filter(|_| error.is_none())
            })
        };
        let service = format!("raw={DEVICE_PORT}");
        for (Device { name, mac, .. }, player) in ready() {
            let via = player.peerage.host().name();
            let device = ["device", "add", "--domain", "acme", "--name", name, "--mac", mac];
            self.operator.peerage.call(&[&device[..], &["--via", via, "--service", &service]].concat())?;
        }
        let serves = |device: &Device, player: &Player<'_>| -> Result<bool> {
            let status = player.peerage.call(&["status"])?;
            let served = status.get("serves").and_then(Value::as_array);
            Ok(served.is_some_and(|served| served.contains(&json!(device.name))))
        };
        let began_at = Instant::now();
        for (device, player) in ready() {
            // One that never does is a failure of its pairs alone.
            while !serves(device, player)? && began_at.elapsed() < PATIENCE {
                thread::sleep(SERVING_INTERVAL);
            }
        }
        Ok(())
    }

    /// Returns what everybody wrote.
    pub(super) fn logs(&mut self) -> String {
        let nodes = self.nodes.iter_mut().map(|(player, _)| player);
        let players = std::iter::once(&mut self.operator).chain(&mut self.super_nodes).chain(nodes);
        players.map(|player| format!("--- {}\n{}", player.peerage.host().name(), player.log())).collect()
    }
}

impl Place {
    /// Returns the name of the device that is reached here.
    pub(super) fn device(&self) -> Option<&str> {
        Some(&self.device.as_ref()?.name)
    }

    fn switch_on(&self, programs: &Programs) -> Result<Option<Process>> {
        let Some(Device { host, .. }) = &self.device else { return Ok(None) };
        let listen = format!("0.0.0.0:{DEVICE_PORT}");
        let mut device = host.command(&programs.agent).args(["flow-device", &listen, "-"]).spawn()?;
        device.wait_for_line("it served", PATIENCE, |line| (line == "ready").then_some(()))?;
        // It speaks to its node, which then knows it without asking the whole LAN: the kernel's table of neighbours has room for
        // 1,024 in all machines together.
        let nobody_listens = format!("{}:1", self.host.address());
        host.command(&programs.agent).args(["fetch", &nobody_listens, "1000"]).run(PATIENCE)?;
        Ok(Some(device))
    }
}

/// Returns where a server listens, and its two addresses.
fn server_addresses(host: &Host) -> Result<[String; 3]> {
    let ipv6 = host.ipv6().with_context(|| format!("{} has no IPv6", host.name()))?;
    let [v4, v6] = [format!("{}:{SERVER_PORT}", host.address()), format!("[{ipv6}]:{SERVER_PORT}")];
    Ok([format!("[::]:{SERVER_PORT}"), v4, v6])
}

/// Has all join and start, a few at a time; returns for each why it could not.
fn join_all(operator: &Player<'_>, players: &mut [Player<'_>]) -> Vec<Option<String>> {
    let operator = &operator.peerage;
    let join = |player: &mut Player<'_>| {
        player.join(operator, "acme", "user,tunnel").err().map(|error| format!("{error:#}"))
    };
    players
        .chunks_mut(AT_ONCE)
        .flat_map(|chunk| {
            thread::scope(|scope| {
                let joining: Vec<_> =
                    chunk.iter_mut().map(|player| scope.spawn(move || join(player))).collect();
                let panicked = || Some("joining panicked".to_owned());
                joining.into_iter().map(|one| one.join().unwrap_or_else(|_| panicked())).collect::<Vec<_>>()
            })
        })
        .collect()
}
