//! Spies: members that are the operator's own (Rule 6.79).
//!
//! A spy has a Node and a DomainKey record like any member, renewed when a member would renew them, with the roles and the token of one of
//! the domain's members. Only this table, and the marks that an administrator sees, tell it from them.

use std::time::Duration;

use peerage_proto::operator::SpyIdentity;
use peerage_wire::id::{Domain, NodeId, TokenId, sha256};
use peerage_wire::keys::{AgreementKey, IdentityKey};
use peerage_wire::record::{Roles, Table};
use peerage_wire::time::UnixTime;
use rusqlite::{OptionalExtension as _, params};

use super::upkeep::half_life;
use super::{Actor, LedgerError, Membership, NodeRow, Tx, count, millis, rng, signed};

/// How many spies a domain has. With one, its silence at a visit of the other could not be told from a fault; more would only be more
/// members that nobody has.
const SPIES_PER_DOMAIN: u32 = 2;

/// Most spies whose renewal is looked at in one transaction, those with the oldest records.
const MAX_LOOKED_AT: u32 = 100;

impl Tx<'_> {
    /// Makes one spy that is due, or renews one. A domain gets them at moments within `spread` after its first member has joined, so that
    /// their records are not always the second and third. Returns whether there was something to do.
    pub(crate) fn upkeep_spies(&mut self, spread: Duration) -> Result<bool, LedgerError> {
        let due = self.domains_without_spies()?.into_iter().find(|(domain, members_since, existing)| {
            members_since.after(self.drawn(*domain, *existing, 0, spread)) <= self.now
        });
        if let Some((domain, ..)) = due {
            self.add_spy(domain)?;
            return Ok(true);
        }
        for spy in self.spies_by_age()? {
            if self.renew_spy(spy)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the domains that have members and too few spies among them: since when, and how many spies they have ever had.
    fn domains_without_spies(&self) -> Result<Vec<(Domain, UnixTime, u32)>, LedgerError> {
        let mut select = self.sql.prepare_cached(
            "SELECT n.domain, min(n.joined_at), (SELECT count(*) FROM spy s WHERE s.domain = n.domain)
             FROM node n JOIN domain d ON d.id = n.domain LEFT JOIN spy s ON s.domain = n.domain AND s.hash = n.hash
             WHERE n.state = 1 AND n.expires_at > ?1 AND d.revoked_at IS NULL
             GROUP BY n.domain HAVING count(s.hash) < ?2 AND count(*) > count(s.hash)",
        )?;
        let rows = select.query_map(params![millis(self.now), SPIES_PER_DOMAIN], |row| {
            Ok((Domain(row.get(0)?), super::time(row.get(1)?), row.get(2)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Draws a time below `spread` that stays the same and that nobody else can guess.
    fn drawn(&self, domain: Domain, n: u32, version: u64, spread: Duration) -> Duration {
        let seed = self.signer.identity.seed();
        let parts: [&[u8]; 5] =
            [b"peerage spy", seed, &domain.to_bytes(), &n.to_be_bytes(), &version.to_be_bytes()];
        let [a, b, c, d, ..] = sha256(&parts);
        let part = f64::from(u32::from_be_bytes([a, b, c, d])) / f64::from(u32::MAX);
        spread.mul_f64(part)
    }

    fn add_spy(&mut self, domain: Domain) -> Result<(), LedgerError> {
        // What it may do and how it came is what is said of somebody else there.
        let select =
            "SELECT n.roles, n.token FROM node n WHERE n.domain = ?1 AND n.state = 1 AND n.expires_at > ?2
                      AND NOT EXISTS (SELECT 1 FROM spy s WHERE s.domain = n.domain AND s.hash = n.hash)
                      ORDER BY random() LIMIT 1";
        let member = self.sql.query_row(select, params![domain.0, millis(self.now)], |row| {
            Ok((Roles::from_bits(count(row.get(0)?)), TokenId(row.get(1)?)))
        });
        let Some((roles, token)) = member.optional()? else { return Ok(()) };
        let identity = IdentityKey::generate(&mut rng());
        let row = NodeRow {
            id: identity.node_id(domain),
            identity: identity.public(),
            // It never opens the domain's keys, so nobody keeps the secret half.
            receiving: *AgreementKey::generate(&mut rng()).public(),
            name: "spy".to_owned(),
            roles,
            token,
            membership: Membership::Member,
            joined_at: self.now,
            expires_at: None,
            seen_at: None,
            revoked_at: None,
            reason: None,
            is_spy: true,
        };
        self.sql.execute(
            "INSERT INTO node (domain, hash, identity, receiving, name, roles, token, state, joined_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 1, ?8)",
            params![
                domain.0,
                row.id.hash,
                row.identity,
                row.receiving,
                row.name,
                signed(row.roles.bits()),
                row.token.0,
                millis(self.now),
            ],
        )?;
        self.sql.execute(
            "INSERT INTO spy (domain, hash, secret) VALUES (?1, ?2, ?3)",
            params![domain.0, row.id.hash, identity.seed()],
        )?;
        self.admit_node(&row)?;
        self.change.spies.push(SpyIdentity { node: row.id, identity });
        self.audit(Actor::Operator, "spy add", &row.id.to_string())
    }

    /// Renews a spy's records when a member would: at half of their life, give or take a tenth (Rule 5.6).
    fn renew_spy(&mut self, spy: NodeId) -> Result<bool, LedgerError> {
        let Some(row) = self.node(spy)? else { return Ok(false) };
        let Some(record) = self.record(Table::Node, spy.domain, spy.record_key())? else { return Ok(false) };
        let half = half_life(Table::Node);
        let [a, b, c, d, ..] = spy.hash;
        let n = u32::from_be_bytes([a, b, c, d]);
        let pause = half.mul_f64(0.9) + self.drawn(spy.domain, n, record.header().version, half.mul_f64(0.2));
        let is_due = row.is_valid_at(self.now) && record.header().made_at().after(pause) <= self.now;
        if is_due {
            self.admit_node(&row)?;
        }
        Ok(is_due)
    }

    /// Returns the spies whose records may be due, the oldest first.
    fn spies_by_age(&self) -> Result<Vec<NodeId>, LedgerError> {
        let mut select = self.sql.prepare_cached(
            "SELECT s.domain, s.hash FROM spy s
             JOIN node n ON n.domain = s.domain AND n.hash = s.hash AND n.state = 1
             JOIN domain d ON d.id = s.domain AND d.revoked_at IS NULL
             JOIN record r ON r.kind = ?1 AND r.domain = s.domain AND r.key = s.hash
             WHERE r.version <= ?2 ORDER BY r.version LIMIT ?3",
        )?;
        let earliest = millis(self.now.before(half_life(Table::Node).mul_f64(0.9)));
        let rows = select.query_map(params![Table::Node.number(), earliest, MAX_LOOKED_AT], |row| {
            Ok(NodeId { domain: Domain(row.get(0)?), hash: row.get(1)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns all spies with their keys.
    pub(crate) fn spies(&self) -> Result<Vec<SpyIdentity>, LedgerError> {
        let mut select = self.sql.prepare_cached("SELECT domain, secret FROM spy ORDER BY domain, hash")?;
        let rows = select.query_map([], |row| {
            let (domain, secret) = (Domain(row.get(0)?), row.get::<_, [u8; 32]>(1)?);
            let identity = IdentityKey::from_seed(&secret);
            Ok(SpyIdentity { node: identity.node_id(domain), identity })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
