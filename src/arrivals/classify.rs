//! What a name that appeared or went means: a scan's file, a companion, a folder to enter, or nothing.
//!
//! Contract: companions, temporary names, excluded folders and files that serve `latest` roles are never
//! scans. A name that cannot be shown is refused here; links and kinds of files are judged when stat'ed.

use super::listing::{Kind, Listing};
use super::names;
use super::tree::Change;
use super::watcher::{Now, Phase, Scanning, Watcher};
use crate::campaign::{Rule, Unit};
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

fn is_folder(fs: &mut dyn Listing, path: &Path) -> bool {
    let target = fs.resolve(path);
    target.and_then(|target| fs.stat(&target)).is_ok_and(|meta| meta.kind == Kind::Folder)
}

impl Watcher {
    pub(super) fn classify(&mut self, change: Change, now: Now, fs: &mut dyn Listing) {
        let (path, mut kind, gone) = match change {
            Change::Appeared(path, kind) => (path, kind, false),
            Change::Gone(path, kind) => (path, kind, true),
        };
        if kind == Kind::Unknown && !gone {
            kind = fs.stat(&self.root.join(&path)).map_or(Kind::Unknown, |m| m.kind);
        }
        if self.watch.from.is_some() && path == Path::new("_live") {
            return;
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
            if self.census.0.waiting_role > 0 {
                // Those who waited for it look again.
                let waiting = self.scans.iter().filter(|(_, s)| s.phase == Phase::WaitingRole);
                let waiting: Vec<_> = waiting.map(|(name, _)| name.clone()).collect();
                waiting.iter().for_each(|name| self.schedule(name, now.mono));
            }
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
        if !wanted {
            return;
        }
        if path.components().count() > super::observe::DEPTH_MAX {
            let name = path.as_os_str().as_bytes().to_vec();
            let reason =
                format!("folders nested more than {} deep are not entered; flatten them", super::observe::DEPTH_MAX);
            self.touch(&name, path, Some(reason), false, now);
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
                    changed: None,
                    lacks: None,
                    finished_at: Duration::ZERO,
                    swept: false,
                    relinked: Vec::new(),
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
}
