//! The kernels of one chunk, in order, on one stream.
//!
//! Names of buffers and layouts are those of the kernel files. Nothing here waits.

use super::Setup;
use super::constants::{BUCKETS, Constants};
use super::memory::{Needs, STRETCH};
use crate::device::fft::{Direction, Layout};
use crate::device::gpu::{Arg, Buffer, Event, Shape, Stream};
use crate::device::kernels::{File, Program};
use crate::device::{DeviceError, Gpu};
use crate::technique::tomography::compute::UPSAMPLING;
use crate::technique::tomography::recipe::Algorithm;
use crate::technique::tomography::stripe::Stripe;
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
pub(super) type Probe = RefCell<Vec<(&'static str, Event)>>;

/// Threads of a block that works on one line.
const THREADS: u32 = 256;

/// A stretch of the arena.
struct Carve<'a> {
    arena: &'a Buffer,
    at: usize,
}

impl Carve<'_> {
    fn take(&mut self, bytes: usize) -> u64 {
        let address = self.arena.address(self.at);
        self.at = (self.at + bytes).next_multiple_of(256);
        address
    }
}

/// Bytes that stripe removal takes for `rows` rows.
pub(super) fn stripe_bytes(rows: usize, angles: usize, columns: usize) -> usize {
    let (lines, parts) = (rows * columns, angles.div_ceil(STRETCH));
    4 * 4 * lines * angles + lines * (8 * parts + 8 + 1 + 4 + 4) + 16 * 256
}

impl Chunk<'_> {
    fn launch(
        &self,
        program: &Program,
        name: &'static str,
        shape: Shape,
        arguments: &[Arg],
    ) -> Result<(), DeviceError> {
        self.stream.launch(self.gpu.function(program, name)?, shape, arguments)?;
        self.mark(name)
    }

    fn transform(&self, layout: Layout, from: u64, to: u64, direction: Direction) -> Result<(), DeviceError> {
        self.gpu.transform(self.stream, layout, from, to, direction)?;
        self.mark(match (layout.height, direction) {
            (1, Direction::Forward) => "transform of rows",
            (1, Direction::Inverse) => "transform of fine rows",
            _ => "transform of grids",
        })
    }

    fn mark(&self, name: &'static str) -> Result<(), DeviceError> {
        let Some(probe) = self.probe else { return Ok(()) };
        let event = self.gpu.event()?;
        self.stream.record(&event)?;
        probe.borrow_mut().push((name, event));
        Ok(())
    }

    /// Everything: counts to images.
    pub fn run(&self) -> Result<(), DeviceError> {
        self.line_integrals()?;
        if let Some(stripe) = &self.setup.stripe
            && self.setup.plan.angles >= 3
            && self.setup.plan.columns >= 5
        {
            self.stripes(stripe)?;
        }
        match self.setup.algorithm {
            Algorithm::Direct => self.direct(),
            _ => self.gridding(),
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
            self.rows.into(),
            angles.into(),
            (zinger.width / 2).into(),
            zinger.threshold.into(),
            self.counters.address(8).into(),
        ];
        let shape = Shape::over(columns, self.rows, angles, THREADS);
        self.launch(&Program::of(File::Zinger), "zinger", shape, &arguments)?;
        if setup.logarithm { logarithm(self.sinograms.address(0), row, columns) } else { Ok(()) }
    }

    /// Stripe removal of the line integrals, in place.
    pub fn stripes(&self, stripe: &Stripe) -> Result<(), DeviceError> {
        let (angles, columns, rows) = (self.setup.plan.angles, self.setup.plan.columns, self.rows);
        let (lines, parts) = (rows * columns, angles.div_ceil(STRETCH));
        let mut carve = Carve { arena: self.arena, at: 0 };
        let values = carve.take(4 * lines * angles);
        let ranked = carve.take(4 * lines * angles);
        let smooth = carve.take(4 * lines * angles);
        let origin = carve.take(4 * lines * angles);
        let rough = carve.take(8 * lines * parts);
        let factors = carve.take(8 * lines);
        let (left, right, found) = (carve.take(4 * lines), carve.take(4 * lines), carve.take(lines));
        let launch = |name: &'static str, shape: Shape, arguments: &[Arg]| {
            self.launch(&Program::of(File::Stripe), name, shape, arguments)
        };
        let transpose = |from: u64, to: u64, height: usize, width: usize| {
            let grid = [width.div_ceil(32), height.div_ceil(32), rows];
            let shape = Shape { grid, block: [32, 8, 1], shared: 0 };
            launch("transpose", shape, &[from.into(), to.into(), height.into(), width.into()])
        };
        let sinograms = self.sinograms.address(0);
        transpose(sinograms, values, angles, columns)?;
        launch(
            "roughness",
            Shape::over(columns, parts, rows, 128),
            &[sinograms.into(), rough.into(), angles.into(), columns.into(), STRETCH.into()],
        )?;
        let (sorted, line) = (8 * columns.next_power_of_two(), Shape::line(lines, THREADS));
        launch(
            "dead_columns",
            Shape::line(rows, THREADS).shared(sorted),
            &[
                rough.into(),
                parts.into(),
                columns.into(),
                stripe.large.into(),
                stripe.snr.into(),
                factors.into(),
                found.into(),
                left.into(),
                right.into(),
            ],
        )?;
        launch("fill_columns", line, &[values.into(), left.into(), right.into(), angles.into(), columns.into()])?;
        let keys = line.shared(8 * angles.next_power_of_two());
        launch("rank_columns", keys, &[values.into(), ranked.into(), origin.into(), angles.into()])?;
        self.median(ranked, smooth, stripe.large)?;
        let drop = (0.5 * stripe.drop_ratio * angles as f64) as usize;
        launch(
            "stripe_factors",
            Shape::line(lines, 128),
            &[ranked.into(), smooth.into(), factors.into(), angles.into(), drop.into()],
        )?;
        launch(
            "large_columns",
            Shape::line(rows, THREADS).shared(sorted),
            &[factors.into(), found.into(), columns.into(), stripe.snr.into()],
        )?;
        launch("scale_columns", line, &[ranked.into(), smooth.into(), factors.into(), found.into(), angles.into()])?;
        self.median(ranked, smooth, stripe.small)?;
        let back = [smooth.into(), origin.into(), values.into(), angles.into()];
        launch("unrank_columns", line.shared(4 * angles), &back)?;
        transpose(values, sinograms, columns, angles)
    }

    fn median(&self, from: u64, to: u64, width: usize) -> Result<(), DeviceError> {
        let (angles, columns) = (self.setup.plan.angles, self.setup.plan.columns);
        let (program, stretch) = median_program(width, columns);
        let shape = Shape::over(angles, columns.div_ceil(stretch), self.rows, 128);
        let arguments = [from.into(), to.into(), angles.into(), columns.into(), stretch.into()];
        self.launch(&program, "median_columns", shape, &arguments)
    }

    /// Rows to spectra `[pair, angle, padded]` at `lines`.
    fn spectra(&self, program: &Program, lines: u64) -> Result<(), DeviceError> {
        let plan = &self.setup.plan;
        let pairs = self.needs.pairs;
        let arguments = [
            Arg::from(self.sinograms),
            lines.into(),
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
            Algorithm::Direct => {
                vec![rows, Layout { stride: needs.pairs, ..Layout::lines(setup.fine(), needs.rays) }]
            }
            _ => vec![rows, Layout::squares(plan.grid, needs.pairs)],
        }
    }
}

/// The median's program for windows of `width` columns, and the columns one thread passes.
pub(super) fn median_program(width: usize, columns: usize) -> (Program, usize) {
    let reach = (width / 2).min(columns - 1);
    // The first window of a stretch costs as much as its width in steps.
    (Program::of(File::Median).with("WINDOW", (2 * reach + 1) as u32), (4 * width).max(64))
}
