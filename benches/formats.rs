//! Reading compressed projections: ours, and memory copying, on files that `benches/peers/formats.py make` wrote.
//!
//! ```text
//! python benches/peers/formats.py make DIR
//! python benches/peers/formats.py time DIR
//! cargo bench --bench formats -- DIR
//! ```
//!
//! Every file is read whole, from the page cache, as the frame-order stage does: chunks by `pread`, decoded on all threads
//! of the rayon pool, out comes f32. The sum of all pixels is compared with Python's. Best of three.

use beampilot::formats::{self, TomoSource};
use std::path::{Path, PathBuf};
use std::time::Instant;

const REPEATS: usize = 3;

fn best(mut f: impl FnMut()) -> f64 {
    (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

/// Bytes per second of copying `bytes` on `threads` threads.
fn copying(bytes: usize, threads: usize) -> f64 {
    let from = vec![1u8; bytes];
    let mut to = vec![0u8; bytes];
    let share = bytes.div_ceil(threads);
    let seconds = best(|| {
        std::thread::scope(|s| {
            for (to, from) in to.chunks_mut(share).zip(from.chunks(share)) {
                s.spawn(move || to.copy_from_slice(from));
            }
        });
        std::hint::black_box(&to);
    });
    bytes as f64 / seconds
}

fn read(source: &TomoSource, out: &mut [f32]) {
    let list = &source.projections;
    if let Err(e) = list.stack.read(&list.frames, 0..list.stack.rows, out) {
        panic!("{e}");
    }
}

fn file(path: &Path, threads: usize) -> Result<(), Box<dyn std::error::Error>> {
    let sum: f64 = std::fs::read_to_string(path.with_extension("sum"))?.trim().parse()?;
    let source = formats::open(path, path.parent().ok_or("no folder")?)?;
    let list = &source.projections;
    let pixels = list.frames.len() * list.stack.rows * list.stack.columns;
    let mut out = vec![0f32; pixels];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let seconds = pool.install(|| best(|| read(&source, &mut out)));
    let got: f64 = out.iter().map(|&v| f64::from(v)).sum();
    assert_eq!(got, sum, "{}: another sum than Python's", path.display());
    let bytes = (pixels * list.stack.sample.bytes()) as f64;
    let stored = std::fs::metadata(path)?.len() as f64;
    let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    println!(
        "{name:16} {threads} threads  {:7.3} s  {:7.0} MB/s of pixels as stored  ratio {:.2}  chunks decoded {}",
        seconds,
        bytes / seconds / 1e6,
        bytes / stored,
        list.stack.decoded() / REPEATS as u64
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().skip(1).find(|a| !a.starts_with("--")).map(PathBuf::from);
    let Some(folder) = folder else {
        println!(
            "give the folder that `python benches/peers/formats.py make DIR` filled: cargo bench --bench formats -- DIR"
        );
        return Ok(());
    };
    let threads = std::thread::available_parallelism()?.get();
    println!(
        "copying memory: {:.0} MB/s on one thread, {:.0} on {threads}",
        copying(200 << 20, 1) / 1e6,
        copying(200 << 20, threads) / 1e6
    );
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == "h5"));
    files.sort();
    for threads in [1, threads] {
        for path in &files {
            file(path, threads)?;
        }
    }
    Ok(())
}
