//! Single-distance phase retrieval by Paganin's filter, on transmission, before −log.
//!
//! Paganin, Mayo, Gureyev, Miller & Wilkins, J. Microsc. 206, 33 (2002), eq. 12: behind an object of one material in a plane
//! wave, `exp(−μT) = F⁻¹{ F(I/I₀) / (1 + (dδ/μ) w²) }`, `w = 2πf` the angular spatial frequency in rad/m. With
//! `μ = 4πβ/λ` the gain is `H(f) = 1/(1 + λ d (δ/β) |2πf|²/4π)`: one at zero frequency, so that mean transmission stays, and
//! at most one anywhere. The result is again a transmission; the chain takes its −log.
//!
//! Units: photon energy in keV (`λ = hc/E`, 1.239842 nm keV), distance from sample to detector in mm (for a diverging beam
//! the effective one, `z₁z₂/(z₁ + z₂)`), pixel size at the sample in µm, `δ/β` a number. Frequencies are `|f| ≤ 1/(2 pixel)`.
//!
//! The kernel is `K₀(r/L)/2πL²` with `L = √(λ d (δ/β)/4π)`; it falls as `e^{−r/L}`. Beyond its edges a frame is continued by its
//! mirror image (`… b a | a b …`), to infinity when its sides are products of 2, 3 and 5; another side is first made as
//! long as the next such even number, half at either end, by the same mirroring. Mirroring is what a cosine transform does
//! by itself (module `cosine`), so nothing is padded.
//!
//! Frames `[n, y, x]`, values finite (a NaN spoils its frame). Frames are independent: parallel over frames, with scratch
//! of one frame per thread.

use ndarray::parallel::prelude::*;
use ndarray::{ArrayViewMut2, ArrayViewMut3, Axis};
use serde::{Deserialize, Serialize};

use super::batch::Isa;
use super::cosine::Cosine;
use super::error::{TomographyError, check};
use super::lanes::{Cell, Lane, V8, good_length};

/// `hc` in keV µm.
const HC_KEV_UM: f64 = 1.239_841_984_332e-3;
/// Lines taken together.
const LINES: usize = 2 * V8::LANES;
/// Elements of a line filled or emptied at a time, so that their cells stay in the first cache.
const BLOCK: usize = 128;

/// The optics of a scan; see the top of the file for the units.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Optics {
    /// Photon energy, keV.
    pub energy_kev: f64,
    /// Distance from sample to detector, mm.
    pub distance_mm: f64,
    /// Pixel size at the sample, µm.
    pub pixel_size_um: f64,
    /// Ratio of the refractive index decrement to the absorption index, `δ/β`.
    pub delta_beta: f64,
}

impl Optics {
    /// Refuses what cannot be.
    ///
    /// # Errors
    /// Names the number.
    pub fn check(&self) -> Result<(), TomographyError> {
        check("photon energy in keV", self.energy_kev, "from 0.1 to 1000", |e| (0.1..=1e3).contains(&e))?;
        check("distance in mm", self.distance_mm, "from 0 to 1e6", |d| (0.0..=1e6).contains(&d))?;
        check("pixel size in µm", self.pixel_size_um, "from 1e-3 to 1000", |p| (1e-3..=1e3).contains(&p))?;
        check("delta/beta", self.delta_beta, "from 0 to 1e6", |r| (0.0..=1e6).contains(&r))
    }

    /// `L` in pixels: how far the filter reaches, by factors of e.
    #[must_use]
    pub fn length_px(&self) -> f64 {
        let wavelength_um = HC_KEV_UM / self.energy_kev;
        let square = wavelength_um * self.distance_mm * 1e3 * self.delta_beta / (4.0 * std::f64::consts::PI);
        square.sqrt() / self.pixel_size_um
    }

    /// Gain at `fy`, `fx` cycles per pixel.
    #[must_use]
    pub fn gain(&self, fy: f64, fx: f64) -> f64 {
        let w = std::f64::consts::TAU * self.length_px();
        1.0 / (1.0 + w * w * (fy * fy + fx * fx))
    }

    /// Pixels beyond which at most 1e-4 of the kernel lies: the margin after which the rest of a frame does not matter.
    ///
    /// Beyond the line at distance `r` lies `e^{−r/L}/2` of the kernel, the integral of its projection `e^{−|x|/L}/2L`.
    #[must_use]
    pub fn reach_px(&self) -> usize {
        (self.length_px() * (0.5_f64 / 1e-4).ln()).ceil() as usize
    }
}

/// Filters every frame of `[n, y, x]`, transmission, in place.
///
/// # Errors
/// As [`Optics::check`].
pub fn retrieve(mut frames: ArrayViewMut3<'_, f32>, optics: &Optics) -> Result<(), TomographyError> {
    let (_, rows, columns) = frames.dim();
    let plan = Plan::new(rows, columns, optics)?;
    let frames = frames.axis_iter_mut(Axis(0)).into_par_iter();
    frames.for_each_init(|| Scratch::new(&plan), |scratch, frame| plan.filter(frame, scratch));
    Ok(())
}

/// One direction of a frame.
struct Side {
    cosine: Cosine,
    /// Pixels of the frame.
    pixels: usize,
    /// First pixel's element.
    first: usize,
    /// `(L w)²` for every frequency.
    squares: Vec<f32>,
}

impl Side {
    fn new(pixels: usize, length_px: f64) -> Self {
        let length = good_length(pixels);
        // `C_k` is the frequency of k/2 cycles per length.
        let square = |k: usize| (std::f64::consts::PI * k as f64 / length as f64 * length_px).powi(2) as f32;
        let squares = (0..length).map(square).collect();
        Self { cosine: Cosine::new(length), pixels, first: (length - pixels) / 2, squares }
    }

    /// The pixel that stands at element `k`, and the cell it goes to.
    fn sources(&self) -> Vec<(u32, u32)> {
        let n = self.pixels as i64;
        let source = |k: usize| {
            let u = (k as i64 - self.first as i64).rem_euclid(2 * n);
            let u = if u < n { u } else { 2 * n - 1 - u };
            (u as u32, self.cosine.place(k) as u32)
        };
        (0..self.cosine.length()).map(source).collect()
    }

    /// The cell that holds each pixel.
    fn targets(&self) -> Vec<u32> {
        (0..self.pixels).map(|u| self.cosine.place(self.first + u) as u32).collect()
    }
}

/// One direction of a frame as a transform elsewhere needs it.
pub(super) struct Table {
    /// Elements of a line.
    pub(super) length: usize,
    /// The pixel that stands in each cell.
    pub(super) sources: Vec<u32>,
    /// The cell that holds each pixel.
    pub(super) targets: Vec<u32>,
    /// `(L w)²` for every frequency.
    pub(super) squares: Vec<f32>,
    /// `cos` and `sin` of `πk/length`, one after the other, `k = 0..=length/2`.
    pub(super) turns: Vec<f32>,
}

/// Tables of both directions, down and across.
///
/// # Errors
/// As [`Optics::check`], or a frame without pixels.
pub(super) fn tables(rows: usize, columns: usize, optics: &Optics) -> Result<[Table; 2], TomographyError> {
    let Plan { down, across, .. } = Plan::new(rows, columns, optics)?;
    Ok([down, across].map(|side| {
        let length = side.cosine.length();
        let mut sources = vec![0; length];
        side.sources().into_iter().for_each(|(from, cell)| sources[cell as usize] = from);
        let turn = |k: usize| {
            let (sin, cos) = (std::f64::consts::PI * k as f64 / length as f64).sin_cos();
            [cos as f32, sin as f32]
        };
        let turns = (0..=length / 2).flat_map(turn).collect();
        Table { length, sources, targets: side.targets(), squares: side.squares, turns }
    }))
}

struct Plan {
    across: Side,
    down: Side,
    across_from: Vec<(u32, u32)>,
    across_to: Vec<u32>,
    down_from: Vec<(u32, u32)>,
    down_to: Vec<u32>,
    isa: Isa,
}

struct Scratch {
    /// `[row, frequency across]`.
    half: Vec<f32>,
    line: Vec<Cell<V8>>,
    work: Vec<Cell<V8>>,
}

impl Scratch {
    fn new(plan: &Plan) -> Self {
        let longest = plan.across.cosine.length().max(plan.down.cosine.length());
        let line = vec![Cell::ZERO; longest];
        let half = vec![0.0; plan.down.pixels * plan.across.cosine.length()];
        Self { half, work: line.clone(), line }
    }
}

impl Plan {
    fn new(rows: usize, columns: usize, optics: &Optics) -> Result<Self, TomographyError> {
        optics.check()?;
        for (what, got) in [("rows of a frame", rows), ("columns of a frame", columns)] {
            if got == 0 {
                return Err(TomographyError::TooFew { what, got, needed: 1 });
            }
        }
        let length = optics.length_px();
        let (across, down) = (Side::new(columns, length), Side::new(rows, length));
        let (across_from, across_to) = (across.sources(), across.targets());
        let (down_from, down_to) = (down.sources(), down.targets());
        Ok(Self { across, down, across_from, across_to, down_from, down_to, isa: Isa::detect() })
    }

    fn filter(&self, frame: ArrayViewMut2<'_, f32>, scratch: &mut Scratch) {
        match self.isa {
            Isa::Portable => self.body::<false>(frame, scratch),
            // SAFETY: `Isa::Avx2` is only made by `Isa::detect`, after it found both features on this CPU.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { self.filter_avx2(frame, scratch) },
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn filter_avx2(&self, frame: ArrayViewMut2<'_, f32>, scratch: &mut Scratch) {
        self.body::<true>(frame, scratch);
    }

    #[inline(always)]
    fn body<const FMA: bool>(&self, mut frame: ArrayViewMut2<'_, f32>, scratch: &mut Scratch) {
        let (wide, high) = (self.across.cosine.length(), self.down.cosine.length());
        let Scratch { half, line, work } = scratch;
        for first in (0..self.down.pixels).step_by(LINES) {
            let rows = LINES.min(self.down.pixels - first);
            let line = &mut line[..wide];
            line.fill(Cell::ZERO);
            for block in self.across_from.chunks(BLOCK) {
                for l in 0..rows {
                    let row = frame.row(first + l);
                    for &(from, to) in block {
                        put(&mut line[to as usize], l, row[from as usize]);
                    }
                }
            }
            self.across.cosine.forward::<V8, FMA>(line, &mut work[..wide]);
            for start in (0..wide).step_by(BLOCK) {
                let end = (start + BLOCK).min(wide);
                for l in 0..rows {
                    let out = &mut half[(first + l) * wide..][start..end];
                    out.iter_mut().zip(&line[start..end]).for_each(|(v, cell)| *v = get(cell, l));
                }
            }
        }
        for first in (0..wide).step_by(LINES) {
            let columns = LINES.min(wide - first);
            let line = &mut line[..high];
            if columns < LINES {
                line.fill(Cell::ZERO);
            }
            for &(from, to) in &self.down_from {
                fill(&mut line[to as usize], &half[from as usize * wide + first..][..columns]);
            }
            self.down.cosine.forward::<V8, FMA>(line, &mut work[..high]);
            let mut squares = [0.0; LINES];
            squares[..columns].copy_from_slice(&self.across.squares[first..first + columns]);
            let scale = 1.0 / (wide as f32 * high as f32);
            for (cell, square) in line.iter_mut().zip(&self.down.squares) {
                for l in 0..V8::LANES {
                    cell.re.as_mut_slice()[l] *= scale / (1.0 + square + squares[l]);
                    cell.im.as_mut_slice()[l] *= scale / (1.0 + square + squares[V8::LANES + l]);
                }
            }
            self.down.cosine.inverse::<V8, FMA>(line, &mut work[..high]);
            for (row, &at) in self.down_to.iter().enumerate() {
                empty(&line[at as usize], &mut half[row * wide + first..][..columns]);
            }
        }
        for first in (0..self.down.pixels).step_by(LINES) {
            let rows = LINES.min(self.down.pixels - first);
            let line = &mut line[..wide];
            for start in (0..wide).step_by(BLOCK) {
                let end = (start + BLOCK).min(wide);
                for l in 0..rows {
                    let from = &half[(first + l) * wide..][start..end];
                    line[start..end].iter_mut().zip(from).for_each(|(cell, &v)| put(cell, l, v));
                }
            }
            self.across.cosine.inverse::<V8, FMA>(line, &mut work[..wide]);
            for (b, block) in self.across_to.chunks(BLOCK).enumerate() {
                for l in 0..rows {
                    let mut row = frame.row_mut(first + l);
                    for (u, &at) in block.iter().enumerate() {
                        row[b * BLOCK + u] = get(&line[at as usize], l);
                    }
                }
            }
        }
    }
}

/// Line `l` of sixteen: the first eight are real parts.
#[inline(always)]
fn put(cell: &mut Cell<V8>, l: usize, value: f32) {
    let part = if l < V8::LANES { &mut cell.re } else { &mut cell.im };
    part.as_mut_slice()[l % V8::LANES] = value;
}

#[inline(always)]
fn get(cell: &Cell<V8>, l: usize) -> f32 {
    let part = if l < V8::LANES { &cell.re } else { &cell.im };
    part.as_slice()[l % V8::LANES]
}

/// All lines at once: neighbours in memory.
#[inline(always)]
fn fill(cell: &mut Cell<V8>, values: &[f32]) {
    if let Some(values) = values.first_chunk::<LINES>() {
        cell.re.as_mut_slice().copy_from_slice(&values[..V8::LANES]);
        cell.im.as_mut_slice().copy_from_slice(&values[V8::LANES..]);
    } else {
        values.iter().enumerate().for_each(|(l, &v)| put(cell, l, v));
    }
}

#[inline(always)]
fn empty(cell: &Cell<V8>, values: &mut [f32]) {
    if let Some(values) = values.first_chunk_mut::<LINES>() {
        values[..V8::LANES].copy_from_slice(cell.re.as_slice());
        values[V8::LANES..].copy_from_slice(cell.im.as_slice());
    } else {
        values.iter_mut().enumerate().for_each(|(l, v)| *v = get(cell, l));
    }
}

#[cfg(test)]
#[path = "paganin_tests.rs"]
mod tests;
