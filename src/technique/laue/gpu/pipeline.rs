//! Chunks through the device: packed, uploaded, selected, decoded, downloaded, copied out, each overlapping with the others' next.
//!
//! Two slots, three streams. For chunk `k` in slot `k mod 2`:
//!
//! | who | does | after |
//! | --- | --- | --- |
//! | host | packs counts into pinned memory | chunk `k − 2` is copied out |
//! | upload | copies them, selects bright pixels, copies flags back | – |
//! | host | lists bright pixels with their geometry | flags of `k` |
//! | compute | all other kernels, batch by batch | the list; kernels of `k − 1` |
//! | download | copies depths and what else was found | compute of `k` |
//! | host | copies them into the slab | download of `k` |
//!
//! Copying out, the host decodes those pixels once more in which there may be light of a second place (`overlap.rs`).
//! The host works on the list of `k` and the packing of `k + 1` while the device decodes. Counts that are whole numbers below
//! 65536 travel in two bytes. The memory is kept for the next slab of the same shape.

use super::list;
use super::memory::{self, Needs};
use super::slot::{MAPS, Slot, bring, copy_stack};
use super::steps::Batches;
use super::store::Shared;
use super::{Aperture, Setup, wire};
use crate::device::gpu::{Arg, Buffer, Shape, Stream};
use crate::device::kernels::{File, Program};
use crate::device::{DeviceError, Gpu};
use crate::technique::laue::decode::{Decoder, EnergyOptions, Pixel, Work, flag};
use crate::technique::laue::depth::Account;
use crate::technique::laue::slab::{Resolver, Slab};
use crate::technique::tomography;
use ndarray::{ArrayView3, s};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// What is computed with: the coded aperture's batches, or a wire's columns of depths.
enum Scratch {
    Aperture(Box<Batches>),
    Wire(Buffer),
}

/// Memory and streams for chunks of one shape.
struct Workspace {
    /// The context they belong to.
    device: u64,
    needs: Needs,
    slots: [Slot; 2],
    scratch: Scratch,
    ways: Ways,
}

/// The streams.
pub(super) struct Ways {
    pub upload: Stream,
    pub compute: Stream,
    pub download: Stream,
}

impl Workspace {
    fn new(gpu: &Gpu, needs: Needs) -> Result<Self, DeviceError> {
        let scratch = if needs.batch > 0 {
            Scratch::Aperture(Box::new(Batches::new(gpu, &needs)?))
        } else {
            Scratch::Wire(gpu.alloc(8 * needs.bins * needs.pixels())?)
        };
        Ok(Self {
            device: gpu.id(),
            needs,
            slots: [Slot::new(gpu, &needs)?, Slot::new(gpu, &needs)?],
            scratch,
            ways: Ways { upload: gpu.stream()?, compute: gpu.stream()?, download: gpu.stream()? },
        })
    }
}

/// The last workspace. Held while a slab runs: a device does one at a time.
static KEPT: Mutex<Option<Workspace>> = Mutex::new(None);

/// Frees what is kept for the next slab.
pub(super) fn forget(gpu: &Gpu) -> Result<(), DeviceError> {
    gpu.bind()?;
    *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = None;
    Ok(())
}

/// Frees what is kept for the next slab, unless one is being done: another technique wants the memory.
pub(crate) fn make_room() {
    if let Ok(mut kept) = KEPT.try_lock() {
        *kept = None;
    }
}

/// Why a chunk could not be done.
enum Stop {
    Device(DeviceError),
    /// Not for the kernels, in words.
    Declined(String),
}

impl From<DeviceError> for Stop {
    fn from(e: DeviceError) -> Self {
        Self::Device(e)
    }
}

/// Resolves a slab; the inner error is why it cannot be done here.
pub(super) fn run(gpu: &Gpu, setup: &Setup<'_>, raw: ArrayView3<'_, f32>) -> Result<Result<Slab, String>, DeviceError> {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let suits = |w: &&Workspace| w.device == gpu.id() && Needs::of(setup, w.needs.halved).served_by(&w.needs);
    let mut needs = match kept.as_ref().filter(suits) {
        Some(workspace) => workspace.needs,
        None => {
            // What is kept for another shape is in the way of measuring what is free.
            *kept = None;
            let planned = memory::plan(gpu, setup)?;
            // So is what another technique keeps, if that makes a difference.
            if planned.halved > 0 {
                tomography::gpu::make_room(gpu);
                memory::plan(gpu, setup)?
            } else {
                planned
            }
        }
    };
    loop {
        match attempt(gpu, setup, needs, &mut kept, raw) {
            Err(Stop::Device(error @ DeviceError::OutOfMemory { .. })) => {
                // Nothing of the attempt may still run in memory that is freed.
                gpu.synchronize()?;
                *kept = None;
                if needs.least() {
                    return Ok(Err(format!("one row does not fit the device ({error}): done on the CPU")));
                }
                needs = Needs::of(setup, needs.halved + 1);
                tracing::warn!(gpu = gpu.info.name, rows = needs.rows, batch = needs.batch, "{error}; smaller chunks");
            }
            Err(Stop::Device(error)) => {
                *kept = None;
                return Err(error);
            }
            Err(Stop::Declined(why)) => {
                gpu.synchronize()?;
                return Ok(Err(why));
            }
            Ok(slab) => return Ok(Ok(slab)),
        }
    }
}

fn attempt(
    gpu: &Gpu,
    setup: &Setup<'_>,
    needs: Needs,
    kept: &mut Option<Workspace>,
    raw: ArrayView3<'_, f32>,
) -> Result<Slab, Stop> {
    let workspace = match kept {
        Some(workspace) => workspace,
        None => kept.insert(Workspace::new(gpu, needs)?),
    };
    let (_, rows, width) = raw.dim();
    let mut slab = Slab::empty(setup.grid.bins, rows, width);
    match setup.resolver {
        Resolver::Aperture(_) => aperture(gpu, setup, workspace, raw, &mut slab)?,
        Resolver::Wire(scan) => {
            let Workspace { needs, slots, scratch, ways, .. } = workspace;
            if let Scratch::Wire(columns) = scratch {
                wire::run(gpu, setup, scan, (needs, slots, columns), ways, raw, &mut slab)?;
            }
        }
    }
    Ok(slab)
}

/// Rows of a slab, cut into chunks.
pub(super) fn chunks(rows: usize, most: usize) -> Vec<Range<usize>> {
    (0..rows).step_by(most).map(|first| first..(first + most).min(rows)).collect()
}

/// Brings a chunk's counts, and finds its bright pixels.
pub(super) fn select(
    gpu: &Gpu,
    setup: &Setup<'_>,
    aperture: &Aperture<'_>,
    slot: &mut Slot,
    stream: &Stream,
    counts: ArrayView3<'_, f32>,
) -> Result<(), DeviceError> {
    let pixels = bring(gpu, setup, slot, stream, counts)?;
    choose(gpu, setup, aperture, slot, stream, pixels)?;
    stream.download::<f64>(&slot.means, &mut slot.host_means, pixels)?;
    stream.download::<u8>(&slot.flags, &mut slot.host_flags, pixels)?;
    stream.record(&slot.up)
}

/// Step 1.
pub(super) fn choose(
    gpu: &Gpu,
    setup: &Setup<'_>,
    aperture: &Aperture<'_>,
    slot: &Slot,
    stream: &Stream,
    pixels: usize,
) -> Result<(), DeviceError> {
    let decoding = aperture.decoder.setup();
    let arguments = [
        Arg::from(&slot.counts),
        Arg::from(&slot.means),
        Arg::from(&slot.flags),
        setup.frames.into(),
        pixels.into(),
        decoding.threshold.into(),
        decoding.saturation.into(),
    ];
    let function = gpu.function(&Program::of(File::LaueSearch), "laue_select")?;
    stream.launch(function, Shape::over(pixels, 1, 1, 128), &arguments)
}

/// Lists a chunk's bright pixels, as soon as they are known.
fn enlist(
    setup: &Setup<'_>,
    aperture: &Aperture<'_>,
    needs: &Needs,
    slot: &mut Slot,
    rows: Range<usize>,
) -> Result<(), Stop> {
    let pixels = rows.len() * needs.width;
    slot.up.synchronize()?;
    let (flags, means) = (slot.host_flags.as_ref::<u8>(pixels), slot.host_means.as_ref::<f64>(pixels));
    slot.list = list::list(setup, aperture, setup.first + rows.start, flags, means).map_err(Stop::Declined)?;
    slot.batches = list::batches(&slot.list, needs.batch, needs.templates);
    Ok(())
}

/// As [`enlist`], for a whole slab in one chunk.
pub(super) fn enlist_all(
    setup: &Setup<'_>,
    aperture: &Aperture<'_>,
    needs: &Needs,
    slot: &mut Slot,
) -> Result<(), DeviceError> {
    match enlist(setup, aperture, needs, slot, 0..setup.rows) {
        Ok(()) => Ok(()),
        Err(Stop::Device(error)) => Err(error),
        Err(Stop::Declined(why)) => Err(DeviceError::Unsupported(why)),
    }
}

fn aperture(
    gpu: &Gpu,
    setup: &Setup<'_>,
    workspace: &mut Workspace,
    raw: ArrayView3<'_, f32>,
    slab: &mut Slab,
) -> Result<(), Stop> {
    let Some(aperture) = &setup.aperture else { return Ok(()) };
    let Workspace { needs, slots, scratch, ways, .. } = workspace;
    let Scratch::Aperture(batches) = scratch else { return Ok(()) };
    let Ways { upload, compute, download } = ways;
    let chunks = chunks(setup.rows, needs.rows);
    batches.templates.clear();
    let shared = Shared::new(gpu, compute, aperture)?;
    for k in 0..=chunks.len() {
        if let Some(before) = k.checked_sub(1) {
            // Bright pixels of the chunk before are known, or will be.
            let (slot, rows) = (&mut slots[before % 2], chunks[before].clone());
            let pixels = rows.len() * needs.width;
            enlist(setup, aperture, needs, slot, rows)?;
            if !slot.list.is_empty() {
                compute.wait(&slot.up)?;
                compute.zero(&slot.stack, 4 * needs.bins * pixels)?;
                batches.run(gpu, compute, setup, aperture, needs, slot, pixels, &shared, None)?;
                compute.record(&slot.done)?;
                download.wait(&slot.done)?;
                let count = slot.list.len();
                download.download::<f32>(&slot.stack, &mut slot.result, needs.bins * pixels)?;
                download.download::<f64>(&slot.sums, &mut slot.host_sums, 2 * count)?;
                download.download::<f32>(&slot.maps, &mut slot.host_maps, MAPS * count)?;
                download.download::<i32>(&slot.bits, &mut slot.host_bits, count)?;
                download.record(&slot.down)?;
            }
        }
        if let Some(before) = k.checked_sub(2) {
            collect_aperture(setup, needs, &mut slots[before % 2], chunks[before].clone(), raw, slab)?;
        }
        if let Some(rows) = chunks.get(k) {
            let slot = &mut slots[k % 2];
            let counts = raw.slice(s![.., rows.clone(), setup.columns.clone()]);
            select(gpu, setup, aperture, slot, upload, counts)?;
        }
    }
    if let Some(last) = chunks.len().checked_sub(1) {
        collect_aperture(setup, needs, &mut slots[last % 2], chunks[last].clone(), raw, slab)?;
    }
    Ok(())
}

/// Copies a finished chunk to its place; what is summed is summed in the order of pixels, as on the CPU.
fn collect_aperture(
    setup: &Setup<'_>,
    needs: &Needs,
    slot: &mut Slot,
    rows: Range<usize>,
    raw: ArrayView3<'_, f32>,
    slab: &mut Slab,
) -> Result<(), DeviceError> {
    let Resolver::Aperture(decoder) = setup.resolver else { return Ok(()) };
    let width = needs.width;
    let pixels = rows.len() * width;
    let (flags, means) = (slot.host_flags.as_ref::<u8>(pixels), slot.host_means.as_ref::<f64>(pixels));
    let listed = !slot.list.is_empty();
    if listed {
        slot.down.synchronize()?;
    }
    let fixed = match decoder.setup().energy {
        EnergyOptions::Fixed(kev) => kev as f32,
        _ => f32::NAN,
    };
    let fitted = setup.aperture.as_ref().is_some_and(|a| !a.energies.is_empty());
    // Where each pixel's results lie: its batch's first, its place in the batch, and the batch's size.
    let mut at = vec![[0_usize; 3]; if listed { pixels } else { 0 }];
    if listed {
        for batch in &slot.batches {
            for (i, p) in slot.list[batch.range.clone()].iter().enumerate() {
                at[p.place] = [batch.range.start, i, batch.range.len()];
            }
        }
    }
    let count = slot.list.len();
    let (sums, maps) = (slot.host_sums.as_ref::<f64>(2 * count), slot.host_maps.as_ref::<f32>(MAPS * count));
    let bits = slot.host_bits.as_ref::<i32>(count);
    let field = |place: usize, field: usize| {
        let [first, i, size] = at[place];
        maps[MAPS * first + field * size + i]
    };
    let wanted: Vec<usize> = (0..if listed { pixels } else { 0 })
        .filter(|&place| flags[place] == 0 && decoder.may_overlap(field(place, 2)))
        .collect();
    let mut again = BTreeMap::new();
    for places in wanted.chunks(SECOND) {
        for (place, pixel, account, depths) in second_looks(setup, decoder, raw, rows.start, places) {
            let column = slot.result.as_mut::<f32>(needs.bins * pixels).iter_mut().skip(place).step_by(pixels);
            column.zip(depths).for_each(|(to, v)| *to = v as f32);
            again.insert(place, (pixel, account));
        }
    }
    for place in 0..pixels {
        let to = [rows.start + place / width, setup.columns.start + place % width];
        slab.maps[0][to] = means[place] as f32;
        if flags[place] != 0 {
            slab.flags[to] = flags[place];
            slab.sums.count(flags[place]);
            continue;
        }
        if let Some((p, account)) = again.get(&place) {
            slab.flags[to] = p.flags;
            slab.sums.count(p.flags);
            slab.sums.account = slab.sums.account.plus(*account);
            let found = [p.intensity, p.position_um, p.depth_um, p.energy_kev, p.residual, p.confidence];
            slab.maps.iter_mut().skip(1).zip(found).for_each(|(map, v)| map[to] = v);
            continue;
        }
        let [first, i, size] = at[place];
        let map = |of: usize| field(place, of);
        let (intensity, outside) = (sums[2 * first + i], sums[2 * first + size + i]);
        let flag = bits[first + i] as u8;
        slab.flags[to] = flag;
        slab.sums.count(flag);
        // Without a position nothing else is known, either.
        if map(0).is_nan() {
            continue;
        }
        slab.maps[1][to] = intensity as f32;
        (slab.maps[2][to], slab.maps[3][to]) = (map(0), map(1));
        slab.maps[4][to] = if fitted { map(4) } else { fixed };
        (slab.maps[5][to], slab.maps[6][to]) = (map(2), map(3));
        let ambiguous = flag & flag::AMBIGUOUS != 0;
        let account = Account { input: intensity, ..Account::default() };
        let account = if ambiguous {
            Account { rejected: intensity, ..account }
        } else {
            Account { deposited: intensity - outside, out_of_range: outside, ..account }
        };
        slab.sums.account = slab.sums.account.plus(account);
    }
    if listed {
        copy_stack(setup, slot.result.as_ref::<f32>(needs.bins * pixels), rows, slab);
    }
    Ok(())
}

/// Pixels that are decoded once more at a time.
const SECOND: usize = 4096;

/// Decodes pixels whose fit leaves more than noise once more, on the CPU: whether there is a second place takes many fits, of few
/// pixels. `row`: the chunk's first in `raw`.
fn second_looks(
    setup: &Setup<'_>,
    decoder: &Decoder,
    raw: ArrayView3<'_, f32>,
    row: usize,
    places: &[usize],
) -> Vec<(usize, Pixel, Account, Vec<f64>)> {
    let width = setup.columns.len();
    let scratch = || (decoder.work(), vec![0f32; setup.frames]);
    let one = |(work, series): &mut (Work, Vec<f32>), &place: &usize| {
        let (row, column) = (row + place / width, setup.columns.start + place % width);
        series.iter_mut().zip(raw.slice(s![.., row, column])).for_each(|(to, v)| *to = *v);
        let mut depths = vec![0.0; setup.grid.bins];
        let (pixel, account) = decoder.decode(series, setup.first + row, column, work, &mut depths);
        (place, pixel, account, depths)
    };
    places.par_iter().map_init(scratch, one).collect()
}
