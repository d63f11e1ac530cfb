//! The words a technique and the coordinator share: plans, tasks, outcomes and faults.
//!
//! Contract: nothing here holds a pixel. Everything is small, serialisable by bincode (the wire) and
//! serde_json (manifests), and means the same on every rank.

use crate::arrivals::scan::{FileStamp, Scan};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a task is for; the order is also the order of importance within one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaskKind {
    /// Is the scan readable and whole? Runs before the scan is claimed.
    Probe,
    /// Do names, sizes and hashes agree with the manifest that came with the scan?
    Verify,
    /// Read headers, return the [`Plan`].
    Plan,
    /// Something to look at, within seconds.
    Preview,
    /// A task of a stage.
    Stage,
    /// Ends a stage, may return more stages.
    Decide,
    /// Assemble the bundle: result file, manifest, checksums.
    Finish,
    /// Nothing; `bench dispatch` measures the path with it.
    Noop,
}

/// One independent piece of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Unique within the job, fit for a file name: `preview`, `prepare`, `slab-00012`.
    pub label: String,
    /// What it is for.
    pub kind: TaskKind,
    /// The technique's own description of the work (bincode of its own type).
    pub params: Vec<u8>,
    /// Relative cost, 1.0 = an ordinary task of this stage; scales the learned duration.
    pub cost: f64,
    /// Bytes this task reads, for progress and for the report.
    pub bytes_in: u64,
}

/// Tasks that may run side by side; the next stage starts when all are done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// `prepare`, `slabs`, …
    pub name: String,
    /// Independent tasks.
    pub tasks: Vec<TaskSpec>,
    /// Runs after the tasks; may return further stages in [`TaskOutput::plan`].
    pub decide: Option<TaskSpec>,
}

/// How a job is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Runs first; its failure does not fail the job.
    pub preview: Option<TaskSpec>,
    /// In order. At most [`Plan::MAX_STAGES`] over the life of a job.
    pub stages: Vec<Stage>,
    /// Assembles the bundle.
    pub finish: TaskSpec,
    /// What people count: slices, points, particles.
    pub items: u64,
    /// The unit of `items`: `slices`, `points`, ….
    pub unit: String,
    /// Files reached by links inside the scan's files, as they were before anything of them was read; paths absolute.
    /// They belong to the input from here on.
    pub linked: Vec<FileStamp>,
    /// Tasks leave [`Scratch`] for later ones.
    pub scratch: bool,
}

impl JobContext {
    /// [`JobContext::task_limit_s`] where nobody says otherwise.
    pub const TASK_LIMIT_S: f64 = 900.0;
}

impl Plan {
    /// Stages a job may have, those returned by `decide` tasks included.
    pub const MAX_STAGES: usize = 64;
    /// Tasks one stage may have.
    pub const MAX_TASKS: usize = 100_000;
}

/// Everything an executor must know about a job, sent once per worker and again when `carry` grew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobContext {
    /// This pilot's number of the job.
    pub job: u64,
    /// Escaped scan name and hash: names claims, staging and records.
    pub key: String,
    /// The scan, with the stamps every task checks.
    pub scan: Scan,
    /// Registry name.
    pub technique: String,
    /// The recipe with every default written out, as canonical JSON.
    pub recipe: String,
    /// Where this job's files go until published; absolute; exists, mode 0700. Empty for probes.
    pub staging: PathBuf,
    /// The node's own disk, when scratch is to lie there: the job's tasks run on this node.
    pub scratch: Option<PathBuf>,
    /// The campaign's name and its snapshot hash, for the manifest.
    pub campaign: String,
    /// Threads, memory and workers to cut for.
    pub resources: Resources,
    /// What finished tasks of earlier stages reported, in stage and label order.
    pub carry: Vec<TaskRecord>,
    /// Seconds one task may take from its start to its answer; an executor that takes longer is killed.
    pub task_limit_s: f64,
    /// Grows with `carry`; a worker replaces a context by one of a later epoch.
    pub epoch: u32,
}

/// What a plan may count on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Executors that could take this job's tasks now.
    pub workers: u32,
    /// Threads of one executor.
    pub threads: u32,
    /// Bytes one task may hold in memory; three tasks overlap in an executor (read, compute, write).
    pub task_memory: u64,
}

/// A file a task wrote under staging.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// Relative to staging, `/`-separated.
    pub path: String,
    /// Bytes.
    pub bytes: u64,
    /// SHA-256, lower-case hexadecimal, taken while the data was in memory.
    pub sha256: String,
}

/// Where a task's time went, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Reading input.
    pub read_s: f64,
    /// Computing.
    pub compute_s: f64,
    /// Writing, hashing and syncing.
    pub write_s: f64,
}

/// What one finished task reports.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskOutput {
    /// Files written under staging.
    pub files: Vec<OutputFile>,
    /// Small results for later tasks and the manifest (JSON object text, at most 64 KiB; empty = none).
    pub carry: String,
    /// Seconds.
    pub timings: Timings,
    /// From `Plan` and `Decide` tasks.
    pub plan: Option<Plan>,
    /// What it left for later tasks of its job; no file of the bundle, and nobody's only copy.
    #[serde(default)]
    pub scratch: Option<Scratch>,
}

/// A file for later tasks of the same job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scratch {
    /// Relative to staging, or to the job's folder on the node.
    pub path: String,
    /// Bytes.
    pub bytes: u64,
    /// It lies on the node that ran the task, and ends with the pilot.
    pub local: bool,
}

impl TaskOutput {
    /// Largest [`TaskOutput::carry`], bytes.
    pub const MAX_CARRY: usize = 64 * 1024;
}

/// A finished task and who did it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Stage number; 0 for plan and preview.
    pub stage: u32,
    /// The task's label.
    pub label: String,
    /// The task's kind.
    pub kind: TaskKind,
    /// Host name.
    pub host: String,
    /// MPI rank or executor number.
    pub rank: u32,
    /// What it reported.
    pub output: TaskOutput,
}

/// Why a task did not finish: whose fault it is decides what happens next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Fault {
    /// The scan is still being written, as far as one can see; look again later.
    #[error("not complete yet: {0}")]
    NotYet(String),
    /// The scan cannot be processed. The text is for the beamline scientist: what is wrong, where, what to do.
    #[error("{0}")]
    Input(String),
    /// A file of the scan is not what it was when the scan was found complete.
    #[error("{} changed while it was being processed", .0.display())]
    InputChanged(PathBuf),
    /// The filesystem is full, over quota or failing: nobody's fault.
    #[error("storage: {0}")]
    Storage(String),
    /// The task failed for no known reason; it is tried elsewhere.
    #[error("{0}")]
    Task(String),
}

impl Fault {
    /// Sorts an I/O error on something **we write**: storage trouble when the filesystem is to blame.
    pub fn writing(path: &Path, e: &std::io::Error) -> Self {
        if is_storage_error(e) {
            Self::Storage(format!("{}: {e}", path.display()))
        } else {
            Self::Task(format!("{}: {e}", path.display()))
        }
    }

    /// Sorts an I/O error on **input**: gone or forbidden is the input's, EIO and stale handles the storage's.
    pub fn reading(path: &Path, e: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let at = path.display();
        match e.kind() {
            K::NotFound | K::NotADirectory => Self::InputChanged(path.to_owned()),
            K::PermissionDenied => Self::Input(format!(
                "{at}: no permission to read it; give the pilot's account read access (chmod g+r), then release the scan"
            )),
            _ if is_storage_error(e) => Self::Storage(format!("{at}: {e}")),
            _ => Self::Task(format!("{at}: {e}")),
        }
    }
}

/// True for errors that a full, over-quota or failing filesystem gives.
pub fn is_storage_error(e: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let Some(code) = e.raw_os_error() else {
        return e.kind() == std::io::ErrorKind::StorageFull;
    };
    let errno = Errno::from_raw_os_error(code);
    [Errno::NOSPC, Errno::DQUOT, Errno::IO, Errno::STALE, Errno::ROFS, Errno::NODEV, Errno::TIMEDOUT].contains(&errno)
}
