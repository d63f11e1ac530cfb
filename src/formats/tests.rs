//! Readers against measured files, bad files and hostile files.

use super::*;
use crate::technique::Fault;
use hdf5::plist::dataset_create::Layout;
use ndarray::{Array1, Array3};
use std::path::PathBuf;
use tempfile::TempDir;

fn data(name: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/tomo")).join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not here", path.display());
    None
}

fn sum(list: &FrameList) -> f64 {
    list.read_rows(0..list.stack.rows).unwrap().iter().map(|&v| f64::from(v)).sum()
}

#[test]
fn tooth_loads_as_its_readme_says() {
    let Some(path) = data("tooth.h5") else { return };
    let source = open(&path, path.parent().unwrap()).unwrap();
    let h = &source.header;
    assert_eq!((h.projections(), h.rows, h.columns, h.flats_before, h.darks), (181, 2, 640, 10, 10));
    assert_eq!(h.summary(), "181 projections of 2×640, 10 dark, 10 white");
    assert_eq!(h.metadata["sample"], "Tooth");
    assert!((h.angles_deg[180] - 179.005525).abs() < 1e-5);
    assert_eq!(sum(&source.projections), 4_749_233_396.5);
    assert_eq!(sum(source.flats_before.as_ref().unwrap()), 357_657_046.5);
    assert_eq!(sum(source.darks.as_ref().unwrap()), 1_346_367.0);
    let first = source.projections.read_positions(&[0], 0..1).unwrap();
    assert_eq!(first.as_slice().unwrap()[..4], [26963.25, 28432.75, 27741.0, 26425.0]);
    probe::check(&source).unwrap();
}

#[test]
fn diad_loads_through_its_external_links_as_its_readme_says() {
    let Some(path) = data("k11-18014.nxs") else { return };
    let source = open(&path, path.parent().unwrap()).unwrap();
    let h = &source.header;
    assert_eq!((h.projections(), h.rows, h.columns), (3001, 22, 26));
    assert_eq!((h.flats_before, h.flats_after, h.darks), (50, 50, 100));
    assert!((h.angles_deg[0] - 89.9951).abs() < 1e-3 && (h.angles_deg[3000] - 269.9946).abs() < 1e-3);
    assert_eq!(sum(&source.projections), 65_768_562_345.0);
    let flats = sum(source.flats_before.as_ref().unwrap()) + sum(source.flats_after.as_ref().unwrap());
    assert_eq!(flats, 2_592_149_423.0);
    assert_eq!(sum(source.darks.as_ref().unwrap()), 5_675_253.0);
    probe::check(&source).unwrap();
    // The same file with its own folder as root: the links stay inside, so nothing changes.
    let fault = open(&path, &path.parent().unwrap().join("k11-18014")).err().unwrap();
    assert!(matches!(fault, Fault::Input(_)), "{fault}");
}

/// A small Data Exchange scan; `edit` may change what was written.
fn small(edit: impl FnOnce(&hdf5::File)) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scan.h5");
    let file = hdf5::File::create(&path).unwrap();
    let stack =
        |n: usize, base: u16| Array3::from_shape_fn((n, 4, 6), |(f, r, c)| base + (f * 100 + r * 10 + c) as u16);
    file.new_dataset_builder().with_data(&stack(8, 500)).create("/exchange/data").unwrap();
    file.new_dataset_builder().with_data(&stack(2, 9000)).create("/exchange/data_white").unwrap();
    file.new_dataset_builder().with_data(&stack(3, 10)).create("/exchange/data_dark").unwrap();
    file.new_dataset_builder().with_data(&Array1::linspace(0.0, 157.5, 8)).create("/exchange/theta").unwrap();
    edit(&file);
    file.close().unwrap();
    (dir, path)
}

fn replace(file: &hdf5::File, name: &str, data: &Array3<u16>) {
    file.unlink(name).unwrap();
    file.new_dataset_builder().with_data(data).create(name).unwrap();
}

fn fault(made: &(TempDir, PathBuf)) -> Fault {
    let checks = |s: TomoSource| probe::check(&s).and_then(|()| s.check_flats()).and_then(|()| s.check_angles());
    match open(&made.1, made.0.path()).and_then(checks) {
        Err(fault) => fault,
        Ok(()) => panic!("accepted"),
    }
}

fn refused(made: &(TempDir, PathBuf), words: &[&str]) {
    let fault = fault(made);
    let text = fault.to_string();
    assert!(matches!(fault, Fault::Input(_)) && words.iter().all(|w| text.contains(w)), "{fault:?}");
}

fn not_yet(made: &(TempDir, PathBuf), word: &str) {
    let fault = fault(made);
    assert!(matches!(&fault, Fault::NotYet(text) if text.contains(word)), "{fault:?}");
}

#[test]
fn every_stored_type_order_and_layout_reads_alike() {
    let (dir, path) = small(|_| {});
    let expected = open(&path, dir.path()).unwrap().projections.read_rows(1..3).unwrap();
    macro_rules! written_as {
        ($($t:ty),*) => {$({
            let (dir, path) = small(|file| {
                file.unlink("/exchange/data").unwrap();
                let data = Array3::from_shape_fn((8, 4, 6), |(f, r, c)| (500 + f * 100 + r * 10 + c) as $t);
                file.new_dataset_builder().with_data(&data).create("/exchange/data").unwrap();
            });
            let source = open(&path, dir.path()).unwrap();
            assert_eq!(source.projections.read_rows(1..3).unwrap(), expected, stringify!($t));
        })*};
    }
    written_as!(u16, u32, i16, i32, f32, f64);
    for chunk in [[1, 4, 6], [3, 2, 5], [8, 1, 6]] {
        for deflate in [false, true] {
            let (dir, path) = small(|file| {
                let data = file.dataset("/exchange/data").unwrap().read::<u16, ndarray::Ix3>().unwrap();
                file.unlink("/exchange/data").unwrap();
                let b = file.new_dataset_builder().with_data(&data).chunk(chunk);
                if deflate { b.deflate(3) } else { b }.create("/exchange/data").unwrap();
            });
            let source = open(&path, dir.path()).unwrap();
            probe::check(&source).unwrap();
            assert_eq!(source.projections.read_rows(1..3).unwrap(), expected, "{chunk:?} {deflate}");
            let some = source.projections.read_positions(&[7, 2, 3], 1..3).unwrap();
            assert_eq!(some.index_axis(ndarray::Axis(0), 1), expected.index_axis(ndarray::Axis(0), 2));
        }
    }
}

#[test]
fn missing_and_mismatched_datasets_are_refused_in_words() {
    refused(&small(|f| f.unlink("/exchange/data").unwrap()), &["scan.h5", "/exchange/data"]);
    refused(&small(|f| f.unlink("/exchange/data_white").unwrap()), &["no flat fields", "data_white", "white"]);
    let shape = Array3::from_elem((2, 5, 6), 1u16);
    refused(&small(|f| replace(f, "/exchange/data_white", &shape)), &["5×6", "4×6"]);
    refused(&small(|f| replace(f, "/exchange/data_dark", &shape)), &["data_dark", "5×6", "4×6"]);
    let theta = |angles: Vec<f64>| {
        small(|f| {
            f.unlink("/exchange/theta").unwrap();
            f.new_dataset_builder().with_data(&Array1::from(angles)).create("/exchange/theta").unwrap();
        })
    };
    refused(&theta(vec![0.0, 90.0]), &["2 angles", "8 projections"]);
    refused(&theta(vec![3.0; 8]), &["span"]);
    refused(&theta(vec![f64::NAN; 8]), &["angle 0"]);
    refused(
        &small(|f| replace(f, "/exchange/data", &Array3::from_elem((1, 4, 6), 1u16))),
        &["8 angles", "1 projections"],
    );
}

#[test]
fn without_theta_the_rule_is_stated() {
    let (dir, path) = small(|f| f.unlink("/exchange/theta").unwrap());
    let source = open(&path, dir.path()).unwrap();
    assert_eq!(source.header.angles_deg, angles::even(8, 180.0));
    assert!(source.header.notes[0].contains("no rotation angles"));
    let (dir, path) = small(|f| {
        f.unlink("/exchange/theta").unwrap();
        for (name, value) in [("rotation_start", 10.0), ("rotation_step", 0.5), ("num_angles", 8.0)] {
            let name = format!("/process/acquisition/rotation/{name}");
            f.new_dataset::<f64>().create(name.as_str()).unwrap().write_scalar(&value).unwrap();
        }
    });
    assert_eq!(open(&path, dir.path()).unwrap().header.angles_deg[7], 13.5);
}

#[test]
fn unfinished_files_are_waited_for() {
    not_yet(
        &small(|f| {
            f.unlink("/exchange/data").unwrap();
            f.new_dataset::<u16>().shape((0.., 4, 6)).chunk((1, 4, 6)).create("/exchange/data").unwrap();
        }),
        "no frame",
    );
    not_yet(
        &small(|f| {
            f.unlink("/exchange/data").unwrap();
            let d = f.new_dataset::<u16>().shape((8, 4, 6)).chunk((1, 4, 6)).create("/exchange/data").unwrap();
            d.write_slice(&Array3::from_elem((3, 4, 6), 5u16), (0..3, .., ..)).unwrap();
        }),
        "3 of 8 chunks",
    );
    let mut blank = Array3::from_elem((8, 4, 6), 7u16);
    blank.index_axis_mut(ndarray::Axis(0), 7).fill(0);
    not_yet(&small(|f| replace(f, "/exchange/data", &blank)), "all zero");
    not_yet(
        &small(|f| {
            f.unlink("/exchange/data").unwrap();
            f.new_dataset::<u16>().shape((8, 4, 6)).create("/exchange/data").unwrap();
        }),
        "not written yet",
    );
}

#[test]
fn a_file_cut_anywhere_is_not_there_yet_and_nothing_hangs() {
    let (dir, path) = small(|_| {});
    let bytes = std::fs::read(&path).unwrap();
    let cut = dir.path().join("cut.h5");
    for length in (0..bytes.len()).step_by(512) {
        std::fs::write(&cut, &bytes[..length]).unwrap();
        let got = open(&cut, dir.path()).and_then(|s| probe::check(&s)).err();
        assert!(matches!(got, Some(Fault::NotYet(_))), "cut at {length}: {got:?}");
    }
    // Filled from the back, or with a hole: whatever the library makes of it, it is not accepted and does no harm.
    for hole in (0..bytes.len()).step_by(512) {
        let mut holed = bytes.clone();
        let end = (hole + 512).min(holed.len());
        holed[hole..end].fill(0);
        std::fs::write(&cut, &holed).unwrap();
        let _ = open(&cut, dir.path()).and_then(|s| probe::check(&s));
    }
}

#[test]
fn links_out_of_the_root_are_refused_and_dangling_ones_awaited() {
    let outside = small(|_| {});
    let target = outside.1.to_str().unwrap().to_owned();
    let linked = |name: &'static str, to: &str, object: &'static str| {
        let to = to.to_owned();
        small(move |f| {
            let _ = f.unlink(name);
            f.link_external(&to, object, name).unwrap();
        })
    };
    refused(&linked("/exchange/data", &target, "/exchange/data"), &["outside the watch root"]);
    refused(&linked("/exchange/data_dark", &target, "/exchange/data_dark"), &["outside the watch root"]);
    // What a link promises is waited for, be it the file or the object in it that is not there.
    for name in ["/exchange/data", "/exchange/data_white", "/exchange/data_dark", "/exchange/theta"] {
        let made = linked(name, "gone.h5", name);
        let text = fault(&made).to_string();
        assert!(matches!(fault(&made), Fault::NotYet(_)) && text.contains("gone.h5, which does not exist"), "{text}");
        hdf5::File::create(made.0.path().join("gone.h5")).unwrap().close().unwrap();
        assert!(matches!(fault(&made), Fault::NotYet(_)), "{name}");
        std::fs::copy(&outside.1, made.0.path().join("gone.h5")).unwrap();
        let source = open(&made.1, made.0.path()).unwrap();
        source.check_angles().and_then(|()| source.check_flats()).unwrap();
        let stamps: Vec<_> = source.linked.iter().map(|s| s.path.file_name().unwrap().to_owned()).collect();
        assert_eq!(stamps, ["gone.h5"], "{name}");
    }
    // Unless a companion makes it needless; and nobody needs a title.
    let made = linked("/exchange/data_white", "gone.h5", "/exchange/data_white");
    let companions = Companions { white: Some(made.0.path().join("white.h5")), ..Companions::default() };
    std::fs::copy(&outside.1, made.0.path().join("white.h5")).unwrap();
    TomoSource::open(&made.1, made.0.path(), &companions).unwrap().check_flats().unwrap();
    let made = linked("/exchange/title", "gone.h5", "/exchange/title");
    let source = open(&made.1, made.0.path()).unwrap();
    assert!(source.check_flats().is_ok() && source.linked.is_empty());
    // A soft link to nothing promises nothing.
    let made = small(|f| {
        f.unlink("/exchange/data_dark").unwrap();
        f.link_soft("/nowhere", "/exchange/data_dark").unwrap();
    });
    let source = open(&made.1, made.0.path()).unwrap();
    assert!(source.check_flats().is_ok() && source.header.notes[0].contains("no dark"));
    // A symbolic link beside the scan does not help.
    let made = linked("/exchange/data", "beside.h5", "/exchange/data");
    std::os::unix::fs::symlink(&outside.1, made.0.path().join("beside.h5")).unwrap();
    refused(&made, &["outside the watch root"]);
    // The scan's own name may not lead outside either.
    let link = made.0.path().join("link.h5");
    std::os::unix::fs::symlink(&outside.1, &link).unwrap();
    assert!(matches!(open(&link, made.0.path()), Err(Fault::Input(_))));
    // Circles end.
    let made = small(|f| {
        f.unlink("/exchange/data").unwrap();
        f.link_soft("/exchange/data", "/exchange/data").unwrap();
    });
    refused(&made, &["circle"]);
    let made = linked("/exchange/data", "scan.h5", "/exchange/data");
    refused(&made, &["circle"]);
    // Soft links and external links inside are followed.
    let made = small(|f| {
        f.relink("/exchange/data", "/elsewhere").unwrap();
        f.link_soft("../elsewhere", "/exchange/x").unwrap();
        f.link_soft("/elsewhere", "/exchange/data").unwrap();
    });
    assert_eq!(open(&made.1, made.0.path()).unwrap().header.projections(), 8);
}

#[test]
fn raw_files_and_virtual_datasets_may_not_lead_outside() {
    let outside = small(|_| {});
    let target = outside.1.to_str().unwrap().to_owned();
    refused(
        &small(|f| {
            f.unlink("/exchange/data").unwrap();
            f.new_dataset::<u16>().shape((8, 4, 6)).external("/etc/passwd", 0, 384).create("/exchange/data").unwrap();
        }),
        &["external raw files"],
    );
    let virt = |source: &str, object: &str| {
        let (source, object, target) = (source.to_owned(), object.to_owned(), target.clone());
        small(move |f| {
            f.relink("/exchange/data", "/real").unwrap();
            f.link_external(&target, "/exchange/data", "/out").unwrap();
            f.new_dataset::<u16>()
                .shape((8, 4, 6))
                .layout(Layout::Virtual)
                .virtual_map(&source, &object, (8, 4, 6), .., (8, 4, 6), ..)
                .create("/exchange/data")
                .unwrap();
        })
    };
    refused(&virt(outside.1.to_str().unwrap(), "/exchange/data"), &["outside the watch root"]);
    refused(&virt(".", "/out"), &["outside the watch root"]);
    not_yet(&virt("later.h5", "/data"), "missing");
    let good = virt(".", "/real");
    let plain = small(|_| {});
    let read = |made: &(TempDir, PathBuf)| open(&made.1, made.0.path()).unwrap().projections.read_rows(0..4).unwrap();
    assert_eq!(read(&good), read(&plain));
}

#[test]
fn absurd_extents_cost_nothing() {
    let huge = |shape: (usize, usize, usize)| {
        small(move |f| {
            f.unlink("/exchange/data").unwrap();
            f.new_dataset::<u16>().shape(shape).chunk((1, 64, 64)).create("/exchange/data").unwrap();
        })
    };
    refused(&huge((1 << 38, 4096, 4096)), &["more than"]);
    refused(&huge((8, 1 << 30, 64)), &["more than"]);
    assert!(matches!(fault(&huge((1 << 20, 4096, 4096))), Fault::Input(_) | Fault::NotYet(_)));
    let theta = small(|f| {
        f.unlink("/exchange/theta").unwrap();
        f.new_dataset::<f64>().shape(1usize << 45).chunk(1024).create("/exchange/theta").unwrap();
    });
    refused(&theta, &["angles"]);
}

#[test]
fn companions_replace_what_the_scan_holds() {
    let (dir, path) = small(|f| f.unlink("/exchange/data_white").unwrap());
    let white = dir.path().join("white.h5");
    let file = hdf5::File::create(&white).unwrap();
    file.new_dataset_builder().with_data(&Array3::from_elem((5, 4, 6), 9u16)).create("/entry/data/data").unwrap();
    file.close().unwrap();
    let angles = dir.path().join("angles.txt");
    std::fs::write(&angles, "0\n20\n40\n60\n80\n100\n120\n140\n").unwrap();
    let companions = Companions { white: Some(white), angles: Some(angles), dark: None };
    let source = TomoSource::open(&path, dir.path(), &companions).unwrap();
    assert_eq!((source.header.flats_before, source.header.angles_deg[7]), (5, 140.0));
}
