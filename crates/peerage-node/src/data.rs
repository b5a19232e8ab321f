//! The node's data directory: keys that only its owner can read, and a lock so that one process at a time uses it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use peerage_wire::id::{Domain, NodeId, from_hex, to_hex};
use peerage_wire::keys::{AgreementKey, IdentityKey, verify};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

/// The file with the node's long-lived keys.
pub const KEY_FILE: &str = "identity.key";
/// The file that the running node holds a lock on.
pub const LOCK_FILE: &str = "lock";
/// The database of records.
pub const STORE_FILE: &str = "node.db";

const KEY_FILE_HEADER: &str = "peerage-identity 1";
/// The key file has 5 lines of at most 80 characters; more is something else and is not read.
const MAX_KEY_FILE_BYTES: u64 = 1_024;
/// The lock file says who holds it in one line.
const MAX_LOCK_FILE_BYTES: u64 = 256;

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
    /// Others can read or write it.
    #[error("other users can read {0}; run: chmod {mode:o} {0}", .path.display())]
    Permissions {
        /// The file or directory.
        path: PathBuf,
        /// The permissions that it should have.
        mode: u32,
    },
    /// Another process uses it.
    #[error("the data directory {} is in use by {holder}", .path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who holds the lock, as it wrote.
        holder: String,
    },
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
    /// The file system failed.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |source| DataError::Io { action, path: path.to_owned(), source }
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
    /// The lock ends when the file is closed, also when the process is killed.
    _lock: File,
}

impl DataDir {
    /// Opens an existing data directory.
    ///
    /// # Errors
    /// If it is absent, others can read it, or another process uses it.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_dir() => Err(DataError::NotADirectory { path: path.to_owned() }),
            Ok(metadata) => {
                check_mode(path, metadata.permissions().mode(), 0o700)?;
                Ok(Self { path: path.to_owned(), _lock: lock(path)? })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(DataError::Absent { path: path.to_owned() })
            }
            Err(error) => Err(io_error("read", path)(error)),
        }
    }

    /// Opens a data directory, and makes it if it is absent (mode 0700).
    ///
    /// # Errors
    /// As [`open`](Self::open), or if it cannot be made.
    pub fn create(path: &Path) -> Result<Self, DataError> {
        if !path.exists() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(io_error("make", path))?;
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
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let metadata = file.metadata().map_err(io_error("read", &path))?;
        check_mode(&path, metadata.permissions().mode(), 0o600)?;
        let mut text = Zeroizing::new(String::new());
        let read = file.take(MAX_KEY_FILE_BYTES).read_to_string(&mut text);
        match read {
            Ok(_length) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(DataError::MalformedKeys { path });
            }
            Err(error) => return Err(io_error("read", &path)(error)),
        }
        let keys =
            NodeKeys::from_text(&text).ok_or_else(|| DataError::MalformedKeys { path: path.clone() })?;
        if keys.self_test() { Ok(Some(keys)) } else { Err(DataError::SelfTest { path }) }
    }

    /// Writes the keys, safe on disk when it returns (mode 0600). Never replaces keys that are there.
    ///
    /// # Errors
    /// If the file exists or cannot be written.
    pub fn write_keys(&self, keys: &NodeKeys) -> Result<(), DataError> {
        let path = self.path.join(KEY_FILE);
        let temporary = self.path.join("identity.new");
        let written = || -> io::Result<()> {
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(keys.to_text().as_bytes())?;
            file.sync_all()?;
            // A link, unlike a rename, fails if the name is taken.
            fs::hard_link(&temporary, &path)?;
            fs::remove_file(&temporary)?;
            File::open(&self.path)?.sync_all()
        };
        written().map_err(io_error("write", &path))
    }

    /// Erases keys and records: what is left is as before joining.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn erase(&self) -> Result<(), DataError> {
        for name in [KEY_FILE, STORE_FILE, "node.db-wal", "node.db-shm"] {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn check_mode(path: &Path, mode: u32, wanted: u32) -> Result<(), DataError> {
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(DataError::Permissions { path: path.to_owned(), mode: wanted })
}

fn lock(data: &Path) -> Result<File, DataError> {
    let path = data.join(LOCK_FILE);
    let opened =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = opened.map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // It is told for information only; what cannot be read is not worth another error.
            let _ = file.take(MAX_LOCK_FILE_BYTES).read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                text => text.to_owned(),
            };
            return Err(DataError::Locked { path: data.to_owned(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
    }
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(format!("process {}\n", std::process::id()).as_bytes()));
    written.map_err(io_error("write", &path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
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
        assert!(matches!(data.write_keys(&other), Err(DataError::Io { .. })));
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
        assert!(matches!(error, DataError::Locked { .. }));
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
