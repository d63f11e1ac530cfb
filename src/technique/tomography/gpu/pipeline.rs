//! Chunks through the device: packed, uploaded, computed, downloaded, copied out, each overlapping with the others' next.
//!
//! Two slots, three streams. For chunk `k` in slot `k mod 2`:
//!
//! | who | does | after |
//! | --- | --- | --- |
//! | host | packs counts into pinned memory | upload of `k − 2` |
//! | upload | copies them to the slot | compute of `k − 2` (it read the slot) |
//! | compute | all kernels, into the slot's images | upload of `k`, download of `k − 2` (it read the images) |
//! | host | copies images `k − 2` out of pinned memory | download of `k − 2` |
//! | download | copies images to pinned memory | compute of `k`, the host's copy before |
//!
//! Counts that are whole numbers below 65536, as a camera's are, travel in two bytes. The memory is kept for the next slab
//! of the same shape, because pinning takes longer than computing.

use super::Setup;
use super::constants::Constants;
use super::memory::{self, Needs};
use super::steps::Chunk;
use crate::device::gpu::{Arg, Buffer, Event, Pinned, Shape, Stream};
use crate::device::kernels::{File, Program};
use crate::device::{DeviceError, Gpu};
use crate::technique::laue;
use crate::technique::tomography::chain::Repaired;
use ndarray::{Array3, ArrayView3, Axis, s};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// One of two: what comes, what goes, and how far each is.
pub(super) struct Slot {
    pub raw: Buffer,
    pub images: Buffer,
    pub staged: Pinned,
    pub result: Pinned,
    pub up: Event,
    pub done: Event,
    pub down: Event,
}

impl Slot {
    /// For so many bytes in and out.
    pub fn new(gpu: &Gpu, raw: usize, images: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            raw: gpu.alloc(raw)?,
            images: gpu.alloc(images)?,
            staged: gpu.pinned(raw)?,
            result: gpu.pinned(images)?,
            up: gpu.event()?,
            done: gpu.event()?,
            down: gpu.event()?,
        })
    }

    /// Packs counts and uploads them, once what was in their place is used and what was made of it is copied out. True: they
    /// travelled in two bytes, and `compute` makes floats of them in `floats`; else they lie in `raw`.
    pub fn feed(
        &mut self,
        gpu: &Gpu,
        [upload, compute]: [&Stream; 2],
        counts: ArrayView3<'_, f32>,
        floats: &Buffer,
    ) -> Result<bool, DeviceError> {
        let count = counts.len();
        self.up.synchronize()?;
        let short = pack(counts, &mut self.staged);
        upload.wait(&self.done)?;
        if short {
            upload.upload::<u16>(&self.staged, count, &self.raw)?;
        } else {
            upload.upload::<f32>(&self.staged, count, &self.raw)?;
        }
        upload.record(&self.up)?;

        compute.wait(&self.up)?;
        compute.wait(&self.down)?;
        if short {
            let decode = gpu.function(&Program::of(File::Normalise), "counts_to_floats")?;
            let arguments = [Arg::from(&self.raw), Arg::from(floats), count.into()];
            compute.launch(decode, Shape::line(count.div_ceil(1024).min(65_536), 256), &arguments)?;
        }
        Ok(short)
    }
}

/// Memory and streams for chunks of one shape.
struct Workspace {
    /// The context they belong to, and their shape.
    key: (u64, Needs),
    /// Larger chunks did not fit.
    limited: bool,
    slots: [Slot; 2],
    counts: Buffer,
    sinograms: Buffer,
    arena: Buffer,
    flagged: Buffer,
    counters: Buffer,
    counted: Pinned,
    upload: Stream,
    compute: Stream,
    download: Stream,
}

impl Workspace {
    /// Can it serve this slab, and is it not much larger than that wants?
    fn suits(&self, gpu: &Gpu, setup: &Setup) -> bool {
        let (most, pairs) = (memory::most(setup), self.key.1.pairs);
        let size = pairs == most || (pairs < most && self.limited) || (pairs > most && pairs <= 4 * most);
        size && self.key.0 == gpu.id() && Needs::of(setup, pairs).within(&self.key.1)
    }

    fn new(gpu: &Gpu, setup: &Setup, key: (u64, Needs)) -> Result<Self, DeviceError> {
        let needs = key.1;
        for layout in Chunk::layouts(setup, &needs) {
            gpu.plan(layout)?;
        }
        let slot = || Slot::new(gpu, needs.raw, needs.images);
        Ok(Self {
            key,
            limited: key.1.pairs < memory::most(setup),
            slots: [slot()?, slot()?],
            counts: gpu.alloc(needs.raw)?,
            sinograms: gpu.alloc(needs.sinograms)?,
            arena: gpu.alloc(needs.arena)?,
            flagged: gpu.alloc(needs.held * setup.plan.angles)?,
            counters: gpu.alloc(24)?,
            counted: gpu.pinned(24)?,
            upload: gpu.stream()?,
            compute: gpu.stream()?,
            download: gpu.stream()?,
        })
    }
}

/// The last workspace. Held while a slab runs: a device does one at a time.
static KEPT: Mutex<Option<Workspace>> = Mutex::new(None);

/// Frees what is kept for the next slab.
pub(super) fn forget(gpu: &Gpu) -> Result<(), DeviceError> {
    gpu.bind()?;
    *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = None;
    super::frames::yield_memory();
    gpu.forget_plans();
    Ok(())
}

/// As [`forget`], unless a slab is under way.
pub(super) fn yield_memory(gpu: &Gpu) {
    if let Ok(mut kept) = KEPT.try_lock()
        && kept.take().is_some()
    {
        gpu.forget_plans();
    }
}

type Slab = (Array3<f32>, Repaired);

/// Reconstructs a slab; the inner error is why it cannot be done here.
pub(super) fn run(gpu: &Gpu, setup: &Setup, projections: &Array3<f32>) -> Result<Result<Slab, String>, DeviceError> {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut pairs = match kept.as_ref().filter(|w| w.suits(gpu, setup)) {
        Some(workspace) => workspace.key.1.pairs,
        None => {
            // What is kept for another shape is in the way of measuring what is free.
            *kept = None;
            gpu.forget_plans();
            let pairs = memory::pairs(gpu, setup)?;
            // So is what others keep, if that makes a difference.
            if pairs < memory::most(setup) {
                super::frames::yield_memory();
                laue::gpu::make_room();
                memory::pairs(gpu, setup)?
            } else {
                pairs
            }
        }
    };
    loop {
        match attempt(gpu, setup, pairs, &mut kept, projections) {
            Err(error @ DeviceError::OutOfMemory { .. }) => {
                // Nothing of the attempt may still run in memory that is freed.
                gpu.synchronize()?;
                *kept = None;
                super::frames::yield_memory();
                gpu.forget_plans();
                if pairs == 1 {
                    return Ok(Err(format!("one pair of rows does not fit the device ({error}): done on the CPU")));
                }
                pairs /= 2;
                tracing::warn!(gpu = gpu.info.name, rows = 2 * pairs, "{error}; going on with smaller chunks");
            }
            Err(error) => {
                *kept = None;
                return Err(error);
            }
            Ok(slab) => return Ok(Ok(slab)),
        }
    }
}

fn attempt(
    gpu: &Gpu,
    setup: &Setup,
    pairs: usize,
    kept: &mut Option<Workspace>,
    projections: &Array3<f32>,
) -> Result<Slab, DeviceError> {
    let workspace = match kept {
        Some(workspace) => workspace,
        None => kept.insert(Workspace::new(gpu, setup, (gpu.id(), Needs::of(setup, pairs)))?),
    };
    let constants = Constants::upload(gpu, &workspace.compute, setup)?;
    let mut volume = Array3::zeros((setup.rows, setup.size(), setup.size()));
    let counted = through(gpu, setup, workspace, &constants, projections, &mut volume)?;
    let repaired =
        Repaired { interpolated: counted[0], zingers: counted[1], floored: counted[2], ..Repaired::default() };
    Ok((volume, repaired))
}

fn through(
    gpu: &Gpu,
    setup: &Setup,
    workspace: &mut Workspace,
    constants: &Constants,
    projections: &Array3<f32>,
    volume: &mut Array3<f32>,
) -> Result<[u64; 3], DeviceError> {
    let Workspace {
        key, slots, counts, sinograms, arena, flagged, counters, counted, upload, compute, download, ..
    } = workspace;
    let needs = key.1;
    let size = setup.size();
    compute.zero(counters, 24)?;
    let chunks: Vec<Range<usize>> = (0..setup.rows)
        .step_by(2 * needs.pairs)
        .map(|first| first..(first + 2 * needs.pairs).min(setup.rows))
        .collect();
    for (k, rows) in chunks.iter().enumerate() {
        let slot = &mut slots[k % 2];
        let first_held = (setup.before + rows.start).saturating_sub(setup.reach());
        let held = first_held..(setup.before + rows.end + setup.reach()).min(setup.held);
        let short = slot.feed(gpu, [&*upload, &*compute], projections.slice(s![.., held.clone(), ..]), counts)?;
        Chunk {
            gpu,
            stream: compute,
            setup,
            constants,
            needs,
            counts: if short { counts } else { &slot.raw },
            first_held,
            held: held.len(),
            before: setup.before + rows.start - first_held,
            rows: rows.len(),
            sinograms,
            arena,
            flagged,
            counters,
            images: &slot.images,
            probe: None,
        }
        .run()?;
        compute.record(&slot.done)?;

        if let Some(before) = k.checked_sub(2) {
            copy_out(slot, chunks[before].clone(), volume)?;
        }
        download.wait(&slot.done)?;
        download.download::<f32>(&slot.images, &mut slot.result, rows.len() * size * size)?;
        download.record(&slot.down)?;
    }
    for k in chunks.len().saturating_sub(2)..chunks.len() {
        copy_out(&mut slots[k % 2], chunks[k].clone(), volume)?;
    }
    compute.download::<u64>(counters, counted, 3)?;
    compute.synchronize()?;
    let counted = counted.as_ref::<u64>(3);
    Ok([counted[0], counted[1], counted[2]])
}

/// Copies counts into pinned memory; true when they went in two bytes each.
pub(crate) fn pack(from: ArrayView3<'_, f32>, staged: &mut Pinned) -> bool {
    let (angles, rows, columns) = from.dim();
    let frame = rows * columns;
    let whole = AtomicBool::new(true);
    staged.as_mut::<u16>(angles * frame).par_chunks_mut(frame).zip(from.axis_iter(Axis(0))).for_each(|(to, frame)| {
        if !whole.load(Ordering::Relaxed) {
            return;
        }
        let mut exact = true;
        for (to, row) in to.chunks_exact_mut(columns).zip(frame.outer_iter()) {
            for (to, &v) in to.iter_mut().zip(row) {
                // Beside 2²³ a float's last bits are units: whatever does not come back was not whole or not in range.
                const UNITS: f32 = 8_388_608.0;
                *to = (v + UNITS).to_bits() as u16;
                exact &= f32::from_bits(UNITS.to_bits() | u32::from(*to)) - UNITS == v;
            }
        }
        if !exact {
            whole.store(false, Ordering::Relaxed);
        }
    });
    if whole.into_inner() {
        return true;
    }
    staged.as_mut::<f32>(angles * frame).par_chunks_mut(frame).zip(from.axis_iter(Axis(0))).for_each(|(to, frame)| {
        for (to, row) in to.chunks_exact_mut(columns).zip(frame.outer_iter()) {
            match row.as_slice() {
                Some(row) => to.copy_from_slice(row),
                None => to.iter_mut().zip(row).for_each(|(to, &v)| *to = v),
            }
        }
    });
    false
}

/// Copies finished images to their place, once their download is done.
fn copy_out(slot: &mut Slot, rows: Range<usize>, volume: &mut Array3<f32>) -> Result<(), DeviceError> {
    slot.down.synchronize()?;
    let (_, height, width) = volume.dim();
    let images = slot.result.as_ref::<f32>(rows.len() * height * width);
    volume
        .slice_mut(s![rows, .., ..])
        .axis_iter_mut(Axis(0))
        .into_par_iter()
        .zip(images.par_chunks_exact(height * width))
        .for_each(|(mut to, from)| {
            for (mut to, from) in to.outer_iter_mut().zip(from.chunks_exact(width)) {
                to.iter_mut().zip(from).for_each(|(to, &v)| *to = v);
            }
        });
    Ok(())
}
