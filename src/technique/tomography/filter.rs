//! Reconstruction filters for parallel-beam filtered back-projection.
//!
//! The ramp is the discrete Fourier transform of the band-limited spatial kernel, `h(0) = ¼`, `h(n odd) = −1/(πn)²`,
//! `h(n even) = 0` (Kak & Slaney, *Principles of Computerized Tomographic Imaging*, 1988, eq. 3.61, pixel size 1), not
//! `|ν|` sampled: sampling `|ν|` puts the zero frequency at 0, which lowers the whole image by a constant. The other
//! filters multiply it by a window of the frequency `ν` in cycles per pixel, 1 at `ν = 0`, Nyquist at `ν = ½`.
//!
//! Input: padded length. Output: real gains for the frequencies `0..=length/2`, in 1/pixel. Always finite.

use std::{f64::consts::PI, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::error::TomographyError;

/// The window that multiplies the band-limited ramp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// Band-limited ramp alone (Ram–Lak).
    #[serde(alias = "ram-lak", alias = "ramlak")]
    Ramp,
    /// `sinc(ν)`, i.e. `sin(πν)/(πν)`: the default, for it errs least on point-sampled objects.
    #[default]
    #[serde(alias = "shepp")]
    SheppLogan,
    /// `cos(πν)`.
    Cosine,
    /// `½ + ½ cos(2πν)`: zero at Nyquist.
    #[serde(alias = "hanning")]
    Hann,
    /// `0.54 + 0.46 cos(2πν)`.
    Hamming,
    /// Parzen's (de la Vallée-Poussin's) window: `1 − 6f²(1−f)` below `f = 2ν = ½`, `2(1−f)³` above.
    Parzen,
}

impl Filter {
    /// Every filter, in the order of the list printed to users.
    pub const ALL: [Self; 6] = [Self::Ramp, Self::SheppLogan, Self::Cosine, Self::Hann, Self::Hamming, Self::Parzen];

    /// The name users write.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ramp => "ramp",
            Self::SheppLogan => "shepp-logan",
            Self::Cosine => "cosine",
            Self::Hann => "hann",
            Self::Hamming => "hamming",
            Self::Parzen => "parzen",
        }
    }

    /// The window at `frequency` cycles per pixel, `0 ≤ frequency ≤ ½`.
    #[must_use]
    pub fn window(self, frequency: f64) -> f64 {
        match self {
            Self::Ramp => 1.0,
            Self::SheppLogan if frequency == 0.0 => 1.0,
            Self::SheppLogan => (PI * frequency).sin() / (PI * frequency),
            Self::Cosine => (PI * frequency).cos(),
            Self::Hann => 0.5 + 0.5 * (2.0 * PI * frequency).cos(),
            Self::Hamming => 0.54 + 0.46 * (2.0 * PI * frequency).cos(),
            Self::Parzen => {
                let f = 2.0 * frequency;
                if f < 0.5 { 1.0 - 6.0 * f * f * (1.0 - f) } else { 2.0 * (1.0 - f).powi(3) }
            }
        }
    }

    /// Gains in 1/pixel at the frequencies `m/length`, `m = 0..=length/2`. `length` must be even.
    #[must_use]
    pub fn response(self, length: usize) -> Vec<f64> {
        assert!(length >= 2 && length.is_multiple_of(2), "a padded length is even, got {length}");
        let fft = fft_plans::real_forward_f64(length);
        let mut kernel = fft.make_input_vec();
        kernel[0] = 0.25;
        for n in (1..=length / 2).step_by(2) {
            let h = -1.0 / (PI * n as f64).powi(2);
            kernel[n] = h;
            kernel[length - n] = h;
        }
        let mut spectrum = fft.make_output_vec();
        if fft.process(&mut kernel, &mut spectrum).is_err() {
            unreachable!("the buffers come from the plan itself");
        }
        spectrum.iter().enumerate().map(|(m, s)| s.re * self.window(m as f64 / length as f64)).collect()
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Filter {
    type Err = TomographyError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
        Ok(match plain.as_str() {
            "ramp" | "ramlak" => Self::Ramp,
            "shepplogan" | "shepp" => Self::SheppLogan,
            "cosine" => Self::Cosine,
            "hann" | "hanning" => Self::Hann,
            "hamming" => Self::Hamming,
            "parzen" => Self::Parzen,
            _ => {
                return Err(TomographyError::Filter { got: name.to_owned() });
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ramp_is_the_frequency_but_for_its_small_positive_start() {
        let length = 1024;
        let gains = Filter::Ramp.response(length);
        assert_eq!(gains.len(), length / 2 + 1);
        // The kernel cut at ±length/2 leaves 2·Σ_{odd n > length/2} 1/(πn)² ≈ 2/(π²·length) at zero frequency.
        let expected = 2.0 / (PI * PI * length as f64);
        assert!((gains[0] / expected - 1.0).abs() < 1e-2, "{} vs {expected}", gains[0]);
        for (m, gain) in gains.iter().enumerate().skip(1) {
            let frequency = m as f64 / length as f64;
            assert!((gain - frequency).abs() <= expected, "{m}: {gain} vs {frequency}");
        }
    }

    #[test]
    fn windows_start_at_one_fall_and_end_where_they_should() {
        let end = [1.0, 2.0 / PI, 0.0, 0.0, 0.08, 0.0];
        for (filter, end) in Filter::ALL.into_iter().zip(end) {
            assert!((filter.window(0.0) - 1.0).abs() < 1e-12, "{filter}");
            assert!((filter.window(0.5) - end).abs() < 1e-12, "{filter}");
            let mut last = 1.0;
            for i in 0..=100 {
                let w = filter.window(f64::from(i) / 200.0);
                assert!(w <= last + 1e-12, "{filter} rises at {i}");
                last = w;
            }
        }
    }

    #[test]
    fn names_parse_in_every_spelling_and_others_are_refused_by_name() {
        for filter in Filter::ALL {
            assert_eq!(filter.name().parse::<Filter>(), Ok(filter));
            let json = serde_json::to_string(&filter).unwrap();
            assert_eq!(json, format!("{:?}", filter.name()));
            assert_eq!(serde_json::from_str::<Filter>(&json).unwrap(), filter);
        }
        assert_eq!("Shepp_Logan".parse::<Filter>(), Ok(Filter::SheppLogan));
        assert_eq!("Ram-Lak".parse::<Filter>(), Ok(Filter::Ramp));
        assert!("butter".parse::<Filter>().unwrap_err().to_string().contains("butter"));
    }
}
