//! The small threads around a pilot's driver: arrivals' bridge, signals, status and heartbeat.

use super::rounds::Rounds;
use super::services;
use crate::arrivals::{ArrivalEvent, Proof};
use crate::campaign::Campaign;
use crate::coordinator::disk::Disk;
use crate::coordinator::driver::Mailbox;
use crate::coordinator::event::{Check, Event};
use crate::coordinator::lanes::Busy;
use crate::coordinator::view::View;
use crate::coordinator::writers::Writers;
use crate::report::status::{self, ArrivalsView, Edition, PilotStatus};
use crate::store::claims::{self, Heartbeat, Observer};
use crate::store::layout::LayoutError;
use crate::store::{Fs, Layout, fs};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// When the campaign's first pilot started: `since = "now"` counts from there, also for its successors.
///
/// # Errors
/// It cannot be made or read; or it was damaged, and only a person knows what to do without that moment.
pub(super) fn first_pilot(fs: &dyn Fs, layout: &Layout) -> Result<SystemTime, LayoutError> {
    let path = layout.state.join(FIRST_PILOT);
    let made = fs::create_whole(fs, &path, format!("{}\n", now_ms()).as_bytes());
    made.and_then(|_| read_first_pilot(fs, layout)).map_err(|source| match source.kind() {
        _ if fs::is_damage(&source) || source.kind() == io::ErrorKind::InvalidData => LayoutError::Damaged {
            path,
            what: "it holds no moment in milliseconds since 1970",
            remedy: "write the moment from which scans are wanted (`date +%s000` says now), or remove it: \
                     `since = \"now\"` then counts from the next start",
        },
        _ => LayoutError::Io { path, source },
    })
}

const FIRST_PILOT: &str = "first-pilot";

/// The same, without making it so.
pub(super) fn read_first_pilot(fs: &dyn Fs, layout: &Layout) -> io::Result<SystemTime> {
    let text = fs.read(&layout.state.join(FIRST_PILOT), 64)?;
    let ms = String::from_utf8_lossy(&text).trim().parse::<u64>();
    let at = ms.ok().and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    at.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What arrivals said last, by stream.
#[derive(Debug, Default)]
pub(super) struct SeenArrivals(Mutex<BTreeMap<String, ArrivalsView>>);

impl SeenArrivals {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, ArrivalsView>> {
        // Whoever panicked while holding it left plain numbers behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn update(&self, stream: &str, change: impl FnOnce(&mut ArrivalsView)) {
        let mut seen = self.lock();
        let view = seen.entry(stream.to_owned()).or_default();
        view.stream = stream.to_owned();
        change(view);
    }
}

/// Turns what arrivals say into events.
pub(super) fn bridge(
    events: Receiver<ArrivalEvent>,
    mailbox: Mailbox,
    seen: Arc<SeenArrivals>,
    settling: Arc<AtomicUsize>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("bridge".into()).spawn(move || {
        let mut told = BTreeSet::new();
        for event in events {
            let event = match event {
                ArrivalEvent::Complete { scan, proof } => {
                    let check = match proof {
                        Proof::Probe => Check::Probe,
                        Proof::Manifest { files, .. } => Check::Verify(services::pack(&files)),
                        Proof::Declared => Check::None,
                    };
                    Event::Arrived { scan, check }
                }
                ArrivalEvent::Rejected { stream, name, version, reason } => {
                    Event::Rejected { stream, name, version, reason }
                }
                ArrivalEvent::Census { stream, settling: now, waiting_role, known, unreadable } => {
                    seen.update(&stream, |v| {
                        (v.settling, v.waiting_role, v.known) = (now, waiting_role, known);
                        v.trouble = unreadable;
                    });
                    settling.store(seen.lock().values().map(|v| v.settling).sum(), Ordering::Relaxed);
                    continue;
                }
                ArrivalEvent::Trouble { stream, message } => {
                    tracing::warn!("stream {stream}: {message}; tried again");
                    seen.update(&stream, |v| v.trouble = Some(message));
                    continue;
                }
                ArrivalEvent::Recovered { stream } => {
                    tracing::info!("stream {stream}: its folder can be listed again");
                    seen.update(&stream, |v| v.trouble = None);
                    continue;
                }
                ArrivalEvent::Idle { commands, incomplete } => {
                    for left in &incomplete {
                        if told.insert(left.clone()) {
                            let (stream, name, lacks) = left;
                            tracing::warn!("left as it is: {stream}/{name}: {lacks}");
                        }
                    }
                    Event::ArrivalsQuiet { obeyed: commands, incomplete: incomplete.len() }
                }
            };
            if !mailbox.post(event) {
                return;
            }
        }
    })
}

/// SIGTERM, SIGINT and SIGHUP end the pilot within seconds, with nothing waited for; a second one ends the process at
/// once: starting again loses nothing. SIGUSR1 (`qsig -s SIGUSR1`) drains in good order.
pub(super) fn signals(mailbox: Mailbox) -> io::Result<signal_hook::iterator::Handle> {
    use signal_hook::consts::{SIGHUP, SIGUSR1};
    let mut wanted = crate::site::signals::ending();
    wanted.push(SIGUSR1);
    let mut signals = signal_hook::iterator::Signals::new(wanted)?;
    let handle = signals.handle();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut asked = false;
        for signal in &mut signals {
            if signal == SIGUSR1 {
                tracing::info!("draining: SIGUSR1 asks for it");
                mailbox.post(Event::Drain);
                continue;
            }
            if asked {
                // A terminal that closes may say so twice: the shell to its jobs, the kernel to the group in front.
                if signal == SIGHUP {
                    continue;
                }
                signal_hook::low_level::exit(75);
            }
            asked = true;
            tracing::info!("ending: what is finished stays for the next pilot; a second signal ends at once");
            mailbox.post(Event::Stop);
        }
    })?;
    Ok(handle)
}

/// Writes `status/` and `pilots/` every second, and looks for drain sentinels.
pub(super) struct StatusWriter {
    disk: Arc<Disk>,
    status: PilotStatus,
    seen: Arc<SeenArrivals>,
    watched: Watched,
    /// When the job ends, milliseconds since the epoch.
    ends_ms: Option<u64>,
}

/// What the status thread looks at.
pub(super) struct Watched {
    /// Turns of the driver.
    pub(super) pulse: Arc<AtomicU64>,
    /// Processes that may write.
    pub(super) writers: Writers,
    /// How long disk orders take.
    pub(super) busy: Busy,
    /// What the inbox wants shown.
    pub(super) notices: Arc<Mutex<Notices>>,
    /// Its own rounds, and those of the inbox.
    pub(super) rounds: (Rounds, Rounds),
}

/// What the inbox wants shown.
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// See [`PilotStatus::alarms`].
    pub(super) alarms: Vec<String>,
    /// The campaign as it was edited, by its hash.
    pub(super) campaign_hash: Option<String>,
    /// See [`PilotStatus::editions`].
    pub(super) editions: Vec<Edition>,
}

/// Ends the status thread.
pub(super) struct StatusHandle {
    stop: Sender<()>,
    quiet: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl StatusHandle {
    /// Lets it write the last status and heartbeat; it says goodbye only when nothing of this pilot can write any more.
    pub(super) fn stop(self, quiet: bool) -> JoinHandle<()> {
        self.quiet.store(quiet, Ordering::Release);
        drop(self.stop);
        self.thread
    }
}

/// An order to the disk that takes longer means that the filesystem stalls.
const STALL: Duration = Duration::from_secs(30);
/// Between two heartbeats; a tenth of the lease, where that is less.
const BEAT: Duration = Duration::from_secs(1);
/// Between two looks at other pilots' heartbeats: what a lease takes longer than it must. A tenth of ours, where that is
/// less: theirs is, as a rule, the same.
const OBSERVE: Duration = Duration::from_secs(2);

const INBOX_HANGS: &str = "requests and edits of the campaign are not taken in: a filesystem call does not return; what \
                           is under way goes on";

type Shower = Box<dyn Fn(View) + Send>;

impl StatusWriter {
    pub(super) fn new(
        disk: Arc<Disk>,
        campaign: &Campaign,
        transport: &str,
        seen: Arc<SeenArrivals>,
        watched: Watched,
        ends_ms: Option<u64>,
    ) -> Self {
        let status = PilotStatus {
            status_version: status::VERSION,
            identity: disk.me.clone(),
            campaign: campaign.name.clone(),
            campaign_hash: campaign.hash.clone(),
            editions: Vec::new(),
            transport: transport.to_owned(),
            started_ms: now_ms(),
            written_ms: 0,
            state: "running".to_owned(),
            alarms: Vec::new(),
            arrivals: Vec::new(),
            view: View::default(),
        };
        Self { disk, status, seen, watched, ends_ms }
    }

    /// Starts the thread; the function returned takes the latest view and never waits.
    pub(super) fn spawn(mut self, mailbox: Mailbox, woken: Receiver<()>) -> io::Result<(StatusHandle, Shower)> {
        let latest: Arc<Mutex<Option<View>>> = Arc::default();
        let (stop, stopped) = bounded::<()>(0);
        let slot = latest.clone();
        let quiet = Arc::new(AtomicBool::new(false));
        let said = quiet.clone();
        let thread = std::thread::Builder::new().name("status".into()).spawn(move || {
            let (mut beat, mut pulse_seen, mut drained) = (0, None, false);
            let mut looked = Instant::now();
            let (pause, observe) = (BEAT.min(self.disk.lease / 10), OBSERVE.min(self.disk.lease / 10));
            loop {
                let pulse = self.watched.pulse.load(Ordering::Relaxed);
                // A driver that does not turn must not look alive.
                if pulse_seen.replace(pulse) != Some(pulse) {
                    beat += 1;
                }
                let mut ended = false;
                crossbeam::channel::select! {
                    recv(stopped) -> _ => ended = true,
                    // A new executor waits for its place in the heartbeat.
                    recv(woken) -> _ => {}
                    default(pause) => {}
                }
                if let Some(view) = slot.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    self.status.view = view;
                }
                self.watched.rounds.0.begin(Instant::now());
                self.write(beat + u64::from(ended), ended && said.load(Ordering::Acquire), ended);
                if ended {
                    return;
                }
                if looked.elapsed() >= observe {
                    looked = Instant::now();
                    if let Err(e) = self.disk.observe_others() {
                        tracing::debug!(error = %e, "other pilots could not be looked at");
                    }
                }
                let hangs = self.watched.busy.longest(self.disk.host.mono());
                if hangs > STALL {
                    let message = format!("a filesystem call has not returned for {} s", hangs.as_secs());
                    mailbox.post(Event::StorageTrouble { message });
                }
                if !drained && self.drain_asked() {
                    drained = true;
                    tracing::info!("draining: a sentinel asks for it");
                    mailbox.post(Event::Drain);
                }
                self.watched.rounds.0.end();
                if self.watched.rounds.1.hangs_newly(Instant::now()) {
                    mailbox.post(Event::Alarm { message: INBOX_HANGS.to_owned() });
                }
            }
        })?;
        let show: Shower = Box::new(move |view| {
            *latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(view);
        });
        Ok((StatusHandle { stop, quiet, thread }, show))
    }

    fn write(&mut self, beat: u64, goodbye: bool, ended: bool) {
        let s = &mut self.status;
        s.written_ms = now_ms();
        {
            // Whoever panicked while holding it left plain text behind.
            let notices = self.watched.notices.lock().unwrap_or_else(PoisonError::into_inner);
            s.alarms.clone_from(&notices.alarms);
            s.alarms.extend(self.watched.rounds.1.hangs(Instant::now()).map(|_| INBOX_HANGS.to_owned()));
            s.editions.clone_from(&notices.editions);
            if let Some(hash) = &notices.campaign_hash {
                s.campaign_hash.clone_from(hash);
            }
        }
        s.arrivals = self.seen.lock().values().cloned().collect();
        s.state = if ended {
            "ended"
        } else if s.view.draining {
            "draining"
        } else {
            "running"
        }
        .to_owned();
        let (version, writers) = self.watched.writers.snapshot();
        let heartbeat = Heartbeat {
            identity: s.identity.clone(),
            beat,
            at_ms: s.written_ms,
            ended: goodbye,
            ends_ms: self.ends_ms,
            writers,
            lease_ms: (self.disk.lease != Observer::LEASE).then_some(self.disk.lease.as_millis() as u64),
        };
        let Disk { fs, host, layout, last_beat, .. } = &*self.disk;
        let began = host.mono();
        let beaten = claims::beat(&**fs, layout, &heartbeat);
        if beaten.is_ok() {
            self.watched.writers.written(version);
            *last_beat.lock().unwrap_or_else(PoisonError::into_inner) = began;
        }
        if let Err(e) = beaten.and_then(|()| status::write(&**fs, layout, s)) {
            tracing::warn!(error = %e, "status and heartbeat cannot be written; tried again every second");
        }
    }

    fn drain_asked(&self) -> bool {
        let Disk { fs, layout, .. } = &*self.disk;
        let here = |whom: &str| fs.exists(&layout.drain(whom)).unwrap_or(false);
        here("all") || here(&self.status.identity.pilot)
    }
}
