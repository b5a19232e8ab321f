//! Numbered bytes that flow from a user's computer through a tunnel to the device, and back.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::player::Player;
use super::village::Cast;
use crate::flow::{End, unix_ms};
use crate::netns::Process;

/// How long a flow may take to begin, and to end: a tunnel that comes back late shows as a long stall, not as a failure.
const FLOW_TIMEOUT: Duration = Duration::from_secs(90);

/// What has flowed.
#[derive(Debug)]
pub(super) struct Passed {
    /// Bytes that came, in both directions.
    pub(super) bytes: u64,
    pub(super) lost: u64,
    pub(super) stall_ms: u64,
    pub(super) error: Option<String>,
}

/// Begins `count` flows from the first user's computer through the tunnel, and waits until all flow.
pub(super) fn start(cast: &Cast<'_>, count: usize) -> Result<Process> {
    let mut flow = launch(cast, &cast.user, &cast.local()?, count)?;
    wait(&mut flow)?;
    Ok(flow)
}

/// Begins `count` flows from a player's computer to the near end of a tunnel there, and does not wait.
pub(super) fn launch(cast: &Cast<'_>, from: &Player<'_>, to: &str, count: usize) -> Result<Process> {
    cast.agent_of(from, &["flow", to, &count.to_string()])
}

/// Waits until all flow.
pub(super) fn wait(flow: &mut Process) -> Result<()> {
    flow.wait_for_line("all flowed", FLOW_TIMEOUT, |line| (line == "flows").then_some(()))
}

/// Ends flows in order, all at once, and compares what both ends have sent and got; a stall counts from `since` on.
pub(super) fn end(cast: &mut Cast<'_>, flows: &mut [Process], since: u64) -> Result<Passed> {
    flows.iter_mut().for_each(|flow| flow.feed(&[]));
    for flow in &mut *flows {
        flow.wait_for_line("all had come", FLOW_TIMEOUT, |line| (line == "ended").then_some(()))?;
    }
    let mut passed = Passed { bytes: 0, lost: 0, stall_ms: 0, error: None };
    // Read once: there may be hundreds, each with hundreds of pauses.
    let told: BTreeMap<u64, End> =
        cast.device.stdout().lines().filter_map(read).map(|end| (end.id, end)).collect();
    for client in flows.iter().flat_map(|flow| flow.stdout().lines().filter_map(read).collect::<Vec<_>>()) {
        let device = match told.get(&client.id) {
            Some(device) => device.clone(),
            None => {
                let find = |line: &str| read(line).filter(|device| device.id == client.id);
                cast.device.wait_for_line("the device had all", FLOW_TIMEOUT, find)?
            }
        };
        passed.bytes += client.received + device.received;
        passed.lost += client.lost_from(&device) + device.lost_from(&client);
        passed.stall_ms = passed.stall_ms.max(client.stall_since(since)).max(device.stall_since(since));
        passed.error = passed.error.or(client.error).or(device.error);
    }
    if passed.bytes == 0 {
        bail!("nothing flowed");
    }
    Ok(passed)
}

/// Reads what an end of a flow tells.
pub(super) fn read(line: &str) -> Option<End> {
    End::from_json(&serde_json::from_str(line).ok()?)
}

/// Returns the present on the clock of flows.
pub(super) fn now() -> Result<u64> {
    Some(unix_ms()).filter(|now| *now > 0).context("this computer does not know the time")
}
