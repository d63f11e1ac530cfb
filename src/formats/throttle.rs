//! A brake for reads and writes, so that benchmarks can show what a slower filesystem would do.
//!
//! Contract: off by default, and then one relaxed atomic load. When on, every caller of [`take`] in the
//! process shares one budget of bytes per second; a caller sleeps until its bytes are paid for, so a large
//! request is never refused, only late.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes per second; 0 = off.
static RATE: AtomicU64 = AtomicU64::new(0);
/// When the bytes handed out so far will have been paid for.
static PAID: Mutex<Option<Instant>> = Mutex::new(None);

/// Limits reads and writes of this process, all together, to `bytes_per_second`; `None` lifts the limit.
pub fn set(bytes_per_second: Option<u64>) {
    RATE.store(bytes_per_second.unwrap_or(0), Ordering::Relaxed);
    *PAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
}

/// Waits until `bytes` may pass.
pub fn take(bytes: usize) {
    let rate = RATE.load(Ordering::Relaxed);
    if rate == 0 {
        return;
    }
    let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
    let until = {
        let mut paid = PAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let start = paid.map_or_else(Instant::now, |t| t.max(Instant::now()));
        *paid = Some(start + cost);
        start + cost
    };
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
}
