//! What an earlier owner finished, and whether it may be used: `plan.json` and the parts in its staging.
//!
//! Contract
//! - The caller has renamed the old staging away, and knows that nothing of the old owner can write any more
//!   ([`super::claims::Previous::writers_gone`]). Parts of an owner that may still live are never adopted.
//! - Adopted is only what the old owner's journal records as finished (it was hashed and synced before), from a plan of
//!   the same job and the same build, and only while each of its files still has the recorded size. The key holds input
//!   version, technique and recipe; the plan itself is the cut.
//! - Scratch in staging moves along; a task whose scratch is lost, or lies on a node's own disk, is done again.
//! - Files are moved by rename, one by one. A kill in between costs what was not moved; nothing is used twice.
//! - Every failure means that less is adopted, never that a takeover fails.

use super::fs::Fs;
use super::layout::fenced;
use super::replay::Finished;
use crate::technique::plan::{Plan, TaskRecord};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Component, Path};

/// The plan of a job, in its staging.
pub const PLAN: &str = "plan.json";
/// Plans of more tasks are not saved: their parts are done again after a death.
const MOST_TASKS: usize = 20_000;
/// Largest `plan.json` that is read.
const MOST_BYTES: u64 = 256 << 20;

/// Work of an earlier owner that counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Adopted {
    /// The plan that it follows.
    pub plan: Plan,
    /// Its finished tasks; their files lie in our staging.
    pub records: Vec<TaskRecord>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    key: String,
    build: String,
    plan: Plan,
}

/// Writes a job's plan into its staging, once. It need not be whole: a torn one is not followed.
///
/// # Errors
/// What the filesystem says; nothing but time depends on this file.
pub fn save_plan(fs: &dyn Fs, staging: &Path, key: &str, plan: &Plan) -> io::Result<()> {
    if plan.stages.iter().map(|s| s.tasks.len()).sum::<usize>() > MOST_TASKS {
        return Ok(());
    }
    let saved = Saved { key: key.to_owned(), build: crate::BUILD.to_owned(), plan: plan.clone() };
    match fs.write_new(&staging.join(PLAN), &serde_json::to_vec(&saved).map_err(io::Error::other)?) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Moves what generation `old` finished into `staging`; `None` when there is nothing to use.
pub fn adopt(
    fs: &dyn Fs,
    stream_output: &Path,
    key: &str,
    old: u32,
    staging: &Path,
    finished: &Finished,
) -> Option<Adopted> {
    let from = fenced(stream_output, key, old);
    let saved: Saved = serde_json::from_slice(&fs.read(&from.join(PLAN), MOST_BYTES).ok()?).ok()?;
    if saved.key != key || saved.build != crate::BUILD {
        return None;
    }
    let plan = saved.plan;
    let staged = plan.stages.iter().flat_map(|s| s.tasks.iter().chain(&s.decide));
    let labels: std::collections::BTreeSet<&str> =
        plan.preview.iter().chain(staged).map(|t| t.label.as_str()).collect();
    let mut records = Vec::new();
    for record in finished.of(key).filter(|r| labels.contains(r.label.as_str())) {
        // What a task left for others goes with it; on a node's own disk it ended with its pilot.
        let scratch = record.output.scratch.as_ref();
        let left = scratch.is_none_or(|s| !s.local && move_file(fs, &from, staging, &s.path, s.bytes).is_ok());
        if left && record.output.files.iter().all(|f| move_file(fs, &from, staging, &f.path, f.bytes).is_ok()) {
            records.push(record.clone());
        }
    }
    if records.is_empty() {
        return None;
    }
    // The plan goes with its parts, so that the next owner may adopt them once more.
    save_plan(fs, staging, key, &plan).ok()?;
    Some(Adopted { plan, records })
}

fn move_file(fs: &dyn Fs, from: &Path, to: &Path, relative: &str, bytes: u64) -> io::Result<()> {
    let path = Path::new(relative);
    // It was written by us, but it is read from a file: it must not lead anywhere else.
    if relative.is_empty() || !path.components().all(|c| matches!(c, Component::Normal(_))) {
        return Err(io::Error::other("not a plain relative path"));
    }
    let (old, new) = (from.join(path), to.join(path));
    if fs.stat(&old)?.size != bytes {
        return Err(io::Error::other("not the size that was recorded"));
    }
    if let Some(folder) = new.parent() {
        fs.make_dirs(folder)?;
    }
    fs.rename(&old, &new)
}
