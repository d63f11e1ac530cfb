//! The core's way with a full or failing filesystem, which is nobody's fault: pause, probe, go on.
//!
//! Same contract as [`super::core`].

use super::core::{Core, Storage};
use super::event::*;
use super::job::Phase;

impl Core {
    pub(super) fn pause_storage(&mut self, now: Time, message: String) {
        if let Storage::Paused { .. } = self.storage {
            return;
        }
        let wait_s = self.limits.storage_retry_s.0;
        let text = format!("paused: {message}; nothing new is started until there is room and writes succeed again");
        self.record(Entry::Alarm { message: text.clone() });
        self.order(Action::Alarm { message: text });
        self.storage = Storage::Paused { since: now, retry: now.plus_s(wait_s), wait_s, message };
    }

    pub(super) fn on_storage_probed(&mut self, now: Time, result: Result<(), String>) {
        let Storage::Paused { since, retry, wait_s, message } = &mut self.storage else { return };
        match result {
            Ok(()) => {
                let text = format!("resumed after {:.0} s: storage accepts writes again", now.since_s(*since));
                self.storage = Storage::Fine;
                self.record(Entry::Alarm { message: text.clone() });
                self.order(Action::Alarm { message: text });
                self.retry_after_storage();
            }
            Err(why) => {
                *message = why;
                *retry = now.plus_s(*wait_s);
            }
        }
    }

    /// Orders what a storage pause interrupted once more.
    pub(super) fn retry_after_storage(&mut self) {
        for (key, (generation, staging)) in self.returning.clone() {
            self.order(Action::Release { key, generation, staging });
        }
        let mut ends: Vec<(JobNo, Option<String>)> = Vec::new();
        for (no, job) in &mut self.jobs {
            match &mut job.phase {
                Phase::Publishing { ordered } if !*ordered => {
                    *ordered = true;
                    ends.push((*no, None));
                }
                Phase::Quarantining { reason, ordered } if !*ordered => {
                    *ordered = true;
                    ends.push((*no, Some(reason.clone())));
                }
                _ => {}
            }
        }
        for (no, reason) in ends {
            match reason {
                None => self.order_publish(no, None),
                Some(reason) => self.order_quarantine(no, reason, None),
            }
        }
    }
}
