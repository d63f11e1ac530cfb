//! Wire scans of planted sources, by tracing rays past a cylinder.

use super::*;
use crate::technique::laue::forward::counts;
use crate::technique::laue::geometry::{add, norm};
use rand::{Rng, SeedableRng};

fn setup(edge: Edge) -> WireSetup {
    WireSetup {
        detector: crate::technique::laue::setup::nominal().detector,
        beam: [0.0, 0.0, 1.0],
        wire: WireSpec {
            diameter_um: 50.0,
            axis: [0.99999608, 0.0, 0.0028000002],
            rotation_rad: [0.0045, -0.00684, -3.375e-5],
            origin_um: [10.0, -20.0, 30.0],
        },
        edge,
        threshold: 1.0,
        saturation: 65535.0,
        depth: DepthGrid { first_um: -60.0, step_um: 1.0, bins: 121 },
    }
}

/// The wire 300 µm above the beam, stepping along it and up.
fn readings(frames: usize, step_um: f64) -> Vec<V3> {
    let reach = step_um * frames as f64 * 0.5;
    (0..frames)
        .map(|k| {
            let s = k as f64 * step_um - reach;
            [0.0, 280.0 + 0.1 * s, 60.0 + s]
        })
        .collect()
}

/// Share of a pixel that sees a point of the beam past a cylinder; independent of the tangent's formula.
fn visible(setup: &WireSetup, reading: V3, depth_um: f64, row: f64, column: f64) -> f64 {
    let rotation = Rotation::vector(setup.wire.rotation_rad);
    let axis = unit(rotation.apply(setup.wire.axis));
    let centre = scale(rotation.apply(sub(reading, setup.wire.origin_um)), 1e-3);
    let source = scale(unit(setup.beam), depth_um * 1e-3);
    let n = 16;
    let free = (0..n)
        .filter(|i| {
            let pixel = setup.detector.point(row, column + (f64::from(*i) + 0.5) / f64::from(n) - 0.5);
            let ray = unit(sub(pixel, source));
            // Distance between the ray's line and the wire's axis.
            let normal = cross(ray, axis);
            let distance = dot(sub(centre, source), normal).abs() / norm(normal);
            distance > setup.wire.diameter_um * 0.5e-3
        })
        .count();
    free as f64 / f64::from(n)
}

fn scan(
    setup: &WireSetup,
    readings: &[V3],
    depth_um: f64,
    row: usize,
    column: usize,
    peak: f64,
    seed: u64,
) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mean = |x: &V3| peak * visible(setup, *x, depth_um, row as f64, column as f64) + 5.0;
    readings.iter().map(|x| counts(mean(x), 65535.0, &mut rng) as f32).collect()
}

#[test]
fn sources_are_found_by_either_edge_and_by_both_in_either_direction() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    for edge in [Edge::Leading, Edge::Trailing, Edge::Both] {
        let setup = setup(edge);
        for reverse in [false, true] {
            let mut readings = readings(301, 1.0);
            if reverse {
                readings.reverse();
            }
            let wire = WireScan::new(setup.clone(), Region::FULL, &readings).unwrap();
            for seed in 0..6 {
                let (row, column) = (rng.random_range(0..2048), rng.random_range(300..1700));
                let depth = rng.random_range(-25.0..25.0);
                let series = scan(&setup, &readings, depth, row, column, 4000.0, seed);
                let mut column_of_depths = vec![0.0; setup.depth.bins];
                let (pixel, account) = wire.resolve(&series, row, column, &mut column_of_depths);
                assert!(account.imbalance() < 1e-9, "{account:?}");
                let sum: f64 = column_of_depths.iter().sum();
                assert!((sum - account.deposited).abs() < 1e-6 * sum.abs());
                let near: Vec<(f64, f64)> = setup
                    .depth
                    .centres_um()
                    .into_iter()
                    .zip(column_of_depths.iter().copied())
                    .filter(|(z, _)| (z - depth).abs() < 6.0)
                    .collect();
                let weight: f64 = near.iter().map(|n| n.1).sum();
                let centroid = near.iter().map(|n| n.0 * n.1).sum::<f64>() / weight;
                // All of it, once: within noise of about 3·√(2·4000·12).
                assert!((weight - 4000.0).abs() < 1000.0, "{edge:?} {reverse} {depth}: {weight}");
                assert!((centroid - depth).abs() < 1.0, "{edge:?} {reverse} {depth}: {centroid}");
                assert!(pixel.flags == 0 && pixel.confidence > 3.0, "{pixel:?}");
            }
        }
    }
}

/// The published area of some codes lacks a term; then a flat-topped trapezoid is deposited up to twice.
#[test]
fn a_trapezoid_is_deposited_exactly_once() {
    let grid = DepthGrid { first_um: 0.0, step_um: 0.7, bins: 60 };
    for z in [
        [3.0, 4.0, 9.0, 11.0],
        [3.0, 3.0, 9.0, 9.0],
        [3.0, 5.0, 5.0, 8.0],
        [3.0, 3.0, 3.0, 3.0],
        [-5.0, 1.0, 2.0, 50.0],
        [-9.0, -8.0, -3.0, -2.0],
    ] {
        let mut column = vec![0.0; 60];
        let outside = deposit_trapezoid(&grid, z, 5.0, &mut column);
        assert!((column.iter().sum::<f64>() + outside - 5.0).abs() < 1e-12, "{z:?}");
        let (start, end) = grid.range_um();
        if z[0] > start && z[3] < end {
            assert!(outside.abs() < 1e-12);
            let mean = column.iter().enumerate().map(|(m, v)| v * grid.centre_um(m)).sum::<f64>() / 5.0;
            // Centre of gravity of a trapezoid, from its two triangles and rectangle.
            let parts = [
                ((z[1] - z[0]) / 2.0, z[0] + (z[1] - z[0]) * 2.0 / 3.0),
                (z[2] - z[1], (z[1] + z[2]) / 2.0),
                ((z[3] - z[2]) / 2.0, z[2] + (z[3] - z[2]) / 3.0),
            ];
            let area: f64 = parts.iter().map(|p| p.0).sum();
            if area > 0.0 {
                let want = parts.iter().map(|p| p.0 * p.1).sum::<f64>() / area;
                assert!((mean - want).abs() < 0.06, "{z:?}: {mean} {want}");
            }
        }
    }
}

#[test]
fn the_tangent_touches_the_wire() {
    let setup = setup(Edge::Leading);
    let wire = WireScan::new(setup.clone(), Region::FULL, &readings(11, 1.0)).unwrap();
    let axis = unit(Rotation::vector(setup.wire.rotation_rad).apply(setup.wire.axis));
    for (row, column) in [(0, 0), (1024, 700), (2047, 2047)] {
        for ahead in [true, false] {
            let point = wire.point(row as f64, column as f64);
            let (a, b) = (wire.centres[4], wire.centres[5]);
            let motion = [b[0] - a[0], b[1] - a[1]];
            let depth = wire.depth_um(point, a, motion, ahead).unwrap();
            // In space: the plane through the pixel, the depth and the wire's direction is a radius away from its axis.
            let pixel = setup.detector.point(row as f64, column as f64);
            let source = scale(unit(setup.beam), depth * 1e-3);
            let normal = unit(cross(sub(pixel, source), axis));
            let centre = add(scale(wire.across[0], a[0]), scale(wire.across[1], a[1]));
            assert!((dot(sub(centre, source), normal).abs() - 0.025).abs() < 1e-9);
            // The foot lies ahead exactly when asked for.
            let foot = scale(normal, -dot(sub(centre, source), normal));
            let forward = add(scale(wire.across[0], motion[0]), scale(wire.across[1], motion[1]));
            assert_eq!(dot(foot, forward) > 0.0, ahead);
        }
    }
    // A pixel inside the wire has no tangent; a wire along the beam no depth.
    assert_eq!(wire.depth_um(wire.centres[0], wire.centres[0], [1.0, 0.0], true), None);
    let along =
        WireSetup { wire: WireSpec { axis: [0.0, 0.0, 1.0], rotation_rad: [0.0; 3], ..setup.wire.clone() }, ..setup };
    assert!(WireScan::new(along, Region::FULL, &[]).is_err());
}

#[test]
fn dim_dead_and_saturated_pixels_are_left_alone() {
    let setup = WireSetup { threshold: 10.0, ..setup(Edge::Both) };
    let wire = WireScan::new(setup.clone(), Region::FULL, &readings(5, 1.0)).unwrap();
    for (series, flags) in [
        ([1.0, 2.0, 1.0, 2.0, 1.0], flag::DIM),
        ([50.0; 5], flag::DEAD),
        ([50.0, 65535.0, 9.0, 9.0, 9.0], flag::SATURATED),
        ([0.0; 5], flag::DIM | flag::DEAD),
    ] {
        let mut column = vec![0.0; setup.depth.bins];
        let (pixel, account) = wire.resolve(&series, 3, 3, &mut column);
        assert_eq!((pixel.flags, account), (flags, Account::default()));
        assert!(column.iter().all(|&c| c == 0.0));
    }
}
