//! What to install, and how, on the system this is: the remedies of `doctor`.
//!
//! `scripts/setup.sh` installs the same lists; a test compares the two.

use std::path::Path;

/// Families of systems that differ in how software is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// Polaris at ALCF: environment modules.
    Polaris,
    /// Another Cray with its programming environment.
    Cray,
    /// Debian, Ubuntu and descendants: apt.
    Debian,
    /// Fedora, RHEL, Rocky, Alma: dnf.
    Fedora,
    /// openSUSE and SLES: zypper.
    Suse,
    /// macOS: Homebrew. Embedded runs only.
    MacOs,
    /// Anything else.
    Other,
}

/// Things beampilot builds with or runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A C compiler, pkg-config and libclang, for building.
    Compiler,
    /// The HDF5 library and its headers.
    Hdf5,
    /// Open MPI with headers and launcher.
    OpenMpi,
    /// MPICH with headers and launcher.
    Mpich,
    /// NVIDIA's driver; cannot be installed without the administrator.
    CudaDriver,
    /// NVIDIA's run-time compiler.
    Nvrtc,
}

impl Need {
    /// Those `make setup` takes care of.
    pub const INSTALLED: [Need; 4] = [Need::Compiler, Need::Hdf5, Need::OpenMpi, Need::Mpich];
}

impl System {
    /// The system this process runs on.
    pub fn detect() -> System {
        if cfg!(target_os = "macos") {
            return System::MacOs;
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let submitted_from = std::env::var("PBS_O_HOST").unwrap_or_default();
        if host.starts_with("polaris") || submitted_from.starts_with("polaris") {
            return System::Polaris;
        }
        if std::env::var_os("CRAY_MPICH_DIR").is_some() || Path::new("/opt/cray/pe").is_dir() {
            return System::Cray;
        }
        System::of_release(&std::fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    /// The family named by an `/etc/os-release`.
    pub fn of_release(text: &str) -> System {
        let field = |name: &str| {
            let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().trim_matches(['"', '\'']).to_lowercase()
        };
        let family = format!("{} {}", field("ID"), field("ID_LIKE"));
        for word in family.split_whitespace() {
            match word {
                "debian" | "ubuntu" => return System::Debian,
                "fedora" | "rhel" | "centos" => return System::Fedora,
                word if word.starts_with("suse") || word.starts_with("opensuse") || word == "sles" => {
                    return System::Suse;
                }
                _ => {}
            }
        }
        System::Other
    }
}

/// Names of the packages for a need; empty where the system has none or needs no package.
pub fn packages(system: System, need: Need) -> &'static [&'static str] {
    use Need::{Compiler, CudaDriver, Hdf5, Mpich, Nvrtc, OpenMpi};
    match (system, need) {
        (System::Debian, Compiler) => &["build-essential", "pkg-config", "clang", "libclang-dev", "git"],
        (System::Debian, Hdf5) => &["libhdf5-dev", "hdf5-tools"],
        (System::Debian, OpenMpi) => &["libopenmpi-dev", "openmpi-bin"],
        (System::Debian, Mpich) => &["libmpich-dev", "mpich"],
        (System::Fedora, Compiler) => &["gcc", "gcc-c++", "make", "pkgconf-pkg-config", "clang", "clang-devel", "git"],
        (System::Fedora, Hdf5) => &["hdf5-devel", "hdf5"],
        (System::Fedora, OpenMpi) => &["openmpi-devel"],
        (System::Fedora, Mpich) => &["mpich-devel"],
        (System::Suse, Compiler) => &["gcc", "gcc-c++", "make", "pkg-config", "clang", "clang-devel", "git"],
        (System::Suse, Hdf5) => &["hdf5-devel", "hdf5"],
        (System::Suse, OpenMpi) => &["openmpi4-devel"],
        (System::Suse, Mpich) => &["mpich-devel"],
        (System::MacOs, Compiler) => &["pkg-config", "llvm"],
        (System::MacOs, Hdf5) => &["hdf5"],
        (System::MacOs, OpenMpi) => &["open-mpi"],
        (System::MacOs, Mpich) => &["mpich"],
        (System::Polaris | System::Cray | System::Other, _) | (_, CudaDriver | Nvrtc) => &[],
    }
}

/// One sentence or command line that gets what is missing.
pub fn remedy(system: System, need: Need) -> String {
    let polaris = "module use /soft/modulefiles; module load PrgEnv-gnu cray-hdf5 cudatoolkit-standalone";
    match (system, need) {
        (System::Polaris, _) => format!("{polaris} (on Polaris)"),
        (System::Cray, Need::CudaDriver | Need::Nvrtc) => "module load cudatoolkit, on a node with GPUs".to_owned(),
        (System::Cray, _) => "module load PrgEnv-gnu cray-mpich cray-hdf5".to_owned(),
        (_, Need::CudaDriver) => {
            "nothing to do for a run on the CPU; for GPUs, NVIDIA's driver must be installed on this host".to_owned()
        }
        (_, Need::Nvrtc) => {
            "install the CUDA toolkit, or put NVIDIA's libnvrtc of the driver's major version on LD_LIBRARY_PATH"
                .to_owned()
        }
        (System::Other, _) => format!("install {}", plainly(need)),
        (system, need) => format!("{} {}", installer(system), packages(system, need).join(" ")),
    }
}

fn installer(system: System) -> &'static str {
    match system {
        System::Debian => "sudo apt-get install",
        System::Fedora => "sudo dnf install",
        System::Suse => "sudo zypper install",
        System::MacOs => "brew install",
        System::Polaris | System::Cray | System::Other => "install",
    }
}

fn plainly(need: Need) -> &'static str {
    match need {
        Need::Compiler => "a C compiler, make, pkg-config and clang with its library",
        Need::Hdf5 => "HDF5 1.10 or later with its headers",
        Need::OpenMpi => "Open MPI 4 or later with mpicc and mpiexec",
        Need::Mpich => "MPICH 3.4 or later with mpicc and mpiexec",
        Need::CudaDriver => "NVIDIA's driver",
        Need::Nvrtc => "NVIDIA's run-time compiler",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_are_recognised_by_id_or_ancestry() {
        for (text, want) in [
            ("ID=debian\n", System::Debian),
            ("NAME=\"Linux Mint\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", System::Debian),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", System::Fedora),
            ("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n", System::Suse),
            ("ID=\"sles\"\n", System::Suse),
            ("ID=arch\n", System::Other),
            ("", System::Other),
        ] {
            assert_eq!(System::of_release(text), want, "{text}");
        }
    }

    #[test]
    fn setup_installs_what_doctor_advises() {
        let script = include_str!("../../scripts/setup.sh");
        for (system, variable) in
            [(System::Debian, "apt_packages="), (System::Fedora, "dnf_packages="), (System::Suse, "zypper_packages=")]
        {
            let line = script.lines().find_map(|l| l.strip_prefix(variable)).unwrap_or_default();
            let mut installed: Vec<&str> = line.trim_matches(['(', ')']).split_whitespace().collect();
            let mut advised: Vec<&str> =
                Need::INSTALLED.iter().flat_map(|&need| packages(system, need)).copied().collect();
            installed.sort_unstable();
            advised.sort_unstable();
            assert_eq!(installed, advised, "{variable} in scripts/setup.sh and packages() differ");
        }
    }

    #[test]
    fn every_remedy_says_something() {
        use System::{Cray, Debian, Fedora, MacOs, Other, Polaris, Suse};
        for system in [Polaris, Cray, Debian, Fedora, Suse, MacOs, Other] {
            for need in Need::INSTALLED.into_iter().chain([Need::CudaDriver, Need::Nvrtc]) {
                assert!(remedy(system, need).len() > 15, "{system:?} {need:?}");
            }
        }
    }
}
