//! A campaign in a temporary folder, a way to start pilots, and questions about what they left.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How pilots are started.
#[derive(Debug, Clone, Copy)]
pub enum Launcher {
    Embedded,
    /// `$BEAMPILOT_MPIEXEC -n N`.
    Mpi(usize),
}

/// The MPI launcher, when there is one.
pub fn mpi(ranks: usize) -> Option<Launcher> {
    std::env::var("BEAMPILOT_MPIEXEC").is_ok_and(|m| !m.is_empty()).then_some(Launcher::Mpi(ranks))
}

pub const BIN: &str = env!("CARGO_BIN_EXE_beampilot");
/// Longest wait for anything; generous, because other tests share two cores.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Rig {
    pub dir: tempfile::TempDir,
    launcher: Launcher,
}

/// A running pilot with everything it started; killed when dropped.
pub struct Pilot {
    pub child: Child,
    log: PathBuf,
    mark: String,
}

/// Marks what belongs to one pilot.
const MARK: &str = "BEAMPILOT_TEST_PILOT";

/// What a process of a pilot is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Rank,
    Keeper,
    Executor,
    /// mpiexec, and what it starts to start ranks.
    Launcher,
}

impl Pilot {
    /// The pilot's living processes of that role.
    pub fn pids(&self, role: Role) -> Vec<u32> {
        let word = match role {
            Role::Rank => "run",
            Role::Keeper => "keeper",
            Role::Executor => "executor",
            Role::Launcher => {
                let is_launcher = |pid: &u32| {
                    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                    ["mpiexec", "mpirun", "orterun", "prte"].iter().any(|l| name.starts_with(l))
                };
                return descendants(self.child.id()).into_iter().filter(is_launcher).collect();
            }
        };
        let has_role = |pid: &u32| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split('\0');
            words.next().is_some_and(|w| w.ends_with("beampilot")) && words.next() == Some(word)
        };
        descendants(self.child.id()).into_iter().filter(has_role).filter(|pid| is_alive(*pid)).collect()
    }

    /// SIGKILL to launcher, ranks and all, those included that a dead launcher left behind.
    pub fn kill(&mut self) {
        signal(&descendants(self.child.id()), "KILL");
        let _ = self.child.wait();
        let mark = format!("{MARK}={}", self.mark).into_bytes();
        let is_marked = |pid: &u32| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|b| *b == 0).any(|entry| entry == mark)
        };
        let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        signal(&all.filter(is_marked).collect::<Vec<u32>>(), "KILL");
    }

    /// SIGTERM to the beampilot processes, as a scheduler does; returns the exit code.
    pub fn drain(&mut self) -> Option<i32> {
        let is_beampilot = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "beampilot")
        };
        let ranks: Vec<u32> = descendants(self.child.id()).into_iter().filter(is_beampilot).collect();
        signal(&ranks, "TERM");
        self.exit_code()
    }

    /// SIGTERM to the process that was started, alone.
    pub fn term(&self) {
        signal(&[self.child.id()], "TERM");
    }

    /// SIGTERM to it and to everything that it started, as PBS does at walltime.
    pub fn term_all(&self) {
        signal(&descendants(self.child.id()), "TERM");
    }

    /// Waits for the end.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.exit_code_within(PATIENCE)
    }

    /// Waits for the end, so long.
    pub fn exit_code_within(&mut self, longest: Duration) -> Option<i32> {
        let end = Instant::now() + longest;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the pilot does not end; its log:\n{}", self.log());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
        if std::thread::panicking() {
            eprintln!("--- pilot log\n{}", self.log());
        }
    }
}

/// A process and everything below it. Open MPI puts ranks into process groups of their own, so groups do not tell.
pub fn descendants(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = threads.map(|t| std::fs::read_to_string(t.path().join("children")).unwrap_or_default());
    let children: Vec<u32> =
        children.flat_map(|c| c.split_whitespace().flat_map(str::parse).collect::<Vec<_>>()).collect();
    children.into_iter().flat_map(descendants).chain([pid]).collect()
}

/// State letter and parent.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// There, and no zombie.
pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

pub fn parent(pid: u32) -> Option<u32> {
    Some(stat(pid)?.1)
}

pub fn signal(pids: &[u32], name: &str) {
    let pids = pids.iter().map(u32::to_string);
    let _ = Command::new("kill").arg(format!("-{name}")).args(pids).stderr(Stdio::null()).status();
}

impl Rig {
    /// A campaign with one stream `s`; `stream` is added to its table.
    pub fn new(launcher: Launcher, stream: &str) -> Self {
        let rig = Self { dir: tempfile::tempdir().unwrap(), launcher };
        std::fs::create_dir_all(rig.path("in")).unwrap();
        rig.campaign(stream);
        rig
    }

    pub fn campaign(&self, stream: &str) {
        let settled =
            if stream.contains("complete") { "" } else { "complete = { rule = \"settled\", quiet = \"500ms\" }\n" };
        let text = format!(
            "[campaign]\nname = \"test\"\nstate = \"state\"\n\n[[stream]]\nname = \"s\"\nwatch = \"in\"\n\
             pattern = \"**/*.h5\"\nsince = \"all\"\ntechnique = \"tomography\"\noutput = \"out\"\n{settled}{stream}\n"
        );
        std::fs::write(self.path("campaign.toml"), text).unwrap();
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = match self.launcher {
            Launcher::Embedded => Command::new(BIN),
            Launcher::Mpi(ranks) => {
                let mut c = Command::new(std::env::var("BEAMPILOT_MPIEXEC").unwrap());
                c.args(["-n", &ranks.to_string(), BIN]);
                c
            }
        };
        command.arg("run").arg(self.path("campaign.toml")).args(args);
        command
    }

    /// Starts a pilot.
    pub fn start(&self, args: &[&str]) -> Pilot {
        let mut command = self.command(args);
        self.logged(&mut command, true)
    }

    /// The same, with further variables.
    pub fn start_with(&self, args: &[&str], variables: &[(&str, &str)]) -> Pilot {
        let mut command = self.command(args);
        command.envs(variables.iter().copied());
        self.logged(&mut command, true)
    }

    /// Starts any command as a pilot's; its standard output is its own.
    pub fn spawn(&self, mut command: Command) -> Pilot {
        self.logged(&mut command, false)
    }

    fn logged(&self, command: &mut Command, stdout: bool) -> Pilot {
        static N: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = N.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = self.path(&format!("pilot-{n}.log"));
        let file = std::fs::File::create(&log).unwrap();
        if stdout {
            command.stdout(file.try_clone().unwrap());
        }
        let mark = log.display().to_string();
        let child = command.env(MARK, &mark).stdin(Stdio::null()).stderr(file).spawn().unwrap();
        Pilot { child, log, mark }
    }

    /// Runs a pilot to its end; returns exit code and log.
    pub fn once(&self) -> (Option<i32>, String) {
        let mut pilot = self.start(&["--once"]);
        let code = pilot.exit_code();
        (code, pilot.log())
    }

    /// Another subcommand, in this process's environment.
    pub fn beampilot(&self, args: &[&str]) -> Output {
        Command::new(BIN).args(args).current_dir(self.dir.path()).output().unwrap()
    }

    /// A synthetic scan; `extra` are further options.
    pub fn synth(&self, name: &str, extra: &[&str]) {
        let out = self.path(name);
        std::fs::create_dir_all(out.parent().unwrap()).unwrap();
        // `synth` replaces nothing; a rewritten scan comes by a rename.
        let made = if out.exists() { out.with_file_name(".again") } else { out.clone() };
        let mut args = vec!["-q", "synth", "tomography", made.to_str().unwrap()];
        for (option, value) in [("--size", "64"), ("--angles", "90"), ("--slices", "8")] {
            if !extra.contains(&option) {
                args.extend([option, value]);
            }
        }
        args.extend(extra);
        let output = Command::new(BIN).args(&args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        if made != out {
            std::fs::rename(&made, &out).unwrap();
        }
    }

    pub fn status(&self) -> Option<Value> {
        let output = self.beampilot(&["-q", "status", "campaign.toml", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Bundle paths by scan name, for everything published.
    pub fn published(&self) -> BTreeMap<String, Vec<String>> {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let status = self.status().unwrap_or_default();
        for p in status["published"].as_array().into_iter().flatten() {
            let text = |key: &str| p[key].as_str().unwrap().to_owned();
            found.entry(text("scan")).or_default().push(text("bundle"));
        }
        found
    }

    /// Reasons by scan name, for everything in quarantine.
    pub fn quarantined(&self) -> BTreeMap<String, String> {
        let status = self.status().unwrap_or_default();
        let text = |q: &Value, key: &str| q[key].as_str().unwrap().to_owned();
        status["quarantined"].as_array().into_iter().flatten().map(|q| (text(q, "scan"), text(q, "reason"))).collect()
    }

    /// Waits until `done` says so.
    pub fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < end, "never: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn wait_published(&self, scan: &str, versions: usize) {
        self.wait(&format!("{scan} is published {versions} times"), || {
            self.published().get(scan).is_some_and(|v| v.len() >= versions)
        });
    }

    /// Everything in the output but its marker.
    pub fn in_output(&self) -> usize {
        let names = std::fs::read_dir(self.path("out/s")).unwrap().flatten().map(|e| e.file_name());
        names.filter(|n| n != ".campaign-state").count()
    }

    /// No staging, no fenced folder, no temporary file is left in the outputs.
    pub fn assert_clean(&self) {
        let left: Vec<_> = std::fs::read_dir(self.path("out/s"))
            .unwrap()
            .flatten()
            .map(|e| e.file_name().into_string().unwrap())
            .filter(|n| n.starts_with('.') && n != ".campaign-state")
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// `sha256sum -c` of a bundle.
pub fn assert_checksums(bundle: &Path) {
    let output = Command::new("sha256sum").args(["-c", "--strict", "SHA256SUMS"]).current_dir(bundle).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let listed = String::from_utf8_lossy(&output.stdout).lines().count();
    assert_eq!(listed + 1, files(bundle), "every file but SHA256SUMS is listed");
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|e| if e.file_type().unwrap().is_dir() { files(&e.path()) } else { 1 })
        .sum()
}

pub fn manifest(bundle: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(bundle.join("manifest.json")).unwrap()).unwrap()
}

/// `/exchange/data` of an HDF5 file.
pub fn volume(file: &Path) -> ndarray::Array3<f32> {
    hdf5::File::open(file).unwrap().dataset("/exchange/data").unwrap().read().unwrap()
}
