//! What a packager wants: completion scripts and manual pages.

use crate::{
    args::{Cli, Completions, Man},
    failure::{Failure, Result},
    output::Output,
};
use clap::CommandFactory as _;
use std::io;

/// Writes a completion script.
pub(crate) fn completions(args: &Completions, output: Output) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "peerage", &mut script);
    output.bytes(&script)
}

/// Writes the manual: one page to standard output, or all into a directory.
pub(crate) fn man(args: &Man, output: Output) -> Result {
    let failed = |error: io::Error| Failure::new("cannot write the manual").why(error.to_string());
    if let Some(dir) = &args.dir {
        std::fs::create_dir_all(dir).map_err(failed)?;
        return clap_mangen::generate_to(Cli::command(), dir).map_err(failed);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(failed)?;
    output.bytes(&page)
}
