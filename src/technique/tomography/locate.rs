//! Where the rotation axis is: the recipe's column, or what some rows of the detector say.
//!
//! Rows without a clear answer (air, the beam's edge) have no vote, unless there are no others; the median of the votes
//! counts. Of a whole turn the overlap of its halves is looked at first: when that finds the axis aside
//! ([`offset::ASIDE`]), the scan is an offset one and its image wider than the detector.

use super::axis;
use super::center::{self, CenterEstimate, Search};
use super::compute::Shared;
use super::convention::middle;
use super::error::TomographyError;
use super::offset;
use super::recipe::{Center, CenterMethod, Turn};
use crate::technique::Fault;
use ndarray::{Array2, s};
use serde::{Deserialize, Serialize};

/// Fewer angles than this are not searched.
const SEARCH_ANGLES: usize = 8;
/// Overlapping halves that correlate by less than 1 − 1/4 do not make a scan an offset one.
const OVERLAPPING: f64 = 4.0;

/// Where the axis is, and how that is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Axial {
    /// Zero-based column.
    pub rotation_center_px: f64,
    /// `recipe`, `vo`, `phase`, `entropy` or `overlap`.
    pub method: String,
    /// What each searched row gave.
    pub rows: Vec<(usize, f64)>,
    /// Doubts, in words.
    pub warnings: Vec<String>,
    /// Edge of the image when the scan is an offset one.
    #[serde(default)]
    pub image_size: Option<usize>,
}

/// The edge of the image about an axis at `c` when that makes the scan an offset one.
#[must_use]
pub fn image_size(turn: Turn, angles: &[f64], columns: usize, c: f64) -> Option<usize> {
    let aside = (c - middle(columns)).abs() > offset::ASIDE * columns as f64;
    let wide = match turn {
        Turn::Centered => false,
        Turn::Auto => aside && offset::whole_turn(angles),
        Turn::Offset => true,
    };
    wide.then(|| offset::image_size(columns, c))
}

/// The axis that the recipe names, of a detector of so many columns.
#[must_use]
pub fn given(shared: &Shared<'_>, columns: usize) -> Option<Axial> {
    let Center::Pixel(rotation_center_px) = shared.recipe.center else { return None };
    let image_size = image_size(shared.recipe.turn, shared.angles, columns, rotation_center_px);
    Some(Axial { rotation_center_px, method: "recipe".to_owned(), rows: Vec::new(), warnings: Vec::new(), image_size })
}

/// A sinogram, its detector row and where it comes from.
pub type Sample = (usize, String, Array2<f32>);

/// Finds the axis on some rows.
///
/// # Errors
/// [`Fault::Input`] when the method cannot be used on this scan.
pub fn search(shared: &Shared<'_>, samples: &[Sample]) -> Result<Axial, Fault> {
    let Some((_, at, first)) = samples.first() else {
        return Err(Fault::Task("no row to search the rotation axis on".to_owned()));
    };
    let columns = first.ncols();
    let whole = offset::whole_turn(shared.angles);
    if shared.recipe.turn == Turn::Offset && !whole {
        return Err(Fault::Input(format!(
            "{at}: turn = \"offset\" wants angles over a whole turn; set angles in the recipe, or turn = \"centered\""
        )));
    }
    if whole && shared.recipe.turn != Turn::Centered {
        let found = each(samples, |s| axis::overlap(s, shared.angles))?;
        let axial = vote(shared, "overlap", OVERLAPPING, &found);
        let clear = found.iter().any(|(_, e)| e.contrast >= OVERLAPPING);
        let image_size = image_size(shared.recipe.turn, shared.angles, columns, axial.rotation_center_px);
        if image_size.is_some() && (clear || shared.recipe.turn == Turn::Offset) {
            return Ok(Axial { image_size, ..axial });
        }
    }
    let range = shared.recipe.center_search.min(columns as f64 / 2.0).max(1.0);
    let around = middle(columns);
    match shared.recipe.center_method {
        CenterMethod::Vo => {
            let half = center::half_turn(shared.angles);
            if half < SEARCH_ANGLES {
                return Err(Fault::Input(format!(
                    "{at}: {half} projections within half a turn, the search for the axis wants {SEARCH_ANGLES}; set center in the recipe"
                )));
            }
            let options = Search { range, ..Search::default() };
            let mut axial =
                vote(shared, "vo", 1.05, &each(samples, |s| center::vo(s.slice(s![..half, ..]), &options))?);
            axial.warnings.extend(short_of_half(shared.angles.get(..half).unwrap_or(&[])));
            Ok(axial)
        }
        CenterMethod::Phase => {
            let found = each(samples, |s| axis::phase(s, shared.angles, around, range))?;
            Ok(vote(shared, "phase", 3.0, &found))
        }
        CenterMethod::Entropy => {
            let found = each(samples, |s| axis::entropy(s, shared.angles, around, range))?;
            Ok(vote(shared, "entropy", 1.005, &found))
        }
    }
}

/// Says so when angles within half a turn leave more of it out than two steps: the mirrored sinogram then has a gap.
fn short_of_half(angles: &[f64]) -> Option<String> {
    let (first, last) = (angles.first()?, angles.last()?);
    let span = (last - first).abs();
    let step = span / (angles.len().max(2) - 1) as f64;
    let widest = angles.windows(2).map(|pair| (pair[1] - pair[0]).abs()).fold(0.0, f64::max);
    let missing = (std::f64::consts::PI - span).max(widest) - step;
    (missing > 2.0 * step).then(|| {
        format!(
            "the projections leave out {:.1}° of half a turn, which the search for the rotation axis takes as a whole; check the preview, or set center",
            missing.to_degrees()
        )
    })
}

type Found = (usize, CenterEstimate);

fn each(
    samples: &[Sample],
    find: impl Fn(ndarray::ArrayView2<'_, f32>) -> Result<CenterEstimate, TomographyError>,
) -> Result<Vec<Found>, Fault> {
    let found = samples.iter().map(|(row, at, sinogram)| match find(sinogram.view()) {
        Ok(estimate) => Ok((*row, estimate)),
        Err(e) => Err(Fault::Input(format!(
            "{at}: row {row}: the rotation axis cannot be found: {e}; set center in the recipe"
        ))),
    });
    found.collect()
}

fn vote(shared: &Shared<'_>, method: &str, contrast: f64, found: &[Found]) -> Axial {
    let mut warnings = Vec::new();
    let clear = found.iter().filter(|(_, e)| e.contrast >= contrast && !e.at_edge);
    let mut votes: Vec<f64> = clear.map(|(_, e)| e.center).collect();
    if votes.is_empty() {
        warnings.push("no row showed a clear rotation axis; check the preview, or set center in the recipe".to_owned());
        votes = found.iter().map(|(_, e)| e.center).collect();
    }
    votes.sort_by(f64::total_cmp);
    if found.iter().any(|(_, e)| e.at_edge) {
        warnings.push(format!(
            "on some rows the axis lies at the end of the searched range (±{} px); widen center_search",
            shared.recipe.center_search
        ));
    }
    let spread = votes.last().unwrap_or(&0.0) - votes.first().unwrap_or(&0.0);
    if spread > 2.0 {
        warnings.push(format!("rows disagree about the rotation axis by {spread:.1} px; is the axis tilted?"));
    }
    Axial {
        rotation_center_px: votes.get(votes.len() / 2).copied().unwrap_or_default(),
        method: method.to_owned(),
        rows: found.iter().map(|(row, e)| (*row, e.center)).collect(),
        warnings,
        image_size: None,
    }
}
