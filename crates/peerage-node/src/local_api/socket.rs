//! The Unix socket of the local API: who may have it, and who may connect.

use peerage_client::local::SOCKET_FILE;
use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net as blocking,
    },
    path::{Path, PathBuf},
};
use tokio::net::{UnixListener, UnixStream};

/// The name under which the socket is made before it takes its place; not longer than [`SOCKET_FILE`], so that both
/// fit or neither.
const TEMPORARY_FILE: &str = "api.new";

/// The longest path of a socket, in bytes, that every system takes (macOS 104, Linux 108, each with a final zero).
const MAX_SOCKET_PATH_BYTES: usize = 103;

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process answers on it.
    #[error("another node is running with the data directory {}", .data.display())]
    AlreadyServed {
        /// The data directory.
        data: PathBuf,
    },
    /// Something that is not a socket has its name.
    #[error("{} is not a socket; move it away", .path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The system limits the length of a socket's path.
    #[error("{} is longer than {MAX_SOCKET_PATH_BYTES} bytes; choose a data directory with a shorter path", .path.display())]
    PathTooLong {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The file system or the socket failed.
    #[error("cannot make the socket {}", .path.display())]
    Io {
        /// The path of the socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The listening socket of the local API; removes its file when dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that another's is never removed.
    file: (u64, u64),
    owner: u32,
}

impl Socket {
    /// Makes the socket in a data directory, for its owner only (mode 0600).
    ///
    /// A socket file on which nobody answers is replaced. Two processes that begin at the same instant are told
    /// apart by the lock of the data directory, which the caller holds, not here.
    pub fn bind(data: &Path) -> Result<Self, BindError> {
        let path = data.join(SOCKET_FILE);
        if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            return Err(BindError::PathTooLong { path });
        }
        refuse_unless_stale(data, &path)?;
        Self::bind_at(&data.join(TEMPORARY_FILE), &path).map_err(|source| BindError::Io { path, source })
    }

    /// Makes the socket under a name that nobody looks for, and renames it when its permissions are right: there is
    /// no instant at which others could connect, nor one without a socket.
    fn bind_at(temporary: &Path, path: &Path) -> io::Result<Self> {
        match fs::remove_file(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(temporary)?;
        fs::set_permissions(temporary, fs::Permissions::from_mode(0o600))?;
        let metadata = fs::symlink_metadata(temporary)?;
        fs::rename(temporary, path)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: (metadata.dev(), metadata.ino()),
            owner: metadata.uid(),
        })
    }

    /// Waits for a connection of the user who runs this process, or of root; others are turned away.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            match stream.peer_cred() {
                Ok(peer) if is_allowed(peer.uid(), self.owner) => return Ok(stream),
                Ok(peer) => tracing::warn!(uid = peer.uid(), "another user tried to use the local API"),
                Err(error) => tracing::debug!(%error, "a connection without credentials was dropped"),
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.file);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "the socket of the local API was left behind");
        }
    }
}

fn is_allowed(peer: u32, owner: u32) -> bool {
    peer == owner || peer == 0
}

fn refuse_unless_stale(data: &Path, path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_other) => return Err(BindError::NotASocket { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    match blocking::UnixStream::connect(path) {
        Ok(_answered) => Err(BindError::AlreadyServed { data: data.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[test]
    fn only_the_owner_and_root_are_let_in() {
        assert!(is_allowed(1000, 1000));
        assert!(is_allowed(0, 1000));
        assert!(!is_allowed(1001, 1000));
        assert!(!is_allowed(1000, 0));
    }
}
