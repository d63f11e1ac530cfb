//! How a scan is cut into tasks, and how much memory a slab takes.
//!
//! Stages: `preview` (first, on its own) · where [`super::frames`] says so, `flats` and `frames` · `prepare` (one task: is there beam, where is the axis) · `slabs` · with other outputs `outputs` · `finish`.
//! Slabs are runs of detector rows: many enough that reading, computing and writing overlap, of as many rows as fill the
//! vectors of an executor's threads where the scan has them, and never larger than a task's memory.

use super::compute;
use super::frames;
use super::gridding::{self, Padding};
use super::iterative;
use super::load::{self, Opened};
use super::locate;
use super::outputs;
use super::recipe::{Algorithm, Center, Recipe};
use super::slab;
use crate::arrivals::scan::Scan;
use crate::technique::{Fault, Plan, Resources, Stage, TaskKind, TaskSpec};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Rows on which the axis is looked for.
const CENTER_ROWS: usize = 5;

/// What a task is to do; travels as [`TaskSpec::params`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Look at the scan: see [`super::first_pass`].
    Preview,
    /// Check the beam and find the axis on these rows.
    Prepare { rows: Vec<usize> },
    /// Reconstruct these rows.
    Slab { index: usize, rows: Range<usize> },
    /// Take the means of darks and flats, whole frames, into scratch.
    Flats,
    /// Turn these projections into rows, in scratch.
    Frames { projections: Range<usize> },
    /// Write these slices as the recipe's other outputs.
    Output { slices: Range<usize>, shape: [usize; 3], depth: usize, pixel_size_cm: Option<f64> },
    /// Assemble the bundle.
    Finish { shape: [usize; 3], slabs: usize, acquisition: String },
}

impl Work {
    fn encode(&self) -> Result<Vec<u8>, Fault> {
        bincode::serde::encode_to_vec(self, bincode::config::standard())
            .map_err(|e| Fault::Task(format!("a task cannot be described: {e}")))
    }

    /// From a task's parameters.
    pub fn decode(params: &[u8]) -> Result<Self, Fault> {
        bincode::serde::decode_from_slice(params, bincode::config::standard())
            .map(|(work, _)| work)
            .map_err(|e| Fault::Task(format!("a task's description cannot be read: {e}")))
    }

    pub(crate) fn spec(&self, label: String, kind: TaskKind, cost: f64, bytes_in: u64) -> Result<TaskSpec, Fault> {
        Ok(TaskSpec { label, kind, params: self.encode()?, cost, bytes_in })
    }
}

/// Bytes a slab takes: what it has per row, and what it has anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Raw frames, work and image of one row.
    pub per_row: u64,
    /// Scratch of all threads.
    pub fixed: u64,
}

/// Memory of a slab of a scan with these sizes; `calibrations`: flats and darks.
#[must_use]
pub fn footprint(angles: usize, calibrations: usize, columns: usize, threads: usize, padding: Padding) -> Footprint {
    let per_row = slab::bytes_per_row(angles, columns) + 4 * calibrations * columns;
    Footprint { per_row: per_row as u64, fixed: slab::fixed_bytes(columns, threads, padding) as u64 }
}

/// Rows of each slab; `chunk`: rows of the detector stored together.
///
/// Of the sizes that fit, the one whose scan is expected to end first: rounds of slabs on all workers, and one slab's time
/// more for what nothing hides, the first read and the last write.
///
/// # Errors
/// [`Fault::Input`] when one slice does not fit a task's memory.
pub fn cut(rows: usize, chunk: usize, foot: Footprint, resources: &Resources) -> Result<Vec<Range<usize>>, Fault> {
    let memory = resources.task_memory;
    if memory < foot.per_row {
        return Err(Fault::Input(format!(
            "one slice needs {:.1} GiB, a task may hold {:.1} GiB; give executors more memory or fewer per node",
            gib(foot.per_row),
            gib(memory)
        )));
    }
    // Scratch that does not fit is a matter of threads, not of rows: then one row at a time.
    let most = (memory.saturating_sub(foot.fixed) / foot.per_row).clamp(1, rows.max(1) as u64) as usize;
    let (workers, threads) = (resources.workers.max(1) as usize, resources.threads.max(1) as usize);
    // A chunk is read whole by every slab that has a row in it: whole chunks where they are small, else few slabs.
    let few = rows.div_ceil(3 * workers);
    let (step, least) = if chunk <= few { (chunk.max(1), chunk) } else { (1, few) };
    let time = |each: usize| {
        // The steps beside gridding take about half its time, and do not care how many rows there are.
        let one = gridding::effort(each, threads) + each as f64 / (32 * threads) as f64;
        one * (rows.div_ceil(each).div_ceil(workers) + 1) as f64
    };
    let pairs = 2 * threads;
    let each = (1..=most.div_ceil(pairs))
        .map(|n| (n * pairs).next_multiple_of(step).max(least).min(most))
        .min_by(|&a, &b| time(a).total_cmp(&time(b)))
        .unwrap_or(most);
    Ok((0..rows.div_ceil(each)).map(|i| i * each..((i + 1) * each).min(rows)).collect())
}

/// Resources with the recipe's own bound on memory: three tasks overlap in an executor.
#[must_use]
pub fn bounded(recipe: &Recipe, resources: &Resources) -> Resources {
    let bound = recipe.memory_gb.map_or(u64::MAX, |gb| (gb * 1e9) as u64);
    Resources { task_memory: resources.task_memory.min(bound), ..*resources }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// Rows for the search of the axis: spread over the middle two thirds, where the sample usually is.
fn center_rows(rows: usize) -> Vec<usize> {
    let mut picked: Vec<usize> =
        (0..CENTER_ROWS).map(|i| rows / 6 + (4 * rows / 6) * (2 * i + 1) / (2 * CENTER_ROWS)).collect();
    picked.dedup();
    picked.retain(|&r| r < rows);
    picked
}

/// The plan of an open scan.
pub(crate) fn plan(opened: &Opened, scan: &Scan, recipe: &Recipe, resources: &Resources) -> Result<Plan, Fault> {
    let resources = &bounded(recipe, resources);
    let header = &opened.source.header;
    let recipe = &recipe.on_cut();
    let wanted = load::wanted_rows(opened, recipe);
    let (angles, rows, columns) = (header.projections(), wanted.len(), header.columns);
    let calibrations = header.flats() + header.darks;
    let mut foot = footprint(angles, calibrations, columns, resources.threads as usize, recipe.padding);
    // Where the axis is looked for, an offset scan's image may be up to twice as wide as the detector.
    let around = if let Center::Pixel(px) = recipe.center { px } else { 0.0 };
    let edge = locate::image_size(recipe.turn, &opened.angles, columns, around).unwrap_or(columns);
    foot.per_row += 4 * (edge * edge - columns * columns) as u64;
    foot.fixed = foot.fixed.max(slab::fixed_bytes(edge, resources.threads as usize, recipe.padding) as u64);
    compute::check_region(recipe, edge).map_err(|why| refused(opened, &why))?;
    let slice = compute::written(recipe, columns);
    if recipe.algorithm == Algorithm::Direct {
        // Rows upsampled sixteen times in double precision.
        foot.per_row += 8 * 16 * 2 * (angles * columns) as u64;
    }
    if matches!(recipe.algorithm, Algorithm::Sirt | Algorithm::Cgls) {
        foot.fixed += iterative::scratch_bytes(angles, columns, edge) as u64;
    }
    if let Some(view) = &opened.source.projections.view {
        foot.fixed += view.held_bytes(&opened.source.projections.stack, 1);
    }
    // Margins are read and filtered with every slab; a single row's are part of the least that fits.
    let margins = (2 * load::reach(opened, recipe)).min(header.rows.saturating_sub(1));
    let margin_bytes = (margins * 4 * (angles + calibrations) * columns) as u64;
    let margins_fit = margins == 0 || resources.task_memory >= margin_bytes + foot.per_row;
    let wide = Footprint { fixed: foot.fixed + margin_bytes, ..foot };
    let chunk = header.chunk.as_ref().and_then(|c| c.iter().rev().nth(1)).map_or(1, |&c| c);
    let chunk = chunk.div_ceil(recipe.binning.y);
    let placed = |slabs: Vec<Range<usize>>| -> Vec<Range<usize>> {
        slabs.into_iter().map(|r| wanted.start + r.start..wanted.start + r.end).collect()
    };
    let direct = if margins_fit { Some(placed(cut(rows, chunk, wide, resources)?)) } else { None };
    // Margins that outweigh the rows are better filtered once, as whole frames.
    let whole = opened.optics.is_some() && direct.as_ref().and_then(|s| s.first()).is_none_or(|s| s.len() < margins);
    let before = frames::stages(opened, direct.as_deref().unwrap_or(&[]), whole, resources)?;
    let scratch = before.is_some();
    let widest = compute::written(recipe, edge);
    let shape = [rows, slice[0], slice[1]];
    let after = outputs::stage(recipe, shape, widest, opened.pixel_size_cm, resources)?;
    let slabs = match direct {
        // Scratch is cut anywhere, and has no margins.
        _ if before.is_some() => placed(cut(rows, 1, foot, resources)?),
        Some(slabs) => slabs,
        None => {
            let why = format!(
                "one slice with the {margins} rows around it that phase retrieval and zinger removal want needs {:.1} GiB, a task may hold {:.1} GiB; give executors more memory, or lower distance_mm, delta_beta or the zinger window",
                gib(margin_bytes + foot.per_row),
                gib(resources.task_memory)
            );
            return Err(refused(opened, &why));
        }
    };
    let row_bytes = opened.source.projections.row_bytes() * (angles + calibrations) as u64;
    let largest = slabs.iter().map(ExactSizeIterator::len).max().unwrap_or(1).max(1);
    let tasks = slabs.iter().enumerate().map(|(index, r)| {
        let work = Work::Slab { index, rows: r.clone() };
        let cost = r.len() as f64 / largest as f64;
        work.spec(format!("slab-{index:05}"), TaskKind::Stage, cost, row_bytes * r.len() as u64)
    });
    let tasks = tasks.collect::<Result<Vec<_>, _>>()?;
    let picked: Vec<usize> = center_rows(rows).into_iter().map(|r| wanted.start + r).collect();
    let prepare_bytes = row_bytes * picked.len() as u64;
    let prepare = Work::Prepare { rows: picked }.spec("prepare".into(), TaskKind::Stage, 1.0, prepare_bytes)?;
    let preview = if recipe.preview {
        Some(Work::Preview.spec("preview".into(), TaskKind::Preview, 1.0, row_bytes)?)
    } else {
        None
    };
    let finish = Work::Finish { shape, slabs: slabs.len(), acquisition: acquisition(opened).to_string() };
    Ok(Plan {
        preview,
        stages: before
            .into_iter()
            .flatten()
            .chain([
                Stage { name: "prepare".into(), tasks: vec![prepare], decide: None },
                Stage { name: "slabs".into(), tasks, decide: None },
            ])
            .chain(after)
            .collect(),
        finish: finish.spec("finish".into(), TaskKind::Finish, 1.0, 0)?,
        items: rows as u64,
        unit: "slices".into(),
        linked: load::foreign(&opened.source.linked, scan),
        scratch,
    })
}

fn refused(opened: &Opened, why: &str) -> Fault {
    Fault::Input(format!("{}: {why}", opened.source.projections.stack.at()))
}

/// What the manifest says about the scan, and what was read of it.
fn acquisition(opened: &Opened) -> serde_json::Value {
    let (h, detector) = (&opened.source.header, &opened.detector);
    let ends = |f: fn(f64, f64) -> f64, start: f64| h.angles_deg.iter().fold(start, |a, &b| f(a, b));
    serde_json::json!({
        "layout": h.layout,
        "projections": detector.projections,
        "rows": detector.rows,
        "columns": detector.columns,
        "read": { "projections": h.projections(), "rows": h.rows, "columns": h.columns },
        "flats_before": h.flats_before,
        "flats_after": h.flats_after,
        "flats_between": h.flats_between,
        "darks": h.darks,
        "stored_as": h.sample,
        "chunk": h.chunk,
        "angles_from": h.angles_from,
        "angle_min_deg": ends(f64::min, f64::INFINITY),
        "angle_max_deg": ends(f64::max, f64::NEG_INFINITY),
        "pixel_size_cm": detector.pixel_size_cm,
        "metadata": h.metadata,
        "notes": h.notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_for_the_centre_exist_and_differ() {
        for rows in [1, 2, 3, 5, 7, 100, 2048] {
            let picked = center_rows(rows);
            assert!(
                !picked.is_empty() && picked.len() <= CENTER_ROWS && picked.iter().all(|&r| r < rows),
                "{rows} {picked:?}"
            );
            assert!(picked.windows(2).all(|w| w[0] < w[1]));
        }
    }

    proptest! {
        #[test]
        fn slabs_cover_every_row_once_and_fit(
            rows in 1usize..5000, columns in 2usize..4096, angles in 2usize..4000,
            workers in 1u32..300, threads in 1u32..65, memory_gib in 1u64..256, chunk in 1usize..3000,
        ) {
            let foot = footprint(angles, 100, columns, threads as usize, Padding::Edge);
            let resources = Resources { workers, threads, task_memory: memory_gib << 30 };
            if let Ok(slabs) = cut(rows, chunk, foot, &resources) {
                let mut next = 0;
                for slab in &slabs {
                    prop_assert_eq!(slab.start, next);
                    prop_assert!(slab.len() == 1 || foot.per_row * slab.len() as u64 + foot.fixed <= memory_gib << 30);
                    next = slab.end;
                }
                prop_assert_eq!(next, rows);
            } else {
                prop_assert!(foot.per_row > memory_gib << 30);
            }
        }
    }
}
