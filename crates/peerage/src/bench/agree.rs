//! Two holders of the same table brought to the same state, both in this process: what is computed and said, without sockets and seals.

use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use peerage_proto::{
    reconcile::{Ended, Reconciliation, answer},
    table::Records,
};
use peerage_wire::{
    id::Segment,
    limits::MAX_DATAGRAM,
    message::{Page, Reply, Request},
    record::{Record, Table, UnverifiedRecord},
    time::UnixTime,
};

use super::{
    machine::milliseconds,
    report::{Case, Run, median},
};

/// Records of which one holder has a newer version.
pub(super) const DIFFERENCES: u32 = 100;

/// When all that happens; every record is valid then.
const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

/// What it took.
struct Agreed {
    milliseconds: f64,
    requests: u32,
    /// Of requests and answers together.
    bytes: usize,
}

/// Measures how soon a table has what another has, `newer` records more, beside one that has nothing yet and fetches all.
pub(super) fn agree(runs: u32, held: &[Record], newer: &[Record]) -> Result<Case> {
    let table = |records: &[Record]| {
        let mut table = Records::default();
        for record in records {
            table.insert(record.clone());
        }
        table
    };
    let own = table(held);
    let mut other = own.clone();
    for record in newer {
        other.insert(record.clone());
    }
    let (mut took, mut requests, mut bytes) = (Vec::new(), 0, Vec::new());
    for _ in 0..runs {
        let all = fetch(&mut Records::default(), &other)?;
        let some = fetch(&mut own.clone(), &other)?;
        took.push(Run::new(some.milliseconds, all.milliseconds));
        bytes.push(some.bytes as f64 / all.bytes.max(1) as f64);
        requests = some.requests;
    }
    let name = format!("ms until {} of {} records that are newer are there", newer.len(), held.len());
    Ok(Case::new(name, took).with("requests", requests).with("part_of_the_bytes", median(bytes)))
}

/// Brings a table up to date from another.
fn fetch(records: &mut Records, other: &Records) -> Result<Agreed> {
    let began_at = Instant::now();
    let mut run = Reconciliation::new(&[Table::EndDevice], Segment::ALL, 0);
    let (mut requests, mut bytes) = (0, 0);
    while let Some((id, request)) = run.poll(records, NOW) {
        let reply = reply(&request, other)?;
        requests += 1;
        bytes += request.encode().len() + reply.encode().len();
        run.answered(id, reply, |bytes| {
            let record = UnverifiedRecord::parse(&bytes).ok()?.trust_own_store();
            Some(records.offer(record, NOW).outcome)
        });
    }
    ensure!(
        run.ended() == Some(Ended::Settled),
        "the tables do not come to the same state: {:?}",
        run.ended()
    );
    ensure!(records.len() == other.len(), "records are lacking");
    Ok(Agreed { milliseconds: milliseconds(began_at.elapsed()), requests, bytes })
}

fn reply(request: &Request, other: &Records) -> Result<Reply> {
    if let Request::Reconcile { table, from, to, summary } = request {
        return Ok(Reply::Reconciled(answer(other, *table, *from, *to, *summary)));
    }
    if let Request::TransferPartition { table, range, after } = request {
        let found = other.in_range(*table, *range, *after).map(|record| record.bytes().clone());
        return Ok(Reply::Partition(Page::fill(found, MAX_DATAGRAM)));
    }
    Err(anyhow!("a reconciliation asks something else"))
}
