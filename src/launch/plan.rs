//! What launch starts: launcher, hosts, ranks, environment; and the command lines made of them.
//!
//! Contract: a plan holds no process and starts none, so that a dry run shows exactly what a run would do.

use super::left_out::{self, LeftOut};
use super::survivors;
use crate::site::mpiexec::{self, Launcher, Placement};
use crate::site::{Profile, walltime};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

/// See the module.
#[derive(Debug)]
pub struct Plan {
    /// The site.
    pub profile: &'static Profile,
    /// The kind of launcher.
    pub launcher: Launcher,
    /// The launcher's executable; unused by [`Launcher::Direct`].
    pub mpiexec: PathBuf,
    /// This executable.
    pub beampilot: PathBuf,
    /// The campaign file.
    pub campaign: PathBuf,
    /// Further arguments of `run`.
    pub run_args: Vec<String>,
    /// Ranks on each host.
    pub per_host: usize,
    /// Cores for each rank.
    pub depth: usize,
    /// When the job ends.
    pub until: Option<SystemTime>,
    /// This launch; each start adds its number.
    pub launch: String,
}

/// One command to be started.
#[derive(Debug, Clone)]
pub struct Line {
    /// Program.
    pub program: PathBuf,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment added to ours.
    pub env: BTreeMap<String, String>,
    /// Content of the file of hosts, and its name; empty when the launcher reads none.
    pub hostfile: Option<(PathBuf, String)>,
}

impl Plan {
    /// The id that processes of the `start`-th mpiexec carry.
    pub fn id(&self, start: u32) -> String {
        format!("{}.{start}", self.launch)
    }

    /// The ranks' command line; `mpiexecs` counts what was started before on these nodes.
    pub fn run(&self, hosts: &[String], start: u32, mpiexecs: u32, left_out: &LeftOut) -> Line {
        let mut args = vec!["run".to_owned(), self.campaign.display().to_string()];
        args.extend(self.run_args.iter().cloned());
        if let Some(until) = self.until {
            args.extend(["--until".to_owned(), walltime::rfc3339(until)]);
        }
        let mut env = self.environment(mpiexecs);
        env.insert(survivors::VARIABLE.to_owned(), self.id(start));
        env.insert("BEAMPILOT_SITE".to_owned(), self.profile.name.to_owned());
        env.extend(left_out.text().map(|text| (left_out::VARIABLE.to_owned(), text)));
        self.line(hosts, self.per_host, Some(self.depth), args, env)
    }

    /// A helper's command line: one process a host. It carries no launch id, or it would count as a survivor.
    pub fn helper(&self, hosts: &[String], args: Vec<String>, mpiexecs: u32) -> Line {
        self.line(hosts, 1, None, args, self.environment(mpiexecs))
    }

    fn environment(&self, mpiexecs: u32) -> BTreeMap<String, String> {
        let mut env: BTreeMap<String, String> =
            self.profile.env.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        if self.profile.counts_pid_base {
            env.insert("MPICH_OFI_CXI_PID_BASE".to_owned(), mpiexecs.to_string());
        }
        // Open MPI refuses root, which in a container may be the only user there is.
        if self.launcher == Launcher::OpenMpi && rustix::process::geteuid().is_root() {
            for name in ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] {
                env.insert(name.to_owned(), "1".to_owned());
            }
        }
        env
    }

    fn line(
        &self,
        hosts: &[String],
        per_host: usize,
        depth: Option<usize>,
        mut rest: Vec<String>,
        env: BTreeMap<String, String>,
    ) -> Line {
        if self.launcher == Launcher::Direct {
            return Line { program: self.beampilot.clone(), args: rest, env, hostfile: None };
        }
        let hostfile = std::env::temp_dir().join(format!("beampilot-{}-{}.hosts", self.launch, hosts_tag(hosts)));
        let exported: Vec<String> = env.keys().cloned().collect();
        let gpus = !self.profile.gpus.is_empty();
        let place = Placement { hosts, per_host, hostfile: &hostfile, depth, gpus, exported: &exported };
        let mut args = self.launcher.options(&place);
        args.push(self.beampilot.display().to_string());
        args.append(&mut rest);
        let text = hosts.iter().map(|h| format!("{h}\n")).collect();
        let hostfile = (self.launcher == Launcher::Pals).then_some((hostfile, text));
        Line { program: self.mpiexec.clone(), args, env, hostfile }
    }
}

/// Tells lists of hosts apart in a file name: several helpers may run at once.
fn hosts_tag(hosts: &[String]) -> String {
    format!("{:08x}", crc32fast::hash(hosts.join(",").as_bytes()))
}

impl Line {
    /// Ready to be spawned. Writes the file of hosts.
    ///
    /// # Errors
    /// The temporary folder's.
    pub fn command(&self) -> std::io::Result<Command> {
        if let Some((file, text)) = &self.hostfile {
            std::fs::write(file, text)?;
        }
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env_remove(survivors::VARIABLE)
            .env_remove(left_out::VARIABLE)
            .env_remove("BEAMPILOT_SITE")
            .envs(&self.env);
        Ok(command)
    }

    /// For people.
    pub fn shown(&self) -> String {
        mpiexec::shown(OsStr::new(&self.program), &self.args)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // The files of hosts of this launch; they are small, but a node's /tmp is shared by a day's jobs.
        let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
        let prefix = format!("beampilot-{}-", self.launch);
        for entry in entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(site: &str, launcher: Launcher) -> Plan {
        Plan {
            profile: Profile::named(site).unwrap(),
            launcher,
            mpiexec: "mpiexec".into(),
            beampilot: "/p/beampilot".into(),
            campaign: "c.toml".into(),
            run_args: vec!["--once".into()],
            per_host: 4,
            depth: 8,
            until: Some(SystemTime::UNIX_EPOCH),
            launch: "test-plan".into(),
        }
    }

    #[test]
    fn a_polaris_run_is_what_the_guide_says() {
        let hosts = ["a".to_owned(), "b".to_owned()];
        let plan = plan("polaris", Launcher::Pals);
        let mut left_out = LeftOut::default();
        left_out.add("b", 1);
        let line = plan.run(&hosts, 2, 5, &left_out);
        let args = line.args.join(" ");
        assert!(args.starts_with("-n 8 --ppn 4 --hostfile ") && args.contains("--depth=8 --cpu-bind depth"), "{args}");
        assert!(args.ends_with("/p/beampilot run c.toml --once --until 1970-01-01T00:00:00Z"), "{args}");
        for (name, value) in [
            ("BEAMPILOT_LAUNCH", "test-plan.2"),
            ("BEAMPILOT_SITE", "polaris"),
            ("BEAMPILOT_LEFT_OUT", "b:1"),
            ("MPICH_OFI_CXI_PID_BASE", "5"),
            ("MPICH_GPU_SUPPORT_ENABLED", "0"),
            ("HDF5_USE_FILE_LOCKING", "FALSE"),
            ("TMPDIR", "/tmp"),
            ("https_proxy", "http://proxy.alcf.anl.gov:3128"),
        ] {
            assert_eq!(line.env.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(line.hostfile.unwrap().1, "a\nb\n");
        let helper = plan.helper(&hosts, vec!["host-check".into()], 6);
        assert!(!helper.env.contains_key("BEAMPILOT_LAUNCH"), "a helper is no survivor");
        assert!(helper.args.join(" ").starts_with("-n 2 --ppn 1 "));
    }
}
