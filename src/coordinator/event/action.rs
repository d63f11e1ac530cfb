//! What the core orders.

use super::{AttemptNo, Entry, JobNo, Timeline};
use crate::arrivals::scan::{FileStamp, InputVersion, Scan};
use crate::technique::plan::{JobContext, Plan, TaskSpec};
use crate::transport::WorkerId;
use std::path::PathBuf;

/// What arrivals should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The probe found it incomplete: look again.
    NotYet(String),
    /// A file changed: settle again.
    Changed,
    /// Published or in quarantine: only the slow sweep looks at it from now on.
    Done,
    /// The same, of a scan whose files link to these: they are looked at with it.
    DoneLinked(Vec<FileStamp>),
}

/// Orders.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Append to the journal, report durability with the entry's number.
    Record {
        /// Number; entries are numbered without gaps from 1.
        seq: u64,
        /// The entry.
        entry: Entry,
    },
    /// Send or replace a job's context on a worker.
    Context {
        /// Where.
        worker: WorkerId,
        /// What.
        context: Box<JobContext>,
    },
    /// Run a task.
    Assign {
        /// Where.
        worker: WorkerId,
        /// The try.
        attempt: AttemptNo,
        /// The job.
        job: JobNo,
        /// The task.
        task: TaskSpec,
    },
    /// Withdraw a try.
    Cancel {
        /// Where.
        worker: WorkerId,
        /// The try.
        attempt: AttemptNo,
    },
    /// The worker may forget this job.
    Forget {
        /// Where.
        worker: WorkerId,
        /// The job.
        job: JobNo,
    },
    /// Try to own a job on disk and make its staging.
    Claim {
        /// The job.
        job: JobNo,
        /// Its key.
        key: String,
        /// The scan.
        scan: Box<Scan>,
    },
    /// Rename staging onto its name and write the record.
    Publish {
        /// The job.
        job: JobNo,
        /// Its key.
        key: String,
        /// The scan.
        scan: Box<Scan>,
        /// Generation we own.
        generation: u32,
        /// The folder.
        staging: PathBuf,
        /// When it was claimed, planned and computed, for the record.
        timeline: Timeline,
        /// `64 slices`, for the record.
        items: String,
    },
    /// Write the quarantine record; staging, if any, goes.
    Quarantine {
        /// The job.
        job: JobNo,
        /// Its key.
        key: String,
        /// Stream.
        stream: String,
        /// Scan name.
        name: String,
        /// Input version, if there is one.
        version: Option<InputVersion>,
        /// Input version without companions, likewise.
        own_version: Option<InputVersion>,
        /// Generation we own, 0 when it was never claimed.
        generation: u32,
        /// Our staging.
        staging: Option<PathBuf>,
        /// For the scientist.
        reason: String,
    },
    /// Save the plan beside the parts, for the next owner should this one die.
    SavePlan {
        /// The job's key.
        key: String,
        /// Our staging.
        staging: PathBuf,
        /// The plan.
        plan: Box<Plan>,
    },
    /// Give up the claim; staging goes. Answer with `Event::GivenBack`.
    Release {
        /// Its key.
        key: String,
        /// Generation.
        generation: u32,
        /// The folder.
        staging: PathBuf,
    },
    /// Tell arrivals.
    Tell {
        /// Stream.
        stream: String,
        /// Scan name.
        name: String,
        /// Input version.
        version: InputVersion,
        /// What.
        verdict: Verdict,
    },
    /// Write, sync and remove a small file on state and outputs; answer with `Event::StorageProbed`.
    ProbeStorage,
    /// Log it, loudly.
    Alarm {
        /// What.
        message: String,
    },
    /// Nothing is left and nothing will come (`--once`), or the drain is complete.
    Finished,
}

/// An action and the journal entry it must follow.
#[derive(Debug, Clone, PartialEq)]
pub struct Ordered {
    /// The order.
    pub action: Action,
    /// Journal entry that must be durable first.
    pub after: Option<u64>,
}
