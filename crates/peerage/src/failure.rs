//! Why a command did not succeed, in the words that its user reads.

use crate::output::plain;
use peerage_client::{Error, ProblemKind};
use serde::Serialize;
use std::{fmt::Write as _, process::ExitCode};

/// Why a command did not succeed.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    /// What did not work.
    what: String,
    /// Why, and what to do: a sentence each.
    why: Vec<String>,
    /// The kind, if an API reported it.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<ProblemKind>,
    #[serde(skip)]
    is_usage: bool,
}

/// The result of a command.
pub(crate) type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    /// The command was right but did not succeed: exit code 1.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), why: Vec::new(), kind: None, is_usage: false }
    }

    /// The command, its environment or the configuration file is wrong: exit code 2.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self { is_usage: true, ..Self::new(what) }
    }

    /// Adds a reason or an advice.
    pub(crate) fn why(mut self, why: impl Into<String>) -> Self {
        let why = why.into();
        if !why.is_empty() {
            self.why.push(why);
        }
        self
    }

    /// Tells an error and each of its causes.
    fn from_chain(error: &anyhow::Error) -> Self {
        error
            .chain()
            .skip(1)
            .fold(Self::new(error.to_string()), |failure, cause| failure.why(cause.to_string()))
    }

    /// Returns the exit code of the process.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.is_usage { 2 } else { 1 })
    }

    /// Writes it for people: what, then why, indented.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("error: {}", self.what);
        for line in self.why.iter().flat_map(|why| why.lines()) {
            // Writing to a string cannot fail.
            _ = write!(text, "\n  {line}");
        }
        plain(&text)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let advice = if matches!(error, Error::NodeNotRunning { .. }) {
            "Start it with `peerage up`, or name the directory of one that runs with --data."
        } else if matches!(error, Error::OperatorNotRunning { .. }) {
            "Start it with `peerage operator run`, or name the directory of one that runs with --data."
        } else if matches!(error, Error::SocketForbidden { .. } | Error::AdminFileUnreadable { .. }) {
            "Run the command as the user who runs it, or as root."
        } else {
            ""
        };
        if let Error::Problem(problem) = error {
            return Self { kind: Some(problem.kind), ..Self::new(problem.title).why(problem.detail) };
        }
        Self::from_chain(&anyhow::Error::from(error)).why(advice)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        // An error of a client may have come through a library.
        match error.downcast::<Error>() {
            Ok(known) => Self::from(known),
            Err(other) => Self::from_chain(&other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;
    use peerage_client::Problem;

    #[test]
    fn a_problem_is_told_with_its_advice() {
        let failure =
            Failure::from(Error::from(Problem::new(ProblemKind::UnknownDevice, "There is no device \"x\".")));
        assert_eq!(failure.to_text(), "error: Unknown device\n  There is no device \"x\".");
        let json = serde_json::to_value(&failure).unwrap();
        assert_eq!(json["type"], "urn:peerage:problem:unknown-device");
    }

    #[test]
    fn every_cause_is_told_on_a_line_of_its_own() {
        let error =
            Err::<(), _>(std::io::Error::other("disk full")).context("cannot write the ledger").unwrap_err();
        assert_eq!(Failure::from(error).to_text(), "error: cannot write the ledger\n  disk full");
    }

    #[test]
    fn an_error_of_the_client_keeps_its_advice_through_other_errors() {
        let error = anyhow::Error::from(Error::NodeNotRunning { data: "/d".into() });
        assert!(Failure::from(error).to_text().contains("peerage up"));
        let other = anyhow::Error::from(Error::TimedOut { seconds: 3 });
        assert!(Failure::from(other).to_text().contains("3 s"));
    }
}
