//! LZ4 blocks (lz4_Block_format.md), decoded for short sequences.
//!
//! Bit planes of a detector's noise are a hundred short sequences in 8 KiB; the C library spends 10 ns on each, mostly on
//! branches that cannot be foreseen (`cargo bench --bench formats` shows both). Here a copy is 16 bytes wherever that is enough,
//! also of a match that overlaps itself: its period is laid out by one shuffle. Whatever lies behind the output is written over
//! by up to [`SLACK`] bytes.
//!
//! Contract
//! - Nothing in the stream is believed: every length and offset is compared with both ends before it is used. Damage is an
//!   error or other bytes, as with the library, never more.
//! - Without AVX2, or without slack, the library decodes.

use super::codecs::filled;

/// Bytes behind the output that may be written over.
pub(crate) const SLACK: usize = 64;

/// One block that fills the first `want` bytes of `out`; what follows them may change.
pub(crate) fn block(input: &[u8], out: &mut [u8], want: usize) -> Result<(), String> {
    #[cfg(target_arch = "x86_64")]
    if out.len() >= want + SLACK && is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, the slack is there.
        return match unsafe { wide::decode(input, out, want) } {
            Some(()) => Ok(()),
            None => Err(format!("LZ4: {} bytes that are no block of {want}", input.len())),
        };
    }
    let Some(out) = out.get_mut(..want) else { return Err("LZ4: no room".to_owned()) };
    library(input, out)
}

/// By the C library.
pub(crate) fn library(input: &[u8], out: &mut [u8]) -> Result<(), String> {
    let want = i32::try_from(out.len()).map_err(|_| format!("LZ4: a block of {} bytes", out.len()))?;
    let got = lz4::block::decompress_to_buffer(input, Some(want), out).map_err(|e| format!("LZ4: {e}"))?;
    filled("LZ4", got, out.len())
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::SLACK;
    use std::arch::x86_64::*;

    /// Byte `i` of row `n` is `i mod n`: the first 16 bytes of a period of `n`. Row 0 is for 16 and more.
    static PERIOD: [[u8; 16]; 16] = {
        let mut rows = [[0; 16]; 16];
        let mut n = 0;
        while n < 16 {
            let mut i = 0;
            while i < 16 {
                rows[n][i] = if n == 0 { i as u8 } else { (i % n) as u8 };
                i += 1;
            }
            n += 1;
        }
        rows
    };

    /// A length of 15 goes on in the stream.
    #[inline(always)]
    fn longer(input: &[u8], at: &mut usize, length: usize) -> Option<usize> {
        let mut length = length;
        loop {
            let byte = *input.get(*at)?;
            *at += 1;
            length = length.checked_add(usize::from(byte))?;
            if byte != 255 {
                return Some(length);
            }
        }
    }

    /// `None`: no block of `want` bytes.
    ///
    /// # Safety
    /// The processor has AVX2; `out` has `want + SLACK` bytes.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn decode(input: &[u8], out: &mut [u8], want: usize) -> Option<()> {
        debug_assert!(out.len() >= want + SLACK);
        let (from, to) = (input.as_ptr(), out.as_mut_ptr());
        // Places in input and output. Before every use: `at <= input.len()`, `done <= want`.
        let (mut at, mut done) = (0usize, 0usize);
        while let Some(&token) = input.get(at) {
            at += 1;
            let mut literals = usize::from(token >> 4);
            if literals < 15 && at + 16 <= input.len() {
                // SAFETY: 16 bytes are there to read; `done <= want`, so that they fit the slack.
                unsafe { copy16(from.add(at), to.add(done)) };
            } else {
                if literals == 15 {
                    literals = longer(input, &mut at, literals)?;
                }
                if literals > input.len() - at || literals > want - done {
                    return None;
                }
                // SAFETY: compared with both ends just now.
                unsafe { std::ptr::copy_nonoverlapping(from.add(at), to.add(done), literals) };
            }
            at += literals;
            done += literals;
            if at >= input.len() {
                break;
            }
            let offset = usize::from(u16::from_le_bytes([*input.get(at)?, *input.get(at + 1)?]));
            at += 2;
            let mut length = usize::from(token & 15);
            if length == 15 {
                length = longer(input, &mut at, length)?;
            }
            length += 4;
            // Also for `done > want`, which short literals may have led to.
            if offset.wrapping_sub(1) >= done || done > want || length > want - done {
                return None;
            }
            // SAFETY: the match begins inside what is decoded and ends before `want`; `repeat` writes less than 32 bytes more.
            unsafe { repeat(to.add(done), offset, length) };
            done += length;
        }
        (at == input.len() && done == want).then_some(())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn copy16(from: *const u8, to: *mut u8) {
        // SAFETY: promised by the caller.
        unsafe { _mm_storeu_si128(to.cast(), _mm_loadu_si128(from.cast())) };
    }

    /// Writes `length` bytes at `to`, each that of `offset` bytes before.
    ///
    /// # Safety
    /// `offset` bytes lie before `to`, `length + 32` behind it, all of them initialised.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn repeat(to: *mut u8, offset: usize, length: usize) {
        let row = if offset < 16 { offset } else { 0 };
        // SAFETY: promised by the caller; a store begins before `length` and has 16 or 32 bytes.
        unsafe {
            let source = to.sub(offset);
            let period = _mm_loadu_si128(PERIOD[row].as_ptr().cast());
            let first = _mm_shuffle_epi8(_mm_loadu_si128(source.cast()), period);
            _mm_storeu_si128(to.cast(), first);
            if length <= 16 {
                return;
            }
            let mut i;
            if offset >= 32 {
                i = 16;
                while i < length {
                    let v = _mm256_loadu_si256(source.add(i).cast());
                    _mm256_storeu_si256(to.add(i).cast(), v);
                    i += 32;
                }
            } else if offset >= 16 {
                i = 16;
                while i < length {
                    copy16(source.add(i), to.add(i));
                    i += 16;
                }
            } else if 16 % offset == 0 {
                let both = _mm256_broadcastsi128_si256(first);
                i = 16;
                while i < length {
                    _mm256_storeu_si256(to.add(i).cast(), both);
                    i += 32;
                }
            } else {
                // Whole periods on, the same bytes follow.
                let step = 16 / offset * offset;
                i = step;
                while i < length {
                    _mm_storeu_si128(to.add(i).cast(), first);
                    i += step;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packed(data: &[u8]) -> Vec<u8> {
        lz4::block::compress(data, None, false).unwrap()
    }

    /// Runs of every period and length, noise between them.
    fn runs(seed: u64, count: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        let mut data: Vec<u8> = (0..40).map(|_| random() as u8).collect();
        for _ in 0..count {
            match random() % 4 {
                0 => (0..random() % 70).for_each(|_| data.push(random() as u8)),
                _ => {
                    let period = 1 + random() % if random() % 3 == 0 { data.len().min(60_000) } else { 40 };
                    for _ in 0..4 + random() % if random() % 8 == 0 { 2000 } else { 60 } {
                        data.push(data[data.len() - period]);
                    }
                }
            }
        }
        data
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn blocks_come_back(seed: u64, count in 0usize..120) {
            let data = runs(seed, count);
            let mut out = vec![0xa5; data.len() + SLACK];
            block(&packed(&data), &mut out, data.len()).unwrap();
            prop_assert_eq!(&out[..data.len()], &data[..]);
            // Another length is another block.
            prop_assert!(block(&packed(&data), &mut out, data.len() - 1).is_err());
            prop_assert!(block(&packed(&data), &mut vec![0; data.len() + 1 + SLACK], data.len() + 1).is_err());
        }

        /// What the library takes, this takes, to the same bytes; what is refused here, the library refuses.
        #[test]
        fn damage_is_seen_as_the_library_sees_it(
            seed: u64, count in 0usize..30, at: prop::sample::Index, value: u8, cut: prop::sample::Index,
        ) {
            let data = runs(seed, count);
            let mut stream = packed(&data);
            let at = at.index(stream.len());
            stream[at] = value;
            if value % 4 == 0 {
                stream.truncate(cut.index(stream.len()));
            }
            // Behind the slack nothing may change.
            let mut out = vec![0xa5; data.len() + SLACK + 32];
            let end = data.len() + SLACK;
            let ours = block(&stream, &mut out[..end], data.len());
            prop_assert!(out[end..].iter().all(|&b| b == 0xa5));
            let mut theirs = vec![0; data.len()];
            if library(&stream, &mut theirs).is_ok() {
                prop_assert!(ours.is_ok());
                prop_assert_eq!(&out[..data.len()], &theirs[..]);
            }
        }
    }

    #[test]
    fn the_end_of_the_stream_is_no_block() {
        for stream in
            [&[][..], &[0xf0], &[0xf0, 255, 255], &[0x10], &[0x10, 1, 0], &[0x10, 1, 1, 0], &[0x1f, 1, 1, 0, 255]]
        {
            assert!(block(stream, &mut [0; 100 + SLACK], 100).is_err(), "{stream:?}");
        }
        assert!(block(&[0x00, 1, 0], &mut [0; 4 + SLACK], 4).is_err(), "a match before anything");
        assert!(block(&[], &mut [0; SLACK], 0).is_ok());
    }
}
