//! Believing what an operator's answer contains.

use bytes::Bytes;
use peerage_wire::cbor::Malformed;
use peerage_wire::crypto::Real;
use peerage_wire::enrol::{Admission, TrustedOperator};
use peerage_wire::id::NetworkId;
use peerage_wire::record::{
    DomainKeyBody, NodeBody, OperatorBody, PrivateError, Record, RecordError, Table, UnverifiedRecord,
    subject,
};

use crate::data::NodeKeys;
use crate::membership::{Admitted, Membership};

/// Why an operator's answer cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// A record is not valid.
    #[error("a record is not valid: {0}")]
    Record(#[from] RecordError),
    /// A record is not what it should be.
    #[error("a record is malformed: {0}")]
    Malformed(#[from] Malformed),
    /// The record is about somebody else.
    #[error("a record is about another computer")]
    OtherNode,
    /// The domain's keys do not open.
    #[error("the organisation's keys cannot be opened: {0}")]
    DomainKey(#[from] PrivateError),
    /// The operator's sealing key is not signed by it.
    #[error("the operator's sealing key is not its own")]
    Statement,
}

/// Checks every signature, and that all of it is about this node.
pub(super) fn verify(
    admission: &Admission,
    network: &NetworkId,
    operator: TrustedOperator,
    keys: &NodeKeys,
    name: &str,
) -> Result<Admitted, AdmissionError> {
    let signed_by_operator = |bytes: &Bytes| -> Result<Record, AdmissionError> {
        let record = UnverifiedRecord::parse(bytes)?;
        record.check_time(admission.time)?;
        Ok(record.verify(network, &operator.body.identity, &Real)?)
    };
    let node = signed_by_operator(&admission.node)?;
    let body = NodeBody::read(&node)?;
    let id = subject(node.header());
    let is_own = body.identity == keys.identity.public() && body.receiving == *keys.receiving.public();
    let domain_key = signed_by_operator(&admission.domain_key)?;
    if !is_own || subject(domain_key.header()) != id || domain_key.header().table != Table::DomainKey {
        return Err(AdmissionError::OtherNode);
    }
    DomainKeyBody::read(&domain_key)?.open(network, id, &keys.receiving)?;
    let statement = &admission.statement;
    if statement.node != operator.id || !statement.verify(&operator.body.identity, network, &Real) {
        return Err(AdmissionError::Statement);
    }
    let mut records = vec![node, domain_key];
    for bytes in &admission.operators {
        let record = UnverifiedRecord::parse(bytes)?;
        record.check_time(admission.time)?;
        let record = record.verify(network, &operator.root, &Real)?;
        OperatorBody::read(&record)?;
        records.push(record);
    }
    if !records.contains(&operator.record) {
        records.push(operator.record.clone());
    }
    let membership = Membership {
        root: operator.root,
        domain: id.domain,
        domain_name: admission.domain_name.clone(),
        name: name.to_owned(),
        statement: Some(*statement),
    };
    Ok(Admitted { membership, records, roles: body.roles, operator, time: admission.time })
}
