//! The tables of single steps: axis, phase retrieval, stripes, iterative algorithms.

use super::super::iterative::Stopping;
use super::super::stripe::Stripe;
use super::super::stripes::Stripes;
use super::super::titarenko::Titarenko;
use super::super::wavelet::Wavelet;
use super::{CenterMethod, Turn, error, flag, known_keys, number, odd, whole, word};
use crate::technique::RecipeError;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// Paganin's filter as users ask for it; the pixel size is the scan's. Units as in [`super::super::paganin`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Photon energy, keV.
    pub energy_kev: f64,
    /// Distance from sample to detector, mm.
    pub distance_mm: f64,
    /// `δ/β`.
    pub delta_beta: f64,
}

/// Most slices in a picture of candidates.
const CANDIDATES: f64 = 25.0;

/// Candidate axes to show side by side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CenterTry {
    /// Pixels on either side of the axis found or given.
    pub range: f64,
    /// Pixels from one to the next.
    pub step: f64,
}

impl CenterTry {
    /// The candidates about an axis, ascending.
    #[must_use]
    pub fn candidates(&self, around: f64) -> Vec<f64> {
        let count = (self.range / self.step + 1e-9).floor() as i64;
        (-count..=count).map(|i| around + i as f64 * self.step).collect()
    }
}

pub(super) fn center_method(value: &Value) -> Result<CenterMethod, RecipeError> {
    Ok(match word("center_method", value, &["vo", "phase", "entropy"])? {
        "phase" => CenterMethod::Phase,
        "entropy" => CenterMethod::Entropy,
        _ => CenterMethod::Vo,
    })
}

pub(super) fn center_try(value: &Value) -> Result<Option<CenterTry>, RecipeError> {
    let Value::Table(table) = value else {
        return word("center_try", value, &["off"]).map(|_| None);
    };
    known_keys("center_try.", table, &["range", "step"])?;
    let read = |key: &str, usual: f64, low: f64, high: f64| match table.get(key) {
        Some(value) => number(&format!("center_try.{key}"), value, low, high),
        None => Ok(usual),
    };
    let tried = CenterTry { range: read("range", 4.0, 0.05, 1000.0)?, step: read("step", 1.0, 0.05, 100.0)? };
    let count = 2.0 * (tried.range / tried.step + 1e-9).floor() + 1.0;
    if count > CANDIDATES {
        let remedy = format!("at most {CANDIDATES} fit into a picture: raise step or lower range");
        return Err(error("center_try", format!("these are {count} slices"), remedy));
    }
    Ok(Some(tried))
}

pub(super) fn turn(value: &Value) -> Result<Turn, RecipeError> {
    Ok(match word("turn", value, &["auto", "centered", "offset"])? {
        "centered" => Turn::Centered,
        "offset" => Turn::Offset,
        _ => Turn::Auto,
    })
}

/// `"off"`, or all three numbers: none of them can be guessed.
pub(super) fn paganin(value: &Value) -> Result<Option<Phase>, RecipeError> {
    let Value::Table(table) = value else {
        return word("paganin", value, &["off"]).map(|_| None);
    };
    known_keys("paganin.", table, &["energy_kev", "distance_mm", "delta_beta"])?;
    let needed = |key: &str, low: f64, high: f64, example: &str| match table.get(key) {
        Some(value) => number(&format!("paganin.{key}"), value, low, high),
        None => Err(error(&format!("paganin.{key}"), "is missing", format!("write {example}"))),
    };
    Ok(Some(Phase {
        energy_kev: needed("energy_kev", 0.1, 1e3, "the photon energy in keV, as energy_kev = 25")?,
        distance_mm: needed("distance_mm", 0.0, 1e6, "the distance from sample to detector, as distance_mm = 60")?,
        delta_beta: needed("delta_beta", 0.0, 1e6, "the material's δ/β, as delta_beta = 300")?,
    }))
}

/// A method's name, or a table with its `method` and settings.
pub(super) fn stripe(value: &Value) -> Result<Option<Stripes>, RecipeError> {
    const METHODS: [&str; 4] = ["vo", "wavelet", "titarenko", "none"];
    let empty = Table::new();
    let (method, table) = match value {
        Value::Table(table) => match table.get("method") {
            Some(method) => (word("stripe.method", method, &METHODS[..3])?, table),
            None => ("vo", table),
        },
        _ => (word("stripe", value, &METHODS)?, &empty),
    };
    let read = |key: &str| table.get(key).map(|value| (format!("stripe.{key}"), value));
    Ok(Some(match method {
        "none" => return Ok(None),
        "vo" => {
            known_keys("stripe.", table, &["method", "snr", "large", "small", "drop_ratio"])?;
            let usual = Stripe::default();
            let window = |key: &str, usual| read(key).map_or(Ok(usual), |(key, v)| odd(&key, v, 3.0, 1001.0));
            Stripes::Vo(Stripe {
                snr: read("snr").map_or(Ok(usual.snr), |(key, v)| number(&key, v, 1.0, 100.0))?,
                large: window("large", usual.large)?,
                small: window("small", usual.small)?,
                drop_ratio: read("drop_ratio").map_or(Ok(usual.drop_ratio), |(key, v)| number(&key, v, 0.0, 0.49))?,
            })
        }
        "wavelet" => {
            known_keys("stripe.", table, &["method", "sigma", "level"])?;
            let level = match read("level") {
                Some((key, Value::String(word_))) => {
                    word(&key, &Value::String(word_.clone()), &["auto"])?;
                    None
                }
                Some((key, value)) => Some(whole(&key, value, 1, 12)?),
                None => None,
            };
            let usual = Wavelet::default();
            let sigma = read("sigma").map_or(Ok(usual.sigma), |(key, v)| number(&key, v, 0.1, 50.0))?;
            Stripes::Wavelet(Wavelet { sigma, level })
        }
        _ => {
            known_keys("stripe.", table, &["method", "alpha", "blocks"])?;
            let usual = Titarenko::default();
            Stripes::Titarenko(Titarenko {
                alpha: read("alpha").map_or(Ok(usual.alpha), |(key, v)| number(&key, v, 1e-6, 100.0))?,
                blocks: read("blocks").map_or(Ok(usual.blocks), |(key, v)| whole(&key, v, 1, 1000))?,
            })
        }
    }))
}

/// When iterative algorithms stop.
pub(super) fn iterative(value: &Value) -> Result<Stopping, RecipeError> {
    let Value::Table(table) = value else {
        return Err(error(
            "iterative",
            format!("{value} is no table"),
            "write { iterations = 100, tolerance = 0.001 }",
        ));
    };
    known_keys("iterative.", table, &["iterations", "tolerance", "noise", "nonnegative"])?;
    let mut stopping = Stopping::default();
    for (key, value) in table {
        let dotted = format!("iterative.{key}");
        match key.as_str() {
            "iterations" => stopping.iterations = whole(&dotted, value, 1, 10_000)?,
            "tolerance" => stopping.tolerance = number(&dotted, value, 0.0, 1.0)?,
            "noise" => stopping.noise = number(&dotted, value, 0.0, 100.0)?,
            _ => stopping.nonnegative = flag(&dotted, value)?,
        }
    }
    Ok(stopping)
}
