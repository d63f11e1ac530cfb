//! What a program wrote, taken over file by file.
//!
//! Contract
//! - The program has ended, and so has everything it started. Links, pipes, sockets and devices are refused: nothing
//!   published may lead out of the bundle. Nothing is opened through a link.
//! - Every file is hashed as it is read back and synced, and so are its folders, before it is reported.
//! - An attempt that wrote nothing leaves at most an empty folder, for the next one.

use crate::arrivals::names;
use crate::formats::part::{BLOCK_BYTES, hex};
use crate::technique::{Fault, OutputFile};
use rustix::fs::{CWD, Mode, OFlags, openat};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Files of one task.
const FILES_MAX: usize = 10_000;
/// Levels of folders.
const DEPTH_MAX: usize = 16;

/// A folder that is made once; the folder above it is made when it is missing, but never staging itself.
pub(super) fn new_folder(staging: &Path, relative: &str) -> Result<(), Fault> {
    let path = staging.join(relative);
    let made = match (std::fs::create_dir(&path), relative.rsplit_once('/')) {
        (Err(e), Some((above, _))) if e.kind() == ErrorKind::NotFound => {
            let above = staging.join(above);
            match std::fs::create_dir(&above) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(Fault::writing(&above, &e)),
                _ => std::fs::create_dir(&path),
            }
        }
        (made, _) => made,
    };
    made.map_err(|e| Fault::writing(&path, &e))
}

/// Every file below `<staging>/<relative>`, hashed and synced; paths are relative to staging.
pub(super) fn take(
    staging: &Path,
    relative: &str,
    threads: usize,
    cancelled: &AtomicBool,
) -> Result<Vec<OutputFile>, Fault> {
    let root = staging.join(relative);
    // Most of those that write nothing leave an empty folder, and `rmdir`, which follows no link, alone says so.
    if std::fs::remove_dir(&root).is_ok() {
        return Ok(Vec::new());
    }
    let found = std::fs::symlink_metadata(&root).map_err(|e| Fault::writing(&root, &e))?;
    if !found.is_dir() {
        return Err(Fault::Input(
            "the program replaced its output folder by something else; write into {out}".to_owned(),
        ));
    }
    let (mut files, mut folders) = (Vec::new(), vec![(relative.to_owned(), 0)]);
    let mut next = 0;
    while let Some((folder, depth)) = folders.get(next).cloned() {
        next += 1;
        list(staging, &folder, depth, &mut files, &mut folders)?;
    }
    if files.is_empty() {
        std::fs::remove_dir_all(&root).map_err(|e| Fault::writing(&root, &e))?;
        return Ok(Vec::new());
    }
    files.sort();
    let files = hash_all(staging, &files, threads, cancelled)?;
    let above = relative.rsplit_once('/').map(|(above, _)| above.to_owned());
    // From the inside out: a folder that is on disk has its content on disk.
    for folder in folders.into_iter().map(|(f, _)| f).rev().chain(above) {
        let path = staging.join(folder);
        File::open(&path).and_then(|f| f.sync_all()).map_err(|e| Fault::writing(&path, &e))?;
    }
    Ok(files)
}

fn list(
    staging: &Path,
    folder: &str,
    depth: usize,
    files: &mut Vec<String>,
    folders: &mut Vec<(String, usize)>,
) -> Result<(), Fault> {
    let path = staging.join(folder);
    let fault = |e: std::io::Error| Fault::writing(&path, &e);
    for entry in std::fs::read_dir(&path).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let name = entry.file_name();
        let shown = names::display(name.as_bytes());
        let refuse = |what: &str| Err(Fault::Input(format!("the program wrote {shown}, {what}")));
        let Some(text) = name.to_str().filter(|_| names::refusal(name.as_bytes()).is_none()) else {
            return refuse("which is no printable name; rename it in the program");
        };
        let kind = entry.file_type().map_err(fault)?;
        let below = format!("{folder}/{text}");
        if kind.is_dir() && depth + 1 >= DEPTH_MAX {
            return refuse("and folders nested that deep are not published; flatten them");
        } else if kind.is_dir() {
            folders.push((below, depth + 1));
        } else if kind.is_file() {
            files.push(below);
        } else if kind.is_symlink() {
            return refuse("which is a link; a bundle holds files: copy what it leads to, or hard-link it");
        } else {
            return refuse("which is a pipe, socket or device; remove it in the program");
        }
    }
    if files.len() > FILES_MAX || folders.len() > FILES_MAX {
        return Err(Fault::Input(format!("the program wrote more than {FILES_MAX} files; pack them into one")));
    }
    Ok(())
}

/// Hashes files side by side: each is read, hashed and waited for. The result is in the order given.
fn hash_all(
    staging: &Path,
    files: &[String],
    threads: usize,
    cancelled: &AtomicBool,
) -> Result<Vec<OutputFile>, Fault> {
    let threads = threads.min(files.len()).clamp(1, 8);
    if threads == 1 {
        return files.iter().map(|f| hashed(staging, f, cancelled)).collect();
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(files.len()));
    let work = || {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = hashed(staging, file, cancelled);
            if result.is_err() {
                // The others need not begin another one.
                next.store(files.len(), Ordering::Relaxed);
            }
            done.lock().unwrap_or_else(PoisonError::into_inner).push(result);
        }
    };
    std::thread::scope(|scope| {
        // A thread that cannot be started leaves its share to this one.
        let started = |_| std::thread::Builder::new().spawn_scoped(scope, work).is_ok();
        let _ = (1..threads).take_while(|n| started(*n)).count();
        work();
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut files = done.into_iter().collect::<Result<Vec<OutputFile>, Fault>>()?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn hashed(staging: &Path, relative: &str, cancelled: &AtomicBool) -> Result<OutputFile, Fault> {
    let path = staging.join(relative);
    let fault = |e: std::io::Error| Fault::writing(&path, &e);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(openat(CWD, &path, flags, Mode::empty()).map_err(|e| fault(e.into()))?);
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let before = file.metadata().map_err(fault)?;
    if !before.is_file() {
        return Err(Fault::Task(format!("{} is no regular file any more", path.display())));
    }
    let mut block = vec![0u8; BLOCK_BYTES.min(before.len() as usize + 1)];
    loop {
        match file.read(&mut block).map_err(fault)? {
            0 => break,
            n => {
                hash.update(block.get(..n).unwrap_or(&[]));
                bytes += n as u64;
            }
        }
        if cancelled.load(Ordering::Relaxed) {
            return Err(Fault::Task("no longer wanted".to_owned()));
        }
    }
    file.sync_all().map_err(fault)?;
    if file.metadata().map_err(fault)?.len() != bytes {
        return Err(Fault::Task(format!("{} changed after the program had ended", path.display())));
    }
    Ok(OutputFile { path: relative.to_owned(), bytes, sha256: hex(&hash.finalize()) })
}

/// Moves a file within staging. Whoever repeats it, after a crash or beside a stalled twin, ends with the same.
pub(super) fn place(staging: &Path, file: &mut OutputFile, to: String) -> Result<(), Fault> {
    let (source, target) = (staging.join(&file.path), staging.join(&to));
    moved(&source, &target)?;
    file.path = to;
    Ok(())
}

/// As [`place`], for anything.
pub(super) fn moved(source: &Path, target: &Path) -> Result<(), Fault> {
    match std::fs::rename(source, target) {
        Err(e) if e.kind() == ErrorKind::NotFound && target.exists() => Ok(()),
        Err(e) => Err(Fault::writing(target, &e)),
        Ok(()) => Ok(()),
    }
}
