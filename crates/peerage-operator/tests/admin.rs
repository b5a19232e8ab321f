//! The admin API over a real connection.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here fails the test")]

mod common;

use std::os::unix::fs::PermissionsExt as _;

use bytes::Bytes;
use common::{acme, data, exchange, printer};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use peerage_client::admin::{
    AddDevice, AddDomain, AddToken, AdminFile, DeviceState, Push, ROUTES, RevokeNode, RevokeToken,
};
use peerage_client::{Error, Problem, ProblemKind, Role};
use tokio::net::TcpStream;

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ProblemKind {
    match result {
        Err(Error::Problem(problem)) => problem.kind,
        other => panic!("no problem: {other:?}"),
    }
}

#[tokio::test]
async fn devices_are_registered_listed_pushed_and_removed() {
    let (_dir, running) = acme().await;
    let admin = &running.admin;
    let added = admin.add_device("acme", &printer("hp", "AA-00-04-00-00-01")).await.unwrap();
    assert_eq!((added.mac.as_str(), added.state), ("aa:00:04:00:00:01", DeviceState::Waiting));
    admin.add_device("acme", &printer("brother", "aa:00:04:00:00:02")).await.unwrap();
    let names: Vec<_> = admin.devices("acme").await.unwrap().into_iter().map(|device| device.name).collect();
    assert_eq!(names, ["brother", "hp"]);
    let pushed = admin.push("acme", &Push::default()).await.unwrap();
    assert_eq!((pushed.devices, pushed.holders), (2, 1));
    let one = Push { device: Some(added.id.clone()) };
    assert_eq!(admin.push("acme", &one).await.unwrap().devices, 1);
    let removed = admin.remove_device("acme", "hp").await.unwrap();
    assert_eq!((removed.id, removed.state), (added.id, DeviceState::Removed));
    assert!(removed.version > added.version);
    assert_eq!(admin.domain("acme").await.unwrap().devices, 1);
    let vendor = AddDomain { name: "vendor".to_owned(), vendor: true };
    assert!(admin.add_domain(&vendor).await.unwrap().vendor);
    assert!(admin.domain("acme").await.unwrap().refusals.is_empty());
    assert_eq!(admin.domains().await.unwrap().iter().filter(|domain| domain.vendor).count(), 1);
    let status = admin.status().await.unwrap();
    assert_eq!((status.domains, status.nodes, status.devices), (2, 0, 1));
    assert!(status.warnings.is_empty());
    running.end().await.unwrap();
}

#[tokio::test]
async fn what_is_not_there_or_not_right_is_named() {
    let (_dir, running) = acme().await;
    let admin = &running.admin;
    let domain = |name: &str| AddDomain { name: name.to_owned(), vendor: false };
    assert_eq!(kind(admin.add_domain(&domain("acme")).await), ProblemKind::NameTaken);
    for bad in ["", "Acme", "a b", "-a", "a-", "42", "a.b", &"a".repeat(64)] {
        assert_eq!(kind(admin.add_domain(&domain(bad)).await), ProblemKind::InvalidRequest, "{bad}");
    }
    assert_eq!(kind(admin.domain("other").await), ProblemKind::UnknownDomain);
    assert_eq!(kind(admin.devices("other").await), ProblemKind::UnknownDomain);
    assert_eq!(kind(admin.node("acme", "none").await), ProblemKind::UnknownNode);
    assert_eq!(kind(admin.approve_node("acme", "none").await), ProblemKind::UnknownNode);
    assert_eq!(kind(admin.revoke_node("acme", "x", &RevokeNode::default()).await), ProblemKind::UnknownNode);
    for token in ["none", "0000000000000000"] {
        let revoked = admin.revoke_token("acme", token, &RevokeToken::default()).await;
        assert_eq!(kind(revoked), ProblemKind::UnknownToken);
    }
    assert_eq!(kind(admin.remove_device("acme", "hp").await), ProblemKind::UnknownDevice);
    let push = Push { device: Some("hp".to_owned()) };
    assert_eq!(kind(admin.push("acme", &push).await), ProblemKind::UnknownDevice);
    let token = AddToken { uses: None, expires_s: None, roles: None, approval: false };
    for bad in [
        AddToken { uses: Some(0), ..token.clone() },
        AddToken { uses: Some(10_001), ..token.clone() },
        AddToken { expires_s: Some(0), ..token.clone() },
        AddToken { expires_s: Some(u64::MAX), ..token.clone() },
        AddToken { roles: Some(vec![]), ..token.clone() },
        AddToken { roles: Some(vec![Role::User, Role::Operator]), ..token },
    ] {
        assert_eq!(kind(admin.add_token("acme", &bad).await), ProblemKind::InvalidRequest, "{bad:?}");
    }
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_device_that_cannot_be_is_refused() {
    let (_dir, running) = acme().await;
    let admin = &running.admin;
    let fine = printer("hp", "aa:00:04:00:00:01");
    admin.add_device("acme", &fine).await.unwrap();
    assert_eq!(kind(admin.add_device("acme", &fine).await), ProblemKind::NameTaken);
    let other = AddDevice { name: "lp".to_owned(), ..fine.clone() };
    assert_eq!(kind(admin.add_device("acme", &other).await), ProblemKind::MacTaken);
    let via = AddDevice { via: Some("nobody".to_owned()), ..printer("lp", "aa:00:04:00:00:02") };
    assert_eq!(kind(admin.add_device("acme", &via).await), ProblemKind::UnknownNode);
    for bad in [
        AddDevice { name: "L P".to_owned(), ..via.clone() },
        AddDevice { mac: "ff:ff:ff:ff:ff:ff".to_owned(), ..via.clone() },
        AddDevice { mac: "00:00:00:00:00:00".to_owned(), ..via.clone() },
        AddDevice { mac: "aa:00".to_owned(), ..via.clone() },
        AddDevice { tls_pins: vec!["ab".to_owned()], ..via.clone() },
        AddDevice { services: vec![], ..via.clone() },
        AddDevice { kind: "k".repeat(33), ..via },
    ] {
        assert_eq!(kind(admin.add_device("acme", &bad).await), ProblemKind::InvalidRequest, "{bad:?}");
    }
    running.end().await.unwrap();
}

/// Sends a request without the client's help.
async fn raw(address: std::net::SocketAddr, path: &str, method: &str, headers: &[(&str, &str)]) -> Problem {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let stream = TcpStream::connect(address).await.unwrap();
    let response = exchange(stream, request.body(Full::<Bytes>::default()).unwrap()).await;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn only_a_local_program_with_the_token_may_ask() {
    let (dir, running) = acme().await;
    let path = data(&dir).join("admin.json");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let file: AdminFile = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (host, bearer) = (file.address.to_string(), format!("Bearer {}", file.token));
    let wrong = format!("Bearer {}", "0".repeat(64));
    let (h, a, o) = ("host", "authorization", "origin");
    let page = "https://evil.example";
    for (headers, expected) in [
        (vec![(h, host.as_str())], ProblemKind::Unauthorized),
        (vec![(h, host.as_str()), (a, &wrong)], ProblemKind::Unauthorized),
        (vec![(h, "evil.example")], ProblemKind::Unauthorized),
        (vec![(h, host.as_str()), (a, &file.token)], ProblemKind::Unauthorized),
        (vec![(h, "evil.example"), (a, &bearer)], ProblemKind::ForeignOrigin),
        (vec![(h, host.as_str()), (a, &bearer), (o, page)], ProblemKind::ForeignOrigin),
        (vec![(a, bearer.as_str())], ProblemKind::ForeignOrigin),
    ] {
        for route in ["/v1/domains", "/v1/nothing"] {
            let problem = raw(file.address, route, "GET", &headers).await;
            assert_eq!(problem.kind, expected, "{route} {headers:?} {problem:?}");
        }
    }
    running.end().await.unwrap();
}

#[tokio::test]
async fn every_route_of_the_description_is_served() {
    let (dir, running) = acme().await;
    let file: AdminFile =
        serde_json::from_slice(&std::fs::read(data(&dir).join("admin.json")).unwrap()).unwrap();
    let (host, bearer) = (file.address.to_string(), format!("Bearer {}", file.token));
    for route in ROUTES.iter().filter(|route| route.path.contains('{')) {
        let path = route.path.replace(['{', '}'], "");
        let headers = [("host", host.as_str()), ("authorization", &bearer)];
        let problem = raw(file.address, &path, route.method.as_str(), &headers).await;
        // There is no domain called "domain" and no node called "node"; a missing body is noticed before.
        let served =
            [ProblemKind::UnknownDomain, ProblemKind::UnknownNode, ProblemKind::UnsupportedMediaType];
        assert!(served.contains(&problem.kind), "{} {path}: {problem:?}", route.method);
    }
    running.end().await.unwrap();
}
