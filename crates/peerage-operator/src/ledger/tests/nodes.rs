use super::*;
use crate::ledger::{Membership, NodeError, Reason};
use peerage_wire::record::{EndDevice, PrivateError, RevocationBody, RevocationKind};

fn revoke(bench: &mut Bench, computer: &Computer) {
    let (domain, id) = (bench.domain, computer.id(bench.domain).to_string());
    bench.act(|tx| tx.revoke_node(domain, &id, Reason::KeyCompromise, Actor::Admin)).unwrap();
}

/// Rule 5.6: a year and no longer.
#[test]
fn a_member_renews_with_its_key_until_a_year_after_its_record_has_ended() {
    let mut bench = Bench::new();
    let computer = bench.member(1);
    bench.wait(15 * DAY);
    let renewed = admitted(bench.renew(&computer));
    assert_eq!(renewed.node.header().expires, bench.now.after(30 * DAY));
    bench.wait(30 * DAY + 365 * DAY - HOUR);
    admitted(bench.renew(&computer));
    bench.wait(30 * DAY + 365 * DAY);
    assert_eq!(refused(bench.renew(&computer)), Refusal::UnknownNode);
    let token = bench.token(1);
    admitted(bench.join(token, &computer));
}

#[test]
fn renewing_often_writes_once() {
    let mut bench = Bench::new();
    let computer = bench.member(1);
    bench.wait(2 * HOUR);
    let first = admitted(bench.renew(&computer));
    bench.wait(HOUR / 2);
    assert_eq!(admitted(bench.renew(&computer)), first);
    bench.wait(HOUR);
    assert_ne!(admitted(bench.renew(&computer)), first);
}

#[test]
fn possession_of_another_key_or_of_an_unknown_one_renews_nothing() {
    let mut bench = Bench::new();
    let (member, stranger) = (bench.member(1), Computer::new(2));
    assert_eq!(refused(bench.renew(&stranger)), Refusal::UnknownNode);
    let forged = stranger.request(Credential::Possession(member.id(bench.domain)));
    assert_eq!(refused(bench.ask(forged)), Refusal::UnknownNode);
}

/// Rule 5.6: a revoked node is refused.
#[test]
fn a_revoked_key_never_comes_back_in_any_domain_with_any_token() {
    let mut bench = Bench::new();
    let (token, computer) = (bench.token(3), Computer::new(1));
    admitted(bench.join(token, &computer));
    revoke(&mut bench, &computer);
    assert_eq!(refused(bench.renew(&computer)), Refusal::RevokedNode);
    assert_eq!(refused(bench.join(token, &computer)), Refusal::RevokedNode);
    assert_eq!(refused(bench.join(token, &Computer::new(2))), Refusal::RevokedToken);
    bench.domain = bench.add_domain("other");
    let elsewhere = bench.token(1);
    assert_eq!(refused(bench.join(elsewhere, &computer)), Refusal::RevokedNode);
}

/// Rule 6.21: all of it in one transaction.
#[test]
fn a_revocation_gives_the_others_new_keys_and_seals_the_devices_anew() {
    let mut bench = Bench::new();
    let (thief, friend) = (bench.member(1), bench.member(2));
    bench.add_device("hp", 1);
    let stolen = bench.keys_of(&thief).unwrap();
    bench.take_changes();
    revoke(&mut bench, &thief);
    let changes = bench.take_changes();
    assert_eq!(changes[0].facts[0].epoch, 2);
    assert_eq!(changes[0].records.len(), 4, "tombstone, revocation, one member's keys, one device");
    assert!(bench.keys_of(&thief).is_none());
    let keys = bench.keys_of(&friend).unwrap();
    assert_eq!((keys.epoch, keys.location_key.clone()), (2, stolen.location_key.clone()));
    let device = &bench.records_of(Table::EndDevice)[0];
    assert_eq!(device.read_private(&keys, &CRYPTO, EndDevice::read).unwrap().name, "hp");
    assert_eq!(device.read_private(&stolen, &CRYPTO, EndDevice::read), Err(PrivateError::Epoch(2)));
    let revocation = RevocationBody::read(&bench.records_of(Table::Revocation)[0]).unwrap();
    assert_eq!(revocation.kind, RevocationKind::Node(thief.id(bench.domain)));
    assert_eq!(revocation.reason, 1);
}

/// Rule 2.17.
#[test]
fn a_revocation_lives_as_long_as_what_it_revokes() {
    let mut bench = Bench::new();
    let computer = bench.member(1);
    let node = bench.records_of(Table::Node)[0].header().expires;
    bench.wait(3 * DAY);
    revoke(&mut bench, &computer);
    assert_eq!(bench.records_of(Table::Revocation)[0].header().expires, node);
}

#[test]
fn revoking_twice_is_revoking_once() {
    let mut bench = Bench::new();
    let (computer, other) = (bench.member(1), bench.member(2));
    revoke(&mut bench, &computer);
    revoke(&mut bench, &computer);
    assert_eq!(bench.keys_of(&other).unwrap().epoch, 2);
}

#[test]
fn a_node_that_was_never_let_in_is_revoked_without_a_new_epoch() {
    let mut bench = Bench::new();
    let member = bench.member(1);
    let (token, computer) = (bench.token_with(1, DAY, true), Computer::new(2));
    bench.join(token, &computer);
    revoke(&mut bench, &computer);
    assert_eq!(bench.keys_of(&member).unwrap().epoch, 1);
    assert!(bench.records_of(Table::Revocation).is_empty());
    assert_eq!(refused(bench.join(token, &computer)), Refusal::RevokedNode);
}

/// Rule 6.21, at the size of a large company.
#[test]
fn a_thousand_members_and_a_hundred_devices_survive_a_revocation() {
    let mut bench = Bench::new();
    let (token, domain) = (bench.token(1_000), bench.domain);
    let computers: Vec<_> = (0..1_000).map(Computer::numbered).collect();
    let remote = "198.51.100.7".parse().unwrap();
    // In one transaction, so that the test does not wait for the disk a thousand times.
    bench
        .act(|tx| {
            for computer in &computers {
                let credential = Credential::Token { id: token.id, secret: token.secret };
                admitted(tx.enrol(&computer.request(credential), remote)?);
            }
            for n in 0..100 {
                tx.add_device(domain, device(&format!("printer-{n}"), n), Actor::Admin).unwrap();
            }
            Ok::<_, LedgerError>(())
        })
        .unwrap();
    bench.take_changes();
    revoke(&mut bench, &computers[0]);
    let records = &bench.take_changes()[0].records;
    assert_eq!(records.len(), 1 + 1 + 999 + 100);
    let newest = records.iter().map(|record| record.header().version).max().unwrap();
    assert!(UnixTime::from_millis(newest).since(START) < Duration::from_secs(1), "no version runs ahead");
    assert!(bench.keys_of(&computers[0]).is_none());
    for computer in [&computers[1], &computers[999]] {
        assert_eq!(bench.keys_of(computer).unwrap().epoch, 2);
    }
}

/// Rule 2.20: its records become tombstones.
#[test]
fn a_member_that_leaves_has_no_records_and_may_join_again() {
    let mut bench = Bench::new();
    let computer = bench.member(1);
    let (domain, id) = (bench.domain, computer.id(bench.domain));
    bench.act(|tx| tx.leave(id)).unwrap();
    bench.act(|tx| tx.leave(id)).unwrap();
    assert!(bench.records_of(Table::Node)[0].header().removed);
    assert!(bench.keys_of(&computer).is_none());
    assert_eq!(bench.read(|tx| tx.nodes(domain))[0].membership, Membership::Left);
    assert_eq!(refused(bench.renew(&computer)), Refusal::UnknownNode);
    let token = bench.token(1);
    let tomb = bench.records_of(Table::Node)[0].header().version;
    assert!(admitted(bench.join(token, &computer)).node.header().version > tomb);
    assert_eq!(bench.audit().iter().filter(|(_, action, _)| action == "node leave").count(), 1);
}

#[test]
fn a_node_is_found_by_its_name_and_by_the_beginning_of_its_id_if_that_fits_one() {
    let mut bench = Bench::new();
    let (domain, first) = (bench.domain, bench.member(1));
    let find = |bench: &mut Bench, text: &str| bench.act(|tx| tx.find_node(domain, text)).map(|row| row.id);
    assert_eq!(find(&mut bench, "front desk").unwrap(), first.id(domain));
    bench.member(2);
    assert!(matches!(find(&mut bench, "front desk"), Err(NodeError::Ambiguous(_))));
    let id = first.id(domain).to_string();
    assert_eq!(find(&mut bench, &id[..20]).unwrap(), first.id(domain));
    assert_eq!(find(&mut bench, &id.to_uppercase()).unwrap(), first.id(domain));
    assert!(matches!(find(&mut bench, &id[..8]), Err(NodeError::Ambiguous(_))));
    for text in ["", "none"] {
        assert!(matches!(find(&mut bench, text), Err(NodeError::Unknown(_))), "{text}");
    }
}

#[test]
fn when_members_were_seen_is_kept() {
    let mut bench = Bench::new();
    let computer = bench.member(1);
    let (domain, id) = (bench.domain, computer.id(bench.domain));
    let at = START.after(HOUR);
    bench.act(|tx| tx.seen(&[(id, "203.0.113.5:7400".parse().unwrap(), at)])).unwrap();
    assert_eq!(bench.read(|tx| tx.nodes(domain))[0].seen_at, Some(at));
}
