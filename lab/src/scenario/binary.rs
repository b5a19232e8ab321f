//! Where the programs are that a story is played with.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The variable that names the `peerage` program; it wins over building.
const VARIABLE: &str = "PEERAGE_BIN";

/// How the `peerage` program is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quickly.
    Dev,
    /// With optimisation.
    Release,
}

/// The programs that a story is played with.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The program under test.
    pub peerage: PathBuf,
    /// `peerage-lab-agent`, which listens to the network.
    pub agent: PathBuf,
}

impl Programs {
    /// Takes the `peerage` program that `PEERAGE_BIN` names, or builds it, and builds the agent.
    ///
    /// # Errors
    /// When the variable names nothing, or a build fails.
    pub fn find(profile: Profile) -> Result<Self> {
        Ok(Self {
            peerage: peerage(profile)?,
            agent: build("peerage-lab", "peerage-lab-agent", Profile::Dev)?,
        })
    }

    /// Does the same with an agent that is there.
    ///
    /// # Errors
    /// When the variable names nothing, or the build fails.
    pub fn with_agent(agent: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self { peerage: peerage(Profile::Dev)?, agent: agent.into() })
    }
}

fn peerage(profile: Profile) -> Result<PathBuf> {
    let Some(path) = std::env::var_os(VARIABLE) else { return build("peerage", "peerage", profile) };
    let path = std::path::absolute(&path)?;
    ensure!(path.is_file(), "{VARIABLE} names {}, which is not a file", path.display());
    Ok(path)
}

/// Builds a program of this workspace with the cargo that runs this, and returns where it is.
fn build(package: &str, program: &str, profile: Profile) -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate has no workspace")?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args([
        "build",
        "--package",
        package,
        "--bin",
        program,
        "--message-format=json-render-diagnostics",
    ]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    let output =
        command.current_dir(workspace).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "building {program} failed");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
        .with_context(|| format!("cargo built no {program}"))
}
