//! `beampilot quarantine`: what was given up, why, and taking it out again.

use super::Exit;
use super::campaign::{self, CampaignArg};
use super::request;
use crate::report::table::{columns, when};
use crate::store::records::Quarantined;
use crate::store::requests::Request;
use clap::Subcommand;
use serde::Serialize;

/// Lists scans in quarantine with their reasons, and releases them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  beampilot quarantine list
  beampilot quarantine release scan_001.h5")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub what: What,
    /// The campaign.
    #[command(flatten)]
    pub campaign: CampaignArg,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Lists scans in quarantine, with when and why.
    #[command(after_help = "Example:
  beampilot quarantine list --json")]
    List,
    /// Takes a scan out once its cause is gone; the same as `request release`.
    #[command(after_help = "Example:
  beampilot quarantine release scan_001.h5 --wait")]
    Release {
        /// The scan: STREAM/SCAN, or SCAN where only one stream has it.
        #[arg(value_name = "SCAN")]
        scan: String,
        /// Wait for a pilot's answer: 0 released, 65 refused.
        #[arg(long)]
        wait: bool,
    },
}

#[derive(Debug, Serialize)]
struct Listed {
    quarantine_version: u32,
    quarantined: Vec<Quarantined>,
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let opened = campaign::open(&args.campaign.campaign)?;
    let report = opened.report()?;
    match args.what {
        What::Release { scan, wait } => {
            let (stream, scan) = opened.scan(&scan, &report, &opened.asked()?)?;
            request::submit(&opened, Request::Release { stream, scan }, wait, args.json)
        }
        What::List => {
            let quarantined = report.quarantined;
            if args.json {
                super::print_json(&Listed { quarantine_version: 1, quarantined })?;
            } else if quarantined.is_empty() {
                super::print("nothing is in quarantine\n")?;
            } else {
                let head = ["scan", "since (UTC)", "reason"].map(str::to_owned).to_vec();
                let row = |q: &Quarantined| vec![format!("{}/{}", q.stream, q.scan), when(q.at_ms), q.reason.clone()];
                let rows: Vec<Vec<String>> = std::iter::once(head).chain(quarantined.iter().map(row)).collect();
                super::print(&columns(&rows))?;
            }
            Ok(Exit::Done)
        }
    }
}
