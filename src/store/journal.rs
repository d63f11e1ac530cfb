//! The journal: one JSON event a line, numbered, with a checksum; appended and synced in groups by its own thread.
//!
//! A line is `{"seq":7,"t_ms":…,"event":{…},"crc":"89abcdef"}`; the CRC-32 covers the line's bytes before
//! `,"crc"`. Lines are durable when [`Durable`] names their number. A kill leaves at most a torn last group;
//! [`read`] keeps what is whole and says what is not. A failing filesystem is retried: the lines wait in
//! memory and everything after the last durable byte is written again, because after a failed sync nobody
//! knows what reached the disk.
//!
//! The first line, number 0, says which build writes here and how many lines compaction took out ([`writer`]); the
//! others keep their numbers, so that a gap in them is no loss.

mod index;
pub mod writer;

#[cfg(test)]
mod compaction_tests;

pub use index::Group;
pub use writer::Writer;

use super::fs::Fs;
use crate::coordinator::event::Entry;
use crossbeam::channel::Receiver;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A line to append.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Number.
    pub seq: u64,
    /// Milliseconds since the epoch.
    pub t_ms: u64,
    /// What happened.
    pub event: Entry,
}

/// What the thread reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Durable {
    /// Everything up to this number is on disk.
    UpTo(u64),
    /// Writing fails; it is tried again every second.
    Trouble(String),
}

#[derive(Serialize)]
struct Body<'a> {
    seq: u64,
    t_ms: u64,
    event: &'a Entry,
}

#[derive(Deserialize)]
struct Parsed {
    seq: u64,
    t_ms: u64,
    event: Entry,
}

const CRC: &str = ",\"crc\":\"";

/// Appends a line's bytes.
pub fn encode(line: &Line, out: &mut Vec<u8>) {
    let start = out.len();
    let body = Body { seq: line.seq, t_ms: line.t_ms, event: &line.event };
    // A Vec takes every write and these types always serialise; were one not to, its line is dropped whole.
    if serde_json::to_writer(&mut *out, &body).is_err() {
        out.truncate(start);
        return;
    }
    out.pop();
    let crc = crc32fast::hash(&out[start..]);
    out.extend_from_slice(CRC.as_bytes());
    out.extend_from_slice(format!("{crc:08x}\"}}\n").as_bytes());
}

/// The bytes that a line's checksum covers; `None` when it is torn, foreign or damaged.
fn checked(line: &[u8]) -> Option<&[u8]> {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    let at = text.len().checked_sub(CRC.len() + 10)?;
    let (body, tail) = text.split_at(at);
    let tail = std::str::from_utf8(tail).ok()?.strip_prefix(CRC)?.strip_suffix("\"}")?;
    (u32::from_str_radix(tail, 16).ok()? == crc32fast::hash(body)).then_some(body)
}

/// Reads one line back; `None` when it is torn, foreign or damaged.
pub fn decode(line: &[u8]) -> Option<Line> {
    let mut whole = checked(line)?.to_vec();
    whole.push(b'}');
    let parsed: Parsed = serde_json::from_slice(&whole).ok()?;
    Some(Line { seq: parsed.seq, t_ms: parsed.t_ms, event: parsed.event })
}

/// A journal as found: its whole lines in order, and what was wrong with the rest.
#[derive(Debug, Default)]
pub struct Found {
    /// Whole lines, numbers ascending.
    pub lines: Vec<Line>,
    /// How many lines were damaged or out of order.
    pub damaged: usize,
}

/// Largest journal that is read, bytes.
const MOST: u64 = 4 << 30;

/// Reads a journal, tolerating damage anywhere.
///
/// # Errors
/// The file cannot be read at all.
pub fn read(fs: &dyn Fs, path: &Path) -> io::Result<Found> {
    let bytes = fs.read(path, MOST)?;
    let mut found = Found::default();
    for raw in bytes.split_inclusive(|b| *b == b'\n') {
        match decode(raw) {
            Some(line) if found.lines.last().is_none_or(|l| l.seq < line.seq) => found.lines.push(line),
            _ => found.damaged += 1,
        }
    }
    Ok(found)
}

/// Starts the thread. It ends when the sending side is dropped and everything is durable, or when it is told
/// to by dropping the receiver of `report`.
///
/// # Errors
/// The journal cannot be opened.
pub fn spawn(
    fs: &Arc<dyn Fs>,
    path: PathBuf,
    lines: Receiver<Line>,
    report: impl Fn(Durable) -> bool + Send + 'static,
) -> io::Result<std::thread::JoinHandle<()>> {
    let mut writer = Writer::open(fs.clone(), path, super::records::now_ms())?;
    std::thread::Builder::new().name("journal".into()).spawn(move || run(&mut writer, &lines, &report))
}

/// Longest group, bytes: an endless flood must not postpone the sync for ever.
const GROUP: usize = 4 << 20;

fn run(writer: &mut Writer, lines: &Receiver<Line>, report: &impl Fn(Durable) -> bool) {
    // The first line says who writes here, before anything happened.
    let mut group = Group::default();
    let mut last = 0;
    loop {
        while let Err(e) = writer.append(&group) {
            if !report(Durable::Trouble(format!("{}: {e}", writer.path().display()))) {
                return;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        if !report(Durable::UpTo(last)) {
            return;
        }
        // After the report: nobody waits for it but what comes next.
        match writer.compact_if_worth() {
            Ok(0) => {}
            Ok(freed) => tracing::debug!(bytes = freed, "the journal was compacted"),
            Err(e) => tracing::warn!(file = %writer.path().display(), error = %e, "the journal stays as long as it is"),
        }
        let Ok(first) = lines.recv() else { return };
        group.clear();
        last = first.seq;
        group.push(&first);
        while group.len() < GROUP {
            let Ok(next) = lines.try_recv() else { break };
            last = next.seq;
            group.push(&next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RealFs;
    use proptest::prelude::*;
    use std::sync::Mutex;

    fn sample(n: u64) -> Vec<Line> {
        let event = |i| Entry::Task { job: i, label: format!("slab-{i:05}"), attempt: i * 3, worker: 2, record: None };
        (1..=n).map(|i| Line { seq: i, t_ms: 1_700_000_000_000 + i, event: event(i) }).collect()
    }

    fn bytes(lines: &[Line]) -> Vec<u8> {
        let mut out = Vec::new();
        lines.iter().for_each(|l| encode(l, &mut out));
        out
    }

    fn read_bytes(content: &[u8]) -> Found {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        read(&RealFs, file.path()).unwrap()
    }

    #[test]
    fn what_is_written_is_durable_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j.jsonl");
        let (tx, rx) = crossbeam::channel::unbounded();
        let reports = Arc::new(Mutex::new(Vec::new()));
        let sink = reports.clone();
        let fs: Arc<dyn Fs> = Arc::new(RealFs);
        let thread = spawn(&fs, path.clone(), rx, move |d| {
            sink.lock().unwrap().push(d);
            true
        })
        .unwrap();
        let lines = sample(500);
        lines.iter().for_each(|l| tx.send(l.clone()).unwrap());
        drop(tx);
        thread.join().unwrap();
        assert_eq!(reports.lock().unwrap().last(), Some(&Durable::UpTo(500)));
        let found = read(&RealFs, &path).unwrap().lines;
        let began = Entry::Began { build: crate::BUILD.into(), dropped: 0 };
        assert_eq!((found[0].seq, &found[0].event, &found[1..]), (0, &began, &lines[..]));
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let _: serde_json::Value = serde_json::from_str(line).unwrap();
        }
    }

    #[test]
    fn a_journal_cut_at_every_byte_keeps_its_whole_lines() {
        let lines = sample(12);
        let whole = bytes(&lines);
        for cut in 0..=whole.len() {
            let found = read_bytes(&whole[..cut]);
            let complete = whole[..cut].iter().filter(|&&b| b == b'\n').count();
            // A line without its line break is whole all the same.
            assert!(found.lines.len() == complete || found.lines.len() == complete + 1, "cut at {cut}");
            assert_eq!(found.lines[..], lines[..found.lines.len()]);
        }
    }

    #[test]
    fn zero_filled_and_foreign_tails_lose_nothing_before_them() {
        let lines = sample(5);
        for tail in [&[0u8; 4096][..], b"{\"seq\":6}\n", b"\n\n\n", &[0xff; 100]] {
            let found = read_bytes(&[bytes(&lines), tail.to_vec()].concat());
            assert_eq!(found.lines, lines);
            assert!(found.damaged > 0);
        }
    }

    proptest! {
        #[test]
        fn damage_never_invents_or_panics(flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..20)) {
            let lines = sample(20);
            let mut content = bytes(&lines);
            for (at, with) in flips {
                let i = at % content.len();
                content[i] ^= with;
            }
            for line in read_bytes(&content).lines {
                prop_assert!(lines.contains(&line));
            }
        }
    }
}
