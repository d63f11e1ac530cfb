//! Stripe removal of a chunk's line integrals, in place: the kernels of each method in order, on one stream.

use super::memory::STRETCH;
use super::steps::{Carve, Chunk, THREADS};
use crate::device::DeviceError;
use crate::device::gpu::{Arg, Shape};
use crate::device::kernels::{File, Program};
use crate::technique::tomography::stripe::Stripe;
use crate::technique::tomography::stripes::Stripes;
use crate::technique::tomography::titarenko::{self, Titarenko};
use crate::technique::tomography::wavelet::{self, Wavelet};

/// Most threads that sort one column.
const SORTERS: usize = 256;

/// Bytes that a method takes of the arena for `rows` rows.
pub(super) fn bytes(method: &Stripes, rows: usize, angles: usize, columns: usize) -> usize {
    let lines = rows * columns;
    let alignment = 256 * 64;
    alignment
        + match method {
            Stripes::Vo(_) => 4 * 4 * lines * angles + lines * (8 * angles.div_ceil(STRETCH) + 8 + 1 + 4 + 4),
            Stripes::Wavelet(options) => {
                let levels = levels(options, angles, columns);
                let bands: usize = levels.iter().map(|l| 2 * l.half_rows * l.half_columns).sum();
                4 * rows * (bands + between(&levels)) + 8 * rows * terms(&levels, options) * columns
            }
            Stripes::Titarenko(options) => lines * options.blocks.min(angles) * (8 + 8 + 4) + 8 * columns,
        }
}

/// Threads that sort a column of so many values.
fn sorters(angles: usize) -> usize {
    angles.next_power_of_two().clamp(32, SORTERS)
}

/// Bytes of shared memory that sorting takes.
pub(super) fn sort_bytes(angles: usize) -> usize {
    8 * sorters(angles) * keys(angles)
}

fn keys(angles: usize) -> usize {
    angles.div_ceil(SORTERS).next_power_of_two()
}

/// The launch that sorts `lines` columns.
pub(super) fn sort_shape(lines: usize, angles: usize) -> Shape {
    Shape::line(lines, sorters(angles) as u32).shared(sort_bytes(angles))
}

/// The sorting program for columns of so many values.
pub(super) fn rank_program(angles: usize) -> Program {
    Program::of(File::Rank).with("KEYS", keys(angles) as u32)
}

/// Shapes of one level of the wavelet transform.
struct Level {
    rows: usize,
    columns: usize,
    half_rows: usize,
    half_columns: usize,
}

fn levels(options: &Wavelet, angles: usize, columns: usize) -> Vec<Level> {
    let (mut rows, mut wide) = (angles, columns);
    let level = |_| {
        let (half_rows, half_columns) = (wavelet::halved(rows), wavelet::halved(wide));
        let level = Level { rows, columns: wide, half_rows, half_columns };
        (rows, wide) = (half_rows, half_columns);
        level
    };
    (0..options.levels(columns)).map(level).collect()
}

/// Values between the halving along one direction and the other, of the largest level.
fn between(levels: &[Level]) -> usize {
    levels.iter().map(|l| l.half_rows * l.columns).max().unwrap_or(0)
}

/// Terms of the Fourier sums, of the level that has most.
fn terms(levels: &[Level], options: &Wavelet) -> usize {
    levels.iter().map(|l| wavelet::term_count(l.half_rows, options.sigma)).max().unwrap_or(0)
}

impl Chunk<'_> {
    /// Stripe removal of the line integrals, in place.
    pub fn stripes(&self, method: &Stripes) -> Result<(), DeviceError> {
        let (angles, columns) = (self.setup.plan.angles, self.setup.plan.columns);
        match method {
            Stripes::Vo(options) if angles >= 3 && columns >= 5 => self.vo(options),
            Stripes::Wavelet(options) if angles >= 2 && columns >= 2 => self.wavelet(options),
            Stripes::Titarenko(options) => self.titarenko(options),
            _ => Ok(()),
        }
    }

    fn vo(&self, stripe: &Stripe) -> Result<(), DeviceError> {
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
        let arguments = [values.into(), ranked.into(), origin.into(), angles.into()];
        self.launch(&rank_program(angles), "rank_columns", sort_shape(lines, angles), &arguments)?;
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

    fn wavelet(&self, options: &Wavelet) -> Result<(), DeviceError> {
        let (angles, columns, rows) = (self.setup.plan.angles, self.setup.plan.columns, self.rows);
        let levels = levels(options, angles, columns);
        let program = Program::of(File::Wavelet);
        let mut carve = Carve { arena: self.arena, at: 0 };
        let band = |l: &Level| 4 * rows * l.half_rows * l.half_columns;
        let bands: Vec<(u64, u64)> = levels.iter().map(|l| (carve.take(band(l)), carve.take(band(l)))).collect();
        let half = carve.take(4 * rows * between(&levels));
        let sums = carve.take(8 * rows * terms(&levels, options) * columns);
        let launch = |name: &'static str, width: usize, height: usize, arguments: &[Arg]| {
            self.launch(&program, name, Shape::over(width, height, rows, THREADS), arguments)
        };
        let mut from = self.sinograms.address(0);
        for (level, &(low, high)) in levels.iter().zip(&bands) {
            let (wide, half_wide) = (level.columns, level.half_columns);
            launch("halve_rows", wide, level.half_rows, &[from.into(), half.into(), level.rows.into(), wide.into()])?;
            let arguments = [half.into(), low.into(), high.into(), wide.into(), half_wide.into()];
            launch("halve_columns", half_wide, level.half_rows, &arguments)?;
            let terms = wavelet::term_count(level.half_rows, options.sigma);
            let arguments =
                [high.into(), sums.into(), level.half_rows.into(), half_wide.into(), (options.sigma as f32).into()];
            launch("harmonics", half_wide, terms, &arguments)?;
            launch("damp", half_wide, level.half_rows, &[high.into(), sums.into(), terms.into(), half_wide.into()])?;
            from = low;
        }
        for (i, level) in levels.iter().enumerate().rev() {
            let (low, high) = bands[i];
            // Nothing is taken from the smoothest band.
            let low = if i + 1 == levels.len() { 0 } else { low };
            let arguments = [low.into(), high.into(), half.into(), level.columns.into(), level.half_columns.into()];
            launch("double_columns", level.columns, level.half_rows, &arguments)?;
            // What is taken from a level is the low band of the one above it; of the first it is the stripes themselves.
            let to = if i == 0 { self.sinograms.address(0) } else { bands[i - 1].0 };
            let arguments =
                [half.into(), to.into(), level.columns.into(), level.half_rows.into(), i32::from(i == 0).into()];
            launch("double_rows", level.columns, level.rows, &arguments)?;
        }
        Ok(())
    }

    fn titarenko(&self, options: &Titarenko) -> Result<(), DeviceError> {
        let (angles, columns, rows) = (self.setup.plan.angles, self.setup.plan.columns, self.rows);
        let blocks = options.blocks.min(angles);
        let program = Program::of(File::Titarenko);
        let mut carve = Carve { arena: self.arena, at: 0 };
        let systems = rows * blocks;
        let (means, solution) = (carve.take(8 * systems * columns), carve.take(8 * systems * columns));
        let offsets = carve.take(4 * systems * columns);
        let sinograms = self.sinograms.address(0);
        let over = |height: usize| Shape::over(columns, height, rows, 128);
        let arguments = [sinograms.into(), means.into(), angles.into(), columns.into()];
        self.launch(&program, "block_means", over(blocks), &arguments)?;
        let factors = Arg::from(&self.constants.stripe_factors);
        let arguments = [
            means.into(),
            solution.into(),
            offsets.into(),
            factors,
            systems.into(),
            columns.into(),
            options.alpha.into(),
        ];
        // A system a thread, spread over as many multiprocessors as there are warps.
        self.launch(&program, "solve_offsets", Shape::line(systems.div_ceil(32), 32), &arguments)?;
        let arguments = [sinograms.into(), offsets.into(), blocks.into(), columns.into()];
        self.launch(&program, "subtract_offsets", over(angles), &arguments)
    }
}

/// What Titarenko's system needs beside the data: its factors; one 0 for other methods.
pub(super) fn factors(method: Option<&Stripes>, columns: usize) -> Vec<f64> {
    match method {
        Some(Stripes::Titarenko(options)) => titarenko::factors(columns, options.alpha),
        _ => vec![0.0],
    }
}

/// The median's program for windows of `width` columns, and the columns one thread passes.
pub(super) fn median_program(width: usize, columns: usize) -> (Program, usize) {
    let reach = (width / 2).min(columns - 1);
    // The first window of a stretch costs as much as its width in steps.
    (Program::of(File::Median).with("WINDOW", (2 * reach + 1) as u32), (4 * width).max(64))
}
