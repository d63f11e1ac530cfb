//! A tomography scan as the rest of the program sees it, whatever layout it came in.
//!
//! Contract
//! - [`TomoSource::open`] reads headers and small arrays (angles, image keys), no pixel.
//! - Angles are in degrees, one per projection, turning as [`crate::technique::tomography`] wants them.
//! - Flats and darks are frames like projections; flats are told apart into those taken before and after,
//!   because the beam drifts. A scan without darks is accepted with a note, one without flats is not.
//! - Companion files in the roles `white`, `dark` and `angles` replace what the scan itself holds.
//! - Sizes of all stacks agree, angles and projections agree in number.

use super::h5::{H5, Linked};
use super::links::{Lookup, awaited, lookup};
use super::stack::{FrameStack, Sample, same_shape};
use super::view::View;
use super::{als, angles, data_exchange, nxtomo, tiff_folder};
use crate::arrivals::scan::{FileStamp, Scan};
use crate::technique::Fault;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// Some frames of one stack, whole or as a [`View`] shows them: rows and columns are those of the view.
#[derive(Clone)]
pub struct FrameList {
    /// Where they lie.
    pub stack: Arc<FrameStack>,
    /// Which ones, in order.
    pub frames: Vec<usize>,
    /// What is read of each; all of it when not given.
    pub view: Option<View>,
}

impl FrameList {
    /// Every frame of a stack.
    pub(crate) fn all(stack: FrameStack) -> Self {
        Self { frames: (0..stack.frames).collect(), stack: Arc::new(stack), view: None }
    }

    /// Rows of a frame as it is read.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.view.as_ref().map_or(self.stack.rows, |v| v.shape().0)
    }

    /// Columns of a frame as it is read.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.view.as_ref().map_or(self.stack.columns, |v| v.shape().1)
    }

    /// Bytes in the file that one row of one frame, as it is read, is made of.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.stack.row_bytes() * self.view.as_ref().map_or(1, |v| v.bin.1 as u64)
    }

    /// Rows of the detector that `rows` are made of.
    #[must_use]
    pub fn stored_rows(&self, rows: &Range<usize>) -> Range<usize> {
        self.view.as_ref().map_or_else(|| rows.clone(), |v| v.stored_rows(rows))
    }

    /// Reads `rows` of every frame, `[frame, row, column]`.
    ///
    /// # Errors
    /// As [`FrameStack::read`].
    pub fn read_rows(&self, rows: Range<usize>) -> Result<ndarray::Array3<f32>, Fault> {
        self.read_some(&self.frames, rows)
    }

    /// Reads `rows` of the frames at these positions of the list.
    ///
    /// # Errors
    /// As [`FrameStack::read`].
    pub fn read_positions(&self, positions: &[usize], rows: Range<usize>) -> Result<ndarray::Array3<f32>, Fault> {
        let frames: Vec<usize> = positions.iter().filter_map(|&p| self.frames.get(p).copied()).collect();
        self.read_some(&frames, rows)
    }

    fn read_some(&self, frames: &[usize], rows: Range<usize>) -> Result<ndarray::Array3<f32>, Fault> {
        let mut out = ndarray::Array3::zeros((frames.len(), rows.len(), self.columns()));
        match (out.as_slice_mut(), &self.view) {
            (Some(flat), None) => self.stack.read(frames, rows, flat)?,
            (Some(flat), Some(view)) => view.read(&self.stack, frames, &rows, flat)?,
            (None, _) => {}
        }
        Ok(out)
    }
}

/// What the headers of a scan say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TomoHeader {
    /// `data-exchange`, `als-832`, `als-832-legacy`, `nxtomo`, `nexus-diad`, `tiff`.
    pub layout: String,
    /// One per projection, degrees.
    pub angles_deg: Vec<f64>,
    /// Where the angles come from, for the manifest: a dataset, a rule, or a companion.
    pub angles_from: String,
    /// Detector rows.
    pub rows: usize,
    /// Detector columns.
    pub columns: usize,
    /// Flats taken before the projections (all of them, when the file does not say).
    pub flats_before: usize,
    /// Flats taken after.
    pub flats_after: usize,
    /// Flats taken in between.
    pub flats_between: usize,
    /// Darks.
    pub darks: usize,
    /// How a pixel of the projections is stored.
    pub sample: Sample,
    /// Chunk shape, when chunked.
    pub chunk: Option<Vec<usize>>,
    /// Edge of a detector pixel at the specimen, centimetres.
    pub pixel_size_cm: Option<f64>,
    /// Title, sample, energy, …, as found, for the manifest.
    pub metadata: BTreeMap<String, String>,
    /// Assumptions made, in words for the scientist.
    pub notes: Vec<String>,
}

impl TomoHeader {
    /// Projections.
    #[must_use]
    pub fn projections(&self) -> usize {
        self.angles_deg.len()
    }

    /// `181 projections of 2×640, 10 dark, 10 white`.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "{} projections of {}×{}, {} dark, {} white",
            self.projections(),
            self.rows,
            self.columns,
            self.darks,
            self.flats()
        )
    }

    /// Flats in all.
    #[must_use]
    pub fn flats(&self) -> usize {
        self.flats_before + self.flats_after + self.flats_between
    }
}

/// Files in roles that come with a scan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Companions {
    /// Dark frames.
    pub dark: Option<PathBuf>,
    /// Flat (white) frames.
    pub white: Option<PathBuf>,
    /// Rotation angles: an HDF5 file or a text file with one number a line.
    pub angles: Option<PathBuf>,
}

impl Companions {
    /// From a scan's roles. The first file of a role counts.
    #[must_use]
    pub fn of(scan: &Scan) -> Self {
        let first = |role: &str| scan.roles.get(role).and_then(|files| files.first()).map(|f| f.path.clone());
        Self { dark: first("dark"), white: first("white"), angles: first("angles") }
    }
}

/// What a layout's reader finds; checked and completed by [`TomoSource::open`].
pub(crate) struct Parts {
    pub layout: &'static str,
    pub projections: FrameList,
    pub flats_before: Option<FrameList>,
    pub flats_after: Option<FrameList>,
    /// With the projection before which they were taken.
    pub flats_between: Vec<(usize, FrameList)>,
    pub darks: Option<FrameList>,
    /// `None`: the file has none and the layout allows to assume them. A fault counts only when no companion
    /// gives the angles.
    pub angles: Result<Option<(Vec<f64>, String)>, Fault>,
    pub pixel_size_cm: Option<f64>,
    pub metadata: BTreeMap<String, String>,
    pub notes: Vec<String>,
    pub awaited: Awaited,
}

/// What external links promise and what is not there, in words: needed or not, that depends on companions and recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Awaited {
    pub flats: Option<String>,
    pub darks: Option<String>,
    pub angles: Option<String>,
}

/// A scan open for reading. Cheap to open again in each task.
pub struct TomoSource {
    /// What the headers say.
    pub header: TomoHeader,
    /// In the order of [`TomoHeader::angles_deg`].
    pub projections: FrameList,
    /// Flats before, or all flats.
    pub flats_before: Option<FrameList>,
    /// Flats after.
    pub flats_after: Option<FrameList>,
    /// Flats taken during the scan, with the projection before which that was.
    pub flats_between: Vec<(usize, FrameList)>,
    /// Darks.
    pub darks: Option<FrameList>,
    /// Files that links led to, as they were before they were read; paths absolute.
    pub linked: Vec<FileStamp>,
    awaited: Awaited,
}

impl TomoSource {
    /// Opens a scan's file and its companions.
    ///
    /// # Errors
    /// [`Fault::NotYet`] when it seems unfinished, [`Fault::Input`] when it cannot be used, in words for the
    /// beamline scientist.
    pub fn open(path: &Path, root: &Path, companions: &Companions) -> Result<Self, Fault> {
        let h5 = Rc::new(H5::open(path, root)?);
        let parts = read_parts(&h5)?;
        Self::with_companions(&h5.path, &h5.root, parts, companions, &h5.linked)
    }

    fn with_companions(
        path: &Path,
        root: &Path,
        mut parts: Parts,
        companions: &Companions,
        linked: &Linked,
    ) -> Result<Self, Fault> {
        let beside = |file: &Path| -> PathBuf {
            // A companion may lie under another root of the campaign; its links then stay in its own folder.
            if file.starts_with(root) { root.to_owned() } else { file.parent().unwrap_or(file).to_owned() }
        };
        if let Some(file) = &companions.white {
            let white = Rc::new(H5::open_noting(file, &beside(file), linked)?);
            parts.awaited.flats = None;
            parts.flats_before = Some(companion_frames(&white, Kind::White)?);
            parts.flats_after = None;
            parts.flats_between.clear();
        }
        if let Some(file) = &companions.dark {
            let dark = Rc::new(H5::open_noting(file, &beside(file), linked)?);
            parts.awaited.darks = None;
            parts.darks = Some(companion_frames(&dark, Kind::Dark)?);
        }
        if let Some(file) = &companions.angles {
            let count = parts.projections.frames.len();
            let angles = angles::from_companion(file, &beside(file), count, linked)?;
            parts.angles = Ok(Some((angles, file.display().to_string())));
            parts.awaited.angles = None;
        }
        Self::assemble(path, parts, linked.stamps())
    }

    /// Opens a [`Scan`]: its one HDF5 file (of several, the one NeXus master) or its TIFF files, with the companions in
    /// its roles.
    ///
    /// # Errors
    /// As [`TomoSource::open`].
    pub fn of(scan: &Scan) -> Result<Self, Fault> {
        let companions = Companions::of(scan);
        let files: Vec<PathBuf> = scan.member_paths().collect();
        if files.iter().any(|f| tiff_folder::is_tiff(f)) && !files.iter().any(|f| is_hdf5(f)) {
            let linked = Linked::default();
            let parts = tiff_folder::read(&files, &scan.root, &scan.name, companions.angles.is_some(), &linked)?;
            let path = scan.root.join(&scan.name);
            return Self::with_companions(&path, &scan.root, parts, &companions, &linked);
        }
        Self::open(&main_file(scan)?, &scan.root, &companions)
    }

    fn assemble(path: &Path, parts: Parts, linked: Vec<FileStamp>) -> Result<Self, Fault> {
        let at = path.display();
        let Parts {
            layout,
            projections,
            flats_before,
            flats_after,
            flats_between,
            darks,
            angles,
            pixel_size_cm,
            metadata,
            mut notes,
            awaited,
        } = parts;
        let stack = Arc::clone(&projections.stack);
        let (rows, columns) = (stack.rows, stack.columns);
        for (what, list) in [("flat", &flats_before), ("flat", &flats_after), ("dark", &darks)] {
            if let Some(list) = list {
                same_shape(what, &list.stack, rows, columns)?;
            }
        }
        for (_, list) in &flats_between {
            same_shape("flat", &list.stack, rows, columns)?;
        }
        let count = projections.frames.len();
        let (angles_deg, angles_from) = match angles? {
            Some(angles) => angles,
            None => {
                notes.push(format!("no rotation angles in the file: {count} steps over 0–180°, the end not included"));
                (angles::even(count, 180.0), "assumed: 0-180 even, endpoint excluded".to_owned())
            }
        };
        if angles_deg.len() != count {
            return Err(Fault::Input(format!(
                "{at}: {angles_from} has {} angles for {count} projections of {}; write one angle per projection, or give the role `angles`",
                angles_deg.len(),
                stack.at()
            )));
        }
        angles::check(path, &angles_from, &angles_deg)?;
        let number = |list: &Option<FrameList>| list.as_ref().map_or(0, |l| l.frames.len());
        if number(&darks) == 0 {
            notes.push("no dark frames: the detector's dark level is taken as 0".to_owned());
        }
        let header = TomoHeader {
            layout: layout.to_owned(),
            angles_deg,
            angles_from,
            rows,
            columns,
            flats_before: number(&flats_before),
            flats_after: number(&flats_after),
            flats_between: flats_between.iter().map(|(_, l)| l.frames.len()).sum(),
            darks: number(&darks),
            sample: stack.sample,
            chunk: match &stack.storage {
                super::stack::Storage::Chunked(chunk) => Some(chunk.clone()),
                _ => None,
            },
            pixel_size_cm,
            metadata,
            notes,
        };
        let kept = |list: Option<FrameList>| list.filter(|l| !l.frames.is_empty());
        Ok(Self {
            header,
            projections,
            flats_before: kept(flats_before),
            flats_after: kept(flats_after),
            flats_between,
            darks: kept(darks),
            linked,
            awaited,
        })
    }

    /// Shows all frames through one view from now on: the header says its rows and columns.
    pub fn look_through(&mut self, view: &View) {
        let between = self.flats_between.iter_mut().map(|(_, list)| list);
        let flats = self.flats_before.iter_mut().chain(&mut self.flats_after).chain(between);
        for list in std::iter::once(&mut self.projections).chain(flats).chain(&mut self.darks) {
            list.view = Some(view.clone());
        }
        (self.header.rows, self.header.columns) = view.shape();
    }

    /// Projections, flats and darks: every list there is.
    pub fn lists(&self) -> impl Iterator<Item = &FrameList> {
        std::iter::once(&self.projections)
            .chain(self.flats_before.iter())
            .chain(self.flats_after.iter())
            .chain(self.flats_between.iter().map(|(_, list)| list))
            .chain(&self.darks)
    }

    /// Waits for angles that a link promises. Not for who has others: a companion, or the recipe.
    ///
    /// # Errors
    /// [`Fault::NotYet`] naming the linked file.
    pub fn check_angles(&self) -> Result<(), Fault> {
        self.awaited.angles.as_ref().map_or(Ok(()), |why| Err(awaited(why)))
    }

    /// Refuses a scan without flat fields, and waits for flats and darks that a link promises.
    ///
    /// # Errors
    /// [`Fault::Input`] naming what was looked for, [`Fault::NotYet`] naming the linked file.
    pub fn check_flats(&self) -> Result<(), Fault> {
        if let Some(why) = self.awaited.flats.as_ref().or(self.awaited.darks.as_ref()) {
            return Err(awaited(why));
        }
        if self.flats_before.is_some() || self.flats_after.is_some() || !self.flats_between.is_empty() {
            return Ok(());
        }
        let wanted = match self.header.layout.as_str() {
            "data-exchange" | "als-832" => "/exchange/data_white",
            "als-832-legacy" => "datasets <scan>bak_….tif",
            "tiff" => "files named flat…",
            _ => "image_key 1",
        };
        Err(Fault::Input(format!(
            "{}: no flat fields ({wanted}) in the file; record them, or give the stream a `white` companion, or set normalize = false for data that is normalised already",
            self.projections.stack.file().display()
        )))
    }
}

fn read_parts(h5: &Rc<H5>) -> Result<Parts, Fault> {
    let mut looked = Vec::new();
    if let Some(parts) = data_exchange::read(h5, &mut looked)? {
        return Ok(parts);
    }
    if let Some(parts) = nxtomo::read(h5, &mut looked)? {
        return Ok(parts);
    }
    if let Some(parts) = als::read_legacy(h5, &mut looked)? {
        return Ok(parts);
    }
    Err(Fault::Input(format!(
        "{}: no projections found; expected Data Exchange (/exchange/data), NXtomo (entry/instrument/detector/data with image_key) or a group of ALS 8.3.2. {}",
        h5.path.display(),
        looked.join("; ")
    )))
}

enum Kind {
    White,
    Dark,
}

/// Is this an HDF5 file, by its name?
fn is_hdf5(path: &Path) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| ["h5", "hdf5", "hdf", "nxs"].contains(&e))
}

/// The file of a scan that holds its frames.
fn main_file(scan: &Scan) -> Result<PathBuf, Fault> {
    let all: Vec<PathBuf> = scan.member_paths().collect();
    if let [only] = all.as_slice() {
        return Ok(only.clone());
    }
    let with = |endings: &[&str]| -> Vec<&PathBuf> {
        let is = |p: &&PathBuf| p.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e));
        all.iter().filter(is).collect()
    };
    let (masters, hdf5) = (with(&["nxs"]), with(&["h5", "hdf5", "hdf", "nxs"]));
    match (masters.as_slice(), hdf5.as_slice()) {
        ([one], _) | (_, [one]) => Ok((*one).clone()),
        (_, files) => Err(Fault::Input(format!(
            "{}: {} of its {} files are HDF5 files, and one must hold the frames; give the others a role, or let the \
             stream's pattern match one file a scan",
            scan.name,
            files.len(),
            all.len()
        ))),
    }
}

/// Flats or darks from a companion: those it marks as such, else all its frames.
fn companion_frames(h5: &Rc<H5>, kind: Kind) -> Result<FrameList, Fault> {
    let own = match kind {
        Kind::White => "/exchange/data_white",
        Kind::Dark => "/exchange/data_dark",
    };
    if let Lookup::Dataset(found) = lookup(h5, own)?.promised()? {
        return Ok(FrameList::all(FrameStack::new(found, own)?));
    }
    let wanted = match kind {
        Kind::White => 1.0,
        Kind::Dark => 2.0,
    };
    if let Some(marked) = nxtomo::marked_frames(h5, wanted)? {
        return Ok(marked);
    }
    for plain in ["/exchange/data", "/entry/data/data", "/entry/instrument/detector/data", "/entry1/data/data", "/data"]
    {
        if let Lookup::Dataset(found) = lookup(h5, plain)?.promised()? {
            return Ok(FrameList::all(FrameStack::new(found, plain)?));
        }
    }
    Err(Fault::Input(format!(
        "{}: no frames found in this companion; expected {own}, /exchange/data or /entry/data/data",
        h5.path.display()
    )))
}
