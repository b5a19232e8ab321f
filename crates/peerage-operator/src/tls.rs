//! The certificate of the port where nodes join.
//!
//! Nodes do not judge it: what they say and hear there is sealed to keys that their token vouches for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use peerage_node::carrier::Certificate;
use peerage_wire::id::sha256;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::config::CertificateFiles;
use crate::data::{CERTIFICATE, CERTIFICATE_KEY, DataDir, DataError};

/// Why there is no usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read as PEM.
    #[error("cannot read a certificate or key (PEM) from {}: {source}", .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// A file that `init` made cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Certificate and key do not belong together, or are of a kind that is not supported.
    #[error("the certificate and its key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// None could be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The one that was made cannot be kept.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// Makes a certificate for these addresses, signed by itself, and keeps it.
pub(crate) fn make(data: &DataDir, addresses: &[SocketAddr]) -> Result<(), CertificateError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "Peerage operator");
    params.subject_alt_names = addresses.iter().map(|address| SanType::IpAddress(address.ip())).collect();
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    data.write_new(CERTIFICATE, certificate.der())?;
    data.write_new(CERTIFICATE_KEY, &key.serialize_der())?;
    Ok(())
}

/// Reads the given certificate, or the one that was made; returns its SHA-256 as well.
pub(crate) fn server_config(
    data: &DataDir,
    files: Option<&CertificateFiles>,
) -> Result<(Arc<ServerConfig>, [u8; 32]), CertificateError> {
    let (chain, key) = match files {
        Some(files) => from_pem(files)?,
        None => made(data)?,
    };
    let fingerprint = chain.first().map_or([0; 32], |leaf| sha256(&[leaf]));
    Ok((peerage_node::carrier::server_config((chain, key))?, fingerprint))
}

fn from_pem(files: &CertificateFiles) -> Result<Certificate, CertificateError> {
    let bad = |path: &PathBuf| {
        let path = path.clone();
        move |source| CertificateError::Pem { path, source }
    };
    let chain = CertificateDer::pem_file_iter(&files.chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(bad(&files.chain))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(bad(&files.key))?;
    Ok((chain, key))
}

fn made(data: &DataDir) -> Result<Certificate, CertificateError> {
    let read = |name| {
        let path = data.file(name);
        std::fs::read(&path).map_err(|source| CertificateError::Read { path, source })
    };
    let (certificate, key) = (read(CERTIFICATE)?, read(CERTIFICATE_KEY)?);
    Ok((vec![certificate.into()], PrivatePkcs8KeyDer::from(key).into()))
}
