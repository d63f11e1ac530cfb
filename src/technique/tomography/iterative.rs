//! Iterative reconstruction: SIRT and CGLS on the matched pair of `projector`.
//!
//! Both solve `A x ≈ b` for line integrals `b` per pixel, from `x = 0`. They stop at the first of
//! - `noise` `σ > 0`: `‖b − A x‖ ≤ σ √M`, `M` the number of samples: Morozov's discrepancy principle, `σ` the standard deviation
//!   of a line integral (about `1/√counts` of the transmitted beam); what is left is noise, and fitting it makes noise;
//! - `tolerance` `τ > 0`: `‖x_{k+1} − x_k‖ ≤ τ ‖x_{k+1}‖`;
//! - `iterations`.
//!
//! **SIRT**: `x ← x + C Aᵀ R (b − A x)`, `R` and `C` one over the sums of `A`'s rows and columns (Gregor & Benson, IEEE Trans. Med. Imaging
//! 27, 918 (2008)). Non-negativity: negative pixels become 0 after every step; that is a projection, and the iteration
//! converges to the constrained weighted least squares.
//!
//! **CGLS**: conjugate gradients on `AᵀA x = Aᵀb` (Hestenes & Stiefel, 1952; Björck, *Numerical Methods for Least Squares Problems*,
//! 1996, alg. 7.4.1): ten times fewer iterations. It has no non-negative form. With `nonnegative`, negative pixels become 0
//! after every [`RESTART`] iterations and at the end, and conjugate gradients begin anew from there: a heuristic. It
//! need not converge to the constrained solution, and its residual may grow at a restart.
//!
//! Slices are independent, also in when they stop: a slice's result does not depend on those computed with it. Input
//! `[row, angle, column]`, finite; output `[row, y, x]`, per pixel. What lies outside the image is taken to be nothing: of
//! samples wider than the field of view the rim comes out bright.

use ndarray::{Array3, ArrayView3, ArrayViewMut3, Axis, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::error::{TomographyError, check};
use super::gridding::Geometry;
use super::lanes::{Lane, V1, V4, V8};
use super::projector::Projector;

/// Iterations of conjugate gradients between projections onto the non-negative.
pub const RESTART: usize = 10;

/// Which iteration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Simultaneous iterative reconstruction.
    Sirt,
    /// Conjugate gradients for least squares.
    Cgls,
}

/// When to stop, and whether attenuation may be negative.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stopping {
    /// At most this many iterations.
    pub iterations: usize,
    /// Relative change of the image at which it stops; 0 for never.
    pub tolerance: f64,
    /// Standard deviation of a line integral; 0 for not known.
    pub noise: f64,
    /// No negative attenuation.
    pub nonnegative: bool,
}

impl Default for Stopping {
    fn default() -> Self {
        Self { iterations: 100, tolerance: 1e-3, noise: 0.0, nonnegative: true }
    }
}

impl Stopping {
    /// Refuses settings outside their range.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<(), TomographyError> {
        check("iterations", self.iterations as f64, "from 1 to 10000", |n| (1.0..=1e4).contains(&n))?;
        check("tolerance", self.tolerance, "from 0 to 1", |t| (0.0..=1.0).contains(&t))?;
        check("noise of a line integral", self.noise, "from 0 to 100", |n| (0.0..=100.0).contains(&n))
    }
}

/// How one slice ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Ending {
    /// Iterations made.
    pub iterations: usize,
    /// `‖b − A x‖/‖b‖` of the last image whose projection was computed (the one before the last step).
    pub residual: f64,
}

/// Reconstructs `[row, angle, column]` into `[row, y, x]`, attenuation per pixel, and says how each row ended.
///
/// # Errors
/// As [`Geometry::check`] and [`Stopping::check`], or a sinogram of another shape.
pub fn reconstruct(
    sinograms: ArrayView3<'_, f32>,
    geometry: &Geometry<'_>,
    method: Method,
    stopping: &Stopping,
) -> Result<(Array3<f32>, Vec<Ending>), TomographyError> {
    stopping.check()?;
    let projector = Projector::new(geometry)?;
    let rows = sinograms.len_of(Axis(0));
    let expected = [rows, geometry.angles.len(), geometry.columns];
    if sinograms.shape() != expected {
        let (what, got) = ("sinograms [row, angle, column]", sinograms.shape().to_vec());
        return Err(TomographyError::Shape { what, got, expected: expected.to_vec() });
    }
    let weights = Weights::new(&projector);
    let mut images = Array3::zeros((rows, geometry.size, geometry.size));
    let mut endings = Vec::with_capacity(rows);
    let mut first = 0;
    while first < rows {
        let left = rows - first;
        let count = if left > 4 { left.min(8) } else { left };
        let data = sinograms.slice(s![first..first + count, .., ..]);
        let out = images.slice_mut(s![first..first + count, .., ..]);
        let run = Run { projector: &projector, weights: &weights, method, stopping };
        endings.extend(match count {
            1 => run.batch::<V1>(data, out),
            2..=4 => run.batch::<V4>(data, out),
            _ => run.batch::<V8>(data, out),
        });
        first += count;
    }
    Ok((images, endings))
}

/// Bytes beside input and output, for sizing slabs: a batch of eight slices.
#[must_use]
pub fn scratch_bytes(angles: usize, columns: usize, size: usize) -> usize {
    // Three images, each with its transpose, three sinograms, and the weights.
    32 * (6 * size * (size + 2) + 3 * angles * columns) + 4 * (2 * size * (size + 2) + angles * columns)
}

/// One over the sums of the matrix's rows and columns; 0 where a sum is next to nothing.
struct Weights {
    rays: Vec<f32>,
    pixels: Vec<f32>,
}

impl Weights {
    fn new(projector: &Projector) -> Self {
        let mut image = projector.image::<V1>();
        for line in image.pixels_mut().chunks_exact_mut(projector.stride()) {
            let inner = line.len() - 1;
            line[1..inner].iter_mut().for_each(|v| v.as_mut_slice()[0] = 1.0);
        }
        let mut rays = vec![V1::ZERO; projector.samples()];
        projector.project(&mut image, &mut rays);
        rays.iter_mut().for_each(|v| v.as_mut_slice()[0] = v.as_slice()[0].max(0.0));
        let mut ones = rays.clone();
        ones.iter_mut().for_each(|v| v.as_mut_slice()[0] = 1.0);
        projector.spread(&ones, &mut image);
        // A ray that only grazes a corner would be given a huge weight for what is mostly noise.
        let inverse = |v: &V1| if v.as_slice()[0] > 1e-3 { 1.0 / v.as_slice()[0] } else { 0.0 };
        Self { rays: rays.iter().map(inverse).collect(), pixels: image.pixels().iter().map(inverse).collect() }
    }
}

struct Run<'a> {
    projector: &'a Projector,
    weights: &'a Weights,
    method: Method,
    stopping: &'a Stopping,
}

/// Numbers of every lane, summed in double precision.
type PerLane = [f64; 8];

/// Elements that a thread takes at a time.
const PIECE: usize = 1 << 14;

/// `Σ a·b` of every lane. Pieces are added in order, so the result does not depend on the threads.
fn dot<V: Lane>(a: &[V], b: &[V]) -> PerLane {
    let parts: Vec<PerLane> = a
        .par_chunks(PIECE)
        .zip(b.par_chunks(PIECE))
        .map(|(a, b)| {
            let mut sums = [0.0; 8];
            for (a, b) in a.iter().zip(b) {
                for ((sum, a), b) in sums.iter_mut().zip(a.as_slice()).zip(b.as_slice()) {
                    *sum += f64::from(*a) * f64::from(*b);
                }
            }
            sums
        })
        .collect();
    parts.iter().fold([0.0; 8], |sum, part| std::array::from_fn(|l| sum[l] + part[l]))
}

/// `a ← factor·a + other·b`, each lane with its own numbers.
fn combine<V: Lane>(a: &mut [V], factor: PerLane, other: PerLane, b: &[V]) {
    let (factor, other) = (factor.map(|v| v as f32), other.map(|v| v as f32));
    a.par_chunks_mut(PIECE).zip(b.par_chunks(PIECE)).for_each(|(a, b)| {
        for (a, b) in a.iter_mut().zip(b) {
            for (l, (a, b)) in a.as_mut_slice().iter_mut().zip(b.as_slice()).enumerate() {
                *a = factor[l] * *a + other[l] * b;
            }
        }
    });
}

pub(super) fn divide<const N: usize>(above: [f64; N], below: [f64; N]) -> [f64; N] {
    std::array::from_fn(|l| if below[l] > 0.0 { above[l] / below[l] } else { 0.0 })
}

/// Which slices still run, and how each ended.
pub(super) struct Watch<'a, const N: usize = 8> {
    stopping: &'a Stopping,
    running: [bool; N],
    /// `‖b‖²`.
    data: [f64; N],
    samples: f64,
    pub(super) endings: [Ending; N],
}

impl<'a, const N: usize> Watch<'a, N> {
    pub(super) fn new(stopping: &'a Stopping, count: usize, data: [f64; N], samples: usize) -> Self {
        // A slice of nothing is done.
        let running = std::array::from_fn(|l| l < count && data[l] > 0.0);
        Self { stopping, running, data, samples: samples as f64, endings: [Ending::default(); N] }
    }

    /// Takes note of `‖b − A x‖²`; slices that fit well enough stop.
    pub(super) fn residual(&mut self, squares: [f64; N]) {
        for (l, square) in squares.into_iter().enumerate() {
            if self.running[l] {
                self.endings[l].residual = (square / self.data[l]).sqrt();
                self.running[l] = square > self.stopping.noise.powi(2) * self.samples;
            }
        }
    }

    /// Takes note of a step; slices that hardly moved stop.
    pub(super) fn step(&mut self, change: [f64; N], size: [f64; N]) {
        for (l, (change, size)) in change.into_iter().zip(size).enumerate() {
            if self.running[l] {
                self.endings[l].iterations += 1;
                self.running[l] = change > self.stopping.tolerance.powi(2) * size;
            }
        }
    }

    pub(super) fn any(&self) -> bool {
        self.running.contains(&true)
    }

    /// The numbers of running slices, 0 for others: a step of length 0 leaves an image as it is.
    pub(super) fn only(&self, values: [f64; N]) -> [f64; N] {
        std::array::from_fn(|l| if self.running[l] { values[l] } else { 0.0 })
    }
}

impl Run<'_> {
    fn batch<V: Lane>(&self, data: ArrayView3<'_, f32>, mut out: ArrayViewMut3<'_, f32>) -> Vec<Ending> {
        let count = data.len_of(Axis(0));
        let columns = data.len_of(Axis(2));
        let mut b = vec![V::ZERO; self.projector.samples()];
        b.par_chunks_exact_mut(columns).enumerate().for_each(|(angle, line)| {
            for l in 0..count {
                let row = data.slice(s![l, angle, ..]);
                line.iter_mut().zip(row).for_each(|(to, &v)| to.as_mut_slice()[l] = v);
            }
        });
        let watch = Watch::new(self.stopping, count, dot(&b, &b), b.len());
        let (pixels, endings) = match self.method {
            Method::Sirt => self.sirt(&b, watch),
            Method::Cgls => self.cgls(b, watch),
        };
        for (l, mut image) in out.outer_iter_mut().enumerate() {
            let lines = self.projector.lines(&pixels);
            let rows: Vec<_> = image.axis_iter_mut(Axis(0)).collect();
            rows.into_par_iter().zip(lines).for_each(|(mut row, line)| {
                row.iter_mut().zip(line).for_each(|(to, v)| *to = v.as_slice()[l]);
            });
        }
        endings[..count].to_vec()
    }

    fn sirt<V: Lane>(&self, b: &[V], mut watch: Watch<'_>) -> (Vec<V>, [Ending; 8]) {
        let (mut x, mut back) = (self.projector.image::<V>(), self.projector.image::<V>());
        let mut residual = b.to_vec();
        for k in 0..self.stopping.iterations {
            if k > 0 {
                self.projector.project(&mut x, &mut residual);
                combine(&mut residual, [-1.0; 8], [1.0; 8], b);
            }
            watch.residual(dot(&residual, &residual));
            if !watch.any() {
                break;
            }
            scale(&mut residual, &self.weights.rays);
            self.projector.spread(&residual, &mut back);
            let (change, size) = self.sirt_step(x.pixels_mut(), back.pixels(), &watch);
            watch.step(change, size);
        }
        (x.pixels().to_vec(), watch.endings)
    }

    /// `x ← x + C back`, or what is not negative of it; returns `‖change‖²` and `‖x‖²`.
    fn sirt_step<V: Lane>(&self, x: &mut [V], back: &[V], watch: &Watch<'_>) -> (PerLane, PerLane) {
        let on = watch.only([1.0; 8]).map(|v| v as f32);
        let floor = if self.stopping.nonnegative { 0.0 } else { f32::NEG_INFINITY };
        let pieces = x.par_chunks_mut(PIECE).zip(back.par_chunks(PIECE)).zip(self.weights.pixels.par_chunks(PIECE));
        let parts: Vec<(PerLane, PerLane)> = pieces
            .map(|((x, back), weights)| {
                let (mut change, mut size) = ([0.0; 8], [0.0; 8]);
                for ((x, back), weight) in x.iter_mut().zip(back).zip(weights) {
                    for (l, (x, back)) in x.as_mut_slice().iter_mut().zip(back.as_slice()).enumerate() {
                        let next = (*x + on[l] * weight * back).max(floor);
                        change[l] += f64::from(next - *x).powi(2);
                        size[l] += f64::from(next).powi(2);
                        *x = next;
                    }
                }
                (change, size)
            })
            .collect();
        let sum = |a: PerLane, b: PerLane| std::array::from_fn(|l| a[l] + b[l]);
        parts.into_iter().fold(([0.0; 8], [0.0; 8]), |(c, s), part| (sum(c, part.0), sum(s, part.1)))
    }

    fn cgls<V: Lane>(&self, b: Vec<V>, mut watch: Watch<'_>) -> (Vec<V>, [Ending; 8]) {
        let projector = self.projector;
        let (mut x, mut p, mut gradient) = (projector.image::<V>(), projector.image::<V>(), projector.image::<V>());
        let (mut residual, mut q) = (b.clone(), vec![V::ZERO; b.len()]);
        let mut norm = [0.0; 8];
        for k in 0..self.stopping.iterations {
            let anew = k == 0 || (self.stopping.nonnegative && k % RESTART == 0);
            if anew && k > 0 {
                clamp(x.pixels_mut());
                projector.project(&mut x, &mut residual);
                combine(&mut residual, [-1.0; 8], [1.0; 8], &b);
            }
            watch.residual(dot(&residual, &residual));
            if !watch.any() {
                break;
            }
            projector.spread(&residual, &mut gradient);
            let next = dot(gradient.pixels(), gradient.pixels());
            let beta = if anew { [0.0; 8] } else { divide(next, norm) };
            norm = next;
            combine(p.pixels_mut(), beta, [1.0; 8], gradient.pixels());
            projector.project(&mut p, &mut q);
            let alpha = watch.only(divide(norm, dot(&q, &q)));
            combine(x.pixels_mut(), [1.0; 8], alpha, p.pixels());
            combine(&mut residual, [1.0; 8], alpha.map(|a| -a), &q);
            let length = dot(p.pixels(), p.pixels());
            watch.step(std::array::from_fn(|l| alpha[l].powi(2) * length[l]), dot(x.pixels(), x.pixels()));
        }
        if self.stopping.nonnegative {
            clamp(x.pixels_mut());
        }
        (x.pixels().to_vec(), watch.endings)
    }
}

fn clamp<V: Lane>(pixels: &mut [V]) {
    let all = pixels.par_chunks_mut(PIECE);
    all.for_each(|piece| piece.iter_mut().flat_map(|v| v.as_mut_slice()).for_each(|v| *v = v.max(0.0)));
}

fn scale<V: Lane>(values: &mut [V], factors: &[f32]) {
    let all = values.par_chunks_mut(PIECE).zip(factors.par_chunks(PIECE));
    all.for_each(|(values, factors)| values.iter_mut().zip(factors).for_each(|(v, &f)| *v = v.scale(f)));
}

#[cfg(test)]
#[path = "iterative_tests.rs"]
mod tests;
