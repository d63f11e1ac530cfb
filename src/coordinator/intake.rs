//! The core's way with arrivals: news of scans become jobs, newer news replace older ones.
//!
//! Same contract as [`super::core`].

use super::core::{Core, control_task};
use super::event::*;
use super::job::{Job, Phase, job_key};
use crate::arrivals::scan::{InputVersion, Scan};
use crate::technique::plan::TaskKind;
use std::collections::BTreeMap;

impl Core {
    pub(super) fn on_arrived(&mut self, now: Time, scan: Scan, check: Check) {
        let Some(stream) = self.streams.iter().position(|s| s.name == scan.stream) else { return };
        if self.refuse_skipped(now, stream, &scan) {
            return;
        }
        let (recipe, salt) = self.recipe_of(stream, &scan.name, scan.last_byte_ms);
        let spec = &self.streams[stream];
        let key = job_key(&spec.name, &scan.name, scan.version(), &spec.technique, &recipe, &salt);
        let deadline = Time::from_ms(scan.last_byte_ms).plus_s(spec.deadline_s);
        let at = (stream, scan.name.clone());
        if let Some(old) = self.by_scan.get(&at).copied() {
            if self.jobs.get(&old).is_some_and(|j| j.key == key) {
                return;
            }
            if self.wait_for_disk(old, || Event::Arrived { scan: scan.clone(), check: check.clone() }) {
                return;
            }
            self.drop_job(now, old, "changed", "a newer version of the scan arrived");
        }
        let no = JobNo(self.next_job);
        self.next_job += 1;
        self.counts.arrived += 1;
        self.record(Entry::Arrived { job: no.0, key: key.clone(), bytes: scan.bytes() });
        let complete = Time::from_ms(scan.complete_ms);
        let timeline = Timeline { last_byte: Time::from_ms(scan.last_byte_ms), complete, ..Timeline::default() };
        let first = match &check {
            Check::Probe => Some((TaskKind::Probe, Vec::new())),
            Check::Verify(manifest) => Some((TaskKind::Verify, manifest.clone())),
            Check::None => None,
        };
        let mut job = Job::new(stream, key, scan, check, deadline);
        job.timeline = timeline;
        (job.recipe, job.salt) = (recipe, salt);
        job.urgent = self.wishes.urgent.contains(&at);
        if let Some((kind, params)) = first {
            job.add_task(control_task(kind, params), 0);
        }
        self.by_scan.insert(at, no);
        self.deadlines.insert((deadline, no));
        let checked = job.ready.is_empty();
        self.jobs.insert(no, job);
        if checked { self.await_claim(now, no) } else { self.place(now, no) }
    }

    pub(super) fn on_rejected(
        &mut self,
        now: Time,
        stream: &str,
        name: String,
        version: Option<InputVersion>,
        reason: String,
    ) {
        let Some(index) = self.streams.iter().position(|s| s.name == stream) else { return };
        if let Some(old) = self.by_scan.get(&(index, name.clone())).copied() {
            let again =
                || Event::Rejected { stream: stream.to_owned(), name: name.clone(), version, reason: reason.clone() };
            if self.wait_for_disk(old, again) {
                return;
            }
            self.drop_job(now, old, "changed", "arrivals gave the scan up");
        }
        let no = JobNo(self.next_job);
        self.next_job += 1;
        let at = version.unwrap_or(InputVersion(0));
        let (recipe, salt) = self.recipe_of(index, &name, now.0 / 1000);
        let key = job_key(stream, &name, at, &self.streams[index].technique, &recipe, &salt);
        let scan = Scan {
            stream: stream.to_owned(),
            name: name.clone(),
            root: std::path::PathBuf::new(),
            members: Vec::new(),
            roles: BTreeMap::new(),
            last_byte_ms: now.0 / 1000,
            complete_ms: now.0 / 1000,
            ..Scan::default()
        };
        let mut job = Job::new(index, key, scan, Check::None, now);
        job.version = version;
        (job.recipe, job.salt) = (recipe, salt);
        self.by_scan.insert((index, name), no);
        self.jobs.insert(no, job);
        self.quarantine(now, no, reason);
    }

    /// A job whose claim, publication or quarantine is ordered cannot be dropped before the answer: what the
    /// disk says must find it. News of its scan wait until then; true when they do.
    pub(super) fn wait_for_disk(&mut self, no: JobNo, news: impl FnOnce() -> Event) -> bool {
        let Some(job) = self.jobs.get_mut(&no) else { return false };
        let ordered = matches!(job.phase, Phase::Claiming | Phase::Publishing { .. } | Phase::Quarantining { .. });
        if ordered {
            job.successor = Some(Box::new(news()));
        }
        ordered
    }

    pub(super) fn on_urgent(&mut self, stream: &str, name: &str) {
        self.want_urgently(stream, name);
        let found = self.jobs.iter().find(|(_, j)| j.scan.stream == stream && j.scan.name == name).map(|(n, _)| *n);
        let Some(no) = found else { return };
        self.unplace(no);
        if let Some(job) = self.jobs.get_mut(&no) {
            job.urgent = true;
        }
        self.place(Time(0), no);
    }
}
