//! Failures of the ledger as problems.

use peerage_client::ProblemKind;
use peerage_node::local_api::web::Failure;

use crate::ledger::{DeviceError, DomainError, LedgerError, NodeError, TokenError};

/// A failure on its way from an action to its answer.
#[derive(Debug)]
pub(super) struct Refused(pub(super) Failure);

impl Refused {
    pub(super) fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self(Failure::new(kind, detail))
    }
}

impl From<LedgerError> for Refused {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Busy => Self::new(ProblemKind::Unavailable, "The ledger is busy; try again."),
            LedgerError::Database(error) => {
                tracing::error!(%error, "the ledger failed");
                Self::new(
                    ProblemKind::Unavailable,
                    "The ledger cannot be read or written; the operator's log says why.",
                )
            }
            error @ (LedgerError::Newer(_)
            | LedgerError::Damaged(_)
            | LedgerError::Record(_)
            | LedgerError::Body(_)
            | LedgerError::Draft(_)
            | LedgerError::Crypto(_)) => {
                tracing::error!(%error, "an action failed");
                Self::new(ProblemKind::Internal, "The operator's log says why.")
            }
        }
    }
}

fn sentence(error: &impl ToString) -> String {
    format!("{}.", error.to_string())
}

impl From<DomainError> for Refused {
    fn from(error: DomainError) -> Self {
        let kind = match error {
            DomainError::Unknown(_) => ProblemKind::UnknownDomain,
            DomainError::NameTaken => ProblemKind::NameTaken,
            DomainError::TooMany => ProblemKind::TooMany,
            DomainError::Revoked(_) => ProblemKind::InvalidRequest,
            DomainError::Ledger(error) => return error.into(),
        };
        Self::new(kind, sentence(&error))
    }
}

impl From<TokenError> for Refused {
    fn from(error: TokenError) -> Self {
        let kind = match error {
            TokenError::Unknown => ProblemKind::UnknownToken,
            TokenError::TooMany => ProblemKind::QuotaReached,
            TokenError::Ledger(error) => return error.into(),
        };
        Self::new(kind, sentence(&error))
    }
}

impl From<NodeError> for Refused {
    fn from(error: NodeError) -> Self {
        let kind = match error {
            NodeError::Unknown(_) | NodeError::Ambiguous(_) | NodeError::UnknownSuperNode(_) => {
                ProblemKind::UnknownNode
            }
            NodeError::NotPending | NodeError::NotQuarantined => ProblemKind::InvalidRequest,
            NodeError::Ledger(error) => return error.into(),
        };
        Self::new(kind, sentence(&error))
    }
}

impl From<DeviceError> for Refused {
    fn from(error: DeviceError) -> Self {
        let kind = match error {
            DeviceError::Unknown(_) => ProblemKind::UnknownDevice,
            DeviceError::NameTaken => ProblemKind::NameTaken,
            DeviceError::MacTaken => ProblemKind::MacTaken,
            DeviceError::TooMany => ProblemKind::QuotaReached,
            DeviceError::Services
            | DeviceError::Pins
            | DeviceError::Users
            | DeviceError::Kind
            | DeviceError::TooLong => ProblemKind::InvalidRequest,
            DeviceError::Node(error) => return error.into(),
            DeviceError::Ledger(error) => return error.into(),
        };
        Self::new(kind, sentence(&error))
    }
}
