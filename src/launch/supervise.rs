//! The loop: check, start, watch, clean up, decide.
//!
//! A launch succeeded when its pilot said goodbye in its heartbeat; the launcher's exit code alone proves nothing,
//! since Hydra answers 0 for a rank that left without a word.

use super::brake::{Brake, Place};
use super::child::Mpiexec;
use super::host_check::HostReport;
use super::left_out::LeftOut;
use super::plan::Plan;
use super::survivors;
use super::timeline::Timeline;
use super::{helper, words::Culprit};
use crate::site::walltime;
use crate::store::fs::create_whole;
use crate::store::{Fs, Layout, RealFs};
use rustix::process::Signal;
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// PBS kills ten seconds after its SIGTERM: eight for the pilot, the rest for cleaning up.
const GRACE: Duration = Duration::from_secs(8);
/// Before the job's end a pilot that has not drained by itself is told to.
const LAST_CALL: Duration = Duration::from_secs(20);
/// Between two looks.
const TICK: Duration = Duration::from_millis(50);

/// Codes of mistakes that starting again does not mend.
const FINAL: [i32; 5] = [2, 66, 73, 77, 78];
const DONE: u8 = 0;
const UNAVAILABLE: u8 = 69;
const TRY_LATER: u8 = 75;

/// What launch may do.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Fewest hosts worth starting on.
    pub min_nodes: usize,
    /// Nothing is started this shortly before the end of the job.
    pub margin: Duration,
    /// GPUs every host must have.
    pub gpus: usize,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit code.
    pub code: u8,
    /// In words.
    pub why: String,
}

/// What signals asked for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// SIGTERM, SIGINT: the end is near.
    pub end: Arc<AtomicBool>,
    /// SIGUSR1: drain, take the time it needs.
    pub drain: Arc<AtomicBool>,
}

/// Why a pilot was told to drain, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Draining {
    pub(super) since: Instant,
    pub(super) limit: Option<Duration>,
    pub(super) why: &'static str,
}

pub(super) struct Supervisor<'a> {
    pub(super) plan: &'a Plan,
    pub(super) limits: &'a Limits,
    pub(super) layout: &'a Layout,
    pub(super) timeline: &'a Timeline,
    pub(super) asked: &'a Asked,
    pub(super) mpiexecs: AtomicU32,
    /// Places whose GPU is missing, or condemned.
    pub(super) left_out: RefCell<LeftOut>,
}

/// How one mpiexec ended.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) lived: Duration,
    pub(super) culprit: Option<Culprit>,
    pub(super) draining: Option<Draining>,
}

/// Runs pilots on these hosts until there is nothing more to run.
pub fn supervise(
    plan: &Plan,
    limits: &Limits,
    all: &[String],
    layout: &Layout,
    timeline: &Timeline,
    asked: &Asked,
) -> Outcome {
    let s =
        Supervisor { plan, limits, layout, timeline, asked, mpiexecs: AtomicU32::new(0), left_out: RefCell::default() };
    let outcome = s.run(all);
    timeline.tell(
        "end",
        &format!("launch ends with {}: {}", outcome.code, outcome.why),
        json!({ "code": outcome.code, "why": outcome.why }),
    );
    outcome
}

impl Supervisor<'_> {
    fn run(&self, all: &[String]) -> Outcome {
        let outcome = |code, why: &str| Outcome { code, why: why.to_owned() };
        let mut brake = Brake::default();
        // Hosts that were silent once stay out: waiting for them again would cost every relaunch half a minute.
        let mut silent = BTreeSet::new();
        let mut good = self.check(all, &mut silent);
        let mut start = 0;
        loop {
            if self.asked.end.load(Ordering::Relaxed) || self.asked.drain.load(Ordering::Relaxed) {
                return outcome(DONE, "told to drain, and nothing runs");
            }
            if self.drain_all() {
                return outcome(DONE, "drain/all is there");
            }
            if self.plan.until.is_some_and(|end| SystemTime::now() + self.limits.margin >= end) {
                return outcome(TRY_LATER, "too little of the job is left to start");
            }
            let mut trusted: Vec<String> = good.iter().filter(|h| !brake.condemns(h)).cloned().collect();
            if trusted.len() < self.limits.min_nodes.max(1) {
                // Better a suspect than nothing; the brake counts on.
                trusted.clone_from(&good);
            }
            if trusted.len() < self.limits.min_nodes.max(1) {
                let why = format!(
                    "{} of {} hosts are fit, at least {} are wanted",
                    trusted.len(),
                    all.len(),
                    self.limits.min_nodes
                );
                return outcome(TRY_LATER, &why);
            }
            start += 1;
            let mut ended = match self.start(&trusted, start) {
                Ok(ended) => ended,
                Err(e) => return outcome(UNAVAILABLE, &format!("the launcher cannot be started: {e}")),
            };
            let (lost, left) = self.clean_up(&trusted, start);
            let pilots = self.pilots(start);
            let goodbye = pilots.iter().any(|p| p.ended);
            if let Some(culprit) = &mut ended.culprit
                && culprit.rank.is_none()
                && pilots.iter().any(|p| Some(p.identity.pid) == culprit.pid)
            {
                culprit.rank = Some(0);
            }
            let code = ended.status.code();
            match code {
                Some(code @ (0 | 65 | 75)) if goodbye => {
                    return outcome(u8::try_from(code).unwrap_or(TRY_LATER), "the pilot ended");
                }
                Some(code) if FINAL.contains(&code) => {
                    return outcome(
                        u8::try_from(code).unwrap_or(UNAVAILABLE),
                        "a mistake that starting again does not mend",
                    );
                }
                _ => {}
            }
            silent.extend(lost.keys().cloned());
            let answering: Vec<String> = all.iter().filter(|h| !silent.contains(*h)).cloned().collect();
            let fit = if ended.draining.is_some() { answering } else { self.check(&answering, &mut silent) };
            let (explained, reason) = self.reason(&ended, &trusted, &lost, &fit);
            self.bury(&pilots, &trusted, &lost, &left, explained, &reason);
            if ended.draining.is_some() {
                return if goodbye { outcome(DONE, "drained") } else { outcome(TRY_LATER, "it did not drain in time") };
            }
            let place = self.host_of(ended.culprit.as_ref(), &trusted).map(|host| Place {
                host,
                gpu: self.place_of(ended.culprit.as_ref()).filter(|_| !self.plan.profile.gpus.is_empty()),
            });
            let Some(pause) = brake.failed(Instant::now(), ended.lived, place) else {
                let why = format!("{} launches died within ten minutes; the last: {reason}", super::brake::MOST);
                self.timeline.tell("brake", &why, json!({ "launches": start }));
                return outcome(UNAVAILABLE, &why);
            };
            for (host, place) in brake.bad_gpus() {
                self.leave_out(host, place, &format!("{} launches in a row died there first", super::brake::CRASHES));
            }
            good = fit;
            let words = format!("starting again in {} s on {} hosts", pause.as_secs(), good.len());
            self.timeline.tell("relaunch", &words, json!({ "pause_s": pause.as_secs(), "hosts": good }));
            self.pause(pause);
        }
    }

    /// Which hosts are fit; the others are named, and those that say nothing are noted.
    fn check(&self, on: &[String], silent: &mut BTreeSet<String>) -> Vec<String> {
        let mut args = vec!["-q".to_owned(), "host-check".to_owned(), "--json".to_owned()];
        args.extend(["--state".to_owned(), self.layout.state.display().to_string()]);
        args.extend(["--gpus".to_owned(), self.limits.gpus.to_string()]);
        let answers = helper::ask::<HostReport>(self.plan, on, &args, &self.mpiexecs);
        let mut fit = Vec::new();
        // In the scheduler's order: rank 0 belongs on the first.
        for host in on {
            let trouble = match answers.get(host) {
                Some(Ok(report)) if report.build != crate::BUILD => {
                    Some("another build of beampilot runs there".to_owned())
                }
                Some(Ok(report)) if report.problems.is_empty() => {
                    self.leave_out_missing(host, report.gpus);
                    None
                }
                Some(Ok(report)) => Some(report.problems.join("; ")),
                Some(Err(why)) => {
                    silent.insert(host.clone());
                    Some(why.clone())
                }
                None => Some("no answer".to_owned()),
            };
            match trouble {
                None => fit.push(host.clone()),
                Some(why) => {
                    let words = format!("{host} is left out: {why}");
                    self.timeline.tell("left-out", &words, json!({ "host": host, "why": why }));
                }
            }
        }
        self.timeline.tell("checked", &format!("{} of {} hosts are fit", fit.len(), on.len()), json!({ "fit": fit }));
        fit
    }

    /// The driver numbers the GPUs it has without gaps, so that the last numbers are the missing ones.
    fn leave_out_missing(&self, host: &str, listed: usize) {
        for place in (0..self.plan.per_host).filter(|_| listed < self.limits.gpus) {
            let number = self.plan.profile.gpu(place).and_then(|(gpu, _)| gpu.parse::<usize>().ok());
            if number.is_some_and(|number| number >= listed) {
                self.leave_out(host, place, &format!("the host has {listed} of {} GPUs", self.limits.gpus));
            }
        }
    }

    /// Gives one place no work any more, unless it is its host's last.
    fn leave_out(&self, host: &str, place: usize, why: &str) {
        let mut left_out = self.left_out.borrow_mut();
        if left_out.has(host, place) || left_out.of_host(host) + 1 >= self.plan.per_host {
            return;
        }
        left_out.add(host, place);
        let gpu = self.plan.profile.gpu(place).map_or("", |(gpu, _)| gpu);
        let words = format!("GPU {gpu} of {host} is left out: {why}");
        let fields = json!({ "host": host, "gpu": gpu, "place": place, "why": why });
        self.timeline.tell("gpu-left-out", &words, fields);
    }

    fn start(&self, on: &[String], start: u32) -> std::io::Result<Ended> {
        let line = self.plan.run(on, start, self.mpiexecs.fetch_add(1, Ordering::Relaxed), &self.left_out.borrow());
        let began = Instant::now();
        let mut child = Mpiexec::start(&line)?;
        let fields = json!({ "start": start, "id": self.plan.id(start), "pid": child.pid(), "hosts": on, "command": line.shown() });
        self.timeline.tell("start", &line.shown(), fields);
        let mut draining: Option<Draining> = None;
        let mut told = Vec::new();
        let status = loop {
            if let Some(status) = child.ended()? {
                break status;
            }
            draining = self.wanted(draining);
            if let Some(d) = draining {
                self.ask_to_drain(start, &mut told, d);
                if d.limit.is_some_and(|limit| d.since.elapsed() >= limit) {
                    self.timeline.tell("kill", "the pilot did not drain in time", json!({ "start": start }));
                    child.end();
                    break child.ended()?.unwrap_or_default();
                }
            }
            std::thread::sleep(TICK);
        };
        // Both may have come at once: a scheduler's SIGTERM reaches mpiexec as soon as it reaches launch.
        draining = self.wanted(draining);
        if let Some(d) = draining {
            self.await_goodbye(start, &mut told, d);
        }
        for pilot in told {
            let _ = RealFs.remove_file(&self.layout.drain(&pilot));
        }
        let (lived, culprit) = (began.elapsed(), child.culprit());
        let words = format!("the launcher ended after {:.1} s: {status}", lived.as_secs_f64());
        let fields =
            json!({ "start": start, "code": status.code(), "signal": status.signal(), "lived_s": lived.as_secs_f64() });
        self.timeline.tell("ended", &words, fields);
        Ok(Ended { status, lived, culprit, draining })
    }

    /// A scheduler ends mpiexec, too, and the ranks may be draining without it: they get their time.
    fn await_goodbye(&self, start: u32, told: &mut Vec<String>, draining: Draining) {
        let id = self.plan.id(start);
        let limit = draining.limit.unwrap_or(GRACE);
        while draining.since.elapsed() < limit
            && self.pilots(start).iter().any(|p| !p.ended)
            && !survivors::look(&id).found.is_empty()
        {
            self.ask_to_drain(start, told, draining);
            std::thread::sleep(TICK);
        }
    }

    /// Does anything ask for a drain? SIGTERM shortens one that SIGUSR1 began.
    fn wanted(&self, draining: Option<Draining>) -> Option<Draining> {
        let begin = |limit, why| {
            self.timeline.tell("drain", why, json!({}));
            Some(Draining { since: Instant::now(), limit, why })
        };
        if self.asked.end.load(Ordering::Relaxed) && draining.is_none_or(|d| d.limit != Some(GRACE)) {
            return begin(Some(GRACE), "told to end");
        }
        if draining.is_none() && self.asked.drain.load(Ordering::Relaxed) {
            return begin(None, "told to drain");
        }
        let near = self.plan.until.is_some_and(|end| SystemTime::now() + LAST_CALL >= end);
        if draining.is_none() && near { begin(Some(LAST_CALL), "the job's end is near") } else { draining }
    }

    /// By sentinel: it reaches a rank 0 on any host, and cannot be one signal too many beside the scheduler's own.
    fn ask_to_drain(&self, start: u32, told: &mut Vec<String>, draining: Draining) {
        for pilot in self.pilots(start).iter().map(|p| &p.identity.pilot) {
            if told.contains(pilot) {
                continue;
            }
            if create_whole(&RealFs, &self.layout.drain(pilot), b"launch\n").is_err() {
                // A filesystem that fails now leaves only the signal.
                survivors::tell(&self.plan.id(start), "beampilot", Signal::TERM);
            }
            told.push(pilot.clone());
        }
        // A pilot so young that it has no heartbeat has nothing to drain.
        if told.is_empty() && draining.since.elapsed() > Duration::from_secs(3) {
            survivors::tell(&self.plan.id(start), "beampilot", Signal::TERM);
        }
    }

    fn drain_all(&self) -> bool {
        RealFs.exists(&self.layout.drain("all")).unwrap_or(false)
    }

    /// Waits; ends early when somebody wants an end.
    fn pause(&self, pause: Duration) {
        let end = Instant::now() + pause;
        while Instant::now() < end
            && !self.asked.end.load(Ordering::Relaxed)
            && !self.asked.drain.load(Ordering::Relaxed)
        {
            std::thread::sleep(TICK);
        }
    }
}

/// For the first event and a dry run.
pub fn shown_end(until: Option<SystemTime>) -> String {
    until.map_or_else(|| "unknown".to_owned(), walltime::rfc3339)
}
