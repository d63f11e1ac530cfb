//! Opening an HDF5 file that somebody else wrote, and reading small things out of it.
//!
//! Contract
//! - A file is opened only when its resolved path lies inside the root, it is a regular file (a FIFO would
//!   hang), and its superblock passes [`super::superblock::check`].
//! - File locking is off: scans lie on filesystems without flock, and a lock would disturb the writer. The
//!   environment variable `HDF5_USE_FILE_LOCKING` wins over this in some library builds, so the launcher
//!   sets it to `FALSE` before threads start; it also removes `HDF5_EXT_PREFIX` and `HDF5_VDS_PREFIX`.
//! - Nothing is followed on the way to an object except through [`super::links`].
//! - The library's error stack is never printed (the binding silences it per thread).
//! - What is read here is small and bounded: one string of 1 KiB, or a list of numbers of a stated length.

use super::superblock;
use crate::arrivals::scan::FileStamp;
use crate::technique::Fault;
use hdf5::types::{FixedAscii, FixedUnicode, TypeDescriptor, VarLenAscii, VarLenUnicode};
use hdf5::{Container, Dataset};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Files that were reached by links out of other files, each as it was before anything of it was read. Clones share one
/// list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Linked(Arc<Mutex<BTreeMap<PathBuf, FileStamp>>>);

impl Linked {
    /// The first stamp counts: a file that changes while it is opened again has changed.
    fn note(&self, path: &Path, meta: &std::fs::Metadata) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(path.to_owned()).or_insert_with(|| FileStamp::from_metadata(path, meta));
    }

    /// The stamps, sorted by path; paths absolute.
    pub fn stamps(&self) -> Vec<FileStamp> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// An open file and where its links may lead.
pub(crate) struct H5 {
    pub file: hdf5::File,
    /// Resolved.
    pub path: PathBuf,
    /// Resolved; nothing outside is opened.
    pub root: PathBuf,
    /// Bytes on disk when it was opened.
    pub size: u64,
    /// For reading without the library.
    pub raw: Arc<std::fs::File>,
    /// What links out of it, and out of these files in turn, led to so far.
    pub linked: Linked,
}

impl H5 {
    /// Opens `path` for reading.
    pub fn open(path: &Path, root: &Path) -> Result<Self, Fault> {
        Self::open_noting(path, root, &Linked::default())
    }

    /// Opens a file that a link in this one leads to, and notes it.
    pub fn open_linked(&self, path: &Path) -> Result<Self, Fault> {
        let meta = std::fs::metadata(path).map_err(|e| Fault::reading(path, &e))?;
        self.linked.note(path, &meta);
        Self::open_noting(path, &self.root, &self.linked)
    }

    /// Opens `path`; what its links lead to is noted in `linked`.
    pub fn open_noting(path: &Path, root: &Path, linked: &Linked) -> Result<Self, Fault> {
        let root = root.canonicalize().map_err(|e| Fault::reading(root, &e))?;
        let resolved = path.canonicalize().map_err(|e| Fault::reading(path, &e))?;
        if !resolved.starts_with(&root) {
            return Err(Fault::Input(format!(
                "{}: leads to {}, outside the watch root {}; put the file itself under the root",
                path.display(),
                resolved.display(),
                root.display()
            )));
        }
        let meta = std::fs::metadata(&resolved).map_err(|e| Fault::reading(&resolved, &e))?;
        if !meta.is_file() {
            return Err(Fault::Input(format!("{}: not a regular file", path.display())));
        }
        let raw = std::fs::File::open(&resolved).map_err(|e| Fault::reading(&resolved, &e))?;
        superblock::check(&resolved, &raw, meta.len())?;
        let file = open_library(&resolved).map_err(|e| {
            library_fault(&e, &resolved, "/").unwrap_or_else(|| {
                Fault::NotYet(format!(
                    "{}: the HDF5 library cannot open it ({}); it is still being written, or damaged",
                    resolved.display(),
                    short(&e)
                ))
            })
        })?;
        Ok(Self { file, path: resolved, root, size: meta.len(), raw: Arc::new(raw), linked: linked.clone() })
    }
}

/// Opens with file locking off.
pub(crate) fn open_library(path: &Path) -> hdf5::Result<hdf5::File> {
    hdf5::File::with_options().with_fapl(|p| p.file_locking(false)).open(path)
}

/// Reading failed inside the library: the storage's fault when an errno in its words says so.
pub(crate) fn read_fault(e: &hdf5::Error, path: &Path, dataset: &str) -> Fault {
    library_fault(e, path, dataset).unwrap_or_else(|| {
        Fault::Input(format!(
            "{}: {dataset} cannot be read ({}); the file is damaged: write or transfer it again",
            path.display(),
            short(e)
        ))
    })
}

/// The library reports a system error only inside its messages.
fn library_fault(e: &hdf5::Error, path: &Path, dataset: &str) -> Option<Fault> {
    let text = e.to_string();
    let errno = text.split("errno = ").nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?;
    let error = std::io::Error::from_raw_os_error(errno.parse().ok()?);
    match Fault::reading(path, &error) {
        Fault::Task(_) => None,
        Fault::Storage(t) => Some(Fault::Storage(format!("{t} (reading {dataset})"))),
        fault => Some(fault),
    }
}

/// The first line of a library error.
pub(crate) fn short(e: &hdf5::Error) -> String {
    let text = e.to_string();
    let line = text.lines().next().unwrap_or("");
    line.chars().take(200).collect()
}

/// A string of at most 1 KiB from a dataset or attribute with one element; `None` when it is anything else.
pub(crate) fn read_string(c: &Container) -> Option<String> {
    if c.size() != 1 {
        return None;
    }
    // The library takes strings for UTF-8 unseen; what a foreign file holds may be anything, Latin-1 most often.
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let text = match c.dtype().ok()?.to_descriptor().ok()? {
        TypeDescriptor::VarLenUnicode => lossy(c.read_raw::<VarLenUnicode>().ok()?.first()?.as_bytes()),
        TypeDescriptor::VarLenAscii => lossy(c.read_raw::<VarLenAscii>().ok()?.first()?.as_bytes()),
        TypeDescriptor::FixedUnicode(n) if n <= 1024 => {
            lossy(c.read_raw::<FixedUnicode<1024>>().ok()?.first()?.as_bytes())
        }
        TypeDescriptor::FixedAscii(n) if n <= 1024 => lossy(c.read_raw::<FixedAscii<1024>>().ok()?.first()?.as_bytes()),
        _ => return None,
    };
    let clean: String = text.chars().filter(|c| !c.is_control()).take(1024).collect();
    Some(clean.trim().to_owned())
}

/// A finite number from a dataset or attribute with one element; a string that reads as one counts.
pub(crate) fn read_number(c: &Container) -> Option<f64> {
    if c.size() != 1 {
        return None;
    }
    let value = match c.dtype().ok()?.to_descriptor().ok()? {
        TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) | TypeDescriptor::Float(_) => {
            *c.read_raw::<f64>().ok()?.first()?
        }
        _ => read_string(c)?.parse().ok()?,
    };
    value.is_finite().then_some(value)
}

/// The `units` attribute in lower case, or any other string attribute.
pub(crate) fn attribute(dataset: &Dataset, name: &str) -> Option<String> {
    read_string(&*dataset.attr(name).ok()?)
}

/// Numbers of a one-dimensional dataset whose length was compared with a trusted one before.
pub(crate) fn read_numbers(dataset: &Dataset, path: &Path, name: &str) -> Result<Vec<f64>, Fault> {
    match dataset.dtype().and_then(|t| t.to_descriptor()) {
        Ok(TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) | TypeDescriptor::Float(_)) => {
            dataset.read_raw::<f64>().map_err(|e| read_fault(&e, path, name))
        }
        Ok(other) => Err(Fault::Input(format!("{}: {name} holds {other}, expected numbers", path.display()))),
        Err(e) => Err(read_fault(&e, path, name)),
    }
}
