//! How fast frames become transmission, kernel by kernel: flats and darks, zingers, Paganin's filter.

use super::bench::{Row, timed};
use super::check_frames::OPTICS;
use super::constants::put;
use super::cost;
use super::frame_steps::{Batch, Shared, Size};
use super::steps::{Probe, Queue};
use crate::device::{DeviceError, Gpu};
use crate::technique::tomography::chain::Steps;
use crate::technique::tomography::normalize::Flat;
use crate::technique::tomography::paganin::{self, Table};
use ndarray::Array2;

/// Width of the zinger window.
const ZINGER: usize = 3;
/// Kernels in the order in which they run.
const ORDER: [&str; 8] = [
    "transmission",
    "repair",
    "zinger",
    "place_frames",
    "transform of frames",
    "damp_frames",
    "transform of frames",
    "take_frames",
];

fn sizes(rows: usize, columns: usize, pairs: usize) -> Result<(Size, [Table; 2]), DeviceError> {
    let tables = paganin::tables(rows, columns, &OPTICS).map_err(|e| DeviceError::Unsupported(e.to_string()))?;
    let (high, wide) = (tables[0].length, tables[1].length);
    Ok((Size { pairs, rows, columns, high, wide }, tables))
}

/// Counted work of `pairs` pairs of frames, kernel by kernel; needs no card.
///
/// # Errors
/// Frames that cannot be.
pub fn counted(rows: usize, columns: usize, pairs: usize) -> Result<Vec<Row>, DeviceError> {
    let (size, _) = sizes(rows, columns, pairs)?;
    let all = ORDER.iter().filter_map(|name| Some(((*name).to_owned(), cost::of_frames(&size, ZINGER, name)?)));
    Ok(Row::collect(all))
}

/// Times every kernel of `pairs` pairs of frames, the best of `repeats`.
///
/// # Errors
/// The device fails.
pub fn kernels(gpu: &Gpu, rows: usize, columns: usize, pairs: usize, repeats: usize) -> Result<Vec<Row>, DeviceError> {
    gpu.bind()?;
    let (size, tables) = sizes(rows, columns, pairs)?;
    let stream = gpu.stream()?;
    let (dark, count) = (Array2::from_elem((rows, columns), 100.0), 2 * pairs);
    let flats = [Flat { at: 0.0, mean: Array2::from_elem((rows, columns), 4000.0) }];
    let steps = Steps {
        dark: dark.view(),
        flats: &flats,
        first: 0,
        zinger: None,
        optics: Some(OPTICS),
        floating: false,
        at: "benchmark",
    };
    let shared = Shared::put(gpu, &stream, count, &steps, &tables)?;
    let one: Vec<f32> = (0..size.frame()).map(|i| 1000.0 + ((i * 2_654_435_761) % 3000) as f32).collect();
    let counts = put(gpu, &stream, &one.iter().copied().cycle().take(size.pixels()).collect::<Vec<_>>())?;
    let (cells, out) = (gpu.alloc(8 * size.cells())?, gpu.alloc(4 * size.pixels())?);
    let (flagged, counters) = (gpu.alloc(count * rows)?, gpu.alloc(16)?);
    let run = |probe: &Probe| {
        Batch {
            queue: Queue { gpu, stream: &stream, probe: Some(probe) },
            size,
            shared: &shared,
            zinger: Some((ZINGER / 2, 0.2)),
            frames: 0..count,
            counts: &counts,
            cells: &cells,
            flagged: &flagged,
            counters: &counters,
            out: &out,
        }
        .run()
    };
    timed(gpu, &stream, counted(rows, columns, pairs)?, repeats, |name| name.to_owned(), run)
}
