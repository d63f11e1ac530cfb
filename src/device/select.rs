//! The device of this process: chosen, tested, opened.
//!
//! `BEAMPILOT_DEVICE` is `auto` (the default: the first visible GPU, if it can be used), `cpu`, or `gpu` (as `auto`, but a
//! process without a GPU it can use is unfit).
//!
//! An executor tests its GPU when it starts ([`examine`]) and lets go of it again: what it then runs may be another's
//! program that wants the GPU for itself. The first slab opens it for good ([`shared`]), until it fails ([`lose`]).

use super::compile::Cache;
use super::cuda::{self, Driver};
use super::error::DeviceError;
use super::gpu::Gpu;
use super::{fft, selftest};
use std::sync::{Arc, OnceLock};

/// What `BEAMPILOT_DEVICE` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// A GPU if there is one.
    Auto,
    /// No GPU.
    Cpu,
    /// A GPU, or nothing.
    Gpu,
}

impl Choice {
    /// Reads `BEAMPILOT_DEVICE`.
    ///
    /// # Errors
    /// Another word than `auto`, `cpu`, `gpu`.
    pub fn from_environment() -> Result<Self, String> {
        Self::parse(std::env::var("BEAMPILOT_DEVICE").ok().as_deref())
    }

    fn parse(word: Option<&str>) -> Result<Self, String> {
        match word {
            None | Some("" | "auto") => Ok(Self::Auto),
            Some("cpu") => Ok(Self::Cpu),
            Some("gpu") => Ok(Self::Gpu),
            Some(other) => Err(format!("BEAMPILOT_DEVICE is {other:?}; write auto, cpu or gpu")),
        }
    }
}

/// What came of it.
#[derive(Clone)]
pub enum Selected {
    /// This GPU, tested.
    Gpu(Arc<Gpu>),
    /// The processors, because that is all there is or all that was asked for.
    Cpu,
    /// There is a GPU that must not be used, or none where one was asked for. What runs here runs on the processors.
    Unfit(String),
}

/// Opens the device that `choice` names, and tests it. Never panics.
#[must_use]
pub fn open(choice: Choice, cache: Cache) -> Selected {
    open_with(choice, cache, |gpu| {
        let report = selftest::run(gpu)?;
        let (arch, tested, health) = (gpu.arch(), report.tested, report.health);
        tracing::info!(gpu = gpu.info.name, arch, tested_bytes = tested, ?health, "the GPU is fit");
        Ok(())
    })
}

fn open_with(choice: Choice, cache: Cache, test: fn(&Gpu) -> Result<(), DeviceError>) -> Selected {
    if choice == Choice::Cpu {
        return Selected::Cpu;
    }
    let found = cuda::discover();
    let none = |why: String| match choice {
        Choice::Gpu => Selected::Unfit(format!("BEAMPILOT_DEVICE is gpu, but {why}")),
        _ => Selected::Cpu,
    };
    let info = match (&found.driver, found.gpus.first()) {
        (Driver::Absent, _) => return none("there is no libcuda".to_owned()),
        // A driver on a host without a card, or the toolkit's stand-in for one.
        (Driver::Broken(problem), _) if ["NO_DEVICE", "STUB_LIBRARY"].iter().any(|name| problem.contains(name)) => {
            return none(format!("there is none here ({problem})"));
        }
        (Driver::Broken(problem), _) => return Selected::Unfit(format!("the GPU driver does not answer: {problem}")),
        (Driver::Works(_), None) => return none("no GPU is visible; see CUDA_VISIBLE_DEVICES".to_owned()),
        (Driver::Works(_), Some(info)) => info.clone(),
    };
    if !fft::available() {
        let why = "libcufft cannot be loaded; load the site's CUDA toolkit module or add its folder to LD_LIBRARY_PATH";
        tracing::warn!(gpu = info.name, "the GPU is not used: {why}");
        return none(why.to_owned());
    }
    let name = info.name.clone();
    // cudarc panics where a library lacks a function.
    let tried = std::panic::catch_unwind(|| -> Result<_, DeviceError> {
        let gpu = Gpu::open(info, cache)?;
        test(&gpu)?;
        Ok(gpu)
    });
    match tried {
        Ok(Ok(gpu)) => Selected::Gpu(Arc::new(gpu)),
        Ok(Err(missing @ DeviceError::Missing { .. })) => {
            tracing::warn!(gpu = name, "the GPU is not used: {missing}");
            none(missing.to_string())
        }
        Ok(Err(error)) => Selected::Unfit(format!("GPU {name}: {error}")),
        Err(_) => Selected::Unfit(format!("GPU {name}: a function is missing in a CUDA library")),
    }
}

/// What the test of this process's device said.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Fit,
    NoGpu,
    Unfit(String),
}

fn verdict() -> &'static Verdict {
    static VERDICT: OnceLock<Verdict> = OnceLock::new();
    VERDICT.get_or_init(|| {
        // Unit tests mean the CPU; those of the device bring their own.
        if cfg!(test) {
            return Verdict::NoGpu;
        }
        match Choice::from_environment() {
            Ok(choice) => match open(choice, Cache::from_environment()) {
                Selected::Gpu(_) => Verdict::Fit,
                Selected::Cpu => Verdict::NoGpu,
                Selected::Unfit(why) => Verdict::Unfit(why),
            },
            Err(problem) => Verdict::Unfit(problem),
        }
    })
}

/// Tests the device of this process, the first time; why it must not be used, if so.
pub fn examine() -> Option<&'static str> {
    match verdict() {
        Verdict::Unfit(why) => Some(why),
        _ => None,
    }
}

static LOST: OnceLock<String> = OnceLock::new();

/// The device failed in the middle of work: from now on there is none. After most errors a context is of no use.
pub fn lose(why: String) {
    // Only the first reason matters.
    let _ = LOST.set(why);
}

/// Why the device was lost, if it was.
pub fn lost() -> Option<&'static str> {
    LOST.get().map(String::as_str)
}

/// The device of this process, the same whenever asked until it is lost; the first to ask opens it, after [`examine`].
pub fn shared() -> Selected {
    if let Some(why) = lost() {
        return Selected::Unfit(why.to_owned());
    }
    static SHARED: OnceLock<Selected> = OnceLock::new();
    let open = || match verdict() {
        Verdict::Fit => open_with(Choice::Auto, Cache::from_environment(), |_| Ok(())),
        Verdict::NoGpu => Selected::Cpu,
        Verdict::Unfit(why) => Selected::Unfit(why.clone()),
    };
    SHARED.get_or_init(open).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_checked() {
        assert_eq!(Choice::parse(None), Ok(Choice::Auto));
        assert_eq!(Choice::parse(Some("cpu")), Ok(Choice::Cpu));
        assert!(Choice::parse(Some("cuda")).unwrap_err().contains("auto, cpu or gpu"));
    }

    #[test]
    fn asked_for_the_cpu_nothing_is_loaded() {
        assert!(matches!(open(Choice::Cpu, Cache::at("/nowhere")), Selected::Cpu));
    }
}
