//! Logs: on standard error, as text or JSON.

use crate::{
    args::{Cli, LogFormat},
    config::Config,
    failure::{Failure, Result},
};
use std::io::{self, IsTerminal as _};
use tracing_subscriber::EnvFilter;

/// What a command logs that serves until it is ended: the states that an administrator cares about.
const SERVING_FILTER: &str = "info";

/// What any other command logs; its results and errors say the rest.
const ASKING_FILTER: &str = "warn";

/// Begins to log as flags, environment or file say, in this order.
pub(crate) fn init(cli: &Cli, config: &Config) -> Result {
    let default = if cli.command.is_long_running() { SERVING_FILTER } else { ASKING_FILTER };
    let filter = cli.globals.log.as_deref().or(config.log.as_deref()).unwrap_or(default);
    let filter = EnvFilter::builder().parse(filter).map_err(|error| {
        Failure::usage(format!("\"{filter}\" is not a log filter"))
            .why(error.to_string())
            .why("Write error, warn, info, debug or trace, or name modules, as in info,peerage_node=debug.")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match cli.globals.log_format.or(config.log_format).unwrap_or_default() {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
