//! Having routers forward the node's port: PCP or NAT-PMP first, which take one datagram, then UPnP (Rules 6.80 to 6.84).
//!
//! One task keeps each router: it asks, asks again before the lease ends or when the router has restarted, and gives the ports back when
//! they are not wanted any more. All of it is a hint from whoever plays the router; what it gives is one more candidate, and what it may
//! make this computer do is to send a few datagrams and HTTP requests to the router's own address.

mod ask;
mod igd;
mod lease;
mod pcp;
mod upnp;

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use peerage_proto::lan::{Gateway, Interface, InterfaceKind};
use peerage_proto::mapping::{MAX_ROUTERS, Mapping, MappingProtocol, Ports, RouterMapping};
use peerage_proto::node::Input;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time;

use self::ask::Asker;
use self::igd::Igd;
use self::lease::{Lease, NoLease};
use crate::driver::NodeHandle;

/// How long after a refusal or silence a router is asked again: somebody may have changed its settings.
const RETRY: Duration = Duration::from_secs(600);

/// How often a router that tells is asked whether it has restarted: for so long at most a mapped port leads nowhere afterwards.
const CHECK_INTERVAL: Duration = Duration::from_secs(120);

/// The shortest time between two leases, whatever a router says.
const MIN_LEASE: Duration = Duration::from_secs(60);

/// The port that is asked for when nobody needs one: that of the discard service (RFC 863), on which nothing listens.
const TRIED_PORT: u16 = 9;

/// How long giving back may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// A router, and from where it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Access {
    router: SocketAddr,
    own: IpAddr,
}

/// What a router is asked for, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Errand {
    access: Access,
    ports: Ports,
}

/// What is wanted now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    ports: Ports,
    accesses: Vec<Access>,
}

/// The mappings of a node. They are given back when it is closed; without that they end by themselves.
#[derive(Debug)]
pub(crate) struct Mappings {
    wanted: watch::Sender<Wanted>,
    keeper: JoinHandle<()>,
}

impl Mappings {
    /// Makes the value; nothing is asked for yet.
    pub(crate) fn new(node: NodeHandle, port: u16) -> Self {
        let (wanted, receiver) = watch::channel(Wanted::default());
        Self { wanted, keeper: tokio::spawn(keep_all(node, port, receiver)) }
    }

    /// Begins to ask for these ports, and gives back others.
    pub(crate) fn want(&self, ports: Ports) {
        self.change(|wanted| wanted.ports = ports);
    }

    /// Takes the networks as they are now.
    pub(crate) fn networks(&self, interfaces: &[Interface]) {
        let accesses = accesses(interfaces);
        self.change(|wanted| wanted.accesses = accesses);
    }

    /// Gives back what is held; takes some seconds at most.
    pub(crate) async fn close(self) {
        drop(self.wanted);
        // It logs what it was that failed, if it did.
        let _ = self.keeper.await;
    }

    fn change(&self, change: impl FnOnce(&mut Wanted)) {
        self.wanted.send_if_modified(|wanted| {
            let before = wanted.clone();
            change(wanted);
            *wanted != before
        });
    }
}

/// Returns the routers that are asked: for IPv4 that of the best default route, unless this computer has a public address; for IPv6, where
/// the address is public and only a firewall may stand before it, that of its best route.
fn accesses(interfaces: &[Interface]) -> Vec<Access> {
    let is_lan = |kind| !matches!(kind, InterfaceKind::Loopback | InterfaceKind::Vpn);
    let up = interfaces.iter().filter(|interface| interface.up && is_lan(interface.kind));
    let ways = up.flat_map(|interface| interface.gateways.iter().map(move |gateway| (gateway, interface)));
    let best = |is_v4: bool| {
        let ways = ways.clone().filter(|(gateway, _)| gateway.address.is_ipv4() == is_v4);
        ways.min_by_key(|(gateway, interface)| (gateway.metric, interface.index))
    };
    let found = [best(true), best(false)].into_iter().flatten();
    found.filter_map(|(gateway, interface)| access(gateway, interface)).take(MAX_ROUTERS).collect()
}

fn access(gateway: &Gateway, interface: &Interface) -> Option<Access> {
    let mut own = interface.addresses.iter().map(|own| own.address);
    let own = own.find(|own| match own {
        IpAddr::V4(own) => gateway.address.is_ipv4() && own.is_private(),
        IpAddr::V6(own) => {
            gateway.address.is_ipv6() && !own.is_unicast_link_local() && !own.is_unique_local()
        }
    })?;
    let router = match gateway.address {
        IpAddr::V4(_) => SocketAddr::new(gateway.address, pcp::PORT),
        // A router's address is one of the link, most often.
        IpAddr::V6(v6) => SocketAddrV6::new(v6, pcp::PORT, 0, interface.index).into(),
    };
    Some(Access { router, own })
}

/// Keeps one task for each router that is wanted, and tells the node what comes of them.
async fn keep_all(node: NodeHandle, port: u16, mut wanted: watch::Receiver<Wanted>) {
    let (news, mut updates) = mpsc::channel(MAX_ROUTERS);
    let mut kept: Vec<Kept> = Vec::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        let accesses = if now.ports == Ports::None { Vec::new() } else { now.accesses };
        let errands: Vec<_> =
            accesses.into_iter().map(|access| Errand { access, ports: now.ports }).collect();
        let (stay, leave): (Vec<_>, Vec<_>) = kept.into_iter().partition(|one| errands.contains(&one.errand));
        let has_changed = !leave.is_empty();
        kept = stay;
        leave_all(leave).await;
        for errand in errands {
            if kept.iter().all(|one| one.errand != errand) {
                kept.push(Kept::new(errand, port, news.clone()));
            }
        }
        if has_changed {
            tell(&node, &kept);
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() {
                return leave_all(kept).await;
            },
            Some((errand, mapping)) = updates.recv() => {
                if let Some(one) = kept.iter_mut().find(|one| one.errand == errand) {
                    one.mapping = mapping;
                    tell(&node, &kept);
                }
            }
        }
    }
}

fn tell(node: &NodeHandle, kept: &[Kept]) {
    let all = kept
        .iter()
        .map(|one| RouterMapping { router: one.errand.access.router.ip(), mapping: one.mapping.clone() });
    node.tell(Input::Mapped(all.collect()));
}

/// The task that keeps one router.
struct Kept {
    errand: Errand,
    mapping: Mapping,
    /// Dropping it ends the task.
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Kept {
    fn new(errand: Errand, port: u16, news: mpsc::Sender<(Errand, Mapping)>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(keep(errand, port, news, stopped));
        Self { errand, mapping: Mapping::Asking, stop, task }
    }
}

async fn leave_all(kept: Vec<Kept>) {
    let ended = kept.into_iter().map(|one| {
        drop(one.stop);
        time::timeout(FAREWELL, one.task)
    });
    for result in futures_util::future::join_all(ended).await {
        if result.is_err() {
            tracing::debug!("the router does not take its forwarded ports back; they end by themselves");
        }
    }
}

/// A router that has granted something.
enum Router {
    Asked(Asker),
    Called(Igd),
}

async fn keep(
    errand: Errand,
    port: u16,
    news: mpsc::Sender<(Errand, Mapping)>,
    mut stopped: oneshot::Receiver<()>,
) {
    let access = errand.access;
    let mut last = None;
    loop {
        let found = tokio::select! {
            found = find(errand, port, last.as_ref()) => found,
            _stop = &mut stopped => return,
        };
        let (mut router, mut lease) = match found {
            Ok(found) => found,
            Err(why) => {
                tracing::debug!(router = %access.router, %why, "the router forwards nothing");
                // The keeper is gone only at the very end.
                let _ = news.send((errand, why.mapping())).await;
                tokio::select! {
                    () = time::sleep(RETRY) => continue,
                    _stop = &mut stopped => return,
                }
            }
        };
        loop {
            tracing::debug!(router = %access.router, ?lease, "the router forwards to this computer");
            let _ = news.send((errand, lease.mapping())).await;
            tokio::select! {
                renewed = router.renew(&lease) => match renewed {
                    Ok(renewed) => lease = renewed,
                    Err(why) => {
                        tracing::debug!(router = %access.router, %why, "the router forwards no more");
                        break;
                    }
                },
                _stop = &mut stopped => return router.forget(&lease).await,
            }
        }
        last = Some(lease);
    }
}

/// What came of asking a router once.
#[derive(Debug)]
pub(crate) struct Tried {
    /// Which one.
    pub(crate) router: IpAddr,
    /// By which protocol it opens ports, or why it does not.
    pub(crate) granted: Result<MappingProtocol, String>,
}

/// Asks the routers for a port, and gives it back at once.
pub(crate) async fn try_routers(interfaces: &[Interface]) -> Vec<Tried> {
    let tries = accesses(interfaces).into_iter().map(|access| async move {
        let granted = match find(Errand { access, ports: Ports::Udp }, TRIED_PORT, None).await {
            Ok((mut router, lease)) => {
                router.forget(&lease).await;
                Ok(lease.protocol)
            }
            Err(why) => Err(why.to_string()),
        };
        Tried { router: access.router.ip(), granted }
    });
    futures_util::future::join_all(tries).await
}

/// Finds out by which protocol the router can be asked, and asks it.
async fn find(
    Errand { access, ports }: Errand,
    port: u16,
    last: Option<&Lease>,
) -> Result<(Router, Lease), NoLease> {
    let transports = ports.transports();
    let by_datagrams = async {
        let mut nonce = [0; 12];
        getrandom::fill(&mut nonce).map_err(std::io::Error::other)?;
        let mut asker = Asker::new((access.router, access.own), transports, (port, nonce)).await?;
        let lease = asker.map(last).await?;
        Ok((Router::Asked(asker), lease))
    };
    let refusal = match by_datagrams.await {
        Ok(found) => return Ok(found),
        Err(why) => why,
    };
    let by_calls = async {
        let mut igd = Igd::find(access.router.ip(), access.own, (transports, port)).await?;
        let lease = igd.map(last).await?;
        Ok((Router::Called(igd), lease))
    };
    match (by_calls.await, refusal) {
        // What has refused says more than what does not answer.
        (Err(NoLease::Silent), why @ NoLease::Refused { .. }) => Err(why),
        (found, _) => found,
    }
}

impl Router {
    /// Waits until the lease has to be made anew, and makes it so.
    async fn renew(&mut self, lease: &Lease) -> Result<Lease, NoLease> {
        let half = time::Instant::now() + (lease.lifetime / 2).max(MIN_LEASE);
        match self {
            Self::Asked(asker) => {
                while time::Instant::now() + CHECK_INTERVAL < half {
                    time::sleep(CHECK_INTERVAL).await;
                    if !asker.is_remembered().await? {
                        return asker.map(Some(lease)).await;
                    }
                }
                time::sleep_until(half).await;
                asker.map(Some(lease)).await
            }
            Self::Called(igd) => {
                time::sleep_until(half).await;
                igd.map(Some(lease)).await
            }
        }
    }

    async fn forget(&mut self, lease: &Lease) {
        match self {
            Self::Asked(asker) => asker.forget().await,
            Self::Called(igd) => igd.forget(lease).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use peerage_proto::lan::InterfaceAddress;

    use super::*;

    /// An interface with an address and a default route.
    fn interface(index: u32, kind: InterfaceKind, own: &[&str], gateway: (&str, u32)) -> Interface {
        let addresses = own.iter().map(|own| InterfaceAddress {
            address: own.split('/').next().unwrap().parse().unwrap(),
            prefix: own.parse().unwrap(),
        });
        Interface {
            index,
            name: format!("eth{index}"),
            kind,
            up: true,
            mac: None,
            addresses: addresses.collect(),
            gateways: vec![Gateway { metric: gateway.1, address: gateway.0.parse().unwrap(), mac: None }],
        }
    }

    /// Rule 6.81.
    #[test]
    fn the_router_of_the_best_route_is_asked_and_none_beyond_a_vpn() {
        let wired = interface(2, InterfaceKind::Ethernet, &["192.168.1.10/24"], ("192.168.1.1", 100));
        let radio = interface(3, InterfaceKind::Wifi, &["192.168.2.10/24"], ("192.168.2.1", 600));
        let vpn = interface(4, InterfaceKind::Vpn, &["10.8.0.2/24"], ("10.8.0.1", 0));
        let found = accesses(&[vpn, radio, wired]);
        let expected =
            Access { router: "192.168.1.1:5351".parse().unwrap(), own: "192.168.1.10".parse().unwrap() };
        assert_eq!(found, [expected]);
    }

    /// Rule 6.81: there is nothing to map to where the address is public.
    #[test]
    fn a_computer_with_a_public_address_asks_nobody_for_ipv4() {
        let public = interface(2, InterfaceKind::Ethernet, &["198.20.0.5/24"], ("198.20.0.1", 0));
        assert_eq!(accesses(&[public]), []);
    }

    /// Rule 6.81: a firewall of IPv6 is asked from the global address, at the router's own on this link.
    #[test]
    fn the_router_of_ipv6_is_asked_where_there_is_a_global_address() {
        let own = ["fe80::5/64", "fd00::5/64", "2a03::5/64"];
        let dual = interface(7, InterfaceKind::Ethernet, &own, ("fe80::1", 1_024));
        let router = SocketAddrV6::new("fe80::1".parse().unwrap(), pcp::PORT, 0, 7);
        let expected = Access { router: router.into(), own: "2a03::5".parse().unwrap() };
        assert_eq!(accesses(&[dual]), [expected]);
        let local = interface(7, InterfaceKind::Ethernet, &own[..2], ("fe80::1", 1_024));
        assert_eq!(accesses(&[local]), []);
    }
}
