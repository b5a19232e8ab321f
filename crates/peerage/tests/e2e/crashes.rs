//! kill -9 at moments that nobody chose: what was acknowledged is there afterwards.

use crate::support::{LIMIT, Operator, Party, Town, connect, echo, ended, serves, up_in_office};
use serde_json::Value;
use std::time::Duration;
use tokio::time::timeout;

/// Moments of the crash after the beginning, in milliseconds: closer together at first, where more happens.
const MOMENTS_MS: [u64; 8] = [0, 3, 8, 15, 25, 40, 70, 120];

#[tokio::test]
async fn an_operator_that_crashes_while_nodes_join_has_all_to_whom_it_said_yes() {
    let mut operator = Operator::start().await;
    for moment in MOMENTS_MS {
        let token = operator.token(&[]).await;
        let node = Party::new();
        let name = format!("node-{moment}");
        let mut joining = node.spawn(&["join", &token, "--name", &name]);
        // Whether it ended before does not matter here.
        _ = timeout(Duration::from_millis(moment), joining.wait()).await;
        operator.kill().await;
        operator.restart().await;
        let first = ended(joining).await;
        if first.status.success() {
            assert_eq!(operator.node(&name).await["id"], first.json()["id"]);
        }
        // The same command again works in any case, and is the same node to the operator.
        let again = node.call(&["join", &token, "--name", &name]).await;
        assert_eq!(operator.node(&name).await["id"], again["id"]);
        assert_eq!(operator.nodes().await.iter().filter(|node| node["name"] == name).count(), 1);
    }
}

#[tokio::test]
async fn a_node_that_crashes_while_it_joins_joins_with_the_same_token() {
    let operator = Operator::start().await;
    for moment in MOMENTS_MS {
        let token = operator.token(&[]).await;
        let node = Party::new();
        let name = format!("node-{moment}");
        let mut joining = node.spawn(&["join", &token, "--name", &name]);
        _ = timeout(Duration::from_millis(moment), joining.wait()).await;
        // It may have ended by itself.
        _ = joining.kill().await;
        let again = node.call(&["join", &token, "--name", &name]).await;
        assert_eq!(operator.node(&name).await["id"], again["id"]);
        let stopped = crate::support::up_elsewhere(&node).await.stop().await;
        assert!(stopped.success());
    }
}

#[tokio::test]
async fn an_operator_that_crashes_while_it_is_administered_has_all_that_it_confirmed() {
    let mut operator = Operator::start().await;
    let mut confirmed: Vec<Value> = Vec::new();
    for moment in MOMENTS_MS {
        let name = format!("device-{moment}");
        let mac = format!("02:00:5e:00:53:{moment:02x}");
        let service = "raw=9100";
        let mut adding = operator.party.spawn(&[
            "device",
            "add",
            "--domain",
            "acme",
            "--name",
            &name,
            "--mac",
            &mac,
            "--service",
            service,
        ]);
        _ = timeout(Duration::from_millis(moment), adding.wait()).await;
        operator.kill().await;
        let added = ended(adding).await;
        if added.status.success() {
            confirmed.push(added.json()["name"].clone());
        }
        operator.restart().await;
        let list = operator.party.call(&["device", "list", "--domain", "acme"]).await;
        let names: Vec<&Value> = list.as_array().unwrap().iter().map(|device| &device["name"]).collect();
        assert!(confirmed.iter().all(|name| names.contains(&name)), "{confirmed:?} are not all in {names:?}");
    }
}

#[tokio::test]
async fn a_node_that_crashes_while_it_announces_serves_again() {
    let mut town = Town::build().await;
    for moment in MOMENTS_MS {
        town.office_up.take().unwrap().kill().await;
        let crashing = up_in_office(&town.office).await;
        let status = town.office.spawn(&["status"]);
        _ = timeout(Duration::from_millis(moment), ended(status)).await;
        crashing.kill().await;
        town.office_up = Some(up_in_office(&town.office).await);
    }
    serves(&town.office).await;
    let tunnel = connect(&town.user, "raw").await;
    assert_eq!(echo(tunnel.address("local"), b"alive").await.unwrap(), b"alive");
}

#[tokio::test]
async fn an_operator_that_crashes_while_a_node_announces_is_announced_to_again() {
    let mut town = Town::build().await;
    for moment in MOMENTS_MS {
        town.office_up.take().unwrap().kill().await;
        town.office_up = Some(up_in_office(&town.office).await);
        let status = town.office.spawn(&["status"]);
        _ = timeout(Duration::from_millis(moment), ended(status)).await;
        town.operator.kill().await;
        town.operator.restart().await;
    }
    let tunnel = timeout(LIMIT, connect(&town.user, "raw")).await.unwrap();
    assert_eq!(echo(tunnel.address("local"), b"alive").await.unwrap(), b"alive");
}

#[tokio::test]
async fn a_user_who_joins_after_the_operator_has_crashed_finds_the_way() {
    let mut town = Town::build().await;
    drop(connect(&town.user, "raw").await);
    town.operator.kill().await;
    town.operator.restart().await;
    let late = town.operator.admit("late").await;
    let _up = crate::support::up_elsewhere(&late).await;
    let tunnel = connect(&late, "raw").await;
    assert_eq!(echo(tunnel.address("local"), b"late").await.unwrap(), b"late");
}
