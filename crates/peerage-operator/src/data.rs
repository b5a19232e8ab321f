//! The operator's data directory: its keys, and a lock so that one process at a time uses it.

use std::fs;
use std::path::{Path, PathBuf};

use peerage_node::private::{self, DIRECTORY_MODE, FILE_MODE, Lock, PrivateError};
use peerage_wire::id::{from_hex, to_hex};
use peerage_wire::keys::{AgreementKey, IdentityKey};
use zeroize::Zeroizing;

/// The root key; may be kept elsewhere once `init` is done.
pub(crate) const ROOT_KEY: &str = "root.key";
/// The operator's identity and enrolment keys.
pub(crate) const OPERATOR_KEY: &str = "operator.key";
/// The ledger.
pub(crate) const LEDGER: &str = "ledger.db";
/// The certificate that `init` has made, and its private key, both in DER.
pub(crate) const CERTIFICATE: &str = "certificate.der";
/// See [`CERTIFICATE`].
pub(crate) const CERTIFICATE_KEY: &str = "certificate.key.der";
/// What a failed `init` leaves behind.
pub(crate) const MADE_BY_INIT: [&str; 7] =
    [ROOT_KEY, OPERATOR_KEY, CERTIFICATE, CERTIFICATE_KEY, LEDGER, "ledger.db-wal", "ledger.db-shm"];

const ROOT_HEADER: &str = "peerage-root 1";
const OPERATOR_HEADER: &str = "peerage-operator 1";

/// Longest key file, in bytes: three lines. Whatever is longer is something else.
const MAX_KEY_FILE: u64 = 1_024;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// There is no operator in it.
    #[error("there is no operator in {}; `peerage operator init` makes one", .data.display())]
    Absent {
        /// The directory.
        data: PathBuf,
    },
    /// There is already an operator in it, or what an interrupted `init` has left.
    #[error("{} exists already, and init replaces nothing; choose another directory", .path.display())]
    Occupied {
        /// The first file that is in the way.
        path: PathBuf,
    },
    /// Others can read it, another operator uses it, or the file system failed.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// A key file does not have its form.
    #[error("the key file {} is damaged; restore it from a backup", .path.display())]
    MalformedKey {
        /// The file.
        path: PathBuf,
    },
    /// A key file belongs to another network than the ledger.
    #[error("the key file {} does not belong to this ledger; put back the one that `init` has made", .path.display())]
    ForeignKey {
        /// The file.
        path: PathBuf,
    },
}

/// The operator's own keys.
#[derive(Clone, Debug)]
pub(crate) struct OperatorKeys {
    /// What it signs with.
    pub(crate) identity: IdentityKey,
    /// To what enrolments are sealed.
    pub(crate) enrolment: AgreementKey,
}

/// The data directory, locked until dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: Lock,
}

impl DataDir {
    /// Makes the directory for a new operator; fails if there is one already.
    pub(crate) fn create(path: &Path) -> Result<Self, DataError> {
        private::make_directory(path)?;
        private::check(path, DIRECTORY_MODE)?;
        for name in [ROOT_KEY, OPERATOR_KEY, LEDGER, CERTIFICATE, CERTIFICATE_KEY] {
            let file = path.join(name);
            if file.symlink_metadata().is_ok() {
                return Err(DataError::Occupied { path: file });
            }
        }
        Ok(Self { path: path.to_owned(), _lock: Lock::take(path)? })
    }

    /// Opens the directory of an operator that exists.
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        if !path.join(LEDGER).is_file() {
            return Err(DataError::Absent { data: path.to_owned() });
        }
        private::check(path, DIRECTORY_MODE)?;
        private::check(&path.join(LEDGER), FILE_MODE)?;
        Ok(Self { path: path.to_owned(), _lock: Lock::take(path)? })
    }

    /// Returns the path of a file in the directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a new file that only the owner can read, and waits until the disk has it.
    pub(crate) fn write_new(&self, name: &str, content: &[u8]) -> Result<(), DataError> {
        Ok(private::write_new(&self.file(name), content)?)
    }

    /// Replaces a file that only the owner can read; readers see the old or the new content, never half of it.
    pub(crate) fn replace(&self, name: &str, content: &[u8]) -> Result<(), DataError> {
        let (path, half) = (self.file(name), self.file(&format!("{name}.new")));
        private::remove_if_present(&half)?;
        self.write_new(&format!("{name}.new"), content)?;
        Ok(fs::rename(&half, &path).map_err(private::failed("replace", &path))?)
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, name: &str) {
        let path = self.file(name);
        if let Err(error) = private::remove_if_present(&path) {
            tracing::warn!(%error, "a file is left behind");
        }
    }

    /// Waits until the disk knows the names of the files.
    pub(crate) fn sync(&self) -> Result<(), DataError> {
        Ok(private::sync_directory(&self.path)?)
    }

    pub(crate) fn write_root_key(&self, root: &IdentityKey) -> Result<(), DataError> {
        let text = Zeroizing::new(format!("{ROOT_HEADER}\nroot {}\n", *Zeroizing::new(to_hex(root.seed()))));
        self.write_new(ROOT_KEY, text.as_bytes())
    }

    pub(crate) fn write_operator_keys(&self, keys: &OperatorKeys) -> Result<(), DataError> {
        let identity = Zeroizing::new(to_hex(keys.identity.seed()));
        let enrolment = Zeroizing::new(to_hex(keys.enrolment.secret()));
        let text =
            Zeroizing::new(format!("{OPERATOR_HEADER}\nidentity {}\nenrolment {}\n", *identity, *enrolment));
        self.write_new(OPERATOR_KEY, text.as_bytes())
    }

    /// Reads the root key; `None` if it is kept elsewhere.
    pub(crate) fn read_root_key(&self) -> Result<Option<IdentityKey>, DataError> {
        let path = self.file(ROOT_KEY);
        if !path.exists() {
            return Ok(None);
        }
        let text = read_private(&path)?;
        let mut lines = text.lines();
        let seed = header(&mut lines, ROOT_HEADER).and_then(|()| secret(&mut lines, "root"));
        match (seed, lines.next()) {
            (Some(seed), None) => Ok(Some(IdentityKey::from_seed(&seed))),
            _ => Err(DataError::MalformedKey { path }),
        }
    }

    pub(crate) fn read_operator_keys(&self) -> Result<OperatorKeys, DataError> {
        let path = self.file(OPERATOR_KEY);
        let text = read_private(&path)?;
        let mut lines = text.lines();
        let read = header(&mut lines, OPERATOR_HEADER)
            .and_then(|()| Some((secret(&mut lines, "identity")?, secret(&mut lines, "enrolment")?)));
        match (read, lines.next()) {
            (Some((identity, enrolment)), None) => Ok(OperatorKeys {
                identity: IdentityKey::from_seed(&identity),
                enrolment: AgreementKey::from_secret(*enrolment),
            }),
            _ => Err(DataError::MalformedKey { path }),
        }
    }
}

fn header(lines: &mut std::str::Lines<'_>, expected: &str) -> Option<()> {
    (lines.next()? == expected).then_some(())
}

fn secret(lines: &mut std::str::Lines<'_>, name: &str) -> Option<Zeroizing<[u8; 32]>> {
    let digits = lines.next()?.strip_prefix(name)?.strip_prefix(' ')?;
    from_hex(digits).ok().map(Zeroizing::new)
}

/// Reads a file that only the owner may be able to read.
pub(crate) fn read_private(path: &Path) -> Result<Zeroizing<String>, DataError> {
    private::read_text(path, MAX_KEY_FILE)?.ok_or_else(|| DataError::MalformedKey { path: path.to_owned() })
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn keys() -> OperatorKeys {
        OperatorKeys {
            identity: IdentityKey::from_seed(&[1; 32]),
            enrolment: AgreementKey::from_secret([2; 32]),
        }
    }

    fn new_dir() -> (tempfile::TempDir, DataDir) {
        let parent = tempfile::tempdir().unwrap();
        let data = DataDir::create(&parent.path().join("operator")).unwrap();
        (parent, data)
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn keys_are_read_back_as_written_and_only_by_their_owner() {
        let (_parent, data) = new_dir();
        data.write_operator_keys(&keys()).unwrap();
        data.write_root_key(&IdentityKey::from_seed(&[3; 32])).unwrap();
        let read = data.read_operator_keys().unwrap();
        assert_eq!(read.identity.seed(), &[1; 32]);
        assert_eq!(read.enrolment.secret(), &[2; 32]);
        assert_eq!(data.read_root_key().unwrap().unwrap().seed(), &[3; 32]);
        chmod(&data.file(OPERATOR_KEY), 0o640);
        assert!(matches!(
            data.read_operator_keys(),
            Err(DataError::Private(PrivateError::Permissions { mode: 0o600, .. }))
        ));
    }

    #[test]
    fn a_root_key_that_is_kept_elsewhere_is_not_missed() {
        let (_parent, data) = new_dir();
        assert!(data.read_root_key().unwrap().is_none());
    }

    #[test]
    fn a_key_file_cut_short_at_any_byte_or_with_more_in_it_is_damaged() {
        let (_parent, data) = new_dir();
        data.write_operator_keys(&keys()).unwrap();
        let path = data.file(OPERATOR_KEY);
        let whole = fs::read(&path).unwrap();
        // Without its last line feed the file still says everything.
        for length in 0..whole.len() - 1 {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(data.read_operator_keys(), Err(DataError::MalformedKey { .. })), "{length}");
        }
        fs::write(&path, [&whole[..], b"more\n"].concat()).unwrap();
        assert!(matches!(data.read_operator_keys(), Err(DataError::MalformedKey { .. })));
        fs::write(&path, [0xff; 80]).unwrap();
        assert!(matches!(data.read_operator_keys(), Err(DataError::MalformedKey { .. })));
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let (parent, data) = new_dir();
        drop(data);
        let path = parent.path().join("operator");
        chmod(&path, 0o755);
        assert!(matches!(
            DataDir::create(&path),
            Err(DataError::Private(PrivateError::Permissions { mode: 0o700, .. }))
        ));
    }

    #[test]
    fn only_one_process_uses_a_directory_and_nothing_in_it_is_replaced() {
        let (parent, data) = new_dir();
        let path = parent.path().join("operator");
        assert!(matches!(DataDir::create(&path), Err(DataError::Private(PrivateError::Locked { .. }))));
        data.write_operator_keys(&keys()).unwrap();
        drop(data);
        assert!(matches!(DataDir::create(&path), Err(DataError::Occupied { .. })));
        assert!(matches!(DataDir::open(&path), Err(DataError::Absent { .. })));
    }
}
