//! The end of a journal that its owner writes: appending, and compaction.
//!
//! Contract
//! - Only the owner writes, and from one thread. What [`Writer::append`] returned without error for is on disk, under
//!   the journal's name, and stays there.
//! - Compaction writes what stays into another file, syncs it and renames it onto the name. A kill at any moment leaves
//!   the old journal or the new one, each whole, and both tell a successor the same (`index`). A reader that
//!   has the old file open keeps it; `tail -F` finds the new one.
//! - A rename that fails may have happened. Until it is known nothing is appended: lines written into the file that has
//!   lost the name would be lost with it.
//! - A journal that does not hold what was written is left alone: it may be evidence.

use super::index::{Group, Index};
use super::{Line, encode};
use crate::coordinator::event::Entry;
use crate::store::fs::{Fs, Log, aside};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Compaction must free so many bytes, and half of the journal.
const WORTH: u64 = 4 << 20;

/// See the module.
pub struct Writer {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    began_ms: u64,
    file: Box<dyn Log>,
    /// Bytes known to be on disk.
    durable: u64,
    /// The name in its folder is on disk, too.
    named: bool,
    /// Length of the first line.
    head: usize,
    index: Index,
    /// Lines that compaction took out.
    dropped: u64,
    worth: u64,
    /// Not before the journal is so long: compaction failed.
    not_before: u64,
    swap: Option<Swap>,
}

/// A compacted journal that may have the name already.
struct Swap {
    aside: PathBuf,
    file: Box<dyn Log>,
    inode: u64,
    bytes: u64,
    head: usize,
    index: Index,
    dropped: u64,
}

impl Writer {
    /// Opens a new journal. Its first line is written with the first group, and carries `began_ms`, milliseconds since
    /// the epoch.
    ///
    /// # Errors
    /// What the filesystem says.
    pub fn open(fs: Arc<dyn Fs>, path: PathBuf, began_ms: u64) -> io::Result<Self> {
        let file = fs.open_log(&path)?;
        let index = Index::default();
        Ok(Self {
            fs,
            path,
            began_ms,
            file,
            durable: 0,
            named: false,
            head: 0,
            index,
            dropped: 0,
            worth: WORTH,
            not_before: 0,
            swap: None,
        })
    }

    /// Compacts as soon as that frees `bytes` and half of the journal.
    #[must_use]
    pub fn worth(mut self, bytes: u64) -> Self {
        self.worth = bytes;
        self
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.durable
    }

    fn first_line(&self, dropped: u64) -> Vec<u8> {
        let mut line = Vec::new();
        let event = Entry::Began { build: crate::BUILD.to_owned(), dropped };
        encode(&Line { seq: 0, t_ms: self.began_ms, event }, &mut line);
        line
    }

    /// Appends whole lines; durable when it returns without error. After an error the same group must be given again.
    ///
    /// # Errors
    /// What the filesystem says.
    pub fn append(&mut self, group: &Group) -> io::Result<()> {
        self.finish_swap()?;
        let first = if self.durable == 0 { self.first_line(0) } else { Vec::new() };
        if first.is_empty() {
            self.file.write_tail(self.durable, &group.bytes)?;
        } else {
            self.file.write_tail(0, &[&first[..], &group.bytes].concat())?;
        }
        if !self.named {
            self.fs.sync_dir(self.path.parent().unwrap_or(Path::new(".")))?;
            self.named = true;
        }
        self.head += first.len();
        self.durable += (first.len() + group.bytes.len()) as u64;
        self.index.extend(group);
        Ok(())
    }

    /// Compacts the journal where that frees enough. Returns the bytes freed.
    ///
    /// # Errors
    /// The journal is as it was, or will be the compacted one with the next append; it is tried again when as much
    /// has been written once more.
    pub fn compact_if_worth(&mut self) -> io::Result<u64> {
        let before = self.durable;
        let worth = self.index.waste() >= self.worth && self.index.waste() >= before / 2;
        if self.swap.is_some() || !worth || before < self.not_before {
            return Ok(0);
        }
        self.not_before = before + self.worth;
        self.begin_swap()?;
        self.finish_swap()?;
        Ok(before - self.durable)
    }

    fn begin_swap(&mut self) -> io::Result<()> {
        let old = self.fs.read(&self.path, self.durable)?;
        let lines = (old.len() as u64 == self.durable).then(|| &old[self.head..]);
        let Some((body, index, dropped)) = lines.and_then(|lines| self.index.compacted(lines)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not hold what was written into it"));
        };
        let dropped = self.dropped + dropped;
        let first = self.first_line(dropped);
        let new = [&first[..], &body].concat();
        let aside = aside(&*self.fs, &self.path);
        let made = self.fs.open_log(&aside).and_then(|mut file| {
            file.write_tail(0, &new)?;
            Ok((file, self.fs.stat(&aside)?.inode))
        });
        match made {
            Ok((file, inode)) => {
                let (bytes, head) = (new.len() as u64, first.len());
                self.swap = Some(Swap { aside, file, inode, bytes, head, index, dropped });
                Ok(())
            }
            Err(e) => {
                // What cannot be removed now is swept later, when we are gone.
                let _ = self.fs.remove_file(&aside);
                Err(e)
            }
        }
    }

    /// Gives the compacted journal the name, if there is one.
    fn finish_swap(&mut self) -> io::Result<()> {
        let Some(swap) = &self.swap else { return Ok(()) };
        if let Err(e) = self.fs.rename(&swap.aside, &self.path) {
            let there = self.fs.stat(&self.path);
            match there {
                // It happened, and the answer was lost.
                Ok(stamp) if stamp.inode == swap.inode => {}
                // Somebody removed the new file, or the folder. The old one goes on.
                Ok(_) if e.kind() == io::ErrorKind::NotFound => {
                    self.swap = None;
                    return Ok(());
                }
                Err(gone) if e.kind() == io::ErrorKind::NotFound && gone.kind() == io::ErrorKind::NotFound => {
                    self.swap = None;
                    return Ok(());
                }
                _ => return Err(e),
            }
        }
        if let Some(swap) = self.swap.take() {
            (self.file, self.durable, self.head) = (swap.file, swap.bytes, swap.head);
            (self.index, self.dropped) = (swap.index, swap.dropped);
            (self.named, self.not_before) = (false, 0);
        }
        Ok(())
    }
}
