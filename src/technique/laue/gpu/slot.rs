//! A chunk on its way: its memory on the device and on the host, counts in, depths out.

use super::Setup;
use super::list::{self, Batch, Listed, TILE_FIELDS};
use super::memory::Needs;
use crate::device::gpu::{Arg, Buffer, Event, Pinned, Shape, Stream};
use crate::device::kernels::{File, Program};
use crate::device::{DeviceError, Gpu};
use crate::technique::laue::slab::Slab;
use crate::technique::tomography::gpu::pack;
use ndarray::{ArrayView3, Axis, s};
use rayon::prelude::*;
use std::ops::Range;

/// What is on its way for a chunk: memory of the device and of the host.
pub(super) struct Slot {
    pub raw: Buffer,
    pub counts: Buffer,
    pub stack: Buffer,
    pub means: Buffer,
    pub flags: Buffer,
    pub reals: Buffer,
    pub wholes: Buffer,
    pub tiles: Buffer,
    /// Intensity and what fell outside of listed pixels; with a wire the four sums of every pixel's account.
    pub sums: Buffer,
    pub maps: Buffer,
    pub bits: Buffer,
    pub edges: Buffer,
    pub staged: Pinned,
    pub result: Pinned,
    pub host_means: Pinned,
    pub host_flags: Pinned,
    pub host_reals: Pinned,
    pub host_wholes: Pinned,
    pub host_tiles: Pinned,
    pub host_sums: Pinned,
    pub host_maps: Pinned,
    pub host_bits: Pinned,
    pub host_edges: Pinned,
    pub up: Event,
    pub done: Event,
    pub down: Event,
    pub list: Vec<Listed>,
    pub batches: Vec<Batch>,
}

/// Fields of listed pixels' maps: position, depth, residual, confidence, energy.
pub(super) const MAPS: usize = 5;

impl Slot {
    pub(super) fn new(gpu: &Gpu, needs: &Needs) -> Result<Self, DeviceError> {
        let pixels = needs.pixels();
        let wire = needs.batch == 0;
        // What the other method needs is not made.
        let of = |yes: bool, bytes: usize| if yes { bytes } else { 0 };
        let counts = needs.frames * pixels;
        let (reals, wholes) = (of(!wire, 8 * list::REALS * pixels), of(!wire, 4 * list::WHOLES * pixels));
        let tiles = of(!wire, 4 * TILE_FIELDS * pixels);
        let sums = if wire { 32 * pixels } else { 16 * pixels };
        let (bits, edges) = (of(!wire, 4 * pixels), of(wire, 32 * pixels));
        Ok(Self {
            raw: gpu.alloc(2 * counts)?,
            counts: gpu.alloc(4 * counts)?,
            stack: gpu.alloc(4 * needs.bins * pixels)?,
            means: gpu.alloc(of(!wire, 8 * pixels))?,
            flags: gpu.alloc(pixels)?,
            reals: gpu.alloc(reals)?,
            wholes: gpu.alloc(wholes)?,
            tiles: gpu.alloc(tiles)?,
            sums: gpu.alloc(sums)?,
            maps: gpu.alloc(4 * MAPS * pixels)?,
            bits: gpu.alloc(bits)?,
            edges: gpu.alloc(edges)?,
            staged: gpu.pinned(4 * counts)?,
            result: gpu.pinned(4 * needs.bins * pixels)?,
            host_means: gpu.pinned(of(!wire, 8 * pixels))?,
            host_flags: gpu.pinned(pixels)?,
            host_reals: gpu.pinned(reals)?,
            host_wholes: gpu.pinned(wholes)?,
            host_tiles: gpu.pinned(tiles)?,
            host_sums: gpu.pinned(sums)?,
            host_maps: gpu.pinned(4 * MAPS * pixels)?,
            host_bits: gpu.pinned(bits)?,
            host_edges: gpu.pinned(edges)?,
            up: gpu.event()?,
            done: gpu.event()?,
            down: gpu.event()?,
            list: Vec::new(),
            batches: Vec::new(),
        })
    }
}

/// Packs and uploads counts; they lie in `slot.counts` as floats when the upload stream is through.
pub(super) fn bring(
    gpu: &Gpu,
    setup: &Setup<'_>,
    slot: &mut Slot,
    stream: &Stream,
    counts: ArrayView3<'_, f32>,
) -> Result<usize, DeviceError> {
    let (_, rows, columns) = counts.dim();
    let count = setup.frames * rows * columns;
    if pack(counts, &mut slot.staged) {
        stream.upload::<u16>(&slot.staged, count, &slot.raw)?;
        expand(gpu, slot, stream, count)?;
    } else {
        stream.upload::<f32>(&slot.staged, count, &slot.counts)?;
    }
    Ok(rows * columns)
}

/// Counts of two bytes to floats.
pub(super) fn expand(gpu: &Gpu, slot: &Slot, stream: &Stream, count: usize) -> Result<(), DeviceError> {
    let function = gpu.function(&Program::of(File::Normalise), "counts_to_floats")?;
    let arguments = [Arg::from(&slot.raw), Arg::from(&slot.counts), count.into()];
    stream.launch(function, Shape::line(count.div_ceil(1024).min(65_536), 256), &arguments)
}

/// Copies depths `[depth, pixel]` to their place, and adds them to the histogram.
pub(super) fn copy_stack(setup: &Setup<'_>, values: &[f32], rows: Range<usize>, slab: &mut Slab) {
    let (width, columns) = (setup.columns.len(), setup.columns.clone());
    slab.stack
        .axis_iter_mut(Axis(0))
        .into_par_iter()
        .zip(slab.sums.histogram.par_iter_mut())
        .zip(values.par_chunks_exact(rows.len() * width))
        .for_each(|((mut image, sum), values)| {
            let mut to = image.slice_mut(s![rows.clone(), columns.clone()]);
            for (mut to, from) in to.outer_iter_mut().zip(values.chunks_exact(width)) {
                for (to, &v) in to.iter_mut().zip(from) {
                    *to = v;
                    *sum += f64::from(v);
                }
            }
        });
}
