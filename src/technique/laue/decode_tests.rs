//! Recovery of what the forward model planted.

use super::decode::{DecodeSetup, Decoder, EnergyOptions, flag, resample};
use super::depth::Account;
use super::forward::{Instrument, Source, counts};
use super::geometry::{MaskFrame, Region, unit};
use super::mask::Mask;
use super::setup::tests::setup;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

struct Trial {
    /// Errors of position, in samples of the mask.
    position: f64,
    depth_um: f64,
    flags: u8,
    energy: (f64, f64),
    intensity: f64,
    residual: f64,
    account: Account,
    deposited: f64,
    centroid_um: f64,
}

fn trials(setup: &DecodeSetup, frames: usize, peak: f64, n: usize, seed: u64) -> Vec<Trial> {
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
            let mut column_of_depths = vec![0.0; setup.depth.bins];
            let (pixel, account) = decoder.decode(&series, row, column, &mut work, &mut column_of_depths);
            let truth = instrument.code_um(source.depth_um, row, column);
            let deposited: f64 = column_of_depths.iter().sum();
            let moment: f64 = column_of_depths.iter().zip(setup.depth.centres_um()).map(|(a, z)| a * z).sum();
            Trial {
                position: (f64::from(pixel.position_um) - truth) / setup.mask.resolution_um,
                depth_um: f64::from(pixel.depth_um) - source.depth_um,
                flags: pixel.flags,
                energy: (f64::from(pixel.energy_kev), source.energy_kev),
                intensity: f64::from(pixel.intensity),
                residual: f64::from(pixel.residual),
                account,
                deposited,
                centroid_um: moment / deposited - source.depth_um,
            }
        })
        .collect()
}

fn missed(trials: &[Trial]) -> usize {
    trials.iter().filter(|t| !(t.position.abs() <= 1.0)).count()
}

#[test]
fn planted_positions_are_found_at_a_thousand_counts() {
    let setup = setup();
    let all = trials(&setup, 401, 1000.0, 1000, 1);
    let worst = all.iter().map(|t| t.position.abs()).fold(0.0, f64::max);
    let depth = all.iter().map(|t| t.depth_um.abs()).fold(0.0, f64::max);
    let rms = (all.iter().map(|t| t.position * t.position).sum::<f64>() / all.len() as f64).sqrt();
    println!("worst {worst:.3} samples, rms {rms:.4}, worst depth {depth:.3} um");
    assert!(missed(&all) <= 1, "{} of {} missed", missed(&all), all.len());
    assert!(all.iter().filter(|t| !(t.depth_um.abs() <= 1.0)).count() <= 1);
    assert!(all.iter().all(|t| t.account.imbalance() < 1e-6));
    assert!(all.iter().all(|t| (t.deposited - t.account.deposited).abs() <= 1e-6 * t.account.input));
    let good: Vec<&Trial> = all.iter().filter(|t| t.flags == 0).collect();
    assert!(good.len() >= 990, "{} unflagged", good.len());
    let centroid = good.iter().map(|t| t.centroid_um.abs()).sum::<f64>() / good.len() as f64;
    let residual = good.iter().map(|t| t.residual).sum::<f64>() / good.len() as f64;
    println!("mean error of the centroid {centroid:.3} um, mean residual {residual:.3}");
    assert!(centroid < 1.0, "{centroid}");
}
