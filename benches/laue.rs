//! Speed and accuracy of Laue depth resolution, against counted work, the plain reference and planted truth.
//!
//! `cargo bench --bench laue -- [--quick] [--json] [--pixels N] [--dump DIR] [--curves FILE.svg] [--overlaps FILE.svg] [--stripe ROWS]
//! [--series N]`
//!
//! Pixels are synthetic, all over the detector, each of a source of its own. One thread, in its processor time. `--dump DIR` writes them with our
//! results for `benches/peers/laue.py`, which decodes the same numbers with `cold`. `--curves FILE.svg` draws the share of
//! positions that are missed by more than a cell, and of pixels reported as ambiguous, against counts and frames;
//! `--overlaps FILE.svg` how often light of two grains is noticed. `--stripe ROWS` resolves so many rows of a full detector, every
//! pixel of them bright, on all threads. `--series N` shows what the map over a grid costs as it grows to N points.

use beampilot::technique::laue::decode::{DecodeSetup, Decoder, EnergyOptions, FootprintOptions, flag};
use beampilot::technique::laue::forward::{Instrument, Source, counts};
use beampilot::technique::laue::geometry::{MaskFrame, Region};
use beampilot::technique::laue::live;
use beampilot::technique::laue::mask::Mask;
use beampilot::technique::laue::plan::row_memory;
use beampilot::technique::laue::plot::{Curve, Panel, svg};
use beampilot::technique::laue::recipe::Method;
use beampilot::technique::laue::reference;
use beampilot::technique::laue::search::{Scratch, Transforms, search};
use beampilot::technique::laue::series::{self, PointNote};
use beampilot::technique::laue::setup::nominal;
use beampilot::technique::laue::slab::{Resolver, resolve};
use beampilot::technique::laue::source::Header;
use beampilot::technique::laue::synth::{SynthOptions, configuration, nominal_wire};
use beampilot::technique::laue::wire::{Edge, WireScan, WireSetup};
use ndarray::Array3;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Processor time of this thread, seconds: other programs on the machine do not count.
fn cpu_s() -> f64 {
    clock_s(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock_s(clock: libc::clockid_t) -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clocks exist on Linux, and the pointer is to a live timespec.
    unsafe { libc::clock_gettime(clock, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

struct Planted {
    row: usize,
    column: usize,
    source: Source,
    position_um: f64,
    series: Vec<f32>,
}

/// Pixels of two grains, more than 45 µm apart on the mask: too far for one footprint. The first has `share` of the light.
fn overlapping(setup: &DecodeSetup, peak: f64, share: f64, n: usize, seed: u64) -> Vec<Planted> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mask = Mask::new(&setup.mask);
    let frame = MaskFrame::new(&setup.pose, mask.length_um, setup.mask.stretch);
    let instrument =
        Instrument { detector: &setup.detector, region: Region::FULL, beam: setup.beam, mask: &mask, frame };
    (0..n)
        .map(|_| {
            let (row, column) = (rng.random_range(0..2048), rng.random_range(0..2048));
            let depths = loop {
                let depths = [0; 2].map(|_| rng.random_range(-140.0..140.0));
                let [a, b] = depths.map(|d| instrument.code_um(d, row, column));
                if (a - b).abs() > 45.0 {
                    break depths;
                }
            };
            let sources = depths.map(|depth_um| Source {
                depth_um,
                width_um: rng.random_range(4.0..14.0),
                energy_kev: rng.random_range(7.0..22.0),
            });
            let seen = sources.map(|s| instrument.transmission(&s, row, column, 401));
            let both = seen[0].iter().zip(&seen[1]).map(|(a, b)| peak * (share * a + (1.0 - share) * b));
            let series = both.map(|c| counts(c, 65535.0, &mut rng) as f32).collect();
            let [source, _] = sources;
            Planted { row, column, source, position_um: instrument.code_um(source.depth_um, row, column), series }
        })
        .collect()
}

/// A curve's name and points.
type Line = (String, Vec<(f64, f64)>);

/// How often a second grain is noticed, and how often one is seen where there is none, against counts.
fn overlaps(path: &Path, n: usize) -> Result<serde_json::Value, String> {
    let setup = DecodeSetup { threshold: 0.0, ..nominal() };
    let levels = [25.0, 50.0, 100.0, 200.0, 400.0, 700.0, 1000.0];
    let mut table = Vec::new();
    let mut lines: [Vec<Line>; 2] = [Vec::new(), Vec::new()];
    for second in [0.5, 0.3, 0.2, 0.1, 0.05, 0.0] {
        let (mut named, mut quiet) = (Vec::new(), Vec::new());
        for (i, &peak) in levels.iter().enumerate() {
            let seed = 200 + i as u64;
            let pixels = if second > 0.0 {
                overlapping(&setup, peak, 1.0 - second, n, seed)
            } else {
                planted(&setup, 401, peak, n, seed)
            };
            let (_, found) = decode(&setup, &pixels);
            let share = |of: &dyn Fn(&(f64, u8, f64)) -> bool| found.iter().filter(|f| of(f)).count() as f64 / n as f64;
            let overlap = share(&|f| f.1 & flag::OVERLAP != 0);
            let unnoticed = share(&|f| f.1 & (flag::OVERLAP | flag::AMBIGUOUS) == 0);
            let ambiguous = share(&|f| f.1 & flag::AMBIGUOUS != 0);
            // Deposited away from the brighter grain; of two alike either will do, and is not looked at.
            let astray = share(&|f| f.1 & flag::AMBIGUOUS == 0 && f.0.abs() > 4.0);
            table.push(json!({ "second": second, "counts": peak, "overlap": overlap, "ambiguous": ambiguous, "unnoticed": unnoticed, "deposited_astray": astray }));
            named.push((f64::log10(peak), overlap.max(0.5 / n as f64)));
            quiet.push((f64::log10(peak), unnoticed.max(0.5 / n as f64)));
        }
        let name = if second > 0.0 { format!("second {:.0} %", 100.0 * second) } else { "one grain".to_owned() };
        if second > 0.0 {
            lines[0].push((name.clone(), quiet));
        }
        lines[1].push((name, named));
    }
    let panel = |title: &'static str, lines: &'static [Line]| Panel {
        title,
        x: "log10 of counts in the open beam",
        y: "share of pixels",
        curves: lines.iter().map(|(name, points)| Curve { name, points: points.clone() }).collect(),
        log: true,
        mark: None,
    };
    let [missed, named] = lines.map(|l| &*Box::leak(l.into_boxed_slice()));
    let panels =
        [panel("two grains, neither overlap nor ambiguous reported", missed), panel("reported as overlap", named)];
    std::fs::write(path, svg(&panels, 2, (1100, 420))?).map_err(|e| e.to_string())?;
    Ok(json!(table))
}

/// Rows of a full detector, every pixel of them bright: what a slab of a full-size point takes.
fn stripe(rows: usize) -> Result<serde_json::Value, String> {
    let setup = nominal();
    let (frames, columns, first) = (401, 2048, 1024 - rows / 2);
    let mask = Mask::new(&setup.mask);
    let frame = MaskFrame::new(&setup.pose, mask.length_um, setup.mask.stretch);
    let instrument =
        Instrument { detector: &setup.detector, region: Region::FULL, beam: setup.beam, mask: &mask, frame };
    // One source for sixteen columns of all rows; every pixel has a geometry and a noise of its own.
    let mut raw = Array3::<f32>::zeros((frames, rows, columns));
    let per_column: Vec<Vec<f64>> = (0..columns)
        .into_par_iter()
        .map(|column| {
            let mut rng = ChaCha8Rng::seed_from_u64(column as u64 / 16);
            let source = Source {
                depth_um: rng.random_range(-140.0..140.0),
                width_um: rng.random_range(4.0..14.0),
                energy_kev: rng.random_range(7.0..22.0),
            };
            instrument.transmission(&source, 1024, column, frames)
        })
        .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for row in 0..rows {
        for (column, seen) in per_column.iter().enumerate() {
            for (k, s) in seen.iter().enumerate() {
                raw[[k, row, column]] = counts(1000.0 * s, 65535.0, &mut rng) as f32;
            }
        }
    }
    let resolver =
        Resolver::of(&Method::Aperture(Box::new(setup.clone())), Region::FULL, &[]).map_err(|e| e.to_string())?;
    let before = peak_memory();
    let (start, cpu) = (std::time::Instant::now(), clock_s(libc::CLOCK_PROCESS_CPUTIME_ID));
    let slab = resolve(&resolver, raw.view(), first, 0..columns, setup.depth.bins);
    let seconds = start.elapsed().as_secs_f64();
    let cpu = clock_s(libc::CLOCK_PROCESS_CPUTIME_ID) - cpu;
    let pixels = rows * columns;
    let threads = rayon::current_num_threads();
    let held = 4 * (raw.len() + slab.stack.len()) as u64;
    Ok(json!({
        "rows": rows, "columns": columns, "frames": frames, "threads": threads, "seconds": seconds,
        "core_seconds": cpu, "core_ms_per_pixel": 1e3 * cpu / pixels as f64,
        "full_detector_core_seconds": cpu * 2048.0 / rows as f64,
        "counts_and_depths_MiB": held as f64 / 1048576.0,
        "peak_above_counts_MiB": (peak_memory().saturating_sub(before)) as f64 / 1048576.0,
        "planned_MiB": row_memory(frames, columns, setup.depth.bins) as f64 * rows as f64 / 1048576.0,
        "resolved": slab.sums.pixels.last().map(|&n| n as f64 / pixels as f64),
        "imbalance": slab.sums.account.imbalance(),
    }))
}

/// The most memory that this process had at a time, bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Seconds of a refresh of the views over a grid, with so many points in it; and of all refreshes of a series that comes at once.
fn series_cost(most: usize) -> Result<serde_json::Value, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let grid = nominal().depth;
    let histogram: Vec<f64> = (0..grid.bins).map(|m| (m as f64 * 0.37).sin().abs() * 1e5).collect();
    let put = |i: usize| -> std::io::Result<()> {
        let at = [(i % 71) as f64, 0.0, (i / 71) as f64];
        let note = PointNote {
            scan: format!("p{i}"),
            last_byte_ms: i as u64,
            header: Header { sample_um: Some(at), ..Header::default() },
            depth: grid,
            histogram: histogram.clone(),
            intensity: 1.0,
            decoded: 1,
        };
        let bundle = dir.path().join(format!("p{i:05}"));
        std::fs::create_dir(&bundle)?;
        std::fs::write(bundle.join("point.json"), serde_json::to_vec(&note).unwrap_or_default())
    };
    let mut table = Vec::new();
    let mut made = 0;
    for n in [100, 300, 1000, 3000, 10_000].into_iter().filter(|n| *n <= most) {
        (made..n).try_for_each(put).map_err(|e| e.to_string())?;
        made = n;
        // Notes that are new to the process are read once.
        let cold = std::time::Instant::now();
        series::refresh(dir.path()).map_err(|e| e.to_string())?;
        let first = cold.elapsed().as_secs_f64();
        let start = std::time::Instant::now();
        series::refresh(dir.path()).map_err(|e| e.to_string())?;
        table.push(json!({ "points": n, "first_s": first, "again_s": start.elapsed().as_secs_f64() }));
    }
    // As the pilot does it: a wish after each publication.
    let more = 300;
    let start = std::time::Instant::now();
    for i in made..made + more {
        put(i).map_err(|e| e.to_string())?;
        live::wish(dir.path());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let settled = live::settle(std::time::Duration::from_secs(60));
    Ok(json!({ "refresh": table, "publications": more, "seconds": start.elapsed().as_secs_f64(), "settled": settled }))
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

/// How near positions, depths and intensities come to what was planted.
fn accuracy(setup: &DecodeSetup, pixels: &[Planted]) -> serde_json::Value {
    let decoder = Decoder::new(setup.clone(), Region::FULL);
    let mut work = decoder.work();
    let (mut missed, mut deep, mut squares, mut lost) = (0, 0, 0.0, 0.0f64);
    for p in pixels {
        let mut depths = vec![0.0; setup.depth.bins];
        let (pixel, account) = decoder.decode(&p.series, p.row, p.column, &mut work, &mut depths);
        let cells = (f64::from(pixel.position_um) - p.position_um) / setup.mask.resolution_um;
        let depth = f64::from(pixel.depth_um) - p.source.depth_um;
        missed += usize::from(off(cells));
        deep += usize::from(depth.is_nan() || depth.abs() > 1.0);
        squares += cells * cells;
        let deposited: f64 = depths.iter().sum();
        lost = lost.max(account.imbalance()).max((deposited - account.deposited).abs() / account.input.max(1.0));
    }
    json!({
        "pixels": pixels.len(), "off_by_more_than_a_cell": missed, "off_by_more_than_1_um_of_depth": deep,
        "rms_cells": (squares / pixels.len() as f64).sqrt(), "most_intensity_unaccounted": lost,
    })
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
    let decoder = Decoder::new(setup.clone(), Region::FULL);
    let rows: Vec<_> = pixels
        .iter()
        .zip(found)
        .map(|(p, f)| {
            let view = decoder.view(p.row, p.column);
            json!({ "row": p.row, "column": p.column, "truth_um": p.position_um, "depth_um": p.source.depth_um,
            "ours_um": f.2, "flags": f.1, "step_cells": view.step_um / setup.mask.resolution_um,
            "blur_um": setup.mask.thickness_um * view.slope, "width_cells": decoder.template(&view).width })
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
    let panel = |title: &'static str, lines: &'static [Line]| Panel {
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
    let n = match value("--pixels").and_then(|v| v.to_str()?.parse().ok()) {
        Some(n) => n,
        None if has("--quick") => 60,
        None => 400,
    };
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
        "accuracy": accuracy(&base, &pixels),
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
    let number = |name: &str| value(name).and_then(|v| v.to_str()?.parse::<usize>().ok());
    let n = if has("--quick") { 200 } else { 1000 };
    for (name, measured) in [
        ("overlaps", value("--overlaps").map(|path| overlaps(&path, n))),
        ("stripe", number("--stripe").map(stripe)),
        ("series", number("--series").map(series_cost)),
    ] {
        match measured {
            Some(Ok(table)) => result[name] = table,
            Some(Err(e)) => eprintln!("{name}: {e}"),
            None => {}
        }
    }
    if has("--json") {
        println!("{result}");
    } else {
        println!("{result:#}");
    }
}
