//! Directories and files that only their owner can read, and a lock so that one process at a time uses a directory.
//!
//! Both programs keep keys: the node its own, the operator those of the network. What is refused, and in which words, is the
//! same for both.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// The file that the running process holds a lock on.
const LOCK_FILE: &str = "lock";

/// The lock file says who holds it in one line.
const MAX_LOCK_FILE_BYTES: u64 = 256;

/// The permissions of a directory.
pub const DIRECTORY_MODE: u32 = 0o700;

/// The permissions of a file.
pub const FILE_MODE: u32 = 0o600;

/// Why a directory or file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
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

/// Says what was tried when the file system fails.
pub fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrivateError {
    let path = path.to_owned();
    move |source| PrivateError::Io { action, path, source }
}

/// Holds a directory for this process until it is dropped, also when the process is killed.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of a directory.
    ///
    /// # Errors
    /// If another process holds it, or the file system fails.
    pub fn take(directory: &Path) -> Result<Self, PrivateError> {
        let path = directory.join(LOCK_FILE);
        let opened = options().create(true).truncate(false).open(&path);
        let mut file = opened.map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = holder_of(file);
                return Err(PrivateError::Locked { path: directory.to_owned(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(format!("process {}\n", std::process::id()).as_bytes()));
        written.map_err(failed("write", &path))?;
        Ok(Self { _file: file })
    }
}

fn holder_of(file: File) -> String {
    let mut holder = String::new();
    // It is told for information only; what cannot be read is not worth another error.
    let _ = file.take(MAX_LOCK_FILE_BYTES).read_to_string(&mut holder);
    match holder.trim() {
        "" => "another process".to_owned(),
        text => text.to_owned(),
    }
}

/// Makes a directory with its parents, if it is absent.
///
/// # Errors
/// If the file system fails.
pub fn make_directory(path: &Path) -> Result<(), PrivateError> {
    private_builder().recursive(true).create(path).map_err(failed("make", path))
}

/// Refuses a directory or file that others can read or write; `mode` is what it should have.
///
/// # Errors
/// If they can, or it cannot be looked at.
pub fn check(path: &Path, mode: u32) -> Result<(), PrivateError> {
    judge(path, &fs::metadata(path).map_err(failed("read", path))?, mode)
}

fn judge(path: &Path, metadata: &fs::Metadata, mode: u32) -> Result<(), PrivateError> {
    if is_private(metadata) {
        return Ok(());
    }
    Err(PrivateError::Permissions { path: path.to_owned(), mode })
}

/// Reads a text of at most `limit` bytes that only the owner can read; `None` if it is no text.
///
/// # Errors
/// If others can read it, or the file system fails.
pub fn read_text(path: &Path, limit: u64) -> Result<Option<Zeroizing<String>>, PrivateError> {
    let file = File::open(path).map_err(failed("read", path))?;
    // Of the file that is read, whatever stands under the name meanwhile.
    judge(path, &file.metadata().map_err(failed("read", path))?, FILE_MODE)?;
    let mut text = Zeroizing::new(String::new());
    match file.take(limit).read_to_string(&mut text) {
        Ok(_length) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Writes a new file; its content is on disk when this returns, its name once [`sync_directory`] does.
///
/// # Errors
/// If it exists, or the file system fails.
pub fn write_new(path: &Path, content: &[u8]) -> Result<(), PrivateError> {
    let mut file = options().create_new(true).open(path).map_err(failed("make", path))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed("write", path))
}

/// Removes a file, if it is there.
///
/// # Errors
/// If the file system fails.
pub fn remove_if_present(path: &Path) -> Result<(), PrivateError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Waits until the disk knows the names of a directory's files.
///
/// # Errors
/// If the file system fails.
pub fn sync_directory(path: &Path) -> Result<(), PrivateError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("write", path))
}

#[cfg(unix)]
fn options() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(FILE_MODE);
    options
}

#[cfg(unix)]
fn private_builder() -> fs::DirBuilder {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = fs::DirBuilder::new();
    builder.mode(DIRECTORY_MODE);
    builder
}

#[cfg(unix)]
fn is_private(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    metadata.permissions().mode() & 0o077 == 0
}

#[cfg(not(unix))]
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

#[cfg(not(unix))]
fn private_builder() -> fs::DirBuilder {
    fs::DirBuilder::new()
}

#[cfg(not(unix))]
fn is_private(_metadata: &fs::Metadata) -> bool {
    true
}
