//! Runs simulated networks: one seed, many, or a large idle one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use peerage_sim::chart::Chart;
use peerage_sim::plan::{Plan, Size};
use peerage_sim::report::{aside, line};
use peerage_sim::run::run;
use peerage_sim::shrink::shrink;
use peerage_sim::swarm::{Tally, swarm};
use peerage_sim::{experiments, idle, invariants::Violation, sessions};

/// Simulates whole Peerage networks in virtual time.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one seed.
    Run {
        /// Which.
        #[arg(long)]
        seed: u64,
        /// Draws a world of this size, in place of the one that the seed says.
        #[arg(long, value_enum)]
        size: Option<Sizes>,
        /// Uses the cryptography that ships.
        #[arg(long)]
        real_crypto: bool,
        /// Tells what happens.
        #[arg(long)]
        tell: bool,
        /// Makes a failure short, and prints the operations that are left.
        #[arg(long)]
        shrink: bool,
    },
    /// Runs one seed after the other.
    Swarm {
        /// For how long.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// The first seed; drawn from the clock if it is not given.
        #[arg(long)]
        first: Option<u64>,
        /// Uses the cryptography that ships.
        #[arg(long)]
        real_crypto: bool,
        /// Goes on after a failure.
        #[arg(long)]
        all: bool,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Runs sessions by themselves: two or three computers, and connections that are cut at any byte.
    Sessions {
        /// How many sessions.
        #[arg(long, default_value_t = 10_000)]
        count: u64,
        /// The first seed; drawn from the clock if it is not given.
        #[arg(long)]
        first: Option<u64>,
        /// Goes on after a failure.
        #[arg(long)]
        all: bool,
        /// Makes a failure short, and prints the steps that are left.
        #[arg(long)]
        shrink: bool,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Tries what is claimed of such networks; docs/EXPERIMENTS.md reads the results.
    Experiment {
        /// Which.
        #[arg(value_enum)]
        name: experiments::Experiment,
        /// How large.
        #[arg(long, value_enum, default_value = "full")]
        scale: experiments::Scale,
        /// All chance comes from it.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Leaves out of a series of networks those that have fewer computers.
        #[arg(long, default_value_t = 0)]
        least: usize,
        /// Leaves out of a series of networks those that have more computers; 10,000 of them take some minutes.
        #[arg(long, default_value_t = 10_000)]
        most: usize,
        /// Where to write the plots, as SVG and as PNG; none are written if it is not given.
        #[arg(long)]
        plots: Option<PathBuf>,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Draws what several runs of an experiment have found, each the JSON object that it printed.
    Plot {
        /// The files; where two have found something about the same, the later one counts.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Where to write the plots, as SVG and as PNG.
        #[arg(long)]
        plots: PathBuf,
    },
    /// Runs a large network in which next to nothing happens.
    Idle {
        /// How many computers.
        #[arg(long, default_value_t = 10_000)]
        nodes: usize,
        /// For how many hours of its own time.
        #[arg(long, default_value_t = 24)]
        hours: u64,
    },
}

/// The sizes of worlds, as they are typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sizes {
    /// Some computers for some minutes.
    Small,
    /// Up to 150 computers.
    Large,
    /// Hundreds to thousands of computers for a few minutes.
    Huge,
    /// A few computers for 45 days.
    Long,
}

impl Sizes {
    const fn size(self) -> Size {
        match self {
            Self::Small => Size::Small,
            Self::Large => Size::Large,
            Self::Huge => Size::Huge,
            Self::Long => Size::Long,
        }
    }
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run { seed, size, real_crypto, tell, shrink } => {
            let plan = size.map_or_else(|| Plan::draw(seed), |size| Plan::sized(seed, size.size()));
            run_one(plan, real_crypto, tell, shrink)
        }
        Command::Swarm { seconds, first, real_crypto, all, json } => {
            let first = first.unwrap_or_else(clock_seed);
            run_swarm(Duration::from_secs(seconds), (first, real_crypto), all, json)
        }
        Command::Sessions { count, first, all, shrink, json } => {
            Ok(run_sessions(count, first.unwrap_or_else(clock_seed), (all, shrink, json)))
        }
        Command::Experiment { name, scale, seed, least, most, plots, json } => {
            let stopwatch = Some(stopwatch as fn() -> Duration);
            let terms = experiments::Terms { scale, seed, least, most, stopwatch, told: Some(aside) };
            run_experiment(name, terms, plots.as_deref(), json)
        }
        Command::Plot { files, plots } => Ok(plot_files(&files, &plots)),
        Command::Idle { nodes, hours } => run_idle(nodes, hours),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            line(&format!("the setup is impossible: {error}"));
            ExitCode::FAILURE
        }
    }
}

type Done = Result<bool, peerage_wire::record::DraftError>;

fn clock_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_secs().wrapping_mul(1_000_000)
}

/// The commit that was built, as far as the environment tells.
fn commit() -> String {
    let output = std::process::Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let text = output.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    if text.trim().is_empty() { "unknown".to_owned() } else { text.trim().to_owned() }
}

fn describe(seed: u64, violation: &Violation) -> String {
    let Violation { invariant, what, at } = violation;
    let secs = Duration::from_micros(at.as_micros()).as_secs_f64();
    format!("seed {seed}, commit {}, after {secs:.3} s: {invariant}: {what}", commit())
}

fn run_one(mut plan: Plan, real_crypto: bool, tell: bool, shorten: bool) -> Done {
    let seed = plan.setup.seed;
    plan.setup.real_crypto = real_crypto;
    let told = |plan: &Plan| {
        let mut plan = plan.clone();
        plan.setup.is_told = tell;
        run(&plan)
    };
    let report = if shorten { run(&plan)? } else { told(&plan)? };
    line(&format!(
        "trace {:016x}, {} events, {} computers, {} s, {} of {} tunnels complete, {} probes",
        report.trace,
        report.events,
        report.nodes,
        report.virtual_time.as_secs(),
        report.complete,
        report.tunnels,
        report.probes
    ));
    let Some(violation) = report.violation else { return Ok(true) };
    line(&describe(seed, &violation));
    if shorten {
        let short = shrink(&plan, violation.invariant);
        told(&short)?;
        line(&format!("{:#?}", short.setup));
        for (at, operation) in &short.operations {
            line(&format!("({at:?}, Operation::{operation:?}),"));
        }
        line(&format!("calm at {:?}", short.calm_at));
        if let Some(violation) = run(&short)?.violation {
            line(&describe(seed, &violation));
        }
    }
    Ok(false)
}

fn run_swarm(span: Duration, (first, real_crypto): (u64, bool), all: bool, json: bool) -> Done {
    let begun = Instant::now();
    let mut told = 0;
    let tally = swarm(first, real_crypto, |tally: &Tally| {
        for (seed, violation) in tally.violations.iter().skip(told) {
            if !json {
                line(&describe(*seed, violation));
                line(&format!("replay it with: peerage-sim run --seed {seed} --shrink"));
            }
        }
        told = tally.violations.len();
        begun.elapsed() < span && (all || tally.violations.is_empty())
    })?;
    let hours = tally.virtual_time.as_secs_f64() / 3_600.0;
    if json {
        let failures: Vec<_> =
            tally.violations.iter().map(|(seed, violation)| describe(*seed, violation)).collect();
        let object = serde_json::json!({
            "runs": tally.runs,
            "violations": tally.violations.len(),
            "nodes_max": tally.nodes_max,
            "virtual_hours": hours,
            "first_seed": first,
            "tunnels_complete": tally.complete,
            "events": tally.events,
            "failures": failures,
        });
        line(&object.to_string());
    } else {
        line(&format!(
            "{} runs from seed {first}, {hours:.1} virtual hours, {} events, {} tunnels complete, {} violations",
            tally.runs,
            tally.events,
            tally.complete,
            tally.violations.len()
        ));
    }
    Ok(tally.violations.is_empty())
}

fn run_sessions(count: u64, first: u64, (all, shorten, json): (bool, bool, bool)) -> bool {
    let begun = Instant::now();
    let tally = sessions::swarm(first, count, all);
    let seconds = begun.elapsed().as_secs_f64();
    if json {
        let failures: Vec<_> =
            tally.violations.iter().map(|(seed, violation)| describe(*seed, violation)).collect();
        let object = serde_json::json!({
            "lives": tally.lives,
            "sessions": tally.sessions,
            "complete": tally.complete,
            "bytes": tally.bytes,
            "cuts": tally.cuts,
            "moves": tally.moves,
            "lies": tally.lies,
            "violations": tally.violations.len(),
            "first_seed": first,
            "seconds": seconds,
            "failures": failures,
        });
        line(&object.to_string());
        return tally.violations.is_empty();
    }
    for (seed, violation) in &tally.violations {
        line(&describe(*seed, violation));
        if shorten {
            let short = sessions::shrink(&sessions::Life::draw(*seed), violation.invariant);
            line(&format!("{short:#?}"));
        } else {
            line(&format!("replay it with: peerage-sim sessions --first {seed} --count 1 --shrink"));
        }
    }
    line(&format!(
        "{} sessions in {} lives from seed {first}, {} complete, {} bytes, {} cuts, {} moves, {} lies, {} violations, {seconds:.1} s",
        tally.sessions,
        tally.lives,
        tally.complete,
        tally.bytes,
        tally.cuts,
        tally.moves,
        tally.lies,
        tally.violations.len()
    ));
    tally.violations.is_empty()
}

fn run_idle(nodes: usize, hours: u64) -> Done {
    let begun = Instant::now();
    let report = idle::run(nodes, Duration::from_secs(hours * 3_600))?;
    let each = u64::try_from(nodes.max(1)).unwrap_or(u64::MAX);
    let memory =
        peak_memory_kib().map_or_else(String::new, |all| format!(", {} KiB a computer", all.div_ceil(each)));
    line(&format!(
        "{nodes} computers, {hours} h: {} events, {} datagrams, {:.1} s{memory}, trace {:016x}",
        report.events,
        report.datagrams,
        begun.elapsed().as_secs_f64(),
        report.trace
    ));
    Ok(true)
}

/// Returns the most memory that this process has used so far, where the system tells.
fn peak_memory_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    peak.split_whitespace().next()?.parse().ok()
}

/// Reads a clock of the computer that simulates: for how long operators keep it busy.
fn stopwatch() -> Duration {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed()
}

fn run_experiment(
    name: experiments::Experiment,
    terms: experiments::Terms,
    plots: Option<&Path>,
    json: bool,
) -> Done {
    let outcome = experiments::run(name, terms)?;
    if json {
        line(&outcome.json(name, terms.scale).to_string());
    } else {
        outcome.tables.iter().for_each(|table| line(&table.text()));
        outcome.findings.iter().for_each(|(name, value)| line(&format!("{name} = {value:.6}")));
    }
    Ok(plots.is_none_or(|directory| write_plots(&outcome.charts, directory)))
}

fn write_plots(charts: &[Chart], directory: &Path) -> bool {
    for chart in charts {
        let path = directory.join(&chart.file);
        let written = std::fs::write(path.with_extension("svg"), chart.svg())
            .and_then(|()| std::fs::write(path.with_extension("png"), chart.png()));
        if let Err(error) = written {
            line(&format!("the plot {} cannot be written: {error}", path.display()));
            return false;
        }
    }
    true
}

/// Draws what several runs have found together.
fn plot_files(files: &[PathBuf], directory: &Path) -> bool {
    let mut all: Vec<Chart> = Vec::new();
    for file in files {
        let charts = match read_charts(file) {
            Ok(charts) => charts,
            Err(error) => {
                line(&format!("{} is not what an experiment printed: {error}", file.display()));
                return false;
            }
        };
        for chart in charts {
            match all.iter_mut().find(|known| known.file == chart.file) {
                Some(known) => known.add(chart),
                None => all.push(chart),
            }
        }
    }
    write_plots(&all, directory)
}

fn read_charts(file: &Path) -> std::io::Result<Vec<Chart>> {
    let object: serde_json::Value = serde_json::from_slice(&std::fs::read(file)?)?;
    Ok(serde_json::from_value(object.get("charts").cloned().unwrap_or_default())?)
}
