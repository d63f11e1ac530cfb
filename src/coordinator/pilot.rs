//! A pilot: joins its ranks, and on rank 0 puts arrivals, core, driver, disk, journal and status together.
//!
//! Starting after a crash and starting are the same code: what is published or in quarantine is read from the
//! records, everything else is found again by arrivals and claimed anew.

mod join;
mod services;
mod threads;

pub use join::{Joined, join};
pub use services::PilotServices;

use super::core::{Core, Limits, StreamSpec};
use super::disk::{Disk, DiskPool, StreamPlace};
use super::driver::{Clock, Driver, Mailbox};
use super::queue;
use crate::arrivals::scan::InputVersion;
use crate::arrivals::{self, ArrivalCommand, Known, StreamWatch};
use crate::campaign::{self, Campaign, CampaignErrors};
use crate::coordinator::core::Counts;
use crate::coordinator::event::Verdict;
use crate::report::progress::Progress;
use crate::store::claims::{Identity, Observer};
use crate::store::fs::create_whole;
use crate::store::layout::LayoutError;
use crate::store::records::{self, Published, Quarantined};
use crate::store::{Fs, Layout, RealFs, journal};
use crate::technique;
use crossbeam::channel::{bounded, unbounded};
use std::io;
use std::path::PathBuf;
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

/// How long a drain may take: PBS follows its SIGTERM by SIGKILL after 10 s.
const GRACE: Duration = Duration::from_secs(3);

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
    let first_pilot = io_at("first-pilot record", threads::first_pilot(&*fs, &layout))?;
    let known = io_at("published and quarantined scans", known(&*fs, &layout))?;
    tracing::info!(pilot = %id, known = known.len(), workers = joined.workers, transport = %joined.name, "pilot starts");

    let (mailbox, inbox) = Mailbox::new();
    let pulse = Arc::new(AtomicU64::new(0));
    let streams = specs(campaign)?;
    let places = campaign.streams.iter().map(|s| {
        let place = StreamPlace { output: s.results(), pattern: s.pattern.source().to_owned() };
        (s.name.clone(), place)
    });
    let disk = Arc::new(Disk {
        fs: fs.clone(),
        layout: layout.clone(),
        me: me.clone(),
        streams: places.collect(),
        observer: Observer::default().into(),
        last_beat: Instant::now().into(),
    });
    let pool = io_at("disk threads", DiskPool::spawn(disk.clone(), mailbox.clone()))?;
    pool.run("sweep", |disk, _| disk.sweep());

    let (lines, lines_in) = unbounded();
    let post = mailbox.clone();
    let journal = io_at("journal", journal::spawn(layout.journal(id), lines_in, move |d| post.post_durable(d)))?;

    let (arrival_events, arrivals_in) = bounded(10_000);
    let (commands, commands_in) = unbounded();
    let watches = StreamWatch::all(campaign, first_pilot, options.once);
    let poller = arrivals::spawn(watches, known, options.once, arrival_events, commands_in);
    let poller = io_at("arrivals thread", poller)?;
    let settling = Arc::new(AtomicUsize::new(0));
    let seen = Arc::new(threads::SeenArrivals::default());
    let bridge = threads::bridge(arrivals_in, mailbox.clone(), seen.clone(), settling.clone());
    let bridge = io_at("arrivals bridge", bridge)?;
    let signals = io_at("signal handlers", threads::signals(mailbox.clone()))?;

    let writer = threads::StatusWriter::new(disk, campaign, &joined.name, seen, pulse.clone());
    let (status, show) = io_at("status thread", writer.spawn(mailbox.clone()))?;
    let mut progress = Progress::new(options.terminal, settling);
    let teller = commands.clone();
    let driver = Driver {
        core: Core::new(&campaign.name, streams, Limits::default()),
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
        pulse,
        clock: Clock::start(),
    };
    let (core, transport, disk) = driver.run(GRACE);

    let drained = core.is_draining();
    if !disk.flush(Duration::from_secs(2)) {
        tracing::warn!("some disk orders did not end in time; the next pilot finds what they left");
    }
    let _ = commands.send(ArrivalCommand::Stop);
    let summary = Summary { counts: core.counts(), incomplete: core.left_incomplete(), drained };
    if let Some(code) = &joined.exit_code {
        code.store(i32::from(summary.exit_code()), Ordering::Relaxed);
    }
    transport.close();
    // The executors are gone: from here on nothing of this pilot writes.
    status.end();
    signals.close();
    drop((poller, bridge));
    let _ = journal.join();
    tracing::info!(published = summary.counts.published, quarantined = summary.counts.quarantined, "pilot ends");
    Ok(summary)
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
        Verdict::Done => ArrivalCommand::Done { stream, name, version },
    }
}

fn specs(campaign: &Campaign) -> Result<Vec<StreamSpec>, PilotError> {
    let spec = |s: &campaign::Stream| {
        let recipe = technique::registry(&s.technique).map(|t| t.recipe_at(&s.recipe, campaign.folder()));
        // `validate` reported both kinds of mistake with their lines.
        let recipe = match recipe {
            Some(Ok(value)) => value.to_string(),
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
        known.push(Known { stream: p.stream, name: p.scan, version, own });
    }
    for q in records::all::<Quarantined>(fs, layout, "quarantine")? {
        let Some(version) = q.input_version.as_deref().and_then(parse) else { continue };
        let own = q.own_version.as_deref().and_then(parse);
        known.push(Known { stream: q.stream, name: q.scan, version, own });
    }
    Ok(known)
}
