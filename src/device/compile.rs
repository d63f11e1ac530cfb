//! Kernels compiled by NVRTC for the card found, and kept on disk.
//!
//! Contract
//! - A program is looked for under its key (a hash of text, definitions and architecture), in the folder named by
//!   `BEAMPILOT_KERNEL_CACHE`, else `$XDG_CACHE_HOME/beampilot/kernels`, else `~/.cache/beampilot/kernels`. With the
//!   programs there, NVRTC is not needed.
//! - A file begins with the hash of the rest and appears under its name whole, by rename: torn, foreign or damaged files
//!   are found out and replaced. A cache that cannot be used costs time, nothing else.
//! - The result is machine code for one architecture, with a zero byte behind it.

use super::error::DeviceError;
use super::kernels::Program;
use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};
use std::ffi::CString;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Where compiled programs are kept.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// In this folder.
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()) }
    }

    /// Where the environment says; nowhere when it names no home.
    #[must_use]
    pub fn from_environment() -> Self {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let folder = path("BEAMPILOT_KERNEL_CACHE").or_else(|| {
            let home = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|h| h.join(".cache")))?;
            Some(home.join("beampilot/kernels"))
        });
        Self { folder }
    }

    fn get(&self, key: &str) -> Option<Vec<u8>> {
        let whole = std::fs::read(self.folder.as_ref()?.join(key)).ok()?;
        let (sum, image) = whole.split_at_checked(32)?;
        (Sha256::digest(image).as_slice() == sum).then(|| image.to_vec())
    }

    fn put(&self, key: &str, image: &[u8]) -> std::io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&Sha256::digest(image))?;
        file.write_all(image)?;
        file.persist(folder.join(key)).map_err(|e| e.error)?;
        Ok(())
    }

    /// The compiled program: kept, or compiled and kept.
    ///
    /// # Errors
    /// [`DeviceError::Missing`] without NVRTC, [`DeviceError::Compile`] with what the compiler says.
    pub fn image(&self, program: &Program, arch: &str) -> Result<Vec<u8>, DeviceError> {
        let key = program.key(arch);
        if let Some(image) = self.get(&key) {
            return Ok(image);
        }
        let image = compile(program, arch)?;
        if let Err(error) = self.put(&key, &image) {
            tracing::debug!(%error, "a compiled kernel cannot be kept");
        }
        Ok(image)
    }
}

/// Compiles a program with NVRTC.
///
/// # Errors
/// As [`Cache::image`].
pub fn compile(program: &Program, arch: &str) -> Result<Vec<u8>, DeviceError> {
    const REMEDY: &str = "load the site's CUDA toolkit module, or install nvidia-cuda-nvrtc-cu12 from PyPI and add its lib folder to LD_LIBRARY_PATH";
    // SAFETY: loads a library by its well-known name; its initialisers are the vendor's.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::Missing { library: "libnvrtc", remedy: REMEDY });
    }
    let failed = |log: String| DeviceError::Compile { file: program.file.name(), arch: arch.to_owned(), log };
    let text = CString::new(program.text()).map_err(|e| failed(e.to_string()))?;
    let name = CString::new(format!("{}.cu", program.file.name())).map_err(|e| failed(e.to_string()))?;
    let handle = result::create_program(&text, Some(&name)).map_err(|e| failed(format!("{e:?}")))?;
    let outcome = build(handle, &program.options(arch), &failed);
    // SAFETY: the program was created above and is not used again.
    let _ = unsafe { result::destroy_program(handle) };
    outcome
}

fn build(
    program: sys::nvrtcProgram,
    options: &[String],
    failed: &dyn Fn(String) -> DeviceError,
) -> Result<Vec<u8>, DeviceError> {
    // SAFETY: the program is alive; all buffers are as long as the library said.
    unsafe {
        if let Err(error) = result::compile_program(program, options) {
            let log = result::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|&c| c != 0).collect();
            return Err(failed(format!("{error:?}: {}", String::from_utf8_lossy(&log).trim())));
        }
        let mut length = 0;
        sys::nvrtcGetCUBINSize(program, &mut length).result().map_err(|e| failed(format!("{e:?}")))?;
        let mut image = vec![0_u8; length + 1];
        sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result().map_err(|e| failed(format!("{e:?}")))?;
        if length < 2 {
            return Err(failed("the compiler returned no machine code".to_owned()));
        }
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("new/one"));
        assert_eq!(cache.get("a"), None);
        cache.put("a", b"machine code").unwrap();
        assert_eq!(cache.get("a").as_deref(), Some(&b"machine code"[..]));
        let file = folder.path().join("new/one/a");
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(cache.get("a"), None);
        std::fs::write(&file, [1, 2, 3]).unwrap();
        assert_eq!(cache.get("a"), None);
        cache.put("a", b"again").unwrap();
        assert_eq!(cache.get("a").as_deref(), Some(&b"again"[..]));
        assert_eq!(std::fs::read_dir(folder.path().join("new/one")).unwrap().count(), 1);
    }
}
