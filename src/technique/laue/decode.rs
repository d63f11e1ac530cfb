//! From a pixel's counts over the frames to intensity over depth: the steps of coded aperture Laue microdiffraction
//! (Gürsoy et al., arXiv:2405.12813, 2024; the numbering is that of the documentation).
//!
//! 1. Select: mean of at least `threshold`, no saturated frame, not constant.
//! 2. The pixel in the laboratory; its view of the mask ([`super::geometry`]).
//! 3. Transmission of the mask, blurred by oblique incidence ([`super::mask`]).
//! 4. The measurement on the mask's grid: linear interpolation, once.
//! 5. Position: [`super::search`].
//! 6. Photon energy, when asked for: least squared difference over the energies, gain free, background known or free.
//! 7. Footprint along the code: non-negative B-splines and a background, least squares ([`super::nnls`]).
//!    What it leaves is looked at for a second place: `overlap.rs`.
//! 8. Every cell of the footprint goes to the depths its rays come from ([`super::depth`]).
//!
//! Order and rounding are fixed per pixel: results do not depend on threads or on how the detector is cut.

use super::depth::{Account, DepthGrid};
use super::geometry::{Detector, MaskFrame, Pose, Region, V3, View, unit};
use super::mask::{Mask, MaskSpec, gold_per_um};
use super::nnls::Solver;
use super::search::{Scratch, Template, Transforms, search};
use super::spline;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, RwLock};

#[path = "overlap.rs"]
mod overlap;

/// What is wrong with a pixel; several may be.
pub mod flag {
    /// Mean below the threshold; not decoded.
    pub const DIM: u8 = 1;
    /// A frame is at or above saturation; not decoded.
    pub const SATURATED: u8 = 2;
    /// Always the same value; not decoded.
    pub const DEAD: u8 = 4;
    /// Another position on the mask explains the measurement almost as well; not deposited.
    pub const AMBIGUOUS: u8 = 8;
    /// The depth lies outside the grid.
    pub const OUT_OF_RANGE: u8 = 16;
    /// Light of another place is left when the position's own is explained; what was deposited is the brighter place's.
    pub const OVERLAP: u8 = 32;
    /// Names in the order of bits.
    pub const NAMES: [&str; 6] = ["dim", "saturated", "dead", "ambiguous", "out of range", "overlap"];
}

/// How positions are found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PositionOptions {
    /// Extent along the beam that a source is expected to have, µm.
    pub width_um: f64,
    /// Positions nearer than this to the best are not its rivals, µm of code.
    pub apart_um: f64,
    /// Least difference of χ² to the best rival.
    pub margin: f64,
    /// Only positions whose depth is within the grid, or so far outside it, µm; all positions when not given.
    pub within_um: Option<f64>,
}

/// How footprints are found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FootprintOptions {
    /// Fit it; else it is a box of the expected width.
    pub fit: bool,
    /// Length of code around the position that may contribute, µm.
    pub window_um: f64,
    /// Degree of the splines.
    pub degree: usize,
    /// Distance of knots, samples.
    pub knots: usize,
}

/// What is known of the photon energy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnergyOptions {
    /// Nothing: transmission is taken as linear in the cover.
    Unknown,
    /// This, keV.
    Fixed(f64),
    /// One of these, keV: first, the end that is not reached, step.
    Fit(f64, f64, f64),
}

/// Everything that decoding wants to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecodeSetup {
    /// The detector.
    pub detector: Detector,
    /// Direction of the incident beam.
    pub beam: V3,
    /// Depth that stands for all others where the scan's scale is found, mm.
    pub source_mm: f64,
    /// The mask.
    pub mask: MaskSpec,
    /// Where it is.
    pub pose: Pose,
    /// Least mean counts.
    pub threshold: f64,
    /// Counts from here on are saturated.
    pub saturation: f64,
    /// Depths.
    pub depth: DepthGrid,
    /// Step 5.
    pub position: PositionOptions,
    /// Step 6.
    pub energy: EnergyOptions,
    /// Counts of every frame that do not come past the mask, when they are known: then energies are found from how dark the
    /// bars are, else only from the shape of their edges.
    pub background: Option<f64>,
    /// Step 7.
    pub footprint: FootprintOptions,
}

/// What is known of a pixel after decoding. Not-a-number where it was not decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pixel {
    /// [`flag`] bits.
    pub flags: u8,
    /// Mean counts.
    pub mean: f32,
    /// Counts in the open beam that the mask modulates.
    pub intensity: f32,
    /// Code coordinate in the first frame, µm.
    pub position_um: f32,
    /// Its depth, µm.
    pub depth_um: f32,
    /// Photon energy, keV.
    pub energy_kev: f32,
    /// Squared difference per degree of freedom in units of Poisson's variance: 1 when the model is right.
    pub residual: f32,
    /// Difference of χ² to the best rival position.
    pub confidence: f32,
}

impl Pixel {
    fn rejected(flags: u8, mean: f64) -> Self {
        let nan = f32::NAN;
        Self {
            flags,
            mean: mean as f32,
            intensity: nan,
            position_um: nan,
            depth_um: nan,
            energy_kev: nan,
            residual: nan,
            confidence: nan,
        }
    }
}

/// Steps of blur and footprint width that templates are shared over, µm.
const BLUR_STEP_UM: f64 = 0.1;
const WIDTH_STEP_UM: f64 = 0.25;

type Kind = (u32, u32);
type Slot = Arc<OnceLock<Arc<Template>>>;

/// Decodes pixels of one setup; shared by threads.
pub struct Decoder {
    setup: DecodeSetup,
    region: Region,
    mask: Mask,
    frame: MaskFrame,
    transforms: Transforms,
    basis: Vec<f64>,
    columns: usize,
    window: usize,
    templates: RwLock<BTreeMap<Kind, Slot>>,
}

/// Scratch of one thread.
pub struct Work {
    search: Scratch,
    solver: Solver,
    data: Vec<f32>,
    transmission: Vec<f64>,
    splined: Vec<f64>,
    gram: Vec<f64>,
    atb: Vec<f64>,
    x: Vec<f64>,
    footprint: Vec<f64>,
    left: Vec<f32>,
}

impl Work {
    /// Of the pixel decoded last: coefficients of the splines, and the background.
    #[must_use]
    pub fn coefficients(&self) -> &[f64] {
        &self.x
    }

    /// Of the pixel decoded last: the measurement on the mask's grid.
    #[must_use]
    pub fn resampled(&self) -> &[f32] {
        &self.data
    }
}

impl Decoder {
    /// For frames that show this part of the detector.
    #[must_use]
    pub fn new(setup: DecodeSetup, region: Region) -> Self {
        let mask = Mask::new(&setup.mask);
        let frame = MaskFrame::new(&setup.pose, mask.length_um, setup.mask.stretch);
        let transforms = Transforms::new(mask.samples());
        let basis = spline::cardinal(setup.footprint.degree, setup.footprint.knots);
        let window = ((setup.footprint.window_um / setup.mask.resolution_um).round() as usize).max(basis.len());
        let columns = (window - basis.len()) / setup.footprint.knots.max(1) + 1;
        let templates = RwLock::new(BTreeMap::new());
        Self { setup, region, mask, frame, transforms, basis, columns, window, templates }
    }

    /// The setup.
    #[must_use]
    pub fn setup(&self) -> &DecodeSetup {
        &self.setup
    }

    /// The part of the detector that frames show.
    #[must_use]
    pub fn region(&self) -> Region {
        self.region
    }

    /// Scratch for a thread.
    #[must_use]
    pub fn work(&self) -> Work {
        let n = self.columns + 1;
        Work {
            search: Scratch::new(&self.transforms),
            solver: Solver::new(n),
            data: Vec::new(),
            transmission: Vec::new(),
            splined: Vec::new(),
            gram: vec![0.0; n * n],
            atb: vec![0.0; n],
            x: vec![0.0; n],
            footprint: vec![0.0; self.window],
            left: Vec::new(),
        }
    }

    /// What the pixel of a frame sees.
    #[must_use]
    pub fn view(&self, row: usize, column: usize) -> View {
        let (y, x) = self.region.centre(row as f64, column as f64);
        self.frame.view(self.setup.detector.point(y, x), unit(self.setup.beam), self.setup.source_mm)
    }

    pub(super) fn kind(&self, view: &View) -> (Kind, f64) {
        let blur = self.mask.thickness_um * view.slope;
        let width = self.setup.position.width_um * view.depth.magnification(1e3 * self.setup.source_mm).abs();
        (((blur / BLUR_STEP_UM).round() as u32, (width / WIDTH_STEP_UM).round().max(1.0) as u32), width)
    }

    /// The template of a view, made when it is first wanted.
    #[must_use]
    pub fn template(&self, view: &View) -> Arc<Template> {
        let (kind, _) = self.kind(view);
        let known = self.templates.read().unwrap_or_else(|p| p.into_inner()).get(&kind).cloned();
        let slot = known.unwrap_or_else(|| {
            let mut all = self.templates.write().unwrap_or_else(|p| p.into_inner());
            Arc::clone(all.entry(kind).or_default())
        });
        // Made outside the map's lock, by one thread.
        Arc::clone(slot.get_or_init(|| {
            let cover = self.mask.profile(f64::from(kind.0) * BLUR_STEP_UM);
            let width = f64::from(kind.1) * WIDTH_STEP_UM / self.mask.resolution_um;
            Arc::new(Template::new(&cover, width, &self.transforms))
        }))
    }

    /// Step 1.
    fn select(&self, series: &[f32]) -> Result<f64, Pixel> {
        let (mut sum, mut least, mut most) = (0.0, f32::INFINITY, f32::NEG_INFINITY);
        for &v in series {
            sum += f64::from(v);
            least = least.min(v);
            most = most.max(v);
        }
        let mean = sum / series.len().max(1) as f64;
        let mut flags = 0;
        if mean < self.setup.threshold || mean.is_nan() {
            flags |= flag::DIM;
        }
        if f64::from(most) >= self.setup.saturation {
            flags |= flag::SATURATED;
        }
        if least >= most {
            flags |= flag::DEAD;
        }
        if flags == 0 { Ok(mean) } else { Err(Pixel::rejected(flags, mean)) }
    }

    /// Decodes the pixel `(row, column)` of the frames; adds to its column of depths, and tells where intensity went.
    pub fn decode(
        &self,
        series: &[f32],
        row: usize,
        column: usize,
        work: &mut Work,
        depths: &mut [f64],
    ) -> (Pixel, Account) {
        match self.select(series) {
            // A dim pixel has nothing to account for but its counts, a saturated one an unknown amount.
            Err(pixel) => (pixel, Account::default()),
            Ok(mean) => self.decode_bright(series, mean, &self.view(row, column), work, depths),
        }
    }

    fn decode_bright(
        &self,
        series: &[f32],
        mean: f64,
        view: &View,
        work: &mut Work,
        depths: &mut [f64],
    ) -> (Pixel, Account) {
        let res = self.setup.mask.resolution_um;
        let template = self.template(view);
        let step = view.step_um / res;
        resample(series, step.abs(), step < 0.0, &mut work.data);
        let behind = if step < 0.0 { (series.len() - 1) as f64 * view.step_um } else { 0.0 };
        let offsets = self.offsets(view, behind);
        let apart = (self.setup.position.apart_um / res).round() as usize;
        let found = search(&self.transforms, &template, &work.data, offsets.clone(), apart, &mut work.search);
        let Some(found) = found else {
            return (Pixel::rejected(flag::AMBIGUOUS, mean), Account::default());
        };
        let l = work.data.len() as f64;
        // Interpolation makes more samples than there are frames, or fewer: one frame is one measurement.
        let share = series.len() as f64 / l;
        // What is left beyond Poisson's variance comes from a footprint other than the expected one. It is alike over the length
        // of a footprint: so many samples of it are one measurement.
        let excess = (found.residual / l - mean).max(0.0);
        let noise = (mean + excess * (0.5 * template.width).max(1.0)).max(f64::MIN_POSITIVE);
        let confidence = share * (found.rival - found.residual) / noise;
        let mut pixel = Pixel::rejected(0, mean);
        pixel.position_um = (found.refined * res - behind) as f32;
        pixel.depth_um = view.depth.depth_um(found.refined * res - behind) as f32;
        pixel.confidence = confidence as f32;
        let path = self.mask.thickness_um * view.path;
        let energy = match self.setup.energy {
            EnergyOptions::Unknown => None,
            EnergyOptions::Fixed(kev) => Some(kev),
            EnergyOptions::Fit(..) => self.energy(&template, path, found.offset, work),
        };
        pixel.energy_kev = energy.map_or(f32::NAN, |e| e as f32);
        let tau = energy.map(|kev| gold_per_um(kev) * path);
        let closed = tau.map_or(0.0, |t| (-t).exp());
        let (intensity, residual) = if self.setup.footprint.fit {
            self.footprint(&template, tau, found.offset, work)
        } else {
            work.footprint.fill(0.0);
            let half = self.window as f64 / 2.0;
            for (u, f) in work.footprint.iter_mut().enumerate() {
                let (low, high) = (u as f64 - half, u as f64 + 1.0 - half);
                let inside = (high.min(template.width / 2.0 + 0.5) - low.max(0.5 - template.width / 2.0)).max(0.0);
                *f = inside / template.width;
            }
            let intensity = found.gain / (1.0 - closed);
            work.footprint.iter_mut().for_each(|f| *f *= intensity);
            (work.footprint.iter().sum(), found.residual)
        };
        pixel.intensity = intensity as f32;
        pixel.residual = (share * residual / (mean * (series.len() as f64 - 3.0).max(1.0))) as f32;
        let mut account = Account { input: intensity, ..Account::default() };
        // Near an end of the mask the true position may lie beyond: the best one there says nothing.
        let at_an_end = found.offset < 2 * apart || found.offset + work.data.len() + 2 * apart > template.samples();
        let wanted = self.may_overlap(pixel.residual);
        let second = wanted.then(|| self.second_place(&template, &found, &offsets, mean / share, work)).flatten();
        if second.is_some() {
            pixel.flags |= flag::OVERLAP;
        }
        let alike = second.is_some_and(|s| s >= overlap::ALIKE);
        if confidence < self.setup.position.margin || confidence.is_nan() || at_an_end || alike {
            pixel.flags |= flag::AMBIGUOUS;
            account.rejected = intensity;
            return (pixel, account);
        }
        if !self.setup.depth.holds(f64::from(pixel.depth_um)) {
            pixel.flags |= flag::OUT_OF_RANGE;
        }
        // Cell u of the footprint is the sample found.offset + u − window/2.
        let first = found.offset as f64 - (self.window / 2) as f64;
        for (u, &amount) in work.footprint.iter().enumerate().filter(|(_, a)| **a > 0.0) {
            let p = (first + u as f64) * res - behind;
            let (a, b) = (view.depth.depth_um(p - res / 2.0), view.depth.depth_um(p + res / 2.0));
            account.out_of_range += self.setup.depth.deposit_even(a, b, amount, depths);
        }
        account.deposited = intensity - account.out_of_range;
        (pixel, account)
    }

    /// Offsets that are looked at; `behind`: from the first frame to the start of the resampled data, µm, not positive.
    pub(super) fn offsets(&self, view: &View, behind: f64) -> std::ops::Range<usize> {
        let Some(within) = self.setup.position.within_um else { return 0..usize::MAX };
        let (start, end) = self.setup.depth.range_um();
        let at = |depth: f64| (view.depth.code_um(depth) + behind) / self.mask.resolution_um;
        let (a, b) = (at(start - within), at(end + within));
        a.min(b).floor().max(0.0) as usize..a.max(b).ceil().max(0.0) as usize + 1
    }

    /// Transmission around the position, from half a window before it to half a window behind the data.
    fn transmission(&self, template: &Template, tau: Option<f64>, offset: usize, length: usize, out: &mut Vec<f64>) {
        let first = offset as isize - (self.window / 2) as isize;
        out.clear();
        out.extend((0..(length + self.window) as isize).map(|i| {
            let at = usize::try_from(first + i).ok().and_then(|i| template.cover.get(i));
            let cover = at.map_or(0.0, |&c| f64::from(c));
            tau.map_or(1.0 - cover, |t| (-t * cover).exp())
        }));
    }

    /// Step 6: the energy whose transmission explains the data best.
    fn energy(&self, template: &Template, path: f64, offset: usize, work: &mut Work) -> Option<f64> {
        let EnergyOptions::Fit(first, end, step) = self.setup.energy else { return None };
        let l = work.data.len();
        let half = self.window / 2;
        // The expected footprint is the wrong one for most sources, and a wrong one looks like another energy: with footprints
        // wanted anyway, one is fitted first with transmission linear in the cover.
        let shape: Vec<(usize, f64)> = if self.setup.footprint.fit {
            let (sum, _) = self.footprint(template, None, offset, work);
            work.footprint.iter().enumerate().filter(|(_, f)| **f > 0.0).map(|(u, f)| (u, f / sum)).collect()
        } else {
            Vec::new()
        };
        let mut best: Option<(f64, f64)> = None;
        let steps = ((end - first) / step).ceil().max(0.0) as usize;
        for kev in (0..steps).map(|i| first + i as f64 * step) {
            self.transmission(template, Some(gold_per_um(kev) * path), offset, l, &mut work.transmission);
            let model: Vec<f64> = if shape.is_empty() {
                super::search::boxed(&work.transmission, template.width).drain(..).skip(half).take(l).collect()
            } else {
                let seen = |j: usize| shape.iter().map(|&(u, w)| w * work.transmission[j + u]).sum();
                (0..l).map(seen).collect()
            };
            let (mut s, mut ss, mut d, mut dd, mut sd) = (0.0, 0.0, 0.0, 0.0, 0.0);
            for (m, &v) in model.into_iter().zip(&work.data) {
                let v = f64::from(v);
                s += m;
                ss += m * m;
                d += v;
                dd += v * v;
                sd += m * v;
            }
            let n = l as f64;
            let (variance, covariance, all) = match self.setup.background {
                Some(b) => (ss, sd - b * s, dd - 2.0 * b * d + n * b * b),
                None => (ss - s * s / n, sd - s * d / n, dd - d * d / n),
            };
            if variance <= 1e-9 * n {
                continue;
            }
            let left = all - covariance.max(0.0) * covariance.max(0.0) / variance;
            if best.is_none_or(|b| left < b.1) {
                best = Some((kev, left));
            }
        }
        best.map(|b| b.0)
    }

    /// Splines and knots of step 7: basis, number of splines, samples of the window.
    #[must_use]
    pub fn basis(&self) -> (&[f64], usize, usize) {
        (&self.basis, self.columns, self.window)
    }

    /// Step 7: fills `work.footprint` with counts; returns their sum and the squared difference.
    fn footprint(&self, template: &Template, tau: Option<f64>, offset: usize, work: &mut Work) -> (f64, f64) {
        let (l, n, k) = (work.data.len(), self.columns + 1, self.setup.footprint.knots.max(1));
        self.transmission(template, tau, offset, l, &mut work.transmission);
        // Column c of the matrix, row j, is splined[c·k + j].
        let support = self.basis.len();
        work.splined.clear();
        work.splined.extend(
            work.transmission.windows(support).map(|t| t.iter().zip(&self.basis).map(|(t, b)| t * b).sum::<f64>()),
        );
        let g = &work.splined;
        let gram = &mut work.gram;
        let last = n - 1;
        // The first row in full; further down each entry follows from the one up and left, whose window lies k samples before.
        for c in 0..self.columns {
            gram[c] = g[..l].iter().zip(&g[c * k..c * k + l]).map(|(a, b)| a * b).sum();
        }
        for c in 1..self.columns {
            for b in c..self.columns {
                let mut value = gram[(c - 1) * n + b - 1];
                for i in 0..k {
                    let (a0, b0) = ((c - 1) * k + i, (b - 1) * k + i);
                    value += g[a0 + l] * g[b0 + l] - g[a0] * g[b0];
                }
                gram[c * n + b] = value;
            }
        }
        let mut sum: f64 = g[..l].iter().sum();
        for c in 0..self.columns {
            gram[c * n + last] = sum;
            for i in 0..k.min(g.len() - c * k - l) {
                sum += g[c * k + i + l] - g[c * k + i];
            }
        }
        gram[last * n + last] = l as f64;
        for c in 1..n {
            for b in 0..c {
                gram[c * n + b] = gram[b * n + c];
            }
        }
        let data: Vec<f64> = work.data.iter().map(|&d| f64::from(d)).collect();
        for c in 0..self.columns {
            work.atb[c] = g[c * k..c * k + l].iter().zip(&data).map(|(a, d)| a * d).sum();
        }
        work.atb[last] = data.iter().sum();
        work.solver.solve(gram, &work.atb, &mut work.x);
        work.footprint.fill(0.0);
        for (c, &x) in work.x.iter().take(self.columns).enumerate().filter(|(_, x)| **x > 0.0) {
            work.footprint[c * k..].iter_mut().zip(&self.basis).for_each(|(f, b)| *f += x * b);
        }
        let mut residual = 0.0;
        work.left.clear();
        for (j, d) in data.iter().enumerate() {
            let active = work.x.iter().take(self.columns).enumerate().filter(|(_, x)| **x > 0.0);
            let model: f64 = active.map(|(c, x)| x * g[c * k + j]).sum();
            let left = d - model - work.x[last];
            residual += left * left;
            work.left.push(left as f32);
        }
        (work.footprint.iter().sum(), residual)
    }
}

/// Step 4: values at every sample of the mask, `1/step` frames apart, linearly between frames; backwards when `reversed`.
pub fn resample(series: &[f32], step: f64, reversed: bool, out: &mut Vec<f32>) {
    out.clear();
    let last = series.len().saturating_sub(1);
    let count = (last as f64 * step + 1e-9) as usize + 1;
    out.extend((0..count).map(|j| {
        let t = (j as f64 / step).min(last as f64);
        let t = if reversed { last as f64 - t } else { t };
        let i = (t as usize).min(last.saturating_sub(1));
        let f = (t - i as f64) as f32;
        match (series.get(i), series.get(i + 1)) {
            (Some(a), Some(b)) => a + (b - a) * f,
            (Some(a), None) => *a,
            _ => 0.0,
        }
    }));
}
