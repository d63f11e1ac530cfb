//! A pilot: joins its ranks, and on rank 0 puts arrivals, core, driver, disk, journal and status together.
//!
//! Starting after a crash and starting are the same code: what is published or in quarantine is read from the
//! records, everything else is found again by arrivals and claimed anew.

mod editions;
pub(crate) mod edits;
pub(crate) mod inbox;
mod join;
mod pace;
mod rounds;
mod services;
mod share;
mod threads;

pub use join::{Executors, Joined, join};
pub use services::PilotServices;

use self::pace::Pace;
use self::rounds::{Rounds, end_by};
use super::core::{Core, Limits, StreamSpec};
use super::disk::{Disk, StreamPlace};
use super::driver::{Clock, Driver, Mailbox};
use super::event::Time;
use super::lanes::DiskPool;
use super::queue;
use super::writers::Writers;
use crate::arrivals::scan::InputVersion;
use crate::arrivals::{self, ArrivalCommand, Known, StreamWatch};
use crate::campaign::{self, Campaign, CampaignErrors};
use crate::coordinator::core::Counts;
use crate::coordinator::event::Verdict;
use crate::report::progress::Progress;
use crate::site::filesystem;
use crate::store::claims::Identity;
use crate::store::fs::create_whole;
use crate::store::layout::LayoutError;
use crate::store::records::{self, Published, Quarantined};
use crate::store::{Fs, Layout, RealFs, RealHost, journal};
use crate::technique;
use crossbeam::channel::{bounded, unbounded};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How to run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// End when nothing is left.
    pub once: bool,
    /// Draw progress on standard error.
    pub terminal: bool,
    /// When this process's job ends: everything is given back before.
    pub until: Option<SystemTime>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Totals.
    pub counts: Counts,
    /// Scans left incomplete (`--once`).
    pub incomplete: usize,
    /// It was told to drain.
    pub drained: bool,
}

/// Why a pilot could not start.
#[derive(Debug, thiserror::Error)]
pub enum PilotError {
    /// The campaign file.
    #[error(transparent)]
    Campaign(#[from] CampaignErrors),
    /// The state folder.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Another campaign publishes there.
    #[error(
        "{}: results here belong to the campaign with state {owner}, not {state}; give the stream another `output` or \
         `name`, or, if the state folder was moved, remove this file", marker.display()
    )]
    Shared {
        /// The marker file.
        marker: PathBuf,
        /// The state it names.
        owner: String,
        /// Ours.
        state: String,
    },
    /// The state folder is where two nodes may see different things.
    #[error(
        "{}: on {kind}, where a claim made on one node can be invisible to another for seconds; put `state` on a parallel \
         filesystem (Lustre, GPFS) or, for a single host, on its own disk", state.display()
    )]
    UnfitFilesystem {
        /// The state folder.
        state: PathBuf,
        /// What it is on.
        kind: String,
    },
    /// Anything else that the filesystem refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

fn io_at<T>(what: &str, result: io::Result<T>) -> Result<T, PilotError> {
    result.map_err(|source| PilotError::Io { what: what.to_owned(), source })
}

/// A new pilot's id: host, start in seconds, process. Unique per start, sorts by time on one host.
pub fn new_id() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let host: String = crate::store::claims::host_name()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
        .take(40)
        .collect();
    format!("{host}-{since}-{}", std::process::id())
}

/// Between the last moment of work and the job's end: closing, and clocks that differ.
const BEFORE_END: Duration = Duration::from_secs(10);

/// Validates what can be validated before anything is started: the campaign against techniques and folders.
///
/// # Errors
/// Every problem found.
pub fn validate(campaign: &Campaign) -> Result<(), CampaignErrors> {
    let names: Vec<&str> = technique::all().iter().map(|t| t.name()).collect();
    campaign.validate_techniques(&technique::registry, &names)?;
    let problems = campaign.preflight();
    if problems.is_empty() { Ok(()) } else { Err(CampaignErrors(problems)) }
}

/// Refuses a state folder on a filesystem whose clients do not agree on what is there.
///
/// # Errors
/// It is on NFS or its like.
pub fn fit_for_state(state: &Path) -> Result<(), PilotError> {
    match filesystem::kind(state) {
        Ok(kind) => judge_kind(state, kind),
        // A folder that cannot be asked is refused by whoever writes to it first, with a better reason.
        Err(_) => Ok(()),
    }
}

fn judge_kind(state: &Path, kind: filesystem::Kind) -> Result<(), PilotError> {
    if kind.may_hold_state() {
        return Ok(());
    }
    Err(PilotError::UnfitFilesystem { state: state.to_owned(), kind: kind.name() })
}

/// Marks the outputs as this campaign's; any number of its pilots may do so. Two campaigns with different states must
/// not share them: each would take the other's staging for a dead pilot's.
///
/// # Errors
/// An output belongs to another state folder. One that cannot be written is no error here: the run finds out.
pub fn own_outputs(campaign: &Campaign) -> Result<(), PilotError> {
    let state = campaign.state.canonicalize().unwrap_or_else(|_| campaign.state.clone()).display().to_string();
    for stream in &campaign.streams {
        let marker = stream.results().join(OWNER);
        let marked = RealFs
            .make_dirs(&stream.results())
            .and_then(
                |()| if RealFs.exists(&marker)? { Ok(true) } else { create_whole(&RealFs, &marker, state.as_bytes()) },
            )
            .and_then(|_| RealFs.read(&marker, 64 * 1024));
        let owner = match marked {
            Ok(owner) => String::from_utf8_lossy(&owner).trim().to_owned(),
            Err(e) => {
                tracing::warn!(file = %marker.display(), error = %e, "the output cannot be marked as this campaign's");
                continue;
            }
        };
        if owner != state {
            return Err(PilotError::Shared { marker, owner, state });
        }
    }
    Ok(())
}

/// In `<output>/<stream>/`: the state folder whose campaign publishes there.
const OWNER: &str = ".campaign-state";

/// Runs rank 0 until it is finished or drained.
///
/// # Errors
/// It could not start; nothing was claimed.
pub fn run(campaign: &Campaign, id: &str, joined: Joined, options: &Options) -> Result<Summary, PilotError> {
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let layout = Layout::open(&*fs, &campaign.state)?;
    io_at("snapshot of the campaign", campaign.snapshot(&campaign.state))?;
    let me = Identity::own(id);
    let first_pilot = threads::first_pilot(&*fs, &layout)?;
    let (mailbox, inbox) = Mailbox::new();
    let pulse = Arc::new(AtomicU64::new(0));
    let shift = editions::of_shift(&*fs, &layout, campaign, epoch_ms(SystemTime::now()));
    let told = editions::told(&shift);
    let (first, later) = editions::begin(shift, campaign);
    let streams = specs(&first)?;
    let places = campaign.streams.iter().map(|s| {
        let place = StreamPlace { output: s.results(), pattern: s.pattern.source().to_owned() };
        (s.name.clone(), place)
    });
    let disk = Disk::new(fs.clone(), Arc::new(RealHost), layout.clone(), me.clone(), places.collect());
    let disk = Arc::new(Disk { lease: campaign.lease, ..disk });
    let (commands, commands_in) = unbounded();
    let mut requests = inbox::Inbox::new(disk.clone(), (first, later), mailbox.clone(), commands.clone());
    requests.notice(|n| n.editions = told);
    let notices = requests.notices();
    // Before anything else: releases change what is known, holds come before the first claim.
    requests.look(true);
    let known = io_at("published and quarantined scans", known(&*fs, &layout))?;
    tracing::info!(pilot = %id, known = known.len(), workers = joined.workers, transport = %joined.name, "pilot starts");
    let pool = io_at("disk threads", DiskPool::spawn(disk.clone(), mailbox.clone()))?;
    let busy = pool.busy();
    pool.run("sweep", |disk, _| disk.sweep(false));

    let (lines, lines_in) = unbounded();
    let post = mailbox.clone();
    let pace = Pace::new();
    let report = move |durable| {
        let alive = post.post_durable(durable);
        std::thread::sleep(pace.rest(std::time::Instant::now()));
        alive
    };
    let journal = io_at("journal", journal::spawn(&fs, layout.journal(id), lines_in, report))?;

    let (arrival_events, arrivals_in) = bounded(10_000);
    let watches = StreamWatch::all(campaign, first_pilot, options.once);
    let poller = arrivals::spawn(watches, known, options.once, arrival_events, commands_in);
    let poller = io_at("arrivals thread", poller)?;
    let settling = Arc::new(AtomicUsize::new(0));
    let seen = Arc::new(threads::SeenArrivals::default());
    let bridge = threads::bridge(arrivals_in, mailbox.clone(), seen.clone(), settling.clone());
    let bridge = io_at("arrivals bridge", bridge)?;
    let signals = io_at("signal handlers", threads::signals(mailbox.clone()))?;

    let (wake, woken) = bounded(1);
    let writers = Writers::new(wake);
    let ends_ms = options.until.map(epoch_ms);
    let rounds = (Rounds::default(), Rounds::default());
    let watched =
        threads::Watched { pulse: pulse.clone(), writers: writers.clone(), busy, notices, rounds: rounds.clone() };
    let writer = threads::StatusWriter::new(disk.clone(), campaign, &joined.name, seen, watched, ends_ms);
    let (status, show) = io_at("status thread", writer.spawn(mailbox.clone(), woken))?;
    let requests = io_at("inbox thread", requests.spawn(rounds))?;
    let mut progress = Progress::new(options.terminal, settling);
    let teller = commands.clone();
    let driver = Driver {
        core: Core::new(&campaign.name, streams, limits(campaign, options)),
        transport: joined.transport,
        inbox,
        disk: Box::new(pool),
        journal: Some(lines),
        tell: Box::new(move |stream, name, version, verdict| {
            // Arrivals end only when told to.
            let _ = teller.send(command(stream, name, version, verdict));
        }),
        show: Box::new(move |view| {
            progress.show(&view);
            if view.finished {
                progress.end();
            }
            show(view);
        }),
        writers,
        pulse,
        clock: Clock::start(),
    };
    let (core, mut transport, lanes) = driver.run();

    let drained = core.is_draining();
    let reaped = transport.end_workers();
    let held = core.held();
    if reaped && !held.is_empty() {
        tracing::info!(jobs = held.len(), "handing over what is not finished");
        held.into_iter().for_each(|(key, generation)| lanes.hand_over(key, generation));
    }
    if !drained {
        // Nothing that is wanted is left to do.
        lanes.sweep();
    }
    let flushed = lanes.flush(LAST_ORDERS);
    let longest = if drained { LAST_ORDERS } else { LAST_VIEWS };
    if !crate::technique::all().iter().all(|t| t.live_settle(longest)) {
        tracing::warn!("the live views could not be brought up to date in time; the next publication does it");
    }
    if !flushed {
        tracing::warn!("some disk orders did not end in time; the next pilot finds what they left");
    }
    // What may still write must not say goodbye: others would take over beside it.
    let (status, requests) = (status.stop(reaped && flushed), requests.stop());
    let end = Instant::now() + LAST_ORDERS;
    for (thread, what) in [(status, "the last status and heartbeat"), (requests, "the last answers to requests")] {
        if !end_by(&thread, end) {
            tracing::warn!("{what} could not be written in time: a filesystem call does not return");
        }
    }
    let _ = commands.send(ArrivalCommand::Stop);
    let summary = Summary { counts: core.counts(), incomplete: core.left_incomplete(), drained };
    if let Some(code) = &joined.exit_code {
        code.store(i32::from(summary.exit_code()), Ordering::Relaxed);
    }
    drop((poller, bridge, lanes));
    let end = Instant::now() + LAST_ORDERS;
    while !journal.is_finished() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    transport.close();
    signals.close();
    tracing::info!(published = summary.counts.published, quarantined = summary.counts.quarantined, "pilot ends");
    Ok(summary)
}

/// How long the last disk orders, then status and inbox, and then the journal, may take: a stalled filesystem must not keep a process that was
/// told to end.
const LAST_ORDERS: Duration = Duration::from_millis(700);
/// How long the views over many bundles may take at the end of a pilot that nobody asked to end.
const LAST_VIEWS: Duration = Duration::from_secs(10);

fn epoch_ms(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

fn limits(campaign: &Campaign, options: &Options) -> Limits {
    let end = options.until.map(|at| Time::from_ms(epoch_ms(at.checked_sub(BEFORE_END).unwrap_or(at))));
    // Microseconds since the epoch: no two pilots of a campaign number their tries alike.
    let first_attempt = epoch_ms(SystemTime::now()).saturating_mul(1000);
    Limits { end, first_attempt, scratch: campaign.node_scratch.clone(), ..Limits::default() }
}

impl Summary {
    /// The process's exit code, as `docs/exit-codes.md` has it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self { drained: true, .. } => 0,
            Self { counts: Counts { quarantined: 1.., .. }, .. } => 65,
            Self { incomplete: 1.., .. } => 75,
            _ => 0,
        }
    }
}

fn command(stream: &str, name: &str, version: InputVersion, verdict: Verdict) -> ArrivalCommand {
    let (stream, name) = (stream.to_owned(), name.to_owned());
    match verdict {
        Verdict::NotYet(reason) => ArrivalCommand::NotYet { stream, name, reason },
        Verdict::Changed => ArrivalCommand::Changed { stream, name },
        Verdict::Done => ArrivalCommand::Done { stream, name, version, linked: Vec::new() },
        Verdict::DoneLinked(linked) => ArrivalCommand::Done { stream, name, version, linked },
    }
}

/// What the core must know of a campaign's streams.
pub(crate) fn specs(campaign: &Campaign) -> Result<Vec<StreamSpec>, PilotError> {
    let spec = |s: &campaign::Stream| {
        let found = technique::registry(&s.technique);
        let recipe =
            found.map(|t| t.recipe_at(&s.recipe, campaign.folder()).map(|recipe| (t.task_limit_s(&recipe), recipe)));
        // `validate` reported both kinds of mistake with their lines.
        let (task_limit_s, recipe) = match recipe {
            Some(Ok((limit, value))) => (limit, value.to_string()),
            Some(Err(e)) => return io_at("recipe", Err(io::Error::other(e.to_string()))),
            None => return io_at("technique", Err(io::Error::other(s.technique.clone()))),
        };
        Ok(StreamSpec {
            name: s.name.clone(),
            technique: s.technique.clone(),
            recipe,
            deadline_s: s.deadline.as_secs_f64(),
            order: match s.order {
                campaign::Order::Deadline => queue::Order::Deadline,
                campaign::Order::Newest => queue::Order::Newest,
            },
            weight: s.weight,
            task_limit_s: s.task_limit.map_or(task_limit_s, |limit| limit.as_secs_f64()),
        })
    };
    campaign.streams.iter().map(spec).collect()
}

/// When the campaign's first pilot started, if one did.
pub fn first_pilot_if_any(fs: &dyn Fs, layout: &Layout) -> Option<SystemTime> {
    threads::read_first_pilot(fs, layout).ok()
}

/// What is published or in quarantine already.
///
/// # Errors
/// The records cannot be listed.
pub fn known(fs: &dyn Fs, layout: &Layout) -> io::Result<Vec<Known>> {
    let parse = |text: &str| u64::from_str_radix(text, 16).ok().map(InputVersion);
    let mut known = Vec::new();
    for p in records::all::<Published>(fs, layout, "published")? {
        let Some(version) = parse(&p.input_version) else { continue };
        let own = p.own_version.as_deref().and_then(parse);
        known.push(Known { stream: p.stream, name: p.scan, version, own, linked: p.linked });
    }
    for q in records::all::<Quarantined>(fs, layout, "quarantine")? {
        let Some(version) = q.input_version.as_deref().and_then(parse) else { continue };
        let own = q.own_version.as_deref().and_then(parse);
        known.push(Known { stream: q.stream, name: q.scan, version, own, linked: Vec::new() });
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_on_nfs_is_refused_with_a_remedy() {
        let refused =
            judge_kind(Path::new("/home/me/state"), filesystem::Kind::of_magic(0x6969)).unwrap_err().to_string();
        assert!(refused.contains("/home/me/state: on NFS") && refused.contains("put `state` on"), "{refused}");
        assert!(judge_kind(Path::new("/x"), filesystem::Kind::of_magic(0x0BD0_0BD0)).is_ok());
        assert!(fit_for_state(&std::env::temp_dir()).is_ok(), "tests keep their state there");
    }
}
