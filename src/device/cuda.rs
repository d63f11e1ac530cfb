//! Which GPUs this process sees, and whether kernels can be compiled for them.
//!
//! Contract
//! - CUDA's libraries are loaded at run time; where they are missing, that is an answer and not an error.
//! - Nothing here panics and no context is made, so that asking costs no GPU memory and disturbs nobody.

use cudarc::driver::{result, sys};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// The driver library.
    pub driver: Driver,
    /// The devices that `CUDA_VISIBLE_DEVICES` leaves, in its order.
    pub gpus: Vec<Gpu>,
    /// Version of the run-time compiler, none when its library is missing.
    pub nvrtc: Option<(u32, u32)>,
}

/// State of the driver library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Driver {
    /// There is no libcuda.
    Absent,
    /// There is one, and it answers with this error.
    Broken(String),
    /// It works and supports this CUDA version.
    Works((u32, u32)),
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Number among the visible ones.
    pub ordinal: u32,
    /// Its name.
    pub name: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Compute capability.
    pub capability: (u32, u32),
    /// True when only one process at a time may use it.
    pub exclusive: bool,
}

/// Looks for the driver, the devices and the compiler.
pub fn discover() -> Discovery {
    // cudarc panics where a library lacks a symbol; for us that is a broken library.
    let nvrtc = std::panic::catch_unwind(nvrtc_version).unwrap_or_default();
    match std::panic::catch_unwind(driver) {
        Ok(Ok(None)) => Discovery { driver: Driver::Absent, gpus: Vec::new(), nvrtc },
        Ok(Ok(Some((version, gpus)))) => Discovery { driver: Driver::Works(version), gpus, nvrtc },
        Ok(Err(problem)) => Discovery { driver: Driver::Broken(problem), gpus: Vec::new(), nvrtc },
        Err(_) => {
            let problem = "a function is missing in libcuda".to_owned();
            Discovery { driver: Driver::Broken(problem), gpus: Vec::new(), nvrtc }
        }
    }
}

/// CUDA writes 12.8 as 12080 in the driver and as a pair in the compiler.
fn version(packed: i32) -> (u32, u32) {
    let packed = u32::try_from(packed).unwrap_or(0);
    (packed / 1000, packed % 1000 / 10)
}

type Found = ((u32, u32), Vec<Gpu>);

fn driver() -> Result<Option<Found>, String> {
    // SAFETY: loads a library by its well-known name; its initialisers are the vendor's.
    if !unsafe { sys::is_culib_present() } {
        return Ok(None);
    }
    let said = |what: &str| {
        let what = what.to_owned();
        move |e: result::DriverError| {
            let name = e.error_name().ok().map(|n| n.to_string_lossy().into_owned());
            format!("{what}: {}", name.unwrap_or_else(|| format!("error {}", e.0 as u32)))
        }
    };
    result::init().map_err(said("cuInit"))?;
    let mut packed = 0;
    // SAFETY: the pointer is to a live integer.
    unsafe { sys::cuDriverGetVersion(&mut packed) }.result().map_err(said("cuDriverGetVersion"))?;
    let count = result::device::get_count().map_err(said("cuDeviceGetCount"))?;
    let gpus = (0..count).map(gpu).collect::<Result<_, _>>().map_err(said("asking a device"))?;
    Ok(Some((version(packed), gpus)))
}

fn gpu(ordinal: i32) -> Result<Gpu, result::DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(ordinal)?;
    // SAFETY: the driver just returned this device.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    let capability = |which| attribute(which).map(|v| u32::try_from(v).unwrap_or(0));
    Ok(Gpu {
        ordinal: u32::try_from(ordinal).unwrap_or(0),
        name: result::device::get_name(device)?,
        // SAFETY: as above.
        memory: unsafe { result::device::total_mem(device) }? as u64,
        capability: (
            capability(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            capability(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // 3 is CU_COMPUTEMODE_EXCLUSIVE_PROCESS.
        exclusive: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE)? == 3,
    })
}

fn nvrtc_version() -> Option<(u32, u32)> {
    use cudarc::nvrtc::sys as nvrtc;
    // SAFETY: as for the driver.
    if !unsafe { nvrtc::is_culib_present() } {
        return None;
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers are to live integers.
    let answer = unsafe { nvrtc::nvrtcVersion(&mut major, &mut minor) };
    (answer == nvrtc::nvrtcResult::NVRTC_SUCCESS)
        .then(|| (u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_never_panics_and_agrees_with_itself() {
        let found = discover();
        if !matches!(found.driver, Driver::Works(_)) {
            assert!(found.gpus.is_empty());
        }
    }

    #[test]
    fn versions_unpack() {
        assert_eq!(version(12080), (12, 8));
        assert_eq!(version(13000), (13, 0));
        assert_eq!(version(-1), (0, 0));
    }
}
