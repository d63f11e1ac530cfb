//! Pictures for people: a slice and its sinogram as 8-bit grey PNG.
//!
//! The window runs between the 0.5th and 99.5th percentile of the pixels inside the inscribed circle, so that neither
//! a zinger nor the mask decides the contrast. Large images are reduced by averaging to at most `EDGE` pixels a side.

use crate::technique::Fault;
use ndarray::{Array2, ArrayView2};

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
    let failed = |e: png::EncodingError| Fault::Task(format!("preview: {e}"));
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, small.ncols() as u32, small.nrows() as u32);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(&pixels).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(out)
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
