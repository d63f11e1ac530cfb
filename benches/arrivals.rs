//! What polling costs: a flat folder of 100 000 processed scans, one arrival every ten seconds.
//!
//! Promise: under 2 % of a core. Reports the CPU time of the polling thread over the steady state, and how
//! long after its quiet time an arrival was reported. `ARRIVALS_FILES` and `ARRIVALS_SECONDS` change the
//! numbers, `TMPDIR` the filesystem.

use beampilot::arrivals::{self, ArrivalCommand, ArrivalEvent, StreamWatch};
use beampilot::campaign::Campaign;
use crossbeam::channel::unbounded;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

const QUIET: Duration = Duration::from_secs(2);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// CPU seconds of this process's thread called `arrivals`, from its scheduler statistics (nanoseconds).
fn polling_cpu() -> f64 {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return f64::NAN };
    for task in tasks.flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.trim() == "arrivals" {
            let stat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let ns: f64 = stat.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(f64::NAN);
            return ns / 1e9;
        }
    }
    f64::NAN
}

fn main() {
    // `cargo test --benches` only asks whether this starts.
    let quick = std::env::args().any(|a| a == "--test");
    let files = setting("ARRIVALS_FILES", if quick { 1000 } else { 100_000 });
    let seconds = setting("ARRIVALS_SECONDS", if quick { 3 } else { 35 });
    let dir = tempfile::tempdir().expect("a temporary folder");
    let root = dir.path().join("in");
    fs::create_dir(&root).expect("a watched folder");
    for i in 0..files {
        fs::write(root.join(format!("scan_{i:06}.h5")), b"").expect("a scan");
    }
    std::thread::sleep(Duration::from_millis(50));
    let text = format!(
        "[[stream]]\nname = \"bench\"\nwatch = \"in\"\npattern = \"*.h5\"\ntechnique = \"none\"\n\
         complete = {{ rule = \"settled\", quiet = \"{}s\" }}\n",
        QUIET.as_secs()
    );
    let campaign = Campaign::parse(&text, &dir.path().join("c.toml")).expect("a campaign");
    let (events, heard) = unbounded();
    let (tell, commands) = unbounded();
    let start = Instant::now();
    let watches = StreamWatch::all(&campaign, SystemTime::now(), false);
    let thread = arrivals::spawn(watches, Vec::new(), false, events, commands).expect("a thread");
    // The first listing, with a stat of every file, ends when the census counts them all.
    for event in &heard {
        if matches!(event, ArrivalEvent::Census { known, .. } if known as u64 == files) {
            break;
        }
    }
    println!("first pass over {files} files: {:.2} s, {:.2} s of CPU", start.elapsed().as_secs_f64(), polling_cpu());
    std::thread::sleep(QUIET * 2);

    let (begin, cpu) = (Instant::now(), polling_cpu());
    let mut written = Vec::new();
    let mut delays = Vec::new();
    while begin.elapsed() < Duration::from_secs(seconds) {
        let elapsed = begin.elapsed();
        if elapsed >= Duration::from_secs(10) * u32::try_from(written.len()).unwrap_or(u32::MAX) {
            arrive(&root, written.len());
            written.push(Instant::now());
        }
        while let Ok(event) = heard.try_recv() {
            if let ArrivalEvent::Complete { scan, .. } = event {
                let number: usize = scan.name["new_".len()..scan.name.len() - 3].parse().expect("a number");
                delays.push(written[number].elapsed().as_secs_f64() - QUIET.as_secs_f64());
                let (stream, version) = (scan.stream.clone(), scan.version());
                let done = ArrivalCommand::Done { stream, name: scan.name, version, linked: Default::default() };
                tell.send(done).expect("a listener");
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let share = 100.0 * (polling_cpu() - cpu) / begin.elapsed().as_secs_f64();
    let worst = delays.iter().copied().fold(0.0, f64::max);
    println!("steady state: {share:.2} % of a core (promise: under 2 %)");
    println!("arrivals: {} of {}, reported at most {worst:.2} s after their quiet time", delays.len(), written.len());
    tell.send(ArrivalCommand::Stop).expect("a listener");
    thread.join().expect("a clean end");
}

fn arrive(root: &Path, number: usize) {
    fs::write(root.join(format!("new_{number}.h5")), b"data").expect("an arrival");
}
