//! `beampilot series`: views over many bundles, made anew from the bundles.

use super::{Exit, OrExit};
use crate::technique::laue::series;
use anyhow::anyhow;
use std::path::PathBuf;

/// Makes the views over the points of a scan grid anew.
///
/// A running pilot keeps them up to date; this makes them from nothing but the bundles, at any time.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  beampilot series results/34ide")]
pub struct Args {
    /// The folder of a stream's bundles; the views are written to its folder `_live`.
    #[arg(value_name = "RESULTS")]
    pub results: PathBuf,
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    if !args.results.is_dir() {
        return Err(anyhow!("{}: there is no such folder", args.results.display())).or_exit(Exit::NoInput);
    }
    let points = series::refresh(&args.results).map_err(|fault| super::fault(&fault))?;
    super::print(&format!("{points} points in {}\n", args.results.join(series::LIVE).display()))?;
    Ok(Exit::Done)
}
