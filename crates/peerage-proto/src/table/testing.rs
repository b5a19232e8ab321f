//! Records for tests: well-formed, and signed by nobody, for a table takes only what was verified.

use std::cell::Cell;
use std::net::SocketAddr;

use bytes::Bytes;
use peerage_wire::cbor::MapWriter;
use peerage_wire::id::{Domain, LookupTag, NodeId, RecordKey, Segment, sha256};
use peerage_wire::intro::KeyStatement;
use peerage_wire::record::{NodeInfoPublic, Record, SuperNodeBody, Table, UnverifiedRecord};
use peerage_wire::time::UnixTime;

/// When all tests take place.
pub(crate) const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

/// When records expire unless a test says otherwise.
pub(crate) const LATER: UnixTime = UnixTime::from_secs(1_800_000_600);

thread_local! {
    static LOOKED_AT: Cell<usize> = const { Cell::new(0) };
}

/// Counts an entry of an index that a read has come across.
pub(super) fn look() {
    LOOKED_AT.set(LOOKED_AT.get() + 1);
}

/// Returns how many entries of the indices a read comes across: what it costs, whatever it finds.
pub(crate) fn looked_at<T>(read: impl FnOnce() -> T) -> (T, usize) {
    LOOKED_AT.set(0);
    let read = read();
    (read, LOOKED_AT.get())
}

/// A record about to be made.
#[derive(Clone)]
pub(crate) struct Made {
    pub(crate) table: Table,
    pub(crate) domain: Domain,
    pub(crate) key: RecordKey,
    pub(crate) version: u64,
    pub(crate) expires: UnixTime,
    pub(crate) removed: bool,
    pub(crate) body: MapWriter,
}

impl Made {
    /// The record of something that is named by a number.
    pub(crate) fn new(table: Table, domain: u32, name: u32) -> Self {
        let (domain, key) = (Domain(domain), RecordKey(sha256(&[&name.to_be_bytes()])));
        let body = MapWriter::new();
        Self { table, domain, key, version: 1, expires: LATER, removed: false, body }
    }

    pub(crate) fn version(self, version: u64) -> Self {
        Self { version, ..self }
    }

    pub(crate) fn expires(self, expires: UnixTime) -> Self {
        Self { expires, ..self }
    }

    pub(crate) fn build(&self) -> Record {
        let signer = NodeId { domain: Domain::OPERATORS, hash: [9; 32] };
        let mut map = MapWriter::new();
        map.uint(1, self.table.number())
            .uint(2, self.domain.0)
            .bytes(3, &self.key.0)
            .uint(4, self.version)
            .uint(5, self.expires.as_millis())
            .bytes(6, &signer.to_bytes())
            .flag(7, self.removed)
            .map(8, &self.body);
        let mut bytes = map.finish();
        bytes.extend_from_slice(&[0; 64]);
        UnverifiedRecord::parse(&Bytes::from(bytes)).unwrap().trust_own_store()
    }
}

/// A record as such.
pub(crate) fn record(table: Table, domain: u32, name: u32) -> Record {
    Made::new(table, domain, name).build()
}

/// What a node says about itself.
pub(crate) fn node_info(domain: u32, name: u32, tags: &[LookupTag]) -> Made {
    let made = Made::new(Table::NodeInfo, domain, name);
    let statement = KeyStatement {
        node: NodeId { domain: made.domain, hash: made.key.0 },
        key: [0; 32],
        not_before: NOW,
        not_after: LATER,
        signature: [0; 64],
    };
    let body = NodeInfoPublic { statement, tags: tags.to_vec(), addresses: vec![] };
    Made { body: body.write(), ..made }
}

/// The identity key that a super-node of this name has.
pub(crate) fn super_node_id(domain: u32, name: u8) -> NodeId {
    NodeId::new(Domain(domain), &[name; 32])
}

/// Who holds a segment.
pub(crate) fn super_node(domain: u32, name: u8, segment: Segment) -> Made {
    let address: SocketAddr = ([192, 0, 2, name], 7_400).into();
    let body = SuperNodeBody { segment, map_version: 1, identity: [name; 32], addresses: vec![address] };
    let key = super_node_id(domain, name).record_key();
    Made { key, body: body.write(), ..Made::new(Table::SuperNode, domain, 0) }
}
