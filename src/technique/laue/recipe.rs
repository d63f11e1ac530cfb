//! The recipe: what a user may ask of depth resolution, checked key by key.
//!
//! Contract: [`Recipe::parse`] is deterministic: files that the recipe names (`configuration`, `geometry`, a code) are read
//! here, once, and what they say is written out, because the JSON is hashed into the job's identity. Later layers win: nominal
//! algorithm values, geometry, configuration, recipe. Nothing about the pose of mask or detector is assumed. Every number
//! has its unit in its name and is compared with what is possible.

use super::calibrate::CalibrateOptions;
use super::code;
use super::cold;
use super::decode::{DecodeSetup, EnergyOptions, FootprintOptions, PositionOptions};
use super::depth::DepthGrid;
use super::draft::{
    BeamDraft, CalibrateDraft, DepthDraft, DetectorDraft, Draft, EnergyDraft, FootprintDraft, MaskDraft, PositionDraft,
    ScannerDraft, WireDraft,
};
use super::geometry::{Detector, Pose, V3, norm, unit};
use super::geon;
use super::mask::{ENERGY_KEV, MaskSpec};
use super::setup::nominal;
use super::wire::{Edge, WireSetup, WireSpec};
use crate::campaign::closest;
use crate::technique::RecipeError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::Path;
use toml::{Table, Value};

/// How depths are resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// A coded aperture.
    Aperture(Box<DecodeSetup>),
    /// A wire.
    Wire(Box<WireSetup>),
}

/// A checked recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// How.
    pub method: Method,
    /// First frame, the one behind the last (or what there is), step.
    pub frames: [usize; 3],
    /// Rows and columns of the frames: first, the one behind the last, each (or what there is).
    pub region: [usize; 4],
    /// Where frames lie in their file.
    pub dataset: String,
    /// Sharpen the mask's pose on this point before it is resolved.
    pub calibrate: Option<CalibrateOptions>,
    /// Also write one file a depth, as indexing expects.
    pub per_depth: bool,
    /// Make the preview.
    pub preview: bool,
    /// What the files said that has no effect.
    pub notes: Vec<String>,
}

/// Every key, in the order of the documentation.
pub const KEYS: [&str; 21] = [
    "method",
    "configuration",
    "geometry",
    "detector_number",
    "frames",
    "region",
    "dataset",
    "threshold",
    "saturation",
    "mask",
    "scanner",
    "detector",
    "beam",
    "depth",
    "position",
    "footprint",
    "energy",
    "wire",
    "calibrate",
    "per_depth",
    "preview",
];

/// Where the beamline's files have their frames.
pub const DATASET: &str = "/entry1/data/data";
/// A configuration file is text of at most this size, bytes.
const TEXT_MAX: u64 = 1 << 20;

impl Recipe {
    /// Checks a recipe table; relative files are relative to `base`.
    ///
    /// # Errors
    /// The first key that cannot be used, with what to write instead.
    pub fn parse(table: &Table, base: &Path) -> Result<Self, RecipeError> {
        known(table)?;
        let number = match table.get("detector_number") {
            None => 0,
            Some(v) => whole("detector_number", v, 0, 99)?,
        };
        let mut draft = Draft::default();
        if let Some(file) = text("geometry", table, base)? {
            draft.lay(geon::read(&file.1, number).map_err(|e| in_file("geometry", &file.0, e))?);
        }
        if let Some(file) = text("configuration", table, base)? {
            draft.lay(cold::read(&file.1).map_err(|e| in_file("configuration", &file.0, e))?);
        }
        draft.lay(own(table)?);
        let wire = match table.get("method").map(|m| (m, m.as_str())) {
            None | Some((_, Some("aperture"))) => false,
            Some((_, Some("wire"))) => true,
            Some((other, _)) => {
                return Err(error("method", format!("{other} is not known"), "write \"aperture\" or \"wire\""));
            }
        };
        let flag = |key: &str, default: bool| match table.get(key) {
            None => Ok(default),
            Some(v) => {
                v.as_bool().ok_or_else(|| error(key, format!("{v} is neither true nor false"), "write true or false"))
            }
        };
        let (per_depth, preview) = (flag("per_depth", false)?, flag("preview", true)?);
        let frames = draft.frames.unwrap_or([0, usize::MAX, 1]);
        if frames[2] == 0 || frames[0] >= frames[1] {
            return Err(error(
                "frames",
                format!("{frames:?} selects no frame"),
                "write [first, behind the last, step]",
            ));
        }
        let region = draft.region.unwrap_or([0, usize::MAX, 0, usize::MAX]);
        if region[0] >= region[1] || region[2] >= region[3] {
            return Err(error(
                "region",
                format!("{region:?} holds no pixel"),
                "write [first row, behind the last, first column, behind the last]",
            ));
        }
        let method = if wire {
            Method::Wire(Box::new(wire_setup(&draft)?))
        } else {
            Method::Aperture(Box::new(aperture(&draft, base, frames[2])?))
        };
        let dataset = draft.dataset.unwrap_or_else(|| DATASET.to_owned());
        if !dataset.starts_with('/') || dataset.len() > 1000 {
            return Err(error("dataset", format!("{dataset:?} is no path in a file"), "write it as /entry1/data/data"));
        }
        let calibrate = table.get("calibrate").map(calibrate).transpose()?;
        if wire && calibrate.is_some() {
            return Err(error("calibrate", "a wire has no mask", "leave it out, or write method = \"aperture\""));
        }
        Ok(Self { method, frames, region, dataset, calibrate, per_depth, preview, notes: draft.notes })
    }

    /// From the canonical JSON that travels with the job.
    ///
    /// # Errors
    /// Text that [`Recipe`] did not write.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The depth bins.
    #[must_use]
    pub fn depth(&self) -> DepthGrid {
        match &self.method {
            Method::Aperture(s) => s.depth,
            Method::Wire(s) => s.depth,
        }
    }

    /// The detector.
    #[must_use]
    pub fn detector(&self) -> &Detector {
        match &self.method {
            Method::Aperture(s) => &s.detector,
            Method::Wire(s) => &s.detector,
        }
    }

    /// Least mean counts of a pixel.
    #[must_use]
    pub fn threshold(&self) -> f64 {
        match &self.method {
            Method::Aperture(s) => s.threshold,
            Method::Wire(s) => s.threshold,
        }
    }
}

fn error(key: &str, problem: impl Into<String>, remedy: impl Into<String>) -> RecipeError {
    RecipeError { key: key.to_owned(), problem: problem.into(), remedy: remedy.into() }
}

fn in_file(key: &str, path: &Path, problem: String) -> RecipeError {
    error(key, format!("{}: {problem}", path.display()), "correct the file, or give the value in the recipe")
}

fn known(table: &Table) -> Result<(), RecipeError> {
    match table.keys().find(|k| !KEYS.contains(&k.as_str())) {
        None => Ok(()),
        Some(key) => Err(error(
            key,
            "no such key in a laue recipe",
            match closest(key, KEYS.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("there are {}", KEYS.join(", ")),
            },
        )),
    }
}

fn whole(key: &str, value: &Value, low: usize, high: usize) -> Result<usize, RecipeError> {
    value.as_integer().and_then(|i| usize::try_from(i).ok()).filter(|n| (low..=high).contains(n)).ok_or_else(|| {
        error(key, format!("{value} cannot be used"), format!("write a whole number from {low} to {high}"))
    })
}

/// The text of a file that the recipe names.
fn text(key: &str, table: &Table, base: &Path) -> Result<Option<(std::path::PathBuf, String)>, RecipeError> {
    let Some(value) = table.get(key) else { return Ok(None) };
    let Some(name) = value.as_str() else {
        return Err(error(key, format!("{value} is no file name"), "write the file's name in quotes"));
    };
    let path = base.join(name);
    let bytes = read_small(&path)
        .map_err(|e| error(key, format!("{}: {e}", path.display()), "name a file that can be read"))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| error(key, format!("{}: not UTF-8 text", path.display()), "name the right file"))?;
    Ok(Some((path, text)))
}

fn read_small(path: &Path) -> std::io::Result<Vec<u8>> {
    let meta = std::fs::metadata(path)?;
    if !meta.is_file() || meta.len() > TEXT_MAX {
        return Err(std::io::Error::other(format!("no regular file of at most {TEXT_MAX} bytes")));
    }
    std::fs::read(path)
}

fn section<T: DeserializeOwned>(key: &str, value: &Value, keys: &[&str]) -> Result<T, RecipeError> {
    let Value::Table(table) = value else {
        return Err(error(
            key,
            format!("{value} is no table"),
            format!("write {key} = {{ … }} with {}", keys.join(", ")),
        ));
    };
    if let Some(wrong) = table.keys().find(|k| !keys.contains(&k.as_str())) {
        let remedy = match closest(wrong, keys.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("there are {}", keys.join(", ")),
        };
        return Err(error(&format!("{key}.{wrong}"), "no such key", remedy));
    }
    // One value at a time, so that a mistake is named with its key; whole numbers are numbers.
    for (name, value) in table {
        let one: Table = std::iter::once((name.clone(), floats(value))).collect();
        if let Err(e) = Value::Table(one).try_into::<T>() {
            let first = e.to_string().lines().next().unwrap_or_default().to_owned();
            return Err(error(&format!("{key}.{name}"), first, "docs/laue.md has its type and unit"));
        }
    }
    let table: Table = table.iter().map(|(k, v)| (k.clone(), floats(v))).collect();
    Value::Table(table).try_into().map_err(|e| error(key, e.to_string(), "docs/laue.md has its types and units"))
}

/// Lists and numbers as serde wants them: `[1, 0, 0]` is a vector too.
fn floats(value: &Value) -> Value {
    match value {
        Value::Array(list) if list.iter().any(Value::is_float) => {
            Value::Array(list.iter().map(|v| v.as_integer().map_or(v.clone(), |i| Value::Float(i as f64))).collect())
        }
        other => other.clone(),
    }
}

/// What the recipe itself says.
fn own(table: &Table) -> Result<Draft, RecipeError> {
    let mut draft = Draft::default();
    for (key, value) in table {
        let number = |low: f64, high: f64| {
            let n = value.as_float().or(value.as_integer().map(|i| i as f64));
            n.filter(|n| (low..=high).contains(n)).ok_or_else(|| {
                error(key, format!("{value} cannot be used"), format!("write a number from {low} to {high}"))
            })
        };
        match key.as_str() {
            "frames" => draft.frames = Some(list(key, value)?),
            "region" => draft.region = Some(list(key, value)?),
            "threshold" => draft.threshold = Some(number(0.0, 1e9)?),
            "saturation" => draft.saturation = Some(number(1.0, 1e9)?),
            "dataset" => {
                draft.dataset = Some(
                    value
                        .as_str()
                        .ok_or_else(|| error(key, format!("{value} is no name"), "write it in quotes"))?
                        .to_owned(),
                );
            }
            "mask" => draft.mask = section(key, value, MaskDraft::KEYS)?,
            "scanner" => draft.scanner = section(key, value, ScannerDraft::KEYS)?,
            "detector" => draft.detector = section(key, value, DetectorDraft::KEYS)?,
            "beam" => draft.beam = section(key, value, BeamDraft::KEYS)?,
            "depth" => draft.depth = section(key, value, DepthDraft::KEYS)?,
            "position" => draft.position = section(key, value, PositionDraft::KEYS)?,
            "footprint" => draft.footprint = section(key, value, FootprintDraft::KEYS)?,
            "energy" => {
                draft.energy = Some(match value.as_str() {
                    Some("unknown") => None,
                    _ => Some(section(key, value, EnergyDraft::KEYS)?),
                });
            }
            "wire" => draft.wire = section(key, value, WireDraft::KEYS)?,
            _ => {}
        }
    }
    Ok(draft)
}

fn list<const N: usize>(key: &str, value: &Value) -> Result<[usize; N], RecipeError> {
    let numbers: Option<Vec<usize>> =
        value.as_array().and_then(|a| a.iter().map(|v| v.as_integer().and_then(|i| usize::try_from(i).ok())).collect());
    numbers
        .and_then(|n| <[usize; N]>::try_from(n).ok())
        .ok_or_else(|| error(key, format!("{value} cannot be used"), format!("write {N} whole numbers in brackets")))
}

/// A number that must be there and lie in a range.
fn need(key: &str, value: Option<f64>, low: f64, high: f64) -> Result<f64, RecipeError> {
    let Some(v) = value else {
        return Err(error(key, "is missing", "give it, or a configuration or geometry that has it"));
    };
    if (low..=high).contains(&v) {
        Ok(v)
    } else {
        Err(error(key, format!("{v} is out of range"), format!("write a number from {low} to {high}")))
    }
}

fn vector(key: &str, value: Option<V3>, limit: f64) -> Result<V3, RecipeError> {
    match value {
        None => Err(error(key, "is missing", "give it, or a configuration or geometry that has it")),
        Some(v) if v.iter().all(|x| x.abs() <= limit) => Ok(v),
        Some(v) => {
            Err(error(key, format!("{v:?} is out of range"), format!("write three numbers of at most ±{limit}")))
        }
    }
}

fn direction(key: &str, value: Option<V3>) -> Result<V3, RecipeError> {
    let v = vector(key, value, 1e6)?;
    if norm(v) > 1e-6 { Ok(unit(v)) } else { Err(error(key, "has no length", "write a direction, as [0, 0, 1]")) }
}

fn detector(d: &DetectorDraft) -> Result<Detector, RecipeError> {
    let missing = |key: &str| error(key, "is missing", "give it, or a configuration or geometry that has it");
    let shape = d.shape.ok_or_else(|| missing("detector.shape"))?;
    if shape.iter().any(|n| !(1..=100_000).contains(n)) {
        return Err(error(
            "detector.shape",
            format!("{shape:?} is out of range"),
            "write [columns, rows] of the full chip",
        ));
    }
    let size_mm = d.size_mm.ok_or_else(|| missing("detector.size_mm"))?;
    for s in size_mm {
        need("detector.size_mm", Some(s), 0.1, 1e4)?;
    }
    Ok(Detector {
        shape,
        size_mm,
        rotation_rad: vector("detector.rotation_rad", d.rotation_rad, 7.0)?,
        position_mm: vector("detector.position_mm", d.position_mm, 1e4)?,
    })
}

fn depth(d: &DepthDraft, default: DepthGrid) -> Result<DepthGrid, RecipeError> {
    let first = d.first_um.unwrap_or(default.first_um);
    let last = d.last_um.unwrap_or(default.centre_um(default.bins - 1));
    let first_um = need("depth.first_um", Some(first), -1e5, 1e5)?;
    let last_um = need("depth.last_um", Some(last), first_um, 1e5)?;
    let step_um = need("depth.step_um", Some(d.step_um.unwrap_or(default.step_um)), 1e-3, 1e4)?;
    let bins = ((last_um - first_um) / step_um).round() as usize + 1;
    if bins > 2_000 {
        return Err(error(
            "depth.step_um",
            format!("makes {bins} depths"),
            "at most 2000; make the step or the range larger or smaller",
        ));
    }
    Ok(DepthGrid { first_um, step_um, bins })
}

fn beam(d: &BeamDraft) -> Result<V3, RecipeError> {
    direction("beam.direction", Some(d.direction.unwrap_or([0.0, 0.0, 1.0])))
}

fn sequence(name: &str, base: &Path) -> Result<Vec<u8>, RecipeError> {
    if let Some(bits) = code::named(name) {
        return Ok(bits);
    }
    let path = base.join(name);
    let bad = |problem: String| {
        error(
            "mask.code",
            format!("{}: {problem}", path.display()),
            "write a known code, as debruijn-2-8, or a .npy file",
        )
    };
    let bits = code::from_npy(&read_small(&path).map_err(|e| bad(e.to_string()))?).map_err(bad)?;
    if bits.len() > 100_000 || !bits.contains(&0) || !bits.contains(&1) {
        return Err(bad(format!("{} bits, or all of them equal", bits.len())));
    }
    Ok(bits)
}

fn aperture(d: &Draft, base: &Path, every: usize) -> Result<DecodeSetup, RecipeError> {
    let default = nominal();
    let m = &d.mask;
    let bit_um = m.bits_um.unwrap_or(default.mask.bit_um);
    for b in bit_um {
        need("mask.bits_um", Some(b), 0.1, 1e3)?;
    }
    let resolution_um = need("mask.resolution_um", m.resolution_um.or(Some(default.mask.resolution_um)), 0.01, 100.0)?;
    let mask = MaskSpec {
        bits: sequence(m.code.as_deref().unwrap_or("debruijn-2-8"), base)?,
        bit_um,
        reversed: m.reversed.unwrap_or(false),
        thickness_um: need("mask.thickness_um", m.thickness_um, 0.0, 100.0)?,
        resolution_um,
        pad_um: need("mask.pad_um", m.pad_um.or(Some(default.mask.pad_um)), 0.0, 1e4)?,
        widening_um: need("mask.widening_um", m.widening_um.or(Some(0.0)), -100.0, 100.0)?,
        stretch: need("mask.stretch", m.stretch.or(Some(1.0)), 0.1, 10.0)?,
    };
    let length = mask.bits.iter().map(|&b| bit_um[usize::from(b != 0)]).sum::<f64>() + 2.0 * mask.pad_um;
    if length / resolution_um > 1e6 {
        return Err(error(
            "mask.resolution_um",
            format!("{resolution_um} makes {:.0} samples of the mask", length / resolution_um),
            "at most a million",
        ));
    }
    let pose = Pose {
        centre_mm: vector("mask.center_mm", m.center_mm, 1e3)?,
        angles_deg: vector("mask.angles_deg", m.angles_deg, 360.0)?,
        shift_mm: need("mask.shift_mm", m.shift_mm.or(Some(0.0)), -100.0, 100.0)?,
        // Frames left out are steps taken.
        step_um: every as f64 * need("scanner.step_um", d.scanner.step_um, 1e-3, 100.0)?,
        scanner_rotation_rad: vector("scanner.rotation_rad", d.scanner.rotation_rad.or(Some([0.0; 3])), 7.0)?,
        scanner_axis: direction("scanner.axis", d.scanner.axis)?,
    };
    let position = PositionOptions {
        width_um: need("position.width_um", d.position.width_um.or(Some(default.position.width_um)), 0.1, 1e3)?,
        apart_um: need("position.apart_um", d.position.apart_um.or(Some(default.position.apart_um)), 1.0, 1e4)?,
        margin: need("position.margin", d.position.margin.or(Some(default.position.margin)), 0.0, 1e9)?,
        within_um: d.position.within_um.map(|w| need("position.within_um", Some(w), 0.0, 1e5)).transpose()?,
    };
    let f = &d.footprint;
    let window_um = need("footprint.window_um", f.window_um.or(Some(default.footprint.window_um)), 2.0, 1e3)?;
    let footprint = FootprintOptions {
        fit: f.fit.unwrap_or(true),
        window_um,
        degree: f.degree.unwrap_or(default.footprint.degree),
        knots: f.knots.unwrap_or(default.footprint.knots),
    };
    if footprint.degree > 7 {
        return Err(error("footprint.degree", format!("{} is out of range", footprint.degree), "write 0 to 7"));
    }
    let samples = window_um / resolution_um;
    if footprint.knots == 0 || ((footprint.degree + 1) * footprint.knots) as f64 > samples {
        return Err(error(
            "footprint.knots",
            format!("{} does not fit a window of {samples:.0} samples", footprint.knots),
            "write 1, 2 or more, as the window allows",
        ));
    }
    if samples / footprint.knots as f64 > 1000.0 {
        return Err(error(
            "footprint.window_um",
            format!("{window_um} makes too many coefficients"),
            "at most 1000 knots in the window",
        ));
    }
    Ok(DecodeSetup {
        detector: detector(&d.detector)?,
        beam: beam(&d.beam)?,
        source_mm: need("beam.source_mm", d.beam.source_mm.or(Some(0.0)), -100.0, 100.0)?,
        mask,
        pose,
        threshold: d.threshold.unwrap_or(default.threshold),
        saturation: d.saturation.unwrap_or(default.saturation),
        depth: depth(&d.depth, default.depth)?,
        position,
        energy: energy(d.energy.as_ref().and_then(Option::as_ref))?,
        background: d
            .energy
            .as_ref()
            .and_then(|e| e.as_ref()?.background_counts)
            .map(|b| need("energy.background_counts", Some(b), 0.0, 1e9))
            .transpose()?,
        footprint,
    })
}

fn energy(d: Option<&EnergyDraft>) -> Result<EnergyOptions, RecipeError> {
    let (low, high) = ENERGY_KEV;
    match d {
        None | Some(EnergyDraft { fit_kev: None, fixed_kev: None, .. }) => Ok(EnergyOptions::Unknown),
        Some(EnergyDraft { fit_kev: Some(_), fixed_kev: Some(_), .. }) => {
            Err(error("energy", "is both fixed and to be found", "give fixed_kev or fit_kev"))
        }
        Some(EnergyDraft { fixed_kev: Some(e), .. }) => {
            Ok(EnergyOptions::Fixed(need("energy.fixed_kev", Some(*e), low, high)?))
        }
        Some(EnergyDraft { fit_kev: Some([first, end, step]), .. }) => {
            need("energy.fit_kev", Some(*first), low, high)?;
            need("energy.fit_kev", Some(*end), *first, high)?;
            need("energy.fit_kev", Some(*step), 0.01, 100.0)?;
            Ok(EnergyOptions::Fit(*first, *end, *step))
        }
    }
}

/// What calibration searches; nominal values where nothing is said.
pub fn calibrate(value: &Value) -> Result<CalibrateOptions, RecipeError> {
    let d: CalibrateDraft = section("calibrate", value, CalibrateDraft::KEYS)?;
    let default = CalibrateOptions::default();
    Ok(CalibrateOptions {
        film_um: d.film_um.map(|z| need("calibrate.film_um", Some(z), -1e5, 1e5)).transpose()?,
        spots: need("calibrate.spots", d.spots.map(|n| n as f64).or(Some(default.spots as f64)), 20.0, 1e5)? as usize,
        range_mm: need("calibrate.range_mm", d.range_mm.or(Some(default.range_mm)), 1e-4, 10.0)?,
        range_deg: need("calibrate.range_deg", d.range_deg.or(Some(default.range_deg)), 1e-4, 45.0)?,
    })
}

fn wire_setup(d: &Draft) -> Result<WireSetup, RecipeError> {
    let default = nominal();
    let w = &d.wire;
    Ok(WireSetup {
        detector: detector(&d.detector)?,
        beam: beam(&d.beam)?,
        wire: WireSpec {
            diameter_um: need("wire.diameter_um", w.diameter_um, 0.1, 1e4)?,
            axis: direction("wire.axis", w.axis)?,
            rotation_rad: vector("wire.rotation_rad", w.rotation_rad.or(Some([0.0; 3])), 7.0)?,
            origin_um: vector("wire.origin_um", w.origin_um.or(Some([0.0; 3])), 1e7)?,
        },
        edge: w.edge.unwrap_or(Edge::Leading),
        threshold: d.threshold.unwrap_or(default.threshold),
        saturation: d.saturation.unwrap_or(default.saturation),
        depth: depth(&d.depth, default.depth)?,
    })
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
