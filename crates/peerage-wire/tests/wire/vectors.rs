//! Files of vectors: lines `name = hexadecimal digits`, never edited, only added to.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;

use peerage_wire::id::{from_hex, to_hex};

/// One file of vectors.
#[derive(Debug)]
pub(crate) struct Vectors {
    path: PathBuf,
    known: BTreeMap<String, Vec<u8>>,
    seen: BTreeSet<String>,
    added: Vec<String>,
}

impl Vectors {
    /// Reads a file; one that does not exist has no vectors.
    pub(crate) fn read(file: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut known = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            let (name, digits) = line.split_once('=').expect("a line is `name = digits`");
            let twice = known.insert(name.trim().to_owned(), bytes(digits.trim()));
            assert_eq!(twice, None, "{name} stands twice in {file}");
        }
        Self { path, known, seen: BTreeSet::new(), added: Vec::new() }
    }

    /// Returns a vector that must be there.
    pub(crate) fn get(&mut self, name: &str) -> Vec<u8> {
        self.seen.insert(name.to_owned());
        self.known.get(name).unwrap_or_else(|| panic!("no vector {name}")).clone()
    }

    /// Compares with the vector of that name. One that is missing is written down if `PEERAGE_WRITE_VECTORS` is set.
    pub(crate) fn check(&mut self, name: &str, actual: &[u8]) {
        self.seen.insert(name.to_owned());
        if let Some(expected) = self.known.get(name) {
            assert_eq!(to_hex(actual), to_hex(expected), "{name}");
            return;
        }
        assert!(std::env::var_os("PEERAGE_WRITE_VECTORS").is_some(), "no vector {name}");
        self.added.push(format!("{name} = {}\n", to_hex(actual)));
    }

    /// Returns the vectors themselves, whatever they are called.
    pub(crate) fn into_all(self) -> impl Iterator<Item = Vec<u8>> {
        self.known.into_values()
    }

    /// Ends a test: every vector of the file must have been looked at.
    pub(crate) fn finish(self) {
        let unseen: Vec<_> = self.known.keys().filter(|name| !self.seen.contains(*name)).collect();
        assert!(unseen.is_empty(), "vectors that no test makes: {unseen:?}");
        if !self.added.is_empty() {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&self.path).unwrap();
            file.write_all(self.added.concat().as_bytes()).unwrap();
        }
    }
}

fn bytes(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| from_hex::<1>(pair).expect("hexadecimal digits")[0]).collect()
}
