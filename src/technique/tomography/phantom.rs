//! Analytic phantoms: ellipses and ellipsoids whose line integrals are exact.
//!
//! Lengths are in units of half the image's width, so that one phantom serves every size; the axes are those of
//! [`super::convention`], with `z` along the rotation axis, −1 at the first detector row's edge and +1 at the last's. The
//! integral of a uniform ellipse over the line `x cos θ + y sin θ = t` is `2 a b ρ √(s² − t'²) / s²`, with
//! `s² = a² cos²(θ−φ) + b² sin²(θ−φ)` and `t' = t − x₀ cos θ − y₀ sin θ` (Kak & Slaney 1988, eq. 3.6). Densities are per
//! pixel length, integrals are dimensionless; both are point samples at pixel middles (no averaging over the pixel).

use ndarray::parallel::prelude::*;
use ndarray::{Array2, Array3, Axis};

use super::convention::middle;

/// A uniform ellipse in half-widths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ellipse {
    /// Middle, to the right.
    pub x: f64,
    /// Middle, upwards.
    pub y: f64,
    /// Semi-axis along its own first direction.
    pub a: f64,
    /// Semi-axis across it.
    pub b: f64,
    /// Direction of the first semi-axis, radians, counter-clockwise from `+x`.
    pub tilt: f64,
    /// Added density.
    pub density: f64,
}

/// A uniform ellipsoid of revolution-free shape: an [`Ellipse`] in its middle plane, shrinking along `z`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ellipsoid {
    /// Cross-section in the plane `z`.
    pub section: Ellipse,
    /// Middle along the rotation axis, −1 to 1.
    pub z: f64,
    /// Semi-axis along the rotation axis.
    pub c: f64,
}

impl Ellipse {
    /// Line integral in half-widths along `x cos θ + y sin θ = t`, `t` in half-widths.
    #[must_use]
    pub fn integral(&self, theta: f64, t: f64) -> f64 {
        let (sin, cos) = (theta - self.tilt).sin_cos();
        let square = (self.a * cos).powi(2) + (self.b * sin).powi(2);
        let t = t - self.x * theta.cos() - self.y * theta.sin();
        let rest = square - t * t;
        if rest > 0.0 { 2.0 * self.density * self.a * self.b * rest.sqrt() / square } else { 0.0 }
    }

    /// Density at a point.
    #[must_use]
    pub fn density_at(&self, x: f64, y: f64) -> f64 {
        let (sin, cos) = self.tilt.sin_cos();
        let (dx, dy) = (x - self.x, y - self.y);
        let along = (dx * cos + dy * sin) / self.a;
        let across = (dy * cos - dx * sin) / self.b;
        if along * along + across * across <= 1.0 { self.density } else { 0.0 }
    }
}

impl Ellipsoid {
    /// Its cross-section at height `z`, none outside.
    #[must_use]
    pub fn at(&self, z: f64) -> Option<Ellipse> {
        let square = 1.0 - ((z - self.z) / self.c).powi(2);
        (square > 0.0).then(|| {
            let scale = square.sqrt();
            Ellipse { a: self.section.a * scale, b: self.section.b * scale, ..self.section }
        })
    }
}

/// Ten ellipses that fill 90 % of the width, with holes, thin and small parts, and nothing symmetric: every wrong sign shows.
#[must_use]
pub fn ellipses() -> Vec<Ellipse> {
    [
        (0.0, 0.0, 0.9, 0.84, 0.0, 1.0),
        (0.02, -0.03, 0.82, 0.75, 0.1, -0.45),
        (0.26, 0.08, 0.36, 0.14, 1.25, -0.3),
        (-0.28, 0.04, 0.44, 0.17, 1.9, -0.25),
        (0.05, 0.38, 0.22, 0.26, 0.0, 0.35),
        (-0.02, -0.12, 0.05, 0.05, 0.0, 0.5),
        (0.1, -0.5, 0.1, 0.05, 0.4, 0.6),
        (-0.3, -0.52, 0.05, 0.11, -0.3, 0.45),
        (0.52, -0.3, 0.07, 0.07, 0.0, 0.8),
        (-0.55, 0.3, 0.12, 0.04, 0.8, 0.4),
    ]
    .into_iter()
    .map(|(x, y, a, b, tilt, density)| Ellipse { x, y, a, b, tilt, density })
    .collect()
}

/// The default solid: [`ellipses`] drawn out along `z`, each to its own height, so that no two slices are alike.
#[must_use]
pub fn ellipsoids() -> Vec<Ellipsoid> {
    let heights = [
        (0.0, 1.9),
        (0.0, 1.7),
        (0.1, 0.8),
        (-0.1, 0.9),
        (0.3, 0.6),
        (-0.2, 0.25),
        (0.15, 0.5),
        (-0.4, 0.45),
        (0.5, 0.4),
        (0.0, 0.7),
    ];
    ellipses().into_iter().zip(heights).map(|(section, (z, c))| Ellipsoid { section, z, c }).collect()
}

/// Cross-sections of a solid in the middle of detector row `row` of `rows`.
#[must_use]
pub fn sections(solid: &[Ellipsoid], row: usize, rows: usize) -> Vec<Ellipse> {
    let z = (2.0 * row as f64 + 1.0) / rows as f64 - 1.0;
    solid.iter().filter_map(|e| e.at(z)).collect()
}

/// Exact sinogram `[angle, column]`: line integrals in pixels of a phantom `size` pixels wide, axis at column `centre`.
#[must_use]
pub fn sinogram(ellipses: &[Ellipse], size: usize, columns: usize, angles: &[f64], centre: f64) -> Array2<f32> {
    let half = size as f64 / 2.0;
    let mut out = Array2::zeros((angles.len(), columns));
    out.axis_iter_mut(Axis(0)).into_par_iter().zip(angles.par_iter()).for_each(|(mut row, &theta)| {
        for (u, value) in row.iter_mut().enumerate() {
            let t = (u as f64 - centre) / half;
            *value = (half * ellipses.iter().map(|e| e.integral(theta, t)).sum::<f64>()) as f32;
        }
    });
    out
}

/// Density at every pixel's middle `[y, x]`.
#[must_use]
pub fn truth(ellipses: &[Ellipse], size: usize) -> Array2<f32> {
    let half = size as f64 / 2.0;
    let mut out = Array2::zeros((size, size));
    out.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(iy, mut row)| {
        let y = (middle(size) - iy as f64) / half;
        for (ix, value) in row.iter_mut().enumerate() {
            let x = (ix as f64 - middle(size)) / half;
            *value = ellipses.iter().map(|e| e.density_at(x, y)).sum::<f64>() as f32;
        }
    });
    out
}

/// Exact sinograms of a solid for `rows` detector rows: `[row, angle, column]`.
#[must_use]
pub fn sinograms(
    solid: &[Ellipsoid],
    rows: usize,
    size: usize,
    columns: usize,
    angles: &[f64],
    centre: f64,
) -> Array3<f32> {
    let mut out = Array3::zeros((rows, angles.len(), columns));
    for (row, mut slot) in out.outer_iter_mut().enumerate() {
        slot.assign(&sinogram(&sections(solid, row, rows), size, columns, angles, centre));
    }
    out
}

/// Point-sampled solid: `[z, y, x]`.
#[must_use]
pub fn volume(solid: &[Ellipsoid], rows: usize, size: usize) -> Array3<f32> {
    let mut out = Array3::zeros((rows, size, size));
    for (row, mut slot) in out.outer_iter_mut().enumerate() {
        slot.assign(&truth(&sections(solid, row, rows), size));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::PI;

    #[test]
    fn the_line_integral_is_the_sum_of_densities_along_the_line() {
        for (i, ellipse) in ellipses().into_iter().enumerate() {
            for (j, theta) in [0.0, 0.3, 1.2, 2.0, 2.9, -0.7].into_iter().enumerate() {
                let t = 0.3 * (i as f64 - 4.0) / 5.0 + 0.05 * j as f64;
                let (sin, cos) = f64::sin_cos(theta);
                let n = 40_000;
                // A midpoint sum misses each end by at most a step of 3/n.
                let sum: f64 = (0..n)
                    .map(|k| -1.5 + 3.0 * (f64::from(k) + 0.5) / f64::from(n))
                    .map(|s| ellipse.density_at(t * cos - s * sin, t * sin + s * cos))
                    .sum::<f64>()
                    * 3.0
                    / f64::from(n);
                let exact = ellipse.integral(theta, t);
                assert!((sum - exact).abs() <= 1.5e-4, "{i} {theta}: {sum} {exact}");
            }
        }
    }

    #[test]
    fn every_projection_has_the_phantoms_mass_and_moves_with_the_centre() {
        let angles: Vec<f64> = (0..7).map(|i| f64::from(i) * PI / 7.0).collect();
        let all = sinogram(&ellipses(), 256, 300, &angles, 140.0);
        let mass: f64 = ellipses().iter().map(|e| PI * e.a * e.b * e.density * 128.0 * 128.0).sum();
        for row in all.outer_iter() {
            let sum: f64 = row.iter().map(|&v| f64::from(v)).sum();
            // Sampling a semi-ellipse by its pixel middles: error ∝ width^{-3/2}.
            assert!((sum / mass - 1.0).abs() < 1e-3, "{sum} {mass}");
        }
        let moved = sinogram(&ellipses(), 256, 300, &angles, 141.0);
        assert!((all[[2, 100]] - moved[[2, 101]]).abs() < 1e-3);
    }

    #[test]
    fn the_solid_fills_ninety_percent_of_the_width_and_varies_with_height() {
        let volume = volume(&ellipsoids(), 8, 128);
        let middle = truth(&ellipses(), 512);
        let filled: Vec<usize> = (0..512).filter(|&x| middle.column(x).iter().any(|&v| v != 0.0)).collect();
        assert!((filled.len() as f64 / 512.0 - 0.9).abs() < 0.01, "{}", filled.len());
        for z in 1..8 {
            assert_ne!(volume.index_axis(Axis(0), z), volume.index_axis(Axis(0), z - 1));
        }
    }
}
