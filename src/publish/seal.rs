//! The last step of a finish task, in an executor: manifest and checksums, everything durable.
//!
//! Contract: `output.files` of the technique names every file of the bundle with the hash taken while its data
//! was in memory; whatever else lies in staging (scratch, parts of lost attempts) is removed. On return every
//! file and folder of staging is synced; the rename that publishes it is the coordinator's.

use super::manifest::*;
use crate::arrivals::scan::{FileStamp, LINKED};
use crate::technique::TaskContext;
use crate::technique::plan::{Fault, OutputFile, TaskOutput, Timings};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Writes `manifest.json` and `SHA256SUMS`; returns `output` with both added.
pub fn seal(ctx: &TaskContext, mut output: TaskOutput) -> Result<TaskOutput, Fault> {
    let staging = &ctx.job.staging;
    output.files.sort_by(|a, b| a.path.cmp(&b.path));
    output.files.dedup_by(|a, b| a.path == b.path);
    check_files(staging, &output.files)?;
    sweep(staging, &output.files)?;
    let manifest = manifest(ctx, &output)?;
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Fault::Task(format!("manifest: {e}")))?;
    let own = write(staging, MANIFEST, &text)?;
    let mut sums = String::new();
    for file in output.files.iter().chain([&own]) {
        sums.push_str(&checksum_line(&file.sha256, &file.path));
    }
    output.files.push(own);
    output.files.push(write(staging, CHECKSUMS, sums.as_bytes())?);
    sync_folders(staging)?;
    Ok(output)
}

/// A line as `sha256sum` writes it: names with a backslash or a line break are escaped and the line says so.
fn checksum_line(sha256: &str, path: &str) -> String {
    if path.contains(['\\', '\n', '\r']) {
        let escaped = path.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r");
        format!("\\{sha256}  {escaped}\n")
    } else {
        format!("{sha256}  {path}\n")
    }
}

fn check_files(staging: &Path, files: &[OutputFile]) -> Result<(), Fault> {
    for file in files {
        let path = staging.join(&file.path);
        let found = std::fs::symlink_metadata(&path).map_err(|e| Fault::writing(&path, &e))?;
        if !found.is_file() || found.len() != file.bytes {
            let got = found.len();
            return Err(Fault::Task(format!("{}: {got} bytes, {} were written", path.display(), file.bytes)));
        }
    }
    Ok(())
}

/// Removes what no file list names.
fn sweep(staging: &Path, files: &[OutputFile]) -> Result<(), Fault> {
    let keep: BTreeSet<&str> = files.iter().map(|f| f.path.as_str()).collect();
    sweep_folder(staging, "", &keep)
}

fn sweep_folder(folder: &Path, prefix: &str, keep: &BTreeSet<&str>) -> Result<(), Fault> {
    let fault = |e: std::io::Error| Fault::writing(folder, &e);
    for entry in std::fs::read_dir(folder).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let name = entry.file_name();
        let path = format!("{prefix}{}", name.to_string_lossy());
        let below = format!("{path}/");
        if entry.file_type().map_err(fault)?.is_dir() {
            if keep.range(below.as_str()..).next().is_some_and(|k| k.starts_with(&below)) {
                sweep_folder(&entry.path(), &below, keep)?;
            } else {
                std::fs::remove_dir_all(entry.path()).map_err(fault)?;
            }
        } else if !keep.contains(path.as_str()) {
            std::fs::remove_file(entry.path()).map_err(fault)?;
        }
    }
    Ok(())
}

fn write(staging: &Path, name: &str, bytes: &[u8]) -> Result<OutputFile, Fault> {
    let path = staging.join(name);
    let written = File::create(&path).and_then(|mut f| f.write_all(bytes).and_then(|()| f.sync_all()));
    written.map_err(|e| Fault::writing(&path, &e))?;
    let sha256 = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    Ok(OutputFile { path: name.to_owned(), bytes: bytes.len() as u64, sha256 })
}

fn sync_folders(folder: &Path) -> Result<(), Fault> {
    let fault = |e: std::io::Error| Fault::writing(folder, &e);
    for entry in std::fs::read_dir(folder).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        if entry.file_type().map_err(fault)?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    File::open(folder).and_then(|f| f.sync_all()).map_err(fault)
}

fn input_file(stamp: &FileStamp) -> InputFile {
    InputFile { path: stamp.path.display().to_string(), bytes: stamp.size, mtime_ns: stamp.mtime_ns }
}

fn manifest(ctx: &TaskContext, output: &TaskOutput) -> Result<Manifest, Fault> {
    let job = &ctx.job;
    let parse = |what: &str, text: &str| {
        serde_json::from_str::<serde_json::Value>(text).map_err(|e| Fault::Task(format!("{what}: {e}")))
    };
    let mut told = parse("what the finish task reported", if output.carry.is_empty() { "{}" } else { &output.carry })?;
    let mut part = |key: &str| told.get_mut(key).map(serde_json::Value::take).unwrap_or_default();
    let mut stage_seconds: BTreeMap<String, Timings> = BTreeMap::new();
    for record in &job.carry {
        let name = record.label.split('-').next().unwrap_or(&record.label).to_owned();
        let sum = stage_seconds.entry(name).or_default();
        sum.read_s += record.output.timings.read_s;
        sum.compute_s += record.output.timings.compute_s;
        sum.write_s += record.output.timings.write_s;
    }
    let run = |r: &crate::technique::plan::TaskRecord| TaskRun {
        task: r.label.clone(),
        stage: r.stage,
        host: r.host.clone(),
        rank: r.rank,
        timings: r.output.timings,
    };
    let scan = &job.scan;
    // Linked files have a list of their own.
    let roles = scan.roles.iter().filter(|(role, _)| *role != LINKED);
    Ok(Manifest {
        manifest_version: VERSION,
        key: job.key.clone(),
        campaign: job.campaign.clone(),
        technique: job.technique.clone(),
        input: Input {
            stream: scan.stream.clone(),
            scan: scan.name.clone(),
            version: scan.version().to_string(),
            root: scan.root.display().to_string(),
            files: scan.members.iter().map(input_file).collect(),
            roles: roles.map(|(r, f)| (r.clone(), f.iter().map(input_file).collect())).collect(),
            linked: scan.linked.iter().map(input_file).collect(),
            last_byte_ms: scan.last_byte_ms,
            complete_ms: scan.complete_ms,
        },
        recipe: parse("recipe", &job.recipe)?,
        parameters: part("parameters"),
        acquisition: part("acquisition"),
        output: part("output"),
        software: Software {
            name: "beampilot".to_owned(),
            version: crate::VERSION.to_owned(),
            commit: crate::COMMIT.to_owned(),
        },
        host: ctx.host.clone(),
        rank: ctx.rank,
        tasks: job.carry.iter().map(run).collect(),
        stage_seconds,
        sealed: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        files: output.files.clone(),
    })
}
