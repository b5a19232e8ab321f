//! The table of records: writes that are safe on disk, the start with what was written, and memory.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use peerage_node::store::{Batch, Store};
use peerage_proto::{node::Change, table::Records};
use peerage_wire::{
    cbor::MapWriter,
    id::{Domain, NodeId, sha256},
    record::{Record, Table, UnverifiedRecord},
    time::UnixTime,
};

use super::{
    How, agree,
    machine::{milliseconds, resident, synced_writes},
    report::{Case, Report, Run},
};

/// Records that are written before an answer is waited for, as when a super-node is offered what its fellows hold.
const UNDER_WAY: usize = 64;

/// Domains that the records belong to.
const DOMAINS: u32 = 50;

/// Bytes of a record of a device, about, so that the reference writes as many.
const FILLING_BYTES: usize = 134;

/// Makes a record of about 300 bytes, which is what a device takes, signed by nobody.
fn record(name: u32, version: u64) -> Result<Record> {
    let expires = UnixTime::from_secs(4_000_000_000);
    let mut map = MapWriter::new();
    map.uint(1, Table::EndDevice.number())
        .uint(2, 1 + name % DOMAINS)
        .bytes(3, &sha256(&[&name.to_be_bytes()]))
        .uint(4, version)
        .uint(5, expires.as_millis())
        .bytes(6, &NodeId { domain: Domain::OPERATORS, hash: [9; 32] }.to_bytes())
        .map(8, &MapWriter::new())
        .bytes(200, &[7; FILLING_BYTES]);
    let mut bytes = map.finish();
    bytes.extend_from_slice(&[0; 64]);
    let parsed = UnverifiedRecord::parse(&bytes.into());
    Ok(parsed.map_err(|_| anyhow::anyhow!("the record of the bench is none"))?.trust_own_store())
}

/// Measures with so many records.
pub(super) fn table(how: &How, count: u32) -> Result<Report> {
    let directory = tempfile::Builder::new().prefix("peerage-bench-").tempdir()?;
    let made: Vec<Record> = (0..count).map(|name| record(name, 1)).collect::<Result<_>>()?;
    // Before anything else has used memory that would only be used again.
    let memory = memory(&made);
    let (mut writes, mut loads, mut finds) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..how.runs() {
        let path = directory.path().join(format!("plain{run}"));
        let plain = synced_writes(&path, 2 * FILLING_BYTES, how.length())?;
        let path = directory.path().join(format!("store{run}.db"));
        let own = store_writes(&path, &made)?;
        writes.push(Run::new(own, plain));
        let began_at = Instant::now();
        let bytes = std::fs::read(&path)?.len();
        let read = began_at.elapsed();
        ensure!(bytes > 0, "nothing was written");
        let began_at = Instant::now();
        let (_store, contents) = Store::open(&path)?;
        loads.push(Run::new(milliseconds(began_at.elapsed()), milliseconds(read)));
        ensure!(contents.records.len() == made.len(), "the store has lost records");
        finds.push(find(&made)?);
    }
    // From everywhere in the table.
    let step = (count / agree::DIFFERENCES).max(1) as usize;
    let newer = (0..count).step_by(step).map(|name| record(name, 2)).collect::<Result<Vec<_>>>()?;
    let agreed = agree::agree(how.runs(), &made, &newer)?;
    let cases = vec![
        Case::new("records written durably a second, 64 under way", writes),
        Case::new("ms to open a store of them, against reading the file", loads).with("records", made.len()),
        Case::new("µs to find one in memory, against a sorted list", finds)
            .with("overhead_bytes_a_record", memory),
        agreed,
    ];
    Report::new(
        "table",
        "records a second",
        "appending as many bytes and waiting for the disk, one by one",
        cases,
    )
}

fn store_writes(path: &Path, records: &[Record]) -> Result<f64> {
    let (store, _nothing) = Store::open(path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let began_at = Instant::now();
    for some in records.chunks(UNDER_WAY) {
        let batch =
            |record: &Record| Batch { changes: vec![Change::Put(record.clone())], ..Batch::default() };
        let submitted: Vec<_> = some.iter().map(|record| store.submit(batch(record))).collect();
        for answer in submitted {
            runtime.block_on(answer).context("the store has ended")??;
        }
    }
    Ok(records.len() as f64 / began_at.elapsed().as_secs_f64())
}

/// Looks each record up, in the table and in a sorted list.
fn find(made: &[Record]) -> Result<Run> {
    let mut records = Records::default();
    for record in made {
        records.insert(record.clone());
    }
    let mut sorted: Vec<_> = made.iter().map(|record| record.header().id()).collect();
    sorted.sort_unstable();
    let began_at = Instant::now();
    let found = made.iter().filter(|record| sorted.binary_search(&record.header().id()).is_ok()).count();
    let plain = began_at.elapsed();
    let began_at = Instant::now();
    let held = made.iter().filter(|record| {
        let (table, domain, key) = record.header().id();
        records.get(table, domain, key).is_some()
    });
    let held = held.count();
    let own = began_at.elapsed();
    ensure!(found == made.len() && held == found, "the table has lost records");
    let each = |time: Duration| (time.as_secs_f64() * 1e6 / made.len() as f64).max(1e-6);
    Ok(Run::new(each(own), each(plain)))
}

/// Returns how many bytes a record takes in the table besides its own, which it shares.
fn memory(made: &[Record]) -> f64 {
    let own = std::process::id();
    let before = resident(own);
    let mut records = Records::default();
    for record in made {
        records.insert(record.clone());
    }
    resident(own).saturating_sub(before) as f64 / made.len() as f64
}
