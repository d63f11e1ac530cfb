//! One frame from one TIFF file.
//!
//! Contract: grey images of 8, 16 or 32 bits or single precision, classic or BigTIFF, in strips or tiles, with the
//! compressions of the `tiff` crate. Only the first image of a file is looked at. A file whose header promises more
//! than its siblings hold is refused before it is decoded, so that no allocation follows from a number in it.

use super::convert::Pixel;
use super::stack::{FRAMES_MAX, SIDE_MAX, Sample};
use super::throttle;
use crate::technique::Fault;
use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::Path;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

/// Rows, columns, and what a pixel is.
pub(crate) type Shape = (usize, usize, Sample);

fn refused(path: &Path, e: &TiffError) -> Fault {
    let at = path.display();
    match e {
        TiffError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            Fault::NotYet(format!("{at}: the file ends in the middle of the image: the rest is still to come"))
        }
        TiffError::IoError(e) => Fault::reading(path, e),
        e => Fault::Input(format!("{at}: no TIFF that can be read ({e}); write grey images of 8, 16 or 32 bits")),
    }
}

type Opened = Decoder<BufReader<File>>;

/// Opens a file and looks at its header.
fn open(path: &Path) -> Result<(Opened, Shape), Fault> {
    let meta = std::fs::metadata(path).map_err(|e| Fault::reading(path, &e))?;
    if !meta.is_file() {
        return Err(Fault::Input(format!("{}: not a regular file", path.display())));
    }
    if meta.len() == 0 {
        return Err(Fault::NotYet(format!("{}: nothing is written yet", path.display())));
    }
    let file = File::open(path).map_err(|e| Fault::reading(path, &e))?;
    let broken = |e: TiffError| refused(path, &e);
    let mut decoder = Decoder::new(BufReader::new(file)).map_err(broken)?;
    let (columns, rows) = decoder.dimensions().map_err(broken)?;
    let (rows, columns) = (rows as usize, columns as usize);
    let color = decoder.colortype().map_err(broken)?;
    let format = decoder.find_tag_unsigned_vec::<u16>(Tag::SampleFormat).map_err(broken)?;
    let format = format.and_then(|f| f.first().copied()).unwrap_or(1);
    // 1 unsigned, 2 signed, 3 floating, 4 not said.
    let sample = match (color, format) {
        (ColorType::Gray(8), 1 | 4) => Sample::U8,
        (ColorType::Gray(16), 1 | 4) => Sample::U16,
        (ColorType::Gray(32), 1 | 4) => Sample::U32,
        (ColorType::Gray(16), 2) => Sample::I16,
        (ColorType::Gray(32), 2) => Sample::I32,
        (ColorType::Gray(32), 3) => Sample::F32,
        (ColorType::Gray(64), 3) => Sample::F64,
        _ => {
            return Err(Fault::Input(format!(
                "{}: pixels of {color:?}, sample format {format}; write grey images of 8, 16 or 32 bits",
                path.display()
            )));
        }
    };
    if rows == 0 || columns == 0 || rows > SIDE_MAX || columns > SIDE_MAX {
        return Err(Fault::Input(format!("{}: {rows}×{columns} pixels are no detector frame", path.display())));
    }
    Ok((decoder, (rows, columns, sample)))
}

/// What the header of a file says.
///
/// # Errors
/// [`Fault::NotYet`] for a file that ends early, [`Fault::Input`] for one that is no frame.
pub(crate) fn header(path: &Path) -> Result<Shape, Fault> {
    open(path).map(|(_, shape)| shape)
}

/// Decodes a file of the expected shape and takes `rows` of it.
///
/// # Errors
/// As [`header`], and [`Fault::Input`] for another shape.
pub(crate) fn read<T: Pixel>(path: &Path, expected: Shape, rows: &Range<usize>, out: &mut [T]) -> Result<(), Fault> {
    let (decoder, shape) = open(path)?;
    let (height, columns, sample) = expected;
    if shape != expected {
        return Err(Fault::Input(format!(
            "{}: {}×{} pixels of {:?}, the first frame has {height}×{columns} of {sample:?}; frames must be alike",
            path.display(),
            shape.0,
            shape.1,
            shape.2
        )));
    }
    let bytes = height * columns * sample.bytes();
    let mut limits = Limits::default();
    limits.decoding_buffer_size = bytes;
    limits.intermediate_buffer_size = bytes.saturating_mul(2).max(1 << 20);
    throttle::take(bytes);
    let image = decoder.with_limits(limits).read_image().map_err(|e| refused(path, &e))?;
    let wanted = rows.start * columns..rows.end * columns;
    macro_rules! take {
        ($values:expr) => {{
            let Some(values) = $values.get(wanted) else {
                return Err(Fault::Input(format!("{}: fewer pixels than its header says", path.display())));
            };
            out.iter_mut().zip(values).for_each(|(o, &v)| *o = T::of(f64::from(v)));
        }};
    }
    match image {
        DecodingResult::U8(v) => take!(v),
        DecodingResult::U16(v) => take!(v),
        DecodingResult::U32(v) => take!(v),
        DecodingResult::I16(v) => take!(v),
        DecodingResult::I32(v) => take!(v),
        DecodingResult::F32(v) => take!(v),
        DecodingResult::F64(v) => take!(v),
        _ => return Err(Fault::Input(format!("{}: pixels of another type than its header says", path.display()))),
    }
    Ok(())
}

/// Longest list of files: as many as a stack may have frames.
pub(crate) const FILES_MAX: usize = FRAMES_MAX;
