//! Companions of a scan: dark, white, angles, …; found, settled, and stamped.
//!
//! Contract
//! - `latest` takes, of the files matching below the root, the one with the latest mtime that is not later
//!   than the latest mtime among the scan's own files and at most `within` older. Of equal times the last
//!   in path order. Mtimes, because they tell when data were taken also where a transfer kept them.
//! - A companion must itself be unchanged for the quiet time: a dark that is still being written is waited
//!   for, and not replaced by an older one.
//! - Companions are confined as scans are; a `path` is the campaign's own word and may be anywhere.

use super::listing::Listing;
use super::observe::{self, Seen};
use super::scan::FileStamp;
use super::watcher::{Now, age};
use crate::campaign::RoleSource;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One file that may be a companion.
#[derive(Default)]
struct Candidate {
    stamp: Option<FileStamp>,
    unchanged_since: Duration,
}

/// What a role resolved to.
pub(super) enum Resolved {
    Files(BTreeMap<String, Vec<FileStamp>>),
    /// It exists and is still changing.
    Settling(String),
    Missing(String),
    Refused(String),
}

pub(super) struct Roles {
    sources: BTreeMap<String, RoleSource>,
    /// Per `latest` role: files that match, relative to the root.
    latest: HashMap<String, BTreeMap<PathBuf, Candidate>>,
    /// Files at known places, absolute.
    fixed: HashMap<PathBuf, Candidate>,
    quiet: Duration,
}

impl Roles {
    pub(super) fn new(sources: BTreeMap<String, RoleSource>, quiet: Duration) -> Self {
        Self { sources, latest: HashMap::new(), fixed: HashMap::new(), quiet }
    }

    /// True when the path is a companion by its name; such a file is never a scan.
    pub(super) fn takes(&mut self, path: &Path) -> bool {
        let mut taken = false;
        for (role, source) in &self.sources {
            if let RoleSource::Latest { pattern, .. } = source
                && pattern.matches(path)
            {
                self.latest.entry(role.clone()).or_default().insert(path.to_owned(), Candidate::default());
                taken = true;
            }
        }
        taken
    }

    pub(super) fn drop_file(&mut self, path: &Path) {
        self.latest.values_mut().for_each(|files| drop(files.remove(path)));
    }

    pub(super) fn may_descend(&self, folder: &Path) -> bool {
        self.sources.values().any(|s| matches!(s, RoleSource::Latest { pattern, .. } if pattern.may_descend(folder)))
    }

    /// True when some members of a scan may serve in roles.
    pub(super) fn in_scan(&self) -> bool {
        self.sources.values().any(|s| matches!(s, RoleSource::InScan { .. }))
    }

    /// Finds the companions of a scan; members that serve in a role leave `members`.
    pub(super) fn resolve(
        &mut self,
        fs: &mut dyn Listing,
        root: &Path,
        name: &str,
        members: &mut Vec<FileStamp>,
        now: Now,
    ) -> io::Result<Resolved> {
        let taken = members.iter().map(|m| m.mtime_ns).max().unwrap_or(0);
        let mut roles = BTreeMap::new();
        for (role, source) in &self.sources {
            let found = match source {
                RoleSource::InScan { file } => {
                    let serves = |m: &FileStamp| {
                        let inner = m.path.strip_prefix(name).unwrap_or(&m.path);
                        file.matches(inner) || inner.file_name().is_some_and(|n| file.matches(Path::new(n)))
                    };
                    let (serving, rest): (Vec<_>, Vec<_>) = members.drain(..).partition(serves);
                    *members = rest;
                    let absolute = |m: FileStamp| FileStamp { path: root.join(&m.path), ..m };
                    let files: Vec<FileStamp> = serving.into_iter().map(absolute).collect();
                    if files.is_empty() {
                        return Ok(Resolved::Missing(format!(
                            "no {role}: nothing in the scan matches {}",
                            file.source()
                        )));
                    }
                    roles.insert(role.clone(), files);
                    continue;
                }
                RoleSource::Beside { file } => {
                    let path = PathBuf::from(file.of(name));
                    let key = root.join(&path);
                    let found = check(self.fixed.entry(key.clone()).or_default(), fs, root, &path, now)?;
                    found.ok_or_else(|| format!("no {role}: {} is not there", path.display()))
                }
                RoleSource::Path(path) => {
                    let (parent, file) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
                    // The campaign names this file itself, so that wherever its links lead is allowed.
                    let real = fs.resolve(path).unwrap_or_else(|_| parent.join(file));
                    let (parent, file) = (real.parent().unwrap_or(&real), real.file_name().unwrap_or_default());
                    let candidate = self.fixed.entry(real.clone()).or_default();
                    let found = check(candidate, fs, parent, Path::new(file), now)?;
                    found.ok_or_else(|| format!("no {role}: {} is not there", path.display()))
                }
                RoleSource::Latest { pattern, within } => {
                    let files = self.latest.entry(role.clone()).or_default();
                    let found = latest(files, fs, root, taken, *within, now)?;
                    let within = humantime::format_duration(*within);
                    found.ok_or_else(|| {
                        format!("no {role}: nothing matches {} in the {within} before the scan", pattern.source())
                    })
                }
            };
            match found {
                Ok(Checked::File(stamp, since)) if now.mono >= since + self.quiet => {
                    roles.insert(role.clone(), vec![stamp]);
                }
                Ok(Checked::File(stamp, _)) => {
                    return Ok(Resolved::Settling(format!("{role} {} is still changing", stamp.path.display())));
                }
                Ok(Checked::Refused(reason)) => return Ok(Resolved::Refused(format!("{role}: {reason}"))),
                Err(missing) => return Ok(Resolved::Missing(missing)),
            }
        }
        Ok(Resolved::Files(roles))
    }
}

enum Checked {
    /// Path absolute; unchanged since then.
    File(FileStamp, Duration),
    Refused(String),
}

fn check(
    candidate: &mut Candidate,
    fs: &mut dyn Listing,
    root: &Path,
    path: &Path,
    now: Now,
) -> io::Result<Option<Checked>> {
    match observe::file(fs, root, path)? {
        Seen::Members(mut one) => {
            let Some(mut stamp) = one.pop() else { return Ok(None) };
            stamp.path = root.join(path);
            if candidate.stamp.as_ref() != Some(&stamp) {
                let first = candidate.stamp.is_none();
                candidate.unchanged_since = if first { now.mono.saturating_sub(age(&[&stamp], now)) } else { now.mono };
                candidate.stamp = Some(stamp.clone());
            }
            // `age` may reach back before our own start: count from there by adding it to the present.
            Ok(Some(Checked::File(stamp, candidate.unchanged_since)))
        }
        Seen::Refused(reason, _) => Ok(Some(Checked::Refused(reason))),
        Seen::Gone | Seen::Unfinished(..) => {
            candidate.stamp = None;
            Ok(None)
        }
    }
}

fn latest(
    files: &mut BTreeMap<PathBuf, Candidate>,
    fs: &mut dyn Listing,
    root: &Path,
    taken: i64,
    within: Duration,
    now: Now,
) -> io::Result<Option<Checked>> {
    let within = i64::try_from(within.as_nanos()).unwrap_or(i64::MAX);
    // Those never looked at first; what their mtimes are decides which are candidates at all.
    for (path, candidate) in files.iter_mut().filter(|(_, c)| c.stamp.is_none()) {
        check(candidate, fs, root, path, now)?;
    }
    loop {
        let eligible =
            |c: &Candidate| c.stamp.as_ref().map(|s| s.mtime_ns).filter(|&m| m <= taken && taken - m <= within);
        let best = files.iter().filter_map(|(path, c)| Some((eligible(c)?, path))).max().map(|(m, p)| (m, p.clone()));
        let Some((mtime, path)) = best else { return Ok(None) };
        let Some(candidate) = files.get_mut(&path) else { return Ok(None) };
        let found = check(candidate, fs, root, &path, now)?;
        // It was rewritten since: choose again, by what it is now.
        if candidate.stamp.as_ref().is_some_and(|s| s.mtime_ns == mtime) || matches!(found, Some(Checked::Refused(_))) {
            return Ok(found);
        }
    }
}
