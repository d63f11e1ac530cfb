//! `beampilot status`: what the pilots of a campaign are doing, from their files.

use super::{Exit, OrExit};
use crate::campaign::Campaign;
use crate::report::{status, table};
use crate::store::{Layout, RealFs};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Shows scans, their lag and where they were published.
///
/// Reads the files the pilots leave in the state folder; it asks no process and needs no MPI, so it works on a login
/// node, during a run and long after it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  beampilot status campaign.toml
  beampilot status campaign.toml --json")]
pub struct Args {
    /// The campaign file.
    #[arg(value_name = "CAMPAIGN.toml")]
    pub campaign: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let campaign = Campaign::load(&args.campaign).or_exit(Exit::Config)?;
    let layout = Layout { state: campaign.state.clone() };
    if !campaign.state.join("FORMAT").exists() {
        let what = anyhow::anyhow!(
            "{}: no pilot of this campaign has run yet; start one with `beampilot run {}`",
            campaign.state.display(),
            args.campaign.display()
        );
        return Err(what).or_exit(Exit::TryLater);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let report = status::report(&RealFs, &layout, &campaign.name, now_ms)?;
    if args.json {
        super::print_json(&report)?;
    } else {
        super::print(&table::page(&report))?;
    }
    Ok(Exit::Done)
}
