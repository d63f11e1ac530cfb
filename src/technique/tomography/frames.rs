//! The frame-order stage: every chunk of a scan is decoded once, whatever order the work on it wants.
//!
//! Reconstruction works on detector rows. Where a row cannot be read without decoding its whole frame (compressed chunks
//! that hold many rows, TIFF files), or where a step works on whole frames, two stages go first:
//!
//! | stage | tasks | leave in scratch |
//! | --- | --- | --- |
//! | `flats` | one | the mean dark and the mean of each group of flats |
//! | `frames` | a run of projections each | its rows, see [`crate::formats::scratch`] |
//!
//! The tasks after them read scratch. Frames are kept as counts, or, when a step works on frames (zingers and phase retrieval,
//! which then see whole frames), as transmission; that in half precision where the recipe says so, or where the flats show
//! that its noise is far above the rounding ([`super::precision`]).
//!
//! Contract
//! - The result is that of reading rows directly, bit for bit but for half precision and for phase retrieval, whose margins leave
//!   an error there.
//! - Scratch lies in staging, or on the disk of the node on which all tasks of the scan run, and may be lost: a task that
//!   misses some makes it again from the scan, for itself.
//! - Memory: a block of frames at a time, at most [`BLOCK_BYTES`] or half a task's memory; decoding a chunk that is larger
//!   than that alone keeps to rows.
//! - [`FramesNote::decoded`] counts chunks; their sum over a job, preview and repetitions aside, is the scan's number of chunks.

use super::chain::{self, RawRows, Repaired, Steps};
use super::compute;
use super::load::{self, Opened};
use super::means::{self, Means};
use super::normalize::Flat;
use super::paganin::Optics;
use super::plan::Work;
use super::precision;
use super::recipe::{Precision, Recipe};
use crate::formats::FrameList;
use crate::formats::scratch::{self, Found, Kept, Shape};
use crate::formats::stack::Sample;
use crate::technique::{
    Fault, Resources, Scratch, Stage, TaskContext, TaskKind, TaskOutput, TaskRecord, TaskSpec, Timings,
};
use crate::worker::node_scratch;
use ndarray::{Array3, ArrayView2, ArrayView3, ArrayViewMut3, Axis, s};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

/// Frames decoded together, as f32.
const BLOCK_BYTES: usize = 256 << 20;

/// What the `flats` task reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FlatsNote {
    pub file: String,
    /// On the node that wrote it, not in staging.
    pub local: bool,
    pub shape: Shape,
    /// The first frame is the dark.
    pub dark: bool,
    /// Projection of each group of flats.
    pub at: Vec<f64>,
    pub decoded: u64,
    /// Quanta in the brightest pixels of the flats, see [`precision::quanta`].
    #[serde(default)]
    pub quanta: Option<f64>,
}

/// What a `frames` task reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FramesNote {
    pub file: String,
    /// On the node that wrote it, not in staging.
    pub local: bool,
    pub shape: Shape,
    /// First projection, and the one behind the last.
    pub projections: (usize, usize),
    /// Transmission, not counts.
    pub transmission: bool,
    pub repaired: Repaired,
    /// Chunks decoded.
    pub decoded: u64,
}

/// How counts are kept: exactly. Means of some are no whole numbers.
fn counts_kept(opened: &Opened) -> Kept {
    let joined = opened.source.projections.view.as_ref().is_some_and(|v| v.bin != (1, 1));
    if joined { Kept::F32 } else { Kept::of(opened.source.header.sample) }
}

/// Are frames kept as transmission? When a step of the recipe works on whole ones, and when counts that take four bytes are to
/// take two.
fn on_frames(opened: &Opened, recipe: &Recipe) -> bool {
    let shortened = recipe.scratch == Precision::F16 && counts_kept(opened) == Kept::F32;
    recipe.zinger.is_some() || recipe.paganin.is_some() || shortened
}

/// How transmission is kept; `quanta`: of the flats, when they are known.
fn kept(recipe: &Recipe, quanta: Option<f64>) -> Kept {
    let enough = || quanta.is_some_and(precision::half_is_enough);
    match recipe.scratch {
        Precision::F16 => Kept::F16,
        // Phase retrieval lowers the noise, and absorption is no transmission.
        Precision::Auto if recipe.paganin.is_none() && recipe.minus_log && enough() => Kept::F16,
        Precision::Auto | Precision::F32 => Kept::F32,
    }
}

/// Rows that share a chunk, when reading a row means decoding it.
pub(crate) fn packed_rows(opened: &Opened) -> Option<usize> {
    opened.source.projections.stack.packed_rows()
}

/// Frames of one task: whole chunks, as many as fit; `None` when not even one chunk fits.
fn block(opened: &Opened, resources: &Resources) -> Option<usize> {
    let header = &opened.source.header;
    let frame = header.rows * header.columns * 4;
    let stack = &opened.source.projections.stack;
    let (chunk, stored) = (stack.packed_frames(), stack.rows * stack.columns * 4);
    let most = usize::try_from(resources.task_memory / 2).unwrap_or(usize::MAX);
    let fits = most.min(BLOCK_BYTES.max(frame)) / frame.max(1);
    // Several tasks for each executor, so that reading and writing overlap.
    let share = header.projections().div_ceil(3 * resources.workers.max(1) as usize);
    let whole = |n: usize| n / chunk * chunk;
    match whole(fits) {
        _ if chunk.saturating_mul(stored) > most => None,
        0 => Some(chunk),
        n => Some(whole(share.next_multiple_of(chunk)).clamp(chunk, n)),
    }
}

/// Runs of about `each` projections that share no chunk.
fn blocks(list: &FrameList, each: usize) -> Vec<Range<usize>> {
    let chunk = list.stack.packed_frames().max(1);
    let mut blocks = Vec::new();
    let mut start = 0;
    for (i, pair) in list.frames.windows(2).enumerate() {
        if i + 1 - start >= each && pair[0] / chunk != pair[1] / chunk {
            blocks.push(start..i + 1);
            start = i + 1;
        }
    }
    blocks.push(start..list.frames.len());
    blocks
}

/// The two stages, when the scan wants them; `slabs`: how rows would be cut without, `whole`: frames are wanted whole.
pub(crate) fn stages(
    opened: &Opened,
    slabs: &[Range<usize>],
    whole: bool,
    resources: &Resources,
) -> Result<Option<[Stage; 2]>, Fault> {
    let list = &opened.source.projections;
    let rows = opened.source.header.rows;
    // A chunk that two slabs share would be decoded twice, one that holds most rows also for the search of the axis.
    let cut = |s: &Range<usize>, n: usize| !list.stored_rows(s).start.is_multiple_of(n);
    let shared = |n: usize| n > 1 && (slabs.iter().any(|s| cut(s, n)) || 5 * n >= list.stack.rows);
    if !whole && !packed_rows(opened).is_some_and(shared) {
        return Ok(None);
    }
    let Some(each) = block(opened, resources) else { return Ok(None) };
    let source = &opened.source;
    let frame_bytes = source.projections.row_bytes() * rows as u64;
    let calibrations = (source.header.flats() + source.header.darks) as u64;
    let flats = Work::Flats.spec("flats".into(), TaskKind::Stage, 1.0, frame_bytes * calibrations)?;
    let frames: Vec<TaskSpec> = blocks(&source.projections, each)
        .into_iter()
        .enumerate()
        .map(|(index, projections)| {
            let (cost, bytes) = (projections.len() as f64 / each as f64, frame_bytes * projections.len() as u64);
            Work::Frames { projections }.spec(format!("frames-{index:05}"), TaskKind::Stage, cost, bytes)
        })
        .collect::<Result<_, _>>()?;
    Ok(Some([
        Stage { name: "flats".into(), tasks: vec![flats], decide: None },
        Stage { name: "frames".into(), tasks: frames, decide: None },
    ]))
}

/// Chunks decoded so far; lists may share a stack.
pub(crate) fn decoded(opened: &Opened) -> u64 {
    let mut stacks: Vec<_> = opened.source.lists().map(|l| &l.stack).collect();
    stacks.sort_by_key(|s| std::sync::Arc::as_ptr(s) as usize);
    stacks.dedup_by_key(|s| std::sync::Arc::as_ptr(s) as usize);
    stacks.into_iter().map(|s| s.decoded()).sum()
}

/// A block of projections, whole frames.
pub(crate) struct Block {
    projections: Range<usize>,
    data: Array3<f32>,
    means: Option<Means>,
    optics: Option<Optics>,
    floating: bool,
    kept: Kept,
    decoded: u64,
    repaired: Repaired,
    at: String,
}

fn read_block(
    opened: &Opened,
    recipe: &Recipe,
    projections: Range<usize>,
    means: Option<Means>,
) -> Result<Block, Fault> {
    let list = &opened.source.projections;
    let header = &opened.source.header;
    let kept = match &means {
        Some(means) => kept(recipe, means.quanta),
        None => counts_kept(opened),
    };
    let before = decoded(opened);
    let positions: Vec<usize> = projections.clone().collect();
    Ok(Block {
        data: list.read_positions(&positions, 0..header.rows)?,
        projections,
        means,
        optics: opened.optics,
        floating: matches!(header.sample, Sample::F32 | Sample::F64),
        kept,
        decoded: decoded(opened) - before,
        repaired: Repaired::default(),
        at: list.stack.at(),
    })
}

/// The steps that work on frames.
fn process(block: &mut Block, recipe: &Recipe) -> Result<(), Fault> {
    let Some(means) = &block.means else { return Ok(()) };
    let (_, rows, columns) = block.data.dim();
    let (dark, flats) = chain::calibration(recipe, (rows, columns), means.dark.clone(), means.flats.clone());
    let first = block.projections.start;
    let &Block { optics, floating, .. } = &*block;
    let (dark, zinger, at) = (dark.view(), recipe.zinger, block.at.as_str());
    let steps = Steps { dark, flats: &flats, first, zinger, optics, floating, at };
    block.repaired = compute::transmission(&mut block.data, &steps)?;
    Ok(())
}

/// Work of the two stages between its phases.
pub(crate) enum Staged {
    Flats(Means),
    Frames(Box<Block>),
}

/// Loads for [`Work::Flats`] and [`Work::Frames`]; `None` for other work.
pub(crate) fn load(ctx: &TaskContext, opened: &Opened, recipe: &Recipe, work: &Work) -> Result<Option<Staged>, Fault> {
    match work {
        Work::Flats => means::read(ctx, opened, recipe).map(|m| Some(Staged::Flats(m))),
        Work::Frames { projections } => {
            if projections.end > opened.source.header.projections() {
                return Err(Fault::InputChanged(opened.source.projections.stack.file().to_owned()));
            }
            let means = if on_frames(opened, recipe) { Some(kept_means(ctx, opened, recipe)?) } else { None };
            read_block(opened, recipe, projections.clone(), means).map(|b| Some(Staged::Frames(Box::new(b))))
        }
        _ => Ok(None),
    }
}

/// Computes.
pub(crate) fn compute(mut staged: Staged, recipe: &Recipe) -> Result<Staged, Fault> {
    match &mut staged {
        Staged::Frames(block) => process(block, recipe)?,
        Staged::Flats(means) => {
            let none = means.flats.iter().all(|f| f.mean.iter().all(|v| v.is_nan()));
            if recipe.normalize && none {
                return Err(Fault::Input("the flat fields hold no number; check the detector".to_owned()));
            }
        }
    }
    Ok(staged)
}

/// Writes scratch.
pub(crate) fn store(ctx: &TaskContext, staged: Staged, timings: Timings) -> Result<TaskOutput, Fault> {
    let start = Instant::now();
    let (carry, left) = match staged {
        Staged::Flats(Means { dark, flats, decoded, quanta }) => {
            let quanta = quanta.filter(|n| n.is_finite());
            let views: Vec<ArrayView2<'_, f32>> =
                dark.iter().map(|d| d.view()).chain(flats.iter().map(|f| f.mean.view())).collect();
            // Without normalisation there is nothing to keep: an empty stack says so.
            let stack = if views.is_empty() {
                Array3::zeros((0, 0, 0))
            } else {
                ndarray::stack(Axis(0), &views).map_err(|e| Fault::Task(format!("flats and darks: {e}")))?
            };
            let (Scratch { path: file, bytes, local }, shape) = leave(ctx, stack.view(), Kept::F32)?;
            let at = flats.iter().map(|f| f.at).collect();
            let note = FlatsNote { file: file.clone(), local, shape, dark: dark.is_some(), at, decoded, quanta };
            (super::tasks::to_json(&note)?, Scratch { path: file, bytes, local })
        }
        Staged::Frames(block) => {
            let transmission = block.means.is_some();
            let (left, shape) = leave(ctx, block.data.view(), block.kept)?;
            let carry = super::tasks::to_json(&FramesNote {
                file: left.path.clone(),
                local: left.local,
                shape,
                projections: (block.projections.start, block.projections.end),
                transmission,
                repaired: block.repaired,
                decoded: block.decoded,
            })?;
            (carry, left)
        }
    };
    let timings = Timings { write_s: start.elapsed().as_secs_f64(), ..timings };
    // Scratch is no file of the job's: nothing that is recorded may depend on it.
    Ok(TaskOutput { carry, timings, scratch: Some(left), ..TaskOutput::default() })
}

/// Writes scratch on the node's own disk, where it is to lie there and can, else in staging.
fn leave(ctx: &TaskContext, frames: ArrayView3<'_, f32>, kept: Kept) -> Result<(Scratch, Shape), Fault> {
    let name = format!("{}.a{}.raw", ctx.task.label, ctx.attempt);
    let (count, rows, columns) = frames.dim();
    let bytes = Shape { frames: count, rows, columns, kept }.file_bytes();
    if let Some(base) = &ctx.job.scratch {
        let written = match node_scratch::folder(base, &ctx.job.key) {
            Ok(folder) if node_scratch::has_room(&folder, bytes) => {
                scratch::write(&folder, &name, frames, kept).map_err(|e| e.to_string())
            }
            Ok(folder) => Err(format!("{}: no room for {bytes} bytes", folder.display())),
            Err(e) => Err(e.to_string()),
        };
        match written {
            Ok(shape) => return Ok((Scratch { path: name, bytes, local: true }, shape)),
            Err(why) => tracing::warn!(why, "scratch goes to the output's filesystem, not to the node's"),
        }
    }
    let path = format!("scratch/{name}");
    let shape = scratch::write(&ctx.job.staging, &path, frames, kept)?;
    Ok((Scratch { path, bytes, local: false }, shape))
}

/// Where scratch lies for this task; on another node than its own it does not.
fn place(ctx: &TaskContext, file: &str, local: bool) -> Option<PathBuf> {
    if !local {
        return Some(ctx.staged(file));
    }
    let base = ctx.job.scratch.as_ref()?;
    // The lock comes with the folder: nobody sweeps what is read.
    node_scratch::folder(base, &ctx.job.key).ok().map(|folder| folder.join(file))
}

/// Reads scratch, wherever it lies.
fn fetch(
    ctx: &TaskContext,
    (file, local, shape): (&str, bool, Shape),
    rows: &Range<usize>,
    out: ArrayViewMut3<'_, f32>,
) -> Result<Found, Fault> {
    let Some(path) = place(ctx, file, local) else { return Ok(Found::Lost) };
    match scratch::read(&path, shape, rows, out) {
        // A node's own disk that fails is no reason to stop everything.
        Err(Fault::Storage(why)) if local => {
            tracing::warn!(why, "node scratch cannot be read");
            Ok(Found::Lost)
        }
        other => other,
    }
}

fn note<T: for<'a> Deserialize<'a>>(record: &TaskRecord) -> Result<T, Fault> {
    serde_json::from_str(&record.output.carry)
        .map_err(|e| Fault::Task(format!("the result of {} cannot be read: {e}", record.label)))
}

/// Notes of all finished `frames` tasks, in order; empty when the job has no such stage.
pub(crate) fn notes(carry: &[TaskRecord]) -> Result<Vec<FramesNote>, Fault> {
    let mut notes: Vec<FramesNote> = carry
        .iter()
        .filter(|r| r.kind == TaskKind::Stage && r.label.starts_with("frames-"))
        .map(note)
        .collect::<Result<_, _>>()?;
    notes.sort_by_key(|n| n.projections);
    Ok(notes)
}

/// The note of the `flats` task, when it is done.
pub(crate) fn flats_note(carry: &[TaskRecord]) -> Result<Option<FlatsNote>, Fault> {
    carry.iter().find(|r| r.kind == TaskKind::Stage && r.label == "flats").map(note).transpose()
}

/// Rows of the kept means: darks and flats as stacks of one frame each, or whole frames made again when they are lost.
fn kept_rows(ctx: &TaskContext, note: &FlatsNote, rows: &Range<usize>) -> Result<Option<Array3<f32>>, Fault> {
    let mut out = Array3::zeros((note.shape.frames, rows.len(), note.shape.columns));
    Ok(match fetch(ctx, (&note.file, note.local, note.shape), rows, out.view_mut())? {
        Found::Whole => Some(out),
        Found::Lost => None,
    })
}

fn kept_means(ctx: &TaskContext, opened: &Opened, recipe: &Recipe) -> Result<Means, Fault> {
    if !recipe.normalize {
        return Ok(Means::default());
    }
    let Some(note) = flats_note(&ctx.job.carry)? else { return means::read(ctx, opened, recipe) };
    let Some(frames) = kept_rows(ctx, &note, &(0..note.shape.rows))? else { return means::read(ctx, opened, recipe) };
    let mut frames = frames.outer_iter().map(|f| f.to_owned());
    let dark = if note.dark { frames.next() } else { None };
    let flats = note.at.iter().zip(frames).map(|(&at, mean)| Flat { at, mean }).collect();
    Ok(Means { dark, flats, decoded: 0, quanta: note.quanta })
}

/// Rows of everything out of scratch; `None` when the job has none.
pub(crate) fn rows(
    ctx: &TaskContext,
    opened: &Opened,
    recipe: &Recipe,
    rows: &Range<usize>,
) -> Result<Option<RawRows>, Fault> {
    let notes = notes(&ctx.job.carry)?;
    let header = &opened.source.header;
    let covered = notes.iter().try_fold(0, |next, n| (n.projections.0 == next).then_some(n.projections.1));
    if notes.is_empty() || covered != Some(header.projections()) {
        return Ok(None);
    }
    let mut data = Array3::zeros((header.projections(), rows.len(), header.columns));
    let mut made: Option<Means> = None;
    for note in &notes {
        let (first, last) = note.projections;
        let mut out = data.slice_mut(s![first..last, .., ..]);
        if fetch(ctx, (&note.file, note.local, note.shape), rows, out.view_mut())? == Found::Whole {
            continue;
        }
        tracing::warn!(file = note.file, "scratch is lost and made again from the scan");
        let means = if note.transmission {
            Some(match made.take() {
                Some(means) => means,
                None => kept_means(ctx, opened, recipe)?,
            })
        } else {
            None
        };
        let mut block = read_block(opened, recipe, first..last, means)?;
        process(&mut block, recipe)?;
        // As it would have come out of scratch.
        note.shape.kept.round(block.data.view_mut());
        out.assign(&block.data.slice(s![.., rows.clone(), ..]));
        made = block.means;
    }
    let transmission = notes.iter().all(|n| n.transmission);
    let (darks, flats) = match flats_note(&ctx.job.carry)? {
        _ if !recipe.normalize => (None, Vec::new()),
        Some(note) => match kept_rows(ctx, &note, rows)? {
            Some(frames) => {
                let mut frames = frames.axis_iter(Axis(0)).map(|f| f.insert_axis(Axis(0)).to_owned());
                let dark = if note.dark { frames.next() } else { None };
                (dark, note.at.iter().copied().zip(frames).collect())
            }
            None => load::calibrations(opened, rows)?,
        },
        None => load::calibrations(opened, rows)?,
    };
    Ok(Some(RawRows {
        rows: rows.clone(),
        margin: (0, 0),
        projections: data,
        darks,
        flats,
        optics: opened.optics,
        floating: matches!(header.sample, Sample::F32 | Sample::F64),
        transmission,
        at: opened.source.projections.stack.at(),
    }))
}
