//! Un-bitshuffling of two-byte elements with GFNI, where the processor has it: a third of the instructions of AVX2.
//!
//! One instruction multiplies bytes by 8 × 8 bits. Eight rows are interleaved, so that a group's eight bytes lie together,
//! the last row first; as a matrix, times the unit vectors, they come out transposed: byte `j` has bit `j` of each.

use std::arch::x86_64::*;

/// Bytes of a row, and groups, done at a time.
const STEP: usize = 32;
/// Byte `j` is 2^j.
const UNITS: i64 = 0x8040_2010_0804_0201_u64 as i64;

/// As [`super::avx2::unshuffle_u16`].
#[target_feature(enable = "avx2,gfni")]
pub(super) fn unshuffle_u16(input: &[u8], out: &mut [u8]) -> usize {
    let row = input.len() / 16;
    if row < STEP {
        return 0;
    }
    let mut lines: [&[[u8; STEP]]; 16] = [&[]; 16];
    lines.iter_mut().zip(input.chunks_exact(row)).for_each(|(l, r)| *l = r.as_chunks().0);
    let steps = row / STEP;
    for (i, out) in out.as_chunks_mut::<{ STEP * 16 }>().0.iter_mut().take(steps).enumerate() {
        let line = |k: usize| lines[k].get(i).map_or(_mm256_setzero_si256(), |bytes| load(bytes));
        let low = bytes_of(std::array::from_fn(|k| line(7 - k)));
        let high = bytes_of(std::array::from_fn(|k| line(15 - k)));
        // Registers hold groups 2n and 2n + 1 in the low half, those 16 later in the high half.
        let (first, second) = out.split_at_mut(STEP * 8);
        let places = first.as_chunks_mut().0.iter_mut().zip(second.as_chunks_mut().0);
        for ((l, h), (first, second)) in low.into_iter().zip(high).zip(places) {
            let (even, odd) = (_mm256_unpacklo_epi8(l, h), _mm256_unpackhi_epi8(l, h));
            store(first, _mm256_permute2x128_si256::<0x20>(even, odd));
            store(second, _mm256_permute2x128_si256::<0x31>(even, odd));
        }
    }
    steps * STEP
}

/// Eight rows to one byte an element: register `n` has groups `2n` and `2n + 1` of each half.
#[inline]
#[target_feature(enable = "avx2,gfni")]
fn bytes_of(r: [__m256i; 8]) -> [__m256i; 8] {
    let units = _mm256_set1_epi64x(UNITS);
    let [a0, b0, c0, d0] = [0, 2, 4, 6].map(|k| _mm256_unpacklo_epi8(r[k], r[k + 1]));
    let [a1, b1, c1, d1] = [0, 2, 4, 6].map(|k| _mm256_unpackhi_epi8(r[k], r[k + 1]));
    let halves = [(a0, b0, c0, d0), (a1, b1, c1, d1)].map(|(a, b, c, d)| {
        let (e0, e1) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
        let (f0, f1) = (_mm256_unpacklo_epi16(c, d), _mm256_unpackhi_epi16(c, d));
        [
            _mm256_unpacklo_epi32(e0, f0),
            _mm256_unpackhi_epi32(e0, f0),
            _mm256_unpacklo_epi32(e1, f1),
            _mm256_unpackhi_epi32(e1, f1),
        ]
    });
    let [[g, h, i, j], [k, l, m, n]] = halves;
    [g, h, i, j, k, l, m, n].map(|matrix| _mm256_gf2p8affine_epi64_epi8::<0>(units, matrix))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; STEP]) -> __m256i {
    // SAFETY: 32 bytes are there, and the load may be unaligned.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(bytes: &mut [u8; STEP], v: __m256i) {
    // SAFETY: as in `load`.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), v) }
}
