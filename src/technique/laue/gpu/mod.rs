//! Slabs of a Laue point on a GPU: the same steps as [`super::slab::resolve`] on the CPU, kernel by kernel.
//!
//! Contract
//! - The algorithm is that of the CPU. Positions are equal but where two offsets differ by less than the rounding of
//!   single-precision correlations; everything behind them is in double precision. What the GPU cannot do it declines, in
//!   words, and the CPU does it.
//! - A slab goes through in chunks of rows, and a chunk's bright pixels in batches (`list`), both sized to the device's free
//!   memory; when memory runs out nevertheless both are halved, and a slab of which not even the least batch fits is
//!   declined.
//! - Three streams: while a chunk is decoded the next is uploaded and selected, and the one before downloaded (`pipeline`).
//! - Whether a pixel has light of a second place is decided on the CPU, for those whose fit leaves more than noise.
//! - Nothing is added in an order that is not fixed, and no pixel depends on another: results are the same bits however
//!   the detector is cut, and whatever the batches.
//! - A device that fails is [`Fault::Task`]: the task is tried elsewhere, and the device is for the coordinator to judge.
//! - The histogram over depth sums the stack's single-precision values; the CPU's sums them before they are rounded.

pub mod bench;
pub mod check;
pub mod cost;
mod list;
mod memory;
mod pipeline;
mod slot;
mod steps;
mod store;
mod wire;

pub(crate) use pipeline::make_room;

use super::decode::{Decoder, EnergyOptions};
use super::depth::DepthGrid;
use super::mask::gold_per_um;
use super::slab::{self, Resolver, Slab};
use crate::device::{self, DeviceError, Gpu, Selected};
use crate::technique::Fault;
use ndarray::ArrayView3;
use std::ops::Range;

/// What the kernels of the coded aperture want to know beside the pixels.
pub(super) struct Aperture<'a> {
    pub decoder: &'a Decoder,
    /// Samples of the mask.
    pub samples: usize,
    /// Samples of the window in which a footprint may lie.
    pub window: usize,
    /// B-splines in it, cells of one, and cells from one to the next.
    pub splines: usize,
    pub support: usize,
    pub knots: usize,
    /// Energies to choose from, keV and attenuation per µm; empty when none is wanted.
    pub energies: Vec<[f64; 2]>,
    /// Attenuation per µm of the energy that is given.
    pub fixed: Option<f64>,
    /// Longest resampled measurement, with room; the same for all slabs of a point.
    pub longest: usize,
    /// Offsets that are right in a transform; 0: correlations are matrix products.
    pub valid: usize,
}

impl Aperture<'_> {
    fn new(decoder: &Decoder, frames: usize) -> Aperture<'_> {
        let setup = decoder.setup();
        let (basis, splines, window) = decoder.basis();
        let (energies, fixed) = match setup.energy {
            EnergyOptions::Unknown => (Vec::new(), None),
            EnergyOptions::Fixed(kev) => (Vec::new(), Some(gold_per_um(kev))),
            EnergyOptions::Fit(first, end, step) => {
                let steps = ((end - first) / step).ceil().max(0.0) as usize;
                let at = |i: usize| first + i as f64 * step;
                ((0..steps).map(|i| [at(i), gold_per_um(at(i))]).collect(), None)
            }
        };
        let region = decoder.region();
        // Pixels up to the end of the chip, whatever part of it is read out or asked for.
        let ends = |axis: usize| {
            let last = setup.detector.shape[axis].saturating_sub(region.start[axis] + 1) / region.bin[axis].max(1);
            [0, last / 2, last]
        };
        let views = ends(1).into_iter().flat_map(|r| ends(0).map(|c| decoder.view(r, c)));
        // The step hardly varies over a detector; two per cent are room for what lies between.
        let step = views.map(|v| v.step_um.abs() / setup.mask.resolution_um).fold(0.0, f64::max) * 1.02;
        let samples = super::mask::Mask::new(&setup.mask).samples();
        let longest = ((frames as f64 * step) as usize + 64).next_multiple_of(64).min(samples.next_multiple_of(64));
        let (support, knots) = (basis.len(), setup.footprint.knots.max(1));
        // Up to half of a transform: with more too few offsets would be right.
        let valid = if 2 * longest <= memory::POINTS { memory::POINTS + 1 - longest } else { 0 };
        Aperture { decoder, samples, window, splines, support, knots, energies, fixed, longest, valid }
    }

    /// Coefficients of a footprint: splines and the background.
    pub fn unknowns(&self) -> usize {
        self.splines + 1
    }

    fn fits(&self) -> bool {
        self.decoder.setup().footprint.fit
    }
}

/// A slab: everything but its counts.
pub(super) struct Setup<'a> {
    pub resolver: &'a Resolver,
    pub aperture: Option<Aperture<'a>>,
    pub grid: DepthGrid,
    pub frames: usize,
    /// Rows, the first in the frames' numbers.
    pub first: usize,
    pub rows: usize,
    /// Columns that are resolved.
    pub columns: Range<usize>,
}

impl<'a> Setup<'a> {
    fn new(
        resolver: &'a Resolver,
        (frames, rows): (usize, usize),
        first: usize,
        columns: Range<usize>,
        grid: DepthGrid,
    ) -> Self {
        let aperture = match resolver {
            Resolver::Aperture(decoder) => Some(Aperture::new(decoder, frames)),
            Resolver::Wire(_) => None,
        };
        Self { resolver, aperture, grid, frames, first, rows, columns }
    }
}

/// What came of a slab.
pub(super) enum Outcome {
    /// As the CPU's.
    Done(Box<Slab>),
    /// Left to the CPU, and why.
    Declined(String),
}

/// Resolves a slab on this process's GPU when it has one that is fit and can do it, else on the CPU; arguments as of
/// [`slab::resolve`], `at` names the point in messages.
///
/// # Errors
/// [`Fault::Task`] when the GPU fails: from then on this process has none.
pub(super) fn resolve(
    resolver: &Resolver,
    raw: ArrayView3<'_, f32>,
    first: usize,
    columns: Range<usize>,
    grid: DepthGrid,
    at: &str,
) -> Result<Slab, Fault> {
    if let Selected::Gpu(gpu) = device::shared() {
        match on_gpu(&gpu, resolver, raw, first, columns.clone(), grid) {
            Ok(Outcome::Done(slab)) => return Ok(*slab),
            Ok(Outcome::Declined(why)) => tracing::info!(scan = at, row = first, "not on the GPU: {why}"),
            Err(error) => {
                // This try is lost; the next one here runs on the processors, and the coordinator is told.
                let fault = Fault::Task(format!("{at}: the GPU failed: {error}"));
                device::lose(fault.to_string());
                return Err(fault);
            }
        }
    }
    Ok(slab::resolve(resolver, raw, first, columns, grid.bins))
}

/// As [`resolve`], on this GPU or not at all.
fn on_gpu(
    gpu: &Gpu,
    resolver: &Resolver,
    raw: ArrayView3<'_, f32>,
    first: usize,
    columns: Range<usize>,
    grid: DepthGrid,
) -> Result<Outcome, DeviceError> {
    let (frames, rows, _) = raw.dim();
    if frames == 0 || rows == 0 || columns.is_empty() {
        return Ok(Outcome::Declined("there is no pixel in it".to_owned()));
    }
    gpu.bind()?;
    let setup = Setup::new(resolver, (frames, rows), first, columns, grid);
    if let Some(why) = memory::too_large(gpu, &setup)? {
        return Ok(Outcome::Declined(why));
    }
    Ok(match pipeline::run(gpu, &setup, raw)? {
        Ok(slab) => Outcome::Done(Box::new(slab)),
        Err(why) => Outcome::Declined(why),
    })
}
