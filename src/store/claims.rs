//! Who owns a job: `claims/<key>.<generation>`, made whole by link(2); the highest generation owns.
//!
//! A pilot takes a job when no generation exists, when the highest was released, or when its owner is proven
//! dead: same host, same boot, and the process is gone or another one has its number; or when its heartbeat
//! stood still through a lease's worth of successful observations. Takeover renames the old staging away
//! before anything starts, so that a late publish finds nothing to rename.
//!
//! Here are the claim files and how one is won; `identity` has who a process is, `life` heartbeats, leases and
//! whether an owner lives, `staging` the folder that goes with a claim, and giving both up.

mod identity;
mod life;
mod staging;
#[cfg(test)]
mod tests;

pub use identity::{Identity, host_name};
pub(crate) use identity::{boot_id, process_start};
use life::Fate;
pub use life::{Heartbeat, Observer, beat, heartbeat, is_abandoned};
pub use staging::{fence, hand_over, mark_released, prepare_staging, release, release_condemned, release_quarantined};

use super::fs::{Fs, create_whole, is_damage};
use super::host::Host;
use super::layout::Layout;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Mutex;

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Released {
    /// Finished parts and `plan.json` were left in staging for the next owner.
    #[serde(default)]
    pub kept: bool,
    /// The job went to quarantine: whoever takes it once a person has released it counts deaths from zero.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgiven: bool,
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
        let (pilot, owner, died) = match record(fs, layout, key, generation) {
            Ok(record) => (record.owner.pilot.clone(), Some(record.owner), record.deaths),
            // A person released it: who held it no longer matters, and nothing of it is adopted.
            Err(e) if released.is_some() && e.kind() == io::ErrorKind::InvalidData => ("unknown".to_owned(), None, 0),
            Err(e) => return Err(e),
        };
        deaths = if released.as_ref().is_some_and(|r| r.forgiven) { 0 } else { died };
        let fate = match &released {
            Some(_) => Fate::Ended,
            // Ours: the answer to an earlier try was lost, or a release failed. Whoever asks does not hold it, and what
            // it may have left is put out of reach like anybody's.
            None if pilot == me.pilot => Fate::Ended,
            None => match &owner {
                Some(owner) => life::fate(fs, host, layout, owner, observer)?,
                None => Fate::Ended,
            },
        };
        let writers_gone = match fate {
            _ if owner.is_none() => false,
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
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or_default())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if is_damage(&e) => Ok(Some(Released::default())),
        Err(e) => Err(e),
    }
}

/// Reads a claim.
///
/// # Errors
/// It is not there, or is none (`InvalidData`).
pub fn record(fs: &dyn Fs, layout: &Layout, key: &str, generation: u32) -> io::Result<ClaimRecord> {
    let path = layout.claim(key, generation);
    let none = |e: String| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}: not a claim ({e}); releasing the scan passes over it", path.display()),
        )
    };
    let bytes = fs.read(&path, 64 * 1024).map_err(|e| if is_damage(&e) { none(e.to_string()) } else { e })?;
    serde_json::from_slice(&bytes).map_err(|e| none(e.to_string()))
}

/// The owner of a generation.
///
/// # Errors
/// The claim cannot be read.
pub fn owner(fs: &dyn Fs, layout: &Layout, key: &str, generation: u32) -> io::Result<Identity> {
    record(fs, layout, key, generation).map(|r| r.owner)
}

/// Still ours: no higher generation, not released.
pub fn is_mine(fs: &dyn Fs, layout: &Layout, key: &str, generation: u32) -> io::Result<bool> {
    Ok(!fs.exists(&layout.claim(key, generation + 1))? && !fs.exists(&layout.released(key, generation))?)
}
