//! One look at one scan: is it whole, is it proven, are its companions there?
//!
//! Contract
//! - Any change of any file (size, mtime, ctime, inode) starts the quiet time again, under every rule but
//!   `renamed`, where the name itself is the proof.
//! - A marker older than the scan's last change proves an earlier version: then the scan must also be
//!   unchanged for the quiet time.
//! - A manifest must list every file of the scan with its right size; hashes are an executor's.
//! - A scan that changes while it is processed is reported again after a pause that doubles, and rejected at the fifth
//!   change; whatever it becomes after that is another version, and counts from zero.
//! - What lacks something (a file of the group, a companion, what its manifest lists) is rejected when it
//!   did not change for the timeout; a scan without its marker or manifest waits for ever.

use super::events::{ArrivalEvent, Proof};
use super::judge::Verdict;
use super::listing::Listing;
use super::observe::{self, Seen};
use super::roles::Resolved;
use super::scan::{FileStamp, InputVersion, LINKED, Scan};
use super::watcher::{Changed, Lack, Now, Phase, Watcher, age, last_byte};
use crate::campaign::{Rule, Unit};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Longest pause after a probe said "not yet".
const BACK_OFF_MAX: Duration = Duration::from_secs(300);
const BACK_OFF_FIRST: Duration = Duration::from_secs(5);
/// Changes while it is processed after which a scan is given up.
const MOST_CHANGES: u32 = 5;
/// Changes with at least this between them, and at least the rule's timeout, are not counted together.
const CHANGES_APART: Duration = Duration::from_secs(1800);
/// Scans asked for that are not there yet.
const ASKED_MAX: usize = 10_000;
pub(super) const RETRY: Duration = Duration::from_secs(10);

/// What to do about a scan after a look at it.
enum Next {
    /// Published, quarantined or not wanted.
    Known,
    Wait(Duration),
    Await(String, Option<Duration>),
    Lack(String),
    /// A companion is not there (true) or still changing.
    WaitRole(String, bool),
    Reject(String),
    Complete(BTreeMap<String, Vec<FileStamp>>, Proof),
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
                let Ok(relinked) = self.relinked(name, own, fs) else {
                    return self.schedule(name, now.mono + RETRY);
                };
                let changed = self.note_relinked(name, relinked, now) || changed;
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

    pub(super) fn observe(&self, name: &Arc<str>, fs: &mut dyn Listing) -> io::Result<Seen> {
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

    /// The same for linked files; they settle as the scan's own do.
    fn note_relinked(&mut self, name: &Arc<str>, stamps: Vec<FileStamp>, now: Now) -> bool {
        let Some(scan) = self.scans.get_mut(name) else { return false };
        if scan.relinked == stamps {
            return false;
        }
        if !stamps.is_empty() {
            let refs: Vec<&FileStamp> = stamps.iter().collect();
            let first = scan.relinked.is_empty();
            let still = if first { now.mono.saturating_sub(age(&refs, now)) } else { now.mono };
            scan.unchanged_since = scan.unchanged_since.max(still);
            scan.not_before = Duration::ZERO;
            scan.refused = None;
        }
        scan.relinked = stamps;
        true
    }

    fn consider(
        &mut self,
        name: &Arc<str>,
        mut members: Vec<FileStamp>,
        own: InputVersion,
        now: Now,
        fs: &mut dyn Listing,
    ) -> io::Result<()> {
        let relinked = self.scans.get(name).map_or(Vec::new(), |s| s.relinked.clone());
        let mut last_ns = last_byte(&members.iter().chain(&relinked).collect::<Vec<_>>(), now);
        if self.watch.from.is_some() {
            // A bundle was there, whole, from its rename on, which only the folder's own change time tells.
            let bundle = name.split('/').next().unwrap_or(name);
            let renamed = fs.stat(&self.root.join(bundle)).map_or(0, |m| m.ctime_ns);
            if renamed <= now.wall_ns {
                last_ns = last_ns.max(renamed);
            }
        }
        match self.decide(name, &mut members, own, last_ns, now, fs)? {
            Next::Known => self.set_phase(name, Phase::Known, now),
            Next::Wait(until) => self.wait(name, until, now),
            Next::Await(reason, again) => {
                self.note_lack(name, reason, now);
                self.set_phase(name, Phase::Awaiting, now);
                if let Some(again) = again {
                    self.schedule(name, now.mono + again);
                }
            }
            Next::Lack(reason) => self.lack(name, reason, now),
            Next::WaitRole(reason, missing) => self.wait_role(name, reason, missing, own, now),
            Next::Reject(reason) => self.reject(name, Some(own), reason, now),
            Next::Complete(roles, proof) => self.complete(name, members, roles, proof, last_ns, now),
        }
        Ok(())
    }

    /// Leaves in `members` what remains of them once some serve in roles.
    fn decide(
        &mut self,
        name: &Arc<str>,
        members: &mut Vec<FileStamp>,
        own: InputVersion,
        last_ns: i64,
        now: Now,
        fs: &mut dyn Listing,
    ) -> io::Result<Next> {
        let since = self.watch.since.and_then(|s| s.duration_since(SystemTime::UNIX_EPOCH).ok());
        let unwanted = since.is_some_and(|since| i128::from(last_ns) < since.as_nanos() as i128);
        let asked = self.asked.contains(name);
        let Some(scan) = self.scans.get(name) else { return Ok(Next::Known) };
        let relinked = scan.relinked.clone();
        if !asked && (unwanted || (relinked.is_empty() && self.is_finished(name, Some(own), None))) {
            return Ok(Next::Known);
        }
        let settled_at = scan.unchanged_since + self.watch.complete.rule.quiet();
        let changed = scan.changed.filter(|c| c.times >= MOST_CHANGES).map(|c| c.times);
        let not_before = scan.not_before.max(scan.changed.map_or(Duration::ZERO, |c| c.until));
        // A record without the scan's own version is compared with companions, as far as they are there.
        if !asked && relinked.is_empty() && self.is_on_record(name) {
            let mut rest = members.clone();
            if let Resolved::Files(roles) = self.roles.resolve(fs, &self.root, name, &mut rest, now)?
                && self.is_finished(name, None, Some(Scan { members: rest, roles, ..Scan::default() }.version()))
            {
                return Ok(Next::Known);
            }
        }
        if let Unit::Group { count } = self.watch.unit {
            let (have, want) = (members.len(), count as usize);
            if have > want {
                let text = format!("{have} files share the key of {name}, which should have {want}");
                return Ok(Next::Reject(format!("{text}; move the others away")));
            }
            if have < want {
                return Ok(Next::Lack(format!("{have} of {want} files are there")));
            }
        }
        let proof = match self.judge(name, members, settled_at, now, fs)? {
            Verdict::Proven(_) if now.mono < not_before => return Ok(Next::Wait(not_before)),
            Verdict::Proven(proof) => proof,
            Verdict::At(at) => return Ok(Next::Wait(at.max(not_before))),
            Verdict::Awaits(reason, again) => return Ok(Next::Await(reason, again)),
            Verdict::Lacks(reason) => return Ok(Next::Lack(reason)),
        };
        let roles = match self.roles.resolve(fs, &self.root, name, members, now)? {
            Resolved::Files(mut roles) => {
                if !relinked.is_empty() {
                    roles.insert(LINKED.to_owned(), relinked);
                    let version = Scan { members: members.clone(), roles: roles.clone(), ..Scan::default() }.version();
                    if !asked && self.is_finished(name, None, Some(version)) {
                        return Ok(Next::Known);
                    }
                }
                roles
            }
            Resolved::Settling(reason) => return Ok(Next::WaitRole(reason, false)),
            Resolved::Missing(reason) => return Ok(Next::WaitRole(reason, true)),
            Resolved::Refused(reason) => return Ok(Next::Reject(reason)),
        };
        if members.is_empty() {
            return Ok(Next::Reject("every file of it serves in a role; narrow the roles".into()));
        }
        if !observe::confined(fs, &self.root, members)? {
            return Ok(Next::Reject(format!("{name} is reached through a link; put the folder itself there")));
        }
        if let Some(times) = changed {
            return Ok(Next::Reject(format!(
                "it changed {times} times while it was processed, so that no result is of one state of it; let nothing \
                 write to it any more once it is complete, the program that processes it included, then release it"
            )));
        }
        Ok(Next::Complete(roles, proof))
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
        let quiet_ms = match self.watch.complete.rule {
            Rule::Settled { quiet } => u64::try_from(quiet.as_millis()).unwrap_or(u64::MAX),
            _ => 0,
        };
        let (name_text, linked) = (name.to_string(), Vec::new());
        let scan = Scan { stream, name: name_text, root, members, roles, last_byte_ms, complete_ms, linked, quiet_ms };
        if let Some(s) = self.scans.get_mut(name) {
            s.lacks = None;
        }
        self.asked.remove(name);
        self.set_phase(name, Phase::Reported(scan.version()), now);
        self.events.push(ArrivalEvent::Complete { scan, proof });
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
        // A folder found just now may hold it: without a whole listing nothing is missing yet.
        if missing && ((self.once && self.tree.is_listed()) || waited >= self.watch.complete.timeout) {
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
            // Changes far apart are rewrites, each a version of its own.
            let before = scan.changed.filter(|c| now.mono.saturating_sub(c.last) < timeout.max(CHANGES_APART));
            let times = before.map_or(0, |c| c.times) + 1;
            // A single change is the common case, and is not held up.
            let pause = if times < 2 { Duration::ZERO } else { BACK_OFF_FIRST * (1 << (times - 2).min(6)) };
            scan.changed = Some(Changed { times, last: now.mono, until: now.mono + pause });
        }
        self.set_phase(&name, Phase::Settling, now);
        self.schedule(&name, now.mono);
    }

    pub(super) fn done(&mut self, name: &str, version: InputVersion, linked: Vec<FileStamp>, now: Now) {
        let name: Arc<str> = name.into();
        let own = match self.scans.get(&name) {
            Some(scan) if scan.phase == Phase::Reported(version) => scan.own,
            _ => None,
        };
        self.finish(&name, version, own, linked);
        if own.is_some() {
            if let Some(scan) = self.scans.get_mut(&name) {
                scan.changed = None;
            }
            self.set_phase(&name, Phase::Known, now);
        } else if self.scans.get(&name).is_some_and(|s| !matches!(s.phase, Phase::Reported(_))) {
            // Another pilot was first: what is settling here may be just that.
            self.schedule(&name, now.mono);
        }
    }

    /// Reports a scan once more, as soon as it is there and complete.
    pub(super) fn again(&mut self, name: &str, now: Now) {
        // Names come from requests: a bound, so that a flood of them costs no more than memory for these.
        if self.asked.len() < ASKED_MAX {
            self.asked.insert(name.into());
        }
        self.release(name, now);
    }

    pub(super) fn release(&mut self, name: &str, now: Now) {
        let name: Arc<str> = name.into();
        self.forget(&name);
        if let Some(scan) = self.scans.get_mut(&name) {
            (scan.own, scan.refused, scan.lacks, scan.changed) = (None, None, None, None);
            self.set_phase(&name, Phase::Settling, now);
            self.schedule(&name, now.mono);
        }
    }
}
