//! Speed and accuracy of Laue depth resolution, against counted work, the plain reference and planted truth.
//!
//! `cargo bench --bench laue -- [--quick] [--json] [--dump DIR] [--curves FILE.svg]`
//!
//! Pixels are synthetic, all over the detector, each of a source of its own. One thread, in its processor time. `--dump DIR` writes them with our
//! results for `benches/peers/laue.py`, which decodes the same numbers with `cold`. `--curves FILE.svg` draws the share of
//! positions that are missed by more than a cell, and of pixels reported as ambiguous, against counts and frames.

use beampilot::technique::laue::decode::{DecodeSetup, Decoder, EnergyOptions, FootprintOptions, flag};
use beampilot::technique::laue::forward::{Instrument, Source, counts};
use beampilot::technique::laue::geometry::{MaskFrame, Region};
use beampilot::technique::laue::mask::Mask;
use beampilot::technique::laue::plot::{Curve, Panel, svg};
use beampilot::technique::laue::reference;
use beampilot::technique::laue::search::{Scratch, Transforms, search};
use beampilot::technique::laue::setup::nominal;
use beampilot::technique::laue::synth::{SynthOptions, configuration, nominal_wire};
use beampilot::technique::laue::wire::{Edge, WireScan, WireSetup};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Processor time of this thread, seconds: other programs on the machine do not count.
fn cpu_s() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on Linux, and the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

struct Planted {
    row: usize,
    column: usize,
    source: Source,
    position_um: f64,
    series: Vec<f32>,
}

fn planted(setup: &DecodeSetup, frames: usize, peak: f64, n: usize, seed: u64) -> Vec<Planted> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mask = Mask::new(&setup.mask);
    let frame = MaskFrame::new(&setup.pose, mask.length_um, setup.mask.stretch);
    let instrument =
        Instrument { detector: &setup.detector, region: Region::FULL, beam: setup.beam, mask: &mask, frame };
    (0..n)
        .map(|_| {
            let (row, column) = (rng.random_range(0..2048), rng.random_range(0..2048));
            let source = Source {
                depth_um: rng.random_range(-140.0..140.0),
                width_um: rng.random_range(4.0..14.0),
                energy_kev: rng.random_range(7.0..22.0),
            };
            let seen = instrument.transmission(&source, row, column, frames);
            let series = seen.iter().map(|s| counts(peak * s, 65535.0, &mut rng) as f32).collect();
            Planted { row, column, source, position_um: instrument.code_um(source.depth_um, row, column), series }
        })
        .collect()
}

/// Missed by more than a cell, or not found.
fn off(cells: f64) -> bool {
    cells.is_nan() || cells.abs() > 1.0
}

/// Decodes all, a run for warming up and the best of two; seconds a pixel, and errors of position in cells with flags.
fn decode(setup: &DecodeSetup, pixels: &[Planted]) -> (f64, Vec<(f64, u8, f64)>) {
    let decoder = Decoder::new(setup.clone(), Region::FULL);
    let mut work = decoder.work();
    let mut best = f64::INFINITY;
    let mut found = Vec::new();
    for _ in 0..3 {
        let start = cpu_s();
        found = pixels
            .iter()
            .map(|p| {
                let mut depths = vec![0.0; setup.depth.bins];
                let (pixel, _) = decoder.decode(&p.series, p.row, p.column, &mut work, &mut depths);
                let at = f64::from(pixel.position_um);
                ((at - p.position_um) / setup.mask.resolution_um, pixel.flags, at)
            })
            .collect();
        best = best.min((cpu_s() - start) / pixels.len() as f64);
    }
    (best, found)
}

/// Seconds of one search by transforms, and by the formula as it stands; counted operations of both.
fn searches(setup: &DecodeSetup, pixel: &Planted) -> serde_json::Value {
    let mask = Mask::new(&setup.mask);
    let decoder = Decoder::new(setup.clone(), Region::FULL);
    let template = decoder.template(&decoder.view(pixel.row, pixel.column));
    let transforms = Transforms::new(mask.samples());
    let mut scratch = Scratch::new(&transforms);
    let timed = |runs: u32, mut work: Box<dyn FnMut() + '_>| {
        work();
        let start = cpu_s();
        (0..runs).for_each(|_| work());
        (cpu_s() - start) / f64::from(runs)
    };
    let fast = timed(
        50,
        Box::new(|| {
            std::hint::black_box(search(&transforms, &template, &pixel.series, 0..usize::MAX, 30, &mut scratch));
        }),
    );
    let expected: Vec<f64> = template.expected.iter().map(|&e| f64::from(e)).collect();
    let data: Vec<f64> = pixel.series.iter().map(|&d| f64::from(d)).collect();
    let plain = timed(
        2,
        Box::new(|| {
            std::hint::black_box(reference::residuals(&expected, &data));
        }),
    );
    let (n, l, f) = (mask.samples() as f64, data.len() as f64, transforms.length() as f64);
    json!({
        "samples": n, "frames": l, "transform": f,
        "flop_transforms": 2.0 * 2.5 * f * f.log2() + 3.0 * f,
        "flop_matrix": 2.0 * l * (n - l + 1.0),
        "seconds_transforms": fast, "seconds_plain": plain,
    })
}

fn wire(pixels: usize) -> f64 {
    let (spec, readings) = nominal_wire(401, 0.5);
    let setup = nominal();
    let setup = WireSetup {
        detector: setup.detector,
        beam: setup.beam,
        wire: spec,
        edge: Edge::Leading,
        threshold: 1.0,
        saturation: 65535.0,
        depth: setup.depth,
    };
    let bins = setup.depth.bins;
    // The nominal wire has a geometry of its own that cannot be wrong.
    let Ok(scan) = WireScan::new(setup, Region::FULL, &readings) else { return f64::NAN };
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let series: Vec<f32> = (0..401).map(|_| counts(900.0, 65535.0, &mut rng) as f32).collect();
    let start = cpu_s();
    for i in 0..pixels {
        std::hint::black_box(scan.resolve(&series, i % 2048, (i * 37) % 2048, &mut vec![0.0; bins]));
    }
    (cpu_s() - start) / pixels as f64
}

fn dump(
    dir: &Path,
    setup: &DecodeSetup,
    pixels: &[Planted],
    found: &[(f64, u8, f64)],
    seconds: f64,
) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut options = SynthOptions { readout: [2048, 2048], ..SynthOptions::default() };
    options.frames = pixels.first().map_or(0, |p| p.series.len());
    std::fs::write(dir.join("config.yml"), configuration(&options))?;
    let bytes: Vec<u8> = pixels.iter().flat_map(|p| p.series.iter().flat_map(|v| v.to_le_bytes())).collect();
    std::fs::write(dir.join("series.f32"), bytes)?;
    let rows: Vec<_> = pixels
        .iter()
        .zip(found)
        .map(|(p, f)| {
            json!({ "row": p.row, "column": p.column, "truth_um": p.position_um, "depth_um": p.source.depth_um,
            "ours_um": f.2, "flags": f.1 })
        })
        .collect();
    let all = json!({ "resolution_um": setup.mask.resolution_um, "frames": options.frames, "seconds_per_pixel": seconds, "pixels": rows });
    std::fs::write(dir.join("pixels.json"), all.to_string())
}

fn curves(path: &Path, n: usize) -> Result<serde_json::Value, String> {
    let setup =
        DecodeSetup { threshold: 0.0, footprint: FootprintOptions { fit: false, ..nominal().footprint }, ..nominal() };
    let levels = [25.0, 50.0, 100.0, 200.0, 400.0, 700.0, 1000.0];
    let mut table = Vec::new();
    let (mut missed, mut told) = (Vec::new(), Vec::new());
    for frames in [201usize, 401, 951] {
        let (mut m, mut a) = (Vec::new(), Vec::new());
        for (i, &peak) in levels.iter().enumerate() {
            let pixels = planted(&setup, frames, peak, n, 100 + i as u64);
            let (_, found) = decode(&setup, &pixels);
            let share = |count: usize| count as f64 / n as f64;
            let wrong = share(found.iter().filter(|f| off(f.0)).count());
            let ambiguous = share(found.iter().filter(|f| f.1 & flag::AMBIGUOUS != 0).count());
            let unnoticed = share(found.iter().filter(|f| f.1 & flag::AMBIGUOUS == 0 && off(f.0)).count());
            table.push(json!({ "frames": frames, "counts": peak, "missed": wrong, "ambiguous": ambiguous, "missed_unflagged": unnoticed }));
            // On a logarithmic axis none of n is shown as half of one.
            m.push((f64::log10(peak), wrong.max(0.5 / n as f64)));
            a.push((f64::log10(peak), ambiguous.max(0.5 / n as f64)));
        }
        missed.push((format!("{frames} frames"), m));
        told.push((format!("{frames} frames"), a));
    }
    let panel = |title: &'static str, lines: &'static [(String, Vec<(f64, f64)>)]| Panel {
        title,
        x: "log10 of counts in the open beam",
        y: "share of pixels",
        curves: lines.iter().map(|(name, points)| Curve { name, points: points.clone() }).collect(),
        log: true,
        mark: None,
    };
    let panels = [
        panel("missed by more than one cell (0.5 um)", Box::leak(missed.into_boxed_slice())),
        panel("reported as ambiguous", Box::leak(told.into_boxed_slice())),
    ];
    std::fs::write(path, svg(&panels, 2, (1100, 420))?).map_err(|e| e.to_string())?;
    Ok(json!(table))
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let has = |name: &str| args.iter().any(|a| a == name);
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).map(PathBuf::from);
    let n = if has("--quick") { 60 } else { 400 };
    let base = nominal();
    let pixels = planted(&base, 401, 1000.0, n, 1);
    // As the configuration of the reference code has it: degree 5, a knot a sample, energies.
    let as_cold = DecodeSetup {
        footprint: FootprintOptions { degree: 5, knots: 1, ..base.footprint.clone() },
        energy: EnergyOptions::Fit(5.0, 30.0, 1.0),
        ..base.clone()
    };
    let only = DecodeSetup { footprint: FootprintOptions { fit: false, ..base.footprint.clone() }, ..base.clone() };
    let (position, _) = decode(&only, &pixels);
    let (default, found) = decode(&base, &pixels);
    let (full, found_full) = decode(&as_cold, &pixels);
    let wrong = |f: &[(f64, u8, f64)]| f.iter().filter(|f| off(f.0)).count();
    let mut result = json!({
        "pixels": n,
        "seconds_per_pixel": { "position": position, "default": default, "full_chain_degree_5_energies": full },
        "missed": { "default": wrong(&found), "full": wrong(&found_full) },
        "search": searches(&base, &pixels[0]),
        "wire_seconds_per_pixel": wire(2000),
    });
    if let Some(dir) = value("--dump")
        && let Err(e) = dump(&dir, &base, &pixels, &found_full, full)
    {
        eprintln!("{}: {e}", dir.display());
    }
    if let Some(path) = value("--curves") {
        match curves(&path, if has("--quick") { 200 } else { 2000 }) {
            Ok(table) => result["curves"] = table,
            Err(e) => eprintln!("{}: {e}", path.display()),
        }
    }
    if has("--json") {
        println!("{result}");
    } else {
        println!("{result:#}");
    }
}
