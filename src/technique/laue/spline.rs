//! Cardinal B-splines on a grid of cells.

/// Integrals over whole cells of the cardinal B-spline of `degree` with knots every `spacing` cells, scaled to sum 1; its
/// support is `(degree + 1)·spacing` cells.
///
/// Closed form by truncated powers (de Boor, *A Practical Guide to Splines*, 2001, ch. IX): `B(x) = 1/n! Σ_k (−1)^k C(n+1, k)
/// (x − k)₊ⁿ`, integrated once more. Exact enough to degree 7.
#[must_use]
pub fn cardinal(degree: usize, spacing: usize) -> Vec<f64> {
    let n = degree + 1;
    let factorial: f64 = (1..=n).map(|i| i as f64).product();
    let integral = |x: f64| {
        let mut choose = 1.0;
        let mut sum = 0.0;
        for k in 0..=n {
            let sign = if k % 2 == 0 { 1.0 } else { -1.0 };
            sum += sign * choose * (x - k as f64).max(0.0).powi(n as i32);
            choose *= (n - k) as f64 / (k + 1) as f64;
        }
        sum / factorial
    };
    let at = |cell: usize| integral(cell as f64 / spacing as f64);
    (0..n * spacing).map(|cell| at(cell + 1) - at(cell)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splines_are_positive_symmetric_and_sum_to_one() {
        for degree in 0..=7 {
            for spacing in [1, 2, 5] {
                let b = cardinal(degree, spacing);
                assert_eq!(b.len(), (degree + 1) * spacing);
                assert!((b.iter().sum::<f64>() - 1.0).abs() < 1e-10);
                for (x, y) in b.iter().zip(b.iter().rev()) {
                    assert!(*x > -1e-10 && (x - y).abs() < 1e-9, "{degree} {spacing}");
                }
            }
        }
        assert_eq!(cardinal(0, 2), [0.5, 0.5]);
        assert_eq!(cardinal(1, 1), [0.5, 0.5]);
        let cubic = cardinal(3, 1);
        assert!((cubic[0] - 1.0 / 24.0).abs() < 1e-15 && (cubic[1] - 11.0 / 24.0).abs() < 1e-14);
    }
}
