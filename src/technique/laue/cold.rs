//! The configuration file of `cold`, YAML, as it is.
//!
//! Every field either sets something, or is known to have no effect here and noted by name, or is refused by name. Paths in
//! the file are its author's and are not followed; the code is known by its name. Lengths are those that `cold` computes with:
//! `focus` and `shift` millimetres (whatever a comment says), `grid` millimetres, mask and step micrometres.

use super::draft::{
    DepthDraft, DetectorDraft, Draft, EnergyDraft, FootprintDraft, MaskDraft, PositionDraft, ScannerDraft,
};
use super::geometry::V3;
use serde::Deserialize;
use serde_norway::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    ver: Option<Value>,
    file: FileBlock,
    comp: Option<Comp>,
    geo: Geo,
    algo: Algo,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileBlock {
    path: Option<Value>,
    output: Option<Value>,
    range: [usize; 3],
    threshold: f64,
    frame: [usize; 4],
    offset: Option<Value>,
    ext: String,
    stacked: Option<bool>,
    h5: Option<H5>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct H5 {
    key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Comp {
    server: Option<String>,
    workers: Option<Value>,
    functionid: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Geo {
    mask: MaskBlock,
    scanner: Scanner,
    detector: DetectorBlock,
    source: Source,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MaskBlock {
    material: Option<String>,
    path: String,
    reversed: bool,
    bitsizes: [f64; 2],
    thickness: f64,
    resolution: f64,
    smoothness: Option<f64>,
    alpha: Option<f64>,
    widening: Option<f64>,
    pad: f64,
    stretch: Option<f64>,
    shift: Option<f64>,
    focus: Focus,
    cal: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Focus {
    cenx: f64,
    dist: f64,
    anglez: f64,
    angley: f64,
    anglex: f64,
    cenz: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scanner {
    step: f64,
    rot: V3,
    axis: V3,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DetectorBlock {
    shape: [usize; 2],
    size: [f64; 2],
    rot: V3,
    pos: V3,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    offset: f64,
    grid: [f64; 3],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Algo {
    iter: Option<Value>,
    pos: Pos,
    sig: Sig,
    ene: Option<Ene>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pos {
    method: String,
    regpar: Option<f64>,
    init: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sig {
    recon: Option<bool>,
    method: Option<String>,
    order: Option<usize>,
    scale: Option<usize>,
    init: SigInit,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SigInit {
    maxsize: f64,
    avgsize: f64,
    atol: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ene {
    recon: bool,
    exact: Option<bool>,
    method: Option<String>,
    range: Option<[f64; 3]>,
}

/// Reads a configuration.
///
/// # Errors
/// The field that cannot be used, and what would be right.
pub fn read(text: &str) -> Result<Draft, String> {
    let Config { ver, file, comp, geo, algo } =
        serde_norway::from_str(text).map_err(|e| format!("not a configuration of cold: {e}"))?;
    let mut notes = Vec::new();
    let mut unused = |field: &str, given: bool, why: &str| {
        if given {
            notes.push(format!("configuration: {field} has no effect: {why}"));
        }
    };
    unused("ver", ver.is_some(), "there is one version");
    unused("file.path", file.path.is_some(), "the campaign says where points arrive");
    unused("file.output", file.output.is_some(), "the campaign says where results go");
    unused("file.stacked", file.stacked.is_some(), "the point itself shows how its frames are stored");
    if let Some(offset) = &file.offset
        && !zero(offset)
    {
        return Err(
            "file.offset is not 0,0; the readout's start is taken from entry1/detector/startx and starty".to_owned()
        );
    }
    only("file.ext", &file.ext, "h5")?;
    if let Some(comp) = comp {
        only("comp.server", comp.server.as_deref().unwrap_or("local"), "local")?;
        unused("comp.workers", comp.workers.is_some(), "the pilot places work");
        unused("comp.functionid", comp.functionid.is_some(), "nothing is sent elsewhere");
    }
    let mask = geo.mask;
    only("geo.mask.material", mask.material.as_deref().unwrap_or("Au"), "Au")?;
    nothing("geo.mask.smoothness", mask.smoothness)?;
    nothing("geo.mask.alpha", mask.alpha)?;
    unused("geo.mask.cal", mask.cal.is_some(), "it names an earlier calibration");
    let name = mask.path.rsplit('/').next().unwrap_or_default();
    let code = name.strip_suffix(".npy").unwrap_or(name);
    if super::code::named(code).is_none() {
        return Err(format!(
            "geo.mask.path: the code {code:?} is not known here; give its .npy file as mask.code in the recipe and a known name, as code-debruijn-2-8-000.npy, here"
        ));
    }
    unused("algo.iter", algo.iter.is_some(), "each pixel is decoded once");
    only("algo.pos.method", &algo.pos.method, "lsqr")?;
    nothing("algo.pos.regpar", algo.pos.regpar)?;
    unused("algo.pos.init", algo.pos.init.is_some(), "every position is tried");
    only("algo.sig.method", algo.sig.method.as_deref().unwrap_or("splines"), "splines")?;
    unused("algo.sig.init.atol", algo.sig.init.atol.is_some(), "nothing is iterated to a tolerance");
    let energy = match algo.ene {
        Some(ene) if ene.recon => {
            only("algo.ene.method", ene.method.as_deref().unwrap_or("lsqr"), "lsqr")?;
            if ene.exact == Some(false) {
                return Err("algo.ene.exact is False; energies are found with exact absorption only".to_owned());
            }
            let range = ene.range.ok_or("algo.ene.range is missing; write [first, end, step] in keV")?;
            Some(EnergyDraft { fit_kev: Some(range), ..EnergyDraft::default() })
        }
        _ => None,
    };
    let [start, stop, step] = geo.source.grid;
    let depth = if step > 0.0 && stop > start {
        // As numpy.arange: the end is not reached.
        let bins = ((stop - start) / step - 1e-9).ceil();
        DepthDraft {
            first_um: Some(start * 1e3),
            last_um: Some((start + (bins - 1.0) * step) * 1e3),
            step_um: Some(step * 1e3),
        }
    } else {
        return Err(format!("geo.source.grid {:?} is no grid; write [start, stop, step] in mm", geo.source.grid));
    };
    let f = mask.focus;
    Ok(Draft {
        frames: Some(file.range),
        region: Some(file.frame),
        threshold: Some(file.threshold),
        dataset: file.h5.map(|h| h.key),
        mask: MaskDraft {
            code: Some(code.to_owned()),
            bits_um: Some(mask.bitsizes),
            reversed: Some(mask.reversed),
            thickness_um: Some(mask.thickness),
            resolution_um: Some(mask.resolution),
            pad_um: Some(mask.pad),
            widening_um: mask.widening,
            stretch: mask.stretch,
            center_mm: Some([f.cenx, f.dist, f.cenz]),
            angles_deg: Some([f.anglex, f.angley, f.anglez]),
            shift_mm: Some(mask.shift.unwrap_or(0.0)),
        },
        scanner: ScannerDraft {
            step_um: Some(geo.scanner.step),
            rotation_rad: Some(geo.scanner.rot),
            axis: Some(geo.scanner.axis),
        },
        detector: DetectorDraft {
            shape: Some(geo.detector.shape),
            size_mm: Some(geo.detector.size),
            rotation_rad: Some(geo.detector.rot),
            position_mm: Some(geo.detector.pos),
        },
        beam: super::draft::BeamDraft { direction: None, source_mm: Some(geo.source.offset) },
        depth,
        position: PositionDraft { width_um: Some(algo.sig.init.avgsize), ..PositionDraft::default() },
        footprint: FootprintDraft {
            fit: Some(algo.sig.recon.unwrap_or(true)),
            window_um: Some(algo.sig.init.maxsize),
            degree: algo.sig.order,
            knots: algo.sig.scale,
        },
        energy: Some(energy),
        notes,
        ..Draft::default()
    })
}

/// `0`, `0,0` or a list of zeros.
fn zero(value: &Value) -> bool {
    match value {
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.split(',').all(|w| w.trim().parse::<f64>() == Ok(0.0)),
        Value::Sequence(list) => list.iter().all(zero),
        Value::Null => true,
        _ => false,
    }
}

fn only(field: &str, given: &str, known: &str) -> Result<(), String> {
    if given == known { Ok(()) } else { Err(format!("{field} is {given:?}; only {known:?} can be used")) }
}

fn nothing(field: &str, given: Option<f64>) -> Result<(), String> {
    match given {
        Some(v) if v != 0.0 => Err(format!("{field} is {v}; only 0 can be used")),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::Path;

    /// A configuration of our own with every field.
    pub(crate) const SAMPLE: &str = "\
ver: 1.0
file:
  path: 'nowhere'
  output: 'nowhere'
  range: [0, 401, 1]
  threshold: 30
  frame: [0, 2048, 0, 2048]
  offset: 0,0
  ext: 'h5'
  stacked: True
  h5: {key: '/entry1/data/data'}
comp: {server: 'local', workers: 8, functionid: 'x'}
geo:
  mask: {path: '../masks/code-debruijn-2-8-000.npy', reversed: False, bitsizes: [15, 7.5], thickness: 3.7, resolution: 0.5, \
smoothness: 0, alpha: 0, widening: 0, pad: 300, stretch: 1.0, shift: 0.2, focus: {cenx: 0.45, dist: 1.6, anglez: 43.8, \
angley: -0.5, anglex: 0.1, cenz: 0.75}, cal: {id: 1, path: 'x'}}
  scanner: {step: 0.5, rot: [0.0045, -0.0068, 0], axis: [0.7, 0.7, 0]}
  detector: {shape: [2048, 2048], size: [409.6, 409.6], rot: [-1.2, -1.2, -1.2], pos: [28.8, 2.8, 513.0]}
  source: {offset: 0, grid: [-0.2, 0.2, 0.001]}
algo:
  iter: 1
  pos: {method: 'lsqr', regpar: 0, init: 'spline'}
  sig: {recon: True, method: 'splines', order: 5, scale: 1, init: {maxsize: 64, avgsize: 10, atol: 4}}
  ene: {recon: True, exact: True, method: 'lsqr', range: [5, 30, 1]}
";

    #[test]
    fn every_field_is_used_or_noted() {
        let draft = read(SAMPLE).unwrap();
        assert_eq!(draft.depth.last_um.map(f64::round), Some(199.0));
        assert_eq!(draft.mask.center_mm, Some([0.45, 1.6, 0.75]));
        for field in [
            "ver",
            "file.path",
            "file.output",
            "file.stacked",
            "comp.workers",
            "comp.functionid",
            "geo.mask.cal",
            "algo.iter",
            "algo.pos.init",
            "algo.sig.init.atol",
        ] {
            assert!(draft.notes.iter().any(|n| n.contains(&format!(" {field} "))), "{field}: {:?}", draft.notes);
        }
        assert_eq!(draft.notes.len(), 10);
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        for (from, to, word) in [
            ("offset: 0,0", "offset: 3,0", "file.offset"),
            ("server: 'local'", "server: 'remote'", "comp.server"),
            ("smoothness: 0", "smoothness: 2", "smoothness"),
            ("regpar: 0", "regpar: 1", "regpar"),
            ("exact: True", "exact: False", "ene.exact"),
            ("ext: 'h5'", "ext: 'tiff'", "file.ext"),
            ("grid: [-0.2, 0.2, 0.001]", "grid: [0.2, -0.2, 0.001]", "source.grid"),
            ("000.npy", "900.npy", "geo.mask.path"),
            ("thickness: 3.7", "thicknes: 3.7", "thicknes"),
            ("step: 0.5", "step: fast", "step"),
            ("geo:", "geos:", "geos"),
        ] {
            let text = SAMPLE.replacen(from, to, 1);
            assert_ne!(text, SAMPLE, "{from}");
            let error = read(&text).map(|_| ()).unwrap_err();
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn the_measured_configuration_is_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/laue/config-calibrate3x1800-1.yml");
        let Ok(text) = std::fs::read_to_string(&path) else {
            println!("skipped: no {}", path.display());
            return;
        };
        let draft = read(&text).unwrap();
        assert_eq!(draft.frames, Some([0, 541, 1]));
        assert_eq!(draft.threshold, Some(20.0));
        assert_eq!(draft.mask.angles_deg, Some([0.09179688, -0.47070312, 43.84902344]));
        let axis = draft.scanner.axis.unwrap();
        assert!(axis[2] == 0.0 && axis.iter().take(2).all(|v| (v - std::f64::consts::FRAC_1_SQRT_2).abs() < 1e-9));
        assert_eq!(draft.energy.flatten().unwrap().fit_kev, Some([5.0, 30.0, 1.0]));
        assert_eq!(draft.footprint.degree, Some(5));
    }
}
