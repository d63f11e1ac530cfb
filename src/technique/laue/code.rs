//! The sequence of bars and gaps on the mask.
//!
//! A bit 1 is a gold bar, a bit 0 a gap. The sequences used at 34-ID-E are windows of one binary de Bruijn sequence of order 8:
//! all its 256 cyclic windows of 8 bits differ. It is the greedy "prefer same" sequence (Alhakim, *Am. Math. Monthly* 117,
//! 728 (2010)) that begins with the word 10101010: append the last bit again unless that word occurred, else its
//! complement; here from its first run of eight equal bits on.

/// Windows of the whole sequence by their number: `debruijn-2-8-003` is `[94, 161)`.
const WINDOWS: [(usize, usize); 8] =
    [(0, 256), (104, 149), (102, 152), (94, 161), (77, 177), (108, 141), (104, 149), (93, 160)];

/// Order of the sequence: every window of so many bits occurs once.
pub const ORDER: usize = 8;

fn prefer_same() -> Vec<u8> {
    const BITS: usize = 1 << ORDER;
    let mut seen = [false; BITS];
    let mut bits: Vec<u8> = (0..ORDER).map(|i| u8::from(i % 2 == 0)).collect();
    let mut word = bits.iter().fold(0, |w, &b| (w << 1 | usize::from(b)) % BITS);
    seen[word] = true;
    while bits.len() < BITS {
        let last = bits[bits.len() - 1];
        let next = [last, 1 - last].into_iter().find(|&b| !seen[(word << 1 | usize::from(b)) % BITS]);
        // The greedy construction never gets stuck before all words occurred.
        let Some(bit) = next else { break };
        word = (word << 1 | usize::from(bit)) % BITS;
        seen[word] = true;
        bits.push(bit);
    }
    bits.rotate_left(ORDER - 1);
    bits
}

/// A known sequence by name: `debruijn-2-8`, or `debruijn-2-8-000` to `-007`.
#[must_use]
pub fn named(name: &str) -> Option<Vec<u8>> {
    let rest = name.strip_prefix("code-").unwrap_or(name).strip_prefix("debruijn-2-8")?;
    let number = match rest {
        "" => 0,
        _ => rest.strip_prefix("-00").filter(|n| n.len() == 1)?.parse().ok()?,
    };
    let &(from, to) = WINDOWS.get::<usize>(number)?;
    prefer_same().get(from..to).map(<[u8]>::to_vec)
}

/// Reads a one-dimensional NumPy file (`.npy`, version 1 or 2) of whole numbers 0 and 1.
///
/// # Errors
/// What is wrong with it.
pub fn from_npy(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let header_at = match bytes.get(..8) {
        Some([0x93, b'N', b'U', b'M', b'P', b'Y', 1, _]) => 10,
        Some([0x93, b'N', b'U', b'M', b'P', b'Y', 2, _]) => 12,
        _ => return Err("it is no .npy file of version 1 or 2".to_owned()),
    };
    let size = match (header_at, bytes.get(8..header_at)) {
        (10, Some(&[a, b])) => usize::from(u16::from_le_bytes([a, b])),
        (_, Some(&[a, b, c, d])) => u32::from_le_bytes([a, b, c, d]) as usize,
        _ => return Err("its header is cut short".to_owned()),
    };
    let data_at = header_at + size;
    let header = bytes.get(header_at..data_at).ok_or("its header is cut short")?;
    let header = String::from_utf8_lossy(header).replace(' ', "");
    let value = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest);
    let kind = value("descr").and_then(|d| d.split('\'').nth(1)).unwrap_or_default();
    let width = match kind {
        "|i1" | "|u1" | "|b1" => 1,
        "<i2" | "<u2" => 2,
        "<i4" | "<u4" => 4,
        "<i8" | "<u8" => 8,
        other => return Err(format!("its numbers are of type {other:?}; write whole numbers, as <i8")),
    };
    if value("shape").is_none_or(|s| s.split(')').next().is_none_or(|s| s.trim_end_matches(',').contains(','))) {
        return Err("it is not one-dimensional".to_owned());
    }
    let data = bytes.get(data_at..).unwrap_or_default();
    if data.is_empty() || !data.len().is_multiple_of(width) {
        return Err(format!("it holds {} bytes of numbers of {width}", data.len()));
    }
    data.chunks(width)
        .enumerate()
        .map(|(i, word)| match word.split_first() {
            Some((&bit @ (0 | 1), rest)) if rest.iter().all(|&b| b == 0) => Ok(bit),
            _ => Err(format!("number {i} is neither 0 nor 1")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn every_window_of_eight_bits_occurs_once() {
        let code = named("debruijn-2-8").unwrap();
        let windows: BTreeSet<Vec<u8>> = (0..256).map(|i| (0..8).map(|j| code[(i + j) % 256]).collect()).collect();
        assert_eq!((code.len(), windows.len()), (256, 256));
        assert_eq!(code.iter().map(|&b| u32::from(b)).sum::<u32>(), 128);
        for (name, length, ones) in [("code-debruijn-2-8-003", 67, 30), ("debruijn-2-8-005", 33, 16)] {
            let part = named(name).unwrap();
            assert_eq!((part.len(), part.iter().map(|&b| u32::from(b)).sum::<u32>()), (length, ones));
        }
        assert!(named("debruijn-2-8-008").is_none() && named("debruijn-2-7").is_none());
    }

    #[test]
    fn the_measured_masks_are_these_sequences() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/laue");
        if !folder.is_dir() {
            println!("skipped: no {}", folder.display());
            return;
        }
        for number in 0..8 {
            let name = format!("code-debruijn-2-8-{number:03}");
            let read = from_npy(&std::fs::read(folder.join(format!("{name}.npy"))).unwrap()).unwrap();
            assert_eq!(read, named(&name).unwrap(), "{name}");
        }
    }

    #[test]
    fn other_npy_files_are_refused_with_the_reason() {
        let file = |descr: &str, shape: &str, data: &[u8]| {
            let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend((header.len() as u16).to_le_bytes());
            bytes.extend(header.bytes());
            bytes.extend(data);
            bytes
        };
        assert_eq!(from_npy(&file("|u1", "(3,)", &[1, 0, 1])), Ok(vec![1, 0, 1]));
        for (bytes, word) in [
            (file("<f8", "(1,)", &[0; 8]), "type"),
            (file("|u1", "(1, 2)", &[0; 2]), "one-dimensional"),
            (file("|u1", "(1,)", &[2]), "neither"),
            (file("<i2", "(1,)", &[1]), "bytes"),
            (b"PK".to_vec(), "no .npy"),
            (b"\x93NUMPY\x01\x00\xff\xffabc".to_vec(), "cut short"),
        ] {
            let error = from_npy(&bytes).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
