//! Sealed messages a second: what members of the network get from the operator, as they would from a super-node.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Result, ensure};
use peerage_wire::message::Request;

use super::{
    How,
    crowd::{Crowd, DOMAIN, Operator},
    ledger,
    machine::{cpu, resident},
    network::Network,
    report::{Case, Report, Run, median},
    strangers::Strangers,
    udp::{self, Count, Plain},
};

/// Measures Pings, with the same number of peers, the same beside a flood of strangers, and with one.
pub(super) fn messages(how: &How, peers: usize) -> Result<Report> {
    let network = Network::start()?;
    let echo = network.part("echo", &["echo"])?;
    let responder = network.operator.process();
    let plain = (echo.listen()?, echo.process());
    let operator = Operator::find(&network)?;
    let mut cases = Vec::new();
    let mut counts = vec![peers];
    if peers != 1 {
        counts.push(1);
    }
    for count in counts {
        let mut crowd = operator.crowd(count, responder)?;
        cases.push(ping(how, &mut crowd, responder, plain)?);
        if count == peers {
            cases.push(beside_strangers(how, &mut crowd, &operator)?);
        }
    }
    let reference =
        "a plain echo of as many bytes without cryptography: sendto and recvfrom, one socket each";
    Report::new("messages", "answers a second", reference, cases)
}

fn ping(
    how: &How,
    crowd: &mut Crowd,
    responder: u32,
    (echo, echo_process): (SocketAddr, u32),
) -> Result<Case> {
    let (mut runs, mut cost, mut plain_cost, mut same) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut lost = Count::default();
    let size = Crowd::ping_size();
    for _ in 0..how.runs() {
        let one = udp::bind(Ipv4Addr::LOCALHOST)?;
        one.connect(echo)?;
        let (plain, spent) = costing(echo_process, || udp::flood_plainly(&one, how.length(), size))?;
        plain_cost.push(spent);
        let (own, spent) = costing(responder, || crowd.flood(how.length(), &mut || Request::Ping))?;
        cost.push(spent);
        ensure!(own.answers > 0, "the operator does not answer");
        lost.lost += own.lost;
        lost.wrong += own.wrong;
        runs.push(Run::new(own.per_second(), plain.per_second()));
        let sockets = connected(crowd.len(), echo)?;
        same.push(udp::flood(&sockets, how.length(), &mut Plain { size })?.per_second());
    }
    let peers = crowd.len();
    let case = Case::new(format!("Ping, {peers} {}", if peers == 1 { "peer" } else { "peers" }), runs);
    let ratio = case.value / median(same.clone()).max(1e-9);
    Ok(case
        .with("datagram_bytes", size)
        .with("responder_cpu_us", median(cost))
        .with("reference_cpu_us", median(plain_cost))
        .with("plain_echo_with_as_many_sockets", median(same))
        .with("ratio_to_that", ratio)
        .with("lost", lost.lost)
        .with("wrong", lost.wrong)
        .with("first_contacts_a_second", crowd.contacts_per_second)
        .with("first_contact_cpu_us", crowd.contact_cpu_us))
}

/// Measures what those who are known still get while strangers flood, against a flood that goes to nobody.
fn beside_strangers(how: &How, crowd: &mut Crowd, operator: &Operator) -> Result<Case> {
    let mut strangers = Strangers::new(operator.first_word()?)?;
    let nobody = udp::bind(Ipv4Addr::LOCALHOST)?;
    let elsewhere = nobody.local_addr()?;
    let (mut runs, mut rates, mut lost) = (Vec::new(), Vec::new(), 0);
    for _ in 0..how.runs() {
        let (spared, _) = strangers.beside(elsewhere, || crowd.flood(how.length(), &mut || Request::Ping))?;
        let (flooded, sent) =
            strangers.beside(operator.address, || crowd.flood(how.length(), &mut || Request::Ping))?;
        runs.push(Run::new(flooded.per_second(), spared.per_second()));
        rates.push(sent);
        lost += flooded.lost;
    }
    let peers = crowd.len();
    Ok(Case::new(
        format!("Ping, {peers} peers beside a flood of strangers, against one that goes to nobody"),
        runs,
    )
    .with("strangers_a_second", median(rates))
    .with("lost", lost))
}

/// Measures look-ups of Node records beside Pings of the same run.
pub(super) fn lookups(how: &How, peers: usize, records: u32) -> Result<Report> {
    // Whether it works shows with a few as well.
    let records = u64::from(if how.is_instant() { records.min(1_000) } else { records });
    let network = Network::start()?.reopen(|data| ledger::fill(data, DOMAIN, records))?;
    let responder = network.operator.process();
    let memory = resident(responder);
    let operator = Operator::find(&network)?;
    let mut crowd = operator.crowd(peers, responder)?;
    let mut number = 0_u64;
    let mut another = || {
        // A step that has no factor in common with the number of records comes to all of them, from everywhere in the table.
        number = number.wrapping_add(7_919);
        Request::GetNode(ledger::member(DOMAIN, number % records))
    };
    let mut own_info = || Request::GetNodeInfo(operator.id);
    let reads: [(String, &mut dyn FnMut() -> Request); 2] = [
        (format!("GetNode, another each time, of {records}"), &mut another),
        ("GetNodeInfo, always the same".to_owned(), &mut own_info),
    ];
    let mut cases = Vec::new();
    for (name, request) in reads {
        let (mut runs, mut costs, mut ping_costs) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..how.runs() {
            let (ping, cost) = costing(responder, || crowd.flood(how.length(), &mut || Request::Ping))?;
            ping_costs.push(cost);
            let (read, cost) = costing(responder, || crowd.flood(how.length(), &mut *request))?;
            ensure!(read.answers > 0, "the operator does not answer: {name}");
            runs.push(Run::new(read.per_second(), ping.per_second()));
            costs.push(cost);
        }
        let case = Case::new(name, runs).with("responder_cpu_us", median(costs));
        cases.push(case.with("ping_cpu_us", median(ping_costs)).with("responder_bytes", memory));
    }
    Report::new("lookups", "answers a second", "Pings of the same peers", cases)
}

/// Does something, and returns what each answer cost a process in microseconds.
pub(super) fn costing(process: u32, act: impl FnOnce() -> Result<Count>) -> Result<(Count, f64)> {
    let before = cpu(process);
    let count = act()?;
    let spent = cpu(process).saturating_sub(before);
    Ok((count, spent.as_secs_f64() * 1e6 / (count.answers.max(1) as f64)))
}

fn connected(count: usize, to: SocketAddr) -> Result<Vec<UdpSocket>> {
    (0..count)
        .map(|_| {
            let socket = udp::bind(Ipv4Addr::LOCALHOST)?;
            socket.connect(to)?;
            Ok(socket)
        })
        .collect()
}
