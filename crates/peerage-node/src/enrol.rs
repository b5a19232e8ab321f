//! Joining and renewing, over HTTPS, or HTTP where nothing else passes.
//!
//! TLS is only a carrier here: whatever certificate is shown is taken, so that an intercepting proxy is no obstacle.
//! What is believed instead is the chain from the network id in the token to the operator's keys, and what is said is
//! sealed to those keys.
//!
//! ```text
//!   token ── network id, addresses ──▶ GET /v1/operator ── Hello, verified ──▶ POST /v1/enrol ── sealed both ways
//! ```
//!
//! Keys are on disk before the operator hears of them, and the operator admits the same key again without counting it
//! twice; so a crash at any instant of joining is mended by joining again. The membership is written in one
//! transaction.

mod admission;
mod carrier;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use getrandom::SysRng;
use getrandom::rand_core::UnwrapErr;
use peerage_wire::crypto::{CryptoError, Real};
use peerage_wire::enrol::{
    Credential, ENROL_PATH, EnrolAnswer, EnrolError, EnrolRequest, HELLO_PATH, Hello, HelloError, Refusal,
    TrustedOperator,
};
use peerage_wire::id::{Domain, NetworkId, NodeId};
use peerage_wire::limits::MAX_NAME;
use peerage_wire::record::Roles;
use peerage_wire::time::UnixTime;
use peerage_wire::token::{JoinToken, TokenError};

pub use self::admission::AdmissionError;
pub use self::carrier::CarrierError;
use self::carrier::Inside;
use crate::clock::Clock;
use crate::connect::Connector;
use crate::data::{DataDir, DataError, NodeKeys};
use crate::membership::{Admitted, Membership, Pending};
use crate::store::{NotWritten, Store, StoreError};

/// How long one address may take for each of both requests. A slow proxy takes seconds; longer makes people wait for a dead
/// address before the next one is tried.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(15);

/// How long the next way waits for the one before it: a firewall may swallow what goes to one port and leave others alone. Shorter
/// burdens an operator with connections that nobody needs.
const STAGGER: Duration = Duration::from_millis(500);

/// The port that firewalls leave open for HTTP.
const HTTP_PORT: u16 = 80;

/// What joining needs.
#[derive(Clone, Debug)]
pub struct JoinConfig {
    /// The data directory; made if it is absent.
    pub data: PathBuf,
    /// The join token, as text.
    pub token: String,
    /// What its owner calls this computer, 1 to 64 bytes.
    pub name: String,
    /// How the operator is connected to.
    pub connector: Connector,
}

/// What joining came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The node's id; while approval is awaited, no domain is known and the id begins with zeros.
    pub id: NodeId,
    /// The domain's name; empty while approval is awaited.
    pub domain_name: String,
    /// The computer's name.
    pub name: String,
    /// What the operator permits.
    pub roles: Roles,
    /// SHA-256 of the identity key, which administrators compare before they approve.
    pub fingerprint: String,
    /// Whether an administrator has to approve first; `peerage up` asks again.
    pub pending: bool,
    /// Whether this computer was a member before.
    pub already: bool,
    /// Until when the membership lasts unless it is renewed.
    pub expires: Option<UnixTime>,
}

/// Why joining failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is not one.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The name is empty or too long.
    #[error("the name of this computer must have 1 to {MAX_NAME} bytes; choose another with --name")]
    Name,
    /// The data directory cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk refused.
    #[error(transparent)]
    NotWritten(#[from] NotWritten),
    /// Two networks at once need two data directories.
    #[error(
        "this computer is a member of {domain} in another network; run `peerage leave` first, or give another data directory"
    )]
    OtherNetwork {
        /// The domain's name.
        domain: String,
    },
    /// The operators cannot be asked, or do not admit.
    #[error(transparent)]
    Enrol(#[from] EnrolFailure),
}

/// Why no operator admitted this computer.
#[derive(Debug, thiserror::Error)]
pub enum EnrolFailure {
    /// There is nobody to ask.
    #[error("the token names no operator; ask for a new one")]
    NoAddress,
    /// An operator has answered: no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// None of the addresses led to an operator of the network.
    #[error("no operator could be reached; the same command can be tried again later\n{0}")]
    Unreachable(Attempts),
}

/// What was tried, one line each.
#[derive(Debug)]
pub struct Attempts(pub Vec<(SocketAddr, AttemptError)>);

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (address, error)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}  {address}: {error}")?;
        }
        Ok(())
    }
}

/// Why one address led to nothing.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// Nothing came back in time.
    #[error("no answer within {} seconds", ADDRESS_TIMEOUT.as_secs())]
    Timeout,
    /// The connection, TLS or HTTP failed.
    #[error(transparent)]
    Carrier(#[from] CarrierError),
    /// What answered is no operator of this network.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// The operator's key cannot be used.
    #[error("the operator's enrolment key is not usable")]
    Crypto(#[from] CryptoError),
    /// The answer does not belong to the question.
    #[error("the operator's answer cannot be read: {0}")]
    Answer(#[from] EnrolError),
    /// What the answer contains is not proven.
    #[error("the operator's answer cannot be believed: {0}")]
    Admission(#[from] AdmissionError),
    /// An operator has answered, but cannot admit just now.
    #[error(transparent)]
    Unavailable(Refusal),
}

/// Joins this computer to the domain of a token. To do so twice is harmless: a member stays what it is.
///
/// # Errors
/// If the token, the data directory or the operator do not allow it; each says what to do.
pub async fn join(config: JoinConfig) -> Result<Joined, JoinError> {
    let token: JoinToken = config.token.parse()?;
    if config.name.is_empty() || config.name.len() > MAX_NAME {
        return Err(JoinError::Name);
    }
    let data = DataDir::create(&config.data)?;
    let (store, contents) = Store::open(&data.store_path())?;
    let known = data.keys()?;
    if let Some(membership) = Membership::load(&contents)
        && let Some(keys) = &known
    {
        if membership.network() != token.network {
            return Err(JoinError::OtherNetwork { domain: membership.domain_name });
        }
        let own = membership.own_record(&contents, keys);
        let expires = own.as_ref().map(|(record, _)| record.header().expires);
        let roles = own.map(|(_, body)| body.roles).unwrap_or_default();
        return Ok(joined(&membership, keys, roles, expires, true));
    }
    let keys = match known {
        Some(keys) => keys,
        None => {
            let keys = NodeKeys::generate(&mut rng());
            data.write_keys(&keys)?;
            keys
        }
    };
    let pending = Pending { token: token.to_string(), name: config.name };
    Ok(match enrol_with_token(&pending, &token, &keys, &config.connector).await? {
        Some(admitted) => {
            let Admitted { membership, records, roles, .. } = admitted;
            let expires = records.first().map(|record| record.header().expires);
            let joined = joined(&membership, &keys, roles, expires, false);
            store.write(membership.into_batch(records)).await?;
            joined
        }
        None => {
            let joined = awaiting(&keys, &pending.name);
            store.write(pending.into_batch()).await?;
            joined
        }
    })
}

fn joined(
    membership: &Membership,
    keys: &NodeKeys,
    roles: Roles,
    expires: Option<UnixTime>,
    already: bool,
) -> Joined {
    Joined {
        id: membership.node_id(keys),
        domain_name: membership.domain_name.clone(),
        name: membership.name.clone(),
        roles,
        fingerprint: keys.node_id(Domain::OPERATORS).fingerprint(),
        pending: false,
        already,
        expires,
    }
}

fn awaiting(keys: &NodeKeys, name: &str) -> Joined {
    Joined {
        id: keys.node_id(Domain::OPERATORS),
        domain_name: String::new(),
        name: name.to_owned(),
        roles: Roles::default(),
        fingerprint: keys.node_id(Domain::OPERATORS).fingerprint(),
        pending: true,
        already: false,
        expires: None,
    }
}

/// Asks with a token; `None` while an administrator's approval is awaited.
///
/// # Errors
/// If no operator admits.
pub async fn enrol_with_token(
    pending: &Pending,
    token: &JoinToken,
    keys: &NodeKeys,
    connector: &Connector,
) -> Result<Option<Admitted>, EnrolFailure> {
    let credential = Credential::Token { id: token.id, secret: token.secret };
    let asking = Asking { network: token.network, credential, keys, name: &pending.name, connector };
    asking.ask(&token.addresses).await
}

/// Renews a membership by proof of possession of its key.
///
/// # Errors
/// If no operator admits.
pub async fn renew(
    membership: &Membership,
    keys: &NodeKeys,
    operators: &[SocketAddr],
    connector: &Connector,
) -> Result<Option<Admitted>, EnrolFailure> {
    let credential = Credential::Possession(membership.node_id(keys));
    let asking =
        Asking { network: membership.network(), credential, keys, name: &membership.name, connector };
    asking.ask(operators).await
}

/// One enrolment under way.
struct Asking<'a> {
    network: NetworkId,
    credential: Credential,
    keys: &'a NodeKeys,
    name: &'a str,
    connector: &'a Connector,
}

impl Asking<'_> {
    /// Asks until an operator has decided; reaches for it in one way after the other, each a little after the one before.
    async fn ask(&self, addresses: &[SocketAddr]) -> Result<Option<Admitted>, EnrolFailure> {
        if addresses.is_empty() {
            return Err(EnrolFailure::NoAddress);
        }
        let mut attempts = Attempts(Vec::new());
        let mut waiting = ways(addresses).into_iter();
        let mut reaching = FuturesUnordered::new();
        loop {
            match waiting.next() {
                Some(way) => reaching.push(self.reach(way)),
                None if reaching.is_empty() => return Err(EnrolFailure::Unreachable(attempts)),
                None => {}
            }
            let ((inside, address), reached) = tokio::select! {
                Some(reached) = reaching.next() => reached,
                () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => continue,
            };
            let attempt = match reached {
                Ok((carrier, operator)) => within_limit(self.ask_operator(carrier, operator)).await,
                Err(error) => Err(error),
            };
            match attempt {
                Ok(Decision::Admitted(admitted)) => return Ok(Some(*admitted)),
                Ok(Decision::Pending) => return Ok(None),
                Ok(Decision::Refused(Refusal::Unavailable)) => {
                    attempts.0.push((address, AttemptError::Unavailable(Refusal::Unavailable)));
                }
                Ok(Decision::Refused(refusal)) => return Err(refusal.into()),
                Err(error) => {
                    tracing::debug!(%address, ?inside, %error, "an operator could not be asked");
                    // Once for each address, unless it is something that a browser would show.
                    let is_portal = matches!(error, AttemptError::Carrier(CarrierError::Portal(_)));
                    if inside == Inside::Tls || is_portal {
                        attempts.0.push((address, error));
                    }
                }
            }
        }
    }

    /// Connects to an address, and finds out whether an operator of the network is there.
    async fn reach(
        &self,
        way: (Inside, SocketAddr),
    ) -> ((Inside, SocketAddr), Result<(carrier::Carrier, TrustedOperator), AttemptError>) {
        let reached = async {
            let mut carrier = carrier::Carrier::connect(self.connector, way).await?;
            let hello = Hello::decode(&carrier.get(HELLO_PATH).await?).map_err(HelloError::from)?;
            // A joining computer does not know what time it is; the operator's answer says.
            let operator = hello.verify(&self.network, None, &Real)?;
            Ok((carrier, operator))
        };
        (way, within_limit(reached).await)
    }

    async fn ask_operator(
        &self,
        mut carrier: carrier::Carrier,
        operator: TrustedOperator,
    ) -> Result<Decision, AttemptError> {
        let request = EnrolRequest {
            credential: self.credential,
            identity: self.keys.identity.public(),
            receiving: *self.keys.receiving.public(),
            time: Clock::new().now().unix,
            name: self.name.to_owned(),
        };
        let sealed = request.seal(&self.network, &operator, &self.keys.identity, &mut rng())?;
        let answer = carrier.post(ENROL_PATH, sealed.clone()).await?;
        let answer = EnrolAnswer::open(&answer, &self.network, &self.keys.receiving, &sealed)?;
        self.decide(answer, operator)
    }

    fn decide(&self, answer: EnrolAnswer, operator: TrustedOperator) -> Result<Decision, AttemptError> {
        Ok(match answer {
            EnrolAnswer::Admitted(admission) => {
                let admitted = admission::verify(&admission, &self.network, operator, self.keys, self.name)?;
                Decision::Admitted(Box::new(admitted))
            }
            EnrolAnswer::Pending => Decision::Pending,
            EnrolAnswer::Refused(refusal) => Decision::Refused(refusal),
        })
    }
}

/// Returns the ways to an operator in the order in which they are tried: to each address inside TLS, then without, beginning where firewalls
/// expect that.
fn ways(addresses: &[SocketAddr]) -> Vec<(Inside, SocketAddr)> {
    let all = [Inside::Tls, Inside::Nothing].into_iter();
    let mut ways: Vec<_> =
        all.flat_map(|inside| addresses.iter().map(move |address| (inside, *address))).collect();
    ways.sort_by_key(|(inside, address)| {
        (*inside, *inside == Inside::Nothing && address.port() != HTTP_PORT)
    });
    ways
}

async fn within_limit<T>(work: impl Future<Output = Result<T, AttemptError>>) -> Result<T, AttemptError> {
    tokio::time::timeout(ADDRESS_TIMEOUT, work).await.unwrap_or(Err(AttemptError::Timeout))
}

/// What an operator has decided.
enum Decision {
    Admitted(Box<Admitted>),
    Pending,
    Refused(Refusal),
}

/// The system's randomness. It fails only on systems that are broken beyond use.
pub(crate) fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

#[cfg(test)]
mod tests;
