//! `beampilot synth`: scans that nobody measured, for trying things out.

use super::{Exit, OrExit};
use crate::technique::tomography::synth::{SynthLayout, SynthOptions, synth};
use anyhow::Context;
use clap::{Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Makes synthetic scans.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  beampilot synth tomography scan_001.h5 --size 256 --angles 180 --slices 64")]
pub struct Args {
    /// Which technique.
    #[command(subcommand)]
    pub technique: Technique,
}

/// Techniques that can be synthesised.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // Described at its `Args`.
pub enum Technique {
    Tomography(TomographyArgs),
}

/// Projections of an ellipsoid phantom, with flat and dark fields.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  beampilot synth tomography scan_001.h5 --size 256 --angles 180 --slices 64
  beampilot synth tomography incoming/live.h5 --size 256 --angles 180 --slices 64 --slow 8
  beampilot synth tomography k11.nxs --size 512 --angles 720 --slices 16 \\
      --range 360 --center 250.5 --layout nxtomo --noise 20000 --rings --truth truth.h5")]
pub struct TomographyArgs {
    /// The file to write.
    #[arg(value_name = "OUT.h5")]
    pub out: PathBuf,
    /// Width of a projection, pixels.
    #[arg(long, value_name = "N")]
    pub size: usize,
    /// Number of projections.
    #[arg(long, value_name = "A")]
    pub angles: usize,
    /// Number of detector rows, each one slice.
    #[arg(long, value_name = "S")]
    pub slices: usize,
    /// Degrees the sample turns.
    #[arg(long, value_enum, default_value = "180", value_name = "DEGREES")]
    pub range: Range,
    /// Column of the rotation axis, pixels; the middle of the detector by default.
    #[arg(long, value_name = "PX")]
    pub center: Option<f64>,
    /// How the file is laid out.
    #[arg(long, value_enum, default_value = "data-exchange")]
    pub layout: Layout,
    /// Compress the chunks, with the layout `nxtomo`.
    #[arg(long)]
    pub packed: bool,
    /// Photons a pixel in the open beam, for Poisson noise; none by default.
    #[arg(long, value_name = "PHOTONS")]
    pub noise: Option<f64>,
    /// Give some detector columns a wrong gain, which makes rings.
    #[arg(long)]
    pub rings: bool,
    /// Seed of everything random; the same seed makes the same file.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub seed: u64,
    /// Also write what was measured, as a volume.
    #[arg(long, value_name = "TRUTH.h5")]
    pub truth: Option<PathBuf>,
    /// Take this long to write, in place and under the final name, as a detector does.
    #[arg(long, value_name = "SECONDS")]
    pub slow: Option<f64>,
}

/// Degrees the sample turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Range {
    /// Half a turn.
    #[value(name = "180")]
    Half,
    /// A whole turn.
    #[value(name = "360")]
    Full,
}

/// File layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// `/exchange/data`, as at APS.
    DataExchange,
    /// An NXtomo entry, as at Diamond.
    Nxtomo,
    /// ALS 8.3.2 as it writes today.
    Als,
    /// ALS 8.3.2 as it wrote before.
    AlsLegacy,
    /// A folder with a TIFF file for each frame.
    Tiff,
}

/// Gain error of ring-making columns.
const RING_GAIN: f64 = 0.05;

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let Technique::Tomography(args) = args.technique;
    let slow = args.slow.map(Duration::try_from_secs_f64).transpose().context("--slow").or_exit(Exit::Usage)?;
    let options = SynthOptions {
        out: args.out,
        size: args.size,
        angles: args.angles,
        slices: args.slices,
        range_deg: match args.range {
            Range::Half => 180.0,
            Range::Full => 360.0,
        },
        center: args.center,
        layout: match args.layout {
            Layout::DataExchange => SynthLayout::DataExchange,
            Layout::Nxtomo => SynthLayout::NxTomo,
            Layout::Als => SynthLayout::Als,
            Layout::AlsLegacy => SynthLayout::AlsLegacy,
            Layout::Tiff => SynthLayout::Tiff,
        },
        packed: args.packed,
        photons: args.noise,
        rings: if args.rings { RING_GAIN } else { 0.0 },
        seed: args.seed,
        truth: args.truth,
        slow,
        ..SynthOptions::default()
    };
    synth(&options).map_err(|fault| super::fault(&fault))?;
    tracing::info!("wrote {}", options.out.display());
    Ok(Exit::Done)
}
