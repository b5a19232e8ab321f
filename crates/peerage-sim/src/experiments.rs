//! What is claimed of organised peer-to-peer networks, tried with the real machines (Ynddal 2016, chapter 2, sections 3.9.4 and 4.3,
//! appendix A and chapter 7).
//!
//! An experiment builds a [`Town`](town::Town), lets time pass, and counts. It gives tables for people, a few named numbers that a
//! test can judge, and charts. `docs/EXPERIMENTS.md` reads them.

mod churn;
mod figure2;
pub mod fit;
mod malicious;
mod morning;
mod operator_off;
pub mod quiet;
mod snowball;
pub mod town;

use std::time::Duration;

use clap::ValueEnum;
use peerage_wire::record::DraftError;
use peerage_wire::time::Instant;

use crate::chart::{Chart, number};
use crate::world::World;

/// Which experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Experiment {
    /// The load of the operator against the number of users, with and without super-nodes.
    Figure2,
    /// How long it takes to the truth while super-nodes lie.
    Malicious,
    /// Whether super-nodes that die pull the others down.
    Snowball,
    /// What users notice while computers come and go.
    Churn,
    /// What a network bears when everybody arrives within an hour.
    Morning,
    /// How long the network goes on without operators.
    OperatorOff,
    /// How much an idle LAN sends.
    Quiet,
}

impl Experiment {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Figure2,
        Self::Malicious,
        Self::Snowball,
        Self::Churn,
        Self::Morning,
        Self::OperatorOff,
        Self::Quiet,
    ];
}

/// How large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scale {
    /// Seconds, with the same shape.
    Small,
    /// As the documentation states it.
    Full,
}

/// What every experiment is given.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How large it is.
    pub scale: Scale,
    /// All chance comes from it.
    pub seed: u64,
    /// Leaves out of a series of networks those that have fewer computers.
    pub least: usize,
    /// Leaves out of a series of networks those that have more computers.
    pub most: usize,
    /// A clock with which to measure how long operators work, if that is wanted; no other number depends on it.
    pub stopwatch: Option<fn() -> Duration>,
    /// Who is told how far a long experiment has come, if anybody is.
    pub told: Option<fn(&str)>,
}

impl Terms {
    /// Returns whether a network of so many computers belongs to what is tried.
    fn wants(&self, nodes: usize) -> bool {
        (self.least..=self.most).contains(&nodes)
    }

    fn tell(&self, text: &str) {
        if let Some(told) = self.told {
            told(text);
        }
    }

    /// Lets time pass in a world, and tells every ten minutes of it how far that has come.
    fn run_until(&self, world: &mut World, what: &str, end: Instant) {
        /// How much of the world's time passes between two lines.
        const STEP: Duration = Duration::from_secs(600);
        while world.now() < end {
            world.run_until(world.now().after(STEP).min(end));
            self.tell(&format!("{what}: {} min", (world.now() - Instant::default()).as_secs() / 60));
        }
    }
}

/// A table for people.
#[derive(Clone, Debug)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// What stands in each column.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Makes a table without rows.
    pub fn new(title: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        Self { title: title.to_owned(), columns, rows: Vec::new() }
    }

    /// Adds a row of numbers.
    pub fn row(&mut self, values: &[f64]) {
        self.rows.push(values.iter().map(|value| number(*value)).collect());
    }

    /// Adds a row that begins with a name.
    pub fn named(&mut self, name: &str, values: &[f64]) {
        let numbers = values.iter().map(|value| number(*value));
        self.rows.push(std::iter::once(name.to_owned()).chain(numbers).collect());
    }

    /// Writes it as Markdown, in columns that are even as plain text too.
    pub fn text(&self) -> String {
        let lines = || std::iter::once(&self.columns).chain(&self.rows);
        let width = |column: usize| {
            lines().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.columns.len()).map(|column| width(column).max(3)).collect();
        let write = |line: &Vec<String>| {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!(" {cell:>width$} |"));
            format!("|{}\n", cells.collect::<String>())
        };
        let rule: String = widths.iter().map(|width| format!(" {}: |", "-".repeat(width - 1))).collect();
        let rows: String = self.rows.iter().map(write).collect();
        format!("{}\n\n{}|{rule}\n{rows}", self.title, write(&self.columns))
    }
}

/// What came of an experiment.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The tables.
    pub tables: Vec<Table>,
    /// Numbers by their names.
    pub findings: Vec<(&'static str, f64)>,
    /// The charts.
    pub charts: Vec<Chart>,
}

impl Outcome {
    /// Returns a number by its name.
    pub fn finding(&self, name: &str) -> Option<f64> {
        self.findings.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// Returns everything as one JSON object.
    pub fn json(&self, experiment: Experiment, scale: Scale) -> serde_json::Value {
        let tables: Vec<_> = self
            .tables
            .iter()
            .map(|table| serde_json::json!({ "title": table.title, "columns": table.columns, "rows": table.rows }))
            .collect();
        let mut object = serde_json::json!({
            "experiment": name(experiment),
            "scale": format!("{scale:?}").to_lowercase(),
            "tables": tables,
            "charts": self.charts,
        });
        if let Some(map) = object.as_object_mut() {
            map.extend(
                self.findings.iter().map(|(name, value)| ((*name).to_owned(), serde_json::json!(value))),
            );
        }
        object
    }
}

/// Returns how an experiment is called on the command line.
pub fn name(experiment: Experiment) -> String {
    experiment.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Does an experiment.
///
/// # Errors
/// If a record of a setup would be too long.
pub fn run(experiment: Experiment, terms: Terms) -> Result<Outcome, DraftError> {
    match experiment {
        Experiment::Figure2 => figure2::run(terms),
        Experiment::Malicious => malicious::run(terms),
        Experiment::Snowball => snowball::run(terms),
        Experiment::Churn => churn::run(terms),
        Experiment::Morning => morning::run(terms),
        Experiment::OperatorOff => operator_off::run(terms),
        Experiment::Quiet => quiet::run(terms),
    }
}
