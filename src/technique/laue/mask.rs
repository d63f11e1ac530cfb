//! What the mask lets through along its code.
//!
//! The gold covers intervals of the code coordinate `p` ([`super::geometry`]). A ray that crosses a mask of thickness `t`
//! obliquely passes code over a length `b = t·slope`, so that the gold in its way is `t·path·c(p)` with `c` the cover averaged
//! over `b` (uniform in the thickness). Transmission at a photon energy `E`: `exp(−μ(E)·t·path·c)`.
//!
//! Profiles are sampled at `p = i·resolution`, each sample the average over `p ± resolution/2`, computed exactly from the
//! second integral of the cover. Outside the code there is no gold.

/// The gold on a mask.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    /// Bars, µm, sorted, without gaps of no width.
    bars: Vec<(f64, f64)>,
    /// Padded length, µm.
    pub length_um: f64,
    /// Distance of samples, µm.
    pub resolution_um: f64,
    /// Thickness of the gold, µm.
    pub thickness_um: f64,
}

/// What a mask is made from.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct MaskSpec {
    /// 1 is gold, 0 a gap.
    pub bits: Vec<u8>,
    /// Width of a 0 and of a 1, µm.
    pub bit_um: [f64; 2],
    /// The code is mounted the other way round.
    pub reversed: bool,
    /// Thickness of the gold, µm.
    pub thickness_um: f64,
    /// Sampling, µm.
    pub resolution_um: f64,
    /// Open mask on either side of the code, µm.
    pub pad_um: f64,
    /// Bars are wider than designed by this much, µm.
    pub widening_um: f64,
    /// Code coordinate per length on the mask.
    pub stretch: f64,
}

impl Mask {
    /// From its specification.
    #[must_use]
    pub fn new(spec: &MaskSpec) -> Self {
        let mut bits = spec.bits.clone();
        if spec.reversed {
            bits.reverse();
        }
        let mut at = spec.pad_um;
        let mut bars: Vec<(f64, f64)> = Vec::new();
        let half = spec.widening_um / 2.0;
        let mut gold = false;
        for bit in bits {
            let next = at + spec.bit_um[usize::from(bit != 0)];
            if bit != 0 {
                match bars.last_mut() {
                    Some(bar) if gold => bar.1 = next + half,
                    _ => bars.push((at - half, next + half)),
                }
            }
            gold = bit != 0;
            at = next;
        }
        // Widened bars may touch, narrowed ones vanish.
        bars.retain(|b| b.1 > b.0);
        bars.dedup_by(|next, bar| {
            let touches = next.0 <= bar.1;
            if touches {
                bar.1 = bar.1.max(next.1);
            }
            touches
        });
        Self { bars, length_um: at + spec.pad_um, resolution_um: spec.resolution_um, thickness_um: spec.thickness_um }
    }

    /// Samples along the padded mask.
    #[must_use]
    pub fn samples(&self) -> usize {
        (self.length_um / self.resolution_um).floor() as usize + 1
    }

    /// Share of gold at `p`, averaged over `width` µm around it.
    #[must_use]
    pub fn cover(&self, p: f64, width: f64) -> f64 {
        let (low, high) = (p - width / 2.0, p + width / 2.0);
        let first = self.bars.partition_point(|b| b.1 <= low);
        let covered: f64 =
            self.bars[first..].iter().take_while(|b| b.0 < high).map(|b| b.1.min(high) - b.0.max(low)).sum();
        covered / width
    }

    /// Average of the cover over a box of `blur` µm and the sampling, at every sample.
    #[must_use]
    pub fn profile(&self, blur: f64) -> Vec<f64> {
        let r = self.resolution_um;
        if blur < 1e-6 * r {
            return (0..self.samples()).map(|i| self.cover(i as f64 * r, r)).collect();
        }
        // A box on a box is a trapezoid; its average of the cover is a second difference of the cover's second integral.
        let (near, far) = ((r - blur).abs() / 2.0, (r + blur) / 2.0);
        let mut second = Second::new(&self.bars);
        let mut corners = [0.0; 4].map(|_| second.clone());
        second.reset();
        (0..self.samples())
            .map(|i| {
                let p = i as f64 * r;
                let [a, b, c, d] = &mut corners;
                (a.at(p + far) - b.at(p + near) - c.at(p - near) + d.at(p - far)) / (blur * r)
            })
            .collect()
    }
}

/// Second integral of the cover, for rising arguments.
#[derive(Clone)]
struct Second<'a> {
    bars: &'a [(f64, f64)],
    next: usize,
    /// Of the bars passed: their length, and their second integral at `p` is `length·p − moment`.
    length: f64,
    moment: f64,
}

impl<'a> Second<'a> {
    fn new(bars: &'a [(f64, f64)]) -> Self {
        Self { bars, next: 0, length: 0.0, moment: 0.0 }
    }

    fn reset(&mut self) {
        *self = Self::new(self.bars);
    }

    fn at(&mut self, p: f64) -> f64 {
        while let Some(&(from, to)) = self.bars.get(self.next).filter(|b| b.1 <= p) {
            self.length += to - from;
            self.moment += (to - from) * (to + from) / 2.0;
            self.next += 1;
        }
        let inside = self.bars.get(self.next).map_or(0.0, |b| (p - b.0).max(0.0));
        self.length * p - self.moment + inside * inside / 2.0
    }
}

/// Cubic interpolation is not needed between these: (keV, cm²/g), log-log linear within each branch between the L edges.
/// Total attenuation of gold without coherent scattering corrections as tabulated by Hubbell & Seltzer, NISTIR 5632 (1995).
const GOLD: &[&[(f64, f64)]] = &[
    &[(4.0, 1144.0), (5.0, 666.1), (6.0, 425.3), (8.0, 207.2), (10.0, 118.1), (11.9187, 75.82)],
    &[(11.9187, 187.0), (13.7336, 128.3)],
    &[(13.7336, 176.4), (14.3528, 158.8)],
    &[(14.3528, 183.0), (15.0, 164.1), (20.0, 78.83), (30.0, 27.52), (40.0, 12.98)],
];
/// g/cm³.
const GOLD_DENSITY: f64 = 19.3;

/// Photon energies that the gold's table covers, keV.
pub const ENERGY_KEV: (f64, f64) = (4.0, 40.0);

/// Attenuation of gold per micrometre.
#[must_use]
pub fn gold_per_um(energy_kev: f64) -> f64 {
    let e = energy_kev.clamp(ENERGY_KEV.0, ENERGY_KEV.1);
    let branch = GOLD.iter().find(|b| b.last().is_some_and(|l| e < l.0)).or(GOLD.last()).copied().unwrap_or_default();
    let pair = branch.windows(2).find(|w| e <= w[1].0).unwrap_or(&branch[branch.len().saturating_sub(2)..]);
    let [(e0, m0), (e1, m1)] = [pair[0], pair[1]];
    let mass = (m0.ln() + (e / e0).ln() * (m1 / m0).ln() / (e1 / e0).ln()).exp();
    mass * GOLD_DENSITY * 1e-4
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::technique::laue::code;

    pub(crate) fn spec() -> MaskSpec {
        MaskSpec {
            bits: code::named("debruijn-2-8").unwrap(),
            bit_um: [15.0, 7.5],
            reversed: false,
            thickness_um: 3.7,
            resolution_um: 0.5,
            pad_um: 300.0,
            widening_um: 0.0,
            stretch: 1.0,
        }
    }

    #[test]
    fn the_mask_is_as_long_as_its_bits() {
        let mask = Mask::new(&spec());
        assert_eq!(mask.length_um, 2880.0 + 600.0);
        assert_eq!(mask.samples(), 6961);
        let gold: f64 = mask.profile(0.0).iter().sum::<f64>() * 0.5;
        assert!((gold - 128.0 * 7.5).abs() < 1e-9, "{gold}");
        // Eight gaps, then eight bars.
        for (p, want) in [(419.9, 0.0), (420.1, 1.0), (479.9, 1.0), (480.1, 0.0)] {
            assert!((mask.cover(p, 0.1) - want).abs() < 1e-9, "{p}");
        }
        let reversed = Mask::new(&MaskSpec { reversed: true, ..spec() });
        assert!((reversed.cover(3480.0 - 425.0, 1.0) - 1.0).abs() < 1e-12);
    }

    /// The closed form against the definition, an average of averages.
    #[test]
    fn the_profile_is_the_cover_averaged_twice() {
        let mask = Mask::new(&MaskSpec { widening_um: 0.3, ..spec() });
        for blur in [0.0, 0.2, 0.5, 2.9, 9.3] {
            let profile = mask.profile(blur);
            for i in [0, 830, 840, 959, 960, 961, 3001, 6960] {
                let p = i as f64 * 0.5;
                let n = 2000;
                let direct = (0..n)
                    .map(|j| mask.cover(p + blur * ((f64::from(j) + 0.5) / f64::from(n) - 0.5), 0.5))
                    .sum::<f64>()
                    / f64::from(n);
                // Midpoint sums of a piecewise linear function: an error of 1/n² at each kink.
                assert!(
                    (profile[i] - direct).abs() < 2e-3 * blur.min(1.0) + 1e-9,
                    "{blur} {i}: {} {direct}",
                    profile[i]
                );
            }
        }
    }

    #[test]
    fn bars_may_be_wider_or_narrower_than_designed() {
        let gold = |widening_um| {
            let mask = Mask::new(&MaskSpec { widening_um, ..spec() });
            mask.bars.iter().map(|b| b.1 - b.0).sum::<f64>()
        };
        let bars = Mask::new(&spec()).bars.len() as f64;
        assert!((gold(1.0) - 960.0 - bars).abs() < 1e-9);
        assert!((gold(-1.0) - 960.0 + bars).abs() < 1e-9);
        // All gaps closed: one bar.
        assert_eq!(Mask::new(&MaskSpec { widening_um: 200.0, ..spec() }).bars.len(), 1);
    }

    #[test]
    fn gold_absorbs_more_above_its_edges() {
        for (e, mass) in
            [(5.0, 666.0), (7.0, 289.0), (10.0, 118.1), (13.0, 148.4), (14.0, 168.5), (17.5, 110.6), (25.0, 44.1)]
        {
            let got = gold_per_um(e) / (GOLD_DENSITY * 1e-4);
            assert!((got / mass - 1.0).abs() < 0.02, "{e} keV: {got}");
        }
        assert!(gold_per_um(11.93) > 2.0 * gold_per_um(11.91));
        assert_eq!(gold_per_um(50.0), gold_per_um(40.0));
        assert!(gold_per_um(40.0).is_finite());
    }
}
