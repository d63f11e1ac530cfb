//! Finding a dataset by name without ever leaving the watch root.
//!
//! The HDF5 library follows soft and external links, external raw files and virtual datasets by itself,
//! to wherever they point. A file under a watch root is written by somebody else, so it must not decide
//! what this process opens. Here a path is walked one link at a time and each link is judged first.
//!
//! Contract
//! - Hard links are followed. Soft links are followed with at most [`HOPS`] hops. External links are
//!   followed only to a regular file that resolves (symbolic links included) inside the root.
//! - A soft link to something that does not exist is no error: it is [`Lookup::Missing`], with the reason.
//! - An external link whose file, or whose object in it, is not there is [`Lookup::Awaited`]: the file says that there is
//!   such a thing, and it may still come. Whether it is needed, the caller knows.
//! - Every file reached by an external link or as a virtual source is noted with its stamp in [`H5::linked`].
//! - Datasets with external raw storage are refused. Virtual datasets are accepted when every source file
//!   and dataset passes the same walk; sources that are not there yet are [`Fault::NotYet`], because the
//!   library would silently read zeros for them.
//! - Caveat: between judging and opening, a writer could swap a file for a symbolic link.

use super::h5::H5;
use crate::technique::Fault;
use hdf5::plist::dataset_create::Layout;
use hdf5::{Dataset, Group};
use hdf5_sys::{h5l, h5p};
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Links that may be followed on the way to one object.
const HOPS: usize = 32;
/// Virtual datasets may be built of virtual datasets, but not endlessly.
const VIRTUAL_DEPTH: usize = 4;
/// Mappings of one virtual dataset.
const VIRTUAL_SOURCES: usize = 100_000;
/// Longest name of a link target.
const NAME_BYTES: usize = 4096;

/// A dataset and the file it really lies in.
pub(crate) struct Found {
    pub h5: Rc<H5>,
    pub dataset: Dataset,
}

/// What a path led to.
pub(crate) enum Lookup {
    Dataset(Found),
    Group,
    /// Nothing, and why.
    Missing(String),
    /// An external link leads there, but there is nothing yet, and why.
    Awaited(String),
}

impl Lookup {
    /// The dataset, if it is one.
    pub fn dataset(self) -> Option<Found> {
        if let Self::Dataset(found) = self { Some(found) } else { None }
    }

    /// The same, for what is needed when the file has it.
    ///
    /// # Errors
    /// [`Fault::NotYet`] for what an external link promises.
    pub fn promised(self) -> Result<Self, Fault> {
        match self {
            Self::Awaited(why) => Err(awaited(&why)),
            other => Ok(other),
        }
    }
}

/// The fault of a thing that a link promises and that is not there.
pub(crate) fn awaited(why: &str) -> Fault {
    Fault::NotYet(format!("{why}; put the linked file there, or remove the link"))
}

/// Looks up `path` (absolute, `/`-separated) in `h5`.
///
/// # Errors
/// [`Fault::Input`] for links out of the root, [`Fault::NotYet`] for virtual sources that are missing and for objects that
/// cannot be read.
pub(crate) fn lookup(h5: &Rc<H5>, path: &str) -> Result<Lookup, Fault> {
    lookup_at_depth(h5, path, 0)
}

fn lookup_at_depth(h5: &Rc<H5>, path: &str, depth: usize) -> Result<Lookup, Fault> {
    let root = group_of(h5);
    let Some(root) = root else { return Err(unreadable(h5, "/")) };
    let mut walk = Walk { hops: 0, external: false };
    match walk.step(h5, root, path)? {
        Step::Missing(why) if walk.external => Ok(Lookup::Awaited(why)),
        Step::Missing(why) => Ok(Lookup::Missing(why)),
        Step::Group => Ok(Lookup::Group),
        Step::Leaf(h5, group, name) => {
            if let Ok(dataset) = group.dataset(&name) {
                judge_storage(&h5, &dataset, path, depth)?;
                Ok(Lookup::Dataset(Found { h5, dataset }))
            } else if group.group(&name).is_ok() {
                Ok(Lookup::Group)
            } else {
                Err(unreadable(&h5, path))
            }
        }
    }
}

fn group_of(h5: &H5) -> Option<Group> {
    h5.file.group("/").ok()
}

enum Step {
    /// `name` in the group is a hard link.
    Leaf(Rc<H5>, Group, String),
    Group,
    Missing(String),
}

struct Walk {
    hops: usize,
    /// It went through an external link.
    external: bool,
}

impl Walk {
    fn step(&mut self, h5: &Rc<H5>, start: Group, path: &str) -> Result<Step, Fault> {
        let at = h5.path.display();
        let mut group = if path.starts_with('/') {
            match group_of(h5) {
                Some(group) => group,
                None => return Err(unreadable(h5, "/")),
            }
        } else {
            start
        };
        let names: Vec<&str> = path.split('/').filter(|n| !n.is_empty() && *n != ".").collect();
        for (i, name) in names.iter().enumerate() {
            let rest = names.get(i + 1..).unwrap_or(&[]).join("/");
            match link(&group, name) {
                None => return Ok(Step::Missing(format!("{at}: no {name} on the way to {path}"))),
                Some(Link::Unreadable) => return Err(unreadable(h5, path)),
                Some(Link::Hard) if rest.is_empty() => {
                    return Ok(Step::Leaf(Rc::clone(h5), group, (*name).to_owned()));
                }
                Some(Link::Hard) => match group.group(name) {
                    Ok(next) => group = next,
                    Err(_) if group.dataset(name).is_ok() => {
                        return Ok(Step::Missing(format!("{at}: {name} is no group, looking for {path}")));
                    }
                    Err(_) => return Err(unreadable(h5, path)),
                },
                Some(Link::Soft(target)) => {
                    self.hop(h5, path)?;
                    return self.step(h5, group, &joined(&target, &rest));
                }
                Some(Link::External { file, object }) => {
                    self.hop(h5, path)?;
                    self.external = true;
                    let target = match resolve(h5, &file, path)? {
                        Ok(target) => target,
                        Err(why) => return Ok(Step::Missing(why)),
                    };
                    let next = Rc::new(h5.open_linked(&target)?);
                    let Some(top) = group_of(&next) else {
                        return Err(unreadable(&next, "/"));
                    };
                    return self.step(&next, top, &format!("/{}", joined(&object, &rest)));
                }
                Some(Link::Other) => {
                    return Err(Fault::Input(format!(
                        "{at}: {name} on the way to {path} is a user-defined link, which is never followed; use a soft or external link"
                    )));
                }
            }
        }
        Ok(Step::Group)
    }

    fn hop(&mut self, h5: &H5, path: &str) -> Result<(), Fault> {
        self.hops += 1;
        if self.hops > HOPS || path.len() > 4 * NAME_BYTES {
            return Err(Fault::Input(format!(
                "{}: {:.80}: more than {HOPS} links on the way; its links run in a circle",
                h5.path.display(),
                path
            )));
        }
        Ok(())
    }
}

fn joined(target: &str, rest: &str) -> String {
    if rest.is_empty() { target.to_owned() } else { format!("{target}/{rest}") }
}

/// Where an external link or a virtual source leads: beside the file that names it, as the library looks.
/// The inner `Err` says why there is nothing.
fn resolve(h5: &H5, name: &str, path: &str) -> Result<Result<PathBuf, String>, Fault> {
    let at = h5.path.display();
    let named = Path::new(name);
    let folder = h5.path.parent().unwrap_or(Path::new("/"));
    // An absolute name that is not there is looked for by its last component beside the file, as the library does.
    let mut candidates = vec![folder.join(named)];
    if named.is_absolute() {
        candidates.extend(named.file_name().map(|last| folder.join(last)));
    }
    let escape = |to: &Path| {
        Fault::Input(format!(
            "{at}: {path} leads to {}, outside the watch root {}; copy the linked file beside the scan and link to it there",
            to.display(),
            h5.root.display()
        ))
    };
    for candidate in candidates {
        match candidate.canonicalize() {
            // By the name the link gives: that may itself be a symbolic link, and lead elsewhere later.
            Ok(found) if found.starts_with(&h5.root) => return Ok(Ok(candidate)),
            Ok(found) => return Err(escape(&found)),
            // Not there: nothing is opened, wherever the name points.
            Err(_) => {}
        }
    }
    Ok(Err(format!("{at}: {path} is linked to {name}, which does not exist")))
}

/// Something that a link says is there, and that cannot be read: a hole in a file that is filled out of order.
fn unreadable(h5: &H5, path: &str) -> Fault {
    Fault::NotYet(format!("{}: {path} cannot be opened: not written yet, or damaged", h5.path.display()))
}

enum Link {
    /// The group's own index cannot be read.
    Unreadable,
    Hard,
    Soft(String),
    External {
        file: String,
        object: String,
    },
    Other,
}

/// Kind and target of the link `name` in `group`, without following it.
fn link(group: &Group, name: &str) -> Option<Link> {
    let name = CString::new(name).ok()?;
    hdf5::sync::sync(|| {
        let mut info = h5l::H5L_info1_t::default();
        // SAFETY: the group's identifier is live while `group` is borrowed, `name` is NUL-terminated; the library's lock
        // is held.
        match unsafe { h5l::H5Lexists(group.id(), name.as_ptr(), h5p::H5P_DEFAULT) } {
            0 => return None,
            1.. => {}
            _ => return Some(Link::Unreadable),
        }
        // SAFETY: as above, and `info` is a valid place to write to.
        if unsafe { h5l::H5Lget_info1(group.id(), name.as_ptr(), &raw mut info, h5p::H5P_DEFAULT) } < 0 {
            return Some(Link::Unreadable);
        }
        match info.type_ {
            h5l::H5L_type_t::H5L_TYPE_HARD => return Some(Link::Hard),
            h5l::H5L_type_t::H5L_TYPE_SOFT | h5l::H5L_type_t::H5L_TYPE_EXTERNAL => {}
            _ => return Some(Link::Other),
        }
        // SAFETY: for these two types the union holds `val_size`.
        let size = unsafe { *info.u.val_size() };
        if size == 0 || size > 2 * NAME_BYTES {
            return Some(Link::Other);
        }
        // One byte more than asked for, so that the text always ends in NUL.
        let mut value = vec![0u8; size + 1];
        // SAFETY: as above; `value` has room for `size` bytes.
        let got = unsafe {
            h5l::H5Lget_val(group.id(), name.as_ptr(), value.as_mut_ptr().cast::<c_void>(), size, h5p::H5P_DEFAULT)
        };
        if got < 0 {
            return Some(Link::Other);
        }
        if info.type_ == h5l::H5L_type_t::H5L_TYPE_SOFT {
            let target = CStr::from_bytes_until_nul(&value).ok()?;
            return Some(target.to_str().map_or(Link::Other, |t| Link::Soft(t.to_owned())));
        }
        // An external link is one byte of version and flags, the file name, NUL, the object path, NUL.
        let mut parts = value.get(1..)?.split(|&b| b == 0);
        let text = |part: Option<&[u8]>| part.and_then(|p| std::str::from_utf8(p).ok()).map(str::to_owned);
        match (text(parts.next()), text(parts.next())) {
            (Some(file), Some(object)) if !file.is_empty() => Some(Link::External { file, object }),
            _ => Some(Link::Other),
        }
    })
}

/// Refuses storage outside the file, except virtual sources that pass the walk.
fn judge_storage(h5: &Rc<H5>, dataset: &Dataset, path: &str, depth: usize) -> Result<(), Fault> {
    let at = h5.path.display();
    let broken = |e: hdf5::Error| Fault::NotYet(format!("{at}: {path}: {}", super::h5::short(&e)));
    let plist = dataset.create_plist().map_err(broken)?;
    // SAFETY: the identifier is live while `plist` is; the library's lock is held.
    if hdf5::sync::sync(|| unsafe { h5p::H5Pget_external_count(plist.id()) }) > 0 {
        return Err(Fault::Input(format!(
            "{at}: {path} keeps its data in external raw files, which are never opened; write the data into the HDF5 file"
        )));
    }
    if plist.get_layout().map_err(broken)? != Layout::Virtual {
        return Ok(());
    }
    if depth >= VIRTUAL_DEPTH {
        return Err(Fault::Input(format!(
            "{at}: {path} is a virtual dataset nested more than {VIRTUAL_DEPTH} deep; copy it into one plain dataset"
        )));
    }
    for (file, source) in virtual_sources(&plist)
        .ok_or_else(|| Fault::Input(format!("{at}: the sources of the virtual dataset {path} cannot be listed")))?
    {
        if file.contains('%') || source.contains('%') {
            return Err(Fault::Input(format!(
                "{at}: {path} is virtual with a pattern of file names ({file}); name each source file"
            )));
        }
        let inner = if file == "." {
            Rc::clone(h5)
        } else {
            let target = resolve(h5, &file, path)?
                .map_err(|why| Fault::NotYet(format!("{why}; a source of a virtual dataset is missing")))?;
            Rc::new(h5.open_linked(&target)?)
        };
        match lookup_at_depth(&inner, &format!("/{source}"), depth + 1)? {
            Lookup::Dataset(_) => {}
            _ => {
                return Err(Fault::NotYet(format!(
                    "{}: {source} is not there, a source of the virtual dataset {path} in {at}",
                    inner.path.display()
                )));
            }
        }
    }
    Ok(())
}

/// Distinct (file, dataset) pairs of a virtual dataset.
fn virtual_sources(plist: &hdf5::plist::DatasetCreate) -> Option<BTreeSet<(String, String)>> {
    let id = plist.id();
    hdf5::sync::sync(|| {
        let mut count = 0usize;
        // SAFETY: `id` is live while `plist` is borrowed, `count` is writable; the library's lock is held.
        if unsafe { h5p::H5Pget_virtual_count(id, &raw mut count) } < 0 || count > VIRTUAL_SOURCES {
            return None;
        }
        let mut sources = BTreeSet::new();
        for i in 0..count {
            let mut name = [0u8; NAME_BYTES];
            let mut text = |source: bool| {
                name.fill(0);
                let to = name.as_mut_ptr().cast();
                // SAFETY: as above, and `name` has room for the stated bytes, the last being NUL.
                let got = unsafe {
                    if source {
                        h5p::H5Pget_virtual_dsetname(id, i, to, NAME_BYTES)
                    } else {
                        h5p::H5Pget_virtual_filename(id, i, to, NAME_BYTES)
                    }
                };
                let length = usize::try_from(got).ok().filter(|&n| n < NAME_BYTES)?;
                std::str::from_utf8(name.get(..length)?).ok().map(str::to_owned)
            };
            sources.insert((text(false)?, text(true)?));
        }
        Some(sources)
    })
}
