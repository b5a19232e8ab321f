//! The private world of one lab: user, mount, network and process namespaces that end with it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process::Process;

/// How long building the namespaces may take; a loaded machine needs well under a second.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Where files that are shared by all machines of a sandbox live, as seen inside.
pub const SHARED_DIR: &str = "/run/lab";

/// The search path inside: network tools live in `sbin`, which an ordinary user's path may lack.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the first process of the sandbox does.
///
/// Its `/run` is a private memory file system, so that daemons find a writable place and nothing survives. Only the
/// user 0 exists in the user namespace; every account name is made to resolve to it, or daemons that switch to a user
/// of their own (avahi-daemon, dnsmasq) would fail. At the end it becomes `cat`, which waits for the end of its input:
/// that comes when the owner drops the sandbox and also when the owner is killed, and with process 1 all others end.
const INIT: &str = r#"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lab /run/lock
sed -E 's/^([^:]*:[^:]*):[^:]*:[^:]*:/\1:0:0:/' /etc/passwd > /run/lab/passwd
sed -E 's/^([^:]*:[^:]*):[^:]*:/\1:0:/' /etc/group > /run/lab/group
mount --bind /run/lab/passwd /etc/passwd
mount --bind /run/lab/group /etc/group
ip link set lo up
echo ready
exec cat
"#;

/// A set of namespaces with everything in it; dropping it kills every process inside.
///
/// The calling process stays outside and may have any number of threads and of sandboxes. It works for root and for an
/// ordinary user where the kernel allows user namespaces.
#[derive(Debug)]
pub struct Sandbox {
    _keeper: Process,
    /// The first process inside, numbered as seen from outside.
    init_pid: i32,
}

impl Sandbox {
    /// Makes the namespaces.
    ///
    /// # Errors
    /// When a needed program is missing or the kernel refuses user namespaces.
    pub fn new() -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args([
            "--user",
            "--map-root-user",
            "--mount",
            "--net",
            "--pid",
            "--uts",
            "--fork",
            "--kill-child",
        ]);
        command.args(["--mount-proc", "--", "sh", "-ec", INIT]).env("PATH", PATH);
        let mut keeper = Process::spawn("the sandbox", command, true)?;
        keeper
            .wait_for_line("its namespaces were ready", START_TIMEOUT, |line| (line == "ready").then_some(()))
            .context(
                "cannot make user namespaces; check that util-linux and iproute2 are installed, that \
                 /proc/sys/user/max_user_namespaces is not 0, and that neither \
                 kernel.unprivileged_userns_clone nor kernel.apparmor_restrict_unprivileged_userns forbids them",
            )?;
        let init_pid = keeper.program_pid()?;
        Ok(Self { _keeper: keeper, init_pid })
    }

    /// Returns where a file below [`SHARED_DIR`] is found from outside the sandbox.
    ///
    /// # Errors
    /// When `inside` is not below that directory.
    pub fn outside(&self, inside: impl AsRef<Path>) -> Result<PathBuf> {
        let inside = inside.as_ref();
        if !inside.starts_with(SHARED_DIR) {
            bail!("{} is not below {SHARED_DIR}", inside.display());
        }
        let relative = inside.strip_prefix("/").unwrap_or(inside);
        Ok(Path::new("/proc").join(self.init_pid.to_string()).join("root").join(relative))
    }

    /// Returns a command that will run in all namespaces of the process `target`, given as seen from outside.
    pub(crate) fn enter(target: i32) -> Command {
        let mut command = Command::new("nsenter");
        // An ordinary user may not change its groups in the user namespace, and needs not: it is user 0 there already.
        command.args(["--preserve-credentials", "--target", &target.to_string()]);
        command.args(["--user", "--mount", "--net", "--pid", "--uts", "--"]);
        // Whatever a tool keeps in the home directory must end with the lab.
        command.env("PATH", PATH).env("HOME", SHARED_DIR).env_remove("XDG_RUNTIME_DIR");
        command
    }

    pub(crate) fn init_pid(&self) -> i32 {
        self.init_pid
    }
}
