//! After a death: what is left is ended, the cause is named, the dead get their tombstones.
//!
//! Contract: nothing here decides what is done next; see [`super::supervise`].

use super::helper;
use super::supervise::{Ended, Supervisor};
use super::survivors::Survivors;
use super::timeline::at_ms;
use super::words::Culprit;
use crate::site::hosts;
use crate::store::claims::{self, Heartbeat};
use crate::store::tombstone::{self, Tombstone};
use crate::store::{Fs, RealFs};
use serde_json::json;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::{Instant, SystemTime};

impl Supervisor<'_> {
    /// Ends what is left. Returns the hosts that do not answer, and those where something could not be killed.
    pub(super) fn clean_up(&self, on: &[String], start: u32) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let id = self.plan.id(start);
        let args = ["-q", "survivors", "--launch", &id, "--kill", "--json"].map(str::to_owned);
        let began = Instant::now();
        let answers = helper::ask::<Survivors>(self.plan, on, &args, &self.mpiexecs);
        let (mut lost, mut left, mut killed) = (BTreeMap::new(), BTreeMap::new(), 0);
        for (host, answer) in answers {
            match answer {
                Ok(report) => {
                    killed += report.found.len();
                    if !report.left.is_empty() {
                        left.insert(host, format!("{:?} cannot be killed", report.left));
                    }
                }
                Err(why) => drop(lost.insert(host, why)),
            }
        }
        let words = format!(
            "{killed} survivors ended on {} hosts in {:.1} s; {} hosts do not answer",
            on.len(),
            began.elapsed().as_secs_f64(),
            lost.len()
        );
        self.timeline.tell("survivors", &words, json!({ "killed": killed, "lost": lost, "left": left }));
        (lost, left)
    }

    /// The pilots of one start, by their heartbeats.
    pub(super) fn pilots(&self, start: u32) -> Vec<Heartbeat> {
        let id = self.plan.id(start);
        let names = RealFs.list(&self.layout.state.join("pilots")).unwrap_or_default();
        let pilots = names.iter().filter_map(|n| n.strip_suffix(".json").filter(|p| !p.starts_with('.')));
        let beats = pilots.filter_map(|p| claims::heartbeat(&RealFs, self.layout, p).ok());
        beats.filter(|b| b.identity.launch.as_deref() == Some(id.as_str())).collect()
    }

    /// Is it known why, and no scan's fault? And in words.
    pub(super) fn reason(
        &self,
        ended: &Ended,
        on: &[String],
        lost: &BTreeMap<String, String>,
        fit: &[String],
    ) -> (bool, String) {
        if let Some(d) = ended.draining {
            return (true, format!("killed while draining: {}", d.why));
        }
        if let Some(host) = lost.keys().next() {
            return (true, format!("{host} does not answer any more"));
        }
        if let Some(host) = on.iter().find(|h| !fit.contains(h)) {
            return (true, format!("{host} is not fit any more"));
        }
        if let Some(signal) = ended.status.signal() {
            return (true, format!("the launcher was killed by signal {signal}"));
        }
        let code = ended.status.code().unwrap_or(-1);
        match &ended.culprit {
            Some(Culprit { rank, host, .. }) => {
                let gpu = self.place_of(ended.culprit.as_ref()).and_then(|place| self.plan.profile.gpu(place));
                let gpu = gpu.map_or(String::new(), |(gpu, _)| format!(", GPU {gpu}"));
                let rank = rank.map_or("a rank".to_owned(), |r| format!("rank {r}"));
                let host = host.as_deref().unwrap_or("an unknown host");
                (false, format!("{rank} died on {host}{gpu} (the launcher's code is {code})"))
            }
            None => (false, format!("ranks died without a word of the launcher (its code is {code})")),
        }
    }

    /// The number of the culprit's rank on its host.
    pub(super) fn place_of(&self, culprit: Option<&Culprit>) -> Option<usize> {
        Some(culprit?.rank? % self.plan.per_host)
    }

    pub(super) fn host_of(&self, culprit: Option<&Culprit>, on: &[String]) -> Option<String> {
        let culprit = culprit?;
        let by_name = culprit.host.as_ref().and_then(|name| on.iter().find(|h| hosts::same(h, name)));
        by_name.or_else(|| on.get(culprit.rank? / self.plan.per_host)).cloned()
    }

    /// Tombstones for the pilots of a start that are proven dead.
    pub(super) fn bury(
        &self,
        pilots: &[Heartbeat],
        on: &[String],
        lost: &BTreeMap<String, String>,
        left: &BTreeMap<String, String>,
        explained: bool,
        reason: &str,
    ) {
        for pilot in pilots.iter().filter(|p| !p.ended) {
            let name = &pilot.identity.pilot;
            // What could not be killed could be any rank's; and a rank 0 on a host that is silent may live.
            let seen = on.iter().any(|h| hosts::same(h, &pilot.identity.host) || hosts::is_here(&pilot.identity.host));
            let silent = lost.keys().any(|h| hosts::same(h, &pilot.identity.host));
            if !seen || silent || !left.is_empty() {
                let words = format!("{name} may still live; its lease decides");
                self.timeline.tell("unproven", &words, json!({ "pilot": name }));
                continue;
            }
            let stone = Tombstone {
                pilot: name.clone(),
                by: self.plan.launch.clone(),
                at_ms: at_ms(SystemTime::now()),
                explained,
                reason: reason.to_owned(),
                lost: lost.keys().cloned().collect(),
            };
            match tombstone::put(&RealFs, self.layout, &stone) {
                Ok(_) => {
                    let words = format!("{name} is dead: {reason}");
                    self.timeline.tell(
                        "tombstone",
                        &words,
                        json!({ "pilot": name, "explained": explained, "reason": reason }),
                    );
                }
                Err(e) => tracing::warn!(pilot = %name, error = %e, "no tombstone could be written; its lease decides"),
            }
        }
    }
}
