//! One stream's arrivals: which scans there are and in which phase each is.
//!
//! Contract
//! - Pure but for the [`Listing`] it is handed: time comes in as [`Now`], events go out as a list.
//! - A scan is looked at only when it is due: while it settles, when its folder's listing changed, when a
//!   command names it, and once in a while by the sweep. What is known costs nothing in between.
//! - Every scan is reported once a version. [`super::step`] decides; this file keeps the books.

use super::events::{ArrivalEvent, Known, StreamWatch};
use super::listing::Listing;
use super::roles::Roles;
use super::scan::{FileStamp, InputVersion};
use super::tree::Tree;
use crate::campaign::Rule;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The present, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic; begins at [`Now::START`], so that things can be older than the poller.
    pub mono: Duration,
    /// Nanoseconds since the epoch.
    pub wall_ns: i64,
}

impl Now {
    /// Where monotonic time begins.
    pub const START: Duration = Duration::from_secs(30 * 86_400);
}

/// Clocks of the filesystem's servers may differ from ours by this much.
const SKEW: Duration = Duration::from_secs(30);
/// Scans looked at in one poll.
const STEPS: usize = 4_000;
/// Rejections reported a stream; names are untrusted, and so is their number.
const REJECTED_MAX: usize = 10_000;
/// Latest mtime or ctime that is not in the future; 0 when all are.
pub(super) fn last_byte(stamps: &[&FileStamp], now: Now) -> i64 {
    stamps.iter().flat_map(|s| [s.mtime_ns, s.ctime_ns]).filter(|&t| t <= now.wall_ns).max().unwrap_or(0)
}

/// How long files have certainly not changed, by their own times: what was there before we looked need not
/// settle again. Clock skew is taken off, and a time in the future says nothing.
pub(super) fn age(stamps: &[&FileStamp], now: Now) -> Duration {
    let latest = stamps.iter().map(|s| s.mtime_ns.max(s.ctime_ns)).max().unwrap_or(now.wall_ns);
    let age = Duration::from_nanos(u64::try_from(now.wall_ns.saturating_sub(latest)).unwrap_or(0));
    age.saturating_sub(SKEW).min(Now::START)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Settling,
    /// A marker, a manifest or a file of the group is not there; nothing to do until it is.
    Awaiting,
    WaitingRole,
    Reported(InputVersion),
    /// Published, quarantined, rejected or older than `since`.
    Known,
}

/// A refusal or a lack, since when, and how often it was said.
#[derive(Debug, Clone)]
pub(super) struct Lack {
    pub(super) since: Duration,
    pub(super) reason: String,
    pub(super) tries: u32,
}

/// A scan that changed while it was processed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Changed {
    pub(super) times: u32,
    pub(super) last: Duration,
    /// Not reported again before.
    pub(super) until: Duration,
}

pub(super) struct Scanning {
    pub(super) parts: BTreeSet<PathBuf>,
    /// Why its name is refused.
    pub(super) hostile: Option<String>,
    pub(super) phase: Phase,
    /// Version of the files as last seen, companions left out.
    pub(super) own: Option<InputVersion>,
    pub(super) unchanged_since: Duration,
    pub(super) not_before: Duration,
    /// What the probe said.
    pub(super) refused: Option<Lack>,
    /// How often it changed while it was processed, and when last.
    pub(super) changed: Option<Changed>,
    /// What is missing, as far as listings tell.
    pub(super) lacks: Option<Lack>,
    pub(super) finished_at: Duration,
    /// In one of the rings of the sweep.
    pub(super) swept: bool,
    pub(super) due: Option<Duration>,
    /// Linked files that are not what they were for any earlier result, see [`Watcher::relinked`].
    pub(super) relinked: Vec<FileStamp>,
}

struct Finished {
    version: InputVersion,
    own: Option<InputVersion>,
    /// Files that its files linked to, as they were.
    linked: Vec<FileStamp>,
}

#[derive(Default, Clone, PartialEq)]
pub(super) struct Census {
    pub(super) settling: usize,
    pub(super) waiting_role: usize,
    known: usize,
    unreadable: Option<String>,
}

pub(super) struct Watcher {
    pub(super) watch: StreamWatch,
    pub(super) once: bool,
    pub(super) tree: Tree,
    pub(super) roles: Roles,
    pub(super) scans: HashMap<Arc<str>, Scanning>,
    queue: BTreeSet<(Duration, Arc<str>)>,
    finished: HashMap<Arc<str>, Vec<Finished>>,
    /// Asked for by a person and not reported since: neither records nor `since` count for them.
    pub(super) asked: BTreeSet<Arc<str>>,
    pub(super) recent: VecDeque<Arc<str>>,
    pub(super) sweep: VecDeque<Arc<str>>,
    pub(super) credit: (f64, f64),
    pub(super) swept_at: Duration,
    /// The root, resolved; empty while it is not there.
    pub(super) root: PathBuf,
    pub(super) excluded: Vec<PathBuf>,
    pub(super) trouble: Option<String>,
    pub(super) census: (Census, Option<Census>, Duration),
    rejected: usize,
    pub(super) events: Vec<ArrivalEvent>,
}

impl Watcher {
    pub(super) fn new(watch: StreamWatch, known: Vec<Known>, once: bool) -> Self {
        let quiet = watch.complete.rule.quiet();
        let base = match watch.complete.rule {
            Rule::Settled { quiet } => (quiet / 8).clamp(Duration::from_millis(100), Duration::from_secs(1)),
            _ => Duration::from_millis(500),
        };
        let mut finished: HashMap<Arc<str>, Vec<Finished>> = HashMap::new();
        for k in known {
            let one = Finished { version: k.version, own: k.own, linked: k.linked };
            finished.entry(k.name.into()).or_default().push(one);
        }
        Self {
            roles: Roles::new(watch.roles.clone(), quiet),
            once,
            tree: Tree::new(base),
            scans: HashMap::new(),
            queue: BTreeSet::new(),
            finished,
            asked: BTreeSet::new(),
            recent: VecDeque::new(),
            sweep: VecDeque::new(),
            credit: (0.0, 0.0),
            swept_at: Duration::ZERO,
            root: PathBuf::new(),
            excluded: Vec::new(),
            trouble: None,
            census: Default::default(),
            rejected: 0,
            events: Vec::new(),
            watch,
        }
    }

    pub(super) fn poll(&mut self, now: Now, fs: &mut dyn Listing) {
        self.list(now, fs);
        for _ in 0..STEPS {
            let Some((due, name)) = self.queue.first().cloned() else { break };
            if due > now.mono {
                break;
            }
            self.queue.remove(&(due, name.clone()));
            if let Some(scan) = self.scans.get_mut(&name) {
                scan.due = None;
            }
            self.step(&name, now, fs);
        }
        self.sweep(now, fs);
        self.report_census(now);
    }

    fn list(&mut self, now: Now, fs: &mut dyn Listing) {
        if self.tree.next_due() > now.mono {
            return;
        }
        let result = fs.resolve(&self.watch.root).map(|root| {
            if root != self.root {
                self.excluded =
                    self.watch.excluded.iter().map(|p| fs.resolve(p).unwrap_or_else(|_| p.clone())).collect();
                self.root = root;
            }
        });
        let mut changes = Vec::new();
        let result = result.and_then(|()| self.tree.poll(now.mono, &self.root, fs, &mut changes));
        // Also what a listing delivered before it failed is there, and is told only once.
        for change in changes {
            self.classify(change, now, fs);
        }
        let stream = self.watch.name.clone();
        match result {
            Ok(()) => {
                if self.trouble.take().is_some() {
                    self.events.push(ArrivalEvent::Recovered { stream });
                }
            }
            Err(e) => {
                self.tree.back_off(now.mono);
                let message = format!("{}: {e}; scans there are not seen until it is back", self.watch.root.display());
                if self.trouble.as_ref() != Some(&message) {
                    self.trouble = Some(message.clone());
                    self.events.push(ArrivalEvent::Trouble { stream, message });
                }
            }
        }
    }

    /// Something was published where this looks.
    pub(super) fn list_soon(&mut self) {
        self.tree.relist();
    }

    pub(super) fn schedule(&mut self, name: &Arc<str>, at: Duration) {
        let Some(scan) = self.scans.get_mut(name) else { return };
        if let Some(due) = scan.due.take() {
            self.queue.remove(&(due, name.clone()));
        }
        scan.due = Some(at);
        self.queue.insert((at, name.clone()));
    }

    pub(super) fn set_phase(&mut self, name: &Arc<str>, phase: Phase, now: Now) {
        let Some(scan) = self.scans.get_mut(name) else { return };
        let before = std::mem::replace(&mut scan.phase, phase);
        *self.census.0.counter(before) -= 1;
        *self.census.0.counter(phase) += 1;
        if phase == Phase::Known && before != Phase::Known {
            scan.finished_at = now.mono;
            if !std::mem::replace(&mut scan.swept, true) {
                // What was there before we looked is old; what we saw arriving may still be rewritten.
                let fresh = matches!(before, Phase::Reported(_));
                if fresh { self.recent.push_back(name.clone()) } else { self.sweep.push_back(name.clone()) }
            }
        }
    }

    /// Puts a finished scan back into the sweep, if it left it.
    pub(super) fn keep_sweeping(&mut self, name: &Arc<str>) {
        if let Some(scan) = self.scans.get_mut(name)
            && !std::mem::replace(&mut scan.swept, true)
        {
            self.sweep.push_back(name.clone());
        }
    }

    pub(super) fn remove(&mut self, name: &Arc<str>) {
        if let Some(scan) = self.scans.remove(name) {
            *self.census.0.counter(scan.phase) -= 1;
            if let Some(due) = scan.due {
                self.queue.remove(&(due, name.clone()));
            }
        }
    }

    pub(super) fn finish(
        &mut self,
        name: &Arc<str>,
        version: InputVersion,
        own: Option<InputVersion>,
        linked: Vec<FileStamp>,
    ) {
        let all = self.finished.entry(name.clone()).or_default();
        if !all.iter().any(|f| f.version == version && f.own == own && f.linked == linked) {
            all.push(Finished { version, own, linked });
        }
    }

    /// Files that a look at the links of a finished scan costs.
    pub(super) fn linked_files(&self, name: &str) -> usize {
        self.finished.get(name).map_or(0, |all| all.iter().map(|f| f.linked.len()).sum())
    }

    /// Files that results of these very files of a scan were read from through links, as they are now; none when some
    /// result had them as they are. One that is gone changes nothing: it cannot be read now.
    pub(super) fn relinked(&self, name: &str, own: InputVersion, fs: &mut dyn Listing) -> io::Result<Vec<FileStamp>> {
        let Some(all) = self.finished.get(name) else { return Ok(Vec::new()) };
        let mut seen = Vec::new();
        for one in all.iter().filter(|f| f.own == Some(own) && !f.linked.is_empty()) {
            seen.clear();
            for file in &one.linked {
                match fs.resolve(&file.path).and_then(|real| fs.stat(&real)) {
                    Ok(meta) => seen.push(meta.stamp(file.path.clone())),
                    Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                        return Ok(Vec::new());
                    }
                    Err(e) => return Err(e),
                }
            }
            if seen == one.linked {
                return Ok(Vec::new());
            }
        }
        Ok(seen)
    }

    pub(super) fn is_finished(&self, name: &str, own: Option<InputVersion>, version: Option<InputVersion>) -> bool {
        let own = own.filter(|_| !self.roles.in_scan());
        let matches =
            |f: &Finished| Some(f.version) == version || (own.is_some() && (f.own == own || Some(f.version) == own));
        self.finished.get(name).is_some_and(|all| all.iter().any(matches))
    }

    /// True when records speak of that name.
    pub(super) fn is_on_record(&self, name: &str) -> bool {
        self.finished.contains_key(name)
    }

    pub(super) fn forget(&mut self, name: &Arc<str>) {
        self.finished.remove(name);
    }

    pub(super) fn reject(&mut self, name: &Arc<str>, version: Option<InputVersion>, reason: String, now: Now) {
        self.set_phase(name, Phase::Known, now);
        if let Some(scan) = self.scans.get_mut(name) {
            scan.changed = None;
        }
        let stream = self.watch.name.clone();
        if let Some(version) = version {
            if self.is_finished(name, None, Some(version)) {
                return;
            }
            self.finish(name, version, None, Vec::new());
        }
        self.rejected += 1;
        if self.rejected < REJECTED_MAX {
            self.events.push(ArrivalEvent::Rejected { stream, name: name.to_string(), version, reason });
        } else if self.rejected == REJECTED_MAX {
            let message =
                format!("more than {REJECTED_MAX} names were rejected; further ones are ignored: clean the folder up");
            self.events.push(ArrivalEvent::Trouble { stream, message });
        }
    }

    fn report_census(&mut self, now: Now) {
        let (current, said, at) = &mut self.census;
        if said.is_some() && now.mono < *at + Duration::from_secs(1) {
            return;
        }
        current.unreadable = match self.tree.unreadable() {
            None if self.tree.is_full() => {
                Some("too many names; move processed scans away, or narrow the pattern".into())
            }
            other => other,
        };
        *at = now.mono;
        if said.as_ref() != Some(current) {
            let Census { settling, waiting_role, known, unreadable } = current.clone();
            *said = Some(current.clone());
            let stream = self.watch.name.clone();
            self.events.push(ArrivalEvent::Census { stream, settling, waiting_role, known, unreadable });
        }
    }

    /// When to poll again.
    pub(super) fn next_due(&self) -> Duration {
        self.queue.first().map_or(Duration::MAX, |(due, _)| *due).min(self.tree.next_due())
    }

    /// How much longer between looks when very many scans settle.
    pub(super) fn crowding(&self) -> u32 {
        1 + u32::try_from(self.census.0.settling / 2000).unwrap_or(u32::MAX)
    }

    /// Once mode: nothing is left that could become complete by itself; what is left as it is.
    pub(super) fn idle(&self) -> Option<Vec<(String, String, String)>> {
        let busy = |s: &Scanning| matches!(s.phase, Phase::Settling | Phase::WaitingRole);
        if (!self.tree.is_listed() && self.trouble.is_none()) || self.census.0.waiting_role > 0 {
            return None;
        }
        if self.census.0.settling > 0 && self.scans.values().any(busy) {
            return None;
        }
        let left = self.scans.iter().filter(|(_, s)| s.phase == Phase::Awaiting);
        let lack = |s: &Scanning| s.lacks.as_ref().map_or_else(String::new, |l| l.reason.clone());
        let mut left: Vec<_> = left.map(|(name, s)| (self.watch.name.clone(), name.to_string(), lack(s))).collect();
        left.sort();
        Some(left)
    }
}

impl Census {
    fn counter(&mut self, phase: Phase) -> &mut usize {
        match phase {
            Phase::Settling | Phase::Awaiting => &mut self.settling,
            Phase::WaitingRole => &mut self.waiting_role,
            Phase::Reported(_) | Phase::Known => &mut self.known,
        }
    }
}
