//! The computing phase: arrays in, arrays out, no file.
//!
//! Contract: the reconstruction plan (kernel tables and scratch of all threads) is shared by the slabs of a job; the
//! last one used is kept, because an executor works through one job's slabs in a row.

use super::chain::{self, RawRows, Repaired, Steps, check_beam, line_integrals};
use super::convention;
use super::direct;
use super::gpu;
use super::gridding::{Geometry, Plan};
use super::iterative::{self, Method};
use super::locate::{self, search};
use super::mask;
use super::offset;
use super::recipe::{Algorithm, Recipe};
use super::strip;
use crate::device::{self, Selected};
use crate::technique::Fault;
use ndarray::{Array2, Array3, ArrayView3, Axis, s};
use std::sync::{Arc, Mutex};

pub use super::locate::Axial;

/// Points per pixel of the direct method's interpolation.
pub(super) const UPSAMPLING: usize = 8;

/// Everything slabs of one job share.
pub struct Shared<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// Radians.
    pub angles: &'a [f64],
    /// Centimetres.
    pub pixel_size_cm: Option<f64>,
    /// Edge of the image, when it is an offset scan's.
    pub image_size: Option<usize>,
    /// Columns as they are read that one column of these data stands for; only pictures say so.
    pub bin: usize,
}

/// Rows and columns of a slice that are written, of an image with this edge.
#[must_use]
pub(crate) fn written(recipe: &Recipe, edge: usize) -> [usize; 2] {
    let side = |span: Option<(usize, usize)>| span.map_or(edge, |(first, end)| end - first);
    recipe.region.map_or([edge; 2], |r| [side(r.y), side(r.x)])
}

/// Refuses a region that reaches beyond an image with this edge, in words.
pub(crate) fn check_region(recipe: &Recipe, edge: usize) -> Result<(), String> {
    let Some(region) = recipe.region else { return Ok(()) };
    match [("x", region.x), ("y", region.y)]
        .into_iter()
        .find_map(|(side, s)| s.filter(|s| s.1 > edge).map(|s| (side, s)))
    {
        None => Ok(()),
        Some((side, (first, end))) => Err(format!(
            "region.{side} = [{first}, {end}] in the recipe, but slices are {edge} × {edge}; write an end of at most {edge}"
        )),
    }
}

/// The region of `[z, y, x]` that the recipe wants.
fn region(recipe: &Recipe, volume: Array3<f32>, at: &str) -> Result<Array3<f32>, Fault> {
    let Some(region) = recipe.region else { return Ok(volume) };
    let (_, height, width) = volume.dim();
    check_region(recipe, height).map_err(|why| Fault::Input(format!("{at}: {why}")))?;
    let ((top, bottom), (left, right)) = (region.y.unwrap_or((0, height)), region.x.unwrap_or((0, width)));
    Ok(volume.slice(s![.., top..bottom, left..right]).to_owned())
}

/// Finds the axis on some rows, each given as its own raw rows.
///
/// # Errors
/// [`Fault::Input`] when there is no beam, or nothing to search.
pub fn prepare(shared: &Shared<'_>, raw: Vec<RawRows>) -> Result<Axial, Fault> {
    check_beam(&raw, shared.recipe)?;
    let columns = raw.first().map_or(0, |r| r.projections.len_of(Axis(2)));
    let at = raw.first().map_or_else(String::new, |r| r.at.clone());
    let axial = locate(shared, columns, raw)?;
    check_region(shared.recipe, axial.image_size.unwrap_or(columns))
        .map_err(|why| Fault::Input(format!("{at}: {why}")))?;
    Ok(axial)
}

fn locate(shared: &Shared<'_>, columns: usize, raw: Vec<RawRows>) -> Result<Axial, Fault> {
    if let Some(axial) = locate::given(shared, columns) {
        return Ok(axial);
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

/// Reconstructs rows: `[z, y, x]` per centimetre, or per pixel when its size is not known; of each slice the recipe's region.
///
/// # Errors
/// [`Fault::Input`] for data or a geometry that cannot be reconstructed.
pub fn slab(shared: &Shared<'_>, center: f64, mut raw: RawRows) -> Result<(Array3<f32>, Repaired), Fault> {
    let mut before = Repaired::default();
    if let Selected::Gpu(device) = device::shared() {
        match gpu::slab(&device, shared, center, &mut raw).map_err(lost)? {
            gpu::Outcome::Done(volume, repaired) => return Ok((region(shared.recipe, volume, &raw.at)?, repaired)),
            gpu::Outcome::Declined(why, repaired) => {
                tracing::info!(rows = ?raw.rows, "not on the GPU: {why}");
                before = repaired;
            }
        }
    }
    let at = raw.at.clone();
    let (volume, repaired) = slab_on_cpu(shared, center, raw)?;
    Ok((region(shared.recipe, volume, &at)?, before.plus(repaired)))
}

/// When a device fails this try is lost; the next one here runs on the processors, and the coordinator is told.
fn lost(fault: Fault) -> Fault {
    if matches!(fault, Fault::Task(_)) {
        device::lose(fault.to_string());
    }
    fault
}

/// As [`chain::transmission`], on the GPU where there is one and phases are to be retrieved. Zingers alone are left to the
/// cores: for one pass over them frames would travel there and back.
///
/// # Errors
/// As there, and [`Fault::Task`] when the device fails.
pub(super) fn transmission(frames: &mut Array3<f32>, steps: &Steps<'_>) -> Result<Repaired, Fault> {
    if steps.optics.is_some()
        && let Selected::Gpu(device) = device::shared()
    {
        match gpu::frames::transmission(&device, frames, steps).map_err(lost)? {
            gpu::frames::Framed::Done(repaired) => return Ok(repaired),
            gpu::frames::Framed::Declined(why) => tracing::info!(first = steps.first, "not on the GPU: {why}"),
        }
    }
    chain::transmission(frames, steps)
}

/// As [`slab`], on the processors, and whole slices.
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
        size: shared.image_size.unwrap_or(columns),
        ..Geometry::new(columns, shared.angles)
    };
    let iterates = matches!(recipe.algorithm, Algorithm::Sirt | Algorithm::Cgls);
    // An iteration explains every projection by itself; a sum of back-projections must count nothing twice.
    let blended = (shared.image_size.is_some() && !iterates).then(|| {
        let mut copy = sinograms.to_owned();
        offset::blend(copy.view_mut(), center);
        copy
    });
    let sinograms = blended.as_ref().map_or(sinograms, |copy| copy.view());
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
    /// Slices about candidate axes, when the recipe wants them: an 8-bit picture.
    pub centers: Option<Array2<u8>>,
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
    let axial = match locate::given(shared, sinogram.ncols()) {
        Some(axial) => axial,
        None => search(shared, &[(row, at.clone(), sinogram.clone())])?,
    };
    integrals.remove_stripes(shared.recipe, &at)?;
    let quick = Recipe { algorithm: Algorithm::Gridding, ..shared.recipe.clone() };
    let shared = &Shared { recipe: &quick, image_size: axial.image_size, ..*shared };
    let image = |center: f64| images(shared, center, integrals.sinograms(), &at);
    let candidates = shared.recipe.center_try.map(|t| t.candidates(axial.rotation_center_px));
    let column = |c: f64| shared.recipe.column_on_detector((c + 0.5) * shared.bin as f64 - 0.5);
    // Whole slices: the signs of a wrong axis may lie anywhere.
    let one = |c: f64| Ok((format!("{:.2}", column(c)), image(c)?.index_axis_move(Axis(0), 0)));
    let tried = candidates.map(|all| all.into_iter().map(one).collect::<Result<Vec<_>, Fault>>());
    let centers = tried.transpose()?.map(|slices| strip::picture(&slices));
    let slice = region(shared.recipe, image(axial.rotation_center_px)?, &at)?.index_axis_move(Axis(0), 0);
    Ok(Picture { slice, axial, sinogram, centers })
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
