//! The last task: one bundle out of parts.
//!
//! Contract
//! - Only files that the coordinator recorded are in the bundle; files of attempts that lost are removed.
//! - What this task writes has its attempt's own name first and is then renamed: whoever repeats it, after a crash or beside a
//!   stalled twin, ends with the same files.
//! - `recon.h5`: a plain file when the parts are small together, else a virtual stack over them; `point.json`: what is small,
//!   which series are built from; `depths/…`: one file a depth, when asked for; `preview/…`.

use super::calibrate::Calibration;
use super::decode::flag;
use super::recipe::{Method, Recipe};
use super::series::PointNote;
use super::slab::Sums;
use super::source::Header;
use super::stack::{PartOf, write_whole};
use crate::formats::part::{sha256_of, write_new};
use crate::technique::winners::{public_name, remove, rename, settle, sweep};
use crate::technique::{Fault, OutputFile, TaskContext, TaskKind, TaskOutput, TaskRecord};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Parts up to this size together become one plain file.
const PLAIN_BYTES: u64 = 64 << 20;
const RESULT: &str = "recon.h5";
/// What series are built from.
pub const POINT: &str = "point.json";

/// What a slab reports beside its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SlabNote {
    /// First row, and the one behind the last.
    pub rows: (usize, usize),
    pub sums: Sums,
}

/// What calibration reported, if there was one.
pub(crate) fn calibration(carry: &[TaskRecord]) -> Result<Option<Calibration>, Fault> {
    let Some(record) = carry.iter().find(|r| r.label == "calibrate") else { return Ok(None) };
    serde_json::from_str(&record.output.carry)
        .map(Some)
        .map_err(|e| Fault::Task(format!("the result of calibrate cannot be read: {e}")))
}

/// The recorded parts, in the order of rows, and what they add up to.
pub(crate) fn parts(carry: &[TaskRecord]) -> Result<(Vec<PartOf>, Sums), Fault> {
    let mut noted = Vec::new();
    for record in carry.iter().filter(|r| r.kind == TaskKind::Stage && r.label.starts_with("slab-")) {
        let note: SlabNote = serde_json::from_str(&record.output.carry)
            .map_err(|e| Fault::Task(format!("the result of {} cannot be read: {e}", record.label)))?;
        let Some(file) = record.output.files.first() else {
            return Err(Fault::Task(format!("{} recorded no file", record.label)));
        };
        noted.push((note, file.clone()));
    }
    noted.sort_by_key(|n| n.0.rows.0);
    // In the order of rows: sums do not depend on who finished first.
    let mut sums = Sums::default();
    noted.iter().for_each(|n| sums.add(&n.0.sums));
    let parts = noted.into_iter().map(|(n, file)| PartOf { file, rows: n.rows.0..n.rows.1 }).collect();
    Ok((parts, sums))
}

/// Assembles the bundle.
pub(crate) fn store(
    ctx: &TaskContext,
    recipe: &Recipe,
    shape: (usize, usize),
    slabs: usize,
    header: &Header,
) -> Result<TaskOutput, Fault> {
    let staging = &ctx.job.staging;
    let (parts, sums) = parts(&ctx.job.carry)?;
    if parts.len() != slabs {
        return Err(Fault::Task(format!("{} of {slabs} slabs are recorded", parts.len())));
    }
    let calibration = calibration(&ctx.job.carry)?;
    let grid = recipe.depth();
    let plain = parts.iter().map(|p| p.file.bytes).sum::<u64>() <= PLAIN_BYTES;
    let mut files = Vec::new();
    let result = staging.join(RESULT);
    if plain && result.exists() && parts.iter().any(|p| !staging.join(&p.file.path).exists()) {
        // Parts are removed only after the plain file was synced under its name: it is whole.
        files.push(there(staging, RESULT)?);
    } else {
        let own = format!("recon.a{}.tmp.h5", ctx.attempt);
        remove(&staging.join(&own))?;
        let made = write_whole(staging, &own, &parts, [grid.bins, shape.0, shape.1], &grid.centres_um(), !plain)?;
        rename(staging, &own, RESULT)?;
        files.push(OutputFile { path: RESULT.to_owned(), ..made });
    }
    if !plain {
        files.extend(parts.iter().map(|p| p.file.clone()));
    }
    let note = PointNote {
        scan: ctx.job.scan.name.clone(),
        last_byte_ms: ctx.job.scan.last_byte_ms,
        header: header.clone(),
        depth: grid,
        histogram: sums.histogram.clone(),
        intensity: sums.account.input,
        decoded: sums.pixels[flag::NAMES.len()],
    };
    let json = serde_json::to_vec_pretty(&note).map_err(|e| Fault::Task(e.to_string()))?;
    let own = format!("point.a{}.tmp.json", ctx.attempt);
    remove(&staging.join(&own))?;
    let made = write_new(staging, &own, |out| out.put(&json))?;
    rename(staging, &own, POINT)?;
    files.push(OutputFile { path: POINT.to_owned(), ..made });
    files.extend(public(staging, &ctx.job.carry)?);
    sweep(staging, &["parts", "preview", "depths", "calibration"], &files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut pixels = serde_json::Map::new();
    for (name, n) in flag::NAMES.iter().chain(&["resolved"]).zip(sums.pixels) {
        pixels.insert((*name).to_owned(), n.into());
    }
    let carry = serde_json::json!({
        "parameters": parameters(recipe, calibration.as_ref()),
        "acquisition": header,
        "output": {
            "file": RESULT,
            "dataset": super::stack::DATASET,
            "shape": [grid.bins, shape.0, shape.1],
            "dtype": "float32",
            "units": "counts",
            "axes": "depth:y:x",
            "storage": if plain { "plain" } else { "virtual dataset over parts/" },
            "pixels": pixels,
            "intensity": sums.account,
        },
    });
    Ok(TaskOutput { files, carry: carry.to_string(), ..TaskOutput::default() })
}

fn parameters(recipe: &Recipe, calibration: Option<&Calibration>) -> serde_json::Value {
    let mut all = serde_json::to_value(recipe).unwrap_or_default();
    // The bits of the code in one word, not a line each.
    if let (Some(bits), Method::Aperture(s)) = (all.pointer_mut("/method/aperture/mask/bits"), &recipe.method) {
        *bits = s.mask.bits.iter().map(|b| if *b == 0 { '0' } else { '1' }).collect::<String>().into();
    }
    if let (Some(map), Some(c)) = (all.as_object_mut(), calibration) {
        map.insert("calibrated_pose".into(), serde_json::json!(c.pose));
        map.insert("calibrated_spread_um".into(), serde_json::json!(c.spread_um));
    }
    all
}

fn there(staging: &Path, relative: &str) -> Result<OutputFile, Fault> {
    let path = staging.join(relative);
    let failed = |e| Fault::writing(&path, &e);
    let bytes = path.metadata().map_err(failed)?.len();
    Ok(OutputFile { path: relative.to_owned(), bytes, sha256: sha256_of(&path).map_err(failed)? })
}

/// The recorded files of previews, calibration and depths under their public names.
fn public(staging: &Path, carry: &[TaskRecord]) -> Result<Vec<OutputFile>, Fault> {
    let records = carry.iter().filter(|r| !r.label.starts_with("slab-"));
    records.flat_map(|r| &r.output.files).map(|f| settle(staging, f, public_name(&f.path))).collect()
}
