//! Live progress of a pilot: one moving line when standard error is a terminal, log lines when scans end otherwise.

use crate::coordinator::view::View;
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::OnceLock;

static BAR: OnceLock<ProgressBar> = OnceLock::new();

/// Runs `print` with the moving line out of the way; log writers use it.
pub fn beside<R>(print: impl FnOnce() -> R) -> R {
    match BAR.get() {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// Shows views.
pub struct Progress {
    seen: u64,
    settling: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl Progress {
    /// `terminal`: draw the moving line. `settling` counts scans that arrivals wait for.
    pub fn new(terminal: bool, settling: std::sync::Arc<std::sync::atomic::AtomicUsize>) -> Self {
        if terminal {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            bar.set_style(style);
            let _ = BAR.set(bar);
        }
        Self { seen: 0, settling }
    }

    /// Takes in a view: logs what ended since the last one, and moves the line.
    pub fn show(&mut self, view: &View) {
        let ended = view.counts.published + view.counts.quarantined;
        let new = usize::try_from(ended.saturating_sub(self.seen)).unwrap_or(usize::MAX);
        self.seen = ended;
        let of_interest = || view.ended.iter().filter(|e| matches!(e.outcome.as_str(), "published" | "quarantined"));
        for e in of_interest().skip(of_interest().count().saturating_sub(new)) {
            match e.lag {
                Some(lag) => tracing::info!(
                    "published {}/{} {:.1} s after its last byte: {}",
                    e.stream,
                    e.name,
                    lag.total,
                    e.detail
                ),
                None => tracing::warn!("quarantined {}/{}: {}", e.stream, e.name, e.detail),
            }
        }
        if let Some(bar) = BAR.get() {
            bar.set_message(line(view, self.settling.load(std::sync::atomic::Ordering::Relaxed)));
            bar.tick();
        }
    }

    /// Takes the line away.
    pub fn end(&self) {
        if let Some(bar) = BAR.get() {
            bar.finish_and_clear();
        }
    }
}

/// The moving line: `3 published · 2 settling · 2bm/scan_004 computing 12/40 · 1 waiting`.
fn line(view: &View, settling: usize) -> String {
    let mut parts = vec![format!("{} published", view.counts.published)];
    if view.counts.quarantined > 0 {
        parts.push(format!("{} quarantined", view.counts.quarantined));
    }
    if let Some(why) = &view.paused {
        parts.push(format!("PAUSED: {why}"));
    }
    if view.draining {
        parts.push("draining".to_owned());
    }
    if settling > 0 {
        parts.push(format!("{settling} arriving"));
    }
    let waiting = view.streams.iter().map(|s| s.waiting).sum::<usize>();
    let working = view.jobs.iter().filter(|j| !matches!(j.phase.as_str(), "waiting" | "elsewhere"));
    let shown = working.take(3).map(|j| format!("{}/{} {} {}/{}", j.stream, j.name, j.phase, j.done, j.tasks));
    parts.extend(shown);
    if waiting > 0 {
        parts.push(format!("{waiting} waiting"));
    }
    parts.join(" · ")
}
