//! The slow look at what is finished: a later rewrite is a new version.
//!
//! Contract: bounded rates, counted in stats, whatever the number of scans. What was processed within the
//! last hour is looked at every minute; the rest in turn, 100 000 scans in about a quarter of an hour.

use super::listing::Listing;
use super::observe::Seen;
use super::scan::Scan;
use super::watcher::{Now, Phase, Watcher};
use std::sync::Arc;
use std::time::Duration;

/// Finished scans are looked at again: within their first hour every [`RECENT_EVERY`], later in turn.
const RECENT: Duration = Duration::from_secs(3600);
const RECENT_EVERY: f64 = 60.0;
const RECENT_RATE: f64 = 50.0;
const SWEEP_EVERY: f64 = 600.0;
const SWEEP_RATE: f64 = 100.0;

impl Watcher {
    /// Looks at finished scans again: a later rewrite is a new version.
    pub(super) fn sweep(&mut self, now: Now, fs: &mut dyn Listing) {
        let elapsed = now.mono.saturating_sub(self.swept_at).as_secs_f64().min(5.0);
        self.swept_at = now.mono;
        let rate = |n: usize, every: f64, max: f64| (n as f64 / every).min(max);
        self.credit.0 =
            (self.credit.0 + elapsed * rate(self.recent.len(), RECENT_EVERY, RECENT_RATE)).min(RECENT_RATE * 5.0);
        self.credit.1 =
            (self.credit.1 + elapsed * rate(self.sweep.len(), SWEEP_EVERY, SWEEP_RATE)).min(SWEEP_RATE * 5.0);
        if self.trouble.is_some() {
            return;
        }
        while self.credit.0 >= 1.0 {
            let Some(name) = self.recent.pop_front() else { break };
            if let Some(cost) = self.look_again(&name, now, fs) {
                self.credit.0 -= cost;
                let recent = self.scans.get(&name).is_some_and(|s| now.mono < s.finished_at + RECENT);
                if recent { self.recent.push_back(name) } else { self.sweep.push_back(name) }
            }
        }
        while self.credit.1 >= 1.0 {
            let Some(name) = self.sweep.pop_front() else { break };
            if let Some(cost) = self.look_again(&name, now, fs) {
                self.credit.1 -= cost;
                self.sweep.push_back(name);
            }
        }
    }

    /// The sweep's look at a finished scan; what it cost in stats, `None` when it is no longer finished.
    fn look_again(&mut self, name: &Arc<str>, now: Now, fs: &mut dyn Listing) -> Option<f64> {
        let scan = self.scans.get_mut(name)?;
        if scan.phase != Phase::Known {
            scan.swept = false;
            return None;
        }
        let before = scan.own;
        // A filesystem that fails says nothing about the scan.
        let Ok(seen) = self.observe(name, fs) else { return Some(1.0) };
        let (Seen::Members(stamps) | Seen::Refused(_, stamps) | Seen::Unfinished(_, stamps)) = seen else {
            self.unsweep(name, now);
            return None;
        };
        let own = Scan { members: stamps, ..Scan::default() };
        let version = own.version();
        let Ok(relinked) = self.relinked(name, version, fs) else { return Some(1.0) };
        let same = self.scans.get(name).is_none_or(|s| s.relinked == relinked);
        if before != Some(version) || !same {
            self.unsweep(name, now);
            return None;
        }
        Some((own.members.len() + self.linked_files(name)) as f64)
    }

    fn unsweep(&mut self, name: &Arc<str>, now: Now) {
        if let Some(scan) = self.scans.get_mut(name) {
            scan.swept = false;
        }
        self.schedule(name, now.mono);
    }
}
