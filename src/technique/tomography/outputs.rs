//! The volume as TIFF stack and OME-Zarr: a stage after the slabs, when the recipe asks for them.
//!
//! Slabs leave their parts as f32; each task here reads a run of slices out of them and writes its own files, under its
//! own folder `out/<label>.a<attempt>/`. The finish task gives them their public names. Integers get their window from the
//! recipe, or from what the slabs saw: the narrowest that holds, for every slab, all but [`OUTSIDE`] of its values at
//! either end.

use super::finish;
use super::plan::Work;
use super::recipe::{Output, Recipe};
use super::tasks::SlabNote;
use crate::formats::output::{Scale, tiff_stack};
use crate::formats::volume::{PartOf, read_slices};
use crate::formats::zarr::Pyramid;
use crate::technique::winners::settle;
use crate::technique::{Fault, OutputFile, Resources, Stage, TaskContext, TaskKind, TaskOutput, TaskRecord, TaskSpec};
use ndarray::{Array3, ArrayView3};
use std::ops::Range;

/// Share of a slab's values that may lie beyond either end of a found window.
const OUTSIDE: f64 = 1e-4;
/// Values of a slab that are looked at.
const SAMPLES: usize = 1 << 22;
/// Slices of a task.
const SLICES: usize = 64;
/// The folder of a Zarr volume.
pub(crate) const ZARR: &str = "recon.zarr";
/// The folder of a TIFF stack.
const TIFF: &str = "tiff";
/// Where files lie until they get their public names.
pub(crate) const FOLDER: &str = "out";

fn wants(recipe: &Recipe, output: Output) -> bool {
    recipe.output.contains(&output)
}

/// The stage, when there is anything to write; slices `[y, x]` may turn out as large as `widest`.
pub(crate) fn stage(
    recipe: &Recipe,
    shape: [usize; 3],
    widest: [usize; 2],
    pixel_size_cm: Option<f64>,
    resources: &Resources,
) -> Result<Option<Stage>, Fault> {
    if !wants(recipe, Output::Tiff) && !wants(recipe, Output::Zarr) {
        return Ok(None);
    }
    let [height, width] = widest;
    let depth = Pyramid::new([shape[0], height, width], resources.task_memory).depth.min(SLICES);
    let bytes = (height * width * 4) as u64;
    let tasks: Vec<TaskSpec> = (0..shape[0].div_ceil(depth))
        .map(|index| {
            let slices = index * depth..((index + 1) * depth).min(shape[0]);
            let (cost, bytes) = (slices.len() as f64 / depth as f64, bytes * slices.len() as u64);
            // The block depth of the pyramid follows from the memory, which all tasks must agree on.
            let work = Work::Output { slices, shape, depth, pixel_size_cm };
            work.spec(format!("output-{index:05}"), TaskKind::Stage, cost, bytes)
        })
        .collect::<Result<_, _>>()?;
    Ok(Some(Stage { name: "outputs".into(), tasks, decide: None }))
}

/// All but the outermost values of a slab; `None` when it has no number.
pub(crate) fn window(volume: ArrayView3<'_, f32>) -> Option<(f32, f32)> {
    let step = volume.len().div_ceil(SAMPLES).max(1);
    let mut values: Vec<f32> = volume.iter().step_by(step).copied().filter(|v| v.is_finite()).collect();
    let last = values.len().checked_sub(1)?;
    let beyond = (OUTSIDE * last as f64) as usize;
    let low = *values.select_nth_unstable_by(beyond, f32::total_cmp).1;
    let high = *values.select_nth_unstable_by(last - beyond, f32::total_cmp).1;
    Some((low, high))
}

/// The scale of integers; `None`: floating point.
pub(crate) fn scale(recipe: &Recipe, carry: &[TaskRecord]) -> Result<Option<Scale>, Fault> {
    let Some(integer) = recipe.integer else { return Ok(None) };
    let (low, high) = match integer.window {
        Some(window) => window,
        None => finish::slabs(carry)?
            .iter()
            .filter_map(|(note, _)| note.window)
            .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
            .unwrap_or((0.0, 1.0)),
    };
    // A constant volume has no window.
    let high = if high > low { high } else { low + 1.0 };
    Ok(Some(Scale { bits: integer.bits, low, high }))
}

/// Slices on their way from parts to files.
pub(crate) struct Slices(Array3<f32>);

/// Reads the slices of [`Work::Output`].
pub(crate) fn load(
    ctx: &TaskContext,
    recipe: &Recipe,
    slices: &Range<usize>,
    shape: [usize; 3],
    pixel_size_cm: Option<f64>,
) -> Result<Slices, Fault> {
    let parts: Vec<PartOf> = finish::slabs(&ctx.job.carry)?.into_iter().map(|(note, file)| part(&note, file)).collect();
    let attributes = finish::attributes(pixel_size_cm);
    let shape = finish::found_shape(recipe, &ctx.job.carry, shape)?;
    read_slices(&ctx.job.staging, &parts, [shape[1], shape[2]], slices.clone(), &attributes).map(Slices)
}

pub(crate) fn part(note: &SlabNote, file: OutputFile) -> PartOf {
    PartOf { file, slices: note.rows.0..note.rows.1 }
}

/// Writes them.
pub(crate) fn store(
    ctx: &TaskContext,
    recipe: &Recipe,
    work: (usize, [usize; 3], usize, Option<f64>),
    slices: &Slices,
) -> Result<TaskOutput, Fault> {
    let (first, shape, depth, pixel_size_cm) = work;
    let shape = finish::found_shape(recipe, &ctx.job.carry, shape)?;
    let own = format!("{FOLDER}/{}.a{}", ctx.task.label, ctx.attempt);
    let scale = scale(recipe, &ctx.job.carry)?;
    let attributes = finish::attributes(pixel_size_cm);
    let staging = &ctx.job.staging;
    let mut files = Vec::new();
    if wants(recipe, Output::Tiff) {
        files.extend(tiff_stack(staging, &format!("{own}/{TIFF}"), first, slices.0.view(), scale, &attributes)?);
    }
    if wants(recipe, Output::Zarr) {
        let pyramid = Pyramid { shape, depth };
        files.extend(pyramid.write_block(staging, &format!("{own}/{ZARR}"), first, slices.0.view(), scale)?);
    }
    Ok(TaskOutput { files, carry: depth.to_string(), ..TaskOutput::default() })
}

/// Files of the stage, and the metadata of a Zarr volume, under their public names.
pub(crate) fn assemble(
    ctx: &TaskContext,
    recipe: &Recipe,
    shape: [usize; 3],
    pixel_size_cm: Option<f64>,
) -> Result<Vec<OutputFile>, Fault> {
    let staging = &ctx.job.staging;
    let records = || ctx.job.carry.iter().filter(|r| r.kind == TaskKind::Stage && r.label.starts_with("output-"));
    let mut files: Vec<OutputFile> = records().flat_map(|r| r.output.files.iter().cloned()).collect();
    if wants(recipe, Output::Zarr) {
        // As deep as the tasks made their blocks.
        let depth = ctx.job.carry.iter().find(|r| r.label == "output-00000").map_or(1, |r| depth_of(&r.output, shape));
        let pyramid = Pyramid { shape, depth };
        let own = format!("{FOLDER}/{}.a{}", ctx.task.label, ctx.attempt);
        let scale = scale(recipe, &ctx.job.carry)?;
        let attributes = finish::attributes(pixel_size_cm);
        let (folder, name) = (format!("{own}/{ZARR}"), &ctx.job.scan.name);
        let voxel = finish::voxel_cm(recipe, pixel_size_cm);
        files.extend(pyramid.write_metadata(staging, &folder, name, scale, &attributes, voxel)?);
    }
    for file in &mut files {
        let public = file.path.splitn(3, '/').nth(2).unwrap_or(&file.path).to_owned();
        crate::formats::output::make_folders(staging, &public)?;
        *file = settle(staging, file, public)?;
    }
    // Only folders are left, and files of attempts that lost.
    match std::fs::remove_dir_all(staging.join(FOLDER)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Fault::writing(&staging.join(FOLDER), &e)),
        _ => Ok(files),
    }
}

/// Slices of a block, from what the first task says of itself.
fn depth_of(output: &TaskOutput, shape: [usize; 3]) -> usize {
    output.carry.parse().unwrap_or_else(|_| Pyramid::new(shape, u64::MAX).depth)
}
