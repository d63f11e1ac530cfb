//! How much of a device a chunk takes, and how many rows fit.

use super::{Setup, iterate, stripe_steps};
use crate::device::{DeviceError, Gpu};
use crate::technique::tomography::recipe::Algorithm;
use crate::technique::tomography::stripes::Stripes;
use cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as SHARED_MEMORY;

/// Most pairs of rows done together: more would not fit the registers of `gather`.
const MOST_PAIRS: usize = 8;
/// The direct method keeps eight sums per pair and interpolates from two places.
const MOST_PAIRS_DIRECT: usize = 4;
/// Share of the free memory that is planned for; the rest is for what others take meanwhile, and for rounding.
pub(super) const PLANNED: f64 = 0.9;
/// Fine lines held at once by the direct method, bytes.
const FINE_LINES: usize = 1 << 30;
/// Widest median: the local memory of all threads that run at once is a gigabyte with twice that.
const WIDEST: usize = 511;
/// Angles from which roughness is summed in one piece.
pub(super) const STRETCH: usize = 128;

/// Bytes of a chunk, by buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    /// Pairs of rows.
    pub pairs: usize,
    /// Most rows held in a chunk, the zinger window's included.
    pub held: usize,
    /// Counts of one slot.
    pub raw: usize,
    /// Images of one slot.
    pub images: usize,
    /// Line integrals.
    pub sinograms: usize,
    /// Whatever stripe removal and reconstruction need in turn.
    pub arena: usize,
    /// Rays whose fine lines are held at once by the direct method.
    pub rays: usize,
}

impl Needs {
    /// For `pairs` pairs of rows, of a slab with this setup.
    pub fn of(setup: &Setup, pairs: usize) -> Self {
        let plan = &setup.plan;
        let (angles, columns, size) = (plan.angles, plan.columns, setup.size());
        let rows = 2 * pairs;
        let held = (rows + 2 * setup.reach()).min(setup.held);
        let sinograms = 4 * rows * angles * columns;
        let stripes = setup.stripe.map_or(0, |method| stripe_steps::bytes(&method, rows, angles, columns));
        let lines = 8 * pairs * angles * plan.padded;
        let mut rays = 0;
        let reconstruction = match setup.algorithm {
            Algorithm::Direct => {
                let ray = 2 * 8 * pairs * setup.fine();
                rays = (FINE_LINES / ray).clamp(1, angles);
                lines + rays * ray
            }
            Algorithm::Sirt | Algorithm::Cgls => iterate::bytes(setup, pairs),
            Algorithm::Gridding => {
                let grids = 8 * pairs * plan.grid * plan.grid;
                8 * pairs * angles * (plan.padded + 1) + lines.max(grids)
            }
        };
        Self {
            pairs,
            held,
            raw: 4 * held * angles * columns,
            images: 4 * rows * size * size,
            sinograms,
            arena: stripes.max(reconstruction) + 4096,
            rays,
        }
    }

    /// Fits into memory that was made for `other`.
    pub fn within(&self, other: &Self) -> bool {
        let of = |n: &Self| [n.held, n.raw, n.images, n.sinograms, n.arena];
        self.pairs == other.pairs && self.rays == other.rays && of(self).iter().zip(of(other)).all(|(a, b)| *a <= b)
    }

    /// Everything: two slots, decoded counts, line integrals, arena, and as much again as a grid for cuFFT's own needs.
    pub fn total(&self) -> usize {
        3 * self.raw + 2 * self.images + self.sinograms + self.arena + self.arena / 2
    }
}

/// The most pairs that a slab can use.
pub(super) fn most(setup: &Setup) -> usize {
    let most = if setup.algorithm == Algorithm::Direct { MOST_PAIRS_DIRECT } else { MOST_PAIRS };
    setup.rows.div_ceil(2).next_power_of_two().min(most)
}

/// The most pairs that a slab can use and the free memory allows; 1 at the least.
pub(super) fn pairs(gpu: &Gpu, setup: &Setup) -> Result<usize, DeviceError> {
    let mut pairs = most(setup);
    let planned = (gpu.memory()?.0 as f64 * PLANNED) as usize;
    while pairs > 1 && Needs::of(setup, pairs).total() > planned {
        pairs /= 2;
    }
    Ok(pairs)
}

/// Why this geometry is not for the kernels, if so.
pub(super) fn too_large(gpu: &Gpu, setup: &Setup) -> Result<Option<String>, DeviceError> {
    let shared = usize::try_from(gpu.attribute(SHARED_MEMORY)?).unwrap_or(0);
    let (angles, columns) = (setup.plan.angles, setup.plan.columns);
    let mut limits = vec![(angles <= 65_535, "more than 65535 angles"), (4 * columns <= shared, "rows too wide")];
    if let Some(Stripes::Vo(stripe)) = &setup.stripe {
        limits.push((
            angles <= 16_384 && stripe_steps::sort_bytes(angles) <= shared,
            "too many angles for stripe removal",
        ));
        limits.push((8 * columns.next_power_of_two() <= shared, "rows too wide for stripe removal"));
        limits.push((stripe.large.max(stripe.small) <= WIDEST, "a stripe window wider than 511"));
    }
    Ok(limits.into_iter().find(|(fits, _)| !fits).map(|(_, why)| format!("{why}: done on the CPU")))
}
