//! The coordinator's disk operations: claims, publication, quarantine, release, sweep and the storage probe.
//!
//! Each call may hang or fail with its effect unknown; its completion is an event for the core ([`super::lanes`] runs
//! them in threads). Everything goes through [`Fs`] and [`Host`], so that the simulator runs this very code.

use super::event::*;
use crate::arrivals::scan::{InputVersion, Scan};
use crate::publish::{Publication, find_bundle, publish};
use crate::store::claims::{self, Identity, Observer, Tried};
use crate::store::records::{self, Published, Quarantined};
use crate::store::replay::Finished;
use crate::store::temporary::Sweep;
use crate::store::{Fs, Host, Layout, layout, takeover};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the pool must know of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPlace {
    /// `<output>/<stream>`.
    pub output: PathBuf,
    /// The pattern as written, which decides bundle names.
    pub pattern: String,
}

/// The disk operations; stateless but for what was observed of other pilots.
pub struct Disk {
    /// Filesystem.
    pub fs: Arc<dyn Fs>,
    /// Clocks, and whether processes are dead.
    pub host: Arc<dyn Host>,
    /// State folder.
    pub layout: Layout,
    /// Us.
    pub me: Identity,
    /// Streams by name.
    pub streams: BTreeMap<String, StreamPlace>,
    /// Heartbeats of others.
    pub observer: Mutex<Observer>,
    /// When our own heartbeat was last written, by [`Host::mono`].
    pub last_beat: Mutex<Duration>,
    /// How long our heartbeat may stand still before others take over.
    pub lease: Duration,
    /// Journals of dead pilots, read once.
    pub journals: Mutex<BTreeMap<String, Arc<Finished>>>,
}

/// Bytes that must be free before work resumes after a full disk.
const ROOM: u64 = 64 << 20;
/// Unfinished work that nobody went on with for so long is removed, milliseconds.
const KEEP_MS: u64 = 24 * 3600 * 1000;

impl Disk {
    /// The operations of a pilot that begins now.
    pub fn new(
        fs: Arc<dyn Fs>,
        host: Arc<dyn Host>,
        layout: Layout,
        me: Identity,
        streams: BTreeMap<String, StreamPlace>,
    ) -> Self {
        let last_beat = Mutex::new(host.mono());
        let (observer, journals, lease) = (Mutex::default(), Mutex::default(), Observer::LEASE);
        Self { fs, host, layout, me, streams, observer, last_beat, lease, journals }
    }

    fn place(&self, stream: &str) -> io::Result<&StreamPlace> {
        self.streams.get(stream).ok_or_else(|| io::Error::other(format!("stream {stream} is unknown")))
    }

    fn stem(&self, stream: &str, name: &str) -> io::Result<(PathBuf, String)> {
        let place = self.place(stream)?;
        Ok((place.output.clone(), layout::bundle_stem(name, &place.pattern)))
    }

    /// Answers [`Action::Claim`].
    pub fn claim(&self, key: &str, scan: &Scan) -> ClaimOutcome {
        self.try_claim(key, scan).unwrap_or_else(|e| match e.kind() {
            // A claim that cannot be read holds up its own scan only.
            io::ErrorKind::InvalidData => ClaimOutcome::Failed(e.to_string()),
            _ => ClaimOutcome::Storage(e.to_string()),
        })
    }

    /// Looks at the heartbeats of all other pilots, so that a lease runs out by the clock and not by chance of claims.
    pub fn observe_others(&self) -> io::Result<()> {
        for name in self.fs.list(&self.layout.state.join("pilots"))? {
            let Some(pilot) = name.strip_suffix(".json").filter(|p| !p.starts_with('.') && *p != self.me.pilot) else {
                continue;
            };
            let Ok(beat) = claims::heartbeat(&*self.fs, &self.layout, pilot) else { continue };
            let mut observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner);
            observer.is_expired_after(beat.lease(), pilot, Some(beat.beat), self.host.mono());
        }
        Ok(())
    }

    /// What the input says: `Ok(None)` unchanged; an input that cannot be looked at is its own fault.
    fn input(&self, scan: &Scan) -> Result<bool, String> {
        match scan.changed_by(&|path| self.fs.stat(path)) {
            Ok(changed) => Ok(changed.is_some()),
            Err(e) if crate::technique::is_storage_error(&e) => Err(e.to_string()),
            // Whatever keeps us from looking (rights, most often) is a change since arrivals looked.
            Err(_) => Ok(true),
        }
    }

    fn try_claim(&self, key: &str, scan: &Scan) -> io::Result<ClaimOutcome> {
        let fs = &*self.fs;
        if let Some(done) = self.verdict(key)? {
            return Ok(done);
        }
        match self.input(scan) {
            Ok(false) => {}
            Ok(true) => return Ok(ClaimOutcome::Changed),
            Err(why) => return Ok(ClaimOutcome::Storage(why)),
        }
        let won = match claims::try_claim(fs, &*self.host, &self.layout, &self.me, key, &self.observer)? {
            Tried::Won(won) => won,
            Tried::Foreign(owner) => return Ok(ClaimOutcome::Foreign { owner }),
        };
        let generation = won.generation;
        // The owner before us may have finished while we looked.
        if generation > 1
            && let Some(done) = self.verdict(key)?
        {
            return Ok(done);
        }
        let (output, stem) = self.stem(&scan.stream, &scan.name)?;
        let staging = match claims::prepare_staging(fs, &output, key, generation) {
            // Ours from a try whose answer was lost: nothing has been written there yet.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => layout::staging(&output, key, generation),
            // The first scan of its stream.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs.make_dirs(&output)?;
                claims::prepare_staging(fs, &output, key, generation)?
            }
            other => other?,
        };
        // After the predecessor's staging is out of its reach: what it published, it published before.
        if let Some(bundle) = find_bundle(fs, &output, &stem, key)? {
            claims::fence(fs, &output, key, generation)?;
            self.put_published(key, scan, &bundle, None, None, String::new())?;
            return Ok(ClaimOutcome::Published);
        }
        let previous = won.previous.filter(|p| p.writers_gone);
        let adopted = previous.and_then(|p| {
            let finished = self.finished(&p.pilot)?;
            takeover::adopt(fs, &output, key, generation - 1, &staging, &finished)
        });
        // What is left of earlier owners is only space.
        for old in 1..generation {
            claims::fence(fs, &output, key, old)?;
        }
        Ok(ClaimOutcome::Won { generation, staging, deaths: won.deaths, adopted: adopted.map(Box::new) })
    }

    /// What a dead pilot had finished; `None` when its journal cannot be read, which costs only time.
    fn finished(&self, pilot: &str) -> Option<Arc<Finished>> {
        let known = || self.journals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(finished) = known().get(pilot) {
            return Some(finished.clone());
        }
        match Finished::read(&*self.fs, &self.layout, pilot) {
            Ok(finished) => {
                if finished.damaged > 0 {
                    tracing::warn!(pilot, lines = finished.damaged, "damaged lines in the journal of a dead pilot");
                }
                let finished = Arc::new(finished);
                known().insert(pilot.to_owned(), finished.clone());
                Some(finished)
            }
            Err(e) => {
                tracing::warn!(pilot, error = %e, "the journal of a dead pilot cannot be read; its work is done again");
                None
            }
        }
    }

    /// What the records say; a damaged one says nothing, and the bundle, if there is one, is found later.
    fn verdict(&self, key: &str) -> io::Result<Option<ClaimOutcome>> {
        if records::is_there::<Published>(&*self.fs, &self.layout, key)? {
            return Ok(Some(ClaimOutcome::Published));
        }
        let quarantined = records::is_there::<Quarantined>(&*self.fs, &self.layout, key)?;
        Ok(quarantined.then_some(ClaimOutcome::Quarantined))
    }

    /// Answers [`Action::Publish`].
    pub fn publish(
        &self,
        key: &str,
        scan: &Scan,
        generation: u32,
        staging: &Path,
        timeline: Timeline,
        items: String,
    ) -> PublishOutcome {
        let tried = || -> io::Result<PublishOutcome> {
            let fs = &*self.fs;
            let (output, stem) = self.stem(&scan.stream, &scan.name)?;
            let last_beat = *self.last_beat.lock().unwrap_or_else(PoisonError::into_inner);
            let beat_age = self.host.mono().saturating_sub(last_beat);
            if beat_age > self.lease / 2 {
                let what = "our heartbeat could not be written, others may have taken over";
                return Ok(PublishOutcome::Storage(format!("{what} ({} s)", beat_age.as_secs())));
            }
            let changed = match self.input(scan) {
                Ok(changed) => changed,
                Err(why) => return Ok(PublishOutcome::Storage(why)),
            };
            if changed {
                // Unless an earlier try of ours got through, whose answer was lost.
                return Ok(match find_bundle(fs, &output, &stem, key)? {
                    Some(bundle) => self.published(key, scan, bundle, timeline, items)?,
                    None => PublishOutcome::Changed,
                });
            }
            if !claims::is_mine(fs, &self.layout, key, generation)? {
                return Ok(PublishOutcome::Fenced);
            }
            match publish(fs, &output, &stem, key, staging)? {
                Publication::Done(bundle) => {
                    // Nothing is left there unless an earlier owner had published.
                    claims::fence(fs, &output, key, generation)?;
                    self.published(key, scan, bundle, timeline, items)
                }
                Publication::Fenced => Ok(PublishOutcome::Fenced),
            }
        };
        tried().unwrap_or_else(|e| PublishOutcome::Storage(e.to_string()))
    }

    fn published(
        &self,
        key: &str,
        scan: &Scan,
        bundle: PathBuf,
        timeline: Timeline,
        items: String,
    ) -> io::Result<PublishOutcome> {
        let lag = timeline.lag(Time::from_ms(self.host.wall_ms()));
        let preview_s = timeline.previewed.map(|t| t.since_s(timeline.last_byte));
        self.put_published(key, scan, &bundle, Some(lag), preview_s, items)?;
        Ok(PublishOutcome::Done { bundle })
    }

    fn put_published(
        &self,
        key: &str,
        scan: &Scan,
        bundle: &Path,
        lag: Option<Lag>,
        preview_s: Option<f64>,
        items: String,
    ) -> io::Result<()> {
        let record = Published {
            key: key.to_owned(),
            stream: scan.stream.clone(),
            scan: scan.name.clone(),
            input_version: scan.version().to_string(),
            own_version: Some(scan.own_version().to_string()),
            bundle: bundle.display().to_string(),
            published_ms: self.host.wall_ms(),
            last_byte_ms: scan.last_byte_ms,
            lag,
            preview_s,
            items,
            pilot: self.me.pilot.clone(),
            linked: records::watched(&scan.linked),
        };
        records::put_published(&*self.fs, &self.layout, &record)
    }

    /// Answers [`Action::Quarantine`]: the record first, then staging goes.
    pub fn quarantine(
        &self,
        key: &str,
        stream: &str,
        name: &str,
        versions: (Option<InputVersion>, Option<InputVersion>),
        generation: u32,
        reason: &str,
    ) -> QuarantineOutcome {
        let record = Quarantined {
            key: key.to_owned(),
            stream: stream.to_owned(),
            scan: name.to_owned(),
            input_version: versions.0.map(|v| v.to_string()),
            own_version: versions.1.map(|v| v.to_string()),
            reason: reason.to_owned(),
            at_ms: self.host.wall_ms(),
            pilot: self.me.pilot.clone(),
        };
        let put = || -> io::Result<QuarantineOutcome> {
            if generation > 0 && !claims::is_mine(&*self.fs, &self.layout, key, generation)? {
                return Ok(QuarantineOutcome::Fenced);
            }
            records::put_quarantined(&*self.fs, &self.layout, &record)?;
            if generation > 0 {
                // The record keeps others away; the claim must not, once a person releases the scan.
                claims::release_condemned(&*self.fs, &self.layout, &self.place(stream)?.output, key, generation)?;
            }
            Ok(QuarantineOutcome::Done)
        };
        put().unwrap_or_else(|e| QuarantineOutcome::Storage(e.to_string()))
    }

    /// Carries out [`Action::Release`]. A failure leaves the claim to die with the pilot, unless it is ordered again.
    ///
    /// # Errors
    /// What the filesystem says.
    pub fn release(&self, key: &str, generation: u32, staging: &Path) -> Result<(), String> {
        let Some(output) = staging.parent() else { return Ok(()) };
        claims::release(&*self.fs, &self.layout, output, key, generation).map_err(|e| {
            tracing::warn!(key, error = %e, "a claim could not be given back");
            e.to_string()
        })
    }

    /// Gives a claim up whose finished parts stay for the next owner; its writers are reaped.
    pub fn hand_over(&self, key: &str, generation: u32) {
        if let Err(e) = claims::hand_over(&*self.fs, &self.layout, key, generation) {
            tracing::warn!(key, error = %e, "a claim could not be handed over; it ends with this pilot");
        }
    }

    /// Carries out [`Action::SavePlan`].
    pub fn save_plan(&self, key: &str, staging: &Path, plan: &crate::technique::plan::Plan) {
        if let Err(e) = takeover::save_plan(&*self.fs, staging, key, plan) {
            tracing::debug!(key, error = %e, "the plan could not be saved; a next owner begins anew");
        }
    }

    /// With `all`, also what a next owner could still use: right when nothing that is wanted is left to do. Otherwise
    /// unfinished work with a plan waits a day for somebody to go on with it.
    ///
    /// Removes what dead pilots left: staging of claims whose owner is gone and fenced folders in the outputs, and
    /// temporaries there and in the state folder.
    pub fn sweep(&self, all: bool) {
        let outputs: std::collections::BTreeSet<&Path> = self.streams.values().map(|s| s.output.as_path()).collect();
        for output in &outputs {
            for name in self.fs.list(output).unwrap_or_default() {
                if let Err(e) = self.sweep_one(output, &name, all) {
                    tracing::debug!(folder = %output.display(), name, error = %e, "could not be swept");
                }
            }
        }
        let mut temporaries = Sweep::new(&*self.fs, &*self.host, &self.layout);
        let state = Layout::FOLDERS.iter().map(|folder| self.layout.state.join(folder));
        let folders = outputs.into_iter().map(Path::to_owned).chain([self.layout.state.clone()]).chain(state);
        folders.for_each(|folder| temporaries.folder(&folder));
    }

    fn sweep_one(&self, output: &Path, name: &str, all: bool) -> io::Result<()> {
        if name.starts_with(".fenced-") {
            return self.fs.remove_tree(&output.join(name));
        }
        let claim = name.strip_prefix(".staging-").and_then(|rest| rest.rsplit_once('.'));
        let Some((key, generation)) = claim.and_then(|(key, g)| Some((key, g.parse().ok()?))) else { return Ok(()) };
        if !all && self.may_be_adopted(&output.join(name), key, generation)? {
            return Ok(());
        }
        if claims::is_abandoned(&*self.fs, &*self.host, &self.layout, key, generation, all)? {
            tracing::info!(key, "removing what a dead pilot left");
            claims::fence(&*self.fs, output, key, generation)?;
        }
        Ok(())
    }

    /// Unfinished work of the last owner of a job without a verdict, with a plan to go on by, and not old.
    fn may_be_adopted(&self, staging: &Path, key: &str, generation: u32) -> io::Result<bool> {
        let plan = match self.fs.stat(&staging.join(takeover::PLAN)) {
            Ok(plan) => plan,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        let age_ms = self.host.wall_ms().saturating_sub(u64::try_from(plan.mtime_ns / 1_000_000).unwrap_or(0));
        let last = !self.fs.exists(&self.layout.claim(key, generation + 1))?;
        Ok(last && age_ms < KEEP_MS && self.verdict(key)?.is_none())
    }

    /// Answers [`Action::ProbeStorage`]: room and a durable write, in state and in every output.
    pub fn probe(&self) -> Result<(), String> {
        let outputs = self.streams.values().map(|s| s.output.clone());
        let mut folders: Vec<PathBuf> = outputs.chain([self.layout.state.clone()]).collect();
        folders.sort();
        folders.dedup();
        for folder in folders {
            let file = crate::store::fs::aside(&*self.fs, &folder.join("storage-probe"));
            let tried = || -> io::Result<(u64, u64)> {
                if folder == self.layout.state {
                    // Claims that are gone cannot be made again: others may hold them elsewhere.
                    self.fs.list(&folder.join("claims"))?;
                } else {
                    self.fs.make_dirs(&folder)?;
                }
                let written = self.fs.write_new(&file, &[0x5a; 64 * 1024]);
                let _ = self.fs.remove_file(&file);
                written?;
                self.fs.free_bytes(&folder)
            };
            match tried() {
                // A small test filesystem never has so much: half of nothing must not stop it for ever.
                Ok((free, size)) if free < ROOM.min(size / 20) => {
                    return Err(format!("{}: only {} MiB free", folder.display(), free >> 20));
                }
                Ok(_) => {}
                Err(e) => return Err(format!("{}: {e}", folder.display())),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
