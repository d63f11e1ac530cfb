//! The computing phase: arrays in, arrays out, no file.
//!
//! Contract: the reconstruction plan (kernel tables and scratch of all threads) is shared by the slabs of a job; the
//! last one used is kept, because an executor works through one job's slabs in a row.

use super::center::{self, Search};
use super::chain::{RawRows, Repaired, check_beam, line_integrals};
use super::convention;
use super::direct;
use super::gpu;
use super::gridding::{Geometry, Plan};
use super::iterative::{self, Method};
use super::mask;
use super::recipe::{Algorithm, Center, Recipe};
use crate::device::{self, Selected};
use crate::technique::Fault;
use ndarray::{Array2, Array3, ArrayView3, Axis, s};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// Points per pixel of the direct method's interpolation.
pub(super) const UPSAMPLING: usize = 8;
/// A search whose minimum is shallower than this found nothing.
const CONTRAST: f64 = 1.05;
/// Fewer angles than this are not searched.
const SEARCH_ANGLES: usize = 8;

/// Where the axis is, and how that is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Axial {
    /// Zero-based column.
    pub rotation_center_px: f64,
    /// `recipe`, or `vo`.
    pub method: String,
    /// What each searched row gave.
    pub rows: Vec<(usize, f64)>,
    /// Doubts, in words.
    pub warnings: Vec<String>,
}

/// Everything slabs of one job share.
pub struct Shared<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// Radians.
    pub angles: &'a [f64],
    /// Centimetres.
    pub pixel_size_cm: Option<f64>,
}

/// Finds the axis on some rows, each given as its own raw rows.
///
/// # Errors
/// [`Fault::Input`] when there is no beam, or nothing to search.
pub fn prepare(shared: &Shared<'_>, raw: Vec<RawRows>) -> Result<Axial, Fault> {
    check_beam(&raw, shared.recipe)?;
    if let Center::Pixel(rotation_center_px) = shared.recipe.center {
        let method = "recipe".to_owned();
        return Ok(Axial { rotation_center_px, method, rows: Vec::new(), warnings: Vec::new() });
    }
    let mut sinograms = Vec::new();
    for rows in raw {
        let (first, at) = (rows.rows.start, rows.at.clone());
        let (integrals, _) = line_integrals(rows, shared.recipe)?;
        for (i, sinogram) in integrals.sinograms().axis_iter(Axis(0)).enumerate() {
            sinograms.push((first + i, at.clone(), sinogram.to_owned()));
        }
    }
    search(shared, &sinograms)
}

fn search(shared: &Shared<'_>, sinograms: &[(usize, String, Array2<f32>)]) -> Result<Axial, Fault> {
    let half = center::half_turn(shared.angles);
    let mut warnings = Vec::new();
    let mut found = Vec::new();
    for (row, at, sinogram) in sinograms {
        if half < SEARCH_ANGLES {
            return Err(Fault::Input(format!(
                "{at}: {half} projections within half a turn, the search for the axis wants {SEARCH_ANGLES}; set center in the recipe"
            )));
        }
        let range = shared.recipe.center_search.min(sinogram.ncols() as f64 / 2.0);
        let options = Search { range: range.max(1.0), ..Search::default() };
        let estimate = center::vo(sinogram.slice(s![..half, ..]), &options).map_err(|e| {
            Fault::Input(format!("{at}: row {row}: the rotation axis cannot be found: {e}; set center in the recipe"))
        })?;
        found.push((*row, estimate));
    }
    // Rows without a clear minimum (air, beam edge) have no vote, unless there are no others.
    let clear: Vec<_> = found.iter().filter(|(_, e)| e.contrast >= CONTRAST && !e.at_edge).collect();
    let mut votes: Vec<f64> = clear.iter().map(|(_, e)| e.center).collect();
    if votes.is_empty() {
        warnings.push("no row showed a clear rotation axis; check the preview, or set center in the recipe".to_owned());
        votes = found.iter().map(|(_, e)| e.center).collect();
    }
    votes.sort_by(f64::total_cmp);
    let Some(&rotation_center_px) = votes.get(votes.len() / 2) else {
        return Err(Fault::Task("no row to search the rotation axis on".to_owned()));
    };
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
    let rows = found.iter().map(|(row, e)| (*row, e.center)).collect();
    Ok(Axial { rotation_center_px, method: "vo".to_owned(), rows, warnings })
}

/// Reconstructs rows: `[z, y, x]` per centimetre, or per pixel when its size is not known.
///
/// # Errors
/// [`Fault::Input`] for data or a geometry that cannot be reconstructed.
pub fn slab(shared: &Shared<'_>, center: f64, raw: RawRows) -> Result<(Array3<f32>, Repaired), Fault> {
    if let Selected::Gpu(device) = device::shared() {
        match gpu::slab(&device, shared, center, &raw) {
            Ok(gpu::Outcome::Done(volume, repaired)) => return Ok((volume, repaired)),
            Ok(gpu::Outcome::Declined(why)) => tracing::info!(rows = ?raw.rows, "not on the GPU: {why}"),
            Err(fault @ Fault::Task(_)) => {
                // This try is lost; the next one here runs on the processors, and the coordinator is told.
                device::lose(fault.to_string());
                return Err(fault);
            }
            Err(fault) => return Err(fault),
        }
    }
    slab_on_cpu(shared, center, raw)
}

/// As [`slab`], on the processors.
pub(super) fn slab_on_cpu(shared: &Shared<'_>, center: f64, raw: RawRows) -> Result<(Array3<f32>, Repaired), Fault> {
    let at = raw.at.clone();
    let (mut integrals, repaired) = line_integrals(raw, shared.recipe)?;
    integrals.remove_stripes(shared.recipe, &at)?;
    let volume = images(shared, center, integrals.sinograms(), &at)?;
    Ok((volume, repaired))
}

fn images(shared: &Shared<'_>, center: f64, sinograms: ArrayView3<'_, f32>, at: &str) -> Result<Array3<f32>, Fault> {
    let recipe = shared.recipe;
    let columns = sinograms.len_of(Axis(2));
    let geometry = Geometry {
        centre: center,
        filter: recipe.filter,
        padding: recipe.padding,
        ..Geometry::new(columns, shared.angles)
    };
    let refused = |e| Fault::Input(format!("{at}: {e}"));
    let mut volume = match recipe.algorithm {
        Algorithm::Gridding => plan_for(&geometry).map_err(refused)?.reconstruct(sinograms).map_err(refused)?,
        Algorithm::Direct => direct::reconstruct(sinograms, &geometry, UPSAMPLING).map_err(refused)?,
        Algorithm::Sirt | Algorithm::Cgls => {
            let method = if recipe.algorithm == Algorithm::Sirt { Method::Sirt } else { Method::Cgls };
            iterative::reconstruct(sinograms, &geometry, method, &recipe.iterative).map_err(refused)?.0
        }
    };
    if let Some(ratio) = recipe.mask {
        mask::circle(volume.view_mut(), ratio, 0.0);
    }
    if let Some(cm) = shared.pixel_size_cm {
        let factor = convention::per_cm(cm) as f32;
        volume.par_mapv_inplace(|v| v * factor);
    }
    Ok(volume)
}

/// What the preview shows.
pub struct Picture {
    /// The axis of this row alone.
    pub axial: Axial,
    /// The slice.
    pub slice: Array2<f32>,
    /// Its sinogram.
    pub sinogram: Array2<f32>,
}

/// Reconstructs one row and finds the axis on it; by gridding when the recipe's algorithm iterates, for a preview is wanted
/// at once.
///
/// # Errors
/// As [`prepare`] and [`slab`].
pub fn picture(shared: &Shared<'_>, raw: RawRows) -> Result<Picture, Fault> {
    check_beam(std::slice::from_ref(&raw), shared.recipe)?;
    let (row, at) = (raw.rows.start, raw.at.clone());
    let (mut integrals, _) = line_integrals(raw, shared.recipe)?;
    let sinogram = integrals.sinograms().index_axis(Axis(0), 0).to_owned();
    let axial = match shared.recipe.center {
        Center::Pixel(px) => {
            Axial { rotation_center_px: px, method: "recipe".into(), rows: Vec::new(), warnings: Vec::new() }
        }
        Center::Auto => search(shared, &[(row, at.clone(), sinogram.clone())])?,
    };
    integrals.remove_stripes(shared.recipe, &at)?;
    let quick = Recipe { algorithm: Algorithm::Gridding, ..shared.recipe.clone() };
    let shared = &Shared { recipe: &quick, ..*shared };
    let volume = images(shared, axial.rotation_center_px, integrals.sinograms(), &at)?;
    Ok(Picture { axial, slice: volume.index_axis(Axis(0), 0).to_owned(), sinogram })
}

type Kept = Option<(Vec<u64>, Arc<Plan>)>;

/// The plan of a geometry: made, or the one made last.
fn plan_for(geometry: &Geometry<'_>) -> Result<Arc<Plan>, super::error::TomographyError> {
    static KEPT: Mutex<Kept> = Mutex::new(None);
    let mut key = vec![
        geometry.columns as u64,
        geometry.size as u64,
        geometry.centre.to_bits(),
        geometry.filter as u64,
        geometry.padding as u64,
    ];
    key.extend(geometry.angles.iter().map(|a| a.to_bits()));
    // Held while a plan is made, so that two executors' threads do not make the same one.
    let mut kept = KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some((known, plan)) = kept.as_ref()
        && *known == key
    {
        return Ok(Arc::clone(plan));
    }
    // The old plan's scratch goes before the new one's comes.
    *kept = None;
    let plan = Arc::new(Plan::new(geometry)?);
    *kept = Some((key, Arc::clone(&plan)));
    Ok(plan)
}
