//! What lies in a chunk: one function per filter, bytes to bytes.
//!
//! Contract: the caller sizes the output by the chunk's shape, never by what the stream says; a stream that holds more,
//! less or nonsense is an error in words. Nothing here allocates by a number found in a file, and nothing panics.

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

fn filled(what: &str, got: usize, want: usize) -> Result<(), String> {
    if got == want { Ok(()) } else { Err(format!("{what}: {got} bytes came out, expected {want}")) }
}

/// One LZ4 block that fills `out`.
pub(crate) fn lz4_block(input: &[u8], out: &mut [u8]) -> Result<(), String> {
    let want = i32::try_from(out.len()).map_err(|_| format!("LZ4: a block of {} bytes", out.len()))?;
    let got = lz4::block::decompress_to_buffer(input, Some(want), out).map_err(|e| format!("LZ4: {e}"))?;
    filled("LZ4", got, out.len())
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

/// HDF5 filter 32004: the size of everything (8 bytes, big-endian), of a block (4), then blocks with their sizes (4). A
/// block as long as what it holds is stored as it is.
pub(crate) fn lz4_chunk(input: &[u8], out: &mut [u8]) -> Result<(), String> {
    let (total, block) = (be64(input, 0)?, be32(input, 8)? as usize);
    if total != out.len() as u64 || block == 0 {
        return Err(format!("LZ4: {total} bytes in blocks of {block}, the chunk's shape holds {}", out.len()));
    }
    let mut input = input.get(12..).unwrap_or(&[]);
    for out in out.chunks_mut(block) {
        let size = be32(input, 0)? as usize;
        let rest = input.get(4..).unwrap_or(&[]);
        let Some((packed, after)) = rest.split_at_checked(size) else {
            return Err(format!("LZ4: a block of {size} bytes with {} bytes left", rest.len()));
        };
        if size == out.len() {
            out.copy_from_slice(packed);
        } else {
            lz4_block(packed, out)?;
        }
        input = after;
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

/// HDF5 filter 32001: one Blosc 1 buffer.
pub(crate) fn blosc(input: &[u8], out: &mut [u8]) -> Result<(), String> {
    let mut holds = 0usize;
    // SAFETY: pointer and length are those of a slice; the function reads the header and checks it against the length.
    let valid = unsafe { blosc_src::blosc_cbuffer_validate(input.as_ptr().cast(), input.len(), &raw mut holds) };
    if valid < 0 || holds != out.len() {
        return Err(format!("Blosc: the header says {holds} bytes, the chunk's shape {}", out.len()));
    }
    // SAFETY: the input was validated to be as long as its header says, the output has room for the stated bytes; this
    // variant keeps no global state and starts no thread for 1.
    let got = unsafe { blosc_src::blosc_decompress_ctx(input.as_ptr().cast(), out.as_mut_ptr().cast(), out.len(), 1) };
    match usize::try_from(got) {
        Ok(got) => filled("Blosc", got, out.len()),
        Err(_) => Err(format!("Blosc: damaged, or packed by a codec other than blosclz, LZ4, zlib and zstd ({got})")),
    }
}

/// HDF5's shuffle: all first bytes, all second bytes, …; what is no whole element stands at the end.
pub(crate) fn unshuffle(input: &[u8], element: usize, out: &mut [u8]) {
    fn each<const E: usize>(input: &[u8], out: &mut [u8]) {
        let out = out.as_chunks_mut::<E>().0;
        let mut planes = [&[][..]; E];
        let length = out.len();
        planes.iter_mut().zip(input.chunks_exact(length.max(1))).for_each(|(p, plane)| *p = plane);
        let planes = planes.map(|p| &p[..length.min(p.len())]);
        for (i, o) in out.iter_mut().enumerate() {
            *o = std::array::from_fn(|b| planes[b][i]);
        }
    }
    let count = out.len() / element.max(1);
    let whole = count * element;
    match element {
        2 => each::<2>(input, out),
        4 => each::<4>(input, out),
        8 => each::<8>(input, out),
        _ => out.copy_from_slice(input),
    }
    if let (Some(to), Some(from)) = (out.get_mut(whole..), input.get(whole..)) {
        to.copy_from_slice(from);
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
