//! `beampilot request`: what people ask of running pilots, put into the inbox in the state folder.

use super::campaign::{self, CampaignArg, Opened};
use super::exit::coded;
use super::reconstruct::{self, entry};
use super::{Exit, OrExit};
use crate::report::table::{columns, when};
use crate::store::requests::{self, ACCEPTED, Asked, Outcome, REFUSED, Request};
use crate::store::{Layout, RealFs};
use crate::technique;
use clap::Subcommand;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Asks running pilots for something: reprocess, urgent, hold, resume, skip, release.
///
/// A request is a small file in the state folder; it works from any login node and needs no running pilot: whoever runs,
/// or starts later, takes it in within seconds and answers. `request list` shows the answers.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  beampilot request reprocess scan_001.h5 center=301.5 --wait
  beampilot request hold 2bm
  beampilot request list")]
pub struct Args {
    /// What is asked for.
    #[command(subcommand)]
    pub ask: Ask,
    /// The campaign.
    #[command(flatten)]
    pub campaign: CampaignArg,
    /// Wait until it is answered for good: 0 done, 65 refused.
    #[arg(long, global = true)]
    pub wait: bool,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

/// One scan.
#[derive(Debug, clap::Args)]
pub struct OneScan {
    /// The scan: STREAM/SCAN, or SCAN where only one stream has it.
    #[arg(value_name = "SCAN")]
    pub scan: String,
}

/// One stream.
#[derive(Debug, clap::Args)]
pub struct OneStream {
    /// The stream.
    #[arg(value_name = "STREAM")]
    pub stream: String,
}

/// What can be asked.
#[derive(Debug, Subcommand)]
pub enum Ask {
    /// Does a scan again, with other recipe entries if given; the result is a further bundle, `SCAN~2`.
    #[command(after_help = "Examples:
  beampilot request reprocess scan_001.h5 center=301.5
  beampilot request reprocess --from-now-on 2bm filter=hann")]
    Reprocess {
        /// The scan: STREAM/SCAN, or SCAN where only one stream has it; with --from-now-on the stream.
        #[arg(value_name = "SCAN")]
        target: String,
        /// Recipe entries that replace the campaign's, as in `reconstruct --recipe`.
        #[arg(value_name = "KEY=VALUE", value_parser = entry)]
        recipe: Vec<(String, toml::Value)>,
        /// For every scan of the stream that comes from now on; without entries, the campaign's recipe counts again.
        #[arg(long)]
        from_now_on: bool,
    },
    /// Puts a scan before all others.
    #[command(after_help = "Example:
  beampilot request urgent scan_001.h5")]
    Urgent(OneScan),
    /// Starts nothing more of a stream; what runs goes on to its end.
    #[command(after_help = "Example:
  beampilot request hold 2bm")]
    Hold(OneStream),
    /// Lets a held stream go on.
    #[command(after_help = "Example:
  beampilot request resume 2bm")]
    Resume(OneStream),
    /// Leaves a scan out until it is released or reprocessed.
    #[command(after_help = "Example:
  beampilot request skip scan_001.h5")]
    Skip(OneScan),
    /// Takes a scan out of quarantine, or no longer leaves it out.
    #[command(after_help = "Example:
  beampilot request release scan_001.h5")]
    Release(OneScan),
    /// Lists what was asked for and what came of it.
    #[command(after_help = "Example:
  beampilot request list --json")]
    List,
}

/// Clocks that differ by this much are worth a word.
const CLOCKS_MS: u64 = 2000;
/// How often a waiting command looks.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Debug, Serialize)]
struct Submitted {
    request_version: u32,
    id: String,
    request: Request,
    outcome: Option<Outcome>,
}

/// Runs it.
///
/// # Errors
/// What the frame turns into an exit code.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let campaign = campaign::load(&args.campaign.campaign)?;
    // A request may come before the first pilot.
    let layout = Layout::open(&RealFs, &campaign.state).map_err(campaign::unusable)?;
    let opened = Opened { campaign, layout };
    let request = match args.ask {
        Ask::List => return list(&opened, args.json),
        Ask::Reprocess { target, recipe, from_now_on } => reprocess(&opened, &target, &recipe, from_now_on)?,
        Ask::Urgent(one) => about(&opened, &one.scan, |stream, scan| Request::Urgent { stream, scan })?,
        Ask::Skip(one) => about(&opened, &one.scan, |stream, scan| Request::Skip { stream, scan })?,
        Ask::Release(one) => about(&opened, &one.scan, |stream, scan| Request::Release { stream, scan })?,
        Ask::Hold(one) => Request::Hold { stream: stream(&opened, &one.stream)? },
        Ask::Resume(one) => Request::Resume { stream: stream(&opened, &one.stream)? },
    };
    submit(&opened, request, args.wait, args.json)
}

/// Puts a request into the inbox and says so; with `wait`, what came of it.
///
/// # Errors
/// The inbox cannot be written.
pub fn submit(opened: &Opened, request: Request, wait: bool, json: bool) -> anyhow::Result<Exit> {
    let id = requests::submit(&RealFs, &opened.layout, &who(), &request)?;
    let ahead_ms = requests::id_ms(&id).unwrap_or(0).saturating_sub(crate::store::records::now_ms());
    if ahead_ms > CLOCKS_MS {
        let ahead = crate::report::table::seconds(ahead_ms as f64 * 1e-3);
        tracing::warn!("the last request is dated {ahead} ahead of this host's clock; this one is dated behind it");
    }
    let outcome = if wait { Some(answer(opened, &id)?) } else { None };
    let refused = outcome.as_ref().is_some_and(|o| o.outcome == REFUSED);
    if json {
        super::print_json(&Submitted { request_version: requests::VERSION, id, request, outcome })?;
    } else {
        let text = match &outcome {
            Some(o) => format!("{}: {}", o.outcome, o.text),
            None => "asked; `beampilot request list` shows the answer".to_owned(),
        };
        super::print(&format!("{id} {}: {text}\n", request.line()))?;
    }
    Ok(if refused { Exit::Data } else { Exit::Done })
}

/// Waits for the last word on a request, as long as a pilot is there that could say it.
fn answer(opened: &Opened, id: &str) -> anyhow::Result<Outcome> {
    // A pilot that just starts has a moment to show up.
    let mut lonely_since = Instant::now();
    loop {
        if let Some(outcome) = requests::outcome(&RealFs, &opened.layout, id).filter(|o| o.outcome != ACCEPTED) {
            return Ok(outcome);
        }
        if lonely_since.elapsed() > Duration::from_secs(15) {
            if opened.report()?.pilots.iter().any(|p| p.life == "alive") {
                lonely_since = Instant::now();
            } else {
                let text = format!("no pilot runs; request {id} stays in the inbox for the next one");
                return Err(anyhow::anyhow!(text)).or_exit(Exit::TryLater);
            }
        }
        std::thread::sleep(LOOK);
    }
}

fn stream(opened: &Opened, name: &str) -> anyhow::Result<String> {
    let names: Vec<&str> = opened.campaign.streams.iter().map(|s| s.name.as_str()).collect();
    if names.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(anyhow::anyhow!("the campaign has no stream \"{name}\"; it has {}", names.join(", "))).or_exit(Exit::NoInput)
}

fn about(opened: &Opened, name: &str, make: impl FnOnce(String, String) -> Request) -> anyhow::Result<Request> {
    let (stream, scan) = opened.scan(name, &opened.report()?, &opened.asked()?)?;
    Ok(make(stream, scan))
}

fn reprocess(
    opened: &Opened,
    target: &str,
    entries: &[(String, toml::Value)],
    from_now_on: bool,
) -> anyhow::Result<Request> {
    let table = reconstruct::recipe_table(entries);
    let recipe = match serde_json::to_value(&table)? {
        serde_json::Value::Object(map) => map,
        _ => serde_json::Map::new(),
    };
    let (stream, scan) = if from_now_on {
        (stream(opened, target)?, None)
    } else {
        let (stream, scan) = opened.scan(target, &opened.report()?, &opened.asked()?)?;
        (stream, Some(scan))
    };
    // The pilot checks again, with its own edition of the campaign; here the person is still there to read it.
    let of = opened.campaign.stream(&stream).ok_or_else(|| anyhow::anyhow!("no stream {stream}"))?;
    let merged = requests::merge(&of.recipe, &recipe).map_err(|e| coded(Exit::Config, anyhow::anyhow!(e)))?;
    if let Some(technique) = technique::registry(&of.technique) {
        technique.recipe(&merged).or_exit(Exit::Config)?;
    }
    Ok(Request::Reprocess { stream, scan, recipe })
}

/// `user@host`, for people who read the inbox.
fn who() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "somebody".to_owned());
    let user: String = user.chars().filter(|c| !c.is_control()).take(64).collect();
    format!("{user}@{}", crate::store::claims::host_name())
}

#[derive(Debug, Serialize)]
struct Listed {
    request_version: u32,
    requests: Vec<Asked>,
}

fn list(opened: &Opened, json: bool) -> anyhow::Result<Exit> {
    let requests = opened.asked()?;
    if json {
        super::print_json(&Listed { request_version: requests::VERSION, requests })?;
        return Ok(Exit::Done);
    }
    if requests.is_empty() {
        super::print("nothing was asked for\n")?;
        return Ok(Exit::Done);
    }
    let row = |a: &Asked| {
        let what = match (&a.request, &a.problem) {
            (Some(request), _) => request.line(),
            (None, problem) => format!("no request: {}", problem.as_deref().unwrap_or_default()),
        };
        let outcome =
            a.outcome.as_ref().map_or("waiting for a pilot".to_owned(), |o| format!("{}: {}", o.outcome, o.text));
        vec![when(a.at_ms), a.by.clone(), what, outcome]
    };
    let head = ["asked (UTC)", "by", "request", "outcome"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(requests.iter().map(row)).collect();
    super::print(&columns(&rows))?;
    Ok(Exit::Done)
}
