//! Beacons from fixed keys, times and chance (Rules 6.24 and 6.25).

use peerage_wire::beacon::{Ballot, Beacon, Kind};
use peerage_wire::crypto::Real;
use peerage_wire::id::{Domain, LocationId, NetworkId, NodeId};
use peerage_wire::keys::{DomainKeys, SecretKey};
use peerage_wire::record::{HeadBody, SetSummary};
use peerage_wire::time::UnixTime;

use crate::vectors::Vectors;

const NETWORK: NetworkId = NetworkId([0x11; 32]);
const DOMAIN: Domain = Domain(0xdfe4_7365);

#[test]
fn beacons_ballots_and_ranks_are_the_vectors() {
    let mut vectors = Vectors::read("beacons.txt");
    let location = LocationId([0x44; 32]);
    let [node, other] = [0x33, 0x22].map(|byte| NodeId { domain: DOMAIN, hash: [byte; 32] });
    let open = Ballot::new(&location, &[]);
    let named = Ballot::new(&location, &[node, other]);
    vectors.check("ballot", &open.0);
    vectors.check("ballot_of_named_servers", &named.0);
    vectors.check("rank", &open.rank(&node).to_be_bytes());
    vectors.check("rank_among_named_servers", &named.rank(&node).to_be_bytes());
    let keys = DomainKeys {
        epoch: 3,
        epoch_key: SecretKey([0x08; 32]),
        previous: None,
        location_key: SecretKey([0x0a; 32]),
    };
    for (name, kind) in [
        ("elected", Kind::Elected),
        ("standing", Kind::Standing),
        ("additional", Kind::Additional),
        ("goodbye", Kind::Goodbye),
        ("who", Kind::Who),
        ("checked", Kind::Checked),
    ] {
        let time = UnixTime::from_millis(1_800_000_000_123);
        let beacon = Beacon { kind, node, ballot: open, time, seated_secs: 600, head: None };
        let sealed = beacon.seal(&NETWORK, &keys.epoch_key, &Real, &[0x55; 12]);
        vectors.check(&format!("beacon_{name}"), &sealed);
        assert_eq!(Beacon::open(&sealed, (&NETWORK, DOMAIN), &keys, &Real), Ok(beacon));
    }
    let sum = |byte: u8| SetSummary { count: byte.into(), sum: [byte; 32] };
    let stated = HeadBody {
        operators: sum(1),
        revocations: sum(2),
        devices: sum(3),
        epoch: 4,
        map_version: 5,
        offline_hours: Some(6),
        super_nodes: Some(sum(7)),
    };
    vectors.check("head_digest", &stated.digest());
    let time = UnixTime::from_millis(1_800_000_000_123);
    let head = Some(stated.digest());
    let beacon = Beacon { kind: Kind::Elected, node, ballot: open, time, seated_secs: 600, head };
    let sealed = beacon.seal(&NETWORK, &keys.epoch_key, &Real, &[0x55; 12]);
    vectors.check("beacon_elected_with_head", &sealed);
    assert_eq!(Beacon::open(&sealed, (&NETWORK, DOMAIN), &keys, &Real), Ok(beacon));
    vectors.finish();
}
