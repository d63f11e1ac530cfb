//! Recovery of what the forward model planted, and agreement with the plain reference.

use super::decode::{DecodeSetup, Decoder, EnergyOptions, flag, resample};
use super::depth::Account;
use super::forward::{Instrument, Source, counts};
use super::geometry::{MaskFrame, Region, scale, unit};
use super::mask::Mask;
use super::reference;
use super::setup::nominal;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

struct Trial {
    /// Error of the position, in samples of the mask.
    position: f64,
    depth_um: f64,
    flags: u8,
    energy: (f64, f64),
    intensity: f64,
    account: Account,
    deposited: f64,
    centroid_um: f64,
}

/// Pixels all over the detector, each of a source of its own, of `peak` counts in the open beam.
fn trials(setup: &DecodeSetup, frames: usize, peak: f64, n: usize, seed: u64, known_energy: bool) -> Vec<Trial> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mask = Mask::new(&setup.mask);
    let frame = MaskFrame::new(&setup.pose, mask.length_um, setup.mask.stretch);
    let beam = unit(setup.beam);
    let instrument = Instrument { detector: &setup.detector, region: Region::FULL, beam, mask: &mask, frame };
    let decoder = Decoder::new(setup.clone(), Region::FULL);
    let mut work = decoder.work();
    (0..n)
        .map(|_| {
            let (row, column) = (rng.random_range(0..2048), rng.random_range(0..2048));
            let source = Source {
                depth_um: rng.random_range(-140.0..140.0),
                width_um: rng.random_range(4.0..14.0),
                energy_kev: rng.random_range(7.0..22.0),
            };
            let seen = instrument.transmission(&source, row, column, frames);
            let series: Vec<f32> = seen.iter().map(|s| counts(peak * s, 65535.0, &mut rng) as f32).collect();
            let mut depths = vec![0.0; setup.depth.bins];
            let (pixel, account) = if known_energy {
                let exact = DecodeSetup { energy: EnergyOptions::Fixed(source.energy_kev), ..setup.clone() };
                Decoder::new(exact, Region::FULL).decode(&series, row, column, &mut work, &mut depths)
            } else {
                decoder.decode(&series, row, column, &mut work, &mut depths)
            };
            let truth = instrument.code_um(source.depth_um, row, column);
            let deposited: f64 = depths.iter().sum();
            let moment: f64 = depths.iter().zip(setup.depth.centres_um()).map(|(a, z)| a * z).sum();
            Trial {
                position: (f64::from(pixel.position_um) - truth) / setup.mask.resolution_um,
                depth_um: f64::from(pixel.depth_um) - source.depth_um,
                flags: pixel.flags,
                energy: (f64::from(pixel.energy_kev), source.energy_kev),
                intensity: f64::from(pixel.intensity),
                account,
                deposited,
                centroid_um: moment / deposited - source.depth_um,
            }
        })
        .collect()
}

/// Further than so many cells from where it was planted, or nowhere.
fn off(t: &Trial, cells: f64) -> bool {
    t.position.is_nan() || t.position.abs() > cells
}

/// Not within one cell of the mask's grid.
fn missed(t: &Trial) -> bool {
    off(t, 1.0)
}

#[test]
fn planted_positions_are_found_at_a_thousand_counts() {
    let all = trials(&nominal(), 401, 1000.0, 1000, 1, false);
    let rms = (all.iter().map(|t| t.position * t.position).sum::<f64>() / all.len() as f64).sqrt();
    println!("rms {rms:.3} cells");
    // 99.9 %.
    assert!(all.iter().filter(|t| missed(t)).count() <= 1);
    assert!(all.iter().filter(|t| t.depth_um.is_nan() || t.depth_um.abs() > 1.0).count() <= 1);
    assert!(all.iter().all(|t| t.account.imbalance() < 1e-6));
    assert!(all.iter().all(|t| (t.deposited - t.account.deposited).abs() <= 1e-6 * t.account.input));
    let good: Vec<&Trial> = all.iter().filter(|t| t.flags == 0).collect();
    assert!(good.len() >= 990, "{} unflagged", good.len());
    let centroid = good.iter().map(|t| t.centroid_um.abs()).sum::<f64>() / good.len() as f64;
    assert!(centroid < 1.0, "{centroid}");
}

#[test]
fn a_mask_that_steps_the_other_way_is_decoded_too() {
    let mut setup = nominal();
    setup.pose.scanner_axis = scale(setup.pose.scanner_axis, -1.0);
    let all = trials(&setup, 401, 1000.0, 60, 2, false);
    assert!(all.iter().filter(|t| missed(t)).count() == 0);
}

/// Too few frames and counts to tell: then it is said, and nothing is put anywhere.
#[test]
fn what_cannot_be_told_is_reported_and_not_invented() {
    let setup = DecodeSetup { threshold: 1.0, ..nominal() };
    let all = trials(&setup, 101, 30.0, 200, 3, false);
    let ambiguous: Vec<&Trial> = all.iter().filter(|t| t.flags & flag::AMBIGUOUS != 0).collect();
    let wrong = all.iter().filter(|t| missed(t) && t.position.abs() > 10.0).count();
    let unnoticed = all.iter().filter(|t| t.flags & flag::AMBIGUOUS == 0 && off(t, 10.0)).count();
    println!("{} ambiguous, {wrong} wrong, {unnoticed} of them unnoticed", ambiguous.len());
    assert!(wrong >= 30, "the case is too easy: {wrong}");
    assert!(unnoticed * 100 <= all.len(), "{unnoticed}");
    assert!(ambiguous.iter().all(|t| t.deposited == 0.0 && t.account.rejected == t.account.input));
    // Counts without any pattern.
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let decoder = Decoder::new(setup.clone(), Region::FULL);
    let mut work = decoder.work();
    for _ in 0..20 {
        let series: Vec<f32> = (0..401).map(|_| counts(500.0, 65535.0, &mut rng) as f32).collect();
        let (pixel, _) = decoder.decode(&series, 1000, 1000, &mut work, &mut vec![0.0; setup.depth.bins]);
        assert_eq!(pixel.flags & flag::AMBIGUOUS, flag::AMBIGUOUS, "{pixel:?}");
    }
}

/// Positions of which the scan runs over the mask's end, and scans too short for the expected footprint to do for all: they are
/// missed, and that is said.
#[test]
fn missed_positions_are_flagged_with_few_and_with_many_frames() {
    for frames in [201, 951] {
        let all = trials(&nominal(), frames, 1000.0, 250, 7, false);
        let wrong: Vec<&Trial> = all.iter().filter(|t| off(t, 10.0)).collect();
        let unnoticed = wrong.iter().filter(|t| t.flags & flag::AMBIGUOUS == 0).count();
        let flagged = all.iter().filter(|t| t.flags & flag::AMBIGUOUS != 0).count();
        println!("{frames} frames: {} wrong, {unnoticed} unnoticed, {flagged} of {} ambiguous", wrong.len(), all.len());
        assert!(unnoticed == 0 && !wrong.is_empty() && flagged * 4 < all.len());
    }
}

/// Pixels of two grains, `share` of the light in the brighter: flags, and the distance from the position to the nearer grain,
/// cells.
fn overlaps(setup: &DecodeSetup, peak: f64, share: f64, n: usize, seed: u64) -> Vec<(u8, f64)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mask = Mask::new(&setup.mask);
    let frame = MaskFrame::new(&setup.pose, mask.length_um, setup.mask.stretch);
    let beam = unit(setup.beam);
    let instrument = Instrument { detector: &setup.detector, region: Region::FULL, beam, mask: &mask, frame };
    let decoder = Decoder::new(setup.clone(), Region::FULL);
    let mut work = decoder.work();
    (0..n)
        .map(|_| {
            let (row, column) = (rng.random_range(0..2048), rng.random_range(0..2048));
            // Too far apart for one footprint's window.
            let depths = loop {
                let depths = [0; 2].map(|_| rng.random_range(-140.0..140.0));
                let [a, b] = depths.map(|d| instrument.code_um(d, row, column));
                if (a - b).abs() > 45.0 {
                    break depths;
                }
            };
            let seen = depths.map(|depth_um| {
                let source =
                    Source { depth_um, width_um: rng.random_range(4.0..14.0), energy_kev: rng.random_range(7.0..22.0) };
                instrument.transmission(&source, row, column, 401)
            });
            let both = seen[0].iter().zip(&seen[1]).map(|(a, b)| peak * (share * a + (1.0 - share) * b));
            let series: Vec<f32> = both.map(|c| counts(c, 65535.0, &mut rng) as f32).collect();
            let (pixel, _) = decoder.decode(&series, row, column, &mut work, &mut vec![0.0; setup.depth.bins]);
            let off = depths.map(|d| {
                ((f64::from(pixel.position_um) - instrument.code_um(d, row, column)) / setup.mask.resolution_um).abs()
            });
            (pixel.flags, off[0].min(off[1]))
        })
        .collect()
}

#[test]
fn light_of_two_grains_is_reported_and_that_of_one_is_not() {
    let setup = DecodeSetup { threshold: 1.0, ..nominal() };
    for (peak, share, least) in [(1000.0, 0.5, 99), (1000.0, 0.8, 98), (1000.0, 0.9, 90), (50.0, 0.5, 93)] {
        let all = overlaps(&setup, peak, share, 100, 11);
        let told = all.iter().filter(|p| p.0 & (flag::OVERLAP | flag::AMBIGUOUS) != 0).count();
        let named = all.iter().filter(|p| p.0 & flag::OVERLAP != 0).count();
        // What is deposited lies at one of the grains; of the few that do not, all are flagged.
        let deposited: Vec<_> = all.iter().filter(|p| p.0 & flag::AMBIGUOUS == 0).collect();
        let astray: Vec<_> = deposited.iter().filter(|p| p.1 > 4.0).collect();
        println!("{peak} {share}: {named} named, {told} told, {} deposited, {} astray", deposited.len(), astray.len());
        assert!(told >= least && astray.len() <= 3 && astray.iter().all(|p| p.0 & flag::OVERLAP != 0));
    }
    for peak in [50.0, 1000.0] {
        let single = trials(&setup, 401, peak, 300, 12, false);
        let false_alarms = single.iter().filter(|t| t.flags & flag::OVERLAP != 0).count();
        println!("{peak}: {false_alarms} of 300 false");
        assert!(false_alarms <= 1, "{false_alarms}");
    }
}

#[test]
fn a_known_energy_gives_the_open_beam_and_a_fitted_one_comes_near() {
    let all = trials(&nominal(), 401, 3000.0, 25, 4, true);
    let good: Vec<&Trial> = all.iter().filter(|t| t.flags == 0).collect();
    let worst = good.iter().map(|t| (t.intensity / 3000.0 - 1.0).abs()).fold(0.0, f64::max);
    println!("intensity: worst {worst:.3}");
    assert!(good.len() >= 24 && worst < 0.02, "{worst}");
    // Absorption per bar is what is measured; gold's edges make several energies equal in that.
    let tau = |kev: f64| super::mask::gold_per_um(kev) * 3.7;
    let near = |background| {
        let fit = DecodeSetup { energy: EnergyOptions::Fit(5.0, 30.0, 1.0), background, ..nominal() };
        let all = trials(&fit, 401, 5000.0, 60, 5, false);
        all.iter().filter(|t| (tau(t.energy.0) - tau(t.energy.1)).abs() < 0.25).count()
    };
    let (known, free) = (near(Some(0.0)), near(None));
    println!("{known} of 60 energies with a known background, {free} from shape alone");
    assert!(known >= 57 && free >= 15 && free < known, "{known} {free}");
}

#[test]
fn footprints_are_those_of_the_plain_reference() {
    let setup = nominal();
    let mask = Mask::new(&setup.mask);
    let frame = MaskFrame::new(&setup.pose, mask.length_um, setup.mask.stretch);
    let instrument =
        Instrument { detector: &setup.detector, region: Region::FULL, beam: setup.beam, mask: &mask, frame };
    let decoder = Decoder::new(setup.clone(), Region::FULL);
    let mut work = decoder.work();
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for (row, column) in [(900, 1100), (100, 1900)] {
        let source = Source { depth_um: 20.0, width_um: 9.0, energy_kev: 9.0 };
        let seen = instrument.transmission(&source, row, column, 401);
        let series: Vec<f32> = seen.iter().map(|s| counts(2000.0 * s, 65535.0, &mut rng) as f32).collect();
        let (pixel, account) = decoder.decode(&series, row, column, &mut work, &mut vec![0.0; setup.depth.bins]);
        let template = decoder.template(&decoder.view(row, column));
        let data: Vec<f64> = work.resampled().iter().map(|&d| f64::from(d)).collect();
        let expected: Vec<f64> = template.expected.iter().map(|&e| f64::from(e)).collect();
        let residuals = reference::residuals(&expected, &data);
        let offset = (0..residuals.len()).min_by(|&a, &b| residuals[a].total_cmp(&residuals[b])).unwrap();
        assert!((f64::from(pixel.position_um) / 0.5 - offset as f64).abs() <= 0.5);
        let (basis, columns, window) = decoder.basis();
        let at =
            |i: isize| usize::try_from(i).ok().and_then(|i| template.cover.get(i)).map_or(1.0, |&c| 1.0 - f64::from(c));
        let start = offset as isize - (window / 2) as isize;
        let knots = setup.footprint.knots;
        let (x, residual) = reference::footprint(at, start, basis, (columns, knots), &data, 3000);
        let share = 401.0 / data.len() as f64;
        let fast = f64::from(pixel.residual) * f64::from(pixel.mean) * 398.0 / share;
        // Both are the least there is; descent stops a little above it.
        assert!(fast <= residual * (1.0 + 1e-4) && residual <= fast * 1.01, "{fast} {residual}");
        let sum: f64 = x[..columns].iter().sum();
        assert!((sum - account.input).abs() < 0.02 * sum, "{sum} {}", account.input);
        let centre = |x: &[f64]| {
            let total: f64 = x[..columns].iter().sum();
            x[..columns].iter().enumerate().map(|(i, v)| i as f64 * v).sum::<f64>() / total
        };
        assert!(
            (centre(&x) - centre(work.coefficients())).abs() < 0.25,
            "{} {}",
            centre(&x),
            centre(work.coefficients())
        );
    }
}

#[test]
fn resampling_is_linear_and_turns_round() {
    let mut out = Vec::new();
    resample(&[0.0, 10.0, 20.0], 2.0, false, &mut out);
    assert_eq!(out, [0.0, 5.0, 10.0, 15.0, 20.0]);
    resample(&[0.0, 10.0, 20.0], 1.0, true, &mut out);
    assert_eq!(out, [20.0, 10.0, 0.0]);
    resample(&[0.0, 10.0, 20.0], 0.9, false, &mut out);
    assert_eq!(out.len(), 2);
    assert!((out[1] - 11.111).abs() < 1e-3);
    resample(&[3.0], 1.0, false, &mut out);
    assert_eq!(out, [3.0]);
}

#[test]
fn pixels_that_are_not_bright_are_left_alone() {
    let setup = nominal();
    let decoder = Decoder::new(setup.clone(), Region::FULL);
    let mut work = decoder.work();
    let mut column = vec![0.0; setup.depth.bins];
    let with = |value: f32, at: usize| {
        let mut series: Vec<f32> = (0..401).map(|k| 100.0 + (k % 7) as f32).collect();
        series[at] = value;
        series
    };
    for (series, flags) in [
        (vec![3.0; 401], flag::DIM | flag::DEAD),
        (vec![300.0; 401], flag::DEAD),
        (with(65535.0, 200), flag::SATURATED),
        (vec![f32::NAN; 401], flag::DIM | flag::DEAD),
    ] {
        let (pixel, account) = decoder.decode(&series, 5, 5, &mut work, &mut column);
        assert_eq!((pixel.flags, account), (flags, Account::default()));
        assert!(column.iter().all(|&c| c == 0.0) && pixel.intensity.is_nan());
    }
}
