//! The filters of a chunked dataset, undone without the HDF5 library.

use super::bitshuffle::{self, Bitshuffle};
use super::blosc;
use super::codecs::{self, filled};
use super::sink::Pieces;
use hdf5::filters::Filter;

/// HDF5's registered numbers.
const BLOSC: i32 = 32001;
const LZ4: i32 = 32004;
const BITSHUFFLE: i32 = 32008;
const ZSTD: i32 = 32015;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Element size.
    Shuffle(usize),
    Fletcher32,
    Deflate,
    Lz4,
    Zstd,
    Blosc,
    Bitshuffle(Bitshuffle),
}

impl Step {
    /// Does the size of its output depend on the data?
    fn packs(self) -> bool {
        !matches!(self, Self::Shuffle(_) | Self::Fletcher32)
    }
}

/// Filters in the order in which the writer applied them, and bytes of a pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pipeline(Vec<Step>, usize);

/// Buffers that are used again for the next chunk.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// What one filter leaves for the next, twice.
    between: [Vec<u8>; 2],
    filters: Buffers,
}

#[derive(Debug, Default)]
struct Buffers {
    any: Vec<u8>,
    bitshuffle: bitshuffle::Scratch,
    blosc: blosc::Scratch,
}

impl Pipeline {
    /// `None` when a filter is not known here, or two of them pack: then the library must read.
    pub fn of(filters: &[Filter], element: usize) -> Option<Self> {
        let step = |filter: &Filter| {
            Some(match filter {
                Filter::Deflate(_) => Step::Deflate,
                Filter::Shuffle => Step::Shuffle(element),
                Filter::Fletcher32 => Step::Fletcher32,
                Filter::User(BLOSC, _) => Step::Blosc,
                Filter::User(LZ4, _) => Step::Lz4,
                Filter::User(ZSTD, _) => Step::Zstd,
                Filter::User(BITSHUFFLE, values) => Step::Bitshuffle(Bitshuffle::of(values)?),
                _ => return None,
            })
        };
        let steps: Vec<Step> = filters.iter().map(step).collect::<Option<_>>()?;
        (steps.len() <= 32 && steps.iter().filter(|s| s.packs()).count() <= 1).then_some(Self(steps, element))
    }

    /// Are chunks stored as they are?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Turns a stored chunk into its `bytes` bytes, handed to `out` in pieces. Bit `i` of `mask`: filter `i` was skipped.
    ///
    /// # Errors
    /// What is wrong with the stream, in words.
    pub fn decode(
        &self,
        mask: u32,
        stored: &[u8],
        bytes: usize,
        scratch: &mut Scratch,
        out: &mut dyn Pieces,
    ) -> Result<(), String> {
        let used = || self.0.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 0).map(|(_, step)| *step);
        let Scratch { between: [input, made], filters } = scratch;
        let Some(last) = used().next() else {
            return filled("the chunk", stored.len(), bytes).map(|()| out.put(0, stored));
        };
        // What the writer did last is undone first, as a whole; the rest is handed on in pieces.
        let mut first = true;
        for n in (1..used().count()).rev() {
            let Some(step) = used().nth(n) else { continue };
            // A checksum before this filter made its input longer.
            let sums = used().take(n).filter(|s| *s == Step::Fletcher32).count();
            step.whole(if first { stored } else { input }, bytes + 4 * sums, filters, made)?;
            std::mem::swap(input, made);
            first = false;
        }
        last.pieces(if first { stored } else { input }, (bytes, self.1), filters, out)
    }
}

impl Step {
    /// Undoes a filter; `out` gets `bytes` bytes.
    fn whole(self, input: &[u8], bytes: usize, buffers: &mut Buffers, out: &mut Vec<u8>) -> Result<(), String> {
        if matches!(self, Self::Deflate | Self::Zstd) {
            out.resize(bytes, 0);
            return if self == Self::Deflate { codecs::deflate(input, out) } else { codecs::zstd_frame(input, out) };
        }
        out.clear();
        if self == Self::Fletcher32 {
            // How long packed data is, only the filter below knows.
            out.extend_from_slice(codecs::fletcher32(input)?);
            return Ok(());
        }
        self.pieces(input, (bytes, 1), buffers, out)?;
        filled("a filter", out.len(), bytes)
    }

    /// Undoes a filter in pieces of whole pixels.
    fn pieces(
        self,
        input: &[u8],
        (bytes, pixel): (usize, usize),
        buffers: &mut Buffers,
        out: &mut dyn Pieces,
    ) -> Result<(), String> {
        match self {
            Self::Fletcher32 => {
                let data = codecs::fletcher32(input)?;
                filled("Fletcher-32", data.len(), bytes)?;
                out.put(0, data);
            }
            Self::Shuffle(element) => {
                filled("shuffle", input.len(), bytes)?;
                codecs::unshuffle(input, element, 0, &mut buffers.any, out);
            }
            Self::Deflate | Self::Zstd => {
                let mut whole = std::mem::take(&mut buffers.any);
                self.whole(input, bytes, buffers, &mut whole)?;
                out.put(0, &whole);
                buffers.any = whole;
            }
            Self::Lz4 => codecs::lz4_chunk(input, bytes, pixel, &mut buffers.any, out)?,
            Self::Blosc => blosc::decode(input, bytes, pixel, &mut buffers.blosc, out)?,
            Self::Bitshuffle(filter) => bitshuffle::decode(filter, input, bytes, &mut buffers.bitshuffle, out)?,
        }
        Ok(())
    }
}
