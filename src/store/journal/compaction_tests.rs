//! Compaction: what a successor reads stays the same, wherever it is stopped or fails.

use super::*;
use crate::sim::fibre::SimFs;
use crate::sim::tree::Client;
use crate::store::fs::{Log, RealFs};
use crate::store::layout::Layout;
use crate::store::replay::Finished;
use crate::technique::plan::{OutputFile, TaskKind, TaskOutput, TaskRecord};
use proptest::prelude::*;
use std::sync::Mutex;

fn arrived(job: u64, key: &str) -> Entry {
    Entry::Arrived { job, key: key.into(), bytes: 1 }
}

fn task(job: u64, label: &str, attempt: u64) -> Entry {
    let file = OutputFile { path: format!("parts/{label}.a{attempt}.h5"), bytes: 9, sha256: "ab".repeat(32) };
    let output = TaskOutput { files: vec![file], ..TaskOutput::default() };
    let (label, host) = (label.to_owned(), "x3001c0s1b0n0".into());
    let record = TaskRecord { stage: 1, label: label.clone(), kind: TaskKind::Stage, host, rank: 3, output };
    Entry::Task { job, label, attempt, worker: 3, record: Some(Box::new(record)) }
}

fn published(job: u64) -> Entry {
    Entry::Published { job, bundle: "/out/s/a".into() }
}

fn dropped(job: u64) -> Entry {
    Entry::Dropped { job, reason: "the input changed".into() }
}

/// A pilot's day: scans that are published, one that was dropped and came again, and one that is open.
fn day() -> Vec<Vec<Entry>> {
    let mut groups = vec![vec![arrived(1, "k1"), task(1, "slab-0", 1)]];
    groups.push(vec![arrived(2, "open"), task(2, "slab-0", 2), task(2, "slab-1", 3)]);
    groups.push(vec![arrived(3, "again"), task(3, "slab-0", 4), dropped(3), arrived(4, "again"), task(4, "slab-1", 5)]);
    groups.push((0..8).map(|n| task(1, &format!("slab-{n}"), 10 + n)).collect());
    groups.push(vec![Entry::Failed { job: 2, label: "slab-2".into(), attempt: 30, worker: 1, fault: "x".into() }]);
    groups.push(vec![published(1), task(2, "slab-2", 31)]);
    groups.push(vec![task(4, "slab-0", 32)]);
    groups
}

fn number(groups: &[Vec<Entry>]) -> Vec<Group> {
    let mut seq = 0;
    let mut numbered = |entries: &Vec<Entry>| {
        let mut group = Group::default();
        for event in entries {
            seq += 1;
            group.push(&Line { seq, t_ms: 1_795_370_000_000 + seq, event: event.clone() });
        }
        group
    };
    groups.iter().map(&mut numbered).collect()
}

/// A folder in memory: these tests sync thousands of times.
fn place() -> (Arc<dyn Fs>, Layout) {
    let fs = SimFs::new(Arc::default(), Client { node: 1, beamline: false }, "p");
    let layout = Layout::open(&fs, "/state".as_ref()).unwrap();
    (Arc::new(fs), layout)
}

/// What a successor gets from a journal, in a form that can be compared.
fn said(fs: &dyn Fs, layout: &Layout) -> String {
    let finished = Finished::read(fs, layout, "p").unwrap();
    let of = |key: &str| finished.of(key).map(|r| format!("{r:?}")).collect::<Vec<_>>().join(" ");
    ["k0", "k1", "k2", "open", "again"].map(|k| format!("{k}: {}", of(k))).join("\n")
}

/// What these groups say without compaction.
fn plain(groups: &[Group]) -> String {
    let (fs, layout) = place();
    let mut writer = Writer::open(fs.clone(), layout.journal("p"), 7).unwrap().worth(u64::MAX);
    groups.iter().for_each(|g| writer.append(g).unwrap());
    said(&*fs, &layout)
}

#[test]
fn compaction_frees_what_is_over_and_says_how_much() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::open(&RealFs, dir.path()).unwrap();
    let path = layout.journal("p");
    let groups = number(&day());
    let mut writer = Writer::open(Arc::new(RealFs), path.clone(), 7).unwrap().worth(1);
    for group in &groups[..6] {
        writer.append(group).unwrap();
    }
    let before = std::fs::metadata(&path).unwrap().len();
    let reader = std::fs::File::open(&path).unwrap();
    let freed = writer.compact_if_worth().unwrap();
    assert!(freed > before / 2, "{freed} of {before}");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), before - freed);
    assert_eq!(reader.metadata().unwrap().len(), before, "who reads the old file goes on reading it");
    assert_eq!(writer.compact_if_worth().unwrap(), 0, "nothing more to free");
    writer.append(&groups[6]).unwrap();
    assert_eq!(said(&RealFs, &layout), plain(&groups));
    let lines = read(&RealFs, &path).unwrap().lines;
    assert_eq!(lines[0].event, Entry::Began { build: crate::BUILD.into(), dropped: 10 });
    assert_eq!((lines[0].seq, lines[0].t_ms), (0, 7));
    assert!(lines.windows(2).all(|w| w[0].seq < w[1].seq));
    // The verdict of what is over is history, and stays.
    assert!(lines.iter().any(|l| l.event == published(1)) && lines.iter().any(|l| l.event == arrived(1, "k1")));
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left aside");
}

#[test]
fn history_has_an_end() {
    let (fs, layout) = place();
    let mut writer = Writer::open(fs.clone(), layout.journal("p"), 7).unwrap().worth(1);
    let mut day = vec![arrived(0, "open"), task(0, "slab-0", 1)];
    day.extend((1..=10_100).flat_map(|n| [arrived(n, "k1"), task(n, "slab-0", n), published(n)]));
    writer.append(&number(&[day])[0]).unwrap();
    writer.compact_if_worth().unwrap();
    let lines = read(&*fs, &layout.journal("p")).unwrap().lines;
    assert_eq!(lines.len(), 1 + 2 + index::HISTORY, "the first, the open job's, and the newest of the rest");
    assert!(said(&*fs, &layout).contains("open: TaskRecord"));
}

#[test]
fn a_journal_that_was_tampered_with_is_left_alone() {
    let (fs, layout) = place();
    let path = layout.journal("p");
    let mut writer = Writer::open(fs.clone(), path.clone(), 7).unwrap().worth(1);
    number(&day()).iter().for_each(|g| writer.append(g).unwrap());
    let mut bytes = fs.read(&path, 1 << 20).unwrap();
    let middle = bytes.iter().position(|b| *b == b'\n').unwrap() + 9;
    bytes[middle] ^= 1;
    fs.open_log(&path).unwrap().write_tail(0, &bytes).unwrap();
    assert_eq!(writer.compact_if_worth().unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(fs.read(&path, 1 << 20).unwrap(), bytes);
    assert_eq!(writer.compact_if_worth().unwrap(), 0, "not tried again at once");
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// It does nothing.
    Before,
    /// It does its work and says that it failed.
    After,
    /// It writes half.
    Torn,
}

/// Fails one call; with `dead` all later ones, too, as for a process that was killed there.
#[derive(Clone)]
struct Failing {
    inner: Arc<dyn Fs>,
    calls: Arc<Mutex<usize>>,
    at: usize,
    how: How,
    dead: bool,
}

impl Failing {
    fn call<T>(&self, write: bool, effect: impl FnOnce(bool) -> io::Result<T>) -> io::Result<T> {
        let mut calls = self.calls.lock().unwrap();
        *calls += 1;
        let error = || Err(io::Error::from_raw_os_error(5));
        match (*calls).cmp(&self.at) {
            std::cmp::Ordering::Less => effect(false),
            std::cmp::Ordering::Greater if self.dead => error(),
            std::cmp::Ordering::Greater => effect(false),
            std::cmp::Ordering::Equal => {
                match self.how {
                    How::After => effect(false).map(drop)?,
                    How::Torn if write => effect(true).map(drop)?,
                    _ => {}
                }
                error()
            }
        }
    }
}

struct FailingLog(Failing, Box<dyn Log>);

impl Log for FailingLog {
    fn write_tail(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let half = &bytes[..bytes.len() / 2];
        self.0.clone().call(true, |torn| self.1.write_tail(offset, if torn { half } else { bytes }))
    }
}

impl Fs for Failing {
    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.call(false, |_| self.inner.write_new(path, bytes))
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(false, |_| self.inner.link(from, to))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(false, |_| self.inner.rename(from, to))
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call(false, |_| self.inner.remove_file(path))
    }
    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.call(false, |_| self.inner.remove_tree(path))
    }
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        self.call(false, |_| self.inner.read(path, limit))
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.call(false, |_| self.inner.list(path))
    }
    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.call(false, |_| self.inner.make_dir(path, mode))
    }
    fn make_dirs(&self, path: &Path) -> io::Result<()> {
        self.call(false, |_| self.inner.make_dirs(path))
    }
    fn copy_mode(&self, like: &Path, path: &Path) -> io::Result<()> {
        self.call(false, |_| self.inner.copy_mode(like, path))
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.call(false, |_| self.inner.exists(path))
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call(false, |_| self.inner.sync_dir(path))
    }
    fn free_bytes(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.call(false, |_| self.inner.free_bytes(path))
    }
    fn stat(&self, path: &Path) -> io::Result<crate::arrivals::scan::FileStamp> {
        self.call(false, |_| self.inner.stat(path))
    }
    fn open_log(&self, path: &Path) -> io::Result<Box<dyn Log>> {
        let log = self.call(false, |_| self.inner.open_log(path))?;
        Ok(Box::new(FailingLog(self.clone(), log)))
    }
    fn unique(&self) -> String {
        self.inner.unique()
    }
}

/// Calls that a whole day makes.
fn calls_of_a_day() -> usize {
    let (fs, layout) = place();
    let fs = Failing { inner: fs, calls: Arc::default(), at: usize::MAX, how: How::Before, dead: false };
    let mut writer = Writer::open(Arc::new(fs.clone()), layout.journal("p"), 7).unwrap().worth(1);
    for group in &number(&day()) {
        writer.append(group).unwrap();
        writer.compact_if_worth().unwrap();
    }
    let calls = *fs.calls.lock().unwrap();
    assert!(calls >= 12, "the day has a compaction: {calls} calls");
    calls
}

#[test]
fn killed_at_every_call_everything_durable_is_there() {
    let groups = number(&day());
    let single: Vec<Group> = number(&day().into_iter().flatten().map(|e| vec![e]).collect::<Vec<_>>());
    let prefix: Vec<String> = (0..=single.len()).map(|n| plain(&single[..n])).collect();
    for at in 1..=calls_of_a_day() {
        for how in [How::Before, How::After, How::Torn] {
            let (fs, layout) = place();
            let failing = Failing { inner: fs.clone(), calls: Arc::default(), at, how, dead: true };
            let Ok(writer) = Writer::open(Arc::new(failing), layout.journal("p"), 7) else { continue };
            let mut writer = writer.worth(1);
            let mut durable = 0;
            while durable < groups.len() && writer.append(&groups[durable]).is_ok() {
                durable += 1;
                let _ = writer.compact_if_worth();
            }
            drop(writer);
            let found = read(&*fs, &layout.journal("p")).unwrap();
            assert!(found.damaged <= usize::from(how == How::Torn), "call {at}, {how:?}");
            let lines = |groups: &[Vec<Entry>]| groups.iter().map(Vec::len).sum::<usize>();
            let (sure, perhaps) = (lines(&day()[..durable]), lines(&day()[..(durable + 1).min(groups.len())]));
            // Of the group in doubt a part may be there.
            let said = said(&*fs, &layout);
            assert!(prefix[sure..=perhaps].contains(&said), "call {at}, {how:?}, {durable} groups durable:\n{said}");
        }
    }
}

#[test]
fn an_error_at_any_call_loses_nothing() {
    let groups = number(&day());
    let want = plain(&groups);
    for at in 1..=calls_of_a_day() {
        for how in [How::Before, How::After, How::Torn] {
            let (fs, layout) = place();
            let failing = Failing { inner: fs.clone(), calls: Arc::default(), at, how, dead: false };
            let Ok(writer) = Writer::open(Arc::new(failing), layout.journal("p"), 7) else { continue };
            let mut writer = writer.worth(1);
            for group in &groups {
                // As the journal's thread does.
                while writer.append(group).is_err() {}
                let _ = writer.compact_if_worth();
            }
            drop(writer);
            assert_eq!(said(&*fs, &layout), want, "call {at}, {how:?}");
            let lines = read(&*fs, &layout.journal("p")).unwrap().lines;
            assert_eq!(lines.last().map(|l| l.seq), Some(number_of_lines()), "call {at}, {how:?}");
        }
    }
}

fn number_of_lines() -> u64 {
    day().iter().map(Vec::len).sum::<usize>() as u64
}

#[test]
fn a_compacted_journal_cut_at_every_byte_keeps_its_whole_lines() {
    let (fs, layout) = place();
    let path = layout.journal("p");
    let mut writer = Writer::open(fs.clone(), path.clone(), 7).unwrap().worth(1);
    for group in &number(&day()) {
        writer.append(group).unwrap();
        writer.compact_if_worth().unwrap();
    }
    let (whole, lines) = (fs.read(&path, 1 << 20).unwrap(), read(&*fs, &path).unwrap().lines);
    for cut in 0..whole.len() {
        let cut_here = path.with_file_name(format!("cut-{cut}"));
        fs.write_new(&cut_here, &whole[..cut]).unwrap();
        let found = read(&*fs, &cut_here).unwrap().lines;
        let complete = whole[..cut].iter().filter(|&&b| b == b'\n').count();
        assert!(found.len() == complete || found.len() == complete + 1, "cut at {cut}");
        assert_eq!(found[..], lines[..found.len()]);
    }
}

fn entry() -> impl Strategy<Value = (u8, u8, u8)> {
    (0..6u8, 0..6u8, 0..4u8)
}

proptest! {
    #[test]
    fn whatever_happened_a_successor_reads_the_same(events in proptest::collection::vec(entry(), 1..120)) {
        // Job j has key k(j % 3): several jobs share one, as when a scan is dropped and comes again.
        let made = |(n, (job, what, label)): (usize, &(u8, u8, u8))| {
            let no = u64::from(*job);
            match what {
                0 => arrived(no, &format!("k{}", job % 3)),
                1..=3 => task(no, &format!("slab-{label}"), n as u64),
                4 => dropped(no),
                _ => published(no),
            }
        };
        let days: Vec<Vec<Entry>> = events.iter().enumerate().map(|e| vec![made(e)]).collect();
        let groups = number(&days);
        let (fs, layout) = place();
        let mut writer = Writer::open(fs.clone(), layout.journal("p"), 7).unwrap().worth(1);
        for group in &groups {
            writer.append(group).unwrap();
            writer.compact_if_worth().unwrap();
        }
        prop_assert_eq!(said(&*fs, &layout), plain(&groups));
    }
}
