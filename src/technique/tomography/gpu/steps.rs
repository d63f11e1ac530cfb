//! The kernels of one chunk, in order, on one stream; those of stripe removal are in [`super::stripe_steps`].
//!
//! Names of buffers and layouts are those of the kernel files. Nothing here waits.

use super::Setup;
use super::constants::{BUCKETS, Constants};
use super::memory::Needs;
use crate::device::fft::{Direction, Layout};
use crate::device::gpu::{Arg, Buffer, Event, Shape, Stream};
use crate::device::kernels::{File, Program};
use crate::device::{DeviceError, Gpu};
use crate::technique::tomography::compute::UPSAMPLING;
use crate::technique::tomography::recipe::Algorithm;
use std::cell::RefCell;

/// A chunk: some rows of the slab on the device.
pub(super) struct Chunk<'a> {
    pub gpu: &'a Gpu,
    pub stream: &'a Stream,
    pub setup: &'a Setup,
    pub constants: &'a Constants,
    pub needs: Needs,
    /// Counts `[angle, held row, column]`; transmission afterwards.
    pub counts: &'a Buffer,
    /// First held row, in the slab's arrays.
    pub first_held: usize,
    /// Rows held.
    pub held: usize,
    /// Rows of them before the first that is wanted.
    pub before: usize,
    /// Rows wanted.
    pub rows: usize,
    pub sinograms: &'a Buffer,
    pub arena: &'a Buffer,
    pub flagged: &'a Buffer,
    /// Repaired, replaced, floored.
    pub counters: &'a Buffer,
    pub images: &'a Buffer,
    /// Takes an event behind every kernel, for benchmarks.
    pub probe: Option<&'a Probe>,
}

/// Names of kernels and the events behind them.
pub(crate) type Probe = RefCell<Vec<(&'static str, Event)>>;

/// Threads of a block that works on one line.
pub(super) const THREADS: u32 = 256;

/// A stretch of the arena.
pub(super) struct Carve<'a> {
    pub arena: &'a Buffer,
    pub at: usize,
}

impl Carve<'_> {
    pub fn take(&mut self, bytes: usize) -> u64 {
        let address = self.arena.address(self.at);
        self.at = (self.at + bytes).next_multiple_of(256);
        address
    }
}

/// Where kernels go, and what takes note of them.
#[derive(Clone, Copy)]
pub(super) struct Queue<'a> {
    pub gpu: &'a Gpu,
    pub stream: &'a Stream,
    pub probe: Option<&'a Probe>,
}

impl Queue<'_> {
    pub fn launch(
        &self,
        program: &Program,
        name: &'static str,
        shape: Shape,
        arguments: &[Arg],
    ) -> Result<(), DeviceError> {
        self.launch_as(name, program, name, shape, arguments)
    }

    /// Under a name of its own, for kernels that do different work.
    pub fn launch_as(
        &self,
        label: &'static str,
        program: &Program,
        name: &'static str,
        shape: Shape,
        arguments: &[Arg],
    ) -> Result<(), DeviceError> {
        self.stream.launch(self.gpu.function(program, name)?, shape, arguments)?;
        self.mark(label)
    }

    pub fn mark(&self, name: &'static str) -> Result<(), DeviceError> {
        let Some(probe) = self.probe else { return Ok(()) };
        let event = self.gpu.event()?;
        self.stream.record(&event)?;
        probe.borrow_mut().push((name, event));
        Ok(())
    }
}

impl Chunk<'_> {
    pub(super) fn queue(&self) -> Queue<'_> {
        Queue { gpu: self.gpu, stream: self.stream, probe: self.probe }
    }

    pub(super) fn launch(
        &self,
        program: &Program,
        name: &'static str,
        shape: Shape,
        arguments: &[Arg],
    ) -> Result<(), DeviceError> {
        self.queue().launch(program, name, shape, arguments)
    }

    fn transform(&self, layout: Layout, from: u64, to: u64, direction: Direction) -> Result<(), DeviceError> {
        self.gpu.transform(self.stream, layout, from, to, direction)?;
        self.mark(match (layout.height, direction) {
            (1, Direction::Forward) => "transform of rows",
            (1, Direction::Inverse) => "transform of fine rows",
            _ => "transform of grids",
        })
    }

    pub(super) fn mark(&self, name: &'static str) -> Result<(), DeviceError> {
        self.queue().mark(name)
    }

    /// Everything: counts to images.
    pub fn run(&self) -> Result<(), DeviceError> {
        self.line_integrals()?;
        if let Some(method) = &self.setup.stripe {
            self.stripes(method)?;
        }
        match (&self.setup.iterate, self.setup.algorithm) {
            (Some(iterate), _) => self.iterate(iterate).map(drop),
            (None, Algorithm::Direct) => self.direct(),
            (None, _) => self.gridding(),
        }
    }

    /// Counts to line integrals `[row, angle, column]`.
    pub fn line_integrals(&self) -> Result<(), DeviceError> {
        let Self { setup, constants, .. } = self;
        let (angles, columns) = (setup.plan.angles, setup.plan.columns);
        let lines = angles * self.held;
        let offset = 4 * self.first_held * columns;
        self.stream.zero(self.flagged, lines)?;
        let transmission = [
            Arg::from(self.counts),
            constants.dark.address(offset).into(),
            constants.flats.address(offset).into(),
            Arg::from(&constants.low),
            Arg::from(&constants.high),
            Arg::from(&constants.part),
            (setup.held * columns).into(),
            self.held.into(),
            columns.into(),
            self.before.into(),
            (self.before + self.rows).into(),
            Arg::from(self.flagged),
            self.counters.address(0).into(),
        ];
        let line = Shape::line(lines, THREADS);
        let normalise = Program::of(File::Normalise);
        self.launch(&normalise, "transmission", line, &transmission)?;
        let repair = [Arg::from(self.counts), columns.into(), Arg::from(self.flagged)];
        self.launch(&normalise, "repair", line.shared(4 * columns), &repair)?;

        let row = angles * columns;
        let logarithm = |from: u64, in_row: usize, in_angle: usize| -> Result<(), DeviceError> {
            let arguments = [
                Arg::from(from),
                in_row.into(),
                in_angle.into(),
                Arg::from(self.sinograms),
                row.into(),
                columns.into(),
                angles.into(),
                columns.into(),
                setup.floor.into(),
                i32::from(setup.logarithm).into(),
                self.counters.address(16).into(),
            ];
            self.launch(&normalise, "minus_log", Shape::line(self.rows * angles, THREADS), &arguments)
        };
        let Some(zinger) = setup.zinger else {
            return logarithm(self.counts.address(4 * self.before * columns), columns, self.held * columns);
        };
        let arguments = [
            Arg::from(self.counts),
            Arg::from(self.sinograms),
            self.held.into(),
            columns.into(),
            self.before.into(),
            row.into(),
            columns.into(),
            (zinger.width / 2).into(),
            zinger.threshold.into(),
            self.counters.address(8).into(),
        ];
        let shape = Shape::over(columns, self.rows, angles, THREADS);
        self.launch(&Program::of(File::Zinger), "zinger", shape, &arguments)?;
        if setup.logarithm { logarithm(self.sinograms.address(0), row, columns) } else { Ok(()) }
    }

    /// Rows to spectra `[pair, angle, padded]` at `lines`.
    fn spectra(&self, program: &Program, lines: u64) -> Result<(), DeviceError> {
        let plan = &self.setup.plan;
        let pairs = self.needs.pairs;
        let arguments = [
            Arg::from(self.sinograms),
            lines.into(),
            self.constants.blend.as_ref().map_or(Arg::from(0_u64), Arg::from),
            self.rows.into(),
            plan.angles.into(),
            plan.columns.into(),
            plan.padded.into(),
            i32::from(self.setup.edge()).into(),
        ];
        let shape = Shape::over(plan.padded, plan.angles, pairs, THREADS);
        self.launch(program, "load_rows", shape, &arguments)?;
        let layout = Layout::lines(plan.padded, pairs * plan.angles);
        self.transform(layout, lines, lines, Direction::Forward)
    }

    /// Line integrals to images by gridding.
    pub fn gridding(&self) -> Result<(), DeviceError> {
        let (setup, plan, pairs) = (self.setup, &self.setup.plan, self.needs.pairs);
        let program = Program::of(File::Gridding).with("PAIRS", pairs as u32);
        let mut carve = Carve { arena: self.arena, at: 0 };
        let samples = carve.take(8 * pairs * plan.angles * (plan.padded + 1));
        // The grids come when the lines have gone.
        let lines = carve.take(8 * pairs * (plan.angles * plan.padded).max(plan.grid * plan.grid));
        let grids = lines;
        self.spectra(&program, lines)?;
        self.launch(
            &program,
            "filter_rows",
            Shape::over(plan.padded + 1, plan.angles, 1, THREADS),
            &[
                lines.into(),
                samples.into(),
                Arg::from(&self.constants.rays),
                Arg::from(&self.constants.gains),
                plan.angles.into(),
                plan.padded.into(),
            ],
        )?;
        self.launch(
            &program,
            "gather",
            Shape::tiles(plan.grid, plan.grid),
            &[
                samples.into(),
                grids.into(),
                Arg::from(&self.constants.rays),
                Arg::from(&self.constants.first_ray),
                BUCKETS.into(),
                plan.rays.len().into(),
                plan.padded.into(),
                plan.grid.into(),
                ((plan.kernel.beta * std::f64::consts::LOG2_E) as f32).into(),
            ],
        )?;
        self.transform(Layout::squares(plan.grid, pairs), grids, grids, Direction::Inverse)?;
        self.launch(
            &program,
            "finish",
            Shape::over(setup.size(), setup.size(), pairs, THREADS),
            &[
                grids.into(),
                Arg::from(self.images),
                Arg::from(&self.constants.deapodise),
                self.rows.into(),
                setup.size().into(),
                plan.grid.into(),
                setup.radius2.into(),
                setup.factor.into(),
            ],
        )
    }

    /// Line integrals to images by direct back-projection.
    pub fn direct(&self) -> Result<(), DeviceError> {
        let (setup, plan, pairs) = (self.setup, &self.setup.plan, self.needs.pairs);
        let program = Program::of(File::Backproject).with("PAIRS", pairs as u32);
        let (fine, group) = (setup.fine(), self.needs.rays);
        let mut carve = Carve { arena: self.arena, at: 0 };
        let lines = carve.take(8 * pairs * plan.angles * plan.padded);
        let spectra = carve.take(8 * pairs * group * fine);
        let fine_lines = carve.take(8 * pairs * group * fine);
        self.spectra(&Program::of(File::Gridding).with("PAIRS", pairs as u32), lines)?;
        let layout = Layout { stride: pairs, ..Layout::lines(fine, group) };
        for first in (0..plan.rays.len()).step_by(group) {
            self.launch(
                &program,
                "extend_rows",
                Shape::over(fine, group, pairs, THREADS),
                &[
                    lines.into(),
                    spectra.into(),
                    Arg::from(&self.constants.rays),
                    Arg::from(&self.constants.gains),
                    first.into(),
                    plan.rays.len().into(),
                    plan.angles.into(),
                    plan.padded.into(),
                    fine.into(),
                ],
            )?;
            for pair in 0..pairs {
                let (from, to) = (spectra + (8 * pair * group * fine) as u64, fine_lines + 8 * pair as u64);
                self.transform(layout, from, to, Direction::Inverse)?;
            }
            self.launch(
                &program,
                "backproject",
                Shape::tiles(setup.size(), setup.size()),
                &[
                    fine_lines.into(),
                    Arg::from(self.images),
                    Arg::from(&self.constants.rays),
                    first.into(),
                    group.min(plan.rays.len() - first).into(),
                    self.rows.into(),
                    fine.into(),
                    setup.size().into(),
                    (setup.centre * UPSAMPLING as f64).into(),
                    i32::from(first == 0).into(),
                ],
            )?;
        }
        self.launch(
            &program,
            "mask_scale",
            Shape::over(setup.size(), setup.size(), self.rows, THREADS),
            &[Arg::from(self.images), setup.size().into(), setup.radius2.into(), setup.factor.into()],
        )
    }

    /// The transforms it will ask for, so that they are planned before anything runs.
    pub fn layouts(setup: &Setup, needs: &Needs) -> Vec<Layout> {
        let plan = &setup.plan;
        let rows = Layout::lines(plan.padded, needs.pairs * plan.angles);
        match setup.algorithm {
            Algorithm::Sirt | Algorithm::Cgls => Vec::new(),
            Algorithm::Direct => {
                vec![rows, Layout { stride: needs.pairs, ..Layout::lines(setup.fine(), needs.rays) }]
            }
            Algorithm::Gridding => vec![rows, Layout::squares(plan.grid, needs.pairs)],
        }
    }
}
