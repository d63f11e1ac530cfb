//! Filtered back-projection by gridding: the fast path.
//!
//! For the image point `(x, y)` (axes and signs: [`super::convention`])
//! `f(x, y) = Σ_θ w_θ (1/P) Σ_m H_m S_θ(m) e^{2πi m (x cos θ + y sin θ + c)/P}` with `S_θ(m)` the discrete Fourier transform
//! of a row padded to `P ≥ 2N`, `H` the filter ([`super::filter`]), `w` the angular weights ([`super::quadrature`]) and `c`
//! the centre. This *is* filtered back-projection with rows interpolated without error; the double sum is evaluated as a
//! non-uniform Fourier transform (O'Sullivan, IEEE Trans. Med. Imaging 4, 200 (1985), and the references of the
//! kernel): each sample at frequency `m/P (cos θ, sin θ)` is spread with a kernel of 4² taps (module `kernel`) onto a
//! Cartesian grid of `M ≥ 1.5 N` cells (2 N with [`Padding::Edge`]; `N` the wider of row and image), an inverse
//! two-dimensional transform follows, and the image is divided by the kernel's transform. The row `m = ±P/2` (Nyquist) is split evenly between both signs, as real interpolation needs.
//!
//! Slices are real, so two share one complex grid, and pairs lie in SIMD lanes: a batch is 16, 8 or 2 slices. A batch is one
//! task of the current rayon pool, a batch of 2 is four of them, each with a grid of its own: no two threads write the same. The result is bitwise repeatable for equal batch
//! sizes on one kind of CPU, whatever the number of threads.
//!
//! Input `[row, angle, column]`, line integrals per pixel; output `[row, y, x]`, attenuation per pixel. NaN policy: inputs
//! must be finite; a NaN spoils its slice and the slice it is paired with.

use std::sync::Mutex;

use ndarray::parallel::prelude::*;
use ndarray::{Array3, ArrayView3, ArrayViewMut3, Axis};
use serde::{Deserialize, Serialize};

use super::batch::{self, Isa, Scratch};
use super::convention;
use super::error::{TomographyError, check};
use super::filter::Filter;
use super::kernel::{Kernel, WIDTH};
use super::lanes::{Lane, LaneFft, V1, V4, V8, good_length};
use super::quadrature;

/// What stands beyond the ends of a row before it is filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// Nothing: right when the sample lies inside the field of view.
    #[default]
    Zero,
    /// The row's end values: right when the sample is wider than the field of view (region of interest).
    Edge,
}

/// Geometry and choices of a reconstruction; what a [`Plan`] is made from.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry<'a> {
    /// Detector columns.
    pub columns: usize,
    /// Angles in radians, any list.
    pub angles: &'a [f64],
    /// Rotation centre, zero-based column index.
    pub centre: f64,
    /// Image edge in pixels; usually the number of columns.
    pub size: usize,
    /// Filter.
    pub filter: Filter,
    /// Row padding.
    pub padding: Padding,
}

impl<'a> Geometry<'a> {
    /// Axis in the middle, image as wide as the detector, default filter and padding.
    #[must_use]
    pub fn new(columns: usize, angles: &'a [f64]) -> Self {
        Self {
            columns,
            angles,
            centre: convention::middle(columns),
            size: columns,
            filter: Filter::default(),
            padding: Padding::default(),
        }
    }

    /// Refuses what cannot be reconstructed.
    ///
    /// # Errors
    /// No columns, angles or image; a centre outside `−N..2N`; an angle that is not finite.
    pub fn check(&self) -> Result<(), TomographyError> {
        for (what, got, needed) in
            [("detector columns", self.columns, 2), ("angles", self.angles.len(), 1), ("image size", self.size, 2)]
        {
            if got < needed {
                return Err(TomographyError::TooFew { what, got, needed });
            }
        }
        let n = self.columns as f64;
        check("rotation centre", self.centre, "a column within one detector width", |c| c > -n && c < 2.0 * n)?;
        self.angles.iter().try_for_each(|&a| check("angle", a, "a finite number of radians", |_| true))
    }

    /// Length the rows are padded to: at least twice the columns and, for images or centres that reach further than the
    /// row, at least as long as the stretch between the row's far end and the image's far rim.
    #[must_use]
    pub fn padded(&self) -> usize {
        let reach = self.centre.max(self.columns as f64 - 1.0 - self.centre) + self.size as f64 / 2.0;
        good_length((2 * self.columns).max(reach.ceil() as usize + 1))
    }
}

/// Buffers that wait for the next batch.
type Pool<V> = Mutex<Vec<Scratch<V>>>;

/// One angle as the hot loop needs it.
pub(super) struct Ray {
    pub(super) index: usize,
    pub(super) cos: f64,
    pub(super) sin: f64,
    /// Angular weight over the padded length.
    pub(super) weight: f32,
    /// Phase step per frequency index, radians: centre and the half pixel between image middle and grid index.
    pub(super) phase: f64,
}

/// Everything that slices of one geometry share. Build once, use from any thread.
pub struct Plan {
    pub(super) columns: usize,
    pub(super) angles: usize,
    pub(super) size: usize,
    pub(super) padded: usize,
    pub(super) grid: usize,
    pub(super) padding: Padding,
    pub(super) rays: Vec<Ray>,
    /// Filter gains for `0..=padded/2`, the last one halved (both signs of Nyquist get half).
    pub(super) gains: Vec<f32>,
    pub(super) kernel: Kernel,
    /// One over the kernel's transform per image index, with the sign that centres the grid.
    pub(super) deapodise: Vec<f32>,
    pub(super) row_fft: LaneFft,
    pub(super) grid_fft: LaneFft,
    isa: Isa,
    pools: (Pool<V1>, Pool<V4>, Pool<V8>),
}

/// Arithmetic and memory traffic of one slice, counted from the algorithm for a full batch of sixteen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Floating-point operations (a fused multiply-add is two).
    pub flops: f64,
    /// Bytes that must cross the memory bus: input, output, and each pass over a grid larger than the caches.
    pub bytes: f64,
}

/// Grids among which the angles of a single pair of slices are shared.
const SHARES: usize = 4;

/// Halo of the grid on every side: cells that belong to the other end.
pub(super) const HALO: usize = WIDTH / 2 + 1;

impl Plan {
    /// Plans a reconstruction.
    ///
    /// # Errors
    /// As [`Geometry::check`].
    pub fn new(geometry: &Geometry<'_>) -> Result<Self, TomographyError> {
        geometry.check()?;
        let (padded, size) = (geometry.padded(), geometry.size);
        // What the image does not show of the field folds back from the grid's ends, damped by the kernel: the wider of the
        // two decides, and in a region of interest, where the field ends in what is not zero, a wider grid damps it more.
        let field = size.max(geometry.columns);
        let grid = match geometry.padding {
            Padding::Zero => good_length(field + field.div_ceil(2)),
            Padding::Edge => good_length(2 * field),
        };
        let middle = convention::middle(size);
        let half_pixel = (size / 2) as f64 - middle;
        let rays = quadrature::directions(geometry.angles)
            .into_iter()
            .map(|d| {
                let (sin, cos) = d.angle.sin_cos();
                Ray {
                    index: d.index,
                    cos,
                    sin,
                    weight: (d.weight / padded as f64) as f32,
                    phase: std::f64::consts::TAU * (geometry.centre + half_pixel * (cos - sin)) / padded as f64,
                }
            })
            .collect();
        let mut gains: Vec<f32> = geometry.filter.response(padded).into_iter().map(|g| g as f32).collect();
        if let Some(nyquist) = gains.last_mut() {
            *nyquist /= 2.0;
        }
        let kernel = Kernel::new(grid as f64 / size as f64);
        let deapodise = (0..size)
            .map(|i| {
                let j = i as f64 - (size / 2) as f64;
                let sign = if (i + size / 2).is_multiple_of(2) { 1.0 } else { -1.0 };
                (sign / kernel.transform(j / grid as f64)) as f32
            })
            .collect();
        Ok(Self {
            columns: geometry.columns,
            angles: geometry.angles.len(),
            size,
            padded,
            grid,
            padding: geometry.padding,
            rays,
            gains,
            kernel,
            deapodise,
            row_fft: LaneFft::new(padded, false),
            grid_fft: LaneFft::new(grid, true),
            isa: Isa::detect(),
            pools: Default::default(),
        })
    }

    /// Reconstructs every row of `sinograms` `[row, angle, column]` into `[row, y, x]`.
    ///
    /// # Errors
    /// A sinogram of another shape than planned.
    pub fn reconstruct(&self, sinograms: ArrayView3<'_, f32>) -> Result<Array3<f32>, TomographyError> {
        let mut images = Array3::zeros((sinograms.len_of(Axis(0)), self.size, self.size));
        self.reconstruct_into(sinograms, images.view_mut())?;
        Ok(images)
    }

    /// As [`Plan::reconstruct`], into an array that exists.
    ///
    /// # Errors
    /// A sinogram or image of another shape than planned.
    pub fn reconstruct_into(
        &self,
        sinograms: ArrayView3<'_, f32>,
        mut images: ArrayViewMut3<'_, f32>,
    ) -> Result<(), TomographyError> {
        let rows = sinograms.len_of(Axis(0));
        for (what, got, expected) in [
            ("sinograms [row, angle, column]", sinograms.shape(), [rows, self.angles, self.columns]),
            ("images [row, y, x]", images.shape(), [rows, self.size, self.size]),
        ] {
            if got != expected {
                return Err(TomographyError::Shape { what, got: got.to_vec(), expected: expected.to_vec() });
            }
        }
        match fastest(rows, rayon::current_num_threads()).0 {
            8 => self.batches(&self.pools.2, sinograms, images.view_mut()),
            4 => self.batches(&self.pools.1, sinograms, images.view_mut()),
            _ => self.batches(&self.pools.0, sinograms, images.view_mut()),
        }
        Ok(())
    }

    fn batches<V: Lane>(&self, pool: &Pool<V>, sinograms: ArrayView3<'_, f32>, mut images: ArrayViewMut3<'_, f32>) {
        let slices = 2 * V::LANES;
        // A single pair is chosen when there is less to do than threads: then threads share its angles.
        let shares = if V::LANES == 1 { SHARES } else { 1 };
        images
            .axis_chunks_iter_mut(Axis(0), slices)
            .into_par_iter()
            .zip(sinograms.axis_chunks_iter(Axis(0), slices))
            .for_each(|(image, rows)| {
                // A thread that panicked while it held the lock left a whole `Vec` behind: use it.
                let locked = || pool.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let mut scratch: Vec<_> = (0..shares).map_while(|_| locked().pop()).collect();
                scratch.resize_with(shares, || Scratch::new(self));
                batch::run(self, self.isa, rows, image, &mut scratch);
                locked().append(&mut scratch);
            });
    }

    /// Working memory in bytes of `threads` threads on full batches, beside input and output. The plan keeps it.
    #[must_use]
    pub fn scratch_bytes(&self, threads: usize) -> usize {
        let cells = (self.grid + 2 * HALO).pow(2) + 2 * self.padded + (2 + batch::COLUMNS_AT_ONCE) * self.grid;
        threads * cells * 2 * V8::LANES * size_of::<f32>()
    }

    /// Arithmetic and traffic of a slice.
    #[must_use]
    pub fn cost(&self) -> Cost {
        let (angles, grid, size) = (self.angles as f64, self.grid as f64, self.size as f64);
        let samples = angles * (self.padded + 1) as f64;
        // Per pair of slices: transforms, filter and phase (a complex product), two parts of WIDTH² multiply-adds, fold.
        let rows = angles * self.row_fft.flops() + 6.0 * samples;
        let spread = samples * (WIDTH * WIDTH * 4) as f64;
        let planes = (grid + size) * (self.grid_fft.flops() + 2.0 * size);
        let input = angles * self.columns as f64 * 4.0;
        let output = size * size * 4.0;
        // Clear, spread (read and write), columns (read all, write the image's rows), rows (read), in halves of 8 bytes.
        let passes = 8.0 / 2.0 * (4.0 * grid * grid + 2.0 * size * grid);
        Cost { flops: (rows + spread + planes) / 2.0, bytes: input + output + passes }
    }

    /// Rows are padded to this length.
    #[must_use]
    pub fn padded(&self) -> usize {
        self.padded
    }

    /// Edge of the Cartesian grid.
    #[must_use]
    pub fn grid(&self) -> usize {
        self.grid
    }
}

/// Times of a batch of 8, 4 and 1 lanes relative to the widest, as measured: the narrower ones waste vector width and share
/// kernel weights among fewer slices.
const BATCHES: [(usize, f64); 3] = [(8, 1.0), (4, 0.6), (1, 0.44)];

/// Lanes (pairs of slices) that finish `rows` rows soonest on `threads` threads, and the time in full batches.
fn fastest(rows: usize, threads: usize) -> (usize, f64) {
    let time = |lanes: usize, cost: f64| rows.div_ceil(2 * lanes).div_ceil(threads.max(1)) as f64 * cost;
    let all = BATCHES.map(|(lanes, cost)| (lanes, time(lanes, cost)));
    all.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((8, 0.0))
}

/// How long `rows` rows take on `threads` threads, in times of a full batch of sixteen.
pub(super) fn effort(rows: usize, threads: usize) -> f64 {
    fastest(rows, threads).1
}

#[cfg(test)]
#[path = "gridding_tests.rs"]
mod tests;
