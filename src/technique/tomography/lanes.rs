//! A Fourier transform of many signals at once, one signal per SIMD lane.
//!
//! Every element of a signal is a [`Cell`]: the real parts of all lanes, then the imaginary parts. Butterflies then need no
//! shuffles and twiddle factors are loaded once for all lanes, which is why this beats a transform per signal when many
//! equal signals are at hand. The algorithm is Stockham's autosort (no bit reversal) with radices 5, 3, 4 and 2.
//!
//! Axes: element, then re/im, then lane. Unnormalised in both directions: forward `Σ x_j e^{−2πi jk/n}`, inverse `+`.
//! NaN policy: a NaN spreads over its own lane only (the two real signals packed into re and im share it).
//!
//! The bodies are `#[inline(always)]` and generic over `FMA`, so that a caller compiled with
//! `#[target_feature(enable = "avx2,fma")]` gets 256-bit fused code out of a baseline x86-64 build.

use std::f64::consts::TAU;

/// A vector of `LANES` real numbers with lane-wise arithmetic.
pub(crate) trait Lane: Copy + Send + Sync + 'static {
    /// How many signals.
    const LANES: usize;
    /// All lanes zero.
    const ZERO: Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn scale(self, factor: f32) -> Self;
    /// `self + factor · other`, fused when `FMA`.
    fn add_scaled<const FMA: bool>(self, factor: f32, other: Self) -> Self;
    fn as_slice(&self) -> &[f32];
    fn as_mut_slice(&mut self) -> &mut [f32];
}

macro_rules! lane {
    ($name:ident, $lanes:literal, $align:literal) => {
        #[doc = concat!(stringify!($lanes), " lanes.")]
        #[derive(Debug, Clone, Copy, PartialEq)]
        #[repr(C, align($align))]
        pub(crate) struct $name([f32; $lanes]);

        impl Lane for $name {
            const LANES: usize = $lanes;
            const ZERO: Self = Self([0.0; $lanes]);

            #[inline(always)]
            fn add(mut self, other: Self) -> Self {
                for l in 0..$lanes {
                    self.0[l] += other.0[l];
                }
                self
            }

            #[inline(always)]
            fn sub(mut self, other: Self) -> Self {
                for l in 0..$lanes {
                    self.0[l] -= other.0[l];
                }
                self
            }

            #[inline(always)]
            fn scale(mut self, factor: f32) -> Self {
                for l in 0..$lanes {
                    self.0[l] *= factor;
                }
                self
            }

            #[inline(always)]
            fn add_scaled<const FMA: bool>(mut self, factor: f32, other: Self) -> Self {
                for l in 0..$lanes {
                    self.0[l] =
                        if FMA { factor.mul_add(other.0[l], self.0[l]) } else { self.0[l] + factor * other.0[l] };
                }
                self
            }

            #[inline(always)]
            fn as_slice(&self) -> &[f32] {
                &self.0
            }

            #[inline(always)]
            fn as_mut_slice(&mut self) -> &mut [f32] {
                &mut self.0
            }
        }
    };
}

lane!(V1, 1, 4);
lane!(V4, 4, 16);
lane!(V8, 8, 32);

/// One complex element of every lane's signal.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub(crate) struct Cell<V> {
    pub(crate) re: V,
    pub(crate) im: V,
}

impl<V: Lane> Cell<V> {
    pub(crate) const ZERO: Self = Self { re: V::ZERO, im: V::ZERO };

    #[inline(always)]
    pub(crate) fn add(self, other: Self) -> Self {
        Self { re: self.re.add(other.re), im: self.im.add(other.im) }
    }

    #[inline(always)]
    pub(crate) fn sub(self, other: Self) -> Self {
        Self { re: self.re.sub(other.re), im: self.im.sub(other.im) }
    }

    #[inline(always)]
    pub(crate) fn scale(self, factor: f32) -> Self {
        Self { re: self.re.scale(factor), im: self.im.scale(factor) }
    }

    #[inline(always)]
    pub(crate) fn add_scaled<const FMA: bool>(self, factor: f32, other: Self) -> Self {
        Self { re: self.re.add_scaled::<FMA>(factor, other.re), im: self.im.add_scaled::<FMA>(factor, other.im) }
    }

    /// Times the complex number `c + i s`.
    #[inline(always)]
    pub(crate) fn rotate<const FMA: bool>(self, c: f32, s: f32) -> Self {
        Self { re: self.re.scale(c).add_scaled::<FMA>(-s, self.im), im: self.im.scale(c).add_scaled::<FMA>(s, self.re) }
    }

    /// `self + i other`.
    #[inline(always)]
    fn add_i(self, other: Self) -> Self {
        Self { re: self.re.sub(other.im), im: self.im.add(other.re) }
    }

    /// `self − i other`.
    #[inline(always)]
    fn sub_i(self, other: Self) -> Self {
        Self { re: self.re.add(other.im), im: self.im.sub(other.re) }
    }
}

/// One pass: `groups` butterflies of one radix, each over `stride` adjacent elements.
struct Stage {
    radix: usize,
    stride: usize,
    /// `radix − 1` factors `(cos, sin)` per group.
    twiddles: Vec<(f32, f32)>,
}

/// Plan of a transform of one length and direction.
pub(crate) struct LaneFft {
    length: usize,
    inverse: bool,
    stages: Vec<Stage>,
}

/// The least even `2^a 3^b 5^c` that is at least `least`.
pub(crate) fn good_length(least: usize) -> usize {
    let mut n = least.max(2).next_multiple_of(2);
    while remainder(n) != 1 {
        n += 2;
    }
    n
}

fn remainder(mut n: usize) -> usize {
    for p in [2, 3, 5] {
        while n.is_multiple_of(p) {
            n /= p;
        }
    }
    n
}

impl LaneFft {
    /// Plans a transform; `length` must be a product of 2, 3 and 5 (see [`good_length`]).
    pub(crate) fn new(length: usize, inverse: bool) -> Self {
        assert!(length >= 2 && remainder(length) == 1, "length {length} is not a product of 2, 3 and 5");
        let mut stages = Vec::new();
        let (mut n, mut stride) = (length, 1);
        while n > 1 {
            let radix = [5, 3, 4, 2].into_iter().find(|&r| n.is_multiple_of(r)).unwrap_or(n);
            let groups = n / radix;
            let mut twiddles = Vec::with_capacity(groups * (radix - 1));
            for p in 0..groups {
                for k in 1..radix {
                    let angle = TAU * ((p * k) % n) as f64 / n as f64;
                    let sine = if inverse { angle.sin() } else { -angle.sin() };
                    twiddles.push((angle.cos() as f32, sine as f32));
                }
            }
            stages.push(Stage { radix, stride, twiddles });
            n = groups;
            stride *= radix;
        }
        Self { length, inverse, stages }
    }

    /// Real floating-point operations per lane, counted from the butterflies (a fused multiply-add is two).
    pub(crate) fn flops(&self) -> f64 {
        let per_point = |radix: usize| match radix {
            2 => (4 + 6) as f64 / 2.0,
            3 => (16 + 12) as f64 / 3.0,
            4 => (16 + 18) as f64 / 4.0,
            _ => (52 + 24) as f64 / 5.0,
        };
        self.stages.iter().map(|s| per_point(s.radix) * self.length as f64).sum()
    }

    /// Transforms `data` in place, using `work` of the same length. `FMA` may be set only where the CPU is known to have
    /// AVX2 and FMA.
    ///
    /// A call, not inlined: the passes are large, and three copies of them for every lane width and instruction set
    /// took the compiler minutes and the processor nothing.
    #[inline(always)]
    pub(crate) fn process<V: Lane, const FMA: bool>(&self, data: &mut [Cell<V>], work: &mut [Cell<V>]) {
        #[cfg(target_arch = "x86_64")]
        if FMA {
            // SAFETY: callers instantiate `FMA` only inside functions compiled for, and reached only on, such CPUs.
            return unsafe { self.process_avx2(data, work) };
        }
        self.process_portable::<V, FMA>(data, work);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn process_avx2<V: Lane>(&self, data: &mut [Cell<V>], work: &mut [Cell<V>]) {
        self.both::<V, true>(data, work);
    }

    #[inline(never)]
    fn process_portable<V: Lane, const FMA: bool>(&self, data: &mut [Cell<V>], work: &mut [Cell<V>]) {
        self.both::<V, FMA>(data, work);
    }

    #[inline(always)]
    fn both<V: Lane, const FMA: bool>(&self, data: &mut [Cell<V>], work: &mut [Cell<V>]) {
        if self.inverse {
            self.run::<V, FMA, true>(data, work);
        } else {
            self.run::<V, FMA, false>(data, work);
        }
    }

    #[inline(always)]
    fn run<V: Lane, const FMA: bool, const INVERSE: bool>(&self, data: &mut [Cell<V>], work: &mut [Cell<V>]) {
        assert!(data.len() == self.length && work.len() == self.length, "buffers of the planned length");
        let (mut from, mut to) = (data, work);
        for stage in &self.stages {
            match stage.radix {
                2 => stage.pass2::<V, FMA>(from, to),
                3 => stage.pass3::<V, FMA, INVERSE>(from, to),
                4 => stage.pass4::<V, FMA, INVERSE>(from, to),
                _ => stage.pass5::<V, FMA, INVERSE>(from, to),
            }
            std::mem::swap(&mut from, &mut to);
        }
        if self.stages.len() % 2 == 1 {
            // The result lies in `work`, which is now `from`.
            to.copy_from_slice(from);
        }
    }
}

impl Stage {
    #[inline(always)]
    fn pass2<V: Lane, const FMA: bool>(&self, from: &[Cell<V>], to: &mut [Cell<V>]) {
        let (s, part) = (self.stride, from.len() / 2);
        let (x0, x1) = from.split_at(part);
        for (((y, a), b), &(c, w)) in
            to.chunks_exact_mut(2 * s).zip(x0.chunks_exact(s)).zip(x1.chunks_exact(s)).zip(&self.twiddles)
        {
            let (y0, y1) = y.split_at_mut(s);
            for q in 0..s {
                y0[q] = a[q].add(b[q]);
                y1[q] = a[q].sub(b[q]).rotate::<FMA>(c, w);
            }
        }
    }

    #[inline(always)]
    fn pass3<V: Lane, const FMA: bool, const INVERSE: bool>(&self, from: &[Cell<V>], to: &mut [Cell<V>]) {
        const SIN: f32 = 0.866_025_4;
        let (s, part) = (self.stride, from.len() / 3);
        let (x0, rest) = from.split_at(part);
        let (x1, x2) = rest.split_at(part);
        for ((((y, a), b), c), w) in to
            .chunks_exact_mut(3 * s)
            .zip(x0.chunks_exact(s))
            .zip(x1.chunks_exact(s))
            .zip(x2.chunks_exact(s))
            .zip(self.twiddles.chunks_exact(2))
        {
            let (y0, rest) = y.split_at_mut(s);
            let (y1, y2) = rest.split_at_mut(s);
            for q in 0..s {
                let sum = b[q].add(c[q]);
                let middle = a[q].add_scaled::<FMA>(-0.5, sum);
                let turn = b[q].sub(c[q]).scale(if INVERSE { SIN } else { -SIN });
                y0[q] = a[q].add(sum);
                y1[q] = middle.add_i(turn).rotate::<FMA>(w[0].0, w[0].1);
                y2[q] = middle.sub_i(turn).rotate::<FMA>(w[1].0, w[1].1);
            }
        }
    }

    #[inline(always)]
    fn pass4<V: Lane, const FMA: bool, const INVERSE: bool>(&self, from: &[Cell<V>], to: &mut [Cell<V>]) {
        let (s, part) = (self.stride, from.len() / 4);
        let (x0, rest) = from.split_at(part);
        let (x1, rest) = rest.split_at(part);
        let (x2, x3) = rest.split_at(part);
        for (((((y, a), b), c), d), w) in to
            .chunks_exact_mut(4 * s)
            .zip(x0.chunks_exact(s))
            .zip(x1.chunks_exact(s))
            .zip(x2.chunks_exact(s))
            .zip(x3.chunks_exact(s))
            .zip(self.twiddles.chunks_exact(3))
        {
            let (y0, rest) = y.split_at_mut(s);
            let (y1, rest) = rest.split_at_mut(s);
            let (y2, y3) = rest.split_at_mut(s);
            for q in 0..s {
                let (even, even_turn) = (a[q].add(c[q]), a[q].sub(c[q]));
                let (odd, odd_turn) = (b[q].add(d[q]), b[q].sub(d[q]));
                y0[q] = even.add(odd);
                y2[q] = even.sub(odd).rotate::<FMA>(w[1].0, w[1].1);
                let (up, down) = (even_turn.add_i(odd_turn), even_turn.sub_i(odd_turn));
                let (first, third) = if INVERSE { (up, down) } else { (down, up) };
                y1[q] = first.rotate::<FMA>(w[0].0, w[0].1);
                y3[q] = third.rotate::<FMA>(w[2].0, w[2].1);
            }
        }
    }

    #[inline(always)]
    fn pass5<V: Lane, const FMA: bool, const INVERSE: bool>(&self, from: &[Cell<V>], to: &mut [Cell<V>]) {
        // cos and sin of 2π/5 and 4π/5.
        const C1: f32 = 0.309_017;
        const C2: f32 = -0.809_017;
        const S1: f32 = 0.951_056_5;
        const S2: f32 = 0.587_785_24;
        let (s, part) = (self.stride, from.len() / 5);
        let sign = if INVERSE { 1.0 } else { -1.0 };
        for (p, (y, w)) in to.chunks_exact_mut(5 * s).zip(self.twiddles.chunks_exact(4)).enumerate() {
            let (y0, rest) = y.split_at_mut(s);
            let (y1, rest) = rest.split_at_mut(s);
            let (y2, rest) = rest.split_at_mut(s);
            let (y3, y4) = rest.split_at_mut(s);
            for q in 0..s {
                let x = |j: usize| from[p * s + q + j * part];
                let (sum1, difference1) = (x(1).add(x(4)), x(1).sub(x(4)));
                let (sum2, difference2) = (x(2).add(x(3)), x(2).sub(x(3)));
                let a = x(0);
                y0[q] = a.add(sum1).add(sum2);
                let m1 = a.add_scaled::<FMA>(C1, sum1).add_scaled::<FMA>(C2, sum2);
                let m2 = a.add_scaled::<FMA>(C2, sum1).add_scaled::<FMA>(C1, sum2);
                let t1 = difference1.scale(sign * S1).add_scaled::<FMA>(sign * S2, difference2);
                let t2 = difference1.scale(sign * S2).add_scaled::<FMA>(-sign * S1, difference2);
                y1[q] = m1.add_i(t1).rotate::<FMA>(w[0].0, w[0].1);
                y4[q] = m1.sub_i(t1).rotate::<FMA>(w[3].0, w[3].1);
                y2[q] = m2.add_i(t2).rotate::<FMA>(w[1].0, w[1].1);
                y3[q] = m2.sub_i(t2).rotate::<FMA>(w[2].0, w[2].1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fft_plans::Complex64;
    use rand::{Rng, SeedableRng};

    /// Largest absolute difference of any lane from rustfft in double precision, over the reference's root mean square.
    fn error<V: Lane, const FMA: bool>(length: usize, inverse: bool) -> f64 {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(length as u64);
        let mut data = vec![Cell::<V>::ZERO; length];
        for cell in &mut data {
            for part in [&mut cell.re, &mut cell.im] {
                part.as_mut_slice().iter_mut().for_each(|v| *v = rng.random_range(-1.0..1.0));
            }
        }
        // Dirty scratch must not matter.
        let mut work = vec![Cell { re: V::ZERO, im: V::ZERO }; length];
        for cell in &mut work {
            cell.re.as_mut_slice().fill(f32::NAN);
        }
        let before = data.clone();
        LaneFft::new(length, inverse).process::<V, FMA>(&mut data, &mut work);
        let fft = if inverse { fft_plans::inverse_f64(length) } else { fft_plans::forward_f64(length) };
        let mut worst = 0.0_f64;
        for l in 0..V::LANES {
            let mut reference: Vec<_> = before
                .iter()
                .map(|c| Complex64::new(f64::from(c.re.as_slice()[l]), f64::from(c.im.as_slice()[l])))
                .collect();
            fft.process(&mut reference);
            let rms = (reference.iter().map(|c| c.norm_sqr()).sum::<f64>() / length as f64).sqrt();
            for (got, want) in data.iter().zip(&reference) {
                let got = Complex64::new(f64::from(got.re.as_slice()[l]), f64::from(got.im.as_slice()[l]));
                let difference = (got - want).norm() / rms;
                assert!(!difference.is_nan());
                worst = worst.max(difference);
            }
        }
        worst
    }

    #[test]
    fn every_length_agrees_with_a_double_precision_transform_in_every_lane_and_direction() {
        for length in (2..=360).filter(|&n| remainder(n) == 1).chain([768, 1024, 1536, 2000]) {
            for inverse in [false, true] {
                // Rounding grows as √log n · 6e-8; 2e-6 leaves an order of magnitude.
                assert!(error::<V8, false>(length, inverse) < 2e-6, "{length}");
                assert!(error::<V4, true>(length, inverse) < 2e-6, "{length}");
                assert!(error::<V1, false>(length, inverse) < 2e-6, "{length}");
            }
        }
    }

    #[test]
    fn good_lengths_are_even_smooth_and_not_below_the_least() {
        assert_eq!(good_length(1), 2);
        assert_eq!(good_length(768), 768);
        assert_eq!(good_length(769), 800);
        for n in 1..2000 {
            let g = good_length(n);
            assert!(g >= n && g.is_multiple_of(2) && remainder(g) == 1);
        }
    }
}
