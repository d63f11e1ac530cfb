//! ALS 8.3.2 and folders of TIFF files, written small and read back.

use super::*;
use crate::arrivals::scan::{FileStamp, Scan};
use ::tiff::encoder::{TiffEncoder, colortype};
use hdf5::types::VarLenUnicode;
use ndarray::{Array2, Array3, Axis};
use std::fs::File;
use std::path::PathBuf;

fn counts(n: usize, base: usize) -> Array3<u16> {
    Array3::from_shape_fn((n, 4, 6), |(f, r, c)| (base + f * 100 + r * 10 + c) as u16)
}

fn number(file: &hdf5::File, name: &str, value: f64) {
    file.new_dataset::<f64>().create(name).unwrap().write_scalar(&value).unwrap();
}

/// An 8.3.2 file of today: 21 projections, flats in groups of 2.
fn als(path: &Path, groups: usize, cycle: f64) {
    let file = hdf5::File::create(path).unwrap();
    file.new_dataset_builder().with_data(&counts(21, 500)).create("/exchange/data").unwrap();
    file.new_dataset_builder().with_data(&counts(2 * groups, 9000)).create("/exchange/data_white").unwrap();
    file.new_dataset_builder().with_data(&counts(3, 10)).create("/exchange/data_dark").unwrap();
    for (name, value) in [
        ("/process/acquisition/rotation/num_angles", 21.0),
        ("/process/acquisition/rotation/range", 180.0),
        ("/process/acquisition/flat_fields/i0cycle", cycle),
        ("/process/acquisition/flat_fields/num_flat_fields", 2.0),
        ("/process/acquisition/dark_fields/num_dark_fields", 3.0),
        ("/measurement/instrument/detector/pixel_size", 0.00065),
        ("/measurement/instrument/detector/dimension_x", 6.0),
        ("/measurement/instrument/detector/dimension_y", 4.0),
        ("/measurement/instrument/monochromator/energy", 2.5e6),
        ("/measurement/instrument/camera_motor_stack/setup/camera_distance", 60.0),
    ] {
        number(&file, name, value);
    }
    file.close().unwrap();
}

#[test]
fn als_today_turns_the_other_way_and_takes_flats_in_between() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("20260101_scan.h5");
    als(&path, 4, 7.0);
    let source = open(&path, dir.path()).unwrap();
    let h = &source.header;
    assert_eq!((h.layout.as_str(), h.projections(), h.flats(), h.darks), ("als-832", 21, 8, 3));
    assert_eq!((h.angles_deg[0], h.angles_deg[1], h.angles_deg[20]), (0.0, -9.0, -180.0));
    assert!((h.pixel_size_cm.unwrap() - 0.65e-4).abs() < 1e-12);
    assert_eq!((h.metadata["energy"].as_str(), h.metadata["camera_distance"].as_str()), ("white beam", "60 mm"));
    assert!(h.notes.is_empty(), "{:?}", h.notes);
    // Before 0, 7 and 14, and after the last.
    let white = counts(8, 9000).mapv(f32::from);
    let group = |g: usize| white.slice(ndarray::s![2 * g..2 * g + 2, .., ..]).to_owned();
    assert_eq!(source.flats_before.as_ref().unwrap().read_rows(0..4).unwrap(), group(0));
    assert_eq!(source.flats_between.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [7, 14]);
    assert_eq!(source.flats_between[1].1.read_rows(0..4).unwrap(), group(2));
    assert_eq!(source.flats_after.as_ref().unwrap().read_rows(0..4).unwrap(), group(3));
    drop(source);
    als(&path, 2, 0.0);
    let source = open(&path, dir.path()).unwrap();
    assert_eq!((source.header.flats_before, source.header.flats_after, source.header.flats_between), (2, 2, 0));
    drop(source);
    // Flats that the numbers do not explain all count as before, with a note.
    als(&path, 5, 20.0);
    let source = open(&path, dir.path()).unwrap();
    assert_eq!((source.header.flats_before, source.header.notes.len()), (10, 1), "{:?}", source.header.notes);
}

#[test]
fn als_legacy_is_one_group_of_frames() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scan.h5");
    let file = hdf5::File::create(&path).unwrap();
    let group = file.create_group("20150820_wood").unwrap();
    let (data, white, dark) = (counts(19, 500), counts(4, 9000), counts(2, 10));
    let put = |name: String, frame: ndarray::ArrayView2<'_, u16>| {
        group.new_dataset_builder().with_data(&frame.insert_axis(Axis(0))).create(name.as_str()).unwrap();
    };
    for i in 0..19 {
        put(format!("20150820_wood_0000_{i:04}.tif"), data.index_axis(Axis(0), i));
    }
    for (i, at) in [(0, 0), (1, 0), (0, 18), (1, 18)].into_iter().enumerate() {
        put(format!("20150820_woodbak_{:04}_{:04}.tif", at.0, at.1), white.index_axis(Axis(0), i));
    }
    for i in 0..2 {
        put(format!("20150820_wooddrk_{i:04}_0018.tif"), dark.index_axis(Axis(0), i));
    }
    for (name, text) in [
        ("nangles", "19"),
        ("arange", "180.0"),
        ("nslices", "4"),
        ("nrays", "6"),
        ("pxsize", "0.0013"),
        ("i0cycle", "0"),
        ("num_bright_field", "2"),
        ("num_dark_fields", "2"),
        ("senergy", "27999.9"),
    ] {
        let value: VarLenUnicode = text.parse().unwrap();
        group.new_attr::<VarLenUnicode>().create(name).unwrap().write_scalar(&value).unwrap();
    }
    drop(group);
    file.close().unwrap();
    let source = open(&path, dir.path()).unwrap();
    let h = &source.header;
    assert_eq!(h.layout, "als-832-legacy");
    assert_eq!((h.projections(), h.flats_before, h.flats_after, h.darks), (19, 2, 2, 2));
    assert_eq!((h.angles_deg[1], h.angles_deg[18]), (-10.0, -180.0));
    assert!((h.pixel_size_cm.unwrap() - 1.3e-4).abs() < 1e-12);
    assert_eq!(h.metadata["energy"], "27999.9 eV");
    probe::check(&source).unwrap();
    assert_eq!(source.projections.read_rows(1..3).unwrap(), data.mapv(f32::from).slice(ndarray::s![.., 1..3, ..]));
    assert_eq!(
        source.projections.read_positions(&[7], 0..4).unwrap().index_axis(Axis(0), 0),
        data.mapv(f32::from).index_axis(Axis(0), 7)
    );
    let after = source.flats_after.as_ref().unwrap().read_rows(0..4).unwrap();
    assert_eq!(after, white.mapv(f32::from).slice(ndarray::s![2..4, .., ..]));
    drop(source);
    // While frames are still added, it is not complete.
    let file = hdf5::File::open_rw(&path).unwrap();
    file.unlink("/20150820_wood/20150820_wood_0000_0018.tif").unwrap();
    file.close().unwrap();
    assert!(matches!(open(&path, dir.path()).err().unwrap(), Fault::NotYet(_)));
}

fn scan_of(root: &Path, folder: &str) -> Scan {
    let mut members = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(relative) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&relative)).unwrap() {
            let entry = entry.unwrap();
            let name = relative.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.push(name);
            } else {
                members.push(FileStamp::from_metadata(name, &entry.metadata().unwrap()));
            }
        }
    }
    members.sort();
    Scan { name: folder.to_owned(), root: root.to_owned(), members, ..Scan::default() }
}

fn gray16(path: &Path, frame: &Array2<u16>, big: bool) {
    let file = File::create(path).unwrap();
    let (h, w) = (frame.nrows() as u32, frame.ncols() as u32);
    let pixels: Vec<u16> = frame.iter().copied().collect();
    if big {
        TiffEncoder::new_big(file).unwrap().write_image::<colortype::Gray16>(w, h, &pixels).unwrap();
    } else {
        TiffEncoder::new(file).unwrap().write_image::<colortype::Gray16>(w, h, &pixels).unwrap();
    }
}

#[test]
fn a_folder_of_tiffs_is_a_scan() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("wood");
    for sub in ["proj", "flats", "darks"] {
        std::fs::create_dir_all(folder.join(sub)).unwrap();
    }
    let (data, white, dark) = (counts(12, 500), counts(3, 9000), counts(2, 10));
    for (i, frame) in data.outer_iter().enumerate() {
        // No leading zeros: order by number, not by letter.
        gray16(&folder.join(format!("proj/p{i}.tif")), &frame.to_owned(), i % 2 == 0);
    }
    white
        .outer_iter()
        .enumerate()
        .for_each(|(i, f)| gray16(&folder.join(format!("flats/{i}.tif")), &f.to_owned(), false));
    dark.outer_iter()
        .enumerate()
        .for_each(|(i, f)| gray16(&folder.join(format!("darks/{i}.tif")), &f.to_owned(), true));
    let missing = TomoSource::of(&scan_of(root.path(), "wood")).err().unwrap();
    assert!(matches!(&missing, Fault::Input(t) if t.contains("no rotation angles")), "{missing}");
    let angles: String = (0..12).map(|i| format!("{}\n", i * 15)).collect();
    std::fs::write(folder.join("angles.txt"), angles).unwrap();
    let scan = scan_of(root.path(), "wood");
    let source = TomoSource::of(&scan).unwrap();
    let h = &source.header;
    assert_eq!((h.layout.as_str(), h.projections(), h.flats_before, h.darks), ("tiff", 12, 3, 2));
    assert_eq!(h.angles_deg[11], 165.0);
    probe::check(&source).unwrap();
    assert_eq!(source.projections.read_rows(1..4).unwrap(), data.mapv(f32::from).slice(ndarray::s![.., 1..4, ..]));
    assert_eq!(source.flats_before.as_ref().unwrap().read_rows(0..4).unwrap(), white.mapv(f32::from));

    let refused = |what: &str| {
        let source = TomoSource::of(&scan_of(root.path(), "wood"));
        source.and_then(|s| s.projections.read_rows(0..4)).expect_err(what)
    };
    // A frame of another size, one that ends early, and one that leads away.
    let p3 = folder.join("proj/p3.tif");
    gray16(&p3, &Array2::zeros((5, 6)), false);
    assert!(matches!(refused("size"), Fault::Input(t) if t.contains("p3.tif") && t.contains("alike")));
    gray16(&p3, &Array2::zeros((4, 6)), false);
    let bytes = std::fs::read(&p3).unwrap();
    std::fs::write(&p3, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(refused("short"), Fault::NotYet(_) | Fault::Input(_)));
    std::fs::remove_file(&p3).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &p3).unwrap();
    assert!(matches!(refused("link"), Fault::Input(t) if t.contains("outside the watch root")));
}

#[test]
fn tiffs_of_every_type_and_damaged_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tif");
    macro_rules! written {
        ($color:ident, $t:ty, $sample:expr) => {{
            let pixels: Vec<$t> = (0..24).map(|i| i as $t).collect();
            TiffEncoder::new(File::create(&path).unwrap())
                .unwrap()
                .write_image::<colortype::$color>(6, 4, &pixels)
                .unwrap();
            assert_eq!(tiff::header(&path).unwrap(), (4, 6, $sample));
            let mut out = vec![0.0; 12];
            tiff::read(&path, (4, 6, $sample), &(1..3), &mut out).unwrap();
            assert_eq!(out, (6..18).map(|i| i as f32).collect::<Vec<_>>());
        }};
    }
    written!(Gray8, u8, stack::Sample::U8);
    written!(Gray32Float, f32, stack::Sample::F32);
    written!(Gray32, u32, stack::Sample::U32);
    written!(Gray16, u16, stack::Sample::U16);
    // Whatever byte is changed, and wherever the file ends: an answer, not a panic, and no memory by a number in it.
    let good = std::fs::read(&path).unwrap();
    let mut out = vec![0.0; 24];
    for at in 0..good.len() {
        for value in [0, 0x7f, 0xff] {
            let mut bad = good.clone();
            bad[at] = value;
            std::fs::write(&path, &bad).unwrap();
            let _ = tiff::header(&path).and_then(|shape| {
                if shape.0 * shape.1 == 24 { tiff::read(&path, shape, &(0..shape.0), &mut out) } else { Ok(()) }
            });
        }
        std::fs::write(&path, &good[..at]).unwrap();
        assert!(tiff::read(&path, (4, 6, stack::Sample::U16), &(0..4), &mut out).is_err(), "cut at {at}");
    }
}
