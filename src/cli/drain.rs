//! `beampilot drain`: tells pilots to end, through sentinels in the state folder.

use super::campaign::{self, Opened};
use super::{Exit, OrExit};
use crate::store::fs::create_whole;
use crate::store::{Fs, RealFs};
use anyhow::Context;
use serde::Serialize;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Tells pilots to end: nothing more is claimed, what is held is finished as far as time allows, exit code 0.
///
/// Leaves a sentinel in the state folder, which pilots look for every second; it works from any node. Without --pilot
/// and --all it means the one pilot that runs. With --wait the sentinel is taken away again once the pilots ended;
/// otherwise `drain/all` also ends every pilot that starts later, until --all --cancel.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  beampilot drain campaign.toml --wait
  beampilot drain campaign.toml --all
  beampilot drain campaign.toml --all --cancel")]
pub struct Args {
    /// The campaign file.
    #[arg(value_name = "CAMPAIGN.toml")]
    pub campaign: PathBuf,
    /// This pilot, by the id that `status` shows.
    #[arg(long, value_name = "ID", conflicts_with = "all")]
    pub pilot: Option<String>,
    /// All pilots, also those that start later.
    #[arg(long)]
    pub all: bool,
    /// Take the sentinels away; pilots that drain already are not stopped from it.
    #[arg(long, conflicts_with = "wait")]
    pub cancel: bool,
    /// Wait until the pilots ended; 75 when one is silent for a minute.
    #[arg(long)]
    pub wait: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Serialize)]
struct Drained {
    drain_version: u32,
    /// Sentinels that were made, or taken away.
    sentinels: Vec<String>,
    cancelled: bool,
    /// Pilots that were waited for.
    ended: Vec<String>,
}

/// A pilot that is silent for so long is not waited for: it may be dead on another host.
const SILENT_S: f64 = 60.0;

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let opened = campaign::open(&args.campaign)?;
    let whom = if args.cancel { to_cancel(&opened, &args)? } else { to_drain(&opened, &args)? };
    for name in &whom {
        let sentinel = opened.layout.drain(name);
        if args.cancel {
            match RealFs.remove_file(&sentinel) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        } else {
            create_whole(&RealFs, &sentinel, b"").with_context(|| sentinel.display().to_string())?;
        }
    }
    let mut ended = Vec::new();
    if args.wait {
        ended = wait(&opened, &whom)?;
        for name in &whom {
            // Another drain may have taken it away.
            let _ = RealFs.remove_file(&opened.layout.drain(name));
        }
    }
    if args.json {
        let out = Drained { drain_version: 1, sentinels: whom, cancelled: args.cancel, ended };
        super::print_json(&out)?;
    } else if args.cancel {
        super::print(&format!("no longer asked to drain: {}\n", listed(&whom)))?;
    } else {
        let how = if args.wait { format!("ended: {}", listed(&ended)) } else { "they end within seconds".to_owned() };
        super::print(&format!("asked to drain: {}; {how}\n", listed(&whom)))?;
    }
    Ok(Exit::Done)
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

fn to_drain(opened: &Opened, args: &Args) -> anyhow::Result<Vec<String>> {
    let report = opened.report()?;
    if args.all {
        return Ok(vec!["all".to_owned()]);
    }
    let ids = || report.pilots.iter().map(|p| p.status.identity.pilot.clone());
    if let Some(pilot) = &args.pilot {
        if ids().any(|id| id == *pilot) {
            return Ok(vec![pilot.clone()]);
        }
        let all: Vec<String> = ids().collect();
        let near = crate::campaign::closest(pilot, all.iter().map(String::as_str));
        let near = near.map_or_else(String::new, |n| format!("; did you mean {n}?"));
        return Err(anyhow::anyhow!("no pilot {pilot} is known{near}")).or_exit(Exit::NoInput);
    }
    let living: Vec<String> = report
        .pilots
        .iter()
        .filter(|p| matches!(p.life.as_str(), "alive" | "silent"))
        .map(|p| p.status.identity.pilot.clone())
        .collect();
    match living.len() {
        1 => Ok(living),
        0 => Err(anyhow::anyhow!("no pilot runs")).or_exit(Exit::TryLater),
        _ => Err(anyhow::anyhow!("{} run; say --pilot with one of them, or --all", living.join(", ")))
            .or_exit(Exit::Usage),
    }
}

fn to_cancel(opened: &Opened, args: &Args) -> anyhow::Result<Vec<String>> {
    let folder = opened.layout.state.join("drain");
    let there: Vec<String> = RealFs.list(&folder).with_context(|| folder.display().to_string())?;
    let there = there.into_iter().filter(|n| !n.starts_with('.'));
    Ok(match &args.pilot {
        Some(pilot) => there.filter(|n| n == pilot).collect(),
        None if args.all => there.collect(),
        None => there.filter(|n| n != "all").collect(),
    })
}

/// Waits until nobody of those meant lives; returns who was waited for.
fn wait(opened: &Opened, whom: &[String]) -> anyhow::Result<Vec<String>> {
    let meant = |pilot: &String| whom.iter().any(|w| w == "all" || w == pilot);
    let mut waited = BTreeSet::new();
    let started = Instant::now();
    loop {
        let report = opened.report()?;
        let living = report.pilots.iter().filter(|p| matches!(p.life.as_str(), "alive" | "silent"));
        let mut open = false;
        for pilot in living.filter(|p| meant(&p.status.identity.pilot)) {
            open = true;
            waited.insert(pilot.status.identity.pilot.clone());
            if pilot.silent_s > SILENT_S && started.elapsed().as_secs_f64() > 5.0 {
                let text = format!("pilot {} has been silent for a minute", pilot.status.identity.pilot);
                return Err(anyhow::anyhow!(text)).or_exit(Exit::TryLater);
            }
        }
        if !open {
            return Ok(waited.into_iter().collect());
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}
