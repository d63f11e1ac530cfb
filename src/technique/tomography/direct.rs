//! Direct filtered back-projection: the plain reference for [`super::gridding`].
//!
//! Written like the formula: `f(x, y) = Σ_θ w_θ q_θ(x cos θ + y sin θ + c)`. Every row is padded, filtered and interpolated by
//! zero-extending its spectrum to `upsampling` points per pixel, all in double precision; between those points
//! interpolation is linear (error ∝ 1/upsampling²; at 16 it is below 1e-4 of the image's norm) and sums are in f64.
//! Slow: `size² · angles` look-ups per slice. Axes, signs, weights and padding as in [`super::gridding`]; points whose ray
//! leaves the padded row's period see its periodic continuation, as the gridded sum does. NaN in, NaN out for that slice.

use fft_plans::Complex64;
use ndarray::parallel::prelude::*;
use ndarray::{Array3, ArrayView3, Axis};

use super::convention;
use super::error::TomographyError;
use super::gridding::{Geometry, Padding};
use super::quadrature;

/// Reconstructs `[row, angle, column]` into `[row, y, x]`, attenuation per pixel.
///
/// # Errors
/// As [`Geometry::check`], a sinogram of another shape, or no upsampling.
pub fn reconstruct(
    sinograms: ArrayView3<'_, f32>,
    geometry: &Geometry<'_>,
    upsampling: usize,
) -> Result<Array3<f32>, TomographyError> {
    geometry.check()?;
    if upsampling == 0 {
        return Err(TomographyError::TooFew { what: "points per pixel", got: 0, needed: 1 });
    }
    let rows = sinograms.len_of(Axis(0));
    let expected = [rows, geometry.angles.len(), geometry.columns];
    if sinograms.shape() != expected {
        return Err(TomographyError::Shape {
            what: "sinograms [row, angle, column]",
            got: sinograms.shape().to_vec(),
            expected: expected.to_vec(),
        });
    }
    let size = geometry.size;
    let mut images = Array3::zeros((rows, size, size));
    let directions = quadrature::directions(geometry.angles);
    for (sinogram, mut image) in sinograms.outer_iter().zip(images.outer_iter_mut()) {
        let lines: Vec<Vec<f64>> = directions
            .par_iter()
            .map(|d| {
                let row: Vec<f64> = sinogram.row(d.index).iter().map(|&v| f64::from(v)).collect();
                fine_row(&row, geometry, upsampling)
            })
            .collect();
        let turns: Vec<(f64, f64, f64)> = directions.iter().map(|d| (d.angle.cos(), d.angle.sin(), d.weight)).collect();
        let middle = convention::middle(size);
        image.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(iy, mut out)| {
            let y = middle - iy as f64;
            for (ix, value) in out.iter_mut().enumerate() {
                let x = ix as f64 - middle;
                let sum: f64 = lines
                    .iter()
                    .zip(&turns)
                    .map(|(line, &(cos, sin, weight))| {
                        let at = (x * cos + y * sin + geometry.centre) * upsampling as f64;
                        let (low, part) = (at.floor(), at - at.floor());
                        let low = (low as i64).rem_euclid(line.len() as i64) as usize;
                        let high = if low + 1 == line.len() { 0 } else { low + 1 };
                        weight * (line[low] + part * (line[high] - line[low]))
                    })
                    .sum();
                *value = sum as f32;
            }
        });
    }
    Ok(images)
}

/// One row padded, filtered, and sampled `upsampling` times per pixel over the padded period.
fn fine_row(row: &[f64], geometry: &Geometry<'_>, upsampling: usize) -> Vec<f64> {
    let (n, padded) = (row.len(), geometry.padded());
    let mut line = vec![Complex64::default(); padded];
    for (u, cell) in line.iter_mut().enumerate() {
        cell.re = match geometry.padding {
            _ if u < n => row[u],
            Padding::Zero => 0.0,
            Padding::Edge if u < n + (padded - n) / 2 => row[n - 1],
            Padding::Edge => row[0],
        };
    }
    fft_plans::forward_f64(padded).process(&mut line);
    let gains = geometry.filter.response(padded);
    let fine = padded * upsampling;
    let mut spectrum = vec![Complex64::default(); fine];
    for (m, gain) in gains.iter().enumerate() {
        // Nyquist is shared by both signs; with one point per pixel both halves meet in one place again.
        let share = if m == padded / 2 { 0.5 } else { 1.0 };
        let scale = gain * share / padded as f64;
        spectrum[m] += line[m] * scale;
        if m > 0 {
            spectrum[fine - m] += line[padded - m] * scale;
        }
    }
    fft_plans::inverse_f64(fine).process(&mut spectrum);
    spectrum.iter().map(|c| c.re).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array3;

    #[test]
    fn one_point_per_pixel_is_the_filtered_row_itself() {
        let row = [0.0, 1.0, 3.0, -2.0, 0.5, 0.0];
        let angles = [0.0];
        let geometry = Geometry::new(6, &angles);
        let coarse = fine_row(&row, &geometry, 1);
        let fine = fine_row(&row, &geometry, 8);
        for (u, value) in coarse.iter().enumerate() {
            assert!((value - fine[8 * u]).abs() < 1e-12);
        }
    }

    #[test]
    fn shapes_are_checked() {
        let angles = [0.0, 1.0];
        let geometry = Geometry::new(6, &angles);
        let wrong = Array3::<f32>::zeros((1, 3, 6));
        assert!(matches!(reconstruct(wrong.view(), &geometry, 8), Err(TomographyError::Shape { .. })));
        assert!(reconstruct(Array3::zeros((1, 2, 6)).view(), &geometry, 0).is_err());
    }
}
