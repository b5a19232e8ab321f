//! One run: faults and wishes, then calm, then the question whether all came right.

use std::time::Duration;

use peerage_wire::record::DraftError;
use peerage_wire::time::Instant;

use crate::app::Script;
use crate::host::true_time;
use crate::invariants::{self, CONVERGED_WITHIN, Invariant, Violation, may_reach};
use crate::plan::Plan;
use crate::world::World;

/// How often a user tries to reach a device once all is well; a tunnel-node that failed a moment ago is passed over for a minute.
const PROBE_TRIES: u32 = 5;

/// Most probes of a run; in a large world more would cost more than they find.
const MAX_PROBES: usize = 80;

/// How long the probes may take.
const PROBED_WITHIN: Duration = Duration::from_secs(180);

/// How long it takes besides until every super-node has compared what it holds with an operator: every third comparison is with one,
/// and they are up to twelve minutes apart.
const COMPARED_WITHIN: Duration = Duration::from_secs(720);

/// For how long idle nodes are counted.
const COUNTED: Duration = Duration::from_secs(600);

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was broken, if anything.
    pub violation: Option<Violation>,
    /// The fingerprint.
    pub trace: u64,
    /// How many events there were.
    pub events: u64,
    /// How many computers.
    pub nodes: usize,
    /// How much time passed in the world.
    pub virtual_time: Duration,
    /// How many tunnels were complete at both ends.
    pub complete: usize,
    /// How many tunnels were begun.
    pub tunnels: usize,
    /// How many probes there were.
    pub probes: usize,
}

/// Lets users who may reach a device reach it: all of them, or of many every n-th. Returns how many.
fn probe(world: &mut World) -> usize {
    let all =
        (0..world.hosts.len()).flat_map(|host| (0..world.devices.len()).map(move |device| (host, device)));
    let may: Vec<_> = all.filter(|(host, device)| may_reach(world, *host, *device)).collect();
    let step = may.len().div_ceil(MAX_PROBES).max(1);
    let chosen: Vec<_> = may.into_iter().step_by(step).collect();
    for (host, device) in &chosen {
        let errand = world.begin_errand(*host, *device, Script::PROBE, PROBE_TRIES);
        world.mark_probe(errand);
    }
    chosen.len()
}

/// Runs a plan with all invariants.
///
/// # Errors
/// If a record of the setup would be too long.
pub fn run(plan: &Plan) -> Result<Report, DraftError> {
    run_with(plan, invariants::all())
}

/// Runs a plan with these invariants.
///
/// # Errors
/// If a record of the setup would be too long.
pub fn run_with(plan: &Plan, checkers: Vec<Box<dyn Invariant>>) -> Result<Report, DraftError> {
    let mut world = World::new(plan.setup.clone(), checkers)?;
    for (at, operation) in &plan.operations {
        world.plan(*at, *operation);
    }
    world.run_until(Instant::default().after(plan.calm_at));
    world.calm_down();
    world.run(CONVERGED_WITHIN);
    let probes = probe(&mut world);
    world.run(PROBED_WITHIN);
    if world.ledger.super_nodes(true_time(world.now()).unix).next().is_some() {
        world.run(COMPARED_WITHIN);
    }
    world.count_from_here();
    world.run(COUNTED);
    if world.violation().is_none() {
        world.conclude();
    }
    Ok(Report {
        violation: world.violation().cloned(),
        trace: world.trace(),
        events: world.events(),
        nodes: world.hosts.len(),
        virtual_time: world.now() - Instant::default(),
        complete: world.model.tunnels().filter(|(_, tunnel)| tunnel.is_complete()).count(),
        tunnels: world.model.tunnels().count(),
        probes,
    })
}
