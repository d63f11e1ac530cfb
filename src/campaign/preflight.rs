//! What only the machine can tell about a campaign: are the folders there, can they be used.
//!
//! Contract: nothing is left behind. Folders that a run would create are not created; writing is tried
//! with a file that is removed again, in the nearest folder that exists.

use super::{Campaign, Problem};
use std::io;
use std::path::{Path, PathBuf};

impl Campaign {
    /// Problems of folders and rights, each with its remedy; empty when a run could start.
    pub fn preflight(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut report = |line: usize, key: &str, (problem, remedy): (String, &str)| {
            let (file, key, remedy) = (self.shown.clone(), key.to_owned(), remedy.to_owned());
            problems.push(Problem { file, line, key, problem, remedy });
        };
        if let Some(trouble) = unwritable(&self.state) {
            report(self.state_line(), "campaign.state", trouble);
        }
        for stream in &self.streams {
            if stream.from.is_none()
                && let Some(trouble) = unwatchable(&stream.watch)
            {
                report(stream.line("watch"), "stream.watch", trouble);
            }
            if let Some(trouble) = unwritable(&stream.results()) {
                report(stream.line("output"), "stream.output", trouble);
            }
        }
        problems
    }

    /// The line of `state`, for messages after loading; 1 when it has its default.
    fn state_line(&self) -> usize {
        let is_state =
            |line: &str| line.trim_start().strip_prefix("state").is_some_and(|rest| rest.trim_start().starts_with('='));
        self.text.lines().position(is_state).map_or(1, |i| i + 1)
    }
}

/// The path with the links of its existing part resolved.
pub(super) fn real(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), path.strip_prefix(ancestor)) {
            // Joining an empty path would add a slash.
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

fn unwatchable(path: &Path) -> Option<(String, &'static str)> {
    let shown = path.display();
    match std::fs::read_dir(path) {
        Ok(_) => None,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Some((format!("\"{shown}\" does not exist"), "create it, or correct the path"))
        }
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            Some((format!("\"{shown}\" is not a folder"), "name the folder that scans arrive in"))
        }
        Err(e) => {
            Some((format!("\"{shown}\" cannot be listed ({e})"), "give the pilot's account read and execute rights"))
        }
    }
}

/// What a full or failing filesystem says; `tempfile` keeps an error's kind, not its number.
fn is_passing(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StaleNetworkFileHandle, StorageFull, TimedOut};
    matches!(kind, QuotaExceeded | ReadOnlyFilesystem | StaleNetworkFileHandle | StorageFull | TimedOut)
}

/// Room for what beampilot puts behind a folder's path: a bundle or claim, and a file in it.
const ROOM: usize = 600;
/// PATH_MAX of Linux, with the zero at its end.
const LONGEST_PATH: usize = 4096;
/// NAME_MAX of every filesystem worth naming; one with less is asked.
const LONGEST_NAME: usize = 255;

/// A path that no filesystem could hold, by its letters alone.
fn impossible(path: &Path, existing: &Path) -> Option<(String, &'static str)> {
    let longest = rustix::fs::statvfs(existing).ok().and_then(|stat| usize::try_from(stat.f_namemax).ok());
    let longest = longest.filter(|&n| n > 0).map_or(LONGEST_NAME, |n| n.min(LONGEST_NAME));
    let bytes = path.as_os_str().as_encoded_bytes();
    let shown: String = path.display().to_string().chars().take(80).collect();
    let shown = shown.escape_debug();
    if bytes.iter().any(u8::is_ascii_control) {
        return Some((format!("\"{shown}\" has control characters"), "name another folder"));
    }
    if bytes.len() > LONGEST_PATH - ROOM {
        let problem = format!("\"{shown}…\" is {} bytes long: files in it would have no name", bytes.len());
        return Some((problem, "name a folder whose whole path has at most 3496 bytes"));
    }
    let name = path.components().map(|c| c.as_os_str().len()).max().filter(|&n| n > longest)?;
    Some((format!("\"{shown}…\" has a name of {name} bytes; {longest} are possible there"), "write shorter names"))
}

fn unwritable(path: &Path) -> Option<(String, &'static str)> {
    const RIGHTS: &str = "give the pilot's account write access, or name another folder";
    let existing = path.ancestors().find(|p| p.symlink_metadata().is_ok())?;
    if let Some(trouble) = impossible(path, existing) {
        return Some(trouble);
    }
    if !existing.is_dir() {
        let problem = format!("\"{}\" is not a folder", existing.display());
        return Some((problem, "remove it, or name another folder"));
    }
    match tempfile::NamedTempFile::with_prefix_in(".beampilot-check-", existing) {
        Ok(_) => None,
        // Nobody's mistake: the run waits, or says that it cannot start now.
        Err(e) if is_passing(e.kind()) => {
            tracing::warn!(folder = %existing.display(), error = %e, "cannot be written now");
            None
        }
        Err(e) => Some((format!("\"{}\" cannot be written ({e})", existing.display()), RIGHTS)),
    }
}
