//! The little statistics that experiments need.

/// A straight line through measured points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Its value at zero.
    pub base: f64,
    /// How much it rises with each step.
    pub slope: f64,
}

impl Fit {
    /// Fits by least squares; of one point it makes a line through zero.
    pub fn of(points: &[(f64, f64)]) -> Self {
        let count = count(points.len());
        let (mean_x, mean_y) = (
            points.iter().map(|(x, _)| x).sum::<f64>() / count,
            points.iter().map(|(_, y)| y).sum::<f64>() / count,
        );
        let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
        if points.len() < 2 || spread <= 0.0 {
            return Self { base: 0.0, slope: if mean_x > 0.0 { mean_y / mean_x } else { 0.0 } };
        }
        let slope = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / spread;
        Self { base: mean_y - slope * mean_x, slope }
    }

    /// Returns its value there.
    pub fn at(&self, x: f64) -> f64 {
        self.slope.mul_add(x, self.base)
    }
}

/// Returns the value that so large a share of the values does not exceed; not a number if there are none.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * count(sorted.len())).ceil().max(1.0);
    let found = sorted.iter().zip(1_u32..).find(|(_, n)| f64::from(*n) >= rank);
    found.or_else(|| sorted.last().map(|last| (last, 0))).map_or(f64::NAN, |(value, _)| *value)
}

/// Returns a count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^53")]
pub const fn count(n: usize) -> f64 {
    n as f64
}

/// Returns a large count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^53")]
pub const fn sum(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_again_from_its_points() {
        let fit = Fit::of(&[(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)]);
        assert!((fit.base - 3.0).abs() < 1e-9 && (fit.slope - 2.0).abs() < 1e-9);
        assert!((fit.at(10.0) - 23.0).abs() < 1e-9);
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert_eq!(quantile(&values, 0.5), 3.0);
        assert_eq!(quantile(&values, 1.0), 5.0);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
