//! What a journal holds, line by line, and what of it may go.
//!
//! Contract: what may go changes nothing for a reader of [`crate::store::replay`].
//! - Results of tasks go once their job is over. Replay forgets them at the verdict, which stays.
//! - Of jobs that are over, and of alarms and requests, the newest [`HISTORY`] lines stay, for people; but all of a job
//!   whose key an open job has, too (one that was dropped and came again), because its verdict tells replay where to
//!   begin.
//! - Everything of an open job stays.

use super::{Line, checked, encode};
use crate::coordinator::event::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// How many lines about what is over stay.
pub(super) const HISTORY: usize = 20_000;

/// What a line is, as far as compaction must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A job's first line; a hash of its key.
    Arrived(u32),
    /// A task's result.
    Work,
    /// The job is over.
    Verdict,
    Other,
}

/// One line.
#[derive(Debug, Clone, Copy)]
struct Item {
    bytes: u32,
    job: Option<u64>,
    kind: Kind,
}

fn item(entry: &Entry, bytes: usize) -> Item {
    let (job, kind) = match entry {
        // Equal hashes of different keys only keep more.
        Entry::Arrived { job, key, .. } => (Some(*job), Kind::Arrived(crc32fast::hash(key.as_bytes()))),
        Entry::Task { job, .. } => (Some(*job), Kind::Work),
        Entry::Published { job, .. } | Entry::Quarantined { job, .. } | Entry::Dropped { job, .. } => {
            (Some(*job), Kind::Verdict)
        }
        Entry::Claimed { job, .. } | Entry::Failed { job, .. } => (Some(*job), Kind::Other),
        Entry::Began { .. } | Entry::Alarm { .. } | Entry::Request { .. } => (None, Kind::Other),
    };
    // A line is never 4 GiB long: it was made in memory from messages that have a limit.
    Item { bytes: u32::try_from(bytes).unwrap_or(u32::MAX), job, kind }
}

/// Lines that are written and synced together.
#[derive(Debug, Clone, Default)]
pub struct Group {
    pub(super) bytes: Vec<u8>,
    items: Vec<Item>,
}

impl Group {
    /// Adds a line.
    pub fn push(&mut self, line: &Line) {
        let before = self.bytes.len();
        encode(line, &mut self.bytes);
        if self.bytes.len() > before {
            self.items.push(item(&line.event, self.bytes.len() - before));
        }
    }
    /// Bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
    /// Holds no line.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
    /// Begins anew.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.items.clear();
    }
}

/// The lines of a journal behind its first.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    items: Vec<Item>,
    /// Bytes of results, by open job.
    work: BTreeMap<u64, u64>,
    /// Bytes of results whose job is over.
    waste: u64,
}

impl Index {
    pub(super) fn extend(&mut self, group: &Group) {
        group.items.iter().for_each(|item| self.push(*item));
    }

    fn push(&mut self, item: Item) {
        match (item.kind, item.job) {
            (Kind::Work, Some(job)) => *self.work.entry(job).or_default() += u64::from(item.bytes),
            (Kind::Verdict, Some(job)) => self.waste += self.work.remove(&job).unwrap_or(0),
            _ => {}
        }
        self.items.push(item);
    }

    /// Bytes that compaction would surely free.
    pub(super) fn waste(&self) -> u64 {
        self.waste
    }

    /// For each line whether it stays.
    fn keep(&self) -> Vec<bool> {
        let mut verdict: BTreeMap<u64, usize> = BTreeMap::new();
        let mut last: BTreeMap<u64, usize> = BTreeMap::new();
        for (n, item) in self.items.iter().enumerate() {
            let Some(job) = item.job else { continue };
            last.insert(job, n);
            if item.kind == Kind::Verdict {
                verdict.insert(job, n);
            }
        }
        let is_over = |job: &u64| verdict.get(job).is_some_and(|v| last.get(job) == Some(v));
        let keys = |over: bool| {
            self.items.iter().filter_map(move |item| match (item.kind, item.job) {
                (Kind::Arrived(key), Some(job)) if is_over(&job) == over => Some((job, key)),
                _ => None,
            })
        };
        let open: BTreeSet<u32> = keys(false).map(|(_, key)| key).collect();
        let shared: BTreeSet<u64> = keys(true).filter(|(_, key)| open.contains(key)).map(|(job, _)| job).collect();
        let mut room = HISTORY;
        let mut keep: Vec<bool> = (self.items.iter().enumerate().rev())
            .map(|(n, item)| match (item.kind, &item.job) {
                (Kind::Work, Some(job)) => verdict.get(job).is_none_or(|v| *v < n),
                (_, Some(job)) if !is_over(job) || shared.contains(job) => true,
                _ => {
                    let fits = room > 0;
                    room = room.saturating_sub(1);
                    fits
                }
            })
            .collect();
        keep.reverse();
        keep
    }

    /// What stays of `old`, the lines behind the first; its index; and how many lines go. `None` when what stays is not
    /// what was written.
    pub(super) fn compacted(&self, old: &[u8]) -> Option<(Vec<u8>, Self, u64)> {
        let (mut bytes, mut index, mut dropped, mut at) = (Vec::new(), Self::default(), 0, 0);
        for (item, keep) in self.items.iter().zip(self.keep()) {
            let line = old.get(at..at + item.bytes as usize)?;
            at += line.len();
            if keep {
                checked(line)?;
                bytes.extend_from_slice(line);
                index.push(*item);
            } else {
                dropped += 1;
            }
        }
        (at == old.len()).then_some((bytes, index, dropped))
    }
}
