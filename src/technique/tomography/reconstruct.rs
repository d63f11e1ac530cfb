//! One scan from file to bundle in this process, with the code that executors run.
//!
//! Contract: plan, load, compute and store are those of the technique; loading, computing and storing overlap as they do
//! in an executor. The bundle is assembled in a hidden folder beside its place and published by one rename; an existing
//! bundle is never touched, the new one is then called `<name>~2`. After a fault nothing is left behind.

use crate::arrivals::scan::{FileStamp, Scan};
use crate::store::layout::bundle_stem;
use crate::technique::{
    Fault, JobContext, Plan, RecipeError, Resources, TaskContext, TaskKind, TaskOutput, TaskRecord, TaskSpec,
    Technique, is_storage_error,
};
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Completes a bundle before it is published: writes the manifest, given the folder, the job and the finish task's result.
pub type Seal<'a> = &'a (dyn Fn(&Path, &JobContext, &TaskOutput) -> Result<(), Fault> + Sync);

/// What to reconstruct.
#[derive(Default)]
pub struct ReconstructOptions<'a> {
    /// Name of the technique; tomography when empty.
    pub technique: &'a str,
    /// The scan's file, or folder.
    pub scan: PathBuf,
    /// Folder in which the bundle appears.
    pub output: PathBuf,
    /// Recipe as in a campaign file.
    pub recipe: toml::Table,
    /// Companion files by role: `dark`, `white`, `angles`.
    pub roles: BTreeMap<String, PathBuf>,
    /// Threads and memory; what this machine has when not given.
    pub resources: Option<Resources>,
    /// Writes the manifest.
    pub seal: Option<Seal<'a>>,
}

/// What happened so far.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// The scan was read and cut: `181 projections of …`, number of tasks.
    Planned(String, usize),
    /// A task is done: its label, how many are, of how many.
    Done(String, usize, usize),
}

/// A published bundle.
#[derive(Debug, Clone, PartialEq)]
pub struct Reconstruction {
    /// Its folder.
    pub bundle: PathBuf,
    /// Files, parameters, acquisition.
    pub output: TaskOutput,
    /// What every task reported.
    pub records: Vec<TaskRecord>,
}

/// Why there is no reconstruction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReconstructError {
    /// The recipe cannot be used.
    #[error("recipe: {0}")]
    Recipe(#[from] RecipeError),
    /// The folder for the bundle cannot be made, for a reason that waiting does not mend.
    #[error("{}: {why}; name a folder that can be made", path.display())]
    Output {
        /// The folder.
        path: PathBuf,
        /// Its kind, for exit codes.
        kind: std::io::ErrorKind,
        /// What the filesystem said.
        why: String,
    },
    /// The scan, the storage or the program.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// Reconstructs one scan.
///
/// # Errors
/// [`ReconstructError`]; nothing is left behind then.
pub fn reconstruct(
    options: &ReconstructOptions<'_>,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Reconstruction, ReconstructError> {
    let name = if options.technique.is_empty() { "tomography" } else { options.technique };
    let technique =
        crate::technique::registry(name).ok_or_else(|| Fault::Input(format!("{name}: there is no such technique")))?;
    // Files that a recipe names are relative to where the command was given.
    let here = std::env::current_dir().map_err(|e| Fault::reading(Path::new("."), &e))?;
    let recipe = technique.recipe_at(&options.recipe, &here)?.to_string();
    let scan = scan_of(&options.scan, &options.roles, technique)?;
    let name = bundle_stem(&scan.name, &scan.name);
    let mut folders = Folders::make(&options.output).map_err(|e| no_output(&options.output, &e))?;
    let output = options.output.canonicalize().map_err(|e| no_output(&options.output, &e))?;
    let staging = Staging::make(&output, &name)?;
    let job = JobContext {
        job: 0,
        key: name.clone(),
        scan,
        technique: technique.name().to_owned(),
        recipe,
        staging: staging.path.clone(),
        scratch: None,
        campaign: String::new(),
        resources: options.resources.unwrap_or_else(resources),
        task_limit_s: JobContext::TASK_LIMIT_S,
        carry: Vec::new(),
        epoch: 0,
    };
    let mut run = Run { technique, job, records: Vec::new(), done: 0, total: 0 };
    let inspection = run.technique.inspect(&run.context(spec("probe", TaskKind::Probe)))?;
    let plan = run.technique.plan(&run.context(spec("plan", TaskKind::Plan)))?;
    run.job.scan.linked.clone_from(&plan.linked);
    run.total = plan.stages.iter().map(|s| s.tasks.len()).sum::<usize>() + usize::from(plan.preview.is_some()) + 1;
    progress(&Progress::Planned(inspection.summary, run.total));
    let finished = run.all(plan, progress)?;
    if let Some(seal) = options.seal {
        seal(&staging.path, &run.job, &finished)?;
    }
    let bundle = staging.publish(&output, &name)?;
    folders.keep();
    Ok(Reconstruction { bundle, output: finished, records: run.records })
}

fn no_output(path: &Path, e: &std::io::Error) -> ReconstructError {
    if is_storage_error(e) {
        return Fault::writing(path, e).into();
    }
    ReconstructError::Output { path: path.to_owned(), kind: e.kind(), why: e.to_string() }
}

/// Folders that were made for the bundle; they go again, if they are empty, when none comes.
struct Folders {
    /// The innermost first.
    made: Vec<PathBuf>,
}

impl Folders {
    fn make(output: &Path) -> std::io::Result<Self> {
        let named = output.ancestors().filter(|p| !p.as_os_str().is_empty());
        let missing = named.take_while(|p| p.symlink_metadata().is_err()).map(Path::to_path_buf).collect();
        let folders = Self { made: missing };
        std::fs::create_dir_all(output)?;
        Ok(folders)
    }

    fn keep(&mut self) {
        self.made.clear();
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        for folder in &self.made {
            // One in which others have put something stays.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

fn spec(label: &str, kind: TaskKind) -> TaskSpec {
    TaskSpec { label: label.to_owned(), kind, params: Vec::new(), cost: 1.0, bytes_in: 0 }
}

/// Files below a folder, two levels deep, relative to the folder's own folder.
fn files_below(root: &Path, folder: &Path, depth: usize, found: &mut Vec<FileStamp>) -> Result<(), Fault> {
    let path = root.join(folder);
    for entry in std::fs::read_dir(&path).map_err(|e| Fault::reading(&path, &e))? {
        let entry = entry.map_err(|e| Fault::reading(&path, &e))?;
        let relative = folder.join(entry.file_name());
        let meta = std::fs::metadata(entry.path()).map_err(|e| Fault::reading(&entry.path(), &e))?;
        if meta.is_dir() && depth > 0 {
            files_below(root, &relative, depth - 1, found)?;
        } else if meta.is_file() {
            found.push(FileStamp::from_metadata(relative, &meta));
        }
    }
    Ok(())
}

/// A scan of one file or folder, as arrivals would make it.
///
/// # Errors
/// What cannot be read, and roles that the technique does not know.
pub(crate) fn scan_of(
    path: &Path,
    roles: &BTreeMap<String, PathBuf>,
    technique: &dyn Technique,
) -> Result<Scan, Fault> {
    let stamp = |path: &Path, name: PathBuf| -> Result<FileStamp, Fault> {
        let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Fault::Input(format!("{}: there is no such file", path.display())),
            _ => Fault::reading(path, &e),
        })?;
        Ok(FileStamp::from_metadata(name, &meta))
    };
    stamp(path, PathBuf::new())?;
    let path = path.canonicalize().map_err(|e| Fault::reading(path, &e))?;
    let (Some(root), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Fault::Input(format!("{}: neither a file nor a folder", path.display())));
    };
    let mut members = Vec::new();
    if path.is_dir() {
        files_below(root, Path::new(name), 1, &mut members)?;
        members.sort();
    } else {
        members.push(stamp(&path, PathBuf::from(name))?);
    }
    let mut found = BTreeMap::new();
    for (role, file) in roles {
        if !technique.roles().contains(&role.as_str()) {
            let known = technique.roles().join(", ");
            return Err(Fault::Input(format!("{role}: {} has no such role; there are {known}", technique.name())));
        }
        let file = file.canonicalize().map_err(|e| Fault::Input(format!("{}: {e}", file.display())))?;
        found.insert(role.clone(), vec![stamp(&file, file.clone())?]);
    }
    let last = members.iter().map(|m| m.mtime_ns.max(m.ctime_ns)).max().unwrap_or(0);
    let last_byte_ms = u64::try_from(last / 1_000_000).unwrap_or(0);
    Ok(Scan {
        stream: String::new(),
        name: name.to_string_lossy().into_owned(),
        root: root.to_owned(),
        members,
        roles: found,
        last_byte_ms,
        complete_ms: last_byte_ms,
        ..Scan::default()
    })
}

/// Threads and memory of this machine: a task may hold a quarter of what is available, for three overlap.
fn resources() -> Resources {
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    let threads = u32::try_from(rayon::current_num_threads()).unwrap_or(1);
    Resources { workers: 1, threads, task_memory: available.map_or(8 << 30, |kib| kib * 1024) / 4 }
}

struct Run {
    technique: &'static dyn Technique,
    job: JobContext,
    records: Vec<TaskRecord>,
    done: usize,
    total: usize,
}

impl Run {
    fn context(&self, task: TaskSpec) -> TaskContext {
        TaskContext {
            job: Arc::new(self.job.clone()),
            task,
            attempt: 1,
            host: String::new(),
            rank: 0,
            cancelled: Default::default(),
        }
    }

    fn all(&mut self, plan: Plan, progress: &mut dyn FnMut(&Progress)) -> Result<TaskOutput, Fault> {
        if let Some(preview) = plan.preview {
            // Its failure does not fail the job; what is wrong with the scan shows in the next stage.
            let _ = self.stage(0, vec![preview], progress);
        }
        for (i, stage) in plan.stages.into_iter().enumerate() {
            self.stage(i as u32 + 1, stage.tasks, progress)?;
            self.job.carry = self.records.clone();
        }
        self.stage(u32::MAX, vec![plan.finish], progress)?;
        let last = self.records.last().map(|r| r.output.clone());
        last.ok_or_else(|| Fault::Task("the finish task reported nothing".to_owned()))
    }

    /// Runs independent tasks as a pipeline of three: this thread stores.
    fn stage(&mut self, stage: u32, tasks: Vec<TaskSpec>, progress: &mut dyn FnMut(&Progress)) -> Result<(), Fault> {
        let job = Arc::new(self.job.clone());
        let technique = self.technique;
        let context = |task: TaskSpec| TaskContext {
            job: Arc::clone(&job),
            task,
            attempt: 1,
            host: host(),
            rank: 0,
            cancelled: Default::default(),
        };
        let (to_compute, loaded) = crossbeam::channel::bounded(1);
        let (to_store, computed) = crossbeam::channel::bounded(1);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for task in tasks {
                    let ctx = context(task);
                    let result = technique.load(&ctx);
                    // Nobody listens after a fault downstream.
                    if to_compute.send((ctx, result)).is_err() {
                        return;
                    }
                }
            });
            scope.spawn(move || {
                for (ctx, result) in loaded {
                    let result = result.and_then(|payload| technique.compute(&ctx, payload));
                    if to_store.send((ctx, result)).is_err() {
                        return;
                    }
                }
            });
            for (ctx, result) in computed {
                let output = technique.store(&ctx, result?)?;
                let TaskSpec { label, kind, .. } = ctx.task;
                self.done += 1;
                progress(&Progress::Done(label.clone(), self.done, self.total));
                self.records.push(TaskRecord { stage, label, kind, host: ctx.host, rank: ctx.rank, output });
            }
            Ok(())
        })
    }
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The hidden folder of an unfinished bundle; removed unless published.
struct Staging {
    path: PathBuf,
}

impl Staging {
    fn make(output: &Path, name: &str) -> Result<Self, ReconstructError> {
        for n in 0..1000 {
            let path = output.join(format!(".staging-{name}.{}.{n}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(no_output(&path, &e)),
            }
        }
        Err(Fault::Task(format!("{}: a thousand unfinished bundles of {name} lie here", output.display())).into())
    }

    fn publish(self, output: &Path, name: &str) -> Result<PathBuf, Fault> {
        use std::os::unix::fs::PermissionsExt;
        let readable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&self.path, readable).map_err(|e| Fault::writing(&self.path, &e))?;
        for n in 1..100_000 {
            let target = output.join(if n == 1 { name.to_owned() } else { format!("{name}~{n}") });
            if target.symlink_metadata().is_ok() {
                continue;
            }
            match std::fs::rename(&self.path, &target) {
                Ok(()) => return Ok(target),
                // Somebody took the name in between.
                Err(e) if target.symlink_metadata().is_ok() => drop(e),
                Err(e) => return Err(Fault::writing(&target, &e)),
            }
        }
        Err(Fault::Task(format!("{}: too many bundles are called {name}", output.display())))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a publish there is nothing under this name any more.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
