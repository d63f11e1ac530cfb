//! Moments, and where a job's time went.

use serde::{Deserialize, Serialize};

/// Microseconds since the epoch, never going backwards (drivers add monotonic time to the wall time of their start).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Time(pub u64);

impl Time {
    /// From milliseconds since the epoch.
    pub fn from_ms(ms: u64) -> Self {
        Self(ms.saturating_mul(1000))
    }
    /// This many seconds later.
    pub fn plus_s(self, seconds: f64) -> Self {
        Self(self.0.saturating_add((seconds.max(0.0) * 1e6) as u64))
    }
    /// Seconds from `earlier` to here, 0 if it is later.
    pub fn since_s(self, earlier: Self) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 * 1e-6
    }
}

/// When a job passed its milestones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Timeline {
    /// Last byte arrived.
    pub last_byte: Time,
    /// Found complete by its rule.
    pub complete: Time,
    /// Probe or hashes agreed.
    pub checked: Time,
    /// Claimed by this pilot.
    pub claimed: Time,
    /// Plan returned.
    pub planned: Time,
    /// Preview written.
    pub previewed: Option<Time>,
    /// Finish task ended.
    pub computed: Time,
}

/// Where a job's lag went, in seconds; the parts add up to the total.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Lag {
    /// Last byte to complete: the completeness rule.
    pub settling: f64,
    /// Complete to claimed: probe, queue.
    pub waiting: f64,
    /// Claimed to planned.
    pub planning: f64,
    /// Planned to finished bundle.
    pub computing: f64,
    /// Finished to published.
    pub publishing: f64,
    /// Last byte to published.
    pub total: f64,
}

impl Timeline {
    /// The lag of a job published at `published`. A milestone out of order (clock skew) counts as no time.
    pub fn lag(&self, published: Time) -> Lag {
        let marks = [self.last_byte, self.complete, self.claimed, self.planned, self.computed, published];
        let mut parts = [0.0; 5];
        let mut latest = marks[0];
        for (part, mark) in parts.iter_mut().zip(&marks[1..]) {
            *part = mark.since_s(latest);
            latest = latest.max(*mark);
        }
        let [settling, waiting, planning, computing, publishing] = parts;
        Lag { settling, waiting, planning, computing, publishing, total: parts.iter().sum() }
    }
}
