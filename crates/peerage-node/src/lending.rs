//! What the owner of this computer lends to the network as a super-node, as far as he has said.
//!
//! What `peerage super on` and `super off` say is kept in the [store](crate::store) and goes before the configuration
//! file; what neither says has the defaults of [`SuperConfig`], by which nothing is lent.

use peerage_proto::node::SuperConfig;
use peerage_wire::time::UnixTime;

use crate::relay::{self, Caps};
use crate::store::{Batch, Contents};

const ON: &str = "super-on";
const MAX_BYTES: &str = "super-max-bytes";
const MAX_TUNNELS: &str = "super-max-tunnels";
const MAX_RATE: &str = "super-max-rate";
const MAX_DAILY: &str = "super-max-daily";
const RELAY_DAY: &str = "super-relay-day";

/// The least memory that can be lent: a few hundred records. With less, a super-node would refuse most of what its range
/// brings, and be a hole in the table.
pub const MIN_BYTES: u64 = 1 << 20;

/// The least rate that can be lent, in bytes a second. With less, a relayed tunnel would only look broken; whoever wants to
/// relay nothing lends no tunnels.
pub const MIN_RATE: u64 = 10_000;

/// What was said; `None` of what was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lending {
    /// Whether anything is lent.
    pub on: Option<bool>,
    /// Most memory for records, in bytes with what they cost in indices; they take about as much of the disk.
    pub max_bytes: Option<u64>,
    /// Most pairs of nodes whose tunnels are relayed at once.
    pub max_tunnels: Option<u32>,
    /// Most bytes a second that are relayed.
    pub max_rate: Option<u64>,
    /// Most bytes a day that are relayed.
    pub max_daily: Option<u64>,
}

/// A limit with which nothing useful could be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLittle {
    /// Of memory.
    #[error("a super-node needs at least 1 MiB of memory for records (max_memory)")]
    Memory,
    /// Of rate.
    #[error("a super-node relays at least 10 kB/s (max_rate); with max_tunnels 0 it relays nothing")]
    Rate,
}

impl Lending {
    /// Reads what was said by commands.
    pub fn load(contents: &Contents) -> Self {
        let fact = |name: &str| contents.facts.get(name).map(Vec::as_slice);
        let number = |name: &str| Some(u64::from_be_bytes(fact(name)?.try_into().ok()?));
        Self {
            on: number(ON).map(|on| on != 0),
            max_bytes: number(MAX_BYTES),
            max_tunnels: number(MAX_TUNNELS).and_then(|most| u32::try_from(most).ok()),
            max_rate: number(MAX_RATE),
            max_daily: number(MAX_DAILY),
        }
    }

    /// Returns the batch that keeps it.
    pub(crate) fn to_batch(self) -> Batch {
        let facts = [
            (ON, self.on.map(u64::from)),
            (MAX_BYTES, self.max_bytes),
            (MAX_TUNNELS, self.max_tunnels.map(u64::from)),
            (MAX_RATE, self.max_rate),
            (MAX_DAILY, self.max_daily),
        ];
        let facts = facts.map(|(name, value)| (name, value.map(|value| value.to_be_bytes().to_vec())));
        Batch { changes: Vec::new(), facts: facts.into() }
    }

    /// Returns this, with what it does not say taken from below.
    pub fn or(self, below: Self) -> Self {
        Self {
            on: self.on.or(below.on),
            max_bytes: self.max_bytes.or(below.max_bytes),
            max_tunnels: self.max_tunnels.or(below.max_tunnels),
            max_rate: self.max_rate.or(below.max_rate),
            max_daily: self.max_daily.or(below.max_daily),
        }
    }

    /// Makes sure that something useful can be done with the limits.
    ///
    /// # Errors
    /// If one is too little.
    pub fn check(&self) -> Result<(), TooLittle> {
        if self.max_bytes.is_some_and(|most| most < MIN_BYTES) {
            return Err(TooLittle::Memory);
        }
        if self.max_rate.is_some_and(|most| most < MIN_RATE) {
            return Err(TooLittle::Rate);
        }
        Ok(())
    }

    /// Returns what the node is told, with the defaults for what was not said.
    pub fn config(&self) -> SuperConfig {
        let usual = SuperConfig::default();
        SuperConfig {
            on: self.on.unwrap_or(usual.on),
            max_bytes: self.max_bytes.unwrap_or(usual.max_bytes),
            max_tunnels: self.max_tunnels.unwrap_or(usual.max_tunnels),
            max_rate: self.max_rate.unwrap_or(usual.max_rate),
            max_daily: self.max_daily.unwrap_or(usual.max_daily),
        }
    }
}

/// Returns the day of relayed bytes that an earlier run was in: when it ends, and how many bytes had passed.
pub(crate) fn relay_day(contents: &Contents) -> Option<(UnixTime, u64)> {
    let (ends, bytes) = contents.facts.get(RELAY_DAY)?.split_first_chunk::<8>()?;
    let ends = UnixTime::from_millis(u64::from_be_bytes(*ends));
    Some((ends, u64::from_be_bytes(bytes.try_into().ok()?)))
}

/// Returns the batch that keeps it.
pub(crate) fn keep_relay_day((ends, bytes): (UnixTime, u64)) -> Batch {
    let value = [ends.as_millis().to_be_bytes(), bytes.to_be_bytes()].concat();
    Batch { changes: Vec::new(), facts: vec![(RELAY_DAY, Some(value))] }
}

/// Returns what a relay may use of what is lent.
pub(crate) const fn caps(config: &SuperConfig) -> Caps {
    Caps { bytes_per_second: Some(config.max_rate), bytes_per_day: Some(config.max_daily) }
}

/// Lowers what is lent to what this computer has.
pub(crate) fn possible(config: SuperConfig) -> SuperConfig {
    let most = u32::try_from(relay::limits().tunnels).unwrap_or(u32::MAX);
    SuperConfig { max_tunnels: config.max_tunnels.min(most), ..config }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    const TOLD: Lending = Lending {
        on: Some(true),
        max_bytes: Some(8 << 20),
        max_tunnels: Some(0),
        max_rate: None,
        max_daily: Some(u64::MAX),
    };

    #[tokio::test]
    async fn what_was_said_is_there_after_a_restart_and_can_be_taken_back() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("node.db");
        let (store, contents) = Store::open(&path).unwrap();
        assert_eq!(Lending::load(&contents), Lending::default());
        store.write(TOLD.to_batch()).await.unwrap();
        drop(store);
        let (store, contents) = Store::open(&path).unwrap();
        assert_eq!(Lending::load(&contents), TOLD);
        let off = Lending { on: Some(false), ..TOLD };
        store.write(off.to_batch()).await.unwrap();
        drop(store);
        assert_eq!(Lending::load(&Store::open(&path).unwrap().1), off);
    }

    #[tokio::test]
    async fn the_day_of_relayed_bytes_is_there_after_a_restart() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("node.db");
        let (store, contents) = Store::open(&path).unwrap();
        assert_eq!(relay_day(&contents), None);
        let day = (UnixTime::from_millis(1_800_000_000_123), 77);
        store.write(keep_relay_day(day)).await.unwrap();
        drop(store);
        assert_eq!(relay_day(&Store::open(&path).unwrap().1), Some(day));
    }

    #[test]
    fn commands_go_before_the_file_and_that_before_the_defaults() {
        let file =
            Lending { on: Some(false), max_rate: Some(77_000), max_daily: Some(5), ..Lending::default() };
        let config = TOLD.or(file).config();
        let usual = SuperConfig::default();
        assert_eq!(
            config,
            SuperConfig {
                on: true,
                max_bytes: 8 << 20,
                max_tunnels: 0,
                max_rate: 77_000,
                max_daily: u64::MAX
            }
        );
        assert_eq!(Lending::default().config(), usual);
        assert!(!usual.on, "nothing is lent unless the owner says so");
    }

    #[test]
    fn limits_with_which_nothing_can_be_done_are_refused() {
        assert_eq!(TOLD.check(), Ok(()));
        let little = Lending { max_bytes: Some(MIN_BYTES - 1), ..TOLD };
        assert_eq!(little.check(), Err(TooLittle::Memory));
        let slow = Lending { max_rate: Some(MIN_RATE - 1), ..TOLD };
        assert_eq!(slow.check(), Err(TooLittle::Rate));
    }
}
