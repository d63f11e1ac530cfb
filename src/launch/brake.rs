//! When to start again, and when to give up: the crash-loop brake, and the score of hosts and their GPUs that crash.
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
/// A GPU to which this many launches in a row owe their end is left out; a host, when it was not always the same GPU, or
/// when one of it is left out already.
pub const CRASHES: usize = 3;

/// Where a launch died first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The host.
    pub host: String,
    /// The number of the rank on it, where ranks have GPUs of their own.
    pub gpu: Option<usize>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Brake {
    failures: VecDeque<Instant>,
    /// In a row, all on one host.
    crashes: Vec<Place>,
    bad: BTreeSet<String>,
    bad_gpus: BTreeMap<String, usize>,
}

impl Brake {
    /// Notes a launch that ended by dying at `now`, after `lived`; `culprit` is where it died first, if the launcher said
    /// so. Returns the pause before the next launch; `None`: give up.
    pub fn failed(&mut self, now: Instant, lived: Duration, culprit: Option<Place>) -> Option<Duration> {
        // In a row: every host but the culprit is acquitted.
        self.crashes.retain(|place| culprit.as_ref().is_some_and(|c| c.host == place.host));
        self.crashes.extend(culprit);
        if self.crashes.len() >= CRASHES {
            let last = self.crashes.split_off(self.crashes.len() - CRASHES);
            self.crashes.clear();
            let Place { host, gpu } = last[0].clone();
            match gpu.filter(|_| last.iter().all(|place| place.gpu == gpu) && !self.bad_gpus.contains_key(&host)) {
                Some(gpu) => drop(self.bad_gpus.insert(host, gpu)),
                None => drop(self.bad.insert(host)),
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

    /// GPUs that crashed in so many launches in a row, by host; they stay condemned.
    pub fn bad_gpus(&self) -> impl Iterator<Item = (&str, usize)> {
        self.bad_gpus.iter().map(|(host, gpu)| (host.as_str(), *gpu))
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
        let on = |host: &str| Some(Place { host: host.into(), gpu: None });
        for host in ["a", "a", "b", "a", "a"] {
            brake.failed(now, LIVED, on(host));
        }
        assert!(!brake.condemns("a"));
        brake.failed(now, LIVED, on("a"));
        assert!(brake.condemns("a") && !brake.condemns("b"));
        brake.failed(now, LIVED, on("b"));
        assert!(brake.condemns("a"), "for the rest of the job");
    }

    #[test]
    fn one_bad_gpu_is_left_out_and_two_are_a_bad_host() {
        let (mut brake, now) = (Brake::default(), Instant::now());
        let mut crash = |gpus: &[usize]| {
            for &gpu in gpus {
                brake.failed(now, LIVED, Some(Place { host: "a".into(), gpu: Some(gpu) }));
            }
            (brake.bad_gpus().map(|(_, gpu)| gpu).collect::<Vec<_>>(), brake.condemns("a"))
        };
        assert_eq!(crash(&[2, 2]), (vec![], false));
        assert_eq!(crash(&[2]), (vec![2], false));
        assert_eq!(crash(&[1, 1]), (vec![2], false), "counted anew without it");
        assert_eq!(crash(&[1]), (vec![2], true));
        let mut brake = Brake::default();
        for gpu in [0, 1, 2] {
            brake.failed(now, LIVED, Some(Place { host: "a".into(), gpu: Some(gpu) }));
        }
        assert!(brake.condemns("a") && brake.bad_gpus().next().is_none(), "not always the same");
    }
}
