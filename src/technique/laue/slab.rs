//! A slab of detector rows: counts in, depths out.
//!
//! Pixels are worked through in parallel; each owns its column of the result, so that nothing depends on threads. What is not
//! bright is not touched: reading a point costs more than decoding its dark parts.

use super::decode::{Decoder, Pixel, flag};
use super::depth::Account;
use super::geometry::Region;
use super::mask::Mask;
use super::recipe::{Method, Recipe};
use super::source::Point;
use super::wire::WireScan;
use crate::technique::Fault;
use ndarray::{Array2, Array3, ArrayView3, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Either method, ready for pixels.
pub enum Resolver {
    /// A coded aperture.
    Aperture(Box<Decoder>),
    /// A wire.
    Wire(Box<WireScan>),
}

impl Resolver {
    /// For a point.
    ///
    /// # Errors
    /// A geometry that cannot resolve depths.
    pub fn new(recipe: &Recipe, point: &Point) -> Result<Self, Fault> {
        if let Method::Aperture(s) = &recipe.method {
            let length = Mask::new(&s.mask).length_um;
            let passed = s.pose.step_um * (point.count - 1) as f64 * s.mask.stretch;
            if passed > length {
                return Err(Fault::Input(format!(
                    "{} frames in steps of {} um pass over {passed:.0} um, the mask has {length:.0} um; check scanner.step_um and mask, or select frames in the recipe",
                    point.count, s.pose.step_um
                )));
            }
        }
        Self::of(&recipe.method, point.region, &point.wire_um)
    }

    /// For a region of the detector and readings of the wire, if there is one.
    ///
    /// # Errors
    /// A geometry that cannot resolve depths.
    pub fn of(method: &Method, region: Region, wire_um: &[[f64; 3]]) -> Result<Self, Fault> {
        match method {
            Method::Aperture(setup) => Ok(Self::Aperture(Box::new(Decoder::new((**setup).clone(), region)))),
            Method::Wire(setup) => {
                WireScan::new((**setup).clone(), region, wire_um).map(|w| Self::Wire(Box::new(w))).map_err(Fault::Input)
            }
        }
    }
}

/// Maps of a slab, `[row, column]`, in the order in which they are written.
pub const MAPS: [(&str, &str); 7] = [
    ("mean", "counts"),
    ("intensity", "counts"),
    ("position", "um"),
    ("depth", "um"),
    ("energy", "keV"),
    ("residual", ""),
    ("confidence", ""),
];

/// What a slab gives.
pub struct Slab {
    /// `[depth, row, column]`, counts.
    pub stack: Array3<f32>,
    /// [`flag`] bits, `[row, column]`.
    pub flags: Array2<u8>,
    /// As [`MAPS`] names them.
    pub maps: [Array2<f32>; 7],
    /// What is small.
    pub sums: Sums,
}

impl Slab {
    /// With nothing in it.
    pub(super) fn empty(bins: usize, rows: usize, columns: usize) -> Self {
        Self {
            stack: Array3::zeros((bins, rows, columns)),
            flags: Array2::zeros((rows, columns)),
            maps: [0; 7].map(|_| Array2::from_elem((rows, columns), f32::NAN)),
            sums: Sums { histogram: vec![0.0; bins], ..Sums::default() },
        }
    }
}

/// What is small of a slab, and adds up over slabs in order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Where intensity went.
    pub account: Account,
    /// Intensity in each depth bin.
    pub histogram: Vec<f64>,
    /// Pixels with each flag, in the order of [`flag::NAMES`]; the last: without any.
    pub pixels: [u64; 7],
}

impl Sums {
    /// Adds another slab's.
    pub fn add(&mut self, other: &Self) {
        self.account = self.account.plus(other.account);
        if self.histogram.is_empty() {
            self.histogram = vec![0.0; other.histogram.len()];
        }
        self.histogram.iter_mut().zip(&other.histogram).for_each(|(a, b)| *a += b);
        self.pixels.iter_mut().zip(other.pixels).for_each(|(a, b)| *a += b);
    }

    pub(super) fn count(&mut self, flags: u8) {
        for (bit, n) in self.pixels.iter_mut().take(flag::NAMES.len()).enumerate() {
            *n += u64::from(flags >> bit & 1);
        }
        self.pixels[flag::NAMES.len()] += u64::from(flags == 0);
    }
}

/// Pixels that are worked on together by a thread.
const BLOCK: usize = 32;

/// Resolves `raw` (`[frame, row, column]`), whose first row is row `first` of the frames; columns outside `columns` stay empty.
#[must_use]
pub fn resolve(
    resolver: &Resolver,
    raw: ArrayView3<'_, f32>,
    first: usize,
    columns: Range<usize>,
    bins: usize,
) -> Slab {
    let (frames, rows, width) = raw.dim();
    let Slab { mut stack, mut flags, mut maps, mut sums } = Slab::empty(bins, rows, width);
    for row in 0..rows {
        let blocks: Vec<(usize, Vec<Done>)> = columns
            .clone()
            .step_by(BLOCK)
            .collect::<Vec<_>>()
            .into_par_iter()
            .map_init(
                || match resolver {
                    Resolver::Aperture(d) => (Some(d.work()), vec![0f32; frames]),
                    Resolver::Wire(_) => (None, vec![0f32; frames]),
                },
                |(work, series), from| {
                    let to = (from + BLOCK).min(columns.end);
                    let done = (from..to)
                        .map(|column| {
                            let lane = raw.index_axis(Axis(1), row);
                            lane.index_axis(Axis(1), column).iter().zip(series.iter_mut()).for_each(|(v, s)| *s = *v);
                            one(resolver, work.as_mut(), series, first + row, column, bins)
                        })
                        .collect();
                    (from, done)
                },
            )
            .collect();
        for (from, done) in blocks {
            for (i, (depths, values, bits, account)) in done.into_iter().enumerate() {
                let column = from + i;
                flags[[row, column]] = bits;
                maps.iter_mut().zip(values).for_each(|(m, v)| m[[row, column]] = v);
                sums.account = sums.account.plus(account);
                sums.count(bits);
                for (m, v) in depths.into_iter().enumerate().filter(|(_, v)| *v != 0.0) {
                    stack[[m, row, column]] = v as f32;
                    sums.histogram[m] += v;
                }
            }
        }
    }
    Slab { stack, flags, maps, sums }
}

type Done = (Vec<f64>, [f32; 7], u8, Account);

fn one(
    resolver: &Resolver,
    work: Option<&mut super::decode::Work>,
    series: &[f32],
    row: usize,
    column: usize,
    bins: usize,
) -> Done {
    let mut depths = vec![0.0; bins];
    match (resolver, work) {
        (Resolver::Aperture(decoder), Some(work)) => {
            let (p, account) = decoder.decode(series, row, column, work, &mut depths);
            (kept(depths, &p), values(&p), p.flags, account)
        }
        (Resolver::Wire(wire), _) => {
            let (p, account) = wire.resolve(series, row, column, &mut depths);
            let nan = f32::NAN;
            let depths = if p.flags == 0 { depths } else { Vec::new() };
            (depths, [p.mean, p.intensity, nan, p.depth_um, nan, p.residual, p.confidence], p.flags, account)
        }
        // Every decoder has its scratch.
        (Resolver::Aperture(_), None) => (Vec::new(), [f32::NAN; 7], flag::DIM, Account::default()),
    }
}

/// Pixels that were not decoded have no column.
fn kept(depths: Vec<f64>, p: &Pixel) -> Vec<f64> {
    if p.intensity.is_nan() { Vec::new() } else { depths }
}

fn values(p: &Pixel) -> [f32; 7] {
    [p.mean, p.intensity, p.position_um, p.depth_um, p.energy_kev, p.residual, p.confidence]
}
