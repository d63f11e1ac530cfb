//! The Kaiser–Bessel gridding kernel and its Fourier transform.
//!
//! `φ(u) = I₀(β√(1 − (2u/W)²)) / I₀(β)` for `|u| ≤ W/2` grid cells; `φ̂(s) = W sinh(√(β² − (πWs)²)) / (√(β² − (πWs)²) I₀(β))`
//! (Jackson et al., IEEE Trans. Med. Imaging 10, 473 (1991), eq. 12 and its transform), with
//! `β = π √((W/σ)²(σ − ½)² − 0.8)` for oversampling `σ` (Beatty, Nishimura & Pauly, IEEE Trans. Med. Imaging 24, 799 (2005),
//! eq. 5). Everything here is finite for `W ≥ 2`, `1.2 ≤ σ ≤ 2`.

use std::f64::consts::PI;

/// Taps per dimension.
pub(crate) const WIDTH: usize = 4;

/// Table steps per grid cell; linear interpolation between them errs by less than 2e-6 of the peak.
const STEPS: usize = 1024;

/// Modified Bessel function of order zero by its power series (all terms positive, so accurate to rounding).
fn bessel_i0(x: f64) -> f64 {
    let quarter = x * x / 4.0;
    let (mut sum, mut term, mut k) = (1.0, 1.0, 1.0);
    while term > 1e-17 * sum {
        term *= quarter / (k * k);
        sum += term;
        k += 1.0;
    }
    sum
}

/// Kernel of one oversampling, tabulated.
pub(crate) struct Kernel {
    beta: f64,
    table: Vec<[f32; WIDTH]>,
}

impl Kernel {
    /// Kernel for an oversampling ratio `grid / image`.
    pub(crate) fn new(oversampling: f64) -> Self {
        let w = WIDTH as f64;
        let beta = PI * ((w / oversampling * (oversampling - 0.5)).powi(2) - 0.8).sqrt();
        let mut kernel = Self {
            beta,
            table: Vec::new(),
        };
        kernel.table = (0..=STEPS)
            .map(|i| {
                let first = i as f64 / STEPS as f64 - w / 2.0;
                std::array::from_fn(|k| kernel.value(first + k as f64) as f32)
            })
            .collect();
        // One more row, so that a fraction rounded up to 1 still interpolates inside the table.
        let last = kernel.table[STEPS];
        kernel.table.push(last);
        kernel
    }

    /// `φ(u)`, `u` in grid cells.
    pub(crate) fn value(&self, u: f64) -> f64 {
        let x = 2.0 * u / WIDTH as f64;
        if x.abs() > 1.0 {
            0.0
        } else {
            bessel_i0(self.beta * (1.0 - x * x).sqrt()) / bessel_i0(self.beta)
        }
    }

    /// `φ̂(s)`, `s` in cycles per grid cell.
    pub(crate) fn transform(&self, s: f64) -> f64 {
        let w = WIDTH as f64;
        let square = self.beta.powi(2) - (PI * w * s).powi(2);
        let ratio = if square > 0.0 {
            square.sqrt().sinh() / square.sqrt()
        } else if square < 0.0 {
            (-square).sqrt().sin() / (-square).sqrt()
        } else {
            1.0
        };
        w * ratio / bessel_i0(self.beta)
    }

    /// Weights of the taps at `fraction − W/2 + k`, `0 ≤ fraction ≤ 1`, `k = 0..W`.
    #[inline(always)]
    pub(crate) fn weights(&self, fraction: f32) -> [f32; WIDTH] {
        let at = fraction * STEPS as f32;
        let i = (at as usize).min(STEPS);
        let part = at - i as f32;
        let (low, high) = (&self.table[i], &self.table[i + 1]);
        let mut weights = *low;
        for k in 0..WIDTH {
            weights[k] += part * (high[k] - low[k]);
        }
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i0_agrees_with_tabulated_values() {
        // Abramowitz & Stegun, table 9.8.
        assert!((bessel_i0(0.0) - 1.0).abs() < 1e-15);
        assert!((bessel_i0(1.0) - 1.266_065_877_752_008_4).abs() < 1e-14);
        assert!((bessel_i0(10.0) / 2815.716_628_466_254 - 1.0).abs() < 1e-13);
    }

    #[test]
    fn the_transform_is_the_integral_of_the_kernel() {
        let kernel = Kernel::new(1.5);
        for s in [0.0, 0.1, 1.0 / 3.0, 0.6, 1.4] {
            let n = 200_000;
            let half = WIDTH as f64 / 2.0;
            // Midpoint rule over a kernel with small jumps at its ends: error ~ φ(end)/n.
            let integral: f64 = (0..n)
                .map(|i| {
                    let u = -half + (i as f64 + 0.5) * 2.0 * half / n as f64;
                    kernel.value(u) * (2.0 * PI * s * u).cos()
                })
                .sum::<f64>()
                * 2.0
                * half
                / n as f64;
            assert!(
                (integral - kernel.transform(s)).abs() < 1e-6,
                "{s}: {integral} {}",
                kernel.transform(s)
            );
        }
    }

    #[test]
    fn tabulated_weights_are_the_kernel() {
        let kernel = Kernel::new(1.5);
        for i in 0..=997 {
            let fraction = i as f32 / 997.0;
            let weights = kernel.weights(fraction);
            for (k, weight) in weights.iter().enumerate() {
                let exact = kernel.value(f64::from(fraction) - WIDTH as f64 / 2.0 + k as f64);
                assert!(
                    (f64::from(*weight) - exact).abs() < 2e-6,
                    "{fraction} tap {k}: {weight} vs {exact}"
                );
            }
        }
    }
}
