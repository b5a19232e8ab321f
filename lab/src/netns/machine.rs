//! One simulated computer: network, mount and host name namespaces.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use super::process::{Finished, Process};
use super::sandbox::Sandbox;

/// How long a set-up script may take; a bridge port alone can need a second to come up.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(20);

/// What the process that holds a machine's namespaces does.
///
/// `/sys` is mounted anew, because it shows the interfaces of the namespace that mounted it. `/run` becomes private to
/// the machine, so that each can have its own D-Bus, except for the directory that all share. Duplicate address
/// detection would keep IPv6 addresses unusable for a second; it is off before the first interface exists. Packets
/// that a bridge passes on must not run through the filter, or the router would translate traffic inside its LAN.
const HOLD: &str = r#"
hostname "$1"
mount -t sysfs sysfs /sys
mkdir -p "/run/machine-$1"
mount -t tmpfs -o mode=755 tmpfs "/run/machine-$1"
mkdir "/run/machine-$1/lab" "/run/machine-$1/lock"
mount --bind /run/lab "/run/machine-$1/lab"
mount --rbind "/run/machine-$1" /run
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
echo 0 > /proc/sys/net/ipv6/conf/default/router_solicitations
for file in /proc/sys/net/bridge/bridge-nf-call-ip*tables; do
  if [ -e "$file" ]; then echo 0 > "$file"; fi
done
ip link set lo up
echo "ready $$"
exec cat
"#;

/// A simulated computer; its namespaces end when this value is dropped and its last process has ended.
#[derive(Debug)]
pub struct Machine {
    name: String,
    holder_pid: i32,
    inner_pid: i32,
    _holder: Process,
    sandbox: Arc<Sandbox>,
}

impl Machine {
    /// Makes a computer without any interface but loopback.
    ///
    /// `name` becomes its host name: letters, digits and hyphens, unique within the sandbox.
    ///
    /// # Errors
    /// When the namespaces cannot be made.
    pub fn new(sandbox: &Arc<Sandbox>, name: &str) -> Result<Self> {
        let mut command = Sandbox::enter(sandbox.init_pid());
        command.args(["unshare", "--net", "--mount", "--uts", "--", "sh", "-ec", HOLD, "sh", name]);
        let mut holder = Process::spawn(format!("machine {name}"), command, true)?;
        let inner_pid = holder.wait_for_line("its namespaces were ready", SCRIPT_TIMEOUT, |line| {
            line.strip_prefix("ready ").and_then(|pid| pid.parse().ok())
        })?;
        let holder_pid = holder.program_pid()?;
        Ok(Self {
            name: name.to_owned(),
            holder_pid,
            inner_pid,
            _holder: holder,
            sandbox: Arc::clone(sandbox),
        })
    }

    /// Returns the host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the sandbox this computer is part of.
    #[must_use]
    pub fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }

    /// Returns a command that runs on this computer.
    pub fn command(&self, program: impl AsRef<OsStr>) -> MachineCommand {
        let mut command = Sandbox::enter(self.holder_pid);
        let name = format!("{} on {}", program.as_ref().to_string_lossy(), self.name);
        command.arg(program);
        MachineCommand { name, command }
    }

    /// Runs a shell script on this computer; the first command that fails ends it.
    ///
    /// # Errors
    /// When a command of the script fails, with its output.
    pub fn script(&self, script: &str) -> Result<String> {
        let mut process = self.command("sh").arg("-e").spawn()?;
        process.feed(script.as_bytes());
        let what = || format!("set-up script on {}:\n{script}", self.name);
        Ok(process.finish(SCRIPT_TIMEOUT).with_context(what)?.success(&what())?.stdout)
    }

    /// Loads an nftables ruleset on this computer, in addition to what is there.
    ///
    /// # Errors
    /// When `nft` rejects it.
    pub fn load_nft(&self, ruleset: &str) -> Result<()> {
        let mut process = self.command("nft").args(["-f", "-"]).spawn()?;
        process.feed(ruleset.as_bytes());
        process.finish(SCRIPT_TIMEOUT)?.success(&format!("nft on {} with\n{ruleset}", self.name))?;
        Ok(())
    }

    /// Lays a cable between two computers of one sandbox: a new interface on each, both up and without address.
    ///
    /// # Errors
    /// When a name is taken or longer than 15 bytes.
    pub fn connect(&self, interface: &str, peer: &Self, peer_interface: &str) -> Result<()> {
        // Names instead of process ids would need /run/netns, which other machines could not see.
        self.script(&format!(
            "ip link add {interface} type veth peer name {peer_interface} netns /proc/{}/ns/net\n\
             ip link set {interface} up\n",
            peer.inner_pid
        ))?;
        peer.script(&format!("ip link set {peer_interface} up\n"))?;
        self.wait_for_link(interface)?;
        peer.wait_for_link(peer_interface)
    }

    /// Waits until an interface lets packets through.
    ///
    /// One that is up drops all until the kernel has noticed the other end, which it does in the background.
    ///
    /// # Errors
    /// When it has not after ten seconds.
    pub fn wait_for_link(&self, interface: &str) -> Result<()> {
        self.wait_until(&format!("ip link show dev {interface} | grep -q 'qdisc noqueue'"))
    }

    /// Tries a shell command until it succeeds.
    ///
    /// # Errors
    /// When it still fails after ten seconds.
    pub fn wait_until(&self, condition: &str) -> Result<()> {
        self.script(&format!(
            "tries=0\nuntil {condition}; do\n  tries=$((tries + 1)); [ $tries -lt 500 ]; sleep 0.02\ndone\n"
        ))?;
        Ok(())
    }
}

/// A command for one [`Machine`], in the manner of [`std::process::Command`].
#[derive(Debug)]
pub struct MachineCommand {
    name: String,
    command: Command,
}

impl MachineCommand {
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Takes an environment variable away.
    #[must_use]
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(key);
        self
    }

    /// Starts the command with all standard streams as pipes.
    ///
    /// # Errors
    /// When `nsenter` cannot be started. A missing program shows as exit status 127.
    pub fn spawn(self) -> Result<Process> {
        Process::spawn(self.name, self.command, true)
    }

    /// Runs the command to its end with an empty standard input, whatever its exit status.
    ///
    /// # Errors
    /// When it still runs after `timeout`; it is killed then.
    pub fn run(self, timeout: Duration) -> Result<Finished> {
        let mut process = self.spawn()?;
        process.feed(&[]);
        process.finish(timeout)
    }

    /// Runs the command to its end and returns its standard output.
    ///
    /// # Errors
    /// When it fails or still runs after `timeout`.
    pub fn output(self, timeout: Duration) -> Result<String> {
        let name = self.name.clone();
        Ok(self.run(timeout)?.success(&name)?.stdout)
    }
}
