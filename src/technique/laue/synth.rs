//! Synthetic points: what the detector would have written, the configuration for it, and the truth.
//!
//! Spots of Gaussian shape, each of one source at one depth, on the part of the detector that is read out; Poisson counts on a
//! background that the mask does not modulate; dead pixels (always 0) and saturated ones. The same seed makes the same files. What is written
//! appears under its name at once, by a rename.

use super::forward::{Instrument, Source, counts};
use super::geometry::{Detector, MaskFrame, Region, Rotation, V3, cross, dot, norm, scale, sub, unit};
use super::mask::{ENERGY_KEV, Mask};
use super::setup::nominal;
use super::wire::WireSpec;
use crate::technique::Fault;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What steps across the diffracted beams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aperture {
    /// A coded mask.
    Mask,
    /// A wire.
    Wire,
}

/// What to synthesise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SynthOptions {
    /// The file, or with `split` the folder, to write.
    pub out: PathBuf,
    /// Mask or wire.
    pub aperture: Aperture,
    /// Frames.
    pub frames: usize,
    /// Step of mask or wire, µm a frame.
    pub step_um: f64,
    /// Rows and columns read out, around the middle of the detector.
    pub readout: [usize; 2],
    /// Spots.
    pub spots: usize,
    /// Counts of the brightest pixel of a spot in the open beam.
    pub counts: f64,
    /// Counts of every pixel that do not come past the aperture.
    pub background: f64,
    /// Depths of sources are drawn from here, µm.
    pub depths_um: [f64; 2],
    /// Extent of every source along the beam, µm.
    pub width_um: f64,
    /// Pixels that are always 0.
    pub dead: usize,
    /// Pixels that are always saturated.
    pub saturated: usize,
    /// Sample position, µm, for series of points.
    pub sample_um: V3,
    /// Scan number.
    pub number: i64,
    /// One file a frame.
    pub split: bool,
    /// Also write the configuration for it: `cold`'s YAML for a mask, geoN for a wire.
    pub configuration: Option<PathBuf>,
    /// Also write what was planted, JSON.
    pub truth: Option<PathBuf>,
    /// Of everything random.
    pub seed: u64,
}

impl Default for SynthOptions {
    fn default() -> Self {
        Self {
            out: PathBuf::new(),
            aperture: Aperture::Mask,
            frames: 401,
            step_um: 0.5,
            readout: [64, 64],
            spots: 12,
            counts: 1000.0,
            background: 5.0,
            depths_um: [-80.0, 80.0],
            width_um: 6.0,
            dead: 3,
            saturated: 3,
            sample_um: [0.0; 3],
            number: 1,
            split: false,
            configuration: None,
            truth: None,
            seed: 0,
        }
    }
}

/// A planted spot.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spot {
    /// Its middle, pixels of the frames.
    pub row: f64,
    /// The same.
    pub column: f64,
    /// Standard deviation of its shape, pixels.
    pub sigma: f64,
    /// Counts at its middle in the open beam.
    pub counts: f64,
    /// What diffracts into it.
    pub source: Source,
}

impl Spot {
    fn at(&self, row: usize, column: usize) -> f64 {
        let (y, x) = ((row as f64 - self.row) / self.sigma, (column as f64 - self.column) / self.sigma);
        let r = y * y + x * x;
        if r > 16.0 { 0.0 } else { self.counts * (-r / 2.0).exp() }
    }
}

/// Everything that was planted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Truth {
    /// The options.
    pub options: SynthOptions,
    /// The part of the detector that was read out.
    pub region: Region,
    /// Spots.
    pub spots: Vec<Spot>,
    /// Row and column of pixels that are always 0.
    pub dead: Vec<[usize; 2]>,
    /// The same for pixels that are always saturated.
    pub saturated: Vec<[usize; 2]>,
}

impl Truth {
    /// Open-beam counts of each spot in a pixel.
    pub fn shares(&self, row: usize, column: usize) -> impl Iterator<Item = (&Spot, f64)> {
        self.spots.iter().map(move |s| (s, s.at(row, column))).filter(|s| s.1 > 0.0)
    }
}

/// The wire that `synth` steps, and its readings: 300 µm above the beam.
#[must_use]
pub fn nominal_wire(frames: usize, step_um: f64) -> (WireSpec, Vec<V3>) {
    let spec = WireSpec {
        diameter_um: 50.0,
        axis: [1.0, 0.0, 0.0],
        rotation_rad: [0.0045, -0.0068, 0.0],
        origin_um: [0.0; 3],
    };
    let reach = step_um * frames as f64 * 0.5;
    let readings = (0..frames).map(|k| [0.0, 300.0, 15.0 + k as f64 * step_um - reach]).collect();
    (spec, readings)
}

/// Share of a pixel, in parts along the detector's columns, that a wire leaves free for a source.
fn past_wire(
    detector: &Detector,
    region: Region,
    wire: &WireSpec,
    beam: V3,
    readings: &[V3],
    source: &Source,
    at: [usize; 2],
) -> Vec<f64> {
    const PARTS: usize = 8;
    const POINTS: usize = 9;
    let rotation = Rotation::vector(wire.rotation_rad);
    let axis = unit(rotation.apply(wire.axis));
    let centres: Vec<V3> = readings.iter().map(|&x| scale(rotation.apply(sub(x, wire.origin_um)), 1e-3)).collect();
    let mut free = vec![0.0; readings.len()];
    for i in 0..POINTS {
        let depth = source.depth_um + ((i as f64 + 0.5) / POINTS as f64 - 0.5) * source.width_um;
        let origin = scale(beam, depth * 1e-3);
        for part in 0..PARTS {
            let shift = (part as f64 + 0.5) / PARTS as f64 - 0.5;
            let (y, x) = region.centre(at[0] as f64, at[1] as f64 + shift);
            let normal = cross(unit(sub(detector.point(y, x), origin)), axis);
            let length = norm(normal);
            for (f, &centre) in free.iter_mut().zip(&centres) {
                let distance = dot(sub(centre, origin), normal).abs() / length;
                if distance > wire.diameter_um * 0.5e-3 {
                    *f += 1.0 / (PARTS * POINTS) as f64;
                }
            }
        }
    }
    free
}

/// Frames `[frame][row·columns + column]` and what was planted.
#[must_use]
pub fn render(options: &SynthOptions) -> (Vec<Vec<u16>>, Truth) {
    let mut setup = nominal();
    setup.pose.step_um = options.step_um;
    let [rows, columns] = options.readout;
    let start = [0, 1].map(|axis| setup.detector.shape[axis].saturating_sub(options.readout[1 - axis]) / 2);
    let region = Region { start, bin: [1, 1] };
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let spots: Vec<Spot> = (0..options.spots)
        .map(|_| Spot {
            row: rng.random_range(0.0..rows as f64),
            column: rng.random_range(0.0..columns as f64),
            sigma: rng.random_range(0.8..1.6),
            counts: options.counts * rng.random_range(0.5..1.0),
            source: Source {
                depth_um: rng.random_range(options.depths_um[0]..=options.depths_um[1]),
                width_um: options.width_um,
                energy_kev: rng.random_range(ENERGY_KEV.0 + 3.0..22.0),
            },
        })
        .collect();
    let mut pick = |n: usize| -> Vec<[usize; 2]> {
        (0..n).map(|_| [rng.random_range(0..rows), rng.random_range(0..columns)]).collect()
    };
    let (dead, saturated) = (pick(options.dead), pick(options.saturated));
    let truth = Truth { options: options.clone(), region, spots, dead, saturated };
    let mask = Mask::new(&setup.mask);
    let frame = MaskFrame::new(&setup.pose, mask.length_um, setup.mask.stretch);
    let beam = unit(setup.beam);
    let instrument = Instrument { detector: &setup.detector, region, beam, mask: &mask, frame };
    let (wire, readings) = nominal_wire(options.frames, options.step_um);
    // Mean counts of the pixels that a spot reaches.
    let bright: BTreeMap<usize, Vec<f64>> = (0..rows * columns)
        .into_par_iter()
        .filter_map(|i| {
            let (row, column) = (i / columns, i % columns);
            let mut mean: Option<Vec<f64>> = None;
            for (spot, share) in truth.shares(row, column) {
                let seen = match options.aperture {
                    Aperture::Mask => instrument.transmission(&spot.source, row, column, options.frames),
                    Aperture::Wire => {
                        past_wire(&setup.detector, region, &wire, beam, &readings, &spot.source, [row, column])
                    }
                };
                let mean = mean.get_or_insert_with(|| vec![options.background; options.frames]);
                mean.iter_mut().zip(seen).for_each(|(m, s)| *m += share * s);
            }
            mean.map(|m| (i, m))
        })
        .collect();
    let top = f64::from(u16::MAX);
    let frames = (0..options.frames)
        .into_par_iter()
        .map(|k| {
            // A stream of its own per frame: frames do not depend on threads.
            let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
            rng.set_stream(k as u64 + 1);
            let mut image: Vec<u16> = (0..rows * columns)
                .map(|i| {
                    let mean = bright.get(&i).map_or(options.background, |m| m[k]);
                    if mean > 0.0 { counts(mean, top, &mut rng) as u16 } else { 0 }
                })
                .collect();
            truth.dead.iter().for_each(|p| image[p[0] * columns + p[1]] = 0);
            truth.saturated.iter().for_each(|p| image[p[0] * columns + p[1]] = u16::MAX);
            image
        })
        .collect();
    (frames, truth)
}

/// Writes a point, its configuration and its truth.
///
/// # Errors
/// Options that cannot be, and files that cannot be written.
pub fn synth(options: &SynthOptions) -> Result<Truth, Fault> {
    check(options)?;
    let (frames, truth) = render(options);
    let aside = aside(&options.out)?;
    super::synth_file::write(options, &truth, &frames, &aside)?;
    let text = |path: &Path, text: String| std::fs::write(path, text).map_err(|e| Fault::writing(path, &e));
    if let Some(path) = &options.configuration {
        text(path, configuration(options))?;
    }
    if let Some(path) = &options.truth {
        let json = serde_json::to_string_pretty(&truth).map_err(|e| Fault::Task(e.to_string()))?;
        text(path, json)?;
    }
    std::fs::rename(&aside, &options.out).map_err(|e| Fault::writing(&options.out, &e))?;
    Ok(truth)
}

fn check(o: &SynthOptions) -> Result<(), Fault> {
    let bad = |what: String| Err(Fault::Input(what));
    if !(2..=100_000).contains(&o.frames) {
        return bad(format!("{} frames; write 2 to 100000", o.frames));
    }
    if o.readout.iter().any(|n| !(1..=2048).contains(n)) {
        return bad(format!("a readout of {:?} pixels; write 1 to 2048 rows and columns", o.readout));
    }
    if !(o.counts >= 0.0 && o.counts < 1e6 && o.background >= 0.0 && o.background < 1e5) {
        return bad(format!("{} counts on a background of {}; write positive numbers", o.counts, o.background));
    }
    if !(o.depths_um[0] <= o.depths_um[1] && o.width_um > 0.0 && o.step_um > 0.0) {
        return bad("depths, width and step must be lengths, the first depth not behind the last".to_owned());
    }
    Ok(())
}

fn aside(out: &Path) -> Result<PathBuf, Fault> {
    let name = out.file_name().ok_or_else(|| Fault::Input(format!("{}: not a name to write to", out.display())))?;
    Ok(out.with_file_name(format!(".{}.part", name.to_string_lossy())))
}

/// The configuration for a synthetic point.
#[must_use]
pub fn configuration(o: &SynthOptions) -> String {
    let s = nominal();
    let d = &s.detector;
    if o.aperture == Aperture::Wire {
        let (wire, _) = nominal_wire(2, o.step_um);
        let three = |v: V3| format!("{} {} {}", v[0], v[1], v[2]);
        return format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<geoN>\n  <Detectors Ndetectors=\"1\">\n    <Detector N=\"0\">\n      \
             <Npixels>{} {}</Npixels>\n      <size unit=\"mm\">{} {}</size>\n      <R unit=\"radian\">{}</R>\n      \
             <P unit=\"mm\">{}</P>\n    </Detector>\n  </Detectors>\n  <Wire>\n    <dia unit=\"micron\">{}</dia>\n    \
             <Knife>0</Knife>\n    <Origin unit=\"micron\">{}</Origin>\n    <R unit=\"radian\">{}</R>\n    \
             <Axis>{}</Axis>\n  </Wire>\n</geoN>\n",
            d.shape[0],
            d.shape[1],
            d.size_mm[0],
            d.size_mm[1],
            three(d.rotation_rad),
            three(d.position_mm),
            wire.diameter_um,
            three(wire.origin_um),
            three(wire.rotation_rad),
            three(wire.axis),
        );
    }
    let (m, p) = (&s.mask, &s.pose);
    format!(
        "ver: 1.0\nfile:\n  path: '.'\n  output: '.'\n  range: [0, {}, 1]\n  threshold: {}\n  frame: [0, {}, 0, {}]\n  \
         ext: 'h5'\n  stacked: {}\n  h5:\n    key: '/entry1/data/data'\ncomp:\n  server: 'local'\n  workers: 1\ngeo:\n  mask:\n    \
         path: 'codes/code-debruijn-2-8-000.npy'\n    reversed: False\n    bitsizes: [{}, {}]\n    thickness: {}\n    \
         resolution: {}\n    smoothness: 0\n    alpha: 0\n    widening: 0\n    pad: {}\n    stretch: 1.0\n    shift: {}\n    \
         focus:\n      cenx: {}\n      dist: {}\n      anglez: {}\n      angley: {}\n      anglex: {}\n      cenz: {}\n  \
         scanner:\n    step: {}\n    rot: {:?}\n    axis: {:?}\n  detector:\n    shape: {:?}\n    size: {:?}\n    rot: {:?}\n    \
         pos: {:?}\n  source:\n    offset: 0\n    grid: [-0.2, 0.2, 0.001]\nalgo:\n  iter: 1\n  pos:\n    method: 'lsqr'\n    \
         regpar: 0\n    init: 0\n  sig:\n    recon: True\n    method: 'splines'\n    order: 5\n    scale: 1\n    init:\n      \
         maxsize: 64\n      avgsize: 10\n      atol: 4\n  ene:\n    recon: False\n    exact: True\n    method: 'lsqr'\n    range: [5, 30, 1]\n",
        o.frames,
        s.threshold,
        o.readout[0],
        o.readout[1],
        if o.split { "True" } else { "False" },
        m.bit_um[0],
        m.bit_um[1],
        m.thickness_um,
        m.resolution_um,
        m.pad_um,
        p.shift_mm,
        p.centre_mm[0],
        p.centre_mm[1],
        p.angles_deg[2],
        p.angles_deg[1],
        p.angles_deg[0],
        p.centre_mm[2],
        o.step_um,
        p.scanner_rotation_rad,
        p.scanner_axis,
        d.shape,
        d.size_mm,
        d.rotation_rad,
        d.position_mm,
    )
}
