//! Whether this computer's circumstances let it be a super-node: not while it runs on battery, not on a metered network.
//!
//! Linux tells neither by a plain flag, so both are judged by what `/sys` and `/proc` show:
//!
//! - *Battery*: a battery or UPS of the computer itself (not of a mouse) is discharging, and no mains or USB supply is online.
//! - *Metered*: of the interfaces with hardware behind them that have a default route, the one with the lowest metric (IPv4 and
//!   IPv6 each) is a cellular modem (`wwan…`, `wwp…`, `rmnet…`, or of that type in its `uevent`), a dial-up line (`ppp…`), a
//!   Bluetooth network (`bnep…`), or has a driver of modems and phones that lend their connection over USB.
//!
//! A Wi-Fi hot-spot of a phone looks like any other Wi-Fi, and a few docks use the driver of phones; so what is found can be
//! overridden in the configuration. On other systems nothing is found out, and a super-node must be told both.

#[cfg(target_os = "linux")]
use std::collections::BTreeMap;
#[cfg(target_os = "linux")]
use std::fs;
#[cfg(target_os = "linux")]
use std::path::{Path, PathBuf};
use std::time::Duration;

use peerage_proto::node::Input;

use crate::driver::NodeHandle;

/// How often it is looked. Longer, a super-node goes on burning a battery; shorter, an idle computer wakes up more often.
const INTERVAL: Duration = Duration::from_secs(30);

/// What the owner says about the circumstances, who knows better than the system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// Whether the network is metered; `None`: as it looks.
    pub metered: Option<bool>,
    /// Whether the computer runs on battery; `None`: as it looks.
    pub battery: Option<bool>,
}

impl Circumstances {
    /// Says that nothing stands against it, as where the whole network lives on one machine.
    pub const FIT: Self = Self { metered: Some(false), battery: Some(false) };

    /// Returns why the computer should not be a super-node now, if so. Reads a few small files.
    pub fn unfit(&self) -> Option<String> {
        self.unfit_on(&System::default())
    }

    fn unfit_on(&self, system: &System) -> Option<String> {
        match self.battery {
            Some(true) => return Some("it runs on battery, as the configuration says".to_owned()),
            Some(false) => {}
            None => {
                if let Some(why) = system.battery() {
                    return Some(why);
                }
            }
        }
        match self.metered {
            Some(true) => Some("the network is metered, as the configuration says".to_owned()),
            Some(false) => None,
            None => system.metered(),
        }
    }
}

/// Returns the input that says so.
pub(crate) fn input(unfit: Option<String>) -> Input {
    Input::Fitness { ok: unfit.is_none(), why: unfit.unwrap_or_default() }
}

/// Tells the node when its circumstances change, unless its owner has said all about them.
pub(crate) async fn watch(node: NodeHandle, circumstances: Circumstances, mut told: Option<String>) {
    if circumstances.metered.is_some() && circumstances.battery.is_some() {
        return;
    }
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Reading about a battery asks its controller, which may take its time.
        let Ok(now) = tokio::task::spawn_blocking(move || circumstances.unfit()).await else { return };
        if now != told {
            told.clone_from(&now);
            node.tell(input(now));
        }
    }
}

/// Where the system tells about itself.
#[cfg(target_os = "linux")]
#[derive(Clone, Debug)]
struct System {
    sys: PathBuf,
    proc: PathBuf,
}

#[cfg(target_os = "linux")]
impl Default for System {
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into() }
    }
}

/// Another system, of which nothing is found out.
#[cfg(not(target_os = "linux"))]
#[derive(Clone, Copy, Debug, Default)]
struct System;

#[cfg(not(target_os = "linux"))]
impl System {
    fn battery(&self) -> Option<String> {
        Some("this system does not tell whether it runs on battery; say so with `battery` in [super] of the configuration".to_owned())
    }

    fn metered(&self) -> Option<String> {
        Some("this system does not tell whether the network is metered; say so with `metered` in [super] of the configuration".to_owned())
    }
}

/// Drivers of modems and of phones that lend their connection over USB.
#[cfg(target_os = "linux")]
const METERED_DRIVERS: [&str; 10] = [
    "cdc_ether",
    "cdc_mbim",
    "cdc_ncm",
    "hso",
    "huawei_cdc_ncm",
    "ipheth",
    "qmi_wwan",
    "rndis_host",
    "sierra_net",
    "rndis_wlan",
];

/// How the names of interfaces begin that are paid by volume, most often.
#[cfg(target_os = "linux")]
const METERED_NAMES: [&str; 5] = ["wwan", "wwp", "rmnet", "ppp", "bnep"];

#[cfg(target_os = "linux")]
impl System {
    /// Returns why the computer is taken to run on battery, if so.
    fn battery(&self) -> Option<String> {
        let supplies = self.sys.join("class/power_supply");
        let mut discharging = None;
        // Virtual machines and containers may have no such folder, and no battery.
        for entry in fs::read_dir(supplies).ok()?.flatten() {
            let read = |name: &str| line(&entry.path().join(name));
            match read("type").as_str() {
                "Mains" | "USB" | "Wireless" if read("online") == "1" => return None,
                "Battery" | "UPS" if read("scope") != "Device" && read("status") == "Discharging" => {
                    discharging = Some(entry.file_name().to_string_lossy().into_owned());
                }
                _other => {}
            }
        }
        discharging.map(|name| format!("it runs on battery ({name})"))
    }

    /// Returns why the network is taken to be metered, if so.
    fn metered(&self) -> Option<String> {
        let ipv4 = self.default_interface(&read(&self.proc.join("net/route")), ipv4_default);
        let ipv6 = self.default_interface(&read(&self.proc.join("net/ipv6_route")), ipv6_default);
        [ipv4, ipv6].into_iter().flatten().find(|name| self.is_metered(name)).map(|name| {
            format!(
                "{name} looks like a metered network; if it is not, say `metered = false` in [super] of the \
                 configuration"
            )
        })
    }

    /// Returns the interface that the system prefers for what goes to the Internet, of those with hardware behind them: what
    /// goes through a VPN or a bridge goes through one of these in the end.
    fn default_interface(&self, table: &str, parse: fn(&str) -> Option<(u32, String)>) -> Option<String> {
        let mut routes: BTreeMap<u32, String> = BTreeMap::new();
        for (metric, name) in table.lines().filter_map(parse) {
            if self.is_hardware(&name) {
                routes.entry(metric).or_insert(name);
            }
        }
        routes.into_values().next()
    }

    fn interface(&self, name: &str) -> PathBuf {
        self.sys.join("class/net").join(name)
    }

    fn is_hardware(&self, name: &str) -> bool {
        has_metered_name(name) || self.interface(name).join("device").exists()
    }

    fn is_metered(&self, name: &str) -> bool {
        let interface = self.interface(name);
        let driver = fs::read_link(interface.join("device/driver")).ok();
        let driver = driver.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        let is_modem = read(&interface.join("uevent"))
            .lines()
            .any(|line| matches!(line, "DEVTYPE=wwan" | "DEVTYPE=bluetooth"));
        has_metered_name(name) || is_modem || driver.is_some_and(|driver| METERED_DRIVERS.contains(&driver))
    }
}

#[cfg(target_os = "linux")]
fn has_metered_name(name: &str) -> bool {
    METERED_NAMES.iter().any(|prefix| name.starts_with(prefix))
}

/// The route is usable (`RTF_UP`).
#[cfg(target_os = "linux")]
const UP: u32 = 0x1;

/// What it leads to is refused (`RTF_REJECT`).
#[cfg(target_os = "linux")]
const REJECT: u32 = 0x200;

/// Reads a line of `/proc/net/route`; returns metric and interface of a default route.
#[cfg(target_os = "linux")]
fn ipv4_default(line: &str) -> Option<(u32, String)> {
    let mut fields = line.split_ascii_whitespace();
    let (name, destination) = (fields.next()?, fields.next()?);
    let flags = u32::from_str_radix(fields.nth(1)?, 16).ok()?;
    let metric = fields.nth(2)?.parse().ok()?;
    let mask = fields.next()?;
    let is_default = destination == "00000000" && mask == "00000000" && flags & (UP | REJECT) == UP;
    is_default.then(|| (metric, name.to_owned()))
}

/// Reads a line of `/proc/net/ipv6_route`; returns metric and interface of a default route.
#[cfg(target_os = "linux")]
fn ipv6_default(line: &str) -> Option<(u32, String)> {
    let mut fields = line.split_ascii_whitespace();
    let (destination, length) = (fields.next()?, fields.next()?);
    let metric = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
    let flags = u32::from_str_radix(fields.nth(2)?, 16).ok()?;
    let name = fields.next()?;
    let is_default =
        destination.bytes().all(|digit| digit == b'0') && length == "00" && flags & (UP | REJECT) == UP;
    is_default.then(|| (metric, name.to_owned()))
}

/// Returns what a file of the system says; nothing if it is not there.
#[cfg(target_os = "linux")]
fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(target_os = "linux")]
fn line(path: &Path) -> String {
    read(path).trim().to_owned()
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const HEAD: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";

    /// A system without batteries and networks, below a folder of its own.
    struct Fake {
        root: tempfile::TempDir,
    }

    impl Fake {
        fn new() -> Self {
            let fake = Self { root: tempfile::tempdir().unwrap() };
            fake.write("proc/net/route", HEAD);
            fake.write("proc/net/ipv6_route", "");
            fake
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn supply(&self, name: &str, files: &[(&str, &str)]) {
            for (file, text) in files {
                self.write(&format!("sys/class/power_supply/{name}/{file}"), &format!("{text}\n"));
            }
        }

        fn interface(&self, name: &str, driver: Option<&str>) {
            self.write(&format!("sys/class/net/{name}/uevent"), &format!("INTERFACE={name}\n"));
            if let Some(driver) = driver {
                let device = self.root.path().join(format!("sys/class/net/{name}/device"));
                fs::create_dir_all(&device).unwrap();
                symlink(format!("../../../bus/usb/drivers/{driver}"), device.join("driver")).unwrap();
            }
        }

        fn routes(&self, routes: &[(&str, u32)]) {
            let line = |(name, metric): &(&str, u32)| {
                format!("{name}\t00000000\t0101A8C0\t0003\t0\t0\t{metric}\t00000000\t0\t0\t0\n")
            };
            self.write("proc/net/route", &(HEAD.to_owned() + &routes.iter().map(line).collect::<String>()));
        }

        fn unfit(&self, circumstances: Circumstances) -> Option<String> {
            let at = |folder: &str| self.root.path().join(folder);
            circumstances.unfit_on(&System { sys: at("sys"), proc: at("proc") })
        }

        fn looks_unfit(&self) -> Option<String> {
            self.unfit(Circumstances::default())
        }
    }

    #[test]
    fn a_computer_without_battery_on_an_ordinary_network_is_fit() {
        let fake = Fake::new();
        assert_eq!(fake.looks_unfit(), None);
        fake.interface("eth0", Some("e1000e"));
        fake.interface("docker0", None);
        fake.routes(&[("eth0", 100)]);
        assert_eq!(fake.looks_unfit(), None);
    }

    #[test]
    fn a_discharging_battery_makes_unfit_and_the_mains_make_fit_again() {
        let fake = Fake::new();
        fake.supply("BAT0", &[("type", "Battery"), ("status", "Discharging")]);
        fake.supply("AC", &[("type", "Mains"), ("online", "0")]);
        assert!(fake.looks_unfit().unwrap().contains("BAT0"));
        // Some batteries go on discharging a little while the mains feed the computer.
        fake.supply("AC", &[("online", "1")]);
        assert_eq!(fake.looks_unfit(), None);
        fake.supply("AC", &[("online", "0")]);
        fake.supply("BAT0", &[("status", "Full")]);
        assert_eq!(fake.looks_unfit(), None);
    }

    #[test]
    fn the_battery_of_a_mouse_is_none_of_the_computer() {
        let fake = Fake::new();
        fake.supply("hid-mouse", &[("type", "Battery"), ("scope", "Device"), ("status", "Discharging")]);
        assert_eq!(fake.looks_unfit(), None);
    }

    #[test]
    fn modems_dial_up_lines_and_tethered_phones_are_metered() {
        for (name, driver) in [
            ("wwan0", Some("anything")),
            ("wwp0s20u4", None),
            ("ppp0", None),
            ("bnep0", None),
            ("usb0", Some("rndis_host")),
            ("eth1", Some("ipheth")),
        ] {
            let fake = Fake::new();
            fake.interface(name, driver);
            fake.routes(&[(name, 700)]);
            assert!(fake.looks_unfit().is_some_and(|why| why.contains(name)), "{name}");
        }
        let fake = Fake::new();
        fake.interface("modem", Some("newer_than_this_list"));
        fake.write("sys/class/net/modem/uevent", "DEVTYPE=wwan\nINTERFACE=modem\n");
        fake.routes(&[("modem", 0)]);
        assert!(fake.looks_unfit().is_some());
    }

    #[test]
    fn the_preferred_network_with_hardware_behind_it_counts() {
        let fake = Fake::new();
        fake.interface("eth0", Some("e1000e"));
        fake.interface("wwan0", Some("qmi_wwan"));
        fake.interface("tun0", None);
        // A modem that stands by costs nothing.
        fake.routes(&[("eth0", 100), ("wwan0", 700)]);
        assert_eq!(fake.looks_unfit(), None);
        // A VPN that goes through the modem does.
        fake.routes(&[("tun0", 50), ("wwan0", 700)]);
        assert!(fake.looks_unfit().is_some());
        // Routes to somewhere are no default routes, and one that is down or refuses is none at all.
        let line = |destination: &str, flags: &str, mask: &str| {
            format!("wwan0\t{destination}\t00000000\t{flags}\t0\t0\t0\t{mask}\t0\t0\t0\n")
        };
        let routes = [
            line("0001A8C0", "0001", "00FFFFFF"),
            line("00000000", "0002", "00000000"),
            line("00000000", "0201", "00000000"),
            "garbage\n\n".to_owned(),
        ];
        fake.write("proc/net/route", &(HEAD.to_owned() + &routes.concat()));
        assert_eq!(fake.looks_unfit(), None);
    }

    #[test]
    fn a_default_route_of_ipv6_counts_too() {
        let fake = Fake::new();
        fake.interface("wwan0", Some("cdc_mbim"));
        let zero = "0".repeat(32);
        let route = |flags: &str, name: &str| {
            format!(
                "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 {flags}     {name}\n"
            )
        };
        // Where there is none, the system has one that refuses.
        fake.write("proc/net/ipv6_route", &route("00200200", "lo"));
        assert_eq!(fake.looks_unfit(), None);
        fake.write("proc/net/ipv6_route", &(route("00200200", "lo") + &route("00450003", "wwan0")));
        assert!(fake.looks_unfit().is_some());
    }

    #[test]
    fn the_owner_knows_better_than_the_system() {
        let fake = Fake::new();
        fake.supply("BAT0", &[("type", "Battery"), ("status", "Discharging")]);
        fake.interface("wwan0", Some("qmi_wwan"));
        fake.routes(&[("wwan0", 700)]);
        assert!(fake.looks_unfit().unwrap().contains("battery"));
        let battery = Circumstances { battery: Some(false), metered: None };
        assert!(fake.unfit(battery).unwrap().contains("wwan0"));
        assert_eq!(fake.unfit(Circumstances::FIT), None);
        let said = Circumstances { battery: Some(false), metered: Some(true) };
        assert!(Fake::new().unfit(said).unwrap().contains("configuration"));
    }
}
