//! From rows of raw frames to line integrals: the order of the steps, and what is done about bad pixels.
//!
//! Order, as in [`super::slab`]: transmission (flats, darks; non-finite pixels interpolated) → zingers → Paganin's filter → −log →
//! stripes, all in place. Data that is normalised already passes the first step with flat 1 and dark 0, so that the NaN policy is the
//! same. The zinger window and Paganin's filter see the margins, the stripe removal does not.
//!
//! Faults: more than [`BAD_SHARE`] of non-finite pixels, or a flat that is nowhere above the dark, is the input's fault.

use super::error::TomographyError;
use super::normalize::{self, Flat};
use super::paganin::{self, Optics};
use super::recipe::Recipe;
use super::stripe::Stripe;
use super::zinger::{self, Zinger};
use crate::technique::Fault;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis, s};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Non-finite pixels up to this share are repaired, more are refused.
pub const BAD_SHARE: f64 = 0.01;
/// Smallest transmission.
pub(super) const FLOOR: f32 = 1e-6;

/// Some detector rows of a scan, as they are in the file.
pub struct RawRows {
    /// Which rows these are for; the arrays hold `margin` rows more on either side.
    pub rows: Range<usize>,
    /// Rows held before and after, for the zinger window and the reach of Paganin's filter.
    pub margin: (usize, usize),
    /// `[angle, row, column]`.
    pub projections: Array3<f32>,
    /// Frames `[frame, row, column]`, maybe none.
    pub darks: Option<Array3<f32>>,
    /// Flats with the projection index at which they were taken.
    pub flats: Vec<(f64, Array3<f32>)>,
    /// Phase retrieval, when wanted.
    pub optics: Option<Optics>,
    /// May there be NaN in the data at all?
    pub floating: bool,
    /// The projections are transmission already, zingers removed: the frame-order stage did it.
    pub transmission: bool,
    /// `file: dataset`, for messages.
    pub at: String,
}

/// What had to be repaired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repaired {
    /// Pixels of projections without a measurement (dead in the flat, or not finite), interpolated.
    pub interpolated: u64,
    /// Pixels whose transmission was raised to the floor.
    pub floored: u64,
    /// Zingers replaced.
    pub zingers: u64,
    /// NaN and infinities among the projections' pixels.
    pub non_finite: u64,
}

impl Repaired {
    /// Sums.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            interpolated: self.interpolated + other.interpolated,
            floored: self.floored + other.floored,
            zingers: self.zingers + other.zingers,
            non_finite: self.non_finite + other.non_finite,
        }
    }
}

/// Line integrals per pixel, kept in the order of the frames.
pub struct Integrals {
    data: Array3<f32>,
    margin: (usize, usize),
}

impl Integrals {
    /// `[row, angle, column]`, without the margins.
    #[must_use]
    pub fn sinograms(&self) -> ArrayView3<'_, f32> {
        let rows = self.data.len_of(Axis(1));
        let mut view = self.data.slice(s![.., self.margin.0..rows - self.margin.1, ..]);
        view.swap_axes(0, 1);
        view
    }

    /// Removes stripes when the recipe wants it, with windows that suit the detector.
    ///
    /// # Errors
    /// [`Fault::Input`] for windows that cannot be.
    pub fn remove_stripes(&mut self, recipe: &Recipe, at: &str) -> Result<(), Fault> {
        let Some(options) = recipe.stripe else { return Ok(()) };
        let (_, rows, columns) = self.data.dim();
        let mut view = self.data.slice_mut(s![.., self.margin.0..rows - self.margin.1, ..]);
        view.swap_axes(0, 1);
        options.fitted(columns).remove_slab(view).map_err(|e| Fault::Input(format!("{at}: {e}")))
    }
}

/// Dark and flats as the recipe wants them: data that is normalised already passes with flat 1 and dark 0.
pub(super) fn calibration(
    recipe: &Recipe,
    shape: (usize, usize),
    dark: Option<Array2<f32>>,
    flats: Vec<Flat>,
) -> (Array2<f32>, Vec<Flat>) {
    if recipe.normalize {
        (dark.unwrap_or_else(|| Array2::zeros(shape)), flats)
    } else {
        (Array2::zeros(shape), vec![Flat { at: 0.0, mean: Array2::ones(shape) }])
    }
}

/// What [`transmission`] does to frames, and what of.
pub(super) struct Steps<'a> {
    /// Mean dark `[row, column]`.
    pub dark: ArrayView2<'a, f32>,
    /// Flats of the same rows.
    pub flats: &'a [Flat],
    /// Projection of the first frame.
    pub first: usize,
    /// Zingers, when they are to be removed.
    pub zinger: Option<Zinger>,
    /// Phase retrieval, when wanted.
    pub optics: Option<Optics>,
    /// May there be NaN at all?
    pub floating: bool,
    /// `file: dataset`, for messages.
    pub at: &'a str,
}

/// Counts `[frame, row, column]` to transmission without zingers, phase retrieved when there are optics, in place.
///
/// # Errors
/// [`Fault::Input`] for data that cannot be used.
pub(super) fn transmission(data: &mut Array3<f32>, steps: &Steps<'_>) -> Result<Repaired, Fault> {
    let &Steps { dark, flats, first, zinger, optics, floating, at } = steps;
    let mut repaired = Repaired::default();
    if floating {
        repaired.non_finite = non_finite(data);
        let share = repaired.non_finite as f64 / data.len().max(1) as f64;
        if share > BAD_SHARE {
            return Err(Fault::Input(format!(
                "{at}: {:.1} % of the pixels are NaN or infinite, at most {:.0} % are repaired; check the detector and what wrote the file",
                100.0 * share,
                100.0 * BAD_SHARE
            )));
        }
    }
    let refused = |e: TomographyError| Fault::Input(format!("{at}: {e}"));
    repaired.interpolated = normalize::transmission(data.view_mut(), dark, flats, first).map_err(refused)?.interpolated;
    if let Some(options) = zinger {
        repaired.zingers = zinger::remove(data.view_mut(), options).map_err(refused)?;
    }
    if let Some(optics) = optics {
        paganin::retrieve(data.view_mut(), &optics).map_err(refused)?;
    }
    Ok(repaired)
}

/// Turns raw rows into line integrals; stripes stay in, for the search of the axis errs by pixels when they are removed
/// (measured: 2 px on a phantom 512 wide).
///
/// # Errors
/// [`Fault::Input`] for data that cannot be used, in words for the beamline scientist.
pub fn line_integrals(raw: RawRows, recipe: &Recipe) -> Result<(Integrals, Repaired), Fault> {
    let RawRows { projections: mut data, darks, flats, margin, optics, floating, at, .. } = raw;
    let (_, rows, columns) = data.dim();
    let mut repaired = Repaired::default();
    if !raw.transmission {
        let dark = darks.map(|d| normalize::mean_frame(d.view()));
        let means = flats.into_iter().map(|(at, f)| Flat { at, mean: normalize::mean_frame(f.view()) }).collect();
        let (dark, flats) = calibration(recipe, (rows, columns), dark, means);
        let (dark, zinger) = (dark.view(), recipe.zinger);
        repaired =
            transmission(&mut data, &Steps { dark, flats: &flats, first: 0, zinger, optics, floating, at: &at })?;
    }
    let refused = |e: TomographyError| Fault::Input(format!("{at}: {e}"));
    if recipe.minus_log {
        repaired.floored = normalize::minus_log(data.view_mut(), FLOOR).map_err(refused)?;
    }
    Ok((Integrals { data, margin }, repaired))
}

/// Stripe windows that suit a detector: a window that is not small against the row takes the sample for a stripe.
///
/// At most an eighth of the columns for large stripes and a 24th for small ones, so that the usual 61 and 21 stay from
/// 504 columns on. Measured on a phantom 192 pixels wide: relative error 0.45 with 61 and 21, 0.13 with 23 and 7, 0.14
/// without stripe removal.
#[must_use]
pub fn fitted(stripe: Stripe, columns: usize) -> Stripe {
    let odd = |n: usize| if n % 2 == 1 { n } else { n.saturating_sub(1) }.max(3);
    Stripe { large: stripe.large.min(odd(columns / 8)), small: stripe.small.min(odd(columns / 24)), ..stripe }
}

pub(super) fn non_finite(data: &Array3<f32>) -> u64 {
    data.axis_iter(Axis(0)).into_par_iter().map(|f| f.iter().filter(|v| !v.is_finite()).count() as u64).sum()
}

/// Refuses flats that are nowhere brighter than the darks: nothing could be told from such a scan.
///
/// # Errors
/// [`Fault::Input`] with the mean levels.
pub fn check_beam(raw: &[RawRows], recipe: &Recipe) -> Result<(), Fault> {
    if !recipe.normalize {
        return Ok(());
    }
    let mut levels = (0.0, 0.0);
    for rows in raw {
        let dark = rows.darks.as_ref().map(|d| normalize::mean_frame(d.view()));
        for (_, flat) in &rows.flats {
            let flat = normalize::mean_frame(flat.view());
            let level = |i: usize| dark.as_ref().and_then(|d| d.as_slice()).and_then(|d| d.get(i)).map_or(0.0, |&v| v);
            if flat.iter().enumerate().any(|(i, &f)| f > level(i)) {
                return Ok(());
            }
            levels = (flat.mean().unwrap_or(0.0), dark.as_ref().and_then(|d| d.mean()).unwrap_or(0.0));
        }
    }
    let at = raw.first().map_or("", |r| r.at.as_str());
    Err(Fault::Input(format!(
        "{at}: the flat fields are nowhere brighter than the darks (mean {:.1} against {:.1}); were they taken with the shutter closed, or exchanged?",
        levels.0, levels.1
    )))
}
