//! `cargo xtask tidy`: the tests of the repository itself.
//!
//! Each check is a function from what is in the repository ([`Repo`], [`Metadata`]) to a list of [`Finding`]s,
//! and has a unit test beside it which proves that it can fail.

mod dependencies;
mod docs;
mod manifests;
mod metadata;
mod repo;
mod rules;
mod source;
mod sources;
mod spdx;

use anyhow::{Result, bail};

pub(crate) use self::metadata::Metadata;
use self::{manifests::Policy, repo::Repo};
use crate::run::{root, say};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    /// Shown, and nothing else.
    Warning,
    /// Fails the run.
    Error,
}

/// One thing that is not as it should be.
#[derive(Debug)]
struct Finding {
    severity: Severity,
    /// A file, `file:line`, or the name of a crate.
    place: String,
    text: String,
}

impl Finding {
    fn error(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self { severity: Severity::Error, place: place.into(), text: text.into() }
    }

    fn warning(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(place, text) }
    }
}

/// Runs every check, shows all findings, and fails if one of them is an error.
pub(crate) fn tidy() -> Result<()> {
    let repo = Repo::read(&root()?)?;
    let policy = match Policy::read(&repo) {
        Ok(policy) => policy,
        Err(finding) => bail!("{}: {}", finding.place, finding.text),
    };
    let metadata = Metadata::read(&policy.targets)?;
    let findings = check(&repo, &policy, &metadata);

    for finding in &findings {
        let label = match finding.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        say(&format!("{label}: {}: {}", finding.place, finding.text));
    }
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    if errors > 0 {
        bail!("tidy found {errors} error(s)");
    }
    say(&format!(
        "tidy: {} files and {} packages are in order",
        repo.paths().count(),
        metadata.packages.len()
    ));
    Ok(())
}

fn check(repo: &Repo, policy: &Policy, metadata: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(dependencies::licences(metadata, policy));
    findings.extend(dependencies::duplicates(metadata, policy));
    findings.extend(dependencies::directions(metadata));
    findings.extend(dependencies::purity(metadata));
    findings.extend(manifests::lints(repo));
    findings.extend(manifests::clippy_thresholds(repo));
    findings.extend(manifests::lock_file(repo));
    findings.extend(sources::lengths(repo));
    findings.extend(sources::forbidden_code(repo));
    findings.extend(sources::sleeping_tests(repo));
    findings.extend(sources::unfinished(repo));
    findings.extend(sources::machine_paths(repo));
    findings.extend(rules::citations(repo));
    findings.extend(docs::links(repo));
    findings.extend(docs::mentions(repo));
    findings.extend(docs::architecture(repo));
    findings.extend(docs::changelog(repo));
    findings
}
