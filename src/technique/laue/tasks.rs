//! The technique: which work a task means, in its three phases.
//!
//! | task | load | compute | store |
//! | --- | --- | --- | --- |
//! | `preview` | a few frames; rows of spots | spots decoded | `preview/{sum.png,depths.svg,spots.json}` |
//! | `calibrate` | the same, more spots | the mask's pose | `calibration/objective.svg`; the pose goes into the carry |
//! | `slab-<n>` | its rows of every frame | depths | `parts/slab-<n>.a<attempt>.h5` |
//! | `depths-<n>` | – | – | `depths/<scan>_<k>.h5` from the parts |
//! | `finish` | – | – | `recon.h5`, `point.json`, see [`super::finish`] |

use super::bright::{self, Bright};
use super::calibrate::{self, Calibration};
use super::finish::{self, SlabNote};
use super::gpu;
use super::plan::{self, Work};
use super::plot::{Curve, Panel, svg};
use super::recipe::{Method, Recipe};
use super::slab::{Resolver, Slab};
use super::source::Point;
use super::stack;
use crate::formats::part::write_new;
use crate::store::layout::bundle_stem;
use crate::technique::tomography::load;
use crate::technique::tomography::preview::{png, window};
use crate::technique::{
    Fault, Inspection, OutputFile, Payload, Plan, RecipeError, TaskContext, TaskOutput, Technique, Timings,
};
use ndarray::{Array2, Array3};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Depth-resolved Laue microdiffraction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Laue;

/// Spots that the preview decodes, and their least distance, pixels.
const PREVIEW_SPOTS: usize = 48;
pub(super) const APART: usize = 6;

/// Rows of frames, and where they are.
struct Rows {
    raw: Array3<f32>,
    point: Point,
}

enum Loaded {
    Spots { image: Array2<f32>, pixels: Vec<Bright>, point: Box<Point> },
    Rows(Box<Rows>),
    Nothing,
}

enum Outcome {
    Preview { image: Array2<f32>, pixels: Vec<Bright>, histogram: Vec<f64> },
    Calibrated(Box<Calibration>),
    Slab(Box<Slab>),
    Nothing,
}

struct Timed<T> {
    value: T,
    timings: Timings,
}

fn recipe(ctx: &TaskContext) -> Result<Recipe, Fault> {
    let mut recipe =
        Recipe::from_json(&ctx.job.recipe).map_err(|e| Fault::Task(format!("the job's recipe cannot be read: {e}")))?;
    // What calibration found replaces the pose that the recipe began with.
    if let (Method::Aperture(setup), Some(c)) = (&mut recipe.method, finish::calibration(&ctx.job.carry)?) {
        setup.pose = c.pose;
    }
    Ok(recipe)
}

fn unpack<T: 'static>(payload: Payload) -> Result<Timed<T>, Fault> {
    payload
        .downcast::<Timed<T>>()
        .map(|b| *b)
        .map_err(|_| Fault::Task("a task was given another technique's data".to_owned()))
}

fn unchanged(ctx: &TaskContext) -> Result<(), Fault> {
    match ctx.job.scan.changed() {
        Ok(None) => Ok(()),
        Ok(Some(path)) => Err(Fault::InputChanged(path)),
        Err(e) => Err(Fault::reading(&ctx.job.scan.root, &e)),
    }
}

/// The resolver of a recipe and point: made, or the one made last; its templates serve all slabs of a job.
fn resolver_for(recipe: &Recipe, point: &Point) -> Result<Arc<Resolver>, Fault> {
    type Kept = Option<(String, Arc<Resolver>)>;
    static KEPT: Mutex<Kept> = Mutex::new(None);
    let key = serde_json::to_string(&(recipe, point.region, &point.wire_um)).map_err(|e| Fault::Task(e.to_string()))?;
    let mut kept = KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some((known, resolver)) = kept.as_ref()
        && *known == key
    {
        return Ok(Arc::clone(resolver));
    }
    let resolver = Arc::new(Resolver::new(recipe, point)?);
    *kept = Some((key, Arc::clone(&resolver)));
    Ok(resolver)
}

impl Technique for Laue {
    fn name(&self) -> &'static str {
        "laue"
    }

    fn recipe(&self, table: &toml::Table) -> Result<serde_json::Value, RecipeError> {
        self.recipe_at(table, Path::new("/"))
    }

    fn recipe_at(&self, table: &toml::Table, base: &Path) -> Result<serde_json::Value, RecipeError> {
        let recipe = Recipe::parse(table, base)?;
        serde_json::to_value(recipe).map_err(|e| RecipeError {
            key: "recipe".to_owned(),
            problem: e.to_string(),
            remedy: "write finite numbers".to_owned(),
        })
    }

    fn roles(&self) -> &'static [&'static str] {
        &[]
    }

    fn file_keys(&self) -> &'static [&'static str] {
        &["configuration", "geometry", "mask.code"]
    }

    fn inspect(&self, ctx: &TaskContext) -> Result<Inspection, Fault> {
        let recipe = recipe(ctx)?;
        let point = Point::of(&ctx.job.scan, &recipe)?;
        point.check_allocated()?;
        // A last frame of zeros only is one that is still to come.
        let last = point.read_last()?;
        if last.iter().all(|&v| v == 0.0) {
            return Err(Fault::NotYet(format!("{}: its last frame is empty", ctx.job.scan.name)));
        }
        load::settled(&ctx.job.scan, &point.linked)?;
        Ok(Inspection { summary: point.summary() })
    }

    fn plan(&self, ctx: &TaskContext) -> Result<Plan, Fault> {
        let recipe = recipe(ctx)?;
        let point = Point::of(&ctx.job.scan, &recipe)?;
        point.check_allocated()?;
        Resolver::new(&recipe, &point)?;
        load::settled(&ctx.job.scan, &point.linked)?;
        let plan = plan::plan(&point, &ctx.job.scan, &recipe, &ctx.job.resources)?;
        unchanged(ctx)?;
        Ok(plan)
    }

    fn load(&self, ctx: &TaskContext) -> Result<Payload, Fault> {
        let start = Instant::now();
        let recipe = recipe(ctx)?;
        let work = Work::decode(&ctx.task.params)?;
        let value = match work {
            Work::Preview => spots(ctx, &recipe, PREVIEW_SPOTS)?,
            Work::Calibrate => {
                let most = recipe.calibrate.as_ref().map_or(PREVIEW_SPOTS, |c| c.spots);
                spots(ctx, &recipe, most)?
            }
            Work::Slab { rows, .. } => {
                let point = Point::of(&ctx.job.scan, &recipe)?;
                if rows.end > point.rows {
                    return Err(Fault::Task(format!("rows {rows:?} of {} were asked for", point.rows)));
                }
                let raw = point.read(rows)?;
                unchanged(ctx)?;
                Loaded::Rows(Box::new(Rows { raw, point }))
            }
            Work::Depths { .. } | Work::Finish { .. } => Loaded::Nothing,
        };
        let timings = Timings { read_s: start.elapsed().as_secs_f64(), ..Timings::default() };
        Ok(Box::new(Timed { value, timings }))
    }

    fn compute(&self, ctx: &TaskContext, loaded: Payload) -> Result<Payload, Fault> {
        let start = Instant::now();
        let recipe = recipe(ctx)?;
        let Timed { value, timings } = unpack::<Loaded>(loaded)?;
        let value = match (Work::decode(&ctx.task.params)?, value) {
            (Work::Preview, Loaded::Spots { image, pixels, .. }) => {
                let histogram = bright::histogram(&pixels, &recipe);
                Outcome::Preview { image, pixels, histogram }
            }
            (Work::Calibrate, Loaded::Spots { pixels, point, .. }) => {
                let (Method::Aperture(setup), Some(options)) = (&recipe.method, &recipe.calibrate) else {
                    return Err(Fault::Task("there is nothing to calibrate".to_owned()));
                };
                let found = calibrate::calibrate(setup, point.region, &pixels, options)
                    .map_err(|e| Fault::Input(format!("{}: calibration: {e}", ctx.job.scan.name)))?;
                Outcome::Calibrated(Box::new(found))
            }
            (Work::Slab { rows, .. }, Loaded::Rows(loaded)) => {
                let resolver = resolver_for(&recipe, &loaded.point)?;
                let columns = loaded.point.column_range.clone();
                let at = &ctx.job.scan.name;
                let slab = gpu::resolve(&resolver, loaded.raw.view(), rows.start, columns, recipe.depth(), at)?;
                Outcome::Slab(Box::new(slab))
            }
            (Work::Depths { .. } | Work::Finish { .. }, Loaded::Nothing) => Outcome::Nothing,
            _ => return Err(Fault::Task("a task was given another task's data".to_owned())),
        };
        let timings = Timings { compute_s: start.elapsed().as_secs_f64(), ..timings };
        Ok(Box::new(Timed { value, timings }))
    }

    fn store(&self, ctx: &TaskContext, computed: Payload) -> Result<TaskOutput, Fault> {
        let start = Instant::now();
        let recipe = recipe(ctx)?;
        let staging = &ctx.job.staging;
        let Timed { value, timings } = unpack::<Outcome>(computed)?;
        let output = match (Work::decode(&ctx.task.params)?, value) {
            (_, Outcome::Preview { image, pixels, histogram }) => {
                let spots: Vec<&Bright> = pixels.iter().filter(|p| p.depth_um.is_some()).collect();
                let files = store_preview(ctx, &recipe, &image, &spots, &histogram)?;
                let top: Vec<_> = spots.iter().take(PREVIEW_SPOTS).collect();
                TaskOutput { files, carry: to_json(&serde_json::json!({ "spots": top }))?, ..TaskOutput::default() }
            }
            (_, Outcome::Calibrated(found)) => {
                let picture = calibrate::picture(&found).map_err(Fault::Task)?;
                let name = format!("calibration/objective.a{}.svg", ctx.attempt);
                let file = write_new(staging, &name, |out| out.put(picture.as_bytes()))?;
                TaskOutput { files: vec![file], carry: to_json(&found)?, ..TaskOutput::default() }
            }
            (Work::Slab { index, rows }, Outcome::Slab(slab)) => {
                let name = format!("parts/slab-{index:05}.a{}.h5", ctx.attempt);
                let file = stack::write_part(staging, &name, &slab, &recipe.depth().centres_um())?;
                let note = SlabNote { rows: (rows.start, rows.end), sums: slab.sums };
                TaskOutput { files: vec![file], carry: to_json(&note)?, ..TaskOutput::default() }
            }
            (Work::Depths { bins, rows, columns }, Outcome::Nothing) => {
                let (parts, _) = finish::parts(&ctx.job.carry)?;
                let images = stack::read_depths(staging, &parts, bins.clone(), rows, columns)?;
                let stem = bundle_stem(&ctx.job.scan.name, &ctx.job.scan.name);
                let files = bins
                    .zip(images.outer_iter())
                    .map(|(k, image)| {
                        let name = format!("depths/{stem}_{k}.a{}.h5", ctx.attempt);
                        stack::write_depth(staging, &name, image, recipe.depth().centre_um(k))
                    })
                    .collect::<Result<_, _>>()?;
                TaskOutput { files, ..TaskOutput::default() }
            }
            (Work::Finish { rows, columns, slabs, header }, Outcome::Nothing) => {
                finish::store(ctx, &recipe, (rows, columns), slabs, &header)?
            }
            _ => return Err(Fault::Task("a task was given another task's data".to_owned())),
        };
        Ok(TaskOutput { timings: Timings { write_s: start.elapsed().as_secs_f64(), ..timings }, ..output })
    }

    fn live(&self, results: &Path, bundle: &Path) -> Result<(), Fault> {
        if bundle.join(finish::POINT).is_file() {
            super::live::wish(results);
        }
        Ok(())
    }

    fn live_settle(&self, longest: Duration) -> bool {
        super::live::settle(longest)
    }
}

/// Finds and decodes spots.
fn spots(ctx: &TaskContext, recipe: &Recipe, most: usize) -> Result<Loaded, Fault> {
    let point = Point::of(&ctx.job.scan, recipe)?;
    let image = bright::mean_image(&point)?;
    let peaks = bright::peaks(&image, &point, recipe.threshold(), most, APART);
    let pixels = bright::decode(&point, recipe, &peaks)?;
    unchanged(ctx)?;
    Ok(Loaded::Spots { image, pixels, point: Box::new(point) })
}

fn store_preview(
    ctx: &TaskContext,
    recipe: &Recipe,
    image: &Array2<f32>,
    spots: &[&Bright],
    histogram: &[f64],
) -> Result<Vec<OutputFile>, Fault> {
    let staging = &ctx.job.staging;
    let name = |stem: &str, extension: &str| format!("preview/{stem}.a{}.{extension}", ctx.attempt);
    // Spots are thousands of times brighter than what lies between them.
    let shown = image.mapv(|v| v.max(0.0).ln_1p());
    let picture = png(shown.view(), window(shown.view(), false))?;
    let grid = recipe.depth();
    let points = histogram.iter().enumerate().map(|(m, &v)| (grid.centre_um(m), v)).collect();
    let title = format!("{}: the {} brightest spots", ctx.job.scan.name, spots.len());
    let panel = Panel {
        title: &title,
        x: "depth, um",
        y: "counts",
        curves: vec![Curve { name: "", points }],
        log: false,
        mark: None,
    };
    let curve = svg(&[panel], 1, (800, 400)).map_err(Fault::Task)?;
    let list = serde_json::to_vec_pretty(spots).map_err(|e| Fault::Task(e.to_string()))?;
    Ok(vec![
        write_new(staging, &name("sum", "png"), |out| out.put(&picture))?,
        write_new(staging, &name("depths", "svg"), |out| out.put(curve.as_bytes()))?,
        write_new(staging, &name("spots", "json"), |out| out.put(&list))?,
    ])
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String, Fault> {
    serde_json::to_string(value).map_err(|e| Fault::Task(format!("a result cannot be written down: {e}")))
}
