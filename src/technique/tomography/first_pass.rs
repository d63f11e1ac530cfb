//! The first pass: what a scan looks like, from a few of its pixels, within seconds.
//!
//! Of the projections at most [`ANGLES`] are read, evenly spread, and `b × b` of their pixels become one so that no side is
//! longer than [`EDGE`]. That small scan goes through the same steps as the large one and gives three orthogonal slices
//! through the middle of the volume (axial, coronal: `x`–`z` at the middle `y`, sagittal: `y`–`z` at the middle `x`) and the
//! sinogram of the middle row. Where rows are read directly, the axial slice and the sinogram come from the middle row
//! itself, all angles and pixels.
//!
//! Contract
//! - Column `u` of the small scan is the mean of columns `b·u … b·u + b − 1` of what the recipe leaves of the scan, so an axis
//!   at `c` lies at `(c + ½)/b − ½`.
//! - Shown are the rows and the region that the recipe wants, to within `b`; candidate axes as whole slices.
//! - Where rows are read directly, one row of every `b` is read, else all of a frame.
//! - The pictures are made of finished values (line integrals, attenuation); they are for looking, not for measuring.
//! - Slices are made by gridding whatever the recipe's algorithm: they are for looking, and within seconds.
//! - Memory: the small scan, which is made smaller until it takes a quarter of a task's, and a few slices; frames are read
//!   a few at a time.

use super::chain::{self, RawRows};
use super::compute::{self, Picture, Shared};
use super::load::{self, Opened};
use super::normalize::{self, Flat};
use super::paganin::Optics;
use super::recipe::{Algorithm, Center, CenterTry, Recipe};
use crate::formats::FrameList;
use crate::formats::stack::Sample;
use crate::technique::Fault;
use ndarray::{Array2, Array3, ArrayView3, Axis, s};
use rayon::prelude::*;
use std::ops::Range;

/// Longest side of the small scan, pixels.
const EDGE: usize = 384;
/// Projections read.
const ANGLES: usize = 300;
/// Darks, and flats of each group, read.
const CALIBRATIONS: usize = 8;
/// Frames read at a time, as f32.
const BATCH_BYTES: usize = 64 << 20;
/// Slices reconstructed at a time.
const SLICES: usize = 16;

/// The small scan.
pub(crate) struct Small {
    raw: RawRows,
    /// The middle row as it is, where rows are read directly.
    full: Option<RawRows>,
    angles: Vec<f64>,
    /// Pixels along a side that became one.
    bin: usize,
    /// Rows of it that are shown.
    shown: Range<usize>,
}

/// `n` positions of `count`, evenly.
fn spread(count: usize, n: usize) -> Vec<usize> {
    let n = n.clamp(1, count.max(1));
    (0..n.min(count)).map(|i| i * count / n).collect()
}

/// Means of `bin × bin` pixels of `[frame, row, column]`; what is left over at the ends is dropped.
fn binned(frames: ArrayView3<'_, f32>, rows_each: usize, bin: usize) -> Array3<f32> {
    let (count, rows, columns) = frames.dim();
    let mut out = Array3::zeros((count, (rows / rows_each).max(1), (columns / bin).max(1)));
    out.axis_iter_mut(Axis(0)).into_par_iter().zip(frames.axis_iter(Axis(0))).for_each(|(mut out, frame)| {
        let mut sums = vec![0f32; columns];
        for (r, mut line) in out.outer_iter_mut().enumerate() {
            let block = frame.slice(s![r * rows_each..((r + 1) * rows_each).min(rows), ..]);
            sums.fill(0.0);
            block.outer_iter().for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += v));
            for (value, group) in line.iter_mut().zip(sums.chunks(bin)) {
                *value = group.iter().sum::<f32>() / (block.nrows() * group.len()) as f32;
            }
        }
    });
    out
}

fn read(list: &FrameList, positions: &[usize], bin: usize, direct: bool, memory: u64) -> Result<Array3<f32>, Fault> {
    let (rows, columns) = (list.rows(), list.columns());
    let (small_rows, small_columns) = ((rows / bin).max(1), (columns / bin).max(1));
    let mut out = Array3::zeros((positions.len(), small_rows, small_columns));
    if direct {
        for r in 0..small_rows {
            let row = (r * bin + bin / 2).min(rows - 1);
            let small = binned(list.read_positions(positions, row..row + 1)?.view(), 1, bin);
            out.index_axis_mut(Axis(1), r).assign(&small.index_axis(Axis(1), 0));
        }
    } else {
        let held = BATCH_BYTES.min(usize::try_from(memory / 4).unwrap_or(usize::MAX));
        let batch = (held / (rows * columns * 4).max(1)).max(1);
        for (positions, mut out) in positions.chunks(batch).zip(out.axis_chunks_iter_mut(Axis(0), batch)) {
            out.assign(&binned(list.read_positions(positions, 0..rows)?.view(), bin.min(rows), bin));
        }
    }
    Ok(out)
}

/// Pixels along a side that become one: no side is longer than [`EDGE`], and the small scan takes a quarter of `memory`.
fn bin(rows: usize, columns: usize, angles: usize, memory: u64) -> usize {
    let bytes = |bin: usize| (angles * (rows / bin).max(1) * (columns / bin).max(1) * 4) as u64;
    let least = columns.max(rows).div_ceil(EDGE).max(1);
    (least..columns.max(least)).find(|&bin| bytes(bin) <= memory / 4).unwrap_or(least)
}

/// Reads the small scan; `memory`: what a task may hold.
///
/// # Errors
/// As reading does.
pub(crate) fn load(opened: &Opened, recipe: &Recipe, memory: u64) -> Result<Small, Fault> {
    let source = &opened.source;
    let header = &source.header;
    let bin = bin(header.rows, header.columns, header.projections().min(ANGLES), memory);
    let direct = source.projections.stack.packed_rows().is_none();
    let positions = spread(header.projections(), ANGLES);
    let some = |list: &FrameList| read(list, &spread(list.frames.len(), CALIBRATIONS), bin, direct, memory);
    let (mut darks, mut flats) = (None, Vec::new());
    if recipe.normalize {
        darks = source.darks.as_ref().map(some).transpose()?;
        // Projections are fewer here: the places of flats among them shrink alike.
        let scale = positions.len() as f64 / header.projections().max(1) as f64;
        for (at, list) in load::flats(opened) {
            flats.push((at * scale, some(list)?));
        }
    }
    let projections = read(&source.projections, &positions, bin, direct, memory)?;
    let angles = positions.iter().filter_map(|&p| opened.angles.get(p).copied()).collect();
    let raw = RawRows {
        rows: 0..projections.len_of(Axis(1)),
        margin: (0, 0),
        projections,
        darks,
        flats,
        optics: opened.optics.map(|o| Optics { pixel_size_um: o.pixel_size_um * bin as f64, ..o }),
        floating: matches!(header.sample, Sample::F32 | Sample::F64),
        transmission: false,
        at: source.projections.stack.at(),
    };
    let wanted = load::wanted_rows(opened, recipe);
    let middle = wanted.start + wanted.len() / 2;
    let shown = reduced((wanted.start, wanted.end), bin, raw.rows.end);
    let full = if direct { Some(load::rows(opened, recipe, middle..middle + 1)?) } else { None };
    Ok(Small { raw, full, angles, bin, shown })
}

/// Pictures of the small scan.
pub(crate) struct Views {
    /// Axial slice and sinogram, and where the axis is in pixels of the scan.
    pub middle: Picture,
    /// `[z, x]` at the middle `y`.
    pub coronal: Array2<f32>,
    /// `[z, y]` at the middle `x`.
    pub sagittal: Array2<f32>,
}

/// Reconstructs the small scan.
///
/// # Errors
/// As [`compute::prepare`] and [`compute::slab`].
pub(crate) fn views(shared: &Shared<'_>, small: Small) -> Result<Views, Fault> {
    let Small { mut raw, full, angles, bin, shown } = small;
    let b = bin as f64;
    let full = full.map(|row| compute::picture(shared, row)).transpose()?;
    let mut recipe = shared.recipe.clone();
    if let Some(full) = &full {
        recipe.center = Center::Pixel(full.axial.rotation_center_px);
        recipe.center_try = None;
    }
    // Candidates lie where they would on the whole detector.
    recipe.center_try = recipe.center_try.map(|t| CenterTry { range: t.range / b, step: t.step / b });
    recipe.center_search = (recipe.center_search / b).max(1.0);
    if let Center::Pixel(c) = recipe.center {
        recipe.center = Center::Pixel((c + 0.5) / b - 0.5);
    }
    // How wide a slice of the small scan is turns out with its axis; the region is cut out after that.
    let region = recipe.region.take();
    recipe.algorithm = Algorithm::Gridding;
    // The steps on frames, on whole frames.
    chain::check_beam(std::slice::from_ref(&raw), &recipe)?;
    let (_, height, width) = raw.projections.dim();
    let dark = raw.darks.as_ref().map(|d| normalize::mean_frame(d.view()));
    let flats = raw.flats.iter().map(|(at, f)| Flat { at: *at, mean: normalize::mean_frame(f.view()) }).collect();
    let (dark, flats) = chain::calibration(&recipe, (height, width), dark, flats);
    let RawRows { projections, optics, floating, at, .. } = &mut raw;
    let (dark, zinger, optics, floating) = (dark.view(), recipe.zinger, *optics, *floating);
    let steps = chain::Steps { dark, flats: &flats, first: 0, zinger, optics, floating, at };
    compute::transmission(projections, &steps)?;
    raw.transmission = true;
    let pixel_size_cm = shared.pixel_size_cm.map(|cm| cm * b);
    let shared = Shared { recipe: &recipe, angles: &angles, pixel_size_cm, image_size: None, bin };
    let row = shown.start + shown.len() / 2;
    let mut middle = compute::picture(&shared, rows_of(&raw, row..row + 1))?;
    let shared = Shared { image_size: middle.axial.image_size, ..shared };
    let center = middle.axial.rotation_center_px;
    let size = middle.slice.ncols();
    let side = |span: Option<(usize, usize)>| span.map_or(0..size, |span| reduced(span, bin, size));
    let (x, y) = region.map_or((0..size, 0..size), |r| (side(r.x), side(r.y)));
    let (mut coronal, mut sagittal) = (Array2::zeros((shown.len(), x.len())), Array2::zeros((shown.len(), y.len())));
    for first in shown.clone().step_by(SLICES) {
        let some = first..(first + SLICES).min(shown.end);
        let (volume, _) = compute::slab(&shared, center, rows_of(&raw, some.clone()))?;
        for (z, slice) in some.zip(volume.outer_iter()) {
            coronal.row_mut(z - shown.start).assign(&slice.slice(s![y.start + y.len() / 2, x.clone()]));
            sagittal.row_mut(z - shown.start).assign(&slice.slice(s![y.clone(), x.start + x.len() / 2]));
        }
    }
    middle.slice = middle.slice.slice(s![y, x]).to_owned();
    let back = |c: f64| (c + 0.5) * b - 0.5;
    middle.axial.rotation_center_px = back(center);
    middle.axial.image_size = middle.axial.image_size.map(|n| n * bin);
    middle.axial.rows.iter_mut().for_each(|(row, c)| (*row, *c) = (*row * bin, back(*c)));
    Ok(Views { middle: full.unwrap_or(middle), coronal, sagittal })
}

/// Where `[first, end]` lies among `size` pixels of which each is `bin` wide; one of them at least.
fn reduced((first, end): (usize, usize), bin: usize, size: usize) -> Range<usize> {
    let first = (first / bin).min(size.saturating_sub(1));
    first..end.div_ceil(bin).clamp(first + 1, size.max(first + 1))
}

/// Some rows of the small scan, as a task would have read them.
fn rows_of(raw: &RawRows, rows: Range<usize>) -> RawRows {
    let some = |a: &Array3<f32>| a.slice(s![.., rows.clone(), ..]).to_owned();
    RawRows {
        margin: (0, 0),
        projections: some(&raw.projections),
        darks: raw.darks.as_ref().map(some),
        flats: raw.flats.iter().map(|(at, f)| (*at, some(f))).collect(),
        optics: None,
        floating: raw.floating,
        transmission: raw.transmission,
        at: raw.at.clone(),
        rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_makes_the_small_scan_smaller() {
        assert_eq!(bin(2048, 2048, 300, 8 << 30), 6);
        assert_eq!(bin(20, 48, 40, 8 << 30), 1);
        let small = bin(2048, 2048, 300, 64 << 20);
        assert!(small > 6 && 300 * (2048 / small) * (2048 / small) * 4 <= 16 << 20, "{small}");
    }

    #[test]
    fn what_is_shown_lies_in_the_small_scan() {
        assert_eq!(reduced((0, 100), 4, 25), 0..25);
        assert_eq!(reduced((41, 60), 4, 25), 10..15);
        // The 102 columns of a 25 pixel wide scan: the last two are in none.
        assert_eq!(reduced((101, 102), 4, 25), 24..25);
        assert_eq!(reduced((7, 8), 4, 25), 1..2);
    }

    #[test]
    fn positions_are_spread_and_bins_are_means() {
        assert_eq!(spread(10, 3), [0, 3, 6]);
        assert_eq!(spread(2, 300), [0, 1]);
        assert_eq!(spread(0, 8), Vec::<usize>::new());
        let frames = Array3::from_shape_fn((2, 5, 7), |(f, r, c)| (f * 100 + r * 10 + c) as f32);
        let small = binned(frames.view(), 2, 2);
        assert_eq!(small.dim(), (2, 2, 3));
        assert_eq!(small[[1, 1, 2]], (124.0 + 125.0 + 134.0 + 135.0) / 4.0);
        // Fewer rows than a bin: what there is.
        assert_eq!(binned(frames.slice(s![.., ..1, ..]), 1, 4).dim(), (2, 1, 1));
    }
}
