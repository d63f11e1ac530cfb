//! A point as the beamline writes it: frames in one file, or one file a frame, and what stands beside them.
//!
//! Contract
//! - Files of a point are HDF5; they are taken in the order of the last number in their names. Others beside them are left alone.
//! - Headers are read, no pixel, until [`Point::read`], which reads some rows of every selected frame, once.
//! - Of many files one is open at a time.
//! - Files that links in them lead to are noted in [`Point::linked`], each as it was before anything of it was read.
//! - Layout (34-ID-E): frames in the recipe's dataset, `[frame, row, column]` or `[row, column]`;
//!   `entry1/detector/{Nx,Ny,startx,starty,binx,biny}`; `entry1/sample/{sampleX,sampleY,sampleZ}` µm;
//!   `entry1/wire/{wireX,wireY,wireZ}` µm, a number a frame.

use super::geometry::{Region, V3};
use super::recipe::{Method, Recipe};
use crate::arrivals::scan::{FileStamp, Scan};
use crate::formats::h5::{H5, Linked, read_number};
use crate::formats::links::{Lookup, awaited, lookup};
use crate::formats::stack::{FrameStack, Sample};
use crate::technique::Fault;
use ndarray::Array3;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What a point says about itself, for the manifest and for series.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Sample position, µm.
    pub sample_um: Option<V3>,
    /// Scan number.
    pub number: Option<f64>,
    /// Incident energy, keV, for monochromatic scans.
    pub incident_energy: Option<f64>,
    /// Seconds a frame.
    pub exposure_s: Option<f64>,
}

/// A point, headers read.
pub struct Point {
    files: Vec<PathBuf>,
    root: PathBuf,
    dataset: String,
    /// Which frames of which file, in order.
    frames: Vec<(usize, Vec<usize>)>,
    /// Selected frames.
    pub count: usize,
    /// Rows of a frame.
    pub rows: usize,
    /// Columns of a frame.
    pub columns: usize,
    /// Rows that the recipe selects.
    pub row_range: Range<usize>,
    /// Columns that the recipe selects.
    pub column_range: Range<usize>,
    /// What of the chip the frames show.
    pub region: Region,
    /// Bytes of one row of one frame, as stored.
    pub row_bytes: u64,
    /// Rows that are stored together.
    pub chunk_rows: usize,
    /// Readings of the wire in each selected frame.
    pub wire_um: Vec<V3>,
    /// The rest.
    pub header: Header,
    /// Files that the point's files link to, sorted; paths absolute.
    pub linked: Vec<FileStamp>,
}

/// The last number in a name, for sorting; names without one come first.
fn number_in(path: &Path) -> Option<u64> {
    let stem = path.file_stem()?.to_string_lossy().into_owned();
    let end = stem.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = stem.get(..end)?.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |i| i + 1);
    stem.get(start..end)?.parse().ok()
}

fn is_hdf5(path: &Path) -> bool {
    path.extension().is_some_and(|e| ["h5", "hdf5", "hdf", "nxs"].iter().any(|known| e.eq_ignore_ascii_case(known)))
}

struct OpenFile {
    h5: Rc<H5>,
}

impl OpenFile {
    fn open(path: &Path, root: &Path) -> Result<Self, Fault> {
        Self::noting(path, root, &Linked::default())
    }

    fn noting(path: &Path, root: &Path, linked: &Linked) -> Result<Self, Fault> {
        Ok(Self { h5: Rc::new(H5::open_noting(path, root, linked)?) })
    }

    fn stack(&self, dataset: &str) -> Result<FrameStack, Fault> {
        match lookup(&self.h5, dataset)? {
            Lookup::Dataset(found) => FrameStack::new(found, dataset),
            Lookup::Group => Err(Fault::Input(format!(
                "{}: {dataset} is a group, expected frames; set dataset in the recipe",
                self.h5.path.display()
            ))),
            Lookup::Missing(why) => Err(Fault::NotYet(format!(
                "{why}: no frames are written yet, or they lie elsewhere: set dataset in the recipe"
            ))),
            Lookup::Awaited(why) => Err(awaited(&why)),
        }
    }

    fn number(&self, name: &str) -> Option<f64> {
        read_number(&lookup(&self.h5, name).ok()?.dataset()?.dataset)
    }

    /// Numbers of a list of at most `most`.
    fn numbers(&self, name: &str, most: usize) -> Option<Vec<f64>> {
        let found = lookup(&self.h5, name).ok()?.dataset()?;
        if found.dataset.size() > most {
            return None;
        }
        crate::formats::h5::read_numbers(&found.dataset, &self.h5.path, name).ok()
    }
}

impl Point {
    /// Opens the point of a scan.
    ///
    /// # Errors
    /// What is missing or does not fit together.
    pub fn of(scan: &Scan, recipe: &Recipe) -> Result<Self, Fault> {
        let mut files: Vec<PathBuf> = scan.member_paths().filter(|p| is_hdf5(p)).collect();
        files.sort_by(|a, b| (number_in(a), a).cmp(&(number_in(b), b)));
        let Some(first) = files.first() else {
            return Err(Fault::Input(format!("{}: no HDF5 file in it", scan.root.join(&scan.name).display())));
        };
        let mut lengths = Vec::with_capacity(files.len());
        let linked = Linked::default();
        let open = OpenFile::noting(first, &scan.root, &linked)?;
        let stack = open.stack(&recipe.dataset)?;
        let (rows, columns) = (stack.rows, stack.columns);
        let header = Header {
            sample_um: sample(&open),
            number: open.number("/entry1/scanNum"),
            incident_energy: open.number("/entry1/sample/incident_energy"),
            exposure_s: open.number("/entry1/detector/exposure"),
        };
        let region = region(&open, recipe, rows, columns)?;
        let chunk_rows = stack.packed_rows().unwrap_or(1);
        let row_bytes = stack.row_bytes();
        if matches!(stack.sample, Sample::F64) {
            return Err(Fault::Input(format!("{}: frames of f64; counts are expected, as u16 or f32", stack.at())));
        }
        lengths.push(stack.frames);
        drop(stack);
        let wants_wire = matches!(recipe.method, Method::Wire(_));
        let mut wire = Vec::new();
        if wants_wire {
            wire.extend(readings(&open, lengths[0])?);
        }
        drop(open);
        for file in files.iter().skip(1) {
            let open = OpenFile::noting(file, &scan.root, &linked)?;
            let stack = open.stack(&recipe.dataset)?;
            if (stack.rows, stack.columns) != (rows, columns) {
                return Err(Fault::Input(format!(
                    "{}: frames of {}×{} pixels, those of {} are {rows}×{columns}; take a point with one readout",
                    stack.at(),
                    stack.rows,
                    stack.columns,
                    files[0].display()
                )));
            }
            lengths.push(stack.frames);
            if wants_wire {
                wire.extend(readings(&open, stack.frames)?);
            }
        }
        let total: usize = lengths.iter().sum();
        let [begin, end, step] = recipe.frames;
        let mut frames = Vec::new();
        let mut wire_um = Vec::new();
        let (mut before, mut count) = (0, 0);
        for (file, &n) in lengths.iter().enumerate() {
            let mine: Vec<usize> =
                (before..before + n).filter(|i| *i >= begin && *i < end && (i - begin) % step == 0).collect();
            wire_um.extend(mine.iter().filter_map(|&i| wire.get(i).copied()));
            count += mine.len();
            if !mine.is_empty() {
                frames.push((file, mine.iter().map(|i| i - before).collect()));
            }
            before += n;
        }
        // The recipe's end is a promise of the configuration; a point with fewer frames is still being written.
        if end != usize::MAX && total < end {
            return Err(Fault::NotYet(format!(
                "{}: {total} frames, the recipe expects {end}; if it will not get more, set frames in the recipe",
                files[0].display()
            )));
        }
        if count < 2 {
            return Err(Fault::NotYet(format!(
                "{}: {count} of {total} frames selected, at least 2 are needed",
                files[0].display()
            )));
        }
        let [r0, r1, c0, c1] = recipe.region;
        let (row_range, column_range) = (r0..r1.min(rows), c0..c1.min(columns));
        if row_range.is_empty() || column_range.is_empty() {
            return Err(Fault::Input(format!(
                "{}: frames of {rows}×{columns} pixels have none in the recipe's region {:?}",
                files[0].display(),
                recipe.region
            )));
        }
        Ok(Self {
            files,
            root: scan.root.clone(),
            dataset: recipe.dataset.clone(),
            frames,
            count,
            rows,
            columns,
            row_range,
            column_range,
            region,
            row_bytes,
            chunk_rows,
            wire_um,
            header,
            linked: linked.stamps(),
        })
    }

    /// `401 frames of 2048×2048 in 1 file`.
    #[must_use]
    pub fn summary(&self) -> String {
        let s = if self.files.len() == 1 { "" } else { "s" };
        format!("{} frames of {}×{} in {} file{s}", self.count, self.rows, self.columns, self.files.len())
    }

    /// Are all pixels of all files there?
    ///
    /// # Errors
    /// [`Fault::NotYet`] with what is missing.
    pub fn check_allocated(&self) -> Result<(), Fault> {
        self.files.iter().try_for_each(|f| OpenFile::open(f, &self.root)?.stack(&self.dataset)?.check_allocated())
    }

    /// `rows` of every selected frame, all columns: `[frame, row, column]`.
    ///
    /// # Errors
    /// As reading does.
    pub fn read(&self, rows: Range<usize>) -> Result<Array3<f32>, Fault> {
        self.read_frames(rows, 1)
    }

    /// The last selected frame, `[row, column]` in one list.
    ///
    /// # Errors
    /// As reading does.
    pub fn read_last(&self) -> Result<Vec<f32>, Fault> {
        let Some((file, frame)) = self.frames.last().and_then(|(f, list)| Some((self.files.get(*f)?, *list.last()?)))
        else {
            return Ok(Vec::new());
        };
        let mut out = vec![0.0; self.rows * self.columns];
        OpenFile::open(file, &self.root)?.stack(&self.dataset)?.read(&[frame], 0..self.rows, &mut out)?;
        Ok(out)
    }

    /// As [`Point::read`], of every `every`-th selected frame.
    ///
    /// # Errors
    /// As reading does.
    pub fn read_frames(&self, rows: Range<usize>, every: usize) -> Result<Array3<f32>, Fault> {
        let pixels = rows.len() * self.columns;
        let kept = self.count.div_ceil(every.max(1));
        let mut out = Array3::zeros((kept, rows.len(), self.columns));
        // Freshly made arrays are contiguous.
        let mut rest = out.as_slice_mut().unwrap_or_default();
        let mut at = 0;
        for (file, frames) in &self.frames {
            let some: Vec<usize> =
                frames.iter().enumerate().filter(|(i, _)| (at + i) % every.max(1) == 0).map(|(_, &f)| f).collect();
            at += frames.len();
            if some.is_empty() {
                continue;
            }
            let path = self.files.get(*file).ok_or_else(|| Fault::Task("a file of the point is missing".to_owned()))?;
            let stack = OpenFile::open(path, &self.root)?.stack(&self.dataset)?;
            if (stack.rows, stack.columns) != (self.rows, self.columns) {
                return Err(Fault::InputChanged(path.clone()));
            }
            let (mine, others) = rest.split_at_mut(some.len() * pixels);
            stack.read(&some, rows.clone(), mine)?;
            rest = others;
        }
        Ok(out)
    }
}

fn sample(open: &OpenFile) -> Option<V3> {
    let at = |axis: &str| {
        let name = format!("/entry1/sample/sample{axis}");
        open.numbers(&name, 1 << 20)?.first().copied().filter(|v| v.is_finite())
    };
    Some([at("X")?, at("Y")?, at("Z")?])
}

/// What of the chip a frame shows, checked against the recipe's detector.
fn region(open: &OpenFile, recipe: &Recipe, rows: usize, columns: usize) -> Result<Region, Fault> {
    let whole = |name: &str, default: usize| {
        let value = open.number(&format!("/entry1/detector/{name}"));
        match value {
            None => Ok(default),
            Some(v) if v >= 0.0 && v.fract() == 0.0 && v < 1e6 => Ok(v as usize),
            Some(v) => Err(Fault::Input(format!(
                "{}: entry1/detector/{name} is {v}, expected a whole number",
                open.h5.path.display()
            ))),
        }
    };
    let region = Region {
        start: [whole("startx", 0)?, whole("starty", 0)?],
        bin: [whole("binx", 1)?.max(1), whole("biny", 1)?.max(1)],
    };
    let chip = recipe.detector().shape;
    for (axis, n) in [columns, rows].into_iter().enumerate() {
        let end = region.start[axis] + n * region.bin[axis];
        if end > chip[axis] {
            return Err(Fault::Input(format!(
                "{}: its frames reach pixel {end} along {}, the recipe's detector has {}; is this the right detector?",
                open.h5.path.display(),
                ["x", "y"][axis],
                chip[axis]
            )));
        }
    }
    Ok(region)
}

/// Readings of the wire for the frames of a file.
fn readings(open: &OpenFile, frames: usize) -> Result<Vec<V3>, Fault> {
    let axis = |name: &str| {
        let values = open
            .numbers(&format!("/entry1/wire/{name}"), frames.max(1))
            .or_else(|| open.numbers(&format!("/entry1/{name}"), frames.max(1)))
            .unwrap_or_default();
        match values.len() {
            1 => Ok(vec![values[0]; frames]),
            n if n == frames => Ok(values),
            n => Err(Fault::Input(format!(
                "{}: entry1/wire/{name} has {n} numbers for {frames} frames; a wire scan needs one a frame",
                open.h5.path.display()
            ))),
        }
    };
    let (x, y, z) = (axis("wireX")?, axis("wireY")?, axis("wireZ")?);
    let all: Vec<V3> = x.iter().zip(&y).zip(&z).map(|((&x, &y), &z)| [x, y, z]).collect();
    if all.iter().flatten().any(|v| !v.is_finite()) {
        return Err(Fault::Input(format!("{}: entry1/wire has readings that are no numbers", open.h5.path.display())));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_by_their_last_number() {
        let mut names: Vec<PathBuf> = ["a/s2_10.h5", "a/s2_9.h5", "a/s2_100.h5", "a/s2.h5"].map(PathBuf::from).into();
        names.sort_by(|a, b| (number_in(a), a).cmp(&(number_in(b), b)));
        let sorted: Vec<_> = names.iter().map(|p| p.to_string_lossy().into_owned()).collect();
        assert_eq!(sorted, ["a/s2.h5", "a/s2_9.h5", "a/s2_10.h5", "a/s2_100.h5"]);
        assert_eq!(number_in(Path::new("none.h5")), None);
        assert!(is_hdf5(Path::new("x.H5")) && !is_hdf5(Path::new("geo.xml")));
    }
}
