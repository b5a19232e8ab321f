//! What the network costs in messages and bytes, as counted by the router of the Internet.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::ops::{AddAssign, Sub};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cast::{PATIENCE, Stage};
use crate::netns::Machine;

/// What a participant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Operator,
    SuperNode,
    Site,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::SuperNode => "super_node",
            Self::Site => "site",
        }
    }
}

/// Datagrams, and their bytes with IP headers, that were sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Traffic {
    pub(super) messages: f64,
    pub(super) bytes: f64,
}

impl Traffic {
    /// Returns this many times as much.
    fn times(self, factor: f64) -> Self {
        Self { messages: self.messages * factor, bytes: self.bytes * factor }
    }

    fn to_json(self) -> Value {
        json!({ "messages": rounded(self.messages), "bytes": self.bytes.round() })
    }
}

impl Sub for Traffic {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { messages: self.messages - other.messages, bytes: self.bytes - other.bytes }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
    }
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Counts the UDP traffic of everybody who has a public address.
pub(super) struct Meter<'a> {
    core: &'a Machine,
    addresses: BTreeMap<Ipv4Addr, Role>,
}

/// What was counted up to some time, for all of one role together.
pub(super) type Reading = BTreeMap<Role, Traffic>;

impl<'a> Meter<'a> {
    /// Begins to count.
    pub(super) fn install(stage: &'a Stage) -> Result<Self> {
        let lenders = stage.lenders.iter().map(|host| (host.address(), Role::SuperNode));
        let sites = stage.places.iter().map(|place| (place.site.public_address(), Role::Site));
        let operator = (stage.operator.address(), Role::Operator);
        let addresses: BTreeMap<_, _> = lenders.chain(sites).chain([operator]).collect();
        let (mut counters, mut rules) = (String::new(), String::new());
        for (address, number) in addresses.keys().zip(0..) {
            let name = format!("c{number}");
            // Writing to a String cannot fail.
            let _ = writeln!(counters, " counter {name} {{ }}");
            for side in ["saddr", "daddr"] {
                let _ = writeln!(rules, "  meta l4proto udp ip {side} {address} counter name {name}");
            }
        }
        let core = stage.lab.core();
        core.load_nft(&format!(
            "table inet costs {{\n{counters} chain forward {{\n  type filter hook forward priority filter;\n{rules} }}\n}}\n"
        ))?;
        Ok(Self { core, addresses })
    }

    pub(super) fn read(&self) -> Result<Reading> {
        let listing = self.core.command("nft").args(["--json", "list", "counters"]).output(PATIENCE)?;
        let listing: Value = serde_json::from_str(&listing)?;
        let objects =
            listing.get("nftables").and_then(Value::as_array).context("unexpected output of nft")?;
        let counters: BTreeMap<&str, Traffic> =
            objects.iter().filter_map(|object| counter(object.get("counter")?)).collect();
        let mut reading = Reading::new();
        for (role, number) in self.addresses.values().zip(0..) {
            let name = format!("c{number}");
            *reading.entry(*role).or_default() +=
                *counters.get(name.as_str()).context("a counter is missing")?;
        }
        Ok(reading)
    }

    fn members(&self, role: Role) -> f64 {
        self.addresses.values().map(|other| f64::from(u8::from(*other == role))).sum()
    }
}

fn counter(counter: &Value) -> Option<(&str, Traffic)> {
    let number = |field| counter.get(field)?.as_f64();
    Some((counter.get("name")?.as_str()?, Traffic { messages: number("packets")?, bytes: number("bytes")? }))
}

/// What happens when nobody asks for anything.
pub(super) struct Idling {
    /// For all of one role together, in one second.
    per_second: Reading,
}

impl Idling {
    pub(super) fn between(before: &Reading, after: &Reading, time: Duration) -> Self {
        let per_second =
            difference(before, after).map(|(role, traffic)| (role, traffic.times(1.0 / time.as_secs_f64())));
        Self { per_second: per_second.collect() }
    }

    /// Returns what one participant of each role sends and receives in an hour.
    pub(super) fn per_hour(&self, meter: &Meter<'_>) -> Value {
        let hour = |(role, traffic): (&Role, &Traffic)| {
            let one = traffic.times(3600.0 / meter.members(*role).max(1.0));
            (role.name().to_owned(), one.to_json())
        };
        self.per_second.iter().map(hour).collect()
    }

    /// Returns what one of `count` things costs everybody of each role, beyond what idling would have cost meanwhile.
    pub(super) fn beyond(&self, before: &Reading, after: &Reading, time: Duration, count: usize) -> Value {
        let one = |(role, traffic): (Role, Traffic)| {
            let idle = self.per_second.get(&role).copied().unwrap_or_default().times(time.as_secs_f64());
            let count = f64::from(u32::try_from(count.max(1)).unwrap_or(u32::MAX));
            (role.name().to_owned(), (traffic - idle).times(1.0 / count).to_json())
        };
        difference(before, after).map(one).collect()
    }
}

fn difference(before: &Reading, after: &Reading) -> impl Iterator<Item = (Role, Traffic)> {
    after.iter().map(|(role, traffic)| (*role, *traffic - before.get(role).copied().unwrap_or_default()))
}
