//! Removal of zingers: bright spots of single frames (stray x-rays or cosmic rays in the sensor).
//!
//! In each projection `[row, column]`, with `m` the median of the `w × w` pixels around a pixel (fewer at the borders and in
//! slabs of few rows; the lower median of an even number), a value with `d − m > threshold` becomes `m`. The threshold is in
//! the units of the data. A median needs sorting, but whether `d − m > threshold` only needs counting: it is so when at
//! least half of the window, the pixel included, lies below `d − threshold`; that count vectorises, and medians are taken
//! for the few that pass. NaN compares as not below: NaNs stay, and are not put into other pixels while less than half
//! of the window is NaN.

use ndarray::parallel::prelude::*;
use ndarray::{ArrayViewMut2, ArrayViewMut3, Axis};
use serde::{Deserialize, Serialize};

use super::error::{TomographyError, check};

/// Window and threshold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Zinger {
    /// Edge of the window in pixels, odd.
    pub width: usize,
    /// Excess over the median that makes a zinger, in the units of the data.
    pub threshold: f32,
}

impl Zinger {
    /// Refuses settings outside their range.
    ///
    /// # Errors
    /// An even or zero width, or a threshold that is not positive.
    pub fn check(&self) -> Result<(), TomographyError> {
        let odd = |w: f64| w % 2.0 == 1.0 && (3.0..=31.0).contains(&w);
        check("zinger window", self.width as f64, "odd, from 3 to 31", odd)?;
        check("zinger threshold", f64::from(self.threshold), "positive", |t| t > 0.0)
    }
}

/// Replaces zingers in `[angle, row, column]` in place; returns how many.
///
/// # Errors
/// As [`Zinger::check`].
pub fn remove(mut data: ArrayViewMut3<'_, f32>, options: Zinger) -> Result<u64, TomographyError> {
    options.check()?;
    Ok(data.axis_iter_mut(Axis(0)).into_par_iter().map(|frame| frame_remove(frame, options)).sum())
}

fn frame_remove(mut frame: ArrayViewMut2<'_, f32>, options: Zinger) -> u64 {
    let (rows, columns) = frame.dim();
    let reach = options.width / 2;
    let before: Vec<f32> = frame.iter().copied().collect();
    let line = |r: usize| &before[r * columns..][..columns];
    let mut counts = vec![0_u32; columns];
    let mut limits = vec![0.0_f32; columns];
    let mut window = Vec::with_capacity(options.width * options.width);
    let mut replaced = 0;
    for r in 0..rows {
        let nearby = r.saturating_sub(reach)..(r + reach + 1).min(rows);
        for (limit, v) in limits.iter_mut().zip(line(r)) {
            *limit = v - options.threshold;
        }
        counts.fill(0);
        for other in nearby.clone() {
            let other = line(other);
            for shift in 0..=2 * reach {
                // Column u looks at u + shift − reach.
                let first = reach.saturating_sub(shift).min(columns);
                let last = (columns + reach).saturating_sub(shift).min(columns);
                if first < last {
                    let seen = &other[first + shift - reach..last + shift - reach];
                    for ((count, limit), v) in counts[first..last].iter_mut().zip(&limits[first..last]).zip(seen) {
                        *count += u32::from(v < limit);
                    }
                }
            }
        }
        for u in 0..columns {
            let across = u.saturating_sub(reach)..(u + reach + 1).min(columns);
            let pixels = nearby.len() * across.len();
            // The lower median is the value with index (pixels − 1)/2; it is below the limit when more than that many are.
            if counts[u] as usize > (pixels - 1) / 2 {
                window.clear();
                nearby.clone().for_each(|other| window.extend_from_slice(&line(other)[across.clone()]));
                let (_, median, _) = window.select_nth_unstable_by((pixels - 1) / 2, f32::total_cmp);
                frame[[r, u]] = *median;
                replaced += 1;
            }
        }
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array3;
    use rand::{Rng, SeedableRng};

    /// The definition, with a sort per pixel.
    fn naive(data: &Array3<f32>, options: Zinger) -> Array3<f32> {
        let (_, rows, columns) = data.dim();
        let reach = (options.width / 2) as i64;
        let mut out = data.clone();
        for ((a, r, u), value) in out.indexed_iter_mut() {
            let mut window = Vec::new();
            for dr in -reach..=reach {
                for du in -reach..=reach {
                    let (y, x) = (r as i64 + dr, u as i64 + du);
                    if (0..rows as i64).contains(&y) && (0..columns as i64).contains(&x) {
                        window.push(data[[a, y as usize, x as usize]]);
                    }
                }
            }
            window.sort_by(f32::total_cmp);
            let median = window[(window.len() - 1) / 2];
            if *value - median > options.threshold {
                *value = median;
            }
        }
        out
    }

    #[test]
    fn equals_the_definition_on_noise_with_spots() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        for (rows, columns) in [(1, 7), (2, 9), (7, 11), (12, 5), (1, 1), (3, 2)] {
            let data = Array3::from_shape_fn((3, rows, columns), |_| {
                rng.random_range(0.0..1.0_f32) + if rng.random_bool(0.1) { 3.0 } else { 0.0 }
            });
            for width in [3, 5, 9] {
                let options = Zinger { width, threshold: 0.4 };
                let want = naive(&data, options);
                let mut got = data.clone();
                let replaced = remove(got.view_mut(), options).unwrap();
                assert_eq!(got, want, "{rows}×{columns}, width {width}");
                let changed = got.iter().zip(&data).filter(|(a, b)| a != b).count() as u64;
                assert_eq!(replaced, changed);
            }
        }
    }

    #[test]
    fn smooth_data_and_dark_spots_stay() {
        let mut data = Array3::from_shape_fn((2, 6, 6), |(_, y, x)| (y + x) as f32);
        data[[0, 3, 3]] = -50.0;
        let before = data.clone();
        assert_eq!(remove(data.view_mut(), Zinger { width: 3, threshold: 5.0 }).unwrap(), 0);
        assert_eq!(data, before);
    }

    #[test]
    fn bad_options_are_refused() {
        let mut data = Array3::zeros((1, 2, 2));
        assert!(remove(data.view_mut(), Zinger { width: 4, threshold: 1.0 }).is_err());
        assert!(remove(data.view_mut(), Zinger { width: 3, threshold: f32::NAN }).is_err());
        assert!(remove(data.view_mut(), Zinger { width: 3, threshold: 0.0 }).is_err());
    }
}
