//! Subcommands that beampilot calls itself: the keeper, its shim, and the executor. Not for people.

use super::{Exit, OrExit};
use crate::coordinator::benchmark::BenchServices;
use crate::coordinator::pilot::PilotServices;
use crate::transport::WorkerId;
use crate::worker::keeper::{self, Limits};
use crate::worker::{ExecutorConfig, Services, served};
use anyhow::Context;
use clap::ValueEnum;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::sync::Arc;

/// Starts, limits and replaces the executors of a rank (beampilot starts it itself).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  beampilot keeper --rank-pid 4242")]
pub struct KeeperArgs {
    /// Process id of the rank; standard input is the socket to it.
    #[arg(long, value_name = "PID")]
    pub rank_pid: u32,
}

/// Takes tasks from a rank and does them (beampilot starts it itself).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  beampilot executor --id 0 --host node1 --threads 8 --task-memory 1000000000")]
pub struct ExecutorArgs {
    /// Its number to the coordinator; standard input is the socket to its rank.
    #[arg(long, value_name = "N")]
    pub id: u32,
    /// Host name, for messages and manifests.
    #[arg(long, value_name = "NAME")]
    pub host: String,
    /// Threads that compute.
    #[arg(long, value_name = "N")]
    pub threads: usize,
    /// Memory that one task may use.
    #[arg(long, value_name = "BYTES")]
    pub task_memory: u64,
    /// Which techniques it knows.
    #[arg(long, value_enum, default_value_t = Known::Pilot)]
    pub services: Known,
}

/// Services an executor can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Known {
    /// Those of a pilot.
    Pilot,
    /// Those of `bench dispatch`.
    Bench,
}

/// Limits itself and becomes another command of beampilot (beampilot starts it itself).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  beampilot exec-shim --parent 4242 -- executor --id 0 --host node1 --threads 8 --task-memory 1000000000")]
pub struct ShimArgs {
    /// The process that must be the parent; this one dies with it.
    #[arg(long, value_name = "PID")]
    pub parent: u32,
    /// What to become.
    #[arg(value_name = "ARGUMENT", required = true, last = true)]
    pub command: Vec<String>,
}

/// The keeper's process.
///
/// # Errors
/// It could not be set up, or the rank says something incomprehensible.
pub fn keeper(args: KeeperArgs) -> anyhow::Result<Exit> {
    let control: OwnedFd = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).context("no socket to the rank")?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    keeper::run(args.rank_pid, control).context("the executors' keeper gives up").or_exit(Exit::Internal)?;
    Ok(Exit::Done)
}

/// The executor's process; does not return unless something is wrong.
///
/// # Errors
/// It could not be set up, or the rank says something incomprehensible.
pub fn executor(args: ExecutorArgs) -> anyhow::Result<Exit> {
    let services: Arc<dyn Services> = match args.services {
        Known::Pilot => Arc::new(PilotServices),
        Known::Bench => Arc::new(BenchServices),
    };
    let config = ExecutorConfig::new(WorkerId(args.id), args.host, args.threads, args.task_memory, services);
    served::run(config).context("an executor gives up").or_exit(Exit::Internal)?;
    Ok(Exit::Done)
}

/// Becomes another command.
///
/// # Errors
/// The parent is gone, or the kernel refuses.
pub fn shim(args: ShimArgs) -> anyhow::Result<Exit> {
    keeper::become_limited(&Limits { parent: args.parent })
        .context("cannot limit an executor")
        .or_exit(Exit::Unavailable)?;
    let error = std::process::Command::new("/proc/self/exe").arg0("beampilot").args(args.command).exec();
    Err(anyhow::Error::new(error).context("cannot become an executor"))
}
