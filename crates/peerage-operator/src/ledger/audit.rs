//! Who has done what, for people who ask afterwards.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use peerage_wire::id::NodeId;
use rusqlite::params;

use super::{LedgerError, Tx, millis};

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// How long entries are kept: a year, and a month to notice that it is over.
const AUDIT_LIFE: Duration = DAY.saturating_mul(400);

/// Most entries that are kept, at some 200 bytes each. Fewer, and somebody who is refused often enough can push out
/// what an administrator did.
const MAX_AUDIT_ENTRIES: i64 = 1_000_000;

/// Most refusals that are noted a day: strangers can cause as many as they like.
const MAX_REFUSALS_A_DAY: i64 = 1_000;

/// Who caused an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Actor {
    /// Whoever holds the token of the admin API.
    Admin,
    /// A member, or somebody who wants to become one.
    Node(NodeId),
    /// Somebody without an id yet.
    Remote(IpAddr),
    /// The operator itself, because it was time.
    Operator,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => f.write_str("admin"),
            Self::Node(id) => write!(f, "node {id}"),
            Self::Remote(address) => write!(f, "remote {address}"),
            Self::Operator => f.write_str("operator"),
        }
    }
}

impl Tx<'_> {
    /// Notes who has done what to whom, in the same transaction as the deed.
    pub(super) fn audit(
        &mut self,
        actor: Actor,
        action: &'static str,
        subject: &str,
    ) -> Result<(), LedgerError> {
        let mut insert = self
            .sql
            .prepare_cached("INSERT INTO audit (at, actor, action, subject) VALUES (?1, ?2, ?3, ?4)")?;
        insert.execute(params![millis(self.now), actor.to_string(), action, subject])?;
        Ok(())
    }
    /// Notes what a node can repeat as often as it likes, at most once a day.
    pub(super) fn audit_once_a_day(
        &mut self,
        actor: Actor,
        action: &'static str,
        subject: &str,
    ) -> Result<(), LedgerError> {
        let noted: bool = self.sql.query_row(
            "SELECT EXISTS (SELECT 1 FROM audit WHERE action = ?3 AND at > ?1 AND actor = ?2 AND subject = ?4)",
            params![millis(self.now.before(DAY)), actor.to_string(), action, subject],
            |row| row.get(0),
        )?;
        if noted { Ok(()) } else { self.audit(actor, action, subject) }
    }

    /// Notes that somebody was not let in, each reason once a day for each address.
    pub(super) fn audit_refusal(&mut self, remote: IpAddr, subject: &str) -> Result<(), LedgerError> {
        const ACTION: &str = "node refuse";
        let noted: i64 = self.sql.query_row(
            "SELECT count(*) FROM audit WHERE action = ?1 AND at > ?2",
            params![ACTION, millis(self.now.before(DAY))],
            |row| row.get(0),
        )?;
        if noted >= MAX_REFUSALS_A_DAY {
            return Ok(());
        }
        self.audit_once_a_day(Actor::Remote(remote), ACTION, subject)
    }

    /// Deletes entries that are too old or too many.
    pub(super) fn trim_audit(&mut self) -> Result<(), LedgerError> {
        self.sql.execute("DELETE FROM audit WHERE at <= ?1", [millis(self.now.before(AUDIT_LIFE))])?;
        let newest: i64 = self.sql.query_row("SELECT ifnull(max(id), 0) FROM audit", [], |row| row.get(0))?;
        self.sql.execute("DELETE FROM audit WHERE id <= ?1", [newest.saturating_sub(MAX_AUDIT_ENTRIES)])?;
        Ok(())
    }

    /// Returns action and subject of all entries, oldest first.
    #[cfg(test)]
    pub(super) fn audit_entries(&self) -> Result<Vec<(String, String, String)>, LedgerError> {
        let mut select = self.sql.prepare("SELECT actor, action, subject FROM audit ORDER BY id")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
