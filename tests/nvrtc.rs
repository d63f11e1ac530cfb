//! Every kernel compiles for the cards that matter, with the vendor's compiler; no card is needed.
//!
//! `BEAMPILOT_NVRTC` names libnvrtc.so.12 (scripts/nvrtc.sh finds or fetches one). Without it, and without one in the loader's
//! path, the test says that it was skipped.

use beampilot::device::compile::{Cache, compile};
use beampilot::device::kernels::{File, Program};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

fn library() -> bool {
    if let Some(path) = std::env::var_os("BEAMPILOT_NVRTC").filter(|p| !p.is_empty()) {
        // SAFETY: the vendor's library. Found loaded under its name, it is what later `dlopen`s get.
        std::mem::forget(unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.unwrap());
        return true;
    }
    // SAFETY: as above.
    unsafe { cudarc::nvrtc::sys::is_culib_present() }
}

#[test]
fn every_kernel_compiles_for_ampere_and_hopper() {
    if !library() {
        eprintln!("SKIPPED: no libnvrtc here: kernels were NOT compiled for any GPU; see scripts/nvrtc.sh");
        return;
    }
    let plain =
        [File::Normalise, File::Zinger, File::Stripe, File::Half, File::Selftest, File::Wavelet, File::Titarenko];
    let mut programs: Vec<Program> = plain.map(Program::of).into();
    programs.push(Program::of(File::Paganin));
    programs.extend([1, 2, 16].map(|slices| Program::of(File::Iterative).with("SLICES", slices)));
    programs.extend([8, 64].map(|keys| Program::of(File::Rank).with("KEYS", keys)));
    programs.extend([61, 127, 511].map(|window| Program::of(File::Median).with("WINDOW", window)));
    for file in [File::Gridding, File::Backproject] {
        programs.extend([1, 8].map(|pairs| Program::of(file).with("PAIRS", pairs)));
    }
    programs.extend(
        [File::LaueSearch, File::LaueTransform, File::LaueFootprint, File::LaueDepth, File::LaueWire].map(Program::of),
    );
    let cache = tempfile::tempdir().unwrap();
    let cache = Cache::at(cache.path());
    for arch in ["sm_80", "sm_90"] {
        for program in &programs {
            let image = cache.image(program, arch).unwrap();
            assert_eq!(image.get(..4), Some(&b"\x7fELF"[..]), "{program:?} for {arch} is no machine code");
            for name in program.file.kernels() {
                let found = image.windows(name.len()).any(|w| w == name.as_bytes());
                assert!(found, "{name} is not in the machine code of {program:?} for {arch}");
            }
        }
    }
    // Kept: the same bytes come back without compiling.
    let kept = cache.image(&programs[0], "sm_90").unwrap();
    assert_eq!(kept, cache.image(&programs[0], "sm_90").unwrap());
    let error = compile(&Program::of(File::Median).with("WINDOW", 4), "sm_90").unwrap_err().to_string();
    assert!(error.contains("median.cu") && error.contains("a window has a middle"), "{error}");
}
