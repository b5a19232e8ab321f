//! Joining, and all that can be wrong with a token.

use crate::support::{Operator, Party, copy_files, eventually};
use serde_json::json;

#[tokio::test]
async fn a_token_joins_as_many_nodes_as_it_says_and_no_more() {
    let operator = Operator::start().await;
    let token = operator.token(&["--uses", "2"]).await;
    let [first, second, third] = [Party::new(), Party::new(), Party::new()];
    let joined = first.call(&["join", &token, "--name", "first"]).await;
    assert_eq!((&joined["domain_name"], &joined["pending"]), (&json!("acme"), &json!(false)));
    second.call(&["join", &token, "--name", "second"]).await;
    third.run(&["join", &token, "--name", "third"]).await.failed_saying(&["used as often as it may be"]);
    assert_eq!(operator.nodes().await.len(), 2);
}

#[tokio::test]
async fn joining_again_says_the_same_and_uses_nothing_up() {
    let operator = Operator::start().await;
    let node = Party::new();
    let token = operator.token(&["--uses", "2"]).await;
    let once = node.call(&["join", &token, "--name", "once"]).await;
    let again = node.call(&["join", &token, "--name", "once"]).await;
    assert_eq!(once["id"], again["id"]);
    Party::new().call(&["join", &token, "--name", "another"]).await;
}

#[tokio::test]
async fn a_truncated_token_is_refused_at_every_length_without_asking_anybody() {
    let operator = Operator::start().await;
    let token = operator.token(&[]).await;
    let node = Party::new();
    for length in (1..token.len()).step_by(token.len() / 8) {
        node.run(&["join", &token[..length], "--name", "x"]).await.failed_saying(&["token"]);
    }
    // And it is still good.
    node.call(&["join", &token, "--name", "x"]).await;
}

#[tokio::test]
async fn an_expired_and_a_revoked_token_are_refused_with_the_reason() {
    let operator = Operator::start().await;
    let expiring = operator.token(&["--expires", "1s"]).await;
    let revoked = operator.party.call(&["token", "add", "--domain", "acme"]).await;
    let id = revoked["id"].as_str().unwrap();
    operator.party.run(&["token", "revoke", id, "--domain", "acme"]).await.json();
    let refused = Party::new().run(&["join", revoked["token"].as_str().unwrap(), "--name", "x"]).await;
    refused.failed_saying(&["revoked"]);
    eventually("the token expires", async || {
        let tokens = operator.party.call(&["token", "list", "--domain", "acme"]).await;
        tokens.as_array().unwrap().iter().any(|token| token["state"] == "expired").then_some(())
    })
    .await;
    Party::new().run(&["join", &expiring, "--name", "x"]).await.failed_saying(&["expired"]);
}

#[tokio::test]
async fn a_token_that_the_operator_does_not_know_is_refused() {
    // A ledger from a backup does not know what was made after it.
    let mut operator = Operator::start().await;
    operator.running.take().unwrap().stop().await;
    let backup = tempfile::tempdir().unwrap();
    copy_files(&operator.party.data(), backup.path());
    operator.restart().await;
    let token = operator.token(&[]).await;
    operator.running.take().unwrap().stop().await;
    std::fs::remove_dir_all(operator.party.data()).unwrap();
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700).create(operator.party.data()).unwrap();
    copy_files(backup.path(), &operator.party.data());
    operator.restart().await;
    Party::new()
        .run(&["join", &token, "--name", "x"])
        .await
        .failed_saying(&["does not know this join token"]);
}

#[tokio::test]
async fn a_token_of_another_network_leads_nowhere() {
    let mut first = Operator::start().await;
    let token = first.token(&[]).await;
    let address = first.listen();
    first.kill().await;
    // Another network's operator now answers at the address that the token names.
    let _second = Operator::init(&address).await;
    let refused = Party::new().run(&["join", &token, "--name", "x"]).await;
    refused.failed_saying(&["another network"]);
}

#[tokio::test]
async fn a_member_does_not_join_a_second_network_with_the_same_data() {
    let (first, second) = (Operator::start().await, Operator::start().await);
    let node = first.admit("node").await;
    let token = second.token(&[]).await;
    node.run(&["join", &token, "--name", "node"]).await.failed_saying(&["member of acme", "peerage leave"]);
}

#[tokio::test]
async fn an_operator_that_is_down_is_named_and_the_same_command_works_when_it_is_up() {
    let mut operator = Operator::start().await;
    let token = operator.token(&[]).await;
    let address = operator.listen();
    operator.running.take().unwrap().stop().await;
    let node = Party::new();
    let failed = node.run(&["join", &token, "--name", "patient"]).await;
    failed.failed_saying(&["no operator could be reached", "tried again", &address]);
    operator.restart().await;
    node.call(&["join", &token, "--name", "patient"]).await;
    assert_eq!(operator.node("patient").await["name"], "patient");
}
