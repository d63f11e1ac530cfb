//! Techniques: what is known about pixels. A technique knows nothing of MPI, claims or PBS; the
//! coordinator knows nothing of pixels. Adding one touches its own folder and [`registry`].

pub mod command;
pub mod laue;
pub mod plan;
pub mod tomography;
mod winners;

pub use plan::*;

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A recipe that cannot be used: which key, what is wrong with it, what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}; {remedy}")]
pub struct RecipeError {
    /// The key, dotted when nested.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What to write instead.
    pub remedy: String,
}

/// What an executor hands to a technique beside the job.
#[derive(Debug, Clone)]
pub struct TaskContext {
    /// The job.
    pub job: Arc<JobContext>,
    /// The task.
    pub task: TaskSpec,
    /// Number of this try; distinct tries never share a file: part files carry it in their name.
    pub attempt: u64,
    /// Host and rank, for the manifest.
    pub host: String,
    /// MPI rank or executor number.
    pub rank: u32,
    /// Set when the result is no longer wanted; a technique that can stop early looks at it.
    pub cancelled: Arc<AtomicBool>,
}

impl TaskContext {
    /// `<staging>/<relative>`.
    pub fn staged(&self, relative: &str) -> PathBuf {
        self.job.staging.join(relative)
    }
}

/// What `load` gives to `compute` and `compute` to `store`: the technique's own type.
pub type Payload = Box<dyn Any + Send>;

/// What a finished scan looks like to the person who asks `check`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// One line: `181 projections of 2×640, 10 dark, 10 white`.
    pub summary: String,
}

/// One technique. Every method may be called from several executors at once.
///
/// An executor overlaps tasks: while one is in `compute`, the next is in `load` and the last in `store`.
/// Each runs inside the executor's rayon pool, unless [`Technique::uses_pool`] says otherwise. A panic is caught and
/// becomes [`Fault::Task`].
pub trait Technique: Send + Sync {
    /// Registry name, as in the campaign file.
    fn name(&self) -> &'static str;

    /// Validates a recipe and returns it with every default written out. Deterministic: the result is
    /// hashed into the job's identity.
    fn recipe(&self, table: &toml::Table) -> Result<serde_json::Value, RecipeError>;

    /// As [`Technique::recipe`], for recipes that name files: `base` is the folder of the campaign file.
    fn recipe_at(&self, table: &toml::Table, _base: &Path) -> Result<serde_json::Value, RecipeError> {
        self.recipe(table)
    }

    /// Longest that one task with this recipe may run, seconds. An executor that takes longer is ended as hung.
    fn task_limit_s(&self, _recipe: &serde_json::Value) -> f64 {
        JobContext::TASK_LIMIT_S
    }

    /// Does it compute with rayon? Plans, previews and stages of one that does not run on the executor's own threads,
    /// which spares two changes of thread a phase.
    fn uses_pool(&self) -> bool {
        true
    }

    /// Roles this technique knows (`dark`, `white`, `angles`); others in a campaign are refused.
    fn roles(&self) -> &'static [&'static str];

    /// Recipe keys that decide what is executed. Whoever can merely write into a stream's inbox must not set them: the
    /// program would run as the pilot's account.
    fn executing_keys(&self) -> &'static [&'static str] {
        &[]
    }

    /// Recipe keys, dotted below tables, that name files to be read. Whoever can merely write into a stream's inbox must
    /// not set them: they could name any file that the pilot's account can read, and its errors tell of it.
    fn file_keys(&self) -> &'static [&'static str] {
        &[]
    }

    /// The probe: is the scan readable and whole, as far as one can tell? [`Fault::NotYet`] when it seems
    /// to be still written, [`Fault::Input`] when waiting will not help.
    fn inspect(&self, ctx: &TaskContext) -> Result<Inspection, Fault>;

    /// Headers only: how to cut the work.
    fn plan(&self, ctx: &TaskContext) -> Result<Plan, Fault>;

    /// Reads what the task needs, and only that.
    fn load(&self, ctx: &TaskContext) -> Result<Payload, Fault>;

    /// Computes, touching no file.
    fn compute(&self, ctx: &TaskContext, loaded: Payload) -> Result<Payload, Fault>;

    /// Writes, hashes from memory, syncs; returns what was written.
    fn store(&self, ctx: &TaskContext, computed: Payload) -> Result<TaskOutput, Fault>;

    /// Brings views over many bundles up to date after `bundle` was published in `results`: what lies in `results/_live`
    /// is made from bundles alone, and nobody waits for it: it may be done later, and for many bundles at once.
    fn live(&self, _results: &Path, _bundle: &Path) -> Result<(), Fault> {
        Ok(())
    }

    /// Before the process ends: does what [`Technique::live`] left for later, in at most so long; false when that was not
    /// enough.
    fn live_settle(&self, _longest: std::time::Duration) -> bool {
        true
    }
}

/// The technique of that name.
pub fn registry(name: &str) -> Option<&'static dyn Technique> {
    all().iter().copied().find(|t| t.name() == name)
}

/// Every technique in this build.
pub fn all() -> &'static [&'static dyn Technique] {
    &[&tomography::Tomography, &command::Command, &laue::Laue]
}
