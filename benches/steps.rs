//! Speed of the steps of tomography beside gridding, and their inputs for other programs to be timed on.
//!
//! `cargo bench --bench steps -- [--dump DIR]`
//!
//! Normalisation, −log, zingers and phase retrieval on frames of 512 × 1024; stripe removal and search of the axis on the
//! ellipse phantom's sinogram of 720 angles and 512 columns. Every step on one thread and on all, the best of several runs.
//! Iterations are in the bench `tomography`. `--dump DIR` writes what went in as raw little-endian f32, and the times, for
//! `benches/peers/steps.py`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use beampilot::technique::tomography::center::{self, Search};
use beampilot::technique::tomography::normalize::{self, Flat};
use beampilot::technique::tomography::paganin::{self, Optics};
use beampilot::technique::tomography::stripes::Stripes;
use beampilot::technique::tomography::titarenko::Titarenko;
use beampilot::technique::tomography::wavelet::Wavelet;
use beampilot::technique::tomography::zinger::{self, Zinger};
use beampilot::technique::tomography::{convention, phantom, stripe};
use ndarray::{Array2, Array3, Axis};
use rand::{Rng, SeedableRng};

const FRAMES: usize = 24;
const ROWS: usize = 512;
const COLUMNS: usize = 1024;
const ANGLES: usize = 720;
const SIZE: usize = 512;

struct Timer {
    one: rayon::ThreadPool,
    times: BTreeMap<String, [f64; 2]>,
}

impl Timer {
    /// Milliseconds per `items` of `work` on a copy of `input`, which is not counted; one thread, then all.
    fn of<T: Clone + Sync + Send>(&mut self, name: &str, items: usize, input: &T, work: impl Fn(&mut T) + Sync) {
        let best = || {
            let mut least = f64::INFINITY;
            for _ in 0..4 {
                let mut copy = input.clone();
                let start = Instant::now();
                work(&mut copy);
                least = least.min(start.elapsed().as_secs_f64());
            }
            1e3 * least / items as f64
        };
        let times = [self.one.install(best), best()];
        println!(
            "{name:<24} {:9.3} ms on one thread, {:9.3} ms on {}",
            times[0],
            times[1],
            rayon::current_num_threads()
        );
        self.times.insert(name.to_owned(), times);
    }
}

/// The sinogram on a background, with noise and a weak, a strong, a stuck and a fluctuating column.
fn striped(clean: &Array2<f32>, rng: &mut rand_chacha::ChaCha8Rng) -> Array2<f32> {
    let mut out = clean.mapv(|v| v + 20.0);
    out.iter_mut().for_each(|v| *v += rng.random_range(-0.5..0.5_f32));
    let n = out.ncols();
    out.column_mut(n * 2 / 5).mapv_inplace(|v| v + 3.0);
    out.column_mut(n * 3 / 5).mapv_inplace(|v| v * 0.7);
    out.column_mut(n / 3).fill(90.0);
    out.column_mut(n * 7 / 10).iter_mut().for_each(|v| *v = rng.random_range(0.0..200.0));
    out
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = arguments.iter().position(|a| a == "--dump").and_then(|i| arguments.get(i + 1)).map(PathBuf::from);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool of one thread");
    let mut timer = Timer { one, times: BTreeMap::new() };
    let dark = Array2::from_elem((ROWS, COLUMNS), 100.0_f32);
    let flat = Array2::from_shape_fn((ROWS, COLUMNS), |(y, x)| 20_000.0 + ((y * 7 + x * 13) % 500) as f32);
    let ball = |y: usize, x: usize| {
        let (dy, dx) = (y as f32 - 256.0, x as f32 - 500.0);
        (-(1.0 - (dy * dy + dx * dx) / 200_f32.powi(2)).max(0.0)).exp()
    };
    let counts = Array3::from_shape_fn((FRAMES, ROWS, COLUMNS), |(_, y, x)| {
        let zinger = if rng.random_bool(1e-4) { 20_000.0 } else { 0.0 };
        100.0 + flat[[y, x]] * ball(y, x) * (1.0 + rng.random_range(-0.01..0.01)) + zinger
    });
    let flats = [Flat { at: 0.0, mean: &flat + &dark }];
    timer.of("flat and dark", FRAMES, &counts, |data| {
        normalize::transmission(data.view_mut(), dark.view(), &flats, 0).map(|_| ()).expect("equal shapes");
    });
    let mut transmission = counts.clone();
    normalize::transmission(transmission.view_mut(), dark.view(), &flats, 0).expect("equal shapes");
    timer.of("minus log", FRAMES, &transmission, |data| {
        normalize::minus_log(data.view_mut(), 1e-6).map(|_| ()).expect("a valid floor");
    });
    timer.of("zinger 3x3", FRAMES, &transmission, |data| {
        zinger::remove(data.view_mut(), Zinger { width: 3, threshold: 0.2 }).map(|_| ()).expect("valid settings");
    });
    let optics = Optics { energy_kev: 25.0, distance_mm: 60.0, pixel_size_um: 1.3, delta_beta: 300.0 };
    timer.of("paganin", FRAMES, &transmission, |data| {
        paganin::retrieve(data.view_mut(), &optics).expect("valid optics");
    });
    let angles: Vec<f64> = (0..ANGLES).map(|i| i as f64 * std::f64::consts::PI / ANGLES as f64).collect();
    let clean = phantom::sinogram(&phantom::ellipses(), SIZE, SIZE, &angles, convention::middle(SIZE));
    let uneven = striped(&clean, &mut rng);
    let slices = 4;
    let mut stack = Array3::zeros((slices, ANGLES, SIZE));
    stack.outer_iter_mut().for_each(|mut s| s.assign(&uneven));
    for (name, method) in [
        ("stripes vo", Stripes::Vo(stripe::Stripe::default())),
        ("stripes wavelet", Stripes::Wavelet(Wavelet::default())),
        ("stripes titarenko", Stripes::Titarenko(Titarenko::default())),
    ] {
        timer.of(name, slices, &stack, |data| method.remove_slab(data.view_mut()).expect("valid settings"));
    }
    timer.of("axis vo", 1, &clean, |data| {
        center::vo(data.view(), &Search::default()).map(|_| ()).expect("a sinogram");
    });
    let Some(folder) = folder else { return };
    std::fs::create_dir_all(&folder).expect("a writable folder");
    let dump = |name: &str, values: &mut dyn Iterator<Item = &f32>| {
        let bytes: Vec<u8> = values.flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(folder.join(name), bytes).expect("a writable folder");
    };
    dump("counts.f32", &mut counts.index_axis(Axis(0), 0).iter());
    dump("flat.f32", &mut flats[0].mean.iter());
    dump("dark.f32", &mut dark.iter());
    dump("transmission.f32", &mut transmission.index_axis(Axis(0), 0).iter());
    dump("clean.f32", &mut clean.iter());
    dump("striped.f32", &mut uneven.iter());
    let times = serde_json::to_string_pretty(&timer.times).expect("numbers");
    std::fs::write(folder.join("times.json"), times).expect("a writable folder");
}
