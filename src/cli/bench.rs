//! `beampilot bench`: how fast the runtime itself is, on this machine and under this MPI.

use super::Exit;
use anyhow::anyhow;
use clap::Subcommand;

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
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(_args: Args) -> anyhow::Result<Exit> {
    Err(anyhow!("not merged yet"))
}
