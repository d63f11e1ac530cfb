//! How a point is cut into tasks.
//!
//! Stages: `preview` (first, on its own) · `calibrate` (when asked for) · `slabs` · `depths` (one file a depth, when asked for) ·
//! `finish`. Slabs are runs of detector rows: each worker reads only its rows of every frame, once.

use super::recipe::Recipe;
use super::source::{Header, Point};
use crate::arrivals::scan::Scan;
use crate::technique::tomography::load;
use crate::technique::{Fault, Plan, Resources, Stage, TaskKind, TaskSpec};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What a task is to do; travels as [`TaskSpec::params`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Sum of frames, brightest spots, their depths.
    Preview,
    /// Sharpen the mask's pose.
    Calibrate,
    /// Resolve these rows.
    Slab { index: usize, rows: Range<usize> },
    /// Write these depths as files.
    Depths { bins: Range<usize>, rows: usize, columns: usize },
    /// Assemble the bundle.
    Finish { rows: usize, columns: usize, slabs: usize, header: Box<Header> },
}

impl Work {
    /// From a task's parameters.
    pub fn decode(params: &[u8]) -> Result<Self, Fault> {
        bincode::serde::decode_from_slice(params, bincode::config::standard())
            .map(|(work, _)| work)
            .map_err(|e| Fault::Task(format!("a task's description cannot be read: {e}")))
    }

    fn spec(&self, label: String, kind: TaskKind, cost: f64, bytes_in: u64) -> Result<TaskSpec, Fault> {
        let params = bincode::serde::encode_to_vec(self, bincode::config::standard())
            .map_err(|e| Fault::Task(format!("a task cannot be described: {e}")))?;
        Ok(TaskSpec { label, kind, params, cost, bytes_in })
    }
}

/// Bytes that one row takes while it is worked on: counts of every frame, and depths.
#[must_use]
pub fn row_memory(frames: usize, columns: usize, bins: usize) -> u64 {
    // Maps and flags, and a copy while they are written, are small beside these; a third for scratch and templates.
    (4 * columns * (frames + 2 * bins)) as u64 * 4 / 3
}

/// Rows of each slab; `chunk`: rows that are stored together.
///
/// # Errors
/// [`Fault::Input`] when one row does not fit a task's memory.
pub(crate) fn cut(
    rows: Range<usize>,
    chunk: usize,
    row: u64,
    resources: &Resources,
) -> Result<Vec<Range<usize>>, Fault> {
    let most = (resources.task_memory / row.max(1)) as usize;
    if most == 0 {
        return Err(Fault::Input(format!(
            "one row of the detector needs {:.1} GiB, a task may hold {:.1} GiB; give executors more memory or fewer per node",
            row as f64 / (1u64 << 30) as f64,
            resources.task_memory as f64 / (1u64 << 30) as f64
        )));
    }
    let workers = resources.workers.max(1) as usize;
    // Four slabs a worker overlap reading, computing and writing, and even out bright and dark parts of the detector. A chunk
    // is read whole by everyone who wants a row of it: then one slab a worker.
    let pieces = if chunk > rows.len().div_ceil(4 * workers) { workers } else { 4 * workers };
    let each = rows.len().div_ceil(pieces).clamp(1, most);
    let each = if each > chunk && each < rows.len() { each / chunk * chunk } else { each };
    Ok((rows.start..rows.end).step_by(each).map(|r| r..(r + each).min(rows.end)).collect())
}

/// Depths that one task writes as files.
const DEPTHS_A_TASK: usize = 16;

/// The plan of a point.
pub(crate) fn plan(point: &Point, scan: &Scan, recipe: &Recipe, resources: &Resources) -> Result<Plan, Fault> {
    let bins = recipe.depth().bins;
    let row = row_memory(point.count, point.columns, bins);
    let slabs = cut(point.row_range.clone(), point.chunk_rows, row, resources)?;
    let row_bytes = point.row_bytes * point.count as u64;
    let largest = slabs.iter().map(ExactSizeIterator::len).max().unwrap_or(1).max(1);
    let tasks = slabs.iter().enumerate().map(|(index, rows)| {
        let work = Work::Slab { index, rows: rows.clone() };
        let cost = rows.len() as f64 / largest as f64;
        work.spec(format!("slab-{index:05}"), TaskKind::Stage, cost, row_bytes * rows.len() as u64)
    });
    let mut stages = Vec::new();
    if recipe.calibrate.is_some() {
        let task =
            Work::Calibrate.spec("calibrate".into(), TaskKind::Stage, 1.0, row_bytes * point.row_range.len() as u64)?;
        stages.push(Stage { name: "calibrate".into(), tasks: vec![task], decide: None });
    }
    stages.push(Stage { name: "slabs".into(), tasks: tasks.collect::<Result<_, _>>()?, decide: None });
    let (rows, columns) = (point.rows, point.columns);
    if recipe.per_depth {
        let image = (4 * rows * columns) as u64;
        let each = ((resources.task_memory / image.max(1) / 2) as usize).clamp(1, DEPTHS_A_TASK);
        let tasks = (0..bins).step_by(each).map(|b| {
            let work = Work::Depths { bins: b..(b + each).min(bins), rows, columns };
            work.spec(format!("depths-{b:05}"), TaskKind::Stage, 1.0, image * each as u64)
        });
        stages.push(Stage { name: "depths".into(), tasks: tasks.collect::<Result<_, _>>()?, decide: None });
    }
    let preview = if recipe.preview {
        Some(Work::Preview.spec("preview".into(), TaskKind::Preview, 1.0, row_bytes * 32)?)
    } else {
        None
    };
    let finish = Work::Finish { rows, columns, slabs: slabs.len(), header: Box::new(point.header.clone()) };
    Ok(Plan {
        preview,
        stages,
        finish: finish.spec("finish".into(), TaskKind::Finish, 1.0, 0)?,
        items: point.row_range.len() as u64,
        unit: "rows".into(),
        linked: load::foreign(&point.linked, scan),
        scratch: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(workers: u32, task_memory: u64) -> Resources {
        Resources { workers, threads: 8, task_memory }
    }

    #[test]
    fn slabs_cover_the_rows_once() {
        let row = row_memory(401, 2048, 401);
        for (rows, chunk, workers, memory) in [
            (0..2048, 1, 4, 8 << 30),
            (0..2048, 2048, 4, 8 << 30),
            (100..131, 1, 1, 8 << 30),
            (0..2048, 16, 56, 1 << 30),
            (5..6, 64, 8, 1 << 30),
        ] {
            let slabs = cut(rows.clone(), chunk, row, &resources(workers, memory)).unwrap();
            assert!(slabs.iter().all(|s| !s.is_empty() && row * s.len() as u64 <= memory));
            let all: Vec<usize> = slabs.iter().cloned().flatten().collect();
            assert_eq!(all, rows.clone().collect::<Vec<_>>());
            if chunk == 1 && rows.len() >= 4 * workers as usize {
                assert!(slabs.len() >= 3 * workers as usize);
            }
        }
        assert!(matches!(cut(0..4, 1, row, &resources(1, 1 << 20)), Err(Fault::Input(_))));
    }
}
