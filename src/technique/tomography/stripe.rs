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

use std::ops::Range;

use ndarray::parallel::prelude::*;
use ndarray::{ArrayViewMut2, ArrayViewMut3, Axis};
use serde::{Deserialize, Serialize};

use super::error::{TomographyError, check};

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
    sinograms.axis_iter_mut(Axis(0)).into_par_iter().for_each(|sinogram| remove_one(sinogram, options));
    Ok(())
}

/// Removes stripes from one sinogram `[angle, column]`, in place.
///
/// # Errors
/// As [`Stripe::check`].
pub fn remove(sinogram: ArrayViewMut2<'_, f32>, options: &Stripe) -> Result<(), TomographyError> {
    options.check()?;
    remove_one(sinogram, options);
    Ok(())
}

fn remove_one(mut sinogram: ArrayViewMut2<'_, f32>, options: &Stripe) {
    let (angles, columns) = sinogram.dim();
    if angles < 3 || columns < 5 {
        return;
    }
    let mut lines = Columns::new(&sinogram);
    lines.dead(options);
    lines.large(options);
    lines.sorting(options.small);
    for (u, column) in lines.values.chunks_exact(angles).enumerate() {
        sinogram.column_mut(u).iter_mut().zip(column).for_each(|(to, &from)| *to = from);
    }
}

/// A sinogram by columns: `[column, angle]`, for everything here sorts along the angle.
struct Columns {
    angles: usize,
    values: Vec<f32>,
}

/// Every column's values in ascending order, and where each came from.
struct Ranked {
    /// `[column, rank]`.
    values: Vec<f32>,
    /// `[column, rank]`: the angle.
    angles: Vec<u32>,
}

impl Columns {
    fn new(sinogram: &ArrayViewMut2<'_, f32>) -> Self {
        let mut values = Vec::with_capacity(sinogram.len());
        sinogram.columns().into_iter().for_each(|column| values.extend(column.iter()));
        Self { angles: sinogram.nrows(), values }
    }

    fn count(&self) -> usize {
        self.values.len() / self.angles
    }

    fn column(&self, u: usize) -> &[f32] {
        &self.values[u * self.angles..][..self.angles]
    }

    fn range(&self, u: usize) -> Range<usize> {
        u * self.angles..(u + 1) * self.angles
    }

    fn ranked(&self) -> Ranked {
        let mut ranked = Ranked { values: vec![0.0; self.values.len()], angles: vec![0; self.values.len()] };
        let mut keys = Vec::with_capacity(self.angles);
        for u in 0..self.count() {
            keys.clear();
            // Value in the high half, as an integer that orders like the float; angle in the low: ties keep their order.
            keys.extend(self.column(u).iter().enumerate().map(|(a, v)| (u64::from(ordered(*v)) << 32) | a as u64));
            keys.sort_unstable();
            let range = self.range(u);
            for ((value, angle), key) in
                ranked.values[range.clone()].iter_mut().zip(&mut ranked.angles[range]).zip(&keys)
            {
                *angle = *key as u32;
                *value = self.column(u)[*angle as usize];
            }
        }
        ranked
    }

    /// Algorithm 3.
    fn sorting(&mut self, width: usize) {
        let ranked = self.ranked();
        let smooth = median_across(&ranked.values, self.angles, width);
        for u in 0..self.count() {
            let range = self.range(u);
            let column = &mut self.values[range.clone()];
            for (value, &angle) in smooth[range.clone()].iter().zip(&ranked.angles[range]) {
                column[angle as usize] = *value;
            }
        }
    }

    /// Algorithm 5.
    fn large(&mut self, options: &Stripe) {
        let ranked = self.ranked();
        let smooth = median_across(&ranked.values, self.angles, options.large);
        let drop = (0.5 * options.drop_ratio * self.angles as f64) as usize;
        let kept = drop..self.angles - drop;
        let mean = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        let factors: Vec<f64> = (0..self.count())
            .map(|u| {
                let of = |all: &[f32]| mean(&all[self.range(u)][kept.clone()]);
                let (raw, even) = (of(&ranked.values), of(&smooth));
                let factor = raw / even;
                // A column whose neighbours are zero on the average has no scale to be brought to; nor may a column turn sign.
                if factor.is_finite() && factor > 0.0 { factor } else { 1.0 }
            })
            .collect();
        let found = spread(&stripes(&factors, options.snr), 1);
        for u in 0..self.count() {
            let range = self.range(u);
            let column = &mut self.values[range.clone()];
            if found[u] {
                for (value, &angle) in smooth[range.clone()].iter().zip(&ranked.angles[range]) {
                    column[angle as usize] = *value;
                }
            } else {
                column.iter_mut().for_each(|v| *v /= factors[u] as f32);
            }
        }
    }

    /// Algorithm 6, without the strong stripes that follow it.
    fn dead(&mut self, options: &Stripe) {
        const WINDOW: usize = 10;
        let rough: Vec<f64> = (0..self.count()).map(|u| roughness(self.column(u), WINDOW)).collect();
        let rough32: Vec<f32> = rough.iter().map(|&r| r as f32).collect();
        let even = median_across(&rough32, 1, options.large);
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

/// Sum of the absolute differences between a column and its running mean (reflected at the ends).
fn roughness(column: &[f32], window: usize) -> f64 {
    let n = column.len() as i64;
    let at = |i: i64| {
        let j = i.rem_euclid(2 * n);
        f64::from(column[if j < n { j } else { 2 * n - 1 - j } as usize])
    };
    let reach = window as i64 / 2;
    let mut sum: f64 = (-reach..window as i64 - reach).map(at).sum();
    let mut total = 0.0;
    for i in 0..n {
        total += (at(i) - sum / window as f64).abs();
        sum += at(i - reach + window as i64) - at(i - reach);
    }
    total
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

/// Running median across columns of `[column, rank]`, each rank by itself; columns reflect at the ends.
///
/// The window is kept sorted: one value leaves and one enters per step, each found by bisection.
fn median_across(values: &[f32], ranks: usize, width: usize) -> Vec<f32> {
    let columns = values.len() / ranks;
    let reach = (width / 2).min(columns - 1);
    let mut out = vec![0.0; values.len()];
    // Ranks are taken in blocks, transposed, so that columns are read and written a cache line at a time.
    const BLOCK: usize = 16;
    let mut lines = vec![0.0_f32; BLOCK * columns];
    let mut window: Vec<f32> = Vec::with_capacity(2 * reach + 2);
    for first in (0..ranks).step_by(BLOCK) {
        let block = BLOCK.min(ranks - first);
        for u in 0..columns {
            for r in 0..block {
                lines[r * columns + u] = values[u * ranks + first + r];
            }
        }
        for (r, line) in lines.chunks_exact(columns).take(block).enumerate() {
            let at = |i: i64| {
                let j = i.rem_euclid(2 * columns as i64) as usize;
                line[if j < columns { j } else { 2 * columns - 1 - j }]
            };
            window.clear();
            window.extend((-(reach as i64)..=reach as i64).map(at));
            window.sort_unstable_by(f32::total_cmp);
            for u in 0..columns {
                out[u * ranks + first + r] = window[reach];
                replace(&mut window, at(u as i64 - reach as i64), at(u as i64 + reach as i64 + 1));
            }
        }
    }
    out
}

/// Puts `new` in the place of one `old` in a sorted window, moving only what lies between the two.
#[inline]
fn replace(window: &mut [f32], old: f32, new: f32) {
    let from = window.partition_point(|v| v.total_cmp(&old).is_lt()).min(window.len() - 1);
    let to = window.partition_point(|v| v.total_cmp(&new).is_lt());
    if to > from {
        window.copy_within(from + 1..to, from);
        window[to - 1] = new;
    } else {
        window.copy_within(to..from, to + 1);
        window[to] = new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::technique::tomography::phantom;
    use crate::technique::tomography::testing::{half_turn, relative_l2};
    use ndarray::Array2;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};

    /// On a background, as the ratio of neighbours needs: with zeros beside the object any factor is possible.
    fn clean() -> Array2<f32> {
        phantom::sinogram(&phantom::ellipses(), 256, 256, &half_turn(180), 127.5) + 20.0
    }

    /// How far a column's mean error is from that of the columns around it, at worst: what makes rings.
    fn worst_ring(sinogram: &Array2<f32>, reference: &Array2<f32>) -> f64 {
        let error = (sinogram - reference).mean_axis(Axis(0)).unwrap();
        (5..251).map(|u| f64::from(error[u] - 0.5 * (error[u - 4] + error[u + 4])).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn the_running_median_is_the_median_of_the_window() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for (columns, ranks, width) in [(40, 3, 7), (9, 20, 21), (70, 1, 61), (5, 2, 3)] {
            let values: Vec<f32> = (0..columns * ranks).map(|_| (rng.random_range(0..30) as f32) - 9.0).collect();
            let got = median_across(&values, ranks, width);
            let reach = (width / 2).min(columns - 1) as i64;
            for u in 0..columns {
                for r in 0..ranks {
                    let mut window: Vec<f32> = (u as i64 - reach..=u as i64 + reach)
                        .map(|i| {
                            let j = i.rem_euclid(2 * columns as i64) as usize;
                            values[if j < columns { j } else { 2 * columns - 1 - j } * ranks + r]
                        })
                        .collect();
                    window.sort_by(f32::total_cmp);
                    assert_eq!(got[u * ranks + r], window[reach as usize], "{columns} {ranks} {width} at {u},{r}");
                }
            }
        }
    }

    #[test]
    fn a_list_gives_up_its_outliers_and_only_those() {
        let mut list: Vec<f64> = (0..100).map(|i| 1.0 + 0.01 * f64::from(i * 37 % 100) / 100.0).collect();
        assert!(!stripes(&list, 3.0).contains(&true));
        list[20] = 1.2;
        list[60] = 0.7;
        let found = stripes(&list, 3.0);
        assert_eq!((0..100).filter(|&i| found[i]).collect::<Vec<_>>(), [20, 60]);
        assert!(!stripes(&[1.0; 50], 3.0).contains(&true));
    }

    #[test]
    fn weak_strong_and_dead_stripes_all_but_vanish() {
        let reference = clean();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(9);
        let mut noisy = reference.clone();
        noisy.iter_mut().for_each(|v| *v += rng.random_range(-0.3..0.3_f32));
        // What the method does to the sinogram without stripes is not what is tested here.
        let mut undisturbed = noisy.clone();
        remove(undisturbed.view_mut(), &Stripe::default()).unwrap();
        let mut striped = noisy.clone();
        striped.column_mut(100).iter_mut().for_each(|v| *v += 4.0);
        striped.column_mut(150).iter_mut().for_each(|v| *v *= 0.8);
        striped.column_mut(80).fill(60.0);
        for mut row in striped.rows_mut() {
            row[180] = rng.random_range(0.0..200.0);
        }
        let before = worst_ring(&striped, &reference);
        remove(striped.view_mut(), &Stripe::default()).unwrap();
        let after = worst_ring(&striped, &undisturbed);
        println!("worst ring: {before:.2} before, {after:.3} after");
        assert!(before > 10.0);
        // Noise of ±0.3 leaves means uncertain by 0.013; dead columns are guessed from their neighbours.
        assert!(after < 0.02 * before, "{after}");
    }

    #[test]
    fn a_clean_sinogram_is_hardly_changed() {
        let reference = clean();
        let mut s = reference.clone();
        remove(s.view_mut(), &Stripe::default()).unwrap();
        let change = relative_l2(s.view(), reference.view());
        println!("change of a clean sinogram: {change:.3e}");
        // Large windows smooth the steep edges of objects. On a striped sinogram of 512 columns what remains is 3.6 % with
        // this and with another implementation of the same algorithms alike; the share grows as the detector narrows.
        assert!(change < 0.08, "{change}");
    }

    #[test]
    fn settings_are_checked_and_tiny_inputs_left_alone() {
        let mut tiny = Array2::<f32>::zeros((2, 3));
        remove(tiny.view_mut(), &Stripe::default()).unwrap();
        assert!(remove(tiny.view_mut(), &Stripe { large: 60, ..Stripe::default() }).is_err());
        assert!(remove(tiny.view_mut(), &Stripe { snr: f64::NAN, ..Stripe::default() }).is_err());
        assert!(remove(tiny.view_mut(), &Stripe { drop_ratio: 0.9, ..Stripe::default() }).is_err());
    }

    proptest! {
        #[test]
        fn finite_in_finite_out(
            values in prop::collection::vec(-5.0_f32..5.0, 12 * 30),
            zeroed in prop::collection::vec(0..30_usize, 0..6),
        ) {
            let mut s = Array2::from_shape_vec((12, 30), values).unwrap();
            zeroed.into_iter().for_each(|u| s.column_mut(u).fill(0.0));
            remove(s.view_mut(), &Stripe::default()).unwrap();
            prop_assert!(s.iter().all(|v| v.is_finite()));
        }
    }
}
