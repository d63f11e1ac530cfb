//! The technique without a pilot: plans, programs, bundles and faults in a temporary folder.

use super::*;
use crate::arrivals::scan::{FileStamp, Scan};
use crate::technique::{JobContext, Resources, TaskRecord};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

pub(super) struct Bench {
    dir: tempfile::TempDir,
    job: JobContext,
}

impl Bench {
    pub(super) fn new(recipe: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("staging")).unwrap();
        std::fs::create_dir(at("in")).unwrap();
        std::fs::write(at("in/a.dat"), "hello").unwrap();
        let meta = std::fs::metadata(at("in/a.dat")).unwrap();
        let scan = Scan {
            stream: "s".into(),
            name: "a.dat".into(),
            root: at("in"),
            members: vec![FileStamp::from_metadata("a.dat", &meta)],
            ..Scan::default()
        };
        let recipe = Command.recipe_at(&recipe.parse().unwrap(), dir.path()).unwrap();
        let task_limit_s = Command.task_limit_s(&recipe);
        let recipe = recipe.to_string();
        let job = JobContext {
            job: 1,
            key: "k".into(),
            scan,
            technique: "command".into(),
            recipe,
            staging: at("staging"),
            scratch: None,
            campaign: "c".into(),
            resources: Resources { workers: 2, threads: 3, task_memory: 1 << 30 },
            carry: Vec::new(),
            epoch: 0,
            task_limit_s,
        };
        Self { dir, job }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn script(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn ctx(&self, task: TaskSpec, attempt: u64) -> TaskContext {
        let job = Arc::new(self.job.clone());
        TaskContext { job, task, attempt, host: "h".into(), rank: 0, cancelled: Default::default() }
    }

    pub(super) fn some_task(&self) -> TaskContext {
        let kind = TaskKind::Stage;
        self.ctx(TaskSpec { label: "t".into(), kind, params: Vec::new(), cost: 1.0, bytes_in: 0 }, 1)
    }

    fn plan(&self) -> Result<Plan, Fault> {
        let task = TaskSpec { label: "plan".into(), kind: TaskKind::Plan, params: Vec::new(), cost: 1.0, bytes_in: 0 };
        // Every try has a number of its own.
        static TRIES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1000);
        Command.plan(&self.ctx(task, TRIES.fetch_add(1, std::sync::atomic::Ordering::Relaxed)))
    }

    fn task(&self, task: &TaskSpec, attempt: u64) -> Result<TaskOutput, Fault> {
        let ctx = self.ctx(task.clone(), attempt);
        Command.store(&ctx, Command.compute(&ctx, Command.load(&ctx)?)?)
    }

    /// Everything, each task in its second try.
    fn all(&mut self) -> Result<TaskOutput, Fault> {
        let plan = self.plan()?;
        for task in plan.preview.iter().chain(&plan.stages[0].tasks) {
            let output = self.task(task, 2)?;
            let (label, kind) = (task.label.clone(), task.kind);
            self.job.carry.push(TaskRecord { stage: 1, label, kind, host: "h".into(), rank: 0, output });
        }
        self.task(&plan.finish, 9)
    }

    fn files(&self, output: &TaskOutput) -> BTreeMap<String, String> {
        let read = |f: &crate::technique::OutputFile| {
            let path = self.job.staging.join(&f.path);
            assert_eq!(crate::formats::part::sha256_of(&path).unwrap(), f.sha256);
            (f.path.clone(), std::fs::read_to_string(path).unwrap())
        };
        output.files.iter().map(read).collect()
    }
}

#[test]
fn one_program_a_scan() {
    let mut b = Bench::new("run = [\"./go\", \"{scan}\", \"{out}/sub/x\"]");
    b.script(
        "go",
        "mkdir sub preview; cp \"$1\" \"$2\"; echo said; echo png > preview/a.png; echo $BEAMPILOT_NAME > n",
    );
    let output = b.all().unwrap();
    let files = b.files(&output);
    let want =
        [("data/n", "a.dat\n"), ("data/sub/x", "hello"), ("logs/run.a2.out", "said\n"), ("preview/a.png", "png\n")];
    assert_eq!(files, want.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    // Whoever does it again ends with the same.
    let again = b.task(&b.plan().unwrap().finish, 10).unwrap();
    assert_eq!(b.files(&again), files);
}

#[test]
fn items_are_gathered_by_finish_or_published_as_they_are() {
    let programs = "plan = [\"./plan\"]\nitem = [\"./item\", \"{item}\", \"{index}\"]\n";
    for finish in [false, true] {
        let line = if finish { "finish = [\"./finish\", \"{items}\"]" } else { "" };
        let mut b = Bench::new(&format!("{programs}{line}"));
        b.script("plan", "echo one; echo '{\"item\": \"t w o\", \"cost\": 2}'; echo nothing");
        b.script("item", "if [ \"$1\" != nothing ]; then echo \"$1 $2\" > r; fi");
        b.script("finish", "ls \"$1\" > names; cat \"$1\"/*/r > all");
        // What an attempt that lost left is nobody's.
        std::fs::create_dir_all(b.job.staging.join("parts/item-00000.a1")).unwrap();
        std::fs::write(b.job.staging.join("parts/item-00000.a1/r"), "lost").unwrap();
        let output = b.all().unwrap();
        let files = b.files(&output);
        if finish {
            assert_eq!(files["data/all"], "one 0\nt w o 1\n");
            assert_eq!(files["data/names"], "item-00000\nitem-00001\nitem-00002\n");
            assert_eq!(files.len(), 2);
            let again = b.task(&b.plan().unwrap().finish, 10).unwrap();
            assert_eq!(b.files(&again), files);
        } else {
            let want = [("data/item-00000/r", "one 0\n"), ("data/item-00001/r", "t w o 1\n")];
            assert_eq!(files, want.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        }
    }
}

#[test]
fn a_preview_is_published_beside_the_data() {
    let mut b = Bench::new("run = [\"true\"]\npreview = [\"./look\"]");
    b.script("look", "echo p > slice.png; echo t > notes.txt");
    let output = b.all().unwrap();
    assert_eq!(b.files(&output).into_keys().collect::<Vec<_>>(), ["preview/slice.png"]);
}

#[test]
fn exit_codes_say_whose_fault_it_was() {
    let run = |code: &str| {
        let mut b = Bench::new("run = [\"./go\"]\nexit = { retry = [75], reject = [65], fail = [3] }");
        b.script("go", &format!("echo noise; echo 'no angles in it' >&2; {code}"));
        b.all().unwrap_err()
    };
    let input = |f: &Fault| matches!(f, Fault::Input(t) if t.contains("no angles in it"));
    let task = |f: &Fault| matches!(f, Fault::Task(t) if t.contains("no angles in it"));
    assert!(input(&run("exit 65")) && input(&run("exit 3")));
    assert!(task(&run("exit 75")) && task(&run("exit 1")));
    assert!(run("kill -SEGV $$").to_string().contains("signal 11"));
}

#[test]
fn limits_are_kept_and_told() {
    let mut b = Bench::new("run = [\"sleep\", \"3651.25\"]\ntime_limit = \"300ms\"");
    let fault = b.all().unwrap_err();
    assert!(matches!(fault, Fault::Task(ref t) if t.contains("ran longer than 300ms")), "{fault}");
    let mut b = Bench::new("run = [\"./nowhere\"]");
    let fault = b.all().unwrap_err();
    assert!(matches!(fault, Fault::Task(ref t) if t.contains("name it with its path")), "{fault}");
}

#[test]
fn what_leads_out_of_the_bundle_is_refused() {
    for (script, words) in [
        ("ln -s /etc/passwd x", "x, which is a link"),
        ("mkdir d; ln -s / d/x", "x, which is a link"),
        ("mkfifo x", "which is a pipe"),
        ("printf x > \"$(printf 'a\\nb')\"", "no printable name"),
        ("cd ..; mv \"$BEAMPILOT_OUT\" aside; ln -s /etc \"$BEAMPILOT_OUT\"", "replaced its output folder"),
    ] {
        let mut b = Bench::new("run = [\"./go\"]");
        b.script("go", script);
        let fault = b.all().unwrap_err();
        assert!(matches!(fault, Fault::Input(ref t) if t.contains(words)), "{script}: {fault}");
    }
}

#[test]
fn programs_see_only_the_environment_they_are_given() {
    let mut b = Bench::new("run = [\"env\"]\nenv = [\"PATH\"]\nset = { MY = \"1\" }");
    let output = b.all().unwrap();
    let text = &b.files(&output)["logs/run.a2.out"];
    let names: std::collections::BTreeSet<&str> = text.lines().filter_map(|l| l.split('=').next()).collect();
    let own = ["NAME", "OUT", "SCAN", "STREAM", "THREADS"].map(|n| format!("BEAMPILOT_{n}"));
    let mut want: std::collections::BTreeSet<&str> = own.iter().map(String::as_str).collect();
    want.extend(["PATH", "MY", "OMP_NUM_THREADS"]);
    want.extend(std::env::var_os("CUDA_VISIBLE_DEVICES").map(|_| "CUDA_VISIBLE_DEVICES"));
    assert_eq!(names, want);
    assert!(text.contains(&format!("BEAMPILOT_SCAN={}", b.dir.path().join("in/a.dat").display())));
}

#[test]
fn a_group_has_no_path_of_its_own() {
    let mut b = Bench::new("run = [\"echo\", \"{scan}\"]");
    b.job.scan.name = "key".into();
    assert!(b.all().unwrap_err().to_string().contains("{files}"));
    let mut b = Bench::new("run = [\"echo\", \"{files}\"]");
    b.job.scan.name = "key".into();
    let output = b.all().unwrap();
    let want = PathBuf::from(b.dir.path()).join("in/a.dat").display().to_string();
    assert_eq!(b.files(&output)["logs/run.a2.out"].trim(), want);
}

#[test]
fn an_executor_waits_longer_than_the_program_may_run() {
    let recipe = Command.recipe(&"run = [\"/bin/true\"]\ntime_limit = \"2h\"".parse().unwrap()).unwrap();
    assert!(Command.task_limit_s(&recipe) > 7200.0);
}
