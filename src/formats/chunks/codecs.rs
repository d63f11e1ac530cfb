//! What lies in a chunk: one function per filter, bytes to bytes.
//!
//! Contract: the caller sizes the output by the chunk's shape, never by what the stream says; a stream that holds more,
//! less or nonsense is an error in words. Nothing here allocates by a number found in a file, and nothing panics.

use super::lz4;
use super::sink::Pieces;
use std::cell::RefCell;

/// A big-endian number at a place in a stream.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Result<u32, String> {
    bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u32::from_be_bytes(*b)).ok_or_else(|| short(bytes))
}

/// As [`be32`], 8 bytes.
pub(crate) fn be64(bytes: &[u8], at: usize) -> Result<u64, String> {
    bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u64::from_be_bytes(*b)).ok_or_else(|| short(bytes))
}

fn short(bytes: &[u8]) -> String {
    format!("the stream ends too early ({} bytes are left)", bytes.len())
}

pub(crate) fn filled(what: &str, got: usize, want: usize) -> Result<(), String> {
    if got == want { Ok(()) } else { Err(format!("{what}: {got} bytes came out, expected {want}")) }
}

/// One Zstandard frame that fills `out`.
pub(crate) fn zstd_frame(input: &[u8], out: &mut [u8]) -> Result<(), String> {
    thread_local! {
        static CONTEXT: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    CONTEXT.with_borrow_mut(|context| {
        if context.is_none() {
            *context = Some(zstd::bulk::Decompressor::new().map_err(|e| format!("zstd: {e}"))?);
        }
        let Some(context) = context else { return Err("zstd: no context".to_owned()) };
        let got = context.decompress_to_buffer(input, out).map_err(|e| format!("zstd: {e}"))?;
        filled("zstd", got, out.len())
    })
}

/// HDF5 filter 32004 on a chunk of `bytes` bytes: the size of everything (8 bytes, big-endian), of a block (4), then blocks
/// with their sizes (4). A block as long as what it holds is stored as it is. `pixel`: bytes of one; `buffer` is any.
pub(crate) fn lz4_chunk(
    input: &[u8],
    bytes: usize,
    pixel: usize,
    buffer: &mut Vec<u8>,
    out: &mut dyn Pieces,
) -> Result<(), String> {
    let (total, block) = (be64(input, 0)?, be32(input, 8)? as usize);
    if total != bytes as u64 || block == 0 {
        return Err(format!("LZ4: {total} bytes in blocks of {block}, the chunk's shape holds {bytes}"));
    }
    if block < bytes && !block.is_multiple_of(pixel) {
        // Blocks end within pixels: first all of it, then on.
        let mut whole = Vec::with_capacity(bytes);
        lz4_chunk(input, bytes, 1, buffer, &mut whole)?;
        out.put(0, &whole);
        return Ok(());
    }
    let mut input = input.get(12..).unwrap_or(&[]);
    for at in (0..bytes).step_by(block) {
        let length = block.min(bytes - at);
        let size = be32(input, 0)? as usize;
        let rest = input.get(4..).unwrap_or(&[]);
        let Some((packed, after)) = rest.split_at_checked(size) else {
            return Err(format!("LZ4: a block of {size} bytes with {} bytes left", rest.len()));
        };
        input = after;
        if !out.wants(at..at + length) {
            continue;
        }
        if size == length {
            out.put(at, packed);
        } else {
            buffer.resize(length + lz4::SLACK, 0);
            lz4::block(packed, buffer, length)?;
            out.put(at, buffer.get(..length).unwrap_or(&[]));
        }
    }
    Ok(())
}

/// HDF5's own deflate: one zlib stream.
pub(crate) fn deflate(input: &[u8], out: &mut [u8]) -> Result<(), String> {
    thread_local! {
        static CONTEXT: RefCell<Option<libdeflater::Decompressor>> = const { RefCell::new(None) };
    }
    CONTEXT.with_borrow_mut(|context| {
        let context = context.get_or_insert_with(libdeflater::Decompressor::new);
        let got = context.zlib_decompress(input, out).map_err(|e| format!("deflate: {e}"))?;
        filled("deflate", got, out.len())
    })
}

/// HDF5's shuffle: all first bytes, all second bytes, …; what is no whole element stands at the end. The chunk is handed on
/// from `at` on, in pieces that fit the innermost cache.
pub(crate) fn unshuffle(input: &[u8], element: usize, at: usize, buffer: &mut Vec<u8>, out: &mut dyn Pieces) {
    const STRIP: usize = 8192;
    let whole = input.len() / element.max(1) * element;
    let (planes, rest) = input.split_at(whole);
    if matches!(element, 2 | 4 | 8) {
        buffer.resize(STRIP, 0);
        for start in (0..whole).step_by(STRIP) {
            let length = STRIP.min(whole - start);
            if !out.wants(at + start..at + start + length) {
                continue;
            }
            let Some(buffer) = buffer.get_mut(..length) else { return };
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2.
                unsafe { interleave_wide(planes, element, start / element, buffer) };
                out.put(at + start, buffer);
                continue;
            }
            interleave(planes, element, start / element, buffer);
            out.put(at + start, buffer);
        }
    } else {
        out.put(at, planes);
    }
    if !rest.is_empty() {
        out.put(at + whole, rest);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn interleave_wide(planes: &[u8], element: usize, first: usize, out: &mut [u8]) {
    interleave(planes, element, first, out);
}

/// Elements from `first` on, of 2, 4 or 8 bytes.
#[inline(always)]
fn interleave(planes: &[u8], element: usize, first: usize, out: &mut [u8]) {
    #[inline(always)]
    fn each<const E: usize>(input: &[u8], first: usize, out: &mut [u8]) {
        let mut planes = [&[][..]; E];
        let all = input.chunks_exact((input.len() / E).max(1));
        planes.iter_mut().zip(all).for_each(|(p, plane)| *p = plane.get(first..).unwrap_or(&[]));
        let out = out.as_chunks_mut::<E>().0;
        // One length for all, so that the bounds are checked once.
        let planes = planes.map(|p| &p[..out.len().min(p.len())]);
        for (i, o) in out.iter_mut().enumerate() {
            *o = std::array::from_fn(|b| planes[b][i]);
        }
    }
    match element {
        2 => each::<2>(planes, first, out),
        4 => each::<4>(planes, first, out),
        _ => each::<8>(planes, first, out),
    }
}

/// HDF5's checksum over everything but the last four bytes, which hold it. Files of old big-endian writers hold it with
/// the bytes of each half exchanged; HDF5 accepts that, so it is accepted here.
pub(crate) fn fletcher32(input: &[u8]) -> Result<&[u8], String> {
    let Some((data, stored)) = input.split_last_chunk::<4>() else { return Err(short(input)) };
    let (stored, computed) = (u32::from_le_bytes(*stored), fletcher32_of(data));
    let [a, b, c, d] = computed.to_be_bytes();
    if stored == computed || stored == u32::from_be_bytes([b, a, d, c]) {
        Ok(data)
    } else {
        Err(format!("Fletcher-32 checksum {computed:08x}, the file says {stored:08x}"))
    }
}

fn fletcher32_of(data: &[u8]) -> u32 {
    // 360 sums of 16 bits do not overflow 32 bits.
    const RUN: usize = 360;
    let fold = |s: u32| (s & 0xffff) + (s >> 16);
    let (mut a, mut b) = (0u32, 0u32);
    let (pairs, rest) = data.as_chunks::<2>();
    for run in pairs.chunks(RUN) {
        for pair in run {
            a += u32::from(u16::from_be_bytes(*pair));
            b += a;
        }
        (a, b) = (fold(a), fold(b));
    }
    if let [last] = rest {
        a += u32::from(*last) << 8;
        b += a;
        (a, b) = (fold(a), fold(b));
    }
    (a, b) = (fold(a), fold(b));
    b << 16 | a
}
