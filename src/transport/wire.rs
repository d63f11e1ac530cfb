//! The messages. Only bytes travel: bincode of these types inside a versioned frame.
//!
//! A worker's side of the contract
//! - Every [`ToWorker::Run`] is answered by exactly one [`FromWorker::Done`], a cancelled one too (with
//!   [`CANCELLED`]), except what a [`ToWorker::Shutdown`] finds unfinished.
//! - [`FromWorker::Started`] comes before it for everything but no-ops and attempts dropped before their start.
//! - [`FromWorker::ExecutorDied`] names attempts that will not be answered. Whatever was sent before it is lost, named
//!   or not, and so is what is sent between it and the next [`FromWorker::Hello`].
//! - Nothing follows [`FromWorker::Bye`].

use crate::technique::plan::{Fault, JobContext, TaskOutput, TaskSpec};
use serde::{Deserialize, Serialize};

/// Text of the [`Fault::Task`] that answers a cancelled attempt.
pub const CANCELLED: &str = "cancelled before it finished";

/// From the coordinator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// First message, and the answer to a [`FromWorker::Hello`]: the pilot's id.
    Welcome {
        /// The pilot's id.
        pilot: String,
    },
    /// Everything about a job; replaces an earlier epoch of the same job.
    Job(Box<JobContext>),
    /// Do this task. Its job was sent before.
    Run {
        /// Number of this try, unique in the pilot.
        attempt: u64,
        /// The job, as in [`JobContext::job`].
        job: u64,
        /// The task.
        task: TaskSpec,
    },
    /// Drop this attempt if it has not started; otherwise its result will be ignored.
    Cancel {
        /// The attempt.
        attempt: u64,
    },
    /// The job is over; forget its context.
    Forget {
        /// The job.
        job: u64,
    },
    /// You were given up, and spoke again: end what runs, start afresh and say [`FromWorker::Hello`].
    Reset,
    /// Finish nothing more, say [`FromWorker::Bye`] and end.
    Shutdown,
}

/// From a worker.
// Most messages are the largest one, and none is kept.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// First message.
    Hello {
        /// [`crate::BUILD`] of the sender; another build is refused.
        build: String,
        /// Host name.
        host: String,
        /// Process id of the executor.
        pid: u32,
        /// Boot id of the host, with which `pid` and `pid_start` name one process for ever.
        boot: String,
        /// When that process started, in the kernel's ticks since boot; 0 when unknown.
        pid_start: u64,
        /// Threads of the executor.
        threads: u32,
        /// Bytes one task may use.
        task_memory: u64,
    },
    /// An attempt left the prefetch queue and is being read.
    Started {
        /// The attempt.
        attempt: u64,
    },
    /// An attempt ended.
    Done {
        /// The attempt.
        attempt: u64,
        /// What came of it.
        result: Result<TaskOutput, Fault>,
    },
    /// Alive, sent every second or so even while computing.
    Beat {
        /// Most memory the process ever held, bytes.
        peak_bytes: u64,
    },
    /// The executor ended without being asked to; the replacement's `Hello` follows when it is up.
    ExecutorDied {
        /// How it ended.
        reason: String,
        /// Attempts it had started and not answered.
        running: Vec<u64>,
        /// Attempts it had not started.
        waiting: Vec<u64>,
        /// The attempt for which it was killed, when that is why: it ran longer than its job allows.
        culprit: Option<u64>,
    },
    /// The executor's GPU failed its self-test, or in the middle of work; tasks run on the CPU until it is given no more.
    Unfit {
        /// What failed.
        reason: String,
    },
    /// Last message.
    Bye,
}
