//! Joining over HTTPS, as nodes do it.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here fails the test")]

mod common;

use common::{Computer, acme, admitted, certificates, data, hello, https, rng, start, token};
use hyper::StatusCode;
use peerage_client::admin::{AddToken, NodeState, RevokeNode, RevokeToken, TokenState};
use peerage_operator::RunConfig;
use peerage_wire::crypto::Real;
use peerage_wire::enrol::{Credential, ENROL_PATH, EnrolAnswer, HelloError, MAX_ENROL_BODY, Refusal};
use peerage_wire::id::{NetworkId, TokenId};
use peerage_wire::record::{DomainKeyBody, NodeBody, UnverifiedRecord};
use peerage_wire::token::JoinToken;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Rules 5.2 to 5.4, from the token to the domain's keys.
#[tokio::test]
async fn whoever_joins_gets_what_a_member_needs() {
    let (_dir, running) = acme().await;
    let (token, computer) = (token(&running, 1).await, Computer::new());
    assert_eq!(token.addresses, running.ready.advertised);
    let admission = admitted(computer.join(&token).await);
    assert_eq!(admission.domain_name, "acme");
    let operator =
        hello(token.addresses[0]).await.verify(&token.network, Some(admission.time), &Real).unwrap();
    assert_eq!(admission.operators, [operator.record.bytes().clone()]);
    let read = |bytes| {
        let record = UnverifiedRecord::parse(bytes).unwrap();
        record.check_time(admission.time).unwrap();
        record.verify(&token.network, &operator.body.identity, &Real).unwrap()
    };
    let node = read(&admission.node);
    let body = NodeBody::read(&node).unwrap();
    assert_eq!((body.identity, body.roles.tunnel), (computer.identity.public(), true));
    let id = computer.identity.node_id(node.header().domain);
    let domain_key = DomainKeyBody::read(&read(&admission.domain_key)).unwrap();
    assert_eq!(domain_key.open(&token.network, id, &computer.receiving).unwrap().epoch, 1);
    assert!(admission.statement.verify(&operator.body.identity, &token.network, &Real));
    assert!(admission.statement.is_valid_at(admission.time));
    let shown = running.admin.nodes("acme").await.unwrap();
    assert_eq!((shown[0].id.clone(), shown[0].state), (id.to_string(), NodeState::Valid));
    running.end().await.unwrap();
}

/// Rule 5.7: so that a node can tell when somebody in between shows another.
#[tokio::test]
async fn the_operator_says_which_certificate_it_shows() {
    let (_dir, running) = acme().await;
    let (shown, said) = certificates(running.ready.advertised[0]).await;
    assert_eq!(said, peerage_wire::id::to_hex(&shown));
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_without_a_use() {
    let (_dir, running) = acme().await;
    let (token, computer) = (token(&running, 1).await, Computer::new());
    let first = admitted(computer.join(&token).await);
    let again = admitted(computer.join(&token).await);
    assert_eq!((first.node, first.domain_key), (again.node, again.domain_key));
    assert_eq!(running.admin.tokens("acme").await.unwrap()[0].used, 1);
    running.end().await.unwrap();
}

/// Rule 5.4: uses are counted where the record is written.
#[tokio::test]
async fn of_fifty_at_once_a_token_for_ten_lets_in_ten() {
    let (_dir, running) = acme().await;
    let token = token(&running, 10).await;
    let mut asking = JoinSet::new();
    for _ in 0..50 {
        let token = token.clone();
        asking.spawn(async move { Computer::new().join(&token).await });
    }
    let answers = asking.join_all().await;
    let admitted = answers.iter().filter(|answer| matches!(answer, EnrolAnswer::Admitted(_))).count();
    let used_up = answers.iter().filter(|a| **a == EnrolAnswer::Refused(Refusal::UsedUpToken)).count();
    assert_eq!((admitted, used_up), (10, 40));
    let shown = running.admin.tokens("acme").await.unwrap();
    assert_eq!((shown[0].used, shown[0].state), (10, TokenState::UsedUp));
    assert_eq!(running.admin.nodes("acme").await.unwrap().len(), 10);
    running.end().await.unwrap();
}

/// Rule 5.5: sealed to who asked.
#[tokio::test]
async fn refusals_are_told_sealed_and_each_by_its_reason() {
    let (_dir, running) = acme().await;
    let refused = |answer| {
        let EnrolAnswer::Refused(refusal) = answer else { panic!("not refused: {answer:?}") };
        refusal
    };
    let good = token(&running, 2).await;
    let unknown = JoinToken { id: TokenId([9; 8]), ..good.clone() };
    assert_eq!(refused(Computer::new().join(&unknown).await), Refusal::UnknownToken);
    let guessed = JoinToken { secret: [9; 16], ..good.clone() };
    assert_eq!(refused(Computer::new().join(&guessed).await), Refusal::UnknownToken);
    let member = Computer::new();
    admitted(member.join(&good).await);
    let node = running.admin.nodes("acme").await.unwrap().remove(0);
    let revoked = running.admin.revoke_node("acme", &node.id, &RevokeNode::default()).await.unwrap();
    assert_eq!(revoked.state, NodeState::Revoked);
    assert_eq!(refused(member.join(&good).await), Refusal::RevokedNode);
    assert_eq!(refused(Computer::new().join(&good).await), Refusal::RevokedToken);
    let closed = token(&running, 1).await;
    let id = closed.id.to_string();
    running.admin.revoke_token("acme", &id, &RevokeToken::default()).await.unwrap();
    assert_eq!(refused(Computer::new().join(&closed).await), Refusal::RevokedToken);
    running.end().await.unwrap();
}

/// Rule 5.6: possession of the key is enough, of the right one.
#[tokio::test]
async fn a_member_renews_with_its_key_and_a_stranger_does_not() {
    let (_dir, running) = acme().await;
    let (token, member) = (token(&running, 1).await, Computer::new());
    let node = UnverifiedRecord::parse(&admitted(member.join(&token).await).node).unwrap();
    let domain = node.header().domain;
    let remote = token.addresses[0];
    let operator = hello(remote).await.verify(&token.network, None, &Real).unwrap();
    let own = Credential::Possession(member.identity.node_id(domain));
    admitted(member.ask(remote, &operator, &token, own).await);
    let stranger = Computer::new();
    let unknown = Credential::Possession(stranger.identity.node_id(domain));
    let answer = stranger.ask(remote, &operator, &token, unknown).await;
    assert_eq!(answer, EnrolAnswer::Refused(Refusal::UnknownNode));
    running.end().await.unwrap();
}

#[tokio::test]
async fn with_approval_a_node_waits_until_it_is_let_in() {
    let (_dir, running) = acme().await;
    let new = AddToken { uses: None, expires_s: Some(60), roles: None, approval: true };
    let token: JoinToken = running.admin.add_token("acme", &new).await.unwrap().token.parse().unwrap();
    let computer = Computer::new();
    assert_eq!(computer.join(&token).await, EnrolAnswer::Pending);
    let waiting = running.admin.nodes("acme").await.unwrap().remove(0);
    assert_eq!(waiting.state, NodeState::Pending);
    running.admin.approve_node("acme", &waiting.id).await.unwrap();
    admitted(computer.join(&token).await);
    running.end().await.unwrap();
}

/// Rule 5.3: status 400 and nothing else.
#[tokio::test]
async fn what_does_not_open_gets_nothing() {
    let (_dir, running) = acme().await;
    let token = token(&running, 1).await;
    let remote = token.addresses[0];
    let operator = hello(remote).await.verify(&token.network, None, &Real).unwrap();
    let computer = Computer::new();
    let credential = Credential::Token { id: token.id, secret: token.secret };
    let sealed =
        computer.request(credential).seal(&token.network, &operator, &computer.identity, &mut rng()).unwrap();
    let mut flipped = sealed.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let other = NetworkId([1; 32]);
    let elsewhere =
        computer.request(credential).seal(&other, &operator, &computer.identity, &mut rng()).unwrap();
    let thief = Computer::new();
    let forged =
        computer.request(credential).seal(&token.network, &operator, &thief.identity, &mut rng()).unwrap();
    let half = sealed[..sealed.len() / 2].to_vec();
    for body in [Vec::new(), vec![0; 31], vec![0xff; 500], half, flipped, elsewhere, forged] {
        assert_eq!(https(remote, "POST", ENROL_PATH, body).await, (StatusCode::BAD_REQUEST, "".into()));
    }
    let (status, _) = https(remote, "POST", ENROL_PATH, vec![0; MAX_ENROL_BODY + 1]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(https(remote, "GET", "/", Vec::new()).await.0, StatusCode::NOT_FOUND);
    assert_eq!(https(remote, "GET", ENROL_PATH, Vec::new()).await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert!(running.admin.nodes("acme").await.unwrap().is_empty());
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_token_of_another_network_is_noticed_before_anything_is_sent() {
    let (_dir, running) = acme().await;
    let token = token(&running, 1).await;
    let verified = hello(token.addresses[0]).await.verify(&NetworkId([1; 32]), None, &Real);
    assert_eq!(verified, Err(HelloError::OtherNetwork));
    running.end().await.unwrap();
}

#[tokio::test]
async fn what_was_admitted_before_a_restart_is_a_member_after_it() {
    let (dir, running) = acme().await;
    let (token, computer) = (token(&running, 1).await, Computer::new());
    let before = admitted(computer.join(&token).await);
    running.end().await.unwrap();
    let running = start(RunConfig::new(data(&dir))).await.unwrap();
    let after = admitted(computer.join(&token).await);
    assert_eq!((before.node, before.domain_key), (after.node, after.domain_key));
    assert_ne!(before.statement, after.statement, "sealing keys live in memory only");
    running.end().await.unwrap();
}

#[tokio::test]
async fn somebody_who_asks_too_often_has_to_wait() {
    let (_dir, running) = acme().await;
    let remote = running.ready.listen;
    let mut refused = false;
    // More than the burst, faster than it fills.
    for _ in 0..400 {
        let (status, _) = https(remote, "POST", ENROL_PATH, Vec::new()).await;
        refused |= status == StatusCode::TOO_MANY_REQUESTS;
        if refused {
            break;
        }
    }
    assert!(refused);
    running.end().await.unwrap();
}

/// A large office behind one router, whose nodes all come back to the relay at once.
#[tokio::test]
async fn legs_are_not_counted_among_the_connections_of_those_who_join() {
    let (_dir, running) = acme().await;
    let remote = running.ready.listen;
    // More than the burst, faster than it fills.
    for _ in 0..600 {
        let mut leg = TcpStream::connect(remote).await.unwrap();
        leg.write_all(&[0]).await.unwrap();
        leg.shutdown().await.unwrap();
        // It ends once it was heard, or at once if it was not.
        let _ = leg.read_to_end(&mut Vec::new()).await;
    }
    hello(remote).await;
    running.end().await.unwrap();
}
