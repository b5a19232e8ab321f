//! Super-nodes as an administrator sees them: how they come to hold a part of the table, and how they are kept away.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here fails the test")]

mod common;

use std::collections::BTreeMap;

use common::member::Member;
use common::{Running, acme, data, start, token, token_for};
use peerage_client::admin::{
    AddDevice, QuarantineSuperNode, RevokeDomain, RevokeNode, SuperNode, SuperNodeState,
};
use peerage_client::{Error, ProblemKind, Role};
use peerage_operator::RunConfig;
use peerage_wire::id::{CommandId, Segment};
use peerage_wire::message::{
    Load, Refused, RefusedReason, Reply, Request, Submission, SuperNodeState as Answered,
};
use peerage_wire::record::{Record, SuperNodeBody, Table};

/// A member that may be a super-node.
async fn candidate(running: &Running) -> Member {
    Member::join_with(token_for(running, "acme", 1, Some(vec![Role::Tunnel, Role::Super])).await).await
}

async fn submit(member: &mut Member, version: u64) -> Answered {
    let id = CommandId([u8::try_from(version % 251).unwrap(); 16]);
    let load = Load {
        relayed_bytes: 7,
        relayed_tunnels: 1,
        records: 3,
        held_bytes: 900,
        max_bytes: 1 << 20,
        lacking: 1,
    };
    let addresses = vec![member.socket.local_addr().unwrap()];
    let submission = Submission { id, addresses, version, leaving: false, load };
    match member.ask(&Request::SubmitSuperNode(submission)).await {
        Some(Reply::SuperNodeSubmitted { state, .. }) => state,
        other => panic!("no answer: {other:?}"),
    }
}

/// Offers itself, is called back, and gets its record.
async fn becomes_super_node(member: &mut Member) -> Record {
    assert_eq!(submit(member, 0).await, Answered::Checking);
    member.stored(Table::SuperNode).await
}

async fn only(running: &Running) -> SuperNode {
    let mut all = running.admin.super_nodes().await.unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ProblemKind {
    match result {
        Err(Error::Problem(problem)) => problem.kind,
        other => panic!("no problem: {other:?}"),
    }
}

/// Rules 6.71 and 2.14: what is signed is what the operator has reached.
#[tokio::test]
async fn a_node_that_is_reached_holds_the_whole_table_and_is_shown() {
    let (_dir, running) = acme().await;
    let before = running.admin.segments().await.unwrap();
    assert_eq!((before.version, before.segments.len()), (0, 1));
    assert!(before.segments[0].holders.is_empty() && before.segments[0].stands_in);
    let mut member = candidate(&running).await;
    let record = becomes_super_node(&mut member).await;
    let body = SuperNodeBody::read(&record).unwrap();
    let address = member.socket.local_addr().unwrap();
    assert_eq!(
        (body.segment, body.map_version, body.addresses.as_slice()),
        (Segment::ALL, 1, &[address][..])
    );
    assert_eq!(submit(&mut member, record.header().version).await, Answered::Assigned);

    let shown = only(&running).await;
    assert_eq!((shown.id, shown.name.as_str()), (member.id.to_string(), "front desk"));
    assert_eq!((shown.domain.as_str(), shown.state), ("acme", SuperNodeState::Serving));
    assert_eq!((shown.addresses, shown.load.held_bytes), (vec![address], 900));
    let range = shown.range.unwrap();
    assert_eq!((range.from, range.to), ("0".repeat(16), "f".repeat(16)));
    assert!(shown.last_heard_ms_ago.is_some() && shown.quarantine.is_none() && !shown.vendor);

    let map = running.admin.segments().await.unwrap();
    assert_eq!((map.version, map.segments.len()), (1, 1));
    assert_eq!(map.segments[0].holders[0].name, "front desk");
    assert!(map.segments[0].stands_in, "one organisation is not enough");
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_super_node_is_kept_away_until_it_is_released_even_over_a_restart() {
    let (dir, running) = acme().await;
    let mut member = candidate(&running).await;
    becomes_super_node(&mut member).await;
    let why = QuarantineSuperNode { why: "it lies".to_owned() };
    let kept = running.admin.quarantine("front desk", &why).await.unwrap();
    assert_eq!(kept.state, SuperNodeState::Quarantined);
    assert_eq!(kept.quarantine.unwrap().evidence, ["it lies"]);
    running.end().await.unwrap();

    let running = start(RunConfig::new(data(&dir))).await.unwrap();
    let kept = only(&running).await;
    assert_eq!((kept.state, kept.quarantine.unwrap().evidence), (SuperNodeState::Quarantined, why_lines()));
    let released = running.admin.release(&kept.id[..20]).await.unwrap();
    assert_eq!(released.quarantine, None);
    assert_ne!(released.state, SuperNodeState::Quarantined);
    assert_eq!(kind(running.admin.release(&kept.id).await), ProblemKind::InvalidRequest);
    running.end().await.unwrap();
}

fn why_lines() -> Vec<String> {
    vec!["it lies".to_owned()]
}

/// Rule 4.10: what super-nodes refuse to a domain's members reaches its administrator.
#[tokio::test]
async fn what_super_nodes_refuse_is_told_with_the_domain_by_reason() {
    let (_dir, running) = acme().await;
    let mut member = candidate(&running).await;
    becomes_super_node(&mut member).await;
    let domain = member.id.domain;
    let refused = |reason, count| Refused { domain, reason, count };
    let all = vec![refused(RefusedReason::Quota, 3), refused(RefusedReason::BadRecords, 1)];
    for n in [1, 2] {
        let id = CommandId([n; 16]);
        let noted = member.ask(&Request::Refusals { id, refused: all.clone() }).await;
        assert_eq!(noted, Some(Reply::RefusalsNoted(id)));
    }
    let shown = running.admin.domain("acme").await.unwrap().refusals;
    let expected = BTreeMap::from([("quota".to_owned(), 6), ("bad-records".to_owned(), 2)]);
    assert_eq!(shown, expected);
    assert!(running.admin.domains().await.unwrap()[0].refusals.is_empty(), "not in lists");
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_super_node_that_is_revoked_is_out_of_the_map() {
    let (_dir, running) = acme().await;
    let mut member = candidate(&running).await;
    becomes_super_node(&mut member).await;
    running.admin.revoke_node("acme", &member.id.to_string(), &RevokeNode::default()).await.unwrap();
    let map = running.admin.segments().await.unwrap();
    assert!(map.segments.iter().all(|segment| segment.holders.is_empty()), "{map:?}");
    running.end().await.unwrap();
}

#[tokio::test]
async fn who_is_not_permitted_is_refused_and_not_shown() {
    let (_dir, running) = acme().await;
    let mut member = Member::join(&running).await;
    let load = Load::default();
    let addresses = vec![member.socket.local_addr().unwrap()];
    let submission = Submission { id: CommandId([1; 16]), addresses, version: 0, leaving: false, load };
    let answer = member.ask(&Request::SubmitSuperNode(submission)).await;
    let refused = matches!(answer, None | Some(Reply::SuperNodeSubmitted { state: Answered::Refused, .. }));
    assert!(refused, "{answer:?}");
    assert!(running.admin.super_nodes().await.unwrap().is_empty());
    let id = member.id.to_string();
    let quarantined = running.admin.quarantine(&id, &QuarantineSuperNode::default()).await;
    assert_eq!(kind(quarantined), ProblemKind::UnknownNode);
    let long = QuarantineSuperNode { why: "x".repeat(1_001) };
    assert_eq!(kind(running.admin.quarantine(&id, &long).await), ProblemKind::InvalidRequest);
    running.end().await.unwrap();
}

/// Rule 6.60: the whole organisation is out; its members hear that alone, and nobody joins it.
#[tokio::test]
async fn a_revoked_domain_hears_that_it_is_and_nothing_else_and_cannot_grow() {
    let (_dir, running) = acme().await;
    let open_token = token(&running, 5).await;
    let mut member = Member::join(&running).await;
    assert_eq!(member.head().await.epoch, 1);
    let revoked = running.admin.revoke_domain("acme", &RevokeDomain::default()).await.unwrap();
    assert!(revoked.revoked_at_ms.is_some());
    let told = member.ask(&Request::GetHead { domain: None }).await;
    assert!(matches!(told, Some(Reply::Head(Some(_)))), "{told:?}");
    assert_eq!(member.ask(&Request::Ping).await, None);
    let answer = common::Computer::new().join(&open_token).await;
    let refused = peerage_wire::enrol::EnrolAnswer::Refused(peerage_wire::enrol::Refusal::RevokedDomain);
    assert_eq!(answer, refused);
    let device: AddDevice = common::printer("hp", "aa:00:04:00:00:01");
    assert_eq!(kind(running.admin.add_device("acme", &device).await), ProblemKind::InvalidRequest);
    let new = peerage_client::admin::AddToken { uses: None, expires_s: None, roles: None, approval: false };
    assert_eq!(kind(running.admin.add_token("acme", &new).await), ProblemKind::InvalidRequest);
    let unknown = running.admin.revoke_domain("none", &RevokeDomain::default()).await;
    assert_eq!(kind(unknown), ProblemKind::UnknownDomain);
    running.end().await.unwrap();
}
