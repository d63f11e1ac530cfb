//! Stripe (ring artefact) removal by Vo's combination.
//!
//! Vo, Atwood & Drakopoulos, Opt. Express 26, 28396 (2018), their algorithms 3 to 6: columns of dead or fluctuating pixels are
//! found and interpolated over (6), strong stripes are scaled away and their worst columns replaced (5), and what is left
//! is evened out between neighbours at equal rank (3): a column is sorted along the angle, ranks are smoothed by a median
//! across columns, and values go back to where they came from. Stripes are found in a list of one number per column by
//! algorithm 4: sorted, its middle half gives a straight line; what exceeds the line's range by `snr` is a stripe.
//!
//! Input and output `[angle, column]`, line integrals or transmission; all values must be finite (a NaN spoils its neighbours).
//! Windows wider than the row are cut. Each row of the detector is independent: parallel over rows in [`remove_slab`].
//!
//! Columns are sorted once: what algorithm 5 does to a column (division by a positive number, or exchange for medians of
//! equal rank) leaves its values in the order they had, so that algorithm 3 finds them sorted.

use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, ArrayViewMut2, ArrayViewMut3, Axis};
use serde::{Deserialize, Serialize};

use super::error::{TomographyError, check};
use super::median;

/// Settings; the defaults are those users of the method know.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stripe {
    /// How far a column must stand out to be a stripe; smaller finds more.
    pub snr: f64,
    /// Median window for strong and dead stripes, columns, odd.
    pub large: usize,
    /// Median window for the rest, columns, odd.
    pub small: usize,
    /// Share of the ranks, half at either end, left out when strong stripes are measured.
    pub drop_ratio: f64,
}

impl Default for Stripe {
    fn default() -> Self {
        Self { snr: 3.0, large: 61, small: 21, drop_ratio: 0.1 }
    }
}

impl Stripe {
    /// Refuses settings outside their range.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<(), TomographyError> {
        check("stripe snr", self.snr, "positive", |s| s > 0.0)?;
        let odd = |w: f64| w >= 3.0 && w % 2.0 == 1.0;
        check("large stripe window", self.large as f64, "odd, at least 3", odd)?;
        check("small stripe window", self.small as f64, "odd, at least 3", odd)?;
        check("stripe drop ratio", self.drop_ratio, "from 0 to 0.8", |r| (0.0..=0.8).contains(&r))
    }
}

/// Removes stripes from every detector row of `[row, angle, column]`, in place.
///
/// # Errors
/// As [`Stripe::check`].
pub fn remove_slab(mut sinograms: ArrayViewMut3<'_, f32>, options: &Stripe) -> Result<(), TomographyError> {
    options.check()?;
    let rows = sinograms.axis_iter_mut(Axis(0)).into_par_iter();
    rows.for_each_init(Work::default, |work, sinogram| remove_one(sinogram, options, work));
    Ok(())
}

/// Removes stripes from one sinogram `[angle, column]`, in place.
///
/// # Errors
/// As [`Stripe::check`].
pub fn remove(sinogram: ArrayViewMut2<'_, f32>, options: &Stripe) -> Result<(), TomographyError> {
    options.check()?;
    remove_one(sinogram, options, &mut Work::default());
    Ok(())
}

fn remove_one(mut sinogram: ArrayViewMut2<'_, f32>, options: &Stripe, work: &mut Work) {
    let (angles, columns) = sinogram.dim();
    if angles < 3 || columns < 5 {
        return;
    }
    work.load(sinogram.view());
    let rough = roughness(sinogram.view());
    work.dead(&rough, options);
    work.rank();
    work.large(options);
    work.sorting(options.small);
    work.store(&mut sinogram);
}

/// Buffers for one sinogram by columns, for everything here sorts along the angle.
#[derive(Default)]
struct Work {
    angles: usize,
    /// `[column, angle]`.
    values: Vec<f32>,
    /// `[column, rank]`: every column's values in ascending order.
    ranked: Vec<f32>,
    /// `[column, rank]`: the angle each came from.
    origin: Vec<u32>,
    /// `[column, rank]`: medians across columns.
    smooth: Vec<f32>,
    keys: Vec<u64>,
    median: median::Scratch,
}

/// Edge of the tiles in which a sinogram is transposed: 16 lines of 16 values each way stay in the first cache.
const TILE: usize = 16;

impl Work {
    fn load(&mut self, sinogram: ArrayView2<'_, f32>) {
        let (angles, columns) = sinogram.dim();
        self.angles = angles;
        for buffer in [&mut self.values, &mut self.ranked, &mut self.smooth] {
            buffer.resize(angles * columns, 0.0);
        }
        self.origin.resize(angles * columns, 0);
        for first in (0..angles).step_by(TILE) {
            let tile = TILE.min(angles - first);
            for left in (0..columns).step_by(TILE) {
                for a in first..first + tile {
                    let row = sinogram.row(a);
                    for u in left..(left + TILE).min(columns) {
                        self.values[u * angles + a] = row[u];
                    }
                }
            }
        }
    }

    fn store(&self, sinogram: &mut ArrayViewMut2<'_, f32>) {
        let (angles, columns) = sinogram.dim();
        for first in (0..angles).step_by(TILE) {
            let tile = TILE.min(angles - first);
            for left in (0..columns).step_by(TILE) {
                for a in first..first + tile {
                    let mut row = sinogram.row_mut(a);
                    for u in left..(left + TILE).min(columns) {
                        row[u] = self.values[u * angles + a];
                    }
                }
            }
        }
    }

    fn count(&self) -> usize {
        self.values.len() / self.angles
    }

    fn column(&self, u: usize) -> &[f32] {
        &self.values[u * self.angles..][..self.angles]
    }

    /// Sorts every column.
    fn rank(&mut self) {
        let Self { angles, values, ranked, origin, keys, .. } = self;
        let columns = values.chunks_exact(*angles);
        for ((column, ranked), origin) in
            columns.zip(ranked.chunks_exact_mut(*angles)).zip(origin.chunks_exact_mut(*angles))
        {
            keys.clear();
            // Value in the high half, as an integer that orders like the float; angle in the low: ties keep their order.
            keys.extend(column.iter().enumerate().map(|(a, v)| (u64::from(ordered(*v)) << 32) | a as u64));
            keys.sort_unstable();
            for ((value, angle), key) in ranked.iter_mut().zip(origin).zip(keys.iter()) {
                *angle = *key as u32;
                *value = column[*angle as usize];
            }
        }
    }

    /// Algorithm 3, on what algorithm 5 left in `ranked`.
    fn sorting(&mut self, width: usize) {
        let Self { angles, values, ranked, origin, smooth, median, .. } = self;
        median::across(ranked, *angles, width, smooth, median);
        let columns = values.chunks_exact_mut(*angles);
        for ((column, smooth), origin) in columns.zip(smooth.chunks_exact(*angles)).zip(origin.chunks_exact(*angles)) {
            for (value, &angle) in smooth.iter().zip(origin) {
                column[angle as usize] = *value;
            }
        }
    }

    /// Algorithm 5, on `ranked`.
    fn large(&mut self, options: &Stripe) {
        let Self { angles, ranked, smooth, median, .. } = self;
        let angles = *angles;
        median::across(ranked, angles, options.large, smooth, median);
        let drop = (0.5 * options.drop_ratio * angles as f64) as usize;
        let kept = drop..angles - drop;
        let mean = |values: &[f32]| sum(values) / values.len() as f64;
        let factors: Vec<f64> = ranked
            .chunks_exact(angles)
            .zip(smooth.chunks_exact(angles))
            .map(|(raw, even)| {
                let factor = mean(&raw[kept.clone()]) / mean(&even[kept.clone()]);
                // A column whose neighbours are zero on the average has no scale to be brought to; nor may a column turn sign.
                if factor.is_finite() && factor > 0.0 { factor } else { 1.0 }
            })
            .collect();
        let found = spread(&stripes(&factors, options.snr), 1);
        let columns = ranked.chunks_exact_mut(angles).zip(smooth.chunks_exact(angles));
        for ((column, even), (&found, &factor)) in columns.zip(found.iter().zip(&factors)) {
            if found {
                column.copy_from_slice(even);
            } else {
                column.iter_mut().for_each(|v| *v /= factor as f32);
            }
        }
    }

    /// Algorithm 6, without the strong stripes that follow it.
    fn dead(&mut self, rough: &[f64], options: &Stripe) {
        let rough32: Vec<f32> = rough.iter().map(|&r| r as f32).collect();
        let mut even = vec![0.0; rough32.len()];
        median::across(&rough32, 1, options.large, &mut even, &mut self.median);
        // Where the neighbourhood is perfectly smooth, the average roughness stands in for it.
        let usual = even.iter().map(|&e| f64::from(e)).sum::<f64>() / even.len() as f64;
        let over = |r: f64, e: f64| {
            if e > 0.0 {
                r / e
            } else if usual > 0.0 {
                r / usual
            } else {
                1.0
            }
        };
        let factors: Vec<f64> = rough.iter().zip(&even).map(|(&r, &e)| over(r, f64::from(e))).collect();
        let mut found = spread(&stripes(&factors, options.snr), 1);
        // The outermost columns have nothing beyond them to interpolate from.
        let count = self.count();
        found[..2].fill(false);
        found[count - 2..].fill(false);
        // With a third of the detector found dead it is the finding that is wrong.
        if found.iter().filter(|&&f| f).count() >= count / 3 {
            return;
        }
        let mut u = 2;
        while u < count - 2 {
            if !found[u] {
                u += 1;
                continue;
            }
            let left = u - 1;
            let right = (u..count).find(|&v| !found[v]).unwrap_or(count - 1);
            for between in u..right {
                let part = (between - left) as f32 / (right - left) as f32;
                for a in 0..self.angles {
                    let (low, high) = (self.column(left)[a], self.column(right)[a]);
                    self.values[between * self.angles + a] = low + part * (high - low);
                }
            }
            u = right;
        }
    }
}

/// The float as an integer that orders the same way (−NaN first, +NaN last).
fn ordered(v: f32) -> u32 {
    let bits = v.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 }
}

/// Sum in double precision, in eight parts that do not wait for each other.
fn sum(values: &[f32]) -> f64 {
    let mut parts = [0.0_f64; 8];
    let chunks = values.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|&v| f64::from(v)).sum();
    for chunk in chunks {
        parts.iter_mut().zip(chunk).for_each(|(part, &v)| *part += f64::from(v));
    }
    parts.iter().sum::<f64>() + rest
}

/// Per column, the sum of the absolute differences from the column's running mean (reflected at the ends).
///
/// Taken row by row for all columns at once, so that it runs along memory and vectorises.
fn roughness(sinogram: ArrayView2<'_, f32>) -> Vec<f64> {
    const WINDOW: i64 = 10;
    const REACH: i64 = WINDOW / 2;
    let (angles, columns) = sinogram.dim();
    let n = angles as i64;
    let row = |i: i64| {
        let j = i.rem_euclid(2 * n);
        sinogram.row(if j < n { j } else { 2 * n - 1 - j } as usize)
    };
    let mut sums = vec![0.0_f64; columns];
    for i in -REACH..WINDOW - REACH {
        sums.iter_mut().zip(row(i)).for_each(|(sum, &v)| *sum += f64::from(v));
    }
    let mut totals = vec![0.0_f64; columns];
    for i in 0..n {
        let entering = row(i - REACH + WINDOW);
        let values = row(i).into_iter().zip(entering).zip(row(i - REACH));
        for ((total, sum), ((&here, &new), &old)) in totals.iter_mut().zip(&mut sums).zip(values) {
            *total += (f64::from(here) - *sum / WINDOW as f64).abs();
            *sum += f64::from(new) - f64::from(old);
        }
    }
    totals
}

/// Algorithm 4: which entries of a list stand out from the straight line through its sorted middle.
fn stripes(list: &[f64], snr: f64) -> Vec<bool> {
    let n = list.len();
    let mut sorted = list.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let drop = n / 4;
    let fitted = &sorted[drop..n - drop];
    // Least squares of value over rank.
    let count = fitted.len() as f64;
    let middle_rank = drop as f64 + (count - 1.0) / 2.0;
    let mean = fitted.iter().sum::<f64>() / count;
    let (mut above, mut below) = (0.0, 0.0);
    for (i, v) in fitted.iter().enumerate() {
        let rank = (drop + i) as f64 - middle_rank;
        above += rank * (v - mean);
        below += rank * rank;
    }
    let slope = if below > 0.0 { above / below } else { 0.0 };
    let high = mean - slope * middle_rank;
    let low = high + slope * (n as f64 - 1.0);
    // Rounding alone must not make stripes of columns that are all alike.
    let noise = (low - high).abs().max(1e-6 * mean.abs());
    let mut found = vec![false; n];
    if noise > 0.0 {
        // Each side is judged by its own extreme: a bright column does not lower the bar for dark ones.
        let (bright, dark) = ((sorted[0] - high).abs() >= snr * noise, (sorted[n - 1] - low).abs() >= snr * noise);
        let margin = 0.5 * noise * snr;
        for (f, &v) in found.iter_mut().zip(list) {
            *f = (bright && v > high + margin) || (dark && v < low - margin);
        }
    }
    found
}

/// Marks the neighbours of what is marked.
fn spread(found: &[bool], by: usize) -> Vec<bool> {
    (0..found.len()).map(|u| found[u.saturating_sub(by)..(u + by + 1).min(found.len())].contains(&true)).collect()
}

#[cfg(test)]
#[path = "stripe_tests.rs"]
mod tests;
