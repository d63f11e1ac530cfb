//! How often the journal is synced: at once as a rule; under a flood of lines larger groups are gathered.
//!
//! A scan's own steps are a dozen lines, and none of them waits. Hundreds of short tasks a second would each have a sync
//! of their own, which costs more than the tasks' dispatch; then up to [`REST`] of lines share one.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Syncs within [`WINDOW`] that are no flood.
const CALM: u32 = 30;
const WINDOW: Duration = Duration::from_millis(100);
/// Longest that a line waits for others: a claim adds less than 5 ms to a scan's lag.
const REST: Duration = Duration::from_millis(3);

/// Counts syncs.
pub(super) struct Pace {
    since: Cell<Instant>,
    syncs: Cell<u32>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { since: Cell::new(Instant::now()), syncs: Cell::new(0) }
    }

    /// After a sync: how long to rest before the next one.
    pub(super) fn rest(&self, now: Instant) -> Duration {
        if now.duration_since(self.since.get()) > WINDOW {
            // A flood that goes on stays one: half of what was counted is remembered.
            let calm = now.duration_since(self.since.get()) > 2 * WINDOW;
            self.syncs.set(if calm { 0 } else { self.syncs.get().min(2 * CALM) / 2 });
            self.since.set(now);
        }
        self.syncs.set(self.syncs.get() + 1);
        if self.syncs.get() > CALM { REST } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_lines_never_wait_and_floods_share_syncs() {
        let pace = Pace::new();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert!((0..50).all(|i| pace.rest(at(i * 10)).is_zero()), "a hundred syncs a second are no flood");
        let mut now = Duration::from_secs(1);
        let mut syncs = 0;
        while now < Duration::from_secs(2) {
            // A sync takes a quarter of a millisecond, and lines wait all the time.
            now += Duration::from_micros(250) + pace.rest(start + now);
            syncs += 1;
        }
        assert!((300..400).contains(&syncs), "{syncs}");
        assert!(pace.rest(start + now + Duration::from_secs(1)).is_zero(), "calm again");
    }
}
