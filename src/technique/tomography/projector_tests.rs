//! The pair is matched, and projects what it should.

use super::*;
use crate::technique::tomography::lanes::{V1, V4, V8};
use crate::technique::tomography::phantom;
use crate::technique::tomography::testing::{half_turn, relative_l2};
use ndarray::Array2;
use rand::{Rng, SeedableRng};

fn set(image: &mut Image<V1>, projector: &Projector, value: impl Fn(usize, usize) -> f32) {
    let (size, stride) = (projector.size, projector.stride());
    for y in 0..size {
        for x in 0..size {
            image.pixels_mut()[y * stride + 1 + x].as_mut_slice()[0] = value(y, x);
        }
    }
}

fn projected(projector: &Projector, image: &mut Image<V1>) -> Array2<f32> {
    let mut sinogram = vec![V1::ZERO; projector.samples()];
    projector.project(image, &mut sinogram);
    let values = sinogram.iter().map(|v| v.as_slice()[0]).collect();
    Array2::from_shape_vec((projector.rays.len(), projector.columns), values).unwrap()
}

#[test]
fn the_pair_is_matched_in_every_lane_whatever_the_geometry() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut angles = half_turn(9);
    angles.extend([std::f64::consts::FRAC_PI_4, 3.0, -2.0, 5.5]);
    for (columns, size, centre) in [(40, 40, 19.5), (33, 50, 3.2), (64, 20, 70.0)] {
        let geometry = Geometry { size, centre, ..Geometry::new(columns, &angles) };
        let projector = Projector::new(&geometry).unwrap();
        let (mut x, mut back) = (projector.image::<V8>(), projector.image::<V8>());
        let stride = projector.stride();
        let mut y = vec![V8::ZERO; projector.samples()];
        let mut ax = y.clone();
        for line in x.pixels_mut().chunks_exact_mut(stride) {
            line[1..=size].iter_mut().flat_map(|v| v.as_mut_slice()).for_each(|v| *v = rng.random_range(-1.0..1.0));
        }
        y.iter_mut().flat_map(|v| v.as_mut_slice()).for_each(|v| *v = rng.random_range(-1.0..1.0));
        projector.project(&mut x, &mut ax);
        projector.spread(&y, &mut back);
        for l in 0..8 {
            let dot = |a: &[V8], b: &[V8]| -> (f64, f64) {
                a.iter().zip(b).fold((0.0, 0.0), |(sum, size), (a, b)| {
                    let (a, b) = (f64::from(a.as_slice()[l]), f64::from(b.as_slice()[l]));
                    (sum + a * b, size + (a * b).abs())
                })
            };
            let ((left, scale), (right, _)) = (dot(&ax, &y), dot(x.pixels(), back.pixels()));
            assert!((left - right).abs() <= 1e-5 * left.abs().max(0.01 * scale), "{columns} {size}: {left} {right}");
        }
    }
}

/// A Gaussian of width `s` has Gaussian projections. Linear interpolation adds `f(1 − f)/2 · g''`, 1/12 g'' on the average, at
/// most 1/8: relative to the peak below 1/8s².
#[test]
fn smooth_objects_project_to_their_integrals() {
    let (n, s, centre) = (80, 6.0, 36.8);
    let angles: Vec<f64> = (0..40).map(|i| f64::from(i) * 0.17).collect();
    let geometry = Geometry { size: n, centre, ..Geometry::new(n, &angles) };
    let projector = Projector::new(&geometry).unwrap();
    let mut image = projector.image();
    let (x0, y0) = (7.0, -5.0);
    set(&mut image, &projector, |iy, ix| {
        let (x, y) = (ix as f64 - middle(n) - x0, middle(n) - iy as f64 - y0);
        (-(x * x + y * y) / (2.0 * s * s)).exp() as f32
    });
    let got = projected(&projector, &mut image);
    let peak = (std::f64::consts::TAU).sqrt() * s;
    for ((a, u), &got) in got.indexed_iter() {
        let t = u as f64 - centre - x0 * angles[a].cos() - y0 * angles[a].sin();
        let want = peak * (-t * t / (2.0 * s * s)).exp();
        assert!((f64::from(got) - want).abs() < peak / (8.0 * s * s), "{a} {u}: {got} {want}");
    }
}

/// Sharp edges, point-sampled, are misplaced by up to half a pixel, so the error falls with the size.
#[test]
fn ellipses_project_to_their_integrals_ever_better() {
    let error = |n: usize| {
        let angles = half_turn(60);
        let projector = Projector::new(&Geometry::new(n, &angles)).unwrap();
        let truth = phantom::truth(&phantom::ellipses(), n);
        let mut image = projector.image();
        set(&mut image, &projector, |y, x| truth[[y, x]]);
        let want = phantom::sinogram(&phantom::ellipses(), n, n, &angles, middle(n));
        relative_l2(projected(&projector, &mut image).view(), want.view())
    };
    let (coarse, fine) = (error(64), error(192));
    println!("{coarse:.4} at 64, {fine:.4} at 192");
    // Of N/2 crossings about two are edges, each wrong by up to half: of the order 1/N, falling at least like 1/N.
    assert!(coarse < 0.03 && fine < 0.45 * coarse, "{coarse} {fine}");
}

#[test]
fn every_width_of_lanes_gives_the_same() {
    let angles = half_turn(12);
    let projector = Projector::new(&Geometry::new(30, &angles)).unwrap();
    let mut one = projector.image::<V1>();
    set(&mut one, &projector, |y, x| ((y * 31 + x * 17) % 23) as f32);
    let mut four = projector.image::<V4>();
    for (to, from) in four.pixels_mut().iter_mut().zip(one.pixels()) {
        to.as_mut_slice()[2] = from.as_slice()[0];
    }
    let mut wide = vec![V4::ZERO; projector.samples()];
    projector.project(&mut four, &mut wide);
    for (a, b) in projected(&projector, &mut one).iter().zip(&wide) {
        assert_eq!(*a, b.as_slice()[2]);
        assert_eq!(b.as_slice()[1], 0.0);
    }
}
