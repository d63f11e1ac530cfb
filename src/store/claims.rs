//! Who owns a job: `claims/<key>.<generation>`, made whole by link(2); the highest generation owns.
//!
//! A pilot takes a job when no generation exists, when the highest was released, or when its owner is proven
//! dead: same host, same boot, and the process is gone or another one has its number; or when its heartbeat
//! stood still through a lease's worth of successful observations. Takeover renames the old staging away
//! before anything starts, so that a late publish finds nothing to rename.

use super::fs::{Fs, create_whole, replace};
use super::host::{Host, Process};
use super::layout::{Layout, fenced, staging};
use super::tombstone;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Who a process is, so that others can prove it dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The pilot's id, new at every start.
    pub pilot: String,
    /// Host name.
    pub host: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// Process id of rank 0.
    pub pid: u32,
    /// Start time of that process in clock ticks since boot: a reused pid differs here.
    pub pid_start: u64,
    /// Build.
    pub build: String,
    /// The launch that started it, when `beampilot launch` did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch: Option<String>,
}

impl Identity {
    /// This process.
    pub fn own(pilot: &str) -> Self {
        let pid = std::process::id();
        Self {
            pilot: pilot.to_owned(),
            host: host_name(),
            boot: boot_id(),
            pid,
            pid_start: process_start(pid).unwrap_or(0),
            build: crate::BUILD.to_owned(),
            launch: std::env::var("BEAMPILOT_LAUNCH").ok().filter(|l| !l.is_empty()),
        }
    }

    /// True when this process certainly no longer runs, as seen from this host.
    pub fn is_proven_dead(&self) -> bool {
        super::RealHost.is_proven_dead(&self.process())
    }
}

/// The host's name.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// This boot of this host.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Field 22 of `/proc/<pid>/stat`; `None` when there is no such process, or a zombie.
pub(crate) fn process_start(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command, field 2, may contain anything; the last `)` ends it.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// What a claim file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRecord {
    /// The owner.
    pub owner: Identity,
    /// The key.
    pub key: String,
    /// When, milliseconds since the epoch.
    pub at_ms: u64,
    /// Earlier owners that died for no known reason while they held the job.
    #[serde(default)]
    pub deaths: u32,
}

/// What came of trying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// Ours now.
    Won(Won),
    /// A living pilot has it.
    Foreign(String),
}

/// A claim that was won.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Won {
    /// Our generation.
    pub generation: u32,
    /// Earlier owners that died for no known reason while they held the job.
    pub deaths: u32,
    /// The owner of the generation before, when there was one.
    pub previous: Option<Previous>,
}

/// Who held a job before us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Previous {
    /// The pilot.
    pub pilot: String,
    /// Nothing of it can write any more: it gave the claim back with its writers reaped, said goodbye, or every
    /// process of it is proven dead. Only then may its finished parts be adopted.
    pub writers_gone: bool,
}

/// What a `.released` file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// Finished parts and `plan.json` were left in staging for the next owner.
    #[serde(default)]
    pub kept: bool,
}

/// How it stands with the owner of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It lives, as far as anybody can tell.
    Alive,
    /// It ended in good order.
    Ended,
    /// It is dead: `proven` when every process of it is, `explained` when the reason is known and not the scan's.
    Died { proven: bool, explained: bool },
}

/// Watches other pilots' heartbeats with our own clock.
#[derive(Debug, Default)]
pub struct Observer {
    seen: BTreeMap<String, Sighting>,
}

#[derive(Debug, Clone)]
struct Sighting {
    beat: u64,
    since: Duration,
    last_look: Duration,
}

impl Observer {
    /// How long a heartbeat must stand still.
    pub const LEASE: Duration = Duration::from_secs(60);
    /// A longer gap between two looks of ours starts the count again: we may have slept ourselves.
    const GAP: Duration = Duration::from_secs(15);

    /// Notes the beat counter of a pilot; true when it stood still for a lease, in looks without a gap.
    /// A file that could not be read is no observation. `now` is [`Host::mono`].
    pub fn is_expired(&mut self, pilot: &str, beat: Option<u64>, now: Duration) -> bool {
        let Some(beat) = beat else { return false };
        let fresh = Sighting { beat, since: now, last_look: now };
        let seen = self.seen.entry(pilot.to_owned()).or_insert_with(|| fresh.clone());
        if seen.beat != beat || now.saturating_sub(seen.last_look) > Self::GAP {
            *seen = fresh;
        }
        seen.last_look = now;
        now.saturating_sub(seen.since) >= Self::LEASE
    }
}

/// The part of `pilots/<pilot>.json` that tells whether it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub identity: Identity,
    /// Grows with every beat.
    pub beat: u64,
    /// Wall clock, milliseconds since the epoch; for people.
    pub at_ms: u64,
    /// The pilot said goodbye: nothing of it runs any more.
    pub ended: bool,
    /// When its job ends, where that is known: a death after it needs no other reason.
    #[serde(default)]
    pub ends_ms: Option<u64>,
    /// Its executors, every process that may write below staging.
    #[serde(default)]
    pub writers: Vec<Process>,
}

/// A beat this close before the job's end, milliseconds, means that the end is what it died of.
const NEAR_END_MS: u64 = 30_000;

/// Reads a pilot's heartbeat.
pub fn heartbeat(fs: &dyn Fs, layout: &Layout, pilot: &str) -> io::Result<Heartbeat> {
    let bytes = fs.read(&layout.pilot(pilot), 64 * 1024)?;
    serde_json::from_slice(&bytes).map_err(io::Error::other)
}

/// Replaces our heartbeat. Not synced beyond its own data: a lost beat is only an old beat.
pub fn beat(fs: &dyn Fs, layout: &Layout, beat: &Heartbeat) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(beat).map_err(io::Error::other)?;
    replace(fs, &layout.pilot(&beat.identity.pilot), &bytes)
}

/// The highest generation of a key, 0 when there is none.
pub fn highest(fs: &dyn Fs, layout: &Layout, key: &str) -> io::Result<u32> {
    let mut generation = 0;
    while fs.exists(&layout.claim(key, generation + 1))? {
        generation += 1;
    }
    Ok(generation)
}

/// Tries to own a job; see the module.
pub fn try_claim(
    fs: &dyn Fs,
    host: &dyn Host,
    layout: &Layout,
    me: &Identity,
    key: &str,
    observer: &Mutex<Observer>,
) -> io::Result<Tried> {
    let generation = highest(fs, layout, key)?;
    let (mut deaths, mut previous) = (0, None);
    if generation > 0 {
        let released = released(fs, layout, key, generation)?;
        let record = record(fs, layout, key, generation)?;
        let pilot = record.owner.pilot.clone();
        deaths = record.deaths;
        let fate = match &released {
            Some(_) => Fate::Ended,
            // Ours: the answer to an earlier try was lost, or a release failed. Whoever asks does not hold it, and what
            // it may have left is put out of reach like anybody's.
            None if pilot == me.pilot => Fate::Ended,
            None => fate(fs, host, layout, &record.owner, observer)?,
        };
        let writers_gone = match fate {
            // Withdrawn attempts may still write there.
            _ if released.is_none() && pilot == me.pilot => false,
            Fate::Alive => return Ok(Tried::Foreign(pilot)),
            Fate::Ended => released.is_none_or(|r| r.kept),
            Fate::Died { proven, explained } => {
                deaths += u32::from(!explained);
                proven
            }
        };
        previous = Some(Previous { pilot, writers_gone });
    }
    let mine = generation + 1;
    let record = ClaimRecord { owner: me.clone(), key: key.to_owned(), at_ms: host.wall_ms(), deaths };
    let bytes = serde_json::to_vec_pretty(&record).map_err(io::Error::other)?;
    let path = layout.claim(key, mine);
    let won = Tried::Won(Won { generation: mine, deaths, previous });
    match create_whole(fs, &path, &bytes) {
        Ok(true) => Ok(won),
        // Somebody was faster, or the answer to our own link was lost: the file says which.
        failed => match owner(fs, layout, key, mine) {
            Ok(owner) if owner.pilot == me.pilot => Ok(won),
            Ok(owner) => Ok(Tried::Foreign(owner.pilot)),
            Err(e) => Err(failed.err().unwrap_or(e)),
        },
    }
}

/// What a claim's owner left when it gave the claim back; `None` when it did not.
fn released(fs: &dyn Fs, layout: &Layout, key: &str, generation: u32) -> io::Result<Option<Released>> {
    match fs.read(&layout.released(key, generation), 64 * 1024) {
        // Whatever it holds, it is there.
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or(Released { kept: false }))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reads a claim.
///
/// # Errors
/// It is not there, or is none (`InvalidData`).
pub fn record(fs: &dyn Fs, layout: &Layout, key: &str, generation: u32) -> io::Result<ClaimRecord> {
    let path = layout.claim(key, generation);
    let bytes = fs.read(&path, 64 * 1024)?;
    serde_json::from_slice(&bytes).map_err(|e| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: not a claim ({e}); remove it", path.display()))
    })
}

/// The owner of a generation.
///
/// # Errors
/// The claim cannot be read.
pub fn owner(fs: &dyn Fs, layout: &Layout, key: &str, generation: u32) -> io::Result<Identity> {
    record(fs, layout, key, generation).map(|r| r.owner)
}

fn fate(
    fs: &dyn Fs,
    host: &dyn Host,
    layout: &Layout,
    owner: &Identity,
    observer: &Mutex<Observer>,
) -> io::Result<Fate> {
    let beat = match heartbeat(fs, layout, &owner.pilot) {
        Ok(beat) => Some(beat),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    if beat.as_ref().is_some_and(|b| b.ended) {
        return Ok(Fate::Ended);
    }
    if let Some(stone) = tombstone::read(fs, layout, &owner.pilot)? {
        let proven = stone.lost.is_empty();
        return Ok(Fate::Died { proven, explained: stone.explained });
    }
    let leader_dead = host.is_proven_dead(&owner.process());
    // It never beat, or its file was removed: stillness of nothing counts as beat 0.
    let count = beat.as_ref().map_or(0, |b| b.beat);
    // Locked for this look alone, never across a call that may hang: other lanes claim, too. A poisoned observer only
    // lost observations.
    let expired = || {
        let mut observer = observer.lock().unwrap_or_else(PoisonError::into_inner);
        observer.is_expired(&owner.pilot, Some(count), host.mono())
    };
    if !leader_dead && !expired() {
        return Ok(Fate::Alive);
    }
    let proven = leader_dead && beat.as_ref().is_some_and(|b| b.writers.iter().all(|w| host.is_proven_dead(w)));
    let at_its_end = |b: &Heartbeat| b.ends_ms.is_some_and(|end| b.at_ms.saturating_add(NEAR_END_MS) >= end);
    Ok(Fate::Died { proven, explained: beat.as_ref().is_some_and(at_its_end) })
}

/// Nobody works for this claim any more: released, superseded, or its owner is proven dead or said goodbye.
///
/// # Errors
/// The claim cannot be read; a claim that is not there at all counts as abandoned.
pub fn is_abandoned(
    fs: &dyn Fs,
    host: &dyn Host,
    layout: &Layout,
    key: &str,
    generation: u32,
    all: bool,
) -> io::Result<bool> {
    if let Some(Released { kept: true }) = released(fs, layout, key, generation)?
        && !all
        && !fs.exists(&layout.claim(key, generation + 1))?
    {
        // Finished parts wait here for the next owner, unless nobody will ever ask again.
        return Ok(fs.exists(&layout.published(key))? || fs.exists(&layout.quarantine(key))?);
    }
    if !is_mine(fs, layout, key, generation)? {
        return Ok(true);
    }
    let owner = match owner(fs, layout, key, generation) {
        Ok(owner) => owner,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(e),
    };
    Ok(host.is_proven_dead(&owner.process())
        || tombstone::read(fs, layout, &owner.pilot)?.is_some()
        || heartbeat(fs, layout, &owner.pilot).is_ok_and(|b| b.ended))
}

/// Still ours: no higher generation, not released.
pub fn is_mine(fs: &dyn Fs, layout: &Layout, key: &str, generation: u32) -> io::Result<bool> {
    Ok(!fs.exists(&layout.claim(key, generation + 1))? && !fs.exists(&layout.released(key, generation))?)
}

/// Renames every predecessor's staging out of reach, then makes our own. Returns ours. What was renamed away is still
/// there as `.fenced-…`, for [`super::takeover`]; [`fence`] removes it.
pub fn prepare_staging(fs: &dyn Fs, stream_output: &Path, key: &str, generation: u32) -> io::Result<PathBuf> {
    for old in 1..generation {
        put_aside(fs, stream_output, key, old)?;
    }
    let mine = staging(stream_output, key, generation);
    fs.make_dir(&mine, 0o700)?;
    Ok(mine)
}

/// Renames staging of that generation out of its owner's reach; a staging that is not there is fine.
fn put_aside(fs: &dyn Fs, stream_output: &Path, key: &str, generation: u32) -> io::Result<()> {
    match fs.rename(&staging(stream_output, key, generation), &fenced(stream_output, key, generation)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Renames staging of that generation away and removes it; a staging that is not there is fine.
pub fn fence(fs: &dyn Fs, stream_output: &Path, key: &str, generation: u32) -> io::Result<()> {
    put_aside(fs, stream_output, key, generation)?;
    let to = fenced(stream_output, key, generation);
    // Out of reach already; what cannot be removed now is only space.
    match fs.remove_tree(&to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(folder = %to.display(), error = %e, "a fenced folder could not be removed");
        }
        _ => {}
    }
    Ok(())
}

/// Gives a claim up: staging goes first, so that nothing is left when the next owner starts.
pub fn release(fs: &dyn Fs, layout: &Layout, stream_output: &Path, key: &str, generation: u32) -> io::Result<()> {
    fence(fs, stream_output, key, generation)?;
    mark_released(fs, layout, key, generation, false)
}

/// Gives a claim up and leaves staging with its finished parts to the next owner. Only for an owner whose writers are
/// reaped.
pub fn hand_over(fs: &dyn Fs, layout: &Layout, key: &str, generation: u32) -> io::Result<()> {
    mark_released(fs, layout, key, generation, true)
}

/// Frees the claim of a job that is over; its verdict, a record, keeps others from claiming it again.
pub fn mark_released(fs: &dyn Fs, layout: &Layout, key: &str, generation: u32, kept: bool) -> io::Result<()> {
    let bytes = serde_json::to_vec(&Released { kept }).map_err(io::Error::other)?;
    create_whole(fs, &layout.released(key, generation), &bytes).map(|_| ())
}

/// Takes a job out of quarantine: its claim is freed first, so that whoever sees the record gone may take it. The record
/// is kept aside. False when another pilot was faster.
///
/// # Errors
/// What the filesystem says; doing it again is safe.
pub fn release_quarantined(fs: &dyn Fs, layout: &Layout, key: &str) -> io::Result<bool> {
    let generation = highest(fs, layout, key)?;
    if generation > 0 {
        mark_released(fs, layout, key, generation, false)?;
    }
    let record = layout.quarantine(key);
    match fs.rename(&record, &record.with_file_name(format!(".released-{key}.json"))) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{RealFs, RealHost};

    fn bench() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(&RealFs, &dir.path().join("state")).unwrap();
        (dir, layout)
    }

    fn claim(layout: &Layout, who: &Identity) -> Result<u32, String> {
        match try_claim(&RealFs, &RealHost, layout, who, "k", &Mutex::default()).unwrap() {
            Tried::Won(won) => Ok(won.generation),
            Tried::Foreign(owner) => Err(owner),
        }
    }

    fn alive(pilot: &str) -> Identity {
        Identity::own(pilot)
    }

    fn dead(pilot: &str) -> Identity {
        Identity { pid_start: u64::MAX, ..Identity::own(pilot) }
    }

    #[test]
    fn one_wins_and_the_other_learns_who() {
        let (_dir, layout) = bench();
        assert_eq!(claim(&layout, &alive("a")), Ok(1));
        assert_eq!(claim(&layout, &alive("b")), Err("a".into()));
    }

    #[test]
    fn a_dead_owner_and_a_released_claim_are_taken_over() {
        let (dir, layout) = bench();
        assert_eq!(claim(&layout, &dead("a")), Ok(1));
        assert_eq!(claim(&layout, &alive("b")), Ok(2));
        release(&RealFs, &layout, dir.path(), "k", 2).unwrap();
        assert_eq!(claim(&layout, &alive("c")), Ok(3));
        assert!(is_mine(&RealFs, &layout, "k", 3).unwrap() && !is_mine(&RealFs, &layout, "k", 1).unwrap());
    }

    #[test]
    fn a_claim_whose_answer_was_lost_is_taken_again_and_nothing_of_it_adopted() {
        let (_dir, layout) = bench();
        let me = alive("a");
        assert_eq!(claim(&layout, &me), Ok(1));
        let again = try_claim(&RealFs, &RealHost, &layout, &me, "k", &Mutex::default()).unwrap();
        let previous = Previous { pilot: "a".into(), writers_gone: false };
        assert_eq!(again, Tried::Won(Won { generation: 2, deaths: 0, previous: Some(previous) }));
    }

    #[test]
    fn of_many_threads_exactly_one_wins() {
        let (_dir, layout) = bench();
        let wins: usize = std::thread::scope(|s| {
            let threads: Vec<_> = (0..8)
                .map(|i| {
                    s.spawn({
                        let l = &layout;
                        move || claim(l, &alive(&format!("p{i}")))
                    })
                })
                .collect();
            threads.into_iter().filter(|_| true).map(|t| usize::from(t.join().unwrap().is_ok())).sum()
        });
        assert_eq!(wins, 1);
    }

    #[test]
    fn takeover_leaves_a_late_publish_nothing_to_rename() {
        let (dir, _) = bench();
        let old = prepare_staging(&RealFs, dir.path(), "k", 1).unwrap();
        std::fs::write(old.join("recon.h5"), b"x").unwrap();
        prepare_staging(&RealFs, dir.path(), "k", 2).unwrap();
        let late = RealFs.rename(&old, &dir.path().join("scan")).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_lease_needs_looks_without_a_gap() {
        let at = Duration::from_secs;
        let mut o = Observer::default();
        for s in (0..60).step_by(10) {
            assert!(!o.is_expired("p", Some(5), at(s)));
        }
        assert!(o.is_expired("p", Some(5), at(60)));
        assert!(!o.is_expired("p", Some(6), at(61)), "it beat again");
        assert!(!o.is_expired("p", Some(6), at(200)), "we looked away too long");
        assert!(!o.is_expired("p", None, at(210)), "an unreadable file is no observation");
    }

    #[test]
    fn this_process_is_alive_and_a_reused_pid_is_not_it() {
        assert!(!alive("a").is_proven_dead());
        assert!(dead("a").is_proven_dead());
        let elsewhere = Identity { host: "far".into(), ..dead("a") };
        assert!(!elsewhere.is_proven_dead(), "another host's process cannot be judged from here");
    }

    #[test]
    fn an_unreadable_claim_is_an_error_that_names_it() {
        let (_dir, layout) = bench();
        std::fs::write(layout.claim("k", 1), b"torn").unwrap();
        let error = try_claim(&RealFs, &RealHost, &layout, &alive("a"), "k", &Mutex::default()).unwrap_err();
        assert!(error.to_string().contains("k.1: not a claim"), "{error}");
    }
}
