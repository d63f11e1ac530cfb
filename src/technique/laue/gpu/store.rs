//! What the kernels of the coded aperture look up: templates, splines, energies, roots of unity.

use super::Aperture;
use super::list::{self, Batch, Listed};
use super::memory::{Needs, POINTS};
use crate::device::gpu::{Buffer, Pinned, Stream};
use crate::device::{DeviceError, Gpu};
use crate::technique::laue::search::Template;
use crate::technique::tomography::gpu::put;
use std::collections::BTreeMap;
use std::ops::Range;

/// Templates of a slab on the device, uploaded when they are first wanted.
pub(super) struct Templates {
    places: BTreeMap<list::Kind, usize>,
    room: usize,
    samples: usize,
    pub covers: Buffer,
    pub expected: Buffer,
    pub sums: Buffer,
    pub widths: Buffer,
    pub spectra: Buffer,
    host_covers: Pinned,
    host_expected: Pinned,
    host_sums: Pinned,
    host_widths: Pinned,
}

/// Roots of unity in the order in which laue_transform.cu wants them.
fn turns() -> Vec<[f32; 2]> {
    let root = |n: usize, k: usize| {
        let (sine, cosine) = (-std::f64::consts::TAU * k as f64 / n as f64).sin_cos();
        [cosine as f32, sine as f32]
    };
    let wide = (0..POINTS).map(|i| root(POINTS, i / 256 * (i % 256)));
    wide.chain((0..256).map(|i| root(256, i / 16 * (i % 16)))).collect()
}

/// What all pixels of a slab share.
pub(super) struct Shared {
    pub basis: Buffer,
    pub energies: Buffer,
    pub attenuations: Buffer,
    pub turns: Buffer,
}

impl Shared {
    pub fn new(gpu: &Gpu, stream: &Stream, aperture: &Aperture<'_>) -> Result<Self, DeviceError> {
        let of = |field: usize| aperture.energies.iter().map(|e| e[field]).collect::<Vec<f64>>();
        Ok(Self {
            basis: put(gpu, stream, aperture.decoder.basis().0)?,
            energies: put(gpu, stream, &of(0))?,
            attenuations: put(gpu, stream, &of(1))?,
            turns: put(gpu, stream, turns().as_flattened())?,
        })
    }
}

impl Templates {
    pub fn new(gpu: &Gpu, needs: &Needs) -> Result<Self, DeviceError> {
        let (room, samples) = (needs.templates, needs.samples);
        let (one, sums) = (4 * samples * room, 16 * (samples + 1) * room);
        Ok(Self {
            places: BTreeMap::new(),
            room,
            samples,
            covers: gpu.alloc(one)?,
            expected: gpu.alloc(one)?,
            sums: gpu.alloc(sums)?,
            widths: gpu.alloc(8 * room)?,
            spectra: gpu.alloc(8 * POINTS * needs.pairs * room)?,
            host_covers: gpu.pinned(one)?,
            host_expected: gpu.pinned(one)?,
            host_sums: gpu.pinned(sums)?,
            host_widths: gpu.pinned(8 * room)?,
        })
    }

    /// Forgets all: another slab's pixels may mean other templates. Nothing of the one before may still run.
    pub fn clear(&mut self) {
        self.places.clear();
    }

    /// Places of the templates of a batch, all of which are on the device when the stream is here; and of those that are new.
    pub fn bring(
        &mut self,
        stream: &Stream,
        all: &[Listed],
        batch: &Batch,
    ) -> Result<(Vec<usize>, Range<usize>), DeviceError> {
        let own = &all[batch.range.clone()];
        let first_of = |run: &Range<usize>| &own[run.start];
        let missing = batch.kinds.iter().filter(|run| !self.places.contains_key(&first_of(run).kind)).count();
        if self.places.len() + missing > self.room {
            // Templates that are on their way, or read by kernels, must not change.
            stream.synchronize()?;
            self.places.clear();
        }
        let known = self.places.len();
        let mut places = Vec::with_capacity(batch.kinds.len());
        for run in &batch.kinds {
            let pixel = first_of(run);
            let next = self.places.len();
            let place = *self.places.entry(pixel.kind).or_insert(next);
            if place == next {
                self.upload(stream, place, &pixel.template)?;
            }
            places.push(place);
        }
        Ok((places, known..self.places.len()))
    }

    fn upload(&mut self, stream: &Stream, place: usize, template: &Template) -> Result<(), DeviceError> {
        let n = self.samples;
        let samples = place * n..(place + 1) * n;
        let sums = place * 2 * (n + 1)..(place + 1) * 2 * (n + 1);
        self.host_covers.as_mut::<f32>(samples.end)[samples.clone()].copy_from_slice(&template.cover);
        self.host_expected.as_mut::<f32>(samples.end)[samples.clone()].copy_from_slice(&template.expected);
        self.host_sums.as_mut::<f64>(sums.end)[sums.clone()].copy_from_slice(template.sums().as_flattened());
        self.host_widths.as_mut::<f64>(place + 1)[place] = template.width;
        stream.upload_part::<f32>(&self.host_covers, samples.clone(), &self.covers)?;
        stream.upload_part::<f32>(&self.host_expected, samples, &self.expected)?;
        stream.upload_part::<f64>(&self.host_sums, sums, &self.sums)?;
        stream.upload_part::<f64>(&self.host_widths, place..place + 1, &self.widths)
    }
}
