//! Reading what a task needs, and nothing else.
//!
//! Contract: after reading, the scan's files are compared with their stamps, so that nothing computed from a file that
//! was rewritten meanwhile is ever reported as a result.

use super::chain::RawRows;
use super::paganin::Optics;
use super::recipe::{Binning, Recipe, Run};
use crate::arrivals::scan::{FileStamp, Scan};
use crate::formats::{FrameList, TomoSource, stack::Sample, view::View};
use crate::technique::{Fault, TaskContext};
use ndarray::Array3;
use std::ops::Range;
use std::time::SystemTime;

/// The scan of a task, open, with the recipe's angles and pixel size in place of its own, and only what the recipe wants of it:
/// rows, columns and projections of the header are those that are read.
pub struct Opened {
    /// The scan.
    pub source: TomoSource,
    /// Radians, one per projection.
    pub angles: Vec<f64>,
    /// Edge of a pixel as it is read along a row, centimetres.
    pub pixel_size_cm: Option<f64>,
    /// Phase retrieval, when the recipe wants it.
    pub optics: Option<Optics>,
    /// What the scan itself has.
    pub detector: Detector,
    /// Which of the scan's projections are used.
    run: Run,
}

/// Sizes of a scan before anything of it is left out or joined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detector {
    /// Projections.
    pub projections: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Edge of a pixel, centimetres.
    pub pixel_size_cm: Option<f64>,
}

/// Opens the scan of a task.
///
/// # Errors
/// As [`TomoSource::of`], and [`Fault::Input`] for a recipe that wants what the scan has not.
pub fn open(ctx: &TaskContext, recipe: &Recipe) -> Result<Opened, Fault> {
    let source = TomoSource::of(&ctx.job.scan)?;
    if recipe.normalize {
        source.check_flats()?;
    }
    if recipe.angles.is_none() {
        source.check_angles()?;
    }
    cut(source, recipe)
}

/// Leaves of a scan what the recipe wants.
///
/// # Errors
/// [`Fault::Input`] when the scan has not so much.
pub fn cut(mut source: TomoSource, recipe: &Recipe) -> Result<Opened, Fault> {
    let header = &mut source.header;
    let pixel_size_cm = recipe.pixel_size_um.map(|um| um * 1e-4).or(header.pixel_size_cm);
    let (projections, rows, columns) = (header.projections(), header.rows, header.columns);
    let detector = Detector { projections, rows, columns, pixel_size_cm };
    if let Some(rule) = recipe.angles {
        header.angles_deg = rule.angles(projections);
        header.angles_from = "recipe".to_owned();
        header.notes.retain(|n| !n.starts_with("no rotation angles"));
    }
    let run = run(recipe, projections).map_err(|why| refused(&source, &why))?;
    let taken = |all: usize| (run.start..run.stop.unwrap_or(all).min(all)).step_by(run.step);
    let header = &mut source.header;
    if taken(projections).len() != projections {
        header.angles_deg = taken(projections).filter_map(|i| header.angles_deg.get(i).copied()).collect();
        let frames = &source.projections.frames;
        source.projections.frames = taken(frames.len()).filter_map(|i| frames.get(i).copied()).collect();
    }
    if let Some(view) = view(recipe, rows, columns).map_err(|why| refused(&source, &why))? {
        source.header.notes.extend(left_out(recipe, &view));
        source.look_through(&view);
    }
    let pixel_size_cm = pixel_size_cm.map(|cm| cm * recipe.binning.x as f64);
    let sign = if recipe.reverse { -1.0 } else { 1.0 };
    let angles = source.header.angles_deg.iter().map(|a| (sign * a).to_radians()).collect();
    let optics = optics(recipe, pixel_size_cm, &source)?;
    Ok(Opened { source, angles, pixel_size_cm, optics, detector, run })
}

fn refused(source: &TomoSource, why: &str) -> Fault {
    Fault::Input(format!("{}: {why}", source.projections.stack.at()))
}

/// The projections that the recipe wants: `angle_step` counts among those of `projections`.
fn run(recipe: &Recipe, count: usize) -> Result<Run, String> {
    let Run { start, stop, step } = recipe.projections.unwrap_or(Run { start: 0, stop: None, step: 1 });
    if start >= count || stop.is_some_and(|stop| stop > count) {
        let asked = stop.map_or_else(|| format!("start = {start}"), |stop| format!("start = {start}, stop = {stop}"));
        return Err(format!(
            "projections = {{ {asked} }} in the recipe, but the scan has {count}; write a start below and a stop of at most {count}"
        ));
    }
    Ok(Run { start, stop, step: step * recipe.angle_step.max(1) })
}

/// What is read of every frame; `None`: all of it, as it is.
fn view(recipe: &Recipe, rows: usize, columns: usize) -> Result<Option<View>, String> {
    for (key, span, has) in [("rows", recipe.rows, rows), ("columns", recipe.columns, columns)] {
        if let Some((first, end)) = span.filter(|s| s.1 > has) {
            return Err(format!(
                "{key} = [{first}, {end}] in the recipe, but the detector has {has} {key}; write an end of at most {has}"
            ));
        }
    }
    let Binning { x, y } = recipe.binning;
    let (left, right) = recipe.columns.unwrap_or((0, columns));
    // Rows around those that are wanted are read, too, where a step wants them; joined rows begin where the wanted ones do.
    let view = View { rows: recipe.row_on_detector(0)..rows, columns: left..right, bin: (x, y) };
    if view == (View { rows: 0..rows, columns: 0..columns, bin: (1, 1) }) {
        return Ok(None);
    }
    match view.shape() {
        (down @ 0, across) | (down, across @ (0 | 1)) => Err(format!(
            "binning {x} × {y} leaves {down} × {across} pixels of {rows} rows and {} columns; lower it",
            right - left
        )),
        _ => Ok(Some(view)),
    }
}

/// Rows and columns that fill no whole pixel, in words.
fn left_out(recipe: &Recipe, view: &View) -> Vec<String> {
    let Binning { x, y } = recipe.binning;
    let columns = view.columns.len() % x;
    // Of chosen rows, those; rows around them are nobody's loss.
    let rows = recipe.rows.map_or(view.rows.len(), |(first, end)| end - first) % y;
    let mut notes = Vec::new();
    if columns > 0 {
        let (last, end) = (view.columns.end - columns, view.columns.end);
        notes.push(format!("columns {last} to {} fill no pixel of {x} columns and are left out", end - 1));
    }
    if rows > 0 {
        let end = recipe.rows.map_or(view.rows.end, |r| r.1);
        notes.push(format!("rows {} to {} fill no pixel of {y} rows and are left out", end - rows, end - 1));
    }
    notes
}

impl Opened {
    /// Where something at projection `at` of the scan lies among those that are used: between two of them, or beyond.
    fn place(&self, at: f64) -> f64 {
        (at - self.run.start as f64) / self.run.step as f64
    }

    /// What is read, when that is not the whole scan as it is.
    #[must_use]
    pub fn summary(&self, recipe: &Recipe) -> Option<String> {
        let h = &self.source.header;
        let d = self.detector;
        let mut said = Vec::new();
        if h.projections() != d.projections {
            said.push(format!("{} projections", h.projections()));
        }
        if let Some((first, end)) = recipe.rows {
            said.push(format!("rows {first} to {}", end - 1));
        }
        if let Some((first, end)) = recipe.columns {
            said.push(format!("columns {first} to {}", end - 1));
        }
        let Binning { x, y } = recipe.binning;
        if (x, y) != (1, 1) {
            let rows = wanted_rows(self, recipe).len();
            said.push(format!("{x} × {y} pixels joined to {rows}×{}", h.columns));
        }
        (!said.is_empty()).then(|| format!("used: {}", said.join(", ")))
    }
}

fn optics(recipe: &Recipe, pixel_size_cm: Option<f64>, source: &TomoSource) -> Result<Option<Optics>, Fault> {
    let Some(phase) = recipe.paganin else { return Ok(None) };
    let Some(cm) = pixel_size_cm else {
        return Err(Fault::Input(format!(
            "{}: phase retrieval wants the pixel size, which the scan does not say; set pixel_size_um in the recipe",
            source.projections.stack.at()
        )));
    };
    Ok(Some(Optics {
        energy_kev: phase.energy_kev,
        distance_mm: phase.distance_mm,
        pixel_size_um: cm * 1e4,
        delta_beta: phase.delta_beta,
    }))
}

/// The rows that the recipe wants reconstructed, among those that are read.
#[must_use]
pub fn wanted_rows(opened: &Opened, recipe: &Recipe) -> Range<usize> {
    let first = recipe.rows_before();
    match recipe.rows {
        None => 0..opened.source.header.rows,
        Some((from, to)) => first..first + (to - from) / recipe.binning.y,
    }
}

/// Rows beyond its own that a row wants on either side, for the windows of zingers and phase retrieval.
#[must_use]
pub fn reach(opened: &Opened, recipe: &Recipe) -> usize {
    recipe.zinger.map_or(0, |z| z.width / 2) + opened.optics.map_or(0, |o| o.reach_px())
}

/// Reads some detector rows of everything, with the margin of [`reach`] rows.
///
/// # Errors
/// As reading does.
pub fn rows(opened: &Opened, recipe: &Recipe, rows: Range<usize>) -> Result<RawRows, Fault> {
    let source = &opened.source;
    let reach = reach(opened, recipe);
    let wide = rows.start.saturating_sub(reach)..(rows.end + reach).min(source.header.rows);
    let margin = (rows.start - wide.start, wide.end - rows.end);
    let (darks, flats) = if recipe.normalize { calibrations(opened, &wide)? } else { (None, Vec::new()) };
    Ok(RawRows {
        projections: source.projections.read_rows(wide)?,
        margin,
        darks,
        flats,
        rows,
        optics: opened.optics,
        floating: matches!(source.header.sample, Sample::F32 | Sample::F64),
        transmission: false,
        at: source.projections.stack.at(),
    })
}

/// Darks, and flats with the projection at which they were taken.
pub(crate) type Calibrations = (Option<Array3<f32>>, Vec<(f64, Array3<f32>)>);

/// Some rows of darks and flats.
pub(crate) fn calibrations(opened: &Opened, rows: &Range<usize>) -> Result<Calibrations, Fault> {
    let source = &opened.source;
    let darks = source.darks.as_ref().map(|l| l.read_rows(rows.clone())).transpose()?;
    let flats = flats(opened).into_iter().map(|(at, list)| Ok((at, list.read_rows(rows.clone())?)));
    Ok((darks, flats.collect::<Result<_, Fault>>()?))
}

/// Groups of flats with the place among the projections that are used at which they were taken, in order; those taken before
/// the first or after the last lie beyond them.
pub(crate) fn flats(opened: &Opened) -> Vec<(f64, &FrameList)> {
    let source = &opened.source;
    let last = opened.detector.projections.saturating_sub(1).max(1) as f64;
    let mut flats: Vec<(f64, &FrameList)> = source.flats_before.iter().map(|l| (0.0, l)).collect();
    flats.extend(source.flats_after.iter().map(|l| (last, l)));
    flats.extend(source.flats_between.iter().map(|(at, l)| (*at as f64, l)));
    flats.sort_by(|a, b| a.0.total_cmp(&b.0));
    flats.into_iter().map(|(at, list)| (opened.place(at), list)).collect()
}

/// Linked files that arrivals do not watch must stand still as long as the scan itself, by their change times.
///
/// # Errors
/// [`Fault::NotYet`] naming the file that changed last.
pub(crate) fn settled(scan: &Scan, linked: &[FileStamp]) -> Result<(), Fault> {
    let Some(last) = linked.iter().max_by_key(|s| s.ctime_ns).filter(|_| scan.quiet_ms > 0) else { return Ok(()) };
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    let age_ms = now_ms.saturating_sub(last.ctime_ns / 1_000_000);
    if age_ms >= i64::try_from(scan.quiet_ms).unwrap_or(i64::MAX) {
        return Ok(());
    }
    Err(Fault::NotYet(format!(
        "{}, to which the scan links, changed {:.1} s ago, less than the quiet time of {} s",
        last.path.display(),
        age_ms.max(0) as f64 / 1e3,
        scan.quiet_ms as f64 / 1e3
    )))
}

/// Those of the linked files that are no files of the scan anyway.
pub(crate) fn foreign(linked: &[FileStamp], scan: &Scan) -> Vec<FileStamp> {
    let own = |s: &FileStamp| scan.members.iter().any(|m| FileStamp { path: s.path.clone(), ..m.clone() } == *s);
    linked.iter().filter(|s| !own(s)).cloned().collect()
}

/// Compares the scan's files with their stamps.
///
/// # Errors
/// [`Fault::InputChanged`] with the file that changed.
pub fn unchanged(ctx: &TaskContext) -> Result<(), Fault> {
    match ctx.job.scan.changed() {
        Ok(None) => Ok(()),
        Ok(Some(path)) => Err(Fault::InputChanged(path)),
        Err(e) => Err(Fault::reading(&ctx.job.scan.root, &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linked_files_settle_only_where_nobody_vouches_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("frames.h5");
        std::fs::write(&file, b"frames").unwrap();
        let stamp = FileStamp::from_metadata(&file, &std::fs::metadata(&file).unwrap());
        let with = |quiet_ms| Scan { quiet_ms, ..Scan::default() };
        let fault = settled(&with(3_600_000), std::slice::from_ref(&stamp)).unwrap_err();
        assert!(matches!(&fault, Fault::NotYet(why) if why.contains("frames.h5")), "{fault}");
        assert!(settled(&with(0), std::slice::from_ref(&stamp)).is_ok() && settled(&with(3_600_000), &[]).is_ok());
        let old = FileStamp { ctime_ns: stamp.ctime_ns - 3_600_000_000_000, ..stamp };
        assert!(settled(&with(3_600_000), &[old]).is_ok());
    }
}
