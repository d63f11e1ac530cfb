use super::*;
use crate::technique::tomography::normalize::{Flat, mean_frame, minus_log, transmission};
use crate::technique::tomography::phantom;
use crate::technique::tomography::testing::half_turn as angles_of;
use ndarray::Array3;
use rand::SeedableRng;
use rand_distr::{Distribution, Normal};

#[test]
fn planted_centres_come_back_within_a_tenth_of_a_pixel() {
    let angles = angles_of(180);
    for planted in [127.5, 120.3, 131.62, 127.0, 98.4, 143.87] {
        // The phantom is narrower than the detector, so that it stays in view off centre.
        let sinogram = phantom::sinogram(&phantom::ellipses(), 180, 256, &angles, planted);
        let found = vo(sinogram.view(), &Search::default()).unwrap();
        println!("planted {planted}: found {:.3}, contrast {:.2}", found.center, found.contrast);
        assert!((found.center - planted).abs() <= 0.1, "{planted}: {}", found.center);
        assert!(!found.at_edge);
    }
}

#[test]
fn noise_moves_it_by_less_than_a_tenth() {
    let angles = angles_of(180);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    let mut sinogram = phantom::sinogram(&phantom::ellipses(), 200, 256, &angles, 124.2);
    let noise = Normal::new(0.0, 0.01 * sinogram.fold(0.0_f32, |a, &b| a.max(b))).unwrap();
    sinogram.iter_mut().for_each(|v| *v += noise.sample(&mut rng));
    let found = vo(sinogram.view(), &Search::default()).unwrap();
    assert!((found.center - 124.2).abs() <= 0.1, "{}", found.center);
}

#[test]
fn a_narrow_detector_limits_the_range_and_an_edge_is_reported() {
    let angles = angles_of(90);
    let sinogram = phantom::sinogram(&phantom::ellipses(), 40, 48, &angles, 22.0);
    let found = vo(sinogram.view(), &Search::default()).unwrap();
    assert!((found.center - 22.0).abs() <= 0.25, "{}", found.center);
    let angles = angles_of(180);
    let sinogram = phantom::sinogram(&phantom::ellipses(), 180, 256, &angles, 120.3);
    let aside = Search { around: Some(123.0), range: 2.0, ..Search::default() };
    assert!(vo(sinogram.view(), &aside).unwrap().at_edge);
}

#[test]
fn input_that_cannot_work_is_refused() {
    let mut sinogram = Array2::<f32>::zeros((10, 20));
    assert!(vo(sinogram.slice(s![..4, ..]), &Search::default()).is_err());
    assert!(vo(sinogram.view(), &Search { step: 0.0, ..Search::default() }).is_err());
    assert!(vo(sinogram.view(), &Search { around: Some(99.0), ..Search::default() }).is_err());
    sinogram[[3, 3]] = f32::NAN;
    assert!(vo(sinogram.view(), &Search::default()).is_err());
}

#[test]
fn half_a_turn_is_cut_from_longer_scans() {
    let degrees = |n: usize| (0..n).map(|i| (i as f64).to_radians()).collect::<Vec<_>>();
    assert_eq!(half_turn(&degrees(180)), 180);
    assert_eq!(half_turn(&degrees(181)), 181);
    assert_eq!(half_turn(&degrees(360)), 181);
    assert_eq!(half_turn(&degrees(360).iter().map(|a| -a).collect::<Vec<_>>()), 181);
    assert_eq!(half_turn(&[]), 0);
}

/// Counts, mean dark and flat of the tooth, when its file is there.
fn tooth() -> Option<(Array3<f32>, ndarray::Array2<f32>, Flat)> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/tomo/tooth.h5");
    if !path.exists() {
        println!("skipped: {} is absent", path.display());
        return None;
    }
    let file = hdf5::File::open(&path).unwrap();
    let read = |name: &str| {
        let data = file.dataset(name).unwrap();
        Array3::from_shape_vec((data.shape()[0], data.shape()[1], data.shape()[2]), data.read_raw::<f32>().unwrap())
            .unwrap()
    };
    let flat = Flat { at: 0.0, mean: mean_frame(read("exchange/data_white").view()) };
    Some((read("exchange/data"), mean_frame(read("exchange/data_dark").view()), flat))
}

#[test]
fn the_tooth_turns_about_295() {
    let Some((counts, dark, flat)) = tooth() else {
        return;
    };
    let mut logs = counts.clone();
    let repairs = transmission(logs.view_mut(), dark.view(), &[flat], 0).unwrap();
    assert_eq!(repairs.interpolated, 0);
    assert_eq!(minus_log(logs.view_mut(), 1e-6).unwrap(), 0);
    for (name, data) in [("counts", &counts), ("-log", &logs)] {
        for row in 0..2 {
            let found = vo(data.index_axis(Axis(1), row), &Search::default()).unwrap();
            println!("{name}, row {row}: {:.3}", found.center);
            // The reference is 295.0 on both rows with this method.
            assert!((found.center - 295.0).abs() <= 0.25, "{name}, row {row}: {}", found.center);
        }
    }
}
