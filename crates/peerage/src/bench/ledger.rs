//! An operator's ledger with many members, written without asking the operator: letting them join one by one would take hours.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use peerage_node::clock::Clock;
use peerage_wire::{
    cbor::MapWriter,
    id::{Domain, NodeId, sha256},
    record::{NodeBody, Record, Roles, Table, UnverifiedRecord},
};
use rusqlite::{Connection, params};

/// How long the records are good: what an operator gives, less what the bench may take.
const LIFE: Duration = Duration::from_secs(20 * 86_400);

/// The member of this number, which exists as a record alone.
pub(super) fn member(domain: Domain, number: u64) -> NodeId {
    NodeId { domain, hash: sha256(&[&number.to_be_bytes()]) }
}

/// Adds the Node records of so many members to the ledger in a data directory whose operator is not running.
pub(super) fn fill(data: &Path, domain: Domain, count: u64) -> Result<()> {
    let mut members: Vec<_> = (0..count).map(|number| member(domain, number)).collect();
    // In the order of the table, which is written several times as fast so.
    members.sort_unstable();
    let mut ledger = Connection::open(data.join("ledger.db")).context("the operator has no ledger")?;
    let adding = ledger.transaction()?;
    {
        let mut insert = adding.prepare(
            "INSERT INTO record (kind, domain, key, version, expires_at, removed, bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6)",
        )?;
        for id in members {
            let record = record(id)?;
            let header = record.header();
            let (version, expires) =
                (i64::try_from(header.version)?, i64::try_from(header.expires.as_millis())?);
            let kind = header.table.number();
            insert.execute(params![kind, domain.0, header.key.0, version, expires, &record.bytes()[..]])?;
        }
    }
    Ok(adding.commit()?)
}

/// Makes a member's record, as long as any but signed by nobody: an operator trusts its own ledger.
fn record(id: NodeId) -> Result<Record> {
    let now = Clock::new().now().unix;
    let roles = Roles { tunnel: true, super_node: false };
    let body = NodeBody { identity: [1; 32], receiving: [2; 32], roles };
    let mut map = MapWriter::new();
    map.uint(1, Table::Node.number())
        .uint(2, id.domain.0)
        .bytes(3, &id.record_key().0)
        .uint(4, now.as_millis())
        .uint(5, now.after(LIFE).as_millis())
        .bytes(6, &NodeId { domain: Domain::OPERATORS, hash: [9; 32] }.to_bytes())
        .map(8, &body.write());
    let mut bytes = map.finish();
    bytes.extend_from_slice(&[0; 64]);
    let parsed = UnverifiedRecord::parse(&bytes.into());
    Ok(parsed.map_err(|_| anyhow!("the record of the bench is none"))?.trust_own_store())
}
