//! The last task: one bundle out of what items, run or finish wrote.
//!
//! | bundle | from |
//! | --- | --- |
//! | `data/…` | `run`, or `finish` |
//! | `data/item-<n>/…` | items, when there is no `finish` |
//! | `preview/*.png` | `preview`, and `preview/` in the output of `run` or `finish` |
//! | `logs/…` | what programs said |
//!
//! Contract: only files of recorded attempts are in the bundle. Everything is moved by rename; whoever repeats this
//! task, after a crash or beside a stalled twin, ends with the same files.

use super::output::{self, moved, place};
use crate::technique::{Fault, OutputFile, TaskContext, TaskKind, TaskRecord};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The folder that a recorded attempt's files are in, relative to staging, and those files.
fn part(record: &TaskRecord) -> Option<(&str, Vec<OutputFile>)> {
    let files: Vec<OutputFile> = record.output.files.iter().filter(|f| f.path.starts_with("parts/")).cloned().collect();
    let folder = record.output.files.iter().find_map(|f| f.path.strip_prefix("parts/")?.split('/').next())?;
    Some((folder, files))
}

fn stage(ctx: &TaskContext) -> impl Iterator<Item = &TaskRecord> {
    ctx.job.carry.iter().filter(|r| r.kind == TaskKind::Stage)
}

/// What `finish` sees: a folder with one folder an item, whichever attempt wrote it.
pub(super) fn view(ctx: &TaskContext) -> Result<PathBuf, Fault> {
    let relative = format!("parts/{}.a{}.items", ctx.task.label, ctx.attempt);
    output::new_folder(&ctx.job.staging, &relative)?;
    let folder = ctx.job.staging.join(relative);
    for record in stage(ctx) {
        let name = folder.join(&record.label);
        let made = match part(record) {
            // Not copied: items may be large.
            Some((written, _)) => std::os::unix::fs::symlink(format!("../{written}"), &name),
            None => std::fs::create_dir(&name),
        };
        made.map_err(|e| Fault::writing(&name, &e))?;
    }
    Ok(folder)
}

/// Puts the bundle together; `finished` is what `finish` wrote, if there is one. Returns its files and what the
/// manifest says about them.
pub(super) fn bundle(
    ctx: &TaskContext,
    finished: Option<(String, Vec<OutputFile>)>,
) -> Result<(Vec<OutputFile>, String), Fault> {
    let staging = &ctx.job.staging;
    let data = staging.join("data");
    let items = stage(ctx).count();
    let mut files = Vec::new();
    if let Some((folder, written)) = finished {
        if data.exists() {
            // Of an earlier try of this task, and of no record.
            std::fs::remove_dir_all(&data).map_err(|e| Fault::writing(&data, &e))?;
        }
        adopt(ctx, &folder, "data", written, &mut files)?;
    } else {
        for record in stage(ctx) {
            let Some((folder, written)) = part(record) else { continue };
            let target = if record.label == "run" { "data".to_owned() } else { format!("data/{}", record.label) };
            if record.label != "run" && !data.exists() {
                std::fs::create_dir(&data).map_err(|e| Fault::writing(&data, &e))?;
            }
            adopt(ctx, &format!("parts/{folder}"), &target, written, &mut files)?;
        }
    }
    let written = files.iter().filter(|f| f.path.starts_with("data/")).count();
    let logs = ctx.job.carry.iter().flat_map(|r| &r.output.files).filter(|f| f.path.starts_with("logs/"));
    files.extend(logs.cloned());
    previews(ctx, &mut files)?;
    let carry = serde_json::json!({ "output": { "folder": "data", "items": items, "files": written } });
    Ok((files, carry.to_string()))
}

/// Moves a folder whole; its files get their new paths.
fn adopt(
    ctx: &TaskContext,
    folder: &str,
    target: &str,
    written: Vec<OutputFile>,
    files: &mut Vec<OutputFile>,
) -> Result<(), Fault> {
    let staging = &ctx.job.staging;
    let (inside, others): (Vec<_>, Vec<_>) = written.into_iter().partition(|f| f.path.starts_with("parts/"));
    files.extend(others);
    if inside.is_empty() {
        return Ok(());
    }
    moved(&staging.join(folder), &staging.join(target))?;
    let renamed = |f: OutputFile| OutputFile { path: f.path.replacen(folder, target, 1), ..f };
    files.extend(inside.into_iter().map(renamed));
    Ok(())
}

/// Pictures get to where every bundle has them.
fn previews(ctx: &TaskContext, files: &mut Vec<OutputFile>) -> Result<(), Fault> {
    let staging = &ctx.job.staging;
    let picture = |name: &str| name.ends_with(".png") && !name.contains('/');
    let mut taken = BTreeSet::new();
    let mut target = |name: &str| -> Result<Option<String>, Fault> {
        if !taken.insert(name.to_owned()) {
            return Ok(None);
        }
        let folder = staging.join("preview");
        match std::fs::create_dir(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(Fault::writing(&folder, &e)),
            _ => Ok(Some(format!("preview/{name}"))),
        }
    };
    for file in files.iter_mut() {
        let name = file.path.strip_prefix("data/preview/").filter(|n| picture(n)).map(str::to_owned);
        if let Some(name) = name
            && let Some(to) = target(&name)?
        {
            place(staging, file, to)?;
        }
    }
    for record in ctx.job.carry.iter().filter(|r| r.kind == TaskKind::Preview) {
        let Some((folder, written)) = part(record) else { continue };
        let prefix = format!("parts/{folder}/");
        for mut file in written {
            let name = file.path.strip_prefix(&prefix).filter(|n| picture(n)).map(str::to_owned);
            if let Some(name) = name
                && let Some(to) = target(&name)?
            {
                place(staging, &mut file, to)?;
                files.push(file);
            }
        }
    }
    Ok(())
}
