//! How fast a card is, and how close every kernel comes to what the card can do.

use super::constants::{Constants, put};
use super::cost::{self, Ceilings, Work};
use super::iterate::Iterate;
use super::memory::Needs;
use super::steps::{Chunk, Probe};
use super::{Outcome, Setup};
use crate::device::gpu::{Arg, Shape, Stream};
use crate::device::kernels::{File, Program};
use crate::device::{DeviceError, Gpu};
use crate::technique::tomography::chain::{RawRows, fitted};
use crate::technique::tomography::compute::Shared;
use crate::technique::tomography::error::TomographyError;
use crate::technique::tomography::gridding::{Geometry, Plan};
use crate::technique::tomography::iterative::Stopping;
use crate::technique::tomography::normalize::Flat;
use crate::technique::tomography::recipe::{Algorithm, Center, Recipe};
use crate::technique::tomography::stripe::Stripe;
use crate::technique::tomography::stripes::Stripes;
use crate::technique::tomography::zinger::Zinger;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use ndarray::{Array2, Array3};
use std::collections::BTreeMap;
use std::time::Instant;

/// Measures what the card can do: a copy and chains of multiply-adds; integer and inner rates follow from its clock and
/// multiprocessors. `bytes`: of the copied array; `repeats`: the best of so many.
///
/// # Errors
/// The device fails.
pub fn ceilings(gpu: &Gpu, bytes: usize, repeats: usize) -> Result<Ceilings, DeviceError> {
    gpu.bind()?;
    let stream = gpu.stream()?;
    let (start, end) = (gpu.event()?, gpu.event()?);
    let best = |work: &dyn Fn() -> Result<(), DeviceError>| -> Result<f64, DeviceError> {
        let mut least = f64::INFINITY;
        for _ in 0..=repeats {
            stream.record(&start)?;
            work()?;
            stream.record(&end)?;
            end.synchronize()?;
            least = least.min(end.since(&start)?);
        }
        Ok(least.max(1e-9))
    };
    let program = Program::of(File::Selftest);
    let processors = gpu.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1) as usize;
    let clock = f64::from(gpu.attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?) * 1e3;
    let (from, to) = (gpu.alloc(bytes)?, gpu.alloc(bytes)?);
    stream.zero(&from, bytes)?;
    let copy = gpu.function(&program, "ceiling_copy")?;
    let arguments = [Arg::from(&from), Arg::from(&to), (bytes / 16).into()];
    let copied = best(&|| stream.launch(copy, Shape::line(processors * 16, 512), &arguments))?;
    let fma = gpu.function(&program, "ceiling_fma")?;
    let (blocks, threads, rounds) = (processors * 8, 256_usize, 4096);
    let out = gpu.alloc(4 * blocks * threads)?;
    let arguments = [Arg::from(&out), rounds.into()];
    let computed = best(&|| stream.launch(fma, Shape::line(blocks, threads as u32), &arguments))?;
    let flops = (blocks * threads) as f64 * f64::from(rounds) * 32.0 / computed;
    let host_bytes = bytes.min(256 << 20);
    let host = std::cell::RefCell::new(gpu.pinned(host_bytes)?);
    let up = best(&|| stream.upload::<u8>(&host.borrow(), host_bytes, &from))?;
    let down = best(&|| stream.download::<u8>(&from, &mut host.borrow_mut(), host_bytes))?;
    Ok(Ceilings {
        memory: 2.0 * bytes as f64 / copied,
        flops,
        integer: flops / 4.0,
        inner: processors as f64 * 128.0 * clock,
        up: host_bytes as f64 / up,
        down: host_bytes as f64 / down,
    })
}

/// A kernel's place in a chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its name, with the window for medians.
    pub name: String,
    /// Launches in a chunk.
    pub launches: usize,
    /// Seconds in a chunk, all launches together; none where it was not run.
    pub seconds: Option<f64>,
    /// Counted work, all launches together.
    pub work: Work,
}

impl Row {
    /// Launches of the same name together, in the order of the first.
    pub(super) fn collect(launches: impl Iterator<Item = (String, Work)>) -> Vec<Self> {
        let mut rows: Vec<Self> = Vec::new();
        for (name, work) in launches {
            match rows.iter_mut().find(|r| r.name == name) {
                Some(row) => {
                    row.launches += 1;
                    row.work = work.times(row.launches as f64);
                }
                None => rows.push(Self { name, launches: 1, seconds: None, work }),
            }
        }
        rows
    }
}

/// The benchmark's scan: `angles` projections of `columns`, all steps on.
fn setup(angles: &[f64], columns: usize, algorithm: Algorithm, rows: usize) -> Result<Setup, DeviceError> {
    let geometry = Geometry { centre: columns as f64 / 2.0 - 3.3, ..Geometry::new(columns, angles) };
    let plan = Plan::new(&geometry).map_err(|e| DeviceError::Unsupported(e.to_string()))?;
    let flat = |at: f64| Flat { at, mean: Array2::from_elem((rows + 2, columns), 4000.0) };
    Ok(Setup {
        plan,
        algorithm,
        iterate: iterate(algorithm, &geometry).map_err(|e| DeviceError::Unsupported(e.to_string()))?,
        blend: None,
        centre: geometry.centre,
        held: rows + 2,
        before: 1,
        rows,
        zinger: Some(Zinger { width: 3, threshold: 0.2 }),
        stripe: Some(Stripes::Vo(fitted(Stripe::default(), columns))),
        logarithm: true,
        floor: 1e-6,
        radius2: (columns as f64 / 2.0).powi(2),
        factor: 1.0,
        dark: Array2::from_elem((rows + 2, columns), 100.0),
        flats: vec![flat(0.0), flat((angles.len() - 1) as f64)],
    })
}

/// Iterations that the benchmark makes of algorithms that iterate; the first of SIRT has nothing to project.
pub const ITERATIONS: usize = 2;

fn iterate(algorithm: Algorithm, geometry: &Geometry<'_>) -> Result<Option<Iterate>, TomographyError> {
    let iterative = Stopping { iterations: ITERATIONS, tolerance: 0.0, ..Stopping::default() };
    super::iterate(&Recipe { algorithm, iterative, ..Recipe::default() }, geometry)
}

fn half_turn(angles: usize) -> Vec<f64> {
    (0..angles).map(|i| i as f64 * std::f64::consts::PI / angles as f64).collect()
}

/// Kernels in the order in which a chunk of this setup runs them, medians with their windows.
fn order(setup: &Setup) -> Vec<(&'static str, usize)> {
    let stripe = match setup.stripe {
        Some(Stripes::Vo(options)) => options,
        _ => Stripe::default(),
    };
    let mut all = vec![("transmission", 0), ("repair", 0), ("zinger", 0), ("minus_log", 0)];
    all.extend([("transpose", 0), ("roughness", 0), ("dead_columns", 0), ("fill_columns", 0), ("rank_columns", 0)]);
    all.extend([("median_columns", stripe.large), ("stripe_factors", 0), ("large_columns", 0), ("scale_columns", 0)]);
    all.extend([("median_columns", stripe.small), ("unrank_columns", 0), ("transpose", 0)]);
    all.extend(reconstruction(setup.algorithm).into_iter().map(|name| (name, 0)));
    all
}

/// Kernels from line integrals to images.
fn reconstruction(algorithm: Algorithm) -> Vec<&'static str> {
    match algorithm {
        Algorithm::Direct => {
            let last = ["extend_rows", "transform of fine rows", "backproject", "mask_scale"];
            ["load_rows", "transform of rows"].into_iter().chain(last).collect()
        }
        Algorithm::Gridding => {
            vec!["load_rows", "transform of rows", "filter_rows", "gather", "transform of grids", "finish"]
        }
        Algorithm::Sirt | Algorithm::Cgls => {
            let mut all = vec!["interleave", "interleave", "measure sinograms"];
            for k in 0..ITERATIONS {
                if algorithm == Algorithm::Sirt {
                    all.extend((k > 0).then_some("project"));
                    all.extend(["measure and weigh", "spread", "sirt_step"]);
                } else {
                    all.extend(["measure sinograms", "spread", "measure images", "combine images", "project"]);
                    all.extend(["measure sinograms", "combine images", "combine sinograms"]);
                }
            }
            all.extend((algorithm == Algorithm::Cgls).then_some("clamp"));
            all.push("release");
            all
        }
    }
}

fn label(name: &str, window: usize) -> String {
    if window == 0 { name.to_owned() } else { format!("{name}, {window} wide") }
}

/// Counted work of a full chunk of `pairs` pairs, kernel by kernel; needs no card.
///
/// # Errors
/// A geometry that cannot be.
pub fn counted(angles: usize, columns: usize, pairs: usize, algorithm: Algorithm) -> Result<Vec<Row>, DeviceError> {
    let setup = setup(&half_turn(angles), columns, algorithm, 2 * pairs)?;
    let needs = Needs::of(&setup, pairs);
    let all = order(&setup);
    let all = all.into_iter().filter_map(|(n, window)| Some((label(n, window), cost::of(&setup, &needs, n, window)?)));
    Ok(Row::collect(all))
}

/// Times every kernel of a full chunk, the best of `repeats`.
///
/// # Errors
/// The device fails.
pub fn kernels(
    gpu: &Gpu,
    angles: usize,
    columns: usize,
    pairs: usize,
    algorithm: Algorithm,
    repeats: usize,
) -> Result<Vec<Row>, DeviceError> {
    gpu.bind()?;
    let rows = counted(angles, columns, pairs, algorithm)?;
    let setup = setup(&half_turn(angles), columns, algorithm, 2 * pairs)?;
    let needs = Needs::of(&setup, pairs);
    let stream = gpu.stream()?;
    let constants = Constants::upload(gpu, &stream, &setup)?;
    let one: Vec<f32> = (0..columns * setup.held).map(|i| 1000.0 + ((i * 2_654_435_761) % 3000) as f32).collect();
    let counts: Vec<f32> = one.iter().copied().cycle().take(setup.held * angles * columns).collect();
    let counts = put(gpu, &stream, &counts)?;
    let (sinograms, arena, images) = (gpu.alloc(needs.sinograms)?, gpu.alloc(needs.arena)?, gpu.alloc(needs.images)?);
    let (flagged, counters) = (gpu.alloc(angles * setup.held)?, gpu.alloc(24)?);
    let order = order(&setup);
    let windows: Vec<usize> = order.iter().filter(|(name, _)| *name == "median_columns").map(|m| m.1).collect();
    let mut medians = windows.iter().cycle();
    let named = |name: &str| {
        let window = if name == "median_columns" { medians.next().copied().unwrap_or(0) } else { 0 };
        label(name, window)
    };
    let run = |probe: &Probe| {
        Chunk {
            gpu,
            stream: &stream,
            setup: &setup,
            constants: &constants,
            needs,
            counts: &counts,
            first_held: 0,
            held: setup.held,
            before: setup.before,
            rows: setup.rows,
            sinograms: &sinograms,
            arena: &arena,
            flagged: &flagged,
            counters: &counters,
            images: &images,
            probe: Some(probe),
        }
        .run()
    };
    timed(gpu, &stream, rows, repeats, named, run)
}

/// Times what `run` marks, the best of `repeats` after one for warming up, and puts it into `rows` by name; `named` says under
/// which of a kernel's names, mark by mark.
pub(super) fn timed(
    gpu: &Gpu,
    stream: &Stream,
    mut rows: Vec<Row>,
    repeats: usize,
    mut named: impl FnMut(&str) -> String,
    run: impl Fn(&Probe) -> Result<(), DeviceError>,
) -> Result<Vec<Row>, DeviceError> {
    let mut best: BTreeMap<String, f64> = BTreeMap::new();
    for _ in 0..=repeats {
        let probe = Probe::default();
        let start = gpu.event()?;
        stream.record(&start)?;
        run(&probe)?;
        stream.synchronize()?;
        let mut last = &start;
        let mut seconds: BTreeMap<String, f64> = BTreeMap::new();
        let marks = probe.borrow();
        for (name, event) in marks.iter() {
            *seconds.entry(named(name)).or_default() += event.since(last)?;
            last = event;
        }
        for (name, s) in seconds {
            best.entry(name).and_modify(|b| *b = b.min(s)).or_insert(s);
        }
    }
    for row in &mut rows {
        row.seconds = best.get(&row.name).copied();
    }
    Ok(rows)
}

/// A whole scan from host memory to host memory, in slabs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Whole {
    /// Detector rows done.
    pub rows: usize,
    /// Seconds, copies and host work included.
    pub seconds: f64,
}

/// Reconstructs `slabs` slabs of `rows` rows from counts in host memory into arrays in host memory.
///
/// # Errors
/// The device fails or declines.
pub fn whole(
    gpu: &Gpu,
    angles: usize,
    columns: usize,
    rows: usize,
    slabs: usize,
    stripes: bool,
) -> Result<Whole, String> {
    let list = half_turn(angles);
    let recipe = Recipe {
        center: Center::Pixel(columns as f64 / 2.0 - 3.3),
        stripe: stripes.then(|| Stripes::Vo(Stripe::default())),
        ..Recipe::default()
    };
    let shared = Shared { recipe: &recipe, angles: &list, pixel_size_cm: Some(1e-4), image_size: None, bin: 1 };
    let projections =
        Array3::from_shape_fn((angles, rows, columns), |(a, r, u)| (1000 + (a * 7 + r * 13 + u * 31) % 3000) as f32);
    let flat = |level: f32| Array3::from_elem((1, rows, columns), level);
    let mut raw = RawRows {
        rows: 0..rows,
        margin: (0, 0),
        optics: None,
        projections,
        darks: Some(flat(100.0)),
        flats: vec![(0.0, flat(5000.0)), ((angles - 1) as f64, flat(4800.0))],
        floating: false,
        transmission: false,
        at: "benchmark".to_owned(),
    };
    // The first slab compiles, plans and pins.
    let mut start = Instant::now();
    for slab in 0..=slabs {
        if slab == 1 {
            start = Instant::now();
        }
        match super::slab(gpu, &shared, columns as f64 / 2.0 - 3.3, &mut raw).map_err(|e| e.to_string())? {
            Outcome::Done(volume, _) if volume.len() == rows * columns * columns => {}
            Outcome::Done(..) => return Err("a slab of another size came back".to_owned()),
            Outcome::Declined(why, _) => return Err(why),
        }
    }
    Ok(Whole { rows: rows * slabs, seconds: start.elapsed().as_secs_f64() })
}

/// Every program that scans of `columns` columns may need, and those that [`super::check`] uses.
#[must_use]
pub fn programs(columns: usize) -> Vec<Program> {
    let stripe = fitted(Stripe::default(), columns);
    let plain =
        [File::Normalise, File::Zinger, File::Stripe, File::Half, File::Selftest, File::Wavelet, File::Titarenko];
    let mut all: Vec<Program> = plain.map(Program::of).into();
    all.push(Program::of(File::Paganin));
    all.extend([1, 2, 4, 8, 16].map(|slices| Program::of(File::Iterative).with("SLICES", slices)));
    all.extend([1, 2, 4, 8, 16].map(|keys| Program::of(File::Rank).with("KEYS", keys)));
    let mut windows = vec![stripe.large, stripe.small, 5, 21, 61, 129];
    // The windows of the check's sizes.
    windows.extend(super::check::WINDOWS);
    windows.sort_unstable();
    windows.dedup();
    all.extend(windows.into_iter().map(|w| Program::of(File::Median).with("WINDOW", w as u32)));
    for file in [File::Gridding, File::Backproject] {
        all.extend([1, 2, 4, 8].map(|pairs| Program::of(file).with("PAIRS", pairs)));
    }
    all
}
