//! `cargo xtask lab`: plays a story in simulated networks with the real program.

use std::io::Write as _;

use anyhow::{Context as _, Result, bail};
use peerage_lab::scenario::{self, Profile, Programs};

use crate::{packages, run::say};

/// How the task is called.
const USAGE: &str = "usage: cargo xtask lab print [--json] [--release]";

/// Plays the story that `words` name; the report goes to standard output and everything else to standard error.
///
/// With `--json` the report is exactly one object, also when the story failed.
pub(crate) fn lab(words: &[&str]) -> Result<()> {
    let (mut json, mut profile) = (false, Profile::Dev);
    let Some((&"print", options)) = words.split_first() else { bail!("{USAGE}") };
    for option in options {
        match *option {
            "--json" => json = true,
            "--release" => profile = Profile::Release,
            other => bail!("unknown option {other}\n{USAGE}"),
        }
    }
    packages::install()?;
    let report = scenario::print(&Programs::find(profile)?, &mut |line| say(line));
    let text = if json { report.to_json().to_string() } else { format!("{:#}", report.to_json()) };
    writeln!(std::io::stdout(), "{text}").context("nobody reads the report")?;
    match report.error() {
        None => Ok(()),
        Some(error) => bail!("the story failed: {error:#}"),
    }
}
