//! What a filesystem is and whether it keeps the promises that claims and publishing rest on.
//!
//! Contract
//! - [`probe`] writes only inside one temporary folder of its own and removes it; one left by a killed probe is
//!   removed by the next after an hour.
//! - A promise is kept, broken, or could not be tried; broken ones say what was seen.
//! - Probing takes well under a second on a local disk, and a few on a busy parallel filesystem.

use rustix::fs::{statfs, statvfs};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, SystemTime};

/// Beginning of the name of a probe's folder.
pub const PROBE_PREFIX: &str = ".beampilot-doctor-";

/// Kinds of filesystem, as far as they matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Lustre, GPFS, BeeGFS, CephFS: shared by nodes, with attributes that agree between them.
    Parallel(&'static str),
    /// NFS, SMB and the like: shared, but one node may see another's changes late.
    Network(&'static str),
    /// On this host's own disks.
    Local(&'static str),
    /// In this host's memory.
    Memory(&'static str),
    /// A program of somebody's, through FUSE.
    Fuse,
    /// One this table does not know, with its magic number.
    Unknown(u64),
}

impl Kind {
    /// The kind from `statfs`'s magic number.
    pub fn of_magic(magic: u64) -> Kind {
        match magic & 0xFFFF_FFFF {
            0x0BD0_0BD0 => Kind::Parallel("Lustre"),
            0x4750_4653 => Kind::Parallel("GPFS"),
            0x1983_0326 => Kind::Parallel("BeeGFS"),
            0x00C3_6400 => Kind::Parallel("CephFS"),
            0x6969 => Kind::Network("NFS"),
            0x517B | 0xFF53_4D42 | 0xFE53_4D42 => Kind::Network("SMB"),
            0x5346_414F => Kind::Network("AFS"),
            0x0102_1997 => Kind::Network("9P"),
            0xEF53 => Kind::Local("ext4"),
            0x5846_5342 => Kind::Local("XFS"),
            0x9123_683E => Kind::Local("Btrfs"),
            0x2FC1_2FC1 => Kind::Local("ZFS"),
            0x794C_7630 => Kind::Local("overlayfs"),
            0x0102_1994 => Kind::Memory("tmpfs"),
            0x8584_58F6 => Kind::Memory("ramfs"),
            0x6573_5546 => Kind::Fuse,
            other => Kind::Unknown(other),
        }
    }

    /// May pilots on several nodes keep their state here? NFS and its like may not: claims made on one node can be
    /// invisible to another for seconds.
    pub fn may_hold_state(self) -> bool {
        !matches!(self, Kind::Network(_))
    }

    /// Its name.
    pub fn name(self) -> String {
        match self {
            Kind::Parallel(n) | Kind::Network(n) | Kind::Local(n) | Kind::Memory(n) => n.to_owned(),
            Kind::Fuse => "FUSE".to_owned(),
            Kind::Unknown(magic) => format!("unknown (magic {magic:#x})"),
        }
    }
}

/// The kind of filesystem a path is on.
///
/// # Errors
/// When the path cannot be reached.
pub fn kind(path: &Path) -> io::Result<Kind> {
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)] // A bit pattern whose type differs between systems.
    Ok(Kind::of_magic(statfs(path)?.f_type as u64))
}

/// Free space and file numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that an ordinary user can still write.
    pub free: u64,
    /// Bytes of the whole filesystem.
    pub total: u64,
    /// Files that can still be made; none where the filesystem does not count them.
    pub free_files: Option<u64>,
}

/// How much room is left. Quotas count only where the filesystem says so itself.
///
/// # Errors
/// When the path cannot be reached.
pub fn room(path: &Path) -> io::Result<Room> {
    let stat = statvfs(path)?;
    Ok(Room {
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_files: (stat.f_files > 0).then_some(stat.f_favail),
    })
}

/// One promise and whether it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// Short stable name.
    pub name: &'static str,
    /// What it is good for.
    pub needed_for: &'static str,
    /// None when kept; else what was seen.
    pub broken: Option<String>,
}

/// What [`probe`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// The promises, in the order they were tried.
    pub promises: Vec<Promise>,
    /// Smallest difference of modification times seen between two writes.
    pub granularity: Duration,
    /// How far the filesystem's clock is ahead of this host's, seconds; negative when behind.
    pub skew_s: f64,
    /// How long making a file durable took.
    pub sync: Duration,
}

type Trial = fn(&Path) -> Result<(), String>;

const TRIALS: [(&str, &str, Trial); 6] = [
    ("rename-replaces-empty-folder", "publishing", rename_replaces_empty),
    ("rename-spares-full-folder", "publishing exactly once", rename_spares_full),
    ("rename-replaces-file", "status and heartbeat files", rename_replaces_file),
    ("link-is-exclusive", "claims: exactly one pilot owns a scan", link_is_exclusive),
    ("create-is-exclusive", "staging folders and part files", create_is_exclusive),
    ("rewrite-shows", "noticing that an input was changed", rewrite_shows),
];

/// Tries every promise in a fresh folder inside `dir`.
///
/// # Errors
/// When nothing can be written there.
pub fn probe(dir: &Path) -> io::Result<Probe> {
    remove_stale(dir);
    let folder = tempfile::Builder::new().prefix(PROBE_PREFIX).tempdir_in(dir)?;
    let mut promises = Vec::with_capacity(TRIALS.len());
    for (name, needed_for, trial) in TRIALS {
        let room = folder.path().join(name);
        fs::create_dir(&room)?;
        promises.push(Promise { name, needed_for, broken: trial(&room).err() });
    }
    let granularity = granularity(folder.path())?;
    let skew_s = skew(folder.path(), granularity)?;
    let sync = sync(folder.path())?;
    folder.close()?;
    Ok(Probe { promises, granularity, skew_s, sync })
}

/// Removes folders that a killed probe left more than an hour ago. Whatever goes wrong here concerns nobody.
fn remove_stale(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let ours = entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(PROBE_PREFIX));
    for entry in ours.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        let age = entry.metadata().and_then(|m| m.modified()).map(|t| t.elapsed().unwrap_or_default());
        if age.is_ok_and(|age| age > Duration::from_secs(3600)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn says(what: &str) -> impl FnOnce(io::Error) -> String {
    move |e| format!("{what}: {e}")
}

fn folder_with(path: PathBuf, content: Option<&str>) -> Result<PathBuf, String> {
    fs::DirBuilder::new().mode(0o700).create(&path).map_err(says("making a folder"))?;
    if let Some(content) = content {
        fs::write(path.join("file"), content).map_err(says("writing a file"))?;
    }
    Ok(path)
}

fn content_is(path: &Path, want: &str) -> Result<(), String> {
    let got = fs::read_to_string(path).map_err(says("reading a file back"))?;
    if got == want { Ok(()) } else { Err(format!("a file reads {got:?} where {want:?} was expected")) }
}

fn rename_replaces_empty(dir: &Path) -> Result<(), String> {
    let from = folder_with(dir.join("from"), Some("new"))?;
    let to = folder_with(dir.join("to"), None)?;
    fs::rename(&from, &to).map_err(says("renaming a folder over an empty one"))?;
    content_is(&to.join("file"), "new")?;
    if from.exists() { Err("the old name still exists after a rename".to_owned()) } else { Ok(()) }
}

fn rename_spares_full(dir: &Path) -> Result<(), String> {
    let from = folder_with(dir.join("from"), Some("late"))?;
    let to = folder_with(dir.join("to"), Some("published"))?;
    if fs::rename(&from, &to).is_ok() {
        return Err("renaming a folder over one with content succeeded".to_owned());
    }
    content_is(&to.join("file"), "published")?;
    content_is(&from.join("file"), "late")
}

fn rename_replaces_file(dir: &Path) -> Result<(), String> {
    let (from, to) = (dir.join("from"), dir.join("to"));
    fs::write(&to, "old").and_then(|()| fs::write(&from, "new")).map_err(says("writing a file"))?;
    fs::rename(&from, &to).map_err(says("renaming a file over another"))?;
    content_is(&to, "new")
}

fn link_is_exclusive(dir: &Path) -> Result<(), String> {
    race(dir, |aside, name, text| fs::write(aside, text).and_then(|()| fs::hard_link(aside, name)))
}

fn create_is_exclusive(dir: &Path) -> Result<(), String> {
    race(dir, |_, name, text| OpenOptions::new().write(true).create_new(true).open(name)?.write_all(text.as_bytes()))
}

/// Lets four threads make the same name several times: exactly one may win, the others must be told that it exists,
/// and the winner's content must stand.
fn race(dir: &Path, make: fn(&Path, &Path, &str) -> io::Result<()>) -> Result<(), String> {
    const THREADS: usize = 4;
    const ROUNDS: usize = 8;
    for round in 0..ROUNDS {
        let name = dir.join(format!("name-{round}"));
        let start = Barrier::new(THREADS);
        let results: Vec<io::Result<()>> = std::thread::scope(|scope| {
            let contender = |i: usize| {
                let (aside, start, name) = (dir.join(format!("aside-{round}-{i}")), &start, &name);
                scope.spawn(move || {
                    start.wait();
                    make(&aside, name, &i.to_string())
                })
            };
            let threads: Vec<_> = (0..THREADS).map(contender).collect();
            let lost = || Err(io::Error::other("the probe's thread failed"));
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| lost())).collect()
        });
        let winners: Vec<usize> = (0..THREADS).filter(|&i| results[i].is_ok()).collect();
        let refusal = results.iter().filter_map(|r| r.as_ref().err()).find(|e| e.kind() != ErrorKind::AlreadyExists);
        match (winners.as_slice(), refusal) {
            (_, Some(error)) => return Err(format!("making a name that may exist: {error}")),
            (&[winner], None) => content_is(&name, &winner.to_string())?,
            (many, None) => return Err(format!("{} of {THREADS} contenders made the same name", many.len())),
        }
    }
    Ok(())
}

/// Rewrites a file and puts its modification time back: the change time must differ, or a transfer tool that
/// preserves times could replace an input unseen.
fn rewrite_shows(dir: &Path) -> Result<(), String> {
    let path = dir.join("file");
    let stamp = |m: &fs::Metadata| (m.ctime(), m.ctime_nsec());
    fs::write(&path, "first").map_err(says("writing a file"))?;
    let before = fs::metadata(&path).map_err(says("asking for a file's times"))?;
    let deadline = std::time::Instant::now() + Duration::from_millis(2500);
    loop {
        let rewrite = || -> io::Result<fs::Metadata> {
            let mut file = OpenOptions::new().write(true).open(&path)?;
            file.write_all(b"other")?;
            file.set_modified(before.modified()?)?;
            drop(file);
            fs::metadata(&path)
        };
        let after = rewrite().map_err(says("rewriting a file"))?;
        if stamp(&after) != stamp(&before) {
            return Ok(());
        }
        if std::time::Instant::now() > deadline {
            return Err("a file rewritten with its old modification time keeps its change time too".to_owned());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn granularity(dir: &Path) -> io::Result<Duration> {
    let path = dir.join("granularity");
    let touch = || -> io::Result<SystemTime> {
        fs::write(&path, "x")?;
        fs::metadata(&path)?.modified()
    };
    let first = touch()?;
    let start = std::time::Instant::now();
    // Two seconds is the coarsest in use (FAT); beyond it the clock stands still.
    while start.elapsed() < Duration::from_millis(2500) {
        if let Ok(step) = touch()?.duration_since(first)
            && !step.is_zero()
        {
            return Ok(step);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(start.elapsed())
}

fn skew(dir: &Path, granularity: Duration) -> io::Result<f64> {
    let path = dir.join("clock");
    let before = SystemTime::now();
    fs::write(&path, "x")?;
    let there = fs::metadata(&path)?.modified()?;
    let after = SystemTime::now();
    // A filesystem stamps with its last tick, so a stamp up to one tick early is on time.
    let early = before - granularity;
    Ok(match (there.duration_since(after), early.duration_since(there)) {
        (Ok(ahead), _) => ahead.as_secs_f64(),
        (_, Ok(behind)) => -behind.as_secs_f64(),
        _ => 0.0,
    })
}

fn sync(dir: &Path) -> io::Result<Duration> {
    let start = std::time::Instant::now();
    let mut file = File::create(dir.join("sync"))?;
    file.write_all(&[7; 4096])?;
    file.sync_all()?;
    File::open(dir)?.sync_all()?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_filesystem_keeps_its_promises_and_stays_clean() {
        let dir = tempfile::tempdir().unwrap();
        let found = probe(dir.path()).unwrap();
        for promise in &found.promises {
            assert_eq!(promise.broken, None, "{}", promise.name);
        }
        assert!(found.skew_s.abs() < 5.0 && found.granularity < Duration::from_secs(3), "{found:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the probe left something behind");
    }

    #[test]
    fn a_race_that_everybody_wins_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let broken = race(dir.path(), |_, name, text| fs::write(name, text)).unwrap_err();
        assert!(broken.contains("4 of 4"), "{broken}");
    }

    #[test]
    fn only_old_leftovers_go() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, hours: u64| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("inside"), "x").unwrap();
            let then = SystemTime::now() - Duration::from_secs(3600 * hours);
            File::open(&path).unwrap().set_modified(then).unwrap();
            path
        };
        let old = make(&format!("{PROBE_PREFIX}old"), 2);
        let new = make(&format!("{PROBE_PREFIX}new"), 0);
        let foreign = make("old-but-not-ours", 2);
        remove_stale(dir.path());
        assert!(!old.exists() && new.exists() && foreign.exists());
    }

    #[test]
    fn state_is_refused_on_nfs_and_only_there() {
        assert!(!Kind::of_magic(0x6969).may_hold_state());
        assert!(Kind::of_magic(0x0BD0_0BD0).may_hold_state());
        assert!(Kind::of_magic(0xEF53).may_hold_state());
        assert_eq!(Kind::of_magic(0xFFFF_FFFF_9123_683E), Kind::Local("Btrfs"), "sign extension is undone");
    }

    #[test]
    fn an_unwritable_folder_is_an_error() {
        assert!(probe(Path::new("/proc")).is_err());
    }
}
