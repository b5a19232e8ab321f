//! Somebody with the operator's key, or in its place, who lies to a domain.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::discard::Discard;
use peerage_proto::endpoint::{Endpoint, Outcome};
use peerage_proto::node::{Answer, Command, Event, Failure};
use peerage_proto::responder::{self, Asked, View};
use peerage_proto::table::Records;
use peerage_proto::trust::Trust;
use peerage_wire::frame::Code;
use peerage_wire::id::{Domain, RecordKey};
use peerage_wire::keys::IdentityKey;
use peerage_wire::message::{Page, Reply, Request};
use peerage_wire::record::{Draft, HeadBody, Header, OperatorBody, OperatorState, Record, SetSummary, Table};
use rand_core::Rng as _;

use crate::support::{DOMAIN, Decision, Flight, World, device, office, printer};

type Ledger = BTreeMap<(Table, Domain, RecordKey), Record>;

/// Puts somebody in the operator's place who has its key, answers from `ledger`, and changes each answer at will.
fn stand_in(
    world: &mut World,
    ledger: &Ledger,
    mut lie: impl FnMut(&Request, Option<Reply>) -> Option<Reply> + 'static,
) {
    let mut seed = [0; 32];
    world.rng.fill_bytes(&mut seed);
    let mut endpoint = Endpoint::new(world.operator_config.endpoint.clone(), seed, world.now);
    endpoint.trust_own_clock();
    let mut trust = Trust::new(world.network, world.root.public());
    let mut records = Records::default();
    for record in ledger.values() {
        trust.learn(record);
        records.insert(record.clone());
    }
    world.stand_in = Some(Box::new(move |flight: &Flight, now| {
        endpoint.handle_datagram(flight.from, &flight.payload, &trust, now);
        while let Some(outcome) = endpoint.poll_outcome() {
            let Outcome::Request(incoming) = outcome else { continue };
            let room = incoming.reply_to.room();
            let asked = Asked { from: &incoming.from, remote: incoming.remote, room, time: now.unix };
            let truth = responder::answer(&incoming.request, asked, View::everywhere(&records)).ok();
            if let Some(reply) = lie(&incoming.request, truth) {
                endpoint.reply(&incoming.reply_to, &reply);
            }
        }
        std::iter::from_fn(|| endpoint.poll_transmit()).map(|(_, payload)| payload).collect::<Vec<Bytes>>()
    }));
}

/// A Head of some domain over some ledger, signed by whoever, with a header as the test wants it.
fn head(
    world: &World,
    ledger: &Ledger,
    domain: Domain,
    by: &IdentityKey,
    change: impl FnOnce(&mut Header),
) -> Bytes {
    let time = world.now.unix;
    let set = |table: Table, of: Domain| {
        let live = |record: &&Record| {
            let header = record.header();
            (header.table, header.domain) == (table, of) && header.expires > time
        };
        SetSummary::of(ledger.values().filter(live))
    };
    let body = HeadBody {
        operators: set(Table::OperatorNode, Domain::OPERATORS),
        revocations: set(Table::Revocation, domain),
        devices: set(Table::EndDevice, domain),
        epoch: world.keys.epoch,
        map_version: 0,
        super_nodes: None,
        offline_hours: None,
    };
    let mut header = Header {
        table: Table::Head,
        domain,
        key: HeadBody::record_key(domain),
        version: time.as_millis(),
        expires: time.after(Duration::from_secs(60)),
        signer: by.node_id(Domain::OPERATORS),
        removed: false,
    };
    change(&mut header);
    let draft = Draft { header, public: body.write(), private: None };
    draft.sign(by, &world.network, &peerage_wire::crypto::Real).unwrap().bytes().clone()
}

fn head_version(world: &mut World, at: SocketAddr) -> u64 {
    let now = world.now;
    world.host(at).node.status(now).head.expect("a Head").version
}

/// Rules 2.7, 2.9 and 6.8: a Head counts if it is of the own domain, newer, valid, and signed by an operator.
#[test]
fn a_head_that_is_old_foreign_of_the_future_or_forged_changes_nothing() {
    let (mut world, site, _) = office(60);
    let ledger = world.ledger.clone();
    let stranger = IdentityKey::generate(&mut world.rng);
    let operator = world.operator_identity.clone();
    let known = head_version(&mut world, site);
    let time = world.now.unix;
    let hour = Duration::from_secs(3_600);
    let ahead = time.after(hour);
    let lies = [
        head(&world, &ledger, Domain(7), &operator, |_| {}),
        head(&world, &ledger, DOMAIN, &operator, |header| header.version = known - 1),
        head(&world, &ledger, DOMAIN, &operator, |header| header.expires = ahead),
        head(&world, &ledger, DOMAIN, &operator, |header| {
            (header.version, header.expires) = (ahead.as_millis(), ahead.after(Duration::from_secs(60)));
        }),
        head(&world, &ledger, DOMAIN, &stranger, |_| {}),
        ledger.values().next().unwrap().bytes().clone(),
        Bytes::from_static(b"no record"),
    ];
    // Until its Head is old enough for an attached node to ask for one besides.
    stand_in(&mut world, &ledger, |request, truth| match request {
        Request::GetHead { .. } | Request::Attach => None,
        _ => truth,
    });
    world.run(Duration::from_secs(36));
    for (n, lie) in lies.into_iter().enumerate() {
        stand_in(&mut world, &ledger, move |request, truth| match request {
            Request::GetHead { .. } => Some(Reply::Head(Some(lie.clone()))),
            Request::Attach => None,
            _ => truth,
        });
        world.run(Duration::from_secs(12));
        assert_eq!(head_version(&mut world, site), known, "lie {n}");
    }
    let now = world.now;
    assert!(world.host(site).node.status(now).discards.of(Discard::BadRecord) > 0);
    world.stand_in = None;
    world.run(Duration::from_secs(40));
    assert!(head_version(&mut world, site) > known);
}

/// Rules 6.5 and 6.8: no tunnel on the word of somebody who states a revocation and does not show it, not even once he
/// has fallen silent; and as soon as the whole truth is to be had, it counts.
#[test]
fn a_revocation_that_is_stated_and_withheld_lets_nobody_in() {
    let (mut world, site, user) = office(61);
    let user_id = world.host(user).id;
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    let before = world.ledger.clone();
    world.operator_up = false;
    world.revoke(user_id);
    let (after, operator) = (world.ledger.clone(), world.operator_identity.clone());
    let stating = head(&world, &after, DOMAIN, &operator, |_| {});
    stand_in(&mut world, &before, move |request, truth| match request {
        Request::GetHead { .. } => Some(Reply::Head(Some(stating.clone()))),
        Request::Attach => None,
        _ => truth,
    });
    world.run(Duration::from_secs(45));
    assert_eq!(world.open(site, 2, user_id, device(), "ipp"), Decision::Refused(Code::StaleHead));
    stand_in(&mut world, &before, |_, _| None);
    world.run(Duration::from_secs(180));
    assert_eq!(world.open(site, 3, user_id, device(), "ipp"), Decision::Refused(Code::StaleHead));
    world.stand_in = None;
    world.operator_up = true;
    world.run(Duration::from_secs(60));
    assert_eq!(world.open(site, 4, user_id, device(), "ipp"), Decision::Refused(Code::Revoked));
    assert!(world.host(site).closed.contains(&(peerage_proto::node::TunnelId(1), Code::Revoked)));
}

/// Rule 6.5: what was not asked for, is about something else or fails its signature is not kept.
#[test]
fn records_that_do_not_answer_the_question_are_not_kept() {
    let (mut world, _, user) = office(62);
    let ledger = world.ledger.clone();
    let stored = world.host(user).stored.len();
    let wrong: Vec<Bytes> = ledger
        .values()
        .filter(|record| record.header().table != Table::EndDevice)
        .map(|record| record.bytes().clone())
        .collect();
    let mut altered =
        ledger.values().find(|r| r.header().table == Table::EndDevice).unwrap().bytes().to_vec();
    let last = altered.len() - 1;
    altered[last] ^= 1;
    stand_in(&mut world, &ledger, move |request, truth| match request {
        Request::GetDevices { .. } => {
            // As many as fit; none of them is a device that an operator has signed.
            let mut records = vec![Bytes::from(altered.clone())];
            records.extend(wrong.first().cloned());
            Some(Reply::Devices(Page { records, more: false }))
        }
        _ => truth,
    });
    let task = world.command(user, Command::RefreshDevices);
    world.await_answer(user, task);
    assert_eq!(world.host(user).stored.len(), stored);
    let now = world.now;
    assert_eq!(world.host(user).node.status(now).devices.len(), 1);
    assert!(world.host(user).node.status(now).discards.of(Discard::BadRecord) >= 2);
}

/// Rule 1.5: a device's record stands under its own key; under another it is another device's.
#[test]
fn a_device_under_the_key_of_another_is_not_believed() {
    let (mut world, site, user) = office(63);
    let via = world.host(site).id;
    let mut twin = printer(via);
    twin.name = "twin".to_owned();
    let keys = world.keys.clone();
    // One before and one behind the device's own key, so that the order in which they are read does not matter.
    for other in [RecordKey([0; 32]), RecordKey([0xff; 32])] {
        let (keys, body) = (keys.clone(), twin.write());
        let record = world.sign(Table::EndDevice, DOMAIN, other, |d| d.with_private(&keys, [4; 16], body));
        world.commit(vec![record]);
    }
    world.run(Duration::from_secs(2));
    let task = world.command(user, Command::RefreshDevices);
    world.await_answer(user, task);
    let now = world.now;
    let names: Vec<_> =
        world.host(user).node.status(now).devices.iter().map(|d| d.device.name.clone()).collect();
    assert_eq!(names, ["hp"]);
}

/// Rule 3.11: the time of one who is no operator is not believed, whatever he signs it with.
#[test]
fn a_time_that_is_no_operators_is_not_believed() {
    let (mut world, site, user) = office(64);
    world.step_clock(site, 3_600_000);
    let before = world.host(user).events.len();
    // The tunnel-node's clock is an hour ahead and it does not know; the user asks it for a path.
    world.cut.insert(crate::support::OPERATOR_ADDRESS.parse().unwrap());
    world.route(user, "hp", None);
    let learned =
        world.host(user).events[before..].iter().any(|event| matches!(event, Event::ClockLearned(_)));
    assert!(!learned);
    world.cut.clear();
    world.run(Duration::from_secs(60));
    assert!(world.host(site).events.contains(&Event::ClockLearned(-3_600_000)));
    assert!(matches!(world.route(user, "hp", None), Answer::Route(_)));
}

/// Rule 4.4: a server whose pages never end is left after a while that has a bound, and does no other harm.
#[test]
fn pages_that_never_end_end() {
    let (mut world, _, user) = office(65);
    let ledger = world.ledger.clone();
    let device = ledger.values().find(|r| r.header().table == Table::EndDevice).unwrap().bytes().clone();
    stand_in(&mut world, &ledger, move |request, truth| match request {
        Request::GetDevices { .. } => {
            Some(Reply::Devices(Page { records: vec![device.clone()], more: true }))
        }
        _ => truth,
    });
    let task = world.command(user, Command::RefreshDevices);
    let answer = world.await_answer(user, task);
    assert!(matches!(answer, Answer::Refreshed | Answer::Failed(Failure::Offline)));
    let asked = world.log.iter().filter(|flight| flight.from == user).count();
    assert!(asked < 100, "{asked}");
}

/// Rule 2.9: operators are made by the root alone; neither an operator nor the new one itself can.
#[test]
fn an_operator_that_the_root_has_not_signed_is_none() {
    let (mut world, site, _) = office(66);
    let second = IdentityKey::generate(&mut world.rng);
    let operator = world.operator_identity.clone();
    let forged = [&operator, &second].map(|by| {
        let id = second.node_id(Domain::OPERATORS);
        let body = OperatorBody {
            identity: second.public(),
            enrolment: [1; 32],
            addresses: vec!["45.77.7.7:7".parse().unwrap()],
            state: OperatorState::Active,
        };
        let header = Header {
            table: Table::OperatorNode,
            domain: Domain::OPERATORS,
            key: id.record_key(),
            version: world.now.unix.as_millis(),
            expires: world.now.unix.after(Duration::from_secs(86_400)),
            signer: by.node_id(Domain::OPERATORS),
            removed: false,
        };
        let draft = Draft { header, public: body.write(), private: None };
        draft.sign(by, &world.network, &peerage_wire::crypto::Real).unwrap()
    });
    let mut ledger = world.ledger.clone();
    for record in forged {
        ledger.insert(record.header().id(), record.clone());
        // It states the forged operator, so that the node asks for it.
        let stating = head(&world, &ledger, DOMAIN, &operator, |_| {});
        stand_in(&mut world, &ledger, move |request, truth| match request {
            Request::GetHead { .. } => Some(Reply::Head(Some(stating.clone()))),
            Request::Attach => None,
            Request::GetOperatorNodes { .. } => {
                Some(Reply::OperatorNodes(Page { records: vec![record.bytes().clone()], more: false }))
            }
            _ => truth,
        });
        world.run(Duration::from_secs(60));
        let now = world.now;
        let status = world.host(site).node.status(now);
        assert_eq!(status.servers.len(), 1);
        assert!(status.discards.of(Discard::BadRecord) > 0);
    }
}
