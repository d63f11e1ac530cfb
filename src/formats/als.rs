//! ALS beamline 8.3.2, both layouts.
//!
//! | | now | legacy |
//! | --- | --- | --- |
//! | frames | Data Exchange: `/exchange/{data, data_white, data_dark}` | one group a scan, a dataset for each frame |
//! | names | | `<scan>_0000_<n>.tif`, `<scan>bak_<i>_<n>.tif`, `<scan>drk_<i>[_<n>].tif` |
//! | range, flats | `/process/acquisition/{rotation/range, flat_fields/{i0cycle, num_flat_fields}}` | attributes `arange`, `i0cycle` |
//! | pixel size | `/measurement/instrument/detector/pixel_size`, mm | attribute `pxsize`, mm |
//!
//! Both ends of the range are measured, and the stage turns the other way: angle `i` of `n` is `−i · range / (n − 1)`.
//!
//! Flats: with `i0cycle` = 0 before the first and after the last projection. Else they are also taken in between, before
//! projections 0, `i0cycle`, 2 · `i0cycle`, …; the last group stands at the last projection. In the legacy layout the
//! second number of a flat's name is the projection at which it was taken.
//!
//! Energy is in eV; above 1 MeV it means that the monochromator was out: white beam.

use super::data_exchange::{needed_scalar, scalar};
use super::h5::{H5, read_number, read_string};
use super::links::{Lookup, lookup};
use super::source::{Awaited, FrameList, Parts};
use super::stack::{FRAMES_MAX, FrameStack};
use crate::technique::Fault;
use hdf5::Group;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

const ACQUISITION: &str = "/process/acquisition";
/// More electronvolts than this are no energy.
const WHITE_BEAM_EV: f64 = 1e6;
/// Groups in which a legacy scan is looked for.
const GROUPS_MAX: usize = 64;

/// Angles over a range with both ends, turning the other way; degrees.
pub(crate) fn angles(count: usize, range: f64) -> Vec<f64> {
    let step = range / (count.max(2) - 1) as f64;
    (0..count).map(|i| -(i as f64) * step).collect()
}

/// `29000 eV`, or `white beam`.
fn energy(ev: f64) -> String {
    if ev > WHITE_BEAM_EV { "white beam".to_owned() } else { format!("{ev} eV") }
}

/// Flats at projections of their own: `groups` of equal size among `frames`, the last at the last projection.
fn positions(groups: usize, cycle: usize, projections: usize) -> Vec<usize> {
    let last = projections.saturating_sub(1);
    match (cycle, groups) {
        (0, _) => [0, last].into_iter().take(groups).collect(),
        (_, 0) => Vec::new(),
        _ => {
            let mut at: Vec<usize> = (0..groups).map(|g| (g * cycle).min(last)).collect();
            // One group more than there are cycles was taken at the end.
            if groups > projections.div_ceil(cycle) {
                at.truncate(projections.div_ceil(cycle));
                at.push(last);
            }
            at.dedup();
            at
        }
    }
}

/// Sorts groups of flats, each with its projection, into before, between and after.
fn place(parts: &mut Parts, groups: Vec<(usize, FrameList)>) {
    let last = parts.projections.frames.len().saturating_sub(1);
    for (at, list) in groups {
        match at {
            0 => parts.flats_before = Some(list),
            at if at >= last => parts.flats_after = Some(list),
            at => parts.flats_between.push((at, list)),
        }
    }
}

/// Completes what [`super::data_exchange`] read when the file is one of 8.3.2's: how its flats lie, how its stage turns,
/// what its energy means.
pub(crate) fn complete(h5: &Rc<H5>, parts: &mut Parts) -> Result<(), Fault> {
    let Some(cycle) = needed_scalar(h5, &format!("{ACQUISITION}/flat_fields/i0cycle"))? else { return Ok(()) };
    parts.layout = "als-832";
    let count = parts.projections.frames.len();
    if let Ok(Some((angles, from))) = &mut parts.angles
        && from == "/exchange/theta"
    {
        angles.iter_mut().for_each(|a| *a = -*a);
        from.push_str(", negated");
    }
    if let Some(ev) = scalar(h5, "/measurement/instrument/monochromator/energy")? {
        parts.metadata.insert("energy".to_owned(), energy(ev));
    }
    let distance = "/measurement/instrument/camera_motor_stack/setup/camera_distance";
    if let Some(mm) = scalar(h5, distance)? {
        parts.metadata.insert("camera_distance".to_owned(), format!("{mm} mm"));
    }
    let stack = &parts.projections.stack;
    for (axis, pixels) in [("x", stack.columns), ("y", stack.rows)] {
        let stated = scalar(h5, &format!("/measurement/instrument/detector/dimension_{axis}"))?;
        if let Some(stated) = stated.filter(|&s| s != pixels as f64) {
            parts.notes.push(format!("dimension_{axis} says {stated} pixels, the frames have {pixels}"));
        }
    }
    if let Some(stated) = scalar(h5, &format!("{ACQUISITION}/rotation/num_angles"))?.filter(|&s| s != count as f64) {
        parts.notes.push(format!("num_angles says {stated} projections, there are {count}"));
    }
    let Some(flats) = parts.flats_before.clone() else { return Ok(()) };
    let each = needed_scalar(h5, &format!("{ACQUISITION}/flat_fields/num_flat_fields"))?.unwrap_or(0.0);
    let total = flats.frames.len();
    let whole = each >= 1.0 && each <= total as f64 && cycle >= 0.0 && each.fract() == 0.0;
    if !whole || !total.is_multiple_of(each as usize) {
        parts.notes.push(format!(
            "{total} flats are no whole number of groups of num_flat_fields = {each}: they all count as taken before"
        ));
        return Ok(());
    }
    let each = each as usize;
    let at = positions(total / each, cycle.min(FRAMES_MAX as f64) as usize, count);
    if at.len() != total / each {
        parts.notes.push(format!(
            "{} groups of flats do not fit i0cycle = {cycle} and {count} projections: they all count as taken before",
            total / each
        ));
        return Ok(());
    }
    parts.flats_before = None;
    let list = |g: usize| FrameList {
        stack: Arc::clone(&flats.stack),
        frames: flats.frames.iter().copied().skip(g * each).take(each).collect(),
        view: None,
    };
    let groups = at.into_iter().enumerate().map(|(g, at)| (at, list(g))).collect();
    place(parts, groups);
    Ok(())
}

/// What a dataset's name in a legacy scan says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Named {
    Projection(usize),
    /// Taken at a projection.
    Flat {
        at: usize,
        index: usize,
    },
    Dark {
        at: usize,
        index: usize,
    },
}

fn named(name: &str, scan: &str) -> Option<Named> {
    let stem = name.strip_suffix(".tif").or_else(|| name.strip_suffix(".tiff"))?.strip_prefix(scan)?;
    let (kind, rest) = match (stem.strip_prefix("bak_"), stem.strip_prefix("drk_")) {
        (Some(rest), _) => ('f', rest),
        (_, Some(rest)) => ('d', rest),
        _ => ('p', stem.strip_prefix('_')?),
    };
    let number = |text: &str| -> Option<usize> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|n| digits && *n < FRAMES_MAX)
    };
    let (first, second) = match rest.split_once('_') {
        Some((a, b)) => (number(a)?, Some(number(b)?)),
        None => (number(rest)?, None),
    };
    Some(match kind {
        'f' => Named::Flat { at: second.unwrap_or(0), index: first },
        'd' => Named::Dark { at: second.unwrap_or(0), index: first },
        _ => Named::Projection(second.unwrap_or(first)),
    })
}

/// Reads the legacy layout; `None` when it is another one, with what was missing appended to `looked`.
pub(crate) fn read_legacy(h5: &Rc<H5>, looked: &mut Vec<String>) -> Result<Option<Parts>, Fault> {
    let Ok(root) = h5.file.group("/") else { return Ok(None) };
    for name in root.member_names().unwrap_or_default().into_iter().take(GROUPS_MAX) {
        // Links are judged before anything is opened through them.
        if !matches!(lookup(h5, &format!("/{name}"))?, Lookup::Group) {
            continue;
        }
        let Ok(group) = h5.file.group(&name) else { continue };
        if group.attr("nangles").is_ok() {
            return read_group(h5, &group, &name).map(Some);
        }
    }
    looked.push("no group with the attribute nangles (ALS, legacy)".to_owned());
    Ok(None)
}

fn attribute(group: &Group, name: &str) -> Option<f64> {
    read_number(&*group.attr(name).ok()?)
}

fn read_group(h5: &Rc<H5>, group: &Group, name: &str) -> Result<Parts, Fault> {
    let at = format!("{}: /{name}", h5.path.display());
    let mut frames: Vec<(Named, String)> = group
        .member_names()
        .map_err(|e| Fault::NotYet(format!("{at}: {}", super::h5::short(&e))))?
        .into_iter()
        .filter_map(|member| Some((named(&member, name)?, member)))
        .collect();
    frames.sort();
    let stack = |wanted: &dyn Fn(Named) -> bool, what: &str| -> Result<Option<FrameStack>, Fault> {
        let mut stacks = Vec::new();
        for (_, member) in frames.iter().filter(|(n, _)| wanted(*n)) {
            let path = format!("/{name}/{member}");
            let Lookup::Dataset(found) = lookup(h5, &path)?.promised()? else {
                return Err(Fault::Input(format!("{at}: {member} is no dataset; a frame is missing")));
            };
            stacks.push(FrameStack::new(found, &path)?);
        }
        if stacks.is_empty() { Ok(None) } else { FrameStack::joined(stacks, &format!("/{name}, {what}")).map(Some) }
    };
    let Some(projections) = stack(&|n| matches!(n, Named::Projection(_)), "projections")? else {
        return Err(Fault::NotYet(format!("{at}: no projection {name}_0000_0000.tif is written yet")));
    };
    let count = projections.frames;
    if let Some(stated) = attribute(group, "nangles").filter(|&n| n > count as f64) {
        return Err(Fault::NotYet(format!("{at}: {count} of {stated} projections are written")));
    }
    let mut notes = Vec::new();
    for (word, pixels) in [("nrays", projections.columns), ("nslices", projections.rows)] {
        if let Some(stated) = attribute(group, word).filter(|&s| s != pixels as f64) {
            notes.push(format!("{word} says {stated} pixels, the frames have {pixels}"));
        }
    }
    let mut metadata: BTreeMap<String, String> = BTreeMap::new();
    metadata.insert("title".to_owned(), name.to_owned());
    for (word, key) in [("start", "sdate"), ("experimenter", "experimenter"), ("sample", "sample")] {
        if let Some(text) = group.attr(key).ok().and_then(|a| read_string(&a)).filter(|t| !t.is_empty()) {
            metadata.insert(word.to_owned(), text);
        }
    }
    if let Some(ev) = attribute(group, "senergy") {
        metadata.insert("energy".to_owned(), energy(ev));
    }
    let darks = stack(&|n| matches!(n, Named::Dark { .. }), "darks")?.map(FrameList::all);
    let pixel_size_cm = attribute(group, "pxsize").map(|mm| mm * 0.1).filter(|cm| (1e-7..=0.1).contains(cm));
    let range = attribute(group, "arange").filter(|r| *r != 0.0);
    let angles = Ok(range.map(|range| (angles(count, range), format!("/{name}: arange, negated"))));
    let projections = FrameList::all(projections);
    let mut parts = Parts {
        layout: "als-832-legacy",
        projections,
        flats_before: None,
        flats_after: None,
        flats_between: Vec::new(),
        darks,
        angles,
        pixel_size_cm,
        metadata,
        notes,
        awaited: Awaited::default(),
    };
    let mut taken: Vec<usize> =
        frames.iter().filter_map(|(n, _)| if let Named::Flat { at, .. } = n { Some(*at) } else { None }).collect();
    taken.dedup();
    taken.sort_unstable();
    taken.dedup();
    let mut groups = Vec::new();
    for at in taken {
        let of = |n: Named| matches!(n, Named::Flat { at: a, .. } if a == at);
        groups.extend(stack(&of, &format!("flats at {at}"))?.map(|s| (at, FrameList::all(s))));
    }
    place(&mut parts, groups);
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_legacy_frames() {
        assert_eq!(named("s1_0000_0012.tif", "s1"), Some(Named::Projection(12)));
        assert_eq!(named("s1bak_0003_0100.tif", "s1"), Some(Named::Flat { at: 100, index: 3 }));
        assert_eq!(named("s1bak_0003.tif", "s1"), Some(Named::Flat { at: 0, index: 3 }));
        assert_eq!(named("s1drk_0000_0179.tif", "s1"), Some(Named::Dark { at: 179, index: 0 }));
        for other in ["s2_0000_0001.tif", "s1_.tif", "s1_-1.tif", "s1_99999999999999999999.tif", "s1.sct", ""] {
            assert_eq!(named(other, "s1"), None, "{other}");
        }
    }

    #[test]
    fn groups_of_flats_find_their_projections() {
        assert_eq!(positions(2, 0, 100), [0, 99]);
        assert_eq!(positions(1, 0, 100), [0]);
        assert_eq!(positions(5, 25, 100), [0, 25, 50, 75, 99]);
        assert_eq!(positions(4, 25, 100), [0, 25, 50, 75]);
        assert_eq!(positions(5, 30, 100), [0, 30, 60, 90, 99]);
        // More groups than projections explain: refused by the caller, which counts.
        assert_eq!(positions(9, 50, 100).len(), 3);
    }
}
