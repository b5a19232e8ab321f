//! A real IPP printer: `ippeveprinter` from Debian's `cups-ipp-utils`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::Process;
use crate::topology::{Host, Lab};

/// How long the printer may take to listen; it makes a key for TLS first.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The port of IPP.
pub const PORT: u16 = 631;

/// Starts D-Bus, avahi and the printer, which refuses to run when it cannot announce itself by multicast DNS.
///
/// The bus admits everybody, because only one user exists; avahi may not give up its rights for the same reason.
const SCRIPT: &str = r#"
spool=$1
mkdir -p /run/dbus /run/avahi-daemon "$spool/jobs" "$spool/keys"
cat > /run/dbus/bus.xml <<END
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
<allow own="*"/><allow user="*"/></policy></busconfig>
END
cat > /run/avahi-daemon/avahi.conf <<END
[server]
host-name=$(hostname)
use-ipv4=yes
use-ipv6=no
allow-interfaces=eth0
[wide-area]
enable-wide-area=no
[publish]
publish-workstation=no
publish-hinfo=no
END
until_works() { tries=0; until "$@" >/dev/null 2>&1; do tries=$((tries + 1)); [ $tries -lt 500 ]; sleep 0.02; done; }
dbus-daemon --config-file=/run/dbus/bus.xml --nofork --nopidfile &
until_works test -S /run/dbus/system_bus_socket
avahi-daemon --no-drop-root --no-chroot --no-rlimits --file /run/avahi-daemon/avahi.conf &
until_works avahi-daemon --check
until_works dbus-send --system --print-reply --dest=org.freedesktop.Avahi / org.freedesktop.Avahi.Server.GetState
# Without a command for its jobs it would pretend to print each for some ten seconds.
ippeveprinter -p 631 -c /bin/true -k -K "$spool/keys" -d "$spool/jobs" -f application/pdf,image/pwg-raster,text/plain \
  "Lab Printer" &
until_works ipptool "ipp://127.0.0.1:631/ipp/print" get-printer-attributes.test
echo ready
wait $!
"#;

/// A printer that keeps the file of every job; it is switched off when this value is dropped.
#[derive(Debug)]
pub struct Printer {
    process: Process,
    jobs: PathBuf,
}

impl Printer {
    /// Switches the printer on at this host, where it listens at port 631 on all addresses, present and future.
    ///
    /// # Errors
    /// When it does not start, with what its programs said.
    pub fn start(lab: &Lab, host: &Host) -> Result<Self> {
        let (inside, outside) = lab.directory(&format!("printer-{}", host.name()))?;
        let mut process = host.command("sh").args(["-ec", SCRIPT, "sh"]).arg(&inside).spawn()?;
        process
            .wait_for_line("the printer answered", START_TIMEOUT, |line| (line == "ready").then_some(()))?;
        Ok(Self { process, jobs: outside.join("jobs") })
    }

    /// Returns whether it is still on.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Returns the files of all jobs, in the order in which they came.
    ///
    /// # Errors
    /// When the directory or a file cannot be read.
    pub fn jobs(&self) -> Result<Vec<Vec<u8>>> {
        let mut numbered = Vec::new();
        for entry in fs::read_dir(&self.jobs).context("cannot read the printer's jobs")? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "prn") {
                continue; // what the command for the job printed: nothing
            }
            // A job's file is called "<number>-<title>.<format>".
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let number = name.split('-').next().and_then(|number| number.parse::<u32>().ok());
            numbered.push((number.with_context(|| format!("unexpected file {name}"))?, path));
        }
        numbered.sort();
        numbered.into_iter().map(|(_, path)| Ok(fs::read(path)?)).collect()
    }

    /// Waits until no job is being printed; until then it would turn the next one away as busy.
    ///
    /// # Errors
    /// When it stays busy, or does not answer on its own host.
    pub fn wait_until_idle(&self, host: &Host) -> Result<()> {
        host.wait_until(
            "ipptool -tv ipp://127.0.0.1:631/ipp/print get-printer-attributes.test | \
             grep -q 'printer-state (enum) = idle'",
        )
        .context("the printer stays busy")
    }

    /// Switches it off.
    ///
    /// # Errors
    /// When it had ended by itself, with what it said.
    pub fn stop(mut self) -> Result<()> {
        ensure!(self.process.is_running(), "the printer had ended:\n{}", self.process.stderr());
        self.process.kill()?;
        Ok(())
    }
}

/// Returns a document of this many bytes: the head of a PDF file, which printers tell by it, and then bytes that
/// depend on `seed` and contain every value, so that a change, a gap or a repetition shows.
#[must_use]
pub fn document(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let noise = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    b"%PDF-1.4\n".iter().copied().chain(noise.flatten()).take(bytes).collect()
}

/// Prints a file from a host through `uri`, with CUPS' own client, and returns what that said.
///
/// The client tells the format by the ending of the file's name, such as `.pdf` or `.txt`.
///
/// # Errors
/// When the client reports that the job, or a part of the conversation, failed.
pub fn print(host: &Host, uri: &str, file: &std::path::Path, timeout: Duration) -> Result<String> {
    host.command("ipptool").args(["-tv", "-f"]).arg(file).args([uri, "print-job.test"]).output(timeout)
}
