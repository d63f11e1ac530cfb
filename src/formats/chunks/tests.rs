//! Chunks against what they were made of, against the library, against streams of the registered plugins, and damaged.

use super::pipeline::{Pipeline, Scratch};
use super::sink::{Pieces, Sink, Target};
use super::{bitshuffle, codecs};
use crate::formats::stack::Sample;
use crate::formats::{self, TomoSource};
use crate::technique::Fault;
use hdf5::filters::Filter;
use hdf5::plist::DatasetCreate;
use hdf5_sys::{h5d, h5p};
use ndarray::{Array1, Array3};
use proptest::prelude::*;
use std::path::Path;

/// 150 elements; the chunks below hold them as (2, 5, 15).
fn reference() -> Vec<u16> {
    (0..150).map(|i| 1000 + i / 7 * 37).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter_map(|b| (b as char).to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
}

/// Chunks of [`reference`] as hdf5plugin 7.1 stored them, with the filter's number and client data.
const STORED: [(&str, i32, &[u32], &str); 8] = [
    (
        "bitshuffle, LZ4",
        32008,
        &[0, 4, 2, 64, 2],
        "000000000000012c000000800000005cf023803fe00ff803fe8000c0ff0f00fcff00803fe0ff07fc0180ff3f00f00700fe0000c0ffff0700
        00ff7fc01ff0ff03fe807f00200082ff007f000000f8ff08001000200001070042000080ff0100000c000f02000c50000000000000000056
        f1073fe00ff803fe803fc0ff0f00fcff00c03fe0ff07fc011000d2f8ff01ff3fffff0f0000feff3f1800227f001800b0803f0000f0ffff01
        00c0ff0100220100010010fe0d000202000211000f02000a50000000000000000021f005e00fff0fe0ff00f00000e00f00f0ffff0000ffff
        0600800000000000000000cc06cc06cc06f106f106f106",
    ),
    (
        "bitshuffle, zstd",
        32008,
        &[0, 4, 2, 64, 3, 3],
        "000000000000012c000000800000005a28b52ffd20808d0200f403803fe00ff803fe8000c0ff0f00fcff00803fe0ff07fc0180ff3f00f007
        00fe0000c0ffff070000ff7fc01ff0ff03fe807f00ff007f000000f8ff000080ff0006004011383c6060a8705786cb0814140000005128b5
        2ffd208045020054033fe00ff803fe803fc0ff0f00fcff00c03fe0ff07fc01f8ff01ff3fffff0f0000feff3f7f00803f0000f0ffff0100c0
        ff0100feff000700401140633018173c18d8cef9e69a4d0000002528b52ffd2020e50000a0e00fff0fe0ff00f00000e00f00f0ffff0000ff
        ff02008080048509cc06cc06cc06f106f106f106",
    ),
    (
        "bitshuffle alone",
        32008,
        &[0, 4, 2, 64, 0],
        "803fe00ff803fe8000c0ff0f00fcff00803fe0ff07fc0180ff3f00f00700fe0000c0ffff070000ff7fc01ff0ff03fe807f00e0ff07fcff00
        7f000000f8ffff007f000000000000ff7f0000000000000080ffffffffffffff000000000000000000000000000000000000000000000000
        000000000000000000000000000000003fe00ff803fe803fc0ff0f00fcff00c03fe0ff07fc01803fc0ff0ff8ff01ff3fffff0f0000feff3f
        3fe0ff07fc017f00c0ff0ff8ff01803f0000f0ffff0100c0ffffffffff0100000000000000feffffffffffffffffffff0000000000000000
        0000000000000000000000000000000000000000000000000000000000000000e00fff0fe0ff00f00000e00f00f0ffff0000ffffffff0000
        0000000000000000cc06cc06cc06f106f106f106",
    ),
    (
        "LZ4",
        32004,
        &[128],
        "000000000000012c000000800000002d28e8030200280d0402001932020019570200197c020019a1020019c6020019eb0200251005020050
        05100535050000002c2635050200195a0200197f020019a4020019c9020019ee0200281306020019380200185d0200500682068206000000
        14248206020019a7020019cc020060f106f106f106",
    ),
    (
        "zstd",
        32015,
        &[3],
        "28b52ffd602c00650200f8e8030d0432577ca1c6eb1005355a7fa4c9ee1306385d82a7ccf106f106f1061500e010701c381838041c177008
        0e060e01c781838143c0710187e060e010701c381838041c177038ce6101",
    ),
    (
        "Blosc: shuffle, LZ4",
        32001,
        &[2, 2, 2, 300, 5, 1, 1],
        "020121022c0100002c01000090000000140000005b00000012e80100120d01001232010012570100127c010012a1010012c6010012eb0100
        1210010012350100125a0100127f010012a4010012c9010012ee01001213010012380100125d01001282010012a70100a0cccccccccccccc
        f1f1f119000000120301001f0401001d1f0501001d1f06010014500606060606",
    ),
    (
        "Blosc: bit shuffle, zstd",
        32001,
        &[2, 2, 2, 300, 5, 2, 5],
        "020194022c0100002c01000054000000140000003c00000028b52ffd602c00950100f8e8030d0432577ca1c6eb1005355a7fa4c9ee130638
        5d82a7ccf106f106f10615a810d807f0c510def3015c65b4c5723205",
    ),
    (
        "Blosc: shuffle, blosclz",
        32001,
        &[2, 2, 2, 300, 9, 1, 0],
        "020101022c0100002c01000093000000140000005e00000027e8e8e8e8e8e8e80d80000032800000578000007c800000a1800000c6800000
        eb80000010800000358000005a8000007f800000a4800000c9800000ee80000013800000388000005d80000082800000a7800009cccccccc
        ccccccf1f1f119000000270303030303030304e027000005e027000006e02100010606",
    ),
];

/// Shuffle, deflate and Fletcher-32 together, as h5py stored [`reference`].
const CLASSIC: &str =
    "785e95c1db0580500000d08f1e7f116d12d126116d12d126116d12d1209788bb417426b8e784f0ab681998d93879a8e91859d8b97869e899
        5839b8893166e4a98a54658a0f14dd4e5e7d847fbd";

fn decoded(filters: &[Filter], stored: &[u8], bytes: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    Pipeline::of(filters, 2).unwrap().decode(0, stored, bytes, &mut Scratch::default(), &mut out).map(|()| out)
}

fn words(bytes: &[u8]) -> Vec<u16> {
    bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
}

#[test]
fn streams_of_the_registered_plugins_are_decoded() {
    for (name, id, values, hex) in STORED {
        let got = decoded(&[Filter::User(id, values.to_vec())], &unhex(hex), 300).unwrap();
        assert_eq!(words(&got), reference(), "{name}");
    }
    let classic = [Filter::Shuffle, Filter::Deflate(4), Filter::Fletcher32];
    assert_eq!(words(&decoded(&classic, &unhex(CLASSIC), 300).unwrap()), reference());
    // A filter that the writer skipped for this chunk.
    let raw: Vec<u8> = reference().iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut out = Vec::new();
    Pipeline::of(&classic, 2).unwrap().decode(0b111, &raw, 300, &mut Scratch::default(), &mut out).unwrap();
    assert_eq!(out, raw);
}

/// Counts as a detector has them: a smooth part and noise; longer than any block or strip.
fn noisy(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u16
    };
    (0..bytes / 2).flat_map(|i| (3000 + (i / 300 % 40) as u16 * 20 + next() % 64).to_le_bytes()).collect()
}

#[test]
fn chunks_of_many_blocks_come_back_whole() {
    for bytes in [16, 40_000, 8192 * 5, 700_002] {
        let data = noisy(bytes);
        for id in [32004, 32008, 32015] {
            let got = decoded(&[Filter::User(id, values(id))], &packed(id, &data), bytes).unwrap();
            assert!(got == data, "{id} {bytes}");
        }
        for codec in [c"lz4", c"zstd", c"blosclz", c"zlib"] {
            for shuffle in [0, 1, 2] {
                let got = decoded(&[Filter::User(32001, vec![])], &blosc(&data, shuffle, codec), bytes).unwrap();
                assert!(got == data, "{codec:?} {shuffle} {bytes}");
            }
        }
        for element in [1, 2, 4, 8] {
            let whole = bytes / element * element;
            let mut shuffled = data.clone();
            for i in 0..whole {
                shuffled[i % element * (whole / element) + i / element] = data[i];
            }
            let mut got = Vec::new();
            codecs::unshuffle(&shuffled, element, 0, &mut Vec::new(), &mut got);
            assert!(got == data, "shuffle {element} {bytes}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Pieces of any size, whatever is wanted of the chunk: each pixel lands in its place, nothing else is touched.
    #[test]
    fn pieces_become_pixels_in_their_places(
        shape in [1usize..4, 1usize..6, 1usize..7], cut in 0usize..6, list in proptest::collection::vec(0usize..4, 1..6),
        (first, count) in (0usize..6, 1usize..6), (before, left) in (0usize..3, 0usize..4), piece in 1usize..50,
    ) {
        let [depth, height, width] = shape;
        let (columns, first) = (width - cut.min(width - 1), first.min(height - 1));
        let rows = first..(first + count).min(height);
        let mut frames: Vec<(usize, usize)> = list.iter().enumerate().map(|(p, f)| (f % depth, p)).collect();
        frames.sort_unstable();
        let extent = (before + rows.len() + 1, left + columns);
        let mut out = vec![-1f32; list.len() * extent.0 * extent.1];
        let values: Vec<u16> = (0..depth * height * width).map(|i| 1000 + i as u16).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut sink = Sink {
            shape,
            sample: Sample::U16,
            frames: &frames,
            rows: rows.clone(),
            skip: before,
            columns,
            left,
            extent,
            target: Target::of(&mut out),
            wide: piece % 2 == 0,
        };
        for (n, part) in bytes.chunks(2 * piece).enumerate() {
            let at = n * 2 * piece;
            if sink.wants(at..at + part.len()) {
                sink.put(at, part);
            }
        }
        crate::formats::convert::settle();
        for (place, got) in ndarray::indices((list.len(), extent.0, extent.1)).into_iter().zip(&out) {
            let row = (place.1 + rows.start).wrapping_sub(before);
            let inside = rows.contains(&row) && place.1 >= before && place.2 >= left;
            let index = (list[place.0] % depth * height + row.wrapping_mul(usize::from(inside))) * width;
            let want = if inside { f32::from(values[index + place.2 - left]) } else { -1.0 };
            prop_assert_eq!(*got, want, "{:?}", place);
        }
    }
}

#[test]
fn what_is_not_known_here_is_left_to_the_library() {
    assert!(Pipeline::of(&[Filter::NBit], 2).is_none());
    assert!(Pipeline::of(&[Filter::User(32013, vec![])], 2).is_none());
    assert!(Pipeline::of(&[Filter::User(32008, vec![0, 4, 0, 0, 2])], 2).is_none());
    assert!(Pipeline::of(&[Filter::Deflate(1), Filter::User(32015, vec![])], 2).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Damage is an error or, where the format has no checksum, other pixels: never a panic, never more memory.
    #[test]
    fn damaged_streams_are_refused_or_decoded(
        which in 0usize..9, cut in 0usize..400, at in 0usize..300, value: u8, big in any::<Option<u32>>(),
    ) {
        let (filters, hex) = match STORED.get(which) {
            Some((_, id, values, hex)) => (vec![Filter::User(*id, values.to_vec())], *hex),
            None => (vec![Filter::Shuffle, Filter::Deflate(4), Filter::Fletcher32], CLASSIC),
        };
        let mut stored = unhex(hex);
        stored.truncate(cut);
        if let Some(byte) = stored.get_mut(at) {
            *byte = value;
        }
        if let (Some(big), Some(place)) = (big, stored.get_mut(at / 4 * 4..at / 4 * 4 + 4)) {
            place.copy_from_slice(&big.to_be_bytes());
        }
        if let Ok(out) = decoded(&filters, &stored, 300) {
            prop_assert_eq!(out.len(), 300);
        }
    }

    #[test]
    fn noise_is_no_chunk(which in 0usize..8, noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (_, id, values, _) = STORED[which];
        if let Ok(out) = decoded(&[Filter::User(id, values.to_vec())], &noise, 64) {
            prop_assert_eq!(out.len(), 64);
        }
    }
}

/// One chunk through a filter, forwards.
fn packed(id: i32, data: &[u8]) -> Vec<u8> {
    let lz4 = |d: &[u8]| lz4::block::compress(d, None, false).unwrap();
    let zstd = |d: &[u8]| zstd::bulk::compress(d, 1).unwrap();
    match id {
        32004 => {
            let block = 1000;
            let mut out = (data.len() as u64).to_be_bytes().to_vec();
            out.extend((block as u32).to_be_bytes());
            for part in data.chunks(block) {
                let small = lz4(part);
                let small = if small.len() < part.len() { small } else { part.to_vec() };
                out.extend((small.len() as u32).to_be_bytes());
                out.extend(small);
            }
            out
        }
        32008 => {
            let block = 128 * 2;
            let mut out = (data.len() as u64).to_be_bytes().to_vec();
            out.extend((block as u32).to_be_bytes());
            let whole = data.len() / 16 * 16;
            for part in data[..whole].chunks(block) {
                let small = lz4(&shuffled(part));
                out.extend((small.len() as u32).to_be_bytes());
                out.extend(small);
            }
            out.extend(&data[whole..]);
            out
        }
        32001 => blosc(data, 1, c"lz4"),
        _ => zstd(data),
    }
}

/// Blosc of u16; `shuffle`: 0 none, 1 bytes, 2 bits.
fn blosc(data: &[u8], shuffle: i32, codec: &std::ffi::CStr) -> Vec<u8> {
    let mut out = vec![0; data.len() + 16];
    // SAFETY: pointers and lengths are those of the buffers; the name ends in NUL.
    let got = unsafe {
        blosc_src::blosc_compress_ctx(
            5,
            shuffle,
            2,
            data.len(),
            data.as_ptr().cast(),
            out.as_mut_ptr().cast(),
            out.len(),
            codec.as_ptr(),
            0,
            1,
        )
    };
    out.truncate(usize::try_from(got).unwrap());
    out
}

/// Bitshuffle of u16, forwards, by the definition.
fn shuffled(data: &[u8]) -> Vec<u8> {
    let row = data.len() / 16;
    let mut out = vec![0; data.len()];
    for (i, byte) in data.iter().enumerate() {
        for k in 0..8 {
            out[(8 * (i % 2) + k) * row + i / 16] |= (byte >> k & 1) << (i / 2 % 8);
        }
    }
    out
}

fn values(id: i32) -> Vec<u32> {
    if id == 32008 { vec![0, 4, 2, 128, 2] } else { Vec::new() }
}

/// A stack whose chunks are written past the library's filters, which this machine need not have.
fn write_stack(file: &hdf5::File, name: &str, data: &Array3<u16>, chunk: [usize; 3], id: i32) {
    let plist = DatasetCreate::try_new().unwrap();
    let values = values(id);
    // SAFETY: the identifier is live, `values` has the stated length.
    let set = hdf5::sync::sync(|| unsafe { h5p::H5Pset_filter(plist.id(), id, 1, values.len(), values.as_ptr()) });
    assert!(set >= 0);
    let dataset =
        file.new_dataset::<u16>().set_create_plist(&plist).shape(data.dim()).chunk(chunk).create(name).unwrap();
    let (f, r, c) = data.dim();
    for f0 in (0..f).step_by(chunk[0]) {
        for r0 in (0..r).step_by(chunk[1]) {
            for c0 in (0..c).step_by(chunk[2]) {
                let mut bytes = Vec::new();
                for place in ndarray::indices(chunk) {
                    let at = [f0 + place.0, r0 + place.1, c0 + place.2];
                    bytes.extend(data.get(at).copied().unwrap_or(7).to_le_bytes());
                }
                let stored = packed(id, &bytes);
                let offset = [f0 as u64, r0 as u64, c0 as u64];
                // SAFETY: identifiers are live, the buffer has the stated length, there is an offset for each axis.
                let wrote = hdf5::sync::sync(|| unsafe {
                    h5d::H5Dwrite_chunk(
                        dataset.id(),
                        h5p::H5P_DEFAULT,
                        0,
                        offset.as_ptr(),
                        stored.len(),
                        stored.as_ptr().cast(),
                    )
                });
                assert!(wrote >= 0);
            }
        }
    }
}

fn counts(n: usize, base: usize) -> Array3<u16> {
    Array3::from_shape_fn((n, 9, 14), |(f, r, c)| (base + f * 131 + r * 17 + c * c) as u16)
}

/// A Data Exchange scan with packed projections.
fn scan(path: &Path, chunk: [usize; 3], id: i32) {
    let file = hdf5::File::create(path).unwrap();
    write_stack(&file, "/exchange/data", &counts(11, 300), chunk, id);
    file.new_dataset_builder().with_data(&counts(2, 9000)).create("/exchange/data_white").unwrap();
    file.new_dataset_builder().with_data(&counts(2, 10)).create("/exchange/data_dark").unwrap();
    file.new_dataset_builder().with_data(&Array1::linspace(0.0, 170.0, 11)).create("/exchange/theta").unwrap();
    file.close().unwrap();
}

fn opened(path: &Path) -> Result<TomoSource, Fault> {
    formats::open(path, path.parent().unwrap())
}

#[test]
fn every_filter_and_chunk_shape_reads_every_subset() {
    let dir = tempfile::tempdir().unwrap();
    let expected = counts(11, 300).mapv(f32::from);
    for id in [32001, 32004, 32008, 32015] {
        for chunk in [[1, 9, 14], [4, 4, 5], [11, 1, 14]] {
            let path = dir.path().join(format!("{id}-{}.h5", chunk[0]));
            scan(&path, chunk, id);
            let source = opened(&path).unwrap();
            formats::probe::check(&source).unwrap();
            let list = &source.projections;
            let before = list.stack.decoded();
            assert_eq!(list.read_rows(0..9).unwrap(), expected, "{id} {chunk:?}");
            let chunks: usize = [11usize, 9, 14].into_iter().zip(chunk).map(|(n, c)| n.div_ceil(c)).product();
            assert_eq!(list.stack.decoded() - before, chunks as u64, "{id} {chunk:?}");
            let some = list.read_positions(&[10, 2, 2, 7], 3..5).unwrap();
            let wanted = expected.select(ndarray::Axis(0), &[10, 2, 2, 7]);
            let wanted = wanted.slice(ndarray::s![.., 3..5, ..]);
            assert_eq!(some, wanted);
            let mut counts = Array3::<u16>::zeros(wanted.dim());
            list.stack.read(&[10, 2, 2, 7], 3..5, counts.as_slice_mut().unwrap()).unwrap();
            assert_eq!(counts.mapv(f32::from), wanted);
            // In a pool of one thread, which must not wait for itself.
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert_eq!(pool.install(|| list.read_rows(2..9)).unwrap(), expected.slice(ndarray::s![.., 2..9, ..]));
        }
    }
}

#[test]
fn the_library_and_the_chunks_agree_on_its_own_filters() {
    let dir = tempfile::tempdir().unwrap();
    for chunk in [[1, 9, 14], [3, 5, 4]] {
        for (deflate, shuffle, checksum) in [(true, true, true), (true, false, false), (false, true, true)] {
            let path = dir.path().join(format!("{}{deflate}{shuffle}.h5", chunk[0]));
            scan(&path, [1, 9, 14], 32015);
            let file = hdf5::File::open_rw(&path).unwrap();
            file.unlink("/exchange/data").unwrap();
            let data = counts(11, 300);
            let mut b = file.new_dataset_builder().with_data(&data).chunk(chunk);
            b = if checksum { b.fletcher32() } else { b };
            b = if shuffle { b.shuffle() } else { b };
            b = if deflate { b.deflate(4) } else { b };
            b.create("/exchange/data").unwrap();
            file.close().unwrap();
            let source = opened(&path).unwrap();
            assert_eq!(source.projections.read_rows(0..9).unwrap(), data.mapv(f32::from));
            assert!(source.projections.stack.decoded() > 0);
            let library = hdf5::File::open(&path).unwrap().dataset("/exchange/data").unwrap();
            assert_eq!(library.read::<u16, ndarray::Ix3>().unwrap(), data);
        }
    }
}

/// Overwrites some bytes of a file where `old` stands first.
fn damage(path: &Path, old: &[u8], new: &[u8]) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(old.len()).position(|w| w == old).unwrap();
    bytes[at..at + new.len()].copy_from_slice(new);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_chunk_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for id in [32004, 32008, 32015, 32001] {
        let path = dir.path().join(format!("{id}-scan.h5"));
        scan(&path, [1, 9, 14], id);
        let data: Vec<u8> =
            counts(11, 300).slice(ndarray::s![4, .., ..]).iter().flat_map(|v| v.to_le_bytes()).collect();
        let stored = packed(id, &data);
        damage(&path, &stored, &vec![0xff; stored.len()]);
        let source = opened(&path).unwrap();
        let fault = source.projections.read_rows(0..9).unwrap_err();
        let text = fault.to_string();
        assert!(matches!(fault, Fault::Input(_)), "{text}");
        assert!(text.contains("scan.h5: /exchange/data: chunk [4, 0, 0]"), "{text}");
        // Frames beside it are still read.
        assert!(source.projections.read_positions(&[3, 5], 0..9).is_ok());
    }
}

#[test]
fn missing_chunks_and_big_endian_numbers_go_through_the_library() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scan.h5");
    scan(&path, [1, 9, 14], 32015);
    let file = hdf5::File::open_rw(&path).unwrap();
    file.unlink("/exchange/data").unwrap();
    let set = file.new_dataset::<u16>().shape((11, 9, 14)).chunk((1, 9, 14)).deflate(1).fill_value(42u16);
    let set = set.create("/exchange/data").unwrap();
    set.write_slice(&counts(1, 5), (3..4, .., ..)).unwrap();
    drop(set);
    file.close().unwrap();
    let source = opened(&path).unwrap();
    let got = source.projections.read_rows(0..9).unwrap();
    assert_eq!(source.projections.stack.decoded(), 0);
    assert!(got.index_axis(ndarray::Axis(0), 2).iter().all(|&v| v == 42.0));
    assert_eq!(got.index_axis(ndarray::Axis(0), 3), counts(1, 5).mapv(f32::from).index_axis(ndarray::Axis(0), 0));
}

#[test]
fn the_checksum_is_that_of_the_library_for_odd_lengths_too() {
    // Sums by hand: words 0x0102, 0x0300.
    let data = [1u8, 2, 3];
    let (a, b) = (0x0102u32 + 0x0300, 0x0102u32 + 0x0102 + 0x0300);
    let mut stored = data.to_vec();
    stored.extend((b << 16 | a).to_le_bytes());
    assert_eq!(codecs::fletcher32(&stored).unwrap(), data);
    stored[0] = 9;
    assert!(codecs::fletcher32(&stored).is_err());
    assert!(codecs::fletcher32(&[1, 2]).is_err());
}

#[test]
fn sizes_in_a_stream_are_not_believed() {
    let mut scratch = bitshuffle::Scratch::default();
    let filter = bitshuffle::Bitshuffle::of(&[0, 4, 2, 0, 2]).unwrap();
    for (total, block, size) in
        [(64u64, 0u32, 4u32), (64, 24, 4), (u64::MAX, 64, 4), (64, 64, u32::MAX), (64, u32::MAX, 9)]
    {
        let mut stream = total.to_be_bytes().to_vec();
        stream.extend(block.to_be_bytes());
        stream.extend(size.to_be_bytes());
        stream.extend([0; 4]);
        let mut out = Vec::new();
        let got = bitshuffle::decode(filter, &stream, 64, &mut scratch, &mut out);
        assert!(got.is_err(), "{total} {block} {size}");
        let got = codecs::lz4_chunk(&stream, 64, 2, &mut Vec::new(), &mut out);
        assert!(got.is_err() && out.len() <= 64, "{total} {block} {size}");
    }
}
