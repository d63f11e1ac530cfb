//! Doctor on libraries: MPI and its launcher, HDF5, CUDA.

use super::{Check, bytes};
use crate::device::compile::Cache;
use crate::device::cuda::{self, Driver};
use crate::device::{self, Choice, Selected};
use crate::site::packages::{Need, System, remedy};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Families whose launchers and libraries understand each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vendor {
    OpenMpi,
    /// MPICH and what shares its binary interface: Cray MPICH, Intel MPI, PALS, Hydra.
    Mpich,
}

impl Vendor {
    fn of(text: &str) -> Option<Vendor> {
        let text = text.to_lowercase();
        let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
        if has(&["open mpi", "openmpi", "open-mpi", "openrte", "prrte"]) {
            Some(Vendor::OpenMpi)
        } else if has(&["mpich", "hydra", "intel(r) mpi", "pals", "mvapich"]) {
            Some(Vendor::Mpich)
        } else {
            None
        }
    }

    fn name(self) -> &'static str {
        match self {
            Vendor::OpenMpi => "Open MPI",
            Vendor::Mpich => "MPICH",
        }
    }

    /// Name of its launcher where several are installed.
    fn launcher(self) -> &'static str {
        match self {
            Vendor::OpenMpi => "mpiexec.openmpi",
            Vendor::Mpich => "mpiexec.mpich",
        }
    }

    fn need(self) -> Need {
        match self {
            Vendor::OpenMpi => Need::OpenMpi,
            Vendor::Mpich => Need::Mpich,
        }
    }
}

/// How this process was started by a launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Launched {
    pub(super) rank: u32,
    size: u32,
    vendor: Vendor,
}

impl Launched {
    pub(super) fn from_environment() -> Option<Launched> {
        Launched::from(|name| std::env::var(name).ok())
    }

    fn from(variable: impl Fn(&str) -> Option<String>) -> Option<Launched> {
        let number = |name: &str| variable(name)?.parse::<u32>().ok();
        let launchers = [
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", Vendor::OpenMpi),
            ("PMI_RANK", "PMI_SIZE", Vendor::Mpich),
            ("PALS_RANKID", "PALS_SIZE", Vendor::Mpich),
        ];
        launchers
            .into_iter()
            .find_map(|(rank, size, vendor)| Some(Launched { rank: number(rank)?, size: number(size)?, vendor }))
    }
}

pub(super) fn checks(launched: Option<&Launched>) -> Vec<Check> {
    let system = System::detect();
    let library = mpi_library();
    let mut checks = vec![mpi_library_check(library.as_deref(), system)];
    let vendor = library.as_deref().and_then(Vendor::of);
    if library.is_some() {
        checks.push(launched.map_or_else(|| launcher(vendor, system), |l| launch(l, vendor)));
    }
    checks.extend(hdf5_checks());
    checks.extend(cuda_checks(system));
    checks
}

/// What the linked library calls itself; MPI allows the question before initialisation.
#[cfg(feature = "mpi")]
fn mpi_library() -> Option<String> {
    let text = mpi::environment::library_version().unwrap_or_else(|_| "a library with an unreadable name".to_owned());
    Some(text.trim_end_matches('\0').split([',', '\n']).next().unwrap_or_default().trim().replace('\t', " "))
}

#[cfg(not(feature = "mpi"))]
fn mpi_library() -> Option<String> {
    None
}

fn mpi_library_check(library: Option<&str>, system: System) -> Check {
    match library {
        Some(name) => Check::ok("mpi.library", name),
        None => {
            let how = format!("for several ranks or nodes: {}, then `make build`", remedy(system, Need::OpenMpi));
            Check::warn("mpi.library", "built without MPI: runs on one machine, in one process", how)
        }
    }
}

/// Finds an executable as a shell would.
fn in_path(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|p| p.is_file());
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join(name)).find(|p| p.is_file())
}

/// Which mpiexec is there, and does it belong to the linked library?
fn launcher(vendor: Option<Vendor>, system: System) -> Check {
    const ID: &str = "mpi.launcher";
    let name = std::env::var("BEAMPILOT_MPIEXEC").unwrap_or_else(|_| "mpiexec".to_owned());
    let Some(path) = in_path(&name) else {
        let need = vendor.map_or(Need::OpenMpi, Vendor::need);
        return Check::warn(ID, format!("no {name} in PATH: runs in one process only"), remedy(system, need));
    };
    let Some(text) = version_of(&path) else {
        let remedy = format!("see what `{} --version` says", path.display());
        return Check::warn(ID, format!("{} does not answer", path.display()), remedy);
    };
    let first = text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("says nothing");
    let detail = format!("{}: {}", path.display(), first.trim_end_matches(':'));
    match (vendor, Vendor::of(&text)) {
        (Some(ours), Some(theirs)) if ours != theirs => {
            let detail = format!("{detail} ({}), but beampilot is linked with {}", theirs.name(), ours.name());
            match in_path(ours.launcher()) {
                Some(right) => Check::warn(ID, detail, format!("start it with {}", right.display())),
                None => Check::fail(ID, detail, remedy(system, ours.need())),
            }
        }
        _ => Check::ok(ID, detail),
    }
}

/// `--version`, unless it takes more than five seconds.
fn version_of(path: &std::path::Path) -> Option<String> {
    let mut child = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match child.try_wait() {
            // A version fits into a pipe, so a launcher that still runs is not waiting for us to read.
            Ok(Some(status)) => {
                let out = child.wait_with_output().ok()?;
                return status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned());
            }
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

/// Under a launcher: is it the library's own?
fn launch(launched: &Launched, vendor: Option<Vendor>) -> Check {
    let Launched { rank, size, vendor: theirs } = *launched;
    let detail = format!("rank {rank} of {size}, started by {}'s launcher", theirs.name());
    match vendor {
        Some(ours) if ours != theirs => {
            let detail = format!("{detail}, but linked with {}: every rank would believe it is alone", ours.name());
            Check::fail("mpi.launch", detail, format!("start it with {}", ours.launcher()))
        }
        _ => Check::ok("mpi.launch", detail),
    }
}

fn hdf5_checks() -> Vec<Check> {
    let (major, minor, patch) = hdf5::library_version();
    let locking = std::env::var("HDF5_USE_FILE_LOCKING").unwrap_or_else(|_| "not set".to_owned());
    let remedy =
        "export HDF5_USE_FILE_LOCKING=FALSE; locks fail on Lustre and NFS, and a reader must not stop a writer";
    vec![
        Check::ok("hdf5.library", format!("HDF5 {major}.{minor}.{patch}")),
        if locking.eq_ignore_ascii_case("false") || locking == "0" {
            Check::ok("hdf5.locking", "file locking is off")
        } else {
            Check::warn("hdf5.locking", format!("HDF5_USE_FILE_LOCKING is {locking}"), remedy)
        },
    ]
}

fn cuda_checks(system: System) -> Vec<Check> {
    let found = cuda::discover();
    let mut checks = Vec::new();
    match &found.driver {
        // A host without GPUs is not a fault: everything runs on its processors.
        Driver::Absent => checks.push(Check::ok("cuda.driver", "no libcuda: everything runs on the CPU")),
        Driver::Broken(problem) => {
            let remedy = "see whether nvidia-smi works on this host; without it everything runs on the CPU";
            checks.push(Check::warn("cuda.driver", problem, remedy));
        }
        Driver::Works((major, minor)) => {
            checks.push(Check::ok("cuda.driver", format!("supports CUDA {major}.{minor}")));
        }
    }
    if matches!(found.driver, Driver::Works(_)) {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok().map(|v| format!(" (CUDA_VISIBLE_DEVICES={v})"));
        let visible = visible.unwrap_or_default();
        checks.push(if found.gpus.is_empty() {
            let remedy = "check CUDA_VISIBLE_DEVICES, and that the job asked for GPUs";
            Check::warn("cuda.devices", format!("none visible{visible}"), remedy)
        } else {
            Check::ok("cuda.devices", format!("{}{visible}", found.gpus.len()))
        });
        checks.push(match found.nvrtc {
            Some((major, minor)) => Check::ok("cuda.nvrtc", format!("NVRTC {major}.{minor}")),
            None => Check::warn("cuda.nvrtc", "no libnvrtc: kernels cannot be compiled", remedy(system, Need::Nvrtc)),
        });
    }
    if !found.gpus.is_empty() {
        checks.push(match device::open(Choice::Auto, Cache::from_environment()) {
            Selected::Gpu(gpu) => Check::ok("cuda.selftest", format!("{} passed ({})", gpu.info.name, gpu.arch())),
            Selected::Cpu => {
                let remedy = "load the CUDA toolkit module; until then everything runs on the CPU";
                Check::warn("cuda.selftest", "a library that kernels need is missing: libcufft or libnvrtc", remedy)
            }
            Selected::Unfit(why) => {
                Check::fail("cuda.selftest", why, "do not use this GPU; tell the site, and see nvidia-smi -q")
            }
        });
    }
    for gpu in &found.gpus {
        let (major, minor) = gpu.capability;
        let detail = format!("{}, {}, compute {major}.{minor}", gpu.name, bytes(gpu.memory));
        let subject = gpu.ordinal.to_string();
        checks.push(if gpu.exclusive {
            let remedy = "give each GPU to one executor only, or ask for compute mode `default`";
            Check::warn("cuda.device", format!("{detail}, one process at a time"), remedy).of(subject)
        } else {
            Check::ok("cuda.device", detail).of(subject)
        });
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors_are_told_from_what_they_call_themselves() {
        for (text, want) in [
            ("Open MPI v4.1.4, package: Debian OpenMPI", Some(Vendor::OpenMpi)),
            ("mpiexec (OpenRTE) 4.1.4", Some(Vendor::OpenMpi)),
            ("MPICH Version:\t4.0.2", Some(Vendor::Mpich)),
            ("MPI VERSION    : CRAY MPICH version 8.1.28 (ANL base 3.4a2)", Some(Vendor::Mpich)),
            ("HYDRA build details:\n    Version: 4.0.2", Some(Vendor::Mpich)),
            ("something else", None),
        ] {
            assert_eq!(Vendor::of(text), want, "{text}");
        }
    }

    #[test]
    fn a_foreign_launcher_is_a_failure() {
        let hydra = |name: &str| match name {
            "PMI_RANK" => Some("1".to_owned()),
            "PMI_SIZE" => Some("4".to_owned()),
            _ => None,
        };
        let launched = Launched::from(hydra).unwrap();
        assert_eq!((launched.rank, launched.size), (1, 4));
        assert_eq!(launch(&launched, Some(Vendor::Mpich)).grade, super::super::Grade::Ok);
        assert_eq!(launch(&launched, Some(Vendor::OpenMpi)).grade, super::super::Grade::Fail);
        assert_eq!(Launched::from(|_| None), None);
    }

    #[test]
    fn a_launcher_that_hangs_or_fails_is_left() {
        assert_eq!(version_of(std::path::Path::new("/bin/false")), None);
        assert_eq!(version_of(std::path::Path::new("/no/such/launcher")), None);
    }
}
