//! Stored pixels to numbers in memory: what a pixel may become, and how it gets there.
//!
//! Contract
//! - [`Pixel::convert`] gives the values that a plain loop gives, bit for bit.
//! - `wide` destinations, which no cache holds, may be written past the caches: the memory is then not read before it is
//!   written. Whoever asks for it calls `settle` on the same thread before anybody else looks.

use super::stack::Sample;

/// Destinations of more bytes are `wide`: as much as a core's share of the outermost cache.
pub(crate) const WIDE_BYTES: usize = 8 << 20;

/// What stored pixels are turned into.
pub trait Pixel: Copy + Send + Sync + Default + private::Sealed {
    /// Can every number of such a dataset be kept?
    fn holds(sample: Sample) -> bool;
    /// From the library's numbers, which are inside the range of this type.
    fn of(value: f64) -> Self;
    /// Little-endian bytes to numbers; `out` has one place for each whole pixel in `bytes`.
    fn convert(sample: Sample, bytes: &[u8], out: &mut [Self], wide: bool);
}

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for u16 {}
}

/// What was written past the caches becomes visible to other threads.
pub(crate) fn settle() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has SSE.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

fn each<const N: usize, T>(bytes: &[u8], out: &mut [T], f: impl Fn([u8; N]) -> T) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *o = f(*b);
    }
}

impl Pixel for f32 {
    fn holds(_: Sample) -> bool {
        true
    }

    fn of(value: f64) -> Self {
        value as Self
    }

    fn convert(sample: Sample, bytes: &[u8], out: &mut [Self], wide: bool) {
        match sample {
            Sample::U8 => each::<1, _>(bytes, out, |b| Self::from(b[0])),
            Sample::U16 => {
                let done = if wide { stream::u16_to_f32(bytes, out) } else { 0 };
                each(&bytes[2 * done..], &mut out[done..], |b| Self::from(u16::from_le_bytes(b)));
            }
            Sample::I16 => each(bytes, out, |b| Self::from(i16::from_le_bytes(b))),
            Sample::U32 => each(bytes, out, |b| u32::from_le_bytes(b) as Self),
            Sample::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as Self),
            Sample::F32 => each(bytes, out, Self::from_le_bytes),
            Sample::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as Self),
        }
    }
}

impl Pixel for u16 {
    fn holds(sample: Sample) -> bool {
        matches!(sample, Sample::U8 | Sample::U16)
    }

    fn of(value: f64) -> Self {
        value as Self
    }

    fn convert(sample: Sample, bytes: &[u8], out: &mut [Self], wide: bool) {
        match sample {
            Sample::U8 => each::<1, _>(bytes, out, |b| Self::from(b[0])),
            _ => {
                let done = if wide { stream::u16_to_u16(bytes, out) } else { 0 };
                each(&bytes[2 * done..], &mut out[done..], Self::from_le_bytes);
            }
        }
    }
}

/// Stores past the caches. Each function does as many pixels as it can and returns how many.
#[cfg(target_arch = "x86_64")]
mod stream {
    use std::arch::x86_64::*;

    /// Pixels in front of the first aligned place.
    fn head<T>(out: &[T]) -> usize {
        out.as_ptr().align_offset(32).min(out.len())
    }

    pub fn u16_to_f32(bytes: &[u8], out: &mut [f32]) -> usize {
        if !is_x86_feature_detected!("avx2") || cfg!(miri) {
            return 0;
        }
        let head = head(out);
        for (o, b) in out[..head].iter_mut().zip(bytes.as_chunks::<2>().0) {
            *o = f32::from(u16::from_le_bytes(*b));
        }
        let (groups, places) = (bytes[2 * head..].as_chunks::<32>().0, out[head..].as_chunks_mut::<16>().0);
        let done = groups.len().min(places.len());
        // SAFETY: the processor has AVX2, places are aligned.
        unsafe { aligned_f32(groups, places) };
        head + 16 * done
    }

    /// # Safety
    /// `places` begin at a multiple of 32 bytes.
    #[target_feature(enable = "avx2")]
    unsafe fn aligned_f32(groups: &[[u8; 32]], places: &mut [[f32; 16]]) {
        for (b, o) in groups.iter().zip(places) {
            // SAFETY: 32 bytes are there to load, 64 aligned ones to store; the caller promises the alignment.
            unsafe {
                let (low, high) = (_mm_loadu_si128(b.as_ptr().cast()), _mm_loadu_si128(b.as_ptr().add(16).cast()));
                _mm256_stream_ps(o.as_mut_ptr(), _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(low)));
                _mm256_stream_ps(o.as_mut_ptr().add(8), _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(high)));
            }
        }
    }

    pub fn u16_to_u16(bytes: &[u8], out: &mut [u16]) -> usize {
        if !is_x86_feature_detected!("avx2") || cfg!(miri) {
            return 0;
        }
        let head = head(out);
        for (o, b) in out[..head].iter_mut().zip(bytes.as_chunks::<2>().0) {
            *o = u16::from_le_bytes(*b);
        }
        let (groups, places) = (bytes[2 * head..].as_chunks::<64>().0, out[head..].as_chunks_mut::<32>().0);
        let done = groups.len().min(places.len());
        // SAFETY: the processor has AVX2, places are aligned.
        unsafe { aligned_u16(groups, places) };
        head + 32 * done
    }

    /// # Safety
    /// As [`aligned_f32`].
    #[target_feature(enable = "avx2")]
    unsafe fn aligned_u16(groups: &[[u8; 64]], places: &mut [[u16; 32]]) {
        for (b, o) in groups.iter().zip(places) {
            // SAFETY: 64 bytes are there to load, 64 aligned ones to store; the caller promises the alignment.
            unsafe {
                let (low, high) =
                    (_mm256_loadu_si256(b.as_ptr().cast()), _mm256_loadu_si256(b.as_ptr().add(32).cast()));
                _mm256_stream_si256(o.as_mut_ptr().cast(), low);
                _mm256_stream_si256(o.as_mut_ptr().add(16).cast(), high);
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod stream {
    pub fn u16_to_f32(_: &[u8], _: &mut [f32]) -> usize {
        0
    }

    pub fn u16_to_u16(_: &[u8], _: &mut [u16]) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_stores_give_what_plain_ones_give_at_every_alignment_and_length() {
        let bytes: Vec<u8> = (0..400u32).map(|i| (i * 37 % 251) as u8).collect();
        for sample in [Sample::U8, Sample::U16] {
            let size = sample.bytes();
            for skip in 0..20 {
                for count in [0, 1, 15, 16, 31, 63, 64, 65, 130] {
                    let from = &bytes[size * skip % 40..][..size * count];
                    let (mut wide, mut plain) = (vec![-1f32; skip + count + 1], vec![-1f32; skip + count + 1]);
                    f32::convert(sample, from, &mut wide[skip..skip + count], true);
                    settle();
                    f32::convert(sample, from, &mut plain[skip..skip + count], false);
                    assert_eq!(wide, plain);
                    let (mut counts, mut expected) = (vec![7u16; skip + count + 1], vec![7u16; skip + count + 1]);
                    u16::convert(sample, from, &mut counts[skip..skip + count], true);
                    settle();
                    expected[skip..skip + count].iter_mut().zip(&plain[skip..]).for_each(|(e, &v)| *e = v as u16);
                    assert_eq!(counts, expected);
                }
            }
        }
    }
}
