//! Least squares with coefficients that are not negative: `min ‖A x − b‖², x ≥ 0`.
//!
//! [`Solver::solve`] is the active-set method of Lawson & Hanson (*Solving Least Squares Problems*, 1974, algorithm 23.10) on
//! the normal equations, as Bro & de Jong (*J. Chemometrics* 11, 393 (1997)) have it: `AᵀA` and `Aᵀb` are formed once, and each
//! step solves a small positive definite system by Cholesky. The work is in the passive coefficients, which are few for a
//! footprint. Tests hold it to the conditions of Karush, Kuhn & Tucker, and to projected gradients.

/// Scratch of a problem size.
#[derive(Debug, Clone)]
pub struct Solver {
    n: usize,
    passive: Vec<usize>,
    is_passive: Vec<bool>,
    gradient: Vec<f64>,
    factor: Vec<f64>,
    trial: Vec<f64>,
}

impl Solver {
    /// For `n` coefficients.
    #[must_use]
    pub fn new(n: usize) -> Self {
        Self {
            n,
            passive: Vec::with_capacity(n),
            is_passive: vec![false; n],
            gradient: vec![0.0; n],
            factor: vec![0.0; n * (n + 1) / 2],
            trial: vec![0.0; n],
        }
    }

    /// Solves with `gram = AᵀA` (`n × n`, row-major, symmetric) and `atb = Aᵀb` into `x`.
    ///
    /// Ends after at most `3 n` steps with the best admissible `x` so far; returns the steps taken.
    pub fn solve(&mut self, gram: &[f64], atb: &[f64], x: &mut [f64]) -> usize {
        let n = self.n;
        self.passive.clear();
        self.is_passive.fill(false);
        x.fill(0.0);
        let scale = atb.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let tolerance = 1e-9 * scale;
        let mut steps = 0;
        while steps < 3 * n {
            steps += 1;
            self.gradient.copy_from_slice(atb);
            for &c in &self.passive {
                let (xc, row) = (x[c], &gram[c * n..(c + 1) * n]);
                self.gradient.iter_mut().zip(row).for_each(|(g, a)| *g -= xc * a);
            }
            let free = (0..n).filter(|&i| !self.is_passive[i] && self.gradient[i] > tolerance);
            let Some(best) = free.max_by(|&a, &b| self.gradient[a].total_cmp(&self.gradient[b]).then(b.cmp(&a))) else {
                break;
            };
            self.passive.push(best);
            self.is_passive[best] = true;
            let mut first = true;
            loop {
                if !self.passive_solution(gram, atb) {
                    // The new column is, to rounding, a combination of the others: it cannot improve the fit.
                    self.drop_last();
                    return steps;
                }
                // Rounding: the column just added must go up, or the step would not end.
                if first && self.trial[self.passive.len() - 1] <= 0.0 {
                    self.drop_last();
                    return steps;
                }
                first = false;
                let mut alpha = 1.0f64;
                for (t, &c) in self.trial.iter().zip(&self.passive) {
                    if *t <= 0.0 {
                        alpha = alpha.min(x[c] / (x[c] - t));
                    }
                }
                for (t, &c) in self.trial.iter().zip(&self.passive) {
                    x[c] += alpha * (t - x[c]);
                }
                if alpha >= 1.0 {
                    break;
                }
                let floor = 1e-14 * x.iter().fold(0.0f64, |m, v| m.max(*v));
                let is_passive = &mut self.is_passive;
                self.passive.retain(|&c| {
                    let stays = x[c] > floor;
                    if !stays {
                        x[c] = 0.0;
                        is_passive[c] = false;
                    }
                    stays
                });
                if self.passive.is_empty() {
                    break;
                }
            }
        }
        steps
    }

    fn drop_last(&mut self) {
        if let Some(c) = self.passive.pop() {
            self.is_passive[c] = false;
        }
    }

    /// Solves for the passive coefficients; false when the system is not positive definite to rounding.
    fn passive_solution(&mut self, gram: &[f64], atb: &[f64]) -> bool {
        let k = self.passive.len();
        let row_at = |i: usize| i * (i + 1) / 2;
        for i in 0..k {
            let gi = self.passive[i] * self.n;
            for j in 0..=i {
                let (ri, rj) = (row_at(i), row_at(j));
                let dot: f64 = self.factor[ri..ri + j].iter().zip(&self.factor[rj..rj + j]).map(|(a, b)| a * b).sum();
                let value = gram[gi + self.passive[j]] - dot;
                if i == j {
                    if value <= 1e-13 * gram[gi + self.passive[i]] {
                        return false;
                    }
                    self.factor[ri + i] = value.sqrt();
                } else {
                    self.factor[ri + j] = value / self.factor[rj + j];
                }
            }
        }
        for i in 0..k {
            let r = row_at(i);
            let dot: f64 = self.factor[r..r + i].iter().zip(&self.trial[..i]).map(|(a, b)| a * b).sum();
            self.trial[i] = (atb[self.passive[i]] - dot) / self.factor[r + i];
        }
        for i in (0..k).rev() {
            let mut value = self.trial[i];
            for j in i + 1..k {
                value -= self.factor[row_at(j) + i] * self.trial[j];
            }
            self.trial[i] = value / self.factor[row_at(i) + i];
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn problem(rows: usize, n: usize, seed: u64) -> (Vec<f64>, Vec<f64>) {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let a: Vec<f64> = (0..rows * n).map(|_| rng.random_range(-0.2..1.0)).collect();
        let b: Vec<f64> = (0..rows).map(|_| rng.random_range(-0.5..1.0)).collect();
        let column = |c: usize| (0..rows).map(move |r| r * n + c);
        let mut gram = vec![0.0; n * n];
        let mut atb = vec![0.0; n];
        for i in 0..n {
            for j in 0..n {
                gram[i * n + j] = column(i).zip(column(j)).map(|(p, q)| a[p] * a[q]).sum();
            }
            atb[i] = column(i).zip(&b).map(|(p, v)| a[p] * v).sum();
        }
        (gram, atb)
    }

    /// Optimal exactly when: x ≥ 0, the gradient is not positive, and zero wherever x is positive.
    #[test]
    fn solutions_are_optimal() {
        for (seed, n) in [(1, 1), (2, 3), (3, 20), (4, 60), (5, 60)] {
            let (gram, atb) = problem(80, n, seed);
            let mut x = vec![0.0; n];
            Solver::new(n).solve(&gram, &atb, &mut x);
            let scale = atb.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            for i in 0..n {
                let g = atb[i] - (0..n).map(|j| gram[i * n + j] * x[j]).sum::<f64>();
                assert!(x[i] >= 0.0 && g <= 1e-8 * scale, "{seed}: x {} gradient {g}", x[i]);
                assert!(x[i] == 0.0 || g.abs() <= 1e-8 * scale, "{seed}: x {} gradient {g}", x[i]);
            }
            assert!(n < 10 || x.contains(&0.0), "no constraint was active: the test shows nothing");
        }
    }

    /// An independent way to the same minimum.
    #[test]
    fn projected_gradients_end_in_the_same_place() {
        let n = 12;
        let (gram, atb) = problem(40, n, 9);
        let mut x = vec![0.0; n];
        Solver::new(n).solve(&gram, &atb, &mut x);
        let step = 1.0 / (0..n).map(|i| (0..n).map(|j| gram[i * n + j].abs()).sum::<f64>()).fold(0.0, f64::max);
        let mut y = vec![0.0; n];
        for _ in 0..200_000 {
            let g: Vec<f64> = (0..n).map(|i| atb[i] - (0..n).map(|j| gram[i * n + j] * y[j]).sum::<f64>()).collect();
            y.iter_mut().zip(g).for_each(|(y, g)| *y = (*y + step * g).max(0.0));
        }
        for (a, b) in x.iter().zip(&y) {
            assert!((a - b).abs() < 1e-7, "{x:?} {y:?}");
        }
    }

    #[test]
    fn the_same_column_twice_ends() {
        let gram = [2.0, 2.0, 1.0, 2.0, 2.0, 1.0, 1.0, 1.0, 3.0];
        let mut x = [0.0; 3];
        let steps = Solver::new(3).solve(&gram, &[2.0, 2.0, 2.0], &mut x);
        assert!(steps <= 9 && (x[0] + x[1] - 0.8).abs() < 1e-9 && (x[2] - 0.4).abs() < 1e-9, "{x:?}");
        Solver::new(3).solve(&gram, &[-1.0, -1.0, -2.0], &mut x);
        assert_eq!(x, [0.0; 3]);
    }
}
