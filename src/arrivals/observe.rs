//! What a scan looks like right now: its files, as stat shows them, or why it can never be one.
//!
//! Contract
//! - Nothing is opened. Links are resolved and followed only to regular files below the root; pipes,
//!   sockets and devices refuse the scan; so do names that cannot be shown.
//! - Folders are walked to [`DEPTH_MAX`] levels and [`MEMBERS_MAX`] files; links to folders are not entered.

use super::listing::{Kind, Listing, Meta};
use super::names;
use super::scan::FileStamp;
use super::tree::is_gone;
use crate::campaign::NameGlob;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub(super) const DEPTH_MAX: usize = 16;
pub(super) const MEMBERS_MAX: usize = 200_000;

#[derive(Debug)]
pub(super) enum Seen {
    Gone,
    /// Sorted by path, relative to the root.
    Members(Vec<FileStamp>),
    /// Still being written, and why that is known.
    Unfinished(String, Vec<FileStamp>),
    /// Waiting will not help.
    Refused(String, Vec<FileStamp>),
}

/// Files of a scan that is one file or a group.
pub(super) fn files(fs: &mut dyn Listing, root: &Path, parts: &BTreeSet<PathBuf>) -> io::Result<Seen> {
    let mut stamps = Vec::new();
    let mut flaw = None;
    for part in parts {
        match file(fs, root, part)? {
            Seen::Members(mut one) => stamps.append(&mut one),
            Seen::Gone => {}
            Seen::Unfinished(reason, mut one) | Seen::Refused(reason, mut one) if reason.is_empty() => {
                stamps.append(&mut one)
            }
            Seen::Unfinished(reason, mut one) => {
                stamps.append(&mut one);
                flaw.get_or_insert((false, reason));
            }
            Seen::Refused(reason, mut one) => {
                stamps.append(&mut one);
                flaw = Some((true, reason));
            }
        }
    }
    Ok(match flaw {
        Some((true, reason)) => Seen::Refused(reason, stamps),
        Some((false, reason)) => Seen::Unfinished(reason, stamps),
        None if stamps.is_empty() => Seen::Gone,
        None => Seen::Members(stamps),
    })
}

/// One file; `Gone` also when it is a folder now.
pub(super) fn file(fs: &mut dyn Listing, root: &Path, path: &Path) -> io::Result<Seen> {
    let full = root.join(path);
    let meta = match fs.stat(&full) {
        Ok(meta) => meta,
        Err(e) if is_gone(&e) => return Ok(Seen::Gone),
        Err(e) => return Err(e),
    };
    let shown = || names::display(path.as_os_str().as_bytes());
    match meta.kind {
        Kind::File => Ok(Seen::Members(vec![meta.stamp(path)])),
        Kind::Folder | Kind::Unknown => Ok(Seen::Gone),
        Kind::Special => {
            let reason = format!("{} is a pipe, socket or device; only regular files are read: remove it", shown());
            Ok(Seen::Refused(reason, vec![meta.stamp(path)]))
        }
        Kind::Link => link(fs, root, path, &meta),
    }
}

fn link(fs: &mut dyn Listing, root: &Path, path: &Path, link: &Meta) -> io::Result<Seen> {
    let shown = || names::display(path.as_os_str().as_bytes());
    let target = match fs.resolve(&root.join(path)) {
        Ok(target) => target,
        Err(e) if is_gone(&e) => {
            return Ok(Seen::Unfinished(format!("{} is a link to nothing", shown()), vec![link.stamp(path)]));
        }
        Err(e) => return Err(e),
    };
    if !target.starts_with(root) {
        let reason = format!("{} is a link that leaves the watched folder; put the file itself there", shown());
        return Ok(Seen::Refused(reason, vec![link.stamp(path)]));
    }
    let meta = fs.stat(&target)?;
    match meta.kind {
        Kind::File => Ok(Seen::Members(vec![meta.stamp(path)])),
        Kind::Folder => Ok(Seen::Gone),
        _ => {
            let reason = format!("{} is a link to something that is not a regular file; remove it", shown());
            Ok(Seen::Refused(reason, vec![link.stamp(path)]))
        }
    }
}

/// Every regular file below a folder; hidden ones left out.
pub(super) fn folder(fs: &mut dyn Listing, root: &Path, path: &Path, temporary: Option<&NameGlob>) -> io::Result<Seen> {
    let mut members = Vec::new();
    let mut flaw: Option<String> = None;
    let mut unfinished: Option<String> = None;
    let mut todo = vec![(path.to_owned(), 0)];
    while let Some((below, depth)) = todo.pop() {
        let mut entries: Vec<(Box<[u8]>, Kind)> = Vec::new();
        let room = MEMBERS_MAX + 1 - members.len();
        let listed = fs.list(&root.join(&below), &mut |name, kind, _| {
            if name.first() != Some(&b'.') && entries.len() < room {
                entries.push((name.into(), kind));
            }
        });
        match listed {
            Err(e) if is_gone(&e) && depth == 0 => return Ok(Seen::Gone),
            // It went while we looked; the next look will see it as a change.
            Err(e) if is_gone(&e) => continue,
            other => other?,
        }
        for (name, kind) in entries {
            let name = OsStr::from_bytes(&name);
            let path = below.join(name);
            let shown = || names::display(path.as_os_str().as_bytes());
            if let Some(reason) = names::refusal(name.as_bytes()) {
                flaw.get_or_insert_with(|| format!("{}: {reason}", shown()));
                continue;
            }
            if temporary.is_some_and(|t| t.matches(name)) {
                unfinished.get_or_insert_with(|| format!("{} is a temporary name", shown()));
            }
            let kind = if kind == Kind::Unknown { fs.stat(&root.join(&path)).map_or(kind, |m| m.kind) } else { kind };
            match kind {
                Kind::Folder if depth + 1 >= DEPTH_MAX => {
                    flaw.get_or_insert_with(|| format!("{} is nested more than {DEPTH_MAX} deep; flatten it", shown()));
                }
                Kind::Folder => todo.push((path, depth + 1)),
                _ => match file(fs, root, &path)? {
                    Seen::Members(mut one) => members.append(&mut one),
                    Seen::Gone => {}
                    Seen::Unfinished(reason, mut one) => {
                        members.append(&mut one);
                        unfinished.get_or_insert(reason);
                    }
                    Seen::Refused(reason, mut one) => {
                        members.append(&mut one);
                        flaw.get_or_insert(reason);
                    }
                },
            }
            if members.len() > MEMBERS_MAX {
                let reason = format!("has more than {MEMBERS_MAX} files; pack them, or name a smaller folder a scan");
                return Ok(Seen::Refused(reason, Vec::new()));
            }
        }
    }
    members.sort();
    Ok(match (flaw, unfinished) {
        (Some(reason), _) => Seen::Refused(reason, members),
        (None, Some(reason)) => Seen::Unfinished(reason, members),
        (None, None) if members.is_empty() => Seen::Unfinished("the folder is empty".into(), members),
        (None, None) => Seen::Members(members),
    })
}

/// False when a folder on the way to a member became a link: what was listed is not what would be read.
pub(super) fn confined(fs: &mut dyn Listing, root: &Path, members: &[FileStamp]) -> io::Result<bool> {
    let parents: BTreeSet<PathBuf> = members.iter().filter_map(|m| m.path.parent()).map(|p| root.join(p)).collect();
    for parent in parents {
        // `root.join("")` ends in a slash; components compare without it.
        if fs.resolve(&parent)?.components().ne(parent.components()) {
            return Ok(false);
        }
    }
    Ok(true)
}
