//! The discrete cosine transform of sixteen real lines at once: two in every lane of a [`LaneFft`].
//!
//! `C_k = Σ_n x_n cos(π k (2n + 1)/2N)`, `k = 0..N` (DCT-II) and its inverse. A line and its mirror image, `x_0 … x_{N−1}
//! x_{N−1} … x_0`, have the Fourier transform `2 e^{iπk/2N} C_k`, so a real and even filter on `C` is that filter on
//! the mirrored line: no padding is needed. By one complex transform of length `N` of the line with its even elements first
//! and its odd ones backwards after them (Makhoul, IEEE Trans. Acoust. Speech Signal Process. 28, 27 (1980)).
//!
//! Lengths are those of [`super::lanes::good_length`]. Forward then inverse multiplies by `N`.

use std::f64::consts::PI;

use super::lanes::{Cell, Lane, LaneFft};

/// Plan of one length.
pub(super) struct Cosine {
    length: usize,
    forward: LaneFft,
    inverse: LaneFft,
    /// `(cos, sin)` of `πk/2N`, `k = 0..=N/2`.
    turns: Vec<(f32, f32)>,
}

impl Cosine {
    /// Plans transforms of `length`, an even product of 2, 3 and 5.
    pub(super) fn new(length: usize) -> Self {
        let turn = |k: usize| {
            let (sin, cos) = (PI * k as f64 / (2 * length) as f64).sin_cos();
            (cos as f32, sin as f32)
        };
        Self {
            length,
            forward: LaneFft::new(length, false),
            inverse: LaneFft::new(length, true),
            turns: (0..=length / 2).map(turn).collect(),
        }
    }

    /// Number of elements.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Where element `n` of a line is put before [`Self::forward`], and found after [`Self::inverse`].
    pub(super) fn place(&self, n: usize) -> usize {
        if n.is_multiple_of(2) { n / 2 } else { self.length - n.div_ceil(2) }
    }

    /// From placed elements to `C_k` in order of `k`. `FMA` as in [`LaneFft::process`].
    #[inline(always)]
    pub(super) fn forward<V: Lane, const FMA: bool>(&self, line: &mut [Cell<V>], work: &mut [Cell<V>]) {
        self.forward.process::<V, FMA>(line, work);
        let n = self.length;
        for k in 1..n / 2 {
            let ((c, s), z, y) = (self.turns[k], line[k], line[n - k]);
            // Transforms of the lines in the real and in the imaginary part.
            let a = Cell { re: z.re.add(y.re).scale(0.5), im: z.im.sub(y.im).scale(0.5) };
            let b = Cell { re: z.im.add(y.im).scale(0.5), im: y.re.sub(z.re).scale(0.5) };
            (line[k], line[n - k]) = turned::<V, FMA>(a, b, c, s);
        }
        line[n / 2] = line[n / 2].scale(std::f32::consts::FRAC_1_SQRT_2);
    }

    /// From `C_k` to placed elements, times `N`. `FMA` as in [`LaneFft::process`].
    #[inline(always)]
    pub(super) fn inverse<V: Lane, const FMA: bool>(&self, line: &mut [Cell<V>], work: &mut [Cell<V>]) {
        let n = self.length;
        for k in 1..n / 2 {
            let ((c, s), z, y) = (self.turns[k], line[k], line[n - k]);
            let (re, im) = (Cell { re: z.re, im: y.re }, Cell { re: z.im, im: y.im });
            // The turn is its own inverse.
            let (x, y) = turned::<V, FMA>(re, im, c, s);
            line[k] = Cell { re: x.re.sub(y.im), im: y.re.add(x.im) };
            line[n - k] = Cell { re: x.re.add(y.im), im: x.im.sub(y.re) };
        }
        line[n / 2] = line[n / 2].scale(std::f32::consts::SQRT_2);
        self.inverse.process::<V, FMA>(line, work);
    }
}

/// `(c a.re + s a.im, s a.re − c a.im)` of both lines: first results in the first cell, second ones in the second.
#[inline(always)]
fn turned<V: Lane, const FMA: bool>(a: Cell<V>, b: Cell<V>, c: f32, s: f32) -> (Cell<V>, Cell<V>) {
    let first = |v: Cell<V>| v.re.scale(c).add_scaled::<FMA>(s, v.im);
    let second = |v: Cell<V>| v.re.scale(s).add_scaled::<FMA>(-c, v.im);
    (Cell { re: first(a), im: first(b) }, Cell { re: second(a), im: second(b) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::technique::tomography::lanes::V4;
    use rand::{Rng, SeedableRng};

    #[test]
    fn it_is_the_sum_of_cosines_and_its_inverse_undoes_it() {
        for n in [2, 4, 6, 10, 48, 90] {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(n as u64);
            let lines: Vec<Vec<f64>> = (0..8).map(|_| (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()).collect();
            let cosine = Cosine::new(n);
            let mut cells = vec![Cell::<V4>::ZERO; n];
            let mut work = cells.clone();
            for u in 0..n {
                let cell = &mut cells[cosine.place(u)];
                for l in 0..4 {
                    cell.re.as_mut_slice()[l] = lines[l][u] as f32;
                    cell.im.as_mut_slice()[l] = lines[l + 4][u] as f32;
                }
            }
            let placed = cells.clone();
            cosine.forward::<V4, false>(&mut cells, &mut work);
            for (k, cell) in cells.iter().enumerate() {
                for (l, line) in lines.iter().enumerate() {
                    let angle = |u: usize| PI * k as f64 * (2 * u + 1) as f64 / (2 * n) as f64;
                    let want: f64 = line.iter().enumerate().map(|(u, v)| v * angle(u).cos()).sum();
                    let got = if l < 4 { cell.re.as_slice()[l] } else { cell.im.as_slice()[l - 4] };
                    // Sums of n numbers up to 1, rounded to f32 a few times.
                    assert!((f64::from(got) - want).abs() < 1e-6 * (n as f64).sqrt() + 1e-6, "{n} {k} {l}");
                }
            }
            cosine.inverse::<V4, false>(&mut cells, &mut work);
            for (got, want) in cells.iter().zip(&placed) {
                for l in 0..4 {
                    assert!((got.re.as_slice()[l] / n as f32 - want.re.as_slice()[l]).abs() < 2e-6);
                    assert!((got.im.as_slice()[l] / n as f32 - want.im.as_slice()[l]).abs() < 2e-6);
                }
            }
        }
    }
}
