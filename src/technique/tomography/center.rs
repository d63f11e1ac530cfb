//! Rotation centre by Vo's sinogram method.
//!
//! Vo, Drakopoulos, Atwood & Reinhard, Opt. Express 22, 19078 (2014): a sinogram over half a turn, continued by its own
//! mirror image shifted by `2(c − middle)`, is that of a full turn only when `c` is right. The Fourier transform of a full
//! turn's sinogram lies inside a double wedge: at `n` cycles per turn and `ν` cycles per pixel an object of radius `R`
//! pixels contributes where `|n| ≤ 2πR|ν|` (their eq. 5). So the mean magnitude outside the wedge is least at the centre.
//! Rows with |n| ≤ `drop` and the three lowest columns are left out: truncation and the mean live there.
//!
//! Search as published: integer steps over the coarse range on data smoothed along angle (σ 3) and columns (σ 1), then
//! `step` over a fine range on data smoothed by σ 2 both ways; ours adds a last search in a fifth of the step and a parabola
//! through its lowest three points. Columns that the shift leaves empty are filled from the first half, as published. The
//! mirror is shifted by a Fourier interpolation of the row and its reflection: interpolation that loses high
//! frequencies would draw the minimum to half-integer shifts.
//!
//! Input `[angle, column]`, any monotone function of transmission (counts, transmission, its −log), evenly spaced over half a
//! turn, both ends included or not. Output by [`super::convention`]: zero-based column. Values must be finite.

use std::f64::consts::PI;
use std::ops::Range;
use std::sync::Arc;

use fft_plans::{Complex32, ComplexToReal, Fft, RealToComplex};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut1, Axis, s};
use serde::{Deserialize, Serialize};

use super::convention::middle;
use super::error::{TomographyError, check};

/// Settings of the search. The defaults are those published with the method.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Search {
    /// Where to begin, zero-based column; the middle of the detector when not given.
    pub around: Option<f64>,
    /// Coarse range on either side, pixels; cut to what leaves half of the columns overlapping their mirror.
    pub range: f64,
    /// Fine range on either side of the coarse result, pixels.
    pub fine_range: f64,
    /// Fine step, pixels.
    pub step: f64,
    /// Ratio of the object's width to the detector's.
    pub ratio: f64,
    /// Rows of low angular frequency left out on either side.
    pub drop: usize,
}

impl Default for Search {
    fn default() -> Self {
        Self { around: None, range: 50.0, fine_range: 4.0, step: 0.25, ratio: 0.5, drop: 20 }
    }
}

/// What the search found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CenterEstimate {
    /// The centre, zero-based column.
    pub center: f64,
    /// Candidate and metric of every trial, coarse ones first (the two differ in smoothing, so in level).
    pub coarse: Vec<(f64, f64)>,
    /// Candidate and metric of the fine and the last search, in order of candidate.
    pub fine: Vec<(f64, f64)>,
    /// Depth of the minimum: coarse median over coarse minimum. Near 1 means there was nothing to find.
    pub contrast: f64,
    /// Whether the minimum lies at an end of the coarse range: the centre may be outside it.
    pub at_edge: bool,
}

/// Finds the centre of a sinogram `[angle, column]` over half a turn.
///
/// # Errors
/// Fewer than 8 angles or 16 columns, values that are not finite, or options out of range.
pub fn vo(sinogram: ArrayView2<'_, f32>, options: &Search) -> Result<CenterEstimate, TomographyError> {
    let (angles, columns) = sinogram.dim();
    for (what, got, needed) in [("angles", angles, 8), ("detector columns", columns, 16)] {
        if got < needed {
            return Err(TomographyError::TooFew { what, got, needed });
        }
    }
    check("search range", options.range, "at least 1 pixel", |r| r >= 1.0)?;
    check("fine range", options.fine_range, "positive", |r| r > 0.0)?;
    check("fine step", options.step, "from 0.01 to 1 pixel", |s| (0.01..=1.0).contains(&s))?;
    check("object ratio", options.ratio, "from 0.05 to 2", |r| (0.05..=2.0).contains(&r))?;
    let around = options.around.unwrap_or_else(|| middle(columns));
    check("start of the search", around, "on the detector", |c| (0.0..columns as f64).contains(&c))?;
    if let Some(bad) = sinogram.iter().find(|v| !v.is_finite()) {
        return Err(TomographyError::Value { what: "sinogram", got: f64::from(*bad), expected: "finite" });
    }
    // With less than half of the columns overlapping, the columns filled in (which fit by construction) outvote the rest.
    let reach = columns as f64 / 4.0;
    let (least, most) =
        ((around - options.range).max(middle(columns) - reach), (around + options.range).min(middle(columns) + reach));
    if least > most {
        return Err(TomographyError::Value {
            what: "search range",
            got: options.range,
            expected: "within a quarter of the detector from its middle",
        });
    }
    let outside = Outside::new(angles, columns, options);
    let coarse = {
        let trial = Trial::new(&smooth(sinogram, 3.0, 1.0), &outside);
        trial.all(&steps(around, least, most, 1.0))
    };
    let (rough, at_edge) = lowest(&coarse);
    let trial = Trial::new(&smooth(sinogram, 2.0, 2.0), &outside);
    let within = |c: f64, reach: f64| (c - reach).max(least)..=(c + reach).min(most);
    let near = within(rough, options.fine_range);
    let mut fine = trial.all(&steps(rough, *near.start(), *near.end(), options.step));
    let (better, _) = lowest(&fine);
    let near = within(better, options.step);
    let last = trial.all(&steps(better, *near.start(), *near.end(), options.step / 5.0));
    let center = parabola(&last);
    fine.extend(last);
    fine.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut levels: Vec<f64> = coarse.iter().map(|c| c.1).collect();
    levels.sort_by(f64::total_cmp);
    let contrast = levels[levels.len() / 2] / levels[0].max(f64::MIN_POSITIVE);
    Ok(CenterEstimate { center, coarse, fine, contrast, at_edge })
}

/// `around` and everything whole steps from it within the limits, ascending.
fn steps(around: f64, least: f64, most: f64, step: f64) -> Vec<f64> {
    // A rounding error must not lose the last step.
    let down = ((around - least) / step + 1e-9).floor() as i64;
    let up = ((most - around) / step + 1e-9).floor() as i64;
    (-down..=up).map(|k| around + k as f64 * step).collect()
}

/// Candidate of the lowest metric, and whether it is the first or last of several.
fn lowest(curve: &[(f64, f64)]) -> (f64, bool) {
    let at = (0..curve.len()).min_by(|&a, &b| curve[a].1.total_cmp(&curve[b].1)).unwrap_or(0);
    (curve[at].0, curve.len() > 1 && (at == 0 || at + 1 == curve.len()))
}

/// Vertex of the parabola through the lowest point and its neighbours; the lowest point itself at an end.
fn parabola(curve: &[(f64, f64)]) -> f64 {
    let (at, edge) = lowest(curve);
    let Some(i) = curve.iter().position(|c| c.0 == at) else {
        return at;
    };
    if edge || curve.len() < 3 {
        return at;
    }
    let (below, here, above) = (curve[i - 1].1, curve[i].1, curve[i + 1].1);
    let bend = below - 2.0 * here + above;
    let step = curve[i + 1].0 - at;
    if bend > 0.0 { at + step * 0.5 * (below - above) / bend } else { at }
}

/// Gaussian smoothing along angles and columns, reflected at the ends, cut at four σ.
fn smooth(sinogram: ArrayView2<'_, f32>, sigma_angle: f64, sigma_column: f64) -> Array2<f32> {
    let along = |data: ArrayView2<'_, f32>, sigma: f64| -> Array2<f32> {
        let reach = (4.0 * sigma).ceil() as i64;
        let weights: Vec<f64> = (-reach..=reach).map(|k| (-0.5 * (k as f64 / sigma).powi(2)).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut out = Array2::<f32>::zeros(data.dim());
        let n = data.nrows() as i64;
        out.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(i, mut row)| {
            for (k, w) in (-reach..=reach).zip(&weights) {
                // Reflection with the end sample repeated, as often as a short axis needs.
                let j = (i as i64 + k).rem_euclid(2 * n);
                let j = if j < n { j } else { 2 * n - 1 - j };
                row.scaled_add((w / sum) as f32, &data.row(j as usize));
            }
        });
        out
    };
    let angles = along(sinogram, sigma_angle);
    along(angles.t(), sigma_column).t().as_standard_layout().into_owned()
}

/// Where the transform of a full turn has nothing: at each column frequency, angular frequencies from one on.
struct Outside {
    turns: usize,
    /// Least angular frequency outside the wedge for every column frequency `0..=columns/2`.
    from: Vec<usize>,
}

impl Outside {
    fn new(angles: usize, columns: usize, options: &Search) -> Self {
        let turns = 2 * angles;
        let radius = 0.5 * options.ratio * columns as f64;
        let drop = options.drop.min((0.05 * turns as f64).ceil() as usize);
        // |ν| = k/columns ≤ n/(2πR).
        let reaches = |n: usize, k: usize| (n as f64 / (2.0 * PI * radius) * columns as f64).floor() as usize >= k;
        let mut least = drop + 1;
        let from = (0..=columns / 2).map(|k| {
            // More cycles per pixel, more cycles per turn.
            while least <= angles && !reaches(least, k) {
                least += 1;
            }
            least
        });
        Self { turns, from: from.collect() }
    }

    /// Indices of the angular frequencies counted at column frequency `k`: positive ones, then negative ones.
    fn counted(&self, k: usize) -> Range<usize> {
        let from = self.from[k];
        from..(self.turns + 1 - from).max(from)
    }
}

/// Sum of the magnitudes, in eight parts that do not wait for each other.
fn magnitudes(values: &[Complex32]) -> f64 {
    // Sums of f32 line integrals: their squares neither overflow nor vanish.
    let mut parts = [0.0_f64; 8];
    let chunks = values.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|c| f64::from(c.norm_sqr().sqrt())).sum();
    for chunk in chunks {
        parts.iter_mut().zip(chunk).for_each(|(part, c)| *part += f64::from(c.norm_sqr().sqrt()));
    }
    parts.iter().sum::<f64>() + rest
}

/// A smoothed sinogram made ready for many candidates.
struct Trial<'a> {
    outside: &'a Outside,
    /// `[angle, column]`.
    half: Array2<f32>,
    /// Spectra of the rows, `[angle, frequency]`: the first half turn is the same for every candidate.
    rows: Array2<Complex32>,
    /// Spectra of the mirrored rows joined to their reflection, `[angle, frequency]`.
    mirror: Array2<Complex32>,
    forward: Arc<dyn RealToComplex<f32>>,
    back: Arc<dyn ComplexToReal<f32>>,
    turns: Arc<dyn Fft<f32>>,
}

/// Transforms by column taken together: a cache line of every row's spectrum.
const TOGETHER: usize = 8;

/// The transform of one line into `out`.
fn transform(fft: &dyn RealToComplex<f32>, line: &mut [f32], out: ArrayViewMut1<'_, Complex32>) {
    let done = out.into_slice().map(|out| fft.process(line, out));
    if !matches!(done, Some(Ok(()))) {
        unreachable!("contiguous buffers of the planned lengths");
    }
}

impl<'a> Trial<'a> {
    fn new(half: &Array2<f32>, outside: &'a Outside) -> Self {
        let (angles, columns) = half.dim();
        let (forward, back) = (fft_plans::real_forward_f32(columns), fft_plans::real_inverse_f32(2 * columns));
        let wide = fft_plans::real_forward_f32(2 * columns);
        let mut rows = Array2::default((angles, columns / 2 + 1));
        let mut mirror = Array2::default((angles, columns + 1));
        let outs = rows.axis_iter_mut(Axis(0)).into_par_iter().zip(mirror.axis_iter_mut(Axis(0)));
        outs.zip(half.axis_iter(Axis(0))).for_each(|((row_out, mirror_out), row)| {
            transform(&*forward, &mut row.to_vec(), row_out);
            let mut line: Vec<f32> = row.iter().rev().chain(row.iter()).copied().collect();
            transform(&*wide, &mut line, mirror_out);
        });
        let turns = fft_plans::forward_f32(2 * angles);
        Self { outside, half: half.clone(), rows, mirror, forward, back, turns }
    }

    fn all(&self, candidates: &[f64]) -> Vec<(f64, f64)> {
        let mut mirrored = Array2::default(self.rows.dim());
        candidates.iter().map(|&c| (c, self.metric(c, &mut mirrored))).collect()
    }

    /// Spectra of the second half turn: the mirror image shifted by `shift` columns where it reaches, else the half turn
    /// reversed in angle.
    fn second_half(&self, shift: f64, spectra: &mut Array2<Complex32>) {
        let (angles, columns) = self.half.dim();
        let valid = (shift.ceil().max(0.0) as usize)
            ..(columns as f64 - 1.0 + shift.floor().min(0.0)).max(-1.0).min(columns as f64 - 1.0) as usize + 1;
        // Whole columns need no interpolation.
        let whole = (shift.fract() == 0.0).then_some(shift as i64);
        let turn = |k: usize| {
            let (sin, cos) = (-PI * k as f64 * shift / columns as f64).sin_cos();
            Complex32::new(cos as f32, sin as f32)
        };
        let phases: Vec<Complex32> = if whole.is_none() { (0..=columns).map(turn).collect() } else { Vec::new() };
        let scale = 1.0 / (2 * columns) as f32;
        spectra.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each_init(
            || (self.back.make_input_vec(), self.back.make_output_vec(), vec![0.0; columns]),
            |(spectrum, line, row), (i, out)| {
                let fill = self.half.row(angles - 1 - i);
                row.iter_mut().zip(fill).for_each(|(to, &from)| *to = from);
                if let Some(whole) = whole {
                    let from = self.half.row(i);
                    // Column `u` mirrors column `columns − 1 − u + whole`.
                    let mirrored = (columns as i64 - valid.end as i64 + whole).max(0) as usize;
                    let seen = from.iter().skip(mirrored).take(valid.len()).rev();
                    row[valid.clone()].iter_mut().zip(seen).for_each(|(to, &from)| *to = from);
                } else {
                    let phased = self.mirror.row(i).into_iter().zip(&phases);
                    spectrum.iter_mut().zip(phased).for_each(|(to, (from, phase))| *to = from * phase);
                    // A real transform's first and last frequencies are real.
                    spectrum[0].im = 0.0;
                    spectrum[columns].im = 0.0;
                    if self.back.process(spectrum, line).is_err() {
                        unreachable!("buffers of the planned lengths, ends real");
                    }
                    row[valid.clone()].iter_mut().zip(&line[valid.clone()]).for_each(|(to, from)| *to = from * scale);
                }
                transform(&*self.forward, row, out);
            },
        );
    }

    /// Mean magnitude outside the wedge for one candidate; `mirrored` is room for the second half turn.
    fn metric(&self, candidate: f64, mirrored: &mut Array2<Complex32>) -> f64 {
        let (angles, columns) = self.half.dim();
        self.second_half(2.0 * (candidate - middle(columns)), mirrored);
        let bins = columns / 2 + 1;
        let (sum, count) = (2..bins)
            .into_par_iter()
            .step_by(TOGETHER)
            .map_init(
                || {
                    let scratch = self.turns.get_inplace_scratch_len();
                    (vec![Complex32::default(); TOGETHER * 2 * angles], vec![Complex32::default(); scratch])
                },
                |(lines, scratch), first| {
                    let together = TOGETHER.min(bins - first);
                    for (a, row) in self.rows.outer_iter().chain(mirrored.outer_iter()).enumerate() {
                        let row = row.to_slice().unwrap_or_default();
                        for (j, value) in row.iter().skip(first).take(together).enumerate() {
                            lines[j * 2 * angles + a] = *value;
                        }
                    }
                    let mut total = (0.0_f64, 0_u64);
                    for (j, line) in lines.chunks_exact_mut(2 * angles).take(together).enumerate() {
                        self.turns.process_with_scratch(line, scratch);
                        let counted = &line[self.outside.counted(first + j)];
                        total.0 += magnitudes(counted);
                        total.1 += counted.len() as u64;
                    }
                    total
                },
            )
            .reduce(|| (0.0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        if count == 0 { 0.0 } else { sum / count as f64 }
    }
}

/// The part of a scan over `angles` (radians) that spans half a turn: sinograms of longer scans must be cut to this.
///
/// Returns how many angles from the start lie within half a turn of the first, assuming they go one way.
#[must_use]
pub fn half_turn(angles: &[f64]) -> usize {
    let Some(first) = angles.first() else {
        return 0;
    };
    let step = angles.get(1).map_or(0.0, |second| (second - first).abs());
    angles.iter().take_while(|angle| (*angle - first).abs() <= PI + 0.5 * step).count()
}

/// [`vo`] on several detector rows `[row, angle, column]`, and the median of the centres found.
///
/// # Errors
/// As [`vo`]; no rows.
pub fn vo_rows(
    sinograms: ndarray::ArrayView3<'_, f32>,
    options: &Search,
) -> Result<(f64, Vec<CenterEstimate>), TomographyError> {
    let found: Vec<CenterEstimate> = (0..sinograms.len_of(Axis(0)))
        .map(|row| vo(sinograms.slice(s![row, .., ..]), options))
        .collect::<Result<_, _>>()?;
    let mut centers: Vec<f64> = found.iter().map(|f| f.center).collect();
    centers.sort_by(f64::total_cmp);
    let n = centers.len();
    if n == 0 {
        return Err(TomographyError::TooFew { what: "sinograms", got: 0, needed: 1 });
    }
    Ok((0.5 * (centers[(n - 1) / 2] + centers[n / 2]), found))
}

#[cfg(test)]
#[path = "center_tests.rs"]
mod tests;
