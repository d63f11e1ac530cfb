//! Doctor on a campaign's folders. Writes only in state and output, and only inside a probe's own folder.

use super::{Check, DoctorTargets, bytes};
use crate::site::filesystem::{self, Kind, Probe};
use crate::store::{Layout, RealFs};
use rustix::fs::{Access, access};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Less than this and a single bundle may fill the disk.
const FREE_WARN: u64 = 20 << 30;
/// Less than this and not even journals are safe.
const FREE_FAIL: u64 = 256 << 20;
/// A bundle of a large scan has hundreds of files.
const FILES_WARN: u64 = 10_000;
/// Beyond this, lags and ages shown to people become wrong.
const SKEW_WARN_S: f64 = 1.0;
/// Beyond this, every part and every journal group waits noticeably.
const SYNC_WARN: Duration = Duration::from_secs(2);

pub(super) fn checks(targets: &DoctorTargets) -> Vec<Check> {
    let mut checks = Vec::new();
    for (stream, root) in &targets.watches {
        checks.push(watch(stream, root));
    }
    checks.extend(overlaps(targets));
    checks.extend(format(&targets.state));
    checks.extend(writable("state", &targets.state));
    for output in &targets.outputs {
        checks.extend(writable("output", output));
        checks.push(readers(output));
    }
    checks
}

/// A state that another beampilot made, or that was damaged.
fn format(state: &Path) -> Option<Check> {
    let error = Layout::existing(&RealFs, state).err()?;
    Some(Check::fail("state.format", error.to_string(), "do not run until that is mended"))
}

/// The folder itself or, where it will be made later, the nearest one above it.
fn nearest(path: &Path) -> PathBuf {
    path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/")).to_path_buf()
}

fn watch(stream: &str, root: &Path) -> Check {
    let subject = format!("{stream} ({})", root.display());
    let start = Instant::now();
    let entries = match fs::read_dir(root) {
        // A cap keeps doctor quick in a folder that should not be watched as a whole.
        Ok(entries) => entries.take(200_000).count(),
        Err(error) => {
            let remedy = "correct `watch`, or ask for read and search permission on it and every folder above it";
            return Check::fail("watch.readable", error.to_string(), remedy).of(subject);
        }
    };
    let took = start.elapsed();
    let detail = format!("{entries} entries, listed in {} ms, on {}", took.as_millis(), kind_name(root));
    if access(root, Access::EXEC_OK).is_err() {
        return Check::fail("watch.readable", "its files cannot be reached", "chmod +x on the folder").of(subject);
    }
    if took > Duration::from_secs(2) {
        let remedy = "watch a narrower folder, or sort finished scans into folders of their own";
        return Check::warn("watch.readable", detail, remedy).of(subject);
    }
    Check::ok("watch.readable", detail).of(subject)
}

fn kind_name(path: &Path) -> String {
    filesystem::kind(path).map_or_else(|e| format!("an unknown filesystem ({e})"), Kind::name)
}

/// State or results under a watch root would be listed again and again, and might look like scans.
fn overlaps(targets: &DoctorTargets) -> Option<Check> {
    let real = |p: &Path| p.canonicalize().unwrap_or_else(|_| p.to_path_buf());
    let watched: Vec<(&str, PathBuf)> = targets.watches.iter().map(|(n, p)| (n.as_str(), real(p))).collect();
    let ours = std::iter::once(&targets.state).chain(&targets.outputs).map(|p| real(p));
    for folder in ours {
        if let Some((stream, root)) = watched.iter().find(|(_, root)| folder.starts_with(root)) {
            let detail = format!("{} lies under the watch root {} of {stream}", folder.display(), root.display());
            return Some(Check::warn("watch.overlap", detail, "put state and output beside the watch root, not in it"));
        }
    }
    None
}

fn writable(role: &'static str, path: &Path) -> Vec<Check> {
    let (id_write, id_kind, id_room, id_promises, id_clock, id_sync) = match role {
        "state" => ("state.writable", "state.filesystem", "state.space", "state.promises", "state.clock", "state.sync"),
        _ => ("output.writable", "output.filesystem", "output.space", "output.promises", "output.clock", "output.sync"),
    };
    let subject = path.display().to_string();
    let there = nearest(path);
    let mut checks = Vec::new();
    if path.exists() && !path.is_dir() {
        let remedy = format!("name a folder in `{role}`");
        return vec![Check::fail(id_write, "is not a folder", remedy).of(subject)];
    }
    checks.push(kind(id_kind, role, &there).of(subject.clone()));
    checks.push(room(id_room, &there).of(subject.clone()));
    match filesystem::probe(&there) {
        Err(error) => {
            let remedy = format!("make {subject} and see that you may write there, or correct `{role}`");
            let detail = format!("cannot write in {}: {error}", there.display());
            checks.insert(0, Check::fail(id_write, detail, remedy).of(subject));
        }
        Ok(found) => {
            let detail = if there == path { "writable".to_owned() } else { "will be made".to_owned() };
            checks.insert(0, Check::ok(id_write, detail).of(subject.clone()));
            checks.extend(promises(id_promises, &found).into_iter().map(|c| c.of(subject.clone())));
            checks.push(clock(id_clock, &found).of(subject.clone()));
            checks.push(sync(id_sync, &found).of(subject));
        }
    }
    checks
}

fn kind(id: &'static str, role: &str, there: &Path) -> Check {
    let other = format!("choose another folder for `{role}`, on the parallel filesystem");
    match filesystem::kind(there) {
        Err(error) => Check::fail(id, format!("cannot be reached: {error}"), other),
        Ok(kind) if role == "state" && !kind.may_hold_state() => {
            let detail = format!("{}: one node may see another's claims too late", kind.name());
            Check::fail(id, detail, other)
        }
        Ok(kind @ Kind::Memory(_)) => Check::warn(id, format!("{}: lost at the next boot", kind.name()), other),
        Ok(kind) => Check::ok(id, kind.name()),
    }
}

fn room(id: &'static str, there: &Path) -> Check {
    let room = match filesystem::room(there) {
        Ok(room) => room,
        Err(error) => {
            return Check::warn(id, format!("cannot be told: {error}"), "see whether the path can be reached");
        }
    };
    let files = room.free_files.map(|n| format!(", {n} more files")).unwrap_or_default();
    let detail = format!("{} of {} free{files}", bytes(room.free), bytes(room.total));
    let remedy = "free space or raise the project's quota; when it is full, the pilot pauses and resumes by itself";
    let few_files = |least: u64| room.free_files.is_some_and(|n| n < least);
    if room.free < FREE_FAIL || few_files(100) {
        Check::fail(id, detail, remedy)
    } else if room.free < FREE_WARN || few_files(FILES_WARN) {
        Check::warn(id, detail, remedy)
    } else {
        Check::ok(id, detail)
    }
}

fn promises(id: &'static str, found: &Probe) -> Vec<Check> {
    let broken = found.promises.iter().filter_map(|p| {
        let seen = p.broken.as_ref()?;
        let remedy = "use a local disk or a parallel filesystem; this one cannot be trusted with it";
        Some(Check::fail(id, format!("{} (for {}): {seen}", p.name, p.needed_for), remedy))
    });
    let mut checks: Vec<Check> = broken.collect();
    if checks.is_empty() {
        let names: Vec<&str> = found.promises.iter().map(|p| p.name).collect();
        checks.push(Check::ok(id, names.join(", ")));
    }
    checks
}

fn clock(id: &'static str, found: &Probe) -> Check {
    let step = found.granularity;
    let detail = format!("times differ by {:.1} s from this host's, in steps of {step:.0?}", found.skew_s);
    if found.skew_s.abs() > SKEW_WARN_S {
        Check::warn(id, detail, "have the hosts' clocks synchronised; lags shown will be wrong by as much")
    } else if step >= Duration::from_secs(1) {
        Check::warn(id, detail, "use a quiet time of several seconds; changes within a step may not show")
    } else {
        Check::ok(id, detail)
    }
}

fn sync(id: &'static str, found: &Probe) -> Check {
    let detail = format!("making a small file durable took {:.0?}", found.sync);
    if found.sync > SYNC_WARN {
        Check::warn(id, detail, "the filesystem is slow or busy; results will be late by about as much")
    } else {
        Check::ok(id, detail)
    }
}

/// Can anybody but this user read what is published?
fn readers(output: &Path) -> Check {
    const ID: &str = "output.readers";
    let subject = output.display().to_string();
    let there = nearest(output);
    let Ok(meta) = fs::metadata(&there) else {
        return Check::warn(ID, "cannot be told", "see whether the path can be reached").of(subject);
    };
    let (mode, group) = (meta.permissions().mode(), meta.gid());
    let umask = umask().unwrap_or(0o022);
    let detail = format!("mode {:04o}, group {group}, umask {umask:03o}", mode & 0o7777);
    let all_may = mode & 0o005 == 0o005 && umask & 0o005 == 0;
    if mode & 0o050 != 0o050 && !all_may {
        let remedy = "chmod g+rxs on the folder, so that the account behind the share can read";
        return Check::warn(ID, format!("{detail}: only you can read results"), remedy).of(subject);
    }
    if umask & 0o050 != 0 && !all_may {
        return Check::warn(ID, format!("{detail}: the group cannot read results"), "umask 0027").of(subject);
    }
    if mode & 0o2000 == 0 && !all_may {
        let remedy = "chmod g+s on the folder, so that results keep its group";
        return Check::warn(ID, format!("{detail}: results get your own group"), remedy).of(subject);
    }
    Check::ok(ID, detail).of(subject)
}

/// The umask, read without changing it.
fn umask() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    u32::from_str_radix(status.lines().find_map(|l| l.strip_prefix("Umask:"))?.trim(), 8).ok()
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    fn targets(dir: &Path) -> DoctorTargets {
        let watch = dir.join("in");
        fs::create_dir(&watch).unwrap();
        DoctorTargets {
            state: dir.join("state"),
            outputs: vec![dir.join("out")],
            watches: vec![("tomo".to_owned(), watch)],
        }
    }

    fn graded<'a>(checks: &'a [Check], id: &str) -> Vec<&'a Check> {
        checks.iter().filter(|c| c.id == id).collect()
    }

    #[test]
    fn sound_folders_have_no_failure_and_are_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let targets = targets(dir.path());
        let checks = checks(&targets);
        assert!(checks.iter().all(|c| c.grade != Grade::Fail), "{checks:#?}");
        assert!(!targets.state.exists() && !targets.outputs[0].exists());
        assert_eq!(graded(&checks, "state.promises").len(), 1);
    }

    #[test]
    fn a_missing_watch_root_and_a_file_as_state_fail() {
        let dir = tempfile::tempdir().unwrap();
        let mut targets = targets(dir.path());
        targets.watches[0].1 = dir.path().join("nowhere");
        fs::write(&targets.state, "x").unwrap();
        let checks = checks(&targets);
        assert_eq!(graded(&checks, "watch.readable")[0].grade, Grade::Fail);
        assert_eq!(graded(&checks, "state.writable")[0].grade, Grade::Fail);
    }

    #[test]
    fn output_under_the_watch_root_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut targets = targets(dir.path());
        targets.outputs = vec![targets.watches[0].1.join("results")];
        assert_eq!(graded(&checks(&targets), "watch.overlap").len(), 1);
    }

    #[test]
    fn a_private_output_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(readers(dir.path()).grade, Grade::Warn);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let umask = umask().unwrap();
        assert_eq!(readers(dir.path()).grade == Grade::Ok, umask & 0o005 == 0);
    }

    #[test]
    fn nothing_is_written_under_a_watch_root() {
        let dir = tempfile::tempdir().unwrap();
        let targets = targets(dir.path());
        let before = fs::metadata(&targets.watches[0].1).unwrap();
        checks(&targets);
        let after = fs::metadata(&targets.watches[0].1).unwrap();
        assert_eq!((before.ctime(), before.ctime_nsec()), (after.ctime(), after.ctime_nsec()));
    }
}
