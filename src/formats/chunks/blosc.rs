//! HDF5 filter 32001: one Blosc 1 buffer (c-blosc's README_CHUNK_FORMAT.rst).
//!
//! A header of 16 bytes (version, version of the codec, flags, element size, then little-endian sizes of everything, of a
//! block, and as stored), the place of each block, and the blocks: parts with their sizes (4 bytes), a part for each byte
//! of an element or one for all; a part as long as what it holds is stored as it is.
//!
//! Contract
//! - Buffers packed by LZ4 or zstd are taken apart here, block by block, so that a block is turned into pixels while it
//!   lies in the cache. Everything else (blosclz, zlib, elements other than the dataset's) is left to the library.
//! - Nothing in the stream is believed: sizes are compared with the chunk's, places with the stream's end.

use super::bitshuffle;
use super::codecs::{filled, unshuffle, zstd_frame};
use super::lz4;
use super::sink::Pieces;

const HEADER: usize = 16;
/// The version of the format that is known here.
const VERSION: u8 = 2;
const SHUFFLE: u8 = 0x01;
const STORED: u8 = 0x02;
const BITSHUFFLE: u8 = 0x04;
const ONE_PART: u8 = 0x10;
/// Codecs, in the upper three bits of the flags.
const LZ4: u8 = 1;
const ZSTD: u8 = 4;
/// Elements of fewer bytes, in blocks of at least as many elements, are split into parts.
const SPLIT_MOST: usize = 16;
const SPLIT_LEAST: usize = 128;

/// Buffers that are used again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    block: Vec<u8>,
    plain: Vec<u8>,
    planes: Vec<u8>,
}

struct Header<'a> {
    stream: &'a [u8],
    flags: u8,
    element: usize,
    block: usize,
    bytes: usize,
}

fn le32(bytes: &[u8], at: usize) -> Result<usize, String> {
    let read = bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b) as usize);
    read.ok_or_else(|| format!("Blosc: the stream ends too early ({} bytes)", bytes.len()))
}

/// Unpacks a chunk of `bytes` bytes, of pixels of `pixel` bytes.
pub(crate) fn decode(
    input: &[u8],
    bytes: usize,
    pixel: usize,
    scratch: &mut Scratch,
    out: &mut dyn Pieces,
) -> Result<(), String> {
    let (holds, block, stored) = (le32(input, 4)?, le32(input, 8)?, le32(input, 12)?);
    if holds != bytes || stored != input.len() {
        return Err(format!(
            "Blosc: the header says {holds} bytes in {stored}, the chunk's shape {bytes}, the file {}",
            input.len()
        ));
    }
    let (Some(&version), Some(&flags), Some(&element)) = (input.first(), input.get(2), input.get(3)) else {
        return Err("Blosc: no header".to_owned());
    };
    let header = Header { stream: input, flags, element: usize::from(element), block, bytes };
    let own = version == VERSION
        && (matches!(flags >> 5, LZ4 | ZSTD) || flags & STORED != 0)
        && header.element == pixel
        && block > 0
        && block.is_multiple_of(pixel);
    if !own {
        return library(input, bytes, &mut scratch.plain).map(|()| out.put(0, &scratch.plain));
    }
    if flags & STORED != 0 {
        let plain = input.get(HEADER..).unwrap_or(&[]);
        return filled("Blosc", plain.len(), bytes).map(|()| out.put(0, plain));
    }
    for (index, at) in (0..bytes).step_by(block).enumerate() {
        if out.wants(at..bytes.min(at + block)) {
            header.block(index, at, scratch, out)?;
        }
    }
    Ok(())
}

impl Header<'_> {
    /// Block `index`, from `at` on.
    fn block(&self, index: usize, at: usize, scratch: &mut Scratch, out: &mut dyn Pieces) -> Result<(), String> {
        let length = self.block.min(self.bytes - at);
        let split = self.flags & ONE_PART == 0
            && self.element <= SPLIT_MOST
            && length / self.element >= SPLIT_LEAST
            && length == self.block;
        let parts = if split { self.element } else { 1 };
        let Scratch { block, plain, planes } = scratch;
        block.resize(length + lz4::SLACK, 0);
        let mut from = le32(self.stream, HEADER + 4 * index)?;
        for n in 0..parts {
            let want = length / parts;
            // A part may write over the beginning of the next, which comes later.
            let Some(room) = block.get_mut(n * want..) else { continue };
            let size = le32(self.stream, from)?;
            let rest = self.stream.get(from + 4..).unwrap_or(&[]);
            let Some(packed) = rest.get(..size) else {
                return Err(format!("Blosc: a part of {size} bytes with {} bytes left", rest.len()));
            };
            if self.flags >> 5 == LZ4 && size != want {
                lz4::block(packed, room, want)?;
            } else if let Some(part) = room.get_mut(..want) {
                if size == want {
                    part.copy_from_slice(packed);
                } else {
                    zstd_frame(packed, part)?;
                }
            }
            from += 4 + size;
        }
        let block = block.get(..length).unwrap_or(&[]);
        let elements = length / self.element;
        if self.flags & SHUFFLE != 0 && self.element > 1 {
            unshuffle(block, self.element, at, plain, out);
        } else if self.flags & BITSHUFFLE != 0 && elements.is_multiple_of(8) {
            plain.resize(length, 0);
            let whole = elements * self.element;
            let (rows, rest) = block.split_at(whole);
            let (to, last) = plain.split_at_mut(whole);
            bitshuffle::unshuffle(rows, self.element, to, planes);
            last.copy_from_slice(rest);
            out.put(at, plain);
        } else {
            out.put(at, block);
        }
        Ok(())
    }
}

/// By c-blosc, the whole chunk.
fn library(input: &[u8], bytes: usize, out: &mut Vec<u8>) -> Result<(), String> {
    out.resize(bytes, 0);
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
