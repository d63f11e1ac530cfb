//! `beampilot run`: the pilot.

use super::Exit;
use anyhow::anyhow;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Watches for scans, reconstructs and publishes them.
///
/// Under mpiexec, rank 0 coordinates and the other ranks work; without it, everything runs in this process. The
/// pilot ends when it is told to drain (SIGTERM, SIGINT or a drain sentinel) or, with --once, when nothing is left to
/// do. Starting again after any kind of death continues where it stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  beampilot run campaign.toml --once
  mpiexec -n 4 beampilot run campaign.toml")]
pub struct Args {
    /// The campaign file.
    #[arg(value_name = "CAMPAIGN.toml")]
    pub campaign: PathBuf,
    /// Process what is there, then end: 0 when everything was published, 65 when scans were quarantined.
    #[arg(long)]
    pub once: bool,
    /// Executors on this machine when there is no mpiexec, or on each rank under it; the default follows the cores.
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroUsize>,
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(_args: Args) -> anyhow::Result<Exit> {
    Err(anyhow!("not merged yet"))
}
