//! Who brings `_live/` up to date, and when.
//!
//! Contract
//! - A publication leaves a wish and goes on: one thread a process serves wishes, many of them at once. A refresh costs time in
//!   proportion to the points there are; after one that took `t` the next waits `19·t`, a minute at most. So a series costs at most a
//!   twentieth of a core however long it grows, and what is shown is late by at most twenty times what a refresh takes.
//! - Of several processes one writes: whose claim `_live/.refresh` was linked there. The others look again a little later, and
//!   have nothing to do when what is shown is made of the bundles that are there.
//! - Who has written gives its claim up, then lists the bundles again. Who found the claim held had published before: so
//!   the writer sees that bundle, and nobody is forgotten.
//! - A claim whose process is proven dead, or that is older than a minute, is taken away. Nothing but work depends on there
//!   being one writer: files are replaced by renames, and whoever writes last has looked last.
//! - [`settle`]: before a process ends, what is wished for is done without rests. A refresh that is cut short leaves the files
//!   of before; the next publication, of whichever pilot, or `beampilot series` brings them up to date.

use super::series;
use crate::store::fs::create_whole;
use crate::store::host::Process;
use crate::store::{Fs, Host, RealFs, RealHost};
use crate::technique::Fault;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A refresh is followed by so many times its length without one.
const REST: u32 = 19;
const LONGEST_REST: Duration = Duration::from_secs(60);
/// When another process is at it, look again after this.
const BUSY: Duration = Duration::from_secs(2);
/// A claim this old is nobody's: refreshes take seconds.
const STALE: Duration = Duration::from_secs(60);
const CLAIM: &str = ".refresh";

/// Wishes of this process.
struct State {
    /// Folders of results, and when their wish is due.
    wishes: BTreeMap<PathBuf, Instant>,
    /// Until when no refresh begins.
    rests: BTreeMap<PathBuf, Instant>,
    /// A refresh is under way.
    working: bool,
    /// The thread runs.
    running: bool,
    /// Threads that wait for all wishes: no rests.
    hurrying: usize,
}

static STATE: Mutex<State> =
    Mutex::new(State { wishes: BTreeMap::new(), rests: BTreeMap::new(), working: false, running: false, hurrying: 0 });
static BELL: Condvar = Condvar::new();

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks for a refresh of `<results>/_live`, soon.
pub fn wish(results: &Path) {
    let mut state = state();
    let due = state.rests.get(results).copied().unwrap_or_else(Instant::now);
    state.wishes.entry(results.to_owned()).or_insert(due);
    if !state.running {
        state.running = std::thread::Builder::new().name("series".to_owned()).spawn(work).is_ok();
        if !state.running {
            tracing::warn!("no thread could be started: the live view waits for the next publication");
        }
    }
    BELL.notify_all();
}

/// Waits until every wish is served, at most so long; false when that was not enough.
pub fn settle(longest: Duration) -> bool {
    let end = Instant::now() + longest;
    let mut state = state();
    state.hurrying += 1;
    BELL.notify_all();
    let done = loop {
        if state.running && (state.working || !state.wishes.is_empty()) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break false;
            }
            state = BELL.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        } else {
            break state.wishes.is_empty();
        }
    };
    state.hurrying -= 1;
    done
}

/// The thread; ends when nothing is wished for.
fn work() {
    let mut state = state();
    loop {
        let Some((path, due)) = state.wishes.iter().min_by_key(|w| w.1).map(|(p, due)| (p.clone(), *due)) else {
            state.running = false;
            BELL.notify_all();
            return;
        };
        let early = due.saturating_duration_since(Instant::now());
        if !early.is_zero() && state.hurrying == 0 {
            state = BELL.wait_timeout(state, early).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        state.wishes.remove(&path);
        state.working = true;
        drop(state);
        let began = Instant::now();
        let served = catch_unwind(AssertUnwindSafe(|| serve(&path)));
        let (now, took) = (Instant::now(), began.elapsed());
        state = self::state();
        state.working = false;
        let rested = now + (took * REST).min(LONGEST_REST);
        state.rests.insert(path.clone(), rested);
        match served {
            Ok(Ok(Served::Done)) => {}
            Ok(Ok(Served::More)) => _ = state.wishes.entry(path).or_insert(rested),
            // Who holds the claim lists the bundles after giving it up, ours among them.
            Ok(Ok(Served::Busy)) if state.hurrying > 0 => {}
            Ok(Ok(Served::Busy)) => _ = state.wishes.entry(path).or_insert(now + BUSY),
            Ok(Err(fault)) => tracing::warn!("{}: the live view is not up to date: {fault}", path.display()),
            Err(_) => tracing::warn!("{}: the live view is not up to date: making it panicked", path.display()),
        }
        BELL.notify_all();
    }
}

enum Served {
    /// What is shown is made of the bundles that are there.
    Done,
    /// Bundles came in the meantime.
    More,
    /// Another process is at it.
    Busy,
}

fn serve(results: &Path) -> Result<Served, Fault> {
    let live = series::folder(results)?;
    let claim = match Claim::take(&live) {
        Ok(None) => return Ok(Served::Busy),
        Ok(claim) => claim,
        // A filesystem without link(2): then perhaps two write.
        Err(e) => {
            tracing::debug!(folder = %live.display(), error = %e, "no claim can be made");
            None
        }
    };
    let seen = series::look(results)?;
    if series::shown(results).as_ref() != Some(&seen.digest) {
        series::write(results, &seen)?;
    }
    drop(claim);
    Ok(if series::names(results)? == seen.names { Served::Done } else { Served::More })
}

/// A claim held; given up when it is dropped.
struct Claim {
    path: PathBuf,
    text: String,
}

impl Claim {
    /// Nothing, when another process has it.
    fn take(live: &Path) -> io::Result<Option<Self>> {
        let path = live.join(CLAIM);
        let text = RealFs.unique();
        for _ in 0..3 {
            if create_whole(&RealFs, &path, text.as_bytes())? {
                return Ok(Some(Self { path, text }));
            }
            if !is_left(&path)? {
                return Ok(None);
            }
            // Two that take a dead one's claim away at once may both go on: work done twice.
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(None)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Not another's, that took ours for stale.
        if RealFs.read(&self.path, 4096).is_ok_and(|now| now == self.text.as_bytes()) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Does nobody hold this claim any more?
fn is_left(path: &Path) -> io::Result<bool> {
    let meta = match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(true),
        other => other?,
    };
    let old = meta.modified().ok().and_then(|m| m.elapsed().ok()).is_some_and(|age| age > STALE);
    let text = RealFs.read(path, 4096).unwrap_or_default();
    Ok(old || owner(&String::from_utf8_lossy(&text)).is_some_and(|p| RealHost.is_proven_dead(&p)))
}

/// The process that a claim names, as temporaries do.
fn owner(text: &str) -> Option<Process> {
    crate::store::temporary::writer(&crate::store::temporary::name(CLAIM, text))
}

#[cfg(test)]
mod tests {
    use super::super::series::tests::bundle;
    use super::*;
    use crate::store::temporary::tag;

    /// Wishes are the process's: tests with wishes go one after the other.
    static ALONE: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn points(results: &Path) -> usize {
        let text = std::fs::read(results.join("_live/series.json")).unwrap_or_default();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        json["points"].as_array().map_or(0, Vec::len)
    }

    fn wait(what: &str, mut true_yet: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !true_yet() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn put(results: &Path, i: u32) {
        bundle(results, &format!("p{i}"), [f64::from(i), 0.0, 0.0], f64::from(i % 9) - 4.0);
    }

    /// Many publications are few refreshes, and the last one sees everything.
    #[test]
    fn wishes_are_served_together_and_none_is_forgotten() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("_live/series.json");
        let mut written = std::collections::BTreeSet::new();
        for i in 0..60 {
            put(dir.path(), i);
            wish(dir.path());
            written.extend(std::fs::metadata(&list).and_then(|m| m.modified()).ok());
        }
        assert!(settle(Duration::from_secs(30)));
        assert_eq!(points(dir.path()), 60);
        assert!(written.len() < 30, "{} refreshes for 60 points", written.len());
        // Nothing new: nothing is written.
        let before = std::fs::metadata(&list).unwrap().modified().unwrap();
        wish(dir.path());
        assert!(settle(Duration::from_secs(30)));
        assert_eq!(std::fs::metadata(&list).unwrap().modified().unwrap(), before);
    }

    #[test]
    fn one_process_writes_and_the_others_come_back() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), 0);
        std::fs::create_dir(dir.path().join("_live")).unwrap();
        let claim = dir.path().join("_live").join(CLAIM);
        std::fs::write(&claim, RealFs.unique()).unwrap();
        assert!(matches!(serve(dir.path()).unwrap(), Served::Busy));
        assert_eq!(points(dir.path()), 0);
        wish(dir.path());
        wait("the wish was tried", || state().rests.contains_key(dir.path()));
        std::fs::remove_file(&claim).unwrap();
        wait("the refresh after the other's", || points(dir.path()) == 1);
    }

    #[test]
    fn a_dead_writer_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), 0);
        let live = dir.path().join("_live");
        std::fs::create_dir(&live).unwrap();
        let own = owner(&RealFs.unique()).unwrap();
        // Killed on this host: at once.
        std::fs::write(live.join(CLAIM), tag(&Process { pid_start: own.pid_start + 1, ..own.clone() }, 7)).unwrap();
        let left = crate::store::temporary::name("series.h5", &tag(&Process { pid_start: 1, ..own.clone() }, 8));
        std::fs::write(live.join(&left), "half").unwrap();
        assert!(matches!(serve(dir.path()).unwrap(), Served::Done));
        assert_eq!(points(dir.path()), 1);
        assert!(!live.join(left).exists() && !live.join(CLAIM).exists());
        // On another host: when its claim is old.
        put(dir.path(), 1);
        let file = std::fs::File::create(live.join(CLAIM)).unwrap();
        std::io::Write::write_all(&mut &file, tag(&Process { host: "elsewhere".into(), ..own }, 9).as_bytes()).unwrap();
        assert!(matches!(serve(dir.path()).unwrap(), Served::Busy));
        file.set_modified(std::time::SystemTime::now() - 2 * STALE).unwrap();
        assert!(matches!(serve(dir.path()).unwrap(), Served::Done));
        assert_eq!(points(dir.path()), 2);
        // Whoever was taken for dead and wakes does not take another's claim away.
        let first = Claim::take(&live).unwrap().unwrap();
        std::fs::write(live.join(CLAIM), "another's").unwrap();
        drop(first);
        assert!(live.join(CLAIM).exists());
    }
}
