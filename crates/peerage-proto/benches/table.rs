//! What a table of records costs: `cargo bench -p peerage-proto --bench table`.
//!
//! Prints the time of each operation at several sizes, and what a record takes in memory besides its own bytes. It reports and
//! judges nothing.

#![expect(clippy::print_stdout, reason = "a bench reports on standard output")]
#![expect(clippy::disallowed_methods, reason = "a bench reads the clock; the code under it does not")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up may end at once")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use peerage_proto::reconcile::{Reconciliation, answer};
use peerage_proto::table::{Inserted, RECORD_OVERHEAD, Records};
use peerage_wire::cbor::MapWriter;
use peerage_wire::id::{Domain, NodeId, PlaceKey, PlacementKey, RecordKey, Segment, sha256};
use peerage_wire::message::{Page, Reply, Request};
use peerage_wire::record::{Record, Table, UnverifiedRecord};
use peerage_wire::time::UnixTime;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

/// Domains that the records belong to.
const DOMAINS: u32 = 50;

const SIZES: [u32; 3] = [10_000, 100_000, 1_000_000];

/// Differences between two replicas.
const DIFFERENCES: u32 = 10;

/// A record of 300 bytes, which is about what a device takes, signed by nobody.
fn record(name: u32, version: u64) -> Record {
    let mut map = MapWriter::new();
    map.uint(1, Table::EndDevice.number())
        .uint(2, 1 + name % DOMAINS)
        .bytes(3, &sha256(&[&name.to_be_bytes()]))
        .uint(4, version)
        .uint(5, NOW.after(Duration::from_secs(3_600)).as_millis())
        .bytes(6, &NodeId { domain: Domain::OPERATORS, hash: [9; 32] }.to_bytes())
        .map(8, &MapWriter::new())
        .bytes(200, &[7; 134]);
    let mut bytes = map.finish();
    bytes.extend_from_slice(&[0; 64]);
    UnverifiedRecord::parse(&Bytes::from(bytes)).unwrap().trust_own_store()
}

/// Resident memory of this process in bytes; 0 where the system does not tell.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4_096
}

fn time<T>(times: u32, mut run: impl FnMut() -> T) -> Duration {
    let started = Instant::now();
    for _ in 0..times {
        black_box(run());
    }
    started.elapsed() / times
}

/// Brings one replica up to date from another and returns how many requests that took.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a reconciliation that gives nothing makes two kinds of requests"
)]
fn reconcile(records: &mut Records, other: &Records) -> u32 {
    let mut run = Reconciliation::new(&[Table::EndDevice], Segment::ALL, 0);
    let mut requests = 0;
    while let Some((id, request)) = run.poll(records, NOW) {
        requests += 1;
        let reply = match request {
            Request::Reconcile { table, from, to, summary } => {
                Reply::Reconciled(answer(other, table, from, to, summary))
            }
            Request::TransferPartition { table, range, after } => {
                let found = other.in_range(table, range, after).map(|record| record.bytes().clone());
                Reply::Partition(Page::fill(found, 1_200))
            }
            other => panic!("{other:?}"),
        };
        run.answered(id, reply, |bytes| {
            let record = UnverifiedRecord::parse(&bytes).ok()?.trust_own_store();
            Some(records.offer(record, NOW).outcome)
        });
    }
    requests
}

fn main() {
    println!(
        "{:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>14} {:>9}",
        "records", "insert", "all", "half", "domain", "parts", "find", "reconcile", "overhead"
    );
    for size in SIZES {
        let made: Vec<_> = (0..size).map(|name| record(name, 1)).collect();
        let before = resident();
        let mut records = Records::default();
        let started = Instant::now();
        for record in &made {
            assert_eq!(records.insert(record.clone()), Inserted::New);
        }
        let insert = started.elapsed() / size;
        // The bytes of the records themselves are shared with the list.
        let overhead = resident().saturating_sub(before) / size as usize;
        let half = PlaceKey::first_at(PlacementKey((u64::from(DOMAINS / 2) << 32) | 0x8765_4321));
        let all = time(100, || records.stretch_summary(Table::EndDevice, PlaceKey::MIN, PlaceKey::MAX));
        let part = time(100, || records.stretch_summary(Table::EndDevice, PlaceKey::MIN, half));
        let domain = time(100, || records.summary(Table::EndDevice, Domain(7), NOW));
        let parts = time(100, || records.parts(Table::EndDevice, PlaceKey::MIN, PlaceKey::MAX, 13));
        let find = time(1_000, || records.get(Table::EndDevice, Domain(7), RecordKey([7; 32])).is_some());
        let mut newer = records.clone();
        for n in 0..DIFFERENCES {
            newer.insert(record(n * (size / DIFFERENCES), 2));
        }
        let started = Instant::now();
        let requests = reconcile(&mut records, &newer);
        let took = started.elapsed();
        println!(
            "{size:>9} {insert:>9.1?} {all:>9.1?} {part:>9.1?} {domain:>9.1?} {parts:>9.1?} {find:>9.1?} {:>14} {overhead:>9}",
            format!("{requests} in {took:.1?}")
        );
    }
    println!("the overhead that is counted: {RECORD_OVERHEAD} bytes");
}
