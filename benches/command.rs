//! Tasks of `command` against `xargs -P` with the same program: what the pilot adds to starting it.
//!
//! `true` does nothing, so that the start is all there is; any real program makes the ratio better. One scan with
//! many items goes through a whole pilot, with journal, claims and publication, in folders on this filesystem. Its
//! time is that of the stage: from the first item to the last, as the manifest and the run tell. On a busy machine times
//! say little, because whoever has more threads gets more of it; the processor time a task, programs included, says what
//! is left of a machine whose cores are the limit.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const BIN: &str = env!("CARGO_BIN_EXE_beampilot");
const WORKERS: usize = 2;

/// Processor time of all children that were waited for, and of theirs, seconds.
fn processor_s() -> f64 {
    // SAFETY: fills a plain structure of this function's own.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 * 1e-6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Runs it; also returns the processor time that it took.
fn costed<T>(run: impl FnOnce() -> T) -> (T, f64) {
    let before = processor_s();
    let result = run();
    (result, processor_s() - before)
}

fn pilot(items: usize, program: &str) -> (Duration, f64) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(dir.path().join("in")).expect("a folder");
    fs::write(dir.path().join("in/a.txt"), "scan").expect("a scan");
    let text = format!(
        "[[stream]]\nname = \"s\"\nwatch = \"in\"\npattern = \"*.txt\"\ntechnique = \"command\"\n\
         complete = {{ rule = \"renamed\" }}\n[stream.recipe]\nplan = [\"seq\", \"{items}\"]\nitem = {program}\n\
         max_items = 100000\n"
    );
    fs::write(dir.path().join("c.toml"), text).expect("a campaign");
    let run = |args: &[&str]| {
        let output = Command::new(BIN).args(args).current_dir(dir.path()).output().expect("beampilot starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let begin = Instant::now();
    run(&["-q", "run", "c.toml", "--once", "--workers", &WORKERS.to_string()]);
    let whole = begin.elapsed();
    let status: serde_json::Value =
        serde_json::from_slice(&run(&["-q", "status", "c.toml", "--json"])).expect("status is JSON");
    assert!(Path::new(&dir.path().join("results/s/a.txt/manifest.json")).exists());
    (whole, status["published"][0]["lag"]["computing"].as_f64().expect("a lag"))
}

fn xargs(items: usize, program: &[&str]) -> Duration {
    let list: String = (1..=items).map(|i| format!("{i}\n")).collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), list).expect("a list");
    let mut command = Command::new("xargs");
    command.args(["-P", &WORKERS.to_string(), "-n", "1", "-a"]).arg(file.path()).args(program);
    let begin = Instant::now();
    assert!(command.stdout(std::process::Stdio::null()).status().expect("xargs starts").success());
    begin.elapsed()
}

/// Rounds of both, in turn; the best of each counts, because other work on the machine only ever slows down.
const ROUNDS: usize = 5;

fn main() {
    // xargs appends the item, which sleep would add up.
    let sleep = ["sh", "-c", "exec sleep 0.02"];
    for (what, items, program, toml) in [
        ("true", 1000, &["true"][..], "[\"true\", \"{item}\"]"),
        ("sleep 0.02", 200, &sleep[..], "[\"sh\", \"-c\", \"exec sleep 0.02\"]"),
    ] {
        let round = |_| (costed(|| xargs(items, program).as_secs_f64()), costed(|| pilot(items, toml)));
        let rounds: Vec<_> = (0..ROUNDS).map(round).collect();
        type Round = ((f64, f64), ((Duration, f64), f64));
        let least = |pick: &dyn Fn(&Round) -> f64| rounds.iter().map(pick).fold(f64::INFINITY, f64::min);
        let best = |pick: &dyn Fn(&Round) -> f64| items as f64 / least(pick);
        let (plain, computing) = (best(&|r| r.0.0), best(&|r| r.1.0.1));
        let whole = best(&|r| r.1.0.0.as_secs_f64());
        let each = |pick: &dyn Fn(&Round) -> f64| 1e3 * least(pick) / items as f64;
        let (cost_plain, cost) = (each(&|r| r.0.1), each(&|r| r.1.1));
        println!(
            "{what}: xargs -P {WORKERS} {plain:.0}/s; beampilot {computing:.0}/s while computing ({:.0} % of xargs), \
             {whole:.0}/s over a whole run of {items}",
            100.0 * computing / plain
        );
        println!(
            "{what}: processor time a task {cost_plain:.2} ms under xargs, {cost:.2} ms under beampilot, the whole run \
             included ({:.0} %)",
            100.0 * cost_plain / cost
        );
    }
}
