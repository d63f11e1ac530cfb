//! Whole slabs, counts to volume, on the GPU and on the CPU.

use super::Outcome;
use super::check::{Finding, Size, relative};
use super::check_frames::OPTICS;
use crate::device::Gpu;
use crate::technique::tomography::chain::RawRows;
use crate::technique::tomography::compute::{self, Shared};
use crate::technique::tomography::gridding::Padding;
use crate::technique::tomography::iterative::Stopping;
use crate::technique::tomography::paganin::Optics;
use crate::technique::tomography::recipe::{Algorithm, Recipe};
use crate::technique::tomography::stripe::Stripe;
use crate::technique::tomography::stripes::Stripes;
use crate::technique::tomography::titarenko::Titarenko;
use crate::technique::tomography::wavelet::Wavelet;
use crate::technique::tomography::zinger::Zinger;
use crate::technique::tomography::{offset, phantom};
use ndarray::{Array3, Axis};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A scan to be reconstructed on the GPU and on the CPU.
struct Case {
    name: &'static str,
    recipe: Recipe,
    margin: (usize, usize),
    /// Counts are whole numbers.
    whole: bool,
    optics: Option<Optics>,
    /// A whole turn about an axis aside.
    aside: bool,
}

fn cases() -> Vec<Case> {
    let base = Recipe::default();
    let zinger = Some(Zinger { width: 3, threshold: 0.3 });
    let stripe = |method| Recipe { stripe: Some(method), ..base.clone() };
    let by = |algorithm| Recipe { algorithm, ..base.clone() };
    let case = |name, recipe| Case { name, recipe, margin: (0, 0), whole: true, optics: None, aside: false };
    // Line integrals differ by 1e-7. In single precision conjugate gradients magnify that a thousand times from the sixth
    // iteration to the ninth, when the largest singular value has converged and returns, and forget it again.
    let few = Stopping { iterations: 4, tolerance: 0.0, ..Stopping::default() };
    let iterated = |algorithm| Recipe { iterative: few, ..by(algorithm) };
    vec![
        case("gridding", base.clone()),
        Case {
            margin: (1, 1),
            ..case("zingers, stripes, gridding, margins", Recipe { zinger, ..stripe(Stripes::Vo(Stripe::default())) })
        },
        Case {
            margin: (1, 0),
            whole: false,
            ..case("direct, fractional counts", Recipe { zinger, ..by(Algorithm::Direct) })
        },
        case("wavelet", stripe(Stripes::Wavelet(Wavelet::default()))),
        case("titarenko", stripe(Stripes::Titarenko(Titarenko::default()))),
        case("edge padding, no mask", Recipe { padding: Padding::Edge, mask: None, ..base.clone() }),
        Case {
            margin: (5, 7),
            optics: Some(OPTICS),
            ..case("zingers, Paganin, margins", Recipe { zinger, ..base.clone() })
        },
        Case { aside: true, ..case("axis aside, gridding", Recipe { padding: Padding::Edge, ..base.clone() }) },
        Case { aside: true, ..case("axis aside, direct", by(Algorithm::Direct)) },
        case("SIRT", iterated(Algorithm::Sirt)),
        Case { aside: true, ..case("axis aside, CGLS", iterated(Algorithm::Cgls)) },
    ]
}

/// Whole slabs, counts to volume, on the GPU and on the CPU.
///
/// # Errors
/// The device fails, or declines what it should do.
pub fn chains(gpu: &Gpu, size: Size, seed: u64) -> Result<Vec<Finding>, String> {
    let mut found = Vec::new();
    for Case { name, recipe, margin, whole, optics, aside } in cases() {
        let most = if aside {
            2
        } else if recipe.algorithm == Algorithm::Gridding {
            size.rows
        } else {
            4
        };
        let size = Size { rows: size.rows.min(most), ..size };
        let (range, at) = if aside { (std::f64::consts::TAU, 0.84) } else { (std::f64::consts::PI, 0.5) };
        let angles: Vec<f64> = (0..size.angles).map(|i| i as f64 * range / size.angles as f64).collect();
        let centre = size.columns as f64 * at - 1.8;
        let image_size = aside.then(|| offset::image_size(size.columns, centre));
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let edge = image_size.unwrap_or(size.columns);
        let raw = || RawRows { optics, ..raw_rows(&mut rng.clone(), size, edge, &angles, centre, margin, whole) };
        let shared = Shared { recipe: &recipe, angles: &angles, pixel_size_cm: Some(1e-3), image_size, bin: 1 };
        let (got, counted) = match super::slab(gpu, &shared, centre, &mut raw()).map_err(|e| format!("{name}: {e}"))? {
            Outcome::Done(volume, counted) => (volume, counted),
            Outcome::Declined(why, _) => return Err(format!("{name}: declined: {why}")),
        };
        let (want, expected) = compute::slab_on_cpu(&shared, centre, raw()).map_err(|e| format!("{name}: {e}"))?;
        // The widest of the kernels' errors; a zinger or stripe judged otherwise would show as 1e-3.
        found.push(Finding { what: format!("{name}: relative L2"), error: relative(&got, &want), allowed: 1e-5 });
        // Where frames go first their margins are counted on both sides; else here only rows of the slab are.
        if margin == (0, 0) || optics.is_some() {
            let differ = f64::from(u8::from(counted != expected));
            found.push(Finding { what: format!("{name}: counts of repairs"), error: differ, allowed: 0.0 });
        }
    }
    Ok(found)
}

/// Counts of the phantom, `edge` pixels wide, with zingers and a stripe; flats before and after.
fn raw_rows(
    rng: &mut ChaCha8Rng,
    size: Size,
    edge: usize,
    angles: &[f64],
    centre: f64,
    margin: (usize, usize),
    whole: bool,
) -> RawRows {
    let held = size.rows + margin.0 + margin.1;
    let sinograms = phantom::sinograms(&phantom::ellipsoids(), held, edge, size.columns, angles, centre);
    let scale = 3.0 / edge as f32;
    let beam = |u: usize| 20_000.0 + 10.0 * (u as f32).sin() * 40.0;
    let mut projections = Array3::from_shape_fn((angles.len(), held, size.columns), |(a, r, u)| {
        let level = beam(u) * (1.0 - 0.1 * a as f32 / angles.len() as f32);
        let transmitted = (-scale * sinograms[[r, a, u]]).exp();
        let counts = 100.0 + level * transmitted * (1.0 + rng.random_range(-0.003..0.003_f32));
        if whole { counts.round() } else { counts }
    });
    let stripe = size.columns / 3;
    projections.index_axis_mut(Axis(2), stripe).mapv_inplace(|v| if whole { (v * 0.93).round() } else { v * 0.93 });
    for _ in 0..size.angles {
        let (a, r, u) =
            (rng.random_range(0..angles.len()), rng.random_range(0..held), rng.random_range(0..size.columns));
        projections[[a, r, u]] = 60_000.0;
    }
    let frames = |level: f32, rng: &mut ChaCha8Rng| {
        Array3::from_shape_fn((3, held, size.columns), |(_, _, u)| {
            100.0 + level * beam(u) + rng.random_range(-9.0..9.0_f32).round()
        })
    };
    let darks = Array3::from_shape_fn((3, held, size.columns), |_| 100.0 + rng.random_range(-3.0..3.0_f32).round());
    RawRows {
        rows: margin.0..margin.0 + size.rows,
        margin,
        optics: None,
        projections,
        darks: Some(darks),
        flats: vec![(0.0, frames(1.0, rng)), ((angles.len() - 1) as f64, frames(0.9, rng))],
        floating: false,
        transmission: false,
        at: "check".to_owned(),
    }
}
