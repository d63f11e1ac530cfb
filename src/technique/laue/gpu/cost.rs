//! Work of every Laue kernel, counted from its text; rooflines are those of [`crate::technique::tomography::gpu::cost`].
//!
//! An operation in double precision counts as two in single precision, which is what it costs on data-centre cards; a division or
//! root in it as eight operations. Bytes of memory are those that must cross the bus when caches are perfect.

use super::memory::POINTS;
use crate::technique::tomography::gpu::cost::Work;

/// A point, as kernels see it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scan {
    /// Pixels that are decoded.
    pub pixels: f64,
    /// Frames.
    pub frames: f64,
    /// Samples of a resampled measurement.
    pub length: f64,
    /// Offsets that are looked at.
    pub offsets: f64,
    /// Offsets that one transform gives.
    pub valid: f64,
    /// Samples of the window, cells of a spline, splines, cells between them.
    pub window: f64,
    /// The same.
    pub support: f64,
    /// The same.
    pub splines: f64,
    /// The same.
    pub knots: f64,
    /// Depth bins.
    pub bins: f64,
}

/// Steps that a fit takes, and coefficients that are not 0 on the way: means over synthetic pixels of 60 to 6000 counts, the
/// default footprint.
pub const STEPS: f64 = 21.0;
/// The same.
pub const PASSIVE: f64 = 10.0;
/// Bins that a footprint reaches, and cells of it that are not 0.
const REACHED: f64 = 60.0;
/// The same.
const CELLS: f64 = 40.0;
/// Bins over which a difference of a wire scan spreads.
const SPREAD: f64 = 8.0;
/// What a division or a root costs.
const DIVISION: f64 = 8.0;

/// Work of a kernel on all pixels of a scan; `None` for a name that is not counted.
#[must_use]
pub fn of(scan: &Scan, name: &str) -> Option<Work> {
    let s = scan;
    let n = s.splines + 1.0;
    let double = |operations: f64| 2.0 * operations;
    let one = match name {
        "counts_to_floats" => Work { memory: 6.0 * s.frames, ..Work::default() },
        "laue_select" => Work { memory: 4.0 * s.frames + 9.0, flops: double(s.frames), ..Work::default() },
        "laue_resample" => Work {
            memory: 4.0 * (s.frames + s.length),
            flops: double(s.length * (DIVISION + 10.0)),
            inner: 16.0 * s.length,
            ..Work::default()
        },
        "laue_transform" => {
            // One transform forward, one back for every two stretches of the template. A transform is 3 · 256
            // transforms of sixteen (128 sums and 9 products of complex numbers) and two products with roots of unity for
            // every point; all points go through shared memory twice, there and back.
            let points = POINTS as f64;
            let pairs = (s.offsets / (2.0 * s.valid)).ceil();
            let transform = 3.0 * 256.0 * (128.0 + 9.0 * 6.0) + 2.0 * 6.0 * points;
            let moved = points * (2.0 * 16.0 + 2.0 * 8.0);
            Work {
                memory: 4.0 * (s.length + s.offsets),
                flops: (1.0 + pairs) * transform + pairs * 6.0 * points,
                inner: (1.0 + pairs) * moved + pairs * 8.0 * points,
                ..Work::default()
            }
        }
        // The same as a matrix product. For 512 multiply-adds a thread reads eight values of the template and eight times eight of the measurements.
        "laue_correlate" => Work {
            memory: 4.0 * (s.length + s.offsets),
            flops: 2.0 * s.length * s.offsets,
            inner: s.length * s.offsets * 288.0 / 512.0,
            ..Work::default()
        },
        // Every offset twice: for the best, then for its best rival.
        "laue_position" => Work {
            memory: 8.0 * s.offsets,
            flops: double(2.0 * s.offsets * (2.0 * DIVISION + 8.0)),
            inner: 2.0 * s.offsets * 36.0,
            ..Work::default()
        },
        "laue_normal" => {
            let products = (s.length + s.window) * s.support + 2.0 * s.splines * s.length + s.splines.powi(2) * s.knots;
            Work {
                memory: 8.0 * (n * n + n + s.length + s.window) + 4.0 * s.length,
                flops: double(2.0 * products),
                inner: 16.0 * products,
                ..Work::default()
            }
        }
        "laue_nnls" => {
            // The gradient from the passive rows, a row of the factor, and back.
            let products = STEPS * (PASSIVE * n + 1.5 * PASSIVE * PASSIVE);
            Work {
                memory: 8.0 * (PASSIVE * n + 2.0 * PASSIVE * PASSIVE + 2.0 * n),
                flops: double(2.0 * products + STEPS * PASSIVE * DIVISION),
                inner: 16.0 * products,
                ..Work::default()
            }
        }
        "laue_deposit" => Work {
            // Each bin that is reached is a sector of its own.
            memory: 8.0 * (s.length + s.window) + 4.0 * s.length + 32.0 * REACHED,
            flops: double(2.0 * s.length * PASSIVE + CELLS * 6.0 * DIVISION + REACHED * CELLS * 2.0 * DIVISION),
            integer: (s.length + s.window) * s.splines * 2.0 + REACHED * s.window * 4.0,
            inner: 8.0 * (s.length + s.window) * s.splines + 24.0 * REACHED * s.window,
        },
        "zeros" => Work { memory: 4.0 * s.bins, ..Work::default() },
        "wire_resolve" => {
            // Four tangents a difference, each with two roots and three divisions, and the bins between them.
            let tangents = 4.0 * (5.0 * DIVISION + 25.0);
            let spread = SPREAD * (2.0 * DIVISION + 12.0);
            Work {
                memory: 8.0 * s.frames + 8.0 * s.bins * 3.0 + 4.0 * s.bins + 120.0,
                flops: double(s.frames * (tangents + spread)),
                inner: 8.0 * s.frames + s.frames * SPREAD * 16.0,
                ..Work::default()
            }
        }
        _ => return None,
    };
    Some(one.times(s.pixels))
}
