//! A projector and its exact transpose, for iterative methods.
//!
//! Joseph, IEEE Trans. Med. Imaging 1, 192 (1982): along the ray `x cos θ + y sin θ = u − c` (axes and signs:
//! [`super::convention`]) the image is sampled where the ray crosses rows of pixels (`|cos θ| ≥ |sin θ|`, else columns), with
//! linear interpolation between two pixels, and the sum is multiplied by the distance of crossings, `1/|cos θ|` or `1/|sin θ|`.
//! The transpose spreads with the same weights, computed by the same expressions, so `⟨Ax, y⟩ = ⟨x, Aᵀy⟩` but for
//! rounding of the sums. Outside the image is nothing.
//!
//! Images and sinograms of several slices lie interleaved, a slice per SIMD lane: a weight is computed once for all of
//! them. Projecting, threads share the angles; spreading, they share the image's rows: nobody writes what another writes,
//! and results do not depend on the number of threads. Rows are taken in bands that stay in the second cache.

use rayon::prelude::*;

use super::batch::Isa;
use super::convention::middle;
use super::error::TomographyError;
use super::gridding::Geometry;
use super::lanes::Lane;

/// Rows of a band: 16 rows of 1024 pixels in eight lanes are half a megabyte.
const BAND: usize = 16;

/// One angle: crossings with row `r` lie at pixel `a u + b₀ + b₁ r`.
#[derive(Clone, Copy)]
pub(super) struct Ray {
    /// Rows are the image's columns.
    pub(super) turned: bool,
    pub(super) a: f64,
    pub(super) b0: f64,
    pub(super) b1: f64,
}

/// The geometry of one scan.
pub(super) struct Projector {
    pub(super) rays: Vec<Ray>,
    columns: usize,
    size: usize,
    isa: Isa,
}

/// An image of several slices and its transpose; every line has an empty pixel at either end.
pub(super) struct Image<V> {
    plain: Vec<V>,
    turned: Vec<V>,
}

impl Projector {
    /// Plans projections of images `size × size`.
    pub(super) fn new(geometry: &Geometry<'_>) -> Result<Self, TomographyError> {
        geometry.check()?;
        let (mid, c) = (middle(geometry.size), geometry.centre);
        let ray = |&angle: &f64| {
            let (sin, cos) = angle.sin_cos();
            if cos.abs() >= sin.abs() {
                // x = (u − c − y sin)/cos with y = mid − r.
                Ray { turned: false, a: 1.0 / cos, b0: mid - (c + mid * sin) / cos, b1: sin / cos }
            } else {
                // y = (u − c − x cos)/sin with x = r − mid; the pixel is mid − y.
                Ray { turned: true, a: -1.0 / sin, b0: mid + (c - mid * cos) / sin, b1: cos / sin }
            }
        };
        let rays = geometry.angles.iter().map(ray).collect();
        Ok(Self { rays, columns: geometry.columns, size: geometry.size, isa: Isa::detect() })
    }

    /// Pixels of a line with its empty ends.
    pub(super) fn stride(&self) -> usize {
        self.size + 2
    }

    /// Values of a sinogram `[angle, column]`.
    pub(super) fn samples(&self) -> usize {
        self.rays.len() * self.columns
    }

    /// An image of zeros.
    pub(super) fn image<V: Lane>(&self) -> Image<V> {
        let empty = vec![V::ZERO; self.size * self.stride()];
        Image { plain: empty.clone(), turned: empty }
    }

    /// Lines of an image without their empty ends.
    pub(super) fn lines<'a, V: Lane>(&self, plain: &'a [V]) -> impl IndexedParallelIterator<Item = &'a [V]> {
        plain.par_chunks_exact(self.stride()).map(|line| &line[1..line.len() - 1])
    }

    /// `A x` into `[angle, column]`.
    pub(super) fn project<V: Lane>(&self, image: &mut Image<V>, sinogram: &mut [V]) {
        transpose(&image.plain, &mut image.turned, self.size);
        let together = self.rays.len().div_ceil(4 * rayon::current_num_threads()).max(1);
        let chunks = sinogram.par_chunks_mut(together * self.columns).zip(self.rays.par_chunks(together));
        chunks.for_each(|(lines, rays)| match self.isa {
            Isa::Portable => self.project_rays::<V, false>(image, rays, lines),
            // SAFETY: `Isa::Avx2` is only made by `Isa::detect`, after it found both features on this CPU.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { self.project_avx2(image, rays, lines) },
        });
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn project_avx2<V: Lane>(&self, image: &Image<V>, rays: &[Ray], lines: &mut [V]) {
        self.project_rays::<V, true>(image, rays, lines);
    }

    #[inline(always)]
    fn project_rays<V: Lane, const FMA: bool>(&self, image: &Image<V>, rays: &[Ray], lines: &mut [V]) {
        lines.fill(V::ZERO);
        for first in (0..self.size).step_by(BAND) {
            for (line, ray) in lines.chunks_exact_mut(self.columns).zip(rays) {
                let from = if ray.turned { &image.turned } else { &image.plain };
                for r in first..(first + BAND).min(self.size) {
                    let row = &from[r * self.stride()..][..self.stride()];
                    self.crossings(ray, r, |u, i, low, high| {
                        // Both neighbours lie in the row: that is what the range was cut to.
                        let [near, far] = [row[i], row[i + 1]];
                        line[u] = line[u].add_scaled::<FMA>(low, near).add_scaled::<FMA>(high, far);
                    });
                }
            }
        }
    }

    /// `Aᵀ y` of a sinogram `[angle, column]`; the result is the plain image.
    pub(super) fn spread<V: Lane>(&self, sinogram: &[V], image: &mut Image<V>) {
        let stride = self.stride();
        for (turned, lines) in [(false, &mut image.plain), (true, &mut image.turned)] {
            lines.par_chunks_mut(BAND * stride).enumerate().for_each(|(band, lines)| match self.isa {
                Isa::Portable => self.spread_rows::<V, false>(sinogram, turned, band * BAND, lines),
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { self.spread_avx2(sinogram, turned, band * BAND, lines) },
            });
        }
        add_transposed(&image.turned, &mut image.plain, self.size);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn spread_avx2<V: Lane>(&self, sinogram: &[V], turned: bool, first: usize, lines: &mut [V]) {
        self.spread_rows::<V, true>(sinogram, turned, first, lines);
    }

    #[inline(always)]
    fn spread_rows<V: Lane, const FMA: bool>(&self, sinogram: &[V], turned: bool, first: usize, lines: &mut [V]) {
        lines.fill(V::ZERO);
        for (ray, line) in self.rays.iter().zip(sinogram.chunks_exact(self.columns)) {
            if ray.turned != turned {
                continue;
            }
            for (r, row) in lines.chunks_exact_mut(self.stride()).enumerate() {
                self.crossings(ray, first + r, |u, i, low, high| {
                    row[i] = row[i].add_scaled::<FMA>(low, line[u]);
                    row[i + 1] = row[i + 1].add_scaled::<FMA>(high, line[u]);
                });
            }
        }
        for row in lines.chunks_exact_mut(self.stride()) {
            // What fell beside the image.
            row[0] = V::ZERO;
            row[self.size + 1] = V::ZERO;
        }
    }

    /// Calls `each(column, index of the first of two pixels in a padded line, its weight, the other's)` for every ray of an
    /// angle that crosses row `r` inside the image.
    #[inline(always)]
    fn crossings(&self, ray: &Ray, r: usize, mut each: impl FnMut(usize, usize, f32, f32)) {
        // Position in the padded line: pixel 0 lies at 1. Between 0 and size + 1 at least one neighbour is a pixel.
        let start = 1.0 + ray.b0 + ray.b1 * r as f64;
        let end = (self.size + 1) as f64;
        let (at_low, at_high) = ((0.0 - start) / ray.a, (end - start) / ray.a);
        let least = at_low.min(at_high).ceil().max(0.0);
        let most = at_low.max(at_high).floor().min(self.columns as f64 - 1.0);
        if least > most {
            return;
        }
        let scale = ray.a.abs() as f32;
        for u in least as usize..=most as usize {
            // Rounding may leave the interval by less than anything that counts.
            let at = (start + ray.a * u as f64).clamp(0.0, end - 1e-9);
            let i = at as usize;
            let high = (at - i as f64) as f32 * scale;
            each(u, i, scale - high, high);
        }
    }
}

impl<V> Image<V> {
    /// The image, lines of [`Projector::stride`].
    pub(super) fn pixels(&self) -> &[V] {
        &self.plain
    }

    /// As [`Self::pixels`], to be written.
    pub(super) fn pixels_mut(&mut self) -> &mut [V] {
        &mut self.plain
    }
}

/// Edge of the tiles of a transposition.
const TILE: usize = 16;

fn transpose<V: Lane>(from: &[V], to: &mut [V], size: usize) {
    tiles(from, to, size, |to, from| *to = from);
}

fn add_transposed<V: Lane>(from: &[V], to: &mut [V], size: usize) {
    tiles(from, to, size, |to, from| *to = to.add(from));
}

fn tiles<V: Lane>(from: &[V], to: &mut [V], size: usize, put: impl Fn(&mut V, V) + Sync) {
    let stride = size + 2;
    to.par_chunks_mut(TILE * stride).enumerate().for_each(|(band, lines)| {
        for left in (0..size).step_by(TILE) {
            for (y, line) in lines.chunks_exact_mut(stride).enumerate() {
                for x in left..(left + TILE).min(size) {
                    put(&mut line[1 + x], from[x * stride + 1 + band * TILE + y]);
                }
            }
        }
    });
}

#[cfg(test)]
#[path = "projector_tests.rs"]
mod tests;
