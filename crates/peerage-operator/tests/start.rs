//! What has to be right before an operator serves, and what it says when it is not.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here fails the test")]

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use common::{data, hello, init_config, made, start};
use peerage_client::admin::AddDomain;
use peerage_node::private::PrivateError;
use peerage_node::udp::BindError;
use peerage_operator::{
    AddressError, CertificateError, CertificateFiles, DataError, InitConfig, InitError, RunConfig, RunError,
    init,
};
use peerage_wire::crypto::Real;

#[test]
fn init_replaces_nothing() {
    let (dir, _) = made();
    let before = fs::read(data(&dir).join("root.key")).unwrap();
    let again = init(&init_config(&data(&dir)));
    assert!(matches!(again, Err(InitError::Data(DataError::Occupied { .. }))));
    assert_eq!(fs::read(data(&dir).join("root.key")).unwrap(), before);
}

#[test]
fn what_init_makes_only_its_owner_can_read() {
    let (dir, _) = made();
    for entry in fs::read_dir(data(&dir)).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
    assert_eq!(fs::metadata(data(&dir)).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn an_address_that_nobody_can_reach_is_not_advertised() {
    let dir = tempfile::tempdir().unwrap();
    let any = InitConfig { listen: "0.0.0.0:0".parse().unwrap(), ..init_config(&dir.path().join("a")) };
    let refused = init(&any).unwrap_err();
    assert!(matches!(refused, InitError::Address(AddressError::NotReachable(_))));
    assert!(refused.to_string().contains("--advertise"), "{refused}");
    assert!(!dir.path().join("a").exists());
    let many = InitConfig { advertise: vec!["192.0.2.1:1".parse().unwrap(); 9], ..any.clone() };
    assert!(matches!(init(&many), Err(InitError::Address(AddressError::TooMany(9)))));
    let told = InitConfig { advertise: vec!["192.0.2.1:0".parse().unwrap()], ..any };
    let report = init(&told).unwrap();
    assert_eq!(report.advertised, [format!("192.0.2.1:{}", report.listen.port()).parse().unwrap()]);
    assert_ne!(report.listen.port(), 0);
}

#[tokio::test]
async fn an_operator_listens_where_init_said_and_remembers_all_at_the_next_start() {
    let (dir, report) = made();
    let running = start(RunConfig::new(data(&dir))).await.unwrap();
    assert_eq!(running.ready.listen, report.listen);
    assert_eq!(running.ready.advertised, report.advertised);
    assert_eq!((running.ready.id, running.ready.network), (report.id, report.network));
    running.admin.add_domain(&AddDomain { name: "acme".to_owned(), vendor: false }).await.unwrap();
    let first = hello(report.listen).await;
    running.end().await.unwrap();
    assert!(!data(&dir).join("admin.json").exists());
    let again = start(RunConfig::new(data(&dir))).await.unwrap();
    assert_eq!(again.admin.domain("acme").await.unwrap().epoch, 1);
    assert_eq!(hello(report.listen).await, first);
    again.end().await.unwrap();
}

#[tokio::test]
async fn a_second_operator_on_the_same_directory_is_refused() {
    let (dir, _) = made();
    let first = start(RunConfig::new(data(&dir))).await.unwrap();
    let second = start(RunConfig::new(data(&dir))).await.err().unwrap();
    assert!(matches!(second, RunError::Data(DataError::Private(PrivateError::Locked { .. }))), "{second}");
    first.admin.status().await.unwrap();
    first.end().await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let (dir, report) = made();
    let other = TcpListener::bind(report.listen).unwrap();
    let refused = start(RunConfig::new(data(&dir))).await.err().unwrap();
    assert!(matches!(refused, RunError::Listen(BindError::InUse { .. })), "{refused}");
    assert!(refused.to_string().contains(&report.listen.to_string()), "{refused}");
    drop(other);
    start(RunConfig::new(data(&dir))).await.unwrap().end().await.unwrap();
}

#[tokio::test]
async fn a_directory_without_an_operator_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let refused = start(RunConfig::new(dir.path())).await.err().unwrap();
    assert!(matches!(refused, RunError::Data(DataError::Absent { .. })), "{refused}");
}

#[tokio::test]
async fn keys_and_ledger_that_others_can_read_are_refused() {
    let (dir, _) = made();
    for name in ["operator.key", "root.key", "ledger.db"] {
        let path = data(&dir).join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = start(RunConfig::new(data(&dir))).await.err().unwrap();
        assert!(
            matches!(
                refused,
                RunError::Data(DataError::Private(PrivateError::Permissions { mode: 0o600, .. }))
            ),
            "{refused}"
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    start(RunConfig::new(data(&dir))).await.unwrap().end().await.unwrap();
}

#[tokio::test]
async fn keys_of_another_operator_are_refused() {
    let ((dir, _), (other, _)) = (made(), made());
    for name in ["operator.key", "root.key"] {
        let kept = fs::read(data(&dir).join(name)).unwrap();
        fs::copy(data(&other).join(name), data(&dir).join(name)).unwrap();
        let refused = start(RunConfig::new(data(&dir))).await.err().unwrap();
        assert!(matches!(refused, RunError::Data(DataError::ForeignKey { .. })), "{name}: {refused}");
        fs::write(data(&dir).join(name), kept).unwrap();
    }
}

#[tokio::test]
async fn a_damaged_key_or_ledger_is_named() {
    let (dir, _) = made();
    let key = data(&dir).join("operator.key");
    let kept = fs::read(&key).unwrap();
    fs::write(&key, &kept[..40]).unwrap();
    let refused = start(RunConfig::new(data(&dir))).await.err().unwrap();
    assert!(matches!(refused, RunError::Data(DataError::MalformedKey { .. })), "{refused}");
    fs::write(&key, kept).unwrap();
    fs::write(data(&dir).join("ledger.db"), [0x55; 8_192]).unwrap();
    let refused = start(RunConfig::new(data(&dir))).await.err().unwrap();
    assert!(matches!(refused, RunError::Ledger(_)), "{refused}");
}

#[tokio::test]
async fn the_root_key_is_needed_only_for_new_addresses() {
    let (dir, report) = made();
    let (root, safe) = (data(&dir).join("root.key"), dir.path().join("safe.key"));
    fs::rename(&root, &safe).unwrap();
    start(RunConfig::new(data(&dir))).await.unwrap().end().await.unwrap();
    let moved =
        RunConfig { advertise: vec!["192.0.2.1:7400".parse().unwrap()], ..RunConfig::new(data(&dir)) };
    let refused = start(moved.clone()).await.err().unwrap();
    assert!(matches!(refused, RunError::RootNeeded { .. }), "{refused}");
    fs::rename(&safe, &root).unwrap();
    let running = start(moved.clone()).await.unwrap();
    assert_eq!(running.ready.advertised, moved.advertise);
    let operator = hello(report.listen).await.verify(&report.network, None, &Real).unwrap();
    assert_eq!(operator.body.addresses, moved.advertise);
    running.end().await.unwrap();
}

#[tokio::test]
async fn an_operator_that_moves_to_another_port_advertises_it() {
    let (dir, report) = made();
    let moved = RunConfig { listen: Some("127.0.0.1:0".parse().unwrap()), ..RunConfig::new(data(&dir)) };
    let running = start(moved).await.unwrap();
    let now = running.ready.listen;
    assert_ne!(now, report.listen);
    assert_eq!(running.ready.advertised, [now]);
    assert_eq!(hello(now).await.verify(&report.network, None, &Real).unwrap().body.addresses, [now]);
    running.end().await.unwrap();
}

#[tokio::test]
async fn the_admin_api_listens_on_loopback_only() {
    let (dir, _) = made();
    let open = RunConfig { admin_listen: Some("0.0.0.0:0".parse().unwrap()), ..RunConfig::new(data(&dir)) };
    let refused = start(open).await.err().unwrap();
    assert!(matches!(refused, RunError::AdminNotLoopback(_)), "{refused}");
}

#[tokio::test]
async fn a_given_certificate_is_shown_and_a_wrong_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["operator.example".to_owned()]).unwrap();
    let (chain, key) = (dir.path().join("chain.pem"), dir.path().join("key.pem"));
    fs::write(&chain, pem("CERTIFICATE", made.cert.der())).unwrap();
    fs::write(&key, pem("PRIVATE KEY", &made.signing_key.serialize_der())).unwrap();
    let files = CertificateFiles { chain: chain.clone(), key };
    let config = InitConfig { certificate: Some(files), ..init_config(&data(&dir)) };
    let report = init(&config).unwrap();
    assert!(!data(&dir).join("certificate.der").exists());
    let running = start(RunConfig::new(data(&dir))).await.unwrap();
    hello(report.listen).await.verify(&report.network, None, &Real).unwrap();
    running.end().await.unwrap();
    fs::write(&chain, "nothing").unwrap();
    let refused = start(RunConfig::new(data(&dir))).await.err().unwrap();
    assert!(matches!(
        refused,
        RunError::Certificate(CertificateError::Unusable(_) | CertificateError::Pem { .. })
    ));
    let missing = InitConfig { data: dir.path().join("other"), ..config };
    assert!(matches!(init(&missing), Err(InitError::Certificate(_))));
    assert!(!dir.path().join("other/operator.key").exists(), "a failed attempt leaves nothing");
}

fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in der.chunks(3) {
        let mut bytes = [0; 4];
        bytes[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(bytes);
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= group.len() { digit.into() } else { '=' });
        }
        if text.len() % 65 == 64 {
            text.push('\n');
        }
    }
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}
