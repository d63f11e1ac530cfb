//! The filter against its definition (all bands, a Fourier transform of each column), and on what it must take and leave.

use super::*;
use crate::technique::tomography::phantom;
use crate::technique::tomography::testing::{half_turn, relative_l2};
use fft_plans::Complex64;
use ndarray::{Array2, Array3};
use rand::{Rng, SeedableRng};

/// Low and high band of a line, by the definition.
fn split(line: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let band = |filter: &dyn Fn(usize) -> f64| {
        (0..halved(line.len()))
            .map(|k| (0..TAPS).map(|j| filter(j) * line[mirror(2 * k as i64 + 1 - j as i64, line.len())]).sum())
            .collect()
    };
    (band(&|j| LOW[j]), band(&|j| LOW[TAPS - 1 - j] * if j % 2 == 0 { -1.0 } else { 1.0 }))
}

/// The line of `n` that has these bands.
fn join(low: &[f64], high: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; 2 * low.len() + TAPS];
    for k in 0..low.len() {
        for j in 0..TAPS {
            // Synthesis filters are the analysis filters backwards.
            let g = LOW[TAPS - 1 - j];
            let h = LOW[j] * if (TAPS - 1 - j).is_multiple_of(2) { -1.0 } else { 1.0 };
            out[2 * k + j] += g * low[k] + h * high[k];
        }
    }
    out[TAPS - 2..][..n].to_vec()
}

fn along(data: &Array2<f64>, axis: usize) -> (Array2<f64>, Array2<f64>) {
    let lines: Vec<_> = data.lanes(Axis(axis)).into_iter().map(|l| split(&l.to_vec())).collect();
    #[allow(clippy::type_complexity)] // Which of two bands.
    let of = |pick: &dyn Fn(&(Vec<f64>, Vec<f64>)) -> Vec<f64>| {
        let flat: Vec<f64> = lines.iter().flat_map(pick).collect();
        let all = Array2::from_shape_vec((lines.len(), flat.len() / lines.len()), flat).unwrap();
        if axis == 0 { all.reversed_axes().as_standard_layout().into_owned() } else { all }
    };
    (of(&|l| l.0.clone()), of(&|l| l.1.clone()))
}

fn back(low: &Array2<f64>, high: &Array2<f64>, axis: usize, n: usize) -> Array2<f64> {
    let lines = low.lanes(Axis(axis)).into_iter().zip(high.lanes(Axis(axis)));
    let flat: Vec<f64> = lines.flat_map(|(l, h)| join(&l.to_vec(), &h.to_vec(), n)).collect();
    let all = Array2::from_shape_vec((low.len_of(Axis(1 - axis)), n), flat).unwrap();
    if axis == 0 { all.reversed_axes().as_standard_layout().into_owned() } else { all }
}

/// As published, in double precision.
fn reference(data: &Array2<f64>, level: usize, sigma: f64) -> Array2<f64> {
    if level == 0 {
        return data.clone();
    }
    let (smooth, rough) = along(data, 0);
    let (low, mut stripes) = along(&smooth, 1);
    let (flat, diagonal) = along(&rough, 1);
    for mut column in stripes.columns_mut() {
        let n = column.len();
        let mut values: Vec<_> = column.iter().map(|&v| Complex64::new(v, 0.0)).collect();
        fft_plans::forward_f64(n).process(&mut values);
        for (i, v) in values.iter_mut().enumerate() {
            let k = if 2 * i <= n { i as f64 } else { i as f64 - n as f64 };
            *v *= (1.0 - (-0.5 * (k / sigma).powi(2)).exp()) / n as f64;
        }
        fft_plans::inverse_f64(n).process(&mut values);
        column.iter_mut().zip(&values).for_each(|(to, v)| *to = v.re);
    }
    let low = reference(&low, level - 1, sigma);
    let columns = data.ncols();
    back(&back(&low, &stripes, 1, columns), &back(&flat, &diagonal, 1, columns), 0, data.nrows())
}

#[test]
fn equals_the_definition_on_any_shape() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
    for (angles, columns, level, sigma) in [(40, 64, 2, 2.0), (31, 47, 3, 3.0), (5, 9, 1, 1.0), (24, 130, 4, 0.5)] {
        let data = Array2::from_shape_fn((angles, columns), |_| rng.random_range(-1.0..1.0_f64));
        let mut got = Array3::from_shape_fn((1, angles, columns), |(_, a, u)| data[[a, u]] as f32);
        remove_slab(got.view_mut(), &Wavelet { sigma, level: Some(level) }).unwrap();
        let want = reference(&data, level, sigma).mapv(|v| v as f32);
        let error = relative_l2(got.index_axis(Axis(0), 0), want.view());
        // Sums of ten products per direction and level in f32.
        assert!(error < 1e-6, "{angles}×{columns}: {error:.1e}");
    }
}

#[test]
fn bands_join_to_what_was_split_and_the_filter_is_orthonormal() {
    for n in [2, 9, 10, 33] {
        let line: Vec<f64> = (0..n).map(|i| ((i * 37 % 11) as f64).sin()).collect();
        let (low, high) = split(&line);
        for (got, want) in join(&low, &high, n).iter().zip(&line) {
            assert!((got - want).abs() < 1e-12, "{n}");
        }
    }
    for shift in 0..5 {
        let dot: f64 = (0..TAPS - 2 * shift).map(|j| LOW[j] * LOW[j + 2 * shift]).sum();
        assert!((dot - f64::from(u8::from(shift == 0))).abs() < 1e-12, "{shift}");
    }
    // Five vanishing moments: the high band of a polynomial of degree four is nothing, away from the ends.
    let line: Vec<f64> = (0..64).map(|i| (f64::from(i) / 32.0 - 1.0).powi(4)).collect();
    assert!(split(&line).1[6..26].iter().all(|v| v.abs() < 1e-10));
}

#[test]
fn stripes_go_and_what_turns_stays() {
    let clean = phantom::sinogram(&phantom::ellipses(), 256, 256, &half_turn(180), 127.5);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    // Offsets of every column, as pixels whose flat is off by a percent leave them.
    let offsets: Vec<f32> = (0..256).map(|_| rng.random_range(-1.0..1.0)).collect();
    let mut striped = clean.clone();
    striped.rows_mut().into_iter().for_each(|mut r| r.iter_mut().zip(&offsets).for_each(|(v, o)| *v += o));
    let (mut even, mut untouched) = (striped.clone(), clean.clone());
    let options = Wavelet::default();
    remove_slab(even.view_mut().insert_axis(Axis(0)), &options).unwrap();
    remove_slab(untouched.view_mut().insert_axis(Axis(0)), &options).unwrap();
    // Linear: the stripes alone are what differs.
    let left = (&even - &untouched).mapv(|v| v * v).mean().unwrap().sqrt();
    let before = (&striped - &clean).mapv(|v| v * v).mean().unwrap().sqrt();
    let change = relative_l2(untouched.view(), clean.view());
    println!("stripes: {before:.3} before, {left:.4} left; a clean sinogram changes by {change:.4}");
    // White offsets have the share 2^−level of their power in the smoothest band: 4 levels, √(1/16) = 0.25.
    assert!(left < 0.3 * before, "{left} of {before}");
    assert!(change < 0.1, "{change}");
    // A wave along the angle of more cycles than are damped, in one column, stays.
    let wave = |a: usize| (std::f64::consts::TAU * 20.0 * a as f64 / 180.0).cos() as f32;
    let mut turning = Array3::from_shape_fn((1, 180, 64), |(_, a, u)| if u == 30 { wave(a) } else { 0.0 });
    let before = turning.clone();
    remove_slab(turning.view_mut(), &options).unwrap();
    assert!(relative_l2(turning.view(), before.view()) < 0.05);
}

#[test]
fn settings_are_checked_and_tiny_inputs_survive() {
    let mut s = Array3::<f32>::ones((1, 4, 4));
    assert!(remove_slab(s.view_mut(), &Wavelet { sigma: 0.0, level: None }).is_err());
    assert!(remove_slab(s.view_mut(), &Wavelet { sigma: 1.0, level: Some(0) }).is_err());
    for (angles, columns) in [(1, 1), (2, 2), (3, 2), (2, 50)] {
        let mut s = Array3::<f32>::ones((1, angles, columns));
        remove_slab(s.view_mut(), &Wavelet::default()).unwrap();
        // A constant has no stripes.
        assert!(s.iter().all(|v| (v - 1.0).abs() < 1e-5), "{angles}×{columns}");
    }
    assert_eq!(Wavelet::default().levels(2048), 7);
    assert_eq!(Wavelet::default().levels(5), 1);
}
