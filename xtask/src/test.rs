//! `cargo xtask test`: installs what the tests need and runs all of them.

use std::{path::PathBuf, process::Stdio};

use anyhow::Result;

use crate::{
    packages,
    run::{cargo, run, say, succeeds},
    tidy::Metadata,
};

/// Runs every test of the workspace.
///
/// The tests with real networks start the `peerage` program, so it is built first and named in `PEERAGE_BIN`.
/// Doc tests go before the others: the last lines are then the summary of the runner that ran nearly all.
pub(crate) fn test() -> Result<()> {
    packages::install(&[])?;
    let peerage = build_programs()?;
    let with_program = |args: &[&str]| {
        let mut command = cargo(args);
        command.env("PEERAGE_BIN", &peerage);
        command
    };

    if has_nextest() {
        run(&mut with_program(&["test", "--workspace", "--doc", "--locked"]))?;
        run(&mut with_program(&["nextest", "run", "--workspace", "--locked"]))
    } else {
        say("cargo-nextest cannot be installed here: using `cargo test`, which runs the same tests.");
        run(&mut with_program(&["test", "--workspace", "--locked"]))
    }
}

/// Builds all programs of the workspace and returns the path of `peerage`.
fn build_programs() -> Result<PathBuf> {
    run(&mut cargo(&["build", "--workspace", "--bins", "--locked"]))?;
    Ok(Metadata::read(&[])?.target_directory.join("debug").join("peerage"))
}

/// Tells whether nextest can be used, after installing it if need be.
fn has_nextest() -> bool {
    let is_there = || succeeds(&mut cargo(&["nextest", "--version"]));
    let install = || run(cargo(&["install", "--locked", "cargo-nextest"]).stdin(Stdio::null()));
    is_there() || (install().is_ok() && is_there())
}
