//! NXtomo and its relatives: one stack of frames, told apart by an `image_key` (0 projection, 1 flat, 2 dark,
//! 3 invalid), with a rotation angle per frame.
//!
//! | layout | frames and key | angles |
//! | --- | --- | --- |
//! | NXtomo | `entry/instrument/detector/{data, image_key}` | `entry/sample/rotation_angle` |
//! | NXtomo, alternative | `entry/data/{data, image_key}` | `entry/data/rotation_angle` |
//! | Diamond | `entry1/tomo_entry/…` as NXtomo | `entry1/tomo_entry/sample/rotation_angle` |
//! | DIAD (K11) | `entry/imaging/data`, `entry/instrument/imaging/image_key` | `entry/imaging/gts_theta_value` |
//!
//! Frames with other keys are left out. Flats that lie before the middle projection count as *before*, the
//! others as *after*. Angles may be given per frame or per projection.

use super::angles;
use super::data_exchange::{pixel_size, strings};
use super::h5::{H5, read_numbers};
use super::links::{Found, Lookup, awaited, lookup};
use super::source::{Awaited, FrameList, Parts};
use super::stack::FrameStack;
use crate::technique::Fault;
use std::rc::Rc;
use std::sync::Arc;

struct Layout {
    name: &'static str,
    data: &'static str,
    key: &'static str,
    angles: &'static [&'static str],
}

const LAYOUTS: [Layout; 6] = [
    Layout {
        name: "nxtomo",
        data: "/entry/instrument/detector/data",
        key: "/entry/instrument/detector/image_key",
        angles: &["/entry/sample/rotation_angle", "/entry/data/rotation_angle"],
    },
    Layout {
        name: "nxtomo",
        data: "/entry1/tomo_entry/instrument/detector/data",
        key: "/entry1/tomo_entry/instrument/detector/image_key",
        angles: &["/entry1/tomo_entry/sample/rotation_angle", "/entry1/tomo_entry/data/rotation_angle"],
    },
    Layout {
        name: "nxtomo",
        data: "/entry/data/data",
        key: "/entry/data/image_key",
        angles: &["/entry/data/rotation_angle", "/entry/sample/rotation_angle"],
    },
    Layout {
        name: "nxtomo",
        data: "/entry1/instrument/detector/data",
        key: "/entry1/instrument/detector/image_key",
        angles: &["/entry1/sample/rotation_angle"],
    },
    Layout {
        name: "nxtomo",
        data: "/entry0000/instrument/detector/data",
        key: "/entry0000/instrument/detector/image_key",
        angles: &["/entry0000/sample/rotation_angle"],
    },
    Layout {
        name: "nexus-diad",
        data: "/entry/imaging/data",
        key: "/entry/instrument/imaging/image_key",
        angles: &["/entry/imaging/gts_theta_value", "/entry/instrument/gts_theta/value"],
    },
];

/// Reads the layout; `None` when it is another one, with what was missing appended to `looked`.
pub(crate) fn read(h5: &Rc<H5>, looked: &mut Vec<String>) -> Result<Option<Parts>, Fault> {
    // Some other layout may be whole: NeXus files have links that nobody needs.
    let mut promised = None;
    for layout in &LAYOUTS {
        let key = match lookup(h5, layout.key)? {
            Lookup::Dataset(key) => key,
            Lookup::Awaited(why) => {
                promised.get_or_insert(why);
                continue;
            }
            _ => continue,
        };
        match lookup(h5, layout.data)? {
            Lookup::Dataset(data) => return read_layout(h5, layout, data, &key).map(Some),
            Lookup::Group => looked.push(format!("{} is a group", layout.data)),
            Lookup::Missing(why) => looked.push(why),
            Lookup::Awaited(why) => {
                promised.get_or_insert(why);
            }
        }
    }
    promised.map_or(Ok(None), |why| Err(awaited(&why)))
}

/// Frames of a companion whose key is `wanted` (1 flat, 2 dark); `None` when no layout here has a key. A file with a
/// key means what it says: frames it does not mark so are never taken for calibration.
pub(crate) fn marked_frames(h5: &Rc<H5>, wanted: f64) -> Result<Option<FrameList>, Fault> {
    let mut promised = None;
    for layout in &LAYOUTS {
        let (key, data) = match (lookup(h5, layout.key)?, lookup(h5, layout.data)?) {
            (Lookup::Dataset(key), Lookup::Dataset(data)) => (key, data),
            (Lookup::Awaited(why), Lookup::Dataset(_) | Lookup::Awaited(_))
            | (Lookup::Dataset(_), Lookup::Awaited(why)) => {
                promised.get_or_insert(why);
                continue;
            }
            _ => continue,
        };
        let stack = FrameStack::new(data, layout.data)?;
        let keys = read_numbers(&key.dataset, &key.h5.path, layout.key)?;
        let frames: Vec<usize> = (0..stack.frames.min(keys.len())).filter(|&i| keys[i] == wanted).collect();
        if frames.is_empty() {
            return Err(Fault::Input(format!(
                "{}: {} marks no frame with {wanted} (1 flat, 2 dark); name a companion that has some",
                h5.path.display(),
                layout.key
            )));
        }
        return Ok(Some(FrameList { stack: Arc::new(stack), frames, view: None }));
    }
    promised.map_or(Ok(None), |why| Err(awaited(&why)))
}

fn read_layout(h5: &Rc<H5>, layout: &Layout, data: Found, key: &Found) -> Result<Parts, Fault> {
    let at = h5.path.display();
    let stack = FrameStack::new(data, layout.data)?;
    let frames = stack.frames;
    if key.dataset.size() != frames {
        return Err(Fault::Input(format!(
            "{at}: {} has {} entries for {frames} frames of {}; write one key per frame",
            layout.key,
            key.dataset.size(),
            layout.data
        )));
    }
    let keys = read_numbers(&key.dataset, &key.h5.path, layout.key)?;
    let with_key = |wanted: f64| -> Vec<usize> { (0..frames).filter(|&i| keys[i] == wanted).collect() };
    let (projections, flats, darks) = (with_key(0.0), with_key(1.0), with_key(2.0));
    let mut notes = Vec::new();
    let left_out = frames - projections.len() - flats.len() - darks.len();
    if left_out > 0 {
        notes.push(format!("{left_out} of {frames} frames are marked invalid in {} and left out", layout.key));
    }
    if projections.is_empty() {
        return Err(Fault::Input(format!(
            "{at}: {} marks none of {frames} frames as projection (0); was only a calibration recorded?",
            layout.key
        )));
    }
    let angles = read_angles(h5, layout, frames, &projections);
    let middle = projections[projections.len() / 2];
    let (before, after) = flats.into_iter().partition(|&f| f < middle);
    let stack = Arc::new(stack);
    let list = |frames: Vec<usize>| FrameList { stack: Arc::clone(&stack), frames, view: None };
    let entry = layout.data.split("/instrument").next().unwrap_or("/entry").trim_end_matches("/data");
    let sizes = [format!("{entry}/instrument/detector/x_pixel_size"), format!("{entry}/sample/x_pixel_size")];
    let pixel_size_cm = pixel_size(h5, &sizes.each_ref().map(String::as_str), None, &mut notes)?;
    let metadata = strings(
        h5,
        &[
            ("title", &format!("{entry}/title")),
            ("sample", &format!("{entry}/sample/name")),
            ("energy", &format!("{entry}/beam/incident_energy")),
            ("start", &format!("{entry}/start_time")),
            ("end", &format!("{entry}/end_time")),
        ],
    )?;
    Ok(Parts {
        layout: layout.name,
        projections: list(projections),
        flats_before: Some(list(before)),
        flats_after: Some(list(after)),
        flats_between: Vec::new(),
        darks: Some(list(darks)),
        angles,
        pixel_size_cm,
        metadata,
        notes,
        awaited: Awaited::default(),
    })
}

fn read_angles(
    h5: &Rc<H5>,
    layout: &Layout,
    frames: usize,
    projections: &[usize],
) -> Result<Option<(Vec<f64>, String)>, Fault> {
    let (mut looked, mut promised) = (Vec::new(), None);
    for name in layout.angles {
        match lookup(h5, name)? {
            Lookup::Dataset(found) => {
                let all = angles::from_dataset(&found, name)?;
                let angles = if all.len() == frames { projections.iter().map(|&i| all[i]).collect() } else { all };
                return Ok(Some((angles, (*name).to_owned())));
            }
            Lookup::Group => {}
            Lookup::Missing(why) => looked.push(why),
            Lookup::Awaited(why) => {
                promised.get_or_insert(why);
            }
        }
    }
    if let Some(why) = promised {
        return Err(awaited(&why));
    }
    // The layout demands angles per frame: guessing them would be wrong science.
    Err(Fault::Input(format!(
        "{}: no rotation angles ({}); record them, or give the role `angles`",
        h5.path.display(),
        looked.join("; ")
    )))
}
