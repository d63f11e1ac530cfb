//! The depth grid, and putting intensity into it without losing any.
//!
//! Bin `m` covers `first + (m ± ½)·step`; what is published as its depth is its middle, as the codes of the beamline do.
//! Deposition goes into a column that belongs to one pixel, in a fixed order: results do not depend on threads.

use serde::{Deserialize, Serialize};

/// Bins along the incident beam.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DepthGrid {
    /// Middle of the first bin, µm.
    pub first_um: f64,
    /// Width of a bin, µm.
    pub step_um: f64,
    /// Number of bins.
    pub bins: usize,
}

/// Where intensity went. `deposited + out_of_range + rejected = input`, to rounding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// What there was.
    pub input: f64,
    /// In the bins.
    pub deposited: f64,
    /// Before the first or behind the last bin.
    pub out_of_range: f64,
    /// Of pixels or steps whose depth is not known.
    pub rejected: f64,
}

impl Account {
    /// Both together.
    #[must_use]
    pub fn plus(self, o: Self) -> Self {
        Self {
            input: self.input + o.input,
            deposited: self.deposited + o.deposited,
            out_of_range: self.out_of_range + o.out_of_range,
            rejected: self.rejected + o.rejected,
        }
    }

    /// What is missing, relative to the sum of magnitudes; 0 when nothing is.
    #[must_use]
    pub fn imbalance(&self) -> f64 {
        let scale = self.input.abs().max(self.deposited.abs()).max(self.out_of_range.abs()).max(self.rejected.abs());
        let gap = self.input - self.deposited - self.out_of_range - self.rejected;
        if scale == 0.0 { 0.0 } else { gap.abs() / scale }
    }
}

impl DepthGrid {
    /// Middle of a bin, µm.
    #[must_use]
    pub fn centre_um(&self, bin: usize) -> f64 {
        self.first_um + bin as f64 * self.step_um
    }

    /// Middles of all bins, µm.
    #[must_use]
    pub fn centres_um(&self) -> Vec<f64> {
        (0..self.bins).map(|m| self.centre_um(m)).collect()
    }

    /// The edge before the first bin and the one behind the last, µm.
    #[must_use]
    pub fn range_um(&self) -> (f64, f64) {
        let start = self.first_um - self.step_um / 2.0;
        (start, start + self.bins as f64 * self.step_um)
    }

    /// Is this depth in a bin?
    #[must_use]
    pub fn holds(&self, depth_um: f64) -> bool {
        let (start, end) = self.range_um();
        depth_um >= start && depth_um < end
    }

    /// Adds `amount`, spread by a distribution given as its cumulative function (0 at or before `low`, 1 from `high` on), and
    /// tells how much of it fell outside.
    pub fn deposit(&self, low: f64, high: f64, amount: f64, column: &mut [f64], share: impl Fn(f64) -> f64) -> f64 {
        let (start, end) = self.range_um();
        if high <= start || low >= end {
            return amount;
        }
        let bin = |depth: f64| (((depth - start) / self.step_um).floor().max(0.0) as usize).min(self.bins - 1);
        let (first, last) = (bin(low), bin(high));
        let edge = |m: usize| start + m as f64 * self.step_um;
        let before = share(edge(first));
        let mut done = before;
        for (m, cell) in column.iter_mut().enumerate().take(last + 1).skip(first) {
            let next = share(edge(m + 1));
            *cell += amount * (next - done);
            done = next;
        }
        amount * (before + (1.0 - done))
    }

    /// Adds `amount`, spread evenly from one depth to another, in whichever order.
    pub fn deposit_even(&self, a: f64, b: f64, amount: f64, column: &mut [f64]) -> f64 {
        let (low, high) = if a <= b { (a, b) } else { (b, a) };
        let width = high - low;
        self.deposit(low, high, amount, column, |z| {
            if z <= low {
                0.0
            } else if z >= high || width <= 0.0 {
                1.0
            } else {
                (z - low) / width
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: DepthGrid = DepthGrid { first_um: -10.0, step_um: 2.0, bins: 11 };

    #[test]
    fn bins_lie_around_their_depths() {
        assert_eq!(GRID.range_um(), (-11.0, 11.0));
        assert_eq!(GRID.centre_um(10), 10.0);
        assert!(GRID.holds(-11.0) && !GRID.holds(11.0));
        let mut column = vec![0.0; 11];
        assert_eq!(GRID.deposit_even(-1.0, 1.0, 3.0, &mut column), 0.0);
        assert_eq!(column[5], 3.0);
    }

    #[test]
    fn nothing_is_lost_wherever_it_falls() {
        for (a, b) in [
            (-3.3, 4.1),
            (4.1, -3.3),
            (-20.0, -11.0),
            (-20.0, 30.0),
            (9.0, 50.0),
            (2.0, 2.0),
            (11.0, 12.0),
            (-11.0, -11.0),
            (-1e9, 1e9),
        ] {
            let mut column = vec![0.0; 11];
            let out = GRID.deposit_even(a, b, 7.0, &mut column);
            let sum: f64 = column.iter().sum();
            assert!((sum + out - 7.0).abs() < 1e-9, "{a} {b}: {sum} {out}");
            assert!(column.iter().all(|&c| c >= 0.0));
        }
    }
}
