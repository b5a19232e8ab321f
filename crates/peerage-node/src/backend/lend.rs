//! Lending the computer to the network: what commands say is written down, then the machine is told.

use std::sync::Arc;
use std::time::Duration;

use peerage_client::local::{SuperLimits, SuperNode, SuperOff, SuperOn, SuperRange, SuperState};
use peerage_client::{Problem, ProblemKind};
use peerage_proto::node::{self, Answer, Command, Input, SuperConfig, SuperStatus};
use peerage_wire::id::PlacementKey;
use tokio::sync::Mutex;
use tokio::time;

use super::{Shell, shutting_down};
use crate::driver::NodeHandle;
use crate::lending::{self, Lending};

/// How long a handover is waited for: a little longer than the machine takes for it at most.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(65);

/// What the owner has said, by commands and in the configuration file.
#[derive(Debug)]
pub(super) struct Lendings {
    /// Held while something is changed, so that two commands do not undo each other.
    told: Mutex<Lending>,
    configured: Lending,
}

impl Lendings {
    pub(super) fn new((told, configured): (Lending, Lending)) -> Self {
        Self { told: Mutex::new(told), configured }
    }

    /// Returns what is lent now.
    async fn config(&self) -> SuperConfig {
        lending::possible(self.told.lock().await.or(self.configured).config())
    }

    /// Adds to what was said, on disk first. Once begun it goes on, whether or not the client waits for it.
    async fn say(self: &Arc<Self>, node: &NodeHandle, change: Lending) -> Result<(), Problem> {
        change.check().map_err(|error| Problem::new(ProblemKind::InvalidRequest, format!("{error}.")))?;
        let (this, node) = (Arc::clone(self), node.clone());
        let said = tokio::spawn(async move { this.write(&node, change).await });
        said.await.unwrap_or_else(|_ended| Err(shutting_down()))
    }

    async fn write(&self, node: &NodeHandle, change: Lending) -> Result<(), Problem> {
        let mut told = self.told.lock().await;
        let new = change.or(*told);
        if !node.keep(new.to_batch()).await {
            let detail =
                "It could not be written down, so nothing has changed; the log of the node says why.";
            return Err(Problem::new(ProblemKind::Unavailable, detail));
        }
        *told = new;
        let config = lending::possible(new.or(self.configured).config());
        node.tell_first(Input::SuperRole(config)).await;
        Ok(())
    }
}

impl Shell {
    pub(super) async fn super_node_now(&self) -> Result<SuperNode, Problem> {
        Ok(describe(&self.snapshot().await?.status.super_role, self.lendings.config().await))
    }

    pub(super) async fn lend(&self, lend: SuperOn) -> Result<SuperNode, Problem> {
        let change = Lending {
            on: Some(true),
            max_bytes: lend.max_memory_bytes,
            max_tunnels: lend.max_tunnels,
            max_rate: lend.max_bytes_per_second,
            max_daily: lend.max_bytes_per_day,
        };
        self.lendings.say(&self.node, change).await?;
        self.super_node_now().await
    }

    pub(super) async fn lend_nothing(&self) -> Result<SuperOff, Problem> {
        let held = self.snapshot().await?.status.super_role.from.is_some();
        self.lendings.say(&self.node, Lending { on: Some(false), ..Lending::default() }).await?;
        let handed_over = if held {
            match time::timeout(HANDOVER_TIMEOUT, self.node.command(Command::SuperOff)).await {
                Ok(Some(Answer::SuperOff { handed_over })) => Some(handed_over),
                Ok(Some(_)) | Err(_) => Some(false),
                Ok(None) => return Err(shutting_down()),
            }
        } else {
            None
        };
        Ok(SuperOff { handed_over, super_node: self.super_node_now().await? })
    }
}

/// Returns the machine's view in the words of the local API.
pub(super) fn describe(status: &SuperStatus, config: SuperConfig) -> SuperNode {
    let hex = |place: PlacementKey| format!("{:016x}", place.0);
    SuperNode {
        state: state(status.state),
        paused_because: Some(status.unfit.clone()).filter(|why| !why.is_empty() && config.on),
        limits: SuperLimits {
            max_memory_bytes: config.max_bytes,
            max_tunnels: config.max_tunnels,
            max_bytes_per_second: config.max_rate,
            max_bytes_per_day: config.max_daily,
        },
        range: status.from.zip(status.to).map(|(from, to)| SuperRange { from: hex(from), to: hex(to) }),
        records: status.records as u64,
        bytes_held: status.bytes as u64,
        lacking: status.lacking as u64,
        attached: status.attached as u64,
        served_requests: status.served,
        relayed_bytes: status.relayed_bytes,
        relayed_tunnels: status.relayed_tunnels.into(),
        refusals: status.refusals,
    }
}

pub(super) const fn state(state: node::SuperState) -> SuperState {
    match state {
        node::SuperState::Off => SuperState::Off,
        node::SuperState::NotPermitted => SuperState::NotPermitted,
        node::SuperState::Asking => SuperState::Asking,
        node::SuperState::Checking => SuperState::Checking,
        node::SuperState::Unreachable => SuperState::Unreachable,
        node::SuperState::Serving { .. } => SuperState::Serving,
        node::SuperState::HandingOver => SuperState::HandingOver,
        node::SuperState::Unfit => SuperState::Paused,
    }
}
