//! Which names are in which folders, kept up to date with as few metadata operations as possible.
//!
//! Contract
//! - A folder is listed when its mtime or ctime changed, once more [`CONFIRM`] later (a second change
//!   within the clock's tick leaves no trace), and every [`FULL`] anyway. In between it costs one stat.
//! - A listing costs one hash look-up a name: names that are known are neither stat'ed nor matched again.
//! - The interval between two listings of a folder grows with its size, so that a flood of arrivals in a
//!   large folder costs no more than a few percent of a core.
//! - Folders that changed lately, and all of a small tree, are looked at every `base`; the others in turn.
//! - A name whose inode or kind changed is reported as replaced. Hidden names do not exist.
//! - When the root cannot be listed, nothing is forgotten.

use super::listing::{Kind, Listing, Meta};
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CONFIRM: Duration = Duration::from_secs(2);
const FULL: Duration = Duration::from_secs(300);
/// A folder counts as active for this long after a change.
const ACTIVE: Duration = Duration::from_secs(600);
/// Listing takes about half a microsecond a name: at most 2 % of a core.
const SPACING_PER_NAME: Duration = Duration::from_micros(25);
/// One stat of an old folder every so often, over the whole tree.
const COLD_PER_FOLDER: Duration = Duration::from_millis(5);
const COLD_MAX: Duration = Duration::from_secs(300);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// More names than this below one root are not kept.
const NAMES_MAX: usize = 4_000_000;
/// Folders looked at in one go.
const BATCH: usize = 256;

/// What happened to a name; paths are relative to the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// New, or another file under an old name.
    Appeared(PathBuf, Kind),
    Gone(PathBuf, Kind),
}

struct Name {
    inode: u64,
    kind: Kind,
    generation: u32,
}

#[derive(Default)]
struct Folder {
    /// mtime, ctime and inode at the last listing.
    stamp: Option<(i64, i64, u64)>,
    names: HashMap<Box<[u8]>, Name>,
    generation: u32,
    listed_at: Duration,
    changed_at: Duration,
    confirm: Option<Duration>,
    retry: Duration,
    trouble: Option<String>,
    due: Duration,
}

pub(super) struct Tree {
    folders: HashMap<PathBuf, Folder>,
    due: BTreeSet<(Duration, PathBuf)>,
    names: usize,
    base: Duration,
}

impl Tree {
    pub(super) fn new(base: Duration) -> Self {
        let mut tree = Self { folders: HashMap::new(), due: BTreeSet::new(), names: 0, base };
        tree.watch(PathBuf::new());
        tree
    }

    /// Lists that folder too, from now on.
    pub(super) fn watch(&mut self, path: PathBuf) {
        if !self.folders.contains_key(&path) {
            self.due.insert((Duration::ZERO, path.clone()));
            self.folders.insert(path, Folder::default());
        }
    }

    /// True when the folder was listed and had that name.
    pub(super) fn contains(&self, path: &Path) -> bool {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return false };
        self.folders.get(parent).is_some_and(|f| f.names.contains_key(name.as_bytes()))
    }

    /// True when every folder was listed, or cannot be.
    pub(super) fn is_listed(&self) -> bool {
        // A folder that was never listed is due at zero.
        self.due.first().is_none_or(|(due, _)| !due.is_zero())
    }

    /// When the next folder must be looked at.
    pub(super) fn next_due(&self) -> Duration {
        self.due.first().map_or(Duration::MAX, |(due, _)| *due)
    }

    /// A folder that cannot be listed, and why.
    pub(super) fn unreadable(&self) -> Option<String> {
        let troubled = self.folders.iter().filter_map(|(path, f)| f.trouble.as_ref().map(|t| (path, t)));
        troubled.min_by_key(|(path, _)| path.as_path()).map(|(_, trouble)| trouble.clone())
    }

    pub(super) fn is_full(&self) -> bool {
        self.names >= NAMES_MAX
    }

    /// The root is not there: nothing is looked at for a while.
    pub(super) fn back_off(&mut self, now: Duration) {
        let Some(folder) = self.folders.get_mut(Path::new("")) else { return };
        self.due.remove(&(folder.due, PathBuf::new()));
        folder.retry = (folder.retry * 2).clamp(self.base.max(Duration::from_secs(1)), RETRY_MAX);
        folder.due = now + folder.retry;
        // Whatever comes back under the root's name is listed whole.
        folder.stamp = None;
        self.due.insert((folder.due, PathBuf::new()));
    }

    /// The root is listed at the next poll, whatever its times say.
    pub(super) fn relist(&mut self) {
        let Some(folder) = self.folders.get_mut(Path::new("")) else { return };
        self.due.remove(&(folder.due, PathBuf::new()));
        (folder.due, folder.stamp) = (Duration::ZERO, None);
        self.due.insert((Duration::ZERO, PathBuf::new()));
    }

    /// Looks at the folders that are due; adds what it finds to `changes`, also before an error.
    ///
    /// # Errors
    /// When the root cannot be listed.
    pub(super) fn poll(
        &mut self,
        now: Duration,
        root: &Path,
        fs: &mut dyn Listing,
        changes: &mut Vec<Change>,
    ) -> io::Result<()> {
        for _ in 0..BATCH {
            let Some((due, path)) = self.due.first().cloned() else { break };
            if due > now {
                break;
            }
            self.due.remove(&(due, path.clone()));
            let Some(mut folder) = self.folders.remove(&path) else { continue };
            let result = self.look(now, root, &path, &mut folder, fs, changes);
            let mut failed = None;
            match result {
                Ok(()) => {
                    folder.trouble = None;
                    folder.retry = Duration::ZERO;
                }
                Err(e) if !path.as_os_str().is_empty() && is_gone(&e) => {
                    // The parent will list it again if it comes back.
                    self.names -= folder.names.len();
                    self.drop_below(&path, &folder, changes);
                    self.forget_name(&path);
                    continue;
                }
                Err(e) if path.as_os_str().is_empty() => failed = Some(e),
                Err(e) => {
                    folder.retry = (folder.retry * 2).clamp(self.base.max(Duration::from_secs(1)), RETRY_MAX);
                    folder.due = now + folder.retry;
                    folder.trouble = Some(format!("{}: {e}", super::names::display(path.as_os_str().as_bytes())));
                }
            }
            self.due.insert((folder.due, path.clone()));
            self.folders.insert(path, folder);
            if let Some(e) = failed {
                return Err(e);
            }
        }
        Ok(())
    }

    fn look(
        &mut self,
        now: Duration,
        root: &Path,
        path: &Path,
        folder: &mut Folder,
        fs: &mut dyn Listing,
        changes: &mut Vec<Change>,
    ) -> io::Result<()> {
        let full_path = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) };
        let Meta { kind, mtime_ns, ctime_ns, inode, .. } = fs.stat(&full_path)?;
        if kind != Kind::Folder {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let stamp = Some((mtime_ns, ctime_ns, inode));
        let changed = folder.stamp != stamp;
        let confirm = folder.confirm.is_some_and(|at| at <= now);
        let wanted = changed || confirm || now >= folder.listed_at + FULL;
        let spacing = SPACING_PER_NAME * u32::try_from(folder.names.len()).unwrap_or(u32::MAX);
        let allowed = folder.stamp.is_none() || now >= folder.listed_at + spacing;
        if wanted && allowed {
            self.list(&full_path, path, folder, fs, changes)?;
            folder.listed_at = now;
            folder.stamp = stamp;
            folder.confirm = None;
            if changed {
                folder.changed_at = now;
                folder.confirm = Some(now + CONFIRM.max(spacing));
            }
        }
        let small = self.folders.len() < 100 || path.as_os_str().is_empty();
        let interval = if small || now < folder.changed_at + ACTIVE {
            self.base
        } else {
            let count = u32::try_from(self.folders.len()).unwrap_or(u32::MAX);
            (COLD_PER_FOLDER * count).clamp(self.base, COLD_MAX)
        };
        folder.due = now + interval;
        if wanted && !allowed {
            folder.due = folder.listed_at + spacing;
        }
        if let Some(confirm) = folder.confirm {
            folder.due = folder.due.min(confirm);
        }
        Ok(())
    }

    fn list(
        &mut self,
        full_path: &Path,
        path: &Path,
        folder: &mut Folder,
        fs: &mut dyn Listing,
        changes: &mut Vec<Change>,
    ) -> io::Result<()> {
        folder.generation = folder.generation.wrapping_add(1);
        let generation = folder.generation;
        let (mut seen, mut added) = (0usize, 0usize);
        let (names, room) = (&mut folder.names, NAMES_MAX - self.names);
        let mut fresh: Vec<(Box<[u8]>, Kind, Option<Kind>)> = Vec::new();
        let result = fs.list(full_path, &mut |name, kind, inode| {
            if name.first() == Some(&b'.') {
                return;
            }
            match names.get_mut(name) {
                Some(known) => {
                    seen += usize::from(known.generation != generation);
                    if known.inode != inode || known.kind != kind {
                        fresh.push((name.into(), kind, Some(known.kind)));
                    }
                    *known = Name { inode, kind, generation };
                }
                None if added < room => {
                    (seen, added) = (seen + 1, added + 1);
                    names.insert(name.into(), Name { inode, kind, generation });
                    fresh.push((name.into(), kind, None));
                }
                None => {}
            }
        });
        self.names += added;
        // What an interrupted listing did deliver is true; what it did not says nothing.
        if result.is_ok() && seen < folder.names.len() {
            let mut gone = Vec::new();
            folder.names.retain(|name, n| {
                let keep = n.generation == generation;
                if !keep {
                    gone.push((name.clone(), n.kind));
                }
                keep
            });
            self.names -= gone.len();
            for (name, kind) in gone {
                self.vanish(path.join(OsStr::from_bytes(&name)), kind, changes);
            }
        }
        for (name, kind, before) in fresh {
            let path = path.join(OsStr::from_bytes(&name));
            if let Some(before) = before {
                self.vanish(path.clone(), before, changes);
            }
            changes.push(Change::Appeared(path, kind));
        }
        result
    }

    fn vanish(&mut self, path: PathBuf, kind: Kind, changes: &mut Vec<Change>) {
        if let Some(folder) = self.folders.remove(&path) {
            self.due.remove(&(folder.due, path.clone()));
            self.names -= folder.names.len();
            self.drop_below(&path, &folder, changes);
        }
        changes.push(Change::Gone(path, kind));
    }

    fn drop_below(&mut self, path: &Path, folder: &Folder, changes: &mut Vec<Change>) {
        for (name, n) in &folder.names {
            self.vanish(path.join(OsStr::from_bytes(name)), n.kind, changes);
        }
    }

    fn forget_name(&mut self, path: &Path) {
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Some(folder) = self.folders.get_mut(parent)
            && folder.names.remove(name.as_bytes()).is_some()
        {
            self.names -= 1;
            // Its own listing must notice when the name returns, even if the parent's times do not tell.
            folder.stamp = None;
        }
    }
}

/// True for errors that say the thing is no longer there (or is a link now).
pub(super) fn is_gone(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}
