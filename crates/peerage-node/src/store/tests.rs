use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use peerage_wire::cbor::MapWriter;
use peerage_wire::crypto::Real;
use peerage_wire::id::{Domain, NetworkId, RecordKey};
use peerage_wire::keys::IdentityKey;
use peerage_wire::record::{Draft, Header};

use super::*;

#[tokio::test]
async fn what_was_written_is_there_after_opening_again() {
    let (_temp, path) = database();
    let (store, contents) = Store::open(&path).unwrap();
    assert_eq!(contents, Contents::default());
    store.write(put(&[record(1, 1), record(2, 1)])).await.unwrap();
    store.write(put(&[record(1, 2)])).await.unwrap();
    let facts = vec![("root", Some(vec![1, 2, 3])), ("name", Some(b"old".to_vec()))];
    store.write(Batch { facts, ..Batch::default() }).await.unwrap();
    let facts = vec![("name", None)];
    store.write(Batch { changes: vec![delete(2)], facts }).await.unwrap();
    drop(store);
    let (_store, contents) = Store::open(&path).unwrap();
    assert_eq!(contents.records, [record(1, 2)]);
    assert_eq!(contents.facts, BTreeMap::from([("root".to_owned(), vec![1, 2, 3])]));
}

#[tokio::test]
async fn a_burst_is_answered_whole_and_what_waits_is_written_when_the_store_is_dropped() {
    let (_temp, path) = database();
    let (store, _) = Store::open(&path).unwrap();
    let answers: Vec<_> = (0..200).map(|key| store.submit(put(&[record(key, 1)]))).collect();
    drop(store);
    for answer in answers {
        assert_eq!(answer.await, Ok(Ok(())));
    }
    assert_eq!(Store::open(&path).unwrap().1.records.len(), 200);
}

#[test]
fn a_damaged_database_is_named_and_left_as_it_is() {
    let (_temp, path) = database();
    fs::write(&path, b"this is no database, whatever its name says; it is long enough to be read as one.")
        .unwrap();
    let before = fs::read(&path).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("move it away"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_damage_too() {
    let (_temp, path) = database();
    let (store, _) = Store::open(&path).unwrap();
    store.write(put(&[record(1, 1)])).await.unwrap();
    drop(store);
    let connection = Connection::open(&path).unwrap();
    connection.execute("UPDATE record SET bytes = x'00'", []).unwrap();
    drop(connection);
    assert!(matches!(Store::open(&path), Err(StoreError::Corrupt { .. })));
}

#[test]
fn a_newer_database_and_one_of_another_program_are_left_alone() {
    let (_temp, path) = database();
    drop(Store::open(&path).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Newer { found: 99, known: 1, .. })));

    let (_temp, path) = database();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let before = fs::read(&path).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Foreign { .. })));
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// Runs itself as a child that writes pairs of records and says which are safe, and kills it in the midst.
#[test]
fn what_was_acknowledged_survives_a_kill_at_any_moment_and_no_batch_is_torn() {
    const CHILD: &str = "PEERAGE_TEST_STORE";
    if let Some(path) = std::env::var_os(CHILD) {
        write_until_killed(Path::new(&path));
    }
    let (_temp, path) = database();
    let mut acknowledged = 0;
    for round in 1..=6 {
        let name = "store::tests::what_was_acknowledged_survives_a_kill_at_any_moment_and_no_batch_is_torn";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut numbers = lines.filter_map(|line| line.strip_prefix("safe ")?.parse::<u64>().ok());
        // A different number each time, so that the kill falls on different moments of a transaction.
        let last = numbers.by_ref().nth(round * 7).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still said before it died counts as well.
        acknowledged = numbers.last().unwrap_or(last).max(acknowledged);

        let (_store, contents) = Store::open(&path).unwrap();
        let versions: BTreeMap<_, _> = contents
            .records
            .iter()
            .map(|record| (record.header().key.0[0], record.header().version))
            .collect();
        assert_eq!(versions.get(&1), versions.get(&2), "a batch is whole or absent");
        assert!(versions.get(&1) >= Some(&acknowledged), "{versions:?} after {acknowledged}");
    }
}

fn write_until_killed(path: &Path) -> ! {
    let (store, contents) = Store::open(path).unwrap();
    let mut version = contents.records.first().map_or(0, |record| record.header().version);
    loop {
        version += 1;
        let written = store.submit(put(&[record(1, version), record(2, version)]));
        written.blocking_recv().unwrap().unwrap();
        // In one piece, so that the reader never sees half a number.
        std::io::stdout().write_all(format!("safe {version}\n").as_bytes()).unwrap();
    }
}

fn database() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("node.db");
    (temp, path)
}

fn put(records: &[Record]) -> Batch {
    Batch { changes: records.iter().cloned().map(Change::Put).collect(), facts: Vec::new() }
}

fn delete(key: u8) -> Change {
    Change::Delete { table: Table::Node, domain: Domain(1), key: RecordKey([key; 32]) }
}

fn record(key: u8, version: u64) -> Record {
    let identity = IdentityKey::from_seed(&[1; 32]);
    let header = Header {
        table: Table::Node,
        domain: Domain(1),
        key: RecordKey([key; 32]),
        version,
        expires: UnixTime::from_millis(version + 1_000),
        signer: identity.node_id(Domain::OPERATORS),
        removed: false,
    };
    let draft = Draft { header, public: MapWriter::new(), private: None };
    draft.sign(&identity, &NetworkId([2; 32]), &Real).unwrap()
}

#[tokio::test]
async fn the_disk_gets_back_at_the_next_start_what_is_not_used_any_more() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("node.db");
    let size = || fs::metadata(&path).unwrap().len();
    let (store, _) = Store::open(&path).unwrap();
    let fact = |value| Batch { changes: Vec::new(), facts: vec![("large", value), ("small", Some(vec![7]))] };
    store.write(fact(Some(vec![1; 20 << 20]))).await.unwrap();
    store.write(fact(None)).await.unwrap();
    drop(store);
    assert!(size() > 20 << 20);
    let (store, contents) = Store::open(&path).unwrap();
    assert_eq!(contents.facts.get("small"), Some(&vec![7]));
    drop(store);
    assert!(size() < 1 << 20, "{}", size());
}
