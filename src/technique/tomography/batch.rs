//! The hot loops of [`super::gridding`]: one batch of slices, two in every lane, on one thread.
//!
//! Order of work, chosen so that every large array is passed over as seldom as possible: clear the grid; per angle load
//! the rows into lanes, transform, filter, spread at once while the row is still in cache (neighbouring angles touch the
//! same cells); fold the halo; transform columns, keeping the image's rows only; transform those rows and write out.
//! Grid cells are `[re of all lanes, im of all lanes]`, so a tap is one aligned multiply-add per vector.

use ndarray::{ArrayView3, ArrayViewMut3, Axis, s};
use rayon::prelude::*;

use super::gridding::{HALO, Padding, Plan, Ray};
use super::kernel::WIDTH;
use super::lanes::{Cell, Lane};

/// Grid columns transformed together: adjacent cells of a row then come in one stretch of memory.
pub(super) const COLUMNS_AT_ONCE: usize = 8;

/// Which compilation of the loops to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isa {
    /// Whatever the build's baseline is.
    Portable,
    /// 256-bit vectors and fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Isa {
    /// The best this CPU has.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Self::Avx2;
        }
        Self::Portable
    }
}

/// Buffers of one thread.
pub(super) struct Scratch<V> {
    grid: Vec<Cell<V>>,
    row: Vec<Cell<V>>,
    row_work: Vec<Cell<V>>,
    columns: Vec<Cell<V>>,
    column_work: Vec<Cell<V>>,
}

impl<V: Lane> Scratch<V> {
    pub(super) fn new(plan: &Plan) -> Self {
        let edge = plan.grid + 2 * HALO;
        Self {
            grid: vec![Cell::ZERO; edge * edge],
            row: vec![Cell::ZERO; plan.padded],
            row_work: vec![Cell::ZERO; plan.padded],
            columns: vec![Cell::ZERO; COLUMNS_AT_ONCE * plan.grid],
            column_work: vec![Cell::ZERO; plan.grid],
        }
    }
}

/// Reconstructs up to `2 · LANES` rows `[row, angle, column]` into as many images `[row, y, x]`.
///
/// The angles are shared out among the members of `scratch`, each with a grid of its own, and spread side by side; the
/// grids are then added up. Results depend on how many members there are, not on how many threads.
pub(super) fn run<V: Lane>(
    plan: &Plan,
    isa: Isa,
    rows: ArrayView3<'_, f32>,
    images: ArrayViewMut3<'_, f32>,
    scratch: &mut [Scratch<V>],
) {
    let share = plan.rays.len().div_ceil(scratch.len().max(1));
    scratch.par_iter_mut().enumerate().for_each(|(i, scratch)| {
        let end = ((i + 1) * share).min(plan.rays.len());
        let rays = plan.rays.get(i * share..end).unwrap_or_default();
        match isa {
            Isa::Portable => gather::<V, false>(plan, rays, rows, scratch),
            // SAFETY: `Isa::Avx2` is only made by `Isa::detect`, after it found both features on this CPU.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { gather_avx2(plan, rays, rows, scratch) },
        }
    });
    let Some((first, others)) = scratch.split_first_mut() else { return };
    if !others.is_empty() {
        // A few rows of the grid at a time.
        let piece = 16 * (plan.grid + 2 * HALO);
        first.grid.par_chunks_mut(piece).enumerate().for_each(|(i, sum)| {
            for other in others.iter() {
                sum.iter_mut().zip(&other.grid[i * piece..]).for_each(|(sum, part)| *sum = sum.add(*part));
            }
        });
    }
    match isa {
        Isa::Portable => transform::<V, false>(plan, images, first),
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { transform_avx2(plan, images, first) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn gather_avx2<V: Lane>(plan: &Plan, rays: &[Ray], rows: ArrayView3<'_, f32>, scratch: &mut Scratch<V>) {
    gather::<V, true>(plan, rays, rows, scratch);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn transform_avx2<V: Lane>(plan: &Plan, images: ArrayViewMut3<'_, f32>, scratch: &mut Scratch<V>) {
    transform::<V, true>(plan, images, scratch);
}

/// From rows to the grid.
#[inline(always)]
fn gather<V: Lane, const FMA: bool>(plan: &Plan, rays: &[Ray], rows: ArrayView3<'_, f32>, scratch: &mut Scratch<V>) {
    scratch.grid.fill(Cell::ZERO);
    for ray in rays {
        load(plan, rows.index_axis(Axis(1), ray.index), &mut scratch.row);
        plan.row_fft.process::<V, FMA>(&mut scratch.row, &mut scratch.row_work);
        spread::<V, FMA>(plan, ray, &scratch.row, &mut scratch.grid);
    }
}

/// From the grid to images.
#[inline(always)]
fn transform<V: Lane, const FMA: bool>(plan: &Plan, mut images: ArrayViewMut3<'_, f32>, scratch: &mut Scratch<V>) {
    fold(plan.grid, &mut scratch.grid);
    transform_columns::<V, FMA>(plan, scratch);
    transform_rows::<V, FMA>(plan, scratch, &mut images);
}

/// Cells handled at a time where lanes are filled or emptied: 8 KiB, so that the lanes' passes find them in the first cache.
const BLOCK: usize = 128;

/// Puts a value of slice `i` of the batch in its place.
#[inline(always)]
fn put<V: Lane>(cell: &mut Cell<V>, i: usize, value: f32) {
    let part = if i.is_multiple_of(2) { &mut cell.re } else { &mut cell.im };
    part.as_mut_slice()[i / 2] = value;
}

/// Rows of one angle `[row, column]` into lanes: row `2l` is the real part of lane `l`, row `2l + 1` its imaginary part.
#[inline(always)]
fn load<V: Lane>(plan: &Plan, rows: ndarray::ArrayView2<'_, f32>, line: &mut [Cell<V>]) {
    let n = plan.columns;
    line.fill(Cell::ZERO);
    for (i, row) in rows.outer_iter().enumerate() {
        if row.as_slice().is_none() {
            line.iter_mut().zip(row.iter()).for_each(|(cell, &v)| put(cell, i, v));
        }
    }
    for first in (0..n).step_by(BLOCK) {
        let last = (first + BLOCK).min(n);
        for (i, row) in rows.outer_iter().enumerate() {
            if let Some(row) = row.to_slice() {
                line[first..last].iter_mut().zip(&row[first..last]).for_each(|(cell, &v)| put(cell, i, v));
            }
        }
    }
    for (i, row) in rows.outer_iter().enumerate() {
        if plan.padding == Padding::Edge {
            // The row is periodic in the padded length: its right half of the pad continues the right end, the rest the left.
            let split = n + (plan.padded - n) / 2;
            line[n..split].iter_mut().for_each(|cell| put(cell, i, row[n - 1]));
            line[split..].iter_mut().for_each(|cell| put(cell, i, row[0]));
        }
    }
}

/// Filters one transformed row and spreads its samples onto the grid.
#[inline(always)]
fn spread<V: Lane, const FMA: bool>(plan: &Plan, ray: &Ray, line: &[Cell<V>], grid: &mut [Cell<V>]) {
    let edge = plan.grid + 2 * HALO;
    let middle = (plan.grid / 2 + HALO) as f64;
    let step = plan.grid as f64 / plan.padded as f64;
    let (dx, dy) = (step * ray.cos, -step * ray.sin);
    let half = plan.padded / 2;
    // e^{i phase m} by products of a coarse and a fine step: one rounding to f32, no accumulated error.
    const FINE: usize = 32;
    let fine: [(f64, f64); FINE] = std::array::from_fn(|k| {
        let (sin, cos) = (ray.phase * k as f64).sin_cos();
        (cos, sin)
    });
    for block in (0..=half).step_by(FINE) {
        let (coarse_sin, coarse_cos) = (ray.phase * block as f64).sin_cos();
        for (k, &(fine_cos, fine_sin)) in fine.iter().enumerate().take(half + 1 - block) {
            let m = block + k;
            let gain = plan.gains[m] * ray.weight;
            let c = (coarse_cos * fine_cos - coarse_sin * fine_sin) as f32 * gain;
            let s = (coarse_cos * fine_sin + coarse_sin * fine_cos) as f32 * gain;
            let (x, y) = (dx * m as f64, dy * m as f64);
            let sample = line[m].rotate::<FMA>(c, s);
            add_sample::<V, FMA>(plan, middle + x, middle + y, edge, sample, grid);
            if m > 0 {
                let sample = line[plan.padded - m].rotate::<FMA>(c, -s);
                add_sample::<V, FMA>(plan, middle - x, middle - y, edge, sample, grid);
            }
        }
    }
}

/// Adds one sample to the `WIDTH × WIDTH` cells around grid position `(x, y)`.
#[inline(always)]
fn add_sample<V: Lane, const FMA: bool>(
    plan: &Plan,
    x: f64,
    y: f64,
    edge: usize,
    sample: Cell<V>,
    grid: &mut [Cell<V>],
) {
    // Positions are positive, so that truncation after adding one is the next integer above (or one, for integers).
    let (left, top) = (x - WIDTH as f64 / 2.0, y - WIDTH as f64 / 2.0);
    let (column, row) = (left as i32 + 1, top as i32 + 1);
    let across = plan.kernel.weights((f64::from(column) - left) as f32);
    let down = plan.kernel.weights((f64::from(row) - top) as f32);
    let mut at = row as usize * edge + column as usize;
    for weight in down {
        let part = sample.scale(weight);
        // The halo is as wide as the kernel reaches: there always are cells.
        let Some(cells) = grid.get_mut(at..).and_then(<[_]>::first_chunk_mut::<WIDTH>) else {
            return;
        };
        for k in 0..WIDTH {
            cells[k] = cells[k].add_scaled::<FMA>(across[k], part);
        }
        at += edge;
    }
}

/// Adds the halo to the cells it stands for: the grid is periodic.
#[inline(always)]
fn fold<V: Lane>(grid_edge: usize, grid: &mut [Cell<V>]) {
    let edge = grid_edge + 2 * HALO;
    let halo = || (0..HALO).map(|h| (h, h + grid_edge)).chain((0..HALO).map(|h| (HALO + grid_edge + h, HALO + h)));
    for (from, to) in halo() {
        for column in 0..edge {
            grid[to * edge + column] = grid[to * edge + column].add(grid[from * edge + column]);
        }
    }
    for row in HALO..HALO + grid_edge {
        for (from, to) in halo() {
            grid[row * edge + to] = grid[row * edge + to].add(grid[row * edge + from]);
        }
    }
}

/// Transforms every column; image row `iy` is left in grid row `HALO + iy`, deapodised along y.
#[inline(always)]
fn transform_columns<V: Lane, const FMA: bool>(plan: &Plan, scratch: &mut Scratch<V>) {
    let (m, edge) = (plan.grid, plan.grid + 2 * HALO);
    for first in (HALO..HALO + m).step_by(COLUMNS_AT_ONCE) {
        let together = COLUMNS_AT_ONCE.min(HALO + m - first);
        for k in 0..m {
            let from = &scratch.grid[(HALO + k) * edge + first..][..together];
            for (j, cell) in from.iter().enumerate() {
                scratch.columns[j * m + k] = *cell;
            }
        }
        for column in scratch.columns.chunks_exact_mut(m).take(together) {
            plan.grid_fft.process::<V, FMA>(column, &mut scratch.column_work);
        }
        for (i, &factor) in plan.deapodise.iter().enumerate() {
            let k = image_index(i, plan);
            let to = &mut scratch.grid[(HALO + i) * edge + first..][..together];
            for (j, cell) in to.iter_mut().enumerate() {
                *cell = scratch.columns[j * m + k].scale(factor);
            }
        }
    }
}

/// Where image index `i` lies in a transformed line.
#[inline(always)]
fn image_index(i: usize, plan: &Plan) -> usize {
    let half = plan.size / 2;
    if i >= half { i - half } else { plan.grid + i - half }
}

/// Transforms the image's rows and writes them out.
#[inline(always)]
fn transform_rows<V: Lane, const FMA: bool>(
    plan: &Plan,
    scratch: &mut Scratch<V>,
    images: &mut ArrayViewMut3<'_, f32>,
) {
    let (m, edge) = (plan.grid, plan.grid + 2 * HALO);
    for iy in 0..plan.size {
        let line = &mut scratch.grid[(HALO + iy) * edge + HALO..][..m];
        plan.grid_fft.process::<V, FMA>(line, &mut scratch.column_work);
        // The image's left half lies at the end of the transformed line.
        let half = plan.size / 2;
        for (start, end, from) in [(0, half, m - half), (half, plan.size, 0)] {
            for first in (start..end).step_by(BLOCK) {
                let last = (first + BLOCK).min(end);
                let cells = &line[from + first - start..from + last - start];
                let factors = &plan.deapodise[first..last];
                for (i, mut image) in images.outer_iter_mut().enumerate() {
                    let mut out = image.slice_mut(s![iy, first..last]);
                    for ((value, cell), factor) in out.iter_mut().zip(cells).zip(factors) {
                        let part = if i.is_multiple_of(2) { &cell.re } else { &cell.im };
                        *value = part.as_slice()[i / 2] * factor;
                    }
                }
            }
        }
    }
}
