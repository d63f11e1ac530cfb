//! What a simulated executor does with a task: it reads its input, writes files of its own through held descriptors,
//! syncs them and reports. The finish task imitates the tomography's finish and [`crate::publish::seal`], call by call.

use super::fibre::{Ask, SimFs, ask};
use super::obedience::{EXECUTOR_DIES, PILOT_DIES};
use super::tree::digest;
use crate::arrivals::scan::Scan;
use crate::store::Fs;
use crate::technique::plan::*;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

/// A task and where it runs.
pub struct Errand {
    pub fs: SimFs,
    pub context: JobContext,
    pub task: TaskSpec,
    /// Unique over all pilots.
    pub attempt: String,
    pub compute_us: u64,
    /// Broken on purpose: nothing is synced.
    pub unsynced: bool,
}

/// Content of a scan file: its version, and whether it is whole and good.
pub fn content(version: u32, state: &str) -> Vec<u8> {
    format!("v{version} {state} {}", "x".repeat(version as usize + state.len())).into_bytes()
}

pub fn plan(stages: &[usize]) -> Plan {
    let task = |label: String, kind| TaskSpec { label, kind, params: vec![], cost: 1.0, bytes_in: 0 };
    let stage = |(i, n): (usize, &usize)| Stage {
        name: format!("stage{i}"),
        tasks: (0..*n).map(|t| task(format!("s{i}-{t}"), TaskKind::Stage)).collect(),
        decide: None,
    };
    Plan {
        preview: Some(task("preview".into(), TaskKind::Preview)),
        stages: stages.iter().enumerate().map(stage).collect(),
        finish: task("finish".into(), TaskKind::Finish),
        items: 8,
        unit: "slices".into(),
        linked: Vec::new(),
        scratch: false,
    }
}

impl Errand {
    pub fn run(self) -> Result<TaskOutput, Fault> {
        let scan = self.context.scan.clone();
        self.unchanged(&scan)?;
        let Some(input) = scan.member_paths().next() else { return Err(Fault::Task("no input".into())) };
        let bytes = self.fs.read(&input, 1 << 20).map_err(|e| Fault::reading(&input, &e))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        ask(Ask::Sleep(self.compute_us));
        let deadly = self.task.kind == TaskKind::Stage && self.task.label == "s0-0";
        let output = match self.task.kind {
            _ if deadly && text.contains("killer") => return Err(Fault::Task(EXECUTOR_DIES.into())),
            _ if deadly && text.contains("fatal") => return Err(Fault::Task(PILOT_DIES.into())),
            TaskKind::Probe if text.contains("partial") => return Err(Fault::NotYet("short".into())),
            TaskKind::Plan if text.contains("bad") => {
                self.unchanged(&scan)?;
                return Err(Fault::Input("the file has no angles".into()));
            }
            TaskKind::Plan => {
                let stages: &[usize] = if text.len().is_multiple_of(2) { &[1, 2] } else { &[2] };
                TaskOutput { plan: Some(plan(stages)), ..TaskOutput::default() }
            }
            TaskKind::Preview | TaskKind::Stage => self.part(&text)?,
            TaskKind::Finish => self.finish()?,
            _ => TaskOutput::default(),
        };
        self.unchanged(&scan)?;
        Ok(output)
    }

    fn unchanged(&self, scan: &Scan) -> Result<(), Fault> {
        match scan.changed_by(&|path| self.fs.stat(path)) {
            Ok(None) => Ok(()),
            Ok(Some(path)) => Err(Fault::InputChanged(path)),
            Err(e) => Err(Fault::Storage(e.to_string())),
        }
    }

    fn write(&self, relative: &str, bytes: &[u8], exclusive: bool) -> Result<OutputFile, Fault> {
        let path = self.context.staging.join(relative);
        let written = || -> io::Result<()> {
            let file = self.fs.create(&path, exclusive)?;
            let half = bytes.len() / 2;
            file.write(0, &bytes[..half])?;
            file.write(half, &bytes[half..])?;
            if self.unsynced { Ok(()) } else { file.sync() }
        };
        written().map_err(|e| Fault::writing(&path, &e))?;
        Ok(OutputFile { path: relative.to_owned(), bytes: bytes.len() as u64, sha256: digest(bytes) })
    }

    fn part(&self, input: &str) -> Result<TaskOutput, Fault> {
        let folder = self.context.staging.join("parts");
        match self.fs.make_dir(&folder, 0o755) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Fault::writing(&folder, &e)),
            _ => {}
        }
        let bytes = format!("{} by {} of {}", self.task.label, self.attempt, digest(input.as_bytes()));
        let file = self.write(&format!("parts/{}.a{}", self.task.label, self.attempt), bytes.as_bytes(), true)?;
        Ok(TaskOutput { files: vec![file], ..TaskOutput::default() })
    }

    fn finish(&self) -> Result<TaskOutput, Fault> {
        let staging = &self.context.staging;
        let mut files: Vec<OutputFile> = self.context.carry.iter().flat_map(|r| r.output.files.clone()).collect();
        let of = |e: &io::Error, path: &Path| Fault::writing(path, e);
        let mut all = Vec::new();
        for file in &files {
            let path = staging.join(&file.path);
            all.extend(self.fs.read(&path, 1 << 20).map_err(|e| of(&e, &path))?);
        }
        let own = format!("recon.a{}.tmp", self.attempt);
        let written = self.write(&own, format!("{} {}", self.attempt, digest(&all)).as_bytes(), true)?;
        let recon = staging.join("recon.h5");
        self.fs.rename(&staging.join(&own), &recon).map_err(|e| of(&e, &recon))?;
        files.push(OutputFile { path: "recon.h5".into(), ..written });
        // As `seal` does: sizes, then whatever is not listed goes, then manifest and sums, then everything is synced.
        for file in &files {
            let path = staging.join(&file.path);
            let size = self.fs.stat(&path).map_err(|e| of(&e, &path))?.size;
            if size != file.bytes {
                return Err(Fault::Task(format!("{}: {size} bytes", path.display())));
            }
        }
        let keep: BTreeSet<&str> = files.iter().map(|f| f.path.as_str()).collect();
        for folder in ["", "parts/"] {
            let path = staging.join(folder);
            for name in self.fs.list(&path).map_err(|e| of(&e, &path))? {
                let relative = format!("{folder}{name}");
                if relative != "parts" && !keep.contains(relative.as_str()) {
                    let path = staging.join(&relative);
                    self.fs.remove_file(&path).map_err(|e| of(&e, &path))?;
                }
            }
        }
        let manifest = serde_json::json!({ "key": self.context.key, "by": self.attempt, "files": files });
        let manifest = self.write("manifest.json", manifest.to_string().as_bytes(), false)?;
        files.push(manifest);
        let sums: String = files.iter().map(|f| format!("{}  {}\n", f.sha256, f.path)).collect();
        files.push(self.write("SHA256SUMS", sums.as_bytes(), false)?);
        self.fs.sync_dir(staging).map_err(|e| of(&e, staging))?;
        Ok(TaskOutput { files, ..TaskOutput::default() })
    }
}
