//! What the management library (NVML) says of a device's health, where it is there and willing.

use nvml_wrapper_sys::bindings as nvml;
use std::ffi::CString;

/// Readings; `None` where they cannot be had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    /// Degrees Celsius.
    pub temperature: Option<u32>,
    /// Degrees at which the device slows itself down.
    pub slowdown: Option<u32>,
    /// Memory errors since the driver was loaded that could not be corrected.
    pub uncorrected: Option<u64>,
}

impl Health {
    /// Why the device must not be used, if so.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        if let Some(count) = self.uncorrected.filter(|&n| n > 0) {
            return Some(format!(
                "{count} memory errors that could not be corrected (ECC) since the driver was loaded"
            ));
        }
        let (now, limit) = (self.temperature?, self.slowdown?);
        (now >= limit).then(|| format!("{now} °C, at {limit} °C it slows down"))
    }
}

/// Asks about the device with this UUID (`GPU-…`).
#[must_use]
pub fn read(uuid: &str) -> Health {
    // SAFETY: loads the vendor's library by its well-known name.
    let Ok(library) = (unsafe { nvml::NvmlLib::new("libnvidia-ml.so.1") }) else { return Health::default() };
    let (Ok(init), Ok(shutdown)) = (library.nvmlInit_v2.as_ref(), library.nvmlShutdown.as_ref()) else {
        return Health::default();
    };
    // SAFETY: as its documentation wants; ended below.
    if unsafe { init() } != 0 {
        return Health::default();
    }
    let health = ask(&library, uuid).unwrap_or_default();
    // SAFETY: initialised above; no handle is used afterwards.
    unsafe { shutdown() };
    health
}

fn ask(library: &nvml::NvmlLib, uuid: &str) -> Option<Health> {
    let uuid = CString::new(uuid).ok()?;
    let mut device = std::ptr::null_mut();
    // SAFETY: the string ends with zero, the pointer is to a live handle; a handle is used only after success.
    unsafe {
        if library.nvmlDeviceGetHandleByUUID.as_ref().ok()?(uuid.as_ptr(), &mut device) != 0 {
            return None;
        }
        let mut health = Health::default();
        let (mut degrees, mut count) = (0, 0);
        if let Ok(get) = &library.nvmlDeviceGetTemperature
            && get(device, nvml::nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU, &mut degrees) == 0
        {
            health.temperature = Some(degrees);
        }
        let slowdown = nvml::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SLOWDOWN;
        if let Ok(get) = &library.nvmlDeviceGetTemperatureThreshold
            && get(device, slowdown, &mut degrees) == 0
        {
            health.slowdown = Some(degrees);
        }
        let (kind, counter) = (
            nvml::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml::nvmlEccCounterType_enum_NVML_VOLATILE_ECC,
        );
        if let Ok(get) = &library.nvmlDeviceGetTotalEccErrors
            && get(device, kind, counter, &mut count) == 0
        {
            health.uncorrected = Some(count);
        }
        Some(health)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_and_memory_errors_are_complaints_and_silence_is_none() {
        assert_eq!(Health::default().complaint(), None);
        let warm = Health { temperature: Some(60), slowdown: Some(90), uncorrected: Some(0) };
        assert_eq!(warm.complaint(), None);
        assert!(Health { temperature: Some(95), ..warm }.complaint().unwrap().contains("95 °C"));
        assert!(Health { uncorrected: Some(2), ..warm }.complaint().unwrap().contains("ECC"));
        assert_eq!(Health { slowdown: None, temperature: Some(200), uncorrected: None }.complaint(), None);
    }
}
