//! What people ask of a running pilot: hold and resume, skip, other recipes, urgency, an edited campaign.
//!
//! Contract
//! - Every wish may come any number of times and in any order relative to arrivals; all pilots of a campaign get
//!   the same ones and none of them asks another: claims decide who works.
//! - A held stream gets no claim and no task; what runs goes on, and a result that is ready is published.
//! - A recipe for "from now on" counts for scans whose last byte is not older than the wish. The scan's own time
//!   decides, not the moment of arrival, so that two pilots give one scan one key. A released scan counts as one of the
//!   moment of its release.
//! - A recipe for one scan counts once, for the next job of it that ends with a verdict.

use super::core::{Core, Ended, Storage};
use super::event::*;
use super::job::{Job, Phase};
use crate::arrivals::scan::Scan;
use std::collections::{BTreeMap, BTreeSet};

/// A recipe and the salt of the request that brought it.
type Recipe = (String, String);
type ScanAt = (usize, String);

/// Wishes that outlive the moment they come.
#[derive(Debug, Clone, Default)]
pub(super) struct Wishes {
    held: BTreeSet<usize>,
    skipped: BTreeSet<ScanAt>,
    once: BTreeMap<ScanAt, Recipe>,
    /// When a scan was last released: it is tried with what counts then.
    released: BTreeMap<ScanAt, u64>,
    /// By stream, ascending in time.
    later: BTreeMap<usize, Vec<(u64, Recipe)>>,
    pub(super) urgent: BTreeSet<ScanAt>,
}

/// Different recipes "from now on" that a stream keeps: people may ask every minute of a shift.
const RECIPES: usize = 1000;

impl Core {
    fn stream_no(&self, name: &str) -> Option<usize> {
        self.streams.iter().position(|s| s.name == name)
    }

    /// Takes in a wish; other events are not for here.
    pub(super) fn on_wish(&mut self, now: Time, wish: Event) {
        match wish {
            Event::Hold { stream } => self.hold(&stream, true),
            Event::Resume { stream } => self.hold(&stream, false),
            Event::Skip { stream, name } => self.skip(now, stream, name),
            Event::Release { stream, name, since_ms } => {
                let Some(no) = self.stream_no(&stream) else { return };
                let at = (no, name);
                self.wishes.skipped.remove(&at);
                let since = self.wishes.released.entry(at).or_insert(since_ms);
                *since = since_ms.max(*since);
            }
            Event::Recipe { stream, name, recipe, salt, since_ms } => {
                let Some(no) = self.stream_no(&stream) else { return };
                match name {
                    Some(name) => {
                        self.wishes.skipped.remove(&(no, name.clone()));
                        self.wishes.once.insert((no, name), (recipe, salt));
                    }
                    None => self.recipe_since(no, since_ms, (recipe, salt)),
                }
            }
            Event::Campaign { streams, since_ms } => self.edit(now, streams, since_ms),
            Event::Request { id, request, outcome } => {
                self.record(Entry::Request { id, request, outcome });
            }
            Event::Alarm { message } => {
                self.record(Entry::Alarm { message: message.clone() });
                self.order(Action::Alarm { message });
            }
            _ => {}
        }
    }

    fn hold(&mut self, stream: &str, held: bool) {
        let Some(no) = self.stream_no(stream) else { return };
        if held {
            self.wishes.held.insert(no)
        } else {
            self.wishes.held.remove(&no)
        };
        self.queue.hold(no, held);
        self.unclaimed.hold(no, held);
    }

    fn skip(&mut self, now: Time, stream: String, name: String) {
        let Some(at) = self.stream_no(&stream) else { return };
        self.wishes.skipped.insert((at, name.clone()));
        let Some(no) = self.by_scan.get(&(at, name.clone())).copied() else { return };
        if self.wait_for_disk(no, || Event::Skip { stream, name }) {
            return;
        }
        self.tell(no, Verdict::Done);
        self.drop_job(now, no, "skipped", SKIPPED);
    }

    /// True when nobody wants that scan; arrivals are told.
    pub(super) fn refuse_skipped(&mut self, now: Time, stream: usize, scan: &Scan) -> bool {
        if !self.wishes.skipped.contains(&(stream, scan.name.clone())) {
            return false;
        }
        self.told += 1;
        self.quiet = None;
        let (stream, name, version) = (scan.stream.clone(), scan.name.clone(), scan.version());
        self.order(Action::Tell { stream: stream.clone(), name: name.clone(), version, verdict: Verdict::Done });
        self.history.push_back(Ended {
            stream,
            name,
            outcome: "skipped".to_owned(),
            detail: SKIPPED.to_owned(),
            at_ms: now.0 / 1000,
            lag: None,
            preview_s: None,
            items: String::new(),
        });
        if self.history.len() > self.limits.history {
            self.history.pop_front();
        }
        true
    }

    fn recipe_since(&mut self, stream: usize, since_ms: u64, recipe: Recipe) {
        let all = self.wishes.later.entry(stream).or_default();
        let at = all.partition_point(|(since, _)| *since <= since_ms);
        all.insert(at, (since_ms, recipe));
        if all.len() > RECIPES {
            all.remove(0);
        }
    }

    /// The recipe that a scan gets, and the salt that came with it.
    pub(super) fn recipe_of(&self, stream: usize, name: &str, last_byte_ms: u64) -> Recipe {
        let at = (stream, name.to_owned());
        if let Some(once) = self.wishes.once.get(&at) {
            return once.clone();
        }
        let asked_ms = self.wishes.released.get(&at).copied().unwrap_or(0).max(last_byte_ms);
        let later = self.wishes.later.get(&stream).map(Vec::as_slice).unwrap_or_default();
        match later.iter().rev().find(|(since, _)| *since <= asked_ms) {
            Some((_, recipe)) => recipe.clone(),
            None => (self.streams[stream].recipe.clone(), String::new()),
        }
    }

    pub(super) fn want_urgently(&mut self, stream: &str, name: &str) {
        if let Some(no) = self.stream_no(stream) {
            self.wishes.urgent.insert((no, name.to_owned()));
        }
    }

    /// A job ended; with a verdict, what was wished for its scan is fulfilled.
    pub(super) fn grant(&mut self, no: JobNo, outcome: &str) {
        let Some(job) = self.jobs.get(&no) else { return };
        if !matches!(outcome, "published" | "quarantined" | "elsewhere") {
            return;
        }
        let at = (job.stream, job.scan.name.clone());
        if self.wishes.once.get(&at).is_some_and(|(_, salt)| *salt == job.salt) {
            self.wishes.once.remove(&at);
        }
        self.wishes.urgent.remove(&at);
    }

    fn edit(&mut self, now: Time, streams: Vec<super::core::StreamSpec>, since_ms: u64) {
        for new in streams {
            let Some(no) = self.stream_no(&new.name) else { continue };
            let spec = &mut self.streams[no];
            let reorder = spec.order != new.order;
            (spec.order, spec.weight, spec.deadline_s) = (new.order, new.weight, new.deadline_s);
            self.queue.set_weight(no, new.weight);
            self.unclaimed.set_weight(no, new.weight);
            // The campaign as it was keeps its recipe for what was there before the edit.
            if self.recipe_of(no, "", u64::MAX).0 != new.recipe {
                self.recipe_since(no, since_ms, (new.recipe, String::new()));
            }
            if reorder {
                self.line_up(now, no);
            }
        }
    }

    /// Puts a stream's jobs where its new order wants them.
    fn line_up(&mut self, now: Time, stream: usize) {
        let waiting = |j: &Job| j.stream == stream && j.place.is_some();
        let jobs: Vec<JobNo> = self.jobs.iter().filter(|(_, j)| waiting(j)).map(|(no, _)| *no).collect();
        jobs.into_iter().for_each(|no| self.place(now, no));
    }

    /// A person holds this stream.
    pub(super) fn is_held(&self, stream: usize) -> bool {
        self.wishes.held.contains(&stream)
    }

    /// Names of held streams.
    pub(super) fn held_streams(&self) -> Vec<String> {
        self.wishes.held.iter().filter_map(|no| Some(self.streams.get(*no)?.name.clone())).collect()
    }

    /// Nothing of it runs and nothing will, because its stream is held.
    pub(super) fn rests(&self, job: &Job) -> bool {
        let busy = matches!(job.phase, Phase::Claiming | Phase::Publishing { .. } | Phase::Quarantining { .. });
        self.wishes.held.contains(&job.stream)
            && !busy
            && job.attempts().next().is_none()
            && self.storage == Storage::Fine
    }
}

const SKIPPED: &str = "a person asked to leave it out";
