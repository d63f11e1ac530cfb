//! The plain way: every formula as it stands, in double precision, without transforms, running sums or recursions. The fast way
//! ([`super::search`], [`super::decode`]) is held to this by tests; benchmarks show what it saves.

/// Squared difference of a measurement and the template, with the best gain ≥ 0 and background, at every offset.
///
/// `expected`: transmission of the mask with the expected footprint, at every sample.
#[must_use]
pub fn residuals(expected: &[f64], data: &[f64]) -> Vec<f64> {
    let n = data.len() as f64;
    let mean = data.iter().sum::<f64>() / n;
    let flat: f64 = data.iter().map(|d| (d - mean) * (d - mean)).sum();
    expected
        .windows(data.len())
        .map(|s| {
            let s_mean = s.iter().sum::<f64>() / n;
            let variance: f64 = s.iter().map(|s| (s - s_mean) * (s - s_mean)).sum();
            let c: f64 = s.iter().zip(data).map(|(s, d)| (s - s_mean) * (d - mean)).sum();
            if variance < 1e-6 * n { flat } else { flat - c.max(0.0) * c.max(0.0) / variance }
        })
        .collect()
}

/// Coefficients of non-negative splines and a background, and the squared difference that is left.
///
/// The model of datum `j` is `Σ_c x_c Σ_b basis_b T(start + c·knots + b + j) + x_last`, with `transmission(i)` the mask at sample
/// `i`. Minimised by coordinate descent on the full matrix: slow, and simple enough to be believed.
#[must_use]
pub fn footprint(
    transmission: impl Fn(isize) -> f64,
    start: isize,
    basis: &[f64],
    (columns, knots): (usize, usize),
    data: &[f64],
    sweeps: usize,
) -> (Vec<f64>, f64) {
    let mut matrix: Vec<Vec<f64>> = (0..columns)
        .map(|c| {
            (0..data.len())
                .map(|j| {
                    let at = |b: usize| transmission(start + (c * knots + b + j) as isize);
                    basis.iter().enumerate().map(|(b, v)| v * at(b)).sum()
                })
                .collect()
        })
        .collect();
    matrix.push(vec![1.0; data.len()]);
    let squares: Vec<f64> = matrix.iter().map(|a| a.iter().map(|v| v * v).sum()).collect();
    let mut x = vec![0.0; columns + 1];
    let mut left = data.to_vec();
    for _ in 0..sweeps {
        for ((x, a), s) in x.iter_mut().zip(&matrix).zip(&squares) {
            let gradient: f64 = a.iter().zip(&left).map(|(a, l)| a * l).sum();
            let next = (*x + gradient / s).max(0.0);
            let change = next - *x;
            if change != 0.0 {
                left.iter_mut().zip(a).for_each(|(l, a)| *l -= change * a);
                *x = next;
            }
        }
    }
    let residual = left.iter().map(|l| l * l).sum();
    (x, residual)
}
