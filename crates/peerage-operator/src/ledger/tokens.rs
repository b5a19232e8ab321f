//! Join tokens.

use std::time::Duration;

use peerage_wire::id::{Domain, NodeId, TokenId};
use peerage_wire::record::Roles;
use peerage_wire::time::UnixTime;
use rusqlite::{OptionalExtension as _, Row, params};

use super::{Actor, LedgerError, Reason, Tx, count, millis, random, time};

/// Longest life of a token. A longer one is a standing door that nobody remembers.
pub(crate) const MAX_TOKEN_LIFE: Duration = Duration::from_secs(366 * 24 * 3_600);

/// Most nodes that one token lets in: a whole domain of the largest size.
pub(crate) const MAX_TOKEN_USES: u32 = 10_000;

/// Most tokens of one domain that are still good. More would only make a list that nobody reads.
const MAX_OPEN_TOKENS: u64 = 1_000;

/// A token as it is kept; the secret itself is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenRow {
    pub(crate) id: TokenId,
    pub(crate) domain: Domain,
    pub(crate) secret_hash: [u8; 32],
    pub(crate) uses: u32,
    pub(crate) used: u32,
    pub(crate) roles: Roles,
    pub(crate) approval: bool,
    pub(crate) created_at: UnixTime,
    pub(crate) expires_at: UnixTime,
    pub(crate) closed_at: Option<UnixTime>,
}

/// Asks for a token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewToken {
    pub(crate) domain: Domain,
    pub(crate) uses: u32,
    pub(crate) life: Duration,
    pub(crate) roles: Roles,
    pub(crate) approval: bool,
}

/// Why something about a token cannot be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// The domain has none of this id.
    #[error("the domain has no token of this id")]
    Unknown,
    /// The domain has as many as it may.
    #[error("the domain already has {MAX_OPEN_TOKENS} tokens that are good; revoke some")]
    TooMany,
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<rusqlite::Error> for TokenError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Ledger(error.into())
    }
}

const SELECT: &str = "SELECT id, domain, secret_hash, uses, used, roles, approval, created_at, expires_at, closed_at FROM token";

fn row(row: &Row<'_>) -> rusqlite::Result<TokenRow> {
    Ok(TokenRow {
        id: TokenId(row.get(0)?),
        domain: Domain(row.get(1)?),
        secret_hash: row.get(2)?,
        uses: row.get(3)?,
        used: row.get(4)?,
        roles: Roles::from_bits(count(row.get(5)?)),
        approval: row.get(6)?,
        created_at: time(row.get(7)?),
        expires_at: time(row.get(8)?),
        closed_at: row.get::<_, Option<i64>>(9)?.map(time),
    })
}

impl Tx<'_> {
    /// Makes a token; returns its secret too, which cannot be learned again.
    pub(crate) fn add_token(
        &mut self,
        new: &NewToken,
        actor: Actor,
    ) -> Result<(TokenRow, [u8; 16]), TokenError> {
        let open: i64 = self.sql.query_row(
            "SELECT count(*) FROM token
             WHERE domain = ?1 AND expires_at > ?2 AND closed_at IS NULL AND used < uses",
            params![new.domain.0, millis(self.now)],
            |row| row.get(0),
        )?;
        if count(open) >= MAX_OPEN_TOKENS {
            return Err(TokenError::TooMany);
        }
        let secret: [u8; 16] = random();
        let row = TokenRow {
            id: TokenId(random()),
            domain: new.domain,
            secret_hash: peerage_wire::id::sha256(&[&secret]),
            uses: new.uses.clamp(1, MAX_TOKEN_USES),
            used: 0,
            roles: new.roles,
            approval: new.approval,
            created_at: self.now,
            expires_at: self.now.after(new.life.min(MAX_TOKEN_LIFE)),
            closed_at: None,
        };
        self.sql.execute(
            "INSERT INTO token (id, domain, secret_hash, uses, roles, approval, created_at, expires_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                row.id.0,
                row.domain.0,
                row.secret_hash,
                row.uses,
                super::signed(row.roles.bits()),
                row.approval,
                millis(row.created_at),
                millis(row.expires_at),
            ],
        )?;
        self.audit(actor, "token add", &row.id.to_string())?;
        Ok((row, secret))
    }

    /// Returns the tokens of a domain, ended ones included, by id.
    pub(crate) fn tokens(&self, domain: Domain) -> Result<Vec<TokenRow>, LedgerError> {
        let mut select = self.sql.prepare_cached(&format!("{SELECT} WHERE domain = ?1 ORDER BY id"))?;
        let rows = select.query_map([domain.0], row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns one token, of whatever domain.
    pub(super) fn token(&self, id: TokenId) -> Result<Option<TokenRow>, LedgerError> {
        let mut select = self.sql.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?;
        Ok(select.query_row([id.0], row).optional()?)
    }

    /// Closes a token and, if asked to, revokes every node that has joined with it; returns those.
    pub(crate) fn revoke_token(
        &mut self,
        domain: Domain,
        id: TokenId,
        with_nodes: bool,
        actor: Actor,
    ) -> Result<(TokenRow, Vec<NodeId>), TokenError> {
        let known = self.token(id)?.filter(|token| token.domain == domain).ok_or(TokenError::Unknown)?;
        self.close_token(id)?;
        self.audit(actor, "token revoke", &id.to_string())?;
        let nodes = if with_nodes { self.nodes_of_token(id)? } else { Vec::new() };
        self.revoke_nodes(domain, &nodes, Reason::Unspecified, actor)?;
        let closed_at = known.closed_at.or(Some(self.now));
        Ok((TokenRow { closed_at, ..known }, nodes))
    }

    pub(super) fn close_token(&mut self, id: TokenId) -> Result<(), LedgerError> {
        let mut update =
            self.sql.prepare_cached("UPDATE token SET closed_at = ?2 WHERE id = ?1 AND closed_at IS NULL")?;
        update.execute(params![id.0, millis(self.now)])?;
        Ok(())
    }

    /// Takes one use of a token; false if there is none left.
    pub(super) fn use_token(&mut self, id: TokenId) -> Result<bool, LedgerError> {
        let mut update =
            self.sql.prepare_cached("UPDATE token SET used = used + 1 WHERE id = ?1 AND used < uses")?;
        Ok(update.execute([id.0])? == 1)
    }
}
