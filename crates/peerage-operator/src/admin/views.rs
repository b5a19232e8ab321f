//! Between what the ledger keeps and what the admin API shows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use peerage_client::admin::{
    Device, DeviceState, Domain, Node, NodeState, RevocationReason, Token, TokenState,
};
use peerage_client::{ProblemKind, Protocol, Role, Service};
use peerage_proto::operator::SegmentStatus;
use peerage_wire::codec;
use peerage_wire::id::{self, NodeId, from_hex, to_hex};
use peerage_wire::message::RefusedReason;
use peerage_wire::record::Roles;
use peerage_wire::time::UnixTime;

use super::problems::Refused;
use crate::ledger::{DeviceRow, DomainRow, Membership, NodeRow, Reason, TokenRow};

/// Longest name of a domain or device: that of a label of a domain name, which both become a part of.
const MAX_LABEL: usize = 63;

pub(super) fn domain(row: DomainRow) -> Domain {
    Domain {
        id: row.id.0,
        name: row.name,
        created_at_ms: row.created_at.as_millis(),
        nodes: row.nodes,
        devices: row.devices,
        epoch: row.epoch.into(),
        vendor: row.vendor,
        revoked_at_ms: row.revoked_at.map(UnixTime::as_millis),
        refusals: BTreeMap::new(),
    }
}

pub(super) fn refusals(counted: &[(RefusedReason, u64)]) -> BTreeMap<String, u64> {
    let name = |reason| match reason {
        RefusedReason::Quota => "quota",
        RefusedReason::Rate => "rate",
        RefusedReason::BadRecords => "bad-records",
        RefusedReason::RelayQuota => "relay-quota",
        RefusedReason::NotMember => "not-member",
    };
    counted.iter().map(|(reason, count)| (name(*reason).to_owned(), *count)).collect()
}

/// Counts those who hold any part of a domain; the operator, where it stands in, is one.
pub(super) fn holders(domain: id::Domain, segments: &[SegmentStatus]) -> u64 {
    let touched = || segments.iter().filter(|segment| segment.places.touches(domain));
    let holders: BTreeSet<NodeId> = touched().flat_map(|segment| segment.holders.iter().copied()).collect();
    let stands_in = touched().any(|segment| segment.stands_in);
    u64::try_from(holders.len()).unwrap_or(u64::MAX).saturating_add(u64::from(stands_in))
}

/// A duration as the API tells it.
pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn token(row: &TokenRow, now: UnixTime) -> Token {
    let state = if row.closed_at.is_some() {
        TokenState::Revoked
    } else if row.used >= row.uses {
        TokenState::UsedUp
    } else if row.expires_at <= now {
        TokenState::Expired
    } else {
        TokenState::Open
    };
    Token {
        id: row.id.to_string(),
        state,
        uses: row.uses,
        used: row.used,
        roles: roles(row.roles),
        approval: row.approval,
        created_at_ms: row.created_at.as_millis(),
        expires_at_ms: row.expires_at.as_millis(),
    }
}

pub(super) fn node(row: &NodeRow, now: UnixTime, started_at: UnixTime) -> Node {
    let state = match row.membership {
        Membership::Pending => NodeState::Pending,
        Membership::Member if row.is_valid_at(now) => NodeState::Valid,
        Membership::Member => NodeState::Expired,
        Membership::Revoked => NodeState::Revoked,
        Membership::Left => NodeState::Left,
    };
    Node {
        id: row.id.to_string(),
        name: row.name.clone(),
        fingerprint: row.id.fingerprint(),
        state,
        roles: roles(row.roles),
        token: row.token.to_string(),
        joined_at_ms: row.joined_at.as_millis(),
        expires_at_ms: row.expires_at.map_or(0, UnixTime::as_millis),
        last_seen_at_ms: row.seen_at.filter(|at| *at >= started_at).map(UnixTime::as_millis),
        revoked_at_ms: row.revoked_at.map(UnixTime::as_millis),
        revocation_reason: row.reason.map(revocation_reason),
        spy: row.is_spy,
    }
}

pub(super) fn device(row: DeviceRow) -> Device {
    let body = row.body;
    let state = match (row.removed, body.site.is_empty()) {
        (true, _) => DeviceState::Removed,
        (false, true) => DeviceState::Waiting,
        (false, false) => DeviceState::Located,
    };
    Device {
        id: body.device.to_string(),
        name: body.name,
        kind: body.kind,
        mac: body.mac.to_string(),
        services: body.services.into_iter().map(service).collect(),
        tls_pins: body.pins.iter().map(|pin| to_hex(pin)).collect(),
        allowed: if body.users.is_empty() {
            None
        } else {
            Some(body.users.iter().map(ToString::to_string).collect())
        },
        state,
        sites: u32::try_from(body.site.len()).unwrap_or(u32::MAX),
        version: row.version,
        registered_at_ms: row.created_at.as_millis(),
        expires_at_ms: row.expires_at.as_millis(),
    }
}

fn service(service: codec::Service) -> Service {
    let protocol = match service.protocol {
        codec::Protocol::Tcp => Protocol::Tcp,
        codec::Protocol::Udp => Protocol::Udp,
    };
    Service { name: service.name, port: service.port, protocol, tls: service.tls }
}

pub(super) fn service_from(service: Service) -> codec::Service {
    let protocol = match service.protocol {
        Protocol::Tcp => codec::Protocol::Tcp,
        Protocol::Udp => codec::Protocol::Udp,
    };
    codec::Service { name: service.name, port: service.port, protocol, tls: service.tls }
}

/// Every node may open tunnels; what else it may do, the operator permits.
fn roles(roles: Roles) -> Vec<Role> {
    let mut all = vec![Role::User];
    all.extend(roles.tunnel.then_some(Role::Tunnel));
    all.extend(roles.super_node.then_some(Role::Super));
    all
}

pub(super) fn roles_from(roles: Option<&[Role]>) -> Result<Roles, Refused> {
    let roles = roles.unwrap_or(&[Role::User, Role::Tunnel]);
    if roles.is_empty() || roles.contains(&Role::Operator) {
        let detail = "A token permits one or more of the roles user, tunnel and super; operators are made by the root.";
        return Err(Refused::new(ProblemKind::InvalidRequest, detail));
    }
    Ok(Roles { tunnel: roles.contains(&Role::Tunnel), super_node: roles.contains(&Role::Super) })
}

pub(super) fn reason_from(reason: RevocationReason) -> Reason {
    match reason {
        RevocationReason::Unspecified => Reason::Unspecified,
        RevocationReason::KeyCompromise => Reason::KeyCompromise,
        RevocationReason::Retired => Reason::Retired,
        RevocationReason::Misbehaviour => Reason::Misbehaviour,
    }
}

fn revocation_reason(reason: Reason) -> RevocationReason {
    match reason {
        Reason::Unspecified => RevocationReason::Unspecified,
        Reason::KeyCompromise => RevocationReason::KeyCompromise,
        Reason::Retired => RevocationReason::Retired,
        Reason::Misbehaviour => RevocationReason::Misbehaviour,
    }
}

/// Checks the name of a domain or device.
pub(super) fn label(name: String) -> Result<String, Refused> {
    let usual = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let edge = name.starts_with('-') || name.ends_with('-');
    if name.is_empty() || name.len() > MAX_LABEL || edge || !name.bytes().all(usual) {
        let detail = "A name has 1 to 63 characters of a-z, 0-9 and -, and neither begins nor ends with -.";
        return Err(Refused::new(ProblemKind::InvalidRequest, detail));
    }
    Ok(name)
}

/// Checks the name of a domain, which must not look like a number: domains are named by either.
pub(super) fn domain_label(name: String) -> Result<String, Refused> {
    if !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit()) {
        let detail = "A name of digits alone could be taken for a domain's number; add a letter.";
        return Err(Refused::new(ProblemKind::InvalidRequest, detail));
    }
    label(name)
}

pub(super) fn pins_from(pins: &[String]) -> Result<Vec<[u8; 32]>, Refused> {
    let read = |pin: &String| {
        let detail = "A certificate pin is a SHA-256 of 64 hexadecimal digits.";
        from_hex(pin).map_err(|_| Refused::new(ProblemKind::InvalidRequest, detail))
    };
    pins.iter().map(read).collect()
}
