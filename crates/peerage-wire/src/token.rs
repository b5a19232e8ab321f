//! Join tokens: what a vendor gives a customer so that its computers may join (Rule 5.1).

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::cbor::{Map, MapWriter};
use crate::codec::{read_addresses, write_addresses};
use crate::id::{NetworkId, TokenId, from_hex, prefix, sha256, to_hex};
use crate::limits::MAX_ADDRESSES;

/// How a token begins, so that it is recognised in an e-mail.
const PREFIX: &str = "peerage1-";
const CHECKSUM_SIZE: usize = 4;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Which network it is for.
    pub network: NetworkId,
    /// By which the operator finds it.
    pub id: TokenId,
    /// What proves that one has it; 16 bytes.
    pub secret: [u8; 16],
    /// Where the operators are.
    pub addresses: Vec<SocketAddr>,
}

impl JoinToken {
    /// Returns what the operator keeps instead of the secret.
    pub fn secret_hash(&self) -> [u8; 32] {
        sha256(&[&self.secret])
    }

    /// Compares a secret with a kept hash in constant time.
    pub fn matches(secret: &[u8; 16], hash: &[u8; 32]) -> bool {
        use subtle::ConstantTimeEq as _;
        sha256(&[secret]).ct_eq(hash).into()
    }

    fn body(&self) -> Vec<u8> {
        let mut map = MapWriter::new();
        map.bytes(1, &self.network.0).bytes(2, &self.id.0).bytes(3, &self.secret);
        write_addresses(&mut map, 4, &self.addresses);
        map.finish()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.body();
        let checksum: [u8; CHECKSUM_SIZE] = prefix(&sha256(&[&bytes]));
        bytes.extend_from_slice(&checksum);
        write!(f, "{PREFIX}{}", to_hex(&bytes))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why a text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It begins with something else.
    #[error("this is not a join token: it does not begin with `{PREFIX}`")]
    NotAToken,
    /// Characters are missing or altered.
    #[error("this join token is damaged or incomplete; copy it again, whole")]
    Damaged,
    /// It is of a newer version.
    #[error("this join token needs a newer version of Peerage")]
    Newer,
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let digits = text.strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        let bytes = decode_hex(digits).ok_or(TokenError::Damaged)?;
        let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_SIZE>().ok_or(TokenError::Damaged)?;
        if *checksum != prefix::<CHECKSUM_SIZE>(&sha256(&[body])) {
            return Err(TokenError::Damaged);
        }
        let newer = |_| TokenError::Newer;
        let mut map = Map::parse(body).map_err(newer)?;
        let (network, id, secret) =
            (map.id(1).map_err(newer)?, map.id(2).map_err(newer)?, map.id(3).map_err(newer)?);
        let addresses = read_addresses(&mut map, 4, MAX_ADDRESSES).map_err(newer)?;
        map.finish().map_err(newer)?;
        Ok(Self { network, id, secret, addresses })
    }
}

fn decode_hex(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| from_hex::<1>(str::from_utf8(pair).ok()?).ok().map(|[byte]| byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            network: NetworkId([1; 32]),
            id: TokenId([2; 8]),
            secret: [3; 16],
            addresses: vec!["192.0.2.1:7400".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap()],
        }
    }

    /// Rule 5.1: a token survives a mail programme that adds white space around it.
    #[test]
    fn a_token_is_read_back_as_written() {
        assert_eq!(token().to_string().parse(), Ok(token()));
        assert_eq!(format!("  {}\n", token()).parse(), Ok(token()));
    }

    /// Rule 5.1: each altered or missing character is noticed before anything is sent.
    #[test]
    fn a_damaged_token_is_told_from_a_foreign_text() {
        let text = token().to_string();
        for length in PREFIX.len()..text.len() {
            assert_eq!(text[..length].parse::<JoinToken>(), Err(TokenError::Damaged), "{length}");
        }
        for at in PREFIX.len()..text.len() {
            let mut altered = text.clone();
            let digit = if &text[at..=at] == "0" { "1" } else { "0" };
            altered.replace_range(at..=at, digit);
            assert_eq!(altered.parse::<JoinToken>(), Err(TokenError::Damaged), "{at}");
        }
        assert_eq!("hello".parse::<JoinToken>(), Err(TokenError::NotAToken));
    }

    #[test]
    fn the_secret_is_compared_by_its_hash_and_not_shown() {
        let token = token();
        assert!(JoinToken::matches(&token.secret, &token.secret_hash()));
        assert!(!JoinToken::matches(&[4; 16], &token.secret_hash()));
        assert!(!format!("{token:?}").contains("0303"));
    }
}
