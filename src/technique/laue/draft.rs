//! A configuration under construction: what a file or a recipe says, all of it optional, each value in the unit of its name.
//!
//! Layers are laid over each other (geometry file, configuration file, recipe: later wins), then made whole and checked by
//! [`super::recipe`].

use super::geometry::V3;
use super::wire::Edge;
use serde::{Deserialize, Serialize};

/// Declares a section of optional values that can be laid over another.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $t:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: Option<$t>,)* }
        impl $name {
            /// Takes from `other` what it says.
            pub fn lay(&mut self, other: Self) {
                $(if other.$field.is_some() { self.$field = other.$field; })*
            }
            /// The names of its values.
            pub const KEYS: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    };
}

section!(
    /// The mask.
    MaskDraft {
        /// Name of a known sequence, or a `.npy` file.
        code: String,
        /// Widths of a gap and of a bar.
        bits_um: [f64; 2],
        /// Mounted the other way round.
        reversed: bool,
        /// Of the gold.
        thickness_um: f64,
        /// Sampling of the mask.
        resolution_um: f64,
        /// Open mask on either side of the code.
        pad_um: f64,
        /// How much wider bars are than designed.
        widening_um: f64,
        /// Code coordinate per length on the mask.
        stretch: f64,
        /// Middle, in the mask frame: along the beam, above it, sideways.
        center_mm: V3,
        /// anglex, angley, anglez.
        angles_deg: V3,
        /// Along the scan direction in the first frame.
        shift_mm: f64,
    }
);
section!(
    /// The scanner that moves the mask.
    ScannerDraft {
        /// A frame's step.
        step_um: f64,
        /// Rotation vector.
        rotation_rad: V3,
        /// Axis before that rotation, mask frame.
        axis: V3,
    }
);
section!(
    /// The detector.
    DetectorDraft {
        /// Columns and rows of the full chip.
        shape: [usize; 2],
        /// Width and height of the full chip.
        size_mm: [f64; 2],
        /// Rotation vector.
        rotation_rad: V3,
        /// Translation before the rotation.
        position_mm: V3,
    }
);
section!(
    /// The incident beam.
    BeamDraft {
        /// Its direction, laboratory.
        direction: V3,
        /// Depth that stands for all others where the scan's scale is found.
        source_mm: f64,
    }
);
section!(
    /// Depth bins.
    DepthDraft {
        /// Middle of the first bin.
        first_um: f64,
        /// Middle of the last bin.
        last_um: f64,
        /// Width of a bin.
        step_um: f64,
    }
);
section!(
    /// How positions are found.
    PositionDraft {
        /// Expected extent of a source along the beam.
        width_um: f64,
        /// Nearer positions are not rivals.
        apart_um: f64,
        /// Least difference of χ² to the best rival.
        margin: f64,
        /// Only positions whose depth is within the bins or so far outside them.
        within_um: f64,
    }
);
section!(
    /// How footprints are found.
    FootprintDraft {
        /// Fit them.
        fit: bool,
        /// Code around the position that may contribute.
        window_um: f64,
        /// Degree of the splines.
        degree: usize,
        /// Distance of knots, samples of the mask.
        knots: usize,
    }
);
section!(
    /// What is known of the photon energy.
    EnergyDraft {
        /// First, the end that is not reached, step.
        fit_kev: [f64; 3],
        /// Exactly this.
        fixed_kev: f64,
        /// Counts of a frame that do not come past the mask.
        background_counts: f64,
    }
);
section!(
    /// A wire.
    WireDraft {
        /// Its diameter.
        diameter_um: f64,
        /// Direction of its axis, positioner's frame.
        axis: V3,
        /// Rotation vector of the positioner.
        rotation_rad: V3,
        /// Readings at which the wire stands in the origin.
        origin_um: V3,
        /// Which edges count.
        edge: Edge,
    }
);
section!(
    /// What calibration searches.
    CalibrateDraft {
        /// Depth of the film, when known.
        film_um: f64,
        /// Spots whose pixels are used.
        spots: usize,
        /// How far the mask's middle may move.
        range_mm: f64,
        /// How far the mask may turn.
        range_deg: f64,
    }
);

/// Everything a configuration may say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Draft {
    /// First frame, the one behind the last, step.
    pub frames: Option<[usize; 3]>,
    /// First row, the one behind the last, first column, the one behind the last.
    pub region: Option<[usize; 4]>,
    /// Least mean counts of a pixel.
    pub threshold: Option<f64>,
    /// Counts that are saturated.
    pub saturation: Option<f64>,
    /// Where frames lie in their file.
    pub dataset: Option<String>,
    /// The mask.
    pub mask: MaskDraft,
    /// Its scanner.
    pub scanner: ScannerDraft,
    /// The detector.
    pub detector: DetectorDraft,
    /// The incident beam.
    pub beam: BeamDraft,
    /// Depth bins.
    pub depth: DepthDraft,
    /// Positions.
    pub position: PositionDraft,
    /// Footprints.
    pub footprint: FootprintDraft,
    /// Energies; `Some(None)`: not to be found.
    pub energy: Option<Option<EnergyDraft>>,
    /// The wire.
    pub wire: WireDraft,
    /// What was read and has no effect, by name.
    pub notes: Vec<String>,
}

impl Draft {
    /// Lays `other` over this.
    pub fn lay(&mut self, other: Self) {
        fn over<T>(under: &mut Option<T>, other: Option<T>) {
            if other.is_some() {
                *under = other;
            }
        }
        over(&mut self.frames, other.frames);
        over(&mut self.region, other.region);
        over(&mut self.threshold, other.threshold);
        over(&mut self.saturation, other.saturation);
        over(&mut self.dataset, other.dataset);
        over(&mut self.energy, other.energy);
        self.mask.lay(other.mask);
        self.scanner.lay(other.scanner);
        self.detector.lay(other.detector);
        self.beam.lay(other.beam);
        self.depth.lay(other.depth);
        self.position.lay(other.position);
        self.footprint.lay(other.footprint);
        self.wire.lay(other.wire);
        self.notes.extend(other.notes);
    }
}
