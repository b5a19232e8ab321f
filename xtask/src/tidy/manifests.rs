//! What the manifests and the configuration of the tools must say.

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::{Finding, repo::Repo};

/// What `deny.toml` permits; cargo-deny reads the same lists, so that there is one of each.
#[derive(Debug, Default)]
pub(super) struct Policy {
    /// The platforms that the programs are built for; what only others need is not looked at.
    pub(super) targets: Vec<String>,
    /// Licences as SPDX names, with their exception if they have one.
    pub(super) licences: BTreeSet<String>,
    /// Packages that may be there once more, as `name@version` or the beginning of a version.
    skipped: Vec<String>,
}

impl Policy {
    /// Reads `deny.toml`. A skipped duplicate without a reason is refused.
    pub(super) fn read(repo: &Repo) -> Result<Self, Finding> {
        let table = parse(repo, "deny.toml")?;
        let list = |section: &str, key: &str| {
            let value = table.get(section).and_then(|section| section.get(key)).and_then(Value::as_array);
            value.map(Vec::as_slice).unwrap_or_default()
        };
        let mut policy = Self::default();
        policy.targets.extend(list("graph", "targets").iter().filter_map(Value::as_str).map(String::from));
        policy.licences.extend(list("licenses", "allow").iter().filter_map(Value::as_str).map(String::from));
        for entry in list("bans", "skip") {
            let name = entry.get("crate").and_then(Value::as_str);
            let reason = entry.get("reason").and_then(Value::as_str);
            let (Some(name), Some(_)) = (name, reason) else {
                return Err(Finding::error(
                    "deny.toml",
                    format!("bans.skip: {name:?} needs both `crate` and `reason`"),
                ));
            };
            policy.skipped.push(name.to_owned());
        }
        Ok(policy)
    }

    /// Tells whether this version is one that may be there beside another.
    pub(super) fn skips(&self, name: &str, version: &str) -> bool {
        let matches = |skipped: &String| {
            skipped.split_once('@').is_some_and(|(skipped_name, start)| {
                let rest = version.strip_prefix(start);
                skipped_name == name && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        };
        self.skipped.iter().any(matches)
    }
}

#[cfg(test)]
impl Policy {
    pub(super) fn sample(licences: &[&str], skipped: &[&str]) -> Self {
        let strings = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let licences = strings(licences).into_iter().collect();
        Self { targets: Vec::new(), licences, skipped: strings(skipped) }
    }
}

/// Every crate is checked by the lints of the workspace.
pub(super) fn lints(repo: &Repo) -> Vec<Finding> {
    let mut findings = Vec::new();
    for path in repo.paths().filter(|path| path.ends_with("/Cargo.toml")) {
        match parse(repo, path) {
            Err(finding) => findings.push(finding),
            Ok(table) => {
                let inherits =
                    table.get("lints").and_then(|lints| lints.get("workspace")).and_then(Value::as_bool);
                if inherits != Some(true) {
                    findings.push(Finding::error(path, "does not have `[lints] workspace = true`"));
                }
            }
        }
    }
    findings
}

/// A crate's own `clippy.toml`, which replaces that of the root, repeats what the root says.
pub(super) fn clippy_thresholds(repo: &Repo) -> Vec<Finding> {
    let root = match parse(repo, "clippy.toml") {
        Ok(root) => root,
        Err(finding) => return vec![finding],
    };
    let mut findings = Vec::new();
    for path in repo.paths().filter(|path| path.ends_with("/clippy.toml")) {
        match parse(repo, path) {
            Err(finding) => findings.push(finding),
            Ok(table) => {
                let lost = root.iter().filter(|(key, value)| table.get(*key) != Some(*value));
                findings.extend(
                    lost.map(|(key, _)| Finding::error(path, format!("does not repeat the root's `{key}`"))),
                );
            }
        }
    }
    findings
}

/// `Cargo.lock` is under version control, because the tests run with exactly what it names.
pub(super) fn lock_file(repo: &Repo) -> Vec<Finding> {
    let text = if !repo.has("Cargo.lock") {
        "is missing or ignored"
    } else if repo.is_untracked("Cargo.lock") {
        "is not under version control: git add Cargo.lock"
    } else {
        return Vec::new();
    };
    vec![Finding::error("Cargo.lock", text)]
}

fn parse(repo: &Repo, path: &str) -> Result<Table, Finding> {
    let text = repo.text(path).ok_or_else(|| Finding::error(path, "is missing"))?;
    text.parse().map_err(|error| Finding::error(path, format!("is not valid TOML: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_without_the_lints_of_the_workspace_is_found() {
        let with = ("a/Cargo.toml", "[lints]\nworkspace = true");
        let without = ("b/Cargo.toml", "[package]\nname = \"b\"");
        let findings = lints(&Repo::sample(&[with, without]));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].place, "b/Cargo.toml");
    }

    #[test]
    fn a_lost_threshold_is_found() {
        let root = ("clippy.toml", "too-many-lines-threshold = 70");
        assert!(clippy_thresholds(&Repo::sample(&[root, ("a/clippy.toml", root.1)])).is_empty());
        let raised = ("a/clippy.toml", "too-many-lines-threshold = 700");
        assert_eq!(clippy_thresholds(&Repo::sample(&[root, raised]))[0].place, "a/clippy.toml");
    }

    #[test]
    fn a_lock_file_that_is_not_tracked_is_found() {
        assert_eq!(lock_file(&Repo::sample(&[])).len(), 1);
        let repo = Repo::sample(&[("Cargo.lock", "")]);
        assert!(lock_file(&repo).is_empty());
        assert_eq!(lock_file(&repo.forget("Cargo.lock")).len(), 1);
    }

    #[test]
    fn the_policy_is_what_deny_toml_says() {
        let text = "[graph]\ntargets = [\"b\"]\n[licenses]\nallow = [\"MIT\"]\n\
            [bans]\nskip = [{ crate = \"a@0.5\", reason = \"b wants it\" }]";
        let policy = Policy::read(&Repo::sample(&[("deny.toml", text)])).unwrap();
        assert_eq!(policy.targets, ["b"]);
        assert!(policy.licences.contains("MIT"));
        assert!(policy.skips("a", "0.5.2"));
        assert!(!policy.skips("a", "0.52.0") && !policy.skips("c", "0.5.2"));
    }

    #[test]
    fn a_skipped_duplicate_without_a_reason_is_refused() {
        let repo = Repo::sample(&[("deny.toml", "[bans]\nskip = [{ crate = \"a@0.5\" }]")]);
        assert!(Policy::read(&repo).unwrap_err().text.contains("reason"));
    }
}
