//! The routes about super-nodes and segments: what the machine knows, with the names that the ledger has.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use peerage_client::ProblemKind;
use peerage_client::admin::{
    PlaceRange, Quarantine, QuarantineSuperNode, Segment, SegmentHolder, SegmentMap, Spied, SuperNode,
    SuperNodeLoad, SuperNodeState,
};
use peerage_node::local_api::web::{Failure, JsonBody};
use peerage_proto::operator::{SegmentStatus, SuperNodeStatus, SuperState};
use peerage_wire::id::{self, NodeId};

use super::problems::Refused;
use super::routes::{Answer, Shared};
use super::{Admin, views};
use crate::driver::{Ask, evidence_line};
use crate::ledger::{Actor, NodeError, SuperNodeRow, Tx};

/// Longest reason that an administrator may give.
const MAX_WHY_BYTES: usize = 1_000;

impl Admin {
    /// Returns what the machine knows about the super-nodes.
    async fn statuses(&self) -> Result<BTreeMap<NodeId, SuperNodeStatus>, Failure> {
        let all = self.ask_for(Ask::SuperNodes).await?;
        Ok(all.into_iter().map(|status| (status.node, status)).collect())
    }

    /// Has the ledger do something about a super-node, and shows how it stands then.
    async fn change_super_node(
        &self,
        action: impl FnOnce(&mut Tx<'_>) -> Result<SuperNodeRow, NodeError> + Send + 'static,
    ) -> Answer<SuperNode> {
        let row = self.act(move |tx| Ok(action(tx)?)).await?;
        // What was committed reached the machine before the answer reached us.
        let statuses = self.statuses().await?;
        let domains = self.act(|tx| Ok(tx.facts()?)).await?;
        let vendor = domains.iter().any(|facts| facts.domain == row.node.id.domain && facts.vendor);
        Ok(Json(super_node(&row, statuses.get(&row.node.id), vendor)))
    }
}

pub(super) async fn super_nodes(State(admin): Shared) -> Answer<Vec<SuperNode>> {
    let statuses = admin.statuses().await?;
    let list = move |tx: &mut Tx<'_>| {
        let asking: Vec<NodeId> = statuses.keys().copied().collect();
        let facts: BTreeMap<_, _> =
            tx.facts()?.into_iter().map(|facts| (facts.domain, facts.vendor)).collect();
        let show = |row: &SuperNodeRow| {
            let vendor = facts.get(&row.node.id.domain).is_some_and(|vendor| *vendor);
            super_node(row, statuses.get(&row.node.id), vendor)
        };
        let mut all: Vec<_> = tx.super_nodes(&asking)?.iter().map(show).collect();
        all.sort_by(|a, b| (&a.domain, &a.name, &a.id).cmp(&(&b.domain, &b.name, &b.id)));
        Ok(all)
    };
    admin.answer(list).await
}

pub(super) async fn quarantine(
    State(admin): Shared,
    Path(node): Path<String>,
    JsonBody(body): JsonBody<QuarantineSuperNode>,
) -> Answer<SuperNode> {
    if body.why.len() > MAX_WHY_BYTES {
        let detail = format!("A reason has at most {MAX_WHY_BYTES} bytes.");
        return Err(Refused::new(ProblemKind::InvalidRequest, detail).0);
    }
    admin.change_super_node(move |tx| tx.quarantine(&node, &body.why, Actor::Admin)).await
}

pub(super) async fn release(State(admin): Shared, Path(node): Path<String>) -> Answer<SuperNode> {
    admin.change_super_node(move |tx| tx.release(&node, Actor::Admin)).await
}

pub(super) async fn segments(State(admin): Shared) -> Answer<SegmentMap> {
    let parts = admin.ask_for(Ask::Segments).await?;
    let name = move |tx: &mut Tx<'_>| {
        let holders: Vec<NodeId> = parts.iter().flat_map(|part| part.holders.iter().copied()).collect();
        let names: BTreeMap<NodeId, (String, String)> = tx
            .super_nodes(&holders)?
            .into_iter()
            .map(|row| (row.node.id, (row.node.name, row.domain_name)))
            .collect();
        let segments = parts.iter().map(|part| segment(part, &names)).collect();
        Ok(SegmentMap { version: tx.map_version()?, segments })
    };
    admin.answer(name).await
}

fn segment(part: &SegmentStatus, names: &BTreeMap<NodeId, (String, String)>) -> Segment {
    let holder = |id: &NodeId| {
        let (name, domain) = names.get(id).cloned().unwrap_or_default();
        SegmentHolder { id: id.to_string(), name, domain }
    };
    Segment {
        range: range(part.places),
        holders: part.holders.iter().map(holder).collect(),
        stands_in: part.stands_in,
    }
}

fn range(segment: id::Segment) -> PlaceRange {
    PlaceRange { from: segment.from.to_string(), to: segment.to.to_string() }
}

fn super_node(row: &SuperNodeRow, status: Option<&SuperNodeStatus>, vendor: bool) -> SuperNode {
    let state = match status {
        _ if row.quarantine.is_some() => SuperNodeState::Quarantined,
        Some(status) => state(status.state),
        None => SuperNodeState::Lost,
    };
    let recorded = row.assigned.as_ref();
    let addresses = match status.map(|status| &status.addresses) {
        Some(addresses) if !addresses.is_empty() => addresses.clone(),
        Some(_) | None => recorded.map(|body| body.addresses.clone()).unwrap_or_default(),
    };
    let load = status.map(|status| status.load).unwrap_or_default();
    SuperNode {
        id: row.node.id.to_string(),
        name: row.node.name.clone(),
        domain: row.domain_name.clone(),
        vendor,
        state,
        range: recorded.map(|body| range(body.segment)),
        addresses,
        last_heard_ms_ago: status.and_then(|status| status.heard).map(views::milliseconds),
        load: SuperNodeLoad {
            relayed_bytes: load.relayed_bytes,
            relayed_tunnels: load.relayed_tunnels,
            records: load.records,
            held_bytes: load.held_bytes,
            max_bytes: load.max_bytes,
            lacking: load.lacking,
        },
        quarantine: row.quarantine.as_ref().map(|quarantine| Quarantine {
            since_at_ms: quarantine.began_at.as_millis(),
            evidence: quarantine.evidence.lines().map(str::to_owned).collect(),
        }),
        spied: Spied { visits: visits_of(status), evidence: evidence_of(status) },
    }
}

fn visits_of(status: Option<&SuperNodeStatus>) -> u64 {
    status.map_or(0, |status| u64::try_from(status.spied.visits).unwrap_or(u64::MAX))
}

fn evidence_of(status: Option<&SuperNodeStatus>) -> Vec<String> {
    status.iter().flat_map(|status| &status.spied.evidence).map(evidence_line).collect()
}

const fn state(state: SuperState) -> SuperNodeState {
    match state {
        SuperState::Checking => SuperNodeState::Checking,
        SuperState::Unreachable => SuperNodeState::Unreachable,
        SuperState::Spare => SuperNodeState::Spare,
        SuperState::Serving => SuperNodeState::Serving,
        SuperState::Leaving => SuperNodeState::Leaving,
        SuperState::Lost => SuperNodeState::Lost,
        SuperState::Quarantined => SuperNodeState::Quarantined,
    }
}
