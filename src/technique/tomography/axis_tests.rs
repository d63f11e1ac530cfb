//! Planted axes are found, by every method.

use super::*;
use crate::technique::tomography::phantom;
use crate::technique::tomography::testing::half_turn;
use rand::{Rng, SeedableRng};

fn noisy(columns: usize, size: usize, angles: &[f64], c: f64) -> Array2<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    let mut s = phantom::sinogram(&phantom::ellipses(), size, columns, angles, c);
    // Line integrals go up to about 0.8 · size/2; half a percent of that.
    let level = 0.002 * size as f32;
    s.iter_mut().for_each(|v| *v += rng.random_range(-level..level));
    s
}

fn degrees(range: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| (range * i as f64 / n as f64).to_radians()).collect()
}

#[test]
fn opposite_projections_show_the_axis() {
    // Both ends included: the last projection lies at 180°.
    let angles: Vec<f64> = (0..=60).map(|i| PI * f64::from(i) / 60.0).collect();
    for c in [63.5, 58.2, 71.75] {
        let found = phase(noisy(128, 110, &angles, c).view(), &angles, 63.5, 12.0).unwrap();
        assert!((found.center - c).abs() < 0.1 && !found.at_edge && found.contrast > 3.0, "{c}: {}", found.center);
    }
    let short: Vec<f64> = angles[..40].to_vec();
    assert!(phase(noisy(128, 110, &short, 63.5).view(), &short, 63.5, 12.0).is_err());
}

#[test]
fn the_sharpest_image_shows_the_axis() {
    let angles = half_turn(90);
    for c in [63.5, 66.3] {
        let found = entropy(noisy(128, 110, &angles, c).view(), &angles, 63.5, 5.0).unwrap();
        println!("{c}: {} contrast {}", found.center, found.contrast);
        assert!((found.center - c).abs() < 0.3 && !found.at_edge, "{c}: {}", found.center);
    }
    // On the reduced sinogram first, when that is wide.
    let angles = half_turn(45);
    let c = 151.4;
    let found = entropy(noisy(300, 260, &angles, c).view(), &angles, 149.5, 6.0).unwrap();
    assert!((found.center - c).abs() < 0.5, "{}", found.center);
}

#[test]
fn a_whole_turn_shows_its_axis_wherever_it_lies() {
    let angles = degrees(360.0, 120);
    // The sample is wider than the detector, to one side of the axis; or the axis is in the middle.
    for (columns, size, c) in [(100, 160, 80.3), (100, 160, 18.65), (128, 110, 63.5), (100, 180, 90.0)] {
        let found = overlap(noisy(columns, size, &angles, c).view(), &angles).unwrap();
        println!("{c}: {:.3} contrast {:.1}", found.center, found.contrast);
        assert!((found.center - c).abs() < 0.15 && found.contrast > 2.0, "{c}: {}", found.center);
    }
    // Turned the other way, and angles that do not start at 0.
    let back: Vec<f64> = angles.iter().map(|a| 1.0 - a).collect();
    let found = overlap(noisy(100, 160, &back, 80.3).view(), &back).unwrap();
    assert!((found.center - 80.3).abs() < 0.15);
    assert!(overlap(noisy(100, 90, &half_turn(90), 49.5).view(), &half_turn(90)).is_err());
}

#[test]
fn bad_input_is_refused() {
    let angles = half_turn(30);
    let mut s = noisy(64, 50, &angles, 31.5);
    assert!(phase(s.view(), &angles[..20], 31.5, 4.0).is_err());
    s[[3, 3]] = f32::NAN;
    assert!(entropy(s.view(), &angles, 31.5, 4.0).is_err());
    assert!(overlap(Array2::zeros((40, 4)).view(), &degrees(360.0, 40)).is_err());
    // Nothing to see: no axis, and no fault.
    let flat = overlap(Array2::ones((40, 64)).view(), &degrees(360.0, 40)).unwrap();
    assert!(flat.contrast < 1.1);
}
