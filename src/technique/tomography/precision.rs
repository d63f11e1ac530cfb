//! When half precision is enough: the rounding of transmission beside the noise it has anyway.
//!
//! **Rounding.** A transmission `T` kept as IEEE binary16 (11 significant bits) is off by at most `2⁻¹¹ T` (from `2⁻¹⁴` on; below
//! by at most `2⁻²⁵`). To first order `−ln T` is off by the same relative error: at most [`ROUNDING`]` = 2⁻¹¹ = 4.9·10⁻⁴` whatever
//! `T` is.
//!
//! **Noise.** Of `N` quanta that a pixel of the flat field counts, `N T` arrive behind the sample; their number has the standard
//! deviation `√(N T)`, so `−ln T` has `1/√(N T) ≥ 1/√N`. That is what error propagation gives for `−ln` of a Poisson number
//! (mean over standard deviation, `d(ln n) = dn/n`).
//!
//! **Together.** Where the noise is larger than a step of the rounding, the rounding's errors are uniform and independent of
//! the signal and of each other (Widrow & Kollár, *Quantization Noise*, 2008, ch. 4–5: from one step of standard deviation on,
//! correlations are below 10⁻⁸), so they add to the image as further white noise, through the same linear filter. With
//! `2⁻¹¹ √N ≤ ` [`SHARE`]` = 1/10`, which is `N ≤ 41 943`, the standard deviation of the image grows by at most `√(1 + 1/100) − 1 <
//! 0.5 %` (with the errors' true spread, `2⁻¹¹/√3` at most, by 0.17 %), and the noise is at least five steps.
//!
//! **What counts as a quantum** the flats say: the difference of two of them, frame by frame scaled to the same mean, has the
//! variance `2 K m` in a pixel of mean `m` counts, with `K` counts to a quantum (Janesick, *Photon Transfer*, 2007, eq. 5.1).
//! Taken is the difference of neighbouring columns, which a beam that wanders hardly changes, and the median over pixels,
//! which bad ones do not change; a scintillator's blur makes neighbours alike and `K` smaller, to the safe side.
//!
//! Phase retrieval lowers the noise and not the rounding: with it half precision is never chosen by itself.

use ndarray::{Array2, ArrayView2};

/// Largest relative error of half precision, `2⁻¹¹`.
pub const ROUNDING: f64 = 1.0 / 2048.0;
/// Rounding may be this share of the noise.
pub const SHARE: f64 = 0.1;
/// Share of the pixels of the flat field that may be brighter than what counts as bright.
const BRIGHTER: f64 = 1e-3;
/// Fewer pixels tell nothing about noise.
const PIXELS_LEAST: usize = 64;
/// Median of the square of a standard normal number.
const MEDIAN_OF_SQUARE: f64 = 0.454_936;

/// Is the rounding of half precision below a tenth of the noise of so many quanta?
#[must_use]
pub fn half_is_enough(quanta: f64) -> bool {
    quanta > 0.0 && ROUNDING * quanta.sqrt() <= SHARE
}

fn mean_of(frame: ArrayView2<'_, f32>, dark: ArrayView2<'_, f32>) -> f64 {
    let (mut sum, mut count) = (0.0, 0_usize);
    for (v, d) in frame.iter().zip(dark) {
        if (v - d).is_finite() {
            sum += f64::from(v - d);
            count += 1;
        }
    }
    sum / count.max(1) as f64
}

/// Counts to a quantum, from two flats and the mean dark, all `[row, column]`; `None` when too few pixels tell.
#[must_use]
pub fn counts_per_quantum(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, dark: ArrayView2<'_, f32>) -> Option<f64> {
    let scale = mean_of(a, dark) / mean_of(b, dark);
    if !(scale.is_finite() && scale > 0.0) {
        return None;
    }
    let mut ratios = Vec::new();
    for ((a, b), d) in a.outer_iter().zip(b.outer_iter()).zip(dark.outer_iter()) {
        let pixels: Vec<(f64, f64)> = a
            .iter()
            .zip(b)
            .zip(d)
            .map(|((a, b), d)| {
                let (a, b) = (f64::from(a - d), f64::from(b - d) * scale);
                (a - b, (a + b) / 2.0)
            })
            .collect();
        for pair in pixels.chunks_exact(2) {
            if let [(da, ma), (db, mb)] = pair
                && *ma > 0.0
                && *mb > 0.0
            {
                ratios.push((da - db).powi(2) / (2.0 * (ma + mb)));
            }
        }
    }
    ratios.retain(|r| r.is_finite());
    if ratios.len() < PIXELS_LEAST {
        return None;
    }
    let middle = ratios.len() / 2;
    Some(*ratios.select_nth_unstable_by(middle, f64::total_cmp).1 / MEDIAN_OF_SQUARE)
}

/// Counts of the brightest pixels of a flat field, `BRIGHTER` of them aside.
#[must_use]
pub fn bright(flat: ArrayView2<'_, f32>, dark: ArrayView2<'_, f32>) -> f64 {
    let mut counts: Vec<f32> = flat.iter().zip(dark).map(|(f, d)| f - d).filter(|v| v.is_finite()).collect();
    let Some(last) = counts.len().checked_sub(1) else { return 0.0 };
    let at = last - (BRIGHTER * last as f64) as usize;
    f64::from(*counts.select_nth_unstable_by(at, f32::total_cmp).1)
}

/// Quanta in the brightest pixels of a group of flats: `first` two frames of it, its `mean`, and the mean dark. Without two
/// frames a count is taken for a quantum.
#[must_use]
pub fn quanta(first: &[Array2<f32>], mean: ArrayView2<'_, f32>, dark: ArrayView2<'_, f32>) -> f64 {
    let per_quantum = match first {
        [a, b, ..] => counts_per_quantum(a.view(), b.view(), dark),
        _ => None,
    };
    // Frames without noise have as many quanta as one likes.
    bright(mean, dark) / per_quantum.unwrap_or(1.0).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
    use rand::{Rng, SeedableRng};
    use rand_distr::{Distribution, Poisson, StandardNormal};

    #[test]
    fn rounding_is_what_the_bound_says() {
        let mut worst = 0.0_f64;
        let mut t = 6.2e-5_f32;
        while t < 60_000.0 {
            let kept = f16::from_f32(t).to_f32();
            worst = worst.max(f64::from((kept - t).abs() / t));
            let error = (f64::from(kept).ln() - f64::from(t).ln()).abs();
            assert!(error <= 1.0003 * ROUNDING, "{t}: {error}");
            t *= 1.000_37;
        }
        assert!(worst > 0.99 * ROUNDING && worst <= ROUNDING, "{worst}");
        assert!(half_is_enough(41_943.0) && !half_is_enough(41_944.0));
        assert!(!half_is_enough(0.0) && !half_is_enough(f64::NAN) && !half_is_enough(f64::INFINITY));
    }

    #[test]
    fn flats_say_what_a_quantum_is() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let shape = (40, 200);
        let dark = Array2::from_elem(shape, 95.0_f32);
        for (per_quantum, quanta_mean) in [(1.0, 900.0), (3.5, 5000.0), (0.4, 20_000.0)] {
            // A beam that is brighter in the middle, and that fades and wanders between the two frames.
            let mut frame = |fade: f64, shift: f64| {
                Array2::from_shape_fn(shape, |(_, x)| {
                    let beam = quanta_mean * fade * (-((x as f64 + shift - 100.0) / 90.0).powi(2)).exp();
                    (95.0 + per_quantum * Poisson::new(beam).unwrap().sample(&mut rng)).round() as f32
                })
            };
            let (mut a, b) = (frame(1.0, 0.0), frame(0.97, 0.3));
            a[[3, 7]] = 60_000.0;
            a[[9, 9]] = f32::NAN;
            let got = counts_per_quantum(a.view(), b.view(), dark.view()).unwrap();
            // A median of 4000 pairs is good to 3 %; digitisation adds a twelfth of a count.
            assert!((got / per_quantum - 1.0).abs() < 0.1, "{per_quantum}: {got}");
            let n = quanta(&[a, b.clone()], b.view(), dark.view());
            assert!((n / quanta_mean - 1.0).abs() < 0.2, "{quanta_mean}: {n}");
        }
        let even = Array2::from_elem(shape, 1000.0_f32);
        assert!(!half_is_enough(quanta(&[even.clone(), even.clone()], even.view(), dark.view())));
        assert_eq!(quanta(&[], even.view(), dark.view()), 905.0);
        assert_eq!(quanta(&[], Array2::from_elem(shape, f32::NAN).view(), dark.view()), 0.0);
    }

    /// The argument in numbers: at the largest count for which half precision is chosen, what the rounding adds to filtered
    /// noise is as predicted, and a hundredth of its variance at most.
    #[test]
    fn rounding_adds_to_the_noise_of_a_filtered_row_as_predicted() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let quanta = 41_943.0_f64;
        let (columns, rows) = (512, 200);
        let ramp: Vec<f64> = (0..columns)
            .map(|n| match n {
                0 => 0.25,
                n if n % 2 == 0 => 0.0,
                n => -1.0 / (std::f64::consts::PI * n as f64).powi(2),
            })
            .collect();
        let (mut noise, mut rounding) = (0.0, 0.0);
        for row in 0..rows {
            // Transmission between 0.05 and 1, smooth, another one in every row.
            let level = |u: usize| 0.05 + 0.95 * (0.5 + 0.5 * (u as f64 / 80.0 + row as f64 * 0.37).sin());
            let measured: Vec<(f64, f64)> = (0..columns)
                .map(|u| {
                    let t = level(u);
                    let counted = t + (t / quanta).sqrt() * rng.sample::<f64, _>(StandardNormal);
                    let kept = f64::from(f16::from_f32(counted as f32).to_f32());
                    (t.ln() - counted.ln(), f64::from(counted as f32).ln() - kept.ln())
                })
                .collect();
            for at in 100..columns - 100 {
                let filtered = |pick: fn(&(f64, f64)) -> f64| -> f64 {
                    measured.iter().enumerate().map(|(u, m)| ramp[u.abs_diff(at)] * pick(m)).sum()
                };
                noise += filtered(|m| m.0).powi(2);
                rounding += filtered(|m| m.1).powi(2);
            }
        }
        let ratio = (rounding / noise).sqrt();
        println!("rounding over noise, filtered: {ratio:.4}");
        // Uniform errors of at most 2⁻¹¹ relative: at most SHARE/√3 where the beam is brightest, less where it is not.
        assert!(ratio < SHARE / 3_f64.sqrt() && ratio > SHARE / 8.0, "{ratio}");
    }
}
