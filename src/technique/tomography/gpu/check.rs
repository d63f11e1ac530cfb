//! Kernels against their references on the CPU, and whole reconstructions against each other, on fresh random inputs.
//!
//! One code for two places: tests run it on the emulated device in small sizes, `beampilot bench gpu` on a card in large
//! ones. Tolerances are derived beside each check; a comparison with anything that is not finite fails.

use super::Setup;
pub use super::check_chains::chains;
pub use super::check_frames::plain_frames;
use super::constants::{Constants, put};
use super::memory::Needs;
use super::steps::Chunk;
use super::stripe_steps::{median_program, rank_program, sort_shape};
use crate::device::gpu::{Arg, Plain, Shape, Stream};
use crate::device::kernels::{File, Program};
use crate::device::{DeviceError, Gpu};
use crate::technique::tomography::compute::UPSAMPLING;
use crate::technique::tomography::filter::Filter;
use crate::technique::tomography::gridding::{Geometry, Padding, Plan};
use crate::technique::tomography::normalize::{self, Flat};
use crate::technique::tomography::recipe::Algorithm;
use crate::technique::tomography::stripe::{self, Stripe};
use crate::technique::tomography::stripes::Stripes;
use crate::technique::tomography::titarenko::Titarenko;
use crate::technique::tomography::wavelet::Wavelet;
use crate::technique::tomography::zinger::{self, Zinger};
use crate::technique::tomography::{direct, mask, median, phantom};
use ndarray::{Array2, Array3, Axis};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How large the inputs are.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Projections.
    pub angles: usize,
    /// Detector rows.
    pub rows: usize,
    /// Detector columns.
    pub columns: usize,
}

/// One comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Which kernel or chain.
    pub what: String,
    /// Its distance from the reference.
    pub error: f64,
    /// How large it may be.
    pub allowed: f64,
}

impl Finding {
    /// Within what is allowed; NaN is not.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.error <= self.allowed
    }
}

/// `‖got − want‖ / ‖want‖`; infinite when anything is not finite.
pub(crate) fn relative<'a>(got: impl IntoIterator<Item = &'a f32>, want: impl IntoIterator<Item = &'a f32>) -> f64 {
    let (mut above, mut below) = (0.0, 0.0);
    let mut want = want.into_iter();
    for &g in got {
        let Some(&w) = want.next() else { return f64::INFINITY };
        let (g, w) = (f64::from(g), f64::from(w));
        if !g.is_finite() || !w.is_finite() {
            return f64::INFINITY;
        }
        above += (g - w) * (g - w);
        below += w * w;
    }
    if want.next().is_some() || below == 0.0 { f64::INFINITY } else { (above / below).sqrt() }
}

/// Largest difference; infinite when anything is not finite or lengths differ.
pub(crate) fn largest<'a>(got: impl IntoIterator<Item = &'a f32>, want: impl IntoIterator<Item = &'a f32>) -> f64 {
    let (mut got, mut want) = (got.into_iter(), want.into_iter());
    let mut most = 0.0_f64;
    loop {
        match (got.next(), want.next()) {
            (None, None) => return most,
            (Some(g), Some(w)) if g.is_finite() && w.is_finite() => most = most.max(f64::from((g - w).abs())),
            _ => return f64::INFINITY,
        }
    }
}

/// Elements that differ in their bits.
pub(crate) fn differing<T: PartialEq>(got: &[T], want: &[T]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    got.iter().zip(want).filter(|(a, b)| a != b).count() as f64
}

/// Stripe windows of the sizes that `beampilot bench gpu` checks: an eighth and a 24th of 333, 512, 192 and 48 columns, odd,
/// as [`Rig::stripes`] and [`super::fitted`] make them.
pub(super) const WINDOWS: [usize; 13] = [3, 5, 7, 9, 13, 15, 21, 23, 41, 43, 61, 63, 65];

pub(super) struct Rig<'a> {
    pub gpu: &'a Gpu,
    pub stream: Stream,
    pub size: Size,
    pub rng: ChaCha8Rng,
    pub angles: Vec<f64>,
    found: Vec<Finding>,
}

pub(super) type Checked = Result<(), DeviceError>;
/// Line integrals, images, counters.
pub(super) type Results = (Vec<f32>, Vec<f32>, Vec<u64>);

/// Every kernel against its reference.
///
/// # Errors
/// The device fails.
pub fn kernels(gpu: &Gpu, size: Size, seed: u64) -> Result<Vec<Finding>, DeviceError> {
    gpu.bind()?;
    let angles = (0..size.angles).map(|i| i as f64 * std::f64::consts::PI / size.angles as f64).collect();
    let rng = ChaCha8Rng::seed_from_u64(seed);
    let mut rig = Rig { gpu, stream: gpu.stream()?, size, rng, angles, found: Vec::new() };
    rig.storage()?;
    rig.line_integrals()?;
    rig.zinger()?;
    rig.median()?;
    rig.rank()?;
    rig.stripes()?;
    rig.gridding()?;
    rig.direct()?;
    rig.projector()?;
    rig.iterations()?;
    rig.paganin()?;
    rig.frames()?;
    Ok(rig.found)
}

impl Rig<'_> {
    pub fn find(&mut self, what: impl Into<String>, error: f64, allowed: f64) {
        self.found.push(Finding { what: what.into(), error, allowed });
    }

    pub fn get<T: Plain>(&self, address: &crate::device::gpu::Buffer, count: usize) -> Result<Vec<T>, DeviceError> {
        let mut host = self.gpu.pinned(count * size_of::<T>())?;
        self.stream.download::<T>(address, &mut host, count)?;
        self.stream.synchronize()?;
        Ok(host.as_ref::<T>(count).to_vec())
    }

    fn launch(&self, file: File, name: &'static str, shape: Shape, arguments: &[Arg]) -> Checked {
        self.stream.launch(self.gpu.function(&Program::of(file), name)?, shape, arguments)
    }

    pub fn setup(
        &self,
        algorithm: Algorithm,
        filter: Filter,
        padding: Padding,
        centre: f64,
    ) -> Result<Setup, DeviceError> {
        let Size { rows, columns, .. } = self.size;
        let geometry = Geometry { centre, filter, padding, ..Geometry::new(columns, &self.angles) };
        let plan = Plan::new(&geometry).map_err(|e| DeviceError::Unsupported(e.to_string()))?;
        Ok(Setup {
            plan,
            algorithm,
            iterate: None,
            blend: None,
            centre,
            held: rows,
            before: 0,
            rows,
            zinger: None,
            stripe: None,
            logarithm: true,
            floor: 1e-6,
            radius2: -1.0,
            factor: 1.0,
            dark: Array2::zeros((rows, columns)),
            flats: vec![Flat { at: 0.0, mean: Array2::ones((rows, columns)) }],
        })
    }

    /// Puts `counts` or `sinograms` on the device as one chunk, runs `work`, and returns line integrals, images, counters.
    pub fn chunk(
        &self,
        setup: &Setup,
        counts: Option<&Array3<f32>>,
        sinograms: Option<&Array3<f32>>,
        work: impl FnOnce(&Chunk<'_>) -> Checked,
    ) -> Result<Results, DeviceError> {
        let (gpu, plan) = (self.gpu, &setup.plan);
        let needs = Needs::of(setup, setup.rows.div_ceil(2).next_power_of_two().min(4));
        let flat = |a: Option<&Array3<f32>>| a.map(|a| a.iter().copied().collect::<Vec<_>>());
        let all = setup.rows * plan.angles * plan.columns;
        let counts = match flat(counts) {
            Some(values) => put(gpu, &self.stream, &values)?,
            None => gpu.alloc(needs.raw)?,
        };
        let sinograms = match flat(sinograms) {
            Some(values) => put(gpu, &self.stream, &values)?,
            None => gpu.alloc(4 * all)?,
        };
        let constants = Constants::upload(gpu, &self.stream, setup)?;
        let (arena, images) = (gpu.alloc(needs.arena)?, gpu.alloc(needs.images)?);
        let (flagged, counters) = (gpu.alloc(plan.angles * setup.held)?, gpu.alloc(24)?);
        self.stream.zero(&counters, 24)?;
        self.stream.zero(&images, needs.images)?;
        work(&Chunk {
            gpu,
            stream: &self.stream,
            setup,
            constants: &constants,
            needs,
            counts: &counts,
            first_held: 0,
            held: setup.held,
            before: setup.before,
            rows: setup.rows,
            sinograms: &sinograms,
            arena: &arena,
            flagged: &flagged,
            counters: &counters,
            images: &images,
            probe: None,
        })?;
        let size = setup.size();
        Ok((self.get(&sinograms, all)?, self.get(&images, setup.rows * size * size)?, self.get(&counters, 3)?))
    }

    /// Half precision and two-byte counts: exact.
    fn storage(&mut self) -> Checked {
        let mut values: Vec<f32> = (0..4000).map(|_| f32::from_bits(self.rng.random())).collect();
        values.extend([0.0, -0.0, 1.0, 65504.0, 65519.9, 65520.0, 1e-8, 5.96e-8, 2.98e-8, 2.99e-8, f32::INFINITY]);
        values.extend((0..4000).map(|_| self.rng.random_range(-2.0..2.0_f32)));
        values.retain(|v| !v.is_nan());
        let n = values.len();
        let (input, halves, back) =
            (put(self.gpu, &self.stream, &values)?, self.gpu.alloc(2 * n)?, self.gpu.alloc(4 * n)?);
        let shape = Shape::line(3, 128);
        self.launch(File::Half, "floats_to_halves", shape, &[(&input).into(), (&halves).into(), n.into()])?;
        self.launch(File::Half, "halves_to_floats", shape, &[(&halves).into(), (&back).into(), n.into()])?;
        let all: Vec<(f64, u16)> = (0..0x7c00_u16).map(|h| (half_value(h), h)).collect();
        let want: Vec<u16> = values.iter().map(|&v| nearest_half(v, &all)).collect();
        let got = self.get::<u16>(&halves, n)?;
        self.find("floats_to_halves: wrong values", differing(&got, &want), 0.0);
        let want: Vec<u32> = got.iter().map(|&h| half_float(h).to_bits()).collect();
        let back: Vec<u32> = self.get::<f32>(&back, n)?.into_iter().map(f32::to_bits).collect();
        self.find("halves_to_floats: wrong values", differing(&back, &want), 0.0);

        let counts: Vec<u16> = (0..5000).map(|_| self.rng.random()).collect();
        let (input, out) = (put(self.gpu, &self.stream, &counts)?, self.gpu.alloc(4 * counts.len())?);
        self.launch(
            File::Normalise,
            "counts_to_floats",
            shape,
            &[(&input).into(), (&out).into(), counts.len().into()],
        )?;
        let want: Vec<f32> = counts.iter().map(|&c| f32::from(c)).collect();
        self.find("counts_to_floats: wrong values", differing(&self.get::<f32>(&out, counts.len())?, &want), 0.0);
        Ok(())
    }

    /// Counts with noise, dead pixels and what is not a number; darks; two flats.
    fn counts(&mut self) -> (Array3<f32>, Array2<f32>, Vec<Flat>) {
        let Size { angles, rows, columns } = self.size;
        let rng = &mut self.rng;
        let dark = Array2::from_shape_fn((rows, columns), |_| rng.random_range(90.0..110.0_f32));
        let mut flat = |at: f64, level: f32| {
            let mean = Array2::from_shape_fn((rows, columns), |_| level + rng.random_range(-200.0..200.0_f32));
            Flat { at, mean }
        };
        let mut flats = vec![flat(0.0, 4000.0), flat((angles - 1) as f64, 3500.0)];
        flats[0].mean[[rows / 2, columns / 3]] = 0.0;
        flats[1].mean[[rows / 2, columns / 3]] = 0.0;
        let bad = [f32::NAN, f32::INFINITY, -5000.0, 1e30];
        let data = Array3::from_shape_fn((angles, rows, columns), |_| {
            if rng.random_bool(0.01) { bad[rng.random_range(0..bad.len())] } else { rng.random_range(150.0..5000.0) }
        });
        (data, dark, flats)
    }

    fn line_integrals(&mut self) -> Checked {
        let (mut data, dark, flats) = self.counts();
        let mut setup = self.setup(Algorithm::Gridding, Filter::Ramp, Padding::Zero, self.size.columns as f64 / 2.0)?;
        (setup.dark, setup.flats) = (dark.clone(), flats.clone());
        let (got, _, counted) = self.chunk(&setup, Some(&data), None, |chunk| chunk.line_integrals())?;
        let refused = |e: crate::technique::tomography::error::TomographyError| DeviceError::Unsupported(e.to_string());
        let repairs = normalize::transmission(data.view_mut(), dark.view(), &flats, 0).map_err(refused)?;
        let floored = normalize::minus_log(data.view_mut(), setup.floor).map_err(refused)?;
        data.swap_axes(0, 1);
        // A quotient of differences: five roundings of 6e-8 relative to beams that cancel to no less than a tenth of their
        // parts, and two units of the logarithm at values up to 70: 3e-6 + 8e-6.
        self.find("transmission, repair, minus_log: largest difference", largest(&got, &data), 1.1e-5);
        let want = [repairs.interpolated, 0, floored];
        self.find("transmission, minus_log: counters", differing(&counted, &want), 0.0);
        Ok(())
    }

    fn zinger(&mut self) -> Checked {
        let Size { angles, rows, columns } = self.size;
        let rng = &mut self.rng;
        let data = Array3::from_shape_fn((angles, rows, columns), |_| {
            rng.random_range(0.0..1.0_f32) + if rng.random_bool(0.02) { 3.0 } else { 0.0 }
        });
        for width in [3, 5] {
            let options = Zinger { width, threshold: 0.4 };
            let (input, out, counter) = (
                put(self.gpu, &self.stream, &data.iter().copied().collect::<Vec<_>>())?,
                self.gpu.alloc(4 * data.len())?,
                self.gpu.alloc(8)?,
            );
            self.stream.zero(&counter, 8)?;
            let arguments: [Arg; 10] = [
                (&input).into(),
                (&out).into(),
                rows.into(),
                columns.into(),
                0_u32.into(),
                (angles * columns).into(),
                columns.into(),
                (width / 2).into(),
                options.threshold.into(),
                (&counter).into(),
            ];
            self.launch(File::Zinger, "zinger", Shape::over(columns, rows, angles, 64), &arguments)?;
            let mut want = data.clone();
            let replaced = zinger::remove(want.view_mut(), options).unwrap_or(u64::MAX);
            want.swap_axes(0, 1);
            let (got, want) = (self.get::<f32>(&out, data.len())?, want.iter().copied().collect::<Vec<_>>());
            self.find(format!("zinger {width}: wrong values"), differing(&got, &want), 0.0);
            let counted = self.get::<u64>(&counter, 1)?;
            self.find(format!("zinger {width}: counter"), differing(&counted, &[replaced]), 0.0);
        }
        Ok(())
    }

    fn median(&mut self) -> Checked {
        let angles = self.size.angles;
        // The widest does not fit the registers.
        for width in [5, 21, 61, 129] {
            let columns = self.size.columns.max(width);
            let values: Vec<f32> =
                (0..2 * columns * angles).map(|_| self.rng.random_range(-20..20) as f32 / 4.0).collect();
            let (input, out) = (put(self.gpu, &self.stream, &values)?, self.gpu.alloc(4 * values.len())?);
            let (program, stretch) = median_program(width, columns);
            let arguments: [Arg; 5] = [(&input).into(), (&out).into(), angles.into(), columns.into(), stretch.into()];
            let shape = Shape::over(angles, columns.div_ceil(stretch), 2, 64);
            self.stream.launch(self.gpu.function(&program, "median_columns")?, shape, &arguments)?;
            let mut want = vec![0.0; values.len()];
            let plane = columns * angles;
            for (values, want) in values.chunks_exact(plane).zip(want.chunks_exact_mut(plane)) {
                median::across(values, angles, width, want, &mut median::Scratch::default());
            }
            let got = self.get::<f32>(&out, values.len())?;
            self.find(format!("median_columns {width}: wrong values"), differing(&got, &want), 0.0);
        }
        Ok(())
    }

    /// Columns of every length class, with many ties: keys in registers, by shuffles, through shared memory.
    fn rank(&mut self) -> Checked {
        for (angles, lines) in [(20, 5), (100, 3), (200, 3), (256, 2), (300, 3), (900, 2), (1500, 2)] {
            let values: Vec<f32> = (0..lines * angles).map(|_| self.rng.random_range(-300..300) as f32 / 8.0).collect();
            let input = put(self.gpu, &self.stream, &values)?;
            let (ranked, origin) = (self.gpu.alloc(4 * values.len())?, self.gpu.alloc(4 * values.len())?);
            let arguments: [Arg; 4] = [(&input).into(), (&ranked).into(), (&origin).into(), angles.into()];
            let function = self.gpu.function(&rank_program(angles), "rank_columns")?;
            self.stream.launch(function, sort_shape(lines, angles), &arguments)?;
            let (mut want, mut from) = (Vec::new(), Vec::new());
            for line in values.chunks_exact(angles) {
                let mut order: Vec<u32> = (0..angles as u32).collect();
                order.sort_by(|&a, &b| line[a as usize].total_cmp(&line[b as usize]).then(a.cmp(&b)));
                want.extend(order.iter().map(|&a| line[a as usize]));
                from.extend(order);
            }
            let wrong = differing(&self.get::<f32>(&ranked, want.len())?, &want)
                + differing(&self.get::<u32>(&origin, from.len())?, &from);
            self.find(format!("rank_columns, {angles} angles: wrong values"), wrong, 0.0);
        }
        Ok(())
    }

    /// Sinograms of the phantom, off the middle.
    pub fn sinograms(&self, centre: f64) -> Array3<f32> {
        let Size { rows, columns, .. } = self.size;
        phantom::sinograms(&phantom::ellipsoids(), rows, columns, columns, &self.angles, centre)
    }

    fn stripes(&mut self) -> Checked {
        let Size { angles, columns, rows } = self.size;
        let centre = columns as f64 / 2.0 - 1.3;
        let mut data = self.sinograms(centre);
        // A strong stripe, a weak one, a dead column, a fluctuating one; a different one in each row.
        for (r, mut sinogram) in data.axis_iter_mut(Axis(0)).enumerate() {
            let at = |share: f64| ((columns as f64 * share) as usize + r) % columns;
            for a in 0..angles {
                sinogram[[a, at(0.3)]] *= 1.4;
                sinogram[[a, at(0.45)]] += 0.5;
                sinogram[[a, at(0.6)]] = 2.0;
                sinogram[[a, at(0.7)]] += self.rng.random_range(0.0..5.0_f32);
                for u in 0..columns {
                    sinogram[[a, u]] += self.rng.random_range(0.0..0.05_f32);
                }
            }
        }
        let setup_stripe = Stripe { large: (columns / 8) | 1, small: (columns / 24) | 1, ..Stripe::default() };
        let setup_stripe = Stripe { small: setup_stripe.small.max(3), ..setup_stripe };
        let mut setup = self.setup(Algorithm::Gridding, Filter::Ramp, Padding::Zero, centre)?;
        let planted = data.clone();
        for method in
            [Stripes::Wavelet(Wavelet::default()), Stripes::Titarenko(Titarenko { blocks: 3, ..Titarenko::default() })]
        {
            let method = method.fitted(columns);
            setup.stripe = Some(method);
            let (got, ..) = self.chunk(&setup, None, Some(&planted), |chunk| chunk.stripes(&method))?;
            let mut want = planted.clone();
            if method.remove_slab(want.view_mut()).is_err() {
                return Err(DeviceError::Unsupported("the check's own stripe settings are refused".to_owned()));
            }
            // Sums over a band's angles in single precision, in another order: 6e-8 √n of what is taken away.
            let name = if matches!(method, Stripes::Wavelet(_)) { "wavelet" } else { "titarenko" };
            self.find(format!("stripes by {name}: relative L2"), relative(&got, &want), 2e-6);
            let moved = relative(&want, &planted);
            self.find(
                format!("stripes by {name}: the reference changes its input"),
                f64::from(u8::from(moved < 1e-3)),
                0.0,
            );
        }
        setup.stripe = Some(Stripes::Vo(setup_stripe));
        let (got, ..) = self.chunk(&setup, None, Some(&data), |chunk| chunk.stripes(&Stripes::Vo(setup_stripe)))?;
        let before = data.clone();
        if stripe::remove_slab(data.view_mut(), &setup_stripe).is_err() {
            return Err(DeviceError::Unsupported("the check's own stripe windows are refused".to_owned()));
        }
        // Equal but for f64 sums in another order, which may move a factor by its last f32 bit.
        self.find(format!("stripe removal, {rows} rows: relative L2"), relative(&got, &data), 1e-7);
        let moved = relative(&data, &before);
        self.find("stripe removal: the reference changes its input", f64::from(u8::from(moved < 1e-3)), 0.0);
        Ok(())
    }

    /// The spreading kernel's table errs by 2e-6 of its peak, and single-precision transforms by 1e-7 per stage: 1e-5 of the
    /// whole.
    fn gridding(&mut self) -> Checked {
        let columns = self.size.columns;
        for (filter, padding, offset) in [
            (Filter::SheppLogan, Padding::Zero, 0.0),
            (Filter::Ramp, Padding::Edge, -2.3),
            (Filter::Hann, Padding::Zero, 3.7),
        ] {
            let centre = columns as f64 / 2.0 - 0.5 + offset;
            let sinograms = self.sinograms(centre);
            let mut setup = self.setup(Algorithm::Gridding, filter, padding, centre)?;
            setup.factor = 10.0;
            setup.radius2 = (0.95 * columns as f64 / 2.0).powi(2);
            let (_, got, _) = self.chunk(&setup, None, Some(&sinograms), |chunk| chunk.gridding())?;
            let mut want =
                setup.plan.reconstruct(sinograms.view()).map_err(|e| DeviceError::Unsupported(e.to_string()))?;
            mask::circle(want.view_mut(), 0.95, 0.0);
            want.mapv_inplace(|v| v * 10.0);
            let what = format!("gridding, {filter}, {padding:?}, centre {centre}: relative L2");
            self.find(what, relative(&got, &want), 1e-5);
        }
        Ok(())
    }

    fn direct(&mut self) -> Checked {
        let columns = self.size.columns;
        for (padding, offset) in [(Padding::Zero, 1.2), (Padding::Edge, -3.0)] {
            let centre = columns as f64 / 2.0 - 0.5 + offset;
            let sinograms = self.sinograms(centre);
            let setup = self.setup(Algorithm::Direct, Filter::SheppLogan, padding, centre)?;
            let (_, got, _) = self.chunk(&setup, None, Some(&sinograms), |chunk| chunk.direct())?;
            let geometry =
                Geometry { centre, filter: Filter::SheppLogan, padding, ..Geometry::new(columns, &self.angles) };
            let want = direct::reconstruct(sinograms.view(), &geometry, UPSAMPLING);
            let want = want.map_err(|e| DeviceError::Unsupported(e.to_string()))?;
            // Lines of a transform in single precision: 3e-7; sums of sixteen and of sixteenths: 1e-6.
            let what = format!("direct back-projection, {padding:?}, centre {centre}: relative L2");
            self.find(what, relative(&got, &want), 1e-5);
        }
        Ok(())
    }
}

fn half_value(h: u16) -> f64 {
    let (e, m) = (i32::from(h >> 10 & 31), f64::from(h & 0x3ff));
    if e == 0 { m * 2f64.powi(-24) } else { (1024.0 + m) * 2f64.powi(e - 25) }
}

fn half_float(h: u16) -> f32 {
    let sign = if h & 0x8000 == 0 { 1.0 } else { -1.0 };
    let magnitude = if h & 0x7c00 == 0x7c00 { f32::INFINITY } else { half_value(h & 0x7fff) as f32 };
    sign * magnitude
}

/// The half nearest to `v`, ties to even, by looking among all of them.
fn nearest_half(v: f32, all: &[(f64, u16)]) -> u16 {
    let sign = if v.is_sign_negative() { 0x8000 } else { 0 };
    let a = f64::from(v.abs());
    // Half a step beyond the largest is infinite.
    if a >= 65520.0 {
        return sign | 0x7c00;
    }
    let above = all.partition_point(|(value, _)| *value < a).min(all.len() - 1);
    let below = above.saturating_sub(1);
    let (up, down) = ((all[above].0 - a).abs(), (a - all[below].0).abs());
    let pick = if up < down || (up == down && all[above].1.is_multiple_of(2)) { above } else { below };
    sign | all[pick].1
}

/// Frees the device memory that slabs keep for the next one.
///
/// # Errors
/// The driver refuses.
pub fn forget(gpu: &Gpu) -> Result<(), DeviceError> {
    super::pipeline::forget(gpu)
}
