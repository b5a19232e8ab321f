//! What operations do.

use std::time::Duration;

use peerage_proto::node::{Input, SuperConfig};
use peerage_wire::record::EndDevice;

use super::World;
use crate::app::Script;
use crate::host::Host;
use crate::invariants::Fact;
use crate::model::Standing;
use crate::network::Party;
use crate::operations::Operation;
use crate::store::Disk;
use crate::wide::WidePorts;

impl World {
    pub(super) fn operate(&mut self, operation: Operation) {
        let now = self.now;
        self.tell(Party::Stranger, &format!("{operation:?}"));
        self.trace.note(now, 7, 0, format!("{operation:?}").as_bytes());
        let (hosts, sites) = (self.hosts.len(), self.network.sites.len());
        let (devices, operators) = (self.devices.len(), self.operators.len());
        match operation {
            Operation::Open { host, device, script } => self.open(wrap(host, hosts), device, script),
            Operation::Intrude { host, target, device } => {
                self.intrude(wrap(host, hosts), wrap(target, hosts), wrap(device, devices));
            }
            Operation::Crash { host, survivors } => self.stop_host(wrap(host, hosts), survivors),
            Operation::Start { host } => self.start_host(wrap(host, hosts)),
            Operation::Sleep { host, span, counts } => self.sleep(wrap(host, hosts), span, counts),
            Operation::SetDate { host, error_millis } => {
                self.change(host, |host| host.clock.error_millis = error_millis);
            }
            Operation::SlowDisk { host, delay } => {
                self.change(host, |host| host.store.disk = Disk::Good(delay));
            }
            Operation::FullDisk { host } => self.change(host, |host| host.store.disk = Disk::Full),
            Operation::Backup { host } => self.change(host, |host| host.store.keep_snapshot()),
            Operation::Restore { host } => self.restore(wrap(host, hosts)),
            Operation::Roam { host, site } => self.roam(wrap(host, hosts), wrap(site, sites)),
            Operation::Cut { site } => self.cut(wrap(site, sites)),
            Operation::Split { sites } => self.group(|index| (sites >> (index % 64)) & 1),
            Operation::Join => self.group(|_| 0),
            Operation::Degrade { site, quality } => {
                if let Some(site) = self.network.sites.get_mut(wrap(site, sites)) {
                    site.quality = quality;
                }
            }
            Operation::RebootRouter { site } => self.reboot_router(wrap(site, sites)),
            Operation::ResetConnections { host } => self.lose_all_carriers(wrap(host, hosts)),
            Operation::StallConnections { host, span } => self.stall_carriers(wrap(host, hosts), span),
            Operation::StopOperator { operator } => self.stop_operator(wrap(operator, operators)),
            Operation::StartOperator { operator } => self.start_operator(wrap(operator, operators)),
            Operation::Outage { span } => self.outage(span),
            Operation::ForgetHolders => self.forget_holders(),
            Operation::LoseHolders { which } => self.lose_holders(which),
            Operation::Lend { host, on } => self.lend(wrap(host, hosts), on),
            Operation::Tire { host, ok } => {
                self.host_input(wrap(host, hosts), Input::Fitness { ok, why: "on battery".to_owned() });
            }
            Operation::CloseRouter { site, is_closed } => self.close_router(wrap(site, sites), is_closed),
            Operation::Revoke { host } => self.revoke(wrap(host, hosts)),
            Operation::Leave { host } => self.leave(wrap(host, hosts)),
            Operation::Lie { host, manner } => self.begin_lying(wrap(host, hosts), manner),
            Operation::Retire { operator } => self.retire(wrap(operator, operators)),
            Operation::SetOperatorDate { operator, error_millis } => {
                self.restart_operator(wrap(operator, operators), error_millis);
            }
            Operation::ReplayGroups { site, count } => self.replay_groups(wrap(site, sites), count),
            Operation::Readdress { device } => self.readdress(wrap(device, devices)),
            Operation::Unplug { device } => self.plug(wrap(device, devices), false),
            Operation::Plug { device } => self.plug(wrap(device, devices), true),
            Operation::Unregister { device } => self.administer(wrap(device, devices), None),
            Operation::Register { device } => self.register(wrap(device, devices), None),
            Operation::Restrict { device, host } => {
                self.register(wrap(device, devices), Some(wrap(host, hosts)));
            }
            Operation::Replay { count } => self.replay(count),
            Operation::Alter { count } => self.alter(count),
            Operation::Flood { host, count } => self.flood_host(wrap(host, hosts), count),
            Operation::FloodOperator { operator, count } => {
                self.flood_operator(wrap(operator, operators), count);
            }
        }
    }

    fn close_router(&mut self, site: usize, is_closed: bool) {
        let site = self.network.sites.get_mut(site);
        if let Some(nat) = site.and_then(|site| site.nat.as_mut()) {
            nat.is_closed = is_closed;
        }
    }

    fn open(&mut self, host: usize, device: usize, script: Script) {
        /// How often a user tries.
        const TRIES: u32 = 3;
        let Some(domain) = self.hosts.get(host).map(|host| host.domain) else { return };
        let own = self.devices.iter().enumerate().filter(|(_, device)| device.domain == domain);
        let own: Vec<_> = own.map(|(index, _)| index).collect();
        if let Some(device) = own.get(wrap(device, own.len())) {
            self.begin_errand(host, *device, script, TRIES);
        }
    }

    fn change(&mut self, host: usize, change: impl FnOnce(&mut Host)) {
        let count = self.hosts.len();
        if let Some(host) = self.hosts.get_mut(wrap(host, count)) {
            change(host);
        }
    }

    fn restore(&mut self, index: usize) {
        self.stop_host(index, 0);
        if self.hosts.get_mut(index).is_some_and(|host| host.store.restore_snapshot()) {
            self.observe(&Fact::Restored { host: index });
        }
        self.start_host(index);
    }

    fn roam(&mut self, index: usize, site: usize) {
        let Some(host) = self.hosts.get(index) else { return };
        if host.site == site {
            return;
        }
        let (old, home) = ((host.site, host.inner), host.home);
        // At home its address, and the port that is forwarded to it, wait for it; elsewhere nobody forwards one.
        let inner = if home.0 == site { home.1 } else { self.place(site, false).0 };
        self.places.remove(&old);
        self.places.insert((site, inner), index);
        if let Some(host) = self.hosts.get_mut(index) {
            host.site = site;
            host.inner = inner;
            host.wide_ports = WidePorts::default();
        }
        // A tunnel-node that has left cannot serve the devices that it left behind.
        self.model.excuse(|tunnel| tunnel.server == Some(index) || tunnel.user == index);
        self.lose_all_carriers(index);
        self.tell_networks(index);
    }

    fn cut(&mut self, index: usize) {
        if let Some(site) = self.network.sites.get_mut(index) {
            // Beyond the groups of a split, and nobody else's.
            site.group = 1_000 + index as u64;
        }
    }

    fn group(&mut self, group: impl Fn(usize) -> u64) {
        for (index, site) in self.network.sites.iter_mut().enumerate() {
            site.group = group(index);
        }
    }

    fn reboot_router(&mut self, index: usize) {
        if let Some(nat) = self.network.sites.get_mut(index).and_then(|site| site.nat.as_mut()) {
            nat.reboot();
        }
        self.forget_carriers(index);
    }

    fn revoke(&mut self, index: usize) {
        let now = self.true_now();
        let Some(id) = self.hosts.get(index).map(|host| host.id) else { return };
        let written = self.ledger.revoke(id, now).unwrap_or_default();
        self.model.vendor.decide_member(id, Standing::Revoked);
        self.model.excuse(|tunnel| tunnel.user == index || tunnel.server == Some(index));
        self.commit(&written);
    }

    fn lose_holders(&mut self, which: u64) {
        let time = self.true_now().unix;
        let is_holder = |host: &Host| self.ledger.segment(&host.id, time).is_some();
        let holders = self.hosts.iter().enumerate().filter(|(_, host)| is_holder(host));
        let lost = holders.enumerate().filter(|(n, _)| (which >> (n % 64)) & 1 == 1);
        for index in lost.map(|(_, (index, _))| index).collect::<Vec<_>>() {
            self.stop_host(index, 0);
        }
    }

    fn lend(&mut self, index: usize, on: bool) {
        // Whoever sleeps cannot be told.
        let Some(host) = self.hosts.get_mut(index).filter(|host| host.asleep_until.is_none()) else { return };
        host.lends = on;
        if host.is_awake() {
            let role = SuperConfig { on, ..SuperConfig::default() };
            self.host_input(index, Input::SuperRole(role));
        }
    }

    fn readdress(&mut self, device: usize) {
        let now = self.now;
        let Some(device) = self.devices.get_mut(device) else { return };
        if let Some(site) = self.network.sites.get_mut(device.site) {
            device.moved = Some((device.address, now));
            device.address = site.new_address();
        }
    }

    fn plug(&mut self, device: usize, is_present: bool) {
        if let Some(device) = self.devices.get_mut(device) {
            device.is_present = is_present;
        }
    }

    fn register(&mut self, index: usize, only: Option<usize>) {
        let users = only.and_then(|user| self.hosts.get(user)).map(|host| host.id).into_iter().collect();
        let registered = self.devices.get(index).map(|device| device.registered.clone());
        self.administer(index, registered.map(|device| EndDevice { users, ..device }));
    }

    /// Registers a device as it should be, keeping what the network learned about its place; or removes it.
    fn administer(&mut self, index: usize, wanted: Option<EndDevice>) {
        let now = self.true_now();
        let Some(device) = self.devices.get(index) else { return };
        let (domain, id) = (device.domain, device.registered.device);
        let known = self.ledger.devices(domain).find(|known| known.device == id);
        let site = known.map(|known| known.site.clone()).unwrap_or_default();
        self.model.vendor.decide_device(domain, id, wanted.clone());
        if self.setup.planted == Some(super::Bug::LosesDecisions) {
            return;
        }
        let written = match wanted {
            Some(wanted) => {
                let wanted = EndDevice { site, ..wanted };
                self.ledger.put_device(domain, wanted, now)
            }
            None => self.ledger.remove_device(domain, id, now),
        };
        self.model.excuse(|tunnel| tunnel.device == id);
        self.commit(&written.unwrap_or_default());
    }

    fn flood_operator(&mut self, index: usize, count: usize) {
        if let Some(address) = self.operators.get(index).map(|operator| operator.identity.address) {
            self.flood(address, count);
        }
    }

    fn flood_host(&mut self, index: usize, count: usize) {
        let Some(host) = self.hosts.get(index) else { return };
        let (site, inner) = (host.site, host.inner);
        let outer = self.network.sites.get(site).and_then(|site| site.nat.as_ref()).map(|nat| nat.public);
        self.flood(std::net::SocketAddr::new(outer.unwrap_or_else(|| inner.ip()), inner.port()), count);
    }

    /// Ends all faults: everybody is on, awake and connected, lines are good, disks have room, devices are plugged in. What was
    /// decided stays decided. From here on budgets are counted.
    pub fn calm_down(&mut self) {
        self.network.heal();
        for operator in 0..self.operators.len() {
            if self.operators.get(operator).is_some_and(|host| host.error_millis != 0) {
                self.restart_operator(operator, 0);
            }
            self.start_operator(operator);
        }
        for index in 0..self.hosts.len() {
            if let Some(host) = self.hosts.get_mut(index) {
                host.store.disk = Disk::Good(Duration::ZERO);
            }
            self.start_host(index);
            self.wake(index);
            self.host_input(index, Input::Fitness { ok: true, why: String::new() });
        }
        for device in &mut self.devices {
            device.is_present = true;
        }
        for carrier in self.carriers.values_mut() {
            carrier.end_stall();
        }
        self.queue.retain(|_, due| !matches!(due, super::Due::Operation(_)));
        self.note_contacts();
    }

    /// Begins to count what computers send.
    pub fn count_from_here(&mut self) {
        self.is_counting = true;
        self.counts.fill(super::Counts::default());
        for operator in &mut self.operators {
            operator.peak = 0;
            operator.counts = super::OperatorCounts::default();
        }
        // Users give up now, and who still has a tunnel that waits for its end is not idle.
        for errand in self.errands.values_mut() {
            errand.tries_left = 0;
        }
        let is_busy = |(_, host): &(usize, &Host)| host.shell.tunnels().next().is_some();
        self.busy = self.hosts.iter().enumerate().filter(is_busy).map(|(index, _)| index).collect();
    }
}

fn wrap(index: usize, count: usize) -> usize {
    index.checked_rem(count).unwrap_or(0)
}
