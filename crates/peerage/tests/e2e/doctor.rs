//! What the doctor finds where nothing is in the way.

use crate::support::{Operator, Party};

/// What the doctor asks of a server is what servers answer, and it needs neither a node nor a data directory.
#[tokio::test]
async fn the_doctor_finds_every_way_to_a_server_on_this_computer_open() {
    let operator = Operator::start().await;
    let report = Party::new().call(&["doctor", "--operator", &operator.listen()]).await;
    let checks = report["checks"].as_array().unwrap();
    for name in ["udp", "tcp", "https", "tls", "messages"] {
        let of_server = |check: &&serde_json::Value| {
            check["name"] == name && check["address"].as_str() == Some(operator.listen().as_str())
        };
        let check = checks.iter().find(of_server).unwrap_or_else(|| panic!("no {name}: {report}"));
        assert_eq!(check["outcome"], "passes", "{check}");
    }
    assert_eq!(report["cause"], "none");
}
