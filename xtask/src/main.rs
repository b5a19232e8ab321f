//! The tasks of this repository: `cargo xtask TASK`.

mod bench;
mod ci;
mod lab;
mod packages;
mod run;
mod test;
mod tidy;

use std::process::ExitCode;

use crate::run::say;

/// What a wrong call is answered with.
const USAGE: &str = "\
usage: cargo xtask TASK

  test   install what the tests need, by package name, and run all tests
  tidy   check the repository itself: dependencies, licences, rules, links, leftovers
  ci     everything that a change must pass: format, lints, documents, tidy, test
  lab    play a story in simulated networks, with the real program: lab print, lab super-nodes
  bench  compare the tunnel with those of other programs, which it builds: bench peers";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["test"] => test::test(),
        ["tidy"] => tidy::tidy(),
        ["ci"] => ci::ci(),
        ["lab", words @ ..] => lab::lab(words),
        ["bench", words @ ..] => bench::bench(words),
        _ => {
            say(USAGE);
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("xtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
