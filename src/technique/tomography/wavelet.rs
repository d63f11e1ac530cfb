//! Stripe removal by combined wavelet and Fourier filtering.
//!
//! Münch, Trtik, Marone & Stampanoni, Opt. Express 17, 8567 (2009): a sinogram is split into wavelet bands (Daubechies' wavelet
//! of ten taps, "db5", two directions, `level` times). A stripe is constant along the angle, so of every level's bands it
//! lies in the one that is smooth along the angle and detailed along columns; that band is Fourier transformed along the
//! angle and damped by `1 − exp(−k²/2σ²)`, `k` in cycles per band length (their eq. 3), and all is put together again.
//!
//! The transform is linear and exactly invertible, so only what is taken away is computed: the damped band's low frequencies
//! (some `6σ` sines and cosines, for the Gaussian is below 2e-7 beyond), put together with zeros in all other bands, and
//! subtracted. Bands that nothing is taken from are not even formed.
//!
//! Ends are continued by their mirror image (`… b a | a b …`); a band of `n` values has `⌊(n + 9)/2⌋`. Input and output
//! `[angle, column]`, line integrals or transmission, finite. Parallel over detector rows in [`remove_slab`].

use ndarray::parallel::prelude::*;
use ndarray::{ArrayViewMut2, ArrayViewMut3, Axis};
use serde::{Deserialize, Serialize};

use super::batch::Isa;
use super::error::{TomographyError, check};

/// Taps of the wavelet.
const TAPS: usize = 10;
/// Low-pass analysis filter: Daubechies, Commun. Pure Appl. Math. 41, 909 (1988), table 1, N = 5, in reverse.
const LOW: [f64; TAPS] = [
    0.003_335_725_285_473_771,
    -0.012_580_751_999_082,
    -0.006_241_490_212_798_274,
    0.077_571_493_840_045_7,
    -0.032_244_869_584_638_37,
    -0.242_294_887_066_382,
    0.138_428_145_901_320_7,
    0.724_308_528_437_772_6,
    0.603_829_269_797_189_5,
    0.160_102_397_974_192_9,
];

/// Settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wavelet {
    /// Width `σ` of the damped frequencies, cycles per band: larger also removes stripes that are not all straight.
    pub sigma: f64,
    /// Number of levels; as many as leave bands as wide as the filter when not given.
    pub level: Option<usize>,
}

impl Default for Wavelet {
    fn default() -> Self {
        Self { sigma: 2.0, level: None }
    }
}

impl Wavelet {
    /// Refuses settings outside their range.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<(), TomographyError> {
        check("wavelet sigma", self.sigma, "from 0.1 to 50", |s| (0.1..=50.0).contains(&s))?;
        let level = self.level.unwrap_or(1) as f64;
        check("wavelet level", level, "from 1 to 12", |l| (1.0..=12.0).contains(&l))
    }

    /// Levels for a detector of this many columns: the last one's input is at least as wide as the filter.
    #[must_use]
    pub fn levels(&self, columns: usize) -> usize {
        self.level.unwrap_or_else(|| (columns / (TAPS - 1)).checked_ilog2().unwrap_or(0).max(1) as usize)
    }
}

/// Removes stripes from every detector row of `[row, angle, column]`, in place.
///
/// # Errors
/// As [`Wavelet::check`].
pub fn remove_slab(mut sinograms: ArrayViewMut3<'_, f32>, options: &Wavelet) -> Result<(), TomographyError> {
    options.check()?;
    let (_, angles, columns) = sinograms.dim();
    if angles < 2 || columns < 2 {
        return Ok(());
    }
    let plan = Plan::new(angles, columns, options);
    let rows = sinograms.axis_iter_mut(Axis(0)).into_par_iter();
    rows.for_each_init(|| Scratch::new(&plan), |scratch, sinogram| plan.remove(sinogram, scratch));
    Ok(())
}

/// Values of a band made from `n`.
pub(super) fn halved(n: usize) -> usize {
    (n + TAPS - 1) / 2
}

/// One level: shapes, and the Fourier terms that are taken away.
struct Level {
    rows: usize,
    columns: usize,
    /// `(weight / rows, cos and sin of 2πkr/rows)` for `k = 0, 1, …`, with `rows` those of the band.
    terms: Vec<(f32, Vec<(f32, f32)>)>,
}

struct Plan {
    levels: Vec<Level>,
    isa: Isa,
}

/// Buffers of one sinogram.
struct Scratch {
    /// What each level starts from, then what is taken from it; `[rows, columns]` of the level, and the last level's output.
    smooth: Vec<Vec<f32>>,
    /// The detailed band of each level.
    detail: Vec<Vec<f32>>,
    /// Rows halved, columns not.
    between: Vec<f32>,
    even: Vec<f32>,
    odd: Vec<f32>,
    harmonics: Vec<f32>,
}

impl Scratch {
    fn new(plan: &Plan) -> Self {
        let sizes = plan.levels.iter().map(|l| (l.rows * l.columns, halved(l.rows) * halved(l.columns)));
        let mut smooth: Vec<Vec<f32>> = sizes.clone().map(|(n, _)| vec![0.0; n]).collect();
        let detail: Vec<Vec<f32>> = sizes.map(|(_, n)| vec![0.0; n]).collect();
        smooth.push(vec![0.0; detail.last().map_or(0, Vec::len)]);
        let between = plan.levels.iter().map(|l| halved(l.rows) * l.columns.next_multiple_of(2)).max().unwrap_or(0);
        let widest = plan.levels.iter().map(|l| halved(l.columns)).max().unwrap_or(0) + TAPS;
        let (even, odd) = (vec![0.0; widest], vec![0.0; widest]);
        Self { smooth, detail, between: vec![0.0; between], even, odd, harmonics: Vec::new() }
    }
}

impl Plan {
    fn new(angles: usize, columns: usize, options: &Wavelet) -> Self {
        let (mut rows, mut wide) = (angles, columns);
        let levels = (0..options.levels(columns)).map(|_| {
            let level = Level { rows, columns: wide, terms: terms(halved(rows), options.sigma) };
            (rows, wide) = (halved(rows), halved(wide));
            level
        });
        Self { levels: levels.collect(), isa: Isa::detect() }
    }

    fn remove(&self, sinogram: ArrayViewMut2<'_, f32>, scratch: &mut Scratch) {
        match self.isa {
            Isa::Portable => self.body::<false>(sinogram, scratch),
            // SAFETY: `Isa::Avx2` is only made by `Isa::detect`, after it found both features on this CPU.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { self.remove_avx2(sinogram, scratch) },
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn remove_avx2(&self, sinogram: ArrayViewMut2<'_, f32>, scratch: &mut Scratch) {
        self.body::<true>(sinogram, scratch);
    }

    #[inline(always)]
    fn body<const FMA: bool>(&self, mut sinogram: ArrayViewMut2<'_, f32>, scratch: &mut Scratch) {
        let columns = sinogram.ncols();
        for (line, row) in scratch.smooth[0].chunks_exact_mut(columns).zip(sinogram.rows()) {
            line.iter_mut().zip(row).for_each(|(to, &from)| *to = from);
        }
        for (i, level) in self.levels.iter().enumerate() {
            let (before, after) = scratch.smooth.split_at_mut(i + 1);
            let half = &mut scratch.between[..halved(level.rows) * level.columns];
            halve_rows::<FMA>(&before[i], level, half);
            let lines = half.chunks_exact(level.columns);
            let wide = halved(level.columns);
            let bands = after[0].chunks_exact_mut(wide).zip(scratch.detail[i].chunks_exact_mut(wide));
            for (line, (low, high)) in lines.zip(bands) {
                halve_line::<FMA>(line, low, high, &mut scratch.even, &mut scratch.odd);
            }
            damp::<FMA>(level, wide, &mut scratch.detail[i], &mut scratch.harmonics);
        }
        // Nothing is taken from the smoothest band.
        if let Some(last) = scratch.smooth.last_mut() {
            last.fill(0.0);
        }
        for (i, level) in self.levels.iter().enumerate().rev() {
            let (before, after) = scratch.smooth.split_at_mut(i + 1);
            let (wide, even) = (halved(level.columns), level.columns.next_multiple_of(2));
            let half = &mut scratch.between[..halved(level.rows) * even];
            let bands = after[0].chunks_exact(wide).zip(scratch.detail[i].chunks_exact(wide));
            for (line, (low, high)) in half.chunks_exact_mut(even).zip(bands) {
                double_line::<FMA>(low, high, line);
            }
            double_rows::<FMA>(half, even, level, &mut before[i]);
        }
        for (line, mut row) in scratch.smooth[0].chunks_exact(columns).zip(sinogram.rows_mut()) {
            row.iter_mut().zip(line).for_each(|(value, stripe)| *value -= stripe);
        }
    }
}

/// Fourier terms of a band of `n` rows that are more than nothing: `exp(−k²/2σ²) < 2e-7` from `k = 5.56 σ` on.
pub(super) fn term_count(n: usize, sigma: f64) -> usize {
    ((5.56 * sigma).ceil() as usize).min(n / 2) + 1
}

/// Weights and tables of the Fourier terms of a band of `n` rows.
fn terms(n: usize, sigma: f64) -> Vec<(f32, Vec<(f32, f32)>)> {
    let term = |k: usize| {
        // A pair of frequencies ±k but for the mean and, in bands of even length, the last.
        let both = if k == 0 || 2 * k == n { 1.0 } else { 2.0 };
        let weight = both * (-0.5 * (k as f64 / sigma).powi(2)).exp() / n as f64;
        let turn = |r: usize| {
            let (sin, cos) = (std::f64::consts::TAU * ((k * r) % n) as f64 / n as f64).sin_cos();
            (cos as f32, sin as f32)
        };
        (weight as f32, (0..n).map(turn).collect())
    };
    (0..term_count(n, sigma)).map(term).collect()
}

#[inline(always)]
fn add<const FMA: bool>(sum: f32, factor: f32, value: f32) -> f32 {
    if FMA { factor.mul_add(value, sum) } else { sum + factor * value }
}

/// Index into `n` values continued by their mirror image, as often as needed.
#[inline(always)]
fn mirror(i: i64, n: usize) -> usize {
    let j = i.rem_euclid(2 * n as i64) as usize;
    if j < n { j } else { 2 * n - 1 - j }
}

/// Columns worked on together: accumulators stay in registers and the first cache.
const BLOCK: usize = 64;

/// Low band along the angle: row `k` is `Σ_j LOW[j] · row(2k + 1 − j)`.
#[inline(always)]
fn halve_rows<const FMA: bool>(from: &[f32], level: &Level, to: &mut [f32]) {
    let (n, wide) = (level.rows, level.columns);
    for (k, out) in to.chunks_exact_mut(wide).enumerate() {
        let rows: [&[f32]; TAPS] =
            std::array::from_fn(|j| &from[mirror(2 * k as i64 + 1 - j as i64, n) * wide..][..wide]);
        weighted::<FMA>(&rows, &LOW.map(|h| h as f32), out);
    }
}

/// `Σ_j factors[j] · rows[j]`.
#[inline(always)]
fn weighted<const FMA: bool>(rows: &[&[f32]], factors: &[f32], out: &mut [f32]) {
    let wide = out.len();
    let mut first = 0;
    while first < wide {
        let end = (first + BLOCK).min(wide);
        let out = &mut out[first..end];
        let mut sums = [0.0_f32; BLOCK];
        for (row, &factor) in rows.iter().zip(factors) {
            for (sum, &v) in sums.iter_mut().zip(&row[first..end]) {
                *sum = add::<FMA>(*sum, factor, v);
            }
        }
        out.copy_from_slice(&sums[..end - first]);
        first = end;
    }
}

/// Both bands of one line: `Σ_j h[j] · x(2k + 1 − j)`.
#[inline(always)]
fn halve_line<const FMA: bool>(line: &[f32], low: &mut [f32], high: &mut [f32], even: &mut [f32], odd: &mut [f32]) {
    let (n, count) = (line.len(), low.len());
    // Element `2s` of the line continued by eight to the left lies in `even[s]`, `2s + 1` in `odd[s]`.
    let reach = TAPS as i64 - 2;
    for (s, (e, o)) in even.iter_mut().zip(odd.iter_mut()).enumerate().take(count + TAPS / 2 - 1) {
        let i = 2 * s as i64 - reach;
        (*e, *o) = if i >= 0 && i as usize + 1 < n {
            (line[i as usize], line[i as usize + 1])
        } else {
            (line[mirror(i, n)], line[mirror(i + 1, n)])
        };
    }
    low.fill(0.0);
    high.fill(0.0);
    for i in 0..TAPS / 2 {
        let (e, o) = (&even[i..][..count], &odd[i..][..count]);
        let (low_e, low_o) = (LOW[TAPS - 1 - 2 * i] as f32, LOW[TAPS - 2 - 2 * i] as f32);
        let (high_e, high_o) = (high_tap(TAPS - 1 - 2 * i), high_tap(TAPS - 2 - 2 * i));
        for k in 0..count {
            low[k] = add::<FMA>(add::<FMA>(low[k], low_e, e[k]), low_o, o[k]);
            high[k] = add::<FMA>(add::<FMA>(high[k], high_e, e[k]), high_o, o[k]);
        }
    }
}

/// High-pass analysis filter: the low one backwards, every second sign turned.
#[inline(always)]
fn high_tap(j: usize) -> f32 {
    let h = LOW[TAPS - 1 - j] as f32;
    if j.is_multiple_of(2) { -h } else { h }
}

/// One line from its bands: element `t` is `Σ_k g[t + 8 − 2k] c_k`, `g` the analysis filter backwards. `line` has an even length.
#[inline(always)]
fn double_line<const FMA: bool>(low: &[f32], high: &[f32], line: &mut [f32]) {
    for (s, pair) in line.chunks_exact_mut(2).enumerate() {
        let (mut even, mut odd) = (0.0, 0.0);
        let (low, high) = (&low[s..][..TAPS / 2], &high[s..][..TAPS / 2]);
        for i in 0..TAPS / 2 {
            // g[8 − 2i] is h[1 + 2i], g[9 − 2i] is h[2i].
            even = add::<FMA>(add::<FMA>(even, LOW[1 + 2 * i] as f32, low[i]), high_tap(1 + 2 * i), high[i]);
            odd = add::<FMA>(add::<FMA>(odd, LOW[2 * i] as f32, low[i]), high_tap(2 * i), high[i]);
        }
        pair[0] = even;
        pair[1] = odd;
    }
}

/// Rows from their low band, the high one being zero; `wide` is the stride of `from`.
#[inline(always)]
fn double_rows<const FMA: bool>(from: &[f32], wide: usize, level: &Level, to: &mut [f32]) {
    let even: [f32; TAPS / 2] = std::array::from_fn(|i| LOW[1 + 2 * i] as f32);
    let odd: [f32; TAPS / 2] = std::array::from_fn(|i| LOW[2 * i] as f32);
    for (t, out) in to.chunks_exact_mut(level.columns).enumerate() {
        let rows: [&[f32]; TAPS / 2] = std::array::from_fn(|i| &from[(t / 2 + i) * wide..][..level.columns]);
        weighted::<FMA>(&rows, if t.is_multiple_of(2) { &even } else { &odd }, out);
    }
}

/// Leaves of a band what the filter takes away: its low frequencies along the angle, weighted.
#[inline(always)]
fn damp<const FMA: bool>(level: &Level, wide: usize, band: &mut [f32], harmonics: &mut Vec<f32>) {
    let count = level.terms.len();
    harmonics.resize(2 * count * BLOCK, 0.0);
    for first in (0..wide).step_by(BLOCK) {
        let end = (first + BLOCK).min(wide);
        harmonics.fill(0.0);
        for (r, row) in band.chunks_exact(wide).enumerate() {
            let row = &row[first..end];
            for ((_, turns), sums) in level.terms.iter().zip(harmonics.chunks_exact_mut(2 * BLOCK)) {
                let (cos, sin) = turns[r];
                let (c, s) = sums.split_at_mut(BLOCK);
                for ((c, s), &v) in c.iter_mut().zip(s).zip(row) {
                    *c = add::<FMA>(*c, cos, v);
                    *s = add::<FMA>(*s, sin, v);
                }
            }
        }
        for ((weight, _), sums) in level.terms.iter().zip(harmonics.chunks_exact_mut(2 * BLOCK)) {
            sums.iter_mut().for_each(|v| *v *= weight);
        }
        for (r, row) in band.chunks_exact_mut(wide).enumerate() {
            let mut out = [0.0_f32; BLOCK];
            for ((_, turns), sums) in level.terms.iter().zip(harmonics.chunks_exact(2 * BLOCK)) {
                let (cos, sin) = turns[r];
                let (c, s) = sums.split_at(BLOCK);
                for ((v, &c), &s) in out.iter_mut().zip(c).zip(s) {
                    *v = add::<FMA>(add::<FMA>(*v, cos, c), sin, s);
                }
            }
            row[first..end].copy_from_slice(&out[..end - first]);
        }
    }
}

#[cfg(test)]
#[path = "wavelet_tests.rs"]
mod tests;
