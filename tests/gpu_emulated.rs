//! The device code and every kernel without a GPU: on the emulated device of `kernels/emulation`.
//!
//! The emulation stands in for CUDA's libraries, so that the code under test is the one that drives a card. Each test takes
//! several seeds: of inputs, of the order in which threads and blocks run, and of how streams get on.

#[path = "common/emulation.rs"]
mod emulation;

use beampilot::device::compile::Cache;
use beampilot::device::gpu::{Arg, Shape};
use beampilot::device::kernels::{File, Program};
use beampilot::device::{Choice, DeviceError, Gpu, Selected, open};
use beampilot::technique::laue::gpu::check as laue;
use beampilot::technique::tomography::gpu::check::{self, Finding, Size};
use cudarc::driver::result as cuda;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The emulated device, and the right to use it: it is one, as a card is.
struct Emulated {
    gpu: Arc<Gpu>,
    _turn: MutexGuard<'static, ()>,
}

fn driver() -> &'static Library {
    static DRIVER: OnceLock<Library> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let folder = emulation::libraries();
        let load = |name: &str| {
            // SAFETY: our own library. Found loaded under its name, it is what `dlopen` gives to whoever asks for CUDA's.
            unsafe { Library::open(Some(folder.join(name)), RTLD_NOW | RTLD_GLOBAL) }.unwrap()
        };
        let driver = load("libcuda.so");
        for name in ["libcufft.so", "libnvrtc.so", "libnvidia-ml.so.1"] {
            std::mem::forget(load(name));
        }
        driver
    })
}

fn reset(seed: u64, memory: u64) {
    // SAFETY: the function has this signature.
    let reset: Symbol<unsafe extern "C" fn(u64, u64)> = unsafe { driver().get(b"bp_emulation_reset") }.unwrap();
    // SAFETY: nothing runs on the device: the caller has it alone.
    unsafe { reset(seed, memory) };
}

const MEMORY: u64 = 1 << 30;
/// Where it is taken whole: filling memory takes time.
const SMALL: u64 = 96 << 20;

fn emulated(seed: u64) -> Emulated {
    static TURN: Mutex<()> = Mutex::new(());
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    driver();
    reset(seed, MEMORY);
    let gpu = GPU.get_or_init(|| {
        let cache = Cache::at(emulation::libraries().join("kernels"));
        match open(Choice::Gpu, cache) {
            Selected::Gpu(gpu) => gpu,
            Selected::Unfit(why) => panic!("{why}"),
            Selected::Cpu => panic!("the emulated device was not found"),
        }
    });
    gpu.bind().unwrap();
    Emulated { gpu: Arc::clone(gpu), _turn: turn }
}

#[track_caller]
fn all_pass(found: &[Finding]) {
    for f in found {
        println!("{:70} {:9.2e} of {:8.1e}", f.what, f.error, f.allowed);
    }
    let failed: Vec<_> = found.iter().filter(|f| !f.passed()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn kernels_agree_with_their_references() {
    for seed in [1, 2] {
        let device = emulated(seed);
        all_pass(&check::kernels(&device.gpu, Size { angles: 45, rows: 3, columns: 64 }, seed).unwrap());
    }
    // Odd sizes: neither a multiple of a warp nor of a tile.
    let device = emulated(3);
    all_pass(&check::kernels(&device.gpu, Size { angles: 37, rows: 2, columns: 51 }, 3).unwrap());
}

/// Where positions need more digits than single precision has.
#[test]
#[ignore = "takes minutes"]
fn kernels_agree_with_their_references_on_wide_detectors() {
    let device = emulated(4);
    all_pass(&check::kernels(&device.gpu, Size { angles: 300, rows: 2, columns: 1024 }, 4).unwrap());
}

#[test]
fn slabs_agree_with_the_cpu_however_streams_get_on() {
    for seed in [1, 2] {
        let device = emulated(seed);
        // Two and a half chunks.
        all_pass(&check::chains(&device.gpu, Size { angles: 24, rows: 35, columns: 48 }, seed).unwrap());
    }
}

const POINT: laue::Size = laue::Size { frames: 200, rows: 2, columns: 8 };

#[test]
fn laue_kernels_agree_with_their_references() {
    for seed in [1, 2] {
        let device = emulated(seed);
        all_pass(&laue::kernels(&device.gpu, POINT, seed).unwrap());
    }
}

#[test]
fn laue_slabs_agree_with_the_cpu() {
    let device = emulated(3);
    reset(3, SMALL);
    all_pass(&laue::slabs(&device.gpu, POINT, 3).unwrap());
    laue::forget(&device.gpu).unwrap();
}

/// Where there is less memory, or less than the device says, chunks and batches are smaller and the bits the same; so they are
/// when the detector is cut otherwise.
#[test]
fn laue_slabs_do_not_depend_on_memory_and_too_little_is_declined() {
    let device = emulated(4);
    let size = laue::Size { frames: 200, rows: 4, columns: 9 };
    let (mut done, mut declined) = (Vec::new(), 0);
    for boasted in [0, 1 << 32] {
        for memory in [SMALL, 32 << 20, 12 << 20, 200_000] {
            laue::forget(&device.gpu).unwrap();
            reset(4, memory);
            boast(boasted);
            match laue::bits(&device.gpu, size, 4, size.rows) {
                Ok(bits) => done.push(bits),
                Err(why) => {
                    assert!(why.contains("does not fit the device"), "{why}");
                    declined += 1;
                }
            }
        }
    }
    boast(0);
    laue::forget(&device.gpu).unwrap();
    reset(4, SMALL);
    let cut = laue::bits(&device.gpu, size, 4, 2).unwrap();
    laue::forget(&device.gpu).unwrap();
    assert!(cut == done[0], "cut otherwise, other bits");
    assert!(done.iter().all(|bits| *bits == done[0]) && done[0].iter().any(|b| *b != 0));
    assert_eq!((done.len(), declined), (6, 2));
}

/// Runs kernels of a file without the barrier of this line; with line 0 none is left out.
fn without_barrier(file: File, line: usize) {
    let names: String = file.kernels().map(|name| format!(" {name} ")).collect();
    let names = std::ffi::CString::new(names).unwrap();
    // SAFETY: the function has this signature, and the caller has the device alone.
    unsafe {
        driver().get::<unsafe extern "C" fn(*const std::ffi::c_char, i32)>(b"bp_emulation_without_barrier").unwrap()(
            names.as_ptr(),
            line as i32,
        );
    }
}

/// But for those that order memory behind shuffles, which the emulation's threads see in order anyway.
#[test]
fn a_laue_kernel_without_one_of_its_barriers_is_found_out() {
    let device = emulated(1);
    let size = laue::Size { frames: 160, rows: 1, columns: 5 };
    for seed in 1..=6 {
        reset(seed, SMALL);
        all_pass(&laue::kernels(&device.gpu, size, seed).unwrap());
    }
    let fails = |seed| {
        reset(seed, SMALL);
        laue::kernels(&device.gpu, size, seed).map_or(true, |found| !found.iter().all(Finding::passed))
    };
    let (mut left_out, mut unseen) = (0, Vec::new());
    for file in [File::LaueSearch, File::LaueTransform, File::LaueFootprint, File::LaueDepth] {
        let path = format!("{}/kernels/{}.cu", env!("CARGO_MANIFEST_DIR"), file.name());
        let text = std::fs::read_to_string(path).unwrap();
        for (at, line) in text.lines().enumerate() {
            let barrier = line.contains("__syncthreads();") || line.contains("__syncwarp();");
            if !barrier || line.contains("not memory") {
                continue;
            }
            left_out += 1;
            without_barrier(file, at + 1);
            if !(1..=6).any(fails) {
                unseen.push((file.name(), at + 1));
            }
        }
        without_barrier(file, 0);
    }
    reset(1, MEMORY);
    assert!(left_out > 20);
    assert_eq!(unseen, []);
}

/// How many bytes are free beyond what can be had: others use the device, too.
fn boast(bytes: u64) {
    // SAFETY: the function has this signature, and the caller has the device alone.
    unsafe { driver().get::<unsafe extern "C" fn(u64)>(b"bp_emulation_boast").unwrap()(bytes) };
}

#[test]
fn short_memory_means_smaller_chunks_and_too_little_is_declined() {
    let device = emulated(5);
    let size = Size { angles: 24, rows: 20, columns: 48 };
    let (mut done, mut declined) = (0, 0);
    // What the device says is true, and then it is not: planned sizes fail, and smaller ones do.
    for boasted in [0, 1 << 30] {
        for memory in [8 << 20, 3 << 20, 1 << 20, 100_000] {
            check::forget(&device.gpu).unwrap();
            reset(5, memory);
            boast(boasted);
            match check::chains(&device.gpu, size, 5) {
                Ok(found) => {
                    all_pass(&found);
                    done += 1;
                }
                Err(why) => {
                    assert!(why.contains("does not fit the device"), "{why}");
                    declined += 1;
                }
            }
        }
    }
    boast(0);
    check::forget(&device.gpu).unwrap();
    assert_eq!((done, declined), (6, 2));
}

#[test]
fn frames_go_in_smaller_runs_where_memory_is_short_and_come_back_as_they_were_when_none_fits() {
    let device = emulated(6);
    let mut taken = Vec::new();
    // What the device says is true, and then it is not. A frame is 60 kB.
    for boasted in [0, 1 << 30] {
        for memory in [8 << 20, 2 << 20, 300_000] {
            check::forget(&device.gpu).unwrap();
            reset(6, memory);
            boast(boasted);
            let (done, finding) = check::plain_frames(&device.gpu, 100, 150).unwrap();
            all_pass(&[finding]);
            taken.push(done);
        }
    }
    boast(0);
    check::forget(&device.gpu).unwrap();
    assert_eq!(taken, [true, true, false, true, true, false]);
}

/// Loads the kernels that break rules.
fn faulty(name: &str, seed: u64) -> (Emulated, cudarc::driver::sys::CUfunction) {
    let device = emulated(seed);
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/emulation/faulty.cu")).unwrap();
    let image = std::ffi::CString::new(text).unwrap();
    // SAFETY: the emulation takes source text that ends with zero.
    let function = unsafe {
        let module = cuda::module::load_data(image.as_ptr().cast()).unwrap();
        cuda::module::get_function(module, std::ffi::CString::new(name).unwrap()).unwrap()
    };
    (device, function)
}

/// Runs a faulty kernel on 128 numbers.
fn run_faulty(name: &str, seed: u64) -> Result<Vec<i32>, String> {
    let (device, function) = faulty(name, seed);
    let stream = device.gpu.stream().unwrap();
    let (input, out) = (device.gpu.alloc(512).unwrap(), device.gpu.alloc(512).unwrap());
    let mut host = device.gpu.pinned(512).unwrap();
    host.as_mut::<i32>(128).iter_mut().zip(0..).for_each(|(v, i)| *v = i);
    stream.upload::<i32>(&host, 128, &input).unwrap();
    stream.zero(&out, 512).unwrap();
    stream.synchronize().unwrap();
    let (a, b) = (input.address(0), out.address(0));
    let mut arguments = [std::ptr::from_ref(&a).cast_mut().cast(), std::ptr::from_ref(&b).cast_mut().cast()];
    // SAFETY: both arguments are pointers to 128 numbers.
    let launched =
        unsafe { cuda::launch_kernel(function, (1, 1, 1), (128, 1, 1), 0, std::ptr::null_mut(), &mut arguments) };
    let result = launched.map_err(|e| e.to_string()).and_then(|()| device.gpu.synchronize().map_err(|e| e.to_string()));
    let result = result.and_then(|()| {
        stream.download::<i32>(&out, &mut host, 128).and_then(|()| stream.synchronize()).map_err(|e| e.to_string())?;
        Ok(host.as_ref::<i32>(128).to_vec())
    });
    reset(seed, MEMORY);
    result
}

#[test]
fn the_emulation_tells_kernels_that_break_rules_from_those_that_keep_them() {
    let mirror: Vec<i32> = (0..128).rev().collect();
    let sum: i32 = (0..128).sum();
    let rounds = {
        let mut v: Vec<i32> = (0..128).collect();
        for _ in 0..4 {
            let line = v.clone();
            v.iter_mut().enumerate().for_each(|(i, x)| *x += line[(i + 1) % 128]);
        }
        v
    };
    let shuffled = |w: i32| (0..32).map(|l| 32 * w + l).sum::<i32>() + 16;
    for seed in 1..=5 {
        assert_eq!(run_faulty("mirror_good", seed).unwrap(), mirror);
        assert_ne!(run_faulty("mirror_without_barrier", seed).unwrap(), mirror);
        assert_eq!(run_faulty("sum_good", seed).unwrap()[0], sum);
        assert_ne!(run_faulty("sum_in_step", seed).unwrap()[0], sum);
        assert_eq!(run_faulty("rounds_good", seed).unwrap(), rounds);
        assert_ne!(run_faulty("rounds_without_second_barrier", seed).unwrap(), rounds);
        assert_eq!(run_faulty("count_good", seed).unwrap()[0], 128);
        assert_ne!(run_faulty("count_without_atomics", seed).unwrap()[0], 128);
        assert_eq!(run_faulty("shuffle_good", seed).unwrap()[..4], [0, 1, 2, 3].map(shuffled));
        assert_ne!(run_faulty("shared_starts_as_zero", seed).unwrap()[0], sum);
    }
    for (name, words) in [
        ("barrier_in_a_branch", "threads wait at two barriers"),
        ("barrier_after_return", "threads ended before the barrier"),
        ("shuffle_in_a_branch", "a lane that has ended"),
    ] {
        let error = run_faulty(name, 1).unwrap_err();
        assert!(error.contains(words) && error.contains(name), "{name}: {error}");
    }
}

/// Two streams with and without an event between them.
fn handed_over(seed: u64, wait: bool) -> bool {
    let device = emulated(seed);
    let gpu = &device.gpu;
    let (first, second, event) = (gpu.stream().unwrap(), gpu.stream().unwrap(), gpu.event().unwrap());
    let (raw, out) = (gpu.alloc(2000).unwrap(), gpu.alloc(4000).unwrap());
    let (mut from, mut to) = (gpu.pinned(2000).unwrap(), gpu.pinned(4000).unwrap());
    from.as_mut::<u16>(1000).iter_mut().zip(0..).for_each(|(v, i)| *v = i);
    first.upload::<u16>(&from, 1000, &raw).unwrap();
    first.record(&event).unwrap();
    if wait {
        second.wait(&event).unwrap();
    }
    let decode = gpu.function(&Program::of(File::Normalise), "counts_to_floats").unwrap();
    let arguments = [Arg::from(&raw), Arg::from(&out), 1000_u32.into()];
    second.launch(decode, Shape::line(2, 128), &arguments).unwrap();
    second.download::<f32>(&out, &mut to, 1000).unwrap();
    second.synchronize().unwrap();
    first.synchronize().unwrap();
    to.as_ref::<f32>(1000).iter().enumerate().all(|(i, &v)| v == i as f32)
}

#[test]
fn a_missing_wait_between_streams_shows() {
    assert!((1..=20).all(|seed| handed_over(seed, true)));
    assert!((1..=20).any(|seed| !handed_over(seed, false)));
}

#[test]
fn errors_say_what_and_where() {
    let device = emulated(1);
    reset(1, 1 << 20);
    let Err(DeviceError::OutOfMemory { wanted, free }) = device.gpu.alloc(2 << 20) else { panic!("it fitted") };
    assert!(wanted == 2 << 20 && free <= 1 << 20);
    let Err(error) = device.gpu.function(&Program::of(File::Half), "no_such_kernel") else { panic!("found it") };
    assert!(error.to_string().contains("CUDA_ERROR_NOT_FOUND"), "{error}");
    // A program that does not compile: a window of no size.
    let broken = Program::of(File::Median).with("WINDOW", 0);
    let Err(error) = device.gpu.function(&broken, "median_columns") else { panic!("it compiled") };
    let text = error.to_string();
    assert!(text.starts_with("kernels/median.cu cannot be compiled for sm_10") && text.contains("error"), "{text}");
    let stream = device.gpu.stream().unwrap();
    let sum = device.gpu.function(&Program::of(File::Selftest), "selftest_sum").unwrap();
    let too_many = stream.launch(sum, Shape::line(1, 2048), &[0_u64.into(), 1_u32.into()]);
    assert!(too_many.unwrap_err().to_string().starts_with("selftest_sum: CUDA_ERROR_INVALID_VALUE"));
}
