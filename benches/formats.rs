//! Reading compressed projections: ours, and memory copying, on files that `benches/peers/formats.py make` wrote.
//!
//! ```text
//! python benches/peers/formats.py make DIR
//! taskset -c 0   python benches/peers/formats.py time DIR 1
//! taskset -c 0   cargo bench --bench formats -- DIR 1
//! taskset -c 0,1 python benches/peers/formats.py time DIR 2
//! taskset -c 0,1 cargo bench --bench formats -- DIR 2
//! ```
//!
//! Every file is read whole, from the page cache, as the frame-order stage does: chunks by `pread`, decoded on so many
//! threads; once into f32, as the steps after it want, and once into u16, as h5py gives. The sum of all pixels is compared
//! with Python's. Best of three.
//!
//! All rates are bytes that come out per second. Copying memory reads and writes a byte for each; so it is what remains of
//! the work when nothing is compressed and nothing is converted. "converting" is the same for u16 to f32, counted in bytes
//! that come out.

use beampilot::formats::convert::Pixel;
use beampilot::formats::stack::Sample;
use beampilot::formats::{self, TomoSource};
use std::path::{Path, PathBuf};
use std::time::Instant;

const REPEATS: usize = 3;
const COPIED: usize = 200 << 20;

fn best(mut f: impl FnMut()) -> f64 {
    (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

/// Bytes per second that come out of `work` on `threads` threads, memory to memory; each has a part of both.
fn memory<A: Clone + Sync, B: Clone + Send>(from: &[A], to: &mut [B], threads: usize, work: fn(&[A], &mut [B])) -> f64 {
    let bytes = size_of_val(to);
    let (a, b) = (from.len().div_ceil(threads), to.len().div_ceil(threads));
    let seconds = best(|| {
        std::thread::scope(|s| {
            for (to, from) in to.chunks_mut(b).zip(from.chunks(a)) {
                s.spawn(move || work(from, to));
            }
        });
        std::hint::black_box(&mut *to);
    });
    bytes as f64 / seconds
}

/// Seconds for the whole stack, and the sum of its pixels.
fn read<T: Pixel + Into<f64>>(source: &TomoSource) -> (f64, f64) {
    let list = &source.projections;
    let mut out = vec![T::default(); list.frames.len() * list.stack.rows * list.stack.columns];
    // So that no page is touched for the first time while the clock runs.
    out.fill(T::of(1.0));
    let seconds = best(|| {
        if let Err(e) = list.stack.read(&list.frames, 0..list.stack.rows, &mut out) {
            panic!("{e}");
        }
    });
    (seconds, out.iter().map(|&v| v.into()).sum())
}

fn file(path: &Path, copying: f64) -> Result<(), Box<dyn std::error::Error>> {
    let sum: f64 = std::fs::read_to_string(path.with_extension("sum"))?.trim().parse()?;
    let source = formats::open(path, path.parent().ok_or("no folder")?)?;
    let list = &source.projections;
    let pixels = (list.frames.len() * list.stack.rows * list.stack.columns) as f64;
    let ((wide, sum_wide), (counts, sum_counts)) = (read::<f32>(&source), read::<u16>(&source));
    assert!(sum_wide == sum && sum_counts == sum, "{}: another sum than Python's", path.display());
    let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    println!(
        "{name:16} f32 {:6.0} MB/s, {:4.2} of copying   u16 {:6.0} MB/s, {:4.2} of copying   packed {:.2}",
        4e-6 * pixels / wide,
        4.0 * pixels / wide / copying,
        2e-6 * pixels / counts,
        2.0 * pixels / counts / copying,
        pixels * list.stack.sample.bytes() as f64 / std::fs::metadata(path)?.len() as f64,
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let Some(folder) = args.first().map(PathBuf::from) else {
        println!(
            "give the folder that `python benches/peers/formats.py make DIR` filled: cargo bench --bench formats -- DIR [threads]"
        );
        return Ok(());
    };
    let threads = match args.get(1) {
        Some(n) => n.parse()?,
        None => std::thread::available_parallelism()?.get(),
    };
    let copying = memory(&vec![1u8; COPIED], &mut vec![0u8; COPIED], threads, |from, to| to.copy_from_slice(from));
    let converting = memory(&vec![1u8; COPIED / 2], &mut vec![0f32; COPIED / 4], threads, |from, to| {
        f32::convert(Sample::U16, from, to, true);
    });
    println!("{threads} threads: copying {:.0} MB/s, converting {:.0} MB/s", copying / 1e6, converting / 1e6);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == "h5"));
    files.sort();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    files.iter().try_for_each(|path| pool.install(|| file(path, copying).map_err(|e| e.to_string())))?;
    Ok(())
}
