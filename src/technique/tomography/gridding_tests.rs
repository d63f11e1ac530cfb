use super::*;
use crate::technique::tomography::testing::{assert_close, half_turn, relative_l2};
use crate::technique::tomography::{direct, mask, phantom};
use ndarray::{Array3, s};

/// Random-free solid of `rows` different slices.
fn solid(rows: usize, size: usize, columns: usize, angles: &[f64], centre: f64) -> Array3<f32> {
    phantom::sinograms(&phantom::ellipsoids(), rows, size, columns, angles, centre)
}

fn masked(mut images: Array3<f32>) -> Array3<f32> {
    mask::circle(images.view_mut(), 1.0, 0.0);
    images
}

/// Relative difference between gridding and the direct sum, inside the circle.
fn against_direct(geometry: &Geometry<'_>, sinograms: &Array3<f32>) -> f64 {
    let fast = masked(Plan::new(geometry).unwrap().reconstruct(sinograms.view()).unwrap());
    let slow = masked(direct::reconstruct(sinograms.view(), geometry, 16).unwrap());
    relative_l2(fast.view(), slow.view())
}

#[test]
fn agrees_with_the_direct_sum_for_every_filter() {
    let angles = half_turn(150);
    let sinograms = solid(1, 128, 128, &angles, 63.5);
    for filter in Filter::ALL {
        let geometry = Geometry { filter, ..Geometry::new(128, &angles) };
        let difference = against_direct(&geometry, &sinograms);
        println!("{filter}: {difference:.2e}");
        assert!(difference <= 1e-3, "{filter}: {difference:.2e}");
    }
}
