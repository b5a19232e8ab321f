//! The node's data directory: keys that only its owner can read, and a lock so that one process at a time uses it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use peerage_wire::id::{Domain, NodeId, from_hex, to_hex};
use peerage_wire::keys::{AgreementKey, IdentityKey, verify};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::private::{self, DIRECTORY_MODE, Lock, PrivateError};

/// The file with the node's long-lived keys.
pub const KEY_FILE: &str = "identity.key";
/// The database of records.
pub const STORE_FILE: &str = "node.db";

const KEY_FILE_HEADER: &str = "peerage-identity 1";
/// The key file has 5 lines of at most 80 characters; more is something else and is not read.
const MAX_KEY_FILE_BYTES: u64 = 1_024;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// There is no such directory.
    #[error("there is no data directory {}; `peerage join TOKEN` makes it", .path.display())]
    Absent {
        /// The directory.
        path: PathBuf,
    },
    /// The path is a file, or a link that leads to none.
    #[error("{} is not a directory", .path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// Others can read it, another process uses it, or the file system failed.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// The key file is damaged.
    #[error(
        "the key file {} is damaged; restore it from a backup, or register as new: move it away and join with a token",
        .path.display()
    )]
    MalformedKeys {
        /// The file.
        path: PathBuf,
    },
    /// A key pair that was read does not work.
    #[error(
        "the keys in {} failed their self-test; restore the file from a backup, or register as new: move it away and join with a token",
        .path.display()
    )]
    SelfTest {
        /// The file.
        path: PathBuf,
    },
}

/// A node's long-lived keys.
#[derive(Clone, Debug)]
pub struct NodeKeys {
    /// Who the node is.
    pub identity: IdentityKey,
    /// What domain keys are sealed to.
    pub receiving: AgreementKey,
}

impl NodeKeys {
    /// Makes new keys.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        Self { identity: IdentityKey::generate(rng), receiving: AgreementKey::generate(rng) }
    }

    /// Returns the node's id in a domain.
    pub fn node_id(&self, domain: Domain) -> NodeId {
        self.identity.node_id(domain)
    }

    fn self_test(&self) -> bool {
        const MESSAGE: &[u8] = b"peerage key self-test";
        verify(&self.identity.public(), MESSAGE, &self.identity.sign(MESSAGE))
    }

    fn to_text(&self) -> Zeroizing<String> {
        let identity = Zeroizing::new(to_hex(self.identity.seed()));
        let receiving = Zeroizing::new(to_hex(self.receiving.secret()));
        Zeroizing::new(format!(
            "{KEY_FILE_HEADER}\nidentity {}\nidentity-public {}\nreceiving {}\nreceiving-public {}\n",
            *identity,
            to_hex(&self.identity.public()),
            *receiving,
            to_hex(self.receiving.public()),
        ))
    }

    /// Reads the text of a key file. The public halves are there so that a flipped bit is noticed.
    fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != KEY_FILE_HEADER {
            return None;
        }
        let mut field = |name: &str| {
            let digits = lines.next()?.strip_prefix(name)?.strip_prefix(' ')?;
            from_hex::<32>(digits).ok()
        };
        let identity = IdentityKey::from_seed(&Zeroizing::new(field("identity")?));
        let identity_public = field("identity-public")?;
        let receiving = AgreementKey::from_secret(field("receiving")?);
        let receiving_public = field("receiving-public")?;
        let is_whole = lines.next().is_none()
            && identity.public() == identity_public
            && *receiving.public() == receiving_public;
        is_whole.then_some(Self { identity, receiving })
    }
}

/// A data directory that this process alone uses, until the value is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: Lock,
}

impl DataDir {
    /// Opens an existing data directory.
    ///
    /// # Errors
    /// If it is absent, others can read it, or another process uses it.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_dir() => Err(DataError::NotADirectory { path: path.to_owned() }),
            Ok(_directory) => {
                private::check(path, DIRECTORY_MODE)?;
                Ok(Self { path: path.to_owned(), _lock: Lock::take(path)? })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(DataError::Absent { path: path.to_owned() })
            }
            Err(error) => Err(private::failed("read", path)(error).into()),
        }
    }

    /// Opens a data directory, and makes it if it is absent (mode 0700).
    ///
    /// # Errors
    /// As [`open`](Self::open), or if it cannot be made.
    pub fn create(path: &Path) -> Result<Self, DataError> {
        if !path.exists() {
            private::make_directory(path)?;
        }
        Self::open(path)
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the database.
    pub fn store_path(&self) -> PathBuf {
        self.path.join(STORE_FILE)
    }

    /// Reads the keys and tests them; `None` if there are none yet.
    ///
    /// # Errors
    /// If others can read the file, or it is damaged.
    pub fn keys(&self) -> Result<Option<NodeKeys>, DataError> {
        let path = self.path.join(KEY_FILE);
        if !path.try_exists().map_err(private::failed("read", &path))? {
            return Ok(None);
        }
        let text = private::read_text(&path, MAX_KEY_FILE_BYTES)?;
        let keys = text.and_then(|text| NodeKeys::from_text(&text));
        let keys = keys.ok_or_else(|| DataError::MalformedKeys { path: path.clone() })?;
        if keys.self_test() { Ok(Some(keys)) } else { Err(DataError::SelfTest { path }) }
    }

    /// Writes the keys, safe on disk when it returns (mode 0600). Never replaces keys that are there.
    ///
    /// # Errors
    /// If the file exists or cannot be written.
    pub fn write_keys(&self, keys: &NodeKeys) -> Result<(), DataError> {
        let path = self.path.join(KEY_FILE);
        let temporary = self.path.join("identity.new");
        private::remove_if_present(&temporary)?;
        private::write_new(&temporary, keys.to_text().as_bytes())?;
        // A link, unlike a rename, fails if the name is taken.
        fs::hard_link(&temporary, &path).map_err(private::failed("write", &path))?;
        private::remove_if_present(&temporary)?;
        Ok(private::sync_directory(&self.path)?)
    }

    /// Erases keys and records: what is left is as before joining.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn erase(&self) -> Result<(), DataError> {
        for name in [KEY_FILE, STORE_FILE, "node.db-wal", "node.db-shm"] {
            private::remove_if_present(&self.path.join(name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn keys() -> NodeKeys {
        NodeKeys { identity: IdentityKey::from_seed(&[1; 32]), receiving: AgreementKey::from_secret([2; 32]) }
    }

    fn data() -> (tempfile::TempDir, DataDir) {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::create(&temp.path().join("a/node")).unwrap();
        (temp, data)
    }

    #[test]
    fn keys_are_read_back_and_nobody_else_can_read_them() {
        let (_temp, data) = data();
        assert!(data.keys().unwrap().is_none());
        data.write_keys(&keys()).unwrap();
        let read = data.keys().unwrap().unwrap();
        assert_eq!(read.identity.public(), keys().identity.public());
        assert_eq!(read.receiving.public(), keys().receiving.public());
        let mode = |name: &str| fs::metadata(data.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(KEY_FILE), mode("")), (0o600, 0o700));
        assert!(!data.path().join("identity.new").exists());
    }

    #[test]
    fn existing_keys_are_never_replaced() {
        let (_temp, data) = data();
        data.write_keys(&keys()).unwrap();
        let other = NodeKeys { identity: IdentityKey::from_seed(&[9; 32]), ..keys() };
        assert!(matches!(data.write_keys(&other), Err(DataError::Private(PrivateError::Io { .. }))));
        assert_eq!(data.keys().unwrap().unwrap().identity.public(), keys().identity.public());
    }

    #[test]
    fn wider_permissions_are_refused_with_the_command_that_mends_them() {
        let (_temp, data) = data();
        data.write_keys(&keys()).unwrap();
        let path = data.path().join(KEY_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = data.keys().unwrap_err().to_string();
        assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");

        let directory = data.path().to_owned();
        drop(data);
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let error = DataDir::open(&directory).unwrap_err().to_string();
        assert!(error.contains(&format!("chmod 700 {}", directory.display())), "{error}");
    }

    #[test]
    fn a_damaged_key_file_says_how_to_go_on() {
        let (_temp, data) = data();
        data.write_keys(&keys()).unwrap();
        let path = data.path().join(KEY_FILE);
        let whole = fs::read(&path).unwrap();
        let mut damaged = vec![vec![], b"hello\n".to_vec(), vec![0xff; 300], [&whole[..], b"x\n"].concat()];
        damaged.extend((0..whole.len() - 1).map(|length| whole[..length].to_vec()));
        // Each digit of the secrets, and of the public halves.
        let digits = (0..whole.len()).filter(|at| whole[*at].is_ascii_digit());
        damaged.extend(digits.map(|at| {
            let mut altered = whole.clone();
            altered[at] ^= 1;
            altered
        }));
        for content in damaged {
            fs::write(&path, &content).unwrap();
            match data.keys() {
                Err(DataError::MalformedKeys { .. }) => {}
                // X25519 ignores five bits of a secret (RFC 7748, section 5).
                Ok(Some(read)) if read.receiving.public() == keys().receiving.public() => {
                    assert_eq!(read.identity.public(), keys().identity.public());
                }
                other => panic!("{other:?}: {content:?}"),
            }
        }
        fs::write(&path, "").unwrap();
        assert!(data.keys().unwrap_err().to_string().contains("join with a token"));
    }

    #[test]
    fn a_second_process_is_told_who_uses_the_directory() {
        let (_temp, data) = data();
        let error = DataDir::open(data.path()).unwrap_err();
        assert!(matches!(error, DataError::Private(PrivateError::Locked { .. })));
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        let path = data.path().to_owned();
        drop(data);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn an_absent_directory_and_a_file_in_its_place_are_told_apart() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("none");
        assert!(matches!(DataDir::open(&path), Err(DataError::Absent { .. })));
        fs::write(&path, "").unwrap();
        assert!(matches!(DataDir::create(&path), Err(DataError::NotADirectory { .. })));
    }

    #[test]
    fn erasing_leaves_a_directory_that_can_join_again() {
        let (_temp, data) = data();
        data.write_keys(&keys()).unwrap();
        data.erase().unwrap();
        assert!(data.keys().unwrap().is_none());
        data.write_keys(&keys()).unwrap();
    }
}
