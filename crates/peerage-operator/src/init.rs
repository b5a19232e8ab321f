//! Making a new operator.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use bytes::Bytes;
use peerage_wire::id::Domain;
use peerage_wire::keys::{AgreementKey, IdentityKey, network_id};
use peerage_wire::limits::MAX_ADDRESSES;

use crate::config::{CertificateFiles, InitConfig, InitReport};
use crate::data::{DataDir, DataError, LEDGER, OperatorKeys};
use crate::ledger::{Ledger, LedgerError, OperatorDraft, OperatorRecordError, Signer, Tx, rng};
use crate::tls::{self, CertificateError};

/// How often to look for a port that is free for both UDP and TCP. Where one in two is taken, this fails once in
/// 65,000 times.
const MAX_PORT_DRAWS: usize = 16;

/// The settings that `init` leaves in the ledger.
pub(crate) mod setting {
    pub(crate) const NETWORK: &str = "network";
    pub(crate) const ROOT: &str = "root";
    pub(crate) const OPERATOR: &str = "operator";
    pub(crate) const LISTEN: &str = "listen";
    pub(crate) const ADVERTISED: &str = "advertised";
    pub(crate) const CERTIFICATE_CHAIN: &str = "certificate_chain";
    pub(crate) const CERTIFICATE_KEY: &str = "certificate_key";
}

/// Why no operator could be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The data directory is not usable.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The certificate is not usable.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The addresses to advertise are not usable.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The path of a certificate file is not text.
    #[error("the path {} is not UTF-8 and cannot be kept", .0.display())]
    Path(std::path::PathBuf),
    /// The ledger could not be made.
    #[error("cannot make the ledger: {0}")]
    Ledger(#[from] LedgerError),
    /// The operator's own record could not be made.
    #[error("cannot sign the operator's record: {0}")]
    Record(#[from] OperatorRecordError),
}

/// Why addresses cannot be advertised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nodes could not find it.
    #[error("{0} is no address at which nodes can reach this operator; give one with --advertise IP:PORT")]
    NotReachable(SocketAddr),
    /// More addresses than an operator's record holds.
    #[error("an operator advertises at most {MAX_ADDRESSES} addresses, not {0}")]
    TooMany(usize),
}

/// Makes a new operator: its keys, its certificate and its ledger. Blocks on the disk.
///
/// # Errors
/// If there is one already, if the addresses or the certificate are not usable, or if the disk fails. What a failed
/// attempt has written is removed again.
pub fn init(config: &InitConfig) -> Result<InitReport, InitError> {
    let listen =
        free_port(config.listen).map_err(|source| InitError::Listen { address: config.listen, source })?;
    let advertised = advertised(&config.advertise, listen)?;
    let data = DataDir::create(&config.data)?;
    let made = fill(&data, config, listen, &advertised);
    if made.is_err() {
        for name in crate::data::MADE_BY_INIT {
            data.remove(name);
        }
    }
    made
}

fn fill(
    data: &DataDir,
    config: &InitConfig,
    listen: SocketAddr,
    advertised: &[SocketAddr],
) -> Result<InitReport, InitError> {
    match &config.certificate {
        Some(files) => drop(tls::server_config(data, Some(files))?),
        None => tls::make(data, advertised)?,
    }
    let root = IdentityKey::generate(&mut rng());
    let keys = OperatorKeys {
        identity: IdentityKey::generate(&mut rng()),
        enrolment: AgreementKey::generate(&mut rng()),
    };
    data.write_root_key(&root)?;
    data.write_operator_keys(&keys)?;
    data.write_new(LEDGER, &[])?;
    let network = network_id(&root.public());
    let draft = OperatorDraft { enrolment: *keys.enrolment.public(), addresses: advertised.to_vec() };
    let id = keys.identity.node_id(Domain::OPERATORS);
    let root_public = root.public();
    let signer = Signer::new(network, keys.identity.clone(), Some(root));
    let mut ledger = Ledger::open(&data.file(LEDGER), signer)?;
    ledger.act(crate::run::unix_now(), |tx| {
        tx.set_meta(setting::NETWORK, &network.to_string())?;
        tx.set_meta(setting::ROOT, &peerage_wire::id::to_hex(&root_public))?;
        tx.set_meta(setting::OPERATOR, &id.to_string())?;
        tx.set_meta(setting::LISTEN, &listen.to_string())?;
        keep_advertised(tx, advertised)?;
        keep_certificate(tx, config.certificate.as_ref())?;
        tx.make_operator_record(&draft)?;
        Ok::<(), InitError>(())
    })?;
    drop(ledger);
    data.sync()?;
    Ok(InitReport { id, network, listen, advertised: advertised.to_vec() })
}

/// Keeps what is advertised, for when the operator's record must be made anew.
pub(crate) fn keep_advertised(tx: &mut Tx<'_>, advertised: &[SocketAddr]) -> Result<(), LedgerError> {
    let texts: Vec<_> = advertised.iter().map(ToString::to_string).collect();
    tx.set_meta(setting::ADVERTISED, &texts.join(" "))
}

fn keep_certificate(tx: &mut Tx<'_>, files: Option<&CertificateFiles>) -> Result<(), InitError> {
    let Some(files) = files else { return Ok(()) };
    for (name, path) in [(setting::CERTIFICATE_CHAIN, &files.chain), (setting::CERTIFICATE_KEY, &files.key)] {
        let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
        tx.set_meta(name, whole.to_str().ok_or_else(|| InitError::Path(whole.clone()))?)?;
    }
    Ok(())
}

/// Replaces port 0 by a port that is free for both UDP and TCP.
pub(crate) fn free_port(listen: SocketAddr) -> io::Result<SocketAddr> {
    if listen.port() != 0 {
        return Ok(listen);
    }
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..MAX_PORT_DRAWS {
        let udp = UdpSocket::bind(listen)?;
        let bound = udp.local_addr()?;
        match TcpListener::bind(bound) {
            Ok(_tcp) => return Ok(bound),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Returns the addresses to advertise. One without a port gets that on which the operator listens.
pub(crate) fn advertised(given: &[SocketAddr], listen: SocketAddr) -> Result<Vec<SocketAddr>, AddressError> {
    let mut all = given.to_vec();
    if all.is_empty() {
        all.push(listen);
    }
    for address in &mut all {
        if address.port() == 0 {
            address.set_port(listen.port());
        }
        let ip = address.ip();
        if ip.is_unspecified() || ip.is_multicast() {
            return Err(AddressError::NotReachable(*address));
        }
    }
    if all.len() > MAX_ADDRESSES { Err(AddressError::TooMany(all.len())) } else { Ok(all) }
}

/// What anybody may learn: the answer to a `GET` of the operator.
pub(crate) fn hello(root: [u8; 32], operator: Bytes) -> Vec<u8> {
    peerage_wire::enrol::Hello { root, operator }.encode()
}
