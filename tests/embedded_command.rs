//! Examples of `command`, end to end: programs fan out and in, and one stream goes on from another's bundles.

mod common;

use common::rig::*;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

struct Campaign {
    dir: tempfile::TempDir,
}

impl Campaign {
    /// An example with its programs, in a folder of its own.
    fn example(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        std::fs::copy(examples.join(name), dir.path().join("campaign.toml")).unwrap();
        std::fs::create_dir(dir.path().join("incoming")).unwrap();
        let copied = Command::new("cp").arg("-r").arg(examples.join("programs")).arg(dir.path()).status().unwrap();
        assert!(copied.success());
        Self { dir }
    }

    fn path(&self, relative: &str) -> std::path::PathBuf {
        self.dir.path().join(relative)
    }

    fn beampilot(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let output = Command::new(BIN).args(args).current_dir(self.dir.path()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    fn once(&self) -> (Option<i32>, String) {
        let (code, _, log) = self.beampilot(&["run", "campaign.toml", "--once", "--workers", "2"]);
        (code, log)
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.beampilot(&["-q", "status", "campaign.toml", "--json"]).1).unwrap()
    }

    fn read(&self, relative: &str) -> String {
        std::fs::read_to_string(self.path(relative)).unwrap_or_else(|e| panic!("{relative}: {e}"))
    }

    fn numbers(&self, name: &str, n: u32) {
        let text: String = (1..=n).map(|i| format!("{i}\n")).collect();
        std::fs::write(self.path(name), text).unwrap();
    }

    fn left_in(&self, stream: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("results").join(stream)).unwrap().flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
        names.retain(|n| n != ".campaign-state");
        names.sort();
        names
    }
}

#[test]
fn items_fan_out_and_in() {
    let c = Campaign::example("command-fan-out.toml");
    c.numbers("incoming/a.txt", 1000);
    c.numbers("incoming/b.txt", 150);
    c.numbers("incoming/empty.txt", 0);
    let (code, log) = c.once();
    assert_eq!(code, Some(65), "{log}");
    assert_eq!(c.left_in("sums"), ["a.txt", "b.txt"]);
    for (scan, items, total) in [("a.txt", 10, "500500.000000\n"), ("b.txt", 2, "11325.000000\n")] {
        let bundle = c.path("results/sums").join(scan);
        assert_checksums(&bundle);
        assert_eq!(c.read(&format!("results/sums/{scan}/data/total.txt")), total);
        let m = manifest(&bundle);
        assert_eq!((m["technique"].as_str(), m["output"]["items"].as_u64()), (Some("command"), Some(items)));
        assert_eq!(
            m["tasks"].as_array().unwrap().iter().filter(|t| t["task"].as_str().unwrap().starts_with("item-")).count()
                as u64,
            items
        );
    }
    let reason = c.status()["quarantined"][0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("has no lines; record it again"), "{reason}");
    // A second run finds nothing to do.
    let (code, log) = c.once();
    assert_eq!((code, c.left_in("sums").len()), (Some(0), 2), "{log}");
}

#[test]
fn a_stream_goes_on_from_anothers_bundles() {
    let c = Campaign::example("command-chain.toml");
    c.numbers("incoming/a.txt", 1000);
    let (code, out, err) = c.beampilot(&["check", "campaign.toml"]);
    assert_eq!(code, Some(0), "{out}{err}");
    std::fs::create_dir_all(c.path("results/sums/_live")).unwrap();
    std::fs::write(c.path("results/sums/_live/index.html"), "view").unwrap();
    let (code, log) = c.once();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(c.read("results/report/a.txt/data/report.txt"), "the sum of a.txt is 500500.000000\n");
    assert_checksums(&c.path("results/report/a.txt"));
    let m = manifest(&c.path("results/report/a.txt"));
    assert_eq!((m["input"]["stream"].as_str(), m["input"]["scan"].as_str()), (Some("report"), Some("a.txt")));
    // Its lag begins with the publication of what it goes on from.
    let status = c.status();
    let lag = |stream: &str| {
        let all = status["published"].as_array().unwrap().iter();
        all.filter(|p| p["stream"] == stream).map(|p| p["lag"]["total"].as_f64().unwrap()).next().unwrap()
    };
    assert!(lag("report") < 30.0 && lag("report") > 0.0, "{}", lag("report"));
    // Another version of the scan is another bundle, and so another scan of the second stream.
    c.numbers("incoming/a.txt", 10);
    let (code, log) = c.once();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(c.left_in("sums"), ["_live", "a.txt", "a.txt~2"]);
    assert_eq!(c.left_in("report"), ["a.txt", "a.txt%7E2"]);
    assert_eq!(c.read("results/report/a.txt%7E2/data/report.txt"), "the sum of a.txt~2 is 55.000000\n");
    let (code, log) = c.once();
    assert_eq!((code, c.left_in("report").len()), (Some(0), 2), "{log}");
}

/// Where the pilot's session leader has no number: containers and batch systems with process namespaces.
#[test]
fn programs_run_where_the_session_began_outside() {
    let outside = ["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"];
    let possible = Command::new("unshare").args(outside).arg("true").output().is_ok_and(|o| o.status.success());
    if !possible {
        eprintln!("skipped: this system lets nobody make a process namespace");
        return;
    }
    let c = Campaign::example("command-fan-out.toml");
    c.numbers("incoming/a.txt", 150);
    let run = ["run", "campaign.toml", "--once", "--workers", "2"];
    let output = Command::new("unshare").args(outside).arg(BIN).args(run).current_dir(c.dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(c.read("results/sums/a.txt/data/total.txt"), "11325.000000\n");
}

#[test]
fn a_group_s_python_is_run() {
    // h5py may be missing here: what is shipped is read by the interpreter, and a script without it is run.
    let c = Campaign::example("command-python.toml");
    let compile = "import sys; compile(open(sys.argv[1]).read(), sys.argv[1], 'exec')";
    let Ok(parsed) = Command::new("python3").args(["-c", compile]).arg(c.path("programs/mean_image.py")).status()
    else {
        return;
    };
    assert!(parsed.success());
    let plain = "import sys, os\nopen('size.txt', 'w').write(str(os.path.getsize(sys.argv[1])))\nprint('done')\n";
    std::fs::write(c.path("programs/mean_image.py"), plain).unwrap();
    std::fs::write(c.path("incoming/a.h5"), "12345").unwrap();
    let text = c.read("campaign.toml").replace("\"20s\"", "\"1s\"");
    std::fs::write(c.path("campaign.toml"), text).unwrap();
    let (code, log) = c.once();
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(c.read("results/mean/a/data/size.txt"), "5");
    assert_checksums(&c.path("results/mean/a"));
}

#[test]
fn a_program_ends_with_its_pilot() {
    let c = Campaign::example("command-fan-out.toml");
    let text = "[[stream]]\nname = \"s\"\nwatch = \"incoming\"\npattern = \"*.txt\"\ntechnique = \"command\"\n\
                complete = { rule = \"renamed\" }\nsince = \"all\"\n[stream.recipe]\nrun = [\"sleep\", \"4711.25\"]\n";
    std::fs::write(c.path("campaign.toml"), text).unwrap();
    c.numbers("incoming/a.txt", 1);
    let alive = || {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|e| std::fs::read(e.path().join("cmdline")).ok()).any(|l| l == b"sleep\x004711.25\0")
    };
    let wait = |want: bool| {
        let begin = std::time::Instant::now();
        while alive() != want {
            assert!(begin.elapsed() < PATIENCE, "never {want}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    for signal in ["TERM", "KILL"] {
        let mut pilot =
            Command::new(BIN).args(["-q", "run", "campaign.toml"]).current_dir(c.dir.path()).spawn().unwrap();
        wait(true);
        assert!(
            Command::new("kill").args([&format!("-{signal}"), &pilot.id().to_string()]).status().unwrap().success()
        );
        pilot.wait().unwrap();
        wait(false);
    }
}

#[test]
fn modules_are_loaded_for_programs() {
    use std::os::unix::fs::PermissionsExt;
    let c = Campaign::example("command-fan-out.toml");
    let script = |name: &str, text: String| {
        std::fs::write(c.path(name), text).unwrap();
        std::fs::set_permissions(c.path(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    // It speaks as Lmod does, and counts how often it is asked.
    std::fs::create_dir(c.path("soft")).unwrap();
    let (soft, asked) = (c.path("soft"), c.path("asked"));
    let load = format!("export PATH={}:$PATH TOOL_LEVEL='very high'; unset TZ;", soft.display());
    let known = format!("echo x >> {}; echo \"{load}\"", asked.display());
    let unknown = "echo \"unknown module: $3\" >&2; echo false; exit 1";
    script("lmod", format!("#!/bin/sh\n[ \"$3\" = tool/1.0 ] || {{ {unknown}; }}\n{known}\n"));
    script("soft/tool", "#!/bin/sh\necho \"$TOOL_LEVEL $TZ $1\" > level\n".to_owned());
    let run = |modules: &str| {
        let text = format!(
            "[[stream]]\nname = \"s\"\nwatch = \"incoming\"\npattern = \"*.txt\"\ntechnique = \"command\"\n\
             complete = {{ rule = \"renamed\" }}\n[stream.recipe]\nplan = [\"seq\", \"20\"]\nitem = [\"tool\", \
             \"{{item}}\"]\nmodules = [\"{modules}\"]\n"
        );
        std::fs::write(c.path("campaign.toml"), text).unwrap();
        let mut pilot = Command::new(BIN);
        pilot.args(["run", "campaign.toml", "--once", "--workers", "1"]).current_dir(c.dir.path());
        let output = pilot.env("LMOD_CMD", c.path("lmod")).env("TZ", "UTC").output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    c.numbers("incoming/a.txt", 1);
    let (code, log) = run("tool/1.0");
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(c.read("results/s/a.txt/data/item-00019/level"), "very high  20\n");
    let asked = c.read("asked").lines().count();
    assert!(asked <= 2, "once an executor, perhaps once more where two tasks begin at once: {asked}");
    // What is not there fails with what the tool said.
    c.numbers("incoming/b.txt", 1);
    let (code, log) = run("tool/2.0");
    assert_eq!(code, Some(65), "{log}");
    let reason = c.status()["quarantined"][0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("modules tool/2.0 could not be loaded") && reason.contains("unknown module: tool/2.0"));
}
