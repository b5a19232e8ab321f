//! What a ledger is worth whose process has died.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::*;
use rusqlite::trace::{TraceEvent, TraceEventCodes};

/// Set for the child of [`whatever_a_killed_process_had_acknowledged_is_there`].
const CHILD: &str = "PEERAGE_TEST_CRASH_DIR";

thread_local! {
    /// Where to copy the ledger from and to, and how many copies there are.
    static COPIES: RefCell<Option<(PathBuf, PathBuf, usize)>> = const { RefCell::new(None) };
}

/// Copies the ledger as a process that dies at this statement would leave it.
fn copy_at_statement(_event: TraceEvent<'_>) {
    COPIES.with_borrow_mut(|copies| {
        if let Some((from, to, count)) = copies {
            copy(from, &to.join(count.to_string()));
            *count += 1;
        }
    });
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in ["ledger.db", "ledger.db-wal"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

/// Everything that one can see in a ledger and that must change together.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Picture {
    records: Vec<(u8, Vec<u8>, u64, bool)>,
    uses: Vec<u32>,
    nodes: Vec<(NodeId, u8)>,
    devices: Vec<(String, usize)>,
    epochs: Vec<u32>,
    map_version: u64,
    quarantined: Vec<NodeId>,
    revoked: bool,
    audit: usize,
}

fn picture(path: &Path, domain: Domain) -> Picture {
    let mut ledger = open(&path.join("ledger.db"));
    let intact: String = ledger.connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(intact, "ok");
    let read = |tx: &mut Tx<'_>| {
        let mut records: Vec<_> = tx.records()?;
        records.sort_by_key(|record| record.header().id());
        let record = |r: &Record| {
            let header = r.header();
            (header.table.number(), header.key.0.to_vec(), header.version, header.removed)
        };
        Ok::<_, LedgerError>(Picture {
            records: records.iter().map(record).collect(),
            uses: tx.tokens(domain)?.iter().map(|token| token.used).collect(),
            nodes: tx.nodes(domain)?.iter().map(|node| (node.id, node.membership.number())).collect(),
            devices: tx.devices(domain)?.into_iter().map(|d| (d.body.name, d.body.site.len())).collect(),
            epochs: tx.facts()?.iter().map(|facts| facts.epoch).collect(),
            map_version: tx.map_version()?,
            quarantined: tx.quarantined()?,
            revoked: tx.is_domain_revoked(domain)?,
            audit: tx.audit_entries()?.len(),
        })
    };
    ledger.act(START, read).unwrap().0
}

/// Runs an action and looks at what would be left had the process died before any of its statements.
fn die_in(bench: &mut Bench, what: &str, action: impl FnOnce(&mut Bench)) {
    let copies = tempfile::tempdir().unwrap();
    let (dir, domain) = (bench.dir.path().to_owned(), bench.domain);
    copy(&dir, &copies.path().join("before"));
    COPIES.set(Some((dir.clone(), copies.path().to_owned(), 0)));
    bench.ledger.connection.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(copy_at_statement));
    action(bench);
    bench.ledger.connection.trace_v2(TraceEventCodes::empty(), None);
    let (_, _, count) = COPIES.take().unwrap();
    copy(&dir, &copies.path().join("after"));
    let before = picture(&copies.path().join("before"), domain);
    let after = picture(&copies.path().join("after"), domain);
    assert_ne!(before, after, "{what}: what was acknowledged is there");
    assert!(count > 4, "{what}: {count} statements");
    for n in 0..count {
        let left = picture(&copies.path().join(n.to_string()), domain);
        assert_eq!(left, before, "{what}: half of it is there after statement {n} of {count}");
    }
}

#[test]
fn a_process_that_dies_between_two_statements_has_done_all_or_nothing() {
    let mut bench = Bench::new();
    let domain = bench.domain;
    let (token, friend) = (bench.token(3), bench.member(9));
    die_in(&mut bench, "join", |bench| drop(admitted(bench.join(token, &Computer::new(1)))));
    die_in(&mut bench, "device add", |bench| drop(bench.add_device("hp", 1)));
    let key = bench.records_of(Table::EndDevice)[0].header().key;
    die_in(&mut bench, "device seen", |bench| {
        let location = peerage_wire::id::LocationId([5; 32]);
        assert!(bench.act(|tx| tx.device_seen(friend.id(domain), key, location)).unwrap());
    });
    die_in(&mut bench, "node revoke", |bench| {
        let id = Computer::new(1).id(domain).to_string();
        bench.act(|tx| tx.revoke_node(domain, &id, super::super::Reason::Retired, Actor::Admin)).unwrap();
    });
    die_in(&mut bench, "device remove", |bench| {
        bench.act(|tx| tx.remove_device(domain, "hp", Actor::Admin)).unwrap();
    });
    die_in(&mut bench, "leave", |bench| bench.act(|tx| tx.leave(friend.id(domain))).unwrap());
    let (first, second) = (bench.super_node(7), bench.super_node(8));
    die_in(&mut bench, "segment assign", |bench| {
        let changes = [super_nodes::all(&first, domain), super_nodes::all(&second, domain)];
        bench.act(|tx| tx.assign_segments(1, &changes)).unwrap();
    });
    die_in(&mut bench, "super quarantine", |bench| {
        let id = first.id(domain).to_string();
        bench.act(|tx| tx.quarantine(&id, "it lies", Actor::Admin)).unwrap();
    });
    die_in(&mut bench, "domain revoke", |bench| {
        bench.act(|tx| tx.revoke_domain("acme", super::super::Reason::Retired, Actor::Admin)).unwrap();
    });
}

#[test]
fn a_full_disk_refuses_and_harms_nothing() {
    let mut bench = Bench::new();
    let (token, domain) = (bench.token(1_000), bench.domain);
    bench.ledger.connection.pragma_update(None, "max_page_count", 1).unwrap();
    let remote = "198.51.100.7".parse().unwrap();
    let mut admitted_before = 0;
    let full = (0..1_000).map(Computer::numbered).find_map(|computer| {
        let request = computer.request(Credential::Token { id: token.id, secret: token.secret });
        let outcome = bench.act(|tx| tx.enrol(&request, remote));
        admitted_before += usize::from(outcome.is_ok());
        outcome.err()
    });
    assert!(matches!(full, Some(LedgerError::Database(_))), "{full:?}");
    let left = picture(bench.dir.path(), domain);
    assert_eq!(left.nodes.len(), admitted_before);
    bench.ledger.connection.pragma_update(None, "max_page_count", 1_000_000).unwrap();
    admitted(bench.join(token, &Computer::numbered(5_000)));
    assert_eq!(picture(bench.dir.path(), domain).nodes.len(), admitted_before + 1);
}

/// Admits one computer after the other and says so, until it is killed.
fn admit_for_ever(path: &Path) -> ! {
    let mut ledger = open(&path.join("ledger.db"));
    let remote = "198.51.100.7".parse().unwrap();
    let new = NewDomain { name: "acme".to_owned(), offline_hours: None, vendor: false };
    let domain = ledger.act(START, |tx| tx.add_domain(&new, Actor::Admin)).unwrap().0.id;
    let roles = Roles { tunnel: true, super_node: false };
    let new = NewToken { domain, uses: 10_000, life: DAY, roles, approval: false };
    let (row, secret) = ledger.act(START, |tx| tx.add_token(&new, Actor::Admin)).unwrap().0;
    for n in 0.. {
        let computer = Computer::numbered(n);
        let request = computer.request(Credential::Token { id: row.id, secret });
        admitted(ledger.act(START, |tx| tx.enrol(&request, remote)).unwrap().0);
        let mut out = std::io::stdout();
        writeln!(out, "admitted {} {}", domain.0, computer.id(domain)).and_then(|()| out.flush()).unwrap();
    }
    unreachable!("the numbers of computers are used up");
}

#[test]
fn whatever_a_killed_process_had_acknowledged_is_there() {
    if let Some(path) = std::env::var_os(CHILD) {
        admit_for_ever(Path::new(&path));
    }
    for acknowledgements in [1, 2, 7, 20] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ledger.db"), b"").unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "ledger::tests::crash::whatever_a_killed_process_had_acknowledged_is_there",
            ])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let heard: Vec<String> = lines
            .map_while(Result::ok)
            .filter_map(|line| line.split_once("admitted ").map(|(_, rest)| rest.to_owned()))
            .take(acknowledgements)
            .collect();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(heard.len(), acknowledgements);
        check_acknowledged(dir.path(), &heard);
    }
}

fn check_acknowledged(path: &Path, heard: &[String]) {
    let (number, _) = heard[0].split_once(' ').unwrap();
    let domain = Domain(number.parse().unwrap());
    let kept = picture(path, domain);
    let nodes: BTreeSet<String> = kept.nodes.iter().map(|(id, _)| id.to_string()).collect();
    for line in heard {
        let (_, id) = line.split_once(' ').unwrap();
        assert!(nodes.contains(id), "{id} was told that it is admitted");
    }
    let used = usize::try_from(kept.uses[0]).unwrap();
    assert_eq!(used, nodes.len());
    assert_eq!(kept.records.len(), 2 * nodes.len(), "a Node and a DomainKey record each");
}
