//! Counts to transmission to line integrals; no NaN or infinity leaves this step.
//!
//! `T = (I − D)/(F − D)` with `D` the mean dark and `F` the flat, linear in the projection's index between the flats taken
//! before and after it (or at any set of indices), then `p = −ln max(T, floor)`. Axes: data `[angle, row, column]`, darks and
//! flats `[row, column]`, units of data, darks and flats equal (counts), `T` and `p` dimensionless.
//!
//! NaN policy: where the data, dark or flat is not finite or the flat does not exceed the dark, there is no measurement;
//! the transmission is interpolated linearly between the nearest measured columns of the same row (held constant beyond
//! the outermost, 1 in a row with none). Such pixels and those raised to the floor are counted.

use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayView3, ArrayViewMut1, ArrayViewMut3, Axis};
use serde::Serialize;

use super::error::{TomographyError, check};

/// A mean flat field and the projection index at which it was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Flat {
    /// Index among the projections: 0 before the first, the number of projections less one after the last.
    pub at: f64,
    /// Mean frame `[row, column]`.
    pub mean: Array2<f32>,
}

/// How many pixels had to be repaired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Repairs {
    /// Pixels without a measurement, interpolated along their row.
    pub interpolated: u64,
    /// Pixels whose transmission was raised to the floor.
    pub floored: u64,
}

impl std::ops::Add for Repairs {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { interpolated: self.interpolated + other.interpolated, floored: self.floored + other.floored }
    }
}

/// Mean frame `[row, column]` of a stack `[frame, row, column]`, summed in f64; frames' non-finite values are left out of
/// their pixel's mean, and a pixel with none is NaN (to be repaired by [`transmission`]).
#[must_use]
pub fn mean_frame(frames: ArrayView3<'_, f32>) -> Array2<f32> {
    let (_, rows, columns) = frames.dim();
    let mut mean = Array2::zeros((rows, columns));
    mean.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(r, mut out)| {
        let mut sums = vec![(0.0_f64, 0_u32); columns];
        for frame in frames.outer_iter() {
            for (sum, &v) in sums.iter_mut().zip(frame.row(r)) {
                if v.is_finite() {
                    sum.0 += f64::from(v);
                    sum.1 += 1;
                }
            }
        }
        for (value, (sum, n)) in out.iter_mut().zip(sums) {
            *value = if n == 0 { f32::NAN } else { (sum / f64::from(n)) as f32 };
        }
    });
    mean
}

/// Turns counts `[angle, row, column]` into transmission, in place.
///
/// `flats` are ordered by `at`; before the first and after the last the nearest is used as it is. `first` is the projection
/// index of `data`'s first angle (non-zero when the data are a part of the scan).
///
/// # Errors
/// No flat, flats out of order, or frames of another shape than the data's.
pub fn transmission(
    mut data: ArrayViewMut3<'_, f32>,
    dark: ArrayView2<'_, f32>,
    flats: &[Flat],
    first: usize,
) -> Result<Repairs, TomographyError> {
    let (_, rows, columns) = data.dim();
    check_frames((rows, columns), dark, flats)?;
    let repairs = data
        .axis_iter_mut(Axis(0))
        .into_par_iter()
        .enumerate()
        .map(|(angle, mut frame)| {
            let (low, high, part) = bracket(flats, (first + angle) as f64);
            let (low, high) = (&flats[low].mean, &flats[high].mean);
            let mut repairs = Repairs::default();
            for (r, mut row) in frame.outer_iter_mut().enumerate() {
                let mut bad = 0;
                for ((value, &dark), (&low, &high)) in
                    row.iter_mut().zip(dark.row(r)).zip(low.row(r).iter().zip(high.row(r)))
                {
                    let beam = low + part * (high - low) - dark;
                    let t = (*value - dark) / beam;
                    let measured = beam > 0.0 && t.is_finite();
                    *value = if measured { t } else { f32::NAN };
                    bad += u64::from(!measured);
                }
                if bad > 0 {
                    interpolate(row);
                    repairs.interpolated += bad;
                }
            }
            repairs
        })
        .reduce(Repairs::default, |a, b| a + b);
    Ok(repairs)
}

/// Refuses darks and flats that do not suit data of this shape, as [`transmission`] does.
///
/// # Errors
/// No flat, flats out of order, or frames of another shape.
pub(super) fn check_frames(
    (rows, columns): (usize, usize),
    dark: ArrayView2<'_, f32>,
    flats: &[Flat],
) -> Result<(), TomographyError> {
    if flats.is_empty() {
        return Err(TomographyError::TooFew { what: "flat fields", got: 0, needed: 1 });
    }
    for (what, shape) in std::iter::once(("dark [row, column]", dark.shape()))
        .chain(flats.iter().map(|f| ("flat [row, column]", f.mean.shape())))
    {
        if shape != [rows, columns] {
            return Err(TomographyError::Shape { what, got: shape.to_vec(), expected: vec![rows, columns] });
        }
    }
    for flat in flats {
        check("index of a flat field", flat.at, "a finite number", |_| true)?;
    }
    for pair in flats.windows(2) {
        check("index of a flat field", pair[1].at, "greater than the one before", |at| at > pair[0].at)?;
    }
    Ok(())
}

/// Which flats lie on either side of projection `index`, and how far it is between them.
pub(super) fn bracket(flats: &[Flat], index: f64) -> (usize, usize, f32) {
    let after = flats.partition_point(|f| f.at <= index);
    let (low, high) = (after.saturating_sub(1), after.min(flats.len() - 1));
    let span = flats[high].at - flats[low].at;
    let part = if span > 0.0 { ((index - flats[low].at) / span) as f32 } else { 0.0 };
    (low, high, part)
}

/// Replaces the NaN of a row by straight lines between their neighbours.
fn interpolate(mut row: ArrayViewMut1<'_, f32>) {
    let good: Vec<usize> = (0..row.len()).filter(|&u| !row[u].is_nan()).collect();
    let (Some(&first), Some(&last)) = (good.first(), good.last()) else {
        row.fill(1.0);
        return;
    };
    for u in 0..first {
        row[u] = row[first];
    }
    for u in last + 1..row.len() {
        row[u] = row[last];
    }
    for pair in good.windows(2) {
        let (a, b) = (row[pair[0]], row[pair[1]]);
        let width = (pair[1] - pair[0]) as f32;
        for u in pair[0] + 1..pair[1] {
            row[u] = a + (b - a) * (u - pair[0]) as f32 / width;
        }
    }
}

/// Turns transmission into line integrals `−ln max(T, floor)`, in place; returns how many were raised to the floor.
///
/// A NaN counts as below the floor, `+∞` becomes `−ln f32::MAX`: the result is always finite.
///
/// # Errors
/// A floor that is not a positive normal number.
pub fn minus_log(mut data: ArrayViewMut3<'_, f32>, floor: f32) -> Result<u64, TomographyError> {
    check("transmission floor", f64::from(floor), "between the least normal f32 and 1", |f| {
        f >= f64::from(f32::MIN_POSITIVE) && f < 1.0
    })?;
    Ok(data
        .axis_iter_mut(Axis(0))
        .into_par_iter()
        .map(|mut frame| {
            let mut raised = 0;
            for mut row in frame.outer_iter_mut() {
                raised += match row.as_slice_mut() {
                    Some(values) => minus_log_line(values, floor),
                    None => row.iter_mut().map(|v| minus_log_line(std::slice::from_mut(v), floor)).sum(),
                };
            }
            raised
        })
        .sum())
}

/// [`minus_log`] of one line.
fn minus_log_line(values: &mut [f32], floor: f32) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn wide(values: &mut [f32], floor: f32) -> u64 {
            minus_log_body(values, floor)
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: both features were found on this CPU.
            return unsafe { wide(values, floor) };
        }
    }
    minus_log_body(values, floor)
}

#[inline(always)]
fn minus_log_body(values: &mut [f32], floor: f32) -> u64 {
    let mut raised = 0_u32;
    for value in values {
        let enough = *value >= floor;
        raised += u32::from(!enough);
        *value = -ln(if enough { value.min(f32::MAX) } else { floor });
    }
    u64::from(raised)
}

/// Natural logarithm of a positive normal number, within 2 units in the last place; written out so that it vectorises.
///
/// `v = 2^e m` with `m` from √½ to √2, `ln m = 2 artanh((m − 1)/(m + 1))`, whose series has converged after five terms.
#[inline(always)]
fn ln(v: f32) -> f32 {
    /// Bits of √½: taking them off first makes the exponent field change where the mantissa passes √2.
    const HALF_ROOT: u32 = 0x3f35_04f3;
    let shifted = v.to_bits().wrapping_sub(HALF_ROOT);
    let e = (shifted as i32) >> 23;
    let m = f32::from_bits((shifted & 0x007f_ffff) + HALF_ROOT);
    let z = (m - 1.0) / (m + 1.0);
    let w = z * z;
    let series = w * (2.0 / 3.0 + w * (2.0 / 5.0 + w * (2.0 / 7.0 + w * (2.0 / 9.0))));
    (2.0 * z + z * series) + e as f32 * std::f32::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array3, array};

    fn flats(values: &[(f64, f32)], columns: usize) -> Vec<Flat> {
        values.iter().map(|&(at, v)| Flat { at, mean: Array2::from_elem((1, columns), v) }).collect()
    }

    #[test]
    fn flats_are_interpolated_by_index_and_held_at_the_ends() {
        let mut data = Array3::from_elem((5, 1, 2), 60.0_f32);
        let dark = Array2::from_elem((1, 2), 10.0);
        // Flats at 1 and 3: 110 and 210, so F − D is 100, 100, 150, 200, 200.
        let repairs = transmission(data.view_mut(), dark.view(), &flats(&[(1.0, 110.0), (3.0, 210.0)], 2), 0).unwrap();
        assert_eq!(repairs, Repairs::default());
        for (angle, want) in [0.5, 0.5, 50.0 / 150.0, 0.25, 0.25].into_iter().enumerate() {
            assert!((data[[angle, 0, 1]] - want).abs() < 1e-6, "{angle}");
        }
    }

    #[test]
    fn a_part_of_a_scan_uses_its_own_indices() {
        let mut data = Array3::from_elem((1, 1, 2), 60.0_f32);
        let dark = Array2::from_elem((1, 2), 10.0);
        transmission(data.view_mut(), dark.view(), &flats(&[(0.0, 110.0), (4.0, 210.0)], 2), 2).unwrap();
        assert!((data[[0, 0, 0]] - 50.0 / 150.0).abs() < 1e-6);
    }

    #[test]
    fn pixels_without_a_measurement_are_interpolated_and_counted() {
        let mut data = array![[[f32::NAN, 20.0, 0.0, f32::INFINITY, 50.0, 0.0]]];
        let dark = array![[0.0_f32, 0.0, 0.0, 0.0, 0.0, 0.0]];
        let flat = vec![Flat { at: 0.0, mean: array![[100.0_f32, 100.0, 0.0, 100.0, 100.0, -1.0]] }];
        let repairs = transmission(data.view_mut(), dark.view(), &flat, 0).unwrap();
        assert_eq!(repairs.interpolated, 4);
        let want = [0.2, 0.2, 0.3, 0.4, 0.5, 0.5];
        for (got, want) in data.iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{data}");
        }
        let mut none = Array3::from_elem((1, 1, 3), f32::NAN);
        let flat = flats(&[(0.0, 1.0)], 3);
        assert_eq!(transmission(none.view_mut(), Array2::zeros((1, 3)).view(), &flat, 0).unwrap().interpolated, 3);
        assert!(none.iter().all(|&v| v == 1.0));
    }

    #[test]
    fn the_logarithm_is_finite_for_every_float() {
        let values = [0.5, 0.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, 1.0, 2.0];
        let mut data = Array3::from_shape_vec((values.len(), 1, 1), values.to_vec()).unwrap();
        assert_eq!(minus_log(data.view_mut(), 1e-6).unwrap(), 5);
        assert!(data.iter().all(|v| v.is_finite()), "{data}");
        assert!((data[[0, 0, 0]] - std::f32::consts::LN_2).abs() < 1e-6);
        assert!((data[[1, 0, 0]] - 13.815_51).abs() < 1e-4);
        assert_eq!(data[[7, 0, 0]], 0.0);
        assert!(minus_log(data.view_mut(), 0.0).is_err());
        assert!(minus_log(data.view_mut(), f32::NAN).is_err());
    }

    #[test]
    fn our_logarithm_is_that_of_the_library() {
        let mut bits = f32::MIN_POSITIVE.to_bits();
        while bits <= f32::MAX.to_bits() {
            let v = f32::from_bits(bits);
            let want = f64::from(v).ln();
            let error = (f64::from(ln(v)) - want).abs();
            assert!(error <= 2.0 * f64::from(f32::EPSILON) * want.abs(), "{v}: {error} of {want}");
            bits += 997;
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn wrong_shapes_and_orders_are_refused() {
        let mut data = Array3::zeros((2, 1, 3));
        let dark = Array2::zeros((1, 3));
        assert!(matches!(transmission(data.view_mut(), dark.view(), &[], 0), Err(TomographyError::TooFew { .. })));
        let narrow = flats(&[(0.0, 1.0)], 2);
        assert!(matches!(transmission(data.view_mut(), dark.view(), &narrow, 0), Err(TomographyError::Shape { .. })));
        let back = flats(&[(1.0, 1.0), (0.0, 1.0)], 3);
        assert!(matches!(transmission(data.view_mut(), dark.view(), &back, 0), Err(TomographyError::Value { .. })));
    }

    #[test]
    fn means_skip_what_is_not_a_number() {
        let frames = array![[[1.0_f32, f32::NAN, f32::NAN]], [[3.0, 5.0, f32::NAN]]];
        let mean = mean_frame(frames.view());
        assert_eq!((mean[[0, 0]], mean[[0, 1]]), (2.0, 5.0));
        assert!(mean[[0, 2]].is_nan());
    }
}
