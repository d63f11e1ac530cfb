//! Wire scans through the device, in chunks as [`super::pipeline`] says; one kernel does all of a pixel.

use super::Setup;
use super::memory::Needs;
use super::pipeline::{Ways, chunks};
use super::slot::{MAPS, Slot, bring, copy_stack};
use super::steps::mark;
use crate::device::gpu::{Arg, Buffer, Pinned, Shape, Stream};
use crate::device::kernels::{File, Program};
use crate::device::{DeviceError, Gpu};
use crate::technique::laue::depth::Account;
use crate::technique::laue::slab::Slab;
use crate::technique::laue::wire::{Edge, WireScan};
use crate::technique::tomography::gpu::{Probe, put};
use ndarray::{ArrayView3, s};
use rayon::prelude::*;
use std::ops::Range;

/// Resolves a slab; `columns`: depths of a chunk's pixels in double precision.
pub(super) fn run(
    gpu: &Gpu,
    setup: &Setup<'_>,
    scan: &WireScan,
    (needs, slots, columns): (&Needs, &mut [Slot; 2], &Buffer),
    Ways { upload, compute, download }: &Ways,
    raw: ArrayView3<'_, f32>,
    slab: &mut Slab,
) -> Result<(), DeviceError> {
    let centres = put(gpu, compute, scan.path().0.as_flattened())?;
    let chunks = chunks(setup.rows, needs.rows);
    for k in 0..=chunks.len() {
        if let Some(before) = k.checked_sub(1) {
            let (slot, rows) = (&mut slots[before % 2], chunks[before].clone());
            let pixels = rows.len() * needs.width;
            compute.wait(&slot.up)?;
            wire_chunk(gpu, compute, setup, scan, &centres, slot, columns, pixels, None)?;
            compute.record(&slot.done)?;
            download.wait(&slot.done)?;
            download.download::<f32>(&slot.stack, &mut slot.result, needs.bins * pixels)?;
            download.download::<f64>(&slot.sums, &mut slot.host_sums, 4 * pixels)?;
            download.download::<f32>(&slot.maps, &mut slot.host_maps, MAPS * pixels)?;
            download.download::<u8>(&slot.flags, &mut slot.host_flags, pixels)?;
            download.record(&slot.down)?;
        }
        if let Some(before) = k.checked_sub(2) {
            collect_wire(setup, needs, &mut slots[before % 2], chunks[before].clone(), slab)?;
        }
        if let Some(rows) = chunks.get(k) {
            let slot = &mut slots[k % 2];
            let counts = raw.slice(s![.., rows.clone(), setup.columns.clone()]);
            bring_wire(gpu, setup, scan, slot, upload, counts, rows.start)?;
        }
    }
    if let Some(last) = chunks.len().checked_sub(1) {
        collect_wire(setup, needs, &mut slots[last % 2], chunks[last].clone(), slab)?;
    }
    Ok(())
}

/// Brings a chunk's counts, and the edges of its pixels; `row`: its first, from the slab's.
pub(super) fn bring_wire(
    gpu: &Gpu,
    setup: &Setup<'_>,
    scan: &WireScan,
    slot: &mut Slot,
    stream: &Stream,
    counts: ArrayView3<'_, f32>,
    row: usize,
) -> Result<(), DeviceError> {
    let pixels = bring(gpu, setup, slot, stream, counts)?;
    edges(setup, scan, row, pixels, &mut slot.host_edges);
    stream.upload::<f64>(&slot.host_edges, 4 * pixels, &slot.edges)?;
    stream.record(&slot.up)
}

/// Edges of pixels across the wire, `[4, pixel]`.
fn edges(setup: &Setup<'_>, scan: &WireScan, row: usize, pixels: usize, to: &mut Pinned) {
    let width = setup.columns.len();
    let to = to.as_mut::<f64>(4 * pixels);
    let found: Vec<[[f64; 2]; 2]> = (0..pixels)
        .into_par_iter()
        .map(|i| scan.edges(setup.first + row + i / width, setup.columns.start + i % width))
        .collect();
    for (i, edges) in found.iter().enumerate() {
        edges.as_flattened().iter().enumerate().for_each(|(field, v)| to[field * pixels + i] = *v);
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn wire_chunk(
    gpu: &Gpu,
    stream: &Stream,
    setup: &Setup<'_>,
    scan: &WireScan,
    centres: &Buffer,
    slot: &Slot,
    columns: &Buffer,
    pixels: usize,
    probe: Option<&Probe>,
) -> Result<(), DeviceError> {
    let (path, radius, foreshortening) = scan.path();
    let wire = scan.setup();
    let sides = match wire.edge {
        Edge::Leading => 1,
        Edge::Trailing => 2,
        Edge::Both => 3,
    };
    stream.zero(&slot.stack, 4 * setup.grid.bins * pixels)?;
    stream.zero(columns, 8 * setup.grid.bins * pixels)?;
    let arguments = [
        Arg::from(&slot.counts),
        Arg::from(&slot.edges),
        Arg::from(centres),
        Arg::from(columns),
        Arg::from(&slot.stack),
        Arg::from(&slot.maps),
        Arg::from(&slot.sums),
        Arg::from(&slot.flags),
        setup.frames.into(),
        path.len().min(setup.frames).into(),
        pixels.into(),
        radius.into(),
        foreshortening.into(),
        sides.into(),
        wire.threshold.into(),
        wire.saturation.into(),
        setup.grid.range_um().0.into(),
        setup.grid.step_um.into(),
        setup.grid.bins.into(),
        scan.around().into(),
    ];
    let resolve = gpu.function(&Program::of(File::LaueWire), "wire_resolve")?;
    mark(gpu, stream, probe, "zeros")?;
    stream.launch(resolve, Shape::over(pixels, 1, 1, 128), &arguments)?;
    mark(gpu, stream, probe, "wire_resolve")
}

fn collect_wire(
    setup: &Setup<'_>,
    needs: &Needs,
    slot: &mut Slot,
    rows: Range<usize>,
    slab: &mut Slab,
) -> Result<(), DeviceError> {
    let width = needs.width;
    let pixels = rows.len() * width;
    slot.down.synchronize()?;
    let (flags, maps) = (slot.host_flags.as_ref::<u8>(pixels), slot.host_maps.as_ref::<f32>(MAPS * pixels));
    let sums = slot.host_sums.as_ref::<f64>(4 * pixels);
    for place in 0..pixels {
        let to = [rows.start + place / width, setup.columns.start + place % width];
        for (field, map) in [0, 1, 3, 5, 6].into_iter().enumerate() {
            slab.maps[map][to] = maps[field * pixels + place];
        }
        slab.flags[to] = flags[place];
        slab.sums.count(flags[place]);
        let [input, deposited, out_of_range, rejected] = [0, 1, 2, 3].map(|field| sums[field * pixels + place]);
        let account = Account { input, deposited, out_of_range, rejected };
        slab.sums.account = slab.sums.account.plus(account);
    }
    copy_stack(setup, slot.result.as_ref::<f32>(needs.bins * pixels), rows, slab);
    Ok(())
}
