//! What the system tells: the load of the machine, the time and memory that processes took.

use std::{
    fmt, fs,
    fs::File,
    io::{self, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;

/// Clock ticks a second in `/proc/PID/stat`: 100 on all that Linux runs on (`getconf CLK_TCK`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Bytes of a page in `/proc/PID/statm`.
const PAGE_BYTES: u64 = 4_096;

/// How the machine was while something was measured: without it no figure means anything.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    pub(super) processors: usize,
    /// Averages of 1, 5 and 15 minutes; empty where the system does not tell.
    pub(super) load_averages: Vec<f64>,
    /// Whether the program was optimised.
    pub(super) build: &'static str,
}

impl Machine {
    pub(super) fn now() -> Self {
        let loads = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            load_averages: loads.split(' ').take(3).filter_map(|load| load.parse().ok()).collect(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loads: Vec<String> = self.load_averages.iter().map(|load| format!("{load:.1}")).collect();
        write!(f, "{} processors, load averages {}, {} build", self.processors, loads.join(" "), self.build)
    }
}

/// Returns how much processor time a process has used, in the kernel and outside, with all that it has started; zero where the system
/// does not tell.
pub(super) fn cpu(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    // Its own time, and that of those who have ended.
    let ticks: f64 = fields.split_whitespace().skip(11).take(4).filter_map(|n| n.parse::<f64>().ok()).sum();
    Duration::from_secs_f64(ticks / TICKS_PER_SECOND) + cpu_of(&children(process))
}

/// Returns who was started by a process and runs.
fn children(process: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Returns how much processor time the threads that a process has now have used: finer than [`cpu`], which counts in hundredths of a
/// second, and zero where the system does not tell.
pub(super) fn busy(process: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let told = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    // The first of three figures, in nanoseconds.
    told.filter_map(|stat| stat.split(' ').next()?.parse().ok()).map(Duration::from_nanos).sum()
}

/// Returns the [`cpu`] time of several processes together.
pub(super) fn cpu_of(processes: &[u32]) -> Duration {
    processes.iter().map(|process| cpu(*process)).sum()
}

/// Returns how much memory a process occupies, in bytes; 0 where the system does not tell.
pub(super) fn resident(process: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * PAGE_BYTES
}

/// Returns how often a second the disk takes so many more bytes of a file for good, one write after the other.
pub(super) fn synced_writes(path: &Path, bytes: usize, length: Duration) -> io::Result<f64> {
    let (mut file, data) = (File::create(path)?, vec![7; bytes]);
    let (mut count, began_at) = (0_u32, Instant::now());
    while count == 0 || began_at.elapsed() < length {
        file.write_all(&data)?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / began_at.elapsed().as_secs_f64())
}

/// Returns a time as a figure that another may be divided by, so never quite nothing.
pub(super) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e3).max(1e-6)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_a_machine_a_load() {
        let own = std::process::id();
        assert!(resident(own) > PAGE_BYTES);
        assert_eq!(cpu_of(&[]), Duration::ZERO);
        assert!(busy(own) > Duration::ZERO);
        // There is no such process.
        assert_eq!((resident(u32::MAX), cpu(u32::MAX), busy(u32::MAX)), (0, Duration::ZERO, Duration::ZERO));
        let machine = Machine::now();
        assert_eq!(machine.load_averages.len(), 3);
        assert!(machine.to_string().contains("processors"));
    }
}
