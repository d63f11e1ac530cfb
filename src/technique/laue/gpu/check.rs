//! Kernels against their references on the CPU, and whole slabs against the CPU's, on fresh random inputs.
//!
//! One code for two places: tests run it on the emulated device in small sizes, `beampilot bench gpu` on a card in larger
//! ones. Tolerances are derived beside each check; a comparison with anything that is not finite fails.

use super::memory::{Needs, WARPS};
use super::pipeline;
use super::slot::{MAPS, Slot};
use super::steps::Batches;
use super::store::Shared;
use super::{Outcome, Setup};
use crate::device::gpu::{Arg, Buffer, Plain, Shape, Stream};
use crate::device::kernels::{File, Program};
use crate::device::{DeviceError, Gpu};
use crate::technique::laue::decode::{DecodeSetup, Decoder, EnergyOptions, FootprintOptions, flag, resample};
use crate::technique::laue::depth::DepthGrid;
use crate::technique::laue::forward::{Instrument, Source, counts};
use crate::technique::laue::geometry::{MaskFrame, Region, scale, unit};
use crate::technique::laue::mask::Mask;
use crate::technique::laue::nnls::Solver;
use crate::technique::laue::recipe::Method;
use crate::technique::laue::search::{Scratch, Transforms, search};
use crate::technique::laue::setup::nominal;
use crate::technique::laue::slab::{self, Resolver, Slab};
use crate::technique::laue::synth::nominal_wire;
use crate::technique::laue::wire::{Edge, WireSetup};
use crate::technique::tomography::gpu::check::{Finding, differing, largest, relative};
use crate::technique::tomography::gpu::put;
use ndarray::{Array3, s};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How large the inputs are.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Frames.
    pub frames: usize,
    /// Detector rows.
    pub rows: usize,
    /// Detector columns.
    pub columns: usize,
}

/// Counts `[frame, row, column]` of a part of the detector in which every pixel sees a source of its own, of 60 to 6000 counts;
/// with dim, dead and saturated pixels, and some that see no mask.
fn point(setup: &DecodeSetup, region: Region, size: Size, rng: &mut ChaCha8Rng) -> Array3<f32> {
    let mask = Mask::new(&setup.mask);
    let frame = MaskFrame::new(&setup.pose, mask.length_um, setup.mask.stretch);
    let beam = unit(setup.beam);
    let instrument = Instrument { detector: &setup.detector, region, beam, mask: &mask, frame };
    let mut all = Array3::zeros((size.frames, size.rows, size.columns));
    for row in 0..size.rows {
        for column in 0..size.columns {
            let mut series = all.slice_mut(s![.., row, column]);
            let peak = 60.0 * 100f64.powf(rng.random_range(0.0..1.0));
            match rng.random_range(0..20) {
                0 => series.fill(rng.random_range(0..3) as f32 * 100.0),
                1 => series.mapv_inplace(|_| counts(5.0, 65535.0, rng) as f32),
                2 => series.mapv_inplace(|_| counts(peak, 65535.0, rng) as f32),
                _ => {
                    let source = Source {
                        depth_um: rng.random_range(-190.0..190.0),
                        width_um: rng.random_range(3.0..14.0),
                        energy_kev: rng.random_range(7.0..22.0),
                    };
                    let seen = instrument.transmission(&source, row, column, size.frames);
                    series.iter_mut().zip(seen).for_each(|(v, s)| *v = counts(peak * s + 8.0, 65535.0, rng) as f32);
                }
            }
            if rng.random_bool(0.05) {
                series[rng.random_range(0..size.frames)] = 65535.0;
            }
        }
    }
    all
}

/// A part of the detector anywhere.
fn anywhere(size: Size, rng: &mut ChaCha8Rng) -> Region {
    Region { start: [rng.random_range(0..2048 - size.columns), rng.random_range(0..2048 - size.rows)], bin: [1, 1] }
}

/// A grid as recipes have it: a bin the micrometre, so wide that some sources lie outside.
const GRID: DepthGrid = DepthGrid { first_um: -170.0, step_um: 1.0, bins: 341 };

struct Rig<'a> {
    gpu: &'a Gpu,
    stream: Stream,
    rng: ChaCha8Rng,
    found: Vec<Finding>,
}

type Checked = Result<(), DeviceError>;

/// Every kernel of the coded aperture against its reference, on what the kernels before it made; least squares also on random
/// problems.
///
/// # Errors
/// The device fails.
pub fn kernels(gpu: &Gpu, size: Size, seed: u64) -> Result<Vec<Finding>, DeviceError> {
    gpu.bind()?;
    let rng = ChaCha8Rng::seed_from_u64(seed);
    let mut rig = Rig { gpu, stream: gpu.stream()?, rng, found: Vec::new() };
    for (name, reversed, degree, knots) in [
        ("transforms, fine mask", false, 3, 4),
        ("products, degree 5, reversed", true, 5, 1),
        ("energies", false, 3, 2),
    ] {
        let mut setup = DecodeSetup { threshold: 10.0, depth: GRID, ..nominal() };
        setup.footprint = FootprintOptions { degree, knots, ..setup.footprint };
        if name.ends_with("fine mask") {
            // Several pairs of stretches.
            setup.mask.resolution_um = 0.25;
        }
        if name == "energies" {
            setup.energy = EnergyOptions::Fit(6.0, 24.0, 3.0);
        }
        if reversed {
            setup.pose.scanner_axis = scale(setup.pose.scanner_axis, -1.0);
        }
        rig.steps(name, &setup, size)?;
    }
    rig.least_squares()?;
    Ok(rig.found)
}

impl Rig<'_> {
    fn find(&mut self, what: impl Into<String>, error: f64, allowed: f64) {
        self.found.push(Finding { what: what.into(), error, allowed });
    }

    fn get<T: Plain>(&self, buffer: &Buffer, count: usize) -> Result<Vec<T>, DeviceError> {
        let mut host = self.gpu.pinned(count * size_of::<T>())?;
        self.stream.download::<T>(buffer, &mut host, count)?;
        self.stream.synchronize()?;
        Ok(host.as_ref::<T>(count).to_vec())
    }

    /// One chunk, one batch; what is between the kernels is looked at.
    fn steps(&mut self, name: &str, decoding: &DecodeSetup, size: Size) -> Checked {
        let region = anywhere(size, &mut self.rng);
        let raw = point(decoding, region, size, &mut self.rng);
        let decoder = Decoder::new(decoding.clone(), region);
        let resolver = Resolver::Aperture(Box::new(Decoder::new(decoding.clone(), region)));
        let setup = Setup::new(&resolver, (size.frames, size.rows), 0, 0..size.columns, decoding.depth);
        let Some(aperture) = &setup.aperture else { return Ok(()) };
        let pixels = size.rows * size.columns;
        let planned = Needs::of(&setup, 0);
        let pairs = if name.starts_with("products") { 0 } else { planned.pairs };
        let needs = Needs { batch: pixels.max(32), rows: size.rows, templates: 64, pairs, ..planned };
        let mut slot = Slot::new(self.gpu, &needs)?;
        let mut batches = Batches::new(self.gpu, &needs)?;
        let shared = Shared::new(self.gpu, &self.stream, aperture)?;
        pipeline::select(self.gpu, &setup, aperture, &mut slot, &self.stream, raw.view())?;
        pipeline::enlist_all(&setup, aperture, &needs, &mut slot)?;
        let one = slot.batches.len() == 1;
        self.find(format!("{name}: pixels are one batch"), f64::from(u8::from(!one)), 0.0);
        self.stream.zero(&slot.stack, 4 * needs.bins * pixels)?;
        batches.run(self.gpu, &self.stream, &setup, aperture, &needs, &mut slot, pixels, &shared, None)?;

        self.selected(name, decoding, &raw, &slot)?;
        let count = slot.list.len();
        let data = self.get::<f32>(&batches.data, count * needs.stride)?;
        let span = slot.batches.first().map_or(0, |b| b.span);
        let correlation = self.get::<f32>(&batches.correlation, count * span)?;
        let offsets = self.get::<i32>(&batches.offsets, count)?;
        let found = self.get::<f64>(&batches.found, 5 * count)?;
        let n = aperture.unknowns();
        let grams = self.get::<f64>(&batches.grams, count * n * n)?;
        let rights = self.get::<f64>(&batches.rights, count * n)?;
        let solutions = self.get::<f64>(&batches.solutions, count * n)?;

        let (mut resampled, mut correlated, mut chosen, mut fits) = (0.0, 0.0_f64, [0.0_f64; 3], [0.0_f64; 3]);
        let mut series = Vec::new();
        let (mut wanted, mut solver, mut x, mut compared) = (Vec::new(), Solver::new(n), vec![0.0; n], 0);
        let transforms = Transforms::new(needs.samples);
        let mut scratch = Scratch::new(&transforms);
        for (i, p) in slot.list.iter().enumerate() {
            let (row, column) = (p.place / size.columns, p.place % size.columns);
            series.clear();
            series.extend(raw.slice(s![.., row, column]));
            let step = decoder.view(row, column).step_um / decoding.mask.resolution_um;
            resample(&series, step.abs(), step < 0.0, &mut wanted);
            let own = &data[i * needs.stride..][..p.length];
            resampled += differing(own, &wanted);

            let values: Vec<f64> = own.iter().map(|&v| f64::from(v)).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let flat: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
            let got = &correlation[i * span..][..p.offsets.len()];
            // Offsets of every kind, ends included, but not all: the formula as it stands takes long.
            for m in (0..got.len()).step_by(97).chain(got.len().saturating_sub(9)..got.len()) {
                let template = &p.template.expected[p.offsets.start + m..][..p.length];
                let (mut want, mut square) = (0.0, 0.0);
                for (&s, v) in template.iter().zip(&values) {
                    want += f64::from(s) * (v - mean);
                    square += f64::from(s) * f64::from(s);
                }
                correlated = correlated.max((f64::from(got[m]) - want).abs() / (flat * square).sqrt());
            }

            let apart = (decoding.position.apart_um / decoding.mask.resolution_um).round() as usize;
            let twin = search(&transforms, &p.template, own, p.offsets.clone(), apart, &mut scratch);
            let Some(twin) = twin.filter(|_| offsets[i] >= 0) else {
                chosen[0] += f64::from(u8::from(twin.is_some() || offsets[i] >= 0));
                continue;
            };
            let offset = offsets[i] as usize;
            let (residual, rival) = (found[count + i], found[2 * count + i]);
            // Where two are as good as equal either may be chosen.
            let equal = (residual - twin.residual).abs() <= 2e-5 * flat;
            chosen[0] += f64::from(u8::from(offset != twin.offset && !equal));
            if offset == twin.offset {
                chosen[1] = chosen[1].max((residual - twin.residual).abs() / flat);
                chosen[2] = chosen[2].max((rival - twin.rival).abs() / flat);
            }

            // With an energy the cover is not what transmits. The definition takes long: some are enough.
            compared += usize::from(aperture.energies.is_empty());
            if compared > 3 || !aperture.energies.is_empty() {
                continue;
            }
            let (gram, right) = (&grams[i * n * n..][..n * n], &rights[i * n..][..n]);
            let (plain_gram, plain_right) = normal(&decoder, &p.template.cover, offset, &values);
            fits[0] = fits[0].max(farthest(gram, &plain_gram));
            fits[1] = fits[1].max(farthest(right, &plain_right));
            solver.solve(gram, right, &mut x);
            fits[2] = fits[2].max(farthest(&solutions[i * n..][..n], &x));
        }
        self.find(format!("{name}: laue_resample: wrong values"), resampled, 0.0);
        // A sum of 400 in f32, each partial sum at most ‖d‖‖s‖ and rounded by 2⁻²⁵ on average: √400 · 3e-8, and thrice that. Of
        // transforms a dozen roundings of 6e-8 each of two stretches of 4096 samples, which are about five times ‖s‖.
        self.find(format!("{name}: correlation: largest difference"), correlated, 2e-6);
        self.find(format!("{name}: laue_position: offsets that are not the best"), chosen[0], 0.0);
        // Squared, so twice as much, of ‖s‖ over what of it varies, which is up to five where the mask begins and ends.
        self.find(format!("{name}: laue_position: residual"), chosen[1], 2e-5);
        self.find(format!("{name}: laue_position: rival"), chosen[2], 2e-5);
        // Sums of up to 600 products in f64, and a recursion of as many steps: 600 · 2⁻⁵³ at most, of the largest entry.
        self.find(format!("{name}: laue_normal: matrix"), fits[0], 1e-12);
        self.find(format!("{name}: laue_normal: right-hand side"), fits[1], 1e-12);
        // The twin on the same matrix: rounding times the matrix's condition on the passive columns, 1e8 at degree 5.
        self.find(format!("{name}: laue_nnls: coefficients"), fits[2], 1e-7);
        let stack = self.get::<f32>(&slot.stack, needs.bins * pixels)?;
        let maps = self.get::<f32>(&slot.maps, MAPS * count)?;
        let (mut got, mut deposited, mut kev) = (Vec::new(), Vec::new(), 0.0);
        let mut work = decoder.work();
        // Some are enough: whole slabs are compared elsewhere.
        for (i, p) in slot.list.iter().enumerate().step_by(count.div_ceil(6).max(2)) {
            let (row, column) = (p.place / size.columns, p.place % size.columns);
            series.clear();
            series.extend(raw.slice(s![.., row, column]));
            let mut depths = vec![0.0; needs.bins];
            let (want, _) = decoder.decode(&series, row, column, &mut work, &mut depths);
            let overlap = want.flags & flag::OVERLAP != 0;
            if want.position_um.is_nan() || overlap || on_the_edge(want.position_um, decoding.mask.resolution_um) {
                continue;
            }
            got.extend((0..needs.bins).map(|m| stack[m * pixels + p.place]));
            deposited.extend(depths.iter().map(|&v| v as f32));
            if !aperture.energies.is_empty() {
                let (a, b) = (maps[4 * count + i], want.energy_kev);
                kev += f64::from(u8::from(a != b && !(a.is_nan() && b.is_nan())));
            }
        }
        // f64 sums in another order, then rounded to f32. There may be nothing to deposit among a few pixels.
        let nothing = deposited.iter().chain(&got).all(|v| *v == 0.0);
        let error = if nothing { 0.0 } else { relative(&got, &deposited) };
        self.find(format!("{name}: laue_deposit: relative L2"), error, 3e-7);
        self.find(format!("{name}: laue_energy: energies that differ"), kev, 0.0);
        self.find(format!("{name}: too few pixels to tell"), f64::from(u8::from(count * 4 < pixels)), 0.0);
        Ok(())
    }

    fn selected(&mut self, name: &str, decoding: &DecodeSetup, raw: &Array3<f32>, slot: &Slot) -> Checked {
        let (frames, rows, columns) = raw.dim();
        let flags = self.get::<u8>(&slot.flags, rows * columns)?;
        let means = self.get::<f64>(&slot.means, rows * columns)?;
        let (mut wrong, mut farthest) = (0.0, 0.0_f64);
        for (place, (&got, &mean)) in flags.iter().zip(&means).enumerate() {
            let series = raw.slice(s![.., place / columns, place % columns]);
            let want = series.iter().map(|&v| f64::from(v)).sum::<f64>() / frames as f64;
            let same = series.iter().all(|v| *v == series[0]);
            let full = series.iter().any(|&v| f64::from(v) >= decoding.saturation);
            let bits = [(want < decoding.threshold, flag::DIM), (full, flag::SATURATED), (same, flag::DEAD)];
            let want_bits = bits.iter().map(|(on, bit)| u8::from(*on) * bit).sum::<u8>();
            wrong += f64::from(u8::from(got != want_bits));
            farthest = farthest.max((mean - want).abs() / want.max(1.0));
        }
        self.find(format!("{name}: laue_select: wrong flags"), wrong, 0.0);
        // Whole numbers are summed without rounding.
        self.find(format!("{name}: laue_select: means"), farthest, 1e-15);
        Ok(())
    }

    /// Random problems of every size class, one of them singular.
    fn least_squares(&mut self) -> Checked {
        for n in [1, 3, 20, 33, 70] {
            let count = 4;
            let (mut grams, mut rights) = (Vec::new(), Vec::new());
            for problem in 0..count {
                let rows = n + 20;
                let mut a: Vec<f64> = (0..rows * n).map(|_| self.rng.random_range(-0.2..1.0)).collect();
                if problem == 0 && n > 2 {
                    // The same column twice.
                    (0..rows).for_each(|r| a[r * n + 2] = a[r * n]);
                }
                let b: Vec<f64> = (0..rows).map(|_| self.rng.random_range(-0.5..1.0)).collect();
                for i in 0..n {
                    grams.extend((0..n).map(|j| (0..rows).map(|r| a[r * n + i] * a[r * n + j]).sum::<f64>()));
                    rights.push((0..rows).map(|r| a[r * n + i] * b[r]).sum());
                }
            }
            let got = self.solve(&grams, &rights, count, n)?;
            let (mut error, mut worst) = (0.0_f64, 0.0_f64);
            let mut x = vec![0.0; n];
            for problem in 0..count {
                let (gram, right) = (&grams[problem * n * n..][..n * n], &rights[problem * n..][..n]);
                let own = &got[problem * n..][..n];
                Solver::new(n).solve(gram, right, &mut x);
                if problem > 0 {
                    error = error.max(farthest(own, &x));
                }
                let scale = right.iter().fold(1e-300, |m: f64, v| m.max(v.abs()));
                for i in 0..n {
                    let g = right[i] - (0..n).map(|j| gram[i * n + j] * own[j]).sum::<f64>();
                    let broken = if own[i] > 0.0 { g.abs() } else { g.max(0.0) };
                    worst = worst.max(broken / scale).max(if own[i] >= 0.0 { 0.0 } else { f64::INFINITY });
                }
            }
            // Conditions of these matrices reach 1e5 at 70 columns.
            self.find(format!("laue_nnls, {n} unknowns: coefficients"), error, 1e-9);
            self.find(format!("laue_nnls, {n} unknowns: conditions of the optimum"), worst, 1e-8);
        }
        Ok(())
    }

    fn solve(&self, grams: &[f64], rights: &[f64], count: usize, n: usize) -> Result<Vec<f64>, DeviceError> {
        let (gram, right) = (put(self.gpu, &self.stream, grams)?, put(self.gpu, &self.stream, rights)?);
        let offsets = put(self.gpu, &self.stream, &vec![0_i32; count])?;
        let (factors, out) = (self.gpu.alloc(8 * count * n * n)?, self.gpu.alloc(8 * count * n)?);
        let taken = self.gpu.alloc(4 * count)?;
        let arguments: [Arg; 8] = [
            (&gram).into(),
            (&right).into(),
            (&offsets).into(),
            (&factors).into(),
            (&out).into(),
            (&taken).into(),
            count.into(),
            n.into(),
        ];
        let [_, _, bytes, _] = super::memory::shared(1, 1, n);
        let shape = Shape::line(count.div_ceil(WARPS), 32 * WARPS as u32).shared(bytes);
        let function = self.gpu.function(&Program::of(File::LaueFootprint), "laue_nnls")?;
        self.stream.launch(function, shape, &arguments)?;
        self.get(&out, count * n)
    }
}

/// Largest difference, relative to the largest magnitude; infinite when anything is not finite.
fn farthest(got: &[f64], want: &[f64]) -> f64 {
    if got.len() != want.len() || got.iter().chain(want).any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let scale = want.iter().fold(1e-300, |m: f64, v| m.max(v.abs()));
    got.iter().zip(want).map(|(g, w)| (g - w).abs() / scale).fold(0.0, f64::max)
}

/// Normal equations by the definition: the matrix column by column, then all products.
fn normal(decoder: &Decoder, cover: &[f32], offset: usize, data: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (basis, columns, window) = decoder.basis();
    let knots = decoder.setup().footprint.knots;
    let start = offset as isize - (window / 2) as isize;
    let open = |i: isize| usize::try_from(i).ok().and_then(|i| cover.get(i)).map_or(1.0, |&c| 1.0 - f64::from(c));
    let mut matrix: Vec<Vec<f64>> = (0..columns)
        .map(|c| {
            let at = |j: usize, b: usize| open(start + (c * knots + b + j) as isize);
            (0..data.len()).map(|j| basis.iter().enumerate().map(|(b, v)| v * at(j, b)).sum()).collect()
        })
        .collect();
    matrix.push(vec![1.0; data.len()]);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let gram = matrix.iter().flat_map(|a| matrix.iter().map(|b| dot(a, b)).collect::<Vec<_>>()).collect();
    (gram, matrix.iter().map(|a| dot(a, data)).collect())
}

/// Whole slabs, counts to depths, on the GPU and on the CPU: coded apertures in all variants, and wires.
///
/// # Errors
/// The device fails, or declines what it should do.
pub fn slabs(gpu: &Gpu, size: Size, seed: u64) -> Result<Vec<Finding>, String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut found = Vec::new();
    let base = DecodeSetup { threshold: 10.0, depth: GRID, ..nominal() };
    let energy = |energy, background| DecodeSetup { energy, background, ..base.clone() };
    let box_of = |setup: DecodeSetup| DecodeSetup {
        footprint: FootprintOptions { fit: false, ..setup.footprint.clone() },
        ..setup
    };
    let mut near = base.clone();
    near.position.within_um = Some(20.0);
    let mut fine = base.clone();
    fine.footprint = FootprintOptions { degree: 5, knots: 1, ..fine.footprint };
    fine.depth = DepthGrid { step_um: 0.4, bins: 850, ..GRID };
    let mut back = base.clone();
    back.pose.scanner_axis = scale(back.pose.scanner_axis, -1.0);
    let fit = EnergyOptions::Fit(6.0, 24.0, 3.0);
    for (name, setup) in [
        ("footprints", base.clone()),
        ("mask steps backwards, positions near the grid", DecodeSetup { position: near.position, ..back }),
        ("degree 5, fine bins", fine),
        ("boxes", box_of(base.clone())),
        ("energy given", energy(EnergyOptions::Fixed(12.5), None)),
        ("energy fitted", energy(fit.clone(), None)),
        ("energy fitted, boxes, background known", box_of(energy(fit, Some(8.0)))),
    ] {
        let region = anywhere(size, &mut rng);
        let mut raw = point(&setup, region, size, &mut rng);
        if name == "boxes" {
            // Counts that do not travel in two bytes.
            raw.mapv_inplace(|v| if v < 65535.0 { v + 0.25 } else { v });
        }
        let method = Method::Aperture(Box::new(setup));
        compare(gpu, &mut found, name, (&method, region, &[]), &raw, grid_of(&method))?;
    }
    for edge in [Edge::Leading, Edge::Trailing, Edge::Both] {
        let (spec, readings) = nominal_wire(size.frames, 1.0);
        let setup = WireSetup {
            detector: nominal().detector,
            beam: [0.0, 0.003, 1.0],
            wire: spec,
            edge,
            threshold: 4.0,
            saturation: 65535.0,
            depth: GRID,
        };
        let region = anywhere(size, &mut rng);
        let raw = point(&base, region, size, &mut rng);
        let method = Method::Wire(Box::new(setup));
        compare(gpu, &mut found, &format!("wire, {edge:?}"), (&method, region, &readings), &raw, GRID)?;
    }
    Ok(found)
}

fn grid_of(method: &Method) -> DepthGrid {
    match method {
        Method::Aperture(s) => s.depth,
        Method::Wire(s) => s.depth,
    }
}

/// Nearly half way between samples either neighbour may be taken for the best: the position is the same, the window is not.
fn on_the_edge(position_um: f32, resolution_um: f64) -> bool {
    let samples = f64::from(position_um) / resolution_um;
    (samples - samples.round()).abs() > 0.49
}

fn compare(
    gpu: &Gpu,
    found: &mut Vec<Finding>,
    name: &str,
    (method, region, readings): (&Method, Region, &[[f64; 3]]),
    raw: &Array3<f32>,
    grid: DepthGrid,
) -> Result<(), String> {
    let (_, rows, width) = raw.dim();
    let resolver = Resolver::of(method, region, readings).map_err(|e| e.to_string())?;
    // Columns at the ends are not resolved.
    let columns = 1..width - 1;
    let run = || match super::on_gpu(gpu, &resolver, raw.view(), 0, columns.clone(), grid) {
        Ok(Outcome::Done(slab)) => Ok(*slab),
        Ok(Outcome::Declined(why)) => Err(format!("{name}: declined: {why}")),
        Err(error) => Err(format!("{name}: {error}")),
    };
    let got = run()?;
    let want = slab::resolve(&resolver, raw.view(), 0, columns.clone(), grid.bins);
    let mut find = |what: &str, error: f64, allowed: f64| {
        found.push(Finding { what: format!("{name}: {what}"), error, allowed });
    };
    let resolution = match method {
        Method::Aperture(s) => s.mask.resolution_um,
        Method::Wire(_) => f64::INFINITY,
    };
    let flags = |s: &Slab| s.flags.iter().copied().collect::<Vec<u8>>();
    find("flags that differ", differing(&flags(&got), &flags(&want)), 0.0);
    let known = |m: usize| got.maps[m].iter().map(|v| v.is_nan()).collect::<Vec<bool>>();
    let expected = |m: usize| want.maps[m].iter().map(|v| v.is_nan()).collect::<Vec<bool>>();
    let missing: f64 = (0..7).map(|m| differing(&known(m), &expected(m))).sum();
    find("values that one has and the other has not", missing, 0.0);
    let clear: Vec<(usize, usize)> = (0..rows)
        .flat_map(|r| (0..width).map(move |c| (r, c)))
        .filter(|p| want.maps[1][*p].is_finite() && !on_the_edge(want.maps[2][*p], resolution))
        .collect();
    let pick = |s: &Slab, m: usize| clear.iter().map(|p| s.maps[m][*p]).collect::<Vec<f32>>();
    let everywhere = |s: &Slab| s.maps[0].iter().copied().filter(|v| v.is_finite()).collect::<Vec<_>>();
    find("means: wrong values", differing(&everywhere(&got), &everywhere(&want)), 0.0);
    if matches!(method, Method::Aperture(_)) {
        // A parabola through three residuals, each wrong by 2e-6 of the whole; its bend is at least some thousandths of that.
        find("positions, um", largest(&pick(&got, 2), &pick(&want, 2)), 2e-3);
        find("depths, um", largest(&pick(&got, 3), &pick(&want, 3)), 4e-3);
        // Chosen from a list: the same.
        if want.maps[4].iter().any(|v| v.is_finite()) {
            find("energies that differ", differing(&pick(&got, 4), &pick(&want, 4)), 0.0);
        }
    } else {
        find("depths, um", largest(&pick(&got, 3), &pick(&want, 3)), 1e-3);
    }
    // f64 sums in another order, then rounded to f32: a gain comes from the correlation, which is not that exact.
    let fits = matches!(method, Method::Aperture(s) if s.footprint.fit) || matches!(method, Method::Wire(_));
    let exact = if fits { 3e-7 } else { 3e-6 };
    // With both edges of a wire what is deposited may cancel: the mean counts are the scale.
    let with_mean = |s: &Slab| pick(s, 1).iter().zip(pick(&want, 0)).map(|(v, mean)| v + mean).collect::<Vec<f32>>();
    find("intensity: relative L2", relative(&with_mean(&got), &with_mean(&want)), exact);
    find("residual: relative L2", relative(&pick(&got, 5), &pick(&want, 5)), 10.0 * exact);
    // Its noise comes from the residual, which is a hundredth of the whole or more and known to 1e-5 of that.
    find("confidence: relative L2", relative(&pick(&got, 6), &pick(&want, 6)), 1e-3);
    let columns_of = |s: &Slab| {
        clear.iter().flat_map(|&(r, c)| s.stack.slice(s![.., r, c]).iter().copied().collect::<Vec<_>>()).collect()
    };
    let (a, b): (Vec<f32>, Vec<f32>) = (columns_of(&got), columns_of(&want));
    find("depth stack: relative L2", relative(&a, &b), exact);
    let sum: f64 = got.stack.iter().map(|&v| f64::from(v)).sum();
    let account = got.sums.account;
    let whole = got.stack.iter().map(|&v| f64::from(v.abs())).sum::<f64>().max(1.0);
    // Values of the stack are rounded to f32.
    find("depth stack and account: counts", (sum - account.deposited).abs() / whole, 1e-7);
    find("account: what is missing", account.imbalance(), 1e-9);
    let tallies = |s: &Slab| [s.sums.account.input, s.sums.account.deposited, s.sums.account.out_of_range];
    find("account: relative", farthest(&tallies(&got), &tallies(&want)), 1e-5);
    find("histogram: relative", farthest(&got.sums.histogram, &want.sums.histogram), 1e-5);
    find("numbers of flags", differing(&got.sums.pixels, &want.sums.pixels), 0.0);
    find("too little is deposited to tell", f64::from(u8::from(whole < 1000.0)), 0.0);
    let again = run()?;
    let bits = |s: &Slab| s.stack.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
    find("the same again: bits", differing(&bits(&again), &bits(&got)), 0.0);
    Ok(())
}

/// Bits of a slab, pixel by pixel: whatever the chunks and batches, they are the same. `cut`: rows of the pieces in which it is done.
///
/// # Errors
/// The device declines, in words, or fails.
pub fn bits(gpu: &Gpu, size: Size, seed: u64, cut: usize) -> Result<Vec<u32>, String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let setup = DecodeSetup { threshold: 10.0, depth: GRID, ..nominal() };
    let region = anywhere(size, &mut rng);
    let raw = point(&setup, region, size, &mut rng);
    let method = Method::Aperture(Box::new(setup));
    let resolver = Resolver::of(&method, region, &[]).map_err(|e| e.to_string())?;
    let mut all = Vec::new();
    for first in (0..size.rows).step_by(cut) {
        let rows = raw.slice(s![.., first..(first + cut).min(size.rows), ..]);
        let slab = match super::on_gpu(gpu, &resolver, rows, first, 0..size.columns, GRID) {
            Ok(Outcome::Done(slab)) => slab,
            Ok(Outcome::Declined(why)) => return Err(why),
            Err(error) => return Err(error.to_string()),
        };
        for ((row, column), flags) in slab.flags.indexed_iter() {
            all.push(u32::from(*flags));
            all.extend(slab.maps.iter().map(|map| map[[row, column]].to_bits()));
            all.extend(slab.stack.slice(s![.., row, column]).iter().map(|v| v.to_bits()));
        }
    }
    Ok(all)
}

/// Frees the device memory that slabs keep for the next one.
///
/// # Errors
/// The driver refuses.
pub fn forget(gpu: &Gpu) -> Result<(), DeviceError> {
    pipeline::forget(gpu)
}
