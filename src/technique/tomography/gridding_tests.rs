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

#[test]
fn agrees_with_the_direct_sum_off_centre_at_odd_sizes_and_other_angles() {
    let golden: Vec<f64> = (0..130).map(|i| i as f64 * 1.941_611).collect();
    let both_ends: Vec<f64> = (0..=120).map(|i| i as f64 * std::f64::consts::PI / 120.0).collect();
    let negated: Vec<f64> = (0..240).map(|i| -(i as f64) * std::f64::consts::PI / 120.0).collect();
    for (angles, columns, size, centre, padding) in [
        (&golden, 128, 128, 55.2, Padding::Zero),
        (&both_ends, 101, 101, 50.0, Padding::Zero),
        (&both_ends, 100, 131, 49.25, Padding::Zero),
        (&negated, 90, 64, 40.0, Padding::Edge),
        (&both_ends, 100, 100, 49.0, Padding::Edge),
    ] {
        let geometry = Geometry { centre, size, padding, ..Geometry::new(columns, angles) };
        // Region of interest in the last case: the object is wider than the detector.
        let wide = if padding == Padding::Edge { 140 } else { columns - 20 };
        let sinograms = solid(1, wide, columns, angles, centre);
        let difference = against_direct(&geometry, &sinograms);
        println!("{columns} {size} {centre} {padding:?}: {difference:.2e}");
        assert!(difference <= 1e-3, "{columns} {size} {centre}: {difference:.2e}");
    }
}

#[test]
fn the_phantom_comes_back_in_place_at_every_slice() {
    let angles = half_turn(200);
    let sinograms = solid(19, 128, 128, &angles, 60.75);
    let geometry = Geometry { centre: 60.75, ..Geometry::new(128, &angles) };
    let images = masked(Plan::new(&geometry).unwrap().reconstruct(sinograms.view()).unwrap());
    let truth = masked(phantom::volume(&phantom::ellipsoids(), 19, 128));
    for (z, (image, truth)) in images.outer_iter().zip(truth.outer_iter()).enumerate() {
        let error = relative_l2(image.view(), truth.view());
        // Edges sampled at points: 0.057 at 512² grows as the square root of the pixel size to 0.115 here. A wrong sign,
        // half a pixel or a swapped slice gives more than 0.2.
        assert!(error < 0.15, "slice {z}: {error}");
    }
}

#[test]
fn batches_of_every_width_give_the_same_slices_as_one_by_one() {
    let angles = half_turn(90);
    let sinograms = solid(21, 64, 64, &angles, 31.5);
    let plan = Plan::new(&Geometry::new(64, &angles)).unwrap();
    let single: Vec<_> = (0..21).map(|r| plan.reconstruct(sinograms.slice(s![r..=r, .., ..])).unwrap()).collect();
    for rows in [2, 5, 8, 9, 16, 17, 21] {
        let together = plan.reconstruct(sinograms.slice(s![..rows, .., ..])).unwrap();
        for (r, image) in together.outer_iter().enumerate() {
            // Only the order of roundings differs: the values are of order one.
            assert_close(image, single[r].index_axis(Axis(0), 0), 2e-5, 1e-5);
        }
    }
    let threads = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let [one, three] = [1, 3].map(|n| threads(n).install(|| plan.reconstruct(sinograms.view()).unwrap()));
    assert_close(one.view(), three.view(), 2e-5, 1e-5);
}

#[test]
fn portable_and_vector_code_agree() {
    let angles = half_turn(60);
    let sinograms = solid(3, 50, 50, &angles, 24.5);
    let mut plan = Plan::new(&Geometry::new(50, &angles)).unwrap();
    let vector = plan.reconstruct(sinograms.view()).unwrap();
    plan.isa = Isa::Portable;
    let portable = plan.reconstruct(sinograms.view()).unwrap();
    assert_close(vector.view(), portable.view(), 2e-5, 1e-5);
}

#[test]
fn any_memory_layout_is_read_right() {
    let angles = half_turn(40);
    let sinograms = solid(4, 48, 48, &angles, 23.5);
    let plan = Plan::new(&Geometry::new(48, &angles)).unwrap();
    let want = plan.reconstruct(sinograms.view()).unwrap();
    let by_projection = sinograms.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
    let got = plan.reconstruct(by_projection.view().permuted_axes([1, 0, 2])).unwrap();
    assert_eq!(got, want);
    let columns_first = sinograms.view().reversed_axes().as_standard_layout().into_owned();
    let got = plan.reconstruct(columns_first.view().reversed_axes()).unwrap();
    assert_eq!(got, want);
}

#[test]
fn wrong_input_is_refused() {
    let angles = half_turn(10);
    let plan = Plan::new(&Geometry::new(16, &angles)).unwrap();
    assert!(matches!(plan.reconstruct(Array3::zeros((1, 9, 16)).view()), Err(TomographyError::Shape { .. })));
    assert_eq!(plan.reconstruct(Array3::zeros((0, 10, 16)).view()).unwrap().len(), 0);
    assert!(Plan::new(&Geometry { centre: f64::NAN, ..Geometry::new(16, &angles) }).is_err());
    assert!(Plan::new(&Geometry::new(1, &angles)).is_err());
    assert!(Plan::new(&Geometry::new(16, &[0.0, f64::INFINITY])).is_err());
}

#[test]
fn lanes_fit_the_rows_and_threads() {
    assert_eq!(fastest(1, 8).0, 1);
    assert_eq!(fastest(64, 2).0, 8);
    assert_eq!(fastest(16, 2).0, 4);
}
