//! What has to be done because time goes by.

use std::time::Duration;

use peerage_wire::id::Domain;
use peerage_wire::record::{OperatorBody, Table};
use rusqlite::params;

use super::{Actor, LedgerError, OperatorDraft, OperatorRecordError, Tx, millis};

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Life of an epoch key if nobody is revoked. Shorter costs one record for each node and device each time; longer
/// lets a member who has left read what is new for longer.
const EPOCH_LIFE: Duration = DAY.saturating_mul(30);

/// Most records that one transaction signs anew, so that nobody waits long for the ledger.
pub(super) const MAX_BATCH: u32 = 500;

/// How long a removed device, and a member that has left, is remembered: longer than any of its records lived.
const MEMORY: Duration = DAY.saturating_mul(366);

/// What one round of upkeep has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upkeep {
    /// There is more; another round should follow at once.
    More,
    /// Nothing is left to be done.
    Done,
}

impl Tx<'_> {
    /// Does one round of what is due: one domain's new epoch, or one batch of records at half of their life.
    pub(crate) fn upkeep(&mut self) -> Result<Upkeep, LedgerError> {
        if let Some(domain) = self.domain_with_old_epoch()? {
            self.reseal(domain)?;
            self.audit(Actor::Operator, "epoch begin", &domain.to_string())?;
            return Ok(Upkeep::More);
        }
        let devices = self.renew_devices()?;
        let keys = self.renew_domain_keys()?;
        let super_nodes = self.renew_super_nodes()?;
        self.renew_operator_record()?;
        if devices.max(keys).max(super_nodes) >= MAX_BATCH as usize {
            return Ok(Upkeep::More);
        }
        self.forget_ended_records()?;
        self.forget_the_past()?;
        self.trim_audit()?;
        Ok(Upkeep::Done)
    }

    fn domain_with_old_epoch(&self) -> Result<Option<Domain>, LedgerError> {
        let mut select = self.sql.prepare_cached(
            "SELECT domain FROM epoch WHERE domain IN (SELECT id FROM domain WHERE revoked_at IS NULL)
             GROUP BY domain HAVING max(created_at) <= ?1 ORDER BY max(created_at) LIMIT 1",
        )?;
        let mut rows = select.query([millis(self.now.before(EPOCH_LIFE))])?;
        rows.next()?.map(|row| Ok(Domain(row.get(0)?))).transpose()
    }

    fn renew_devices(&mut self) -> Result<usize, LedgerError> {
        let due = self.aged(Table::EndDevice, half_life(Table::EndDevice), MAX_BATCH)?;
        for (domain, key) in &due {
            let keys = self.domain_keys(*domain)?;
            // What belongs to an excluded domain ends.
            let excluded = self.is_domain_revoked(*domain)?;
            match self.device_of_record(*domain, *key)?.filter(|_| !excluded) {
                Some(device) => drop(self.publish_device(&keys, *domain, &device.body.device)?),
                None => self.bury(Table::EndDevice, *domain, *key)?,
            }
        }
        Ok(due.len())
    }

    fn renew_domain_keys(&mut self) -> Result<usize, LedgerError> {
        let due = self.aged(Table::DomainKey, half_life(Table::DomainKey), MAX_BATCH)?;
        for (domain, key) in &due {
            let node = peerage_wire::id::NodeId { domain: *domain, hash: key.0 };
            let excluded = self.is_domain_revoked(*domain)?;
            match self.node(node)?.filter(|row| row.is_valid_at(self.now) && !excluded) {
                Some(row) => {
                    let keys = self.domain_keys(*domain)?;
                    self.give_keys(&keys, node, &row.receiving)?;
                }
                // Its Node record has ended: it gets the keys again when it renews that.
                None => self.bury(Table::DomainKey, *domain, *key)?,
            }
        }
        Ok(due.len())
    }

    /// Renews this operator's own record at half of its life, if the root key is here.
    fn renew_operator_record(&mut self) -> Result<(), LedgerError> {
        let Some(record) = self.own_operator_record()? else { return Ok(()) };
        let renew_at = record.header().made_at().after(half_life(Table::OperatorNode));
        if self.now < renew_at || self.signer.root.is_none() {
            return Ok(());
        }
        let body = OperatorBody::read(&record)?;
        let draft = OperatorDraft { enrolment: body.enrolment, addresses: body.addresses };
        match self.make_operator_record(&draft) {
            Ok(_) | Err(OperatorRecordError::NoRoot) => Ok(()),
            Err(OperatorRecordError::Ledger(error)) => Err(error),
        }
    }

    fn forget_the_past(&mut self) -> Result<(), LedgerError> {
        let before = millis(self.now.before(MEMORY));
        self.sql.execute("DELETE FROM device WHERE removed_at <= ?1", [before])?;
        self.sql.execute("DELETE FROM node WHERE state = 3 AND expires_at <= ?1", params![before])?;
        self.sql.execute("DELETE FROM quarantine WHERE ended_at <= ?1", [before])?;
        Ok(())
    }
}

pub(super) const fn half_life(table: Table) -> Duration {
    Duration::from_secs(table.max_life().as_secs() / 2)
}
