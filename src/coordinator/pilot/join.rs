//! Joining: MPI under mpiexec, executors of this process otherwise. Worker ranks serve here and never return to
//! the caller with a transport.

use crate::transport::{LocalTransport, Transport, TransportError, WorkerId, under_mpiexec};
use crate::worker::keeper::Keeper;
use crate::worker::{ExecutorConfig, Hosting, Services, topology};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Rank 0, ready to coordinate.
pub struct Joined {
    /// To the workers.
    pub transport: Box<dyn Transport>,
    /// `embedded`, or `MPI`.
    pub name: String,
    /// Executors that will say hello.
    pub workers: usize,
    /// Where to put the exit code before the transport is closed: its watchdog ends the process with it.
    pub exit_code: Option<Arc<std::sync::atomic::AtomicI32>>,
}

/// Executors for a machine with these cores when nobody says how many: one for every eight cores, so that a slab is
/// computed by threads that share a cache, and two on small machines, so that one scan's reading overlaps another's
/// computing.
fn default_workers() -> usize {
    topology::share(1, 1).threads.div_ceil(8).max(1)
}

/// Where executors live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Executors {
    /// In processes of their own, under a keeper: a crash costs a task.
    Processes,
    /// In threads of their rank: a crash costs the rank. For debuggers and comparisons.
    Threads,
}

impl Executors {
    /// Processes, unless BEAMPILOT_EXECUTORS says `threads`.
    pub fn from_environment() -> Self {
        match std::env::var("BEAMPILOT_EXECUTORS") {
            Ok(word) if word == "threads" => Self::Threads,
            _ => Self::Processes,
        }
    }

    /// Must run on the main thread, and before MPI is initialized.
    fn hosting(self) -> Result<Hosting, TransportError> {
        Ok(match self {
            Self::Threads => Hosting::Threads,
            Self::Processes => Hosting::Processes(Arc::new(Keeper::start()?)),
        })
    }
}

/// Bytes that an executor may hold with everything it starts: BEAMPILOT_EXECUTOR_MEMORY, or its share of the host.
fn executor_memory(parts: usize) -> u64 {
    let Ok(text) = std::env::var("BEAMPILOT_EXECUTOR_MEMORY") else { return topology::executor_memory(parts) };
    text.parse().unwrap_or_else(|_| {
        tracing::warn!("BEAMPILOT_EXECUTOR_MEMORY={text} is no number of bytes; its share of the host is used");
        topology::executor_memory(parts)
    })
}

/// Joins. `None`: this was a worker rank, it has served and said goodbye. To be called on the main thread.
///
/// # Errors
/// Ranks of different builds or MPIs; threads or processes that could not be started.
pub fn join(
    workers: Option<NonZeroUsize>,
    services: Arc<dyn Services>,
    executors: Executors,
) -> Result<Option<Joined>, TransportError> {
    match under_mpiexec()? {
        None => embedded(workers, services, executors).map(Some),
        Some(_) => ranks(services, executors),
    }
}

fn embedded(
    workers: Option<NonZeroUsize>,
    services: Arc<dyn Services>,
    executors: Executors,
) -> Result<Joined, TransportError> {
    let n = workers.map_or_else(default_workers, NonZeroUsize::get);
    let share = topology::share(1, n);
    let hosting = executors.hosting()?;
    let config = |i: usize| {
        let id = WorkerId(u32::try_from(i).unwrap_or(u32::MAX));
        let config = ExecutorConfig::new(id, topology::host(), share.threads, share.task_memory, services.clone());
        ExecutorConfig { hosting: hosting.clone(), memory: Some(executor_memory(n)), ..config }
    };
    let transport = Box::new(LocalTransport::new((0..n).map(config))?);
    Ok(Joined { transport, name: "embedded".to_owned(), workers: n, exit_code: None })
}

#[cfg(feature = "mpi")]
fn ranks(services: Arc<dyn Services>, executors: Executors) -> Result<Option<Joined>, TransportError> {
    use crate::launch::left_out::LeftOut;
    use crate::transport::mpi;
    use crate::worker::Hosted;
    // What starts processes must be born before MPI.
    let hosting = executors.hosting()?;
    let session = mpi::connect(&mpi::Options::default())?;
    let share = session.share();
    let id = WorkerId(u32::try_from(session.rank()).unwrap_or(u32::MAX));
    let config = ExecutorConfig::new(id, topology::host(), share.threads, share.task_memory, services);
    let config = ExecutorConfig { hosting, memory: Some(executor_memory(session.on_host())), ..config };
    let workers = session.size();
    let left_out = LeftOut::has_us();
    if left_out {
        tracing::warn!(
            rank = session.rank(),
            "left out by launch: this rank's GPU is bad or missing; it takes no tasks"
        );
    }
    if session.rank() == 0 {
        let transport = session.coordinator((!left_out).then_some(config))?;
        let exit_code = Some(transport.exit_code());
        return Ok(Some(Joined { transport: Box::new(transport), name: "MPI".to_owned(), workers, exit_code }));
    }
    // A scheduler's SIGTERM reaches every rank; this one ends when rank 0 has drained and says so.
    let ignored = Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in crate::site::signals::ending().into_iter().chain([signal_hook::consts::SIGUSR1]) {
        signal_hook::flag::register(signal, ignored.clone()).map_err(TransportError::Executor)?;
    }
    let (answers_out, answers) = crossbeam::channel::unbounded();
    let executor = if left_out {
        Hosted::nowhere(id, &answers_out)
    } else {
        Hosted::spawn(config, answers_out).map_err(TransportError::Executor)?
    };
    let mut link = session.worker();
    let executor = crate::worker::agent::run(&mut link, executor, &answers)?;
    let ended = executor.join(std::time::Duration::from_secs(1));
    link.finalize(0);
    if !ended {
        // A phase hangs, perhaps inside HDF5, whose exit handlers would wait for it.
        signal_hook::low_level::exit(0);
    }
    Ok(None)
}

#[cfg(not(feature = "mpi"))]
fn ranks(_: Arc<dyn Services>, _: Executors) -> Result<Option<Joined>, TransportError> {
    // `under_mpiexec` refused already.
    Ok(None)
}
