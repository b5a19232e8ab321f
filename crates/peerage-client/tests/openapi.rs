//! The OpenAPI descriptions say what the types and routes say: neither more nor less.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking"
)]

use peerage_client::{Problem, ProblemKind, Protocol, Role, Route, Service, admin, local};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn the_routes_of_both_apis_are_described_and_no_others() {
    for (api, routes) in [(local_api(), local::ROUTES), (admin_api(), admin::ROUTES)] {
        let described: BTreeSet<String> = api["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(move |m| format!("{} {path}", m.to_uppercase()))
            })
            .collect();
        let published = |route: &Route| format!("{} {}", route.method, route.path);
        assert_eq!(described, routes.iter().map(published).collect());
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() {
    for api in [local_api(), admin_api()] {
        let mut used = BTreeSet::new();
        references(&api, &mut used);
        for reference in &used {
            assert!(api.pointer(&reference[1..]).is_some(), "{reference}");
        }
        for name in api["components"]["schemas"].as_object().unwrap().keys() {
            assert!(used.contains(&format!("#/components/schemas/{name}")), "{name} is never used");
        }
    }
}

#[test]
fn every_parameter_in_a_path_is_described() {
    for api in [local_api(), admin_api()] {
        for (path, methods) in api["paths"].as_object().unwrap() {
            let in_path: BTreeSet<&str> =
                path.split('/').filter_map(|s| s.strip_prefix('{')?.strip_suffix('}')).collect();
            for operation in methods.as_object().unwrap().values() {
                let none = Vec::new();
                let parameters = operation["parameters"].as_array().unwrap_or(&none);
                let described = parameters
                    .iter()
                    .filter(|p| p["in"] == "path")
                    .map(|p| p["name"].as_str().unwrap())
                    .collect();
                assert_eq!(in_path, described, "{path}");
            }
        }
    }
}

#[test]
fn the_types_of_the_local_api_are_as_described() {
    let api = local_api();
    check(&api, "Problem", &[Problem::new(ProblemKind::UnknownDevice, "why")]);
    check(&api, "Status", &[status(true), status(false)]);
    check(&api, "Device", &[local_device()]);
    check(&api, "Tunnel", &[tunnel(true), tunnel(false)]);
    let full = local::OpenTunnel {
        device: "hp".to_owned(),
        service: Some("ipp".to_owned()),
        listen: Some("[::1]:631".parse().unwrap()),
        expose: true,
    };
    let least = local::OpenTunnel { service: None, listen: None, ..full.clone() };
    check(&api, "OpenTunnel", &[full, least]);
    let on = local::SuperOn {
        max_memory_bytes: Some(1),
        max_tunnels: Some(2),
        max_bytes_per_second: Some(3),
        max_bytes_per_day: Some(4),
    };
    check(&api, "SuperOn", &[on, local::SuperOn::default()]);
    let off =
        |full: bool| local::SuperOff { handed_over: full.then_some(false), super_node: super_node(full) };
    check(&api, "SuperOff", &[off(true), off(false)]);
    check_enum::<local::SuperState>(&api, "SuperState");
    check_enum::<local::NodeState>(&api, "NodeState");
    check_enum::<local::InterfaceKind>(&api, "InterfaceKind");
    check_enum::<local::CarrierKind>(&api, "CarrierKind");
    check_enum::<local::CarrierReason>(&api, "CarrierReason");
    check_enum::<local::NatMapping>(&api, "NatMapping");
    check_enum::<local::NatFiltering>(&api, "NatFiltering");
    check_enum::<local::NatPorts>(&api, "NatPorts");
    check_enum::<local::DeviceState>(&api, "DeviceState");
    check_enum::<local::TunnelState>(&api, "TunnelState");
    check_enum::<local::PathKind>(&api, "PathKind");
    check_enum::<local::Privacy>(&api, "Privacy");
    check_enum::<Role>(&api, "Role");
    check_enum::<Protocol>(&api, "Protocol");
}

#[test]
fn the_events_of_the_local_api_are_as_described() {
    use local::EventDetail as E;
    let api = local_api();
    let (device, reason, id) = ("hp".to_owned(), "it is off".to_owned(), "1".to_owned());
    let mut told = BTreeSet::new();
    for detail in [
        E::StateChanged { state: local::NodeState::Online },
        E::NetworkChanged { locations: vec![location(true)] },
        E::DevicesChanged { devices: 3 },
        E::ServingStarted { device: device.clone() },
        E::ServingStopped { device, reason: reason.clone() },
        E::TunnelOpened { tunnel: tunnel(true) },
        E::TunnelChanged { tunnel: tunnel(false) },
        E::TunnelClosed { id, reason },
        E::SuperChanged { state: local::SuperState::Serving },
        E::Warning { text: "look".to_owned() },
        E::Missed { events: 7 },
        E::ShuttingDown,
    ] {
        let event = local::Event { at_ms: 1, detail };
        let json = serde_json::to_value(&event).unwrap();
        conforms(&api, &schema(&api, "Event"), &json).unwrap_or_else(|why| panic!("{json}: {why}"));
        assert_eq!(serde_json::from_value::<local::Event>(json.clone()).unwrap(), event);
        told.insert(json["kind"].as_str().unwrap().to_owned());
    }
    let kinds = schema(&api, "Event")["oneOf"].as_array().unwrap().clone();
    let described =
        kinds.iter().map(|k| k["properties"]["kind"]["const"].as_str().unwrap().to_owned()).collect();
    assert_eq!(told, described);
    let newer = r#"{"at_ms":1,"kind":"of-tomorrow","more":[1]}"#;
    assert_eq!(serde_json::from_str::<local::Event>(newer).unwrap().detail, E::Unknown);
}

#[test]
fn the_answers_of_the_admin_api_are_as_described() {
    let api = admin_api();
    check(&api, "OperatorStatus", &[operator_status()]);
    check(&api, "Domain", &[admin_domain(true), admin_domain(false)]);
    check(&api, "SuperNode", &[admin_super_node(true), admin_super_node(false)]);
    check(&api, "SegmentMap", &[segment_map()]);
    check_enum::<admin::SuperNodeState>(&api, "SuperNodeState");
    check(&api, "Token", &[token()]);
    check(&api, "NewToken", &[admin::NewToken { token: "secret".to_owned(), info: token() }]);
    check(
        &api,
        "RevokedToken",
        &[admin::RevokedToken { token: token(), revoked_nodes: vec!["n1".to_owned()] }],
    );
    check(&api, "Device", &[admin_device(true), admin_device(false)]);
    check(&api, "Pushed", &[admin::Pushed { devices: 1, holders: 2 }]);
    check(&api, "Node", &[admin_node(true), admin_node(false)]);
    check_enum::<admin::TokenState>(&api, "TokenState");
    check_enum::<admin::DeviceState>(&api, "DeviceState");
    check_enum::<admin::NodeState>(&api, "NodeState");
    check_enum::<admin::RevocationReason>(&api, "RevocationReason");
}

#[test]
fn the_requests_of_the_admin_api_are_as_described() {
    let api = admin_api();
    check(&api, "AddDomain", &[admin::AddDomain { name: "acme".to_owned(), vendor: false }]);
    check(&api, "RevokeDomain", &[admin::RevokeDomain::default()]);
    check(&api, "QuarantineSuperNode", &[admin::QuarantineSuperNode { why: "it lies".to_owned() }]);
    let full =
        admin::AddToken { uses: Some(1), expires_s: Some(60), roles: Some(vec![Role::User]), approval: true };
    let least = admin::AddToken { uses: None, expires_s: None, roles: None, approval: false };
    check(&api, "AddToken", &[full, least]);
    check(&api, "RevokeToken", &[admin::RevokeToken { with_nodes: true }]);
    let full = admin::AddDevice {
        name: "hp".to_owned(),
        kind: "printer".to_owned(),
        mac: "02:00:00:00:00:01".to_owned(),
        via: Some("n1".to_owned()),
        services: vec![service()],
        tls_pins: vec!["0".repeat(64)],
        allowed: Some(vec!["n2".to_owned()]),
    };
    let least = admin::AddDevice { via: None, allowed: None, ..full.clone() };
    check(&api, "AddDevice", &[full, least]);
    check(&api, "Push", &[admin::Push { device: Some("hp".to_owned()) }, admin::Push::default()]);
    check(&api, "RevokeNode", &[admin::RevokeNode::default()]);
}

#[test]
fn a_request_with_a_misspelt_field_is_refused() {
    let strict = |text: &str| serde_json::from_str::<admin::AddDevice>(text).unwrap_err().to_string();
    let least = r#"{"name":"hp","mac":"m","services":[{"name":"ipp","port":631}]}"#;
    serde_json::from_str::<admin::AddDevice>(least).unwrap();
    assert!(strict(&least.replace("\"mac\"", "\"mak\"")).contains("mak"));
    assert!(strict(&least.replace("631", "631,\"tsl\":true")).contains("tsl"));
    assert!(serde_json::from_str::<local::OpenTunnel>(r#"{"device":"hp","exposed":true}"#).is_err());
    assert!(
        serde_json::from_str::<Service>(r#"{"name":"ipp","port":631,"new":1}"#).is_ok(),
        "an answer may grow"
    );
}

#[test]
fn every_kind_of_problem_is_described() {
    for api in [local_api(), admin_api()] {
        let described = schema(&api, "Problem")["properties"]["type"]["enum"].as_array().unwrap().clone();
        let kinds: Vec<Value> = ProblemKind::ALL.iter().map(|kind| Value::from(kind.urn())).collect();
        assert_eq!(described, kinds);
    }
}

fn local_api() -> Value {
    serde_json::from_str(include_str!("../../../docs/openapi/local.json")).unwrap()
}

fn admin_api() -> Value {
    serde_json::from_str(include_str!("../../../docs/openapi/admin.json")).unwrap()
}

fn schema(api: &Value, name: &str) -> Value {
    api["components"]["schemas"].get(name).unwrap_or_else(|| panic!("{name} is not described")).clone()
}

/// Checks that each value conforms to its description, reads back as itself, and that the first has every property
/// which is described.
fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    api: &Value,
    name: &str,
    values: &[T],
) {
    let schema = schema(api, name);
    for value in values {
        let json = serde_json::to_value(value).unwrap();
        conforms(api, &schema, &json).unwrap_or_else(|why| panic!("{name}: {why} in {json}"));
        assert_eq!(serde_json::from_value::<T>(json).unwrap(), *value, "{name}");
    }
    let json = serde_json::to_value(&values[0]).unwrap();
    shows_all(api, &schema, &json).unwrap_or_else(|why| panic!("{name}: {why}"));
}

/// Checks that every described value of an enum is read as a variant of its own, and written as it was.
fn check_enum<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(api: &Value, name: &str) {
    let mut seen: Vec<T> = Vec::new();
    for value in schema(api, name)["enum"].as_array().unwrap() {
        let variant: T = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&variant).unwrap(), *value, "{name}");
        assert!(!seen.contains(&variant), "{name}: {value}");
        seen.push(variant);
    }
}

/// As much of JSON Schema as the descriptions use.
fn conforms(api: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return conforms(api, api.pointer(&reference[1..]).expect("references are checked"), value);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let fitting = choices.iter().filter(|choice| conforms(api, choice, value).is_ok()).count();
        return if fitting == 1 { Ok(()) } else { Err(format!("{fitting} of the choices fit")) };
    }
    let fits = match schema["type"].as_str().expect("a schema has a type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => {
            let at_least = schema["minimum"].as_i64().unwrap_or(i64::MIN);
            let at_most = schema["maximum"].as_u64().unwrap_or(u64::MAX);
            value.as_i64().is_some_and(|n| n >= at_least) && value.as_u64().is_none_or(|n| n <= at_most)
        }
        other => return Err(format!("unknown type {other}")),
    };
    let is_listed = schema["enum"].as_array().is_none_or(|values| values.contains(value));
    let is_constant = schema.get("const").is_none_or(|constant| constant == value);
    if !(fits && is_listed && is_constant) {
        return Err(format!("{value} is not {schema}"));
    }
    for element in value.as_array().into_iter().flatten() {
        conforms(api, &schema["items"], element)?;
    }
    value.as_object().map_or(Ok(()), |object| object_conforms(api, schema, object))
}

fn object_conforms(api: &Value, schema: &Value, object: &Map<String, Value>) -> Result<(), String> {
    for name in schema["required"].as_array().into_iter().flatten() {
        if !object.contains_key(name.as_str().unwrap()) {
            return Err(format!("{name} is missing"));
        }
    }
    for (name, value) in object {
        // Answers may grow, but nothing that is written today may be missing from the description.
        let described = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
        let described = described.filter(|d| d.is_object()).ok_or(format!("{name} is not described"))?;
        conforms(api, described, value).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(())
}

/// Checks that a value has every described property, down to the last.
fn shows_all(api: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return shows_all(api, api.pointer(&reference[1..]).expect("references are checked"), value);
    }
    for (name, described) in schema["properties"].as_object().into_iter().flatten() {
        let shown = value.get(name).ok_or(format!("{name} is described but not written"))?;
        shows_all(api, described, shown).map_err(|why| format!("{name}: {why}"))?;
    }
    if let Some(items) = schema.get("items") {
        let first = value.get(0).ok_or("a list is empty")?;
        shows_all(api, items, first)?;
    }
    Ok(())
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
        found.insert(reference.to_owned());
    }
    value.as_object().into_iter().flat_map(|o| o.values()).for_each(|v| references(v, found));
    value.as_array().into_iter().flatten().for_each(|v| references(v, found));
}

fn service() -> Service {
    Service { name: "ipp".to_owned(), port: 631, protocol: Protocol::Tcp, tls: true }
}

fn location(full: bool) -> local::Location {
    local::Location {
        interface: "eth0".to_owned(),
        kind: local::InterfaceKind::Ethernet,
        gateway_mac: full.then(|| "02:00:00:00:00:01".to_owned()),
        prefix: "192.168.1.0/24".to_owned(),
        location: full.then(|| "0123456789abcdef".to_owned()),
    }
}

fn status(full: bool) -> local::Status {
    local::Status {
        node: local::NodeIdentity {
            id: "n1".to_owned(),
            domain: u32::MAX,
            domain_name: full.then(|| "acme".to_owned()),
            name: "front-desk".to_owned(),
            roles: vec![Role::User],
            version: "1".to_owned(),
        },
        state: local::NodeState::Joining,
        operators: vec![local::Operator {
            id: "o1".to_owned(),
            address: "198.51.100.1:4433".parse().unwrap(),
            last_answer_ms_ago: full.then_some(5),
            rtt_ms: full.then_some(20),
        }],
        carriers: vec![local::Carrier {
            node: "o1".to_owned(),
            address: "198.51.100.1:4433".parse().unwrap(),
            carrier: local::CarrierKind::Tls,
            why: full.then_some(local::CarrierReason::UdpSilent),
        }],
        clock: local::Clock { offset_ms: -5, learned_from: full.then(|| "o1".to_owned()) },
        locations: vec![location(full)],
        head: full.then_some(local::Head { age_ms: 1, sequence: 2, epoch: 3, revocations: 4 }),
        port_mappings: vec![port_mapping(full)],
        proxy: full.then(|| local::Proxy {
            address: "web:3128".to_owned(),
            source: "HTTPS_PROXY".to_owned(),
            state: local::ProxyState::Fails,
            why: Some("it wants a password".to_owned()),
        }),
        elections: vec![local::Election {
            location: "0123456789abcdef".to_owned(),
            interface: full.then(|| "eth0".to_owned()),
            candidates: vec!["n1".to_owned()],
            serving: vec![local::Elected { node: "n1".to_owned(), since_at_ms: 1 }],
            stands_in: true,
            hears_others: false,
        }],
        attachments: vec![local::Attachment {
            node: "s1".to_owned(),
            address: "[2001:db8::1]:4433".parse().unwrap(),
            since_at_ms: 1,
        }],
        devices: 1,
        serves: vec!["hp".to_owned()],
        tunnels: 1,
        listen: vec!["[::]:4433".parse().unwrap()],
        advertised: vec!["198.51.100.7:4433".parse().unwrap()],
        nat: local::Nat {
            mapping: local::NatMapping::EndpointIndependent,
            ports: local::NatPorts::Preserved,
            filtering: local::NatFiltering::AddressDependent,
            hairpinning: full.then_some(true),
            wide_checks: true,
            observed: vec!["198.51.100.7:4433".parse().unwrap()],
        },
        records: local::Records { node_expires_at_ms: 1, info_expires_at_ms: full.then_some(2) },
        super_node: super_node(full),
        discards: BTreeMap::from([("stale".to_owned(), 1)]),
        warnings: vec!["look".to_owned()],
    }
}

fn super_node(full: bool) -> local::SuperNode {
    local::SuperNode {
        state: local::SuperState::HandingOver,
        paused_because: full.then(|| "it runs on battery".to_owned()),
        limits: local::SuperLimits {
            max_memory_bytes: 1,
            max_tunnels: u32::MAX,
            max_bytes_per_second: 3,
            max_bytes_per_day: 4,
        },
        range: full.then(|| local::SuperRange { from: "0".repeat(16), to: "f".repeat(16) }),
        records: 1,
        bytes_held: 2,
        lacking: 1,
        attached: 3,
        served_requests: 4,
        relayed_bytes: 5,
        relayed_tunnels: 6,
        refusals: 7,
    }
}

fn local_device() -> local::Device {
    local::Device {
        id: "d1".to_owned(),
        name: "hp".to_owned(),
        kind: "printer".to_owned(),
        services: vec![service()],
        reachable_via: local::ReachableVia { tunnel_nodes: 2, local: true },
        served_here: false,
        state: local::DeviceState::Reachable,
    }
}

fn tunnel(full: bool) -> local::Tunnel {
    local::Tunnel {
        id: "1".to_owned(),
        device: "hp".to_owned(),
        service: "ipp".to_owned(),
        protocol: Protocol::Tcp,
        local: "127.0.0.1:631".parse().unwrap(),
        state: local::TunnelState::Ready,
        path: full.then(|| local::Path {
            kind: local::PathKind::Punched,
            remote: "198.51.100.7:4433".parse().unwrap(),
            tunnel_node: Some("n2".to_owned()),
        }),
        bytes_sent: u64::from(u32::MAX) + 1,
        bytes_received: 2,
        connections: 3,
        opened_at_ms: 4,
        privacy: local::Privacy::DeviceVerified,
    }
}

fn port_mapping(full: bool) -> local::PortMapping {
    local::PortMapping {
        router: "192.168.1.1".parse().unwrap(),
        state: local::PortMappingState::Held,
        protocol: full.then(|| "pcp".to_owned()),
        udp: full.then(|| "198.51.100.7:7000".parse().unwrap()),
        tcp: full.then(|| "198.51.100.7:7000".parse().unwrap()),
        why: full.then(|| "the router does not allow it".to_owned()),
    }
}

fn operator_status() -> admin::OperatorStatus {
    admin::OperatorStatus {
        version: "1".to_owned(),
        id: "o1".to_owned(),
        network: "00".to_owned(),
        listen: vec!["0.0.0.0:4433".parse().unwrap()],
        advertised: vec!["198.51.100.1:4433".parse().unwrap()],
        started_at_ms: 1,
        domains: 2,
        nodes: 3,
        devices: 4,
        discards: BTreeMap::from([("stale".to_owned(), 1)]),
        warnings: vec!["look".to_owned()],
    }
}

fn admin_domain(full: bool) -> admin::Domain {
    admin::Domain {
        id: 7,
        name: "acme".to_owned(),
        created_at_ms: 1,
        nodes: 2,
        devices: 3,
        epoch: 4,
        vendor: full,
        revoked_at_ms: full.then_some(5),
        refusals: if full { BTreeMap::from([("quota".to_owned(), 6)]) } else { BTreeMap::new() },
    }
}

fn admin_super_node(full: bool) -> admin::SuperNode {
    let range = admin::PlaceRange { from: "0".repeat(16), to: "f".repeat(16) };
    let quarantine = admin::Quarantine { since_at_ms: 1, evidence: vec!["it lies".to_owned()] };
    admin::SuperNode {
        id: "n1".to_owned(),
        name: "front-desk".to_owned(),
        domain: "acme".to_owned(),
        vendor: false,
        state: admin::SuperNodeState::Serving,
        range: full.then_some(range),
        addresses: vec!["198.51.100.1:4433".parse().unwrap()],
        last_heard_ms_ago: full.then_some(5),
        load: admin::SuperNodeLoad {
            relayed_bytes: 1,
            relayed_tunnels: 2,
            records: 3,
            held_bytes: 4,
            max_bytes: 5,
            lacking: 6,
        },
        quarantine: full.then_some(quarantine),
        spied: admin::Spied { visits: 5, evidence: vec!["silent".to_owned()] },
    }
}

fn segment_map() -> admin::SegmentMap {
    let holder = admin::SegmentHolder {
        id: "n1".to_owned(),
        name: "front-desk".to_owned(),
        domain: "acme".to_owned(),
    };
    let range = admin::PlaceRange { from: "0".repeat(16), to: "f".repeat(16) };
    let segment = admin::Segment { range, holders: vec![holder], stands_in: true };
    admin::SegmentMap { version: 1, segments: vec![segment] }
}

fn token() -> admin::Token {
    admin::Token {
        id: "0123456789abcdef".to_owned(),
        state: admin::TokenState::UsedUp,
        uses: 1,
        used: 1,
        roles: vec![Role::Super],
        approval: false,
        created_at_ms: 1,
        expires_at_ms: 2,
    }
}

fn admin_device(full: bool) -> admin::Device {
    admin::Device {
        id: "d1".to_owned(),
        name: "hp".to_owned(),
        kind: "printer".to_owned(),
        mac: "02:00:00:00:00:01".to_owned(),
        services: vec![service()],
        tls_pins: vec!["0".repeat(64)],
        allowed: full.then(|| vec!["n2".to_owned()]),
        state: admin::DeviceState::Waiting,
        sites: 0,
        version: 1,
        registered_at_ms: 2,
        expires_at_ms: 3,
    }
}

fn admin_node(full: bool) -> admin::Node {
    admin::Node {
        id: "n1".to_owned(),
        name: "front-desk".to_owned(),
        fingerprint: "0000 0000".to_owned(),
        state: admin::NodeState::Revoked,
        roles: vec![Role::User],
        token: "0123456789abcdef".to_owned(),
        joined_at_ms: 1,
        expires_at_ms: 2,
        last_seen_at_ms: full.then_some(3),
        revoked_at_ms: full.then_some(4),
        revocation_reason: full.then_some(admin::RevocationReason::KeyCompromise),
        spy: full,
    }
}
