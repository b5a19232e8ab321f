//! The LAN module on a real, small LAN: a node, a router and a device, each in a network namespace of its own.
//!
//! Every test runs itself again as root of a new user namespace, so that it needs no privileges; where the system
//! forbids that, the tests fail. Commands used: `unshare`, `setpriv` and `mount`
//! (util-linux), `ip` (iproute2).

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use peerage_node::lan::{FindDevice, Found, Lan, LanChanges, MAX_FIND, Presence};
use peerage_proto::dial::Forbidden;
use peerage_proto::lan::{Interface, InterfaceKind, Mac};

const ROUTER: Mac = Mac([2, 0, 0, 0, 0, 0x01]);
const NODE: Mac = Mac([2, 0, 0, 0, 0, 0x10]);
const DEVICE: Mac = Mac([2, 0, 0, 0, 0, 0x77]);
const ABSENT: Mac = Mac([2, 0, 0, 0, 0, 0x99]);

/// Set in the process that runs inside the namespace.
const INSIDE: &str = "PEERAGE_TEST_INSIDE_NAMESPACE";

/// Set in the process that has given up its privileges as well.
const UNPRIVILEGED: &str = "PEERAGE_TEST_UNPRIVILEGED";

/// A wait that only a broken program reaches.
const FOREVER: Duration = Duration::from_secs(30);

#[test]
fn a_snapshot_shows_addresses_and_gateways_with_their_macs() {
    on_a_lan("a_snapshot_shows_addresses_and_gateways_with_their_macs", async || {
        let interfaces = Lan::new().snapshot().await.unwrap();
        let loopback = by_name(&interfaces, "lo");
        assert_eq!(loopback.kind, InterfaceKind::Loopback);
        assert!(loopback.has_address(at("127.0.0.1")));
        assert_eq!(loopback.mac, None);

        let eth0 = by_name(&interfaces, "eth0");
        assert_eq!(eth0.kind, InterfaceKind::Virtual);
        assert!(eth0.up);
        assert_eq!(eth0.mac, Some(NODE));
        for (address, prefix) in [("192.168.77.10", "192.168.77.0/26"), ("fd00:77::10", "fd00:77::/64")] {
            let own = eth0.addresses.iter().find(|own| own.address == at(address)).unwrap();
            assert_eq!(own.prefix, prefix.parse().unwrap());
        }
        let gateways: Vec<_> = eth0.gateways.iter().map(|g| (g.address, g.metric, g.mac)).collect();
        assert_eq!(gateways, [(at("192.168.77.1"), 0, Some(ROUTER)), (at("fe80::1"), 1024, None)]);
        assert_eq!(eth0.location(), Some((ROUTER, "192.168.77.0/26".parse().unwrap())));

        ip("-4 addr flush dev eth0");
        let interfaces = Lan::new().snapshot().await.unwrap();
        assert_eq!(by_name(&interfaces, "eth0").location(), Some((ROUTER, "fd00:77::/64".parse().unwrap())));
    });
}

#[test]
fn a_gateway_is_asked_once_and_one_that_is_silent_has_no_mac() {
    on_a_lan("a_gateway_is_asked_once_and_one_that_is_silent_has_no_mac", async || {
        let lan = Lan::new();
        let before = datagrams_sent();
        lan.snapshot().await.unwrap();
        assert_eq!(datagrams_sent(), before + 1);
        lan.snapshot().await.unwrap();
        assert_eq!(datagrams_sent(), before + 1, "the answer is in the table");

        ip("route replace default via 192.168.77.2");
        let interfaces = lan.snapshot().await.unwrap();
        assert_eq!(by_name(&interfaces, "eth0").gateways[0].mac, None);
        assert_eq!(datagrams_sent(), before + 2);
    });
}

#[test]
fn nothing_needs_a_privilege() {
    let name = "nothing_needs_a_privilege";
    if std::env::var_os(UNPRIVILEGED).is_none() {
        on_a_lan(name, async || {
            let status = Command::new("setpriv")
                .args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env(UNPRIVILEGED, "1")
                .status()
                .expect("setpriv, of util-linux, is installed");
            assert!(status.success(), "without privileges: {status}");
        });
        return;
    }
    block_on(async || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert!(status.lines().any(|line| line == "CapEff:\t0000000000000000"));
        let lan = Lan::new();
        let mut changes = lan.watch().unwrap();
        change(&mut changes).await;
        let interfaces = lan.snapshot().await.unwrap();
        assert_eq!(by_name(&interfaces, "eth0").gateways[0].mac, Some(ROUTER));
        change(&mut changes).await;
        assert_eq!(find(&lan, &FindDevice::new(DEVICE)).await, found("192.168.77.50"));
    });
}

#[test]
fn kinds_of_interfaces_are_told_apart_and_a_link_without_carrier_is_down() {
    on_a_lan("kinds_of_interfaces_are_told_apart_and_a_link_without_carrier_is_down", async || {
        ip("link add bridge1 type bridge");
        ip("link add veth1 type veth peer name veth2");
        ip("link set veth1 up");
        let interfaces = Lan::new().snapshot().await.unwrap();
        for (name, kind, up) in [
            ("lo", InterfaceKind::Loopback, true),
            ("eth0", InterfaceKind::Virtual, true),
            ("bridge1", InterfaceKind::Virtual, false),
            ("veth1", InterfaceKind::Virtual, false),
        ] {
            let interface = by_name(&interfaces, name);
            assert_eq!((interface.kind, interface.up), (kind, up), "{name}");
        }
    });
}

#[test]
fn changes_of_addresses_links_and_routes_are_noticed() {
    on_a_lan("changes_of_addresses_links_and_routes_are_noticed", async || {
        let lan = Lan::new();
        let mut changes = lan.watch().unwrap();
        change(&mut changes).await;

        ip("addr add 192.168.77.11/26 dev eth0");
        change(&mut changes).await;
        assert!(by_name(&lan.snapshot().await.unwrap(), "eth0").has_address(at("192.168.77.11")));
        // The snapshot made the gateway's MAC known, which the watcher tells once.
        change(&mut changes).await;

        ip("route del default");
        change(&mut changes).await;
        ip("-n lan link set p-node down");
        change(&mut changes).await;
        assert!(!by_name(&lan.snapshot().await.unwrap(), "eth0").up);
        ip("-n lan link set p-node up");
        change(&mut changes).await;
        assert!(by_name(&lan.snapshot().await.unwrap(), "eth0").up);
    });
}

#[test]
fn another_router_at_the_same_address_is_noticed() {
    on_a_lan("another_router_at_the_same_address_is_noticed", async || {
        let lan = Lan::new();
        lan.snapshot().await.unwrap();
        let mut changes = lan.watch().unwrap();
        change(&mut changes).await;

        ip("-n lan link set br0 address 02:00:00:00:00:02");
        // Stands for the traffic that makes the system ask again.
        ip("neigh flush dev eth0");
        let interfaces = lan.snapshot().await.unwrap();
        assert_eq!(by_name(&interfaces, "eth0").gateways[0].mac, Some(Mac([2, 0, 0, 0, 0, 2])));
        change(&mut changes).await;
    });
}

#[test]
fn a_flood_of_events_is_answered_by_one_reading() {
    on_a_lan("a_flood_of_events_is_answered_by_one_reading", async || {
        let lan = Lan::new();
        let mut changes = lan.watch().unwrap();
        change(&mut changes).await;
        // Far more events than the socket's buffer holds.
        let lines: String =
            (0..20_000).map(|n| format!("route add 10.{}.{}.0/24 dev eth0\n", n / 250, n % 250)).collect();
        fs::write("/run/batch", lines + "addr add 192.168.77.12/26 dev eth0\n").unwrap();
        ip("-batch /run/batch");
        change(&mut changes).await;
        assert!(by_name(&lan.snapshot().await.unwrap(), "eth0").has_address(at("192.168.77.12")));
    });
}

#[test]
fn a_device_is_found_at_its_last_address_without_a_sweep() {
    on_a_lan("a_device_is_found_at_its_last_address_without_a_sweep", async || {
        for address in ["192.168.77.50", "fd00:77::50"] {
            ip("neigh flush dev eth0");
            let before = datagrams_sent();
            let request = FindDevice { last_address: Some(at(address)), ..without_sweep(DEVICE) };
            assert_eq!(find(&Lan::new(), &request).await, found(address));
            assert_eq!(datagrams_sent(), before + 1);
        }
    });
}

#[test]
fn a_device_is_found_by_a_sweep_and_again_after_it_changed_its_address() {
    on_a_lan("a_device_is_found_by_a_sweep_and_again_after_it_changed_its_address", async || {
        let lan = Lan::new();
        assert_eq!(find(&lan, &FindDevice::new(DEVICE)).await, found("192.168.77.50"));

        // The table vouches for the old address for another half minute.
        move_device("192.168.77.50", "192.168.77.60");
        let request = FindDevice { last_address: Some(at("192.168.77.50")), ..FindDevice::new(DEVICE) };
        assert_eq!(find(&lan, &request).await, found("192.168.77.60"));
        // Now two entries have its MAC, and only one answers.
        assert_eq!(find(&lan, &without_sweep(DEVICE)).await, found("192.168.77.60"));
        assert_eq!(find(&Lan::new(), &without_sweep(DEVICE)).await, found("192.168.77.60"));
    });
}

/// A Linux system says about once a second, and six times at once, that nobody listens on a port (`icmp_ratelimit`). Its silence in
/// between once made the sixth connection of a web page wait for a sweep.
#[test]
fn a_device_that_is_tired_of_answering_is_found_without_a_sweep() {
    on_a_lan("a_device_that_is_tired_of_answering_is_found_without_a_sweep", async || {
        let lan = Lan::new();
        let request = FindDevice { last_address: Some(at("192.168.77.50")), ..FindDevice::new(DEVICE) };
        let before = datagrams_sent();
        for _search in 0..20 {
            assert_eq!(find(&lan, &request).await, found("192.168.77.50"));
        }
        assert_eq!(datagrams_sent(), before + 20);
    });
}

#[test]
fn a_silent_device_is_found_and_after_a_failed_dial_looked_for_elsewhere() {
    on_a_lan("a_silent_device_is_found_and_after_a_failed_dial_looked_for_elsewhere", async || {
        let _silent = discard_on_device();
        let lan = Lan::new();
        let mut request = FindDevice { last_address: Some(at("192.168.77.50")), ..FindDevice::new(DEVICE) };
        assert_eq!(find(&lan, &request).await, found("192.168.77.50"));
        assert_eq!(find(&lan, &request).await, found("192.168.77.50"));

        move_device("192.168.77.50", "192.168.77.60");
        request.suspect = request.last_address;
        assert_eq!(find(&lan, &request).await, found("192.168.77.60"));
    });
}

#[test]
fn of_several_old_entries_the_one_that_answers_now_counts() {
    on_a_lan("of_several_old_entries_the_one_that_answers_now_counts", async || {
        for address in ["192.168.77.40", "192.168.77.50", "192.168.77.60", "fd00:77::60"] {
            ip(&format!("neigh replace {address} lladdr {DEVICE} nud stale dev eth0"));
        }
        assert_eq!(find(&Lan::new(), &without_sweep(DEVICE)).await, found("192.168.77.50"));
    });
}

#[test]
fn an_old_entry_counts_once_the_system_has_confirmed_it_and_not_if_nobody_is_there() {
    on_a_lan("an_old_entry_counts_once_the_system_has_confirmed_it_and_not_if_nobody_is_there", async || {
        let _silent = discard_on_device();
        // The system then takes about one second instead of eight.
        fs::write("/proc/sys/net/ipv4/neigh/eth0/delay_first_probe_time", "0").unwrap();
        fs::write("/proc/sys/net/ipv4/neigh/eth0/retrans_time_ms", "200").unwrap();
        ip(&format!("neigh replace 192.168.77.50 lladdr {DEVICE} nud stale dev eth0"));
        assert_eq!(find(&Lan::new(), &without_sweep(DEVICE)).await, found("192.168.77.50"));

        ip(&format!("neigh replace 192.168.77.40 lladdr {ABSENT} nud stale dev eth0"));
        assert_eq!(find(&Lan::new(), &without_sweep(ABSENT)).await, Presence::Absent { swept: 0 });
    });
}

#[test]
fn an_entry_of_the_administrator_is_believed() {
    on_a_lan("an_entry_of_the_administrator_is_believed", async || {
        let _silent = discard_on_device();
        ip(&format!("neigh replace 192.168.77.50 lladdr {DEVICE} nud permanent dev eth0"));
        assert_eq!(find(&Lan::new(), &without_sweep(DEVICE)).await, found("192.168.77.50"));
    });
}

#[test]
fn a_mac_in_very_many_entries_costs_few_datagrams() {
    on_a_lan("a_mac_in_very_many_entries_costs_few_datagrams", async || {
        for last in 11..=45 {
            ip(&format!("neigh replace 192.168.77.{last} lladdr {ABSENT} nud stale dev eth0"));
        }
        fs::write("/proc/sys/net/ipv4/neigh/eth0/delay_first_probe_time", "0").unwrap();
        fs::write("/proc/sys/net/ipv4/neigh/eth0/retrans_time_ms", "200").unwrap();
        let before = datagrams_sent();
        assert_eq!(find(&Lan::new(), &without_sweep(ABSENT)).await, Presence::Absent { swept: 0 });
        assert_eq!(datagrams_sent(), before + 8);
    });
}

#[test]
fn a_mac_in_very_many_entries_is_still_found_where_it_turns_up() {
    on_a_lan("a_mac_in_very_many_entries_is_still_found_where_it_turns_up", async || {
        let lan = Lan::new();
        assert_eq!(find(&lan, &FindDevice::new(DEVICE)).await, found("192.168.77.50"));
        move_device("192.168.77.50", "192.168.77.60");
        for last in 11..=45 {
            ip(&format!("neigh replace 192.168.77.{last} lladdr {DEVICE} nud stale dev eth0"));
        }
        assert_eq!(find(&lan, &FindDevice::new(DEVICE)).await, found("192.168.77.60"));
    });
}

#[test]
fn an_absent_device_is_given_up_after_every_address_was_tried_once() {
    on_a_lan("an_absent_device_is_given_up_after_every_address_was_tried_once", async || {
        let before = datagrams_sent();
        // 64 addresses without network, broadcast, router and this node.
        assert_eq!(find(&Lan::new(), &FindDevice::new(ABSENT)).await, Presence::Absent { swept: 60 });
        assert_eq!(datagrams_sent(), before + 60);
    });
}

#[test]
fn a_search_that_may_not_sweep_sends_to_no_address_that_nobody_named() {
    on_a_lan("a_search_that_may_not_sweep_sends_to_no_address_that_nobody_named", async || {
        let before = datagrams_sent();
        assert_eq!(find(&Lan::new(), &without_sweep(ABSENT)).await, Presence::Absent { swept: 0 });
        assert_eq!(datagrams_sent(), before);
        let request = FindDevice { last_address: Some(at("192.168.77.50")), ..without_sweep(ABSENT) };
        assert_eq!(
            find(&Lan::new(), &request).await,
            Presence::Absent { swept: 0 },
            "another device is there"
        );
        assert_eq!(datagrams_sent(), before + 1);
    });
}

#[test]
fn nothing_is_sent_for_routers_this_node_and_addresses_elsewhere() {
    on_a_lan("nothing_is_sent_for_routers_this_node_and_addresses_elsewhere", async || {
        let lan = Lan::new();
        lan.snapshot().await.unwrap();
        let before = datagrams_sent();
        for (mac, reason) in [(ROUTER, Forbidden::Gateway), (NODE, Forbidden::Own)] {
            assert_eq!(find(&lan, &FindDevice::new(mac)).await, Presence::Refused(reason));
        }
        for last in ["192.168.77.1", "192.168.77.10", "192.168.77.63", "127.0.0.1", "10.1.1.1", "fe80::1"] {
            let request = FindDevice { last_address: Some(at(last)), ..without_sweep(DEVICE) };
            assert_eq!(find(&lan, &request).await, Presence::Absent { swept: 0 }, "{last}");
        }
        assert_eq!(datagrams_sent(), before);
    });
}

#[test]
fn a_device_on_another_interface_than_its_locations_is_absent() {
    on_a_lan("a_device_on_another_interface_than_its_locations_is_absent", async || {
        let request = FindDevice {
            interface: Some(index("lo")),
            last_address: Some(at("192.168.77.50")),
            ..FindDevice::new(DEVICE)
        };
        assert_eq!(find(&Lan::new(), &request).await, Presence::Absent { swept: 0 });
    });
}

async fn find(lan: &Lan, request: &FindDevice) -> Presence {
    tokio::time::timeout(MAX_FIND, lan.find(request)).await.expect("every search ends").unwrap()
}

async fn change(changes: &mut LanChanges) {
    tokio::time::timeout(FOREVER, changes.changed()).await.expect("the change is noticed").unwrap();
}

fn without_sweep(mac: Mac) -> FindDevice {
    FindDevice { max_swept_prefix: 0, ..FindDevice::new(mac) }
}

fn found(address: &str) -> Presence {
    Presence::Found(Found { address: at(address), interface: index("eth0") })
}

fn at(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn by_name<'a>(interfaces: &'a [Interface], name: &str) -> &'a Interface {
    interfaces.iter().find(|interface| interface.name == name).unwrap_or_else(|| panic!("there is no {name}"))
}

/// Runs the test as root of its own user, mount and network namespaces, with the LAN set up.
fn on_a_lan(name: &str, body: impl AsyncFnOnce()) {
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
    set_up_lan();
    block_on(body);
}

fn block_on(body: impl AsyncFnOnce()) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body());
}

/// Returns the command that runs another in new namespaces: by way of a user namespace, or as root where those are off.
fn unshare() -> Command {
    let choices = [&["--user", "--map-root-user", "--net", "--mount"][..], &["--net", "--mount"]];
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

/// The node is in the test's own namespace; the router is a bridge that connects all.
fn set_up_lan() {
    // For the names of the other namespaces.
    run("mount", "-t tmpfs tmpfs /run");
    for line in [
        "netns add lan",
        "netns add device",
        "link set lo up",
        "-n lan link add br0 address 02:00:00:00:00:01 type bridge",
        "link add eth0 address 02:00:00:00:00:10 type veth peer name p-node netns lan",
        "-n device link add eth0 address 02:00:00:00:00:77 type veth peer name p-device netns lan",
        "-n lan link set p-node master br0 up",
        "-n lan link set p-device master br0 up",
        "-n lan link set br0 up",
        "-n lan addr add 192.168.77.1/26 dev br0",
        "-n lan addr add fe80::1/64 dev br0 nodad",
        "-n device addr add 192.168.77.50/26 dev eth0",
        "-n device addr add fd00:77::50/64 dev eth0 nodad",
        "-n device link set lo up",
        "-n device link set eth0 up",
        "addr add 192.168.77.10/26 dev eth0",
        "addr add fd00:77::10/64 dev eth0 nodad",
        "link set eth0 up",
        "route add default via 192.168.77.1",
        "-6 route add default via fe80::1 dev eth0",
    ] {
        ip(line);
    }
}

fn move_device(from: &str, to: &str) {
    ip(&format!("-n device addr del {from}/26 dev eth0"));
    ip(&format!("-n device addr add {to}/26 dev eth0"));
}

/// Makes the device take datagrams to the discard port in silence.
fn discard_on_device() -> UdpSocket {
    // A socket stays in the namespace where it was made, and the thread that went there ends.
    let thread = std::thread::spawn(|| {
        setns(fs::File::open("/run/netns/device").unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        UdpSocket::bind("0.0.0.0:9").unwrap()
    });
    thread.join().unwrap()
}

fn ip(arguments: &str) {
    run("ip", arguments);
}

fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split_whitespace()).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is not installed: {error}"));
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// How many UDP datagrams this namespace has sent, of both families.
fn datagrams_sent() -> u64 {
    let value = |text: &str, line: &str, column: &str| -> u64 {
        let mut rows = text.lines().filter(|row| row.starts_with(line));
        let place = rows.next().unwrap().split_whitespace().position(|name| name == column).unwrap();
        rows.next().unwrap().split_whitespace().nth(place).unwrap().parse().unwrap()
    };
    let v4 = value(&fs::read_to_string("/proc/self/net/snmp").unwrap(), "Udp:", "OutDatagrams");
    let v6 = fs::read_to_string("/proc/self/net/snmp6").unwrap();
    let row = v6.lines().find(|row| row.starts_with("Udp6OutDatagrams")).unwrap();
    v4 + row.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}
