//! What a bench reports: one object, with a reference that was measured in the same run.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Map, Value};

/// One turn: the reference and the subject, one right after the other, so that a busy machine disturbs both alike.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Run {
    pub(super) value: f64,
    pub(super) reference: f64,
    pub(super) ratio: f64,
}

impl Run {
    pub(super) fn new(value: f64, reference: f64) -> Self {
        Self { value, reference, ratio: value / reference }
    }
}

/// One row of a bench that has several, such as one stream and eight.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Case {
    /// What was measured.
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) reference: f64,
    /// The median of the ratios of the runs, which is not the ratio of the medians.
    pub(super) ratio: f64,
    pub(super) runs: Vec<Run>,
    /// What else was counted, with its unit in its name.
    #[serde(flatten)]
    pub(super) more: Map<String, Value>,
}

impl Case {
    /// Summarises runs.
    pub(super) fn new(name: impl Into<String>, runs: Vec<Run>) -> Self {
        let of = |field: fn(&Run) -> f64| median(runs.iter().map(field).collect());
        Self {
            name: name.into(),
            value: of(|run| run.value),
            reference: of(|run| run.reference),
            ratio: of(|run| run.ratio),
            more: Map::new(),
            runs,
        }
    }

    /// Adds what else was counted.
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.note(name, value);
        self
    }

    /// The same, of a case that is in its place already.
    pub(super) fn note(&mut self, name: &str, value: impl Into<Value>) {
        self.more.insert(name.to_owned(), value.into());
    }

    /// Says with what it is compared, where that differs from case to case.
    pub(super) fn against(mut self, reference: &str) -> Self {
        self.name = format!("{reference}: {}", self.name);
        self
    }
}

/// What a bench found; the first case is its headline.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) bench: &'static str,
    pub(super) value: f64,
    pub(super) unit: &'static str,
    /// What it is compared with.
    pub(super) reference: f64,
    pub(super) reference_name: &'static str,
    pub(super) ratio: f64,
    pub(super) runs: Vec<Run>,
    pub(super) cases: Vec<Case>,
    pub(super) machine: super::machine::Machine,
}

impl Report {
    /// Makes a report of cases, of which there must be one.
    pub(super) fn new(
        bench: &'static str,
        unit: &'static str,
        reference_name: &'static str,
        cases: Vec<Case>,
    ) -> anyhow::Result<Self> {
        let first = cases.first().ok_or_else(|| anyhow::anyhow!("nothing was measured"))?;
        Ok(Self {
            bench,
            value: first.value,
            unit,
            reference: first.reference,
            reference_name,
            ratio: first.ratio,
            runs: first.runs.clone(),
            machine: super::machine::Machine::now(),
            cases,
        })
    }

    /// Writes the report for people.
    pub(super) fn to_text(&self) -> String {
        let width = self.cases.iter().map(|case| case.name.chars().count()).max().unwrap_or(0);
        let mut text = format!(
            "{}: {}, compared with {}\n{}\n",
            self.bench, self.unit, self.reference_name, self.machine
        );
        for case in &self.cases {
            let range = case.runs.iter().map(|run| run.ratio);
            let (low, high) = (range.clone().fold(f64::INFINITY, f64::min), range.fold(0.0, f64::max));
            // Writing to a string cannot fail.
            _ = write!(
                text,
                "\n{:width$}  {:>10}  reference {:>10}  ratio {:.2} ({low:.2} to {high:.2}, {} runs)",
                case.name,
                short(case.value),
                short(case.reference),
                case.ratio,
                case.runs.len(),
            );
            for (name, value) in &case.more {
                _ = write!(text, "\n{:width$}    {}: {}", "", name.replace('_', " "), told(value));
            }
        }
        text
    }
}

/// Writes a number as people read it.
fn short(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

fn told(value: &Value) -> String {
    value.as_f64().map_or_else(|| value.to_string(), short)
}

/// Returns the middle of some values, or what lies between the two in the middle; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2).copied();
    let lower = values.get(values.len().saturating_sub(1) / 2).copied();
    lower.zip(upper).map_or(0.0, |(lower, upper)| f64::midpoint(lower, upper))
}

/// Returns the value that so large a part of all does not exceed; 0 of none.
pub(super) fn quantile(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in the list, which has fewer than 2^52"
    )]
    let place = (values.len() as f64 * part) as usize;
    values.get(place.min(last)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_quantiles_are_where_they_should_be() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(Vec::new()).abs() < 1e-9);
        let hundred: Vec<f64> = (0..100).map(f64::from).collect();
        assert!((quantile(hundred.clone(), 0.99) - 99.0).abs() < 1e-9);
        assert!((quantile(hundred, 0.0)).abs() < 1e-9);
    }

    #[test]
    fn a_report_leads_with_its_first_case_and_keeps_every_run() {
        let runs = vec![Run::new(2.0, 1.0), Run::new(6.0, 2.0), Run::new(8.0, 8.0)];
        let case = Case::new("one", runs).with("cpu_s_per_gib", 1.5);
        let report = Report::new("tunnel", "GB/s", "two copying hops", vec![case]).unwrap();
        assert!((report.ratio - 2.0).abs() < 1e-9, "the median of the ratios");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["runs"].as_array().unwrap().len(), 3);
        assert_eq!(json["cases"][0]["cpu_s_per_gib"], 1.5);
        assert!(report.to_text().contains("cpu s per gib: 1.5"), "{}", report.to_text());
        assert!(Report::new("none", "", "", Vec::new()).is_err());
    }
}
