//! The beamline's file layout (34-ID-E), written.

use super::synth::{Aperture, SynthOptions, Truth, nominal_wire};
use crate::technique::Fault;
use hdf5::plist::dataset_create::{AllocTime, FillTime};
use hdf5::types::VarLenUnicode;
use ndarray::{Array1, ArrayView2, ArrayView3};
use std::path::Path;

/// Writes all frames: into one file, or into a folder with one file a frame.
pub(super) fn write(o: &SynthOptions, truth: &Truth, frames: &[Vec<u16>], out: &Path) -> Result<(), Fault> {
    let failed = |e: hdf5::Error| Fault::Task(format!("{}: {}", out.display(), crate::formats::h5::short(&e)));
    if !o.split {
        return file(o, truth, frames, 0, out).map_err(failed);
    }
    // What an earlier try left would be taken for frames.
    match std::fs::remove_dir_all(out) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Fault::writing(out, &e)),
        _ => {}
    }
    std::fs::create_dir_all(out).map_err(|e| Fault::writing(out, &e))?;
    let stem = o.out.file_stem().map_or_else(|| "point".to_owned(), |s| s.to_string_lossy().into_owned());
    for (k, frame) in frames.iter().enumerate() {
        let path = out.join(format!("{stem}_{}.h5", k + 1));
        file(o, truth, std::slice::from_ref(frame), k, &path).map_err(failed)?;
    }
    Ok(())
}

fn file(o: &SynthOptions, truth: &Truth, frames: &[Vec<u16>], first: usize, path: &Path) -> hdf5::Result<()> {
    let [rows, columns] = o.readout;
    let file = hdf5::File::with_options().with_fapl(|p| p.file_locking(false)).create(path)?;
    let builder = file.new_dataset::<u16>().alloc_time(Some(AllocTime::Early)).fill_time(FillTime::Never);
    if o.split {
        let data = builder.shape((rows, columns)).create("entry1/data/data")?;
        for frame in frames {
            data.write(ArrayView2::from_shape((rows, columns), frame).map_err(|e| e.to_string())?)?;
        }
    } else {
        let data = builder.shape((frames.len(), rows, columns)).create("entry1/data/data")?;
        for (k, frame) in frames.iter().enumerate() {
            let view = ArrayView3::from_shape((1, rows, columns), frame).map_err(|e| e.to_string())?;
            data.write_slice(view, (k..k + 1, .., ..))?;
        }
    }
    let number = |name: &str, value: f64| -> hdf5::Result<()> {
        file.new_dataset::<f64>().create(format!("entry1/{name}").as_str())?.write_scalar(&value)
    };
    let whole = |name: &str, value: i64| -> hdf5::Result<()> {
        file.new_dataset::<i64>().create(format!("entry1/{name}").as_str())?.write_scalar(&value)
    };
    let list = |name: &str, values: Vec<f64>| -> hdf5::Result<()> {
        file.new_dataset_builder().with_data(&Array1::from(values)).create(format!("entry1/{name}").as_str())?;
        Ok(())
    };
    whole("scanNum", o.number)?;
    for (name, value) in ["sampleX", "sampleY", "sampleZ"].into_iter().zip(o.sample_um) {
        number(&format!("sample/{name}"), value)?;
    }
    let shape = super::setup::nominal().detector.shape;
    let region = truth.region;
    for (axis, (n, count)) in [("x", columns), ("y", rows)].into_iter().enumerate() {
        whole(&format!("detector/N{n}"), shape[axis] as i64)?;
        whole(&format!("detector/start{n}"), region.start[axis] as i64)?;
        whole(&format!("detector/end{n}"), (region.start[axis] + count - 1) as i64)?;
        whole(&format!("detector/bin{n}"), region.bin[axis] as i64)?;
    }
    number("detector/exposure", 1.0)?;
    let id: VarLenUnicode = "synthetic".parse().unwrap_or_default();
    file.new_dataset::<VarLenUnicode>().create("entry1/detector/ID")?.write_scalar(&id)?;
    if o.aperture == Aperture::Wire {
        let (_, readings) = nominal_wire(o.frames, o.step_um);
        let these = readings.get(first..first + frames.len()).unwrap_or_default();
        for (axis, name) in ["wireX", "wireY", "wireZ"].into_iter().enumerate() {
            list(&format!("wire/{name}"), these.iter().map(|r| r[axis]).collect())?;
        }
    }
    file.close()
}
