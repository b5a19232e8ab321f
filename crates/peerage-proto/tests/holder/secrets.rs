//! What a super-node can know of a foreign organisation: its whole memory and disk, searched for what it must not.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::codec::{Candidate, CandidateKind, Protocol, Service, Transport};
use peerage_wire::crypto::Real;
use peerage_wire::id::{DeviceId, LocationId, LookupTag, Mac, NodeId, Segment};
use peerage_wire::message::Request;
use peerage_wire::record::{
    Draft, EndDevice, Header, LocalPolicy, NodeInfoPrivate, NodeInfoPublic, Record, Table,
};

use crate::world::{LENDERS, RED, World};

const NAME: &str = "accounting-printer";
const KIND: &str = "laser printer";
const SERVICE: &str = "print-queue";
const MAC: Mac = Mac([0xaa, 0xbb, 0xcc, 0x5e, 0x7d, 0x81]);
const CERTIFICATE: [u8; 32] = [0xd7; 32];
const ADDRESS: &str = "10.91.73.55:39417";
const LOCATION: LocationId = LocationId([0x4c; 32]);

/// A device with everything that a member knows of it.
fn device(node: NodeId) -> EndDevice {
    EndDevice {
        device: DeviceId::new(MAC, Some(&CERTIFICATE)),
        name: NAME.to_owned(),
        kind: KIND.to_owned(),
        mac: MAC,
        pins: vec![CERTIFICATE],
        services: vec![Service {
            name: SERVICE.to_owned(),
            port: 39_417,
            protocol: Protocol::Tcp,
            tls: true,
        }],
        site: vec![LOCATION],
        via: Some(node),
        users: vec![node],
        servers: vec![],
        local: LocalPolicy::WithProof,
    }
}

/// What a tunnel-node announces about itself, as nodes make it.
fn announcement(world: &World, member: SocketAddr, tag: LookupTag) -> Record {
    let actor = &world.actors[&member];
    let candidate = Candidate {
        address: ADDRESS.parse().unwrap(),
        transport: Transport::Udp,
        kind: CandidateKind::Ethernet,
    };
    let private =
        NodeInfoPrivate { candidates: vec![candidate], locations: vec![LOCATION], attachments: vec![] };
    let header = Header {
        table: Table::NodeInfo,
        domain: RED,
        key: actor.id.record_key(),
        version: world.now.unix.as_millis(),
        expires: world.now.unix.after(Duration::from_secs(600)),
        signer: actor.id,
        removed: false,
    };
    let statement = *actor.endpoint.statement();
    let public = NodeInfoPublic { statement, tags: vec![tag], addresses: vec![] };
    let draft = Draft { header, public: public.write(), private: None };
    let draft = draft.with_private(&world.keys[&RED], [5; 16], private.write());
    draft.sign(&actor.identity, &world.network, &Real).unwrap()
}

/// Returns whether a text that `Debug` has made shows these bytes: as a string, a list of numbers, or hexadecimal digits.
fn shows(text: &str, needle: &[u8]) -> bool {
    let escaped = format!("{:?}", Bytes::copy_from_slice(needle));
    let escaped = escaped.trim_start_matches("b\"").trim_end_matches('"');
    let list: Vec<_> = needle.iter().map(u8::to_string).collect();
    let hex: String = needle.iter().map(|byte| format!("{byte:02x}")).collect();
    let flat: String = text.split_whitespace().collect();
    text.contains(escaped)
        || text.contains(&list.join(", "))
        || flat.contains(&list.join(","))
        || text.to_lowercase().contains(&hex)
        || String::from_utf8(needle.to_vec()).is_ok_and(|needle| text.contains(&needle))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Rules 2.11 and 6.55, and the table in THREATS: a holder has ids, tags, keys and sizes; no name, no hardware address, no port,
/// no address of a device or of its tunnel-nodes, no location, no key of the domain.
#[test]
fn a_super_node_learns_nothing_of_devices_and_where_they_are() {
    let mut world = World::new(80);
    let keys = world.keys_of(RED);
    let member = world.member("192.0.2.7:7400", RED);
    let member_id = world.actors[&member].id;
    let device = device(member_id);
    let key = keys.device_record_key(&device.device);
    world.commit(Table::EndDevice, (RED, key), |draft| draft.with_private(&keys, [3; 16], device.write()));
    let day = keys.epoch_key.0;
    let holder = world.holder(1, LENDERS[0], Segment::ALL);

    let tag = keys.tag(&LOCATION, world.now.unix.as_secs() / 86_400);
    let info = announcement(&world, member, tag);
    world.ask(member, holder, &Request::Store(info.bytes().clone())).unwrap();
    world.ask(member, holder, &Request::Attach).unwrap();
    assert_eq!(world.devices_told(member, holder), Some(1));
    world.run(Duration::from_secs(400));

    let memory = format!("{:?}", world.holders[&holder].node);
    let written = &world.holders[&holder].written;
    let disk: Vec<u8> = written.iter().flat_map(|record| record.bytes().to_vec()).collect();
    // The search finds what a holder does know.
    assert!(shows(&memory, &key.0) && contains(&disk, &key.0), "the record's key");
    assert!(shows(&memory, &member_id.hash) && contains(&disk, &member_id.hash), "its members");
    assert!(shows(&memory, &tag.0), "look-up tags");
    let address: SocketAddr = ADDRESS.parse().unwrap();
    let std::net::IpAddr::V4(ip) = address.ip() else { panic!("IPv4") };
    let secrets: [(&str, &[u8]); 11] = [
        ("device name", NAME.as_bytes()),
        ("device kind", KIND.as_bytes()),
        ("service name", SERVICE.as_bytes()),
        ("hardware address", &MAC.0),
        ("pin", &CERTIFICATE),
        ("port", &[&[0x19], &39_417_u16.to_be_bytes()[..]].concat()),
        ("address", &[&ip.octets()[..], &39_417_u16.to_be_bytes()].concat()),
        ("location", &LOCATION.0),
        ("device id", &device.device.0),
        ("epoch key", &day),
        ("location key", &keys.location_key.0),
    ];
    for (what, secret) in secrets {
        assert!(!shows(&memory, secret), "{what} in memory");
        assert!(!contains(&disk, secret), "{what} on disk");
    }
    assert!(!memory.contains("10.91.73.55"), "the address as text");
    assert!(!memory.contains("aa:bb:cc:5e:7d:81"), "the hardware address as text");
}
