//! Wire scans (differential aperture; Larson et al., *Nature* 415, 887 (2002)).
//!
//! A wire steps across the diffracted beams. What a pixel loses from one frame to the next came from the depths whose rays the
//! wire's leading edge swept over; what it gains, from those that the trailing edge set free. The ray of an edge is the
//! tangent from a point of the pixel to the wire; with the wire's axis it spans a plane, which meets the incident beam at
//! the depth. A pixel has an extent, so that a difference spreads over depths as a trapezoid between the four depths of two
//! pixel edges and two wire positions: rising between the first two, flat, falling between the last two; its area is half of
//! `(z₄ + z₃ − z₂ − z₁)`.
//!
//! Conventions: a wire at positioner readings `X` stands at `R·(X − origin)` in the laboratory; its axis is `R·axis`. The leading
//! edge is the one on the side the wire moves to. Differences are counts of a frame less those of the next; the trailing
//! edge takes their negative. With both edges each takes half, so that a source that both sweep over counts once; while one
//! edge sweeps over a source, the other puts the negative of it about a wire's diameter away, which cannot be told apart.

use super::decode::flag;
use super::depth::{Account, DepthGrid};
use super::geometry::{Detector, Region, Rotation, V3, cross, dot, scale, sub, unit};
use serde::{Deserialize, Serialize};

/// A wire, as geoN files describe it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WireSpec {
    /// Diameter, µm.
    pub diameter_um: f64,
    /// Direction of its axis in the positioner's frame.
    pub axis: V3,
    /// Rotation vector of the positioner, radians.
    pub rotation_rad: V3,
    /// Positioner readings at which the wire would stand in the origin, µm.
    pub origin_um: V3,
}

/// Half of the depths around the fullest bin that belong to it, µm.
const PEAK_UM: f64 = 5.0;

/// Which edges count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Edge {
    /// The edge that covers.
    Leading,
    /// The edge that uncovers.
    Trailing,
    /// Both, half each.
    Both,
}

/// Everything that a wire scan wants to know beside the wire's positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WireSetup {
    /// The detector.
    pub detector: Detector,
    /// Direction of the incident beam.
    pub beam: V3,
    /// The wire.
    pub wire: WireSpec,
    /// Which edges count.
    pub edge: Edge,
    /// Least mean counts.
    pub threshold: f64,
    /// Counts from here on are saturated.
    pub saturation: f64,
    /// Depths.
    pub depth: DepthGrid,
}

/// In the plane across the wire: the second axis is the direction of the beam there, so that the beam is `u = 0`.
pub(super) type V2 = [f64; 2];

/// A wire scan, ready for its pixels.
pub struct WireScan {
    setup: WireSetup,
    region: Region,
    across: [V3; 2],
    /// Of a depth along the beam, the share that is seen across the wire.
    foreshortening: f64,
    radius: f64,
    centres: Vec<V2>,
    /// Pixel edges lie along columns of the detector (0) or rows (1).
    edge_axis: usize,
}

/// What is known of a pixel after a wire scan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WirePixel {
    /// [`flag`] bits.
    pub flags: u8,
    /// Mean counts.
    pub mean: f32,
    /// Counts in the depth bins.
    pub intensity: f32,
    /// Mean depth around the fullest bin, µm.
    pub depth_um: f32,
    /// Share of negative counts among all that were put into bins.
    pub residual: f32,
    /// Counts in the fullest bin in units of a bin's usual standard deviation.
    pub confidence: f32,
}

impl WireScan {
    /// For positioner readings of every frame, µm.
    ///
    /// # Errors
    /// A wire that runs along the beam.
    pub fn new(setup: WireSetup, region: Region, readings_um: &[V3]) -> Result<Self, String> {
        let rotation = Rotation::vector(setup.wire.rotation_rad);
        let axis = unit(rotation.apply(setup.wire.axis));
        let beam = unit(setup.beam);
        let along = sub(beam, scale(axis, dot(beam, axis)));
        let foreshortening = dot(along, along).sqrt();
        if foreshortening <= 1e-3 || foreshortening.is_nan() {
            return Err("the wire's axis runs along the incident beam".to_owned());
        }
        let second = unit(along);
        let across = [cross(second, axis), second];
        let centres = readings_um
            .iter()
            .map(|&x| {
                let p = scale(rotation.apply(sub(x, setup.wire.origin_um)), 1e-3);
                [dot(p, across[0]), dot(p, across[1])]
            })
            .collect();
        let [columns, rows] = setup.detector.axes().map(|a| dot(a, axis).abs());
        let radius = setup.wire.diameter_um * 0.5e-3;
        let edge_axis = usize::from(rows < columns);
        Ok(Self { setup, region, across, foreshortening, radius, centres, edge_axis })
    }

    /// The setup.
    #[must_use]
    pub fn setup(&self) -> &WireSetup {
        &self.setup
    }

    /// The wire's middle in every frame, its radius, and the share of a depth that is seen across it.
    pub(super) fn path(&self) -> (&[V2], f64, f64) {
        (&self.centres, self.radius, self.foreshortening)
    }

    /// Bins on either side of the fullest that belong to it.
    pub(super) fn around(&self) -> usize {
        (PEAK_UM / self.setup.depth.step_um).ceil() as usize
    }

    fn point(&self, row: f64, column: f64) -> V2 {
        let (y, x) = self.region.centre(row, column);
        let p = self.setup.detector.point(y, x);
        [dot(p, self.across[0]), dot(p, self.across[1])]
    }

    /// The two edges of a pixel, where the wire's shadow enters and leaves.
    pub(super) fn edges(&self, row: usize, column: usize) -> [V2; 2] {
        let (r, c) = (row as f64, column as f64);
        [-0.5, 0.5].map(|h| if self.edge_axis == 0 { self.point(r, c + h) } else { self.point(r + h, c) })
    }

    /// Depth, µm, of the ray from `point` past the wire at `centre`, on the side to which `motion` points (`ahead`) or the other.
    fn depth_um(&self, point: V2, centre: V2, motion: V2, ahead: bool) -> Option<f64> {
        let v = [centre[0] - point[0], centre[1] - point[1]];
        let square = v[0] * v[0] + v[1] * v[1];
        let tangent = square - self.radius * self.radius;
        if tangent <= 0.0 || tangent.is_nan() {
            return None;
        }
        // The tangent's direction is v turned by ± asin(radius/|v|); turned counter-clockwise it passes the wire on the
        // side (−u₁, u₀).
        let (c, s) = ((tangent / square).sqrt(), self.radius / square.sqrt());
        let forward = [v[0] * c - v[1] * s, v[0] * s + v[1] * c];
        let leads = -forward[1] * motion[0] + forward[0] * motion[1];
        if leads == 0.0 {
            return None;
        }
        let u = if (leads > 0.0) == ahead { forward } else { [v[0] * c + v[1] * s, -v[0] * s + v[1] * c] };
        let depth = 1e3 * (point[1] - point[0] * u[1] / u[0]) / self.foreshortening;
        depth.is_finite().then_some(depth)
    }

    /// The depths between which a difference of frames `k` and `k + 1` spreads, sorted.
    fn corners(&self, edges: [V2; 2], k: usize, ahead: bool) -> Option<[f64; 4]> {
        let (a, b) = (*self.centres.get(k)?, *self.centres.get(k + 1)?);
        let motion = [b[0] - a[0], b[1] - a[1]];
        let mut z = [0.0; 4];
        for (i, z) in z.iter_mut().enumerate() {
            *z = self.depth_um(edges[i / 2], if i % 2 == 0 { a } else { b }, motion, ahead)?;
        }
        z.sort_by(f64::total_cmp);
        Some(z)
    }

    /// Resolves one pixel; adds to its column of depths, and tells where the differences went.
    pub fn resolve(&self, series: &[f32], row: usize, column: usize, depths: &mut [f64]) -> (WirePixel, Account) {
        let n = series.len().min(self.centres.len());
        let mean = series.iter().map(|&v| f64::from(v)).sum::<f64>() / series.len().max(1) as f64;
        let mut flags = 0;
        if mean < self.setup.threshold || mean.is_nan() {
            flags |= flag::DIM;
        }
        if series.iter().any(|&v| f64::from(v) >= self.setup.saturation) {
            flags |= flag::SATURATED;
        }
        if series.iter().all(|v| Some(v) == series.first()) {
            flags |= flag::DEAD;
        }
        let nan = f32::NAN;
        let mut pixel =
            WirePixel { flags, mean: mean as f32, intensity: nan, depth_um: nan, residual: nan, confidence: nan };
        if flags != 0 {
            return (pixel, Account::default());
        }
        let edges = self.edges(row, column);
        let mut account = Account::default();
        let mut variance = 0.0;
        let sides: &[(bool, f64)] = match self.setup.edge {
            Edge::Leading => &[(true, 1.0)],
            Edge::Trailing => &[(false, -1.0)],
            Edge::Both => &[(true, 0.5), (false, -0.5)],
        };
        for (k, pair) in series.windows(2).take(n.saturating_sub(1)).enumerate() {
            let difference = f64::from(pair[0]) - f64::from(pair[1]);
            if difference == 0.0 {
                continue;
            }
            for &(ahead, weight) in sides {
                let amount = weight * difference;
                account.input += amount;
                match self.corners(edges, k, ahead) {
                    None => account.rejected += amount,
                    Some(z) => {
                        let outside = deposit_trapezoid(&self.setup.depth, z, amount, depths);
                        account.out_of_range += outside;
                        account.deposited += amount - outside;
                        if outside != amount {
                            variance += weight * weight * (f64::from(pair[0]) + f64::from(pair[1]));
                        }
                    }
                }
            }
        }
        let grid = &self.setup.depth;
        let peak = (0..depths.len()).max_by(|&a, &b| depths[a].total_cmp(&depths[b])).unwrap_or(0);
        let around = self.around();
        let (mut moment, mut weight) = (0.0, 0.0);
        for (m, &v) in depths.iter().enumerate().take(peak + around + 1).skip(peak.saturating_sub(around)) {
            moment += v.max(0.0) * grid.centre_um(m);
            weight += v.max(0.0);
        }
        let negative: f64 = depths.iter().map(|v| (-v).max(0.0)).sum();
        let all: f64 = depths.iter().map(|v| v.abs()).sum();
        pixel.intensity = account.deposited as f32;
        pixel.depth_um = (moment / weight) as f32;
        pixel.residual = (negative / all) as f32;
        pixel.confidence = (depths[peak] / (variance / depths.len() as f64).sqrt()) as f32;
        (pixel, account)
    }
}

/// Adds `amount`, spread as the trapezoid of four sorted depths; returns what fell outside the grid.
pub fn deposit_trapezoid(grid: &DepthGrid, z: [f64; 4], amount: f64, column: &mut [f64]) -> f64 {
    let [a, b, c, d] = z;
    let area = (d + c - b - a) / 2.0;
    if area <= 1e-12 * (1.0 + a.abs() + d.abs()) || area.is_nan() {
        return grid.deposit_even(a, a, amount, column);
    }
    let ramp = |x: f64, width: f64| if width > 0.0 { x * x / (2.0 * width) } else { 0.0 };
    grid.deposit(a, d, amount, column, |x| {
        if x <= a {
            0.0
        } else if x >= d {
            1.0
        } else if x < b {
            ramp(x - a, b - a) / area
        } else if x <= c {
            ((b - a) / 2.0 + x - b) / area
        } else {
            1.0 - ramp(d - x, d - c) / area
        }
    })
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
