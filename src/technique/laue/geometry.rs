//! Where pixels, mask, wire and beam are, and which depth a ray came from.
//!
//! Conventions
//! - **Laboratory frame** of the beamline (34-ID-E): `z` along the incident beam, `y` up, `x` completes a right-handed frame
//!   (outboard). Millimetres. The incident beam passes through the origin.
//! - **Depth** is the distance along the incident beam from the origin, micrometres, positive downstream.
//! - **Detector**: pixel `(row, column)`, zero-based, in the full unbinned chip; pixel centres are at whole numbers.
//!   `x' = (column − (Nx − 1)/2)·size_x/Nx + P_x`, `y' = (row − (Ny − 1)/2)·size_y/Ny + P_y`, `z' = P_z`, then rotated by the
//!   rotation vector `R` (Rodrigues: axis `R/|R|`, angle `|R|` in radians). This is the geometry of geoN files.
//! - **Mask frame**, as `cold` writes poses: `(X, Y, Z) = (z, y, −x)` of the laboratory frame. The mask's orientation is
//!   `R_Y(angley)·R_Z(anglez)·R_X(anglex)`, degrees, intrinsic; its first axis runs along the code, its second is its
//!   normal, its third runs along the bars.
//! - **Code coordinate** `p`, micrometres from the beginning of the padded mask; it *falls* along the mask's first axis, and
//!   the mask's middle is at half its padded length. A ray that crosses the mask at `p` in the first frame crosses it at
//!   `p + kΔ` in frame `k`.

use serde::{Deserialize, Serialize};

/// A vector, or a point in millimetres.
pub type V3 = [f64; 3];

/// `a + b`.
#[must_use]
pub fn add(a: V3, b: V3) -> V3 {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

/// `a − b`.
#[must_use]
pub fn sub(a: V3, b: V3) -> V3 {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

/// `s·a`.
#[must_use]
pub fn scale(a: V3, s: f64) -> V3 {
    [a[0] * s, a[1] * s, a[2] * s]
}

/// `a·b`.
#[must_use]
pub fn dot(a: V3, b: V3) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// `a × b`.
#[must_use]
pub fn cross(a: V3, b: V3) -> V3 {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

/// Length.
#[must_use]
pub fn norm(a: V3) -> f64 {
    dot(a, a).sqrt()
}

/// `a/|a|`.
#[must_use]
pub fn unit(a: V3) -> V3 {
    scale(a, 1.0 / norm(a))
}

/// A rotation, rows first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotation(pub [V3; 3]);

impl Rotation {
    /// By a rotation vector, radians (Rodrigues' formula).
    #[must_use]
    pub fn vector(r: V3) -> Self {
        let angle = norm(r);
        if angle == 0.0 {
            return Self([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        }
        let (n, (s, c)) = (scale(r, 1.0 / angle), angle.sin_cos());
        let d = 1.0 - c;
        Self([
            [c + n[0] * n[0] * d, n[0] * n[1] * d - n[2] * s, n[0] * n[2] * d + n[1] * s],
            [n[1] * n[0] * d + n[2] * s, c + n[1] * n[1] * d, n[1] * n[2] * d - n[0] * s],
            [n[2] * n[0] * d - n[1] * s, n[2] * n[1] * d + n[0] * s, c + n[2] * n[2] * d],
        ])
    }

    /// The rotated vector.
    #[must_use]
    pub fn apply(&self, v: V3) -> V3 {
        [dot(self.0[0], v), dot(self.0[1], v), dot(self.0[2], v)]
    }
}

/// From the mask frame to the laboratory.
#[must_use]
pub fn from_mask_frame(v: V3) -> V3 {
    [-v[2], v[1], v[0]]
}

/// An area detector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detector {
    /// Columns and rows of the full chip.
    pub shape: [usize; 2],
    /// Width and height of the full chip, mm.
    pub size_mm: [f64; 2],
    /// Rotation vector, radians.
    pub rotation_rad: V3,
    /// Translation before the rotation, mm.
    pub position_mm: V3,
}

impl Detector {
    /// The point of the detector at a row and a column, which may lie between pixels; laboratory, mm.
    #[must_use]
    pub fn point(&self, row: f64, column: f64) -> V3 {
        let at = |i: f64, axis: usize| {
            let n = self.shape[axis] as f64;
            (i - 0.5 * (n - 1.0)) * self.size_mm[axis] / n + self.position_mm[axis]
        };
        Rotation::vector(self.rotation_rad).apply([at(column, 0), at(row, 1), self.position_mm[2]])
    }

    /// Directions in which columns and rows grow, laboratory.
    #[must_use]
    pub fn axes(&self) -> [V3; 2] {
        let r = Rotation::vector(self.rotation_rad);
        [r.apply([1.0, 0.0, 0.0]), r.apply([0.0, 1.0, 0.0])]
    }
}

/// The part of the chip that was read out: pixel `(row, column)` of the frames in coordinates of the full chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// First column and row of the full chip.
    pub start: [usize; 2],
    /// Pixels of the chip in one pixel of the frame, along columns and rows.
    pub bin: [usize; 2],
}

impl Region {
    /// The whole chip.
    pub const FULL: Self = Self { start: [0, 0], bin: [1, 1] };

    /// Centre of a frame's pixel, in rows and columns of the full chip.
    #[must_use]
    pub fn centre(&self, row: f64, column: f64) -> (f64, f64) {
        let at = |i: f64, axis: usize| {
            i * self.bin[axis] as f64 + self.start[axis] as f64 + (self.bin[axis] as f64 - 1.0) / 2.0
        };
        (at(row, 1), at(column, 0))
    }
}

/// How the mask stands and moves, in the terms of a configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pose {
    /// The mask's middle in the mask frame, mm: along the beam, above it, sideways.
    pub centre_mm: V3,
    /// `anglex`, `angley`, `anglez`, degrees.
    pub angles_deg: V3,
    /// How far along the scan direction the mask stands in the first frame, mm.
    pub shift_mm: f64,
    /// Scanner step, micrometres a frame.
    pub step_um: f64,
    /// Rotation vector of the scanner, radians.
    pub scanner_rotation_rad: V3,
    /// Axis of the scanner before that rotation, mask frame.
    pub scanner_axis: V3,
}

/// The mask in the laboratory, at the first frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskFrame {
    /// Its middle, mm.
    pub centre: V3,
    /// Along the code; the code coordinate falls.
    pub along: V3,
    /// Its normal.
    pub normal: V3,
    /// Along the bars.
    pub bars: V3,
    /// Movement from frame to frame, mm.
    pub step: V3,
    /// Code coordinate of the middle, µm.
    pub middle_um: f64,
    /// Code coordinate per length on the mask.
    pub stretch: f64,
}

impl MaskFrame {
    /// From a pose; `length_um`: the padded mask's length.
    #[must_use]
    pub fn new(pose: &Pose, length_um: f64, stretch: f64) -> Self {
        let [gamma, alpha, beta] = pose.angles_deg.map(f64::to_radians);
        let axis = |v: V3| {
            let x = Rotation::vector([gamma, 0.0, 0.0]).apply(v);
            let z = Rotation::vector([0.0, 0.0, beta]).apply(x);
            from_mask_frame(Rotation::vector([0.0, alpha, 0.0]).apply(z))
        };
        let direction = from_mask_frame(Rotation::vector(pose.scanner_rotation_rad).apply(pose.scanner_axis));
        Self {
            centre: add(from_mask_frame(pose.centre_mm), scale(direction, pose.shift_mm)),
            along: axis([1.0, 0.0, 0.0]),
            normal: axis([0.0, 1.0, 0.0]),
            bars: axis([0.0, 0.0, 1.0]),
            step: scale(direction, pose.step_um * 1e-3),
            middle_um: length_um / 2.0,
            stretch,
        }
    }

    /// Code coordinate, µm, where the ray from `source` to `pixel` crosses the mask in frame `k`.
    #[must_use]
    pub fn code_um(&self, pixel: V3, source: V3, k: f64) -> f64 {
        let ray = sub(pixel, source);
        let centre = add(self.centre, scale(self.step, k));
        let t = dot(self.normal, sub(centre, source)) / dot(self.normal, ray);
        let hit = add(source, scale(ray, t));
        self.middle_um - 1e3 * self.stretch * dot(sub(hit, centre), self.along)
    }

    /// Depth of code coordinates for a pixel.
    #[must_use]
    pub fn depth_of(&self, pixel: V3, beam: V3) -> DepthOf {
        DepthOf::new(self, pixel, beam)
    }

    /// What a pixel sees of the mask; `source_mm`: the depth that stands for all others.
    #[must_use]
    pub fn view(&self, pixel: V3, beam: V3, source_mm: f64) -> View {
        let source = scale(beam, source_mm);
        let first = self.code_um(pixel, source, 0.0);
        let ray = sub(pixel, source);
        let cosine = dot(ray, self.normal) / norm(ray);
        let slope = dot(ray, self.along) / dot(ray, self.normal);
        View {
            depth: self.depth_of(pixel, beam),
            step_um: self.code_um(pixel, source, 1.0) - first,
            first_um: first,
            slope: slope.abs() * self.stretch,
            path: 1.0 / cosine.abs(),
        }
    }
}

/// What one pixel sees of the mask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Depth of a code coordinate.
    pub depth: DepthOf,
    /// Change of the code coordinate from frame to frame, µm.
    pub step_um: f64,
    /// Code coordinate of the representative source in the first frame, µm.
    pub first_um: f64,
    /// Length of code that a ray crosses per mask thickness.
    pub slope: f64,
    /// Path inside the mask per mask thickness.
    pub path: f64,
}

/// Depth as a function of the code coordinate at the first frame: `(a₀ + a₁ p)/(b₀ + b₁ p)`.
///
/// The plane through the pixel and the bar at `p` meets the incident beam at that depth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DepthOf {
    a: [f64; 2],
    b: [f64; 2],
}

impl DepthOf {
    fn new(mask: &MaskFrame, pixel: V3, beam: V3) -> Self {
        // A point of the bar at p is c + along·(middle − p)/(1e3·stretch); the plane's normal is linear in p.
        let per = 1.0 / (1e3 * mask.stretch);
        let n0 = cross(sub(add(mask.centre, scale(mask.along, mask.middle_um * per)), pixel), mask.bars);
        let n1 = scale(cross(mask.along, mask.bars), -per);
        Self { a: [1e3 * dot(n0, pixel), 1e3 * dot(n1, pixel)], b: [dot(n0, beam), dot(n1, beam)] }
    }

    /// `[a₀, a₁, b₀, b₁]`.
    #[must_use]
    pub fn coefficients(&self) -> [f64; 4] {
        [self.a[0], self.a[1], self.b[0], self.b[1]]
    }

    /// Depth, µm.
    #[must_use]
    pub fn depth_um(&self, code_um: f64) -> f64 {
        (self.a[0] + self.a[1] * code_um) / (self.b[0] + self.b[1] * code_um)
    }

    /// The code coordinate of a depth, µm.
    #[must_use]
    pub fn code_um(&self, depth_um: f64) -> f64 {
        (self.a[0] - self.b[0] * depth_um) / (self.b[1] * depth_um - self.a[1])
    }

    /// Change of the code coordinate per depth, at a depth.
    #[must_use]
    pub fn magnification(&self, depth_um: f64) -> f64 {
        let determinant = self.a[1] * self.b[0] - self.a[0] * self.b[1];
        let w = self.b[1] * depth_um - self.a[1];
        determinant / (w * w)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: V3, b: V3, tolerance: f64) -> bool {
        norm(sub(a, b)) <= tolerance
    }

    fn orange() -> Detector {
        Detector {
            shape: [2048, 2048],
            size_mm: [409.6, 409.6],
            rotation_rad: [-1.20161887, -1.21404493, -1.21852276],
            position_mm: [28.828, 2.715, 512.993],
        }
    }

    fn pose() -> Pose {
        Pose {
            centre_mm: [0.44, 1.6, 0.75],
            angles_deg: [0.09, -0.47, 43.8],
            shift_mm: 0.21,
            step_um: 0.5,
            scanner_rotation_rad: [0.0045, -0.00684, -3.375e-5],
            scanner_axis: [std::f64::consts::FRAC_1_SQRT_2, std::f64::consts::FRAC_1_SQRT_2, 0.0],
        }
    }

    #[test]
    fn a_third_of_a_turn_about_the_diagonal_permutes_the_axes() {
        let angle = 2.0 * std::f64::consts::PI / 3.0 / 3f64.sqrt();
        let r = Rotation::vector([angle; 3]);
        assert!(close(r.apply([1.0, 0.0, 0.0]), [0.0, 1.0, 0.0], 1e-15));
        assert!(close(r.apply([0.0, 0.0, 1.0]), [1.0, 0.0, 0.0], 1e-15));
        assert_eq!(Rotation::vector([0.0; 3]).apply([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]);
    }

    /// The orange detector stands above the sample and looks down: its columns run along the beam.
    #[test]
    fn the_orange_detector_stands_above_the_sample() {
        let middle = orange().point(1023.5, 1023.5);
        assert!(middle[1] > 512.0 && middle[0].abs() < 5.0 && (middle[2] - 28.8).abs() < 5.0, "{middle:?}");
        let [columns, rows] = orange().axes();
        assert!(columns[2] > 0.999 && rows[0] > 0.999, "{columns:?} {rows:?}");
        let binned = Region { start: [100, 200], bin: [2, 4] };
        assert_eq!(binned.centre(0.0, 0.0), (201.5, 100.5));
        assert_eq!(binned.centre(1.0, 1.0), (205.5, 102.5));
    }

    #[test]
    fn depth_and_code_are_inverse_and_agree_with_the_ray() {
        let mask = MaskFrame::new(&pose(), 3480.0, 1.0);
        let beam = unit([0.001, 0.0034, 1.0]);
        for (row, column) in [(0.0, 0.0), (1000.0, 1500.0), (2047.0, 2047.0)] {
            let pixel = orange().point(row, column);
            let view = mask.view(pixel, beam, 0.0);
            for depth in [-150.0, 0.0, 37.5, 190.0] {
                let p = mask.code_um(pixel, scale(beam, depth * 1e-3), 0.0);
                assert!((view.depth.depth_um(p) - depth).abs() < 1e-8);
                assert!((view.depth.code_um(depth) - p).abs() < 1e-8);
                let h = 0.01;
                let slope = (view.depth.code_um(depth + h) - view.depth.code_um(depth - h)) / (2.0 * h);
                assert!((slope - view.depth.magnification(depth)).abs() < 1e-6, "{slope}");
            }
            // The code coordinate is linear in the frame number.
            let at = |k: f64| mask.code_um(pixel, [0.0; 3], k);
            assert!((at(400.0) - at(0.0) - 400.0 * view.step_um).abs() < 1e-9);
            assert!((view.step_um - 0.5).abs() < 0.03, "{}", view.step_um);
            assert!(view.path >= 1.0 && (view.path * view.path - 1.0 - view.slope * view.slope) > -1e-9);
        }
    }

    /// The mask's rotation is R_Y·R_Z·R_X: with only anglez the code runs up along the beam.
    #[test]
    fn the_mask_turns_about_z_first() {
        let p = Pose { angles_deg: [0.0, 0.0, 30.0], shift_mm: 0.0, ..pose() };
        let mask = MaskFrame::new(&p, 100.0, 1.0);
        assert!(close(mask.along, [0.0, 0.5, 0.75f64.sqrt()], 1e-12), "{:?}", mask.along);
        assert!(close(mask.bars, [-1.0, 0.0, 0.0], 1e-12), "{:?}", mask.bars);
        assert!(close(mask.centre, [-0.75, 1.6, 0.44], 1e-12));
        let p = Pose { angles_deg: [0.0, 90.0, 30.0], ..p };
        // Turned about Y afterwards: the part along X (the beam) goes to −Z, which is +x in the laboratory.
        assert!(close(MaskFrame::new(&p, 100.0, 1.0).along, [0.75f64.sqrt(), 0.5, 0.0], 1e-12));
    }
}
