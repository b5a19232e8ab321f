//! Which data directory a command uses.

use crate::failure::{Failure, Result};
use std::{env, path::PathBuf};

/// Whose data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The node of this computer.
    Node,
    /// An operator.
    Operator,
}

/// Returns the directory that was given, or that in the environment, or the usual one.
///
/// Node and operator have different variables and directories, because both may run on one computer and their files
/// must not mix.
pub(crate) fn data_dir(given: Option<PathBuf>, owner: Owner) -> Result<PathBuf> {
    let (variable, name) = match owner {
        Owner::Node => ("PEERAGE_DATA", "node"),
        Owner::Operator => ("PEERAGE_OPERATOR_DATA", "operator"),
    };
    if let Some(data) = given.or_else(|| path_in(variable)) {
        return Ok(data);
    }
    // The XDG base directory specification has relative paths ignored.
    let state = path_in("XDG_STATE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| path_in("HOME").map(|home| home.join(".local").join("state")));
    match state {
        Some(state) => Ok(state.join("peerage").join(name)),
        None => Err(Failure::usage("there is no data directory")
            .why(format!("Name one with --data or {variable}; HOME is not set either."))),
    }
}

fn path_in(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}
