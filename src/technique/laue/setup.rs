//! Defaults of the instrument: 34-ID-E as its calibrated configuration has it.
#[cfg(test)]
pub(crate) mod tests {
    use crate::technique::laue::code;
    use crate::technique::laue::decode::*;
    use crate::technique::laue::depth::DepthGrid;
    use crate::technique::laue::geometry::{Detector, Pose};
    use crate::technique::laue::mask::MaskSpec;

    pub(crate) fn setup() -> DecodeSetup {
        DecodeSetup {
            detector: Detector {
                shape: [2048, 2048],
                size_mm: [409.6, 409.6],
                rotation_rad: [-1.20161887, -1.21404493, -1.21852276],
                position_mm: [28.828, 2.715, 512.993],
            },
            beam: [0.0, 0.0, 1.0],
            source_mm: 0.0,
            mask: MaskSpec {
                bits: code::named("debruijn-2-8").unwrap(),
                bit_um: [15.0, 7.5],
                reversed: false,
                thickness_um: 3.7,
                resolution_um: 0.5,
                pad_um: 300.0,
                widening_um: 0.0,
                stretch: 1.0,
            },
            pose: Pose {
                centre_mm: [0.44223633, 1.60844727, 0.75195312],
                angles_deg: [0.09179688, -0.47070312, 43.84902344],
                shift_mm: 0.21,
                step_um: 0.5,
                scanner_rotation_rad: [0.0045, -0.00684, -3.375e-5],
                scanner_axis: [0.70710678118, 0.70710678118, 0.0],
            },
            threshold: 20.0,
            saturation: 65535.0,
            depth: DepthGrid { first_um: -200.0, step_um: 1.0, bins: 401 },
            position: PositionOptions { width_um: 10.0, apart_um: 15.0, margin: 25.0, within_um: None },
            energy: EnergyOptions::Unknown,
            footprint: FootprintOptions { fit: true, window_um: 64.0, degree: 3, knots: 2 },
        }
    }
}
