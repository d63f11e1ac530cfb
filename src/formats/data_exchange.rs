//! Data Exchange, the layout of APS and ALS: `/exchange/data` `[angle, row, column]`, `data_white`,
//! `data_dark`, `theta` in degrees.
//!
//! Without `theta`, in this order: `/process/acquisition/rotation/{rotation_start, rotation_step,
//! num_angles}` (angle i = start + i · step); `/process/acquisition/rotation/range` (ALS 8.3.2: the range is
//! covered with both ends included and the stage turns the other way, so angles are negated); 0–180° evenly
//! with the end not included.
//!
//! Pixel size: `/measurement/instrument/detector/pixel_size` (or `pixel_size_x`, or
//! `…/detection_system/objective/resolution`) in the unit of its `units` attribute. Without one, millimetres,
//! as ALS writes them. A size outside 1 nm – 1 mm is ignored, with a note.

use super::h5::{H5, attribute, read_number, read_string};
use super::links::{Lookup, lookup};
use super::source::{Awaited, FrameList, Parts};
use super::stack::FrameStack;
use super::{als, angles};
use crate::technique::Fault;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Reads the layout; `None` when it is another one, with what was missing appended to `looked`.
pub(crate) fn read(h5: &Rc<H5>, looked: &mut Vec<String>) -> Result<Option<Parts>, Fault> {
    let projections = match lookup(h5, "/exchange/data")?.promised()? {
        Lookup::Dataset(found) => FrameList::all(FrameStack::new(found, "/exchange/data")?),
        Lookup::Group => return Ok(None),
        Lookup::Missing(why) | Lookup::Awaited(why) => {
            looked.push(why);
            return Ok(None);
        }
    };
    let count = projections.frames.len();
    // Whether frames and angles that a link promises are needed, companions and the recipe say.
    let mut awaited = Awaited::default();
    let optional = |name: &str, awaited: &mut Option<String>| -> Result<Option<FrameList>, Fault> {
        match lookup(h5, name)? {
            Lookup::Awaited(why) => {
                *awaited = Some(why);
                Ok(None)
            }
            Lookup::Dataset(found) => FrameStack::new(found, name).map(|s| Some(FrameList::all(s))),
            _ => Ok(None),
        }
    };
    let mut notes = Vec::new();
    let flats_before = optional("/exchange/data_white", &mut awaited.flats)?;
    let darks = optional("/exchange/data_dark", &mut awaited.darks)?;
    let angles = match lookup(h5, "/exchange/theta")? {
        Lookup::Dataset(found) => {
            angles::from_dataset(&found, "/exchange/theta").map(|a| Some((a, "/exchange/theta".to_owned())))
        }
        Lookup::Awaited(why) => {
            awaited.angles = Some(why);
            Ok(None)
        }
        _ => rotation(h5, count),
    };
    let pixel_size_cm = pixel_size(h5, &PIXEL_SIZES, Some(0.1), &mut notes)?;
    let metadata = strings(h5, &METADATA)?;
    let mut parts = Parts {
        layout: "data-exchange",
        projections,
        flats_before,
        flats_after: None,
        flats_between: Vec::new(),
        darks,
        angles,
        pixel_size_cm,
        metadata,
        notes,
        awaited,
    };
    als::complete(h5, &mut parts)?;
    Ok(Some(parts))
}

fn rotation(h5: &Rc<H5>, count: usize) -> Result<Option<(Vec<f64>, String)>, Fault> {
    const GROUP: &str = "/process/acquisition/rotation";
    let number = |name: &str| needed_scalar(h5, &format!("{GROUP}/{name}"));
    if let (Some(start), Some(step)) = (number("rotation_start")?, number("rotation_step")?) {
        let stated = number("num_angles")?.unwrap_or(count as f64);
        if stated != count as f64 {
            return Err(Fault::Input(format!(
                "{}: {GROUP}/num_angles is {stated}, but /exchange/data has {count} projections; write /exchange/theta, or give the role `angles`",
                h5.path.display()
            )));
        }
        let angles = (0..count).map(|i| start + i as f64 * step).collect();
        return Ok(Some((angles, format!("{GROUP}/rotation_start and rotation_step"))));
    }
    if let Some(range) = number("range")? {
        return Ok(Some((als::angles(count, range), format!("{GROUP}/range, negated"))));
    }
    Ok(None)
}

const PIXEL_SIZES: [&str; 3] = [
    "/measurement/instrument/detector/pixel_size",
    "/measurement/instrument/detector/pixel_size_x",
    "/measurement/instrument/detection_system/objective/resolution",
];

/// (word in the manifest, dataset).
const METADATA: [(&str, &str); 9] = [
    ("title", "/exchange/title"),
    ("sample", "/measurement/sample/name"),
    ("description", "/measurement/sample/description"),
    ("experimenter", "/measurement/sample/experimenter/name"),
    ("proposal", "/measurement/sample/experiment/proposal"),
    ("energy", "/measurement/instrument/monochromator/energy"),
    ("instrument", "/measurement/instrument/name"),
    ("start", "/process/acquisition/start_date"),
    ("end", "/process/acquisition/end_date"),
];

/// One number, if it is there.
pub(crate) fn scalar(h5: &Rc<H5>, name: &str) -> Result<Option<f64>, Fault> {
    Ok(lookup(h5, name)?.dataset().and_then(|found| read_number(&found.dataset)))
}

/// One number on which the reading of frames or angles depends, if the file has it.
pub(crate) fn needed_scalar(h5: &Rc<H5>, name: &str) -> Result<Option<f64>, Fault> {
    Ok(lookup(h5, name)?.promised()?.dataset().and_then(|found| read_number(&found.dataset)))
}

/// The strings (and numbers with their units) that are there.
pub(crate) fn strings(h5: &Rc<H5>, names: &[(&str, &str)]) -> Result<BTreeMap<String, String>, Fault> {
    let mut out = BTreeMap::new();
    for (word, name) in names {
        let Some(found) = lookup(h5, name)?.dataset() else { continue };
        let text = read_string(&found.dataset).or_else(|| {
            let value = read_number(&found.dataset)?;
            Some(format!("{value} {}", attribute(&found.dataset, "units").unwrap_or_default()).trim().to_owned())
        });
        if let Some(text) = text.filter(|t| !t.is_empty()) {
            out.insert((*word).to_owned(), text);
        }
    }
    Ok(out)
}

/// The first usable pixel size, in centimetres. `unit_cm`: the unit of a number without `units`.
pub(crate) fn pixel_size(
    h5: &Rc<H5>,
    names: &[&str],
    unit_cm: Option<f64>,
    notes: &mut Vec<String>,
) -> Result<Option<f64>, Fault> {
    for name in names {
        let Some(found) = lookup(h5, name)?.dataset() else { continue };
        let Some(value) = read_number(&found.dataset) else { continue };
        let units = attribute(&found.dataset, "units").filter(|u| !u.is_empty());
        let scale = match &units {
            Some(units) => centimetres(units),
            None => unit_cm,
        };
        match scale.map(|s| s * value).filter(|cm| (1e-7..=0.1).contains(cm)) {
            Some(cm) => return Ok(Some(cm)),
            None => notes.push(format!(
                "{name} = {value} {} is no pixel size between 1 nm and 1 mm and was ignored",
                units.as_deref().unwrap_or("(no units)")
            )),
        }
    }
    Ok(None)
}

/// Centimetres in a unit of length.
fn centimetres(unit: &str) -> Option<f64> {
    Some(match unit.trim().to_lowercase().as_str() {
        "m" | "meter" | "metre" | "meters" | "metres" => 100.0,
        "cm" | "centimeter" | "centimetre" => 1.0,
        "mm" | "millimeter" | "millimetre" | "millimeters" => 0.1,
        "um" | "µm" | "μm" | "micron" | "microns" | "micrometer" | "micrometre" | "micrometers" => 1e-4,
        "nm" | "nanometer" | "nanometre" => 1e-7,
        _ => return None,
    })
}
