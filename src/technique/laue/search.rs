//! Where on the mask a measurement lies: least squared difference over every offset, as correlation.
//!
//! For a measurement `d_j`, `j < L`, and a template `s_i` (transmission of the mask with the expected footprint) the squared
//! difference at offset `m` with the best gain `g ≥ 0` and background is
//!
//! `R(m) = Σ d̄² − max(0, Σ_j d̄_j s_{m+j})² / Σ_j (s_{m+j} − s̄_m)²`, `d̄ = d − mean d`,
//!
//! so all that varies with `d` and `m` together is one correlation. Work per measurement with `N = 6961` samples and `L = 400`,
//! multiplications and additions: as a matrix product over offsets `2·L·(N − L)` = 5.2 M; by Fourier transforms of length
//! `F = 7200` (transform, product with the stored spectrum, back) `2·2.5·F·log₂F + 3·F` = 0.48 M, counted as for complex halves.
//! Transforms are used. Sums over windows of `s` come from running sums, made once a template.
//!
//! A template depends on the pixel only through the blur of oblique incidence and the footprint's width; both are rounded to
//! small steps, so that pixels share templates.

use fft_plans::{Complex32, ComplexToReal, RealToComplex};
use std::sync::Arc;

/// Transforms of one length.
pub struct Transforms {
    length: usize,
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
}

impl Transforms {
    /// For templates of so many samples.
    #[must_use]
    pub fn new(samples: usize) -> Self {
        let length = smooth(samples);
        Self { length, forward: fft_plans::real_forward_f32(length), inverse: fft_plans::real_inverse_f32(length) }
    }

    /// Samples of a transform.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }
}

/// The next even number without prime factors above 5.
fn smooth(least: usize) -> usize {
    (least.max(2)..)
        .find(|&n| {
            let mut rest = n;
            for p in [2, 3, 5] {
                while rest % p == 0 {
                    rest /= p;
                }
            }
            rest == 1 && n % 2 == 0
        })
        .unwrap_or(least)
}

/// What every pixel of a kind is compared with.
pub struct Template {
    /// Share of gold at every sample, blurred.
    pub cover: Vec<f32>,
    /// Transmission with the expected footprint.
    pub expected: Vec<f32>,
    /// Width of the expected footprint, samples.
    pub width: f64,
    spectrum: Vec<Complex32>,
    sums: Vec<[f64; 2]>,
}

impl Template {
    /// From the blurred cover and the width of the expected footprint, samples.
    #[must_use]
    pub fn new(cover: &[f64], width: f64, transforms: &Transforms) -> Self {
        let open: Vec<f64> = cover.iter().map(|c| 1.0 - c).collect();
        let expected: Vec<f32> = boxed(&open, width).into_iter().map(|v| v as f32).collect();
        let mut sums = vec![[0.0; 2]; expected.len() + 1];
        for (i, &s) in expected.iter().enumerate() {
            let s = f64::from(s);
            sums[i + 1] = [sums[i][0] + s, sums[i][1] + s * s];
        }
        let mut padded = vec![0.0f32; transforms.length];
        padded[..expected.len()].copy_from_slice(&expected);
        let mut spectrum = transforms.forward.make_output_vec();
        // Lengths fit: both were made for this transform.
        let _ = transforms.forward.process(&mut padded, &mut spectrum);
        Self { cover: cover.iter().map(|&c| c as f32).collect(), expected, width, spectrum, sums }
    }

    /// Samples.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.expected.len()
    }

    /// Running sums of `expected` and of its squares: what lies before each sample, and in all.
    #[must_use]
    pub fn sums(&self) -> &[[f64; 2]] {
        &self.sums
    }

    /// Sum and sum of squares of `expected[from..from + count]`.
    fn window(&self, from: usize, count: usize) -> (f64, f64) {
        let (a, b) = (self.sums[from], self.sums[from + count]);
        (b[0] - a[0], b[1] - a[1])
    }
}

/// The average of `values` over a box of `width` samples; beyond the ends the end values go on.
#[must_use]
pub fn boxed(values: &[f64], width: f64) -> Vec<f64> {
    if width <= 1.0 || values.is_empty() {
        return values.to_vec();
    }
    let mut running = vec![0.0; values.len() + 1];
    for (i, v) in values.iter().enumerate() {
        running[i + 1] = running[i] + v;
    }
    let n = values.len() as f64;
    let (first, last) = (values[0], values[values.len() - 1]);
    // Integral of the staircase from 0 to x; cell i covers i..i + 1.
    let integral = |x: f64| {
        if x <= 0.0 {
            return x * first;
        }
        if x >= n {
            return running[values.len()] + (x - n) * last;
        }
        let i = x as usize;
        running[i] + (x - i as f64) * values[i]
    };
    (0..values.len())
        .map(|i| {
            let middle = i as f64 + 0.5;
            (integral(middle + width / 2.0) - integral(middle - width / 2.0)) / width
        })
        .collect()
}

/// Scratch of a search.
pub struct Scratch {
    padded: Vec<f32>,
    spectrum: Vec<Complex32>,
    forward: Vec<Complex32>,
    inverse: Vec<Complex32>,
}

impl Scratch {
    /// For these transforms.
    #[must_use]
    pub fn new(transforms: &Transforms) -> Self {
        Self {
            padded: vec![0.0; transforms.length],
            spectrum: transforms.forward.make_output_vec(),
            forward: transforms.forward.make_scratch_vec(),
            inverse: transforms.inverse.make_scratch_vec(),
        }
    }
}

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// The best offset.
    pub offset: usize,
    /// The same between samples, from a parabola through the neighbours.
    pub refined: f64,
    /// Squared difference there.
    pub residual: f64,
    /// Squared difference with no mask at all: `Σ d̄²`.
    pub flat: f64,
    /// The least squared difference at offsets away from the best one.
    pub rival: f64,
    /// Gain at the best offset: counts from closed to open.
    pub gain: f64,
    /// Counts at closed gaps.
    pub background: f64,
}

/// Compares `data` with a template at every offset in `offsets`; rivals are at least `apart` samples away.
///
/// Nothing, when the template has no contrast anywhere, or the data none.
pub fn search(
    transforms: &Transforms,
    template: &Template,
    data: &[f32],
    offsets: std::ops::Range<usize>,
    apart: usize,
    scratch: &mut Scratch,
) -> Option<Found> {
    let l = data.len();
    let last = (template.samples() + 1).checked_sub(l)?;
    let offsets = offsets.start..offsets.end.min(last);
    let mean = data.iter().map(|&d| f64::from(d)).sum::<f64>() / l as f64;
    scratch.padded.fill(0.0);
    let mut flat = 0.0;
    for (p, &d) in scratch.padded.iter_mut().zip(data) {
        let centred = f64::from(d) - mean;
        *p = centred as f32;
        flat += centred * centred;
    }
    let ok = transforms.forward.process_with_scratch(&mut scratch.padded, &mut scratch.spectrum, &mut scratch.forward);
    for (d, t) in scratch.spectrum.iter_mut().zip(&template.spectrum) {
        *d = t * d.conj();
    }
    // A real signal has real ends of its spectrum; rounding must not say otherwise.
    if let Some(first) = scratch.spectrum.first_mut() {
        first.im = 0.0;
    }
    if let Some(end) = scratch.spectrum.last_mut() {
        end.im = 0.0;
    }
    let ok = ok.is_ok()
        && transforms
            .inverse
            .process_with_scratch(&mut scratch.spectrum, &mut scratch.padded, &mut scratch.inverse)
            .is_ok();
    if !ok || flat <= 0.0 {
        return None;
    }
    let unscale = 1.0 / transforms.length as f64;
    let fit = |m: usize| {
        let (sum, squares) = template.window(m, l);
        let variance = squares - sum * sum / l as f64;
        // Less than this is rounding of f32 samples between 0 and 1: the mask is featureless here.
        if variance < 1e-6 * l as f64 {
            return None;
        }
        let c = f64::from(scratch.padded[m]) * unscale;
        Some((flat - c.max(0.0) * c.max(0.0) / variance, c / variance, sum))
    };
    let residual = |m: usize| fit(m).map_or(flat, |f| f.0);
    let mut best: Option<(usize, f64)> = None;
    // `padded` becomes the list of residuals, so that the second pass is cheap.
    let mut all: Vec<f64> = Vec::with_capacity(offsets.len());
    for m in offsets.clone() {
        let r = residual(m);
        all.push(r);
        if best.is_none_or(|b| r < b.1) {
            best = Some((m, r));
        }
    }
    let (offset, least) = best?;
    let (_, gain, sum) = fit(offset)?;
    let rival =
        offsets.clone().zip(&all).filter(|(m, _)| m.abs_diff(offset) >= apart).map(|(_, &r)| r).fold(flat, f64::min);
    let mut refined = offset as f64;
    if offset > offsets.start && offset + 1 < offsets.end {
        let (a, c) = (residual(offset - 1), residual(offset + 1));
        let bend = a - 2.0 * least + c;
        if bend > 0.0 {
            refined += (0.5 * (a - c) / bend).clamp(-0.5, 0.5);
        }
    }
    let background = mean - gain * sum / l as f64;
    Some(Found { offset, refined, residual: least.max(0.0), flat, rival: rival.max(0.0), gain, background })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::technique::laue::mask::{Mask, tests::spec};
    use crate::technique::laue::reference::residuals;
    use rand::{Rng, SeedableRng};

    #[test]
    fn lengths_are_smooth_and_even() {
        for (n, want) in [(6961, 7200), (6960, 7200), (1, 2), (9, 10), (27, 30), (4096, 4096)] {
            assert_eq!(smooth(n), want, "{n}");
        }
    }

    #[test]
    fn a_box_averages() {
        assert_eq!(boxed(&[1.0, 2.0, 4.0], 1.0), [1.0, 2.0, 4.0]);
        let b = boxed(&[0.0, 0.0, 3.0, 0.0, 0.0], 3.0);
        assert!(b.iter().zip([0.0, 1.0, 1.0, 1.0, 0.0]).all(|(a, w)| (a - w).abs() < 1e-12), "{b:?}");
        let b = boxed(&[0.0, 0.0, 4.0, 0.0, 0.0], 2.0);
        assert!(b.iter().zip([0.0, 1.0, 2.0, 1.0, 0.0]).all(|(a, w)| (a - w).abs() < 1e-12), "{b:?}");
        assert_eq!(boxed(&[2.0; 4], 9.0), [2.0; 4]);
    }

    #[test]
    fn transforms_find_what_the_formula_finds() {
        let mask = Mask::new(&spec());
        let transforms = Transforms::new(mask.samples());
        let template = Template::new(&mask.profile(3.1), 21.5, &transforms);
        let mut scratch = Scratch::new(&transforms);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for m in [700usize, 1234, 3001, 5500] {
            let data: Vec<f32> =
                (0..400).map(|j| 50.0 + 200.0 * template.expected[m + j] + rng.random_range(-40.0..40.0)).collect();
            let found = search(&transforms, &template, &data, 0..usize::MAX, 30, &mut scratch).unwrap();
            let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
            let all = residuals(&wide(&template.expected), &wide(&data));
            let best = (0..all.len()).min_by(|&a, &b| all[a].total_cmp(&all[b])).unwrap();
            let rival = (0..all.len()).filter(|i| i.abs_diff(best) >= 30).map(|i| all[i]).fold(f64::MAX, f64::min);
            assert_eq!(found.offset, best);
            assert!(best.abs_diff(m) <= 1);
            // Correlations of 400 values of about 100 in single precision: 1e-6 of the whole energy.
            assert!((found.residual - all[best]).abs() < 1e-5 * found.flat, "{} {}", found.residual, all[best]);
            assert!((found.rival - rival).abs() < 1e-5 * found.flat);
            assert!((found.gain - 200.0).abs() < 20.0 && (found.background - 50.0).abs() < 20.0);
            let part = search(&transforms, &template, &data, 2000..2100, 30, &mut scratch).unwrap();
            assert!((2000..2100).contains(&part.offset));
        }
        assert_eq!(search(&transforms, &template, &[7.0; 400], 0..usize::MAX, 30, &mut scratch), None);
        assert_eq!(search(&transforms, &template, &[7.0; 9000], 0..usize::MAX, 30, &mut scratch), None);
    }
}
