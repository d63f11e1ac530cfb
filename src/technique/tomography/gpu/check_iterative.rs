//! The projector, its transpose, SIRT and CGLS against their references on the CPU.

use super::check::{Checked, Rig, relative};
use super::constants::put;
use super::iterate::{Iterate, program};
use crate::device::DeviceError;
use crate::technique::tomography::error::TomographyError;
use crate::technique::tomography::filter::Filter;
use crate::technique::tomography::gridding::{Geometry, Padding};
use crate::technique::tomography::iterative::{self, Ending, Method, Stopping};
use crate::technique::tomography::lanes::{Lane, V8};
use crate::technique::tomography::projector::Projector;
use crate::technique::tomography::recipe::Algorithm;
use rand::Rng;

fn refused(e: TomographyError) -> DeviceError {
    DeviceError::Unsupported(e.to_string())
}

impl Rig<'_> {
    /// `A x` and `Aᵀ y` of random `x` and `y`, an axis in the field and one far aside of a wider image.
    pub(super) fn projector(&mut self) -> Checked {
        let columns = self.size.columns;
        let mut angles = self.angles.clone();
        angles.extend([std::f64::consts::FRAC_PI_4, -2.0, 5.5]);
        for (slices, size, centre) in [(2, columns, 0.47 * columns as f64), (8, columns + 9, 0.9 * columns as f64)] {
            let geometry = Geometry { size, centre, ..Geometry::new(columns, &angles) };
            let projector = Projector::new(&geometry).map_err(refused)?;
            let iterate = Iterate::new(&projector, Method::Cgls, Stopping::default(), columns);
            let (mut image, stride) = (projector.image::<V8>(), projector.stride());
            for line in image.pixels_mut().chunks_exact_mut(stride) {
                let values = line[1..=size].iter_mut().flat_map(|v| &mut v.as_mut_slice()[..slices]);
                values.for_each(|v| *v = self.rng.random_range(-1.0..1.0));
            }
            let mut data = vec![V8::ZERO; projector.samples()];
            let values = data.iter_mut().flat_map(|v| &mut v.as_mut_slice()[..slices]);
            values.for_each(|v| *v = self.rng.random_range(-1.0..1.0));

            // On the device images have an empty line before and behind.
            let flat =
                |values: &[V8]| values.iter().flat_map(|v| v.as_slice()[..slices].to_vec()).collect::<Vec<f32>>();
            let (x, y) = (flat(image.pixels()), flat(&data));
            let mut surrounded = vec![0.0; stride * slices];
            surrounded.extend(&x);
            surrounded.extend(vec![0.0; stride * slices]);
            let rays = put(self.gpu, &self.stream, iterate.rays())?;
            let (on_x, on_y) = (put(self.gpu, &self.stream, &surrounded)?, put(self.gpu, &self.stream, &y)?);
            let (forward, back) = (self.gpu.alloc(4 * y.len())?, self.gpu.alloc(4 * surrounded.len())?);
            self.stream.zero(&back, 4 * surrounded.len())?;
            for launch in [
                iterate.project(on_x.address(0), forward.address(0), 0, &rays),
                iterate.spread(on_y.address(0), back.address(0), &rays),
            ] {
                let function = self.gpu.function(&program(slices), launch.name)?;
                self.stream.launch(function, launch.shape, &launch.arguments)?;
            }
            let ax = self.get::<f32>(&forward, y.len())?;
            let back = self.get::<f32>(&back, surrounded.len())?;
            let ay = &back[stride * slices..][..x.len()];

            let mut projected = vec![V8::ZERO; projector.samples()];
            projector.project(&mut image, &mut projected);
            // The same sums in the same order: equal where the CPU has fused multiply-adds, and elsewhere but for as many
            // roundings as there are terms, 6e-8 √1000.
            let title = format!("{slices} slices, {columns} columns, image {size}: relative L2");
            self.find(format!("project, {title}"), relative(&ax, &flat(&projected)), 2e-6);
            projector.spread(&data, &mut image);
            self.find(format!("spread, {title}"), relative(ay, &flat(image.pixels())), 2e-6);

            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let apart = (dot(&ax, &y) - dot(&x, ay)).abs() / (dot(&ax, &ax) * dot(&y, &y)).sqrt();
            // The weights are the same; only sums are rounded. A weight in another place would show as 1e-2.
            self.find(format!("spread is project's transpose, {title}"), apart, 1e-6);
        }
        Ok(())
    }

    /// Every ending: so many iterations, no more change, fitted to the noise; with and without negative values.
    pub(super) fn iterations(&mut self) -> Checked {
        let columns = self.size.columns;
        let centre = columns as f64 / 2.0 - 1.7;
        // Few angles: references on processors are slow, and conjugate gradients take the more steps.
        let every = self.angles.clone();
        self.angles = every.iter().copied().step_by(3).collect();
        let mut sinograms = self.sinograms(centre);
        for (r, mut sinogram) in sinograms.outer_iter_mut().enumerate() {
            // Rows of different sizes stop at different times.
            sinogram.mapv_inplace(|v| v * (1.0 + r as f32) + self.rng.random_range(-0.5..0.5_f32));
        }
        let usual = Stopping { iterations: 12, tolerance: 0.0, noise: 0.0, nonnegative: true };
        let angles = self.angles.clone();
        let geometry = Geometry { centre, ..Geometry::new(columns, &angles) };
        for (algorithm, method, stopping) in [
            (Algorithm::Sirt, Method::Sirt, Stopping { iterations: 5, ..usual }),
            (Algorithm::Sirt, Method::Sirt, Stopping { tolerance: 0.15, nonnegative: false, ..usual }),
            (Algorithm::Cgls, Method::Cgls, usual),
            (Algorithm::Cgls, Method::Cgls, Stopping { noise: 2.0, nonnegative: false, ..usual }),
        ] {
            let mut setup = self.setup(algorithm, Filter::Ramp, Padding::Zero, centre)?;
            setup.radius2 = -1.0;
            let projector = Projector::new(&geometry).map_err(refused)?;
            setup.iterate = Some(Iterate::new(&projector, method, stopping, columns));
            let mut endings: Vec<Ending> = Vec::new();
            let (_, got, _) = self.chunk(&setup, None, Some(&sinograms), |chunk| {
                let iterate = setup.iterate.as_ref().ok_or_else(|| DeviceError::Unsupported("no iteration".into()))?;
                endings = chunk.iterate(iterate)?;
                Ok(())
            })?;
            let (want, ends) =
                iterative::reconstruct(sinograms.view(), &geometry, method, &stopping).map_err(refused)?;
            let (tolerance, noise, nonnegative) = (stopping.tolerance, stopping.noise, stopping.nonnegative);
            let title = format!("{method:?}, tolerance {tolerance}, noise {noise}, non-negative {nonnegative}");
            // Equal where the CPU has fused multiply-adds. Elsewhere they begin as those of the projector; conjugate gradients
            // end before the iterations that magnify them, or after.
            self.find(format!("{title}: relative L2"), relative(&got, &want), 1e-5);
            let other = endings.iter().zip(&ends).filter(|(a, b)| a.iterations != b.iterations).count();
            let missing = ends.len().abs_diff(endings.len());
            self.find(format!("{title}: rows that stop elsewhere"), (other + missing) as f64, 0.0);
        }
        self.angles = every;
        Ok(())
    }
}
