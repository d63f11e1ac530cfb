//! The forward model: what a pixel counts while the mask steps through its rays.
//!
//! Independent of the decoder where it matters: rays are traced from each depth through the moving mask to the pixel, frame by
//! frame, and the mask is evaluated there, not on a grid. A source is spread evenly over a stretch of the incident beam.
//! Counts are Poisson; beyond the detector's range they saturate.

use super::geometry::{Detector, MaskFrame, Region, V3, scale, unit};
use super::mask::{Mask, gold_per_um};
use rand::Rng;
use rand_distr::{Distribution, Poisson};

/// A part of the sample that diffracts into some pixels.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Source {
    /// Middle, depth in µm.
    pub depth_um: f64,
    /// Extent along the beam, µm.
    pub width_um: f64,
    /// Photon energy, keV.
    pub energy_kev: f64,
}

/// Points along the beam that stand for a source.
const POINTS: usize = 15;

/// The instrument as the forward model wants it.
#[derive(Clone)]
pub struct Instrument<'a> {
    /// The detector.
    pub detector: &'a Detector,
    /// What of it is read out.
    pub region: Region,
    /// Unit vector of the incident beam.
    pub beam: V3,
    /// The mask.
    pub mask: &'a Mask,
    /// Where it is in the first frame.
    pub frame: MaskFrame,
}

impl Instrument<'_> {
    /// Share of a source's intensity that reaches the pixel `(row, column)` in every frame.
    #[must_use]
    pub fn transmission(&self, source: &Source, row: usize, column: usize, frames: usize) -> Vec<f64> {
        let (y, x) = self.region.centre(row as f64, column as f64);
        let pixel = self.detector.point(y, x);
        let mu = gold_per_um(source.energy_kev);
        let mut seen = vec![0.0; frames];
        for i in 0..POINTS {
            let offset = ((i as f64 + 0.5) / POINTS as f64 - 0.5) * source.width_um;
            let depth_mm = (source.depth_um + offset) * 1e-3;
            let view = self.frame.view(pixel, self.beam, depth_mm);
            let (blur, path) = (self.mask.thickness_um * view.slope, self.mask.thickness_um * view.path);
            for (k, s) in seen.iter_mut().enumerate() {
                let p = view.first_um + k as f64 * view.step_um;
                *s += (-mu * path * self.mask.cover(p, blur.max(1e-3))).exp() / POINTS as f64;
            }
        }
        seen
    }

    /// Code coordinate, µm, of a depth for a pixel in the first frame.
    #[must_use]
    pub fn code_um(&self, depth_um: f64, row: usize, column: usize) -> f64 {
        let (y, x) = self.region.centre(row as f64, column as f64);
        self.frame.code_um(self.detector.point(y, x), scale(unit(self.beam), depth_um * 1e-3), 0.0)
    }
}

/// A whole number of counts around `mean`, at most `saturation`.
pub fn counts(mean: f64, saturation: f64, rng: &mut impl Rng) -> f64 {
    // The distribution refuses means that are not positive.
    let drawn = Poisson::new(mean).map_or(0.0, |p| p.sample(rng));
    drawn.min(saturation)
}
