//! Means of darks and flats as whole frames, for the frame-order stage, and what the flats say about noise.

use super::frames;
use super::load::{self, Opened};
use super::normalize::Flat;
use super::plan;
use super::precision;
use super::recipe::Recipe;
use crate::formats::FrameList;
use crate::technique::{Fault, TaskContext};
use ndarray::Array2;

/// Darks or flats read together while their mean is taken.
const MEAN_BYTES: usize = 64 << 20;

/// Mean dark and flats, whole frames.
#[derive(Default)]
pub(crate) struct Means {
    /// None without darks.
    pub dark: Option<Array2<f32>>,
    /// With the projection at which they were taken.
    pub flats: Vec<Flat>,
    /// Chunks decoded.
    pub decoded: u64,
    /// Quanta in the brightest pixels of the flats, see [`precision::quanta`].
    pub quanta: Option<f64>,
}

/// Mean of frames a few at a time, as [`super::normalize::mean_frame`] of all of them; and the first two of them.
fn mean(list: &FrameList, memory: u64) -> Result<(Array2<f32>, Vec<Array2<f32>>), Fault> {
    let (rows, columns) = (list.rows(), list.columns());
    let chunk = list.stack.packed_frames();
    let held = MEAN_BYTES.min(usize::try_from(memory / 4).unwrap_or(usize::MAX));
    let each = (held / (rows * columns * 4).max(1) / chunk * chunk).max(chunk);
    let mut sums = Array2::from_elem((rows, columns), (0.0_f64, 0_u32));
    let mut first = Vec::new();
    let positions: Vec<usize> = (0..list.frames.len()).collect();
    for positions in positions.chunks(each) {
        for frame in list.read_positions(positions, 0..rows)?.outer_iter() {
            ndarray::Zip::from(&mut sums).and(frame).par_for_each(|sum, &v| {
                if v.is_finite() {
                    *sum = (sum.0 + f64::from(v), sum.1 + 1);
                }
            });
            if first.len() < 2 {
                first.push(frame.to_owned());
            }
        }
    }
    Ok((sums.mapv(|(sum, n)| if n == 0 { f32::NAN } else { (sum / f64::from(n)) as f32 }), first))
}

/// Reads darks and flats, each chunk once; nothing where the recipe does not normalise.
///
/// # Errors
/// As reading does.
pub(crate) fn read(ctx: &TaskContext, opened: &Opened, recipe: &Recipe) -> Result<Means, Fault> {
    if !recipe.normalize {
        return Ok(Means::default());
    }
    let source = &opened.source;
    let before = frames::decoded(opened);
    let memory = plan::bounded(recipe, &ctx.job.resources).task_memory;
    let dark = source.darks.as_ref().map(|l| Ok::<_, Fault>(mean(l, memory)?.0)).transpose()?;
    let none = dark.is_none().then(|| Array2::zeros((source.header.rows, source.header.columns)));
    let mut quanta: Option<f64> = None;
    let mut flats = Vec::new();
    for (at, list) in load::flats(opened) {
        let (mean, first) = mean(list, memory)?;
        if let Some(dark) = dark.as_ref().or(none.as_ref()) {
            // The brightest group decides.
            quanta = Some(quanta.unwrap_or(0.0).max(precision::quanta(&first, mean.view(), dark.view())));
        }
        flats.push(Flat { at, mean });
    }
    Ok(Means { dark, flats, decoded: frames::decoded(opened) - before, quanta })
}
