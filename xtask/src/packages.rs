//! Installs the distribution packages that the tests run, by name, and only those that are missing.

use std::{
    collections::BTreeSet,
    io::IsTerminal as _,
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::run::{output, run, say, succeeds};

/// What the build itself needs beside the Rust toolchain: SQLite and ring are compiled from C.
const BUILD_PACKAGES: &[&str] = &["gcc", "libc6-dev"];

/// Makes sure that every package is there, and `more` too, or fails with the line that would install the missing ones.
///
/// On a system without dpkg it names what is needed and goes on: a test that lacks a program fails by itself.
pub(crate) fn install(more: &[&str]) -> Result<()> {
    let wanted: BTreeSet<&str> =
        BUILD_PACKAGES.iter().chain(peerage_lab::PACKAGES).chain(more).copied().collect();
    if !succeeds(Command::new("dpkg-query").arg("--version")) {
        say(&format!(
            "This is not Debian or Ubuntu. The tests need what these packages bring: {}",
            list(&wanted)
        ));
        return Ok(());
    }
    let missing = missing(&wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let Some(become_root) = way_to_root() else {
        bail!(
            "some packages are missing and there is no way to install them from here; please run\n  {}",
            hint(&missing)
        );
    };
    if apt(&become_root, &["update"]).is_err() {
        say("The package lists could not be refreshed; trying with the old ones.");
    }
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend(&missing);
    if let Err(error) = apt(&become_root, &args) {
        bail!("{error}\nThe tests need these packages; please run\n  {}", hint(&missing));
    }
    Ok(())
}

/// Returns the packages that dpkg does not call installed.
fn missing<'a>(wanted: &BTreeSet<&'a str>) -> Vec<&'a str> {
    wanted.iter().copied().filter(|package| !is_installed(package)).collect()
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Status}", package]).stderr(Stdio::null());
    query.output().is_ok_and(|answer| answer.status.success() && answer.stdout == b"installed")
}

/// Returns what to put before a command so that it runs as root: nothing, sudo, or `None` if there is no way.
fn way_to_root() -> Option<Vec<&'static str>> {
    if output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0") {
        return Some(Vec::new());
    }
    if std::io::stdin().is_terminal() && succeeds(Command::new("sudo").arg("--version")) {
        return Some(vec!["sudo"]); // may ask for a password
    }
    succeeds(Command::new("sudo").args(["-n", "true"])).then(|| vec!["sudo", "-n"])
}

fn apt(become_root: &[&str], args: &[&str]) -> Result<()> {
    let mut words = become_root.to_vec();
    // Through env, because sudo does not pass variables on.
    words.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    words.extend(args);
    let Some((program, rest)) = words.split_first() else { bail!("no command to run") };
    let mut command = Command::new(program);
    command.args(rest);
    if become_root != ["sudo"] {
        command.stdin(Stdio::null());
    }
    run(&mut command)
}

fn hint(missing: &[&str]) -> String {
    format!("sudo apt-get update && sudo apt-get install --yes --no-install-recommends {}", missing.join(" "))
}

fn list(packages: &BTreeSet<&str>) -> String {
    packages.iter().copied().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_does_not_exist_is_missing() {
        let wanted = BTreeSet::from(["peerage-no-such-package"]);
        assert_eq!(missing(&wanted), ["peerage-no-such-package"]);
    }

    #[test]
    fn the_hint_names_every_missing_package() {
        assert!(hint(&["nftables", "dbus"]).ends_with("--no-install-recommends nftables dbus"));
    }
}
