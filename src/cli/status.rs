//! `beampilot status`: what the pilots of a campaign are doing, from their files.

use super::{Exit, campaign};
use crate::report::table;
use std::path::PathBuf;

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
    let report = campaign::open(&args.campaign)?.report()?;
    if args.json {
        super::print_json(&report)?;
    } else {
        super::print(&table::page(&report))?;
    }
    Ok(Exit::Done)
}
