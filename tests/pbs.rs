//! The job scripts, run by bash with PBS's environment imitated: a file of hosts that repeats them, `module`, `qstat` and
//! `qsub` that answer as PBS does, and an mpiexec that writes down how it was called.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const BIN: &str = env!("CARGO_BIN_EXE_beampilot");

struct Job {
    dir: tempfile::TempDir,
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pbs").join(name)
}

fn executable(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

impl Job {
    /// `stime` is when the scheduler says that the job started; it has an hour.
    fn new(stime: &str) -> Self {
        let job = Self { dir: tempfile::tempdir().unwrap() };
        let at = |name: &str| job.dir.path().join(name);
        let log = at("calls").display().to_string();
        std::fs::create_dir_all(at("work/in")).unwrap();
        let campaign = "[campaign]\nname = \"t\"\nstate = \"state\"\n\n[[stream]]\nname = \"s\"\nwatch = \"in\"\n\
                        pattern = \"*.h5\"\ntechnique = \"tomography\"\noutput = \"out\"\n";
        std::fs::write(at("work/campaign.toml"), campaign).unwrap();
        std::fs::create_dir_all(at("home/bin")).unwrap();
        std::os::unix::fs::symlink(BIN, at("home/bin/beampilot")).unwrap();
        // Hosts repeat for each chunk's slot. None is this one, so that every helper goes through mpiexec, too.
        std::fs::write(at("nodes"), "x1.hsn\nx1.hsn\nx2.hsn\nx2.hsn\nx1.hsn\n").unwrap();
        let qstat = format!(
            "#!/bin/sh\necho \"qstat $* TZ=$TZ\" >>{log}\ncat <<'E'\n{{\"Jobs\":{{\"7.pbs\":{{\"Resource_List\":\
             {{\"walltime\":\"01:00:00\"}},\"stime\":\"{stime}\"}}}}}}\nE\n"
        );
        executable(&at("bin/qstat"), &qstat);
        let qsub = format!("#!/bin/sh\necho \"qsub $*\" >>{log}\nn=$(grep -c ^qsub {log})\necho $n.pbs\n");
        executable(&at("bin/qsub"), &qsub);
        // Answers for every host in the file of hosts; ranks end with 78, after which nothing is started again.
        let mpiexec = format!(
            "#!/bin/bash\necho \"mpiexec $*\" >>{log}\nprev=; for a; do [ \"$prev\" = --hostfile ] && f=$a; prev=$a; done\n\
             case \" $* \" in\n\
             *' host-check '*) while read -r h; do sed \"s/HOST/$h/\" {}; done <\"$f\" ;;\n\
             *' survivors '*) while read -r h; do echo '{{\"host\":\"'$h'\",\"found\":[],\"left\":[]}}'; done <\"$f\" ;;\n\
             *) cp \"$f\" {}; env >{}; exit 78 ;;\nesac\n",
            at("fit.json").display(),
            at("hosts-of-run").display(),
            at("env-of-run").display()
        );
        executable(&at("bin/mpiexec"), &mpiexec);
        let fit = Command::new(BIN).args(["-q", "host-check", "--json"]).output().unwrap();
        let mut fit: serde_json::Value = serde_json::from_slice(&fit.stdout).unwrap();
        fit["host"] = "HOST".into();
        std::fs::write(at("fit.json"), format!("{fit}\n")).unwrap();
        job
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bash(&self, script: &Path, args: &[&str]) -> Output {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.arg(script).args(args).current_dir(self.path("work")).env("PATH", path);
        for name in ["BEAMPILOT_MPIEXEC", "BEAMPILOT_SITE", "BEAMPILOT_LAUNCH", "SLURM_JOB_NODELIST"] {
            command.env_remove(name);
        }
        // `module` is a function in every login shell there.
        command.env("BASH_FUNC_module%%", format!("() {{ echo \"module $*\" >>{}; }}", self.path("calls").display()));
        command
            .env("PBS_JOBID", "7.pbs")
            .env("PBS_NODEFILE", self.path("nodes"))
            .env("PBS_O_WORKDIR", self.path("work"));
        command.env("BEAMPILOT_HOME", self.path("home")).output().unwrap()
    }

    fn calls(&self, program: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        let prefix = format!("{program} ");
        text.lines().filter_map(|l| l.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let text = std::fs::read_to_string(self.path("env-of-run")).unwrap_or_default();
        text.lines().filter_map(|l| l.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
    }
}

/// `Wed Nov 25 12:00:00 2026` now, in UTC, as qstat writes it under `TZ=UTC0`.
fn now_as_qstat() -> String {
    let output =
        Command::new("date").env("TZ", "UTC0").env("LC_ALL", "C").arg("+%a %b %e %H:%M:%S %Y").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_directives_are_those_the_site_asks_for() {
    for (name, queue) in [("polaris-demand.pbs", "demand"), ("polaris-debug.pbs", "debug")] {
        let text = std::fs::read_to_string(script(name)).unwrap();
        let mut lines = text.lines();
        assert!(lines.next().unwrap().starts_with("#!/bin/bash"), "{name}");
        // A comment inside the block ends it at some sites.
        let block: Vec<&str> = lines.by_ref().take_while(|l| l.starts_with("#PBS ")).collect();
        assert!(!lines.any(|l| l.contains("#PBS")), "{name}: a directive after the block");
        let queue = format!("#PBS -q {queue}");
        for wanted in [queue.as_str(), "#PBS -l filesystems=home:eagle", "#PBS -k doe"] {
            assert!(block.contains(&wanted), "{name}: no {wanted}");
        }
        assert!(block.iter().any(|l| l.starts_with("#PBS -A ")), "{name}");
        let walltime = block.iter().find_map(|l| l.strip_prefix("#PBS -l walltime=")).expect(name);
        assert!(("00:05:00"..="01:00:00").contains(&walltime), "{name}: {walltime}");
        let nodes = block.iter().find_map(|l| l.strip_prefix("#PBS -l select=")?.split(':').next()).expect(name);
        assert!((1..=56).contains(&nodes.parse::<u32>().unwrap()), "{name}: {nodes}");
        // An output folder that is missing holds the job for ever.
        assert!(!block.iter().any(|l| l.starts_with("#PBS -o") || l.starts_with("#PBS -e")), "{name}");
    }
}

#[test]
fn a_demand_job_runs_on_every_node_as_the_guide_says() {
    let job = Job::new(&now_as_qstat());
    let output = job.bash(&script("polaris-demand.pbs"), &[]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "the code of the ranks is the job's; {log}");
    assert_eq!(job.calls("module")[0], "use /soft/modulefiles");
    assert!(job.calls("qstat")[0].starts_with("-f -F json 7.pbs TZ=UTC0"), "{:?}", job.calls("qstat"));
    let calls = job.calls("mpiexec");
    let runs: Vec<&String> = calls.iter().filter(|c| c.contains(" run ")).collect();
    assert_eq!(runs.len(), 1, "78 is never tried again: {calls:?}");
    let run = runs[0];
    assert!(run.starts_with("-n 8 --ppn 4 --hostfile /"), "{run}");
    assert!(run.contains(" --depth=8 --cpu-bind depth "), "{run}");
    assert!(run.contains("/work/campaign.toml --until 20"), "{run}");
    assert!(!run.contains("no-abort"), "{run}");
    assert_eq!(std::fs::read_to_string(job.path("hosts-of-run")).unwrap(), "x1.hsn\nx2.hsn\n");
    assert!(
        calls[0].starts_with("-n 2 --ppn 1 ") && calls[0].contains(" host-check "),
        "nodes are checked first: {calls:?}"
    );
    let env = job.environment();
    for (name, value) in [
        ("BEAMPILOT_SITE", "polaris"),
        ("HDF5_USE_FILE_LOCKING", "FALSE"),
        ("TMPDIR", "/tmp"),
        ("MPICH_GPU_SUPPORT_ENABLED", "0"),
        ("MPICH_OFI_CXI_PID_BASE", "1"),
        ("http_proxy", "http://proxy.alcf.anl.gov:3128"),
    ] {
        assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(env["BEAMPILOT_LAUNCH"].ends_with(".1"), "{}", env["BEAMPILOT_LAUNCH"]);
}

#[test]
fn a_job_that_is_nearly_over_starts_nothing() {
    let job = Job::new("Wed Nov 25 12:00:00 2020");
    let output = job.bash(&script("polaris-debug.pbs"), &[]);
    assert_eq!(output.status.code(), Some(75), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(job.calls("mpiexec").iter().all(|c| !c.contains(" run ")));
}

#[test]
fn a_rank_gets_the_gpu_beside_its_cores() {
    for rank in 0..4 {
        let output = Command::new(BIN)
            .args(["-q", "host-check", "--json"])
            .env("BEAMPILOT_SITE", "polaris")
            .env("PALS_LOCAL_RANKID", rank.to_string())
            .env("CUDA_VISIBLE_DEVICES", "0,1,2,3")
            .env_remove("OMPI_COMM_WORLD_LOCAL_RANK")
            .output()
            .unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["bound_to"], format!("CUDA_VISIBLE_DEVICES={}", 3 - rank));
    }
}

#[test]
fn a_shift_is_a_chain_that_outlives_its_links() {
    let job = Job::new(&now_as_qstat());
    let output = job.bash(&script("polaris-shift.sh"), &["campaign.toml", "3", "202611252000", "-A", "proj"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1.pbs\n2.pbs\n3.pbs\n");
    let calls = job.calls("qsub");
    assert!(calls[0].starts_with("-a 202611252000.00 -v CAMPAIGN=/"), "{calls:?}");
    assert!(calls[1].starts_with("-a 202611252100.00 -W depend=afterany:1.pbs -v CAMPAIGN=/"), "{calls:?}");
    assert!(calls[2].starts_with("-a 202611252200.00 -W depend=afterany:2.pbs "), "{calls:?}");
    assert!(calls.iter().all(|c| c.contains("-A proj") && c.ends_with("/pbs/polaris-demand.pbs")), "{calls:?}");
    let output = job.bash(&script("polaris-shift.sh"), &["campaign.toml", "1"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(job.calls("qsub")[3].starts_with("-v CAMPAIGN=/"), "now needs no time: {:?}", job.calls("qsub"));
}

#[test]
fn a_workstation_tries_again_only_what_may_succeed() {
    let job = Job::new(&now_as_qstat());
    std::fs::write(job.path("work/campaign.toml"), "nonsense").unwrap();
    let output = job.bash(&script("workstation.sh"), &["campaign.toml"]);
    assert_eq!(output.status.code(), Some(78), "{}", String::from_utf8_lossy(&output.stderr));
    let script = "n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) >n; [ $n -lt 2 ] && exit 75; echo \"$*\"; exit 0";
    std::fs::remove_file(job.path("home/bin/beampilot")).unwrap();
    executable(&job.path("home/bin/beampilot"), &format!("#!/bin/bash\n{script}\n"));
    let text = std::fs::read_to_string(self::script("workstation.sh")).unwrap().replace(":-60", ":-0");
    executable(&job.path("again.sh"), &text);
    let output = job.bash(&job.path("again.sh"), &["campaign.toml", "--once"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "launch campaign.toml --once --site workstation\n");
}
