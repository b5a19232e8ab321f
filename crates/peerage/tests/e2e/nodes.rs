//! What keeps a node or an operator from starting.

use crate::support::{Operator, Party, up_elsewhere};
use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _};

#[tokio::test]
async fn a_node_that_has_not_joined_says_what_to_do() {
    Party::new().run(&["up"]).await.failed_saying(&["peerage join"]);
}

#[tokio::test]
async fn a_second_node_on_the_same_data_is_refused_and_the_first_goes_on() {
    let operator = Operator::start().await;
    let node = operator.admit("node").await;
    let first = up_elsewhere(&node).await;
    node.run(&["up", "--listen", "127.0.0.1:0"]).await.failed_saying(&["in use"]);
    assert_eq!(node.call(&["status"]).await["node"]["name"], "node");
    assert!(first.stop().await.success());
    let again = up_elsewhere(&node).await;
    assert!(again.stop().await.success());
}

#[tokio::test]
async fn a_second_operator_on_the_same_data_is_refused() {
    let operator = Operator::start().await;
    operator.party.run(&["operator", "run"]).await.failed_saying(&["is in use by process"]);
    operator.party.call(&["domain", "list"]).await;
}

#[tokio::test]
async fn a_port_that_is_in_use_is_named() {
    let mut operator = Operator::start().await;
    let node = operator.admit("node").await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    node.run(&["up", "--listen", &address]).await.failed_saying(&[&address, "in use"]);
    operator.running.take().unwrap().stop().await;
    let run = operator.party.run(&["operator", "run", "--listen", &address, "--advertise", &address]).await;
    run.failed_saying(&[&address, "in use"]);
}

#[tokio::test]
async fn a_key_that_others_can_read_is_not_used_and_the_remedy_is_told() {
    let operator = Operator::start().await;
    let node = operator.admit("node").await;
    let key = node.data().join("identity.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let remedy = format!("chmod 600 {}", key.display());
    node.run(&["up", "--listen", "127.0.0.1:0"]).await.failed_saying(&[&remedy]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(up_elsewhere(&node).await.stop().await.success());
}

#[tokio::test]
async fn a_malformed_key_file_is_named_and_left_as_it_is() {
    let operator = Operator::start().await;
    let node = operator.admit("node").await;
    let key = node.data().join("identity.key");
    let text = fs::read_to_string(&key).unwrap();
    for broken in
        [String::new(), "garbage\n".to_owned(), text[..text.len() - 9].to_owned(), text.replace('\n', "")]
    {
        fs::write(&key, &broken).unwrap();
        let path = key.display().to_string();
        node.run(&["up", "--listen", "127.0.0.1:0"]).await.failed_saying(&[&path]);
        assert_eq!(fs::read_to_string(&key).unwrap(), broken);
    }
}

#[tokio::test]
async fn an_operator_whose_keys_others_can_read_does_not_start() {
    let mut operator = Operator::start().await;
    operator.running.take().unwrap().stop().await;
    let key = operator.party.data().join("operator.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    operator.party.run(&["operator", "run"]).await.failed_saying(&["chmod", &key.display().to_string()]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    operator.restart().await;
}

#[tokio::test]
async fn after_down_and_leave_the_next_command_finds_the_data_free() {
    let operator = Operator::start().await;
    let node = operator.admit("node").await;
    let _up = up_elsewhere(&node).await;
    node.call(&["down"]).await;
    let _again = up_elsewhere(&node).await;
    node.call(&["leave"]).await;
    let token = operator.token(&[]).await;
    node.call(&["join", &token, "--name", "back"]).await;
}
