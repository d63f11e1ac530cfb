//! How long a thread that polls MPI may sleep before it looks again.
//!
//! Contract: pure; the caller passes the time. The pause is **a sixteenth of the silence so far**, between
//! 50 µs and 2 ms, so that waiting adds about a sixteenth to any short answer and a burst costs some eighty
//! wake-ups, however long the pause before it; after ten seconds of silence it is 20 ms. Heartbeats are not
//! activity, or a coordinator of two hundred ranks would never rest. Budget: at most 5 % of a core within ten
//! seconds of a message and 1 % after that; measured numbers are in `tests/mpi_transport.rs`.

use std::time::{Duration, Instant};

/// Within this long of a message, only give way to others: an answer on the same node takes about that long.
const SPIN: Duration = Duration::from_micros(20);
const SHORTEST: Duration = Duration::from_micros(50);
/// A 2 ms sleep costs 1.65 % of a core before any probe (FACILITY.md).
const LONGEST_RECENT: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(20);
const RECENT: Duration = Duration::from_secs(10);

/// What to do before the next look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// `sched_yield`.
    Yield,
    /// Sleep, or wait on something else for this long.
    Sleep(Duration),
}

/// Remembers when something last happened.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    last: Instant,
}

impl Backoff {
    /// Starts hot.
    pub fn new(now: Instant) -> Self {
        Self { last: now }
    }

    /// A message other than a heartbeat was sent or came.
    pub fn touch(&mut self, now: Instant) {
        self.last = now;
    }

    /// The pause to make now.
    pub fn pause(&self, now: Instant) -> Pause {
        let silence = now.saturating_duration_since(self.last);
        if silence < SPIN {
            Pause::Yield
        } else if silence < RECENT {
            Pause::Sleep((silence / 16).clamp(SHORTEST, LONGEST_RECENT))
        } else {
            Pause::Sleep(LONGEST)
        }
    }
}

/// Lets this thread's short sleeps end on time: the kernel may otherwise add 50 µs to each.
pub fn precise_sleeps() {
    // Only latency is lost when the kernel refuses.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_silence() {
        let start = Instant::now();
        let backoff = Backoff::new(start);
        for (silence_us, want) in [
            (0, Pause::Yield),
            (19, Pause::Yield),
            (20, Pause::Sleep(SHORTEST)),
            (400, Pause::Sleep(SHORTEST)),
            (16_000, Pause::Sleep(Duration::from_millis(1))),
            (32_000, Pause::Sleep(LONGEST_RECENT)),
            (9_999_999, Pause::Sleep(LONGEST_RECENT)),
            (10_000_000, Pause::Sleep(LONGEST)),
        ] {
            assert_eq!(backoff.pause(start + Duration::from_micros(silence_us)), want, "{silence_us} µs");
        }
    }

    #[test]
    fn a_burst_costs_few_wakeups() {
        let start = Instant::now();
        let backoff = Backoff::new(start);
        let (mut now, mut sleeps) = (start + SPIN, 0);
        while now < start + Duration::from_millis(32) {
            if let Pause::Sleep(d) = backoff.pause(now) {
                now += d;
                sleeps += 1;
            }
        }
        assert!(sleeps < 100, "{sleeps}");
    }

    #[test]
    fn a_clock_that_seems_to_run_backwards_is_harmless() {
        let later = Instant::now() + Duration::from_secs(1);
        assert_eq!(Backoff::new(later).pause(Instant::now()), Pause::Yield);
    }
}
