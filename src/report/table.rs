//! Tables for people: the text of `beampilot status`.

use super::status::{PilotReport, Report};
use crate::store::records::Published;
use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

/// Rows of published scans that are shown; `--json` has all.
const ROWS: usize = 40;

/// `2026-11-22 17:03:12` (UTC).
pub fn when(ms: u64) -> String {
    let text = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms)).to_string();
    text.replace('T', " ").trim_end_matches('Z').to_owned()
}

/// Seconds as people read them: `8.2 s`, `3 min 20 s`.
pub fn seconds(s: f64) -> String {
    if s < 100.0 {
        format!("{s:.1} s")
    } else if s < 6000.0 {
        format!("{} min {:02} s", (s / 60.0) as u64, (s % 60.0) as u64)
    } else {
        format!("{:.1} h", s / 3600.0)
    }
}

/// A table with columns as wide as needed; the first row is the head.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(text, w)| format!("{text:<w$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn cells<const N: usize>(row: [&str; N]) -> Vec<String> {
    row.map(str::to_owned).to_vec()
}

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "campaign {}   state {}\n", report.campaign, report.state);
    if report.pilots.is_empty() {
        out.push_str("no pilot has run yet\n");
    }
    report.pilots.iter().filter(|p| p.life == "alive" || p.life == "silent").for_each(|p| pilot(&mut out, p));
    if let Some(last) = report.pilots.first().filter(|p| p.life == "ended" || p.life == "dead") {
        let s = &last.status;
        let _ = writeln!(out, "last pilot {}: {} at {}\n", s.identity.pilot, last.life, when(s.written_ms));
    }
    published(&mut out, &report.published);
    if !report.quarantined.is_empty() {
        let _ = writeln!(out, "\nquarantine ({})", report.quarantined.len());
        let from = report.quarantined.len().saturating_sub(ROWS);
        for q in &report.quarantined[from..] {
            let _ = writeln!(out, "  {}/{}: {}", q.stream, q.scan, q.reason);
        }
    }
    out
}

fn pilot(out: &mut String, p: &PilotReport) {
    let s = &p.status;
    let v = &s.view;
    let _ = writeln!(
        out,
        "pilot {} ({}, {} workers, {}, last beat {} ago)",
        s.identity.pilot,
        s.transport,
        v.workers.len(),
        if p.life == "alive" { &s.state } else { &p.life },
        seconds(p.silent_s.min(1e9)),
    );
    if let Some(why) = &v.paused {
        let _ = writeln!(out, "  PAUSED: {why}");
    }
    for text in &s.alarms {
        let _ = writeln!(out, "  ALARM: {text}");
    }
    if v.draining {
        out.push_str("  draining: nothing new is started\n");
    }
    if !v.held.is_empty() {
        let _ = writeln!(out, "  held: {}; `beampilot request resume STREAM` lets one go on", v.held.join(", "));
    }
    if !v.drained.is_empty() {
        let _ = writeln!(out, "  drained: {}; they get no more work", v.drained.join(", "));
    }
    for a in s.arrivals.iter().filter(|a| a.trouble.is_some()) {
        let _ = writeln!(out, "  stream {}: {}", a.stream, a.trouble.as_deref().unwrap_or_default());
    }
    let mut rows =
        vec![cells(["  stream", "settling", "no companion", "checking", "waiting", "active", "elsewhere", "late"])];
    for stream in &v.streams {
        let a = s.arrivals.iter().find(|a| a.stream == stream.name).cloned().unwrap_or_default();
        let counts =
            [a.settling, a.waiting_role, stream.checking, stream.waiting, stream.active, stream.elsewhere, stream.late];
        let mut row = vec![format!("  {}", stream.name)];
        row.extend(counts.iter().map(usize::to_string));
        rows.push(row);
    }
    out.push_str(&columns(&rows));
    let mut rows = vec![cells(["  scan", "phase", "tasks", "since last byte"])];
    for job in v.jobs.iter().filter(|j| !matches!(j.phase.as_str(), "waiting" | "elsewhere")).take(ROWS) {
        let late = if job.late { " (late)" } else { "" };
        rows.push(vec![
            format!("  {}/{}", job.stream, job.name),
            job.phase.clone(),
            format!("{}/{}", job.done, job.tasks),
            format!("{}{late}", seconds(job.lag_s)),
        ]);
    }
    if rows.len() > 1 {
        out.push_str(&columns(&rows));
    }
    if !v.errors.is_empty() {
        out.push_str("  last errors\n");
    }
    for e in v.errors.iter().rev().take(5) {
        let _ = writeln!(
            out,
            "    {} {}/{} {} on worker {}: {}",
            when(e.at_ms),
            e.stream,
            e.name,
            e.task,
            e.worker,
            e.fault
        );
    }
    let failed: u64 = v.workers.iter().map(|w| w.failed).sum();
    let peak = v.workers.iter().map(|w| w.peak_bytes).max().unwrap_or(0);
    let held = if peak > 0 { format!(", at most {:.1} GB held by one", peak as f64 / 1e9) } else { String::new() };
    let busy = v.workers.iter().filter(|w| w.in_flight > 0).count();
    let _ = writeln!(
        out,
        "  workers: {busy} of {} busy, {} tasks done, {failed} tries failed{held}\n",
        v.workers.len(),
        v.counts.tasks
    );
}

fn published(out: &mut String, all: &[Published]) {
    if all.is_empty() {
        out.push_str("nothing is published yet\n");
        return;
    }
    let _ = writeln!(out, "published ({}); lag = settling + waiting + planning + computing + publishing", all.len());
    let head = [
        "  scan",
        "last byte (UTC)",
        "lag",
        "settle",
        "wait",
        "plan",
        "compute",
        "publish",
        "preview",
        "content",
        "bundle",
    ];
    let mut rows = vec![cells(head)];
    for p in &all[all.len().saturating_sub(ROWS)..] {
        let part = |f: fn(&crate::coordinator::event::Lag) -> f64| {
            p.lag.as_ref().map_or("-".to_owned(), |l| format!("{:.1}", f(l)))
        };
        rows.push(vec![
            format!("  {}/{}", p.stream, p.scan),
            when(p.last_byte_ms),
            p.lag.as_ref().map_or("-".to_owned(), |l| seconds(l.total)),
            part(|l| l.settling),
            part(|l| l.waiting),
            part(|l| l.planning),
            part(|l| l.computing),
            part(|l| l.publishing),
            p.preview_s.map_or("-".to_owned(), seconds),
            p.items.clone(),
            p.bundle.clone(),
        ]);
    }
    out.push_str(&columns(&rows));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_read_well() {
        for (s, want) in [(0.04, "0.0 s"), (8.25, "8.2 s"), (200.0, "3 min 20 s"), (7200.0, "2.0 h")] {
            assert_eq!(seconds(s), want);
        }
    }

    #[test]
    fn columns_line_up() {
        let table = columns(&[cells(["a", "bb"]), cells(["ccc", "d"])]);
        assert_eq!(table, "a    bb\nccc  d\n");
    }
}
