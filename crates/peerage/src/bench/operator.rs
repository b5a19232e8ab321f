//! What an operator can take: computers that join, and members that ask for their domain's Head.

use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use peerage_node::{connect::Connector, data::NodeKeys, enrol::enrol_with_token, membership::Pending};
use peerage_wire::{message::Request, token::JoinToken};

use super::{
    How,
    crowd::Operator,
    machine::synced_writes,
    messages::costing,
    network::Network,
    report::{Case, Report, Run},
};

/// Computers that join in a run, and in all: one address may ask an operator 240 times in a row, twice for each that joins.
const JOINS_OF_A_RUN: u32 = 20;
const MAX_JOINS: u32 = 100;

/// Bytes that the reference writes at a time: a page of the ledger.
const APPENDED_BYTES: usize = 4_096;

/// Those that join at the same time.
const AT_ONCE: usize = 4;

/// Members that ask for Heads.
const ASKERS: usize = 64;

/// Measures enrolments, each of which the operator has on disk before it answers.
pub(super) fn operator(how: &How) -> Result<Report> {
    let network = Network::start()?;
    let token = network.token(MAX_JOINS)?;
    let directory = tempfile::Builder::new().prefix("peerage-bench-").tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (mut runs, mut costs) = (Vec::new(), Vec::new());
    for run in 0..how.runs().min(MAX_JOINS / JOINS_OF_A_RUN) {
        let plain = synced_writes(&directory.path().join(run.to_string()), APPENDED_BYTES, how.length())?;
        let before = super::machine::cpu(network.operator.process());
        let began_at = Instant::now();
        runtime.block_on(join(&token))?;
        let took = began_at.elapsed();
        let spent = super::machine::cpu(network.operator.process()).saturating_sub(before);
        costs.push(spent.as_secs_f64() * 1e3 / f64::from(JOINS_OF_A_RUN));
        runs.push(Run::new(f64::from(JOINS_OF_A_RUN) / took.as_secs_f64(), plain));
    }
    let joined = Case::new("computers that join a second, 4 at once", runs)
        .with("operator_cpu_ms_each", super::report::median(costs));
    Report::new(
        "operator",
        "enrolments and Heads a second",
        "enrolments: 4 KiB appended and on disk, one after the other; Heads: Pings of the same members",
        vec![joined, heads(how)?],
    )
}

/// Measures members that ask for their domain's Head, which the operator signs anew once in a while.
fn heads(how: &How) -> Result<Case> {
    let network = Network::start()?;
    let responder = network.operator.process();
    let mut operator = Operator::find(&network)?;
    operator.domain = network.domain;
    let mut crowd = operator.crowd(ASKERS, responder)?;
    let (mut runs, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..how.runs() {
        let pings = crowd.flood(how.length(), &mut || Request::Ping)?;
        let ask = || crowd.flood(how.length(), &mut || Request::GetHead { domain: None });
        let (heads, cost) = costing(responder, ask)?;
        ensure!(heads.answers > 0, "the operator does not hand out Heads");
        runs.push(Run::new(heads.per_second(), pings.per_second()));
        costs.push(cost);
    }
    let case = Case::new("Heads a second, 64 members of one domain", runs);
    Ok(case.with("operator_cpu_us_each", super::report::median(costs)))
}

async fn join(token: &str) -> Result<()> {
    let mut joining = tokio::task::JoinSet::new();
    for _ in 0..JOINS_OF_A_RUN {
        if joining.len() >= AT_ONCE {
            joining.join_next().await.context("nobody joins")???;
        }
        let token: JoinToken = token.parse()?;
        joining.spawn(async move {
            let pending = Pending { token: token.to_string(), name: "bench".to_owned() };
            let keys = {
                let mut rng = super::crowd::rng()?;
                NodeKeys::generate(&mut rng)
            };
            let connector = Connector::default();
            let admitted = enrol_with_token(&pending, &token, &keys, &connector).await?;
            admitted.ok_or_else(|| anyhow!("it is not admitted"))?;
            anyhow::Ok(())
        });
    }
    while let Some(joined) = joining.join_next().await {
        joined??;
    }
    Ok(())
}
