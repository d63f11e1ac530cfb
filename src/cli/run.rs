//! `beampilot run`: the pilot.

use super::{Exit, OrExit};
use crate::campaign::Campaign;
use crate::coordinator::pilot::{self, PilotServices};
use crate::store::{Layout, RealFs};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

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
    /// Executors in this process; the default follows the cores. Under mpiexec each rank is one executor.
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroUsize>,
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    // Every rank reads the campaign, so that all of them end with the same words when it is wrong.
    let campaign = Campaign::load(&args.campaign).or_exit(Exit::Config)?;
    pilot::validate(&campaign).or_exit(Exit::Config)?;
    let id = pilot::new_id();
    match Layout::open(&RealFs, &campaign.state) {
        Ok(_) => {}
        Err(e) if e.is_storage() => return Err(e).or_exit(Exit::TryLater),
        Err(e) => return Err(e).or_exit(Exit::Config),
    }
    pilot::fit_for_state(&campaign.state).or_exit(Exit::Config)?;
    pilot::own_outputs(&campaign).or_exit(Exit::Config)?;
    super::log::to_file(&campaign.state, &id);
    let joined = match pilot::join(args.workers, Arc::new(PilotServices), pilot::Executors::from_environment()) {
        Ok(Some(joined)) => joined,
        Ok(None) => return Ok(Exit::Done),
        Err(e) if e.is_configuration() => return Err(e).or_exit(Exit::Config),
        Err(e) => return Err(e).or_exit(Exit::Unavailable),
    };
    campaign.warnings.iter().for_each(|w| tracing::warn!("{w}"));
    let options = pilot::Options { once: args.once, terminal: super::shows_progress(), until: None };
    let summary = pilot::run(&campaign, &id, joined, &options).or_exit(Exit::Unavailable)?;
    let code = summary.exit_code();
    Ok(Exit::ALL.into_iter().find(|e| e.code() == code).unwrap_or(Exit::Failed))
}
