//! The whole chain on a slab of detector rows: counts in, attenuation out.
//!
//! Order: transmission ([`super::normalize`]), zingers ([`super::zinger`]; threshold in units of transmission), −log, stripes
//! ([`super::stripe`]), gridding ([`super::gridding`]), circular mask, physical units. Input `[angle, row, column]`, counts;
//! output `[z, y, x]` with `z` the detector row, attenuation per pixel, or per cm when the pixel size is known. Rows are
//! independent of each other but for the zinger window, which sees the rows of the slab only.
//!
//! Memory, beside the input: the sinograms (written into the input's place: none), the output, and the plan's scratch; for
//! stripes a second copy of each row under work. [`bytes_per_row`] and [`fixed_bytes`] say how much, for sizing slabs.
//! NaN policy: no NaN leaves, whatever enters; see [`super::normalize`] for what is counted.

use ndarray::{Array2, Array3, Axis};
use serde::{Deserialize, Serialize};

use super::error::{TomographyError, check};
use super::filter::Filter;
use super::gridding::{Geometry, Padding, Plan};
use super::mask;
use super::normalize::{self, Flat, Repairs};
use super::stripe::{self, Stripe};
use super::zinger::{self, Zinger};

/// What to do on the way.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Zinger removal, none when not given; the threshold is in units of transmission.
    pub zinger: Option<Zinger>,
    /// Stripe removal, none when not given.
    pub stripe: Option<Stripe>,
    /// Reconstruction filter.
    pub filter: Filter,
    /// What stands beyond the ends of a row.
    pub padding: Padding,
    /// Least transmission before −log.
    pub floor: f32,
    /// Radius of the mask over half the image's width; no mask when not given.
    pub mask_ratio: Option<f64>,
    /// Detector pixel size at the sample, cm; per-pixel values when not given.
    pub pixel_size_cm: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            zinger: None,
            stripe: None,
            filter: Filter::default(),
            padding: Padding::default(),
            floor: 1e-6,
            mask_ratio: Some(1.0),
            pixel_size_cm: None,
        }
    }
}

/// What happened on the way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Pixels repaired before and at −log.
    pub repairs: Repairs,
    /// Zingers replaced.
    pub zingers: u64,
    /// Least value of the output.
    pub least: f32,
    /// Greatest value of the output.
    pub greatest: f32,
    /// Mean of the output.
    pub mean: f64,
}

/// Everything slabs of one scan share: build once, run on each slab.
pub struct Chain {
    plan: Plan,
    options: Options,
}

impl Chain {
    /// Prepares the chain for a scan of `columns` columns at `angles` (radians), rotation centre `centre` (zero-based column).
    ///
    /// # Errors
    /// A geometry or option that cannot be.
    pub fn new(columns: usize, angles: &[f64], centre: f64, options: Options) -> Result<Self, TomographyError> {
        if let Some(stripe) = &options.stripe {
            stripe.check()?;
        }
        if let Some(ratio) = options.mask_ratio {
            check("mask ratio", ratio, "from 0 to 2", |r| (0.0..=2.0).contains(&r))?;
        }
        if let Some(size) = options.pixel_size_cm {
            check("pixel size in cm", size, "positive", |s| s > 0.0)?;
        }
        let geometry =
            Geometry { centre, filter: options.filter, padding: options.padding, ..Geometry::new(columns, angles) };
        Ok(Self { plan: Plan::new(&geometry)?, options })
    }

    /// Reconstructs a slab: counts `[angle, row, column]`, mean dark `[row, column]`, flats of the same rows.
    ///
    /// # Errors
    /// Inputs that disagree in shape.
    pub fn run(
        &self,
        mut data: Array3<f32>,
        dark: &Array2<f32>,
        flats: &[Flat],
    ) -> Result<(Array3<f32>, Stats), TomographyError> {
        let mut stats =
            Stats { repairs: normalize::transmission(data.view_mut(), dark.view(), flats, 0)?, ..Stats::default() };
        if let Some(zinger) = self.options.zinger {
            stats.zingers = zinger::remove(data.view_mut(), zinger)?;
        }
        stats.repairs.floored += normalize::minus_log(data.view_mut(), self.options.floor)?;
        let mut sinograms = data.view_mut();
        sinograms.swap_axes(0, 1);
        if let Some(stripe) = &self.options.stripe {
            stripe::remove_slab(sinograms.view_mut(), stripe)?;
        }
        let mut images = self.plan.reconstruct(sinograms.view())?;
        drop(data);
        if let Some(ratio) = self.options.mask_ratio {
            mask::circle(images.view_mut(), ratio, 0.0);
        }
        if let Some(size) = self.options.pixel_size_cm {
            let factor = super::convention::per_cm(size) as f32;
            images.par_mapv_inplace(|v| v * factor);
        }
        stats.least = f32::INFINITY;
        stats.greatest = f32::NEG_INFINITY;
        let mut sum = 0.0;
        for image in images.axis_iter(Axis(0)) {
            for &v in &image {
                stats.least = stats.least.min(v);
                stats.greatest = stats.greatest.max(v);
                sum += f64::from(v);
            }
        }
        stats.mean = if images.is_empty() { 0.0 } else { sum / images.len() as f64 };
        Ok((images, stats))
    }

    /// The reconstruction plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// Bytes a slab needs per detector row: counts as f32, output, mean dark and two flats, and the row under stripe removal.
#[must_use]
pub fn bytes_per_row(angles: usize, columns: usize) -> usize {
    // Stripe removal holds, per row at work: columns, ranks (value and angle), smoothed: four copies; at most all rows.
    4 * (angles * columns * 5 + columns * columns + 3 * columns)
}

/// Bytes a slab needs whatever its rows: the gridding scratch of `threads` threads.
#[must_use]
pub fn fixed_bytes(columns: usize, threads: usize, padding: Padding) -> usize {
    let edge = 64
        + match padding {
            Padding::Zero => columns + columns.div_ceil(2),
            Padding::Edge => 2 * columns,
        };
    threads * 64 * (edge * edge + 12 * columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::technique::tomography::phantom;
    use crate::technique::tomography::testing::{half_turn, relative_l2};
    use rand::{Rng, SeedableRng};

    /// Counts of the default solid with `mu` per pixel length, flats that fall by a tenth during the scan.
    fn counts(rows: usize, size: usize, angles: &[f64], centre: f64, mu: f32) -> (Array3<f32>, Array2<f32>, Vec<Flat>) {
        let sinograms = phantom::sinograms(&phantom::ellipsoids(), rows, size, size, angles, centre);
        let dark = Array2::from_elem((rows, size), 100.0);
        let flat = |at: f64, scale: f32| Flat {
            at,
            mean: Array2::from_shape_fn((rows, size), |(_, u)| 100.0 + scale * (5000.0 + u as f32)),
        };
        let last = (angles.len() - 1) as f64;
        let data = Array3::from_shape_fn((angles.len(), rows, size), |(a, r, u)| {
            let beam = (1.0 - 0.1 * a as f32 / last as f32) * (5000.0 + u as f32);
            100.0 + beam * (-mu * sinograms[[r, a, u]]).exp()
        });
        (data, dark, vec![flat(0.0, 1.0), flat(last, 0.9)])
    }

    #[test]
    fn counts_become_attenuation_per_cm() {
        let (rows, size, mu) = (3, 128, 0.02_f32);
        let angles = half_turn(180);
        let (mut data, dark, flats) = counts(rows, size, &angles, 61.3, mu);
        // Two zingers and a dead pixel must not be seen in the result.
        data[[20, 1, 64]] += 9000.0;
        data[[90, 2, 30]] += 9000.0;
        data[[5, 0, 70]] = f32::NAN;
        let options = Options {
            zinger: Some(Zinger { width: 5, threshold: 0.5 }),
            stripe: None,
            pixel_size_cm: Some(1e-3),
            ..Options::default()
        };
        let chain = Chain::new(size, &angles, 61.3, options).unwrap();
        let (images, stats) = chain.run(data, &dark, &flats).unwrap();
        let mut truth = phantom::volume(&phantom::ellipsoids(), rows, size) * (mu * 1e3);
        mask::circle(truth.view_mut(), 1.0, 0.0);
        let error = relative_l2(images.view(), truth.view());
        println!("{error:.3} {stats:?}");
        // Point-sampled edges dominate: the error falls as size^{-1/2} from 0.057 at 512, so 0.115 at 128.
        assert!(error < 0.13, "{error}");
        assert_eq!((stats.zingers, stats.repairs), (2, Repairs { interpolated: 1, floored: 0 }));
        assert!((stats.mean / f64::from(truth.mean().unwrap()) - 1.0).abs() < 0.01);
    }

    #[test]
    fn no_nan_leaves_whatever_enters() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let angles = half_turn(20);
        let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -1e30, 1e30, 3.0, 5.0];
        let mut any = || bad[rng.random_range(0..bad.len())];
        let data = Array3::from_shape_fn((20, 3, 24), |_| any());
        let dark = Array2::from_shape_fn((3, 24), |_| any());
        let flats = vec![Flat { at: 0.0, mean: Array2::from_shape_fn((3, 24), |_| any()) }];
        let options = Options {
            zinger: Some(Zinger { width: 3, threshold: 0.1 }),
            stripe: Some(Stripe::default()),
            ..Options::default()
        };
        let (images, stats) = Chain::new(24, &angles, 11.5, options).unwrap().run(data, &dark, &flats).unwrap();
        assert!(images.iter().all(|v| v.is_finite()));
        assert!(stats.repairs.interpolated > 0);
    }

    #[test]
    fn the_estimate_covers_what_is_held() {
        for columns in [64, 500, 2048] {
            let angles = half_turn(100);
            let chain = Chain::new(columns, &angles, 30.0, Options::default()).unwrap();
            let held = chain.plan().scratch_bytes(3);
            let said = fixed_bytes(columns, 3, Padding::Zero);
            assert!(said as f64 >= 0.95 * held as f64 && said < 4 * held, "{columns}: {said} {held}");
        }
        assert!(bytes_per_row(1500, 2048) >= 4 * (1500 * 2048 + 2048 * 2048));
    }

    #[test]
    fn options_are_checked() {
        let angles = half_turn(10);
        for options in [
            Options { pixel_size_cm: Some(0.0), ..Options::default() },
            Options { mask_ratio: Some(f64::NAN), ..Options::default() },
            Options { stripe: Some(Stripe { small: 2, ..Stripe::default() }), ..Options::default() },
        ] {
            assert!(Chain::new(16, &angles, 7.5, options).is_err());
        }
        assert!(Chain::new(16, &angles, 70.0, Options::default()).is_err());
        assert!(Chain::new(16, &[], 7.0, Options::default()).is_err());
    }
}
