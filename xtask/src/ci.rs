//! `cargo xtask ci`: everything that a change has to pass.

use anyhow::Result;

use crate::{
    run::{cargo, run, say, succeeds},
    test::test,
    tidy::tidy,
};

/// Runs the checks from the fastest to the slowest, and stops at the first that fails.
pub(crate) fn ci() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--", "--check"]))?;
    tidy()?;
    run(&mut cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))?;
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"]);
    run(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    deny()?;
    test()
}

/// Asks cargo-deny about advisories, duplicates and sources, where it is installed.
///
/// It is not built here, because that alone takes many minutes; `tidy` has checked licences and duplicates.
fn deny() -> Result<()> {
    if succeeds(&mut cargo(&["deny", "--version"])) {
        return run(&mut cargo(&["deny", "--locked", "check"]));
    }
    say("SKIPPED: cargo-deny is not installed, so security advisories and crate sources were NOT checked.");
    say("         To have it: cargo install --locked cargo-deny");
    Ok(())
}
