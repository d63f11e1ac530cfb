//! Comparators for the tests of this folder, and the tests of the comparators.

use ndarray::ArrayView;

/// `‖got − want‖ / ‖want‖` in f64. Any element that is not finite makes it infinite: no comparison with it can pass.
pub(crate) fn relative_l2<D: ndarray::Dimension>(got: ArrayView<'_, f32, D>, want: ArrayView<'_, f32, D>) -> f64 {
    assert_eq!(got.shape(), want.shape(), "compared arrays differ in shape");
    let (mut above, mut below) = (0.0, 0.0);
    for (&g, &w) in got.iter().zip(want.iter()) {
        let (g, w) = (f64::from(g), f64::from(w));
        if !g.is_finite() || !w.is_finite() {
            return f64::INFINITY;
        }
        above += (g - w) * (g - w);
        below += w * w;
    }
    assert!(below > 0.0, "compared with nothing but zeros");
    (above / below).sqrt()
}

/// Panics unless every element satisfies `|got − want| ≤ atol + rtol |want|`; NaN and infinity never do.
#[track_caller]
pub(crate) fn assert_close<D: ndarray::Dimension>(
    got: ArrayView<'_, f32, D>,
    want: ArrayView<'_, f32, D>,
    atol: f64,
    rtol: f64,
) {
    assert_eq!(got.shape(), want.shape(), "compared arrays differ in shape");
    for (i, (&g, &w)) in got.iter().zip(want.iter()).enumerate() {
        let (g, w) = (f64::from(g), f64::from(w));
        let within = g.is_finite() && w.is_finite() && (g - w).abs() <= atol + rtol * w.abs();
        assert!(within, "element {i}: got {g}, want {w}, allowed {}", atol + rtol * w.abs());
    }
}

/// Angles `0, π/n, …` without π.
pub(crate) fn half_turn(n: usize) -> Vec<f64> {
    (0..n).map(|i| i as f64 * std::f64::consts::PI / n as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_norm_sees_low_high_and_missing_values() {
        let want = array![3.0_f32, 4.0];
        assert_eq!(relative_l2(want.view(), want.view()), 0.0);
        assert!((relative_l2(array![3.0, 3.0].view(), want.view()) - 0.2).abs() < 1e-12);
        assert!((relative_l2(array![3.0, 5.0].view(), want.view()) - 0.2).abs() < 1e-12);
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(relative_l2(array![3.0, bad].view(), want.view()) > 1e300);
            assert!(relative_l2(want.view(), array![3.0, bad].view()) > 1e300);
        }
    }

    #[test]
    fn close_means_close_on_both_sides() {
        assert_close(array![1.1_f32].view(), array![1.0_f32].view(), 0.05, 0.06);
        let fails = |got: f32| {
            std::panic::catch_unwind(|| assert_close(array![got].view(), array![1.0_f32].view(), 0.05, 0.0)).is_err()
        };
        assert!(fails(1.1) && fails(0.9) && fails(f32::NAN) && fails(f32::INFINITY));
        assert!(!fails(1.04));
    }
}
