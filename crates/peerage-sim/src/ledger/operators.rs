//! Operators: the root signs who is one.

use std::net::SocketAddr;

use peerage_wire::id::Domain;
use peerage_wire::keys::{AgreementKey, IdentityKey};
use peerage_wire::record::{Draft, DraftError, OperatorBody, OperatorState, Record, Table};
use peerage_wire::time::Now;

use super::{Ledger, OperatorIdentity, Written};

impl Ledger {
    pub(super) fn admit_operator(&mut self, address: SocketAddr, now: Now) -> Result<(), DraftError> {
        let key = IdentityKey::generate(self.chance.rng());
        let id = key.node_id(Domain::OPERATORS);
        let enrolment = *AgreementKey::generate(self.chance.rng()).public();
        let state = OperatorState::Active;
        let record = self.sign_operator((&key, enrolment, address, state), now)?;
        self.operators.push(OperatorIdentity { key, id, address, record, enrolment, state });
        Ok(())
    }

    fn sign_operator(
        &mut self,
        (key, enrolment, address, state): (&IdentityKey, [u8; 32], SocketAddr, OperatorState),
        now: Now,
    ) -> Result<Record, DraftError> {
        let body = OperatorBody { identity: key.public(), enrolment, addresses: vec![address], state };
        let signer = self.root.node_id(Domain::OPERATORS);
        let id = key.node_id(Domain::OPERATORS);
        let header = self.header((Table::OperatorNode, Domain::OPERATORS, id.record_key()), signer, now);
        let draft = Draft { header, public: body.write(), private: None };
        let record = draft.sign(&self.root, &self.network, &*self.crypto)?;
        self.write(&record);
        Ok(record)
    }

    /// Signs the record of an operator anew.
    pub(super) fn restate_operator(&mut self, index: usize, state: OperatorState, now: Now) -> Written {
        let Some(operator) = self.operators.get(index).cloned() else { return Ok(Vec::new()) };
        let record = self.sign_operator((&operator.key, operator.enrolment, operator.address, state), now)?;
        if let Some(operator) = self.operators.get_mut(index) {
            operator.record = record.clone();
            operator.state = state;
        }
        Ok(vec![record])
    }

    /// Retires an operator; nothing for the last one.
    ///
    /// # Errors
    /// If the record cannot be made.
    pub fn retire(&mut self, index: usize, now: Now) -> Written {
        let active = self.operators.iter().filter(|operator| operator.state == OperatorState::Active).count();
        let is_active = self.operators.get(index).is_some_and(|o| o.state == OperatorState::Active);
        if active < 2 || !is_active {
            return Ok(Vec::new());
        }
        self.restate_operator(index, OperatorState::Retired, now)
    }
}
