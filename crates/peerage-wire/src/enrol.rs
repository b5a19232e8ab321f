//! Joining and renewing: what a node and an operator say to each other over HTTPS (chapter 5 of the protocol).
//!
//! TLS is only a carrier here: its result is neither trusted nor fatal, so joining works through a proxy that intercepts it.
//! The client believes an operator whose record is signed by the root that its token names; what it sends is
//! sealed to that operator, and the answer is sealed to the node.

use bytes::Bytes;

use crate::cbor::{Malformed, Map, MapWriter};
use crate::crypto::{Crypto, CryptoError, ENC_SIZE, open_sealed, seal_to};
use crate::id::{NetworkId, NodeId, TokenId};
use crate::intro::KeyStatement;
use crate::keys::{AgreementKey, IdentityKey, LABEL_ENROL, LABEL_ENROLLED, network_id, verify};
use crate::limits::{MAX_LIST, MAX_NAME};
use crate::record::{OperatorBody, OperatorState, Record, RecordError, UnverifiedRecord};
use crate::time::UnixTime;
use rand_core::CryptoRng;

/// The path at which an operator answers with its [`Hello`].
pub const HELLO_PATH: &str = "/v1/operator";
/// The field of its answer's head that says which certificate the server shows (Rule 5.7).
pub const CERTIFICATE_FIELD: &str = "peerage-certificate";
/// The path to which a sealed [`EnrolRequest`] is posted.
pub const ENROL_PATH: &str = "/v1/enrol";
/// Longest body of either side, in bytes: an answer has at most some 20 records.
pub const MAX_ENROL_BODY: usize = 32 * 1024;

/// What an operator says about itself to anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The root key whose hash is the network id.
    pub root: [u8; 32],
    /// The operator's own OperatorNode record.
    pub operator: Bytes,
}

/// Why an operator's [`Hello`] cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// What was received is not a Hello.
    #[error("what answered is not a Peerage operator: {0}")]
    Malformed(#[from] Malformed),
    /// Its root is not the one that the token names.
    #[error("the operator that answered belongs to another network than the token")]
    OtherNetwork,
    /// The operator's record is not valid.
    #[error("the operator's record is not valid: {0}")]
    Record(#[from] RecordError),
    /// The operator no longer signs.
    #[error("this operator was retired; ask the vendor for a new token")]
    Retired,
}

/// An operator that can be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedOperator {
    /// Its id.
    pub id: NodeId,
    /// Its record.
    pub record: Record,
    /// What the record says.
    pub body: OperatorBody,
    /// The root key of the network.
    pub root: [u8; 32],
}

impl Hello {
    /// Encodes the body of the answer.
    pub fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::new();
        map.bytes(1, &self.root).bytes(2, &self.operator);
        map.finish()
    }

    /// Reads the body of the answer.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut map = Map::parse(bytes)?;
        let hello = Self { root: map.id(1)?, operator: Bytes::copy_from_slice(map.bytes(2)?) };
        map.finish()?;
        Ok(hello)
    }

    /// Verifies the chain from the network id to the operator's keys (Rule 5.2). Without a `time`
    /// expiry is not judged: a joining node does not know yet what time it is.
    ///
    /// # Errors
    /// If any link of the chain is missing.
    pub fn verify(
        &self,
        network: &NetworkId,
        time: Option<UnixTime>,
        crypto: &dyn Crypto,
    ) -> Result<TrustedOperator, HelloError> {
        if network_id(&self.root) != *network {
            return Err(HelloError::OtherNetwork);
        }
        let record = UnverifiedRecord::parse(&self.operator)?;
        if let Some(time) = time {
            record.check_time(time)?;
        }
        let record = record.verify(network, &self.root, crypto)?;
        let body = OperatorBody::read(&record)?;
        if body.state != OperatorState::Active {
            return Err(HelloError::Retired);
        }
        let id = crate::record::subject(record.header());
        Ok(TrustedOperator { id, record, body, root: self.root })
    }
}

/// Why somebody should be let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential {
    /// Has a join token.
    Token {
        /// Which.
        id: TokenId,
        /// Its secret.
        secret: [u8; 16],
    },
    /// Was a member and still has the key: renewal (Rule 5.6).
    Possession(NodeId),
}

/// What a node asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolRequest {
    /// Why it should be let in.
    pub credential: Credential,
    /// Its Ed25519 identity key.
    pub identity: [u8; 32],
    /// Its X25519 receiving key.
    pub receiving: [u8; 32],
    /// Its clock, which may be wrong.
    pub time: UnixTime,
    /// What its owner calls it; shown to administrators only.
    pub name: String,
}

impl EnrolRequest {
    fn credential_bytes(&self) -> Vec<u8> {
        match &self.credential {
            Credential::Token { id, .. } => id.0.to_vec(),
            Credential::Possession(node) => node.to_bytes().to_vec(),
        }
    }

    fn signed_bytes(&self, network: &NetworkId, operator: NodeId, enc: &[u8; ENC_SIZE]) -> Vec<u8> {
        let credential = self.credential_bytes();
        let operator = operator.to_bytes();
        [LABEL_ENROL, &network.0, &operator, &credential, &self.identity, &self.receiving, enc].concat()
    }

    fn write(&self, signature: &[u8; 64]) -> Vec<u8> {
        let mut map = MapWriter::new();
        match &self.credential {
            Credential::Token { id, secret } => map.bytes(1, &id.0).bytes(2, secret),
            Credential::Possession(node) => map.bytes(3, &node.to_bytes()),
        };
        map.bytes(4, &self.identity)
            .bytes(5, &self.receiving)
            .uint(6, self.time.as_millis())
            .text(7, &self.name)
            .bytes(8, signature);
        map.finish()
    }

    fn read(bytes: &[u8]) -> Result<(Self, [u8; 64]), Malformed> {
        let mut map = Map::parse(bytes)?;
        let id = map.optional_id(1)?;
        let secret = map.optional_id(2)?;
        let node = map.optional_id(3)?;
        let credential = match (id, secret, node) {
            (Some(id), Some(secret), None) => Credential::Token { id, secret },
            (None, None, Some(node)) => Credential::Possession(node),
            _ => return Err(Malformed::Missing(1)),
        };
        let request = Self {
            credential,
            identity: map.id(4)?,
            receiving: map.id(5)?,
            time: UnixTime::from_millis(map.uint(6)?),
            name: map.text(7, MAX_NAME)?,
        };
        let signature = map.id(8)?;
        map.finish()?;
        Ok((request, signature))
    }

    /// Signs the request and seals it to an operator (Rule 5.3).
    ///
    /// # Errors
    /// If the operator's enrolment key is not usable.
    pub fn seal(
        &self,
        network: &NetworkId,
        operator: &TrustedOperator,
        identity: &IdentityKey,
        rng: &mut dyn CryptoRng,
    ) -> Result<Vec<u8>, CryptoError> {
        let write =
            |enc: &[u8; ENC_SIZE]| self.write(&identity.sign(&self.signed_bytes(network, operator.id, enc)));
        seal_to(&operator.body.enrolment, LABEL_ENROL, &network.0, write, rng)
    }

    /// Opens a request and checks that its sender holds the identity key in it (Rule 5.3).
    ///
    /// # Errors
    /// If it was not sealed to this operator, is malformed, or not signed by the key that it names. Who proves
    /// possession proves it of the key whose node it names.
    pub fn open(
        sealed: &[u8],
        network: &NetworkId,
        operator: NodeId,
        enrolment: &AgreementKey,
    ) -> Result<Self, EnrolError> {
        let enc = sealed.first_chunk::<ENC_SIZE>().ok_or(CryptoError)?;
        let (request, signature) = Self::read(&open_sealed(enrolment, LABEL_ENROL, &network.0, sealed)?)?;
        let message = request.signed_bytes(network, operator, enc);
        let is_own = match &request.credential {
            Credential::Possession(node) => node.is_of(&request.identity),
            Credential::Token { .. } => true,
        };
        let genuine = is_own && verify(&request.identity, &message, &signature);
        if genuine { Ok(request) } else { Err(CryptoError.into()) }
    }
}

/// Why an enrolment message cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnrolError {
    /// It does not open, or its signature is wrong.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// It opened, but is not what it should be.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
}

/// Why an operator does not let somebody in; told only to whoever sealed a proper request (Rule 5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such token, or the secret is not its.
    #[error("the operator does not know this join token; ask for a new one")]
    UnknownToken,
    /// The token has expired.
    #[error("this join token has expired; ask for a new one")]
    ExpiredToken,
    /// The token was used as often as it may be.
    #[error("this join token has been used as often as it may be; ask for a new one")]
    UsedUpToken,
    /// The token was closed by an administrator.
    #[error("this join token was revoked; ask for a new one")]
    RevokedToken,
    /// The key was revoked: it never registers again by itself.
    #[error("this computer's key was revoked; to join again, delete its key file and use a new join token")]
    RevokedNode,
    /// There is no member with this key, or not any more.
    #[error("the operator does not know this computer; join again with a join token")]
    UnknownNode,
    /// The domain was revoked.
    #[error("the operator no longer serves this organisation")]
    RevokedDomain,
    /// The operator cannot write just now.
    #[error("the operator cannot admit anybody just now; try again in a few minutes")]
    Unavailable,
}

impl Refusal {
    const ALL: [(Self, u64); 8] = [
        (Self::UnknownToken, 1),
        (Self::ExpiredToken, 2),
        (Self::UsedUpToken, 3),
        (Self::RevokedToken, 4),
        (Self::RevokedNode, 5),
        (Self::UnknownNode, 6),
        (Self::RevokedDomain, 7),
        (Self::Unavailable, 8),
    ];
}

/// What an operator answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnrolAnswer {
    /// Let in.
    Admitted(Box<Admission>),
    /// An administrator has to approve first; ask again later.
    Pending,
    /// Not let in.
    Refused(Refusal),
}

/// All that a new member needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Its Node record.
    pub node: Bytes,
    /// Its DomainKey record.
    pub domain_key: Bytes,
    /// The OperatorNode records.
    pub operators: Vec<Bytes>,
    /// The sealing key of the operator that answers.
    pub statement: KeyStatement,
    /// What people call the domain.
    pub domain_name: String,
    /// The operator's clock.
    pub time: UnixTime,
}

impl Admission {
    fn write(&self) -> MapWriter {
        let mut map = MapWriter::new();
        map.bytes(1, &self.node)
            .bytes(2, &self.domain_key)
            .list_of_bytes(3, &self.operators)
            .bytes(4, &self.statement.to_bytes())
            .text(5, &self.domain_name)
            .uint(6, self.time.as_millis());
        map
    }

    fn read(mut map: Map<'_>) -> Result<Self, Malformed> {
        let admission = Self {
            node: Bytes::copy_from_slice(map.bytes(1)?),
            domain_key: Bytes::copy_from_slice(map.bytes(2)?),
            operators: map.list(3, MAX_LIST, |e| e.bytes().map(Bytes::copy_from_slice))?,
            statement: KeyStatement::from_bytes(map.bytes(4)?).ok_or(Malformed::Type(4))?,
            domain_name: map.text(5, MAX_NAME)?,
            time: UnixTime::from_millis(map.uint(6)?),
        };
        map.finish()?;
        Ok(admission)
    }
}

impl EnrolAnswer {
    fn write(&self) -> Vec<u8> {
        let mut map = MapWriter::new();
        match self {
            Self::Admitted(admission) => map.uint(1, 0_u64).map(2, &admission.write()),
            Self::Pending => map.uint(1, 1_u64),
            Self::Refused(refusal) => {
                let code = Refusal::ALL.iter().find(|(r, _)| r == refusal).map_or(0, |(_, code)| *code);
                map.uint(1, 2_u64).uint(3, code)
            }
        };
        map.finish()
    }

    fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut map = Map::parse(bytes)?;
        let answer = match map.uint::<u64>(1)? {
            0 => Self::Admitted(Box::new(Admission::read(map.map(2)?)?)),
            1 => Self::Pending,
            2 => {
                let code: u64 = map.uint(3)?;
                let known = Refusal::ALL.iter().find(|(_, c)| *c == code).map(|(refusal, _)| *refusal);
                Self::Refused(known.ok_or(Malformed::Type(3))?)
            }
            _ => return Err(Malformed::Type(1)),
        };
        map.finish()?;
        Ok(answer)
    }

    /// Seals the answer to the node that asked, bound to its request (Rule 5.4).
    ///
    /// # Errors
    /// If the node's receiving key is not usable.
    pub fn seal(
        &self,
        network: &NetworkId,
        receiving: &[u8; 32],
        request: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<Vec<u8>, CryptoError> {
        seal_to(receiving, LABEL_ENROLLED, &bound_to(network, request), |_| self.write(), rng)
    }

    /// Opens the answer to a request.
    ///
    /// # Errors
    /// If it does not belong to the request, or is malformed.
    pub fn open(
        sealed: &[u8],
        network: &NetworkId,
        receiving: &AgreementKey,
        request: &[u8],
    ) -> Result<Self, EnrolError> {
        Ok(Self::read(&open_sealed(receiving, LABEL_ENROLLED, &bound_to(network, request), sealed)?)?)
    }
}

/// An answer is bound to the encapsulated key of its request, which is new each time.
fn bound_to(network: &NetworkId, request: &[u8]) -> Vec<u8> {
    [&network.0[..], request.get(..ENC_SIZE).unwrap_or(&[])].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Real;
    use crate::id::Domain;
    use crate::record::{Draft, Header, Table};
    use crate::testing::TestRng;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn root() -> IdentityKey {
        IdentityKey::from_seed(&[1; 32])
    }

    fn operator() -> IdentityKey {
        IdentityKey::from_seed(&[2; 32])
    }

    fn node() -> IdentityKey {
        IdentityKey::from_seed(&[3; 32])
    }

    fn enrolment() -> AgreementKey {
        AgreementKey::from_secret([4; 32])
    }

    fn receiving() -> AgreementKey {
        AgreementKey::from_secret([5; 32])
    }

    fn network() -> NetworkId {
        network_id(&root().public())
    }

    fn hello(signer: &IdentityKey, state: OperatorState) -> Hello {
        let id = operator().node_id(Domain::OPERATORS);
        let header = Header {
            table: Table::OperatorNode,
            domain: Domain::OPERATORS,
            key: id.record_key(),
            version: NOW.as_millis(),
            expires: NOW.after(Table::OperatorNode.max_life()),
            signer: signer.node_id(Domain::OPERATORS),
            removed: false,
        };
        let body = OperatorBody {
            identity: operator().public(),
            enrolment: *enrolment().public(),
            addresses: vec!["192.0.2.1:7400".parse().unwrap()],
            state,
        };
        let draft = Draft { header, public: body.write(), private: None };
        let record = draft.sign(signer, &network(), &Real).unwrap();
        Hello { root: root().public(), operator: record.bytes().clone() }
    }

    fn trusted() -> TrustedOperator {
        hello(&root(), OperatorState::Active).verify(&network(), Some(NOW), &Real).unwrap()
    }

    fn request(credential: Credential) -> EnrolRequest {
        EnrolRequest {
            credential,
            identity: node().public(),
            receiving: *receiving().public(),
            time: NOW,
            name: "front desk".to_owned(),
        }
    }

    fn by_token() -> EnrolRequest {
        request(Credential::Token { id: TokenId([6; 8]), secret: [7; 16] })
    }

    fn sealed(request: &EnrolRequest, identity: &IdentityKey) -> Vec<u8> {
        request.seal(&network(), &trusted(), identity, &mut TestRng(1)).unwrap()
    }

    fn open(sealed: &[u8]) -> Result<EnrolRequest, EnrolError> {
        EnrolRequest::open(sealed, &network(), trusted().id, &enrolment())
    }

    fn admission() -> Admission {
        let validity = NOW..NOW.after(std::time::Duration::from_secs(60));
        let id = operator().node_id(Domain::OPERATORS);
        Admission {
            node: Bytes::from_static(b"node"),
            domain_key: Bytes::from_static(b"key"),
            operators: vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")],
            statement: KeyStatement::sign(&operator(), &network(), id, [8; 32], validity, &Real),
            domain_name: "acme".to_owned(),
            time: NOW,
        }
    }

    /// Rule 5.2: every link of the chain from the token's network id to the operator's keys.
    #[test]
    fn an_operator_is_believed_only_through_the_root_that_the_token_names() {
        let good = hello(&root(), OperatorState::Active);
        assert_eq!(Hello::decode(&good.encode()), Ok(good.clone()));
        let verify = |hello: &Hello| hello.verify(&network(), Some(NOW), &Real).map(|operator| operator.id);
        assert_eq!(verify(&good), Ok(operator().node_id(Domain::OPERATORS)));
        let other_root = Hello { root: operator().public(), ..good.clone() };
        assert_eq!(verify(&other_root), Err(HelloError::OtherNetwork));
        let self_signed = hello(&operator(), OperatorState::Active);
        assert_eq!(verify(&self_signed), Err(HelloError::Record(RecordError::Signature)));
        assert_eq!(verify(&hello(&root(), OperatorState::Retired)), Err(HelloError::Retired));
        assert_eq!(verify(&hello(&root(), OperatorState::Compromised)), Err(HelloError::Retired));
        let later = NOW.after(Table::OperatorNode.max_life());
        let expired = good.verify(&network(), Some(later), &Real).map(drop);
        assert_eq!(expired, Err(HelloError::Record(RecordError::Expired)));
        assert!(good.verify(&network(), None, &Real).is_ok());
    }

    /// Rule 5.3: a request arrives as it was sent, by token and by proof of possession.
    #[test]
    fn requests_are_read_back_as_sealed() {
        let renewal = request(Credential::Possession(node().node_id(Domain(7))));
        for request in [by_token(), renewal] {
            assert_eq!(open(&sealed(&request, &node())), Ok(request));
        }
    }

    /// Rule 5.3: nobody asks with a key that is not his, nor renews a node that he is not.
    #[test]
    fn a_request_must_be_signed_by_the_key_that_it_names() {
        let forged = Err(EnrolError::Crypto(CryptoError));
        assert_eq!(open(&sealed(&by_token(), &operator())), forged);
        let others = request(Credential::Possession(operator().node_id(Domain(7))));
        assert_eq!(open(&sealed(&others, &node())), forged);
    }

    /// Rule 5.3: a request is for one operator of one network, and none of its bits can be changed.
    #[test]
    fn a_request_opens_for_its_operator_alone_and_unaltered() {
        let sealed = sealed(&by_token(), &node());
        let forged = Err(EnrolError::Crypto(CryptoError));
        let other_id = NodeId { domain: Domain(1), ..trusted().id };
        assert_eq!(EnrolRequest::open(&sealed, &NetworkId([9; 32]), trusted().id, &enrolment()), forged);
        assert_eq!(EnrolRequest::open(&sealed, &network(), other_id, &enrolment()), forged);
        assert_eq!(EnrolRequest::open(&sealed, &network(), trusted().id, &receiving()), forged);
        for length in 0..sealed.len() {
            assert_eq!(open(&sealed[..length]), forged, "{length}");
        }
        for bit in 0..sealed.len() * 8 {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&altered), forged, "bit {bit}");
        }
    }

    /// Rules 5.4 and 5.5: every answer arrives, sealed to the node, for just this request.
    #[test]
    fn answers_are_read_back_and_bound_to_their_request() {
        let (request, other) = (sealed(&by_token(), &node()), [0; 100]);
        let refusals = Refusal::ALL.map(|(refusal, _)| EnrolAnswer::Refused(refusal));
        let answers = [EnrolAnswer::Admitted(Box::new(admission())), EnrolAnswer::Pending];
        for answer in answers.into_iter().chain(refusals) {
            let sealed = answer.seal(&network(), receiving().public(), &request, &mut TestRng(2)).unwrap();
            let open = |receiving: &AgreementKey, request: &[u8]| {
                EnrolAnswer::open(&sealed, &network(), receiving, request)
            };
            assert_eq!(open(&receiving(), &request), Ok(answer));
            assert_eq!(open(&enrolment(), &request), Err(EnrolError::Crypto(CryptoError)));
            assert_eq!(open(&receiving(), &other), Err(EnrolError::Crypto(CryptoError)));
            assert_eq!(open(&receiving(), &[]), Err(EnrolError::Crypto(CryptoError)));
        }
    }

    /// Rule 5.5: a refusal that this version does not know is malformed, not taken for another.
    #[test]
    fn an_unknown_answer_is_malformed() {
        let answer = |state: u64, code: u64| {
            let mut map = MapWriter::new();
            map.uint(1, state).uint(3, code);
            EnrolAnswer::read(&map.finish())
        };
        assert_eq!(answer(2, 5), Ok(EnrolAnswer::Refused(Refusal::RevokedNode)));
        assert_eq!(answer(2, 9), Err(Malformed::Type(3)));
        assert_eq!(answer(3, 1), Err(Malformed::Type(1)));
        assert_eq!(answer(0, 1), Err(Malformed::Missing(2)));
    }

    /// Rule 5.6: token and proof of possession exclude each other.
    #[test]
    fn a_request_has_one_credential() {
        let write = |fields: [bool; 3]| {
            let mut map = MapWriter::new();
            let [id, secret, possession] = fields;
            map.optional_bytes(1, id.then_some(&[1; 8]))
                .optional_bytes(2, secret.then_some(&[2; 16]))
                .optional_bytes(3, possession.then_some(&[3; 36]))
                .bytes(4, &[4; 32])
                .bytes(5, &[5; 32])
                .uint(6, 6_u64)
                .bytes(8, &[8; 64]);
            EnrolRequest::read(&map.finish()).is_ok()
        };
        assert!(write([true, true, false]) && write([false, false, true]));
        for wrong in [[false; 3], [true; 3], [true, false, false], [false, true, false], [false, true, true]]
        {
            assert!(!write(wrong), "{wrong:?}");
        }
    }
}
