//! The files of the repository, read once for all checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};

use super::source::Source;

/// Every file that is, or would be, under version control.
#[derive(Debug, Default)]
pub(super) struct Repo {
    /// Paths from the root, with `/` between their parts.
    paths: BTreeSet<String>,
    /// Those that git has not been told about yet.
    untracked: BTreeSet<String>,
    /// The content of those that are UTF-8.
    texts: BTreeMap<String, String>,
    /// The Rust files among them.
    sources: BTreeMap<String, Source>,
}

impl Repo {
    /// Reads the files that git knows or would add; without git, all outside of `target`.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let known = git_files(root, &["--cached"]);
        let untracked = git_files(root, &["--others", "--exclude-standard"]);
        let (known, untracked) = match (known, untracked) {
            (Some(known), Some(untracked)) => (known, untracked),
            _ => (walk(root)?, BTreeSet::new()),
        };

        let mut texts = BTreeMap::new();
        let mut paths = BTreeSet::new();
        for path in known.iter().chain(&untracked) {
            let full = root.join(path);
            if !full.is_file() {
                continue; // deleted, and git has not been told
            }
            paths.insert(path.clone());
            let bytes = fs::read(&full).with_context(|| format!("cannot read {path}"))?;
            if let Ok(text) = String::from_utf8(bytes) {
                texts.insert(path.clone(), text);
            }
        }
        Ok(Self::new(paths, untracked, texts))
    }

    fn new(paths: BTreeSet<String>, untracked: BTreeSet<String>, texts: BTreeMap<String, String>) -> Self {
        let mut sources: BTreeMap<String, Source> = texts
            .iter()
            .filter(|(path, _)| path.ends_with(".rs"))
            .map(|(path, text)| (path.clone(), Source::new(text)))
            .collect();
        let for_tests: Vec<String> = sources
            .iter()
            .flat_map(|(path, source)| {
                source.test_modules().iter().flat_map(move |module| files_of_module(path, module))
            })
            .collect();
        for (path, source) in &mut sources {
            if is_test_path(path) || for_tests.iter().any(|start| path.starts_with(start)) {
                source.mark_as_test();
            }
        }
        Self { paths, untracked, texts, sources }
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().map(String::as_str)
    }

    /// Returns every text file with its content.
    pub(super) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// Returns every Rust file, taken apart.
    pub(super) fn sources(&self) -> impl Iterator<Item = (&str, &Source)> {
        self.sources.iter().map(|(path, source)| (path.as_str(), source))
    }

    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.texts.get(path).map(String::as_str)
    }

    /// Tells whether there is such a file, or a folder that holds one.
    pub(super) fn has(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        path.is_empty()
            || self.paths.contains(path)
            || self.paths.iter().any(|known| known.starts_with(&folder))
    }

    /// Tells whether git has not been told about a file that is there.
    pub(super) fn is_untracked(&self, path: &str) -> bool {
        self.untracked.contains(path)
    }
}

#[cfg(test)]
impl Repo {
    /// Makes a repository of the given files, all of them tracked.
    pub(super) fn sample(files: &[(&str, &str)]) -> Self {
        let texts: BTreeMap<String, String> =
            files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        Self::new(texts.keys().cloned().collect(), BTreeSet::new(), texts)
    }

    /// Makes git forget a file.
    pub(super) fn forget(mut self, path: &str) -> Self {
        self.untracked.insert(path.to_owned());
        self
    }
}

/// Tells from its path alone that a file holds nothing but tests.
fn is_test_path(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "tests" | "benches" | "fuzz" | "tests.rs"))
}

/// Returns the beginnings of the paths that the module `name`, declared in the file at `path`, may have.
fn files_of_module(path: &str, name: &str) -> [String; 2] {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = file.trim_end_matches(".rs");
    let base =
        if matches!(stem, "mod" | "lib" | "main") { folder.to_owned() } else { format!("{folder}/{stem}") };
    [format!("{base}/{name}.rs"), format!("{base}/{name}/")]
}

fn git_files(root: &Path, which: &[&str]) -> Option<BTreeSet<String>> {
    let output =
        Command::new("git").arg("-C").arg(root).args(["ls-files", "-z"]).args(which).output().ok()?;
    let list = String::from_utf8(output.stdout).ok()?;
    output
        .status
        .success()
        .then(|| list.split('\0').filter(|path| !path.is_empty()).map(String::from).collect())
}

fn walk(root: &Path) -> Result<BTreeSet<String>> {
    let mut paths = BTreeSet::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let is_skipped = name == "target" || name == ".git";
            if entry.file_type()?.is_dir() && !is_skipped {
                folders.push(entry.path());
            } else if entry.file_type()?.is_file()
                && let Ok(path) = entry.path().strip_prefix(root)
                && let Some(path) = path.to_str()
            {
                paths.insert(path.replace(std::path::MAIN_SEPARATOR, "/"));
            }
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test_files(files: &[(&str, &str)]) -> Vec<String> {
        let repo = Repo::sample(files);
        let all_test = repo.sources().filter(|(_, source)| source.lines().all(|line| line.is_test));
        all_test.map(|(path, _)| path.to_owned()).collect()
    }

    #[test]
    fn files_in_test_folders_and_test_modules_are_tests() {
        let files = [
            ("a/src/lib.rs", "mod node;\n#[cfg(test)]\nmod vectors;"),
            ("a/src/node.rs", "fn n() {}\n#[cfg(test)]\nmod helpers;"),
            ("a/src/node/helpers.rs", "fn h() {}"),
            ("a/src/node/other.rs", "fn o() {}"),
            ("a/src/vectors.rs", "fn v() {}"),
            ("a/tests/join.rs", "fn t() {}"),
        ];
        assert_eq!(test_files(&files), ["a/src/node/helpers.rs", "a/src/vectors.rs", "a/tests/join.rs"]);
    }

    #[test]
    fn a_folder_exists_when_a_file_in_it_does() {
        let repo = Repo::sample(&[("docs/decisions/001.md", "")]);
        assert!(repo.has("docs/decisions") && repo.has("docs"));
        assert!(!repo.has("docs/dec"));
    }
}
