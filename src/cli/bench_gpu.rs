//! `beampilot bench gpu`: proves the kernels on the card at hand, then measures them; what `make gpu-check` runs.

use super::{Exit, OrExit};
use crate::device::compile::Cache;
use crate::device::{Choice, Gpu, Selected, cuda, open};
use crate::technique::laue::gpu as laue;
use crate::technique::tomography::gpu::bench::{self, Row, Whole};
use crate::technique::tomography::gpu::bench_frames;
use crate::technique::tomography::gpu::check::{self, Finding, Size};
use crate::technique::tomography::gpu::cost::{A100, Ceilings, H200};
use crate::technique::tomography::recipe::Algorithm;
use anyhow::{Context, anyhow};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

/// Every kernel against its reference on the CPU, whole reconstructions against the CPU's, then speeds.
///
/// Ends with 0 when everything agrees, 65 when something does not, 69 when there is no GPU to try.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  beampilot bench gpu --report docs/gpu-results.md
  beampilot bench gpu --counted")]
pub struct Args {
    /// Also write the report to this file.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Small sizes and no benchmarks: does it work at all?
    #[arg(long)]
    pub quick: bool,
    /// Seed of the random inputs; fresh ones when left out.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Only print the counted work of every kernel and what datasheets promise for it; needs no GPU.
    #[arg(long)]
    pub counted: bool,
    /// Only compile the kernels for these architectures, as sm_80, into the cache; needs no GPU.
    #[arg(long, value_name = "ARCH", num_args = 1..)]
    pub compile_for: Vec<String>,
}

/// The scan of the published figures.
const ANGLES: usize = 1500;
const COLUMNS: usize = 2048;
/// Frames at a time, where they go through whole.
const FRAMES: usize = 2;
/// Frames of a Laue point.
const LAUE_FRAMES: usize = 401;

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    if args.counted {
        super::print(&counted()?)?;
        return Ok(Exit::Done);
    }
    if !args.compile_for.is_empty() {
        return compile(&args.compile_for);
    }
    let gpu = match open(Choice::Gpu, Cache::from_environment()) {
        Selected::Gpu(gpu) => gpu,
        Selected::Cpu => return Err(anyhow!("there is no GPU")).or_exit(Exit::Unavailable),
        Selected::Unfit(why) => return Err(anyhow!(why)).or_exit(Exit::Unavailable),
    };
    let start = Instant::now();
    let seed = args
        .seed
        .unwrap_or_else(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64));
    let mut report = String::new();
    let found = proofs(&gpu, args.quick, seed)?;
    let failed = found.iter().filter(|f| !f.passed()).count();
    head(&mut report, &gpu, &found, seed)?;
    if !args.quick && failed == 0 {
        measured(&mut report, &gpu)?;
    }
    writeln!(report, "\nThe whole check took {:.0} s.", start.elapsed().as_secs_f64())?;
    super::print(&report)?;
    if let Some(path) = &args.report {
        std::fs::write(path, &report).with_context(|| path.display().to_string()).or_exit(Exit::CannotCreate)?;
    }
    Ok(if failed == 0 { Exit::Done } else { Exit::Data })
}

fn proofs(gpu: &Gpu, quick: bool, seed: u64) -> anyhow::Result<Vec<Finding>> {
    let sizes: &[(Size, Size)] = if quick {
        &[(Size { angles: 30, rows: 2, columns: 48 }, Size { angles: 24, rows: 20, columns: 48 })]
    } else {
        &[
            (Size { angles: 181, rows: 3, columns: 333 }, Size { angles: 120, rows: 21, columns: 192 }),
            (Size { angles: 300, rows: 4, columns: 512 }, Size { angles: 360, rows: 40, columns: 512 }),
        ]
    };
    let mut found = Vec::new();
    for (kernels, chains) in sizes {
        found.extend(check::kernels(gpu, *kernels, seed)?);
        found.extend(check::chains(gpu, *chains, seed).map_err(|e| anyhow!(e))?);
    }
    check::forget(gpu)?;
    let (frames, rows, columns) = if quick { (260, 1, 12) } else { (401, 16, 200) };
    let size = laue::check::Size { frames, rows, columns };
    found.extend(laue::check::kernels(gpu, size, seed)?);
    found.extend(laue::check::slabs(gpu, size, seed).map_err(|e| anyhow!(e))?);
    laue::check::forget(gpu)?;
    Ok(found)
}

fn head(out: &mut String, gpu: &Gpu, found: &[Finding], seed: u64) -> anyhow::Result<()> {
    let date = humantime::format_rfc3339_seconds(SystemTime::now());
    let driver = match cuda::discover().driver {
        cuda::Driver::Works((major, minor)) => format!("driver for CUDA {major}.{minor}"),
        _ => "driver unknown".to_owned(),
    };
    let failed = found.iter().filter(|f| !f.passed()).count();
    let verdict = if failed == 0 { "all agree".to_owned() } else { format!("{failed} DO NOT AGREE") };
    writeln!(
        out,
        "Measured on {} ({}, {driver}) at {date}: {} comparisons, {verdict}.\n",
        gpu.info.name,
        gpu.arch(),
        found.len()
    )?;
    writeln!(out, "# GPU results\n")?;
    writeln!(out, "beampilot {}, seed {seed}. Written by `make gpu-check`.\n", crate::BUILD)?;
    writeln!(out, "## Against the CPU\n\n| what | error | allowed | |\n|---|---|---|---|")?;
    for f in found {
        let word = if f.passed() { "" } else { "**FAILED**" };
        writeln!(out, "| {} | {:.1e} | {:.0e} | {word} |", f.what, f.error, f.allowed)?;
    }
    Ok(())
}

fn measured(out: &mut String, gpu: &Gpu) -> anyhow::Result<()> {
    let ceilings = bench::ceilings(gpu, 2 << 30, 10)?;
    writeln!(
        out,
        "\n## Ceilings, measured\n\nCopy {:.2} TB/s (read and written), multiply-adds {:.1} TFLOP/s, from the host {:.1} GB/s, to the \
         host {:.1} GB/s. Integer operations count as a quarter of the flops, shared memory as {:.1} TB/s (128 bytes a \
         clock and multiprocessor).",
        ceilings.memory / 1e12,
        ceilings.flops / 1e12,
        ceilings.up / 1e9,
        ceilings.down / 1e9,
        ceilings.inner / 1e12
    )?;
    for (title, algorithm, pairs) in algorithms() {
        check::forget(gpu)?;
        let rows = bench::kernels(gpu, ANGLES, COLUMNS, pairs, algorithm, 5)?;
        writeln!(out, "\n## Kernels, {title}: {ANGLES} projections, {COLUMNS} columns, {} rows a chunk", 2 * pairs)?;
        let sum = times(out, &rows, &ceilings)?;
        let chunks = COLUMNS as f64 / (2 * pairs) as f64;
        writeln!(out, "\nAll kernels of {COLUMNS}³ so take {:.2} s.", sum * chunks)?;
    }
    check::forget(gpu)?;
    let rows = bench_frames::kernels(gpu, COLUMNS, COLUMNS, FRAMES / 2, 5)?;
    writeln!(out, "\n## Kernels, phase retrieval: {FRAMES} frames of {COLUMNS}² at a time")?;
    let sum = times(out, &rows, &ceilings)?;
    writeln!(out, "\nAll kernels of {ANGLES} frames so take {:.2} s.", sum * ANGLES as f64 / FRAMES as f64)?;
    check::forget(gpu)?;
    writeln!(
        out,
        "\n## Whole scans\n\nFrom counts in host memory to 32-bit images in host memory: copies both ways and the host's packing \
         included, files and hashes not; {COLUMNS}³ from {ANGLES} projections, in slabs of 128 rows.\n\n| steps | seconds for \
         {COLUMNS} rows |\n|---|---|"
    )?;
    for (title, stripes) in [("flats, −log, gridding", false), ("the same with stripe removal", true)] {
        let Whole { rows, seconds } = bench::whole(gpu, ANGLES, COLUMNS, 128, 8, stripes).map_err(|e| anyhow!(e))?;
        writeln!(out, "| {title} | {:.2} ({rows} rows measured) |", seconds * COLUMNS as f64 / rows as f64)?;
    }
    check::forget(gpu)?;
    measured_laue(out, gpu, &ceilings)
}

const LAUE: [(&str, laue::bench::Kind); 2] =
    [("coded aperture", laue::bench::Kind::Aperture), ("wire", laue::bench::Kind::Wire)];

fn measured_laue(out: &mut String, gpu: &Gpu, ceilings: &Ceilings) -> anyhow::Result<()> {
    let side = laue::bench::DETECTOR;
    for (title, kind) in LAUE {
        let rows = laue::bench::kernels(gpu, kind, LAUE_FRAMES, 32, 5)?;
        writeln!(
            out,
            "\n## Laue, {title}: {LAUE_FRAMES} frames, every one of {side} × 32 pixels\n\n| kernel | ms | bound by | share of roofline \
             |\n|---|---|---|---|"
        )?;
        for row in &rows {
            let Some(seconds) = row.seconds.filter(|s| *s > 0.0) else { continue };
            let (floor, by) = row.work.floor(ceilings);
            writeln!(out, "| {} | {:.3} | {by} | {:.0} % |", row.name, seconds * 1e3, 100.0 * floor / seconds)?;
        }
        let slab = laue::bench::whole(gpu, kind, LAUE_FRAMES, 128, 4).map_err(|e| anyhow!(e))?;
        laue::check::forget(gpu)?;
        writeln!(
            out,
            "\nEvery pixel of {side}², from counts in host memory to depths in host memory: {:.2} s (slabs of 128 rows measured).",
            slab * (side / 128) as f64
        )?;
    }
    Ok(())
}

/// What reconstructs, and the pairs of rows of a full chunk.
fn algorithms() -> [(String, Algorithm, usize); 4] {
    let iterations = |name: &str| format!("{name}, {} iterations", bench::ITERATIONS);
    [
        ("gridding".to_owned(), Algorithm::Gridding, 8),
        ("direct back-projection".to_owned(), Algorithm::Direct, 4),
        (iterations("SIRT"), Algorithm::Sirt, 8),
        (iterations("CGLS"), Algorithm::Cgls, 8),
    ]
}

/// A table of measured kernels; returns the sum of their seconds.
fn times(out: &mut String, rows: &[Row], ceilings: &Ceilings) -> anyhow::Result<f64> {
    writeln!(out, "\n| kernel | ms | GB/s | GFLOP/s | bound by | share of roofline |\n|---|---|---|---|---|---|")?;
    let mut sum = 0.0;
    for row in rows {
        let Some(seconds) = row.seconds.filter(|s| *s > 0.0) else { continue };
        sum += seconds;
        let (floor, by) = row.work.floor(ceilings);
        writeln!(
            out,
            "| {} | {:.3} | {:.0} | {:.0} | {by} | {:.0} % |",
            row.name,
            seconds * 1e3,
            row.work.memory / seconds / 1e9,
            row.work.flops / seconds / 1e9,
            100.0 * floor / seconds
        )?;
    }
    Ok(sum)
}

/// Counted work, as a table for the documentation.
fn counted() -> anyhow::Result<String> {
    let mut out = String::new();
    for (title, algorithm, pairs) in algorithms() {
        let rows = bench::counted(ANGLES, COLUMNS, pairs, algorithm)?;
        let chunks = COLUMNS as f64 / (2 * pairs) as f64;
        writeln!(out, "{COLUMNS}³ from {ANGLES} projections, {title}, in {chunks} chunks of {} rows:\n", 2 * pairs)?;
        floors(&mut out, &rows, chunks)?;
    }
    let rows = bench_frames::counted(COLUMNS, COLUMNS, FRAMES / 2)?;
    writeln!(out, "Phase retrieval of {ANGLES} frames of {COLUMNS}², {FRAMES} at a time:\n")?;
    floors(&mut out, &rows, ANGLES as f64 / FRAMES as f64)?;
    counted_laue(&mut out)?;
    Ok(out)
}

/// A table of counted kernels, `runs` times over.
fn floors(out: &mut String, rows: &[Row], runs: f64) -> anyhow::Result<()> {
    writeln!(
        out,
        "| kernel | TB | TFLOP | T integer | TB inside | H200, s | A100, s | bound by (H200) |\n|---|---|---|---|---|---|---|---|"
    )?;
    let mut sums = [0.0; 2];
    for Row { name, work, .. } in rows {
        let work = work.times(runs);
        let floors = [H200, A100].map(|card: Ceilings| work.floor(&card));
        sums.iter_mut().zip(floors).for_each(|(sum, (floor, _))| *sum += floor);
        writeln!(
            out,
            "| {name} | {:.3} | {:.2} | {:.2} | {:.2} | {:.3} | {:.3} | {} |",
            work.memory / 1e12,
            work.flops / 1e12,
            work.integer / 1e12,
            work.inner / 1e12,
            floors[0].0,
            floors[1].0,
            floors[0].1
        )?;
    }
    writeln!(out, "| all | | | | | {:.2} | {:.2} | |\n", sums[0], sums[1])?;
    Ok(())
}

/// As [`counted`], for Laue points of which every pixel is decoded.
fn counted_laue(out: &mut String) -> anyhow::Result<()> {
    let side = laue::bench::DETECTOR;
    for (title, kind) in LAUE {
        writeln!(out, "Every pixel of {side}² with {LAUE_FRAMES} frames, {title}:\n")?;
        floors(out, &laue::bench::counted(kind, side * side, LAUE_FRAMES), 1.0)?;
    }
    let products = laue::bench::products(side * side, LAUE_FRAMES);
    let [h200, a100] = [H200, A100].map(|card| products.floor(&card).0);
    writeln!(
        out,
        "Correlations as matrix products (laue_correlate) instead of transforms: {:.2} TFLOP, {h200:.2} s, {a100:.2} s.\n",
        products.flops / 1e12
    )?;
    Ok(())
}

fn compile(architectures: &[String]) -> anyhow::Result<Exit> {
    let cache = Cache::from_environment();
    for arch in architectures {
        for program in bench::programs(COLUMNS).into_iter().chain(laue::bench::programs()) {
            cache.image(&program, arch).or_exit(Exit::Unavailable)?;
        }
    }
    Ok(Exit::Done)
}
