//! Work of every kernel, counted from its text, and the time below which a card cannot do it.
//!
//! A kernel's roofline is the largest of: bytes over the card's memory bandwidth, floating-point operations (a fused
//! multiply-add is two) over its rate, integer operations over theirs, and bytes through shared memory or the first cache
//! over that one's bandwidth. Bytes of memory are those that must cross the bus when caches are perfect: each array read or
//! written once a kernel.

use super::Setup;
use super::frame_steps::Size;
use super::memory::{Needs, STRETCH};
use crate::technique::tomography::kernel::WIDTH;

/// What a card can do, in units a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Bytes of memory, read and written.
    pub memory: f64,
    /// Floating-point operations in single precision.
    pub flops: f64,
    /// Integer operations: compare, select, minimum.
    pub integer: f64,
    /// Bytes through shared memory and the first cache, all multiprocessors together.
    pub inner: f64,
    /// Bytes from the host.
    pub up: f64,
    /// Bytes to the host.
    pub down: f64,
}

/// Datasheet values: multiprocessors × 128 bytes a clock inside, half as many integer operations as fused multiply-adds.
pub const H200: Ceilings =
    Ceilings { memory: 4.8e12, flops: 67e12, integer: 16.7e12, inner: 33e12, up: 55e9, down: 55e9 };
/// As [`H200`], for the A100 with 40 GB.
pub const A100: Ceilings =
    Ceilings { memory: 1.555e12, flops: 19.5e12, integer: 9.7e12, inner: 19.5e12, up: 25e9, down: 25e9 };

/// Counted work.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Bytes of device memory.
    pub memory: f64,
    /// Floating-point operations.
    pub flops: f64,
    /// Integer operations.
    pub integer: f64,
    /// Bytes through shared memory or the first cache.
    pub inner: f64,
}

impl Work {
    /// The least time on a card, seconds, and what sets it.
    #[must_use]
    pub fn floor(&self, card: &Ceilings) -> (f64, &'static str) {
        [
            (self.memory / card.memory, "memory"),
            (self.flops / card.flops, "flops"),
            (self.integer / card.integer, "integer"),
            (self.inner / card.inner, "shared memory, L1"),
        ]
        .into_iter()
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap_or((0.0, "nothing"))
    }

    /// So many times as much.
    #[must_use]
    pub fn times(&self, n: f64) -> Self {
        Self { memory: n * self.memory, flops: n * self.flops, integer: n * self.integer, inner: n * self.inner }
    }
}

/// Work of a kernel on a full chunk; `None` for a name that is not counted. Medians are counted with window `window`.
pub(super) fn of(setup: &Setup, needs: &Needs, name: &str, window: usize) -> Option<Work> {
    let plan = &setup.plan;
    let f = |n: usize| n as f64;
    let (angles, columns, rows, pairs) = (f(plan.angles), f(plan.columns), f(2 * needs.pairs), f(needs.pairs));
    let (padded, size, fine) = (f(plan.padded), f(setup.size()), f(setup.fine()));
    let (held, values) = (f(needs.held) * angles * columns, rows * angles * columns);
    let (cells, pixels) = (f(plan.grid).powi(2), size * size);
    let fft = |n: f64| 5.0 * n * n.log2();
    let memory = |bytes: f64| Work { memory: bytes, ..Work::default() };
    Some(match name {
        "counts_to_floats" => memory(6.0 * held),
        "transmission" => Work { flops: 6.0 * held, ..memory(8.0 * held) },
        // Flags only, unless something is to be repaired.
        "repair" => memory(f(needs.held) * angles),
        "zinger" => {
            let window = f(2 * setup.reach() + 1).powi(2);
            Work { integer: 2.0 * window * values, inner: 4.0 * window * values, ..memory(4.0 * (held + values)) }
        }
        "minus_log" => Work { flops: 20.0 * values, ..memory(8.0 * values) },
        "transpose" => Work { inner: 8.0 * values, ..memory(8.0 * values) },
        "roughness" => Work { inner: 12.0 * values, ..memory(4.0 * values + 8.0 * values / f(STRETCH)) },
        // One block a row, most of it waiting: latency, not throughput.
        "dead_columns" | "large_columns" => memory(rows * columns * 32.0),
        // Dead columns only.
        "fill_columns" => memory(4.0 * rows * columns),
        "rank_columns" => {
            // 256 threads of `keys` keys: strides below `keys` in registers, the next five by shuffles (8 bytes a key), the
            // rest through shared memory (16). Every stride 2^s is met once for each size above it; a step is two
            // comparisons and two selections a key.
            let n = plan.angles.div_ceil(256).next_power_of_two() * 256;
            let (all, own) = (n.ilog2(), (n / 256).ilog2());
            let steps = |from: u32, to: u32| (from..to.min(all)).map(|s| f64::from(all - s)).sum::<f64>();
            let keys = rows * columns * f(n);
            let inner = keys * (8.0 * steps(own, own + 5) + 16.0 * steps(own + 5, all));
            Work { inner, integer: 4.0 * keys * steps(0, all), ..memory(12.0 * values) }
        }
        "median_columns" => {
            // A stretch of 4 windows begins with a whole window of replacements.
            let steps = values * 1.25;
            Work { integer: 4.0 * f(window) * steps, ..memory(8.0 * values) }
        }
        "stripe_factors" => memory(8.0 * values),
        "scale_columns" => memory(8.0 * values),
        "unrank_columns" => Work { inner: 8.0 * values, ..memory(12.0 * values) },
        "load_rows" => memory(4.0 * values + 8.0 * pairs * angles * padded),
        "transform of rows" => Work { flops: pairs * angles * fft(padded), ..memory(16.0 * pairs * angles * padded) },
        "filter_rows" => {
            Work { flops: angles * padded * (60.0 + 6.0 * pairs), ..memory(16.0 * pairs * angles * padded) }
        }
        "gather" => {
            // Every sample reaches WIDTH² cells; at each a weight (30 operations) and two multiply-adds a pair.
            let visits = angles * padded * f(WIDTH * WIDTH);
            Work {
                flops: visits * (30.0 + 4.0 * pairs),
                inner: visits * 8.0 * pairs,
                ..memory(8.0 * pairs * (angles * padded + cells))
            }
        }
        // Two passes over more than the caches hold.
        "transform of grids" => Work { flops: pairs * fft(cells), ..memory(32.0 * pairs * cells) },
        "finish" => memory(8.0 * pairs * pixels + 4.0 * rows * pixels),
        "extend_rows" => memory(8.0 * pairs * angles * (padded + fine)),
        "transform of fine rows" => Work { flops: pairs * angles * fft(fine), ..memory(32.0 * pairs * angles * fine) },
        "backproject" => {
            // Two points of every pair; a difference, a multiply-add and a sum for each of two slices, and the place.
            let visits = angles * pixels;
            Work {
                flops: visits * (12.0 + 8.0 * pairs),
                inner: visits * 16.0 * pairs,
                ..memory(8.0 * pairs * angles * fine + 4.0 * rows * pixels)
            }
        }
        "mask_scale" => memory(8.0 * rows * pixels),
        // Iterations. A slice's image has an empty pixel around it; an operation in double precision counts as two.
        "interleave" => memory(8.0 * values),
        "project" => {
            // Every line is crossed once: a place (nine operations), and two pixels of every slice.
            let visits = angles * columns * size;
            let traffic = memory(4.0 * rows * pixels + 8.0 * values);
            Work { flops: visits * (18.0 + 4.0 * rows), inner: visits * 8.0 * rows, ..traffic }
        }
        "spread" => {
            // A pixel meets two crossings of an angle at most, 1/|a| of them on the average over directions: 2√2/π · 2.
            let visits = angles * pixels;
            let met = 8.0 * std::f64::consts::FRAC_1_SQRT_2 / std::f64::consts::PI;
            let traffic = memory(4.0 * rows * pixels + 4.0 * values);
            Work { flops: visits * (32.0 + 2.0 * met * rows), inner: visits * 4.0 * met * rows, ..traffic }
        }
        "measure sinograms" => Work { flops: 4.0 * values, ..memory(4.0 * values) },
        "measure and weigh" => Work { flops: 5.0 * values, ..memory(8.0 * values + 4.0 * angles * columns) },
        "measure images" => Work { flops: 4.0 * rows * pixels, ..memory(4.0 * rows * pixels) },
        "combine images" => Work { flops: 7.0 * rows * pixels, ..memory(12.0 * rows * pixels) },
        "combine sinograms" => Work { flops: 7.0 * values, ..memory(12.0 * values) },
        "sirt_step" => Work { flops: 13.0 * rows * pixels, ..memory(12.0 * rows * pixels + 4.0 * pixels) },
        "clamp" | "release" => memory(8.0 * rows * pixels),
        _ => return None,
    })
}

/// Work of a kernel on a full run of frames; `None` for a name that is not counted.
pub(super) fn of_frames(size: &Size, zinger: usize, name: &str) -> Option<Work> {
    let f = |n: usize| n as f64;
    let (pixels, cells) = (2.0 * f(size.pairs) * f(size.frame()), f(size.cells()));
    let memory = |bytes: f64| Work { memory: bytes, ..Work::default() };
    Some(match name {
        "transmission" => Work { flops: 6.0 * pixels, ..memory(8.0 * pixels) },
        "repair" => memory(2.0 * f(size.pairs * size.rows)),
        "zinger" => {
            let window = f(zinger).powi(2);
            Work { integer: 2.0 * window * pixels, inner: 4.0 * window * pixels, ..memory(8.0 * pixels) }
        }
        "place_frames" | "take_frames" => memory(4.0 * pixels + 8.0 * cells),
        // Two passes over more than the caches hold.
        "transform of frames" => {
            Work { flops: 5.0 * cells * (f(size.high) * f(size.wide)).log2(), ..memory(32.0 * cells) }
        }
        // Four turned and scaled terms a cell, and a share of the gains.
        "damp_frames" => Work { flops: 40.0 * cells, ..memory(16.0 * cells) },
        _ => return None,
    })
}
