//! `cargo xtask bench peers`: the own tunnel beside those of other programs, which are built for that.

use std::path::Path;

use anyhow::{Result, bail};

use crate::run::{cargo, root, run, say};

/// How the task is called.
const USAGE: &str = "usage: cargo xtask bench peers [--runs N] [--seconds SECONDS] [--json]";

/// The programs that the package registry has, by crate, version and features. They are pinned so that figures of one day can be
/// compared with those of another.
const PROGRAMS: [&[&str]; 3] = [
    &["bore-cli@0.6.0", "--locked"],
    // What it was published with does not compile any more.
    &["rathole@0.5.0", "--no-default-features", "--features", "server,client,noise"],
    &["dumbpipe@0.40.1", "--locked"],
];

/// Builds other programs that tunnel into `target/peers`, and this one, and has `peerage bench peers` compare them. Options are passed
/// on. socat and OpenSSH take part where they are installed.
pub(crate) fn bench(words: &[&str]) -> Result<()> {
    let ["peers", options @ ..] = words else { bail!("{USAGE}") };
    let peers = root()?.join("target").join("peers");
    for program in PROGRAMS {
        if let Err(error) = install(&peers, program) {
            // The others can be compared all the same, and the report names what was not.
            say(&format!("Left out: {error:#}"));
        }
    }
    run(&mut cargo(&["build", "--release", "--locked", "-p", "peerage"]))?;
    let mut measure =
        cargo(&["run", "--quiet", "--release", "--locked", "-p", "peerage", "--", "bench", "peers"]);
    run(measure.arg("--programs").arg(peers.join("bin")).args(options))
}

fn install(peers: &Path, program: &[&str]) -> Result<()> {
    let mut install = cargo(&["install", "--quiet", "--root"]);
    run(install.arg(peers).arg("--target-dir").arg(peers.join("build")).args(program))
}
