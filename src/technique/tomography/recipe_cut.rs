//! Keys that say how much of a scan is used and how finely: rows, columns, binning, projections, region, scratch.

use super::{Recipe, error, known_keys, whole, word};
use crate::technique::RecipeError;
use serde::{Deserialize, Serialize};
use toml::Value;

/// Most pixels along a side that become one: sums of 16-bit counts are exact up to here.
const BIN_MAX: usize = 16;
/// No detector and no scan has more.
const MOST: usize = 1 << 24;

/// Pixels of the detector of which one is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binning {
    /// Along a row, in `x` and `y` of the volume.
    pub x: usize,
    /// Along a column, in `z` of the volume.
    pub y: usize,
}

impl Default for Binning {
    fn default() -> Self {
        Self { x: 1, y: 1 }
    }
}

/// Some projections, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The first.
    pub start: usize,
    /// The one behind the last; to the end when not given.
    pub stop: Option<usize>,
    /// From one to the next.
    pub step: usize,
}

/// Pixels of a slice that are kept; all along a side when not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Columns of the image, the end not included.
    pub x: Option<(usize, usize)>,
    /// Rows of the image, the end not included.
    pub y: Option<(usize, usize)>,
}

/// How transmission is kept in scratch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// In half precision when its rounding is below a tenth of the noise, see [`super::super::precision`].
    #[default]
    Auto,
    /// In single precision.
    F32,
    /// In half precision.
    F16,
}

/// `"all"`, or the first and the one behind the last of some `what`s.
pub(super) fn span(key: &str, value: &Value, what: &str) -> Result<Option<(usize, usize)>, RecipeError> {
    let Value::Array(ends) = value else {
        return word(key, value, &["all"]).map(|_| None);
    };
    let remedy = "write [first, end], the end not included";
    let [first, end] = ends.as_slice() else {
        return Err(error(key, format!("{value} is no range"), remedy));
    };
    let (first, end) = (whole(key, first, 0, MOST)?, whole(key, end, 0, MOST)?);
    if first >= end {
        return Err(error(key, format!("[{first}, {end}] holds no {what}"), remedy));
    }
    Ok(Some((first, end)))
}

/// A number for both directions, or a table with one or both.
pub(super) fn binning(value: &Value) -> Result<Binning, RecipeError> {
    let Value::Table(table) = value else {
        let both = whole("binning", value, 1, BIN_MAX)?;
        return Ok(Binning { x: both, y: both });
    };
    known_keys("binning.", table, &["x", "y"])?;
    let side = |key: &str| table.get(key).map_or(Ok(1), |v| whole(&format!("binning.{key}"), v, 1, BIN_MAX));
    Ok(Binning { x: side("x")?, y: side("y")? })
}

/// `"all"`, or where to start, where to stop and how far from one to the next.
pub(super) fn projections(value: &Value) -> Result<Option<Run>, RecipeError> {
    let table = match value {
        Value::Table(table) => table,
        Value::String(_) => return word("projections", value, &["all"]).map(|_| None),
        other => {
            let remedy = "write { start = 0, stop = 900, step = 1 }, the stop not included, or \"all\"";
            return Err(error("projections", format!("{other} is no table"), remedy));
        }
    };
    known_keys("projections.", table, &["start", "stop", "step"])?;
    let read = |key: &str, low| table.get(key).map(|v| whole(&format!("projections.{key}"), v, low, MOST)).transpose();
    let run =
        Run { start: read("start", 0)?.unwrap_or(0), stop: read("stop", 0)?, step: read("step", 1)?.unwrap_or(1) };
    match run.stop {
        Some(stop) if stop <= run.start => Err(error(
            "projections.stop",
            format!("from {} to {stop} there is no projection", run.start),
            "write a stop above start; the projection of that index is not included",
        )),
        _ => Ok(Some(run)),
    }
}

/// `"all"`, or columns and rows of the image.
pub(super) fn region(value: &Value) -> Result<Option<Region>, RecipeError> {
    let remedy = "write { x = [first, end], y = [first, end] }, one of them or both, or \"all\"";
    let table = match value {
        Value::Table(table) => table,
        Value::String(_) => return word("region", value, &["all"]).map(|_| None),
        other => return Err(error("region", format!("{other} is no table"), remedy)),
    };
    known_keys("region.", table, &["x", "y"])?;
    let side = |key: &str| match table.get(key) {
        Some(value) => span(&format!("region.{key}"), value, "pixel"),
        None => Ok(None),
    };
    match (side("x")?, side("y")?) {
        (None, None) if table.is_empty() => Err(error("region", "is empty", remedy)),
        (None, None) => Ok(None),
        (x, y) => Ok(Some(Region { x, y })),
    }
}

pub(super) fn scratch(value: &Value) -> Result<Precision, RecipeError> {
    Ok(match word("scratch", value, &["auto", "f32", "f16"])? {
        "f32" => Precision::F32,
        "f16" => Precision::F16,
        _ => Precision::Auto,
    })
}

/// Keys that do not go together.
pub(super) fn together(r: &Recipe) -> Result<(), RecipeError> {
    let Binning { x, y } = r.binning;
    for (key, span, least) in [("columns", r.columns, 2 * x), ("rows", r.rows, y)] {
        if let Some((first, end)) = span.filter(|(first, end)| end - first < least) {
            return Err(error(
                key,
                format!("[{first}, {end}] with binning {x} × {y} is too little to reconstruct"),
                format!("name at least {least} of them, or lower binning"),
            ));
        }
    }
    if r.paganin.is_some() && x != y {
        return Err(error(
            "binning",
            format!("{x} × {y} makes pixels that phase retrieval has no filter for"),
            "with paganin, keep pixels square: the same number in x and y",
        ));
    }
    if r.scratch == Precision::F16 && !r.minus_log {
        return Err(error(
            "scratch",
            "half precision is for transmission, and minus_log = false says that the data is absorption",
            "write \"f32\" or \"auto\"",
        ));
    }
    Ok(())
}

impl Recipe {
    /// A column of the detector, in pixels as they are reconstructed: `(c − first + ½)/b − ½`.
    #[must_use]
    pub fn column_on_cut(&self, c: f64) -> f64 {
        (c - self.columns.map_or(0.0, |s| s.0 as f64) + 0.5) / self.binning.x as f64 - 0.5
    }

    /// The column of the detector where that of the reconstruction lies: the other way round.
    #[must_use]
    pub fn column_on_detector(&self, c: f64) -> f64 {
        (c + 0.5) * self.binning.x as f64 - 0.5 + self.columns.map_or(0.0, |s| s.0 as f64)
    }

    /// The first row of the detector that belongs to this row as it is reconstructed.
    #[must_use]
    pub fn row_on_detector(&self, row: usize) -> usize {
        row * self.binning.y + self.rows.map_or(0, |r| r.0 % self.binning.y)
    }

    /// Rows, as they are reconstructed, before the first that is wanted.
    #[must_use]
    pub fn rows_before(&self) -> usize {
        self.rows.map_or(0, |r| r.0 / self.binning.y)
    }

    /// The same with all that is in columns of the detector given in those of the reconstruction: the axis, and where it is
    /// looked for.
    #[must_use]
    pub fn on_cut(&self) -> Self {
        use super::{Center, CenterTry};
        let b = self.binning.x as f64;
        let center = match self.center {
            Center::Pixel(c) => Center::Pixel(self.column_on_cut(c)),
            Center::Auto => Center::Auto,
        };
        Self {
            center,
            center_search: (self.center_search / b).max(1.0),
            center_try: self.center_try.map(|t| CenterTry { range: t.range / b, step: t.step / b }),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Center;
    use super::*;

    #[test]
    fn columns_go_to_the_cut_and_back() {
        let recipe = Recipe {
            columns: Some((100, 900)),
            rows: Some((7, 31)),
            binning: Binning { x: 4, y: 3 },
            center: Center::Pixel(499.5),
            ..Recipe::default()
        };
        // The middle of columns 100 … 899 is the middle of 200 joined ones.
        assert_eq!(recipe.on_cut().center, Center::Pixel(99.5));
        // The first joined pixel covers columns 100 … 103.
        assert_eq!((recipe.column_on_cut(101.5), recipe.column_on_detector(0.0)), (0.0, 101.5));
        for c in [-3.0, 0.0, 499.5, 1023.25] {
            assert!((recipe.column_on_detector(recipe.column_on_cut(c)) - c).abs() < 1e-9);
        }
        // Rows are joined from row 7 on, and so from row 1: two before.
        assert_eq!((recipe.rows_before(), recipe.row_on_detector(2)), (2, 7));
        let plain = Recipe { center: Center::Pixel(12.25), ..Recipe::default() };
        assert_eq!(plain.on_cut(), plain);
    }

    #[test]
    fn a_cut_row_is_continued_by_its_ends_unless_told_otherwise() {
        use crate::technique::tomography::gridding::Padding;
        let padding = |text: &str| Recipe::parse(&text.parse().unwrap()).unwrap().padding;
        assert_eq!(padding("columns = [10, 90]"), Padding::Edge);
        assert_eq!(padding("columns = [10, 90]\npadding = \"zero\""), Padding::Zero);
        assert_eq!(padding("columns = \"all\""), Padding::Zero);
        let one = Recipe::parse(&"binning = { x = 3 }".parse().unwrap()).unwrap();
        assert_eq!(one.binning, Binning { x: 3, y: 1 });
    }
}
