//! The technique: which work a task means, in its three phases.
//!
//! | task | load | compute | store |
//! | --- | --- | --- | --- |
//! | `preview` | one row of everything | axis, slice | `preview/{slice,sinogram}.a<attempt>.png` |
//! | `prepare` | a few rows | beam, axis | nothing; the axis goes into the carry |
//! | `slab-<n>` | its rows | slices | `parts/slab-<n>.a<attempt>.h5` |
//! | `finish` | – | – | `recon.h5`, see [`super::finish`] |

use super::chain::{RawRows, Repaired};
use super::compute::{self, Axial, Picture, Shared};
use super::finish;
use super::load;
use super::plan::{self, Work};
use super::preview;
use super::recipe::Recipe;
use crate::formats::{TomoSource, part, probe};
use crate::technique::{
    Fault, Inspection, OutputFile, Payload, Plan, RecipeError, TaskContext, TaskOutput, Technique, Timings,
};
use ndarray::Array3;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Parallel-beam tomography over 180° or 360°.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tomography;

/// What a slab reports beside its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SlabNote {
    /// First row, and the one behind the last.
    pub rows: (usize, usize),
    pub repaired: Repaired,
}

struct Loaded {
    raw: Vec<RawRows>,
    angles: Vec<f64>,
    pixel_size_cm: Option<f64>,
    read_s: f64,
}

enum Outcome {
    Picture(Box<Picture>),
    Axis(Axial),
    Slab(Array3<f32>, Repaired, Option<f64>),
    Nothing,
}

struct Computed {
    result: Outcome,
    timings: Timings,
}

fn recipe(ctx: &TaskContext) -> Result<Recipe, Fault> {
    Recipe::from_json(&ctx.job.recipe).map_err(|e| Fault::Task(format!("the job's recipe cannot be read: {e}")))
}

/// A payload of this technique's own type.
fn unpack<T: 'static>(payload: Payload) -> Result<Box<T>, Fault> {
    payload.downcast().map_err(|_| Fault::Task("a task was given another technique's data".to_owned()))
}

impl Technique for Tomography {
    fn name(&self) -> &'static str {
        "tomography"
    }

    fn recipe(&self, table: &toml::Table) -> Result<serde_json::Value, RecipeError> {
        let recipe = Recipe::parse(table)?;
        serde_json::to_value(recipe).map_err(|e| RecipeError {
            key: "recipe".to_owned(),
            problem: e.to_string(),
            remedy: "write finite numbers".to_owned(),
        })
    }

    fn roles(&self) -> &'static [&'static str] {
        &["dark", "white", "angles"]
    }

    fn inspect(&self, ctx: &TaskContext) -> Result<Inspection, Fault> {
        let recipe = recipe(ctx)?;
        let source = TomoSource::of(&ctx.job.scan)?;
        probe::check(&source)?;
        if recipe.normalize {
            source.check_flats()?;
        }
        Ok(Inspection { summary: source.header.summary() })
    }

    fn plan(&self, ctx: &TaskContext) -> Result<Plan, Fault> {
        let recipe = recipe(ctx)?;
        let opened = load::open(ctx, &recipe)?;
        for list in opened.source.lists() {
            list.stack.check_allocated()?;
        }
        let plan = plan::plan(&opened, &recipe, &ctx.job.resources)?;
        load::unchanged(ctx)?;
        Ok(plan)
    }

    fn load(&self, ctx: &TaskContext) -> Result<Payload, Fault> {
        let start = Instant::now();
        let recipe = recipe(ctx)?;
        let ranges: Vec<_> = match Work::decode(&ctx.task.params)? {
            Work::Preview { row } => std::iter::once(row..row + 1).collect(),
            Work::Prepare { rows } => rows.into_iter().map(|r| r..r + 1).collect(),
            Work::Slab { rows, .. } => std::iter::once(rows).collect(),
            Work::Finish { .. } => return Ok(Box::new(())),
        };
        let opened = load::open(ctx, &recipe)?;
        if ranges.iter().any(|r| r.end > opened.source.header.rows) {
            return Err(Fault::InputChanged(opened.source.projections.stack.file().to_owned()));
        }
        let raw = ranges.into_iter().map(|r| load::rows(&opened, &recipe, r)).collect::<Result<_, _>>()?;
        load::unchanged(ctx)?;
        let (angles, pixel_size_cm) = (opened.angles, opened.pixel_size_cm);
        Ok(Box::new(Loaded { raw, angles, pixel_size_cm, read_s: start.elapsed().as_secs_f64() }))
    }

    fn compute(&self, ctx: &TaskContext, loaded: Payload) -> Result<Payload, Fault> {
        let start = Instant::now();
        let recipe = recipe(ctx)?;
        let work = Work::decode(&ctx.task.params)?;
        if matches!(work, Work::Finish { .. }) {
            return Ok(Box::new(Computed { result: Outcome::Nothing, timings: Timings::default() }));
        }
        let Loaded { mut raw, angles, pixel_size_cm, read_s } = *unpack::<Loaded>(loaded)?;
        let shared = Shared { recipe: &recipe, angles: &angles, pixel_size_cm };
        let one = |raw: &mut Vec<RawRows>| raw.pop().ok_or_else(|| Fault::Task("nothing was loaded".to_owned()));
        let result = match work {
            Work::Preview { .. } => Outcome::Picture(Box::new(compute::picture(&shared, one(&mut raw)?)?)),
            Work::Prepare { .. } => Outcome::Axis(compute::prepare(&shared, raw)?),
            _ => {
                let center = finish::axial(&ctx.job.carry)?.rotation_center_px;
                let (volume, repaired) = compute::slab(&shared, center, one(&mut raw)?)?;
                Outcome::Slab(volume, repaired, pixel_size_cm)
            }
        };
        let timings = Timings { read_s, compute_s: start.elapsed().as_secs_f64(), write_s: 0.0 };
        Ok(Box::new(Computed { result, timings }))
    }

    fn store(&self, ctx: &TaskContext, computed: Payload) -> Result<TaskOutput, Fault> {
        let start = Instant::now();
        let Computed { result, timings } = *unpack::<Computed>(computed)?;
        let output = match (result, Work::decode(&ctx.task.params)?) {
            (Outcome::Picture(picture), _) => TaskOutput {
                files: store_picture(ctx, &picture)?,
                carry: to_json(&picture.axial)?,
                ..TaskOutput::default()
            },
            (Outcome::Axis(axial), _) => TaskOutput { carry: to_json(&axial)?, ..TaskOutput::default() },
            (Outcome::Slab(volume, repaired, pixel_size_cm), Work::Slab { index, rows }) => {
                let name = format!("parts/slab-{index:05}.a{}.h5", ctx.attempt);
                let attributes = finish::attributes(pixel_size_cm);
                let file = part::write(&ctx.job.staging, &name, volume.view(), &attributes)?;
                let carry = to_json(&SlabNote { rows: (rows.start, rows.end), repaired })?;
                TaskOutput { files: vec![file], carry, ..TaskOutput::default() }
            }
            (Outcome::Nothing, Work::Finish { shape, slabs, acquisition }) => {
                finish::store(ctx, &recipe(ctx)?, shape, slabs, &acquisition)?
            }
            _ => return Err(Fault::Task("a task was given another task's data".to_owned())),
        };
        Ok(TaskOutput { timings: Timings { write_s: start.elapsed().as_secs_f64(), ..timings }, ..output })
    }
}

fn store_picture(ctx: &TaskContext, picture: &Picture) -> Result<Vec<OutputFile>, Fault> {
    [("slice", picture.slice.view(), true), ("sinogram", picture.sinogram.view(), false)]
        .into_iter()
        .map(|(name, image, round)| {
            let png = preview::png(image, preview::window(image, round))?;
            let relative = format!("preview/{name}.a{}.png", ctx.attempt);
            part::write_new(&ctx.job.staging, &relative, |out| out.put(&png))
        })
        .collect()
}

fn to_json<T: Serialize>(value: &T) -> Result<String, Fault> {
    serde_json::to_string(value).map_err(|e| Fault::Task(format!("a result cannot be written down: {e}")))
}
