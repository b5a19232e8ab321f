//! Random lives of a small network over bad wires; then the wires are good again and everything must come right.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::node::{Answer, Command, Input, TunnelId, Way};
use peerage_wire::id::{DeviceId, Mac, NodeId, SessionId};
use peerage_wire::open::Open;
use peerage_wire::record::EndDevice;
use rand_core::Rng as _;

use crate::support::{DOMAIN, Decision, Faults, OPERATOR_ADDRESS, World, found, lan, printer};

/// How long after the last fault everything works again. Without a device a node asks for news every 300 s ± 20 % (Rule 6.8; no
/// beacons are heard here), and one device may need two such turns: its `via` node learns of it and reports where it is, then
/// another node of that site learns that from the next Head. A minute more is for attaching and announcing.
const CONVERGENCE: Duration = Duration::from_secs(2 * 360 + 60);

const MAX_HOSTS: usize = 5;
const OPERATIONS: usize = 25;

#[derive(Clone, Copy, Debug)]
enum Operation {
    Join,
    AddDevice,
    RemoveDevice,
    Revoke,
    Route,
    Open,
    OpenForStranger,
    Cut,
    Heal,
    StopOperator,
    RestartOperator,
    RestartNode,
    StepClock,
    Sleep,
    Wait,
}

impl Operation {
    const ALL: [Self; 15] = [
        Self::Join,
        Self::AddDevice,
        Self::RemoveDevice,
        Self::Revoke,
        Self::Route,
        Self::Open,
        Self::OpenForStranger,
        Self::Cut,
        Self::Heal,
        Self::StopOperator,
        Self::RestartOperator,
        Self::RestartNode,
        Self::StepClock,
        Self::Sleep,
        Self::Wait,
    ];
}

/// A world and what has been done to it.
struct Life {
    world: World,
    /// Who asked for which tunnel, and whether it may ever be served.
    opened: Vec<(SocketAddr, TunnelId, NodeId)>,
    revoked: BTreeSet<NodeId>,
    strangers: BTreeSet<NodeId>,
    made: u8,
    tunnels: u64,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut world = World::new(seed);
        world.faults = Faults { lost: 10, doubled: 10, delay_millis: 150 };
        let (opened, revoked, strangers) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        let mut life = Self { world, opened, revoked, strangers, made: 0, tunnels: 0 };
        life.join();
        life.join();
        life.world.run(Duration::from_secs(5));
        life.add_device();
        life
    }

    fn below(&mut self, below: usize) -> usize {
        (self.world.rng.next_u64() % below.max(1) as u64) as usize
    }

    fn any_host(&mut self) -> SocketAddr {
        let at = self.below(self.world.hosts.len());
        *self.world.hosts.keys().nth(at).unwrap()
    }

    fn join(&mut self) {
        if self.world.hosts.len() >= MAX_HOSTS {
            return;
        }
        self.made += 1;
        let (n, site) = (self.made, self.made % 2);
        let error = i64::from(self.world.rng.next_u32() % 3) * 3_000_000 - 3_000_000;
        let interfaces = lan(&format!("192.168.{site}.{}", 10 + n), site);
        let at = self.world.join_with(&format!("45.10.{n}.1:7400"), interfaces, error, |_| {});
        for device in 0..8 {
            // A device is where its number says; hosts of the other site do not see it.
            if device % 2 == site {
                let address = found(&format!("192.168.{site}.{}", 100 + device));
                self.world.host(at).lan.insert(Mac([2, 2, 2, 2, 2, device]), address);
            }
        }
    }

    fn add_device(&mut self) {
        let n = self.below(8) as u8;
        let via = self.any_host();
        let via = self.world.host(via).id;
        let mac = Mac([2, 2, 2, 2, 2, n]);
        let device =
            EndDevice { device: DeviceId::new(mac, None), mac, name: format!("d{n}"), ..printer(via) };
        self.world.put_device(device);
    }

    fn some_device(&mut self) -> Option<EndDevice> {
        let at = self.below(self.world.devices.len());
        self.world.devices.values().nth(at).cloned()
    }

    fn open(&mut self, peer: NodeId) {
        let at = self.any_host();
        let Some(device) = self.some_device() else { return };
        self.tunnels += 1;
        let tunnel = TunnelId(self.tunnels);
        let open = Open { session: SessionId([1; 16]), device: device.device, service: "ipp".to_owned() };
        self.opened.push((at, tunnel, peer));
        self.world.input(at, Input::OpenAsked { tunnel, peer, open });
    }

    fn stranger(&mut self) -> NodeId {
        let mut hash = [0; 32];
        self.world.rng.fill_bytes(&mut hash);
        let domain = if self.below(2) == 0 { DOMAIN } else { peerage_wire::id::Domain(9) };
        let id = NodeId { domain, hash };
        self.strangers.insert(id);
        id
    }

    fn act(&mut self, operation: Operation) {
        match operation {
            Operation::Join => self.join(),
            Operation::AddDevice => self.add_device(),
            Operation::RemoveDevice => {
                if let Some(device) = self.some_device() {
                    self.world.remove_device(&device.device);
                }
            }
            Operation::Revoke => {
                let at = self.any_host();
                let id = self.world.host(at).id;
                if self.revoked.len() < 2 && self.revoked.insert(id) {
                    self.world.revoke(id);
                }
            }
            Operation::Route => {
                let at = self.any_host();
                if let Some(device) = self.some_device() {
                    self.world.command(at, Command::Route { device: device.name, service: None });
                }
            }
            Operation::Open => {
                let peer = self.any_host();
                let peer = self.world.host(peer).id;
                self.open(peer);
            }
            Operation::OpenForStranger => {
                let peer = self.stranger();
                self.open(peer);
            }
            Operation::Cut => {
                let at = self.any_host();
                self.world.cut.insert(at);
            }
            Operation::Heal => self.world.cut.clear(),
            Operation::StopOperator => self.world.operator_up = false,
            Operation::RestartOperator => self.world.restart_operator(),
            Operation::RestartNode => {
                let at = self.any_host();
                self.end_tunnels(at);
                self.world.restart(at);
            }
            Operation::StepClock => {
                let at = self.any_host();
                let step = i64::from(self.world.rng.next_u32() % 7_200_000) - 3_600_000;
                self.world.step_clock(at, step);
            }
            Operation::Sleep => self.world.now = self.world.now.after(Duration::from_secs(1_800)),
            Operation::Wait => {}
        }
        let millis = self.below(20_000) as u64;
        self.world.run(Duration::from_millis(millis));
    }

    /// A node that stops has no tunnels any more.
    fn end_tunnels(&mut self, at: SocketAddr) {
        self.opened.retain(|(host, ..)| *host != at);
        self.world.host(at).served.clear();
        self.world.host(at).closed.clear();
    }

    /// What must hold at every moment, however bad the wires.
    fn check_safety(&mut self, what: &str) {
        for (at, tunnel, peer) in &self.opened {
            let host = &self.world.hosts[at];
            let served = host.served.iter().any(|(served, _)| served == tunnel);
            assert!(!(served && self.strangers.contains(peer)), "{what}: a tunnel for a stranger");
        }
        let now = self.world.now;
        for host in self.world.hosts.values() {
            let status = host.node.status(now);
            assert!(status.attachments.len() <= 2, "{what}");
            assert!(status.tunnels.len() <= self.tunnels as usize, "{what}");
            assert!(status.tunnels.iter().all(|tunnel| !self.strangers.contains(&tunnel.peer)), "{what}");
            assert!(
                host.node.poll_timeout().is_some_and(|(at, _)| at > now.mono),
                "{what}: the timer stands"
            );
        }
        assert!(self.world.operator.contacts(now).count() <= self.world.hosts.len(), "{what}");
    }

    /// Rules 6.8 and 6.9: with good wires everybody knows everything after a while, and nobody has what he may not.
    fn must_converge(&mut self, seed: u64) {
        self.world.faults = Faults::default();
        self.world.cut.clear();
        if !self.world.operator_up {
            self.world.restart_operator();
        }
        self.world.run(CONVERGENCE);
        let now = self.world.now;
        let devices: BTreeSet<_> = self.world.devices.values().map(|device| device.device).collect();
        for (at, host) in &self.world.hosts {
            let status = host.node.status(now);
            if self.revoked.contains(&host.id) {
                continue;
            }
            let serving = status.tunnels.iter().filter(|tunnel| self.revoked.contains(&tunnel.peer));
            assert_eq!(serving.count(), 0, "seed {seed}: {at} serves a revoked node");
            assert!(
                status.tunnels.iter().all(|tunnel| devices.contains(&tunnel.device)),
                "seed {seed}: {at}"
            );
        }
        self.must_route(seed);
    }

    /// Every member finds every device whose site is known and has somebody there.
    fn must_route(&mut self, seed: u64) {
        let members: Vec<_> = self.world.hosts.values().filter(|h| !self.revoked.contains(&h.id)).collect();
        let members: Vec<_> = members.into_iter().map(|host| (host.address, host.id)).collect();
        let Some(device) = self.some_device() else { return };
        let now = self.world.now;
        let at_site = |world: &World, at: &SocketAddr| {
            let locations = world.hosts[at].node.status(now).locations;
            locations.iter().any(|(location, _)| device.site.contains(location))
        };
        let servers = members.iter().filter(|(at, _)| at_site(&self.world, at)).count();
        for (at, id) in members {
            let others = servers - usize::from(at_site(&self.world, &at));
            let answer = self.world.route(at, &device.name, None);
            match answer {
                Answer::Route(route) => {
                    let Way::Tunnel { peer, .. } = route.way else { panic!("no pins, no local use") };
                    assert!(!self.revoked.contains(&peer) && peer != id, "seed {seed}");
                    self.must_serve(seed, id, peer, device.device);
                }
                Answer::Failed(failure) => {
                    assert_eq!(others, 0, "seed {seed}: {at} has no way to {}: {failure:?}", device.name);
                }
                other => panic!("seed {seed}: {other:?}"),
            }
        }
    }

    fn must_serve(&mut self, seed: u64, user: NodeId, peer: NodeId, device: DeviceId) {
        let at = self.world.hosts.values().find(|host| host.id == peer).unwrap().address;
        self.tunnels += 1;
        let mac = self.world.devices.values().find(|d| d.device == device).unwrap().mac;
        let sees = self.world.host(at).lan.contains_key(&mac);
        let decision = self.world.open(at, self.tunnels, user, device, "ipp");
        assert_eq!(matches!(decision, Decision::Served(_)), sees, "seed {seed}: {decision:?}");
    }
}

fn live(seed: u64) {
    let mut life = Life::new(seed);
    for n in 0..OPERATIONS {
        let operation = Operation::ALL[life.below(Operation::ALL.len())];
        life.act(operation);
        life.check_safety(&format!("seed {seed}, operation {n}, {operation:?}"));
    }
    life.must_converge(seed);
    let operator: SocketAddr = OPERATOR_ADDRESS.parse().unwrap();
    assert!(life.world.log.iter().any(|flight| flight.to == operator));
}

/// Rules 3.8 to 3.12 and 6.1 to 6.23: safety whatever happens, and order within [`CONVERGENCE`] after it.
#[test]
fn whatever_happens_nobody_gets_in_and_everything_comes_right_first_part() {
    (0..100).for_each(live);
}

/// The other seeds; two parts, so that they run beside each other.
#[test]
fn whatever_happens_nobody_gets_in_and_everything_comes_right_second_part() {
    (100..200).for_each(live);
}
