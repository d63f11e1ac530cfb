//! The coordinator's I/O pool: claims, publication, quarantine, release and the storage probe.
//!
//! Each call may hang or fail with its effect unknown; its completion is an event for the core. Orders about
//! one key run on one thread in the order given, so that a release is done before the next claim of that key
//! is tried. Other keys do not wait, up to the number of lanes.

use super::driver::Mailbox;
use super::event::*;
use crate::arrivals::scan::{InputVersion, Scan};
use crate::publish::{Publication, find_bundle, publish};
use crate::store::claims::{self, Identity, Observer, Tried};
use crate::store::records::{self, Published, Quarantined};
use crate::store::{Fs, Layout, layout};
use crossbeam::channel::{Sender, unbounded};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

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
    /// State folder.
    pub layout: Layout,
    /// Us.
    pub me: Identity,
    /// Streams by name.
    pub streams: BTreeMap<String, StreamPlace>,
    /// Heartbeats of others.
    pub observer: Mutex<Observer>,
    /// When our own heartbeat was last written.
    pub last_beat: Mutex<Instant>,
}

/// Bytes that must be free before work resumes after a full disk.
const ROOM: u64 = 64 << 20;

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Disk {
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
            let beat = claims::heartbeat(&*self.fs, &self.layout, pilot).ok().map(|b| b.beat);
            let mut observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner);
            observer.is_expired(pilot, beat, Instant::now());
        }
        Ok(())
    }

    /// What the input says: `Ok(None)` unchanged; an input that cannot be looked at is its own fault.
    fn input(&self, scan: &Scan) -> Result<bool, String> {
        match scan.changed() {
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
        let tried = {
            // A poisoned observer only lost observations.
            let mut observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner);
            claims::try_claim(fs, &self.layout, &self.me, key, &mut observer, now_ms())?
        };
        let generation = match tried {
            Tried::Won(generation) => generation,
            Tried::Foreign(owner) => return Ok(ClaimOutcome::Foreign { owner }),
        };
        // The owner before us may have finished while we looked.
        if let Some(done) = self.verdict(key)? {
            return Ok(done);
        }
        let (output, stem) = self.stem(&scan.stream, &scan.name)?;
        fs.make_dirs(&output)?;
        let staging = match claims::prepare_staging(fs, &output, key, generation) {
            // Ours from a try whose answer was lost: nothing has been written there yet.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => layout::staging(&output, key, generation),
            other => other?,
        };
        // After the predecessor's staging is out of its reach: what it published, it published before.
        if let Some(bundle) = find_bundle(fs, &output, &stem, key)? {
            claims::fence(fs, &output, key, generation)?;
            self.put_published(key, scan, &bundle, None, None, String::new())?;
            return Ok(ClaimOutcome::Published);
        }
        Ok(ClaimOutcome::Won { generation, staging })
    }

    fn verdict(&self, key: &str) -> io::Result<Option<ClaimOutcome>> {
        if self.fs.exists(&self.layout.published(key))? {
            return Ok(Some(ClaimOutcome::Published));
        }
        let quarantined = self.fs.exists(&self.layout.quarantine(key))?;
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
            let beat_age = self.last_beat.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            if beat_age > Observer::LEASE / 2 {
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
        let lag = timeline.lag(Time::from_ms(now_ms()));
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
            published_ms: now_ms(),
            last_byte_ms: scan.last_byte_ms,
            lag,
            preview_s,
            items,
            pilot: self.me.pilot.clone(),
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
            at_ms: now_ms(),
            pilot: self.me.pilot.clone(),
        };
        let put = || -> io::Result<QuarantineOutcome> {
            if generation > 0 && !claims::is_mine(&*self.fs, &self.layout, key, generation)? {
                return Ok(QuarantineOutcome::Fenced);
            }
            records::put_quarantined(&*self.fs, &self.layout, &record)?;
            if generation > 0 {
                claims::fence(&*self.fs, &self.place(stream)?.output, key, generation)?;
            }
            Ok(QuarantineOutcome::Done)
        };
        put().unwrap_or_else(|e| QuarantineOutcome::Storage(e.to_string()))
    }

    /// Carries out [`Action::Release`]. A failure leaves the claim to die with the pilot.
    pub fn release(&self, key: &str, generation: u32, staging: &Path) {
        let Some(output) = staging.parent() else { return };
        if let Err(e) = claims::release(&*self.fs, &self.layout, output, key, generation) {
            tracing::warn!(key, error = %e, "a claim could not be given back; it ends with this pilot");
        }
    }

    /// Removes what dead pilots left in the outputs: staging of claims whose owner is gone, fenced folders, and
    /// temporaries of dead processes of this host.
    pub fn sweep(&self) {
        let outputs: std::collections::BTreeSet<&Path> = self.streams.values().map(|s| s.output.as_path()).collect();
        for output in outputs {
            for name in self.fs.list(output).unwrap_or_default() {
                if let Err(e) = self.sweep_one(output, &name) {
                    tracing::debug!(folder = %output.display(), name, error = %e, "could not be swept");
                }
            }
        }
    }

    fn sweep_one(&self, output: &Path, name: &str) -> io::Result<()> {
        if name.starts_with(".fenced-") {
            return self.fs.remove_tree(&output.join(name));
        }
        let claim = name.strip_prefix(".staging-").and_then(|rest| rest.rsplit_once('.'));
        let Some((key, generation)) = claim.and_then(|(key, g)| Some((key, g.parse().ok()?))) else { return Ok(()) };
        if claims::is_abandoned(&*self.fs, &self.layout, key, generation)? {
            tracing::info!(key, "removing what a dead pilot left");
            claims::fence(&*self.fs, output, key, generation)?;
        }
        Ok(())
    }

    /// Answers [`Action::ProbeStorage`]: room and a durable write, in state and in every output.
    pub fn probe(&self) -> Result<(), String> {
        let outputs = self.streams.values().map(|s| s.output.clone());
        let mut folders: Vec<PathBuf> = outputs.chain([self.layout.state.clone()]).collect();
        folders.sort();
        folders.dedup();
        for folder in folders {
            let file = crate::store::fs::aside(&folder.join("storage-probe"));
            let tried = || -> io::Result<u64> {
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
                Ok(free) if free < ROOM.min(self.total(&folder) / 20) => {
                    return Err(format!("{}: only {} MiB free", folder.display(), free >> 20));
                }
                Ok(_) => {}
                Err(e) => return Err(format!("{}: {e}", folder.display())),
            }
        }
        Ok(())
    }

    fn total(&self, folder: &Path) -> u64 {
        rustix::fs::statvfs(folder).map_or(u64::MAX, |s| s.f_blocks.saturating_mul(s.f_frsize))
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// Threads that carry out disk orders; orders of one key stay in order.
pub struct DiskPool {
    disk: Arc<Disk>,
    lanes: Vec<Sender<Work>>,
    mailbox: Mailbox,
}

impl DiskPool {
    /// Lanes of the pool: enough that one hanging call does not stop the rest.
    const LANES: usize = 4;

    /// Starts the threads.
    pub fn spawn(disk: Arc<Disk>, mailbox: Mailbox) -> io::Result<Self> {
        let mut lanes = Vec::new();
        for n in 0..Self::LANES {
            let (tx, rx) = unbounded::<Work>();
            let lane = std::thread::Builder::new().name(format!("disk-{n}"));
            lane.spawn(move || rx.into_iter().for_each(|work| work()))?;
            lanes.push(tx);
        }
        Ok(Self { disk, lanes, mailbox })
    }

    /// Runs `work` on the lane of `key`.
    pub fn run(&self, key: &str, work: impl FnOnce(&Disk, &Mailbox) + Send + 'static) {
        let lane = crc32fast::hash(key.as_bytes()) as usize % self.lanes.len();
        let (disk, mailbox) = (self.disk.clone(), self.mailbox.clone());
        // The lanes live as long as the pool.
        let _ = self.lanes[lane].send(Box::new(move || work(&disk, &mailbox)));
    }
}

/// Who carries out orders for the disk: the pool, or a stand-in that answers at once.
pub trait DiskOrders {
    /// Carries out an order, or gives it back when it is none for the disk.
    fn perform(&self, action: Action) -> Option<Action>;
    /// Waits until every order given so far is done, at most `longest`; false when that was not enough.
    fn flush(&self, longest: std::time::Duration) -> bool;
}

impl DiskOrders for DiskPool {
    fn perform(&self, action: Action) -> Option<Action> {
        match action {
            Action::Claim { job, key, scan } => self.run(&key.clone(), move |disk, mail| {
                let outcome = disk.claim(&key, &scan);
                mail.post(Event::Claimed { job, outcome });
            }),
            Action::Publish { job, key, scan, generation, staging, timeline, items } => {
                self.run(&key.clone(), move |disk, mail| {
                    let outcome = disk.publish(&key, &scan, generation, &staging, timeline, items);
                    mail.post(Event::Published { job, outcome });
                });
            }
            Action::Quarantine { job, key, stream, name, version, own_version, generation, reason, .. } => {
                self.run(&key.clone(), move |disk, mail| {
                    let versions = (version, own_version);
                    let outcome = disk.quarantine(&key, &stream, &name, versions, generation, &reason);
                    mail.post(Event::Quarantined { job, outcome });
                });
            }
            Action::Release { key, generation, staging } => {
                self.run(&key.clone(), move |disk, _| disk.release(&key, generation, &staging));
            }
            Action::ProbeStorage => self.run("", |disk, mail| {
                mail.post(Event::StorageProbed { result: disk.probe() });
            }),
            other => return Some(other),
        }
        None
    }

    fn flush(&self, longest: std::time::Duration) -> bool {
        let (tx, rx) = unbounded();
        for lane in &self.lanes {
            let tx = tx.clone();
            let _ = lane.send(Box::new(move || {
                let _ = tx.send(());
            }));
        }
        let end = std::time::Instant::now() + longest;
        (0..self.lanes.len()).all(|_| rx.recv_deadline(end).is_ok())
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
