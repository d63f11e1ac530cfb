//! The filter against its definition, against an analytic plane wave, and against the physics it inverts.

use super::*;
use crate::technique::tomography::testing::relative_l2;
use fft_plans::Complex64;
use ndarray::{Array2, Array3};
use rand::{Rng, SeedableRng};
use std::f64::consts::PI;

const OPTICS: Optics = Optics { energy_kev: 25.0, distance_mm: 60.0, pixel_size_um: 1.3, delta_beta: 300.0 };

/// Transforms `[y, x]` along both axes.
fn fft2(data: &mut Array2<Complex64>, inverse: bool) {
    for axis in [Axis(0), Axis(1)] {
        for mut line in data.lanes_mut(axis) {
            let mut values = line.to_vec();
            let n = values.len();
            let fft = if inverse { fft_plans::inverse_f64(n) } else { fft_plans::forward_f64(n) };
            fft.process(&mut values);
            line.iter_mut().zip(values).for_each(|(to, v)| *to = v);
        }
    }
}

/// As the definition says: the frame beside its mirror images, Fourier transformed, in double precision.
fn reference(frame: &Array2<f32>, optics: &Optics) -> Array2<f32> {
    let (rows, columns) = frame.dim();
    let mirrored = |k: usize, n: usize| {
        let (length, k) = (good_length(n), k as i64);
        let k = if k < length as i64 { k } else { 2 * length as i64 - 1 - k };
        let u = (k - ((length - n) / 2) as i64).rem_euclid(2 * n as i64);
        if u < n as i64 { u as usize } else { (2 * n as i64 - 1 - u) as usize }
    };
    let (high, wide) = (2 * good_length(rows), 2 * good_length(columns));
    let mut whole = Array2::from_shape_fn((high, wide), |(y, x)| {
        Complex64::new(f64::from(frame[[mirrored(y, rows), mirrored(x, columns)]]), 0.0)
    });
    fft2(&mut whole, false);
    let frequency = |k: usize, n: usize| if 2 * k <= n { k as f64 } else { k as f64 - n as f64 } / n as f64;
    for ((y, x), v) in whole.indexed_iter_mut() {
        *v *= optics.gain(frequency(y, high), frequency(x, wide)) / (high * wide) as f64;
    }
    fft2(&mut whole, true);
    let (top, left) = ((good_length(rows) - rows) / 2, (good_length(columns) - columns) / 2);
    Array2::from_shape_fn((rows, columns), |(y, x)| whole[[top + y, left + x]].re as f32)
}

#[test]
fn equals_the_definition_on_frames_of_any_size() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
    for (rows, columns) in [(1, 1), (2, 3), (16, 20), (17, 31), (40, 33), (7, 64), (1, 90)] {
        let mut frames = Array3::from_shape_fn((3, rows, columns), |_| rng.random_range(0.1..1.2_f32));
        let before = frames.clone();
        retrieve(frames.view_mut(), &OPTICS).unwrap();
        for (got, frame) in frames.outer_iter().zip(before.outer_iter()) {
            let error = relative_l2(got, reference(&frame.to_owned(), &OPTICS).view());
            // Four f32 transforms of at most 90 elements: a few 6e-8 each.
            assert!(error < 1e-6, "{rows}×{columns}: {error:.1e}");
        }
    }
}

#[test]
fn the_mean_stays_and_a_wave_is_damped_by_the_gain() {
    let (rows, columns) = (32, 48);
    // cos(πk(2n + 1)/2N) has its maxima at the mirrors: k/2N cycles per pixel, an eigenfunction.
    for (ky, kx) in [(0, 0), (3, 5), (31, 47), (0, 24)] {
        let wave = |k: usize, n: usize, len: usize| (PI * k as f64 * (2 * n + 1) as f64 / (2 * len) as f64).cos();
        let frame =
            Array3::from_shape_fn((1, rows, columns), |(_, y, x)| (wave(ky, y, rows) * wave(kx, x, columns)) as f32);
        let mut got = frame.clone();
        retrieve(got.view_mut(), &OPTICS).unwrap();
        let gain = OPTICS.gain(ky as f64 / (2 * rows) as f64, kx as f64 / (2 * columns) as f64) as f32;
        // Where the gain is small, what is left is compared with rounding of the input.
        let worst = got.iter().zip(&frame).map(|(g, f)| (g - f * gain).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "{ky} {kx}: {worst}");
    }
}

#[test]
fn the_gain_has_the_published_value() {
    // 25 keV: λ = 0.0495937 nm. λ d (δ/β)/4π = 4.95937e-11 · 0.06 · 300/4π = 7.10377e-11 m²; L = 8.42839 µm.
    assert!((OPTICS.length_px() - 8.428_387 / 1.3).abs() < 1e-5);
    // At Nyquist across, w = π/1.3e-6 rad/m.
    let w = PI / 1.3e-6;
    assert!((OPTICS.gain(0.0, 0.5) / (1.0 / (1.0 + 7.103_77e-11 * w * w)) - 1.0).abs() < 1e-5);
    assert_eq!(OPTICS.gain(0.0, 0.0), 1.0);
}

/// An object of one material, propagated by Fresnel's integral in double precision, comes back as its absorption.
///
/// The filter is exact to first order in distance where `λ d w² ≪ 4π` (transport of intensity); the object is smooth on the
/// scale of √(λd) = 1.3 px, which is what is asked of the tolerance: an edge of width s px errs as (λ d/s²)².
#[test]
fn undoes_fresnel_propagation_of_a_single_material() {
    let optics = Optics { energy_kev: 25.0, distance_mm: 60.0, pixel_size_um: 1.3, delta_beta: 300.0 };
    let n = 128;
    let wavelength = HC_KEV_UM / optics.energy_kev;
    // Absorption μT of a smooth ball, up to 0.1; phase −δ/β μT/2.
    let absorption = |y: usize, x: usize| {
        let r2 = (y as f64 - 60.0).powi(2) + (x as f64 - 66.0).powi(2);
        0.1 * (-r2 / (2.0 * 9.0_f64.powi(2))).exp()
    };
    let mut wave = Array2::from_shape_fn((n, n), |(y, x)| {
        let a = absorption(y, x);
        Complex64::from_polar((-0.5 * a).exp(), -0.5 * optics.delta_beta * a)
    });
    fft2(&mut wave, false);
    let frequency =
        |k: usize| if 2 * k <= n { k as f64 } else { k as f64 - n as f64 } / (n as f64 * optics.pixel_size_um);
    for ((y, x), v) in wave.indexed_iter_mut() {
        let f2 = frequency(y).powi(2) + frequency(x).powi(2);
        *v *= Complex64::from_polar(1.0 / (n * n) as f64, -PI * wavelength * optics.distance_mm * 1e3 * f2);
    }
    fft2(&mut wave, true);
    let mut frames = Array3::from_shape_fn((1, n, n), |(_, y, x)| wave[[y, x]].norm_sqr() as f32);
    let raw = frames.mapv(|t| -t.ln());
    retrieve(frames.view_mut(), &optics).unwrap();
    let got = frames.mapv(|t| -t.ln());
    let want = Array3::from_shape_fn((1, n, n), |(_, y, x)| absorption(y, x) as f32);
    let (before, after) = (relative_l2(raw.view(), want.view()), relative_l2(got.view(), want.view()));
    println!("absorption: {before:.3} before, {after:.4} after");
    assert!(before > 0.5 && after < 0.02, "{before} {after}");
}

#[test]
fn what_lies_beyond_the_reach_does_not_matter() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
    let optics = Optics { pixel_size_um: 4.0, ..OPTICS };
    let reach = optics.reach_px();
    assert_eq!(reach, 18);
    let frame = Array3::from_shape_fn((1, 128, 40), |_| rng.random_range(0.0..1.0_f32));
    let mut whole = frame.clone();
    retrieve(whole.view_mut(), &optics).unwrap();
    let mut part = frame.slice(ndarray::s![.., 64 - reach..64 + reach, ..]).to_owned();
    retrieve(part.view_mut(), &optics).unwrap();
    // 1e-4 of the kernel on either side, over values that differ by at most 1.
    for (a, b) in part.slice(ndarray::s![0, reach, ..]).iter().zip(whole.slice(ndarray::s![0, 64, ..])) {
        assert!((a - b).abs() < 2e-4, "{a} {b}");
    }
}

#[test]
fn optics_are_checked() {
    let mut frames = Array3::zeros((1, 4, 4));
    for optics in [
        Optics { energy_kev: 0.0, ..OPTICS },
        Optics { distance_mm: -1.0, ..OPTICS },
        Optics { pixel_size_um: f64::NAN, ..OPTICS },
        Optics { delta_beta: 1e9, ..OPTICS },
    ] {
        assert!(retrieve(frames.view_mut(), &optics).is_err());
    }
    assert!(retrieve(Array3::zeros((1, 0, 4)).view_mut(), &OPTICS).is_err());
    // No distance, no filter.
    let mut frames = Array3::from_shape_fn((1, 5, 9), |(_, y, x)| 0.1 + (y * x) as f32 / 40.0);
    let before = frames.clone();
    retrieve(frames.view_mut(), &Optics { distance_mm: 0.0, ..OPTICS }).unwrap();
    assert!(relative_l2(frames.view(), before.view()) < 1e-6);
}
