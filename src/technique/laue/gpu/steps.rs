//! The kernels of a chunk's bright pixels, batch by batch, in order, on one stream.
//!
//! Names of buffers and layouts are those of the kernel files. Nothing here waits, but for templates that have to make room.

use super::list::{self, Batch, TILE_FIELDS};
use super::memory::{self, Needs, WARPS};
use super::slot::{MAPS, Slot};
use super::store::{Shared, Templates};
use super::{Aperture, Setup};
use crate::device::gpu::{Arg, Buffer, Shape, Stream};
use crate::device::kernels::{File, Program};
use crate::device::{DeviceError, Gpu};
use crate::technique::laue::decode::DecodeSetup;
use crate::technique::tomography::gpu::Probe;
use std::ops::Range;

/// Threads of a block that works on one pixel; `THREADS` of laue_search.cu.
const THREADS: u32 = 128;
/// Offsets of a block of `laue_correlate`.
pub(super) const OFFSETS: usize = 1024;

/// Takes an event behind a kernel, for benchmarks.
pub(super) fn mark(gpu: &Gpu, stream: &Stream, probe: Option<&Probe>, name: &'static str) -> Result<(), DeviceError> {
    let Some(probe) = probe else { return Ok(()) };
    let event = gpu.event()?;
    stream.record(&event)?;
    probe.borrow_mut().push((name, event));
    Ok(())
}

/// Memory of a batch.
pub(super) struct Batches {
    pub templates: Templates,
    pub data: Buffer,
    pub averages: Buffer,
    flats: Buffer,
    pub correlation: Buffer,
    pub offsets: Buffer,
    pub found: Buffer,
    splined: Buffer,
    pub grams: Buffer,
    pub rights: Buffer,
    factors: Buffer,
    pub solutions: Buffer,
    /// Steps that each fit took.
    pub taken: Buffer,
}

impl Batches {
    pub fn new(gpu: &Gpu, needs: &Needs) -> Result<Self, DeviceError> {
        let batch = needs.batch;
        let fit = |doubles: usize| if needs.fits { 8 * doubles } else { 0 };
        Ok(Self {
            templates: Templates::new(gpu, needs)?,
            data: gpu.alloc(4 * batch * needs.stride)?,
            averages: gpu.alloc(8 * batch)?,
            flats: gpu.alloc(8 * batch)?,
            correlation: gpu.alloc(4 * batch * needs.samples.next_multiple_of(4))?,
            offsets: gpu.alloc(4 * batch)?,
            found: gpu.alloc(5 * 8 * batch)?,
            splined: gpu.alloc(fit(batch * (needs.stride + needs.window)))?,
            grams: gpu.alloc(8 * needs.squares())?,
            rights: gpu.alloc(fit(batch * needs.unknowns))?,
            factors: gpu.alloc(8 * needs.squares())?,
            // Passed to the kernels whether or not something is fitted.
            solutions: gpu.alloc(fit(batch * needs.unknowns))?,
            taken: gpu.alloc(4 * batch)?,
        })
    }

    /// Decodes the listed pixels of a slot; `pixels`: of its chunk.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &mut self,
        gpu: &Gpu,
        stream: &Stream,
        setup: &Setup<'_>,
        aperture: &Aperture<'_>,
        needs: &Needs,
        slot: &mut Slot,
        pixels: usize,
        shared: &Shared,
        probe: Option<&Probe>,
    ) -> Result<(), DeviceError> {
        let batches = std::mem::take(&mut slot.batches);
        for batch in &batches {
            let (places, fresh) = self.templates.bring(stream, &slot.list, batch)?;
            let of = |fields: usize| fields * batch.range.start..fields * batch.range.end;
            let (reals, wholes) = (of(list::REALS), of(list::WHOLES));
            batch.fields(
                &slot.list,
                &places,
                &mut slot.host_reals.as_mut::<f64>(reals.end)[reals.clone()],
                &mut slot.host_wholes.as_mut::<i32>(wholes.end)[wholes.clone()],
            );
            stream.upload_part::<f64>(&slot.host_reals, reals, &slot.reals)?;
            stream.upload_part::<i32>(&slot.host_wholes, wholes, &slot.wholes)?;
            // There are no more tiles than pixels.
            let first = TILE_FIELDS * batch.range.start;
            let tiles = first..first + TILE_FIELDS * batch.tiles.len();
            batch.tile_fields(&places, &mut slot.host_tiles.as_mut::<i32>(tiles.end)[tiles.clone()]);
            stream.upload_part::<i32>(&slot.host_tiles, tiles, &slot.tiles)?;
            mark(gpu, stream, probe, "lists and templates")?;
            let run = Run { gpu, stream, setup, aperture, needs, slot, pixels, shared, batch, on: self, probe };
            run.search(fresh)?;
            run.footprint()?;
            run.deposit()?;
        }
        slot.batches = batches;
        Ok(())
    }
}

struct Run<'a> {
    gpu: &'a Gpu,
    stream: &'a Stream,
    setup: &'a Setup<'a>,
    aperture: &'a Aperture<'a>,
    needs: &'a Needs,
    slot: &'a Slot,
    pixels: usize,
    shared: &'a Shared,
    batch: &'a Batch,
    on: &'a Batches,
    probe: Option<&'a Probe>,
}

impl Run<'_> {
    fn count(&self) -> usize {
        self.batch.range.len()
    }

    /// A double-precision field of the batch's pixels.
    fn real(&self, field: usize) -> Arg {
        let Batch { range, .. } = self.batch;
        self.slot.reals.address(8 * (list::REALS * range.start + field * range.len())).into()
    }

    fn whole(&self, field: usize) -> Arg {
        let Batch { range, .. } = self.batch;
        self.slot.wholes.address(4 * (list::WHOLES * range.start + field * range.len())).into()
    }

    fn launch(&self, file: File, name: &'static str, shape: Shape, arguments: &[Arg]) -> Result<(), DeviceError> {
        self.stream.launch(self.gpu.function(&Program::of(file), name)?, shape, arguments)?;
        mark(self.gpu, self.stream, self.probe, name)
    }

    /// Steps 4 and 5.
    fn search(&self, fresh: Range<usize>) -> Result<(), DeviceError> {
        let Self { needs, on, batch, .. } = self;
        let each = Shape::line(self.count(), THREADS);
        let resample = [
            Arg::from(&self.slot.counts),
            self.whole(list::PLACE),
            self.real(list::STEP),
            self.whole(list::LENGTH),
            self.whole(list::REVERSED),
            Arg::from(&on.data),
            Arg::from(&on.averages),
            Arg::from(&on.flats),
            self.setup.frames.into(),
            self.pixels.into(),
            needs.stride.into(),
        ];
        self.launch(File::LaueSearch, "laue_resample", each, &resample)?;
        if needs.pairs > 0 {
            self.transform(fresh)?
        } else {
            self.correlate()?
        }
        let decoding = self.aperture.decoder.setup();
        let position = [
            Arg::from(&on.correlation),
            Arg::from(&on.templates.sums),
            self.whole(list::TEMPLATE),
            self.whole(list::LENGTH),
            self.whole(list::ORIGIN),
            self.whole(list::FROM),
            self.whole(list::TO),
            Arg::from(&on.averages),
            Arg::from(&on.flats),
            Arg::from(&on.offsets),
            Arg::from(&on.found),
            needs.samples.into(),
            batch.span.into(),
            apart(decoding).into(),
        ];
        self.launch(File::LaueSearch, "laue_position", each, &position)
    }

    fn tiles(&self) -> Arg {
        self.slot.tiles.address(4 * TILE_FIELDS * self.batch.range.start).into()
    }

    /// Correlations by transforms, of new templates first.
    fn transform(&self, fresh: Range<usize>) -> Result<(), DeviceError> {
        let Self { needs, on, batch, .. } = self;
        let valid = self.aperture.valid;
        if !fresh.is_empty() {
            let arguments = [
                Arg::from(&on.templates.expected),
                Arg::from(&on.templates.spectra),
                Arg::from(&self.shared.turns),
                fresh.start.into(),
                needs.samples.into(),
                valid.into(),
            ];
            let shape = Shape { grid: [fresh.len(), needs.pairs, 1], ..Shape::line(1, 256) };
            self.launch(File::LaueTransform, "laue_spectra", shape, &arguments)?;
        }
        let arguments = [
            Arg::from(&on.templates.spectra),
            Arg::from(&on.data),
            Arg::from(&on.averages),
            self.whole(list::TEMPLATE),
            self.whole(list::LENGTH),
            self.whole(list::ORIGIN),
            self.whole(list::FROM),
            self.whole(list::TO),
            Arg::from(&self.shared.turns),
            Arg::from(&on.correlation),
            needs.stride.into(),
            batch.span.into(),
            valid.into(),
            needs.pairs.into(),
        ];
        self.launch(File::LaueTransform, "laue_transform", Shape::line(self.count(), 256), &arguments)
    }

    /// Correlations as matrix products.
    fn correlate(&self) -> Result<(), DeviceError> {
        let Self { needs, on, batch, .. } = self;
        let correlate = [
            Arg::from(&on.templates.expected),
            Arg::from(&on.data),
            Arg::from(&on.averages),
            self.whole(list::LENGTH),
            self.tiles(),
            Arg::from(&on.correlation),
            needs.samples.into(),
            needs.stride.into(),
            batch.span.into(),
        ];
        let blocks = [batch.tiles.len(), batch.span.div_ceil(OFFSETS).max(1), 1];
        let shape = Shape { grid: blocks, ..Shape::line(1, THREADS) };
        self.launch(File::LaueSearch, "laue_correlate", shape, &correlate)
    }

    /// Steps 6 and 7 up to the splines' coefficients.
    fn footprint(&self) -> Result<(), DeviceError> {
        if self.aperture.energies.is_empty() {
            return if self.needs.fits { self.fit() } else { Ok(()) };
        }
        // The shape that energies are compared with is fitted with transmission linear in the cover.
        if self.needs.fits {
            self.fit()?;
        }
        self.energy()?;
        if self.needs.fits { self.fit() } else { Ok(()) }
    }

    fn fit(&self) -> Result<(), DeviceError> {
        let Self { needs, on, aperture, .. } = self;
        let [normal, _, nnls, _] = memory::shared(self.batch.longest, aperture.window, aperture.unknowns());
        let arguments = [
            Arg::from(&on.templates.covers),
            Arg::from(&on.data),
            self.whole(list::TEMPLATE),
            self.whole(list::LENGTH),
            Arg::from(&on.offsets),
            self.real(list::TAU),
            Arg::from(&self.shared.basis),
            Arg::from(&on.splined),
            Arg::from(&on.grams),
            Arg::from(&on.rights),
            needs.samples.into(),
            needs.stride.into(),
            aperture.window.into(),
            aperture.support.into(),
            aperture.splines.into(),
            aperture.knots.into(),
        ];
        let shape = Shape::line(self.count(), THREADS).shared(normal);
        self.launch(File::LaueFootprint, "laue_normal", shape, &arguments)?;
        let arguments = [
            Arg::from(&on.grams),
            Arg::from(&on.rights),
            Arg::from(&on.offsets),
            Arg::from(&on.factors),
            Arg::from(&on.solutions),
            Arg::from(&on.taken),
            self.count().into(),
            aperture.unknowns().into(),
        ];
        let shape = Shape::line(self.count().div_ceil(WARPS), 32 * WARPS as u32).shared(nnls);
        self.launch(File::LaueFootprint, "laue_nnls", shape, &arguments)
    }

    /// Where the batch's field of the maps begins.
    fn map(&self, field: usize) -> Arg {
        let Batch { range, .. } = self.batch;
        self.slot.maps.address(4 * (MAPS * range.start + field * range.len())).into()
    }

    fn energy(&self) -> Result<(), DeviceError> {
        let Self { needs, on, aperture, .. } = self;
        let [_, energy, ..] = memory::shared(self.batch.longest, aperture.window, aperture.unknowns());
        let background = aperture.decoder.setup().background;
        let arguments = [
            Arg::from(&on.templates.covers),
            Arg::from(&on.data),
            self.whole(list::TEMPLATE),
            self.whole(list::LENGTH),
            Arg::from(&on.offsets),
            self.real(list::PATH),
            Arg::from(&on.templates.widths),
            if needs.fits { Arg::from(&on.solutions) } else { 0_u64.into() },
            Arg::from(&self.shared.basis),
            Arg::from(&self.shared.energies),
            Arg::from(&self.shared.attenuations),
            self.real(list::TAU),
            self.map(4),
            aperture.energies.len().into(),
            i32::from(background.is_some()).into(),
            background.unwrap_or(0.0).into(),
            needs.samples.into(),
            needs.stride.into(),
            aperture.window.into(),
            aperture.support.into(),
            aperture.splines.into(),
            aperture.knots.into(),
        ];
        let shape = Shape::line(self.count(), THREADS).shared(energy);
        self.launch(File::LaueDepth, "laue_energy", shape, &arguments)
    }

    /// Steps 7, to its end, and 8.
    fn deposit(&self) -> Result<(), DeviceError> {
        let Self { needs, on, aperture, setup, .. } = self;
        let decoding = aperture.decoder.setup();
        let [.., deposit] = memory::shared(self.batch.longest, aperture.window, aperture.unknowns());
        let Batch { range, .. } = self.batch;
        let sums = |field: usize| Arg::from(self.slot.sums.address(8 * (2 * range.start + field * range.len())));
        let arguments = [
            Arg::from(&on.data),
            Arg::from(&on.splined),
            Arg::from(&on.solutions),
            Arg::from(&self.shared.basis),
            self.whole(list::PLACE),
            self.whole(list::TEMPLATE),
            self.whole(list::LENGTH),
            Arg::from(&on.offsets),
            Arg::from(&on.found),
            self.real(list::MEAN),
            Arg::from(&on.templates.widths),
            self.real(list::TAU),
            self.real(list::DEPTHS),
            self.real(list::BEHIND),
            Arg::from(&self.slot.stack),
            sums(0),
            sums(1),
            self.map(0),
            self.slot.bits.address(4 * range.start).into(),
            setup.grid.range_um().0.into(),
            setup.grid.step_um.into(),
            setup.grid.bins.into(),
            self.pixels.into(),
            decoding.mask.resolution_um.into(),
            decoding.position.margin.into(),
            apart(decoding).into(),
            i32::from(needs.fits).into(),
            setup.frames.into(),
            needs.samples.into(),
            needs.stride.into(),
            aperture.window.into(),
            aperture.support.into(),
            aperture.splines.into(),
            aperture.knots.into(),
        ];
        let shape = Shape::line(self.count(), THREADS).shared(deposit);
        self.launch(File::LaueDepth, "laue_deposit", shape, &arguments)
    }
}

/// Offsets at which a rival begins.
fn apart(decoding: &DecodeSetup) -> usize {
    (decoding.position.apart_um / decoding.mask.resolution_um).round() as usize
}
