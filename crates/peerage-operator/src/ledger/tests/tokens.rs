use super::*;
use crate::ledger::TokenError;

#[test]
fn a_token_lets_in_as_many_as_it_allows() {
    let mut bench = Bench::new();
    let token = bench.token(2);
    let joined = admitted(bench.join(token, &Computer::new(1)));
    assert_eq!(joined.domain_name, "acme");
    assert_eq!(joined.operators.len(), 1);
    admitted(bench.join(token, &Computer::new(2)));
    assert_eq!(refused(bench.join(token, &Computer::new(3))), Refusal::UsedUpToken);
    let domain = bench.domain;
    assert_eq!(bench.read(|tx| tx.tokens(domain))[0].used, 2);
}

/// Rule 5.5: a guess is not told how near it was.
#[test]
fn an_unknown_token_and_a_wrong_secret_are_told_apart_by_nobody() {
    let mut bench = Bench::new();
    let token = bench.token(1);
    let wrong = Token { secret: [0; 16], ..token };
    assert_eq!(refused(bench.join(wrong, &Computer::new(1))), Refusal::UnknownToken);
    let unknown = Token { id: TokenId([0; 8]), ..token };
    assert_eq!(refused(bench.join(unknown, &Computer::new(1))), Refusal::UnknownToken);
    admitted(bench.join(token, &Computer::new(1)));
}

#[test]
fn a_token_ends_to_the_millisecond() {
    let mut bench = Bench::new();
    let token = bench.token_with(9, HOUR, false);
    bench.wait(HOUR - Duration::from_millis(1));
    admitted(bench.join(token, &Computer::new(1)));
    bench.wait(Duration::from_millis(1));
    assert_eq!(refused(bench.join(token, &Computer::new(2))), Refusal::ExpiredToken);
}

#[test]
fn a_revoked_token_lets_nobody_in_and_may_take_its_nodes_along() {
    let mut bench = Bench::new();
    let (token, other) = (bench.token(5), bench.member(9));
    let computers = [Computer::new(1), Computer::new(2)];
    for computer in &computers {
        admitted(bench.join(token, computer));
    }
    let domain = bench.domain;
    let (row, nodes) = bench.act(|tx| tx.revoke_token(domain, token.id, true, Actor::Admin)).unwrap();
    assert_eq!(row.closed_at, Some(START));
    assert_eq!(nodes.len(), 2);
    assert_eq!(refused(bench.join(token, &Computer::new(3))), Refusal::RevokedToken);
    assert_eq!(refused(bench.renew(&computers[0])), Refusal::RevokedNode);
    assert_eq!(bench.keys_of(&other).unwrap().epoch, 2, "one new epoch for both");
    let unknown = bench.act(|tx| tx.revoke_token(domain, TokenId([0; 8]), false, Actor::Admin));
    assert!(matches!(unknown, Err(TokenError::Unknown)));
}

#[test]
fn a_token_of_another_domain_is_not_found() {
    let mut bench = Bench::new();
    let token = bench.token(1);
    let other = bench.add_domain("other");
    let revoked = bench.act(|tx| tx.revoke_token(other, token.id, false, Actor::Admin));
    assert!(matches!(revoked, Err(TokenError::Unknown)));
    admitted(bench.join(token, &Computer::new(1)));
}

/// Rule 5.4: a lost answer can be asked for again, after the token has ended too.
#[test]
fn asking_again_with_the_same_key_takes_no_use_and_gives_the_same_records() {
    let mut bench = Bench::new();
    let (token, computer) = (bench.token(1), Computer::new(1));
    let first = admitted(bench.join(token, &computer));
    let again = admitted(bench.join(token, &computer));
    assert_eq!(first, again);
    bench.wait(8 * DAY);
    // The token has ended meanwhile, and the member is one all the same.
    let later = admitted(bench.join(token, &computer));
    assert!(later.node.header().version > first.node.header().version);
    let domain = bench.domain;
    assert_eq!(bench.read(|tx| tx.tokens(domain))[0].used, 1);
}

#[test]
fn a_new_receiving_key_gets_records_of_its_own() {
    let mut bench = Bench::new();
    let (token, mut computer) = (bench.token(1), Computer::new(1));
    admitted(bench.join(token, &computer));
    computer.receiving = AgreementKey::from_secret([99; 32]);
    assert!(bench.keys_of(&computer).is_none());
    admitted(bench.join(token, &computer));
    assert!(bench.keys_of(&computer).is_some());
}

#[test]
fn a_receiving_key_that_is_none_admits_nobody_and_takes_no_use() {
    let mut bench = Bench::new();
    let token = bench.token(1);
    let mut request = Computer::new(1).request(Credential::Token { id: token.id, secret: token.secret });
    request.receiving = [0; 32];
    let remote = "198.51.100.7".parse().unwrap();
    assert!(matches!(bench.act(|tx| tx.enrol(&request, remote)), Err(LedgerError::Crypto(_))));
    admitted(bench.join(token, &Computer::new(2)));
}

/// Rule 5.4: nothing of the domain leaves before approval.
#[test]
fn with_approval_nothing_leaves_before_it() {
    let mut bench = Bench::new();
    let (token, computer) = (bench.token_with(1, DAY, true), Computer::new(1));
    bench.take_changes();
    assert_eq!(bench.join(token, &computer), Enrolment::Pending);
    assert_eq!(bench.join(token, &computer), Enrolment::Pending);
    assert_eq!(bench.renew(&computer), Enrolment::Pending);
    assert!(bench.take_changes().iter().all(Change::is_empty));
    assert_eq!(refused(bench.join(token, &Computer::new(2))), Refusal::UsedUpToken);
    let (domain, id) = (bench.domain, computer.id(bench.domain).to_string());
    bench.act(|tx| tx.approve(domain, &id, Actor::Admin)).unwrap();
    admitted(bench.join(token, &computer));
    assert!(bench.keys_of(&computer).is_some());
    assert!(bench.act(|tx| tx.approve(domain, &id, Actor::Admin)).is_err());
}

#[test]
fn names_are_shown_without_what_would_move_a_cursor() {
    let mut bench = Bench::new();
    let token = bench.token(1);
    let mut request = Computer::new(1).request(Credential::Token { id: token.id, secret: token.secret });
    request.name = "a\u{1b}[2Jb\u{202e}c\n".to_owned();
    admitted(bench.ask(request));
    let domain = bench.domain;
    assert_eq!(bench.read(|tx| tx.nodes(domain))[0].name, "a[2Jbc");
}

#[test]
fn who_was_refused_and_why_is_noted_once_a_day() {
    let mut bench = Bench::new();
    let token = bench.token(1);
    let wrong = Token { secret: [0; 16], ..token };
    let noted = |bench: &mut Bench| {
        let all = bench.audit().into_iter().filter(|(_, action, _)| action == "node refuse");
        all.map(|(actor, _, subject)| format!("{actor}: {subject}")).collect::<Vec<_>>()
    };
    for seed in 0..9 {
        refused(bench.join(wrong, &Computer::new(seed)));
    }
    assert_eq!(noted(&mut bench), ["remote 198.51.100.7: UnknownToken"]);
    bench.wait(DAY + HOUR);
    refused(bench.join(wrong, &Computer::new(9)));
    admitted(bench.join(token, &Computer::new(1)));
    refused(bench.join(token, &Computer::new(2)));
    assert_eq!(noted(&mut bench).len(), 3);
    assert_eq!(noted(&mut bench)[2], format!("remote 198.51.100.7: UsedUpToken token {}", token.id));
}

#[test]
fn strangers_cannot_fill_the_audit() {
    let mut bench = Bench::new();
    let token = bench.token(1);
    let before = bench.audit().len();
    let request = Computer::new(1).request(Credential::Token { id: token.id, secret: [0; 16] });
    // In one transaction, so that the test does not wait for the disk.
    bench
        .act(|tx| {
            for n in 0..1_500_u32 {
                refused(tx.enrol(&request, std::net::Ipv4Addr::from_bits(n).into())?);
            }
            Ok::<_, LedgerError>(())
        })
        .unwrap();
    assert_eq!(bench.audit().len(), before + 1_000);
}
