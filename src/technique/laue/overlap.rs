//! Light of two places on one pixel, where spots of two grains overlap.
//!
//! One place was found, and its footprint fitted. When that leaves more than counting noise, what is left is compared with the
//! mask once more, at every offset whose light the footprint's window cannot hold. There is a second place when its light
//! lowers χ², in Poisson's variance, by the margin that positions need, and is at least 4 % of the first's.
//!
//! A wrong absorption in the bars looks like weak light elsewhere. What of it lives at the bars' edges is taken out first; and
//! before a pixel is called an overlap, the footprint is fitted again with the absorption that explains most (a pattern
//! search), and what that leaves must show the second place, too. Two places within one window are no overlap: the footprint
//! has both.

use super::{Decoder, Work};
use crate::technique::laue::search::{Found, Template, search};
use std::collections::BTreeMap;
use std::ops::Range;

/// Fits that leave at most this share of Poisson's variance are not looked at. Counting noise alone leaves two thirds, because the
/// measurement was interpolated, and more than this in one pixel of twenty-five.
const FROM: f64 = 0.75;
/// Least light of a second place, relative to the first.
const LEAST: f64 = 0.04;
/// With so much light in the second place the first may be neither: the position is ambiguous.
pub(super) const ALIKE: f64 = 0.4;
/// Absorptions `−ln` of a bar's transmission that are tried: powers of this, between these exponents, in ever smaller strides.
const FACTOR: f64 = 1.15;
const EXPONENTS: (i32, i32) = (-10, 16);
const START: i32 = 3;
const STRIDES: [i32; 3] = [6, 2, 1];

impl Decoder {
    /// Does a pixel with this residual want a look for a second place?
    pub(in crate::technique::laue) fn leaves_more(&self, residual: f32) -> bool {
        self.setup.footprint.fit && f64::from(residual) > FROM
    }

    /// The light of a second place, relative to the first, when there is one at one of `offsets`. `work` has the fit; all but
    /// what it left stays as it is.
    ///
    /// `residual`: squared difference per degree of freedom over `mean`, which is Poisson's variance; `share`: frames a sample.
    pub(super) fn second_place(
        &self,
        template: &Template,
        found: &Found,
        offsets: &Range<usize>,
        (residual, mean, share): (f64, f64, f64),
        work: &mut Work,
    ) -> Option<f64> {
        if residual <= FROM {
            return None;
        }
        self.second(template, found, offsets, mean / share, work)?;
        let kept = (work.footprint.clone(), work.x.clone());
        let mut known = BTreeMap::new();
        let mut left = |k: i32, work: &mut Work| {
            *known.entry(k).or_insert_with(|| self.footprint(template, Some(FACTOR.powi(k)), found.offset, work).1)
        };
        let mut best = START;
        for stride in STRIDES {
            loop {
                let here = left(best, work);
                let better = [best - stride, best + stride]
                    .into_iter()
                    .filter(|k| (EXPONENTS.0..=EXPONENTS.1).contains(k))
                    .map(|k| (left(k, work), k))
                    .min_by(|a, b| a.0.total_cmp(&b.0))
                    .filter(|b| b.0 < here);
                let Some((_, k)) = better else { break };
                best = k;
            }
        }
        self.footprint(template, Some(FACTOR.powi(best)), found.offset, work);
        let second = self.second(template, found, offsets, mean / share, work);
        (work.footprint, work.x) = kept;
        second
    }

    /// The same for one fit; `variance`: Poisson's, of a sample.
    fn second(
        &self,
        template: &Template,
        found: &Found,
        offsets: &Range<usize>,
        variance: f64,
        work: &mut Work,
    ) -> Option<f64> {
        let half = self.window / 2;
        let cover = |i: usize| {
            let i = (found.offset + i).checked_sub(half);
            i.and_then(|i| template.cover.get(i)).map_or(0.0, |&c| f64::from(c))
        };
        without_edges(&mut work.left, &work.data, &work.footprint, cover);
        let left = &work.left;
        let mut best = |range: Range<usize>| search(&self.transforms, template, left, range, 1, &mut work.search);
        let drop = |f: &Found| f.flat - f.residual;
        let near = found.offset.saturating_sub(half)..found.offset + half + 1;
        let second = match best(offsets.clone()) {
            // What is left nearby is a footprint of another shape.
            Some(f) if near.contains(&f.offset) => {
                let before = best(offsets.start..near.start.min(offsets.end));
                let behind = best(near.end.max(offsets.start)..offsets.end);
                [before, behind].into_iter().flatten().max_by(|a, b| drop(a).total_cmp(&drop(b)))
            }
            other => other,
        };
        let margin = self.setup.position.margin;
        second.filter(|f| drop(f) >= margin * variance).map(|f| f.gain / found.gain).filter(|s| *s >= LEAST)
    }
}

/// Takes out of `left` what another absorption in the bars would explain: with transmission `exp(−τc)` instead of `1 − c` the
/// difference is alike to `c(1 − c)`, which lives at the bars' edges, to first order. `data` is the measurement, `footprint`
/// what was fitted; its cell `u` sees the mask `at(u + j)` in sample `j`.
fn without_edges(left: &mut [f32], data: &[f32], footprint: &[f64], cover: impl Fn(usize) -> f64) {
    let n = left.len();
    let seen: Vec<f64> = (0..n + footprint.len()).map(cover).map(|c| c * (1.0 - c)).collect();
    let mut edges = vec![0.0; n];
    for (u, f) in footprint.iter().enumerate().filter(|(_, f)| **f > 0.0) {
        edges.iter_mut().zip(&seen[u..]).for_each(|(e, c)| *e += f * c);
    }
    let mut model: Vec<f64> = data.iter().zip(left.iter()).map(|(d, l)| f64::from(d - l)).collect();
    let centre = |v: &mut [f64]| {
        let mean = v.iter().sum::<f64>() / n as f64;
        v.iter_mut().for_each(|v| *v -= mean);
    };
    centre(&mut edges);
    centre(&mut model);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let rest: Vec<f64> = left.iter().map(|&l| f64::from(l)).collect();
    let (ee, em, mm) = (dot(&edges, &edges), dot(&edges, &model), dot(&model, &model));
    let (er, mr) = (dot(&edges, &rest), dot(&model, &rest));
    let det = ee * mm - em * em;
    if det <= 1e-9 * ee * mm {
        return;
    }
    let (a, b) = ((mm * er - em * mr) / det, (ee * mr - em * er) / det);
    left.iter_mut().zip(edges.iter().zip(&model)).for_each(|(l, (e, m))| *l -= (a * e + b * m) as f32);
}
