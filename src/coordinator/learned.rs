//! How long things take, learned from what ended: a running mean for the queue, a high quantile for promises about time.
//!
//! Contract: seconds of a piece of cost 1; nothing here knows what the pieces are.

/// Weight of a new observation in the mean.
const LEARN: f64 = 0.2;
/// Observations that the quantile looks back on.
const MEMORY: usize = 64;
/// The quantile.
const HIGH: f64 = 0.95;
/// With fewer observations than this, the longest so far says too little: it is stretched.
const FEW: usize = 8;
/// By this factor.
const STRETCH: f64 = 1.5;

/// Durations of one kind of work.
#[derive(Debug, Clone)]
pub struct Learned {
    mean: f64,
    recent: Vec<f64>,
    next: usize,
    high: f64,
}

impl Learned {
    /// After a first observation.
    pub fn new(seconds: f64) -> Self {
        let mut learned = Self { mean: seconds, recent: Vec::with_capacity(MEMORY), next: 0, high: 0.0 };
        learned.observe(seconds);
        learned
    }

    /// Takes in one more.
    pub fn observe(&mut self, seconds: f64) {
        self.mean = (1.0 - LEARN) * self.mean + LEARN * seconds;
        if self.recent.len() < MEMORY {
            self.recent.push(seconds);
        } else {
            self.recent[self.next] = seconds;
        }
        self.next = (self.next + 1) % MEMORY;
        // Sorting for each of 100 000 short tasks a second would cost more than the tasks.
        if self.recent.len() < MEMORY || self.next.is_multiple_of(8) {
            let mut sorted = self.recent.clone();
            sorted.sort_by(f64::total_cmp);
            let at = ((sorted.len() - 1) as f64 * HIGH).ceil() as usize;
            self.high = sorted[at] * if sorted.len() < FEW { STRETCH } else { 1.0 };
        }
    }

    /// The expected duration.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// What 19 of 20 do not exceed.
    pub fn high(&self) -> f64 {
        self.high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quantile_is_that_of_the_recent_past() {
        let mut l = Learned::new(10.0);
        assert_eq!((l.mean(), l.high()), (10.0, 15.0));
        (0..200).for_each(|i| l.observe(f64::from(i % 20)));
        assert!((18.0..=19.0).contains(&l.high()), "{}", l.high());
        (0..64).for_each(|_| l.observe(1.0));
        assert_eq!(l.high(), 1.0);
    }
}
