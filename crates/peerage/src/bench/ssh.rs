//! OpenSSH, as another tunnel and as what copies a file: a server of the bench's own, with keys that end with it.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::{Result, ensure};

use super::other::{Other, find};

/// Where Debian and others keep the server of OpenSSH, which is in nobody's search path.
const SSHD: &str = "/usr/sbin/sshd";

/// A folder that Debian's server wants to be there when root starts it; its service makes it.
const SSHD_FOLDER: &str = "/run/sshd";

/// Starts a server at an address that lets the user in who runs the bench.
pub(super) fn serve(other: &mut Other, at: SocketAddr) -> Result<()> {
    let keygen = find("ssh-keygen", None)?;
    ensure!(Path::new(SSHD).is_file(), "sshd is not installed");
    // Whoever is not root cannot make it and does not need it.
    let _ = fs::create_dir_all(SSHD_FOLDER);
    let folder = other.folder().to_owned();
    for key in ["host", "user"] {
        let made = Command::new(&keygen)
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(folder.join(key))
            .status()?;
        ensure!(made.success(), "ssh-keygen makes no key");
    }
    fs::copy(folder.join("user.pub"), folder.join("authorized"))?;
    let folder = folder.display();
    let settings = format!(
        "ListenAddress {at}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\nStrictModes no\n\
         UsePAM no\nPidFile none\nPasswordAuthentication no\nMaxStartups 1000\nSubsystem sftp internal-sftp\n"
    );
    let settings = other.write("sshd_config", &settings)?;
    other.run("server", Command::new(SSHD).args(["-D", "-e", "-f"]).arg(settings))?;
    other.wait_until(|| Ok(std::net::TcpStream::connect(at).map(drop)?))
}

/// Adds what a client needs to be let in and to ask nobody anything.
pub(super) fn as_user<'c>(command: &'c mut Command, server: &Other) -> &'c mut Command {
    let known = format!("UserKnownHostsFile={}", server.folder().join("known").display());
    command.arg("-i").arg(server.folder().join("user"));
    command.args(["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes", "-o", &known])
}
