//! What claims and the journal add to a scan's lag on this filesystem, and how long a pilot takes to find out what is
//! done already.
//!
//! Prints the latency of a claim with its staging and plan, of one journal entry made durable, and of reading the
//! records and the journal of a campaign of 10 000 scans. `BEAMPILOT_BENCH_DIR` says where; default is the target folder.

use beampilot::arrivals::scan::{FileStamp, Scan};
use beampilot::coordinator::disk::{Disk, StreamPlace};
use beampilot::coordinator::event::{ClaimOutcome, Entry};
use beampilot::coordinator::{job, pilot};
use beampilot::store::claims::Identity;
use beampilot::store::journal::{Group, Line, Writer};
use beampilot::store::records::{Published, put_published};
use beampilot::store::replay::Finished;
use beampilot::store::{Fs, Layout, RealFs, RealHost};
use beampilot::technique::plan::{OutputFile, TaskKind, TaskOutput, TaskRecord};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SCANS: usize = 10_000;
const CLAIMS: usize = 500;
const TASKS_PER_SCAN: usize = 4;

fn main() -> std::io::Result<()> {
    let place = std::env::var_os("BEAMPILOT_BENCH_DIR").unwrap_or_else(|| "target".into());
    std::fs::create_dir_all(&place)?;
    let dir = tempfile::tempdir_in(&place)?;
    let layout = Layout::open(&RealFs, &dir.path().join("state")).map_err(std::io::Error::other)?;
    claims(dir.path(), &layout)?;
    restart(&layout)
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e3;
    println!("{what:<44} p50 {:8.3} ms   p99 {:8.3} ms", at(0.5), at(0.99));
}

fn claims(root: &Path, layout: &Layout) -> std::io::Result<()> {
    let output = root.join("out/s");
    RealFs.make_dirs(&output)?;
    let streams = [("s".to_owned(), StreamPlace { output, pattern: "*.h5".to_owned() })].into();
    let me = Identity::own("bench");
    let disk = Disk::new(Arc::new(RealFs), Arc::new(RealHost), layout.clone(), me, streams);
    let mut journal = Writer::open(Arc::new(RealFs), layout.journal("bench-claims"), 0)?;
    let (mut claimed, mut recorded) = (Vec::new(), Vec::new());
    for n in 0..CLAIMS {
        let name = format!("scan_{n:05}.h5");
        let path = root.join(&name);
        std::fs::write(&path, b"frames")?;
        let members = vec![FileStamp { path: name.clone().into(), ..RealFs.stat(&path)? }];
        let scan = Scan { stream: "s".into(), name, root: root.to_owned(), members, ..Scan::default() };
        let key = job::job_key("s", &scan.name, scan.version(), "tomography", "{}", "");
        let start = Instant::now();
        let ClaimOutcome::Won { .. } = disk.claim(&key, &scan) else {
            return Err(std::io::Error::other("a claim was not won"));
        };
        claimed.push(start.elapsed());
        let mut group = Group::default();
        group.push(&Line { seq: n as u64 + 1, t_ms: 0, event: Entry::Claimed { job: 1, generation: 1 } });
        let start = Instant::now();
        journal.append(&group)?;
        recorded.push(start.elapsed());
    }
    report("claim: verdict, link, staging, bundle", claimed);
    report("journal: one entry durable", recorded);
    Ok(())
}

fn restart(layout: &Layout) -> std::io::Result<()> {
    let mut journal = Writer::open(Arc::new(RealFs), layout.journal("bench-dead"), 0)?;
    let (mut group, mut seq) = (Group::default(), 0);
    let mut line = |event: Entry, group: &mut Group| {
        seq += 1;
        group.push(&Line { seq, t_ms: 0, event });
    };
    for n in 0..SCANS as u64 {
        let key = format!("s.scan_{n:05}.h5-{n:012x}-00000000");
        line(Entry::Arrived { job: n, key: key.clone(), bytes: 1 << 30 }, &mut group);
        for t in 0..TASKS_PER_SCAN {
            let label = format!("slab-{t:05}");
            let file = OutputFile { path: format!("parts/{label}.a{n}.h5"), bytes: 1 << 28, sha256: "0".repeat(64) };
            let output = TaskOutput { files: vec![file], ..TaskOutput::default() };
            let record = TaskRecord {
                stage: 1,
                label: label.clone(),
                kind: TaskKind::Stage,
                host: "x3001c0s1b0n0".into(),
                rank: 3,
                output,
            };
            line(Entry::Task { job: n, label, attempt: n, worker: 3, record: Some(Box::new(record)) }, &mut group);
        }
        if n % 4 != 1 {
            line(Entry::Published { job: n, bundle: format!("/out/s/scan_{n:05}") }, &mut group);
        }
        let record = Published {
            key,
            stream: "s".into(),
            scan: format!("scan_{n:05}.h5"),
            input_version: format!("{n:016x}"),
            own_version: None,
            bundle: format!("/out/s/scan_{n:05}"),
            published_ms: 1,
            last_byte_ms: 1,
            lag: None,
            preview_s: None,
            items: "64 slices".into(),
            pilot: "bench-dead".into(),
            linked: Vec::new(),
        };
        // Written plainly: how long writing takes is not the question here.
        if n < 1 {
            put_published(&RealFs, layout, &record)?;
        } else {
            std::fs::write(layout.published(&record.key), serde_json::to_vec_pretty(&record)?)?;
        }
    }
    journal.append(&group)?;
    let start = Instant::now();
    let finished = Finished::read(&RealFs, layout, "bench-dead")?;
    let open = finished.of("s.scan_00001.h5-000000000001-00000000").count();
    println!(
        "journal of {SCANS} scans, {} MB: replayed in {:.3} s ({open} finished tasks of an open scan)",
        group.len() >> 20,
        start.elapsed().as_secs_f64()
    );
    let start = Instant::now();
    let freed = journal.compact_if_worth()?;
    let took = start.elapsed().as_secs_f64();
    let left = Finished::read(&RealFs, layout, "bench-dead")?.of("s.scan_00001.h5-000000000001-00000000").count();
    println!(
        "compaction in {took:.3} s: {} MB freed, {} MB left ({left} finished tasks of the open scan)",
        freed >> 20,
        journal.bytes() >> 20
    );
    let start = Instant::now();
    let known = pilot::known(&RealFs, layout)?;
    println!("{} published records: read in {:.3} s", known.len(), start.elapsed().as_secs_f64());
    Ok(())
}
