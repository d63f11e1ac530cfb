//! Other ways to the rotation axis than Vo's ([`super::center`]): two opposite projections, the sharpness of the image, and the
//! overlap of the two halves of a whole turn.
//!
//! All take a sinogram `[angle, column]` of line integrals (finite) and answer a zero-based column, [`super::convention`].
//!
//! - [`phase`]: the projection at 180° is the mirror image of that at 0°: `p_π(u) = p₀(2c − u)`. The phase correlation of `p₀` with the
//!   flipped `p_π` (Kuglin & Hines, 1975) peaks at the shift `2c − (N − 1)`. Wants a projection near 180° from the first; what
//!   it is off by moves the result.
//! - [`entropy`]: Donath, Beckmann & Schreyer, J. Opt. Soc. Am. A 23, 1048 (2006): of images reconstructed about candidate
//!   axes, the right one's histogram has the least entropy.
//! - [`overlap`]: in a whole turn `p_{θ+π}(u) = p_θ(2c − u)`; the correlation coefficient of the two over the columns that both see is
//!   greatest, near 1, at the axis, wherever on the detector that lies.

use std::f64::consts::PI;

use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis, s};

use super::center::CenterEstimate;
use super::convention::middle;
use super::error::{TomographyError, check};
use super::gridding::{Geometry, Plan};

/// Least number of columns that both halves of a turn must share.
const LEAST_OVERLAP: usize = 8;

fn enough(sinogram: ArrayView2<'_, f32>, angles: &[f64]) -> Result<(), TomographyError> {
    let (rows, columns) = sinogram.dim();
    if rows != angles.len() {
        let (what, got) = ("sinogram [angle, column]", sinogram.shape().to_vec());
        return Err(TomographyError::Shape { what, got, expected: vec![angles.len(), columns] });
    }
    for (what, got, needed) in [("angles", rows, 2), ("detector columns", columns, 16)] {
        if got < needed {
            return Err(TomographyError::TooFew { what, got, needed });
        }
    }
    match sinogram.iter().find(|v| !v.is_finite()) {
        Some(bad) => Err(TomographyError::Value { what: "sinogram", got: f64::from(*bad), expected: "finite" }),
        None => Ok(()),
    }
}

/// The greatest of a curve sampled in equal steps, by a parabola through it and its neighbours; whether it lies at an end.
fn peak(curve: &[(f64, f64)]) -> (f64, f64, bool) {
    let at = (0..curve.len()).max_by(|&a, &b| curve[a].1.total_cmp(&curve[b].1)).unwrap_or(0);
    let (x, y) = curve.get(at).copied().unwrap_or_default();
    if at == 0 || at + 1 >= curve.len() {
        return (x, y, true);
    }
    let (below, above) = (curve[at - 1].1, curve[at + 1].1);
    let bend = below - 2.0 * y + above;
    let step = curve[at + 1].0 - x;
    (if bend < 0.0 { x + step * 0.5 * (below - above) / bend } else { x }, y, false)
}

fn estimate(
    center: f64,
    coarse: Vec<(f64, f64)>,
    fine: Vec<(f64, f64)>,
    contrast: f64,
    at_edge: bool,
) -> CenterEstimate {
    CenterEstimate { center, coarse, fine, contrast, at_edge }
}

/// Pairs of projections half a turn apart, to within half a step, with the first of each pair in the first half turn.
fn opposite(angles: &[f64]) -> Vec<(usize, usize)> {
    let span = angles.iter().fold(0.0_f64, |m, a| m.max((a - angles[0]).abs()));
    let step = span / (angles.len() - 1) as f64;
    // Angles go one way but for jitter; the nearest to θ + π is looked for where it should be.
    let direction = (angles[angles.len() - 1] - angles[0]).signum();
    let mut order: Vec<usize> = (0..angles.len()).collect();
    order.sort_by(|&a, &b| (direction * angles[a]).total_cmp(&(direction * angles[b])));
    let sorted: Vec<f64> = order.iter().map(|&i| direction * angles[i]).collect();
    let partner = |&i: &usize| {
        let wanted = direction * angles[i] + PI;
        let after = sorted.partition_point(|&a| a < wanted);
        let near = [after.checked_sub(1), Some(after)].into_iter().flatten().filter(|&k| k < sorted.len());
        let best = near.min_by(|&a, &b| (sorted[a] - wanted).abs().total_cmp(&(sorted[b] - wanted).abs()))?;
        ((sorted[best] - wanted).abs() <= 0.75 * step).then_some((i, order[best]))
    };
    order.iter().filter_map(partner).collect()
}

/// Phase correlation of the first projection and the flipped opposite one, `range` pixels about `around`.
///
/// # Errors
/// No projection within a step of half a turn from the first, or values that are not finite.
pub fn phase(
    sinogram: ArrayView2<'_, f32>,
    angles: &[f64],
    around: f64,
    range: f64,
) -> Result<CenterEstimate, TomographyError> {
    enough(sinogram, angles)?;
    check("search range", range, "at least 1 pixel", |r| r >= 1.0)?;
    let turn = |a: f64| (a - angles[0]).abs();
    let last = (0..angles.len()).min_by(|&a, &b| (turn(angles[a]) - PI).abs().total_cmp(&(turn(angles[b]) - PI).abs()));
    let last = last.unwrap_or(0);
    let span = angles.iter().fold(0.0_f64, |m, &a| m.max(turn(a)));
    let off = (turn(angles[last]) - PI).abs();
    if off > 1.5 * span / (angles.len() - 1) as f64 {
        return Err(TomographyError::Value {
            what: "angle nearest to half a turn from the first, degrees",
            got: turn(angles[last]).to_degrees(),
            expected: "within a step of 180",
        });
    }
    let columns = sinogram.ncols();
    let length = (2 * columns).next_power_of_two();
    let fft = fft_plans::forward_f64(length);
    let spectrum = |row: &mut dyn Iterator<Item = f32>| {
        let mut line = vec![fft_plans::Complex64::default(); length];
        // The ends are brought to nothing over a sixteenth: a step there would correlate with itself at no shift.
        let taper = (columns / 16).max(1);
        for (u, (cell, v)) in line.iter_mut().zip(row).enumerate() {
            let from_end = u.min(columns - 1 - u) as f64 + 0.5;
            let window = (0.5 * PI * (from_end / taper as f64).min(1.0)).sin().powi(2);
            cell.re = f64::from(v) * window;
        }
        fft.process(&mut line);
        line
    };
    let (first, opposite) = (sinogram.row(0), sinogram.row(last));
    let (p, q) = (spectrum(&mut first.iter().copied()), spectrum(&mut opposite.iter().rev().copied()));
    // q(v) = p(v + s), s = 2c − (N − 1): Q = P e^{2πi k s/L}. Frequencies beyond a quarter per pixel are mostly noise.
    let phases: Vec<_> = (1..length / 4).map(|k| (k, p[k].conj() * q[k])).filter(|(_, c)| c.norm() > 0.0).collect();
    let greatest = phases.iter().map(|(_, c)| c.norm()).fold(0.0, f64::max);
    let correlation = |c: f64| -> f64 {
        let shift = 2.0 * c - (columns as f64 - 1.0);
        let parts = phases.iter().map(|(k, cross)| {
            let (sin, cos) = (2.0 * PI * *k as f64 * shift / length as f64).sin_cos();
            // Phases only, but frequencies without signal do not vote.
            let size = cross.norm();
            (cross.re * cos + cross.im * sin) / (size + 1e-3 * greatest)
        });
        parts.sum()
    };
    let curve = |from: f64, to: f64, step: f64| -> Vec<(f64, f64)> {
        let count = ((to - from) / step).round() as usize;
        (0..=count).map(|i| from + i as f64 * step).map(|c| (c, correlation(c))).collect()
    };
    let coarse = curve(around - range, around + range, 0.25);
    let (rough, height, at_edge) = peak(&coarse);
    let fine = curve(rough - 0.5, rough + 0.5, 0.02);
    let usual = coarse.iter().map(|c| c.1.abs()).sum::<f64>() / coarse.len() as f64;
    let contrast = if usual > 0.0 { height / usual } else { 1.0 };
    let center = peak(&fine).0;
    Ok(estimate(center, coarse, fine, contrast, at_edge))
}

/// Bins of the histogram.
const BINS: usize = 256;
/// Columns of the reduced sinogram on which the coarse search is made.
const COARSE: usize = 256;

/// The axis about which the image's histogram has the least entropy, `range` pixels about `around`.
///
/// Coarse on the sinogram reduced to at most 256 columns, in steps of one of its pixels; then in half pixels over ± 2 coarse
/// pixels; then in tenths, and a parabola.
///
/// # Errors
/// As the reconstruction's, or values that are not finite.
pub fn entropy(
    sinogram: ArrayView2<'_, f32>,
    angles: &[f64],
    around: f64,
    range: f64,
) -> Result<CenterEstimate, TomographyError> {
    enough(sinogram, angles)?;
    check("search range", range, "at least 1 pixel", |r| r >= 1.0)?;
    let columns = sinogram.ncols();
    let factor = columns.div_ceil(COARSE);
    let steps = |middle: f64, reach: f64, step: f64| -> Vec<f64> {
        let count = (reach / step).ceil() as i64;
        (-count..=count).map(|i| middle + i as f64 * step).collect()
    };
    let mut coarse = Vec::new();
    let mut rough = around;
    let mut at_edge = false;
    if factor > 1 {
        let small = reduced(sinogram, factor);
        let candidates: Vec<f64> = steps(around, range, factor as f64);
        let there: Vec<f64> = candidates.iter().map(|&c| super::convention::binned(c, factor)).collect();
        let scores = scores(small.view(), angles, &there)?;
        coarse = candidates.into_iter().zip(scores).collect();
        (rough, _, at_edge) = peak(&coarse);
    }
    let (reach, step) = if factor > 1 { (2.0 * factor as f64, 0.5) } else { (range, 1.0) };
    let candidates = steps(rough, reach, step);
    let curve: Vec<_> = candidates.iter().copied().zip(scores(sinogram, angles, &candidates)?).collect();
    let (better, _, edge) = peak(&curve);
    if factor == 1 {
        (coarse, at_edge) = (curve.clone(), edge);
    }
    let candidates = steps(better, step, step / 5.0);
    let last: Vec<_> = candidates.iter().copied().zip(scores(sinogram, angles, &candidates)?).collect();
    let (center, _, _) = peak(&last);
    let mut fine = curve;
    fine.extend(last);
    fine.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Scores are entropies below the curve's greatest: the peak's height over the usual one.
    let mut levels: Vec<f64> = coarse.iter().map(|c| -c.1).collect();
    levels.sort_by(f64::total_cmp);
    let contrast = levels[levels.len() / 2] / levels[0].max(f64::MIN_POSITIVE);
    Ok(estimate(center, coarse, fine, contrast, at_edge))
}

/// Means of `factor` columns; what is left over at the end is dropped.
fn reduced(sinogram: ArrayView2<'_, f32>, factor: usize) -> Array2<f32> {
    let (rows, columns) = (sinogram.nrows(), sinogram.ncols() / factor);
    Array2::from_shape_fn((rows, columns), |(a, u)| {
        sinogram.slice(s![a, u * factor..(u + 1) * factor]).sum() / factor as f32
    })
}

/// Minus the entropy of the image about every candidate.
fn scores(sinogram: ArrayView2<'_, f32>, angles: &[f64], candidates: &[f64]) -> Result<Vec<f64>, TomographyError> {
    let columns = sinogram.ncols();
    let stack = sinogram.insert_axis(Axis(0));
    let image = |centre: f64| -> Result<Vec<f32>, TomographyError> {
        let image = Plan::new(&Geometry { centre, ..Geometry::new(columns, angles) })?.reconstruct(stack)?;
        let (mid, radius) = (middle(columns), 0.5 * columns as f64 - 1.0);
        let inside = |y: usize, x: usize| (y as f64 - mid).hypot(x as f64 - mid) <= radius;
        let pixels = image.index_axis(Axis(0), 0);
        Ok(pixels.indexed_iter().filter(|((y, x), _)| inside(*y, *x)).map(|(_, &v)| v).collect())
    };
    // One range for all, from the middle candidate: rims of wrong ones fall into the outermost bins.
    let mut sample = image(candidates[candidates.len() / 2])?;
    if sample.is_empty() {
        return Ok(vec![0.0; candidates.len()]);
    }
    let last = sample.len() - 1;
    let low = *sample.select_nth_unstable_by(last / 1000, f32::total_cmp).1;
    let high = *sample.select_nth_unstable_by(last - last / 1000, f32::total_cmp).1;
    let scale = BINS as f32 / (high - low).max(f32::MIN_POSITIVE);
    candidates
        .par_iter()
        .map(|&c| {
            let pixels = image(c)?;
            let mut counts = [0_u32; BINS];
            for v in &pixels {
                // `as` saturates below 0.
                counts[(((v - low) * scale) as usize).min(BINS - 1)] += 1;
            }
            let total = pixels.len() as f64;
            let share = |&n: &u32| f64::from(n) / total;
            Ok(counts.iter().filter(|&&n| n > 0).map(|n| share(n) * share(n).ln()).sum())
        })
        .collect()
}

/// Pairs of opposite projections looked at.
const PAIRS: usize = 64;

/// The axis of a whole turn, anywhere on the detector where both halves of the turn share at least 8 columns or a twentieth of them.
///
/// # Errors
/// Fewer than four pairs of opposite projections, or values that are not finite.
pub fn overlap(sinogram: ArrayView2<'_, f32>, angles: &[f64]) -> Result<CenterEstimate, TomographyError> {
    enough(sinogram, angles)?;
    let mut pairs = opposite(angles);
    if pairs.len() < 4 {
        return Err(TomographyError::TooFew { what: "pairs of opposite projections", got: pairs.len(), needed: 4 });
    }
    let every = pairs.len().div_ceil(PAIRS);
    pairs = pairs.into_iter().step_by(every).collect();
    let columns = sinogram.ncols();
    let least = LEAST_OVERLAP.max(columns / 20).min(columns);
    // 2c − (N − 1) = s: column u is seen again in column N − 1 − (u − s).
    let most = (columns - least) as i64;
    let coarse: Vec<(f64, f64)> = (-most..=most)
        .into_par_iter()
        .map(|s| ((s as f64 + columns as f64 - 1.0) / 2.0, alike(sinogram, &pairs, s as f64)))
        .collect();
    let (rough, _, at_edge) = peak(&coarse);
    let fine: Vec<(f64, f64)> = (-10..=10)
        .into_par_iter()
        .map(|i| {
            let c = rough + 0.05 * f64::from(i);
            (c, alike(sinogram, &pairs, 2.0 * c - (columns as f64 - 1.0)))
        })
        .collect();
    let (center, height, _) = peak(&fine);
    // For a correlation coefficient, contrast is how much of the data the axis explains: 1/(1 − r), at least 1.
    let contrast = 1.0 / (1.0 - height.clamp(0.0, 0.999_999));
    Ok(estimate(center, coarse, fine, contrast, at_edge))
}

/// Correlation coefficient of projections with their mirrored opposites, shifted by `s` columns; 0 where nothing varies.
fn alike(sinogram: ArrayView2<'_, f32>, pairs: &[(usize, usize)], s: f64) -> f64 {
    let n = sinogram.ncols() as i64;
    let (whole, part) = (s.floor() as i64, (s - s.floor()) as f32);
    // Mirrored index: N − 1 − u + s, between `m` and `m + 1`, m = N − 1 − u + whole.
    let first = whole.max(0) + i64::from(part > 0.0 && whole >= 0);
    let last = (n - 1).min(n - 1 + whole);
    let (mut count, mut sx, mut sy, mut sxx, mut syy, mut sxy) = (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
    for &(a, b) in pairs {
        let (p, q) = (sinogram.row(a), sinogram.row(b));
        let (mut x1, mut y1, mut x2, mut y2, mut xy) = (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
        for u in first..=last {
            let m = n - 1 - u + whole;
            let x = f64::from(p[u as usize]);
            let low = q[m as usize];
            let y = if part > 0.0 { low + part * (q[(m + 1).min(n - 1) as usize] - low) } else { low };
            let y = f64::from(y);
            x1 += x;
            y1 += y;
            x2 += x * x;
            y2 += y * y;
            xy += x * y;
        }
        count += (last - first + 1).max(0) as f64;
        (sx, sy, sxx, syy, sxy) = (sx + x1, sy + y1, sxx + x2, syy + y2, sxy + xy);
    }
    if count < 2.0 {
        return 0.0;
    }
    let (vx, vy) = (sxx - sx * sx / count, syy - sy * sy / count);
    let covariance = sxy - sx * sy / count;
    // Of air against air rounding must not make a correlation.
    let least = 1e-9 * count * (sxx / count + syy / count).max(f64::MIN_POSITIVE);
    if vx > least && vy > least { covariance / (vx * vy).sqrt() } else { 0.0 }
}

#[cfg(test)]
#[path = "axis_tests.rs"]
mod tests;
