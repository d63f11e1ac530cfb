//! geoN files: the geometry of detectors and wire at 34-ID-E, XML.
//!
//! Names are matched whatever their namespace. Every unit is compared with the one that is meant; a value without a unit is
//! taken in that one. Elements that do not bear on depths are known by name and noted; any other is refused.

use super::draft::{DetectorDraft, Draft, WireDraft};
use super::geometry::V3;
use roxmltree::{Document, Node};

/// Elements that have no effect here.
const UNUSED: [&str; 11] = [
    "dateWritten",
    "timeWritten",
    "EPOCH",
    "fileNote",
    "timeMeasured",
    "note",
    "ID",
    "distortionMapFile",
    "Sample",
    "F",
    "Ndetectors",
];

/// Reads a geometry; `detector`: the number `N` of the detector that the frames are from.
///
/// # Errors
/// What is wrong, where, and what is expected.
pub fn read(text: &str, detector: usize) -> Result<Draft, String> {
    let document = Document::parse(text).map_err(|e| format!("it is no XML: {e}"))?;
    let root = document.root_element();
    if root.tag_name().name() != "geoN" {
        return Err(format!("its root is <{}>, expected <geoN>", root.tag_name().name()));
    }
    let mut draft = Draft::default();
    let mut numbers = Vec::new();
    for node in elements(root) {
        match node.tag_name().name() {
            "Detectors" => {
                for d in elements(node) {
                    let n: usize = d
                        .attribute("N")
                        .and_then(|n| n.trim().parse().ok())
                        .ok_or_else(|| format!("{}: a detector without its number N", place(d)))?;
                    numbers.push(n);
                    if n == detector {
                        draft.detector = read_detector(d, &mut draft.notes)?;
                    }
                }
            }
            "Wire" => draft.wire = read_wire(node, &mut draft.notes)?,
            name => unused(node, name, &mut draft.notes)?,
        }
    }
    if !numbers.contains(&detector) {
        return Err(format!("it has no detector {detector}; it has {numbers:?}"));
    }
    Ok(draft)
}

fn elements<'a>(node: Node<'a, 'a>) -> impl Iterator<Item = Node<'a, 'a>> {
    node.children().filter(Node::is_element)
}

fn place(node: Node<'_, '_>) -> String {
    let at = node.document().text_pos_at(node.range().start);
    format!("line {}, <{}>", at.row, node.tag_name().name())
}

fn unused(node: Node<'_, '_>, name: &str, notes: &mut Vec<String>) -> Result<(), String> {
    if UNUSED.contains(&name) {
        let note = format!("geometry: {name} has no effect");
        if !notes.contains(&note) {
            notes.push(note);
        }
        return Ok(());
    }
    Err(format!("{}: not known in a geoN file", place(node)))
}

/// Numbers of an element, `N` of them, in `unit`.
fn numbers<const N: usize>(node: Node<'_, '_>, unit: &str) -> Result<[f64; N], String> {
    if let Some(given) = node.attribute("unit")
        && given != unit
    {
        return Err(format!("{}: unit {given:?}, expected {unit:?}", place(node)));
    }
    let text = node.text().unwrap_or_default();
    let values: Option<Vec<f64>> = text.split_whitespace().map(|w| w.parse().ok()).collect();
    values
        .and_then(|v| <[f64; N]>::try_from(v).ok())
        .filter(|v| v.iter().all(|x| x.is_finite()))
        .ok_or_else(|| format!("{}: {:?}, expected {N} numbers", place(node), text.trim()))
}

fn read_detector(node: Node<'_, '_>, notes: &mut Vec<String>) -> Result<DetectorDraft, String> {
    let mut d = DetectorDraft::default();
    for child in elements(node) {
        match child.tag_name().name() {
            "Npixels" => {
                let n: [f64; 2] = numbers(child, "")?;
                if n.iter().any(|n| n.fract() != 0.0 || *n < 1.0 || *n > 1e5) {
                    return Err(format!("{}: {n:?} are no numbers of pixels", place(child)));
                }
                d.shape = Some(n.map(|n| n as usize));
            }
            "size" => d.size_mm = Some(numbers(child, "mm")?),
            "R" => d.rotation_rad = Some(numbers(child, "radian")?),
            "P" => d.position_mm = Some(numbers(child, "mm")?),
            name => unused(child, name, notes)?,
        }
    }
    Ok(d)
}

fn read_wire(node: Node<'_, '_>, notes: &mut Vec<String>) -> Result<WireDraft, String> {
    let mut w = WireDraft::default();
    for child in elements(node) {
        match child.tag_name().name() {
            "dia" => w.diameter_um = Some(numbers::<1>(child, "micron")?[0]),
            "Origin" => w.origin_um = Some(numbers(child, "micron")?),
            "R" => w.rotation_rad = Some(numbers(child, "radian")?),
            "Axis" => w.axis = Some(numbers::<3>(child, "")? as V3),
            "Knife" => {
                if numbers::<1>(child, "")?[0] != 0.0 {
                    return Err(format!("{}: a wire on a knife edge; only free wires are resolved", place(child)));
                }
            }
            name => unused(child, name, notes)?,
        }
    }
    Ok(w)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const SMALL: &str = r#"<geoN xmlns="http:example.com/geoN"><Detectors Ndetectors="1"><Detector N="0">
        <Npixels>2048 1024</Npixels><size unit="mm">409.6 204.8</size><R unit="radian">-1.2 -1.2 -1.2</R>
        <P unit="mm">28 3 513</P></Detector></Detectors><Wire><dia unit="micron">50</dia><Axis>1 0 0</Axis></Wire></geoN>"#;

    #[test]
    fn the_measured_geometry_is_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/laue/geoN_2022-03-29_14-15-05.xml");
        let Ok(text) = std::fs::read_to_string(&path) else {
            println!("skipped: no {}", path.display());
            return;
        };
        let draft = read(&text, 0).unwrap();
        assert_eq!(draft.detector.position_mm, Some([28.720, 3.010, 513.097]));
        assert_eq!(draft.wire.diameter_um, Some(101.5));
        assert_eq!(draft.wire.rotation_rad, Some([0.0045, -0.00684, -3.375e-5]));
        assert_eq!(read(&text, 2).unwrap().detector.shape, Some([1024, 1024]));
        assert!(read(&text, 3).unwrap_err().contains("[0, 1, 2]"));
    }

    #[test]
    fn units_and_names_are_checked() {
        assert!(read(SMALL, 0).is_ok());
        for (from, to, word) in [
            ("\"mm\">409.6", "\"micron\">409.6", "expected \"mm\""),
            ("28 3 513", "28 3", "expected 3 numbers"),
            ("28 3 513", "28 nan 513", "expected 3 numbers"),
            ("<Wire>", "<Wire><Knife>1</Knife>", "knife"),
            ("<Wire>", "<Wire><Colour>1</Colour>", "Colour"),
            ("geoN xmlns", "other xmlns", "no XML"),
            ("2048 1024", "2048 0.5", "pixels"),
        ] {
            let error = read(&SMALL.replacen(from, to, 1), 0).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
