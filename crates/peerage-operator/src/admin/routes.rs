//! The routes of the admin API.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use peerage_client::ProblemKind;
use peerage_client::admin::{
    AddDevice, AddDomain, AddToken, Device, Domain, NewToken, Node, OperatorStatus, Push, Pushed,
    RevokeDomain, RevokeNode, RevokeToken, RevokedToken, Token,
};
use peerage_node::local_api::web::{Failure, JsonBody};
use peerage_wire::id::{Mac, TokenId};
use peerage_wire::time::UnixTime;
use peerage_wire::token::JoinToken;
use serde::Serialize;
use tokio::sync::oneshot;

use super::problems::Refused;
use super::{Admin, super_nodes, views};
use crate::driver::Ask;
use crate::ledger::{self, Actor, MAX_TOKEN_LIFE, MAX_TOKEN_USES, NewDevice, NewDomain, Tx};

/// Life of a token for which none was asked.
const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(7 * 24 * 3_600);

/// When the status begins to warn that the operator's record ends: time enough to fetch the root key from its safe.
const RECORD_WARNING: Duration = Duration::from_secs(30 * 24 * 3_600);

pub(super) type Shared = State<Arc<Admin>>;
pub(super) type Answer<T> = Result<Json<T>, Failure>;
type Made<T> = Result<(StatusCode, Json<T>), Failure>;

pub(super) fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/domains", get(domains).post(add_domain))
        .route("/v1/domains/{domain}", get(domain))
        .route("/v1/domains/{domain}/revoke", post(revoke_domain))
        .route("/v1/domains/{domain}/tokens", get(tokens).post(add_token))
        .route("/v1/domains/{domain}/tokens/{token}/revoke", post(revoke_token))
        .route("/v1/domains/{domain}/devices", get(devices).post(add_device))
        .route("/v1/domains/{domain}/devices/{device}", delete(remove_device))
        .route("/v1/domains/{domain}/push", post(push))
        .route("/v1/domains/{domain}/nodes", get(nodes))
        .route("/v1/domains/{domain}/nodes/{node}", get(node))
        .route("/v1/domains/{domain}/nodes/{node}/approve", post(approve))
        .route("/v1/domains/{domain}/nodes/{node}/revoke", post(revoke_node))
        .route("/v1/super-nodes", get(super_nodes::super_nodes))
        .route("/v1/super-nodes/{node}/quarantine", post(super_nodes::quarantine))
        .route("/v1/super-nodes/{node}/release", post(super_nodes::release))
        .route("/v1/segments", get(super_nodes::segments))
        .with_state(admin)
}

impl Admin {
    pub(super) async fn act<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut Tx<'_>) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Failure> {
        self.ledger.act(action).await.map_err(|refused| refused.0)
    }

    pub(super) async fn answer<T: Serialize + Send + 'static>(
        &self,
        action: impl FnOnce(&mut Tx<'_>) -> Result<T, Refused> + Send + 'static,
    ) -> Answer<T> {
        self.act(action).await.map(Json)
    }

    async fn ask(&self, ask: Ask) -> Result<(), Failure> {
        self.machine.send(ask).await.map_err(|_| ending())
    }

    /// Asks the machine something, and waits for what it says.
    pub(super) async fn ask_for<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Ask,
    ) -> Result<T, Failure> {
        let (give, answer) = oneshot::channel();
        self.ask(question(give)).await?;
        answer.await.map_err(|_| ending())
    }
}

fn ending() -> Failure {
    Failure::new(ProblemKind::Unavailable, "The operator is ending.")
}

async fn status(State(admin): Shared) -> Answer<OperatorStatus> {
    let discards = admin.ask_for(Ask::Discards).await?;
    let read = |tx: &mut Tx<'_>| -> Result<_, Refused> {
        Ok((tx.domains()?, tx.own_operator_record()?.map(|record| record.header().expires), tx.now()))
    };
    let (domains, expires, now) = admin.act(read).await?;
    let ready = &admin.ready;
    Ok(Json(OperatorStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        id: ready.id.to_string(),
        network: ready.network.to_string(),
        listen: vec![ready.listen],
        advertised: ready.advertised.clone(),
        started_at_ms: admin.started_at.as_millis(),
        domains: u64::try_from(domains.len()).unwrap_or(u64::MAX),
        nodes: domains.iter().map(|domain| domain.nodes).sum(),
        devices: domains.iter().map(|domain| domain.devices).sum(),
        discards,
        warnings: record_warning(expires, now).into_iter().collect(),
    }))
}

fn record_warning(expires: Option<UnixTime>, now: UnixTime) -> Option<String> {
    let Some(expires) = expires else {
        return Some(
            "The operator's record has ended: put root.key into the data directory and restart.".to_owned(),
        );
    };
    let left = expires.since(now);
    (left < RECORD_WARNING).then(|| {
        let days = left.as_secs() / (24 * 3_600);
        format!(
            "The operator's record ends in {days} days: put root.key into the data directory and restart."
        )
    })
}

async fn domains(State(admin): Shared) -> Answer<Vec<Domain>> {
    admin.answer(|tx| Ok(tx.domains()?.into_iter().map(views::domain).collect())).await
}

async fn add_domain(State(admin): Shared, JsonBody(body): JsonBody<AddDomain>) -> Made<Domain> {
    let name = views::domain_label(body.name).map_err(|refused| refused.0)?;
    let new = NewDomain { name, offline_hours: None, vendor: body.vendor };
    let row = admin.act(move |tx| Ok(tx.add_domain(&new, Actor::Admin)?)).await?;
    Ok((StatusCode::CREATED, Json(views::domain(row))))
}

async fn domain(State(admin): Shared, Path(domain): Path<String>) -> Answer<Domain> {
    let row = admin.act(move |tx| Ok(tx.find_domain(&domain)?)).await?;
    let refusals = admin.ask_for(|give| Ask::Refusals(row.id, give)).await?;
    Ok(Json(Domain { refusals: views::refusals(&refusals), ..views::domain(row) }))
}

async fn revoke_domain(
    State(admin): Shared,
    Path(domain): Path<String>,
    JsonBody(body): JsonBody<RevokeDomain>,
) -> Answer<Domain> {
    let reason = views::reason_from(body.reason);
    admin.answer(move |tx| Ok(views::domain(tx.revoke_domain(&domain, reason, Actor::Admin)?))).await
}

async fn tokens(State(admin): Shared, Path(domain): Path<String>) -> Answer<Vec<Token>> {
    let list = move |tx: &mut Tx<'_>| {
        let now = tx.now();
        let domain = tx.find_domain(&domain)?.id;
        Ok(tx.tokens(domain)?.iter().map(|row| views::token(row, now)).collect())
    };
    admin.answer(list).await
}

async fn add_token(
    State(admin): Shared,
    Path(domain): Path<String>,
    JsonBody(body): JsonBody<AddToken>,
) -> Made<NewToken> {
    let uses = body.uses.unwrap_or(1);
    let life = body.expires_s.map_or(DEFAULT_TOKEN_LIFE, Duration::from_secs);
    if uses == 0 || uses > MAX_TOKEN_USES || life.is_zero() || life > MAX_TOKEN_LIFE {
        let detail = format!("A token is good for 1 to {MAX_TOKEN_USES} nodes and for 1 second to 366 days.");
        return Err(Failure::new(ProblemKind::InvalidRequest, detail));
    }
    let roles = views::roles_from(body.roles.as_deref()).map_err(|refused| refused.0)?;
    let make = move |tx: &mut Tx<'_>| -> Result<_, Refused> {
        let domain = tx.find_open_domain(&domain)?.id;
        let new = ledger::NewToken { domain, uses, life, roles, approval: body.approval };
        let (row, secret) = tx.add_token(&new, Actor::Admin)?;
        Ok((views::token(&row, tx.now()), row.id, secret))
    };
    let (info, id, secret) = admin.act(make).await?;
    let ready = &admin.ready;
    let token = JoinToken { network: ready.network, id, secret, addresses: ready.advertised.clone() };
    Ok((StatusCode::CREATED, Json(NewToken { token: token.to_string(), info })))
}

async fn revoke_token(
    State(admin): Shared,
    Path((domain, token)): Path<(String, String)>,
    JsonBody(body): JsonBody<RevokeToken>,
) -> Answer<RevokedToken> {
    let revoke = move |tx: &mut Tx<'_>| {
        let domain = tx.find_domain(&domain)?.id;
        let id: TokenId = token.to_ascii_lowercase().parse().map_err(|_| ledger::TokenError::Unknown)?;
        let (row, nodes) = tx.revoke_token(domain, id, body.with_nodes, Actor::Admin)?;
        let revoked_nodes = nodes.iter().map(ToString::to_string).collect();
        Ok(RevokedToken { token: views::token(&row, tx.now()), revoked_nodes })
    };
    admin.answer(revoke).await
}

async fn devices(State(admin): Shared, Path(domain): Path<String>) -> Answer<Vec<Device>> {
    let list = move |tx: &mut Tx<'_>| {
        let domain = tx.find_domain(&domain)?.id;
        Ok(tx.devices(domain)?.into_iter().map(views::device).collect())
    };
    admin.answer(list).await
}

async fn add_device(
    State(admin): Shared,
    Path(domain): Path<String>,
    JsonBody(body): JsonBody<AddDevice>,
) -> Made<Device> {
    let new = new_device(body).map_err(|refused| refused.0)?;
    let add = move |tx: &mut Tx<'_>| {
        let domain = tx.find_open_domain(&domain)?.id;
        Ok(views::device(tx.add_device(domain, new, Actor::Admin)?))
    };
    Ok((StatusCode::CREATED, Json(admin.act(add).await?)))
}

fn new_device(body: AddDevice) -> Result<NewDevice, Refused> {
    let bad_mac = |_| {
        let detail = "A MAC address has six pairs of hexadecimal digits, as in aa:bb:cc:dd:ee:ff.";
        Refused::new(ProblemKind::InvalidRequest, detail)
    };
    let mac: Mac = body.mac.parse().map_err(bad_mac)?;
    // The lowest bit of the first byte marks group addresses, which no device has.
    if mac.0 == [0; 6] || mac.0.first().is_some_and(|first| first & 1 == 1) {
        return Err(Refused::new(ProblemKind::InvalidRequest, format!("{mac} is no address of one device.")));
    }
    Ok(NewDevice {
        name: views::label(body.name)?,
        kind: body.kind,
        mac,
        via: body.via,
        services: body.services.into_iter().map(views::service_from).collect(),
        pins: views::pins_from(&body.tls_pins)?,
        users: body.allowed,
    })
}

async fn remove_device(
    State(admin): Shared,
    Path((domain, device)): Path<(String, String)>,
) -> Answer<Device> {
    let remove = move |tx: &mut Tx<'_>| {
        let domain = tx.find_domain(&domain)?.id;
        Ok(views::device(tx.remove_device(domain, &device, Actor::Admin)?))
    };
    admin.answer(remove).await
}

async fn push(
    State(admin): Shared,
    Path(domain): Path<String>,
    JsonBody(body): JsonBody<Push>,
) -> Answer<Pushed> {
    let count = move |tx: &mut Tx<'_>| -> Result<_, Refused> {
        let domain = tx.find_domain(&domain)?;
        let devices = match &body.device {
            Some(device) => tx.find_device(domain.id, device).map(|_known| 1)?,
            None => domain.devices,
        };
        tx.note_push(domain.id, body.device.as_deref(), Actor::Admin)?;
        Ok((domain.id, devices))
    };
    let (domain, devices) = admin.act(count).await?;
    admin.ask(Ask::Push(domain)).await?;
    let segments = admin.ask_for(Ask::Segments).await?;
    Ok(Json(Pushed { devices, holders: views::holders(domain, &segments) }))
}

async fn nodes(State(admin): Shared, Path(domain): Path<String>) -> Answer<Vec<Node>> {
    let started_at = admin.started_at;
    let list = move |tx: &mut Tx<'_>| {
        let now = tx.now();
        let domain = tx.find_domain(&domain)?.id;
        Ok(tx.nodes(domain)?.iter().map(|row| views::node(row, now, started_at)).collect())
    };
    admin.answer(list).await
}

async fn node(State(admin): Shared, Path((domain, node)): Path<(String, String)>) -> Answer<Node> {
    let started_at = admin.started_at;
    let show = move |tx: &mut Tx<'_>| {
        let domain = tx.find_domain(&domain)?.id;
        Ok(views::node(&tx.find_node(domain, &node)?, tx.now(), started_at))
    };
    admin.answer(show).await
}

async fn approve(State(admin): Shared, Path((domain, node)): Path<(String, String)>) -> Answer<Node> {
    let started_at = admin.started_at;
    let approve = move |tx: &mut Tx<'_>| {
        let domain = tx.find_open_domain(&domain)?.id;
        Ok(views::node(&tx.approve(domain, &node, Actor::Admin)?, tx.now(), started_at))
    };
    admin.answer(approve).await
}

async fn revoke_node(
    State(admin): Shared,
    Path((domain, node)): Path<(String, String)>,
    JsonBody(body): JsonBody<RevokeNode>,
) -> Answer<Node> {
    let started_at = admin.started_at;
    let reason = views::reason_from(body.reason);
    let revoke = move |tx: &mut Tx<'_>| {
        let domain = tx.find_domain(&domain)?.id;
        Ok(views::node(&tx.revoke_node(domain, &node, reason, Actor::Admin)?, tx.now(), started_at))
    };
    admin.answer(revoke).await
}
