//! One job: a scan and a recipe, on its way through the pilot.
//!
//! States carry their data; [`Phase`] is the only state, everything else here is what the phases work on.
//!
//! ```text
//! Checking → Unclaimed → Claiming → Planning → Working(stage) → Finishing → Publishing → gone
//!                 ↑          └ Foreign ┘ (another pilot has it: asked again later)
//!     any phase: input changed → dropped, settles again;  cannot be processed → Quarantining → gone
//! ```

use super::event::{AttemptNo, Check, Time, Timeline};
use super::queue::Place;
use crate::arrivals::scan::{InputVersion, Scan, escape};
use crate::technique::plan::{Plan, TaskKind, TaskRecord, TaskSpec};
use crate::transport::WorkerId;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

/// Where a job is.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// An executor probes or verifies the scan; nothing is claimed.
    Checking,
    /// Complete; claimed as soon as workers can soon start it.
    Unclaimed,
    /// The I/O pool tries.
    Claiming,
    /// Another pilot owns it; asked again at `retry`.
    Foreign {
        /// When to ask again.
        retry: Time,
        /// Who.
        owner: String,
    },
    /// An executor reads headers.
    Planning,
    /// Tasks of `stages[stage]` run.
    Working {
        /// Index into the plan's stages.
        stage: usize,
        /// The stage's `decide` task runs.
        deciding: bool,
    },
    /// The finish task runs.
    Finishing,
    /// The rename is ordered, or waits for storage.
    Publishing {
        /// The disk has not answered yet.
        ordered: bool,
    },
    /// Its record is ordered; the reason is kept for a retry.
    Quarantining {
        /// For the scientist.
        reason: String,
        /// The disk has not answered yet.
        ordered: bool,
    },
}

/// A task and how it fares.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// What to do.
    pub spec: TaskSpec,
    /// Stage, for the record.
    pub stage: u32,
    /// Failures on healthy executors.
    pub strikes: u32,
    /// Where it failed: it goes elsewhere while there is an elsewhere.
    pub avoid: Vec<WorkerId>,
    /// Executors that ended while they ran it.
    pub crashes: u32,
    /// It is suspected of ending executors, and runs on a worker that does nothing else.
    pub solo: bool,
    /// The tries under way: one, or two when the first is a straggler.
    pub attempts: Vec<AttemptNo>,
    /// Recorded.
    pub done: bool,
}

/// A job that is claimed: what is ours on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Generation.
    pub generation: u32,
    /// Staging folder.
    pub staging: PathBuf,
}

/// One job.
#[derive(Debug, Clone)]
pub struct Job {
    /// Index of its stream.
    pub stream: usize,
    /// Escaped name and hash.
    pub key: String,
    /// The scan.
    pub scan: Scan,
    /// Its input version; `None` for a name that arrivals rejected without a look at any file.
    pub version: Option<InputVersion>,
    /// What must be shown first.
    pub check: Check,
    /// Where it is.
    pub phase: Phase,
    /// Canonical recipe, JSON.
    pub recipe: String,
    /// The request that asked for it, when the campaign did not.
    pub salt: String,
    /// Above all others.
    pub urgent: bool,
    /// When it must be published.
    pub deadline: Time,
    /// Milestones.
    pub timeline: Timeline,
    /// Ours on disk, once claimed.
    pub claim: Option<Claim>,
    /// The plan, once known; `decide` tasks insert stages.
    pub plan: Option<Plan>,
    /// All tasks made so far.
    pub tasks: Vec<Task>,
    /// Indices of tasks that may be sent.
    pub ready: VecDeque<usize>,
    /// Tasks of the present stage not done.
    pub open: usize,
    /// A preview is under way or waiting.
    pub preview_open: bool,
    /// What finished tasks reported.
    pub records: Vec<TaskRecord>,
    /// The host on which its tasks run, as its scratch lies there.
    pub home: Option<String>,
    /// Version of the context that workers need.
    pub epoch: u32,
    /// Where it stands in line, while it has something ready.
    pub place: Option<Place>,
    /// Owners and workers that died for no known reason while this job was in flight.
    pub deaths: u32,
    /// The last try to claim it failed with an error: it may be ours nevertheless.
    pub uncertain: bool,
    /// Tasks that wait for their next try, with its time.
    pub delayed: Vec<(super::event::Time, usize)>,
    /// News of the scan that wait until the disk has answered for this job.
    pub successor: Option<Box<super::event::Event>>,
    /// What an earlier owner finished and this one has not come to yet, by label.
    pub adopted: BTreeMap<String, TaskRecord>,
    /// Tasks done and tasks known, for progress.
    pub progress: (u64, u64),
}

impl Job {
    /// A job that just arrived.
    pub fn new(stream: usize, key: String, scan: Scan, check: Check, deadline: Time) -> Self {
        Self {
            stream,
            key,
            version: Some(scan.version()),
            scan,
            check,
            phase: Phase::Checking,
            recipe: String::new(),
            salt: String::new(),
            urgent: false,
            deadline,
            timeline: Timeline::default(),
            claim: None,
            plan: None,
            tasks: Vec::new(),
            ready: VecDeque::new(),
            open: 0,
            preview_open: false,
            records: Vec::new(),
            home: None,
            epoch: 0,
            place: None,
            deaths: 0,
            uncertain: false,
            delayed: Vec::new(),
            successor: None,
            adopted: BTreeMap::new(),
            progress: (0, 0),
        }
    }

    /// Puts a new task at the end of the ready line (previews and control tasks at the front).
    pub fn add_task(&mut self, spec: TaskSpec, stage: u32) {
        let front = spec.kind < TaskKind::Stage;
        let index = self.tasks.len();
        self.tasks.push(Task {
            spec,
            stage,
            strikes: 0,
            avoid: Vec::new(),
            crashes: 0,
            solo: false,
            attempts: Vec::new(),
            done: false,
        });
        if front {
            self.ready.push_front(index);
        } else {
            self.ready.push_back(index);
        }
        self.progress.1 += 1;
    }

    /// The attempts under way.
    pub fn attempts(&self) -> impl Iterator<Item = AttemptNo> + '_ {
        self.tasks.iter().flat_map(|t| t.attempts.iter().copied())
    }

    /// True while the job holds a claim that workers work on.
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Claiming | Phase::Planning | Phase::Working { .. } | Phase::Finishing)
    }

    /// One word for people.
    pub fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::Checking => "checking",
            Phase::Unclaimed | Phase::Claiming => "waiting",
            Phase::Foreign { .. } => "elsewhere",
            Phase::Planning => "planning",
            Phase::Working { .. } => "computing",
            Phase::Finishing => "finishing",
            Phase::Publishing { .. } => "publishing",
            Phase::Quarantining { .. } => "quarantining",
        }
    }
}

/// The part of a key that names a scan and its version: `<stream>.<escaped name>-<12 hexadecimal digits>`.
pub fn scan_key(stream: &str, name: &str, version: InputVersion) -> String {
    format!("{}.{}-{:012x}", escape(stream), escape(name), version.0 >> 16)
}

/// A job's key: its [`scan_key`] and 8 digits over technique, recipe and request, so that a rewrite is another job
/// and so is another recipe.
pub fn job_key(stream: &str, name: &str, version: InputVersion, technique: &str, recipe: &str, salt: &str) -> String {
    format!("{}-{}", scan_key(stream, name, version), recipe_digits(technique, recipe, salt))
}

/// The last 8 digits of a key: of technique and recipe, or of technique and request. A request is one job also for
/// pilots that started with different editions of the campaign.
pub fn recipe_digits(technique: &str, recipe: &str, salt: &str) -> String {
    let mut hash = Sha256::new();
    let what = if salt.is_empty() { recipe } else { salt };
    for field in [technique, what] {
        hash.update((field.len() as u64).to_le_bytes());
        hash.update(field.as_bytes());
    }
    hash.finalize().iter().take(4).map(|b| format!("{b:02x}")).collect()
}

/// A plan that must not be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Too many stages.
    #[error("the plan has {0} stages, {max} are allowed", max = Plan::MAX_STAGES)]
    Stages(usize),
    /// Too many tasks in a stage.
    #[error("stage {0} has {1} tasks, {max} are allowed", max = Plan::MAX_TASKS)]
    Tasks(String, usize),
    /// A stage without tasks.
    #[error("stage {0} has no task")]
    Empty(String),
    /// Two tasks of one label, or one that is no file name.
    #[error("task label {0:?} is used twice or is not a plain file name")]
    Label(String),
}

/// Checks a plan's bounds and labels; `used` are labels the job has already.
pub fn check_plan(plan: &Plan, used: &[Task]) -> Result<(), PlanError> {
    if plan.stages.len() > Plan::MAX_STAGES {
        return Err(PlanError::Stages(plan.stages.len()));
    }
    let mut labels: BTreeMap<&str, ()> = used.iter().map(|t| (t.spec.label.as_str(), ())).collect();
    let staged = plan.stages.iter().flat_map(|s| s.tasks.iter().chain(&s.decide));
    for task in plan.preview.iter().chain(staged).chain([&plan.finish]) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let fit = !task.label.is_empty() && task.label.len() <= 64 && task.label.bytes().all(plain);
        if !fit || labels.insert(&task.label, ()).is_some() {
            return Err(PlanError::Label(task.label.clone()));
        }
    }
    for stage in &plan.stages {
        if stage.tasks.len() > Plan::MAX_TASKS {
            return Err(PlanError::Tasks(stage.name.clone(), stage.tasks.len()));
        }
        if stage.tasks.is_empty() {
            return Err(PlanError::Empty(stage.name.clone()));
        }
    }
    Ok(())
}
