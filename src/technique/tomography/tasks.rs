//! The technique: which work a task means, in its three phases.
//!
//! | task | load | compute | store |
//! | --- | --- | --- | --- |
//! | `preview` | a small scan | axis, slices | `preview/{slice,sinogram,coronal,sagittal,centers}.a<attempt>.png`, shown at once |
//! | `flats`, `frames-<n>` | whole frames | transmission, where a step works on frames | `scratch/…`, see [`super::frames`] |
//! | `prepare` | a few rows | beam, axis | nothing; the axis goes into the carry |
//! | `slab-<n>` | its rows | slices | `parts/slab-<n>.a<attempt>.h5` |
//! | `output-<n>` | slices out of parts | – | `out/…`, see [`super::outputs`] |
//! | `finish` | – | – | `recon.h5`, see [`super::finish`] |

use super::chain::{RawRows, Repaired};
use super::compute::{self, Axial, Shared};
use super::finish;
use super::first_pass::{self, Small, Views};
use super::frames::{self, Staged};
use super::load;
use super::outputs::{self, Slices};
use super::plan::{self, Work};
use super::preview;
use super::recipe::Recipe;
use crate::formats::{TomoSource, part, probe};
use crate::technique::{
    Fault, Inspection, OutputFile, Payload, Plan, RecipeError, TaskContext, TaskOutput, Technique, Timings,
};
use crate::worker::topology::peak_bytes;
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
    /// Chunks decoded for it.
    pub decoded: u64,
    /// Most memory the executor had held by then, bytes.
    pub peak_bytes: u64,
    /// All but the outermost values, when the recipe wants to know.
    pub window: Option<(f32, f32)>,
}

struct Loaded {
    raw: Vec<RawRows>,
    angles: Vec<f64>,
    pixel_size_cm: Option<f64>,
    read_s: f64,
    decoded: u64,
}

/// The small scan of a preview.
struct LoadedSmall {
    small: Small,
    angles: Vec<f64>,
    pixel_size_cm: Option<f64>,
    read_s: f64,
}

/// Slices on their way into other outputs, and when they were read.
struct LoadedSlices(Slices, f64);

/// Frames on their way into scratch, and when they were read.
struct LoadedFrames(Staged, f64);

enum Outcome {
    Views(Box<Views>),
    Axis(Axial),
    Slab(Slab),
    Staged(Staged),
    Slices(Slices),
    Nothing,
}

struct Slab {
    volume: Array3<f32>,
    repaired: Repaired,
    decoded: u64,
    pixel_size_cm: Option<f64>,
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
        let summary = source.header.summary();
        probe::check(&source)?;
        if recipe.normalize {
            source.check_flats()?;
        }
        if recipe.angles.is_none() {
            source.check_angles()?;
        }
        load::settled(&ctx.job.scan, &source.linked)?;
        let used = load::cut(source, &recipe)?.summary(&recipe);
        Ok(Inspection { summary: used.map_or(summary.clone(), |used| format!("{summary}; {used}")) })
    }

    fn plan(&self, ctx: &TaskContext) -> Result<Plan, Fault> {
        let recipe = recipe(ctx)?;
        let opened = load::open(ctx, &recipe)?;
        for list in opened.source.lists() {
            list.stack.check_allocated()?;
        }
        load::settled(&ctx.job.scan, &opened.source.linked)?;
        let plan = plan::plan(&opened, &ctx.job.scan, &recipe, &ctx.job.resources)?;
        load::unchanged(ctx)?;
        Ok(plan)
    }

    fn load(&self, ctx: &TaskContext) -> Result<Payload, Fault> {
        let start = Instant::now();
        let recipe = recipe(ctx)?;
        let work = Work::decode(&ctx.task.params)?;
        let ranges: Vec<_> = match &work {
            Work::Prepare { rows } => rows.iter().map(|&r| r..r + 1).collect(),
            Work::Slab { rows, .. } => std::iter::once(rows.clone()).collect(),
            Work::Preview | Work::Flats | Work::Frames { .. } => Vec::new(),
            Work::Output { slices, shape, pixel_size_cm, .. } => {
                let slices = outputs::load(ctx, &recipe, slices, *shape, *pixel_size_cm)?;
                return Ok(Box::new(LoadedSlices(slices, start.elapsed().as_secs_f64())));
            }
            Work::Finish { .. } => return Ok(Box::new(())),
        };
        let opened = load::open(ctx, &recipe)?;
        if work == Work::Preview {
            let small = first_pass::load(&opened, &recipe, plan::bounded(&recipe, &ctx.job.resources).task_memory)?;
            load::unchanged(ctx)?;
            let (angles, pixel_size_cm) = (opened.angles, opened.pixel_size_cm);
            return Ok(Box::new(LoadedSmall { small, angles, pixel_size_cm, read_s: start.elapsed().as_secs_f64() }));
        }
        if let Some(staged) = frames::load(ctx, &opened, &recipe, &work)? {
            load::unchanged(ctx)?;
            return Ok(Box::new(LoadedFrames(staged, start.elapsed().as_secs_f64())));
        }
        if ranges.iter().any(|r| r.end > opened.source.header.rows) {
            return Err(Fault::InputChanged(opened.source.projections.stack.file().to_owned()));
        }
        let before = frames::decoded(&opened);
        let raw = ranges.into_iter().map(|r| match frames::rows(ctx, &opened, &recipe, &r)? {
            Some(rows) => Ok(rows),
            None => load::rows(&opened, &recipe, r),
        });
        let raw = raw.collect::<Result<_, _>>()?;
        load::unchanged(ctx)?;
        let decoded = frames::decoded(&opened) - before;
        let (angles, pixel_size_cm) = (opened.angles, opened.pixel_size_cm);
        Ok(Box::new(Loaded { raw, angles, pixel_size_cm, read_s: start.elapsed().as_secs_f64(), decoded }))
    }

    fn compute(&self, ctx: &TaskContext, loaded: Payload) -> Result<Payload, Fault> {
        let start = Instant::now();
        let recipe = recipe(ctx)?.on_cut();
        let work = Work::decode(&ctx.task.params)?;
        if matches!(work, Work::Finish { .. }) {
            return Ok(Box::new(Computed { result: Outcome::Nothing, timings: Timings::default() }));
        }
        if matches!(work, Work::Output { .. }) {
            let LoadedSlices(slices, read_s) = *unpack::<LoadedSlices>(loaded)?;
            let timings = Timings { read_s, ..Timings::default() };
            return Ok(Box::new(Computed { result: Outcome::Slices(slices), timings }));
        }
        if work == Work::Preview {
            let LoadedSmall { small, angles, pixel_size_cm, read_s } = *unpack::<LoadedSmall>(loaded)?;
            let shared = Shared { recipe: &recipe, angles: &angles, pixel_size_cm, image_size: None, bin: 1 };
            let result = Outcome::Views(Box::new(first_pass::views(&shared, small)?));
            let timings = Timings { read_s, compute_s: start.elapsed().as_secs_f64(), write_s: 0.0 };
            return Ok(Box::new(Computed { result, timings }));
        }
        if matches!(work, Work::Flats | Work::Frames { .. }) {
            let LoadedFrames(staged, read_s) = *unpack::<LoadedFrames>(loaded)?;
            let result = Outcome::Staged(frames::compute(staged, &recipe)?);
            let timings = Timings { read_s, compute_s: start.elapsed().as_secs_f64(), write_s: 0.0 };
            return Ok(Box::new(Computed { result, timings }));
        }
        let Loaded { mut raw, angles, pixel_size_cm, read_s, decoded } = *unpack::<Loaded>(loaded)?;
        let shared = Shared { recipe: &recipe, angles: &angles, pixel_size_cm, image_size: None, bin: 1 };
        let one = |raw: &mut Vec<RawRows>| raw.pop().ok_or_else(|| Fault::Task("nothing was loaded".to_owned()));
        let result = match work {
            Work::Prepare { .. } => Outcome::Axis(compute::prepare(&shared, raw)?),
            _ => {
                let Axial { rotation_center_px: center, image_size, .. } = finish::axial(&ctx.job.carry)?;
                let shared = Shared { image_size, ..shared };
                let (volume, repaired) = compute::slab(&shared, center, one(&mut raw)?)?;
                Outcome::Slab(Slab { volume, repaired, decoded, pixel_size_cm })
            }
        };
        let timings = Timings { read_s, compute_s: start.elapsed().as_secs_f64(), write_s: 0.0 };
        Ok(Box::new(Computed { result, timings }))
    }

    fn store(&self, ctx: &TaskContext, computed: Payload) -> Result<TaskOutput, Fault> {
        let start = Instant::now();
        let Computed { result, timings } = *unpack::<Computed>(computed)?;
        let output = match (result, Work::decode(&ctx.task.params)?) {
            (Outcome::Views(views), _) => {
                let files = store_views(ctx, &views)?;
                preview::publish(ctx, &files);
                TaskOutput { files, carry: to_json(&views.middle.axial)?, ..TaskOutput::default() }
            }
            (Outcome::Axis(axial), _) => TaskOutput { carry: to_json(&axial)?, ..TaskOutput::default() },
            (Outcome::Staged(staged), _) => return frames::store(ctx, staged, timings),
            (Outcome::Slices(slices), Work::Output { slices: range, shape, depth, pixel_size_cm }) => {
                outputs::store(ctx, &recipe(ctx)?, (range.start, shape, depth, pixel_size_cm), &slices)?
            }
            (Outcome::Slab(Slab { volume, repaired, decoded, pixel_size_cm }), Work::Slab { index, rows }) => {
                let name = format!("parts/slab-{index:05}.a{}.h5", ctx.attempt);
                let attributes = finish::attributes(pixel_size_cm);
                let file = part::write(&ctx.job.staging, &name, volume.view(), &attributes)?;
                let recipe = recipe(ctx)?;
                let find = recipe.integer.is_some_and(|i| i.window.is_none());
                let before = recipe.rows_before();
                let window = if find { outputs::window(volume.view()) } else { None };
                let carry = to_json(&SlabNote {
                    // Slices of the volume are counted from the first row wanted.
                    rows: (rows.start - before, rows.end - before),
                    repaired,
                    decoded,
                    window,
                    peak_bytes: peak_bytes(),
                })?;
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

fn store_views(ctx: &TaskContext, views: &Views) -> Result<Vec<OutputFile>, Fault> {
    let Views { middle, coronal, sagittal } = views;
    let mut pictures = Vec::new();
    // A region is no circle.
    let round = recipe(ctx)?.region.is_none();
    for (name, image, round) in [
        ("slice", middle.slice.view(), round),
        ("sinogram", middle.sinogram.view(), false),
        ("coronal", coronal.view(), false),
        ("sagittal", sagittal.view(), false),
    ] {
        pictures.push((name, preview::png(image, preview::window(image, round))?));
    }
    if let Some(centers) = &middle.centers {
        pictures.push(("centers", preview::grey(centers.view())?));
    }
    let written = pictures.into_iter().map(|(name, png)| {
        let relative = format!("preview/{name}.a{}.png", ctx.attempt);
        part::write_new(&ctx.job.staging, &relative, |out| out.put(&png))
    });
    written.collect()
}

pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<String, Fault> {
    serde_json::to_string(value).map_err(|e| Fault::Task(format!("a result cannot be written down: {e}")))
}
