//! The commands that administer, against an admin API whose answers the test knows: what they ask, and what they show.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use peerage_client::{PROBLEM_MEDIA_TYPE, Problem, ProblemKind};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::Output,
    sync::{Arc, Mutex},
};
use tokio::{net::TcpListener, process::Command};

#[tokio::test]
async fn a_device_is_registered_with_everything_that_was_said_of_it() {
    let operator = TestOperator::start(device()).await;
    let pin = "AB:".repeat(32);
    let output = operator
        .run(&[
            "device",
            "add",
            "--domain",
            "acme",
            "--name",
            "hp",
            "--kind",
            "printer",
            "--mac",
            "02-00-00-00-00-0A",
            "--via",
            "n1",
            "--service",
            "ipp=631",
            "--service",
            "https=443/tls",
            "--service",
            "snmp=161/udp",
            "--tls-pin",
            pin.trim_end_matches(':'),
            "--allow",
            "n2",
        ])
        .await;
    assert_eq!(
        operator.asked(),
        (
            "POST /v1/domains/acme/devices".to_owned(),
            json!({
                "name": "hp", "kind": "printer", "mac": "02:00:00:00:00:0a", "via": "n1",
                "services": [
                    {"name": "ipp", "port": 631, "protocol": "tcp", "tls": false},
                    {"name": "https", "port": 443, "protocol": "tcp", "tls": true},
                    {"name": "snmp", "port": 161, "protocol": "udp", "tls": false},
                ],
                "tls_pins": ["ab".repeat(32)], "allowed": ["n2"],
            })
        )
    );
    let text = text(&output);
    for line in [
        "MAC        02:00:00:00:00:0a",
        "services   ipp=631, snmp=161/udp",
        "allowed    every node of the domain",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}:\n{text}");
    }
}

#[tokio::test]
async fn what_is_left_out_of_a_device_is_not_sent() {
    let operator = TestOperator::start(device()).await;
    let args = [
        "device",
        "add",
        "--domain",
        "acme",
        "--name",
        "hp",
        "--mac",
        "02:00:00:00:00:0a",
        "--service",
        "ipp=631",
    ];
    text(&operator.run(&args).await);
    let (_, body) = operator.asked();
    assert!(body.get("via").is_none() && body.get("allowed").is_none(), "{body}");
}

#[tokio::test]
async fn a_token_is_asked_for_in_seconds_and_shown_with_the_command_to_use_it() {
    let operator = TestOperator::start(json!({
        "token": "peerage-secret", "id": "0123456789abcdef", "state": "open", "uses": 5, "used": 0,
        "roles": ["user"], "approval": true, "created_at_ms": 0, "expires_at_ms": u64::MAX / 2,
    }))
    .await;
    let args = [
        "token",
        "add",
        "--domain",
        "acme",
        "--uses",
        "5",
        "--expires",
        "1d12h",
        "--role",
        "user",
        "--approval",
    ];
    let shown = text(&operator.run(&args).await);
    assert!(shown.ends_with("\n\n  peerage join peerage-secret\n"), "{shown}");
    let asked = json!({"uses": 5, "expires_s": 129_600, "roles": ["user"], "approval": true});
    assert_eq!(operator.asked(), ("POST /v1/domains/acme/tokens".to_owned(), asked));

    let output = operator.run(&["token", "add", "--domain", "acme", "--json"]).await;
    let new: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(new["token"], "peerage-secret");
    let (_, body) = operator.asked();
    assert_eq!(
        body,
        json!({"uses": 1, "expires_s": 604_800, "roles": ["user", "tunnel"], "approval": false})
    );
}

#[tokio::test]
async fn lists_are_tables_for_people_and_arrays_for_programs() {
    let operator = TestOperator::start(json!([device()])).await;
    let shown = text(&operator.run(&["device", "list", "--domain", "acme"]).await);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], "DEVICE  KIND     MAC                SERVICES               STATE    LOCATIONS");
    assert_eq!(lines[1], "hp      printer  02:00:00:00:00:0a  ipp=631, snmp=161/udp  located  1");
    let output = operator.run(&["device", "list", "--domain", "acme", "--json"]).await;
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&list[0]["sites"], &list[0]["state"]), (&json!(1), &json!("located")));

    let none = TestOperator::start(json!([])).await;
    assert_eq!(text(&none.run(&["node", "list", "--domain", "acme"]).await), "No nodes.\n");
}

#[tokio::test]
async fn the_domain_may_come_from_the_environment_or_the_file() {
    let operator = TestOperator::start(json!([])).await;
    fs::write(operator.data.path().join("peerage.toml"), "[admin]\ndomain = \"from-file\"\n").unwrap();
    text(&operator.run(&["node", "list"]).await);
    assert_eq!(operator.asked().0, "GET /v1/domains/from-file/nodes");
    let mut command = operator.command(&["node", "list"]);
    text(&command.env("PEERAGE_DOMAIN", "from-environment").output().await.unwrap());
    assert_eq!(operator.asked().0, "GET /v1/domains/from-environment/nodes");
}

#[tokio::test]
async fn orders_about_one_thing_name_it_in_the_path() {
    let node = json!({
        "id": "n1", "name": "front-desk", "fingerprint": "0000 0000", "state": "revoked", "roles": ["user"],
        "token": "0123456789abcdef", "joined_at_ms": 0, "expires_at_ms": 0, "revoked_at_ms": 0,
        "revocation_reason": "key-compromise",
    });
    let operator = TestOperator::start(node).await;
    let args = ["node", "revoke", "n1", "--domain", "acme", "--reason", "key-compromise"];
    let shown = text(&operator.run(&args).await);
    assert!(shown.contains("reason       key-compromise"), "{shown}");
    let asked = operator.asked();
    assert_eq!(
        asked,
        ("POST /v1/domains/acme/nodes/n1/revoke".to_owned(), json!({"reason": "key-compromise"}))
    );
    text(&operator.run(&["node", "approve", "n1", "--domain", "acme"]).await);
    assert_eq!(operator.asked().0, "POST /v1/domains/acme/nodes/n1/approve");

    let operator = TestOperator::start(device()).await;
    assert_eq!(
        text(&operator.run(&["device", "remove", "hp", "--domain", "acme"]).await),
        "hp is removed.\n"
    );
    assert_eq!(operator.asked().0, "DELETE /v1/domains/acme/devices/hp");
}

#[tokio::test]
async fn super_nodes_are_shown_with_what_they_do_and_the_evidence_against_them() {
    let operator = TestOperator::start(json!([super_node(false), super_node(true)])).await;
    let shown = text(&operator.run(&["super", "list"]).await);
    assert_eq!(operator.asked().0, "GET /v1/super-nodes");
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 6, "{shown}");
    let cells =
        |line: &str| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect();
    let heads: Vec<String> = cells(lines[0]);
    assert_eq!(
        heads,
        ["NODE", "ID", "DOMAIN", "STATE", "PLACES", "ADDRESSES", "LAST HEARD", "HOLDS", "RELAYS"]
    );
    let row: Vec<String> = cells(lines[1]);
    let places = "0000000000000000-7fffffffffffffff";
    let holds = "3 records, 2.0 KiB of 64.0 MiB; no room for all of 2 domains";
    let expected = ["shed", "n1", "acme", "serving", places, "198.51.100.1:7400", "5 s ago", holds];
    assert_eq!(row[..8], expected.map(str::to_owned));
    assert_eq!(row[8], "1 tunnels, 512 B");
    assert!(lines[4].starts_with("shed is in quarantine since "), "{shown}");
    assert_eq!(lines[5], "  it withholds device d1");
    let output = operator.run(&["super", "list", "--json"]).await;
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list, json!([super_node(false), super_node(true)]));

    let none = TestOperator::start(json!([])).await;
    let shown = text(&none.run(&["super", "list"]).await);
    assert_eq!(shown, "No super-nodes. Nodes become some with: peerage super on\n");
}

#[tokio::test]
async fn a_super_node_is_kept_away_and_released_by_its_id_or_name() {
    let operator = TestOperator::start(super_node(true)).await;
    let shown = text(&operator.run(&["super", "quarantine", "shed", "--why", "it lies"]).await);
    assert!(shown.contains("it withholds device d1"), "{shown}");
    let asked = operator.asked();
    assert_eq!(asked, ("POST /v1/super-nodes/shed/quarantine".to_owned(), json!({"why": "it lies"})));
    text(&operator.run(&["super", "quarantine", "n1"]).await);
    assert_eq!(operator.asked().1, json!({"why": ""}));
    text(&operator.run(&["super", "release", "n1"]).await);
    assert_eq!(operator.asked(), ("POST /v1/super-nodes/n1/release".to_owned(), Value::Null));
}

#[tokio::test]
async fn the_segment_map_says_who_holds_what_and_where_the_operator_stands_in() {
    let holder = json!({"id": "n1", "name": "shed", "domain": "acme"});
    let map = json!({"version": 4, "segments": [
        {"from": "0000000000000000", "to": "7fffffffffffffff", "holders": [holder, holder], "stands_in": false},
        {"from": "8000000000000000", "to": "ffffffffffffffff", "holders": [], "stands_in": true},
    ]});
    let operator = TestOperator::start(map.clone()).await;
    let shown = text(&operator.run(&["segment", "map"]).await);
    assert_eq!(operator.asked().0, "GET /v1/segments");
    let expected = "FROM              TO                OPERATOR  HOLDERS\n\
                    0000000000000000  7fffffffffffffff  no        shed (acme), shed (acme)\n\
                    8000000000000000  ffffffffffffffff  yes\n";
    assert_eq!(shown, expected);
    let output = operator.run(&["segment", "map", "--json"]).await;
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), map);
}

#[tokio::test]
async fn a_domain_is_shown_with_what_was_refused_to_it_and_excluded_with_a_reason() {
    let operator = TestOperator::start(json!({
        "id": 7, "name": "acme", "created_at_ms": 0, "nodes": 2, "devices": 3, "epoch": 4, "vendor": true,
        "revoked_at_ms": 0, "refusals": {"quota": 12, "bad-records": 3},
    }))
    .await;
    let shown = text(&operator.run(&["domain", "show", "acme"]).await);
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines.contains(&"vendor     yes"), "{shown}");
    assert!(lines.iter().any(|line| line.starts_with("revoked    ")), "{shown}");
    assert!(shown.ends_with("refused    3 bad-records\n           12 quota\n"), "{shown}");
    text(&operator.run(&["domain", "revoke", "acme", "--reason", "misbehaviour"]).await);
    let asked = operator.asked();
    assert_eq!(asked, ("POST /v1/domains/acme/revoke".to_owned(), json!({"reason": "misbehaviour"})));
    text(&operator.run(&["domain", "add", "own", "--vendor"]).await);
    assert_eq!(operator.asked().1, json!({"name": "own", "vendor": true}));
}

#[tokio::test]
async fn a_refusal_is_told_with_the_operators_words() {
    let operator = TestOperator::start(Value::Null).await;
    let output = operator.run(&["domain", "add", "acme"]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "error: The name is taken\n  Choose another.\n");
}

/// An operator that has one answer to everything, or refuses everything if that is null.
struct TestOperator {
    data: tempfile::TempDir,
    asked: Asked,
}

type Asked = Arc<Mutex<Vec<(String, Value)>>>;

impl TestOperator {
    async fn start(answer: Value) -> Self {
        let asked = Asked::default();
        let router = Router::new().fallback(respond).with_state((Arc::clone(&asked), answer));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("admin.json");
        let content = json!({"address": listener.local_addr().unwrap(), "token": "secret"});
        fs::write(&file, content.to_string()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        tokio::spawn(axum::serve(listener, router).into_future());
        Self { data, asked }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peerage"));
        command.env_clear().args(args).arg("--data").arg(self.data.path()).kill_on_drop(true);
        command
    }

    async fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().await.unwrap()
    }

    /// Returns the latest request and its body.
    fn asked(&self) -> (String, Value) {
        self.asked.lock().unwrap().pop().unwrap()
    }
}

async fn respond(
    State((asked, answer)): State<(Asked, Value)>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    asked.lock().unwrap().push((format!("{method} {uri}"), body));
    if answer.is_null() {
        let problem = Problem::new(ProblemKind::NameTaken, "Choose another.");
        return (StatusCode::CONFLICT, [("content-type", PROBLEM_MEDIA_TYPE)], Json(problem)).into_response();
    }
    Json(answer).into_response()
}

fn device() -> Value {
    json!({
        "id": "d1", "name": "hp", "kind": "printer", "mac": "02:00:00:00:00:0a",
        "services": [
            {"name": "ipp", "port": 631, "protocol": "tcp", "tls": false},
            {"name": "snmp", "port": 161, "protocol": "udp", "tls": false},
        ],
        "tls_pins": [], "state": "located", "sites": 1, "version": 1, "registered_at_ms": 0, "expires_at_ms": 0,
    })
}

fn super_node(quarantined: bool) -> Value {
    let mut shown = json!({
        "id": "n1", "name": "shed", "domain": "acme", "vendor": false, "state": "serving",
        "range": {"from": "0000000000000000", "to": "7fffffffffffffff"}, "addresses": ["198.51.100.1:7400"],
        "last_heard_ms_ago": 5_000,
        "load": {"relayed_bytes": 512, "relayed_tunnels": 1, "records": 3, "held_bytes": 2_048, "max_bytes": 67_108_864, "lacking": 2},
        "spied": {"visits": 0, "evidence": []},
    });
    if quarantined {
        let object = shown.as_object_mut().unwrap();
        object.insert("state".to_owned(), json!("quarantined"));
        let quarantine = json!({"since_at_ms": 0, "evidence": ["it withholds device d1"]});
        object.insert("quarantine".to_owned(), quarantine);
    }
    shown
}

fn text(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}
