//! Paganin's filter, and the way from counts to transmission frame by frame, against their references on the CPU.

use super::check::{Checked, Finding, Rig, Size, differing, relative};
use super::constants::put;
use super::frame_steps::{self, Batch};
use super::frames::{self, Framed};
use super::steps::Queue;
use crate::device::{DeviceError, Gpu};
use crate::technique::tomography::chain::{self, Steps};
use crate::technique::tomography::error::TomographyError;
use crate::technique::tomography::normalize::Flat;
use crate::technique::tomography::paganin::{self, Optics};
use crate::technique::tomography::zinger::Zinger;
use ndarray::{Array2, Array3};
use rand::Rng;

/// A filter that reaches 6.5 pixels.
pub(super) const OPTICS: Optics = Optics { energy_kev: 25.0, distance_mm: 60.0, pixel_size_um: 1.3, delta_beta: 300.0 };

/// Phases of twelve frames `rows × columns`, as many at a time as fit the device: whether it took them, and how far they are
/// from the CPU's, or, if it did not, how many values it touched.
///
/// # Errors
/// The device fails.
pub fn plain_frames(gpu: &Gpu, rows: usize, columns: usize) -> Result<(bool, Finding), DeviceError> {
    gpu.bind()?;
    let count = 12;
    let data = Array3::from_shape_fn((count, rows, columns), |(f, y, x)| 1.0 + ((f * 5 + y * 3 + x) % 7) as f32);
    let (dark, flats) =
        (Array2::zeros((rows, columns)), [Flat { at: 0.0, mean: Array2::from_elem((rows, columns), 8.0) }]);
    let (optics, at) = (Some(OPTICS), "check");
    let steps = Steps { dark: dark.view(), flats: &flats, first: 0, zinger: None, optics, floating: false, at };
    let failed = |e: crate::technique::Fault| DeviceError::Unsupported(e.to_string());
    let (mut got, mut want) = (data.clone(), data.clone());
    if let Framed::Declined(why) = frames::transmission(gpu, &mut got, &steps).map_err(failed)? {
        let touched = got.iter().zip(&data).filter(|(a, b)| a != b).count();
        return Ok((false, Finding { what: format!("values touched ({why})"), error: touched as f64, allowed: 0.0 }));
    }
    chain::transmission(&mut want, &steps).map_err(failed)?;
    Ok((true, Finding { what: "plain frames: relative L2".to_owned(), error: relative(&got, &want), allowed: 3e-6 }))
}

impl Rig<'_> {
    /// Sides of any length: transforms have others.
    pub(super) fn paganin(&mut self) -> Checked {
        let refused = |e: TomographyError| DeviceError::Unsupported(e.to_string());
        let Size { columns, .. } = self.size;
        for (count, rows, columns) in [(5, columns / 2 + 1, columns), (2, 2, columns + 3), (3, 33, 7)] {
            let frames = Array3::from_shape_fn((count, rows, columns), |_| self.rng.random_range(0.1..1.2_f32));
            let tables = paganin::tables(rows, columns, &OPTICS).map_err(refused)?;
            let pairs = count.div_ceil(2);
            let (high, wide) = (tables[0].length, tables[1].length);
            let size = frame_steps::Size { pairs, rows, columns, high, wide };
            let flats = [Flat { at: 0.0, mean: Array2::ones((rows, columns)) }];
            let dark = Array2::zeros((rows, columns));
            let (optics, at) = (Some(OPTICS), "check");
            let steps = Steps { dark: dark.view(), flats: &flats, first: 0, zinger: None, optics, floating: false, at };
            let shared = frame_steps::Shared::put(self.gpu, &self.stream, count, &steps, &tables)?;
            let input = put(self.gpu, &self.stream, &frames.iter().copied().collect::<Vec<_>>())?;
            let (cells, out) = (self.gpu.alloc(8 * size.cells())?, self.gpu.alloc(8 * pairs * size.frame())?);
            let unused = self.gpu.alloc(16)?;
            let batch = Batch {
                queue: Queue { gpu: self.gpu, stream: &self.stream, probe: None },
                size,
                shared: &shared,
                zinger: None,
                frames: 0..count,
                counts: &input,
                cells: &cells,
                flagged: &unused,
                counters: &unused,
                out: &out,
            };
            batch.retrieve(&input)?;
            let got = self.get::<f32>(&out, frames.len())?;
            let mut want = frames.clone();
            paganin::retrieve(want.view_mut(), &OPTICS).map_err(refused)?;
            // Four transforms in single precision on either side, 6e-8 √(2 log₂ n) each.
            let title = format!("Paganin, {count} frames of {rows} × {columns}");
            self.find(format!("{title}: relative L2"), relative(&got, &want), 2e-6);
            let moved = relative(&want, &frames);
            self.find(format!("{title}: the reference changes its input"), f64::from(u8::from(moved < 0.1)), 0.0);
        }
        Ok(())
    }

    /// Counts to transmission, in several runs of frames.
    pub(super) fn frames(&mut self) -> Checked {
        let Size { columns, .. } = self.size;
        let (count, rows) = (9, 17);
        let rng = &mut self.rng;
        let dark = Array2::from_shape_fn((rows, columns), |_| rng.random_range(90.0..110.0_f32));
        let mut flat = |at: f64, level: f32| {
            let mean = Array2::from_shape_fn((rows, columns), |_| level + rng.random_range(-200.0..200.0_f32));
            Flat { at, mean }
        };
        let mut flats = [flat(3.0, 4000.0), flat(8.0, 3500.0)];
        flats.iter_mut().for_each(|f| f.mean[[rows / 2, columns / 3]] = 0.0);
        for (whole, zinger, most) in [
            (true, None, 1),
            (true, Some(Zinger { width: 3, threshold: 0.5 }), 2),
            (false, Some(Zinger { width: 5, threshold: 0.5 }), 1),
            (false, None, 8),
        ] {
            let data = Array3::from_shape_fn((count, rows, columns), |_| {
                let v = if self.rng.random_bool(0.01) { 9000.0 } else { self.rng.random_range(800.0..4000.0_f32) };
                if whole { v.round() } else { v }
            });
            let (mut got, mut want) = (data.clone(), data);
            if !whole {
                (got[[2, 1, 3]], want[[2, 1, 3]]) = (f32::NAN, f32::NAN);
            }
            // A run in the middle of a scan: its flats are those of projections 2 to 10.
            let (first, optics, floating, at) = (2, Some(OPTICS), !whole, "check");
            let steps = Steps { dark: dark.view(), flats: &flats, first, zinger, optics, floating, at };
            let failed = |e: crate::technique::Fault| DeviceError::Unsupported(e.to_string());
            let counted = match frames::in_runs(self.gpu, &mut got, &steps, most).map_err(failed)? {
                Framed::Done(counted) => counted,
                Framed::Declined(why) => return Err(DeviceError::Unsupported(why)),
            };
            let expected = chain::transmission(&mut want, &steps).map_err(failed)?;
            // Quotients rounded alike but for their last bit, then the filter's 2e-6; a zinger judged otherwise shows as 1e-3.
            let title =
                format!("frames to transmission, zinger {}, {most} pairs at a time", zinger.map_or(0, |z| z.width));
            self.find(format!("{title}: relative L2"), relative(&got, &want), 3e-6);
            let counters = [counted, expected].map(|c| [c.interpolated, c.zingers, c.floored, c.non_finite]);
            self.find(format!("{title}: counters"), differing(&counters[0], &counters[1]), 0.0);
        }
        Ok(())
    }
}
