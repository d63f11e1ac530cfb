//! Whether the owner of a claim lives: heartbeats, leases, tombstones, proof of death.
//!
//! Contract: an owner counts as gone only when it said so, when its death is proven, or when its heartbeat stood still
//! for a lease in looks of our own. Clocks of hosts are never compared.

use super::{Identity, Released, is_mine, owner, released};
use crate::store::fs::{Fs, is_damage, replace};
use crate::store::host::{Host, Process};
use crate::store::layout::Layout;
use crate::store::tombstone;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How it stands with the owner of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
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
    /// How long a heartbeat must stand still, where its pilot does not say otherwise.
    pub const LEASE: Duration = Duration::from_secs(60);
    /// The shortest and the longest a pilot may say.
    pub const LEASES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
    /// A gap between two looks of ours longer than this part of the lease starts the count again: we may have slept
    /// ourselves.
    const GAPS: u32 = 4;

    /// Notes the beat counter of a pilot; true when it stood still for [`Observer::LEASE`], in looks without a gap.
    /// A file that could not be read is no observation. `now` is [`Host::mono`].
    pub fn is_expired(&mut self, pilot: &str, beat: Option<u64>, now: Duration) -> bool {
        self.is_expired_after(Self::LEASE, pilot, beat, now)
    }

    /// The same for a pilot with a lease of its own.
    pub fn is_expired_after(&mut self, lease: Duration, pilot: &str, beat: Option<u64>, now: Duration) -> bool {
        let Some(beat) = beat else { return false };
        let fresh = Sighting { beat, since: now, last_look: now };
        let seen = self.seen.entry(pilot.to_owned()).or_insert_with(|| fresh.clone());
        if seen.beat != beat || now.saturating_sub(seen.last_look) > lease / Self::GAPS {
            *seen = fresh;
        }
        seen.last_look = now;
        now.saturating_sub(seen.since) >= lease
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
    /// How long it may stand still, milliseconds; [`Observer::LEASE`] where it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
}

impl Heartbeat {
    /// How long it may stand still.
    pub fn lease(&self) -> Duration {
        let (least, most) = Observer::LEASES;
        self.lease_ms.map_or(Observer::LEASE, |ms| Duration::from_millis(ms).clamp(least, most))
    }
}

/// A beat this close before the job's end, milliseconds, means that the end is what it died of.
const NEAR_END_MS: u64 = 30_000;

/// Reads a pilot's heartbeat.
pub fn heartbeat(fs: &dyn Fs, layout: &Layout, pilot: &str) -> io::Result<Heartbeat> {
    let bytes = fs.read(&layout.pilot(pilot), 64 * 1024)?;
    serde_json::from_slice(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Replaces our heartbeat. Not synced beyond its own data: a lost beat is only an old beat.
pub fn beat(fs: &dyn Fs, layout: &Layout, beat: &Heartbeat) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(beat).map_err(io::Error::other)?;
    replace(fs, &layout.pilot(&beat.identity.pilot), &bytes)
}

/// How it stands with `owner`.
pub(super) fn fate(
    fs: &dyn Fs,
    host: &dyn Host,
    layout: &Layout,
    owner: &Identity,
    observer: &Mutex<Observer>,
) -> io::Result<Fate> {
    let beat = match heartbeat(fs, layout, &owner.pilot) {
        Ok(beat) => Some(beat),
        // Who lives replaces a damaged one within a second.
        Err(e) if e.kind() == io::ErrorKind::NotFound || is_damage(&e) => None,
        Err(e) => return Err(e),
    };
    if beat.as_ref().is_some_and(|b| b.ended) {
        return Ok(Fate::Ended);
    }
    let stone = match tombstone::read(fs, layout, &owner.pilot) {
        // It proves nothing; the lease still counts.
        Err(e) if is_damage(&e) => None,
        stone => stone?,
    };
    if let Some(stone) = stone {
        let proven = stone.lost.is_empty();
        return Ok(Fate::Died { proven, explained: stone.explained });
    }
    let leader_dead = host.is_proven_dead(&owner.process());
    // It never beat, or its file was removed: stillness of nothing counts as beat 0.
    let count = beat.as_ref().map_or(0, |b| b.beat);
    let lease = beat.as_ref().map_or(Observer::LEASE, Heartbeat::lease);
    // Locked for this look alone, never across a call that may hang: other lanes claim, too. A poisoned observer only
    // lost observations.
    let expired = || {
        let mut observer = observer.lock().unwrap_or_else(PoisonError::into_inner);
        observer.is_expired_after(lease, &owner.pilot, Some(count), host.mono())
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
    if let Some(Released { kept: true, .. }) = released(fs, layout, key, generation)?
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
