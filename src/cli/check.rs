//! `beampilot check`: is the campaign file right, and what would it do?

use super::{Exit, OrExit};
use crate::arrivals::listing::Disk;
use crate::arrivals::scan::Scan;
use crate::arrivals::{ArrivalEvent, Now, Poller, Proof, StreamWatch};
use crate::campaign::{Campaign, Stream};
use crate::coordinator::pilot;
use crate::report::table::columns;
use crate::store::{Layout, RealFs};
use crate::technique::{self, JobContext, Resources, TaskContext, TaskKind, TaskSpec};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Validates a campaign file and shows what would match.
///
/// Names every mistake with its line and the remedy, then lists the scans found now, which of them would be processed
/// if nothing changed any more, and what the headers of the first few say. Changes nothing and waits for nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  beampilot check campaign.toml")]
pub struct Args {
    /// The campaign file.
    #[arg(value_name = "CAMPAIGN.toml")]
    pub campaign: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Scans of a stream whose headers are read.
const LOOKED_INTO: usize = 5;
/// Scans of a stream that are listed for people; JSON has all.
const LISTED: usize = 20;
/// Steps of virtual time after which a listing that never calms down is given up.
const STEPS: usize = 10_000;

#[derive(Debug, Serialize)]
struct Found {
    stream: String,
    scan: String,
    /// `would be processed`, `would be refused` or `incomplete`.
    verdict: &'static str,
    files: usize,
    bytes: u64,
    /// What its headers say, what it lacks, or why it would be refused.
    detail: String,
}

#[derive(Debug, Serialize)]
struct Outcome {
    campaign: String,
    hash: String,
    warnings: Vec<String>,
    /// Scans published or in quarantine, which are left alone.
    known: usize,
    scans: Vec<Found>,
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let campaign = Campaign::load(&args.campaign).or_exit(Exit::Config)?;
    pilot::validate(&campaign).or_exit(Exit::Config)?;
    let outcome = look(&campaign)?;
    if args.json {
        super::print_json(&outcome)?;
    } else {
        super::print(&page(&campaign, &outcome))?;
    }
    Ok(Exit::Done)
}

/// Runs arrivals' own eyes over the folders, in virtual time: quiet times pass at once.
fn look(campaign: &Campaign) -> anyhow::Result<Outcome> {
    let made = Layout::existing(&RealFs, &campaign.state).map_err(super::campaign::unusable)?;
    let layout = Layout { state: campaign.state.clone() };
    let known = match made {
        Some(_) if layout.state.join("published").exists() => pilot::known(&RealFs, &layout)?,
        _ => Vec::new(),
    };
    let count = known.len();
    let first_pilot = pilot::first_pilot_if_any(&RealFs, &layout).unwrap_or_else(SystemTime::now);
    let mut poller = Poller::new(StreamWatch::all(campaign, first_pilot, true), known, true);
    let mut disk = Disk::default();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut passed = Duration::ZERO;
    let mut scans = Vec::new();
    for _ in 0..STEPS {
        let wall_ns = i64::try_from((wall + passed).as_nanos()).unwrap_or(i64::MAX);
        let mono = Now::START + passed;
        let mut quiet = false;
        for event in poller.poll(Now { mono, wall_ns }, &mut disk) {
            match event {
                ArrivalEvent::Complete { scan, proof } => {
                    let looked = scans.iter().filter(|f: &&Found| f.stream == scan.stream).count();
                    let detail = if looked < LOOKED_INTO { headers(campaign, &scan) } else { String::new() };
                    let detail = match proof {
                        Proof::Manifest { files, .. } => format!("{} files to verify; {detail}", files.len()),
                        Proof::Probe | Proof::Declared => detail,
                    };
                    scans.push(found(scan, "would be processed", detail));
                }
                ArrivalEvent::Rejected { stream, name, reason, .. } => {
                    scans.push(Found {
                        stream,
                        scan: name,
                        verdict: "would be refused",
                        files: 0,
                        bytes: 0,
                        detail: reason,
                    });
                }
                ArrivalEvent::Trouble { stream, .. }
                    if campaign.stream(&stream).is_some_and(|s| s.from.is_some() && !s.watch.exists()) =>
                {
                    // Nothing was published yet; a run makes the folder.
                }
                ArrivalEvent::Trouble { message, .. } => anyhow::bail!("{message}"),
                ArrivalEvent::Idle { incomplete, .. } => {
                    let left = |(stream, scan, lacks)| Found {
                        stream,
                        scan,
                        verdict: "incomplete",
                        files: 0,
                        bytes: 0,
                        detail: lacks,
                    };
                    scans.extend(incomplete.into_iter().map(left));
                    quiet = true;
                }
                ArrivalEvent::Census { .. } | ArrivalEvent::Recovered { .. } => {}
            }
        }
        if quiet {
            break;
        }
        passed = poller.next_due().saturating_sub(Now::START).max(passed + Duration::from_millis(10));
    }
    let warnings = campaign.warnings.iter().map(ToString::to_string).collect();
    Ok(Outcome { campaign: campaign.name.clone(), hash: campaign.hash.clone(), warnings, known: count, scans })
}

fn found(scan: Scan, verdict: &'static str, detail: String) -> Found {
    let bytes = scan.bytes();
    Found { stream: scan.stream, scan: scan.name, verdict, files: scan.members.len(), bytes, detail }
}

/// What the technique says of the scan's headers.
fn headers(campaign: &Campaign, scan: &Scan) -> String {
    let Some(stream) = campaign.stream(&scan.stream) else { return String::new() };
    let Some(technique) = technique::registry(&stream.technique) else { return String::new() };
    let recipe = technique.recipe_at(&stream.recipe, campaign.folder()).map(|r| r.to_string()).unwrap_or_default();
    let job = JobContext {
        job: 0,
        key: String::new(),
        scan: scan.clone(),
        technique: stream.technique.clone(),
        recipe,
        staging: PathBuf::new(),
        scratch: None,
        campaign: campaign.name.clone(),
        resources: Resources { workers: 1, threads: 1, task_memory: 1 << 30 },
        task_limit_s: JobContext::TASK_LIMIT_S,
        carry: Vec::new(),
        epoch: 0,
    };
    let task =
        TaskSpec { label: "probe".to_owned(), kind: TaskKind::Probe, params: Vec::new(), cost: 1.0, bytes_in: 0 };
    let context = TaskContext {
        job: Arc::new(job),
        task,
        attempt: 0,
        host: String::new(),
        rank: 0,
        cancelled: Default::default(),
    };
    match technique.inspect(&context) {
        Ok(inspection) => inspection.summary,
        Err(fault) => format!("{fault}"),
    }
}

fn page(campaign: &Campaign, outcome: &Outcome) -> String {
    let mut out = format!("campaign {}: the file is right\n", outcome.campaign);
    outcome.warnings.iter().for_each(|w| out.push_str(&format!("warning: {w}\n")));
    out.push_str(&format!("{} scans are published or in quarantine already\n", outcome.known));
    for Stream { name, watch, technique, .. } in &campaign.streams {
        let mine: Vec<&Found> = outcome.scans.iter().filter(|f| f.stream == *name).collect();
        out.push_str(&format!("\nstream {name} ({technique}) watches {}: {} scans\n", watch.display(), mine.len()));
        let row = |f: &&Found| {
            let size = format!("{:.1} MB", f.bytes as f64 * 1e-6);
            vec![format!("  {}", f.scan), f.verdict.to_owned(), size, f.detail.clone()]
        };
        let rows: Vec<Vec<String>> = mine.iter().take(LISTED).map(row).collect();
        out.push_str(&columns(&rows));
        if mine.len() > LISTED {
            out.push_str(&format!("  … and {} more; --json lists all\n", mine.len() - LISTED));
        }
    }
    out
}
