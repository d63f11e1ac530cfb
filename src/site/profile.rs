//! Site profiles: how ranks are started at a place, bound to its cores and GPUs, and what its queues allow.
//!
//! Contract
//! - Facts only, as constants; nothing here runs anything or reads more than the environment it is given.
//! - The GPU of a local rank and the cores of a GPU come from the same table, so that they cannot disagree.
//! - `--site` wins over detection; a place nobody knows is a workstation.

use super::mpiexec::Launcher;
use std::time::Duration;

/// A queue's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: &'static str,
    /// Fewest and most nodes.
    pub nodes: (usize, usize),
    /// Shortest and longest walltime.
    pub walltime: (Duration, Duration),
}

/// A place.
#[derive(Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its name, as `--site` takes it.
    pub name: &'static str,
    /// How ranks are started; `None` means that the mpiexec found is asked who it is.
    pub launcher: Option<Launcher>,
    /// The launcher's command.
    pub command: &'static str,
    /// GPUs (or tiles) by local rank: the rank's device, as the variable wants it, and the cores next to it.
    pub gpus: &'static [(&'static str, &'static str)],
    /// The variable that names a rank's GPU; `None` where the launcher does it.
    pub gpu_variable: Option<&'static str>,
    /// Cores for each rank.
    pub depth: usize,
    /// Environment of every rank.
    pub env: &'static [(&'static str, &'static str)],
    /// Cray's network gives every mpiexec on the same nodes ports of its own only when this grows.
    pub counts_pid_base: bool,
    /// Queues with limits worth checking.
    pub queues: &'static [Queue],
}

const MINUTE: u64 = 60;
const HOUR: u64 = 3600;

const fn queue(name: &'static str, nodes: (usize, usize), shortest: u64, longest: u64) -> Queue {
    Queue { name, nodes, walltime: (Duration::from_secs(shortest), Duration::from_secs(longest)) }
}

/// What every rank gets everywhere: locks fail on Lustre, and sockets want short paths.
const COMMON: &[(&str, &str)] = &[("HDF5_USE_FILE_LOCKING", "FALSE"), ("TMPDIR", "/tmp")];

const PROXY: &str = "http://proxy.alcf.anl.gov:3128";
const NO_PROXY: &str =
    "admin,polaris-adminvm-01,localhost,*.cm.polaris.alcf.anl.gov,polaris-*,*.polaris.alcf.anl.gov,*.alcf.anl.gov";

/// Only control messages travel, so MPI has no business with GPU memory.
const ALCF: &[(&str, &str)] = &[
    ("HDF5_USE_FILE_LOCKING", "FALSE"),
    ("TMPDIR", "/tmp"),
    ("MPICH_GPU_SUPPORT_ENABLED", "0"),
    ("http_proxy", PROXY),
    ("https_proxy", PROXY),
    ("no_proxy", NO_PROXY),
];
const CRAY: &[(&str, &str)] =
    &[("HDF5_USE_FILE_LOCKING", "FALSE"), ("TMPDIR", "/tmp"), ("MPICH_GPU_SUPPORT_ENABLED", "0")];

/// Every place, the fallback last.
pub const ALL: [Profile; 6] = [
    Profile {
        name: "polaris",
        launcher: Some(Launcher::Pals),
        command: "mpiexec",
        // Reversed: local rank 0 gets the first eight cores, and those sit next to GPU 3.
        gpus: &[("3", "0-7,32-39"), ("2", "8-15,40-47"), ("1", "16-23,48-55"), ("0", "24-31,56-63")],
        gpu_variable: Some("CUDA_VISIBLE_DEVICES"),
        depth: 8,
        env: ALCF,
        counts_pid_base: true,
        queues: &[
            queue("demand", (1, 56), 5 * MINUTE, HOUR),
            queue("debug", (1, 2), 5 * MINUTE, HOUR),
            queue("debug-scaling", (1, 10), 5 * MINUTE, HOUR),
            queue("preemptable", (1, 10), 5 * MINUTE, 72 * HOUR),
            queue("prod", (10, 496), 5 * MINUTE, 24 * HOUR),
        ],
    },
    Profile {
        name: "aurora",
        launcher: Some(Launcher::Pals),
        command: "mpiexec",
        gpus: &[
            ("0.0", ""),
            ("0.1", ""),
            ("1.0", ""),
            ("1.1", ""),
            ("2.0", ""),
            ("2.1", ""),
            ("3.0", ""),
            ("3.1", ""),
            ("4.0", ""),
            ("4.1", ""),
            ("5.0", ""),
            ("5.1", ""),
        ],
        gpu_variable: Some("ZE_AFFINITY_MASK"),
        depth: 8,
        env: ALCF,
        counts_pid_base: true,
        queues: &[],
    },
    Profile {
        name: "crux",
        launcher: Some(Launcher::Pals),
        command: "mpiexec",
        gpus: &[],
        gpu_variable: None,
        depth: 64,
        env: ALCF,
        counts_pid_base: true,
        queues: &[queue("demand", (1, 64), 5 * MINUTE, HOUR)],
    },
    Profile {
        name: "perlmutter",
        launcher: Some(Launcher::Srun),
        command: "srun",
        gpus: &[("0", ""), ("1", ""), ("2", ""), ("3", "")],
        gpu_variable: None,
        depth: 32,
        env: CRAY,
        counts_pid_base: false,
        queues: &[],
    },
    Profile {
        name: "frontier",
        launcher: Some(Launcher::Srun),
        command: "srun",
        gpus: &[("0", ""), ("1", ""), ("2", ""), ("3", ""), ("4", ""), ("5", ""), ("6", ""), ("7", "")],
        gpu_variable: None,
        depth: 7,
        env: CRAY,
        counts_pid_base: false,
        queues: &[],
    },
    Profile {
        name: "workstation",
        launcher: None,
        command: "mpiexec",
        gpus: &[],
        gpu_variable: None,
        depth: 1,
        env: COMMON,
        counts_pid_base: false,
        queues: &[],
    },
];

impl Profile {
    /// The place of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|p| p.name == name)
    }

    /// Where are we? From the variables sites set, then from the host's name.
    pub fn detect(env: &dyn Fn(&str) -> Option<String>, host: &str) -> &'static Self {
        let says = |name: &str| env(name).unwrap_or_default().to_ascii_lowercase();
        // `PBS_O_HOST` names the login node: `polaris-login-02`.
        let words =
            [says("BEAMPILOT_SITE"), says("NERSC_HOST"), says("LMOD_SYSTEM_NAME"), says("PBS_O_HOST"), host.to_owned()];
        words.iter().find_map(|word| ALL.iter().find(|p| word.contains(p.name))).unwrap_or(&ALL[ALL.len() - 1])
    }

    /// Ranks on a node when nobody says how many: one for each GPU, or one.
    pub fn ranks_per_node(&self) -> usize {
        self.gpus.len().max(1)
    }

    /// The GPU of a local rank, and its cores (empty when unknown).
    pub fn gpu(&self, local_rank: usize) -> Option<(&'static str, &'static str)> {
        self.gpus.get(local_rank % self.gpus.len().max(1)).copied()
    }

    /// What is wrong with that many nodes for that long in a queue, in words.
    pub fn exceeds(&self, queue: &str, nodes: usize, walltime: Option<Duration>) -> Option<String> {
        let limits = self.queues.iter().find(|q| q.name == queue)?;
        let (fewest, most) = limits.nodes;
        if !(fewest..=most).contains(&nodes) {
            return Some(format!("queue {queue} of {} takes {fewest} to {most} nodes, not {nodes}", self.name));
        }
        let (shortest, longest) = limits.walltime;
        let walltime = walltime.filter(|w| !(shortest..=longest).contains(w))?;
        let shown = humantime::format_duration(walltime);
        let range = (humantime::format_duration(shortest), humantime::format_duration(longest));
        Some(format!("queue {queue} of {} takes {} to {}, not {shown}", self.name, range.0, range.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gpus_of_polaris_are_reversed() {
        let polaris = Profile::named("polaris").unwrap();
        assert_eq!(polaris.gpu(0), Some(("3", "0-7,32-39")));
        assert_eq!(polaris.gpu(3), Some(("0", "24-31,56-63")));
        for rank in 0..8 {
            assert_eq!(polaris.gpu(rank).unwrap().0, (3 - rank % 4).to_string());
            let first = polaris.gpu(rank).unwrap().1.split('-').next().unwrap().parse::<usize>().unwrap();
            assert_eq!(first, rank % 4 * polaris.depth, "--cpu-bind depth gives rank {rank} these cores");
        }
        assert_eq!(Profile::named("crux").unwrap().gpu(1), None);
    }

    #[test]
    fn places_are_recognised() {
        let at = |pairs: &'static [(&str, &str)], host: &str| {
            let env = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            Profile::detect(&env, host).name
        };
        assert_eq!(at(&[], "desk"), "workstation");
        assert_eq!(at(&[("PBS_O_HOST", "polaris-login-02.hsn")], "x3004c0s1b0n0"), "polaris");
        assert_eq!(at(&[("NERSC_HOST", "perlmutter")], "nid001234"), "perlmutter");
        assert_eq!(at(&[("LMOD_SYSTEM_NAME", "frontier")], "frontier00123"), "frontier");
        assert_eq!(at(&[("BEAMPILOT_SITE", "crux"), ("PBS_O_HOST", "polaris-login-02")], "x"), "crux");
    }

    #[test]
    fn the_demand_queue_is_limited() {
        let polaris = Profile::named("polaris").unwrap();
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(polaris.exceeds("demand", 56, hour), None);
        assert!(polaris.exceeds("demand", 57, hour).unwrap().contains("1 to 56 nodes"));
        assert!(polaris.exceeds("demand", 1, Some(Duration::from_secs(60))).unwrap().contains("5m to 1h"));
        assert_eq!(polaris.exceeds("unheard-of", 5000, None), None);
    }
}
