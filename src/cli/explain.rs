//! `beampilot explain`: one scan, from the files alone.

use super::Exit;
use super::campaign::{self, CampaignArg};
use crate::report::explain;
use crate::store::RealFs;

/// Says why a scan waits, where it runs, what failed and when.
///
/// The first line is the answer. Reads the state folder only, asks no process, and works on any node, during a run and
/// long after it. A scan nobody knows ends with 66 and names that are near.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  beampilot explain scan_001.h5
  beampilot explain 2bm/day1/scan_001.h5 --campaign campaign.toml --json")]
pub struct Args {
    /// The scan: STREAM/SCAN, or SCAN where only one stream has it.
    #[arg(value_name = "SCAN")]
    pub scan: String,
    /// The campaign.
    #[command(flatten)]
    pub campaign: CampaignArg,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let opened = campaign::open(&args.campaign.campaign)?;
    let (report, asked) = (opened.report()?, opened.asked()?);
    let (stream, scan) = opened.scan(&args.scan, &report, &asked)?;
    let found = explain::explain(&RealFs, &opened.layout, &opened.campaign, &report, &asked, (&stream, &scan))?;
    if args.json {
        super::print_json(&found)?;
    } else {
        super::print(&explain::page(&found))?;
    }
    Ok(Exit::Done)
}
