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
    Laue(LaueArgs),
}

/// A point of Laue microdiffraction: frames behind a coded mask or a wire, 34-ID-E layout.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  beampilot synth laue point_001.h5 --configuration config.yml --truth truth.json
  beampilot synth laue incoming/point_001 --split --rows 256 --columns 256 --spots 100
  beampilot synth laue wire_001.h5 --aperture wire --step 1 --configuration geoN.xml")]
pub struct LaueArgs {
    /// The file to write, or with --split the folder.
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
    /// What steps across the diffracted beams.
    #[arg(long, value_enum, default_value = "mask")]
    pub aperture: Aperture,
    /// Number of frames.
    #[arg(long, value_name = "N", default_value_t = 401)]
    pub frames: usize,
    /// Step of mask or wire, micrometres a frame.
    #[arg(long, value_name = "UM", default_value_t = 0.5)]
    pub step: f64,
    /// Detector rows read out, around the middle.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub rows: usize,
    /// Detector columns read out, around the middle.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub columns: usize,
    /// Number of spots.
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub spots: usize,
    /// Open-beam counts of the brightest spots.
    #[arg(long, value_name = "COUNTS", default_value_t = 1000.0)]
    pub counts: f64,
    /// Counts of every pixel that do not come past the aperture.
    #[arg(long, value_name = "COUNTS", default_value_t = 5.0)]
    pub background: f64,
    /// Depths of the sources, micrometres: two numbers; equal ones make a film.
    #[arg(long, num_args = 2, value_names = ["FROM", "TO"], default_values_t = [-80.0, 80.0], allow_negative_numbers = true)]
    pub depths: Vec<f64>,
    /// Extent of each source along the beam, micrometres.
    #[arg(long, value_name = "UM", default_value_t = 6.0)]
    pub width: f64,
    /// Pixels that are always 0.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub dead: usize,
    /// Pixels that are always saturated.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub saturated: usize,
    /// Sample position, micrometres: three numbers.
    #[arg(long, num_args = 3, value_names = ["X", "Y", "Z"], default_values_t = [0.0, 0.0, 0.0], allow_negative_numbers = true)]
    pub sample: Vec<f64>,
    /// Scan number.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub number: i64,
    /// One file a frame, in a folder.
    #[arg(long)]
    pub split: bool,
    /// Also write the configuration for it: YAML of `cold` for a mask, geoN XML for a wire.
    #[arg(long, value_name = "FILE")]
    pub configuration: Option<PathBuf>,
    /// Also write what was planted, JSON.
    #[arg(long, value_name = "FILE")]
    pub truth: Option<PathBuf>,
    /// Seed of everything random; the same seed makes the same files.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub seed: u64,
}

/// What steps across the diffracted beams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Aperture {
    /// A coded mask of gold.
    Mask,
    /// A wire.
    Wire,
}

/// Projections of an ellipsoid phantom, with flat and dark fields.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  beampilot synth tomography scan_001.h5 --size 256 --angles 180 --slices 64
  beampilot synth tomography incoming/live.h5 --size 256 --angles 180 --slices 64 --slow 8
  beampilot synth tomography k11.nxs --size 512 --angles 720 --slices 16 \\
      --range 360 --center 250.5 --layout nxtomo --noise 20000 --rings --truth truth.h5")]
pub struct TomographyArgs {
    /// The file to write; it must not exist, its folder must.
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
    match args.technique {
        Technique::Tomography(args) => tomography(args),
        Technique::Laue(args) => laue(args),
    }
}

/// Nothing is replaced: a scan that somebody measured, or a device, must not give way to one that nobody did.
fn can_be_made<const N: usize>(paths: [Option<&PathBuf>; N]) -> anyhow::Result<()> {
    for path in paths.into_iter().flatten() {
        if path.symlink_metadata().is_ok() {
            let what = anyhow::anyhow!("{}: exists already; remove it, or choose another name", path.display());
            return Err(what).or_exit(Exit::CannotCreate);
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|p| !p.is_dir()) {
            let what = anyhow::anyhow!("{}: there is no such folder; make it first", folder.display());
            return Err(what).or_exit(Exit::CannotCreate);
        }
    }
    Ok(())
}

fn laue(args: LaueArgs) -> anyhow::Result<Exit> {
    use crate::technique::laue::synth::{self, SynthOptions};
    can_be_made([Some(&args.out), args.configuration.as_ref(), args.truth.as_ref()])?;
    let options = SynthOptions {
        out: args.out,
        aperture: match args.aperture {
            Aperture::Mask => synth::Aperture::Mask,
            Aperture::Wire => synth::Aperture::Wire,
        },
        frames: args.frames,
        step_um: args.step,
        readout: [args.rows, args.columns],
        spots: args.spots,
        counts: args.counts,
        background: args.background,
        // As many as the options take.
        depths_um: std::array::from_fn(|i| args.depths.get(i).copied().unwrap_or_default()),
        width_um: args.width,
        dead: args.dead,
        saturated: args.saturated,
        sample_um: std::array::from_fn(|i| args.sample.get(i).copied().unwrap_or_default()),
        number: args.number,
        split: args.split,
        configuration: args.configuration,
        truth: args.truth,
        seed: args.seed,
    };
    synth::synth(&options).map_err(|fault| super::fault(&fault))?;
    tracing::info!("wrote {}", options.out.display());
    Ok(Exit::Done)
}

fn tomography(args: TomographyArgs) -> anyhow::Result<Exit> {
    let slow = args.slow.map(Duration::try_from_secs_f64).transpose().context("--slow").or_exit(Exit::Usage)?;
    can_be_made([Some(&args.out), args.truth.as_ref()])?;
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
