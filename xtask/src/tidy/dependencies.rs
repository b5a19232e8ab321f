//! Which crate may use which, and on what terms others' work comes in.

use std::collections::BTreeMap;

use super::{
    Finding,
    manifests::Policy,
    metadata::{Metadata, Package},
    spdx,
};

/// The crates of this repository, each with those that it may depend on; all other edges are forbidden.
///
/// A new edge needs a reason that `docs/ARCHITECTURE.md` can state: the arrows there are these.
const ALLOWED: &[(&str, &[&str])] = &[
    ("peerage-wire", &[]),
    ("peerage-client", &[]),
    ("peerage-lab", &[]),
    ("peerage-proto", &["peerage-wire"]),
    ("peerage-sim", &["peerage-proto", "peerage-wire"]),
    ("peerage-node", &["peerage-client", "peerage-proto", "peerage-wire"]),
    ("peerage-operator", &["peerage-client", "peerage-node", "peerage-proto", "peerage-wire"]),
    (
        "peerage",
        &[
            "peerage-client",
            "peerage-lab",
            "peerage-node",
            "peerage-operator",
            "peerage-proto",
            "peerage-wire",
        ],
    ),
    ("xtask", &["peerage-lab"]),
];

/// The crates that neither do I/O nor read a clock, so that the simulator and the fuzzer can run them.
const PURE: &[&str] = &["peerage-wire", "peerage-proto"];

/// What a pure crate must not reach by ordinary dependencies, not even through another crate.
const IMPURE: &[&str] = &[
    "tokio",
    "mio",
    "rusqlite",
    "socket2",
    "reqwest",
    "hyper",
    "rustls",
    "quinn",
    "peerage-node",
    "peerage-lab",
];

/// Every dependency between crates of this repository, those of tests included, is an allowed one.
pub(super) fn directions(metadata: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in metadata.members() {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package.name) else {
            findings
                .push(Finding::error(&package.name, "tidy does not know what this new crate may depend on"));
            continue;
        };
        let own = package.dependencies.iter().filter(|dependency| dependency.path.is_some());
        for dependency in own.filter(|dependency| !allowed.contains(&dependency.name.as_str())) {
            findings.push(Finding::error(&package.name, format!("must not depend on {}", dependency.name)));
        }
    }
    findings
}

/// The pure crates reach nothing that does I/O.
pub(super) fn purity(metadata: &Metadata) -> Vec<Finding> {
    let chains = PURE.iter().flat_map(|name| metadata.chains_from(name));
    chains
        .filter(|chain| chain.last().is_some_and(|last| IMPURE.contains(last)))
        .filter_map(|chain| {
            let first = chain.first()?;
            Some(Finding::error(*first, format!("must stay free of I/O, but reaches {}", chain.join(" → "))))
        })
        .collect()
}

/// Every package has a licence on the list in `deny.toml`.
pub(super) fn licences(metadata: &Metadata, policy: &Policy) -> Vec<Finding> {
    let check = |package: &Package| {
        let place = format!("{} {}", package.name, package.version);
        match &package.license {
            None => Some(Finding::error(place, "states no licence")),
            Some(expression) => match spdx::permits(expression, &policy.licences) {
                Ok(true) => None,
                Ok(false) => {
                    Some(Finding::error(place, format!("`{expression}` is not allowed by deny.toml")))
                }
                Err(error) => {
                    Some(Finding::error(place, format!("cannot read its licence `{expression}`: {error}")))
                }
            },
        }
    };
    metadata.packages.iter().filter_map(check).collect()
}

/// No package is there in two versions, except for the versions that `deny.toml` names with a reason.
pub(super) fn duplicates(metadata: &Metadata, policy: &Policy) -> Vec<Finding> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in &metadata.packages {
        versions.entry(&package.name).or_default().push(&package.version);
    }
    let mut findings = Vec::new();
    for (name, mut versions) in versions {
        versions.retain(|version| !policy.skips(name, version));
        if versions.len() > 1 {
            let text = format!(
                "is there {} times ({}); align them, or skip one with a reason in deny.toml",
                versions.len(),
                versions.join(", ")
            );
            findings.push(Finding::error(name, text));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_against_the_direction_is_found() {
        assert!(directions(&Metadata::sample(&["peerage-proto -> peerage-wire", "peerage-wire"])).is_empty());
        let findings = directions(&Metadata::sample(&["peerage-proto -> dev:peerage-node"]));
        assert!(findings[0].text.contains("must not depend on peerage-node"), "{findings:?}");
    }

    #[test]
    fn a_crate_without_a_row_is_found() {
        let findings = directions(&Metadata::sample(&["peerage-new"]));
        assert_eq!(findings[0].place, "peerage-new");
    }

    #[test]
    fn io_behind_another_crate_is_found_with_the_way_to_it() {
        let findings = purity(&Metadata::sample(&["peerage-wire -> helper", "helper -> tokio", "tokio"]));
        assert_eq!(findings.len(), 1);
        assert!(findings[0].text.contains("peerage-wire → helper → tokio"), "{findings:?}");
    }

    #[test]
    fn io_in_tests_of_a_pure_crate_is_no_finding() {
        assert!(purity(&Metadata::sample(&["peerage-wire -> dev:tokio", "tokio"])).is_empty());
    }

    #[test]
    fn a_licence_outside_the_list_is_found() {
        let mut metadata = Metadata::sample(&["free", "bound", "silent"]);
        metadata.packages[1].license = Some("GPL-3.0-only".into());
        metadata.packages[2].license = None;
        let findings = licences(&metadata, &Policy::sample(&["MIT"], &[]));
        let places: Vec<_> = findings.iter().map(|finding| finding.place.as_str()).collect();
        assert_eq!(places, ["bound 1.0.0", "silent 1.0.0"]);
    }

    #[test]
    fn two_versions_are_found_unless_one_is_skipped() {
        let mut metadata = Metadata::sample(&["twice", "twice"]);
        metadata.packages[1].version = "2.0.0".into();
        assert_eq!(duplicates(&metadata, &Policy::sample(&[], &[])).len(), 1);
        assert_eq!(duplicates(&metadata, &Policy::sample(&[], &["twice@1.0.0"])).len(), 0);
    }
}
