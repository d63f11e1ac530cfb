//! Speed and accuracy of the tomography numerics, against the machine's own floor.
//!
//! `cargo bench --bench tomography -- [--json] [--quick] [--iterations] [--dump DIR]`
//!
//! For each size (512² × 720 and 1024² × 1024, an ellipse phantom that fills 90 % of the width): time per slice of gridding
//! on one thread and on all, flops and bytes as counted by the plan, GFLOP/s and GB/s, the floor (whichever is longer of
//! flops at the measured peak and bytes at the measured copy bandwidth), error against the point-sampled phantom per filter,
//! the difference from the direct reference, and the time of stripe removal. `--iterations`: instead of that, SIRT and CGLS on
//! 512² × 720, time per slice and iteration on one thread, and error after some. `--dump DIR` writes sinogram, truth and our
//! images as raw little-endian f32 for `benches/peers/tomography.py`; also those of one column less, for programs that have
//! the axis in the middle of a pixel only.

use std::path::PathBuf;
use std::time::Instant;

use beampilot::technique::tomography::filter::Filter;
use beampilot::technique::tomography::gridding::{Geometry, Plan};
use beampilot::technique::tomography::iterative::{self, Method, Stopping};
use beampilot::technique::tomography::{convention, direct, mask, phantom, stripe};
use ndarray::{Array2, Array3, ArrayView2, Axis};
use rand::{Rng, SeedableRng};
use serde_json::json;

/// Best of several runs, seconds: noise from other processes only ever adds.
fn best(runs: usize, mut work: impl FnMut()) -> f64 {
    work();
    (0..runs)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

/// Multiply-adds per second of one thread with everything in registers, as flops.
fn peak_flops() -> f64 {
    #[inline(always)]
    fn body<const FMA: bool>(n: usize) -> f32 {
        // Twelve independent chains of eight: enough to hide the latency of four to five cycles on two units.
        let mut a = [[1.0_f32; 8]; 12];
        let x = std::hint::black_box([1e-6_f32; 8]);
        let y = std::hint::black_box([0.999_999_f32; 8]);
        for _ in 0..n {
            for chain in &mut a {
                for l in 0..8 {
                    chain[l] = if FMA { chain[l].mul_add(y[l], x[l]) } else { chain[l] * y[l] + x[l] };
                }
            }
        }
        a.iter().flatten().sum()
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn fused(n: usize) -> f32 {
        body::<true>(n)
    }
    let n = 20_000_000;
    let seconds = best(2, || {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: both features were found on this CPU.
            std::hint::black_box(unsafe { fused(n) });
            return;
        }
        std::hint::black_box(body::<false>(n));
    });
    (n * 12 * 8 * 2) as f64 / seconds
}

/// Bytes per second (read plus written) of one thread that copies memory too large for the caches.
fn copy_bandwidth() -> f64 {
    let from = vec![1.0_f32; 64 << 20];
    let mut to = vec![0.0_f32; 64 << 20];
    let seconds = best(3, || to.copy_from_slice(std::hint::black_box(&from)));
    std::hint::black_box(&to);
    2.0 * 4.0 * from.len() as f64 / seconds
}

fn relative_l2(got: ArrayView2<f32>, want: ArrayView2<f32>) -> f64 {
    let mut sums = (0.0, 0.0);
    for (&g, &w) in got.iter().zip(&want) {
        assert!(g.is_finite());
        sums.0 += f64::from(g - w).powi(2);
        sums.1 += f64::from(w).powi(2);
    }
    (sums.0 / sums.1).sqrt()
}

/// The sinogram with a background, noise of 0.3, and a weak, a strong, a stuck and a fluctuating column.
fn striped(sinogram: &Array2<f32>) -> Array2<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(17);
    let mut out = sinogram.mapv(|v| v + 20.0);
    out.iter_mut().for_each(|v| *v += rng.random_range(-0.5..0.5_f32));
    let n = out.ncols();
    out.column_mut(n * 2 / 5).mapv_inplace(|v| v + 3.0);
    out.column_mut(n * 3 / 5).mapv_inplace(|v| v * 0.7);
    out.column_mut(n / 3).fill(90.0);
    out.column_mut(n * 7 / 10).iter_mut().for_each(|v| *v = rng.random_range(0.0..200.0));
    out
}

fn dump(path: PathBuf, data: &Array2<f32>) {
    let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn half_turn(turns: usize) -> Vec<f64> {
    (0..turns).map(|i| i as f64 * std::f64::consts::PI / turns as f64).collect()
}

/// SIRT and CGLS, unconstrained: milliseconds per slice and iteration, and the error after as many iterations as listed.
fn iterations(one: &rayon::ThreadPool, folder: Option<&PathBuf>) -> serde_json::Value {
    const SLICES: usize = 8;
    let (size, turns) = (512, 720);
    let angles = half_turn(turns);
    let sinogram = phantom::sinogram(&phantom::ellipses(), size, size, &angles, convention::middle(size));
    let truth = phantom::truth(&phantom::ellipses(), size);
    let mut stack = Array3::zeros((SLICES, turns, size));
    stack.outer_iter_mut().for_each(|mut s| s.assign(&sinogram));
    let geometry = Geometry::new(size, &angles);
    let run = |stack: &Array3<f32>, method, iterations| {
        let stopping = Stopping { iterations, tolerance: 0.0, noise: 0.0, nonnegative: false };
        iterative::reconstruct(stack.view(), &geometry, method, &stopping).expect("a valid geometry").0
    };
    let mut all = serde_json::Map::new();
    for (name, method, counts) in [("sirt", Method::Sirt, [10, 30]), ("cgls", Method::Cgls, [5, 10])] {
        let mut errors = serde_json::Map::new();
        for count in counts {
            let mut image = run(&stack.slice(ndarray::s![..1, .., ..]).to_owned(), method, count);
            mask::circle(image.view_mut(), 1.0, 0.0);
            let image = image.index_axis_move(Axis(0), 0);
            errors.insert(count.to_string(), json!(relative_l2(image.view(), truth.view())));
            if let Some(folder) = folder {
                dump(folder.join(format!("{size}-{name}-{count}.f32")), &image);
            }
        }
        // What happens once is left out: the difference of two runs.
        let seconds = |count| one.install(|| best(2, || drop(std::hint::black_box(run(&stack, method, count)))));
        let each = (seconds(9) - seconds(1)) / 8.0 / SLICES as f64;
        all.insert(name.into(), json!({ "ms_per_iteration": each * 1e3, "errors": errors }));
    }
    all.into()
}

/// The phantom on one column less: sinogram, truth and our image.
fn dump_odd(folder: &std::path::Path) {
    for (size, turns) in [(511, 720), (1023, 1024)] {
        let angles = half_turn(turns);
        let sinogram = phantom::sinogram(&phantom::ellipses(), size, size, &angles, convention::middle(size));
        let plan = Plan::new(&Geometry::new(size, &angles)).expect("a valid geometry");
        let image = plan.reconstruct(sinogram.view().insert_axis(Axis(0))).expect("planned shapes");
        dump(folder.join(format!("{size}-sinogram.f32")), &sinogram);
        dump(folder.join(format!("{size}-truth.f32")), &phantom::truth(&phantom::ellipses(), size));
        dump(folder.join(format!("{size}-shepp-logan.f32")), &image.index_axis_move(Axis(0), 0));
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let folder = arguments.iter().position(|a| a == "--dump").and_then(|i| arguments.get(i + 1)).map(PathBuf::from);
    let (json, quick) = (has("--json"), has("--quick"));
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool of one thread");
    if let Some(folder) = &folder {
        std::fs::create_dir_all(folder).expect("a writable folder");
        dump_odd(folder);
    }
    if has("--iterations") {
        println!("{:#}", iterations(&one, folder.as_ref()));
        return;
    }
    let threads = rayon::current_num_threads();
    let (flops_peak, bandwidth) = (peak_flops(), copy_bandwidth());
    if !json {
        println!(
            "{threads} threads; one thread: peak {:.1} GFLOP/s, copy {:.1} GB/s",
            flops_peak / 1e9,
            bandwidth / 1e9
        );
    }
    let mut report = Vec::new();
    for (size, turns) in [(512, 720), (1024, 1024)] {
        let angles = half_turn(turns);
        let ellipses = phantom::ellipses();
        let sinogram = phantom::sinogram(&ellipses, size, size, &angles, convention::middle(size));
        let truth = phantom::truth(&ellipses, size);
        let mut errors = serde_json::Map::new();
        let stack = |n: usize| {
            let mut all = Array3::zeros((n, turns, size));
            all.outer_iter_mut().for_each(|mut s| s.assign(&sinogram));
            all
        };
        for filter in Filter::ALL {
            let plan = Plan::new(&Geometry { filter, ..Geometry::new(size, &angles) }).expect("a valid geometry");
            let mut image = plan.reconstruct(stack(1).view()).expect("planned shapes");
            mask::circle(image.view_mut(), 1.0, 0.0);
            let image = image.index_axis_move(Axis(0), 0);
            errors.insert(filter.name().into(), json!(relative_l2(image.view(), truth.view())));
            if let Some(folder) = &folder {
                dump(folder.join(format!("{size}-{filter}.f32")), &image);
                dump(folder.join(format!("{size}-sinogram.f32")), &sinogram);
                dump(folder.join(format!("{size}-truth.f32")), &truth);
            }
        }
        if let Some(folder) = &folder {
            let mut even = striped(&sinogram);
            dump(folder.join(format!("{size}-striped.f32")), &even);
            stripe::remove(even.view_mut(), &stripe::Stripe::default()).expect("valid settings");
            dump(folder.join(format!("{size}-stripe.f32")), &even);
        }
        let uneven = striped(&sinogram);
        let stripes = best(3, || {
            let mut even = uneven.clone();
            stripe::remove(even.view_mut(), &stripe::Stripe::default()).expect("valid settings");
        });
        let geometry = Geometry::new(size, &angles);
        let plan = Plan::new(&geometry).expect("a valid geometry");
        let planning = best(2, || drop(std::hint::black_box(Plan::new(&geometry))));
        let cost = plan.cost();
        let mut timings = Vec::new();
        let floor = (cost.flops / flops_peak).max(cost.bytes / bandwidth);
        for (used, slices) in [(1, 16), (1, 8), (1, 2), (threads, 16 * threads), (threads, threads), (threads, 1)] {
            let data = stack(slices);
            let mut images = Array3::zeros((slices, size, size));
            let mut run = || plan.reconstruct_into(data.view(), images.view_mut()).expect("planned shapes");
            let runs = if quick { 1 } else { 5 };
            let seconds = if used == 1 { one.install(|| best(runs, &mut run)) } else { best(runs, &mut run) };
            let slice = seconds / slices as f64;
            let core = slice * used as f64;
            timings.push(json!({
                "threads": used, "slices": slices, "ms_per_slice": slice * 1e3,
                "gflops_per_thread": cost.flops / core / 1e9, "gbytes_per_thread": cost.bytes / core / 1e9,
                "times_floor": core / floor,
            }));
            if !json {
                println!(
                    "{size}² × {turns}: {slices:3} slices on {used} threads: {:7.2} ms/slice, {:5.1} GFLOP/s and {:5.2} GB/s a thread, {:.2} × floor",
                    slice * 1e3,
                    cost.flops / core / 1e9,
                    cost.bytes / core / 1e9,
                    core / floor
                );
            }
        }
        let difference = (!quick && size == 512).then(|| {
            let mut slow = direct::reconstruct(stack(1).view(), &geometry, 16).expect("planned shapes");
            let mut fast = plan.reconstruct(stack(1).view()).expect("planned shapes");
            mask::circle(slow.view_mut(), 1.0, 0.0);
            mask::circle(fast.view_mut(), 1.0, 0.0);
            relative_l2(fast.index_axis(Axis(0), 0), slow.index_axis(Axis(0), 0))
        });
        if !json {
            println!("  errors against the phantom: {}", serde_json::Value::from(errors.clone()));
            println!(
                "  stripe removal on one thread: {:.1} ms/slice; against direct: {difference:?}; {:.1} MFLOP and {:.1} MB a slice; plan {:.1} ms; scratch {:.0} MB a thread",
                stripes * 1e3,
                cost.flops / 1e6,
                cost.bytes / 1e6,
                planning * 1e3,
                plan.scratch_bytes(1) as f64 / 1e6
            );
        }
        report.push(json!({
            "size": size, "angles": turns, "filter": Filter::default().name(), "errors": errors, "timings": timings,
            "flops_per_slice": cost.flops, "bytes_per_slice": cost.bytes, "against_direct": difference,
            "plan_ms": planning * 1e3, "stripe_ms_per_slice": stripes * 1e3,
        }));
    }
    if json {
        let all = json!({ "threads": threads, "peak_gflops": flops_peak / 1e9, "copy_gbytes": bandwidth / 1e9, "cases": report });
        println!("{all:#}");
    }
}
