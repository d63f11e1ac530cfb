//! The bright pixels of a chunk, listed in the order in which kernels take them.
//!
//! Pixels with the same template follow each other, within it in the order of rows and columns; eight of them are a tile, the
//! unit of correlation. The list is cut into batches, each with fields of its own, one behind the other: `fields × pixels`.

use super::super::decode::{DecodeSetup, Decoder};
use super::super::search::Template;
use super::{Aperture, Setup};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Double-precision fields of a listed pixel.
pub(super) const REALS: usize = 9;
/// Samples of the mask a frame.
pub(super) const STEP: usize = 0;
/// From the first frame to the start of the resampled measurement, µm of code; not positive.
pub(super) const BEHIND: usize = 1;
/// Four: depth of a code coordinate.
pub(super) const DEPTHS: usize = 2;
/// Gold in the way of a ray, µm.
pub(super) const PATH: usize = 6;
/// Optical depth of it; −1 when not known.
pub(super) const TAU: usize = 7;
/// Mean counts.
pub(super) const MEAN: usize = 8;

/// Whole-number fields.
pub(super) const WHOLES: usize = 7;
/// Pixel of the chunk.
pub(super) const PLACE: usize = 0;
/// Template, as a place in the store.
pub(super) const TEMPLATE: usize = 1;
/// Samples of the resampled measurement.
pub(super) const LENGTH: usize = 2;
/// First offset, and the one behind the last.
pub(super) const FROM: usize = 3;
pub(super) const TO: usize = 4;
/// Offset at which the pixel's correlation begins.
pub(super) const ORIGIN: usize = 5;
/// 1: the last frame first.
pub(super) const REVERSED: usize = 6;

/// Pixels of a tile; `TILE` of laue_search.cu.
pub(super) const TILE: usize = 8;
/// Numbers of a tile: `Tile` of laue_search.cu.
pub(super) const TILE_FIELDS: usize = 6;

pub(super) type Kind = (u32, u32);

/// A listed pixel.
pub(super) struct Listed {
    pub place: usize,
    pub kind: Kind,
    pub template: Arc<Template>,
    pub reals: [f64; REALS],
    pub length: usize,
    pub offsets: Range<usize>,
    pub reversed: bool,
}

/// Pixels that are decoded together: a stretch of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    pub range: Range<usize>,
    /// Stretches with the same template.
    pub kinds: Vec<Range<usize>>,
    pub tiles: Vec<Tile>,
    /// Longest measurement.
    pub longest: usize,
    /// Most offsets of a tile.
    pub span: usize,
}

/// Pixels with one template, relative to the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tile {
    pub first: usize,
    pub count: usize,
    pub longest: usize,
    pub offsets: Range<usize>,
}

/// Lists the pixels of a chunk without flags; `first`: its first row, in the frames' numbers.
///
/// # Errors
/// A measurement that is longer than there is room for, in words.
pub(super) fn list(
    setup: &Setup<'_>,
    aperture: &Aperture<'_>,
    first: usize,
    flags: &[u8],
    means: &[f64],
) -> Result<Vec<Listed>, String> {
    let decoder = aperture.decoder;
    let width = setup.columns.len();
    let bright: Vec<usize> = (0..flags.len()).filter(|&i| flags[i] == 0).collect();
    let one = |&place: &usize| {
        let (row, column) = (first + place / width, setup.columns.start + place % width);
        listed(decoder, decoder.setup(), setup.frames, (place, row, column), means[place], aperture.fixed)
    };
    let mut all: Vec<Listed> = bright.par_iter().map(one).collect();
    if all.iter().any(|p| p.length > aperture.longest) {
        return Err("the mask's scale varies too much over the slab: done on the CPU".to_owned());
    }
    all.par_sort_unstable_by_key(|p| (p.kind, p.place));
    Ok(all)
}

fn listed(
    decoder: &Decoder,
    setup: &DecodeSetup,
    frames: usize,
    (place, row, column): (usize, usize, usize),
    mean: f64,
    fixed: Option<f64>,
) -> Listed {
    let view = decoder.view(row, column);
    let (kind, _) = decoder.kind(&view);
    let template = decoder.template(&view);
    let step = view.step_um / setup.mask.resolution_um;
    let reversed = step < 0.0;
    // As `resample` counts.
    let length = ((frames - 1) as f64 * step.abs() + 1e-9) as usize + 1;
    let behind = if reversed { (frames - 1) as f64 * view.step_um } else { 0.0 };
    let path = setup.mask.thickness_um * view.path;
    let [a0, a1, b0, b1] = view.depth.coefficients();
    let tau = fixed.map_or(-1.0, |mu| mu * path);
    let reals = [step.abs(), behind, a0, a1, b0, b1, path, tau, mean];
    // One that is longer than the mask has no offset; nothing of it is looked at.
    let (offsets, length) = match (template.samples() + 1).checked_sub(length) {
        Some(last) => {
            let wanted = decoder.offsets(&view, behind);
            let end = wanted.end.min(last);
            (wanted.start.min(end)..end, length)
        }
        None => (0..0, 1),
    };
    Listed { place, kind, template, reals, length, offsets, reversed }
}

/// Cuts a list into batches of at most `most` pixels and `templates` templates.
pub(super) fn batches(all: &[Listed], most: usize, templates: usize) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut at = 0;
    while at < all.len() {
        let mut kinds: Vec<Range<usize>> = Vec::new();
        let mut to = at;
        while to < all.len() && to - at < most && kinds.len() < templates {
            let run = all[to..].iter().take(most - (to - at)).take_while(|p| p.kind == all[to].kind).count();
            kinds.push(to - at..to - at + run);
            to += run;
        }
        let pixels = &all[at..to];
        let tiles: Vec<Tile> = kinds
            .iter()
            .flat_map(|run| run.clone().step_by(TILE).map(|first| first..(first + TILE).min(run.end)))
            .map(|range| {
                let own = &pixels[range.clone()];
                let start = own.iter().map(|p| p.offsets.start).min().unwrap_or(0);
                let end = own.iter().map(|p| p.offsets.end).max().unwrap_or(0);
                let longest = own.iter().map(|p| p.length).max().unwrap_or(1);
                Tile { first: range.start, count: range.len(), longest, offsets: start..end.max(start) }
            })
            .collect();
        let longest = pixels.iter().map(|p| p.length).max().unwrap_or(1);
        let span = tiles.iter().map(|t| t.offsets.len()).max().unwrap_or(0);
        batches.push(Batch { range: at..to, kinds, tiles, longest, span });
        at = to;
    }
    batches
}

impl Batch {
    /// Writes the fields of its pixels; `places`: of the templates of [`Batch::kinds`] in the store.
    pub fn fields(&self, all: &[Listed], places: &[usize], reals: &mut [f64], wholes: &mut [i32]) {
        let count = self.range.len();
        let pixels = &all[self.range.clone()];
        for (i, p) in pixels.iter().enumerate() {
            for (field, value) in p.reals.iter().enumerate() {
                reals[field * count + i] = *value;
            }
            let mut put = |field: usize, value: usize| wholes[field * count + i] = value as i32;
            put(PLACE, p.place);
            put(LENGTH, p.length);
            put(FROM, p.offsets.start);
            put(TO, p.offsets.end);
            put(REVERSED, usize::from(p.reversed));
        }
        for (kind, place) in self.kinds.iter().zip(places) {
            wholes[TEMPLATE * count..][kind.clone()].fill(*place as i32);
        }
        for tile in &self.tiles {
            wholes[ORIGIN * count + tile.first..][..tile.count].fill(tile.offsets.start as i32);
        }
    }

    /// Writes its tiles, with the places of their templates.
    pub fn tile_fields(&self, places: &[usize], out: &mut [i32]) {
        let mut kind = 0;
        for (tile, out) in self.tiles.iter().zip(out.chunks_exact_mut(TILE_FIELDS)) {
            while self.kinds[kind].end <= tile.first {
                kind += 1;
            }
            let Range { start, end } = tile.offsets;
            let fields = [tile.first, tile.count, places[kind], tile.longest, start, end];
            out.iter_mut().zip(fields).for_each(|(o, f)| *o = f as i32);
        }
    }
}
