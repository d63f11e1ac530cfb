//! Whole turns with the axis near a side of the detector: an image nearly twice as wide as the detector.
//!
//! With the axis at `c`, a projection sees the columns beyond it on one side and little on the other; the opposite
//! projection, mirrored, sees the rest: `p_{θ+π}(u) = p_θ(2c − u)`. Both see the columns within `h` of the axis, `h` the distance to
//! the near end of the detector. There they are blended: every row is multiplied by `2w(u)`, with
//! `w = ½ (1 ± cos(π (d + h)/2h))` at distance `d` from the axis, 1 on the far side and 0 at the near end, so that
//! `w(c + d) + w(c − d) = 1`.
//!
//! Nothing is put together on a common grid, which would interpolate: filtering is linear and symmetric, so the sum over
//! the whole turn of back-projected weighted rows *is* the back-projection of the joined ones. The angular weights share a
//! direction between opposite projections, hence the 2. Angles need not repeat after half a turn.

use ndarray::{ArrayViewMut3, Axis};
use rayon::prelude::*;

use super::convention::middle;

/// How far from the detector's middle, in widths, an axis makes a scan an offset one.
pub const ASIDE: f64 = 0.1;

/// Missing directions up to this angle do not make a turn less than whole, radians.
const GAP: f64 = 3.0 * std::f64::consts::PI / 180.0;

/// Whether these angles (radians) go around a whole turn: no gap between neighbouring directions is wider than two steps, or
/// than 3°. So a part of a turn is none, whatever the first and the last angle are.
#[must_use]
pub fn whole_turn(angles: &[f64]) -> bool {
    if angles.len() < 8 {
        return false;
    }
    let mut around: Vec<f64> = angles.iter().map(|a| a.rem_euclid(std::f64::consts::TAU)).collect();
    around.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (around.first(), around.last()) else { return false };
    let ends = first + std::f64::consts::TAU - last;
    let gap = around.windows(2).map(|pair| pair[1] - pair[0]).fold(ends, f64::max);
    let step = std::f64::consts::TAU / angles.len() as f64;
    gap <= (2.0 * step).max(GAP) * (1.0 + 1e-9)
}

/// Edge of the image that holds everything seen from an axis at `c` of `columns`.
#[must_use]
pub fn image_size(columns: usize, c: f64) -> usize {
    let far = c.max(columns as f64 - 1.0 - c) + 0.5;
    ((2.0 * far).round() as usize).clamp(columns, 2 * columns)
}

/// `2w(u)` for every column; all ones when the axis lies in the middle.
#[must_use]
pub fn weights(columns: usize, c: f64) -> Vec<f32> {
    // The axis is mirrored to the right half, where rows end soon after it.
    let mirrored = c < middle(columns);
    let axis = if mirrored { columns as f64 - 1.0 - c } else { c };
    let h = columns as f64 - 0.5 - axis;
    let weight = |u: usize| {
        let u = if mirrored { columns - 1 - u } else { u };
        let d = u as f64 - axis;
        if h <= 0.0 || d <= -h {
            2.0
        } else if d >= h {
            0.0
        } else {
            (1.0 + (std::f64::consts::PI * (d + h) / (2.0 * h)).cos()) as f32
        }
    };
    (0..columns).map(weight).collect()
}

/// Multiplies every row of `[row, angle, column]` by its weights.
pub fn blend(mut sinograms: ArrayViewMut3<'_, f32>, c: f64) {
    let weights = weights(sinograms.len_of(Axis(2)), c);
    let slices: Vec<_> = sinograms.axis_iter_mut(Axis(1)).collect();
    slices.into_par_iter().for_each(|mut lines| {
        for mut row in lines.rows_mut() {
            row.iter_mut().zip(&weights).for_each(|(v, w)| *v *= w);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::technique::tomography::gridding::{Geometry, Plan};
    use crate::technique::tomography::testing::{half_turn, relative_l2};
    use crate::technique::tomography::{mask, phantom};

    #[test]
    fn weights_of_opposite_columns_add_up() {
        for (columns, c) in [(100, 80.0), (101, 20.0), (64, 31.5), (64, 32.0), (50, 48.0)] {
            let w = weights(columns, c);
            for (u, weight) in w.iter().enumerate() {
                let other = 2.0 * c - u as f64;
                let opposite = if other.fract() == 0.0 && (0.0..columns as f64).contains(&other) {
                    w[other as usize]
                } else if (0.0..columns as f64 - 1.0).contains(&other) {
                    continue;
                } else {
                    0.0
                };
                assert!((weight + opposite - 2.0).abs() < 1e-6, "{columns} {c} {u}: {weight} {opposite}");
            }
        }
        assert!(weights(64, 31.5).iter().zip(weights(64, 31.5).iter().rev()).all(|(a, b)| (a + b - 2.0).abs() < 1e-6));
    }

    #[test]
    fn half_a_detector_gives_the_whole_image() {
        let (columns, size) = (110, 180);
        let angles: Vec<f64> = (0..400).map(|i| std::f64::consts::TAU * f64::from(i) / 400.0).collect();
        let ellipses = phantom::ellipses();
        // What a detector as wide as the sample would have given over half a turn.
        let half = half_turn(200);
        let whole = phantom::sinogram(&ellipses, size, size, &half, middle(size));
        let truth = phantom::truth(&ellipses, size).insert_axis(Axis(0));
        // Inside the circle: in the corners the detector of the half turn sees less.
        let masked = |mut image: ndarray::Array3<f32>| {
            mask::circle(image.view_mut(), 0.95, 0.0);
            image
        };
        let want = Plan::new(&Geometry::new(size, &half)).unwrap();
        let want = masked(want.reconstruct(whole.view().insert_axis(Axis(0))).unwrap());
        let usual = relative_l2(want.view(), truth.view());
        for c in [89.5, 20.5, 85.2] {
            let mut s = phantom::sinogram(&ellipses, size, columns, &angles, c).insert_axis(Axis(0));
            blend(s.view_mut(), c);
            let wide = image_size(columns, c);
            assert!((wide as f64 - 2.0 * (c.max(109.0 - c) + 0.5)).abs() <= 0.5);
            let geometry = Geometry { size, centre: c, ..Geometry::new(columns, &angles) };
            let got = masked(Plan::new(&geometry).unwrap().reconstruct(s.view()).unwrap());
            let difference = relative_l2(got.view(), want.view());
            let error = relative_l2(got.view(), truth.view());
            println!("{c}: error {error:.4} (half a turn {usual:.4}), difference {difference:.4}");
            // As good as the wide detector; where columns fall on the same places, the same but for kernel and blending.
            assert!(error < 1.05 * usual, "{c}: {error} {usual}");
            assert!((2.0 * c).fract() != 0.0 || difference < 0.01, "{c}: {difference}");
        }
    }

    #[test]
    fn turns_are_told_by_their_span() {
        let degrees = |n: u32, range: f64| (0..n).map(|i| (range * f64::from(i) / f64::from(n)).to_radians()).collect();
        let turn: Vec<f64> = degrees(720, 360.0);
        let half: Vec<f64> = degrees(720, 180.0);
        assert!(whole_turn(&turn) && !whole_turn(&half) && !whole_turn(&[]));
        assert!(whole_turn(&turn.iter().map(|a| 2.0 - a).collect::<Vec<_>>()));
        // Parts of a turn: every other angle is the whole of it, a half is half, and so is one with a hole in the middle.
        let some = |keep: fn(usize) -> bool| -> Vec<f64> { (0..720).filter(|&i| keep(i)).map(|i| turn[i]).collect() };
        assert!(whole_turn(&some(|i| i % 2 == 0)) && whole_turn(&some(|i| !(100..105).contains(&i))));
        assert!(!whole_turn(&some(|i| i < 360)) && !whole_turn(&some(|i| i >= 360)) && !whole_turn(&some(|i| i < 700)));
        assert!(!whole_turn(&some(|i| !(180..540).contains(&i))));
        // Two turns, and one that begins again in between.
        assert!(whole_turn(&degrees(1440, 720.0)));
    }
}
