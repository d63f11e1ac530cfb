//! Carries small messages between the coordinator and its workers: in one process, or over MPI.

pub mod backoff;
pub mod frame;
pub mod launch;
pub mod local;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod stream;
pub mod wire;

pub use launch::under_mpiexec;
pub use local::LocalTransport;

/// A worker (an executor) as the coordinator knows it. Over MPI it is the rank; embedded, the executor's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct WorkerId(pub u32);

impl std::fmt::Display for WorkerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The coordinator's end.
///
/// Contract: [`Transport::send`] queues and never blocks; [`Transport::exchange`] moves what is queued and
/// returns what came, without waiting; [`Transport::idle`] is the only call that waits. Messages between one
/// worker and the coordinator keep their order.
pub trait Transport {
    /// Queues a message.
    fn send(&mut self, worker: WorkerId, message: wire::ToWorker);
    /// Sends what is queued and appends what arrived to `inbox`; true when anything moved.
    fn exchange(&mut self, inbox: &mut Vec<(WorkerId, wire::FromWorker)>) -> bool;
    /// Waits until something may have arrived, `wake` has a message, or `longest` has passed; backs off by
    /// itself the longer nothing happens.
    fn idle(&mut self, wake: &crossbeam::channel::Receiver<()>, longest: std::time::Duration);
    /// Ends the workers, within about a second; true when every one of them is reaped, so that nothing of this pilot
    /// writes any more.
    fn end_workers(&mut self) -> bool;
    /// Lets go of the other ranks (MPI finalizes); ends the workers first when nobody did.
    fn close(self: Box<Self>);
}

/// Why ranks cannot talk to each other. Every text names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Launched on several ranks, built for one.
    #[error(
        "mpiexec started {ranks} ranks, but this beampilot was built without MPI; rebuild it with the `mpi` feature \
         (cargo build --release), or start it without mpiexec"
    )]
    NoMpi {
        /// Ranks, as the environment tells.
        ranks: usize,
    },
    /// The launcher belongs to another MPI than the executable.
    #[error(
        "mpiexec started {ranks} ranks, but MPI sees {size}: this beampilot is linked with \"{library}\", and that is not \
         the MPI this mpiexec belongs to; use its own mpiexec, or rebuild with MPICC naming the other one's mpicc"
    )]
    WrongMpiexec {
        /// Ranks, as the environment tells.
        ranks: usize,
        /// Ranks, as MPI tells.
        size: usize,
        /// What the linked MPI calls itself.
        library: String,
    },
    /// Ranks run different executables.
    #[error(
        "rank {rank} on {host} runs beampilot {theirs}, rank 0 on {host0} runs {mine}; run the same executable on every \
         rank (is one node reading an old copy?)"
    )]
    OtherBuild {
        /// The first rank that differs from rank 0.
        rank: usize,
        /// Its host.
        host: String,
        /// Rank 0's host.
        host0: String,
        /// Its build.
        theirs: String,
        /// Rank 0's build.
        mine: String,
    },
    /// MPI was initialized before, or finalized.
    #[error("MPI was already initialized in this process; it can be used once")]
    Used,
    /// Bytes that make no sense.
    #[error("from rank {rank}: {error}")]
    Frame {
        /// Sender.
        rank: usize,
        /// What is wrong with them.
        error: frame::FrameError,
    },
    /// The rank's own executor could not be started.
    #[error("cannot start an executor: {0}")]
    Executor(#[from] std::io::Error),
}

impl TransportError {
    /// True when starting again without changing anything will fail again: exit with 78.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::NoMpi { .. } | Self::WrongMpiexec { .. } | Self::OtherBuild { .. } => true,
            Self::Frame { error, .. } => matches!(error, frame::FrameError::Version { .. }),
            Self::Used | Self::Executor(_) => false,
        }
    }
}
