//! The completeness rules: is it proven that a scan is whole?
//!
//! Contract: `members` are what stat just showed, sorted by path. A manifest is the only file that is ever
//! read here, at most [`manifest::LIMIT`] bytes of it, and never through a link.

use super::events::Proof;
use super::listing::Listing;
use super::manifest::{self, ManifestEntry, ManifestKind};
use super::observe::{self, Seen};
use super::scan::FileStamp;
use super::step::RETRY;
use super::watcher::{Now, Watcher};
use crate::campaign::{Companion, Rule, Unit};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What a completeness rule says.
pub(super) enum Verdict {
    Proven(Proof),
    /// Look again then.
    At(Duration),
    /// Nothing to see until the named thing appears; `None` = the listing will tell.
    Awaits(String, Option<Duration>),
    /// As `Awaits`, and the timeout counts.
    Lacks(String),
}

impl Watcher {
    pub(super) fn judge(
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
            let found = members.binary_search_by(|m| m.path.as_path().cmp(&path)).ok().map(|i| &members[i]);
            let Some(member) = found else {
                return Ok(Verdict::Lacks(format!("{text} is in {shown} but not there")));
            };
            if let Some(bytes) = entry.bytes.filter(|&b| b != member.size) {
                return Ok(Verdict::Lacks(format!("{text} has {} of {bytes} bytes", member.size)));
            }
            files.push(ManifestEntry { path: text.to_owned(), ..entry });
        }
        let listed: HashSet<&Path> = files.iter().map(|f| Path::new(&f.path)).collect();
        let unlisted = members.iter().find(|m| m.path != stamp.path && !listed.contains(m.path.as_path()));
        if let Some(member) = unlisted {
            return Ok(Verdict::Lacks(format!("{} is not in {shown}", member.path.display())));
        }
        Ok(Verdict::Proven(Proof::Manifest { files, manifest: stamp }))
    }
}
