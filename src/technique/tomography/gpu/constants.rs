//! What all chunks of a slab share, on the device: flats, darks, directions, gains.
//!
//! The layouts of `Ray` are those of `gridding.cu`, `backproject.cu` and `iterative.cu`.

use super::iterate::Weights;
use super::{Setup, stripe_steps};
use crate::device::gpu::{Buffer, Plain, Stream};
use crate::device::{DeviceError, Gpu};
use crate::technique::tomography::compute::UPSAMPLING;
use crate::technique::tomography::gridding::Ray;
use crate::technique::tomography::iterative::Method;
use crate::technique::tomography::normalize;
use crate::technique::tomography::recipe::Algorithm;

/// Buckets of directions over half a turn, so that a cell finds its rays without searching.
pub(super) const BUCKETS: usize = 4096;

pub(super) struct Constants {
    pub dark: Buffer,
    pub flats: Buffer,
    pub low: Buffer,
    pub high: Buffer,
    pub part: Buffer,
    pub rays: Buffer,
    pub gains: Buffer,
    pub deapodise: Buffer,
    pub first_ray: Buffer,
    pub stripe_factors: Buffer,
    /// Of an axis aside, a column each.
    pub blend: Option<Buffer>,
    /// SIRT's.
    pub weights: Option<Weights>,
}

/// Copies values to the device and waits.
pub(crate) fn put<T: Plain>(gpu: &Gpu, stream: &Stream, values: &[T]) -> Result<Buffer, DeviceError> {
    let buffer = gpu.alloc(size_of_val(values))?;
    let mut staged = gpu.pinned(size_of_val(values))?;
    staged.as_mut::<T>(values.len()).copy_from_slice(values);
    stream.upload::<T>(&staged, values.len(), &buffer)?;
    stream.synchronize()?;
    Ok(buffer)
}

impl Constants {
    pub fn upload(gpu: &Gpu, stream: &Stream, setup: &Setup) -> Result<Self, DeviceError> {
        let plan = &setup.plan;
        let flats: Vec<f32> = setup.flats.iter().flat_map(|f| f.mean.iter().copied()).collect();
        let dark: Vec<f32> = setup.dark.iter().copied().collect();
        let (mut low, mut high, mut part) = (Vec::new(), Vec::new(), Vec::new());
        for angle in 0..plan.angles {
            let (before, after, between) = normalize::bracket(&setup.flats, angle as f64);
            low.push(before as i32);
            high.push(after as i32);
            part.push(between);
        }
        let (rays, first) = match setup.algorithm {
            Algorithm::Sirt | Algorithm::Cgls => {
                (setup.iterate.as_ref().map_or(Vec::new(), |i| i.rays().to_vec()), vec![0])
            }
            Algorithm::Direct => (plan.rays.iter().flat_map(direct_ray).collect(), vec![0]),
            Algorithm::Gridding => {
                let step = plan.grid as f64 / plan.padded as f64;
                let words: Vec<u32> = plan.rays.iter().flat_map(|r| gridding_ray(r, step)).collect();
                (words, first_rays(&plan.rays, BUCKETS))
            }
        };
        let rays = put(gpu, stream, &rays)?;
        let sirt = setup.iterate.as_ref().filter(|i| i.method == Method::Sirt);
        Ok(Self {
            weights: sirt.map(|i| Weights::new(gpu, stream, i, &rays)).transpose()?,
            blend: setup.blend.as_ref().map(|w| put(gpu, stream, w)).transpose()?,
            dark: put(gpu, stream, &dark)?,
            flats: put(gpu, stream, &flats)?,
            low: put(gpu, stream, &low)?,
            high: put(gpu, stream, &high)?,
            part: put(gpu, stream, &part)?,
            rays,
            gains: put(gpu, stream, &plan.gains)?,
            deapodise: put(gpu, stream, &plan.deapodise)?,
            first_ray: put(gpu, stream, &first)?,
            stripe_factors: put(gpu, stream, &stripe_steps::factors(setup.stripe.as_ref(), plan.columns))?,
        })
    }
}

fn words(v: f64) -> [u32; 2] {
    [v.to_bits() as u32, (v.to_bits() >> 32) as u32]
}

/// `Ray` of gridding.cu; `step` grid cells per frequency.
pub(super) fn gridding_ray(ray: &Ray, step: f64) -> [u32; 10] {
    let split = |v: f64| (v as f32, (v - f64::from(v as f32)) as f32);
    let ((dx, dx_low), (dy, dy_low)) = (split(step * ray.cos), split(-step * ray.sin));
    // A ray along an axis has no slope across it; a huge inverse keeps its sign and the sums finite.
    let inverse = |d: f32| if d.abs() < 1e-20 { 1e20_f32.copysign(d) } else { 1.0 / d };
    let [turn_low, turn_high] = words(ray.phase / std::f64::consts::TAU);
    let floats = [dx, dx_low, dy, dy_low, inverse(dx), inverse(dy), ray.weight].map(f32::to_bits);
    let [a, b, c, d, e, f, g] = floats;
    [turn_low, turn_high, a, b, c, d, e, f, g, ray.index as u32]
}

/// `Ray` of backproject.cu.
pub(super) fn direct_ray(ray: &Ray) -> [u32; 6] {
    let (cos, sin) = (words(ray.cos * UPSAMPLING as f64), words(ray.sin * UPSAMPLING as f64));
    [cos[0], cos[1], sin[0], sin[1], ray.weight.to_bits(), ray.index as u32]
}

/// The first ray at or behind direction `b π/buckets`, for `b = 0 … buckets`; rays are ordered by direction modulo π.
pub(super) fn first_rays(rays: &[Ray], buckets: usize) -> Vec<i32> {
    // As in `quadrature`: a direction a hair below π is that of 0.
    let reduced = |r: &Ray| {
        let d = r.sin.atan2(r.cos).rem_euclid(std::f64::consts::PI);
        if std::f64::consts::PI - d < 1e-12 { 0.0 } else { d }
    };
    (0..=buckets)
        .map(|b| {
            let limit = b as f64 * std::f64::consts::PI / buckets as f64;
            rays.partition_point(|r| reduced(r) < limit) as i32
        })
        .collect()
}
