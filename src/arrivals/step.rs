//! One look at one scan: is it whole, is it proven, are its companions there?
//!
//! Contract
//! - Any change of any file (size, mtime, ctime, inode) starts the quiet time again, under every rule but
//!   `renamed`, where the name itself is the proof.
//! - A marker older than the scan's last change proves an earlier version: then the scan must also be
//!   unchanged for the quiet time.
//! - What lacks something (a file of the group, a companion, what its manifest lists) is rejected when it
//!   did not change for the timeout; a scan without its marker or manifest waits for ever.

use super::events::{ArrivalEvent, Proof};
use super::listing::Listing;
use super::manifest::{self, ManifestEntry, ManifestKind};
use super::observe::{self, Seen};
use super::roles::Resolved;
use super::scan::{FileStamp, InputVersion, Scan};
use super::watcher::{Lack, Now, Phase, Watcher, age, last_byte};
use crate::campaign::{Companion, Rule, Unit};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Longest pause after a probe said "not yet".
const BACK_OFF_MAX: Duration = Duration::from_secs(300);
const BACK_OFF_FIRST: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(10);

/// What a completeness rule says.
enum Verdict {
    Proven(Proof),
    /// Look again then.
    At(Duration),
    /// Nothing to see until the named thing appears; `None` = the listing will tell.
    Awaits(String, Option<Duration>),
    /// As `Awaits`, and the timeout counts.
    Lacks(String),
}

impl Watcher {
    pub(super) fn step(&mut self, name: &Arc<str>, now: Now, fs: &mut dyn Listing) {
        let Some(scan) = self.scans.get(name) else { return };
        if matches!(scan.phase, Phase::Reported(_)) {
            return;
        }
        match self.observe(name, fs) {
            Err(_) => self.schedule(name, now.mono + RETRY),
            Ok(Seen::Gone) => self.remove(name),
            Ok(Seen::Refused(reason, stamps)) => {
                let (own, changed) = self.note(name, &stamps, now);
                if changed {
                    self.reject(name, Some(own), reason, now);
                }
            }
            Ok(Seen::Unfinished(reason, stamps)) => {
                self.note(name, &stamps, now);
                self.lack(name, reason, now);
            }
            Ok(Seen::Members(stamps)) => {
                let (own, changed) = self.note(name, &stamps, now);
                let known = self.scans.get(name).is_some_and(|s| s.phase == Phase::Known);
                if known && !changed {
                    return self.keep_sweeping(name);
                }
                if known {
                    self.set_phase(name, Phase::Settling, now);
                }
                if let Err(_e) = self.consider(name, stamps, own, now, fs) {
                    self.schedule(name, now.mono + RETRY);
                }
            }
        }
    }

    fn observe(&self, name: &Arc<str>, fs: &mut dyn Listing) -> io::Result<Seen> {
        let Some(scan) = self.scans.get(name) else { return Ok(Seen::Gone) };
        if let Some(reason) = &scan.hostile {
            // Only the name itself is looked at, so that the rejection has a version.
            let stamp = |p: &PathBuf| fs.stat(&self.root.join(p)).ok().map(|m| m.stamp(p.clone()));
            let stamps: Vec<FileStamp> = scan.parts.iter().filter_map(stamp).collect();
            return Ok(if stamps.is_empty() { Seen::Gone } else { Seen::Refused(reason.clone(), stamps) });
        }
        let temporary = match &self.watch.complete.rule {
            Rule::Renamed { temporary } => Some(temporary),
            _ => None,
        };
        match (self.watch.unit, scan.parts.first()) {
            (Unit::Folder, Some(path)) => observe::folder(fs, &self.root, path, temporary),
            (Unit::Folder, None) => Ok(Seen::Gone),
            _ => observe::files(fs, &self.root, &scan.parts),
        }
    }

    /// Remembers what was seen; true when it is not what was seen before.
    fn note(&mut self, name: &Arc<str>, stamps: &[FileStamp], now: Now) -> (InputVersion, bool) {
        let own = Scan { members: stamps.to_vec(), ..Scan::default() }.version();
        let Some(scan) = self.scans.get_mut(name) else { return (own, false) };
        let changed = scan.own != Some(own);
        if changed {
            let refs: Vec<&FileStamp> = stamps.iter().collect();
            let first = scan.own.is_none();
            scan.unchanged_since = if first { now.mono.saturating_sub(age(&refs, now)) } else { now.mono };
            scan.own = Some(own);
            scan.not_before = Duration::ZERO;
            for lack in [&mut scan.refused, &mut scan.lacks].into_iter().flatten() {
                (lack.since, lack.tries) = (now.mono, 0);
            }
        }
        (own, changed)
    }

    fn consider(
        &mut self,
        name: &Arc<str>,
        mut members: Vec<FileStamp>,
        own: InputVersion,
        now: Now,
        fs: &mut dyn Listing,
    ) -> io::Result<()> {
        let refs: Vec<&FileStamp> = members.iter().collect();
        let last_ns = last_byte(&refs, now);
        let since = self.watch.since.and_then(|s| s.duration_since(SystemTime::UNIX_EPOCH).ok());
        let unwanted = since.is_some_and(|since| i128::from(last_ns) < since.as_nanos() as i128);
        if unwanted || self.is_finished(name, Some(own), None) {
            self.set_phase(name, Phase::Known, now);
            return Ok(());
        }
        let Some(scan) = self.scans.get(name) else { return Ok(()) };
        let settled_at = scan.unchanged_since + self.watch.complete.rule.quiet();
        let not_before = scan.not_before;
        // A record without the scan's own version is compared with companions, as far as they are there.
        if self.is_on_record(name) {
            let mut own_members = members.clone();
            if let Resolved::Files(roles) = self.roles.resolve(fs, &self.root, name, &mut own_members, now)?
                && self.is_finished(name, None, Some(Scan { members: own_members, roles, ..Scan::default() }.version()))
            {
                self.set_phase(name, Phase::Known, now);
                return Ok(());
            }
        }
        if let Unit::Group { count } = self.watch.unit {
            let (have, want) = (members.len(), count as usize);
            if have > want {
                let reason =
                    format!("{have} files share the key of {name}, which should have {want}; move the others away");
                self.reject(name, Some(own), reason, now);
                return Ok(());
            }
            if have < want {
                self.lack(name, format!("{have} of {want} files are there"), now);
                return Ok(());
            }
        }
        let verdict = self.judge(name, &members, settled_at, now, fs)?;
        let proof = match verdict {
            Verdict::Proven(_) if now.mono < not_before => return Ok(self.wait(name, not_before, now)),
            Verdict::Proven(proof) => proof,
            Verdict::At(at) => return Ok(self.wait(name, at.max(not_before), now)),
            Verdict::Awaits(reason, again) => {
                self.note_lack(name, reason, now);
                self.set_phase(name, Phase::Awaiting, now);
                if let Some(again) = again {
                    self.schedule(name, now.mono + again);
                }
                return Ok(());
            }
            Verdict::Lacks(reason) => return Ok(self.lack(name, reason, now)),
        };
        let roles = match self.roles.resolve(fs, &self.root, name, &mut members, now)? {
            Resolved::Files(roles) => roles,
            Resolved::Settling(reason) => return Ok(self.wait_role(name, reason, false, own, now)),
            Resolved::Missing(reason) => return Ok(self.wait_role(name, reason, true, own, now)),
            Resolved::Refused(reason) => return Ok(self.reject(name, Some(own), reason, now)),
        };
        if members.is_empty() {
            return Ok(self.reject(name, Some(own), "every file of it serves in a role; narrow the roles".into(), now));
        }
        if !observe::confined(fs, &self.root, &members)? {
            let reason = format!("{name} is reached through a link; put the folder itself there");
            return Ok(self.reject(name, Some(own), reason, now));
        }
        self.complete(name, members, roles, proof, last_ns, now);
        Ok(())
    }

    fn complete(
        &mut self,
        name: &Arc<str>,
        members: Vec<FileStamp>,
        roles: BTreeMap<String, Vec<FileStamp>>,
        proof: Proof,
        last_ns: i64,
        now: Now,
    ) {
        let ms = |ns: i64| u64::try_from(ns / 1_000_000).unwrap_or(0);
        let complete_ms = ms(now.wall_ns);
        // All times in the future: the clocks disagree, and the present is the best guess.
        let last_byte_ms = if last_ns == 0 { complete_ms } else { ms(last_ns) };
        let (stream, root) = (self.watch.name.clone(), self.root.clone());
        let scan = Scan { stream, name: name.to_string(), root, members, roles, last_byte_ms, complete_ms };
        if let Some(s) = self.scans.get_mut(name) {
            s.lacks = None;
        }
        self.set_phase(name, Phase::Reported(scan.version()), now);
        self.events.push(ArrivalEvent::Complete { scan, proof });
    }

    fn judge(
        &mut self,
        name: &Arc<str>,
        members: &[FileStamp],
        settled_at: Duration,
        now: Now,
        fs: &mut dyn Listing,
    ) -> io::Result<Verdict> {
        let settled = now.mono >= settled_at;
        Ok(match &self.watch.complete.rule {
            Rule::Settled { .. } if settled => Verdict::Proven(Proof::Probe),
            Rule::Settled { .. } => Verdict::At(settled_at),
            Rule::Renamed { .. } => Verdict::Proven(Proof::Declared),
            Rule::Marker { suffix } => {
                let marker = PathBuf::from(format!("{name}{suffix}"));
                let there = if self.tree.contains(&marker) { self.companion(&marker, fs)? } else { None };
                let Some(stamp) = there else {
                    return Ok(Verdict::Awaits(format!("{} is not there", marker.display()), None));
                };
                let last = members.iter().map(|m| m.ctime_ns).max().unwrap_or(0);
                if stamp.ctime_ns >= last || settled {
                    Verdict::Proven(Proof::Declared)
                } else {
                    Verdict::At(settled_at)
                }
            }
            Rule::Manifest { names } => {
                let names = names.clone();
                self.against_manifest(name, &names, members, fs)?
            }
        })
    }

    /// A regular file beside a scan; one inside the scan's own folder is not in the tree and is stat'ed.
    fn companion(&self, path: &Path, fs: &mut dyn Listing) -> io::Result<Option<FileStamp>> {
        match observe::file(fs, &self.root, path)? {
            Seen::Members(mut one) => Ok(one.pop()),
            _ => Ok(None),
        }
    }

    fn against_manifest(
        &mut self,
        name: &Arc<str>,
        names: &[Companion],
        members: &[FileStamp],
        fs: &mut dyn Listing,
    ) -> io::Result<Verdict> {
        let mut found = None;
        for companion in names {
            let path = PathBuf::from(companion.of(name));
            // Inside the scan's folder listings do not tell; beside it they do, and a stat is saved.
            let listed = companion.suffix.contains('/') || self.tree.contains(&path);
            if listed && let Some(stamp) = self.companion(&path, fs)? {
                found = Some(stamp);
                break;
            }
        }
        let Some(stamp) = found else {
            let hidden = names.iter().any(|n| n.suffix.contains('/'));
            let wanted: Vec<String> = names.iter().map(|n| n.of(name)).collect();
            return Ok(Verdict::Awaits(format!("{} is not there", wanted.join(" or ")), hidden.then_some(RETRY)));
        };
        let shown = stamp.path.display().to_string();
        let text = match fs.read(&self.root.join(&stamp.path), manifest::LIMIT) {
            Ok(text) => text,
            Err(e) => return Ok(Verdict::Lacks(format!("{shown} cannot be read: {e}"))),
        };
        let entries = match manifest::parse(&text, ManifestKind::of(&shown)) {
            Ok(entries) => entries,
            Err(e) => return Ok(Verdict::Lacks(format!("{shown}: {e}"))),
        };
        let base = stamp.path.parent().unwrap_or(Path::new(""));
        let scan_path = Path::new(name.as_ref());
        let mut files = Vec::new();
        for entry in entries {
            let path = base.join(&entry.path);
            let belongs = match self.watch.unit {
                Unit::File => path == scan_path,
                Unit::Folder => path.starts_with(scan_path),
                Unit::Group { .. } => self.watch.pattern.group(&path).as_deref() == Some(name.as_bytes()),
            };
            let Some(text) = path.to_str().filter(|_| belongs) else { continue };
            let Some(member) = members.iter().find(|m| m.path == path) else {
                return Ok(Verdict::Lacks(format!("{text} is in {shown} but not there")));
            };
            if let Some(bytes) = entry.bytes.filter(|&b| b != member.size) {
                return Ok(Verdict::Lacks(format!("{text} has {} of {bytes} bytes", member.size)));
            }
            files.push(ManifestEntry { path: text.to_owned(), ..entry });
        }
        let unlisted =
            members.iter().find(|m| m.path != stamp.path && !files.iter().any(|f| Path::new(&f.path) == m.path));
        if let Some(member) = unlisted {
            return Ok(Verdict::Lacks(format!("{} is not in {shown}", member.path.display())));
        }
        Ok(Verdict::Proven(Proof::Manifest { files, manifest: stamp }))
    }

    /// Settling: look again when it could be settled, and before that as often as a change should be seen.
    fn wait(&mut self, name: &Arc<str>, at: Duration, now: Now) {
        self.set_phase(name, Phase::Settling, now);
        let often = self.pace() * self.crowding();
        self.schedule(name, at.min(now.mono + often).max(now.mono + Duration::from_millis(10)));
    }

    fn pace(&self) -> Duration {
        (self.watch.complete.rule.quiet() / 8).clamp(Duration::from_millis(50), Duration::from_secs(10))
    }

    fn note_lack(&mut self, name: &Arc<str>, reason: String, now: Now) -> Duration {
        let Some(scan) = self.scans.get_mut(name) else { return Duration::ZERO };
        let lack = scan.lacks.get_or_insert(Lack { since: now.mono, reason: String::new(), tries: 0 });
        lack.reason = reason;
        now.mono.saturating_sub(lack.since)
    }

    /// Something is missing that may still come.
    fn lack(&mut self, name: &Arc<str>, reason: String, now: Now) {
        let waited = self.note_lack(name, reason.clone(), now);
        let timeout = self.watch.complete.timeout;
        let Some(scan) = self.scans.get(name) else { return };
        if waited >= timeout && !self.once {
            let own = scan.own;
            let waited = humantime::format_duration(timeout);
            let reason = format!("{reason}, and nothing changed for {waited}; complete it, or remove it");
            return self.reject(name, own, reason, now);
        }
        let quiet = now.mono >= scan.unchanged_since + self.watch.complete.rule.quiet();
        self.set_phase(name, if quiet { Phase::Awaiting } else { Phase::Settling }, now);
        self.schedule(name, now.mono + (self.pace() * self.crowding()).min(timeout));
    }

    fn wait_role(&mut self, name: &Arc<str>, reason: String, missing: bool, own: InputVersion, now: Now) {
        let waited = self.note_lack(name, reason.clone(), now);
        if missing && (self.once || waited >= self.watch.complete.timeout) {
            let reason = format!("{reason}; put it there, then release the scan");
            return self.reject(name, Some(own), reason, now);
        }
        self.set_phase(name, Phase::WaitingRole, now);
        self.schedule(name, now.mono + self.pace() * self.crowding());
    }

    /// The probe said "not yet", or the scan changed.
    pub(super) fn settle_again(&mut self, name: &str, said: Option<String>, now: Now) {
        let name: Arc<str> = name.into();
        let timeout = self.watch.complete.timeout;
        let Some(scan) = self.scans.get_mut(&name) else { return };
        if let Some(reason) = said {
            let refused = scan.refused.get_or_insert(Lack { since: now.mono, reason: String::new(), tries: 0 });
            let first = match self.watch.complete.rule {
                Rule::Settled { quiet } => quiet,
                _ => BACK_OFF_FIRST,
            };
            let pause = first.saturating_mul(1 << refused.tries.min(10)).min(BACK_OFF_MAX).min(timeout / 4);
            refused.reason.clone_from(&reason);
            refused.tries += 1;
            scan.not_before = now.mono + pause;
            if now.mono.saturating_sub(refused.since) >= timeout {
                let own = if let Phase::Reported(version) = scan.phase { Some(version) } else { scan.own };
                let waited = humantime::format_duration(timeout);
                let reason = format!("{reason}; it did not change for {waited}: transfer it again");
                scan.refused = None;
                return self.reject(&name, own, reason, now);
            }
        } else {
            scan.unchanged_since = now.mono;
        }
        self.set_phase(&name, Phase::Settling, now);
        self.schedule(&name, now.mono);
    }

    pub(super) fn done(&mut self, name: &str, version: InputVersion, now: Now) {
        let name: Arc<str> = name.into();
        let own = match self.scans.get(&name) {
            Some(scan) if scan.phase == Phase::Reported(version) => scan.own,
            _ => None,
        };
        self.finish(&name, version, own);
        if own.is_some() {
            self.set_phase(&name, Phase::Known, now);
        } else if self.scans.get(&name).is_some_and(|s| !matches!(s.phase, Phase::Reported(_))) {
            // Another pilot was first: what is settling here may be just that.
            self.schedule(&name, now.mono);
        }
    }

    pub(super) fn release(&mut self, name: &str, now: Now) {
        let name: Arc<str> = name.into();
        self.forget(&name);
        if let Some(scan) = self.scans.get_mut(&name) {
            (scan.own, scan.refused, scan.lacks) = (None, None, None);
            self.set_phase(&name, Phase::Settling, now);
            self.schedule(&name, now.mono);
        }
    }

    /// The sweep's look at a finished scan; what it cost in stats, `None` when it is no longer finished.
    pub(super) fn look_again(&mut self, name: &Arc<str>, now: Now, fs: &mut dyn Listing) -> Option<f64> {
        let scan = self.scans.get_mut(name)?;
        if scan.phase != Phase::Known {
            scan.swept = false;
            return None;
        }
        let before = scan.own;
        // A filesystem that fails says nothing about the scan.
        let Ok(seen) = self.observe(name, fs) else { return Some(1.0) };
        let (Seen::Members(stamps) | Seen::Refused(_, stamps) | Seen::Unfinished(_, stamps)) = seen else {
            self.unsweep(name, now);
            return None;
        };
        let own = Scan { members: stamps, ..Scan::default() };
        if before != Some(own.version()) {
            self.unsweep(name, now);
            return None;
        }
        Some(own.members.len() as f64)
    }

    fn unsweep(&mut self, name: &Arc<str>, now: Now) {
        if let Some(scan) = self.scans.get_mut(name) {
            scan.swept = false;
        }
        self.schedule(name, now.mono);
    }
}
