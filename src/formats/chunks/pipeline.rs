//! The filters of a chunked dataset, undone without the HDF5 library.

use super::bitshuffle::{self, Bitshuffle};
use super::codecs;
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

/// Filters in the order in which the writer applied them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pipeline(Vec<Step>);

/// Buffers that are used again for the next chunk.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// The decoded chunk.
    pub out: Vec<u8>,
    other: Vec<u8>,
    bitshuffle: bitshuffle::Scratch,
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
        (steps.len() <= 32 && steps.iter().filter(|s| s.packs()).count() <= 1).then_some(Self(steps))
    }

    /// Are chunks stored as they are?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Turns a stored chunk into `bytes` bytes, in `scratch.out`. Bit `i` of `mask`: filter `i` was skipped.
    ///
    /// # Errors
    /// What is wrong with the stream, in words.
    pub fn decode(&self, mask: u32, stored: &[u8], bytes: usize, scratch: &mut Scratch) -> Result<(), String> {
        let Scratch { out, other, bitshuffle } = scratch;
        let used = |i: usize| mask >> i & 1 == 0;
        let mut first = true;
        for (i, step) in self.0.iter().enumerate().rev().filter(|(i, _)| used(*i)) {
            // A checksum before this filter made its input longer.
            let sums = self.0.iter().enumerate().take(i).filter(|&(j, s)| used(j) && *s == Step::Fletcher32).count();
            let want = bytes + 4 * sums;
            if !first {
                std::mem::swap(out, other);
            }
            let input = if first { stored } else { other.as_slice() };
            first = false;
            if *step == Step::Fletcher32 {
                let data = codecs::fletcher32(input)?;
                out.clear();
                out.extend_from_slice(data);
                continue;
            }
            out.resize(want, 0);
            match *step {
                Step::Shuffle(element) => {
                    if input.len() != want {
                        return Err(format!("shuffle: {} bytes, the chunk's shape holds {want}", input.len()));
                    }
                    codecs::unshuffle(input, element, out);
                }
                Step::Deflate => codecs::deflate(input, out)?,
                Step::Lz4 => codecs::lz4_chunk(input, out)?,
                Step::Zstd => codecs::zstd_frame(input, out)?,
                Step::Blosc => codecs::blosc(input, out)?,
                Step::Bitshuffle(filter) => bitshuffle::decode(filter, input, out, bitshuffle)?,
                Step::Fletcher32 => {}
            }
        }
        if first {
            out.clear();
            out.extend_from_slice(stored);
        }
        if out.len() == bytes { Ok(()) } else { Err(format!("{} bytes, the chunk's shape holds {bytes}", out.len())) }
    }
}
