//! Which addresses a sweep tries, in what order, and how many an hour.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use peerage_proto::dial::forbidden_device;
use peerage_proto::lan::{Interface, InterfaceKind, Prefix};

use super::{FindDevice, MAX_SWEPT_PER_HOUR};

const HOUR: Duration = Duration::from_secs(3600);

/// Counts what sweeps have tried within the last hour.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// When each was tried, oldest first; never more than [`MAX_SWEPT_PER_HOUR`].
    spent: VecDeque<Instant>,
}

impl Budget {
    /// Returns whether one more address may be tried, and counts it.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        while self.spent.front().is_some_and(|at| now.saturating_duration_since(*at) >= HOUR) {
            self.spent.pop_front();
        }
        let granted = self.spent.len() < MAX_SWEPT_PER_HOUR;
        if granted {
            self.spent.push_back(now);
        }
        granted
    }

    /// Takes back the last [`Budget::take`]: nothing was sent after all.
    pub(super) fn give_back(&mut self) {
        self.spent.pop_back();
    }
}

/// An address to try, on the interface with this index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) interface: u32,
    pub(super) address: Ipv4Addr,
}

/// Returns the addresses that a sweep for this device may try, the likeliest first: those beside its last
/// address, since a DHCP server's range is contiguous, then those beside our own.
pub(super) fn targets(request: &FindDevice, interfaces: &[Interface]) -> VecDeque<Target> {
    let mut ranked = Vec::new();
    let eligible = interfaces.iter().filter(|interface| {
        let sweepable = !matches!(interface.kind, InterfaceKind::Loopback | InterfaceKind::Vpn);
        interface.up && sweepable && request.interface.is_none_or(|index| index == interface.index)
    });
    for interface in eligible {
        let mut seen: Vec<Prefix> = Vec::new();
        for own in &interface.addresses {
            if seen.contains(&own.prefix) || own.prefix.size() > u128::from(request.max_swept_prefix) {
                continue;
            }
            seen.push(own.prefix);
            let near = request.last_address.filter(|last| own.prefix.contains(*last)).unwrap_or(own.address);
            let (IpAddr::V4(network), IpAddr::V4(near)) = (own.prefix.network(), near) else { continue };
            // At most `max_swept_prefix`, and the budget grants no more than this many.
            let hosts = u32::try_from(own.prefix.size()).unwrap_or(u32::MAX);
            let all = (0..hosts).map(|host| Ipv4Addr::from_bits(network.to_bits().wrapping_add(host)));
            let allowed = all.filter(|a| forbidden_device(IpAddr::V4(*a), interface, interfaces).is_none());
            ranked.extend(allowed.map(|address| {
                let distance = address.to_bits().abs_diff(near.to_bits());
                (distance, Target { interface: interface.index, address })
            }));
        }
    }
    ranked.sort_by_key(|(distance, _)| *distance);
    ranked.into_iter().take(MAX_SWEPT_PER_HOUR).map(|(_, target)| target).collect()
}

#[cfg(test)]
mod tests {
    use peerage_proto::lan::{Gateway, InterfaceAddress, Mac};

    use super::*;

    #[test]
    fn no_hour_sees_more_than_the_budget() {
        let mut budget = Budget::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!((0..1000).all(|_| budget.take(at(0))));
        assert!((0..24).all(|_| budget.take(at(1800))));
        assert!(!budget.take(at(1800)));
        assert!(!budget.take(at(3599)));
        assert!((0..1000).all(|_| budget.take(at(3600))));
        assert!(!budget.take(at(3600)));
        budget.give_back();
        assert!(budget.take(at(3600)));
        assert!(!budget.take(at(3600)));
        assert!(budget.take(at(5400)));
    }

    #[test]
    fn a_sweep_tries_every_host_once_and_begins_beside_the_last_address() {
        let request = FindDevice { last_address: ip("192.168.1.100"), ..FindDevice::new(MAC) };
        let order = addresses(&request, &[lan("192.168.1.10", "192.168.1.0/24")]);
        assert_eq!(order.len(), 252);
        assert_eq!(order.first().map(String::as_str), Some("192.168.1.100"));
        assert_eq!(order[1..3].iter().min().map(String::as_str), Some("192.168.1.101"));
        assert_eq!(order.last().map(String::as_str), Some("192.168.1.254"));
        for never in ["192.168.1.0", "192.168.1.1", "192.168.1.10", "192.168.1.255"] {
            assert!(!order.iter().any(|address| address == never), "{never}");
        }
    }

    #[test]
    fn a_last_address_elsewhere_is_no_reason_to_begin_there() {
        let request = FindDevice { last_address: ip("10.0.0.5"), ..FindDevice::new(MAC) };
        let order = addresses(&request, &[lan("192.168.1.10", "192.168.1.0/24")]);
        assert_eq!(order[0..2].iter().min().map(String::as_str), Some("192.168.1.11"));
    }

    #[test]
    fn large_networks_and_other_interfaces_are_not_swept() {
        let request = FindDevice::new(MAC);
        assert_eq!(addresses(&request, &[lan("10.0.0.9", "10.0.0.0/21")]).len(), 0);
        assert_eq!(addresses(&request, &[lan("10.0.0.9", "10.0.0.0/22")]).len(), 1021);
        let off = FindDevice { max_swept_prefix: 0, ..FindDevice::new(MAC) };
        assert_eq!(addresses(&off, &[lan("10.0.0.9", "10.0.0.0/24")]).len(), 0);
        let elsewhere = FindDevice { interface: Some(3), ..FindDevice::new(MAC) };
        assert_eq!(addresses(&elsewhere, &[lan("10.0.0.9", "10.0.0.0/24")]).len(), 0);
        let mut vpn = lan("10.0.0.9", "10.0.0.0/24");
        vpn.kind = InterfaceKind::Vpn;
        assert_eq!(addresses(&request, &[vpn]).len(), 0);
        let mut down = lan("10.0.0.9", "10.0.0.0/24");
        down.up = false;
        assert_eq!(addresses(&request, &[down]).len(), 0);
        assert_eq!(addresses(&request, &[lan("fd00::9", "fd00::/120")]).len(), 0);
    }

    #[test]
    fn two_addresses_in_one_network_do_not_double_the_sweep() {
        let mut two = lan("192.168.1.10", "192.168.1.0/24");
        two.addresses.push(InterfaceAddress { address: ip("192.168.1.11").unwrap(), ..two.addresses[0] });
        assert_eq!(addresses(&FindDevice::new(MAC), &[two]).len(), 251);
    }

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 0x77]);

    fn addresses(request: &FindDevice, interfaces: &[Interface]) -> Vec<String> {
        targets(request, interfaces).iter().map(|target| target.address.to_string()).collect()
    }

    fn ip(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    fn lan(address: &str, prefix: &str) -> Interface {
        let gateway = "192.168.1.1".parse().unwrap();
        Interface {
            index: 2,
            name: "eth0".into(),
            kind: InterfaceKind::Ethernet,
            up: true,
            mac: None,
            addresses: vec![InterfaceAddress {
                address: address.parse().unwrap(),
                prefix: prefix.parse().unwrap(),
            }],
            gateways: vec![Gateway { metric: 0, address: gateway, mac: None }],
        }
    }
}
