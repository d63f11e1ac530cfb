//! The instrument as it nominally is at 34-ID-E: what `synth` assumes, and what a configuration starts from where it may.
//!
//! A measured point needs its calibrated configuration; nothing about the mask's or detector's pose is assumed for it.

use super::code;
use super::decode::{DecodeSetup, EnergyOptions, FootprintOptions, PositionOptions};
use super::depth::DepthGrid;
use super::geometry::{Detector, Pose};
use super::mask::MaskSpec;
use std::f64::consts::FRAC_1_SQRT_2;

/// Round numbers near those of calibrated configurations.
#[must_use]
pub fn nominal() -> DecodeSetup {
    DecodeSetup {
        detector: Detector {
            shape: [2048, 2048],
            size_mm: [409.6, 409.6],
            rotation_rad: [-1.2015, -1.214, -1.2185],
            position_mm: [28.8, 2.8, 513.0],
        },
        beam: [0.0, 0.0, 1.0],
        source_mm: 0.0,
        mask: MaskSpec {
            bits: code::named("debruijn-2-8").unwrap_or_default(),
            bit_um: [15.0, 7.5],
            reversed: false,
            thickness_um: 3.7,
            resolution_um: 0.5,
            pad_um: 300.0,
            widening_um: 0.0,
            stretch: 1.0,
        },
        pose: Pose {
            centre_mm: [0.45, 1.6, 0.75],
            angles_deg: [0.1, -0.5, 43.8],
            shift_mm: 0.2,
            step_um: 0.5,
            scanner_rotation_rad: [0.0045, -0.0068, 0.0],
            scanner_axis: [FRAC_1_SQRT_2, FRAC_1_SQRT_2, 0.0],
        },
        threshold: 20.0,
        saturation: 65535.0,
        depth: DepthGrid { first_um: -200.0, step_um: 1.0, bins: 401 },
        position: PositionOptions { width_um: 10.0, apart_um: 15.0, margin: 25.0, within_um: None },
        energy: EnergyOptions::Unknown,
        background: None,
        footprint: FootprintOptions { fit: true, window_um: 64.0, degree: 3, knots: 2 },
    }
}
