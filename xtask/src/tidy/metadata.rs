//! What `cargo metadata` says about the packages of the workspace and all that they depend on.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::run::{cargo, output};

/// The part of cargo's answer that is used here.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Resolve,
    /// Where cargo puts what it builds.
    pub(crate) target_directory: PathBuf,
}

/// One package in one version.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    /// An SPDX expression, if the author gave one.
    pub(crate) license: Option<String>,
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a manifest's dependencies.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// A folder, if the dependency is not from a registry.
    pub(crate) path: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Debug, Deserialize)]
struct EdgeKind {
    /// `None` is an ordinary dependency; others are `dev` and `build`.
    kind: Option<String>,
}

impl Metadata {
    /// Asks cargo, which must not change `Cargo.lock` for it. Packages that none of the `targets` needs are left
    /// out; without any target, all are in.
    pub(crate) fn read(targets: &[String]) -> Result<Self> {
        let mut command = cargo(&["metadata", "--format-version", "1", "--locked"]);
        for target in targets {
            command.args(["--filter-platform", target]);
        }
        serde_json::from_str(&output(&mut command)?).context("cargo metadata printed something unexpected")
    }

    /// Returns the packages of this repository.
    pub(super) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }

    /// Returns the shortest chain of ordinary dependencies from one package to each that it reaches, the first
    /// name being its own. Features are those that the whole workspace asks for together.
    pub(super) fn chains_from(&self, name: &str) -> Vec<Vec<&str>> {
        let names: BTreeMap<&str, &str> =
            self.packages.iter().map(|package| (package.id.as_str(), package.name.as_str())).collect();
        let nodes: BTreeMap<&str, &Node> =
            self.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
        let Some(start) = self.packages.iter().find(|package| package.name == name) else {
            return Vec::new();
        };

        let mut chains: BTreeMap<&str, Vec<&str>> =
            BTreeMap::from([(start.id.as_str(), vec![start.name.as_str()])]);
        let mut queue = std::collections::VecDeque::from([start.id.as_str()]);
        while let Some(id) = queue.pop_front() {
            let chain = chains.get(id).cloned().unwrap_or_default();
            let edges = nodes.get(id).map(|node| node.deps.as_slice()).unwrap_or_default();
            for edge in edges.iter().filter(|edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none())) {
                let target = edge.pkg.as_str();
                if let (false, Some(name)) = (chains.contains_key(target), names.get(target)) {
                    let mut longer = chain.clone();
                    longer.push(name);
                    chains.insert(target, longer);
                    queue.push_back(target);
                }
            }
        }
        chains.into_values().collect()
    }
}

#[cfg(test)]
impl Metadata {
    /// Makes a workspace of the packages named `a -> b c`; each is at version 1.0.0 and free to use.
    /// A dependency written `dev:b` is one for tests only.
    pub(super) fn sample(lines: &[&str]) -> Self {
        let mut packages = Vec::new();
        let mut nodes = Vec::new();
        for line in lines {
            let (name, targets) = line.split_once(" -> ").unwrap_or((line, ""));
            let kind_of = |word: &str| word.starts_with("dev:").then(|| "dev".to_owned());
            let name_of = |word: &str| word.trim_start_matches("dev:").to_owned();
            packages.push(Package {
                id: name.into(),
                name: name.into(),
                version: "1.0.0".into(),
                license: Some("MIT".into()),
                dependencies: targets
                    .split_whitespace()
                    .map(|word| Dependency { name: name_of(word), path: Some("here".into()) })
                    .collect(),
            });
            let deps = targets
                .split_whitespace()
                .map(|word| Edge { pkg: name_of(word), dep_kinds: vec![EdgeKind { kind: kind_of(word) }] })
                .collect();
            nodes.push(Node { id: name.into(), deps });
        }
        let workspace_members = packages.iter().map(|package| package.id.clone()).collect();
        Self { packages, workspace_members, resolve: Resolve { nodes }, target_directory: PathBuf::new() }
    }
}
