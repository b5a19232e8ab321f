//! Who is let in, and who may stay (chapter 5 of the protocol).

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::enrol::{Credential, EnrolRequest, Refusal};
use peerage_wire::id::{Domain, NodeId, TokenId};
use peerage_wire::record::{Record, Table};
use peerage_wire::time::UnixTime;
use peerage_wire::token::JoinToken;
use rusqlite::params;

use super::{Actor, LedgerError, Membership, NodeRow, TokenRow, Tx, millis, signed};

/// How long after its record has ended a member may still renew it by its key alone. Longer, and forgotten computers
/// come back; shorter, and those that are used once a year must join anew.
const RENEWAL_GRACE: Duration = Duration::from_secs(365 * 24 * 3_600);

/// A record that is younger than this is given again rather than made anew, so that a client that repeats its
/// question does not make the ledger write each time.
const RENEWAL_PAUSE: Duration = Duration::from_secs(3_600);

/// Most nodes of one domain, those that wait for approval included; what the thesis asks for, and what one
/// revocation can re-seal in a few seconds.
const MAX_DOMAIN_NODES: i64 = 10_000;

/// All that the ledger gives to somebody who is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) node: Record,
    pub(crate) domain_key: Record,
    pub(crate) operators: Vec<Bytes>,
    pub(crate) domain_name: String,
}

/// What becomes of a request to be let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Enrolment {
    Admitted(Box<Admitted>),
    Pending,
    Refused(Refusal),
}

impl Tx<'_> {
    /// Decides about a request whose signature was checked, and does what follows.
    pub(crate) fn enrol(&mut self, request: &EnrolRequest, remote: IpAddr) -> Result<Enrolment, LedgerError> {
        let done = match &request.credential {
            Credential::Token { id, secret } => self.join(*id, secret, request),
            Credential::Possession(node) => self.renew(*node, request),
        };
        match done {
            Ok(enrolment) => Ok(enrolment),
            Err(Refused::Because(refusal)) => {
                self.audit_refusal(remote, &refused_subject(request, refusal))?;
                Ok(Enrolment::Refused(refusal))
            }
            Err(Refused::Ledger(error)) => Err(error),
        }
    }

    fn join(&mut self, id: TokenId, secret: &[u8; 16], request: &EnrolRequest) -> Result<Enrolment, Refused> {
        let known = self.token(id)?.filter(|token| JoinToken::matches(secret, &token.secret_hash));
        let token = known.ok_or(Refusal::UnknownToken)?;
        let node = NodeId::new(token.domain, &request.identity);
        self.check_allowed(node)?;
        match self.node(node)? {
            Some(row) if self.is_renewable(&row) => self.again(row, request),
            Some(row) if row.membership == Membership::Pending => Ok(Enrolment::Pending),
            Some(_) | None => self.first(&token, node, request),
        }
    }

    /// Neither a revoked key nor a revoked domain comes back.
    fn check_allowed(&self, node: NodeId) -> Result<(), Refused> {
        if self.is_key_revoked(&node.hash)? {
            return Err(Refusal::RevokedNode.into());
        }
        if self.is_domain_revoked(node.domain)? {
            return Err(Refusal::RevokedDomain.into());
        }
        Ok(())
    }

    pub(super) fn is_domain_revoked(&self, domain: Domain) -> Result<bool, LedgerError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM domain WHERE id = ?1 AND revoked_at IS NOT NULL)";
        Ok(self.sql.prepare_cached(sql)?.query_row([domain.0], |row| row.get(0))?)
    }

    /// Whether a member's key alone is enough.
    fn is_renewable(&self, row: &NodeRow) -> bool {
        let within = |end: UnixTime| self.now < end.after(RENEWAL_GRACE);
        row.membership == Membership::Member && row.expires_at.is_some_and(within)
    }

    /// Lets a node in that uses the token for the first time.
    fn first(
        &mut self,
        token: &TokenRow,
        node: NodeId,
        request: &EnrolRequest,
    ) -> Result<Enrolment, Refused> {
        if token.closed_at.is_some() {
            return Err(Refusal::RevokedToken.into());
        }
        if token.expires_at <= self.now {
            return Err(Refusal::ExpiredToken.into());
        }
        if !self.use_token(token.id)? {
            return Err(Refusal::UsedUpToken.into());
        }
        let row = self.insert_node(token, node, request)?;
        self.check_domain_size(node.domain)?;
        let action = if token.approval { "node wait" } else { "node join" };
        self.audit(Actor::Node(node), action, &token.id.to_string())?;
        if token.approval { Ok(Enrolment::Pending) } else { Ok(self.admit(&row)?) }
    }

    fn insert_node(
        &mut self,
        token: &TokenRow,
        id: NodeId,
        request: &EnrolRequest,
    ) -> Result<NodeRow, LedgerError> {
        let row = NodeRow {
            id,
            identity: request.identity,
            receiving: request.receiving,
            name: printable(&request.name),
            roles: token.roles,
            token: token.id,
            membership: Membership::Pending,
            joined_at: self.now,
            expires_at: None,
            seen_at: None,
            revoked_at: None,
            reason: None,
            is_spy: false,
        };
        // A node that has left, or has been away for more than a year, takes its old row.
        self.sql.execute(
            "INSERT OR REPLACE INTO node
             (domain, hash, identity, receiving, name, roles, token, state, joined_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                id.domain.0,
                id.hash,
                row.identity,
                row.receiving,
                row.name,
                signed(row.roles.bits()),
                row.token.0,
                row.membership.number(),
                millis(row.joined_at),
            ],
        )?;
        Ok(row)
    }

    fn check_domain_size(&self, domain: Domain) -> Result<(), Refused> {
        let sql = "SELECT count(*) FROM node WHERE domain = ?1 AND state IN (0, 1)";
        let nodes: i64 = self.sql.prepare_cached(sql)?.query_row([domain.0], |row| row.get(0))?;
        if nodes > MAX_DOMAIN_NODES {
            tracing::warn!(%domain, "a domain has as many nodes as it may have");
            return Err(Refused::Ledger(LedgerError::Busy));
        }
        Ok(())
    }

    /// Renews a member's records by proof of possession of its key (Rule 5.6).
    fn renew(&mut self, node: NodeId, request: &EnrolRequest) -> Result<Enrolment, Refused> {
        if !node.is_of(&request.identity) {
            return Err(Refusal::UnknownNode.into());
        }
        let row = self.node(node)?.ok_or(Refusal::UnknownNode)?;
        self.check_allowed(node)?;
        if row.membership == Membership::Pending {
            return Ok(Enrolment::Pending);
        }
        if !self.is_renewable(&row) {
            return Err(Refusal::UnknownNode.into());
        }
        self.again(row, request)
    }

    /// Gives a member its records again; makes them anew if they are not fresh or are sealed to another key.
    fn again(&mut self, row: NodeRow, request: &EnrolRequest) -> Result<Enrolment, Refused> {
        let id = row.id;
        if row.receiving == request.receiving {
            let fresh = |record: &Record| {
                self.now < record.header().made_at().after(RENEWAL_PAUSE)
                    && record.is_valid_at(self.now)
                    && !record.header().removed
            };
            let node = self.record(Table::Node, id.domain, id.record_key())?.filter(fresh);
            let domain_key = self.record(Table::DomainKey, id.domain, id.record_key())?;
            if let (Some(node), Some(domain_key)) = (node, domain_key) {
                return Ok(self.admitted(node, domain_key)?);
            }
        }
        let row = NodeRow { receiving: request.receiving, name: printable(&request.name), ..row };
        self.audit_once_a_day(Actor::Node(id), "node renew", &id.to_string())?;
        Ok(self.admit(&row)?)
    }

    fn admit(&mut self, row: &NodeRow) -> Result<Enrolment, LedgerError> {
        let (node, domain_key) = self.admit_node(row)?;
        self.admitted(node, domain_key)
    }

    fn admitted(&self, node: Record, domain_key: Record) -> Result<Enrolment, LedgerError> {
        let sql = "SELECT name FROM domain WHERE id = ?1";
        let domain = node.header().domain.0;
        let domain_name = self.sql.prepare_cached(sql)?.query_row([domain], |row| row.get(0))?;
        let operators = self.operators()?;
        Ok(Enrolment::Admitted(Box::new(Admitted { node, domain_key, operators, domain_name })))
    }
}

/// Why somebody is not let in, while it is being decided.
enum Refused {
    Because(Refusal),
    Ledger(LedgerError),
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Because(refusal)
    }
}

impl<E: Into<LedgerError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Ledger(error.into())
    }
}

/// Says what was refused, with nothing in it that a stranger could vary at will.
fn refused_subject(request: &EnrolRequest, refusal: Refusal) -> String {
    match (&request.credential, refusal) {
        (_, Refusal::UnknownToken | Refusal::UnknownNode) => format!("{refusal:?}"),
        (Credential::Token { id, .. }, _) => format!("{refusal:?} token {id}"),
        (Credential::Possession(node), _) => format!("{refusal:?} node {node}"),
    }
}

/// Leaves out of a name what would move a cursor or hide text where administrators read it.
fn printable(name: &str) -> String {
    name.chars().filter(|c| !c.is_control() && !is_direction_mark(*c)).collect()
}

/// Marks that make text run from right to left: with them a name can be shown as another.
const fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
