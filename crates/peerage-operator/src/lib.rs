//! The Peerage operator: the trusted node that a vendor runs.
//!
//! [`init()`] makes one in a data directory: the root key, which signs who is an operator, the operator's own keys, the
//! ledger and a certificate. [`run()`] serves it:
//!
//! - **messages** over UDP: a task owns the state machine [`peerage_proto::operator::Operator`];
//! - **joining** over HTTPS on the TCP port of the same number ([`peerage_wire::enrol`]);
//! - the **admin API** over HTTP on a loopback address ([`peerage_client::admin`]).
//!
//! All three act through the ledger, which one thread owns. What an action has committed goes to the state machine
//! before whoever asked gets the answer, so an answer is never ahead of what the network is told.
//!
//! Deliberately absent: the state machine never waits for the ledger, and nothing but the ledger's thread touches
//! the database file.

mod admin;
mod check;
mod config;
mod data;
mod date;
mod driver;
mod enrol;
mod init;
mod ledger;
mod run;
mod spy_ports;
mod tls;

pub use config::{
    CertificateFiles, InitConfig, InitReport, MAX_SPY_ADDRESSES, Ready, RelayConfig, RunConfig, SpyConfig,
};
pub use data::DataError;
pub use init::{AddressError, InitError, init};
pub use ledger::{LedgerError, OperatorRecordError};
pub use run::{RunError, run};
pub use tls::CertificateError;
