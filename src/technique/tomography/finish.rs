//! The last task: one bundle out of parts.
//!
//! Contract
//! - Only files that the coordinator recorded are in the bundle; files of attempts that lost are removed.
//! - `recon.h5` is written under this attempt's own name and renamed: whoever repeats this task, after a crash or
//!   beside a stalled twin, ends with the same files.
//! - Parts are kept under a virtual dataset, or merged into one plain file and removed when the recipe says so or the
//!   volume is at most [`PLAIN_BYTES`]. They are removed only after the plain file is synced and has its name.
//! - The result lists every file of the bundle with its hash.

use super::chain::Repaired;
use super::compute::{self, Axial};
use super::frames;
use super::outputs;
use super::plan::bounded;
use super::recipe::{Output, Recipe};
use super::tasks::SlabNote;
use crate::formats::output::{Scale, dtype};
use crate::formats::part::{VolumeAttributes, sha256_of};
use crate::formats::volume::{PartOf, merge, virtual_over};
use crate::technique::winners::{public_name, remove, rename, settle, sweep};
use crate::technique::{Fault, OutputFile, TaskContext, TaskKind, TaskOutput, TaskRecord};
use std::path::Path;

/// Volumes up to this size are one plain file.
const PLAIN_BYTES: u64 = 64 << 20;
const RESULT: &str = "recon.h5";

/// The axis that the prepare task reported.
pub(crate) fn axial(carry: &[TaskRecord]) -> Result<Axial, Fault> {
    let record = carry
        .iter()
        .find(|r| r.label == "prepare")
        .ok_or_else(|| Fault::Task("the prepare task's result is missing".to_owned()))?;
    serde_json::from_str(&record.output.carry)
        .map_err(|e| Fault::Task(format!("the prepare task's result cannot be read: {e}")))
}

/// The volume's shape: only when the axis is known, an offset scan is known for one.
pub(crate) fn found_shape(recipe: &Recipe, carry: &[TaskRecord], planned: [usize; 3]) -> Result<[usize; 3], Fault> {
    Ok(axial(carry)?.image_size.map_or(planned, |edge| {
        let [height, width] = compute::written(recipe, edge);
        [planned[0], height, width]
    }))
}

/// Edges of a voxel along `z`, `y` and `x`, given that of a pixel along a row of what was read.
pub(crate) fn voxel_cm(recipe: &Recipe, pixel_size_cm: Option<f64>) -> Option<[f64; 3]> {
    pixel_size_cm.map(|cm| [cm * recipe.binning.y as f64 / recipe.binning.x as f64, cm, cm])
}

/// Unit and axes of what is written.
pub(crate) fn attributes(pixel_size_cm: Option<f64>) -> VolumeAttributes {
    VolumeAttributes {
        units: if pixel_size_cm.is_some() { "cm^-1" } else { "px^-1" }.to_owned(),
        axes: "z:y:x".to_owned(),
        description: "linear attenuation coefficient; z is the detector row".to_owned(),
    }
}

/// Assembles the bundle.
pub(crate) fn store(
    ctx: &TaskContext,
    recipe: &Recipe,
    shape: [usize; 3],
    slabs: usize,
    acquisition: &str,
) -> Result<TaskOutput, Fault> {
    let staging = &ctx.job.staging;
    let axial = axial(&ctx.job.carry)?;
    let shape = found_shape(recipe, &ctx.job.carry, shape)?;
    let acquisition: serde_json::Value = serde_json::from_str(acquisition).unwrap_or_default();
    let pixel_size_cm = acquisition.get("pixel_size_cm").and_then(serde_json::Value::as_f64);
    // The acquisition has the detector's.
    let pixel_size_cm = pixel_size_cm.map(|cm| cm * recipe.binning.x as f64);
    let columns = acquisition.pointer("/read/columns").and_then(serde_json::Value::as_u64).unwrap_or_default() as usize;
    let (parts, repaired) = parts(&ctx.job.carry, slabs)?;
    let bytes = shape.iter().map(|&n| n as u64).product::<u64>() * 4;
    let scale = outputs::scale(recipe, &ctx.job.carry)?;
    let hdf5 = recipe.output.contains(&Output::Hdf5);
    let plain = recipe.single_file || bytes <= PLAIN_BYTES || scale.is_some();
    let attributes = attributes(pixel_size_cm);
    let mut files = outputs::assemble(ctx, recipe, shape, pixel_size_cm)?;
    if !hdf5 {
        // The parts were only on the way to the other outputs.
    } else if plain {
        files.push(merged(ctx, &parts, shape, &attributes, scale)?);
    } else {
        let own = format!("recon.a{}.tmp.h5", ctx.attempt);
        remove(&staging.join(&own))?;
        let made = virtual_over(staging, &own, &parts, shape, &attributes)?;
        rename(staging, &own, RESULT)?;
        files.push(OutputFile { path: RESULT.to_owned(), ..made });
        files.extend(parts.iter().map(|p| p.file.clone()));
    }
    files.extend(previews(staging, &ctx.job.carry)?);
    sweep(staging, &["parts", "preview", "scratch"], &files)?;
    super::preview::withdraw(ctx);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let carry = serde_json::json!({
        "parameters": parameters(recipe, &axial, pixel_size_cm, columns),
        "acquisition": acquisition,
        "output": {
            "file": hdf5.then_some(RESULT),
            "dataset": hdf5.then_some(crate::formats::part::DATASET),
            "formats": recipe.output,
            "shape": shape,
            "dtype": dtype(scale),
            "integer": scale,
            "units": attributes.units,
            "axes": attributes.axes,
            "voxel_size_cm": voxel_cm(recipe, pixel_size_cm),
            "scratch": frames::notes(&ctx.job.carry)?.first().map(|n| n.shape.kept),
            "storage": if !hdf5 { "other outputs only" } else if plain { "plain" } else { "virtual dataset over parts/" },
            "repaired": repaired,
            "chunks_decoded": decoded(&ctx.job.carry)?,
            "memory": {
                "task_bound_bytes": bounded(recipe, &ctx.job.resources).task_memory,
                "executor_peak_bytes": self::slabs(&ctx.job.carry)?.iter().map(|(n, _)| n.peak_bytes).max(),
            },
        },
    });
    Ok(TaskOutput { files, carry: carry.to_string(), ..TaskOutput::default() })
}

fn parameters(recipe: &Recipe, axial: &Axial, pixel_size_cm: Option<f64>, columns: usize) -> serde_json::Value {
    let mut all = serde_json::to_value(recipe).unwrap_or_default();
    if let Some(map) = all.as_object_mut() {
        let column = |c: f64| recipe.column_on_detector(c);
        let rows: Vec<(usize, f64)> =
            axial.rows.iter().map(|&(row, c)| (recipe.row_on_detector(row), column(c))).collect();
        map.insert("rotation_center_px".into(), column(axial.rotation_center_px).into());
        map.insert("rotation_center_read_px".into(), axial.rotation_center_px.into());
        map.insert("rotation_center_method".into(), axial.method.clone().into());
        map.insert("rotation_center_rows".into(), serde_json::json!(rows));
        map.insert("warnings".into(), serde_json::json!(axial.warnings));
        map.insert("pixel_size_cm".into(), pixel_size_cm.into());
        map.insert("stripe_used".into(), serde_json::json!(recipe.stripe.map(|s| s.fitted(columns))));
    }
    all
}

/// What finished slabs reported, each with its part.
pub(crate) fn slabs(carry: &[TaskRecord]) -> Result<Vec<(SlabNote, OutputFile)>, Fault> {
    carry
        .iter()
        .filter(|r| r.kind == TaskKind::Stage && r.label.starts_with("slab-"))
        .map(|record| {
            let note = serde_json::from_str(&record.output.carry)
                .map_err(|e| Fault::Task(format!("the result of {} cannot be read: {e}", record.label)))?;
            let file = record.output.files.first().cloned();
            let file = file.ok_or_else(|| Fault::Task(format!("{} recorded no file", record.label)))?;
            Ok((note, file))
        })
        .collect()
}

/// The recorded parts, and what was repaired in all of them.
fn parts(carry: &[TaskRecord], count: usize) -> Result<(Vec<PartOf>, Repaired), Fault> {
    let mut repaired = Repaired::default();
    frames::notes(carry)?.iter().for_each(|n| repaired = repaired.plus(n.repaired));
    let slabs = slabs(carry)?;
    slabs.iter().for_each(|(note, _)| repaired = repaired.plus(note.repaired));
    let parts: Vec<PartOf> = slabs.into_iter().map(|(note, file)| outputs::part(&note, file)).collect();
    if parts.len() != count {
        return Err(Fault::Task(format!("{} of {count} slabs are recorded", parts.len())));
    }
    Ok((parts, repaired))
}

/// Chunks decoded for the volume: previews, the search of the axis and repetitions aside.
pub(crate) fn decoded(carry: &[TaskRecord]) -> Result<u64, Fault> {
    let frames: u64 = frames::notes(carry)?.iter().map(|n| n.decoded).sum();
    let flats = frames::flats_note(carry)?.map_or(0, |n| n.decoded);
    Ok(frames + flats + slabs(carry)?.iter().map(|(n, _)| n.decoded).sum::<u64>())
}

/// One plain file; on a repetition, when parts are gone already, the one that is there.
fn merged(
    ctx: &TaskContext,
    parts: &[PartOf],
    shape: [usize; 3],
    attributes: &VolumeAttributes,
    scale: Option<Scale>,
) -> Result<OutputFile, Fault> {
    let staging = &ctx.job.staging;
    let result = staging.join(RESULT);
    if result.exists() && parts.iter().any(|p| !staging.join(&p.file.path).exists()) {
        // Parts are removed only after the plain file was synced under its name: it is whole.
        let failed = |e| Fault::writing(&result, &e);
        let bytes = result.metadata().map_err(failed)?.len();
        return Ok(OutputFile { path: RESULT.to_owned(), bytes, sha256: sha256_of(&result).map_err(failed)? });
    }
    let own = format!("recon.a{}.tmp.h5", ctx.attempt);
    remove(&staging.join(&own))?;
    let made = merge(staging, &own, parts, shape, attributes, scale)?;
    rename(staging, &own, RESULT)?;
    Ok(OutputFile { path: RESULT.to_owned(), ..made })
}

/// The recorded previews under their public names.
fn previews(staging: &Path, carry: &[TaskRecord]) -> Result<Vec<OutputFile>, Fault> {
    let records = carry.iter().filter(|r| r.kind == TaskKind::Preview);
    records.flat_map(|r| &r.output.files).map(|f| settle(staging, f, public_name(&f.path))).collect()
}
