//! The first bytes of an HDF5 file, read without the library: is it one, and is all of it there?
//!
//! Contract: reads at most a few KiB, never panics, whatever the bytes are. The end-of-file address that
//! the superblock states is compared with the size on disk: a transfer that writes from front to back is
//! caught here, before the library sees the file. Layout: HDF5 File Format Specification 3.0, section II.A.

use crate::technique::Fault;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SIGNATURE: [u8; 8] = *b"\x89HDF\r\n\x1a\n";
/// User blocks are powers of two from 512; nobody writes larger ones than this.
const LARGEST_USER_BLOCK: u64 = 64 << 20;

/// What the superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// 0, 1, 2 or 3.
    pub version: u8,
    /// Address of the first byte behind the file's contents.
    pub end_of_file: u64,
    /// A writer has it open, or died with it open (version 3 only).
    pub open_for_writing: bool,
}

/// Reads the superblock of `file` (`size` bytes long). `path` is for the messages.
///
/// # Errors
/// [`Fault::NotYet`] when the file is empty, shorter than it says, begins with zeros or is open in a writer;
/// [`Fault::Input`] when it is no HDF5 file.
pub fn check(path: &Path, file: &File, size: u64) -> Result<Superblock, Fault> {
    let at = path.display();
    if size == 0 {
        return Err(Fault::NotYet(format!("{at}: the file is empty")));
    }
    let Some(block) = find(path, file, size)? else {
        let mut first = [0u8; 4096];
        let got = read_at(path, file, &mut first, 0)?;
        return Err(if first.iter().take(got).all(|&b| b == 0) {
            Fault::NotYet(format!("{at}: the file begins with zeros, its first block is not written yet"))
        } else {
            Fault::Input(format!(
                "{at}: not an HDF5 file (signature \\x89HDF missing); check what the beamline wrote, or narrow the stream's pattern"
            ))
        });
    };
    if size < block.end_of_file {
        return Err(Fault::NotYet(format!(
            "{at}: {size} bytes on disk, but its superblock says {}: the rest is still to come",
            block.end_of_file
        )));
    }
    if block.open_for_writing {
        return Err(Fault::NotYet(format!(
            "{at}: marked as open for writing; if its writer died, run `h5clear -s` on a copy and send that"
        )));
    }
    Ok(block)
}

fn find(path: &Path, file: &File, size: u64) -> Result<Option<Superblock>, Fault> {
    let mut offset = 0u64;
    while offset < size && offset <= LARGEST_USER_BLOCK {
        let mut bytes = [0u8; 96];
        let got = read_at(path, file, &mut bytes, offset)?;
        if got >= 9 && bytes.starts_with(&SIGNATURE) {
            return match parse(bytes.get(..got).unwrap_or(&[])) {
                Some(block) => Ok(Some(block)),
                None if size < offset + 96 => {
                    Err(Fault::NotYet(format!("{}: its superblock is cut off", path.display())))
                }
                None => Err(Fault::Input(format!(
                    "{}: HDF5 superblock version {} is not known; write the file with HDF5 1.8 to 1.14",
                    path.display(),
                    bytes[8]
                ))),
            };
        }
        offset = if offset == 0 { 512 } else { offset * 2 };
    }
    Ok(None)
}

/// Parses a superblock that starts at `bytes[0]`; `None` when it is cut off or of an unknown kind.
fn parse(bytes: &[u8]) -> Option<Superblock> {
    let version = *bytes.get(8)?;
    let (width_at, addresses_at) = match version {
        0 => (13, 24),
        1 => (13, 28),
        2 | 3 => (9, 12),
        _ => return None,
    };
    let width = usize::from(*bytes.get(width_at)?);
    if ![2, 4, 8].contains(&width) {
        return None;
    }
    // Base address, then free space (0, 1) or superblock extension (2, 3), then end of file.
    let eof = bytes.get(addresses_at + 2 * width..addresses_at + 3 * width)?;
    let end_of_file = eof.iter().rev().fold(0u64, |value, &b| value << 8 | u64::from(b));
    let open_for_writing = version == 3 && bytes.get(11)? & 0b101 != 0;
    Some(Superblock { version, end_of_file, open_for_writing })
}

fn read_at(path: &Path, file: &File, buffer: &mut [u8], offset: u64) -> Result<usize, Fault> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Fault::reading(path, &e)),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check_bytes(bytes: &[u8]) -> Result<Superblock, Fault> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        check(file.path(), file.as_file(), bytes.len() as u64)
    }

    #[test]
    fn empty_and_zero_files_are_not_there_yet_and_text_never_will_be() {
        assert!(matches!(check_bytes(b""), Err(Fault::NotYet(_))));
        assert!(matches!(check_bytes(&[0; 8192]), Err(Fault::NotYet(_))));
        assert!(matches!(check_bytes(b"angle,counts\n0,1\n"), Err(Fault::Input(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(version in 0u8..5, tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = SIGNATURE.to_vec();
            bytes.push(version);
            bytes.extend(tail);
            let _ = check_bytes(&bytes);
        }
    }
}
