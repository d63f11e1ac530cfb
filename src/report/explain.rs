//! One scan, from the files alone: why it waits, where it runs, what failed and when.
//!
//! Contract
//! - Nothing is asked of any process: records, claims, journals, status files and requests are read, on any node.
//! - [`Explanation::line`] is the one line that answers; everything else is what it is based on.
//! - Damaged or missing files make an explanation poorer, never impossible.

use super::scans;
use super::status::{self, Report};
use super::table::{seconds, when};
use crate::campaign::Campaign;
use crate::coordinator::event::Entry;
use crate::store::records::{Published, Quarantined, is_about};
use crate::store::requests::{Asked, Fold};
use crate::store::{Fs, Layout, claims, journal};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io;

/// Who owns a job of the scan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClaimView {
    /// Key of the job.
    pub key: String,
    /// The highest generation.
    pub generation: u32,
    /// Pilot.
    pub owner: String,
    /// `alive`, `ended`, `dead` or `silent`.
    pub life: String,
    /// When it was claimed, milliseconds since the epoch.
    pub at_ms: u64,
    /// Given back.
    pub released: bool,
}

/// The scan as a pilot sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Seen {
    /// Pilot.
    pub pilot: String,
    /// `alive` or `silent`.
    pub life: String,
    /// When the pilot said so, milliseconds since the epoch.
    pub as_of_ms: u64,
    /// Its job there.
    pub job: crate::coordinator::view::JobView,
    /// Why the pilot starts nothing.
    pub paused: Option<String>,
    /// It drains.
    pub draining: bool,
    /// Jobs of the stream that wait there, this one included.
    pub waiting: usize,
    /// Executors it has.
    pub workers: usize,
}

/// A line of some pilot's journal about the scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Happened {
    /// Milliseconds since the epoch.
    pub at_ms: u64,
    /// Whose journal.
    pub pilot: String,
    /// `arrived`, `claimed`, `failed`, `published`, `quarantined` or `dropped`.
    pub what: String,
    /// Task, worker and fault, or the reason.
    pub detail: String,
}

/// Everything about one scan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// Version of this schema.
    pub explain_version: u32,
    /// Stream.
    pub stream: String,
    /// Scan.
    pub scan: String,
    /// `running`, `waiting`, `held`, `checking`, `elsewhere`, `published`, `quarantined`, `skipped`, `arriving`, `interrupted`,
    /// `no-pilot` or `gone`.
    pub state: String,
    /// The answer.
    pub line: String,
    /// Results, latest last.
    pub published: Vec<Published>,
    /// Verdicts, latest last.
    pub quarantined: Vec<Quarantined>,
    /// Claims.
    pub claims: Vec<ClaimView>,
    /// What living pilots say of it.
    pub pilots: Vec<Seen>,
    /// What happened, latest last; at most [`HISTORY`].
    pub history: Vec<Happened>,
    /// Requests about it or its stream that are not refused.
    pub requests: Vec<Asked>,
    /// Its stream is held.
    pub held: bool,
    /// Sentinels for a drain.
    pub drains: Vec<String>,
    /// What arrivals of living pilots say of the stream.
    pub arrivals: Vec<status::ArrivalsView>,
}

/// Most lines of history kept.
pub const HISTORY: usize = 50;
/// A status may be older than it says by this: the view in it, the clocks of two hosts.
const STALE_MS: u64 = 3000;
/// Version of [`Explanation`].
pub const VERSION: u32 = 1;

/// Puts everything about one scan together.
///
/// # Errors
/// The claims cannot be listed.
pub fn explain(
    fs: &dyn Fs,
    layout: &Layout,
    campaign: &Campaign,
    report: &Report,
    asked: &[Asked],
    (stream, scan): (&str, &str),
) -> io::Result<Explanation> {
    let living = || report.pilots.iter().filter(|p| matches!(p.life.as_str(), "alive" | "silent"));
    let see = |p: &status::PilotReport| {
        let view = &p.status.view;
        let job = view.jobs.iter().find(|j| j.stream == stream && j.name == scan)?;
        Some(Seen {
            pilot: p.status.identity.pilot.clone(),
            life: p.life.clone(),
            as_of_ms: p.status.written_ms,
            job: job.clone(),
            paused: view.paused.clone(),
            draining: view.draining,
            waiting: view.streams.iter().find(|s| s.name == stream).map_or(0, |s| s.waiting),
            workers: view.workers.len(),
        })
    };
    let counts = |a: &&Asked| a.outcome.as_ref().is_none_or(|o| o.outcome != "refused");
    let fold = Fold::of(asked.iter().filter(counts).filter_map(|a| a.request.as_ref()));
    let about = |a: &&Asked| {
        a.request.as_ref().is_some_and(|r| {
            let (s, n) = r.about();
            s == stream && n.is_none_or(|n| n == scan)
        })
    };
    let drains = fs.list(&layout.state.join("drain")).unwrap_or_default();
    let mut e = Explanation {
        explain_version: VERSION,
        stream: stream.to_owned(),
        scan: scan.to_owned(),
        state: String::new(),
        line: String::new(),
        published: report.published.iter().filter(|p| p.stream == stream && p.scan == scan).cloned().collect(),
        quarantined: report.quarantined.iter().filter(|q| q.stream == stream && q.scan == scan).cloned().collect(),
        claims: claims_of(fs, layout, report, stream, scan)?,
        pilots: living().filter_map(see).collect(),
        history: history(fs, layout, stream, scan),
        requests: asked.iter().filter(counts).filter(about).cloned().collect(),
        held: fold.held.contains(stream),
        drains: drains.into_iter().filter(|d| !d.starts_with('.')).collect(),
        arrivals: living().flat_map(|p| p.status.arrivals.iter().filter(|a| a.stream == stream).cloned()).collect(),
    };
    let skipped = fold.skipped.contains(&(stream.to_owned(), scan.to_owned()));
    let there = scans::is_there(campaign, stream, scan);
    let first_pilot = crate::coordinator::pilot::first_pilot_if_any(fs, layout);
    let arriving = |e: &Explanation| super::arriving::why(campaign, (stream, scan), first_pilot, &e.arrivals);
    let (state, line) = verdict(&e, skipped, there, living().count(), &arriving);
    (e.state, e.line) = (state.to_owned(), line);
    Ok(e)
}

fn verdict(
    e: &Explanation,
    skipped: bool,
    there: bool,
    living: usize,
    arriving: &dyn Fn(&Explanation) -> String,
) -> (&'static str, String) {
    let known = |owner: Option<&String>| owner.filter(|o| *o != "unknown").cloned();
    // Who works on it knows more than who waits for that.
    let rank = |s: &&Seen| match s.job.phase.as_str() {
        "waiting" => 1,
        "checking" => 2,
        "elsewhere" => 0,
        _ => 3,
    };
    // A record is written before the pilot's next status, which would still call the job running.
    let records = e.published.iter().map(|p| p.published_ms).chain(e.quarantined.iter().map(|q| q.at_ms));
    let latest = records.max().map_or(0, |ms| ms + STALE_MS);
    if let Some(seen) = e.pilots.iter().filter(|s| s.as_of_ms > latest).max_by_key(rank) {
        let job = &seen.job;
        return match job.phase.as_str() {
            "elsewhere" => match known(job.owner.as_ref()) {
                Some(owner) => ("elsewhere", format!("pilot {owner} works on it; others wait for that")),
                None => ("elsewhere", "another pilot works on it".to_owned()),
            },
            "waiting" | "checking" if e.held => ("held", format!("it is there and waits: {}", why_waiting(e, seen))),
            "waiting" => ("waiting", format!("it is complete and waits: {}", why_waiting(e, seen))),
            "checking" => ("checking", format!("it is being checked before it is claimed{}", at(seen))),
            phase => {
                let stop = if e.held { "; its stream is held, so nothing new of it is started" } else { "" };
                let pause = seen.paused.as_ref().map_or(String::new(), |why| format!("; paused: {why}"));
                let (done, tasks) = (job.done, job.tasks);
                let failed = failures(e);
                ("running", format!("{phase}, {done} of {tasks} tasks done{}{failed}{stop}{pause}", at(seen)))
            }
        };
    }
    let published = e.published.last().map_or(0, |p| p.published_ms);
    let quarantined = e.quarantined.last();
    if let Some(q) = quarantined.filter(|q| q.at_ms >= published) {
        let again = format!("`quarantine release {}/{}` tries it again", e.stream, e.scan);
        return ("quarantined", format!("in quarantine since {} UTC: {}; {again}", when(q.at_ms), q.reason));
    }
    if skipped {
        let again = format!("`request release {}/{}` takes it in again", e.stream, e.scan);
        return ("skipped", format!("a person asked to leave it out; {again}"));
    }
    if let Some(p) = e.published.last() {
        let lag = p.lag.as_ref().map_or(String::new(), |l| format!(", {} after its last byte", seconds(l.total)));
        return ("published", format!("published {} UTC{lag}: {}", when(p.published_ms), p.bundle));
    }
    if let Some(claim) = e.claims.iter().rfind(|c| !c.released) {
        let then = if living > 0 { "another one takes it over" } else { "the next pilot takes it over" };
        return ("interrupted", format!("pilot {} began it and is {}; {then}", claim.owner, claim.life));
    }
    if living == 0 {
        return ("no-pilot", "no pilot runs; start one with `beampilot run`".to_owned());
    }
    if !there {
        return ("gone", "it is not in the watched folder (any more), and nothing was made of it".to_owned());
    }
    ("arriving", arriving(e))
}

/// What failed since the scan was last claimed.
fn failures(e: &Explanation) -> String {
    let claimed = e.history.iter().rposition(|h| h.what == "claimed").unwrap_or(0);
    let failed: Vec<&Happened> = e.history.iter().skip(claimed).filter(|h| h.what == "failed").collect();
    let Some(last) = failed.last() else { return String::new() };
    let tries = if failed.len() == 1 { "a try".to_owned() } else { format!("{} tries", failed.len()) };
    format!("; {tries} failed, last {} UTC: {}", when(last.at_ms), last.detail)
}

/// ` in pilot x on host:3`.
fn at(seen: &Seen) -> String {
    let place =
        if seen.job.workers.is_empty() { String::new() } else { format!(" on {}", seen.job.workers.join(", ")) };
    let silent = if seen.life == "silent" { ", which has not been heard lately" } else { "" };
    format!(" in pilot {}{place}{silent}", seen.pilot)
}

fn why_waiting(e: &Explanation, seen: &Seen) -> String {
    if e.held {
        format!("stream {} is held; `request resume {}` lets it go on", e.stream, e.stream)
    } else if seen.draining {
        "the pilot drains and starts nothing more".to_owned()
    } else if let Some(why) = &seen.paused {
        format!("the pilot is paused: {why}")
    } else if seen.workers == 0 {
        "the pilot has no workers".to_owned()
    } else {
        format!("{} scans of its stream wait for {} workers", seen.waiting, seen.workers)
    }
}

fn claims_of(fs: &dyn Fs, layout: &Layout, report: &Report, stream: &str, scan: &str) -> io::Result<Vec<ClaimView>> {
    let mut highest: BTreeMap<String, u32> = BTreeMap::new();
    let mut released = BTreeSet::new();
    for name in fs.list(&layout.state.join("claims"))? {
        let (claim, given_back) = name.strip_suffix(".released").map_or((name.as_str(), false), |c| (c, true));
        let Some((key, generation)) = claim.rsplit_once('.') else { continue };
        let Some(generation) = generation.parse::<u32>().ok().filter(|_| is_about(key, stream, scan)) else { continue };
        if given_back {
            released.insert((key.to_owned(), generation));
        }
        let top = highest.entry(key.to_owned()).or_insert(0);
        *top = generation.max(*top);
    }
    let mut found = Vec::new();
    for (key, generation) in highest {
        let Ok(record) = claims::record(fs, layout, &key, generation) else { continue };
        let owner = record.owner.pilot;
        let life = report.pilots.iter().find(|p| p.status.identity.pilot == owner);
        let life = life.map_or("unknown", |p| &p.life).to_owned();
        let released = released.contains(&(key.clone(), generation));
        found.push(ClaimView { key, generation, owner, life, at_ms: record.at_ms, released });
    }
    found.sort_by_key(|c| c.at_ms);
    Ok(found)
}

fn history(fs: &dyn Fs, layout: &Layout, stream: &str, scan: &str) -> Vec<Happened> {
    let mut all = Vec::new();
    for name in fs.list(&layout.state.join("journal")).unwrap_or_default() {
        let Some(pilot) = name.strip_suffix(".jsonl").filter(|p| !p.starts_with('.')) else { continue };
        let Ok(found) = journal::read(fs, &layout.journal(pilot)) else { continue };
        if found.lines.is_empty() {
            // Its first line is written before anything happens.
            let file = layout.journal(pilot);
            tracing::warn!(file = %file.display(), "a journal holds nothing; what its pilot did is known from records only");
        }
        let mut ours = BTreeSet::new();
        for line in found.lines {
            let (job, what, detail) = match line.event {
                Entry::Arrived { job, key, .. } => {
                    if !is_about(&key, stream, scan) {
                        continue;
                    }
                    ours.insert(job);
                    (job, "arrived", key)
                }
                Entry::Claimed { job, generation } => (job, "claimed", format!("generation {generation}")),
                Entry::Failed { job, label, worker, fault, .. } => {
                    (job, "failed", format!("task {label} on worker {worker}: {fault}"))
                }
                Entry::Published { job, bundle } => (job, "published", bundle),
                Entry::Quarantined { job, reason } => (job, "quarantined", reason),
                Entry::Dropped { job, reason } => (job, "dropped", reason),
                _ => continue,
            };
            if ours.contains(&job) {
                let (pilot, what) = (pilot.to_owned(), what.to_owned());
                all.push(Happened { at_ms: line.t_ms, pilot, what, detail });
            }
        }
    }
    all.sort_by_key(|h| h.at_ms);
    all.drain(..all.len().saturating_sub(HISTORY));
    all
}

/// The explanation for people: the answer first.
pub fn page(e: &Explanation) -> String {
    let mut out = format!("{}/{}: {}\n", e.stream, e.scan, e.line);
    for p in &e.published {
        let _ = writeln!(out, "  published {} UTC by {}: {}", when(p.published_ms), p.pilot, p.bundle);
        if let Some(l) = &p.lag {
            let parts = [
                ("settling", l.settling),
                ("waiting", l.waiting),
                ("planning", l.planning),
                ("computing", l.computing),
                ("publishing", l.publishing),
            ];
            let parts = parts.map(|(name, s)| format!("{name} {}", seconds(s))).join(", ");
            let _ = writeln!(out, "    lag {} = {parts}", seconds(l.total));
        }
    }
    // The first line says the last one.
    let told = usize::from(e.state == "quarantined");
    for q in e.quarantined.iter().rev().skip(told).rev() {
        let _ = writeln!(out, "  quarantined {} UTC by {}: {}", when(q.at_ms), q.pilot, q.reason);
    }
    for c in &e.claims {
        let back = if c.released { ", given back" } else { "" };
        let _ = writeln!(
            out,
            "  claim {} UTC, {}.{}: pilot {} ({}){back}",
            when(c.at_ms),
            c.key,
            c.generation,
            c.owner,
            c.life
        );
    }
    for s in &e.pilots {
        let j = &s.job;
        let late = if j.late { ", late" } else { "" };
        if j.phase == "elsewhere" {
            let _ = writeln!(out, "  pilot {} ({}): leaves it to its owner", s.pilot, s.life);
            continue;
        }
        let _ = writeln!(
            out,
            "  pilot {} ({}): {}, {}/{} tasks, {} since its last byte{late}",
            s.pilot,
            s.life,
            j.phase,
            j.done,
            j.tasks,
            seconds(j.lag_s)
        );
    }
    for r in &e.requests {
        let text = r.outcome.as_ref().map_or("not looked at yet".to_owned(), |o| format!("{}: {}", o.outcome, o.text));
        let what = r.request.as_ref().map_or_else(String::new, |r| r.line());
        let _ = writeln!(out, "  request {} UTC by {}: {what} ({text})", when(r.at_ms), r.by);
    }
    if !e.drains.is_empty() {
        let _ = writeln!(out, "  drain asked for: {}", e.drains.join(", "));
    }
    if !e.history.is_empty() {
        out.push_str("  what happened (UTC)\n");
    }
    for h in &e.history {
        // Once is enough.
        let reason = e.quarantined.iter().map(|q| q.reason.as_str()).find(|r| !r.is_empty() && h.detail.contains(*r));
        let detail = reason.map_or_else(|| h.detail.clone(), |reason| h.detail.replace(reason, "the reason above"));
        let _ = writeln!(out, "    {} {}: {detail} (pilot {})", when(h.at_ms), h.what, h.pilot);
    }
    out
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
