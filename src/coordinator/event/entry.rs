//! Lines of the journal.

use crate::technique::plan::TaskRecord;
use serde::{Deserialize, Serialize};

/// A line of the journal. Externally tagged JSON; fields only ever get added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// The pilot began. Always the first line, with number 0.
    Began {
        /// Build.
        build: String,
        /// How many lines compaction took out of this journal so far.
        #[serde(default, skip_serializing_if = "is_zero")]
        dropped: u64,
    },
    /// A scan arrived.
    Arrived {
        /// Job.
        job: u64,
        /// Key.
        key: String,
        /// Bytes.
        bytes: u64,
    },
    /// Claimed.
    Claimed {
        /// Job.
        job: u64,
        /// Generation.
        generation: u32,
    },
    /// A part was finished.
    Task {
        /// Job.
        job: u64,
        /// Task label.
        label: String,
        /// Attempt.
        attempt: u64,
        /// Worker.
        worker: u32,
        /// What it reported; the next owner adopts it. No-ops leave it out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        record: Option<Box<TaskRecord>>,
    },
    /// A try failed.
    Failed {
        /// Job.
        job: u64,
        /// Task label.
        label: String,
        /// Attempt.
        attempt: u64,
        /// Worker.
        worker: u32,
        /// Why.
        fault: String,
    },
    /// Published.
    Published {
        /// Job.
        job: u64,
        /// Where.
        bundle: String,
    },
    /// Put into quarantine.
    Quarantined {
        /// Job.
        job: u64,
        /// Why.
        reason: String,
    },
    /// Given up without a verdict: input changed, another pilot has it.
    Dropped {
        /// Job.
        job: u64,
        /// Why.
        reason: String,
    },
    /// Something a person should know.
    Alarm {
        /// What.
        message: String,
    },
    /// A person's request.
    Request {
        /// Its id.
        id: String,
        /// What it asks for.
        request: String,
        /// What came of it.
        outcome: String,
    },
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for a reference.
fn is_zero(n: &u64) -> bool {
    *n == 0
}
