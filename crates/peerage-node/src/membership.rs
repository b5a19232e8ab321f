//! What a node knows about its own membership, as it is kept in the [store](crate::store).

use peerage_proto::node::Change;
use peerage_wire::enrol::TrustedOperator;
use peerage_wire::id::{Domain, NetworkId, NodeId};
use peerage_wire::intro::KeyStatement;
use peerage_wire::keys::network_id;
use peerage_wire::record::{NodeBody, Record, Roles, Table};
use peerage_wire::time::UnixTime;

use crate::data::NodeKeys;
use crate::store::{Batch, Contents};

const ROOT: &str = "root";
const DOMAIN: &str = "domain";
const DOMAIN_NAME: &str = "domain-name";
const NAME: &str = "name";
const STATEMENT: &str = "operator-statement";
const PENDING_TOKEN: &str = "pending-token";

/// Of which domain of which network this computer is a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The root key of the network; its hash is the network id.
    pub root: [u8; 32],
    /// The number of the domain.
    pub domain: Domain,
    /// What people call the domain.
    pub domain_name: String,
    /// What its owner calls this computer.
    pub name: String,
    /// The sealing key of the operator that answered last; may have ended since.
    pub statement: Option<KeyStatement>,
}

impl Membership {
    /// Reads the membership; `None` before joining.
    pub fn load(contents: &Contents) -> Option<Self> {
        let fact = |name: &str| contents.facts.get(name).map(Vec::as_slice);
        let text = |name: &str| String::from_utf8_lossy(fact(name).unwrap_or_default()).into_owned();
        Some(Self {
            root: fact(ROOT)?.try_into().ok()?,
            domain: Domain(u32::from_be_bytes(fact(DOMAIN)?.try_into().ok()?)),
            domain_name: text(DOMAIN_NAME),
            name: text(NAME),
            statement: fact(STATEMENT).and_then(KeyStatement::from_bytes),
        })
    }

    /// Returns the network's id.
    pub fn network(&self) -> NetworkId {
        network_id(&self.root)
    }

    /// Returns this node's id.
    pub fn node_id(&self, keys: &NodeKeys) -> NodeId {
        keys.node_id(self.domain)
    }

    /// Returns the node's own Node record and what it says, if it is there.
    pub fn own_record<'a>(&self, contents: &'a Contents, keys: &NodeKeys) -> Option<(&'a Record, NodeBody)> {
        // The same identity may be a member of another domain, whose records are held here for others.
        let id = self.node_id(keys);
        let is_own =
            |record: &&Record| record.header().key == id.record_key() && record.header().domain == id.domain;
        let record = contents.of(Table::Node).find(is_own)?;
        Some((record, NodeBody::read(record).ok()?))
    }

    /// Returns the batch that makes this membership, with these records, the one in the store.
    pub(crate) fn into_batch(self, records: Vec<Record>) -> Batch {
        let statement = self.statement.as_ref().map(KeyStatement::to_bytes);
        Batch {
            changes: records.into_iter().map(Change::Put).collect(),
            facts: vec![
                (ROOT, Some(self.root.to_vec())),
                (DOMAIN, Some(self.domain.to_bytes().to_vec())),
                (DOMAIN_NAME, Some(self.domain_name.into_bytes())),
                (NAME, Some(self.name.into_bytes())),
                (STATEMENT, statement),
                // It has done its work; whoever steals the disk shall not find it.
                (PENDING_TOKEN, None),
            ],
        }
    }
}

/// A membership for which an administrator's approval is awaited.
#[derive(Clone, PartialEq, Eq)]
pub struct Pending {
    /// The join token, kept to ask again.
    pub token: String,
    /// What its owner calls this computer.
    pub name: String,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Pending {
    /// Reads what is awaited; `None` if nothing is.
    pub fn load(contents: &Contents) -> Option<Self> {
        let text = |name: &str| String::from_utf8(contents.facts.get(name)?.clone()).ok();
        Some(Self { token: text(PENDING_TOKEN)?, name: text(NAME)? })
    }

    /// Returns the batch that keeps it.
    pub(crate) fn into_batch(self) -> Batch {
        let facts =
            vec![(PENDING_TOKEN, Some(self.token.into_bytes())), (NAME, Some(self.name.into_bytes()))];
        Batch { changes: Vec::new(), facts }
    }
}

/// What joining or renewing has brought, verified down to the last signature.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// The membership.
    pub membership: Membership,
    /// All records that came with it, this node's own first.
    pub records: Vec<Record>,
    /// What the operator permits.
    pub roles: Roles,
    /// The operator that answered.
    pub operator: TrustedOperator,
    /// Its time when it answered.
    pub time: UnixTime,
}
