//! Plots of what experiments found: a title, two axes, a few curves and their names, as SVG and as PNG.

mod letters;
mod picture;

use serde::{Deserialize, Serialize};

use self::picture::{Anchor, Colour, Mark, Picture};

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Style {
    /// A line, and a dot at each point.
    Measured,
    /// A line alone.
    Line,
    /// A dashed line.
    Dashed,
}

/// One curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Its name.
    pub name: String,
    /// Its points, ascending.
    pub points: Vec<(f64, f64)>,
    /// How it is drawn.
    pub style: Style,
}

impl Curve {
    /// Makes a curve. What is no number was not measured.
    pub fn new(name: &str, style: Style, mut points: Vec<(f64, f64)>) -> Self {
        points.retain(|(x, y)| x.is_finite() && y.is_finite());
        Self { name: name.to_owned(), points, style }
    }

    /// Returns whether another curve has one of its points.
    fn meets(&self, other: &Self) -> bool {
        self.points.iter().any(|point| other.points.contains(point))
    }
}

/// How values are laid out along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scale {
    /// Evenly, from zero.
    Even,
    /// By powers of ten; values of zero or less are left out.
    Powers,
}

/// A plot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chart {
    /// The name of its files.
    pub file: String,
    /// What it shows.
    pub title: String,
    /// What runs to the right, with its unit.
    pub x: (String, Scale),
    /// What runs upwards, with its unit.
    pub y: (String, Scale),
    /// The curves.
    pub curves: Vec<Curve>,
}

const WIDTH: u32 = 900;
const LEFT: f64 = 92.0;
const RIGHT: f64 = 870.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 430.0;
/// Between two names of curves.
const LEGEND_STEP: f64 = 22.0;

/// By how much a curve stands out on either side behind each one that is drawn over it, so that all can be seen where they lie on each other.
const RIM: f64 = 1.5;

const INK: Colour = [34, 34, 34];
const GRID: Colour = [222, 222, 222];

/// Told apart also by those who do not see all colours (Okabe and Ito).
const COLOURS: [Colour; 7] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [230, 159, 0],
    [86, 180, 233],
    [90, 90, 90],
];

impl Chart {
    /// Adds what another run has found: to each curve the points of the same name, which count where both have some, and the curves that
    /// are not there yet.
    pub fn add(&mut self, other: Self) {
        for curve in other.curves {
            let Some(own) = self.curves.iter_mut().find(|own| own.name == curve.name) else {
                self.curves.push(curve);
                continue;
            };
            own.points.retain(|(x, _)| !curve.points.iter().any(|(other, _)| other == x));
            own.points.extend(curve.points);
            own.points.sort_by(|one, other| one.0.total_cmp(&other.0));
        }
    }

    /// Draws it as SVG.
    pub fn svg(&self) -> String {
        self.picture().svg()
    }

    /// Draws it as PNG.
    pub fn png(&self) -> Vec<u8> {
        self.picture().png()
    }

    fn picture(&self) -> Picture {
        let xs = Axis::new(self.x.1, self.values(|(x, _)| x), (LEFT, RIGHT));
        let ys = Axis::new(self.y.1, self.values(|(_, y)| y), (BOTTOM, TOP));
        let mut marks = vec![words(((LEFT + RIGHT) / 2.0, 30.0), 18.0, Anchor::Middle, &self.title)];
        for (at, label) in xs.ticks() {
            marks.push(line(vec![(at, TOP), (at, BOTTOM)], 1.0, GRID));
            marks.push(words((at, BOTTOM + 20.0), 13.0, Anchor::Middle, &label));
        }
        for (at, label) in ys.ticks() {
            marks.push(line(vec![(LEFT, at), (RIGHT, at)], 1.0, GRID));
            marks.push(words((LEFT - 8.0, at + 4.5), 13.0, Anchor::End, &label));
        }
        marks.push(line(vec![(LEFT, TOP), (LEFT, BOTTOM), (RIGHT, BOTTOM)], 1.5, INK));
        marks.push(words(((LEFT + RIGHT) / 2.0, BOTTOM + 44.0), 14.0, Anchor::Middle, &self.x.0));
        marks.push(Mark::Words {
            at: (24.0, (TOP + BOTTOM) / 2.0),
            size: 14.0,
            anchor: Anchor::Middle,
            colour: INK,
            is_upward: true,
            text: self.y.0.clone(),
        });
        let mut below = BOTTOM + 74.0;
        for ((n, curve), colour) in self.curves.iter().enumerate().zip(COLOURS.iter().cycle()) {
            let inside = |(x, y): &(f64, f64)| xs.takes(*x) && ys.takes(*y);
            let points: Vec<_> = curve.points.iter().filter(|point| inside(point)).collect();
            let points = points.into_iter().map(|(x, y)| (xs.place(*x), ys.place(*y))).collect();
            let rim =
                RIM * self.curves.iter().skip(n + 1).map(|later| f64::from(curve.meets(later))).sum::<f64>();
            draw(&mut marks, (curve.style, rim), points, *colour);
            draw(&mut marks, (curve.style, rim), vec![(LEFT, below), (LEFT + 40.0, below)], *colour);
            marks.push(words((LEFT + 52.0, below + 4.5), 13.0, Anchor::Start, &curve.name));
            below += LEGEND_STEP;
        }
        Picture { width: WIDTH, height: height(self.curves.len()), marks }
    }

    fn values(&self, of: impl Fn((f64, f64)) -> f64) -> Vec<f64> {
        self.curves.iter().flat_map(|curve| curve.points.iter()).map(|point| of(*point)).collect()
    }
}

fn height(curves: usize) -> u32 {
    u32::try_from(curves).unwrap_or(0).saturating_mul(22).saturating_add(510)
}

fn line(points: Vec<(f64, f64)>, width: f64, colour: Colour) -> Mark {
    Mark::Line { points, width, colour, is_dashed: false }
}

fn words(at: (f64, f64), size: f64, anchor: Anchor, text: &str) -> Mark {
    Mark::Words { at, size, anchor, colour: INK, is_upward: false, text: text.to_owned() }
}

fn draw(marks: &mut Vec<Mark>, (style, rim): (Style, f64), points: Vec<(f64, f64)>, colour: Colour) {
    if style == Style::Measured {
        marks.extend(points.iter().map(|at| Mark::Dot { at: *at, radius: 4.0 + rim, colour }));
    }
    marks.push(Mark::Line { points, width: 2.0 + 2.0 * rim, colour, is_dashed: style == Style::Dashed });
}

/// One axis: which values lie where.
struct Axis {
    scale: Scale,
    /// The lowest and the highest value, as they are laid out.
    range: (f64, f64),
    /// Where those two are.
    ends: (f64, f64),
    step: f64,
}

impl Axis {
    fn new(scale: Scale, values: Vec<f64>, ends: (f64, f64)) -> Self {
        match scale {
            Scale::Even => {
                let highest = values.into_iter().fold(0.0, f64::max).max(1e-9);
                let step = round_step(highest / 6.0);
                Self { scale, range: (0.0, (highest / step).ceil() * step), ends, step }
            }
            Scale::Powers => {
                let logs: Vec<_> = values.into_iter().filter(|value| *value > 0.0).map(f64::log10).collect();
                let lowest = logs.iter().copied().fold(f64::INFINITY, f64::min).floor();
                let highest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max).ceil();
                let lowest = if lowest.is_finite() { lowest } else { 0.0 };
                let range = (lowest, highest.max(lowest + 1.0));
                Self { scale, range, ends, step: 1.0 }
            }
        }
    }

    fn takes(&self, value: f64) -> bool {
        value.is_finite() && (self.scale == Scale::Even || value > 0.0)
    }

    fn place(&self, value: f64) -> f64 {
        let laid = if self.scale == Scale::Powers { value.log10() } else { value };
        let share = (laid - self.range.0) / (self.range.1 - self.range.0);
        self.ends.0 + (self.ends.1 - self.ends.0) * share
    }

    /// Returns where the lines of the grid are, and what stands beside them.
    fn ticks(&self) -> Vec<(f64, String)> {
        let mut ticks = Vec::new();
        let mut at = self.range.0;
        while at <= self.range.1 + self.step * 0.01 {
            let value = if self.scale == Scale::Powers { 10_f64.powf(at) } else { at };
            ticks.push((self.place(value), number(value)));
            at += self.step;
        }
        ticks
    }
}

/// The next of 1, 2 and 5 times a power of ten.
fn round_step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough).unwrap_or(10.0);
    factor * power
}

/// Writes a number for people: thousands apart, no digits that say nothing.
pub fn number(value: f64) -> String {
    let size = value.abs();
    let digits = match size {
        _ if size == 0.0 || size >= 100.0 || (size - size.round()).abs() < 1e-9 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 1.0 => 2,
        _ if size >= 0.01 => 3,
        _ => 5,
    };
    let plain = format!("{value:.digits$}");
    let plain = if plain.contains('.') { plain.trim_end_matches('0').trim_end_matches('.') } else { &plain };
    let (whole, rest) = plain.split_once('.').map_or((plain, None), |(whole, rest)| (whole, Some(rest)));
    let mut out = String::new();
    let count = whole.trim_start_matches('-').len();
    for (n, letter) in whole.trim_start_matches('-').chars().enumerate() {
        if n > 0 && (count - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(letter);
    }
    let sign = if whole.starts_with('-') { "-" } else { "" };
    rest.map_or_else(|| format!("{sign}{out}"), |rest| format!("{sign}{out}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        let written = [0.0, 1_234_567.0, 12.5, 0.00123, -4_000.0, 0.5].map(number);
        assert_eq!(written, ["0", "1,234,567", "12.5", "0.00123", "-4,000", "0.5"]);
    }

    #[test]
    fn what_several_runs_have_found_is_drawn_together_after_it_was_written_and_read() {
        let chart = |curves: &[(&str, &[(f64, f64)])]| {
            let curves =
                curves.iter().map(|(name, points)| Curve::new(name, Style::Measured, points.to_vec()));
            let axis = |name: &str| (name.to_owned(), Scale::Powers);
            let (file, title) = ("file".to_owned(), "title".to_owned());
            Chart { file, title, x: axis("x"), y: axis("y"), curves: curves.collect() }
        };
        let mut first = chart(&[("with", &[(10.0, 1.0), (1_000.0, 3.0)])]);
        let second = chart(&[("with", &[(100.0, 2.5), (1_000.0, 4.0)]), ("without", &[(10.0, f64::NAN)])]);
        let read = serde_json::from_value(serde_json::json!(second)).unwrap();
        first.add(read);
        let with: &[(f64, f64)] = &[(10.0, 1.0), (100.0, 2.5), (1_000.0, 4.0)];
        assert_eq!(first, chart(&[("with", with), ("without", &[])]));
    }

    #[test]
    fn of_curves_that_lie_on_each_other_each_is_seen() {
        let curve = |name: &str, high: f64| Curve::new(name, Style::Line, vec![(0.0, 1.0), (1.0, high)]);
        let axis = || ("axis".to_owned(), Scale::Even);
        let curves = vec![curve("below", 1.0), curve("above", 1.0), curve("elsewhere", 2.0)];
        let chart =
            Chart { file: "file".to_owned(), title: "title".to_owned(), x: axis(), y: axis(), curves };
        let widths = chart.picture().marks.into_iter().filter_map(|mark| match mark {
            Mark::Line { width, colour, .. } if colour != INK && colour != GRID => Some(width),
            Mark::Line { .. } | Mark::Dot { .. } | Mark::Words { .. } => None,
        });
        assert_eq!(widths.collect::<Vec<_>>(), [8.0, 8.0, 5.0, 5.0, 2.0, 2.0]);
    }

    #[test]
    fn an_even_axis_begins_at_zero_and_holds_the_highest_value() {
        let axis = Axis::new(Scale::Even, vec![3.0, 47.0], (0.0, 100.0));
        assert_eq!(axis.range, (0.0, 50.0));
        assert_eq!(axis.ticks().first().map(|(_, label)| label.as_str()), Some("0"));
        assert_eq!(axis.ticks().last().map(|(_, label)| label.as_str()), Some("50"));
    }

    #[test]
    fn an_axis_of_powers_leaves_out_what_has_no_place_there() {
        let axis = Axis::new(Scale::Powers, vec![0.0, 5.0, 900.0], (0.0, 300.0));
        assert!(!axis.takes(0.0) && axis.takes(5.0));
        assert!((axis.place(10.0) - 100.0).abs() < 1e-9);
    }
}
