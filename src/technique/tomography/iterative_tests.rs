//! What iterative methods promise: they fit, they stop, they stay positive, and they beat filtered back-projection where
//! projections are few.

use super::*;
use crate::technique::tomography::gridding::Plan;
use crate::technique::tomography::testing::{half_turn, relative_l2};
use crate::technique::tomography::{mask, phantom};
use ndarray::{Array2, Array3};
use rand::SeedableRng;
use rand_distr::{Distribution, Normal};

const N: usize = 64;

fn scan(views: usize) -> (Vec<f64>, Array2<f32>, Array2<f32>) {
    let angles = half_turn(views);
    let sinogram = phantom::sinogram(&phantom::ellipses(), N, N, &angles, 31.5);
    (angles, sinogram, phantom::truth(&phantom::ellipses(), N))
}

fn one(sinogram: &Array2<f32>, angles: &[f64], method: Method, stopping: Stopping) -> (Array2<f32>, Ending) {
    let stack = sinogram.view().insert_axis(Axis(0));
    let (mut image, ends) = reconstruct(stack, &Geometry::new(N, angles), method, &stopping).unwrap();
    mask::circle(image.view_mut(), 1.0, 0.0);
    (image.index_axis_move(Axis(0), 0), ends[0])
}

#[test]
fn few_views_are_reconstructed_better_than_by_filtering_and_never_negative() {
    let (angles, sinogram, truth) = scan(20);
    let mut filtered =
        Plan::new(&Geometry::new(N, &angles)).unwrap().reconstruct(sinogram.view().insert_axis(Axis(0))).unwrap();
    mask::circle(filtered.view_mut(), 1.0, 0.0);
    let filtered = relative_l2(filtered.index_axis(Axis(0), 0), truth.view());
    for (method, iterations) in [(Method::Sirt, 100), (Method::Cgls, 20)] {
        let stopping = Stopping { iterations, tolerance: 0.0, ..Stopping::default() };
        let (image, end) = one(&sinogram, &angles, method, stopping);
        let error = relative_l2(image.view(), truth.view());
        println!("{method:?}: {error:.3} (filtered {filtered:.3}), residual {:.4}", end.residual);
        assert!(error < 0.9 * filtered, "{method:?} {error} {filtered}");
        assert!(image.iter().all(|&v| v >= 0.0));
        assert_eq!(end.iterations, iterations);
    }
}

#[test]
fn conjugate_gradients_solve_the_normal_equations() {
    let (angles, sinogram, _) = scan(40);
    let geometry = Geometry::new(N, &angles);
    let stopping = Stopping { iterations: 60, tolerance: 0.0, noise: 0.0, nonnegative: false };
    let (image, _) = one_unmasked(&sinogram, &geometry, Method::Cgls, stopping);
    // Aᵀ(b − A x), against Aᵀb.
    let projector = Projector::new(&geometry).unwrap();
    let gradient = |x: &Array2<f32>| {
        let mut image = projector.image::<V1>();
        for (line, row) in image.pixels_mut().chunks_exact_mut(projector.stride()).zip(x.rows()) {
            line[1..=N].iter_mut().zip(row).for_each(|(to, &v)| to.as_mut_slice()[0] = v);
        }
        let mut s = vec![V1::ZERO; projector.samples()];
        projector.project(&mut image, &mut s);
        s.iter_mut().zip(&sinogram).for_each(|(s, b)| s.as_mut_slice()[0] = b - s.as_slice()[0]);
        projector.spread(&s, &mut image);
        image.pixels().iter().map(|v| f64::from(v.as_slice()[0]).powi(2)).sum::<f64>().sqrt()
    };
    let (left, start) = (gradient(&image), gradient(&Array2::zeros((N, N))));
    println!("gradient {left:.2e} of {start:.2e}");
    // In single precision, after as many iterations as this takes.
    assert!(left < 1e-3 * start);
}

fn one_unmasked(s: &Array2<f32>, g: &Geometry<'_>, method: Method, stopping: Stopping) -> (Array2<f32>, Ending) {
    let (image, ends) = reconstruct(s.view().insert_axis(Axis(0)), g, method, &stopping).unwrap();
    (image.index_axis_move(Axis(0), 0), ends[0])
}

#[test]
fn noise_ends_the_iteration_where_the_data_are_fitted_to_it() {
    let (angles, clean, truth) = scan(40);
    let sigma = 1.5;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
    let normal = Normal::new(0.0, sigma).unwrap();
    let noisy = clean.mapv(|v| v + normal.sample(&mut rng) as f32);
    for (method, most) in [(Method::Sirt, 400), (Method::Cgls, 60)] {
        let stopping = Stopping { iterations: most, tolerance: 0.0, noise: sigma, nonnegative: false };
        let (image, end) = one(&noisy, &angles, method, stopping);
        let (over, _) = one(&noisy, &angles, method, Stopping { noise: 0.0, ..stopping });
        let norm = noisy.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let level = sigma * (noisy.len() as f64).sqrt() / norm;
        let (stopped, overdone) = (relative_l2(image.view(), truth.view()), relative_l2(over.view(), truth.view()));
        println!(
            "{method:?}: {} iterations, residual {:.4} of {level:.4}; {stopped:.3}, {overdone:.3} when overdone",
            end.iterations, end.residual
        );
        assert!(end.iterations < most && end.residual <= level && end.residual > 0.5 * level);
        assert!(stopped < overdone, "{stopped} {overdone}");
    }
}

#[test]
fn a_slice_does_not_depend_on_its_neighbours() {
    let (angles, sinogram, _) = scan(16);
    let geometry = Geometry::new(N, &angles);
    let mut stack = Array3::zeros((11, 16, N));
    for (i, mut s) in stack.outer_iter_mut().enumerate() {
        // Of different sizes, one of nothing: they stop at different times.
        s.assign(&sinogram.mapv(|v| if i == 3 { 0.0 } else { (v * (1.0 + i as f32)).min(60.0) }));
    }
    let stopping = Stopping { iterations: 40, tolerance: 0.02, noise: 0.0, nonnegative: true };
    for method in [Method::Sirt, Method::Cgls] {
        let (all, ends) = reconstruct(stack.view(), &geometry, method, &stopping).unwrap();
        assert_eq!((ends[3], all.index_axis(Axis(0), 3).sum()), (Ending::default(), 0.0));
        assert!(ends.iter().any(|e| e.iterations < 40));
        for i in [0, 5, 10] {
            let (alone, end) = reconstruct(stack.slice(s![i..i + 1, .., ..]), &geometry, method, &stopping).unwrap();
            assert_eq!(end[0].iterations, ends[i].iterations, "{method:?} {i}");
            let same = relative_l2(alone.index_axis(Axis(0), 0), all.index_axis(Axis(0), i));
            assert!(same < 1e-6, "{method:?} {i}: {same:.1e}");
        }
    }
}

/// In single precision conjugate gradients forget that the direction of the largest singular value is done, and take it again:
/// about then an image hangs on the last bits of the data, before and between it does not. The GPU's image is compared with
/// the CPU's accordingly.
#[test]
fn the_last_bits_of_the_data_matter_little() {
    let (angles, sinogram, _) = scan(24);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    let normal = Normal::new(0.0_f32, 6e-8).unwrap();
    let other = sinogram.mapv(|v| v * (1.0 + normal.sample(&mut rng)));
    let geometry = Geometry::new(N, &angles);
    let apart = |method, iterations| {
        let stopping = Stopping { iterations, tolerance: 0.0, noise: 0.0, nonnegative: false };
        let [a, b] = [&sinogram, &other].map(|s| one_unmasked(s, &geometry, method, stopping).0);
        relative_l2(a.view(), b.view())
    };
    let all = [4, 6, 7, 8, 9, 12, 20].map(|n| (n, apart(Method::Cgls, n)));
    all.iter().for_each(|(n, e)| println!("CGLS, {n} iterations: {e:.1e}"));
    let steady = apart(Method::Sirt, 20);
    println!("SIRT, 20 iterations: {steady:.1e}");
    // A few roundings of 6e-8, magnified by what the iterations so far have told apart.
    assert!(steady < 1e-6 && all[0].1 < 2e-6 && all.iter().all(|&(_, e)| e < 0.01), "{steady} {all:?}");
}

#[test]
fn settings_are_checked() {
    let angles = half_turn(4);
    let data = Array3::zeros((1, 4, 8));
    for stopping in [
        Stopping { iterations: 0, ..Stopping::default() },
        Stopping { tolerance: f64::NAN, ..Stopping::default() },
        Stopping { noise: -1.0, ..Stopping::default() },
    ] {
        assert!(reconstruct(data.view(), &Geometry::new(8, &angles), Method::Sirt, &stopping).is_err());
    }
    let wrong = Array3::zeros((1, 5, 8));
    assert!(reconstruct(wrong.view(), &Geometry::new(8, &angles), Method::Sirt, &Stopping::default()).is_err());
}
