//! Weights of the angles in the integral over half a turn, for any list of angles.
//!
//! Directions repeat after π, so the angles are reduced modulo π, sorted, and each takes half of the gap on either side
//! (the periodic trapezoid rule): n even steps get π/n each, a list that holds both 0 and π gives each of the two half, a
//! full turn gives opposite views half each. A gap more than [`MISSING`] times the median gap is a part of the half turn
//! that was not measured: its neighbours take half the median gap from that side, not half the hole.
//! Angles must be finite; weights are ≥ 0 and sum to π when nothing is missing.

use std::f64::consts::PI;

/// Gaps wider than this many median gaps are holes. Golden-ratio lists have gaps within a factor 2.7 of each other.
pub const MISSING: f64 = 8.0;

/// One angle with its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Direction {
    /// Index in the list as given.
    pub index: usize,
    /// The angle as given, radians.
    pub angle: f64,
    /// Its share of the half turn, radians.
    pub weight: f64,
}

/// The angles ordered by direction modulo π, with their weights.
///
/// The order is also that in which gridding should visit them: neighbours touch the same grid cells.
#[must_use]
pub fn directions(angles: &[f64]) -> Vec<Direction> {
    let mut sorted: Vec<(f64, usize)> = angles
        .iter()
        .enumerate()
        .map(|(index, angle)| {
            let reduced = angle.rem_euclid(PI);
            // Rounding may leave a direction a hair below π; it is that of 0.
            (if PI - reduced < 1e-12 { 0.0 } else { reduced }, index)
        })
        .collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let n = sorted.len();
    let gap = |i: usize| {
        if i + 1 < n { sorted[i + 1].0 - sorted[i].0 } else { sorted[0].0 + PI - sorted[i].0 }
    };
    let mut positive: Vec<f64> = (0..n).map(gap).filter(|&g| g > 1e-9).collect();
    positive.sort_by(f64::total_cmp);
    let median = positive.get(positive.len() / 2).copied().unwrap_or(PI);
    let side = |i: usize| {
        if gap(i) > MISSING * median { median / 2.0 } else { gap(i) / 2.0 }
    };
    (0..n)
        .map(|i| Direction { index: sorted[i].1, angle: angles[sorted[i].1], weight: side(i) + side((i + n - 1) % n) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn total(angles: &[f64]) -> f64 {
        directions(angles).iter().map(|d| d.weight).sum()
    }

    fn weight_of(angles: &[f64], index: usize) -> f64 {
        directions(angles).iter().find(|d| d.index == index).unwrap().weight
    }

    #[test]
    fn even_steps_share_evenly() {
        let angles: Vec<f64> = (0..180).map(|i| f64::from(i).to_radians()).collect();
        for d in directions(&angles) {
            assert!((d.weight - PI / 180.0).abs() < 1e-12);
        }
    }

    #[test]
    fn both_ends_of_the_half_turn_count_half() {
        let angles: Vec<f64> = (0..=180).map(|i| f64::from(i).to_radians()).collect();
        assert!((total(&angles) - PI).abs() < 1e-12);
        assert!((weight_of(&angles, 0) - PI / 360.0).abs() < 1e-12);
        assert!((weight_of(&angles, 180) - PI / 360.0).abs() < 1e-12);
        assert!((weight_of(&angles, 90) - PI / 180.0).abs() < 1e-12);
    }

    #[test]
    fn a_full_turn_and_negated_angles_sum_to_pi() {
        let angles: Vec<f64> = (0..360).map(|i| -f64::from(i).to_radians()).collect();
        assert!((total(&angles) - PI).abs() < 1e-9);
        assert!((weight_of(&angles, 7) - PI / 360.0).abs() < 1e-9);
    }

    #[test]
    fn a_hole_is_not_given_to_its_neighbours() {
        let angles: Vec<f64> = (0..140).map(|i| f64::from(i).to_radians()).collect();
        assert!((total(&angles) - 140_f64.to_radians()).abs() < 1e-9);
    }

    #[test]
    fn one_angle_is_the_whole_half_turn() {
        assert!((total(&[0.3]) - PI).abs() < 1e-12);
        assert!(directions(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn every_angle_appears_once_with_a_share_that_is_not_negative(
            angles in prop::collection::vec(-10.0_f64..10.0, 1..60)
        ) {
            let found = directions(&angles);
            let mut indices: Vec<usize> = found.iter().map(|d| d.index).collect();
            indices.sort_unstable();
            prop_assert_eq!(indices, (0..angles.len()).collect::<Vec<_>>());
            prop_assert!(found.iter().all(|d| d.weight >= 0.0 && d.angle == angles[d.index]));
            prop_assert!(found.iter().map(|d| d.weight).sum::<f64>() <= PI + 1e-9);
        }
    }
}
