//! `beampilot bench`: how fast the runtime itself is, on this machine and under this MPI, and the GPU.

use super::{Exit, OrExit};
use crate::coordinator::benchmark::{self, BenchServices};
use crate::coordinator::pilot::{self, Executors};
use crate::transport::under_mpiexec;
use crate::worker::Services;
use anyhow::Context;
use clap::Subcommand;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

/// Measures the runtime itself, and the GPU.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  beampilot bench dispatch
  beampilot bench gpu")]
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
    Gpu(super::bench_gpu::Args),
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
    /// Where executors live; both, one after the other, when left out (under mpiexec processes, as in a pilot).
    #[arg(long, value_enum)]
    pub executors: Option<Executors>,
    /// Where the journal of the run with journal goes: the filesystem of your campaigns' state, for an honest figure.
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let args = match args.what {
        What::Dispatch(args) => args,
        What::Gpu(args) => return super::bench_gpu::run(&args),
    };
    let chosen = match args.executors {
        Some(one) => vec![one],
        // The ranks of one mpiexec meet once.
        None if under_mpiexec().or_exit(Exit::Config)?.is_some() => vec![Executors::Processes],
        None => vec![Executors::Processes, Executors::Threads],
    };
    let mut all = Vec::new();
    for executors in chosen {
        match dispatch(&args, executors)? {
            Some(figures) => all.push(figures),
            None => return Ok(Exit::Done),
        }
    }
    if args.json {
        super::print_json(&all)?;
    } else {
        all.iter().try_for_each(|figures| super::print(&table(figures)))?;
    }
    Ok(Exit::Done)
}

/// One run; `None` on worker ranks.
fn dispatch(args: &DispatchArgs, executors: Executors) -> anyhow::Result<Option<benchmark::Figures>> {
    let services: Arc<dyn Services> = Arc::new(BenchServices);
    let Some(joined) = pilot::join(args.workers, services, executors)? else { return Ok(None) };
    let scratch = match &args.scratch {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    }
    .context("cannot make a scratch folder for the journal; name one with --scratch")?;
    let progress = |line: &str| tracing::info!("{line}");
    let hosting = match executors {
        Executors::Processes => "processes",
        Executors::Threads => "threads",
    };
    let (figures, transport) =
        benchmark::run(joined.transport, joined.name, hosting, joined.workers, scratch.path(), progress)
            .or_exit(Exit::Unavailable)?;
    transport.close();
    Ok(Some(figures))
}

fn table(f: &benchmark::Figures) -> String {
    format!(
        "{} with {} workers in {}\n  {:>12.0} no-op tasks/s without journal\n  {:>12.0} no-op tasks/s with journal\n  \
         {:>12.3} ms round trip, median of {}\n  {:>12.3} ms round trip, 99th percentile\n",
        f.transport,
        f.workers,
        f.executors,
        f.tasks_per_s,
        f.tasks_per_s_journalled,
        f.round_trip_p50_ms,
        f.round_trips,
        f.round_trip_p99_ms
    )
}
