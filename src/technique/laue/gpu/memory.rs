//! How much of a device a chunk and a batch take, and how many pixels fit.

use super::Setup;
use super::list::{REALS, TILE_FIELDS, WHOLES};
use crate::device::{DeviceError, Gpu};
use cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as SHARED_MEMORY;

/// Pixels of a chunk, at least a row: some hundred megabytes on their way, so that copies and kernels overlap.
const CHUNK: usize = 1 << 16;
/// Listed pixels that are decoded together: enough to fill a card many times over.
const BATCH: usize = 1 << 14;
/// Fewest of them; with less a slab is declined.
const LEAST: usize = 32;
/// Bytes of templates that are held.
const TEMPLATES: usize = 128 << 20;
/// Share of the free memory that is planned for; the rest is for what others take meanwhile, and for rounding.
const PLANNED: f64 = 0.9;
/// Warps of a block that fits footprints.
pub(super) const WARPS: usize = 4;

/// Points of a transform; `POINTS` of laue_transform.cu.
pub(super) const POINTS: usize = 4096;

/// Sizes that memory is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    /// How often it was halved.
    pub halved: u32,
    pub frames: usize,
    pub bins: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Most rows of a chunk.
    pub rows: usize,
    /// Most listed pixels of a batch; 0 for a wire.
    pub batch: usize,
    /// Most templates held.
    pub templates: usize,
    pub samples: usize,
    /// Room for a resampled measurement, samples.
    pub stride: usize,
    /// Pairs of stretches of a template that are transformed; 0: correlations are matrix products.
    pub pairs: usize,
    pub window: usize,
    pub unknowns: usize,
    /// Coefficients are fitted at all.
    pub fits: bool,
}

impl Needs {
    /// Sizes for a slab, halved so many times.
    pub fn of(setup: &Setup<'_>, halved: u32) -> Self {
        let width = setup.columns.len();
        let rows = ((CHUNK / width) >> halved).clamp(1, setup.rows.max(1));
        let mut needs = Self {
            halved,
            frames: setup.frames,
            bins: setup.grid.bins,
            width,
            rows,
            batch: 0,
            templates: 0,
            samples: 0,
            stride: 0,
            pairs: 0,
            window: 0,
            unknowns: 0,
            fits: false,
        };
        if let Some(a) = &setup.aperture {
            needs.pairs = if a.valid == 0 { 0 } else { a.samples.div_ceil(2 * a.valid) };
            let one = 24 * a.samples + 24 + 8 * POINTS * needs.pairs;
            needs.batch = (BATCH >> halved).max(LEAST);
            needs.templates = ((TEMPLATES / one) >> halved).clamp(8, 1024);
            (needs.samples, needs.stride, needs.window) = (a.samples, a.longest, a.window);
            (needs.unknowns, needs.fits) = (a.unknowns(), a.fits());
        }
        needs
    }

    /// Pixels of a chunk.
    pub fn pixels(&self) -> usize {
        self.rows * self.width
    }

    /// Doubles of a batch's `grams`, `factors`; 0 when nothing is fitted.
    pub fn squares(&self) -> usize {
        if self.fits { self.batch * self.unknowns * self.unknowns } else { 0 }
    }

    /// Can memory that was made for `kept` serve these?
    pub fn served_by(&self, kept: &Self) -> bool {
        let room = |mine: usize, theirs: usize| mine <= theirs && theirs <= 4 * mine;
        let same = Self { rows: self.rows, stride: self.stride, halved: self.halved, batch: self.batch, ..*kept };
        same == *self
            && (self.stride == kept.stride || room(self.stride, kept.stride))
            && (room(self.rows, kept.rows) || kept.halved > 0)
    }

    /// Device memory of one of the two slots.
    fn slot(&self) -> usize {
        let pixels = self.pixels();
        let counts = 6 * self.frames * pixels;
        let stack = 4 * self.bins * pixels;
        let aperture = 9 + 8 * REALS + 4 * (WHOLES + TILE_FIELDS) + 16 + 20 + 4;
        let wire = 32 + 20 + 32 + 1;
        counts + stack + pixels * if self.batch > 0 { aperture } else { wire }
    }

    /// Device memory of all.
    pub fn total(&self) -> usize {
        let batch = 4 * self.stride + 4 * self.samples.next_multiple_of(4) + 84;
        let fit = if self.fits { 8 * (self.stride + self.window + 2 * self.unknowns) + 4 } else { 0 };
        let columns = if self.batch > 0 { 0 } else { 8 * self.bins * self.pixels() };
        let spectra = 8 * POINTS * self.pairs;
        let templates = self.templates * (24 * self.samples + 24 + spectra);
        2 * self.slot() + self.batch * (batch + fit) + 16 * self.squares() + columns + templates
    }

    /// As little as there can be?
    pub fn least(&self) -> bool {
        self.rows == 1 && self.batch <= LEAST
    }
}

/// The largest sizes that the free memory allows; the least at the least.
pub(super) fn plan(gpu: &Gpu, setup: &Setup<'_>) -> Result<Needs, DeviceError> {
    let planned = (gpu.memory()?.0 as f64 * PLANNED) as usize;
    let mut needs = Needs::of(setup, 0);
    while needs.total() > planned && !needs.least() {
        needs = Needs::of(setup, needs.halved + 1);
    }
    Ok(needs)
}

/// Dynamic shared memory of the kernels of footprints, bytes: normal equations, energies, least squares, depths.
pub(super) fn shared(longest: usize, window: usize, unknowns: usize) -> [usize; 4] {
    [16 * (longest + window), 8 * (longest + 2 * window), WARPS * unknowns * (6 * 8 + 2 * 4), 4 * 8 * window]
}

/// Why this slab is not for the kernels, if so.
pub(super) fn too_large(gpu: &Gpu, setup: &Setup<'_>) -> Result<Option<String>, DeviceError> {
    let Some(a) = &setup.aperture else { return Ok(None) };
    // The reductions have a little static memory beside it.
    let limit = usize::try_from(gpu.attribute(SHARED_MEMORY)?).unwrap_or(0).saturating_sub(1024);
    let [normal, energy, nnls, deposit] = shared(a.longest, a.window, a.unknowns());
    let limits = [
        (normal.max(energy) <= limit, "too many frames for a footprint"),
        (nnls.max(deposit) <= limit, "too wide a window, or too many knots, for a footprint"),
    ];
    Ok(limits.into_iter().find(|(fits, _)| !fits).map(|(_, why)| format!("{why}: done on the CPU")))
}
