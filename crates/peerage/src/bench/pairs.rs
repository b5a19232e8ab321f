//! Many tunnels between many pairs of nodes, all through one relay.
//!
//! In a namespace whose firewall keeps every user's node from every tunnel-node, so that only the operator's relay is left.

use std::{fs, net::SocketAddr, path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, ensure};
use peerage_client::{
    Client,
    local::{OpenTunnel, PathKind},
};
use tokio::task::JoinSet;

use super::{
    How,
    machine::milliseconds,
    many,
    network::{DOMAIN, FIND_INTERVAL, FIND_TIMEOUT, Network, Running},
    paths::{Blocked, block, interface_up},
    report::{Case, Report, Run, median, quantile},
    tcp,
    tunnel::Hops,
};

/// Pairs of one domain: a relay gives it 256, and some may have to dial twice.
const PAIRS_OF_A_DOMAIN: u32 = 225;

/// What a tunnel may take at the relay, in KiB.
const TARGET_KIB: f64 = 24.0;

/// A domain: each of its users has a tunnel to each of its sites.
#[derive(Debug)]
struct Domain {
    users: Vec<Running>,
    sites: Vec<Running>,
}

/// Opens many tunnels between so many pairs of nodes, through the operator's relay, which has room for just these.
pub(super) fn tunnels(how: &How, count: u32, pairs: u32) -> Result<Report> {
    interface_up("lo")?;
    let network = Network::start_told(&["--relay-tunnels", &pairs.to_string()])?;
    let device = network.part("device", &["device"])?;
    let hops = Hops::start(&network, device.listen()?)?;
    let domains = domains(&network, pairs, device.listen()?)?;
    let late = network.node("late", None)?;
    let users = || domains.iter().flat_map(|domain| &domain.users);
    let sites = || domains.iter().flat_map(|domain| &domain.sites);
    block(Blocked::TcpAndUdp, users().chain([&late]), sites())?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let relay = [network.operator.process()];
    let nodes: Vec<u32> = users().chain(sites()).map(Running::process).collect();
    let memory = || (many::occupied(&relay), many::occupied(&nodes));
    let (before, began_at) = (memory(), Instant::now());
    let (ports, took): (Vec<_>, Vec<_>) =
        runtime.block_on(open_ports(&domains, pairs as usize))?.into_iter().unzip();
    let (rate, paired) = (ports.len() as f64 / began_at.elapsed().as_secs_f64(), memory());
    let relayed = runtime.block_on(relayed(&domains))?;
    ensure!(relayed == ports.len(), "{relayed} of {} pairs are relayed", ports.len());

    let (case, grown) = many::turns(how, count, (hops.way()?.at, &ports), &nodes)?;
    let at_relay = (many::occupied(&relay) - before.0).max(1.0) / f64::from(count);
    let descriptors = fs::read_dir(format!("/proc/{}/fd", network.operator.process()))?.count();
    let (refused_after, words) = runtime.block_on(refused(&late, &ports))?;
    let case = case
        .with("pairs", ports.len())
        .with("pairs_joined_a_second", rate)
        .with("pair_p50_ms", median(took.clone()))
        .with("pair_p99_ms", quantile(took, 0.99))
        .with("one_pair_more_refused_after_ms", refused_after)
        .with("refused_with", words);
    let of_pair = |before: f64, after: f64| (after - before).max(0.0) / ports.len() as f64;
    let relay = Run::new(at_relay, TARGET_KIB);
    let relay = Case::new("KiB a tunnel of the relay, against the target of 24", vec![relay])
        .with("relay_kib_a_pair", of_pair(before.0, paired.0))
        .with("both_nodes_kib_a_pair", of_pair(before.1, paired.1))
        .with("relay_descriptors", descriptors);
    Report::new("tunnels", many::UNIT, many::REFERENCE, vec![case, many::memory_case(grown), relay])
}

/// Starts as many domains, with as many users and sites, as so many pairs need. All devices are the one that listens there.
fn domains(network: &Network, pairs: u32, device: SocketAddr) -> Result<Vec<Domain>> {
    let count = pairs.div_ceil(PAIRS_OF_A_DOMAIN).max(1);
    let of_each = pairs.div_ceil(count);
    // As many sites as users, or one more.
    let sites = (1..).find(|side| side * side >= of_each).unwrap_or(1);
    let users = of_each.div_ceil(sites);
    let domain = |n: u32| {
        let name = if n == 0 { DOMAIN.to_owned() } else { format!("{DOMAIN}-{n}") };
        if n > 0 {
            network.add_domain(&name)?;
        }
        let site = |m: u32| {
            let mac = format!("02:00:5e:00:{n:02x}:{m:02x}");
            let site = network.node_of(&name, &format!("site-{n}-{m}"), Some(&mac))?;
            network.register_in(&name, (&device_name(m), &mac), &site, device)?;
            Ok(site)
        };
        let sites = (0..sites).map(site).collect::<Result<_>>()?;
        let user = |m: u32| network.node_of(&name, &format!("user-{n}-{m}"), None);
        Ok(Domain { users: (0..users).map(user).collect::<Result<_>>()?, sites })
    };
    (0..count).map(domain).collect()
}

fn device_name(number: impl std::fmt::Display) -> String {
    format!("device-{number}")
}

/// Opens a local port for each pair, for which the nodes find each other first, several at a time. Returns where the ports are and how many
/// milliseconds each took.
async fn open_ports(domains: &[Domain], pairs: usize) -> Result<Vec<(SocketAddr, f64)>> {
    // Neighbours in the list are of different users.
    let of_domain = |domain: &Domain| {
        let users: Vec<_> = domain.users.iter().map(|user| user.computer.data()).collect();
        (0..domain.sites.len()).flat_map(move |site| users.clone().into_iter().map(move |user| (user, site)))
    };
    let all: Vec<_> = domains.iter().flat_map(of_domain).take(pairs).collect();
    let mut opening = JoinSet::new();
    for part in all.chunks(all.len().div_ceil(many::OPENERS).max(1)).map(<[_]>::to_vec) {
        opening.spawn(async move {
            let mut ports = Vec::new();
            for (user, site) in part {
                let began_at = Instant::now();
                let port = open_port(user, &device_name(site)).await?;
                ports.push((port, milliseconds(began_at.elapsed())));
            }
            anyhow::Ok(ports)
        });
    }
    let ports = opening.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(ports.concat())
}

/// Opens a local port as soon as the node knows the device.
async fn open_port(user: PathBuf, device: &str) -> Result<SocketAddr> {
    let (client, began_at) = (Client::new(user), Instant::now());
    loop {
        match client.open_tunnel(&OpenTunnel::new(device)).await {
            Ok(tunnel) => return Ok(tunnel.local),
            Err(error) if began_at.elapsed() > FIND_TIMEOUT => return Err(error.into()),
            Err(_too_early) => tokio::time::sleep(FIND_INTERVAL).await,
        }
    }
}

/// Returns how many local ports lead through a relay.
async fn relayed(domains: &[Domain]) -> Result<usize> {
    let mut relayed = 0;
    for user in domains.iter().flat_map(|domain| &domain.users) {
        let tunnels = Client::new(user.computer.data()).tunnels().await.context("a node does not answer")?;
        let kinds = tunnels.into_iter().filter_map(|tunnel| Some(tunnel.path?.kind));
        relayed += kinds.filter(|kind| *kind == PathKind::Relayed).count();
    }
    Ok(relayed)
}

/// Lets one node more ask for a tunnel, for which the relay has no room. Returns after how many milliseconds it is refused, and in what words.
///
/// # Errors
/// When it is not, or when a tunnel that is open does not go on.
async fn refused(late: &Running, ports: &[SocketAddr]) -> Result<(f64, String)> {
    let ends = [ports.first(), ports.last()].into_iter().flatten();
    let mut open = ends.map(|at| Ok(tcp::first_byte(*at)?.0)).collect::<Result<Vec<_>>>()?;
    let client = Client::new(late.computer.data());
    let began_at = Instant::now();
    let refused = client.open_tunnel(&OpenTunnel::new(device_name(0))).await;
    let refused = refused.err().context("the relay takes one pair more than it has room for")?;
    let took = milliseconds(began_at.elapsed());
    for stream in &mut open {
        tcp::again(stream).context("a tunnel that is open does not go on when another is refused")?;
    }
    Ok((took, refused.to_string()))
}
