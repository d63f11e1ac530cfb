//! How fast a card resolves Laue points, and how close every kernel comes to what the card can do.

use super::cost::{self, Scan};
use super::memory::{Needs, POINTS};
use super::pipeline;
use super::slot::{Slot, expand};
use super::steps::Batches;
use super::store::Shared;
use super::wire;
use super::{Outcome, Setup};
use crate::device::kernels::{File, Program};
use crate::device::{DeviceError, Gpu};
use crate::technique::laue::forward::{Instrument, Source, counts};
use crate::technique::laue::geometry::{MaskFrame, Region, unit};
use crate::technique::laue::mask::Mask;
use crate::technique::laue::recipe::Method;
use crate::technique::laue::setup::nominal;
use crate::technique::laue::slab::Resolver;
use crate::technique::laue::synth::nominal_wire;
use crate::technique::laue::wire::{Edge, WireSetup};
use crate::technique::tomography::gpu::bench::Row;
use crate::technique::tomography::gpu::cost::Work;
use crate::technique::tomography::gpu::{Probe, put};
use ndarray::Array3;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::time::Instant;

/// Pixels of the detector along each side.
pub const DETECTOR: usize = 2048;

/// Which method a benchmark is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Coded aperture with footprints, the energy not known.
    Aperture,
    /// A wire, leading edge.
    Wire,
}

impl Kind {
    fn kernels(self) -> &'static [&'static str] {
        match self {
            Self::Aperture => &[
                "counts_to_floats",
                "laue_select",
                "zeros",
                "laue_resample",
                "laue_transform",
                "laue_position",
                "laue_normal",
                "laue_nnls",
                "laue_deposit",
            ],
            Self::Wire => &["counts_to_floats", "zeros", "wire_resolve"],
        }
    }
}

/// The nominal point, with so many pixels.
#[must_use]
pub fn scan(pixels: usize, frames: usize) -> Scan {
    let setup = nominal();
    let samples = Mask::new(&setup.mask).samples() as f64;
    let window = (setup.footprint.window_um / setup.mask.resolution_um).round();
    let (degree, knots) = (setup.footprint.degree as f64, setup.footprint.knots as f64);
    let support = (degree + 1.0) * knots;
    let length = (frames - 1) as f64 * setup.pose.step_um / setup.mask.resolution_um + 1.0;
    Scan {
        pixels: pixels as f64,
        frames: frames as f64,
        length,
        offsets: samples - length + 1.0,
        // As for a slab in the middle of the detector.
        valid: (POINTS + 1 - (length as usize + 1).next_multiple_of(64)) as f64,
        window,
        support,
        splines: ((window - support) / knots).floor() + 1.0,
        knots,
        bins: setup.depth.bins as f64,
    }
}

/// Counted work of all pixels of a point, kernel by kernel; needs no card.
#[must_use]
pub fn counted(kind: Kind, pixels: usize, frames: usize) -> Vec<Row> {
    let scan = scan(pixels, frames);
    let row = |name: &&'static str| {
        cost::of(&scan, name).map(|work| Row { name: (*name).to_owned(), launches: 1, seconds: None, work })
    };
    kind.kernels().iter().filter_map(row).collect()
}

/// As [`counted`], of correlations as matrix products, which are used when measurements are too long for transforms.
#[must_use]
pub fn products(pixels: usize, frames: usize) -> Work {
    cost::of(&scan(pixels, frames), "laue_correlate").unwrap_or_default()
}

/// Counts of `rows` rows of the detector: some hundred measurements of synthetic sources, again and again.
fn measured(frames: usize, rows: usize) -> Array3<f32> {
    let setup = nominal();
    let mask = Mask::new(&setup.mask);
    let frame = MaskFrame::new(&setup.pose, mask.length_um, setup.mask.stretch);
    let (detector, beam, region) = (&setup.detector, unit(setup.beam), Region::FULL);
    let instrument = Instrument { detector, region, beam, mask: &mask, frame };
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let series: Vec<Vec<f32>> = (0..251)
        .map(|_| {
            let source = Source {
                depth_um: rng.random_range(-140.0..140.0),
                width_um: rng.random_range(4.0..14.0),
                energy_kev: rng.random_range(7.0..22.0),
            };
            let column = rng.random_range(0..DETECTOR);
            let seen = instrument.transmission(&source, DETECTOR / 2, column, frames);
            seen.iter().map(|s| counts(1000.0 * s, 65535.0, &mut rng) as f32).collect()
        })
        .collect();
    Array3::from_shape_fn((frames, rows, DETECTOR), |(k, r, c)| series[(r * DETECTOR + c) % series.len()][k])
}

fn method(kind: Kind, frames: usize) -> (Method, Vec<[f64; 3]>) {
    let setup = nominal();
    match kind {
        Kind::Aperture => (Method::Aperture(Box::new(setup)), Vec::new()),
        Kind::Wire => {
            let (wire, readings) = nominal_wire(frames, 0.5);
            let (detector, beam, depth) = (setup.detector, setup.beam, setup.depth);
            let (threshold, saturation) = (1.0, 65535.0);
            let edge = Edge::Leading;
            (Method::Wire(Box::new(WireSetup { detector, beam, wire, edge, threshold, saturation, depth })), readings)
        }
    }
}

fn refused(e: impl std::fmt::Display) -> DeviceError {
    DeviceError::Unsupported(e.to_string())
}

/// Times every kernel on `rows` rows in the middle of the detector, the best of `repeats`, all batches together.
///
/// # Errors
/// The device fails.
pub fn kernels(gpu: &Gpu, kind: Kind, frames: usize, rows: usize, repeats: usize) -> Result<Vec<Row>, DeviceError> {
    gpu.bind()?;
    let pixels = rows * DETECTOR;
    let mut table = counted(kind, pixels, frames);
    let (method, readings) = method(kind, frames);
    let resolver = Resolver::of(&method, Region::FULL, &readings).map_err(refused)?;
    let grid = nominal().depth;
    let setup = Setup::new(&resolver, (frames, rows), DETECTOR / 2, 0..DETECTOR, grid);
    let needs = Needs { rows, ..Needs::of(&setup, 0) };
    let stream = gpu.stream()?;
    let mut slot = Slot::new(gpu, &needs)?;
    let raw = measured(frames, rows);
    let mut best: BTreeMap<&'static str, f64> = BTreeMap::new();
    let mut note = |start: &crate::device::gpu::Event, probe: &Probe| -> Result<(), DeviceError> {
        stream.synchronize()?;
        let marks = probe.borrow();
        let mut last = start;
        let mut seconds: BTreeMap<&'static str, f64> = BTreeMap::new();
        for (name, event) in marks.iter() {
            *seconds.entry(name).or_default() += event.since(last)?;
            last = event;
        }
        for (name, s) in seconds {
            best.entry(name).and_modify(|b| *b = b.min(s)).or_insert(s);
        }
        Ok(())
    };
    let start = gpu.event()?;
    match &setup.resolver {
        Resolver::Aperture(_) => {
            let Some(aperture) = &setup.aperture else { return Ok(table) };
            let mut batches = Batches::new(gpu, &needs)?;
            let shared = Shared::new(gpu, &stream, aperture)?;
            pipeline::select(gpu, &setup, aperture, &mut slot, &stream, raw.view())?;
            pipeline::enlist_all(&setup, aperture, &needs, &mut slot)?;
            for _ in 0..=repeats {
                let probe = Probe::default();
                stream.record(&start)?;
                expand(gpu, &slot, &stream, frames * pixels)?;
                super::steps::mark(gpu, &stream, Some(&probe), "counts_to_floats")?;
                pipeline::choose(gpu, &setup, aperture, &slot, &stream, pixels)?;
                super::steps::mark(gpu, &stream, Some(&probe), "laue_select")?;
                stream.zero(&slot.stack, 4 * needs.bins * pixels)?;
                super::steps::mark(gpu, &stream, Some(&probe), "zeros")?;
                batches.run(gpu, &stream, &setup, aperture, &needs, &mut slot, pixels, &shared, Some(&probe))?;
                note(&start, &probe)?;
            }
        }
        Resolver::Wire(scan) => {
            let columns = gpu.alloc(8 * needs.bins * pixels)?;
            let centres = put(gpu, &stream, scan.path().0.as_flattened())?;
            wire::bring_wire(gpu, &setup, scan, &mut slot, &stream, raw.view(), 0)?;
            for _ in 0..=repeats {
                let probe = Probe::default();
                stream.record(&start)?;
                expand(gpu, &slot, &stream, frames * pixels)?;
                super::steps::mark(gpu, &stream, Some(&probe), "counts_to_floats")?;
                wire::wire_chunk(gpu, &stream, &setup, scan, &centres, &slot, &columns, pixels, Some(&probe))?;
                note(&start, &probe)?;
            }
        }
    }
    for row in &mut table {
        row.seconds = best.get(row.name.as_str()).copied();
    }
    Ok(table)
}

/// Resolves `slabs` slabs of `rows` rows from counts in host memory into a stack in host memory; seconds a slab.
///
/// # Errors
/// The device fails or declines.
pub fn whole(gpu: &Gpu, kind: Kind, frames: usize, rows: usize, slabs: usize) -> Result<f64, String> {
    let (method, readings) = method(kind, frames);
    let resolver = Resolver::of(&method, Region::FULL, &readings).map_err(|e| e.to_string())?;
    let raw = measured(frames, rows);
    // The first slab compiles and pins.
    let mut start = Instant::now();
    for slab in 0..=slabs {
        if slab == 1 {
            start = Instant::now();
        }
        let grid = nominal().depth;
        match super::on_gpu(gpu, &resolver, raw.view(), DETECTOR / 2, 0..DETECTOR, grid).map_err(|e| e.to_string())? {
            Outcome::Done(slab) if slab.sums.account.deposited != 0.0 => {}
            Outcome::Done(_) => return Err("nothing was deposited".to_owned()),
            Outcome::Declined(why) => return Err(why),
        }
    }
    Ok(start.elapsed().as_secs_f64() / slabs as f64)
}

/// Every program that Laue points need.
#[must_use]
pub fn programs() -> Vec<Program> {
    [File::LaueSearch, File::LaueTransform, File::LaueFootprint, File::LaueDepth, File::LaueWire]
        .map(Program::of)
        .into()
}
