//! Running medians across columns, sixteen of them at a time.
//!
//! Input `[column, rank]`; each rank is a line of its own, its columns reflect at the ends, and the output at a column is
//! the median of the `width` values around it (an odd width; one wider than the line is cut). Sixteen neighbouring
//! ranks lie in the lanes of a vector. The window is kept sorted; one value leaves and one enters per step, which is one
//! pass of a compare, a select, a minimum and a maximum per entry, with no branch and no search.
//!
//! Values are compared as integers that order like the floats (−NaN first, +NaN last), so nothing depends on the data.

/// Ranks taken together: a cache line.
const LANES: usize = 16;

type Lanes = [i32; LANES];

/// Buffers to be used again.
#[derive(Default)]
pub(super) struct Scratch {
    line: Vec<Lanes>,
    window: Vec<Lanes>,
}

/// Medians of `width` columns around each of `values`, into `out`; both `[column, rank]`.
pub(super) fn across(values: &[f32], ranks: usize, width: usize, out: &mut [f32], scratch: &mut Scratch) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the feature was found on this CPU.
        unsafe { across_avx2(values, ranks, width, out, scratch) };
        return;
    }
    body(values, ranks, width, out, scratch);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn across_avx2(values: &[f32], ranks: usize, width: usize, out: &mut [f32], scratch: &mut Scratch) {
    body(values, ranks, width, out, scratch);
}

#[inline(always)]
fn body(values: &[f32], ranks: usize, width: usize, out: &mut [f32], scratch: &mut Scratch) {
    let columns = values.len() / ranks.max(1);
    if columns == 0 {
        return;
    }
    let Scratch { line, window } = scratch;
    let reach = (width / 2).min(columns - 1);
    let index = |i: i64| {
        let j = i.rem_euclid(2 * columns as i64) as usize;
        if j < columns { j } else { 2 * columns - 1 - j }
    };
    line.resize(columns, [0; LANES]);
    for first in (0..ranks).step_by(LANES) {
        let block = LANES.min(ranks - first);
        for (u, lanes) in line.iter_mut().enumerate() {
            let from = &values[u * ranks + first..][..block];
            lanes.iter_mut().zip(from).for_each(|(lane, v)| *lane = key(v.to_bits() as i32));
        }
        window.clear();
        window.extend((-(reach as i64)..=reach as i64).map(|i| line[index(i)]));
        sort(window);
        for u in 0..columns {
            let to = &mut out[u * ranks + first..][..block];
            to.iter_mut().zip(&window[reach]).for_each(|(v, &lane)| *v = f32::from_bits(key(lane) as u32));
            let (old, new) = (index(u as i64 - reach as i64), index(u as i64 + reach as i64 + 1));
            replace(window, line[old], line[new]);
        }
    }
}

/// The bits of a float as an integer that orders the same way; its own inverse.
#[inline(always)]
fn key(bits: i32) -> i32 {
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

/// Sorts every lane by itself: insertion, once per line.
fn sort(window: &mut [Lanes]) {
    let mut lane = vec![0; window.len()];
    for l in 0..LANES {
        lane.iter_mut().zip(window.iter()).for_each(|(v, w)| *v = w[l]);
        lane.sort_unstable();
        window.iter_mut().zip(&lane).for_each(|(w, v)| w[l] = *v);
    }
}

/// Puts `new` in the place of one `old` in every lane of a sorted window.
///
/// Without `old` the window is `k[i] = w[i]` below it and `w[i + 1]` from it on; with `new` put in its place it is
/// `max(k[i − 1], min(new, k[i]))`.
#[inline(always)]
fn replace(window: &mut [Lanes], old: Lanes, new: Lanes) {
    let mut below = [i32::MIN; LANES];
    let Some(&(mut here)) = window.first() else { return };
    for i in 0..window.len() {
        let next = window.get(i + 1).copied().unwrap_or([i32::MAX; LANES]);
        for l in 0..LANES {
            let kept = if here[l] < old[l] { here[l] } else { next[l] };
            window[i][l] = below[l].max(new[l].min(kept));
            below[l] = kept;
        }
        here = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn the_running_median_is_the_median_of_the_window() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for (columns, ranks, width) in [(40, 3, 7), (9, 20, 21), (70, 1, 61), (5, 2, 3)] {
            let values: Vec<f32> = (0..columns * ranks).map(|_| (rng.random_range(0..30) as f32) - 9.0).collect();
            let mut got = vec![0.0; values.len()];
            across(&values, ranks, width, &mut got, &mut Scratch::default());
            let reach = (width / 2).min(columns - 1) as i64;
            for u in 0..columns {
                for r in 0..ranks {
                    let mut window: Vec<f32> = (u as i64 - reach..=u as i64 + reach)
                        .map(|i| {
                            let j = i.rem_euclid(2 * columns as i64) as usize;
                            values[if j < columns { j } else { 2 * columns - 1 - j } * ranks + r]
                        })
                        .collect();
                    window.sort_by(f32::total_cmp);
                    assert_eq!(got[u * ranks + r], window[reach as usize], "{columns} {ranks} {width} at {u},{r}");
                }
            }
        }
    }
}
