//! Beacons on real sockets: two nodes of one machine, on interfaces of a network namespace that the test has made.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use peerage_node::lan::{Beacons, Lan, Received};
use peerage_proto::lan::Interface;
use peerage_wire::beacon::PORT;

/// Set in the process that runs inside the namespace.
const INSIDE: &str = "PEERAGE_TEST_INSIDE_NAMESPACE";

/// A wait that only a broken program reaches.
const FOREVER: Duration = Duration::from_secs(30);

/// Rule 6.25: whoever has joined on an interface hears what is sent there, several nodes of one machine as well, and nothing
/// from other interfaces; of both families.
#[test]
fn nodes_hear_each_other_on_the_same_interface_alone() {
    in_a_namespace("nodes_hear_each_other_on_the_same_interface_alone", async |interfaces| {
        let [one, other, v6] = ["one", "other", "six"].map(|name| index(&interfaces, name));
        let (mut here, mut there) = (node(&interfaces), node(&interfaces));
        for interface in [one, other, v6] {
            // Who sends also begins to listen.
            there.send(interface, b"there").unwrap();
            here.send(interface, b"here").unwrap();
            let (at, from, payload) = until(&mut there, b"here").await;
            assert_eq!((at, from.port()), (interface, PORT));
            assert_eq!(payload, Bytes::from_static(b"here"));
            let own = interfaces.iter().find(|i| i.index == interface).unwrap();
            assert!(own.has_address(from.ip()), "{from}");
            // It hears itself too, on this interface and no other.
            assert_eq!(until(&mut here, b"here").await.0, interface);
        }
        assert_eq!(within_a_moment(&mut here).await, None);
        assert_eq!(within_a_moment(&mut there).await, None);
    });
}

/// Rule 6.27: an interface that is gone, or never was, is told apart from a beacon that is merely lost.
#[test]
fn an_interface_that_cannot_carry_beacons_is_an_error() {
    in_a_namespace("an_interface_that_cannot_carry_beacons_is_an_error", async |interfaces| {
        let one = index(&interfaces, "one");
        let mut here = node(&interfaces);
        here.send(one, b"here").unwrap();
        assert!(here.send(9_999, b"nowhere").is_err());
        let rest: Vec<_> = interfaces.iter().filter(|i| i.index != one).cloned().collect();
        here.networks(&rest);
        assert!(here.send(one, b"gone").is_err());
        here.networks(&interfaces);
        here.send(one, b"back").unwrap();
        assert_eq!(until(&mut here, b"back").await.0, one);
    });
}

fn node(interfaces: &[Interface]) -> Beacons {
    let mut beacons = Beacons::new(PORT);
    beacons.networks(interfaces);
    beacons
}

async fn until(beacons: &mut Beacons, payload: &'static [u8]) -> Received {
    let awaited = async {
        loop {
            let received = beacons.receive().await;
            if received.2 == payload {
                return received;
            }
        }
    };
    tokio::time::timeout(FOREVER, awaited).await.expect("it arrives")
}

/// Returns what is there already; all was sent and read before.
async fn within_a_moment(beacons: &mut Beacons) -> Option<Received> {
    tokio::time::timeout(Duration::from_millis(1), beacons.receive()).await.ok()
}

fn index(interfaces: &[Interface], name: &str) -> u32 {
    interfaces.iter().find(|interface| interface.name == name).expect("it was made").index
}

/// Runs the test as root of its own user and network namespaces, with three interfaces.
fn in_a_namespace(name: &str, body: impl AsyncFnOnce(Vec<Interface>)) {
    if std::env::var_os(INSIDE).is_none() {
        let status = unshare()
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(INSIDE, "1")
            .status()
            .unwrap();
        assert!(status.success(), "inside the namespaces: {status}");
        return;
    }
    for line in [
        "link set lo up",
        "link add one type veth peer name one-peer",
        "link add other type veth peer name other-peer",
        "link add six type veth peer name six-peer",
        "addr add 192.168.77.10/24 dev one",
        "addr add 192.168.78.10/24 dev other",
        "addr add fd00:77::10/64 dev six nodad",
        "link set one-peer up",
        "link set other-peer up",
        "link set six-peer up",
        "link set one up",
        "link set other up",
        "link set six addrgenmode none",
        "link set six up",
    ] {
        let output = Command::new("ip").args(line.split_whitespace()).output();
        let output = output.expect("ip, of iproute2, is installed");
        assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let lan = Lan::new();
        let mut changes = lan.watch().unwrap();
        let interfaces = loop {
            // A link that was set up a moment ago carries nothing yet.
            let interfaces = lan.snapshot().await.unwrap();
            let mut trial = node(&interfaces);
            let ready = |name| trial.send(index(&interfaces, name), b"trial").is_ok();
            if ["one", "other", "six"].into_iter().all(ready) {
                break interfaces;
            }
            tokio::time::timeout(FOREVER, changes.changed()).await.expect("the links come up").unwrap();
        };
        body(interfaces).await;
    });
}

/// Returns the command that runs another in new namespaces: by way of a user namespace, or as root where those are off.
fn unshare() -> Command {
    let choices = [&["--user", "--map-root-user", "--net"][..], &["--net"]];
    let works = |options: &&[&str]| {
        let trial = Command::new("unshare").args(*options).arg("true").output();
        trial.expect("unshare, of util-linux, is installed").status.success()
    };
    let options =
        choices.into_iter().find(works).expect("namespaces are allowed, to users or at least to root");
    let mut command = Command::new("unshare");
    command.args(options);
    command
}
