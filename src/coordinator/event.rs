//! What the core is told and what it orders: the whole interface of [`crate::coordinator::core::Core`].
//!
//! Contract
//! - An [`Event`] is a fact that already happened; the core may not refuse it, only find it late or unknown.
//! - An [`Action`] is an order to a driver. [`Ordered::after`] names the journal entry that must be durable
//!   before the order is carried out; orders without it may go at once, in the order given.
//! - Nothing here holds a clock: time is an argument of `step`.

mod action;
mod entry;
mod times;

pub use action::{Action, Ordered, Verdict};
pub use entry::Entry;
pub use times::{Lag, Time, Timeline};

use crate::arrivals::scan::{InputVersion, Scan};
use crate::store::takeover::Adopted;
use crate::technique::plan::{Fault, TaskOutput};
use crate::transport::WorkerId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// Number of a job in this pilot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobNo(pub u64);

/// Number of one try at one task, unique in this pilot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptNo(pub u64);

impl fmt::Display for JobNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.0)
    }
}

/// What must still be shown before a scan may be claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// A technique's probe (rule `settled`).
    Probe,
    /// Hashes against the manifest that came with it; the bytes describe it to the executor.
    Verify(Vec<u8>),
    /// Nothing: the rule itself is a declaration (marker, renamed).
    None,
}

/// What came of an attempt to own a job.
#[derive(Debug, Clone, PartialEq)]
pub enum ClaimOutcome {
    /// Ours; staging exists.
    Won {
        /// Generation of the claim.
        generation: u32,
        /// Absolute staging folder, made for this generation.
        staging: PathBuf,
        /// Earlier owners that died for no known reason while they held it.
        deaths: u32,
        /// What an earlier owner finished; its files are in `staging`.
        adopted: Option<Box<Adopted>>,
    },
    /// Another living pilot has it.
    Foreign {
        /// Who.
        owner: String,
    },
    /// It is published already.
    Published,
    /// It is in quarantine already.
    Quarantined,
    /// A file of the scan changed since it was found complete.
    Changed,
    /// The filesystem did not let us.
    Storage(String),
    /// Its claim cannot be read; only this scan waits for a person.
    Failed(String),
}

/// What came of publishing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishOutcome {
    /// There, under this path.
    Done {
        /// The bundle.
        bundle: PathBuf,
    },
    /// The input changed before the rename.
    Changed,
    /// Another owner took over; our work is void.
    Fenced,
    /// The filesystem did not let us; nothing is lost, try again.
    Storage(String),
}

/// What came of putting a job into quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuarantineOutcome {
    /// The record is written.
    Done,
    /// Another owner took over; our verdict is void, what we saw may have been our own staging taken away.
    Fenced,
    /// The filesystem did not let us; tried again.
    Storage(String),
}

/// Facts.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A scan is complete by its stream's rule, but for `check`.
    Arrived {
        /// The scan.
        scan: Scan,
        /// What an executor must still show.
        check: Check,
    },
    /// Arrivals give a scan up: unfit name, link out of the root, timeout.
    Rejected {
        /// Stream.
        stream: String,
        /// Scan name, escaped for display.
        name: String,
        /// Its version, when it has one.
        version: Option<InputVersion>,
        /// For the scientist.
        reason: String,
    },
    /// `--once`: arrivals have nothing left that could become complete.
    ArrivalsQuiet {
        /// How many orders of [`Action::Tell`] they had obeyed by then; more were given since if it differs.
        obeyed: u64,
        /// Scans left incomplete.
        incomplete: usize,
    },
    /// An executor said hello.
    WorkerJoined {
        /// Its number.
        worker: WorkerId,
        /// Its host.
        host: String,
        /// Its threads.
        threads: u32,
        /// Bytes a task may use there.
        task_memory: u64,
    },
    /// An executor is gone or silent.
    WorkerLost {
        /// Its number.
        worker: WorkerId,
        /// As known.
        reason: String,
    },
    /// A worker's executor ended without being asked to. Its rank lives; another one will say hello.
    ExecutorDied {
        /// Where.
        worker: WorkerId,
        /// How it ended.
        reason: String,
        /// What it had started.
        running: Vec<AttemptNo>,
        /// What it held and had not started.
        waiting: Vec<AttemptNo>,
        /// For which of them it was killed, when that is why.
        culprit: Option<AttemptNo>,
    },
    /// A worker says that its device is not fit for work.
    WorkerUnfit {
        /// Which.
        worker: WorkerId,
        /// What failed.
        reason: String,
    },
    /// An attempt left the worker's prefetch queue.
    Started {
        /// Where.
        worker: WorkerId,
        /// Which.
        attempt: AttemptNo,
    },
    /// An attempt ended.
    TaskEnded {
        /// Where.
        worker: WorkerId,
        /// Which.
        attempt: AttemptNo,
        /// How.
        result: Result<TaskOutput, Fault>,
    },
    /// Answer to [`Action::Claim`].
    Claimed {
        /// The job.
        job: JobNo,
        /// The answer.
        outcome: ClaimOutcome,
    },
    /// Answer to [`Action::Publish`].
    Published {
        /// The job.
        job: JobNo,
        /// The answer.
        outcome: PublishOutcome,
    },
    /// Answer to [`Action::Quarantine`].
    Quarantined {
        /// The job.
        job: JobNo,
        /// The answer.
        outcome: QuarantineOutcome,
    },
    /// Answer to [`Action::Release`].
    GivenBack {
        /// The claim's key.
        key: String,
        /// Why it could not be.
        result: Result<(), String>,
    },
    /// Answer to [`Action::ProbeStorage`].
    StorageProbed {
        /// Room and a durable write, or what is wrong.
        result: Result<(), String>,
    },
    /// Something of ours cannot be written, the journal for one.
    StorageTrouble {
        /// What.
        message: String,
    },
    /// Put every job of this scan above all others.
    Urgent {
        /// Stream.
        stream: String,
        /// Scan name.
        name: String,
    },
    /// Claim and assign nothing of this stream until it is resumed.
    Hold {
        /// Stream.
        stream: String,
    },
    /// The stream goes on.
    Resume {
        /// Stream.
        stream: String,
    },
    /// Nobody wants this scan, in whatever version.
    Skip {
        /// Stream.
        stream: String,
        /// Scan name.
        name: String,
    },
    /// It is wanted after all: skipped no longer, and given the recipe that counts at `since_ms`.
    Release {
        /// Stream.
        stream: String,
        /// Scan name.
        name: String,
        /// When it was asked, milliseconds since the epoch.
        since_ms: u64,
    },
    /// A recipe other than the campaign's: for the next arrival of one scan, or for every scan from now on.
    Recipe {
        /// Stream.
        stream: String,
        /// Scan name; `None`: scans whose last byte is not older than `since_ms`.
        name: Option<String>,
        /// The whole canonical recipe, JSON.
        recipe: String,
        /// Part of the job's key, so that asking again is another job although the recipe is the same.
        salt: String,
        /// From when on, milliseconds since the epoch. By the scan's own time all pilots decide alike.
        since_ms: u64,
    },
    /// The campaign file was edited: recipe, deadline, order and weight of streams for what comes from now on.
    Campaign {
        /// All streams.
        streams: Vec<super::core::StreamSpec>,
        /// When it was edited.
        since_ms: u64,
    },
    /// A request was looked at; for the journal.
    Request {
        /// Its id.
        id: String,
        /// What it asks for.
        request: String,
        /// What came of it.
        outcome: String,
    },
    /// Something a person should know.
    Alarm {
        /// What.
        message: String,
    },
    /// Claim nothing more, finish what is held as far as time allows, then end.
    Drain,
    /// End now: nothing more is started or waited for. What is finished stays for the next owner.
    Stop,
    /// A deadline of [`crate::coordinator::core::Core::next_deadline`] has come.
    Tick,
}
