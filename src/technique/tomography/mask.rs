//! Circular mask: only inside the circle that every projection sees is the image determined.
//!
//! Pixels further than `ratio · N/2` from the image's middle (pixel units, axes `[.., y, x]`) are set to `fill`; pixels on
//! the circle stay. Works on anything, NaN included, and is idempotent.

use ndarray::parallel::prelude::*;
use ndarray::{ArrayViewMut3, Axis};

use super::convention::middle;

/// Sets everything outside the circle of `ratio` times half the image's width to `fill`, in every image of `[z, y, x]`.
pub fn circle(mut images: ArrayViewMut3<'_, f32>, ratio: f64, fill: f32) {
    let (height, width) = (images.len_of(Axis(1)), images.len_of(Axis(2)));
    let (middle_y, middle_x) = (middle(height), middle(width));
    let radius = ratio * height.min(width) as f64 / 2.0;
    images.axis_iter_mut(Axis(0)).into_par_iter().for_each(|mut image| {
        for (iy, mut row) in image.outer_iter_mut().enumerate() {
            let square = radius * radius - (iy as f64 - middle_y).powi(2);
            for (ix, value) in row.iter_mut().enumerate() {
                if (ix as f64 - middle_x).powi(2) > square {
                    *value = fill;
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array3;

    #[test]
    fn the_corners_go_and_the_circle_stays() {
        let mut images = Array3::from_elem((2, 8, 8), 1.0);
        circle(images.view_mut(), 1.0, 0.0);
        for image in images.outer_iter() {
            assert_eq!(image[[0, 0]], 0.0);
            assert_eq!(image[[7, 0]], 0.0);
            assert_eq!(image[[3, 0]], 1.0);
            assert_eq!(image[[7, 4]], 1.0);
        }
        // Area of the circle, to within its circumference.
        let inside = images.sum() / 2.0;
        assert!((f64::from(inside) - std::f64::consts::PI * 16.0).abs() < 8.0, "{inside}");
        let once = images.clone();
        circle(images.view_mut(), 1.0, 0.0);
        assert_eq!(images, once);
    }

    #[test]
    fn not_even_a_nan_survives_outside() {
        let mut images = Array3::from_elem((1, 5, 5), f32::NAN);
        circle(images.view_mut(), 0.0, 7.0);
        assert_eq!(images.iter().filter(|v| v.is_nan()).count(), 1);
    }
}
