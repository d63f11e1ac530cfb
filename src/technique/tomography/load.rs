//! Reading what a task needs, and nothing else.
//!
//! Contract: after reading, the scan's files are compared with their stamps, so that nothing computed from a file that
//! was rewritten meanwhile is ever reported as a result.

use super::chain::RawRows;
use super::paganin::Optics;
use super::recipe::Recipe;
use crate::arrivals::scan::{FileStamp, Scan};
use crate::formats::{FrameList, TomoSource, stack::Sample};
use crate::technique::{Fault, TaskContext};
use ndarray::Array3;
use std::ops::Range;
use std::time::SystemTime;

/// The scan of a task, open, with the recipe's angles and pixel size in place of its own.
pub struct Opened {
    /// The scan.
    pub source: TomoSource,
    /// Radians, one per projection.
    pub angles: Vec<f64>,
    /// Centimetres.
    pub pixel_size_cm: Option<f64>,
    /// Phase retrieval, when the recipe wants it.
    pub optics: Option<Optics>,
}

/// Opens the scan of a task.
///
/// # Errors
/// As [`TomoSource::of`].
pub fn open(ctx: &TaskContext, recipe: &Recipe) -> Result<Opened, Fault> {
    let mut source = TomoSource::of(&ctx.job.scan)?;
    if recipe.normalize {
        source.check_flats()?;
    }
    if recipe.angles.is_none() {
        source.check_angles()?;
    }
    let header = &mut source.header;
    if let Some(rule) = recipe.angles {
        header.angles_deg = rule.angles(header.projections());
        header.angles_from = "recipe".to_owned();
        header.notes.retain(|n| !n.starts_with("no rotation angles"));
    }
    let step = recipe.angle_step.max(1);
    if step > 1 {
        header.angles_deg = header.angles_deg.iter().copied().step_by(step).collect();
        source.projections.frames = source.projections.frames.iter().copied().step_by(step).collect();
        source.flats_between.iter_mut().for_each(|(at, _)| *at /= step);
    }
    let header = &source.header;
    let sign = if recipe.reverse { -1.0 } else { 1.0 };
    let angles = header.angles_deg.iter().map(|a| (sign * a).to_radians()).collect();
    let pixel_size_cm = recipe.pixel_size_um.map(|um| um * 1e-4).or(header.pixel_size_cm);
    let optics = optics(recipe, pixel_size_cm, &source)?;
    Ok(Opened { source, angles, pixel_size_cm, optics })
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

/// The detector rows that the recipe wants reconstructed.
///
/// # Errors
/// [`Fault::Input`] when the detector has not so many.
pub fn wanted_rows(opened: &Opened, recipe: &Recipe) -> Result<Range<usize>, Fault> {
    let rows = opened.source.header.rows;
    match recipe.rows {
        None => Ok(0..rows),
        Some((first, end)) if end <= rows => Ok(first..end),
        Some((first, end)) => Err(Fault::Input(format!(
            "{}: rows = [{first}, {end}] in the recipe, but the detector has {rows} rows; write an end of at most {rows}",
            opened.source.projections.stack.at()
        ))),
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
    let flats = flats(source).into_iter().map(|(at, list)| Ok((at, list.read_rows(rows.clone())?)));
    Ok((darks, flats.collect::<Result<_, Fault>>()?))
}

/// Groups of flats with the projection at which they were taken, in order.
pub(crate) fn flats(source: &TomoSource) -> Vec<(f64, &FrameList)> {
    let last = source.header.projections().saturating_sub(1).max(1) as f64;
    let mut flats: Vec<(f64, &FrameList)> = source.flats_before.iter().map(|l| (0.0, l)).collect();
    flats.extend(source.flats_after.iter().map(|l| (last, l)));
    flats.extend(source.flats_between.iter().map(|(at, l)| (*at as f64, l)));
    flats.sort_by(|a, b| a.0.total_cmp(&b.0));
    flats
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

/// Linked files that are no files of the scan anyway.
pub(crate) fn linked(opened: &Opened, scan: &Scan) -> Vec<FileStamp> {
    let own = |s: &FileStamp| scan.members.iter().any(|m| FileStamp { path: s.path.clone(), ..m.clone() } == *s);
    opened.source.linked.iter().filter(|s| !own(s)).cloned().collect()
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
