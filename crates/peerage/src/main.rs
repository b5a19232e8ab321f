//! The `peerage` program: the node, the operator and the commands for both.

mod args;
mod bench;
mod commands;
mod config;
mod demo;
mod descriptors;
mod failure;
mod logging;
mod memory;
mod output;
mod parse;
mod paths;
mod proxy;
mod service;
mod signals;

use args::{Cli, Command};
use clap::Parser as _;
use config::Config;
use failure::{Failure, Result};
use output::Output;
use paths::Owner;
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// How long tasks may take to end after a command has. Longer only keeps whoever waits for the program.
const END_TIMEOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.globals.json);
    match run(cli, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            failure.exit_code()
        }
    }
}

/// What every command is given.
struct Context {
    data: PathBuf,
    config: Config,
    output: Output,
}

fn run(cli: Cli, output: Output) -> Result {
    descriptors::take_all();
    // These need neither data nor configuration, and `demo` must be free to enter namespaces before any thread runs.
    if let Command::Completions(args) = &cli.command {
        return commands::manual::completions(args, output);
    }
    if let Command::Man(args) = &cli.command {
        return commands::manual::man(args, output);
    }
    if let Command::Demo(args) = &cli.command {
        logging::init(&cli, &Config::default())?;
        return demo::run(args, output);
    }
    if let Command::Bench(args) = &cli.command {
        logging::init(&cli, &Config::default())?;
        return bench::run(args, output);
    }
    let owner = if cli.command.is_operators() { Owner::Operator } else { Owner::Node };
    let data = paths::data_dir(cli.globals.data.clone(), owner)?;
    let config = Config::load(cli.globals.config.as_deref(), &data)?;
    logging::init(&cli, &config)?;
    let context = Context { data, config, output };
    memory::keep();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("cannot start").why(error.to_string()))?;
    let result = runtime.block_on(commands::run(cli.command, context));
    // All that matters has ended; a task that has not must not keep the program for ever.
    runtime.shutdown_timeout(END_TIMEOUT);
    result
}
