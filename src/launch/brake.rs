//! When to start again, and when to give up: the crash-loop brake, and the score of hosts that crash.
//!
//! Contract: pure; times come from the caller.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Unsuccessful launches within [`WINDOW`] after which nothing is started any more.
pub const MOST: usize = 5;
/// See [`MOST`].
pub const WINDOW: Duration = Duration::from_secs(600);
/// A launch that lived this long was successful, whatever ended it.
pub const LIVED: Duration = Duration::from_secs(300);
/// The first pause; each further one is twice as long.
const FIRST: Duration = Duration::from_secs(1);
/// A host to which this many launches in a row owe their end is left out.
const HOST_CRASHES: u32 = 3;

/// See the module.
#[derive(Debug, Default)]
pub struct Brake {
    failures: VecDeque<Instant>,
    crashes: BTreeMap<String, u32>,
    bad: BTreeSet<String>,
}

impl Brake {
    /// Notes a launch that ended by dying at `now`, after `lived`; `culprit` is the host that died first, if the
    /// launcher said so. Returns the pause before the next launch; `None`: give up.
    pub fn failed(&mut self, now: Instant, lived: Duration, culprit: Option<&str>) -> Option<Duration> {
        // In a row: every host but the culprit is acquitted.
        self.crashes.retain(|host, _| Some(host.as_str()) == culprit);
        if let Some(host) = culprit {
            let crashes = self.crashes.entry(host.to_owned()).or_default();
            *crashes += 1;
            if *crashes >= HOST_CRASHES {
                self.bad.insert(host.to_owned());
            }
        }
        if lived >= LIVED {
            self.failures.clear();
            return Some(FIRST);
        }
        self.failures.push_back(now);
        while self.failures.front().is_some_and(|&t| now.duration_since(t) > WINDOW) {
            self.failures.pop_front();
        }
        let n = self.failures.len();
        let doublings = u32::try_from(n.saturating_sub(1)).unwrap_or(u32::MAX).min(8);
        (n < MOST).then(|| FIRST * 2u32.pow(doublings))
    }

    /// The host crashed in so many launches in a row; it stays condemned.
    pub fn condemns(&self, host: &str) -> bool {
        self.bad.contains(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_the_fifth_failure_is_the_last() {
        let (mut brake, now) = (Brake::default(), Instant::now());
        let short = Duration::from_secs(3);
        let pauses: Vec<_> = (0..5).map(|_| brake.failed(now, short, None).map(|d| d.as_secs())).collect();
        assert_eq!(pauses, [Some(1), Some(2), Some(4), Some(8), None]);
    }

    #[test]
    fn old_failures_and_long_lives_are_forgotten() {
        let (mut brake, now) = (Brake::default(), Instant::now());
        let short = Duration::from_secs(3);
        for i in 0..20 {
            let at = now + Duration::from_secs(200 * i);
            assert!(brake.failed(at, short, None).is_some(), "at most four in ten minutes");
        }
        assert_eq!(brake.failed(now + Duration::from_secs(4001), LIVED, None), Some(FIRST));
    }

    #[test]
    fn a_host_is_condemned_by_three_crashes_in_a_row() {
        let (mut brake, now) = (Brake::default(), Instant::now());
        for host in ["a", "a", "b", "a", "a"] {
            brake.failed(now, LIVED, Some(host));
        }
        assert!(!brake.condemns("a"));
        brake.failed(now, LIVED, Some("a"));
        assert!(brake.condemns("a") && !brake.condemns("b"));
        brake.failed(now, LIVED, Some("b"));
        assert!(brake.condemns("a"), "for the rest of the job");
    }
}
