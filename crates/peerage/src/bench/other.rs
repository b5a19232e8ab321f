//! Programs of others that a bench starts: found, run with a log, and ended with the value.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// How long a program may take until it does what it is for.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is looked whether it does.
const READY_INTERVAL: Duration = Duration::from_millis(50);

/// What was started of another program, with its files. Its processes end with it.
pub(super) struct Other {
    /// A port that nobody has yet.
    pub(super) at: SocketAddr,
    running: Vec<Child>,
    directory: tempfile::TempDir,
}

impl Drop for Other {
    fn drop(&mut self) {
        for mut child in self.running.drain(..).rev() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Other {
    pub(super) fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("peerage-bench-").tempdir()?;
        Ok(Self { at: free_port()?, running: Vec::new(), directory })
    }

    /// Returns its processes.
    pub(super) fn processes(&self) -> Vec<u32> {
        self.running.iter().map(Child::id).collect()
    }

    /// Returns where its files are.
    pub(super) fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// Starts a program with this name for its log.
    pub(super) fn run(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let log = File::create(self.log(name))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Ctrl-C reaches the bench alone, which then ends what it has started.
        command.process_group(0).current_dir(self.folder());
        let what = command.get_program().to_owned();
        self.running.push(command.spawn().with_context(|| format!("cannot start {}", what.display()))?);
        Ok(())
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.folder().join(format!("{name}.log"))
    }

    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder().join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Tries something until it succeeds.
    ///
    /// # Errors
    /// If a program ends meanwhile, or it takes too long: with what the programs said last.
    pub(super) fn wait_until<T>(&mut self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let began_at = Instant::now();
        loop {
            let error = match attempt() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let ended = self.running.iter_mut().any(|child| matches!(child.try_wait(), Ok(Some(_))));
            if ended || began_at.elapsed() > READY_TIMEOUT {
                return Err(error.context(format!("it does not work: {}", self.last_words())));
            }
            thread::sleep(READY_INTERVAL);
        }
    }

    fn last_words(&self) -> String {
        let files = fs::read_dir(self.folder()).into_iter().flatten().flatten();
        let logs = files.filter(|file| file.path().extension().is_some_and(|kind| kind == "log"));
        let last =
            logs.filter_map(|log| Some(fs::read_to_string(log.path()).ok()?.lines().last()?.to_owned()));
        last.collect::<Vec<_>>().join("; ")
    }
}

/// Returns a port that nobody listens on now, for programs that cannot choose one and say which.
pub(super) fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Returns the program of this name, from these folders or the search path.
pub(super) fn find(name: &str, first: Option<&Path>) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = first.map(Path::to_owned).into_iter().chain(std::env::split_paths(&path));
    let mut found = folders.map(|folder| folder.join(name)).filter(|file| file.is_file());
    found.next().with_context(|| format!("{name} is not installed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_ends_is_reported_with_its_last_words() {
        let mut other = Other::new().unwrap();
        other.run("one", Command::new("/bin/sh").args(["-c", "echo no such option; exit 2"])).unwrap();
        let error = other.wait_until(|| Err::<(), _>(anyhow::anyhow!("not yet"))).unwrap_err();
        assert!(format!("{error:#}").contains("no such option"), "{error:#}");
    }

    #[test]
    fn what_is_not_installed_is_named() {
        let error = find("peerage-no-such-program", None).unwrap_err().to_string();
        assert_eq!(error, "peerage-no-such-program is not installed");
    }
}
