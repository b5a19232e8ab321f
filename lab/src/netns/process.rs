//! A child process whose output is captured while it runs.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// Bytes kept of each stream of a process; what comes later is read and forgotten.
///
/// A daemon that logs without end would otherwise fill the memory of the test; a smaller value would cut the log that
/// explains a failure.
const MAX_CAPTURED_BYTES: usize = 4 << 20;

/// How often an exit is looked for, since the standard library has no wait with a time limit.
///
/// Shorter burns processor time of the very programs under test, longer delays every command by half of it.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How long a wrapper has to start its child.
const CHILD_TIMEOUT: Duration = Duration::from_secs(5);

/// What a command printed and how it ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The exit status.
    pub status: ExitStatus,
    /// Standard output, with invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, with invalid UTF-8 replaced.
    pub stderr: String,
}

/// What a program needs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Memory that it has now, in bytes.
    pub resident_bytes: u64,
    /// The most memory that it ever had, in bytes.
    pub peak_bytes: u64,
    /// Open files, sockets and pipes.
    pub descriptors: usize,
}

impl Usage {
    /// Reads what the kernel tells of a process.
    fn of(pid: i32) -> Result<Self> {
        let status = format!("/proc/{pid}/status");
        let text = std::fs::read_to_string(&status).with_context(|| format!("cannot read {status}"))?;
        let size = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            Ok::<_, anyhow::Error>(kibibytes.with_context(|| format!("no {name} in {status}"))? << 10)
        };
        let descriptors = format!("/proc/{pid}/fd");
        let descriptors =
            std::fs::read_dir(&descriptors).with_context(|| format!("cannot read {descriptors}"))?.count();
        Ok(Self { resident_bytes: size("VmRSS:")?, peak_bytes: size("VmHWM:")?, descriptors })
    }
}

/// Which of the two captured streams of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, Default)]
struct Captured {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    open_streams: u8,
}

impl Captured {
    fn stream(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

#[derive(Debug, Default)]
struct Output {
    captured: Mutex<Captured>,
    changed: Condvar,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Captured> {
        self.captured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_from(self: &Arc<Self>, stream: Stream, mut source: impl Read + Send + 'static) {
        self.lock().open_streams += 1;
        let output = Arc::clone(self);
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(length @ 1..) = source.read(&mut buffer) {
                let mut captured = output.lock();
                let kept = captured.stream(stream);
                let room = MAX_CAPTURED_BYTES.saturating_sub(kept.len());
                kept.extend(buffer.iter().take(length.min(room)));
                output.changed.notify_all();
            }
            output.lock().open_streams -= 1;
            output.changed.notify_all();
        });
    }
}

/// A running child process in its own process group; it is killed when this value is dropped.
///
/// Programs inside the sandbox are started through `nsenter`, which waits outside for the real program. A signal must
/// therefore go to the child of the child: `wrapped` says whether that is so.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Output>,
    wrapped: bool,
}

impl Process {
    /// Starts `command` with all three standard streams as pipes.
    pub(crate) fn spawn(name: impl Into<String>, mut command: Command, wrapped: bool) -> Result<Self> {
        let name = name.into();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal reaches the owner of the lab alone, which then ends its processes in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {:?} for {name}", command.get_program()))?;
        let output = Arc::new(Output::default());
        if let Some(stdout) = child.stdout.take() {
            output.read_from(Stream::Stdout, stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            output.read_from(Stream::Stderr, stderr);
        }
        let stdin = child.stdin.take();
        Ok(Self { name, child, stdin, output, wrapped })
    }

    /// Returns the name given to the process for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns everything the process wrote to standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().stdout).into_owned()
    }

    /// Returns everything the process wrote to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().stderr).into_owned()
    }

    /// Writes `bytes` to standard input and closes it.
    ///
    /// A process that ended without reading all is no error here: its exit status tells more.
    pub fn feed(&mut self, bytes: &[u8]) {
        if let Some(mut stdin) = self.stdin.take() {
            let _ = stdin.write_all(bytes);
        }
    }

    /// Writes `bytes` to standard input and leaves it open.
    ///
    /// # Errors
    /// When the process reads no more.
    pub fn tell(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().with_context(|| format!("{} has no input any more", self.name))?;
        stdin.write_all(bytes).with_context(|| format!("{} does not read its input", self.name))
    }

    /// Waits until `find` returns something for a complete line of standard output, from its beginning.
    ///
    /// # Errors
    /// When the process ends or `timeout` passes first; the message carries what the process wrote.
    pub fn wait_for_line<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        find: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        self.wait_for(Stream::Stdout, what, timeout, find)
    }

    /// Waits as [`Process::wait_for_line`] does, on standard error.
    ///
    /// # Errors
    /// When the process ends or `timeout` passes first; the message carries what the process wrote.
    pub fn wait_for_error_line<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        find: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        self.wait_for(Stream::Stderr, what, timeout, find)
    }

    fn wait_for<T>(
        &mut self,
        stream: Stream,
        what: &str,
        timeout: Duration,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let output = Arc::clone(&self.output);
        let mut captured = output.lock();
        loop {
            let ended = captured.open_streams == 0;
            let text = String::from_utf8_lossy(captured.stream(stream)).into_owned();
            let complete = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or(""));
            if let Some(found) = complete.lines().find_map(&mut find) {
                return Ok(found);
            }
            if ended || Instant::now() >= deadline {
                drop(captured);
                let how = if ended { "ended" } else { "was too slow" };
                bail!("{} {how} before {what}{}", self.name, self.transcript());
            }
            captured = output
                .changed
                .wait_timeout(captured, POLL_INTERVAL * 10)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(captured, _)| captured);
        }
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    /// When it still runs after `timeout`; it is left running.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} still runs after {timeout:?}{}", self.name, self.transcript());
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits for the process to end, and for its output to be read to the end.
    ///
    /// # Errors
    /// When it still runs after `timeout`; it is killed.
    pub fn finish(mut self, timeout: Duration) -> Result<Finished> {
        let status = self.wait(timeout)?;
        // A grandchild may hold the pipes open for ever, so the wait for the last bytes is short.
        let deadline = Instant::now() + POLL_INTERVAL * 100;
        let mut captured = self.output.lock();
        while captured.open_streams > 0 && Instant::now() < deadline {
            captured = self
                .output
                .changed
                .wait_timeout(captured, POLL_INTERVAL)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(captured, _)| captured);
        }
        Ok(Finished {
            status,
            stdout: String::from_utf8_lossy(&captured.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&captured.stderr).into_owned(),
        })
    }

    /// Returns whether the process has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal to the program itself; a program that already ended is left alone.
    ///
    /// # Errors
    /// When the program cannot be found or the kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        let pid = self.program_pid()?;
        self.send(pid, signal)?;
        if !self.wrapped {
            return Ok(());
        }
        // The wrapper stops itself when it sees its child stopped, and would never see it end.
        let wrapper = i32::try_from(self.child.id()).context("process id out of range")?;
        if signal == Signal::SIGSTOP {
            self.wait_for_stop(wrapper)?;
        } else if signal == Signal::SIGCONT {
            self.send(wrapper, signal)?;
        }
        Ok(())
    }

    fn send(&self, pid: i32, signal: Signal) -> Result<()> {
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => bail!("cannot send {signal} to {}: {error}", self.name),
        }
    }

    /// Waits until a process is stopped, or has ended.
    fn wait_for_stop(&mut self, pid: i32) -> Result<()> {
        let deadline = Instant::now() + CHILD_TIMEOUT;
        while self.is_running() && !is_stopped(pid)? {
            if Instant::now() >= deadline {
                bail!("{} does not stop{}", self.name, self.transcript());
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Returns what the program needs of the machine.
    ///
    /// # Errors
    /// When it has ended.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.program_pid()?)
    }

    /// Asks the program to end with SIGTERM and waits for it.
    ///
    /// # Errors
    /// When it still runs after `timeout`.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(timeout)
    }

    /// Kills the program at once, as `kill -9` would.
    ///
    /// # Errors
    /// When the kernel cannot tell how it ended.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if self.is_running() {
            // The group holds the wrapper and the program; its leader is not yet waited for, so the number is ours.
            if let Ok(group) = i32::try_from(self.child.id()) {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            let _ = self.child.kill();
        }
        Ok(self.child.wait()?)
    }

    /// Returns the process id, as seen by this process, of the program behind the wrapper.
    pub(crate) fn program_pid(&self) -> Result<i32> {
        let own = i32::try_from(self.child.id()).context("process id out of range")?;
        if !self.wrapped {
            return Ok(own);
        }
        let children = format!("/proc/{own}/task/{own}/children");
        let deadline = Instant::now() + CHILD_TIMEOUT;
        loop {
            let list =
                std::fs::read_to_string(&children).with_context(|| format!("cannot read {children}"))?;
            if let Some(pid) = list.split_whitespace().next() {
                return pid.parse().with_context(|| format!("unexpected content in {children}: {list}"));
            }
            if Instant::now() >= deadline {
                bail!("{} has no program behind its wrapper{}", self.name, self.transcript());
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Returns what the process wrote, laid out for the end of an error message.
    fn transcript(&self) -> String {
        let (stdout, stderr) = (self.stdout(), self.stderr());
        format!("\n--- stdout\n{}\n--- stderr\n{}", stdout.trim_end(), stderr.trim_end())
    }
}

/// Returns whether a signal has stopped a process, as the kernel tells after its name, which is in parentheses.
fn is_stopped(pid: i32) -> Result<bool> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T')))
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

impl Finished {
    /// Returns the output when the command succeeded.
    ///
    /// # Errors
    /// When it did not; the message names `what` and carries the output.
    pub fn success(self, what: &str) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!(
            "{what} failed with {}\n--- stdout\n{}\n--- stderr\n{}",
            self.status,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_what_a_process_needs() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = Usage::of(own).unwrap();
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/proc/self/status").unwrap()).collect();
        let after = Usage::of(own).unwrap();
        drop(files);
        // Other tests of this process may close a few files meanwhile.
        assert!(after.descriptors >= before.descriptors + 25, "{before:?} {after:?}");
        assert!(after.peak_bytes >= after.resident_bytes && after.resident_bytes > 1 << 20, "{after:?}");
    }
}
