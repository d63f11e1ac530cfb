//! Calibration of the mask's pose: the pose is right when a thin film looks thin.
//!
//! Positions on the mask are measured without knowing where the mask is; only the way from position to depth needs the pose.
//! So the pixels of bright spots are decoded once, and six numbers are searched that make the histogram of their depths
//! sharp: for a film at a known depth `z₀` the mean over pixels of `exp(−(z − z₀)²/2σ²)`, weighted by intensity; for a film at
//! an unknown one `Σ h²/(Σ h)²` of the histogram smoothed by `σ` (the measure of `cold`). Search: each parameter in turn on
//! a grid that is refined, then along the direction in which a round went; `σ` goes from coarse to fine.
//!
//! Moving the mask along its bars changes no depth: one of the six numbers has hardly any effect, and is reported as such. A
//! film at an unknown depth leaves depth itself undetermined.

use super::bright::Bright;
use super::decode::DecodeSetup;
use super::geometry::{MaskFrame, Pose, Region, V3, unit};
use super::mask::Mask;
use super::plot::{Curve, Panel, svg};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// What to search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibrateOptions {
    /// Depth of the film, µm, when known.
    pub film_um: Option<f64>,
    /// Spots whose pixels are used.
    pub spots: usize,
    /// How far the middle may move along each axis, mm.
    pub range_mm: f64,
    /// How far the mask may turn about each axis, degrees.
    pub range_deg: f64,
}

impl Default for CalibrateOptions {
    fn default() -> Self {
        Self { film_um: None, spots: 400, range_mm: 0.1, range_deg: 1.0 }
    }
}

/// Names of the six parameters, as configurations have them, and their units.
pub const PARAMETERS: [(&str, &str); 6] =
    [("cenx", "mm"), ("dist", "mm"), ("cenz", "mm"), ("anglex", "deg"), ("angley", "deg"), ("anglez", "deg")];
/// Widths of the kernel, µm, coarse to fine.
const SIGMAS: [f64; 4] = [25.0, 10.0, 4.0, 2.0];
/// Rounds with each of them.
const ROUNDS: usize = 12;

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The pose found.
    pub pose: Pose,
    /// Objective at the start and at the end, with the finest kernel.
    pub sharpness: (f64, f64),
    /// Weighted standard deviation of depths around their peak (within 20 µm), µm, at the start and at the end.
    pub spread_um: (f64, f64),
    /// Pixels used.
    pub pixels: usize,
    /// Parameters that make hardly any difference: less than a twentieth of the objective over half their range.
    pub without_effect: Vec<String>,
    /// Objective against each parameter, around the pose found: parameter, objective.
    pub curves: Vec<Vec<(f64, f64)>>,
}

fn get(pose: &Pose, i: usize) -> f64 {
    if i < 3 { pose.centre_mm[i] } else { pose.angles_deg[i - 3] }
}

fn with(pose: &Pose, values: [f64; 6]) -> Pose {
    let three = |from: usize| -> V3 { [values[from], values[from + 1], values[from + 2]] };
    Pose { centre_mm: three(0), angles_deg: three(3), ..pose.clone() }
}

struct Objective<'a> {
    setup: &'a DecodeSetup,
    length_um: f64,
    film_um: Option<f64>,
    /// Pixel in the laboratory, position, weight.
    samples: Vec<(V3, f64, f64)>,
}

impl Objective<'_> {
    fn depths(&self, pose: &Pose) -> Vec<(f64, f64)> {
        let frame = MaskFrame::new(pose, self.length_um, self.setup.mask.stretch);
        let beam = unit(self.setup.beam);
        self.samples.iter().map(|&(pixel, p, w)| (frame.depth_of(pixel, beam).depth_um(p), w)).collect()
    }

    fn value(&self, pose: &Pose, sigma: f64) -> f64 {
        let depths = self.depths(pose);
        let total: f64 = depths.iter().map(|d| d.1).sum();
        if let Some(film) = self.film_um {
            let near = |z: f64| (-(z - film) * (z - film) / (2.0 * sigma * sigma)).exp();
            return depths.iter().map(|d| d.1 * near(d.0)).sum::<f64>() / total;
        }
        // Bins of a quarter of the kernel, which is then applied to the histogram.
        let grid = &self.setup.depth;
        let (start, end) = grid.range_um();
        let step = sigma / 4.0;
        let bins = (((end - start) / step).ceil() as usize).clamp(1, 1 << 20);
        let mut h = vec![0.0; bins];
        for (z, w) in depths {
            let at = (z - start) / step;
            if at >= 0.0 && (at as usize) < bins {
                h[at as usize] += w / total;
            }
        }
        let kernel: Vec<f64> =
            (-12..=12).map(|i| (-f64::from(i * i) / 32.0).exp() / (32.0 * std::f64::consts::PI).sqrt()).collect();
        (0..bins)
            .map(|i| {
                let v: f64 = kernel
                    .iter()
                    .enumerate()
                    .filter_map(|(j, k)| (i + j).checked_sub(12).and_then(|b| h.get(b)).map(|h| h * k))
                    .sum();
                v * v
            })
            .sum()
    }

    fn spread(&self, pose: &Pose) -> f64 {
        let depths = self.depths(pose);
        let peak = self.film_um.unwrap_or_else(|| {
            let mut best = (0.0, 0.0);
            for &(z, _) in depths.iter().step_by(1 + depths.len() / 400) {
                let near: f64 = depths.iter().filter(|d| (d.0 - z).abs() < 3.0).map(|d| d.1).sum();
                if near > best.0 {
                    best = (near, z);
                }
            }
            best.1
        });
        let near: Vec<_> = depths.iter().filter(|d| (d.0 - peak).abs() < 20.0).collect();
        let total: f64 = near.iter().map(|d| d.1).sum();
        let mean = near.iter().map(|d| d.0 * d.1).sum::<f64>() / total;
        (near.iter().map(|d| d.1 * (d.0 - mean) * (d.0 - mean)).sum::<f64>() / total).sqrt()
    }
}

/// The best of a function on a line through `at`, between ± `reach` in units of `direction`: a grid, refined three times.
fn along(at: [f64; 6], direction: [f64; 6], reach: f64, value: &(dyn Fn([f64; 6]) -> f64 + Sync)) -> ([f64; 6], f64) {
    const POINTS: i32 = 10;
    let point = |t: f64| -> [f64; 6] { std::array::from_fn(|i| at[i] + t * direction[i]) };
    let (mut middle, mut step) = (0.0, reach / f64::from(POINTS));
    let mut best = (0.0, value(at));
    for _ in 0..3 {
        let tried: Vec<(f64, f64)> = (-POINTS..=POINTS)
            .into_par_iter()
            .map(|i| middle + f64::from(i) * step)
            .filter(|t| t.abs() <= reach)
            .map(|t| (t, value(point(t))))
            .collect();
        // Only what is really better moves the mask: a parameter without effect stays.
        for t in tried {
            if t.1 > best.1 * (1.0 + 1e-9) {
                best = t;
            }
        }
        middle = best.0;
        step /= f64::from(POINTS) / 2.0;
    }
    (point(best.0), best.1)
}

/// Searches the pose from decoded pixels; `setup` has the pose to start from.
///
/// # Errors
/// Too few pixels.
pub fn calibrate(
    setup: &DecodeSetup,
    region: Region,
    pixels: &[Bright],
    options: &CalibrateOptions,
) -> Result<Calibration, String> {
    let samples: Vec<(V3, f64, f64)> = pixels
        .iter()
        // A wrong pose may put depths out of range: that is no reason to leave a pixel out.
        .filter(|p| p.flags & !super::decode::flag::OUT_OF_RANGE == 0 && p.intensity > 0.0)
        .filter_map(|p| {
            let (y, x) = region.centre(p.row as f64, p.column as f64);
            // Bright pixels know their depth no better beyond some counts: square roots keep a few from deciding alone.
            Some((setup.detector.point(y, x), f64::from(p.position_um?), f64::from(p.intensity).sqrt()))
        })
        .collect();
    if samples.len() < 20 {
        return Err(format!(
            "{} decoded pixels, at least 20 are needed; lower threshold, or expose longer",
            samples.len()
        ));
    }
    let length_um = Mask::new(&setup.mask).length_um;
    let objective = Objective { setup, length_um, film_um: options.film_um, samples };
    let start = setup.pose.clone();
    let first: [f64; 6] = std::array::from_fn(|i| get(&start, i));
    let reach: [f64; 6] = std::array::from_fn(|i| if i < 3 { options.range_mm } else { options.range_deg });
    let mut at = first;
    for sigma in SIGMAS {
        let value = |v: [f64; 6]| {
            let inside = v.iter().zip(first).zip(reach).all(|((v, f), r)| (v - f).abs() <= r * (1.0 + 1e-9));
            if inside { objective.value(&with(&start, v), sigma) } else { f64::MIN }
        };
        // Where a coarse kernel led, a fine one need not look far away.
        let share = (sigma / SIGMAS[0]).sqrt();
        for _ in 0..ROUNDS {
            let before = (at, value(at));
            for i in 0..6 {
                let mut axis = [0.0; 6];
                axis[i] = 1.0;
                at = along(at, axis, reach[i] * share, &value).0;
            }
            let went: [f64; 6] = std::array::from_fn(|i| at[i] - before.0[i]);
            let (next, now) = along(at, went, 8.0, &value);
            at = next;
            if now <= before.1 * (1.0 + 1e-5) {
                break;
            }
        }
    }
    let fine = SIGMAS[SIGMAS.len() - 1];
    let curves: Vec<Vec<(f64, f64)>> = (0..6)
        .map(|i| {
            (-20..=20)
                .into_par_iter()
                .map(|k| {
                    let mut v = at;
                    v[i] += f64::from(k) / 20.0 * reach[i] * 0.5;
                    (v[i], objective.value(&with(&start, v), fine))
                })
                .collect()
        })
        .collect();
    let flat = |c: &Vec<(f64, f64)>| {
        let (low, high) = c.iter().fold((f64::MAX, f64::MIN), |(l, h), p| (l.min(p.1), h.max(p.1)));
        high - low <= 0.05 * high.abs()
    };
    let without_effect = curves.iter().zip(PARAMETERS).filter(|(c, _)| flat(c)).map(|(_, p)| p.0.to_owned()).collect();
    let pose = with(&start, at);
    Ok(Calibration {
        sharpness: (objective.value(&start, fine), objective.value(&pose, fine)),
        spread_um: (objective.spread(&start), objective.spread(&pose)),
        pixels: objective.samples.len(),
        without_effect,
        curves,
        pose,
    })
}

/// The objective around the pose found, a panel a parameter.
///
/// # Errors
/// What the drawing library says.
pub fn picture(calibration: &Calibration) -> Result<String, String> {
    let titles: Vec<String> = PARAMETERS
        .iter()
        .enumerate()
        .map(|(i, (name, unit))| format!("{name} = {:.5} {unit}", get(&calibration.pose, i)))
        .collect();
    let panels: Vec<Panel<'_>> = calibration
        .curves
        .iter()
        .enumerate()
        .map(|(i, points)| Panel {
            title: &titles[i],
            x: PARAMETERS[i].1,
            y: "sharpness",
            curves: vec![Curve { name: "", points: points.clone() }],
            log: false,
            mark: Some(get(&calibration.pose, i)),
        })
        .collect();
    svg(&panels, 3, (1200, 640))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::technique::laue::geometry::scale;
    use crate::technique::laue::setup::nominal;
    use rand::{Rng, SeedableRng};

    /// Pixels of a film at `film_um`, as the true pose makes them, positions good to a tenth of a micrometre.
    fn film(setup: &DecodeSetup, film_um: f64, n: usize) -> Vec<Bright> {
        let mask = Mask::new(&setup.mask);
        let frame = MaskFrame::new(&setup.pose, mask.length_um, 1.0);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        (0..n)
            .map(|_| {
                let (row, column) = (rng.random_range(0..2048), rng.random_range(0..2048));
                let pixel = setup.detector.point(row as f64, column as f64);
                let z = film_um + rng.random_range(-0.5..0.5);
                let p = frame.code_um(pixel, scale(unit(setup.beam), z * 1e-3), 0.0) + rng.random_range(-0.1..0.1);
                Bright {
                    row,
                    column,
                    mean: 500.0,
                    intensity: rng.random_range(100.0..2000.0),
                    position_um: Some(p as f32),
                    depth_um: None,
                    flags: 0,
                }
            })
            .collect()
    }

    #[test]
    fn a_film_becomes_sharp_and_comes_to_its_depth() {
        let truth = nominal();
        let pixels = film(&truth, 12.0, 300);
        let mut wrong = truth.clone();
        wrong.pose.centre_mm[0] += 0.02;
        wrong.pose.centre_mm[1] -= 0.03;
        wrong.pose.angles_deg = [0.25, -0.3, 44.2];
        for film_um in [Some(12.0), None] {
            let options = CalibrateOptions { film_um, ..CalibrateOptions::default() };
            let found = calibrate(&wrong, Region::FULL, &pixels, &options).unwrap();
            println!(
                "{film_um:?} {:?} {:?} {:?} {:?}",
                found.sharpness, found.spread_um, found.without_effect, found.pose
            );
            // The film is 1 µm thick and positions are good to 0.1 µm: 0.3 µm; the kernel of 2 µm leaves some more.
            assert!(found.sharpness.1 > 2.0 * found.sharpness.0 && found.spread_um.1 < 1.0, "{:?}", found.spread_um);
            assert!(found.without_effect.iter().any(|p| p == "cenz"), "{:?}", found.without_effect);
            if film_um.is_some() {
                let frame = MaskFrame::new(&found.pose, Mask::new(&truth.mask).length_um, 1.0);
                for p in pixels.iter().step_by(29) {
                    let pixel = truth.detector.point(p.row as f64, p.column as f64);
                    let z = frame.depth_of(pixel, truth.beam).depth_um(f64::from(p.position_um.unwrap()));
                    assert!((z - 12.0).abs() < 3.0, "{z}");
                }
            }
            assert!(picture(&found).unwrap().contains("anglez"));
        }
        assert!(calibrate(&wrong, Region::FULL, &pixels[..5], &CalibrateOptions::default()).is_err());
    }
}
