//! The inverse of bitshuffle (Masui et al., Astronomy and Computing 12, 181 (2015)), HDF5 filter 32008.
//!
//! A block of `n` elements (a multiple of 8) of `e` bytes is stored as `8e` rows of `n/8` bytes: bit `j` of byte `g` of
//! row `8b + k` is bit `k` of byte `b` of element `8g + j`. Compressed, every block is preceded by its size, and the chunk
//! by 12 bytes: the size of everything (8 bytes, big-endian) and of a block (4), in bytes. The last block is shorter, and
//! up to 7 elements behind it are stored as they are.
//!
//! Contract
//! - [`unshuffle`] is exact and total; [`plain`] is the same by the definition, for tests.
//! - [`decode`] believes nothing in the stream: sizes are compared with that of the chunk, which its shape says.

use super::codecs::{be32, be64, zstd_frame};
use super::lz4;
use super::sink::Pieces;

/// Elements are regrouped in eights.
const EIGHT: usize = 8;
/// Words worked on side by side.
const LANES: usize = 4;
/// Bytes of a block where the filter's parameters do not say.
const BLOCK_BYTES: usize = 8192;
/// Elements of a block are at least this many then.
const BLOCK_LEAST: usize = 128;
/// Longer elements are something else.
const ELEMENT_MAX: usize = 64;

/// What follows the shuffle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Nothing.
    Stored,
    /// LZ4 blocks.
    Lz4,
    /// Zstandard frames.
    Zstd,
}

/// The filter's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bitshuffle {
    /// Bytes of an element.
    pub element: usize,
    /// Elements of a block, 0 for the default; compressed streams say it themselves.
    pub block: usize,
    /// What follows.
    pub packing: Packing,
}

impl Bitshuffle {
    /// From the filter's client data: version (2), element size, block size, compression.
    pub fn of(values: &[u32]) -> Option<Self> {
        let at = |i: usize| values.get(i).map_or(0, |&v| v as usize);
        let packing = match at(4) {
            0 => Packing::Stored,
            2 => Packing::Lz4,
            3 => Packing::Zstd,
            _ => return None,
        };
        let (element, block) = (at(2), at(3));
        ((1..=ELEMENT_MAX).contains(&element) && block.is_multiple_of(EIGHT)).then_some(Self {
            element,
            block,
            packing,
        })
    }

    fn default_block(self) -> usize {
        (BLOCK_BYTES / self.element / EIGHT * EIGHT).max(BLOCK_LEAST)
    }
}

/// Undoes the filter on a chunk of `bytes` bytes, block by block: a block is unpacked, un-shuffled and handed on while it
/// lies in the innermost cache. Blocks that nobody wants are passed over.
pub(crate) fn decode(
    filter: Bitshuffle,
    mut input: &[u8],
    bytes: usize,
    scratch: &mut Scratch,
    out: &mut dyn Pieces,
) -> Result<(), String> {
    let element = filter.element;
    if !bytes.is_multiple_of(element) {
        return Err(format!("bitshuffle: {bytes} bytes are no whole number of elements of {element}"));
    }
    let block = if filter.packing == Packing::Stored {
        if filter.block == 0 { filter.default_block() } else { filter.block }
    } else {
        let (total, block) = (be64(input, 0)?, be32(input, 8)? as usize);
        if total != bytes as u64 {
            return Err(format!("bitshuffle: the chunk says it holds {total} bytes, its shape {bytes}"));
        }
        if block == 0 || !block.is_multiple_of(element * EIGHT) {
            return Err(format!("bitshuffle: blocks of {block} bytes for elements of {element}"));
        }
        input = input.get(12..).unwrap_or(&[]);
        block / element
    };
    let step = block.saturating_mul(element);
    let whole = bytes / (element * EIGHT) * (element * EIGHT);
    let Scratch { shuffled, plain, planes } = scratch;
    for at in (0..whole).step_by(step) {
        let length = step.min(whole - at);
        let size = match filter.packing {
            Packing::Stored => length,
            _ => {
                let size = be32(input, 0)? as usize;
                input = input.get(4..).unwrap_or(&[]);
                size
            }
        };
        let Some((packed, after)) = input.split_at_checked(size) else {
            return Err(format!("bitshuffle: a block of {size} bytes with {} bytes left", input.len()));
        };
        input = after;
        if !out.wants(at..at + length) {
            continue;
        }
        plain.resize(length, 0);
        let rows = match filter.packing {
            Packing::Stored => packed,
            packing => {
                shuffled.resize(length + lz4::SLACK, 0);
                if packing == Packing::Lz4 {
                    lz4::block(packed, shuffled, length)?;
                }
                let Some(rows) = shuffled.get_mut(..length) else { continue };
                if packing == Packing::Zstd {
                    zstd_frame(packed, rows)?;
                }
                &*rows
            }
        };
        unshuffle(rows, element, plain, planes);
        out.put(at, plain);
    }
    if input.len() != bytes - whole {
        return Err(format!("bitshuffle: {} bytes behind the last block, expected {}", input.len(), bytes - whole));
    }
    out.put(whole, input);
    Ok(())
}

/// Buffers that are used again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    shuffled: Vec<u8>,
    plain: Vec<u8>,
    planes: Vec<u8>,
}

/// By the definition: slow, and obviously right. `input` and `out` hold the same whole number of eights.
#[cfg(test)]
pub(crate) fn plain(input: &[u8], element: usize, out: &mut [u8]) {
    out.fill(0);
    let row = input.len() / (element * EIGHT);
    for (i, byte) in out.iter_mut().enumerate() {
        let (index, b) = (i / element, i % element);
        for k in 0..EIGHT {
            let at = input.get((EIGHT * b + k) * row + index / EIGHT).copied().unwrap_or(0);
            *byte |= (at >> (index % EIGHT) & 1) << k;
        }
    }
}

/// What a processor un-shuffles with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Gfni,
}

impl Means {
    /// The fastest that this processor has first.
    fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let wide = {
            let avx2 = is_x86_feature_detected!("avx2");
            let gfni = avx2 && is_x86_feature_detected!("gfni");
            [gfni.then_some(Self::Gfni), avx2.then_some(Self::Avx2)]
        };
        #[cfg(not(target_arch = "x86_64"))]
        let wide: [Option<Self>; 0] = [];
        wide.into_iter().flatten().chain([Self::Portable])
    }
}

/// Un-shuffles one block; `input` and `out` hold the same whole number of eights. `planes` is any buffer.
pub(crate) fn unshuffle(input: &[u8], element: usize, out: &mut [u8], planes: &mut Vec<u8>) {
    unshuffle_by(Means::all().next().unwrap_or(Means::Portable), input, element, out, planes);
}

fn unshuffle_by(means: Means, input: &[u8], element: usize, out: &mut [u8], planes: &mut Vec<u8>) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn wide(input: &[u8], element: usize, out: &mut [u8], planes: &mut [u8]) {
            blocked(input, element, out, planes);
        }
        if means != Means::Portable {
            if element == 2 {
                // SAFETY: the processor has what `means` says.
                let done = unsafe {
                    if means == Means::Gfni {
                        super::gfni::unshuffle_u16(input, out)
                    } else {
                        super::avx2::unshuffle_u16(input, out)
                    }
                };
                rest_u16(input, out, done);
            } else {
                planes.resize(out.len(), 0);
                // SAFETY: as above.
                unsafe { wide(input, element, out, planes) };
            }
            return;
        }
    }
    debug_assert_eq!(means, Means::Portable);
    planes.resize(out.len(), 0);
    blocked(input, element, out, planes);
}

/// The groups of two-byte elements from `first` on, one by one.
#[cfg(target_arch = "x86_64")]
fn rest_u16(input: &[u8], out: &mut [u8], first: usize) {
    let row = input.len() / 16;
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate().skip(first) {
        let mut words = [[0; LANES]; 8];
        for (k, word) in words.iter_mut().enumerate() {
            let byte = |plane: usize| u64::from(input.get((8 * plane + k) * row + g).copied().unwrap_or(0));
            *word = [byte(0), byte(1), 0, 0];
        }
        transpose(&mut words, false);
        for (element, word) in out.as_chunks_mut::<2>().0.iter_mut().zip(words) {
            *element = [word[0] as u8, word[1] as u8];
        }
    }
}

/// Bits first: eight rows make one plane, the bytes `b` of all elements. Then the planes are interleaved.
#[inline(always)]
fn blocked(input: &[u8], element: usize, out: &mut [u8], planes: &mut [u8]) {
    let row = input.len() / (element * EIGHT);
    if row == 0 {
        return;
    }
    let plane = row * EIGHT;
    if element == 1 {
        gather(input, row, out);
        return;
    }
    for (rows, plane) in input.chunks_exact(plane).zip(planes.chunks_exact_mut(plane)) {
        gather(rows, row, plane);
    }
    match element {
        2 => interleave::<2>(planes, plane, out),
        4 => interleave::<4>(planes, plane, out),
        8 => interleave::<8>(planes, plane, out),
        _ => {
            for (b, plane) in planes.chunks_exact(plane).enumerate() {
                out.iter_mut().skip(b).step_by(element).zip(plane).for_each(|(o, &v)| *o = v);
            }
        }
    }
}

#[inline(always)]
fn interleave<const E: usize>(planes: &[u8], plane: usize, out: &mut [u8]) {
    let mut parts = [&[][..]; E];
    parts.iter_mut().zip(planes.chunks_exact(plane)).for_each(|(p, plane)| *p = plane);
    let out = out.as_chunks_mut::<E>().0;
    // One length for all, so that the bounds are checked once.
    let parts = parts.map(|p| &p[..out.len().min(p.len())]);
    for (i, o) in out.iter_mut().enumerate() {
        *o = std::array::from_fn(|b| parts[b][i]);
    }
}

type Words = [u64; LANES];

/// Exchanges the bits of `b` under `mask` with those of `a` that lie `shift` higher.
#[inline(always)]
fn exchange(a: &mut Words, b: &mut Words, shift: u32, mask: u64) {
    for (a, b) in a.iter_mut().zip(b) {
        let t = ((*a >> shift) ^ *b) & mask;
        *b ^= t;
        *a ^= t << shift;
    }
}

/// Transposes, in every lane, the 8×8 bits of each byte column, or with `bytes` the 8×8 bytes.
#[inline(always)]
fn transpose(rows: &mut [Words; 8], bytes: bool) {
    let (unit, masks) = if bytes {
        (8, [0x0000_0000_ffff_ffff, 0x0000_ffff_0000_ffff, 0x00ff_00ff_00ff_00ff])
    } else {
        (1, [0x0f0f_0f0f_0f0f_0f0f, 0x3333_3333_3333_3333, 0x5555_5555_5555_5555])
    };
    let [a, b, c, d, e, f, g, h] = rows;
    let half = [(&mut *a, &mut *e), (&mut *b, &mut *f), (&mut *c, &mut *g), (&mut *d, &mut *h)];
    half.into_iter().for_each(|(x, y)| exchange(x, y, 4 * unit, masks[0]));
    let quarter = [(&mut *a, &mut *c), (&mut *b, &mut *d), (&mut *e, &mut *g), (&mut *f, &mut *h)];
    quarter.into_iter().for_each(|(x, y)| exchange(x, y, 2 * unit, masks[1]));
    [(a, b), (c, d), (e, f), (g, h)].into_iter().for_each(|(x, y)| exchange(x, y, unit, masks[2]));
}

/// Eight rows of `row` bytes become `8 · row` bytes, one per element.
#[inline(always)]
fn gather(rows: &[u8], row: usize, plane: &mut [u8]) {
    const STEP: usize = 8 * LANES;
    let mut lines = [&[][..]; 8];
    lines.iter_mut().zip(rows.chunks_exact(row)).for_each(|(l, r)| *l = r);
    let full = row / STEP;
    let wide = lines.map(|l| l.as_chunks::<STEP>().0);
    let (head, tail) = plane.split_at_mut(full * STEP * EIGHT);
    for (i, out) in head.as_chunks_mut::<{ STEP * EIGHT }>().0.iter_mut().enumerate() {
        let mut words: [Words; 8] = std::array::from_fn(|k| {
            let bytes = wide[k]
                .get(i)
                .map_or([[0; 8]; LANES], |b| std::array::from_fn(|l| std::array::from_fn(|j| b[8 * l + j])));
            bytes.map(u64::from_le_bytes)
        });
        transpose(&mut words, false);
        transpose(&mut words, true);
        for (l, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            for (g, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                *out = words[g][l].to_le_bytes();
            }
        }
    }
    for (g, out) in tail.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let mut words = [[0; LANES]; 8];
        for (word, line) in words.iter_mut().zip(lines) {
            word[0] = u64::from(line.get(full * STEP + g).copied().unwrap_or(0));
        }
        transpose(&mut words, false);
        *out = words.map(|w| w[0] as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_fast_way_is_the_definition(element in 1usize..10, eights in 1usize..150, seed: u64) {
            let mut state = seed | 1;
            let input: Vec<u8> = (0..element * eights * EIGHT)
                .map(|_| { state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1); (state >> 56) as u8 })
                .collect();
            let mut slow = vec![1; input.len()];
            plain(&input, element, &mut slow);
            for means in Means::all() {
                let mut fast = vec![0; input.len()];
                unshuffle_by(means, &input, element, &mut fast, &mut Vec::new());
                prop_assert!(fast == slow, "{means:?}");
            }
        }
    }
}
