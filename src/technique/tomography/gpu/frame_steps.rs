//! The kernels of a run of frames, in order, on one stream: counts to transmission, then Paganin's filter.
//!
//! Names of buffers and layouts are those of the kernel files. Nothing here waits.

use super::constants::put;
use super::steps::{Queue, THREADS};
use crate::device::fft::{Direction, Layout};
use crate::device::gpu::{Arg, Buffer, Shape, Stream};
use crate::device::kernels::{File, Program};
use crate::device::{DeviceError, Gpu};
use crate::technique::tomography::chain::Steps;
use crate::technique::tomography::normalize;
use crate::technique::tomography::paganin::Table;
use std::ops::Range;

/// Sizes of a run of frames on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Pairs of frames at a time.
    pub pairs: usize,
    pub rows: usize,
    pub columns: usize,
    /// Cells of a transformed frame, down and across.
    pub high: usize,
    pub wide: usize,
}

impl Size {
    pub fn frame(&self) -> usize {
        self.rows * self.columns
    }

    /// Values of a run of frames.
    pub fn pixels(&self) -> usize {
        2 * self.pairs * self.frame()
    }

    pub fn cells(&self) -> usize {
        self.pairs * self.high * self.wide
    }

    pub fn layout(&self) -> Layout {
        Layout { height: self.high, width: self.wide, batch: self.pairs, stride: 1 }
    }

    /// Two slots in and out, clean counts, cells, and as much again for cuFFT.
    pub fn bytes(&self) -> usize {
        20 * self.pixels() + 16 * self.cells()
    }
}

/// What all frames share, on the device.
pub(super) struct Shared {
    dark: Buffer,
    flats: Buffer,
    low: Buffer,
    high: Buffer,
    part: Buffer,
    down: Tables,
    across: Tables,
}

struct Tables {
    sources: Buffer,
    targets: Buffer,
    squares: Buffer,
    turns: Buffer,
}

impl Tables {
    fn put(gpu: &Gpu, stream: &Stream, table: &Table) -> Result<Self, DeviceError> {
        Ok(Self {
            sources: put(gpu, stream, &table.sources)?,
            targets: put(gpu, stream, &table.targets)?,
            squares: put(gpu, stream, &table.squares)?,
            turns: put(gpu, stream, &table.turns)?,
        })
    }
}

impl Shared {
    pub fn put(
        gpu: &Gpu,
        stream: &Stream,
        count: usize,
        steps: &Steps<'_>,
        tables: &[Table; 2],
    ) -> Result<Self, DeviceError> {
        let flats: Vec<f32> = steps.flats.iter().flat_map(|f| f.mean.iter().copied()).collect();
        let dark: Vec<f32> = steps.dark.iter().copied().collect();
        let at = |frame: usize| normalize::bracket(steps.flats, (steps.first + frame) as f64);
        let places: Vec<_> = (0..count).map(at).collect();
        Ok(Self {
            dark: put(gpu, stream, &dark)?,
            flats: put(gpu, stream, &flats)?,
            low: put(gpu, stream, &places.iter().map(|p| p.0 as i32).collect::<Vec<_>>())?,
            high: put(gpu, stream, &places.iter().map(|p| p.1 as i32).collect::<Vec<_>>())?,
            part: put(gpu, stream, &places.iter().map(|p| p.2).collect::<Vec<_>>())?,
            down: Tables::put(gpu, stream, &tables[0])?,
            across: Tables::put(gpu, stream, &tables[1])?,
        })
    }
}

/// Some frames on the device. Nothing here waits.
pub(super) struct Batch<'a> {
    pub queue: Queue<'a>,
    pub size: Size,
    pub shared: &'a Shared,
    /// Half width of the zinger window and its threshold.
    pub zinger: Option<(usize, f32)>,
    /// First of them, and how many.
    pub frames: Range<usize>,
    /// Counts; transmission afterwards, zingers included.
    pub counts: &'a Buffer,
    pub cells: &'a Buffer,
    pub flagged: &'a Buffer,
    /// Repaired, replaced.
    pub counters: &'a Buffer,
    pub out: &'a Buffer,
}

impl Batch<'_> {
    /// Everything: counts to transmission.
    pub fn run(&self) -> Result<(), DeviceError> {
        let Self { size, shared, .. } = self;
        let (first, lines) = (4 * self.frames.start, self.frames.len() * size.rows);
        self.queue.stream.zero(self.flagged, lines)?;
        let arguments = [
            Arg::from(self.counts),
            Arg::from(&shared.dark),
            Arg::from(&shared.flats),
            shared.low.address(first).into(),
            shared.high.address(first).into(),
            shared.part.address(first).into(),
            size.frame().into(),
            size.rows.into(),
            size.columns.into(),
            0_u32.into(),
            size.rows.into(),
            Arg::from(self.flagged),
            self.counters.address(0).into(),
        ];
        let normalise = Program::of(File::Normalise);
        let line = Shape::line(lines, THREADS);
        self.queue.launch(&normalise, "transmission", line, &arguments)?;
        let arguments = [Arg::from(self.counts), size.columns.into(), Arg::from(self.flagged)];
        self.queue.launch(&normalise, "repair", line.shared(4 * size.columns), &arguments)?;
        let mut clean = self.counts;
        if let Some((reach, threshold)) = self.zinger {
            let arguments = [
                Arg::from(self.counts),
                Arg::from(self.out),
                size.rows.into(),
                size.columns.into(),
                0_u32.into(),
                size.columns.into(),
                size.frame().into(),
                reach.into(),
                threshold.into(),
                self.counters.address(8).into(),
            ];
            let shape = Shape::over(size.columns, size.rows, self.frames.len(), THREADS);
            self.queue.launch(&Program::of(File::Zinger), "zinger", shape, &arguments)?;
            clean = self.out;
        }
        self.retrieve(clean)
    }

    /// Paganin's filter, from `frames` to [`Self::out`], which may be the same.
    pub fn retrieve(&self, frames: &Buffer) -> Result<(), DeviceError> {
        let Self { queue, size, shared: Shared { down, across, .. }, .. } = self;
        let program = Program::of(File::Paganin);
        let arguments = [
            Arg::from(frames),
            Arg::from(self.cells),
            Arg::from(&down.sources),
            Arg::from(&across.sources),
            self.frames.len().into(),
            size.rows.into(),
            size.columns.into(),
            size.wide.into(),
        ];
        queue.launch(&program, "place_frames", Shape::over(size.wide, size.high, size.pairs, THREADS), &arguments)?;
        self.transform(Direction::Forward)?;
        let arguments = [
            Arg::from(self.cells),
            Arg::from(&down.squares),
            Arg::from(&across.squares),
            Arg::from(&down.turns),
            Arg::from(&across.turns),
            size.high.into(),
            size.wide.into(),
            (1.0 / (size.wide as f32 * size.high as f32)).into(),
        ];
        let shape = Shape::over(size.wide / 2 + 1, size.high / 2 + 1, size.pairs, THREADS);
        queue.launch(&program, "damp_frames", shape, &arguments)?;
        self.transform(Direction::Inverse)?;
        let arguments = [
            Arg::from(self.cells),
            Arg::from(self.out),
            Arg::from(&down.targets),
            Arg::from(&across.targets),
            self.frames.len().into(),
            size.columns.into(),
            size.high.into(),
            size.wide.into(),
        ];
        queue.launch(&program, "take_frames", Shape::over(size.columns, size.rows, size.pairs, THREADS), &arguments)
    }

    fn transform(&self, direction: Direction) -> Result<(), DeviceError> {
        let Queue { gpu, stream, .. } = self.queue;
        let cells = self.cells.address(0);
        gpu.transform(stream, self.size.layout(), cells, cells, direction)?;
        self.queue.mark("transform of frames")
    }
}
