//! SIRT and CGLS of a chunk: the iterations of [`crate::technique::tomography::iterative`], kernel by kernel.
//!
//! What a step needs to know of the slices (lengths, products, who still runs) is summed on the device in double precision,
//! added up and judged here, by the code that judges on the CPU: so this waits for the device, twice an iteration for SIRT
//! and five times for CGLS. At a thousand columns an iteration of a chunk takes milliseconds, a wait some microseconds. Slices do not see each
//! other: one that has stopped stays as it is while others go on.

use super::Setup;
use super::constants::put;
use super::steps::{Carve, Chunk, THREADS};
use crate::device::gpu::{Arg, Buffer, Pinned, Shape, Stream};
use crate::device::kernels::{File, Program};
use crate::device::{DeviceError, Gpu};
use crate::technique::tomography::iterative::{Ending, Method, RESTART, Stopping, Watch, divide};
use crate::technique::tomography::projector::{Projector, Ray};

/// Most slices of a chunk.
const MOST: usize = 16;
/// A number of every slice.
type Slices = [f64; MOST];
/// Most blocks that walk over values: their sums are added on the host.
const BLOCKS: usize = 1024;
/// Values of a thread from which there are more blocks.
const WALK: usize = 16;

/// What to iterate.
pub(in crate::technique::tomography) struct Iterate {
    pub method: Method,
    pub stopping: Stopping,
    /// The rays as the kernels take them: those that cross rows first.
    rays: Vec<u32>,
    /// How many of them cross rows.
    straight: usize,
    size: usize,
    columns: usize,
}

impl Iterate {
    pub fn new(projector: &Projector, method: Method, stopping: Stopping, columns: usize) -> Self {
        let order = |turned: bool| projector.rays.iter().enumerate().filter(move |(_, r)| r.turned == turned);
        let rays = order(false).chain(order(true)).flat_map(|(angle, ray)| words(ray, angle)).collect();
        let size = projector.stride() - 2;
        Self { method, stopping, rays, straight: order(false).count(), size, columns }
    }

    pub fn rays(&self) -> &[u32] {
        &self.rays
    }

    fn angles(&self) -> usize {
        self.rays.len() / WORDS
    }

    /// Values of an image and of a sinogram.
    fn values(&self) -> (usize, usize) {
        ((self.size + 2).pow(2), self.angles() * self.columns)
    }

    /// Bytes of the arena for `slices` slices.
    pub fn bytes(&self, slices: usize) -> usize {
        let (pixels, samples) = self.values();
        let each = if self.method == Method::Sirt { 2 } else { 3 };
        4 * slices * each * (pixels + samples) + 8 * 256
    }

    /// `A x`, or data less that, where `data` is not 0.
    pub fn project(&self, image: u64, sinograms: u64, data: u64, rays: &Buffer) -> Launch {
        let shape = Shape::tiles(self.columns, self.angles());
        let counts = [self.straight, self.angles(), self.columns, self.size].map(Arg::from);
        let arrays = [image.into(), sinograms.into(), data.into(), rays.into()];
        Launch { name: "project", shape, arguments: arrays.into_iter().chain(counts).collect() }
    }

    /// `Aᵀ y`.
    pub fn spread(&self, sinograms: u64, image: u64, rays: &Buffer) -> Launch {
        let shape = Shape::tiles(self.size, self.size);
        let counts = [self.straight, self.angles(), self.columns, self.size].map(Arg::from);
        let arrays = [sinograms.into(), image.into(), rays.into()];
        Launch { name: "spread", shape, arguments: arrays.into_iter().chain(counts).collect() }
    }
}

/// A launch, ready.
pub(in crate::technique::tomography) struct Launch {
    pub name: &'static str,
    pub shape: Shape,
    pub arguments: Vec<Arg>,
}

/// Words of `Ray` in iterative.cu.
const WORDS: usize = 10;

fn words(ray: &Ray, angle: usize) -> [u32; WORDS] {
    let double = |v: f64| [v.to_bits() as u32, (v.to_bits() >> 32) as u32];
    let [a, b0, b1, back] = [ray.a, ray.b0, ray.b1, 1.0 / ray.a].map(double);
    [a[0], a[1], b0[0], b0[1], b1[0], b1[1], back[0], back[1], (ray.a.abs() as f32).to_bits(), angle as u32]
}

/// The kernels for so many slices side by side.
pub(super) fn program(slices: usize) -> Program {
    Program::of(File::Iterative).with("SLICES", slices as u32)
}

fn walk(values: usize) -> Shape {
    Shape::line(values.div_ceil(THREADS as usize * WALK).clamp(1, BLOCKS), THREADS)
}

/// SIRT's weights: one over the sums of the matrix's rows `[angle, column]` and columns `[line, pixel]`.
pub(super) struct Weights {
    pub rays: Buffer,
    pub pixels: Buffer,
}

impl Weights {
    /// Sums them on the device.
    pub fn new(gpu: &Gpu, stream: &Stream, iterate: &Iterate, rays: &Buffer) -> Result<Self, DeviceError> {
        let program = program(1);
        let launch = |l: Launch| stream.launch(gpu.function(&program, l.name)?, l.shape, &l.arguments);
        let edge = iterate.size + 2;
        let inside = |i: &usize| (1..edge - 1).contains(i);
        let ones = (0..edge * edge).map(|i| f32::from(u8::from(inside(&(i / edge)) && inside(&(i % edge)))));
        let image = put(gpu, stream, &ones.collect::<Vec<_>>())?;
        let (pixels, samples) = iterate.values();
        let sums = gpu.alloc(4 * samples)?;
        launch(iterate.project(image.address(0), sums.address(0), 0, rays))?;
        let ones = put(gpu, stream, &vec![1.0_f32; samples])?;
        launch(iterate.spread(ones.address(0), image.address(0), rays))?;
        for (sums, count) in [(&sums, samples), (&image, pixels)] {
            let arguments = vec![Arg::from(sums), count.into()];
            launch(Launch { name: "invert", shape: walk(count), arguments })?;
        }
        stream.synchronize()?;
        Ok(Self { rays: sums, pixels: image })
    }
}

/// A chunk's iterations: its arrays, and the way of numbers between host and device.
struct Solver<'a> {
    chunk: &'a Chunk<'a>,
    iterate: &'a Iterate,
    program: Program,
    slices: usize,
    /// Values of all slices, of an image and of a sinogram.
    pixels: usize,
    samples: usize,
    /// Sums of blocks, two of each.
    parts: Buffer,
    summed: Pinned,
    /// Rows of a number for each slice.
    numbers: Buffer,
    staged: Pinned,
    x: u64,
    /// The data, and what is not yet explained of them.
    data: u64,
    residual: u64,
    /// The transpose applied.
    back: u64,
    /// Direction, and its projection: CGLS only.
    direction: u64,
    projected: u64,
}

impl<'a> Solver<'a> {
    fn new(chunk: &'a Chunk<'a>, iterate: &'a Iterate) -> Result<Self, DeviceError> {
        let (gpu, slices) = (chunk.gpu, 2 * chunk.needs.pairs);
        let (pixels, samples) = iterate.values();
        let (pixels, samples) = (slices * pixels, slices * samples);
        let conjugate = iterate.method == Method::Cgls;
        let mut carve = Carve { arena: chunk.arena, at: 0 };
        let (x, back) = (carve.take(4 * pixels), carve.take(4 * pixels));
        let direction = if conjugate { carve.take(4 * pixels) } else { 0 };
        // What surrounds images stays empty; sinograms are written whole.
        chunk.stream.zero(chunk.arena, carve.at)?;
        let (data, residual) = (carve.take(4 * samples), carve.take(4 * samples));
        let projected = if conjugate { carve.take(4 * samples) } else { 0 };
        let sums = 8 * 2 * slices * walk(pixels.max(samples)).grid[0];
        Ok(Self {
            chunk,
            iterate,
            program: program(slices),
            slices,
            pixels,
            samples,
            parts: gpu.alloc(sums)?,
            summed: gpu.pinned(sums)?,
            numbers: gpu.alloc(4 * 3 * slices)?,
            staged: gpu.pinned(4 * 3 * slices)?,
            x,
            data,
            residual,
            back,
            direction,
            projected,
        })
    }

    fn launch(&self, name: &'static str, shape: Shape, arguments: &[Arg]) -> Result<(), DeviceError> {
        self.chunk.launch(&self.program, name, shape, arguments)
    }

    fn project(&self, image: u64, to: u64, data: u64) -> Result<(), DeviceError> {
        let l = self.iterate.project(image, to, data, &self.chunk.constants.rays);
        self.launch(l.name, l.shape, &l.arguments)
    }

    fn spread(&self) -> Result<(), DeviceError> {
        let l = self.iterate.spread(self.residual, self.back, &self.chunk.constants.rays);
        self.launch(l.name, l.shape, &l.arguments)
    }

    fn measure(&self, values: u64, count: usize, weights: u64) -> Result<(), DeviceError> {
        let arguments = [values.into(), weights.into(), count.into(), (&self.parts).into()];
        let label = match weights {
            0 if values == self.back => "measure images",
            0 => "measure sinograms",
            _ => "measure and weigh",
        };
        self.chunk.queue().launch_as(label, &self.program, "measure", walk(count), &arguments)
    }

    /// `a ← factor·a + other·b` with the numbers of two rows of [`Self::set`].
    fn combine(&self, a: u64, b: u64, rows: [usize; 2], count: usize) -> Result<(), DeviceError> {
        let [factor, other] = rows.map(|row| Arg::from(self.numbers.address(4 * row * self.slices)));
        let arguments = [a.into(), b.into(), factor, other, count.into(), (&self.parts).into()];
        let label = if a == self.residual { "combine sinograms" } else { "combine images" };
        self.chunk.queue().launch_as(label, &self.program, "combine", walk(count), &arguments)
    }

    fn clamp(&self) -> Result<(), DeviceError> {
        self.launch("clamp", walk(self.pixels), &[self.x.into(), self.pixels.into()])
    }

    /// Sends rows of numbers. Whoever sends again has waited in [`Self::sums`] meanwhile.
    fn set<const N: usize>(&mut self, rows: [Slices; N]) -> Result<(), DeviceError> {
        let staged = self.staged.as_mut::<f32>(N * self.slices);
        for (to, row) in staged.chunks_exact_mut(self.slices).zip(rows) {
            to.iter_mut().zip(row).for_each(|(to, v)| *to = v as f32);
        }
        self.chunk.stream.upload::<f32>(&self.staged, N * self.slices, &self.numbers)
    }

    /// Waits for the sums that a kernel of `values` values left, blocks added in order.
    fn sums<const N: usize>(&mut self, values: usize) -> Result<[Slices; N], DeviceError> {
        let stream = self.chunk.stream;
        let blocks = walk(values).grid[0];
        let count = N * blocks * self.slices;
        stream.download::<f64>(&self.parts, &mut self.summed, count)?;
        stream.synchronize()?;
        self.chunk.mark("waiting")?;
        let mut sums = [[0.0; MOST]; N];
        for (sum, set) in sums.iter_mut().zip(self.summed.as_ref::<f64>(count).chunks_exact(blocks * self.slices)) {
            for part in set.chunks_exact(self.slices) {
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
        }
        Ok(sums)
    }

    fn measured(&mut self, values: u64, count: usize, weights: u64) -> Result<Slices, DeviceError> {
        self.measure(values, count, weights)?;
        self.sums::<1>(count).map(|[sum]| sum)
    }

    /// Line integrals side by side, twice: the data, and the residual of an image of nothing.
    fn begin(&mut self) -> Result<Watch<'a, MOST>, DeviceError> {
        let (angles, columns) = (self.iterate.angles(), self.iterate.columns);
        for to in [self.data, self.residual] {
            let arguments = [Arg::from(self.chunk.sinograms), to.into(), self.chunk.rows.into(), columns.into()];
            self.launch("interleave", Shape::over(columns, angles, 1, THREADS), &arguments)?;
        }
        let data = self.measured(self.data, self.samples, 0)?;
        Ok(Watch::new(&self.iterate.stopping, self.chunk.rows, data, self.samples / self.slices))
    }

    fn sirt(&mut self, weights: &Weights) -> Result<[Ending; MOST], DeviceError> {
        let mut watch = self.begin()?;
        let floor = if self.iterate.stopping.nonnegative { 0.0 } else { f32::NEG_INFINITY };
        for k in 0..self.iterate.stopping.iterations {
            if k > 0 {
                self.project(self.x, self.residual, self.data)?;
            }
            watch.residual(self.measured(self.residual, self.samples, weights.rays.address(0))?);
            if !watch.any() {
                break;
            }
            self.spread()?;
            self.set([watch.only([1.0; MOST])])?;
            let arguments = [
                self.x.into(),
                self.back.into(),
                Arg::from(&weights.pixels),
                Arg::from(&self.numbers),
                floor.into(),
                self.pixels.into(),
                (&self.parts).into(),
            ];
            self.launch("sirt_step", walk(self.pixels), &arguments)?;
            let [change, size] = self.sums(self.pixels)?;
            watch.step(change, size);
        }
        Ok(watch.endings)
    }

    fn cgls(&mut self) -> Result<[Ending; MOST], DeviceError> {
        let mut watch = self.begin()?;
        let Stopping { iterations, nonnegative, .. } = self.iterate.stopping;
        let (pixels, samples, ones) = (self.pixels, self.samples, [1.0; MOST]);
        let mut norm = [0.0; MOST];
        for k in 0..iterations {
            let anew = k == 0 || (nonnegative && k % RESTART == 0);
            if anew && k > 0 {
                self.clamp()?;
                self.project(self.x, self.residual, self.data)?;
            }
            watch.residual(self.measured(self.residual, samples, 0)?);
            if !watch.any() {
                break;
            }
            self.spread()?;
            let next = self.measured(self.back, pixels, 0)?;
            let beta = if anew { [0.0; MOST] } else { divide(next, norm) };
            norm = next;
            self.set([beta, ones])?;
            self.combine(self.direction, self.back, [0, 1], pixels)?;
            let [length] = self.sums(pixels)?;
            self.project(self.direction, self.projected, 0)?;
            let alpha = watch.only(divide(norm, self.measured(self.projected, samples, 0)?));
            self.set([ones, alpha, alpha.map(|a| -a)])?;
            self.combine(self.x, self.direction, [0, 1], pixels)?;
            let [size] = self.sums(pixels)?;
            self.combine(self.residual, self.projected, [0, 2], samples)?;
            watch.step(std::array::from_fn(|l| alpha[l].powi(2) * length[l]), size);
        }
        if nonnegative {
            self.clamp()?;
        }
        Ok(watch.endings)
    }
}

impl Chunk<'_> {
    /// Line integrals to images by iteration; how each row ended. Waits.
    pub fn iterate(&self, iterate: &Iterate) -> Result<Vec<Ending>, DeviceError> {
        let mut solver = Solver::new(self, iterate)?;
        let endings = match &self.constants.weights {
            Some(weights) => solver.sirt(weights)?,
            None => solver.cgls()?,
        };
        let setup = self.setup;
        let arguments = [
            solver.x.into(),
            Arg::from(self.images),
            self.rows.into(),
            setup.size().into(),
            setup.radius2.into(),
            setup.factor.into(),
        ];
        solver.launch("release", Shape::tiles(setup.size(), setup.size()), &arguments)?;
        // The solver's own memory goes with it.
        self.stream.synchronize()?;
        Ok(endings[..self.rows].to_vec())
    }
}

/// Bytes of the arena for a chunk.
pub(super) fn bytes(setup: &Setup, pairs: usize) -> usize {
    setup.iterate.as_ref().map_or(0, |iterate| iterate.bytes(2 * pairs))
}
