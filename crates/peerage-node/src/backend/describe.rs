//! The machine's state in the words of the local API.

use std::net::SocketAddr;

use peerage_client::local::{
    Attachment, Carrier, CarrierKind, CarrierReason, Clock, Device, DeviceState, Elected, Election, Head,
    InterfaceKind, Location, Nat, NatFiltering, NatMapping, NatPorts, NodeIdentity, NodeState, Operator,
    PortMapping, PortMappingState, Proxy, ProxyState, ReachableVia, Records, Status, SuperNode,
};
use peerage_client::{Protocol, Role, Service};
use peerage_proto::carrier;
use peerage_proto::discard::Discard;
use peerage_proto::lan;
use peerage_proto::mapping::{Mapping, RouterMapping};
use peerage_proto::node::{
    AttachmentStatus, DeviceStatus, ElectedStatus, ElectionStatus, HeadStatus, ServerStatus,
    Status as NodeStatus,
};
use peerage_proto::path::{self, Filtering, NatBehaviour, PortChoice};
use peerage_wire::codec;
use peerage_wire::id::{LocationId, to_hex};
use peerage_wire::limits::MAX_HEAD_AGE;

use super::now_ms;
use crate::connect;
use crate::driver::Snapshot;
use crate::membership::Membership;

pub(super) fn status(
    snapshot: &Snapshot,
    membership: &Membership,
    (listen, advertised): (Vec<SocketAddr>, Vec<SocketAddr>),
    super_node: SuperNode,
) -> Status {
    let status = &snapshot.status;
    let mut discards: std::collections::BTreeMap<String, u64> =
        status.discards.iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)).collect();
    if snapshot.socket_errors > 0 {
        discards.insert("socket".to_owned(), snapshot.socket_errors);
    }
    Status {
        node: identity(status, membership),
        state: state(status),
        operators: status.servers.iter().filter_map(operator).collect(),
        clock: clock(status),
        locations: locations(status),
        head: status.head.map(|head| Head {
            age_ms: millis(head.age),
            sequence: head.version,
            epoch: head.epoch.into(),
            revocations: head.revocations.into(),
        }),
        port_mappings: status.mappings.iter().map(port_mapping).collect(),
        proxy: None,
        elections: status.elections.iter().map(|election| describe_election(election, status)).collect(),
        attachments: attachments(status),
        devices: status.devices.len() as u64,
        serves: status.devices.iter().filter(|d| d.served).map(|d| d.device.name.clone()).collect(),
        tunnels: status.tunnels.len() as u64,
        listen,
        advertised,
        nat: nat(&status.nat, status.wide_checks),
        records: Records {
            node_expires_at_ms: status.expires.as_millis(),
            info_expires_at_ms: status.info_expires.map(|at| at.as_millis()),
        },
        super_node,
        carriers: status.servers.iter().filter_map(carrier).collect(),
        discards,
        warnings: warnings(status),
    }
}

fn identity(status: &NodeStatus, membership: &Membership) -> NodeIdentity {
    NodeIdentity {
        id: status.id.to_string(),
        domain: status.id.domain.0,
        domain_name: Some(membership.domain_name.clone()).filter(|name| !name.is_empty()),
        name: membership.name.clone(),
        roles: roles(status.roles),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Returns roles as programs are told them.
pub(crate) fn roles(roles: peerage_wire::record::Roles) -> Vec<Role> {
    let optional = [(roles.tunnel, Role::Tunnel), (roles.super_node, Role::Super)];
    let permitted = optional.into_iter().filter(|(is_permitted, _)| *is_permitted).map(|(_, role)| role);
    [Role::User].into_iter().chain(permitted).collect()
}

fn state(status: &NodeStatus) -> NodeState {
    if status.online {
        return NodeState::Online;
    }
    let was_answered = status.servers.iter().any(|server| server.answered.is_some());
    if was_answered { NodeState::Offline } else { NodeState::Joining }
}

fn operator(server: &ServerStatus) -> Option<Operator> {
    server.is_operator.then_some(())?;
    Some(Operator {
        id: server.node.to_string(),
        address: server.address?,
        last_answer_ms_ago: server.answered.map(millis),
        rtt_ms: server.rtt.map(millis),
    })
}

/// Tells how messages reach a server that has answered.
fn carrier(server: &ServerStatus) -> Option<Carrier> {
    server.answered?;
    Some(Carrier {
        node: server.node.to_string(),
        address: server.address?,
        carrier: match server.carrier {
            carrier::Carrier::Udp => CarrierKind::Udp,
            carrier::Carrier::Tls => CarrierKind::Tls,
            carrier::Carrier::Wss => CarrierKind::Wss,
            carrier::Carrier::Ws => CarrierKind::Ws,
            carrier::Carrier::Https => CarrierKind::Https,
            carrier::Carrier::Http => CarrierKind::Http,
        },
        why: server.why.map(|why| match why {
            carrier::Why::Silent => CarrierReason::UdpSilent,
            carrier::Why::Lossy => CarrierReason::UdpLossy,
        }),
    })
}

fn clock(status: &NodeStatus) -> Clock {
    let newest = status.servers.iter().filter(|server| server.answered.is_some()).min_by_key(|s| s.answered);
    Clock {
        offset_ms: status.clock_offset_millis.unwrap_or_default(),
        learned_from: status.clock_offset_millis.and(newest).map(|server| server.node.to_string()),
    }
}

pub(super) fn locations(status: &NodeStatus) -> Vec<Location> {
    status.locations.iter().filter_map(|(id, interface)| location(*id, interface.as_ref()?)).collect()
}

fn location(id: LocationId, interface: &lan::Interface) -> Option<Location> {
    let (gateway, prefix) = interface.location()?;
    Some(Location {
        interface: interface.name.clone(),
        kind: match interface.kind {
            lan::InterfaceKind::Ethernet => InterfaceKind::Ethernet,
            lan::InterfaceKind::Wifi => InterfaceKind::Wifi,
            lan::InterfaceKind::Vpn => InterfaceKind::Vpn,
            lan::InterfaceKind::Virtual => InterfaceKind::Virtual,
            lan::InterfaceKind::Loopback | lan::InterfaceKind::Other => InterfaceKind::Other,
        },
        gateway_mac: Some(gateway.to_string()),
        prefix: prefix.to_string(),
        location: Some(short(id)),
    })
}

fn attachments(status: &NodeStatus) -> Vec<Attachment> {
    let address = |node| status.servers.iter().find(|server| server.node == node).and_then(|s| s.address);
    // One that was not answered yet is none.
    let standing = status.attachments.iter().filter(|attachment| attachment.observed.is_some());
    let describe = |attachment: &AttachmentStatus| {
        Some(Attachment {
            node: attachment.node.to_string(),
            address: address(attachment.node)?,
            since_at_ms: now_ms().saturating_sub(millis(attachment.lasted)),
        })
    };
    standing.filter_map(describe).collect()
}

fn port_mapping(router: &RouterMapping) -> PortMapping {
    let mapping = &router.mapping;
    let state = match mapping {
        Mapping::Asking => PortMappingState::Asking,
        Mapping::Silent => PortMappingState::Silent,
        Mapping::Refused { .. } => PortMappingState::Refused,
        Mapping::Held { .. } if mapping.is_double_nat() => PortMappingState::DoubleNat,
        Mapping::Held { .. } => PortMappingState::Held,
    };
    let mut out =
        PortMapping { router: router.router, state, protocol: None, udp: None, tcp: None, why: None };
    match mapping {
        Mapping::Asking | Mapping::Silent => {}
        Mapping::Refused { protocol, why } => {
            out.protocol = Some(protocol.to_string());
            out.why = Some(why.clone());
        }
        Mapping::Held { protocol, udp, tcp } => {
            out.protocol = Some(protocol.to_string());
            (out.udp, out.tcp) = (*udp, *tcp);
        }
    }
    out
}

pub(super) fn proxy((settings, state): (connect::ProxySettings, connect::ProxyState)) -> Proxy {
    let (state, why) = match state {
        connect::ProxyState::Unused => (ProxyState::Unused, None),
        connect::ProxyState::Works => (ProxyState::Works, None),
        connect::ProxyState::Fails(why) => (ProxyState::Fails, Some(why)),
    };
    Proxy { address: settings.proxy.to_string(), source: settings.source.to_owned(), state, why }
}

fn nat(known: &NatBehaviour, wide_checks: bool) -> Nat {
    Nat {
        mapping: match known.mapping {
            Some(path::Mapping::None) => NatMapping::None,
            Some(path::Mapping::EndpointIndependent) => NatMapping::EndpointIndependent,
            Some(path::Mapping::AddressDependent) => NatMapping::AddressDependent,
            Some(path::Mapping::AddressAndPortDependent) => NatMapping::AddressAndPortDependent,
            None => NatMapping::Unknown,
        },
        ports: match known.ports {
            Some(PortChoice::Preserved) => NatPorts::Preserved,
            Some(PortChoice::Sequential) => NatPorts::Sequential,
            Some(PortChoice::Other) => NatPorts::Other,
            None => NatPorts::Unknown,
        },
        filtering: match known.filtering {
            Some(Filtering::EndpointIndependent) => NatFiltering::EndpointIndependent,
            Some(Filtering::AddressDependent) => NatFiltering::AddressDependent,
            Some(Filtering::AddressAndPortDependent) => NatFiltering::AddressAndPortDependent,
            None => NatFiltering::Unknown,
        },
        hairpinning: known.hairpinning,
        wide_checks,
        observed: known.observed.clone(),
    }
}

fn describe_election(election: &ElectionStatus, status: &NodeStatus) -> Election {
    let here = status.locations.iter().find(|(location, _)| *location == election.location);
    let interface = here.and_then(|(_, interface)| interface.as_ref());
    let own = election.elected_for.map(|elected_for| ElectedStatus { node: status.id, elected_for });
    let serving = own.into_iter().chain(election.others.iter().copied()).map(|elected| Elected {
        node: elected.node.to_string(),
        since_at_ms: now_ms().saturating_sub(millis(elected.elected_for)),
    });
    Election {
        location: short(election.location),
        interface: interface.map(|interface| interface.name.clone()),
        candidates: election.servers.iter().map(ToString::to_string).collect(),
        serving: serving.collect(),
        stands_in: election.is_additional,
        hears_others: election.hears,
    }
}

/// Writes a location as people see it.
fn short(location: LocationId) -> String {
    to_hex(location.0.get(..8).unwrap_or_default())
}

fn warnings(status: &NodeStatus) -> Vec<String> {
    // What nobody can confirm is said as soon as it is too old to be a basis for decisions while somebody can.
    let unconfirmed = |head: &HeadStatus| head.stale || (head.silent.is_some() && head.age > MAX_HEAD_AGE);
    let stale = status.head.filter(unconfirmed).map(|head| {
        let minutes = head.age.as_secs() / 60;
        format!(
            "revocation freshness: {minutes} min; no operator has confirmed the domain's state since then"
        )
    });
    let conditions = [
        (status.revoked, "this computer was revoked by the administrator"),
        (
            status.expires_soon,
            "the membership ends within a week; it is renewed when an operator can be reached",
        ),
        (
            status.discards.of(Discard::OperatorsDisagree) > 0,
            "two operators have told different times since the start; the clock of one of them is wrong",
        ),
    ];
    let texts = conditions.into_iter().filter(|(holds, _)| *holds).map(|(_, text)| text.to_owned());
    stale.into_iter().chain(texts).collect()
}

pub(super) fn devices(status: &NodeStatus) -> Vec<Device> {
    let mut devices: Vec<Device> = status.devices.iter().map(device).collect();
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    devices
}

fn device(status: &DeviceStatus) -> Device {
    let device = &status.device;
    let is_here = status.served || status.here;
    let announced = status.announced;
    Device {
        id: device.device.to_string(),
        name: device.name.clone(),
        kind: device.kind.clone(),
        services: device.services.iter().map(service).collect(),
        reachable_via: ReachableVia {
            tunnel_nodes: u32::try_from(announced.unwrap_or(0)).unwrap_or(u32::MAX),
            local: is_here,
        },
        served_here: status.served,
        state: match announced {
            _ if is_here => DeviceState::Reachable,
            Some(0) => DeviceState::Unreachable,
            Some(_) => DeviceState::Reachable,
            None => DeviceState::Unknown,
        },
    }
}

pub(super) fn service(service: &codec::Service) -> Service {
    Service {
        name: service.name.clone(),
        port: service.port,
        protocol: match service.protocol {
            codec::Protocol::Tcp => Protocol::Tcp,
            codec::Protocol::Udp => Protocol::Udp,
        },
        tls: service.tls,
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
