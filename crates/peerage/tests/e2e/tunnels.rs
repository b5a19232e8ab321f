//! Tunnels that work, and what ends them.

use crate::support::{Operator, Party, Pinned, Town, connect, device, echo, eventually, up_elsewhere};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// How long a revoked node may still use an open tunnel.
const REVOKED_WITHIN: Duration = Duration::from_secs(60);

#[tokio::test]
async fn every_byte_comes_back_from_the_device_through_the_tunnel() {
    let town = Town::build().await;
    let tunnel = connect(&town.user, "raw").await;
    let bytes: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    assert!(echo(tunnel.address("local"), &bytes).await.unwrap() == bytes);
    let status = town.user.call(&["status"]).await;
    let open = &status["open_tunnels"][0];
    assert_eq!((&open["path"]["kind"], &open["bytes_sent"]), (&"direct".into(), &bytes.len().into()));
    assert!(tunnel.stop().await.success());
}

#[tokio::test]
async fn what_is_not_registered_is_not_reached() {
    let town = Town::build().await;
    drop(connect(&town.user, "raw").await);
    let no_service = town.user.run(&["connect", "printer:ssh"]).await;
    no_service.failed_saying(&["Unknown service"]);
    let no_device = town.user.run(&["connect", "scanner"]).await;
    no_device.failed_saying(&["Unknown device"]);
}

#[tokio::test]
async fn a_node_of_another_domain_neither_sees_nor_reaches_the_device() {
    let town = Town::build().await;
    town.operator.party.call(&["domain", "add", "other"]).await;
    let token = town.operator.party.call(&["token", "add", "--domain", "other"]).await;
    let stranger = Party::new();
    stranger.call(&["join", token["token"].as_str().unwrap(), "--name", "stranger"]).await;
    let _up = up_elsewhere(&stranger).await;
    assert_eq!(stranger.call(&["devices", "--refresh"]).await, serde_json::json!([]));
    stranger.run(&["connect", "printer:raw"]).await.failed_saying(&["Unknown device"]);
}

#[tokio::test]
async fn a_device_that_is_off_ends_the_connection_and_works_again_when_it_is_on() {
    let mut town = Town::with_a_device(Pinned::No).await;
    let tunnel = connect(&town.user, "raw").await;
    let local = tunnel.address("local");
    assert_eq!(echo(local, b"on").await.unwrap(), b"on");
    let ports = town.ports();
    town.device.take().unwrap().kill().await;
    assert!(!echo(local, b"off").await.is_ok_and(|back| back == b"off"));
    town.device = Some(device(&town.printer, ports).await);
    assert_eq!(echo(local, b"on again").await.unwrap(), b"on again");
}

#[tokio::test]
async fn a_device_with_another_certificate_is_not_connected_to() {
    let mut town = Town::build().await;
    let tunnel = connect(&town.user, "raw").await;
    let local = tunnel.address("local");
    assert_eq!(echo(local, b"genuine").await.unwrap(), b"genuine");
    let ports = town.ports();
    town.device.take().unwrap().kill().await;
    let impostor = device(&town.printer, ports).await;
    assert!(!echo(local, b"secret").await.is_ok_and(|back| back == b"secret"));
    let shown = tokio::task::spawn_blocking(move || {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(impostor.address("web")).unwrap();
        stream.write_all(b"GET /status.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let shown = shown.await.unwrap();
    assert!(shown.contains("\"raw_bytes\":0"), "the impostor was given something: {shown}");
}

#[tokio::test]
async fn a_revoked_user_loses_an_open_tunnel_within_a_minute_and_cannot_return() {
    let mut town = Town::build().await;
    let tunnel = connect(&town.user, "raw").await;
    let mut stream = TcpStream::connect(tunnel.address("local")).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    town.operator.party.call(&["node", "revoke", "user", "--domain", "acme"]).await;
    let mut byte = [0];
    let end = timeout(REVOKED_WITHIN, stream.read(&mut byte)).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert!(!echo(tunnel.address("local"), b"y").await.is_ok_and(|back| back == b"y"));
    // A restart does not help, only another key does, which a new token admits.
    town.user_up.take().unwrap().stop().await;
    town.user_up = Some(up_elsewhere(&town.user).await);
    town.user.run(&["connect", "printer:raw"]).await.failed_saying(&[]);
    town.user.call(&["leave"]).await;
    let token = town.operator.token(&[]).await;
    town.user.call(&["join", &token, "--name", "user-again"]).await;
    town.user_up = Some(up_elsewhere(&town.user).await);
    let tunnel = connect(&town.user, "raw").await;
    assert_eq!(echo(tunnel.address("local"), b"again").await.unwrap(), b"again");
}

#[tokio::test]
async fn a_revoked_office_node_serves_nobody_any_more() {
    let town = Town::build().await;
    let tunnel = connect(&town.user, "raw").await;
    let mut stream = TcpStream::connect(tunnel.address("local")).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    town.operator.party.call(&["node", "revoke", "office", "--domain", "acme"]).await;
    let mut byte = [0];
    let end = timeout(REVOKED_WITHIN, stream.read(&mut byte)).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[tokio::test]
async fn tunnels_work_again_when_the_office_node_was_restarted() {
    let mut town = Town::build().await;
    let tunnel = connect(&town.user, "raw").await;
    let local = tunnel.address("local");
    assert_eq!(echo(local, b"before").await.unwrap(), b"before");
    town.office_up.take().unwrap().kill().await;
    town.office_up = Some(crate::support::up_in_office(&town.office).await);
    eventually("the tunnel works again", async || {
        echo(local, b"after").await.is_ok_and(|back| back == b"after").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_once_open_needs_no_operator() {
    let mut town = Town::build().await;
    let tunnel = connect(&town.user, "raw").await;
    assert_eq!(echo(tunnel.address("local"), b"with").await.unwrap(), b"with");
    let operator: &mut Operator = &mut town.operator;
    operator.kill().await;
    assert_eq!(echo(tunnel.address("local"), b"without").await.unwrap(), b"without");
}

/// Rule 6.60: with the link and the tunnel of two of its members, and nobody else's; it does not come back.
#[tokio::test]
async fn a_revoked_domain_loses_its_open_tunnels_within_a_minute_and_cannot_grow() {
    let town = Town::build().await;
    let tunnel = connect(&town.user, "raw").await;
    let mut stream = TcpStream::connect(tunnel.address("local")).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    let token = town.operator.token(&[]).await;
    let other = town.operator.party.call(&["domain", "add", "other"]).await;
    let revoked = town.operator.party.call(&["domain", "revoke", "acme", "--reason", "misbehaviour"]).await;
    assert!(revoked["revoked_at_ms"].is_u64(), "{revoked}");
    let mut byte = [0];
    let end = timeout(REVOKED_WITHIN, stream.read(&mut byte)).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    for node in [&town.user, &town.office] {
        eventually("the node knows that it is out", async || {
            let status = node.call(&["status"]).await;
            let is_out = status["warnings"].to_string().contains("revoked");
            (is_out && status["tunnels"] == 0).then_some(())
        })
        .await;
    }
    town.user.run(&["connect", "printer:raw"]).await.failed_saying(&[]);
    Party::new().run(&["join", &token, "--name", "late"]).await.failed_saying(&["no longer serves"]);
    let shown = town.operator.party.call(&["domain", "show", "other"]).await;
    assert_eq!((shown["id"].clone(), shown["revoked_at_ms"].is_null()), (other["id"].clone(), true));
}
