//! `beampilot run`: the pilot.

use super::exit::coded;
use super::{Exit, OrExit};
use crate::campaign::Campaign;
use crate::coordinator::pilot::{self, PilotError, PilotServices};
use crate::site::{binding, walltime};
use crate::store::{Layout, RealFs};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Watches for scans, reconstructs and publishes them.
///
/// Under mpiexec, rank 0 coordinates and the other ranks work; without it, everything runs in this process. The
/// pilot ends when it is told to (SIGTERM, SIGINT and SIGHUP: at once; a drain sentinel: when what it holds is done) or, with
/// --once, when nothing is left to do. Starting again after any kind of death continues where it stopped.
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
    /// When this job ends: +30m, or a time such as 2026-11-25T14:00:00Z. Without it the scheduler is asked.
    #[arg(long, value_name = "TIME", value_parser = walltime::until_argument)]
    pub until: Option<SystemTime>,
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let (campaign, _) = prepare(&args.campaign)?;
    let id = pilot::new_id();
    super::log::to_file(&campaign.state, &id);
    binding::report();
    let joined = match pilot::join(args.workers, Arc::new(PilotServices), pilot::Executors::from_environment()) {
        Ok(Some(joined)) => joined,
        Ok(None) => return Ok(Exit::Done),
        Err(e) if e.is_configuration() => return Err(e).or_exit(Exit::Config),
        Err(e) => return Err(e).or_exit(Exit::Unavailable),
    };
    campaign.warnings.iter().for_each(|w| tracing::warn!("{w}"));
    // Only rank 0 gets here: one question to the scheduler, not one for each rank.
    let until = args.until.or_else(walltime::job_end);
    if let Some(until) = until {
        tracing::info!(until = %walltime::rfc3339(until), "the job ends");
    }
    warn_if_past(until);
    let options = pilot::Options { once: args.once, terminal: super::shows_progress(), until };
    let summary = pilot::run(&campaign, &id, joined, &options).map_err(|e| coded(exit_of(&e), e.into()))?;
    let code = summary.exit_code();
    Ok(Exit::ALL.into_iter().find(|e| e.code() == code).unwrap_or(Exit::Failed))
}

/// Why a pilot could not start, as a code.
fn exit_of(error: &PilotError) -> Exit {
    match error {
        PilotError::Layout(e) => super::campaign::exit_of(e),
        PilotError::Campaign(_) | PilotError::Shared { .. } | PilotError::UnfitFilesystem { .. } => Exit::Config,
        PilotError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Exit::Permission,
        PilotError::Io { .. } => Exit::Unavailable,
    }
}

/// A mistyped time would otherwise look like work that was done.
pub(super) fn warn_if_past(until: Option<SystemTime>) {
    if let Some(until) = until.filter(|at| *at < SystemTime::now()) {
        let until = walltime::rfc3339(until);
        tracing::warn!(%until, "the job's end has passed: nothing is started; correct --until if that is not meant");
    }
}

/// Every rank reads the campaign, so that all of them end with the same words when it is wrong.
pub(super) fn read(file: &Path) -> anyhow::Result<Campaign> {
    let campaign = Campaign::load(file).or_exit(Exit::Config)?;
    pilot::validate(&campaign).or_exit(Exit::Config)?;
    Ok(campaign)
}

/// The same, and opens its state and outputs.
pub(super) fn prepare(file: &Path) -> anyhow::Result<(Campaign, Layout)> {
    let campaign = read(file)?;
    let layout = Layout::open(&RealFs, &campaign.state).map_err(super::campaign::unusable)?;
    pilot::fit_for_state(&campaign.state).or_exit(Exit::Config)?;
    pilot::own_outputs(&campaign).or_exit(Exit::Config)?;
    Ok((campaign, layout))
}
