//! A program of one task: its arguments, its environment, and what its end means.

use super::folders::Folder;
use super::modules;
use super::output;
use super::process::{self, Ended, How, Order};
use super::recipe::{Program, Recipe};
use super::template::{Values, expand};
use crate::formats::part;
use crate::technique::{Fault, OutputFile, TaskContext};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Lines and characters of standard error in a reason.
const REASON: (usize, usize) = (12, 1500);
/// Bytes kept of the beginning of standard output.
const KEPT: usize = 64 * 1024;

/// What a program that succeeded left.
pub(super) struct Left {
    pub folder: Folder,
    ended: Ended,
}

impl Left {
    /// Takes over what it wrote, and writes what it said.
    pub(super) fn take(self, ctx: &TaskContext) -> Result<Vec<OutputFile>, Fault> {
        let staging = &ctx.job.staging;
        let mut files = match self.folder.keep() {
            Ok(()) => Vec::new(),
            Err(folder) => output::take(staging, &folder.relative, ctx.job.resources.threads as usize, &ctx.cancelled)?,
        };
        for (said, ending) in [(&self.ended.out, "out"), (&self.ended.err, "err")] {
            if !said.is_empty() {
                let name = format!("logs/{}.a{}.{ending}", ctx.task.label, ctx.attempt);
                files.push(part::write_new(staging, &name, |file| file.put(&said.log()))?);
                sync(&staging.join("logs"))?;
            }
        }
        Ok(files)
    }
}

fn sync(folder: &Path) -> Result<(), Fault> {
    std::fs::File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Fault::writing(folder, &e))
}

/// Runs the plan program; what it printed.
pub(super) fn plan(ctx: &TaskContext, recipe: &Recipe) -> Result<Vec<u8>, Fault> {
    let left = start(ctx, recipe, Program::Plan, None, None, super::items::PRINTED_MAX)?;
    // What it wrote is not part of any result.
    if let Err(folder) = left.folder.keep() {
        let folder = folder.path();
        std::fs::remove_dir_all(&folder).map_err(|e| Fault::writing(&folder, &e))?;
    }
    left.ended.out.whole().filter(|all| all.len() <= super::items::PRINTED_MAX).ok_or_else(|| {
        let most = super::items::PRINTED_MAX >> 20;
        Fault::Input(format!("the plan program printed more than {most} MiB; print one short line an item"))
    })
}

/// Runs a task's program.
pub(super) fn run(
    ctx: &TaskContext,
    recipe: &Recipe,
    program: Program,
    item: Option<(usize, &str)>,
    items: Option<&Path>,
) -> Result<Left, Fault> {
    start(ctx, recipe, program, item, items, KEPT)
}

fn start(
    ctx: &TaskContext,
    recipe: &Recipe,
    program: Program,
    item: Option<(usize, &str)>,
    items: Option<&Path>,
    keep: usize,
) -> Result<Left, Fault> {
    let scan = &ctx.job.scan;
    let folder = Folder::of(&ctx.job.staging, &ctx.task.label, ctx.attempt)?;
    let values = Values {
        scan: scan_path(ctx),
        files: scan.member_paths().collect(),
        name: &scan.name,
        out: folder.path(),
        items,
        item,
        gpu: recipe.set.get("CUDA_VISIBLE_DEVICES").cloned().or_else(|| std::env::var("CUDA_VISIBLE_DEVICES").ok()),
        threads: ctx.job.resources.threads,
        roles: scan.roles.iter().map(|(r, f)| (r.as_str(), f.iter().map(|s| s.path.clone()).collect())).collect(),
    };
    let argv = expand(&recipe.template(program), &values)?;
    let shown = argv.first().map(|a| a.display().to_string()).unwrap_or_default();
    let order = Order {
        argv,
        env: environment(recipe, &values, ctx)?,
        folder: &values.out,
        time_limit: recipe.time_limit(),
        memory_limit: recipe.memory_limit,
        cancelled: &ctx.cancelled,
        keep,
    };
    let ended = process::run(&order).map_err(|e| not_started(&shown, program, ctx, &e))?;
    match verdict(&ended, recipe, program, &shown) {
        None => Ok(Left { folder, ended }),
        // A program does not say why it could not write.
        Some(fault) => Err(if is_full(&ctx.job.staging) {
            Fault::Storage(format!("{} is full; {fault}", ctx.job.staging.display()))
        } else {
            fault
        }),
    }
}

/// Of a file or folder; a group has no path of its own.
fn scan_path(ctx: &TaskContext) -> Option<PathBuf> {
    let scan = &ctx.job.scan;
    let one = Path::new(&scan.name);
    let belongs = |m: &crate::arrivals::scan::FileStamp| m.path.starts_with(one);
    (!scan.members.is_empty() && scan.members.iter().all(belongs)).then(|| scan.root.join(one))
}

fn environment(recipe: &Recipe, values: &Values<'_>, ctx: &TaskContext) -> Result<Vec<(String, OsString)>, Fault> {
    let mut env: Vec<(String, OsString)> = vec![("OMP_NUM_THREADS".to_owned(), values.threads.to_string().into())];
    let passed = recipe.env.iter().map(String::as_str).chain(["CUDA_VISIBLE_DEVICES"]);
    env.extend(passed.filter_map(|name| Some((name.to_owned(), std::env::var_os(name)?))));
    env.extend(recipe.set.iter().map(|(name, value)| (name.clone(), value.into())));
    // These were loaded over what is set.
    let modules = modules::of(recipe, ctx)?;
    env.retain(|(name, _)| !modules.gone.contains(name));
    env.extend(modules.set.iter().map(|(name, value)| (name.clone(), value.clone())));
    let own = [
        ("SCAN", values.scan.clone().map(PathBuf::into_os_string)),
        ("NAME", Some(values.name.into())),
        ("OUT", Some(values.out.clone().into_os_string())),
        ("STREAM", Some(ctx.job.scan.stream.clone().into())),
        ("THREADS", Some(values.threads.to_string().into())),
        ("GPU", values.gpu.clone().map(OsString::from)),
        ("ITEMS", values.items.map(OsString::from)),
        ("ITEM", values.item.map(|(_, item)| item.into())),
        ("INDEX", values.item.map(|(index, _)| index.to_string().into())),
    ];
    env.extend(own.into_iter().filter_map(|(name, value)| Some((format!("BEAMPILOT_{name}"), value?))));
    env.retain(|(_, value)| !value.as_bytes().contains(&0));
    Ok(env)
}

fn not_started(shown: &str, program: Program, ctx: &TaskContext, e: &std::io::Error) -> Fault {
    use std::io::ErrorKind as K;
    let remedy = match e.kind() {
        K::NotFound => "name it with its path, or add its folder to PATH; a script needs its interpreter, too",
        K::PermissionDenied => "make it executable (chmod +x)",
        K::ArgumentListTooLong => "pass {scan} instead of {files}",
        _ => "see whether it runs on that host",
    };
    Fault::Task(format!("{} {shown} did not start on {}: {e}; {remedy}", program.key(), ctx.host))
}

/// What an end means; `None` is success.
fn verdict(ended: &Ended, recipe: &Recipe, program: Program, shown: &str) -> Option<Fault> {
    let said = match ended.err.last_lines(REASON.0, REASON.1) {
        silent if silent.is_empty() => ended.out.last_lines(REASON.0, REASON.1),
        said => said,
    };
    let said = if said.is_empty() { "it said nothing".to_owned() } else { format!("it said: {said}") };
    let who = format!("{} ({shown})", program.key());
    Some(match ended.how {
        How::Code(0) => return None,
        How::Code(code) if recipe.exit.reject.contains(&code) => {
            Fault::Input(format!("{who} rejected the scan with exit code {code}; {said}"))
        }
        How::Code(code) if recipe.exit.fail.contains(&code) => {
            Fault::Input(format!("{who} failed with exit code {code}, which the recipe calls final; {said}"))
        }
        How::Code(code) => Fault::Task(format!("{who} ended with exit code {code}; {said}")),
        How::Signal(signal) => Fault::Task(format!("{who} was ended by signal {signal}; {said}")),
        How::TimedOut => {
            let limit = humantime::format_duration(recipe.time_limit());
            Fault::Task(format!("{who} ran longer than {limit} and was ended (time_limit); {said}"))
        }
        How::TooLarge(bytes) => {
            let (mib, limit) = (bytes >> 20, recipe.memory_limit >> 20);
            Fault::Task(format!("{who} held {mib} MiB, more than {limit}, and was ended (memory_limit); {said}"))
        }
        How::Cancelled => Fault::Task(crate::transport::wire::CANCELLED.to_owned()),
    })
}

fn is_full(folder: &Path) -> bool {
    rustix::fs::statvfs(folder).is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) < 1 << 20)
}
