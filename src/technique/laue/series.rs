//! Points of one scan grid as a whole: depth over the grid, growing as points arrive.
//!
//! Contract
//! - Everything is made from the bundles beside it (`point.json` in each), at any time, by anybody: what lies in `_live/` may be
//!   deleted. Of several bundles of a scan (`name`, `name~2`, …) the last counts. Who does it, and when: [`super::live`].
//! - Files are replaced by a rename; what dead processes left on its way is swept.
//! - A refresh lists the folder, looks at each `point.json` once, and reads those that are new to this process.
//! - `_live/series.h5`: `points/{x,y,z}` µm, `points/histogram` `[point, depth]` counts, `depth` µm; when the positions are a grid
//!   also `map/data` `[v, u, depth]`, NaN where no point is, with `map/{u,v}` µm. `_live/series.json`: the points, and from which
//!   bundles they are (`of`, a digest); written last. `_live/depths.png`: depth downwards, points in the order of their last
//!   byte. `_live/map.png`: mean depth over the grid.

use super::depth::DepthGrid;
use super::finish::POINT;
use super::source::Header;
use super::stack::through_memory;
use crate::formats::part::write_new;
use crate::store::fs::aside;
use crate::store::{Fs, Host, RealFs, RealHost, temporary};
use crate::technique::Fault;
use crate::technique::tomography::preview::{png, window};
use ndarray::{Array1, Array2, Array3};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// What a bundle tells a series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointNote {
    /// Name of the scan.
    pub scan: String,
    /// When its last byte arrived, milliseconds since the epoch.
    pub last_byte_ms: u64,
    /// Where the sample was.
    pub header: Header,
    /// The depth bins.
    pub depth: DepthGrid,
    /// Intensity in each of them.
    pub histogram: Vec<f64>,
    /// Intensity of all decoded pixels.
    pub intensity: f64,
    /// Pixels resolved without any flag.
    pub decoded: u64,
}

/// Folder of the views.
pub const LIVE: &str = "_live";
/// The list of points in it.
const LIST: &str = "series.json";
const LIST_MAX: u64 = 1 << 30;
/// A note is small.
const NOTE_MAX: u64 = 1 << 20;
/// Positions nearer than this are the same, µm.
const SAME_UM: f64 = 0.05;

/// Name, and which version of it: `scan~2`.
fn versioned(name: &str) -> (&str, u64) {
    match name.rsplit_once('~') {
        Some((stem, n)) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => (stem, n.parse().unwrap_or(1)),
        _ => (name, 1),
    }
}

/// Notes by the folders of results and the bundles in them, with their modification times. Nothing: no note that is
/// understood.
type Known = HashMap<PathBuf, HashMap<String, (SystemTime, Option<Arc<PointNote>>)>>;

/// Notes read before.
static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

/// Names of the bundles in `results`, sorted.
pub(super) fn names(results: &Path) -> Result<Vec<String>, Fault> {
    let failed = |e: std::io::Error| Fault::reading(results, &e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(results).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if entry.file_type().is_ok_and(|t| t.is_dir()) && !name.starts_with(['.', '_']) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The bundles at a moment.
pub(super) struct Seen {
    /// All of them, sorted.
    pub names: Vec<String>,
    /// Of those that count as points, what they are made of.
    pub digest: String,
    points: Vec<Arc<PointNote>>,
}

/// Looks at all bundles; the last version of each scan counts.
pub(super) fn look(results: &Path) -> Result<Seen, Fault> {
    let names = names(results)?;
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default().entry(results.to_owned()).or_default();
    let mut before = std::mem::take(known);
    let mut last: BTreeMap<&str, (u64, SystemTime, &str)> = BTreeMap::new();
    for name in &names {
        let Some((at, note)) = note(&results.join(name), before.remove(name))? else { continue };
        let is_point = note.is_some();
        known.insert(name.clone(), (at, note));
        let (stem, version) = versioned(name);
        if is_point && last.get(stem).is_none_or(|l| version >= l.0) {
            last.insert(stem, (version, at, name));
        }
    }
    let mut digest = Sha256::new();
    let mut points = Vec::with_capacity(last.len());
    for (_, at, name) in last.into_values() {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        digest.update(format!("{name}\0{}\0", since.as_nanos()));
        points.extend(known.get(name).and_then(|k| k.1.clone()));
    }
    let digest = digest.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    Ok(Seen { names, digest, points })
}

type Dated = (SystemTime, Option<Arc<PointNote>>);

/// A bundle's note, read unless it is the one known; nothing where there is none.
fn note(bundle: &Path, known: Option<Dated>) -> Result<Option<Dated>, Fault> {
    let path = bundle.join(POINT);
    let failed = |e: std::io::Error| Fault::reading(&path, &e);
    let meta = match std::fs::metadata(&path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        other => other.map_err(failed)?,
    };
    let modified = meta.modified().map_err(failed)?;
    if let Some(known) = known.filter(|k| k.0 == modified) {
        return Ok(Some(known));
    }
    if !meta.is_file() || meta.len() > NOTE_MAX {
        return Ok(Some((modified, None)));
    }
    let bytes = std::fs::read(&path).map_err(failed)?;
    // A note that another version of the program wrote differently takes no part.
    Ok(Some((modified, serde_json::from_slice(&bytes).ok().map(Arc::new))))
}

/// The digest of what `_live` shows, as far as that can be told.
pub(super) fn shown(results: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Of {
        of: String,
    }
    let bytes = RealFs.read(&results.join(LIVE).join(LIST), LIST_MAX).ok()?;
    serde_json::from_slice::<Of>(&bytes).ok().map(|o| o.of)
}

/// Brings `<results>/_live` up to date at once, whoever else does; returns how many points it shows.
///
/// # Errors
/// Folders that cannot be read or written.
pub fn refresh(results: &Path) -> Result<usize, Fault> {
    loop {
        let seen = look(results)?;
        let shown = write(results, &seen)?;
        if names(results)? == seen.names {
            return Ok(shown);
        }
    }
}

/// The folder of the views, made when it is not there.
pub(super) fn folder(results: &Path) -> Result<PathBuf, Fault> {
    let live = results.join(LIVE);
    match std::fs::create_dir(&live) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(Fault::writing(&live, &e)),
        _ => Ok(live),
    }
}

/// Writes what was seen; returns how many points are shown.
pub(super) fn write(results: &Path, seen: &Seen) -> Result<usize, Fault> {
    let mut points = seen.points.clone();
    points.sort_by(|a, b| (a.last_byte_ms, &a.scan).cmp(&(b.last_byte_ms, &b.scan)));
    // Points of another depth grid than the latest one's cannot stand in the same map.
    let Some(grid) = points.last().map(|p| p.depth) else { return Ok(0) };
    let all = points.len();
    points.retain(|p| p.depth == grid && p.histogram.len() == grid.bins);
    put(&folder(results)?, grid, &points, all - points.len(), &seen.digest)?;
    Ok(points.len())
}

/// The positions as a grid: values along `u` and `v`, and the cell of each point.
struct Cells {
    u: Vec<f64>,
    v: Vec<f64>,
    at: Vec<(usize, usize)>,
}

fn distinct(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.dedup_by(|b, a| (*b - *a).abs() < SAME_UM);
    sorted
}

/// A grid, when the two axes that move most have not many more cells than there are points.
fn cells(points: &[Arc<PointNote>]) -> Option<Cells> {
    let positions: Vec<[f64; 3]> = points.iter().map(|p| p.header.sample_um).collect::<Option<_>>()?;
    let axis = |i: usize| -> Vec<f64> { positions.iter().map(|p| p[i]).collect() };
    let mut axes: Vec<(usize, Vec<f64>)> = (0..3).map(|i| (i, distinct(&axis(i)))).collect();
    axes.sort_by_key(|(i, d)| (std::cmp::Reverse(d.len()), *i));
    let ((iu, u), (iv, v)) = (axes.first()?.clone(), axes.get(1)?.clone());
    if u.len() * v.len() > 4 * points.len().max(16) {
        return None;
    }
    let nearest = |list: &[f64], x: f64| {
        (0..list.len()).min_by(|&a, &b| (list[a] - x).abs().total_cmp(&(list[b] - x).abs())).unwrap_or(0)
    };
    let at = positions.iter().map(|p| (nearest(&v, p[iv]), nearest(&u, p[iu]))).collect();
    Some(Cells { u, v, at })
}

fn put(live: &Path, grid: DepthGrid, points: &[Arc<PointNote>], left_out: usize, digest: &str) -> Result<(), Fault> {
    sweep(live);
    let mut histogram = Array2::<f32>::zeros((points.len(), grid.bins));
    for (mut row, p) in histogram.rows_mut().into_iter().zip(points) {
        row.iter_mut().zip(&p.histogram).for_each(|(h, &v)| *h = v as f32);
    }
    let cells = cells(points);
    replace(live, "series.h5", |name| {
        through_memory(live, name, |file| fill(file, grid, points, &histogram, cells.as_ref())).map(|_| ())
    })?;
    let image = histogram.t().mapv(|v| v.max(0.0).sqrt());
    let picture = png(image.view(), window(image.view(), false))?;
    replace(live, "depths.png", |name| write_new(live, name, |out| out.put(&picture)).map(|_| ()))?;
    if let Some(c) = cells {
        let mut image = Array2::<f32>::from_elem((c.v.len(), c.u.len()), f32::NAN);
        for (&(y, x), p) in c.at.iter().zip(points) {
            image[[y, x]] = mean_depth(p).map_or(f32::NAN, |z| z as f32);
        }
        let picture = png(image.view(), window(image.view(), false))?;
        replace(live, "map.png", |name| write_new(live, name, |out| out.put(&picture)).map(|_| ()))?;
    }
    let list: Vec<_> = points
        .iter()
        .map(|p| {
            serde_json::json!({ "scan": p.scan, "sample_um": p.header.sample_um, "number": p.header.number,
            "intensity": p.intensity, "decoded": p.decoded, "mean_depth_um": mean_depth(p) })
        })
        .collect();
    let json = serde_json::json!({ "of": digest, "points": list, "left_out_other_depths": left_out });
    let json = serde_json::to_vec_pretty(&json).map_err(|e| Fault::Task(e.to_string()))?;
    replace(live, LIST, |name| write_new(live, name, |out| out.put(&json)).map(|_| ()))
}

/// Removes what processes that are proven gone left on its way.
fn sweep(live: &Path) {
    for name in RealFs.list(live).unwrap_or_default() {
        if temporary::writer(&name).is_some_and(|p| RealHost.is_proven_dead(&p)) {
            // What cannot be removed is in nobody's way.
            let _ = std::fs::remove_file(live.join(name));
        }
    }
}

fn mean_depth(p: &PointNote) -> Option<f64> {
    let total: f64 = p.histogram.iter().map(|v| v.max(0.0)).sum();
    let moment: f64 = p.histogram.iter().enumerate().map(|(m, v)| v.max(0.0) * p.depth.centre_um(m)).sum();
    (total > 0.0).then(|| moment / total)
}

/// Writes beside, then renames.
fn replace(live: &Path, name: &str, write: impl FnOnce(&str) -> Result<(), Fault>) -> Result<(), Fault> {
    let to = live.join(name);
    let own = aside(&RealFs, &to);
    let own_name = own.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let done = write(&own_name).and_then(|()| std::fs::rename(&own, &to).map_err(|e| Fault::writing(&to, &e)));
    if done.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&own);
    }
    done
}

fn fill(
    file: &hdf5::File,
    grid: DepthGrid,
    points: &[Arc<PointNote>],
    histogram: &Array2<f32>,
    cells: Option<&Cells>,
) -> hdf5::Result<()> {
    let list = |name: &str, values: Vec<f64>| -> hdf5::Result<()> {
        let values = Array1::from(values);
        file.new_dataset::<f64>().shape(values.len()).obj_track_times(false).create(name)?.write(&values)
    };
    list("/depth", grid.centres_um())?;
    for (i, axis) in ["x", "y", "z"].into_iter().enumerate() {
        let at = |p: &Arc<PointNote>| p.header.sample_um.map_or(f64::NAN, |s| s[i]);
        list(&format!("/points/{axis}"), points.iter().map(at).collect())?;
    }
    let data = file.new_dataset::<f32>().shape(histogram.dim()).obj_track_times(false).create("/points/histogram")?;
    data.write(histogram.view())?;
    if let Some(c) = cells {
        list("/map/u", c.u.clone())?;
        list("/map/v", c.v.clone())?;
        let mut map = Array3::<f32>::from_elem((c.v.len(), c.u.len(), grid.bins), f32::NAN);
        for (&(y, x), row) in c.at.iter().zip(histogram.rows()) {
            map.slice_mut(ndarray::s![y, x, ..]).assign(&row);
        }
        let data = file.new_dataset::<f32>().shape(map.dim()).obj_track_times(false).create("/map/data")?;
        data.write(map.view())?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn bundle(results: &Path, name: &str, sample: [f64; 3], depth_um: f64) {
        let depth = DepthGrid { first_um: -5.0, step_um: 1.0, bins: 11 };
        let mut histogram = vec![0.0; 11];
        histogram[(depth_um + 5.0) as usize] = 100.0;
        let header = Header { sample_um: Some(sample), ..Header::default() };
        let note = PointNote {
            scan: name.into(),
            last_byte_ms: sample[0] as u64,
            header,
            depth,
            histogram,
            intensity: 100.0,
            decoded: 3,
        };
        // Whole at once, as bundles are.
        let aside = results.join(format!(".{name}"));
        std::fs::create_dir(&aside).unwrap();
        std::fs::write(aside.join(POINT), serde_json::to_vec(&note).unwrap()).unwrap();
        std::fs::rename(aside, results.join(name)).unwrap();
    }

    #[test]
    fn a_map_grows_and_can_be_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        let results = dir.path();
        assert_eq!(refresh(results).unwrap(), 0);
        for i in 0..6 {
            let sample = [f64::from(i % 3) * 2.0 + 0.001 * f64::from(i), 7.0, f64::from(i / 3) * 5.0];
            bundle(results, &format!("p{i}"), sample, f64::from(i) - 2.0);
            assert_eq!(refresh(results).unwrap(), i as usize + 1);
        }
        // A scan that was processed again counts once, in its last version; other folders do not count.
        bundle(results, "p5~2", [4.0, 7.0, 5.0], 4.0);
        std::fs::create_dir(results.join(".staging-x")).unwrap();
        std::fs::create_dir(results.join("other")).unwrap();
        std::fs::remove_dir_all(results.join(LIVE)).unwrap();
        assert_eq!(refresh(results).unwrap(), 6);
        let file = crate::formats::h5::open_library(&results.join("_live/series.h5")).unwrap();
        let map = file.dataset("/map/data").unwrap().read::<f32, ndarray::Ix3>().unwrap();
        assert_eq!(map.dim(), (2, 3, 11));
        assert_eq!(map[[1, 2, 9]], 100.0);
        assert_eq!(map[[0, 1, 4]], 100.0);
        assert!(results.join("_live/map.png").is_file() && results.join("_live/depths.png").is_file());
        assert_eq!(std::fs::read_dir(results.join(LIVE)).unwrap().count(), 4);
    }

    #[test]
    fn versions_are_told_apart() {
        assert_eq!(versioned("a~2"), ("a", 2));
        assert_eq!(versioned("a~b"), ("a~b", 1));
    }
}
