//! `beampilot host-check` and `beampilot survivors`: what `launch` starts on every host. Hidden, but usable by hand.
//!
//! With `--json` both end with 0 and one line tells everything: a launcher that sees another code kills the others'.

use super::{Exit, print};
use crate::launch::{host_check, survivors};
use std::path::PathBuf;

/// Says whether this host is fit for ranks.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  beampilot host-check --gpus 4 --json")]
pub struct CheckArgs {
    /// The campaign's state folder, which must be visible.
    #[arg(long, value_name = "FOLDER")]
    pub state: Option<PathBuf>,
    /// GPUs there must be.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub gpus: usize,
    /// Print one line of JSON, and end with 0.
    #[arg(long)]
    pub json: bool,
}

/// Finds, and ends if asked to, what a launch left on this host.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  beampilot survivors --launch node1-1764072000000-4711.1 --kill")]
pub struct SurvivorsArgs {
    /// The launch, as BEAMPILOT_LAUNCH names it.
    #[arg(long, value_name = "ID")]
    pub launch: String,
    /// Kill them, and wait until they are gone.
    #[arg(long)]
    pub kill: bool,
    /// Print one line of JSON, and end with 0.
    #[arg(long)]
    pub json: bool,
}

/// Runs the check.
///
/// # Errors
/// Standard output's.
pub fn check(args: CheckArgs) -> anyhow::Result<Exit> {
    let report = host_check::check(args.state.as_deref(), args.gpus);
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&report)?))?;
        return Ok(Exit::Done);
    }
    let words = if report.problems.is_empty() { "fit".to_owned() } else { report.problems.join("; ") };
    print(&format!("{}: {words}\n", report.host))?;
    Ok(if report.problems.is_empty() { Exit::Done } else { Exit::Unavailable })
}

/// Looks for survivors.
///
/// # Errors
/// Standard output's.
pub fn survivors(args: SurvivorsArgs) -> anyhow::Result<Exit> {
    let report = if args.kill { survivors::end(&args.launch) } else { survivors::look(&args.launch) };
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&report)?))?;
        return Ok(Exit::Done);
    }
    print(&format!("{}: {} found, {} left: {:?}\n", report.host, report.found.len(), report.left.len(), report.left))?;
    Ok(if report.left.is_empty() { Exit::Done } else { Exit::TryLater })
}
