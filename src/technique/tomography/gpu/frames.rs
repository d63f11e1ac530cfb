//! Counts to transmission, whole frames at a time: flats and darks, zingers, Paganin's filter. The GPU's
//! [`chain::transmission`](super::super::chain::transmission).
//!
//! Contract
//! - Frames are changed in place, and only once all memory is there: what is declined is as it came.
//! - Every row that is given is counted, as on the CPU.
//! - Frames go through in pairs, which share a complex array; as many at a time as make a transfer worth while. Two slots
//!   and three streams, as in [`super::pipeline`].
//! - The memory is kept for the next frames of the same shape, and let go when something else needs it ([`yield_memory`]).

use super::frame_steps::{Batch, Shared, Size};
use super::memory::PLANNED;
use super::pipeline::Slot;
use super::steps::Queue;
use crate::device::gpu::{Buffer, Pinned, Stream};
use crate::device::kernels::{File, Program};
use crate::device::{DeviceError, Gpu};
use crate::technique::Fault;
use crate::technique::tomography::chain::{self, RawRows, Repaired, Steps};
use crate::technique::tomography::error::TomographyError;
use crate::technique::tomography::normalize::{self, Flat};
use crate::technique::tomography::paganin::{self, Table};
use crate::technique::tomography::recipe::Recipe;
use ndarray::{Array3, Axis, s};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Bytes of frames from which more at a time gain nothing: half a millisecond of a bus. Four times as much is pinned.
const ENOUGH: usize = 32 << 20;
/// Pairs that a launch takes.
const MOST_PAIRS: usize = 32_767;

/// What came of frames.
pub(in crate::technique::tomography) enum Framed {
    /// They are transmission.
    Done(Repaired),
    /// They are as they were, for the CPU, and why.
    Declined(String),
}

/// Turns the rows of a slab into transmission, margins and all.
///
/// # Errors
/// As [`transmission`].
pub(super) fn of_rows(gpu: &Gpu, recipe: &Recipe, raw: &mut RawRows) -> Result<Framed, Fault> {
    let (_, rows, columns) = raw.projections.dim();
    let dark = raw.darks.as_ref().map(|d| normalize::mean_frame(d.view()));
    let means = raw.flats.iter().map(|(at, f)| Flat { at: *at, mean: normalize::mean_frame(f.view()) }).collect();
    let (dark, flats) = chain::calibration(recipe, (rows, columns), dark, means);
    let (dark, zinger, at) = (dark.view(), recipe.zinger, raw.at.clone());
    let (optics, floating) = (raw.optics, raw.floating);
    let steps = Steps { dark, flats: &flats, first: 0, zinger, optics, floating, at: &at };
    let framed = transmission(gpu, &mut raw.projections, &steps)?;
    raw.transmission = matches!(framed, Framed::Done(_));
    Ok(framed)
}

/// Turns counts `[frame, row, column]` into transmission.
///
/// # Errors
/// [`Fault::Input`] as on the CPU, [`Fault::Task`] when the device fails.
pub(in crate::technique::tomography) fn transmission(
    gpu: &Gpu,
    frames: &mut Array3<f32>,
    steps: &Steps<'_>,
) -> Result<Framed, Fault> {
    let (_, rows, columns) = frames.dim();
    in_runs(gpu, frames, steps, ENOUGH / (8 * rows * columns).max(1))
}

/// As [`transmission`], at most so many pairs at a time.
pub(super) fn in_runs(gpu: &Gpu, frames: &mut Array3<f32>, steps: &Steps<'_>, most: usize) -> Result<Framed, Fault> {
    let refused = |e: TomographyError| Fault::Input(format!("{}: {e}", steps.at));
    let (count, rows, columns) = frames.dim();
    normalize::check_frames((rows, columns), steps.dark, steps.flats).map_err(refused)?;
    let Some(optics) = steps.optics else {
        return Ok(Framed::Declined("frames without phase retrieval are done on the CPU".to_owned()));
    };
    let tables = paganin::tables(rows, columns, &optics).map_err(refused)?;
    if let Some(zinger) = &steps.zinger {
        zinger.check().map_err(refused)?;
    }
    let mut repaired = Repaired::default();
    if steps.floating {
        match super::finite(frames) {
            Ok(some) => repaired.non_finite = some,
            Err(why) => return Ok(Framed::Declined(why)),
        }
    }
    let grids = [rows, tables[0].length];
    if grids.iter().any(|&n| n > 65_535) || count == 0 {
        return Ok(Framed::Declined("no frames, or frames of more than 65535 rows, are left to the CPU".to_owned()));
    }
    match run(gpu, frames, steps, &tables, most) {
        Ok(Ok(counted)) => Ok(Framed::Done(repaired.plus(counted))),
        Ok(Err(why)) => Ok(Framed::Declined(why)),
        Err(error) => Err(Fault::Task(format!("{}: the GPU failed: {error}", steps.at))),
    }
}

/// Memory and streams for frames of one shape.
struct Workspace {
    /// The context they belong to, and their sizes.
    key: (u64, Size),
    slots: [Slot; 2],
    clean: Buffer,
    cells: Buffer,
    flagged: Buffer,
    counters: Buffer,
    counted: Pinned,
    upload: Stream,
    compute: Stream,
    download: Stream,
}

impl Workspace {
    fn new(gpu: &Gpu, size: Size) -> Result<Self, DeviceError> {
        gpu.plan(size.layout())?;
        let bytes = 4 * size.pixels();
        Ok(Self {
            key: (gpu.id(), size),
            slots: [Slot::new(gpu, bytes, bytes)?, Slot::new(gpu, bytes, bytes)?],
            clean: gpu.alloc(bytes)?,
            cells: gpu.alloc(8 * size.cells())?,
            flagged: gpu.alloc(2 * size.pairs * size.rows)?,
            counters: gpu.alloc(16)?,
            counted: gpu.pinned(16)?,
            upload: gpu.stream()?,
            compute: gpu.stream()?,
            download: gpu.stream()?,
        })
    }
}

/// The last workspace. Held while frames run.
static KEPT: Mutex<Option<Workspace>> = Mutex::new(None);

/// Frees what is kept for the next frames, unless it is in use.
pub(super) fn yield_memory() {
    if let Ok(mut kept) = KEPT.try_lock() {
        *kept = None;
    }
}

/// Runs frames; the inner error is why they are declined, untouched.
fn run(
    gpu: &Gpu,
    frames: &mut Array3<f32>,
    steps: &Steps<'_>,
    tables: &[Table; 2],
    most: usize,
) -> Result<Result<Repaired, String>, DeviceError> {
    gpu.bind()?;
    let (count, rows, columns) = frames.dim();
    let of = |pairs: usize| Size { pairs, rows, columns, high: tables[0].length, wide: tables[1].length };
    let mut pairs = most.min(MOST_PAIRS).clamp(1, count.div_ceil(2));
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.as_ref().is_none_or(|w| w.key != (gpu.id(), of(pairs))) {
        // What is kept for other shapes is in the way of measuring what is free.
        *kept = None;
        let planned = || -> Result<usize, DeviceError> { Ok((gpu.memory()?.0 as f64 * PLANNED) as usize) };
        if of(pairs).bytes() > planned()? {
            super::pipeline::yield_memory(gpu);
        }
        let planned = planned()?;
        while pairs > 1 && of(pairs).bytes() > planned {
            pairs /= 2;
        }
    }
    let result = loop {
        match ready(gpu, of(pairs), &mut kept, count, steps, tables) {
            Err(error @ DeviceError::OutOfMemory { .. }) => {
                gpu.synchronize()?;
                *kept = None;
                super::pipeline::yield_memory(gpu);
                gpu.forget_plans();
                if pairs == 1 {
                    return Ok(Err(format!("one pair of frames does not fit the device ({error}): done on the CPU")));
                }
                pairs /= 2;
                tracing::warn!(
                    gpu = gpu.info.name,
                    frames = 2 * pairs,
                    "{error}; going on with fewer frames at a time"
                );
            }
            Err(error) => break Err(error),
            Ok((workspace, shared)) => break through(gpu, workspace, &shared, frames, steps),
        }
    };
    if result.is_err() {
        *kept = None;
    }
    result.map(Ok)
}

/// All memory, plans and kernels that frames will need.
fn ready<'a>(
    gpu: &Gpu,
    size: Size,
    kept: &'a mut Option<Workspace>,
    count: usize,
    steps: &Steps<'_>,
    tables: &[Table; 2],
) -> Result<(&'a mut Workspace, Shared), DeviceError> {
    let workspace = match kept {
        Some(workspace) => workspace,
        None => kept.insert(Workspace::new(gpu, size)?),
    };
    // The plan may have been forgotten for others' sake.
    gpu.plan(size.layout())?;
    for (file, name) in [
        (File::Normalise, "counts_to_floats"),
        (File::Normalise, "transmission"),
        (File::Zinger, "zinger"),
        (File::Paganin, "damp_frames"),
    ] {
        gpu.function(&Program::of(file), name)?;
    }
    let shared = Shared::put(gpu, &workspace.compute, count, steps, tables)?;
    Ok((workspace, shared))
}

fn through(
    gpu: &Gpu,
    workspace: &mut Workspace,
    shared: &Shared,
    frames: &mut Array3<f32>,
    steps: &Steps<'_>,
) -> Result<Repaired, DeviceError> {
    let Workspace { key, slots, clean, cells, flagged, counters, counted, upload, compute, download } = workspace;
    let size = key.1;
    let zinger = steps.zinger.map(|z| (z.width / 2, z.threshold));
    compute.zero(counters, 16)?;
    let count = frames.len_of(Axis(0));
    let each = 2 * size.pairs;
    let runs: Vec<Range<usize>> = (0..count).step_by(each).map(|first| first..(first + each).min(count)).collect();
    for (k, run) in runs.iter().enumerate() {
        let slot = &mut slots[k % 2];
        let values = run.len() * size.frame();
        let short = slot.feed(gpu, [&*upload, &*compute], frames.slice(s![run.clone(), .., ..]), clean)?;
        Batch {
            queue: Queue { gpu, stream: compute, probe: None },
            size,
            shared,
            zinger,
            frames: run.clone(),
            counts: if short { clean } else { &slot.raw },
            cells,
            flagged,
            counters,
            out: &slot.images,
        }
        .run()?;
        compute.record(&slot.done)?;

        if let Some(before) = k.checked_sub(2) {
            copy_back(slot, runs[before].clone(), frames)?;
        }
        download.wait(&slot.done)?;
        download.download::<f32>(&slot.images, &mut slot.result, values)?;
        download.record(&slot.down)?;
    }
    for k in runs.len().saturating_sub(2)..runs.len() {
        copy_back(&mut slots[k % 2], runs[k].clone(), frames)?;
    }
    compute.download::<u64>(counters, counted, 2)?;
    compute.synchronize()?;
    let counted = counted.as_ref::<u64>(2);
    Ok(Repaired { interpolated: counted[0], zingers: counted[1], ..Repaired::default() })
}

/// Copies finished frames to their place, once their download is done.
fn copy_back(slot: &mut Slot, run: Range<usize>, frames: &mut Array3<f32>) -> Result<(), DeviceError> {
    slot.down.synchronize()?;
    let (_, rows, columns) = frames.dim();
    let done = slot.result.as_ref::<f32>(run.len() * rows * columns);
    let mut to = frames.slice_mut(s![run, .., ..]);
    let parts = to.axis_iter_mut(Axis(0)).into_par_iter().zip(done.par_chunks_exact(rows * columns));
    parts.for_each(|(mut to, from)| to.iter_mut().zip(from).for_each(|(to, &v)| *to = v));
    Ok(())
}
