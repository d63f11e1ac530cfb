//! Pictures for people: a slice and its sinogram as 8-bit grey PNG.
//!
//! The window runs between the 0.5th and 99.5th percentile of the pixels inside the inscribed circle, so that neither
//! a zinger nor the mask decides the contrast. Large images are reduced by averaging to at most `EDGE` pixels a side.
//!
//! They are shown before the volume is made: beside staging, as `preview/<key>/…`, until the bundle, which has them too,
//! is assembled. Showing is a courtesy: when it fails, that is logged and nothing else happens. A scan that is put aside
//! leaves them there, for whoever wants to know why.

use crate::technique::{Fault, OutputFile, TaskContext};
use ndarray::{Array2, ArrayView2};
use std::path::PathBuf;

/// Longest side of a picture.
const EDGE: usize = 1024;

/// Values shown as black and white.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Black.
    pub low: f32,
    /// White.
    pub high: f32,
}

/// The window of an image; `round`: look inside the inscribed circle only.
#[must_use]
pub fn window(image: ArrayView2<'_, f32>, round: bool) -> Window {
    let (h, w) = (image.nrows() as f64, image.ncols() as f64);
    let radius = h.min(w) / 2.0;
    let inside = |y: usize, x: usize| (y as f64 + 0.5 - h / 2.0).hypot(x as f64 + 0.5 - w / 2.0) <= radius;
    let mut values: Vec<f32> = image
        .indexed_iter()
        .filter(|((y, x), v)| v.is_finite() && (!round || inside(*y, *x)))
        .map(|(_, &v)| v)
        .collect();
    if values.is_empty() {
        return Window { low: 0.0, high: 1.0 };
    }
    let last = values.len() - 1;
    let mut at = |share: f64| *values.select_nth_unstable_by((share * last as f64) as usize, f32::total_cmp).1;
    let (low, high) = (at(0.005), at(0.995));
    Window { low, high: if high > low { high } else { low + 1.0 } }
}

/// Averages blocks of pixels so that no side is longer than `EDGE`.
fn reduced(image: ArrayView2<'_, f32>) -> Array2<f32> {
    let factor = |n: usize| n.div_ceil(EDGE).max(1);
    let (fy, fx) = (factor(image.nrows()), factor(image.ncols()));
    Array2::from_shape_fn((image.nrows().div_ceil(fy), image.ncols().div_ceil(fx)), |(y, x)| {
        let block = image
            .slice(ndarray::s![y * fy..((y + 1) * fy).min(image.nrows()), x * fx..((x + 1) * fx).min(image.ncols())]);
        block.sum() / block.len() as f32
    })
}

/// A PNG in memory.
///
/// # Errors
/// An image that PNG cannot hold.
pub fn png(image: ArrayView2<'_, f32>, window: Window) -> Result<Vec<u8>, Fault> {
    let small = reduced(image);
    let scale = 255.0 / (window.high - window.low);
    // `as` saturates, and turns NaN into 0.
    let pixels: Vec<u8> = small.iter().map(|&v| ((v - window.low) * scale + 0.5) as u8).collect();
    encoded(&pixels, small.dim())
}

/// A PNG of grey bytes as they are.
///
/// # Errors
/// An image that PNG cannot hold.
pub fn grey(image: ArrayView2<'_, u8>) -> Result<Vec<u8>, Fault> {
    encoded(&image.iter().copied().collect::<Vec<u8>>(), image.dim())
}

fn encoded(pixels: &[u8], (height, width): (usize, usize)) -> Result<Vec<u8>, Fault> {
    let failed = |e: png::EncodingError| Fault::Task(format!("preview: {e}"));
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width as u32, height as u32);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(pixels).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(out)
}

/// Where a job's pictures are shown while it runs.
fn shown(ctx: &TaskContext) -> Option<PathBuf> {
    Some(ctx.job.staging.parent()?.join("preview").join(&ctx.job.key))
}

/// A name without its folder and attempt number: `preview/slice.a3.png` is `slice.png`.
fn shown_name(path: &str) -> Option<&str> {
    path.rsplit('/').next()?.split('.').next()
}

/// Shows pictures that were written to staging.
pub(crate) fn publish(ctx: &TaskContext, files: &[OutputFile]) {
    if ctx.cancelled.load(std::sync::atomic::Ordering::Relaxed) {
        return;
    }
    let show = || -> std::io::Result<()> {
        let Some(folder) = shown(ctx) else { return Ok(()) };
        let Some((above, output)) = folder.parent().and_then(|above| Some((above, above.parent()?))) else {
            return Ok(());
        };
        // As readable as the results beside them.
        let mode = std::fs::metadata(output)?.permissions();
        for made in [above, &folder] {
            match std::fs::create_dir(made) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
                Ok(()) => std::fs::set_permissions(made, mode.clone())?,
            }
        }
        for file in files {
            let Some(name) = shown_name(&file.path) else { continue };
            // Whole or not at all, also for whoever looks just now.
            let part = folder.join(format!(".{name}.a{}", ctx.attempt));
            std::fs::copy(ctx.staged(&file.path), &part)?;
            std::fs::rename(&part, folder.join(format!("{name}.png")))?;
        }
        Ok(())
    };
    if let Err(e) = show() {
        tracing::warn!(scan = ctx.job.scan.name, "the preview cannot be shown: {e}");
    }
}

/// Takes them away again; the bundle has them.
pub(crate) fn withdraw(ctx: &TaskContext) {
    let Some(folder) = shown(ctx) else { return };
    match std::fs::remove_dir_all(&folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(scan = ctx.job.scan.name, "the shown preview cannot be removed: {e}");
        }
        _ => {}
    }
    // The last one takes the folder with it; another job's pictures keep it.
    let _ = folder.parent().map(std::fs::remove_dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_ignores_a_zinger_and_the_corners() {
        let mut image = Array2::from_shape_fn((200, 200), |(y, x)| ((y + x) % 100) as f32);
        image[[100, 100]] = 1e9;
        image[[0, 0]] = -1e9;
        image[[0, 1]] = f32::NAN;
        let w = window(image.view(), true);
        assert!(w.low < 2.0 && w.high > 97.0 && w.high < 100.0, "{w:?}");
    }

    #[test]
    fn large_and_odd_images_become_pictures() {
        for shape in [(1, 1), (3, 2500), (1025, 1024)] {
            let bytes = png(Array2::ones(shape).view(), Window { low: 0.0, high: 2.0 }).unwrap();
            let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            let info = reader.next_frame(&mut pixels).unwrap();
            assert!(info.width as usize <= EDGE && info.height as usize <= EDGE);
            assert!(pixels[..info.buffer_size()].iter().all(|&p| p == 128));
        }
    }
}
