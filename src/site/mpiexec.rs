//! The command lines of the launchers: PALS, Open MPI, Hydra, srun, and none.
//!
//! Contract: builds argument lists and recognises a launcher by its `--version`; starts no rank. Ranks fill hosts in
//! order (rank / ranks-per-node is the host), whatever the launcher, so that a rank's number names its host.

use super::bounded;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A kind of launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Launcher {
    /// HPE's PALS, on Cray systems.
    Pals,
    /// Open MPI, 4 or later.
    OpenMpi,
    /// MPICH's Hydra.
    Hydra,
    /// Slurm.
    Srun,
    /// No launcher: one process on this host.
    Direct,
}

/// What is to be started where.
#[derive(Debug, Clone)]
pub struct Placement<'a> {
    /// Hosts, each once.
    pub hosts: &'a [String],
    /// Ranks on each.
    pub per_host: usize,
    /// A file with these hosts, one a line; PALS reads it.
    pub hostfile: &'a Path,
    /// Cores for each rank, and its GPU; `None` for a helper that computes nothing.
    pub depth: Option<usize>,
    /// Ranks that use GPUs, under srun.
    pub gpus: bool,
    /// Variables that must reach every host.
    pub exported: &'a [String],
}

/// Why no launcher can be used.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// None is there.
    #[error("no {0} here; load the module that has it, or name it with --mpiexec or BEAMPILOT_MPIEXEC")]
    Missing(String),
    /// It is of a kind nobody knows.
    #[error("{0} --version names none of PALS, Open MPI, HYDRA and Slurm; choose a site with --site")]
    Unknown(String),
    /// It could not be asked.
    #[error("{0} cannot be asked for its version: {1}")]
    Silent(String, std::io::Error),
}

/// Asking for a version should take no time; a module system may be slow on its first touch.
const VERSION_LIMIT: Duration = Duration::from_secs(20);

/// The first file of that name on PATH, or the path itself.
pub fn find(command: &str) -> Option<PathBuf> {
    if command.contains('/') {
        return Path::new(command).exists().then(|| PathBuf::from(command));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(command)).find(|file| file.is_file())
}

impl Launcher {
    /// Asks a launcher who it is.
    ///
    /// # Errors
    /// See [`LauncherError`].
    pub fn ask(mpiexec: &Path) -> Result<Self, LauncherError> {
        let shown = mpiexec.display().to_string();
        let mut command = Command::new(mpiexec);
        command.arg("--version");
        let said = bounded::output(&mut command, VERSION_LIMIT).map_err(|e| LauncherError::Silent(shown.clone(), e))?;
        let words = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
        Self::recognise(&words).ok_or(LauncherError::Unknown(shown))
    }

    fn recognise(words: &str) -> Option<Self> {
        let words = words.to_ascii_lowercase();
        let has = |any: &[&str]| any.iter().any(|w| words.contains(w));
        if has(&["open mpi", "openrte", "prrte", "open-mpi"]) {
            Some(Self::OpenMpi)
        } else if has(&["hydra"]) {
            Some(Self::Hydra)
        } else if has(&["pals"]) {
            Some(Self::Pals)
        } else if has(&["slurm"]) {
            Some(Self::Srun)
        } else {
            None
        }
    }

    /// Options before the executable.
    pub fn options(self, place: &Placement) -> Vec<String> {
        let n = (place.hosts.len() * place.per_host).to_string();
        let per_host = place.per_host.to_string();
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        match self {
            Self::Direct => Vec::new(),
            Self::Pals => {
                let mut args = words(&["-n", &n, "--ppn", &per_host, "--hostfile"]);
                args.push(place.hostfile.display().to_string());
                if let Some(depth) = place.depth {
                    args.extend([format!("--depth={depth}"), "--cpu-bind".to_owned(), "depth".to_owned()]);
                }
                args
            }
            Self::OpenMpi => {
                let hosts: Vec<String> = place.hosts.iter().map(|h| format!("{h}:{per_host}")).collect();
                let mut args = words(&["-n", &n, "--oversubscribe", "--bind-to", "none", "--host", &hosts.join(",")]);
                for name in place.exported {
                    args.extend(["-x".to_owned(), name.clone()]);
                }
                args
            }
            // Hydra passes the whole environment on by itself.
            Self::Hydra => words(&["-n", &n, "-ppn", &per_host, "-hosts", &place.hosts.join(",")]),
            Self::Srun => {
                let nodes = place.hosts.len().to_string();
                let list = place.hosts.join(",");
                let mut args = words(&["-N", &nodes, "-n", &n, "--ntasks-per-node", &per_host, "--nodelist", &list]);
                args.push("--kill-on-bad-exit=1".to_owned());
                if let Some(depth) = place.depth {
                    args.push(format!("-c{depth}"));
                    if place.gpus {
                        args.extend(words(&["--gpus-per-task=1", "--gpu-bind=closest"]));
                    }
                }
                args
            }
        }
    }
}

/// A command line as a person would type it.
pub fn shown(program: &OsStr, args: &[String]) -> String {
    let quote = |word: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.to_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    std::iter::once(program.to_string_lossy().as_ref())
        .chain(args.iter().map(String::as_str))
        .map(quote)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_lines_are_those_of_the_sites() {
        let hosts = ["a".to_owned(), "b".to_owned()];
        let exported = ["BEAMPILOT_LAUNCH".to_owned()];
        let place = Placement {
            hosts: &hosts,
            per_host: 4,
            hostfile: Path::new("/tmp/h"),
            depth: Some(8),
            gpus: true,
            exported: &exported,
        };
        let line = |l: Launcher| l.options(&place).join(" ");
        assert_eq!(line(Launcher::Pals), "-n 8 --ppn 4 --hostfile /tmp/h --depth=8 --cpu-bind depth");
        assert_eq!(line(Launcher::OpenMpi), "-n 8 --oversubscribe --bind-to none --host a:4,b:4 -x BEAMPILOT_LAUNCH");
        assert_eq!(line(Launcher::Hydra), "-n 8 -ppn 4 -hosts a,b");
        assert!(line(Launcher::Srun).ends_with("-c8 --gpus-per-task=1 --gpu-bind=closest"));
    }

    #[test]
    fn launchers_are_recognised() {
        assert_eq!(Launcher::recognise("mpiexec (OpenRTE) 4.1.4"), Some(Launcher::OpenMpi));
        assert_eq!(Launcher::recognise("HYDRA build details:"), Some(Launcher::Hydra));
        assert_eq!(Launcher::recognise("mpiexec (PALS) 1.4.0"), Some(Launcher::Pals));
        assert_eq!(Launcher::recognise("something else"), None);
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(
            shown(OsStr::new("x"), &["a b".to_owned(), "c".to_owned(), "it's".to_owned()]),
            r"x 'a b' c 'it'\''s'"
        );
    }
}
