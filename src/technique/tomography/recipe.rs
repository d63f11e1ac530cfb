//! The recipe: what a user may ask of a tomography reconstruction, checked key by key.
//!
//! Contract: [`Recipe::parse`] is deterministic and total. Unknown keys and words are refused with the nearest
//! known one; numbers are checked against their range; the result has every default written out, because its
//! JSON is hashed into the job's identity.

use super::filter::Filter;
use super::gridding::Padding;
use super::iterative::Stopping;
use super::stripes::Stripes;
use super::zinger::Zinger;
use crate::technique::RecipeError;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

#[path = "recipe_cut.rs"]
mod cut;
#[path = "recipe_steps.rs"]
mod steps;
pub use cut::{Binning, Precision, Region, Run};
pub use steps::{CenterTry, Phase};

/// Where the rotation axis is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Center {
    /// Found from the data.
    Auto,
    /// Zero-based column index, see [`super::convention`].
    Pixel(f64),
}

/// How the axis is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CenterMethod {
    /// Vo's sinogram method.
    #[default]
    Vo,
    /// Phase correlation of 0° and the flipped 180°.
    Phase,
    /// Least entropy of the image.
    Entropy,
}

/// What a whole turn is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Turn {
    /// An offset scan when the axis lies aside.
    #[default]
    Auto,
    /// The image is as wide as the detector, wherever the axis lies.
    Centered,
    /// The axis lies near a side of the detector: the halves of the turn are blended to a wider image.
    Offset,
}

/// How slices are reconstructed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Fourier gridding: fast.
    Gridding,
    /// Filtered back-projection as in the formula: slow, the reference.
    Direct,
    /// Simultaneous iterative reconstruction.
    Sirt,
    /// Conjugate gradients for least squares.
    Cgls,
}

/// Angles that replace those of the scan.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AngleRule {
    /// First angle, degrees.
    pub start: f64,
    /// Range, degrees; negative turns the other way.
    pub range: f64,
    /// The last projection lies at `start + range`.
    pub endpoint: bool,
}

impl AngleRule {
    /// `count` angles in degrees.
    #[must_use]
    pub fn angles(&self, count: usize) -> Vec<f64> {
        let steps = if self.endpoint { count.saturating_sub(1).max(1) } else { count.max(1) };
        (0..count).map(|i| self.start + i as f64 * self.range / steps as f64).collect()
    }
}

/// What a volume is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// `recon.h5`.
    Hdf5,
    /// `tiff/slice_<z>.tif`.
    Tiff,
    /// `recon.zarr`, OME-Zarr at several resolutions.
    Zarr,
}

/// Integers instead of floating point.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Integer {
    /// 8 or 16.
    pub bits: u8,
    /// The values that become 0 and the greatest integer; found from the volume when not given.
    pub window: Option<(f32, f32)>,
}

/// A recipe with every default written out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `"auto"` or a column.
    pub center: Center,
    /// How far from the detector's middle the axis is looked for, pixels.
    pub center_search: f64,
    /// `"vo"`, `"phase"` or `"entropy"`.
    #[serde(default)]
    pub center_method: CenterMethod,
    /// `"off"` or `{ range, step }`: slices about candidate axes, as a picture.
    #[serde(default)]
    pub center_try: Option<CenterTry>,
    /// `"auto"`, `"centered"` or `"offset"`.
    #[serde(default)]
    pub turn: Turn,
    /// `"gridding"`, `"direct"`, `"sirt"` or `"cgls"`.
    pub algorithm: Algorithm,
    /// When iterative algorithms stop.
    #[serde(default)]
    pub iterative: Stopping,
    /// Filter.
    pub filter: Filter,
    /// What stands beyond the ends of a row: edge values when `columns` are chosen, else zero, if not given.
    pub padding: Padding,
    /// `"off"` or `{ size, threshold }`: a value is replaced when it exceeds the median of the `size × size` pixels
    /// around it by this much transmission.
    pub zinger: Option<Zinger>,
    /// `"off"` or `{ energy_kev, distance_mm, delta_beta }`.
    #[serde(default)]
    pub paganin: Option<Phase>,
    /// `"none"`, a method or `{ method, … }`. Not by default: it changes data that has no stripes.
    pub stripe: Option<Stripes>,
    /// Divide by the flats after taking off the darks.
    pub normalize: bool,
    /// Take the negative logarithm: off for data that is absorption already.
    pub minus_log: bool,
    /// `"none"` or the circle's diameter as a ratio of the image's width; outside it is 0.
    pub mask: Option<f64>,
    /// Pixel size in micrometres, when the scan does not say or is wrong.
    pub pixel_size_um: Option<f64>,
    /// `{ start, range, endpoint }`, when the scan's angles are missing or wrong.
    pub angles: Option<AngleRule>,
    /// The stage turns the other way: angles are negated.
    pub reverse: bool,
    /// Every so many projections are used.
    #[serde(default = "one")]
    pub angle_step: usize,
    /// `"all"` or `[first, end]`: detector rows to reconstruct, the end not included.
    #[serde(default)]
    pub rows: Option<(usize, usize)>,
    /// `"all"` or `[first, end]`: detector columns that are used, the end not included.
    #[serde(default)]
    pub columns: Option<(usize, usize)>,
    /// A number or `{ x, y }`: pixels of the detector whose mean is one, along columns and rows.
    #[serde(default)]
    pub binning: Binning,
    /// `"all"` or `{ start, stop, step }`: projections that are used, by index, the stop not included.
    #[serde(default)]
    pub projections: Option<Run>,
    /// `"all"` or `{ x, y }`, each `[first, end]`: pixels of the slices that are written, the end not included.
    #[serde(default)]
    pub region: Option<Region>,
    /// `"auto"`, `"f32"` or `"f16"`: how transmission is kept in scratch.
    #[serde(default)]
    pub scratch: Precision,
    /// One plain file instead of a virtual dataset over parts.
    pub single_file: bool,
    /// Make the preview.
    pub preview: bool,
    /// `"hdf5"`, `"tiff"`, `"zarr"` or a list of them: what the bundle holds.
    pub output: Vec<Output>,
    /// `"none"` or `{ bits, low, high }`: integers instead of floating point. Without `low` and `high` they are found from
    /// the volume.
    pub integer: Option<Integer>,
    /// Most memory a task may hold, gigabytes (10⁹ bytes); less than executors have. By default what they have.
    pub memory_gb: Option<f64>,
}

fn one() -> usize {
    1
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            center: Center::Auto,
            center_search: 50.0,
            center_method: CenterMethod::Vo,
            center_try: None,
            turn: Turn::Auto,
            algorithm: Algorithm::Gridding,
            iterative: Stopping::default(),
            filter: Filter::default(),
            padding: Padding::default(),
            zinger: None,
            paganin: None,
            stripe: None,
            normalize: true,
            minus_log: true,
            mask: Some(1.0),
            pixel_size_um: None,
            angles: None,
            reverse: false,
            angle_step: 1,
            rows: None,
            columns: None,
            binning: Binning::default(),
            projections: None,
            region: None,
            scratch: Precision::Auto,
            single_file: false,
            preview: true,
            output: vec![Output::Hdf5],
            integer: None,
            memory_gb: None,
        }
    }
}

/// Every key, in the order of the documentation.
pub const KEYS: [&str; 30] = [
    "center",
    "center_search",
    "center_method",
    "center_try",
    "turn",
    "algorithm",
    "iterative",
    "filter",
    "padding",
    "zinger",
    "paganin",
    "stripe",
    "normalize",
    "minus_log",
    "mask",
    "pixel_size_um",
    "angles",
    "reverse",
    "angle_step",
    "rows",
    "columns",
    "binning",
    "projections",
    "region",
    "scratch",
    "single_file",
    "preview",
    "output",
    "integer",
    "memory_gb",
];

impl Recipe {
    /// Checks a recipe table.
    ///
    /// # Errors
    /// The first key that cannot be used, with what to write instead.
    pub fn parse(table: &Table) -> Result<Self, RecipeError> {
        known_keys("", table, &KEYS)?;
        let mut r = Self::default();
        for (key, value) in table {
            match key.as_str() {
                "center" => r.center = center(value)?,
                "center_search" => r.center_search = number(key, value, 1.0, 4096.0)?,
                "center_method" => r.center_method = steps::center_method(value)?,
                "center_try" => r.center_try = steps::center_try(value)?,
                "turn" => r.turn = steps::turn(value)?,
                "algorithm" => r.algorithm = algorithm(value)?,
                "iterative" => r.iterative = steps::iterative(value)?,
                "filter" => r.filter = filter(value)?,
                "padding" => {
                    r.padding = match word(key, value, &["zero", "edge"])? {
                        "edge" => Padding::Edge,
                        _ => Padding::Zero,
                    }
                }
                "zinger" => r.zinger = zinger(value)?,
                "paganin" => r.paganin = steps::paganin(value)?,
                "stripe" => r.stripe = steps::stripe(value)?,
                "normalize" => r.normalize = flag(key, value)?,
                "minus_log" => r.minus_log = flag(key, value)?,
                "mask" => {
                    r.mask = match value {
                        Value::String(_) => word(key, value, &["none"]).map(|_| None)?,
                        _ => Some(number(key, value, 0.01, 2.0)?),
                    }
                }
                "pixel_size_um" => r.pixel_size_um = Some(number(key, value, 1e-3, 1e3)?),
                "angles" => r.angles = Some(angle_rule(value)?),
                "reverse" => r.reverse = flag(key, value)?,
                "angle_step" => r.angle_step = whole(key, value, 1, 1000)?,
                "rows" => r.rows = cut::span(key, value, "row")?,
                "columns" => r.columns = cut::span(key, value, "column")?,
                "binning" => r.binning = cut::binning(value)?,
                "projections" => r.projections = cut::projections(value)?,
                "region" => r.region = cut::region(value)?,
                "scratch" => r.scratch = cut::scratch(value)?,
                "single_file" => r.single_file = flag(key, value)?,
                "output" => r.output = output(value)?,
                "integer" => r.integer = integer(value)?,
                "memory_gb" => r.memory_gb = Some(number(key, value, 1e-3, 1e5)?),
                _ => r.preview = flag(key, value)?,
            }
        }
        if r.columns.is_some() && !table.contains_key("padding") {
            // A row that is cut ends in the sample: what stands beyond its end is more like its end than like nothing.
            r.padding = Padding::Edge;
        }
        cut::together(&r)?;
        Ok(r)
    }

    /// From the canonical JSON that travels with the job.
    ///
    /// # Errors
    /// Text that [`Recipe`] did not write.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

fn error(key: &str, problem: impl Into<String>, remedy: impl Into<String>) -> RecipeError {
    RecipeError { key: key.to_owned(), problem: problem.into(), remedy: remedy.into() }
}

/// The nearest of some words, when it is near enough to be meant.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|k| (strsim::jaro_winkler(word, k), *k))
        .filter(|m| m.0 > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|m| m.1)
}

fn known_keys(prefix: &str, table: &Table, known: &[&str]) -> Result<(), RecipeError> {
    match table.keys().find(|k| !known.contains(&k.as_str())) {
        None => Ok(()),
        Some(key) => Err(error(
            &format!("{prefix}{key}"),
            "no such key in a tomography recipe",
            match nearest(key, known) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("there are {}", known.join(", ")),
            },
        )),
    }
}

fn word<'a>(key: &str, value: &'a Value, known: &[&str]) -> Result<&'a str, RecipeError> {
    let list = known.join(", ");
    match value {
        Value::String(s) if known.contains(&s.as_str()) => Ok(s),
        Value::String(s) => Err(error(
            key,
            format!("{s:?} is not known"),
            nearest(s, known).map_or_else(|| format!("write one of {list}"), |near| format!("did you mean {near:?}?")),
        )),
        other => Err(error(key, format!("{other} is no word"), format!("write one of {list}"))),
    }
}

fn flag(key: &str, value: &Value) -> Result<bool, RecipeError> {
    value.as_bool().ok_or_else(|| error(key, format!("{value} is neither true nor false"), "write true or false"))
}

fn number(key: &str, value: &Value, low: f64, high: f64) -> Result<f64, RecipeError> {
    let n = match value {
        Value::Integer(i) => *i as f64,
        Value::Float(f) => *f,
        other => {
            return Err(error(key, format!("{other} is no number"), format!("write a number from {low} to {high}")));
        }
    };
    if n.is_finite() && (low..=high).contains(&n) {
        Ok(n)
    } else {
        Err(error(key, format!("{n} is out of range"), format!("write a number from {low} to {high}")))
    }
}

fn odd(key: &str, value: &Value, low: f64, high: f64) -> Result<usize, RecipeError> {
    let n = number(key, value, low, high)?;
    if n % 2.0 == 1.0 {
        Ok(n as usize)
    } else {
        Err(error(key, format!("{n} is not odd"), "write an odd whole number"))
    }
}

fn whole(key: &str, value: &Value, low: usize, high: usize) -> Result<usize, RecipeError> {
    let n = number(key, value, low as f64, high as f64)?;
    if n.fract() == 0.0 { Ok(n as usize) } else { Err(error(key, format!("{n} is not whole"), "write a whole number")) }
}

fn center(value: &Value) -> Result<Center, RecipeError> {
    match value {
        Value::String(_) => word("center", value, &["auto"]).map(|_| Center::Auto),
        _ => number("center", value, -1e5, 1e6).map(Center::Pixel),
    }
}

fn algorithm(value: &Value) -> Result<Algorithm, RecipeError> {
    Ok(match word("algorithm", value, &["gridding", "direct", "sirt", "cgls"])? {
        "direct" => Algorithm::Direct,
        "sirt" => Algorithm::Sirt,
        "cgls" => Algorithm::Cgls,
        _ => Algorithm::Gridding,
    })
}

fn filter(value: &Value) -> Result<Filter, RecipeError> {
    let names = Filter::ALL.map(Filter::name);
    // Other spellings of the same filter are fine; for anything else the list of names answers.
    match value.as_str().and_then(|s| s.parse().ok()) {
        Some(filter) => Ok(filter),
        None => word("filter", value, &names).map(|_| Filter::default()),
    }
}

fn zinger(value: &Value) -> Result<Option<Zinger>, RecipeError> {
    let Value::Table(table) = value else {
        return word("zinger", value, &["off"]).map(|_| None);
    };
    known_keys("zinger.", table, &["size", "threshold"])?;
    let width = table.get("size").map_or(Ok(3), |v| odd("zinger.size", v, 3.0, 31.0))?;
    let threshold = table.get("threshold").map_or(Ok(0.2), |v| number("zinger.threshold", v, 1e-6, 1e6))?;
    Ok(Some(Zinger { width, threshold: threshold as f32 }))
}

fn output(value: &Value) -> Result<Vec<Output>, RecipeError> {
    let one = |value: &Value| {
        Ok(match word("output", value, &["hdf5", "tiff", "zarr"])? {
            "tiff" => Output::Tiff,
            "zarr" => Output::Zarr,
            _ => Output::Hdf5,
        })
    };
    let mut all = match value {
        Value::Array(list) if !list.is_empty() => list.iter().map(one).collect::<Result<Vec<_>, _>>()?,
        Value::Array(_) => return Err(error("output", "is empty", "write one or more of hdf5, tiff, zarr")),
        value => vec![one(value)?],
    };
    all.sort();
    all.dedup();
    Ok(all)
}

fn integer(value: &Value) -> Result<Option<Integer>, RecipeError> {
    let Value::Table(table) = value else {
        return word("integer", value, &["none"]).map(|_| None);
    };
    known_keys("integer.", table, &["bits", "low", "high"])?;
    let bits = table.get("bits").map_or(Ok(16.0), |v| number("integer.bits", v, 8.0, 16.0))?;
    if bits != 8.0 && bits != 16.0 {
        return Err(error("integer.bits", format!("{bits} is not possible"), "write 8 or 16"));
    }
    let end = |key: &str| table.get(key).map(|v| number(&format!("integer.{key}"), v, -1e30, 1e30)).transpose();
    let window = match (end("low")?, end("high")?) {
        (None, None) => None,
        (Some(low), Some(high)) if (low as f32) < high as f32 => Some((low as f32, high as f32)),
        (Some(low), Some(high)) => {
            return Err(error("integer.high", format!("{high} is not above {low}"), "write low < high"));
        }
        _ => return Err(error("integer", "has one end of its window", "write low and high, or neither")),
    };
    Ok(Some(Integer { bits: bits as u8, window }))
}

fn angle_rule(value: &Value) -> Result<AngleRule, RecipeError> {
    let Value::Table(table) = value else {
        return Err(error(
            "angles",
            format!("{value} is no table"),
            "write { start = 0, range = 180, endpoint = false }",
        ));
    };
    known_keys("angles.", table, &["start", "range", "endpoint"])?;
    let start = table.get("start").map_or(Ok(0.0), |v| number("angles.start", v, -1e5, 1e5))?;
    let endpoint = table.get("endpoint").map_or(Ok(false), |v| flag("angles.endpoint", v))?;
    let Some(range) = table.get("range") else {
        return Err(error("angles.range", "is missing", "write the range in degrees, as range = 180"));
    };
    let range = number("angles.range", range, -7200.0, 7200.0)?;
    if range.abs() < 1.0 {
        return Err(error("angles.range", format!("{range}° is no range"), "write degrees, as 180 or 360"));
    }
    Ok(AngleRule { start, range, endpoint })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Recipe, RecipeError> {
        Recipe::parse(&text.parse().unwrap())
    }

    #[test]
    fn an_empty_recipe_is_the_default_and_survives_json() {
        let recipe = parse("").unwrap();
        assert_eq!(recipe, Recipe::default());
        let json = serde_json::to_string(&recipe).unwrap();
        assert_eq!(Recipe::from_json(&json).unwrap(), recipe);
        assert_eq!(serde_json::to_value(&recipe).unwrap().as_object().unwrap().len(), KEYS.len());
    }

    #[test]
    fn every_key_is_read() {
        let recipe = parse(
            r#"
            center = 295
            center_search = 30
            center_method = "entropy"
            center_try = { range = 2, step = 0.5 }
            turn = "centered"
            algorithm = "direct"
            iterative = { iterations = 30, noise = 0.01, nonnegative = false }
            filter = "Ram-Lak"
            padding = "edge"
            zinger = { size = 5, threshold = 0.1 }
            paganin = { energy_kev = 25, distance_mm = 60, delta_beta = 300 }
            stripe = { snr = 2.5, large = 31 }
            normalize = false
            minus_log = false
            mask = 0.95
            pixel_size_um = 0.65
            angles = { range = 180, endpoint = true }
            reverse = true
            angle_step = 2
            rows = [10, 20]
            columns = [4, 100]
            binning = 3
            projections = { start = 5, stop = 900, step = 2 }
            region = { y = [7, 9] }
            scratch = "f32"
            single_file = true
            preview = false
            output = ["zarr", "hdf5"]
            integer = { bits = 8, low = -1, high = 2.5 }
            memory_gb = 2
            "#,
        )
        .unwrap();
        assert_eq!(recipe.center, Center::Pixel(295.0));
        assert_eq!(recipe.filter, Filter::Ramp);
        assert!(matches!(recipe.stripe, Some(Stripes::Vo(s)) if s.small == 21 && s.large == 31));
        assert_eq!(recipe.paganin.unwrap().delta_beta, 300.0);
        assert_eq!((recipe.columns, recipe.binning), (Some((4, 100)), Binning { x: 3, y: 3 }));
        assert_eq!(recipe.projections, Some(Run { start: 5, stop: Some(900), step: 2 }));
        assert_eq!((recipe.region, recipe.scratch), (Some(Region { x: None, y: Some((7, 9)) }), Precision::F32));
        assert_eq!(recipe.output, [Output::Hdf5, Output::Zarr]);
        assert_eq!(recipe.integer, Some(Integer { bits: 8, window: Some((-1.0, 2.5)) }));
        assert_eq!(recipe.angles.unwrap().angles(3), [0.0, 90.0, 180.0]);
        let json = serde_json::to_string(&recipe).unwrap();
        assert_eq!(Recipe::from_json(&json).unwrap(), recipe);
        for text in ["stripe = \"wavelet\"", "stripe = { method = \"titarenko\", alpha = 0.1 }", "stripe = \"vo\""] {
            let recipe = parse(text).unwrap();
            let json = serde_json::to_string(&recipe).unwrap();
            assert_eq!(Recipe::from_json(&json).unwrap(), recipe, "{text}");
        }
        assert_eq!(parse("stripe = \"none\"\nmask = \"none\"\nzinger = \"off\"").unwrap().stripe, None);
    }

    #[test]
    fn mistakes_are_named_with_a_remedy() {
        for (text, words) in [
            ("centre = 3", "centre|did you mean center?"),
            ("center_method = \"entropie\"", "center_method|did you mean \"entropy\"?"),
            ("center_try = { range = 50, step = 0.1 }", "center_try|1001 slices"),
            ("center_try = true", "center_try|off"),
            ("turn = 360", "turn|auto"),
            ("rows = [20, 20]", "rows|no row"),
            ("rows = [1, 2, 3]", "rows|[first, end]"),
            ("columns = [30, 20]", "columns|no column"),
            ("columns = 7", "columns|all"),
            ("columns = [8, 13]\nbinning = 3", "columns|at least 6"),
            ("rows = [8, 10]\nbinning = 3", "rows|at least 3"),
            ("binning = 0", "binning|from 1 to 16"),
            ("binning = 1.5", "binning|whole"),
            ("binning = \"2x2\"", "binning|number"),
            ("binning = { x = 2, z = 3 }", "binning.z|there are x, y"),
            (
                "binning = { x = 2, y = 1 }\npaganin = { energy_kev = 25, distance_mm = 60, delta_beta = 300 }",
                "binning|square",
            ),
            ("projections = [0, 900]", "projections|start = 0"),
            ("projections = { start = 9, stop = 9 }", "projections.stop|no projection"),
            ("projections = { begin = 9 }", "projections.begin|there are start, stop, step"),
            ("projections = { step = 0 }", "projections.step|from 1"),
            ("region = [1, 2]", "region|x = ["),
            ("region = { x = [3, 3] }", "region.x|no pixel"),
            ("region = { z = [3, 4] }", "region.z|there are x, y"),
            ("region = {}", "region|\"all\""),
            ("scratch = \"half\"", "scratch|f16"),
            ("scratch = \"f16\"\nminus_log = false", "scratch|transmission"),
            ("angle_step = 0", "angle_step|from 1"),
            ("algorithm = \"griding\"", "algorithm|did you mean \"gridding\"?"),
            ("iterative = { iterations = 0 }", "iterative.iterations|from 1"),
            ("iterative = { iteration = 5 }", "iterative.iteration|did you mean iterations?"),
            ("filter = \"shep-logn\"", "filter|shepp-logan"),
            ("filter = 3", "filter|shepp-logan"),
            ("center = \"middle\"", "center|auto"),
            ("center = nan", "center|out of range"),
            ("mask = -1", "mask|0.01"),
            ("zinger = { size = 4 }", "zinger.size|odd"),
            ("zinger = { treshold = 4 }", "zinger.treshold|did you mean threshold?"),
            ("pixel_size = 1.3", "pixel_size|pixel_size_um"),
            ("paganin = { energy_kev = 25, distance_mm = 60 }", "paganin.delta_beta|missing"),
            ("paganin = { energy = 25 }", "paganin.energy|did you mean energy_kev?"),
            ("paganin = \"on\"", "paganin|off"),
            ("stripe = { method = \"wavelet\", snr = 3 }", "stripe.snr|sigma"),
            ("stripe = { method = \"wavelet\", level = 2.5 }", "stripe.level|whole"),
            ("stripe = \"titarenk\"", "stripe|did you mean \"titarenko\"?"),
            ("angles = { start = 3 }", "angles.range|missing"),
            ("angles = { range = 0 }", "angles.range|no range"),
            ("minus_log = \"yes\"", "minus_log|true or false"),
            ("stripe = \"rings\"", "stripe|vo"),
            ("output = \"tif\"", "output|did you mean \"tiff\"?"),
            ("output = []", "output|one or more"),
            ("integer = { bits = 12 }", "integer.bits|8 or 16"),
            ("integer = { low = 1 }", "integer|neither"),
            ("integer = { low = 1, high = 1 }", "integer.high|low < high"),
        ] {
            let error = parse(text).unwrap_err();
            let (key, rest) = words.split_once('|').unwrap();
            assert!(error.key == key && error.to_string().contains(rest), "{text}: {error}");
        }
    }
}
