//! What a dead pilot's journal says about its jobs: which tasks were finished, with everything they reported.
//!
//! Contract: reading a journal costs time only and may be skipped; whatever is torn, foreign or older than this
//! version is passed over. The newest record of a task wins.

use super::fs::Fs;
use super::journal;
use super::layout::Layout;
use crate::coordinator::event::Entry;
use crate::technique::plan::TaskRecord;
use std::collections::BTreeMap;
use std::io;

/// Finished tasks by job key, each by its label.
#[derive(Debug, Default)]
pub struct Finished {
    jobs: BTreeMap<String, BTreeMap<String, TaskRecord>>,
    /// Lines that could not be read.
    pub damaged: usize,
}

impl Finished {
    /// Reads a pilot's journal; one that is not there says nothing.
    ///
    /// # Errors
    /// The journal is there and cannot be read.
    pub fn read(fs: &dyn Fs, layout: &Layout, pilot: &str) -> io::Result<Self> {
        let found = match journal::read(fs, &layout.journal(pilot)) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(e),
        };
        let mut finished = Self { damaged: found.damaged, ..Self::default() };
        let mut keys: BTreeMap<u64, String> = BTreeMap::new();
        for line in found.lines {
            match line.event {
                Entry::Arrived { job, key, .. } => {
                    keys.insert(job, key);
                }
                Entry::Task { job, record: Some(record), .. } => {
                    if let Some(key) = keys.get(&job) {
                        finished.jobs.entry(key.clone()).or_default().insert(record.label.clone(), *record);
                    }
                }
                // Over: whatever was finished is published, gone or void.
                Entry::Published { job, .. } | Entry::Quarantined { job, .. } | Entry::Dropped { job, .. } => {
                    if let Some(key) = keys.get(&job) {
                        finished.jobs.remove(key);
                    }
                }
                _ => {}
            }
        }
        Ok(finished)
    }

    /// Finished tasks of a job, in order of label.
    pub fn of(&self, key: &str) -> impl Iterator<Item = &TaskRecord> {
        self.jobs.get(key).into_iter().flat_map(BTreeMap::values)
    }
}
