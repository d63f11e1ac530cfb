//! Synthetic scans with a known answer: analytic projections of ellipsoids, counted by an imperfect detector.
//!
//! Contract
//! - Projections are exact line integrals of [`super::phantom::ellipsoids`], in the convention of [`super::convention`],
//!   scaled so that the most absorbing ray lets a fifth through.
//! - Counts = dark + gain · beam · transmission, with a beam that is brighter in the middle and falls by 3 % during the
//!   scan; Poisson noise and ring-making pixels on request. Darks are about 10 counts. Same seed, same file.
//! - Memory is bounded by a few frames, whatever the size.
//! - The file appears whole under its name, or, with `slow`, is written in place over that time, like a transfer.

use super::convention::{middle, per_cm};
use super::phantom::{Ellipse, Ellipsoid, ellipsoids, sections, truth};
use super::synth_file::{Frames, Layout, write_slowly};
use crate::formats::part::{VolumeAttributes, frame, write_new};
use crate::technique::Fault;
use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Poisson, StandardNormal};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Optical depth of the most absorbing ray: a fifth is transmitted.
const DEPTH: f64 = 1.6;
/// Dark level, counts.
const DARK: f64 = 10.0;
/// Counts of the brightest flat pixel.
const BRIGHT: f64 = 50_000.0;
/// Share of the beam lost from the first to the last projection.
const FADE: f64 = 0.03;
/// Share of the pixels that make rings.
const RING_SHARE: f64 = 0.01;
/// Frames made side by side.
const BATCH: usize = 8;

/// Layout of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SynthLayout {
    /// Data Exchange: contiguous u16.
    #[default]
    DataExchange,
    /// NXtomo: one stack chunked by frame, with an image key.
    NxTomo,
    /// ALS 8.3.2: Data Exchange with its own headers; the stage turns the other way, over both ends of the range.
    Als,
    /// ALS 8.3.2, legacy: a dataset for each frame.
    AlsLegacy,
    /// A folder with a TIFF file for each frame, and a file of angles.
    Tiff,
}

/// What to make.
#[derive(Debug, Clone, PartialEq)]
pub struct SynthOptions {
    /// The file; replaced when it exists.
    pub out: PathBuf,
    /// Detector columns; also the width of the object.
    pub size: usize,
    /// Projections.
    pub angles: usize,
    /// Detector rows.
    pub slices: usize,
    /// Rotation, degrees, the end not included.
    pub range_deg: f64,
    /// Column of the rotation axis; the middle when not given.
    pub center: Option<f64>,
    /// Layout.
    pub layout: SynthLayout,
    /// Shuffled and deflated, for layouts in chunks (NXtomo).
    pub packed: bool,
    /// Photons in the brightest flat pixel; no noise when not given.
    pub photons: Option<f64>,
    /// Gain error of ring-making pixels (0.1 = 10 %), 0 for none.
    pub rings: f64,
    /// Seed of noise and rings.
    pub seed: u64,
    /// Pixel size written into the file, micrometres.
    pub pixel_size_um: f64,
    /// Flats before and again after.
    pub flats: usize,
    /// Darks.
    pub darks: usize,
    /// Where to write the object itself, `/exchange/data` `[z, y, x]` in the reconstruction's units.
    pub truth: Option<PathBuf>,
    /// Write the file in place over this time.
    pub slow: Option<Duration>,
    /// With `slow`: pieces arrive out of order, holes in between.
    pub out_of_order: bool,
}

impl Default for SynthOptions {
    fn default() -> Self {
        Self {
            out: PathBuf::from("scan.h5"),
            size: 256,
            angles: 360,
            slices: 64,
            range_deg: 180.0,
            center: None,
            layout: SynthLayout::default(),
            packed: false,
            photons: None,
            rings: 0.0,
            seed: 1,
            pixel_size_um: 1.0,
            flats: 10,
            darks: 10,
            truth: None,
            slow: None,
            out_of_order: false,
        }
    }
}

/// Makes a scan, and the truth when asked for.
///
/// # Errors
/// [`Fault::Input`] for sizes that make no scan, otherwise what writing gives.
pub fn synth(options: &SynthOptions) -> Result<(), Fault> {
    check(options)?;
    let model = Model::new(options);
    if let Some(path) = &options.truth {
        write_truth(options, &model, path)?;
    }
    let folder = options.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = options.out.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    std::fs::create_dir_all(folder).map_err(|e| Fault::writing(folder, &e))?;
    if options.layout == SynthLayout::Tiff {
        return write_folder(options, &model, folder, &name);
    }
    // Made where no stream looks: under a hidden name beside the target, or elsewhere when it is then sent slowly.
    let temporary = match options.slow {
        None => tempfile::Builder::new().prefix(&format!(".{name}.")).tempfile_in(folder),
        Some(_) => tempfile::NamedTempFile::new(),
    }
    .map_err(|e| Fault::writing(folder, &e))?;
    write_scan(options, &model, temporary.path())?;
    match options.slow {
        None => {
            use std::os::unix::fs::PermissionsExt;
            let all = std::fs::Permissions::from_mode(0o644);
            std::fs::set_permissions(temporary.path(), all).map_err(|e| Fault::writing(temporary.path(), &e))?;
            temporary.persist(&options.out).map_err(|e| Fault::writing(&options.out, &e.error))?;
            Ok(())
        }
        Some(time) => write_slowly(temporary.path(), &options.out, time, options.out_of_order),
    }
}

/// A folder appears whole, by a rename.
fn write_folder(o: &SynthOptions, model: &Model, folder: &Path, name: &str) -> Result<(), Fault> {
    if o.slow.is_some() {
        return Err(Fault::Input("a folder of TIFF files cannot be written slowly; choose another layout".into()));
    }
    let failed = |e: std::io::Error| Fault::writing(&o.out, &e);
    let made = tempfile::Builder::new().prefix(&format!(".{name}.")).tempdir_in(folder).map_err(failed)?;
    let inner = made.path().join(name);
    write_scan(o, model, &inner)?;
    if o.out.is_dir() {
        std::fs::remove_dir_all(&o.out).map_err(failed)?;
    }
    std::fs::rename(&inner, &o.out).map_err(failed)
}

fn check(o: &SynthOptions) -> Result<(), Fault> {
    let sizes = [("size", o.size, 8), ("angles", o.angles, 2), ("slices", o.slices, 1), ("flats", o.flats, 1)];
    if let Some((what, got, least)) = sizes.into_iter().find(|(_, got, least)| got < least) {
        return Err(Fault::Input(format!("{what} is {got}, at least {least} needed")));
    }
    if o.size > 1 << 14 || o.slices > 1 << 14 || o.angles > 1 << 20 || o.flats > 10_000 || o.darks > 10_000 {
        return Err(Fault::Input("size and slices go up to 16384, angles to 1048576, flats and darks to 10000".into()));
    }
    let numbers = [o.range_deg, o.center.unwrap_or(0.0), o.photons.unwrap_or(1.0), o.rings, o.pixel_size_um];
    if numbers.iter().any(|n| !n.is_finite()) || o.photons.is_some_and(|p| p <= 0.0) || o.pixel_size_um <= 0.0 {
        return Err(Fault::Input(
            "range, center, noise, rings and pixel size must be finite, the last positive".into(),
        ));
    }
    Ok(())
}

/// The object, the beam and the detector.
struct Model {
    rows: Vec<Vec<Ellipse>>,
    size: usize,
    center: f64,
    /// Optical depth per half-width of the object.
    scale: f64,
    beam: Array2<f32>,
    dark: Array2<f32>,
    gain: Array2<f32>,
    photons: Option<f64>,
    seed: u64,
    range_deg: f64,
    angles: usize,
    /// The stage turns the other way, over both ends of the range.
    reverse: bool,
}

impl Model {
    fn new(o: &SynthOptions) -> Self {
        let solid: Vec<Ellipsoid> = ellipsoids();
        let rows: Vec<Vec<Ellipse>> = (0..o.slices).map(|r| sections(&solid, r, o.slices)).collect();
        let equator = sections(&solid, 1, 3);
        let most = (0..64)
            .flat_map(|i| {
                (0..128).map(move |j| (f64::from(i) / 64.0 * std::f64::consts::PI, f64::from(j) / 64.0 - 1.0))
            })
            .map(|(theta, t)| equator.iter().map(|e| e.integral(theta, t)).sum::<f64>())
            .fold(0.0, f64::max);
        let mut rng = ChaCha8Rng::seed_from_u64(o.seed);
        let shape = (o.slices, o.size);
        let offset = |i: usize, n: usize| (i as f64 - middle(n)) / n as f64;
        let beam = Array2::from_shape_fn(shape, |(y, x)| {
            let (v, u) = (offset(y, o.slices), offset(x, o.size));
            (BRIGHT * (-1.2 * v * v - 0.6 * u * u).exp() * (1.0 + 0.05 * u)) as f32
        });
        let dark = Array2::from_shape_fn(shape, |_| (DARK + rng.random_range(-3.0..3.0)) as f32);
        let gain = Array2::from_shape_fn(shape, |_| {
            let (ring, error) = (rng.random_bool(RING_SHARE), rng.sample::<f64, _>(StandardNormal));
            if ring { (1.0 + o.rings * error).clamp(0.05, 1.5) as f32 } else { 1.0 }
        });
        Self {
            rows,
            size: o.size,
            center: o.center.unwrap_or_else(|| middle(o.size)),
            scale: DEPTH / most,
            beam,
            dark,
            gain,
            photons: o.photons,
            seed: o.seed,
            range_deg: o.range_deg,
            angles: o.angles,
            reverse: matches!(o.layout, SynthLayout::Als | SynthLayout::AlsLegacy),
        }
    }

    fn angle_deg(&self, i: usize) -> f64 {
        if self.reverse {
            return -(i as f64) * self.range_deg / (self.angles.max(2) - 1) as f64;
        }
        i as f64 * self.range_deg / self.angles as f64
    }

    /// Optical depth of one detector row.
    fn depths(&self, row: usize, theta: f64, out: &mut [f64]) {
        let half = self.size as f64 / 2.0;
        out.fill(0.0);
        let (sin, cos) = theta.sin_cos();
        for e in self.rows.get(row).map_or(&[][..], Vec::as_slice) {
            // As `Ellipse::integral`, over the columns of its shadow only.
            let (s, c) = (theta - e.tilt).sin_cos();
            let square = (e.a * c).powi(2) + (e.b * s).powi(2);
            let (at, factor) = (e.x * cos + e.y * sin, 2.0 * e.density * e.a * e.b / square * self.scale);
            let reach = square.sqrt() * half;
            let first = (self.center + at * half - reach).ceil().max(0.0) as usize;
            let last = (self.center + at * half + reach).floor().max(-1.0) + 1.0;
            let last = (last as usize).min(out.len());
            for (u, o) in out.iter_mut().enumerate().take(last).skip(first) {
                let t = (u as f64 - self.center) / half - at;
                *o += factor * (square - t * t).max(0.0).sqrt();
            }
        }
    }

    /// A frame; `projection` is `None` for a flat, `beam` 0 for a dark.
    fn frame(&self, stream: u64, projection: Option<usize>, beam: f64) -> Vec<u16> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(stream + 1);
        let mut depths = vec![0.0; self.beam.ncols()];
        let mut out = Vec::with_capacity(self.beam.len());
        for row in 0..self.beam.nrows() {
            if let Some(i) = projection {
                self.depths(row, self.angle_deg(i).to_radians(), &mut depths);
            }
            let (flux, gain, dark) = (self.beam.row(row), self.gain.row(row), self.dark.row(row));
            for (((depth, flux), gain), dark) in depths.iter().zip(flux).zip(gain).zip(dark) {
                let gain = if projection.is_some() { f64::from(*gain) } else { 1.0 };
                let expected = beam * f64::from(*flux) * (-depth).exp();
                let counted = match self.photons {
                    Some(photons) if expected > 0.0 => {
                        let scale = BRIGHT / photons;
                        counts(&mut rng, expected / scale) * scale
                    }
                    _ => expected,
                };
                out.push((f64::from(*dark) + gain * counted).round().clamp(0.0, 65535.0) as u16);
            }
        }
        out
    }
}

/// A Poisson number; from 1000 on the normal distribution is the same within the digitisation.
fn counts(rng: &mut ChaCha8Rng, mean: f64) -> f64 {
    if mean < 1000.0
        && let Ok(poisson) = Poisson::new(mean)
    {
        return poisson.sample(rng);
    }
    (mean + mean.sqrt() * rng.sample::<f64, _>(StandardNormal)).max(0.0)
}

fn write_scan(o: &SynthOptions, model: &Model, path: &Path) -> Result<(), Fault> {
    let layout = Layout {
        kind: o.layout,
        packed: o.packed,
        projections: o.angles,
        flats: o.flats,
        darks: o.darks,
        rows: o.slices,
        columns: o.size,
        angles_deg: (0..o.angles).map(|i| model.angle_deg(i)).collect(),
        pixel_size_um: o.pixel_size_um,
    };
    let mut out = Frames::create(path, layout)?;
    // (stream of random numbers, projection, beam)
    let mut work: Vec<(u64, Option<usize>, f64)> = Vec::new();
    work.extend((0..o.darks).map(|_| (None, 0.0)).map(|(p, b)| (0, p, b)));
    work.extend((0..o.flats).map(|_| (0, None, 1.0)));
    let last = (o.angles - 1).max(1) as f64;
    work.extend((0..o.angles).map(|i| (0, Some(i), 1.0 - FADE * i as f64 / last)));
    work.extend((0..o.flats).map(|_| (0, None, 1.0 - FADE)));
    work.iter_mut().enumerate().for_each(|(i, w)| w.0 = i as u64);
    for batch in work.chunks(BATCH) {
        let frames: Vec<Vec<u16>> =
            batch.par_iter().map(|&(stream, projection, beam)| model.frame(stream, projection, beam)).collect();
        for frame in frames {
            out.push(&frame)?;
        }
    }
    out.finish()
}

fn write_truth(o: &SynthOptions, model: &Model, path: &Path) -> Result<(), Fault> {
    let per_pixel = model.scale * 2.0 / o.size as f64;
    let factor = (per_pixel * per_cm(o.pixel_size_um * 1e-4)) as f32;
    let attributes = VolumeAttributes {
        units: "cm^-1".into(),
        axes: "z:y:x".into(),
        description: "the object, point-sampled".into(),
    };
    let around = frame([o.slices, o.size, o.size], &attributes)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let _ = std::fs::remove_file(path);
    write_new(folder, &name, |out| {
        out.put(&around.head)?;
        for ellipses in &model.rows {
            let slice = truth(ellipses, o.size) * factor;
            out.put_f32(slice.as_slice().unwrap_or(&[]))?;
        }
        out.put(&around.tail)
    })
    .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_are_the_phantoms_line_integrals() {
        let o = SynthOptions { size: 64, slices: 5, angles: 7, center: Some(30.25), ..SynthOptions::default() };
        let model = Model::new(&o);
        let mut got = vec![0.0; 64];
        for (row, theta) in [(0, 0.0), (2, 0.7), (4, 2.9), (3, -1.0)] {
            model.depths(row, theta, &mut got);
            for (u, got) in got.iter().enumerate() {
                let t = (u as f64 - 30.25) / 32.0;
                let want: f64 = model.rows[row].iter().map(|e| e.integral(theta, t)).sum::<f64>() * model.scale;
                assert!((got - want).abs() < 1e-9, "{row} {theta} {u}: {got} {want}");
            }
        }
    }

    #[test]
    fn sizes_that_make_no_scan_are_refused() {
        for o in [
            SynthOptions { size: 1, ..SynthOptions::default() },
            SynthOptions { angles: usize::MAX, ..SynthOptions::default() },
            SynthOptions { photons: Some(f64::NAN), ..SynthOptions::default() },
        ] {
            assert!(matches!(synth(&o), Err(Fault::Input(_))), "{o:?}");
        }
    }
}
