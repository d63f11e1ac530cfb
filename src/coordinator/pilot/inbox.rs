//! The inbox: requests of people become events, once a second, and get their answers.
//!
//! Contract
//! - Every pilot takes in every request, and looks at each only once; what is already answered as refused is nobody's.
//!   Effects on files (a release) are made by whoever comes first, effects on a running pilot by each for itself.
//! - Several wishes to reprocess one scan are all fulfilled: the core gets one at a time, in the order of asking, and
//!   the next one when the last has its verdict.
//! - Whatever stands in a request ends in an answer with a reason: no request stops the thread or the pilot.
//! - A filesystem that stalls holds up requests and edits only, and an alarm says so.

use super::editions::Editions;
use super::rounds::Rounds;
use super::threads::Notices;
use crate::arrivals::ArrivalCommand;
use crate::campaign::Campaign;
use crate::coordinator::disk::Disk;
use crate::coordinator::driver::Mailbox;
use crate::coordinator::event::Event;
use crate::coordinator::job::recipe_digits;
use crate::store::claims;
use crate::store::records::{self, Published, Quarantined};
use crate::store::requests::{self, ACCEPTED, DONE, Fold, Outcome, REFUSED, Request};
use crate::technique;
use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks: a person waits for the answer, and a look is one listing.
const PERIOD: Duration = Duration::from_secs(1);

/// A request that is under way.
struct Open {
    request: Request,
    /// Last digits of the key it makes, where it makes one.
    digits: Option<String>,
    /// The recipe that it wants, while the core was not told.
    recipe: Option<String>,
}

impl Open {
    /// The scan that it wants again, if it does.
    fn wants_again(&self) -> Option<(String, String)> {
        let (stream, scan) = self.request.about();
        self.digits.as_ref().and(scan).map(|scan| (stream.to_owned(), scan.to_owned()))
    }
}

/// See the module.
pub(crate) struct Inbox {
    pub(super) disk: Arc<Disk>,
    pub(super) campaign: Campaign,
    pub(super) mailbox: Mailbox,
    commands: Sender<ArrivalCommand>,
    /// Ids that need no second look.
    seen: BTreeSet<String>,
    /// What counts, in the order of asking.
    log: BTreeMap<String, Request>,
    open: BTreeMap<String, Open>,
    /// Scans about which there is news since [`Inbox::hand_out`].
    stirred: BTreeSet<(String, String)>,
    fold: Fold,
    notices: Arc<Mutex<Notices>>,
    /// Editions to take in, each after the requests that are older.
    editions: Editions,
    trouble: bool,
    /// When it is looked again for what came to its end, by [`crate::store::Host::mono`].
    close_at: Option<Duration>,
}

/// Ends the thread.
pub(super) struct InboxHandle {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl InboxHandle {
    /// Tells it to end after a last look at what was published: its requests are answered.
    pub(super) fn stop(self) -> JoinHandle<()> {
        drop(self.stop);
        self.thread
    }
}

impl Inbox {
    pub(crate) fn new(
        disk: Arc<Disk>,
        (campaign, editions): (Campaign, Editions),
        mailbox: Mailbox,
        commands: Sender<ArrivalCommand>,
    ) -> Self {
        Self {
            disk,
            campaign,
            editions,
            mailbox,
            commands,
            seen: BTreeSet::new(),
            log: BTreeMap::new(),
            open: BTreeMap::new(),
            stirred: BTreeSet::new(),
            fold: Fold::default(),
            notices: Arc::default(),
            trouble: false,
            close_at: None,
        }
    }

    /// What status shows of the inbox.
    pub(super) fn notices(&self) -> Arc<Mutex<Notices>> {
        self.notices.clone()
    }

    pub(super) fn notice(&self, change: impl FnOnce(&mut Notices)) {
        change(&mut self.notices.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Starts the thread; `rounds` are those of the status thread, which it watches, and its own.
    pub(super) fn spawn(mut self, (status, own): (Rounds, Rounds)) -> io::Result<InboxHandle> {
        let (stop, stopped) = bounded::<()>(0);
        let mut share = super::share::Share::default();
        let mut edits = super::edits::Edits::new(&self.campaign);
        let thread = std::thread::Builder::new().name("inbox".into()).spawn(move || {
            while matches!(stopped.recv_timeout(PERIOD), Err(RecvTimeoutError::Timeout)) {
                if status.hangs_newly(Instant::now()) {
                    let message =
                        "status and heartbeat cannot be written: a filesystem call does not return".to_owned();
                    self.mailbox.post(Event::Alarm { message });
                }
                own.begin(Instant::now());
                self.look(false);
                share.look(&self);
                edits.look(&mut self);
                own.end();
            }
            if let Err(e) = self.close() {
                tracing::warn!(error = %e, "requests could not be answered; the next pilot does it");
            }
        })?;
        Ok(InboxHandle { stop, thread })
    }

    /// One look. `first`: what was known and done before this pilot started needs no more.
    pub(crate) fn look(&mut self, first: bool) {
        let due = self.close_at.is_none_or(|at| self.disk.host.mono() >= at);
        let began = self.disk.host.mono();
        let result = self.take_new(first).and_then(|()| if due { self.close() } else { Ok(()) });
        if due {
            // Folders of very many records are not listed more often than a twentieth of the time.
            let now = self.disk.host.mono();
            self.close_at = Some(now + now.saturating_sub(began) * 20);
        }
        match result {
            Ok(()) => self.trouble = false,
            Err(e) if !std::mem::replace(&mut self.trouble, true) => {
                tracing::warn!(error = %e, "the inbox for requests cannot be read or answered; tried again every second");
            }
            Err(_) => {}
        }
    }

    fn take_new(&mut self, first: bool) -> io::Result<()> {
        let (asked, answered) = requests::ids(&*self.disk.fs, &self.disk.layout)?;
        let new: Vec<String> = asked.difference(&self.seen).cloned().collect();
        for id in new {
            self.take_editions(requests::id_ms(&id).unwrap_or(u64::MAX));
            let (fs, layout) = (&*self.disk.fs, &self.disk.layout);
            let before = if answered.contains(&id) { requests::outcome(fs, layout, &id) } else { None };
            let before = before.map(|o| o.outcome);
            match requests::read(fs, layout, &id) {
                // Removed between listing and reading.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
                Ok(_) if before.as_deref() == Some(REFUSED) => {}
                Ok(Err(problem)) => self.answer(&id, "a file that is no request", REFUSED, &problem)?,
                Ok(Ok(envelope)) => self.take(&id, envelope.request, before.as_deref(), first)?,
            }
            self.seen.insert(id);
        }
        self.take_editions(u64::MAX);
        let fold = Fold::of(self.log.values());
        for (stream, held) in changes(&self.fold.held, &fold.held) {
            self.mailbox.post(if held { Event::Hold { stream } } else { Event::Resume { stream } });
        }
        for ((stream, name), skipped) in changes(&self.fold.skipped, &fold.skipped) {
            self.mailbox.post(if skipped {
                Event::Skip { stream, name }
            } else {
                Event::Release { stream, name, since_ms: 0 }
            });
        }
        self.fold = fold;
        self.hand_out();
        Ok(())
    }

    fn take_editions(&mut self, before_ms: u64) {
        while let Some((since_ms, edition)) = self.editions.pop_front() {
            if since_ms > before_ms {
                return self.editions.push_front((since_ms, edition));
            }
            for why in super::edits::follow(self, &edition, since_ms) {
                self.mailbox.post(Event::Alarm { message: why });
            }
        }
    }

    /// Tells the core of the next wish for every scan, and arrivals that the scan is wanted. After the fold's events: what
    /// arrives must find them.
    fn hand_out(&mut self) {
        let mut turns: BTreeMap<(String, String), String> = BTreeMap::new();
        for (id, open) in &self.open {
            let Some(at) = open.wants_again() else { continue };
            let told = open.recipe.is_none();
            // One that the core knows goes before those that were asked earlier and found later.
            if told || !turns.contains_key(&at) {
                turns.insert(at, id.clone());
            }
        }
        let stirred = std::mem::take(&mut self.stirred);
        for (at, id) in turns {
            let recipe = self.open.get_mut(&id).and_then(|open| open.recipe.take());
            let told_before = recipe.is_none();
            let (stream, name) = at.clone();
            if let Some(recipe) = recipe {
                let (stream, name) = (stream.clone(), Some(name.clone()));
                self.mailbox.post(Event::Recipe { stream, name, recipe, salt: id, since_ms: 0 });
            }
            if !told_before || stirred.contains(&at) {
                self.again(&stream, &name);
            }
        }
    }

    fn take(&mut self, id: &str, request: Request, before: Option<&str>, first: bool) -> io::Result<()> {
        let line = request.line();
        let stream = request.about().0.to_owned();
        if self.campaign.stream(&stream).is_none() {
            // Another pilot may run an edition that has it.
            let why = format!("this campaign has no stream {stream}");
            return if before.is_none() { self.answer(id, &line, REFUSED, &why) } else { Ok(()) };
        }
        let over = before == Some(DONE);
        let (mut reply, mut again) = (None, None);
        match &request {
            Request::Hold { .. } => reply = Some((DONE, "held: running tasks end, nothing new is started".to_owned())),
            Request::Resume { .. } => reply = Some((DONE, "goes on".to_owned())),
            Request::Skip { .. } => reply = Some((DONE, "left out until it is released or reprocessed".to_owned())),
            Request::Reprocess { recipe, scan: None, .. } => match self.recipe(&stream, recipe) {
                Ok(recipe) => {
                    let since_ms = requests::id_ms(id).unwrap_or_else(|| self.disk.host.wall_ms());
                    let salt = String::new();
                    self.mailbox.post(Event::Recipe { stream, name: None, recipe, salt, since_ms });
                    reply = Some((DONE, "counts for every scan from now on".to_owned()));
                }
                Err(why) => return self.refuse(id, &line, before, &why),
            },
            Request::Reprocess { recipe, scan: Some(scan), .. } if !over => match self.recipe(&stream, recipe) {
                Ok(recipe) => {
                    let digits = Some(recipe_digits(self.technique(&stream), &recipe, id));
                    self.stirred.insert((stream, scan.clone()));
                    let open = Open { request: request.clone(), digits, recipe: Some(recipe) };
                    self.open.insert(id.to_owned(), open);
                    reply = Some((ACCEPTED, "as soon as the scan is complete by its rule".to_owned()));
                }
                Err(why) => return self.refuse(id, &line, before, &why),
            },
            Request::Urgent { scan, .. } if !over => {
                if before.is_none() && self.is_finished(&stream, scan)? {
                    let why = "it is published or in quarantine already";
                    return self.answer(id, &line, REFUSED, why);
                }
                self.mailbox.post(Event::Urgent { stream, name: scan.clone() });
                self.open.insert(id.to_owned(), Open { request: request.clone(), digits: None, recipe: None });
                reply = Some((ACCEPTED, "goes before all others".to_owned()));
            }
            Request::Release { scan, .. } if before.is_none() => match self.release(&stream, scan)? {
                Some(text) => {
                    again = Some(scan.clone());
                    reply = Some((DONE, text));
                }
                // Ours from a look whose answer could not be written.
                None if self.log.contains_key(id) => reply = Some((DONE, "taken out of quarantine".to_owned())),
                None => return self.answer(id, &line, REFUSED, "it is neither in quarantine nor skipped"),
            },
            // Released by another pilot while we run: our arrivals still think that they know it.
            Request::Release { scan, .. } if !first => again = Some(scan.clone()),
            Request::Release { .. } | Request::Reprocess { .. } | Request::Urgent { .. } => {}
        }
        if let Request::Release { stream, scan } = &request {
            let since_ms = requests::id_ms(id).unwrap_or(0);
            self.mailbox.post(Event::Release { stream: stream.clone(), name: scan.clone(), since_ms });
        }
        if let (Some(scan), (stream, _)) = (again, request.about()) {
            // After the events: what arrives must find them.
            self.again(stream, &scan);
        }
        self.log.insert(id.to_owned(), request);
        match reply {
            Some((outcome, text)) if before.is_none() => self.answer(id, &line, outcome, &text),
            _ => Ok(()),
        }
    }

    fn refuse(&self, id: &str, line: &str, before: Option<&str>, why: &str) -> io::Result<()> {
        // What another edition of the campaign accepted is not ours to refuse.
        if before.is_none() { self.answer(id, line, REFUSED, why) } else { Ok(()) }
    }

    fn technique(&self, stream: &str) -> &str {
        self.campaign.stream(stream).map_or("", |s| s.technique.as_str())
    }

    /// The canonical recipe with these entries over the campaign's.
    pub(super) fn recipe(
        &self,
        stream: &str,
        over: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, String> {
        let stream = self.campaign.stream(stream).ok_or("the stream is unknown")?;
        let merged = requests::merge(&stream.recipe, over)?;
        let technique = technique::registry(&stream.technique).ok_or("the technique is unknown")?;
        technique.recipe_at(&merged, self.campaign.folder()).map(|v| v.to_string()).map_err(|e| format!("recipe.{e}"))
    }

    /// What people want of a stream's recipe from now on.
    pub(super) fn standing(&self, stream: &str) -> serde_json::Map<String, serde_json::Value> {
        let last = self.log.values().rev().find_map(|r| match r {
            Request::Reprocess { stream: s, scan: None, recipe } if s == stream => Some(recipe.clone()),
            _ => None,
        });
        last.unwrap_or_default()
    }

    fn again(&self, stream: &str, scan: &str) {
        // Arrivals end only when told to.
        let _ = self.commands.send(ArrivalCommand::Again { stream: stream.to_owned(), name: scan.to_owned() });
    }

    /// Takes every record of the scan out of quarantine; in words what was done, `None`: nothing.
    fn release(&self, stream: &str, scan: &str) -> io::Result<Option<String>> {
        let (fs, layout) = (&*self.disk.fs, &self.disk.layout);
        let mut released = 0;
        // A rejected name has no usable version, and its record may have another form of key: the record decides.
        for record in records::all::<Quarantined>(fs, layout, "quarantine")? {
            if record.stream == stream && record.scan == scan {
                released += usize::from(claims::release_quarantined(fs, layout, &record.key)?);
            }
        }
        let skipped = Fold::of(self.log.values()).skipped.contains(&(stream.to_owned(), scan.to_owned()));
        Ok(match (released, skipped) {
            (0, false) => None,
            (0, true) => Some("no longer left out".to_owned()),
            _ => Some("taken out of quarantine".to_owned()),
        })
    }

    fn is_finished(&self, stream: &str, scan: &str) -> io::Result<bool> {
        let reprocessed = self.open.values().any(|o| o.request.about() == (stream, Some(scan)));
        let (fs, layout) = (&*self.disk.fs, &self.disk.layout);
        Ok(!reprocessed
            && (!records::keys_of(fs, layout, "published", stream, scan)?.is_empty()
                || !records::keys_of(fs, layout, "quarantine", stream, scan)?.is_empty()))
    }

    /// Answers what came to its end.
    fn close(&mut self) -> io::Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let (fs, layout) = (&*self.disk.fs, &self.disk.layout);
        let published = records::keys(fs, layout, "published")?;
        let quarantined = records::keys(fs, layout, "quarantine")?;
        let mut ended = Vec::new();
        for (id, open) in &self.open {
            let (stream, scan) = open.request.about();
            let asked = requests::id_ms(id).unwrap_or(0);
            let ours = |key: &&String| {
                let digits = open.digits.as_ref().is_none_or(|d| key.ends_with(d.as_str()));
                digits && scan.is_some_and(|scan| records::is_about(key, stream, scan))
            };
            for key in published.iter().filter(ours) {
                let Ok(record) = records::one::<Published>(fs, layout, "published", key) else { continue };
                if open.digits.is_some() || record.published_ms >= asked {
                    ended.push((id.clone(), format!("published: {}", record.bundle)));
                }
            }
            for key in quarantined.iter().filter(ours) {
                let Ok(record) = records::one::<Quarantined>(fs, layout, "quarantine", key) else { continue };
                if open.digits.is_some() || record.at_ms >= asked {
                    ended.push((id.clone(), format!("in quarantine: {}", record.reason)));
                }
            }
        }
        for (id, text) in ended {
            if let Some(open) = self.open.get(&id) {
                self.answer(&id, &open.request.line(), DONE, &text)?;
                self.open.remove(&id);
            }
        }
        self.hand_out();
        Ok(())
    }

    /// Writes an outcome, unless another pilot did; journals what we wrote.
    fn answer(&self, id: &str, line: &str, outcome: &str, text: &str) -> io::Result<()> {
        let pilot = self.disk.me.pilot.clone();
        let said =
            Outcome { outcome: outcome.to_owned(), text: text.to_owned(), at_ms: self.disk.host.wall_ms(), pilot };
        if requests::answer(&*self.disk.fs, &self.disk.layout, id, &said)? {
            tracing::info!(request = id, "{line}: {outcome}: {text}");
            let (id, request, outcome) = (id.to_owned(), line.to_owned(), format!("{outcome}: {text}"));
            self.mailbox.post(Event::Request { id, request, outcome });
        }
        Ok(())
    }
}

/// What is in one set and not in the other: added (true) and removed (false).
fn changes<T: Ord + Clone>(old: &BTreeSet<T>, new: &BTreeSet<T>) -> Vec<(T, bool)> {
    let added = new.difference(old).map(|t| (t.clone(), true));
    added.chain(old.difference(new).map(|t| (t.clone(), false))).collect()
}
