//! One stream's arrivals: which scans there are and in which phase each is.
//!
//! Contract
//! - Pure but for the [`Listing`] it is handed: time comes in as [`Now`], events go out as a list.
//! - A scan is looked at only when it is due: while it settles, when its folder's listing changed, when a
//!   command names it, and once in a while by the sweep. What is known costs nothing in between.
//! - Every scan is reported once a version. [`super::step`] decides; this file keeps the books.

use super::events::{ArrivalEvent, Known, StreamWatch};
use super::listing::{Kind, Listing};
use super::names;
use super::roles::Roles;
use super::scan::{FileStamp, InputVersion};
use super::tree::{Change, Tree};
use crate::campaign::{Rule, Unit};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
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
/// Finished scans are looked at again: within their first hour every [`RECENT_EVERY`], later in turn.
const RECENT: Duration = Duration::from_secs(3600);
const RECENT_EVERY: f64 = 60.0;
const RECENT_RATE: f64 = 50.0;
const SWEEP_EVERY: f64 = 600.0;
const SWEEP_RATE: f64 = 100.0;

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

fn is_folder(fs: &mut dyn Listing, path: &Path) -> bool {
    let target = fs.resolve(path);
    target.and_then(|target| fs.stat(&target)).is_ok_and(|meta| meta.kind == Kind::Folder)
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
    /// What is missing, as far as listings tell.
    pub(super) lacks: Option<Lack>,
    pub(super) finished_at: Duration,
    /// In one of the rings of the sweep.
    pub(super) swept: bool,
    due: Option<Duration>,
}

struct Finished {
    version: InputVersion,
    own: Option<InputVersion>,
}

#[derive(Default, Clone, PartialEq)]
struct Census {
    settling: usize,
    waiting_role: usize,
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
    recent: VecDeque<Arc<str>>,
    sweep: VecDeque<Arc<str>>,
    credit: (f64, f64),
    swept_at: Duration,
    /// The root, resolved; empty while it is not there.
    pub(super) root: PathBuf,
    excluded: Vec<PathBuf>,
    trouble: Option<String>,
    census: (Census, Option<Census>, Duration),
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
            finished.entry(k.name.into()).or_default().push(Finished { version: k.version, own: k.own });
        }
        Self {
            roles: Roles::new(watch.roles.clone(), quiet),
            once,
            tree: Tree::new(base),
            scans: HashMap::new(),
            queue: BTreeSet::new(),
            finished,
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
        let result = fs.resolve(&self.watch.root).and_then(|root| {
            if root != self.root {
                self.excluded =
                    self.watch.excluded.iter().map(|p| fs.resolve(p).unwrap_or_else(|_| p.clone())).collect();
                self.root = root;
            }
            Ok(())
        });
        let result = match result {
            Ok(()) => self.tree.poll(now.mono, &self.root, fs),
            // Polling a root that is not there lets the tree set its own back-off.
            Err(e) => self.tree.poll(now.mono, &self.watch.root, fs).and(Err(e)),
        };
        let stream = self.watch.name.clone();
        match result {
            Ok(changes) => {
                if self.trouble.take().is_some() {
                    self.events.push(ArrivalEvent::Recovered { stream });
                }
                for change in changes {
                    self.classify(change, now, fs);
                }
            }
            Err(e) => {
                let message = format!("{}: {e}; scans there are not seen until it is back", self.watch.root.display());
                if self.trouble.as_ref() != Some(&message) {
                    self.trouble = Some(message.clone());
                    self.events.push(ArrivalEvent::Trouble { stream, message });
                }
            }
        }
    }

    fn classify(&mut self, change: Change, now: Now, fs: &mut dyn Listing) {
        let (path, mut kind, gone) = match change {
            Change::Appeared(path, kind) => (path, kind, false),
            Change::Gone(path, kind) => (path, kind, true),
        };
        if kind == Kind::Unknown && !gone {
            kind = fs.stat(&self.root.join(&path)).map_or(Kind::Unknown, |m| m.kind);
        }
        if self.is_companion(&path, now) || self.excluded.contains(&self.root.join(&path)) {
            return;
        }
        let temporary = matches!(&self.watch.complete.rule, Rule::Renamed { temporary }
            if path.file_name().is_some_and(|name| temporary.matches(name)));
        if temporary {
            return;
        }
        if kind == Kind::Link && !gone && is_folder(fs, &self.root.join(&path)) {
            self.folder_link(&path, now, fs);
            return;
        }
        if gone && kind != Kind::Folder {
            self.roles.drop_file(&path);
        } else if kind != Kind::Folder && self.roles.takes(&path) {
            // Those who waited for it look again.
            let waiting: Vec<_> =
                self.scans.iter().filter(|(_, s)| s.phase == Phase::WaitingRole).map(|(n, _)| n.clone()).collect();
            waiting.iter().for_each(|name| self.schedule(name, now.mono));
            return;
        }
        let unit = match (self.watch.unit, kind) {
            (Unit::Folder, Kind::Folder) if self.watch.pattern.matches(&path) => {
                Some(path.as_os_str().as_bytes().to_vec())
            }
            (_, Kind::Folder) => {
                if !gone {
                    self.enter(path, now);
                }
                return;
            }
            (Unit::Folder, _) => None,
            (Unit::File, _) => self.watch.pattern.matches(&path).then(|| path.as_os_str().as_bytes().to_vec()),
            (Unit::Group { .. }, _) => self.watch.pattern.group(&path),
        };
        let Some(name) = unit else { return };
        let hostile = names::refusal(path.as_os_str().as_bytes())
            .map(|r| format!("{}: {r}", names::display(path.as_os_str().as_bytes())));
        self.touch(&name, path, hostile, gone, now);
    }

    /// A marker or manifest: wakes its scan.
    fn is_companion(&mut self, path: &Path, now: Now) -> bool {
        let Some(name) = path.to_str() else { return false };
        let (folder, file) = name.rsplit_once('/').map_or(("", name), |(folder, file)| (folder, file));
        let scan = match &self.watch.complete.rule {
            Rule::Marker { suffix } => file.strip_suffix(suffix.as_str()).filter(|s| !s.is_empty()),
            Rule::Manifest { names } => names.iter().find_map(|n| n.scan_of(file)),
            _ => None,
        };
        let Some(scan) = scan else { return false };
        let scan = if folder.is_empty() { scan.to_owned() } else { format!("{folder}/{scan}") };
        if self.scans.get(scan.as_str()).is_some_and(|s| !matches!(s.phase, Phase::Reported(_))) {
            self.schedule(&Arc::from(scan), now.mono);
        }
        true
    }

    fn enter(&mut self, path: PathBuf, now: Now) {
        let wanted = self.watch.pattern.may_descend(&path) || self.roles.may_descend(&path);
        if !wanted || path.components().count() > super::observe::DEPTH_MAX {
            return;
        }
        match names::refusal(path.as_os_str().as_bytes()) {
            Some(reason) => {
                let name = path.as_os_str().as_bytes().to_vec();
                let reason = format!("the folder {} is not entered: {reason}", names::display(&name));
                self.touch(&name, path, Some(reason), false, now);
            }
            None => self.tree.watch(path),
        }
    }

    /// A link to a folder: one inside the root is reached by its own name, one outside is refused.
    fn folder_link(&mut self, path: &Path, now: Now, fs: &mut dyn Listing) {
        let inside = fs.resolve(&self.root.join(path)).is_ok_and(|target| target.starts_with(&self.root));
        if !inside && (self.watch.pattern.matches(path) || self.watch.pattern.may_descend(path)) {
            let name = path.as_os_str().as_bytes();
            let shown = names::display(name);
            let reason = format!("{shown} is a link to a folder outside the watched one; watch that folder itself");
            self.touch(name, path.to_owned(), Some(reason), false, now);
        }
    }

    /// A file of a scan appeared or went.
    fn touch(&mut self, name: &[u8], path: PathBuf, hostile: Option<String>, gone: bool, now: Now) {
        let name: Arc<str> = match (&hostile, std::str::from_utf8(name)) {
            (None, Ok(name)) => name.into(),
            _ => names::display(name).into(),
        };
        if gone {
            let Some(scan) = self.scans.get_mut(&name) else { return };
            scan.parts.remove(&path);
        } else {
            let scan = self.scans.entry(name.clone()).or_insert_with(|| {
                self.census.0.settling += 1;
                Scanning {
                    parts: BTreeSet::new(),
                    hostile: None,
                    phase: Phase::Settling,
                    own: None,
                    unchanged_since: now.mono,
                    not_before: Duration::ZERO,
                    refused: None,
                    lacks: None,
                    finished_at: Duration::ZERO,
                    swept: false,
                    due: None,
                }
            });
            scan.parts.insert(path);
            if hostile.is_some() {
                scan.hostile = hostile;
            }
        }
        self.schedule(&name, now.mono);
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

    pub(super) fn finish(&mut self, name: &Arc<str>, version: InputVersion, own: Option<InputVersion>) {
        let all = self.finished.entry(name.clone()).or_default();
        if !all.iter().any(|f| f.version == version && f.own == own) {
            all.push(Finished { version, own });
        }
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
        let stream = self.watch.name.clone();
        if let Some(version) = version {
            if self.is_finished(name, None, Some(version)) {
                return;
            }
            self.finish(name, version, None);
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

    /// Looks at finished scans again: a later rewrite is a new version.
    fn sweep(&mut self, now: Now, fs: &mut dyn Listing) {
        let elapsed = now.mono.saturating_sub(self.swept_at).as_secs_f64().min(5.0);
        self.swept_at = now.mono;
        let rate = |n: usize, every: f64, max: f64| (n as f64 / every).min(max);
        self.credit.0 =
            (self.credit.0 + elapsed * rate(self.recent.len(), RECENT_EVERY, RECENT_RATE)).min(RECENT_RATE * 5.0);
        self.credit.1 =
            (self.credit.1 + elapsed * rate(self.sweep.len(), SWEEP_EVERY, SWEEP_RATE)).min(SWEEP_RATE * 5.0);
        if self.trouble.is_some() {
            return;
        }
        while self.credit.0 >= 1.0 {
            let Some(name) = self.recent.pop_front() else { break };
            if let Some(cost) = self.look_again(&name, now, fs) {
                self.credit.0 -= cost;
                let recent = self.scans.get(&name).is_some_and(|s| now.mono < s.finished_at + RECENT);
                if recent { self.recent.push_back(name) } else { self.sweep.push_back(name) }
            }
        }
        while self.credit.1 >= 1.0 {
            let Some(name) = self.sweep.pop_front() else { break };
            if let Some(cost) = self.look_again(&name, now, fs) {
                self.credit.1 -= cost;
                self.sweep.push_back(name);
            }
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
