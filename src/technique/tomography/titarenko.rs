//! Stripe removal by Titarenko's formula: the smoothest offsets that explain the stripes.
//!
//! Titarenko, Withers & Yagola, Appl. Math. Lett. 23, 1489 (2010); by blocks of angles as Miqueles et al., J. Synchrotron Rad.
//! 21, 1333 (2014): every column carries an error `e(u)` that is the same for all angles of a block. Of all offsets the one
//! is taken that minimises `‖D(m − e)‖² + α‖e‖²`, `m(u)` the block's mean over angles and `D` the difference of
//! neighbouring columns: `e = (DᵀD + αI)⁻¹ DᵀD m`. `DᵀD` has the cosines `cos(πk(2u + 1)/2N)` for eigenvectors with eigenvalues
//! `λ_k = 4 sin²(πk/2N)`, so a cosine of the mean profile is lowered by `λ_k/(λ_k + α)`: what is shorter than about `2π/√α`
//! columns goes, the sample's own rings about the axis included. One tridiagonal system per block, solved exactly.
//!
//! Input and output `[angle, column]`, line integrals (offsets of line integrals are gains of pixels), finite.

use ndarray::parallel::prelude::*;
use ndarray::{ArrayViewMut2, ArrayViewMut3, Axis, s};
use serde::{Deserialize, Serialize};

use super::error::{TomographyError, check};

/// Settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Titarenko {
    /// Regularisation `α`: larger removes only shorter variations.
    pub alpha: f64,
    /// Blocks of angles with offsets of their own.
    pub blocks: usize,
}

impl Default for Titarenko {
    fn default() -> Self {
        Self { alpha: 0.01, blocks: 1 }
    }
}

impl Titarenko {
    /// Refuses settings outside their range.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<(), TomographyError> {
        check("stripe alpha", self.alpha, "from 1e-6 to 100", |a| (1e-6..=100.0).contains(&a))?;
        check("blocks of angles", self.blocks as f64, "from 1 to 1000", |b| (1.0..=1000.0).contains(&b))
    }
}

/// Removes stripes from every detector row of `[row, angle, column]`, in place.
///
/// # Errors
/// As [`Titarenko::check`].
pub fn remove_slab(mut sinograms: ArrayViewMut3<'_, f32>, options: &Titarenko) -> Result<(), TomographyError> {
    options.check()?;
    let factors = factors(sinograms.len_of(Axis(2)), options.alpha);
    let rows = sinograms.axis_iter_mut(Axis(0)).into_par_iter();
    rows.for_each_init(Vec::new, |offsets, sinogram| remove_one(sinogram, options, &factors, offsets));
    Ok(())
}

/// Eliminated diagonals of `DᵀD + αI`, inverted: all that the matrix contributes to a solution.
pub(super) fn factors(columns: usize, alpha: f64) -> Vec<f64> {
    let mut inverted = 0.0;
    (0..columns)
        .map(|u| {
            let neighbours = f64::from(u32::from(u > 0) + u32::from(u + 1 < columns));
            inverted = 1.0 / (alpha + neighbours - if u > 0 { inverted } else { 0.0 });
            inverted
        })
        .collect()
}

fn remove_one(mut sinogram: ArrayViewMut2<'_, f32>, options: &Titarenko, factors: &[f64], mean: &mut Vec<f64>) {
    let (angles, columns) = sinogram.dim();
    let blocks = options.blocks.min(angles);
    for block in 0..blocks {
        let range = block * angles / blocks..(block + 1) * angles / blocks;
        let count = range.len() as f64;
        let mut part = sinogram.slice_mut(s![range, ..]);
        mean.clear();
        mean.resize(columns, 0.0);
        for row in part.rows() {
            mean.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        mean.iter_mut().for_each(|v| *v /= count);
        let offsets = offsets(mean, options.alpha, factors);
        for mut row in part.rows_mut() {
            row.iter_mut().zip(&offsets).for_each(|(v, e)| *v -= e);
        }
    }
}

/// `m − α (DᵀD + αI)⁻¹ m`, which is `e`.
fn offsets(mean: &[f64], alpha: f64, factors: &[f64]) -> Vec<f32> {
    // Off the diagonal the matrix is −1. Down: eliminated right sides over their diagonals; up: solutions.
    let mut solution = Vec::with_capacity(mean.len());
    let mut last = 0.0;
    for (m, factor) in mean.iter().zip(factors) {
        last = (alpha * m + last) * factor;
        solution.push(last);
    }
    let mut above = 0.0;
    for (value, factor) in solution.iter_mut().zip(factors).rev() {
        *value += above * factor;
        above = *value;
    }
    mean.iter().zip(&solution).map(|(m, smooth)| (m - smooth) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, Array3};
    use std::f64::consts::PI;

    #[test]
    fn cosines_are_lowered_by_the_published_gain() {
        let (angles, n) = (7, 40);
        for (k, alpha) in [(0, 0.01), (1, 0.01), (5, 0.01), (39, 0.01), (7, 2.0)] {
            let wave = |u: usize| (PI * k as f64 * (2 * u + 1) as f64 / (2 * n) as f64).cos();
            // Something that averages out over the angles stays.
            let turning = |a: usize, u: usize| if a == 6 { 0.0 } else { [1.0, -1.0][a % 2] * (u % 5) as f64 };
            let mut s = Array3::from_shape_fn((1, angles, n), |(_, a, u)| (wave(u) + turning(a, u)) as f32);
            remove_slab(s.view_mut(), &Titarenko { alpha, blocks: 1 }).unwrap();
            let eigen = 4.0 * (PI * k as f64 / (2 * n) as f64).sin().powi(2);
            for ((_, a, u), &got) in s.indexed_iter() {
                let want = wave(u) * alpha / (alpha + eigen) + turning(a, u);
                assert!((f64::from(got) - want).abs() < 2e-6, "{k} {a} {u}: {got} {want}");
            }
        }
    }

    #[test]
    fn blocks_have_offsets_of_their_own_and_a_single_stripe_goes() {
        let mut s = Array2::<f32>::from_elem((60, 101), 3.0);
        s.slice_mut(s![..30, 50]).iter_mut().for_each(|v| *v += 1.0);
        let mut whole = s.clone();
        remove_slab(whole.view_mut().insert_axis(Axis(0)), &Titarenko { alpha: 0.01, blocks: 1 }).unwrap();
        remove_slab(s.view_mut().insert_axis(Axis(0)), &Titarenko { alpha: 0.01, blocks: 2 }).unwrap();
        // Of a spike a share √(α/(4 + α)) stays: the smoother's response to it at its own place.
        let stays = (0.01_f32 / 4.01).sqrt();
        assert!((s[[10, 50]] - 3.0 - stays).abs() < 1e-4, "{}", s[[10, 50]]);
        assert!((s[[40, 50]] - 3.0).abs() < 1e-6);
        assert!((whole[[10, 50]] - 3.5 - 0.5 * stays).abs() < 1e-4);
    }

    #[test]
    fn settings_are_checked() {
        let mut s = Array3::zeros((1, 4, 4));
        assert!(remove_slab(s.view_mut(), &Titarenko { alpha: 0.0, blocks: 1 }).is_err());
        assert!(remove_slab(s.view_mut(), &Titarenko { alpha: f64::NAN, blocks: 1 }).is_err());
        assert!(remove_slab(s.view_mut(), &Titarenko { alpha: 1.0, blocks: 0 }).is_err());
        remove_slab(Array3::zeros((1, 1, 1)).view_mut(), &Titarenko { alpha: 1.0, blocks: 50 }).unwrap();
    }
}
