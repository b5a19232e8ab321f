//! Super-nodes: lent, checked, assigned, used, and taken back.

use crate::support::{Operator, Party, Running, eventually};
use serde_json::Value;

/// Lets a node join that the administrator permits to be a super-node, in a domain of its own.
pub(crate) async fn admit(operator: &Operator, name: &str) -> Party {
    operator.party.call(&["domain", "add", name]).await;
    let made = operator.party.call(&["token", "add", "--domain", name, "--role", "user,tunnel,super"]).await;
    let node = Party::new();
    node.call(&["join", made["token"].as_str().unwrap(), "--name", name]).await;
    node
}

pub(crate) async fn up(node: &Party) -> Running {
    let place = node.data().display().to_string();
    node.start(&["up", "--listen", "127.0.0.1:0", "--one-machine", &place]).await
}

async fn super_node(node: &Party) -> Value {
    node.call(&["status"]).await["super_node"].clone()
}

pub(crate) async fn becomes(node: &Party, state: &str) -> Value {
    eventually(&format!("the super-node is {state}"), async || {
        let now = super_node(node).await;
        (now["state"] == state).then_some(now)
    })
    .await
}

/// Returns how many super-nodes the operator lists as serving.
async fn listed_as_serving(operator: &Operator) -> usize {
    let listed = operator.party.call(&["super", "list"]).await;
    listed.as_array().unwrap().iter().filter(|one| one["state"] == "serving").count()
}

#[tokio::test]
async fn three_of_four_nodes_become_super_nodes_and_all_sides_show_it() {
    let operator = Operator::start().await;
    let names = ["alpha", "beta", "gamma", "delta"];
    let mut nodes = Vec::new();
    for name in names {
        let node = admit(&operator, name).await;
        let running = up(&node).await;
        nodes.push((node, running));
    }
    for (node, _) in &nodes[..3] {
        assert_eq!(super_node(node).await["state"], "off");
        let lent = node.call(&["super", "on", "--max-memory", "16MiB", "--max-tunnels", "5"]).await;
        assert_eq!(lent["limits"]["max_memory_bytes"], 16 << 20);
    }
    for (node, _) in &nodes[..3] {
        let now = becomes(node, "serving").await;
        assert!(now["range"]["from"].is_string(), "{now}");
        assert_eq!(now["limits"]["max_tunnels"], 5);
    }
    assert_eq!(super_node(&nodes[3].0).await["state"], "off");
    eventually("the operator lists three", async || (listed_as_serving(&operator).await == 3).then_some(()))
        .await;
    // Each domain has one record at least, that of its node, and all holders together hold everything.
    eventually("they hold records of all domains", async || {
        let mut records = 0;
        for (node, _) in &nodes[..3] {
            records += super_node(node).await["records"].as_u64().unwrap();
        }
        (records >= 4).then_some(())
    })
    .await;

    // Taking it back hands over first, and says so.
    let (gamma, _) = &nodes[2];
    let ended = gamma.call(&["super", "off"]).await;
    assert_eq!(ended["handed_over"], true, "{ended}");
    assert_eq!(ended["super_node"]["state"], "off");
    eventually("the operator lists two", async || (listed_as_serving(&operator).await == 2).then_some(()))
        .await;
}

#[tokio::test]
async fn what_was_lent_is_lent_again_after_a_restart_and_what_was_taken_back_is_not() {
    let operator = Operator::start().await;
    let node = admit(&operator, "alpha").await;
    let running = up(&node).await;
    let listen = running.first["listen"][0].as_str().unwrap().to_owned();
    node.call(&["super", "on", "--max-rate", "1MB/s"]).await;
    becomes(&node, "serving").await;
    assert!(running.stop().await.success(), "{}", node.log("up"));
    let log = node.log("up");
    assert!(log.contains("others hold now what this super-node held"), "{log}");

    // At the same address, or the operator would not call back at once.
    let running = node.start(&["up", "--listen", &listen, "--one-machine", "alpha"]).await;
    let now = becomes(&node, "serving").await;
    assert_eq!(now["limits"]["max_bytes_per_second"], 1_000_000);
    node.call(&["super", "off"]).await;
    running.kill().await;

    let _running = up(&node).await;
    let now = node.call(&["super", "status"]).await;
    assert_eq!((&now["state"], &now["limits"]["max_bytes_per_second"]), (&"off".into(), &1_000_000.into()));
}

#[tokio::test]
async fn who_is_not_permitted_is_told_so_and_a_useless_limit_is_refused() {
    let operator = Operator::start().await;
    let node = operator.admit("plain").await;
    let _running = up(&node).await;
    node.run(&["super", "on", "--max-memory", "10kB"]).await.failed_saying(&["1 MiB", "max_memory"]);
    assert_eq!(super_node(&node).await["state"], "off");
    node.call(&["super", "on"]).await;
    becomes(&node, "not-permitted").await;
}

/// The spies in a domain, by id.
async fn spies(operator: &Operator, domain: &str) -> Vec<String> {
    let nodes = operator.party.call(&["node", "list", "--domain", domain]).await;
    let spies = nodes.as_array().unwrap().iter().filter(|node| node["spy"] == true);
    spies.map(|node| node["id"].as_str().unwrap().to_owned()).collect()
}

/// Rule 6.79: made by the ledger, shown to the administrator alone, and the same after a restart.
#[tokio::test]
async fn a_domain_gets_spies_that_only_the_administrator_sees_and_that_survive_a_restart() {
    let mut operator = Operator::start().await;
    let watch: &[&str] = &["operator", "run", "--spy-interval", "1s", "--spy-address", "127.0.0.9"];
    operator.restart_as(watch).await;
    let node = operator.admit("alone").await;
    let made = eventually("there are two spies", async || {
        let spies = spies(&operator, "acme").await;
        (spies.len() == 2).then_some(spies)
    })
    .await;
    let shown = operator.party.call(&["domain", "show", "acme"]).await;
    assert_eq!(shown["nodes"], 1, "a spy is nobody's computer: {shown}");
    let running = up(&node).await;
    let told = node.call(&["status"]).await.to_string() + &node.call(&["devices"]).await.to_string();
    assert!(made.iter().all(|spy| !told.contains(spy)), "{told}");
    operator.restart_as(&["operator", "run", "--no-spies"]).await;
    assert_eq!(spies(&operator, "acme").await, made);
    running.stop().await;
}
