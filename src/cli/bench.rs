//! `beampilot bench`: how fast the runtime itself is, on this machine and under this MPI.

use super::{Exit, OrExit};
use crate::coordinator::benchmark::{self, BenchServices};
use crate::coordinator::pilot;
use crate::worker::Services;
use anyhow::Context;
use clap::Subcommand;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

/// Measures the runtime itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  beampilot bench dispatch")]
pub struct Args {
    /// What to measure.
    #[command(subcommand)]
    pub what: What,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // Described at its `Args`.
pub enum What {
    Dispatch(DispatchArgs),
}

/// Tasks a second that the coordinator hands out and takes back, with tasks that do nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  beampilot bench dispatch
  mpiexec -n 4 beampilot bench dispatch --json")]
pub struct DispatchArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Executors on this machine when there is no mpiexec; the default follows the cores.
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroUsize>,
    /// Where the journal of the run with journal goes: the filesystem of your campaigns' state, for an honest figure.
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let What::Dispatch(args) = args.what;
    let services: Arc<dyn Services> = Arc::new(BenchServices);
    let Some(joined) = pilot::join(args.workers, services)? else { return Ok(Exit::Done) };
    let scratch = match &args.scratch {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    }
    .context("cannot make a scratch folder for the journal; name one with --scratch")?;
    let progress = |line: &str| tracing::info!("{line}");
    let (figures, transport) = benchmark::run(joined.transport, joined.name, joined.workers, scratch.path(), progress)
        .or_exit(Exit::Unavailable)?;
    transport.close();
    if args.json {
        super::print_json(&figures)?;
    } else {
        super::print(&table(&figures))?;
    }
    Ok(Exit::Done)
}

fn table(f: &benchmark::Figures) -> String {
    format!(
        "{} with {} workers\n  {:>12.0} no-op tasks/s without journal\n  {:>12.0} no-op tasks/s with journal\n  \
         {:>12.3} ms round trip, median of {}\n  {:>12.3} ms round trip, 99th percentile\n",
        f.transport,
        f.workers,
        f.tasks_per_s,
        f.tasks_per_s_journalled,
        f.round_trip_p50_ms,
        f.round_trips,
        f.round_trip_p99_ms
    )
}
