//! Slabs on a GPU: the same chain as `compute::slab` on the CPU, kernel by kernel.
//!
//! Contract
//! - The algorithm is that of the CPU, so that results agree to rounding (1e-5 relative L2). What the GPU cannot do it
//!   declines, in words, and the CPU does it.
//! - Phase retrieval works on frames, not rows: it goes first, over all rows of the slab (module `frames`).
//! - A slab goes through in chunks of rows, sized to the device's free memory; when memory runs out nevertheless the chunks
//!   are halved, and only when a single pair of rows does not fit is the slab declined.
//! - Three streams: while a chunk is computed the next is uploaded and the one before downloaded (module `pipeline`).
//! - A device that fails is [`Fault::Task`]: the task is tried elsewhere, and the device is for the coordinator to judge.
//! - Counts of repairs cover the slab's own rows; the CPU counts the margin's rows, too.

pub mod bench;
pub mod bench_frames;
pub mod check;
mod check_chains;
mod check_frames;
mod check_iterative;
mod constants;
pub mod cost;
mod frame_steps;
pub(super) mod frames;
mod iterate;
mod memory;
mod pipeline;
mod steps;
mod stripe_steps;

pub(crate) use constants::put;
pub(crate) use pipeline::pack;
pub(crate) use steps::Probe;

use super::chain::{BAD_SHARE, RawRows, Repaired};
use super::compute::{Shared, UPSAMPLING};
use super::convention;
use super::error::TomographyError;
use super::gridding::{Geometry, Padding, Plan};
use super::iterative::Method;
use super::normalize::{self, Flat};
use super::offset;
use super::projector::Projector;
use super::recipe::{Algorithm, Recipe};
use super::stripes::Stripes;
use super::zinger::Zinger;
use crate::device::{DeviceError, Gpu};
use crate::technique::Fault;
use iterate::Iterate;
use ndarray::{Array2, Array3};

/// Everything about a slab but its pixels.
pub(super) struct Setup {
    pub plan: Plan,
    pub algorithm: Algorithm,
    /// What to iterate, of algorithms that do.
    pub iterate: Option<Iterate>,
    /// Weights of columns, where the axis lies aside and a whole turn is blended.
    pub blend: Option<Vec<f32>>,
    pub centre: f64,
    /// Rows of the arrays, the margins included.
    pub held: usize,
    /// Rows before the first that is wanted.
    pub before: usize,
    /// Rows wanted.
    pub rows: usize,
    pub zinger: Option<Zinger>,
    pub stripe: Option<Stripes>,
    pub logarithm: bool,
    pub floor: f32,
    /// Squared radius of the mask in pixels; negative for none.
    pub radius2: f64,
    pub factor: f32,
    pub dark: Array2<f32>,
    pub flats: Vec<Flat>,
}

impl Setup {
    fn reach(&self) -> usize {
        self.zinger.map_or(0, |z| z.width / 2)
    }

    fn size(&self) -> usize {
        self.plan.size
    }

    fn fine(&self) -> usize {
        self.plan.padded * UPSAMPLING
    }
}

/// Keys of the recipe that [`unknown_choice`] lets pass.
const KNOWN: [&str; 30] = [
    "center",
    "center_search",
    "center_method",
    "center_try",
    "turn",
    "algorithm",
    "iterative",
    "filter",
    "padding",
    "zinger",
    "paganin",
    "stripe",
    "normalize",
    "minus_log",
    "mask",
    "pixel_size_um",
    "angles",
    "reverse",
    // What is read of a scan, how it is kept, and what is written of a slice: before and behind what is done here.
    "angle_step",
    "rows",
    "columns",
    "binning",
    "projections",
    "region",
    "scratch",
    "single_file",
    "preview",
    "output",
    "integer",
    "memory_gb",
];

/// What a recipe may say for its slabs to be done on a GPU: the keys known here, and any value of them that [`declined`] lets
/// pass; every other key only with its default value. A key that is new to the recipe is so never passed over in silence.
fn unknown_choice(asked: &serde_json::Value, usual: &serde_json::Value) -> Option<String> {
    let other = asked.as_object()?.iter().find(|(key, value)| {
        !KNOWN.contains(&key.as_str()) && usual.get(key.as_str()).is_none_or(|default| default != *value)
    });
    other.map(|(key, value)| format!("{key} = {value} is done on the CPU"))
}

/// Why the kernels are not for this slab, if so.
fn declined(shared: &Shared<'_>) -> Option<String> {
    match (serde_json::to_value(shared.recipe), serde_json::to_value(Recipe::default())) {
        (Ok(asked), Ok(usual)) => unknown_choice(&asked, &usual),
        _ => Some("a recipe that cannot be read is done on the CPU".to_owned()),
    }
}

/// Frees what is kept for the next slab, unless one is being done: another technique wants the memory.
pub(crate) fn make_room(gpu: &Gpu) {
    pipeline::yield_memory(gpu);
    frames::yield_memory();
}

/// What came of a slab.
pub(super) enum Outcome {
    /// `[z, y, x]`, as the CPU's.
    Done(Array3<f32>, Repaired),
    /// Left to the CPU, and why; with what was repaired on the way to transmission, when the rows are that by now.
    Declined(String, Repaired),
}

/// Reconstructs rows on a GPU. Where phases are retrieved the rows become transmission on the way, in place.
///
/// # Errors
/// [`Fault::Input`] as on the CPU, [`Fault::Task`] when the device fails.
pub(super) fn slab(gpu: &Gpu, shared: &Shared<'_>, center: f64, raw: &mut RawRows) -> Result<Outcome, Fault> {
    let recipe = shared.recipe;
    let mut repaired = Repaired::default();
    if let Some(why) = declined(shared) {
        return Ok(Outcome::Declined(why, repaired));
    }
    if raw.optics.is_some() && !raw.transmission {
        match frames::of_rows(gpu, recipe, raw)? {
            frames::Framed::Done(so_far) => repaired = so_far,
            frames::Framed::Declined(why) => return Ok(Outcome::Declined(why, repaired)),
        }
    }
    let raw = &*raw;
    let refused = |e: TomographyError| Fault::Input(format!("{}: {e}", raw.at));
    let (_, held, columns) = raw.projections.dim();
    if raw.floating && !raw.transmission {
        match finite(&raw.projections) {
            Ok(some) => repaired.non_finite = some,
            Err(why) => return Ok(Outcome::Declined(why, repaired)),
        }
    }
    // Transmission passes with flat 1 and dark 0.
    let (dark, flats) = if recipe.normalize && !raw.transmission {
        let dark = raw.darks.as_ref();
        let dark = dark.map_or_else(|| Array2::zeros((held, columns)), |d| normalize::mean_frame(d.view()));
        let means = raw.flats.iter().map(|(at, f)| Flat { at: *at, mean: normalize::mean_frame(f.view()) });
        (dark, means.collect::<Vec<_>>())
    } else {
        (Array2::zeros((held, columns)), vec![Flat { at: 0.0, mean: Array2::ones((held, columns)) }])
    };
    normalize::check_frames((held, columns), dark.view(), &flats).map_err(refused)?;
    let size = shared.image_size.unwrap_or(columns);
    let geometry = Geometry {
        centre: center,
        filter: recipe.filter,
        padding: recipe.padding,
        size,
        ..Geometry::new(columns, shared.angles)
    };
    let radius = recipe.mask.map(|ratio| ratio * size as f64 / 2.0);
    let iterate = iterate(recipe, &geometry).map_err(refused)?;
    let setup = Setup {
        plan: Plan::new(&geometry).map_err(refused)?,
        algorithm: recipe.algorithm,
        // An iteration explains every projection by itself; a sum of back-projections must count nothing twice.
        blend: (shared.image_size.is_some() && iterate.is_none()).then(|| offset::weights(columns, center)),
        iterate,
        centre: center,
        held,
        before: raw.margin.0,
        rows: held - raw.margin.0 - raw.margin.1,
        zinger: recipe.zinger.filter(|_| !raw.transmission),
        stripe: recipe.stripe.map(|s| s.fitted(columns)),
        logarithm: recipe.minus_log,
        floor: super::chain::FLOOR,
        radius2: radius.map_or(-1.0, |r| r * r),
        factor: shared.pixel_size_cm.map_or(1.0, |cm| convention::per_cm(cm) as f32),
        dark,
        flats,
    };
    if let Some(zinger) = &setup.zinger {
        zinger.check().map_err(refused)?;
    }
    if let Some(stripe) = &setup.stripe {
        match stripe {
            Stripes::Vo(options) => options.check(),
            Stripes::Wavelet(options) => options.check(),
            Stripes::Titarenko(options) => options.check(),
        }
        .map_err(refused)?;
    }
    match run(gpu, &setup, &raw.projections) {
        Ok(Ok((volume, counted))) => Ok(Outcome::Done(volume, repaired.plus(counted))),
        Ok(Err(why)) => Ok(Outcome::Declined(why, if raw.transmission { repaired } else { Repaired::default() })),
        Err(error) => Err(Fault::Task(format!("{}: the GPU failed: {error}", raw.at))),
    }
}

/// What iterative algorithms iterate.
fn iterate(recipe: &Recipe, geometry: &Geometry<'_>) -> Result<Option<Iterate>, TomographyError> {
    let method = match recipe.algorithm {
        Algorithm::Sirt => Method::Sirt,
        Algorithm::Cgls => Method::Cgls,
        Algorithm::Gridding | Algorithm::Direct => return Ok(None),
    };
    recipe.iterative.check()?;
    Ok(Some(Iterate::new(&Projector::new(geometry)?, method, recipe.iterative, geometry.columns)))
}

/// How many pixels are not finite; too many are declined: the CPU has the words for it.
fn finite(projections: &Array3<f32>) -> Result<u64, String> {
    let some = super::chain::non_finite(projections);
    let few = some as f64 <= BAD_SHARE * projections.len().max(1) as f64;
    few.then_some(some).ok_or_else(|| "too many pixels are not finite".to_owned())
}

/// Runs a slab; the inner error is why it is declined.
fn run(
    gpu: &Gpu,
    setup: &Setup,
    projections: &Array3<f32>,
) -> Result<Result<(Array3<f32>, Repaired), String>, DeviceError> {
    gpu.bind()?;
    if let Some(why) = memory::too_large(gpu, setup)? {
        return Ok(Err(why));
    }
    pipeline::run(gpu, setup, projections)
}

impl Setup {
    fn edge(&self) -> bool {
        self.plan.padding == Padding::Edge
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::technique::tomography::recipe::{Center, KEYS};

    fn answer(recipe: &Recipe, image_size: Option<usize>) -> Option<String> {
        let angles = [0.0, 1.0, 2.0];
        declined(&Shared { recipe, angles: &angles, pixel_size_cm: None, image_size, bin: 1 })
    }

    #[test]
    fn recipes_are_for_the_kernels_whatever_they_ask() {
        let plain = Recipe { center: Center::Pixel(1.5), ..Recipe::default() };
        assert_eq!(answer(&plain, None), None);
        assert_eq!(answer(&plain, Some(9)), None);
        assert_eq!(KEYS.iter().find(|key| !KNOWN.contains(key)), None, "a key that is left to the CPU");
        for algorithm in [Algorithm::Direct, Algorithm::Sirt, Algorithm::Cgls] {
            let recipe = Recipe { algorithm, rows: Some((3, 9)), angle_step: 2, ..plain.clone() };
            assert_eq!(answer(&recipe, Some(9)), None, "{algorithm:?}");
        }
    }

    #[test]
    fn a_key_that_is_new_to_the_recipe_is_not_passed_over() {
        let usual = serde_json::json!({ "mask": 1.0, "sharpen": null });
        let asked = |sharpen| serde_json::json!({ "mask": 0.5, "sharpen": sharpen });
        assert_eq!(unknown_choice(&asked(None), &usual), None);
        assert!(unknown_choice(&asked(Some(2)), &usual).unwrap().contains("sharpen = 2"));
        assert!(unknown_choice(&serde_json::json!({ "new": 1 }), &usual).unwrap().contains("new"));
    }
}
