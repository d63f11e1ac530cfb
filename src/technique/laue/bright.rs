//! The brightest spots of a point, found on a few frames and decoded on all: what the preview shows and calibration wants.

use super::recipe::Recipe;
use super::slab::{Resolver, Slab, resolve};
use super::source::Point;
use crate::technique::Fault;
use ndarray::{Array2, Axis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Frames whose mean shows where spots are: spread over the scan, so that gaps and bars of the mask average out.
const FRAMES: usize = 16;
/// Bytes of frames that are held at a time.
const STRIP_BYTES: usize = 256 << 20;

/// A decoded pixel of a spot.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bright {
    /// Pixel of the frames.
    pub row: usize,
    /// The same.
    pub column: usize,
    /// Mean counts.
    pub mean: f32,
    /// Open-beam counts.
    pub intensity: f32,
    /// Code coordinate, µm; none for a wire.
    pub position_um: Option<f32>,
    /// Depth, µm.
    pub depth_um: Option<f32>,
    /// [`super::decode::flag`] bits.
    pub flags: u8,
}

/// Mean of a few frames.
///
/// # Errors
/// As reading does.
pub fn mean_image(point: &Point) -> Result<Array2<f32>, Fault> {
    let every = point.count.div_ceil(FRAMES).max(1);
    let kept = point.count.div_ceil(every);
    let strip = (STRIP_BYTES / (4 * kept * point.columns).max(1)).max(1);
    let mut mean = Array2::zeros((point.rows, point.columns));
    for from in point.row_range.clone().step_by(strip) {
        let to = (from + strip).min(point.row_range.end);
        let frames = point.read_frames(from..to, every)?;
        if let Some(m) = frames.mean_axis(Axis(0)) {
            mean.slice_mut(ndarray::s![from..to, ..]).assign(&m);
        }
    }
    Ok(mean)
}

/// Local maxima at or above `threshold` and below `saturation`, brightest first, at least `apart` pixels from each other.
#[must_use]
pub fn peaks(image: &Array2<f32>, point: &Point, threshold: f64, most: usize, apart: usize) -> Vec<(usize, usize)> {
    let (rows, columns) = image.dim();
    let mut found: Vec<(f32, usize, usize)> = Vec::new();
    for r in point.row_range.clone() {
        for c in point.column_range.clone() {
            let v = image[[r, c]];
            if f64::from(v) < threshold || v >= f32::from(u16::MAX) {
                continue;
            }
            let around = (r.saturating_sub(1)..(r + 2).min(rows))
                .flat_map(|y| (c.saturating_sub(1)..(c + 2).min(columns)).map(move |x| (y, x)));
            if around.filter(|&p| p != (r, c)).all(|p| image[p] <= v) {
                found.push((v, r, c));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut kept: Vec<(usize, usize)> = Vec::new();
    for (_, r, c) in found {
        if kept.iter().all(|k| k.0.abs_diff(r).max(k.1.abs_diff(c)) >= apart) {
            kept.push((r, c));
            if kept.len() >= most {
                break;
            }
        }
    }
    kept
}

/// Decodes some pixels; only their rows are read, in all frames.
///
/// # Errors
/// As reading does.
pub fn decode(point: &Point, recipe: &Recipe, pixels: &[(usize, usize)]) -> Result<Vec<Bright>, Fault> {
    let resolver = Resolver::new(recipe, point)?;
    let bins = recipe.depth().bins;
    let mut by_row: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for &(r, c) in pixels {
        by_row.entry(r).or_default().push(c);
    }
    let mut all = Vec::with_capacity(pixels.len());
    for (row, columns) in by_row {
        let raw = point.read(row..row + 1)?;
        for column in columns {
            let Slab { flags, maps, .. } = resolve(&resolver, raw.view(), row, column..column + 1, bins);
            let known = |i: usize| Some(maps[i][[0, column]]).filter(|v| v.is_finite());
            all.push(Bright {
                row,
                column,
                mean: maps[0][[0, column]],
                intensity: known(1).unwrap_or(0.0),
                position_um: known(2),
                depth_um: known(3),
                flags: flags[[0, column]],
            });
        }
    }
    Ok(all)
}

/// Intensity of decoded pixels over the depth bins.
#[must_use]
pub fn histogram(pixels: &[Bright], recipe: &Recipe) -> Vec<f64> {
    let grid = recipe.depth();
    let mut bins = vec![0.0; grid.bins];
    for p in pixels.iter().filter(|p| p.flags == 0) {
        if let Some(z) = p.depth_um.map(f64::from).filter(|z| grid.holds(*z)) {
            let bin = ((z - grid.range_um().0) / grid.step_um) as usize;
            bins[bin.min(grid.bins - 1)] += f64::from(p.intensity.max(0.0));
        }
    }
    bins
}
