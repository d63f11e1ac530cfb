//! The kernel files of `kernels/`, built into the executable, and what is compiled from them.
//!
//! A [`Program`] is one file with its definitions (`WINDOW`, `PAIRS`), so that sizes known at run time are constants to the
//! compiler. The text is whole: `common.h` stands in the place of its `#include`.

use sha2::{Digest, Sha256};

/// A file of `kernels/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum File {
    /// Counts to line integrals.
    Normalise,
    /// Zingers.
    Zinger,
    /// Stripes, but for the medians.
    Stripe,
    /// Running medians; wants `WINDOW`.
    Median,
    /// Columns sorted; wants `KEYS`.
    Rank,
    /// Stripes by wavelets.
    Wavelet,
    /// Stripes by Titarenko's formula.
    Titarenko,
    /// Gridding; wants `PAIRS`.
    Gridding,
    /// Direct back-projection; wants `PAIRS`.
    Backproject,
    /// SIRT and CGLS; wants `SLICES`.
    Iterative,
    /// Paganin's filter.
    Paganin,
    /// Laue: bright pixels and their positions on the mask.
    LaueSearch,
    /// Laue: correlation by Fourier transforms.
    LaueTransform,
    /// Laue: footprints.
    LaueFootprint,
    /// Laue: energies and depths.
    LaueDepth,
    /// Laue: wire scans.
    LaueWire,
    /// Half precision.
    Half,
    /// Self-test and ceilings.
    Selftest,
}

const COMMON: &str = include_str!("../../kernels/common.h");

impl File {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Normalise,
        Self::Zinger,
        Self::Stripe,
        Self::Median,
        Self::Rank,
        Self::Wavelet,
        Self::Titarenko,
        Self::Gridding,
        Self::Backproject,
        Self::Iterative,
        Self::Paganin,
        Self::LaueSearch,
        Self::LaueTransform,
        Self::LaueFootprint,
        Self::LaueDepth,
        Self::LaueWire,
        Self::Half,
        Self::Selftest,
    ];

    /// Its name without the ending.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Normalise => "normalise",
            Self::Zinger => "zinger",
            Self::Stripe => "stripe",
            Self::Median => "median",
            Self::Rank => "rank",
            Self::Wavelet => "wavelet",
            Self::Titarenko => "titarenko",
            Self::Gridding => "gridding",
            Self::Backproject => "backproject",
            Self::Iterative => "iterative",
            Self::Paganin => "paganin",
            Self::LaueSearch => "laue_search",
            Self::LaueTransform => "laue_transform",
            Self::LaueFootprint => "laue_footprint",
            Self::LaueDepth => "laue_depth",
            Self::LaueWire => "laue_wire",
            Self::Half => "half",
            Self::Selftest => "selftest",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Normalise => include_str!("../../kernels/normalise.cu"),
            Self::Zinger => include_str!("../../kernels/zinger.cu"),
            Self::Stripe => include_str!("../../kernels/stripe.cu"),
            Self::Median => include_str!("../../kernels/median.cu"),
            Self::Rank => include_str!("../../kernels/rank.cu"),
            Self::Wavelet => include_str!("../../kernels/wavelet.cu"),
            Self::Titarenko => include_str!("../../kernels/titarenko.cu"),
            Self::Gridding => include_str!("../../kernels/gridding.cu"),
            Self::Backproject => include_str!("../../kernels/backproject.cu"),
            Self::Iterative => include_str!("../../kernels/iterative.cu"),
            Self::Paganin => include_str!("../../kernels/paganin.cu"),
            Self::LaueSearch => include_str!("../../kernels/laue_search.cu"),
            Self::LaueTransform => include_str!("../../kernels/laue_transform.cu"),
            Self::LaueFootprint => include_str!("../../kernels/laue_footprint.cu"),
            Self::LaueDepth => include_str!("../../kernels/laue_depth.cu"),
            Self::LaueWire => include_str!("../../kernels/laue_wire.cu"),
            Self::Half => include_str!("../../kernels/half.cu"),
            Self::Selftest => include_str!("../../kernels/selftest.cu"),
        }
    }

    /// Names of its kernels.
    pub fn kernels(self) -> impl Iterator<Item = &'static str> {
        self.text().split("KERNEL void ").skip(1).filter_map(|rest| rest.split_once('(').map(|(name, _)| name))
    }
}

/// A file with its definitions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Program {
    /// The file.
    pub file: File,
    /// Definitions, by name.
    pub defines: Vec<(&'static str, u32)>,
}

impl Program {
    /// A file that needs no definitions.
    #[must_use]
    pub fn of(file: File) -> Self {
        Self { file, defines: Vec::new() }
    }

    /// With one more definition.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: u32) -> Self {
        self.defines.push((name, value));
        self
    }

    /// The text to compile.
    #[must_use]
    pub fn text(&self) -> String {
        // Messages shall name lines of the file itself.
        inlined(self.file.text())
    }

    /// Options of the run-time compiler for an architecture such as `sm_90`.
    #[must_use]
    pub fn options(&self, arch: &str) -> Vec<String> {
        let mut options = vec![format!("--gpu-architecture={arch}"), "--std=c++17".to_owned()];
        // Device functions that one file uses and another does not.
        options.push("--diag-suppress=177".to_owned());
        options.extend(self.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        options
    }

    /// Names the compiled program: a hash of everything that goes into it.
    #[must_use]
    pub fn key(&self, arch: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(self.text());
        for option in self.options(arch) {
            hash.update([0]);
            hash.update(option);
        }
        super::compile::hex(&hash.finalize())
    }
}

fn inlined(text: &str) -> String {
    let mut whole = String::with_capacity(text.len() + COMMON.len() + 64);
    for (number, line) in text.lines().enumerate() {
        if line == "#include \"common.h\"" {
            whole.extend(COMMON.lines().filter(|l| *l != "#pragma once").flat_map(|l| [l, "\n"]));
            whole.push_str(&format!("#line {}\n", number + 2));
        } else {
            whole.push_str(line);
            whole.push('\n');
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_whole_and_has_kernels() {
        for file in File::ALL {
            let text = Program::of(file).text();
            assert!(!text.contains("#include \"common.h\"") && text.contains("GLOBAL_INDEX"), "{}", file.name());
            assert!(file.kernels().count() > 0, "{}", file.name());
        }
        assert_eq!(File::Zinger.kernels().collect::<Vec<_>>(), ["zinger"]);
        let on_disk = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels")).unwrap();
        let files = on_disk.filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|x| x == "cu")).count();
        assert_eq!(files, File::ALL.len(), "a file of kernels/ is not in the list");
    }

    #[test]
    fn the_key_changes_with_all_that_matters() {
        let program = Program::of(File::Median).with("WINDOW", 21);
        let key = program.key("sm_80");
        assert_eq!(key, program.clone().key("sm_80"));
        assert_ne!(key, program.key("sm_90"));
        assert_ne!(key, Program::of(File::Median).with("WINDOW", 23).key("sm_80"));
        assert_ne!(key, Program::of(File::Stripe).with("WINDOW", 21).key("sm_80"));
    }
}
