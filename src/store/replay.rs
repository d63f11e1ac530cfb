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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RealFs;

    /// Journals of earlier versions stay readable; their files are never changed, a new form gets a new file.
    fn replayed(text: &str) -> (Finished, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(&RealFs, dir.path()).unwrap();
        std::fs::write(layout.journal("old"), text).unwrap();
        (Finished::read(&RealFs, &layout, "old").unwrap(), dir)
    }

    const KEY: &str = "tomo.scan_001.h5-0123456789ab-00112233";

    #[test]
    fn journals_without_records_replay_and_say_nothing_is_finished() {
        let text = include_str!("../../tests/journals/2026-11-22.jsonl");
        let (finished, _dir) = replayed(text);
        assert_eq!((finished.damaged, finished.of(KEY).count()), (0, 0));
        let lines: Vec<_> = text.lines().map(|l| journal::decode(l.as_bytes())).collect();
        assert!(lines.len() == 8 && lines.iter().all(Option::is_some), "{lines:?}");
    }

    #[test]
    fn journals_with_records_name_what_is_finished_and_not_what_was_dropped() {
        let (finished, _dir) = replayed(include_str!("../../tests/journals/2026-11-25.jsonl"));
        assert_eq!(finished.damaged, 0);
        let labels: Vec<&str> = finished.of(KEY).map(|r| r.label.as_str()).collect();
        assert_eq!(labels, ["slab-00000", "slab-00001"]);
        assert_eq!(finished.of(&KEY.replace("001", "002")).count(), 0);
    }

    #[test]
    fn compacted_journals_say_what_they_said_before() {
        let text = include_str!("../../tests/journals/2026-11-25-compacted.jsonl");
        let (finished, _dir) = replayed(text);
        assert_eq!(finished.damaged, 0);
        let labels: Vec<&str> = finished.of(KEY).map(|r| r.label.as_str()).collect();
        assert_eq!(labels, ["slab-00000", "slab-00001"]);
        let first = text.lines().next().and_then(|l| journal::decode(l.as_bytes())).unwrap();
        assert!(first.seq == 0 && matches!(first.event, Entry::Began { dropped: 4, .. }), "{first:?}");
    }

    #[test]
    fn torn_zero_filled_and_foreign_tails_cost_what_they_hold() {
        let text = include_str!("../../tests/journals/2026-11-25.jsonl").as_bytes();
        let whole = |n: usize| text.split_inclusive(|b| *b == b'\n').take(n).map(<[u8]>::len).sum::<usize>();
        for (tail, damaged) in [(&[0u8; 512][..], 1), (b"{\"seq\":5,\"t_ms\":0,\"ev", 1), (b"\xff\xfe\nhello\n", 2)] {
            let dir = tempfile::tempdir().unwrap();
            let layout = Layout::open(&RealFs, dir.path()).unwrap();
            std::fs::write(layout.journal("old"), [&text[..whole(3)], tail].concat()).unwrap();
            let finished = Finished::read(&RealFs, &layout, "old").unwrap();
            assert_eq!((finished.damaged, finished.of(KEY).count()), (damaged, 1));
        }
    }
}
